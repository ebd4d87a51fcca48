//! Small files of the kernel, read under one root and never trusted.
//!
//! ```text
//! Sysfs { root }.number("sys/class/thermal/thermal_zone0/temp") -> 42500, or why not
//! ```
//!
//! The root is `/` on a machine and a folder of texts in tests, so a board that is not there can
//! be stood in for by its files. Whatever stands in a file, reading it costs at most
//! `SYSFS_FILE_BYTES_MAX` and ends in a value or in a reason in words; a file that vanishes between
//! two reads is one more reason. Only regular files are opened, because a pipe would wait for ever.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

use crate::base::limits::{SYSFS_ENTRIES_MAX, SYSFS_FILE_BYTES_MAX};

/// Where the kernel's trees are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sysfs {
    root: PathBuf,
}

/// Why a file gave nothing, in words for people.
pub type Reason = String;

impl Sysfs {
    /// The trees under `root`, which is `/` outside of tests.
    pub fn new(root: &Path) -> Sysfs {
        Sysfs { root: root.to_owned() }
    }

    /// The file of a path from the root, `sys/class/...`.
    pub fn path(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }

    /// Whether the path is there.
    pub fn has(&self, path: &str) -> bool {
        self.path(path).exists()
    }

    /// The bytes of a file.
    ///
    /// # Errors
    /// If it is not there, is no file, may not be read, or is longer than any file of this kind.
    pub fn bytes(&self, path: &str) -> Result<Vec<u8>, Reason> {
        let file = self.path(path);
        let metadata = std::fs::metadata(&file).map_err(|error| because(error.kind()))?;
        if !metadata.is_file() {
            return Err("no file".to_owned());
        }
        let file = File::open(&file).map_err(|error| because(error.kind()))?;
        let mut bytes = Vec::new();
        let bound = SYSFS_FILE_BYTES_MAX as u64 + 1;
        file.take(bound).read_to_end(&mut bytes).map_err(|error| because(error.kind()))?;
        match bytes.len() > SYSFS_FILE_BYTES_MAX {
            true => Err(format!("more than {SYSFS_FILE_BYTES_MAX} bytes")),
            false => Ok(bytes),
        }
    }

    /// The text of a file, without the white space and the NUL at its end.
    ///
    /// # Errors
    /// As [`Sysfs::bytes`], and if it is empty or no text.
    pub fn text(&self, path: &str) -> Result<String, Reason> {
        let text = String::from_utf8(self.bytes(path)?).map_err(|_| "not text".to_owned())?;
        let text = text.trim_matches(|c: char| c.is_whitespace() || c == '\0');
        if text.is_empty() { Err("empty".to_owned()) } else { Ok(text.to_owned()) }
    }

    /// A file that holds one whole number.
    ///
    /// # Errors
    /// As [`Sysfs::text`], and if it is no number or one that no machine word holds.
    pub fn number(&self, path: &str) -> Result<i64, Reason> {
        let text = self.text(path)?;
        text.parse().map_err(|_| format!("no number: {:?}", shorten(&text)))
    }

    /// A number that cannot be negative.
    ///
    /// # Errors
    /// As [`Sysfs::number`], and if it is negative.
    pub fn count(&self, path: &str) -> Result<u64, Reason> {
        let number = self.number(path)?;
        u64::try_from(number).map_err(|_| format!("negative: {number}"))
    }

    /// A count that fits 32 bits.
    ///
    /// # Errors
    /// As [`Sysfs::count`].
    pub fn small(&self, path: &str) -> Result<u32, Reason> {
        let count = self.count(path)?;
        u32::try_from(count).map_err(|_| format!("too large: {count}"))
    }

    /// Names in a folder in order; none where there is no folder.
    pub fn names(&self, path: &str) -> Vec<String> {
        let entries = std::fs::read_dir(self.path(path)).into_iter().flatten();
        let names = entries.take(SYSFS_ENTRIES_MAX).flatten().map(|entry| entry.file_name());
        let mut names: Vec<String> = names.filter_map(|name| name.into_string().ok()).collect();
        names.sort_by_key(|name| natural(name));
        names
    }

    /// Names in a folder that are `prefix` and a number, by that number.
    pub fn numbered(&self, path: &str, prefix: &str) -> Vec<(usize, String)> {
        let number = |name: String| Some((name.strip_prefix(prefix)?.parse().ok()?, name));
        let mut found: Vec<(usize, String)> =
            self.names(path).into_iter().filter_map(number).collect();
        found.sort();
        found
    }
}

/// Splits a name before its last number, so that `zone10` comes after `zone9`.
fn natural(name: &str) -> (String, u64) {
    let head = name.trim_end_matches(|c: char| c.is_ascii_digit());
    (head.to_owned(), name[head.len()..].parse().unwrap_or(0))
}

/// A system's error in few words.
fn because(kind: ErrorKind) -> Reason {
    match kind {
        ErrorKind::NotFound => "not there".to_owned(),
        ErrorKind::PermissionDenied => "only root may read it".to_owned(),
        kind => kind.to_string(),
    }
}

/// The beginning of a text, for a message.
pub fn shorten(text: &str) -> String {
    const N_CHARS: usize = 40;
    match text.char_indices().nth(N_CHARS) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_gives_a_value_or_a_reason() {
        let dir = tempfile::tempdir().unwrap();
        let put = |name: &str, bytes: &[u8]| std::fs::write(dir.path().join(name), bytes).unwrap();
        put("good", b" 42500 \n");
        put("nul", b"NVIDIA Jetson Nano\0");
        put("empty", b"\n");
        put("binary", &[0xff, 0xfe, 0]);
        put("word", b"auto\n");
        put("negative", b"-7\n");
        put("huge", b"99999999999999999999\n");
        put("wide", b"5000000000");
        put("long", &vec![b'1'; SYSFS_FILE_BYTES_MAX + 1]);
        let sysfs = Sysfs::new(dir.path());
        assert_eq!(sysfs.number("good"), Ok(42500));
        assert_eq!(sysfs.text("nul").as_deref(), Ok("NVIDIA Jetson Nano"));
        let why = |name: &str| sysfs.small(name).unwrap_err();
        assert_eq!(why("gone"), "not there");
        assert_eq!(why("."), "no file");
        assert_eq!(why("empty"), "empty");
        assert_eq!(why("binary"), "not text");
        assert_eq!(why("word"), "no number: \"auto\"");
        assert_eq!(why("negative"), "negative: -7");
        assert!(why("huge").starts_with("no number"));
        assert_eq!(why("wide"), "too large: 5000000000");
        assert!(why("long").starts_with("more than"));
    }

    #[test]
    fn names_are_in_the_order_of_their_numbers() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["cpu10", "cpu2", "cpufreq", "cpu0"] {
            std::fs::create_dir(dir.path().join(name)).unwrap();
        }
        let sysfs = Sysfs::new(dir.path());
        let cpus: Vec<usize> = sysfs.numbered(".", "cpu").into_iter().map(|(i, _)| i).collect();
        assert_eq!(cpus, [0, 2, 10]);
        assert!(sysfs.names("nowhere").is_empty());
    }
}
