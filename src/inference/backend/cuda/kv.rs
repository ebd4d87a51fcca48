//! The KV cache on the device: pages of 32 positions, f16, as the attention kernels walk them.
//!
//! ```text
//! memory             [layer][keys, values][page][kv head] planes
//! bytes of a page    [layer][keys, values][kv head] planes
//! plane              keys [head_dim][32], values [32][head_dim]
//! ```

use super::CudaError;
use super::driver::{Buffer, Device};
use crate::inference::backend::{BackendError, PAGE_LEN, PageIdx, Plan};

/// Memory for the pages.
pub struct KvPages {
    /// Keys and values of each layer.
    layers: Vec<(Buffer, Buffer)>,
    n_page: usize,
    /// Keys, or values, of a page in a layer.
    side_bytes: usize,
}

impl KvPages {
    /// Bytes that a page takes over all layers.
    pub fn page_bytes_of(plan: &Plan) -> usize {
        2 * plan.n_layer * side_bytes(plan)
    }

    /// Pages whose content is undefined.
    ///
    /// # Errors
    /// If the device has no memory for them.
    pub fn new(device: &Device, plan: &Plan, n_page: usize) -> Result<KvPages, CudaError> {
        let side_bytes = side_bytes(plan);
        let n = n_page * side_bytes;
        let memory = device.allocate("the KV cache", 2 * plan.n_layer * n)?;
        let layer = |i: usize| (memory.part(2 * i * n, n), memory.part((2 * i + 1) * n, n));
        Ok(KvPages { layers: (0..plan.n_layer).map(layer).collect(), n_page, side_bytes })
    }

    /// Pages that it holds.
    pub fn n_page(&self) -> usize {
        self.n_page
    }

    /// Bytes of a page over all layers.
    pub fn page_bytes(&self) -> usize {
        2 * self.layers.len() * self.side_bytes
    }

    /// Keys and values of a layer.
    pub fn layer(&self, layer_idx: usize) -> (&Buffer, &Buffer) {
        let (keys, values) = &self.layers[layer_idx];
        (keys, values)
    }

    /// Makes `dst` hold what `src` holds.
    ///
    /// # Errors
    /// If one of them is not there, or the driver refuses.
    pub fn copy(&self, src: PageIdx, dst: PageIdx) -> Result<(), BackendError> {
        self.check(src)?;
        self.check(dst)?;
        for (src, dst) in self.sides(src).zip(self.sides(dst)) {
            dst.copy_from(&src)?;
        }
        Ok(())
    }

    /// Reads the bytes of a page.
    ///
    /// # Errors
    /// If it is not there, `out` is not as long as a page, or the driver refuses.
    pub fn read(&self, page: PageIdx, out: &mut [u8]) -> Result<(), BackendError> {
        self.check(page)?;
        self.check_bytes(out.len())?;
        for (side, out) in self.sides(page).zip(out.chunks_exact_mut(self.side_bytes)) {
            side.read(out)?;
        }
        Ok(())
    }

    /// Writes the bytes of a page.
    ///
    /// # Errors
    /// As [`KvPages::read`].
    pub fn write(&self, page: PageIdx, bytes: &[u8]) -> Result<(), BackendError> {
        self.check(page)?;
        self.check_bytes(bytes.len())?;
        for (side, bytes) in self.sides(page).zip(bytes.chunks_exact(self.side_bytes)) {
            side.write(bytes)?;
        }
        Ok(())
    }

    /// The pieces of a page, in the order of its bytes.
    fn sides(&self, page: PageIdx) -> impl Iterator<Item = Buffer> {
        let (at, n) = (page as usize * self.side_bytes, self.side_bytes);
        let sides = self.layers.iter().flat_map(|(keys, values)| [keys, values]);
        sides.map(move |side| side.part(at, n))
    }

    fn check(&self, page: PageIdx) -> Result<(), BackendError> {
        let n_page = self.n_page;
        if (page as usize) < n_page { Ok(()) } else { Err(BackendError::Page { page, n_page }) }
    }

    fn check_bytes(&self, got: usize) -> Result<(), BackendError> {
        let expected = self.page_bytes();
        if got == expected { Ok(()) } else { Err(BackendError::PageBytes { expected, got }) }
    }
}

fn side_bytes(plan: &Plan) -> usize {
    plan.n_kv_head * PAGE_LEN * plan.head_dim * 2
}
