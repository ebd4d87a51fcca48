//! SHA-256 of files, in pieces, so that the caller can show how far it is.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use sha2::{Digest, Sha256};

use super::LibraryError;
use crate::base::hash::hex;
use crate::inference::Gguf;

/// Bytes read at once: large enough for an SD card, small enough for a Nano's cache.
pub const CHUNK_BYTES: usize = 1 << 20;

/// Hash and size of a file; `progress` gets the bytes done.
///
/// # Errors
/// When the file cannot be read.
pub fn sha256_file(
    path: &Path,
    progress: &mut dyn FnMut(u64),
) -> Result<(String, u64), LibraryError> {
    let mut file = File::open(path).map_err(LibraryError::io("open", path))?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; CHUNK_BYTES];
    let mut done = 0;
    loop {
        let n = file.read(&mut buffer).map_err(LibraryError::io("read", path))?;
        if n == 0 {
            return Ok((hex(&hasher.finalize()), done));
        }
        hasher.update(&buffer[..n]);
        done += n as u64;
        progress(done);
    }
}

/// Reads a whole model's header as loading would, siblings of a split model included.
///
/// # Errors
/// `NotAModel` with the reader's reason.
pub fn check_model(path: &Path, what: &str) -> Result<(), LibraryError> {
    match Gguf::open(path) {
        Ok(_) => Ok(()),
        Err(error) => {
            Err(LibraryError::NotAModel { what: what.to_owned(), reason: error.to_string() })
        }
    }
}

/// Checks that the first bytes are those of a GGUF file in this byte order.
///
/// # Errors
/// `NotAModel` with what it seems to be instead.
pub fn check_magic(start: &[u8], what: &str) -> Result<(), LibraryError> {
    let not_a_model =
        |reason: &str| LibraryError::NotAModel { what: what.to_owned(), reason: reason.to_owned() };
    let text = String::from_utf8_lossy(start).to_ascii_lowercase();
    match start {
        [b'G', b'G', b'U', b'F', ..] => Ok(()),
        [] => Err(not_a_model("it is empty")),
        [b'F', b'U', b'G', b'G', ..] => Err(not_a_model("its byte order is big-endian")),
        [b'P', b'K', ..] => Err(not_a_model("it is a zip archive")),
        _ if text.starts_with("<!do") || text.starts_with("<htm") => {
            Err(not_a_model("it is a web page; the address may need `resolve` instead of `blob`"))
        }
        _ if text.starts_with("vers") => {
            Err(not_a_model("it is a Git LFS pointer, not the file itself"))
        }
        _ => Err(not_a_model("it does not start with the letters GGUF")),
    }
}
