//! `jetforge quantize`: the real verb on the default model and on a tiny one.

use std::path::{Path, PathBuf};
use std::process::Command;

use jetforge::inference::gguf::{Gguf, GgufBuilder};
use jetforge::inference::quant::TensorType;
use serde_json::Value as Json;

use crate::cli::jetforge;
use crate::support::recipe::Recipe;

const DEFAULT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/models/default.gguf");
const TEXT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/perplexity/text.txt");
/// The default model is Q8_0 already.
const AGAIN: &str = "--allow-requantize";

struct Run {
    code: Option<i32>,
    out: String,
    err: String,
}

impl Run {
    fn of(command: &mut Command) -> Run {
        let output = command.output().expect("the program starts");
        let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
        Run { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
    }

    fn ok(self) -> Run {
        assert_eq!(self.code, Some(0), "{}", self.err);
        self
    }

    fn json(self) -> Json {
        let run = self.ok();
        serde_json::from_str(&run.out).unwrap_or_else(|e| panic!("{e}: {}", run.out))
    }
}

fn quantize(dir: &Path, args: &[&str]) -> Run {
    Run::of(jetforge(Path::new("/nonexistent")).current_dir(dir).arg("quantize").args(args))
}

fn perplexity(model: &Path) -> f64 {
    let mut command = jetforge(Path::new("/nonexistent"));
    command.args(["perplexity", TEXT, "-c", "256", "--json", "-m"]).arg(model);
    Run::of(&mut command).json()["perplexity"].as_f64().expect("a number")
}

/// A tiny F32 model in `dir`.
fn tiny(dir: &Path) -> PathBuf {
    let path = dir.join("tiny-f32.gguf");
    std::fs::write(&path, Recipe::read("llama").build(TensorType::F32)).expect("a temporary file");
    path
}

fn types(path: &Path) -> Vec<(String, TensorType)> {
    let gguf = Gguf::open(path).expect("what was written is read");
    gguf.tensors().iter().map(|t| (t.name.clone(), t.ty)).collect()
}

#[test]
fn a_recipe_is_written_and_runs_nearly_as_well() {
    let dir = tempfile::tempdir().unwrap();
    let before = perplexity(Path::new(DEFAULT));
    for (recipe, worse_max) in [("Q6_K", 1.02), ("Q4_K_M", 1.08), ("Q3_K_S", 1.5)] {
        let target = dir.path().join(format!("{recipe}.gguf"));
        let name = target.to_str().unwrap();
        quantize(dir.path(), &[DEFAULT, name, recipe, AGAIN]).ok();
        let after = perplexity(&target);
        assert!(after / before <= worse_max, "{recipe}: {before} became {after}");
    }
}

#[test]
fn the_file_says_where_it_comes_from() {
    let dir = tempfile::tempdir().unwrap();
    let source = tiny(dir.path());
    quantize(dir.path(), &["tiny-f32.gguf", "Q8_0"]).ok();
    let gguf = Gguf::open(&dir.path().join("tiny-q8_0.gguf")).expect("named after the recipe");
    let text = |key: &str| gguf.metadata().str(key).unwrap().unwrap_or_default().to_owned();
    let hash = <sha2::Sha256 as sha2::Digest>::digest(std::fs::read(source).unwrap());
    let hash: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(text("jetforge.quantize.source_sha256"), hash);
    assert_eq!(text("jetforge.quantize.source"), "tiny-f32.gguf");
    assert_eq!(text("jetforge.quantize.recipe"), "Q8_0");
    assert_eq!(gguf.metadata().u32("general.file_type").unwrap(), Some(7));
    assert_eq!(gguf.metadata().u32("general.quantization_version").unwrap(), Some(2));
}

#[test]
fn a_dry_run_knows_the_sizes() {
    let dir = tempfile::tempdir().unwrap();
    for recipe in ["Q4_K_M", "Q3_K_M", "Q5_0"] {
        let args = [DEFAULT, "x.gguf", recipe, AGAIN, "--tensor-type", "blk.1.attn_q=Q6_K"];
        let plan = quantize(dir.path(), &[&args[..], &["--dry-run", "--json"]].concat()).json();
        assert!(!dir.path().join("x.gguf").exists(), "a dry run writes nothing");
        quantize(dir.path(), &args).ok();
        let path = dir.path().join("x.gguf");
        let gguf = Gguf::open(&path).expect("what was written is read");
        let data = gguf.file_bytes() - gguf.data_offset();
        assert_eq!(plan["data_bytes"].as_u64(), Some(data), "{recipe}");
        for (planned, info) in plan["tensors"].as_array().unwrap().iter().zip(gguf.tensors()) {
            assert_eq!(planned["name"], info.name);
            assert_eq!(planned["to"], info.ty.name());
            assert_eq!(planned["bytes"].as_u64(), Some(info.n_bytes));
        }
        let overridden = gguf.tensor("blk.1.attn_q.weight").map(|info| info.ty);
        assert_eq!(overridden, Some(TensorType::Q6_K));
        std::fs::remove_file(path).unwrap();
    }
}

/// Rows of 64 have no blocks of 256: llama.cpp's substitutes take their place, and it is said.
#[test]
fn widths_without_whole_blocks_get_another_type_and_a_word() {
    let dir = tempfile::tempdir().unwrap();
    tiny(dir.path());
    let run = quantize(dir.path(), &["tiny-f32.gguf", "Q4_K_M"]).ok();
    assert!(run.err.contains("no whole blocks of Q4_K and get Q5_0"), "{}", run.err);
    let types = types(&dir.path().join("tiny-q4_k_m.gguf"));
    let of = |name: &str| types.iter().find(|(n, _)| n == name).expect("a tensor").1;
    assert_eq!(of("blk.0.attn_q.weight"), TensorType::Q5_0);
    assert_eq!(of("output.weight"), TensorType::Q8_0);
    assert_eq!(of("output_norm.weight"), TensorType::F32);
}

#[test]
fn a_killed_run_leaves_no_target_and_the_next_replaces_what_it_left() {
    let dir = tempfile::tempdir().unwrap();
    let program = assert_cmd::cargo::cargo_bin!("jetforge");
    // The limit on the size of a file ends the program in the middle of writing, by a signal.
    let mut shell = Command::new("sh");
    let line = r#"ulimit -f 2000; exec "$0" quantize "$1" x.gguf Q4_0 --allow-requantize"#;
    shell.current_dir(&dir).env_clear().env("HOME", "/nonexistent").args(["-c", line]);
    let killed = Run::of(shell.arg(program).arg(DEFAULT));
    assert_eq!(killed.code, None, "ended by a signal: {}", killed.err);
    assert!(!dir.path().join("x.gguf").exists());
    assert!(dir.path().join("x.gguf.partial").exists());
    let run = quantize(dir.path(), &[DEFAULT, "x.gguf", "Q4_0", AGAIN]).ok();
    assert!(run.err.contains("unfinished file of an earlier run"), "{}", run.err);
    assert!(!dir.path().join("x.gguf.partial").exists());
    types(&dir.path().join("x.gguf"));
}

#[test]
fn refusals_say_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    tiny(dir.path());
    std::fs::write(dir.path().join("there.gguf"), "x").unwrap();
    let tiny = "tiny-f32.gguf";
    for (args, code, says) in [
        (&[tiny, "Q4_K_X"][..], 2, "choose one of: N3, N3_M, N4"),
        (&[tiny], 2, "name a recipe"),
        (&[DEFAULT, "x.gguf", "Q4_0"], 2, "--allow-requantize"),
        (&[tiny, "Q4_0", "--tensor-type", "attn_v"], 2, "PATTERN=TYPE"),
        (&[tiny, "Q4_0", "--tensor-type", "attn_v=Q9"], 2, "choose one of: F32, F16"),
        (&[tiny, "Q4_0", "--tensor-type", "attn_x=Q8_0"], 2, "has such a name"),
        (&[tiny, "there.gguf", "Q4_0"], 1, "--force"),
        (&[tiny, tiny, "Q4_0"], 1, "is the source"),
        (&["none.gguf", "Q4_0"], 3, "none.gguf"),
        (&[tiny, "Q4_0", "--imatrix", "there.gguf"], 3, "no importance matrix"),
    ] {
        let run = quantize(dir.path(), args);
        assert_eq!(run.code, Some(code), "{args:?}: {}", run.err);
        assert!(run.err.contains(says), "{args:?}: {}", run.err);
    }
    quantize(dir.path(), &[tiny, "there.gguf", "Q4_0", "--force"]).ok();
}

#[test]
fn a_weight_that_is_no_number_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let mut weights = vec![1f32; 64];
    weights[40] = f32::NAN;
    let bytes: Vec<u8> = weights.iter().flat_map(|w| w.to_le_bytes()).collect();
    let file = GgufBuilder::new().pair("general.architecture", "llama");
    let file = file.tensor("blk.0.attn_q.weight", &[32, 2], TensorType::F32, bytes);
    std::fs::write(dir.path().join("bad.gguf"), file.build()).unwrap();
    let run = quantize(dir.path(), &["bad.gguf", "out.gguf", "Q4_0"]);
    assert_eq!(run.code, Some(3));
    assert!(run.err.contains("'blk.0.attn_q.weight'") && run.err.contains("row 1"), "{}", run.err);
    assert!(!dir.path().join("out.gguf").exists());
}

#[test]
fn an_importance_matrix_is_made_kept_and_used() {
    let dir = tempfile::tempdir().unwrap();
    let made = ["--imatrix-from", TEXT, "--write-imatrix", "m.gguf", "-c", "256"];
    quantize(dir.path(), &[&[DEFAULT][..], &made].concat()).ok();
    let matrix = Gguf::open(&dir.path().join("m.gguf")).expect("it is GGUF");
    assert_eq!(matrix.metadata().str("general.type").unwrap(), Some("imatrix"));
    assert_eq!(matrix.tensors().len(), 2 * 7 * 6, "sums and counts of 7 matrices in 6 layers");
    let counts = matrix.tensor("blk.3.ffn_down.weight.counts").expect("it is there");
    let n_rows = f32::from_le_bytes(*matrix.bytes(counts).first_chunk().unwrap());
    let n_chunk = matrix.metadata().u32("imatrix.chunk_count").unwrap().unwrap();
    assert_eq!(n_rows, 256.0 * n_chunk as f32);

    let use_it = ["--imatrix", "m.gguf"];
    quantize(dir.path(), &[&[DEFAULT, "a.gguf", "Q3_K_S", AGAIN][..], &use_it].concat()).ok();
    quantize(dir.path(), &[DEFAULT, "b.gguf", "Q3_K_S", AGAIN]).ok();
    let (with, without) = (dir.path().join("a.gguf"), dir.path().join("b.gguf"));
    assert!(perplexity(&with) < perplexity(&without), "importance helps on its own text");
    let file = Gguf::open(&with).unwrap();
    let named = file.metadata().str("quantize.imatrix.file").unwrap();
    assert_eq!(named, Some("m.gguf"));
}

#[test]
fn a_report_compares_with_recipes_of_the_size() {
    let dir = tempfile::tempdir().unwrap();
    let args = [DEFAULT, "x.gguf", "Q4_K_S", AGAIN, "--report", TEXT, "-c", "256", "--json"];
    let report = quantize(dir.path(), &args).json();
    let lines = report.as_array().unwrap();
    assert_eq!(lines[0]["recipe"], "Q4_K_S");
    assert!(lines.iter().any(|line| line["recipe"] == "Q4_0"), "{report}");
    for line in lines {
        let number = |key: &str| line[key].as_f64().unwrap();
        assert!(number("kl") > 0.0 && number("kl") < number("kl_99"));
        assert!(number("same_top") > 0.8 && number("same_top") < 1.0);
        assert!(number("perplexity") > number("source_perplexity"));
        assert!(line["tensors"].as_array().unwrap().len() > 40);
    }
    let left: Vec<_> = std::fs::read_dir(&dir).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left, ["x.gguf"], "only what was asked for stays");
}
