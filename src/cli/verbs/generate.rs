//! `jetforge generate`: one prompt, one answer, streamed.
//!
//! The prompt goes through the model's chat template where it has one; `--raw` and fill-in-the-
//! middle go without. The answer goes to stdout as it comes, or as JSON, or only its code into a
//! file. Figures and notes go to stderr.

use std::io::Write;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::Context as _;
use clap::Args;
use serde_json::json;

use crate::app::App;
use crate::cli::args::ModelArgs;
use crate::cli::code::code_of;
use crate::cli::exit::CliError;
use crate::cli::interrupt::Interrupt;
use crate::cli::prompt::{chat_tokens, message, raw_tokens, read_text, unescape};
use crate::cli::sampling_args::SamplingArgs;
use crate::cli::terminal::{self, print_json, stdin_is_terminal};
use crate::cli::{Context, exit};
use crate::inference::{Finish, GenerateRequest, Generated, Model, TokenId};

/// Options of `generate`.
#[derive(Debug, Args)]
pub struct GenerateArgs {
    /// Prompt; `-` or nothing reads stdin
    #[arg(value_name = "PROMPT")]
    text: Option<String>,
    /// Prompt, as an option
    #[arg(short, long, value_name = "TEXT", conflicts_with = "text")]
    prompt: Option<String>,
    /// Prompt of a file; after PROMPT when both are given
    #[arg(short, long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// Turn \n, \t and the like in the prompt into the characters they stand for
    #[arg(short, long)]
    escape: bool,
    /// What the model is told about its role
    #[arg(long, alias = "sys", value_name = "TEXT")]
    system_prompt: Option<String>,
    /// What the model is told about its role, of a file
    #[arg(long, value_name = "FILE", conflicts_with = "system_prompt")]
    system_prompt_file: Option<PathBuf>,
    /// Complete the text without the chat template
    #[arg(long)]
    raw: bool,
    /// Fill in the middle: what stands before
    #[arg(long, value_name = "TEXT", conflicts_with_all = ["text", "prompt", "file"])]
    fim_prefix: Option<String>,
    /// Fill in the middle: what stands after
    #[arg(long, value_name = "TEXT", conflicts_with_all = ["text", "prompt", "file"])]
    fim_suffix: Option<String>,
    #[command(flatten)]
    limits: LimitArgs,
    /// Write the answer's code (its first fenced block, or all of it) to a file; `-` is stdout
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Print one JSON object at the end
    #[arg(long, conflicts_with = "output")]
    json: bool,
    /// Log probabilities of this many likeliest tokens, in the JSON object
    #[arg(long, value_name = "N", default_value_t = 0, requires = "json")]
    n_probs: usize,
    /// Print figures on stderr
    #[arg(short, long, visible_alias = "stats")]
    verbose: bool,
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    sampling: SamplingArgs,
}

/// Where an answer ends.
#[derive(Debug, Args)]
pub struct LimitArgs {
    /// Most tokens of the answer; -1 until the model ends it or the context is full
    #[arg(
        short, long, visible_aliases = ["max-tokens", "predict"],
        value_name = "N", allow_negative_numbers = true
    )]
    pub n_predict: Option<i64>,
    /// Text that ends the answer; may be given several times
    #[arg(short, long, visible_alias = "stop", value_name = "TEXT")]
    pub reverse_prompt: Vec<String>,
    /// Go on when the model wants to end
    #[arg(long)]
    pub ignore_eos: bool,
}

impl LimitArgs {
    /// A request for an answer to these tokens.
    pub fn request(&self, app: &App, prompt: Vec<TokenId>) -> anyhow::Result<GenerateRequest> {
        let source = app.model_source()?;
        Ok(GenerateRequest {
            prompt,
            n_predict: self.n_predict.and_then(|n| usize::try_from(n).ok()),
            stop: self.reverse_prompt.iter().map(|stop| unescape(stop)).collect(),
            sampler: app.sampling(&source),
            n_probs: 0,
            ignore_eos: self.ignore_eos,
        })
    }
}

/// Answers the prompt.
pub fn run(context: &Context, args: &GenerateArgs) -> anyhow::Result<u8> {
    let mut settings = args.model.settings()?;
    settings.extend(args.sampling.settings()?);
    let app = context.app(settings)?;
    let text = if is_fim(args) { String::new() } else { prompt_text(args)? };
    if let Some(path) = &args.output {
        check_folder(path)?;
    }
    let started = Instant::now();
    let source = app.model_source()?;
    let mut model = load(&app)?;
    let load_ms = started.elapsed().as_secs_f64() * 1e3;
    let prompt = prompt_tokens(&model, args, &text)?;
    let mut request = args.limits.request(&app, prompt)?;
    request.n_probs = args.n_probs;

    let interrupt = Interrupt::install().context("cannot watch for Ctrl-C")?;
    let is_streamed = !args.json && args.output.is_none();
    let mut stream = Stream::new(is_streamed, interrupt.clone());
    let result = model.generate(&request, &mut |piece| stream.push(piece));
    let answer = stream.finish().and(Ok(result))?;
    let answer = answer.map_err(|error| App::inference(&source, error))?;

    if args.json {
        print_json(&to_json(&model, &request, &answer, load_ms))?;
    }
    if let Some(path) = &args.output {
        write_code(path, &answer.text)?;
    }
    if args.verbose {
        print_stats(&model, &answer, Some(load_ms));
    }
    Ok(if interrupt.is_pending() { exit::INTERRUPTED } else { exit::OK })
}

/// Loads the configured model, and says what may make its answers bad.
pub fn load(app: &App) -> anyhow::Result<Model> {
    let model = terminal::load_bar(|progress| app.load(progress))?;
    terminal::tell_device(model.device());
    let (n_ctx, n_trained) = (model.n_ctx(), model.hparams().n_ctx_train);
    if n_ctx > n_trained {
        terminal::warn(format!(
            "a context of {n_ctx} positions, but the model was trained on {n_trained}: answers \
             past those get worse"
        ));
    }
    Ok(model)
}

/// Whether a file can be made there, before a long answer is lost.
fn check_folder(path: &Path) -> anyhow::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    match folder {
        Some(folder) if !folder.is_dir() => {
            let (path, folder) = (path.display(), folder.display());
            Err(CliError::usage(format!("--output {path}: {folder} is no directory")).into())
        }
        _ => Ok(()),
    }
}

fn is_fim(args: &GenerateArgs) -> bool {
    args.fim_prefix.is_some() || args.fim_suffix.is_some()
}

fn prompt_text(args: &GenerateArgs) -> anyhow::Result<String> {
    let given = args.text.as_ref().or(args.prompt.as_ref());
    let mut text = match (given.map(String::as_str), &args.file) {
        (Some("-"), _) => read_text(Path::new("-"))?,
        (None, None) if stdin_is_terminal() => {
            return Err(CliError::usage("give a prompt, --file FILE, or a text on stdin").into());
        }
        (None, None) => read_text(Path::new("-"))?,
        (Some(text), None) => text.to_owned(),
        (None, Some(file)) => read_text(file)?,
        (Some(text), Some(file)) => format!("{text}\n\n{}", read_text(file)?),
    };
    if args.escape {
        text = unescape(&text);
    }
    if text.trim().is_empty() && !args.raw {
        return Err(CliError::usage("the prompt is empty").into());
    }
    Ok(text)
}

fn prompt_tokens(model: &Model, args: &GenerateArgs, text: &str) -> anyhow::Result<Vec<TokenId>> {
    if is_fim(args) {
        let prefix = args.fim_prefix.as_deref().unwrap_or_default();
        let suffix = args.fim_suffix.as_deref().unwrap_or_default();
        let tokens =
            model.tokenizer().fim_prompt(&unescape_if(args, prefix), &unescape_if(args, suffix));
        return tokens.map_err(|error| CliError::model(error.to_string()).into());
    }
    if args.raw || model.chat_template().is_none() {
        return raw_tokens(model, text);
    }
    let system = match &args.system_prompt_file {
        Some(file) => Some(read_text(file)?),
        None => args.system_prompt.clone(),
    };
    let mut messages: Vec<_> = system.into_iter().map(|s| message("system", s)).collect();
    // The line end of a file or a pipe is not part of what was asked.
    messages.push(message("user", text.trim_end_matches(['\n', '\r'])));
    chat_tokens(model, &messages)
}

fn unescape_if(args: &GenerateArgs, text: &str) -> String {
    if args.escape { unescape(text) } else { text.to_owned() }
}

/// The answer on its way to stdout.
pub struct Stream {
    is_shown: bool,
    interrupt: Interrupt,
    error: Option<std::io::Error>,
    ends_with_newline: bool,
}

impl Stream {
    /// A stream that shows the answer, or only watches for Ctrl-C.
    pub fn new(is_shown: bool, interrupt: Interrupt) -> Stream {
        Stream { is_shown, interrupt, error: None, ends_with_newline: true }
    }

    /// Takes the next piece; breaks on Ctrl-C and when stdout is gone.
    pub fn push(&mut self, piece: &str) -> ControlFlow<()> {
        if self.is_shown && !piece.is_empty() {
            let mut out = std::io::stdout().lock();
            let written = out.write_all(piece.as_bytes()).and_then(|()| out.flush());
            if let Err(error) = written {
                self.error = Some(error);
                return ControlFlow::Break(());
            }
            self.ends_with_newline = piece.ends_with('\n');
        }
        match self.interrupt.is_pending() {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    }

    /// Ends the last line.
    ///
    /// # Errors
    /// When stdout could not be written.
    pub fn finish(self) -> std::io::Result<()> {
        match self.error {
            Some(error) => Err(error),
            None if self.is_shown && !self.ends_with_newline => writeln!(std::io::stdout()),
            None => Ok(()),
        }
    }
}

fn write_code(path: &Path, text: &str) -> anyhow::Result<()> {
    let code = code_of(text);
    if path == Path::new("-") {
        return Ok(std::io::stdout().write_all(code.as_bytes())?);
    }
    std::fs::write(path, &code).with_context(|| format!("cannot write {}", path.display()))?;
    terminal::note(format!("wrote {} lines to {}", code.lines().count(), path.display()));
    Ok(())
}

/// The reason in OpenAI's and llama.cpp's words.
pub fn finish_name(finish: &Finish) -> &'static str {
    match finish {
        Finish::Eog => "stop",
        Finish::Stop(_) => "stop_word",
        Finish::Length => "length",
        Finish::ContextFull => "context_full",
        Finish::TimeUp => "time_up",
        Finish::Indent => "indent",
        Finish::Canceled => "canceled",
    }
}

fn to_json(
    model: &Model,
    request: &GenerateRequest,
    answer: &Generated,
    load_ms: f64,
) -> serde_json::Value {
    let mut object = json!({
        "model": model.name(),
        "text": answer.text,
        "code": code_of(&answer.text),
        "finish": finish_name(&answer.finish),
        "n_prompt": answer.n_prompt,
        "n_cached": answer.n_cached,
        "n_generated": answer.tokens.len(),
        "tokens": answer.tokens,
        "seed": answer.seed,
        "timings": {
            "load_ms": load_ms,
            "prefill_ms": answer.prefill_ms,
            "decode_ms": answer.decode_ms,
        },
    });
    if let Finish::Stop(word) = &answer.finish {
        object["stop_word"] = json!(word);
    }
    if request.n_probs > 0 {
        let token = |id: TokenId, logprob: f32| {
            let piece =
                String::from_utf8_lossy(model.tokenizer().token_bytes(id, true)).into_owned();
            json!({ "id": id, "piece": piece, "logprob": logprob })
        };
        let rows = answer.tokens.iter().zip(&answer.probs).map(|(&id, probs)| {
            let mut row = token(id, probs.logprob);
            row["top"] = probs.top.iter().map(|&(id, logprob)| token(id, logprob)).collect();
            row
        });
        object["probs"] = rows.collect();
    }
    object
}

/// Figures of an answer on stderr; `load_ms` if the model was loaded for it.
pub fn print_stats(model: &Model, answer: &Generated, load_ms: Option<f64>) {
    let rate = |n: usize, ms: f64| if ms > 0.0 { n as f64 * 1e3 / ms } else { 0.0 };
    let n_fresh = answer.n_prompt.saturating_sub(answer.n_cached);
    let n_new = answer.tokens.len();
    let load = load_ms.map_or(String::new(), |ms| format!("load    {ms:9.1} ms\n"));
    terminal::note(format!(
        "\n{} on {}, context {}\n\
         {load}prefill {:9.1} ms  {n_fresh:5} tokens  {:8.1} tok/s  ({} cached)\n\
         decode  {:9.1} ms  {n_new:5} tokens  {:8.1} tok/s  (ended by {})",
        model.name(),
        model.backend_name(),
        model.n_ctx(),
        answer.prefill_ms,
        rate(n_fresh, answer.prefill_ms),
        answer.n_cached,
        answer.decode_ms,
        rate(n_new, answer.decode_ms),
        finish_name(&answer.finish),
    ));
}
