//! Block-level replay: what a disk makes of the sectors that were on their way when its power went.
//!
//! A machine that is paired lives on: it takes jobs in, tells of them, hears its peer. After each
//! write that was acknowledged the two files of its store are kept. Then, of each two moments, any
//! sectors of the way from the first to the second arrive and the others do not. What is opened has
//! to be one of the two: its jobs, outbox, inbox, records, copies, what was set aside, and clock.

use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::Path;

use serde_json::json;

use super::random::Random;
use super::store::{Side, acts, change, ledger, open, pair, submit};
use crate::store::{
    AnswerRow, Append, Changed, Insert, JobFilter, JobRow, NewJobRow, PieceRow, QueueLimits, Store,
    StoreError, SyncTx, Update,
};
use crate::sync::Change;

/// What a disk writes as a whole.
const SECTOR: usize = 512;
/// The log's own header, which is on the disk before anything behind it is written.
const LOG_HEADER: usize = 32;
/// Kinds of records that are told.
const KINDS: [&str; 4] = ["job", "setting", "feedback", "of-tomorrow"];

/// The two files as they are on the disk after a write was acknowledged.
#[derive(Clone, Default)]
struct Disk {
    file: Vec<u8>,
    log: Vec<u8>,
}

impl Disk {
    fn of(dir: &Path) -> Disk {
        let read = |name: &str| fs::read(dir.join(name)).unwrap_or_default();
        Disk { file: read("state.db"), log: read("state.db-wal") }
    }

    /// A disk that was `self` and lost its power on the way to `after`: of what was not synced yet
    /// any sectors have arrived and the others have not, whatever their order.
    fn torn(&self, after: &Disk, random: &mut Random) -> Disk {
        let mut torn = self.clone();
        if random.below(2) == 0 || self.file == after.file {
            let has_new_header = self.log.get(..LOG_HEADER) != after.log.get(..LOG_HEADER);
            if has_new_header && random.below(4) > 0 {
                torn.log.resize(torn.log.len().max(LOG_HEADER), 0);
                torn.log[..LOG_HEADER].copy_from_slice(&after.log[..LOG_HEADER]);
            }
            if torn.log.get(..LOG_HEADER) == after.log.get(..LOG_HEADER) {
                arrive(&mut torn.log, &after.log, random);
            }
        } else {
            // A page goes to its place when the log that has it is on the disk.
            torn.log = after.log.clone();
            arrive(&mut torn.file, &after.file, random);
        }
        torn
    }
}

/// Puts some of the sectors of `after` into `torn`.
fn arrive(torn: &mut Vec<u8>, after: &[u8], random: &mut Random) {
    let share = 1 + random.below(10);
    for (idx, sector) in after.chunks(SECTOR).enumerate() {
        let start = idx * SECTOR;
        if torn.get(start..start + sector.len()) != Some(sector) && random.below(10) < share {
            torn.resize(torn.len().max(start + sector.len()), 0);
            torn[start..start + sector.len()].copy_from_slice(sector);
        }
    }
}

/// A moment between two writes.
struct Moment {
    disk: Disk,
    /// Ids of all that the peer has told so far.
    ids: Vec<u64>,
    said: Vec<String>,
}

/// A machine, its peer, and the moments of its life.
struct Life {
    own: Side,
    peer: Side,
    moments: Vec<Moment>,
}

impl Life {
    fn note(&mut self) {
        let (own, peer) = (self.own.sync.node().to_owned(), self.peer.sync.node());
        let told = self.peer.store.sync_look(|tx| tx.outs(&own, 0, 1000, usize::MAX)).unwrap();
        let ids: Vec<u64> = told.iter().map(|row| row.id).collect();
        let said = said(&self.own.store, peer, &ids);
        self.moments.push(Moment { disk: Disk::of(self.own.store.dir()), ids, said });
    }

    fn submit(&mut self, id: &str) -> JobRow {
        let job = submit(&self.own, id);
        self.note();
        job
    }

    /// Changes a job from its revision in hand, which is one more then.
    fn update(&mut self, job: &mut JobRow, to: &str) {
        let body = br#"{"content": "a secret answer"}"#.to_vec();
        let answer = AnswerRow { status: 200, media_type: "application/json".into(), body };
        let answer = (to == "done").then_some(answer);
        let update = Update { answer, ..Update::of(job, ledger(to)) };
        assert_eq!(self.own.store.update_jobs(vec![update]).unwrap(), [Changed::Done]);
        job.revision += 1;
        self.note();
    }

    fn append(&mut self, job: &JobRow, end: i64) {
        let row = PieceRow { epoch: 1, end, pieces: format!("piece {end}").into_bytes() };
        let append = Append { n: job.n, id: job.id.clone(), revision: job.revision, row };
        assert_eq!(self.own.store.append_pieces(vec![append]).unwrap(), [true]);
        self.note();
    }

    fn change(&mut self, change: Change) {
        assert!(self.own.sync.change(change).unwrap());
        self.note();
    }

    /// The two speak, now one and now the other first, until neither has more to say.
    fn exchange(&mut self) {
        let nodes = [&self.own, &self.peer].map(|side| side.sync.node().to_owned());
        for n in 0..50 {
            let more = if n % 2 == 0 {
                let asked = self.own.sync.ask(&nodes[1]).unwrap();
                let (answer, _) = self.peer.sync.answer(&nodes[0], &asked).unwrap();
                let heard = self.own.sync.hear(&nodes[1], &answer).unwrap();
                self.note();
                heard.has_more
            } else {
                let asked = self.peer.sync.ask(&nodes[0]).unwrap();
                let (answer, _) = self.own.sync.answer(&nodes[1], &asked).unwrap();
                self.note();
                self.peer.sync.hear(&nodes[0], &answer).unwrap().has_more
            };
            if !more {
                return;
            }
        }
        panic!("they go on and on");
    }
}

/// What was written of the same key on both sides ends as a copy, of a kind that makes no sense set
/// aside, and a job that is taken back asks somebody to look.
fn live(life: &mut Life) {
    for i in 0..3 {
        let (id, asleep) = (format!("job-{i}"), format!("bad-{i}"));
        let mut job = life.submit(&id);
        life.update(&mut job, "running");
        (1..3).for_each(|end| life.append(&job, end));
        life.exchange();
        life.change(change("setting", "temp", json!({ "value": i })));
        let told = [
            change("setting", "temp", json!({ "value": 10 + i })),
            change("job", &id, json!({ "state": "cancelled" })),
            Change { rank: 4, ..change("job", &asleep, json!({ "state": "asleep" })) },
            change("of-tomorrow", &id, json!([i])),
        ];
        for told in told {
            life.peer.sync.change(told).unwrap();
        }
        life.peer.sync.tell_own("feedback", &i.to_string(), json!({ "n": i })).unwrap();
        life.update(&mut job, "done");
        life.exchange();
        assert_eq!(acts(&life.own), [id.as_str()], "it was taken back when it was over");
        life.own.store.sync(move |tx| tx.drop_act("job", &id)).unwrap();
        life.note();
    }
    // Enough for the log to go to its places and to begin anew, again and again.
    for i in 3..17u8 {
        let body = json!({ "prompt": char::from(b'a' + i).to_string().repeat(300_000) });
        let body = body.to_string().into_bytes();
        let new = NewJobRow {
            id: format!("job-{i}"),
            endpoint: "/completion".to_owned(),
            body,
            n_attempt_max: 3,
            ledger: ledger("queued"),
            ..NewJobRow::default()
        };
        let limits = QueueLimits { n_max: 99, bytes_max: 1 << 30 };
        assert!(matches!(life.own.store.insert_job(new, limits).unwrap(), Insert::New(_)));
        life.note();
    }
}

/// A long text in short.
fn short(what: &str, text: &[u8]) -> String {
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    format!("{what}: {} bytes, {:x}", text.len(), hasher.finish())
}

/// Everything that a store says, opened; of the inbox, which of these ids it has.
fn said(store: &Store, peer: &str, ids: &[u64]) -> Vec<String> {
    let mut said = Vec::new();
    let all = JobFilter { n_max: 1000, ..JobFilter::default() };
    for job in store.jobs(&all).unwrap() {
        said.push(short(&format!("body of {}", job.id), &store.job_body(&job).unwrap()));
        said.push(format!("{:?}", store.job_answer(&job).unwrap()));
        said.push(format!("{:?}", store.job_pieces(&job, 1, 0).unwrap()));
        said.push(format!("{job:?}"));
    }
    said.push(format!("{:?}", store.job_counts().unwrap()));
    store.sync_look(|tx| tables(tx, peer, ids, &mut said)).unwrap();
    said
}

fn tables(
    tx: &mut SyncTx<'_>,
    peer: &str,
    ids: &[u64],
    said: &mut Vec<String>,
) -> Result<(), StoreError> {
    said.push(format!("clock {}, link {:?}", tx.clock()?, tx.link(peer)?));
    for row in tx.outs(peer, 0, 1000, usize::MAX)? {
        let text = row.text.as_deref().expect("it opens");
        said.push(short(&format!("out {} {} {}", row.seq, row.id, row.n_bytes), text));
    }
    // A look writes nothing, so what is new to the inbox fails.
    let seen = ids.iter().filter(|id| matches!(tx.see(peer, **id), Ok(false)));
    said.push(format!("seen {:?}", seen.collect::<Vec<&u64>>()));
    for kind in KINDS {
        for row in tx.records(kind, 1000)? {
            said.push(format!("{row:?}"));
            let copies = tx.copies(kind, &row.key)?;
            said.push(format!("copies {copies:?}"));
        }
    }
    said.push(format!("held {:?}", tx.held()?));
    said.push(format!("acts {:?}", tx.acts(0, 1000)?));
    Ok(())
}

#[test]
fn a_disk_that_loses_and_reorders_what_was_not_synced_leaves_one_moment_or_the_next() {
    let (home, pc_home) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (own, peer) = (open(home.path()), open(pc_home.path()));
    pair(&own, &peer);
    let of = peer.sync.node().to_owned();
    let mut life = Life { own, peer, moments: Vec::new() };
    life.note();
    live(&mut life);
    let moments = std::mem::take(&mut life.moments);
    drop(life);
    let said_last = moments.last().unwrap().said.join("\n");
    for told in ["seen [", "out ", "held [HeldRow", "copies [RecordRow", "of-tomorrow"] {
        assert!(said_last.contains(told), "no {told} in it");
    }
    assert!(moments.iter().any(|moment| moment.said.iter().any(|of| of.contains("ActRow"))));
    // The canary: after each write it says something else, so a disk that loses one is found out.
    let is_seen =
        |pair: &[Moment]| pair[0].disk.log == pair[1].disk.log || pair[0].said != pair[1].said;
    assert!(moments.windows(2).all(is_seen));
    let disks = || moments.windows(2).map(|pair| (&pair[0].disk, &pair[1].disk));
    let n_anew = disks().filter(|(a, b)| a.log[..LOG_HEADER] != b.log[..LOG_HEADER]).count();
    let n_moved = disks().filter(|(a, b)| a.file != b.file).count();
    assert!(n_anew > 2 && n_moved > 2, "{n_anew} logs, {n_moved} times to the file");
    let mut random = Random(1);
    let (mut n_before, mut n_after) = (0, 0);
    for (i, pair) in moments.windows(2).enumerate() {
        let [before, after] = pair else { continue };
        for _ in 0..3 {
            let torn = before.disk.torn(&after.disk, &mut random);
            let at = tempfile::tempdir().unwrap();
            fs::copy(home.path().join("device.key"), at.path().join("device.key")).unwrap();
            fs::write(at.path().join("state.db"), &torn.file).unwrap();
            fs::write(at.path().join("state.db-wal"), &torn.log).unwrap();
            let opened = Store::open(at.path()).unwrap_or_else(|error| panic!("{i}: {error}"));
            assert!(opened.notes.is_empty(), "{i}: {:?}", opened.notes);
            let said = said(&opened.store, &of, &after.ids);
            match () {
                () if said == before.said => n_before += 1,
                () if said == after.said => n_after += 1,
                () => panic!("write {i} left something else"),
            }
        }
    }
    println!("{} moments, {n_before} torn disks before, {n_after} after", moments.len());
    assert!(n_before > 12 && n_after > 12, "{n_before} before, {n_after} after");
}
