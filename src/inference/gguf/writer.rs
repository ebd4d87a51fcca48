//! Writing GGUF: pairs and tensors in the order given, offsets and padding worked out.
//!
//! The builder writes what it is told, wrong or right, because tests need files that are wrong in
//! one place. What it lays out by itself is right: keys as the format encodes them, tensors one
//! behind the other at multiples of the alignment, the data section padded to its end. What GGUF
//! has no type or form for goes in as bytes, and the keys of `native` follow those that were given.

use std::borrow::Cow;
use std::io::{self, Write};

use super::native::{self, I8_ID, Record};
use super::value::{Value, encode_str};
use crate::inference::quant::Form;
use crate::inference::quant::TensorType;

/// A GGUF file to be written. Data may be borrowed, so a large model need not be held twice.
#[derive(Clone, Debug)]
pub struct GgufBuilder<'a> {
    version: u32,
    alignment: u64,
    pairs: Vec<(String, Value)>,
    target: Option<String>,
    tensors: Vec<Tensor<'a>>,
}

#[derive(Clone, Debug)]
struct Tensor<'a> {
    name: String,
    shape: Vec<u64>,
    type_id: u32,
    native: Option<Record>,
    offset: Option<u64>,
    n_bytes: u64,
    data: Cow<'a, [u8]>,
}

impl Default for GgufBuilder<'_> {
    fn default() -> Self {
        GgufBuilder {
            version: 3,
            alignment: 32,
            pairs: Vec::new(),
            target: None,
            tensors: Vec::new(),
        }
    }
}

impl<'a> GgufBuilder<'a> {
    /// An empty file of version 3.
    pub fn new() -> Self {
        GgufBuilder::default()
    }

    /// Sets the version of the format.
    pub fn version(mut self, version: u32) -> Self {
        self.version = version;
        self
    }

    /// Adds a pair. `general.alignment`, if it is a number, also sets where tensors are placed.
    pub fn pair(mut self, key: impl Into<String>, value: impl Into<Value>) -> Self {
        let (key, value) = (key.into(), value.into());
        if let ("general.alignment", Some(alignment)) = (key.as_str(), value.as_int()) {
            self.alignment = u64::try_from(alignment).unwrap_or(1).max(1);
        }
        self.pairs.push((key, value));
        self
    }

    /// Says what the panels of the file were packed for.
    pub fn target(mut self, target: impl Into<String>) -> Self {
        self.target = Some(target.into());
        self
    }

    /// Adds a tensor whose rows stand one after another; `shape` is innermost first.
    pub fn tensor(
        self,
        name: impl Into<String>,
        shape: &[u64],
        ty: TensorType,
        data: impl Into<Cow<'a, [u8]>>,
    ) -> Self {
        self.tensor_in(name, shape, ty, Form::Rows, data)
    }

    /// Adds a tensor in a form. Of a tensor that is not plain GGUF, the dimensions past the first
    /// become one.
    pub fn tensor_in(
        self,
        name: impl Into<String>,
        shape: &[u64],
        ty: TensorType,
        form: Form,
        data: impl Into<Cow<'a, [u8]>>,
    ) -> Self {
        let data = data.into();
        if let (Some(id), Form::Rows) = (ty.ggml_id(), form) {
            return self.tensor_of_type_id(name, shape, id, data);
        }
        let (n_cols, rest) = shape.split_first().map_or((0, shape), |(first, rest)| (*first, rest));
        let n_rows = rest.iter().fold(1u64, |n, &dim| n.saturating_mul(dim));
        let mut file = self.tensor_of_type_id(name, &[data.len() as u64], I8_ID, data);
        if let Some(tensor) = file.tensors.last_mut() {
            tensor.native = Some(Record { ty, n_cols, n_rows, form });
        }
        file
    }

    /// Adds a tensor of a type that the runtime may not know.
    pub fn tensor_of_type_id(
        mut self,
        name: impl Into<String>,
        shape: &[u64],
        type_id: u32,
        data: impl Into<Cow<'a, [u8]>>,
    ) -> Self {
        let (name, shape, data) = (name.into(), shape.to_vec(), data.into());
        let n_bytes = data.len() as u64;
        self.tensors.push(Tensor {
            name,
            shape,
            type_id,
            native: None,
            offset: None,
            n_bytes,
            data,
        });
        self
    }

    /// Leaves room for data of the last tensor that is not here: whoever writes the file puts
    /// [`GgufBuilder::header`] down first, then each tensor's `n_bytes` and zeros up to the
    /// alignment.
    pub fn announce(mut self, n_bytes: u64) -> Self {
        if let Some(tensor) = self.tensors.last_mut() {
            tensor.n_bytes = n_bytes;
            if tensor.native.is_some() {
                tensor.shape = vec![n_bytes];
            }
        }
        self
    }

    /// Makes the record of the last tensor claim this offset; its data stays where it is.
    pub fn claim_offset(mut self, offset: u64) -> Self {
        if let Some(tensor) = self.tensors.last_mut() {
            tensor.offset = Some(offset);
        }
        self
    }

    /// The file up to its tensor data, padding included.
    pub fn header(&self) -> Vec<u8> {
        let mut out = b"GGUF".to_vec();
        out.extend(self.version.to_le_bytes());
        out.extend((self.tensors.len() as u64).to_le_bytes());
        let native = self.tensors.iter().filter_map(|t| Some((t.name.as_str(), t.native?)));
        let native = native::pairs(self.target.as_deref(), native);
        out.extend(((self.pairs.len() + native.len()) as u64).to_le_bytes());
        let given = self.pairs.iter().map(|(key, value)| (key.as_str(), value));
        for (key, value) in given.chain(native.iter().map(|(key, value)| (*key, value))) {
            encode_str(key, &mut out);
            out.extend(value.value_type().id().to_le_bytes());
            value.encode(&mut out);
        }
        let mut next_offset = 0;
        for tensor in &self.tensors {
            encode_str(&tensor.name, &mut out);
            out.extend((tensor.shape.len() as u32).to_le_bytes());
            tensor.shape.iter().for_each(|dim| out.extend(dim.to_le_bytes()));
            out.extend(tensor.type_id.to_le_bytes());
            out.extend(tensor.offset.unwrap_or(next_offset).to_le_bytes());
            next_offset += tensor.n_bytes.next_multiple_of(self.alignment);
        }
        out.resize(out.len() + self.padding(out.len()), 0);
        out
    }

    /// Bytes of the tensors, announced ones among them, each padded to the alignment.
    pub fn data_bytes(&self) -> u64 {
        let padded = |tensor: &Tensor<'_>| tensor.n_bytes.checked_next_multiple_of(self.alignment);
        let sizes = self.tensors.iter().map(|tensor| padded(tensor).unwrap_or(u64::MAX));
        sizes.fold(0, u64::saturating_add)
    }

    /// The whole file in memory.
    pub fn build(&self) -> Vec<u8> {
        let mut out = self.header();
        for tensor in &self.tensors {
            out.extend_from_slice(&tensor.data);
            out.resize(out.len() + self.padding(tensor.data.len()), 0);
        }
        out
    }

    /// Writes the file without holding it in memory. Flushing and syncing are the caller's.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn write_to(&self, out: &mut impl Write) -> io::Result<()> {
        out.write_all(&self.header())?;
        for tensor in &self.tensors {
            out.write_all(&tensor.data)?;
            out.write_all(&vec![0; self.padding(tensor.data.len())])?;
        }
        Ok(())
    }

    /// Zeros that follow `len` bytes.
    fn padding(&self, len: usize) -> usize {
        let len = len as u64;
        (len.next_multiple_of(self.alignment) - len) as usize
    }
}
