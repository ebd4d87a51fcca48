//! A request of Anthropic's wire as the fields of a chat.
//!
//! ```text
//! system                     a message of the system, first
//! text                       a message's text
//! tool_use                   a call of the assistant's message
//! tool_result                a message of its own, before the user's text
//! thinking                   reasoning of the assistant's message
//! image, document, ...       refused: the models here read text
//! ```

use serde_json::{Map, Value, json};

use crate::base::limits::{MESSAGES_MAX, STOPS_MAX};
use crate::server::error::ApiError;
use crate::server::fields::Fields;

/// Fields that are read here and do not go on as they are.
const READ: [&str; 8] = [
    "system",
    "messages",
    "tools",
    "tool_choice",
    "stop_sequences",
    "thinking",
    "output_config",
    "metadata",
];

/// The chat that a request stands for.
///
/// # Errors
/// A wrong field by its path.
pub(super) fn chat(fields: &Fields) -> Result<Fields, ApiError> {
    let mut chat = fields.0.clone();
    READ.iter().for_each(|name| drop(chat.remove(*name)));
    chat.insert("messages".into(), messages(fields)?.into());
    if let Some(tools) = fields.array("tools")?.filter(|tools| !tools.is_empty()) {
        let tools: Result<Vec<Value>, ApiError> =
            tools.iter().enumerate().map(|(idx, entry)| tool(idx, entry)).collect();
        chat.insert("tools".into(), tools?.into());
    }
    tool_choice(fields, &mut chat)?;
    let stops = fields.strings("stop_sequences")?;
    if stops.len() > STOPS_MAX {
        let message = format!("stop_sequences has more than {STOPS_MAX} strings");
        return Err(ApiError::field("stop_sequences", message));
    }
    if !stops.is_empty() {
        chat.insert("stop".into(), stops.into());
    }
    thinking(fields, &mut chat)?;
    let format = fields.object("output_config")?.and_then(|config| config.get("format"));
    if let Some(format) = format.filter(|format| !format.is_null()) {
        let schema = format.get("schema").filter(|_| format["type"] == "json_schema");
        let Some(schema) = schema.filter(|schema| schema.is_object()) else {
            let message = "output_config.format must be {\"type\": \"json_schema\", \"schema\"}";
            return Err(ApiError::field("output_config.format", message));
        };
        let format = json!({"type": "json_schema", "json_schema": {"schema": schema}});
        chat.insert("response_format".into(), format);
    }
    Ok(Fields(chat))
}

/// An error about a chat's fields in the words of this wire.
pub(super) fn own_words(error: ApiError) -> ApiError {
    ApiError {
        message: renamed(&error.message),
        param: error.param.as_deref().map(renamed),
        ..error
    }
}

fn renamed(text: &str) -> String {
    text.replace(".function.parameters", ".input_schema")
        .replace(".function", "")
        .replace("response_format", "output_config.format")
}

fn wrong<T>(path: &str, message: &str) -> Result<T, ApiError> {
    Err(ApiError::field(path, format!("{path}: {message}")))
}

fn messages(fields: &Fields) -> Result<Vec<Value>, ApiError> {
    let mut all = Vec::new();
    if let Some(system) = fields.get("system") {
        let text = texts("system", system)?;
        if !text.is_empty() {
            all.push(json!({"role": "system", "content": text}));
        }
    }
    let Some(entries) = fields.array("messages")? else {
        return wrong("messages", "Field required");
    };
    if entries.is_empty() {
        return wrong("messages", "at least one message is required");
    }
    if entries.len() > MESSAGES_MAX {
        return wrong("messages", &format!("at most {MESSAGES_MAX} messages are allowed"));
    }
    for (idx, entry) in entries.iter().enumerate() {
        let path = format!("messages.{idx}");
        let content = entry.get("content").unwrap_or(&Value::Null);
        let at = format!("{path}.content");
        match entry.get("role").and_then(Value::as_str) {
            Some("user") => user(&at, content, &mut all)?,
            Some("assistant") => all.push(assistant(&at, content)?),
            Some("system") => {
                all.push(json!({"role": "system", "content": texts(&at, content)?}));
            }
            _ => return wrong(&format!("{path}.role"), "must be \"user\" or \"assistant\""),
        }
    }
    Ok(all)
}

/// The blocks of a content, each with its path and type.
fn blocks<'a>(
    path: &str,
    content: &'a Value,
) -> Result<Vec<(String, &'a str, &'a Value)>, ApiError> {
    let Some(entries) = content.as_array() else {
        return wrong(path, "must be a string or an array of content blocks");
    };
    let block = |(idx, entry): (usize, &'a Value)| {
        let path = format!("{path}.{idx}");
        match entry.get("type").and_then(Value::as_str) {
            Some(kind) => Ok((path, kind, entry)),
            None => wrong(&format!("{path}.type"), "Field required"),
        }
    };
    entries.iter().enumerate().map(block).collect()
}

fn text<'a>(path: &str, block: &'a Value, name: &str) -> Result<&'a str, ApiError> {
    match block.get(name).and_then(Value::as_str) {
        Some(text) => Ok(text),
        None => wrong(&format!("{path}.{name}"), "must be a string"),
    }
}

fn refuse<T>(path: &str, kind: &str) -> Result<T, ApiError> {
    let message = format!("{kind:?} blocks are not supported: the models here read text alone");
    wrong(&format!("{path}.type"), &message)
}

/// A string, or the texts of blocks that are nothing else, one below the other.
fn texts(path: &str, content: &Value) -> Result<String, ApiError> {
    if let Some(text) = content.as_str() {
        return Ok(text.to_owned());
    }
    let mut all = Vec::new();
    for (path, kind, block) in blocks(path, content)? {
        match kind {
            "text" => all.push(text(&path, block, "text")?),
            other => return refuse(&path, other),
        }
    }
    Ok(all.join("\n"))
}

/// A user's message: the answers of tools, then what the user says.
fn user(path: &str, content: &Value, all: &mut Vec<Value>) -> Result<(), ApiError> {
    if let Some(text) = content.as_str() {
        all.push(json!({"role": "user", "content": text}));
        return Ok(());
    }
    let mut said = Vec::new();
    let mut n_results = 0;
    for (path, kind, block) in blocks(path, content)? {
        match kind {
            "text" => said.push(text(&path, block, "text")?),
            "tool_result" => {
                let id = text(&path, block, "tool_use_id")?;
                let content = match block.get("content") {
                    None | Some(Value::Null) => String::new(),
                    Some(content) => texts(&format!("{path}.content"), content)?,
                };
                let is_error = block.get("is_error").and_then(Value::as_bool) == Some(true);
                let content = if is_error { format!("Error: {content}") } else { content };
                all.push(json!({"role": "tool", "tool_call_id": id, "content": content}));
                n_results += 1;
            }
            other => return refuse(&path, other),
        }
    }
    if said.is_empty() && n_results == 0 {
        return wrong(path, "at least one content block is required");
    }
    if !said.is_empty() {
        all.push(json!({"role": "user", "content": said.join("\n")}));
    }
    Ok(())
}

fn assistant(path: &str, content: &Value) -> Result<Value, ApiError> {
    if let Some(text) = content.as_str() {
        return Ok(json!({"role": "assistant", "content": text}));
    }
    let (mut said, mut thoughts, mut calls) = (Vec::new(), Vec::new(), Vec::new());
    for (path, kind, block) in blocks(path, content)? {
        match kind {
            "text" => said.push(text(&path, block, "text")?),
            "thinking" => thoughts.push(text(&path, block, "thinking")?),
            "redacted_thinking" => {}
            "tool_use" => {
                let Some(input) = block.get("input").filter(|input| input.is_object()) else {
                    return wrong(&format!("{path}.input"), "must be an object");
                };
                calls.push(json!({
                    "id": text(&path, block, "id")?,
                    "type": "function",
                    "function": {
                        "name": text(&path, block, "name")?,
                        "arguments": input.to_string(),
                    },
                }));
            }
            other => return refuse(&path, other),
        }
    }
    let content = said.join("\n");
    let is_silent = content.is_empty() && !calls.is_empty();
    let content = if is_silent { Value::Null } else { content.into() };
    let mut message = json!({"role": "assistant", "content": content});
    if !thoughts.is_empty() {
        message["reasoning_content"] = thoughts.join("\n").into();
    }
    if !calls.is_empty() {
        message["tool_calls"] = calls.into();
    }
    Ok(message)
}

fn tool(idx: usize, entry: &Value) -> Result<Value, ApiError> {
    let path = format!("tools.{idx}");
    if let Some(kind) = entry.get("type").filter(|kind| !kind.is_null())
        && kind != "custom"
    {
        let message = "must be \"custom\": tools of Anthropic's own servers are not here";
        return wrong(&format!("{path}.type"), message);
    }
    let name = text(&path, entry, "name")?;
    let Some(schema) = entry.get("input_schema").filter(|schema| schema.is_object()) else {
        return wrong(&format!("{path}.input_schema"), "must be a JSON schema, an object");
    };
    let mut function = json!({"name": name, "parameters": schema});
    if let Some(description) = entry.get("description").filter(|text| !text.is_null()) {
        if !description.is_string() {
            return wrong(&format!("{path}.description"), "must be a string");
        }
        function["description"] = description.clone();
    }
    Ok(json!({"type": "function", "function": function}))
}

fn tool_choice(fields: &Fields, chat: &mut Map<String, Value>) -> Result<(), ApiError> {
    let Some(choice) = fields.object("tool_choice")? else { return Ok(()) };
    let choice = Fields(choice.clone());
    let at = |error: ApiError| {
        let param = format!("tool_choice.{}", error.param.as_deref().unwrap_or_default());
        error.at(param)
    };
    let kind = choice.choice("type", &["auto", "any", "tool", "none"]).map_err(at)?;
    let translated = match kind {
        Some(0) => json!("auto"),
        Some(1) => json!("required"),
        Some(2) => {
            let Some(name) = choice.str("name").map_err(at)? else {
                return wrong("tool_choice.name", "Field required");
            };
            json!({"type": "function", "function": {"name": name}})
        }
        Some(_) => json!("none"),
        None => return wrong("tool_choice.type", "Field required"),
    };
    chat.insert("tool_choice".into(), translated);
    if choice.bool("disable_parallel_tool_use").map_err(at)? == Some(true) {
        chat.insert("parallel_tool_calls".into(), false.into());
    }
    Ok(())
}

/// `thinking`: whether templates that can leave reasoning out should.
fn thinking(fields: &Fields, chat: &mut Map<String, Value>) -> Result<(), ApiError> {
    let Some(thinking) = fields.object("thinking")? else { return Ok(()) };
    let kind = Fields(thinking.clone());
    let kind = kind.choice("type", &["disabled", "enabled", "adaptive"]);
    let kind = kind.map_err(|error| error.at("thinking.type"))?;
    let mut variables = fields.object("chat_template_kwargs")?.cloned().unwrap_or_default();
    variables.entry("enable_thinking").or_insert((kind != Some(0)).into());
    chat.insert("chat_template_kwargs".into(), variables.into());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(body: Value) -> Result<Value, ApiError> {
        chat(&Fields(body.as_object().unwrap().clone())).map(|chat| Value::Object(chat.0))
    }

    #[test]
    fn blocks_become_messages_in_order() {
        let body = json!({
            "system": [{"type": "text", "text": "Be brief."}],
            "messages": [
                {"role": "user", "content": "Weather?"},
                {"role": "assistant", "content": [
                    {"type": "thinking", "thinking": "hm", "signature": "s"},
                    {"type": "text", "text": "I look."},
                    {"type": "tool_use", "id": "t1", "name": "weather", "input": {"city": "Rome"}},
                ]},
                {"role": "user", "content": [
                    {"type": "tool_result", "tool_use_id": "t1", "content": [
                        {"type": "text", "text": "sunny"}]},
                    {"type": "text", "text": "And now?"},
                ]},
            ],
            "tools": [{"name": "weather", "input_schema": {"type": "object"}}],
            "tool_choice": {"type": "any", "disable_parallel_tool_use": true},
            "stop_sequences": ["END"], "temperature": 0.5, "metadata": {"user_id": "u"},
        });
        let chat = read(body).unwrap();
        let roles: Vec<&str> = chat["messages"]
            .as_array()
            .unwrap()
            .iter()
            .map(|message| message["role"].as_str().unwrap())
            .collect();
        assert_eq!(roles, ["system", "user", "assistant", "tool", "user"]);
        let said = &chat["messages"][2];
        assert_eq!(
            (&said["reasoning_content"], &said["content"]),
            (&json!("hm"), &json!("I look."))
        );
        assert_eq!(said["tool_calls"][0]["function"]["arguments"], r#"{"city":"Rome"}"#);
        assert_eq!(chat["messages"][3]["tool_call_id"], "t1");
        assert_eq!(chat["tool_choice"], "required");
        assert_eq!((&chat["parallel_tool_calls"], &chat["stop"]), (&json!(false), &json!(["END"])));
        assert_eq!((&chat["temperature"], chat.get("metadata")), (&json!(0.5), None));
    }

    #[test]
    fn what_is_wrong_is_named_by_its_path() {
        let with = |content: Value| json!({"messages": [{"role": "user", "content": content}]});
        for (body, param) in [
            (json!({}), "messages"),
            (json!({"messages": []}), "messages"),
            (json!({"messages": [{"role": "tool", "content": ""}]}), "messages.0.role"),
            (with(json!(5)), "messages.0.content"),
            (with(json!([])), "messages.0.content"),
            (with(json!([{"type": "image", "source": {}}])), "messages.0.content.0.type"),
            (with(json!([{"type": "text"}])), "messages.0.content.0.text"),
            (with(json!([{}])), "messages.0.content.0.type"),
            (with(json!([{"type": "tool_result"}])), "messages.0.content.0.tool_use_id"),
            (json!({"messages": [{"role": "user", "content": "a"}], "system": 5}), "system"),
            (
                json!({"messages": [{"role": "user", "content": "a"}], "tools": [{"name": "x"}]}),
                "tools.0.input_schema",
            ),
            (
                json!({"messages": [{"role": "user", "content": "a"}],
                "tools": [{"name": "x", "type": "web_search_20250305"}]}),
                "tools.0.type",
            ),
            (
                json!({"messages": [{"role": "user", "content": "a"}],
                "tool_choice": {"type": "tool"}}),
                "tool_choice.name",
            ),
            (
                json!({"messages": [{"role": "user", "content": "a"}],
                "thinking": {"type": "much"}}),
                "thinking.type",
            ),
        ] {
            let error = read(body.clone()).unwrap_err();
            assert_eq!(error.param.as_deref(), Some(param), "{body}: {}", error.message);
        }
    }
}
