//! A bounded reader over the header's bytes that always knows where it is.
//!
//! Every read names its `place` when it fails, and a count is believed only after `prove` has seen
//! that so many items can still follow. So a length that the file claims never reaches an
//! allocation before the bytes that justify it were counted.

use std::fmt;

use super::error::GgufError;
use crate::base::limits;

/// What is being read, for messages. Names borrow the file's bytes.
#[derive(Clone, Copy, Debug)]
pub(super) enum Place<'a> {
    Start,
    KeyName(u64),
    Value(&'a str),
    TensorName(u64),
    Tensor(&'a str),
}

impl fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Start => f.write_str("the start of the header"),
            Place::KeyName(key_idx) => write!(f, "the name of key {key_idx}"),
            Place::Value(key) => write!(f, "the value of key `{key}`"),
            Place::TensorName(tensor_idx) => write!(f, "the name of tensor {tensor_idx}"),
            Place::Tensor(name) => write!(f, "the record of tensor `{name}`"),
        }
    }
}

/// Reads forward through the first `GGUF_HEADER_BYTES_MAX` bytes of a file.
pub(super) struct Cursor<'a> {
    bytes: &'a [u8],
    pos: usize,
    is_capped: bool,
    pub(super) place: Place<'a>,
}

impl<'a> Cursor<'a> {
    pub(super) fn new(file: &'a [u8]) -> Cursor<'a> {
        let max = usize::try_from(limits::GGUF_HEADER_BYTES_MAX).unwrap_or(usize::MAX);
        let bytes = &file[..file.len().min(max)];
        Cursor { bytes, pos: 0, is_capped: bytes.len() < file.len(), place: Place::Start }
    }

    /// Bytes read so far, which is the position in the file.
    pub(super) fn pos(&self) -> usize {
        self.pos
    }

    /// Checks that `count` items of at least `item_bytes_min` bytes can follow.
    pub(super) fn prove(&self, count: u64, item_bytes_min: u64) -> Result<(), GgufError> {
        let left = (self.bytes.len() - self.pos) as u64;
        let needs = count.saturating_mul(item_bytes_min);
        if needs <= left {
            return Ok(());
        }
        let place = self.place.to_string();
        Err(if self.is_capped {
            GgufError::HeaderTooLong { place, max: limits::GGUF_HEADER_BYTES_MAX }
        } else {
            GgufError::Truncated { place, missing_bytes: needs - left }
        })
    }

    /// The next `n` bytes.
    pub(super) fn take(&mut self, n: u64) -> Result<&'a [u8], GgufError> {
        self.prove(n, 1)?;
        let start = self.pos;
        self.pos += n as usize; // proved to be within a slice's length
        Ok(&self.bytes[start..self.pos])
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], GgufError> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N as u64)?);
        Ok(array)
    }

    pub(super) fn u32(&mut self) -> Result<u32, GgufError> {
        self.array().map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64, GgufError> {
        self.array().map(u64::from_le_bytes)
    }

    /// A string of at most `max` bytes.
    pub(super) fn str(&mut self, max: u64) -> Result<&'a str, GgufError> {
        let n_bytes = self.u64()?;
        if n_bytes > max {
            let place = self.place.to_string();
            return Err(GgufError::StringTooLong { place, n_bytes, max });
        }
        std::str::from_utf8(self.take(n_bytes)?)
            .map_err(|_| GgufError::NotUtf8 { place: self.place.to_string() })
    }
}
