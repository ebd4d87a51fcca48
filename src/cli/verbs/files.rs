//! The part of `jetforge sync` about files: what is sent, what has come, and where it goes.
//!
//! The bytes are in the state directory, sealed, and read there whether a service runs or not. What
//! they are called is known by the store: a running service is asked.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use anyhow::Context as _;
use serde_json::{Value, json};

use crate::base::file::Draft;
use crate::cli::exit::CliError;
use crate::cli::terminal::{self, print_json, table};
use crate::server::Client;
use crate::sync::{BlobId, Node, Progress, Spool, Told, Vault};

/// What a file may be sent as.
const WHATS: [&str; 4] = ["file", "bundle", "report", "model"];

/// A file that is known.
pub struct Known {
    node: String,
    name: String,
    what: String,
    id: BlobId,
    n_bytes: u64,
    progress: Progress,
}

/// Keeps a file and tells the peers of it.
pub fn send(
    own: Option<Node>,
    state: &Path,
    path: &Path,
    name: Option<&str>,
    what: &str,
) -> anyhow::Result<()> {
    if !WHATS.contains(&what) {
        return Err(CliError::usage(format!("--as {what}: use {}", WHATS.join(", "))).into());
    }
    let stem = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let name = name.unwrap_or(&stem);
    if name.is_empty() || name.len() > 200 || name.chars().any(char::is_control) {
        return Err(CliError::usage(format!("{name:?} is no name; give --name")).into());
    }
    let mut file = File::open(path).with_context(|| path.display().to_string())?;
    let id = match own {
        Some(sync) => sync.send_file(&mut file, name, what)?,
        None => {
            // The service has the store: it tells of what lies in the vault already.
            let (id, n_bytes) = Vault::open(state)?.put(&mut file, false)?;
            let body = json!({ "id": id, "n_bytes": n_bytes, "what": what });
            let (kind, name) = ("file".to_owned(), name.to_owned());
            Spool::new(state).put(&Told { kind, name, body })?;
            id
        }
    };
    terminal::note(format!("{name} goes to the peers; `jetforge sync fetch` there writes it"));
    writeln!(std::io::stdout(), "{id}")?;
    Ok(())
}

/// The files that this machine knows of.
pub fn known(client: &Client, own: Option<Node>, state: &Path) -> anyhow::Result<Vec<Known>> {
    if let Some(sync) = own {
        let known = |file: crate::sync::FileView| Known {
            node: file.node,
            name: file.name,
            what: file.what,
            id: file.id,
            n_bytes: file.n_bytes,
            progress: file.progress,
        };
        return Ok(sync.files()?.into_iter().map(known).collect());
    }
    let vault = Vault::open(state)?;
    let told = client.json("GET", "/v1/sync/records?kind=file")?;
    let known = |record: &Value| {
        let (node, name) = record["key"].as_str()?.split_once('/')?;
        let body = &record["body"];
        let id = BlobId::read(body["id"].as_str()?)?;
        Some(Known {
            node: node.to_owned(),
            name: name.to_owned(),
            what: body["what"].as_str().unwrap_or("file").to_owned(),
            id,
            n_bytes: body["n_bytes"].as_u64()?,
            progress: vault.progress(&id),
        })
    };
    let mut files: Vec<Known> =
        told["records"].as_array().into_iter().flatten().filter_map(known).collect();
    for (id, n_bytes) in vault.kept() {
        if !files.iter().any(|file| file.id == id) {
            let (node, name, what) = (String::new(), String::new(), "kept".to_owned());
            files.push(Known { node, name, what, id, n_bytes, progress: Progress::Whole });
        }
    }
    Ok(files)
}

/// Shows them.
pub fn show(files: &[Known], as_json: bool) -> std::io::Result<()> {
    let state = |file: &Known| match &file.progress {
        Progress::Whole => "here".to_owned(),
        Progress::Coming { n_here, why } => {
            let percent = (n_here * 100).checked_div(file.n_bytes).unwrap_or(0);
            let why = why.as_ref().map_or(String::new(), |why| format!(": {why}"));
            format!("{percent} %{why}")
        }
        Progress::Absent => "not here".to_owned(),
    };
    if as_json {
        let view = |file: &Known| {
            json!({
                "node": file.node, "name": file.name, "what": file.what, "id": file.id,
                "n_bytes": file.n_bytes, "state": state(file),
            })
        };
        return print_json(&json!({ "files": files.iter().map(view).collect::<Vec<_>>() }));
    }
    let heads = ["NAME", "WHAT", "MIB", "STATE", "OF", "HASH"];
    let mut rows = vec![heads.map(str::to_owned).to_vec()];
    rows.extend(files.iter().map(|file| {
        let mib = format!("{:.1}", file.n_bytes as f64 / f64::from(1 << 20));
        let what = file.what.chars().filter(|c| !c.is_control()).collect();
        let name = if file.name.is_empty() { "-".to_owned() } else { file.name.clone() };
        vec![name, what, mib, state(file), file.node.clone(), file.id.to_string()]
    }));
    write!(std::io::stdout(), "{}", table(&rows))
}

/// The hash of a file that is called by its name or by that.
fn find(files: &[Known], name: &str) -> anyhow::Result<BlobId> {
    if let Some(id) = BlobId::read(name) {
        return Ok(id);
    }
    let mut ids: Vec<BlobId> = files.iter().filter(|f| f.name == name).map(|f| f.id).collect();
    ids.dedup();
    match &ids[..] {
        [one] => Ok(*one),
        [] => Err(CliError::usage(format!("no file is called {name}; see `sync files`")).into()),
        _ => Err(CliError::usage(format!("several are called {name}; give the hash")).into()),
    }
}

/// Writes a file that is here to `to`.
pub fn fetch(files: &[Known], state: &Path, name: &str, to: &Path) -> anyhow::Result<()> {
    let id = find(files, name)?;
    let failed = || to.display().to_string();
    let mut out = BufWriter::new(Draft::new(to, 0o600).with_context(failed)?);
    let absent = || CliError::usage(format!("{name} has not come yet; see `sync files`"));
    let n_bytes = Vault::open(state)?.take_out(&id, &mut out)?.ok_or_else(absent)?;
    let part = out.into_inner().map_err(std::io::IntoInnerError::into_error)?;
    part.commit().with_context(failed)?;
    terminal::note(format!("wrote {}, {n_bytes} bytes", to.display()));
    Ok(())
}

/// Lets a file go.
pub fn drop(files: &[Known], state: &Path, name: &str) -> anyhow::Result<()> {
    let id = find(files, name)?;
    match Vault::open(state)?.drop_blob(&id) {
        true => Ok(()),
        false => Err(CliError::usage(format!("{name} is neither here nor coming")).into()),
    }
}
