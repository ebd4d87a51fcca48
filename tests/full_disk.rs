//! The real service while the disk of its state is full: it answers, refuses what it would have to
//! keep, loses nothing that it acknowledged, and takes work again when there is room.
//!
//! The disk is a small one in memory, in a mount namespace that only root can have. Somebody holds
//! that, so that the disk outlives the service.

use std::fs::File;
use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};

use crate::jobs::{ended, id_of};
use crate::serve::Process;
use crate::support::http::{Answer, get, post, send, until};
use crate::support::skip::skip;

/// Makes the disk, says so, and waits until nobody holds it any more.
const DISK: &str = r#"
mount --make-rprivate / && mkdir -p "$STATE" && mount -t tmpfs -o size=8m none "$STATE" &&
    echo ready && read -r end
"#;

struct Disk {
    holder: Child,
    home: tempfile::TempDir,
}

impl Disk {
    /// `None` where that cannot be had.
    fn new(test: &str) -> Option<Disk> {
        let home = tempfile::tempdir().unwrap();
        let mut holder = Command::new("unshare");
        holder.args(["--mount", "sh", "-c", DISK]).env("STATE", home.path().join(".local/state"));
        holder.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let Ok(mut holder) = holder.spawn() else {
            skip(test, "there is no unshare");
            return None;
        };
        let mut said = String::new();
        BufReader::new(holder.stdout.take().unwrap()).read_line(&mut said).unwrap();
        let disk = Disk { holder, home };
        if said != "ready\n" {
            skip(test, "only root has mounts of its own");
            return None;
        }
        Some(disk)
    }

    /// A file of the state directory, as it is seen from outside.
    fn path(&self, name: &str) -> PathBuf {
        let state = self.home.path().join(".local/state/jetforge").join(name);
        PathBuf::from(format!("/proc/{}/root{}", self.holder.id(), state.display()))
    }

    fn serve(&self) -> Process {
        let mut command = Command::new("nsenter");
        command.arg(format!("--mount=/proc/{}/ns/mnt", self.holder.id()));
        command.arg("--").arg(assert_cmd::cargo::cargo_bin!("jetforge"));
        command.args(["serve", "--port", "0", "--threads", "1", "-c", "2048", "-np", "4"]);
        command.args(["--set", "jobs.flush_ms=5"]);
        command.env_clear().env("PATH", "/usr/bin:/bin").stdin(Stdio::null());
        command.env("HOME", self.home.path()).env("JETFORGE_ROLE", "person");
        Process::spawn(command)
    }

    /// Takes all the room that is left.
    fn fill(&self) {
        let mut file = File::create(self.path("fill")).unwrap();
        for n_byte in [1 << 20, 4096] {
            let bytes = vec![0; n_byte];
            let full = loop {
                if let Err(error) = file.write_all(&bytes) {
                    break error;
                }
            };
            assert_eq!(full.kind(), ErrorKind::StorageFull);
        }
    }

    fn free(&self) {
        std::fs::remove_file(self.path("fill")).unwrap();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

fn completion(i: usize, n_predict: usize) -> Value {
    json!({ "prompt": format!("def f{i}(a, b):"), "n_predict": n_predict, "ignore_eos": true,
        "temperature": 0, "cache_prompt": false })
}

fn job(i: usize, n_predict: usize) -> Value {
    json!({ "endpoint": "/completion", "body": completion(i, n_predict) })
}

fn answers(at: SocketAddr) -> bool {
    let talk = json!([{"role": "user", "content": "write a parser for INI files"}]);
    let answer = post(at, "/v1/chat/completions", &json!({"messages": talk, "max_tokens": 8}));
    let said = answer.json()["choices"][0]["message"]["content"].clone();
    answer.status == 200 && said.as_str().is_some_and(|said| !said.is_empty())
}

/// Whether an answer refuses for want of room, and says what to do.
fn wants_room(answer: &Answer) -> bool {
    let text = answer.text();
    answer.status == 507 && text.contains("storage_error") && text.contains("remove something")
}

#[test]
fn a_full_disk_refuses_what_it_cannot_keep_and_nothing_else() {
    let Some(disk) = Disk::new("full-disk") else { return };
    let service = disk.serve();
    let at = service.address;
    let mut told = vec![id_of(&post(at, "/v1/jobs", &job(0, 4)))];
    ended(at, &told[0]);
    let long = post(at, "/v1/jobs", &job(1, 300));
    disk.fill();
    told.push(id_of(&long));
    assert!(answers(at));
    // The log may have room left that is its own; what it acknowledges has to stay.
    let refused = (2..2000).find_map(|i| match post(at, "/v1/jobs", &job(i, 4)) {
        taken if taken.status == 202 => {
            told.push(id_of(&taken));
            None
        }
        refused => Some(refused),
    });
    let refused = refused.expect("nothing more can be kept");
    assert!(wants_room(&refused), "{} {}", refused.status, refused.text());
    let chat = json!({"messages": [{"role": "user", "content": "x"}], "max_tokens": 4});
    let task = json!({"request_type": "completion", "prompt": "x", "request_id": "t",
        "parameters": {"max_tokens": 4}});
    let detached = json!({"prompt": "x", "n_predict": 4, "on_disconnect": "detach"});
    for (method, path, header, body) in [
        ("POST", "/v1/chat/completions", ("idempotency-key", "k"), &chat),
        ("POST", "/v1/chat/completions", ("prefer", "respond-async"), &chat),
        ("POST", "/completion", ("accept", "*/*"), &detached),
        ("POST", "/generate", ("accept", "*/*"), &task),
        ("PUT", "/v1/config", ("accept", "*/*"), &json!({"model.n_ctx": 512})),
        ("PUT", "/v1/power", ("accept", "*/*"), &json!({"profile": "eco"})),
    ] {
        let refused = send(at, method, path, &[header], &body.to_string());
        assert!(wants_room(&refused), "{path} {header:?}: {} {}", refused.status, refused.text());
    }
    assert!(answers(at) && get(at, "/health").status == 200);
    assert_eq!(get(at, "/v1/config").status, 200);

    disk.free();
    until("it takes work again", || {
        let answer = post(at, "/v1/jobs", &job(9, 4));
        let is_taken = answer.status == 202;
        if is_taken {
            told.push(id_of(&answer));
        }
        is_taken
    });
    let said = post(at, "/completion", &completion(1, 300)).json()["content"].clone();
    assert_eq!(ended(at, &told[1])["answer"]["content"], said, "with what it said meanwhile");
    for id in &told {
        assert_eq!(ended(at, id)["state"], "done");
    }
    service.kill();
    let service = disk.serve();
    for id in &told {
        assert_eq!(ended(service.address, id)["state"], "done", "it is kept");
    }
}

#[test]
fn a_start_on_a_full_disk_goes_on_with_what_was_acknowledged() {
    let Some(disk) = Disk::new("full-disk-start") else { return };
    let service = disk.serve();
    let id = id_of(&post(service.address, "/v1/jobs", &job(0, 20)));
    // As the power goes.
    service.kill();
    assert!(disk.path("state.reserve").exists());
    disk.fill();
    let service = disk.serve();
    let at = service.address;
    assert!(answers(at));
    assert_eq!(ended(at, &id)["state"], "done", "there was room left for that");
    let mut heavy = job(1, 4);
    heavy["body"]["user"] = "x".repeat(50_000).into();
    let refused =
        (0..200).map(|_| post(at, "/v1/jobs", &heavy)).find(|answer| answer.status != 202);
    let refused = refused.expect("and not for everything");
    assert!(wants_room(&refused), "{} {}", refused.status, refused.text());
    assert!(answers(at));
    disk.free();
    until("it takes work again", || post(at, "/v1/jobs", &job(2, 4)).status == 202);
    let stop = |service: Process| {
        service.terminate();
        assert_eq!(service.end().0, Some(0));
    };
    stop(service);
    let service = disk.serve();
    assert_eq!(ended(service.address, &id)["state"], "done");
    assert!(disk.path("state.reserve").exists(), "for the next time");
    // After a stop that was asked for no log is left whose room could be used again.
    stop(service);
    disk.fill();
    let service = disk.serve();
    assert_eq!(ended(service.address, &id)["state"], "done");
    assert_eq!(post(service.address, "/v1/jobs", &job(3, 4)).status, 202);
}
