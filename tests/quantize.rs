//! `jetforge quantize`: the real verb on the default model and on a tiny one.

use std::fs::File;
use std::io::{PipeReader, PipeWriter, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use jetforge::base::hash::hex;
use jetforge::inference::gguf::{Gguf, GgufBuilder};
use jetforge::inference::quant::{TensorType, dequantize, quantize as quantize_row};
use jetforge::quantize::{Plan, PlanOptions, parse_recipe};
use serde_json::Value as Json;

use crate::cli::jetforge;
use crate::loading::sparse;
use crate::memory::status_kib;
use crate::support::http::until;
use crate::support::recipe::Recipe;
use crate::support::run::Run;
use crate::support::skip::skip;

const DEFAULT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/models/default.gguf");
const TEXT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/perplexity/text.txt");
/// The default model is Q8_0 already.
const AGAIN: &str = "--allow-requantize";

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
fn a_copy_holds_the_same_weights_and_is_mapped_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    quantize(dir.path(), &[DEFAULT, "small.gguf", "Q4_K_M", AGAIN]).ok();
    for target in ["avx2", "avx512", "neon"] {
        let run = quantize(dir.path(), &["small.gguf", "COPY", "--target", target]).ok();
        let name = format!("small-{target}.gguf");
        assert!(run.out.contains(&name), "{}", run.out);
        let copy = dir.path().join(name);
        assert_eq!(perplexity(&copy), perplexity(&dir.path().join("small.gguf")));
        let mut inspect = jetforge(Path::new("/nonexistent"));
        let shown = Run::of(inspect.arg("inspect").arg(&copy)).ok().out;
        assert!(shown.contains("(mapped)"), "{shown}");
    }
    let again = quantize(dir.path(), &["small.gguf", "COPY", "--target", "avx2"]);
    assert!(again.code != 0 && again.err.contains("--force"), "{}", again.err);
    let untold = quantize(dir.path(), &["small.gguf", "COPY"]);
    assert!(untold.code == 2 && untold.err.contains("--target"), "{}", untold.err);
}

#[test]
fn the_file_says_where_it_comes_from() {
    let dir = tempfile::tempdir().unwrap();
    let source = tiny(dir.path());
    quantize(dir.path(), &["tiny-f32.gguf", "Q8_0"]).ok();
    let gguf = Gguf::open(&dir.path().join("tiny-q8_0.gguf")).expect("named after the recipe");
    let text = |key: &str| gguf.metadata().str(key).unwrap().unwrap_or_default().to_owned();
    let hash = <sha2::Sha256 as sha2::Digest>::digest(std::fs::read(source).unwrap());
    assert_eq!(text("jetforge.quantize.source_sha256"), hex(&hash));
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

/// A type of our own, in rows and packed for a processor: both run, and give the same numbers.
#[test]
fn native_types_run_from_rows_and_from_panels() {
    let dir = tempfile::tempdir().unwrap();
    let before = perplexity(Path::new(DEFAULT));
    quantize(dir.path(), &[DEFAULT, "rows.gguf", "N4", AGAIN]).ok();
    quantize(dir.path(), &[DEFAULT, "panels.gguf", "N4", AGAIN, "--target", "avx2"]).ok();
    let after = perplexity(&dir.path().join("rows.gguf"));
    assert_eq!(perplexity(&dir.path().join("panels.gguf")), after);
    assert!(after / before <= 1.10, "{before} became {after}");
    let packed = Gguf::open(&dir.path().join("panels.gguf")).unwrap();
    assert_eq!(packed.native_target(), Some("avx2"));
    let again = quantize(dir.path(), &["panels.gguf", "Q4_0", AGAIN]);
    assert!(again.code == 3 && again.err.contains("packed for avx2"), "{}", again.err);
}

/// Rows of 96 have no blocks of 256: llama.cpp's substitutes take their place, and it is said.
#[test]
fn widths_without_whole_blocks_get_another_type_and_a_word() {
    let dir = tempfile::tempdir().unwrap();
    let mut file = GgufBuilder::new().pair("general.architecture", "llama");
    for (name, shape) in [
        ("output_norm.weight", [96, 1]),
        ("blk.0.attn_q.weight", [96, 2]),
        ("output.weight", [96, 2]),
    ] {
        let bytes = vec![0; 4 * 96 * shape[1] as usize];
        file = file.tensor(name, &shape, TensorType::F32, bytes);
    }
    std::fs::write(dir.path().join("narrow.gguf"), file.build()).unwrap();
    let run = quantize(dir.path(), &["narrow.gguf", "Q4_K_M"]).ok();
    assert!(run.err.contains("no whole blocks of Q4_K and get Q5_0"), "{}", run.err);
    let types = types(&dir.path().join("narrow-q4_k_m.gguf"));
    let of = |name: &str| types.iter().find(|(n, _)| n == name).expect("a tensor").1;
    assert_eq!(of("blk.0.attn_q.weight"), TensorType::Q5_0);
    assert_eq!(of("output.weight"), TensorType::Q8_0);
    assert_eq!(of("output_norm.weight"), TensorType::F32);
}

/// A pipe that takes nothing until it is read.
fn full_pipe() -> (PipeReader, PipeWriter) {
    let (reader, writer) = std::io::pipe().expect("a pipe");
    // Opened anew, so that only this end of it does not wait.
    let flags = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
    let path = format!("/proc/self/fd/{}", writer.as_raw_fd());
    let filling = File::options().write(true).custom_flags(flags).open(path);
    let mut filling = filling.expect("the same pipe");
    while filling.write(&[0; 4096]).is_ok() {}
    (reader, writer)
}

/// The kernel counts the mapped parts of the source as well as the memory that is asked for. The
/// program is held at its end: it cannot say that it is done.
#[test]
fn a_model_goes_through_in_pieces_and_is_never_in_memory_as_a_whole() {
    const MOST_KIB_MAX: u64 = 96 << 10;
    let dir = tempfile::tempdir().unwrap();
    let source = sparse(dir.path(), TensorType::F16, 40 << 10);
    assert!(source.metadata().unwrap().len() >> 10 > 2 * MOST_KIB_MAX);
    let (mut reader, writer) = full_pipe();
    let mut command = jetforge(Path::new("/nonexistent"));
    command.current_dir(&dir).arg("quantize").arg(&source).args(["x.gguf", "Q8_0"]);
    let mut child = command.stdout(writer).spawn().unwrap();
    // With it goes our own end of what the program writes to.
    drop(command);
    until("the file is written", || dir.path().join("x.gguf").exists());
    let most = status_kib(child.id(), "VmHWM");
    std::io::copy(&mut reader, &mut std::io::sink()).unwrap();
    assert!(child.wait().unwrap().success());
    types(&dir.path().join("x.gguf"));
    let Some(most) = most else { return skip("memory", "this kernel does not tell VmHWM") };
    println!("quantizing {} MiB: {most} KiB", source.metadata().unwrap().len() >> 20);
    assert!(most <= MOST_KIB_MAX, "{most} KiB");
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
    assert_eq!(killed.code, -1, "ended by a signal: {}", killed.err);
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
        (&[tiny, "Q4_K_X"][..], 2, "choose one of: N3, N3_S, N3_M, N4"),
        (&[tiny][..], 2, "name a recipe"),
        (&[DEFAULT, "x.gguf", "Q4_0"][..], 2, "--allow-requantize"),
        (&[tiny, "Q4_0", "--tensor-type", "attn_v"][..], 2, "PATTERN=TYPE"),
        (&[tiny, "Q4_0", "--tensor-type", "attn_v=Q9"][..], 2, "choose one of: F32, F16"),
        (&[tiny, "Q4_0", "--tensor-type", "attn_x=Q8_0"][..], 2, "has such a name"),
        (&[tiny, "there.gguf", "Q4_0"][..], 1, "--force"),
        (&[tiny, tiny, "Q4_0"][..], 1, "is the source"),
        (&["none.gguf", "Q4_0"][..], 3, "none.gguf"),
        (&[tiny, "Q4_0", "--imatrix", "there.gguf"][..], 3, "no importance matrix"),
    ] {
        let run = quantize(dir.path(), args);
        assert_eq!(run.code, code, "{args:?}: {}", run.err);
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
    assert_eq!(run.code, 3);
    assert!(run.err.contains("'blk.0.attn_q.weight'") && run.err.contains("row 1"), "{}", run.err);
    let left: Vec<_> = std::fs::read_dir(&dir).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left, ["bad.gguf"], "nothing is left behind");
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

/// llama.cpp's older form of an importance matrix, by hand, and one of another model.
#[test]
fn the_older_form_is_read_and_another_models_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let source = Gguf::open(&tiny(dir.path())).unwrap();
    let width = source.tensor("blk.0.attn_q.weight").expect("a tensor").shape[0] as i32;
    let dat = |name: &str, n: i32| {
        let int = |n: i32| n.to_le_bytes().to_vec();
        let values = (0..n).flat_map(|i| (i as f32).to_le_bytes()).collect();
        let head = [int(1), int(name.len() as i32), name.into(), int(3), int(n), values];
        [head.concat(), int(3), int(4), b"text".to_vec()].concat()
    };
    let dry = |bytes: Vec<u8>| {
        std::fs::write(dir.path().join("m.dat"), bytes).unwrap();
        let args = ["tiny-f32.gguf", "Q4_0", "--imatrix", "m.dat", "--dry-run", "--json"];
        quantize(dir.path(), &args)
    };
    let plan = dry(dat("blk.0.attn_q.weight", width)).json();
    let guided = plan["tensors"].as_array().unwrap().iter().filter(|t| t["importance"] == true);
    assert_eq!(guided.map(|t| &t["name"]).collect::<Vec<_>>(), ["blk.0.attn_q.weight"]);
    for (bytes, says) in [
        (dat("blk.0.attn_q.weight", width + 1), "made with another model"),
        (dat("blk.0.something.weight", width), "none of this model's tensors"),
        (dat("blk.0.attn_q.weight", width)[..60].to_vec(), "no importance matrix"),
    ] {
        let run = dry(bytes);
        assert!(run.code == 3 && run.err.contains(says), "{}", run.err);
    }
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

/// Golden: `python3 tests/tools/golden_quantize.py tests/golden/quantize`.
#[test]
fn recipes_of_gguf_choose_the_types_that_llama_cpp_chooses() {
    let golden: Json = serde_json::from_str(include_str!("golden/quantize/types.json")).unwrap();
    let source = Gguf::open(Path::new(DEFAULT)).expect("the default model");
    let options = PlanOptions { allow_requantize: true, ..PlanOptions::default() };
    for (recipe, by_type) in golden.as_object().unwrap() {
        let plan = Plan::new(&source, parse_recipe(recipe).unwrap(), &options, None).unwrap();
        let mut n = 0;
        for (ty, names) in by_type.as_object().unwrap() {
            for name in names.as_array().unwrap() {
                let planned = plan.tensors.iter().find(|t| t.name == *name).expect("a tensor");
                assert_eq!(planned.to.name(), ty, "{recipe} {name}");
                n += 1;
            }
        }
        assert_eq!(n, 7 * 6 + 1, "every matrix");
    }
}

/// The error that a model's matrices have in what they put out, per unit of that, and the bits of
/// a weight: for made-up weights with heavy tails, whose inputs have columns that are far larger
/// than the rest.
fn output_error(recipe: &str) -> (f64, f64) {
    let mut state = 7u64;
    let mut uniform = move || {
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = state;
        z = (z ^ z >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ z >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ z >> 31) >> 11) as f64 / (1u64 << 53) as f64
    };
    const N_COLS: usize = 512;
    let kinds = ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"];
    let mut file = GgufBuilder::new().pair("general.architecture", "llama");
    file = file.pair("llama.block_count", 16u32);
    for layer_idx in 0..16 {
        for kind in kinds {
            let weights = (0..4 * N_COLS).map(|_| {
                let normal = (0..4).map(|_| uniform()).sum::<f64>() - 2.0;
                (normal * 0.05 / (0.1 + uniform())) as f32
            });
            let bytes: Vec<u8> = weights.flat_map(f32::to_le_bytes).collect();
            let name = format!("blk.{layer_idx}.{kind}.weight");
            file = file.tensor(name, &[N_COLS as u64, 4], TensorType::F32, bytes);
        }
    }
    let source = Gguf::from_vec(file.build()).expect("a model");
    let importance: Vec<f32> =
        (0..N_COLS).map(|_| (0.05 + 1.0 / (0.02 + uniform()).powf(1.5)) as f32).collect();
    let recipe = parse_recipe(recipe).expect("a recipe");
    let plan = Plan::new(&source, recipe, &PlanOptions::default(), None).expect("a plan");
    let mut error = 0.0;
    for (info, planned) in source.tensors().iter().zip(&plan.tensors) {
        let mut weights = vec![0.0; info.n_elements() as usize];
        dequantize(info.ty, source.bytes(info), &mut weights);
        let (mut miss, mut all) = (0.0, 0.0);
        for row in weights.chunks(N_COLS) {
            let bytes = quantize_row(planned.to, row, Some(&importance)).expect("it is written");
            let mut got = vec![0.0; N_COLS];
            dequantize(planned.to, &bytes, &mut got);
            for ((x, y), w) in row.iter().zip(&got).zip(&importance) {
                miss += f64::from(w * (x - y) * (x - y));
                all += f64::from(w * x * x);
            }
        }
        error += miss / all / source.tensors().len() as f64;
    }
    (error, plan.bits_per_weight())
}

#[test]
fn on_weights_with_outliers_ours_lose_less_than_ggufs_of_the_size() {
    let figures = |recipe: &str| {
        let (error, bits) = output_error(recipe);
        println!("{recipe}: output error {error:.6} at {bits:.3} bits");
        (error, bits)
    };
    for (ours, gguf) in [("N4", "Q4_K_S"), ("N3_S", "Q3_K_S"), ("N3_M", "Q3_K_M"), ("N4", "Q4_0")] {
        let (ours, gguf) = (figures(ours), figures(gguf));
        // A bit more quarters the error of any code (6.02 dB): what ours would be at their size.
        let at_their_size = ours.0 * 4f64.powf(ours.1 - gguf.1);
        assert!(at_their_size < gguf.0, "{ours:?} {gguf:?}");
    }
}

/// The files of a source are kept, whatever they are called: here the shard that was not named.
#[test]
fn no_shard_of_the_source_is_written_to() {
    let dir = tempfile::tempdir().unwrap();
    let shard = |number: u16, name: &str| {
        let bytes: Vec<u8> = (0..64).flat_map(|i| (i as f32).to_le_bytes()).collect();
        let file = GgufBuilder::new()
            .pair("general.architecture", "llama")
            .pair("split.no", number)
            .pair("split.count", 2u16)
            .pair("split.tensors.count", 2i32)
            .tensor(name, &[32, 2], TensorType::F32, bytes);
        let path = format!("m-{:05}-of-00002.gguf", number + 1);
        std::fs::write(dir.path().join(path), file.build()).unwrap();
    };
    shard(0, "blk.0.attn_q.weight");
    shard(1, "blk.0.attn_k.weight");
    let second = std::fs::read(dir.path().join("m-00002-of-00002.gguf")).unwrap();
    std::fs::hard_link(dir.path().join("m-00002-of-00002.gguf"), dir.path().join("x.gguf"))
        .unwrap();
    for target in ["m-00002-of-00002.gguf", "x.gguf"] {
        let args = ["m-00001-of-00002.gguf", target, "Q4_0", "--force"];
        let run = quantize(dir.path(), &args);
        assert!(run.code == 1 && run.err.contains("is the source"), "{}", run.err);
    }
    assert_eq!(std::fs::read(dir.path().join("m-00002-of-00002.gguf")).unwrap(), second);
    quantize(dir.path(), &["m-00001-of-00002.gguf", "y.gguf", "Q4_0"]).ok();
}

/// Numbers that no model has give a refusal or a file, and no panic.
#[test]
fn hostile_numbers_and_files_are_harmless() {
    let dir = tempfile::tempdir().unwrap();
    let layer = format!("blk.{}.attn_v.weight", u64::MAX);
    let file = GgufBuilder::new()
        .pair("general.architecture", "llama")
        .pair("llama.block_count", u64::MAX)
        .pair("llama.attention.head_count", u64::MAX)
        .tensor(layer, &[256, 2], TensorType::F32, vec![0; 4 * 512]);
    std::fs::write(dir.path().join("odd.gguf"), file.build()).unwrap();
    for recipe in ["Q4_K_M", "Q3_K_M", "Q4_K_S", "Q2_K", "N3_M"] {
        quantize(dir.path(), &["odd.gguf", recipe, "--force", "-t", "18446744073709551615"]).ok();
    }
    tiny(dir.path());
    let pipe = dir.path().join("pipe");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &pipe,
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR,
        0,
    )
    .unwrap();
    let run = quantize(dir.path(), &["tiny-f32.gguf", "Q4_0", "--imatrix", "pipe"]);
    assert!(run.code == 3 && run.err.contains("not a regular file"), "{}", run.err);
    let huge = std::fs::File::create(dir.path().join("huge")).unwrap();
    huge.set_len(1 << 40).unwrap();
    let run = quantize(dir.path(), &["tiny-f32.gguf", "Q4_0", "--imatrix", "huge"]);
    assert!(run.code == 3 && run.err.contains("more than"), "{}", run.err);
}

/// Rows as trained weights are: heavy tails, and columns that are large in every row; and how much
/// each column matters, over three orders of magnitude.
fn heavy_rows(n_cols: usize, n_rows: usize) -> (Vec<Vec<f32>>, Vec<f32>) {
    let mut state = 0x005e_ed0f_7a11_u64;
    let mut uniform = move || {
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (state ^ (state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (((z ^ (z >> 31)) >> 40) as f32 + 0.5) / (1 << 24) as f32
    };
    let mut normal =
        move || (-2.0 * uniform().ln()).sqrt() * (std::f32::consts::TAU * uniform()).cos();
    let importance: Vec<f32> = (0..n_cols).map(|_| (1.2 * normal()).exp()).collect();
    let outlier: Vec<f32> = (0..n_cols).map(|i| if i % 199 == 7 { 6.0 } else { 1.0 }).collect();
    let mut student = || {
        // Four degrees of freedom: one weight in a thousand is beyond seven of its usual size.
        let square: f32 = (0..4).map(|_| normal().powi(2)).sum();
        normal() / (square / 4.0).sqrt()
    };
    let row = |_| outlier.iter().map(|scale| 0.02 * scale * student()).collect();
    ((0..n_rows).map(row).collect(), importance)
}

/// What a type loses of the rows, weighted by what the columns matter.
fn loss(ty: TensorType, rows: &[Vec<f32>], importance: Option<&[f32]>, weights: &[f32]) -> f64 {
    let mut out = vec![0.0; weights.len()];
    let mut sum = 0.0;
    for row in rows {
        dequantize(ty, &quantize_row(ty, row, importance).unwrap(), &mut out);
        let each = row.iter().zip(&out).zip(weights);
        sum += each.map(|((a, b), w)| f64::from(w * (a - b) * (a - b))).sum::<f64>();
    }
    sum
}

#[test]
fn our_types_lose_no_more_than_ggufs_at_the_same_bits() {
    let (rows, weights) = heavy_rows(1024, 24);
    let source = Gguf::open(Path::new(DEFAULT)).unwrap();
    let options = PlanOptions { allow_requantize: true, ..PlanOptions::default() };
    let plan = |name| Plan::new(&source, parse_recipe(name).unwrap(), &options, None).unwrap();
    for importance in [None, Some(&weights[..])] {
        let of = |ty| loss(ty, &rows, importance, &weights);
        let (n4, q4) = (of(TensorType::N4), of(TensorType::Q4_K));
        let mix = |plan: &Plan| {
            let matrices = plan.tensors.iter().filter(|t| t.shape.len() > 1);
            matrices.map(|t| t.n_weights() as f64 * of(t.to)).sum::<f64>()
        };
        let (n3_m, q3_k_m) = (plan("N3_M"), plan("Q3_K_M"));
        assert!(n3_m.bits_per_weight() <= q3_k_m.bits_per_weight());
        let (ours, theirs) = (mix(&n3_m), mix(&q3_k_m));
        println!(
            "importance {}: N4 {:.3} of Q4_K, N3_M {:.3} of Q3_K_M, N3 {:.3} of Q3_K",
            importance.is_some(),
            n4 / q4,
            ours / theirs,
            of(TensorType::N3) / of(TensorType::Q3_K)
        );
        assert!(n4 <= q4, "N4 {n4}, Q4_K {q4}");
        assert!(ours < theirs, "N3_M {ours}, Q3_K_M {theirs}");
    }
}
