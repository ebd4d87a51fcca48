//! A request's JSON object, read field by field: each wrong one gives a 400 that names it.

use std::ops::RangeInclusive;

use axum::body::Bytes;
use axum::extract::{FromRequest, Request};
use serde_json::{Map, Value};

use super::error::ApiError;

/// The fields of a body. `null` counts as absent, as with OpenAI's clients.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Fields(pub Map<String, Value>);

impl<S: Send + Sync> FromRequest<S> for Fields {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Fields, ApiError> {
        let bytes = Bytes::from_request(request, state).await.map_err(|rejection| {
            ApiError::new(rejection.status(), "invalid_request_error", rejection.body_text())
        })?;
        Fields::parse(&bytes)
    }
}

impl Fields {
    /// The object in a body.
    ///
    /// # Errors
    /// If there is none.
    pub fn parse(body: &[u8]) -> Result<Fields, ApiError> {
        match serde_json::from_slice(body) {
            Ok(Value::Object(fields)) => Ok(Fields(fields)),
            Ok(_) => Err(ApiError::invalid("the body must be a JSON object")),
            Err(error) => Err(ApiError::invalid(format!("the body is not valid JSON: {error}"))),
        }
    }

    /// A field that is there.
    pub fn get(&self, name: &str) -> Option<&Value> {
        self.0.get(name).filter(|value| !value.is_null())
    }

    /// Whether a field is there.
    pub fn has(&self, name: &str) -> bool {
        self.get(name).is_some()
    }

    /// A string.
    pub fn str(&self, name: &str) -> Result<Option<&str>, ApiError> {
        self.read(name, "a string", Value::as_str)
    }

    /// A boolean.
    pub fn bool(&self, name: &str) -> Result<Option<bool>, ApiError> {
        self.read(name, "true or false", Value::as_bool)
    }

    /// A list.
    pub fn array(&self, name: &str) -> Result<Option<&Vec<Value>>, ApiError> {
        self.read(name, "an array", Value::as_array)
    }

    /// An object.
    pub fn object(&self, name: &str) -> Result<Option<&Map<String, Value>>, ApiError> {
        self.read(name, "an object", Value::as_object)
    }

    /// A finite number.
    pub fn float(&self, name: &str) -> Result<Option<f32>, ApiError> {
        let finite = |value: &Value| value.as_f64().map(|x| x as f32).filter(|x| x.is_finite());
        self.read(name, "a number", finite)
    }

    /// A whole number within `range`.
    pub fn int(&self, name: &str, range: RangeInclusive<i64>) -> Result<Option<i64>, ApiError> {
        let Some(value) = self.read(name, "a whole number", whole)? else { return Ok(None) };
        if !range.contains(&value) {
            let (min, max) = range.into_inner();
            let message = match max {
                i64::MAX => format!("{name} is {value}; it must be {min} or more"),
                _ => format!("{name} is {value}; it must be between {min} and {max}"),
            };
            return Err(ApiError::field(name, message));
        }
        Ok(Some(value))
    }

    /// A count, 0 to `max`.
    pub fn count(&self, name: &str, max: usize) -> Result<Option<usize>, ApiError> {
        let max = i64::try_from(max).unwrap_or(i64::MAX);
        Ok(self.int(name, 0..=max)?.map(|n| n as usize))
    }

    /// A string, or a list of them; empty if absent.
    pub fn strings(&self, name: &str) -> Result<Vec<String>, ApiError> {
        let texts = |value: &Value| match value {
            Value::String(text) => Some(vec![text.clone()]),
            Value::Array(items) => {
                items.iter().map(|item| item.as_str().map(str::to_owned)).collect()
            }
            _ => None,
        };
        Ok(self.read(name, "a string or an array of strings", texts)?.unwrap_or_default())
    }

    /// One of a few words; the word's index.
    pub fn choice(&self, name: &str, words: &[&str]) -> Result<Option<usize>, ApiError> {
        let Some(word) = self.str(name)? else { return Ok(None) };
        let found = words.iter().position(|known| *known == word).map(Some);
        found.ok_or_else(|| {
            let known = words.join(", ");
            ApiError::field(name, format!("{name} is {word:?}; it must be one of: {known}"))
        })
    }

    fn read<'a, T>(
        &'a self,
        name: &str,
        expected: &str,
        read: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, ApiError> {
        let Some(value) = self.get(name) else { return Ok(None) };
        let wrong = || ApiError::field(name, format!("{name} must be {expected}"));
        read(value).map(Some).ok_or_else(wrong)
    }
}

/// A whole number, also when it is written as `10.0`.
fn whole(value: &Value) -> Option<i64> {
    let of_float = |x: f64| (x.fract() == 0.0 && x.abs() < 9e15).then_some(x as i64);
    value.as_i64().or_else(|| value.as_f64().and_then(of_float))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn param<T>(result: Result<T, ApiError>) -> Option<String> {
        result.err().and_then(|error| error.param)
    }

    #[test]
    fn a_wrong_field_is_named_and_null_is_absent() {
        let fields = Fields::parse(br#"{"a":null,"n":1.5,"k":7.0,"s":["x",1],"b":"yes"}"#).unwrap();
        assert_eq!(fields.str("a"), Ok(None));
        assert_eq!(fields.count("k", 9), Ok(Some(7)));
        assert_eq!(param(fields.count("k", 6)).as_deref(), Some("k"));
        assert_eq!(param(fields.int("n", 0..=9)).as_deref(), Some("n"));
        assert_eq!(param(fields.strings("s")).as_deref(), Some("s"));
        assert_eq!(param(fields.bool("b")).as_deref(), Some("b"));
        assert_eq!(param(fields.choice("b", &["no"])).as_deref(), Some("b"));
        assert_eq!(Fields::parse(b"[]").unwrap_err().status, 400);
        assert_eq!(Fields::parse(b"{").unwrap_err().status, 400);
    }
}
