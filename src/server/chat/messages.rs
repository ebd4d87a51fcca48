//! The messages of a conversation, checked, in the form that chat templates expect.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};

use serde_json::{Map, Value, json};

use crate::base::limits::MESSAGES_MAX;
use crate::server::error::ApiError;
use crate::server::fields::Fields;

const ROLES: [&str; 7] =
    ["system", "developer", "user", "assistant", "tool", "function", "ipython"];

/// Reads `messages`. Parts of a content are joined; arguments of calls become objects.
///
/// # Errors
/// What is wrong, by the field's path.
pub(super) fn read(fields: &Fields) -> Result<Vec<Value>, ApiError> {
    let Some(entries) = fields.array("messages")? else {
        return Err(ApiError::field("messages", "messages is missing: an array of messages"));
    };
    if entries.is_empty() {
        return Err(ApiError::field("messages", "messages is empty; there must be at least one"));
    }
    if entries.len() > MESSAGES_MAX {
        let message = format!("messages has more than {MESSAGES_MAX} entries");
        return Err(ApiError::field("messages", message));
    }
    entries.iter().enumerate().map(|(idx, entry)| message(idx, entry)).collect()
}

/// Whether a message is of a role.
pub(super) fn is_of(message: &Value, role: &str) -> bool {
    message["role"] == role
}

/// The text of a message.
pub(super) fn text(message: &Value) -> &str {
    message["content"].as_str().unwrap_or_default()
}

fn message(idx: usize, entry: &Value) -> Result<Value, ApiError> {
    let wrong = |path: &str, message: &str| {
        let path = format!("messages[{idx}]{path}");
        Err(ApiError::field(&path, format!("{path} {message}")))
    };
    let Some(entry) = entry.as_object() else { return wrong("", "must be an object") };
    let Some(role) = entry.get("role").and_then(Value::as_str) else {
        return wrong(".role", "must be a string");
    };
    if !ROLES.contains(&role) {
        return wrong(".role", &format!("is {role:?}; known are {}", ROLES.join(", ")));
    }
    let mut message = Map::new();
    let known = match role {
        "developer" => "system",
        "function" => "tool",
        role => role,
    };
    message.insert("role".into(), known.into());
    let calls = entry.get("tool_calls").filter(|calls| !calls.is_null());
    let content = content(idx, entry.get("content"))?;
    if content.is_none() && (role != "assistant" || calls.is_none()) {
        return wrong(".content", "is missing");
    }
    message.insert("content".into(), content.map_or(Value::Null, Value::String));
    if let Some(calls) = calls.filter(|calls| calls.as_array().is_none_or(|c| !c.is_empty())) {
        message.insert("tool_calls".into(), self::calls(idx, calls)?);
    }
    for key in ["name", "tool_call_id", "reasoning_content"] {
        match entry.get(key) {
            None | Some(Value::Null) => {}
            Some(Value::String(text)) => {
                message.insert(key.into(), text.as_str().into());
            }
            Some(_) => return wrong(&format!(".{key}"), "must be a string"),
        }
    }
    Ok(Value::Object(message))
}

/// A text, or the texts of its parts, one below the other.
fn content(idx: usize, content: Option<&Value>) -> Result<Option<String>, ApiError> {
    let wrong = |path: String, message: String| {
        let path = format!("messages[{idx}].content{path}");
        ApiError::field(&path, format!("{path} {message}"))
    };
    let parts = match content {
        None | Some(Value::Null) => return Ok(None),
        Some(Value::String(text)) => return Ok(Some(text.clone())),
        Some(Value::Array(parts)) => parts,
        Some(_) => return Err(wrong(String::new(), "must be a string or an array".into())),
    };
    let mut texts = Vec::with_capacity(parts.len());
    for (part_idx, part) in parts.iter().enumerate() {
        let kind = part.get("type").and_then(Value::as_str).unwrap_or_default();
        let key = match kind {
            "text" | "input_text" | "output_text" => "text",
            "refusal" => "refusal",
            _ => {
                let message = format!("is {kind:?}; the models here read text alone");
                return Err(wrong(format!("[{part_idx}].type"), message));
            }
        };
        let Some(text) = part.get(key).and_then(Value::as_str) else {
            return Err(wrong(format!("[{part_idx}].{key}"), "must be a string".into()));
        };
        texts.push(text);
    }
    Ok(Some(texts.join("\n")))
}

/// Calls that the model made earlier.
fn calls(idx: usize, calls: &Value) -> Result<Value, ApiError> {
    let wrong = |path: String, message: &str| {
        let path = format!("messages[{idx}].tool_calls{path}");
        Err(ApiError::field(&path, format!("{path} {message}")))
    };
    let Some(entries) = calls.as_array() else {
        return wrong(String::new(), "must be an array");
    };
    let mut calls = Vec::with_capacity(entries.len());
    for (call_idx, call) in entries.iter().enumerate() {
        let Some(name) = call.pointer("/function/name").and_then(Value::as_str) else {
            return wrong(format!("[{call_idx}].function.name"), "must be a string");
        };
        let arguments = match call.pointer("/function/arguments") {
            None | Some(Value::Null) => json!({}),
            // Templates write objects as JSON; a text that is none stays as it is.
            Some(Value::String(text)) => match serde_json::from_str(text) {
                Ok(Value::Object(arguments)) => Value::Object(arguments),
                _ if text.trim().is_empty() => json!({}),
                _ => Value::String(text.clone()),
            },
            Some(Value::Object(arguments)) => Value::Object(arguments.clone()),
            Some(_) => {
                return wrong(format!("[{call_idx}].function.arguments"), "must be a string");
            }
        };
        calls.push(json!({
            "id": call.get("id").and_then(Value::as_str).unwrap_or_default(),
            "type": "function",
            "function": { "name": name, "arguments": arguments },
        }));
    }
    Ok(Value::Array(calls))
}

/// Arguments as texts, for templates that put them between other texts.
pub(super) fn with_text_arguments(messages: &[Value]) -> Vec<Value> {
    let mut messages = messages.to_vec();
    for call in messages.iter_mut().filter_map(|m| m["tool_calls"].as_array_mut()).flatten() {
        let arguments = &mut call["function"]["arguments"];
        if !arguments.is_string() {
            *arguments = Value::String(arguments.to_string());
        }
    }
    messages
}

/// Contents that are texts even where there are only calls.
pub(super) fn with_text_contents(messages: &[Value]) -> Vec<Value> {
    let mut messages = messages.to_vec();
    for message in messages.iter_mut().filter(|message| message["content"].is_null()) {
        message["content"] = Value::String(String::new());
    }
    messages
}

/// System messages as the start of the first user's, for templates that know no system.
pub(super) fn without_system(messages: &[Value]) -> Vec<Value> {
    let (system, mut others): (Vec<Value>, Vec<Value>) =
        messages.iter().cloned().partition(|message| is_of(message, "system"));
    let system = system.iter().map(text).collect::<Vec<_>>().join("\n\n");
    match others.iter_mut().find(|message| is_of(message, "user")) {
        Some(user) => user["content"] = format!("{system}\n\n{}", text(user)).into(),
        None => others.insert(0, json!({"role": "user", "content": system})),
    }
    others
}

/// Ids of exactly `n` letters and digits, the same for the same id, as Mistral's templates want.
pub(super) fn with_short_ids(messages: &[Value], n: usize) -> Vec<Value> {
    let mut messages = messages.to_vec();
    let shorten = |id: &mut Value| {
        if let Value::String(id) = id
            && (id.len() != n || !id.bytes().all(|b| b.is_ascii_alphanumeric()))
        {
            let mut hasher = DefaultHasher::new();
            id.hash(&mut hasher);
            let digits = format!("{:0n$x}", hasher.finish());
            *id = digits[..n].to_owned();
        }
    };
    for message in &mut messages {
        message.get_mut("tool_call_id").into_iter().for_each(shorten);
        let calls = message.get_mut("tool_calls").and_then(Value::as_array_mut);
        calls.into_iter().flatten().for_each(|call| shorten(&mut call["id"]));
    }
    messages
}

/// Calls and answers of tools as ordinary text, for templates that know neither.
pub(super) fn without_tools(messages: &[Value]) -> Vec<Value> {
    let plain = |message: &Value| -> Value {
        if is_of(message, "tool") || is_of(message, "ipython") {
            let mut response = json!({"content": text(message)});
            for key in ["name", "tool_call_id"] {
                if let Some(value) = message.get(key) {
                    response[key] = value.clone();
                }
            }
            let content = json!({"tool_response": response}).to_string();
            return json!({"role": "user", "content": content});
        }
        let Some(calls) = message["tool_calls"].as_array() else { return message.clone() };
        let calls: Vec<&Value> = calls.iter().map(|call| &call["function"]).collect();
        let mut content = json!({"tool_calls": calls});
        if !text(message).is_empty() {
            content["content"] = message["content"].clone();
        }
        json!({"role": "assistant", "content": content.to_string()})
    };
    messages.iter().map(plain).collect()
}

/// The same with `text` as the end of the system message.
pub(super) fn with_system(messages: &[Value], text: &str) -> Vec<Value> {
    let mut messages = messages.to_vec();
    match messages.first_mut().filter(|message| is_of(message, "system")) {
        Some(system) => system["content"] = format!("{}\n\n{text}", self::text(system)).into(),
        None => messages.insert(0, json!({"role": "system", "content": text})),
    }
    messages
}
