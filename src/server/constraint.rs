//! What an answer is held to, in whichever notation a request names: JSON schema, llama.cpp's GBNF,
//! a regular expression, or Lark.
//!
//! The first two are other servers' fields, and each dialect reads them by its own rules; `regex`
//! and `lark` are ours, mean the same in every dialect, and stand alone: where two constraints are
//! given, neither wins silently.

use serde_json::{Map, Value};

use super::error::ApiError;
use super::fields::Fields;
use crate::inference::GrammarSpec;

/// The fields of our own.
const OURS: [&str; 2] = ["regex", "lark"];
/// The fields that go with none of ours.
const THEIRS: [&str; 2] = ["grammar", "json_schema"];

/// The constraint in a field of our own. As with `grammar`, an empty text is none.
///
/// # Errors
/// A field of the wrong type, or a second constraint beside it; the message names both.
pub(super) fn own_spec(object: &Map<String, Value>) -> Result<Option<GrammarSpec>, ApiError> {
    let Some((name, text)) = own_field(object)? else { return Ok(None) };
    let others = OURS.into_iter().chain(THEIRS);
    if let Some(other) = others.filter(|other| *other != name).find(|other| has(object, other)) {
        return Err(exclusive(name, other));
    }
    if has_format(object) {
        return Err(exclusive(name, "response_format"));
    }
    Ok(Some(match name {
        "regex" => GrammarSpec::Regex(text.to_owned()),
        _ => GrammarSpec::Lark(text.to_owned()),
    }))
}

/// The field that a request with tools cannot have, if it is there.
///
/// # Errors
/// A field of the wrong type.
pub(super) fn of_answer(fields: &Fields) -> Result<Option<&'static str>, ApiError> {
    let own = own_field(&fields.0)?.map(|(name, _)| name);
    let gbnf = fields.str("grammar")?.filter(|text| !text.is_empty());
    Ok(own.or(gbnf.map(|_| "grammar")))
}

/// The engine's error about a grammar, put down to the field that the request had.
pub(super) fn blame(object: &Map<String, Value>, error: ApiError) -> ApiError {
    match own_field(object) {
        Ok(Some((name, _))) if error.param.as_deref() == Some("grammar") => error.at(name),
        _ => error,
    }
}

/// Two constraints at once.
pub(super) fn exclusive(name: &str, other: &str) -> ApiError {
    ApiError::field(name, format!("{name} and {other} cannot both be given"))
}

fn own_field(object: &Map<String, Value>) -> Result<Option<(&'static str, &str)>, ApiError> {
    for name in OURS {
        match object.get(name) {
            None | Some(Value::Null) => {}
            Some(Value::String(text)) if text.is_empty() => {}
            Some(Value::String(text)) => return Ok(Some((name, text))),
            Some(_) => return Err(ApiError::field(name, format!("{name} must be a string"))),
        }
    }
    Ok(None)
}

fn has(object: &Map<String, Value>, name: &str) -> bool {
    let is_empty = |value: &Value| value.is_null() || value.as_str() == Some("");
    object.get(name).is_some_and(|value| !is_empty(value))
}

/// Whether a response format asks for anything but text.
fn has_format(object: &Map<String, Value>) -> bool {
    let format = object.get("response_format").filter(|format| !format.is_null());
    format.is_some_and(|format| format.get("type").and_then(Value::as_str) != Some("text"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(body: Value) -> Result<Option<GrammarSpec>, String> {
        own_spec(body.as_object().unwrap()).map_err(|error| error.message)
    }

    #[test]
    fn one_constraint_is_taken_and_two_are_named() {
        let regex = || Ok(Some(GrammarSpec::Regex("[ab]+".into())));
        assert_eq!(read(json!({})), Ok(None));
        assert_eq!(read(json!({"regex": "", "lark": null, "grammar": "x"})), Ok(None));
        assert_eq!(read(json!({"regex": "[ab]+", "grammar": "", "json_schema": null})), regex());
        assert_eq!(read(json!({"regex": "[ab]+", "response_format": {"type": "text"}})), regex());
        let lark = "start: \"a\"";
        assert_eq!(read(json!({"lark": lark})), Ok(Some(GrammarSpec::Lark(lark.into()))));
        for (body, words) in [
            (json!({"regex": "a", "lark": "b"}), "regex and lark cannot"),
            (json!({"regex": "a", "grammar": "b"}), "regex and grammar cannot"),
            (json!({"lark": "a", "json_schema": {}}), "lark and json_schema cannot"),
            (
                json!({"lark": "a", "response_format": {"type": "json_object"}}),
                "lark and response_format cannot",
            ),
            (json!({"regex": 5}), "regex must be a string"),
        ] {
            let message = read(body.clone()).unwrap_err();
            assert!(message.starts_with(words), "{body}: {message}");
        }
    }
}
