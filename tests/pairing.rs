//! Pairing: two real processes, a code, and everybody who does not have it.

use std::path::Path;

use jetforge::server::Client;
use jetforge::tls::Trust;
use serde_json::{Value, json};

use crate::cli::jetforge;
use crate::serve::Process;
use crate::support::http::{get, post, send, until};
use crate::support::postgres::Postgres;
use crate::sync::state_of;

fn run(home: &Path, args: &[&str]) -> (i32, String, String) {
    let output = jetforge(home).args(args).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap_or(-1), text(output.stdout), text(output.stderr))
}

fn setup(home: &Path, service: &Process, code: &str) -> (i32, String, String) {
    setup_as(home, service, code, &[])
}

fn setup_as(home: &Path, service: &Process, code: &str, who: &[&str]) -> (i32, String, String) {
    let (ip, port) = (service.address.ip().to_string(), service.address.port().to_string());
    let args = ["setup", "--nano-ip", &ip, "--nano-port", &port, "--code", code.trim()];
    run(home, &[&args[..], who].concat())
}

#[test]
fn a_code_pairs_one_machine_whose_hub_then_has_a_key() {
    let homes = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let nano = Process::start(homes[0].path(), &["--alias", "coder"]);
    let body = json!({"model": "coder", "prompt": "def add(a, b):", "max_tokens": 4});
    // Without a code nothing is open.
    let (code, _, said) = setup(homes[1].path(), &nano, "00000000");
    assert_eq!(code, 5, "{said}");
    assert!(said.contains("no code is open"), "{said}");
    let (code, shown, _) = run(homes[0].path(), &["pair"]);
    assert_eq!((code, shown.trim().len()), (0, 9), "{shown}");
    let (code, _, said) = setup(homes[1].path(), &nano, "not-a-code!");
    assert_eq!(code, 2, "{said}");
    // Another code is refused by the appliance, which closes the right one with it.
    let wrong = if shown.starts_with("0000") { "1111-1111" } else { "0000-0000" };
    let (code, _, said) = setup(homes[1].path(), &nano, wrong);
    assert_eq!(code, 5, "{said}");
    assert!(said.contains("not the one"), "{said}");
    let (code, _, said) = setup(homes[1].path(), &nano, &shown);
    assert_eq!(code, 5, "{said}");
    // What was typed once is not typed again, whatever became of it.
    let (_, shown, _) = run(homes[0].path(), &["pair"]);
    let (code, _, said) = setup(homes[1].path(), &nano, wrong);
    assert!(code == 6 && said.contains("show a new one"), "{said}");
    let (code, said, note) = setup(homes[1].path(), &nano, &shown.to_lowercase());
    assert_eq!(code, 0, "{note}");
    assert!(said.contains(&nano.address.to_string()), "{said}");
    // From now on a key is needed, the hub has one, and the code is spent.
    assert_eq!(post(nano.address, "/v1/completions", &body).status, 401);
    let (code, _, said) = setup(homes[1].path(), &nano, &shown);
    assert_eq!(code, 5, "{said}");
    assert!(said.contains("no code is open"), "{said}");
    // Whoever says to be a machine that is known, by another name, gets nothing of what it has.
    let (_, shown, _) = run(homes[0].path(), &["pair"]);
    let (code, _, said) = setup_as(homes[1].path(), &nano, &shown, &["--name", "another"]);
    assert!(code != 0 && said.contains("jetforge sync forget"), "{said}");
    let hub = Process::start_verb(homes[1].path(), "hub", &["--port", "0", "--no-local"]);
    until("the appliance is well", || {
        let status = send(hub.address, "GET", "/v1/status", &[], "").json();
        status["upstream"]["backends"][0]["standing"] == "well"
    });
    let answer = post(hub.address, "/v1/completions", &body);
    assert_eq!(answer.status, 200, "{}", answer.text());
    // Nothing secret lies about: the key is sealed, and the code's file is gone.
    let state = homes[0].path().join(".local/state/jetforge");
    assert!(state.is_dir() && !state.join("pair.json").exists());
    let (_, keys, _) = run(homes[0].path(), &["key", "list", "--json"]);
    let keys: Value = serde_json::from_str(&keys).unwrap();
    let name = keys["keys"][0]["name"].as_str().unwrap().to_owned();
    assert!(name.starts_with("peer-"), "{name}");
    // What is revoked there is refused, and the hub says why.
    assert_eq!(run(homes[0].path(), &["key", "revoke", &name]).0, 0);
    let answer = post(hub.address, "/v1/completions", &body);
    assert_eq!(answer.status, 502, "{}", answer.text());
}

#[test]
fn an_appliance_that_announces_itself_is_found() {
    let home = tempfile::tempdir().unwrap();
    // A port of this test's own, on the loopback.
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let group = format!("hub.discovery={}", socket.local_addr().unwrap());
    drop(socket);
    let nano = Process::start(home.path(), &["--announce", "--set", &group]);
    let args = ["hub", "discover", "--wait", "1000", "--json", "--set", &group];
    let (code, found, said) = run(home.path(), &args);
    assert_eq!(code, 0, "{said}");
    let found: Value = serde_json::from_str(&found).unwrap();
    assert_eq!(found["found"][0]["address"], nano.address.to_string(), "{found}");
    assert_eq!(found["found"][0]["node"].as_str().unwrap().len(), 16);
    let other = tempfile::tempdir().unwrap();
    let (_, shown, _) = run(home.path(), &["pair"]);
    // A hub that runs has the store, pairs, and asks the appliance from then on.
    let hub = Process::start_verb(other.path(), "hub", &["--port", "0", "--no-local"]);
    let address = hub.address.to_string();
    let args = ["setup", "--code", shown.trim(), "--hub", &address, "--set", &group];
    let (code, _, said) = run(other.path(), &args);
    assert_eq!(code, 0, "{said}");
    until("the appliance is well", || {
        let status = send(hub.address, "GET", "/v1/status", &[], "").json();
        status["upstream"]["backends"][0]["standing"] == "well"
    });
    let answer = post(hub.address, "/completion", &json!({"prompt": "x", "n_predict": 2}));
    assert_eq!(answer.status, 200, "{}", answer.text());
    // What is forgotten is asked no more, from that moment on.
    let peers = send(hub.address, "GET", "/v1/sync", &[], "").json();
    let node = peers["peers"][0]["node"].as_str().unwrap().to_owned();
    let path = format!("/v1/sync/forget?peer={node}");
    assert_eq!(post(hub.address, &path, &json!({})).status, 200);
    let status = send(hub.address, "GET", "/v1/status", &[], "").json();
    assert_eq!(status["upstream"]["backends"], json!([]), "{status}");
}

#[test]
fn tries_are_counted_whoever_makes_them_and_however_far_they_go() {
    let home = tempfile::tempdir().unwrap();
    let nano = Process::start(home.path(), &["--pair"]);
    assert_eq!(post(nano.address, "/completion", &json!({"prompt": "x"})).status, 401);
    let zeros = "0".repeat(64);
    let public = format!("09{}", "0".repeat(62));
    let hello = json!({"step": "hello", "version": 1, "public": public});
    let pair = |body: &Value| post(nano.address, "/v1/pair", body);
    let old = json!({"step": "hello", "version": 0, "public": public});
    assert_eq!(pair(&old).status, 400, "another version spends no try");
    for n in 0..5 {
        let answer = pair(&hello);
        assert_eq!(answer.status, 200, "{}", answer.text());
        let session = answer.json()["session"].clone();
        let step = |step: &str| json!({"step": step, "session": session, "part": zeros});
        if n % 2 == 0 {
            assert_eq!(pair(&step("commit")).status, 200);
            assert_eq!(pair(&step("commit")).status, 409, "out of turn");
        } else {
            assert_eq!(pair(&step("reveal")).status, 409, "out of turn");
        }
        assert_eq!(pair(&step("commit")).status, 404, "one wrong word ends it");
    }
    let answer = pair(&hello);
    assert_eq!((answer.status, answer.error_type().as_str()), (404, "not_found_error"));
    // A wrong letter closes a code at once.
    assert_eq!(run(home.path(), &["pair"]).0, 0);
    let session = pair(&hello).json()["session"].clone();
    let step = |step: &str| json!({"step": step, "session": session, "part": zeros});
    assert_eq!(pair(&step("commit")).status, 200);
    assert_eq!(pair(&step("reveal")).status, 403, "that opens nothing");
    assert_eq!(pair(&hello).status, 404);
    for wrong in [json!({}), json!({"step": 1}), json!({"step": "hello"}), json!([])] {
        assert!(matches!(pair(&wrong).status, 400 | 404), "{wrong}");
    }
}

const OWNER: [&str; 2] = ["--api-key", "jf-owner"];

/// A service, as its owner speaks with it.
fn owner(service: &Process) -> Client {
    let trust = service.certificate.map(Trust::pinned);
    Client::new(&service.address.to_string(), Some("jf-owner".into()), trust).unwrap()
}

fn note(service: &Client, name: &str) {
    let body = json!({ "request_id": name }).to_string();
    service.post("POST", "/feedback", body.as_bytes()).unwrap();
}

/// Waits until what was noted on either side is known on both.
fn until_both_know(sides: [&Client; 2], names: &[&str]) {
    let known = |side: &Client| {
        let told = side.json("GET", "/v1/sync/records?kind=feedback").unwrap();
        let told = told["records"].as_array().unwrap().iter();
        let mut known: Vec<String> =
            told.map(|record| record["body"]["request_id"].as_str().unwrap().into()).collect();
        known.sort();
        known
    };
    until("both know", || sides.iter().all(|side| known(side) == names));
}

#[test]
fn an_appliance_calls_a_hub_that_cannot_call_it() {
    for tls in [&[][..], &["--tls"]] {
        let homes = [(); 2].map(|()| tempfile::tempdir().unwrap());
        let [home, pc] = homes.each_ref().map(|home| home.path());
        let nano = Process::start(home, &OWNER);
        let of_hub = [&["--port", "0", "--no-local"][..], &OWNER, tls].concat();
        let hub = Process::start_verb(pc, "hub", &of_hub);
        let scheme = if tls.is_empty() { "http" } else { "https" };
        let url = format!("{scheme}://{}", hub.address);
        let (ip, port) = (nano.address.ip().to_string(), nano.address.port().to_string());
        let (_, code, _) = run(home, &["pair"]);
        let at = ["setup", "--nano-ip", &ip, "--nano-port", &port, "--code", code.trim()];
        let through = ["--hub", &url, "--key", "jf-owner", "--name", "pc"];
        let (code, _, said) = run(pc, &[&at[..], &through].concat());
        assert_eq!(code, 0, "{said}");
        // Where the hub calls, nobody is from now on.
        nano.kill();
        let nano = Process::start(home, &OWNER);
        let [nano, hub] = [&nano, &hub].map(owner);
        let peer = |side: &Client| side.json("GET", "/v1/sync").unwrap()["peers"][0].clone();
        assert_eq!(peer(&nano)["address"], url);
        assert_eq!(peer(&hub)["address"], format!("http://{ip}:{port}"));
        note(&nano, "of the appliance");
        note(&hub, "of the hub");
        until_both_know([&nano, &hub], &["of the appliance", "of the hub"]);
    }
}

#[test]
fn an_owner_says_where_a_hub_is_called() {
    let homes = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let [home, pc] = homes.each_ref().map(|home| home.path());
    let nano = Process::start(home, &OWNER);
    let (ip, port) = (nano.address.ip().to_string(), nano.address.port().to_string());
    let (_, code, _) = run(home, &["pair"]);
    let at = ["setup", "--nano-ip", &ip, "--nano-port", &port, "--code", code.trim()];
    // Where a hub of that configuration would be, none is.
    let elsewhere = ["--name", "pc", "--set", "hub.address=http://127.0.0.1:9"];
    let (code, _, said) = run(pc, &[&at[..], &elsewhere].concat());
    assert_eq!(code, 0, "{said}");
    nano.kill();
    let hub =
        Process::start_verb(pc, "hub", &[&["--port", "0", "--no-local"][..], &OWNER].concat());
    let nano = Process::start(home, &OWNER);
    let url = nano.address.to_string();
    let call = |peer: &str, address: &str| {
        let own = ["--url", &url, "--key", "jf-owner"];
        run(home, &[&["sync", "peer", peer, "--address", address][..], &own].concat())
    };
    let peer = || owner(&nano).json("GET", "/v1/sync").unwrap()["peers"][0].clone();
    assert_eq!(peer()["address"], "http://127.0.0.1:9");
    for (name, address, why) in [
        ("pc", "pc.lan:9999", "use http://"),
        ("pc", "https://127.0.0.1:9", "certificate"),
        ("nobody", "http://127.0.0.1:9", "no one peer"),
    ] {
        let (code, _, said) = call(name, address);
        assert!(code != 0 && said.contains(why), "{address}: {said}");
    }
    assert_eq!(peer()["address"], "http://127.0.0.1:9", "what is wrong changes nothing");
    note(&owner(&nano), "of the appliance");
    note(&owner(&hub), "of the hub");
    let (code, _, said) = call("pc", &format!("http://{}", hub.address));
    assert_eq!(code, 0, "{said}");
    until_both_know([&owner(&nano), &owner(&hub)], &["of the appliance", "of the hub"]);
    // While no service has the store, the store is told.
    drop(nano);
    let (code, _, said) = run(home, &["sync", "peer", "pc", "--address", ""]);
    assert_eq!(code, 0, "{said}");
    assert!(said.contains("is not called"), "{said}");
}

#[test]
fn a_code_is_not_spent_while_the_shared_store_is_away() {
    let Some(mut server) = Postgres::start() else { return };
    let url = server.database("hub");
    let homes = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let [home, pc] = homes.each_ref().map(|home| home.path());
    let mut command = jetforge(pc);
    command.args(["hub", "--port", "0", "--threads", "1", "--no-local"]);
    command.env("JETFORGE_HUB_STORE", url);
    let hub = Process::spawn(command);
    let nano = Process::start(home, &[]);
    let (_, code, _) = run(home, &["pair"]);
    let body = json!({"address": nano.address.to_string(), "code": code.trim(), "name": "pc"});
    server.kill();
    let answer = post(hub.address, "/v1/pair/ask", &body);
    assert_eq!((answer.status, answer.error_type().as_str()), (503, "unavailable_error"));
    assert!(answer.header("retry-after").is_some(), "{}", answer.text());
    assert!(!state_of(pc).join("pair.spent").exists(), "the code was told to nobody");
    server.revive();
    until("the same code pairs", || post(hub.address, "/v1/pair/ask", &body).status == 200);
    assert_eq!(get(hub.address, "/v1/sync").json()["peers"].as_array().unwrap().len(), 1);
}
