//! `/api/chat`: conversations.

use std::collections::VecDeque;
use std::time::Instant;

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use serde_json::{Map, Value, json};

use super::told::{Style, Teller, nothing, respond};
use super::wire::{lease, moved, refuse_images, schema, translated};
use crate::server::error::ApiError;
use crate::server::fields::Fields;
use crate::server::generate::blocking;
use crate::server::state::{Caller, Server};
use crate::server::talk;

/// Answers a chat.
pub(super) async fn handle(
    State(server): State<Server>,
    caller: Caller,
    fields: Fields,
) -> Result<Response, ApiError> {
    let started = Instant::now();
    let chat = chat(&fields)?;
    if fields.array("messages")?.is_none_or(Vec::is_empty) {
        let (name, reason) = moved(&server, &fields).await?;
        return Ok(nothing(Style::Chat, &name, reason).into_response());
    }
    let lease = lease(&server, &fields).await?;
    let load = started.elapsed();
    let talk = blocking(move || talk::start(&chat, lease, &caller, &server.0.options)).await?;
    let teller = Teller {
        style: Style::Chat,
        model: talk.model,
        parser: Some(talk.parser.parser()),
        info: talk.info,
        started,
        load,
        context: None,
        n_dropped: talk.n_dropped,
    };
    respond(talk.generation, teller, talk.wishes.streams).await
}

/// The fields of a chat as OpenAI names them.
fn chat(fields: &Fields) -> Result<Fields, ApiError> {
    let mut chat = translated(fields)?;
    chat.0.insert("messages".into(), messages(fields)?.into());
    for name in ["tools", "tool_choice"] {
        if let Some(value) = fields.get(name) {
            chat.0.insert(name.into(), value.clone());
        }
    }
    if let Some(schema) = schema(fields)? {
        let format = json!({"type": "json_schema", "json_schema": {"schema": schema}});
        chat.0.insert("response_format".into(), format);
    }
    Ok(chat)
}

/// Messages with ids for calls: Ollama's have none, and name the tool that answers instead.
fn messages(fields: &Fields) -> Result<Vec<Value>, ApiError> {
    let entries = fields.array("messages")?.map(Vec::as_slice).unwrap_or_default();
    let mut all = Vec::with_capacity(entries.len());
    let mut n_calls = 0;
    let mut waiting: VecDeque<(String, String)> = VecDeque::new();
    for (idx, entry) in entries.iter().enumerate() {
        let path = format!("messages[{idx}]");
        let Some(entry) = entry.as_object() else {
            return Err(ApiError::field(&path, format!("{path} must be an object")));
        };
        refuse_images(entry.get("images"), &format!("{path}.images"))?;
        let mut message = Map::new();
        for (theirs, ours) in [
            ("role", "role"),
            ("content", "content"),
            ("thinking", "reasoning_content"),
            ("tool_call_id", "tool_call_id"),
        ] {
            if let Some(value) = entry.get(theirs) {
                message.insert(ours.into(), value.clone());
            }
        }
        if let Some(calls) = entry.get("tool_calls").filter(|calls| !calls.is_null()) {
            let Some(calls) = calls.as_array() else {
                let path = format!("{path}.tool_calls");
                return Err(ApiError::field(&path, format!("{path} must be an array")));
            };
            let calls: Vec<Value> = calls
                .iter()
                .map(|call| {
                    n_calls += 1;
                    with_id(call, n_calls, &mut waiting)
                })
                .collect();
            message.insert("tool_calls".into(), calls.into());
        } else if message.get("role").and_then(Value::as_str) == Some("assistant") {
            message.entry("content").or_insert("".into());
        }
        if message.get("role").and_then(Value::as_str) == Some("tool") {
            let tool = entry.get("tool_name").and_then(Value::as_str);
            let of_tool = waiting.iter().position(|(name, _)| Some(name.as_str()) == tool);
            let found = waiting.remove(of_tool.unwrap_or(0));
            if let Some((name, id)) = found {
                message.entry("tool_call_id").or_insert(id.into());
                message.entry("name").or_insert(name.into());
            }
        }
        all.push(Value::Object(message));
    }
    Ok(all)
}

/// A call as OpenAI writes it: an id, and arguments as text.
fn with_id(call: &Value, n: usize, waiting: &mut VecDeque<(String, String)>) -> Value {
    let given = call.get("id").and_then(Value::as_str).map(str::to_owned);
    let id = given.unwrap_or_else(|| format!("call{n:05}"));
    let function = call.get("function").unwrap_or(&Value::Null);
    let name = function.get("name").and_then(Value::as_str).unwrap_or_default();
    let arguments = match function.get("arguments") {
        None | Some(Value::Null) => "{}".to_owned(),
        Some(Value::String(text)) => text.clone(),
        Some(arguments) => arguments.to_string(),
    };
    waiting.push_back((name.to_owned(), id.clone()));
    json!({"id": id, "type": "function", "function": {"name": name, "arguments": arguments}})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_of_tools_find_their_calls() {
        let body = json!({"messages": [
            {"role": "assistant", "content": "", "tool_calls": [
                {"function": {"name": "a", "arguments": {"x": 1}}},
                {"function": {"name": "b", "arguments": {}}}]},
            {"role": "tool", "tool_name": "b", "content": "2"},
            {"role": "tool", "content": "1"},
        ]});
        let messages = messages(&Fields(body.as_object().unwrap().clone())).unwrap();
        let calls = &messages[0]["tool_calls"];
        assert_eq!(calls[0]["function"]["arguments"], r#"{"x":1}"#);
        assert_eq!(messages[1]["tool_call_id"], calls[1]["id"]);
        assert_eq!(messages[2]["tool_call_id"], calls[0]["id"]);
        for wrong in [
            json!([1]),
            json!([{"role": "user", "images": ["x"]}]),
            json!([{"role": "assistant", "tool_calls": {}}]),
        ] {
            let fields = Fields(json!({"messages": wrong}).as_object().unwrap().clone());
            assert!(super::messages(&fields).is_err());
        }
    }
}
