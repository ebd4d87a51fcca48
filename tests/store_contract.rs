//! What every database of the tables of sync promises: one suite over each of them.
//!
//! SQLite runs always; PostgreSQL as a real server where Debian's package is installed. What only a
//! shared store promises is in `shared_store`.

use std::path::Path;

use jetforge::base::limits::{
    PEERS_MAX, SYNC_ACTS_KEPT, SYNC_COPIES_MAX, SYNC_HELD_MAX, SYNC_TOLD_SEEN_MAX,
};
use jetforge::store::{OutRow, Peer, RecordRow, SharedOptions, Store, StoreError, SyncTx};

use crate::support::postgres::Postgres;

/// Opens a store; the same tables each time.
type Opener<'a> = &'a dyn Fn(&Path) -> Store;

/// A promise with its name.
type Promise = (&'static str, fn(Opener<'_>));

const PROMISES: [Promise; 8] = [
    ("an outbox keeps its order, its bounds and its numbers", outbox),
    ("what fails takes all of its transaction, and a look changes nothing", transactions),
    ("what was seen is known again", marks),
    ("the last changed comes first, and copies are bounded", records),
    ("what is set aside is bounded for each peer", held),
    ("what is asked of other rooms waits once, and so much at most", acts),
    ("a peer is kept, renamed and forgotten with all that hangs on it", peers),
    ("two that write at once do so one after the other", turns),
];

#[test]
fn the_tables_of_sqlite_keep_their_promises() {
    for (promise, check) in PROMISES {
        println!("{promise}");
        check(&|dir| Store::open(dir).unwrap().store);
    }
}

#[test]
fn the_tables_of_postgres_keep_the_same_promises() {
    let Some(server) = Postgres::start() else { return };
    for (i, (promise, check)) in PROMISES.into_iter().enumerate() {
        println!("{promise}");
        let options = SharedOptions::new(&server.database(&format!("promise_{i}")), false).unwrap();
        check(&move |dir| Store::open_shared(dir, &options).unwrap().store);
    }
}

fn peer(i: usize) -> Peer {
    Peer {
        node: format!("{i:016x}"),
        name: format!("Pc-{i:03}"),
        address: "http://127.0.0.1:9999".into(),
        key: format!("jf-secret-{i}"),
        key_digest: [i as u8; 32],
        certificate: (i % 2 == 0).then_some([7; 32]),
        paired_ms: 5,
        paired_here: i % 2 == 0,
    }
}

fn node(i: usize) -> String {
    peer(i).node
}

/// A store with the peers 1 and 2.
fn paired(open: Opener<'_>, dir: &Path) -> Store {
    let store = open(dir);
    store.insert_peer(peer(1)).unwrap();
    store.insert_peer(peer(2)).unwrap();
    store
}

fn out(seq: u64, n_bytes: u64) -> OutRow {
    let text = Some(format!("entry {seq}").into_bytes());
    // Numbers of all 64 bits.
    OutRow { seq, id: u64::MAX - seq, n_bytes, written_ms: -5, text }
}

fn outbox(open: Opener<'_>) {
    let dir = tempfile::tempdir().unwrap();
    let store = paired(open, dir.path());
    let put = |tx: &mut SyncTx<'_>| {
        for seq in [3, 1, 2, 4] {
            tx.put_out(&node(1), &out(seq, 10))?;
        }
        tx.put_out(&node(2), &out(1, 10))
    };
    store.sync(put).unwrap();
    let seqs = |from, n_max, n_bytes_max| -> Vec<u64> {
        let look = store.sync_look(|tx| tx.outs(&node(1), from, n_max, n_bytes_max));
        look.unwrap().into_iter().map(|row| row.seq).collect()
    };
    assert_eq!(seqs(0, 9, 1000), [1, 2, 3, 4]);
    assert_eq!(seqs(2, 2, 1000), [2, 3], "so many");
    assert_eq!(seqs(1, 9, 30), [1, 2, 3], "so many bytes");
    assert_eq!(seqs(1, 9, 29), [1, 2]);
    assert_eq!(seqs(1, 9, 0), [1], "but one at least");
    assert!(seqs(5, 9, 1000).is_empty());
    let rows = store.sync_look(|tx| tx.outs(&node(1), 2, 1, 1000)).unwrap();
    assert_eq!(rows, [out(2, 10)], "as it was put");
    let again = store.sync(|tx| tx.put_out(&node(1), &out(2, 10)));
    assert!(again.is_err(), "no two have one place");
    let moved = store.sync(|tx| {
        tx.drop_out(&node(1), 1)?;
        tx.shift_outs(&node(1), 1)?;
        Ok((tx.out_front(&node(1), 0)?, tx.out_id(&node(1), 5)?, tx.out_id(&node(1), 2)?))
    });
    // Those behind went up by one, over each other's places.
    let (front, last, gone) = moved.unwrap();
    let expected = OutRow { seq: 3, text: None, ..out(2, 10) };
    assert_eq!((front, last, gone), (Some(expected), Some(u64::MAX - 4), None));
    assert_eq!(store.sync_look(|tx| tx.out_id(&node(2), 1)).unwrap(), Some(u64::MAX - 1));
}

fn transactions(open: Opener<'_>) {
    let dir = tempfile::tempdir().unwrap();
    let store = paired(open, dir.path());
    let failed = store.sync(|tx| {
        tx.set_clock(7)?;
        tx.set_link(&node(1), "{}")?;
        Err::<(), _>(StoreError::Busy)
    });
    assert!(matches!(failed, Err(StoreError::Busy)));
    let look = || store.sync_look(|tx| Ok((tx.clock()?, tx.link(&node(1))?))).unwrap();
    assert_eq!(look(), (0, None));
    store.sync(|tx| tx.set_clock(u64::MAX).and_then(|()| tx.set_link(&node(1), "1"))).unwrap();
    store.sync(|tx| tx.set_link(&node(1), "2")).unwrap();
    assert_eq!(look(), (u64::MAX, Some("2".into())));
    assert!(store.sync_look(|tx| tx.set_clock(3)).is_err());
    assert_eq!(look().0, u64::MAX);
    assert!(store.sync(|tx| tx.set_link("nobody", "{}")).is_err(), "a link is with a peer");
    drop(store);
    let store = open(dir.path());
    assert_eq!(store.sync_look(|tx| tx.clock()).unwrap(), u64::MAX, "it is on the disk");
}

fn marks(open: Opener<'_>) {
    let dir = tempfile::tempdir().unwrap();
    let store = paired(open, dir.path());
    let seen = store.sync(|tx| {
        let (one, two) = (node(1), node(2));
        Ok([tx.see(&one, 7)?, tx.see(&one, 7)?, tx.see(&two, 7)?, tx.see(&one, u64::MAX)?])
    });
    assert_eq!(seen.unwrap(), [true, false, true, true]);
    assert!(!store.sync(|tx| tx.see(&node(1), u64::MAX)).unwrap());
    let told = store.sync(|tx| {
        let all = 0..2 * SYNC_TOLD_SEEN_MAX as u64;
        let n_new = all.filter(|id| tx.is_new_told("here", *id).unwrap()).count();
        let last = tx.is_new_told("here", 2 * SYNC_TOLD_SEEN_MAX as u64 - 1)?;
        Ok((n_new, last, tx.is_new_told("there", 1)?, tx.is_new_told("here", 0)?))
    });
    let n = 2 * SYNC_TOLD_SEEN_MAX as usize;
    assert_eq!(told.unwrap(), (n, false, true, true), "bounded for each source");
}

fn record(key: &str, text: &str) -> RecordRow {
    let (kind, key) = ("snippet".to_owned(), key.to_owned());
    RecordRow { kind, key, origin: node(1), text: text.as_bytes().to_vec() }
}

fn records(open: Opener<'_>) {
    let dir = tempfile::tempdir().unwrap();
    let store = paired(open, dir.path());
    store
        .sync(|tx| {
            for key in ["b", "ä", "a"] {
                tx.put_record(&record(key, "1"))?;
            }
            tx.put_record(&RecordRow { kind: "setting".into(), ..record("a", "else") })?;
            tx.put_record(&record("b", "2"))
        })
        .unwrap();
    let keys = |n_max| -> Vec<String> {
        let found = store.sync_look(|tx| tx.records("snippet", n_max)).unwrap();
        found.into_iter().map(|row| row.key).collect()
    };
    assert_eq!(
        (keys(9), keys(2)),
        (vec!["b".into(), "a".into(), "ä".into()], vec!["b".into(), "a".into()])
    );
    let found = store.sync_look(|tx| Ok((tx.record("snippet", "b")?, tx.record("x", "b")?)));
    assert_eq!(found.unwrap(), (Some(record("b", "2")), None));
    let counts = store.sync_look(|tx| tx.record_counts()).unwrap();
    assert_eq!(counts, [("setting".to_owned(), 1), ("snippet".to_owned(), 3)]);
    // Those that are shown are bounded by their bytes.
    let large = "x".repeat(9 << 20);
    store
        .sync(move |tx| {
            tx.put_record(&record("large 1", &large))?;
            tx.put_record(&record("large 2", &large))
        })
        .unwrap();
    assert_eq!(keys(9), ["large 2"]);
    let n = SYNC_COPIES_MAX as usize + 3;
    let put = move |tx: &mut SyncTx<'_>| {
        (0..n).try_for_each(|i| tx.put_copy(&record("a", &i.to_string())))?;
        tx.put_copy(&record("b", "alone"))
    };
    store.sync(put).unwrap();
    let copies = store.sync_look(|tx| tx.copies("snippet", "a")).unwrap();
    let texts: Vec<String> =
        copies.iter().map(|copy| String::from_utf8(copy.text.clone()).unwrap()).collect();
    let expected: Vec<String> = (3..n).map(|i| i.to_string()).collect();
    assert_eq!(texts, expected, "the oldest went");
    assert_eq!(store.sync_look(|tx| tx.copies("snippet", "b")).unwrap().len(), 1);
}

fn held(open: Opener<'_>) {
    let dir = tempfile::tempdir().unwrap();
    let store = paired(open, dir.path());
    let n_max = SYNC_HELD_MAX;
    store
        .sync(move |tx| {
            for i in 0..n_max + 2 {
                tx.hold(&node(1), &i.to_le_bytes(), "it makes no sense")?;
            }
            tx.hold(&node(2), b"text", "a \0 in what was said")
        })
        .unwrap();
    let held = store.sync_look(|tx| tx.held()).unwrap();
    assert_eq!(held.len() as u64, n_max + 1);
    assert_eq!(held[0].text, 2u64.to_le_bytes(), "the oldest went");
    let last = held.last().unwrap();
    assert_eq!((&last.peer, last.why.as_str()), (&node(2), "a  in what was said"));
    let n = last.n;
    store.sync(move |tx| tx.drop_held(n)).unwrap();
    let counts = |i| store.sync_look(move |tx| tx.n_held(&node(i))).unwrap();
    assert_eq!((counts(1), counts(2)), (n_max, 0));
    store
        .sync(|tx| (0..20).try_for_each(|_| tx.hold(&node(2), &vec![b'x'; 1 << 20], "large")))
        .unwrap();
    assert_eq!((counts(1), counts(2)), (n_max, 15), "16 MiB, seals included");
}

fn acts(open: Opener<'_>) {
    let dir = tempfile::tempdir().unwrap();
    let store = paired(open, dir.path());
    let put = |tx: &mut SyncTx<'_>| {
        for key in ["job-2", "job-1", "job-2"] {
            tx.put_act(&node(1), "job", key)?;
        }
        Ok(())
    };
    store.sync(put).unwrap();
    let keys = |n_max| -> Vec<String> {
        let acts = store.sync_look(|tx| tx.acts(0, n_max)).unwrap();
        acts.into_iter().map(|act| act.key).collect()
    };
    assert_eq!((keys(9), keys(1)), (vec!["job-2".into(), "job-1".into()], vec!["job-2".into()]));
    let first = store.sync_look(|tx| tx.acts(0, 1)).unwrap()[0].n;
    let behind = store.sync_look(|tx| tx.acts(first, 9)).unwrap();
    assert_eq!(behind.into_iter().map(|act| act.key).collect::<Vec<_>>(), ["job-1"]);
    store.sync(|tx| tx.drop_act("job", "job-2")).unwrap();
    assert_eq!(keys(9), ["job-1"]);
    let n = SYNC_ACTS_KEPT + 1000;
    let many = move |tx: &mut SyncTx<'_>| {
        (0..n).try_for_each(|i| tx.put_act(&node(2), "job", &format!("many-{i}")))
    };
    store.sync(many).unwrap();
    let all = keys(2 * n as usize);
    assert!((SYNC_ACTS_KEPT..n).contains(&(all.len() as i64)), "bounded: {}", all.len());
    assert_eq!(*all.last().unwrap(), format!("many-{}", n - 1), "the oldest went");
}

fn peers(open: Opener<'_>) {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    store.insert_peer(Peer { name: "b".into(), ..peer(1) }).unwrap();
    // By their bytes: capitals come first.
    store.insert_peer(Peer { name: "Z".into(), ..peer(2) }).unwrap();
    let names: Vec<String> = store.peers().unwrap().into_iter().map(|peer| peer.name).collect();
    assert_eq!(names, ["Z", "b"]);
    assert_eq!(store.peer(&node(1)).unwrap(), Some(Peer { name: "b".into(), ..peer(1) }));
    let paired_here = |i| store.sync_look(move |tx| tx.has_paired_here(&node(i))).unwrap();
    assert_eq!([paired_here(1), paired_here(2), paired_here(3)], [false, true, false]);
    let moved = Peer { address: "https://new".into(), certificate: Some([8; 32]), ..peer(2) };
    assert!(store.move_peer(&node(2), "https://new", Some([8; 32])).unwrap());
    assert!(!store.move_peer(&node(3), "http://new", None).unwrap());
    assert_eq!(store.peer(&node(2)).unwrap(), Some(Peer { name: "Z".into(), ..moved }));
    let hang = |tx: &mut SyncTx<'_>| {
        tx.set_link(&node(1), "{}")?;
        tx.put_out(&node(1), &out(1, 1))?;
        tx.hold(&node(1), b"x", "why")?;
        tx.put_act(&node(1), "job", "job-1")?;
        tx.see(&node(1), 7)
    };
    store.sync(hang).unwrap();
    // Who pairs again goes on where it was.
    store.insert_peer(peer(1)).unwrap();
    assert_eq!(store.peer(&node(1)).unwrap(), Some(peer(1)));
    let heard = store.sync(|tx| Ok((tx.link(&node(1))?, tx.see(&node(1), 7)?))).unwrap();
    assert_eq!(heard, (Some("{}".into()), false), "what was heard stays heard");
    assert!(store.delete_peer(&node(1)).unwrap() && !store.delete_peer(&node(1)).unwrap());
    store.insert_peer(peer(1)).unwrap();
    let left = store.sync(|tx| {
        let (link, front) = (tx.link(&node(1))?, tx.out_front(&node(1), 0)?);
        Ok((link, front, tx.n_held(&node(1))?, tx.acts(0, 9)?.len(), tx.see(&node(1), 7)?))
    });
    assert_eq!(left.unwrap(), (None, None, 0, 0, true), "nothing of it is left");
    (3..=PEERS_MAX).for_each(|i| store.insert_peer(peer(i)).unwrap());
    let full = store.insert_peer(peer(PEERS_MAX + 1)).unwrap_err();
    assert!(matches!(full, StoreError::PeersFull { n: PEERS_MAX }), "{full}");
    store.insert_peer(peer(3)).unwrap();
}

fn turns(open: Opener<'_>) {
    let dir = tempfile::tempdir().unwrap();
    let store = paired(open, dir.path());
    std::thread::scope(|scope| {
        for _ in 0..12 {
            scope.spawn(|| {
                for _ in 0..20 {
                    // Lost, if another one came between the two.
                    store.sync(|tx| tx.clock().and_then(|clock| tx.set_clock(clock + 1))).unwrap();
                    store.sync_look(|tx| tx.clock()).unwrap();
                }
            });
        }
    });
    assert_eq!(store.sync_look(|tx| tx.clock()).unwrap(), 240);
}
