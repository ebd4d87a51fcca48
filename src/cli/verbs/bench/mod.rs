//! `jetforge bench`: what this machine does with a model, against what it could.
//!
//! Figures are medians of rounds with their spread. `memory` and `kernels` measure the machine by
//! itself; `--device` with the name of a board measures on that board, and elsewhere predicts from
//! a profile and says so.

mod advice;

use std::io::Write;
use std::path::PathBuf;

use anyhow::Context as _;
use clap::{Args, ValueEnum};
use indicatif::ProgressBar;
use serde_json::json;

use crate::app::App;
use crate::base::host::Host;
use crate::base::owner::as_owner_of;
use crate::bench::{self, Figure, Limits, Machine, Report, Tests, compare};
use crate::cli::args::ModelArgs;
use crate::cli::exit::CliError;
use crate::cli::terminal::{self, STRONG, steps_bar, styled, table};
use crate::cli::{Context, exit};
use crate::inference::{Isa, LoadOptions, ModelSource};
use crate::power::Sensors;
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
    /// Where the kernel's files are looked for
    #[arg(long, hide = true, value_name = "DIR", default_value = "/")]
    root: PathBuf,
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
    let mut tests = tests(args)?;
    let board = advice::board_named(&args.model)?;
    let mut settings = args.model.settings()?;
    settings.retain(|setting| match setting.key.as_str() {
        "model.name" => !args.is_all(),
        "model.device" => board.is_none(),
        _ => true,
    });
    let app = context.app(settings)?;
    let sensors = Sensors::open(&args.root);
    if let Some(board) = board.filter(|board| !board.is_here(sensors.board())) {
        return advice::judge(&app, args, &board.profile(), &tests.tasks);
    }
    tests.rooms.disk = Some(app.disk_cache_options().dir.join("bench"));
    tests.rooms.root.clone_from(&args.root);
    let load = app.load_options();
    let isa = Isa::choose(load.isa.as_deref())?;
    let host = Host::read();
    let n_threads = load.n_threads.unwrap_or(host.n_threads);
    let machine = machine(&host, isa, n_threads);
    let bar = steps_bar("bench");
    let session = Session { app: &app, args, machine, load, tests, bar };
    session.tell("limits of this machine");
    let n_rounds = session.tests.n_rounds;
    let measured = if let Some(probe) = args.probe {
        session.probe(probe, n_threads, isa)?
    } else {
        let limits = Limits::measure(n_threads, isa, n_rounds.min(3))?;
        if args.recommend {
            session.bar.finish_and_clear();
            let profile = advice::this_machine(&app, sensors.board(), limits, n_threads);
            return advice::judge(&app, args, &profile, &session.tests.tasks);
        }
        session.measure(&limits)?
    };
    session.bar.finish_and_clear();
    if let Some(path) = &args.html {
        std::fs::write(path, bench::page(&measured.reports))
            .with_context(|| format!("cannot write {}", path.display()))?;
        terminal::note(format!("wrote {}", path.display()));
    }
    let (n_failed, n_all) = (measured.n_failed, measured.reports.len());
    if n_failed > 0 {
        terminal::warn(format!("{n_failed} of {n_all} models were not measured, see above"));
        return Ok(exit::FAILURE);
    }
    Ok(exit::OK)
}

impl BenchArgs {
    /// Whether every model is meant.
    fn is_all(&self) -> bool {
        self.model.model.as_deref() == Some("all")
    }

    fn form(&self) -> Form {
        if self.json { Form::Json } else { self.output }
    }
}

/// What is measured with what, and where it is told.
struct Session<'a> {
    app: &'a App,
    args: &'a BenchArgs,
    machine: Machine,
    load: LoadOptions,
    tests: Tests,
    bar: ProgressBar,
}

/// What came out.
#[derive(Default)]
struct Measured {
    /// One for each model, also for those that only say why there is nothing.
    reports: Vec<Report>,
    n_failed: usize,
}

impl Session<'_> {
    fn tell(&self, what: &str) {
        self.bar.set_message(what.to_owned());
    }

    /// Prints a report, and leaves it for the history.
    fn report(&self, measured: &mut Measured, report: Report) -> anyhow::Result<()> {
        self.bar.suspend(|| print(&report, self.args.form()))?;
        remember(self.app, &report);
        measured.reports.push(report);
        Ok(())
    }

    fn probe(&self, probe: Probe, n_threads: usize, isa: Isa) -> anyhow::Result<Measured> {
        let n_rounds = self.tests.n_rounds;
        let figures = match probe {
            Probe::Memory => bench::memory(n_threads, n_rounds)?,
            Probe::Kernels => bench::kernels(n_threads, isa, n_rounds, &mut |w| self.tell(w))?,
        };
        let (machine, mut measured) = (self.machine.clone(), Measured::default());
        let report = Report { machine, model: None, figures, notes: Vec::new() };
        self.report(&mut measured, report)?;
        Ok(measured)
    }

    /// Measures the model, or one after another. Each is told of as soon as it is measured: what a
    /// later one does to the machine takes nothing back.
    fn measure(&self, limits: &Limits) -> anyhow::Result<Measured> {
        let is_all = self.args.is_all();
        let sources = if is_all { all_models(self.app)? } else { vec![self.app.model_source()?] };
        let mut measured = Measured::default();
        for source in sources {
            let (load, tests) = (&self.load, &self.tests);
            let result = bench::measure(&source, load, tests, limits, &mut |w| self.tell(w));
            let machine = self.machine.clone();
            match result {
                Ok((model, figures, notes)) => {
                    let report = Report { machine, model: Some(model), figures, notes };
                    self.report(&mut measured, report)?;
                }
                Err(error) if is_all => {
                    let why = format!("{source} was not measured: {error}");
                    self.bar.suspend(|| terminal::warn(&why));
                    let (figures, notes) = (Vec::new(), vec![why]);
                    measured.reports.push(Report { machine, model: None, figures, notes });
                    measured.n_failed += 1;
                }
                Err(error) => {
                    let context = format!("cannot measure {source}");
                    return Err(anyhow::Error::from(error).context(context));
                }
            }
        }
        Ok(measured)
    }
}

/// Leaves what was measured of a model for the history that the peers of this machine keep. A
/// machine without a store has none.
fn remember(app: &App, report: &Report) {
    let state = &app.dirs.state;
    let Some(model) = report.model.as_ref().filter(|_| state.join("state.db").exists()) else {
        return;
    };
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let now_ms = now.unwrap_or_default().as_millis();
    let figures = report.figures.iter().map(|figure| {
        let (test, unit, median) = (&figure.test, figure.unit.sign(), figure.median());
        json!({ "test": test, "unit": unit, "median": median, "values": figure.values })
    });
    let body = json!({
        "what": "bench",
        "measured_ms": now_ms as u64,
        "model": { "name": model.name, "bytes": model.file_bytes, "backend": model.backend },
        "machine": report.machine,
        "figures": figures.collect::<Vec<_>>(),
        "notes": report.notes,
    });
    let told = Told { kind: "report".to_owned(), name: format!("bench-{now_ms}"), body };
    let put = as_owner_of(state, || Spool::new(state).put(&told)).flatten();
    if let Err(error) = put {
        terminal::note(format!("note: the history does not get this: {error}"));
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

fn print(report: &Report, form: Form) -> anyhow::Result<()> {
    let mut out = anstream::stdout().lock();
    match form {
        Form::Json => {
            write!(out, "{}", bench::to_lines(report))?;
            report.notes.iter().for_each(terminal::note);
        }
        Form::Markdown => write!(out, "{}", bench::markdown(std::slice::from_ref(report)))?,
        Form::Table => {
            writeln!(out, "{}", styled(STRONG, bench::title(report)))?;
            writeln!(out, "{}", figure_table(&report.figures))?;
            report.notes.iter().for_each(terminal::note);
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
            if row.is_clear() { String::new() } else { "within the spread".to_owned() },
        ]);
    }
    let mut out = anstream::stdout().lock();
    writeln!(out, "{}", table(&rows))?;
    if n_alone > 0 {
        terminal::note(format!("{n_alone} figures stand in one of the files alone"));
    }
    Ok(exit::OK)
}
