//! Tables of sync on a PostgreSQL server, shared: two processes are one to others, each entry
//! counts once, and a server that dies at any moment takes nothing that was acknowledged.
//!
//! On a real server, where Debian's package is installed.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::sync_channel;
use std::time::Duration;

use jetforge::store::{
    Insert, LedgerRow, NewJobRow, Peer, QueueLimits, RecordRow, SharedOptions, Store, StoreError,
    SyncTx, now_ms, pinned,
};
use jetforge::sync::Node;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::cli::jetforge;
use crate::serve::Process;
use crate::support::http::{get, post, send, until};
use crate::support::postgres::Postgres;
use crate::sync::{Proxy, state_of};

/// A process that shares the tables of `url`, whose key is in `key_dir`.
fn open(dir: &Path, url: &str, key_dir: &Path) -> Store {
    let options = SharedOptions::new(url, false).unwrap();
    let key_file = Some(key_dir.join("device.key"));
    let options = SharedOptions { key_file: key_file.filter(|path| path.exists()), ..options };
    Store::open_shared(dir, &options).unwrap().store
}

fn introduce(store: &Store, other: &Store, address: &str, sends: &str, hears: &str) {
    let peer = Peer {
        node: other.node().unwrap(),
        name: "other".into(),
        address: address.to_owned(),
        paired_here: address.is_empty(),
        key: sends.to_owned(),
        key_digest: Sha256::digest(hears).into(),
        ..Peer::default()
    };
    store.insert_peer(peer).unwrap();
}

const KEY_OF_HUB: &str = "key-that-the-hub-sends";
const KEY_OF_NANO: &str = "key-that-the-nano-sends";

/// Pairs a hub with an appliance that it calls.
fn pair(hub: &Store, nano: &Store, address: &str) {
    introduce(hub, nano, address, KEY_OF_HUB, KEY_OF_NANO);
    introduce(nano, hub, "", KEY_OF_NANO, KEY_OF_HUB);
}

/// One exchange, called by `a`; whether there is more.
fn exchange(a: &Node, b: &Node) -> bool {
    let asked = a.ask(b.node()).unwrap();
    let (answer, _) = b.answer(a.node(), &asked).unwrap();
    a.hear(b.node(), &answer).unwrap().has_more
}

fn numbers(node: &Node) -> Vec<u64> {
    let found = node.records("feedback", 1000).unwrap();
    let mut numbers: Vec<u64> =
        found.iter().map(|record| record.entry.body["n"].as_u64().unwrap()).collect();
    numbers.sort_unstable();
    numbers
}

#[test]
fn two_processes_are_one_to_an_appliance_that_both_call_at_once() {
    let Some(server) = Postgres::start() else { return };
    let url = server.database("hub");
    let homes = [0, 1, 2].map(|_| tempfile::tempdir().unwrap());
    let [nano_home, home, other_home] = homes.each_ref().map(|home| home.path());
    let nano = Store::open(nano_home).unwrap().store;
    let hubs = [open(home, &url, home), open(other_home, &url, home)];
    assert_eq!(hubs[0].node().unwrap(), hubs[1].node().unwrap());
    pair(&hubs[0], &nano, "http://127.0.0.1:9");
    let nano = Node::open(nano).unwrap();
    let hubs = hubs.map(|store| Node::open(store).unwrap());
    assert!(hubs.iter().all(|hub| hub.moved().is_none()));
    let n = AtomicU64::new(0);
    std::thread::scope(|scope| {
        // Each of the three writes while two call: entries meet cursors that others have moved.
        for hub in &hubs {
            let (nano, n) = (&nano, &n);
            scope.spawn(move || {
                for _ in 0..40 {
                    let number = n.fetch_add(1, Ordering::Relaxed);
                    hub.tell_own("feedback", &number.to_string(), json!({ "n": number })).unwrap();
                    exchange(hub, nano);
                }
            });
        }
        for _ in 0..40 {
            let number = n.fetch_add(1, Ordering::Relaxed);
            nano.tell_own("feedback", &number.to_string(), json!({ "n": number })).unwrap();
        }
    });
    let state = |node: &Node| node.standing().unwrap()[0].standing.to_string();
    until("all of it is said", || {
        for hub in &hubs {
            exchange(hub, &nano);
        }
        [&nano, &hubs[0], &hubs[1]].iter().all(|node| state(node) == "synced")
    });
    let all: Vec<u64> = (0..120).collect();
    for node in [&nano, &hubs[0], &hubs[1]] {
        assert_eq!(numbers(node), all, "each once");
        assert!(node.held().unwrap().is_empty());
    }
    // Words of one process are answered to the other one, in turn: an appliance that went back in
    // time is believed all the same.
    let copy = tempfile::tempdir().unwrap();
    drop(nano);
    for file in std::fs::read_dir(nano_home).unwrap().flatten() {
        std::fs::copy(file.path(), copy.path().join(file.file_name())).unwrap();
    }
    let nano = Node::open(Store::open(nano_home).unwrap().store).unwrap();
    for n in 200..210 {
        hubs[0].tell_own("feedback", &n.to_string(), json!({ "n": n })).unwrap();
    }
    until("it knows them", || !exchange(&hubs[0], &nano) && numbers(&nano).len() == 130);
    drop(nano);
    let nano = Node::open(Store::open(copy.path()).unwrap().store).unwrap();
    assert_eq!(numbers(&nano).len(), 120);
    let mut turn = 0;
    until("what was lost comes again", || {
        turn += 1;
        // The appliance calls whichever of the two.
        exchange(&nano, &hubs[turn % 2]);
        numbers(&nano).len() == 130
    });
}

#[test]
fn another_key_another_hub_and_a_newer_program_are_refused() {
    let Some(mut server) = Postgres::start() else { return };
    let url = server.database("hub");
    let homes = [0, 1].map(|_| tempfile::tempdir().unwrap());
    let [home, other_home] = homes.each_ref().map(|home| home.path());
    let options = SharedOptions::new(&url, false).unwrap();
    let refused = |dir: &Path, options: &SharedOptions| {
        Store::open_shared(dir, options).err().expect("it is refused").to_string()
    };
    let node = open(home, &url, home).node().unwrap();
    let why = refused(other_home, &options);
    assert!(why.contains("another device key") && why.contains("store_key_file"), "{why}");
    let key_file = Some(home.join("no.key"));
    let why = refused(other_home, &SharedOptions { key_file, ..options.clone() });
    assert!(why.contains("no.key"), "a key that is named is not made: {why}");
    assert!(!home.join("no.key").exists());
    let store = open(other_home, &url, home);
    assert_eq!(store.node().unwrap(), node);
    let why = store.renew_node().unwrap_err().to_string();
    assert!(why.contains("forget the peers"), "{why}");
    // A newer program took the tables over: whoever has them open writes nothing more.
    let version = server.sql("hub", "SELECT value FROM jetforge.meta WHERE key = 'version'");
    server.sql("hub", "UPDATE jetforge.meta SET value = 99 WHERE key = 'version'");
    let why = store.sync(|tx| tx.set_clock(1)).unwrap_err();
    assert!(matches!(why, StoreError::TooNew { found: 99, .. }), "{why}");
    drop(store);
    assert!(refused(other_home, &options).contains("newer program"));
    let known = format!("UPDATE jetforge.meta SET value = {version} WHERE key = 'version'");
    server.sql("hub", &known);
    let nowhere = SharedOptions::new(&url.replace("/hub?", "/nowhere?"), false).unwrap();
    assert!(refused(other_home, &nowhere).contains("does not exist"));
    // Who has used it before starts without it; who has not, does not.
    server.kill();
    let opened = Store::open_shared(home, &options).unwrap();
    assert!(opened.notes[0].contains("away"), "{:?}", opened.notes);
    assert_eq!(opened.store.node().unwrap(), node);
    assert!(matches!(opened.store.peers(), Err(StoreError::Away { .. })));
    let fresh = tempfile::tempdir().unwrap();
    let key_file = Some(home.join("device.key"));
    let why = refused(fresh.path(), &SharedOptions { key_file, ..options });
    assert!(why.contains("away"), "{why}");
    server.revive();
    until("it is there again", || opened.store.peers().is_ok());
}

#[test]
fn a_server_that_is_killed_again_and_again_loses_nothing_that_was_acknowledged() {
    let Some(mut server) = Postgres::start() else { return };
    let url = server.database("hub");
    let homes = [0, 1].map(|_| tempfile::tempdir().unwrap());
    let stores = [0, 1].map(|i: usize| open(homes[i].path(), &url, homes[0].path()));
    let (is_over, kept) = (AtomicBool::new(false), Mutex::new(Vec::new()));
    let n_kept = || kept.lock().unwrap().len();
    std::thread::scope(|scope| {
        for (i, store) in stores.iter().enumerate() {
            let (is_over, kept) = (&is_over, &kept);
            scope.spawn(move || {
                for n in 0.. {
                    if is_over.load(Ordering::Relaxed) {
                        return;
                    }
                    let key = format!("{i}-{n}");
                    let text = key.clone().into_bytes();
                    let row = RecordRow { kind: "snippet".into(), key, origin: "x".into(), text };
                    let put = row.clone();
                    // Two things of a transaction: both come to be, or none.
                    let done = store.sync(move |tx| {
                        let clock = tx.clock()?;
                        tx.set_clock(clock + 1)?;
                        tx.put_record(&put)
                    });
                    match done {
                        Ok(()) => kept.lock().unwrap().push(row.key),
                        Err(StoreError::Away { .. }) => std::thread::yield_now(),
                        Err(error) => panic!("{error}"),
                    }
                }
            });
        }
        for round in 1..=3 {
            // Both are in the middle of their transactions.
            until("both write", || n_kept() > 60 * round);
            server.kill();
            server.revive();
        }
        until("both write again", || n_kept() > 240);
        is_over.store(true, Ordering::Relaxed);
    });
    let kept = kept.into_inner().unwrap();
    let (clock, found) =
        stores[0].sync_look(|tx| Ok((tx.clock()?, tx.records("snippet", 100_000)?))).unwrap();
    let found: BTreeSet<String> = found.into_iter().map(|row| row.key).collect();
    assert_eq!(clock as usize, found.len(), "whole transactions alone");
    assert!(kept.iter().all(|key| found.contains(key)), "what was acknowledged is there");
    assert!(found.len() - kept.len() <= 2 * 3, "of each kill, one a process may be there unheard");
}

fn submit(store: &Store, id: &str) {
    let (state, way) = ("queued".to_owned(), "fresh".to_owned());
    let ledger = LedgerRow { state, way, epoch: 1, ..LedgerRow::default() };
    let body = br#"{"prompt": "secret"}"#.to_vec();
    let new = NewJobRow { id: id.to_owned(), body, ledger, ..NewJobRow::default() };
    let inserted = store.insert_job(new, QueueLimits { n_max: 99, bytes_max: 1 << 30 }).unwrap();
    assert!(matches!(inserted, Insert::New(_)), "{inserted:?}");
}

#[test]
fn what_jobs_tell_while_the_server_is_away_is_told_once_when_it_is_back() {
    let Some(mut server) = Postgres::start() else { return };
    let url = server.database("hub");
    let homes = [0, 1].map(|_| tempfile::tempdir().unwrap());
    let [nano_home, home] = homes.each_ref().map(|home| home.path());
    let nano = Store::open(nano_home).unwrap().store;
    let store = open(home, &url, home);
    let hub = Node::open(store.clone()).unwrap();
    submit(&store, "job-before");
    assert_eq!(hub.hand_on().unwrap(), 1);
    pair(&store, &nano, "http://127.0.0.1:9");
    let nano = Node::open(nano).unwrap();
    server.kill();
    submit(&store, "job-1");
    submit(&store, "job-2");
    assert!(hub.hand_on().is_err() && hub.ask(nano.node()).is_err());
    drop((hub, store));
    // The process dies as well, and starts while the server is away.
    let options = SharedOptions::new(&url, false).unwrap();
    let store = Store::open_shared(home, &options).unwrap().store;
    let hub = Node::open(store.clone()).unwrap();
    let told = store.told().unwrap();
    assert_eq!(told.len(), 2);
    submit(&store, "job-3");
    server.revive();
    until("it is handed on", || hub.hand_on().is_ok());
    assert!(store.told().unwrap().is_empty());
    // Who dies before it forgets hands it on again, and it is known.
    let (source, id) = (store.own_node().unwrap(), told[0].id);
    assert!(!store.sync(move |tx| tx.is_new_told(&source, id)).unwrap());
    until("all is said", || !exchange(&hub, &nano));
    let jobs = nano.records("job", 9).unwrap();
    let keys: BTreeSet<&str> = jobs.iter().map(|record| record.entry.key.as_str()).collect();
    assert_eq!(
        keys,
        BTreeSet::from(["job-1", "job-2", "job-3"]),
        "not what was before the pairing"
    );
    assert!(jobs.iter().all(|job| job.entry.body["request"]["prompt"] == "secret"));
    assert_eq!(hub.records("job", 9).unwrap().len(), 3);
    // Nothing that was told stands open on the server.
    let dump = server.sql("hub", "SELECT string_agg(sealed_entry::text, '') FROM jetforge.records");
    assert!(!dump.is_empty() && !dump.contains("736563726574"), "the word secret");
}

#[test]
fn a_server_that_takes_connections_and_says_nothing_is_away() {
    let Some(server) = Postgres::start() else { return };
    let url = server.database("hub");
    let home = tempfile::tempdir().unwrap();
    let store = open(home.path(), &url, home.path());
    store.sync(|tx| tx.set_clock(1)).unwrap();
    server.stop(true);
    let (tell, told) = sync_channel(3);
    let (own, dir) = (store.clone(), home.path().to_owned());
    std::thread::spawn(move || {
        // By a connection that was there, by a new one, and at a start.
        tell.send(own.sync(|tx| tx.set_clock(2))).unwrap();
        tell.send(own.peers().map(drop)).unwrap();
        drop(own);
        let options = SharedOptions::new(&url, false).unwrap();
        tell.send(pinned(&dir, Some(&options)).map(drop)).unwrap();
    });
    for _ in 0..3 {
        let done = told.recv_timeout(Duration::from_secs(60)).expect("nobody waits for ever");
        assert!(matches!(done, Err(StoreError::Away { .. })), "{done:?}");
    }
    server.stop(false);
    until("it is there again", || store.sync(|tx| tx.set_clock(3)).is_ok());
    assert_eq!(store.sync_look(|tx| tx.clock()).unwrap(), 3);
}

#[test]
fn processes_of_one_hub_leave_things_to_each_other_and_none_for_ever() {
    let Some(server) = Postgres::start() else { return };
    let url = server.database("hub");
    let homes = [0, 1, 2].map(|_| tempfile::tempdir().unwrap());
    let [nano_home, home, other_home] = homes.each_ref().map(|home| home.path());
    let nano = Store::open(nano_home).unwrap().store;
    let stores = [open(home, &url, home), open(other_home, &url, home)];
    pair(&stores[0], &nano, "http://127.0.0.1:9");
    let hubs = stores.each_ref().map(|store| Node::open(store.clone()).unwrap());
    // Jobs that a peer took back, of a process that is not there: one of these may still come.
    let take_back = |key: &str, days: i64| {
        let at = (now_ms() - days * 24 * 3600 * 1000) << 16;
        let entry = json!({"seq": 1, "id": 7, "at": at, "kind": "job", "key": key, "rank": 1,
            "body": {"state": "cancelled"}});
        let (kind, key, origin) = ("job".to_owned(), key.to_owned(), nano.node().unwrap());
        let row = RecordRow { kind, key, origin, text: entry.to_string().into_bytes() };
        let put = move |tx: &mut SyncTx<'_>| {
            tx.put_record(&row)?;
            tx.put_act(&row.origin, &row.kind, &row.key)
        };
        stores[0].sync(put).unwrap();
    };
    take_back("job-old", 15);
    take_back("job-new", 13);
    for hub in &hubs {
        for act in hub.note_wants().unwrap() {
            hub.pass_on(act).unwrap();
        }
        let left = stores[1].sync_look(|tx| tx.acts(0, 9)).unwrap();
        let left: Vec<&str> = left.iter().map(|act| act.key.as_str()).collect();
        assert_eq!(left, ["job-new"]);
    }
    // Their models differ: each tells of its own once, and not against the other.
    let models = ["a", "b"].map(|name| json!({"models": [{"name": name}]}));
    let tell = |i: usize| hubs[i].tell_inventory(models[i].clone()).unwrap();
    assert_eq!([0, 1, 0, 1, 0, 1].map(tell), [true, true, false, false, false, false]);
    assert!(hubs[0].tell_inventory(json!({"models": []})).unwrap(), "it has others now");
}

fn records(side: &Process, kind: &str) -> Vec<Value> {
    let answer = get(side.address, &format!("/v1/sync/records?kind={kind}&limit=1000"));
    answer.json()["records"].as_array().cloned().unwrap_or_default()
}

fn serve_hub(home: &Path, url: &str, key_file: &Path) -> Process {
    let mut command = jetforge(home);
    command.args(["hub", "--port", "0", "--threads", "1", "-c", "256", "-m", "default"]);
    command.env("JETFORGE_HUB_STORE", url).env("JETFORGE_HUB_STORE_KEY_FILE", key_file);
    Process::spawn(command)
}

#[test]
fn two_hubs_serve_one_appliance_from_one_server_which_dies_meanwhile() {
    let Some(mut server) = Postgres::start() else { return };
    let url = server.database("hub");
    let homes = [0, 1, 2].map(|_| tempfile::tempdir().unwrap());
    let [nano_home, home, other_home] = homes.each_ref().map(|home| home.path());
    let proxy = Proxy::start(7);
    proxy.is_calm.store(true, Ordering::Relaxed);
    let key_file = state_of(home).join("device.key");
    {
        let nano = Store::open(&state_of(nano_home)).unwrap().store;
        let hub = open(&state_of(home), &url, &state_of(home));
        pair(&hub, &nano, &format!("http://{}", proxy.address));
    }
    let nano = Process::start(nano_home, &["-c", "256", "-np", "1"]);
    *proxy.target.lock().unwrap() = Some(nano.address);
    let hubs = [home, other_home].map(|home| serve_hub(home, &url, &key_file));
    let mut told = BTreeSet::new();
    for (i, side) in [&nano, &hubs[0], &hubs[1]].into_iter().enumerate() {
        for n in 0..5 {
            let answer =
                post(side.address, "/feedback", &json!({"request_id": format!("{i}-{n}")}));
            assert_eq!(answer.status, 200, "{}", answer.text());
            told.insert(format!("{i}-{n}"));
        }
    }
    let submit = |hub: &Process, text: &str| {
        let body = json!({"endpoint": "/tokenize", "body": {"content": text}});
        let answer = post(hub.address, "/v1/jobs", &body);
        assert_eq!(answer.status, 202, "{}", answer.text());
        answer.json()["id"].as_str().unwrap().to_owned()
    };
    let mut jobs = vec![submit(&hubs[0], "one"), submit(&hubs[1], "two")];
    let are_even = |told: &BTreeSet<String>, jobs: &[String]| {
        let is_told = |side: &&Process| {
            let found = records(side, "feedback");
            let names = found.iter().map(|r| r["body"]["request_id"].as_str().unwrap().to_owned());
            found.len() == told.len() && names.collect::<BTreeSet<_>>() == *told
        };
        let done: BTreeSet<String> = records(&nano, "job")
            .iter()
            .filter(|job| job["body"]["state"] == "done")
            .map(|job| job["key"].as_str().unwrap().to_owned())
            .collect();
        [&nano, &hubs[0], &hubs[1]].iter().all(is_told) && jobs.iter().all(|id| done.contains(id))
    };
    until("each knows what the others told", || are_even(&told, &jobs));
    server.kill();
    // What does not need it goes on; what does says when to come again.
    jobs.push(submit(&hubs[1], "three"));
    assert_eq!(get(hubs[0].address, "/health").status, 200);
    let bearer = format!("Bearer {KEY_OF_NANO}");
    let said = [("authorization", bearer.as_str())];
    let answer = send(hubs[0].address, "POST", "/v1/sync/exchange", &said, "{}");
    assert_eq!((answer.status, answer.error_type().as_str()), (503, "unavailable_error"));
    assert!(answer.header("retry-after").is_some() && answer.text().contains("away"));
    let answer = post(hubs[0].address, "/feedback", &json!({"request_id": "lost"}));
    assert_eq!(answer.status, 503, "nothing is acknowledged that is not kept");
    told.insert("meanwhile".into());
    post(nano.address, "/feedback", &json!({"request_id": "meanwhile"}));
    server.revive();
    until("they know it again", || are_even(&told, &jobs));
    for hub in &hubs {
        let shown = get(hub.address, "/v1/sync").json();
        assert_eq!(shown["peers"][0]["n_held"], 0, "{shown}");
    }
}

#[test]
fn hubs_of_one_store_ask_whom_it_names_also_where_they_learn_it_late() {
    let Some(mut server) = Postgres::start() else { return };
    let url = server.database("hub");
    let homes = [0, 1, 2].map(|_| tempfile::tempdir().unwrap());
    let [nano_home, home, other_home] = homes.each_ref().map(|home| home.path());
    let key_file = state_of(home).join("device.key");
    {
        let nano = Store::open(nano_home).unwrap().store;
        let hub = open(&state_of(home), &url, &state_of(home));
        pair(&hub, &nano, "http://127.0.0.1:9");
        // It has used the store before, so that it starts without it.
        open(&state_of(other_home), &url, &state_of(home));
    }
    server.kill();
    let hubs = [home, other_home].map(|home| serve_hub(home, &url, &key_file));
    let asks = |hub: &Process| {
        let status = get(hub.address, "/v1/status").json();
        let backends = status["upstream"]["backends"].as_array().cloned().unwrap();
        backends.iter().any(|own| own["name"] == "other")
    };
    assert!(!hubs.iter().any(asks), "nobody knows it");
    server.revive();
    until("both ask it", || hubs.iter().all(asks));
    until("one forgets it", || {
        let answer = post(hubs[0].address, "/v1/sync/forget?peer=other", &json!({}));
        assert!([200, 503].contains(&answer.status), "{}", answer.text());
        answer.status == 200
    });
    until("both have", || !hubs.iter().any(asks));
}
