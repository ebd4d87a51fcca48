//! Jobs that a hub gives to appliances: each is written once, whoever is killed meanwhile, and its
//! text can be followed at the hub.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::cli::jetforge;
use crate::serve::Process;
use crate::support::http::{PATIENCE, get, post, send, until};

/// Jobs whose text is durable soon, and tried again soon.
const QUICK: [&str; 4] = ["--set", "jobs.flush_ms=20", "--set", "jobs.pause_ms=20"];

/// A hub, whoever is there.
fn lone_hub(home: &Path, nanos: &str) -> Process {
    let own = ["--port", "0", "--no-local", "--set", "hub.probe_ms=50", "--nano", nanos];
    Process::start_verb(home, "hub", &[&own[..], &QUICK].concat())
}

fn hub(home: &Path, nanos: &str) -> Process {
    let hub = lone_hub(home, nanos);
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

/// An appliance on which no job has its turn for half a day.
fn idle_appliance(home: &Path, port: &str) -> Process {
    let now_s = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let time = |s: u64| format!("{:02}:{:02}", s / 3600 % 24, s / 60 % 60);
    let (from, to) = (time(now_s + 12 * 3600), time(now_s + 13 * 3600));
    let windows = format!("jobs.windows_utc=[\"{from}-{to}\"]");
    let own = ["--port", port, "--alias", "coder", "-c", "8192", "--set", &windows];
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

/// A hub whose job was taken back while the appliance that had begun it was away: the homes of the
/// appliance and of the hub, and where the appliance was.
struct Abandoned {
    homes: [TempDir; 2],
    nano: SocketAddr,
    hub: Process,
    path: String,
}

fn abandoned() -> Abandoned {
    let homes = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let dying = appliance(homes[0].path(), "0");
    let nano = dying.address;
    let hub = hub(homes[1].path(), &nano.to_string());
    let path = submit(hub.address, &long());
    until_some_is_durable(hub.address, &path);
    dying.kill();
    let taken = send(hub.address, "DELETE", &path, &[], "");
    assert_eq!((taken.status, &taken.json()["state"]), (200, &json!("cancelled")));
    Abandoned { homes, nano, hub, path }
}

#[test]
fn a_job_that_is_taken_back_while_its_appliance_is_away_is_taken_back_when_it_is_there_again() {
    let Abandoned { homes, nano, hub, path } = abandoned();
    // Neither of them remembers it but by its disk.
    hub.kill();
    let hub = lone_hub(homes[1].path(), &nano.to_string());
    let nano = idle_appliance(homes[0].path(), &nano.port().to_string());
    until("it is not wanted there", || jobs(nano.address)[0]["state"] == "cancelled");
    assert_eq!(get(hub.address, &path).json()["state"], "cancelled");
    assert_eq!(jobs(nano.address).len(), 1);
}

#[test]
fn what_an_appliance_finished_before_it_heard_that_nobody_wants_it_is_not_thrown_away() {
    let Abandoned { homes, nano, hub, path } = abandoned();
    // Where the hub does not reach it.
    let elsewhere = appliance(homes[0].path(), "0");
    until("it is finished there", || jobs(elsewhere.address)[0]["state"] == "done");
    assert_eq!(get(hub.address, &path).json()["state"], "cancelled");
    elsewhere.kill();
    let nano = appliance(homes[0].path(), &nano.port().to_string());
    until("its answer is here", || get(hub.address, &path).json()["state"] == "done");
    is_written_once(hub.address, &path, nano.address);
}

/// A network before `nano` on which the request that asks for a job is held up: it says that it has
/// one, and lets it go when it is told to, though nobody waits for its answer any more; what that
/// was comes back.
struct Late {
    address: SocketAddr,
    held: mpsc::Receiver<()>,
    go: mpsc::Sender<()>,
    answer: mpsc::Receiver<String>,
}

impl Late {
    fn before(nano: SocketAddr) -> Late {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let ((tell_held, held), (go, may_go), (tell_answer, answer)) =
            (mpsc::channel(), mpsc::channel(), mpsc::channel());
        let may_go = Arc::new(Mutex::new(may_go));
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (may_go, tell_held) = (Arc::clone(&may_go), tell_held.clone());
                let tell_answer = tell_answer.clone();
                std::thread::spawn(move || {
                    let request = whole_request(&stream)?;
                    let is_job = request.starts_with(b"POST /completion ");
                    if is_job {
                        tell_held.send(()).ok()?;
                        may_go.lock().ok()?.recv().ok()?;
                    }
                    let mut onward = TcpStream::connect(nano).ok()?;
                    onward.write_all(&request).ok()?;
                    if is_job {
                        let mut line = String::new();
                        BufReader::new(onward).read_line(&mut line).ok()?;
                        return tell_answer.send(line).ok();
                    }
                    pass_back(onward, stream)
                });
            }
        });
        Late { address, held, go, answer }
    }
}

/// Passes an answer back, until either side leaves.
fn pass_back(mut from: TcpStream, mut to: TcpStream) -> Option<()> {
    let (mut asker, answerer) = (to.try_clone().ok()?, from.try_clone().ok()?);
    std::thread::spawn(move || {
        let _ = std::io::copy(&mut asker, &mut std::io::sink());
        let _ = answerer.shutdown(Shutdown::Both);
    });
    let copied = std::io::copy(&mut from, &mut to);
    to.shutdown(Shutdown::Both).and(copied).ok().map(|_| ())
}

/// The bytes of a request; `None` if they do not come.
fn whole_request(stream: &TcpStream) -> Option<Vec<u8>> {
    let mut reader = BufReader::new(stream);
    let (mut request, mut n_body) = (Vec::new(), 0);
    loop {
        let start = request.len();
        if reader.read_until(b'\n', &mut request).ok()? == 0 {
            return None;
        }
        let line = String::from_utf8_lossy(&request[start..]).to_ascii_lowercase();
        if let Some(n) = line.strip_prefix("content-length:") {
            n_body = n.trim().parse().ok()?;
        }
        if line.trim().is_empty() {
            break;
        }
    }
    let mut body = vec![0; n_body];
    reader.read_exact(&mut body).ok()?;
    request.extend(body);
    Some(request)
}

#[test]
fn a_job_that_is_taken_back_while_it_is_posted_is_not_begun_when_the_post_arrives() {
    let homes = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let nano = appliance(homes[0].path(), "0");
    let late = Late::before(nano.address);
    let hub = hub(homes[1].path(), &late.address.to_string());
    let path = submit(hub.address, &long());
    late.held.recv_timeout(PATIENCE).expect("it is on its way");
    assert_eq!(jobs(nano.address).len(), 0);
    assert_eq!(send(hub.address, "DELETE", &path, &[], "").status, 200);
    until("it is taken back there", || {
        jobs(nano.address).first().is_some_and(|job| job["state"] == "cancelled")
    });
    late.go.send(()).unwrap();
    let answer = late.answer.recv_timeout(PATIENCE).expect("the appliance heard it after all");
    assert!(answer.starts_with("HTTP/1.1 200"), "the job is over: {answer}");
    let there = jobs(nano.address);
    assert_eq!((there.len(), &there[0]["state"]), (1, &json!("cancelled")));
    assert_eq!(there[0]["n_token"], 0, "nothing of it was written");
}

/// A network before `nano` on which the first answer to a request for a job is lost: the appliance
/// has it, and the hub hears that something broke.
fn losing(nano: SocketAddr) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let has_lost = Arc::new(AtomicBool::new(false));
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            let has_lost = Arc::clone(&has_lost);
            std::thread::spawn(move || {
                let request = whole_request(&stream)?;
                let mut onward = TcpStream::connect(nano).ok()?;
                onward.write_all(&request).ok()?;
                let is_job = request.starts_with(b"POST /completion ");
                if !is_job || has_lost.swap(true, Ordering::SeqCst) {
                    return pass_back(onward, stream);
                }
                BufReader::new(onward).read_line(&mut String::new()).ok()?;
                stream.write_all(b"HTTP/1.1 502 Bad Gateway\r\ncontent-length: 0\r\n\r\n").ok()
            });
        }
    });
    address
}

#[test]
fn an_appliance_that_has_a_job_though_it_seemed_to_fail_does_not_write_it_beside_the_next_try() {
    let homes = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let nano = idle_appliance(homes[0].path(), "0");
    let hub = hub(homes[1].path(), &losing(nano.address).to_string());
    let path = submit(hub.address, &long());
    until("the first try is taken back there, and the second waits", || {
        let there = jobs(nano.address);
        let n = |state: &str| there.iter().filter(|job| job["state"] == state).count();
        (there.len(), n("cancelled"), n("queued")) == (2, 1, 1)
    });
    assert_eq!(get(hub.address, &path).json()["n_attempt"], 1);
}

#[test]
fn a_job_of_an_appliance_that_was_typed_and_is_paired_meanwhile_is_written_once() {
    let homes = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let nano = idle_appliance(homes[0].path(), "0");
    let (name, own_port) = (nano.address.to_string(), port(&nano));
    let hub = hub(homes[1].path(), &name);
    let path = submit(hub.address, &long());
    until("the appliance has it", || jobs(nano.address).len() == 1);
    let run = |home: &Path, args: &[&str]| {
        let output = jetforge(home).args(args).output().unwrap();
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let code = run(homes[0].path(), &["pair"]);
    let (ip, at) = (nano.address.ip().to_string(), hub.address.to_string());
    let to = ["setup", "--nano-ip", &ip, "--nano-port", &own_port, "--code", code.trim()];
    run(homes[1].path(), &[&to[..], &["--hub", &at]].concat());
    assert_eq!(get(nano.address, "/v1/jobs").status, 401, "it asks for keys from now on");
    nano.kill();
    let nano = appliance(homes[0].path(), &own_port);
    let (text, end) = follow(hub.address, &path);
    assert_eq!((&end["state"], &end["n_attempt"]), (&json!("done"), &json!(0)), "{end}");
    assert_eq!(text, end["answer"]["content"].as_str().unwrap());
    // What it had written is its own business; the disk tells how often.
    nano.kill();
    let kept = run(homes[0].path(), &["export"]);
    let is_job = |line: &&str| line.contains("\"table\":\"jobs\"");
    assert_eq!(kept.lines().filter(is_job).count(), 1, "{kept}");
}

#[test]
fn who_waits_for_a_named_request_has_it_in_its_own_class_and_again_under_its_name() {
    let homes = [(); 2].map(|()| tempfile::tempdir().unwrap());
    // What somebody waits for does not wait for its turn.
    let nano = idle_appliance(homes[0].path(), "0");
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
