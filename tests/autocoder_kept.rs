//! AutoCoder's tasks with a name: one answer each, by every door, whatever becomes of the program.

use std::net::{SocketAddr, TcpListener};

use serde_json::{Value, json};

use crate::jobs::{Reader, ended, id_of, serve};
use crate::serve::Process;
use crate::support::http::{Answer, Wire, get, post, request, send, until};
use crate::support::socket::Socket;
use crate::sync::pair;

fn by_message(address: SocketAddr, task: &Value) -> String {
    let mut socket = Socket::open(address, "/ws", &[]).ok().unwrap();
    socket.send(&task.to_string());
    socket.read().unwrap()
}

fn by_job(address: SocketAddr, task: &Value) -> Answer {
    post(address, "/v1/jobs", &json!({"endpoint": "generate", "body": task}))
}

#[test]
fn an_autocoder_task_has_one_answer_through_all_doors_and_is_told_as_it_is_written() {
    let home = tempfile::tempdir().unwrap();
    let service = serve(home.path(), &[]);
    let address = service.address;
    let task = |id: &str| {
        json!({"request_id": id, "request_type": "completion", "prompt": "def add(a, b):",
            "parameters": {"max_tokens": 40, "temperature": 0.9}})
    };
    // A job, a body and a message, whichever of them comes first.
    for first in 0..3 {
        let body = task(&format!("t{first}"));
        let by_job = || {
            let id = id_of(&by_job(address, &body));
            let done = ended(address, &id);
            assert_eq!(done["state"], "done", "{done}");
            let mut reader = Reader::default();
            reader.hear(address, &id, usize::MAX);
            (done["answer"].clone(), reader.text)
        };
        let by_body = || post(address, "/generate", &body).json();
        let mut answers = Vec::new();
        for door in (0..3).map(|i| (first + i) % 3) {
            answers.push(match door {
                0 => {
                    let (answer, text) = by_job();
                    if first == 0 {
                        assert_eq!(answer["generated_code"], text, "its pieces are its text");
                    }
                    answer
                }
                1 => by_body(),
                _ => serde_json::from_str(&by_message(address, &body)).unwrap(),
            });
        }
        assert_eq!(answers[0]["status"], "success", "{}", answers[0]);
        assert!(answers.iter().all(|answer| *answer == answers[0]), "{first}: {answers:?}");
    }
}

#[test]
fn a_named_task_keeps_its_answer_through_kill_9() {
    let home = tempfile::tempdir().unwrap();
    let task = json!({"request_id": "kept", "request_type": "completion",
        "prompt": "def add(a, b):", "parameters": {"max_tokens": 24, "temperature": 0.7},
        "context_chunks": [{"id": "c", "content": "import math"}]});
    let service = serve(home.path(), &[]);
    let first = post(service.address, "/generate", &task);
    assert_eq!(first.status, 200, "{}", first.text());
    assert!(first.header("x-jetforge-context").unwrap().starts_with("chunks=1; "), "{first:?}");
    service.kill();
    let service = serve(home.path(), &[]);
    let address = service.address;
    // The same bytes by every door, and by another path and form of the same task.
    let again = post(address, "/generate", &task);
    assert_eq!((again.status, again.text()), (200, first.text()));
    assert_eq!(again.header("content-type"), first.header("content-type"));
    assert_eq!(by_message(address, &task), first.text());
    let job = by_job(address, &task);
    assert_eq!(job.status, 200, "it is over: {}", job.text());
    assert!(job.text().contains(&first.text()), "{}", job.text());
    let flat = json!({"request_id": "kept", "request_type": "completion", "temperature": 0.7,
        "prompt": "def add(a, b):", "max_tokens": 24, "top_p": 0.9, "priority": "background",
        "context_chunks": [{"content": "import math"}]});
    assert_eq!(post(address, "/generate", &flat).text(), first.text());
    let prefer = [("prefer", "respond-async")];
    let later = send(address, "POST", "/generate", &prefer, &task.to_string());
    assert_eq!((later.status, later.json()["answer"].clone()), (200, first.json()));
    // Nothing was written anew.
    let metrics = get(address, "/metrics").text();
    let written = metrics.lines().find(|line| line.starts_with("jetforge_tokens_generated_total"));
    assert!(written.is_none_or(|line| line.ends_with(" 0")), "{written:?}");
    // Another task of this name is refused by every door.
    let mut other = task.clone();
    other["parameters"]["max_tokens"] = json!(25);
    let refused = post(address, "/generate", &other);
    assert_eq!((refused.status, by_job(address, &other).status), (409, 409));
    let said: Value = serde_json::from_str(&by_message(address, &other)).unwrap();
    assert_eq!(
        (&said["request_id"], &said["metadata"]["error"]["code"]),
        (&json!("kept"), &json!(409))
    );
    assert_eq!(refused.json(), said, "in one form");
    let mut kind = task.clone();
    kind["request_type"] = Value::Null;
    assert_eq!(post(address, "/test", &kind).status, 409, "a test is another task");
    let told = get(address, "/tasks/kept").json();
    assert_eq!((&told["status"], &told["answer"]), (&json!("completed"), &first.json()));
    assert_eq!(told["request_type"], "completion");
    let tasks = get(address, "/tasks").json();
    assert_eq!(tasks["tasks"].as_array().unwrap().len(), 1, "{tasks}");
}

#[test]
fn a_task_that_was_cut_off_goes_on_when_it_is_asked_for_again() {
    let home = tempfile::tempdir().unwrap();
    let parameters = json!({"max_tokens": 400, "temperature": 0.9, "ignore_eos": true});
    let newest = |address| get(address, "/v1/jobs").json()["data"][0].clone();
    // No job may run by itself; whoever waits for an answer gets it all the same.
    let never = ["--set", "jobs.windows_utc=['00:00-00:01']"];
    // Until one is killed in its middle.
    let cut = (0..50).find_map(|n| {
        let task = json!({"request_id": format!("cut-{n}"), "request_type": "completion",
            "prompt": "def add(a, b):", "parameters": parameters});
        let service = serve(home.path(), &never);
        let mut wire = Wire::open(service.address);
        wire.write(request("POST", "/generate", &[], &task.to_string()));
        until("some of it is durable", || {
            let job = newest(service.address);
            job["request_id"] == task["request_id"] && job["n_token"].as_i64() > Some(0)
        });
        service.kill();
        let service = serve(home.path(), &never);
        let told = get(service.address, &format!("/tasks/cut-{n}")).json();
        (told["status"] == "pending").then_some((service, task))
    });
    let (service, task) = cut.expect("one is cut off");
    let answer = post(service.address, "/generate", &task);
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(answer.json()["metadata"]["token_count"], 400);
    let done = newest(service.address);
    assert_eq!((&done["state"], &done["way"]), (&json!("done"), &json!("resumed")), "{done}");
    assert_eq!(post(service.address, "/generate", &task).text(), answer.text());
}

#[test]
fn what_nobody_can_write_now_is_said_at_once_and_stays_asked_for() {
    let home = tempfile::tempdir().unwrap();
    // Nobody listens there.
    let nowhere = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let before = ["--port", "0", "--no-local", "--nano", &nowhere, "--nano-key", "k"];
    let hub = Process::start_verb(home.path(), "hub", &before);
    let task = json!({"request_id": "later", "prompt": "p", "parameters": {"max_tokens": 4}});
    for _ in 0..2 {
        let answer = post(hub.address, "/generate", &task);
        assert_eq!((answer.status, answer.header("retry-after").is_some()), (502, true));
        assert_eq!(answer.json()["request_id"], "later", "{}", answer.text());
        assert_eq!(by_message(hub.address, &task), answer.text());
    }
    let told = get(hub.address, "/tasks/later").json();
    assert_eq!((&told["status"], &told["error"]["code"]), (&json!("pending"), &json!(502)));
}

#[test]
fn notes_about_answers_stay_where_there_is_a_peer_to_tell() {
    let homes = [(); 2].map(|()| tempfile::tempdir().unwrap());
    // Nobody listens there.
    let nowhere = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    pair(homes[0].path(), homes[1].path(), nowhere);
    let keys = ["--api-key", "alpha,beta"];
    let ask = |address, key: &str, method: &str, body: &str| {
        let key = format!("Bearer {key}");
        send(address, method, "/feedback", &[("authorization", &key)], body).json()
    };
    let note = |n: usize| json!({"request_id": format!("t{n}"), "rating": n});
    let service = serve(homes[0].path(), &keys);
    for (n, key) in ["alpha", "beta", "alpha"].iter().enumerate() {
        let said = ask(service.address, key, "POST", &note(n).to_string());
        assert_eq!((&said["status"], &said["n_feedback"]), (&json!("success"), &json!(1 + n / 2)));
    }
    service.kill();
    let service = serve(homes[0].path(), &keys);
    let told = |key| ask(service.address, key, "GET", "")["feedback"].clone();
    assert_eq!(told("alpha"), json!([note(0), note(2)]));
    assert_eq!(told("beta"), json!([note(1)]));
}
