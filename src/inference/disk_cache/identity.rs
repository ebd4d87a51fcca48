//! Who a cache belongs to: one digest over whole files, remembered for files that did not change.
//!
//! A model's gigabyte is digested once. What is remembered is bound to device, inode, size and both
//! times of the open file, down to the nanosecond, and vouched for with the device key: a write to
//! the file changes its `ctime`, which nobody can set back. A file younger than two seconds is not
//! remembered, because a clock's tick could hide a second write. Small files are digested at once,
//! large ones by a thread; until it is done nothing is looked up or kept.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use ring::digest::{Context, SHA256, digest};

use super::keys::Key;
use super::worker::Shared;
use crate::base::limits::PREFIX_DIGESTS_MAX;
use crate::seal::KEY_LEN;

/// Bytes that are digested without a thread.
const AT_ONCE_BYTES: u64 = 64 << 20;
/// Bytes that are read at a time.
const CHUNK_BYTES: usize = 1 << 20;
/// Seconds that a file has to be old to be remembered.
const AGE_MIN_S: i64 = 2;

type Digest = [u8; 32];

/// Something that shapes what is cached.
pub enum Part {
    /// A few bytes.
    Bytes(Vec<u8>),
    /// The contents of a file.
    File(File),
}

/// A digest of parts, as soon as it is there; `None` where there will be none.
#[derive(Debug, Default)]
pub struct Identity(OnceLock<Option<Digest>>);

impl Identity {
    /// The digest, if it is there.
    pub fn get(&self) -> Option<&[u8; 32]> {
        self.0.get()?.as_ref()
    }

    /// One whose files could not be read.
    #[cfg(test)]
    pub fn failed() -> Identity {
        Identity(OnceLock::from(None))
    }

    /// Whether a file could not be read: there will be no digest.
    pub fn has_failed(&self) -> bool {
        matches!(self.0.get(), Some(None))
    }
}

/// See `DiskCache::identify`.
pub(super) fn identify(
    shared: Arc<Shared>,
    parts: Vec<Part>,
    done: impl FnOnce() + Send + 'static,
) -> Arc<Identity> {
    let identity = Arc::new(Identity::default());
    let dir = shared.options.dir.join("digests");
    let memo = Memo { shared, dir };
    let n_unknown: u64 = parts.iter().map(|part| memo.n_unknown(part)).sum();
    let theirs = Arc::clone(&identity);
    let work = move || {
        // Without a digest the cache stays unused for this model, which its misses tell.
        let _ = theirs.0.set(memo.digest_all(&parts).ok());
    };
    if n_unknown <= AT_ONCE_BYTES {
        work();
    } else {
        let thread = std::thread::Builder::new().name("model-digest".into());
        let started = thread.spawn(move || {
            work();
            done();
        });
        if started.is_err() {
            let _ = identity.0.set(None);
        }
    }
    identity
}

/// Forgets what is remembered of files.
pub(super) fn forget(dir: &Path) {
    let Ok(files) = fs::read_dir(dir.join("digests")) else { return };
    files.flatten().for_each(|file| drop(fs::remove_file(file.path())));
}

struct Memo {
    shared: Arc<Shared>,
    dir: PathBuf,
}

impl Memo {
    fn digest_all(&self, parts: &[Part]) -> io::Result<Digest> {
        let mut all = Context::new(&SHA256);
        for part in parts {
            let part = match part {
                Part::Bytes(bytes) => bytes_of(digest(&SHA256, bytes)),
                Part::File(file) => self.digest(file)?,
            };
            all.update(&part);
        }
        Ok(bytes_of(all.finish()))
    }

    /// Bytes that would have to be read.
    fn n_unknown(&self, part: &Part) -> u64 {
        let Part::File(file) = part else { return 0 };
        let Ok(stamp) = Stamp::of(file) else { return 0 };
        if self.recall(&stamp).is_some() { 0 } else { stamp.n_bytes }
    }

    fn digest(&self, file: &File) -> io::Result<Digest> {
        let stamp = Stamp::of(file)?;
        if let Some(known) = self.recall(&stamp) {
            return Ok(known);
        }
        let mut context = Context::new(&SHA256);
        let (mut at, mut chunk) = (0, vec![0; CHUNK_BYTES]);
        loop {
            let n = file.read_at(&mut chunk, at)?;
            if n == 0 {
                break;
            }
            context.update(&chunk[..n]);
            at += n as u64;
        }
        if Stamp::of(file)? != stamp {
            return Err(io::Error::other("the file changed while it was read"));
        }
        let digest = bytes_of(context.finish());
        if stamp.age_s(self.shared.disk.now().as_secs()) >= AGE_MIN_S {
            self.remember(&stamp, &digest);
        }
        Ok(digest)
    }

    fn path(&self, stamp: &Stamp) -> PathBuf {
        self.dir.join(Key(self.shared.keys.vouch(&stamp.bytes())).name())
    }

    fn recall(&self, stamp: &Stamp) -> Option<Digest> {
        let kept = fs::read(self.path(stamp)).ok()?;
        let (digest, tag) = kept.split_first_chunk::<32>()?;
        let vouched = [&stamp.bytes()[..], digest].concat();
        self.shared.keys.is_vouched(&vouched, tag).then_some(*digest)
    }

    fn remember(&self, stamp: &Stamp, digest: &Digest) {
        let kept = |file: fs::DirEntry| Some((file.metadata().ok()?.modified().ok()?, file.path()));
        let files = fs::read_dir(&self.dir).into_iter().flatten().flatten();
        let mut files: Vec<_> = files.filter_map(kept).collect();
        files.sort();
        let n_over = (files.len() + 1).saturating_sub(PREFIX_DIGESTS_MAX);
        files.iter().take(n_over).for_each(|(_, path)| drop(fs::remove_file(path)));
        let tag = self.shared.keys.vouch(&[&stamp.bytes()[..], digest].concat());
        // Cut short by a crash, it is not vouched for, and the file is digested again.
        let _ = fs::write(self.path(stamp), [&digest[..], &tag].concat());
    }
}

/// What changes when a file does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    n_bytes: u64,
    /// Seconds and nanoseconds of the last write, and of the last change of any kind.
    times: [i64; 4],
}

impl Stamp {
    fn of(file: &File) -> io::Result<Stamp> {
        let m = file.metadata()?;
        let times = [m.mtime(), m.mtime_nsec(), m.ctime(), m.ctime_nsec()];
        Ok(Stamp { device: m.dev(), inode: m.ino(), n_bytes: m.len(), times })
    }

    fn bytes(&self) -> Vec<u8> {
        let numbers = [self.device, self.inode, self.n_bytes].map(u64::to_le_bytes);
        [numbers.concat(), self.times.map(i64::to_le_bytes).concat()].concat()
    }

    fn age_s(&self, now_unix_s: u64) -> i64 {
        let [written, _, changed, _] = self.times;
        now_unix_s as i64 - written.max(changed)
    }
}

fn bytes_of(digest: ring::digest::Digest) -> [u8; KEY_LEN] {
    let mut bytes = [0; KEY_LEN];
    bytes.copy_from_slice(digest.as_ref());
    bytes
}
