//! Files in one file, as `tar` writes and reads them: the old form that every tar knows (ustar).
//!
//! ```text
//! header, 512 bytes: name 100, mode 8, ..., size 12 (octal), ..., sum 8, type 1, ..., "ustar"
//! bytes, padded with zeros to 512       and so on       two headers of zeros
//! ```
//!
//! Only plain files, with names of at most 100 bytes that stay below the folder they are unpacked
//! in. A reader takes nothing that a writer here would not have written.

use std::io::{self, Read, Write};

use super::limits::{TAR_FILE_BYTES_MAX, TAR_FILES_MAX};

const BLOCK: usize = 512;
const NAME_LEN: usize = 100;

/// Writes files one after the other.
pub struct TarWriter<W: Write> {
    out: W,
}

impl<W: Write> TarWriter<W> {
    /// An archive that goes to `out`.
    pub fn new(out: W) -> TarWriter<W> {
        TarWriter { out }
    }

    /// Adds a file of `n_bytes` that `from` has.
    ///
    /// # Errors
    /// If its name cannot be one here, `from` has fewer bytes, or `out` does not take it.
    pub fn add(
        &mut self,
        name: &str,
        mode: u32,
        n_bytes: u64,
        from: &mut dyn Read,
    ) -> io::Result<()> {
        if !is_sound(name) || n_bytes > TAR_FILE_BYTES_MAX {
            return Err(io::Error::other(format!("{name:?} cannot be in an archive")));
        }
        self.out.write_all(&header(name, mode, n_bytes))?;
        if io::copy(&mut from.take(n_bytes), &mut self.out)? != n_bytes {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.out.write_all(&[0; BLOCK][..padding(n_bytes)])
    }

    /// Ends the archive; what it went to.
    ///
    /// # Errors
    /// If the end cannot be written.
    pub fn finish(mut self) -> io::Result<W> {
        self.out.write_all(&[0; 2 * BLOCK])?;
        self.out.flush()?;
        Ok(self.out)
    }
}

/// What is said of a file in an archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TarEntry {
    /// Its name, which stays below any folder.
    pub name: String,
    /// Its permissions.
    pub mode: u32,
    /// Its bytes.
    pub n_bytes: u64,
}

/// Hands every file of an archive to `each`, which reads as much of it as it likes.
///
/// # Errors
/// If the archive breaks off or is none that was written here, and what `each` says.
pub fn read_tar(
    mut from: impl Read,
    mut each: impl FnMut(&TarEntry, &mut dyn Read) -> io::Result<()>,
) -> io::Result<()> {
    for _ in 0..TAR_FILES_MAX {
        let mut block = [0u8; BLOCK];
        from.read_exact(&mut block)?;
        if block.iter().all(|b| *b == 0) {
            return Ok(());
        }
        let entry = entry(&block)?;
        let mut bytes = (&mut from).take(entry.n_bytes);
        each(&entry, &mut bytes)?;
        io::copy(&mut bytes, &mut io::sink())?;
        if bytes.limit() > 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        from.read_exact(&mut [0; BLOCK][..padding(entry.n_bytes)])?;
    }
    Err(wrong("there are more files than a backup has"))
}

fn wrong(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_owned())
}

fn header(name: &str, mode: u32, n_bytes: u64) -> [u8; BLOCK] {
    let mut header = [0u8; BLOCK];
    let mut put = |at: usize, text: &str| {
        header[at..at + text.len()].copy_from_slice(text.as_bytes());
    };
    put(0, name);
    put(100, &format!("{:07o}", mode & 0o777));
    put(108, "0000000");
    put(116, "0000000");
    put(124, &format!("{n_bytes:011o}"));
    put(136, "00000000000");
    // The sum is taken with blanks in its own place.
    put(148, "        ");
    put(156, "0");
    put(257, "ustar\u{0}00");
    let sum: u32 = header.iter().map(|b| u32::from(*b)).sum();
    header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    header
}

fn entry(header: &[u8; BLOCK]) -> io::Result<TarEntry> {
    let sum = octal(&header[148..156]).ok_or_else(|| wrong("this is no archive"))?;
    let blank = header[..148].iter().chain(b"        ").chain(&header[156..]);
    if blank.map(|b| u64::from(*b)).sum::<u64>() != sum {
        return Err(wrong("a header does not have its sum"));
    }
    let end = header[..NAME_LEN].iter().position(|b| *b == 0).unwrap_or(NAME_LEN);
    let name = std::str::from_utf8(&header[..end]).map_err(|_| wrong("a name is no text"))?;
    if !is_sound(name) || header[156] != b'0' {
        return Err(wrong("there is more in it than plain files"));
    }
    let mode = octal(&header[100..108]).ok_or_else(|| wrong("a mode is no number"))?;
    let n_bytes = octal(&header[124..136]).filter(|n| *n <= TAR_FILE_BYTES_MAX);
    let n_bytes = n_bytes.ok_or_else(|| wrong("a file is larger than any of a backup"))?;
    Ok(TarEntry { name: name.to_owned(), mode: mode as u32 & 0o777, n_bytes })
}

fn padding(n_bytes: u64) -> usize {
    (n_bytes.next_multiple_of(BLOCK as u64) - n_bytes) as usize
}

fn is_sound(name: &str) -> bool {
    let is_part = |part: &str| !part.is_empty() && part != "." && part != "..";
    let is_plain = |c: char| !c.is_control() && c != '\\';
    name.len() <= NAME_LEN && name.split('/').all(is_part) && name.chars().all(is_plain)
}

fn octal(field: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(field).ok()?;
    u64::from_str_radix(text.trim_matches(['\0', ' ']), 8).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn archive() -> Vec<u8> {
        let mut tar = TarWriter::new(Vec::new());
        tar.add("state/keys.json", 0o600, 2, &mut &b"{}"[..]).unwrap();
        tar.add("config/empty", 0o644, 0, &mut io::empty()).unwrap();
        tar.add("big", 0o640, 1024, &mut io::repeat(7)).unwrap();
        tar.finish().unwrap()
    }

    fn read(bytes: &[u8]) -> io::Result<Vec<(String, u32, Vec<u8>)>> {
        let mut files = Vec::new();
        read_tar(bytes, |entry, from| {
            let mut bytes = Vec::new();
            from.read_to_end(&mut bytes)?;
            files.push((entry.name.clone(), entry.mode, bytes));
            Ok(())
        })?;
        Ok(files)
    }

    #[test]
    fn what_is_written_is_read() {
        let files = read(&archive()).unwrap();
        let expected = [
            ("state/keys.json".to_owned(), 0o600, b"{}".to_vec()),
            ("config/empty".to_owned(), 0o644, Vec::new()),
            ("big".to_owned(), 0o640, vec![7; 1024]),
        ];
        assert_eq!(files, expected);
        assert_eq!(archive().len() % BLOCK, 0);
        let mut n = 0;
        read_tar(&archive()[..], |_, _| {
            n += 1;
            Ok(())
        })
        .unwrap();
        assert_eq!(n, 3, "who reads nothing of a file gets the next");
    }

    #[test]
    fn names_stay_below_their_folder() {
        let mut tar = TarWriter::new(Vec::new());
        for name in ["../x", "/x", "a/../x", "a//b", "", ".", "a\nb", &"x".repeat(101)] {
            assert!(tar.add(name, 0o600, 0, &mut io::empty()).is_err(), "{name:?}");
        }
        assert!(tar.add("short", 0o600, 9, &mut &b"1234"[..]).is_err());
    }

    #[test]
    fn one_that_was_cut_or_changed_is_none() {
        let whole = archive();
        for n in [0, 100, 511, 513, 1024, whole.len() - 1024] {
            assert!(read(&whole[..n]).is_err(), "{n} bytes");
        }
        for at in [0, 101, 125, 150, 156, 260] {
            let mut changed = whole.clone();
            changed[at] ^= 1;
            assert!(read(&changed).is_err(), "byte {at}");
        }
        assert!(read(&[7; 4096]).is_err());
    }
}
