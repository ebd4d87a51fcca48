//! A Hugging Face folder as a source: weights in safetensors, seen as the GGUF that they make.
//!
//! ```text
//! config.json                      -> keys of the architecture, and the tensors that it must have
//! tokenizer.json, tokenizer.model  -> the vocabulary, its pre-tokenizer, special tokens, template
//! *.safetensors (+ index)          -> names, shapes, places; rows are read when they are wanted
//! ```
//!
//! The outline is a GGUF with zeros for weights, so that plans and sizes need nothing new. Names,
//! types and the order of rows are those of llama.cpp's converter: vectors become F32, and the rows
//! of Llama's queries and keys, which Hugging Face keeps in halves, go back to pairs. A model that
//! is not wholly understood is refused: a guess would run and write nonsense.

mod config;
mod family;
mod pre;
mod safetensors;
mod sentencepiece;
mod vocab;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde_json::Value as Json;

use self::config::Config;
use self::safetensors::{Safetensors, Stored};
use crate::base::limits::{FOLDER_JSON_BYTES_MAX, GGUF_SHARDS_MAX};
use crate::inference::TensorType;
use crate::inference::gguf::{Gguf, GgufBuilder, GgufError};
use crate::inference::quant::dequantize;

/// Why a folder cannot be read as a model.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    /// A file cannot be read.
    #[error("{}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file that is larger than any such file is, or no file.
    #[error("{} is no file of at most {max} bytes", path.display())]
    Size {
        /// The file.
        path: PathBuf,
        /// The bound.
        max: u64,
    },
    /// A JSON file that is none, or says something of another kind.
    #[error("{}: {reason}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// Weights that do not add up.
    #[error("{}: {reason}", path.display())]
    Safetensors {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// No weights.
    #[error(
        "{} has neither model.safetensors.index.json nor one .safetensors file", path.display()
    )]
    NoWeights {
        /// The folder.
        path: PathBuf,
    },
    /// A model, or a setting of one, that this program does not convert.
    #[error("config.json: {key} = {value} is not supported; {supported}")]
    Unsupported {
        /// The key.
        key: &'static str,
        /// What it says.
        value: String,
        /// What is.
        supported: &'static str,
    },
    /// A tensor that the model does not have.
    #[error("the weights have no '{name}'")]
    MissingTensor {
        /// Its name.
        name: String,
    },
    /// A tensor that nothing here has a use for.
    #[error("the weights have '{name}', which a model of this kind does not have")]
    StrangeTensor {
        /// Its name.
        name: String,
    },
    /// A tensor of another shape or type.
    #[error("'{name}' is {dtype} {got:?}, and floats {expected:?} were expected")]
    TensorShape {
        /// Its name.
        name: String,
        /// Its type.
        dtype: String,
        /// Outermost first.
        got: Vec<u64>,
        /// Outermost first.
        expected: Vec<u64>,
    },
    /// A tokenizer that this program does not convert.
    #[error("the tokenizer cannot be converted: {reason}")]
    Tokenizer {
        /// What it has.
        reason: String,
    },
    /// What it makes is no GGUF.
    #[error(transparent)]
    Gguf(#[from] GgufError),
}

impl FolderError {
    fn io(path: &Path) -> impl FnOnce(std::io::Error) -> FolderError + use<> {
        let path = path.to_owned();
        move |source| FolderError::Io { path, source }
    }
}

/// A folder that was understood.
#[derive(Debug)]
pub(super) struct Folder {
    /// The GGUF that it makes, zeros for weights.
    pub(super) outline: Gguf,
    /// For each tensor of the outline, where it is.
    places: Vec<Place>,
    files: Vec<Safetensors>,
}

/// Where a tensor's weights are.
#[derive(Debug)]
struct Place {
    file_idx: usize,
    stored: Stored,
    ty: TensorType,
    /// Heads whose rows, kept in halves, go back to pairs.
    n_head: Option<u64>,
}

impl Folder {
    /// Reads everything but the weights.
    pub(super) fn open(path: &Path) -> Result<Folder, FolderError> {
        let config = Config::new(need_json(&path.join("config.json"))?)?;
        let (files, by_name) = weights(path)?;
        let mut file = GgufBuilder::new();
        for (key, value) in
            config.pairs(&name_of(path))?.into_iter().chain(vocab::pairs(path, &config)?)
        {
            file = file.pair(key, value);
        }
        let mut used = BTreeSet::new();
        let mut places = Vec::new();
        for wanted in config.tensors(|name| by_name.contains_key(name)) {
            let Some(&file_idx) = by_name.get(&wanted.name) else {
                return Err(FolderError::MissingTensor { name: wanted.name });
            };
            let stored = files[file_idx].tensors[&wanted.name].clone();
            let Some(ty) = stored.ty().filter(|_| stored.shape == wanted.shape) else {
                return Err(FolderError::TensorShape {
                    name: wanted.name,
                    dtype: stored.dtype,
                    got: stored.shape,
                    expected: wanted.shape,
                });
            };
            // As llama.cpp: vectors are few, and everybody keeps them in F32.
            let listed = if stored.shape.len() == 1 { TensorType::F32 } else { ty };
            let shape: Vec<u64> = stored.shape.iter().rev().copied().collect();
            let row_bytes = listed.row_bytes(shape[0] as usize).unwrap_or(0) as u64;
            let n_bytes = row_bytes * shape[1..].iter().product::<u64>();
            file = file.tensor(wanted.gguf_name, &shape, listed, Vec::new()).announce(n_bytes);
            used.insert(wanted.name);
            places.push(Place { file_idx, stored, ty, n_head: wanted.n_head });
        }
        let strange = by_name.keys().find(|name| !used.contains(*name) && !config.is_spare(name));
        if let Some(name) = strange {
            return Err(FolderError::StrangeTensor { name: name.clone() });
        }
        Ok(Folder { outline: Gguf::outline(&file)?, places, files })
    }

    /// The files of the weights.
    pub(super) fn files(&self) -> impl Iterator<Item = (&Path, &File)> {
        self.files.iter().map(|file| (file.path.as_path(), &file.file))
    }

    /// Rows of a tensor of the outline, as it lists them.
    pub(super) fn rows(
        &self,
        tensor_idx: usize,
        first_row: usize,
        n_rows: usize,
        out: &mut Vec<u8>,
    ) -> Result<(), FolderError> {
        let (place, info) = (&self.places[tensor_idx], &self.outline.tensors()[tensor_idx]);
        let file = &self.files[place.file_idx];
        let is_vector = place.stored.shape.len() == 1;
        // A vector is read whole, its numbers being the rows that go in pairs.
        let (unit, all, first, n) = match is_vector {
            true => (1, info.shape[0], 0, info.shape[0] as usize),
            false => (info.shape[0] as usize, info.shape[1], first_row, n_rows),
        };
        let unit_bytes = place.ty.row_bytes(unit).unwrap_or(0);
        out.clear();
        out.resize(n * unit_bytes, 0);
        match place.n_head {
            None => file.read(&place.stored, (first * unit_bytes) as u64, out)?,
            Some(n_head) => {
                for (i, row) in out.chunks_exact_mut(unit_bytes).enumerate() {
                    let from = row_in_halves((first + i) as u64, all / n_head);
                    file.read(&place.stored, from * unit_bytes as u64, row)?;
                }
            }
        }
        if place.ty != info.ty {
            let mut floats = vec![0.0; n * unit];
            dequantize(place.ty, out, &mut floats);
            *out = floats.into_iter().flat_map(f32::to_le_bytes).collect();
        }
        Ok(())
    }
}

/// Where a head of `head_dim` rows that stands in halves keeps the row that stands at `row` among
/// pairs: rotation turns rows 2 i and 2 i + 1 there, and i and i + head_dim / 2 here.
fn row_in_halves(row: u64, head_dim: u64) -> u64 {
    let (head, at) = (row / head_dim, row % head_dim);
    head * head_dim + at % 2 * (head_dim / 2) + at / 2
}

/// The name of the folder.
fn name_of(path: &Path) -> String {
    let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// Opens a regular file; opening a pipe would wait for its other end.
fn open_regular(path: &Path) -> Result<File, FolderError> {
    let metadata = std::fs::metadata(path).map_err(FolderError::io(path))?;
    if !metadata.is_file() {
        return Err(FolderError::Size { path: path.to_owned(), max: u64::MAX });
    }
    File::open(path).map_err(FolderError::io(path))
}

/// A whole file; `None` where there is none.
fn read(path: &Path, max: u64) -> Result<Option<Vec<u8>>, FolderError> {
    if !path.exists() {
        return Ok(None);
    }
    let mut bytes = Vec::new();
    let n = open_regular(path)?.take(max + 1).read_to_end(&mut bytes);
    if n.map_err(FolderError::io(path))? as u64 > max {
        return Err(FolderError::Size { path: path.to_owned(), max });
    }
    Ok(Some(bytes))
}

/// A JSON file; `None` where there is none.
fn json(path: &Path) -> Result<Option<Json>, FolderError> {
    let Some(bytes) = read(path, FOLDER_JSON_BYTES_MAX)? else { return Ok(None) };
    let wrong = |error: serde_json::Error| FolderError::Json {
        path: path.to_owned(),
        reason: error.to_string(),
    };
    serde_json::from_slice(&bytes).map(Some).map_err(wrong)
}

fn need_json(path: &Path) -> Result<Json, FolderError> {
    let missing = || std::io::Error::from(std::io::ErrorKind::NotFound);
    json(path)?.ok_or_else(|| FolderError::io(path)(missing()))
}

/// The files of the weights, and for each tensor which of them has it.
fn weights(path: &Path) -> Result<(Vec<Safetensors>, BTreeMap<String, usize>), FolderError> {
    let index_path = path.join("model.safetensors.index.json");
    let names = match json(&index_path)? {
        Some(index) => indexed_files(&index_path, &index)?,
        None => vec![single_file(path)?],
    };
    let mut files = Vec::with_capacity(names.len());
    let mut by_name = BTreeMap::new();
    for (file_idx, name) in names.iter().enumerate() {
        let file = Safetensors::open(&path.join(name))?;
        for tensor in file.tensors.keys() {
            if by_name.insert(tensor.clone(), file_idx).is_some() {
                let reason = format!("'{tensor}' is in another file as well");
                return Err(FolderError::Safetensors { path: file.path, reason });
            }
        }
        files.push(file);
    }
    Ok((files, by_name))
}

/// The files that an index names, which must lie beside it.
fn indexed_files(path: &Path, index: &Json) -> Result<Vec<String>, FolderError> {
    let wrong = |reason: &str| FolderError::Json { path: path.to_owned(), reason: reason.into() };
    let map = index["weight_map"].as_object().ok_or_else(|| wrong("it has no weight_map"))?;
    let names: Option<BTreeSet<&str>> = map.values().map(Json::as_str).collect();
    let names = names.ok_or_else(|| wrong("its weight_map names something that is no file"))?;
    let is_beside = |name: &&str| Path::new(name).file_name() == Some(name.as_ref());
    if names.is_empty() || names.len() > GGUF_SHARDS_MAX as usize || !names.iter().all(is_beside) {
        return Err(wrong("its weight_map names no files, too many, or files elsewhere"));
    }
    Ok(names.into_iter().map(str::to_owned).collect())
}

fn single_file(path: &Path) -> Result<String, FolderError> {
    let entries = std::fs::read_dir(path).map_err(FolderError::io(path))?;
    let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    let mut names: Vec<String> = names.filter(|name| name.ends_with(".safetensors")).collect();
    match names.len() {
        1 => Ok(names.remove(0)),
        _ => Err(FolderError::NoWeights { path: path.to_owned() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_in_halves_and_rows_in_pairs() {
        let pairs: Vec<u64> = (0..12).map(|row| row_in_halves(row, 6)).collect();
        assert_eq!(pairs, [0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11]);
    }
}
