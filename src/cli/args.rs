//! The command line as a table: verbs, and the options that several verbs share.
//!
//! Options carry llama.cpp's names where it has one. An option only becomes a [`Setting`] of the
//! configuration; no verb reads a sampling option itself.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use super::exit::CliError;
use super::{llama_options, verbs};
use crate::base::config::Setting;

/// Writes code with a model that runs on this machine.
#[derive(Debug, Parser)]
#[command(name = "jetforge", version, arg_required_else_help = true, args_override_self = true)]
#[command(after_help = "Exit codes: 0 done, 1 failed, 2 usage, 3 model not found or unreadable, \
    4 does not fit, 5 network, 6 integrity, 7 nothing to wait for, 70 the engine broke, \
    130 interrupted.")]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub verb: Verb,
    /// Options of every verb.
    #[command(flatten)]
    pub global: GlobalArgs,
}

/// Options of every verb.
#[derive(Debug, Args)]
#[command(next_help_heading = "Everywhere")]
pub struct GlobalArgs {
    /// Configuration file, instead of those of the configuration directory
    #[arg(long, global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Set any configuration key, as in `--set model.n_ctx=2048`
    #[arg(long, global = true, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// Options of llama.cpp that have no counterpart
    #[arg(long, hide = true, global = true, value_name = "NAME")]
    pub ignored_option: Vec<String>,
    /// Colour on the terminal
    #[arg(long, global = true, value_name = "WHEN", default_value = "auto")]
    pub color: Color,
}

/// When to use colour.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Color {
    /// On a terminal, unless NO_COLOR is set.
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Answer one prompt
    #[command(visible_alias = "run")]
    Generate(verbs::generate::GenerateArgs),
    /// Talk with the model
    Chat(verbs::chat::ChatArgs),
    /// Show what a model file holds and whether it fits
    Inspect(verbs::inspect::InspectArgs),
    /// Show how a text becomes tokens, or tokens a text
    Tokenize(verbs::tokenize::TokenizeArgs),
    /// Measure how well a model predicts a text
    Perplexity(verbs::perplexity::PerplexityArgs),
    /// Make a smaller file of a model
    Quantize(Box<verbs::quantize::QuantizeArgs>),
    /// Get a model, make it small enough for a board, and keep how it is run there
    SetupModel(verbs::setup_model::SetupModelArgs),
    /// List, import, check and remove models
    Models(verbs::models::ModelsArgs),
    /// Download a model by its name in the catalog or by its address
    Pull(verbs::pull::PullArgs),
    /// Show what this machine can do, and test the model at hand
    Doctor(verbs::doctor::DoctorArgs),
    /// Measure what this machine does with a model
    #[command(visible_alias = "benchmark")]
    Bench(Box<verbs::bench::BenchArgs>),
    /// Serve models over HTTP, as OpenAI and llama.cpp do
    Serve(Box<verbs::serve::ServeArgs>),
    /// Serve appliances, servers outside and this machine's engine under one address
    Hub(Box<verbs::hub::HubArgs>),
    /// The hub under AutoCoder's name: --serve, or --prompt for one answer of a running one
    Orchestrate(Box<verbs::hub::OrchestrateArgs>),
    /// Show a code by which another machine can be paired with this one
    Pair(verbs::pair::PairArgs),
    /// Pair this machine with an appliance, by the code that it shows
    Setup(verbs::setup::SetupArgs),
    /// Ask a running hub or service, and stream its answer
    Client(verbs::client::ClientArgs),
    /// Compute system prompts and project context ahead, for the service to find on the disk
    Warm(verbs::warm::WarmArgs),
    /// Show or clear the prompts that outlive the service
    Cache(verbs::cache::CacheArgs),
    /// Make, list and revoke API keys of the service
    Key(verbs::key::KeyArgs),
    /// List, show, retry, cancel and watch jobs of a running service
    Jobs(verbs::jobs::JobsArgs),
    /// Show how this machine stands with those that it is paired with, and bring them together
    Sync(verbs::sync::SyncArgs),
    /// Write the jobs that are kept and what sync knows as JSON lines or SQL
    Export(verbs::export::ExportArgs),
    /// Read jobs and records that were exported as JSON lines
    Import(verbs::export::ImportArgs),
    /// Show heat, watts and clocks of this machine, or choose a power profile
    Power(verbs::power::PowerArgs),
    /// Set the board for the service, on lines of stdin
    #[command(hide = true)]
    PowerHelper(verbs::power_helper::PowerHelperArgs),
    /// Show the service and the board on one screen, anew every second
    Monitor(verbs::monitor::MonitorArgs),
    /// Set the system up for the appliance, or show how that would be done
    Tune(verbs::tune::TuneArgs),
    /// Show the configuration and where each value comes from
    Config(verbs::config::ConfigArgs),
    /// Make a fresh machine an appliance: its name, its model, a key and a code for its owner
    FirstBoot(verbs::first_boot::FirstBootArgs),
    /// Write keys, jobs, pairings and configuration into one file
    Backup(verbs::backup::BackupArgs),
    /// Bring a backup back
    Restore(verbs::backup::RestoreArgs),
    /// Bring a newer program from a file or a stick, try it, keep it or go back
    Update(verbs::update::UpdateArgs),
    /// Write a file without secrets that helps others to help
    Support(verbs::support::SupportArgs),
    /// Forget everything that this machine was told and made, as if it were new
    Reset(verbs::reset::ResetArgs),
    /// Print a shell's completions
    Completions(verbs::completions::CompletionsArgs),
    /// Write the manual pages into a folder
    #[command(hide = true)]
    Man(verbs::man::ManArgs),
}

/// The model and the room that it gets.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "Model")]
pub struct ModelArgs {
    /// Model: a GGUF file, a name in the store, or `default` for the embedded one
    #[arg(short, long, value_name = "FILE|NAME")]
    pub model: Option<String>,
    /// Positions of the context
    #[arg(short, long, value_name = "N")]
    pub ctx_size: Option<u32>,
    /// Most tokens of one step
    #[arg(short, long, value_name = "N")]
    pub batch_size: Option<u32>,
    /// Threads; -1 for as many as there are cores
    #[arg(short, long, value_name = "N", allow_negative_numbers = true)]
    pub threads: Option<i64>,
    /// Keep each thread on a core of its own: for a machine that does nothing else
    #[arg(long)]
    pub pin: bool,
    /// Instruction set of the kernels
    #[arg(long, value_name = "NAME")]
    pub isa: Option<String>,
    /// How keys and values are stored
    #[arg(long, value_name = "TYPE", value_parser = KV_TYPES)]
    pub kv_type: Option<String>,
    /// The same by llama.cpp's names, which must agree
    #[arg(long, hide = true, value_name = "TYPE", value_parser = KV_TYPES,
        conflicts_with = "kv_type", requires = "cache_type_v")]
    pub cache_type_k: Option<String>,
    /// The values' half of `--cache-type-k`
    #[arg(long, hide = true, value_name = "TYPE", value_parser = KV_TYPES,
        conflicts_with = "kv_type", requires = "cache_type_k")]
    pub cache_type_v: Option<String>,
    /// What computes: auto, cpu, cuda or cuda:N
    #[arg(long, value_name = "DEVICE")]
    pub device: Option<String>,
    /// Layers that a GPU has, from the end, the output counted as one; -1 for as many as fit
    #[arg(long, value_name = "N", value_parser = parse_gpu_layers,
        allow_negative_numbers = true)]
    pub n_gpu_layers: Option<i64>,
    /// Memory that the model may take, as in 900M or 3G
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub memory_max: Option<u64>,
}

impl ModelArgs {
    /// The options that were given, as settings.
    ///
    /// # Errors
    /// Keys and values of different types.
    pub fn settings(&self) -> Result<Vec<Setting>, CliError> {
        let size = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
        let mut settings = Vec::new();
        let mut add = |key: &str, option: &str, value: Option<toml::Value>| {
            settings.extend(value.map(|value| Setting {
                key: format!("model.{key}"),
                value,
                option: option.to_owned(),
            }));
        };
        add("name", "--model", self.model.clone().map(Into::into));
        // `-c 0` is llama.cpp's "what the model has", which is our default.
        add("n_ctx", "--ctx-size", self.ctx_size.filter(|n| *n > 0).map(Into::into));
        add("n_batch", "--batch-size", self.batch_size.map(Into::into));
        add("n_threads", "--threads", self.threads.filter(|n| *n >= 0).map(Into::into));
        add("pin_threads", "--pin", self.pin.then(|| true.into()));
        add("isa", "--isa", self.isa.clone().map(Into::into));
        add("device", "--device", self.device.clone().map(Into::into));
        let n_gpu_layers = self.n_gpu_layers.filter(|n| *n >= 0);
        add("n_gpu_layers", "--n-gpu-layers", n_gpu_layers.map(Into::into));
        add("kv_type", "--kv-type", self.kv_type.clone().map(Into::into));
        add("kv_type", "--cache-type-k", self.cache_type_k.clone().map(Into::into));
        add("memory_max_bytes", "--memory-max", self.memory_max.map(|n| size(n).into()));
        if self.cache_type_k != self.cache_type_v {
            let message = "--cache-type-k and --cache-type-v must be equal: keys and values are \
                           stored as one type";
            return Err(CliError::usage(message));
        }
        Ok(settings)
    }
}

/// A number of layers, or llama.cpp's words: `auto` for as many as fit, `all`.
fn parse_gpu_layers(text: &str) -> Result<i64, String> {
    match text {
        "auto" => Ok(-1),
        "all" => Ok(i64::from(u32::MAX)),
        _ => match text.parse::<i64>() {
            Ok(n) if (-1..=i64::from(u32::MAX)).contains(&n) => Ok(n),
            _ => Err("must be a number of layers, auto or all".to_owned()),
        },
    }
}

/// How keys and values can be stored.
const KV_TYPES: [&str; 4] = ["f16", "q8_0", "q4_0", "f32"];

/// `900M`, `3G`, `1024`: bytes, with binary units.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match text[digits.len()..].to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        _ => return Err("use a number with K, M or G".to_owned()),
    };
    let value: f64 = digits.parse().map_err(|_| "use a number with K, M or G".to_owned())?;
    let bytes = value * f64::from(1u32 << shift);
    if !(0.0..=1e15).contains(&bytes) {
        return Err("that is no size of memory".to_owned());
    }
    Ok(bytes as u64)
}

/// Arguments as llama.cpp's users write them, as clap wants them: those of verbs that it has
/// as well by the table of its options.
///
/// # Errors
/// An option of llama.cpp that is refused, and why.
pub fn normalize(args: impl IntoIterator<Item = OsString>) -> Result<Vec<OsString>, String> {
    let args: Vec<OsString> = args.into_iter().collect();
    let verb = verb_idx(&args).and_then(|idx| Some((idx, args[idx].to_str()?)));
    let Some((idx, verb)) = verb.filter(|(_, verb)| LIKE_LLAMA.contains(verb)) else {
        return Ok(normalize_plain(args));
    };
    let mut ours = normalize_plain(args[..=idx].iter().cloned());
    let rest = normalize_short(args[idx + 1..].iter().cloned());
    ours.extend(llama_options::translate(rest, &options_of(verb))?);
    Ok(ours)
}

/// Verbs that llama.cpp has as programs.
const LIKE_LLAMA: [&str; 4] = ["serve", "generate", "run", "chat"];

/// Every option of a verb, and those of all verbs.
fn options_of(verb: &str) -> llama_options::Options {
    let mut command = <Cli as clap::CommandFactory>::command();
    command.build();
    let mut options = llama_options::Options::new();
    let Some(verb) = command.find_subcommand(verb) else { return options };
    for arg in verb.get_arguments() {
        let has_value = arg.get_action().takes_values();
        let longs = arg.get_long().into_iter().chain(arg.get_all_aliases().unwrap_or_default());
        let names = longs.map(|long| format!("--{long}"));
        let shorts =
            arg.get_short().into_iter().chain(arg.get_all_short_aliases().unwrap_or_default());
        options.extend(names.chain(shorts.map(|c| format!("-{c}"))).map(|name| (name, has_value)));
    }
    options
}

/// Where the verb stands: the first argument that is neither an option nor an option's value.
fn verb_idx(args: &[OsString]) -> Option<usize> {
    let has_value = |arg: &OsString| ["--config", "--set", "--color"].iter().any(|o| arg == o);
    let mut idx = 1;
    while idx < args.len() {
        match args[idx].to_str() {
            Some(text) if text.starts_with('-') => {
                idx += if has_value(&args[idx]) { 2 } else { 1 };
            }
            _ => return Some(idx),
        }
    }
    None
}

/// `-sys` becomes `--system-prompt`: short options of more than one letter.
fn normalize_short(args: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    const SHORT: [(&str, &str); 2] =
        [("-sys", "--system-prompt"), ("-sysf", "--system-prompt-file")];
    let long = |arg: &OsString| SHORT.iter().find(|(short, _)| arg == short).map(|(_, long)| *long);
    let args = args.into_iter().map(|arg| long(&arg).map_or(arg, OsString::from));
    args.collect()
}

/// `--n_predict` becomes `--n-predict`.
fn normalize_plain(args: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let mut is_plain = false;
    args.into_iter()
        .map(|arg| {
            let Some(text) = arg.to_str().filter(|_| !is_plain) else {
                return arg;
            };
            if text == "--" {
                is_plain = true;
                return arg;
            }
            match text.strip_prefix("--") {
                Some(rest) => {
                    let (name, value) = match rest.split_once('=') {
                        Some((name, value)) => (name, format!("={value}")),
                        None => (rest, String::new()),
                    };
                    // A value such as a prompt that starts with two dashes has other letters.
                    let is_name =
                        name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b));
                    if is_name {
                        format!("--{}{value}", name.replace('_', "-")).into()
                    } else {
                        arg
                    }
                }
                None => arg,
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_of_verbs_is_sound() {
        <Cli as clap::CommandFactory>::command().debug_assert();
    }

    #[test]
    fn sizes_have_binary_units() {
        assert_eq!(parse_size("900M"), Ok(900 << 20));
        assert_eq!(parse_size("1.5g"), Ok(3 << 29));
        assert!(
            parse_size("many").is_err() && parse_size("-1").is_err() && parse_size("").is_err()
        );
    }

    #[test]
    fn options_of_serve_go_by_the_table_of_llama_server() {
        let args = ["x", "--color", "never", "serve", "-np", "2", "-fa", "on"].map(Into::into);
        let serve = ["x", "--color", "never", "serve", "--parallel", "2", "--ignored-option=-fa"];
        assert_eq!(normalize(args).unwrap(), serve);
    }

    #[test]
    fn llama_spellings_are_understood() {
        let args = ["x", "generate", "--top_k=4", "-sys", "a_b", "-tb", "4", "--", "--n_predict"];
        let plain = normalize(args.map(Into::into)).unwrap();
        let ours = ["x", "generate", "--top-k=4", "--system-prompt", "a_b", "--ignored-option=-tb"];
        assert_eq!(plain[..6], ours);
        assert_eq!(plain[6..], ["--", "--n_predict"]);
        let args = ["x", "inspect", "--ctx_size", "4"].map(Into::into);
        assert_eq!(normalize(args).unwrap(), ["x", "inspect", "--ctx-size", "4"]);
    }
}
