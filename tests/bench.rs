//! `jetforge bench`: the real binary measures, writes, compares and advises.

use std::path::Path;

use serde_json::Value;

use crate::cli::jetforge;

/// The answer on stdout, or the exit code and what was said.
fn bench(home: &Path, args: &[&str]) -> Result<String, (i32, String)> {
    let output = jetforge(home).arg("bench").args(args).output().unwrap();
    let (out, err) = (output.stdout, output.stderr);
    match output.status.code() {
        Some(0) => Ok(String::from_utf8(out).unwrap()),
        code => Err((code.unwrap_or(-1), String::from_utf8(err).unwrap())),
    }
}

const SMALL: [&str; 14] =
    ["-p", "24", "-n", "6", "-d", "0,40", "--streams", "2", "-r", "2", "-t", "2", "-o", "json"];

#[test]
fn figures_come_with_rounds_machine_and_share() {
    let home = tempfile::tempdir().unwrap();
    let page = home.path().join("page.html");
    let page_arg = page.to_str().unwrap();
    let mut args = SMALL.to_vec();
    args.extend(["--html", page_arg]);
    let text = bench(home.path(), &args).unwrap();
    let lines: Vec<Value> = text.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    let tests: Vec<&str> = lines.iter().map(|line| line["test"].as_str().unwrap()).collect();
    for test in [
        "load, warm",
        "pp24",
        "tg6",
        "tg6: p99 between tokens",
        "tg6 @ 40",
        "tg6 x 2",
        "first token of pp512, cold",
        "first token of pp512, prefix in memory",
        "first token of pp512, prefix on disk",
        "peak memory",
    ] {
        assert!(tests.contains(&test), "{test} is not in {tests:?}");
    }
    for line in &lines {
        let values: Vec<f64> = serde_json::from_value(line["values"].clone()).unwrap();
        let test = line["test"].as_str().unwrap();
        // A reader that is late sees two tokens at once, and a counter of energy moves in steps.
        let may_be_zero = test.ends_with("between tokens") || test.contains("energy");
        assert!(values.iter().all(|v| *v > 0.0 || may_be_zero), "{line}");
        assert_eq!(line["machine"]["n_threads"], 2);
        let is_once = ["peak memory", "idle power"].contains(&test);
        assert_eq!(values.len(), if is_once { 1 } else { 2 }, "{line}");
    }
    let decode = lines.iter().find(|line| line["test"] == "tg6").unwrap();
    assert_eq!(decode["share"]["unit"], "GB/s");
    assert!(decode["share"]["limit"].as_f64().unwrap() > 0.0);
    assert!(std::fs::read_to_string(page).unwrap().contains("<svg"));

    // The report is held against itself: every ratio is 1.
    let file = home.path().join("a.json");
    std::fs::write(&file, &text).unwrap();
    let file = file.to_str().unwrap();
    let table = bench(home.path(), &["--compare", file, file]).unwrap();
    let table = table.trim_end();
    assert_eq!(table.lines().count(), lines.len() + 1, "{table}");
    assert!(table.lines().skip(1).all(|line| line.contains(" 1.00 ")), "{table}");
}

#[test]
fn a_single_test_has_room_for_itself() {
    let home = tempfile::tempdir().unwrap();
    let args = ["-p", "8", "-n", "4", "-d", "0", "--streams", "1", "--quick", "-r", "1"];
    let table = bench(home.path(), &args).unwrap();
    for test in ["pp8 ", "tg4 ", "tg4 x 1 "] {
        assert!(table.lines().any(|line| line.starts_with(test)), "{test}: {table}");
    }
}

#[test]
fn whole_tasks_are_measured_and_those_that_do_not_fit_are_named() {
    let home = tempfile::tempdir().unwrap();
    let args = ["--task", "code_generation", "-r", "1", "-c", "600", "--quick", "-o", "markdown"];
    let output = jetforge(home.path()).arg("benchmark").args(args).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("| write a function: whole answer |"), "{text}");
    assert!(text.contains("complete a line was left out: 1056 tokens, and the context has 600."));
}

#[test]
fn a_board_that_is_not_here_is_predicted_for() {
    let home = tempfile::tempdir().unwrap();
    let args = ["--device", "jetson-nano", "--model", "all", "--task", "code_generation"];
    let text = bench(home.path(), &args).unwrap();
    assert!(text.starts_with("jetson-nano-4gb: a prediction from a profile"), "{text}");
    assert!(text.contains("recommended") && text.contains("6.9 GB/s (assumed, not measured)"));
    // Its GPU is judged as well.
    assert!(text.contains("GPU prefill") && text.contains("15.4 GB/s (assumed)"), "{text}");
    // Less memory, smaller models.
    let small = bench(home.path(), &["--device", "jetson-nano-2gb"]).unwrap();
    let fits = |text: &str| text.lines().filter(|line| !line.contains("does not fit")).count();
    assert!(fits(&small) < fits(&text), "{small}");
}

#[test]
fn wrong_wishes_are_refused_with_what_to_do() {
    let home = tempfile::tempdir().unwrap();
    let error = |args: &[&str]| bench(home.path(), args).unwrap_err();
    let (code, text) = error(&["--device", "raspberry"]);
    assert!(code == 2 && text.contains("there is a profile of jetson-nano"), "{text}");
    let (code, text) = error(&["--task", "cooking"]);
    assert!(code == 2 && text.contains("`code_generation` only"), "{text}");
    let (code, text) = error(&["-p", "0"]);
    assert!(code == 2 && text.contains("at least 1"), "{text}");
    let (code, text) = error(&["--compare", "/nowhere/a", "/nowhere/b"]);
    assert!(code == 2 && text.contains("/nowhere/a"), "{text}");
    let (code, text) = error(&["-m", "no-such-model"]);
    assert!(code == 3 && text.contains("no-such-model"), "{text}");
}
