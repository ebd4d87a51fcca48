//! A task as it comes: nested as the PC sends it, or flat as a person types it.
//!
//! ```text
//! nested   {"request_id", "request_type", "prompt", "parameters": {...}, "context_chunks": [...]}
//! flat     {"prompt", "max_tokens", "temperature", ..., "context_chunks": [...]}
//! ```
//!
//! `code` and `language` may stand beside the prompt, `model` and fields of our own as well.

use serde_json::{Value, json};

use super::context::{Chunk, Class};
use crate::base::limits::{CONTEXT_CHUNKS_MAX, REQUEST_ID_BYTES_MAX};
use crate::server::ApiError;
use crate::server::cache::{CacheKey, digest};
use crate::server::fields::Fields;
use crate::server::report::random_word;

/// Sampling where a task names none.
const DEFAULTS: [(&str, f64); 3] = [("max_tokens", 1024.0), ("temperature", 0.7), ("top_p", 0.9)];
/// Fields beside the parameters.
const BESIDE: [&str; 7] =
    ["request_id", "request_type", "prompt", "parameters", "context_chunks", "code", "language"];

/// What says how an answer comes, and not what it is: the same task comes by several doors.
const BY_THE_WAY: [&str; 7] = [
    "request_id",
    "stream",
    "stream_options",
    "on_disconnect",
    "priority",
    "deadline_ms",
    "cache_result",
];

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Generation,
    Completion,
    Refactoring,
    Explanation,
    Test,
}

impl Kind {
    const ALL: [Kind; 5] =
        [Kind::Generation, Kind::Completion, Kind::Refactoring, Kind::Explanation, Kind::Test];
    const NAMES: [&str; 5] =
        ["code_generation", "completion", "refactoring", "explanation", "test"];

    /// As `request_type` names it.
    pub fn name(self) -> &'static str {
        Kind::NAMES[self as usize]
    }
}

/// A task.
#[derive(Clone, Debug)]
pub(super) struct Task {
    pub id: String,
    /// The caller chose the id.
    pub is_named: bool,
    pub kind: Kind,
    pub prompt: String,
    pub code: Option<String>,
    pub language: String,
    /// Sampling and fields of our own, the defaults filled in.
    pub parameters: Fields,
    pub chunks: Vec<Chunk>,
    /// It came in the flat form and is answered in that.
    pub is_flat: bool,
}

impl Task {
    /// Reads a task; `kind` is what the route stands for, else the task says.
    ///
    /// # Errors
    /// A wrong field by its path.
    pub fn read(mut fields: Fields, kind: Option<Kind>) -> Result<Task, ApiError> {
        let asked = fields.choice("request_type", &Kind::NAMES)?.map(|idx| Kind::ALL[idx]);
        let named = ["request_id", "request_type", "parameters"];
        let is_flat = !named.iter().any(|name| fields.has(name));
        let given = fields.str("request_id")?.map(str::to_owned);
        check_id(given.as_deref())?;
        let is_named = given.is_some();
        let id = given.unwrap_or_else(|| random_word(24));
        let Some(prompt) = fields.str("prompt")?.map(str::to_owned) else {
            return Err(ApiError::field("prompt", "prompt is missing: a string"));
        };
        let code = fields.str("code")?.map(str::to_owned);
        let language = fields.str("language")?.unwrap_or_default();
        let language: String =
            language.chars().filter(|c| c.is_ascii_alphanumeric() || "+#-".contains(*c)).collect();
        let chunks = chunks(&fields)?;
        let parameters = parameters(&mut fields, &id)?;
        let kind = kind.or(asked).unwrap_or(Kind::Generation);
        Ok(Task { id, is_named, kind, prompt, code, language, parameters, chunks, is_flat })
    }

    /// What is the same for the same task, whichever form it came in.
    pub fn digest(&self) -> CacheKey {
        let chunks = self.chunks.iter().map(|chunk| json!([chunk.content, chunk.class as u8]));
        let mut parameters = self.parameters.0.clone();
        BY_THE_WAY.iter().for_each(|name| drop(parameters.remove(*name)));
        digest(&json!({
            "kind": self.kind.name(),
            "prompt": self.prompt,
            "code": self.code,
            "language": self.language,
            "parameters": parameters,
            "chunks": chunks.collect::<Vec<Value>>(),
        }))
    }
}

/// Whether a task may have this id.
///
/// # Errors
/// With what ids are made of.
pub(super) fn check_id(id: Option<&str>) -> Result<(), ApiError> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_.:/".contains(c);
    match id {
        Some(id)
            if id.is_empty() || id.len() > REQUEST_ID_BYTES_MAX || !id.chars().all(is_plain) =>
        {
            let message = format!(
                "request_id must be 1 to {REQUEST_ID_BYTES_MAX} letters, digits or any of -_.:/"
            );
            Err(ApiError::field("request_id", message))
        }
        _ => Ok(()),
    }
}

/// `parameters`, or what stands in their place in the flat form, and the defaults.
fn parameters(fields: &mut Fields, id: &str) -> Result<Fields, ApiError> {
    let nested = fields.object("parameters")?.cloned().unwrap_or_default();
    let mut all = std::mem::take(&mut fields.0);
    BESIDE.iter().for_each(|name| drop(all.remove(*name)));
    all.extend(nested);
    all.retain(|_, value| !value.is_null());
    for (name, value) in DEFAULTS {
        let value = if value.fract() == 0.0 { json!(value as i64) } else { json!(value) };
        all.entry(name).or_insert(value);
    }
    all.insert("request_id".into(), id.into());
    Ok(Fields(all))
}

fn chunks(fields: &Fields) -> Result<Vec<Chunk>, ApiError> {
    let entries = fields.array("context_chunks")?.map(Vec::as_slice).unwrap_or_default();
    if entries.len() > CONTEXT_CHUNKS_MAX {
        let message = format!("context_chunks has more than {CONTEXT_CHUNKS_MAX} entries");
        return Err(ApiError::field("context_chunks", message));
    }
    entries.iter().enumerate().map(|(idx, entry)| chunk(idx, entry)).collect()
}

fn chunk(idx: usize, entry: &Value) -> Result<Chunk, ApiError> {
    let at = |name: &str| format!("context_chunks[{idx}].{name}");
    let Some(content) = entry.get("content").and_then(Value::as_str) else {
        return Err(ApiError::field(&at("content"), format!("{} must be a string", at("content"))));
    };
    let id = match entry.get("id") {
        None | Some(Value::Null) => idx.to_string(),
        Some(Value::String(id)) => id.clone(),
        Some(Value::Number(id)) => id.to_string(),
        Some(_) => {
            return Err(ApiError::field(&at("id"), format!("{} must be a string", at("id"))));
        }
    };
    let class = match entry.get("kind").or(entry.get("type")) {
        None | Some(Value::Null) => Class::Direct,
        Some(word) => word.as_str().and_then(Class::from_name).ok_or_else(|| {
            let words = "direct, dependency, interface or example";
            ApiError::field(&at("kind"), format!("{} must be {words}", at("kind")))
        })?,
    };
    Ok(Chunk { id, content: content.to_owned(), class })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(body: Value) -> Result<Task, ApiError> {
        let fields = Fields(body.as_object().unwrap().clone());
        Task::read(fields, None)
    }

    #[test]
    fn both_forms_are_one_task() {
        let nested = json!({"request_id": "a", "request_type": "code_generation", "prompt": "p",
            "parameters": {"temperature": 0, "max_tokens": 8},
            "context_chunks": [{"id": "c", "content": "x"}]});
        let flat = json!({"prompt": "p", "temperature": 0, "max_tokens": 8,
            "context_chunks": [{"content": "x"}]});
        let (nested, flat) = (read(nested).unwrap(), read(flat).unwrap());
        assert!((nested.is_flat, nested.is_named) == (false, true));
        assert!((flat.is_flat, flat.is_named) == (true, false));
        assert_eq!((nested.id.as_str(), flat.id.len()), ("a", 24));
        let own = |task: &Task| {
            let mut parameters = task.parameters.0.clone();
            parameters.remove("request_id");
            Value::Object(parameters)
        };
        let expected = json!({"temperature": 0, "max_tokens": 8, "top_p": 0.9});
        assert_eq!((own(&nested), own(&flat)), (expected.clone(), expected));
        assert_eq!(read(json!({"prompt": "p"})).unwrap().parameters.0["max_tokens"], 1024);
        assert_eq!(nested.digest(), flat.digest(), "its id is not what it is about");
        let other = read(json!({"prompt": "p", "request_type": "test"})).unwrap();
        assert_ne!(other.digest(), read(json!({"prompt": "p"})).unwrap().digest());
    }

    #[test]
    fn a_wrong_field_is_named() {
        for (body, param) in [
            (json!({}), "prompt"),
            (json!({"prompt": 5}), "prompt"),
            (json!({"prompt": "p", "request_type": "poem"}), "request_type"),
            (json!({"prompt": "p", "request_id": 7}), "request_id"),
            (json!({"prompt": "p", "request_id": ""}), "request_id"),
            (json!({"prompt": "p", "parameters": []}), "parameters"),
            (json!({"prompt": "p", "context_chunks": {}}), "context_chunks"),
            (json!({"prompt": "p", "context_chunks": [{}]}), "context_chunks[0].content"),
            (
                json!({"prompt": "p", "context_chunks": [{"content": "", "kind": "x"}]}),
                "context_chunks[0].kind",
            ),
        ] {
            let error = read(body.clone()).unwrap_err();
            assert_eq!(error.param.as_deref(), Some(param), "{body}");
        }
    }
}
