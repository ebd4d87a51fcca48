//! The native extension: tensors that GGUF has no type or form for, in a file that is valid GGUF.
//!
//! Such a tensor is listed as `I8`, one-dimensional, as long as its bytes, and the file's metadata
//! says what it is. A reader that knows nothing of this sees bytes; this one translates when a file
//! is opened, so that everything above sees name, type and shape as always, and a [`Form`] besides.
//!
//! ```text
//! jetforge.native.version    u32      1
//! jetforge.native.target     str      what the panels were packed for; absent in a file of rows
//! jetforge.native.names      [str]    parallel arrays, one item for each such tensor
//! jetforge.native.types      [str]    "N4", "Q4_K", ...
//! jetforge.native.columns    [u64]    weights in a row
//! jetforge.native.rows       [u64]    rows
//! jetforge.native.layouts    [str]    "rows", "panels16", "strips4"
//! ```
//!
//! The keys are read once and then hidden: they speak of how this file stores its tensors, and
//! whoever copies its metadata into another would lie with them. The shards of a split model each
//! describe their own tensors.

use std::collections::HashMap;

use super::error::GgufError;
use super::header::check_count;
use super::metadata::Metadata;
use super::value::short_text;
use super::{TensorInfo, Value};
use crate::base::limits;
use crate::inference::quant::Form;
use crate::inference::quant::TensorType;

/// The type that stands for bytes in a file's tensor list.
pub(super) const I8_ID: u32 = 24;
const PREFIX: &str = "jetforge.native.";
const VERSION: &str = "jetforge.native.version";
const TARGET: &str = "jetforge.native.target";
const NAMES: &str = "jetforge.native.names";
const TYPES: &str = "jetforge.native.types";
const COLUMNS: &str = "jetforge.native.columns";
const ROWS: &str = "jetforge.native.rows";
const LAYOUTS: &str = "jetforge.native.layouts";
/// The version of the extension that is read and written.
const VERSION_READ: u32 = 1;

/// What a file's metadata says of its tensors of bytes.
#[derive(Debug, Default)]
pub(super) struct Extension {
    /// What the panels were packed for.
    pub(super) target: Option<String>,
    records: HashMap<String, Record>,
}

/// What one tensor is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) ty: TensorType,
    pub(super) n_cols: u64,
    pub(super) n_rows: u64,
    pub(super) form: Form,
}

impl Extension {
    /// Takes the extension out of a file's metadata; `None` if the file has none.
    pub(super) fn take(metadata: &mut Metadata) -> Result<Option<Extension>, GgufError> {
        let Some(version) = metadata.u32(VERSION)? else {
            return Ok(None);
        };
        if version != VERSION_READ {
            return Err(GgufError::NativeVersion { version });
        }
        let extension = Extension::read(metadata)?;
        metadata.retain(|key| !key.starts_with(PREFIX));
        Ok(Some(extension))
    }

    fn read(metadata: &Metadata) -> Result<Extension, GgufError> {
        let names = metadata.strs(NAMES)?.unwrap_or_default();
        let types = metadata.strs(TYPES)?.unwrap_or_default();
        let columns = metadata.u64s(COLUMNS)?.unwrap_or_default();
        let rows = metadata.u64s(ROWS)?.unwrap_or_default();
        let layouts = metadata.strs(LAYOUTS)?.unwrap_or_default();
        check_count(NAMES, names.len() as u64, limits::GGUF_TENSORS_MAX)?;
        for (key, got) in [
            (TYPES, types.len()),
            (COLUMNS, columns.len()),
            (ROWS, rows.len()),
            (LAYOUTS, layouts.len()),
        ] {
            if got != names.len() {
                return Err(GgufError::NativeCount { key, want: names.len(), got });
            }
        }
        let mut records = HashMap::with_capacity(names.len());
        for (i, &name) in names.iter().enumerate() {
            let tensor = || name.to_owned();
            let word = |key, value: &str| GgufError::NativeWord {
                tensor: tensor(),
                key,
                value: short_text(value),
            };
            let ty = TensorType::ALL.into_iter().find(|ty| ty.name() == types[i]);
            let record = Record {
                ty: ty.ok_or_else(|| word(TYPES, types[i]))?,
                n_cols: columns[i],
                n_rows: rows[i],
                form: Form::from_name(layouts[i]).ok_or_else(|| word(LAYOUTS, layouts[i]))?,
            };
            if records.insert(tensor(), record).is_some() {
                return Err(GgufError::DuplicateTensor { tensor: tensor() });
            }
        }
        Ok(Extension { target: metadata.str(TARGET)?.map(str::to_owned), records })
    }

    /// The tensor `name`, whose record in the file says `shape` and `type_id`; `None` if the
    /// extension does not speak of it.
    pub(super) fn translate(
        &mut self,
        name: &str,
        shape: &[u64],
        type_id: u32,
        offset: u64,
    ) -> Result<Option<TensorInfo>, GgufError> {
        let Some(Record { ty, n_cols, n_rows, form }) = self.records.remove(name) else {
            return Ok(None);
        };
        let tensor = || name.to_owned();
        if type_id != I8_ID {
            return Err(GgufError::NativeBytes { tensor: tensor() });
        }
        let native = vec![n_cols, n_rows];
        if native.contains(&0) {
            return Err(GgufError::ZeroDimension { tensor: tensor(), shape: native });
        }
        let (row_len, block_len) = (n_cols, ty.row_unit() as u64);
        if !row_len.is_multiple_of(block_len) {
            let ty = ty.name();
            return Err(GgufError::RowLength { tensor: tensor(), ty, row_len, block_len });
        }
        let n_bytes = n_cols.checked_mul(n_rows).and(form.n_bytes(ty, n_cols, n_rows));
        let Some(n_bytes) = n_bytes else {
            return Err(GgufError::TensorTooLarge { tensor: tensor(), shape: native });
        };
        if shape != [n_bytes] {
            let (ty, form, got) = (ty.name(), form.name(), shape.to_vec());
            return Err(GgufError::NativeLength { tensor: tensor(), ty, form, want: n_bytes, got });
        }
        Ok(Some(TensorInfo {
            name: tensor(),
            shape: native,
            ty,
            form,
            n_bytes,
            shard_idx: 0,
            offset,
        }))
    }

    /// Refuses an extension that speaks of tensors that the file does not have.
    pub(super) fn check_used_up(&self) -> Result<(), GgufError> {
        match self.records.keys().min() {
            Some(tensor) => Err(GgufError::NativeAbsent { tensor: tensor.clone() }),
            None => Ok(()),
        }
    }
}

/// The keys that describe `tensors`; none if there are none and no target.
pub(super) fn pairs<'a>(
    target: Option<&str>,
    tensors: impl Iterator<Item = (&'a str, Record)>,
) -> Vec<(&'static str, Value)> {
    let (names, records): (Vec<&str>, Vec<Record>) = tensors.unzip();
    if names.is_empty() && target.is_none() {
        return Vec::new();
    }
    let of = |field: fn(&Record) -> &'static str| records.iter().map(field).collect::<Vec<_>>();
    let mut pairs = vec![(VERSION, Value::U32(VERSION_READ))];
    pairs.extend(target.map(|target| (TARGET, target.into())));
    pairs.extend([
        (NAMES, names.as_slice().into()),
        (TYPES, of(|record| record.ty.name()).as_slice().into()),
        (COLUMNS, records.iter().map(|r| r.n_cols).collect::<Vec<_>>().as_slice().into()),
        (ROWS, records.iter().map(|r| r.n_rows).collect::<Vec<_>>().as_slice().into()),
        (LAYOUTS, of(|record| record.form.name()).as_slice().into()),
    ]);
    pairs
}
