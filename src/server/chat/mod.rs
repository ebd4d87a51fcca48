//! Conversations: from messages and tools to a prompt, and from an answer's text back to what was
//! said, thought and called.
//!
//! ```text
//! messages, tools -> template (render) -> prompt     family -> grammar, marks to show
//! text of the answer -> parser (reasoning, body) -> deltas
//! ```
//!
//! A model family has its own form of tool calls; it is told from the template. The same families
//! serve every dialect that has chats.

mod calls;
mod family;
mod grammar;
mod json;
mod messages;
mod parser;
mod reasoning;
mod render;
mod tools;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use serde_json::{Map, Value, json};

pub(super) use parser::{Delta, Parser, ParserSpec};

use self::family::Family;
use self::grammar::Thinking;
use self::reasoning::{THINK_CLOSE, THINK_OPEN};
use self::render::{Conversation, Rendered};
use self::tools::Tools;
use super::constraint;
use super::error::ApiError;
use super::fields::Fields;
use super::generate::Trim;
use super::state::ServeOptions;
use crate::inference::{ChatTemplate, GrammarRequest, ModelInfo, TokenId};

/// A conversation, ready to be answered.
pub(super) struct Prepared {
    /// The prompt.
    pub prompt: Vec<TokenId>,
    /// What the answer must look like, for tools or a schema.
    pub grammar: Option<GrammarRequest>,
    /// The field to blame if that cannot be used.
    pub grammar_param: &'static str,
    /// Control tokens that the parser must see.
    pub shown_tokens: Vec<TokenId>,
    /// How an answer is read.
    pub parser: ParserSpec,
    /// Tokens that were cut off the conversation.
    pub n_dropped: usize,
}

/// What bounds a prompt.
#[derive(Clone, Copy, Debug)]
pub(super) struct Room {
    /// Positions of the context.
    pub n_ctx: usize,
    /// Most tokens of the answer.
    pub n_predict: Option<usize>,
    /// Whether a conversation that is too long is cut.
    pub trim: Option<Trim>,
}

/// Reads a chat's fields and renders its prompt.
///
/// # Errors
/// A wrong field by its path, messages that the template refuses, a prompt that is too long.
pub(super) fn prepare(
    fields: &Fields,
    info: &ModelInfo,
    options: &ServeOptions,
    room: Room,
) -> Result<Prepared, ApiError> {
    let tools = Tools::read(fields)?;
    let schema = schema(fields)?;
    let constraint = constraint::of_answer(fields)?;
    if let Some(name) = constraint.filter(|_| tools.are_on()) {
        return Err(ApiError::field(name, format!("{name} cannot be combined with tools")));
    }
    if let Some(name) = constraint.filter(|_| schema.is_some()) {
        let other = if fields.has("json_schema") { "json_schema" } else { "response_format" };
        return Err(constraint::exclusive(name, other));
    }
    let own = own_template(info, options)?;
    let template = template(own.as_ref(), info)?;
    let conversation = conversation(fields, info, template, &tools, schema.is_some())?;
    let family = conversation.family;
    let Rendered { text, prompt, n_dropped } = conversation.render(room)?;
    let is_opened = text.trim_end().ends_with(THINK_OPEN);
    let thinking = match (is_opened, template.source().contains(THINK_CLOSE)) {
        (true, _) => Thinking::Opened,
        (false, true) => Thinking::May,
        (false, false) => Thinking::No,
    };
    let tokenizer = info.tokenizer();
    let mut marks = family.marks();
    marks.extend([THINK_OPEN, THINK_CLOSE]);
    let shown = marks.into_iter().filter_map(|mark| grammar::control_token(tokenizer, mark));
    Ok(Prepared {
        grammar: grammar::for_chat(family, &tools, schema.as_ref(), thinking, tokenizer),
        grammar_param: if tools.are_on() { "tools" } else { "response_format" },
        shown_tokens: shown.collect(),
        parser: ParserSpec {
            family,
            names: tools.callable().iter().map(|tool| tool.name.clone()).collect::<Arc<[_]>>(),
            splits_reasoning: splits_reasoning(fields, options)?,
            begins_in_reasoning: is_opened,
        },
        prompt,
        n_dropped,
    })
}

/// The text of a chat's prompt, however long it is.
///
/// # Errors
/// A wrong field by its path, messages that the template refuses.
pub(super) fn prompt_text(
    fields: &Fields,
    info: &ModelInfo,
    options: &ServeOptions,
) -> Result<String, ApiError> {
    let tools = Tools::read(fields)?;
    let own = own_template(info, options)?;
    let template = template(own.as_ref(), info)?;
    let has_schema = schema(fields)?.is_some();
    let conversation = conversation(fields, info, template, &tools, has_schema)?;
    let room = Room { n_ctx: usize::MAX, n_predict: None, trim: None };
    Ok(conversation.render(room)?.text)
}

fn conversation<'a>(
    fields: &Fields,
    info: &'a ModelInfo,
    template: &'a ChatTemplate,
    tools: &'a Tools,
    has_schema: bool,
) -> Result<Conversation<'a>, ApiError> {
    let is_on = tools.are_on();
    Ok(Conversation {
        messages: messages::read(fields)?,
        tools,
        family: if is_on { Family::of_template(template.source()) } else { Family::Plain },
        has_schema,
        template,
        tokenizer: info.tokenizer(),
        variables: variables(fields)?,
        opening: opening(fields)?,
    })
}

/// The template in use: `own`, else the model's.
fn template<'a>(
    own: Option<&'a ChatTemplate>,
    info: &'a ModelInfo,
) -> Result<&'a ChatTemplate, ApiError> {
    let missing = || ApiError::not_supported("the model has no chat template");
    own.or(info.chat_template()).ok_or_else(missing)
}

/// The template that the service was started with in place of the model's, by its text or by the
/// name of a built-in one; chatml for a model that has none.
fn own_template(
    info: &ModelInfo,
    options: &ServeOptions,
) -> Result<Option<ChatTemplate>, ApiError> {
    let given = options.chat_template.as_deref();
    let Some(source) = given.or(info.chat_template().is_none().then_some("chatml")) else {
        return Ok(None);
    };
    if let Some(template) = ChatTemplate::builtin(source) {
        return Ok(Some(template));
    }
    let special = info.tokenizer().special();
    let text = |token: Option<TokenId>| {
        let bytes = token.map(|token| info.tokenizer().token_bytes(token, true));
        String::from_utf8_lossy(bytes.unwrap_or_default()).into_owned()
    };
    let template = ChatTemplate::from_source(source, &text(special.bos), &text(special.eos));
    template.map(Some).map_err(|error| ApiError::internal(error.to_string()))
}

/// The schema that the answer must fit, from `response_format` or `json_schema`.
fn schema(fields: &Fields) -> Result<Option<Value>, ApiError> {
    let is_schema = |schema: &Value| schema.is_object() || *schema == Value::Bool(true);
    let given = fields.get("json_schema").cloned();
    let found = match fields.object("response_format")? {
        None => given.map(|schema| ("json_schema", schema)),
        Some(format) => match format.get("type").and_then(Value::as_str) {
            Some("text") => given.map(|schema| ("json_schema", schema)),
            Some("json_object") => {
                let schema = format.get("schema").cloned().or(given).unwrap_or_else(|| json!({}));
                Some(("response_format.schema", schema))
            }
            Some("json_schema") => {
                let schema = format.get("json_schema").and_then(|wrapper| wrapper.get("schema"));
                let schema = schema.or(format.get("schema")).cloned().unwrap_or_else(|| json!({}));
                Some(("response_format.json_schema.schema", schema))
            }
            _ => {
                let message = "response_format.type must be text, json_object or json_schema";
                return Err(ApiError::field("response_format.type", message));
            }
        },
    };
    match found {
        Some((param, schema)) if !is_schema(&schema) => {
            Err(ApiError::field(param, format!("{param} must be a JSON schema, an object")))
        }
        Some((_, Value::Bool(_))) => {
            Ok(Some(json!({"type": ["object", "array", "string", "number", "boolean", "null"]})))
        }
        found => Ok(found.map(|(_, schema)| schema)),
    }
}

/// What templates may look at besides messages and tools.
fn variables(fields: &Fields) -> Result<Map<String, Value>, ApiError> {
    let mut variables = fields.object("chat_template_kwargs")?.cloned().unwrap_or_default();
    let has_effort = fields.str("reasoning_effort")?;
    match has_effort {
        Some("none") => {
            variables.insert("enable_thinking".into(), false.into());
        }
        Some(effort) => {
            variables.entry("reasoning_effort").or_insert(effort.into());
        }
        None => {}
    }
    variables.entry("enable_thinking").or_insert(true.into());
    Ok(variables)
}

/// How the prompt ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Opening {
    /// With the opening of the assistant's turn.
    Turn,
    /// With the last message, which is continued. By default where that is the assistant's.
    Continue,
    /// As the template leaves it.
    Nothing,
}

fn opening(fields: &Fields) -> Result<Opening, ApiError> {
    let generation = fields.bool("add_generation_prompt")?;
    let last = fields.array("messages")?.and_then(|messages| messages.last());
    let is_assistant = last.is_some_and(|message| message["role"] == "assistant");
    let has_calls = last.is_some_and(|message| {
        message["tool_calls"].as_array().is_some_and(|calls| !calls.is_empty())
    });
    let wrong = |message: &str| Err(ApiError::field("continue_final_message", message));
    match (fields.bool("continue_final_message")?, generation) {
        (Some(true), Some(true)) => wrong("it excludes add_generation_prompt: true"),
        (Some(true), _) if !is_assistant => wrong("the last message must be the assistant's"),
        (Some(true), _) if has_calls => wrong("a message that calls tools cannot be continued"),
        (Some(true), _) => Ok(Opening::Continue),
        (None, None) if is_assistant && !has_calls => Ok(Opening::Continue),
        (_, Some(false)) => Ok(Opening::Nothing),
        _ => Ok(Opening::Turn),
    }
}

fn splits_reasoning(fields: &Fields, options: &ServeOptions) -> Result<bool, ApiError> {
    let asked = fields.choice("reasoning_format", &["none", "deepseek", "auto"])?;
    Ok(match asked {
        Some(word_idx) => word_idx != 0,
        None => options.reasoning_format != "none",
    })
}
