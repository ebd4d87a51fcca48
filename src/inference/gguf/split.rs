//! Split models: `name-00001-of-00003.gguf` and its siblings, read as one.
//!
//! File names count shards from 1, `split.no` counts from 0. Shard 0 holds the metadata; the
//! others hold little more than the `split.*` keys. Each shard has its own header, alignment and
//! data section, so offsets never cross files.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::error::GgufError;
use super::header::{self, Header};
use super::metadata::Metadata;
use super::source;
use crate::base::limits;

/// What a shard says about its place in the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Part {
    pub(super) shard_idx: u32,
    pub(super) n_shards: u32,
}

/// The `split.*` keys of a shard; `None` for a model that is one file.
pub(super) fn part(metadata: &Metadata) -> Result<Option<Part>, GgufError> {
    let n_shards = metadata.u32("split.count")?.unwrap_or(1);
    if n_shards <= 1 {
        return Ok(None);
    }
    let max = limits::GGUF_SHARDS_MAX;
    if n_shards > max {
        return Err(GgufError::TooMany {
            what: "shards (`split.count`)".to_owned(),
            count: n_shards.into(),
            max: max.into(),
        });
    }
    let shard_idx = metadata.u32("split.no")?.unwrap_or(0);
    if shard_idx >= n_shards {
        return Err(GgufError::KeyRange {
            key: "split.no".to_owned(),
            value: shard_idx.to_string(),
            want: "`split.count`",
        });
    }
    Ok(Some(Part { shard_idx, n_shards }))
}

/// Reads the siblings of the shard at `path` and returns all shards in order.
pub(super) fn open_all(path: &Path, opened: Header, part: Part) -> Result<Vec<Header>, GgufError> {
    let prefix = prefix(path, part)
        .ok_or_else(|| GgufError::ShardName { path: path.to_owned(), want: suffix(part) })?;
    let mut opened = Some(opened);
    let mut headers: Vec<Header> = Vec::with_capacity(part.n_shards as usize);
    let mut n_tensors = 0;
    for shard_idx in 0..part.n_shards {
        let wanted = Part { shard_idx, ..part };
        let header = match opened.take_if(|_| shard_idx == part.shard_idx) {
            Some(header) => header,
            None => {
                let path = path.with_file_name(format!("{prefix}{}", suffix(wanted)));
                open_sibling(&path, wanted)
                    .map_err(|e| GgufError::Shard { path, source: Box::new(e) })?
            }
        };
        n_tensors += (header.tensors.len() + header.unread.len()) as u64;
        header::check_count("tensors", n_tensors, limits::GGUF_TENSORS_MAX)?;
        headers.push(header);
    }
    check_tensor_count(path, &prefix, part, &headers, n_tensors)?;
    Ok(headers)
}

fn open_sibling(path: &Path, wanted: Part) -> Result<Header, GgufError> {
    let header = Header::parse(Arc::new(source::map(path)?))?;
    let got = part(&header.metadata)?.unwrap_or(Part { shard_idx: 0, n_shards: 1 });
    if got != wanted {
        return Err(GgufError::ShardNumber {
            split_no: got.shard_idx.into(),
            split_count: got.n_shards.into(),
            shard_idx: wanted.shard_idx.into(),
            n_shards: wanted.n_shards.into(),
        });
    }
    Ok(header)
}

/// Every shard that states the number of tensors must state the right one.
fn check_tensor_count(
    path: &Path,
    prefix: &str,
    part: Part,
    headers: &[Header],
    got: u64,
) -> Result<(), GgufError> {
    for (shard_idx, header) in (0..).zip(headers) {
        let shard_path = || -> PathBuf {
            path.with_file_name(format!("{prefix}{}", suffix(Part { shard_idx, ..part })))
        };
        let want = header.metadata.u64("split.tensors.count")?;
        if let Some(want) = want.filter(|&want| want != got) {
            let source = Box::new(GgufError::SplitTensors { want, got });
            return Err(GgufError::Shard { path: shard_path(), source });
        }
    }
    Ok(())
}

/// The end of a shard's file name.
fn suffix(part: Part) -> String {
    format!("-{:05}-of-{:05}.gguf", part.shard_idx + 1, part.n_shards)
}

/// What stands before the suffix in the name of a shard's file, if the suffix is right.
fn prefix(path: &Path, part: Part) -> Option<String> {
    let name = path.file_name()?.to_str()?;
    name.strip_suffix(&suffix(part)).map(str::to_owned)
}
