//! `jetforge sync`: how this machine stands with its peers, over the network or by a file.
//!
//! A running service is asked; where none runs, export and import use the store themselves.

use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::{Args, Subcommand};
use serde_json::Value;

use crate::base::limits::SYNC_MESSAGE_BYTES_MAX;
use crate::cli::remote::Remote;
use crate::cli::terminal::{self, print_json, table};
use crate::cli::{Context, exit};
use crate::server::Client;
use crate::store::{Store, StoreError};
use crate::sync::Node;

/// Options of `sync`.
#[derive(Debug, Args)]
pub struct SyncArgs {
    #[command(subcommand)]
    what: What,
    #[command(flatten)]
    remote: Remote,
    /// As JSON
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Show how each link stands, and what was set aside
    Status,
    /// Call every peer now
    Now,
    /// Try again what was set aside
    Retry {
        /// Forget it instead, and that something was lost
        #[arg(long)]
        forget: bool,
    },
    /// Write what waits for the peers to a file, for a stick
    Export {
        /// The file
        file: PathBuf,
    },
    /// Read such a file
    Import {
        /// The file
        file: PathBuf,
    },
}

/// Speaks with the service, or with the store.
pub fn run(context: &Context, args: &SyncArgs) -> anyhow::Result<u8> {
    let app = context.app(Vec::new())?;
    let client = args.remote.service(&app)?;
    match &args.what {
        What::Status => status(&client.json("GET", "/v1/sync")?, args.json)?,
        What::Now => {
            client.json("POST", "/v1/sync/now")?;
        }
        What::Retry { forget } => {
            let told = client.json("POST", &format!("/v1/sync/retry?forget={forget}"))?;
            match args.json {
                true => print_json(&told)?,
                false => terminal::note(format!(
                    "{} are done with, {} are left",
                    told["n_done"], told["n_left"]
                )),
            }
        }
        What::Export { file } => {
            let n = export(&client, own(args, &app.dirs.state)?, file)?;
            terminal::note(format!("{n} entries; `jetforge sync import` reads them there"));
        }
        What::Import { file } => {
            let n = import(&client, own(args, &app.dirs.state)?, file)?;
            terminal::note(format!("{n} entries took effect"));
        }
    }
    Ok(exit::OK)
}

/// The store, where no service has it and none is named.
fn own(args: &SyncArgs, dir: &Path) -> anyhow::Result<Option<Node>> {
    if args.remote.url.is_some() {
        return Ok(None);
    }
    match Store::open(dir) {
        Ok(opened) => {
            opened.notes.iter().for_each(|note| terminal::note(format!("note: {note}")));
            Ok(Some(Node::open(opened.store)?))
        }
        Err(StoreError::Locked { .. }) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn status(told: &Value, as_json: bool) -> std::io::Result<()> {
    if as_json {
        return print_json(told);
    }
    let text = |value: &Value| value.as_str().map_or(String::new(), terminal::plain);
    let list = |name: &str| told[name].as_array().cloned().unwrap_or_default();
    let mut rows = vec![["PEER", "STATE", "ADDRESS", "NODE"].map(str::to_owned).to_vec()];
    for peer in list("peers") {
        rows.push(["name", "state", "address", "node"].map(|name| text(&peer[name])).to_vec());
    }
    write!(std::io::stdout(), "{}", table(&rows))?;
    for peer in list("peers") {
        if !peer["trouble"].is_null() {
            terminal::note(format!("{}: {}", text(&peer["name"]), text(&peer["trouble"])));
        }
        if peer["n_lost"].as_u64().unwrap_or(0) > 0 {
            terminal::note(format!(
                "{}: {} entries went before they arrived; their records are where they were made",
                text(&peer["name"]),
                peer["n_lost"]
            ));
        }
    }
    for held in list("held") {
        let (kind, key, why) = (text(&held["kind"]), text(&held["key"]), text(&held["why"]));
        terminal::note(format!("set aside: {kind} {key}: {why}"));
    }
    if list("peers").is_empty() {
        terminal::note("no peers; `jetforge setup` pairs two machines");
    }
    Ok(())
}

fn export(client: &Client, own: Option<Node>, path: &Path) -> anyhow::Result<usize> {
    use std::os::unix::fs::OpenOptionsExt;
    let part = path.with_extension("part");
    let mut options = File::options();
    // Prompts and answers are in it.
    let options = options.write(true).create(true).truncate(true).mode(0o600);
    let file = options.open(&part).with_context(|| part.display().to_string())?;
    let mut out = BufWriter::new(file);
    let n = match own {
        Some(sync) => sync.export(&mut out)?,
        None => export_over(client, &mut out)?,
    };
    // A stick that is pulled out has the file whole or not at all.
    out.into_inner().map_err(|error| error.into_error())?.sync_all()?;
    std::fs::rename(&part, path).with_context(|| path.display().to_string())?;
    Ok(n)
}

fn export_over(client: &Client, out: &mut dyn Write) -> anyhow::Result<usize> {
    let told = client.json("GET", "/v1/sync")?;
    let mut n = 0;
    for peer in told["peers"].as_array().into_iter().flatten() {
        let node = peer["node"].as_str().unwrap_or_default();
        let mut from = String::new();
        loop {
            let page = client.json("GET", &format!("/v1/sync/export?peer={node}{from}"))?;
            n += page["message"]["entries"].as_array().map_or(0, Vec::len);
            writeln!(out, "{}", page["message"])?;
            let next = &page["next"];
            if next.is_null() {
                break;
            }
            from = format!("&seq={}&id={}", next["seq"], next["id"]);
        }
    }
    Ok(n)
}

fn import(client: &Client, own: Option<Node>, path: &Path) -> anyhow::Result<usize> {
    let file = File::open(path).with_context(|| path.display().to_string())?;
    let mut lines = BufReader::new(file);
    if let Some(sync) = own {
        return Ok(sync.import(&mut lines)?);
    }
    let mut n = 0;
    loop {
        let mut line = Vec::new();
        let mut bounded = (&mut lines).take(SYNC_MESSAGE_BYTES_MAX as u64 + 1);
        if bounded.read_until(b'\n', &mut line)? == 0 {
            return Ok(n);
        }
        let told = client.post("POST", "/v1/sync/import", &line)?;
        n += told["n_applied"].as_u64().unwrap_or(0) as usize;
    }
}
