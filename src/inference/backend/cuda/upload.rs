//! What a batch brings to the device, gathered on the host and sent in one copy.
//!
//! Each piece has its place before it is sent, so launchers can be told where it will be; they run
//! after [`Upload::send`], which the stream's order sees to.

use super::CudaError;
use super::driver::{Buffer, Device};

/// Where a piece may begin: the widest load of a kernel.
const ALIGNMENT: usize = 16;

/// Pieces on their way.
pub struct Upload {
    device: Device,
    buffer: Buffer,
    bytes: Vec<u8>,
}

impl Upload {
    /// Room for `n_bytes`, more when it is asked for.
    ///
    /// # Errors
    /// If the device has no memory for it.
    pub fn new(device: &Device, n_bytes: usize) -> Result<Upload, CudaError> {
        let buffer = device.allocate("batches", n_bytes)?;
        Ok(Upload { device: device.clone(), buffer, bytes: Vec::with_capacity(n_bytes) })
    }

    /// Bytes that pieces of these sizes take.
    pub fn bytes_of(pieces: impl IntoIterator<Item = usize>) -> usize {
        pieces.into_iter().map(|n| n.next_multiple_of(ALIGNMENT)).sum()
    }

    /// Begins anew, with room for `n_bytes` ([`Upload::bytes_of`] all that will be put).
    ///
    /// # Errors
    /// If the device has no memory for it.
    pub fn begin(&mut self, n_bytes: usize) -> Result<(), CudaError> {
        if self.buffer.n_bytes() < n_bytes {
            self.buffer = self.device.allocate("batches", n_bytes)?;
        }
        self.bytes.clear();
        Ok(())
    }

    /// Adds a piece of little-endian words; where it will be.
    ///
    /// # Panics
    /// If it has no room.
    pub fn put(&mut self, words: impl IntoIterator<Item = u32>) -> Buffer {
        let start = self.bytes.len();
        self.bytes.extend(words.into_iter().flat_map(u32::to_le_bytes));
        let n_bytes = self.bytes.len() - start;
        self.bytes.resize(self.bytes.len().next_multiple_of(ALIGNMENT), 0);
        self.buffer.part(start, n_bytes)
    }

    /// Sends what was put.
    ///
    /// # Errors
    /// If the driver refuses, or something before it failed.
    pub fn send(&self) -> Result<(), CudaError> {
        self.buffer.write(&self.bytes)
    }
}
