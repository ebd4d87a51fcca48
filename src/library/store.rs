//! The store: model files in a directory, found by name, copied in, checked and removed.
//!
//! A model's name is its file name without `.gguf`, and without the shard number when it is split.
//! A person's store also sees the service's models, and only reads them.

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::LibraryError;
use super::digest::{CHUNK_BYTES, check_magic, check_model, sha256_file};
use super::record::{self, Record, beside};
use super::url::check_file_name;
use crate::base::format::nearest;
use crate::base::hash::hex;
use crate::base::host::disk_free_bytes;
use crate::base::limits::{DISK_RESERVE_BYTES, GGUF_SHARDS_MAX};

/// A model that is here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredModel {
    /// Its name on the command line.
    pub name: String,
    /// Its files, the first shard first.
    pub files: Vec<PathBuf>,
    /// Bytes of all files.
    pub size_bytes: u64,
    /// Whether it belongs to the machine's service and cannot be changed here.
    pub is_shared: bool,
}

impl StoredModel {
    /// The record of each file, `None` where there is none.
    pub fn records(&self) -> Vec<Option<Record>> {
        self.files.iter().map(|file| record::read(&beside(file).record)).collect()
    }
}

/// A model outside of the store, every shard of it open: who may read it there is not always who
/// writes into the store.
#[derive(Debug)]
pub struct Incoming {
    shards: Vec<Shard>,
}

#[derive(Debug)]
struct Shard {
    file: File,
    /// As it was named.
    path: PathBuf,
    /// Where that is.
    origin: PathBuf,
    size_bytes: u64,
}

impl Incoming {
    /// Opens the model of a file, which is any shard of it.
    ///
    /// # Errors
    /// When it is no model, or cannot be read.
    pub fn open(path: &Path) -> Result<Incoming, LibraryError> {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        check_file_name(&name)?;
        let shards =
            shard_names(&name).into_iter().map(|name| Shard::open(path.with_file_name(name)));
        let incoming = Incoming { shards: shards.collect::<Result<_, _>>()? };
        check_model(path, &path.display().to_string())?;
        Ok(incoming)
    }
}

impl Shard {
    fn open(path: PathBuf) -> Result<Shard, LibraryError> {
        let (file, size_bytes) = open_model(&path)?;
        let origin = path.canonicalize().unwrap_or_else(|_| path.clone());
        Ok(Shard { file, path, origin, size_bytes })
    }

    fn target(&self, dir: &Path) -> PathBuf {
        dir.join(self.path.file_name().unwrap_or_default())
    }
}

/// What a check of a model found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verified {
    /// Size and hash are those of the record.
    Matches,
    /// There was no record; one was made from these bytes, or could not be in a shared store.
    Recorded,
}

/// The directory of models.
#[derive(Clone, Debug)]
pub struct Store {
    dir: PathBuf,
    shared: Option<PathBuf>,
}

impl Store {
    /// A store in `dir`, which need not exist yet, that also sees `shared`.
    pub fn new(dir: PathBuf, shared: Option<PathBuf>) -> Store {
        let shared = shared.filter(|s| *s != dir);
        Store { dir, shared }
    }

    /// Where new models go.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Every model by name; one of the person's own hides a shared one of the same name.
    ///
    /// # Errors
    /// When a directory is there but cannot be read.
    pub fn list(&self) -> Result<Vec<StoredModel>, LibraryError> {
        let mut models = list_dir(&self.dir, false)?;
        if let Some(shared) = &self.shared {
            for model in list_dir(shared, true)? {
                if models.iter().all(|own| own.name != model.name) {
                    models.push(model);
                }
            }
        }
        models.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(models)
    }

    /// The model of this name, in any case; `name.gguf` is also its name.
    ///
    /// # Errors
    /// When there is none; the hint names a similar one.
    pub fn find(&self, name: &str) -> Result<StoredModel, LibraryError> {
        let wanted = name.strip_suffix(".gguf").unwrap_or(name);
        let models = self.list()?;
        let found = models
            .iter()
            .find(|m| m.name == wanted)
            .or_else(|| models.iter().find(|m| m.name.eq_ignore_ascii_case(wanted)));
        found.cloned().ok_or_else(|| {
            let near = nearest(wanted, models.iter().map(|m| m.name.as_str()));
            LibraryError::UnknownModel {
                name: name.to_owned(),
                hint: near.map_or(String::new(), |n| format!("; did you mean {n:?}?")),
            }
        })
    }

    /// Copies a model into the store and records its hash. `progress` gets bytes done and bytes in
    /// all.
    ///
    /// # Errors
    /// When it is there already (unless `force`), does not fit on the disk, or cannot be copied.
    pub fn import(
        &self,
        incoming: &Incoming,
        force: bool,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<StoredModel, LibraryError> {
        std::fs::create_dir_all(&self.dir).map_err(LibraryError::io("create", &self.dir))?;
        let targets = || incoming.shards.iter().map(|shard| shard.target(&self.dir));
        if let Some(path) = targets().find(|target| target.exists() && !force) {
            return Err(LibraryError::Exists { path });
        }
        let total: u64 = incoming.shards.iter().map(|shard| shard.size_bytes).sum();
        check_space(&self.dir, total)?;
        let mut done = 0;
        for (shard, target) in incoming.shards.iter().zip(targets()) {
            let copied = copy(shard, &target, &mut |n| progress(done + n, total))?;
            done += copied;
        }
        let first = incoming.shards[0].path.file_name().unwrap_or_default().to_string_lossy();
        self.find(model_name(&first))
    }

    /// Reads every byte of a model and compares it with its record. `progress` gets bytes done
    /// and bytes in all.
    ///
    /// # Errors
    /// When a file cannot be read, or differs in size or hash.
    pub fn verify(
        &self,
        model: &StoredModel,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Verified, LibraryError> {
        let mut verdict = Verified::Matches;
        let mut done = 0;
        for file in &model.files {
            let what = file.display().to_string();
            open_model(file)?;
            let (sha256, size_bytes) =
                sha256_file(file, &mut |n| progress(done + n, model.size_bytes))?;
            done += size_bytes;
            match record::read::<Record>(&beside(file).record) {
                Some(record) => compare(&what, &record, size_bytes, &sha256)?,
                None => {
                    verdict = Verified::Recorded;
                    let record = Record { origin: String::new(), etag: None, size_bytes, sha256 };
                    if !model.is_shared {
                        record::write(&beside(file).record, &record)?;
                    }
                }
            }
        }
        check_model(&model.files[0], &model.files[0].display().to_string())?;
        Ok(verdict)
    }

    /// Deletes a model of one's own, with its records and unfinished downloads.
    ///
    /// # Errors
    /// When it is the service's, or a file cannot be deleted.
    pub fn remove(&self, model: &StoredModel) -> Result<(), LibraryError> {
        if model.is_shared {
            let denied = std::io::Error::from(std::io::ErrorKind::PermissionDenied);
            return Err(LibraryError::io("remove the service's", &model.files[0])(denied));
        }
        for file in &model.files {
            std::fs::remove_file(file).map_err(LibraryError::io("remove", file))?;
            let beside = beside(file);
            for hidden in [beside.record, beside.part, beside.part_record, beside.preset] {
                match std::fs::remove_file(&hidden) {
                    Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                        return Err(LibraryError::io("remove", hidden)(error));
                    }
                    _ => {}
                }
            }
        }
        Ok(())
    }
}

/// Refuses to start what would fill the disk.
pub(super) fn check_space(dir: &Path, needed_bytes: u64) -> Result<(), LibraryError> {
    match disk_free_bytes(dir) {
        Some(free_bytes) if needed_bytes.saturating_add(DISK_RESERVE_BYTES) > free_bytes => {
            Err(LibraryError::NoSpace {
                path: dir.to_owned(),
                needed_bytes,
                reserve_bytes: DISK_RESERVE_BYTES,
                free_bytes,
            })
        }
        _ => Ok(()),
    }
}

fn compare(what: &str, record: &Record, size: u64, sha256: &str) -> Result<(), LibraryError> {
    let mismatch = |property, got: String, expected: String| LibraryError::Mismatch {
        what: what.to_owned(),
        property,
        got,
        expected,
    };
    if record.size_bytes != size {
        return Err(mismatch("size", size.to_string(), record.size_bytes.to_string()));
    }
    if record.sha256 != sha256 {
        return Err(mismatch("SHA-256", sha256.to_owned(), record.sha256.clone()));
    }
    Ok(())
}

fn list_dir(dir: &Path, is_shared: bool) -> Result<Vec<StoredModel>, LibraryError> {
    let entries = match std::fs::read_dir(dir) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        // What the service keeps to itself is not there for others.
        Err(_) if is_shared => return Ok(Vec::new()),
        other => other.map_err(LibraryError::io("read", dir))?,
    };
    let mut files: Vec<(String, PathBuf, u64)> = entries
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            let size = std::fs::metadata(entry.path()).ok().filter(|m| m.is_file())?.len();
            check_file_name(&name).ok()?;
            Some((name, entry.path(), size))
        })
        .collect();
    files.sort();
    let mut models: Vec<StoredModel> = Vec::new();
    for (file_name, path, size) in files {
        let name = model_name(&file_name).to_owned();
        match models.last_mut().filter(|last| last.name == name) {
            Some(last) => {
                last.files.push(path);
                last.size_bytes += size;
            }
            None => {
                models.push(StoredModel { name, files: vec![path], size_bytes: size, is_shared })
            }
        }
    }
    Ok(models)
}

/// `a-00002-of-00003.gguf` is shard 2 of 3 of `a`.
fn shard(file_name: &str) -> Option<(&str, u32, u32)> {
    let stem = file_name.strip_suffix(".gguf")?;
    let (rest, count) = stem.rsplit_once("-of-")?;
    let (base, number) = rest.rsplit_once('-')?;
    if count.len() != 5 || number.len() != 5 {
        return None;
    }
    let (number, count) = (number.parse().ok()?, count.parse().ok()?);
    (1 <= number && number <= count && count <= GGUF_SHARDS_MAX).then_some((base, number, count))
}

/// The shards' file names when `file_name` is one of them, else the name alone.
pub(super) fn shard_names(file_name: &str) -> Vec<String> {
    match shard(file_name) {
        Some((base, _, count)) => {
            (1..=count).map(|i| format!("{base}-{i:05}-of-{count:05}.gguf")).collect()
        }
        None => vec![file_name.to_owned()],
    }
}

/// The name on the command line of a file name.
pub(super) fn model_name(file_name: &str) -> &str {
    match shard(file_name) {
        Some((base, _, _)) => base,
        None => file_name.strip_suffix(".gguf").unwrap_or(file_name),
    }
}

/// A model file whose first bytes are right, from its beginning, and its size.
fn open_model(path: &Path) -> Result<(File, u64), LibraryError> {
    let failed = || LibraryError::io("read", path);
    let mut file = File::open(path).map_err(LibraryError::io("open", path))?;
    let mut start = Vec::new();
    (&file).take(4).read_to_end(&mut start).map_err(failed())?;
    check_magic(&start, &path.display().to_string())?;
    file.rewind().map_err(failed())?;
    let size_bytes = file.metadata().map_err(failed())?.len();
    Ok((file, size_bytes))
}

fn copy(shard: &Shard, target: &Path, progress: &mut dyn FnMut(u64)) -> Result<u64, LibraryError> {
    let part = beside(target).part;
    let mut from = &shard.file;
    let mut to = open_part(&part)?;
    to.set_len(0).map_err(LibraryError::io("write", &part))?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; CHUNK_BYTES];
    let mut done = 0;
    loop {
        let n = from.read(&mut buffer).map_err(LibraryError::io("read", &shard.path))?;
        if n == 0 {
            break;
        }
        hasher.update(&buffer[..n]);
        to.write_all(&buffer[..n]).map_err(LibraryError::io("write", &part))?;
        done += n as u64;
        progress(done);
    }
    to.sync_all().map_err(LibraryError::io("write", &part))?;
    let record = Record {
        origin: shard.origin.display().to_string(),
        etag: None,
        size_bytes: done,
        sha256: hex(&hasher.finalize()),
    };
    record::publish(&part, target, &record)?;
    Ok(done)
}

/// Opens an unfinished file for reading and writing, and locks it for this process.
pub(super) fn open_part(part: &Path) -> Result<File, LibraryError> {
    let file = File::options()
        .create(true)
        .truncate(false)
        .read(true)
        .write(true)
        .open(part)
        .map_err(LibraryError::io("write", part))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => Err(LibraryError::Busy { path: part.to_owned() }),
        // A file system without locks (some USB sticks) still takes files.
        Err(std::fs::TryLockError::Error(_)) => Ok(file),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inference::gguf::GgufBuilder;

    fn store() -> (tempfile::TempDir, Store) {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::new(dir.path().join("models"), Some(dir.path().join("shared")));
        (dir, store)
    }

    fn write_model(dir: &Path, name: &str) -> PathBuf {
        let model = GgufBuilder::new().pair("general.name", name);
        write(dir, name, &model.build())
    }

    fn write_shard(dir: &Path, name: &str, number: u16) -> PathBuf {
        let shard = GgufBuilder::new()
            .pair("split.no", number)
            .pair("split.count", 2u16)
            .pair("split.tensors.count", 0i32);
        write(dir, name, &shard.build())
    }

    fn write(dir: &Path, name: &str, bytes: &[u8]) -> PathBuf {
        std::fs::create_dir_all(dir).unwrap();
        let path = dir.join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    }

    fn import(store: &Store, path: &Path) -> Result<StoredModel, LibraryError> {
        store.import(&Incoming::open(path)?, false, &mut |_, _| {})
    }

    #[test]
    fn import_verify_remove() {
        let (dir, store) = store();
        let stick = write_model(&dir.path().join("usb"), "Tiny-Q4.gguf");
        let n = std::fs::metadata(&stick).unwrap().len();
        let mut last = (0, 0);
        let incoming = Incoming::open(&stick).unwrap();
        let model = store.import(&incoming, false, &mut |done, all| last = (done, all)).unwrap();
        assert_eq!((model.name.as_str(), model.size_bytes, last), ("Tiny-Q4", n, (n, n)));
        assert_eq!(store.find("tiny-q4.gguf").unwrap(), model);
        assert_eq!(store.verify(&model, &mut |_, _| {}).unwrap(), Verified::Matches);
        assert!(model.records()[0].as_ref().unwrap().origin.ends_with("usb/Tiny-Q4.gguf"));
        let again = import(&store, &stick).unwrap_err();
        assert!(matches!(again, LibraryError::Exists { .. }));

        let mut bytes = std::fs::read(&model.files[0]).unwrap();
        let last = bytes.iter().rposition(|b| *b == b'4').unwrap();
        bytes[last] ^= 1;
        std::fs::write(&model.files[0], bytes).unwrap();
        let error = store.verify(&model, &mut |_, _| {}).unwrap_err();
        assert!(matches!(error, LibraryError::Mismatch { property: "SHA-256", .. }), "{error}");
        store.remove(&model).unwrap();
        assert!(store.list().unwrap().is_empty());
        assert_eq!(std::fs::read_dir(store.dir()).unwrap().count(), 0, "nothing hidden is left");
    }

    #[test]
    fn shards_are_one_model() {
        let (dir, store) = store();
        let usb = dir.path().join("usb");
        write_shard(&usb, "big-00001-of-00002.gguf", 0);
        let second = usb.join("big-00002-of-00002.gguf");
        let error = import(&store, &second).unwrap_err();
        assert!(error.to_string().contains("00002"), "a missing shard is named: {error}");
        write_shard(&usb, "big-00002-of-00002.gguf", 1);
        let model = import(&store, &second).unwrap();
        assert_eq!((model.name.as_str(), model.files.len()), ("big", 2));
        assert!(model.files[0].ends_with("big-00001-of-00002.gguf"));
    }

    #[test]
    fn shared_models_are_seen_and_kept() {
        let (dir, store) = store();
        write_model(&dir.path().join("shared"), "a.gguf");
        let model = store.find("a").unwrap();
        assert!(model.is_shared && store.remove(&model).is_err());
        write_model(store.dir(), "a.gguf");
        assert!(!store.find("a").unwrap().is_shared);
        let hint = store.find("b").unwrap_err().to_string();
        assert!(hint.contains("did you mean \"a\""), "{hint}");
    }

    #[test]
    fn what_is_no_model_is_not_imported() {
        let (dir, store) = store();
        let page = dir.path().join("page.gguf");
        std::fs::write(&page, "<!DOCTYPE html>").unwrap();
        let error = import(&store, &page).unwrap_err();
        assert!(error.to_string().contains("web page"), "{error}");
        let other = dir.path().join("x.bin");
        assert!(matches!(import(&store, &other).unwrap_err(), LibraryError::BadName { .. }));
    }
}
