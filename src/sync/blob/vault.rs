//! Blobs on the disk: files under their names in the state directory, sealed piece by piece.
//!
//! ```text
//! NAME            whole: salt | sealed piece | tag, again and again
//! NAME.outline    what each piece hashes to
//! NAME.part       what has come so far, from the first piece on
//! NAME.want       from whom it is to come, how many bytes, and why it does not come
//! NAME.note       since when it is kept, for what, and whether it may go by itself
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

use super::haul::{Ask, Hold, LACKING, Want};
use super::tree::{BlobId, Outline, PIECE_BYTES, n_piece};
use crate::base::file::{self, Draft};
use crate::base::host::disk_free_bytes;
use crate::base::limits::{
    SYNC_BLOB_BYTES_MAX, SYNC_BLOBS_BYTES_MAX, SYNC_DISK_FREE_MIN, SYNC_WANT_FILES_MAX,
    SYNC_WANTS_MAX,
};
use crate::seal::{KEY_LEN, SealError, Sealer, TAG_LEN, device_key};
use crate::store::now_ms;

/// What sealing adds to a piece.
const SEAL_BYTES: usize = KEY_LEN + TAG_LEN;
/// Bytes of a sealed piece that is not the last one.
const STRIDE: u64 = (PIECE_BYTES + SEAL_BYTES) as u64;
/// How the files of a blob end that is to come.
const WANTING: [&str; 2] = [".part", ".want"];
/// Bytes of a note.
const NOTE_BYTES_MAX: u64 = 4096;

/// What a machine keeps.
#[derive(Clone)]
pub struct Vault {
    dir: PathBuf,
    sealer: Sealer,
    bytes_max: u64,
    free_min: u64,
    n_want_max: usize,
}

/// For what a blob is kept, and for how long.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Keep {
    /// It goes when something else needs its room.
    #[serde(default)]
    pub passes: bool,
    /// The name of the file that it is: another blob can take its place there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

impl Keep {
    /// Until something else needs the room.
    pub fn passing() -> Keep {
        Keep { passes: true, name: None }
    }

    /// As the file of this name.
    pub fn named(name: &str) -> Keep {
        Keep { passes: false, name: Some(name.to_owned()) }
    }
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
    /// How often it was put off since a piece of it came.
    #[serde(default)]
    pub n_off: u32,
    /// For what it will be kept.
    #[serde(flatten)]
    pub keep: Keep,
}

#[derive(Serialize, Deserialize)]
struct Note {
    since_ms: i64,
    #[serde(flatten)]
    keep: Keep,
}

/// Room that is left, in bytes: of what blobs may take, and of the disk.
struct Room {
    own: i64,
    disk: i64,
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
            n_want_max: SYNC_WANT_FILES_MAX,
        })
    }

    /// The same with other bounds.
    #[cfg(test)]
    pub fn bounded(self, bytes_max: u64, n_want_max: usize) -> Vault {
        Vault { bytes_max, free_min: 0, n_want_max, ..self }
    }

    fn path(&self, id: &BlobId, what: &str) -> PathBuf {
        self.dir.join(format!("{id}{what}"))
    }

    fn make_dir(&self) -> io::Result<()> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.dir)
    }

    fn put_json(&self, id: &BlobId, what: &str, value: &impl Serialize) -> io::Result<()> {
        file::replace(&self.path(id, what), &serde_json::to_vec(value)?, 0o600)
    }

    /// Room that is left beside all that is here.
    fn room(&self) -> Room {
        let files = fs::read_dir(&self.dir).into_iter().flatten().flatten();
        let n_bytes: u64 =
            files.filter_map(|file| file.metadata().ok()).map(|metadata| metadata.len()).sum();
        let signed = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
        let free = disk_free_bytes(&self.dir).map_or(i64::MAX, signed);
        Room {
            own: signed(self.bytes_max).saturating_sub(signed(n_bytes)),
            disk: free.saturating_sub(signed(self.free_min)),
        }
    }

    /// Takes so many bytes of the room; why there are not as many. Where `may_drop`, what passes
    /// makes room, the oldest before others, if that is enough.
    fn take_room(&self, room: &mut Room, n_bytes: u64, may_drop: bool) -> Result<(), String> {
        let mib = self.bytes_max >> 20;
        if n_bytes > self.bytes_max {
            return Err(format!("it has more than the {mib} MiB that there are for files"));
        }
        // Both are far below the greatest number.
        let n = n_bytes as i64;
        let lacks = |room: &Room| n > room.own || n > room.disk;
        if lacks(room) && may_drop {
            let passing = self.passing();
            let spare: i64 = passing.iter().map(|(_, n)| *n as i64).sum();
            let after = Room { own: room.own + spare, disk: room.disk.saturating_add(spare) };
            for (id, n) in passing.into_iter().filter(|_| !lacks(&after)) {
                if !lacks(room) {
                    break;
                }
                self.drop_blob(&id);
                let (own, disk) = (room.own + n as i64, room.disk.saturating_add(n as i64));
                *room = Room { own, disk };
            }
        }
        if n > room.own {
            return Err(format!(
                "the {mib} MiB for files are full; `jetforge sync drop` makes room"
            ));
        }
        if n > room.disk {
            return Err("the disk is full".to_owned());
        }
        *room = Room { own: room.own - n, disk: room.disk - n };
        Ok(())
    }

    /// Blobs that may go by themselves and what they take, the oldest first.
    fn passing(&self) -> Vec<(BlobId, u64)> {
        let mut passing: Vec<(i64, BlobId, u64)> = self
            .notes()
            .filter(|(_, note)| note.keep.passes)
            .filter_map(|(id, note)| {
                let whole = fs::metadata(self.path(&id, "")).ok()?;
                Some((note.since_ms, id, whole.len()))
            })
            .collect();
        passing.sort_unstable();
        passing.into_iter().map(|(_, id, n)| (id, n)).collect()
    }

    fn notes(&self) -> impl Iterator<Item = (BlobId, Note)> {
        self.files(".note").filter_map(|id| Some((id, read_json(&self.path(&id, ".note"))?)))
    }

    /// Blobs that are here whole and do not go by themselves, with their bytes.
    pub fn kept(&self) -> Vec<(BlobId, u64)> {
        let kept = self.notes().filter(|(_, note)| !note.keep.passes);
        let kept = kept.filter_map(|(id, _)| {
            let n_sealed = fs::metadata(self.path(&id, "")).ok()?.len();
            Some((id, opened_bytes(n_sealed)))
        });
        kept.collect()
    }

    /// Blobs that are here or coming as the files of names.
    pub fn named(&self) -> Vec<(String, BlobId)> {
        let notes = self.notes().map(|(id, note)| (id, note.keep));
        let wants = self.wanted().into_iter().map(|(id, wanted)| (id, wanted.keep));
        notes.chain(wants).filter_map(|(id, keep)| Some((keep.name?, id))).collect()
    }

    /// Keeps a blob that is here or coming for this from now on.
    ///
    /// # Errors
    /// If the disk does not take it.
    pub fn keep(&self, id: &BlobId, keep: Keep) -> io::Result<()> {
        if self.is_whole(id) {
            let note = read_json::<Note>(&self.path(id, ".note"));
            return match note {
                Some(note) if note.keep == keep => Ok(()),
                note => {
                    let since_ms = note.map_or_else(now_ms, |note| note.since_ms);
                    self.put_json(id, ".note", &Note { since_ms, keep })
                }
            };
        }
        match self.wanted_one(id).filter(|wanted| wanted.keep != keep) {
            Some(wanted) => self.put_json(id, ".want", &Wanted { keep, ..wanted }),
            None => Ok(()),
        }
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

    fn wanted_one(&self, id: &BlobId) -> Option<Wanted> {
        read_json(&self.path(id, ".want"))
    }

    /// Puts in what a reader gives; its name, how many bytes it had. What passes may go by itself
    /// when something else needs the room.
    ///
    /// # Errors
    /// If the reader fails, or there is no room.
    pub fn put(&self, reader: &mut (impl Read + Seek), passes: bool) -> io::Result<(BlobId, u64)> {
        let n_bytes_max = SYNC_BLOB_BYTES_MAX.min(self.bytes_max);
        if reader.seek(SeekFrom::End(0))? > n_bytes_max {
            let why = format!("it has more than the {} MiB of a file", n_bytes_max >> 20);
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, why));
        }
        reader.seek(SeekFrom::Start(0))?;
        let (id, outline) = Outline::of_reader(reader)?;
        let n_bytes = outline.n_bytes();
        let keep = Keep { passes, name: None };
        if self.is_whole(&id) {
            let note = read_json::<Note>(&self.path(&id, ".note"));
            // What may go by itself does not once it is a file as well.
            if !passes && note.is_none_or(|note| note.keep.passes) {
                self.keep(&id, keep)?;
            }
            return Ok((id, n_bytes));
        }
        self.make_dir()?;
        let room = self.take_room(&mut self.room(), sealed_bytes(n_bytes), true);
        room.map_err(|why| io::Error::new(io::ErrorKind::StorageFull, why))?;
        reader.seek(SeekFrom::Start(0))?;
        let mut part = Draft::new(&self.path(&id, ""), 0o600)?;
        for i in 0..outline.n_piece() {
            let mut piece = vec![0; outline.piece_bytes(i)];
            reader.read_exact(&mut piece)?;
            if !outline.holds(i, &piece) {
                return Err(io::Error::other("it changed while it was read"));
            }
            part.write_all(&self.sealer.wrap(&piece_name(&id, i), &piece)?)?;
        }
        file::replace(&self.path(&id, ".outline"), &outline.write(), 0o600)?;
        self.put_json(&id, ".note", &Note { since_ms: now_ms(), keep })?;
        part.commit()?;
        Ok((id, n_bytes))
    }

    /// Whether all of a blob is here.
    pub fn is_whole(&self, id: &BlobId) -> bool {
        self.path(id, "").is_file()
    }

    /// Wants a blob of a peer from now on, to be kept for this, if it is not here; whether there is
    /// a place for one more want. A want that was put off makes place for a new one.
    ///
    /// # Errors
    /// If the disk does not take it.
    pub fn want(&self, peer: &str, want: Want, keep: Keep) -> io::Result<bool> {
        let (id, n_bytes) = (want.id, want.n_bytes);
        if self.is_whole(&id) || self.wanted_one(&id).is_some() {
            if !keep.passes {
                self.keep(&id, keep)?;
            }
            return Ok(true);
        }
        if self.files(".want").count() >= self.n_want_max {
            let last = self.wanted().pop().filter(|(_, own)| own.n_off > 0);
            let Some((idle, _)) = last else { return Ok(false) };
            self.drop_blob(&idle);
        }
        let (peer, since_ms) = (peer.to_owned(), now_ms());
        let wanted = Wanted { peer, n_bytes, since_ms, why: None, n_off: 0, keep };
        self.put_json(&id, ".want", &wanted)?;
        Ok(true)
    }

    /// What is to come, the oldest want first; behind the others what was put off, the least often
    /// first. What is here is not to come: the power may have gone before its want did, or its
    /// owner put it in.
    pub fn wanted(&self) -> Vec<(BlobId, Wanted)> {
        let read = |id: BlobId| {
            if self.is_whole(&id) {
                self.remove(&id, &WANTING);
            }
            self.wanted_one(&id).map(|own| (id, own))
        };
        let mut wanted: Vec<(BlobId, Wanted)> = self.files(".want").filter_map(read).collect();
        wanted.sort_unstable_by_key(|(id, own)| (own.n_off, own.since_ms, *id));
        wanted
    }

    /// What is to come and has room. In one order for all peers, and each with all its room: two
    /// halves that fill the disk would wait for each other. What was put off drops nothing for
    /// its room, and its reason stays.
    fn plan(&self) -> io::Result<Vec<(BlobId, Wanted)>> {
        let mut room = self.room();
        let mut plan = Vec::new();
        for (id, wanted) in self.wanted() {
            let here = fs::metadata(self.path(&id, ".part")).map_or(0, |part| part.len());
            let to_come = sealed_bytes(wanted.n_bytes).saturating_sub(here);
            let is_off = wanted.n_off > 0;
            let lacks = self.take_room(&mut room, to_come, !is_off).err();
            let has_room = lacks.is_none();
            if !is_off && wanted.why != lacks {
                self.put_json(&id, ".want", &Wanted { why: lacks, ..wanted.clone() })?;
            }
            if has_room {
                plan.push((id, wanted));
            }
        }
        Ok(plan)
    }

    /// Something of a blob came.
    fn comes(&self, id: &BlobId) -> io::Result<()> {
        match self.wanted_one(id).filter(|wanted| wanted.n_off > 0) {
            Some(wanted) => self.put_json(id, ".want", &Wanted { why: None, n_off: 0, ..wanted }),
            None => Ok(()),
        }
    }

    /// How far a blob is.
    pub fn progress(&self, id: &BlobId) -> Progress {
        if self.is_whole(id) {
            return Progress::Whole;
        }
        match self.wanted_one(id) {
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

    /// A piece of a blob that is here whole, or its outline; `None` if it was changed on the disk.
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
        self.remove(id, &["", ".part", ".want", ".note", ".outline"]);
        was_there
    }

    fn remove(&self, id: &BlobId, files: &[&str]) {
        files.iter().for_each(|end| drop(fs::remove_file(self.path(id, end))));
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
        let n_bytes = opened_bytes(metadata.len());
        let n = n_piece(n_bytes);
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
}

impl Hold for Vault {
    type Error = io::Error;

    fn wants(&mut self, peer: &str) -> io::Result<Vec<Want>> {
        let own = self.plan()?.into_iter().filter(|(_, wanted)| wanted.peer == peer);
        let wants = own.map(|(id, wanted)| Want { id, n_bytes: wanted.n_bytes });
        Ok(wants.take(SYNC_WANTS_MAX).collect())
    }

    fn want_of(&mut self, peer: &str, id: &BlobId) -> io::Result<Option<Want>> {
        if self.wanted_one(id).is_none_or(|wanted| wanted.peer != peer) {
            return Ok(None);
        }
        let found = self.plan()?.into_iter().find(|(own, _)| own == id);
        Ok(found.map(|(id, wanted)| Want { id, n_bytes: wanted.n_bytes }))
    }

    fn outline(&mut self, id: &BlobId) -> io::Result<Option<Vec<u8>>> {
        read_some(&self.path(id, ".outline"), PIECE_BYTES as u64)
    }

    fn put_outline(&mut self, id: &BlobId, outline: &[u8]) -> io::Result<()> {
        file::replace(&self.path(id, ".outline"), outline, 0o600)?;
        self.comes(id)
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
        written.inspect_err(|_| drop(file.set_len(i * STRIDE)))?;
        self.comes(id)
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
        let keep = self.wanted_one(id).map(|wanted| wanted.keep).unwrap_or_default();
        self.put_json(id, ".note", &Note { since_ms: now_ms(), keep })?;
        fs::rename(&part, self.path(id, ""))?;
        File::open(&self.dir)?.sync_all()?;
        // After that: a want without its blob would begin anew.
        self.remove(id, &WANTING);
        Ok(true)
    }

    fn give(&mut self, ask: &Ask) -> io::Result<Option<Vec<u8>>> {
        Vault::give(self, ask)
    }

    fn put_off(&mut self, peer: &str, id: &BlobId, why: &str) -> io::Result<()> {
        let Some(wanted) = self.wanted_one(id).filter(|wanted| wanted.peer == peer) else {
            return Ok(());
        };
        let is_said = wanted.why.as_deref() == Some(why);
        // Where one message asks for all of them, their order is nothing to write down.
        if is_said && why == LACKING && self.files(".want").count() <= SYNC_WANTS_MAX {
            return Ok(());
        }
        let (why, n_off) = (Some(why.to_owned()), wanted.n_off.saturating_add(1));
        self.put_json(id, ".want", &Wanted { why, n_off, ..wanted })
    }
}

fn piece_name(id: &BlobId, i: u64) -> String {
    format!("piece {i} of {id}")
}

/// Bytes of a blob on the disk.
fn sealed_bytes(n_bytes: u64) -> u64 {
    n_bytes.saturating_add(n_piece(n_bytes).saturating_mul(SEAL_BYTES as u64))
}

/// Bytes of a blob whose file has so many.
fn opened_bytes(n_sealed: u64) -> u64 {
    n_sealed.saturating_sub(n_sealed.div_ceil(STRIDE).max(1) * SEAL_BYTES as u64)
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
