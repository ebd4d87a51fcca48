//! Golden: the forward pass gives llama.cpp's logits, for every architecture and tensor type.
//!
//! The models are tiny (2 layers, 256 wide) and built from recipes; see `support::recipe`. Tokens
//! are teacher-forced, so an error at one position does not hide the next. llama.cpp quantises
//! activations as it likes: quantised models are compared as distributions, F32 models as numbers.

use jetforge::inference::gguf::Gguf;
use jetforge::inference::model::Pooling;
use jetforge::inference::{LoadOptions, Model, ModelSource};
use tempfile::TempDir;

use crate::support::recipe::{Golden, Recipe};

/// The largest difference of a logit on F32 weights.
const F32_LOGIT_MAX: f32 = 1e-3;
/// The largest KL divergence from llama.cpp on other weights, in nats, mean over the positions.
const KL_MAX: f64 = 1e-3;
/// The largest `1 - cosine` between embeddings on weights that are not F32.
const EMBEDDING_ANGLE_MAX: f64 = 1e-3;

/// Runs every file of a case and reports all that differ at once.
fn check(case: &str) {
    let recipe = Recipe::read(case);
    let folder = tempfile::tempdir().expect("a temporary folder");
    let failures: Vec<String> = recipe
        .goldens()
        .iter()
        .filter_map(|golden| {
            let mut model = load(&recipe, golden, &folder);
            let outcome = if recipe.texts().is_empty() {
                check_logits(&mut model, &recipe, golden)
            } else if recipe.is_reranker() {
                check_scores(&mut model, &recipe, golden)
            } else {
                check_embeddings(&mut model, &recipe, golden)
            };
            outcome.err().map(|why| format!("{case} {}: {why}", golden.ty))
        })
        .collect();
    assert!(failures.is_empty(), "\n{}", failures.join("\n"));
}

/// Writes the file, asserts the tensor types that are in it, and loads it.
fn load(recipe: &Recipe, golden: &Golden, folder: &TempDir) -> Model {
    let path = folder.path().join(format!("{}.gguf", golden.ty));
    std::fs::write(&path, recipe.build(golden.ty)).expect("the model is written");
    let gguf = Gguf::open(&path).expect("the reader takes the file");
    for name in recipe.matrices() {
        assert_eq!(gguf.tensor(name).expect(name).ty, golden.ty, "{name}");
    }
    let options = LoadOptions {
        n_ctx: Some(64),
        kv_type: Some("f32".to_owned()), // as the goldens were made
        ..LoadOptions::default()
    };
    Model::load(&ModelSource::File(path), &options).expect("the model loads")
}

fn check_logits(model: &mut Model, recipe: &Recipe, golden: &Golden) -> Result<(), String> {
    let tokens = recipe.tokens();
    let logits = model.logits(&tokens).map_err(|e| e.to_string())?;
    let n_vocab = golden.rows[0].len();
    if logits.len() != tokens.len() * n_vocab {
        return Err(format!("{} logits for {} tokens", logits.len(), tokens.len()));
    }
    let rows: Vec<&[f32]> = logits.chunks(n_vocab).collect();
    let pairs = || recipe.sampled().into_iter().map(|pos| rows[pos]).zip(&golden.rows);
    let is_f32 = golden.ty.name() == "F32";
    if is_f32 {
        let worst = pairs().map(|(ours, theirs)| max_diff(ours, theirs)).fold(0.0, f32::max);
        if worst > F32_LOGIT_MAX || worst.is_nan() {
            return Err(format!("a logit differs by {worst}"));
        }
    }
    let mean_kl =
        pairs().map(|(ours, theirs)| kl(theirs, ours)).sum::<f64>() / golden.rows.len() as f64;
    if mean_kl > KL_MAX || mean_kl.is_nan() {
        return Err(format!("KL divergence {mean_kl:.2e}"));
    }
    let tolerance = if is_f32 { 2.0 * F32_LOGIT_MAX } else { 2.0 * golden.noise.max(0.01) };
    for (pos, (row, &theirs)) in rows.iter().zip(&golden.argmax).enumerate() {
        let ours = argmax(row);
        if ours != theirs && golden.margin[pos] > tolerance {
            let margin = golden.margin[pos];
            return Err(format!("argmax at {pos}: {ours}, not {theirs} (margin {margin})"));
        }
    }
    Ok(())
}

/// Compares directions: whether an embedding is normalised is a choice of the caller.
fn check_embeddings(model: &mut Model, recipe: &Recipe, golden: &Golden) -> Result<(), String> {
    for (text, theirs) in recipe.texts().into_iter().zip(&golden.rows) {
        let ours = model.embed(text, None).map_err(|e| e.to_string())?;
        if ours.len() != theirs.len() {
            return Err(format!("{} values in an embedding", ours.len()));
        }
        let (size, wanted) = (dot(&ours, &ours).sqrt(), dot(theirs, theirs).sqrt());
        let angle = 1.0 - dot(&ours, theirs) / (size * wanted);
        let scaled: Vec<f32> =
            ours.iter().map(|x| (f64::from(*x) * wanted / size) as f32).collect();
        let worst = max_diff(&scaled, theirs);
        let is_f32 = golden.ty.name() == "F32";
        if angle.is_nan() || angle > EMBEDDING_ANGLE_MAX || (is_f32 && worst > F32_LOGIT_MAX) {
            return Err(format!("'{text}': 1 - cosine {angle:.2e}, a value differs by {worst}"));
        }
    }
    Ok(())
}

fn check_scores(model: &mut Model, recipe: &Recipe, golden: &Golden) -> Result<(), String> {
    let texts = recipe.texts();
    for (text, theirs) in texts.iter().zip(&golden.rows) {
        let ours = model.rerank(texts[0], text).map_err(|e| e.to_string())?;
        let difference = (ours - theirs[0]).abs();
        if difference > F32_LOGIT_MAX || difference.is_nan() {
            return Err(format!("'{text}': score {ours}, not {}", theirs[0]));
        }
    }
    Ok(())
}

fn max_diff(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(x, y)| (x - y).abs()).fold(0.0, f32::max)
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum()
}

/// The likeliest token.
pub fn argmax(row: &[f32]) -> usize {
    let best = (0..row.len()).max_by(|&a, &b| row[a].total_cmp(&row[b]));
    best.expect("a row has tokens")
}

/// KL divergence of softmax(`ours`) from softmax(`theirs`), in nats.
pub fn kl(theirs: &[f32], ours: &[f32]) -> f64 {
    let log_sum = |row: &[f32]| row.iter().map(|x| f64::from(*x).exp()).sum::<f64>().ln();
    let (sum_theirs, sum_ours) = (log_sum(theirs), log_sum(ours));
    let terms = theirs.iter().zip(ours).map(|(t, o)| {
        let (t, o) = (f64::from(*t) - sum_theirs, f64::from(*o) - sum_ours);
        t.exp() * (t - o)
    });
    terms.sum()
}

macro_rules! cases {
    ($($name:ident: $case:literal)*) => { $(#[test] fn $name() { check($case); })* };
}

cases! {
    llama: "llama"
    llama_with_linear_rope: "llama-linear"
    llama_with_yarn_rope: "llama-yarn"
    llama_with_llama3_rope: "llama-llama3"
    qwen2: "qwen2"
    qwen2_with_yarn_rope: "qwen2-yarn"
    qwen3: "qwen3"
    phi2: "phi2"
    stablelm: "stablelm"
    stablelm_with_parallel_residual: "stablelm-parallel"
    starcoder2: "starcoder2"
    starcoder2_with_an_output_matrix: "starcoder2-untied"
    gemma3: "gemma3"
    bert_pooled_by_its_first_token: "bert"
    bert_pooled_by_the_mean: "bert-mean"
    bert_with_a_dense_head_scores_pairs: "bert-rank"
    bert_with_a_direct_head_scores_pairs: "bert-rank-direct"
}

/// The canary: a wrong answer is seen as one.
#[test]
fn another_models_logits_are_refused() {
    let recipe = Recipe::read("qwen2");
    let mut goldens = recipe.goldens();
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut model = load(&recipe, &goldens[0], &folder);
    assert_eq!(check_logits(&mut model, &recipe, &goldens[0]), Ok(()));
    goldens[0].rows = goldens[3].rows.clone();
    assert!(check_logits(&mut model, &recipe, &goldens[0]).is_err());
}

const EMBEDDINGS: &str = include_str!("golden/embeddings.json");

/// `tests/tools/golden_embed.py` made the vectors.
#[test]
fn embeddings_under_each_pooling_are_llama_cpps() {
    let golden: serde_json::Value = serde_json::from_str(EMBEDDINGS).expect("embeddings.json");
    let text = golden["text"].as_str().expect("a text");
    let folder = tempfile::tempdir().expect("a temporary folder");
    for row in golden["embeddings"].as_array().expect("rows") {
        let recipe = Recipe::read(row["case"].as_str().expect("a case"));
        let mut model = load(&recipe, &recipe.goldens()[0], &folder);
        let pooling = match row["pooling"].as_str() {
            Some("mean") => Pooling::Mean,
            Some("cls") => Pooling::Cls,
            Some("last") => Pooling::Last,
            other => panic!("pooling {other:?}"),
        };
        let theirs: Vec<f32> =
            row["values"].as_array().unwrap().iter().map(|v| v.as_f64().unwrap() as f32).collect();
        let ours = model.embed(text, Some(pooling)).expect("an embedding");
        assert_eq!(ours.len(), theirs.len());
        let worst = max_diff(&ours, &theirs);
        assert!(worst <= F32_LOGIT_MAX, "{} {pooling:?}: {worst}", row["case"]);
    }
}

#[test]
fn what_a_model_is_not_made_for_is_refused() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let first = |case| {
        let recipe = Recipe::read(case);
        load(&recipe, &recipe.goldens()[0], &folder)
    };
    let refusal = first("bert").rerank("a", "b").unwrap_err().to_string();
    assert!(refusal.contains("no reranker"), "{refusal}");
    let refusal = first("llama").rerank("a", "b").unwrap_err().to_string();
    assert!(refusal.contains("no reranker"), "{refusal}");
    let refusal = first("bert-rank").rerank("a", &"b ".repeat(80)).unwrap_err().to_string();
    assert!(refusal.contains("context 64"), "{refusal}");
    let refusal = first("bert").perplexity(&[300; 64], 32, &mut |_, _| {}).unwrap_err().to_string();
    assert!(refusal.contains("an encoder"), "{refusal}");
    // Embedding leaves nothing behind that changes an answer.
    let mut model = first("llama");
    let before = model.logits(&[5, 6, 7]).expect("logits");
    model.embed("a text", None).expect("an embedding");
    assert_eq!(model.logits(&[5, 6, 7]).expect("logits"), before);
}
