//! Prefixes from the disk and to it, a few pages in each step.
//!
//! ```text
//! admit      memory has a part, the disk more: the sequence keeps its place and waits
//! collect    pages that came are written into the KV cache, in order
//! persist    a prompt went through the model: its pages shall be kept
//! hand_over  pages go to the disk's queue while it has room, from where they are in the cache
//! ```
//!
//! The engine never waits for the disk: others go on, and a prompt whose next page does not come in
//! time is computed. What waits to be kept holds no pages; if one leaves the KV cache before the
//! queue has room, it is not kept, which is counted.

use std::time::Instant;

use super::Core;
use crate::base::limits::{PREFIX_STEP_BYTES, PREFIX_STORES_MAX};
use crate::inference::backend::PAGE_LEN;
use crate::inference::disk_cache::{Letter, Miss};
use crate::inference::engine::disk_link::{Fetching, Keeping, Wish};

impl Core {
    /// Gives a sequence what memory has of its tokens, and asks the disk for more.
    pub(super) fn find_prefix(&mut self, i: usize, may_list: bool) {
        let sequence = &mut self.sequences[i];
        sequence.pages.drain(..).for_each(|page| self.pool.release(page));
        // The last token runs again in any case: its logits are not kept.
        let n = sequence.tokens.len() - 1;
        let scope = sequence.group.scope.clone();
        let found = self.cache.find(&mut self.pool, &scope, &sequence.tokens[..n]);
        sequence.n_kv = found.n_tokens();
        let have = (found.pages.len(), found.n_tokens());
        sequence.pages = found.pages;
        self.sequences[i].fetch = self.ask_disk(i, have, may_list);
        if self.sequences[i].fetch.is_some() {
            // The disk has more than the part of a page.
            self.sequences[i].n_kv = have.0 * PAGE_LEN;
        } else if let Some((page, _)) = found.partial {
            // Held while room is made for its copy.
            self.pool.retain(page);
            let copy = self.new_page();
            let copied = self.runner.copy_page(page, copy);
            self.pool.release(page);
            match copied {
                Ok(()) => self.sequences[i].pages.push(copy),
                // A GPU refuses what it cannot do: then this part is computed.
                Err(_) => {
                    self.pool.release(copy);
                    self.sequences[i].n_kv = have.0 * PAGE_LEN;
                }
            }
        }
    }

    fn ask_disk(&mut self, i: usize, have: (usize, usize), may_list: bool) -> Option<Fetching> {
        let link = self.disk.as_mut()?;
        let sequence = &self.sequences[i];
        let prompt = &sequence.tokens[..sequence.tokens.len() - 1];
        let token_us = self.pace.prefill_token_us();
        match link.wish(&sequence.group.scope, prompt, have, token_us) {
            Wish::Pages(keys, lens) => Some(link.fetch(keys, lens, token_us)),
            Wish::List if may_list => Some(link.fetch(Vec::new(), Default::default(), 0)),
            Wish::List | Wish::Nothing => None,
        }
    }

    /// Counts what a sequence has when it begins to compute.
    pub(super) fn count_cached(&mut self, i: usize) {
        let sequence = &mut self.sequences[i];
        if sequence.timings.n_generated == 0 {
            sequence.timings.n_cached = sequence.n_kv;
        }
        let n_cached = sequence.n_kv as u64;
        self.stats.update(|stats| stats.cached_tokens_total += n_cached);
    }

    /// Takes what came from the disk, and gives up what did not come in time.
    pub(super) fn collect(&mut self) {
        let mut n_left = PREFIX_STEP_BYTES;
        while n_left > 0
            && let Some(letter) = self.link().and_then(|link| link.letter())
        {
            n_left = n_left.saturating_sub(letter.page.as_ref().map_or(0, Vec::len));
            self.deliver(letter);
        }
        let now = Instant::now();
        for i in 0..self.sequences.len() {
            let is_late = |fetch: &Fetching| now >= fetch.stall_at;
            if self.sequences[i].fetch.as_ref().is_some_and(is_late) {
                self.stop_fetch(i, Some(Miss::Stalled));
            }
        }
    }

    fn deliver(&mut self, letter: Letter) {
        let is_its = |f: &Fetching| f.ticket == letter.ticket;
        let owner = self.sequences.iter().position(|s| s.fetch.as_ref().is_some_and(is_its));
        // Whoever asked may have left.
        let Some(i) = owner else { return };
        match letter.page {
            Ok(bytes) => self.take_page(i, &bytes),
            Err(None) => {
                self.find_prefix(i, false);
                if self.sequences[i].fetch.is_none() {
                    self.count_cached(i);
                }
            }
            // The rest is computed; the disk counted why.
            Err(Some(_)) => self.stop_fetch(i, None),
        }
    }

    /// Writes a page into the KV cache of the sequence that asked for it.
    fn take_page(&mut self, i: usize, bytes: &[u8]) {
        let fetch = self.sequences[i].fetch.as_mut();
        let Some(n) = fetch.and_then(|fetch| fetch.lens.pop_front()) else { return };
        let page = self.new_page();
        self.sequences[i].pages.push(page);
        if self.runner.write_page(page, bytes).is_err() {
            return self.stop_fetch(i, Some(Miss::Failed));
        }
        let sequence = &mut self.sequences[i];
        sequence.n_kv += n;
        self.stats.update(|stats| stats.restored_tokens_total += n as u64);
        match sequence.fetch.as_mut() {
            Some(fetch) if !fetch.lens.is_empty() => fetch.renew(Instant::now()),
            _ => self.stop_fetch(i, None),
        }
        self.keep(i);
        self.sequences[i].report_progress();
    }

    /// Goes on with what came so far.
    fn stop_fetch(&mut self, i: usize, miss: Option<Miss>) {
        let Some(fetch) = self.sequences[i].fetch.take() else { return };
        if let Some(link) = self.link() {
            link.cancel(&fetch);
            miss.into_iter().for_each(|miss| link.cache.count_miss(miss, fetch.lens.len() as u64));
        }
        self.count_cached(i);
    }

    /// Wants nothing of the disk any more for a sequence that leaves its place.
    pub(super) fn forget_fetch(&self, fetch: Option<Fetching>) {
        if let Some((fetch, link)) = fetch.zip(self.link()) {
            link.cancel(&fetch);
        }
    }

    /// Notes that a prompt went through the model.
    pub(super) fn persist(&mut self, i: usize) {
        let Some(link) = &mut self.disk else { return };
        let sequence = &self.sequences[i];
        let group = &sequence.group;
        if !group.request.uses_cache || sequence.was_shifted || !link.takes(sequence.n_prompt) {
            return;
        }
        // Not the last token: whoever asks the same again computes it anyway, and looks for the
        // rest.
        let tokens = sequence.tokens[..sequence.n_prompt - 1].to_vec();
        if link.keeping.len() >= PREFIX_STORES_MAX {
            return link.cache.count_lost(tokens.len().div_ceil(PAGE_LEN) as u64);
        }
        link.keeping.push_back(Keeping { scope: group.scope.clone(), tokens, n_done: 0, at: None });
    }

    /// Hands pages to the disk's queue, as many as a step may.
    pub(super) fn hand_over(&mut self) {
        let token_us = self.pace.prefill_token_us();
        let Some(link) = &mut self.disk else { return };
        if link.has_failed() {
            return link.lose_all();
        }
        let mut n_left = PREFIX_STEP_BYTES;
        while n_left > 0 && link.has_keeping() && link.has_room() {
            let next = link.next_page().filter(|&(_, n)| link.is_faster(1, n, token_us));
            let (Some((key, n)), Some(keeping)) = (next, link.keeping.front_mut()) else {
                link.keeping.pop_front();
                continue;
            };
            keeping.n_done += n;
            keeping.at = Some(key);
            if link.cache.has(&key) {
                continue;
            }
            let tokens = &keeping.tokens[..keeping.n_done];
            let mut bytes = vec![0; self.runner.page_bytes()];
            let page = self.cache.page_at(&keeping.scope, tokens);
            match page.map(|page| self.runner.read_page(page, &mut bytes)) {
                Some(Ok(())) => link.cache.store(key, bytes),
                _ => {
                    let n_lost = keeping.tokens.len().div_ceil(PAGE_LEN);
                    link.cache.count_lost((n_lost - (keeping.n_done - n) / PAGE_LEN) as u64);
                    link.keeping.pop_front();
                }
            }
            n_left = n_left.saturating_sub(link.page_bytes());
        }
    }

    /// Whether every step would find nothing to do until the disk has done something.
    pub fn is_waiting(&self) -> bool {
        let Some(link) = self.link() else { return false };
        let is_held = match self.sequences.is_empty() {
            true => self.deferred.is_empty(),
            // The others have no place and get none before somebody leaves.
            false => {
                self.sequences.iter().any(|s| s.fetch.is_some())
                    && self.sequences.iter().all(|s| s.fetch.is_some() || s.slot_idx.is_none())
            }
        };
        is_held && !link.has_letter() && !(link.has_keeping() && link.has_room())
    }
}
