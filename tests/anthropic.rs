//! Anthropic's dialect, asked over the router in this process, and its own SDK on the real binary.

use std::process::Command;

use serde_json::{Value, json};

use crate::openai::{Api, HERMES, real, saying};
use crate::serve::Process;
use crate::support::skip::python_with;

const CALL: &str = "Let me see.\n<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": \
                    \"Rome\"}}\n</tool_call>";

fn body(more: Value) -> Value {
    let mut body = json!({"model": "m", "max_tokens": 160, "temperature": 0,
        "messages": [{"role": "user", "content": "What is the weather?"}]});
    for (name, value) in more.as_object().unwrap() {
        body[name] = value.clone();
    }
    body
}

fn tools() -> Value {
    json!([{"name": "weather", "description": "Tells the weather.", "input_schema": {
        "type": "object", "properties": {"city": {"enum": ["Rome", "Oslo"]}},
        "required": ["city"]}}])
}

/// The events of a stream: their names, which their data repeat, and their data.
async fn stream(api: &Api, mut body: Value) -> Vec<(String, Value)> {
    body["stream"] = true.into();
    let (status, text) = api.send("POST", "/v1/messages", &body.to_string()).await;
    assert_eq!(status, 200, "{text}");
    let frames = text.split_terminator("\n\n").filter(|frame| *frame != ":");
    let event = |frame: &str| {
        let (name, data) = frame.split_once('\n').unwrap();
        let name = name.strip_prefix("event: ").unwrap().to_owned();
        let data: Value = serde_json::from_str(data.strip_prefix("data: ").unwrap()).unwrap();
        assert_eq!(data["type"], name.as_str());
        (name, data)
    };
    frames.map(event).collect()
}

/// The content that the events of a stream come to, as the SDK puts it together.
fn content(events: &[(String, Value)]) -> Vec<Value> {
    let mut blocks: Vec<Value> = Vec::new();
    let mut inputs: Vec<String> = Vec::new();
    for (name, data) in events {
        let index = data["index"].as_u64().unwrap_or_default() as usize;
        match name.as_str() {
            "content_block_start" => {
                assert_eq!(index, blocks.len());
                blocks.push(data["content_block"].clone());
                inputs.push(String::new());
            }
            "content_block_delta" => {
                let delta = &data["delta"];
                for key in ["text", "thinking"] {
                    if let Some(more) = delta[key].as_str() {
                        let text = format!("{}{more}", blocks[index][key].as_str().unwrap());
                        blocks[index][key] = text.into();
                    }
                }
                inputs[index] += delta["partial_json"].as_str().unwrap_or_default();
            }
            _ => {}
        }
    }
    for (block, input) in blocks.iter_mut().zip(inputs).filter(|(_, input)| !input.is_empty()) {
        block["input"] = serde_json::from_str(&input).unwrap();
    }
    blocks
}

fn without_ids(mut blocks: Vec<Value>) -> Vec<Value> {
    for block in &mut blocks {
        if let Some(id) = block.as_object_mut().unwrap().remove("id") {
            assert!(id.as_str().is_some_and(|id| !id.is_empty()));
        }
    }
    blocks
}

#[tokio::test]
async fn a_message_is_the_same_whole_and_streamed() {
    let api = saying(HERMES, "Good day.");
    let whole = api.post("/v1/messages", body(json!({}))).await;
    let names: Vec<&str> = whole.as_object().unwrap().keys().map(String::as_str).collect();
    let expected =
        ["id", "type", "role", "model", "content", "stop_reason", "stop_sequence", "usage"];
    assert_eq!(names, expected);
    assert_eq!(whole["content"], json!([{"type": "text", "text": "Good day."}]));
    assert_eq!(
        (&whole["stop_reason"], &whole["stop_sequence"]),
        (&json!("end_turn"), &Value::Null)
    );
    assert_eq!((&whole["role"], &whole["model"]), (&json!("assistant"), &json!("test-model")));
    let events = stream(&api, body(json!({}))).await;
    let names: Vec<&str> = events.iter().map(|(name, _)| name.as_str()).collect();
    let n = names.len();
    assert_eq!(names[..3], ["message_start", "content_block_start", "ping"]);
    assert!(names[3..n - 3].iter().all(|name| *name == "content_block_delta"), "{names:?}");
    assert_eq!(names[n - 3..], ["content_block_stop", "message_delta", "message_stop"]);
    assert_eq!(content(&events), whole["content"].as_array().unwrap().clone());
    let start = &events[0].1["message"];
    assert_eq!((&start["content"], &start["stop_reason"]), (&json!([]), &Value::Null));
    let end = &events[n - 2].1;
    assert_eq!(end["delta"], json!({"stop_reason": "end_turn", "stop_sequence": null}));
    assert_eq!(end["usage"]["output_tokens"], whole["usage"]["output_tokens"]);
    let read = |usage: &Value| {
        usage["input_tokens"].as_u64().unwrap() + usage["cache_read_input_tokens"].as_u64().unwrap()
    };
    let counted = api.post("/v1/messages/count_tokens", body(json!({}))).await;
    assert_eq!(counted, json!({"input_tokens": read(&whole["usage"])}));
    assert_eq!(read(&start["usage"]), read(&whole["usage"]));
}

#[tokio::test]
async fn tools_are_used_whole_and_streamed_and_their_results_read() {
    let api = saying(HERMES, CALL);
    let asked = body(json!({"tools": tools()}));
    let whole = api.post("/v1/messages", asked.clone()).await;
    let expected = vec![
        json!({"type": "text", "text": "Let me see."}),
        json!({"type": "tool_use", "name": "weather", "input": {"city": "Rome"}}),
    ];
    let blocks = whole["content"].as_array().unwrap().clone();
    assert_eq!(without_ids(blocks.clone()), expected);
    assert_eq!(whole["stop_reason"], "tool_use");
    let events = stream(&api, asked).await;
    assert_eq!(without_ids(content(&events)), expected);
    let stops = events.iter().filter(|(name, _)| name == "content_block_stop").count();
    assert_eq!(stops, 2, "each block ends once");
    let mut messages = body(json!({}))["messages"].as_array().unwrap().clone();
    messages.push(json!({"role": "assistant", "content": blocks}));
    messages.push(json!({"role": "user", "content": [{"type": "tool_result",
        "tool_use_id": blocks[1]["id"], "content": "sunny"}]}));
    let again = saying(HERMES, "It is sunny.");
    let answer = again.post("/v1/messages", body(json!({"messages": messages, "tools": tools()})));
    assert_eq!(answer.await["content"][0]["text"], "It is sunny.");
    // The model would rather chat; the grammar lets it call alone.
    for mut choice in [json!({"type": "any"}), json!({"type": "tool", "name": "weather"})] {
        choice["disable_parallel_tool_use"] = true.into();
        let asked = body(json!({"tools": tools(), "tool_choice": choice}));
        let answer = again.post("/v1/messages", asked).await;
        assert_eq!(answer["stop_reason"], "tool_use", "{answer}");
        assert_eq!(answer["content"][0]["type"], "tool_use", "{answer}");
    }
    let asked = body(json!({"tools": tools(), "tool_choice": {"type": "none"}}));
    assert_eq!(api.post("/v1/messages", asked).await["content"][0]["text"], CALL);
}

#[tokio::test]
async fn reasons_to_stop_and_thoughts() {
    let api = saying(HERMES, "one two three four");
    let answer = api.post("/v1/messages", body(json!({"stop_sequences": ["three"]}))).await;
    assert_eq!(
        (&answer["stop_reason"], &answer["stop_sequence"]),
        (&json!("stop_sequence"), &json!("three"))
    );
    assert_eq!(answer["content"][0]["text"], "one two ");
    let answer = api.post("/v1/messages", body(json!({"max_tokens": 1}))).await;
    assert_eq!(answer["stop_reason"], "max_tokens");
    let thinking = format!("{HERMES}{{# </think> #}}");
    let api = saying(&thinking, "<think>\nHm.\n</think>\n\nYes.");
    let whole = api.post("/v1/messages", body(json!({}))).await;
    let kinds: Vec<&str> =
        whole["content"].as_array().unwrap().iter().map(|b| b["type"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["thinking", "text"], "{whole}");
    let events = stream(&api, body(json!({}))).await;
    assert_eq!(content(&events), whole["content"].as_array().unwrap().clone());
}

#[tokio::test]
async fn errors_have_anthropics_form() {
    let api = real();
    let image = json!([{"role": "user", "content": [{"type": "image", "source": {}}]}]);
    for (asked, words) in [
        (json!({"max_tokens": null}), "max_tokens: Field required"),
        (json!({"messages": image}), "messages.0.content.0.type"),
        (json!({"temperature": "hot"}), "temperature"),
        (json!({"tools": [{"name": "a b", "input_schema": {}}]}), "tools[0].name"),
        (json!({"messages": [{"role": "user", "content": "word ".repeat(4000)}]}), "context"),
    ] {
        let (status, answer) = api.json("POST", "/v1/messages", &body(asked.clone())).await;
        assert_eq!((status, &answer["type"]), (400, &json!("error")), "{asked}: {answer}");
        let error = &answer["error"];
        assert_eq!(error["type"], "invalid_request_error");
        assert!(error["message"].as_str().unwrap().contains(words), "{words}: {error}");
        assert!(answer["request_id"].as_str().is_some_and(|id| !id.is_empty()));
    }
    let (status, text) = api.send("POST", "/v1/messages", "{").await;
    assert!(status == 400 && text.starts_with(r#"{"type":"error""#), "{text}");
    let (status, text) = api.send("GET", "/v1/messages", "").await;
    assert!(status == 405 && text.starts_with(r#"{"type":"error""#), "{text}");
}

/// The SDK's own opinion of the real binary.
#[test]
fn the_anthropic_sdk_is_content() {
    let Some(python) = python_with("anthropic", "anthropic-sdk") else { return };
    let home = tempfile::tempdir().unwrap();
    let options = ["-c", "2048", "-np", "2", "--api-key", "right"];
    let service = Process::start(home.path(), &options);
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/sdk/anthropic_sdk.py");
    let url = format!("http://{}", service.address);
    let output = Command::new(python).args([script, &url, "--key", "right"]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}\n{}", String::from_utf8_lossy(&output.stderr));
}
