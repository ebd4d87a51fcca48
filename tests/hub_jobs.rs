//! Jobs that a hub gives to appliances: each is written once, whoever is killed meanwhile, and its
//! text can be followed at the hub.

use std::net::SocketAddr;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use crate::serve::Process;
use crate::support::http::{get, post, send, until};

/// Jobs whose text is durable soon, and tried again soon.
const QUICK: [&str; 4] = ["--set", "jobs.flush_ms=20", "--set", "jobs.pause_ms=20"];

fn hub(home: &Path, nanos: &str) -> Process {
    let own = ["--port", "0", "--no-local", "--set", "hub.probe_ms=50", "--nano", nanos];
    let hub = Process::start_verb(home, "hub", &[&own[..], &QUICK].concat());
    until("the appliances are well", || {
        let status = get(hub.address, "/v1/status").json();
        let backends = status["upstream"]["backends"].as_array().unwrap().clone();
        backends.iter().all(|backend| backend["standing"] == "well")
    });
    hub
}

fn appliance(home: &Path, port: &str) -> Process {
    let own = ["--port", port, "--alias", "coder", "-c", "8192", "-np", "2"];
    Process::start_verb(home, "serve", &[&own[..], &QUICK].concat())
}

fn port(service: &Process) -> String {
    service.address.port().to_string()
}

fn long() -> Value {
    json!({"model": "coder", "prompt": "def add(a, b):", "n_predict": 1500, "ignore_eos": true,
        "temperature": 0.9, "seed": 7})
}

/// Asks for a job; its path.
fn submit(hub: SocketAddr, body: &Value) -> String {
    let job = post(hub, "/v1/jobs", &json!({"endpoint": "/completion", "body": body}));
    assert_eq!(job.status, 202, "{}", job.text());
    format!("/v1/jobs/{}", job.json()["id"].as_str().unwrap())
}

/// The jobs of a service.
fn jobs(of: SocketAddr) -> Vec<Value> {
    get(of, "/v1/jobs").json()["data"].as_array().unwrap().clone()
}

fn until_some_is_durable(hub: SocketAddr, path: &str) {
    until("some of its text is here", || get(hub, path).json()["n_token"].as_u64() > Some(0));
}

/// Follows a job at the hub to its end: its text, and what it is then.
fn follow(hub: SocketAddr, path: &str) -> (String, Value) {
    let said = get(hub, &format!("{path}/events")).text();
    let (mut text, mut end) = (String::new(), Value::Null);
    for event in said.split("\n\n") {
        let field = |name: &str| event.lines().find_map(|line| line.strip_prefix(name));
        let data = field("data: ").map_or(Value::Null, |data| serde_json::from_str(data).unwrap());
        match field("event: ") {
            Some("text") => text += data["text"].as_str().unwrap(),
            Some("restart") => text.clear(),
            Some("end") => end = data,
            _ => {}
        }
    }
    (text, end)
}

/// The job is done, once, and its events say its answer.
fn is_written_once(hub: SocketAddr, path: &str, nano: SocketAddr) {
    let (text, end) = follow(hub, path);
    assert_eq!((&end["state"], &end["n_attempt"]), (&json!("done"), &json!(0)), "{end}");
    assert_eq!(text, end["answer"]["content"].as_str().unwrap(), "the events are its answer");
    let direct = post(nano, "/completion", &long()).json();
    assert_eq!(text, direct["content"].as_str().unwrap());
    let there = jobs(nano);
    assert_eq!((there.len(), &there[0]["state"]), (1, &json!("done")), "{there:?}");
    let answer = get(nano, &format!("/v1/jobs/{}", there[0]["id"].as_str().unwrap())).json();
    assert_eq!(answer["answer"]["content"], text);
}

#[test]
fn a_hub_that_is_killed_finds_the_job_that_an_appliance_wrote_meanwhile() {
    let homes = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let nano = appliance(homes[0].path(), "0");
    let name = nano.address.to_string();
    let dying = hub(homes[1].path(), &name);
    let path = submit(dying.address, &long());
    until_some_is_durable(dying.address, &path);
    dying.kill();
    until("the appliance goes on to the end", || jobs(nano.address)[0]["state"] == "done");
    let hub = hub(homes[1].path(), &name);
    is_written_once(hub.address, &path, nano.address);
    assert_eq!(get(hub.address, &path).json()["answer"]["jetforge_host"], *name);
}

#[test]
fn a_job_of_an_appliance_that_is_killed_waits_for_it_and_is_nobody_elses() {
    let homes = [(); 3].map(|()| tempfile::tempdir().unwrap());
    let mut nanos = [0, 1].map(|i: usize| Some(appliance(homes[i].path(), "0")));
    let names = nanos.each_ref().map(|nano| nano.as_ref().unwrap().address.to_string());
    let hub = hub(homes[2].path(), &names.join(","));
    let path = submit(hub.address, &long());
    until_some_is_durable(hub.address, &path);
    let has_it = |nano: &Option<Process>| !jobs(nano.as_ref().unwrap().address).is_empty();
    let holder = nanos.iter().position(has_it).expect("one of them has it");
    let dying = nanos[holder].take().unwrap();
    let own_port = port(&dying);
    dying.kill();
    until("it waits", || {
        let job = get(hub.address, &path).json();
        let why = job["reason"].as_str().unwrap_or_default();
        job["state"] == "queued" && why.contains("who has it")
    });
    let other = nanos[1 - holder].as_ref().unwrap();
    assert!(jobs(other.address).is_empty(), "nobody else has it");
    // Others are given to who is there.
    let short = json!({"model": "coder", "prompt": "x", "n_predict": 2});
    let short = submit(hub.address, &short);
    until("the other job is done", || get(hub.address, &short).json()["state"] == "done");
    assert_eq!(jobs(other.address).len(), 1);
    let back = appliance(homes[holder].path(), &own_port);
    is_written_once(hub.address, &path, back.address);
    assert_eq!(jobs(other.address).len(), 1);
}

#[test]
fn a_job_that_is_taken_back_at_the_hub_is_taken_back_where_it_is() {
    let homes = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let nano = appliance(homes[0].path(), "0");
    let hub = hub(homes[1].path(), &nano.address.to_string());
    let path = submit(hub.address, &long());
    until_some_is_durable(hub.address, &path);
    assert_eq!(send(hub.address, "DELETE", &path, &[], "").status, 200);
    until("it is not wanted there", || jobs(nano.address)[0]["state"] == "cancelled");
}

#[test]
fn who_waits_for_a_named_request_has_it_in_its_own_class_and_again_under_its_name() {
    let homes = [(); 2].map(|()| tempfile::tempdir().unwrap());
    // No job has its turn there for half a day: what somebody waits for does not wait for one.
    let now_s = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let time = |s: u64| format!("{:02}:{:02}", s / 3600 % 24, s / 60 % 60);
    let (from, to) = (time(now_s + 12 * 3600), time(now_s + 13 * 3600));
    let windows = format!("jobs.windows_utc=[\"{from}-{to}\"]");
    let own = ["--port", "0", "--alias", "coder", "--set", &windows];
    let nano = Process::start_verb(homes[0].path(), "serve", &own);
    let hub = hub(homes[1].path(), &nano.address.to_string());
    let body = json!({"model": "coder", "prompt": "def add(a, b):", "max_tokens": 8}).to_string();
    let name = [("idempotency-key", "mine")];
    let ask = || send(hub.address, "POST", "/v1/completions", &name, &body);
    let first = ask();
    assert_eq!(first.status, 200, "{}", first.text());
    assert_eq!(ask().text(), first.text());
    assert_eq!(jobs(nano.address).len(), 1);
    let other = send(hub.address, "POST", "/v1/completions", &name, "{\"prompt\": \"x\"}");
    assert_eq!(other.status, 409, "{}", other.text());
}

#[test]
fn a_named_task_is_one_appliances_also_when_that_is_killed() {
    let homes = [(); 3].map(|()| tempfile::tempdir().unwrap());
    let mut nanos = [0, 1].map(|i: usize| Some(appliance(homes[i].path(), "0")));
    let names = nanos.each_ref().map(|nano| nano.as_ref().unwrap().address.to_string());
    let hub = hub(homes[2].path(), &names.join(","));
    let task = json!({"request_id": "t1", "request_type": "code_generation", "model": "coder",
        "prompt": "def add(a, b):", "parameters": {"max_tokens": 1500, "temperature": 0}});
    let (at, asked) = (hub.address, task.clone());
    let asking = std::thread::spawn(move || post(at, "/generate", &asked).status);
    let has_it = |nano: &Option<Process>| !jobs(nano.as_ref().unwrap().address).is_empty();
    until("one of them has it", || nanos.iter().any(has_it));
    let holder = nanos.iter().position(has_it).unwrap();
    let dying = nanos[holder].take().unwrap();
    let own_port = port(&dying);
    dying.kill();
    // It may have been faster than its death; else nobody is there to answer.
    let status = asking.join().unwrap();
    assert!(status == 200 || status >= 500, "{status}");
    let back = appliance(homes[holder].path(), &own_port);
    until("it is answered under its name", || post(at, "/generate", &task).status == 200);
    let other = nanos[1 - holder].as_ref().unwrap();
    assert_eq!((jobs(back.address).len(), jobs(other.address).len()), (1, 0));
    let answer = post(at, "/generate", &task).json();
    assert_eq!((&answer["request_id"], &answer["status"]), (&json!("t1"), &json!("success")));
}
