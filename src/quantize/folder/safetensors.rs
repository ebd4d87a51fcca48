//! One `.safetensors` file: a length, a JSON header, tensors end to end.
//!
//! ```text
//! u64, little-endian    bytes of the header
//! header                { NAME: { dtype, shape, data_offsets: [start, end] }, .. } as JSON
//! data                  offsets count from here; tensors cover it without gap or overlap
//! ```
//!
//! Nothing is believed: the header is bounded and lies in the file, each tensor's bytes are those
//! of its type and shape, and together they are the file. Weights are read where they stand, so
//! that no more of a file is in memory than the rows at hand.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use serde_json::Value as Json;

use super::{FolderError, open_regular};
use crate::base::limits::{GGUF_TENSORS_MAX, SAFETENSORS_HEADER_BYTES_MAX};
use crate::inference::TensorType;

/// Dimensions that a tensor may have.
const DIMS_MAX: usize = 8;

/// A file that was opened and checked.
#[derive(Debug)]
pub(super) struct Safetensors {
    pub(super) path: PathBuf,
    pub(super) file: File,
    pub(super) tensors: BTreeMap<String, Stored>,
    data_offset: u64,
}

/// A tensor of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Stored {
    /// The format's name of the type: `BF16`.
    pub(super) dtype: String,
    /// Outermost first, as the format has it.
    pub(super) shape: Vec<u64>,
    start: u64,
    n_bytes: u64,
}

impl Stored {
    /// Our name of the type, if it is one of floats.
    pub(super) fn ty(&self) -> Option<TensorType> {
        match self.dtype.as_str() {
            "F32" => Some(TensorType::F32),
            "F16" => Some(TensorType::F16),
            "BF16" => Some(TensorType::BF16),
            _ => None,
        }
    }
}

impl Safetensors {
    pub(super) fn open(path: &Path) -> Result<Safetensors, FolderError> {
        let file = open_regular(path)?;
        let io = FolderError::io(path);
        let len = file.metadata().map_err(io)?.len();
        let wrong = |reason: String| FolderError::Safetensors { path: path.to_owned(), reason };
        let mut first = [0; 8];
        if len < 8 {
            return Err(wrong(format!("it has {len} bytes, less than a header's length")));
        }
        file.read_exact_at(&mut first, 0).map_err(FolderError::io(path))?;
        let n_header = u64::from_le_bytes(first);
        if n_header > SAFETENSORS_HEADER_BYTES_MAX || n_header > len - 8 {
            return Err(wrong(format!(
                "its header claims {n_header} bytes; the file has {len}, and \
                 {SAFETENSORS_HEADER_BYTES_MAX} are the most"
            )));
        }
        let mut header = vec![0; n_header as usize];
        file.read_exact_at(&mut header, 8).map_err(FolderError::io(path))?;
        let data_offset = 8 + n_header;
        let tensors = parse(&header, len - data_offset).map_err(wrong)?;
        Ok(Safetensors { path: path.to_owned(), file, tensors, data_offset })
    }

    /// Bytes of a tensor from `at`, counted from its first, into `out`.
    pub(super) fn read(&self, tensor: &Stored, at: u64, out: &mut [u8]) -> Result<(), FolderError> {
        let end = at.checked_add(out.len() as u64).filter(|end| *end <= tensor.n_bytes);
        if end.is_none() {
            let reason = "a read past the end of a tensor".to_owned();
            return Err(FolderError::Safetensors { path: self.path.clone(), reason });
        }
        let at = self.data_offset + tensor.start + at;
        self.file.read_exact_at(out, at).map_err(FolderError::io(&self.path))
    }
}

/// The tensors of a header whose data has `n_data` bytes.
fn parse(header: &[u8], n_data: u64) -> Result<BTreeMap<String, Stored>, String> {
    let json: Json = serde_json::from_slice(header).map_err(|e| format!("its header: {e}"))?;
    let Json::Object(entries) = json else {
        return Err("its header is no JSON object".to_owned());
    };
    if entries.len() as u64 > GGUF_TENSORS_MAX {
        return Err(format!("{} tensors; {GGUF_TENSORS_MAX} are the most", entries.len()));
    }
    let mut tensors = BTreeMap::new();
    for (name, entry) in entries.iter().filter(|(name, _)| *name != "__metadata__") {
        let stored = stored(entry).ok_or_else(|| {
            format!("'{name}' has no type, shape and offsets that agree with each other")
        })?;
        tensors.insert(name.clone(), stored);
    }
    // In the order of the data each begins where the last ended: no gap, no overlap.
    let mut places: Vec<(u64, u64, &String)> =
        tensors.iter().map(|(name, t)| (t.start, t.n_bytes, name)).collect();
    places.sort_unstable();
    let mut end = 0u64;
    for (start, n_bytes, name) in places {
        if start != end {
            return Err(format!("'{name}' begins at {start}, where {end} was expected"));
        }
        end = end.saturating_add(n_bytes);
    }
    if end != n_data {
        return Err(format!("its tensors have {end} bytes, and {n_data} are there"));
    }
    Ok(tensors)
}

fn stored(entry: &Json) -> Option<Stored> {
    let dtype = entry["dtype"].as_str()?;
    let shape = entry["shape"].as_array().filter(|shape| shape.len() <= DIMS_MAX)?;
    let shape: Vec<u64> = shape.iter().map(Json::as_u64).collect::<Option<_>>()?;
    let [start, end] = entry["data_offsets"].as_array()?.as_slice() else { return None };
    let (start, end) = (start.as_u64()?, end.as_u64()?);
    let n_bytes = end.checked_sub(start)?;
    let n = shape.iter().try_fold(1u64, |n, dim| n.checked_mul(*dim))?;
    let size = match dtype {
        "F64" | "I64" | "U64" => 8,
        "F32" | "I32" | "U32" => 4,
        "F16" | "BF16" | "I16" | "U16" => 2,
        "I8" | "U8" | "BOOL" | "F8_E4M3" | "F8_E5M2" => 1,
        _ => return None,
    };
    let is_whole = n.checked_mul(size) == Some(n_bytes);
    is_whole.then(|| Stored { dtype: dtype.to_owned(), shape, start, n_bytes })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HEADER: &str = r#"{"__metadata__":{"format":"pt"},
        "a":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]},
        "b":{"dtype":"BF16","shape":[4],"data_offsets":[24,32]}}"#;

    fn file(header: &[u8], n_data: usize) -> Vec<u8> {
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header);
        bytes.extend((0..n_data).map(|i| i as u8));
        bytes
    }

    fn open(bytes: &[u8]) -> Result<Safetensors, FolderError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.safetensors");
        std::fs::write(&path, bytes).unwrap();
        Safetensors::open(&path)
    }

    #[test]
    fn tensors_are_read_where_they_stand() {
        let file = open(&file(HEADER.as_bytes(), 32)).unwrap();
        assert_eq!(file.tensors.len(), 2);
        let b = &file.tensors["b"];
        assert_eq!((b.ty(), &b.shape[..]), (Some(TensorType::BF16), &[4u64][..]));
        let mut out = [0; 3];
        file.read(b, 5, &mut out).unwrap();
        assert_eq!(out, [29, 30, 31]);
        assert!(file.read(b, 6, &mut out).is_err(), "past the end");
    }

    #[test]
    fn what_does_not_add_up_is_refused() {
        let with = |a: &str, b: &str| HEADER.replace(a, b);
        for (header, n_data, says) in [
            (HEADER.to_owned(), 31, "31 are there"),
            (HEADER.to_owned(), 33, "33 are there"),
            (with("[2,3]", "[2,4]"), 32, "'a' has no type, shape and offsets"),
            (with("[24,32]", "[20,28]"), 32, "'b' begins at 20"),
            (with("[24,32]", "[28,36]"), 36, "'b' begins at 28"),
            (with("[24,32]", "[32,24]"), 32, "'b' has no"),
            (with("[4]", "[4294967296,4294967296]"), 32, "'b' has no"),
            (with("F32", "F37"), 32, "'a' has no"),
            ("[]".to_owned(), 0, "no JSON object"),
            ("{".to_owned(), 0, "its header"),
        ] {
            let error = open(&file(header.as_bytes(), n_data)).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        }
        let mut huge = file(HEADER.as_bytes(), 32);
        huge[..8].copy_from_slice(&u64::MAX.to_le_bytes());
        assert!(open(&huge).unwrap_err().to_string().contains("are the most"));
        assert!(open(b"abc").unwrap_err().to_string().contains("3 bytes"));
    }

    proptest! {
        /// Whatever bytes change, tensors that are promised can be read.
        #[test]
        fn a_changed_header_is_refused_or_right(
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        ) {
            let mut bytes = file(HEADER.as_bytes(), 32);
            for (at, byte) in changes {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            if let Ok(file) = open(&bytes) {
                for tensor in file.tensors.values() {
                    let mut out = vec![0; tensor.n_bytes as usize];
                    prop_assert!(file.read(tensor, 0, &mut out).is_ok());
                }
            }
        }
    }
}
