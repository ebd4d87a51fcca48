//! Work that survives: the real binary, killed in the middle of jobs, and what it promised.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::{Value, json};

use crate::cli::jetforge;
use crate::serve::Process;
use crate::support::http::{Answer, Wire, get, post, request, send, until};

const N_TOKEN: usize = 160;

/// A service whose jobs become durable every few milliseconds.
pub fn serve(home: &Path, more: &[&str]) -> Process {
    let options = ["-c", "2048", "-np", "4", "--metrics", "--set", "jobs.flush_ms=5"];
    let patient = ["--set", "jobs.n_broken_max=20"];
    Process::start(home, &[&options[..], &patient, more].concat())
}

fn completion(i: usize) -> Value {
    json!({
        "prompt": format!("def f{i}(a, b):"),
        "n_predict": N_TOKEN,
        "ignore_eos": true,
        "cache_prompt": false,
        // Every other one draws its tokens, without a seed of its own.
        "temperature": if i % 2 == 0 { 0.0 } else { 1.0 },
    })
}

fn job(i: usize) -> Value {
    json!({ "endpoint": "/completion", "body": completion(i), "request_id": format!("r{i}") })
}

fn one(address: SocketAddr, id: &str) -> Value {
    get(address, &format!("/v1/jobs/{id}")).json()
}

pub fn id_of(answer: &Answer) -> String {
    assert!([200, 202].contains(&answer.status), "{}", answer.text());
    answer.json()["id"].as_str().unwrap().to_owned()
}

/// Waits for the end of a job.
pub fn ended(address: SocketAddr, id: &str) -> Value {
    let mut job = Value::Null;
    until("the job is over", || {
        job = one(address, id);
        !["queued", "running"].contains(&job["state"].as_str().unwrap())
    });
    job
}

/// A reader of a job's events, who remembers what it heard across every cut.
#[derive(Default)]
pub struct Reader {
    last: Option<String>,
    pub text: String,
    n_token: usize,
    n_restart: usize,
    is_over: bool,
    /// Each id, with the bytes and tokens of text up to it.
    marks: Vec<(String, usize, usize)>,
}

impl Reader {
    /// Hears until the end, the cut, or so many tokens.
    pub fn hear(&mut self, address: SocketAddr, id: &str, n_token_max: usize) {
        let mut wire = Wire::open(address);
        let last = self.last.clone();
        let headers: Vec<(&str, &str)> =
            last.iter().map(|id| ("last-event-id", id.as_str())).collect();
        wire.write(request("GET", &format!("/v1/jobs/{id}/events"), &headers, ""));
        assert_eq!(wire.read_head().unwrap().0, 200);
        let mut bytes = Vec::new();
        while let Some(chunk) = wire.read_chunk() {
            bytes.extend(chunk);
            while let Some(end) = bytes.windows(2).position(|pair| pair == b"\n\n") {
                let frame: Vec<u8> = bytes.drain(..end + 2).collect();
                self.frame(&String::from_utf8(frame).unwrap());
            }
            if self.is_over || self.n_token >= n_token_max {
                return;
            }
        }
    }

    fn frame(&mut self, frame: &str) {
        let field = |name: &str| frame.lines().find_map(|line| line.strip_prefix(name));
        let data = field("data: ").map(|data| serde_json::from_str::<Value>(data).unwrap());
        match field("event: ") {
            Some("text") => {
                let data = data.unwrap();
                self.text += data["text"].as_str().unwrap();
                self.n_token += data["tokens"].as_array().unwrap().len();
            }
            Some("restart") => {
                self.n_restart += 1;
                self.text.clear();
                self.n_token = 0;
            }
            Some("end") => self.is_over = true,
            _ => {}
        }
        if let Some(id) = field("id: ") {
            self.marks.push((id.to_owned(), self.text.len(), self.n_token));
            self.last = Some(id.to_owned());
        }
    }
}

/// Waits until jobs in each state are as many when they are counted as when they are listed: they
/// run on while it looks.
fn wait_for_true_counters(address: SocketAddr) {
    until("the counters are true", || {
        let list = get(address, "/v1/jobs?limit=500").json();
        let metrics = get(address, "/metrics").text();
        list["counts"].as_object().unwrap().iter().all(|(state, n)| {
            let jobs = list["data"].as_array().unwrap();
            let listed = jobs.iter().filter(|job| job["state"] == **state).count();
            let line = format!("jetforge_jobs{{state=\"{state}\"}} {listed}\n");
            *n == listed && metrics.contains(&line)
        })
    });
}

#[test]
fn jobs_outlive_kill_9_at_any_moment_and_each_is_answered_once() {
    let home = tempfile::tempdir().unwrap();
    let n_job = 6;
    let mut ids: Vec<String> = Vec::new();
    let mut readers: Vec<Reader> = (0..n_job).map(|_| Reader::default()).collect();
    // Tokens of the watched job after which the program is killed: seeded, the same every time.
    for (round, n_token) in [3, 40, 120, 20, 150].into_iter().enumerate() {
        let service = serve(home.path(), &[]);
        for i in ids.len()..(2 * round + 2).min(n_job) {
            ids.push(id_of(&post(service.address, "/v1/jobs", &job(i))));
        }
        wait_for_true_counters(service.address);
        let watched = round % ids.len();
        readers[watched].hear(service.address, &ids[watched], n_token);
        drop(service);
    }
    let service = serve(home.path(), &[]);
    let address = service.address;
    let mut ways = Vec::new();
    for (i, id) in ids.iter().enumerate() {
        let again = post(address, "/v1/jobs", &job(i));
        assert_eq!(id_of(&again), *id, "the same request is the same job");
        let done = ended(address, id);
        assert_eq!(done["state"], "done", "{done}");
        readers[i].hear(address, id, usize::MAX);
        let content = done["answer"]["content"].as_str().unwrap();
        assert_eq!(readers[i].text, content, "job {i}: each token once");
        assert_eq!((readers[i].n_token, readers[i].n_restart), (N_TOKEN, 0));
        if i % 2 == 0 {
            let alone = post(address, "/completion", &completion(i)).json();
            assert_eq!(alone["content"], *content, "as if nothing had happened");
        }
        ways.push(done["way"].as_str().unwrap().to_owned());
    }
    assert!(ways.iter().any(|way| way == "resumed"), "{ways:?}");
    let list = get(address, "/v1/jobs?limit=500").json();
    assert_eq!(list["data"].as_array().unwrap().len(), n_job, "none is there twice");
    assert_eq!(list["counts"]["done"], n_job);
    wait_for_true_counters(address);
    let other = json!({ "endpoint": "/completion", "body": completion(1), "request_id": "r0" });
    assert_eq!(post(address, "/v1/jobs", &other).status, 409);
}

#[test]
fn a_reader_may_leave_and_come_back_at_any_token() {
    let home = tempfile::tempdir().unwrap();
    let service = serve(home.path(), &[]);
    let id = id_of(&post(service.address, "/v1/jobs", &job(0)));
    let whole = ended(service.address, &id)["answer"]["content"].as_str().unwrap().to_owned();
    let mut reader = Reader::default();
    reader.hear(service.address, &id, usize::MAX);
    assert_eq!(reader.text, whole);
    assert!(reader.marks.len() > 10, "{:?}", reader.marks);
    for (id_of_event, n_text, n_token) in &reader.marks {
        let mut late = Reader { last: Some(id_of_event.clone()), ..Reader::default() };
        late.hear(service.address, &id, usize::MAX);
        assert_eq!((late.n_token, late.n_restart), (N_TOKEN - n_token, 0));
        assert_eq!(late.text, whole[*n_text..], "behind {id_of_event}");
    }
    let mut stranger = Reader { last: Some("7-5".to_owned()), ..Reader::default() };
    stranger.hear(service.address, &id, usize::MAX);
    assert_eq!((stranger.text, stranger.n_restart), (whole, 1), "another text begins anew");
}

#[test]
fn ordinary_requests_become_jobs_and_their_answers_are_kept() {
    let home = tempfile::tempdir().unwrap();
    let mut bodies = Vec::new();
    for round in 0..2 {
        let service = serve(home.path(), &[]);
        let address = service.address;
        let kept = send(
            address,
            "POST",
            "/completion",
            &[("idempotency-key", "k1")],
            &completion(1).to_string(),
        );
        assert_eq!(kept.status, 200, "{}", kept.text());
        bodies.push((kept.body.clone(), kept.header("x-jetforge-job").unwrap().to_owned()));
        let other = completion(3).to_string();
        let other = send(address, "POST", "/completion", &[("idempotency-key", "k1")], &other);
        assert_eq!(other.status, 409, "{}", other.text());
        let body = json!({"prompt": "x", "n_predict": 3, "n_probs": "wrong"});
        let key = [("idempotency-key", "k2")];
        let wrong = send(address, "POST", "/completion", &key, &body.to_string());
        assert_eq!((wrong.status, wrong.error_type().as_str()), (400, "invalid_request_error"));
        if round == 0 {
            let prefer = [("prefer", "respond-async")];
            let body = completion(2).to_string();
            let later = send(address, "POST", "/completion", &prefer, &body);
            assert_eq!(later.status, 202, "{}", later.text());
            assert_eq!(later.header("preference-applied"), Some("respond-async"));
            let place = later.header("location").unwrap().to_owned();
            let done = ended(address, place.rsplit('/').next().unwrap());
            assert_eq!(done["state"], "done");
            // The caller leaves at once; the answer is kept under its name.
            let mut body = completion(4);
            body["on_disconnect"] = json!("detach");
            body["request_id"] = json!("left");
            let mut wire = Wire::open(address);
            wire.write(request("POST", "/completion", &[], &body.to_string()));
            until("it has arrived", || {
                let list = get(address, "/v1/jobs").json();
                list["data"].as_array().unwrap().iter().any(|job| job["request_id"] == "left")
            });
            drop(wire);
            let answer = post(address, "/completion", &body);
            assert_eq!(answer.status, 200, "{}", answer.text());
            assert_eq!(answer.json()["tokens_predicted"], N_TOKEN);
        }
    }
    assert_eq!(bodies[0], bodies[1], "the same bytes also after a restart");
}

#[test]
fn jobs_are_bounded_belong_to_their_key_and_can_be_taken_back() {
    let home = tempfile::tempdir().unwrap();
    let limits = ["--set", "jobs.n_waiting_max=2", "--set", "jobs.windows_utc=['00:00-00:01']"];
    let keys = ["--api-key", "alpha,beta"];
    let service = serve(home.path(), &[&limits[..], &keys].concat());
    let address = service.address;
    let ask = |key: &str, method: &str, path: &str, body: &str| {
        send(address, method, path, &[("authorization", &format!("Bearer {key}"))], body)
    };
    let far = json!({
        "endpoint": "completion", "body": completion(0), "not_before_ms": 32_503_680_000_000u64,
    })
    .to_string();
    let id = id_of(&ask("alpha", "POST", "/v1/jobs", &far));
    for (method, path) in [
        ("GET", format!("/v1/jobs/{id}")),
        ("DELETE", format!("/v1/jobs/{id}")),
        ("POST", format!("/v1/jobs/{id}/retry")),
        ("GET", format!("/v1/jobs/{id}/events")),
    ] {
        let answer = ask("beta", method, &path, "");
        assert_eq!((answer.status, answer.error_type().as_str()), (404, "not_found_error"));
    }
    assert_eq!(ask("beta", "GET", "/v1/jobs", "").json()["data"], json!([]));
    id_of(&ask("beta", "POST", "/v1/jobs", &far));
    let full = ask("beta", "POST", "/v1/jobs", &far);
    assert_eq!((full.status, full.header("retry-after")), (429, Some("30")));
    let path = format!("/v1/jobs/{id}");
    assert_eq!(ask("alpha", "DELETE", &path, "").json()["state"], "cancelled");
    assert_eq!(ask("alpha", "DELETE", &path, "").status, 409);
    for (body, param) in [
        (json!({"endpoint": "/health", "body": {}}), "endpoint"),
        (json!({"endpoint": "completion"}), "body"),
        (json!({"endpoint": "completion", "body": {}, "attempts": 0}), "attempts"),
        (json!({"endpoint": "completion", "body": {}, "callback": "http://x:1/"}), "callback"),
    ] {
        let answer = ask("alpha", "POST", "/v1/jobs", &body.to_string());
        assert_eq!((answer.status, &answer.json()["error"]["param"]), (400, &json!(param)));
    }
}

#[test]
fn a_caller_waits_as_long_as_it_says_and_no_cached_answer_is_a_jobs() {
    let home = tempfile::tempdir().unwrap();
    let never = ["--set", "jobs.n_at_once=1", "--set", "jobs.windows_utc=['00:00-00:01']"];
    let service = serve(home.path(), &never);
    let mut body = completion(0);
    body["cache_result"] = json!(true);
    let ask = |headers: &[(&str, &str)]| {
        send(service.address, "POST", "/completion", headers, &body.to_string())
    };
    let plain = ask(&[]);
    assert_eq!((plain.status, plain.header("x-jetforge-cache")), (200, Some("miss")));
    assert_eq!(ask(&[]).header("x-jetforge-cache"), Some("hit"));
    let later = ask(&[("prefer", "respond-async")]);
    assert_eq!(later.status, 202, "{}", later.text());
    let patient = ask(&[("prefer", "respond-async, wait=0"), ("idempotency-key", "k")]);
    assert_eq!((patient.status, patient.json()["state"].as_str()), (202, Some("queued")));
    assert!(patient.header("location").is_some_and(|place| place.starts_with("/v1/jobs/job-")));
    let kept = ask(&[("idempotency-key", "k2")]);
    assert_eq!((kept.status, kept.header("x-jetforge-cache")), (200, None));
    assert!(kept.header("x-jetforge-job").is_some());
}

#[test]
fn a_stream_goes_on_without_its_reader_and_is_kept_as_it_was() {
    let home = tempfile::tempdir().unwrap();
    let mut body = completion(0);
    body["stream"] = json!(true);
    body["on_disconnect"] = json!("detach");
    body["request_id"] = json!("left");
    let mut streams = Vec::new();
    for round in 0..2 {
        let service = serve(home.path(), &[]);
        if round == 0 {
            let mut wire = Wire::open(service.address);
            wire.write(request("POST", "/completion", &[], &body.to_string()));
            assert!(wire.read_chunk_after_head(), "it streams");
            drop(wire);
        }
        let kept = post(service.address, "/completion", &body);
        assert_eq!((kept.status, kept.header("content-type")), (200, Some("text/event-stream")));
        streams.push(kept.text());
        if round == 0 {
            // Whoever stays hears the same words, though it took another time.
            let plain = post(service.address, "/completion", &completion(0)).json();
            let said: String = kept
                .text()
                .lines()
                .filter_map(|line| line.strip_prefix("data: "))
                .map(|data| serde_json::from_str::<Value>(data).unwrap())
                .map(|data| data["content"].as_str().unwrap().to_owned())
                .collect();
            assert_eq!(said, plain["content"]);
            let mut other = body.clone();
            other["request_id"] = json!("stayed");
            let whole = post(service.address, "/completion", &other);
            assert!(whole.header("x-jetforge-job").is_some(), "{whole:?}");
            assert!(whole.text().lines().filter(|line| line.starts_with("data: ")).count() > 2);
        }
    }
    assert_eq!(streams[0], streams[1], "the same bytes also after a restart");
}

/// A job that never ends by itself.
fn endless(name: &str) -> Value {
    let body = json!({"prompt": "def f(a):", "n_predict": 1_000_000, "ignore_eos": true,
        "context_shift": true});
    json!({"endpoint": "/completion", "request_id": name, "body": body})
}

/// One that soon does.
fn short(name: &str) -> Value {
    let body = json!({"prompt": "def f(a):", "n_predict": 3});
    json!({"endpoint": "/completion", "request_id": name, "body": body})
}

fn until_running(address: SocketAddr, id: &str) {
    until("it runs", || one(address, id)["state"] == "running");
}

/// Asserts that there are so many jobs in these states and none in others, by each who counts.
fn counted(address: SocketAddr, expected: &[(&str, u64)]) {
    wait_for_true_counters(address);
    let counts = get(address, "/v1/jobs?limit=500").json()["counts"].clone();
    for (state, n) in counts.as_object().unwrap() {
        let expected = expected.iter().find(|(name, _)| name == state).map_or(0, |(_, n)| *n);
        assert_eq!(*n, expected, "{state}: {counts}");
    }
}

#[test]
fn a_job_that_kills_the_program_is_set_aside_and_others_are_answered_meanwhile() {
    let home = tempfile::tempdir().unwrap();
    // No token becomes durable while a job runs, so none of its runs gets on.
    let options = ["-c", "512", "-np", "4", "--metrics", "--set", "jobs.flush_ms=1000000000"];
    let start = || Process::start(home.path(), &options);
    let service = start();
    let poison = id_of(&post(service.address, "/v1/jobs", &endless("poison")));
    let mut service = Some(service);
    let mut n_done = 0;
    for n_broken in 0..3 {
        let now = service.take().unwrap();
        let address = now.address;
        until_running(address, &poison);
        // Whatever comes runs beside it.
        let name = format!("short-{n_broken}");
        let answered = ended(address, &id_of(&post(address, "/v1/jobs", &short(&name))));
        assert_eq!(answered["state"], "done", "{answered}");
        n_done += 1;
        let job = one(address, &poison);
        assert_eq!((&job["state"], &job["n_broken"]), (&json!("running"), &json!(n_broken)));
        counted(address, &[("running", 1), ("done", n_done)]);
        if n_broken == 2 {
            // Nor does it take one with it that was there when the program went.
            let sound = id_of(&post(address, "/v1/jobs", &endless("sound")));
            until_running(address, &sound);
            counted(address, &[("running", 2), ("done", n_done)]);
        }
        now.kill();
        service = Some(start());
    }
    let service = service.unwrap();
    let address = service.address;
    let aside = one(address, &poison);
    let reason = "the program or the power went while it ran (3 of 3)";
    assert_eq!((&aside["state"], &aside["reason"]), (&json!("set_aside"), &json!(reason)));
    assert!(aside["finished_ms"].is_number(), "{aside}");
    let sound = post(address, "/v1/jobs", &endless("sound"));
    assert_eq!(sound.status, 202, "it is still there: {}", sound.text());
    let sound = id_of(&sound);
    until_running(address, &sound);
    assert_eq!(one(address, &sound)["n_broken"], 0, "it was not the one that broke");
    ended(address, &id_of(&post(address, "/v1/jobs", &short("last"))));
    counted(address, &[("set_aside", 1), ("running", 1), ("done", n_done + 1)]);
    let url = address.to_string();
    let jobs = |args: &[&str]| {
        let run = jetforge(home.path()).args(["jobs", "--url", &url]).args(args).output().unwrap();
        assert_eq!(run.status.code(), Some(0), "{}", String::from_utf8_lossy(&run.stderr));
        String::from_utf8(run.stdout).unwrap()
    };
    let list = jobs(&["list", "--state", "set_aside"]);
    assert!(list.lines().count() == 2 && list.contains(&poison) && list.contains(reason), "{list}");
    let shown: Value = serde_json::from_str(&jobs(&["show", &poison])).unwrap();
    assert_eq!((&shown["state"], &shown["reason"]), (&aside["state"], &aside["reason"]));
    // Asked for again it has all its tries.
    assert_eq!(jobs(&["retry", &poison]), format!("{poison} is queued\n"));
    until_running(address, &poison);
    assert_eq!(one(address, &poison)["n_broken"], 0);
    counted(address, &[("running", 2), ("done", n_done + 1)]);
    jobs(&["cancel", &sound]);
    assert_eq!(jobs(&["cancel", &poison]), format!("{poison} is cancelled\n"));
    counted(address, &[("cancelled", 2), ("done", n_done + 1)]);
}

#[test]
fn a_job_that_runs_too_long_is_set_aside_and_others_are_answered_meanwhile() {
    let home = tempfile::tempdir().unwrap();
    let brief = ["--set", "jobs.run_max_s=2", "--set", "jobs.n_broken_max=2"];
    let options = ["-c", "512", "-np", "4", "--metrics"];
    let service = Process::start(home.path(), &[&options[..], &brief].concat());
    let address = service.address;
    let long = id_of(&post(address, "/v1/jobs", &endless("long")));
    until_running(address, &long);
    let answered = ended(address, &id_of(&post(address, "/v1/jobs", &short("short"))));
    assert_eq!(answered["state"], "done", "{answered}");
    let aside = ended(address, &long);
    let reason = json!("it took longer than a job may (2 of 2)");
    assert_eq!((&aside["state"], &aside["reason"]), (&json!("set_aside"), &reason), "{aside}");
    counted(address, &[("set_aside", 1), ("done", 1)]);
    // Nothing of it runs on.
    let answered = ended(address, &id_of(&post(address, "/v1/jobs", &short("next"))));
    assert_eq!(answered["state"], "done", "{answered}");
}

/// A job that waits for a far day, and one like it that does not.
fn waiting(name: &str, n_filler: usize) -> Value {
    let mut job = due(name, n_filler);
    job["not_before_ms"] = json!(32_503_680_000_000u64);
    job
}

fn due(name: &str, n_filler: usize) -> Value {
    let mut job = short(name);
    // What no dialect reads.
    job["body"]["filler"] = json!("x".repeat(n_filler));
    job
}

fn refused(address: SocketAddr, job: &Value, status: u16, words: &str) {
    let answer = post(address, "/v1/jobs", job);
    let said = answer.json()["error"]["message"].as_str().unwrap().to_owned();
    assert_eq!((answer.status, answer.header("retry-after")), (status, Some("30")), "{said}");
    assert!(said.contains(words), "{said}");
}

fn put(address: SocketAddr, job: &Value) -> String {
    let answer = post(address, "/v1/jobs", job);
    assert_eq!(answer.status, 202, "{}", answer.text());
    id_of(&answer)
}

#[test]
fn a_full_queue_says_so_keeps_what_it_took_and_has_room_when_something_ends() {
    let home = tempfile::tempdir().unwrap();
    // Half of the bytes are for those that wait: two of the large ones.
    let options = ["-c", "512", "-np", "4", "--metrics", "--set", "jobs.n_waiting_max=4", "--set"];
    let start =
        || Process::start(home.path(), &[&options[..], &["jobs.bytes_max=900000"]].concat());
    const LARGE: usize = 200_000;
    let by_count = |address| refused(address, &waiting("more", 10), 429, "4 jobs wait; no more");
    let by_bytes = |address| refused(address, &waiting("more", LARGE), 507, "finds no room");
    let ends = |address, job: &Value| {
        let ended = ended(address, &put(address, job));
        assert_eq!(ended["state"], "done", "{ended}");
    };
    let service = start();
    let address = service.address;
    let never = post(address, "/v1/jobs", &waiting("never", 500_000));
    assert_eq!((never.status, never.header("retry-after")), (413, None), "{}", never.text());
    let mut kept = Vec::new();
    let mut keep = |name: &str, n_filler| {
        let job = waiting(name, n_filler);
        kept.push((put(address, &job), job));
    };
    keep("a", LARGE);
    keep("b", LARGE);
    by_bytes(address);
    keep("c", 10);
    keep("d", 10);
    by_count(address);
    counted(address, &[("queued", 4)]);
    service.kill();
    let service = start();
    let address = service.address;
    counted(address, &[("queued", 4)]);
    by_count(address);
    for (id, job) in &kept {
        assert_eq!(put(address, job), *id, "what was acknowledged is kept, and known");
        let mut other = job.clone();
        other["body"]["filler"] = json!("another");
        assert_eq!(post(address, "/v1/jobs", &other).status, 409);
    }
    // Whoever waits for an answer gets it all the same.
    let now = [("idempotency-key", "now")];
    let now = send(address, "POST", "/completion", &now, &short("now")["body"].to_string());
    assert_eq!(now.status, 200, "{}", now.text());
    by_count(address);
    // One goes, and there is room by count; not by bytes.
    let cancel = |idx: usize| {
        let path = format!("/v1/jobs/{}", kept[idx].0);
        assert_eq!(send(address, "DELETE", &path, &[], "").json()["state"], "cancelled");
    };
    cancel(3);
    by_bytes(address);
    ends(address, &due("e", 10));
    // Each that ends leaves its place to the next.
    ends(address, &due("f", 10));
    cancel(1);
    ends(address, &due("g", LARGE));
    ends(address, &due("h", LARGE));
    put(address, &waiting("i", 10));
    put(address, &waiting("j", 10));
    by_count(address);
    counted(address, &[("queued", 4), ("done", 5), ("cancelled", 2)]);
}

#[test]
fn whoever_asks_again_hears_a_stream_from_its_start_while_it_is_written() {
    let home = tempfile::tempdir().unwrap();
    let service = serve(home.path(), &[]);
    let mut body = endless("again")["body"].clone();
    body["stream"] = json!(true);
    let ask = || {
        let mut wire = Wire::open(service.address);
        let key = [("idempotency-key", "again")];
        wire.write(request("POST", "/completion", &key, &body.to_string()));
        let (status, headers) = wire.read_head().unwrap();
        let id = headers.into_iter().find(|(name, _)| name == "x-jetforge-job").unwrap().1;
        assert_eq!(status, 200);
        (wire, id)
    };
    let hear = |wire: &mut Wire, n: usize| {
        let mut bytes = Vec::new();
        while bytes.len() < n {
            bytes.extend(wire.read_chunk().expect("it goes on"));
        }
        bytes.truncate(n);
        bytes
    };
    let (mut first, id) = ask();
    let said = hear(&mut first, 2000);
    // Its first reader does not read on: nobody waits for that.
    let (mut second, same) = ask();
    assert_eq!((hear(&mut second, 2000), same), (said, id.clone()));
    hear(&mut second, 20_000);
    let path = format!("/v1/jobs/{id}");
    assert_eq!(send(service.address, "DELETE", &path, &[], "").json()["state"], "cancelled");
    for mut wire in [first, second] {
        while wire.read_chunk().is_some() {}
    }
}

/// A body for each path that jobs may be for, all of them greedy.
fn bodies() -> Vec<(&'static str, Value)> {
    let talk = json!([{"role": "user", "content": "write a parser for INI files"}]);
    let prompt = "def add(a, b):";
    let chat = json!({"messages": talk, "max_tokens": 12, "temperature": 0});
    let text = json!({"prompt": prompt, "max_tokens": 12, "n_predict": 12, "temperature": 0});
    let greedy = json!({"max_tokens": 12, "temperature": 0});
    let task = |kind: &str| {
        let (code, parameters) = ("x = 1", &greedy);
        json!({"request_type": kind, "prompt": prompt, "code": code, "parameters": parameters})
    };
    let ollama = |name: &str, what: &Value| {
        let options = json!({"num_predict": 12, "temperature": 0});
        json!({"model": "default", name: what, "stream": false, "options": options})
    };
    let embed = json!({"input": prompt, "content": prompt, "prompt": prompt, "model": "default"});
    let rank = json!({"query": "add", "documents": ["def add", "def sub"]});
    let infill = json!({"input_prefix": "def add(a, b):\n    return ", "input_suffix": "\n",
        "n_predict": 12, "temperature": 0});
    let mut bodies = vec![
        ("/v1/messages", chat.clone()),
        ("/infill", infill),
        ("/generate", task("completion")),
        ("/generate", json!({"prompt": prompt, "max_tokens": 12, "temperature": 0})),
        ("/refactor", task("refactoring")),
        ("/explain", task("explanation")),
        ("/test", task("test")),
        ("/api/generate", ollama("prompt", &prompt.into())),
        ("/api/chat", ollama("messages", &talk)),
        ("/tokenize", embed.clone()),
    ];
    let alike: [(&[&str], &Value); 4] = [
        (&["/v1/chat/completions", "/chat/completions"], &chat),
        (&["/v1/completions", "/completion", "/completions"], &text),
        (&["/v1/embeddings", "/embedding", "/embeddings", "/api/embed", "/api/embeddings"], &embed),
        (&["/v1/rerank", "/rerank", "/reranking", "/v1/reranking"], &rank),
    ];
    for (paths, body) in alike {
        bodies.extend(paths.iter().map(|path| (*path, body.clone())));
    }
    bodies
}

/// Takes away what no two answers have in common: names, times, and what was computed before.
fn bare(answer: &mut Value) {
    match answer {
        Value::Object(fields) => {
            let names = ["id", "request_id", "created", "created_at"];
            let reused = ["timings", "cached_tokens", "input_tokens", "cache_read_input_tokens"];
            let is_time = |name: &str| name.ends_with("_duration") || name.ends_with("_ms");
            fields.retain(|name, _| {
                !names.contains(&name.as_str())
                    && !reused.contains(&name.as_str())
                    && !is_time(name)
            });
            fields.values_mut().for_each(bare);
        }
        Value::Array(items) => items.iter_mut().for_each(bare),
        _ => {}
    }
}

#[test]
fn any_body_runs_as_a_job_and_is_answered_as_if_it_were_asked_now() {
    let home = tempfile::tempdir().unwrap();
    let service = serve(home.path(), &["--embedding"]);
    let address = service.address;
    let bodies = bodies();
    for (path, body) in &bodies {
        let now = post(address, path, body);
        let id = id_of(&post(address, "/v1/jobs", &json!({"endpoint": path, "body": body})));
        let job = ended(address, &id);
        assert_eq!(job["status"], now.status, "{path}: {job}");
        // This model ranks nothing, and says so both times.
        let state = if path.contains("rerank") { "failed" } else { "done" };
        assert_eq!(job["state"], state, "{path}: {job}");
        let (mut now, mut later) = (now.json(), job["answer"].clone());
        [&mut now, &mut later].into_iter().for_each(bare);
        assert_eq!(later, now, "{path}");
    }
    let unknown = json!({"endpoint": "/nothing", "body": {}});
    let said = post(address, "/v1/jobs", &unknown).json()["error"]["message"].clone();
    let paths = said.as_str().unwrap().split_once("one of ").unwrap().1.split(", ");
    let missing: Vec<&str> = paths.filter(|own| !bodies.iter().any(|(p, _)| p == own)).collect();
    assert!(missing.is_empty(), "no body for {missing:?}");
}

#[test]
fn the_verbs_speak_with_a_running_service_and_carry_jobs_elsewhere() {
    let home = tempfile::tempdir().unwrap();
    let service = serve(home.path(), &[]);
    let id = id_of(&post(service.address, "/v1/jobs", &job(0)));
    let url = service.address.to_string();
    let run = |home: &Path, args: &[&str]| {
        let output = jetforge(home).args(args).output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (output.status.code(), text(output.stdout), text(output.stderr))
    };
    let jobs = |args: &[&str]| run(home.path(), &[&["jobs", "--url", &url], args].concat());
    let (code, said, errors) = jobs(&["watch", &id]);
    let content = ended(service.address, &id)["answer"]["content"].as_str().unwrap().to_owned();
    assert_eq!((code, said), (Some(0), format!("{content}\n")), "{errors}");
    let (code, said, errors) = jobs(&["list"]);
    assert!(code == Some(0) && said.contains(&id) && said.contains("done"), "{said}{errors}");
    let (_, said, _) = jobs(&["show", &id]);
    assert_eq!(serde_json::from_str::<Value>(&said).unwrap()["answer"]["content"], *content);
    let (code, _, errors) = jobs(&["cancel", &id]);
    assert!(code == Some(1) && errors.contains("the job is done"), "{errors}");
    let (code, _, errors) = run(home.path(), &["export"]);
    assert!(code == Some(1) && errors.contains("another jetforge uses it"), "{errors}");
    drop(service);
    let file = home.path().join("jobs.jsonl").display().to_string();
    let (code, _, errors) = run(home.path(), &["export", &file]);
    assert_eq!(code, Some(0), "{errors}");
    let other = tempfile::tempdir().unwrap();
    let (code, _, errors) = run(other.path(), &["import", &file]);
    assert_eq!(code, Some(0), "{errors}");
    let service = serve(other.path(), &[]);
    assert_eq!(one(service.address, &id)["answer"]["content"], *content);
}

/// Takes one callback.
fn heard(listener: &TcpListener) -> Value {
    let (stream, _) = listener.accept().unwrap();
    let mut stream = BufReader::new(stream);
    let (mut line, mut n) = (String::new(), 0);
    while stream.read_line(&mut line).unwrap() > 2 {
        let head = line.to_ascii_lowercase();
        if let Some(length) = head.strip_prefix("content-length:") {
            n = length.trim().parse().unwrap();
        }
        line.clear();
    }
    let mut body = vec![0; n];
    stream.read_exact(&mut body).unwrap();
    let _ = stream.get_mut().write_all(b"HTTP/1.1 204 No Content\r\n\r\n");
    serde_json::from_slice(&body).unwrap()
}

#[test]
fn a_finished_job_calls_back_where_it_may_and_a_dead_host_delays_no_other() {
    let home = tempfile::tempdir().unwrap();
    let [dead, alive] = [0; 2].map(|_| TcpListener::bind("127.0.0.1:0").unwrap());
    let [dead_host, host] = [&dead, &alive].map(|l| l.local_addr().unwrap().to_string());
    let n_dead = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&n_dead);
    std::thread::spawn(move || {
        // Takes every call and answers none.
        let mut held = Vec::new();
        for stream in dead.incoming() {
            counted.fetch_add(1, Ordering::SeqCst);
            held.push(stream);
        }
    });
    let callbacks = format!("jobs.callbacks=['{dead_host}', '{host}']");
    let service = serve(home.path(), &["--set", &callbacks]);
    let ask = |i: usize, host: &str| {
        let mut body = job(i);
        body["body"]["n_predict"] = json!(2);
        body["callback"] = json!(format!("http://{host}/done"));
        let id = id_of(&post(service.address, "/v1/jobs", &body));
        ended(service.address, &id);
        id
    };
    (0..4).for_each(|i| drop(ask(i, &dead_host)));
    let id = ask(4, &host);
    let told = heard(&alive);
    assert_eq!((told["id"].as_str(), told["state"].as_str()), (Some(&*id), Some("done")));
    assert!(n_dead.load(Ordering::SeqCst) < 4, "it did not wait for all of them");
    until("it is written down", || one(service.address, &id)["callback_state"] == "sent");
}

#[test]
fn who_waits_for_a_job_of_a_service_that_stops_hears_which_one_goes_on() {
    let home = tempfile::tempdir().unwrap();
    let service = Process::start(home.path(), &["-c", "16384", "-np", "1"]);
    let at = service.address;
    let body = json!({"prompt": "x", "n_predict": -1, "ignore_eos": true, "context_shift": true});
    let name = [("idempotency-key", "mine")];
    let asking =
        std::thread::spawn(move || send(at, "POST", "/completion", &name, &body.to_string()));
    let mut id = String::new();
    until("it runs", || {
        let jobs = get(at, "/v1/jobs").json();
        id = jobs["data"][0]["id"].as_str().unwrap_or_default().to_owned();
        jobs["data"][0]["state"] == "running"
    });
    service.terminate();
    let answer = asking.join().unwrap();
    assert_eq!((answer.status, answer.header("x-jetforge-job")), (503, Some(id.as_str())));
    assert!(answer.text().contains("goes on when it is back"), "{}", answer.text());
    assert_eq!(service.end().0, Some(0));
}
