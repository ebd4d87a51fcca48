//! Saved and restored slots, as llama.cpp's clients know them.

use std::path::Path;

use super::EngineError;
use super::core::{Core, SlotState};
use super::handle::SlotFile;

impl Core {
    fn slot(&mut self, slot_idx: usize) -> Result<&mut SlotState, EngineError> {
        let n_slot = self.slots.len();
        self.slots.get_mut(slot_idx).ok_or(EngineError::Slot { slot_idx, n_slot })
    }

    /// Writes what a slot's last sequence left in the prefix cache.
    pub fn save_slot(&mut self, slot_idx: usize, path: &Path) -> Result<SlotFile, EngineError> {
        self.slot(slot_idx)?;
        let reason = "this backend cannot write pages".to_owned();
        Err(EngineError::SlotFile { path: path.display().to_string(), reason })
    }

    /// Brings a saved slot into the prefix cache.
    pub fn restore_slot(&mut self, slot_idx: usize, path: &Path) -> Result<SlotFile, EngineError> {
        self.save_slot(slot_idx, path)
    }

    /// Forgets what a slot's last sequence left in the prefix cache; how many tokens.
    pub fn erase_slot(&mut self, slot_idx: usize) -> Result<usize, EngineError> {
        let state = std::mem::take(self.slot(slot_idx)?);
        self.cache.forget(&mut self.pool, &state.scope, &state.tokens);
        Ok(state.tokens.len())
    }
}
