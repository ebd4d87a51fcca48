//! The fields of a body, read by llama.cpp's rules.
//!
//! `null` is an absent field, a field nobody asks for is ignored, a field may have several names of
//! which the first that is there counts. A number may be a boolean and an integer may be written
//! with a fraction, as its JSON library allows; anything else of the wrong type is refused with its
//! words: `Field 'temperature': ... type must be number, but is string`.

use serde_json::{Map, Value};

use crate::server::ApiError;

/// What becomes of a number outside its range.
#[derive(Clone, Copy)]
pub enum Outside {
    /// It becomes the nearest one inside.
    Clamp,
    /// The request is refused.
    Refuse,
}

/// The fields of a JSON object, as llama.cpp reads them.
#[derive(Clone, Copy)]
pub struct LlamaFields<'a>(&'a Map<String, Value>);

impl<'a> LlamaFields<'a> {
    /// Of a JSON object.
    pub fn new(object: &'a Map<String, Value>) -> LlamaFields<'a> {
        LlamaFields(object)
    }

    /// The object itself.
    pub fn object(&self) -> &'a Map<String, Value> {
        self.0
    }

    /// The first of these names that has a value.
    pub fn find<'n>(&self, names: &[&'n str]) -> Option<(&'n str, &'a Value)> {
        names.iter().find_map(|&name| Some((name, self.get(name)?)))
    }

    /// The field's value, unless it is `null`.
    pub fn get(&self, name: &str) -> Option<&'a Value> {
        self.0.get(name).filter(|value| !value.is_null())
    }

    /// An integer.
    ///
    /// # Errors
    /// If it is no number, or outside a range that is not clamped.
    pub fn int(
        &self,
        names: &[&str],
        default: i64,
        (min, max): (i64, i64),
        outside: Outside,
    ) -> Result<i64, ApiError> {
        let Some((name, value)) = self.find(names) else { return Ok(default) };
        let got = as_int(value).ok_or_else(|| wrong_type(name, "number", value))?;
        match outside {
            Outside::Clamp => Ok(got.clamp(min, max)),
            Outside::Refuse if (min..=max).contains(&got) => Ok(got),
            Outside::Refuse => Err(out_of_range(name, min, max, got)),
        }
    }

    /// A 32-bit integer that must lie within a range.
    ///
    /// # Errors
    /// As [`LlamaFields::int`].
    pub fn i32(&self, names: &[&str], default: i32, range: (i32, i32)) -> Result<i32, ApiError> {
        let range = (i64::from(range.0), i64::from(range.1));
        // The range keeps it within 32 bits, and a default is one already.
        self.int(names, default.into(), range, Outside::Refuse).map(|value| value as i32)
    }

    /// A number, brought into its range.
    ///
    /// # Errors
    /// If it is none.
    pub fn f32(&self, name: &str, default: f32, (min, max): (f32, f32)) -> Result<f32, ApiError> {
        let Some(value) = self.get(name) else { return Ok(default) };
        let number = match value {
            Value::Bool(yes) => Some(f64::from(u8::from(*yes))),
            other => other.as_f64(),
        };
        let number = number.ok_or_else(|| wrong_type(name, "number", value))?;
        Ok((number as f32).clamp(min, max))
    }

    /// A yes or no.
    ///
    /// # Errors
    /// If it is neither.
    pub fn bool(&self, name: &str, default: bool) -> Result<bool, ApiError> {
        let Some(value) = self.get(name) else { return Ok(default) };
        value.as_bool().ok_or_else(|| wrong_type(name, "boolean", value))
    }

    /// A text.
    ///
    /// # Errors
    /// If it is none.
    pub fn str(&self, name: &str) -> Result<Option<&'a str>, ApiError> {
        let Some(value) = self.get(name) else { return Ok(None) };
        value.as_str().map(Some).ok_or_else(|| wrong_type(name, "string", value))
    }

    /// A list.
    ///
    /// # Errors
    /// If it is none.
    pub fn array(&self, name: &str) -> Result<Option<&'a [Value]>, ApiError> {
        let Some(value) = self.get(name) else { return Ok(None) };
        value
            .as_array()
            .map(|array| Some(array.as_slice()))
            .ok_or_else(|| wrong_type(name, "array", value))
    }

    /// A list of texts.
    ///
    /// # Errors
    /// If it is none.
    pub fn strings(&self, name: &str) -> Result<Option<Vec<String>>, ApiError> {
        let Some(array) = self.array(name)? else { return Ok(None) };
        let text = |item: &Value| {
            item.as_str().map(str::to_owned).ok_or_else(|| wrong_type(name, "string", item))
        };
        array.iter().map(text).collect::<Result<_, _>>().map(Some)
    }
}

/// A number as an integer: a fraction is cut off, `true` is 1.
pub fn as_int(value: &Value) -> Option<i64> {
    match value {
        Value::Bool(yes) => Some(i64::from(*yes)),
        Value::Number(number) => number
            .as_i64()
            .or_else(|| number.as_u64().map(|n| i64::try_from(n).unwrap_or(i64::MAX)))
            // A cast from float saturates.
            .or_else(|| number.as_f64().map(|n| n as i64)),
        _ => None,
    }
}

/// A field that cannot be used, in llama.cpp's words.
pub fn field_error(name: &str, message: impl std::fmt::Display) -> ApiError {
    ApiError::field(name, format!("Field '{name}': {message}"))
}

fn wrong_type(name: &str, wanted: &str, got: &Value) -> ApiError {
    let got = type_name(got);
    let library = "[json.exception.type_error.302]";
    field_error(name, format!("{library} type must be {wanted}, but is {got}"))
}

fn out_of_range(name: &str, min: i64, max: i64, got: i64) -> ApiError {
    let range = format!("{min} <= value <= {max}");
    field_error(name, format!("Value must be between {range}, but got {got}"))
}

fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn with<T>(body: Value, read: impl Fn(LlamaFields<'_>) -> T) -> T {
        read(LlamaFields::new(body.as_object().unwrap()))
    }

    #[test]
    fn null_is_absent_and_the_first_name_counts() {
        let names = ["n_predict", "max_tokens"];
        let read = |f: LlamaFields<'_>| f.i32(&names, -1, (-1, i32::MAX)).unwrap();
        assert_eq!(with(json!({}), read), -1);
        assert_eq!(with(json!({"n_predict": null}), read), -1);
        assert_eq!(with(json!({"n_predict": null, "max_tokens": 5}), read), 5);
        assert_eq!(with(json!({"max_tokens": 5, "n_predict": 7}), read), 7);
        assert_eq!(with(json!({"n_predict": 7.9}), read), 7);
        assert_eq!(with(json!({"n_predict": true}), read), 1);
    }

    #[test]
    fn what_is_wrong_is_said_in_llama_cpps_words() {
        let n = |f: LlamaFields<'_>| f.i32(&["n_predict"], -1, (-1, i32::MAX)).unwrap_err();
        let error = with(json!({"n_predict": "x"}), n);
        assert_eq!(
            error.message,
            "Field 'n_predict': [json.exception.type_error.302] type must be number, but is string"
        );
        assert_eq!(error.param.as_deref(), Some("n_predict"));
        assert_eq!(
            with(json!({"n_predict": -5}), n).message,
            "Field 'n_predict': Value must be between -1 <= value <= 2147483647, but got -5"
        );
        // llama.cpp's cast wraps here; a limit that turns into another is worse than an answer.
        assert!(with(json!({"n_predict": 1e300}), n).message.contains("must be between"));
        let flag = |f: LlamaFields<'_>| f.bool("stream", false).unwrap_err().message;
        assert!(with(json!({"stream": 1}), flag).ends_with("must be boolean, but is number"));
        let list = |f: LlamaFields<'_>| f.strings("stop").unwrap_err().message;
        assert!(with(json!({"stop": ["a", 1]}), list).ends_with("must be string, but is number"));
    }

    #[test]
    fn soft_ranges_clamp() {
        let read = |f: LlamaFields<'_>| f.f32("top_p", 0.95, (0.0, 1.0)).unwrap();
        assert_eq!(with(json!({"top_p": 3}), read), 1.0);
        assert_eq!(with(json!({"top_p": -3.5}), read), 0.0);
        assert_eq!(with(json!({}), read), 0.95);
    }
}
