//! Metadata: keys in file order, each read with the type that its user expects.
//!
//! Every reader answers `Ok(None)` for an absent key and an error that names the key for a value
//! of another type or out of range. Writers of GGUF files differ in the width of integers, so any
//! integer type serves where the number fits; floats and integers are never mixed.

use std::collections::HashMap;

use super::array::Array;
use super::error::GgufError;
use super::value::{Value, ValueType};

/// What a file says about its model.
#[derive(Clone, Debug, Default)]
pub struct Metadata {
    pairs: Vec<(String, Value)>,
    by_key: HashMap<String, usize>,
}

impl Metadata {
    /// Metadata without a file, for tests and for writing files; a later pair replaces an earlier
    /// one with the same key.
    pub fn from_pairs<K: Into<String>>(pairs: impl IntoIterator<Item = (K, Value)>) -> Metadata {
        let mut metadata = Metadata::default();
        for (key, value) in pairs {
            metadata.set(key, value);
        }
        metadata
    }

    /// Adds the pair, or replaces the value if the key is there.
    pub fn set(&mut self, key: impl Into<String>, value: impl Into<Value>) {
        let key = key.into();
        match self.by_key.get(&key) {
            Some(&pair_idx) => self.pairs[pair_idx].1 = value.into(),
            None => self.push(&key, value.into()),
        }
    }

    /// Adds a pair whose key is known to be new.
    pub(super) fn push(&mut self, key: &str, value: Value) {
        self.by_key.insert(key.to_owned(), self.pairs.len());
        self.pairs.push((key.to_owned(), value));
    }

    /// Drops the pairs whose key does not please.
    pub fn retain(&mut self, pleases: impl Fn(&str) -> bool) {
        self.pairs.retain(|(key, _)| pleases(key));
        let pairs = self.pairs.iter().enumerate();
        self.by_key = pairs.map(|(pair_idx, (key, _))| (key.clone(), pair_idx)).collect();
    }

    /// The value of the key, whatever its type.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.by_key.get(key).map(|&pair_idx| &self.pairs[pair_idx].1)
    }

    /// Every pair, in file order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.pairs.iter().map(|(key, value)| (key.as_str(), value))
    }

    /// Number of pairs.
    pub fn len(&self) -> usize {
        self.pairs.len()
    }

    /// Whether there are no pairs.
    pub fn is_empty(&self) -> bool {
        self.pairs.is_empty()
    }

    /// An integer of any type that fits.
    ///
    /// # Errors
    /// `KeyType`, `KeyRange`.
    pub fn u32(&self, key: &str) -> Result<Option<u32>, GgufError> {
        self.int(key, "u32")
    }

    /// An integer of any type that fits.
    ///
    /// # Errors
    /// `KeyType`, `KeyRange`.
    pub fn u64(&self, key: &str) -> Result<Option<u64>, GgufError> {
        self.int(key, "u64")
    }

    /// A float of either width, rounded to `f32`.
    ///
    /// # Errors
    /// `KeyType`; `KeyRange` for a finite number that has no finite `f32`.
    pub fn f32(&self, key: &str) -> Result<Option<f32>, GgufError> {
        self.get(key).map(|value| float(key, value, value)).transpose()
    }

    /// A bool.
    ///
    /// # Errors
    /// `KeyType`.
    pub fn bool(&self, key: &str) -> Result<Option<bool>, GgufError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Bool(value)) => Ok(Some(*value)),
            Some(value) => Err(key_type(key, "bool", value)),
        }
    }

    /// A string.
    ///
    /// # Errors
    /// `KeyType`.
    pub fn str(&self, key: &str) -> Result<Option<&str>, GgufError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Str(value)) => Ok(Some(value)),
            Some(value) => Err(key_type(key, "str", value)),
        }
    }

    /// An array of strings, borrowed from the file.
    ///
    /// # Errors
    /// `KeyType`; `KeyChanged` if the mapped file was written to since it was opened.
    pub fn strs(&self, key: &str) -> Result<Option<Vec<&str>>, GgufError> {
        let Some(array) = self.array(key, "array of str", |ty| ty == ValueType::Str)? else {
            return Ok(None);
        };
        let mut strs = Vec::with_capacity(array.len());
        strs.extend(array.strs());
        if strs.len() != array.len() {
            return Err(GgufError::KeyChanged { key: key.to_owned() });
        }
        Ok(Some(strs))
    }

    /// An array of floats of either width, rounded to `f32`.
    ///
    /// # Errors
    /// `KeyType`; `KeyRange` for a finite number that has no finite `f32`.
    pub fn f32s(&self, key: &str) -> Result<Option<Vec<f32>>, GgufError> {
        let is_float = |ty| matches!(ty, ValueType::F32 | ValueType::F64);
        self.items(key, "array of f32", is_float, |whole, item| float(key, whole, item))
    }

    /// An array of integers of any type whose items fit.
    ///
    /// # Errors
    /// `KeyType`, `KeyRange`.
    pub fn i32s(&self, key: &str) -> Result<Option<Vec<i32>>, GgufError> {
        self.ints(key, "array of i32", "i32")
    }

    /// An array of integers of any type whose items fit.
    ///
    /// # Errors
    /// `KeyType`, `KeyRange`.
    pub fn u64s(&self, key: &str) -> Result<Option<Vec<u64>>, GgufError> {
        self.ints(key, "array of u64", "u64")
    }

    fn int<T: TryFrom<i128>>(&self, key: &str, want: &'static str) -> Result<Option<T>, GgufError> {
        self.get(key).map(|value| int(key, want, value, value)).transpose()
    }

    fn ints<T: TryFrom<i128>>(
        &self,
        key: &str,
        want: &'static str,
        item: &'static str,
    ) -> Result<Option<Vec<T>>, GgufError> {
        let is_int = |ty| {
            use ValueType::*;
            matches!(ty, U8 | I8 | U16 | I16 | U32 | I32 | U64 | I64)
        };
        self.items(key, want, is_int, |whole, value| int(key, item, whole, value))
    }

    fn array(
        &self,
        key: &str,
        want: &'static str,
        fits: impl Fn(ValueType) -> bool,
    ) -> Result<Option<&Array>, GgufError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Array(array)) if fits(array.item_type()) => Ok(Some(array)),
            Some(value) => Err(key_type(key, want, value)),
        }
    }

    fn items<T>(
        &self,
        key: &str,
        want: &'static str,
        fits: impl Fn(ValueType) -> bool,
        item: impl Fn(&Value, &Value) -> Result<T, GgufError>,
    ) -> Result<Option<Vec<T>>, GgufError> {
        let Some(array) = self.array(key, want, fits)? else {
            return Ok(None);
        };
        let whole = Value::Array(array.clone());
        array.values().map(|value| item(&whole, &value)).collect::<Result<_, _>>().map(Some)
    }
}

fn key_type(key: &str, want: &'static str, got: &Value) -> GgufError {
    GgufError::KeyType { key: key.to_owned(), want, got: got.type_name() }
}

fn key_range(key: &str, want: &'static str, value: &Value) -> GgufError {
    GgufError::KeyRange { key: key.to_owned(), value: value.to_string(), want }
}

/// `value` as an integer type; `whole` is the key's value, which messages describe.
fn int<T: TryFrom<i128>>(
    key: &str,
    want: &'static str,
    whole: &Value,
    value: &Value,
) -> Result<T, GgufError> {
    let number = value.as_int().ok_or_else(|| key_type(key, want, whole))?;
    T::try_from(number).map_err(|_| key_range(key, want, value))
}

fn float(key: &str, whole: &Value, value: &Value) -> Result<f32, GgufError> {
    let number = value.as_float().ok_or_else(|| key_type(key, "f32", whole))?;
    let rounded = number as f32;
    if number.is_finite() && !rounded.is_finite() {
        return Err(key_range(key, "f32", value));
    }
    Ok(rounded)
}
