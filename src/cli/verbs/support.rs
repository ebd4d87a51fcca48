//! `jetforge support`: a file that tells others enough to help, and nothing that is nobody's
//! business.
//!
//! What goes in is listed here, one by one: versions, the machine, the keys of the configuration
//! that somebody set, sensors, names of models, counts. Of the configuration's texts only words out
//! of a few that are known show; addresses, paths and names are nobody's business. No prompt,
//! answer, key, hash of a key or file of the state goes in, and every text passes the filter of the
//! log on its way.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

use anyhow::Context as _;
use clap::Args;
use serde_json::{Value, json};

use crate::app::App;
use crate::base::config::Source;
use crate::base::host::Host;
use crate::base::tar::TarWriter;
use crate::cli::terminal;
use crate::cli::{Context, exit};
use crate::power::Sensors;
use crate::server::{KeyFile, redacted};

/// Keys whose text is a word of ours, or the name of a model.
const WORDS: [&str; 11] = [
    "model.device",
    "model.isa",
    "model.kv_type",
    "model.name",
    "power.compute",
    "power.profile",
    "power.supply",
    "server.log_format",
    "server.log_level",
    "server.pooling",
    "server.reasoning_format",
];
/// No word of ours is longer.
const WORD_LEN_MAX: usize = 64;

/// Options of `support`.
#[derive(Debug, Args)]
pub struct SupportArgs {
    /// The file to write, as tar reads it
    #[arg(value_name = "FILE", default_value = "jetforge-support.tar")]
    file: PathBuf,
}

/// Writes the file and says what is in it.
pub fn run(context: &Context, args: &SupportArgs) -> anyhow::Result<u8> {
    let app = context.app(Vec::new())?;
    let parts = [
        ("version.txt", version(&app)),
        ("machine.json", pretty(&json!(Host::read()))),
        ("config.json", pretty(&config(&app))),
        ("board.json", pretty(&board())),
        ("models.json", pretty(&models(&app))),
        ("state.json", pretty(&state(&app))),
    ];
    let write = || -> std::io::Result<()> {
        let mut options = File::options();
        let out = options.write(true).create(true).truncate(true).mode(0o600).open(&args.file)?;
        let mut tar = TarWriter::new(out);
        for (name, text) in &parts {
            let text: Vec<String> = text.lines().map(redacted).collect();
            let text = text.join("\n") + "\n";
            let name = format!("jetforge-support/{name}");
            tar.add(&name, 0o644, text.len() as u64, &mut text.as_bytes())?;
        }
        tar.finish()?.flush()
    };
    write().with_context(|| args.file.display().to_string())?;
    let names: Vec<&str> = parts.iter().map(|(name, _)| *name).collect();
    terminal::note(format!("{}: {}", args.file.display(), names.join(", ")));
    terminal::note("look at it before you give it away: `tar xOf` shows all of it");
    Ok(exit::OK)
}

fn pretty(value: &Value) -> String {
    serde_json::to_string_pretty(value).unwrap_or_default()
}

fn version(app: &App) -> String {
    let (version, arch) = (env!("CARGO_PKG_VERSION"), std::env::consts::ARCH);
    format!("jetforge {version} for {arch}, as a {}\n", app.role.name())
}

/// Keys that somebody set, with who did.
fn config(app: &App) -> Value {
    let set = app.settings.iter().filter(|(_, _, source)| **source != Source::Default);
    let shown = |(key, value, source): (&str, Option<&toml::Value>, &Source)| {
        let value = match value.is_some_and(|value| is_shown(key, value)) {
            true => json!(value),
            false => json!("(set)"),
        };
        (key.to_owned(), json!({"value": value, "source": source_of(source)}))
    };
    Value::Object(set.map(shown).collect())
}

/// Whether a value says nothing of anybody.
fn is_shown(key: &str, value: &toml::Value) -> bool {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_.:".contains(c);
    match value {
        toml::Value::Integer(_) | toml::Value::Float(_) | toml::Value::Boolean(_) => true,
        toml::Value::String(text) => {
            WORDS.contains(&key) && text.len() <= WORD_LEN_MAX && text.chars().all(is_plain)
        }
        toml::Value::Array(values) => values.iter().all(|value| is_shown("", value)),
        toml::Value::Datetime(_) | toml::Value::Table(_) => false,
    }
}

/// Where a value came from, without the folders of a file: they have a person's name in them.
fn source_of(source: &Source) -> String {
    match source {
        Source::File { path, line } => {
            format!("{}:{line}", path.file_name().unwrap_or_default().to_string_lossy())
        }
        source => source.to_string(),
    }
}

fn board() -> Value {
    let mut sensors = Sensors::open(std::path::Path::new("/"));
    let readings = sensors.read();
    json!({"board": sensors.board().name(), "readings": readings})
}

fn models(app: &App) -> Value {
    let model = |model: crate::library::StoredModel| {
        let n_bytes: u64 =
            model.files.iter().filter_map(|file| Some(std::fs::metadata(file).ok()?.len())).sum();
        json!({"name": model.name, "n_bytes": n_bytes})
    };
    json!(app.store.list().unwrap_or_default().into_iter().map(model).collect::<Vec<_>>())
}

/// How much there is of what is kept.
fn state(app: &App) -> Value {
    let sizes = |dir: &PathBuf| -> Value {
        let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
        let sizes = entries.filter_map(|entry| {
            let name = entry.file_name().to_string_lossy().into_owned();
            Some((name, json!(entry.metadata().ok()?.len())))
        });
        Value::Object(sizes.collect())
    };
    json!({
        "n_key": KeyFile::new(&app.dirs.state).list().map_or(0, |keys| keys.len()),
        "state_bytes": sizes(&app.dirs.state),
        "cache_bytes": sizes(&app.dirs.cache),
    })
}
