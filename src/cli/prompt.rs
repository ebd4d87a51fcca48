//! From what a person gives to the tokens that a model gets.

use std::io::Read;
use std::path::Path;

use anyhow::Context as _;

use super::exit::CliError;
use crate::base::limits::TOKENIZE_BYTES_MAX;
use crate::inference::{EncodeOptions, Message, Model, RenderOptions, TokenId};

/// Text of a file, or of stdin for `-`.
///
/// # Errors
/// When it cannot be read, is larger than a prompt may be, or is not UTF-8.
pub fn read_text(path: &Path) -> anyhow::Result<String> {
    let max = TOKENIZE_BYTES_MAX as u64 + 1;
    let mut bytes = Vec::new();
    let name = if path == Path::new("-") {
        std::io::stdin().lock().take(max).read_to_end(&mut bytes).context("cannot read stdin")?;
        "stdin".to_owned()
    } else {
        let name = path.display().to_string();
        let file = std::fs::File::open(path).with_context(|| format!("cannot open {name}"))?;
        file.take(max).read_to_end(&mut bytes).with_context(|| format!("cannot read {name}"))?;
        name
    };
    if bytes.len() > TOKENIZE_BYTES_MAX {
        return Err(
            CliError::usage(format!("{name} has more than {TOKENIZE_BYTES_MAX} bytes")).into()
        );
    }
    String::from_utf8(bytes).map_err(|_| CliError::usage(format!("{name} is not UTF-8")).into())
}

/// A turn of a conversation.
pub fn message(role: &str, content: impl Into<String>) -> Message {
    Message { role: role.to_owned(), content: content.into() }
}

/// The tokens of a conversation that the assistant is to continue.
///
/// # Errors
/// When the model has no template, or the template refuses the conversation.
pub fn chat_tokens(model: &Model, messages: &[Message]) -> anyhow::Result<Vec<TokenId>> {
    let template = model.chat_template().ok_or_else(|| {
        CliError::model(format!("{} has no chat template; --raw completes text", model.name()))
    })?;
    let options = RenderOptions { add_generation_prompt: true, ..RenderOptions::default() };
    let text = template
        .render(messages, &options)
        .map_err(|error| CliError::model(format!("chat template: {error}")))?;
    Ok(model.tokenizer().encode_chat(&text)?)
}

/// The tokens of a text that the model is to continue.
///
/// # Errors
/// When the vocabulary cannot say it.
pub fn raw_tokens(model: &Model, text: &str) -> anyhow::Result<Vec<TokenId>> {
    let options = EncodeOptions { add_special: true, parse_special: true };
    Ok(model.tokenizer().encode(text, options)?)
}

/// `\n`, `\t`, `\r`, `\"`, `\'`, `\\` as the characters they stand for; other pairs stay.
pub fn unescape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        if c != '\\' {
            out.push(c);
            continue;
        }
        match chars.next() {
            Some('n') => out.push('\n'),
            Some('t') => out.push('\t'),
            Some('r') => out.push('\r'),
            Some(c @ ('"' | '\'' | '\\')) => out.push(c),
            Some(other) => out.extend(['\\', other]),
            None => out.push('\\'),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_are_those_of_llama_cpp() {
        assert_eq!(unescape(r#"a\nb\\n\"\q\"#), "a\nb\\n\"\\q\\");
    }
}
