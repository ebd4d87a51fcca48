//! The service on the wire, in this process: raw bytes in, raw bytes out, over a model that says
//! what a test wants it to say.
//!
//! Nothing sleeps: what has to become true is asked for until it is.

use std::net::SocketAddr;
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use jetforge::hosting::Host;
use jetforge::inference::{Engine, ModelSource, Script};
use jetforge::jobs::{AlwaysGo, Jobs, JobsConfig};
use jetforge::server::{
    Class, Gate, GateOptions, Grant, JobRunner, KeyFile, ListenOptions, Listener, Scope,
    ServeOptions, Server, router,
};
use jetforge::store::Store;
use serde_json::{Value, json};

use crate::support::hosted::Hosted;
use crate::support::http::{Wire, get, post, request, send, until};

/// Grace of a stop; nothing here needs as much.
const GRACE: Duration = Duration::from_secs(60);

/// A service on a free port, stopped when it is dropped.
pub struct House {
    pub address: SocketAddr,
    /// A further port that answers the same.
    also: SocketAddr,
    pub host: Host,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
    _state: Option<tempfile::TempDir>,
}

pub struct Plan {
    pub n_ctx: u32,
    pub script: Option<Script>,
    pub gate: GateOptions,
    /// Whether it has a store, and jobs in it.
    pub keeps_jobs: bool,
    listen: ListenOptions,
}

/// A service with the default model and the default options.
pub fn plan() -> Plan {
    let (gate, listen) = (GateOptions::default(), ListenOptions::default());
    Plan { n_ctx: 512, script: None, gate, keeps_jobs: false, listen }
}

impl Plan {
    pub fn start(self) -> House {
        let (n_ctx, script) = (Some(self.n_ctx), self.script);
        let source = ModelSource::Embedded;
        let host =
            Hosted { name: "default", aliases: &[], source, n_ctx, n_parallel: 4, script }.start();
        let options = ServeOptions {
            shows_metrics: true,
            shows_slots: true,
            allows_props: true,
            ..ServeOptions::default()
        };
        let gate = Gate::new(Server::new(host.clone(), options), self.gate).unwrap();
        let state = self.keeps_jobs.then(|| tempfile::tempdir().unwrap());
        if let Some(dir) = &state {
            let store = Store::open(dir.path()).unwrap().store;
            let (jobs, _) = Jobs::open(store, JobsConfig::default(), Box::new(AlwaysGo)).unwrap();
            gate.keep_jobs(jobs);
        }
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let (tell, told) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Runtime::new().unwrap();
            runtime.block_on(async {
                let any = "127.0.0.1:0".parse().unwrap();
                let mut listener = Listener::bind(any, self.listen).unwrap();
                let also = listener.also(0).unwrap();
                tell.send((listener.address(), also)).unwrap();
                let app = router(gate.clone());
                let runner = JobRunner::start(&gate);
                let stop = async {
                    drop(stopped.await);
                    runner.stop().await;
                };
                listener.serve(app, stop, GRACE).await;
            });
        });
        let (address, also) = told.recv().unwrap();
        let also = SocketAddr::new(address.ip(), also);
        House { address, also, host, stop: Some(stop), thread: Some(thread), _state: state }
    }
}

impl House {
    /// What the service is told when its process gets a signal.
    fn tell_to_stop(&mut self) {
        drop(self.stop.take());
    }

    fn engine(&self) -> Arc<Engine> {
        self.host.engines().remove(0).1
    }

    /// Waits until nothing runs and no page is held.
    pub fn rest(&self) {
        let engine = self.engine();
        until("the engine is at rest", || {
            engine.slots().wait().unwrap();
            let stats = engine.stats();
            stats.n_running + stats.n_waiting + stats.n_page_used == 0
        });
    }

    /// A metric of the service, its labels added up.
    pub fn metric(&self, name: &str) -> f64 {
        let text = get(self.address, "/metrics").text();
        let rows = text.lines().filter_map(|line| line.rsplit_once(' '));
        let rows = rows.filter(|(what, _)| what.split('{').next() == Some(name));
        rows.map(|(_, value)| value.parse::<f64>().unwrap()).sum()
    }
}

impl Drop for House {
    fn drop(&mut self) {
        self.tell_to_stop();
        let ended = self.thread.take().map(JoinHandle::join);
        if !std::thread::panicking() {
            assert!(ended.unwrap().is_ok(), "the service ended with a panic");
        }
    }
}

/// Counts on from the last token, and waits at a history of `n` tokens until it is released.
#[derive(Clone)]
pub struct Pause(Arc<(Mutex<bool>, Condvar)>);

impl Pause {
    pub fn at(n: usize) -> (Pause, Script) {
        let pause = Pause(Arc::new((Mutex::new(false), Condvar::new())));
        let theirs = pause.clone();
        let script = move |history: &[u32]| {
            let (released, changed) = &*theirs.0;
            if history.len() >= n {
                drop(changed.wait_while(released.lock().unwrap(), |is| !*is).unwrap());
            }
            counted(history)
        };
        (pause, Box::new(script))
    }

    pub fn release(&self) {
        *self.0.0.lock().unwrap() = true;
        self.0.1.notify_all();
    }
}

/// A model that counts on from the last token.
pub fn counted(history: &[u32]) -> u32 {
    300 + (history.last().unwrap_or(&0) + 1) % 50
}

/// A request for `n` tokens that nothing ends earlier.
fn completion(n: usize) -> Value {
    json!({"prompt": "x", "n_predict": n, "ignore_eos": true, "temperature": 0})
}

fn streamed(n: usize) -> Value {
    let mut body = completion(n);
    body["stream"] = json!(true);
    body
}

#[test]
fn paths_and_methods_that_are_not_there_are_told_in_json() {
    let house = plan().start();
    let answer = get(house.address, "/nowhere?x=1");
    assert_eq!((answer.status, answer.error_type().as_str()), (404, "not_found_error"));
    assert_eq!(answer.json()["error"]["message"], "File Not Found");
    let answer = send(house.address, "DELETE", "/health", &[], "");
    assert_eq!((answer.status, answer.error_type().as_str()), (405, "invalid_request_error"));
    assert_eq!(get(house.address, "/v1/health").json()["status"], "ok");
    let answer = send(house.address, "GET", "/health", &[("x-request-id", "mine-7")], "");
    assert_eq!(answer.header("x-request-id"), Some("mine-7"));
    let answer = send(house.address, "GET", "/health", &[("x-request-id", "not mine")], "");
    assert!(answer.header("x-request-id").unwrap().starts_with("req-"));
}

#[test]
fn broken_requests_cost_nobody_else_anything() {
    let house = plan().start();
    for body in ["{", "[1,2", "\"", "{\"prompt\": }", "\u{0}\u{1}", "null", "[]", "7"] {
        for path in ["/completion", "/v1/completions", "/v1/chat/completions", "/tokenize"] {
            let answer = send(house.address, "POST", path, &[], body);
            assert_eq!(answer.status, 400, "{path} {body:?}: {}", answer.text());
            answer.error_type();
        }
    }
    for half in [
        "",
        "P",
        "POST /completion HTTP/1.1\r\nhost: localhost\r\n",
        "POST /completion HTTP/1.1\r\nhost: localhost\r\ncontent-length: 50\r\n\r\n{\"prompt\":",
        "POST /completion HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n5\r\n{",
    ] {
        drop({
            let mut wire = Wire::open(house.address);
            wire.write(half);
            wire
        });
    }
    for nonsense in ["\u{16}\u{3}\u{1}\u{2}", "GET\r\n\r\n", "GET / HTTP/9.9\r\n\r\n"] {
        let mut wire = Wire::open(house.address);
        wire.write(nonsense);
        if let Some(answer) = wire.read() {
            assert_eq!(answer.status, 400, "{nonsense:?}");
        }
    }
    assert_eq!(post(house.address, "/completion", &completion(4)).status, 200);
    until("what was broken off is closed", || house.metric("jetforge_http_requests_open") == 1.0);
    house.rest();
}

#[test]
fn a_further_port_answers_as_the_first() {
    let house = plan().start();
    assert_ne!(house.also, house.address);
    let body = json!({"prompt": "a", "max_tokens": 2, "temperature": 0});
    let texts = [house.address, house.also].map(|address| {
        let answer = post(address, "/v1/completions", &body);
        assert_eq!(answer.status, 200);
        answer.json()["choices"][0]["text"].clone()
    });
    assert_eq!(texts[0], texts[1]);
}

#[test]
fn bodies_and_headers_have_bounds_and_say_so() {
    let mut plan = plan();
    plan.gate.body_bytes_max = 2000;
    plan.gate.body_read = Duration::from_millis(50);
    let house = plan.start();
    let sized = |n: usize| {
        let frame = json!({"content": ""}).to_string();
        json!({"content": "a".repeat(n - frame.len())}).to_string()
    };
    assert_eq!(send(house.address, "POST", "/tokenize", &[], &sized(2000)).status, 200);
    for n in [2001, 3_000_000] {
        let answer = send(house.address, "POST", "/tokenize", &[], &sized(n));
        assert_eq!((answer.status, answer.error_type().as_str()), (413, "invalid_request_error"));
    }
    let mut wire = Wire::open(house.address);
    let chunk = format!("800\r\n{}\r\n", "a".repeat(0x800));
    wire.write("POST /tokenize HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n");
    wire.write(format!("{chunk}0\r\n\r\n"));
    assert_eq!(wire.read().unwrap().status, 413, "a body of unknown length");
    let mut wire = Wire::open(house.address);
    wire.write("POST /tokenize HTTP/1.1\r\nhost: localhost\r\ncontent-length: 10\r\n\r\n{");
    let answer = wire.read().unwrap();
    assert_eq!((answer.status, answer.error_type().as_str()), (408, "invalid_request_error"));
    let with_header = |n: usize| {
        let long = "a".repeat(n);
        send(house.address, "GET", "/health", &[("x-long", &long)], "")
    };
    assert_eq!(with_header(30 << 10).status, 200);
    let answer = with_header(33 << 10);
    assert_eq!((answer.status, answer.error_type().as_str()), (431, "invalid_request_error"));
    let mut wire = Wire::open(house.address);
    wire.write(request("GET", "/health", &[("x-long", &"a".repeat(200 << 10))], ""));
    assert!(wire.read().is_none_or(|answer| answer.status == 431));
    let many: Vec<(&str, &str)> = vec![("x-one", "1"); 150];
    let mut wire = Wire::open(house.address);
    wire.write(request("GET", "/health", &many, ""));
    assert_eq!(wire.read().unwrap().status, 431, "too many fields");
    assert_eq!(get(house.address, "/health").status, 200);
}

#[test]
fn a_header_that_does_not_come_ends_the_connection() {
    let mut plan = plan();
    plan.listen.header_read = Duration::from_millis(30);
    let house = plan.start();
    let mut silent = Wire::open(house.address);
    let mut slow = Wire::open(house.address);
    slow.write("GET /health HTTP/1.1\r\nhost: lo");
    let mut kept = Wire::open(house.address);
    kept.write(request("GET", "/health", &[], ""));
    assert_eq!(kept.read().unwrap().status, 200);
    assert!(silent.is_closed() && slow.is_closed() && kept.is_closed());
}

#[test]
fn connections_beyond_the_cap_are_told_to_come_back() {
    let mut plan = plan();
    plan.listen.n_connection_max = 2;
    let house = plan.start();
    let mut kept: Vec<Wire> = (0..2).map(|_| Wire::open(house.address)).collect();
    for wire in &mut kept {
        wire.write(request("GET", "/health", &[], ""));
        assert_eq!(wire.read().unwrap().status, 200);
        wire.write(request("GET", "/health", &[], ""));
        assert_eq!(wire.read().unwrap().status, 200, "the connection is kept");
    }
    let mut third = Wire::open(house.address);
    third.write(request("GET", "/health", &[], ""));
    let answer = third.read().unwrap();
    assert_eq!((answer.status, answer.error_type().as_str()), (503, "unavailable_error"));
    assert_eq!(answer.header("retry-after"), Some("1"));
    assert!(third.is_closed());
    kept.pop();
    until("the place is free again", || get(house.address, "/health").status == 200);
}

#[test]
fn a_reader_that_takes_nothing_is_cut_off_and_others_are_served() {
    let mut plan = plan();
    plan.n_ctx = 4096;
    plan.script = Some(Box::new(counted));
    plan.listen.write_stall = Duration::from_millis(50);
    let house = plan.start();
    let mut body = streamed(4000);
    // Each token is some kilobytes on the wire, more in all than the system's buffers hold.
    body["n_probs"] = json!(50);
    let mut reader = Wire::open(house.address);
    reader.write(request("POST", "/completion", &[], &body.to_string()));
    assert_eq!(reader.read_head().unwrap().0, 200);
    assert_eq!(post(house.address, "/completion", &completion(8)).status, 200);
    until("the reader is given up", || house.metric("jetforge_http_requests_open") == 1.0);
    house.rest();
    while reader.read_chunk().is_some() {}
    assert!(reader.is_closed());
    assert_eq!(get(house.address, "/health").status, 200);
}

#[test]
fn a_caller_who_leaves_frees_the_engine() {
    let (pause, script) = Pause::at(20);
    let house = Plan { script: Some(script), n_ctx: 4096, ..plan() }.start();
    let mut streaming = Wire::open(house.address);
    streaming.write(request("POST", "/completion", &[], &streamed(4000).to_string()));
    assert_eq!(streaming.read_head().unwrap().0, 200);
    assert!(streaming.read_chunk().is_some());
    let mut waiting = Wire::open(house.address);
    waiting.write(request("POST", "/v1/completions", &[], r#"{"prompt":"y","max_tokens":4000}"#));
    until("both are taken", || house.metric("jetforge_http_requests_open") == 3.0);
    drop((streaming, waiting));
    until("both are given up", || house.metric("jetforge_http_requests_open") == 1.0);
    pause.release();
    house.rest();
    assert!(house.metric("jetforge_tokens_generated_total") < 1000.0, "it did not go on");
    let answer = get(house.address, "/timeline").json();
    let requests = answer["requests"].as_array().unwrap();
    assert!(requests.iter().any(|r| r["finish"] == "canceled"), "{answer}");
    assert!(house.metric("jetforge_http_requests_total") > 0.0);
}

#[test]
fn a_request_that_is_detached_goes_on_without_its_caller() {
    let (pause, script) = Pause::at(20);
    let house = Plan { script: Some(script), n_ctx: 4096, ..plan() }.start();
    let mut body = streamed(40);
    body["on_disconnect"] = json!("detach");
    let mut caller = Wire::open(house.address);
    caller.write(request("POST", "/completion", &[], &body.to_string()));
    assert!(caller.read_chunk_after_head());
    drop(caller);
    until("the caller is gone", || house.metric("jetforge_http_requests_open") == 1.0);
    pause.release();
    house.rest();
    let answer = get(house.address, "/timeline").json();
    assert_eq!(answer["requests"][0]["finish"], "length", "{answer}");
    assert_eq!(house.metric("jetforge_tokens_generated_total"), 40.0);
}

#[test]
fn two_hundred_callers_at_once_are_all_served() {
    let house = Plan { script: Some(Box::new(counted)), ..plan() }.start();
    let address = house.address;
    let call = move |i: usize| {
        std::thread::spawn(move || {
            let answer = post(address, "/completion", &completion(4 + i % 5));
            assert_eq!(answer.status, 200, "{}", answer.text());
            assert_eq!(answer.json()["tokens_predicted"], 4 + i % 5);
        })
    };
    let callers: Vec<_> = (0..200).map(call).collect();
    callers.into_iter().for_each(|caller| caller.join().unwrap());
    house.rest();
    assert_eq!(house.metric("jetforge_requests_total"), 200.0);
}

#[test]
fn keys_open_what_they_may_as_long_as_they_are_kept() {
    let dir = tempfile::tempdir().unwrap();
    let mut plan = plan();
    plan.gate.state_dir = Some(dir.path().to_owned());
    plan.gate.api_keys = vec!["in-the-clear".into()];
    let house = plan.start();
    let status = |method: &str, path: &str, key: &str| {
        let bearer = format!("Bearer {key}");
        let answer = send(house.address, method, path, &[("authorization", &bearer)], "{}");
        (answer.status, answer.error_type_if_any())
    };
    let refused = || Some("authentication_error".to_owned());
    assert_eq!(get(house.address, "/health").status, 200);
    assert_eq!(get(house.address, "/v1/models").status, 200);
    assert_eq!(get(house.address, "/").status, 200);
    for path in ["/completion", "/v1/chat/completions", "/tokenize", "/nowhere"] {
        assert_eq!(status("POST", path, "wrong"), (401, refused()), "{path}");
    }
    let answer = send(house.address, "POST", "/tokenize", &[], "{}");
    assert_eq!((answer.status, answer.header("www-authenticate")), (401, Some("Bearer")));
    assert_eq!(status("POST", "/props", "in-the-clear").0, 200);
    let keys = KeyFile::new(dir.path());
    let scopes = vec![Scope::Inference];
    let grant = Grant { scopes, class: Class::Agent, per_minute: Some(3), at_once: None };
    let key = keys.create("editor", grant).unwrap();
    assert_eq!(status("POST", "/tokenize", &key).0, 200, "noticed without a restart");
    let admin = Some("permission_error".to_owned());
    assert_eq!(status("POST", "/props", &key), (403, admin.clone()));
    assert_eq!(status("GET", "/timeline", &key), (403, admin));
    let answer = send(house.address, "POST", "/tokenize", &[("x-api-key", &key)], "{}");
    assert_eq!(answer.status, 200);
    assert_eq!(status("POST", "/tokenize", &key).0, 200);
    let bearer = format!("Bearer {key}");
    let answer = send(house.address, "POST", "/tokenize", &[("authorization", &bearer)], "{}");
    assert_eq!((answer.status, answer.error_type().as_str()), (429, "rate_limit_error"));
    let wait: u64 = answer.header("retry-after").unwrap().parse().unwrap();
    assert!((1..=20).contains(&wait), "{wait}");
    keys.revoke("editor").unwrap();
    assert_eq!(status("POST", "/tokenize", &key), (401, refused()));
}

#[test]
fn pages_and_names_of_strangers_are_kept_out() {
    let mut plan = plan();
    plan.gate.allowed_hosts = vec!["nano.lan".into()];
    plan.gate.cors_origins = vec!["https://ide.example".into()];
    let house = plan.start();
    let status =
        |headers: &[(&str, &str)]| send(house.address, "GET", "/health", headers, "").status;
    let own = house.address.to_string();
    assert_eq!(status(&[("host", &own)]), 200);
    assert_eq!(status(&[("host", "nano.lan:80")]), 200);
    assert_eq!(status(&[("host", "evil.example")]), 403);
    assert_eq!(status(&[("host", &own), ("origin", &format!("http://{own}"))]), 200);
    assert_eq!(status(&[("host", &own), ("origin", "https://evil.example")]), 403);
    let page = [("origin", "https://ide.example")];
    let answer = send(house.address, "GET", "/health", &page, "");
    assert_eq!(answer.header("access-control-allow-origin"), Some("https://ide.example"));
    let asked = [
        ("origin", "https://ide.example"),
        ("access-control-request-method", "POST"),
        ("access-control-request-headers", "authorization,content-type"),
    ];
    let answer = send(house.address, "OPTIONS", "/v1/completions", &asked, "");
    assert_eq!(answer.status, 200);
    let allowed = answer.header("access-control-allow-headers").unwrap();
    assert!(allowed.contains("authorization"), "{allowed}");
}

#[test]
fn without_configured_pages_no_page_is_answered_across_origins() {
    let house = plan().start();
    let answer = send(house.address, "GET", "/health", &[("origin", "http://localhost")], "");
    assert_eq!((answer.status, answer.header("access-control-allow-origin")), (200, None));
}

#[test]
fn a_stop_finishes_what_streams_and_takes_nothing_new() {
    let (pause, script) = Pause::at(20);
    let mut house = Plan { script: Some(script), ..plan() }.start();
    let mut reader = Wire::open(house.address);
    reader.write(request("POST", "/completion", &[], &streamed(40).to_string()));
    assert_eq!(reader.read_head().unwrap().0, 200);
    assert!(reader.read_chunk().is_some());
    let mut kept = Wire::open(house.address);
    kept.write(request("GET", "/health", &[], ""));
    assert_eq!(kept.read().unwrap().status, 200);
    house.tell_to_stop();
    let address = house.address;
    until("no new connection is taken", || std::net::TcpStream::connect(address).is_err());
    assert!(kept.is_closed(), "an idle connection is not waited for");
    pause.release();
    let mut last = Vec::new();
    while let Some(chunk) = reader.read_chunk() {
        last = chunk;
    }
    let last = String::from_utf8(last).unwrap();
    assert!(last.contains("\"stop\":true"), "the answer is whole: {last}");
}

#[test]
fn an_answer_that_was_asked_for_again_comes_from_the_cache() {
    let house = Plan { script: Some(Box::new(counted)), ..plan() }.start();
    let ask = |body: &Value, headers: &[(&str, &str)]| {
        let answer = send(house.address, "POST", "/completion", headers, &body.to_string());
        assert_eq!(answer.status, 200);
        (answer.header("x-jetforge-cache").map(str::to_owned), answer.json()["content"].clone())
    };
    let by_header = [("x-jetforge-cache", "use")];
    let mut by_field = completion(5);
    by_field["cache_result"] = json!(true);
    assert_eq!(ask(&completion(5), &[]).0, None);
    let (first, text) = ask(&completion(5), &by_header);
    assert_eq!(first.as_deref(), Some("miss"));
    assert_eq!(ask(&completion(5), &by_header), (Some("hit".to_owned()), text.clone()));
    assert_eq!(ask(&by_field, &[]), (Some("hit".to_owned()), text));
    assert_eq!(ask(&completion(6), &by_header).0.as_deref(), Some("miss"));
    let mut streaming = by_field.clone();
    streaming["stream"] = json!(true);
    let answer = send(house.address, "POST", "/completion", &[], &streaming.to_string());
    assert_eq!(answer.header("x-jetforge-cache"), None, "streams are not kept");
    assert_eq!(house.metric("jetforge_result_cache_hits_total"), 2.0);
}

#[test]
fn the_document_has_every_route_and_no_other() {
    let house = plan().start();
    let server = Server::new(house.host.clone(), ServeOptions::default());
    let debug = format!("{:?}", router(server));
    // The router notes its fallback under a name of its own.
    let quoted = debug.split('"').filter(|s| s.starts_with('/') && !s.contains("__private__"));
    let routed: std::collections::BTreeSet<String> =
        quoted.map(|path| path.replace("{*", "{")).collect();
    assert!(routed.contains("/health"), "{debug}");
    let document = get(house.address, "/openapi.json").json();
    let paths = document["paths"].as_object().unwrap();
    let documented: std::collections::BTreeSet<String> = paths.keys().cloned().collect();
    assert_eq!(documented, routed);
    for (path, operations) in paths {
        let answer = send(house.address, "PATCH", &path.replace("{id}", "0"), &[], "");
        assert_eq!(answer.status, 405, "{path}");
        let allowed = answer.header("allow").unwrap_or_default().to_ascii_lowercase();
        let mut allowed: Vec<&str> =
            allowed.split(',').filter(|method| *method != "head").collect();
        let mut named: Vec<&str> = operations.as_object().unwrap().keys().map(|m| &**m).collect();
        allowed.sort_unstable();
        named.sort_unstable();
        assert_eq!(allowed, named, "{path}");
    }
}

#[test]
fn metrics_have_llama_cpps_names_and_ours() {
    let house = Plan { script: Some(Box::new(counted)), ..plan() }.start();
    let id = [("x-request-id", "traced")];
    let answer = send(house.address, "POST", "/completion", &id, &completion(6).to_string());
    assert_eq!(answer.status, 200);
    house.rest();
    let text = get(house.address, "/metrics").text();
    let mut typed = std::collections::BTreeSet::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            assert!(typed.insert(rest.split(' ').next().unwrap()), "twice: {line}");
        } else if !line.starts_with('#') {
            let (what, value) = line.rsplit_once(' ').unwrap();
            value.parse::<f64>().unwrap_or_else(|_| panic!("{line}"));
            let name = what.split('{').next().unwrap();
            let base = ["_bucket", "_sum", "_count"].iter().find_map(|s| name.strip_suffix(s));
            assert!(typed.contains(name) || base.is_some_and(|b| typed.contains(b)), "{line}");
        }
    }
    for name in ["prompt_tokens_total", "prompt_seconds_total", "tokens_predicted_total"] {
        assert!(typed.contains(format!("llamacpp:{name}").as_str()), "{name}");
    }
    assert_eq!(house.metric("llamacpp:tokens_predicted_total"), 6.0);
    assert_eq!(house.metric("llamacpp:requests_processing"), 0.0);
    assert!(house.metric("llamacpp:n_decode_total") >= 6.0);
    assert_eq!(house.metric("jetforge_time_to_first_token_seconds_count"), 1.0);
    assert_eq!(house.metric("jetforge_inter_token_latency_seconds_count"), 5.0);
    assert!(house.metric("jetforge_process_resident_memory_bytes") > 0.0);
    let timeline = get(house.address, "/timeline/traced").json();
    assert_eq!(timeline["requests"][0]["n_generated"], 6, "{timeline}");
    assert_eq!(get(house.address, "/timeline/unknown").status, 404);
}

#[test]
fn the_page_is_whole_and_its_policy_lets_only_it_run() {
    let house = plan().start();
    let answer = get(house.address, "/");
    assert!(answer.header("content-type").unwrap().starts_with("text/html"));
    let policy = answer.header("content-security-policy").unwrap();
    assert!(policy.contains("default-src 'none'") && policy.contains("script-src 'sha256-"));
    assert!(answer.text().ends_with("</html>\n"));
}
