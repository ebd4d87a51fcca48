//! The real binary: what it prints, where, and with which exit code.
//!
//! Each run has an empty home and none of the caller's variables, so that nobody's configuration
//! changes a test.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::support::run::Run;
use crate::support::skip::skip;

/// The binary: the one that was built with these tests, or, where they travelled, the one that
/// `JETFORGE_TEST_PROGRAM` names (`benches/gpu/run.sh`).
pub fn program() -> PathBuf {
    let told = std::env::var_os("JETFORGE_TEST_PROGRAM").map(PathBuf::from);
    told.unwrap_or_else(|| assert_cmd::cargo::cargo_bin!("jetforge").to_path_buf())
}

/// The binary with `home` as its home directory and an environment of its own.
pub fn jetforge(home: &Path) -> Command {
    let mut command = Command::new(program());
    // Root's run on a machine with the package would be about its service.
    command.env_clear().env("HOME", home).env("JETFORGE_ROLE", "person").stdin(Stdio::null());
    command
}

fn run(args: &[&str]) -> Run {
    let home = tempfile::tempdir().unwrap();
    Run::from(jetforge(home.path()).args(args).output().unwrap())
}

fn run_with_input(args: &[&str], input: &str) -> Run {
    let home = tempfile::tempdir().unwrap();
    let mut child = jetforge(home.path())
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A program that fails early may not read its input.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    Run::from(child.wait_with_output().unwrap())
}

const QUICK_SORT: &str = "write a quick sort example and print the sorted result";

#[test]
fn the_main_job_writes_a_program_that_sorts() {
    let run = run(&["generate", QUICK_SORT]);
    assert_eq!(run.code, 0, "{}", run.err);
    assert!(run.out.starts_with("```python\ndef quicksort("), "{}", run.out);
    assert!(run.err.is_empty(), "{}", run.err);
}

#[test]
fn the_kv_type_is_chosen_by_our_name_and_by_llama_cpps() {
    let stats = |args: &[&str]| run(&[&["inspect", "default", "--json"], args].concat());
    let bytes = |args: &[&str]| stats(args).json()["fits"][0]["kv_bytes"].as_u64().unwrap();
    let (f16, q8_0) = (bytes(&[]), bytes(&["--kv-type", "q8_0"]));
    assert!(q8_0 * 100 / f16 == 53, "{q8_0} of {f16}"); // 34 bytes for 32 values, not 64
    assert_eq!(bytes(&["--cache-type-k", "q8_0", "--cache-type-v", "q8_0"]), q8_0);
    let mixed = stats(&["--cache-type-k", "q8_0", "--cache-type-v", "f16"]);
    assert_eq!(mixed.code, 2);
    assert!(mixed.err.contains("must be equal"), "{}", mixed.err);
    assert_eq!(stats(&["--cache-type-k", "q8_0"]).code, 2);
    assert_eq!(bytes(&["--kv-type", "q4_0"]) * 100 / f16, 28); // 18 bytes for 32 values
    assert_eq!(stats(&["--kv-type", "q5_0"]).code, 2);
}

#[test]
fn prompts_come_from_everywhere_and_mean_the_same() {
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join("prompt.txt");
    std::fs::write(&file, format!("{QUICK_SORT}\n")).unwrap();
    let file = file.to_str().unwrap();
    let expected = run(&["generate", QUICK_SORT, "-n", "8"]).out;
    assert!(expected.starts_with("```python"), "{expected}");
    let runs = [
        run(&["generate", "-p", QUICK_SORT, "--n_predict", "8"]),
        run(&["generate", "--file", file, "--max-tokens", "8"]),
        run_with_input(&["generate", "-", "--predict", "8"], QUICK_SORT),
        run_with_input(&["generate", "--n-predict=8"], QUICK_SORT),
    ];
    for run in runs {
        assert_eq!(run.out, expected, "{}", run.err);
    }
}

#[test]
fn json_holds_answer_figures_and_probabilities() {
    let answer = run(&["generate", QUICK_SORT, "-n", "12", "--json", "--n-probs", "3"]).json();
    assert_eq!(answer["finish"], "length");
    assert_eq!(answer["n_generated"], 12);
    assert!(answer["text"].as_str().unwrap().starts_with("```python"));
    let first = &answer["probs"][0];
    assert_eq!(first["top"].as_array().unwrap().len(), 3);
    assert_eq!(first["top"][0]["id"], first["id"], "greedy takes the likeliest");
    assert!(answer["timings"]["decode_ms"].as_f64().unwrap() > 0.0);
}

#[test]
fn output_holds_just_the_code() {
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join("sort.py");
    let run = run(&["generate", QUICK_SORT, "--output", file.to_str().unwrap()]);
    assert_eq!((run.code, run.out.as_str()), (0, ""), "{}", run.err);
    let code = std::fs::read_to_string(&file).unwrap();
    assert!(code.starts_with("def quicksort(") && !code.contains("```"), "{code}");
    let Ok(python) = Command::new("python3").arg(&file).output() else {
        skip("python", "python3 is not installed");
        return;
    };
    assert_eq!(String::from_utf8_lossy(&python.stdout).trim(), "[1, 2, 5, 5, 6, 9]");
}

#[test]
fn raw_text_stop_words_and_figures() {
    let prompt = ["-e", "-p", "# sum of a list\\ndef"];
    let run = run(&[&["generate", "--raw"][..], &prompt, &["--stop", "\\n", "-v"]].concat());
    assert_eq!(run.code, 0, "{}", run.err);
    assert_eq!(run.out.lines().count(), 1, "{}", run.out);
    assert!(run.err.contains("prefill") && run.err.contains("stop_word"), "{}", run.err);
}

#[test]
fn fill_in_the_middle() {
    let args = ["generate", "--fim-prefix", "def add(a, b):\n    return ", "--fim-suffix", "\n"];
    let run = run(&[&args[..], &["-n", "8"]].concat());
    assert_eq!(run.code, 0, "{}", run.err);
}

#[test]
fn seeds_repeat_and_sampling_options_reach_the_sampler() {
    let args = ["generate", "write a haiku", "-n", "12", "--temp", "1.5", "--top-k", "0"];
    let with_seed = |seed: &str| run(&[&args[..], &["--seed", seed]].concat()).out;
    assert_eq!(with_seed("7"), with_seed("7"));
    assert_ne!(with_seed("7"), with_seed("8"));
    let run = run(&["generate", "x", "--top-p", "7"]);
    assert_eq!(run.code, 2, "{}", run.err);
    assert!(run.err.contains("top_p"), "{}", run.err);
}

#[test]
fn exit_codes_tell_what_is_wrong() {
    let home = tempfile::tempdir().unwrap();
    let text = home.path().join("text.gguf");
    std::fs::write(&text, "no model at all").unwrap();
    let text = text.to_str().unwrap();
    let cases: [(&[&str], i32, &str); 9] = [
        (&["generate", "--no-such-option"], 2, "no-such-option"),
        (&["generate", "x", "--set", "model.n_ctz=1"], 2, "model.n_ctx"),
        (&["generate", "x", "--samplers", "nonsense"], 2, "nonsense"),
        (&["generate", "x", "-m", "/no/such.gguf"], 3, "no such file"),
        (&["generate", "x", "-m", "phi-2"], 3, "jetforge pull phi-2"),
        (&["generate", "x", "-m", text], 3, "GGUF"),
        (&["generate", "x", "--memory-max", "20M"], 4, "too few"),
        (&["models", "verify", "nothing"], 3, "nothing"),
        (&["inspect", "--for", "toaster"], 2, "jetson-nano-4gb"),
    ];
    for (args, code, text) in cases {
        let run = run(args);
        assert_eq!(run.code, code, "{args:?}: {}", run.err);
        assert!(run.err.contains(text), "{args:?}: {}", run.err);
        assert_eq!(run.out, "", "{args:?}");
        assert!(!run.err.contains('\u{1b}'), "colour only on a terminal: {}", run.err);
    }
}

#[test]
fn chat_remembers_and_takes_many_lines() {
    let block = "\"\"\"\nexplain\nit\n\"\"\"";
    let input = format!("/help\n{QUICK_SORT}\n{block}\n/nonsense\n/clear\n/exit\n");
    let run = run_with_input(&["chat", "-n", "16", "--stats"], &input);
    assert_eq!(run.code, 0, "{}", run.err);
    assert!(run.out.starts_with("```python\ndef quicksort("), "{}", run.out);
    assert!(run.err.contains("/clear") && run.err.contains("no command /nonsense"), "{}", run.err);
    assert_eq!(run.err.matches("prefill").count(), 2, "{}", run.err);
}

#[test]
fn chat_forgets_the_oldest_turns() {
    let long = format!("{}\n", "print the sum of all numbers in this list ".repeat(8));
    let run = run_with_input(&["chat", "-n", "4", "-c", "256"], &long.repeat(4));
    assert_eq!(run.code, 0, "{}", run.err);
    assert!(run.err.contains("forgotten"), "{}", run.err);
}

#[test]
fn inspect_shows_the_file_and_where_it_fits() {
    let found = run(&["inspect", "--json", "--tensors", "--metadata"]).json();
    assert_eq!(found["architecture"], "qwen2");
    assert_eq!(found["n_layer"], 6);
    assert_eq!(found["n_vocab"], 4096);
    let fits = found["fits"].as_array().unwrap();
    assert_eq!(fits.len(), 4);
    assert!(fits.iter().all(|fit| fit["fits"] == true), "{fits:?}");
    let n_bytes: u64 =
        found["tensors"].as_array().unwrap().iter().map(|t| t["bytes"].as_u64().unwrap()).sum();
    assert!(n_bytes > 5_000_000 && n_bytes < found["file_bytes"].as_u64().unwrap());
    let text = run(&["inspect", "--for", "jetson-nano-2gb"]);
    assert_eq!(text.code, 0, "{}", text.err);
    assert!(text.out.contains("Q8_0") && text.out.contains("jetson-nano-2gb"), "{}", text.out);
    let too_much = run(&["inspect", "--for", "jetson-nano-2gb", "-c", "4000000"]);
    assert_eq!(too_much.code, 4, "{}", too_much.out);
}

#[test]
fn tokens_and_text_are_inverse() {
    let text = "def f(x):\n    return x  # ünïcode <|im_end|>\n";
    let ids = run(&["tokenize", text, "--ids-only", "--no-special"]);
    assert_eq!(ids.code, 0, "{}", ids.err);
    let back = run(&["tokenize", "--ids", ids.out.trim()]);
    assert_eq!(back.out, format!("{text}\n"));
    let parsed = run(&["tokenize", "<|im_end|>", "--json"]).json();
    assert_eq!(parsed["n_tokens"], 1);
    assert_eq!(parsed["tokens"][0]["piece"], "<|im_end|>");
    assert_eq!(run(&["tokenize", "--ids", "99999"]).code, 2);
    let piped = run_with_input(&["tokenize", "--json"], text).json();
    assert!(piped["n_tokens"].as_u64().unwrap() > 5);
}

#[test]
fn perplexity_measures_a_file() {
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join("text.py");
    let program =
        "def add(a, b):\n    \"\"\"Return the sum of a and b.\"\"\"\n    return a + b\n\n\n";
    std::fs::write(&file, program.repeat(20)).unwrap();
    let file = file.to_str().unwrap();
    let found = run(&["perplexity", file, "-c", "128", "--json"]).json();
    let value = found["perplexity"].as_f64().unwrap();
    assert!((1.0..50.0).contains(&value), "{value}");
    assert_eq!(found["n_ctx"], 128);
}

#[test]
fn models_are_imported_verified_and_removed() {
    let home = tempfile::tempdir().unwrap();
    let run = |args: &[&str]| Run::from(jetforge(home.path()).args(args).output().unwrap());
    let stick = home.path().join("Tiny.gguf");
    std::fs::copy(concat!(env!("CARGO_MANIFEST_DIR"), "/models/default.gguf"), &stick).unwrap();
    let imported = run(&["models", "import", stick.to_str().unwrap()]);
    assert_eq!(imported.code, 0, "{}", imported.err);
    assert_eq!(run(&["models", "import", stick.to_str().unwrap()]).code, 1);
    let listed = run(&["models", "list", "--json"]).json();
    assert_eq!(listed["models"][0]["name"], "default");
    assert_eq!(listed["models"][1]["name"], "Tiny");
    assert_eq!(run(&["models", "verify"]).out, "ok Tiny\n");
    assert_eq!(run(&["generate", "x", "-m", "tiny", "-n", "1"]).code, 0);

    let stored = home.path().join(".local/share/jetforge/models/Tiny.gguf");
    let mut bytes = std::fs::read(&stored).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    std::fs::write(&stored, bytes).unwrap();
    let verified = run(&["models", "verify", "Tiny"]);
    assert_eq!(verified.code, 6);
    assert!(verified.out.starts_with("bad Tiny"), "{}", verified.out);
    assert_eq!(run(&["models", "remove", "Tiny"]).code, 0);
    assert!(!stored.exists());
    let available = run(&["models", "list", "--available", "--json"]).json();
    assert!(available["models"].as_array().unwrap().len() >= 11);
}

#[test]
fn config_shows_values_and_sources() {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join(".config/jetforge");
    std::fs::create_dir_all(dir.join("config.d")).unwrap();
    let file = "[model]\nn_ctx = 512\n[sampling]\ntemp = 0.3\n";
    std::fs::write(dir.join("config.toml"), file).unwrap();
    std::fs::write(dir.join("config.d/10-more.toml"), "[sampling]\ntemp = 0.4\n").unwrap();
    let show = |args: &[&str]| {
        let mut command = jetforge(home.path());
        command.env("JETFORGE_MODEL_N_CTX", "256").env("JETFORGE_MODDEL", "x");
        Run::from(command.args(args).output().unwrap())
    };
    let run = show(&["config", "show", "--json", "--set", "sampling.top_k=5"]);
    let keys = run.json();
    assert_eq!(keys["model.n_ctx"]["value"], 256);
    assert_eq!(keys["model.n_ctx"]["source"], "environment JETFORGE_MODEL_N_CTX");
    assert_eq!(keys["sampling.temp"]["value"], 0.4);
    assert!(keys["sampling.temp"]["source"].as_str().unwrap().ends_with("10-more.toml:2"));
    assert_eq!(keys["sampling.top_k"]["source"], "option --set");
    assert_eq!(keys["sampling.top_p"]["source"], "default");
    assert!(run.err.contains("JETFORGE_MODDEL sets nothing"), "{}", run.err);
    let text = show(&["config", "show", "--changed"]).out;
    assert!(text.contains("temp = 0.4") && !text.contains("top_p"), "{text}");

    std::fs::write(dir.join("config.toml"), "[model]\nn_ctx = \"many\"\n").unwrap();
    let wrong = show(&["config", "show"]);
    assert_eq!(wrong.code, 2);
    assert!(wrong.err.contains("config.toml:2: `model.n_ctx`"), "{}", wrong.err);
}

#[test]
fn the_service_has_directories_of_its_own() {
    let home = tempfile::tempdir().unwrap();
    let output = jetforge(home.path())
        .env("JETFORGE_ROLE", "service")
        .args(["config", "paths", "--json"])
        .output()
        .unwrap();
    let paths = Run::from(output).json();
    assert_eq!(paths["config"], "/etc/jetforge");
    assert_eq!(paths["models"], "/var/lib/jetforge/models");
    assert_eq!(paths["cache"], "/var/cache/jetforge");
}

#[test]
fn doctor_knows_the_answer() {
    let found = run(&["doctor", "--json"]).json();
    let findings = found["findings"].as_array().unwrap();
    let test = findings.iter().find(|f| f["what"] == "self-test").unwrap();
    assert_eq!(test["verdict"], "good", "{test}");
    assert!(found["memory_available_bytes"].as_u64().unwrap() > 0);
    let text = run(&["doctor", "--no-self-test"]);
    assert_eq!(text.code, 0, "{}", text.err);
    assert!(text.out.contains("processor"), "{}", text.out);
}

#[test]
fn completions_know_the_verbs() {
    for shell in ["bash", "zsh", "fish"] {
        let run = run(&["completions", shell]);
        assert!(run.code == 0 && run.out.contains("perplexity"), "{shell}");
    }
}

#[test]
fn colour_is_for_terminals_or_on_request() {
    assert!(!run(&["config", "show"]).out.contains('\u{1b}'));
    assert!(run(&["config", "show", "--color", "always"]).out.contains('\u{1b}'));
    assert!(!run(&["config", "show", "--color", "never"]).out.contains('\u{1b}'));
}

#[test]
fn a_closed_pipe_ends_quietly() {
    let home = tempfile::tempdir().unwrap();
    for args in [&["inspect", "--tensors", "--metadata"][..], &["generate", QUICK_SORT]] {
        let mut child = jetforge(home.path())
            .args(args)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        drop(child.stdout.take());
        let run = Run::from(child.wait_with_output().unwrap());
        assert_eq!((run.code, run.err.as_str()), (0, ""), "{args:?}");
    }
}

#[test]
fn an_interrupt_stops_the_answer() {
    let home = tempfile::tempdir().unwrap();
    let mut child = jetforge(home.path())
        .args(["generate", "--raw", "-p", "import os", "--ignore-eos", "--temp", "1"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut first = [0];
    std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut first).unwrap();
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    let run = Run::from(child.wait_with_output().unwrap());
    assert_eq!(run.code, 130, "{}", run.err);
}

/// A tiny model in which the type of one tensor is another number.
fn model_with_type(id: u32) -> Vec<u8> {
    let ty = jetforge::inference::quant::TensorType::F32;
    let mut file = crate::support::recipe::Recipe::read("llama").build(ty);
    let name = b"blk.0.ffn_up.weight";
    let at = file.windows(name.len()).position(|w| w == name).unwrap() + name.len();
    let ty = at + 4 + 2 * 8; // past the number of dimensions and both of them
    file[ty..ty + 4].copy_from_slice(&id.to_le_bytes());
    file
}

#[test]
fn a_file_with_an_unsupported_type_is_shown_and_not_loaded() {
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join("new.gguf");
    std::fs::write(&file, model_with_type(19)).unwrap();
    let file = file.to_str().unwrap();
    let found = run(&["inspect", file, "--json", "--tensors"]).json();
    assert_eq!(found["n_layer"], 2);
    let tensors = found["tensors"].as_array().unwrap();
    let odd = tensors.iter().find(|t| t["name"] == "blk.0.ffn_up.weight").unwrap();
    assert_eq!((&odd["type"], &odd["bytes"]), (&"IQ1_S (type 19)".into(), &Value::Null));
    assert!(tensors.iter().any(|t| t["type"] == "F32"));
    assert_eq!(found["fits"][0]["fits"], false);
    assert!(found["fits"][0]["reason"].as_str().unwrap().contains("IQ1_S"), "{found}");
    let text = run(&["inspect", file]);
    assert!(text.out.contains("not supported") && text.code == 0, "{}{}", text.out, text.err);
    let refused = run(&["generate", "x", "-m", file]);
    assert_eq!(refused.code, 3);
    assert!(refused.err.contains("IQ1_S (type 19); supported are F32"), "{}", refused.err);
    assert_eq!(run(&["tokenize", "x", "-m", file]).code, 0, "the vocabulary is whole");
}

#[test]
fn the_seed_in_use_is_told_and_repeats_the_answer() {
    let args = ["generate", "write a haiku", "-n", "8", "--temp", "1.5", "--top-k", "0", "--json"];
    let first = run(&args).json();
    let seed = first["seed"].as_u64().unwrap();
    assert_ne!(seed, u64::from(u32::MAX), "the value that asks for a random seed is none");
    let again = run(&[&args[..], &["--seed", &seed.to_string()]].concat()).json();
    assert_eq!(again["tokens"], first["tokens"]);
}

#[test]
fn what_would_be_lost_or_get_worse_is_said_first() {
    let lost = run(&["generate", QUICK_SORT, "--output", "/no/such/folder/sort.py"]);
    assert_eq!(lost.code, 2);
    assert!(lost.err.contains("/no/such/folder is no directory"), "{}", lost.err);
    let long = run(&["generate", QUICK_SORT, "-n", "1", "-c", "2048"]);
    assert_eq!(long.code, 0);
    assert!(long.err.contains("trained on 1024"), "{}", long.err);
    assert_eq!(run(&["generate", "x", "--isa", "nonsense"]).code, 2);
    let folder = run(&["inspect", "/"]);
    assert_eq!(folder.code, 3);
    assert!(folder.err.contains("no regular file"), "{}", folder.err);
}

#[test]
fn an_encoder_is_tested_and_does_not_write() {
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join("reranker.gguf");
    let ty = jetforge::inference::quant::TensorType::F32;
    std::fs::write(&file, crate::support::recipe::Recipe::read("bert-rank").build(ty)).unwrap();
    let file = file.to_str().unwrap();
    let found = run(&["inspect", file, "--json"]).json();
    assert_eq!(found["pooling"], "rank: scores a query and a document");
    let doctor = run(&["doctor", "-m", file]);
    assert_eq!(doctor.code, 0, "{}{}", doctor.out, doctor.err);
    assert!(doctor.out.contains("the same answer twice"), "{}", doctor.out);
    let text = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/perplexity/text.txt");
    for args in [&["generate", "x"][..], &["chat"], &["perplexity", text, "-c", "32"]] {
        let refused = run(&[args, &["-m", file]].concat());
        assert_eq!(refused.code, 3, "{args:?}: {}", refused.err);
        assert!(refused.err.contains("is an encoder"), "{args:?}: {}", refused.err);
    }
}
