//! Two services that are paired: what is told while one is away, by a file and by a stick, and what
//! each knows of the other. `sync_kills` has what they go through.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

use jetforge::base::dirs::{Dirs, Role};
use jetforge::store::{Peer, Store};
use jetforge::sync::{Spool, Told};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::cli::jetforge;
use crate::serve::Process;
use crate::support::http::{get, post, until};
pub use crate::sync_proxy::Proxy;

/// The state directory of a service whose home this is.
pub fn state_of(home: &Path) -> PathBuf {
    let env = [("HOME", home.to_str().unwrap())].into_iter().collect();
    Dirs::new(Role::from_env(&env).unwrap(), &env).unwrap().state
}

fn open(home: &Path) -> Store {
    Store::open(&state_of(home)).unwrap().store
}

/// Pairs two stores that no service has; `a` calls `b` at `address`.
pub fn pair(a: &Path, b: &Path, address: SocketAddr) {
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
        paired_here: true,
        key: key_of_b.into(),
        key_digest: digest(key_of_a),
        ..Peer::default()
    })
    .unwrap();
}

fn serve(home: &Path) -> Process {
    Process::start(home, &["-c", "256", "-np", "1", "--metrics"])
}

pub fn status(side: SocketAddr) -> Value {
    get(side, "/v1/sync").json()["peers"][0].clone()
}

pub fn records(side: SocketAddr, kind: &str) -> Vec<Value> {
    let path = format!("/v1/sync/records?kind={kind}&limit=1000");
    get(side, &path).json()["records"].as_array().unwrap().clone()
}

/// The value of a gauge about a peer.
pub fn sync_gauge(page: &str, name: &str, peer: &str) -> Option<f64> {
    let start = format!("jetforge_sync_{name}{{peer=\"{peer}\"}} ");
    page.lines().find_map(|line| line.strip_prefix(&start)?.parse().ok())
}

#[test]
fn what_was_told_while_a_peer_was_away_goes_when_it_is_back_and_nobody_asks() {
    let homes = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let proxy = Proxy::start(1);
    proxy.is_calm.store(true, Ordering::Relaxed);
    pair(homes[0].path(), homes[1].path(), proxy.address);
    let here = serve(homes[0].path());
    for n in 0..3 {
        post(here.address, "/feedback", &json!({"request_id": format!("f{n}")}));
    }
    until("its models are told", || !records(here.address, "inventory").is_empty());
    until("calls fail", || status(here.address)["n_failed"].as_u64().unwrap() >= 2);
    let page = get(here.address, "/metrics").text();
    assert_eq!(sync_gauge(&page, "waiting", "b"), Some(4.0), "three and the models: {page}");
    assert_eq!(sync_gauge(&page, "needs_you", "b"), Some(0.0));
    assert!(sync_gauge(&page, "failed_calls", "b").unwrap() >= 2.0, "{page}");
    let there = serve(homes[1].path());
    until("the other's models are told", || !records(there.address, "inventory").is_empty());
    assert_eq!(records(there.address, "feedback").len(), 0, "nobody reached it");
    // From here on the two are only looked at: no call is asked for, and nothing is written.
    *proxy.target.lock().unwrap() = Some(there.address);
    until("what waited has come", || {
        let [a, b] = [status(here.address), status(there.address)];
        let is_even = a["n_to_come"] == 0 && b["n_to_come"] == 0;
        is_even && a["state"] == "synced" && b["state"] == "synced"
    });
    assert_eq!(records(there.address, "feedback").len(), 3);
    let [a, b] = [(&here, "b"), (&there, "a")].map(|(side, peer)| {
        let page = get(side.address, "/metrics").text();
        ["waiting", "needs_you", "failed_calls"].map(|name| sync_gauge(&page, name, peer))
    });
    assert_eq!((a, b), ([Some(0.0); 3], [Some(0.0); 3]));
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
    until("its models are told", || !records(service.address, "inventory").is_empty());
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
        records(service.address, "setting").iter().any(|record| record["key"] == *key)
    });
    // They part: the other side is told what to do.
    let forgotten = run(home, &["forget", "a", "--url", &url]);
    assert_eq!(forgotten.0, Some(0), "{}", forgotten.2);
    until("the hub hears that it is a stranger", || {
        post(hub.address, "/v1/sync/now", &json!({}));
        let trouble = status(hub.address)["trouble"].clone();
        trouble.as_str().is_some_and(|why| why.contains("no peer's"))
    });
    assert_eq!(get(service.address, "/v1/sync").json()["peers"], json!([]));
    assert_eq!(run(home, &["adopt", "--url", &url]).0, Some(2), "not while the service has it");
}
