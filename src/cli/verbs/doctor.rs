//! `jetforge doctor`: what this machine is, what would run where, and whether the model at hand
//! answers as it should.
//!
//! The self-test of the embedded model has a known answer: the tokens that llama.cpp chooses
//! greedily for the same prompt. Any other model is asked twice and must answer the same, because
//! the runtime promises the same bits for the same tokens; what the right answer is, only the
//! golden tests of the project know. An encoder embeds the prompt in the place of an answer.

use std::io::Write;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::{Value as Json, json};

use super::power::gpu_lines;
use crate::app::App;
use crate::base::format::bytes;
use crate::base::host::{Host, disk_free_bytes};
use crate::cli::args::ModelArgs;
use crate::cli::exit::CliError;
use crate::cli::prompt::{chat_tokens, message, raw_tokens};
use crate::cli::terminal::{ERROR, GOOD, STRONG, WARNING, load_bar, print_json, styled};
use crate::cli::{Context, describe, exit};
use crate::inference::{
    DeviceChoice, GenerateRequest, Isa, LoadOptions, Model, ModelSource, SamplerOptions, find_gpu,
};
use crate::power::Sensors;

/// Options of `doctor`.
#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// Do not load and test the model
    #[arg(long)]
    no_self_test: bool,
    /// As JSON
    #[arg(long)]
    json: bool,
    /// Where the kernel's files are looked for
    #[arg(long, hide = true, value_name = "DIR", default_value = "/")]
    root: PathBuf,
    #[command(flatten)]
    model: ModelArgs,
}

/// What the self-test asks for.
const PROMPT: &str = "write a quick sort example and print the sorted result";
/// Tokens that are compared.
const N_TOKENS: usize = 24;
/// What llama.cpp answers with the embedded model's own file, greedily, in as many tokens. The file
/// comes and goes with the model's.
const KNOWN_ANSWER: &str =
    include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/models/default.answer.txt"));
/// Tokens whose logits are computed again with plain arithmetic: few, since that is slow.
const N_PLAIN: usize = 2;

/// Free disk below which pulling a small model would fail.
const DISK_WARN_BYTES: u64 = 2 << 30;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Good,
    Warning,
    Bad,
    Fact,
}

struct Finding {
    key: &'static str,
    verdict: Verdict,
    text: String,
}

/// Looks at the machine and tests the model.
pub fn run(context: &Context, args: &DoctorArgs) -> anyhow::Result<u8> {
    let app = context.app(args.model.settings()?)?;
    let host = Host::read();
    let mut findings = machine(&host);
    findings.push(gpu(&app.load_options()));
    findings.push(gpu_sensors(&args.root));
    findings.extend(places(&app));
    let mut failure = None;
    if !args.no_self_test {
        match self_test(&app) {
            Ok(found) => findings.extend(found),
            Err(error) => {
                findings.push(bad("model", describe(&error)));
                failure = Some(error);
            }
        }
    }
    if args.json {
        print_json(&to_json(&host, &findings))?;
    } else {
        print(&findings)?;
    }
    if let Some(error) = failure {
        return Err(error);
    }
    let n_bad = findings.iter().filter(|f| f.verdict == Verdict::Bad).count();
    if n_bad > 0 {
        return Err(CliError::integrity(format!("{n_bad} findings are bad")).into());
    }
    Ok(exit::OK)
}

fn fact(key: &'static str, text: impl Into<String>) -> Finding {
    Finding { key, verdict: Verdict::Fact, text: text.into() }
}

fn bad(key: &'static str, text: impl Into<String>) -> Finding {
    Finding { key, verdict: Verdict::Bad, text: text.into() }
}

fn machine(host: &Host) -> Vec<Finding> {
    let name = if host.cpu_name.is_empty() { "processor" } else { &host.cpu_name };
    let limit = match host.memory_limit_bytes {
        Some(limit) => format!(", limited to {} by a control group", bytes(limit)),
        None => String::new(),
    };
    let is_fast = host.isa.contains(&"avx2") || host.isa.contains(&"neon");
    let kernels = if is_fast {
        "the CPU computes with vector instructions"
    } else {
        "the CPU computes without AVX2 or NEON: expect it to be slow"
    };
    vec![
        fact("system", format!("{}, {}, {}", host.kernel, host.libc, host.arch)),
        fact("processor", format!("{name}, {} threads", host.n_threads)),
        fact("instructions", host.isa.join(" ")),
        Finding {
            key: "kernels",
            verdict: if is_fast { Verdict::Good } else { Verdict::Warning },
            text: kernels.to_owned(),
        },
        fact(
            "memory",
            format!(
                "{} of {} free for models{limit}",
                bytes(host.memory_available_bytes),
                bytes(host.memory_total_bytes)
            ),
        ),
    ]
}

/// The GPU that there is. A machine without a driver is as it should be; a driver that answers with
/// an error is not.
fn gpu(options: &LoadOptions) -> Finding {
    let (verdict, text) = match find_gpu(options) {
        Ok(gpu) => (Verdict::Fact, gpu),
        Err(error) if error.is_no_driver() => (Verdict::Fact, format!("none: {error}")),
        Err(error) => (Verdict::Warning, error.to_string()),
    };
    Finding { key: "gpu", verdict, text }
}

/// What the GPUs tell of themselves, or why there is nothing.
fn gpu_sensors(root: &Path) -> Finding {
    let readings = Sensors::open(root).read();
    let told = gpu_lines(&readings);
    let is_of_gpu = |source: &str| source == "gpu" || source.contains("NVIDIA");
    let absent = readings.absent.iter().filter(|absent| is_of_gpu(&absent.source));
    let absent = absent.map(|absent| format!("no {}: {}", absent.source, absent.reason));
    fact("gpu sensors", told.into_iter().chain(absent).collect::<Vec<_>>().join("\n"))
}

fn places(app: &App) -> Vec<Finding> {
    let dir = app.store.dir();
    let free = disk_free_bytes(dir);
    let disk = match free {
        Some(free) => format!("{} free for models in {}", bytes(free), dir.display()),
        None => format!("free space in {} is not known", dir.display()),
    };
    let is_low = free.is_some_and(|free| free < DISK_WARN_BYTES);
    let files = match app.config_files.as_slice() {
        [] => format!("none read; {} would be", app.dirs.config.join("config.toml").display()),
        files => files.iter().map(|f| f.display().to_string()).collect::<Vec<_>>().join(", "),
    };
    let models = match app.store.list() {
        Ok(models) => {
            fact("models", format!("{} in the store, and the embedded one", models.len()))
        }
        Err(error) => bad("models", error.to_string()),
    };
    vec![
        Finding {
            key: "disk",
            verdict: if is_low { Verdict::Warning } else { Verdict::Fact },
            text: disk,
        },
        fact("configuration", files),
        fact("certificates", certificates()),
        models,
    ]
}

/// Where `pull` finds the authorities that it trusts.
fn certificates() -> String {
    const BUNDLES: [&str; 3] = [
        "/etc/ssl/certs/ca-certificates.crt",
        "/etc/pki/tls/certs/ca-bundle.crt",
        "/etc/ssl/cert.pem",
    ];
    match BUNDLES.into_iter().find(|path| Path::new(path).exists()) {
        Some(path) => path.to_owned(),
        None => "no bundle found; `pull` needs --ca-file or the package ca-certificates".to_owned(),
    }
}

fn self_test(app: &App) -> anyhow::Result<Vec<Finding>> {
    let source = app.model_source()?;
    let started = std::time::Instant::now();
    let mut model = load_bar(|progress| app.load(progress))?;
    let load_ms = started.elapsed().as_secs_f64() * 1e3;
    let mut findings = vec![
        fact("model", format!("{}, loaded in {load_ms:.0} ms", model.name())),
        runs_on(&model),
        fact("memory plan", model.memory_plan().to_string()),
    ];
    let is_causal = model.hparams().arch.causal;
    let ask = if is_causal { answer } else { embedding };
    let first = ask(&mut model, &source)?;
    let second = ask(&mut model, &source)?;
    let fast = if is_causal { Some(logits(&mut model, &source)?) } else { None };
    let is_on_gpu = model.device().name != "cpu";
    drop(model);
    let known = (source == ModelSource::Embedded).then_some(KNOWN_ANSWER);
    let test = |verdict, text: &str| Finding { key: "self-test", verdict, text: text.to_owned() };
    findings.push(match known {
        _ if first != second => {
            test(Verdict::Bad, &format!("two answers differ: {first:?} and {second:?}"))
        }
        Some(known) if first == known => test(Verdict::Good, "the answer is the known one, twice"),
        Some(known) => test(Verdict::Bad, &format!("the answer is {first:?}, expected {known:?}")),
        None => test(Verdict::Good, "the same answer twice; no known answer to compare with"),
    });
    if let Some(fast) = fast {
        findings.push(plain_test(app, &source, &fast, is_on_gpu)?);
    }
    Ok(findings)
}

/// What computes, and why that.
fn runs_on(model: &Model) -> Finding {
    let device = model.device();
    let verdict = if device.is_fallback { Verdict::Warning } else { Verdict::Fact };
    let text = format!("{}: {}", model.backend_name(), device.why);
    Finding { key: "runs on", verdict, text }
}

/// Loads the model once more for plain arithmetic. The CPU's kernels must come to the same bits, a
/// GPU's to nearly the same numbers: its products round their inputs in another way.
fn plain_test(
    app: &App,
    source: &ModelSource,
    fast: &[f32],
    is_on_gpu: bool,
) -> anyhow::Result<Finding> {
    let isa = Some(Isa::Scalar.name().to_owned());
    let device = DeviceChoice::Cpu;
    let options = LoadOptions { isa, device, n_ctx: Some(64), ..app.load_options() };
    let wrong = |error| App::inference(source, error);
    let mut model = Model::load(source, &options).map_err(wrong)?;
    let plain = logits(&mut model, source)?;
    let good = |text: &str| (Verdict::Good, text.to_owned());
    let bad = |text: &str| (Verdict::Bad, format!("{text}: do not trust answers"));
    let (verdict, text) = match distance(&plain, fast) {
        _ if !is_on_gpu && plain.iter().zip(fast).all(|(a, b)| a.to_bits() == b.to_bits()) => {
            good("the kernels and plain arithmetic agree in every bit")
        }
        _ if !is_on_gpu => bad("the kernels and plain arithmetic differ"),
        far if far <= GPU_DISTANCE_MAX => {
            good(&format!("the GPU is {:.1} % from plain arithmetic", 100.0 * far))
        }
        far => bad(&format!("the GPU is {:.1} % from plain arithmetic", 100.0 * far)),
    };
    Ok(Finding { key: "kernels", verdict, text })
}

/// How far logits may be from those of plain arithmetic, which rounds activations to 8 bits.
const GPU_DISTANCE_MAX: f64 = 0.05;

/// The root of the mean squared difference, as a share of the values' own.
fn distance(plain: &[f32], other: &[f32]) -> f64 {
    let square = |x: f32| f64::from(x) * f64::from(x);
    let far: f64 = plain.iter().zip(other).map(|(a, b)| square(a - b)).sum();
    let size: f64 = plain.iter().map(|a| square(*a)).sum();
    if far.is_finite() { (far / size.max(1e-30)).sqrt() } else { f64::INFINITY }
}

/// The logits of a few tokens.
fn logits(model: &mut Model, source: &ModelSource) -> anyhow::Result<Vec<f32>> {
    let tokens: Vec<_> = raw_tokens(model, PROMPT)?.into_iter().take(N_PLAIN).collect();
    Ok(model.logits(&tokens).map_err(|error| App::inference(source, error))?)
}

/// An encoder's answer, every bit of it.
fn embedding(model: &mut Model, source: &ModelSource) -> anyhow::Result<String> {
    let vector = model.embed(PROMPT, None).map_err(|error| App::inference(source, error))?;
    Ok(vector.iter().map(|x| format!("{:08x}", x.to_bits())).collect())
}

fn answer(model: &mut Model, source: &ModelSource) -> anyhow::Result<String> {
    let prompt = match model.chat_template() {
        Some(_) => chat_tokens(model, &[message("user", PROMPT)])?,
        None => raw_tokens(model, PROMPT)?,
    };
    let request = GenerateRequest {
        prompt,
        n_predict: Some(N_TOKENS),
        stop: Vec::new(),
        sampler: SamplerOptions::greedy(),
        n_probs: 0,
        ignore_eos: false,
    };
    let answer = model.generate(&request, &mut |_| ControlFlow::Continue(()));
    Ok(answer.map_err(|error| App::inference(source, error))?.text)
}

fn to_json(host: &Host, findings: &[Finding]) -> Json {
    let word = |verdict| match verdict {
        Verdict::Good => "good",
        Verdict::Warning => "warning",
        Verdict::Bad => "bad",
        Verdict::Fact => "fact",
    };
    let rows = findings
        .iter()
        .map(|f| json!({ "what": f.key, "verdict": word(f.verdict), "text": f.text }));
    let mut report = json!(host);
    report["findings"] = rows.collect();
    report
}

fn print(findings: &[Finding]) -> std::io::Result<()> {
    let mut out = anstream::stdout().lock();
    for Finding { key, verdict, text } in findings {
        let mark = match verdict {
            Verdict::Good => styled(GOOD, "ok  "),
            Verdict::Warning => styled(WARNING, "warn"),
            Verdict::Bad => styled(ERROR, "BAD "),
            Verdict::Fact => "    ".to_owned(),
        };
        let text = text.replace('\n', &format!("\n{:20}", ""));
        writeln!(out, "{mark} {} {text}", styled(STRONG, format!("{key:<14}")))?;
    }
    Ok(())
}
