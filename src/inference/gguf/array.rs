//! Metadata arrays: spans of the bytes they came from, decoded when somebody asks.
//!
//! An array keeps its items exactly as the file encodes them, so reading one allocates nothing and
//! writing one copies bytes. Strings are walked once when the file is opened, which proves their
//! lengths and their UTF-8.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use super::cursor::Cursor;
use super::error::GgufError;
use super::source::Source;
use super::value::{Value, ValueType, check_bools, read_type, short_text};
use crate::base::limits;

/// A flat array, still encoded; see the `Metadata` readers for decoded ones.
#[derive(Clone)]
pub struct Array {
    item_type: ValueType,
    len: usize,
    source: Arc<Source>,
    span: Range<usize>,
}

impl Array {
    /// The type of every item.
    pub fn item_type(&self) -> ValueType {
        self.item_type
    }

    /// Items in the array.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the array has no items.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The items as the file encodes them.
    pub fn bytes(&self) -> &[u8] {
        &self.source[self.span.clone()]
    }

    /// The items of an array of numbers or bools; nothing for strings.
    pub fn values(&self) -> impl Iterator<Item = Value> + '_ {
        let ty = self.item_type;
        self.bytes().chunks_exact(ty.bytes_min()).map_while(move |b| Value::decode(ty, b))
    }

    /// The items of an array of strings; nothing for others. Text is checked again here, because
    /// a mapped file may have changed since: then the iterator ends early.
    pub fn strs(&self) -> impl Iterator<Item = &str> + '_ {
        let is_str = self.item_type == ValueType::Str;
        let mut rest = if is_str { self.bytes() } else { &[] };
        std::iter::from_fn(move || {
            let (n_bytes, tail) = rest.split_first_chunk::<8>()?;
            let n_bytes = usize::try_from(u64::from_le_bytes(*n_bytes)).ok()?;
            let (text, tail) = tail.split_at_checked(n_bytes)?;
            rest = tail;
            std::str::from_utf8(text).ok()
        })
    }

    /// An array without a file, from items as the format encodes them.
    pub(super) fn from_items(item_type: ValueType, len: usize, bytes: Vec<u8>) -> Array {
        let span = 0..bytes.len();
        Array { item_type, len, source: Arc::new(Source::Owned(bytes)), span }
    }
}

impl PartialEq for Array {
    fn eq(&self, other: &Array) -> bool {
        (self.item_type, self.len, self.bytes()) == (other.item_type, other.len, other.bytes())
    }
}

impl fmt::Debug for Array {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Array({self})")
    }
}

impl fmt::Display for Array {
    /// The first items and the count: `[1, 2, 3, ...] (4096 x u32)`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 4;
        let mut items: Vec<String> = if self.item_type == ValueType::Str {
            self.strs().take(SHOWN).map(short_text).collect()
        } else {
            self.values().take(SHOWN).map(|value| value.to_string()).collect()
        };
        if self.len > items.len() {
            items.push("...".to_owned());
        }
        write!(f, "[{}] ({} x {})", items.join(", "), self.len, self.item_type.name())
    }
}

/// Reads the item type, the count and the items of `key`.
pub(super) fn read(
    cursor: &mut Cursor<'_>,
    source: &Arc<Source>,
    key: &str,
) -> Result<Array, GgufError> {
    let item_type = read_type(cursor, key)?;
    let len = cursor.u64()?;
    if item_type == ValueType::Array {
        return Err(GgufError::NestedArray { key: key.to_owned() });
    }
    let max = limits::GGUF_ARRAY_ITEMS_MAX;
    if len > max {
        return Err(GgufError::TooMany { what: format!("items of `{key}`"), count: len, max });
    }
    cursor.prove(len, item_type.bytes_min() as u64)?;
    let start = cursor.pos();
    if item_type == ValueType::Str {
        for _ in 0..len {
            cursor.str(limits::GGUF_STRING_BYTES_MAX)?;
        }
    } else {
        let bytes = cursor.take(len * item_type.bytes_min() as u64)?;
        check_bools(item_type, bytes, key)?;
    }
    let span = start..cursor.pos();
    Ok(Array { item_type, len: len as usize, source: Arc::clone(source), span })
}
