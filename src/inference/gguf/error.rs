//! What can be wrong with a GGUF file, each case naming the key or tensor and the values.

use std::path::PathBuf;

/// Why a model file was refused.
#[allow(missing_docs)] // the fields are the values that each message shows
#[derive(Debug, thiserror::Error)]
pub enum GgufError {
    #[error("cannot read {}", .path.display())]
    Io { path: PathBuf, source: std::io::Error },
    #[error("no addresses are left for a model of {n_bytes} bytes")]
    Outline { n_bytes: u64, source: std::io::Error },
    #[error("{} is not a regular file", .path.display())]
    NotAFile { path: PathBuf },
    #[error("{} changed its size while it was opened: is it still being written?", .path.display())]
    FileChanged { path: PathBuf },
    #[error("not a GGUF file: it starts with {magic:02x?} instead of \"GGUF\"")]
    NotGguf { magic: Vec<u8> },
    #[error("this is a big-endian GGUF file; only little-endian ones are read, convert it again")]
    BigEndian,
    #[error("GGUF version {version} is not supported; versions 2 and 3 are")]
    Version { version: u32 },

    #[error(
        "the file is cut short: it ends inside {place}, at least {missing_bytes} bytes missing"
    )]
    Truncated { place: String, missing_bytes: u64 },
    #[error(
        "the file is cut short by {missing_bytes} bytes: it has {file_bytes}, \
         tensor `{tensor}` is the first that is not whole"
    )]
    TruncatedTensor { tensor: String, missing_bytes: u64, file_bytes: u64 },
    #[error("{place} lies beyond the first {max} bytes, the most that a header may take")]
    HeaderTooLong { place: String, max: u64 },
    #[error("{what}: {count} is more than the {max} allowed")]
    TooMany { what: String, count: u64, max: u64 },
    #[error("{place} has a string of {n_bytes} bytes; {max} are allowed")]
    StringTooLong { place: String, n_bytes: u64, max: u64 },
    #[error("{place} has a string that is not UTF-8")]
    NotUtf8 { place: String },
    #[error("key {key_idx} has an empty name")]
    EmptyKey { key_idx: u64 },
    #[error("key `{key}` appears twice")]
    DuplicateKey { key: String },
    #[error("key `{key}` has value type {id}, which the format does not define")]
    UnknownValueType { key: String, id: u32 },
    #[error("key `{key}` is an array of arrays; only flat arrays are read")]
    NestedArray { key: String },
    #[error("key `{key}` has a bool stored as {value}; only 0 and 1 are bools")]
    BadBool { key: String, value: u8 },
    #[error("`general.alignment` is {alignment}; it must be a power of two from {min} to {max}")]
    Alignment { alignment: u64, min: u64, max: u64 },

    #[error("key `{key}` should be {want} but is {got}")]
    KeyType { key: String, want: &'static str, got: String },
    #[error("key `{key}` is {value}, which does not fit {want}")]
    KeyRange { key: String, value: String, want: &'static str },
    #[error("the bytes of key `{key}` changed since the file was opened")]
    KeyChanged { key: String },

    #[error("tensor `{tensor}` appears twice")]
    DuplicateTensor { tensor: String },
    #[error("tensor `{tensor}` has {n_dims} dimensions; 1 to {max} are allowed")]
    DimensionCount { tensor: String, n_dims: u32, max: u32 },
    #[error("tensor `{tensor}` has shape {shape:?}: a dimension is 0")]
    ZeroDimension { tensor: String, shape: Vec<u64> },
    #[error("tensor `{tensor}` has shape {shape:?}: its size overflows")]
    TensorTooLarge { tensor: String, shape: Vec<u64> },
    #[error("tensor `{tensor}` has type {ty}; supported are {supported}")]
    UnsupportedType { tensor: String, ty: String, supported: String },
    #[error(
        "tensor `{tensor}` has rows of {row_len} weights, not a multiple of the {block_len} \
         in a block of {ty}"
    )]
    RowLength { tensor: String, ty: &'static str, row_len: u64, block_len: u64 },
    #[error("tensor `{tensor}` is at offset {offset}, not a multiple of the alignment {alignment}")]
    Misaligned { tensor: String, offset: u64, alignment: u64 },
    #[error("tensors `{tensor}` and `{other}` overlap")]
    Overlap { tensor: String, other: String },

    #[error("the native extension has version {version}; version 1 is read")]
    NativeVersion { version: u32 },
    #[error("`{key}` has {got} items for {want} names")]
    NativeCount { key: &'static str, want: usize, got: usize },
    #[error("`{key}` says {value} for tensor `{tensor}`, which this version does not know")]
    NativeWord { tensor: String, key: &'static str, value: String },
    #[error("the native extension describes tensor `{tensor}`, which is not stored as I8")]
    NativeBytes { tensor: String },
    #[error(
        "tensor `{tensor}` is listed with shape {got:?}; as {ty} in {form} it has {want} bytes"
    )]
    NativeLength { tensor: String, ty: &'static str, form: &'static str, want: u64, got: Vec<u64> },
    #[error("the native extension describes tensor `{tensor}`, which the file does not have")]
    NativeAbsent { tensor: String },

    #[error("in shard {}", .path.display())]
    Shard { path: PathBuf, source: Box<GgufError> },
    #[error(
        "{} is a shard of a split model and must be named like `{want}` to find the others",
        .path.display()
    )]
    ShardName { path: PathBuf, want: String },
    #[error(
        "says that it is shard {split_no} of {split_count}; \
         shard {shard_idx} of {n_shards} was expected"
    )]
    ShardNumber { split_no: u64, split_count: u64, shard_idx: u64, n_shards: u64 },
    #[error(
        "says that the model has {want} tensors (`split.tensors.count`); all shards hold {got}"
    )]
    SplitTensors { want: u64, got: u64 },
    #[error("this is one of {n_shards} shards; a split model can be read from files only")]
    SplitInMemory { n_shards: u32 },
    #[error("a model of no shards")]
    NoShards,
}
