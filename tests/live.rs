//! `/ws/completions`, `/v1/status` and Tabby's dialect on the wire.

use std::path::Path;
use std::process::Command;

use jetforge::base::host::Host;
use jetforge::inference::Script;
use jetforge::server::{Class, GateOptions, Grant, KeyFile, Scope};
use serde_json::{Value, json};

use crate::jobs::serve;
use crate::serve::Process;
use crate::server::{House, Pause, counted, plan};
use crate::support::http::{get, post, send, until};
use crate::support::skip::node_with;
use crate::support::socket::Socket;

fn counting() -> House {
    let mut plan = plan();
    plan.script = Some(Box::new(counted));
    plan.start()
}

fn open(house: &House) -> Socket {
    Socket::open(house.address, "/ws/completions", &[]).ok().unwrap()
}

/// Frames until the last one of `id`; their text put together, with a look at their offsets.
fn read(socket: &mut Socket, id: &str, mut offset: u64) -> (String, Value) {
    let mut text = String::new();
    loop {
        let frame = socket.json();
        assert_eq!(frame["request_id"], id, "{frame}");
        assert_eq!(frame["offset"], offset, "{frame}");
        text += frame["text"].as_str().unwrap();
        offset = frame["next"].as_u64().unwrap();
        if frame["done"] == true {
            return (text, frame);
        }
    }
}

#[test]
fn frames_put_together_are_the_text_over_http_and_can_be_taken_up_again() {
    let house = counting();
    let body = json!({"prompt": "count", "max_tokens": 40, "temperature": 0});
    let whole = post(house.address, "/v1/completions", &body).json();
    let expected = whole["choices"][0]["text"].as_str().unwrap().to_owned();
    let mut asked = body.clone();
    asked["request_id"] = "live-1".into();
    let mut socket = open(&house);
    socket.send(&asked.to_string());
    let first = socket.json();
    let next = first["next"].as_u64().unwrap();
    drop(socket);
    // The connection broke; another goes on from the last place that it knows.
    let mut socket = open(&house);
    socket.send(&json!({"request_id": "live-1", "offset": next}).to_string());
    let (rest, last) = read(&mut socket, "live-1", next);
    assert_eq!(format!("{}{rest}", first["text"].as_str().unwrap()), expected);
    assert_eq!(
        (&last["finish_reason"], &last["usage"]["completion_tokens"]),
        (&json!("length"), &json!(40))
    );
    // Afterwards as well, from the start, and by the same request.
    for again in [json!({"request_id": "live-1"}), asked.clone()] {
        socket.send(&again.to_string());
        assert_eq!(read(&mut socket, "live-1", 0).0, expected);
    }
    let chat = json!({"messages": [{"role": "user", "content": "x"}], "max_tokens": 9,
        "temperature": 0, "request_id": "chat"});
    socket.send(&chat.to_string());
    let (said, _) = read(&mut socket, "chat", 0);
    let mut plain = chat.clone();
    plain["request_id"] = Value::Null;
    let answer = post(house.address, "/v1/chat/completions", &plain).json();
    assert_eq!(answer["choices"][0]["message"]["content"], said);
}

#[test]
fn what_cannot_be_taken_up_is_said_and_a_text_can_be_ended() {
    let house = counting();
    let mut socket = open(&house);
    let body = json!({"request_id": "a", "prompt": "p", "max_tokens": 5, "temperature": 0});
    socket.send(&body.to_string());
    let (text, _) = read(&mut socket, "a", 0);
    for (message, code) in [
        (json!({"request_id": "none", "offset": 0}), 404),
        (json!({"request_id": "a", "offset": text.len() + 1}), 400),
        (json!({"request_id": "a", "prompt": "another"}), 409),
        (json!({"request_id": "b c", "prompt": "p"}), 400),
        (json!({"request_id": "none", "cancel": true}), 404),
        (json!([]), 400),
    ] {
        socket.send(&message.to_string());
        let said = socket.json();
        assert_eq!(said["error"]["code"], code, "{message}: {said}");
        assert_eq!(said["request_id"], message.get("request_id").unwrap_or(&json!("")).clone());
    }
    for wrong in [json!({"prompt": ["a", "b"]}), json!({"prompt": "p", "temperature": "hot"})] {
        socket.send(&wrong.to_string());
        let said = socket.json();
        assert_eq!((&said["done"], &said["error"]["code"]), (&json!(true), &json!(400)), "{said}");
    }
    let mut other = open(&house);
    let endless = json!({"request_id": "e", "prompt": "p", "context_shift": true,
        "max_tokens": 1_000_000});
    socket.send(&endless.to_string());
    assert_eq!(socket.json()["done"], false);
    other.send(&json!({"request_id": "e", "cancel": true}).to_string());
    let ends = |socket: &mut Socket| loop {
        let frame = socket.json();
        if frame["done"] == true {
            return frame["finish_reason"].clone();
        }
    };
    assert_eq!((ends(&mut socket), ends(&mut other)), (json!("canceled"), json!("canceled")));
    house.rest();
}

#[test]
fn a_text_that_failed_may_go_again() {
    let house = counting();
    let mut socket = open(&house);
    let body = |temperature: Value| {
        json!({"request_id": "again", "prompt": "p", "max_tokens": 5,
            "temperature": temperature})
    };
    socket.send(&body(json!("hot")).to_string());
    let said = socket.json();
    assert_eq!((&said["done"], &said["finish_reason"]), (&json!(true), &json!("error")), "{said}");
    socket.send(&body(json!(0)).to_string());
    let (text, last) = read(&mut socket, "again", 0);
    assert!(!text.is_empty() && last["finish_reason"] == "length", "{last}");
}

/// A text that was killed in its middle: the service as it is back, the text's name, what was heard
/// of it. `options` are those of the service that is back.
fn cut_off(home: &Path, options: &[&str]) -> (Process, String, String) {
    let newest = |address| get(address, "/v1/jobs").json()["data"][0].clone();
    let cut = (0..50).find_map(|n| {
        let service = serve(home, &[]);
        let address = service.address;
        let id = format!("cut-{}-{n}", options.len());
        let mut socket = Socket::open(address, "/ws/completions", &[]).ok().unwrap();
        // Drawn, and without a seed.
        let body = json!({"request_id": id, "prompt": "def add(a, b):", "max_tokens": 400,
            "temperature": 0.9, "ignore_eos": true});
        socket.send(&body.to_string());
        let mut heard = String::new();
        until("some of it is durable", || {
            let frame = socket.json();
            heard += frame["text"].as_str().unwrap();
            let job = newest(address);
            assert_eq!(job["request_id"], id, "{job}");
            job["n_token"].as_i64() > Some(0) || frame["done"] == true
        });
        service.kill();
        let service = serve(home, options);
        (newest(service.address)["state"] != "done").then_some((service, id, heard))
    });
    cut.expect("one is cut off")
}

#[test]
fn a_text_with_a_name_goes_on_at_its_offset_when_the_program_was_killed() {
    // Taken up by the service itself, or when somebody asks for it.
    for options in [&[][..], &["--set", "jobs.windows_utc=['00:00-00:01']"]] {
        let home = tempfile::tempdir().unwrap();
        let (service, id, heard) = cut_off(home.path(), options);
        let open =
            |service: &Process| Socket::open(service.address, "/ws/completions", &[]).ok().unwrap();
        let from = |offset: usize| json!({"request_id": id, "offset": offset}).to_string();
        let mut socket = open(&service);
        socket.send(&from(heard.len()));
        let (rest, last) = read(&mut socket, &id, heard.len() as u64);
        let end = (&last["finish_reason"], &last["usage"]["completion_tokens"]);
        assert_eq!(end, (&json!("length"), &json!(400)), "{last}");
        let mut socket = open(&service);
        socket.send(&from(0));
        let (whole, _) = read(&mut socket, &id, 0);
        assert_eq!(format!("{heard}{rest}"), whole, "no letter twice and none left out");
        let newest = || get(service.address, "/v1/jobs").json()["data"][0].clone();
        until("its end is on the disk", || newest()["state"] == "done");
        let job = newest();
        assert_eq!((&job["way"], &job["request_id"]), (&json!("resumed"), &json!(id)), "{job}");
        service.kill();
        // From the disk, and by the request itself.
        let service = serve(home.path(), &[]);
        let mut socket = open(&service);
        socket.send(&from(heard.len()));
        assert_eq!(read(&mut socket, &id, heard.len() as u64), (rest, last.clone()));
        let mut body = json!({"request_id": id, "prompt": "def add(a, b):", "max_tokens": 400,
            "temperature": 0.9, "ignore_eos": true});
        let mut socket = open(&service);
        socket.send(&body.to_string());
        assert_eq!(read(&mut socket, &id, 0), (whole.clone(), last));
        body["max_tokens"] = json!(401);
        socket.send(&body.to_string());
        assert_eq!(socket.json()["error"]["code"], 409);
        socket.send(&from(whole.len() + 1));
        assert_eq!(socket.json()["error"]["param"], "offset");
        let metrics = get(service.address, "/metrics").text();
        let written =
            metrics.lines().find(|line| line.starts_with("jetforge_tokens_generated_total"));
        assert!(written.is_none_or(|line| line.ends_with(" 0")), "{written:?}");
    }
}

#[test]
fn a_text_that_was_ended_is_not_written_on_after_a_restart() {
    let home = tempfile::tempdir().unwrap();
    let service = serve(home.path(), &[]);
    let open =
        |service: &Process| Socket::open(service.address, "/ws/completions", &[]).ok().unwrap();
    let state = |service: &Process| {
        let jobs = get(service.address, "/v1/jobs").json()["data"].clone();
        jobs[0]["state"].as_str().unwrap().to_owned()
    };
    let long = json!({"request_id": "long", "prompt": "def add(a, b):", "max_tokens": 2000,
        "ignore_eos": true});
    let mut socket = open(&service);
    socket.send(&long.to_string());
    assert_eq!(socket.json()["done"], false);
    let cancel = json!({"request_id": "long", "cancel": true}).to_string();
    socket.send(&cancel);
    let ends = |socket: &mut Socket| loop {
        let frame = socket.json();
        if frame["done"] == true {
            return frame["finish_reason"].clone();
        }
    };
    assert_eq!(ends(&mut socket), "canceled");
    until("so is its job", || state(&service) == "cancelled");
    service.kill();
    let service = serve(home.path(), &[]);
    assert_eq!(state(&service), "cancelled");
    let mut socket = open(&service);
    socket.send(&json!({"request_id": "long", "offset": 3}).to_string());
    let said = socket.json();
    assert_eq!((&said["done"], &said["error"]["code"]), (&json!(true), &json!(409)), "{said}");
    socket.send(&json!({"request_id": "other", "cancel": true}).to_string());
    assert_eq!(socket.json()["error"]["code"], 404);
}

#[test]
fn a_text_that_is_ended_as_soon_as_it_is_asked_for_is_not_written() {
    let home = tempfile::tempdir().unwrap();
    let service = serve(home.path(), &[]);
    let states = || -> Vec<Value> {
        let jobs = get(service.address, "/v1/jobs").json()["data"].clone();
        jobs.as_array().unwrap().iter().map(|job| job["state"].clone()).collect()
    };
    for i in 0..8 {
        let mut socket = Socket::open(service.address, "/ws/completions", &[]).ok().unwrap();
        let id = format!("typed-{i}");
        let long = json!({"request_id": id, "prompt": "def add(a, b):", "max_tokens": 2000,
            "ignore_eos": true});
        socket.send(&long.to_string());
        let cancel = json!({"request_id": id, "cancel": true}).to_string();
        socket.send(&cancel);
        loop {
            let frame = socket.json();
            if frame["error"]["code"] == 404 {
                // It overtook what it ends.
                socket.send(&cancel);
            } else if frame["done"] == true {
                assert_eq!(frame["finish_reason"], "canceled", "{frame}");
                break;
            }
        }
    }
    // Where one was ended before anybody took it in, there is no job at all.
    until("no job goes on", || states().iter().all(|state| state == "cancelled"));
}

/// A key that may have one request at once.
fn with_key(script: Script) -> (House, String, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let grant = Grant {
        class: Class::Interactive,
        scopes: vec![Scope::Inference],
        per_minute: None,
        at_once: Some(1),
    };
    let key = KeyFile::new(dir.path()).create("pc", grant).unwrap();
    let mut plan = plan();
    plan.gate = GateOptions { state_dir: Some(dir.path().to_owned()), ..GateOptions::default() };
    plan.script = Some(script);
    (plan.start(), format!("Bearer {key}"), dir)
}

#[test]
fn a_text_keeps_its_callers_place_while_it_is_written_and_whoever_reads_it_needs_none() {
    let (pause, script) = Pause::at(20);
    let (house, bearer, _dir) = with_key(script);
    let headers = [("authorization", bearer.as_str())];
    let open = || Socket::open(house.address, "/ws/completions", &headers).ok();
    let plain = || {
        let body = json!({"prompt": "p", "max_tokens": 1}).to_string();
        send(house.address, "POST", "/v1/completions", &headers, &body).status
    };
    let mut socket = open().unwrap();
    until("the place of opening is free", || plain() == 200);
    let endless = json!({"request_id": "e", "prompt": "p", "max_tokens": 1_000_000});
    socket.send(&endless.to_string());
    assert_eq!(socket.json()["done"], false);
    drop(socket);
    // To open a socket takes a place as well.
    assert!(open().is_none(), "the text is written on");
    assert_eq!(plain(), 429);
    pause.release();
    until("it ends by itself: the context is full", || plain() == 200);
}

#[test]
fn health_names_the_model_to_those_alone_who_may_use_it() {
    let (house, bearer, _dir) = with_key(Box::new(counted));
    let ask =
        |path: &str, headers: &[(&str, &str)]| send(house.address, "GET", path, headers, "").json();
    assert_eq!(ask("/v1/health", &[]), json!({"status": "ok"}));
    assert_eq!(ask("/v1/health", &[("authorization", "Bearer x")]), json!({"status": "ok"}));
    assert_eq!(ask("/v1/health", &[("authorization", &bearer)])["model"], "default");
    assert_eq!(ask("/health", &[]), json!({"status": "ok", "gpu_available": false}));
}

#[test]
fn the_status_has_the_models_and_what_runs() {
    let house = plan().start();
    let status = get(house.address, "/v1/status").json();
    assert_eq!((&status["status"], &status["default_model"]), (&json!("ok"), &json!("default")));
    let model = &status["models"][0];
    assert_eq!((&model["loaded"], &model["n_ctx"]), (&json!(true), &json!(512)));
    assert_eq!((&model["running"], &status["upstream"]), (&json!(0), &Value::Null));
}

#[test]
fn tabby_completes_at_the_cursor() {
    let house = plan().start();
    let segments = json!({"prefix": "def add(a, b):\n    return ", "suffix": "\n\nprint(1)\n",
        "filepath": "add.py", "git_url": null,
        "declarations": [{"filepath": "sub.py", "body": "def sub(a, b): ..."}],
        "relevant_snippets_from_changed_files": [
            {"filepath": "mul.py", "body": "def mul(a, b): ...", "score": 0.5}]});
    let body = json!({"language": "python", "segments": segments, "user": "u", "seed": 1,
        "debug_options": {"return_prompt": true, "return_snippets": true}});
    let answer = post(house.address, "/v1/completions", &body);
    assert_eq!(answer.status, 200, "{}", answer.text());
    let said = answer.json();
    assert!(said["id"].as_str().unwrap().starts_with("cmpl-"));
    let choices = said["choices"].as_array().unwrap();
    assert!(choices.len() == 1 && choices[0]["index"] == 0 && choices[0]["text"].is_string());
    let prompt = said["debug_data"]["prompt"].as_str().unwrap();
    let places =
        ["def sub", "def mul", "<|fim_prefix|>def add", "<|fim_suffix|>", "<|fim_middle|>"];
    let found: Vec<usize> = places.iter().map(|place| prompt.find(place).expect(place)).collect();
    assert!(found.is_sorted(), "{prompt}");
    assert_eq!(said["debug_data"]["snippets"].as_array().unwrap().len(), 2);
    let raw = json!({"debug_options": {"raw_prompt": "def add(a, b):", "return_prompt": true}});
    let said = post(house.address, "/v1/completions", &raw).json();
    assert!(said["debug_data"]["prompt"].as_str().unwrap().ends_with("def add(a, b):"), "{said}");
    for (wrong, param) in [
        (json!({"segments": {}}), "segments.prefix"),
        (json!({"segments": {"prefix": 5}}), "segments.prefix"),
        (json!({"segments": {"prefix": "", "declarations": [{}]}}), "segments.declarations[0]"),
        (json!({"segments": 5}), "segments"),
    ] {
        let answer = post(house.address, "/v1/completions", &wrong);
        assert_eq!(answer.status, 400, "{wrong}");
        assert_eq!(answer.json()["error"]["param"], param);
    }
    // OpenAI's own bodies stay OpenAI's.
    let plain = json!({"prompt": "a", "max_tokens": 1});
    let said = post(house.address, "/v1/completions", &plain).json();
    assert_eq!(said["object"], "text_completion");
}

#[test]
fn tabbys_agents_find_what_they_ask_for() {
    let house = plan().start();
    for method in ["GET", "POST"] {
        let health = send(house.address, method, "/v1/health", &[], "").json();
        assert_eq!((&health["status"], &health["model"]), (&json!("ok"), &json!("default")));
        // What the service says of itself elsewhere, and what this machine is.
        let props = get(house.address, "/props").json();
        assert_eq!(health["device"], props["device"]["name"], "{props}");
        let machine = Host::read();
        assert_eq!(health["arch"], machine.arch);
        assert_eq!(health["cpu_info"], machine.cpu_name);
        assert_eq!(health["cpu_count"], machine.n_threads);
        assert_eq!(health["cuda_devices"], json!([]), "it runs on the CPU");
        let version = health["version"]["git_describe"].as_str().unwrap();
        assert!(version.ends_with(env!("CARGO_PKG_VERSION")), "{health}");
        let known = ["build_date", "build_timestamp", "git_sha"];
        assert!(known.iter().all(|field| health["version"][field].is_string()), "{health}");
    }
    let setting = get(house.address, "/v1beta/server_setting").json();
    assert_eq!(setting, json!({"disable_client_side_telemetry": true}));
    assert_eq!(get(house.address, "/v1beta/models").json()["completion"], json!(["default"]));
    let event = |kind: &str| {
        let body = json!({"type": kind, "completion_id": "c", "choice_index": 0});
        post(house.address, "/v1/events?select_kind=line", &body).status
    };
    assert_eq!(["view", "view", "select", "stare"].map(event), [200, 200, 200, 400]);
    let counts = &get(house.address, "/v1/status").json()["completions"];
    assert_eq!(*counts, json!({"view": 2, "select": 1, "dismiss": 0}));
}

/// The agent's own opinion of the real binary.
#[test]
fn tabbys_agent_is_content() {
    let Some(node) = node_with("tabby-agent", "tabby-agent") else { return };
    let home = tempfile::tempdir().unwrap();
    let service = Process::start(home.path(), &["-c", "2048", "-np", "2"]);
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/sdk/tabby_agent.mjs");
    let url = format!("http://{}", service.address);
    let output = Command::new(node).args([script, &url]).env("HOME", home.path()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}\n{}", String::from_utf8_lossy(&output.stderr));
}
