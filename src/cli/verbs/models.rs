//! `jetforge models`: what is in the store, and what could be.

use std::io::Write;
use std::path::PathBuf;

use clap::{Args, Subcommand};
use serde_json::json;

use crate::app::{App, EMBEDDED_NAME};
use crate::base::format::bytes;
use crate::base::owner::become_owner_of;
use crate::cli::exit::CliError;
use crate::cli::terminal::{self, FAINT, GOOD, STRONG, bytes_bar, print_json, styled, table};
use crate::cli::{Context, exit};
use crate::inference::EMBEDDED_MODEL;
use crate::library::{Incoming, LibraryError, StoredModel, Verified};

/// Options of `models`.
#[derive(Debug, Args)]
pub struct ModelsArgs {
    #[command(subcommand)]
    what: Option<What>,
}

#[derive(Debug, Subcommand)]
enum What {
    /// List the models of this machine
    #[command(visible_alias = "ls")]
    List {
        /// List what `pull` knows instead
        #[arg(long)]
        available: bool,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Copy a model from a path or a USB stick into the store
    #[command(visible_alias = "add")]
    Import {
        /// GGUF file; of a split model any shard
        path: PathBuf,
        /// Replace a model of the same name
        #[arg(long)]
        force: bool,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Read every byte of models and compare it with the records
    Verify {
        /// Models; all of them when none is named
        names: Vec<String>,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Delete models
    #[command(visible_alias = "rm")]
    Remove {
        /// Models
        #[arg(required = true)]
        names: Vec<String>,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
}

/// Does what is asked with the store.
pub fn run(context: &Context, args: &ModelsArgs) -> anyhow::Result<u8> {
    let app = context.app(Vec::new())?;
    // What is brought is for who calls to read; the store is its owner's.
    if !matches!(args.what, Some(What::Import { .. })) {
        become_owner_of(app.store.dir())?;
    }
    match &args.what {
        None => list(&app, false)?,
        Some(What::List { available: false, json }) => list(&app, *json)?,
        Some(What::List { available: true, json }) => available(&app, *json)?,
        Some(What::Import { path, force, json }) => import(&app, path, *force, *json)?,
        Some(What::Verify { names, json }) => return verify(&app, names, *json),
        Some(What::Remove { names, json }) => {
            let models = names.iter().map(|n| app.store.find(n)).collect::<Result<Vec<_>, _>>()?;
            for model in &models {
                app.store.remove(model)?;
                terminal::note(format!("removed {} ({})", model.name, bytes(model.size_bytes)));
            }
            if *json {
                print_json(&json!({ "removed": models.iter().map(brief).collect::<Vec<_>>() }))?;
            }
        }
    }
    Ok(exit::OK)
}

/// A model of the store in a few words.
fn brief(model: &StoredModel) -> serde_json::Value {
    json!({ "name": model.name, "size_bytes": model.size_bytes, "files": model.files })
}

fn list(app: &App, as_json: bool) -> anyhow::Result<()> {
    let models = app.store.list()?;
    if as_json {
        let mut rows = vec![json!({
            "name": EMBEDDED_NAME, "size_bytes": EMBEDDED_MODEL.len(), "embedded": true,
        })];
        rows.extend(models.iter().map(|model| {
            json!({
                "name": model.name,
                "size_bytes": model.size_bytes,
                "embedded": false,
                "shared": model.is_shared,
                "files": model.files,
                "records": model.records(),
            })
        }));
        return Ok(print_json(&json!({ "dir": app.store.dir(), "models": rows }))?);
    }
    let mut rows = vec![vec![
        EMBEDDED_NAME.to_owned(),
        bytes(EMBEDDED_MODEL.len() as u64),
        "part of the program".to_owned(),
    ]];
    rows.extend(models.iter().map(|model| {
        let origin = match model.records().into_iter().next().flatten() {
            Some(record) if !record.origin.is_empty() => record.origin,
            _ if model.is_shared => "the service's".to_owned(),
            _ => "unknown origin".to_owned(),
        };
        vec![model.name.clone(), bytes(model.size_bytes), origin]
    }));
    let mut out = anstream::stdout().lock();
    write!(out, "{}", table(&rows))?;
    let dir = app.store.dir().display();
    writeln!(out, "{}", styled(FAINT, format!("models are kept in {dir}")))?;
    Ok(())
}

fn available(app: &App, as_json: bool) -> anyhow::Result<()> {
    let catalog = app.catalog()?;
    if as_json {
        return Ok(print_json(&json!({ "models": catalog.entries() }))?);
    }
    let mut out = anstream::stdout().lock();
    let head = ["name", "about", "licence", "fits", "note"].map(|h| h.to_owned()).to_vec();
    let mut rows = vec![head];
    rows.extend(catalog.entries().iter().map(|entry| {
        let source = if entry.url.is_empty() { "no source known; " } else { "" };
        vec![
            entry.name.clone(),
            bytes(entry.size_about_bytes),
            entry.licence.clone(),
            entry.boards.join(" "),
            format!("{source}{}", entry.note),
        ]
    }));
    let text = table(&rows);
    let (head, rest) = text.split_once('\n').unwrap_or((&text, ""));
    writeln!(out, "{}", styled(STRONG, head))?;
    write!(out, "{rest}")?;
    Ok(())
}

fn import(app: &App, path: &std::path::Path, force: bool, as_json: bool) -> anyhow::Result<()> {
    let incoming = Incoming::open(path)?;
    become_owner_of(app.store.dir())?;
    let bar = bytes_bar("copying");
    let result = app.store.import(&incoming, force, &mut |done, total| {
        bar.set_length(total);
        bar.set_position(done);
    });
    bar.finish_and_clear();
    let model = result?;
    terminal::note(format!("imported {} ({})", model.name, bytes(model.size_bytes)));
    if as_json {
        print_json(&json!({ "imported": brief(&model) }))?;
    }
    Ok(())
}

fn verify(app: &App, names: &[String], as_json: bool) -> anyhow::Result<u8> {
    let models: Vec<StoredModel> = if names.is_empty() {
        app.store.list()?
    } else {
        names.iter().map(|name| app.store.find(name)).collect::<Result<_, _>>()?
    };
    let mut n_bad = 0;
    let mut rows = Vec::new();
    for model in &models {
        let bar = bytes_bar(&model.name);
        let result = app.store.verify(model, &mut |done, total| {
            bar.set_length(total);
            bar.set_position(done);
        });
        bar.finish_and_clear();
        n_bad += usize::from(result.is_err());
        if !as_json {
            report(model, &result)?;
        }
        rows.push(json!({
            "name": model.name,
            "ok": result.is_ok(),
            "recorded_now": matches!(result, Ok(Verified::Recorded)),
            "error": result.err().map(|error| error.to_string()),
        }));
    }
    if as_json {
        print_json(&json!({ "models": rows }))?;
    }
    if n_bad > 0 {
        return Err(
            CliError::integrity(format!("{n_bad} of {} models are bad", models.len())).into()
        );
    }
    Ok(exit::OK)
}

fn report(model: &StoredModel, result: &Result<Verified, LibraryError>) -> std::io::Result<()> {
    let mut out = anstream::stdout().lock();
    let name = &model.name;
    match result {
        Ok(Verified::Matches) => writeln!(out, "{} {name}", styled(GOOD, "ok")),
        Ok(Verified::Recorded) => {
            writeln!(out, "{} {name}: had no record, its hash is recorded now", styled(GOOD, "new"))
        }
        Err(error) => writeln!(out, "{} {name}: {error}", styled(terminal::ERROR, "bad")),
    }
}
