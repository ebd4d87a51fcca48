//! The weights of a plan on the device: one allocation, filled piece by piece.
//!
//! ```text
//! arena    matrices that are multiplied, as strips, and vectors as f32, in the plan's order
//! host     tables that are looked up row by row stay in the mapped file
//!
//! load     in the file's order: some megabytes of rows, which the system reads ahead of us
//!          -> strips, by all threads -> the device -> counted, and the file's pages back
//!          what a file for this target has in strips is copied as it is
//! ```
//!
//! The arena is asked for before anything is read, so a model that does not fit says so at once.

use std::sync::Arc;

use super::driver::{Buffer, Device};
use super::launch::Matrix;
use super::strips::{STRIP_ROWS, pack_parts, pack_strip, strip_bytes};
use crate::base::limits::DEVICE_LOAD_BYTES;
use crate::inference::backend::bound::{Stored, Weight, bind, bind_all, multiplied};
use crate::inference::backend::{BackendError, LoadProgress, Plan, WeightId};
use crate::inference::gguf::{Gguf, ReadAhead};
use crate::inference::quant::panel::PANEL_ROWS;
use crate::inference::quant::{Form, TensorType};

/// Where matrices and vectors begin in the arena.
const ALIGNMENT: usize = 256;

enum Item {
    Vector(Buffer),
    Matrix(Matrix),
    /// Rows of the file.
    Table(Stored),
}

/// The weights of a plan.
pub struct Weights {
    gguf: Arc<Gguf>,
    items: Vec<Item>,
}

impl Weights {
    /// Bytes of the arena.
    pub fn n_bytes(plan: &Plan, gguf: &Gguf) -> u64 {
        let sizes = plan.weights.iter().zip(multiplied(plan)).map(|(spec, is_multiplied)| {
            bind(gguf, spec).map_or(0, |weight| size(&weight, is_multiplied))
        });
        sizes.map(|n| n.next_multiple_of(ALIGNMENT) as u64).sum()
    }

    /// Types of the matrices that are multiplied.
    pub fn types(plan: &Plan, gguf: &Gguf) -> Vec<TensorType> {
        let mut types = Vec::new();
        for (spec, _) in plan.weights.iter().zip(multiplied(plan)).filter(|(_, is)| *is) {
            types
                .extend(gguf.tensor(&spec.name).map(|info| info.ty).filter(|t| !types.contains(t)));
        }
        types
    }

    /// Finds the plan's weights in the file and brings them to the device, counting the bytes of
    /// the arena that are filled.
    ///
    /// # Errors
    /// If a tensor is missing or has another shape, or the device refuses memory or a copy.
    pub fn load(
        device: &Device,
        plan: &Plan,
        gguf: Arc<Gguf>,
        n_threads: usize,
        progress: &LoadProgress,
    ) -> Result<Weights, BackendError> {
        let bound = bind_all(&gguf, plan)?;
        let arena = device.allocate("the weights", Self::n_bytes(plan, &gguf) as usize)?;
        let gives_back_cache = device.info().is_integrated;
        let (mut items, mut matrices) = (Vec::with_capacity(bound.len()), Vec::new());
        let mut at = 0;
        for (weight, is_multiplied) in bound.into_iter().zip(multiplied(plan)) {
            let n = size(&weight, is_multiplied);
            let place = arena.part(at, n);
            let n_between = n.next_multiple_of(ALIGNMENT) - n;
            at += n + n_between;
            items.push(match weight {
                Weight::Vector(values) => {
                    let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
                    place.write(&bytes)?;
                    progress.add(n);
                    Item::Vector(place)
                }
                Weight::Matrix(stored) if is_multiplied => {
                    matrices.push((stored, place.clone()));
                    let Stored { ty, n_rows, n_cols, .. } = stored;
                    Item::Matrix(Matrix { ty, n_rows, n_cols, strips: place })
                }
                Weight::Matrix(stored) => Item::Table(stored),
            });
            progress.add(n_between);
        }
        let (staging, ahead) = (Vec::new(), ReadAhead::default());
        let mut loader =
            Loader { gguf: &gguf, n_threads, progress, staging, ahead, gives_back_cache };
        matrices.sort_by_key(|(stored, _)| (stored.tensor_idx, stored.row_start));
        matrices.iter().try_for_each(|(stored, place)| loader.send(stored, place))?;
        Ok(Weights { gguf, items })
    }

    /// A vector.
    pub fn vector(&self, id: WeightId) -> &Buffer {
        match &self.items[id.0] {
            Item::Vector(values) => values,
            _ => unreachable!("the plan's shapes say which weights are vectors"),
        }
    }

    /// A matrix that is multiplied.
    pub fn matrix(&self, id: WeightId) -> &Matrix {
        match &self.items[id.0] {
            Item::Matrix(matrix) => matrix,
            _ => unreachable!("the plan's operations say which weights are multiplied"),
        }
    }

    /// Row `idx` of a table.
    pub fn table_row(&self, id: WeightId, idx: usize, out: &mut [f32]) {
        match &self.items[id.0] {
            Item::Table(stored) => stored.read_row(&self.gguf, idx, out),
            _ => unreachable!("the plan's operations say which weights are looked up"),
        }
    }
}

/// Bytes that a weight takes in the arena.
fn size(weight: &Weight, is_multiplied: bool) -> usize {
    match weight {
        Weight::Vector(values) => 4 * values.len(),
        Weight::Matrix(Stored { ty, n_rows, n_cols, .. }) if is_multiplied => {
            n_rows.div_ceil(STRIP_ROWS) * strip_bytes(*ty, *n_cols)
        }
        Weight::Matrix(_) => 0,
    }
}

/// Brings matrices to the device.
struct Loader<'a> {
    gguf: &'a Gguf,
    n_threads: usize,
    progress: &'a LoadProgress,
    /// Strips on their way.
    staging: Vec<u8>,
    ahead: ReadAhead,
    /// Whether the system's copy of the file takes memory from the device.
    gives_back_cache: bool,
}

impl Loader<'_> {
    /// Packs a matrix and copies it, counting what is there and giving back the file's pages on the
    /// way.
    fn send(&mut self, stored: &Stored, place: &Buffer) -> Result<(), BackendError> {
        let strip_bytes = strip_bytes(stored.ty, stored.n_cols);
        let n_strip = stored.n_rows.div_ceil(STRIP_ROWS);
        // Whole panels of a file that has them.
        let step = (DEVICE_LOAD_BYTES / strip_bytes).max(1).next_multiple_of(STEP_STRIPS);
        for first in (0..n_strip).step_by(step) {
            let n = step.min(n_strip - first);
            let place = place.part(first * strip_bytes, n * strip_bytes);
            let end = ((first + n) * STRIP_ROWS).min(stored.n_rows);
            let range = stored.bytes_before(first * STRIP_ROWS)..stored.bytes_before(end);
            let info = &self.gguf.tensors()[stored.tensor_idx];
            self.gguf.read_ahead(info, range.clone(), &mut self.ahead);
            if stored.form == Form::Strips && stored.row_start.is_multiple_of(STRIP_ROWS) {
                let at = stored.bytes_before(first * STRIP_ROWS);
                place.write(&stored.tensor_bytes(self.gguf)[at..][..n * strip_bytes])?;
            } else {
                self.pack(stored, first, n * strip_bytes);
                place.write(&self.staging)?;
            }
            self.progress.add(n * strip_bytes);
            match self.gives_back_cache {
                true => self.gguf.forget(info, range),
                false => self.gguf.release(info, range),
            }
        }
        Ok(())
    }

    /// Packs strips from `first` on into `n_bytes` of memory, by all threads.
    fn pack(&mut self, stored: &Stored, first: usize, n_bytes: usize) {
        let strip_bytes = strip_bytes(stored.ty, stored.n_cols);
        self.staging.resize(n_bytes, 0);
        let each = (n_bytes / strip_bytes).div_ceil(self.n_threads.max(1));
        let gguf = self.gguf;
        std::thread::scope(|scope| {
            for (i, out) in self.staging.chunks_mut(each * strip_bytes).enumerate() {
                scope.spawn(move || pack(gguf, stored, first + i * each, out));
            }
        });
    }
}

/// Strips of as many rows as a panel has.
const STEP_STRIPS: usize = PANEL_ROWS / STRIP_ROWS;

/// Packs as many strips of a matrix as `out` holds, from `first` on.
fn pack(gguf: &Gguf, stored: &Stored, first: usize, out: &mut [u8]) {
    let Stored { ty, n_cols, .. } = *stored;
    let bytes = stored.tensor_bytes(gguf);
    for (i, strip) in out.chunks_exact_mut(strip_bytes(ty, n_cols)).enumerate() {
        let row = (first + i) * STRIP_ROWS;
        let n_rows = (stored.n_rows - row).min(STRIP_ROWS);
        match stored.form {
            Form::Rows => {
                let rows = stored.bytes_before(row)..stored.bytes_before(row + n_rows);
                pack_strip(ty, &bytes[rows], n_cols, strip);
            }
            form => {
                let row = stored.row_start + row;
                let part = |r: usize, b: usize| form.part(ty, bytes, n_cols, row + r, b);
                pack_parts(ty, n_rows, n_cols, part, strip);
            }
        }
    }
}
