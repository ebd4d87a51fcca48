//! `jetforge bench`: what this machine does with a model, against what it could.
//!
//! Figures are medians of rounds with their spread. `memory` and `kernels` measure the machine by
//! itself; `--device` predicts for a board from a profile and says so.

use std::io::Write;
use std::path::PathBuf;

use anyhow::Context as _;
use clap::{Args, ValueEnum};
use serde_json::json;

use crate::app::App;
use crate::base::host::Host;
use crate::base::owner::as_owner_of;
use crate::bench::{
    self, Advice, Candidate, Figure, Limits, Machine, Profile, Report, Tests, Work, advise, compare,
};
use crate::cli::args::ModelArgs;
use crate::cli::exit::CliError;
use crate::cli::terminal::{self, FAINT, GOOD, STRONG, steps_bar, styled, table};
use crate::cli::{Context, exit};
use crate::inference::{DeviceChoice, Gguf, Isa, LoadOptions, ModelSource, plan_memory};
use crate::library::Board;
use crate::sync::{Spool, Told};

/// Options of `bench`.
#[derive(Debug, Args)]
pub struct BenchArgs {
    /// Measure the machine alone, without a model
    #[arg(value_name = "PROBE")]
    probe: Option<Probe>,
    /// Lengths of prompts whose prefill is measured
    #[arg(short = 'p', long, value_name = "N,..", value_delimiter = ',')]
    n_prompt: Option<Vec<usize>>,
    /// Tokens that are generated
    #[arg(short = 'n', long, value_name = "N,..", value_delimiter = ',')]
    n_gen: Option<Vec<usize>>,
    /// Tokens that stand before those
    #[arg(short = 'd', long, value_name = "N,..", value_delimiter = ',')]
    n_depth: Option<Vec<usize>>,
    /// Answers written at the same time
    #[arg(long, value_name = "N,..", value_delimiter = ',')]
    streams: Option<Vec<usize>>,
    /// Whole tasks instead: code_generation
    #[arg(long, value_name = "NAME")]
    task: Option<String>,
    /// Rounds after one that warms up
    #[arg(short = 'r', long, value_name = "N", default_value_t = 5,
        value_parser = clap::value_parser!(u8).range(1..))]
    repetitions: u8,
    /// Leave out loading and times to the first token
    #[arg(long)]
    quick: bool,
    /// Say which model and settings suit the machine, with the arithmetic
    #[arg(long)]
    recommend: bool,
    /// Hold one report against another
    #[arg(long, num_args = 2, value_names = ["A", "B"],
        conflicts_with_all = ["probe", "task", "recommend"])]
    compare: Option<Vec<PathBuf>>,
    /// What is printed
    #[arg(short = 'o', long, value_name = "FORM", default_value = "table")]
    output: Form,
    /// The same as `--output json`
    #[arg(long, conflicts_with = "output")]
    json: bool,
    /// Write a page with plots as well
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    #[command(flatten)]
    model: ModelArgs,
}

/// What is measured without a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Probe {
    /// What memory gives to 1, 2 and more threads.
    Memory,
    /// What the kernels of each tensor type do.
    Kernels,
}

/// How figures are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Form {
    /// For people.
    Table,
    /// One line of JSON for each figure.
    Json,
    /// For documents.
    Markdown,
}

/// Measures, compares or advises.
pub fn run(context: &Context, args: &BenchArgs) -> anyhow::Result<u8> {
    if let Some(files) = &args.compare {
        return compare_files(&files[0], &files[1]);
    }
    let is_all = args.model.model.as_deref() == Some("all");
    let board_name = board_named(&args.model);
    let mut model = args.model.settings()?;
    model.retain(|setting| match setting.key.as_str() {
        "model.name" => !is_all,
        "model.device" => board_name.is_none(),
        _ => true,
    });
    let app = context.app(model)?;
    let mut tests = tests(args)?;
    tests.rooms.disk = Some(app.disk_cache_options().dir.join("bench"));
    let load = app.load_options();
    let isa = Isa::choose(load.isa.as_deref())?;
    let host = Host::read();
    let n_threads = load.n_threads.unwrap_or(host.n_threads);
    let machine = machine(&host, isa, n_threads);
    let device = board_name.map(board).transpose()?;
    if let Some((board, profile)) = device {
        return print_advice(
            &advise(&profile, candidates(&app, board.available_bytes())?),
            &profile,
        );
    }
    let bar = steps_bar("bench");
    let mut progress = |what: &str| bar.set_message(what.to_owned());
    progress("limits of this machine");
    let n_rounds = tests.n_rounds;
    let reports = if let Some(probe) = args.probe {
        let figures = match probe {
            Probe::Memory => bench::memory(n_threads, n_rounds)?,
            Probe::Kernels => bench::kernels(n_threads, isa, n_rounds, &mut progress)?,
        };
        vec![Report { machine, model: None, figures, notes: Vec::new() }]
    } else {
        let limits = Limits::measure(n_threads, isa, n_rounds.min(3))?;
        if args.recommend {
            bar.finish_and_clear();
            let profile = this_machine(limits, n_threads);
            let candidates = candidates(&app, app.memory_for_models())?;
            return print_advice(&advise(&profile, candidates), &profile);
        }
        let sources = if is_all { all_models(&app)? } else { vec![app.model_source()?] };
        let mut reports = Vec::new();
        for source in sources {
            let measured = bench::measure(&source, &load, &tests, &limits, &mut progress);
            let (model, figures, notes) =
                measured.with_context(|| format!("cannot measure {source}"))?;
            let machine = machine.clone();
            reports.push(Report { machine, model: Some(model), figures, notes });
        }
        reports
    };
    bar.finish_and_clear();
    remember(&app, &reports);
    if let Some(path) = &args.html {
        std::fs::write(path, bench::page(&reports))
            .with_context(|| format!("cannot write {}", path.display()))?;
        terminal::note(format!("wrote {}", path.display()));
    }
    print(&reports, if args.json { Form::Json } else { args.output })?;
    Ok(exit::OK)
}

/// Leaves what was measured of models for the history that the peers of this machine keep. A
/// machine without a store has none.
fn remember(app: &App, reports: &[Report]) {
    let state = &app.dirs.state;
    if !state.join("state.db").exists() {
        return;
    }
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let now_ms = now.unwrap_or_default().as_millis();
    for (n, report) in reports.iter().enumerate().filter(|(_, report)| report.model.is_some()) {
        let figures = report.figures.iter().map(|figure| {
            let (test, unit, median) = (&figure.test, figure.unit.sign(), figure.median());
            json!({ "test": test, "unit": unit, "median": median, "values": figure.values })
        });
        let model = report.model.as_ref().map(|model| {
            json!({ "name": model.name, "bytes": model.file_bytes, "backend": model.backend })
        });
        let body = json!({
            "what": "bench",
            "measured_ms": now_ms as u64,
            "model": model,
            "machine": report.machine,
            "figures": figures.collect::<Vec<_>>(),
            "notes": report.notes,
        });
        let told = Told { kind: "report".to_owned(), name: format!("bench-{now_ms}-{n}"), body };
        let put = as_owner_of(state, || Spool::new(state).put(&told)).flatten();
        if let Err(error) = put {
            terminal::note(format!("note: the history does not get this: {error}"));
        }
    }
}

fn tests(args: &BenchArgs) -> anyhow::Result<Tests> {
    let mut tests = Tests { n_rounds: usize::from(args.repetitions), ..Tests::default() };
    if let Some(name) = &args.task {
        let tasks = bench::find_tasks(name).ok_or_else(|| {
            CliError::usage(format!("--task {name}: there is `code_generation` only"))
        })?;
        let none = || Vec::new();
        tests = Tests { n_prompt: none(), n_generate: none(), n_streams: none(), ..tests };
        tests.tasks = tasks.to_vec();
        tests.ttft = false;
    }
    tests.n_prompt = args.n_prompt.clone().unwrap_or(tests.n_prompt);
    tests.n_generate = args.n_gen.clone().unwrap_or(tests.n_generate);
    tests.n_depth = args.n_depth.clone().unwrap_or(tests.n_depth);
    tests.n_streams = args.streams.clone().unwrap_or(tests.n_streams);
    if tests.n_prompt.contains(&0) || tests.n_generate.contains(&0) || tests.n_streams.contains(&0)
    {
        return Err(CliError::usage("lengths and streams must be at least 1").into());
    }
    tests.ttft &= !args.quick;
    tests.load &= !args.quick;
    tests.edit &= !args.quick;
    Ok(tests)
}

/// Every model of the store, and the embedded one.
fn all_models(app: &App) -> anyhow::Result<Vec<ModelSource>> {
    let mut sources = vec![ModelSource::Embedded];
    sources.extend(app.store.list()?.into_iter().map(|m| ModelSource::File(m.files[0].clone())));
    Ok(sources)
}

/// A board by its name, or by its family's: `jetson-nano` is the one with 4 GB.
/// What is said of this machine.
fn machine(host: &Host, isa: Isa, n_threads: usize) -> Machine {
    Machine {
        cpu: host.cpu_name.clone(),
        arch: host.arch.to_owned(),
        isa: isa.name().to_owned(),
        n_threads,
        kernel: host.kernel.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
    }
}

/// The name behind `--device` if it is a board's: a device of this machine computes.
fn board_named(args: &ModelArgs) -> Option<&str> {
    args.device.as_deref().filter(|name| DeviceChoice::from_name(name).is_none())
}

fn board(name: &str) -> anyhow::Result<(Board, Profile)> {
    let full = if name == "jetson-nano" { "jetson-nano-4gb" } else { name };
    Board::find(full).zip(Profile::board(full)).ok_or_else(|| {
        CliError::usage(format!(
            "--device {name}: there is a profile of jetson-nano, jetson-nano-4gb and \
             jetson-nano-2gb; auto, cpu and cuda:N measure this machine"
        ))
        .into()
    })
}

fn this_machine(limits: Limits, n_threads: usize) -> Profile {
    Profile {
        name: "this machine".to_owned(),
        limits,
        n_threads,
        power_mode: "nothing to set",
        has_nano_gpu: false,
        is_measured: true,
    }
}

/// The models of the store and of the catalog, with the context that fits into so much memory.
fn candidates(app: &App, available_bytes: u64) -> anyhow::Result<Vec<Candidate>> {
    let mut candidates = Vec::new();
    for model in app.store.list()? {
        let Ok(gguf) = Gguf::open(&model.files[0]) else { continue };
        let shapes =
            gguf.tensors().iter().map(|t| t.shape.iter().map(|&d| d as f64).product::<f64>());
        candidates.push(Candidate {
            name: model.name.clone(),
            n_params: shapes.sum(),
            file_bytes: gguf.file_bytes() as f64,
            n_ctx_fits: context_that_fits(&gguf, &app.load_options(), available_bytes),
            work: Work::of_file(&gguf),
            is_here: true,
        });
    }
    for entry in app.catalog()?.entries() {
        let is_here = entry.file_name().is_some_and(|file| app.store.find(&file).is_ok());
        let bytes = entry.size_bytes.max(entry.size_about_bytes);
        if is_here || bytes == 0 {
            continue;
        }
        // What is not here shows no shapes; a third of the weights is a generous KV cache.
        let fits = bytes + bytes / 3 + (96 << 20) < available_bytes;
        candidates.push(Candidate {
            name: entry.name.clone(),
            n_params: f64::from(entry.params_m) * 1e6,
            file_bytes: bytes as f64,
            n_ctx_fits: if fits { 4096 } else { 0 },
            work: Work::of_size(f64::from(entry.params_m) * 1e6, bytes as f64),
            is_here: false,
        });
    }
    Ok(candidates)
}

/// The largest of the usual contexts that fits.
fn context_that_fits(gguf: &Gguf, load: &LoadOptions, available_bytes: u64) -> u32 {
    let fits = |n_ctx: &u32| {
        let load = LoadOptions { n_ctx: Some(*n_ctx), device: DeviceChoice::Cpu, ..load.clone() };
        plan_memory(gguf, &load, available_bytes).is_ok()
    };
    [32_768, 16_384, 8192, 4096, 2048, 1024, 512].into_iter().find(fits).unwrap_or(0)
}

fn print_advice(advice: &Advice, profile: &Profile) -> anyhow::Result<u8> {
    let mut rows =
        vec![["model", "weights", "file", "decode", "prefill", ""].map(str::to_owned).to_vec()];
    if profile.has_nano_gpu {
        rows[0].splice(5..5, ["GPU decode", "GPU prefill"].map(str::to_owned));
    }
    for (i, verdict) in advice.verdicts.iter().enumerate() {
        let candidate = &verdict.candidate;
        let rate = |rate: Option<f64>| rate.map_or(String::new(), |r| format!("{r:.1} tok/s"));
        let word = match &verdict.against {
            Some(why) => styled(FAINT, why),
            None if advice.choice == Some(i) => styled(GOOD, "recommended"),
            None => "works".to_owned(),
        };
        let here = if candidate.is_here { "" } else { " (to pull)" };
        let mut row = Vec::from([
            format!("{}{here}", candidate.name),
            format!("{:.2}e9", candidate.n_params / 1e9),
            format!("{:.2} GB", candidate.file_bytes / 1e9),
            rate(Some(verdict.decode)),
            rate(verdict.prefill),
        ]);
        if let Some(gpu) = verdict.gpu {
            row.extend([rate(Some(gpu.decode)), rate(Some(gpu.prefill))]);
        }
        row.push(word);
        rows.push(row);
    }
    let mut out = anstream::stdout().lock();
    let kind = if profile.is_measured { "measured limits" } else { "a prediction from a profile" };
    writeln!(out, "{}\n{}", styled(STRONG, format!("{}: {kind}", profile.name)), table(&rows))?;
    match advice.choice.map(|i| &advice.verdicts[i].candidate) {
        Some(choice) => {
            writeln!(out, "\n{}", styled(STRONG, &choice.name))?;
            advice.settings.iter().try_for_each(|line| writeln!(out, "{line}"))?;
        }
        None => writeln!(out, "\nno model fits this machine and is fast enough on it")?,
    }
    Ok(exit::OK)
}

fn print(reports: &[Report], form: Form) -> anyhow::Result<()> {
    let mut out = anstream::stdout().lock();
    match form {
        Form::Json => {
            for report in reports {
                write!(out, "{}", bench::to_lines(report))?;
                report.notes.iter().for_each(terminal::note);
            }
        }
        Form::Markdown => write!(out, "{}", bench::markdown(reports))?,
        Form::Table => {
            for report in reports {
                writeln!(out, "{}", styled(STRONG, bench::title(report)))?;
                writeln!(out, "{}", figure_table(&report.figures))?;
                report.notes.iter().for_each(terminal::note);
            }
        }
    }
    Ok(())
}

fn figure_table(figures: &[Figure]) -> String {
    table(&bench::table(figures))
}

fn compare_files(first: &PathBuf, second: &PathBuf) -> anyhow::Result<u8> {
    let read = |path: &PathBuf| -> anyhow::Result<_> {
        let text = std::fs::read_to_string(path)
            .map_err(|error| CliError::usage(format!("{}: {error}", path.display())))?;
        bench::read_lines(&text).with_context(|| path.display().to_string())
    };
    let (compared, n_alone) = compare(&read(first)?, &read(second)?);
    let mut rows =
        vec![["test", "A", "B", "B is better by", "between", ""].map(str::to_owned).to_vec()];
    for row in &compared {
        let sign = row.unit.sign();
        rows.push(vec![
            row.test.clone(),
            format!("{:.2} {sign}", row.medians.0),
            format!("{:.2} {sign}", row.medians.1),
            format!("{:.2}", row.ratio),
            format!("{:.2} - {:.2}", row.spread.0, row.spread.1),
            if row.is_clear() { String::new() } else { styled(FAINT, "within the spread") },
        ]);
    }
    let mut out = anstream::stdout().lock();
    writeln!(out, "{}", table(&rows))?;
    if n_alone > 0 {
        terminal::note(format!("{n_alone} figures stand in one of the files alone"));
    }
    Ok(exit::OK)
}
