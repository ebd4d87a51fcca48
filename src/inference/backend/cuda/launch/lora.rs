//! LoRA adapters after a product: `kernels/lora_down_f32.cu` and `lora_up_f32.cu`.

use super::super::CudaError;
use super::super::driver::{Args, Buffer, Device, Kernel};
use super::super::upload::Upload;
use super::assert_rows;

const THREADS: u32 = 128;
/// Rows of `A` that a thread block of the first kernel has.
const DOWN_ROWS: usize = 4;
/// Values of `y` that one of the second has.
const UP_VALUES: usize = 128;
/// What a row that asks for nothing says.
const NO_SLOT: u32 = u32::MAX;
/// How much longer a multiply-add takes than one of many columns: each loads what it multiplies.
const SLOWER: usize = 4;

/// What an adapter adds to a weight: `scale B (A x)`.
#[derive(Clone)]
pub struct LoraPair {
    /// `[rank, n_in]` f32.
    pub a: Buffer,
    /// `B` transposed, `[rank, n_out]` f32.
    pub b: Buffer,
    /// Width of its narrow side, at least 1.
    pub rank: usize,
    /// Factor on it, whatever a row asks for.
    pub scale: f32,
}

/// The pairs of a weight, a slot for each adapter.
pub struct LoraTable {
    /// What the table on the device points to.
    pairs: Vec<Option<LoraPair>>,
    rank_max: usize,
    n_in: usize,
    n_out: usize,
    on_device: Buffer,
}

impl LoraTable {
    /// Bytes of a slot.
    pub const SLOT_BYTES: usize = 24;

    /// Writes the table of a weight `[n_out, n_in]` to memory that has room for it.
    ///
    /// # Errors
    /// If the driver refuses.
    ///
    /// # Panics
    /// If a pair has another shape, or there is no room.
    pub fn write(
        pairs: Vec<Option<LoraPair>>,
        (n_out, n_in): (usize, usize),
        on_device: Buffer,
    ) -> Result<LoraTable, CudaError> {
        assert!(on_device.n_bytes() >= LoraTable::SLOT_BYTES * pairs.len(), "a slot for each");
        let mut bytes = Vec::with_capacity(LoraTable::SLOT_BYTES * pairs.len());
        for pair in &pairs {
            let (a, b, rank, scale) = match pair {
                None => (0, 0, 0, 0.0),
                Some(LoraPair { a, b, rank, scale }) => {
                    assert!(a.n_bytes() >= 4 * rank * n_in && *rank > 0, "A [rank, n_in]");
                    assert!(b.n_bytes() >= 4 * rank * n_out, "B [rank, n_out]");
                    (a.address(), b.address(), *rank, *scale)
                }
            };
            let rank = u32::try_from(rank).expect("ranks are bounded");
            bytes.extend([a, b].into_iter().flat_map(u64::to_le_bytes));
            bytes.extend([rank, scale.to_bits()].into_iter().flat_map(u32::to_le_bytes));
        }
        on_device.write(&bytes)?;
        let rank_max = pairs.iter().flatten().map(|pair| pair.rank).max().unwrap_or(0);
        Ok(LoraTable { pairs, rank_max, n_in, n_out, on_device })
    }

    /// The widest narrow side.
    pub fn rank_max(&self) -> usize {
        self.rank_max
    }
}

/// One adapter for each row, or none, with its scale.
pub struct LoraUses {
    n_rows: usize,
    /// One past the last slot.
    slot_end: usize,
    on_device: Buffer,
}

impl LoraUses {
    /// Bytes of a row.
    pub const ROW_BYTES: usize = 8;

    /// Puts what each row asks for, a slot and a scale, to what is sent for the batch.
    pub fn new(rows: &[Option<(usize, f32)>], upload: &mut Upload) -> LoraUses {
        let words = |row: &Option<(usize, f32)>| match *row {
            None => [NO_SLOT, 0],
            Some((slot, scale)) => {
                [u32::try_from(slot).expect("slots are bounded"), scale.to_bits()]
            }
        };
        let on_device = upload.put(rows.iter().flat_map(words));
        let slots = rows.iter().flatten().map(|(slot, _)| slot + 1);
        LoraUses { n_rows: rows.len(), slot_end: slots.max().unwrap_or(0), on_device }
    }
}

/// The kernels for adapters.
pub struct LoraKernels {
    device: Device,
    down: Kernel,
    up: Kernel,
}

impl LoraKernels {
    /// Compiles them.
    ///
    /// # Errors
    /// If the driver refuses them.
    pub fn load(device: &Device) -> Result<LoraKernels, CudaError> {
        let down = device.load("lora_down_f32", ptx!("lora_down_f32"))?;
        let up = device.load("lora_up_f32", ptx!("lora_up_f32"))?;
        Ok(LoraKernels {
            device: device.clone(),
            down: down.kernel("lora_down_f32", THREADS)?,
            up: up.kernel("lora_up_f32", THREADS)?,
        })
    }

    /// `y[r] += scale B (A x[r])` for each row, with the pair and the scale that it asks for; `x`
    /// and `y` are rows of a stride each, and `hidden` has room for `[n_rows, rank_max]`.
    ///
    /// # Errors
    /// If the driver refuses.
    ///
    /// # Panics
    /// If shapes do not fit, or a row asks for a slot that is not there.
    pub fn apply(
        &self,
        table: &LoraTable,
        uses: &LoraUses,
        (x, x_stride): (&Buffer, usize),
        (y, y_stride): (&Buffer, usize),
        hidden: &Buffer,
    ) -> Result<(), CudaError> {
        let LoraTable { rank_max, n_in, n_out, .. } = *table;
        let n_rows = uses.n_rows;
        assert_rows(x, n_rows, n_in, x_stride);
        assert_rows(y, n_rows, n_out, y_stride);
        assert_rows(hidden, n_rows, rank_max, rank_max);
        assert!(uses.slot_end <= table.pairs.len(), "slots of the table");
        if rank_max == 0 {
            return Ok(());
        }
        let most = self.device.launch_products_max() / SLOWER / (rank_max * n_in.max(n_out));
        let most = most.max(1);
        for first in (0..n_rows).step_by(most) {
            let n = most.min(n_rows - first);
            let from = |rows: &Buffer, bytes: usize| {
                rows.part(first * bytes, rows.n_bytes() - first * bytes)
            };
            let uses = from(&uses.on_device, LoraUses::ROW_BYTES);
            let hidden = from(hidden, 4 * rank_max);
            let args = Args::new().buffer(&from(x, 4 * x_stride)).buffer(&table.on_device);
            let args = args.buffer(&uses).buffer(&hidden);
            let args = args.size(n_in).size(x_stride).size(rank_max);
            // SAFETY: a warp for each row of A and of `x`, and buffers and slots as asserted.
            unsafe { self.down.launch([rank_max.div_ceil(DOWN_ROWS), n, 1], args) }?;
            let args = Args::new().buffer(&hidden).buffer(&table.on_device).buffer(&uses);
            let args = args.buffer(&from(y, 4 * y_stride));
            let args = args.size(n_out).size(y_stride).size(rank_max);
            // SAFETY: a thread for each value, and buffers and slots as asserted.
            unsafe { self.up.launch([n_out.div_ceil(UP_VALUES), n, 1], args) }?;
        }
        Ok(())
    }
}
