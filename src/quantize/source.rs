//! Where weights come from: a GGUF file, all shards of it, or a folder of safetensors.

use std::borrow::Cow;
use std::fs::Metadata;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::QuantizeError;
use super::folder::Folder;
use crate::base::hash::hex;
use crate::inference::gguf::{Gguf, ShardBytes};

/// Bytes that are hashed at a time.
const HASH_BYTES: usize = 4 << 20;

/// A model to make smaller files of.
#[derive(Debug)]
pub struct Source {
    path: PathBuf,
    weights: Weights,
}

#[derive(Debug)]
enum Weights {
    File(Box<Gguf>),
    Folder(Box<Folder>),
}

impl Source {
    /// Opens a GGUF file, a folder, or the folder that a `.safetensors` file lies in.
    ///
    /// # Errors
    /// If it is neither.
    pub fn open(path: &Path) -> Result<Source, QuantizeError> {
        let is_part = path.extension().is_some_and(|ext| ext == "safetensors");
        let folder = match path.parent() {
            Some(parent) if is_part && parent.as_os_str().is_empty() => Path::new("."),
            Some(parent) if is_part => parent,
            _ => path,
        };
        let weights = match folder.is_dir() {
            true => Weights::Folder(Box::new(Folder::open(folder)?)),
            false => Weights::File(Box::new(Gguf::open(path)?)),
        };
        let path = if folder.is_dir() { folder } else { path };
        Ok(Source { path: path.to_owned(), weights })
    }

    /// What was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What the model is: of a folder the GGUF that it makes, with zeros for weights.
    pub fn gguf(&self) -> &Gguf {
        match &self.weights {
            Weights::File(gguf) => gguf,
            Weights::Folder(folder) => &folder.outline,
        }
    }

    /// Whether the model can be run as it is.
    pub fn is_runnable(&self) -> bool {
        matches!(self.weights, Weights::File(_))
    }

    /// Whether `other` is one of the source's files, by whatever name.
    pub(super) fn has_file(&self, other: &Metadata) -> bool {
        let same = |file: &std::fs::File| {
            let own = file.metadata();
            own.is_ok_and(|own| (own.dev(), own.ino()) == (other.dev(), other.ino()))
        };
        match &self.weights {
            Weights::File(gguf) => gguf.shards().any(|shard| match shard {
                ShardBytes::File(file) => same(file),
                ShardBytes::Memory(_) => false,
            }),
            Weights::Folder(folder) => folder.files().any(|(_, file)| same(file)),
        }
    }

    /// SHA-256 of each file of weights.
    pub(super) fn hashes(&self) -> Result<Vec<String>, QuantizeError> {
        match &self.weights {
            Weights::File(gguf) => {
                let mut hashes = vec![Sha256::new(); gguf.n_shards()];
                gguf.scan(|shard_idx, bytes| hashes[shard_idx].update(bytes));
                Ok(hashes.into_iter().map(|hash| hex(&hash.finalize())).collect())
            }
            Weights::Folder(folder) => {
                let mut buffer = vec![0; HASH_BYTES];
                let mut hash_of = |(path, file): (&Path, &std::fs::File)| {
                    let (mut hash, mut at) = (Sha256::new(), 0);
                    loop {
                        let n = file.read_at(&mut buffer, at).map_err(QuantizeError::io(path))?;
                        if n == 0 {
                            return Ok(hex(&hash.finalize()));
                        }
                        hash.update(&buffer[..n]);
                        at += n as u64;
                    }
                };
                folder.files().map(&mut hash_of).collect()
            }
        }
    }

    /// Rows of a tensor as the source lists it; `buffer` holds them where they are not in memory.
    pub(super) fn rows<'a>(
        &'a self,
        tensor_idx: usize,
        rows: std::ops::Range<usize>,
        buffer: &'a mut Vec<u8>,
    ) -> Result<Cow<'a, [u8]>, QuantizeError> {
        match &self.weights {
            Weights::File(gguf) => {
                let info = &gguf.tensors()[tensor_idx];
                let n = info.ty.row_bytes(info.shape[0] as usize).unwrap_or(0);
                Ok(Cow::Borrowed(&gguf.bytes(info)[rows.start * n..rows.end * n]))
            }
            Weights::Folder(folder) => {
                folder.rows(tensor_idx, rows.start, rows.len(), buffer)?;
                Ok(Cow::Borrowed(buffer))
            }
        }
    }

    /// Gives back the memory of rows that were read.
    pub(super) fn release(&self, tensor_idx: usize, rows: std::ops::Range<usize>) {
        let Weights::File(gguf) = &self.weights else { return };
        let info = &gguf.tensors()[tensor_idx];
        let n = info.ty.row_bytes(info.shape[0] as usize).unwrap_or(0);
        gguf.release(info, rows.start * n..rows.end * n);
    }
}
