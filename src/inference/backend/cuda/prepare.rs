//! What the host makes of a batch before the device begins: rows of the embedding, where tokens
//! stand and what they see, angles, which rows are wanted, and what adapters each asks for.

use super::CudaError;
use super::backend::CudaConfig;
use super::driver::{Buffer, Device};
use super::launch::{AttentionBatch, Likeness, LoraUses, TokenSpan};
use super::lora::Lora;
use super::steps::{Steps, host_buf};
use super::upload::Upload;
use super::weights::Weights;
use crate::inference::backend::{AttentionSpec, Batch, ColumnRun, Op, PAGE_LEN, Plan, Rows};

/// Which positions the tokens of a layer see: causal, and how many at most.
type Sight = (bool, Option<usize>);

/// Makes it, and keeps the memory for it.
pub struct Preparer {
    upload: Upload,
    sights: Vec<Sight>,
    /// The rows, on the host.
    rows: Vec<f32>,
    /// Pages that a batch has room for, so that pieces of batches alike have the same places.
    n_page: usize,
}

/// A batch on the device.
pub struct Prepared {
    /// What the first steps read, `[n_tokens, width]`.
    pub rows: Buffer,
    /// Where everything that was sent begins.
    start: u64,
    /// (cos, sin) for each token, for each table of the plan.
    pub angles: Vec<Buffer>,
    /// The rows that are wanted.
    pub outputs: Buffer,
    attention: Vec<(Sight, AttentionBatch)>,
    /// What tokens and output rows ask for: the first adapter of each, the second, and so on.
    adapters: [Vec<LoraUses>; 2],
    /// The adapters that there were.
    generation: u64,
}

impl Prepared {
    /// What a layer's attention is told.
    pub fn attention(&self, spec: &AttentionSpec) -> &AttentionBatch {
        let found = self.attention.iter().find(|(sight, _)| *sight == sight_of(spec));
        &found.expect("every sight of the plan was prepared").1
    }

    /// The adapters that rows ask for.
    pub fn adapters(&self, rows: Rows) -> &[LoraUses] {
        let [tokens, outputs] = &self.adapters;
        match rows {
            Rows::Tokens => tokens,
            Rows::Outputs => outputs,
        }
    }

    /// What the launches of this batch have in common with others of so many steps.
    pub fn likeness(&self, n_steps: usize, batch: &Batch<'_>, runs: &[ColumnRun]) -> Likeness {
        Likeness {
            n_steps,
            runs: runs.to_vec(),
            n_rows: (batch.tokens.len(), batch.outputs.len()),
            n_split: self.attention.iter().map(|(_, of)| of.n_split()).collect(),
            adapters: (self.adapters[0].len(), self.generation),
            places: [self.start, self.rows.address(), self.outputs.address()],
        }
    }
}

impl Preparer {
    /// Memory for the largest batch.
    ///
    /// # Errors
    /// If the device has none.
    pub fn new(device: &Device, plan: &Plan, config: &CudaConfig) -> Result<Preparer, CudaError> {
        let upload = Upload::new(device, Preparer::n_bytes_max(plan, config))?;
        let (sights, n_page) = (sights(plan), config.n_page);
        let rows = Vec::with_capacity(row_bytes(plan, config) / size_of::<f32>());
        Ok(Preparer { upload, sights, rows, n_page })
    }

    /// Bytes of the host for the same: the rows, and the copy of all that is sent.
    pub fn host_bytes_max(plan: &Plan, config: &CudaConfig) -> usize {
        row_bytes(plan, config) + Preparer::n_bytes_max(plan, config)
    }

    /// Bytes of the largest batch; one whose sequences share many pages may need more, and gets it.
    pub fn n_bytes_max(plan: &Plan, config: &CudaConfig) -> usize {
        n_bytes(plan, &sights(plan), (config.n_batch, config.n_outputs, config.n_page), 0)
    }

    /// Makes room for the largest batch whose rows ask for so many adapters each.
    ///
    /// # Errors
    /// If the device has no memory for it.
    pub fn make_room(
        &mut self,
        plan: &Plan,
        config: &CudaConfig,
        n_adapter: usize,
    ) -> Result<(), CudaError> {
        let sizes = (config.n_batch, config.n_outputs, config.n_page);
        self.upload.begin(n_bytes(plan, &self.sights, sizes, n_adapter))
    }

    /// Takes the rows of the next batch, where others make them.
    pub fn set_rows(&mut self, rows: &[&[f32]]) {
        self.rows.clear();
        rows.iter().for_each(|row| self.rows.extend_from_slice(row));
    }

    /// Makes what a batch needs, and sends it.
    ///
    /// # Errors
    /// If the device has no memory for it, or the driver refuses.
    pub fn prepare(
        &mut self,
        plan: &Plan,
        steps: &Steps,
        (weights, lora): (&Weights, &Lora),
        batch: &Batch<'_>,
    ) -> Result<Prepared, CudaError> {
        let (n, n_outputs) = (batch.tokens.len(), batch.outputs.len());
        let used = batch.spans.iter().flat_map(|s| &s.pages[..n_page_of(s.pos + s.n_tokens)]);
        let pages: Vec<u32> = used.copied().collect();
        let n_page = pages.len().max(self.n_page);
        let n_asked = Lora::n_asked(batch);
        self.upload.begin(n_bytes(plan, &self.sights, (n, n_outputs, n_page), n_asked))?;
        self.look_up(plan, steps, (weights, lora), batch);
        let padding = std::iter::repeat(0);
        let on_device = self.upload.put(pages.iter().copied().chain(padding).take(n_page));
        let rows = self.upload.put(self.rows.iter().map(|x| x.to_bits()));
        let positions = || batch.spans.iter().flat_map(|s| s.pos..s.pos + s.n_tokens);
        let mut angles = Vec::with_capacity(plan.ropes.len());
        for spec in &plan.ropes {
            let pairs = positions().flat_map(|pos| {
                spec.inv_freq.iter().flat_map(move |f| {
                    let (sin, cos) = (pos as f64 * f).sin_cos();
                    [cos as f32 * spec.magnitude, sin as f32 * spec.magnitude]
                })
            });
            angles.push(self.upload.put(pairs.map(f32::to_bits)));
        }
        let outputs = self.upload.put(batch.outputs.iter().copied());
        let mut attention = Vec::with_capacity(self.sights.len());
        for &sight in &self.sights {
            let tokens = token_spans(batch, sight);
            let of = AttentionBatch::new(tokens, (&pages, &on_device), &mut self.upload);
            attention.push((sight, of));
        }
        let (adapters, generation) = (lora.put(batch, &mut self.upload), lora.generation());
        self.upload.send()?;
        let start = on_device.address();
        Ok(Prepared { rows, start, angles, outputs, attention, adapters, generation })
    }

    /// The operations of the host on each row.
    fn look_up(
        &mut self,
        plan: &Plan,
        steps: &Steps,
        (weights, lora): (&Weights, &Lora),
        batch: &Batch<'_>,
    ) {
        let (ops, buf) = &steps.host;
        let width = plan.bufs[buf.0].0;
        // Rows that were given are there.
        self.rows.resize(batch.tokens.len() * width, 0.0);
        let mut table_row = vec![0f32; width];
        let places = batch.spans.iter().flat_map(|span| {
            (span.pos..span.pos + span.n_tokens).map(move |pos| (pos, span.adapters))
        });
        let rows = self.rows.chunks_exact_mut(width);
        for ((row, &token), (pos, adapters)) in rows.zip(batch.tokens).zip(places) {
            for op in ops {
                let (table, idx) = match *op {
                    Op::Embed { table, .. } => {
                        weights.table_row(table, token as usize, row);
                        lora.adapt_row(table, token as usize, adapters, row);
                        continue;
                    }
                    Op::Scale { factor, .. } => {
                        row.iter_mut().for_each(|x| *x *= factor);
                        continue;
                    }
                    Op::AddRow { row, .. } => (row, 0),
                    Op::AddPosition { table, .. } => (table, pos),
                    _ => unreachable!("`Steps::compile` gives the host these alone"),
                };
                weights.table_row(table, idx, &mut table_row);
                row.iter_mut().zip(&table_row).for_each(|(x, y)| *x += y);
            }
        }
    }
}

fn sight_of(spec: &AttentionSpec) -> Sight {
    (spec.causal, spec.window)
}

/// What layers of a plan see, each once.
fn sights(plan: &Plan) -> Vec<Sight> {
    let mut sights = Vec::new();
    for op in &plan.ops {
        if let Op::Attention { spec, .. } = op
            && !sights.contains(&sight_of(spec))
        {
            sights.push(sight_of(spec));
        }
    }
    sights
}

/// Pages of so many positions.
fn n_page_of(end: usize) -> usize {
    end.div_ceil(PAGE_LEN)
}

/// Bytes of the rows of the largest batch.
fn row_bytes(plan: &Plan, config: &CudaConfig) -> usize {
    4 * config.n_batch * host_buf(plan).map_or(0, |buf| plan.bufs[buf.0].0)
}

/// Bytes of all pieces for so many tokens, outputs and pages, and adapters that a row asks for.
fn n_bytes(
    plan: &Plan,
    sights: &[Sight],
    (n, n_outputs, n_page): (usize, usize, usize),
    n_asked: usize,
) -> usize {
    let width = host_buf(plan).map_or(0, |buf| plan.bufs[buf.0].0);
    let angles = plan.ropes.iter().map(|spec| 8 * n * spec.inv_freq.len());
    let tokens = sights.iter().map(|_| n * AttentionBatch::TOKEN_BYTES);
    let rest = [4 * n * width, 4 * n_outputs, 4 * n_page];
    let adapters = Lora::piece_bytes(n_asked, [n, n_outputs]);
    Upload::bytes_of(rest.into_iter().chain(angles).chain(tokens).chain(adapters))
}

/// Where the tokens of a batch stand, and what they see.
fn token_spans(batch: &Batch<'_>, (causal, window): Sight) -> Vec<TokenSpan> {
    let mut tokens = Vec::with_capacity(batch.tokens.len());
    let mut pages_start = 0;
    for span in batch.spans {
        let n = span.pos + span.n_tokens;
        for pos in span.pos..n {
            let end = if causal { pos + 1 } else { n };
            let start = window.map_or(0, |window| (pos + 1).saturating_sub(window));
            let slot = span.pages[pos / PAGE_LEN] as usize * PAGE_LEN + pos % PAGE_LEN;
            tokens.push(TokenSpan { pages_start, start, end, slot });
        }
        pages_start += n_page_of(n);
    }
    tokens
}
