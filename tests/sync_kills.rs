//! Two services, a network with faults between them, and kill -9 of either at any moment.
//!
//! ```text
//! round   both live -> changes and calls -> one dies -> the other goes on alone -> a look at both
//! death   between two requests, in one of them, in a call of the two, in a text that is written
//! end     the network is calm: all that was acknowledged is on both sides, once
//! ```
//!
//! What was changed: feedback and settings on both, jobs on the first, of which a third write a
//! text, and files from both. What nobody acknowledged may be there, once at most.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use jetforge::base::limits::{STORE_BACKUPS_MAX, STORE_RESERVE_BYTES, STORE_WAL_BYTES_MAX};
use jetforge::sync::{BlobId, Vault};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::cli::jetforge;
use crate::serve::Process;
use crate::support::http::{PATIENCE, Wire, get, post, request, until};
use crate::sync::{pair, records, state_of, status, sync_gauge};
use crate::sync_proxy::{FAULTS, Proxy, Random, STAGES, read_http};

/// What the jobs that write a text begin with.
const PROMPTS: [&str; 3] = ["def add(a, b):", "fn main() {", "# A list of"];
/// Tokens of such a text.
const N_PREDICT: usize = 64;
/// Ways to die; see [`World::one_dies`].
const DEATHS: [&str; 4] = ["at rest", "in a request", "in a text", "in a call"];
/// Bytes of a small file, and by how many a large one is more than a piece.
const FILE_BYTES_MAX: u64 = 16 << 10;
/// Bytes of a piece of a file.
const PIECE_BYTES: u64 = 1 << 20;

/// Bytes of a store that was told of nothing.
const STORE_BYTES_MAX: u64 = 512 << 10;
/// Bytes that a change takes in all tables of a store, with a job's text and its pieces.
const CHANGE_BYTES_MAX: u64 = 16 << 10;
/// Bytes that a file takes beside its own: seals, outline, note.
const BLOB_BYTES_MAX: u64 = 4 << 10;

/// A machine: its disk, and its service while that lives.
struct Side {
    home: TempDir,
    process: Arc<Mutex<Option<Process>>>,
}

impl Side {
    fn new() -> Side {
        Side { home: tempfile::tempdir().unwrap(), process: Arc::default() }
    }

    /// Where its service is, if it lives.
    fn address(&self) -> Option<SocketAddr> {
        self.process.lock().unwrap().as_ref().map(|process| process.address)
    }

    fn state(&self) -> PathBuf {
        state_of(self.home.path())
    }

    /// What ends the service with kill -9.
    fn killer(&self) -> impl FnOnce() + Send + use<> {
        let process = Arc::clone(&self.process);
        move || drop(process.lock().unwrap().take())
    }
}

fn serve(home: &Path) -> Process {
    let options = ["-c", "256", "-np", "2", "--metrics", "--set", "jobs.flush_ms=5"];
    let patient = ["--set", "jobs.n_broken_max=50", "--set", "jobs.pause_ms=20"];
    Process::start(home, &[&options[..], &patient].concat())
}

/// A job that somebody asked for.
struct Asked {
    request_id: String,
    body: Value,
    /// Which of [`PROMPTS`], if it writes a text.
    prompt: Option<usize>,
    /// Its name, if somebody was told that it is taken.
    id: Option<String>,
}

/// A file that somebody sent.
struct Sent {
    side: usize,
    name: String,
    bytes: Vec<u8>,
    id: BlobId,
}

/// What happened, counted.
#[derive(Default)]
struct Tally {
    n_death: [u64; DEATHS.len()],
    n_fault: [u64; FAULTS.len()],
    n_change: usize,
    n_unsure: usize,
    n_job: usize,
    n_text: usize,
    n_broken_text: usize,
    n_file: usize,
}

impl Tally {
    fn add(&mut self, other: &Tally) {
        self.n_death.iter_mut().zip(other.n_death).for_each(|(n, more)| *n += more);
        self.n_fault.iter_mut().zip(other.n_fault).for_each(|(n, more)| *n += more);
        self.n_change += other.n_change;
        self.n_unsure += other.n_unsure;
        self.n_job += other.n_job;
        self.n_text += other.n_text;
        self.n_broken_text += other.n_broken_text;
        self.n_file += other.n_file;
    }
}

impl std::fmt::Display for Tally {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let deaths: Vec<String> =
            self.n_death.iter().zip(DEATHS).map(|(n, of)| format!("{n} {of}")).collect();
        let faults: Vec<String> =
            self.n_fault.iter().zip(FAULTS).map(|(n, of)| format!("{n} {of:?}")).collect();
        write!(
            f,
            "{} deaths ({}), {} faults of the network ({}), {} changes and {} that nobody \
             acknowledged, {} jobs, of them {} texts, {} of those broken off, {} files",
            self.n_death.iter().sum::<u64>(),
            deaths.join(", "),
            self.n_fault.iter().sum::<u64>(),
            faults.join(", "),
            self.n_change,
            self.n_unsure,
            self.n_job,
            self.n_text,
            self.n_broken_text,
            self.n_file
        )
    }
}

struct World {
    random: Random,
    sides: [Side; 2],
    proxy: Proxy,
    /// What each of [`PROMPTS`] goes on as where nothing happens.
    texts: Vec<String>,
    n_name: usize,
    /// Feedback that was acknowledged, and some of which nobody knows.
    told: BTreeSet<String>,
    unsure: BTreeSet<String>,
    /// Values that a setting was given.
    settings: BTreeMap<String, BTreeSet<u64>>,
    jobs: Vec<Asked>,
    files: Vec<Sent>,
    n_death: [u64; DEATHS.len()],
    /// The most that a state directory took, and of how much that it might have.
    disk_most: (u64, u64),
}

impl World {
    fn new(seed: u64) -> World {
        let (sides, proxy) = ([Side::new(), Side::new()], Proxy::start(seed));
        pair(sides[0].home.path(), sides[1].home.path(), proxy.address);
        let mut world = World {
            random: Random(seed),
            sides,
            proxy,
            texts: Vec::new(),
            n_name: 0,
            told: BTreeSet::new(),
            unsure: BTreeSet::new(),
            settings: BTreeMap::new(),
            jobs: Vec::new(),
            files: Vec::new(),
            n_death: Default::default(),
            disk_most: (0, 0),
        };
        world.wake();
        let [first, _] = world.both();
        let text = |prompt: &&str| {
            let answer = post(first, "/completion", &completion(prompt)).json();
            answer["content"].as_str().unwrap().to_owned()
        };
        world.texts = PROMPTS.iter().map(text).collect();
        world
    }

    /// Starts who is dead.
    fn wake(&mut self) {
        for (i, side) in self.sides.iter().enumerate() {
            let mut process = side.process.lock().unwrap();
            let process = process.get_or_insert_with(|| serve(side.home.path()));
            if i == 1 {
                *self.proxy.target.lock().unwrap() = Some(process.address);
            }
        }
    }

    /// Where both are; both live.
    fn both(&self) -> [SocketAddr; 2] {
        self.sides.each_ref().map(|side| side.address().expect("it lives"))
    }

    fn name(&mut self, start: &str) -> String {
        self.n_name += 1;
        format!("{start}{}", self.n_name)
    }

    /// Posts to a side that lives, unless `meanwhile` ends it; its answer, if one came.
    fn post(&self, i: usize, path: &str, body: &Value, meanwhile: impl FnOnce()) -> Option<Value> {
        let address = self.sides[i].address().expect("it lives");
        let answer = try_post(address, path, body, meanwhile);
        assert!(answer.is_some() || self.sides[i].address().is_none(), "{path} has no answer");
        answer
    }

    fn give_feedback(&mut self, i: usize, meanwhile: impl FnOnce()) {
        let name = self.name("f");
        let body = json!({ "request_id": name, "rating": 5 });
        match self.post(i, "/feedback", &body, meanwhile) {
            Some(_) => self.told.insert(name),
            None => self.unsure.insert(name),
        };
    }

    fn set(&mut self, i: usize) {
        let (key, value) = (format!("s{}", self.random.below(3)), self.random.below(1 << 40));
        let body = json!({ "kind": "setting", "key": key, "body": { "value": value } });
        let answer = self.post(i, "/v1/sync/records", &body, || {}).unwrap();
        assert_eq!(answer["counts"], true, "a person may write every setting");
        self.settings.entry(key).or_default().insert(value);
    }

    /// Asks the first side for a job; a third of them write a text.
    fn submit(&mut self, is_text: bool, meanwhile: impl FnOnce()) {
        let request_id = self.name("r");
        let prompt = is_text.then(|| self.random.below(PROMPTS.len() as u64) as usize);
        let (endpoint, body) = match prompt {
            Some(prompt) => ("/completion", completion(PROMPTS[prompt])),
            None => ("/tokenize", json!({ "content": format!("x {request_id}") })),
        };
        let body = json!({ "endpoint": endpoint, "body": body, "request_id": request_id });
        let answer = self.post(0, "/v1/jobs", &body, meanwhile);
        let id = answer.map(|answer| answer["id"].as_str().unwrap().to_owned());
        self.jobs.push(Asked { request_id, body, prompt, id });
    }

    fn submit_any(&mut self, meanwhile: impl FnOnce()) {
        let is_text = self.random.below(3) == 0;
        self.submit(is_text, meanwhile);
    }

    /// Sends a file from a side, whether its service lives or not.
    fn send_file(&mut self) {
        let (side, name) = (self.random.below(2) as usize, self.name("file"));
        let n_more = 1 + self.random.below(FILE_BYTES_MAX);
        let is_large = self.random.below(4) == 0;
        let n_bytes = if is_large { PIECE_BYTES + n_more } else { n_more };
        let bytes: Vec<u8> = (0..n_bytes).map(|_| self.random.below(256) as u8).collect();
        let home = self.sides[side].home.path();
        let path = home.join(&name);
        fs::write(&path, &bytes).unwrap();
        let output = jetforge(home).args(["sync", "send"]).arg(&path).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(0), "{said}");
        fs::remove_file(path).unwrap();
        self.files.push(Sent { side, name, id: BlobId::of(&bytes), bytes });
    }

    /// Waits until the two have spoken with each other.
    fn talk(&mut self) {
        let n = self.proxy.n_carried() + 1 + self.random.below(3);
        let [first, _] = self.both();
        until("the two speak", || {
            call_now(first);
            self.proxy.n_carried() >= n
        });
    }

    fn step(&mut self) {
        let living: Vec<usize> =
            [0, 1].into_iter().filter(|i| self.sides[*i].address().is_some()).collect();
        let i = self.random.one_of(&living);
        match self.random.below(10) {
            0..4 => self.give_feedback(i, || {}),
            4 => self.set(i),
            5 | 6 if living.contains(&0) => self.submit_any(|| {}),
            7 => self.send_file(),
            8 | 9 if living.len() == 2 => self.talk(),
            _ => self.give_feedback(i, || {}),
        }
    }

    /// Ends a service with kill -9, at one of [`DEATHS`].
    fn one_dies(&mut self) {
        let i = self.random.below(2) as usize;
        let kill = self.sides[i].killer();
        // Only the first writes texts.
        let how = match (self.random.below(4) as usize, i) {
            (2, 1) => 3,
            (how, _) => how,
        };
        self.n_death[how] += 1;
        match how {
            0 => kill(),
            1 => {
                // Long enough for a request to have come to its end, at times.
                let pause = Duration::from_micros(self.random.below(8000));
                let meanwhile = || {
                    std::thread::sleep(pause);
                    kill();
                };
                match i == 0 && self.random.below(2) == 0 {
                    true => self.submit_any(meanwhile),
                    false => self.give_feedback(i, meanwhile),
                }
            }
            2 => {
                self.submit(true, || {});
                let id = self.jobs.last().unwrap().id.clone().unwrap();
                let mut wire = Wire::open(self.both()[0]);
                wire.write(request("GET", &format!("/v1/jobs/{id}/events"), &[], ""));
                assert_eq!(wire.read_head().unwrap().0, 200);
                let n = self.random.below(10);
                (0..n).take_while(|_| wire.read_chunk().is_some()).for_each(drop);
                kill();
            }
            _ => {
                let stage = self.random.one_of(&STAGES);
                self.proxy.set_trap(stage, kill);
                until("a call comes into the trap", || {
                    if let Some(first) = self.sides[0].address() {
                        call_now(first);
                    }
                    self.sides[i].address().is_none()
                });
            }
        }
        if i == 1 {
            *self.proxy.target.lock().unwrap() = None;
        }
    }

    /// A round: changes and calls, in the midst of which one of the two dies.
    fn round(&mut self) {
        self.wake();
        let n_step = 4 + self.random.below(12);
        let fatal = self.random.below(n_step);
        for n in 0..n_step {
            if n == fatal {
                self.one_dies();
            }
            self.step();
        }
        for (i, side) in self.sides.iter().enumerate() {
            if let Some(address) = side.address() {
                until("the gauges say what is so", || gauges_are_true(address, i));
            }
        }
        self.check_disks();
    }

    fn n_change(&self) -> usize {
        let n_setting: usize = self.settings.values().map(BTreeSet::len).sum();
        // A job is told when it is taken in and when it is over; both tell their models.
        let n_job = 2 * self.jobs.len();
        self.told.len() + self.unsure.len() + n_setting + n_job + self.files.len() + 2
    }

    fn check_disks(&mut self) {
        let files: Vec<usize> = self.files.iter().map(|file| file.bytes.len()).collect();
        let bounds = bounds(self.n_change(), &files);
        for side in &self.sides {
            let state = side.state();
            assert_eq!(excess(&state, &bounds), None);
            self.disk_most = self.disk_most.max((bytes_of(&state), bounds[4].1));
        }
    }

    /// Nothing fails any more: all comes to its end. Without `calls` nobody asks for that.
    fn settle(&mut self, calls: bool) {
        self.proxy.is_calm.store(true, Ordering::Relaxed);
        self.wake();
        let [a, b] = self.both();
        for job in self.jobs.iter_mut().filter(|job| job.id.is_none()) {
            // Whether it was taken then or is now: it is there once.
            let answer = try_post(a, "/v1/jobs", &job.body, || {}).unwrap();
            job.id = Some(answer["id"].as_str().unwrap().to_owned());
        }
        until("the jobs are over", || {
            let list = get(a, "/v1/jobs?limit=500").json();
            let jobs = list["data"].as_array().unwrap();
            let is_wrong = |job: &&Value| {
                !["queued", "running", "done"].contains(&job["state"].as_str().unwrap())
            };
            assert_eq!(jobs.iter().find(is_wrong), None);
            jobs.iter().all(|job| job["state"] == "done")
        });
        let vaults = self.sides.each_ref().map(|side| Vault::open(&side.state()).unwrap());
        until("both are synced", || {
            if calls {
                call_now(a);
            }
            let is_even = |of: Value| of["n_to_come"] == 0 && of["state"] == "synced";
            let is_here = |vault: &Vault| {
                let is_whole = self.files.iter().all(|file| vault.is_whole(&file.id));
                is_whole && vault.wanted().is_empty()
            };
            [a, b].into_iter().map(status).all(is_even) && vaults.iter().all(is_here)
        });
    }

    /// Each change once on both sides, and on the second one the jobs of the first.
    fn both_know(&self) {
        let [a, b] = self.both();
        let names = [a, b].map(|side| {
            let found = records(side, "feedback");
            let name = |record: &Value| record["body"]["request_id"].as_str().unwrap().to_owned();
            let mut names: Vec<String> = found.iter().map(name).collect();
            names.sort();
            assert_eq!(breach(&names, &self.told, &self.unsure), None);
            names
        });
        assert_eq!(names[0], names[1]);
        let settings = [a, b].map(|side| {
            let value = |record: Value| {
                let value = record["body"]["value"].as_u64().unwrap();
                (record["key"].as_str().unwrap().to_owned(), value)
            };
            records(side, "setting").into_iter().map(value).collect::<BTreeMap<String, u64>>()
        });
        assert_eq!(settings[0], settings[1], "of each setting both have the same value");
        assert!(settings[0].keys().eq(self.settings.keys()), "{settings:?}");
        assert!(settings[0].iter().all(|(key, value)| self.settings[key].contains(value)));
        for (i, address) in [a, b].into_iter().enumerate() {
            assert!(gauges_are_true(address, i));
            let page = get(address, "/metrics").text();
            for name in ["waiting", "needs_you", "failed_calls"] {
                let gauge = sync_gauge(&page, name, ["b", "a"][i]);
                assert_eq!(gauge, Some(0.0), "{name}: {page}");
            }
        }
    }

    /// Each file whole on both sides, once, and nothing else beside them.
    fn both_have_the_files(&self) {
        let nodes = self.both().map(|side| get(side, "/v1/sync").json()["node"].clone());
        let key = |file: &Sent| format!("{}/{}", nodes[file.side].as_str().unwrap(), file.name);
        let expected: BTreeSet<String> = self.files.iter().map(key).collect();
        for (side, address) in self.sides.iter().zip(self.both()) {
            let told = records(address, "file");
            let keys: Vec<String> =
                told.iter().map(|record| record["key"].as_str().unwrap().to_owned()).collect();
            assert_eq!(breach(&keys, &expected, &BTreeSet::new()), None);
            let vault = Vault::open(&side.state()).unwrap();
            for file in &self.files {
                let mut bytes = Vec::new();
                let n_bytes = vault.take_out(&file.id, &mut bytes).unwrap();
                assert_eq!(n_bytes, Some(file.bytes.len() as u64), "{}", file.name);
                assert!(bytes == file.bytes, "{}", file.name);
            }
            assert_eq!(vault.kept().len(), self.files.len());
            for entry in fs::read_dir(side.state().join("blobs")).into_iter().flatten().flatten() {
                let name = entry.file_name().into_string().unwrap();
                let is_over = !name.ends_with(".part") && !name.ends_with(".want");
                let is_its = self.files.iter().any(|file| name.starts_with(&file.id.to_string()));
                // What a killed program had begun goes when it is older.
                assert!((is_over && is_its) || name.ends_with(".next"), "{name}");
            }
        }
    }

    /// Each job once with its whole answer, there and here; how many texts had been broken off.
    fn both_know_the_jobs(&self) -> usize {
        let [a, b] = self.both();
        let list = get(a, "/v1/jobs?limit=500").json();
        let listed = list["data"].as_array().unwrap();
        let mut names: Vec<&str> =
            listed.iter().map(|job| job["request_id"].as_str().unwrap()).collect();
        let mut asked: Vec<&str> = self.jobs.iter().map(|job| job.request_id.as_str()).collect();
        names.sort_unstable();
        asked.sort_unstable();
        assert_eq!(names, asked, "each once");
        let known = records(b, "job");
        assert_eq!(known.len(), self.jobs.len());
        let mut n_broken = 0;
        for job in &self.jobs {
            let id = job.id.as_ref().unwrap();
            let here = get(a, &format!("/v1/jobs/{id}")).json();
            let there = &known.iter().find(|record| record["key"] == **id).unwrap()["body"];
            assert_eq!((&here["state"], &there["state"]), (&json!("done"), &json!("done")));
            assert_eq!(here["answer"], there["answer"], "{there}");
            // What a service adds by itself, such as that nothing streams, may be there as well.
            for (field, value) in job.body["body"].as_object().unwrap() {
                assert_eq!(there["request"][field], *value, "{there}");
            }
            match job.prompt {
                Some(prompt) => {
                    assert_eq!(here["answer"]["content"], *self.texts[prompt], "{here}");
                    assert_eq!(here["answer"]["tokens_predicted"], N_PREDICT, "{here}");
                    n_broken += usize::from(here["way"] != "fresh" || here["n_broken"] != 0);
                }
                None => assert!(!here["answer"]["tokens"].as_array().unwrap().is_empty()),
            }
        }
        n_broken
    }
}

fn completion(prompt: &str) -> Value {
    json!({
        "prompt": prompt,
        "n_predict": N_PREDICT,
        "temperature": 0.0,
        "ignore_eos": true,
        "cache_prompt": false,
    })
}

/// Posts; the answer, if one came whole.
fn try_post(
    address: SocketAddr,
    path: &str,
    body: &Value,
    meanwhile: impl FnOnce(),
) -> Option<Value> {
    let text = request("POST", path, &[], &body.to_string());
    let stream = TcpStream::connect(address);
    let stream = stream.and_then(|mut stream| {
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(text.as_bytes())?;
        Ok(stream)
    });
    meanwhile();
    let answer = read_http(&mut stream.ok()?).ok()?;
    let answer = String::from_utf8(answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap();
    assert!(["200", "202"].contains(&status), "{path}: {answer}");
    Some(serde_json::from_str(body).unwrap())
}

/// Asks a service to call its peers.
fn call_now(address: SocketAddr) {
    try_post(address, "/v1/sync/now", &json!({}), || {});
}

/// Whether the gauges of a side say what its lists say. It goes on while somebody looks, so this
/// may take a few looks.
fn gauges_are_true(address: SocketAddr, i: usize) -> bool {
    let (of, list) = (status(address), get(address, "/v1/jobs?limit=500").json());
    let page = get(address, "/metrics").text();
    let is_so = |name: &str, field: &str| {
        let gauge = sync_gauge(&page, name, ["b", "a"][i]).expect("the gauge is there");
        of[field].as_f64() == Some(gauge)
    };
    let jobs = list["data"].as_array().unwrap();
    let are_counted = list["counts"].as_object().unwrap().iter().all(|(state, n)| {
        let n_listed = jobs.iter().filter(|job| job["state"] == **state).count();
        let line = format!("jetforge_jobs{{state=\"{state}\"}} {n_listed}\n");
        *n == n_listed && page.contains(&line)
    });
    are_counted && is_so("waiting", "n_waiting") && is_so("failed_calls", "n_failed")
}

/// What is wrong with names of which all that were told have to be there, and none twice.
fn breach(found: &[String], told: &BTreeSet<String>, unsure: &BTreeSet<String>) -> Option<String> {
    let names: BTreeSet<String> = found.iter().cloned().collect();
    let lost: Vec<&String> = told.difference(&names).collect();
    let strange: Vec<&String> =
        names.iter().filter(|name| !told.contains(*name) && !unsure.contains(*name)).collect();
    let n_twice = found.len() - names.len();
    let is_right = lost.is_empty() && strange.is_empty() && n_twice == 0;
    (!is_right).then(|| format!("lost {lost:?}, of nobody {strange:?}, {n_twice} twice"))
}

/// Bytes of a file, or of all in a folder.
fn bytes_of(path: &Path) -> u64 {
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    let within: u64 = entries.map(|entry| bytes_of(&entry.path())).sum();
    let own = fs::metadata(path).ok().filter(fs::Metadata::is_file);
    within + own.map_or(0, |file| file.len())
}

/// What parts of a state directory may take, in bytes, and at last all of it, on a machine that
/// knows of so many changes and has files of these bytes.
fn bounds(n_change: usize, files: &[usize]) -> [(&'static str, u64); 5] {
    let store = STORE_BYTES_MAX + n_change as u64 * CHANGE_BYTES_MAX;
    let log = STORE_WAL_BYTES_MAX as u64;
    let blobs: u64 = files.iter().map(|n_bytes| *n_bytes as u64 + BLOB_BYTES_MAX).sum();
    let all = (1 + STORE_BACKUPS_MAX as u64) * store + log + blobs + STORE_RESERVE_BYTES;
    let told = PIECE_BYTES;
    [("state.db", store), ("state.db-wal", log), ("blobs", blobs), ("told", told), ("", all)]
}

/// What is beyond its bound in a state directory.
fn excess(state: &Path, bounds: &[(&str, u64)]) -> Option<String> {
    let mut beyond = bounds.iter().filter_map(|(name, n_max)| {
        let n_bytes = bytes_of(&state.join(name));
        (n_bytes > *n_max).then(|| format!("{name:?} has {n_bytes} bytes, and may have {n_max}"))
    });
    beyond.next()
}

/// So many rounds of a seed, each of which is somebody's end.
fn torture(seed: u64, n_round: usize) -> Tally {
    let mut world = World::new(seed);
    (0..n_round).for_each(|_| world.round());
    // Of some seeds nobody asks for a call at the end: it begins by itself.
    world.settle(seed % 4 != 0);
    world.both_know();
    world.both_have_the_files();
    let n_broken_text = world.both_know_the_jobs();
    world.check_disks();
    let tally = Tally {
        n_death: world.n_death,
        n_fault: world.proxy.n_faults(),
        n_change: world.n_change(),
        n_unsure: world.unsure.len(),
        n_job: world.jobs.len(),
        n_text: world.jobs.iter().filter(|job| job.prompt.is_some()).count(),
        n_broken_text,
        n_file: world.files.len(),
    };
    let (n_bytes, n_max) = world.disk_most;
    println!("seed {seed}: {tally}; {n_bytes} bytes of a disk at most, of {n_max}");
    tally
}

#[test]
fn two_services_lose_and_double_nothing_though_both_die_and_the_network_fails() {
    let tally = torture(7, 6);
    assert!(tally.n_fault.iter().sum::<u64>() > 0 && tally.n_text > 0 && tally.n_file > 0);
}

/// So many seconds by `JETFORGE_TEST_TORTURE_S`, else an hour, from the seed on that
/// `JETFORGE_TEST_TORTURE_SEED` names:
/// `JETFORGE_TEST_TORTURE_S=300 cargo test --test suite for_an_hour -- --ignored --nocapture`.
#[test]
#[ignore = "an hour"]
fn two_services_lose_and_double_nothing_for_an_hour() {
    let given = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let n_s = given("JETFORGE_TEST_TORTURE_S").unwrap_or(3600);
    let first = given("JETFORGE_TEST_TORTURE_SEED").unwrap_or(1);
    let (start, mut sum, mut n_run) = (Instant::now(), Tally::default(), 0);
    while start.elapsed() < Duration::from_secs(n_s) {
        sum.add(&torture(first + n_run, 20));
        n_run += 1;
    }
    println!("{n_run} runs in {} s: {sum}", start.elapsed().as_secs());
    assert!(sum.n_fault.iter().all(|n| *n > 0), "each fault happens");
    assert!(sum.n_death.iter().all(|n| *n > 0), "each way to die happens");
    // In a run or two chance may leave something out.
    let is_all = sum.n_broken_text > 0 && sum.n_unsure > 0 && sum.n_file > 0;
    assert!(n_run < 8 || is_all, "all that it is about happens");
}

#[test]
fn what_is_lost_doubled_or_too_large_would_be_found() {
    let set = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    let list = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
    let (told, unsure): (BTreeSet<String>, BTreeSet<String>) = (set(&["a", "b"]), set(&["c"]));
    let cases: [(&[&str], bool); 6] = [
        (&["a", "b"], true),
        (&["c", "b", "a"], true),
        (&["a"], false),
        (&["a", "b", "b"], false),
        (&["a", "b", "c", "c"], false),
        (&["a", "b", "d"], false),
    ];
    for (found, is_right) in cases {
        assert_eq!(breach(&list(found), &told, &unsure).is_none(), is_right, "{found:?}");
    }
    let page = "jetforge_sync_waiting{peer=\"a\"} 0\njetforge_sync_waiting{peer=\"b\"} 12\n";
    assert_eq!(sync_gauge(page, "waiting", "b"), Some(12.0));
    assert_eq!(sync_gauge(page, "needs_you", "b"), None);
    let state = tempfile::tempdir().unwrap();
    let write = |name: &str, n: u64| {
        let path = state.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, vec![0u8; n as usize]).unwrap();
    };
    write("blobs/x", 5000 + BLOB_BYTES_MAX);
    write("state.db", STORE_BYTES_MAX + CHANGE_BYTES_MAX);
    assert_eq!(excess(state.path(), &bounds(1, &[5000])), None);
    assert!(excess(state.path(), &bounds(0, &[5000])).unwrap().contains("state.db"));
    write("blobs/x.part", 1);
    assert!(excess(state.path(), &bounds(1, &[5000])).unwrap().contains("blobs"));
    write("state.broken", 4 * (STORE_BYTES_MAX + CHANGE_BYTES_MAX) + (8 << 20));
    assert!(excess(state.path(), &bounds(1, &[5001])).is_some());
}
