//! Which model suits a machine: this one, by its measured limits, or another by a profile.

use std::io::Write;

use serde_json::json;

use super::{BenchArgs, Form};
use crate::app::App;
use crate::bench::{Advice, Candidate, Limits, Profile, Task, Verdict, Work, advise, has_room};
use crate::cli::args::ModelArgs;
use crate::cli::exit::{self, CliError};
use crate::cli::terminal::{self, STRONG, print_json, styled, table};
use crate::inference::{DeviceChoice, Gguf, LoadOptions, plan_memory};
use crate::library::Board;
use crate::power;

/// A machine behind `--device`.
pub struct Named {
    board: Board,
    /// Whether the family is meant, of which the profile is that of its larger member.
    is_family: bool,
    profile: Profile,
}

impl Named {
    /// What is known of it.
    pub fn profile(self) -> Profile {
        self.profile
    }

    /// Whether it is this one, which then is measured.
    pub fn is_here(&self, here: &power::Board) -> bool {
        let is_small = self.board.name == "jetson-nano-2gb";
        self.profile.has_nano_gpu
            && here.is_nano()
            && (self.is_family || here.is_nano_2gb() == is_small)
    }
}

/// The machine behind `--device`, if that is none of this machine's devices.
///
/// # Errors
/// A name of neither.
pub fn board_named(args: &ModelArgs) -> Result<Option<Named>, CliError> {
    let name = args.device.as_deref().filter(|name| DeviceChoice::from_name(name).is_none());
    let Some(name) = name else { return Ok(None) };
    let is_family = name == "jetson-nano";
    let board = Board::find(if is_family { "jetson-nano-4gb" } else { name });
    let named = board.and_then(|board| {
        let profile = Profile::board(board.name, board.available_bytes())?;
        Some(Named { board, is_family, profile })
    });
    named.map(Some).ok_or_else(|| {
        let known = Board::ALL.map(|board| board.name).join(", ");
        CliError::usage(format!(
            "--device {name}: there is a profile of jetson-nano, {known}; auto, cpu and cuda:N \
             measure this machine"
        ))
    })
}

/// This machine as it was measured.
pub fn this_machine(app: &App, board: &power::Board, limits: Limits, n_threads: usize) -> Profile {
    let supply = app.config().power.supply_of(board);
    Profile {
        name: "this machine".to_owned(),
        limits,
        n_threads,
        power_mode: Profile::power_mode(board.is_nano(), supply.limit_mw()),
        available_bytes: app.memory_for_models(),
        has_nano_gpu: board.is_nano(),
        is_measured: true,
    }
}

/// Judges every model for a machine, and prints it; also how long tasks would take.
pub fn judge(app: &App, args: &BenchArgs, profile: &Profile, tasks: &[Task]) -> anyhow::Result<u8> {
    let unused = unused(args);
    if !unused.is_empty() {
        let unused = unused.join(", ");
        terminal::note(format!(
            "note: models are judged by arithmetic and not run, so {unused} changes nothing"
        ));
    }
    let advice = advise(profile, candidates(app, profile.available_bytes)?);
    match args.form() {
        Form::Json => print_lines(&advice, profile, tasks)?,
        Form::Table | Form::Markdown => print_tables(&advice, profile, tasks)?,
    }
    Ok(exit::OK)
}

/// Options that were given and are about measuring.
fn unused(args: &BenchArgs) -> Vec<&'static str> {
    let is_one = args.model.model.is_some() && !args.is_all();
    let given = [
        ("the probe", args.probe.is_some()),
        ("--model with one name", is_one),
        ("--n-prompt", args.n_prompt.is_some()),
        ("--n-gen", args.n_gen.is_some()),
        ("--n-depth", args.n_depth.is_some()),
        ("--streams", args.streams.is_some()),
        ("--quick", args.quick),
        ("--html", args.html.is_some()),
        ("--output markdown", args.form() == Form::Markdown),
    ];
    given.into_iter().filter(|(_, is_given)| *is_given).map(|(name, _)| name).collect()
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
        // What is not here shows no shapes.
        let fits = has_room(bytes, available_bytes);
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

/// One object for each model.
fn print_lines(advice: &Advice, profile: &Profile, tasks: &[Task]) -> std::io::Result<()> {
    for (i, verdict) in advice.verdicts.iter().enumerate() {
        let candidate = &verdict.candidate;
        let is_choice = advice.choice == Some(i);
        let seconds = tasks.iter().map(|task| (task.name.to_owned(), json!(verdict.seconds(task))));
        print_json(&json!({
            "machine": profile.name,
            "is_measured": profile.is_measured,
            "model": candidate.name,
            "is_here": candidate.is_here,
            "file_bytes": candidate.file_bytes,
            "decode_tok_s": verdict.decode,
            "prefill_tok_s": verdict.prefill,
            "gpu_decode_tok_s": verdict.gpu.map(|gpu| gpu.decode),
            "gpu_prefill_tok_s": verdict.gpu.map(|gpu| gpu.prefill),
            "task_s": seconds.collect::<serde_json::Map<_, _>>(),
            "against": verdict.against,
            "is_recommended": is_choice,
            "settings": if is_choice { advice.settings.as_slice() } else { &[] },
        }))?;
    }
    Ok(())
}

/// Seconds that each task takes with each model that works.
fn task_rows(verdicts: &[Verdict], tasks: &[Task]) -> Vec<Vec<String>> {
    let head = std::iter::once("model").chain(tasks.iter().map(|task| task.name));
    let mut rows = vec![head.map(str::to_owned).collect()];
    for verdict in verdicts.iter().filter(|verdict| verdict.against.is_none()) {
        let seconds = tasks.iter().map(|task| match verdict.seconds(task) {
            Some(seconds) => format!("{seconds:.1} s"),
            None => "does not fit".to_owned(),
        });
        rows.push(std::iter::once(verdict.candidate.name.clone()).chain(seconds).collect());
    }
    rows
}

/// Tables for people.
fn print_tables(advice: &Advice, profile: &Profile, tasks: &[Task]) -> std::io::Result<()> {
    let mut rows =
        vec![["model", "weights", "file", "decode", "prefill", ""].map(str::to_owned).to_vec()];
    if profile.has_nano_gpu {
        rows[0].splice(5..5, ["GPU decode", "GPU prefill"].map(str::to_owned));
    }
    for (i, verdict) in advice.verdicts.iter().enumerate() {
        let candidate = &verdict.candidate;
        let rate = |rate: Option<f64>| rate.map_or(String::new(), |r| format!("{r:.1} tok/s"));
        let word = match &verdict.against {
            Some(why) => why.as_str(),
            None if advice.choice == Some(i) => "recommended",
            None => "works",
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
        row.push(word.to_owned());
        rows.push(row);
    }
    let mut out = anstream::stdout().lock();
    let kind = if profile.is_measured { "measured limits" } else { "a prediction from a profile" };
    write!(out, "{}\n{}", styled(STRONG, format!("{}: {kind}", profile.name)), table(&rows))?;
    if !tasks.is_empty() {
        let rows = task_rows(&advice.verdicts, tasks);
        write!(out, "\nseconds until the last token:\n{}", table(&rows))?;
    }
    match advice.choice.map(|i| &advice.verdicts[i].candidate) {
        Some(choice) => {
            writeln!(out, "\n{}", styled(STRONG, &choice.name))?;
            advice.settings.iter().try_for_each(|line| writeln!(out, "{line}"))?;
        }
        None => writeln!(out, "\nno model fits this machine and is fast enough on it")?,
    }
    Ok(())
}
