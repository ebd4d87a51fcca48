//! Ollama's dialect, asked over the router in this process, and its own clients on the real binary.

use std::path::Path;
use std::process::Command;

use jetforge::inference::quant::TensorType;
use serde_json::{Value, json};

use crate::cli::jetforge;
use crate::openai::{Api, HERMES, of, real, saying};
use crate::pull::{self, Server, authority};
use crate::serve::Process;
use crate::support::http::{get, post, send};
use crate::support::recipe::Recipe;
use crate::support::skip::{node_with, python_with};

const CALL: &str = "Let me see.\n<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": \
                    \"Rome\"}}\n</tool_call>";

fn ask(more: Value) -> Value {
    let mut body = json!({"model": "test-model", "options": {"temperature": 0},
        "messages": [{"role": "user", "content": "What is the weather?"}]});
    for (name, value) in more.as_object().unwrap() {
        body[name] = value.clone();
    }
    body
}

/// The lines of a stream, which is what an answer is unless told otherwise.
async fn lines(api: &Api, path: &str, body: Value) -> Vec<Value> {
    let (status, text) = api.send("POST", path, &body.to_string()).await;
    assert_eq!(status, 200, "{text}");
    assert!(text.ends_with('\n'), "{text}");
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

async fn whole(api: &Api, path: &str, mut body: Value) -> Value {
    body["stream"] = false.into();
    api.post(path, body).await
}

fn joined(lines: &[Value], path: &str) -> String {
    lines.iter().map(|line| line.pointer(path).and_then(Value::as_str).unwrap_or("")).collect()
}

#[tokio::test]
async fn a_chat_and_a_text_are_the_same_whole_and_streamed() {
    let api = saying(HERMES, "Good day.");
    for (path, place, body) in [
        ("/api/chat", "/message/content", ask(json!({}))),
        ("/api/generate", "/response", json!({"prompt": "Hello", "options": {"temperature": 0}})),
    ] {
        let answer = whole(&api, path, body.clone()).await;
        assert_eq!(answer.pointer(place), Some(&json!("Good day.")), "{answer}");
        assert_eq!((&answer["done"], &answer["done_reason"]), (&json!(true), &json!("stop")));
        assert_eq!(answer["model"], "test-model");
        let created = answer["created_at"].as_str().unwrap();
        assert!(created.len() == 27 && created.ends_with('Z'), "{created}");
        let names = [
            "total_duration",
            "load_duration",
            "prompt_eval_duration",
            "eval_duration",
            "prompt_eval_count",
            "eval_count",
        ];
        assert!(names.iter().all(|name| answer[*name].is_u64()), "{answer}");
        assert!(answer["total_duration"].as_u64() >= answer["eval_duration"].as_u64());
        let lines = lines(&api, path, body).await;
        assert_eq!(joined(&lines, place), "Good day.");
        let (last, others) = lines.split_last().unwrap();
        assert!(others.iter().all(|line| line["done"] == false), "{others:?}");
        assert_eq!(last.pointer(place), Some(&json!("")));
        for name in ["done", "done_reason", "eval_count", "prompt_eval_count", "context"] {
            assert_eq!(last.get(name), answer.get(name), "{name}");
        }
    }
}

#[tokio::test]
async fn tools_thoughts_and_formats() {
    let tools = json!([{"type": "function", "function": {"name": "weather", "parameters":
        {"type": "object", "properties": {"city": {"type": "string"}}}}}]);
    let api = saying(HERMES, CALL);
    let calls = json!([{"function": {"name": "weather", "arguments": {"city": "Rome"}}}]);
    let body = ask(json!({"tools": tools}));
    let answer = whole(&api, "/api/chat", body.clone()).await;
    assert_eq!(answer["message"]["tool_calls"], calls);
    assert_eq!(answer["message"]["content"], "Let me see.");
    let said = lines(&api, "/api/chat", body).await;
    let with_calls: Vec<&Value> =
        said.iter().filter_map(|line| line["message"].get("tool_calls")).collect();
    assert_eq!(with_calls, [&calls], "told once, when whole");
    let mut messages = ask(json!({}))["messages"].clone();
    let said = json!({"role": "assistant", "content": "", "tool_calls": calls});
    messages.as_array_mut().unwrap().push(said);
    let result = json!({"role": "tool", "tool_name": "weather", "content": "sunny"});
    messages.as_array_mut().unwrap().push(result);
    let again = saying(HERMES, "It is sunny.");
    let answer = whole(&again, "/api/chat", ask(json!({"messages": messages, "tools": tools})));
    assert_eq!(answer.await["message"]["content"], "It is sunny.");

    let thinking = format!("{HERMES}{{# </think> #}}");
    let api = saying(&thinking, "<think>\nHm.\n</think>\n\nYes.");
    let answer = whole(&api, "/api/chat", ask(json!({"think": true}))).await;
    assert_eq!(answer["message"]["content"], "Yes.");
    assert!(answer["message"]["thinking"].as_str().unwrap().contains("Hm."), "{answer}");

    let api = real();
    let schema = json!({"type": "object", "properties": {"n": {"enum": [1, 2]}},
        "required": ["n"], "additionalProperties": false});
    for body in [
        ask(json!({"format": schema})),
        json!({"prompt": "A number.", "format": schema, "options": {"temperature": 0}}),
        json!({"prompt": "n = ", "format": schema, "raw": true, "options": {"temperature": 0}}),
    ] {
        let path = if body.get("prompt").is_some() { "/api/generate" } else { "/api/chat" };
        let answer = whole(&api, path, body).await;
        let text = answer.get("response").unwrap_or(&answer["message"]["content"]);
        let value: Value = serde_json::from_str(text.as_str().unwrap()).unwrap();
        assert!([json!(1), json!(2)].contains(&value["n"]), "{value}");
    }
}

#[tokio::test]
async fn prompts_of_every_kind() {
    let api = real();
    let options = json!({"temperature": 0, "num_predict": 6, "seed": 1});
    let generate = async |mut body: Value| {
        body["options"] = options.clone();
        whole(&api, "/api/generate", body).await
    };
    let raw = generate(json!({"prompt": "def add(a, b):\n", "raw": true})).await;
    let plain = api
        .post(
            "/v1/completions",
            json!({"prompt": "def add(a, b):\n",
        "temperature": 0, "seed": 1, "max_tokens": 6}),
        )
        .await;
    assert_eq!(raw["response"], plain["choices"][0]["text"]);
    assert_eq!((&raw["done_reason"], raw.get("context")), (&json!("length"), None));
    let template = json!({"prompt": "add(a, b):\n", "system": "def ",
        "template": "{{ .System }}{{ .Prompt }}"});
    assert_eq!(generate(template).await["response"], raw["response"]);
    let fill = generate(json!({"prompt": "def add(a, b):\n    return ", "suffix": "\n"})).await;
    let plain = api
        .post(
            "/v1/completions",
            json!({"prompt": "def add(a, b):\n    return ",
        "suffix": "\n", "temperature": 0, "seed": 1, "max_tokens": 6}),
        )
        .await;
    assert_eq!(fill["response"], plain["choices"][0]["text"]);
    let first = generate(json!({"prompt": "Add.", "system": "Be brief."})).await;
    let context = first["context"].as_array().unwrap();
    let n = context.len() as u64;
    let count = |name: &str| first[name].as_u64().unwrap();
    assert_eq!(n, count("prompt_eval_count") + count("eval_count"));
    let more = generate(json!({"prompt": "More.", "context": context})).await;
    assert!(more["prompt_eval_count"].as_u64().unwrap() > n, "{more}");
    for (body, reason) in [
        (json!({}), "load"),
        (json!({"prompt": "", "keep_alive": 0}), "unload"),
        (json!({"keep_alive": "0s"}), "unload"),
    ] {
        let answer = generate(body).await;
        assert_eq!((&answer["done_reason"], &answer["response"]), (&json!(reason), &json!("")));
    }
    let loaded = api.post("/api/chat", json!({"messages": []})).await;
    assert_eq!((&loaded["done_reason"], &loaded["done"]), (&json!("load"), &json!(true)));
}

#[tokio::test]
async fn a_text_that_goes_on_has_one_start() {
    let api = of(Recipe::read("llama").build(TensorType::F32));
    let first = whole(&api, "/api/generate", json!({"prompt": "a"})).await;
    let bos = first["context"][0].clone();
    assert_eq!(bos, 1);
    let context = [bos, json!(5)].to_vec();
    for body in [json!({"prompt": "a"}), json!({"prompt": "a", "raw": true})] {
        let alone = whole(&api, "/api/generate", body.clone()).await;
        let mut more = body.clone();
        more["context"] = context.clone().into();
        let more = whole(&api, "/api/generate", more).await;
        let count = |answer: &Value| answer["prompt_eval_count"].as_u64().unwrap() as usize;
        assert_eq!(count(&more), context.len() + count(&alone) - 1, "{body}: {more}");
    }
}

#[tokio::test]
async fn a_verbose_look_shows_the_long_lists() {
    let api = real();
    let show = async |is_verbose: bool| {
        let said = api.post("/api/show", json!({"verbose": is_verbose})).await;
        said["model_info"]["tokenizer.ggml.tokens"].clone()
    };
    assert_eq!(show(false).await, Value::Null);
    assert!(show(true).await.as_array().is_some_and(|tokens| tokens.len() > 1000));
}

#[tokio::test]
async fn errors_are_a_text() {
    let api = real();
    for (path, body, words) in [
        (
            "/api/chat",
            ask(json!({"messages": [{"role": "user", "content": "x",
            "images": ["aGk="]}]})),
            "messages[0].images",
        ),
        ("/api/chat", ask(json!({"options": {"top_k": "many"}})), "top_k"),
        ("/api/chat", ask(json!({"format": 5})), "format"),
        ("/api/generate", json!({"prompt": "x", "template": "{{ range .M }}"}), "range"),
        ("/api/generate", json!({"prompt": "x", "context": ["a"]}), "context"),
        ("/api/generate", json!({"prompt": "word ".repeat(4000)}), "context"),
        ("/api/generate", json!({"prompt": 5}), "prompt"),
    ] {
        let (status, answer) = api.json("POST", path, &body).await;
        assert_eq!(status, 400, "{body}: {answer}");
        let fields: Vec<&String> = answer.as_object().unwrap().keys().collect();
        assert_eq!(fields, ["error"], "{answer}");
        assert!(answer["error"].as_str().unwrap().contains(words), "{words}: {answer}");
    }
    let (status, answer) = api.json("POST", "/api/pull", &json!({"model": "x"})).await;
    assert_eq!(status, 501, "without a shelf: {answer}");
}

#[test]
fn models_come_and_go_on_the_real_shelf() {
    let home = tempfile::tempdir().unwrap();
    let store = home.path().join(".local/share/jetforge/models");
    std::fs::create_dir_all(&store).unwrap();
    std::fs::write(store.join("tiny.gguf"), Recipe::read("llama").build(TensorType::F32)).unwrap();
    let service = Process::start(home.path(), &["-c", "512", "-np", "1"]);
    let tags = get(service.address, "/api/tags").json();
    let names: Vec<&Value> =
        tags["models"].as_array().unwrap().iter().map(|m| &m["name"]).collect();
    assert_eq!(names, ["default", "tiny"], "{tags}");
    assert!(tags["models"][1]["size"].as_u64().unwrap() > 0);
    let delete = |name: &str| {
        let body = json!({ "model": name }).to_string();
        send(service.address, "DELETE", "/api/delete", &[], &body)
    };
    assert_eq!(delete("default").status, 409, "it is loaded");
    let ask = |body: Value| post(service.address, "/api/generate", &body);
    assert_eq!(ask(json!({"model": "tiny", "keep_alive": -1})).json()["done_reason"], "load");
    for spelling in ["tiny", "Tiny", "TINY:latest"] {
        assert_eq!(delete(spelling).status, 409, "{spelling} is loaded");
    }
    let loaded = || {
        let models = get(service.address, "/api/ps").json()["models"].clone();
        models.as_array().unwrap().iter().any(|model| model["name"] == "tiny")
    };
    assert!(loaded());
    for _ in 0..2 {
        // What is not loaded is not loaded to be unloaded.
        let said = ask(json!({"model": "tiny", "keep_alive": 0})).json();
        assert_eq!((&said["model"], &said["done_reason"]), (&json!("tiny"), &json!("unload")));
        assert!(!loaded());
    }
    assert_eq!(delete("tiny:latest").status, 200);
    assert!(!store.join("tiny.gguf").exists());
    let gone = delete("tiny");
    assert_eq!(gone.status, 404);
    assert!(gone.json()["error"].as_str().unwrap().contains("tiny"));
    let body = json!({"model": "https://evil.example/x.gguf"}).to_string();
    let pulled = send(service.address, "POST", "/api/pull", &[], &body);
    assert!(pulled.text().contains("catalog has no model"), "no address is asked: {pulled:?}");
    let plain = [("accept", "text/plain")];
    assert_eq!(send(service.address, "GET", "/", &plain, "").text(), "Ollama is running");
    let client = [("user-agent", "ollama-python/0.6.3")];
    assert_eq!(send(service.address, "GET", "/", &client, "").text(), "Ollama is running");
    assert!(get(service.address, "/").text().contains("<!doctype html>"));
    assert!(get(service.address, "/api/version").json()["version"].is_string());
}

/// A service whose catalog has a model `tiny-coder` that lies on loopback, in a file of another
/// name; its first answer breaks off. With the hash of the file and its bytes.
fn with_source(home: &Path, is_hash_known: bool, options: &[&str]) -> (Process, String, usize) {
    let body = Recipe::read("llama").build(TensorType::F32);
    let (hash, n_bytes) = (pull::sha256(&body), body.len());
    let source = Server::start(move |n, asked, out| match (n, asked.from) {
        (0, _) => pull::broken(out, &body, 2_000_000, "\"v1\""),
        (_, Some(from)) => pull::part(out, &body, from, "\"v1\""),
        (_, None) => pull::whole(out, &body, "\"v1\""),
    });
    let url = source.url("/models/tiny-llama.gguf");
    let mut entry = format!("[[model]]\nname = \"tiny-coder\"\nurl = \"{url}\"\n");
    if is_hash_known {
        entry += &format!("sha256 = \"{hash}\"\nsize_bytes = {n_bytes}\n");
    }
    (with_catalog(home, &entry, options), hash, n_bytes)
}

/// A service that knows this catalog, and whom to trust on loopback.
fn with_catalog(home: &Path, entry: &str, options: &[&str]) -> Process {
    let (catalog, ca_file) = (home.join("catalog.toml"), home.join("ca.pem"));
    std::fs::write(&catalog, entry).unwrap();
    std::fs::write(&ca_file, &authority().0).unwrap();
    let mut command = jetforge(home);
    command.args(["serve", "--port", "0", "--threads", "1"]).args(options);
    command.env("JETFORGE_LIBRARY_CATALOG", catalog).env("JETFORGE_PULL_CA_FILE", ca_file);
    command.env("JETFORGE_PULL_PAUSE_MS", "1");
    Process::spawn(command)
}

#[test]
fn a_model_of_the_catalog_is_pulled_and_goes_by_that_name() {
    for is_hash_known in [true, false] {
        let home = tempfile::tempdir().unwrap();
        let (service, hash, n_bytes) =
            with_source(home.path(), is_hash_known, &["-c", "512", "-np", "1"]);
        let address = service.address;
        let pull = || {
            let answer = post(address, "/api/pull", &json!({"model": "tiny-coder:latest"}));
            let kind = answer.header("content-type");
            assert_eq!((answer.status, kind), (200, Some("application/x-ndjson")), "{answer:?}");
            let read = |line: &str| serde_json::from_str::<Value>(line).unwrap();
            answer.text().lines().map(read).collect::<Vec<Value>>()
        };
        let states = |lines: &[Value]| {
            let state = |line: &Value| line["status"].as_str().unwrap_or("no status").to_owned();
            let mut states: Vec<String> = lines.iter().map(state).collect();
            states.dedup();
            states.join(", ")
        };
        let lines = pull();
        // A hash that nobody knew beforehand is told when it is known.
        let last = if is_hash_known { "" } else { "pulling tiny-llama.gguf, " };
        let expected = format!(
            "pulling manifest, asking localhost, pulling tiny-llama.gguf, trying again in 1ms, \
             asking localhost, pulling tiny-llama.gguf, verifying sha256 digest, {last}success"
        );
        assert_eq!(states(&lines), expected);
        let told: Vec<&Value> = lines.iter().filter(|line| line.get("total").is_some()).collect();
        assert!((5..20).contains(&told.len()), "how far it is, not each packet: {told:?}");
        assert!(told.iter().all(|line| line["total"] == n_bytes), "{told:?}");
        assert!(told.is_sorted_by_key(|line| line["completed"].as_u64()), "{told:?}");
        let (end, begun) = told.split_last().unwrap();
        let digest = json!(format!("sha256:{hash}"));
        assert_eq!((&end["completed"], &end["digest"]), (&json!(n_bytes), &digest));
        let known = if is_hash_known { digest } else { Value::Null };
        assert!(begun.iter().all(|line| line["digest"] == known), "{begun:?}");
        // By the name that it was pulled by, and by its file's.
        let listed = || {
            let tags = get(address, "/api/tags").json()["models"].clone();
            let mut found = tags.as_array().unwrap().clone();
            found.retain(|tag| tag["name"].as_str().unwrap().starts_with("tiny-"));
            found
        };
        let names: Vec<Value> = listed().iter().map(|tag| tag["name"].clone()).collect();
        assert_eq!(names, ["tiny-llama", "tiny-coder"]);
        for tag in listed() {
            assert_eq!((&tag["digest"], &tag["size"]), (&json!(hash), &json!(n_bytes)), "{tag}");
        }
        let here = "pulling manifest, pulling tiny-llama.gguf, success";
        assert_eq!(states(&pull()), here, "what is here is not fetched again");
        let ask = |more: Value| {
            let mut body = json!({"model": "tiny-coder", "stream": false});
            body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            post(address, "/api/generate", &body)
        };
        let few = json!({"num_predict": 3});
        let said = ask(json!({"prompt": "a", "keep_alive": -1, "options": few})).json();
        assert_eq!((&said["done"], &said["eval_count"]), (&json!(true), &json!(3)), "{said}");
        let delete = || {
            let body = json!({"model": "tiny-coder"}).to_string();
            send(address, "DELETE", "/api/delete", &[], &body).status
        };
        assert_eq!(delete(), 409, "it is loaded");
        assert_eq!(ask(json!({"keep_alive": 0})).json()["done_reason"], "unload");
        assert_eq!((delete(), listed(), delete()), (200, Vec::new(), 404));
        let whole = json!({"model": "tiny-coder", "stream": false});
        assert_eq!(post(address, "/api/pull", &whole).json(), json!({"status": "success"}));
        assert_eq!(listed().len(), 2);
    }
}

#[test]
fn a_model_that_the_disk_has_no_room_for_is_not_begun_and_says_what_to_do() {
    let home = tempfile::tempdir().unwrap();
    let url = pull::liar(Vec::new()).url("/huge.gguf");
    let entry = format!("[[model]]\nname = \"vast\"\nurl = \"{url}\"\n");
    let service = with_catalog(home.path(), &entry, &["-c", "512", "-np", "1"]);
    let whole = json!({"model": "vast", "stream": false});
    let answer = post(service.address, "/api/pull", &whole);
    let why = answer.json()["error"].as_str().unwrap_or_default().to_owned();
    assert!(answer.status == 507 && why.contains("remove a model"), "{}", answer.text());
    let lines = post(service.address, "/api/pull", &json!({"model": "vast"})).text();
    assert!(lines.lines().last().unwrap().contains("remove a model"), "{lines}");
}

/// The clients' own opinion of the real binary.
#[test]
fn the_ollama_clients_are_content() {
    let python = python_with("ollama", "ollama-sdk");
    let node = node_with("ollama", "ollama-node");
    if python.is_none() && node.is_none() {
        return;
    }
    let home = tempfile::tempdir().unwrap();
    let encoder = home.path().join("encoder.gguf");
    std::fs::write(&encoder, Recipe::read("bert-mean").build(TensorType::F32)).unwrap();
    let (writer, ..) = with_source(home.path(), true, &["-c", "2048", "-np", "2"]);
    let embedder = Process::start(home.path(), &["-m", encoder.to_str().unwrap()]);
    let url = |service: &Process| format!("http://{}", service.address);
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/sdk");
    let mut commands = Vec::new();
    if let Some(python) = python {
        let mut command = Command::new(python);
        command.arg(format!("{folder}/ollama_sdk.py"));
        command.args([&url(&writer), "--embeddings", &url(&embedder), "--pull", "tiny-coder"]);
        commands.push(command);
    }
    if let Some(node) = node {
        let mut command = Command::new(node);
        command.arg(format!("{folder}/ollama_sdk.mjs")).args([&url(&writer), "tiny-coder"]);
        commands.push(command);
    }
    for mut command in commands {
        let output = command.output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{said}\n{}", String::from_utf8_lossy(&output.stderr));
    }
}
