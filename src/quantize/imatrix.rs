//! Importance matrices: how much each column of a weight matters, as llama.cpp keeps them.
//!
//! A column's importance is the mean square of what it is multiplied by, over a text. The file is a
//! GGUF of type `imatrix` with two tensors for each matrix:
//!
//! ```text
//! NAME.in_sum2   [n_cols, 1]   sums of squares
//! NAME.counts    [1, 1]        rows that were summed
//! imatrix.datasets [str], imatrix.chunk_count u32, imatrix.chunk_size u32
//! ```
//!
//! The older form, `.dat`, is read as well: a count, then for each matrix the length of its name,
//! the name, calls, the number of values, and sums over the calls of means, all little-endian.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::QuantizeError;
use super::write::replace_file;
use crate::base::hash::hex;
use crate::base::limits::IMATRIX_BYTES_MAX;
use crate::inference::backend::InputSums;
use crate::inference::gguf::{Gguf, GgufBuilder, Value};
use crate::inference::quant::{TensorType, dequantize};

/// An importance matrix.
#[derive(Clone, Debug)]
pub struct Importance {
    path: PathBuf,
    sha256: String,
    datasets: Vec<String>,
    n_chunk: u32,
    rows: BTreeMap<String, Vec<f32>>,
}

impl Importance {
    /// Reads either form.
    ///
    /// # Errors
    /// If the file cannot be read or is neither.
    pub fn read(path: &Path) -> Result<Importance, QuantizeError> {
        let wrong =
            |reason: String| QuantizeError::ImportanceFile { path: path.to_owned(), reason };
        // Asked before opening: opening a pipe would wait for its other end.
        let metadata = std::fs::metadata(path).map_err(QuantizeError::io(path))?;
        if !metadata.is_file() {
            return Err(wrong("it is not a regular file".to_owned()));
        }
        let too_large = || wrong(format!("it has more than {IMATRIX_BYTES_MAX} bytes"));
        if metadata.len() > IMATRIX_BYTES_MAX {
            return Err(too_large());
        }
        let file = std::fs::File::open(path).map_err(QuantizeError::io(path))?;
        let mut bytes = Vec::new();
        let n_read = file.take(IMATRIX_BYTES_MAX + 1).read_to_end(&mut bytes);
        if n_read.map_err(QuantizeError::io(path))? as u64 > IMATRIX_BYTES_MAX {
            return Err(too_large());
        }
        let sha256 = hex(&Sha256::digest(&bytes));
        let mut found = if bytes.starts_with(b"GGUF") {
            read_gguf(&Gguf::from_vec(bytes)?).map_err(wrong)?
        } else {
            read_legacy(&bytes).ok_or_else(|| wrong("it is cut short or of another kind".into()))?
        };
        if found.rows.is_empty() {
            return Err(wrong("it has no `NAME.in_sum2` with its `NAME.counts`".into()));
        }
        (found.path, found.sha256) = (path.to_owned(), sha256);
        Ok(found)
    }

    /// Writes what a model saw of a text, and reads it back.
    ///
    /// # Errors
    /// Those of writing the file.
    pub fn write(
        path: &Path,
        sums: &InputSums,
        dataset: &str,
        chunk_len: usize,
        n_chunk: usize,
    ) -> Result<Importance, QuantizeError> {
        let mut file = GgufBuilder::new()
            .pair("general.type", "imatrix")
            .pair("imatrix.datasets", &[dataset])
            .pair("imatrix.chunk_count", n_chunk as u32)
            .pair("imatrix.chunk_size", chunk_len as u32);
        // As llama.cpp's tool, the layers only: the head is too sensitive to be told apart.
        for (name, sum) in sums.iter().filter(|(name, _)| name.starts_with("blk.")) {
            let n_cols = sum.squares.len() as u64;
            let squares = sum.squares.iter().flat_map(|&s| (s as f32).to_le_bytes());
            let (squares, counts) =
                (squares.collect::<Vec<u8>>(), (sum.n_rows as f32).to_le_bytes().to_vec());
            file = file
                .tensor(format!("{name}.in_sum2"), &[n_cols, 1], TensorType::F32, squares)
                .tensor(format!("{name}.counts"), &[1, 1], TensorType::F32, counts);
        }
        replace_file(path, &file.build())?;
        Importance::read(path)
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Matrices that it knows.
    pub fn n_entries(&self) -> usize {
        self.rows.len()
    }

    /// The importance of each column of a tensor, if the matrix knows the tensor.
    ///
    /// # Errors
    /// If it has another width there.
    pub fn row(&self, tensor: &str, n_cols: usize) -> Result<Option<&[f32]>, QuantizeError> {
        match self.rows.get(tensor) {
            Some(row) if row.len() != n_cols => Err(QuantizeError::ImportanceShape {
                tensor: tensor.to_owned(),
                expected: n_cols,
                got: row.len(),
            }),
            row => Ok(row.map(Vec::as_slice)),
        }
    }

    /// What a quantised file says of it: llama.cpp's keys, and the hash.
    pub(super) fn pairs(&self) -> Vec<(String, Value)> {
        let name = self.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let mut pairs = vec![
            ("quantize.imatrix.file".to_owned(), Value::Str(name)),
            ("quantize.imatrix.entries_count".to_owned(), Value::U32(self.rows.len() as u32)),
            ("quantize.imatrix.chunks_count".to_owned(), Value::U32(self.n_chunk)),
            ("jetforge.quantize.imatrix_sha256".to_owned(), Value::Str(self.sha256.clone())),
        ];
        if let Some(dataset) = self.datasets.first() {
            pairs.push(("quantize.imatrix.dataset".to_owned(), Value::Str(dataset.clone())));
        }
        pairs
    }
}

fn empty() -> Importance {
    Importance {
        path: PathBuf::new(),
        sha256: String::new(),
        datasets: Vec::new(),
        n_chunk: 0,
        rows: BTreeMap::new(),
    }
}

fn read_gguf(gguf: &Gguf) -> Result<Importance, String> {
    let mut found = empty();
    let metadata = gguf.metadata();
    found.n_chunk = metadata.u32("imatrix.chunk_count").ok().flatten().unwrap_or(0);
    let datasets = metadata.strs("imatrix.datasets").ok().flatten().unwrap_or_default();
    found.datasets = datasets.into_iter().map(str::to_owned).collect();
    let floats = |name: &str| {
        let info = gguf.tensor(name).filter(|info| info.ty == TensorType::F32)?;
        let mut values = vec![0.0; info.n_elements() as usize];
        dequantize(info.ty, gguf.bytes(info), &mut values);
        Some(values)
    };
    for info in gguf.tensors() {
        let Some(name) = info.name.strip_suffix(".in_sum2") else { continue };
        let (Some(mut row), Some(counts)) = (floats(&info.name), floats(&format!("{name}.counts")))
        else {
            return Err(format!("'{name}' has no sums or counts of type F32"));
        };
        let [count] = counts[..] else {
            return Err(format!("'{name}' has {} experts; one is supported", counts.len()));
        };
        if count > 0.0 {
            row.iter_mut().for_each(|sum| *sum /= count);
        } else {
            row.fill(1.0);
        }
        found.rows.insert(name.to_owned(), row);
    }
    Ok(found)
}

fn read_legacy(mut bytes: &[u8]) -> Option<Importance> {
    fn take<'a>(bytes: &mut &'a [u8], n: usize) -> Option<&'a [u8]> {
        let (head, rest) = bytes.split_at_checked(n)?;
        *bytes = rest;
        Some(head)
    }
    fn count(bytes: &mut &[u8]) -> Option<usize> {
        let four = *take(bytes, 4)?.first_chunk::<4>()?;
        usize::try_from(i32::from_le_bytes(four)).ok()
    }
    let mut found = empty();
    let n_entries = count(&mut bytes)?;
    for _ in 0..n_entries {
        let n_name = count(&mut bytes)?;
        let name = std::str::from_utf8(take(&mut bytes, n_name)?).ok()?.to_owned();
        let n_call = count(&mut bytes)?.max(1) as f32;
        let n_values = count(&mut bytes)?;
        let values = take(&mut bytes, n_values.checked_mul(4)?)?.as_chunks::<4>().0;
        let mean = |four: &[u8; 4]| f32::from_le_bytes(*four) / n_call;
        found.rows.insert(name, values.iter().map(mean).collect());
    }
    if let Some(n_chunk) = count(&mut bytes) {
        found.n_chunk = n_chunk as u32;
        let dataset = count(&mut bytes).and_then(|n| take(&mut bytes, n));
        found.datasets.extend(dataset.map(|name| String::from_utf8_lossy(name).into_owned()));
    }
    Some(found)
}
