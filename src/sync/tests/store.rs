//! The machine over real stores: conflicts, what was set aside, stores that go back in time, files.

use std::path::Path;

use serde_json::{Value, json};

use crate::store::{
    AnswerRow, Changed, Insert, JobRow, LedgerRow, NewJobRow, Peer, QueueLimits, Store, Update,
};
use crate::sync::{Change, Node, job_rank};

struct Side {
    store: Store,
    sync: Node,
}

fn open(dir: &Path) -> Side {
    let store = Store::open(dir).unwrap().store;
    Side { sync: Node::open(store.clone()).unwrap(), store }
}

fn pair(a: &Side, b: &Side) {
    for (own, other) in [(a, b), (b, a)] {
        let peer =
            Peer { node: other.sync.node().to_owned(), name: "peer".into(), ..Peer::default() };
        own.store.insert_peer(peer).unwrap();
    }
}

/// Exchanges, called by `a`, until there is nothing more to say.
fn exchange(a: &Side, b: &Side) {
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

fn change(kind: &str, key: &str, body: Value) -> Change {
    let rank = body["state"].as_str().and_then(job_rank).unwrap_or(0);
    Change { kind: kind.into(), key: key.into(), rank, body, to: None, is_elsewhere: false }
}

fn body(side: &Side, kind: &str, key: &str) -> Value {
    let found = side.sync.records(kind, 100).unwrap();
    let found = found.into_iter().find(|record| record.entry.key == key);
    found.map_or(Value::Null, |record| record.entry.body)
}

fn copies(side: &Side, kind: &str, key: &str) -> Vec<Value> {
    let copies = side.sync.copies(kind, key).unwrap();
    copies.into_iter().map(|record| record.entry.body).collect()
}

fn ledger(state: &str) -> LedgerRow {
    LedgerRow {
        state: state.to_owned(),
        due_ms: 1,
        n_attempt: 0,
        n_broken: 0,
        epoch: 1,
        n_token_start: 0,
        way: "fresh".to_owned(),
        started_ms: None,
        finished_ms: None,
        reason: None,
    }
}

fn submit(side: &Side, id: &str) -> JobRow {
    let new = NewJobRow {
        id: id.to_owned(),
        tenant: 0,
        request_id: None,
        body_hash: vec![0; 32],
        endpoint: "/completion".to_owned(),
        body: br#"{"prompt": "secret"}"#.to_vec(),
        seed: 7,
        priority: 0,
        created_ms: 1,
        deadline_ms: None,
        n_attempt_max: 3,
        callback: None,
        ledger: ledger("queued"),
    };
    match side.store.insert_job(new, QueueLimits { n_max: 99, bytes_max: 1 << 30 }).unwrap() {
        Insert::New(job) => job,
        other => panic!("{other:?}"),
    }
}

fn finish(side: &Side, job: &JobRow) {
    let body = br#"{"content": "a secret answer"}"#.to_vec();
    let update = Update {
        n: job.n,
        id: job.id.clone(),
        revision: job.revision,
        ledger: ledger("done"),
        answer: Some(AnswerRow { status: 200, media_type: "application/json".into(), body }),
        pieces: None,
        calls_back: true,
        limits: None,
    };
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
    let acts = nano.sync.acts().unwrap();
    assert_eq!((acts.len(), acts[0].key.as_str()), (1, "job-1"), "somebody has to look");
    nano.sync.acted(acts[0].n).unwrap();
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
    a.sync.note("feedback", json!({"text": "good"})).unwrap();
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
        assert!(side.sync.note("feedback", json!({ "n": n })).unwrap());
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
        a.sync.note("feedback", json!({ "n": n })).unwrap();
    }
    let mut file = Vec::new();
    assert_eq!(a.sync.export(&mut file).unwrap(), 600);
    assert!(file.iter().filter(|byte| **byte == b'\n').count() > 2, "in several messages");
    assert_eq!(b.sync.import(&mut &file[..]).unwrap(), 600);
    assert_eq!(b.sync.import(&mut &file[..]).unwrap(), 0, "twice is once");
    assert!(state(&a).starts_with("600 waiting (oldest "), "nobody has told it");
    let mut back = Vec::new();
    b.sync.export(&mut back).unwrap();
    a.sync.import(&mut &back[..]).unwrap();
    assert_eq!(state(&a), "synced");
    assert!(b.sync.import(&mut &b"no message\n"[..]).is_err());
}
