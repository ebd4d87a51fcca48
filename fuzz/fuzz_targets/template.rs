//! Any text as a chat template: it renders or says why not.
#![no_main]

use jetforge::inference::tokenizer::{ChatTemplate, Message, RenderOptions};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|source: &str| {
    let Ok(template) = ChatTemplate::from_source(source, "<s>", "</s>") else { return };
    let say = |role: &str| Message { role: role.to_owned(), content: " a <b> \u{e9}\n".to_owned() };
    let options = RenderOptions {
        add_generation_prompt: true,
        tools: Some(serde_json::json!([{"name": "run", "n": [1, 2.5, null, true]}])),
        now_unix_s: Some(1_720_000_000),
        ..RenderOptions::default()
    };
    let _ = template.render(&[say("system"), say("user"), say("assistant")], &options);
});
