//! Tests that need more than Rust and a C compiler: counted and named where they cannot run.
//!
//! Where all that they need was installed, `JETFORGE_TEST_MUST_RUN` names them and a skip is a
//! failure.

use std::io::Write;
use std::sync::atomic::{AtomicUsize, Ordering};

static N_SKIPPED: AtomicUsize = AtomicUsize::new(0);

/// Says that `test` does not run, and why.
///
/// # Panics
///
/// If `JETFORGE_TEST_MUST_RUN`, words with spaces between them, has `test`.
pub fn skip(test: &str, reason: &str) {
    let must_run = std::env::var("JETFORGE_TEST_MUST_RUN").unwrap_or_default();
    let is_needed = must_run.split_whitespace().any(|word| word == test);
    assert!(!is_needed, "{test} must run here: {reason}");
    let n = N_SKIPPED.fetch_add(1, Ordering::Relaxed) + 1;
    // Not by `eprintln!`, which a test that passes keeps to itself.
    let _ = writeln!(std::io::stderr(), "skipped {n}: {test}: {reason}");
}
