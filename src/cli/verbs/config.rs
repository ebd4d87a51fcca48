//! `jetforge config`: what is set, by whom, and where files are looked for.

use std::io::Write;
use std::path::PathBuf;

use clap::{Args, Subcommand};
use serde_json::json;

use crate::app::{App, ENV_PREFIX};
use crate::base::config::{Source, variable_name};
use crate::cli::terminal::{FAINT, STRONG, print_json, styled};
use crate::cli::{Context, exit};

/// Options of `config`.
#[derive(Debug, Args)]
pub struct ConfigArgs {
    #[command(subcommand)]
    what: Option<What>,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Show every key with its value and source
    Show {
        /// Only keys that somebody set
        #[arg(long)]
        changed: bool,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Check every file, variable and option, and say what is wrong with file and line
    Check {
        /// A file, with what is in FILE.d, in place of those that are read
        file: Option<PathBuf>,
    },
    /// Show the directories and the files that are read
    Paths {
        /// As JSON
        #[arg(long)]
        json: bool,
    },
}

/// Shows the configuration.
pub fn run(context: &Context, args: &ConfigArgs) -> anyhow::Result<u8> {
    let named = match &args.what {
        Some(What::Check { file }) => file.clone(),
        _ => None,
    };
    let app = context.app_of(named, Vec::new())?;
    match &args.what {
        None => show(&app, false, false)?,
        Some(What::Check { .. }) => check(&app)?,
        Some(What::Show { changed, json }) => show(&app, *changed, *json)?,
        Some(What::Paths { json }) => paths(&app, *json)?,
    }
    Ok(exit::OK)
}

/// What was wrong was said when the app was made; this is what is left to say.
fn check(app: &App) -> anyhow::Result<()> {
    let n_set = app.settings.iter().filter(|(_, _, source)| **source != Source::Default).count();
    let mut out = anstream::stdout().lock();
    for file in &app.config_files {
        writeln!(out, "{}: good", file.display())?;
    }
    writeln!(out, "{n_set} keys are set")?;
    Ok(())
}

fn show(app: &App, only_changed: bool, as_json: bool) -> anyhow::Result<()> {
    let rows =
        app.settings.iter().filter(|(_, _, source)| !only_changed || **source != Source::Default);
    if as_json {
        let keys: serde_json::Map<String, serde_json::Value> = rows
            .map(|(key, value, source)| {
                let row = json!({
                    "value": value,
                    "source": source.to_string(),
                    "variable": variable_name(ENV_PREFIX, key),
                });
                (key.to_owned(), row)
            })
            .collect();
        return Ok(print_json(&keys.into())?);
    }
    let mut out = anstream::stdout().lock();
    let mut section = "";
    for (key, value, source) in rows {
        let (head, name) = key.split_once('.').unwrap_or(("", key));
        if head != section {
            let gap = if section.is_empty() { "" } else { "\n" };
            writeln!(out, "{gap}{}", styled(STRONG, format!("[{head}]")))?;
            section = head;
        }
        let line = match value {
            Some(value) => format!("{name} = {}", show_value(value)),
            None => format!("# {name} is not set"),
        };
        match source {
            Source::Default => writeln!(out, "{}", styled(FAINT, line))?,
            source => writeln!(out, "{line:<40} {}", styled(FAINT, format!("# {source}")))?,
        }
    }
    Ok(())
}

/// TOML, with numbers that were single precision in their short form.
fn show_value(value: &toml::Value) -> String {
    match value {
        toml::Value::Float(x) if f64::from(*x as f32) == *x => format!("{:?}", *x as f32),
        toml::Value::Array(items) => {
            let items: Vec<String> = items.iter().map(show_value).collect();
            format!("[{}]", items.join(", "))
        }
        other => other.to_string(),
    }
}

fn paths(app: &App, as_json: bool) -> anyhow::Result<()> {
    let rows = [
        ("config", app.dirs.config.clone()),
        ("state", app.dirs.state.clone()),
        ("cache", app.dirs.cache.clone()),
        ("models", app.store.dir().to_owned()),
    ];
    if as_json {
        let mut object = json!({ "role": app.role.name(), "files": app.config_files });
        for (name, path) in rows {
            object[name] = json!(path);
        }
        return Ok(print_json(&object)?);
    }
    let mut out = anstream::stdout().lock();
    writeln!(out, "{:<8}{}", "role", app.role.name())?;
    for (name, path) in rows {
        writeln!(out, "{name:<8}{}", path.display())?;
    }
    if app.config_files.is_empty() {
        writeln!(out, "no configuration file was read")?;
    }
    for file in &app.config_files {
        writeln!(out, "{:<8}{}", "read", file.display())?;
    }
    Ok(())
}
