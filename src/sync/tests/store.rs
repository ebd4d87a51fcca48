//! The machine over real stores: conflicts, what was set aside, stores that go back in time.

use std::path::Path;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::base::limits::SYNC_COPIES_BYTES_MAX;
use crate::store::{
    AnswerRow, Changed, Insert, JobRow, LedgerRow, NewJobRow, Peer, QueueLimits, RecordRow, Store,
    Update, now_ms,
};
use crate::sync::rules::job_rank;
use crate::sync::{Change, Node, Record, Spool, Told, read_frame};

pub struct Side {
    pub store: Store,
    pub sync: Node,
}

pub fn open(dir: &Path) -> Side {
    let store = Store::open(dir).unwrap().store;
    Side { sync: Node::open(store.clone()).unwrap(), store }
}

/// Pairs two: `b` has paired by a code of `a`, so it is a hub there.
pub fn pair(a: &Side, b: &Side) {
    let key = |side: &Side| format!("the key that {} sends", side.sync.node());
    for (own, other, address) in [(a, b, ""), (b, a, "http://127.0.0.1:9")] {
        let peer = Peer {
            node: other.sync.node().to_owned(),
            name: "peer".into(),
            address: address.into(),
            paired_here: address.is_empty(),
            key: key(own),
            key_digest: Sha256::digest(key(other)).into(),
            ..Peer::default()
        };
        own.store.insert_peer(peer).unwrap();
    }
}

/// Exchanges, called by `a`, until there is nothing more to say.
pub fn exchange(a: &Side, b: &Side) {
    for _ in 0..50 {
        let asked = a.sync.ask(b.sync.node()).unwrap();
        let (answer, _) = b.sync.answer(a.sync.node(), &asked).unwrap();
        if !a.sync.hear(b.sync.node(), &answer).unwrap().has_more {
            return;
        }
    }
    panic!("they go on and on");
}

fn state(side: &Side) -> String {
    side.sync.standing().unwrap()[0].standing.to_string()
}

/// What records ask of other rooms.
pub fn acts(side: &Side) -> Vec<String> {
    let acts = side.store.sync_look(|tx| tx.acts(0, 99)).unwrap();
    acts.into_iter().map(|act| act.key).collect()
}

pub fn change(kind: &str, key: &str, body: Value) -> Change {
    let rank = body["state"].as_str().and_then(job_rank).unwrap_or(0);
    Change { kind: kind.into(), key: key.into(), rank, body, to: None, is_elsewhere: false }
}

pub fn body(side: &Side, kind: &str, key: &str) -> Value {
    let found = side.sync.records(kind, 100).unwrap();
    let found = found.into_iter().find(|record| record.entry.key == key);
    found.map_or(Value::Null, |record| record.entry.body)
}

fn copies(side: &Side, kind: &str, key: &str) -> Vec<Value> {
    let copies = side.sync.copies(kind, key).unwrap();
    copies.into_iter().map(|record| record.entry.body).collect()
}

pub fn ledger(state: &str) -> LedgerRow {
    LedgerRow {
        state: state.to_owned(),
        due_ms: 1,
        epoch: 1,
        way: "fresh".to_owned(),
        ..LedgerRow::default()
    }
}

pub fn submit(side: &Side, id: &str) -> JobRow {
    let new = NewJobRow {
        id: id.to_owned(),
        endpoint: "/completion".to_owned(),
        body: br#"{"prompt": "secret"}"#.to_vec(),
        n_attempt_max: 3,
        ledger: ledger("queued"),
        ..NewJobRow::default()
    };
    match side.store.insert_job(new, QueueLimits { n_max: 99, bytes_max: 1 << 30 }).unwrap() {
        Insert::New(job) => job,
        other => panic!("{other:?}"),
    }
}

fn finish(side: &Side, job: &JobRow) {
    answer(side, job, br#"{"content": "a secret answer"}"#.to_vec());
}

pub fn answer(side: &Side, job: &JobRow, body: Vec<u8>) {
    let answer = Some(AnswerRow { status: 200, media_type: "application/json".into(), body });
    let update = Update { answer, calls_back: true, ..Update::of(job, ledger("done")) };
    assert_eq!(side.store.update_jobs(vec![update]).unwrap(), [Changed::Done]);
}

#[test]
fn a_job_is_told_in_the_transaction_that_changes_it_and_its_answer_beats_a_cancellation() {
    let (home, pc_home) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (nano, pc) = (open(home.path()), open(pc_home.path()));
    submit(&nano, "job-before");
    pair(&nano, &pc);
    let job = submit(&nano, "job-1");
    assert!(state(&nano).starts_with("1 waiting "), "nothing is told of what was before");
    exchange(&nano, &pc);
    assert_eq!((state(&nano), state(&pc)), ("synced".into(), "synced".into()));
    assert_eq!(body(&pc, "job", "job-1")["request"], json!({"prompt": "secret"}));
    // Both at once: it ends there and is taken back here.
    finish(&nano, &job);
    let cancel = change("job", "job-1", json!({"state": "cancelled"}));
    assert!(pc.sync.change(cancel.clone()).unwrap());
    exchange(&pc, &nano);
    let known = body(&pc, "job", "job-1");
    assert_eq!((&known["state"], &known["status"]), (&json!("done"), &json!(200)));
    assert_eq!(known["answer"]["content"], "a secret answer");
    assert_eq!(known["request"]["prompt"], "secret", "what was told before is kept");
    assert_eq!(copies(&pc, "job", "job-1").len(), 1, "the cancellation");
    assert_eq!(copies(&nano, "job", "job-1"), [json!({"state": "cancelled"})]);
    assert_eq!(acts(&nano), ["job-1"], "somebody has to look");
    assert!(nano.sync.note_wants().unwrap().is_empty() && acts(&nano).is_empty(), "it is over");
    assert!(!pc.sync.change(cancel).unwrap(), "it is over, and that is known");
    drop((nano, pc));
    for home in [&home, &pc_home] {
        for file in std::fs::read_dir(home.path()).unwrap() {
            let bytes = std::fs::read(file.unwrap().path()).unwrap();
            assert!(!bytes.windows(6).any(|part| part == b"secret"), "sealed");
        }
    }
}

#[test]
fn settings_changed_on_both_sides_end_alike_and_the_other_is_kept() {
    let (home, pc_home) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (a, b) = (open(home.path()), open(pc_home.path()));
    pair(&a, &b);
    a.sync.change(change("setting", "temp", json!({"value": 1}))).unwrap();
    // Within one millisecond neither would be the later one.
    let first_ms = now_ms();
    while now_ms() == first_ms {
        std::thread::yield_now();
    }
    b.sync.change(change("setting", "temp", json!({"value": 2}))).unwrap();
    b.sync.change(change("of-tomorrow", "x", json!([3]))).unwrap();
    exchange(&a, &b);
    let ended = body(&a, "setting", "temp");
    assert_eq!(ended, body(&b, "setting", "temp"));
    assert_eq!(ended, json!({"value": 2}), "the later one");
    assert_eq!(copies(&a, "setting", "temp"), [json!({"value": 1})]);
    assert_eq!(copies(&b, "setting", "temp"), [json!({"value": 1})]);
    assert_eq!(body(&a, "of-tomorrow", "x"), json!([3]), "kept for a program that knows it");
    // Who knows the value that it changes is in no conflict.
    a.sync.change(change("setting", "temp", json!({"value": 5}))).unwrap();
    exchange(&b, &a);
    assert_eq!(body(&b, "setting", "temp"), json!({"value": 5}));
    assert_eq!(copies(&b, "setting", "temp").len(), 1);
}

#[test]
fn a_message_that_comes_twice_does_nothing_twice_and_a_foreign_one_nothing_at_all() {
    let (home, pc_home) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (a, b) = (open(home.path()), open(pc_home.path()));
    pair(&a, &b);
    exchange(&a, &b);
    a.sync.tell_own("feedback", "1", json!({"text": "good"})).unwrap();
    let asked = a.sync.ask(b.sync.node()).unwrap();
    let first = b.sync.answer(a.sync.node(), &asked).unwrap().1;
    let again = b.sync.answer(a.sync.node(), &asked).unwrap().1;
    assert_eq!((first.n_applied, again.n_applied), (1, 0));
    assert!(state(&a).starts_with("1 waiting "), "the answer was lost, so nobody knows");
    exchange(&a, &b);
    assert_eq!(state(&a), "synced");
    let error = b.sync.answer("somebody", &asked).unwrap_err().to_string();
    assert!(error.contains("pair the two machines again"), "{error}");
    let error = a.sync.answer(a.sync.node(), &asked).unwrap_err().to_string();
    assert!(error.contains("this is"), "{error}");
    let old = String::from_utf8(asked).unwrap().replace("[1,1]", "[0,0]");
    let error = b.sync.answer(a.sync.node(), old.as_bytes()).unwrap_err().to_string();
    assert!(error.contains("update that one"), "{error}");
    assert_eq!(state(&b), "1 needs you");
    exchange(&a, &b);
    assert_eq!(state(&b), "synced");
}

#[test]
fn what_makes_no_sense_is_set_aside_and_those_behind_it_arrive() {
    let (home, pc_home) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (a, b) = (open(home.path()), open(pc_home.path()));
    pair(&a, &b);
    let bad = Change { rank: 4, ..change("job", "job-1", json!({"state": "asleep"})) };
    a.sync.change(bad).unwrap();
    a.sync.change(change("setting", "x", json!({"value": 1}))).unwrap();
    exchange(&a, &b);
    assert_eq!((state(&a), state(&b)), ("synced".into(), "1 needs you".into()));
    assert_eq!(body(&b, "setting", "x"), json!({"value": 1}));
    let held = b.sync.held().unwrap();
    assert_eq!(held[0].entry.as_ref().unwrap().key, "job-1");
    assert_eq!(b.sync.retry(false).unwrap(), 0, "it makes no more sense now");
    assert_eq!(b.sync.retry(true).unwrap(), 1);
    assert_eq!(state(&b), "synced");
}

#[test]
fn a_store_that_goes_back_in_time_loses_no_more_than_it_lost() {
    let (home, pc_home) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (old, pc_old) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let copy = |from: &Path, to: &Path| {
        for file in std::fs::read_dir(from).unwrap() {
            let path = file.unwrap().path();
            std::fs::copy(&path, to.join(path.file_name().unwrap())).unwrap();
        }
    };
    let note = |side: &Side, n: usize| {
        assert!(side.sync.tell_own("feedback", &n.to_string(), json!({ "n": n })).unwrap());
    };
    let seen = |side: &Side| {
        let mut seen: Vec<u64> = side
            .sync
            .records("feedback", 100)
            .unwrap()
            .iter()
            .map(|record| record.entry.body["n"].as_u64().unwrap())
            .collect();
        seen.sort_unstable();
        seen
    };
    {
        let (a, b) = (open(home.path()), open(pc_home.path()));
        pair(&a, &b);
        (0..3).for_each(|n| note(&a, n));
        exchange(&a, &b);
        (3..5).for_each(|n| note(&a, n));
    }
    copy(home.path(), old.path());
    copy(pc_home.path(), pc_old.path());
    {
        let (a, b) = (open(home.path()), open(pc_home.path()));
        (5..9).for_each(|n| note(&a, n));
        exchange(&a, &b);
        assert_eq!(seen(&b), (0..9).collect::<Vec<_>>());
    }
    // The one that tells goes back: what it says anew is not taken for what it said before.
    {
        let (a, b) = (open(old.path()), open(pc_home.path()));
        (10..17).for_each(|n| note(&a, n));
        exchange(&a, &b);
        exchange(&a, &b);
        assert_eq!(seen(&b), (0..9).chain(10..17).collect::<Vec<_>>());
        assert_eq!((state(&a), state(&b)), ("synced".into(), "synced".into()));
    }
    // The one that is told goes back: it is told again.
    {
        let (a, b) = (open(home.path()), open(pc_old.path()));
        exchange(&a, &b);
        exchange(&a, &b);
        assert_eq!(seen(&b), (0..9).collect::<Vec<_>>());
        assert_eq!((state(&a), state(&b)), ("synced".into(), "synced".into()));
    }
}

#[test]
fn entries_travel_by_a_file() {
    let (home, pc_home) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (a, b) = (open(home.path()), open(pc_home.path()));
    pair(&a, &b);
    for n in 0..600 {
        a.sync.tell_own("feedback", &n.to_string(), json!({ "n": n })).unwrap();
    }
    let mut file = Vec::new();
    assert_eq!(a.sync.export(&mut file).unwrap(), 600);
    let n_frame = |file: &[u8]| {
        let mut file = file;
        std::iter::from_fn(|| read_frame(&mut file).unwrap()).count()
    };
    assert!(n_frame(&file) > 2, "in several messages");
    assert_eq!(b.sync.import(&mut &file[..]).unwrap().n_applied, 600);
    assert_eq!(b.sync.import(&mut &file[..]).unwrap().n_applied, 0, "twice is once");
    assert!(state(&a).starts_with("600 waiting (oldest "), "nobody has told it");
    let mut back = Vec::new();
    b.sync.export(&mut back).unwrap();
    a.sync.import(&mut &back[..]).unwrap();
    assert_eq!(state(&a), "synced");
    assert!(b.sync.import(&mut &b"no message\n"[..]).is_err());
}

#[test]
fn who_finds_a_stick_reads_nothing_and_writes_nothing() {
    let homes = [(); 3].map(|()| tempfile::tempdir().unwrap());
    let [a, b, c] = homes.each_ref().map(|home| open(home.path()));
    pair(&a, &b);
    pair(&c, &b);
    a.sync.tell_own("feedback", "1", json!({"text": "a secret"})).unwrap();
    let mut file = Vec::new();
    a.sync.export(&mut file).unwrap();
    assert!(!file.windows(6).any(|part| part == b"secret"), "sealed");
    let head = file.iter().position(|byte| *byte == b'\n').unwrap();
    for at in head + 1..file.len() - 1 {
        let mut other = file.clone();
        other[at] ^= 1;
        let told = b.sync.import(&mut &other[..]).unwrap_or_default();
        assert!(told.n_applied == 0, "changed at {at}");
    }
    // Another machine that is paired with the same one cannot speak for it.
    let name = |side: &Side| side.sync.node().to_owned();
    let mut forged = Vec::new();
    c.sync.tell_own("feedback", "1", json!({"text": "forged"})).unwrap();
    c.sync.export(&mut forged).unwrap();
    let head = forged.iter().position(|byte| *byte == b'\n').unwrap();
    let line = String::from_utf8(forged[..head].to_vec()).unwrap();
    let line = line.replace(&name(&c), &name(&a));
    forged.splice(..head, line.into_bytes());
    let error = b.sync.import(&mut &forged[..]).unwrap_err().to_string();
    assert!(error.contains("does not open"), "{error}");
    assert_eq!(b.sync.import(&mut &file[..]).unwrap().n_applied, 1, "the true one does");
}

#[test]
fn who_is_forgotten_is_a_stranger_and_what_waited_for_it_is_gone() {
    let (home, pc_home) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (a, b) = (open(home.path()), open(pc_home.path()));
    pair(&a, &b);
    exchange(&a, &b);
    a.sync.tell_own("feedback", "1", json!({"n": 1})).unwrap();
    let asked = a.sync.ask(b.sync.node()).unwrap();
    let forgotten = b.sync.forget("peer").unwrap().unwrap();
    assert_eq!((forgotten.node.as_str(), forgotten.key.as_str()), (a.sync.node(), ""));
    assert_eq!(b.sync.forget("peer").unwrap(), None);
    let error = b.sync.answer(a.sync.node(), &asked).unwrap_err().to_string();
    assert!(error.contains("not paired"), "{error}");
    assert_eq!(b.sync.standing().unwrap(), []);
    assert!(!b.sync.tell_own("feedback", "2", json!({"n": 2})).unwrap(), "there is nobody to tell");
    a.sync.forget(b.sync.node()).unwrap().unwrap();
    // They can come together again, and begin anew.
    pair(&a, &b);
    a.sync.tell_own("feedback", "3", json!({"n": 3})).unwrap();
    exchange(&a, &b);
    assert_eq!((state(&a), state(&b)), ("synced".into(), "synced".into()));
    let told: Vec<Value> =
        b.sync.records("feedback", 9).unwrap().into_iter().map(|r| r.entry.body).collect();
    assert_eq!(told, [json!({"n": 3})]);
}

#[test]
fn what_a_peer_may_not_write_is_set_aside_and_blocks_nothing() {
    let (home, pc_home) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (a, b) = (open(home.path()), open(pc_home.path()));
    let (nano, pc) = (a.sync.node().to_owned(), b.sync.node().to_owned());
    pair(&a, &b);
    let job = submit(&a, "job-1");
    exchange(&a, &b);
    assert!(!b.sync.change(change("job", "job-1", json!({"state": "done"}))).unwrap(), "not his");
    assert!(!b.sync.change(change("inventory", &nano, json!({}))).unwrap());
    // A program that keeps to no rules says it all the same.
    let unruly = |kind: &str, key: String, body: Value| {
        let change = change("of-tomorrow", &key, body);
        (kind.to_owned(), change)
    };
    let sent = [
        unruly("job", "job-1".into(), json!({"state": "done"})),
        unruly("inventory", nano.clone(), json!({"models": []})),
        unruly("report", format!("{nano}/bench-1"), json!({})),
        unruly("setting", format!("{nano}/temp"), json!({"value": 1})),
    ];
    for (_, change) in sent.clone() {
        b.sync.change(change).unwrap();
    }
    let text = String::from_utf8(b.sync.ask(&nano).unwrap()).unwrap();
    let mut message: Value = serde_json::from_str(&text).unwrap();
    for (entry, (kind, _)) in message["entries"].as_array_mut().unwrap().iter_mut().zip(&sent) {
        entry["kind"] = json!(kind);
        entry["rank"] = json!(entry["body"]["state"].as_str().and_then(job_rank).unwrap_or(0));
    }
    let heard = a.sync.answer(&pc, message.to_string().as_bytes()).unwrap().1;
    assert_eq!((heard.n_held, heard.n_applied), (3, 1), "a hub may set what it likes");
    let held = a.sync.held().unwrap();
    assert!(held.iter().all(|held| held.why.contains("may not write it")), "{held:?}");
    assert_eq!(state(&a), "3 need you");
    assert_eq!(body(&a, "setting", &format!("{nano}/temp")), json!({"value": 1}));
    // And an appliance may not set what it likes on a hub.
    finish(&a, &job);
    let set = change("setting", &format!("{pc}/temp"), json!({"value": 2}));
    a.sync.change(set).unwrap();
    exchange(&a, &b);
    assert_eq!(body(&b, "job", "job-1")["state"], "done");
    assert_eq!((state(&b), b.sync.held().unwrap().len()), ("1 needs you".into(), 1));
}

#[test]
fn a_job_that_is_tried_again_and_taken_back_is_told_so() {
    let (home, pc_home) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (a, b) = (open(home.path()), open(pc_home.path()));
    pair(&a, &b);
    let mut job = submit(&a, "job-1");
    let mut become_ = |ledger: LedgerRow| {
        let calls_back = ledger.state != "queued";
        let update = Update { calls_back, ..Update::of(&job, ledger) };
        assert_eq!(a.store.update_jobs(vec![update]).unwrap(), [Changed::Done]);
        job.revision += 1;
        exchange(&a, &b);
        body(&b, "job", "job-1")["state"].as_str().unwrap().to_owned()
    };
    let failed = LedgerRow { reason: Some("broken".into()), ..ledger("failed") };
    let paused = LedgerRow { reason: Some("a pause".into()), ..ledger("queued") };
    assert_eq!(become_(paused), "submitted");
    assert_eq!(become_(failed), "failed");
    let taken_back = change("job", "job-1", json!({"state": "cancelled"}));
    assert!(!b.sync.change(taken_back.clone()).unwrap(), "it is over");
    assert_eq!(become_(ledger("queued")), "submitted", "it was asked for again");
    assert_eq!(become_(ledger("cancelled")), "cancelled");
    assert_eq!(become_(ledger("queued")), "submitted");
    assert!(b.sync.change(taken_back).unwrap(), "this time it can be taken back");
    exchange(&b, &a);
    assert_eq!(acts(&a), ["job-1"]);
}

#[test]
fn the_copy_of_a_card_says_nothing_until_somebody_tells_which_it_is() {
    let (home, twin_home, pc_home) =
        (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let open_on = |dir: &Path, mark: &str| {
        let store = Store::open(dir).unwrap().store;
        Side {
            sync: Node::open_on(store.clone(), vec![mark.into(), "card".into()]).unwrap(),
            store,
        }
    };
    let pc = open(pc_home.path());
    {
        let nano = open_on(home.path(), "board 1");
        pair(&nano, &pc);
        exchange(&nano, &pc);
    }
    for file in std::fs::read_dir(home.path()).unwrap() {
        let path = file.unwrap().path();
        std::fs::copy(&path, twin_home.path().join(path.file_name().unwrap())).unwrap();
    }
    let nano = open_on(home.path(), "board 1");
    assert!(nano.sync.moved().is_none());
    let moved = |dir: &Path| {
        let store = Store::open(dir).unwrap().store;
        Side { sync: Node::open_on(store.clone(), vec!["board 2".into()]).unwrap(), store }
    };
    {
        let twin = moved(twin_home.path());
        twin.sync.tell_own("feedback", "1", json!({"n": 1})).unwrap();
        let error = twin.sync.ask(pc.sync.node()).unwrap_err().to_string();
        assert!(error.contains("sync renew") && error.contains("sync adopt"), "{error}");
        assert!(twin.sync.export_page(pc.sync.node(), None).is_err());
        assert!(state(&twin).contains("1 needs you"), "{}", state(&twin));
        assert_ne!(twin.sync.renew().unwrap(), nano.sync.node());
    }
    let twin = moved(twin_home.path());
    assert!(twin.sync.moved().is_none() && twin.sync.peers().unwrap().is_empty());
    pair(&twin, &pc);
    nano.sync.tell_own("feedback", "2", json!({"n": 2})).unwrap();
    twin.sync.tell_own("feedback", "3", json!({"n": 3})).unwrap();
    exchange(&nano, &pc);
    exchange(&twin, &pc);
    assert_eq!(pc.sync.records("feedback", 9).unwrap().len(), 2);
    drop(nano);
    // A card that was moved goes on where it was.
    let nano = moved(home.path());
    assert!(nano.sync.moved().is_some());
    nano.sync.adopt().unwrap();
    exchange(&nano, &pc);
    assert_eq!(state(&nano), "synced");
    drop(nano);
    assert!(moved(home.path()).sync.moved().is_none());
}

#[test]
fn how_long_a_peer_was_not_heard_is_known_after_a_restart() {
    let (home, pc_home) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let b = open(pc_home.path());
    {
        let a = open(home.path());
        pair(&a, &b);
        assert_eq!(state(&a), "never heard");
        exchange(&a, &b);
        let node = b.sync.node().to_owned();
        a.store
            .sync(move |tx| {
                let link: Value = serde_json::from_str(&tx.link(&node)?.unwrap()).unwrap();
                let mut link = link;
                let heard_ms = link["heard_ms"].as_i64().unwrap();
                link["heard_ms"] = json!(heard_ms - 22 * 24 * 3600 * 1000);
                tx.set_link(&node, &link.to_string())
            })
            .unwrap();
        assert_eq!(state(&a), "synced", "this run has heard it");
    }
    let a = open(home.path());
    assert_eq!(state(&a), "synced, last heard 3 weeks ago");
    exchange(&a, &b);
    assert_eq!(state(&a), "synced");
}

#[test]
fn what_was_set_aside_is_bounded_by_its_bytes() {
    let (home, pc_home) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (a, b) = (open(home.path()), open(pc_home.path()));
    pair(&a, &b);
    let node = b.sync.node().to_owned();
    let n_held = a
        .store
        .sync(move |tx| {
            let text = vec![b'x'; 1 << 20];
            (0..40).try_for_each(|_| tx.hold(&node, &text, "it makes no sense"))?;
            tx.n_held(&node)
        })
        .unwrap();
    assert!((10..17).contains(&n_held), "{n_held} of 1 MiB each");
}

#[test]
fn what_did_not_count_is_bounded_by_its_bytes() {
    let home = tempfile::tempdir().unwrap();
    let a = open(home.path());
    let key = |n: u64| format!("job-{n}");
    let n_byte = a
        .store
        .sync(move |tx| {
            for n in 0..100 {
                let text = vec![b'x'; 1 << 20];
                let (kind, origin) = ("job".to_owned(), "pc".to_owned());
                tx.put_copy(&RecordRow { kind, key: key(n), origin, text })?;
            }
            let of = |n: u64| tx.copies("job", &key(n)).map(|rows| rows.len() as i64);
            (0..100).map(of).sum::<Result<i64, _>>().map(|n| n << 20)
        })
        .unwrap();
    let bound = SYNC_COPIES_BYTES_MAX;
    assert!((bound / 2..bound + bound / 4).contains(&n_byte), "{n_byte} of {bound}");
}

#[test]
fn a_record_that_makes_no_sense_hides_no_other() {
    let home = tempfile::tempdir().unwrap();
    let a = open(home.path());
    let put = |key: &str, text: &str| {
        let (kind, key, origin) = ("snippet".to_owned(), key.to_owned(), "pc".to_owned());
        let row = RecordRow { kind, key, origin, text: text.as_bytes().to_vec() };
        a.store.sync(move |tx| tx.put_record(&row).and_then(|()| tx.put_copy(&row))).unwrap();
    };
    let entry = json!({"seq": 1, "id": 1, "at": 1, "kind": "snippet", "key": "x", "rank": 0,
        "body": {}});
    put("x", &entry.to_string());
    put("y", "no entry");
    let keys = |records: Vec<Record>| -> Vec<String> {
        records.into_iter().map(|record| record.entry.key).collect()
    };
    assert_eq!(keys(a.sync.records("snippet", 9).unwrap()), ["x"]);
    assert_eq!(keys(a.sync.copies("snippet", "y").unwrap()), [""; 0]);
}

#[test]
fn what_other_processes_measured_and_which_models_there_are_is_told_once() {
    let (home, pc_home) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (a, b) = (open(home.path()), open(pc_home.path()));
    pair(&a, &b);
    let body = json!({"what": "bench", "measured_ms": 5});
    let told = Told { kind: "report".into(), name: "bench-5".into(), body: body.clone() };
    Spool::new(home.path()).put(&told).unwrap();
    assert_eq!((a.sync.take_in_spool().unwrap(), a.sync.take_in_spool().unwrap()), (1, 0));
    let models = json!({"models": [{"name": "small"}]});
    assert!(a.sync.tell_inventory(models.clone()).unwrap());
    assert!(!a.sync.tell_inventory(models.clone()).unwrap(), "it is the same");
    exchange(&a, &b);
    let node = a.sync.node();
    assert_eq!(self::body(&b, "report", &format!("{node}/bench-5")), body);
    assert_eq!(self::body(&b, "inventory", node), models);
}
