//! `jetforge warm`: computes prefixes before anybody waits for them.
//!
//! ```text
//! system prompt   through the chat template, up to where the person's words begin
//! --raw           the text itself, as `/completion` reads it
//! ```
//!
//! The model is loaded here, runs each text once, and leaves its pages in the disk cache, where a
//! service with the same model and settings finds them, one that runs already as well.

use std::io::Write;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::bail;
use clap::Args;
use serde_json::json;

use crate::app::App;
use crate::cli::args::ModelArgs;
use crate::cli::exit::CliError;
use crate::cli::prompt::{chat_tokens, message, raw_tokens, read_text};
use crate::cli::terminal::{load_bar, print_json, tell_device};
use crate::cli::{Context, exit};
use crate::inference::{
    DiskCache, Engine, EngineOptions, Event, LoadOptions, Model, Request, Timings, TokenId,
};

/// How often the disk is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// Options of `warm`.
#[derive(Debug, Args)]
pub struct WarmArgs {
    /// Text files, each a system prompt; `-` reads stdin
    #[arg(value_name = "FILE", required = true)]
    files: Vec<PathBuf>,
    /// The files are beginnings of plain prompts, such as the context of a project
    #[arg(long)]
    raw: bool,
    /// As JSON, a line for each file
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    model: ModelArgs,
}

/// Computes and keeps.
pub fn run(context: &Context, args: &WarmArgs) -> anyhow::Result<u8> {
    let app = context.app_of_state(args.model.settings()?)?;
    let Some(disk) = app.open_disk_cache()? else {
        return Err(CliError::usage("the prefix cache is off: prefix_cache.enabled").into());
    };
    let source = app.model_source()?;
    let adapters = app.config().server.lora.clone();
    let options = LoadOptions { adapters, ..app.load_options_of(&source) };
    let model = load_bar(|progress| Model::load_counted(&source, &options, progress));
    let model = model.map_err(|error| App::inference(&source, error))?;
    tell_device(model.device());
    let mut prompts = Vec::with_capacity(args.files.len());
    for path in &args.files {
        let text = read_text(path)?;
        let prompt = if args.raw { raw_tokens(&model, &text) } else { system(&model, &text) };
        prompts.push((path, prompt?));
    }
    let engine = EngineOptions {
        disk_cache: Some(disk.clone()),
        n_disk_min: 1,
        keeps_everything: true,
        ..EngineOptions::default()
    };
    let engine = Engine::start(model, engine, Box::new(|_| ()))
        .map_err(|error| App::inference(&source, error))?;
    for (path, prompt) in prompts {
        let n_before = disk.stats().writes;
        let started = Instant::now();
        let timings = compute(&engine, prompt)?;
        settle(&engine, &disk);
        let stats = disk.stats();
        let n_written = stats.writes - n_before;
        let n_dropped =
            stats.drops_budget + stats.drops_space + stats.drops_failed + stats.drops_gone;
        let Timings { n_prompt, n_cached, .. } = timings;
        let seconds = started.elapsed().as_secs_f64();
        if args.json {
            print_json(&json!({
                "file": path.display().to_string(),
                "n_tokens": n_prompt,
                "n_cached": n_cached,
                "n_page_written": n_written,
                "n_page_dropped": n_dropped,
                "seconds": seconds,
            }))?;
        } else {
            let mut out = std::io::stdout().lock();
            let path = path.display();
            writeln!(
                out,
                "{path}: {n_prompt} tokens, {n_cached} were kept before, {n_written} pages \
                 written, {seconds:.1} s"
            )?;
        }
        if n_dropped > 0 {
            bail!(
                "{n_dropped} pages were not kept: the disk or the day's write budget has no room, \
                 or a file of the model cannot be read"
            );
        }
    }
    engine.stop(Duration::from_secs(1));
    Ok(exit::OK)
}

/// The tokens that a conversation with this system prompt begins with, whatever the person says.
fn system(model: &Model, text: &str) -> anyhow::Result<Vec<TokenId>> {
    let tokens = |words: &str| {
        chat_tokens(model, &[message("system", text.trim_end()), message("user", words)])
    };
    let (one, other) = (tokens("a")?, tokens("Zebra 9")?);
    let n = one.iter().zip(&other).take_while(|(a, b)| a == b).count();
    Ok(one[..n].to_vec())
}

fn compute(engine: &Engine, mut prompt: Vec<TokenId>) -> anyhow::Result<Timings> {
    // What is kept of a prompt ends before its last token, which is computed in any case.
    prompt.extend(prompt.last().copied());
    let n_adapter = engine.info().adapters().len();
    let adapters = (0..n_adapter).map(|adapter| (adapter, 1.0)).collect();
    let request = Request { prompt, n_predict: Some(0), adapters, ..Request::default() };
    let mut stream = engine.submit(request)?;
    let mut done = None;
    while let Some(event) = stream.recv() {
        match event {
            Event::Done { timings, .. } => done = Some(timings),
            Event::Failed(error) => bail!("{error}"),
            _ => {}
        }
    }
    let mut timings = done.unwrap_or_default();
    timings.n_prompt -= 1;
    Ok(timings)
}

/// Waits until everything is on the disk.
fn settle(engine: &Engine, disk: &DiskCache) {
    // A command is answered between two steps: what the last one did is counted by then.
    let _ = engine.slots().wait();
    while engine.stats().n_keeping > 0 || !disk.is_idle() {
        std::thread::sleep(LOOK_EVERY);
    }
}
