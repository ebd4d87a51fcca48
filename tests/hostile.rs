//! Hostile bodies: whatever comes on whichever path, there is an answer or an error in the
//! dialect's form, never a panic and nothing that is the service's fault.

use proptest::prelude::*;
use serde_json::{Value, json};

use crate::openai::{HERMES, saying};

/// A right body of every dialect that reads one.
fn bodies() -> Vec<(&'static str, Value)> {
    let messages = json!([{"role": "user", "content": [{"type": "text", "text": "hi"}]},
        {"role": "assistant", "content": [{"type": "tool_use", "id": "t", "name": "f",
            "input": {"a": 1}}]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t",
            "content": [{"type": "text", "text": "x"}], "is_error": true}]}]);
    let anthropic = json!({"model": "m", "max_tokens": 4, "system": [{"type": "text", "text": "s"}],
        "messages": messages, "tools": [{"name": "f", "description": "d",
            "input_schema": {"type": "object", "properties": {"a": {"type": "integer"}}}}],
        "tool_choice": {"type": "auto", "disable_parallel_tool_use": true},
        "stop_sequences": ["x"], "thinking": {"type": "disabled"}, "temperature": 0.5, "top_k": 4});
    let task = json!({"request_type": "refactoring", "prompt": "p",
        "code": "c", "language": "rust", "parameters": {"temperature": 0.7, "max_tokens": 4,
            "top_p": 0.9, "context_max_tokens": 30, "stop": ["x"]},
        "context_chunks": [{"id": "a", "content": "x", "kind": "direct"},
            {"id": "b", "content": "y", "kind": "example"}]});
    let flat = json!({"prompt": "p", "max_tokens": 4, "temperature": 0, "context_chunks":
        [{"content": "c"}]});
    let call = json!([{"function": {"name": "f", "arguments": {"a": 1}}}]);
    let ollama = json!({"model": "m:latest", "messages": [{"role": "user", "content": "hi"},
        {"role": "assistant", "content": "", "tool_calls": call},
        {"role": "tool", "tool_name": "f", "content": "x"}],
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}],
        "format": {"type": "object"}, "options": {"num_predict": 4, "seed": 1, "stop": ["x"]},
        "keep_alive": "1m", "think": true, "stream": false});
    let generate = json!({"prompt": "p", "system": "s", "context": [1, 2], "suffix": "",
        "template": "{{ .Prompt }}", "raw": false, "format": "json", "stream": true,
        "options": {"num_predict": 4, "temperature": 0}, "images": [], "logprobs": true});
    let segments = json!({"language": "python", "segments": {"prefix": "a", "suffix": "b",
        "filepath": "f", "declarations": [{"filepath": "f", "body": "b"}],
        "relevant_snippets_from_changed_files": [{"filepath": "f", "body": "b", "score": 0.1}]},
        "debug_options": {"return_prompt": true}, "max_tokens": 4});
    let openai = json!({"prompt": ["a", [1, 2]], "max_tokens": 4, "stop": ["x"], "logprobs": 2,
        "n": 2, "seed": 1});
    vec![
        ("/v1/messages", anthropic.clone()),
        ("/v1/messages/count_tokens", anthropic),
        ("/generate", task.clone()),
        ("/explain", task),
        ("/generate", flat),
        ("/feedback", json!({"request_id": "r", "rating": 1})),
        ("/api/chat", ollama),
        ("/api/generate", generate),
        ("/api/embed", json!({"input": ["a"], "truncate": true, "dimensions": 4})),
        ("/api/embeddings", json!({"prompt": "a"})),
        ("/api/show", json!({"model": "m", "verbose": true})),
        ("/v1/completions", segments),
        ("/v1/completions", openai),
        ("/v1/events", json!({"type": "view", "completion_id": "c", "choice_index": 0})),
    ]
}

/// What takes the place of a right value.
fn odd() -> impl Strategy<Value = Value> {
    let text = prop_oneof![
        Just(String::new()),
        "\\PC{0,8}",
        Just("\u{0}\u{ffff}\u{1f600}".to_owned()),
        Just("x".repeat(3000)),
        Just("{{ .Prompt }} <|im_end|> </think>".to_owned()),
    ];
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        Just(json!(-1)),
        Just(json!(1e308)),
        Just(json!(0.5)),
        text.prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 12, 4, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            proptest::collection::vec(("[a-z_]{1,8}", inner), 0..4)
                .prop_map(|fields| Value::Object(fields.into_iter().collect())),
        ]
    })
}

/// Puts `value` in the place of one of a body's values, or takes that away.
fn mutate(body: &mut Value, path: &[prop::sample::Index], value: Option<Value>) {
    let (here, rest) = match path {
        [] => return,
        [here, rest @ ..] => (here, rest),
    };
    match body {
        Value::Object(fields) if !fields.is_empty() => {
            let name = fields.keys().nth(here.index(fields.len())).unwrap().clone();
            let is_end =
                rest.is_empty() || !(fields[&name].is_object() || fields[&name].is_array());
            match (is_end, value) {
                (false, value) => mutate(&mut fields[&name], rest, value),
                (true, Some(value)) => drop(fields.insert(name, value)),
                (true, None) => drop(fields.remove(&name)),
            }
        }
        Value::Array(items) if !items.is_empty() => {
            let idx = here.index(items.len());
            let is_end = rest.is_empty() || !(items[idx].is_object() || items[idx].is_array());
            match (is_end, value) {
                (false, value) => mutate(&mut items[idx], rest, value),
                (true, Some(value)) => items[idx] = value,
                (true, None) => drop(items.remove(idx)),
            }
        }
        _ => {}
    }
}

#[test]
fn no_body_of_any_dialect_is_the_services_fault() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    // Ends every answer at once, so that what is asked matters and not what is said.
    let api = runtime.block_on(async { saying(HERMES, "ok") });
    let bodies = bodies();
    let ask = |path: &str, body: &str| {
        let (status, text) = runtime.block_on(api.send("POST", path, body));
        assert!(status < 500 || [501, 503].contains(&status), "{path} {body}: {status} {text}");
        if status >= 400 {
            let error: Value = serde_json::from_str(&text).expect("an error is JSON");
            let says = match path {
                "/generate" | "/explain" => &error["metadata"]["error"]["message"],
                _ if path.starts_with("/api/") => &error["error"],
                _ => &error["error"]["message"],
            };
            assert!(says.as_str().is_some_and(|says| !says.is_empty()), "{path}: {text}");
        }
        status
    };
    for (path, body) in &bodies {
        let status = ask(path, &body.to_string());
        assert!([200, 501].contains(&status), "{path}: a right body");
        for cut in [0, 1, body.to_string().len() / 2] {
            ask(path, &body.to_string()[..cut]);
        }
    }
    let path = proptest::collection::vec(any::<prop::sample::Index>(), 1..6);
    let edits = proptest::collection::vec((path, proptest::option::of(odd())), 1..4);
    let cases = (any::<prop::sample::Index>(), edits);
    let config = ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(600) };
    let mut runner = proptest::test_runner::TestRunner::new_with_rng(
        config,
        proptest::test_runner::TestRng::deterministic_rng(
            proptest::test_runner::RngAlgorithm::ChaCha,
        ),
    );
    let result = runner.run(&cases, |(which, edits)| {
        let (path, body) = &bodies[which.index(bodies.len())];
        let mut body = body.clone();
        // A task's id stands for one task, and every case is another.
        for (place, value) in edits {
            mutate(&mut body, &place, value);
        }
        if let Some(fields) = body.as_object_mut() {
            fields.remove("request_id");
        }
        ask(path, &body.to_string());
        Ok(())
    });
    result.unwrap();
}
