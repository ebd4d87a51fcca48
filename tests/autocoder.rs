//! AutoCoder's dialect on the wire: its two forms, its WebSocket, what stands around them.

use std::collections::BTreeMap;

use jetforge::server::{Class, GateOptions, Grant, KeyFile, Scope};
use serde_json::{Value, json};

use crate::server::{House, Plan, counted, plan};
use crate::support::http::{get, post, send};
use crate::support::socket::Socket;

/// A service with a store.
fn keeping() -> Plan {
    let mut plan = plan();
    plan.keeps_jobs = true;
    plan
}

fn start() -> House {
    keeping().start()
}

/// A model that says 300, 301, ... and never ends.
fn counting() -> House {
    let mut plan = keeping();
    plan.script = Some(Box::new(counted));
    plan.start()
}

fn nested(id: &str, prompt: &str) -> Value {
    json!({
        "request_id": id,
        "request_type": "completion",
        "prompt": prompt,
        "parameters": {"temperature": 0, "max_tokens": 6, "top_p": 0.9},
        "context_chunks": [{"id": "chunk1", "content": "def example():\n    return 1"}],
    })
}

fn keys(value: &Value) -> Vec<&str> {
    value.as_object().unwrap().keys().map(String::as_str).collect()
}

#[test]
fn both_forms_are_answered_with_exactly_their_keys() {
    let house = start();
    let answer = post(house.address, "/generate", &nested("unique-id", "def new_function():"));
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert!(
        answer
            .text()
            .starts_with(r#"{"request_id":"unique-id","status":"success","generated_code":""#)
    );
    let context = answer.header("x-jetforge-context").unwrap();
    assert!(context.starts_with("chunks=1; dropped=0; tokens="), "{context}");
    let said = answer.json();
    assert_eq!(keys(&said), ["request_id", "status", "generated_code", "metadata"]);
    let metadata = &said["metadata"];
    assert_eq!(keys(metadata), ["inference_time_ms", "token_count", "confidence_score"]);
    assert!(metadata["inference_time_ms"].is_u64() && metadata["token_count"].is_u64(), "{said}");
    assert!((0.0..=1.0).contains(&metadata["confidence_score"].as_f64().unwrap()), "{said}");

    let flat = json!({"prompt": "write a quick sort example", "max_tokens": 5, "temperature": 0.0,
        "context_chunks": [{"content": "# sorting"}]});
    let said = post(house.address, "/generate", &flat).json();
    assert_eq!(keys(&said), ["request_id", "status", "generated_code", "metadata"]);
    assert!(said["request_id"].as_str().is_some_and(|id| !id.is_empty()), "{said}");
    assert_eq!(keys(&said["metadata"]), ["model", "token_count", "temperature"]);
    assert_eq!(said["metadata"]["model"], "default");
    for path in ["/refactor", "/explain", "/test"] {
        let body = json!({"request_id": path, "prompt": "add two numbers", "language": "python",
            "code": "def add(a, b):\n    return a + b", "parameters": {"max_tokens": 4}});
        let said = post(house.address, path, &body).json();
        assert_eq!((&said["status"], &said["request_id"]), (&json!("success"), &json!(path)));
    }
}

#[test]
fn the_confidence_is_the_mean_probability_of_the_answers_tokens() {
    let house = start();
    let prompt = "def add(a, b):\n";
    let body = json!({"request_id": "c", "request_type": "completion", "prompt": prompt,
        "parameters": {"temperature": 0, "max_tokens": 12}});
    let said = post(house.address, "/generate", &body).json();
    let plain = json!({"prompt": prompt, "temperature": 0, "top_p": 0.9, "max_tokens": 12,
        "logprobs": 1});
    let choice = post(house.address, "/v1/completions", &plain).json()["choices"][0].clone();
    assert_eq!(said["generated_code"], choice["text"]);
    let logprobs = choice["logprobs"]["token_logprobs"].as_array().unwrap();
    let sum: f64 = logprobs.iter().map(|p| p.as_f64().unwrap()).sum();
    let expected = (sum / logprobs.len() as f64).exp();
    let confidence = said["metadata"]["confidence_score"].as_f64().unwrap();
    assert!((confidence - expected).abs() < 1e-5, "{confidence} {expected}");
}

#[test]
fn a_hundred_ids_on_one_socket_are_each_answered_once() {
    let house = counting();
    let mut socket = Socket::open(house.address, "/ws", &[]).ok().unwrap();
    for n in 0..100 {
        socket.send(&nested(&format!("id-{n}"), &format!("task {n}")).to_string());
    }
    let mut answers: BTreeMap<String, Value> = BTreeMap::new();
    for _ in 0..100 {
        let said = socket.json();
        assert_eq!(said["status"], "success", "{said}");
        let id = said["request_id"].as_str().unwrap().to_owned();
        assert!(answers.insert(id, said).is_none(), "answered twice");
    }
    assert_eq!(answers.len(), 100);
    // The same answer for the same id: on the socket, over HTTP, and in the list of tasks.
    let again = nested("id-42", "task 42");
    socket.send(&again.to_string());
    assert_eq!(socket.json(), answers["id-42"]);
    assert_eq!(post(house.address, "/generate", &again).json(), answers["id-42"]);
    let task = get(house.address, "/tasks/id-42").json();
    assert_eq!((&task["status"], &task["answer"]), (&json!("completed"), &answers["id-42"]));
    let steps = house.metric("jetforge_requests_total");
    assert_eq!(steps, 100.0, "each was written once");
}

#[test]
fn a_wrong_message_is_an_error_with_its_id_and_the_socket_goes_on() {
    let house = counting();
    let mut socket = Socket::open(house.address, "/ws", &[]).ok().unwrap();
    let long = "l".repeat(99);
    for (text, id) in [
        (r#"{"request_id": "cut-off", "prompt": "#, json!("cut-off")),
        ("no json", json!("")),
        ("[]", json!("")),
        (r#"{"request_id": "no-prompt"}"#, json!("no-prompt")),
        (r#"{"request_id": 7, "prompt": "p"}"#, json!(7)),
        (r#"{"request_id": "t", "prompt": "p", "request_type": "poem"}"#, json!("t")),
        (r#"{"request_id": "h", "prompt": "p", "parameters": {"temperature": "hot"}}"#, json!("h")),
        (r#"{"request_id": "m", "prompt": "p", "context_chunks": [1]}"#, json!("m")),
        (&format!(r#"{{"request_id": "{long}", "prompt": "p"}}"#), json!(long)),
    ] {
        socket.send(text);
        let said = socket.json();
        assert_eq!((&said["request_id"], &said["status"]), (&id, &json!("error")), "{text}");
        assert_eq!(keys(&said), ["request_id", "status", "generated_code", "metadata"]);
        assert_eq!(said["generated_code"], "");
        let error = &said["metadata"]["error"];
        assert_eq!(error["code"], 400, "{said}");
        assert!(error["message"].as_str().is_some_and(|message| !message.is_empty()), "{said}");
    }
    socket.send_frame(0x82, &[0xff, 0xfe]);
    assert_eq!(socket.json()["status"], "error");
    socket.send(&nested("fine", "p").to_string());
    assert_eq!(socket.json()["status"], "success");
    // A message that is too large is not read to its end.
    socket.send_frame(0x81, &vec![b' '; 5 << 20]);
    assert_eq!(socket.read(), None);
}

#[test]
fn an_id_stands_for_one_task_and_errors_have_the_dialects_form() {
    let house = counting();
    assert_eq!(post(house.address, "/generate", &nested("a", "one")).status, 200);
    let answer = post(house.address, "/generate", &nested("a", "another"));
    assert_eq!(answer.status, 409);
    let said = answer.json();
    assert_eq!((&said["request_id"], &said["status"]), (&json!("a"), &json!("error")));
    assert_eq!(said["metadata"]["error"]["param"], "request_id");
    let answer = send(house.address, "POST", "/generate", &[], "{");
    assert_eq!((answer.status, &answer.json()["status"]), (400, &json!("error")));
    let long = json!({"request_id": "l", "prompt": "word ".repeat(2000)});
    let answer = post(house.address, "/generate", &long);
    let error = answer.json()["metadata"]["error"].clone();
    assert_eq!((answer.status, &error["n_ctx"]), (400, &json!(512)), "{error}");
    assert_eq!(get(house.address, "/tasks/l").json()["status"], "failed");
}

#[test]
fn chunks_keep_to_their_shares_and_are_counted_as_tokenize_counts() {
    let house = counting();
    let line = |n: usize| format!("value_{n} = compute({n})\n").repeat(4);
    let kinds = ["direct", "dependency", "interface", "example", "dependency", "dependency"];
    let chunks: Vec<Value> = kinds
        .iter()
        .enumerate()
        .map(|(n, kind)| json!({"id": n.to_string(), "kind": kind, "content": line(n)}))
        .collect();
    let count = |n: usize| {
        let tokens = post(house.address, "/tokenize", &json!({"content": line(n)})).json();
        tokens["tokens"].as_array().unwrap().len() as u64
    };
    let body = json!({"request_id": "x", "prompt": "go", "context_chunks": chunks,
        "parameters": {"max_tokens": 4, "context_max_tokens": 400}});
    assert_eq!(post(house.address, "/generate", &body).status, 200);
    let context = get(house.address, "/tasks/x").json()["context"].clone();
    let chosen: Vec<usize> = context["chunks"]
        .as_array()
        .unwrap()
        .iter()
        .map(|n| n.as_u64().unwrap() as usize)
        .collect();
    let of = |kind: &str| chosen.iter().filter(|n| kinds[**n] == kind).map(|n| count(*n)).sum();
    let sums: [u64; 4] = ["direct", "dependency", "interface", "example"].map(of);
    let told = ["direct", "dependencies", "interfaces", "examples"].map(|name| &context[name]);
    assert_eq!(told, sums.map(Value::from).each_ref(), "{context}");
    let budget = context["budget"].as_u64().unwrap();
    assert!(budget == 400 && context["tokens"] == sums.iter().sum::<u64>(), "{context}");
    assert!(sums[1] * 10 <= budget * 3 && sums[2] * 5 <= budget && sums[3] * 5 <= budget);
    assert!(sums[0] > 0 && sums[1] > 0, "{context}");
    // A context that leaves no room drops chunks and says so, rather than failing.
    let mut many = body.clone();
    many["request_id"] = "y".into();
    many["parameters"]["context_max_tokens"] = 100_000.into();
    many["context_chunks"] = (0..60).map(|n| json!({"content": line(n)})).collect();
    assert_eq!(post(house.address, "/generate", &many).status, 200);
    let context = get(house.address, "/tasks/y").json()["context"].clone();
    assert!(!context["dropped"].as_array().unwrap().is_empty(), "{context}");
    // What stands between chunks is within the budget, too.
    let (n, joins) = (context["tokens"].as_u64().unwrap(), context["joins"].as_u64().unwrap());
    assert!(joins > 0 && n + joins <= context["budget"].as_u64().unwrap(), "{context}");
}

#[test]
fn sockets_ask_for_the_same_keys_pages_and_quotas_as_every_route() {
    let dir = tempfile::tempdir().unwrap();
    let file = KeyFile::new(dir.path());
    let grant = |per_minute| Grant {
        class: Class::Interactive,
        scopes: vec![Scope::Inference],
        per_minute,
        at_once: None,
    };
    let key = file.create("pc", grant(Some(2))).unwrap();
    let gate = GateOptions { state_dir: Some(dir.path().to_owned()), ..GateOptions::default() };
    let mut plan = keeping();
    plan.gate = gate;
    plan.script = Some(Box::new(counted));
    let house = plan.start();
    let bearer = format!("Bearer {key}");
    let open = |headers: &[(&str, &str)]| Socket::open(house.address, "/ws", headers);
    assert_eq!(open(&[]).err().map(|e| e.0), Some(401));
    let evil = [("authorization", bearer.as_str()), ("origin", "https://evil.example")];
    assert_eq!(open(&evil).err().map(|e| e.0), Some(403), "a page of others");
    let mut socket = open(&[("authorization", &bearer)]).ok().unwrap();
    let mut status = |id: &str| {
        socket.send(&nested(id, "p").to_string());
        socket.json()["metadata"]["error"]["code"].clone()
    };
    assert_eq!([status("q1"), status("q2")], [Value::Null, json!(429)], "to open it was the first");
    // Whether a key may ask is looked at before what it asks.
    socket.send("no json");
    assert_eq!(socket.json()["metadata"]["error"]["code"], 429);
    let mut status = |id: &str| {
        socket.send(&nested(id, "p").to_string());
        socket.json()["metadata"]["error"]["code"].clone()
    };
    assert_eq!(status("q3"), 429);
    let other = send(house.address, "GET", "/logs", &[("authorization", &bearer)], "");
    assert_eq!(other.status, 403, "the log is the owner's");
    file.revoke("pc").unwrap();
    socket.send(&nested("after", "p").to_string());
    assert_eq!(socket.json()["metadata"]["error"]["code"], 401, "a key that was taken back");
    let refused = post(house.address, "/generate", &nested("x", "p"));
    assert_eq!((refused.status, &refused.json()["status"]), (401, &json!("error")));
    let get_only = get(house.address, "/health");
    assert_eq!(get_only.status, 200);
}

#[test]
fn what_stands_around_the_answers() {
    let house = counting();
    let plain = get(house.address, "/ws");
    assert_eq!((plain.status, plain.error_type().as_str()), (400, "invalid_request_error"));
    assert_eq!(post(house.address, "/generate", &nested("seen", "p")).status, 200);
    let tasks = get(house.address, "/tasks").json();
    assert_eq!(tasks["tasks"][0]["request_id"], "seen");
    let debug = get(house.address, "/debug/seen").json();
    assert_eq!(debug["requests"][0]["n_generated"], 6, "{debug}");
    assert_eq!(debug["tasks"][0]["context"]["dropped"], json!([]));
    assert_eq!(get(house.address, "/debug/unseen").status, 404);
    assert!(get(house.address, "/debug").json()["requests"].is_array());
    let note = json!({"request_id": "seen", "rating": 5, "comment": "good"});
    let said = post(house.address, "/feedback", &note).json();
    assert_eq!(said, json!({"request_id": "seen", "status": "success", "n_feedback": 1}));
    assert_eq!(get(house.address, "/feedback").json()["feedback"], json!([note]));
    assert!(get(house.address, "/logs?n=5").json()["lines"].is_array());
    assert_eq!(get(house.address, "/logs?n=x").status, 400);
    assert!(get(house.address, "/models").json()["data"].is_array());
}
