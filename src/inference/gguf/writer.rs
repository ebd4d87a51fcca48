//! Writing GGUF: pairs and tensors in the order given, offsets and padding worked out.
//!
//! The builder writes what it is told, wrong or right, because tests need files that are wrong in
//! one place. What it lays out by itself is right: keys as the format encodes them, tensors one
//! behind the other at multiples of the alignment, the data section padded to its end.

use std::borrow::Cow;
use std::io::{self, Write};

use super::value::{Value, encode_str};
use crate::inference::quant::TensorType;

/// The type that stands for the bytes of what GGUF has no type for.
const I8_ID: u32 = 24;

/// A GGUF file to be written. Data may be borrowed, so a large model need not be held twice.
#[derive(Clone, Debug)]
pub struct GgufBuilder<'a> {
    version: u32,
    alignment: u64,
    pairs: Vec<(String, Value)>,
    tensors: Vec<Tensor<'a>>,
}

#[derive(Clone, Debug)]
struct Tensor<'a> {
    name: String,
    shape: Vec<u64>,
    type_id: u32,
    offset: Option<u64>,
    n_bytes: u64,
    data: Cow<'a, [u8]>,
}

impl Default for GgufBuilder<'_> {
    fn default() -> Self {
        GgufBuilder { version: 3, alignment: 32, pairs: Vec::new(), tensors: Vec::new() }
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

    /// Adds a tensor; `shape` is innermost first.
    pub fn tensor(
        self,
        name: impl Into<String>,
        shape: &[u64],
        ty: TensorType,
        data: impl Into<Cow<'a, [u8]>>,
    ) -> Self {
        let data = data.into();
        match ty.ggml_id() {
            Some(id) => self.tensor_of_type_id(name, shape, id, data),
            None => self.tensor_of_type_id(name, &[data.len() as u64], I8_ID, data),
        }
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
        self.tensors.push(Tensor { name, shape, type_id, offset: None, n_bytes, data });
        self
    }

    /// Leaves room for data of the last tensor that is not here: whoever writes the file puts
    /// [`GgufBuilder::header`] down first, then each tensor's `n_bytes` and zeros up to the
    /// alignment.
    pub fn announce(mut self, n_bytes: u64) -> Self {
        if let Some(tensor) = self.tensors.last_mut() {
            tensor.n_bytes = n_bytes;
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
        out.extend((self.pairs.len() as u64).to_le_bytes());
        for (key, value) in &self.pairs {
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
