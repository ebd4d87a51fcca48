//! A disk in memory: transactions that break off at any write, and a state that can be put back.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::base::limits::{SYNC_COPIES_MAX, SYNC_SEEN_MAX};
use crate::sync::clock::Stamp;
use crate::sync::disk::{Disk, Front};
use crate::sync::link::Link;
use crate::sync::rules::Record;
use crate::sync::wire::Entry;

/// The power went in the middle of a transaction.
#[derive(Debug)]
pub struct Crash;

/// See the module.
#[derive(Clone, Default)]
pub struct Memory {
    pub node: String,
    pub peer: String,
    pub clock: Stamp,
    pub link: Link,
    pub outbox: BTreeMap<u64, (Entry, Front)>,
    pub seen: BTreeSet<u64>,
    pub seen_order: VecDeque<u64>,
    pub records: BTreeMap<(String, String), Record>,
    pub copies: BTreeMap<(String, String), Vec<Record>>,
    pub held: BTreeMap<u64, String>,
    /// How often each entry of the peer has taken effect.
    pub effects: BTreeMap<u64, u32>,
    /// Writes until the power goes.
    pub n_write_left: Option<u64>,
    /// The canary: nothing is known again.
    pub forgets: bool,
}

impl Memory {
    /// Runs a transaction, in which the power goes after so many writes, if it does.
    pub fn transact<T>(
        &mut self,
        n_write: Option<u64>,
        work: impl FnOnce(&mut Memory) -> Result<T, Crash>,
    ) -> Result<T, Crash> {
        let before = n_write.map(|_| self.clone());
        self.n_write_left = n_write;
        let result = work(self);
        match (result, before) {
            // The power goes before the commit at the latest.
            (Ok(_), Some(before)) if self.n_write_left == Some(0) => {
                *self = before;
                Err(Crash)
            }
            (Err(crash), Some(before)) => {
                *self = before;
                Err(crash)
            }
            (result, _) => {
                self.n_write_left = None;
                result
            }
        }
    }

    fn write(&mut self) -> Result<(), Crash> {
        match &mut self.n_write_left {
            None => Ok(()),
            Some(0) => Err(Crash),
            Some(n) => {
                *n -= 1;
                Ok(())
            }
        }
    }

    /// What took effect more than once.
    pub fn twice(&self) -> Option<String> {
        let found = self.effects.iter().find(|(_, n)| **n > 1);
        found.map(|(id, n)| format!("{}: {id:x} took effect {n} times", self.node))
    }

    /// What is kept of the outbox, counted anew.
    pub fn check(&self) -> Result<(), String> {
        let n_bytes: u64 = self.outbox.values().map(|(_, front)| front.n_bytes).sum();
        let seqs: Vec<u64> = self.outbox.keys().copied().collect();
        let expected: Vec<u64> = (self.link.base.seq + 1..=self.link.last).collect();
        if seqs != expected || n_bytes != self.link.n_bytes {
            return Err(format!("{}: {:?} for {seqs:?}, {n_bytes} bytes", self.node, self.link));
        }
        if self.seen.len() as u64 > SYNC_SEEN_MAX {
            return Err(format!("{}: {} ids are kept", self.node, self.seen.len()));
        }
        Ok(())
    }
}

impl Disk for Memory {
    type Error = Crash;

    fn node(&self) -> &str {
        &self.node
    }

    fn peers(&mut self) -> Result<Vec<String>, Crash> {
        Ok(vec![self.peer.clone()])
    }

    fn is_hub(&mut self, peer: &str) -> Result<bool, Crash> {
        Ok(peer == "pc")
    }

    fn clock(&mut self) -> Result<Stamp, Crash> {
        Ok(self.clock)
    }

    fn set_clock(&mut self, clock: Stamp) -> Result<(), Crash> {
        self.write()?;
        self.clock = clock;
        Ok(())
    }

    fn link(&mut self, _: &str) -> Result<Link, Crash> {
        Ok(self.link)
    }

    fn set_link(&mut self, _: &str, link: &Link) -> Result<(), Crash> {
        self.write()?;
        self.link = *link;
        Ok(())
    }

    fn put_entry(&mut self, _: &str, entry: &Entry, front: Front) -> Result<(), Crash> {
        self.write()?;
        self.outbox.insert(entry.seq, (entry.clone(), front));
        Ok(())
    }

    fn entries(
        &mut self,
        _: &str,
        from: u64,
        n_max: usize,
        n_bytes_max: usize,
    ) -> Result<Vec<Entry>, Crash> {
        let mut n_bytes = 0;
        let mut found = Vec::new();
        for (entry, front) in self.outbox.range(from..).map(|(_, row)| row).take(n_max) {
            n_bytes += front.n_bytes as usize;
            if !found.is_empty() && n_bytes > n_bytes_max {
                break;
            }
            found.push(entry.clone());
        }
        Ok(found)
    }

    fn entry_id(&mut self, _: &str, seq: u64) -> Result<Option<u64>, Crash> {
        Ok(self.outbox.get(&seq).map(|(entry, _)| entry.id))
    }

    fn front(&mut self, _: &str) -> Result<Option<Front>, Crash> {
        Ok(self.outbox.values().next().map(|(_, front)| *front))
    }

    fn drop_entry(&mut self, _: &str, seq: u64) -> Result<(), Crash> {
        self.write()?;
        self.outbox.remove(&seq);
        Ok(())
    }

    fn shift_entries(&mut self, _: &str, n: u64) -> Result<(), Crash> {
        self.write()?;
        let moved = std::mem::take(&mut self.outbox).into_iter().map(|(seq, (entry, front))| {
            let seq = seq + n;
            (seq, (Entry { seq, ..entry }, Front { seq, ..front }))
        });
        self.outbox = moved.collect();
        Ok(())
    }

    fn is_new(&mut self, _: &str, id: u64) -> Result<bool, Crash> {
        self.write()?;
        if self.seen.insert(id) {
            self.seen_order.push_back(id);
            while self.seen_order.len() as u64 > SYNC_SEEN_MAX {
                let oldest = self.seen_order.pop_front();
                oldest.map(|oldest| self.seen.remove(&oldest));
            }
            return Ok(true);
        }
        Ok(self.forgets)
    }

    fn record(&mut self, kind: &str, key: &str) -> Result<Option<Record>, Crash> {
        Ok(self.records.get(&(kind.to_owned(), key.to_owned())).cloned())
    }

    fn put_record(&mut self, record: &Record) -> Result<(), Crash> {
        self.write()?;
        let name = (record.entry.kind.clone(), record.entry.key.clone());
        self.records.insert(name, record.clone());
        Ok(())
    }

    fn put_copy(&mut self, record: &Record) -> Result<(), Crash> {
        self.write()?;
        let name = (record.entry.kind.clone(), record.entry.key.clone());
        let copies = self.copies.entry(name).or_default();
        copies.push(record.clone());
        if copies.len() as u64 > SYNC_COPIES_MAX {
            copies.remove(0);
        }
        Ok(())
    }

    fn act(&mut self, _: &str, entry: &Entry) -> Result<(), Crash> {
        self.write()?;
        *self.effects.entry(entry.id).or_default() += 1;
        Ok(())
    }

    fn hold(&mut self, _: &str, entry: &Entry, why: &str) -> Result<(), Crash> {
        self.write()?;
        self.held.insert(entry.id, why.to_owned());
        Ok(())
    }
}
