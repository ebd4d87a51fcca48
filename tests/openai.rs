//! OpenAI's dialect, asked over the router in this process: a scripted model where it matters what
//! the model says, the default model where it does not.

use std::process::Command;

use axum::Router;
use axum::body::Body;
use axum::http::{Request, Response};
use http_body_util::BodyExt;
use hyper::service::Service;
use hyper_util::service::TowerToHyperService;
use jetforge::base::limits::GRAMMAR_BYTES_MAX;
use jetforge::hosting::Host;
use jetforge::inference::quant::TensorType;
use jetforge::inference::{Finish, LoadOptions, Model, ModelSource, Script, TokenId};
use jetforge::server::{ServeOptions, Server, router};
use serde_json::{Value, json};

use crate::serve::Process;
use crate::support::hosted::Hosted;
use crate::support::recipe::Recipe;
use crate::support::skip::{python_with, skip};

/// Templates that speak of tools, each in its family's way; the parts that decide the family.
pub const HERMES: &str = "\
{%- for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}\
{%- for c in m.tool_calls or [] %}<tool_call>{{ c.function | tojson }}</tool_call>{% endfor %}\
<|im_end|>\n{% endfor %}{% if tools %}{{ tools | tojson }}{% endif %}\
{%- if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";
const LLAMA3: &str = "{# <|start_header_id|> parameters #}{{ tools }}{{ messages[-1].content }}:";
const MISTRAL: &str = "{# [TOOL_CALLS] #}{{ tools }}{{ messages[-1].content }}:";
const MISTRAL_NAMED: &str = "{# [TOOL_CALLS][ARGS] #}{{ tools }}{{ messages[-1].content }}:";
const DEEPSEEK: &str = "{# <｜tool▁call▁begin｜> #}{{ tools }}{{ messages[-1].content }}:";
const DEEPSEEK_R1: &str =
    "{# <｜tool▁call▁begin｜>```json #}{{ tools }}{{ messages[-1].content }}:";

pub struct Api {
    pub router: Router,
    host: Host,
}

fn source(gguf: Option<Vec<u8>>) -> (ModelSource, Option<tempfile::TempDir>) {
    let Some(gguf) = gguf else { return (ModelSource::Embedded, None) };
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.gguf");
    std::fs::write(&path, gguf).unwrap();
    (ModelSource::File(path), Some(dir))
}

fn start(gguf: Option<Vec<u8>>, options: ServeOptions, script: Option<Script>) -> Api {
    start_with(gguf, options, script, 512)
}

/// A model with a context of `n_ctx`.
fn start_with(
    gguf: Option<Vec<u8>>,
    options: ServeOptions,
    script: Option<Script>,
    n_ctx: u32,
) -> Api {
    let (source, _dir) = source(gguf);
    // The small encoder knows as many positions as it was made with.
    let n_ctx = (source == ModelSource::Embedded).then_some(n_ctx);
    let (name, aliases) = ("test-model", &["other-name"]);
    let host = Hosted { name, aliases, source, n_ctx, n_parallel: 2, script }.start();
    Api { router: router(Server::new(host.clone(), options)), host }
}

/// The default model.
pub fn real() -> Api {
    start(None, ServeOptions { n_predict: Some(48), ..ServeOptions::default() }, None)
}

/// The model of a file.
pub fn of(gguf: Vec<u8>) -> Api {
    start(Some(gguf), ServeOptions { n_predict: Some(4), ..ServeOptions::default() }, None)
}

/// A model with this template that says `text` whatever it is asked.
pub fn saying(template: &str, text: &str) -> Api {
    let options = ServeOptions {
        n_predict: Some(160),
        n_draft_max: 4,
        chat_template: Some(template.to_owned()),
        ..ServeOptions::default()
    };
    start(None, options, Some(says(text)))
}

/// Goes on from where the end of the history stands in `text`, then ends.
fn says(text: &str) -> Script {
    let model = Model::load(&ModelSource::Embedded, &LoadOptions::default()).unwrap();
    let tokens = model.tokenizer().encode(text, Default::default()).unwrap();
    let eos = model.tokenizer().special().eos.unwrap();
    Box::new(move |history: &[TokenId]| {
        let n = tokens.len().min(history.len());
        let at = (0..=n).rev().find(|&k| history.ends_with(&tokens[..k])).unwrap_or(0);
        tokens.get(at).copied().unwrap_or(eos)
    })
}

impl Api {
    async fn respond(&self, method: &str, path: &str, body: &str) -> Response<Body> {
        let request = Request::builder().method(method).uri(path);
        let request =
            request.header("host", "localhost").header("content-type", "application/json");
        let request = request.body(Body::from(body.to_owned())).unwrap();
        let service = TowerToHyperService::new(self.router.clone());
        service.call(request).await.unwrap()
    }

    pub async fn send(&self, method: &str, path: &str, body: &str) -> (u16, String) {
        let response = self.respond(method, path, body).await;
        let status = response.status().as_u16();
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8(bytes.to_vec()).unwrap())
    }

    pub async fn json(&self, method: &str, path: &str, body: &Value) -> (u16, Value) {
        let (status, text) = self.send(method, path, &body.to_string()).await;
        (status, serde_json::from_str(&text).unwrap_or_else(|_| json!(text)))
    }

    pub async fn post(&self, path: &str, body: Value) -> Value {
        let (status, answer) = self.json("POST", path, &body).await;
        assert_eq!(status, 200, "{answer}");
        answer
    }

    async fn chat(&self, body: Value) -> Value {
        self.post("/v1/chat/completions", with_defaults(body)).await
    }

    /// The frames of a stream but the last, which says that it is done.
    async fn stream(&self, path: &str, mut body: Value) -> Vec<Value> {
        body["stream"] = true.into();
        let (status, text) = self.send("POST", path, &body.to_string()).await;
        assert_eq!(status, 200, "{text}");
        let frames = text.strip_suffix("data: [DONE]\n\n").expect("the last frame");
        let frames = frames.split_terminator("\n\n").filter(|frame| *frame != ":");
        frames.map(|f| serde_json::from_str(f.strip_prefix("data: ").unwrap()).unwrap()).collect()
    }

    /// The error of a request that is wrong: its field and its message.
    async fn wrong(&self, path: &str, body: Value) -> (String, String) {
        let (status, answer) = self.json("POST", path, &body).await;
        assert_eq!(status, 400, "{answer}");
        let error = &answer["error"];
        assert_eq!(error["code"], 400);
        let text = |key: &str| error[key].as_str().unwrap_or_default().to_owned();
        (text("param"), text("message"))
    }
}

/// A greedy chat of one message.
fn with_defaults(mut body: Value) -> Value {
    for (key, value) in [
        ("messages", json!([{"role": "user", "content": "What is the weather?"}])),
        ("temperature", json!(0)),
    ] {
        if body.get(key).is_none() {
            body[key] = value;
        }
    }
    body
}

fn tools() -> Value {
    json!([
        {"type": "function", "function": {
            "name": "weather",
            "description": "Tells the weather.",
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"enum": ["Rome", "Oslo"]},
                    "days": {"type": "integer", "minimum": 1, "maximum": 9},
                },
                "required": ["city", "days"],
            },
        }},
        {"type": "function", "function": {"name": "now"}},
    ])
}

/// A streamed message put together again, as a client does it.
fn joined(frames: &[Value]) -> (Value, Value) {
    let mut message = json!({"content": "", "reasoning_content": "", "tool_calls": []});
    let mut finish = Value::Null;
    for choice in frames.iter().filter_map(|frame| frame["choices"].get(0)) {
        let delta = &choice["delta"];
        for key in ["content", "reasoning_content"] {
            if let Some(text) = delta[key].as_str() {
                message[key] = format!("{}{text}", message[key].as_str().unwrap()).into();
            }
        }
        for call in delta["tool_calls"].as_array().into_iter().flatten() {
            let idx = call["index"].as_u64().unwrap() as usize;
            let calls = message["tool_calls"].as_array_mut().unwrap();
            if idx == calls.len() {
                assert!(call["id"].as_str().is_some_and(|id| !id.is_empty()));
                assert_eq!(call["type"], "function");
                calls.push(json!({"name": call["function"]["name"], "arguments": ""}));
            }
            let arguments = &mut calls[idx]["arguments"];
            let more = call["function"]["arguments"].as_str().unwrap();
            *arguments = format!("{}{more}", arguments.as_str().unwrap()).into();
        }
        if !choice["finish_reason"].is_null() {
            finish = choice["finish_reason"].clone();
        }
    }
    (message, finish)
}

/// Names and arguments of a message's calls.
fn calls_of(message: &Value) -> Vec<(String, Value)> {
    let calls = message["tool_calls"].as_array().cloned().unwrap_or_default();
    let call = |call: &Value| {
        let function = call.get("function").unwrap_or(call);
        let arguments = function["arguments"].as_str().expect("arguments are a JSON text");
        let arguments = serde_json::from_str(arguments).expect("that parses");
        (function["name"].as_str().unwrap().to_owned(), arguments)
    };
    calls.iter().map(call).collect()
}

#[tokio::test]
async fn models_are_listed_with_their_numbers() {
    let api = real();
    for path in ["/v1/models", "/models"] {
        let (status, list) = api.json("GET", path, &json!({})).await;
        assert_eq!((status, &list["object"]), (200, &json!("list")));
        let model = &list["data"][0];
        assert_eq!((&model["id"], &model["object"]), (&json!("test-model"), &json!("model")));
        let meta = &model["meta"];
        assert_eq!(meta["n_ctx_train"], 1024);
        assert_eq!(meta["n_embd"], 256);
        assert_eq!(meta["vocab_type"], 2);
        assert!(meta["n_params"].as_u64().unwrap() > 5_000_000);
        assert!(meta["size"].as_u64().unwrap() > 5_000_000);
        assert_eq!(list["models"][0]["name"], "test-model");
    }
    let (status, one) = api.json("GET", "/v1/models/other-name", &json!({})).await;
    assert_eq!((status, &one["id"]), (200, &json!("test-model")));
    let (status, error) = api.json("GET", "/v1/models/a/b", &json!({})).await;
    assert_eq!(status, 404);
    assert!(error["error"]["message"].as_str().unwrap().contains("test-model"));
}

#[tokio::test]
async fn a_chat_says_the_same_whole_and_streamed() {
    let api = real();
    let body = json!({"model": "any", "messages": [
        {"role": "user", "content": [
            {"type": "text", "text": "Add two"}, {"type": "text", "text": "numbers."},
        ]},
    ], "temperature": 0, "max_tokens": 24});
    let whole = api.post("/v1/chat/completions", body.clone()).await;
    assert_eq!(whole["object"], "chat.completion");
    assert_eq!(whole["model"], "test-model", "the name of the model that answered");
    assert!(whole["id"].as_str().unwrap().starts_with("chatcmpl-"));
    let message = &whole["choices"][0]["message"];
    assert_eq!(message["role"], "assistant");
    let usage = &whole["usage"];
    assert!(usage["prompt_tokens"].as_u64().unwrap() > 10);
    assert_eq!(whole["timings"]["predicted_n"], usage["completion_tokens"]);
    let mut streamed = body;
    streamed["stream_options"] = json!({"include_usage": true});
    let frames = api.stream("/v1/chat/completions", streamed).await;
    assert_eq!(frames[0]["choices"][0]["delta"]["role"], "assistant");
    let (joined, finish) = joined(&frames);
    assert_eq!(joined["content"], message["content"]);
    assert_eq!(finish, whole["choices"][0]["finish_reason"]);
    let last = frames.last().unwrap();
    assert_eq!(last["choices"], json!([]));
    assert_eq!(last["usage"]["total_tokens"], usage["total_tokens"]);
    assert!(last["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap() > 0);
    assert!(last["timings"]["prompt_n"].is_u64());
    let ids: Vec<&Value> = frames.iter().map(|frame| &frame["id"]).collect();
    assert!(ids.iter().all(|id| *id == ids[0]));
}

#[tokio::test]
async fn completions_of_every_kind_of_prompt() {
    let api = real();
    let ask = async |body: Value| {
        let mut body = body;
        body["temperature"] = 0.into();
        body["max_tokens"] = 6.into();
        api.post("/v1/completions", body).await
    };
    let text = ask(json!({"prompt": "def add(a, b):"})).await;
    let first = text["choices"][0]["text"].clone();
    let echoed = ask(json!({"prompt": "def add(a, b):", "echo": true})).await;
    let expected = format!("def add(a, b):{}", first.as_str().unwrap());
    assert_eq!(echoed["choices"][0]["text"], expected);
    let several = ask(json!({"prompt": ["def add(a, b):", "import os"], "n": 2})).await;
    let choices = several["choices"].as_array().unwrap();
    assert_eq!(
        choices.iter().map(|c| c["index"].as_u64().unwrap()).collect::<Vec<_>>(),
        [0, 1, 2, 3]
    );
    assert_eq!((&choices[0]["text"], &choices[1]["text"]), (&first, &first));
    let tokens =
        api.post("/tokenize", json!({"content": "def add(a, b):"})).await["tokens"].clone();
    for prompt in [tokens.clone(), json!([tokens])] {
        assert_eq!(ask(json!({"prompt": prompt})).await["choices"][0]["text"], first);
    }
    let with_hole = ask(json!({"prompt": "def add(a, b):\n    return ", "suffix": "\n"})).await;
    assert_eq!(with_hole["object"], "text_completion");
    let probs = ask(json!({"prompt": "def add(a, b):", "logprobs": 3})).await;
    let logprobs = &probs["choices"][0]["logprobs"];
    let tokens = logprobs["tokens"].as_array().unwrap();
    assert_eq!(tokens.iter().map(|t| t.as_str().unwrap()).collect::<String>(), first);
    assert!(logprobs["top_logprobs"][0].as_object().unwrap().len() == 3);
    assert_eq!(logprobs["text_offset"][0], 0);
    assert!(logprobs["token_logprobs"][0].as_f64().unwrap() <= 0.0);
    let frames = api
        .stream(
            "/v1/completions",
            json!({
                "prompt": "def add(a, b):", "temperature": 0, "max_tokens": 6, "logprobs": 1,
            }),
        )
        .await;
    let texts = frames.iter().filter_map(|f| f["choices"][0]["text"].as_str());
    assert_eq!(texts.collect::<String>(), first);
}

#[tokio::test]
async fn answers_share_a_prompt_and_seeds_repeat_them() {
    let api = real();
    let body = json!({
        "n": 3, "seed": 7, "temperature": 1.5, "max_tokens": 12, "top_logprobs": 2,
        "logprobs": true,
    });
    let one = api.chat(body.clone()).await;
    let two = api.chat(body.clone()).await;
    let texts = |answer: &Value| -> Vec<Value> {
        let choices = answer["choices"].as_array().unwrap();
        choices.iter().map(|choice| choice["message"]["content"].clone()).collect()
    };
    assert_eq!(texts(&one).len(), 3);
    assert_eq!(texts(&one), texts(&two));
    let prompt = api.chat(json!({"max_tokens": 1})).await["usage"]["prompt_tokens"].clone();
    assert_eq!(one["usage"]["prompt_tokens"], prompt, "the prompt counts once");
    let content = one["choices"][0]["logprobs"]["content"].as_array().unwrap();
    let tokens: String = content.iter().map(|t| t["token"].as_str().unwrap()).collect();
    assert_eq!(tokens, one["choices"][0]["message"]["content"]);
    assert_eq!(content[0]["top_logprobs"].as_array().unwrap().len(), 2);
    let frames = api.stream("/v1/chat/completions", with_defaults(body)).await;
    for idx in 0..3 {
        let own = frames.iter().filter(|frame| frame["choices"][0]["index"] == idx);
        let (message, _) = joined(&own.cloned().collect::<Vec<_>>());
        assert_eq!(message["content"], one["choices"][idx]["message"]["content"]);
    }
}

/// What the families say, and with which template.
fn families() -> Vec<(&'static str, &'static str, &'static str)> {
    vec![
        (
            HERMES,
            "hermes",
            "Let me see.\n<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": \"Rome\", \
             \"days\": 3}}\n</tool_call>",
        ),
        (
            LLAMA3,
            "llama3",
            "{\"name\": \"weather\", \"parameters\": {\"city\": \"Rome\", \"days\": 3}}",
        ),
        (
            MISTRAL,
            "mistral",
            "[TOOL_CALLS][{\"name\": \"weather\", \
             \"arguments\": {\"city\": \"Rome\", \"days\": 3}}]",
        ),
        (
            MISTRAL_NAMED,
            "mistral named",
            "[TOOL_CALLS]weather[ARGS]{\"city\": \"Rome\", \"days\": 3}",
        ),
        (
            DEEPSEEK,
            "deepseek",
            "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>weather<｜tool▁sep｜>{\"city\": \"Rome\", \
             \"days\": 3}<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        ),
        (
            DEEPSEEK_R1,
            "deepseek r1",
            "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>weather\n```json\n\
             {\"city\": \"Rome\", \"days\": 3}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        ),
        (
            "chatml",
            "generic",
            "{\"tool_calls\": [{\"name\": \"weather\", \
             \"arguments\": {\"city\": \"Rome\", \"days\": 3}}]}",
        ),
    ]
}

#[tokio::test]
async fn every_family_calls_tools_whole_and_streamed() {
    for (template, name, text) in families() {
        let api = saying(template, text);
        for choice in ["auto", "required"] {
            if choice == "required" && name == "hermes" {
                // It says something first, which a forced call does not allow.
                continue;
            }
            let body = with_defaults(json!({"tools": tools(), "tool_choice": choice}));
            let whole = api.chat(body.clone()).await;
            let message = &whole["choices"][0]["message"];
            let expected = [("weather".to_owned(), json!({"city": "Rome", "days": 3}))];
            assert_eq!(calls_of(message), expected, "{name} {choice}: {message}");
            assert_eq!(whole["choices"][0]["finish_reason"], "tool_calls", "{name}");
            let content = if name == "hermes" { json!("Let me see.") } else { Value::Null };
            assert_eq!(message["content"], content, "{name}");
            let frames = api.stream("/v1/chat/completions", body).await;
            let (streamed, finish) = joined(&frames);
            assert_eq!(calls_of(&streamed), expected, "{name} {choice}");
            assert_eq!(finish, "tool_calls");
        }
    }
}

#[tokio::test]
async fn a_call_can_be_forced_or_forbidden() {
    for (template, name, text) in families() {
        // The model would rather chat; the grammar lets it call alone.
        let api = saying(template, "Hello there, no call.");
        for choice in
            [json!("required"), json!({"type": "function", "function": {"name": "weather"}})]
        {
            let body = json!({
                "tools": tools(), "tool_choice": choice, "parallel_tool_calls": false,
                "max_tokens": 200, "seed": 1,
            });
            let answer = api.chat(body).await;
            let calls = calls_of(&answer["choices"][0]["message"]);
            assert_eq!(calls.len(), 1, "{name}: {answer}");
            if choice.is_object() || calls[0].0 == "weather" {
                assert_eq!(calls[0].0, "weather", "{name}");
                assert!(["Rome", "Oslo"].contains(&calls[0].1["city"].as_str().unwrap()));
                assert!((1..=9).contains(&calls[0].1["days"].as_i64().unwrap()));
            }
            assert_eq!(answer["choices"][0]["finish_reason"], "tool_calls");
        }
        let api = saying(template, text);
        let answer = api.chat(json!({"tools": tools(), "tool_choice": "none"})).await;
        let message = &answer["choices"][0]["message"];
        assert_eq!(message.get("tool_calls"), None, "{name}");
        assert_eq!(message["content"], text, "without tools it is text");
        assert_eq!(answer["choices"][0]["finish_reason"], "stop");
    }
}

#[tokio::test]
async fn several_calls_and_their_answers() {
    let text = "<tool_call>{\"name\": \"now\", \"arguments\": {}}</tool_call>\n\
                <tool_call>{\"name\": \"weather\", \
                \"arguments\": {\"city\": \"Oslo\", \"days\": 1}}</tool_call>";
    let api = saying(HERMES, text);
    let answer = api.chat(json!({"tools": tools()})).await;
    let message = answer["choices"][0]["message"].clone();
    let names: Vec<String> = calls_of(&message).into_iter().map(|call| call.0).collect();
    assert_eq!(names, ["now", "weather"]);
    let ids = [&message["tool_calls"][0]["id"], &message["tool_calls"][1]["id"]];
    assert!(ids[0] != ids[1] && ids[0].as_str().unwrap().starts_with("call_"));
    let messages = json!([
        {"role": "user", "content": "Weather?"},
        message,
        {"role": "tool", "tool_call_id": ids[0], "content": "noon"},
        {"role": "tool", "tool_call_id": ids[1], "content": "rain"},
    ]);
    for template in [HERMES, "chatml", MISTRAL] {
        let api = saying(template, "It rains.");
        let answer =
            api.chat(json!({"tools": tools(), "messages": messages, "tool_choice": "none"}));
        assert_eq!(answer.await["choices"][0]["message"]["content"], "It rains.");
    }
}

#[tokio::test]
async fn an_answer_fits_its_schema() {
    let api = saying("chatml", "I would rather tell you a story.");
    let schema = json!({
        "type": "object",
        "properties": {"ok": {"type": "boolean"}, "kind": {"enum": ["a", "b"]}},
        "required": ["ok", "kind"], "additionalProperties": false,
    });
    let format = json!({"type": "json_schema", "json_schema": {"name": "x", "schema": schema}});
    let answer = api.chat(json!({"response_format": format, "max_tokens": 60})).await;
    let text = answer["choices"][0]["message"]["content"].as_str().unwrap();
    let value: Value = serde_json::from_str(text).unwrap();
    assert!(value["ok"].is_boolean() && ["a", "b"].contains(&value["kind"].as_str().unwrap()));
    let gbnf = json!({"grammar": "root ::= \"yes\" | \"no\"", "max_tokens": 9});
    let answer = api.chat(gbnf).await;
    let text = answer["choices"][0]["message"]["content"].as_str().unwrap().to_owned();
    assert!(["yes", "no"].contains(&text.as_str()), "{text}");
    // With tools beside it, the answer still fits where it is no call.
    let api = saying(HERMES, "A story.");
    let body = json!({"tools": tools(), "response_format": format, "parallel_tool_calls": false});
    let message = api.chat(body).await["choices"][0]["message"].clone();
    if calls_of(&message).is_empty() {
        let value: Value = serde_json::from_str(message["content"].as_str().unwrap()).unwrap();
        assert!(value["ok"].is_boolean());
    }
    let cut = api.chat(json!({"response_format": format, "max_tokens": 3})).await;
    assert_eq!(cut["choices"][0]["finish_reason"], "length", "what is cut says so");
}

#[tokio::test]
async fn reasoning_is_told_apart() {
    let template = "{# </think> #}{{ messages[-1].content }}:";
    let api = saying(template, "<think>\nTwo and two.\n</think>\n\nFour.");
    let answer = api.chat(json!({})).await;
    let message = &answer["choices"][0]["message"];
    assert_eq!(message["reasoning_content"], "Two and two.");
    assert_eq!(message["content"], "Four.");
    let frames = api.stream("/v1/chat/completions", with_defaults(json!({}))).await;
    let (streamed, _) = joined(&frames);
    assert_eq!(streamed["reasoning_content"], "Two and two.");
    assert_eq!(streamed["content"], "Four.");
    let raw = api.chat(json!({"reasoning_format": "none"})).await;
    let text = raw["choices"][0]["message"]["content"].as_str().unwrap();
    assert!(text.starts_with("<think>") && text.ends_with("Four."));
    let opened = saying("{{ messages[-1].content }}:<think>\n", "Two.\n</think>\nFour.");
    let message = opened.chat(json!({})).await["choices"][0]["message"].clone();
    assert_eq!(
        (&message["reasoning_content"], &message["content"]),
        (&json!("Two."), &json!("Four."))
    );
}

#[tokio::test]
async fn stops_lengths_and_continuations() {
    let api = saying(HERMES, "one two three four");
    let reason = |answer: &Value| answer["choices"][0]["finish_reason"].clone();
    let content = |answer: &Value| answer["choices"][0]["message"]["content"].clone();
    let answer = api.chat(json!({"stop": [" three"]})).await;
    assert_eq!((content(&answer), reason(&answer)), (json!("one two"), json!("stop")));
    let answer = api.chat(json!({"max_completion_tokens": 1})).await;
    assert_eq!(reason(&answer), "length");
    let messages = json!([
        {"role": "user", "content": "Count."}, {"role": "assistant", "content": "one two"},
    ]);
    let answer = api.chat(json!({"messages": messages})).await;
    assert_eq!(content(&answer), " three four", "the assistant's message is continued");
    let answer = api.chat(json!({
        "messages": messages, "continue_final_message": false, "add_generation_prompt": true,
    }));
    assert_eq!(content(&answer.await), "one two three four");
    let answer =
        api.chat(json!({"prediction": {"type": "content", "content": "one two three four"}}));
    assert_eq!(content(&answer.await), "one two three four", "a guess changes nothing");
}

#[tokio::test]
async fn an_answer_fits_its_regular_expression_or_lark_grammar() {
    let api = saying("chatml", "I would rather tell you a story.");
    let fits = |text: &str| ["yes7", "no7"].contains(&text);
    for (field, text) in [("regex", "(yes|no)7"), ("lark", "start: (\"yes\" | \"no\") \"7\"")] {
        let answer = api.chat(json!({field: text, "max_tokens": 20})).await;
        let choice = &answer["choices"][0];
        assert!(fits(choice["message"]["content"].as_str().unwrap()), "{field} {choice}");
        assert_eq!(choice["finish_reason"], "stop");
        let body = json!({"prompt": "x", field: text, "max_tokens": 20});
        let answer = api.post("/v1/completions", body).await;
        assert!(fits(answer["choices"][0]["text"].as_str().unwrap()), "{field} {answer}");
        for (other, value) in [
            ("grammar", json!("root ::= \"a\"")),
            ("json_schema", json!({"type": "object"})),
            ("response_format", json!({"type": "json_object"})),
            ("tools", tools()),
        ] {
            let body = with_defaults(json!({field: text, other: value}));
            let (param, message) = api.wrong("/v1/chat/completions", body).await;
            assert!(param == field && message.contains(other), "{field} {other}: {message}");
        }
        let long = with_defaults(json!({field: "a".repeat(GRAMMAR_BYTES_MAX + 1)}));
        let (param, message) = api.wrong("/v1/chat/completions", long).await;
        assert!(param == field && message.contains("bytes"), "{field}: {message}");
    }
}

#[tokio::test]
async fn a_conversation_that_is_too_long_is_refused_or_cut() {
    let api = saying(HERMES, "fine");
    let mut messages = vec![json!({"role": "system", "content": "Be brief."})];
    for i in 0..60 {
        messages.push(json!({"role": "user", "content": format!("This is message number {i}.")}));
        messages.push(json!({"role": "assistant", "content": "I hear you."}));
    }
    messages.push(json!({"role": "user", "content": "And now?"}));
    let (status, error) =
        api.json("POST", "/v1/chat/completions", &json!({"messages": messages})).await;
    assert_eq!(status, 400);
    let error = &error["error"];
    assert_eq!(error["type"], "exceed_context_size_error");
    assert_eq!((&error["n_ctx"], &error["param"]), (&json!(512), &json!("messages")));
    assert!(error["n_prompt_tokens"].as_u64().unwrap() > 512);
    let body = json!({"messages": messages, "truncate_prompt": "start", "max_tokens": 64});
    let answer = api.chat(body).await;
    let n_dropped = answer["truncated"]["n_dropped"].as_u64().unwrap();
    let n_prompt = answer["usage"]["prompt_tokens"].as_u64().unwrap();
    assert_eq!(n_dropped + n_prompt, error["n_prompt_tokens"].as_u64().unwrap());
    assert!(n_prompt <= 512 - 64);
    let prompt = "word ".repeat(600);
    let body = json!({"prompt": prompt, "truncate_prompt": "middle", "max_tokens": 4});
    let answer = api.post("/v1/completions", body).await;
    assert!(answer["truncated"]["n_dropped"].as_u64().unwrap() > 0);
    let (param, message) = api.wrong("/v1/completions", json!({"prompt": prompt})).await;
    assert!(param == "prompt" && message.contains("512"), "{message}");
}

#[tokio::test]
async fn a_wrong_field_is_named() {
    let api = real();
    let chat = |field: &str, value: Value| {
        let mut body = with_defaults(json!({}));
        body[field] = value;
        body
    };
    let bad_tool = json!([{"type": "function", "function": {"name": "f", "parameters": 3}}]);
    for (field, value, param) in [
        ("messages", json!("hi"), "messages"),
        ("messages", json!([]), "messages"),
        ("messages", json!([{"role": "boss", "content": ""}]), "messages[0].role"),
        ("messages", json!([{"role": "user"}]), "messages[0].content"),
        (
            "messages",
            json!([{"role": "user", "content": [{"type": "image_url"}]}]),
            "messages[0].content[0].type",
        ),
        ("temperature", json!("hot"), "temperature"),
        ("top_p", json!(2), "top_p"),
        ("frequency_penalty", json!("x"), "frequency_penalty"),
        ("n", json!(0), "n"),
        ("n", json!(100_000), "n"),
        ("max_tokens", json!(-5), "max_tokens"),
        ("stop", json!([1]), "stop"),
        ("logit_bias", json!({"5": "much"}), "logit_bias"),
        ("logit_bias", json!({"999999": 1}), "logit_bias"),
        ("top_logprobs", json!(3), "top_logprobs"),
        ("tools", bad_tool, "tools[0].function.parameters"),
        ("tool_choice", json!("required"), "tool_choice"),
        ("response_format", json!({"type": "xml"}), "response_format.type"),
        (
            "response_format",
            json!({"type": "json_schema", "json_schema": {"schema": {"type": "nonsense"}}}),
            "response_format",
        ),
        ("grammar", json!("root ::= ("), "grammar"),
        ("regex", json!("(a"), "regex"),
        ("lark", json!("start: ("), "lark"),
        ("functions", json!([{"name": "f"}]), "functions"),
        ("audio", json!({"voice": "x"}), "audio"),
        ("modalities", json!(["audio"]), "modalities"),
        ("prediction", json!({"type": "magic"}), "prediction"),
        ("reasoning_format", json!("loud"), "reasoning_format"),
        ("priority", json!("first"), "priority"),
        ("on_disconnect", json!("shrug"), "on_disconnect"),
        ("truncate_prompt", json!("end"), "truncate_prompt"),
        ("stream_options", json!({"include_usage": 1}), "stream_options.include_usage"),
        ("samplers", json!(["beam"]), "samplers"),
        ("request_id", json!("two words"), "request_id"),
        ("lora", json!([{"id": "x"}]), "lora"),
    ] {
        let (got, message) = api.wrong("/v1/chat/completions", chat(field, value)).await;
        assert_eq!(got, param, "{field}: {message}");
    }
}

#[tokio::test]
async fn a_wrong_field_of_a_completion_is_named_and_a_strange_one_passed_over() {
    let api = real();
    for (body, param) in [
        (json!({}), "prompt"),
        (json!({"prompt": {"a": 1}}), "prompt"),
        (json!({"prompt": [1, 99_999_999]}), "prompt"),
        (json!({"prompt": "a", "best_of": 4}), "best_of"),
        (json!({"prompt": "a", "echo": true, "logprobs": 1}), "echo"),
        (json!({"prompt": ["a", "b"], "suffix": "c"}), "suffix"),
        (json!({"prompt": "a", "logprobs": true}), "logprobs"),
    ] {
        let (got, message) = api.wrong("/v1/completions", body.clone()).await;
        assert_eq!(got, param, "{body}: {message}");
    }
    let (status, error) = api.send("POST", "/v1/chat/completions", "{\"messages\":").await;
    assert_eq!(status, 400);
    assert!(error.contains("not valid JSON"), "{error}");
    let known = json!({"store": true, "metadata": {"a": "b"}, "user": "u", "service_tier": "auto",
        "max_tokens": 1, "id_slot": -1, "cache_prompt": true, "t_max_predict_ms": 1000,
        "timings_per_token": true, "mirostat": 0, "functions": []});
    api.chat(known).await;
}

#[tokio::test]
async fn progress_and_timings_stream_where_asked_for() {
    let api = saying(HERMES, "one two three");
    let frames = api
        .stream(
            "/v1/chat/completions",
            with_defaults(json!({
                "return_progress": true, "timings_per_token": true,
            })),
        )
        .await;
    let progress: Vec<&Value> = frames.iter().filter_map(|f| f.get("prompt_progress")).collect();
    let last = progress.last().expect("progress");
    assert_eq!(last["processed"], last["total"]);
    let grown = |f: &&Value| f["choices"][0]["delta"]["content"].is_string();
    assert!(frames.iter().filter(grown).all(|frame| frame["timings"]["predicted_n"].is_u64()));
}

/// After a few tokens the model waits until the reader has left, so nothing depends on time.
#[tokio::test]
async fn a_reader_who_leaves_ends_the_request_unless_it_is_detached() {
    for (mode, finish) in [("cancel", Finish::Canceled), ("detach", Finish::Length)] {
        let (reader_is_here, gate) = std::sync::mpsc::channel::<()>();
        let n_calls = std::sync::atomic::AtomicUsize::new(0);
        let counts: Script = Box::new(move |history: &[TokenId]| {
            if n_calls.fetch_add(1, std::sync::atomic::Ordering::Relaxed) >= 4 {
                let _ = gate.recv();
            }
            300 + (history.len() % 90) as TokenId
        });
        let api = start(None, ServeOptions::default(), Some(counts));
        let body = json!({"stream": true, "max_tokens": 40, "on_disconnect": mode});
        let body = with_defaults(body).to_string();
        let mut answer = api.respond("POST", "/v1/chat/completions", &body).await.into_body();
        assert!(answer.frame().await.is_some());
        drop(answer);
        drop(reader_is_here);
        let engine = api.host.engines().remove(0).1;
        let timeline = loop {
            // The engine answers between two steps.
            engine.slots().await.unwrap();
            if let Some(timeline) = engine.timelines().pop() {
                break timeline;
            }
        };
        assert_eq!(timeline.finish, finish, "{mode}");
        if mode == "detach" {
            assert_eq!(timeline.timings.n_generated, 40);
        }
        while api.host.models()[0].n_lease > 0 {
            tokio::task::yield_now().await;
        }
    }
}

#[tokio::test]
async fn embeddings_have_length_one_in_both_encodings() {
    let recipe = Recipe::read("bert-mean");
    let gguf = recipe.build(TensorType::F32);
    let api = start(
        Some(gguf),
        ServeOptions { serves_embeddings: true, ..ServeOptions::default() },
        None,
    );
    let body = json!({"input": ["hello world", "another"], "model": "x"});
    let answer = api.post("/v1/embeddings", body).await;
    assert_eq!(answer["object"], "list");
    let vector = |answer: &Value, idx: usize| -> Vec<f32> {
        let items = answer["data"][idx]["embedding"].as_array().unwrap();
        items.iter().map(|x| x.as_f64().unwrap() as f32).collect()
    };
    let (a, b) = (vector(&answer, 0), vector(&answer, 1));
    assert!((a.iter().map(|x| x * x).sum::<f32>() - 1.0).abs() < 1e-4);
    assert_ne!(a, b);
    assert_eq!(answer["data"][1]["index"], 1);
    assert_eq!(answer["usage"]["prompt_tokens"], answer["usage"]["total_tokens"]);
    let body = json!({"input": "hello world", "encoding_format": "base64"});
    let text = api.post("/v1/embeddings", body).await["data"][0]["embedding"].clone();
    assert_eq!(text.as_str().unwrap().len(), (a.len() * 4).div_ceil(3) * 4);
    for (body, param) in [
        (json!({"input": "a", "dimensions": 8}), "dimensions"),
        (json!({"input": "a", "encoding_format": "hex"}), "encoding_format"),
        (json!({"input": {"a": 1}}), "input"),
        (json!({}), "input"),
    ] {
        assert_eq!(api.wrong("/v1/embeddings", body).await.0, param);
    }
    let (status, _) = real().json("POST", "/v1/embeddings", &json!({"input": "a"})).await;
    assert_eq!(status, 501, "a model that writes makes no embeddings");
}

/// The SDK's own opinion of the real binary; `JETFORGE_TEST_SDK_PYTHON` names a Python that has it.
#[test]
fn the_openai_sdk_is_content() {
    let Some(python) = python_with("openai", "openai-sdk") else { return };
    let home = tempfile::tempdir().unwrap();
    let encoder = home.path().join("encoder.gguf");
    std::fs::write(&encoder, Recipe::read("bert-mean").build(TensorType::F32)).unwrap();
    let writer = Process::start(home.path(), &["-c", "1024", "-np", "2", "-n", "48"]);
    let embedder = Process::start(home.path(), &["-m", encoder.to_str().unwrap()]);
    let url = |service: &Process| format!("http://{}/v1", service.address);
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/sdk/openai_sdk.py");
    let output = Command::new(python)
        .args([script, &url(&writer), "--embeddings", &url(&embedder)])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}\n{}", String::from_utf8_lossy(&output.stderr));
}

/// Templates of real models: each takes a conversation with calls and their answers, and a forced
/// call in the form that its family has.
#[tokio::test]
async fn templates_of_real_models_take_calls_and_their_answers() {
    let Some(folder) = std::env::var_os("JETFORGE_TEST_PEER_VOCABS") else {
        skip(
            "peer-templates",
            "JETFORGE_TEST_PEER_VOCABS names no folder with llama.cpp's templates",
        );
        return;
    };
    let call = json!({"id": "call_1", "type": "function", "function": {
        "name": "weather", "arguments": "{\"city\": \"Rome\", \"days\": 2}",
    }});
    let messages = json!([
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "How is the weather?"},
        {"role": "assistant", "content": null, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "sunny"},
        {"role": "assistant", "content": "It is sunny."},
        {"role": "user", "content": "And now?"},
    ]);
    let mut found = Vec::new();
    for name in [
        "Qwen-Qwen2.5-7B-Instruct",
        "Qwen-Qwen3-0.6B",
        "Qwen-QwQ-32B",
        "Qwen3-Coder",
        "NousResearch-Hermes-2-Pro-Llama-3-8B-tool_use",
        "NousResearch-Hermes-3-Llama-3.1-8B-tool_use",
        "HuggingFaceTB-SmolLM3-3B",
        "meta-llama-Llama-3.1-8B-Instruct",
        "meta-llama-Llama-3.2-3B-Instruct",
        "meta-llama-Llama-3.3-70B-Instruct",
        "mistralai-Mistral-Nemo-Instruct-2407",
        "Mistral-Small-3.2-24B-Instruct-2506",
        "unsloth-mistral-Devstral-Small-2507",
        "mistralai-Ministral-3-14B-Reasoning-2512",
        "deepseek-ai-DeepSeek-R1-Distill-Llama-8B",
        "deepseek-ai-DeepSeek-R1-Distill-Qwen-32B",
        "llama-cpp-deepseek-r1",
        "deepseek-ai-DeepSeek-V3.1",
        "google-gemma-2-2b-it",
        "microsoft-Phi-3.5-mini-instruct",
        "ibm-granite-granite-3.3-2B-Instruct",
    ] {
        let path = std::path::Path::new(&folder).join("templates").join(format!("{name}.jinja"));
        let template = std::fs::read_to_string(path).unwrap();
        let options = ServeOptions { chat_template: Some(template), ..ServeOptions::default() };
        let api = start_with(None, options, Some(says("</think>Well.")), 1024);
        for body in [
            json!({"messages": messages, "tools": tools(), "max_tokens": 8}),
            json!({"messages": messages, "tools": tools(), "tool_choice": "none", "max_tokens": 8}),
            json!({"messages": messages, "tools": tools(), "parallel_tool_calls": false,
                "max_tokens": 250, "temperature": 0, "tool_choice":
                {"type": "function", "function": {"name": "weather"}}}),
        ] {
            let (status, answer) = api.json("POST", "/v1/chat/completions", &body).await;
            let message = &answer["choices"][0]["message"];
            let forced = body["tool_choice"].is_object();
            if status != 200 {
                found.push(format!("{name}: {answer}"));
            } else if forced && message["tool_calls"].as_array().is_none_or(|c| c.len() != 1) {
                found.push(format!("{name}: no call: {answer}"));
            } else if forced {
                calls_of(message);
            }
        }
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
}
