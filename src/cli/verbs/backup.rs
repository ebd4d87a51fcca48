//! `jetforge backup` and `jetforge restore`: everything that a new card could not make again.
//!
//! ```text
//! backup     config/*, state/* (no models, no locks), SHA256SUMS  -> one file, as tar reads it
//! restore    1 unpack where only root writes, every sum checked   nothing has changed yet
//!            2 a mark, which holds the sums   3 what the backup does not have goes
//!            4 each file to its place   5 the mark goes
//! ```
//!
//! The service is stopped for both: the store is then whole in its file, and is held until the end.
//! If power goes after the mark, the next `restore`, first start or start of the service goes on
//! with step 3. A backup holds the device key, so whoever has it can read what is sealed: it is
//! written for its owner alone.
//!
//! Root reads and writes the state as the user to whom it belongs, so the service can use what
//! comes back, and a link that it left in its directory leads root nowhere.

use std::collections::BTreeSet;
use std::fs::{File, Permissions};
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::Args;
use sha2::{Digest, Sha256};

use super::first_boot::STAMP;
use crate::app::App;
use crate::base::file::{self, Draft};
use crate::base::format::bytes;
use crate::base::hash::hex;
use crate::base::limits::TAR_FILES_MAX;
use crate::base::owner::{as_owner_of, is_root};
use crate::base::tar::{TarWriter, read_tar};
use crate::cli::exit::CliError;
use crate::cli::terminal;
use crate::cli::{Context, exit};
use crate::store::{Store, StoreError};

/// Beside the marks: what is unpacked, and that it is whole.
const NEXT: &str = "restore.next";
const MARK: &str = "restore.pending";
const SUMS: &str = "SHA256SUMS";
/// Levels of folders that a backup can have.
const DEPTH_MAX: usize = 4;
/// Beside a store's file while it is open: what is not in the file yet, and where in that.
const LOG: &str = "-wal";
const INDEX: &str = "-shm";

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
    #[arg(value_name = "FILE", required_unless_present = "finish")]
    file: Option<PathBuf>,
    /// Only go on with a restore that was cut
    #[arg(long, conflicts_with = "file")]
    finish: bool,
}

/// Writes a backup.
pub fn backup(context: &Context, args: &BackupArgs) -> anyhow::Result<u8> {
    let app = context.app(Vec::new())?;
    go_on(&app)?;
    if !app.dirs.state.is_dir() {
        let message = format!("there is no {}: nothing to keep", app.dirs.state.display());
        return Err(CliError::usage(message).into());
    }
    let (_held, broken) = hold(&app)?;
    broken.iter().for_each(|error| terminal::note(format!("note: {error}; it is kept as it lies")));
    let write = || -> io::Result<(usize, u64)> {
        let mut draft = Draft::new(&args.file, 0o600)?;
        let written = write_archive(&app, broken.is_some(), &mut draft)?;
        draft.commit()?;
        Ok(written)
    };
    let (n_file, n_bytes) = write().with_context(|| args.file.display().to_string())?;
    terminal::note(format!(
        "{n_file} files of {} and {}, {}; it holds keys: keep it safe",
        app.dirs.config.display(),
        app.dirs.state.display(),
        bytes(n_bytes)
    ));
    Ok(exit::OK)
}

/// Brings a backup back.
pub fn restore(context: &Context, args: &RestoreArgs) -> anyhow::Result<u8> {
    let app = context.app(Vec::new())?;
    let Some(file) = &args.file else {
        if !go_on(&app)? {
            terminal::note("no restore was cut");
        }
        return Ok(exit::OK);
    };
    go_on(&app)?;
    let _held = hold(&app)?;
    let next = app.dirs.root_state.join(NEXT);
    let unpacked = unpack(file, &next);
    if unpacked.is_err() {
        let _ = std::fs::remove_dir_all(&next);
    }
    let sums = unpacked.with_context(|| format!("{}: nothing was changed", file.display()))?;
    file::replace(&app.dirs.root_state.join(MARK), sums.as_bytes(), 0o600)?;
    finish(&app)?;
    let state = app.dirs.state.display();
    terminal::note(format!("{state} is as it was; start the service"));
    Ok(exit::OK)
}

/// Closes the store, so that it is whole in its file, and keeps everybody else from opening it. Why
/// it is not whole, if it is not: one that is broken is kept, replaced or forgotten as it is.
pub fn hold(app: &App) -> anyhow::Result<(File, Option<StoreError>)> {
    let state = &app.dirs.state;
    let held = as_owner_of(state, || match Store::open(state).map(drop) {
        Err(error @ StoreError::Locked { .. }) => Err(error),
        opened => Ok((Store::hold(state)?, opened.err())),
    })
    .with_context(|| state.display().to_string())?;
    held.map_err(|error| match error {
        StoreError::Locked { .. } => anyhow::Error::from(error).context("stop the service first"),
        error => error.into(),
    })
}

/// A file, by its name in the archive.
struct Item {
    name: String,
    path: PathBuf,
}

/// What a backup has of this machine; of a store that cannot be opened its log as well.
fn items(app: &App, with_log: bool) -> io::Result<Vec<Item>> {
    let mut items = Vec::new();
    let is_litter = |path: &Path| path.extension().is_some_and(|end| end == "next");
    gather(&app.dirs.config, "config", &is_litter, 0, &mut items)?;
    let (models, cache) = (app.store.dir(), &app.dirs.cache);
    let is_left_out = |path: &Path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let ends = [".lock", ".next", ".pending", ".journal.json", ".reserve", INDEX];
        models.starts_with(path)
            || cache.starts_with(path)
            || ends.iter().any(|end| name.ends_with(end))
            || !with_log && name.ends_with(LOG)
    };
    let state = &app.dirs.state;
    as_owner_of(state, || gather(state, "state", &is_left_out, 0, &mut items))??;
    Ok(items)
}

fn write_archive(app: &App, with_log: bool, out: &mut Draft) -> io::Result<(usize, u64)> {
    let items = items(app, with_log)?;
    // The sums are a file as well, and the end of an archive takes the place of one.
    if items.len() + 2 > TAR_FILES_MAX {
        let n_file = items.len();
        let message = format!("{n_file} files are more than a backup takes ({TAR_FILES_MAX})");
        return Err(io::Error::other(message));
    }
    let mut tar = TarWriter::new(BufWriter::new(out));
    let (mut sums, mut n_bytes) = (String::new(), 0);
    for Item { name, path } in &items {
        let named = |error: io::Error| io::Error::new(error.kind(), format!("{name}: {error}"));
        let open = || match file::open_plain(path) {
            Err(error) if error.kind() == io::ErrorKind::IsADirectory => {
                Err(io::Error::other("there are more folders in folders than it takes"))
            }
            opened => opened,
        };
        let file = match name.starts_with("state/") {
            true => as_owner_of(&app.dirs.state, open).flatten(),
            false => open(),
        };
        let file = file.map_err(named)?;
        let about = file.metadata()?;
        let mut summed = Summed { from: BufReader::new(file), sum: Sha256::new() };
        tar.add(name, about.mode() & 0o777, about.len(), &mut summed).map_err(named)?;
        sums.push_str(&line(summed.sum, name));
        n_bytes += about.len();
    }
    tar.add(SUMS, 0o600, sums.len() as u64, &mut sums.as_bytes())?;
    tar.finish()?.flush()?;
    Ok((items.len(), n_bytes))
}

/// The plain files of a folder, with the names that they have in the archive, and folders that lie
/// too deep in it.
fn gather(
    dir: &Path,
    name: &str,
    is_left_out: &dyn Fn(&Path) -> bool,
    depth: usize,
    items: &mut Vec<Item>,
) -> io::Result<()> {
    let entries = match std::fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    let mut paths = entries.map(|e| Ok(e?.path())).collect::<io::Result<Vec<_>>>()?;
    paths.sort();
    for path in paths.into_iter().filter(|path| !is_left_out(path)) {
        let kind = std::fs::symlink_metadata(&path)?.file_type();
        let name = format!("{name}/{}", path.file_name().unwrap_or_default().to_string_lossy());
        if kind.is_dir() && depth < DEPTH_MAX {
            gather(&path, &name, is_left_out, depth + 1, items)?;
        } else if kind.is_file() || kind.is_dir() {
            items.push(Item { name, path });
        }
    }
    Ok(())
}

fn line(sum: Sha256, name: &str) -> String {
    format!("{}  {name}\n", hex(&sum.finalize()))
}

/// What is read, summed.
struct Summed<R: Read> {
    from: R,
    sum: Sha256,
}

impl<R: Read> Read for Summed<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let n = self.from.read(out)?;
        self.sum.update(&out[..n]);
        Ok(n)
    }
}

/// Unpacks an archive into an empty folder, and checks every sum; the sums.
fn unpack(file: &Path, next: &Path) -> anyhow::Result<String> {
    let _ = std::fs::remove_dir_all(next);
    let (mut sums, mut told) = (String::new(), None);
    let mut folders = BTreeSet::from([next.to_owned()]);
    let make = |dir: &Path| std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir);
    make(next)?;
    read_tar(BufReader::new(File::open(file)?), |entry, from| {
        if entry.name == SUMS {
            let mut text = String::new();
            from.read_to_string(&mut text)?;
            told = Some(text);
            return Ok(());
        }
        let is_ours = entry.name.starts_with("config/") || entry.name.starts_with("state/");
        if !is_ours || entry.name.split('/').count() > DEPTH_MAX + 2 || told.is_some() {
            return Err(io::Error::other("it is no backup of this program"));
        }
        let path = next.join(&entry.name);
        let above = path.ancestors().skip(1).take_while(|dir| *dir != next);
        folders.extend(above.map(Path::to_owned));
        path.parent().map_or(Ok(()), make)?;
        let mut out = File::options().write(true).create_new(true).mode(0o600).open(path)?;
        let mut summed = Summed { from, sum: Sha256::new() };
        io::copy(&mut summed, &mut out)?;
        sums.push_str(&line(summed.sum, &entry.name));
        out.set_permissions(Permissions::from_mode(mode_of(&entry.name, entry.mode)))?;
        out.sync_all()
    })?;
    for folder in folders {
        File::open(folder)?.sync_all()?;
    }
    match told {
        Some(told) if told == sums => Ok(sums),
        _ => Err(CliError::integrity("a file of it is not what its sum says").into()),
    }
}

/// The mode that a file comes back with. The state is for its owner alone. The service reads what
/// it is configured by, which is root's.
fn mode_of(name: &str, mode: u32) -> u32 {
    let is_read = [".toml", ".yaml", ".yml"].iter().any(|end| name.ends_with(end));
    match name.starts_with("config/") {
        true if is_read => 0o644,
        true => mode & 0o644 | 0o600,
        false => 0o600,
    }
}

/// Goes on with a restore that was cut; whether there was one.
pub fn go_on(app: &App) -> anyhow::Result<bool> {
    let root = &app.dirs.root_state;
    if !root.join(MARK).exists() {
        return Ok(false);
    }
    if *root != app.dirs.state && !is_root() {
        return Err(anyhow::anyhow!("a restore was cut; sudo jetforge restore --finish goes on"));
    }
    let state = &app.dirs.state;
    let _held = as_owner_of(state, || -> anyhow::Result<File> {
        std::fs::create_dir_all(state)?;
        Ok(Store::hold(state)?)
    })??;
    finish(app)
}

/// Gives a restore up that was cut.
pub fn forget(app: &App) -> io::Result<()> {
    let root = &app.dirs.root_state;
    file::remove_for_good(&root.join(MARK))?;
    file::discard(&root.join(NEXT))
}

/// Does what a restore still has to do, if there is one; nobody else has the store.
fn finish(app: &App) -> anyhow::Result<bool> {
    let (config, state, root) = (&app.dirs.config, &app.dirs.state, &app.dirs.root_state);
    let (mark, next) = (root.join(MARK), root.join(NEXT));
    if !mark.exists() {
        return Ok(false);
    }
    let place = || -> io::Result<()> {
        let sums = std::fs::read_to_string(&mark)?;
        let names: BTreeSet<&str> = sums.lines().filter_map(|line| line.get(66..)).collect();
        for Item { name, path } in items(app, true)? {
            match name.starts_with("state/") {
                _ if names.contains(name.as_str()) => {}
                true => as_owner_of(state, || file::discard(&path)).flatten()?,
                false => file::discard(&path)?,
            }
        }
        let (mut of_config, mut of_state) = (Vec::new(), Vec::new());
        gather(&next.join("config"), "", &|_| false, 0, &mut of_config)?;
        gather(&next.join("state"), "", &|_| false, 0, &mut of_state)?;
        for Item { name, path } in of_config {
            bring(File::open(&path)?, &config.join(&name[1..]), Some(state))?;
            std::fs::remove_file(&path)?;
        }
        for Item { name, path } in of_state {
            let from = File::open(&path)?;
            as_owner_of(state, || bring(from, &state.join(&name[1..]), None)).flatten()?;
            std::fs::remove_file(&path)?;
        }
        // Who has the keys of before needs none of a first start.
        file::replace(&root.join(STAMP), b"", 0o600)?;
        let _ = std::fs::remove_dir_all(&next);
        File::open(root)?.sync_all()?;
        file::remove_for_good(&mark)
    };
    place().context("the restore is not done; it goes on with the next start")?;
    Ok(true)
}

/// Puts what `from` has in its place, with its mode. A file that a group may read is for the group
/// of `whose`.
fn bring(mut from: File, to: &Path, whose: Option<&Path>) -> io::Result<()> {
    let mode = from.metadata()?.mode() & 0o777;
    to.parent().map_or(Ok(()), std::fs::create_dir_all)?;
    for end in [LOG, INDEX] {
        // A log beside the store belongs to the one that goes.
        let mut log = to.as_os_str().to_owned();
        log.push(end);
        file::remove(Path::new(&log))?;
    }
    let mut draft = Draft::new(to, mode)?;
    if let (0o040, Some(whose), true) = (mode & 0o044, whose, is_root()) {
        let gid = std::fs::metadata(whose)?.gid();
        std::os::unix::fs::fchown(draft.file(), None, Some(gid))?;
    }
    io::copy(&mut from, &mut draft)?;
    draft.commit()
}
