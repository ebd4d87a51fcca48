//! `benches/gpu/run.sh`: what a machine with a GPU is asked, here on the stand-in with a tiny
//! model. And the two of its steps that this program does.

use std::path::{Path, PathBuf};
use std::process::Command;

use jetforge::inference::backend::cuda::Device;
use serde_json::{Value, json};

use crate::support::run::Run;
use crate::support::shapes::SHAPES;
use crate::support::{skip, stand_in};

/// A folder or word that the script gives.
fn given(name: &str) -> String {
    let name = format!("JETFORGE_GPU_{name}");
    std::env::var(&name).unwrap_or_else(|_| panic!("benches/gpu/run.sh sets {name}"))
}

#[test]
#[ignore = "a step of benches/gpu/run.sh"]
fn writes_a_model() {
    let name = given("SHAPE");
    let shape = SHAPES.into_iter().find(|shape| shape.name == name);
    let shape = shape.unwrap_or_else(|| panic!("there is no shape {name}"));
    shape.write(&Path::new(&given("WORK")).join(format!("{name}.gguf")));
}

#[test]
#[ignore = "a step of benches/gpu/run.sh"]
fn writes_the_report() {
    let work = PathBuf::from(given("WORK"));
    let read = |file: &str| std::fs::read_to_string(work.join(file)).unwrap_or_default();
    let library = std::env::var("JETFORGE_TEST_LIBCUDA").expect("benches/gpu/run.sh sets it");
    let device = Device::open(Path::new(&library), 0);
    let device = device.expect("the driver has a device").info().clone();
    let steps = read("steps.tsv");
    let steps: serde_json::Map<String, Value> = steps
        .lines()
        .filter_map(|line| line.split_once('\t'))
        .map(|(step, status)| (step.to_owned(), status.into()))
        .collect();
    let figures: Vec<Value> = read("bench.jsonl")
        .lines()
        .map(|line| serde_json::from_str(line).expect("a figure is JSON"))
        .map(|mut figure: Value| {
            let is_decode = figure["test"].as_str().is_some_and(|test| test.starts_with("tg"));
            let (bytes, rate) = (figure["file_bytes"].as_f64(), figure["median"].as_f64());
            if let (true, "tok/s", Some(bytes), Some(rate)) =
                (is_decode, figure["unit"].as_str().unwrap_or_default(), bytes, rate)
            {
                // All of such a file is read for a token: its table is the head.
                figure["gb_s"] = json!(bytes * rate / 1e9);
            }
            figure
        })
        .collect();
    let log = read("tests.log");
    let errors: Vec<&str> =
        log.lines().map(said).filter(|line| line.contains(": worst ")).collect();
    let skipped: Vec<&str> =
        log.lines().map(said).filter(|line| line.starts_with("skipped ")).collect();
    let (date, version) = (given("DATE"), env!("CARGO_PKG_VERSION"));
    let report = json!({
        "date": date, "device": device.name, "about": device.to_string(), "version": version,
        "steps": steps, "errors": errors, "skipped": skipped, "figures": figures,
    });
    let letter = |c: char| if c.is_ascii_alphanumeric() { c } else { '-' };
    let name: String = device.name.chars().map(letter).collect();
    let path = Path::new(&given("OUT")).join(format!("{date}-{name}.json"));
    let text = serde_json::to_string_pretty(&report).expect("words and numbers are JSON");
    std::fs::write(&path, text + "\n").expect("the report is written");
    println!("wrote {}", path.display());
}

/// What a test says, without its name, which stands before the first that it says.
fn said(line: &str) -> &str {
    line.rsplit("... ").next().unwrap_or(line)
}

/// The script on a stand-in; how it ended, and its report.
fn script(conf: &str) -> Option<(Run, Value)> {
    // On a real device it is the script that runs this program.
    if stand_in::is_real() {
        skip::skip("cuda-real", "benches/gpu/run.sh is not run within itself");
        return None;
    }
    let (library, _dir) = stand_in::copy(conf)?;
    let folder = tempfile::tempdir().expect("a temporary folder");
    let at = |name: &str| folder.path().join(name);
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/gpu/run.sh");
    let mut command = Command::new(script);
    command
        .env("JETFORGE", assert_cmd::cargo::cargo_bin!("jetforge"))
        .env("SUITE", std::env::current_exe().expect("this program"))
        .env("LIBCUDA", library)
        .envs([("WORK", at("work")), ("OUT", at("out")), ("HOME", at("home"))])
        .envs([("SHAPES", "tiny"), ("ROUNDS", "1"), ("PROMPT", "12"), ("GENERATE", "3")])
        .env("TESTS", "cuda::norms_are cuda::rows_are cuda_driver::memory_that")
        .env_remove("JETFORGE_TEST_MUST_RUN");
    let run = Run::of(&mut command);
    let reports = std::fs::read_dir(at("out")).expect("a folder for the report");
    let paths: Vec<PathBuf> = reports.map(|entry| entry.expect("a file").path()).collect();
    let [path] = &paths[..] else { panic!("one report, and not {paths:?}: {}", run.err) };
    let name = path.file_name().expect("a name").to_string_lossy().into_owned();
    assert!(name.starts_with("20") && name.ends_with("-simulated-sm-53.json"), "{name}");
    let report = std::fs::read_to_string(path).expect("the report");
    Some((run, serde_json::from_str(&report).expect("the report is JSON")))
}

#[test]
fn the_script_for_a_gpu_runs_to_its_end() {
    let Some((run, report)) = script("") else { return };
    assert_eq!(run.code, 0, "{}{}", run.out, run.err);
    assert_eq!(report["device"], "simulated sm_53");
    let steps = report["steps"].as_object().expect("steps");
    for step in ["tests", "weights-tiny", "twice-tiny", "bench-tiny"] {
        assert_eq!(steps[step], "ok", "{steps:?}");
    }
    assert!(steps.contains_key("memcheck") && steps.contains_key("racecheck"), "{steps:?}");
    let skipped = report["skipped"].as_array().expect("a list");
    let is_told = |line: &Value| {
        line.as_str().is_some_and(|line| line.contains("a real device takes no orders (memory"))
    };
    assert!(skipped.iter().any(is_told), "{skipped:?}");
    let figures = report["figures"].as_array().expect("figures");
    for (test, has_bandwidth) in [("pp12", false), ("tg3", true)] {
        let figure = figures.iter().find(|figure| figure["test"] == test).expect("measured");
        assert_eq!(figure["model"], "random-tiny");
        assert!(figure["median"].as_f64().is_some_and(|rate| rate > 0.0), "{figure}");
        assert_eq!(figure["gb_s"].as_f64().is_some_and(|rate| rate > 0.0), has_bandwidth);
    }
}

/// The canary: a kernel that does nothing is in the report.
#[test]
fn the_script_for_a_gpu_ends_with_an_error_where_a_kernel_is_wrong() {
    let Some((run, report)) = script("skip rms_norm_f32") else { return };
    assert_eq!(run.code, 1, "{}{}", run.out, run.err);
    assert_eq!(report["steps"]["tests"], "failed", "{report}");
    assert_eq!(report["steps"]["bench-tiny"], "failed", "the self-test refuses: {report}");
    assert_eq!(report["steps"]["weights-tiny"], "ok", "{report}");
}
