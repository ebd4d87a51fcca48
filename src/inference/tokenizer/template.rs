//! Chat templates: messages to the text that the model was trained on.
//!
//! A template is a Jinja program from the model file, which is untrusted: it runs in minijinja
//! with a bound on its steps, sees only what is passed here, and can only return text. The
//! environment is that of Hugging Face's `apply_chat_template`: blocks trimmed, Python's string
//! and dictionary methods, `tojson`, `raise_exception`, `strftime_now`, `{% generation %}` ignored.
//!
//! The bounds are on steps, on the stack and on widths (`template_widths`), not on memory or time:
//! a template that doubles a string at every step can ask for more than there is, or keep every
//! step busy with it, and minijinja has no way to say no.

use std::time::{SystemTime, UNIX_EPOCH};

use fancy_regex::Regex;
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Serde, Value, ValueKind};
use minijinja::{Environment, Error, ErrorKind, context};
use serde::{Deserialize, Serialize};

use super::error::TemplateError;
use super::strftime::strftime;
use super::tojson::tojson;
use super::{TokenId, builtin, template_widths};
use crate::base::limits::{CHAT_TEMPLATE_BYTES_MAX, CHAT_TEMPLATE_FUEL, CHAT_TEMPLATE_STACK_BYTES};
use crate::inference::gguf::Metadata;

const NAME: &str = "chat_template";
/// Stands before the message of `raise_exception`, to tell it from errors of the engine.
const REFUSED: &str = "raised by the template: ";

/// One turn of a conversation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// `system`, `user` or `assistant`; templates may know others.
    pub role: String,
    /// What was said.
    pub content: String,
}

/// What a template may look at besides the messages.
#[derive(Clone, Debug, Default)]
pub struct RenderOptions {
    /// End with the opening of the assistant's turn.
    pub add_generation_prompt: bool,
    /// Tool descriptions in the form that templates expect, a JSON array.
    pub tools: Option<serde_json::Value>,
    /// The time that `strftime_now` shows, in seconds after 1970, UTC; the clock's if absent.
    pub now_unix_s: Option<u64>,
    /// Further variables, `enable_thinking` for example.
    pub extra: serde_json::Map<String, serde_json::Value>,
}

/// A compiled chat template.
#[derive(Debug)]
pub struct ChatTemplate {
    env: Environment<'static>,
    source: String,
    bos: String,
    eos: String,
}

impl ChatTemplate {
    /// The file's template, or else the built-in one that its vocabulary and architecture tell of;
    /// `None` for a model that does not look like one for chats.
    ///
    /// # Errors
    /// A template that is too long or no Jinja, keys of the wrong type.
    pub fn from_gguf(meta: &Metadata) -> Result<Option<ChatTemplate>, TemplateError> {
        let Some(tokens) = meta.strs("tokenizer.ggml.tokens")? else {
            return Ok(None);
        };
        let text = |key: &str, default: Option<TokenId>| -> Result<String, TemplateError> {
            let id = meta.u32(&format!("tokenizer.ggml.{key}_token_id"))?.or(default);
            let token = id.and_then(|id| tokens.get(id as usize));
            Ok(token.map(|token| (*token).to_owned()).unwrap_or_default())
        };
        let is_spm = meta.str("tokenizer.ggml.model")? == Some("llama");
        let bos = text("bos", is_spm.then_some(1))?;
        let eos = text("eos", is_spm.then_some(2))?;
        if let Some(source) = meta.str("tokenizer.chat_template")? {
            return ChatTemplate::from_source(source, &bos, &eos).map(Some);
        }
        match builtin::for_model(meta, &tokens, &eos)? {
            Some(source) => ChatTemplate::from_source(source, &bos, &eos).map(Some),
            None => Ok(None),
        }
    }

    /// A template from its Jinja source; `bos` and `eos` are the texts of those tokens.
    ///
    /// # Errors
    /// A template that is too long or no Jinja.
    pub fn from_source(source: &str, bos: &str, eos: &str) -> Result<ChatTemplate, TemplateError> {
        let max = CHAT_TEMPLATE_BYTES_MAX;
        if source.len() as u64 > max {
            return Err(TemplateError::TooLong { n_bytes: source.len(), max });
        }
        let syntax_error = |error: Error| TemplateError::Syntax { reason: describe(&error) };
        let mut env = environment().map_err(syntax_error)?;
        env.add_template_owned(NAME, without_generation_tags(source)?).map_err(syntax_error)?;
        Ok(ChatTemplate {
            env,
            source: source.to_owned(),
            bos: bos.to_owned(),
            eos: eos.to_owned(),
        })
    }

    /// A built-in template: `chatml`, `llama2`, `llama3`, `deepseek-coder`, `phi`, `phi3`,
    /// `zephyr`, `stablelm`, `gemma` or `vicuna`.
    pub fn builtin(name: &str) -> Option<ChatTemplate> {
        ChatTemplate::from_source(builtin::by_name(name)?, "", "").ok()
    }

    /// The Jinja source.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// The text of a conversation.
    ///
    /// # Errors
    /// The template refuses the messages, fails, or takes too many steps.
    pub fn render(
        &self,
        messages: &[Message],
        options: &RenderOptions,
    ) -> Result<String, TemplateError> {
        self.render_on_thread(Value::from(Serde(messages.to_vec())), options)
    }

    /// The text of a conversation whose messages have more than a role and a content, such as
    /// calls of tools: a JSON array of objects as templates expect them.
    ///
    /// # Errors
    /// As [`ChatTemplate::render`].
    pub fn render_json(
        &self,
        messages: &serde_json::Value,
        options: &RenderOptions,
    ) -> Result<String, TemplateError> {
        self.render_on_thread(Value::from(Serde(messages.clone())), options)
    }

    fn render_on_thread(
        &self,
        messages: Value,
        options: &RenderOptions,
    ) -> Result<String, TemplateError> {
        // A thread of its own for its stack, which a template can make deep use of.
        std::thread::scope(|scope| {
            std::thread::Builder::new()
                .name("chat-template".to_owned())
                .stack_size(CHAT_TEMPLATE_STACK_BYTES)
                .spawn_scoped(scope, || self.render_here(messages, options))
                .map_err(|error| TemplateError::Render { reason: error.to_string() })?
                .join()
                .unwrap_or_else(|_| Err(TemplateError::Render { reason: "it panicked".into() }))
        })
    }

    fn render_here(
        &self,
        messages: Value,
        options: &RenderOptions,
    ) -> Result<String, TemplateError> {
        let extra = Value::from(Serde(options.extra.clone()));
        // Hugging Face passes None for what is absent, and templates ask for `tools is not none`.
        let variables = context! {
            messages => messages,
            add_generation_prompt => options.add_generation_prompt,
            tools => Value::from(Serde(options.tools.clone())),
            documents => Value::from(()),
            bos_token => self.bos.as_str(),
            eos_token => self.eos.as_str(),
            ..extra
        };
        let now = options.now_unix_s;
        let mut env = self.env.clone();
        env.add_function("strftime_now", move |format: &str| {
            strftime(format, now.unwrap_or_else(clock_unix_s))
        });
        let template = env.get_template(NAME).map_err(render_error)?;
        template.render(variables).map_err(render_error)
    }
}

fn clock_unix_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}

/// An environment as Hugging Face sets it up, bounded.
fn environment() -> Result<Environment<'static>, Error> {
    let mut env = Environment::new();
    env.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
    env.set_fuel(Some(CHAT_TEMPLATE_FUEL));
    env.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    template_widths::bound(&mut env);
    // Both print nested values with indentation: the square of the nesting, for no template's use.
    env.remove_filter("pprint");
    env.remove_global("debug");
    env.add_filter("tojson", tojson);
    // minijinja can iterate over None, as over nothing; templates ask this to know if there is any.
    env.add_test("iterable", |value: &Value| {
        let kind = value.kind();
        matches!(kind, ValueKind::Seq | ValueKind::Iterable | ValueKind::Map | ValueKind::String)
    });
    env.add_function("raise_exception", |message: &str| -> Result<Value, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, format!("{REFUSED}{message}")))
    });
    Ok(env)
}

/// The source with `{% generation %}`, which marks text for training, turned into an `if` that
/// is always taken; so the tag's white-space control stays.
fn without_generation_tags(source: &str) -> Result<String, TemplateError> {
    let tag = |pattern: &str, with: &str, text: &str| -> Result<String, TemplateError> {
        let syntax_error = |e: fancy_regex::Error| TemplateError::Syntax { reason: e.to_string() };
        let regex = Regex::new(pattern).map_err(syntax_error)?;
        Ok(regex.try_replacen(text, 0, with).map_err(syntax_error)?.into_owned())
    };
    if !source.contains("generation") {
        return Ok(source.to_owned());
    }
    let opened = tag(r"\{%([-+]?)\s*generation\s*([-+]?)%\}", "{%${1} if true ${2}%}", source)?;
    tag(r"\{%([-+]?)\s*endgeneration\s*([-+]?)%\}", "{%${1} endif ${2}%}", &opened)
}

/// The message with its place and causes, on one line.
fn describe(error: &Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(next) = cause {
        text = format!("{text}: {next}");
        cause = next.source();
    }
    text.replace(&format!(" (in {NAME}:"), " (line ")
}

fn render_error(error: Error) -> TemplateError {
    if error.kind() == ErrorKind::OutOfFuel {
        return TemplateError::TooManySteps { max: CHAT_TEMPLATE_FUEL };
    }
    match error.detail().and_then(|detail| detail.strip_prefix(REFUSED)) {
        Some(message) => TemplateError::Refused { message: message.to_owned() },
        None => TemplateError::Render { reason: describe(&error) },
    }
}
