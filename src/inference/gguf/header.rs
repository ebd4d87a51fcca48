//! One file's header: keys, tensor records, and the checks that make them trustworthy.
//!
//! 1. Keys, each typed and bounded, none twice.
//! 2. Tensor records: known type, 1 to 4 dimensions, whole blocks, a size that does not overflow.
//! 3. The data section: every tensor aligned, inside the file, and clear of every other.

use std::collections::HashSet;
use std::sync::Arc;

use super::cursor::{Cursor, Place};
use super::error::GgufError;
use super::metadata::Metadata;
use super::native::Extension;
use super::source::Source;
use super::types;
use super::value;
use super::{TensorInfo, UnreadTensor};
use crate::base::limits;
use crate::inference::quant::Form;
use crate::inference::quant::TensorType;

const ALIGNMENT_DEFAULT: u64 = 32;
/// A key of one byte with a value of one byte: name length, byte, type, value.
const KEY_BYTES_MIN: u64 = 8 + 1 + 4 + 1;
/// An empty name with one dimension: length, n_dims, dimension, type, offset.
const TENSOR_BYTES_MIN: u64 = 8 + 4 + 8 + 4 + 8;

/// A checked file; tensors hold offsets from the start of `source`.
#[derive(Debug)]
pub(super) struct Header {
    pub(super) source: Arc<Source>,
    pub(super) metadata: Metadata,
    pub(super) tensors: Vec<TensorInfo>,
    pub(super) unread: Vec<UnreadTensor>,
    pub(super) version: u32,
    pub(super) alignment: u64,
    pub(super) data_offset: u64,
    pub(super) native_target: Option<String>,
}

impl Header {
    pub(super) fn parse(source: Arc<Source>) -> Result<Header, GgufError> {
        let mut cursor = Cursor::new(&source);
        let version = read_version(&mut cursor)?;
        let n_tensors = cursor.u64()?;
        let n_keys = cursor.u64()?;
        check_count("tensors", n_tensors, limits::GGUF_TENSORS_MAX)?;
        check_count("metadata keys", n_keys, limits::GGUF_KEYS_MAX)?;
        // Both follow, so both must fit together.
        cursor.prove(n_keys * KEY_BYTES_MIN + n_tensors * TENSOR_BYTES_MIN, 1)?;

        let mut metadata = read_metadata(&mut cursor, &source, n_keys)?;
        let mut native = Extension::take(&mut metadata)?;
        let alignment = read_alignment(&metadata)?;
        let (mut tensors, unread) = read_tensors(&mut cursor, n_tensors, native.as_mut())?;
        if let Some(native) = &native {
            native.check_used_up()?;
        }
        let native_target = native.and_then(|native| native.target);
        let data_offset = (cursor.pos() as u64).next_multiple_of(alignment);
        place_tensors(&mut tensors, source.len() as u64, data_offset, alignment)?;
        Ok(Header {
            metadata,
            tensors,
            unread,
            version,
            alignment,
            data_offset,
            native_target,
            source,
        })
    }
}

pub(super) fn check_count(what: &str, count: u64, max: u64) -> Result<(), GgufError> {
    if count > max {
        return Err(GgufError::TooMany { what: what.to_owned(), count, max });
    }
    Ok(())
}

fn read_version(cursor: &mut Cursor<'_>) -> Result<u32, GgufError> {
    let magic = cursor.take(4)?;
    match magic {
        b"GGUF" => {}
        b"FUGG" => return Err(GgufError::BigEndian),
        _ => {
            return Err(GgufError::NotGguf { magic: magic.to_vec() });
        }
    }
    match cursor.u32()? {
        version @ (2 | 3) => Ok(version),
        // Big-endian files keep the magic in place and swap everything from the version on.
        version if matches!(version.swap_bytes(), 1..=0xffff) => Err(GgufError::BigEndian),
        version => Err(GgufError::Version { version }),
    }
}

fn read_metadata<'a>(
    cursor: &mut Cursor<'a>,
    source: &Arc<Source>,
    n_keys: u64,
) -> Result<Metadata, GgufError> {
    let mut metadata = Metadata::default();
    for key_idx in 0..n_keys {
        cursor.place = Place::KeyName(key_idx);
        let key = cursor.str(limits::GGUF_KEY_BYTES_MAX)?;
        if key.is_empty() {
            return Err(GgufError::EmptyKey { key_idx });
        }
        if metadata.get(key).is_some() {
            return Err(GgufError::DuplicateKey { key: key.to_owned() });
        }
        cursor.place = Place::Value(key);
        let value = value::read(cursor, source, key)?;
        metadata.push(key, value);
    }
    Ok(metadata)
}

fn read_alignment(metadata: &Metadata) -> Result<u64, GgufError> {
    let (min, max) = (limits::GGUF_ALIGNMENT_MIN, limits::GGUF_ALIGNMENT_MAX);
    let alignment = metadata.u64("general.alignment")?.unwrap_or(ALIGNMENT_DEFAULT);
    if !alignment.is_power_of_two() || !(min..=max).contains(&alignment) {
        return Err(GgufError::Alignment { alignment, min, max });
    }
    Ok(alignment)
}

/// The tensors that can be read, and those of other types.
fn read_tensors(
    cursor: &mut Cursor<'_>,
    n_tensors: u64,
    mut native: Option<&mut Extension>,
) -> Result<(Vec<TensorInfo>, Vec<UnreadTensor>), GgufError> {
    let mut unread = Vec::new();
    let mut tensors = Vec::with_capacity(n_tensors as usize); // at most GGUF_TENSORS_MAX
    let mut names = HashSet::with_capacity(n_tensors as usize);
    for tensor_idx in 0..n_tensors {
        cursor.place = Place::TensorName(tensor_idx);
        let name = cursor.str(limits::GGUF_TENSOR_NAME_BYTES_MAX)?;
        if !names.insert(name) {
            return Err(GgufError::DuplicateTensor { tensor: name.to_owned() });
        }
        cursor.place = Place::Tensor(name);
        match read_tensor(cursor, name, native.as_deref_mut())? {
            Ok(info) => tensors.push(info),
            Err(other) => unread.push(other),
        }
    }
    Ok((tensors, unread))
}

/// One record after its name; the offset is still relative to the data section.
fn read_tensor(
    cursor: &mut Cursor<'_>,
    name: &str,
    native: Option<&mut Extension>,
) -> Result<Result<TensorInfo, UnreadTensor>, GgufError> {
    let tensor = || name.to_owned();
    let (n_dims, max) = (cursor.u32()?, limits::GGUF_DIMS_MAX);
    if n_dims == 0 || n_dims > max {
        return Err(GgufError::DimensionCount { tensor: tensor(), n_dims, max });
    }
    let shape = (0..n_dims).map(|_| cursor.u64()).collect::<Result<Vec<u64>, _>>()?;
    let (type_id, offset) = (cursor.u32()?, cursor.u64()?);
    if shape.contains(&0) {
        return Err(GgufError::ZeroDimension { tensor: tensor(), shape });
    }
    if let Some(native) = native
        && let Some(info) = native.translate(name, &shape, type_id, offset)?
    {
        return Ok(Ok(info));
    }
    let Some(ty) = TensorType::from_ggml_id(type_id) else {
        return Ok(Err(UnreadTensor { name: tensor(), shape, ty: types::describe(type_id) }));
    };
    let (row_len, block_len) = (shape[0], ty.row_unit() as u64);
    if !row_len.is_multiple_of(block_len) {
        return Err(GgufError::RowLength { tensor: tensor(), ty: ty.name(), row_len, block_len });
    }
    // The number of weights must not overflow either, and rows of a file stand one after another.
    let form = Form::Rows;
    let n_elements = shape.iter().try_fold(1u64, |n, &dim| n.checked_mul(dim));
    let n_bytes = n_elements.and_then(|n| form.n_bytes(ty, row_len, n / row_len));
    let Some(n_bytes) = n_bytes else {
        return Err(GgufError::TensorTooLarge { tensor: tensor(), shape });
    };
    Ok(Ok(TensorInfo { name: tensor(), shape, ty, form, n_bytes, shard_idx: 0, offset }))
}

/// Turns offsets into positions in the file and checks that the data lies there, each tensor for
/// itself.
fn place_tensors(
    tensors: &mut [TensorInfo],
    file_bytes: u64,
    data_offset: u64,
    alignment: u64,
) -> Result<(), GgufError> {
    for info in tensors.iter_mut() {
        let tensor = || info.name.clone();
        if !info.offset.is_multiple_of(alignment) {
            let offset = info.offset;
            return Err(GgufError::Misaligned { tensor: tensor(), offset, alignment });
        }
        let start = data_offset.checked_add(info.offset);
        if start.and_then(|start| start.checked_add(info.n_bytes)).is_none() {
            return Err(GgufError::TensorTooLarge { tensor: tensor(), shape: info.shape.clone() });
        }
        info.offset += data_offset; // checked just above
    }

    let mut order: Vec<&TensorInfo> = tensors.iter().collect();
    order.sort_unstable_by_key(|info| info.offset);
    let end = |info: &TensorInfo| info.offset + info.n_bytes;
    for pair in order.windows(2) {
        if end(pair[0]) > pair[1].offset {
            return Err(GgufError::Overlap {
                tensor: pair[0].name.clone(),
                other: pair[1].name.clone(),
            });
        }
    }
    // In order and disjoint, so the last one ends where the data ends.
    let needs = order.last().map_or(0, |info| end(info));
    match order.iter().find(|info| end(info) > file_bytes) {
        None => Ok(()),
        Some(first_cut) => Err(GgufError::TruncatedTensor {
            tensor: first_cut.name.clone(),
            missing_bytes: needs - file_bytes,
            file_bytes,
        }),
    }
}
