//! Folders of safetensors as sources of `quantize`: a GGUF of the test recipes taken apart into the
//! files of Hugging Face, put together again by the real verb, and held against its twin.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use half::bf16;
use jetforge::inference::gguf::Gguf;
use jetforge::inference::quant::TensorType;
use serde_json::{Map, Value as Json, json};

use crate::cli::jetforge;
use crate::support::recipe::Recipe;
use crate::support::run::Run;

/// A tensor of a folder: name, type, shape from the outermost, bytes.
type Tensor = (String, &'static str, Vec<u64>, Vec<u8>);

/// A folder made of a recipe, and the GGUF that it was made of.
struct Twin {
    dir: tempfile::TempDir,
    gguf: Gguf,
    config: Json,
    tokenizer: Json,
    settings: Json,
    tensors: Vec<Tensor>,
}

/// Hugging Face's name of a tensor.
fn name_of(gguf: &str, is_phi: bool) -> String {
    let parts = [
        ("attn_norm", "input_layernorm"),
        ("attn_q", "self_attn.q_proj"),
        ("attn_k", "self_attn.k_proj"),
        ("attn_v", "self_attn.v_proj"),
        ("attn_output", if is_phi { "self_attn.dense" } else { "self_attn.o_proj" }),
        ("ffn_norm", "post_attention_layernorm"),
        ("ffn_gate", "mlp.gate_proj"),
        ("ffn_up", if is_phi { "mlp.fc1" } else { "mlp.up_proj" }),
        ("ffn_down", if is_phi { "mlp.fc2" } else { "mlp.down_proj" }),
    ];
    match gguf.strip_prefix("blk.").and_then(|rest| rest.split_once('.')) {
        Some((layer, rest)) => {
            let (part, kind) = rest.split_once('.').unwrap();
            let (_, part) = parts.into_iter().find(|(known, _)| *known == part).unwrap();
            format!("model.layers.{layer}.{part}.{kind}")
        }
        None => match gguf {
            "token_embd.weight" => "model.embed_tokens.weight".to_owned(),
            other => match other.split_once('.') {
                Some(("output_norm", kind)) if is_phi => format!("model.final_layernorm.{kind}"),
                Some(("output_norm", kind)) => format!("model.norm.{kind}"),
                Some(("output", kind)) => format!("lm_head.{kind}"),
                _ => panic!("{other}"),
            },
        },
    }
}

/// Rows in pairs become rows in halves, head by head: what the converter has to undo.
fn in_halves(bytes: &[u8], n_head: usize) -> Vec<u8> {
    let head_bytes = bytes.len() / n_head;
    let mut out = Vec::with_capacity(bytes.len());
    for head in bytes.chunks(head_bytes) {
        // Of each head, the number of rows is that of its pairs, twice.
        let row_bytes = head_bytes / HEAD_DIM;
        let rows: Vec<&[u8]> = head.chunks(row_bytes).collect();
        let (even, odd) = (rows.iter().step_by(2), rows.iter().skip(1).step_by(2));
        even.chain(odd).for_each(|row| out.extend_from_slice(row));
    }
    out
}

const HEAD_DIM: usize = 64;

impl Twin {
    fn new(case: &str, is_bf16: bool) -> Twin {
        let recipe = Recipe::read(case);
        let ty = if is_bf16 { TensorType::BF16 } else { TensorType::F32 };
        let gguf = Gguf::from_vec(recipe.build(ty)).unwrap();
        let meta = gguf.metadata();
        let arch = meta.str("general.architecture").unwrap().unwrap().to_owned();
        let number = |key: &str| meta.u64(&format!("{arch}.{key}")).unwrap().unwrap();
        let float = |key: &str| f64::from(meta.f32(&format!("{arch}.{key}")).unwrap().unwrap());
        let n_head = |name: &str| match name {
            _ if arch != "llama" => None,
            _ if name.contains("attn_q.") => Some(number("attention.head_count") as usize),
            _ if name.contains("attn_k.") => Some(number("attention.head_count_kv") as usize),
            _ => None,
        };
        let is_phi = arch == "phi2";
        let tensors = gguf.tensors().iter().flat_map(|info| {
            let bytes = gguf.bytes(info);
            let bytes = n_head(&info.name).map_or(bytes.to_vec(), |n| in_halves(bytes, n));
            let shape: Vec<u64> = info.shape.iter().rev().copied().collect();
            let dtype = if info.ty == TensorType::BF16 { "BF16" } else { "F32" };
            // One matrix for three in the recipe; the folder keeps them apart.
            let parts: &[&str] =
                if info.name.contains("attn_qkv") { &["q", "k", "v"] } else { &[""] };
            let (n_bytes, mut shape) = (bytes.len() / parts.len(), shape);
            shape[0] /= parts.len() as u64;
            let part = |(i, part): (usize, &&str)| {
                let name = name_of(&info.name.replace("qkv", part), is_phi);
                (name, dtype, shape.clone(), bytes[i * n_bytes..][..n_bytes].to_vec())
            };
            parts.iter().enumerate().map(part).collect::<Vec<Tensor>>()
        });
        let tensors = tensors.collect();
        let class = match arch.as_str() {
            "llama" => "LlamaForCausalLM",
            "qwen2" => "Qwen2ForCausalLM",
            "phi2" => "PhiForCausalLM",
            _ => "StableLmForCausalLM",
        };
        let is_layer_norm = matches!(arch.as_str(), "phi2" | "stablelm");
        let eps = if is_layer_norm { "layer_norm_epsilon" } else { "layer_norm_rms_epsilon" };
        let eps = float(&format!("attention.{eps}"));
        let mut config = json!({
            "architectures": [class], "hidden_act": if is_phi { "gelu_new" } else { "silu" },
            "vocab_size": number("vocab_size"),
            "hidden_size": number("embedding_length"),
            "intermediate_size": number("feed_forward_length"),
            "num_hidden_layers": number("block_count"),
            "num_attention_heads": number("attention.head_count"),
            "num_key_value_heads": number("attention.head_count_kv"),
            "max_position_embeddings": number("context_length"),
            if is_layer_norm { "layer_norm_eps" } else { "rms_norm_eps" }: eps,
            "rope_theta": float("rope.freq_base"),
            "tie_word_embeddings": gguf.tensor("output.weight").is_none(),
        });
        if let Ok(Some(n)) = meta.u64(&format!("{arch}.rope.dimension_count")) {
            let head_dim = number("embedding_length") / number("attention.head_count");
            config["partial_rotary_factor"] = (n as f64 / head_dim as f64).into();
        }
        if let Ok(Some(is_parallel)) = meta.bool(&format!("{arch}.use_parallel_residual")) {
            config["use_parallel_residual"] = is_parallel.into();
        }
        if let Ok(Some(factor)) = meta.f32(&format!("{arch}.rope.scaling.factor")) {
            config["rope_scaling"] = json!({"type": "linear", "factor": factor});
        }
        let (tokenizer, settings) = tokenizer_of(&gguf);
        let dir = tempfile::tempdir().unwrap();
        Twin { dir, gguf, config, tokenizer, settings, tensors }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("model")
    }

    /// Writes the folder, its weights in `n_file` files.
    fn write(&self, n_file: usize) -> PathBuf {
        let path = self.path();
        std::fs::create_dir_all(&path).unwrap();
        let put = |name: &str, json: &Json| {
            std::fs::write(path.join(name), serde_json::to_vec(json).unwrap()).unwrap();
        };
        put("config.json", &self.config);
        put("tokenizer.json", &self.tokenizer);
        put("tokenizer_config.json", &self.settings);
        let mut map = Map::new();
        let share = self.tensors.len().div_ceil(n_file);
        for (i, tensors) in self.tensors.chunks(share).enumerate() {
            let name = match n_file {
                1 => "model.safetensors".to_owned(),
                n => format!("model-{:05}-of-{n:05}.safetensors", i + 1),
            };
            tensors.iter().for_each(|t| drop(map.insert(t.0.clone(), name.clone().into())));
            std::fs::write(path.join(&name), safetensors(tensors)).unwrap();
        }
        if n_file > 1 {
            put("model.safetensors.index.json", &json!({"metadata": {}, "weight_map": map}));
        }
        path
    }
}

fn safetensors(tensors: &[Tensor]) -> Vec<u8> {
    let mut header = Map::new();
    let mut data = Vec::new();
    for (name, dtype, shape, bytes) in tensors {
        let offsets = [data.len(), data.len() + bytes.len()];
        let entry = json!({"dtype": dtype, "shape": shape, "data_offsets": offsets});
        header.insert(name.clone(), entry);
        data.extend_from_slice(bytes);
    }
    let header = serde_json::to_vec(&header).unwrap();
    [&(header.len() as u64).to_le_bytes()[..], &header, &data].concat()
}

/// `tokenizer.json` and `tokenizer_config.json` of the vocabulary in a file.
fn tokenizer_of(gguf: &Gguf) -> (Json, Json) {
    let meta = gguf.metadata();
    let texts = meta.strs("tokenizer.ggml.tokens").unwrap().unwrap();
    let types = meta.i32s("tokenizer.ggml.token_type").unwrap().unwrap();
    let is_spm = meta.str("tokenizer.ggml.model").unwrap() == Some("llama");
    let is_added = |ty: i32| ty == 3 || ty == 4 || (is_spm && ty == 2);
    let each = || texts.iter().zip(&types).enumerate();
    let vocab: Map<String, Json> = each()
        .filter(|(_, (_, ty))| is_spm || !is_added(**ty))
        .map(|(id, (text, _))| ((*text).to_owned(), id.into()))
        .collect();
    let added: Vec<Json> = each()
        .filter(|(_, (_, ty))| is_added(**ty))
        .map(|(id, (text, ty))| json!({"id": id, "content": text, "special": *ty != 4}))
        .collect();
    let merges = meta.strs("tokenizer.ggml.merges").unwrap().unwrap_or_default();
    let split =
        |regex: &str| json!({"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated"});
    let is_phi = meta.str("tokenizer.ggml.pre").unwrap() == Some("phi-2");
    let bytes = json!({"type": "ByteLevel", "add_prefix_space": false, "use_regex": is_phi});
    let rules = match meta.str("tokenizer.ggml.pre").unwrap() {
        Some("qwen2" | "stablelm2") => vec![split(concat!(
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}",
            r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
        ))],
        Some("deepseek-coder") => {
            let digits = json!({"type": "Digits", "individual_digits": true});
            let words = [r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+"];
            let rules = ["[\r\n]"].into_iter().chain(words).map(split);
            rules.chain([digits]).collect()
        }
        _ => vec![],
    };
    let all = [rules, vec![bytes]].concat();
    let pre = json!({"type": "Sequence", "pretokenizers": all});
    let tokenizer = json!({
        "added_tokens": added,
        "pre_tokenizer": if is_spm { Json::Null } else { pre },
        "model": {"type": "BPE", "vocab": vocab, "merges": merges, "byte_fallback": is_spm,
                  "unk_token": if is_spm { json!("<unk>") } else { Json::Null }},
    });
    let token = |key: &str| {
        let id = meta.u64(&format!("tokenizer.ggml.{key}_token_id")).unwrap();
        id.map_or(Json::Null, |id| texts[id as usize].into())
    };
    let settings = json!({
        "bos_token": token("bos"), "eos_token": {"content": token("eos")},
        "add_bos_token": meta.bool("tokenizer.ggml.add_bos_token").unwrap(),
        "chat_template": meta.str("tokenizer.chat_template").unwrap(),
    });
    (tokenizer, settings)
}

fn run(dir: &Path, args: &[&str]) -> Run {
    let mut command: Command = jetforge(Path::new("/nonexistent"));
    Run::of(command.current_dir(dir).args(args))
}

/// Greedy text, and the probabilities of each token, of a file.
fn answer(dir: &Path, model: &str) -> (String, String) {
    let args = ["generate", "--raw", "-p", "def add(a, b):", "-n", "12", "--temp", "0", "-m"];
    let more = [model, "--n-probs", "5", "--json", "--kv-type", "f32"];
    let run = run(dir, &[&args[..], &more].concat());
    assert_eq!(run.code, 0, "{}", run.err);
    let json: Json = serde_json::from_str(&run.out).unwrap();
    (json["text"].to_string(), json["probs"].to_string())
}

#[test]
fn a_folder_becomes_the_file_that_its_twin_is() {
    for (case, is_bf16, n_file, recipe) in [
        ("llama", false, 1, "F32"),
        ("llama-linear", true, 3, "BF16"),
        ("qwen2", true, 2, "BF16"),
        ("stablelm", true, 2, "BF16"),
    ] {
        let twin = Twin::new(case, is_bf16);
        twin.write(n_file);
        let made = run(twin.dir.path(), &["quantize", "model", "made.gguf", recipe]);
        assert_eq!(made.code, 0, "{case}: {}", made.err);
        let got = Gguf::open(&twin.dir.path().join("made.gguf")).unwrap();
        assert_eq!(got.tensors().len(), twin.gguf.tensors().len(), "{case}");
        for info in twin.gguf.tensors() {
            let other = got.tensor(&info.name).unwrap_or_else(|| panic!("{case} {}", info.name));
            assert_eq!((other.ty, &other.shape), (info.ty, &info.shape), "{case} {}", info.name);
            assert!(got.bytes(other) == twin.gguf.bytes(info), "{case} {}", info.name);
        }
        for (key, value) in twin.gguf.metadata().iter() {
            // Scores follow the numbers of tokens; the recipe's are its own.
            if ["general.name", "general.quantization_version", "tokenizer.ggml.scores"]
                .contains(&key)
                // Qwen's rule by another name.
                || (case == "stablelm" && key == "tokenizer.ggml.pre")
            {
                continue;
            }
            assert_eq!(got.metadata().get(key), Some(value), "{case} {key}");
        }
        let twin_path = twin.dir.path().join("twin.gguf");
        let ty = if is_bf16 { TensorType::BF16 } else { TensorType::F32 };
        std::fs::write(&twin_path, Recipe::read(case).build(ty)).unwrap();
        let dir = twin.dir.path();
        let (mine, theirs) = (answer(dir, "made.gguf"), answer(dir, "twin.gguf"));
        assert_eq!(mine, theirs, "{case}");
    }
}

/// Phi keeps queries, keys and values apart, and the recipe's file has them in one matrix: other
/// tensors, the same numbers.
#[test]
fn a_folder_of_phi_answers_as_its_twin_does() {
    let twin = Twin::new("phi2", false);
    twin.write(2);
    let dir = twin.dir.path();
    let made = run(dir, &["quantize", "model", "made.gguf", "F32"]);
    assert_eq!(made.code, 0, "{}", made.err);
    std::fs::write(dir.join("twin.gguf"), Recipe::read("phi2").build(TensorType::F32)).unwrap();
    assert_eq!(answer(dir, "made.gguf"), answer(dir, "twin.gguf"));
}

/// From the folder at once, and over a file in between: the same weights.
#[test]
fn quantised_at_once_or_in_two_steps_is_the_same() {
    let twin = Twin::new("qwen2", true);
    twin.write(2);
    let dir = twin.dir.path();
    let ok = |args: &[&str]| {
        let run = run(dir, args);
        assert_eq!(run.code, 0, "{}", run.err);
        run.out
    };
    ok(&["quantize", "model", "N3_M"]);
    let once = Gguf::open(&dir.join("model-n3_m.gguf")).expect("named after the folder");
    ok(&["quantize", "model", "mid.gguf", "BF16"]);
    ok(&["quantize", "mid.gguf", "twice.gguf", "N3_M"]);
    let twice = Gguf::open(&dir.join("twice.gguf")).unwrap();
    for (a, b) in once.tensors().iter().zip(twice.tensors()) {
        assert!(a.ty == b.ty && once.bytes(a) == twice.bytes(b), "{}", a.name);
    }
    let hashes = once.metadata().str("jetforge.quantize.source_sha256").unwrap().unwrap();
    assert_eq!(hashes.split(' ').count(), 2, "one for each file of weights");
    let setup =
        ["setup-model", "--model", "model", "--dir", "store", "--quantize", "3bit", "--json"];
    let made: Json = serde_json::from_str(&ok(&setup)).unwrap();
    assert_eq!((&made["name"], &made["recipe"]), (&"model-q3".into(), &"N3_M".into()));
}

#[test]
fn what_is_not_understood_is_refused() {
    let twin = || Twin::new("qwen2", true);
    type Change = fn(&mut Twin);
    let cases: [(Change, &str); 10] = [
        (|t| t.config["architectures"][0] = "MambaForCausalLM".into(), "StableLmForCausalLM are"),
        (|t| t.config["rope_scaling"] = json!({"type": "dynamic", "factor": 2}), "linear and yarn"),
        (|t| t.config["hidden_act"] = "gelu".into(), "of the family"),
        (|t| t.config["num_hidden_layers"] = u64::MAX.into(), "of a usual size"),
        (|t| t.config["vocab_size"] = 64.into(), "beyond vocab_size"),
        (|t| drop(t.tensors.remove(4)), "the weights have no"),
        (|t| t.tensors[2].0.push('x'), "the weights have no"),
        (|t| t.tensors.push(("more".into(), "F32", vec![1], vec![0; 4])), "have 'more'"),
        (|t| t.tensors[0].2.reverse(), "were expected"),
        (|t| t.tokenizer["pre_tokenizer"] = json!({"type": "Whitespace"}), "is not known"),
    ];
    for (change, says) in cases {
        let mut twin = twin();
        change(&mut twin);
        twin.write(1);
        let run = run(twin.dir.path(), &["quantize", "model", "x.gguf", "F16"]);
        assert!(run.code == 3 && run.err.contains(says), "{says}: {:?} {}", run.code, run.err);
        assert!(!twin.dir.path().join("x.gguf").exists());
    }
    let whole = twin();
    let path = whole.write(2);
    let dir = whole.dir.path();
    let text = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/perplexity/text.txt");
    let report = run(dir, &["quantize", "model", "N4", "--report", text.to_str().unwrap()]);
    assert!(report.code == 2 && report.err.contains("model-f16.gguf F16"), "{}", report.err);
    let shard = path.join("model-00001-of-00002.safetensors");
    let own = run(dir, &["quantize", "model", shard.to_str().unwrap(), "F16", "--force"]);
    assert!(own.code == 1 && own.err.contains("a part of it"), "{}", own.err);
    let index = path.join("model.safetensors.index.json");
    std::fs::write(&index, r#"{"weight_map": {"a": "../x.safetensors"}}"#).unwrap();
    let away = run(dir, &["quantize", "model", "F16"]);
    assert!(away.code == 3 && away.err.contains("elsewhere"), "{}", away.err);
    std::fs::remove_file(index).unwrap();
    let two = run(dir, &["quantize", "model", "F16"]);
    assert!(two.code == 3 && two.err.contains("nor one .safetensors"), "{}", two.err);
}

/// Llama's vocabulary as SentencePiece's own file, whose scores and kinds are taken as they stand.
#[test]
fn a_sentencepiece_file_is_taken_as_it_stands() {
    let mut twin = Twin::new("llama", false);
    let meta = twin.gguf.metadata();
    let texts = meta.strs("tokenizer.ggml.tokens").unwrap().unwrap();
    let scores = meta.f32s("tokenizer.ggml.scores").unwrap().unwrap();
    let types = meta.i32s("tokenizer.ggml.token_type").unwrap().unwrap();
    let mut model = Vec::new();
    for ((text, score), ty) in texts.iter().zip(&scores).zip(&types) {
        let mut piece = vec![0x0a, text.len() as u8];
        piece.extend(text.as_bytes());
        piece.push(0x15);
        piece.extend(score.to_le_bytes());
        piece.extend([0x18, *ty as u8]);
        model.extend([0x0a, piece.len() as u8]);
        model.extend(piece);
    }
    let special: BTreeMap<&str, Json> = [("1", "<s>"), ("2", "</s>")]
        .map(|(id, text)| (id, json!({"content": text, "special": true})))
        .into();
    twin.settings["added_tokens_decoder"] = json!(special);
    let path = twin.write(1);
    std::fs::write(path.join("tokenizer.model"), model).unwrap();
    let made = run(twin.dir.path(), &["quantize", "model", "made.gguf", "F32"]);
    assert_eq!(made.code, 0, "{}", made.err);
    let got = Gguf::open(&twin.dir.path().join("made.gguf")).unwrap();
    for key in ["model", "pre", "tokens", "scores", "token_type", "bos_token_id", "eos_token_id"] {
        let key = format!("tokenizer.ggml.{key}");
        assert_eq!(got.metadata().get(&key), twin.gguf.metadata().get(&key), "{key}");
    }
}

/// A BF16 weight that F16 cannot hold, and a norm that is no number: found, and named.
#[test]
fn weights_that_the_target_cannot_hold_are_named() {
    let mut twin = Twin::new("qwen2", true);
    let large = bf16::from_f32(1e6).to_le_bytes();
    let at = twin.tensors.iter().position(|t| t.0.ends_with("0.mlp.up_proj.weight")).unwrap();
    twin.tensors[at].3[512..514].copy_from_slice(&large);
    twin.write(1);
    let dir = twin.dir.path();
    let run_it = |args: &[&str]| run(dir, &[&["quantize", "model", "x.gguf"][..], args].concat());
    let refused = run_it(&["F16"]);
    assert_eq!(refused.code, 3, "{}", refused.err);
    assert!(refused.err.contains("'blk.0.ffn_up.weight' has a weight of 999424 in row 1"));
    assert!(refused.err.contains("--tensor-type 'blk.0.ffn_up.weight=F32'"), "{}", refused.err);
    let kept = run_it(&["F16", "--tensor-type", "blk.0.ffn_up.weight=F32"]);
    assert_eq!(kept.code, 0, "{}", kept.err);
    let norm = twin.tensors.iter().position(|t| t.0 == "model.norm.weight").unwrap();
    twin.tensors[norm].3[8..12].copy_from_slice(&f32::NAN.to_le_bytes());
    twin.write(1);
    let run = run(twin.dir.path(), &["quantize", "model", "y.gguf", "BF16"]);
    assert_eq!(run.code, 3, "{}", run.err);
    assert!(run.err.contains("'output_norm.weight'"), "copied numbers are looked at: {}", run.err);
}
