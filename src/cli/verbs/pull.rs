//! `jetforge pull`: a model by name or address, into the store.

use std::io::Write;
use std::path::PathBuf;

use clap::Args;
use indicatif::ProgressBar;
use serde_json::json;

use crate::app::App;
use crate::base::config::Setting;
use crate::base::format::bytes;
use crate::base::owner::become_owner_of;
use crate::cli::exit::CliError;
use crate::cli::terminal::{self, bytes_bar, print_json};
use crate::cli::{Context, exit};
use crate::library::{self, LibraryError, PullEvent, PullRequest, file_name_of};

/// Options of `pull`.
#[derive(Debug, Args)]
pub struct PullArgs {
    /// A name of the catalog (`jetforge models list --available`) or an address
    #[arg(value_name = "NAME|URL")]
    what: String,
    /// File name in the store; the address's own otherwise
    #[arg(long, value_name = "FILE")]
    name: Option<String>,
    /// SHA-256 that the file must have
    #[arg(long, value_name = "HEX")]
    sha256: Option<String>,
    /// Certificate authorities to trust beside the system's, PEM
    #[arg(long, value_name = "FILE")]
    ca_file: Option<PathBuf>,
    /// Directory of models
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Longest silence of the network, in milliseconds
    #[arg(long, value_name = "MS")]
    stall_ms: Option<u32>,
    /// Replace a model of the same name
    #[arg(long)]
    force: bool,
    /// Report as JSON
    #[arg(long)]
    json: bool,
}

/// Downloads the model.
pub fn run(context: &Context, args: &PullArgs) -> anyhow::Result<u8> {
    let path = |path: &PathBuf| toml::Value::String(path.display().to_string());
    let settings = [
        ("pull.ca_file", "--ca-file", args.ca_file.as_ref().map(path)),
        ("library.dir", "--dir", args.dir.as_ref().map(path)),
        ("pull.stall_ms", "--stall-ms", args.stall_ms.map(Into::into)),
    ];
    let settings = settings.into_iter().filter_map(|(key, option, value)| {
        Some(Setting { key: key.to_owned(), value: value?, option: option.to_owned() })
    });
    let app = context.app(settings.collect())?;
    become_owner_of(app.store.dir())?;
    let request = request(&app, args)?;
    let bar = bytes_bar("connecting");
    let result = library::pull(&request, &app.pull_options(), &mut |event| show(&bar, &event));
    bar.finish_and_clear();
    let pulled = result?;
    if args.json {
        print_json(&json!({
            "name": pulled.name,
            "files": pulled.files,
            "size_bytes": pulled.size_bytes,
            "sha256": pulled.sha256,
            "checked": pulled.is_checked,
            "was_here": pulled.was_here,
        }))?;
        return Ok(exit::OK);
    }
    let verb = if pulled.was_here { "already here:" } else { "pulled" };
    terminal::note(format!("{verb} {} ({})", pulled.name, bytes(pulled.size_bytes)));
    if !pulled.is_checked && !pulled.was_here {
        terminal::note(
            "no hash was known beforehand; that of the file is recorded for `models verify`",
        );
    }
    let mut out = std::io::stdout().lock();
    for file in &pulled.files {
        writeln!(out, "{}", file.display())?;
    }
    Ok(exit::OK)
}

fn request(app: &App, args: &PullArgs) -> anyhow::Result<PullRequest> {
    let mut request = PullRequest {
        url: args.what.clone(),
        dir: app.store.dir().to_owned(),
        file_name: String::new(),
        sha256: args.sha256.clone(),
        size_bytes: None,
        force: args.force,
    };
    if args.what.contains("://") {
        request.file_name = match &args.name {
            Some(name) => name.clone(),
            None => file_name_of(&args.what)?,
        };
    } else {
        let catalog = app.catalog()?;
        let entry = catalog.find(&args.what).ok_or_else(|| LibraryError::UnknownModel {
            name: args.what.clone(),
            hint: match catalog.nearest(&args.what) {
                Some(near) => format!(" in the catalog; did you mean {near:?}?"),
                None => " in the catalog; `jetforge models list --available` shows it".to_owned(),
            },
        })?;
        let file_name = args.name.clone().or_else(|| entry.file_name());
        request.file_name = file_name
            .filter(|_| !entry.url.is_empty())
            .ok_or_else(|| LibraryError::NoSource { name: entry.name.clone() })?;
        request.url.clone_from(&entry.url);
        let known = Some(entry.sha256.clone()).filter(|hash| !hash.is_empty());
        request.sha256 = request.sha256.or(known);
        request.size_bytes = Some(entry.size_bytes).filter(|size| *size > 0);
        terminal::note(format!("{}, licence {}", entry.title, entry.licence));
    }
    let is_hash = |s: &str| s.len() == 64 && s.bytes().all(|b| b.is_ascii_hexdigit());
    if request.sha256.as_deref().is_some_and(|hash| !is_hash(hash)) {
        return Err(CliError::usage("--sha256 takes 64 hexadecimal digits").into());
    }
    Ok(request)
}

/// Draws what a download does.
pub(super) fn show(bar: &ProgressBar, event: &PullEvent<'_>) {
    match event {
        PullEvent::Asking { host } => bar.set_message(format!("asking {host}")),
        PullEvent::Started { file_name, from_bytes, total_bytes } => {
            bar.set_message((*file_name).to_owned());
            match total_bytes {
                Some(total) => bar.set_length(*total),
                None => bar.unset_length(),
            }
            bar.set_position(*from_bytes);
            bar.reset_eta();
            if *from_bytes > 0 {
                bar.suspend(|| terminal::note(format!("resuming at {}", bytes(*from_bytes))));
            }
        }
        PullEvent::Received { done_bytes } => bar.set_position(*done_bytes),
        PullEvent::Retrying { reason, pause } => bar.suspend(|| {
            terminal::warn(format!("{reason}; trying again in {pause:?}"));
        }),
        PullEvent::Hashing { done_bytes, total_bytes } => {
            bar.set_message("checking");
            bar.set_length(*total_bytes);
            bar.set_position(*done_bytes);
        }
    }
}
