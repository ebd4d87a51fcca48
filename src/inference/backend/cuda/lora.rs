//! LoRA adapters on the device, and what the rows of a batch ask of them.
//!
//! ```text
//! of an adapter     A and B transposed, f32, weight after weight: one allocation
//! tables            of each weight that some adapter changes: a slot for each adapter
//! hidden            what is between the two kernels, for the rows of the largest batch
//! on the host       pairs of the embedding, where its rows are looked up
//! ```
//!
//! After a product each row gets the first adapter that it asks for, by two launches for all rows,
//! then its second, as far as any row asks. Slots and scales come with the batch, in memory. What
//! an adapter needs is taken when it is added, and what was there stays until all of that is had: a
//! step takes nothing.

use super::CudaError;
use super::backend::CudaConfig;
use super::driver::{Buffer, Device};
use super::launch::{LoraKernels, LoraPair, LoraTable, LoraUses};
use super::upload::Upload;
use crate::base::limits::ADAPTERS_MAX;
use crate::inference::backend::bound::multiplied;
use crate::inference::backend::{
    Adapter, AdapterIdx, AdapterPart, BackendError, Batch, BatchError, Plan, Span, WeightId,
};

/// The adapters that are loaded, and their kernels.
pub struct Lora {
    kernels: LoraKernels,
    /// By their numbers, which are their slots.
    adapters: Vec<Resident>,
    /// For each weight of the plan.
    tables: Vec<Option<LoraTable>>,
    hidden: Option<Buffer>,
    generation: u64,
}

/// An adapter on the device.
struct Resident {
    /// For each weight of the plan.
    pairs: Vec<Option<LoraPair>>,
    /// Of tables that are looked up: A `[n_vocab, rank]`, B `[n_embd, rank]`.
    looked_up: Vec<(WeightId, AdapterPart)>,
}

impl Lora {
    /// No adapters.
    pub fn new(kernels: LoraKernels) -> Lora {
        let (adapters, tables) = (Vec::new(), Vec::new());
        Lora { kernels, adapters, tables, hidden: None, generation: 0 }
    }

    /// How many are loaded.
    pub fn n_adapter(&self) -> usize {
        self.adapters.len()
    }

    /// What changes when an adapter comes, and with it where launches find anything.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Brings an adapter for this plan to the device.
    ///
    /// # Errors
    /// If there are too many, or the device has no memory for it; what was there stays.
    pub fn add(
        &mut self,
        device: &Device,
        (plan, config): (&Plan, &CudaConfig),
        adapter: Adapter,
    ) -> Result<AdapterIdx, BackendError> {
        if self.adapters.len() >= ADAPTERS_MAX {
            return Err(BackendError::TooManyAdapters);
        }
        let resident = Resident::send(device, plan, adapter)?;
        let residents: Vec<&Resident> = self.adapters.iter().chain([&resident]).collect();
        let tables = tables(device, plan, &residents)?;
        let rank_max = tables.iter().flatten().map(LoraTable::rank_max).max().unwrap_or(0);
        let n_bytes = 4 * rank_max * config.n_batch.max(config.n_outputs);
        if self.hidden.as_ref().map_or(0, Buffer::n_bytes) < n_bytes {
            self.hidden = Some(device.allocate("adapters", n_bytes)?);
        }
        self.adapters.push(resident);
        self.tables = tables;
        self.generation += 1;
        Ok(self.adapters.len() as AdapterIdx - 1)
    }

    /// Refuses adapters that are not loaded.
    ///
    /// # Errors
    /// [`BatchError::Adapter`].
    pub fn check(&self, batch: &Batch<'_>) -> Result<(), BatchError> {
        let mut asked = batch.spans.iter().flat_map(|span| span.adapters);
        let missing = asked.find(|(idx, _)| self.slot(*idx).is_none());
        missing.map_or(Ok(()), |&(adapter, _)| Err(BatchError::Adapter { adapter }))
    }

    fn slot(&self, idx: AdapterIdx) -> Option<usize> {
        Some(idx as usize).filter(|slot| *slot < self.adapters.len())
    }

    /// How many adapters a row of the batch asks for, at most.
    pub fn n_asked(batch: &Batch<'_>) -> usize {
        batch.spans.iter().map(|span| span.adapters.len()).max().unwrap_or(0)
    }

    /// Bytes of each piece that [`Lora::put`] puts.
    pub fn piece_bytes(n_asked: usize, n_rows: [usize; 2]) -> impl Iterator<Item = usize> {
        let of_one = n_rows.map(|n| n * LoraUses::ROW_BYTES);
        std::iter::repeat_n(of_one, n_asked).flatten()
    }

    /// Puts what tokens, and what output rows ask for to what is sent: of each the first, then of
    /// each the second.
    pub fn put(&self, batch: &Batch<'_>, upload: &mut Upload) -> [Vec<LoraUses>; 2] {
        let mut uses = [Vec::new(), Vec::new()];
        for k in 0..Lora::n_asked(batch) {
            let asked = |span: &Span<'_>| {
                let &(idx, scale) = span.adapters.get(k)?;
                Some((self.slot(idx)?, scale))
            };
            let of_span = |span: &Span<'_>| std::iter::repeat_n(asked(span), span.n_tokens);
            let tokens: Vec<_> = batch.spans.iter().flat_map(of_span).collect();
            let outputs: Vec<_> = batch.outputs.iter().map(|&o| tokens[o as usize]).collect();
            for (uses, rows) in uses.iter_mut().zip([tokens, outputs]) {
                uses.push(LoraUses::new(&rows, upload));
            }
        }
        uses
    }

    /// Adds to the product `y = weight . x` what the adapters change that its rows ask for.
    ///
    /// # Errors
    /// If the driver refuses.
    ///
    /// # Panics
    /// If shapes do not fit.
    pub fn apply(
        &self,
        weight: WeightId,
        uses: &[LoraUses],
        x: (&Buffer, usize),
        y: (&Buffer, usize),
    ) -> Result<(), CudaError> {
        let table = self.tables.get(weight.0).and_then(Option::as_ref);
        let Some((table, hidden)) = table.zip(self.hidden.as_ref()) else { return Ok(()) };
        uses.iter().try_for_each(|uses| self.kernels.apply(table, uses, x, y, hidden))
    }

    /// Adds to a row that was looked up in a table what adapters change in it.
    pub fn adapt_row(
        &self,
        table: WeightId,
        idx: usize,
        asked: &[(AdapterIdx, f32)],
        row: &mut [f32],
    ) {
        for &(adapter, scale) in asked {
            let found = self.slot(adapter).map(|slot| &self.adapters[slot].looked_up);
            let part = found.and_then(|parts| parts.iter().find(|(id, _)| *id == table));
            let Some((_, AdapterPart { rank, a, b, scale: own, .. })) = part else { continue };
            let hidden = &a.as_chunks::<4>().0[idx * rank..][..*rank];
            for (y, b) in row.iter_mut().zip(b.as_chunks::<4>().0.chunks_exact(*rank)) {
                let terms = hidden.iter().zip(b);
                let sum: f32 =
                    terms.map(|(h, b)| f32::from_le_bytes(*h) * f32::from_le_bytes(*b)).sum();
                *y += scale * own * sum;
            }
        }
    }
}

impl Resident {
    fn send(device: &Device, plan: &Plan, adapter: Adapter) -> Result<Resident, CudaError> {
        let is_multiplied = multiplied(plan);
        let parts = adapter.into_parts();
        let on_device = parts.iter().zip(&is_multiplied).filter(|(_, is)| **is);
        let sizes = on_device.filter_map(|(part, _)| part.as_ref());
        let n_bytes = sizes.map(|part| part.a.len() + part.b.len()).sum();
        let memory = device.allocate("an adapter", n_bytes)?;
        let mut at = 0;
        let mut place = |bytes: &[u8]| {
            let place = memory.part(at, bytes.len());
            at += bytes.len();
            place.write(bytes).map(|()| place)
        };
        let (mut pairs, mut looked_up) = (Vec::with_capacity(parts.len()), Vec::new());
        for (i, part) in parts.into_iter().enumerate() {
            pairs.push(match part {
                Some(part) if is_multiplied[i] => {
                    let AdapterPart { rank, a, b, scale, .. } = part;
                    let (a, b) = (place(&a)?, place(&transposed(&b, rank))?);
                    Some(LoraPair { a, b, rank, scale })
                }
                Some(part) => {
                    looked_up.push((WeightId(i), part));
                    None
                }
                None => None,
            });
        }
        Ok(Resident { pairs, looked_up })
    }
}

/// `[n, rank]` words as `[rank, n]`.
fn transposed(bytes: &[u8], rank: usize) -> Vec<u8> {
    let words = bytes.as_chunks::<4>().0;
    (0..rank).flat_map(|r| words.iter().skip(r).step_by(rank)).flatten().copied().collect()
}

/// The table of each weight that one of the adapters changes.
fn tables(
    device: &Device,
    plan: &Plan,
    adapters: &[&Resident],
) -> Result<Vec<Option<LoraTable>>, CudaError> {
    let is_changed = |i: usize| adapters.iter().any(|adapter| adapter.pairs[i].is_some());
    let n_table = (0..plan.weights.len()).filter(|i| is_changed(*i)).count();
    let n_bytes = LoraTable::SLOT_BYTES * adapters.len();
    let memory = device.allocate("adapters", n_table * n_bytes)?;
    let mut at = 0;
    let table = |i: usize| {
        if !is_changed(i) {
            return Ok(None);
        }
        let place = memory.part(at, n_bytes);
        at += n_bytes;
        let pairs = adapters.iter().map(|adapter| adapter.pairs[i].clone()).collect();
        let spec = &plan.weights[i];
        LoraTable::write(pairs, (spec.n_rows, spec.n_cols), place).map(Some)
    };
    (0..plan.weights.len()).map(table).collect()
}
