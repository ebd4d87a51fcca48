//! GGUF: a mapped file becomes typed metadata and tensor views, every length and offset checked.
//!
//! ```text
//! magic "GGUF" | version u32 | n_tensors u64 | n_keys u64     24 bytes, little-endian
//! n_keys    x  key, value type u32, value                     strings: u64 length, UTF-8 bytes
//! n_tensors x  name, n_dims u32, dims u64.., type u32, offset u64
//! padding to `general.alignment` (32 when the key is absent)
//! tensor data; offsets count from here
//! ```
//!
//! Promises, for any sequence of bytes: no panic, no loop or allocation that the bytes present do
//! not justify, and no `TensorInfo` whose bytes are not all there. Nothing is copied but names and
//! single values: arrays and tensors stay spans of the map, so a vocabulary costs no memory until
//! somebody asks for it.
//!
//! A split model (`split.count` above 1) is read as one: any shard opens it, the metadata is that
//! of shard 0, and each shard passes the same checks.
//!
//! Tensors of our own types, and tensors that stand in panels, are bytes to other readers; `native`
//! tells how they are described and translates them when a file is opened.
//!
//! Refused rather than guessed: big-endian files, version 1, duplicate keys and tensor names,
//! nested arrays, overlapping or misaligned tensors, types that the runtime cannot compute with.
//! Files are not verified against a checksum here; whoever imports a model does that once.

mod array;
mod cursor;
mod error;
mod header;
mod metadata;
mod native;
mod source;
mod split;
mod types;
mod value;
mod writer;

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use super::quant::Form;
use super::quant::TensorType;
use header::Header;
use source::Source;

pub use array::Array;
pub use error::GgufError;
pub use metadata::Metadata;
pub use source::ReadAhead;
pub use value::{Value, ValueType};
pub use writer::GgufBuilder;

/// Bytes that [`Gguf::scan`] hands over at a time.
const SCAN_BYTES: usize = 4 << 20;

/// One tensor of a model: where its weights lie and how to read them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// The name in the file, `blk.0.attn_q.weight` for example.
    pub name: String,
    /// Lengths of one to four dimensions as the file has them: innermost (row length) first.
    pub shape: Vec<u64>,
    /// How the weights are stored.
    pub ty: TensorType,
    /// How the rows stand: of a file that is not native, one after another.
    pub form: Form,
    /// Bytes of the tensor's data.
    pub n_bytes: u64,
    shard_idx: usize,
    offset: u64,
}

impl TensorInfo {
    /// Weights in the tensor.
    pub fn n_elements(&self) -> u64 {
        self.shape.iter().product()
    }

    /// Where the data starts, in bytes from the start of the file that holds it.
    pub fn file_offset(&self) -> u64 {
        self.offset
    }

    /// Which shard of a split model holds the tensor; 0 for a model of one file.
    pub fn shard_idx(&self) -> usize {
        self.shard_idx
    }
}

/// A tensor of a type that the runtime cannot compute with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnreadTensor {
    /// The name in the file.
    pub name: String,
    /// As in [`TensorInfo`].
    pub shape: Vec<u64>,
    /// What the format calls the type: `IQ1_S (type 19)`.
    pub ty: String,
}

/// Where the bytes of a shard are.
pub enum ShardBytes<'a> {
    /// In this file, which is the one that is mapped, whatever has its name by now.
    File(&'a std::fs::File),
    /// In memory.
    Memory(&'a [u8]),
}

/// A model file, or the files of a split model, checked and mapped.
#[derive(Debug)]
pub struct Gguf {
    metadata: Metadata,
    tensors: Vec<TensorInfo>,
    unread: Vec<UnreadTensor>,
    native_target: Option<String>,
    by_name: HashMap<String, usize>,
    shards: Vec<Arc<Source>>,
    version: u32,
    alignment: u64,
    data_offset: u64,
}

impl Gguf {
    /// Maps the model at `path`; if it is a shard of a split model, its siblings as well.
    ///
    /// The map is private and read-only. A file that is cut short while it is mapped kills the
    /// process when the lost pages are touched (SIGBUS), so models belong in a directory that
    /// only their owner writes.
    ///
    /// # Errors
    /// Everything that [`GgufError`] lists; nothing is left open then.
    pub fn open(path: &Path) -> Result<Gguf, GgufError> {
        Gguf::survey(path)?.all_read()
    }

    /// As [`Gguf::open`], but tensors of types that the runtime cannot compute with are listed by
    /// [`Gguf::unread`] instead of refused: for looking at a file, not for running it.
    ///
    /// # Errors
    /// As [`Gguf::open`], but for [`GgufError::UnsupportedType`].
    pub fn survey(path: &Path) -> Result<Gguf, GgufError> {
        let first = Header::parse(Arc::new(source::map(path)?))?;
        match split::part(&first.metadata)? {
            Some(part) => Gguf::from_headers(split::open_all(path, first, part)?),
            None => Gguf::from_headers(vec![first]),
        }
    }

    /// Reads a model that is part of the program.
    ///
    /// # Errors
    /// As [`Gguf::open`]; a shard of a split model is refused, because it has no siblings here.
    pub fn from_static(bytes: &'static [u8]) -> Result<Gguf, GgufError> {
        Gguf::from_memory(Source::Static(bytes))
    }

    /// Reads a model from memory that it then owns: what [`GgufBuilder::build`] made, for example.
    ///
    /// # Errors
    /// As [`Gguf::from_static`].
    pub fn from_vec(bytes: Vec<u8>) -> Result<Gguf, GgufError> {
        Gguf::from_memory(Source::Owned(bytes))
    }

    /// The model that `builder` lays out, with zeros for the weights that it only announced: for
    /// sizing and planning a file that is not written yet. It takes no memory but its header's.
    ///
    /// # Errors
    /// As [`Gguf::from_static`], and if no room for addresses is left.
    pub fn outline(builder: &GgufBuilder<'_>) -> Result<Gguf, GgufError> {
        let header = builder.header();
        let n_bytes = (header.len() as u64).saturating_add(builder.data_bytes());
        let source = source::outline(&header, n_bytes);
        let source = source.map_err(|source| GgufError::Outline { n_bytes, source })?;
        Gguf::from_memory(source)
    }

    fn from_memory(source: Source) -> Result<Gguf, GgufError> {
        let header = Header::parse(Arc::new(source))?;
        if let Some(part) = split::part(&header.metadata)? {
            return Err(GgufError::SplitInMemory { n_shards: part.n_shards });
        }
        Gguf::from_headers(vec![header])?.all_read()
    }

    fn all_read(self) -> Result<Gguf, GgufError> {
        match self.refusal() {
            Some(refusal) => Err(refusal),
            None => Ok(self),
        }
    }

    /// Joins the shards, in the order of their numbers, into one model.
    fn from_headers(headers: Vec<Header>) -> Result<Gguf, GgufError> {
        let mut tensors = Vec::with_capacity(headers.iter().map(|h| h.tensors.len()).sum());
        let mut unread = Vec::new();
        let mut by_name = HashMap::with_capacity(tensors.capacity());
        let mut shards = Vec::with_capacity(headers.len());
        let mut face = None;
        for (shard_idx, header) in headers.into_iter().enumerate() {
            for mut info in header.tensors {
                if by_name.insert(info.name.clone(), tensors.len()).is_some() {
                    return Err(GgufError::DuplicateTensor { tensor: info.name });
                }
                info.shard_idx = shard_idx;
                tensors.push(info);
            }
            unread.extend(header.unread);
            shards.push(header.source);
            face.get_or_insert((
                header.metadata,
                header.version,
                header.alignment,
                header.data_offset,
                header.native_target,
            ));
        }
        let (metadata, version, alignment, data_offset, native_target) =
            face.ok_or(GgufError::NoShards)?;
        Ok(Gguf {
            metadata,
            tensors,
            unread,
            native_target,
            by_name,
            shards,
            version,
            alignment,
            data_offset,
        })
    }

    /// Where the bytes of each shard are.
    pub fn shards(&self) -> impl Iterator<Item = ShardBytes<'_>> {
        self.shards.iter().map(|shard| match &**shard {
            Source::Map(_, file) => ShardBytes::File(file),
            memory => ShardBytes::Memory(memory),
        })
    }

    /// What the file says about the model; of a split model, what shard 0 says.
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// Every tensor, in the order of the files.
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    /// Tensors that cannot be computed with; none unless the file was opened by
    /// [`Gguf::survey`].
    pub fn unread(&self) -> &[UnreadTensor] {
        &self.unread
    }

    /// Why a file with such tensors is refused, `None` for a file without.
    pub fn refusal(&self) -> Option<GgufError> {
        self.unread.first().map(|first| GgufError::UnsupportedType {
            tensor: first.name.clone(),
            ty: first.ty.clone(),
            supported: types::supported(),
        })
    }

    /// What the (first) file's panels were packed for; `None` for a file without panels.
    pub fn native_target(&self) -> Option<&str> {
        self.native_target.as_deref()
    }

    /// The tensor with this name.
    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        self.by_name.get(name).map(|&tensor_idx| &self.tensors[tensor_idx])
    }

    /// The tensor's data in the form that `info` names, `info.n_bytes` long. No alignment in memory
    /// is promised: an embedded model may start at any address.
    ///
    /// # Panics
    /// If `info` is of another model.
    pub fn bytes(&self, info: &TensorInfo) -> &[u8] {
        let start = info.offset as usize;
        &self.shards[info.shard_idx][start..start + info.n_bytes as usize]
    }

    /// The tensor's weights, row after row, whatever its form.
    ///
    /// # Panics
    /// If `info` is of another model, or `out` is not as long as it has weights.
    pub fn read(&self, info: &TensorInfo, out: &mut [f32]) {
        assert_eq!(out.len() as u64, info.n_elements());
        let bytes = self.bytes(info);
        for (row_idx, row) in out.chunks_exact_mut(info.shape[0] as usize).enumerate() {
            info.form.read_row(info.ty, bytes, row_idx, row);
        }
    }

    /// Says that `range` of the tensor's data, counted from its first byte, is about to be read,
    /// and then what follows in the file: the system reads ahead, in large pieces. Does nothing
    /// where the model is not a mapped file.
    ///
    /// # Panics
    /// If `info` is of another model, or the range is outside the tensor.
    pub fn read_ahead(
        &self,
        info: &TensorInfo,
        range: std::ops::Range<usize>,
        ahead: &mut ReadAhead,
    ) {
        assert!(range.start <= range.end && range.end <= info.n_bytes as usize);
        let start = info.offset as usize;
        if let Some(range) = ahead.next(info.shard_idx, start + range.start..start + range.end) {
            self.shards[info.shard_idx].will_need(range);
        }
    }

    /// Gives back the memory of `range` of the tensor's data, counted from its first byte: read
    /// again, it comes from the file. Does nothing where the model is not a mapped file.
    ///
    /// # Panics
    /// If `info` is of another model, or the range is outside the tensor.
    pub fn release(&self, info: &TensorInfo, range: std::ops::Range<usize>) {
        assert!(range.start <= range.end && range.end <= info.n_bytes as usize);
        let start = info.offset as usize + range.start;
        self.shards[info.shard_idx].release(start, range.len());
    }

    /// Gives back the memory of a part of a tensor's data, and lets the system forget the file's
    /// pages: where a device shares the memory, its copy is enough.
    ///
    /// # Panics
    /// As [`Gguf::release`].
    pub fn forget(&self, info: &TensorInfo, range: std::ops::Range<usize>) {
        assert!(range.start <= range.end && range.end <= info.n_bytes as usize);
        self.shards[info.shard_idx].forget(info.offset as usize + range.start, range.len());
    }

    /// Hands every byte of every file to `each`, with the file's number, a piece at a time, and
    /// gives the memory of each piece back.
    pub fn scan(&self, mut each: impl FnMut(usize, &[u8])) {
        for (shard_idx, shard) in self.shards.iter().enumerate() {
            for (i, piece) in shard.chunks(SCAN_BYTES).enumerate() {
                each(shard_idx, piece);
                shard.release(i * SCAN_BYTES, piece.len());
            }
        }
    }

    /// Version of the file format: 2 or 3.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// Bytes that tensor offsets are multiples of.
    pub fn alignment(&self) -> u64 {
        self.alignment
    }

    /// Where tensor data starts, in bytes from the start of the (first) file.
    pub fn data_offset(&self) -> u64 {
        self.data_offset
    }

    /// Files that the model consists of.
    pub fn n_shards(&self) -> usize {
        self.shards.len()
    }

    /// Bytes of all files together.
    pub fn file_bytes(&self) -> u64 {
        self.shards.iter().map(|shard| shard.len() as u64).sum()
    }
}
