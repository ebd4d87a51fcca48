//! `jetforge bench`: the real binary measures, writes, compares and advises.

use std::path::Path;
use std::process::Command;

use jetforge::inference::quant::TensorType;
use serde_json::Value;

use crate::cli::{jetforge, program};
use crate::support::recipe::Recipe;
use crate::support::run::{Run, write_script};
use crate::support::skip::python_with;

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
        "tg6 x 2 over tg6",
        "first token of pp512, cold",
        "first token of pp512, prefix in memory over cold",
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
    let figure = |test: &str| lines.iter().find(|line| line["test"] == test).unwrap();
    for test in ["tg6", "tg6 @ 40", "tg6 x 2", "load, warm"] {
        let share = &figure(test)["share"];
        assert_eq!(share["unit"], "GB/s", "{test}");
        let part = share["rate"].as_f64().unwrap() / share["limit"].as_f64().unwrap();
        assert!(part > 0.0 && part.is_finite(), "{test}");
        let told = figure(test)["peak_fraction"].as_f64().unwrap();
        assert!((told / part - 1.0).abs() < 1e-9, "{test}");
    }
    // A ratio is of the figures that it names.
    let median = |test: &str| figure(test)["median"].as_f64().unwrap();
    let cold = "first token of pp512, cold";
    let warm = "first token of pp512, prefix in memory";
    for (ratio, of, over) in
        [("tg6 x 2 over tg6", "tg6 x 2", "tg6"), (&format!("{warm} over cold"), warm, cold)]
    {
        assert!((median(ratio) / (median(of) / median(over)) - 1.0).abs() < 1e-9, "{ratio}");
    }
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
    let args = ["-p", "2", "-n", "4", "-d", "0", "--streams", "1", "--quick", "-r", "1"];
    let table = bench(home.path(), &args).unwrap();
    for test in ["pp2 ", "tg4 ", "tg4 x 1 "] {
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

/// As it was asked for: `jetforge benchmark --device jetson-nano --model all --task ...`.
const LINE: [&str; 7] =
    ["benchmark", "--device", "jetson-nano", "--model", "all", "--task", "code_generation"];

#[test]
fn a_board_that_is_not_here_is_predicted_for() {
    let home = tempfile::tempdir().unwrap();
    let run = Run::of(jetforge(home.path()).args(LINE)).ok();
    let text = run.out;
    assert!(text.starts_with("jetson-nano-4gb: a prediction from a profile"), "{text}");
    assert!(text.contains("recommended") && text.contains("6.9 GB/s (assumed, not measured)"));
    assert!(text.contains("quant   4bit, which `setup-model --quantize 4bit` makes"), "{text}");
    assert!(text.contains("power   jetforge power max"), "{text}");
    // Nothing on that line is passed over: each task has its seconds.
    let head = text.lines().find(|line| line.starts_with("model") && line.contains("complete"));
    assert!(head.unwrap().contains("write tests for a file"), "{text}");
    assert!(!run.err.contains("changes nothing"), "{}", run.err);
    // Its GPU is judged as well.
    assert!(text.contains("GPU prefill") && text.contains("15.4 GB/s (assumed)"), "{text}");
    // Less memory, smaller models.
    let too_large = |device: &str| {
        let text = bench(home.path(), &["--device", device]).unwrap();
        (text.lines().filter(|line| line.contains("does not fit")).count(), text)
    };
    let (small, nano, pc) =
        (too_large("jetson-nano-2gb"), too_large("nano4gb"), too_large("pc-16gb"));
    assert!(small.0 > nano.0 && nano.0 > pc.0, "{}{}{}", small.1, nano.1, pc.1);
    assert!(pc.1.contains("30.7 GB/s (assumed, not measured)"), "{}", pc.1);
    assert!(!pc.1.contains("GPU"), "{}", pc.1);
}

#[test]
fn what_a_prediction_has_no_use_for_is_said() {
    let home = tempfile::tempdir().unwrap();
    let page = home.path().join("page.html");
    let mut command = jetforge(home.path());
    command.args(LINE).args(["-p", "64", "-o", "json", "--html"]).arg(&page);
    let run = Run::of(&mut command).ok();
    assert!(run.err.contains("so --n-prompt, --html changes nothing"), "{}", run.err);
    assert!(!page.exists());
    let lines: Vec<Value> = run.out.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert_eq!(lines.iter().filter(|line| line["is_recommended"] == true).count(), 1);
    for line in &lines {
        assert_eq!(line["machine"], "jetson-nano-4gb", "{line}");
        assert!(line["decode_tok_s"].as_f64().unwrap() > 0.0, "{line}");
        let seconds = &line["task_s"]["complete a line"];
        let fits = line["against"] != "does not fit";
        assert_eq!(seconds.as_f64().is_some_and(|s| s > 0.0), fits, "{line}");
    }
}

/// The same line on that board measures.
#[test]
fn a_board_that_is_here_is_measured() {
    let (home, root) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let tree = root.path().join("proc/device-tree");
    std::fs::create_dir_all(&tree).unwrap();
    std::fs::write(tree.join("compatible"), "nvidia,jetson-nano\0nvidia,tegra210\0").unwrap();
    let memory = root.path().join("proc/meminfo");
    let run = |memory_kb: u64, device: &str| {
        std::fs::write(&memory, format!("MemTotal: {memory_kb} kB\n")).unwrap();
        let mut command = jetforge(home.path());
        command.args(LINE).args(["--device", device, "-r", "1", "-c", "600", "--quick"]);
        command.args(["-t", "2", "-o", "markdown", "--root"]).arg(root.path());
        Run::of(&mut command).ok().out
    };
    let is_measured = |text: &str| text.contains("| write a function: whole answer |");
    let (large, small) = (4_059_328, 2_026_496);
    assert!(is_measured(&run(large, "jetson-nano")));
    assert!(is_measured(&run(small, "jetson-nano-2gb")));
    // The other one of the family is not here.
    let text = run(small, "jetson-nano-4gb");
    assert!(text.starts_with("jetson-nano-4gb: a prediction") && !is_measured(&text), "{text}");
}

#[test]
fn one_model_that_cannot_be_measured_takes_nothing_from_the_others() {
    let home = tempfile::tempdir().unwrap();
    let store = home.path().join(".local/share/jetforge/models");
    std::fs::create_dir_all(&store).unwrap();
    std::fs::write(store.join("broken.gguf"), b"GGUF and no more").unwrap();
    let encoder = Recipe::read("bert-mean").build(TensorType::F32);
    std::fs::write(store.join("encoder.gguf"), encoder).unwrap();
    std::fs::write(store.join("good.gguf"), Recipe::read("llama").build(TensorType::F32)).unwrap();
    let page = home.path().join("page.html");
    let mut command = jetforge(home.path());
    command.args(["bench", "-m", "all", "-p", "8", "-n", "2", "-d", "0", "--streams", "1"]);
    command.args(["--quick", "-r", "1", "-t", "2", "-o", "json", "--html"]).arg(&page);
    let run = Run::of(&mut command);
    assert_eq!(run.code, 1, "{}", run.err);
    let lines: Vec<Value> = run.out.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    let decoded = lines.iter().filter(|line| line["test"] == "tg2").count();
    assert_eq!(decoded, 2, "the embedded model, and the one behind those: {}", run.err);
    for name in ["broken.gguf", "encoder.gguf"] {
        let is_told = |line: &str| line.contains(name) && line.contains("was not measured: ");
        assert!(run.err.lines().any(is_told), "{name}: {}", run.err);
    }
    let last = run.err.lines().last().unwrap();
    assert!(last.contains("2 of 4 models were not measured"), "{}", run.err);
    assert!(std::fs::read_to_string(page).unwrap().contains("broken.gguf was not measured"));
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

/// A script of `benches/peer`, with nothing of its own but a home.
fn peer(script: &str, home: &Path) -> Option<Command> {
    python_with("json", "python")?;
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/peer").join(script);
    let mut command = Command::new(script);
    command.env("HOME", home);
    Some(command)
}

/// Models are made, both programs run in turn, and the table is printed; here with programs that
/// only look like llama.cpp's and like a Python with numpy.
#[test]
fn the_comparison_with_llama_cpp_is_one_command() {
    let home = tempfile::tempdir().unwrap();
    let at = |name: &str| home.path().join(name);
    let Some(mut command) = peer("run.sh", home.path()) else { return };
    std::fs::write(at("model"), Recipe::read("llama").build(TensorType::F32)).unwrap();
    let last = format!("cp {} \"$2\"", at("model").display());
    write_script(&at("python"), &format!("while [ \"$1\" != --out ]; do shift; done\n{last}"));
    let answer = r#"[{"avg_ts": 0.001, "build_commit": "abc123"}]"#;
    write_script(&at("llama-bench"), &format!("echo '{answer}'"));
    command.args(["--threads", "1", "--rounds", "2", "--prompt", "8", "--generate", "2@0"]);
    command.env("JETFORGE", program()).env("WORK", at("work"));
    command.env("LLAMA_BENCH", at("llama-bench")).env("PYTHON", at("python"));
    command.env("MODELS", "tinyllama-1.1b/f16 tinyllama-1.1b/n4=f16");
    let out = Run::of(&mut command).ok().out;
    assert!(out.contains("; llama.cpp abc123; 2 rounds"), "{out}");
    let (first, second) = ("tinyllama-1.1b-f16", "tinyllama-1.1b-n4, tinyllama-1.1b-f16");
    for row in [first, second].into_iter().flat_map(|m| ["pp8", "tg2"].map(|t| (m, t))) {
        let row = format!("| {} | 1 | {} | ", row.0, row.1);
        assert!(out.lines().any(|line| line.starts_with(&row)), "{row}: {out}");
    }
}

#[test]
fn the_memory_probe_is_held_against_another_program() {
    let home = tempfile::tempdir().unwrap();
    for (rate, is_kept) in [("0.01", true), ("99999999.00", false)] {
        let Some(mut command) = peer("memory.py", home.path()) else { return };
        let other = home.path().join("sysbench");
        write_script(&other, &format!("echo '512.00 MiB transferred ({rate} MiB/sec)'"));
        command.args(["--threads", "1", "--rounds", "1", "--jetforge"]).arg(program());
        let run = Run::of(command.arg("--sysbench").arg(other));
        assert_eq!(run.code, i32::from(!is_kept), "{}{}", run.out, run.err);
        assert!(run.out.contains("| 1 | ") && run.out.contains("MISSED") != is_kept, "{}", run.out);
    }
}
