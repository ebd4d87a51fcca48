//! `jetforge backup` and `jetforge restore`: everything that a new card could not make again.
//!
//! ```text
//! backup     config/*, state/* (no models, no locks), SHA256SUMS  -> one file, as tar reads it
//! restore    1 unpack beside the state, every sum checked   nothing has changed yet
//!            2 a mark   3 each file to its place   4 the mark goes
//! ```
//!
//! The service is stopped for both: the store is then whole in its file. If power goes after the
//! mark, the next `restore`, first start or start of the service goes on with step 3. A backup
//! holds the device key, so whoever has it can read what is sealed: it is written for its owner
//! alone.

use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::Args;
use sha2::{Digest, Sha256};

use super::first_boot::give_to_owner_of;
use crate::app::App;
use crate::base::format::bytes;
use crate::base::tar::{TarWriter, read_tar};
use crate::cli::exit::CliError;
use crate::cli::terminal;
use crate::cli::{Context, exit};
use crate::store::{Store, StoreError};

/// In the directory of states: what is unpacked, and that it is whole.
const NEXT: &str = "restore.next";
const MARK: &str = "restore.pending";
const SUMS: &str = "SHA256SUMS";
/// Levels of folders that are looked into.
const DEPTH_MAX: usize = 4;

/// Options of `backup`.
#[derive(Debug, Args)]
pub struct BackupArgs {
    /// The file to write; it is replaced
    #[arg(value_name = "FILE")]
    file: PathBuf,
}

/// Options of `restore`.
#[derive(Debug, Args)]
pub struct RestoreArgs {
    /// A file of `jetforge backup`
    #[arg(value_name = "FILE")]
    file: PathBuf,
}

/// Writes a backup.
pub fn backup(context: &Context, args: &BackupArgs) -> anyhow::Result<u8> {
    let app = context.app(Vec::new())?;
    finish(&app)?;
    close_store(&app)?;
    let mut next = args.file.clone().into_os_string();
    next.push(".next");
    let next = PathBuf::from(next);
    let written = write_archive(&app, &next).and_then(|n| {
        std::fs::rename(&next, &args.file)?;
        Ok(n)
    });
    if written.is_err() {
        let _ = std::fs::remove_file(&next);
    }
    let (n_file, n_bytes) = written.with_context(|| args.file.display().to_string())?;
    terminal::note(format!("{n_file} files, {}; it holds keys: keep it safe", bytes(n_bytes)));
    Ok(exit::OK)
}

/// Brings a backup back.
pub fn restore(context: &Context, args: &RestoreArgs) -> anyhow::Result<u8> {
    let app = context.app(Vec::new())?;
    close_store(&app)?;
    finish(&app)?;
    let next = app.dirs.state.join(NEXT);
    let unpacked = unpack(&args.file, &next);
    if unpacked.is_err() {
        let _ = std::fs::remove_dir_all(&next);
    }
    unpacked.with_context(|| format!("{}: nothing was changed", args.file.display()))?;
    File::create(app.dirs.state.join(MARK))?.sync_all()?;
    finish(&app)?;
    terminal::note("it is as it was; start the service");
    Ok(exit::OK)
}

/// The store, whole in its file, and nobody who has it open.
fn close_store(app: &App) -> anyhow::Result<()> {
    match Store::open(&app.dirs.state).map(drop) {
        Err(error @ StoreError::Locked { .. }) => {
            Err(anyhow::Error::from(error).context("stop the service first"))
        }
        // One that is broken is kept, or replaced, as it is.
        _ => Ok(()),
    }
}

fn write_archive(app: &App, next: &Path) -> std::io::Result<(usize, u64)> {
    let mut files = Vec::new();
    gather(&app.dirs.config, "config", &|_| false, 0, &mut files)?;
    let (models, cache) = (app.store.dir(), &app.dirs.cache);
    let is_left_out = |path: &Path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let ends = [".lock", ".next", ".pending", "-wal", "-shm"];
        models.starts_with(path)
            || cache.starts_with(path)
            || ends.iter().any(|end| name.ends_with(end))
    };
    gather(&app.dirs.state, "state", &is_left_out, 0, &mut files)?;
    let out = File::options().write(true).create(true).truncate(true).mode(0o600).open(next)?;
    let mut tar = TarWriter::new(BufWriter::new(out));
    let (mut sums, mut n_bytes) = (String::new(), 0);
    for (name, path) in &files {
        let file = File::open(path)?;
        let n = file.metadata()?.len();
        let mut summed = Summed { from: BufReader::new(file), sum: Sha256::new() };
        tar.add(name, 0o600, n, &mut summed)?;
        sums.push_str(&line(summed.sum, name));
        n_bytes += n;
    }
    tar.add(SUMS, 0o600, sums.len() as u64, &mut sums.as_bytes())?;
    tar.finish()?.into_inner().map_err(|error| error.into_error())?.sync_all()?;
    Ok((files.len(), n_bytes))
}

/// The plain files of a folder, with the names that they have in the archive.
fn gather(
    dir: &Path,
    name: &str,
    is_left_out: &dyn Fn(&Path) -> bool,
    depth: usize,
    files: &mut Vec<(String, PathBuf)>,
) -> std::io::Result<()> {
    let entries = match std::fs::read_dir(dir) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    let mut paths = entries.map(|e| Ok(e?.path())).collect::<std::io::Result<Vec<_>>>()?;
    paths.sort();
    for path in paths.into_iter().filter(|path| !is_left_out(path)) {
        let kind = std::fs::symlink_metadata(&path)?.file_type();
        let name = format!("{name}/{}", path.file_name().unwrap_or_default().to_string_lossy());
        if kind.is_dir() && depth < DEPTH_MAX {
            gather(&path, &name, is_left_out, depth + 1, files)?;
        } else if kind.is_file() {
            files.push((name, path));
        }
    }
    Ok(())
}

fn line(sum: Sha256, name: &str) -> String {
    let hex: String = sum.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{hex}  {name}\n")
}

/// What is read, summed.
struct Summed<R: Read> {
    from: R,
    sum: Sha256,
}

impl<R: Read> Read for Summed<R> {
    fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
        let n = self.from.read(out)?;
        self.sum.update(&out[..n]);
        Ok(n)
    }
}

/// Unpacks an archive into an empty folder, and checks every sum.
fn unpack(file: &Path, next: &Path) -> anyhow::Result<()> {
    let _ = std::fs::remove_dir_all(next);
    let (mut sums, mut told) = (String::new(), None);
    read_tar(BufReader::new(File::open(file)?), |entry, from| {
        if entry.name == SUMS {
            let mut text = String::new();
            from.read_to_string(&mut text)?;
            told = Some(text);
            return Ok(());
        }
        let is_ours = entry.name.starts_with("config/") || entry.name.starts_with("state/");
        if !is_ours || told.is_some() {
            return Err(std::io::Error::other("it is no backup of this program"));
        }
        let path = next.join(&entry.name);
        path.parent().map_or(Ok(()), std::fs::create_dir_all)?;
        let mut out = File::options().write(true).create_new(true).mode(entry.mode).open(path)?;
        let mut summed = Summed { from, sum: Sha256::new() };
        std::io::copy(&mut summed, &mut out)?;
        sums.push_str(&line(summed.sum, &entry.name));
        out.sync_all()
    })?;
    match told {
        Some(told) if told == sums => Ok(()),
        _ => Err(CliError::integrity("a file of it is not what its sum says").into()),
    }
}

/// Does, or goes on with, what a restore still has to do; whether there was anything.
pub fn finish(app: &App) -> anyhow::Result<bool> {
    let (state, mark) = (&app.dirs.state, app.dirs.state.join(MARK));
    let next = state.join(NEXT);
    if !mark.exists() {
        return Ok(false);
    }
    let place = || -> std::io::Result<()> {
        for (from, to) in [("config", &app.dirs.config), ("state", state)] {
            let mut files = Vec::new();
            gather(&next.join(from), from, &|_| false, 0, &mut files)?;
            for (name, path) in files {
                let to = to.join(&name[from.len() + 1..]);
                to.parent().map_or(Ok(()), std::fs::create_dir_all)?;
                // A log beside the store belongs to the one that goes.
                for end in ["-wal", "-shm"] {
                    let mut log = to.clone().into_os_string();
                    log.push(end);
                    let _ = std::fs::remove_file(log);
                }
                move_file(&path, &to)?;
            }
        }
        give_to_owner_of(state)?;
        let _ = std::fs::remove_dir_all(&next);
        File::open(state)?.sync_all()?;
        std::fs::remove_file(&mark)
    };
    place().context("the restore is not done; it goes on with the next start")?;
    Ok(true)
}

/// Moves a file, also to another disk, where it is whole or as it was.
fn move_file(from: &Path, to: &Path) -> std::io::Result<()> {
    if std::fs::rename(from, to).is_ok() {
        return Ok(());
    }
    let mut next = to.as_os_str().to_owned();
    next.push(".next");
    let next = PathBuf::from(next);
    std::fs::copy(from, &next)?;
    let mut file = File::options().append(true).open(&next)?;
    file.flush()?;
    file.sync_all()?;
    std::fs::rename(&next, to)?;
    std::fs::remove_file(from)
}
