//! Floor 7: arguments, terminal and progress; one file per verb.
//!
//! ```text
//! argv, environment -> args -> verb -> App -> rooms
//!                               |
//!                               +-> stdout: the answer     stderr: notes, bars     exit code
//! ```
//!
//! Only this room reads argv and the environment. A verb turns its options into settings, does its
//! work through [`App`], and returns an exit code or an error that has one.

mod args;
mod code;
mod crash;
mod exit;
mod interrupt;
mod llama_options;
mod prompt;
mod remote;
mod sampling_args;
mod screen;
mod terminal;
mod verbs;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Parser;

use crate::app::{App, Start};
use crate::base::config::Setting;
use crate::base::env::Env;
use crate::base::owner::become_owner_of;
use args::{Cli, Color, GlobalArgs, Verb};
use exit::CliError;

/// Runs the program and returns its exit code.
pub fn main() -> ExitCode {
    let args = match args::normalize(std::env::args_os()) {
        Ok(args) => args,
        Err(message) => {
            terminal::note(format!("{} {message}", terminal::styled(terminal::ERROR, "error:")));
            return ExitCode::from(exit::USAGE);
        }
    };
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are answers; everything else is wrong usage.
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { exit::USAGE } else { exit::OK });
        }
    };
    match cli.global.color {
        Color::Auto => {}
        Color::Always => anstream::ColorChoice::Always.write_global(),
        Color::Never => anstream::ColorChoice::Never.write_global(),
    }
    let context = Context { env: std::env::vars_os().collect(), global: cli.global };
    match run(&context, cli.verb) {
        Ok(code) => ExitCode::from(code),
        Err(error) if exit::is_broken_pipe(&error) => ExitCode::from(exit::OK),
        Err(error) => {
            // A service's words stand in it.
            let message = terminal::plain(&describe(&error));
            terminal::note(format!("{} {message}", terminal::styled(terminal::ERROR, "error:")));
            ExitCode::from(exit::code_of(&error))
        }
    }
}

fn run(context: &Context, verb: Verb) -> anyhow::Result<u8> {
    match verb {
        Verb::Generate(args) => verbs::generate::run(context, &args),
        Verb::Chat(args) => verbs::chat::run(context, &args),
        Verb::Inspect(args) => verbs::inspect::run(context, &args),
        Verb::Tokenize(args) => verbs::tokenize::run(context, &args),
        Verb::Perplexity(args) => verbs::perplexity::run(context, &args),
        Verb::Quantize(args) => verbs::quantize::run(context, &args),
        Verb::SetupModel(args) => verbs::setup_model::run(context, &args),
        Verb::Models(args) => verbs::models::run(context, &args),
        Verb::Pull(args) => verbs::pull::run(context, &args),
        Verb::Doctor(args) => verbs::doctor::run(context, &args),
        Verb::Bench(args) => verbs::bench::run(context, &args),
        Verb::Serve(args) => verbs::serve::run(context, &args),
        Verb::Hub(args) => verbs::hub::run(context, &args),
        Verb::Orchestrate(args) => verbs::hub::orchestrate(context, &args),
        Verb::Pair(args) => verbs::pair::run(context, &args),
        Verb::Setup(args) => verbs::setup::run(context, &args),
        Verb::Client(args) => verbs::client::run(context, &args),
        Verb::Warm(args) => verbs::warm::run(context, &args),
        Verb::Cache(args) => verbs::cache::run(context, &args),
        Verb::Key(args) => verbs::key::run(context, &args),
        Verb::Jobs(args) => verbs::jobs::run(context, &args),
        Verb::Sync(args) => verbs::sync::run(context, &args),
        Verb::Export(args) => verbs::export::export(context, &args),
        Verb::Import(args) => verbs::export::import(context, &args),
        Verb::Power(args) => verbs::power::run(context, &args),
        Verb::PowerHelper(args) => verbs::power_helper::run(context, &args),
        Verb::Monitor(args) => verbs::monitor::run(context, &args),
        Verb::Tune(args) => verbs::tune::run(context, &args),
        Verb::Config(args) => verbs::config::run(context, &args),
        Verb::FirstBoot(args) => verbs::first_boot::run(context, &args),
        Verb::Backup(args) => verbs::backup::backup(context, &args),
        Verb::Restore(args) => verbs::backup::restore(context, &args),
        Verb::Update(args) => verbs::update::run(context, &args),
        Verb::Support(args) => verbs::support::run(context, &args),
        Verb::Reset(args) => verbs::reset::run(context, &args),
        Verb::Completions(args) => verbs::completions::run(&args),
        Verb::Man(args) => verbs::man::run(&args),
    }
}

/// The error and its causes in one line; a cause that its effect already quotes is left out.
fn describe(error: &anyhow::Error) -> String {
    let mut text = error.to_string();
    for cause in error.chain().skip(1) {
        let cause = cause.to_string();
        if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}

/// What every verb starts from.
struct Context {
    env: Env,
    global: GlobalArgs,
}

impl Context {
    /// The program configured with the verb's options.
    fn app(&self, options: Vec<Setting>) -> anyhow::Result<App> {
        self.app_of(None, options)
    }

    /// The same for a verb that keeps something in the state and takes no files by name: if root
    /// calls it, it goes on as the user to whom the state belongs, who has to read it.
    fn app_of_state(&self, options: Vec<Setting>) -> anyhow::Result<App> {
        let app = self.app(options)?;
        self.own(&app)?;
        Ok(app)
    }

    /// Goes on as the user to whom the state belongs.
    fn own(&self, app: &App) -> anyhow::Result<()> {
        let state = &app.dirs.state;
        become_owner_of(state).with_context(|| format!("as the owner of {}", state.display()))
    }

    /// The program with the files of the configuration replaced by one.
    fn app_of(&self, file: Option<PathBuf>, options: Vec<Setting>) -> anyhow::Result<App> {
        let mut settings = Vec::new();
        for pair in &self.global.set {
            let (key, value) = pair
                .split_once('=')
                .ok_or_else(|| CliError::usage(format!("--set {pair}: use KEY=VALUE")))?;
            settings.push(Setting {
                key: key.trim().to_owned(),
                value: value.trim().into(),
                option: "--set".to_owned(),
            });
        }
        settings.extend(options);
        let named = self.env.get("JETFORGE_CONFIG").map(PathBuf::from);
        let config_file = file.or_else(|| self.global.config.clone()).or(named);
        let app = App::start(Start { env: &self.env, config_file, settings })?;
        for name in &self.global.ignored_option {
            terminal::warn(format!("{name} has no counterpart here and changes nothing"));
        }
        for variable in &app.settings.unknown_variables {
            terminal::warn(format!("the environment variable {variable} sets nothing"));
        }
        Ok(app)
    }
}
