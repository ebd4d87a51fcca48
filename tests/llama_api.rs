//! llama-server's dialect, held to what llama-server answers.
//!
//! tests/golden/llama_api.json has its answers to the requests of tests/tools/golden_llama_api.py,
//! on the default model. Here the same requests go to the router in this process. An answer has the
//! same status, the same fields of the same types, and where the model decides nothing by chance,
//! the same values. What is different on purpose is a row of `DIFFERENT`, with its reason.

use std::path::PathBuf;

use axum::Router;
use axum::body::Body;
use axum::http::{Request, StatusCode};
use http_body_util::BodyExt;
use hyper_util::service::TowerToHyperService;
use jetforge::inference::quant::TensorType;
use jetforge::inference::{LoadOptions, Model, ModelSource, Script};
use jetforge::server::{ServeOptions, Server, router};
use serde_json::{Value, json};

use crate::support::hosted::Hosted;
use crate::support::recipe::Recipe;

const GOLDEN: &str = include_str!("golden/llama_api.json");

/// Answers that are not llama-server's, and why.
const DIFFERENT: &[(&str, &str)] = &[
    ("n_predict 0", "no token is made; llama-server makes one"),
    ("stream n_predict 0", "no token is made; llama-server makes one"),
    ("infill warm", "no token is made; chunks are kept in a small context"),
    ("infill extra", "chunks are kept in a small context"),
    ("infill vim", "chunks are kept in a small context"),
    ("infill long", "the prefix is cut so that the answer fits, and the answer says so"),
    ("bad json", "400: it is the client's fault"),
    ("infill no prefix", "400: it is the client's fault"),
    ("infill no suffix", "400: it is the client's fault"),
    ("infill bad prompt", "400; llama-server writes the error and goes on"),
    ("prompt empty", "a slot that never ran has no tokens"),
    ("slots", "an idle slot does not show what ran before"),
    ("slots free", "an idle slot does not show what ran before"),
    ("slot erase", "which slot ran what is the scheduler's choice"),
    ("slot no such", "400: there is no such slot; llama-server takes another"),
    ("bad grammar", "the message says what is wrong in it"),
    ("json_schema", "white space follows llguidance"),
    ("stream progress", "a chunk of progress has no token; llama-server puts a 0 there"),
    ("props", "the path, the build and what is switched on are ours"),
];

/// Answers whose text or length may differ, and why; all else is compared. llama.cpp rounds
/// activations to eight bits before it multiplies them with this model's weights, so its logits
/// differ in the third digit, and a close call goes either way.
const CLOSE: &[(&str, &str)] = &[
    ("prompts", "one of them is a close call"),
    ("stream prompts", "one of them is a close call"),
    ("samplers none", "a draw from all tokens"),
    ("grammar", "the answer is over with its last letter; llama-server wants an end token besides"),
    ("everything", "a line that is indented too little is seen a token earlier"),
    ("control tokens", "a close call"),
    ("vim", "the infill sampler weighs the end of the text against the rest"),
    ("letters", "the infill sampler weighs the end of the text against the rest"),
];

struct Api {
    router: Router,
}

fn serve_options(dir: Option<PathBuf>) -> ServeOptions {
    ServeOptions {
        n_predict: Some(64),
        shows_slots: true,
        allows_props: true,
        slot_save_dir: dir,
        ..ServeOptions::default()
    }
}

fn api(n_ctx: u32, options: ServeOptions, script: Option<Script>) -> Api {
    api_of(ModelSource::Embedded, n_ctx, options, script)
}

fn api_of(source: ModelSource, n_ctx: u32, options: ServeOptions, script: Option<Script>) -> Api {
    let (name, n_ctx) = ("models/default.gguf", Some(n_ctx));
    let host = Hosted { name, aliases: &[], source, n_ctx, n_parallel: 2, script }.start();
    Api { router: router(Server::new(host, options)) }
}

/// A service over a small model of random weights.
fn api_of_recipe(case: &str, options: ServeOptions) -> Api {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    std::fs::write(&path, Recipe::read(case).build(TensorType::F32)).unwrap();
    api_of(ModelSource::File(path), 64, options, None)
}

/// A model that says this text and ends, after a prompt of other tokens.
fn says(text: &'static str) -> Script {
    let model = Model::load(&ModelSource::Embedded, &LoadOptions::default()).unwrap();
    let tokens = model.tokenizer().encode(text, Default::default()).unwrap();
    let eos = model.tokenizer().special().eos.unwrap();
    Box::new(move |history| {
        let n = tokens.len().min(history.len());
        let at = (0..=n).rev().find(|&k| history.ends_with(&tokens[..k]));
        tokens.get(at.unwrap_or(0)).copied().unwrap_or(eos)
    })
}

impl Api {
    async fn send(&self, method: &str, path: &str, body: Vec<u8>) -> (StatusCode, String) {
        use hyper::service::Service;
        let request = Request::builder().method(method).uri(path);
        let request = request.header("content-type", "application/json");
        let request = request.body(Body::from(body)).unwrap();
        let service = TowerToHyperService::new(self.router.clone());
        let response = service.call(request).await.unwrap();
        let status = response.status();
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8(bytes.to_vec()).unwrap())
    }

    async fn json(&self, method: &str, path: &str, body: Value) -> (u16, Value) {
        let (status, text) = self.send(method, path, body.to_string().into_bytes()).await;
        (status.as_u16(), serde_json::from_str(&text).unwrap_or_else(|_| json!(text)))
    }

    async fn post(&self, path: &str, body: Value) -> Value {
        let (status, answer) = self.json("POST", path, body).await;
        assert_eq!(status, 200, "{answer}");
        answer
    }

    async fn stream(&self, path: &str, body: Value) -> Vec<Value> {
        let (status, text) = self.send("POST", path, body.to_string().into_bytes()).await;
        assert_eq!(status, 200, "{text}");
        frames(&text)
    }
}

fn frames(text: &str) -> Vec<Value> {
    assert!(text.ends_with("\n\n"), "a stream ends with a whole frame");
    let frames = text.split_terminator("\n\n").filter(|frame| *frame != ":");
    frames.map(|f| serde_json::from_str(f.strip_prefix("data: ").unwrap()).unwrap()).collect()
}

/// Differences of shape: fields and types, deep.
fn shape(path: &str, ours: &Value, theirs: &Value, found: &mut Vec<String>) {
    match (ours, theirs) {
        (Value::Object(a), Value::Object(b)) => {
            for (key, value) in b {
                match a.get(key) {
                    Some(own) => shape(&format!("{path}/{key}"), own, value, found),
                    None => found.push(format!("{path}/{key} is missing")),
                }
            }
            for key in a.keys().filter(|key| !b.contains_key(*key)) {
                found.push(format!("{path}/{key} is not llama-server's"));
            }
        }
        (Value::Array(a), Value::Array(b)) => {
            if let (Some(a), Some(b)) = (a.first(), b.first()) {
                shape(&format!("{path}[]"), a, b, found);
            }
        }
        (Value::Number(_), Value::Number(_)) | (Value::Bool(_), Value::Bool(_)) => {}
        (Value::String(_), Value::String(_)) | (Value::Null, Value::Null) => {}
        _ => found.push(format!("{path} is {ours}, llama-server has {theirs}")),
    }
}

/// Differences of value, deep.
fn values(path: &str, ours: &Value, theirs: &Value, found: &mut Vec<String>) {
    match (ours, theirs) {
        (Value::Object(a), Value::Object(b)) if a.len() == b.len() => {
            for (key, value) in b {
                let own = a.get(key).unwrap_or(&Value::Null);
                values(&format!("{path}/{key}"), own, value, found);
            }
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            a.iter().zip(b).for_each(|(a, b)| values(&format!("{path}[]"), a, b, found));
        }
        (a, b) if a == b => {}
        (a, b) => found.push(format!("{path} is {a}, llama-server has {b}")),
    }
}

/// What the model decides, of an answer to a completion.
fn decided(name: &str, answer: &Value) -> Value {
    let said =
        ["content", "tokens", "tokens_predicted", "tokens_cached", "has_new_line", "stop_type"];
    let is_close = CLOSE.iter().any(|(close, _)| *close == name);
    let keys = [
        "index",
        "content",
        "tokens",
        "stop",
        "tokens_predicted",
        "tokens_evaluated",
        "prompt",
        "has_new_line",
        "truncated",
        "stop_type",
        "stopping_word",
        "tokens_cached",
    ];
    match answer {
        Value::Array(items) => items.iter().map(|item| decided(name, item)).collect(),
        Value::Object(fields) if fields.contains_key("index") => {
            let mut kept = serde_json::Map::new();
            for key in keys.into_iter().filter(|key| !is_close || !said.contains(key)) {
                kept.extend(fields.get(key).map(|value| (key.to_owned(), value.clone())));
            }
            let settings = fields.get("generation_settings").cloned();
            kept.extend(settings.map(|settings| ("generation_settings".to_owned(), settings)));
            Value::Object(kept)
        }
        other => other.clone(),
    }
}

fn without_param(error: &Value) -> Value {
    let mut error = error.clone();
    error["error"].as_object_mut().unwrap().remove("param");
    error
}

/// Every golden request: same status, same fields, same types; same values where nothing is left
/// to chance; same messages.
#[tokio::test]
async fn answers_are_llama_servers() {
    let dir = tempfile::tempdir().unwrap();
    let api = api(512, serve_options(Some(dir.path().to_owned())), None);
    let cases: Vec<Value> = serde_json::from_str(GOLDEN).unwrap();
    let mut found = Vec::new();
    for case in &cases {
        let name = case["name"].as_str().unwrap();
        if DIFFERENT.iter().any(|(different, _)| *different == name) {
            continue;
        }
        let (method, path) = (case["method"].as_str().unwrap(), case["path"].as_str().unwrap());
        let body = if case["body"].is_null() { Value::Null } else { case["body"].clone() };
        let (status, text) = api.send(method, path, body.to_string().into_bytes()).await;
        let theirs = &case["answer"];
        let is_stream = theirs.get("stream").is_some() && status == 200;
        let ours = match is_stream {
            true => json!({ "stream": frames(&text) }),
            false => serde_json::from_str(&text).unwrap(),
        };
        if u64::from(status.as_u16()) != case["status"].as_u64().unwrap() {
            found.push(format!("{name}: status {status}: {text}"));
        } else if theirs.get("error").is_some() {
            let ours = without_param(&ours);
            if &ours != theirs {
                found.push(format!("{name}: {ours}\n     not {theirs}"));
            }
        } else {
            compare(name, &ours, theirs, &mut found);
        }
    }
    assert!(found.is_empty(), "\n{}", found.join("\n"));
}

fn compare(name: &str, ours: &Value, theirs: &Value, found: &mut Vec<String>) {
    let Some(chunks) = theirs.get("stream").and_then(Value::as_array) else {
        shape(name, ours, theirs, found);
        values(name, &decided(name, ours), &decided(name, theirs), found);
        return;
    };
    // Chunks of several prompts come in any order; llama-server's first can be a bare null.
    let sorted = |all: &[Value]| {
        let mut all: Vec<Value> = all.iter().filter(|c| !c.is_null()).cloned().collect();
        all.sort_by_key(|chunk| chunk["index"].as_u64());
        all
    };
    let (ours, theirs) = (sorted(ours["stream"].as_array().unwrap()), sorted(chunks));
    if ours.len() != theirs.len() {
        found.push(format!("{name}: {} chunks, not {}", ours.len(), theirs.len()));
    }
    // A reader who is slow gets the text of several tokens with the last of them.
    let said = |chunk: &Value| {
        let mut said = decided(name, chunk);
        said.as_object_mut().unwrap().remove("content");
        said
    };
    let text = |all: &[Value]| -> String {
        all.iter().map(|chunk| chunk["content"].as_str().unwrap_or_default()).collect()
    };
    for (a, b) in ours.iter().zip(&theirs) {
        shape(name, a, b, found);
        values(name, &said(a), &said(b), found);
    }
    if !CLOSE.iter().any(|(close, _)| *close == name) && text(&ours) != text(&theirs) {
        found.push(format!("{name}: {:?}, not {:?}", text(&ours), text(&theirs)));
    }
}

/// `/infill` where there is room for other files: the very tokens of llama-server's prompt, and
/// with the infill sampler its answer.
#[tokio::test]
async fn infill_prompts_are_llama_servers() {
    let api = api(1024, serve_options(None), None);
    let cases: Vec<Value> = serde_json::from_str(include_str!("golden/llama_infill.json")).unwrap();
    let mut found = Vec::new();
    for case in &cases {
        let name = case["name"].as_str().unwrap();
        let answer = api.post("/infill", case["body"].clone()).await;
        // Its room for what is local is a batch of 512 tokens, ours what the answer leaves.
        if !name.starts_with("long") {
            compare(name, &answer, &case["answer"], &mut found);
        }
        assert!(answer["tokens_evaluated"].as_u64().unwrap() < 1024);
    }
    assert!(found.is_empty(), "\n{}", found.join("\n"));
}

#[tokio::test]
async fn every_difference_is_a_case_and_has_a_reason() {
    let mut cases: Vec<Value> = serde_json::from_str(GOLDEN).unwrap();
    let infill = include_str!("golden/llama_infill.json");
    cases.extend(serde_json::from_str::<Vec<Value>>(infill).unwrap());
    for (name, reason) in DIFFERENT.iter().chain(CLOSE) {
        assert!(cases.iter().any(|case| case["name"] == *name), "{name}");
        assert!(!reason.is_empty());
    }
}

/// What llama.vim sends, word for word: first to warm the cache with what is around, then to fill
/// in a line.
#[tokio::test]
async fn llama_vim_warms_the_cache_and_fills_in() {
    let api = api(1024, serve_options(None), None);
    let extra = json!([{
        "text": "def helper(x):\n    return x * 2\n", "time": [1, 2], "filename": "helper.py",
    }]);
    let fields = [
        "content",
        "timings/prompt_n",
        "timings/prompt_ms",
        "timings/prompt_per_token_ms",
        "timings/prompt_per_second",
        "timings/predicted_n",
        "timings/predicted_ms",
        "timings/predicted_per_token_ms",
        "timings/predicted_per_second",
        "truncated",
        "tokens_cached",
    ];
    let warm = json!({
        "input_prefix": "", "input_suffix": "", "input_extra": extra, "prompt": "",
        "n_predict": 0, "temperature": 0.0, "samplers": [], "stream": false,
        "cache_prompt": true, "t_max_prompt_ms": 1, "t_max_predict_ms": 1,
        "response_fields": [""],
    });
    assert_eq!(api.post("/infill", warm).await, json!({}), "nothing is asked for");
    let mut fill = json!({
        "id_slot": 0, "input_prefix": "import sys\n\ndef main():\n", "input_suffix": "\nmain()\n",
        "input_extra": extra, "prompt": "    x = ", "n_predict": 12, "stop": ["\n\n"],
        "n_indent": 4, "top_k": 40, "top_p": 0.9, "stream": false,
        "samplers": ["top_k", "top_p", "infill"], "cache_prompt": true, "t_max_prompt_ms": 500,
        "t_max_predict_ms": 1000, "response_fields": fields, "model": "any",
    });
    let answer = api.post("/infill", fill.clone()).await;
    let got: Vec<&str> = answer.as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(got, fields);
    fill["response_fields"] = json!([]);
    fill["cache_prompt"] = json!(false);
    let whole = api.post("/infill", fill).await;
    let n_prompt = whole["tokens_evaluated"].as_u64().unwrap();
    let n_warm = n_prompt - answer["timings/prompt_n"].as_u64().unwrap();
    assert!(n_warm >= 12, "the chunk was in the cache: {n_warm} of {n_prompt}");
    assert_eq!(whole["timings"]["cache_n"], 0);
    let prompt = whole["prompt"].as_str().unwrap();
    let parts = ["helper(x)", "<|fim_prefix|>import sys", "    x = <|fim_suffix|>\nmain()"];
    assert!(parts.iter().all(|part| prompt.contains(part)), "{prompt}");
    assert!(prompt.ends_with("<|fim_middle|>") && whole.get("tokens_dropped").is_none());
}

/// What llama.vscode sends.
#[tokio::test]
async fn llama_vscode_prepares_and_completes() {
    let api = api(1024, serve_options(None), Some(says("value\n")));
    let chunks = json!([{"text": "a = 1\n", "time": 1_700_000_000_000u64, "filename": "a.py"}]);
    let prepare = json!({
        "input_prefix": "", "input_suffix": "", "input_extra": chunks, "prompt": "",
        "n_predict": 0, "samplers": [], "cache_prompt": true, "t_max_prompt_ms": 500,
        "t_max_predict_ms": 1,
    });
    let answer = api.post("/infill", prepare).await;
    assert_eq!((&answer["content"], &answer["tokens_predicted"]), (&json!(""), &json!(0)));
    assert_eq!((&answer["stop"], &answer["stop_type"]), (&json!(true), &json!("limit")));
    let complete = json!({
        "input_prefix": "x =", "input_suffix": "", "input_extra": chunks, "prompt": "",
        "n_predict": 128, "top_k": 40, "top_p": 0.99, "stream": false,
        "samplers": ["top_k", "top_p", "infill"], "cache_prompt": true, "n_indent": 0,
        "t_max_prompt_ms": 500, "t_max_predict_ms": 2500,
    });
    let answer = api.post("/infill", complete).await;
    assert_eq!((&answer["content"], &answer["stop_type"]), (&json!("value\n"), &json!("eos")));
    assert!(answer["timings"]["cache_n"].as_u64().unwrap() > 0);
}

#[tokio::test]
async fn a_stream_says_what_the_whole_answer_says() {
    let script = says("one, two\nthree STOP four");
    let api = api(256, serve_options(None), Some(script));
    for stop in [json!([]), json!(["STOP"]), json!(["three S", "x"]), json!(["fourth"])] {
        let body = json!({"prompt": "# ", "n_predict": 40, "stop": stop, "temperature": 0});
        let whole = api.post("/completion", body.clone()).await;
        let mut body = body;
        body["stream"] = json!(true);
        let chunks = api.stream("/completion", body).await;
        let (last, before) = chunks.split_last().unwrap();
        let text: String = chunks.iter().map(|c| c["content"].as_str().unwrap()).collect();
        assert_eq!(json!(text), whole["content"], "{stop}");
        assert!(before.iter().all(|c| c["tokens"].as_array().unwrap().len() == 1), "{stop}");
        assert!(before.iter().all(|c| c["stop"] == false) && last["stop"] == true);
        let counts = before.iter().map(|c| c["tokens_predicted"].as_u64().unwrap());
        assert!(counts.eq(1..=before.len() as u64), "one chunk to each token");
        for key in ["stop_type", "stopping_word", "tokens_predicted", "has_new_line", "prompt"] {
            assert_eq!(last[key], whole[key], "{key} {stop}");
        }
        let stopped = stop.as_array().unwrap().iter().find(|word| **word != "fourth");
        assert_eq!(whole["stopping_word"], stopped.cloned().unwrap_or(json!("")));
    }
}

#[tokio::test]
async fn a_request_gets_the_slot_that_it_asks_for() {
    let api = api(256, serve_options(None), Some(says("ok")));
    for slot in [1, 0, 1] {
        let body = json!({"prompt": "# ", "n_predict": 2, "id_slot": slot});
        assert_eq!(api.post("/completion", body).await["id_slot"], slot);
    }
    let (status, slots) = api.json("GET", "/slots", Value::Null).await;
    assert_eq!((status, slots.as_array().unwrap().len()), (200, 2));
    assert_eq!(slots[0]["is_processing"], false);
}

#[tokio::test]
async fn a_wrong_field_is_named() {
    let api = api(64, serve_options(None), Some(says("ok")));
    for (field, value) in [
        ("temperature", json!("hot")),
        ("n_predict", json!(-2)),
        ("stop", json!([1])),
        ("logit_bias", json!({"0": 1e30})),
        ("grammar", json!(5)),
        ("grammar", json!("root ::= (")),
        ("regex", json!("(a")),
        ("lark", json!("start: (")),
        ("priority", json!("first")),
        ("deadline_ms", json!("soon")),
        ("on_disconnect", json!("shrug")),
        ("truncate_prompt", json!("end")),
        ("cache_private", json!(1)),
        ("context_shift", json!("yes")),
        ("n_probs", json!(5000)),
        ("response_fields", json!("content")),
        ("prompt", json!({"text": "a"})),
        ("prompt", json!("a b c d e f g h ".repeat(40))),
    ] {
        let mut body = json!({"prompt": "# ", "n_predict": 2});
        body[field] = value;
        for stream in [false, true] {
            body["stream"] = json!(stream);
            let (status, error) = api.json("POST", "/completion", body.clone()).await;
            assert_eq!(status, 400, "{field} {error}");
            let param = &error["error"]["param"];
            // The engine checks the numbers of samplers, and names them in its message.
            assert!(*param == field || error["error"]["message"].to_string().contains(field));
        }
    }
}

#[tokio::test]
async fn a_constraint_of_our_own_rules_completions_and_infill() {
    let api = api(256, serve_options(None), Some(says("a story")));
    let hole = json!({"input_prefix": "a = ", "input_suffix": "\n", "n_predict": 20});
    let prompt = json!({"prompt": "# ", "n_predict": 20});
    for (field, text) in [("regex", "(yes|no)7"), ("lark", "start: (\"yes\" | \"no\") \"7\"")] {
        for (path, mut body) in [("/completion", prompt.clone()), ("/infill", hole.clone())] {
            body[field] = json!(text);
            let answer = api.post(path, body.clone()).await;
            let content = answer["content"].as_str().unwrap();
            assert!(["yes7", "no7"].contains(&content), "{path} {field}: {content}");
            body["grammar"] = json!("root ::= \"a\"");
            let (status, error) = api.json("POST", path, body).await;
            assert_eq!((status, &error["error"]["param"]), (400, &json!(field)));
            let message = error["error"]["message"].as_str().unwrap();
            assert!(message.contains(field) && message.contains("grammar"), "{message}");
        }
    }
}

/// Only a line end that comes after the time, or the deadline, can end these answers.
#[tokio::test]
async fn time_ends_an_answer_that_nothing_else_would() {
    let model = Model::load(&ModelSource::Embedded, &LoadOptions::default()).unwrap();
    let lines = model.tokenizer().encode("a\n", Default::default()).unwrap();
    let script: Script = Box::new(move |history| lines[history.len() % lines.len()]);
    let api = api(64, serve_options(None), Some(script));
    for field in ["t_max_predict_ms", "deadline_ms"] {
        let body = json!({"prompt": "# ", "n_predict": i32::MAX, "ignore_eos": true,
            "context_shift": true, field: 20});
        let answer = api.post("/completion", body).await;
        assert_eq!((&answer["stop"], &answer["stop_type"]), (&json!(true), &json!("limit")));
    }
}

#[tokio::test]
async fn a_context_is_shifted_and_a_prompt_cut_where_a_request_asks_for_it() {
    let script: Script = Box::new(|history: &[u32]| 300 + history.len() as u32 % 50);
    let api = api(64, serve_options(None), Some(script));
    let ask = |context_shift: bool| {
        api.post(
            "/completion",
            json!({"prompt": "# ", "n_predict": 100, "ignore_eos": true,
            "context_shift": context_shift}),
        )
    };
    let shifted = ask(true).await;
    assert_eq!((&shifted["tokens_predicted"], &shifted["truncated"]), (&json!(100), &json!(true)));
    assert!(ask(false).await["tokens_predicted"].as_u64().unwrap() < 64);
    for side in ["start", "middle"] {
        let answer = api
            .post(
                "/completion",
                json!({"prompt": "a b c d e f g h ".repeat(40), "n_predict": 4,
                "truncate_prompt": side}),
            )
            .await;
        assert!(answer["tokens_dropped"].as_u64().unwrap() > 0, "{side}");
        assert!(answer["tokens_evaluated"].as_u64().unwrap() <= 60, "{side}");
    }
}

/// A model without tokens for it cannot fill in, and says so as llama-server does.
#[tokio::test]
async fn without_fim_tokens_infill_is_not_supported() {
    let api = api_of_recipe("llama", serve_options(None));
    let body = json!({"input_prefix": "a", "input_suffix": "b"});
    let (status, error) = api.json("POST", "/infill", body).await;
    assert_eq!((status, &error["error"]["type"]), (501, &json!("not_supported_error")));
    let message = "Infill is not supported by this model: prefix token is missing. suffix token is \
                   missing. middle token is missing. ";
    assert_eq!(error["error"]["message"], message);
}

#[tokio::test]
async fn an_encoder_embeds_in_llama_servers_shape() {
    let api = api_of_recipe("bert", serve_options(None));
    let one = api.post("/embedding", json!({"content": "def f"})).await;
    let row = one[0]["embedding"][0].as_array().unwrap();
    let squares: f64 = row.iter().map(|x| x.as_f64().unwrap().powi(2)).sum();
    assert!((squares - 1.0).abs() < 1e-5, "{squares}");
    let body = json!({"input": ["def f", [5, 6]], "embd_normalize": -1});
    let two = api.post("/embeddings", body).await;
    assert_eq!((&two[0]["index"], &two[1]["index"]), (&json!(0), &json!(1)));
    let (status, error) = api.json("POST", "/embedding", json!({"a": 1})).await;
    assert_eq!(status, 400, "{error}");
    let (status, error) = api.json("POST", "/completion", json!({"prompt": "a"})).await;
    assert_eq!(status, 501, "{error}");
}

#[tokio::test]
async fn a_reranker_scores_documents_in_both_shapes() {
    let api = api_of_recipe("bert-rank", serve_options(None));
    let texts = json!(["def main(): print(1)", "the sum of two numbers"]);
    let jina = json!({"query": "quick sort a list", "documents": texts, "top_n": 9});
    let jina = api.post("/v1/rerank", jina).await;
    let results = jina["results"].as_array().unwrap();
    let score = |i: usize| results[i]["relevance_score"].as_f64().unwrap();
    assert!(results.len() == 2 && score(0) >= score(1), "{jina}");
    assert!(jina["usage"]["prompt_tokens"].as_u64().unwrap() > 8);
    let tei = json!({"query": "quick sort a list", "texts": texts, "return_text": true});
    let tei = api.post("/rerank", tei).await;
    assert_eq!(tei[0]["score"].as_f64(), Some(score(0)));
    assert_eq!(tei[0]["text"], texts[tei[0]["index"].as_u64().unwrap() as usize]);
}

#[tokio::test]
async fn what_was_not_switched_on_is_not_supported() {
    let api = api(64, ServeOptions::default(), Some(says("ok")));
    for (method, path) in [
        ("GET", "/slots"),
        ("POST", "/slots/0?action=save"),
        ("POST", "/props"),
        ("POST", "/embedding"),
        ("POST", "/rerank"),
    ] {
        let (status, error) = api.json(method, path, json!({})).await;
        assert_eq!(status, 501, "{path} {error}");
        assert_eq!(error["error"]["type"], "not_supported_error");
    }
}
