//! Two nodes, a network and two disks, all of which do what they should not, from one seed.
//!
//! ```text
//! network   drops, delays, doubles, reorders, cuts at a byte, answers nobody, parts for a while
//! clocks    a day off and back, or never set at all
//! power     goes between any two writes of a transaction, or behind its commit
//! disks     of some seeds lie: they lose transactions that they had acknowledged
//! ```
//!
//! After every event: each counter is what counting says, nothing took effect twice, what is kept
//! is bounded. When the faults stop: all that was acknowledged has arrived, or was counted as lost
//! where the bounds were small, and both sides know the same. A thousand seeds take about a second;
//! the test that is ignored runs a million, and says after each ten thousand how it went.

use std::collections::BTreeMap;

use serde_json::json;

use super::memory::{Crash, Memory};
use super::random::Random;
use crate::base::limits::{SYNC_FORK_EVERY_MS, SYNC_FORKS_MAX};
use crate::sync::clock::Stamp;
use crate::sync::link::{Bounds, Change, Talk, change, hear};
use crate::sync::pace::Pace;
use crate::sync::rules::JOB_STATES;
use crate::sync::say::compose;
use crate::sync::wire::{Hello, Limits, Mark, Message, SPEAKS};

/// When the world begins.
const BEGIN_MS: i64 = 1_795_000_000_000;
const DAY_MS: i64 = 24 * 3600 * 1000;
/// How long a call waits for its answer.
const TIMEOUT_MS: u64 = 4000;
/// Events of a run while things go wrong.
const N_EVENT: usize = 220;

struct Node {
    disk: Memory,
    /// What a disk that lies falls back to, and the event after which it was so.
    synced: (Memory, usize),
    talk: Talk,
    pace: Pace,
    skew_ms: i64,
    down_until: u64,
    /// The call that waits for its answer.
    call: Option<(u64, u64)>,
    calls: bool,
    limits: Limits,
}

struct Packet {
    due_ms: u64,
    to: usize,
    message: Message,
    is_answer: bool,
}

/// What is taken out of the machine, to see whether the simulation notices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Canary {
    /// Nothing.
    None,
    /// Entries are taken wherever they stand in the log: only their ids are looked at.
    Marks,
    /// Entries are taken whether they were before or not: only where they stand is looked at.
    Ids,
    /// Both.
    Both,
}

impl Canary {
    fn is_blind_to_marks(self) -> bool {
        matches!(self, Canary::Marks | Canary::Both)
    }

    fn is_blind_to_ids(self) -> bool {
        matches!(self, Canary::Ids | Canary::Both)
    }
}

/// What is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Wrong {
    /// Something took effect twice.
    Twice(String),
    /// Something that was acknowledged did not arrive, and nobody says so.
    Missing(String),
    /// A counter, or a bound.
    Counter(String),
    /// They do not come to rest.
    Restless(String),
    /// They know different things.
    Differ(String),
}

/// A change that was acknowledged.
struct Told {
    node: usize,
    event: usize,
    name: (String, String),
    is_void: bool,
}

#[derive(Default)]
struct Stats {
    n_told: u64,
    n_exchange: u64,
    n_crash: u64,
    n_rollback: u64,
    n_fork: u64,
    n_known: u64,
    n_copy: u64,
    n_held: u64,
    n_lost: u64,
}

struct World {
    random: Random,
    now_ms: u64,
    event: usize,
    nodes: [Node; 2],
    packets: Vec<Packet>,
    told: BTreeMap<u64, Told>,
    /// Acknowledged by a disk that lied.
    rolled: BTreeMap<u64, ()>,
    bounds: Bounds,
    lies: bool,
    canary: Canary,
    parted_until: u64,
    is_calm: bool,
    stats: Stats,
}

impl World {
    fn new(seed: u64, canary: Canary) -> World {
        let mut random = Random(seed);
        let who_calls = random.below(3);
        let small = random.percent(15);
        let bounds = match small {
            true => Bounds { n_max: 6, bytes_max: 4000, n_keep: 2, keep_bytes: 2000, n_fork: 1000 },
            false => Bounds {
                n_max: 10_000,
                bytes_max: 1 << 24,
                n_keep: 10_000,
                keep_bytes: 1 << 24,
                n_fork: 1000,
            },
        };
        let tight = random.percent(10);
        let nodes = [0, 1].map(|i: usize| {
            let disk = Memory {
                node: ["nano", "pc"][i].into(),
                peer: ["pc", "nano"][i].into(),
                forgets: canary.is_blind_to_ids(),
                ..Memory::default()
            };
            let n_entry = 1 + random.below(20) as usize;
            let entry_bytes = if tight { 600 } else { 100_000 };
            Node {
                synced: (disk.clone(), 0),
                disk,
                talk: Talk::default(),
                pace: Pace::default(),
                // The board's clock may never have been set.
                skew_ms: if i == 0 && random.percent(20) { -BEGIN_MS } else { 0 },
                down_until: 0,
                call: None,
                calls: who_calls == 2 || who_calls == i as u64,
                limits: Limits { n_entry, entry_bytes, message_bytes: 5000 },
            }
        });
        let lies = !small && random.percent(25);
        World {
            random,
            now_ms: 0,
            event: 0,
            nodes,
            packets: Vec::new(),
            told: BTreeMap::new(),
            rolled: BTreeMap::new(),
            bounds,
            lies,
            canary,
            parted_until: 0,
            is_calm: false,
            stats: Stats::default(),
        }
    }

    fn wall_ms(&self, i: usize) -> i64 {
        BEGIN_MS + self.now_ms as i64 + self.nodes[i].skew_ms
    }

    fn is_up(&self, i: usize) -> bool {
        self.nodes[i].down_until <= self.now_ms
    }

    fn id(&mut self) -> u64 {
        self.random.next() | 1
    }

    /// Whether, and after how many writes, the power goes in the next transaction.
    fn blow(&mut self) -> Option<u64> {
        (!self.is_calm && self.random.percent(4)).then(|| self.random.below(12))
    }

    fn crash(&mut self, i: usize) {
        self.stats.n_crash += 1;
        let pause = self.random.below(5000);
        let falls_back = self.lies && self.random.percent(50);
        let node = &mut self.nodes[i];
        node.talk = Talk::default();
        node.pace = Pace::default();
        node.call = None;
        node.down_until = self.now_ms + pause;
        if falls_back {
            self.stats.n_rollback += 1;
            node.disk = node.synced.0.clone();
            let after = node.synced.1;
            let lost = self.told.iter().filter(|(_, told)| told.node == i && told.event > after);
            self.rolled.extend(lost.map(|(id, _)| (*id, ())));
        }
    }

    /// Something changes on a node.
    fn write(&mut self, i: usize) {
        let unique = self.random.next() % 1_000_000_007;
        let (kind, key, rank, mut body) = match self.random.below(10) {
            0..3 => ("setting", format!("s{}", unique % 3), 0, json!({ "value": unique })),
            3..6 => {
                // Who does not run a job can only take it back.
                let is_own = unique % 2 == i as u64;
                let rank = if is_own { self.random.below(5) as u8 } else { 1 };
                let (key, state) = (format!("j{}", unique % 4), JOB_STATES[rank as usize]);
                ("job", key, rank, json!({ "state": state, "n": unique }))
            }
            6 => ("of-tomorrow", format!("t{unique}"), 7, json!([unique])),
            7 => ("job", format!("bad{unique}"), 2, json!({ "state": "asleep" })),
            _ => ("feedback", format!("f{unique}"), 0, json!({ "text": unique })),
        };
        if body.is_object() && self.random.percent(20) {
            body["text"] = "x".repeat(self.random.below(900) as usize).into();
        }
        let name = (kind.to_owned(), key.clone());
        let id = self.id();
        let is_void =
            body.to_string().len() + key.len() + 256 > self.nodes[1 - i].limits.entry_bytes;
        let is_void = is_void || key.starts_with("bad");
        let made = Change { kind: name.0.clone(), key, rank, body, to: None, is_elsewhere: false };
        let (blow, now, bounds) = (self.blow(), self.wall_ms(i), self.bounds);
        let node = &mut self.nodes[i];
        let done = node.disk.transact(blow, |disk| change(disk, made, id, now, &bounds));
        match done {
            Err(Crash) => self.crash(i),
            Ok(false) => {}
            Ok(true) => {
                self.stats.n_told += 1;
                self.told.insert(id, Told { node: i, event: self.event, name, is_void });
                node.pace.has_news(self.now_ms);
            }
        }
    }

    fn say(&mut self, i: usize) -> Option<Message> {
        let (nonce, blow) = (self.id(), self.blow());
        let node = &mut self.nodes[i];
        let hello = Hello {
            node: node.disk.node.clone(),
            program: String::new(),
            speaks: SPEAKS,
            limits: node.limits,
        };
        node.talk.say(nonce);
        let (peer, talk) = (node.disk.peer.clone(), &node.talk);
        let limits = node.disk.link.limits;
        let said =
            node.disk.transact(blow, |disk| compose(disk, &peer, &hello, talk, nonce, limits));
        if said.is_err() {
            self.crash(i);
        }
        said.ok()
    }

    fn send(&mut self, to: usize, message: Message, is_answer: bool) {
        if self.is_calm {
            self.packets.push(Packet { due_ms: self.now_ms + 5, to, message, is_answer });
            return;
        }
        if self.parted_until > self.now_ms || self.random.percent(10) {
            return;
        }
        if self.random.percent(3) {
            let bytes = message.write();
            let n = self.random.below(bytes.len() as u64) as usize;
            assert!(Message::read(&bytes[..n]).is_err(), "a message that was cut is none");
            return;
        }
        let n_copy = if self.random.percent(10) { 2 } else { 1 };
        for _ in 0..n_copy {
            let far = if self.random.percent(5) { 60_000 } else { 1500 };
            let due_ms = self.now_ms + 1 + self.random.below(far);
            self.packets.push(Packet { due_ms, to, message: message.clone(), is_answer });
        }
    }

    fn call(&mut self, i: usize) {
        let Some(message) = self.say(i) else { return };
        self.stats.n_exchange += 1;
        self.nodes[i].call = Some((message.nonce, self.now_ms + TIMEOUT_MS));
        self.send(1 - i, message, false);
    }

    fn deliver(&mut self, packet: Packet) {
        let Packet { to: i, mut message, is_answer, .. } = packet;
        if !self.is_up(i) {
            return;
        }
        let (blow, now, bounds) = (self.blow(), self.wall_ms(i), self.bounds);
        let node = &mut self.nodes[i];
        let last = message.entries.last().map(|entry| entry.mark());
        if self.canary.is_blind_to_marks() {
            let mut at = node.disk.link.cursor;
            message.prev = at;
            for entry in &mut message.entries {
                entry.seq = at.seq + 1;
                at = entry.mark();
            }
        }
        let peer = node.disk.peer.clone();
        assert_eq!(message.check(&node.disk.node, &peer), Ok(()));
        let is_fresh = node.talk.is_fresh(&message);
        let n_copy: usize = node.disk.copies.values().map(Vec::len).sum();
        let heard =
            node.disk.transact(blow, |disk| hear(disk, &peer, &message, is_fresh, now, &bounds));
        let Ok(heard) = heard else { return self.crash(i) };
        if let (Some(last), true) = (last, self.canary.is_blind_to_marks()) {
            node.disk.link.cursor = last;
        }
        self.stats.n_copy +=
            (node.disk.copies.values().map(Vec::len).sum::<usize>() - n_copy) as u64;
        self.stats.n_known += heard.n_known as u64;
        self.stats.n_held += heard.n_held as u64;
        self.stats.n_fork += u64::from(heard.is_forked);
        node.talk.heard(message.nonce, heard.is_moved);
        if is_answer {
            // An answer that nobody waits for any more is heard all the same.
            if node.call.is_some_and(|(nonce, _)| nonce == message.re) {
                node.call = None;
                node.pace.succeeded(self.now_ms, heard.has_more);
            }
            return;
        }
        node.pace.is_there(self.now_ms);
        if let Some(answer) = self.say(i) {
            self.send(1 - i, answer, true);
        }
    }

    /// What goes on by itself: calls, answers, and calls that nobody answered.
    fn run_due(&mut self) {
        while let Some(at) = self.packets.iter().position(|packet| packet.due_ms <= self.now_ms) {
            let packet = self.packets.swap_remove(at);
            self.deliver(packet);
        }
        for i in [0, 1] {
            let random = self.random.next();
            let (now, is_up) = (self.now_ms, self.is_up(i));
            let node = &mut self.nodes[i];
            if node.call.is_some_and(|(_, deadline)| deadline <= now) {
                node.call = None;
                node.pace.failed(now, random);
            }
            if is_up && node.calls && node.call.is_none() && node.pace.due_ms() <= now {
                self.call(i);
            }
        }
    }

    fn disturb(&mut self) {
        for i in [0, 1] {
            if self.random.percent(25) && self.is_up(i) {
                self.write(i);
            }
            if self.random.percent(2) && self.is_up(i) {
                self.crash(i);
            }
            if self.random.percent(5) && self.is_up(i) {
                self.nodes[i].synced = (self.nodes[i].disk.clone(), self.event);
            }
            if self.random.percent(2) {
                self.nodes[i].skew_ms = self.random.below(3) as i64 * DAY_MS - DAY_MS;
            }
        }
        if self.random.percent(2) {
            self.parted_until = self.now_ms + self.random.below(120_000);
        }
    }

    fn check(&self) -> Result<(), Wrong> {
        for node in &self.nodes {
            if let Some(twice) = node.disk.twice() {
                return Err(Wrong::Twice(twice));
            }
            node.disk.check().map_err(Wrong::Counter)?;
            let (n, link) = (node.disk.outbox.len() as u64, &node.disk.link);
            if n > self.bounds.n_max || link.n_bytes > self.bounds.bytes_max {
                let what = format!("{}: {n} entries, {} bytes", node.disk.node, link.n_bytes);
                return Err(Wrong::Counter(what));
            }
        }
        Ok(())
    }

    fn is_settled(&self) -> bool {
        let is_quiet = |node: &Node| {
            node.disk.link.n_waiting() == 0
                && node.disk.link.n_to_come() == 0
                && node.disk.link.limits.n_entry > 0
        };
        let knows = |i: usize| {
            let (own, other) = (&self.nodes[i].disk.link, &self.nodes[1 - i].disk.link);
            own.acked == other.cursor.seq
                && own.last == other.cursor.seq
                && own.n_lost == other.their_lost
                && own.n_missed == other.their_missed
        };
        self.nodes.iter().all(is_quiet) && knows(0) && knows(1)
    }

    /// What has to be so when nothing goes wrong any more.
    fn settle(&mut self) -> Result<(), Wrong> {
        self.is_calm = true;
        self.packets.retain(|packet| packet.due_ms < self.now_ms + 5000);
        self.parted_until = 0;
        for _ in 0..3000 {
            self.now_ms += 100;
            self.run_due();
            self.check()?;
            if self.is_settled() && self.packets.is_empty() {
                return self.check_end();
            }
        }
        let links: Vec<String> = self.nodes.iter().map(|n| format!("{:?}", n.disk.link)).collect();
        Err(Wrong::Restless(format!("{links:#?}")))
    }

    fn check_end(&mut self) -> Result<(), Wrong> {
        let mut odd = std::collections::BTreeSet::new();
        let mut n_missing = [0, 0];
        for (id, told) in &self.told {
            let other = &self.nodes[1 - told.node].disk;
            let arrived = match told.is_void {
                true => other.held.contains_key(id),
                false => other.effects.get(id) == Some(&1),
            };
            let is_rolled = self.rolled.contains_key(id);
            if !arrived || is_rolled || told.is_void {
                odd.insert(told.name.clone());
            }
            n_missing[told.node] += u64::from(!arrived && !is_rolled);
        }
        for i in [0, 1] {
            let [own, other] = [i, 1 - i].map(|i| &self.nodes[i].disk.link);
            let n_lost = own.n_lost.max(other.n_missed);
            self.stats.n_lost += n_missing[i];
            let is_strange = n_lost > 0 && self.bounds.n_max > 1000 && !self.lies;
            if n_missing[i] > n_lost || is_strange {
                let what = format!("{} missing, {n_lost} said to be lost", n_missing[i]);
                return Err(Wrong::Missing(what));
            }
            if own.n_lost_ever() != other.n_lost_ever() {
                return Err(Wrong::Counter("they count the lost otherwise".to_owned()));
            }
        }
        let [a, b] = &self.nodes;
        for (name, record) in &a.disk.records {
            let other = b.disk.records.get(name).map(|record| record.entry.id);
            if !odd.contains(name) && other != Some(record.entry.id) {
                return Err(Wrong::Differ(format!("{name:?}")));
            }
        }
        Ok(())
    }
}

fn run(seed: u64, canary: Canary) -> Result<Stats, Wrong> {
    let mut world = World::new(seed, canary);
    for event in 1..=N_EVENT {
        world.event = event;
        world.now_ms += world.random.below(700);
        world.disturb();
        world.run_due();
        world.check()?;
    }
    world.settle()?;
    Ok(world.stats)
}

fn run_many(seeds: std::ops::Range<u64>) {
    let mut sum = Stats::default();
    let n = seeds.end - seeds.start;
    for seed in seeds {
        let stats = run(seed, Canary::None);
        let stats = stats.unwrap_or_else(|wrong| panic!("seed {seed}: {wrong:?}"));
        sum.n_told += stats.n_told;
        sum.n_exchange += stats.n_exchange;
        sum.n_crash += stats.n_crash;
        sum.n_rollback += stats.n_rollback;
        sum.n_fork += stats.n_fork;
        sum.n_known += stats.n_known;
        sum.n_copy += stats.n_copy;
        sum.n_held += stats.n_held;
        sum.n_lost += stats.n_lost;
    }
    println!(
        "{n} seeds: {} changes, {} calls, {} crashes, {} of them losing what a disk had \
         acknowledged, {} logs laid anew, {} entries known again, {} copies, {} set aside, {} \
         beyond the bounds",
        sum.n_told,
        sum.n_exchange,
        sum.n_crash,
        sum.n_rollback,
        sum.n_fork,
        sum.n_known,
        sum.n_copy,
        sum.n_held,
        sum.n_lost
    );
    let all = [sum.n_crash, sum.n_rollback, sum.n_fork, sum.n_known, sum.n_copy, sum.n_held];
    assert!(all.iter().all(|n| *n > 0), "each fault happens");
}

#[test]
fn nothing_is_lost_and_nothing_happens_twice() {
    run_many(0..10_000);
    // Two that called each other at the same moments for ever, one of them set back in time.
    run_many(72_940..72_960);
}

#[test]
#[ignore = "a million seeds: a quarter of an hour of an optimised build"]
fn nothing_is_lost_in_a_million_runs() {
    (0..100).for_each(|i| run_many(i * 10_000..(i + 1) * 10_000));
}

/// How many of 300 seeds find what each canary does wrong, and what else they find.
fn sing(canary: Canary, is_it: impl Fn(&Wrong) -> bool) -> (usize, Vec<Wrong>) {
    let found: Vec<Wrong> = (0..300).filter_map(|seed| run(seed, canary).err()).collect();
    let (right, other): (Vec<Wrong>, Vec<Wrong>) = found.into_iter().partition(is_it);
    (right.len(), other)
}

#[test]
fn a_machine_that_takes_what_it_had_before_is_found_out_by_its_effects() {
    let (n, other) = sing(Canary::Both, |wrong| matches!(wrong, Wrong::Twice(_)));
    assert!(n > 150, "{n} of 300, and {other:?}");
}

#[test]
fn a_machine_that_knows_no_ids_takes_again_what_a_log_laid_anew_brings_back() {
    let (n, other) = sing(Canary::Ids, |wrong| matches!(wrong, Wrong::Twice(_)));
    // Only a disk that lies brings something back that stands elsewhere in the log.
    assert!(n > 10 && other.is_empty(), "{n} of 300, and {other:?}");
}

#[test]
fn a_machine_that_knows_no_marks_loses_what_was_overtaken() {
    let (n, other) = sing(Canary::Marks, |wrong| matches!(wrong, Wrong::Missing(_)));
    assert!(n > 30, "{n} of 300, and {other:?}");
    assert!(!other.iter().any(|wrong| matches!(wrong, Wrong::Twice(_))), "ids alone see to that");
}

/// A link whose peer says each time that it has another log than ours.
fn rival(disk: &mut Memory, n: u64, now_ms: i64) -> (bool, bool) {
    let hello =
        Hello { node: "pc".into(), program: String::new(), speaks: SPEAKS, limits: Limits::OURS };
    let empty = Mark::default();
    let message = Message {
        hello,
        to: "nano".into(),
        nonce: n,
        re: 0,
        clock: Stamp::default(),
        has: Mark { seq: disk.link.last + 1000, id: n },
        base: empty,
        prev: empty,
        last: 0,
        n_lost: 0,
        n_missed: 0,
        entries: Vec::new(),
    };
    let heard = hear(disk, "pc", &message, false, now_ms, &Bounds::default()).unwrap();
    (heard.is_forked, heard.is_refused)
}

#[test]
fn a_log_is_laid_anew_so_often_and_no_more_until_time_has_passed() {
    let mut disk = Memory { node: "nano".into(), peer: "pc".into(), ..Memory::default() };
    let n_forked = (1..200).filter(|n| rival(&mut disk, *n, BEGIN_MS).0).count();
    assert_eq!(n_forked, SYNC_FORKS_MAX as usize);
    let before = disk.link;
    assert_eq!(rival(&mut disk, 300, BEGIN_MS), (false, true));
    assert_eq!(disk.link, before, "the message did nothing");
    assert_eq!(rival(&mut disk, 301, BEGIN_MS - DAY_MS), (false, true), "a clock set back");
    let later = BEGIN_MS + 2 * SYNC_FORK_EVERY_MS;
    assert_eq!(rival(&mut disk, 302, later), (true, false));
    assert_eq!(rival(&mut disk, 303, later), (true, false));
    assert_eq!(rival(&mut disk, 304, later), (false, true));
}
