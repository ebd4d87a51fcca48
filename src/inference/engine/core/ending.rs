//! How sequences end: by their own last token, by their caller, by the clock, or with an error.

use std::sync::Arc;

use super::guess::Pick;
use super::{Core, SlotState};
use crate::inference::backend::BackendError;
use crate::inference::engine::EngineError;
use crate::inference::engine::event::{Event, Finish};
use crate::inference::engine::sequence::{Group, Sequence};
use crate::inference::engine::stats::RequestTimeline;

impl Core {
    pub(super) fn end_those_who_should(&mut self) {
        let mut i = 0;
        while i < self.sequences.len() {
            let sequence = &self.sequences[i];
            if sequence.group.sender.is_canceled() {
                self.finish(i, Finish::Canceled);
            } else if sequence.is_late() {
                self.finish(i, Finish::TimeUp);
            } else {
                i += 1;
            }
        }
    }

    /// Ends everything that still runs or waits.
    pub fn abandon(&mut self) {
        for sequence in std::mem::take(&mut self.sequences) {
            sequence.group.sender.push(Event::Failed(Arc::new(EngineError::Stopping)));
            self.release(sequence);
        }
        self.gauge();
    }

    /// Ends the sequences whose last token was picked, and shifts those that are full.
    pub(super) fn close(&mut self, picks: Vec<Pick>) {
        let mut ended: Vec<(usize, Result<Finish, EngineError>)> = Vec::new();
        for Pick { i, end, .. } in picks {
            match end {
                Ok(Some(finish)) => ended.push((i, Ok(finish))),
                Err(error) => ended.push((i, Err(error))),
                Ok(None) if self.sequences[i].tokens.len() >= self.info.n_ctx => self.shift(i),
                Ok(None) => {}
            }
        }
        let is_empty_wish = |s: &Sequence| s.group.request.n_predict == Some(0);
        for (i, sequence) in self.sequences.iter().enumerate() {
            if is_empty_wish(sequence) && sequence.n_kv == sequence.tokens.len() {
                ended.push((i, Ok(Finish::Length)));
            }
        }
        ended.sort_by_key(|(i, _)| std::cmp::Reverse(*i));
        for (i, end) in ended {
            match end {
                Ok(finish) => self.finish(i, finish),
                Err(error) => {
                    let sequence = self.sequences.remove(i);
                    self.fail(&sequence.group, error);
                    self.release(sequence);
                }
            }
        }
    }

    /// Ends a sequence.
    pub(super) fn finish(&mut self, i: usize, finish: Finish) {
        self.keep(i);
        let mut sequence = self.sequences.remove(i);
        let finish = sequence.end(finish);
        self.stats.update(|stats| {
            stats.canceled_total += u64::from(finish == Finish::Canceled);
        });
        self.stats.finished(RequestTimeline {
            id: sequence.group.request.id.clone(),
            answer_idx: sequence.answer_idx,
            arrived_unix_ms: sequence.group.arrived_unix_ms,
            timings: sequence.timings,
            finish,
        });
        self.release(sequence);
    }

    pub(super) fn release(&mut self, mut sequence: Sequence) {
        self.forget_fetch(sequence.fetch.take());
        if let Some(slot_idx) = sequence.slot_idx {
            let mut tokens = sequence.tokens;
            tokens.truncate(sequence.n_kv);
            let scope = sequence.group.scope.clone();
            self.slots[slot_idx] = SlotState { tokens, scope };
        }
        sequence.pages.iter().for_each(|&page| self.pool.release(page));
        // Those who waited for its prefill go on alone.
        for other in &mut self.sequences {
            other.leader = other.leader.filter(|&leader| leader != sequence.id);
        }
    }

    pub(super) fn fail(&mut self, group: &Group, error: EngineError) {
        group.sender.push(Event::Failed(Arc::new(error)));
        group.sender.cancel();
        self.stats.update(|stats| stats.failed_total += 1);
    }

    /// A step that could not run: whoever was in the engine hears why.
    pub(super) fn fail_all(&mut self, error: &BackendError) {
        let reason = error.to_string();
        for sequence in std::mem::take(&mut self.sequences) {
            let error = EngineError::Step { reason: reason.clone() };
            self.fail(&sequence.group, error);
            self.release(sequence);
        }
    }
}
