//! Tests that need more than Rust and a C compiler: counted and named where they cannot run.
//!
//! Where all that they need was installed, `JETFORGE_TEST_MUST_RUN` names them and a skip is a
//! failure.

use std::io::Write;
use std::process::Command;
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

/// A Python that can import `module`: `JETFORGE_TEST_SDK_PYTHON` names it, else `python3`. Where it
/// cannot, `test` is skipped.
pub fn python_with(module: &str, test: &str) -> Option<String> {
    let python = std::env::var("JETFORGE_TEST_SDK_PYTHON").unwrap_or_else(|_| "python3".into());
    let output = Command::new(&python).args(["-c", &format!("import {module}")]).output();
    if output.is_ok_and(|output| output.status.success()) {
        return Some(python);
    }
    let variable = "JETFORGE_TEST_SDK_PYTHON";
    skip(test, &format!("{python} has no {module} (set {variable} to one that has)"));
    None
}

/// A node that can require `module`: from the folder that `JETFORGE_TEST_NODE_MODULES` names, which
/// holds a `node_modules`. Where it cannot, `test` is skipped.
pub fn node_with(module: &str, test: &str) -> Option<String> {
    let variable = "JETFORGE_TEST_NODE_MODULES";
    let Some(folder) = std::env::var_os(variable) else {
        skip(test, &format!("{variable} names no folder whose node_modules has {module}"));
        return None;
    };
    let found = format!("require.resolve({module:?})");
    let output = Command::new("node").args(["-e", &found]).current_dir(folder).output();
    if output.is_ok_and(|output| output.status.success()) {
        return Some("node".to_owned());
    }
    skip(test, &format!("node cannot require {module} in the folder of {variable}"));
    None
}
