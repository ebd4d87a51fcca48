//! Memory: the plan refuses with figures that are right, and the process keeps to it.
//!
//! The model of 7 billion parameters is a header and a hole: 4.4 GB that take no disk.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use jetforge::inference::gguf::GgufBuilder;
use jetforge::inference::quant::TensorType;
use serde_json::Value;

use crate::cli::jetforge;
use crate::support::skip::skip;

/// What the process may take beyond weights and KV cache.
pub const OVERHEAD_KIB_MAX: u64 = 96 << 10;

/// Qwen2.5-Coder 7B in Q4_K_M's usual mixture: name, innermost dimension, rows, type.
fn tensors_7b() -> Vec<(String, u64, u64, TensorType)> {
    const N_EMBD: u64 = 3584;
    const N_KV: u64 = 512;
    const N_FF: u64 = 18_944;
    const N_VOCAB: u64 = 152_064;
    let mut tensors = vec![
        ("token_embd.weight".to_owned(), N_EMBD, N_VOCAB, TensorType::Q4_K),
        ("output_norm.weight".to_owned(), N_EMBD, 1, TensorType::F32),
        ("output.weight".to_owned(), N_EMBD, N_VOCAB, TensorType::Q6_K),
    ];
    for layer in 0..28 {
        // Half of these have more bits.
        let better = if layer % 2 == 0 { TensorType::Q6_K } else { TensorType::Q4_K };
        let rows = [
            ("attn_norm.weight", N_EMBD, 1, TensorType::F32),
            ("attn_q.weight", N_EMBD, N_EMBD, TensorType::Q4_K),
            ("attn_k.weight", N_EMBD, N_KV, TensorType::Q4_K),
            ("attn_v.weight", N_EMBD, N_KV, better),
            ("attn_output.weight", N_EMBD, N_EMBD, TensorType::Q4_K),
            ("ffn_norm.weight", N_EMBD, 1, TensorType::F32),
            ("ffn_gate.weight", N_EMBD, N_FF, TensorType::Q4_K),
            ("ffn_up.weight", N_EMBD, N_FF, TensorType::Q4_K),
            ("ffn_down.weight", N_FF, N_EMBD, better),
        ];
        tensors.extend(rows.map(|(name, a, b, ty)| (format!("blk.{layer}.{name}"), a, b, ty)));
    }
    tensors
}

/// Writes the header and leaves the weights a hole.
fn sparse_7b(folder: &Path) -> PathBuf {
    let mut file = GgufBuilder::new()
        .pair("general.architecture", "qwen2")
        .pair("qwen2.context_length", 32_768u32)
        .pair("qwen2.embedding_length", 3584u32)
        .pair("qwen2.feed_forward_length", 18_944u32)
        .pair("qwen2.block_count", 28u32)
        .pair("qwen2.attention.head_count", 28u32)
        .pair("qwen2.attention.head_count_kv", 4u32)
        .pair("qwen2.attention.layer_norm_rms_epsilon", 1e-6f32);
    let mut offset = 0;
    for (name, n_cols, n_rows, ty) in tensors_7b() {
        let shape = if n_rows == 1 { vec![n_cols] } else { vec![n_cols, n_rows] };
        let row_bytes = ty.row_bytes(n_cols as usize).expect("whole blocks") as u64;
        file = file.tensor(name, &shape, ty, Vec::new()).claim_offset(offset);
        offset += (row_bytes * n_rows).next_multiple_of(32);
    }
    let header = file.header();
    let path = folder.join("7b.gguf");
    let mut out = std::fs::File::create(&path).expect("the file is made");
    out.write_all(&header).expect("the header is written");
    out.set_len(header.len() as u64 + offset).expect("the hole is made");
    path
}

/// What `inspect` says of this machine if models may take `memory`.
pub fn plan(model: &Path, memory: &str, n_ctx: u64) -> Value {
    let output = jetforge(Path::new("/nonexistent"))
        .args(["inspect", "--json", "--memory-max", memory, "-c", &n_ctx.to_string()])
        .arg(model)
        .output()
        .expect("the program starts");
    let found: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    found["fits"][0].clone()
}

#[test]
fn a_model_of_7b_fits_16_gb_and_a_refusal_says_what_would_fit() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let model = sparse_7b(folder.path());
    let fit = plan(&model, "16G", 4096);
    assert_eq!(fit["fits"], true, "{fit}");
    let weights = fit["weights_bytes"].as_u64().unwrap();
    assert!((4_300_000_000..4_900_000_000).contains(&weights), "{weights}");
    // Keys and values of 28 layers, 4 heads of 128, f16; a page or two more are spare.
    let (kv, exact) = (fit["kv_bytes"].as_u64().unwrap(), 28 * 2 * 4 * 128 * 2 * 4096u64);
    assert!((exact..=exact + exact / 50).contains(&kv), "{kv}");
    for memory in ["2G", "4G"] {
        let fit = plan(&model, memory, 4096);
        assert_eq!(fit["fits"], false, "{fit}");
        let reason = fit["reason"].as_str().unwrap();
        assert!(reason.contains("too few; no context fits"), "{reason}");
    }
    // With too much context the refusal names the most that fits, and that is so.
    let reason = plan(&model, "6G", 32_768)["reason"].as_str().unwrap().to_owned();
    let word = reason.split("--ctx-size ").nth(1).and_then(|rest| rest.split(' ').next());
    let largest: u64 = word.and_then(|n| n.parse().ok()).unwrap_or_else(|| panic!("{reason}"));
    assert_eq!(plan(&model, "6G", largest)["fits"], true);
    assert_eq!(plan(&model, "6G", largest + 32)["fits"], false);
}

/// A line of `/proc/PID/status` in KiB.
pub fn status_kib(pid: u32, key: &str) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(key))?;
    line.trim_start_matches(':').split_whitespace().next()?.parse().ok()
}

#[test]
fn the_process_takes_little_beyond_weights_and_kv_cache() {
    let home = tempfile::tempdir().expect("a temporary folder");
    let inspected = jetforge(home.path()).args(["inspect", "--json"]).output().unwrap();
    let found: Value = serde_json::from_slice(&inspected.stdout).expect("JSON");
    let bytes = |key: &str| found["fits"][0][key].as_u64().expect("a size");
    let kv_kib = bytes("kv_bytes") >> 10;
    let weights_kib = bytes("weights_bytes") >> 10;
    let planned_kib =
        weights_kib + kv_kib + ((bytes("scratch_bytes") + bytes("reserve_bytes")) >> 10);

    let mut child = jetforge(home.path())
        .args(["chat", "-n", "8", "--stats"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts");
    // A prompt of several steps, so that every buffer is in use.
    let mut stdin = child.stdin.take().unwrap();
    writeln!(stdin, "{}", "sort these numbers ".repeat(150)).unwrap();
    let mut stderr = BufReader::new(child.stderr.take().unwrap()).lines();
    let told = stderr.find(|line| line.as_ref().is_ok_and(|line| line.starts_with("decode")));
    assert!(told.is_some(), "the figures come after the answer");
    // Now it waits for the next line. Packed weights are anonymous memory, mapped ones are not.
    let anonymous = status_kib(child.id(), "RssAnon");
    drop(stdin);
    assert!(child.wait().unwrap().success());
    let Some(anonymous) = anonymous else {
        skip("memory", "this kernel does not tell RssAnon");
        return;
    };
    assert!(anonymous <= weights_kib + kv_kib + OVERHEAD_KIB_MAX, "{anonymous} KiB");
    assert!(anonymous <= planned_kib, "{anonymous} KiB, {planned_kib} were planned");
}
