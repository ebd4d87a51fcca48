//! `jetforge chat`: a conversation that remembers.
//!
//! ```text
//! a line                 is a turn
//! a line ending in \     goes on in the next
//! """ ... """            is a turn of many lines
//! /help /clear /system TEXT /stats /exit
//! ```
//!
//! Ctrl-C stops an answer and keeps what came; at the prompt it says how to leave. When the
//! conversation outgrows the context, its oldest turns are forgotten, and that is said.

use std::io::{BufRead, Write};

use anyhow::Context as _;
use clap::Args;

use super::generate::{LimitArgs, Stream, load, print_stats};
use crate::app::App;
use crate::cli::args::ModelArgs;
use crate::cli::exit::CliError;
use crate::cli::interrupt::Interrupt;
use crate::cli::prompt::{chat_tokens, message, read_text};
use crate::cli::sampling_args::SamplingArgs;
use crate::cli::terminal::{self, FAINT, STRONG, stdin_is_terminal, styled};
use crate::cli::{Context, exit};
use crate::inference::{Finish, InferenceError, Message, Model, ModelSource, TokenId};

/// Options of `chat`.
#[derive(Debug, Args)]
pub struct ChatArgs {
    /// What the model is told about its role
    #[arg(long, alias = "sys", value_name = "TEXT")]
    system_prompt: Option<String>,
    /// What the model is told about its role, of a file
    #[arg(long, value_name = "FILE", conflicts_with = "system_prompt")]
    system_prompt_file: Option<std::path::PathBuf>,
    /// Print figures after each answer
    #[arg(short, long, visible_alias = "stats")]
    verbose: bool,
    #[command(flatten)]
    limits: LimitArgs,
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    sampling: SamplingArgs,
}

/// Room for an answer that the oldest turns give way to, as a part of the context.
const ANSWER_SHARE: usize = 4;

const HELP: &str = "\
/help          this
/clear         forget the conversation
/system TEXT   tell the model about its role, and forget the conversation
/stats         figures after each answer, on and off
/exit          leave (so does Ctrl-D)
A line that ends in \\ goes on in the next; \"\"\" starts and ends a text of many lines.
Ctrl-C stops an answer.";

/// Talks until the person leaves.
pub fn run(context: &Context, args: &ChatArgs) -> anyhow::Result<u8> {
    let mut settings = args.model.settings()?;
    settings.extend(args.sampling.settings()?);
    let app = context.app(settings)?;
    let system = match &args.system_prompt_file {
        Some(file) => Some(read_text(file)?),
        None => args.system_prompt.clone(),
    };
    let source = app.model_source()?;
    let model = load(&app)?;
    if !model.hparams().arch.causal {
        return Err(App::inference(&source, InferenceError::NotGenerative).into());
    }
    if model.chat_template().is_none() {
        let name = model.name();
        let message = format!("{name} has no chat template; `generate` completes text with it");
        return Err(CliError::model(message).into());
    }
    let interrupt = Interrupt::install().context("cannot watch for Ctrl-C")?;
    let is_person = stdin_is_terminal();
    if is_person {
        let line = format!("{}, context {}; /help helps", model.name(), model.n_ctx());
        terminal::note(styled(FAINT, line));
    }
    let mut chat = Chat {
        app,
        source,
        model,
        interrupt,
        system,
        turns: Vec::new(),
        shows_stats: args.verbose,
        is_person,
    };
    let stdin = std::io::stdin();
    let mut input = stdin.lock();
    while let Some(text) = chat.read_turn(&mut input)? {
        match text.trim() {
            "" => {}
            "/exit" | "/quit" | "/bye" => break,
            command if command.starts_with('/') && !command.contains('\n') => chat.command(command),
            _ => chat.answer(text, &args.limits)?,
        }
    }
    Ok(exit::OK)
}

struct Chat {
    app: App,
    source: ModelSource,
    model: Model,
    interrupt: Interrupt,
    system: Option<String>,
    /// Turns of the person and the model, in order.
    turns: Vec<Message>,
    shows_stats: bool,
    is_person: bool,
}

impl Chat {
    /// The next turn, `None` at the end of the input.
    fn read_turn(&self, input: &mut impl BufRead) -> anyhow::Result<Option<String>> {
        self.interrupt.take();
        self.interrupt.set_idle(self.is_person);
        let text = read_turn(input, |is_first| self.show_prompt(is_first));
        self.interrupt.set_idle(false);
        self.interrupt.take();
        text.context("cannot read stdin")
    }

    fn show_prompt(&self, is_first: bool) {
        if self.is_person {
            let mark = if is_first { "> " } else { "| " };
            let mut err = anstream::stderr();
            let _ = write!(err, "{}", styled(STRONG, mark));
            let _ = err.flush();
        }
    }

    fn command(&mut self, command: &str) {
        let (name, rest) = command.split_once(' ').unwrap_or((command, ""));
        match name {
            "/help" => terminal::note(HELP),
            "/clear" => self.forget(),
            "/system" => {
                self.system = Some(rest.trim().to_owned()).filter(|s| !s.is_empty());
                self.forget();
            }
            "/stats" => {
                self.shows_stats = !self.shows_stats;
                let state = if self.shows_stats { "on" } else { "off" };
                terminal::note(styled(FAINT, format!("(figures are {state})")));
            }
            _ => terminal::note(format!("no command {name}; /help lists them")),
        }
    }

    fn forget(&mut self) {
        self.turns.clear();
        terminal::note(styled(FAINT, "(the conversation is forgotten)"));
    }

    fn answer(&mut self, text: String, limits: &LimitArgs) -> anyhow::Result<()> {
        self.turns.push(message("user", text));
        let prompt = match self.fitting_prompt() {
            Ok(prompt) => prompt,
            Err(error) => {
                self.turns.pop();
                terminal::warn(format!("{error:#}"));
                return Ok(());
            }
        };
        let request = limits.request(&self.app, prompt)?;
        let mut stream = Stream::new(true, self.interrupt.clone());
        let result = self.model.generate(&request, &mut |piece| stream.push(piece));
        stream.finish()?;
        let answer = match result {
            Ok(answer) => answer,
            Err(error) => {
                self.turns.pop();
                terminal::warn(App::inference(&self.source, error));
                return Ok(());
            }
        };
        if self.interrupt.take() {
            terminal::note(styled(FAINT, "(stopped)"));
        }
        if answer.finish == Finish::ContextFull {
            terminal::note(styled(FAINT, "(the context is full; /clear makes room)"));
        }
        if self.shows_stats {
            print_stats(&self.model, &answer, None);
        }
        self.turns.push(message("assistant", answer.text));
        Ok(())
    }

    /// The conversation's tokens, after forgetting as many of the oldest turns as needed to leave
    /// room for an answer.
    fn fitting_prompt(&mut self) -> anyhow::Result<Vec<TokenId>> {
        let n_ctx = self.model.n_ctx();
        let max = n_ctx - n_ctx / ANSWER_SHARE;
        let mut n_forgotten = 0;
        loop {
            let system = self.system.iter().map(|s| message("system", s.as_str()));
            let messages: Vec<Message> = system.chain(self.turns.iter().cloned()).collect();
            let tokens = chat_tokens(&self.model, &messages)?;
            if tokens.len() <= max {
                if n_forgotten > 0 {
                    let line = format!("(the oldest {n_forgotten} turns are forgotten)");
                    terminal::note(styled(FAINT, line));
                }
                return Ok(tokens);
            }
            if self.turns.len() < 3 {
                let n = tokens.len();
                let text =
                    format!("the message has {n} tokens; the context takes {max} and an answer");
                return Err(CliError::no_room(text).into());
            }
            // A question and its answer go together, so that roles keep alternating.
            self.turns.drain(..2);
            n_forgotten += 2;
        }
    }
}

/// Reads lines until a turn is whole. `prompt` is told whether the line is the turn's first.
fn read_turn(
    input: &mut impl BufRead,
    mut prompt: impl FnMut(bool),
) -> std::io::Result<Option<String>> {
    const BLOCK: &str = "\"\"\"";
    let mut text = String::new();
    let mut is_block = false;
    let mut is_first = true;
    loop {
        prompt(is_first);
        let mut line = String::new();
        if input.read_line(&mut line)? == 0 {
            return Ok((!is_first).then_some(text));
        }
        let mut line = line.trim_end_matches(['\n', '\r']);
        if is_first && let Some(rest) = line.trim_start().strip_prefix(BLOCK) {
            is_block = true;
            line = rest;
        }
        is_first = false;
        if is_block {
            if let Some(before) = line.trim_end().strip_suffix(BLOCK) {
                text.push_str(before);
                return Ok(Some(text.trim_end_matches('\n').to_owned()));
            }
            if !(text.is_empty() && line.is_empty()) {
                text.push_str(line);
                text.push('\n');
            }
            continue;
        }
        match line.strip_suffix('\\') {
            Some(part) => {
                text.push_str(part);
                text.push('\n');
            }
            None => {
                text.push_str(line);
                return Ok(Some(text));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn turns(input: &str) -> Vec<String> {
        let mut input = input.as_bytes();
        std::iter::from_fn(|| read_turn(&mut input, |_| {}).unwrap()).collect()
    }

    #[test]
    fn turns_of_one_and_many_lines() {
        assert_eq!(turns("a\nb\r\n"), ["a", "b"]);
        assert_eq!(turns("a\\\nb\nc"), ["a\nb", "c"]);
        assert_eq!(turns("\"\"\"\nx = 1\n\ny\n\"\"\"\nz\n"), ["x = 1\n\ny", "z"]);
        assert_eq!(turns("\"\"\"one\"\"\"\n"), ["one"]);
        assert_eq!(turns("\"\"\"cut\n"), ["cut\n"]);
        assert_eq!(turns(""), Vec::<String>::new());
    }
}
