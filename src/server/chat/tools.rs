//! The tools of a request, and which of them must be called.

use serde_json::{Value, json};

use crate::base::limits::{TOOL_NAME_BYTES_MAX, TOOLS_MAX};
use crate::server::error::ApiError;
use crate::server::fields::Fields;

/// A function that the model may call.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Tool {
    pub name: String,
    /// JSON schema of its arguments.
    pub parameters: Value,
    /// As the request describes it, for templates.
    pub json: Value,
}

/// What the request wants of the tools.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum ToolChoice {
    /// No calls.
    None,
    /// As the model likes.
    Auto,
    /// At least one call.
    Required,
    /// A call of the one tool.
    Named(String),
}

/// Tools and choice. Without tools the choice is `None`.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Tools {
    pub list: Vec<Tool>,
    pub choice: ToolChoice,
    /// Several calls in one answer are welcome.
    pub in_parallel: bool,
}

impl Tools {
    /// Reads `tools`, `tool_choice` and `parallel_tool_calls`.
    ///
    /// # Errors
    /// What is wrong, by the field's path.
    pub fn read(fields: &Fields) -> Result<Tools, ApiError> {
        let entries = fields.array("tools")?.map(Vec::as_slice).unwrap_or_default();
        if entries.len() > TOOLS_MAX {
            let message = format!("tools has {} entries; {TOOLS_MAX} are allowed", entries.len());
            return Err(ApiError::field("tools", message));
        }
        let list = entries.iter().enumerate().map(|(idx, entry)| tool(idx, entry));
        let list = list.collect::<Result<Vec<Tool>, ApiError>>()?;
        let choice = choice(fields, &list)?;
        let in_parallel = fields.bool("parallel_tool_calls")?.unwrap_or(true);
        Ok(Tools { list, choice, in_parallel })
    }

    /// Whether the model may call any.
    pub fn are_on(&self) -> bool {
        self.choice != ToolChoice::None
    }

    /// The tools that may be called.
    pub fn callable(&self) -> Vec<&Tool> {
        let is_callable = |tool: &&Tool| match &self.choice {
            ToolChoice::None => false,
            ToolChoice::Named(name) => tool.name == *name,
            ToolChoice::Auto | ToolChoice::Required => true,
        };
        self.list.iter().filter(is_callable).collect()
    }

    /// Whether a call must come.
    pub fn are_forced(&self) -> bool {
        matches!(self.choice, ToolChoice::Required | ToolChoice::Named(_))
    }

    /// The descriptions for a template.
    pub fn json(&self) -> Value {
        self.list.iter().map(|tool| tool.json.clone()).collect()
    }
}

fn tool(idx: usize, entry: &Value) -> Result<Tool, ApiError> {
    let at = |path: &str| format!("tools[{idx}]{path}");
    let wrong = |path: &str, message: &str| {
        let path = at(path);
        Err(ApiError::field(&path, format!("{path} {message}")))
    };
    match entry.get("type").and_then(Value::as_str) {
        Some("function") => {}
        Some(_) => return wrong(".type", "must be \"function\": there are no other tools here"),
        None => return wrong(".type", "must be \"function\""),
    }
    let Some(function) = entry.get("function").and_then(Value::as_object) else {
        return wrong(".function", "must be an object");
    };
    let name = function.get("name").and_then(Value::as_str).unwrap_or_default();
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "_-.:/".contains(c);
    if name.is_empty() || name.len() > TOOL_NAME_BYTES_MAX || !name.chars().all(is_plain) {
        let message = "must be a name of letters, digits, _, -, ., : and /, at most 128 of them";
        return wrong(".function.name", message);
    }
    let parameters = match function.get("parameters") {
        None | Some(Value::Null) => json!({"type": "object", "properties": {}}),
        Some(schema) if schema.is_object() => schema.clone(),
        Some(_) => return wrong(".function.parameters", "must be a JSON schema, an object"),
    };
    let mut json = entry.clone();
    json["function"]["parameters"] = parameters.clone();
    // Templates put it between other texts.
    if !function.get("description").is_some_and(Value::is_string) {
        json["function"]["description"] = "".into();
    }
    Ok(Tool { name: name.to_owned(), parameters, json })
}

fn choice(fields: &Fields, list: &[Tool]) -> Result<ToolChoice, ApiError> {
    let wrong = |message: String| Err(ApiError::field("tool_choice", message));
    let named = |name: &str| match list.iter().any(|tool| tool.name == name) {
        true => Ok(ToolChoice::Named(name.to_owned())),
        false => wrong(format!("tool_choice names {name:?}, which is not among the tools")),
    };
    let choice = match fields.get("tool_choice") {
        None => ToolChoice::Auto,
        Some(Value::String(word)) => match word.as_str() {
            "none" => ToolChoice::None,
            "auto" => ToolChoice::Auto,
            "required" | "any" => ToolChoice::Required,
            _ => return wrong(format!("tool_choice is {word:?}; known are none, auto, required")),
        },
        Some(value) => match value.pointer("/function/name").and_then(Value::as_str) {
            Some(name) => return named(name),
            None => {
                return wrong("tool_choice must be a word or name a function".into());
            }
        },
    };
    match (list.is_empty(), choice) {
        (true, ToolChoice::Required) => wrong("tool_choice asks for a call without tools".into()),
        (true, _) => Ok(ToolChoice::None),
        (false, choice) => Ok(choice),
    }
}
