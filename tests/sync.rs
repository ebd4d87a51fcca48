//! Two services, a network that does what it should not, and kill -9 of either.
//!
//! The proxy between them cuts, delays, doubles, swallows and refuses by a seed. Changes are made
//! on both while that goes on; in the end, all that was acknowledged is on both sides, once.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use jetforge::base::dirs::{Dirs, Role};
use jetforge::store::{Peer, Store};
use jetforge::sync::{Spool, Told};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::cli::jetforge;
use crate::serve::Process;
use crate::support::http::{get, post, until};

/// The state directory of a service whose home this is.
pub fn state_of(home: &Path) -> PathBuf {
    let env = [("HOME", home.to_str().unwrap())].into_iter().collect();
    Dirs::new(Role::from_env(&env).unwrap(), &env).unwrap().state
}

fn open(home: &Path) -> Store {
    Store::open(&state_of(home)).unwrap().store
}

/// Pairs two stores that no service has; `a` calls `b` at `address`.
fn pair(a: &Path, b: &Path, address: SocketAddr) {
    let (a, b) = (open(a), open(b));
    let (key_of_a, key_of_b) = ("key-that-a-sends", "key-that-b-sends");
    let digest = |key: &str| Sha256::digest(key.as_bytes()).into();
    a.insert_peer(Peer {
        node: b.node().unwrap(),
        name: "b".into(),
        address: format!("http://{address}"),
        key: key_of_a.into(),
        key_digest: digest(key_of_b),
        ..Peer::default()
    })
    .unwrap();
    b.insert_peer(Peer {
        node: a.node().unwrap(),
        name: "a".into(),
        key: key_of_b.into(),
        key_digest: digest(key_of_a),
        ..Peer::default()
    })
    .unwrap();
}

struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % n
    }
}

/// A proxy with faults.
pub struct Proxy {
    pub address: SocketAddr,
    pub target: Arc<Mutex<Option<SocketAddr>>>,
    pub is_calm: Arc<AtomicBool>,
    n_fault: Arc<AtomicU64>,
}

impl Proxy {
    pub fn start(seed: u64) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let proxy = Proxy {
            address: listener.local_addr().unwrap(),
            target: Arc::default(),
            is_calm: Arc::default(),
            n_fault: Arc::default(),
        };
        let (target, is_calm) = (Arc::clone(&proxy.target), Arc::clone(&proxy.is_calm));
        let n_fault = Arc::clone(&proxy.n_fault);
        std::thread::spawn(move || {
            let mut random = Random(seed | 1);
            for stream in listener.incoming() {
                let Ok(stream) = stream else { return };
                let is_calm = is_calm.load(Ordering::Relaxed);
                let fault = if is_calm { 9 } else { random.below(10) };
                let n = random.below(3000) as usize;
                n_fault.fetch_add(u64::from(fault < 5), Ordering::Relaxed);
                let target = *target.lock().unwrap();
                std::thread::spawn(move || drop(carry(stream, target, fault, n)));
            }
        });
        proxy
    }
}

/// Carries one request and its answer, or what the fault leaves of them.
fn carry(
    mut from: TcpStream,
    target: Option<SocketAddr>,
    fault: u64,
    n: usize,
) -> std::io::Result<()> {
    from.set_read_timeout(Some(Duration::from_secs(20)))?;
    let Some(target) = target.filter(|_| fault != 0) else { return Ok(()) };
    let mut request = read_http(&mut from)?;
    let mut to = TcpStream::connect(target)?;
    to.set_read_timeout(Some(Duration::from_secs(20)))?;
    match fault {
        // The request is cut.
        1 => {
            request.truncate(n.min(request.len() - 1));
            to.write_all(&request)?;
            return to.shutdown(Shutdown::Both);
        }
        // It comes twice.
        2 => {
            let mut first = TcpStream::connect(target)?;
            first.write_all(&request)?;
            let _ = read_http(&mut first);
        }
        _ => {}
    }
    to.write_all(&request)?;
    let mut answer = read_http(&mut to)?;
    match fault {
        // The answer is cut, or does not come at all.
        3 => answer.truncate(n.min(answer.len() - 1)),
        4 => answer.clear(),
        _ => {}
    }
    from.write_all(&answer)
}

/// A request or an answer, by its `content-length`.
fn read_http(stream: &mut TcpStream) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut buffer = [0; 8192];
    loop {
        let n = stream.read(&mut buffer)?;
        if n == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        bytes.extend_from_slice(&buffer[..n]);
        let Some(end) = bytes.windows(4).position(|part| part == b"\r\n\r\n") else { continue };
        let head = String::from_utf8_lossy(&bytes[..end]).to_ascii_lowercase();
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
        let length: usize = length.and_then(|n| n.trim().parse().ok()).unwrap_or(0);
        if bytes.len() >= end + 4 + length {
            return Ok(bytes);
        }
    }
}

fn serve(home: &Path) -> Process {
    Process::start(home, &["-c", "256", "-np", "1", "--metrics"])
}

fn status(side: &Process) -> Value {
    get(side.address, "/v1/sync").json()["peers"][0].clone()
}

fn records(side: &Process, kind: &str) -> Vec<Value> {
    let path = format!("/v1/sync/records?kind={kind}&limit=1000");
    get(side.address, &path).json()["records"].as_array().unwrap().clone()
}

/// Runs both for so many rounds, each of which ends with the death of one of them.
fn torture(seed: u64, n_round: usize) {
    let homes = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let mut random = Random(seed);
    let proxy = Proxy::start(seed);
    pair(homes[0].path(), homes[1].path(), proxy.address);
    let mut sides = homes.each_ref().map(|home| Some(serve(home.path())));
    let mut told = BTreeSet::new();
    let mut jobs = Vec::new();
    for round in 0..n_round {
        for i in [0, 1] {
            let side = sides[i].get_or_insert_with(|| serve(homes[i].path()));
            if i == 1 {
                *proxy.target.lock().unwrap() = Some(side.address);
            }
        }
        let live = sides.each_ref().map(|side| side.as_ref().unwrap().address);
        for n in 0..4 + random.below(12) {
            let text = format!("{round}-{n}");
            let side = live[random.below(2) as usize];
            let answer = post(side, "/feedback", &json!({"request_id": text, "rating": 5}));
            assert_eq!(answer.status, 200, "{}", answer.text());
            told.insert(text);
            if n == 3 {
                let body =
                    json!({"endpoint": "/tokenize", "body": {"content": format!("x {round}")}});
                let answer = post(live[0], "/v1/jobs", &body);
                assert_eq!(answer.status, 202, "{}", answer.text());
                jobs.push(answer.json()["id"].as_str().unwrap().to_owned());
            }
            get(live[0], "/v1/sync");
        }
        let n_call = 1 + random.below(6);
        let heard = |side: SocketAddr| get(side, "/v1/sync").json()["peers"][0]["heard_ms"].clone();
        for _ in 0..n_call {
            heard(live[0]);
        }
        // What dies is dropped with kill -9.
        let i = random.below(2) as usize;
        sides[i] = None;
        if i == 1 {
            *proxy.target.lock().unwrap() = None;
        }
    }
    proxy.is_calm.store(true, Ordering::Relaxed);
    for i in [0, 1] {
        let side = sides[i].get_or_insert_with(|| serve(homes[i].path()));
        if i == 1 {
            *proxy.target.lock().unwrap() = Some(side.address);
        }
    }
    let sides = sides.map(Option::unwrap);
    // What ran when its service died runs again, and is told.
    until("the jobs are over", || {
        let list = get(sides[0].address, "/v1/jobs?limit=500").json();
        list["data"].as_array().unwrap().iter().all(|job| job["state"] == "done")
    });
    until("both are synced", || {
        post(sides[0].address, "/v1/sync/now", &json!({}));
        let [a, b] = sides.each_ref().map(status);
        let is_even = a["heard_ms"].is_u64() && a["n_to_come"] == 0 && b["n_to_come"] == 0;
        is_even && a["state"] == "synced" && b["state"] == "synced"
    });
    both_know(&sides, &told, &jobs);
    println!(
        "seed {seed}: {n_round} deaths, {} faults of the network, {} changes, {} jobs",
        proxy.n_fault.load(Ordering::Relaxed),
        told.len(),
        jobs.len()
    );
}

/// Each change once on both sides, and on the second one the jobs of the first.
fn both_know(sides: &[Process; 2], told: &BTreeSet<String>, jobs: &[String]) {
    for side in sides {
        let found = records(side, "feedback");
        let names: BTreeSet<String> =
            found.iter().map(|r| r["body"]["request_id"].as_str().unwrap().to_owned()).collect();
        assert_eq!(names, *told);
        assert_eq!(found.len(), told.len(), "each once");
        let metrics = get(side.address, "/metrics").text();
        assert!(metrics.contains("jetforge_sync_waiting{peer="), "{metrics}");
        assert!(metrics.contains("} 0\n"), "{metrics}");
    }
    let known = records(&sides[1], "job");
    assert_eq!(known.len(), jobs.len());
    for id in jobs {
        let job = known.iter().find(|record| record["key"] == **id).unwrap();
        assert_eq!(job["body"]["state"], "done", "{job}");
        assert!(job["body"]["answer"]["tokens"].is_array(), "{job}");
        assert!(job["body"]["request"]["content"].is_string(), "{job}");
    }
}

#[test]
fn two_services_lose_and_double_nothing_though_both_die_and_the_network_fails() {
    torture(7, 6);
}

/// So many seconds by `JETFORGE_TEST_TORTURE_S`, else an hour:
/// `JETFORGE_TEST_TORTURE_S=300 cargo test --test suite for_an_hour -- --ignored --nocapture`.
#[test]
#[ignore = "an hour"]
fn two_services_lose_and_double_nothing_for_an_hour() {
    let given = std::env::var("JETFORGE_TEST_TORTURE_S").ok();
    let n_s = given.and_then(|text| text.parse().ok()).unwrap_or(3600);
    let start = std::time::Instant::now();
    for seed in 1.. {
        torture(seed * 7919, 10);
        if start.elapsed() > Duration::from_secs(n_s) {
            println!("{seed} runs");
            return;
        }
    }
}

#[test]
fn the_verb_says_how_it_stands_and_carries_entries_by_a_file() {
    let homes = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let [home, other] = homes.each_ref().map(|home| home.path());
    // Nobody listens there.
    pair(home, other, "127.0.0.1:9".parse().unwrap());
    let service = serve(home);
    let url = service.address.to_string();
    let run = |home: &Path, args: &[&str]| {
        let output = jetforge(home).arg("sync").args(args).output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        let (out, err) = (text(output.stdout), text(output.stderr));
        assert_eq!(output.status.code(), Some(0), "{out}{err}");
        (out, err)
    };
    for n in 0..3 {
        post(service.address, "/feedback", &json!({"request_id": format!("f{n}")}));
    }
    until("its models are told", || !records(&service, "inventory").is_empty());
    let (said, _) = run(home, &["status", "--url", &url]);
    assert!(said.contains("4 waiting (oldest "), "{said}");
    let state = &get(service.address, "/v1/status").json()["sync"][0]["state"];
    assert!(state.as_str().unwrap().starts_with("4 waiting"), "{state}");
    let file = home.join("out.jsonl").display().to_string();
    let (_, said) = run(home, &["export", &file, "--url", &url]);
    assert!(said.contains("4 entries"), "{said}");
    let (_, said) = run(other, &["import", &file]);
    assert!(said.contains("4 entries took effect"), "{said}");
    let back = home.join("back.jsonl").display().to_string();
    run(other, &["export", &back]);
    run(home, &["import", &back, "--url", &url]);
    let (said, _) = run(home, &["status", "--url", &url]);
    assert!(said.contains("synced"), "{said}");
    let stranger = crate::support::http::send(
        service.address,
        "POST",
        "/v1/sync/exchange",
        &[("authorization", "Bearer nobody")],
        "{}",
    );
    assert_eq!((stranger.status, stranger.error_type().as_str()), (401, "authentication_error"));
}

#[test]
fn what_an_appliance_has_and_measures_is_seen_at_the_hub_until_they_part() {
    let homes = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let [hub_home, home] = homes.each_ref().map(|home| home.path());
    let proxy = Proxy::start(1);
    proxy.is_calm.store(true, Ordering::Relaxed);
    pair(hub_home, home, proxy.address);
    let [hub, service] = [hub_home, home].map(serve);
    *proxy.target.lock().unwrap() = Some(service.address);
    let run = |home: &Path, args: &[&str]| {
        let output = jetforge(home).arg("sync").args(args).output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (output.status.code(), text(output.stdout), text(output.stderr))
    };
    // The appliance sends a file and has measured something, while its service runs.
    let bytes: Vec<u8> =
        (0..5u64 << 19).map(|i| (i.wrapping_mul(0x9e37_79b9) >> 13) as u8).collect();
    let (file, copy) = (home.join("repo.bundle"), hub_home.join("copy.bundle"));
    std::fs::write(&file, &bytes).unwrap();
    let url = service.address.to_string();
    let (file, copy) = (file.display().to_string(), copy.display().to_string());
    let sent = run(home, &["send", &file, "--as", "bundle"]);
    assert_eq!(sent.0, Some(0), "{}", sent.2);
    let body = json!({"what": "bench", "model": {"name": "small"}, "figures": [
        {"test": "tg64", "unit": "tok/s", "median": 12.5}]});
    let told = Told { kind: "report".into(), name: "bench-1".into(), body };
    Spool::new(&state_of(home)).put(&told).unwrap();
    post(service.address, "/feedback", &json!({"request_id": "f1"}));
    let node = get(service.address, "/v1/sync").json()["node"].as_str().unwrap().to_owned();
    let known = || get(hub.address, "/v1/sync/appliances").json()["appliances"][0].clone();
    until("the hub knows it all", || {
        post(hub.address, "/v1/sync/now", &json!({}));
        let known = known();
        let is_counted = known["n_feedback"] == 1 && known["n_file"] == 1;
        is_counted && known["bench"][0]["model"]["name"] == "small"
    });
    assert!(!known()["inventory"]["models"].as_array().unwrap().is_empty());
    let hub_url = hub.address.to_string();
    until("the file is there", || {
        post(hub.address, "/v1/sync/now", &json!({}));
        let shown = run(hub_home, &["files", "--url", &hub_url]).1;
        shown.contains(" here ") && !shown.contains("not here")
    });
    let fetched = run(hub_home, &["fetch", "repo.bundle", &copy, "--url", &hub_url]);
    assert_eq!(fetched.0, Some(0), "{}", fetched.2);
    assert!(std::fs::read(&copy).unwrap() == bytes);
    // A setting of the hub reaches the appliance.
    let key = format!("{node}/temperature");
    let set = json!({"kind": "setting", "key": key, "body": {"value": 0.2}});
    assert_eq!(post(hub.address, "/v1/sync/records", &set).json()["counts"], true);
    until("the setting is there", || {
        records(&service, "setting").iter().any(|record| record["key"] == *key)
    });
    // They part: the other side is told what to do.
    let forgotten = run(home, &["forget", "a", "--url", &url]);
    assert_eq!(forgotten.0, Some(0), "{}", forgotten.2);
    until("the hub hears that it is a stranger", || {
        post(hub.address, "/v1/sync/now", &json!({}));
        let trouble = status(&hub)["trouble"].clone();
        trouble.as_str().is_some_and(|why| why.contains("no peer's"))
    });
    assert_eq!(get(service.address, "/v1/sync").json()["peers"], json!([]));
    assert_eq!(run(home, &["adopt", "--url", &url]).0, Some(2), "not while the service has it");
}
