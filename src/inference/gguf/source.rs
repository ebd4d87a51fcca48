//! Where a model's bytes live: a private read-only map, the program itself, or owned memory.

use std::fs::File;
use std::ops::{Deref, Range};
use std::path::Path;

use super::error::GgufError;

/// What the system is asked to read before it is needed.
const READ_AHEAD_BYTES: usize = 8 << 20;

/// How far the system was asked to read ahead of somebody who goes through a model's data in the
/// files' order. A map alone is read in the pieces that threads fault in, a few pages each and from
/// several places; so it is asked for some megabytes at a time, one behind the other.
#[derive(Debug, Default)]
pub struct ReadAhead {
    shard_idx: usize,
    /// Where that ends.
    end: usize,
}

impl ReadAhead {
    /// What to ask for when a range of a shard is about to be worked on, if it is worth asking.
    pub(super) fn next(&mut self, shard_idx: usize, range: Range<usize>) -> Option<Range<usize>> {
        let wanted = range.end + READ_AHEAD_BYTES;
        if self.shard_idx != shard_idx || !(range.start..=wanted).contains(&self.end) {
            *self = ReadAhead { shard_idx, end: range.start };
        }
        // Few large pieces, however small tensors are.
        let is_worth_it = wanted - self.end >= READ_AHEAD_BYTES / 2;
        is_worth_it.then(|| std::mem::replace(&mut self.end, wanted)..wanted)
    }
}

/// Bytes that stay where they are for as long as anything refers to them.
pub(super) enum Source {
    Static(&'static [u8]),
    Owned(Vec<u8>),
    /// A map, and the file that it is of.
    Map(memmap2::Mmap, File),
    /// A header, and zeros in the place of tensors; zeros that nobody reads take no memory.
    Outline(memmap2::Mmap),
}

impl Source {
    /// Gives back the pages that lie wholly or partly in a range of a map.
    pub(super) fn release(&self, start: usize, n_bytes: usize) {
        let Source::Map(map, _) = self else { return };
        if n_bytes == 0 {
            return;
        }
        // SAFETY: the map is private and read-only, so no page was changed, and what is dropped
        // comes back from the file when it is read. It is a hint: a refusal changes nothing.
        #[cfg(target_os = "linux")]
        let _ = unsafe {
            map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, start, n_bytes)
        };
    }

    /// Asks the system to bring a range of a map's file into its memory, as far as the file goes,
    /// while something else is worked on. Nobody waits for it, and it is a hint.
    pub(super) fn will_need(&self, range: Range<usize>) {
        #[cfg(target_os = "linux")]
        if let Source::Map(_, file) = self {
            let len = std::num::NonZeroU64::new(range.len() as u64);
            let advice = rustix::fs::Advice::WillNeed;
            let _ = rustix::fs::fadvise(file, range.start as u64, len, advice);
        }
    }

    /// As `release`, and lets the system forget its copy of the file as well. A hint, as well.
    pub(super) fn forget(&self, start: usize, n_bytes: usize) {
        self.release(start, n_bytes);
        #[cfg(target_os = "linux")]
        if let Source::Map(_, file) = self {
            let len = std::num::NonZeroU64::new(n_bytes as u64);
            let _ = rustix::fs::fadvise(file, start as u64, len, rustix::fs::Advice::DontNeed);
        }
    }
}

impl Deref for Source {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Source::Static(bytes) => bytes,
            Source::Owned(bytes) => bytes,
            Source::Map(map, _) | Source::Outline(map) => map,
        }
    }
}

impl std::fmt::Debug for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let kind = match self {
            Source::Static(_) => "static",
            Source::Owned(_) => "owned",
            Source::Map(..) => "map",
            Source::Outline(_) => "outline",
        };
        write!(f, "{kind}, {} bytes", self.len())
    }
}

/// `header`, followed by zeros up to `n_bytes`.
pub(super) fn outline(header: &[u8], n_bytes: u64) -> std::io::Result<Source> {
    let too_large = || std::io::Error::from(std::io::ErrorKind::FileTooLarge);
    let len = usize::try_from(n_bytes).map_err(|_| too_large())?.max(header.len()).max(1);
    let mut map = memmap2::MmapOptions::new().len(len).no_reserve_swap().map_anon()?;
    map[..header.len()].copy_from_slice(header);
    Ok(Source::Outline(map.make_read_only()?))
}

/// Maps a regular file whole.
///
/// The size is asked for before and after mapping: a file that a download is still appending to
/// should be refused here, not half read.
pub(super) fn map(path: &Path) -> Result<Source, GgufError> {
    let io = |source| GgufError::Io { path: path.to_owned(), source };
    // Asked before opening as well: opening a pipe would wait for its other end.
    if !std::fs::metadata(path).map_err(io)?.is_file() {
        return Err(GgufError::NotAFile { path: path.to_owned() });
    }
    let file = File::open(path).map_err(io)?;
    let before = file.metadata().map_err(io)?;
    if !before.is_file() {
        return Err(GgufError::NotAFile { path: path.to_owned() });
    }
    if before.len() == 0 {
        return Ok(Source::Static(&[])); // an empty range cannot be mapped
    }
    let len = usize::try_from(before.len())
        .map_err(|_| io(std::io::Error::from(std::io::ErrorKind::FileTooLarge)))?;
    // SAFETY: the map is private and read-only, and lives in `Source`, which hands out borrows
    // only. Other processes may still write to the file; every structure read from the bytes is
    // checked at its use (text again on each access), so changed bytes give wrong weights or an
    // error, not wild memory. Cutting the file short raises SIGBUS, which `Gguf::open` documents.
    let map =
        unsafe { memmap2::MmapOptions::new().len(len).map_copy_read_only(&file) }.map_err(io)?;
    if file.metadata().map_err(io)?.len() != before.len() {
        return Err(GgufError::FileChanged { path: path.to_owned() });
    }
    Ok(Source::Map(map, file))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whatever the tensors' sizes, each byte is asked for once and before it is worked on, in
    /// pieces worth a disk's while.
    #[test]
    fn each_byte_is_asked_for_once_and_in_large_pieces() {
        for sizes in [[1 << 20; 90], [9 << 20; 90], [100; 90]] {
            let (mut ahead, mut at, mut asked) = (ReadAhead::default(), 7, 7);
            for n_bytes in sizes {
                if let Some(range) = ahead.next(0, at..at + n_bytes) {
                    assert!(range.start == asked && range.len() >= READ_AHEAD_BYTES / 2);
                    asked = range.end;
                }
                at += n_bytes;
                assert!((at..=at + READ_AHEAD_BYTES).contains(&asked), "{asked} at {at}");
            }
        }
    }

    #[test]
    fn elsewhere_it_begins_anew() {
        let (mut ahead, n) = (ReadAhead::default(), READ_AHEAD_BYTES);
        assert_eq!(ahead.next(0, 0..10), Some(0..10 + n));
        assert_eq!(ahead.next(0, 9 * n..10 * n), Some(9 * n..11 * n), "what lies between is not");
        assert_eq!(ahead.next(0, n..n + 1), Some(n..2 * n + 1), "back");
        assert_eq!(ahead.next(1, n..n + 1), Some(n..2 * n + 1), "another shard");
    }
}
