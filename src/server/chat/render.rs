//! Messages through the model's template, to tokens that fit the context.
//!
//! Templates disagree about what a message is. Each way is tried in turn: arguments of calls as
//! objects or as texts, an absent content as nothing or as an empty text, the system's message by
//! itself or at the start of the user's.

use serde_json::{Map, Value};

use super::family::Family;
use super::tools::Tools;
use super::{Opening, Room, messages};
use crate::inference::{ChatTemplate, InferenceError, RenderOptions, TokenId, Tokenizer};
use crate::server::error::ApiError;
use crate::server::generate::n_prompt_max;

/// A conversation and how it is written.
pub(super) struct Conversation<'a> {
    pub messages: Vec<Value>,
    pub tools: &'a Tools,
    pub family: Family,
    /// The answer must fit a schema.
    pub has_schema: bool,
    pub template: &'a ChatTemplate,
    pub tokenizer: &'a Tokenizer,
    pub variables: Map<String, Value>,
    pub opening: Opening,
}

/// A prompt.
pub(super) struct Rendered {
    pub text: String,
    pub prompt: Vec<TokenId>,
    /// Tokens of the messages that were left out.
    pub n_dropped: usize,
}

impl Conversation<'_> {
    /// The prompt; where it is too long and may be cut, without the oldest messages.
    ///
    /// # Errors
    /// The template refuses the messages; a prompt that is too long, with both counts.
    pub fn render(mut self, room: Room) -> Result<Rendered, ApiError> {
        self.messages = self.adapted();
        let mut rendered = self.prompt(&self.messages)?;
        let n_whole = rendered.prompt.len();
        if n_whole < room.n_ctx {
            return Ok(rendered);
        }
        let too_long = InferenceError::PromptTooLong { n_prompt: n_whole, n_ctx: room.n_ctx };
        if room.trim.is_none() {
            return Err(ApiError::from(&too_long).at("messages"));
        }
        let n_max = n_prompt_max(room.n_ctx, room.n_predict);
        // The smallest number of messages whose absence is enough.
        let others = self.messages.iter().filter(|m| !messages::is_of(m, "system")).count();
        let (mut low, mut high) = (1, others.saturating_sub(1));
        let mut best = None;
        while low <= high && high > 0 {
            let n = low.midpoint(high);
            rendered = self.prompt(&self.without_oldest(n))?;
            if rendered.prompt.len() <= n_max {
                rendered.n_dropped = n_whole - rendered.prompt.len();
                best = Some(rendered);
                high = n - 1;
            } else {
                low = n + 1;
            }
        }
        best.ok_or_else(|| ApiError::from(&too_long).at("messages"))
    }

    /// The messages as the family's template wants them.
    fn adapted(&self) -> Vec<Value> {
        let source = self.template.source();
        let has_tools = self.family.has_native_tools(source);
        let mut messages = match (self.tools.are_on() && !has_tools, source.contains("tool")) {
            (_, true) if self.family != Family::Generic => self.messages.clone(),
            (false, true) => self.messages.clone(),
            _ => messages::without_tools(&self.messages),
        };
        if let Some(n) = Family::of_template(source).n_id_chars() {
            messages = messages::with_short_ids(&messages, n);
        }
        if self.tools.are_on() && !has_tools {
            messages = messages::with_system(&messages, &self.instructions());
        }
        messages
    }

    /// What a model is told of the tools where its template does not tell it.
    fn instructions(&self) -> String {
        let list = serde_json::to_string_pretty(&self.tools.json()).unwrap_or_default();
        let how = match (self.family, self.tools.are_forced(), self.has_schema) {
            (Family::Generic, true, _) => {
                "Respond in JSON format with `tool_call`, a request to call tools."
            }
            (Family::Generic, false, false) => {
                "Respond in JSON format, either with `tool_call` (a request to call tools) or with \
                 `response` (a reply to the user's request)."
            }
            (Family::Generic, false, true) => {
                "Respond in JSON format, either with `tool_call` (a request to call tools) or with \
                 `response` (a reply to the user's request in the format asked for)."
            }
            _ => "Call a function where it helps to satisfy the user's request.",
        };
        format!("You can call these tools:\n{list}\n\n{how}")
    }

    /// The messages without the `n` oldest that are not the system's; an answer of a tool does not
    /// stay without its call.
    fn without_oldest(&self, n: usize) -> Vec<Value> {
        let mut n_left = n;
        let mut is_behind_cut = true;
        let stays = |message: &&Value| {
            if messages::is_of(message, "system") {
                return true;
            }
            if n_left > 0 {
                n_left -= 1;
                return false;
            }
            is_behind_cut &= messages::is_of(message, "tool");
            !is_behind_cut
        };
        self.messages.iter().filter(stays).cloned().collect()
    }

    fn prompt(&self, messages: &[Value]) -> Result<Rendered, ApiError> {
        let (messages, tail) = match (self.opening, messages.split_last()) {
            (Opening::Continue, Some((last, before))) => (before, messages::text(last)),
            _ => (messages, ""),
        };
        let text = self.text(messages)? + tail;
        let prompt = self.tokenizer.encode_chat(&text);
        let prompt = prompt.map_err(|error| ApiError::field("messages", error.to_string()))?;
        Ok(Rendered { text, prompt, n_dropped: 0 })
    }

    /// The template's text, by the first way that it accepts.
    fn text(&self, messages: &[Value]) -> Result<String, ApiError> {
        let shows_tools =
            self.tools.are_on() && self.family.has_native_tools(self.template.source());
        let options = RenderOptions {
            add_generation_prompt: self.opening != Opening::Nothing,
            tools: shows_tools.then(|| self.tools.json()),
            now_unix_s: None,
            extra: self.variables.clone(),
        };
        let render =
            |messages: Vec<Value>| self.template.render_json(&Value::Array(messages), &options);
        let first = match render(messages.to_vec()) {
            Ok(text) => return Ok(text),
            Err(error) => ApiError::field("messages", error.to_string()),
        };
        let with_texts = messages::with_text_arguments(messages);
        let mut ways = Vec::new();
        if messages.iter().any(|message| message.get("tool_calls").is_some()) {
            ways.push(with_texts.clone());
            ways.push(messages::with_text_contents(messages));
            ways.push(messages::with_text_contents(&with_texts));
        }
        if messages.iter().any(|message| messages::is_of(message, "system")) {
            ways.push(messages::without_system(messages));
        }
        ways.into_iter().find_map(|messages| render(messages).ok()).ok_or(first)
    }
}
