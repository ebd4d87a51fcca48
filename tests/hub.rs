//! The hub: real processes that are killed, and servers outside that err in every way.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};

use crate::cli::jetforge;
use crate::serve::Process;
use crate::support::fake::{Act, Fake, completion, piece};
use crate::support::http::{Answer, Wire, get, post, request, send, until};
use crate::support::socket::Socket;

/// A hub on a free port that probes often and waits briefly.
fn hub(home: &Path, options: &[&str]) -> Process {
    let quick = ["--port", "0", "--set", "hub.probe_ms=50", "--set", "hub.probe_wait_ms=2000"];
    Process::start_verb(home, "hub", &[&quick, options].concat())
}

fn appliance(home: &Path, options: &[&str]) -> Process {
    let own = ["--alias", "coder", "-c", "8192", "-np", "2"];
    Process::start(home, &[&own, options].concat())
}

/// A hub before these servers outside, without an engine of its own.
fn hub_before(home: &Path, fakes: &[&Fake], options: &[&str]) -> Process {
    let urls: Vec<String> =
        fakes.iter().map(|fake| format!("http://{}/v1", fake.address)).collect();
    let urls = urls.join(",");
    let own = ["--no-local", "--external-llama", &urls];
    let hub = hub(home, &[&own, options].concat());
    for fake in fakes {
        until_well(hub.address, &fake.address.to_string());
    }
    hub
}

fn backend(hub: SocketAddr, name: &str) -> Value {
    let status = get(hub, "/v1/status").json();
    let backends = status["upstream"]["backends"].as_array().unwrap();
    backends.iter().find(|backend| backend["name"] == name).unwrap().clone()
}

fn until_well(hub: SocketAddr, name: &str) {
    until("the backend is well", || backend(hub, name)["standing"] == "well");
}

fn host(answer: &Answer) -> &str {
    answer.header("x-jetforge-host").unwrap()
}

/// The texts of an answer's frames, and its last frame.
fn frames(text: &str) -> (String, Value) {
    let data = text.lines().filter_map(|line| line.strip_prefix("data: "));
    let values: Vec<Value> = data
        .filter(|data| *data != "[DONE]")
        .map(|data| serde_json::from_str(data).unwrap())
        .collect();
    let part = |value: &Value| {
        let choice = &value["choices"][0];
        let text = choice["text"].as_str().or(value["content"].as_str());
        text.unwrap_or_default().to_owned()
    };
    (values.iter().map(part).collect(), values.last().cloned().unwrap_or_default())
}

/// A hub before an appliance, each with a key of its own.
struct Keyed {
    _homes: [tempfile::TempDir; 2],
    nano: Process,
    hub: Process,
}

const MINE: [(&str, &str); 1] = [("authorization", "Bearer jf-mine")];
const OF_NANO: [(&str, &str); 1] = [("authorization", "Bearer jf-nano")];

impl Keyed {
    fn start() -> Keyed {
        let homes = [(); 2].map(|()| tempfile::tempdir().unwrap());
        let nano = appliance(homes[0].path(), &["--api-key", "jf-nano"]);
        let address = nano.address.to_string();
        let keys = ["--nano", &address, "--nano-key", "jf-nano", "--api-key", "jf-mine"];
        let hub = hub(homes[1].path(), &keys);
        until("the appliance is well", || {
            let status = send(hub.address, "GET", "/v1/status", &MINE, "").json();
            let backends = status["upstream"]["backends"].as_array().unwrap().clone();
            assert_eq!(backends[1]["kind"], "local");
            assert_eq!(backends[0]["leaves_this_machine"], false);
            backends[0]["standing"] == "well"
        });
        Keyed { _homes: homes, nano, hub }
    }

    fn ask(&self, body: &Value) -> Answer {
        send(self.hub.address, "POST", "/v1/completions", &MINE, &body.to_string())
    }

    /// The appliance's own answer.
    fn direct(&self) -> Value {
        let body = add().to_string();
        send(self.nano.address, "POST", "/v1/completions", &OF_NANO, &body).json()
    }

    fn nano(&self) -> String {
        self.nano.address.to_string()
    }
}

fn add() -> Value {
    json!({"model": "coder", "prompt": "def add(a, b):", "max_tokens": 16, "temperature": 0})
}

#[test]
fn a_hub_passes_requests_on_and_says_who_answered() {
    let house = Keyed::start();
    let (body, direct) = (add(), house.direct());
    let answer = house.ask(&body);
    assert_eq!((answer.status, host(&answer)), (200, &*house.nano()), "{}", answer.text());
    assert_eq!(answer.json()["choices"], direct["choices"]);
    assert_eq!(answer.json()["jetforge_host"], *house.nano());
    let mut streamed = body.clone();
    streamed["stream"] = json!(true);
    let answer = house.ask(&streamed);
    assert_eq!((answer.status, host(&answer)), (200, &*house.nano()));
    assert!(answer.text().ends_with("data: [DONE]\n\n"), "{}", answer.text());
    assert_eq!(frames(&answer.text()).0, direct["choices"][0]["text"].as_str().unwrap());
    // The hub's own engine has a model as well, and the appliance's are listed beside it.
    let models = get(house.hub.address, "/v1/models").json();
    let models = models["data"].as_array().unwrap().iter();
    let ids: Vec<Value> = models.map(|model| model["id"].clone()).collect();
    assert!(ids.contains(&json!("default")) && ids.contains(&json!("coder")), "{ids:?}");
    // Where they are is told to those who have a key.
    let hosts = |headers: &[(&str, &str)]| {
        let models = send(house.hub.address, "GET", "/v1/models", headers, "").json();
        let models = models["data"].as_array().unwrap().clone();
        models.into_iter().find(|model| model["id"] == "coder").unwrap()["hosts"].clone()
    };
    assert_eq!((hosts(&[]), hosts(&MINE)), (Value::Null, json!([house.nano()])));
    // Keys: ours at the door, the hub's own at the appliance.
    assert_eq!(post(house.hub.address, "/v1/completions", &body).status, 401);
    let wrong = send(house.hub.address, "POST", "/v1/completions", &OF_NANO, &body.to_string());
    assert_eq!(wrong.status, 401);
    // A model that nobody has, and a request that is wrong everywhere.
    let mut unknown = body.clone();
    unknown["model"] = json!("nobody-has-it");
    let answer = house.ask(&unknown);
    assert_eq!((answer.status, answer.error_type().as_str()), (404, "not_found_error"));
    assert!(answer.text().contains("coder"), "{}", answer.text());
    let mut wrong = body.clone();
    wrong["temperature"] = json!("hot");
    let answer = house.ask(&wrong);
    assert_eq!((answer.status, host(&answer)), (400, &*house.nano()), "{}", answer.text());
}

#[test]
fn tasks_go_by_the_socket_and_people_by_the_command_line() {
    let house = Keyed::start();
    // AutoCoder's tasks, by its WebSocket: the appliance keeps them under their ids.
    let task = json!({"request_id": "t1", "request_type": "code_generation",
        "prompt": "def add(a, b):", "parameters": {"max_tokens": 8, "temperature": 0}});
    let mut socket = Socket::open(house.hub.address, "/ws", &MINE).ok().unwrap();
    socket.send(&task.to_string());
    let said: Value = serde_json::from_str(&socket.read().unwrap()).unwrap();
    assert_eq!((&said["request_id"], &said["status"]), (&json!("t1"), &json!("success")), "{said}");
    assert_eq!(send(house.nano.address, "GET", "/tasks/t1", &OF_NANO, "").status, 200);
    socket.send(r#"{"request_id": "t2", "prompt": 7}"#);
    let said: Value = serde_json::from_str(&socket.read().unwrap()).unwrap();
    assert_eq!((&said["request_id"], &said["status"]), (&json!("t2"), &json!("error")), "{said}");
    // The verbs.
    let url = house.hub.address.to_string();
    let run = |args: &[&str]| {
        let own = ["--url", &url, "--key", "jf-mine"];
        let home = tempfile::tempdir().unwrap();
        let output = jetforge(home.path()).args(args).args(own).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let status = run(&["hub", "status"]);
    assert!(status.contains("appliance") && status.contains("coder"), "{status}");
    let status: Value = serde_json::from_str(&run(&["hub", "status", "--json"])).unwrap();
    assert_eq!(status["backends"][0]["name"], *house.nano());
    let client = ["client", "--prompt", "def add(a, b):", "--raw", "--model", "coder"];
    let said = run(&[&client[..], &["-n", "16", "--temp", "0"]].concat());
    let direct = house.direct();
    assert_eq!(said.trim_end(), direct["choices"][0]["text"].as_str().unwrap().trim_end());
}

/// Frames of a text until its last one; the text, and the last frame.
fn live(socket: &mut Socket) -> (String, Value) {
    let mut text = String::new();
    loop {
        let frame = socket.json();
        text += frame["text"].as_str().unwrap_or_else(|| panic!("{frame}"));
        if frame["done"] == true {
            return (text, frame);
        }
    }
}

#[test]
fn texts_by_the_socket_are_written_elsewhere_and_taken_up_here() {
    let house = Keyed::start();
    let open = || Socket::open(house.hub.address, "/ws/completions", &MINE).ok().unwrap();
    let mut body = add();
    body["request_id"] = json!("live-1");
    let mut socket = open();
    socket.send(&body.to_string());
    let (text, last) = live(&mut socket);
    assert_eq!(text, house.direct()["choices"][0]["text"].as_str().unwrap());
    assert_eq!(last["jetforge_host"], house.nano(), "{last}");
    assert!(last["usage"]["completion_tokens"].as_u64().unwrap() > 0, "{last}");
    // On another connection, from a place in it, also when nobody is left to write it.
    let mut socket = open();
    let Keyed { _homes, nano, hub } = house;
    nano.kill();
    socket.send(&json!({"request_id": "live-1", "offset": 4}).to_string());
    assert_eq!(live(&mut socket).0, text[4..]);
    let mut other = add();
    other["request_id"] = json!("live-2");
    other["prompt"] = json!(["a", "b"]);
    socket.send(&other.to_string());
    let (_, last) = live(&mut socket);
    assert_eq!(last["error"]["param"], "prompt", "{last}");
    drop((_homes, hub));
}

#[test]
fn a_text_by_the_socket_is_taken_back() {
    let home = tempfile::tempdir().unwrap();
    let silent = Fake::external("m", |_| Act::Silence);
    let hub = hub_before(home.path(), &[&silent], &[]);
    let mut socket = Socket::open(hub.address, "/ws/completions", &[]).ok().unwrap();
    socket.send(&json!({"request_id": "live-1", "prompt": "x"}).to_string());
    until("it is asked", || !silent.heard().is_empty());
    assert_eq!(silent.heard()[0].json()["stream"], true);
    let mut socket = Socket::open(hub.address, "/ws/completions", &[]).ok().unwrap();
    socket.send(&json!({"request_id": "live-1", "cancel": true}).to_string());
    assert_eq!(live(&mut socket).1["finish_reason"], "canceled");
}

#[test]
fn a_job_waits_for_the_end_of_an_outage_however_long_it_is() {
    let homes = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let nano = appliance(homes[0].path(), &[]);
    let (name, port) = (nano.address.to_string(), nano.address.port().to_string());
    let quick = ["--no-local", "--nano", &name, "--set", "jobs.pause_ms=20"];
    let hub = hub(homes[1].path(), &quick);
    until_well(hub.address, &name);
    nano.kill();
    let job = json!({"endpoint": "/v1/completions", "body": add(), "attempts": 1});
    let job = post(hub.address, "/v1/jobs", &job);
    assert_eq!(job.status, 202, "{}", job.text());
    let path = format!("/v1/jobs/{}", job.json()["id"].as_str().unwrap());
    until("nobody took it", || {
        let job = get(hub.address, &path).json();
        let why = job["reason"].as_str().unwrap_or_default();
        job["state"] == "queued" && why.contains("no backend took it")
    });
    let own = ["--port", &port, "--alias", "coder", "-c", "8192", "-np", "2"];
    let back = Process::start_verb(homes[0].path(), "serve", &own);
    until("it is done", || get(hub.address, &path).json()["state"] == "done");
    drop(back);
}

#[test]
fn a_job_spends_its_attempt_on_who_took_it_though_the_words_of_its_failure_break_off() {
    let home = tempfile::tempdir().unwrap();
    let head = "HTTP/1.1 500 Internal Server Error\r\ncontent-length: 90\r\n\
                content-type: application/json\r\n\r\n{";
    let bad = Fake::external("m", move |_| Act::Bytes(head));
    let hub = hub_before(home.path(), &[&bad], &["--set", "jobs.pause_ms=20"]);
    let body = json!({"model": "m", "prompt": "x", "max_tokens": 4});
    let job = json!({"endpoint": "/v1/completions", "body": body, "attempts": 1});
    let job = post(hub.address, "/v1/jobs", &job);
    assert_eq!(job.status, 202, "{}", job.text());
    let path = format!("/v1/jobs/{}", job.json()["id"].as_str().unwrap());
    until("it is over", || {
        let job = get(hub.address, &path).json();
        assert!(!job["reason"].as_str().unwrap_or_default().contains("no backend took it"));
        !matches!(job["state"].as_str(), Some("queued" | "running"))
    });
}

#[test]
fn an_appliance_that_dies_is_replaced_and_comes_back() {
    let homes = [(); 3].map(|()| tempfile::tempdir().unwrap());
    let one = appliance(homes[0].path(), &[]);
    let two = appliance(homes[1].path(), &[]);
    let addresses = [one.address.to_string(), two.address.to_string()];
    let nanos = addresses.join(",");
    let hub = hub(homes[2].path(), &["--no-local", "--nano", &nanos]);
    addresses.iter().for_each(|address| until_well(hub.address, address));
    // A seed of the client's own, and none: the hub gives one to streams.
    let body = json!({"model": "coder", "prompt": "def add(a, b):", "n_predict": 1500,
        "ignore_eos": true, "temperature": 0.9, "seed": 7, "stream": true});
    let mut wire = Wire::open(hub.address);
    wire.write(request("POST", "/completion", &[], &body.to_string()));
    let (status, headers) = wire.read_head().unwrap();
    assert_eq!(status, 200);
    let name = headers.iter().find(|(name, _)| name == "x-jetforge-host").unwrap().1.clone();
    let mut text = String::from_utf8(wire.read_chunk().unwrap()).unwrap();
    let (dead, alive, left) = match name == addresses[0] {
        true => (one, addresses[1].clone(), two),
        false => (two, addresses[0].clone(), one),
    };
    let port = dead.address.port().to_string();
    dead.kill();
    while let Some(chunk) = wire.read_chunk() {
        text += &String::from_utf8(chunk).unwrap();
    }
    assert!(text.contains(&format!(": goes on at {alive}\n\n")), "it went on elsewhere");
    let (heard, last) = frames(&text);
    assert_eq!(last["stop"], true, "{last}");
    let mut whole = body.clone();
    whole["stream"] = json!(false);
    let direct = post(left.address, "/completion", &whole).json();
    assert_eq!(heard, direct["content"].as_str().unwrap(), "nothing is lost and nothing doubled");
    // Nobody is sent to the dead one, and what it was asked before its first byte goes elsewhere.
    for n in 0..6 {
        let body = json!({"model": "coder", "prompt": format!("{n}"), "n_predict": 2});
        let answer = post(hub.address, "/completion", &body);
        assert_eq!((answer.status, host(&answer)), (200, alive.as_str()), "{}", answer.text());
    }
    assert_eq!(backend(hub.address, &name)["standing"], "ejected");
    let dead_home = homes[usize::from(name == addresses[1])].path();
    let own = ["--port", &port, "--alias", "coder", "-c", "8192", "-np", "2"];
    let back = Process::start_verb(dead_home, "serve", &own);
    until_well(hub.address, &name);
    // With the other one gone it is asked again, at once and without an error to the client.
    left.kill();
    let answer = post(hub.address, "/completion", &json!({"prompt": "x", "n_predict": 2}));
    assert_eq!((answer.status, host(&answer)), (200, name.as_str()), "{}", answer.text());
    // With nobody left the client hears so, and who was asked.
    back.kill();
    let answer = post(hub.address, "/completion", &json!({"prompt": "x", "n_predict": 2}));
    assert_eq!((answer.status, answer.error_type().as_str()), (502, "upstream_error"));
    let is_named = addresses.iter().any(|own| answer.text().contains(own));
    assert!(is_named, "{}", answer.text());
}

#[test]
fn this_machine_takes_over_from_an_appliance_and_gives_back() {
    let homes = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let nano = Process::start(homes[0].path(), &["-c", "8192", "-np", "2"]);
    let name = nano.address.to_string();
    let hub = hub(homes[1].path(), &["--nano", &name, "-c", "8192", "--parallel", "2"]);
    until_well(hub.address, &name);
    let body = json!({"prompt": "def add(a, b):", "max_tokens": 1500, "ignore_eos": true,
        "temperature": 0, "stream": true});
    let mut wire = Wire::open(hub.address);
    wire.write(request("POST", "/v1/completions", &[], &body.to_string()));
    assert_eq!(wire.read_head().unwrap().0, 200);
    let mut text = String::from_utf8(wire.read_chunk().unwrap()).unwrap();
    nano.kill();
    while let Some(chunk) = wire.read_chunk() {
        text += &String::from_utf8(chunk).unwrap();
    }
    assert!(text.contains(": goes on at local\n\n") && text.ends_with("data: [DONE]\n\n"));
    let mut whole = body.clone();
    (whole["stream"], whole["model"]) = (json!(false), json!("default"));
    let answer = post(hub.address, "/v1/completions", &whole);
    assert_eq!(host(&answer), "local");
    assert_eq!(frames(&text).0, answer.json()["choices"][0]["text"].as_str().unwrap());
}

#[test]
fn a_server_outside_that_errs_costs_a_try_and_no_answer() {
    let acts = [
        Act::Json(500, json!({"error": {"message": "broken"}})),
        Act::Bytes("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n<html>"),
        Act::Bytes("no HTTP at all\r\n\r\n"),
        Act::Bytes(""),
        Act::Bytes(
            "HTTP/1.1 200 OK\r\ncontent-length: 90\r\ncontent-type: application/json\r\n\r\n{",
        ),
        Act::Silence,
        Act::Json(401, json!({"error": {"message": "whose key?"}})),
    ];
    for act in acts {
        let (home, said) = (tempfile::tempdir().unwrap(), format!("{act:?}"));
        let bad = Fake::external("m", move |_| act.clone());
        let good = Fake::external("m", |_| Act::Json(200, completion("fine")));
        let waits = ["--set", "hub.answer_ms=300", "--external-key", "sk-1"];
        let hub = hub_before(home.path(), &[&bad, &good], &waits);
        let mut n = 0;
        until("the bad one is asked", || {
            n += 1;
            let body = json!({"model": "m", "prompt": format!("{n}"), "max_tokens": 4});
            let answer = post(hub.address, "/v1/completions", &body);
            assert_eq!(answer.status, 200, "{said}: {}", answer.text());
            assert_eq!(host(&answer), good.address.to_string());
            assert_eq!(answer.json()["choices"][0]["text"], "fine");
            !bad.heard().is_empty()
        });
        let heard = good.heard().pop().unwrap();
        assert_eq!(heard.key.as_deref(), Some("Bearer sk-1"));
        let status = backend(hub.address, &bad.address.to_string());
        assert!(status["failed"].as_u64().unwrap() > 0, "{said}: {status}");
    }
}

#[test]
fn a_server_outside_without_an_answer_is_a_failure_that_ends() {
    let home = tempfile::tempdir().unwrap();
    let silent = Fake::external("m", |_| Act::Silence);
    // Others may take longer.
    let hub = hub_before(home.path(), &[&silent], &["--external-timeout", "1"]);
    for streams in [false, true] {
        let body = json!({"prompt": "x", "stream": streams});
        let answer = post(hub.address, "/v1/completions", &body);
        assert_eq!((answer.status, answer.error_type().as_str()), (502, "upstream_error"));
        assert!(answer.text().contains("no answer in time"), "{}", answer.text());
    }
    // It is named a model, for a server outside may want one; words of ours are not sent there.
    assert_eq!(silent.heard()[0].json()["model"], "m");
    let answer = post(hub.address, "/api/generate", &json!({"model": "m", "prompt": "x"}));
    assert_eq!(answer.status, 501, "{}", answer.text());
}

#[test]
fn with_hedging_a_second_one_answers_for_a_silent_one() {
    let home = tempfile::tempdir().unwrap();
    let silent = Fake::external("m", |_| Act::Silence);
    let good = Fake::external("m", |_| Act::Json(200, completion("fine")));
    let hub = hub_before(home.path(), &[&silent, &good], &["--set", "hub.hedge_ms=20"]);
    let mut n = 0;
    until("the silent one is asked first", || {
        n += 1;
        let body = json!({"model": "m", "prompt": format!("{n}")});
        let answer = post(hub.address, "/v1/completions", &body);
        assert_eq!((answer.status, host(&answer)), (200, good.address.to_string().as_str()));
        !silent.heard().is_empty()
    });
}

#[test]
fn a_stream_goes_on_as_the_same_text_or_ends_as_a_failure() {
    let is_same = Arc::new(AtomicBool::new(true));
    let text = |same: &AtomicBool| if same.load(Ordering::SeqCst) { "def add" } else { "fn add" };
    let home = tempfile::tempdir().unwrap();
    let has_cut = Arc::new(AtomicBool::new(false));
    // Whoever is asked first breaks off; the other one goes on.
    let make = || {
        let (same, cut) = (Arc::clone(&is_same), Arc::clone(&has_cut));
        Fake::external("m", move |heard| {
            assert!(heard.json()["seed"].is_u64(), "a stream has a seed");
            if !cut.swap(true, Ordering::SeqCst) {
                let values = vec![piece("a", "def", None), piece("a", " a", None)];
                return Act::Stream { values, is_whole: false };
            }
            let values = vec![
                piece("b", text(&same), None),
                piece("b", "(a, b)", None),
                piece("b", "", Some("stop")),
            ];
            Act::Stream { values, is_whole: true }
        })
    };
    let fakes = [make(), make()];
    let hub = hub_before(home.path(), &[&fakes[0], &fakes[1]], &[]);
    let ask = || {
        has_cut.store(false, Ordering::SeqCst);
        for fake in &fakes {
            until_well(hub.address, &fake.address.to_string());
        }
        let body = json!({"model": "m", "prompt": "x", "stream": true});
        post(hub.address, "/v1/completions", &body)
    };
    let answer = ask();
    let (heard, last) = frames(&answer.text());
    assert_eq!(heard, "def add(a, b)", "{}", answer.text());
    assert_eq!((&last["id"], &last["choices"][0]["finish_reason"]), (&json!("a"), &json!("stop")));
    assert!(answer.text().ends_with("data: [DONE]\n\n"));
    is_same.store(false, Ordering::SeqCst);
    let answer = ask();
    let (heard, last) = frames(&answer.text());
    assert_eq!(heard, "def a");
    assert_eq!(last["error"]["type"], "upstream_error", "{}", answer.text());
    assert!(!answer.text().contains("[DONE]"));
}

#[test]
fn a_hub_that_others_can_reach_needs_a_key() {
    let home = tempfile::tempdir().unwrap();
    let run = |args: &[&str]| {
        let output = jetforge(home.path()).args(args).output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let (code, said) = run(&["hub", "--host", "0.0.0.0", "--port", "0"]);
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("jetforge key create"), "{said}");
    for (address, why) in [("ftp://x", "use http"), ("http://a:b@x", "password"), ("", "address")] {
        let (code, said) = run(&["hub", "--port", "0", "--nano", address]);
        assert_eq!(code, Some(2), "{said}");
        assert!(said.contains(why), "{said}");
    }
    let file = home.path().join("keys");
    std::fs::write(&file, "just-one-word\n").unwrap();
    let file = file.display().to_string();
    let (code, said) = run(&["hub", "--port", "0", "--backend-keys", &file]);
    assert_eq!(code, Some(2), "{said}");
}

#[test]
fn what_a_server_outside_leaves_out_is_said() {
    let home = tempfile::tempdir().unwrap();
    let bare = Fake::external("m", |heard| match heard.json()["prompt"].as_str() {
        Some("counted") => Act::Json(
            200,
            json!({"choices": [{"text": "b", "finish_reason": null}],
                "usage": {"prompt_tokens": 2, "completion_tokens": 3}}),
        ),
        _ => Act::Json(200, json!({"choices": [{"text": "a"}]})),
    });
    let hub = hub_before(home.path(), &[&bare], &[]);
    let ask = |prompt: &str| {
        let answer = post(hub.address, "/v1/completions", &json!({"prompt": prompt}));
        assert_eq!(answer.status, 200, "{}", answer.text());
        answer.json()
    };
    for (prompt, text, n_total) in [("x", "a", 0), ("counted", "b", 5)] {
        let answer = ask(prompt);
        let choice = &answer["choices"][0];
        assert_eq!((&choice["text"], &choice["finish_reason"]), (&json!(text), &json!("unknown")));
        assert_eq!(answer["usage"]["total_tokens"], n_total, "{answer}");
    }
}
