//! Blobs on the disk: files under their names in the state directory, sealed piece by piece.
//!
//! ```text
//! NAME            whole: salt | sealed piece | tag, again and again
//! NAME.outline    what each piece hashes to
//! NAME.part       what has come so far, from the first piece on
//! NAME.want       from whom it is to come, how many bytes, and why it does not come
//! NAME.note       since when it is kept, and whether it may go by itself
//! ```
//!
//! There is nothing else to agree with: what a file is called and how long it is says how far it
//! is, so a loss of power between any two writes leaves a blob that goes on where it was. What is
//! under its bare name was read whole and was right. Other processes of the owner may put blobs in
//! beside a service. What takes more than [`SYNC_BLOBS_BYTES_MAX`], or the last of the disk, waits.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::haul::{Ask, Hold, Want};
use super::tree::{BlobId, Outline, PIECE_BYTES, n_piece};
use crate::base::host::disk_free_bytes;
use crate::base::limits::{
    SYNC_BLOBS_BYTES_MAX, SYNC_DISK_FREE_MIN, SYNC_WANT_FILES_MAX, SYNC_WANTS_MAX,
};
use crate::seal::{KEY_LEN, SealError, Sealer, TAG_LEN, device_key, part_name};
use crate::store::now_ms;

/// What sealing adds to a piece.
const SEAL_BYTES: usize = KEY_LEN + TAG_LEN;
/// Bytes of a sealed piece that is not the last one.
const STRIDE: u64 = (PIECE_BYTES + SEAL_BYTES) as u64;
/// Bytes of a note.
const NOTE_BYTES_MAX: u64 = 4096;

/// What a machine keeps.
#[derive(Clone)]
pub struct Vault {
    dir: PathBuf,
    sealer: Sealer,
    bytes_max: u64,
    free_min: u64,
}

/// A blob that is to come.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wanted {
    /// From whom.
    pub peer: String,
    /// Its bytes.
    pub n_bytes: u64,
    /// Since when, in milliseconds since the Unix epoch.
    pub since_ms: i64,
    /// Why it does not come, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}

#[derive(Serialize, Deserialize)]
struct Note {
    since_ms: i64,
    /// It goes when something else needs its room.
    passes: bool,
}

/// How far a blob is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Progress {
    /// All of it is here.
    Whole,
    /// So many of its bytes have come.
    Coming {
        /// These.
        n_here: u64,
        /// Why no more do, where that is known.
        why: Option<String>,
    },
    /// It is neither here nor coming.
    Absent,
}

impl Vault {
    /// The blobs of a state directory.
    ///
    /// # Errors
    /// If the device key cannot be had.
    pub fn open(state_dir: &Path) -> Result<Vault, SealError> {
        let key = device_key(&state_dir.join("device.key"))?;
        Ok(Vault {
            dir: state_dir.join("blobs"),
            sealer: Sealer::new(&key, "jetforge blobs"),
            bytes_max: SYNC_BLOBS_BYTES_MAX,
            free_min: SYNC_DISK_FREE_MIN,
        })
    }

    /// The same with other bounds.
    #[cfg(test)]
    pub fn bounded(self, bytes_max: u64) -> Vault {
        Vault { bytes_max, free_min: 0, ..self }
    }

    fn path(&self, id: &BlobId, what: &str) -> PathBuf {
        self.dir.join(format!("{id}{what}"))
    }

    fn make_dir(&self) -> io::Result<()> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.dir)
    }

    /// Puts a file in whole or not at all.
    fn put_file(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        self.make_dir()?;
        let part = self.dir.join(part_name()?);
        let write = || {
            let mut file = create(&part)?;
            file.write_all(bytes)?;
            file.sync_all()?;
            fs::rename(&part, path)
        };
        write().inspect_err(|_| drop(fs::remove_file(&part)))
    }

    /// Bytes of all that is here.
    fn n_bytes(&self) -> u64 {
        let files = fs::read_dir(&self.dir).into_iter().flatten().flatten();
        files.filter_map(|file| file.metadata().ok()).map(|metadata| metadata.len()).sum()
    }

    /// Takes room for so many bytes more beside those that are `used`; why there is none. What
    /// passes goes first, the oldest before others.
    fn take_room(&self, used: &mut u64, n_bytes: u64) -> Result<(), String> {
        let is_over = |used: u64| used.saturating_add(n_bytes) > self.bytes_max;
        if is_over(*used) {
            for id in self.passing() {
                if !is_over(*used) {
                    break;
                }
                let n = fs::metadata(self.path(&id, "")).map_or(0, |file| file.len());
                self.drop_blob(&id);
                *used = used.saturating_sub(n);
            }
        }
        if is_over(*used) {
            let mib = self.bytes_max >> 20;
            return Err(format!(
                "the {mib} MiB for files are full; `jetforge sync drop` makes room"
            ));
        }
        let free = disk_free_bytes(&self.dir).unwrap_or(u64::MAX);
        if free < n_bytes.saturating_add(self.free_min) {
            return Err("the disk is full".to_owned());
        }
        *used += n_bytes;
        Ok(())
    }

    /// Blobs that may go by themselves, the oldest first.
    fn passing(&self) -> Vec<BlobId> {
        let notes = self.files(".note").filter_map(|id| Some((self.note(&id)?, id)));
        let passing = notes.filter(|(note, id)| note.passes && self.is_whole(id));
        let mut passing: Vec<(i64, BlobId)> =
            passing.map(|(note, id)| (note.since_ms, id)).collect();
        passing.sort_unstable();
        passing.into_iter().map(|(_, id)| id).collect()
    }

    /// Whether nothing is here, nor wanted.
    pub fn is_empty(&self) -> bool {
        fs::read_dir(&self.dir).map_or(true, |mut files| files.next().is_none())
    }

    /// Names of the files that end so.
    fn files(&self, end: &'static str) -> impl Iterator<Item = BlobId> {
        let files = fs::read_dir(&self.dir).into_iter().flatten().flatten();
        files.filter_map(move |file| {
            let name = file.file_name();
            BlobId::read(name.to_str()?.strip_suffix(end)?)
        })
    }

    fn note(&self, id: &BlobId) -> Option<Note> {
        read_json(&self.path(id, ".note"))
    }

    /// Puts in what a reader gives; its name, how many bytes it had. What passes may go by itself
    /// when something else needs the room.
    ///
    /// # Errors
    /// If the reader fails, or there is no room.
    pub fn put(&self, reader: &mut (impl Read + Seek), passes: bool) -> io::Result<(BlobId, u64)> {
        let (id, outline) = Outline::of_reader(reader)?;
        let n_bytes = outline.n_bytes();
        if self.is_whole(&id) {
            return Ok((id, n_bytes));
        }
        let room = self.take_room(&mut self.n_bytes(), sealed_bytes(n_bytes));
        room.map_err(|why| io::Error::new(io::ErrorKind::StorageFull, why))?;
        self.make_dir()?;
        reader.seek(SeekFrom::Start(0))?;
        let part = self.dir.join(part_name()?);
        let mut write = || {
            let mut file = create(&part)?;
            for i in 0..outline.n_piece() {
                let mut piece = vec![0; outline.piece_bytes(i)];
                reader.read_exact(&mut piece)?;
                if !outline.holds(i, &piece) {
                    return Err(io::Error::other("it changed while it was read"));
                }
                file.write_all(&self.sealer.wrap(&piece_name(&id, i), &piece)?)?;
            }
            file.sync_all()?;
            self.put_file(&self.path(&id, ".outline"), &outline.write())?;
            let note = Note { since_ms: now_ms(), passes };
            self.put_file(&self.path(&id, ".note"), &serde_json::to_vec(&note)?)?;
            fs::rename(&part, self.path(&id, ""))?;
            File::open(&self.dir)?.sync_all()
        };
        write().inspect_err(|_| drop(fs::remove_file(&part)))?;
        Ok((id, n_bytes))
    }

    /// Whether all of a blob is here.
    pub fn is_whole(&self, id: &BlobId) -> bool {
        self.path(id, "").is_file()
    }

    /// Wants a blob of a peer from now on, if it is not here.
    ///
    /// # Errors
    /// If the disk does not take it, or too many are wanted.
    pub fn want(&self, peer: &str, want: Want) -> io::Result<()> {
        let path = self.path(&want.id, ".want");
        if self.is_whole(&want.id) || path.exists() {
            return Ok(());
        }
        if self.files(".want").count() >= SYNC_WANT_FILES_MAX {
            let why = "too many files are wanted already";
            return Err(io::Error::new(io::ErrorKind::QuotaExceeded, why));
        }
        let (peer, n_bytes) = (peer.to_owned(), want.n_bytes);
        let wanted = Wanted { peer, n_bytes, since_ms: now_ms(), why: None };
        self.put_file(&path, &serde_json::to_vec(&wanted)?)
    }

    /// What is to come, the oldest want first.
    pub fn wanted(&self) -> Vec<(BlobId, Wanted)> {
        let read = |id: BlobId| read_json::<Wanted>(&self.path(&id, ".want")).map(|own| (id, own));
        let mut wanted: Vec<(BlobId, Wanted)> = self.files(".want").filter_map(read).collect();
        wanted.sort_unstable_by_key(|(id, own)| (own.since_ms, *id));
        wanted
    }

    /// How far a blob is.
    pub fn progress(&self, id: &BlobId) -> Progress {
        if self.is_whole(id) {
            return Progress::Whole;
        }
        match read_json::<Wanted>(&self.path(id, ".want")) {
            Some(wanted) => {
                let n = fs::metadata(self.path(id, ".part")).map_or(0, |part| part.len());
                let n_here = n / STRIDE * PIECE_BYTES as u64;
                Progress::Coming { n_here: n_here.min(wanted.n_bytes), why: wanted.why }
            }
            None => Progress::Absent,
        }
    }

    /// Reads a blob that is here into a writer; its bytes, `None` if it is not.
    ///
    /// # Errors
    /// If it was changed on the disk, or the writer fails.
    pub fn take_out(&self, id: &BlobId, out: &mut dyn Write) -> io::Result<Option<u64>> {
        let Some(outline) = self.whole_outline(id)? else { return Ok(None) };
        for i in 0..outline.n_piece() {
            let piece = self.read_piece("", id, i, &outline)?;
            let changed = || io::Error::other("it was changed on the disk");
            out.write_all(&piece.ok_or_else(changed)?)?;
        }
        Ok(Some(outline.n_bytes()))
    }

    /// A piece of a blob that is here whole, or its outline.
    ///
    /// # Errors
    /// If the disk does not give it.
    pub fn give(&self, ask: &Ask) -> io::Result<Option<Vec<u8>>> {
        let Some(outline) = self.whole_outline(&ask.id)? else { return Ok(None) };
        match ask.piece {
            None => Ok(Some(outline.write())),
            Some(i) if i < outline.n_piece() => self.read_piece("", &ask.id, i, &outline),
            Some(_) => Ok(None),
        }
    }

    /// Lets a blob go, with all that is known of it; whether there was one.
    pub fn drop_blob(&self, id: &BlobId) -> bool {
        let was_there = !matches!(self.progress(id), Progress::Absent);
        for what in ["", ".part", ".want", ".note", ".outline"] {
            let _ = fs::remove_file(self.path(id, what));
        }
        was_there
    }

    /// Wants nothing of a peer any more, nor keeps what came of it so far.
    pub fn forget(&self, peer: &str) {
        for (id, _) in self.wanted().into_iter().filter(|(_, own)| own.peer == peer) {
            self.drop_blob(&id);
        }
    }

    /// The outline of a blob that is here whole.
    fn whole_outline(&self, id: &BlobId) -> io::Result<Option<Outline>> {
        let Ok(metadata) = fs::metadata(self.path(id, "")) else { return Ok(None) };
        let n = metadata.len().div_ceil(STRIDE).max(1);
        let n_bytes = metadata.len().saturating_sub(n * SEAL_BYTES as u64);
        if n == 1 {
            return Ok(Outline::of_one(id, n_bytes));
        }
        let bytes = read_some(&self.path(id, ".outline"), 32 * n)?;
        Ok(bytes.and_then(|bytes| Outline::read(id, n_bytes, &bytes)))
    }

    /// A piece out of a file, if it is what it should be.
    fn read_piece(
        &self,
        what: &str,
        id: &BlobId,
        i: u64,
        outline: &Outline,
    ) -> io::Result<Option<Vec<u8>>> {
        let mut file = File::open(self.path(id, what))?;
        file.seek(SeekFrom::Start(i * STRIDE))?;
        let mut sealed = Vec::new();
        file.take((outline.piece_bytes(i) + SEAL_BYTES) as u64).read_to_end(&mut sealed)?;
        let piece = self.sealer.unwrap(&piece_name(id, i), &sealed);
        Ok(piece.filter(|piece| outline.holds(i, piece)))
    }

    fn set_why(&self, id: &BlobId, wanted: &Wanted, why: Option<String>) -> io::Result<()> {
        if wanted.why == why {
            return Ok(());
        }
        let wanted = Wanted { why, ..wanted.clone() };
        self.put_file(&self.path(id, ".want"), &serde_json::to_vec(&wanted)?)
    }
}

impl Hold for Vault {
    type Error = io::Error;

    fn wants(&mut self, peer: &str) -> io::Result<Vec<Want>> {
        let mut wants = Vec::new();
        // In one order for all peers, and each with all its room: two halves that fill the disk
        // would wait for each other.
        let mut used = self.n_bytes();
        for (id, wanted) in self.wanted() {
            let here = fs::metadata(self.path(&id, ".part")).map_or(0, |part| part.len());
            let to_come = sealed_bytes(wanted.n_bytes).saturating_sub(here);
            let lacks = self.take_room(&mut used, to_come).err();
            let is_full = lacks.is_some();
            // What the peer lacks it may have again: it is asked all the same.
            if is_full || wanted.why.as_deref() != Some(LACKING) {
                self.set_why(&id, &wanted, lacks)?;
            }
            if !is_full && wanted.peer == peer && wants.len() < SYNC_WANTS_MAX {
                wants.push(Want { id, n_bytes: wanted.n_bytes });
            }
        }
        Ok(wants)
    }

    fn outline(&mut self, id: &BlobId) -> io::Result<Option<Vec<u8>>> {
        read_some(&self.path(id, ".outline"), PIECE_BYTES as u64)
    }

    fn put_outline(&mut self, id: &BlobId, outline: &[u8]) -> io::Result<()> {
        self.put_file(&self.path(id, ".outline"), outline)
    }

    fn n_here(&mut self, id: &BlobId, outline: &Outline) -> io::Result<u64> {
        let n_bytes = fs::metadata(self.path(id, ".part")).map_or(0, |part| part.len());
        match n_bytes >= sealed_bytes(outline.n_bytes()) {
            true => Ok(outline.n_piece()),
            false => Ok((n_bytes / STRIDE).min(outline.n_piece() - 1)),
        }
    }

    fn append(&mut self, id: &BlobId, i: u64, piece: &[u8]) -> io::Result<()> {
        let sealed = self.sealer.wrap(&piece_name(id, i), piece)?;
        self.make_dir()?;
        let mut options = File::options();
        let options = options.write(true).create(true).truncate(false).mode(0o600);
        let mut file = options.open(self.path(id, ".part"))?;
        // What was torn by a loss of power is written over.
        file.set_len(i * STRIDE)?;
        file.seek(SeekFrom::Start(i * STRIDE))?;
        let written = file.write_all(&sealed);
        // A full disk leaves no half of a piece behind.
        written.inspect_err(|_| drop(file.set_len(i * STRIDE)))
    }

    fn finish(&mut self, id: &BlobId, outline: &Outline) -> io::Result<bool> {
        let part = self.path(id, ".part");
        for i in 0..outline.n_piece() {
            if self.read_piece(".part", id, i, outline)?.is_none() {
                File::options().write(true).open(&part)?.set_len(i * STRIDE)?;
                return Ok(false);
            }
        }
        let file = File::open(&part)?;
        file.sync_all()?;
        let note = Note { since_ms: now_ms(), passes: false };
        self.put_file(&self.path(id, ".note"), &serde_json::to_vec(&note)?)?;
        fs::rename(&part, self.path(id, ""))?;
        File::open(&self.dir)?.sync_all()?;
        // After that: a want without its blob would begin anew.
        let _ = fs::remove_file(self.path(id, ".want"));
        Ok(true)
    }

    fn piece(&mut self, id: &BlobId, i: u64) -> io::Result<Option<Vec<u8>>> {
        self.give(&Ask { id: *id, piece: Some(i) })
    }

    fn is_lacking(&mut self, peer: &str, id: &BlobId) -> io::Result<()> {
        match read_json::<Wanted>(&self.path(id, ".want")) {
            Some(wanted) if wanted.peer == peer => {
                self.set_why(id, &wanted, Some(LACKING.to_owned()))
            }
            _ => Ok(()),
        }
    }
}

/// Why a blob does not come whose writer let it go.
const LACKING: &str = "the other machine does not have it any more";

fn piece_name(id: &BlobId, i: u64) -> String {
    format!("piece {i} of {id}")
}

/// Bytes of a blob on the disk.
fn sealed_bytes(n_bytes: u64) -> u64 {
    n_bytes.saturating_add(n_piece(n_bytes).saturating_mul(SEAL_BYTES as u64))
}

fn create(path: &Path) -> io::Result<File> {
    File::options().write(true).create_new(true).mode(0o600).open(path)
}

fn read_some(path: &Path, n_max: u64) -> io::Result<Option<Vec<u8>>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut bytes = Vec::new();
    file.take(n_max).read_to_end(&mut bytes)?;
    Ok(Some(bytes))
}

fn read_json<T: for<'a> Deserialize<'a>>(path: &Path) -> Option<T> {
    let bytes = read_some(path, NOTE_BYTES_MAX).ok()??;
    serde_json::from_slice(&bytes).ok()
}
