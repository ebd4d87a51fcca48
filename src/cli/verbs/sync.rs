//! `jetforge sync`: how this machine stands with its peers, over the network or by a file.
//!
//! A running service is asked; where none runs, export and import use the store themselves.

use std::fs::File;
use std::io::{BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::{Args, Subcommand};
use serde_json::Value;

use super::files;
use crate::app::App;
use crate::base::file::Draft;
use crate::cli::exit::CliError;
use crate::cli::remote::Remote;
use crate::cli::terminal::{self, print_json, table};
use crate::cli::{Context, exit};
use crate::server::{Client, ClientError, KeyFile, peer_key_name};
use crate::store::StoreError;
use crate::sync::{BlobId, Imported, Node, StickHead, asks_of, read_frame};
use crate::tls::Fingerprint;

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
    /// End a pairing: what waits for the peer goes, and its keys open nothing any more
    Forget {
        /// Its name or node, as `status` shows them
        peer: String,
    },
    /// Say where a peer is called; an empty address waits for its calls
    Peer {
        /// Its name or node, as `status` shows them
        peer: String,
        /// http://HOST:PORT or https://HOST:PORT
        #[arg(long, value_name = "URL")]
        address: String,
        /// SHA-256 of its certificate, where that is not the one of the pairing
        #[arg(long, value_name = "SHA256")]
        peer_certificate: Option<Fingerprint>,
    },
    /// The card of this machine was moved here from another one, which is out of use
    Adopt,
    /// The card of this machine is the copy of another one: take a new name, forget all peers
    Renew,
    /// Send a file to the peers
    Send {
        /// The file
        file: PathBuf,
        /// What it is called there; its own name by default
        #[arg(long, value_name = "NAME")]
        name: Option<String>,
        /// What it is: file, bundle, report or model
        #[arg(long = "as", value_name = "WHAT", default_value = "file")]
        what: String,
    },
    /// Show the files that this machine and its peers sent, and how far they are here
    Files,
    /// Write a file that has come to a place of your own
    Fetch {
        /// Its name or its hash, as `files` shows them
        name: String,
        /// Where to
        to: PathBuf,
    },
    /// Let a file go that is kept for or of the peers
    Drop {
        /// Its name or its hash, as `files` shows them
        name: String,
    },
    /// Write what waits for the peers to a file, for a stick
    Export {
        /// The file
        file: PathBuf,
        /// With the files that this machine sends
        #[arg(long)]
        files: bool,
    },
    /// Read such a file
    Import {
        /// The file
        file: PathBuf,
    },
}

/// Speaks with the service, or with the store.
pub fn run(context: &Context, args: &SyncArgs) -> anyhow::Result<u8> {
    let app = context.app_of_state(Vec::new())?;
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
        What::Forget { peer } => {
            let name = forget(&client, own(args, &app)?, peer, &app.dirs.state)?;
            terminal::note(format!("{name} is forgotten; forget this machine there as well"));
        }
        What::Peer { peer, address, peer_certificate } => {
            let own = own(args, &app)?;
            let (name, address) = call_at(&client, own, peer, address, *peer_certificate)?;
            terminal::note(match address.is_empty() {
                true => format!("{name} is not called any more; it calls"),
                false => format!("{name} is called at {address}"),
            });
        }
        What::Send { file, name, what } => {
            let own = own(args, &app)?;
            files::send(own, &app.dirs.state, file, name.as_deref(), what)?;
        }
        What::Files => {
            let own = own(args, &app)?;
            files::show(&files::known(&client, own, &app.dirs.state)?, args.json)?;
        }
        What::Fetch { name, to } => {
            let own = own(args, &app)?;
            files::fetch(&files::known(&client, own, &app.dirs.state)?, &app.dirs.state, name, to)?;
        }
        What::Drop { name } => {
            let own = own(args, &app)?;
            files::drop(&files::known(&client, own, &app.dirs.state)?, &app.dirs.state, name)?;
        }
        What::Adopt => {
            alone(args, &app)?.adopt()?;
            terminal::note("this machine goes on under the name of its card");
        }
        What::Renew => renew(args, &app)?,
        What::Export { file, files } => {
            let n = export(&client, own(args, &app)?, file, *files)?;
            terminal::note(format!("{n} entries; `jetforge sync import` reads them there"));
        }
        What::Import { file } => tell_imported(&import(&client, own(args, &app)?, file)?),
    }
    Ok(exit::OK)
}

fn renew(args: &SyncArgs, app: &App) -> anyhow::Result<()> {
    if app.shared_store().is_some() {
        let why = "other processes share this name; `sync forget` ends a pairing";
        return Err(CliError::usage(why).into());
    }
    let sync = alone(args, app)?;
    let keys = KeyFile::new(&app.dirs.state);
    for peer in sync.peers()? {
        let _ = keys.revoke(&peer_key_name(&peer.node));
    }
    let node = sync.renew()?;
    terminal::note(format!("this machine is {node} now; pair it again"));
    Ok(())
}

fn tell_imported(told: &Imported) {
    let (n_file, n_missing) = (told.blobs.len(), told.n_missing());
    terminal::note(format!("{} entries took effect", told.n_applied));
    if n_file > 0 {
        terminal::note(format!("{} files are here", n_file - n_missing));
    }
    if n_missing > 0 {
        terminal::note(format!("{n_missing} files did not come; see `sync files`"));
    }
}

/// The store, where no service has it and none is named.
fn own(args: &SyncArgs, app: &App) -> anyhow::Result<Option<Node>> {
    if args.remote.url.is_some() {
        return Ok(None);
    }
    match app.open_state() {
        Ok(opened) => {
            opened.notes.iter().for_each(|note| terminal::note(format!("note: {note}")));
            Ok(Some(Node::open(opened.store)?))
        }
        Err(StoreError::Locked { .. }) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// The store, where it cannot be another's: what a service holds must not change under it.
fn alone(args: &SyncArgs, app: &App) -> anyhow::Result<Node> {
    own(args, app)?.ok_or_else(|| {
        CliError::usage("the service has the store; stop it first, and leave --url out").into()
    })
}

/// Text as a part of a query.
fn escaped(text: &str) -> String {
    text.bytes().map(|byte| format!("%{byte:02x}")).collect()
}

/// Has a peer called elsewhere; its name and where.
fn call_at(
    client: &Client,
    own: Option<Node>,
    peer: &str,
    address: &str,
    pin: Option<Fingerprint>,
) -> anyhow::Result<(String, String)> {
    let Some(sync) = own else {
        let pin = pin.map(|pin| format!("&certificate={pin}")).unwrap_or_default();
        let query = format!("peer={}&address={}{pin}", escaped(peer), escaped(address));
        let told = client.json("POST", &format!("/v1/sync/peer?{query}"))?;
        let text = |name: &str| terminal::plain(told[name].as_str().unwrap_or_default());
        return Ok((text("name"), text("address")));
    };
    let found = sync.call_at(peer, address, pin.map(|pin| pin.0))?;
    let found = found.ok_or_else(|| unknown(peer))?;
    Ok((found.name, found.address))
}

fn unknown(peer: &str) -> CliError {
    CliError::usage(format!("there is no one peer {peer:?}; see `sync status`"))
}

fn forget(client: &Client, own: Option<Node>, peer: &str, dir: &Path) -> anyhow::Result<String> {
    let Some(sync) = own else {
        let told = client.json("POST", &format!("/v1/sync/forget?peer={}", escaped(peer)))?;
        return Ok(told["name"].as_str().unwrap_or_default().to_owned());
    };
    let forgotten = sync.forget(peer)?.ok_or_else(|| unknown(peer))?;
    // A machine that asked us to pair has none there.
    let _ = KeyFile::new(dir).revoke(&peer_key_name(&forgotten.node));
    Ok(forgotten.name)
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

fn export(
    client: &Client,
    own: Option<Node>,
    path: &Path,
    with_files: bool,
) -> anyhow::Result<usize> {
    let failed = || path.display().to_string();
    // For its owner alone: prompts and answers are in it.
    let mut out = BufWriter::new(Draft::new(path, 0o600).with_context(failed)?);
    let n = match own {
        Some(sync) => {
            let n = sync.export(&mut out)?;
            if with_files {
                sync.export_files(&mut out)?;
            }
            n
        }
        None => {
            let n = export_over(client, &mut out)?;
            if with_files {
                export_files_over(client, &mut out)?;
            }
            n
        }
    };
    // A stick that is pulled out has the file whole or not at all.
    let part = out.into_inner().map_err(std::io::IntoInnerError::into_error)?;
    part.commit().with_context(failed)?;
    Ok(n)
}

fn export_over(client: &Client, out: &mut dyn Write) -> anyhow::Result<usize> {
    let told = client.json("GET", "/v1/sync")?;
    let mut n = 0;
    for peer in told["peers"].as_array().into_iter().flatten() {
        let node = peer["node"].as_str().unwrap_or_default();
        let mut from = String::new();
        loop {
            let path = format!("/v1/sync/export?peer={node}{from}");
            let frame = client.bytes("GET", &path, &[])?;
            let head = frame.split(|byte| *byte == b'\n').next().unwrap_or_default();
            let head = StickHead::read(head)?;
            n += head.n_entry;
            out.write_all(&frame)?;
            let Some(next) = head.next else { break };
            from = format!("&seq={}&id={}", next.seq, next.id);
        }
    }
    Ok(n)
}

fn export_files_over(client: &Client, out: &mut dyn Write) -> anyhow::Result<()> {
    let told = client.json("GET", "/v1/sync")?;
    let node = told["node"].as_str().unwrap_or_default();
    let known = client.json("GET", "/v1/sync/records?kind=file")?;
    for record in known["records"].as_array().into_iter().flatten() {
        let is_own = record["key"].as_str().and_then(|key| key.split('/').next()) == Some(node);
        let id = record["body"]["id"].as_str().and_then(BlobId::read).filter(|_| is_own);
        let (Some(id), Some(n_bytes)) = (id, record["body"]["n_bytes"].as_u64()) else { continue };
        for peer in told["peers"].as_array().into_iter().flatten() {
            let peer = peer["node"].as_str().unwrap_or_default();
            for ask in asks_of(id, n_bytes) {
                let piece = ask.piece.map_or(String::new(), |piece| format!("&piece={piece}"));
                let path = format!("/v1/sync/export?peer={peer}&blob={id}{piece}");
                match client.bytes("GET", &path, &[]) {
                    Ok(frame) => out.write_all(&frame)?,
                    // It was let go.
                    Err(ClientError::Refused { status: 404, .. }) => break,
                    Err(error) => return Err(error.into()),
                }
            }
        }
    }
    Ok(())
}

fn import(client: &Client, own: Option<Node>, path: &Path) -> anyhow::Result<Imported> {
    let file = File::open(path).with_context(|| path.display().to_string())?;
    let mut file = BufReader::new(file);
    if let Some(sync) = own {
        return Ok(sync.import(&mut file)?);
    }
    let mut imported = Imported::default();
    while let Some((_, frame)) = read_frame(&mut file)? {
        let told = client.post("POST", "/v1/sync/import", &frame)?;
        imported.n_applied += told["n_applied"].as_u64().unwrap_or(0) as usize;
        let blobs = told["blobs"].as_object().into_iter().flatten();
        let blob = |(id, is_whole): (&String, &Value)| {
            Some((BlobId::read(id)?, is_whole.as_bool().unwrap_or(false)))
        };
        imported.blobs.extend(blobs.filter_map(blob));
    }
    Ok(imported)
}
