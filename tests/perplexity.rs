//! Golden: the default model foretells a text as well as llama.cpp says it does.
//!
//! `tests/tools/golden_perplexity.py` made text and figures, by the procedure of llama.cpp's tool.

use std::path::Path;

use serde::Deserialize;

use crate::cli::jetforge;

const TEXT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/perplexity/text.txt");
const GOLDEN: &str = include_str!("golden/perplexity/default.json");
/// How far the figure may be from llama.cpp's, as a part of it.
const DIFFERENCE_MAX: f64 = 0.005;

#[derive(Deserialize)]
struct Golden {
    windows: Vec<Figure>,
}

#[derive(Deserialize)]
struct Figure {
    n_ctx: usize,
    n_tokens: usize,
    perplexity: f64,
    stderr: f64,
}

fn measure(n_ctx: usize) -> Figure {
    let output = jetforge(Path::new("/nonexistent"))
        .args(["perplexity", TEXT, "--json", "-c", &n_ctx.to_string()])
        .output()
        .expect("the program starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("JSON")
}

#[test]
fn perplexity_is_llama_cpps_within_half_a_percent() {
    let golden: Golden = serde_json::from_str(GOLDEN).expect("default.json");
    for theirs in golden.windows {
        let ours = measure(theirs.n_ctx);
        assert_eq!(ours.n_tokens, theirs.n_tokens, "the same tokens are scored");
        let near = |a: f64, b: f64| (a / b - 1.0).abs() <= DIFFERENCE_MAX;
        assert!(near(ours.perplexity, theirs.perplexity), "{}", ours.perplexity);
        assert!(near(ours.stderr, theirs.stderr), "{}", ours.stderr);
    }
}
