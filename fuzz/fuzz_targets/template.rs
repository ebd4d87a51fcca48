//! Any text as a chat template, with any messages: it renders within its steps or says why not.
//!
//! ```text
//! source \x1e role \x1e content \x1e role \x1e content ... \x1e tools, if JSON
//! ```
//! A source that starts with `@` names a built-in template.
#![no_main]

use jetforge::inference::tokenizer::{ChatTemplate, Message, RenderOptions};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &str| {
    let mut parts = input.split('\x1e');
    let source = parts.next().unwrap_or_default();
    let template = match source.strip_prefix('@') {
        Some(name) => ChatTemplate::builtin(name),
        None => match ChatTemplate::from_source(source, "<s>", "</s>") {
            Ok(template) => Some(template),
            Err(error) => {
                assert!(!error.to_string().is_empty());
                None
            }
        },
    };
    let Some(template) = template else { return };
    let mut parts: Vec<&str> = parts.collect();
    let tools = parts.last().and_then(|last| serde_json::from_str(last).ok());
    if tools.is_some() {
        parts.pop();
    }
    let message =
        |role: &str, content: &str| Message { role: role.to_owned(), content: content.to_owned() };
    let mut messages: Vec<Message> =
        parts.chunks(2).map(|pair| message(pair[0], pair.get(1).unwrap_or(&""))).collect();
    if messages.is_empty() {
        messages = [("system", "be <brief>"), ("user", " a \u{e9}\n{{ x }}"), ("assistant", "")]
            .map(|(role, content)| message(role, content))
            .to_vec();
    }
    let options = RenderOptions {
        add_generation_prompt: true,
        tools,
        now_unix_s: Some(1_720_000_000),
        ..RenderOptions::default()
    };
    match template.render(&messages, &options) {
        Ok(text) if cfg!(feature = "canary") => assert!(text.len() < 20_000, "canary"),
        Ok(_) => {}
        Err(error) => assert!(!error.to_string().is_empty()),
    }
});
