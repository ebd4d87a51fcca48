//! Metadata values: single ones are decoded, arrays stay encoded (see `array`).
//!
//! Numbers are little-endian, a bool is a byte 0 or 1, a string has its length in a u64 before it.

use std::fmt;
use std::sync::Arc;

use super::array::{self, Array};
use super::cursor::Cursor;
use super::error::GgufError;
use super::source::Source;
use crate::base::limits;

/// The type of a value or of an array's items.
#[allow(missing_docs)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ValueType {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    F32,
    Bool,
    Str,
    Array,
    U64,
    I64,
    F64,
}

impl ValueType {
    /// In the order of the format's ids.
    const ALL: [(ValueType, &'static str, usize); 13] = [
        (ValueType::U8, "u8", 1),
        (ValueType::I8, "i8", 1),
        (ValueType::U16, "u16", 2),
        (ValueType::I16, "i16", 2),
        (ValueType::U32, "u32", 4),
        (ValueType::I32, "i32", 4),
        (ValueType::F32, "f32", 4),
        (ValueType::Bool, "bool", 1),
        (ValueType::Str, "str", 8),
        (ValueType::Array, "array", 12),
        (ValueType::U64, "u64", 8),
        (ValueType::I64, "i64", 8),
        (ValueType::F64, "f64", 8),
    ];

    fn row(self) -> (ValueType, &'static str, usize) {
        ValueType::ALL[self as usize]
    }

    fn from_id(id: u32) -> Option<ValueType> {
        ValueType::ALL.get(id as usize).map(|row| row.0)
    }

    pub(super) fn id(self) -> u32 {
        self as u32
    }

    /// The name that messages use, `u32` for example.
    pub fn name(self) -> &'static str {
        self.row().1
    }

    /// Bytes of a value; of a string or array, the bytes that it has at least.
    pub(super) fn bytes_min(self) -> usize {
        self.row().2
    }
}

/// One metadata value.
#[allow(missing_docs)]
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    F32(f32),
    Bool(bool),
    Str(String),
    Array(Array),
    U64(u64),
    I64(i64),
    F64(f64),
}

impl Value {
    /// The value's type; `ValueType::Array` for any array.
    pub fn value_type(&self) -> ValueType {
        match self {
            Value::U8(_) => ValueType::U8,
            Value::I8(_) => ValueType::I8,
            Value::U16(_) => ValueType::U16,
            Value::I16(_) => ValueType::I16,
            Value::U32(_) => ValueType::U32,
            Value::I32(_) => ValueType::I32,
            Value::F32(_) => ValueType::F32,
            Value::Bool(_) => ValueType::Bool,
            Value::Str(_) => ValueType::Str,
            Value::Array(_) => ValueType::Array,
            Value::U64(_) => ValueType::U64,
            Value::I64(_) => ValueType::I64,
            Value::F64(_) => ValueType::F64,
        }
    }

    /// The type in words, with the items' type for an array.
    pub fn type_name(&self) -> String {
        match self {
            Value::Array(array) => format!("array of {}", array.item_type().name()),
            value => value.value_type().name().to_owned(),
        }
    }

    /// The value of any integer type.
    pub fn as_int(&self) -> Option<i128> {
        Some(match *self {
            Value::U8(v) => v.into(),
            Value::I8(v) => v.into(),
            Value::U16(v) => v.into(),
            Value::I16(v) => v.into(),
            Value::U32(v) => v.into(),
            Value::I32(v) => v.into(),
            Value::U64(v) => v.into(),
            Value::I64(v) => v.into(),
            _ => return None,
        })
    }

    /// The value of either float type.
    pub fn as_float(&self) -> Option<f64> {
        match *self {
            Value::F32(v) => Some(v.into()),
            Value::F64(v) => Some(v),
            _ => None,
        }
    }

    /// A number or bool from exactly as many bytes as its type has.
    pub(super) fn decode(ty: ValueType, bytes: &[u8]) -> Option<Value> {
        macro_rules! le {
            ($ty:ty) => {
                <$ty>::from_le_bytes(bytes.try_into().ok()?)
            };
        }
        Some(match ty {
            ValueType::U8 => Value::U8(le!(u8)),
            ValueType::I8 => Value::I8(le!(i8)),
            ValueType::U16 => Value::U16(le!(u16)),
            ValueType::I16 => Value::I16(le!(i16)),
            ValueType::U32 => Value::U32(le!(u32)),
            ValueType::I32 => Value::I32(le!(i32)),
            ValueType::F32 => Value::F32(le!(f32)),
            ValueType::Bool => Value::Bool(le!(u8) != 0),
            ValueType::U64 => Value::U64(le!(u64)),
            ValueType::I64 => Value::I64(le!(i64)),
            ValueType::F64 => Value::F64(le!(f64)),
            ValueType::Str | ValueType::Array => return None,
        })
    }

    /// Appends the value as the format encodes it, without its type.
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Value::U8(v) => out.extend(v.to_le_bytes()),
            Value::I8(v) => out.extend(v.to_le_bytes()),
            Value::U16(v) => out.extend(v.to_le_bytes()),
            Value::I16(v) => out.extend(v.to_le_bytes()),
            Value::U32(v) => out.extend(v.to_le_bytes()),
            Value::I32(v) => out.extend(v.to_le_bytes()),
            Value::F32(v) => out.extend(v.to_le_bytes()),
            Value::Bool(v) => out.push((*v).into()),
            Value::Str(v) => encode_str(v, out),
            Value::Array(v) => {
                out.extend(v.item_type().id().to_le_bytes());
                out.extend((v.len() as u64).to_le_bytes());
                out.extend(v.bytes());
            }
            Value::U64(v) => out.extend(v.to_le_bytes()),
            Value::I64(v) => out.extend(v.to_le_bytes()),
            Value::F64(v) => out.extend(v.to_le_bytes()),
        }
    }
}

pub(super) fn encode_str(text: &str, out: &mut Vec<u8>) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

impl fmt::Display for Value {
    /// A short form for people: long strings and arrays show their beginning.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::U8(v) => v.fmt(f),
            Value::I8(v) => v.fmt(f),
            Value::U16(v) => v.fmt(f),
            Value::I16(v) => v.fmt(f),
            Value::U32(v) => v.fmt(f),
            Value::I32(v) => v.fmt(f),
            Value::F32(v) => v.fmt(f),
            Value::Bool(v) => v.fmt(f),
            Value::Str(v) => f.write_str(&short_text(v)),
            Value::Array(v) => v.fmt(f),
            Value::U64(v) => v.fmt(f),
            Value::I64(v) => v.fmt(f),
            Value::F64(v) => v.fmt(f),
        }
    }
}

/// Quoted and escaped, so that a file cannot write to the terminal; cut after 60 characters.
pub(super) fn short_text(text: &str) -> String {
    const SHOWN: usize = 60;
    match text.char_indices().nth(SHOWN) {
        None => format!("{text:?}"),
        Some((end, _)) => format!("{:?}... ({} bytes)", &text[..end], text.len()),
    }
}

macro_rules! from_number {
    ($($ty:ty => $variant:ident),*) => {$(
        impl From<$ty> for Value {
            fn from(value: $ty) -> Value {
                Value::$variant(value)
            }
        }
        impl From<&[$ty]> for Value {
            fn from(items: &[$ty]) -> Value {
                let mut bytes = Vec::with_capacity(size_of_val(items));
                items.iter().for_each(|&item| Value::$variant(item).encode(&mut bytes));
                Value::Array(Array::from_items(ValueType::$variant, items.len(), bytes))
            }
        }
    )*};
}
from_number!(u8 => U8, i8 => I8, u16 => U16, i16 => I16, u32 => U32, i32 => I32, f32 => F32,
             bool => Bool, u64 => U64, i64 => I64, f64 => F64);

impl From<&str> for Value {
    fn from(value: &str) -> Value {
        Value::Str(value.to_owned())
    }
}

macro_rules! from_strings {
    ($($ty:ty),*) => {$(
        impl From<&[$ty]> for Value {
            fn from(items: &[$ty]) -> Value {
                let mut bytes = Vec::new();
                items.iter().for_each(|item| encode_str(item, &mut bytes));
                Value::Array(Array::from_items(ValueType::Str, items.len(), bytes))
            }
        }
    )*};
}
from_strings!(&str, String);

impl<T, const N: usize> From<&[T; N]> for Value
where
    for<'a> Value: From<&'a [T]>,
{
    fn from(items: &[T; N]) -> Value {
        Value::from(&items[..])
    }
}

/// Reads the type and value of `key`.
pub(super) fn read(
    cursor: &mut Cursor<'_>,
    source: &Arc<Source>,
    key: &str,
) -> Result<Value, GgufError> {
    match read_type(cursor, key)? {
        ValueType::Str => Ok(Value::Str(cursor.str(string_bytes_max(key))?.to_owned())),
        ValueType::Array => array::read(cursor, source, key).map(Value::Array),
        ty => {
            let bytes = cursor.take(ty.bytes_min() as u64)?;
            check_bools(ty, bytes, key)?;
            Value::decode(ty, bytes).ok_or_else(|| GgufError::KeyChanged { key: key.to_owned() })
        }
    }
}

pub(super) fn read_type(cursor: &mut Cursor<'_>, key: &str) -> Result<ValueType, GgufError> {
    let id = cursor.u32()?;
    ValueType::from_id(id).ok_or_else(|| GgufError::UnknownValueType { key: key.to_owned(), id })
}

/// A chat template may be long, whatever name it has behind the prefix.
fn string_bytes_max(key: &str) -> u64 {
    if key.starts_with("tokenizer.chat_template") {
        limits::CHAT_TEMPLATE_BYTES_MAX
    } else {
        limits::GGUF_STRING_BYTES_MAX
    }
}

pub(super) fn check_bools(ty: ValueType, bytes: &[u8], key: &str) -> Result<(), GgufError> {
    match bytes.iter().find(|&&byte| byte > 1) {
        Some(&value) if ty == ValueType::Bool => {
            Err(GgufError::BadBool { key: key.to_owned(), value })
        }
        _ => Ok(()),
    }
}
