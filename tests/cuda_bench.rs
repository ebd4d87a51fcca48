//! `benches/gpu/run.sh`: what a machine with a GPU is asked, here on the stand-in with a tiny
//! model. And the two of its steps that this program does.

use std::path::{Path, PathBuf};
use std::process::Command;

use jetforge::bench::{self, Limits, Rooms, Task, Tests};
use jetforge::inference::backend::cuda::Device;
use jetforge::inference::{LoadOptions, ModelSource};
use serde_json::{Value, json};

use crate::cli::program;
use crate::cuda_engine::{on_cpu, on_cuda};
use crate::support::run::{Run, write_script};
use crate::support::shapes::SHAPES;
use crate::support::{skip, stand_in};

/// The part of a GPU's memory rate that decode of a 3B model in 4 bits was asked to reach.
const PEAK_FRACTION_ASKED: f64 = 0.25;

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
                println!("{}", decode_line(&figure));
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

/// A decode figure in a line, and how a 3B model stands against what was asked.
fn decode_line(figure: &Value) -> String {
    let text = |key: &str| figure[key].as_str().unwrap_or_default().to_owned();
    let (model, test) = (text("model"), text("test"));
    let (rate, gb_s) = (figure["median"].as_f64(), figure["gb_s"].as_f64());
    let head = format!(
        "decode: {model} {test} {:.1} tok/s, {:.1} GB/s",
        rate.unwrap_or_default(),
        gb_s.unwrap_or_default()
    );
    let Some(fraction) = figure["peak_fraction"].as_f64() else {
        return format!("{head}; the driver does not tell what its memory gives");
    };
    let verdict = match (model.ends_with("3b"), fraction >= PEAK_FRACTION_ASKED) {
        (false, _) => "",
        (true, true) => ", 25 % asked",
        (true, false) => ", MISSED: 25 % asked",
    };
    format!("{head}, {:.0} % of its memory's rate{verdict}", 100.0 * fraction)
}

#[test]
fn decode_is_told_as_a_part_of_the_devices_memory() {
    let line = |model: &str, fraction: Option<f64>| {
        let mut figure = json!({ "model": model, "test": "tg128", "median": 10.0, "gb_s": 20.0 });
        if let Some(fraction) = fraction {
            figure["peak_fraction"] = json!(fraction);
        }
        decode_line(&figure)
    };
    let head = "tg128 10.0 tok/s, 20.0 GB/s";
    let of = |fraction| line("random-3b", Some(fraction));
    assert_eq!(
        of(0.25),
        format!("decode: random-3b {head}, 25 % of its memory's rate, 25 % asked")
    );
    assert!(of(0.24).ends_with("24 % of its memory's rate, MISSED: 25 % asked"));
    assert!(line("random-7b", Some(0.24)).ends_with("24 % of its memory's rate"));
    assert!(line("random-3b", None).ends_with("does not tell what its memory gives"));
}

/// What a test says, without its name, which stands before the first that it says.
fn said(line: &str) -> &str {
    line.rsplit("... ").next().unwrap_or(line)
}

/// A stand-in for the script. On a real device it is the script that runs this program.
fn device(conf: &str) -> Option<(PathBuf, tempfile::TempDir)> {
    if stand_in::is_real() {
        skip::skip("cuda-real", "benches/gpu/run.sh is not run within itself");
        return None;
    }
    stand_in::copy(conf)
}

/// The script, told to measure little in a folder.
fn command(script: &Path, library: &Path, folder: &Path) -> Command {
    let at = |name: &str| folder.join(name);
    let mut command = Command::new(script);
    command
        .env("LIBCUDA", library)
        .envs([("WORK", at("work")), ("OUT", at("out")), ("HOME", at("home"))])
        .envs([("SHAPES", "tiny"), ("ROUNDS", "1"), ("PROMPT", "12"), ("GENERATE", "3")])
        .env("TESTS", "cuda::norms_are cuda::rows_are cuda_driver::memory_that")
        .env_remove("JETFORGE_TEST_MUST_RUN");
    command
}

/// The script on a stand-in, with a compute-sanitizer that only notes what it is asked; how it
/// ended, its report, and what was noted.
fn script(conf: &str) -> Option<(Run, Value, String)> {
    let (library, _dir) = device(conf)?;
    let folder = tempfile::tempdir().expect("a temporary folder");
    let at = |name: &str| folder.path().join(name);
    let sanitizer = at("compute-sanitizer");
    let noted = at("noted");
    write_script(&sanitizer, &format!("echo \"$@\" >>{}", noted.display()));
    let paths = std::env::var("PATH").expect("there is one");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/gpu/run.sh");
    let mut command = command(&script, &library, folder.path());
    command
        .env("PATH", format!("{}:{paths}", folder.path().display()))
        .env("JETFORGE", program())
        .env("SUITE", std::env::current_exe().expect("this program"));
    let run = Run::of(&mut command);
    let noted = std::fs::read_to_string(noted).expect("the sanitizer was asked");
    let reports = std::fs::read_dir(at("out")).expect("a folder for the report");
    let paths: Vec<PathBuf> = reports.map(|entry| entry.expect("a file").path()).collect();
    let [path] = &paths[..] else { panic!("one report, and not {paths:?}: {}", run.err) };
    let name = path.file_name().expect("a name").to_string_lossy().into_owned();
    assert!(name.starts_with("20") && name.ends_with("-simulated-sm-53.json"), "{name}");
    let report = std::fs::read_to_string(path).expect("the report");
    Some((run, serde_json::from_str(&report).expect("the report is JSON"), noted))
}

#[test]
fn the_script_for_a_gpu_runs_to_its_end() {
    let Some((run, report, sanitized)) = script("") else { return };
    assert_eq!(run.code, 0, "{}{}", run.out, run.err);
    assert_eq!(report["device"], "simulated sm_53");
    let steps = report["steps"].as_object().expect("steps");
    for step in ["tests", "memcheck", "racecheck", "weights-tiny", "twice-tiny", "bench-tiny"] {
        assert_eq!(steps[step], "ok", "{steps:?}");
    }
    // Every kernel is looked at: products and rows, attention, adapters.
    for (tool, line) in ["memcheck", "racecheck"].iter().zip(sanitized.lines()) {
        assert!(line.starts_with(&format!("--tool {tool} --error-exitcode 1 ")), "{line}");
        for tests in [" cuda::", " cuda_attention::", " cuda_lora::each_row"] {
            assert!(line.contains(tests), "{line}");
        }
    }
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
        // Of what the device's own memory can give, not of what this machine's does.
        let limit = figure["share"]["limit"].as_f64();
        assert_eq!(limit, has_bandwidth.then_some(25.6), "{figure}");
        let fraction = figure["peak_fraction"].as_f64();
        assert_eq!(fraction.is_some_and(|part| part > 0.0), has_bandwidth, "{figure}");
    }
    assert!(run.out.contains("decode: random-tiny tg3 "), "{}", run.out);
}

/// What travels to a machine without Rust is whole: tests start the program that came with them.
#[test]
fn what_is_packed_measures_with_what_it_holds() {
    let Some((library, _dir)) = device("") else { return };
    let folder = tempfile::tempdir().expect("a temporary folder");
    let at = |name: &str| folder.path().join(name);
    let (ours, calls) = (at("jetforge"), at("calls"));
    let notes = format!("echo \"$1\" >>{}", calls.display());
    let program = program();
    let text = format!("{notes}\nexec {} \"$@\"", program.display());
    write_script(&ours, &text);
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/gpu/run.sh");
    let mut pack = command(&script, &library, folder.path());
    pack.arg("pack").arg(at("packed"));
    pack.env("JETFORGE", &ours).env("SUITE", std::env::current_exe().expect("this program"));
    Run::of(&mut pack).ok();
    // No program but what was packed is told from now on.
    let mut packed = command(&at("packed/benches/gpu/run.sh"), &library, folder.path());
    packed.env_remove("JETFORGE").env_remove("SUITE");
    let tests = "cuda_split::the_program_takes cuda_driver::memory_that";
    packed.env("SHAPES", " ").env("TESTS", tests);
    let run = Run::of(&mut packed);
    assert_eq!(run.code, 0, "{}{}", run.out, run.err);
    let log = std::fs::read_to_string(at("work/tests.log")).expect("the tests' words");
    assert!(log.contains("test result: ok. 2 passed"), "{log}");
    let calls = std::fs::read_to_string(calls).expect("the tests started it");
    assert!(calls.lines().any(|verb| verb == "generate"), "{calls}");
}

/// Figures and notes of the embedded model, and of the tests the limit that each is held against.
fn limits(options: &LoadOptions, root: &Path) -> (Vec<(String, Option<f64>)>, String) {
    let tests = Tests {
        n_prompt: vec![9],
        n_generate: vec![2],
        n_depth: vec![0],
        n_streams: vec![2],
        tasks: vec![Task { name: "a task", n_prompt: 9, n_predict: 2 }],
        ttft: false,
        load: false,
        edit: false,
        n_rounds: 1,
        rooms: Rooms { root: root.to_owned(), disk: None },
    };
    let machine = Limits { memory_gb_s: Some(7.0), integer_gmac_s: Some(9.0) };
    let source = ModelSource::Embedded;
    let measured = bench::measure(&source, options, &tests, &machine, &mut |_| {});
    let (_, figures, notes) = measured.expect("it is measured");
    let held = ["pp9", "tg2", "tg2 x 2", "a task: decode"].map(|test| {
        let figure = figures.iter().find(|figure| figure.test == test).expect("measured");
        (test.to_owned(), figure.share.map(|share| share.limit))
    });
    (held.to_vec(), notes.join("; "))
}

/// A GPU is not held against what the machine's cores and memory do.
#[test]
fn what_computes_is_held_against_its_own_limits() {
    let elsewhere = tempfile::tempdir().expect("a temporary folder");
    let nano = tempfile::tempdir().expect("a temporary folder");
    let tree = nano.path().join("proc/device-tree");
    std::fs::create_dir_all(&tree).expect("a folder");
    std::fs::write(tree.join("compatible"), "nvidia,jetson-nano\0nvidia,tegra210\0").expect("file");
    let all = |prefill: Option<f64>, memory: Option<f64>| {
        let rest = ["tg2", "tg2 x 2", "a task: decode"].map(|test| (test.to_owned(), memory));
        [("pp9".to_owned(), prefill)].into_iter().chain(rest).collect::<Vec<_>>()
    };
    let (held, _) = limits(&on_cpu(), nano.path());
    assert_eq!(held, all(Some(9.0), Some(7.0)));
    let Some((library, _dir)) = device("") else { return };
    let (held, notes) = limits(&on_cuda(&library), elsewhere.path());
    assert_eq!(held, all(None, Some(25.6)));
    assert!(notes.contains("25.6 GB/s: clock and wires of the GPU's memory"), "{notes}");
    let split = LoadOptions { n_gpu_layers: Some(2), ..on_cuda(&library) };
    let (held, notes) = limits(&split, elsewhere.path());
    assert_eq!(held, all(None, None));
    assert!(notes.contains("layers on the CPU and on a GPU"), "{notes}");
    // A board's driver may not know; then its maker does, and of other boards nobody.
    let Some((library, _dir)) = device("memory_clock 12750") else { return };
    let (held, notes) = limits(&on_cuda(&library), nano.path());
    assert_eq!(held, all(None, Some(25.6)));
    assert!(notes.contains("the board's memory; its driver tells no clock"), "{notes}");
    let (held, notes) = limits(&on_cuda(&library), elsewhere.path());
    assert_eq!(held, all(None, None));
    assert!(notes.contains("does not tell its memory's clock"), "{notes}");
}

#[test]
fn the_rate_of_a_devices_memory_is_that_of_its_clock_and_wires() {
    let peak = |conf: &str| {
        let (device, _dir) = stand_in::device(conf)?;
        Some(device.expect("the stand-in has a device").info().memory_peak_bytes_s)
    };
    let Some(of_clock) = peak("memory_clock 1600000") else { return };
    assert_eq!(of_clock, Some(25_600_000_000));
    // A controller at rest is no limit.
    assert_eq!(peak("memory_clock 12750"), Some(None));
    assert_eq!(peak("memory_clock 0"), Some(None));
}

/// The canary: a kernel that does nothing is in the report.
#[test]
fn the_script_for_a_gpu_ends_with_an_error_where_a_kernel_is_wrong() {
    let Some((run, report, _)) = script("skip rms_norm_f32") else { return };
    assert_eq!(run.code, 1, "{}{}", run.out, run.err);
    assert_eq!(report["steps"]["tests"], "failed", "{report}");
    assert_eq!(report["steps"]["bench-tiny"], "failed", "the self-test refuses: {report}");
    assert_eq!(report["steps"]["weights-tiny"], "ok", "{report}");
}
