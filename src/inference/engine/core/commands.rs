//! What callers ask for between two steps.

use super::Core;
use crate::inference::engine::EnginePhase;
use crate::inference::engine::handle::{Command, SlotView};

impl Core {
    /// Does what a caller asked for between two steps.
    pub fn obey(&mut self, command: Command) {
        if command.computes() {
            self.tell_phase(EnginePhase::Prefill);
        }
        match command {
            Command::Embed { tokens, pooling, reply } => match self.embed(&tokens, pooling) {
                Some(result) => reply.send(result),
                None => self.deferred.push(Command::Embed { tokens, pooling, reply }),
            },
            Command::Rerank { tokens, reply } => match self.rerank(&tokens) {
                Some(result) => reply.send(result),
                None => self.deferred.push(Command::Rerank { tokens, reply }),
            },
            Command::Slots { reply } => {
                reply.send(Ok((0..self.slots.len()).map(|slot| self.slot_view(slot)).collect()));
            }
            Command::SaveSlot { slot_idx, path, reply } => {
                reply.send(self.save_slot(slot_idx, &path));
            }
            Command::RestoreSlot { slot_idx, path, reply } => {
                reply.send(self.restore_slot(slot_idx, &path));
            }
            Command::EraseSlot { slot_idx, reply } => reply.send(self.erase_slot(slot_idx)),
        }
    }

    fn slot_view(&self, slot_idx: usize) -> SlotView {
        let running = self.sequences.iter().find(|s| s.slot_idx == Some(slot_idx));
        let idle =
            SlotView { slot_idx, n_past: self.slots[slot_idx].tokens.len(), ..SlotView::default() };
        running.map_or(idle, |sequence| SlotView {
            slot_idx,
            request_id: Some(sequence.group.request.id.clone()),
            n_prompt: sequence.n_prompt,
            n_past: sequence.n_kv,
            n_generated: sequence.timings.n_generated,
            n_predict: sequence.group.request.n_predict,
            sampler: sequence.group.request.sampler.clone(),
        })
    }
}
