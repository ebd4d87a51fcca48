//! Memory of a device: allocations, runs of their bytes, and copies.

use std::ffi::c_void;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::super::CudaError;
use super::super::symbols::{DeviceAddress, SUCCESS};
use super::{Device, Shared};

impl Device {
    /// Memory of the device, at least one byte; what it holds is undefined.
    ///
    /// # Errors
    /// [`CudaError::Memory`] if there is not enough.
    pub fn allocate(&self, what: &'static str, n_bytes: usize) -> Result<Buffer, CudaError> {
        self.shared.bind()?;
        let mut address = 0;
        let n = n_bytes.max(1);
        // SAFETY: the driver writes one address.
        match unsafe { (self.shared.context.symbols.cuMemAlloc_v2)(&raw mut address, n) } {
            SUCCESS => {}
            code => {
                let name = self.shared.context.symbols.error_name(code);
                return Err(CudaError::Memory { what, n_bytes, code, name });
            }
        }
        let memory = Arc::new(Memory { shared: self.shared.clone(), address });
        Ok(Buffer { memory, start: 0, n_bytes })
    }
}

struct Memory {
    shared: Arc<Shared>,
    address: DeviceAddress,
}

impl Drop for Memory {
    fn drop(&mut self) {
        // The driver waits for kernels that use it.
        if self.shared.bind().is_ok() {
            // SAFETY: no buffer names it any more.
            unsafe { (self.shared.context.symbols.cuMemFree_v2)(self.address) };
        }
    }
}

/// A run of bytes of an allocation.
#[derive(Clone)]
pub struct Buffer {
    memory: Arc<Memory>,
    start: usize,
    n_bytes: usize,
}

impl Buffer {
    /// Its size.
    pub fn n_bytes(&self) -> usize {
        self.n_bytes
    }

    /// Where it begins, for a kernel.
    pub fn address(&self) -> DeviceAddress {
        self.memory.address + self.start as DeviceAddress
    }

    /// A part of it.
    ///
    /// # Panics
    /// If it is not inside.
    pub fn part(&self, start: usize, n_bytes: usize) -> Buffer {
        let end = start.checked_add(n_bytes);
        assert!(end.is_some_and(|end| end <= self.n_bytes), "a part of a buffer lies inside it");
        Buffer { memory: self.memory.clone(), start: self.start + start, n_bytes }
    }

    /// Copies bytes to its beginning.
    ///
    /// # Errors
    /// If the driver refuses.
    ///
    /// # Panics
    /// If there are more bytes than room.
    pub fn write(&self, bytes: &[u8]) -> Result<(), CudaError> {
        assert!(bytes.len() <= self.n_bytes, "a copy fits its buffer");
        if bytes.is_empty() {
            return Ok(());
        }
        let shared = &self.memory.shared;
        shared.bind()?;
        let (to, from) = (self.address(), bytes.as_ptr().cast::<c_void>());
        // SAFETY: both ends have so many bytes, and `bytes` is waited for.
        let code = unsafe {
            (shared.context.symbols.cuMemcpyHtoDAsync_v2)(to, from, bytes.len(), shared.stream)
        };
        shared.check("cuMemcpyHtoDAsync_v2", code)?;
        shared.wait()
    }

    /// Copies its first bytes.
    ///
    /// # Errors
    /// If the driver refuses, or something before it failed.
    ///
    /// # Panics
    /// If it has fewer bytes.
    pub fn read(&self, bytes: &mut [u8]) -> Result<(), CudaError> {
        assert!(bytes.len() <= self.n_bytes, "a copy fits its buffer");
        if bytes.is_empty() {
            return Ok(());
        }
        let shared = &self.memory.shared;
        shared.bind()?;
        let (to, from) = (bytes.as_mut_ptr().cast::<c_void>(), self.address());
        // SAFETY: both ends have so many bytes, and `bytes` is waited for.
        let code = unsafe {
            (shared.context.symbols.cuMemcpyDtoHAsync_v2)(to, from, bytes.len(), shared.stream)
        };
        shared.check("cuMemcpyDtoHAsync_v2", code)?;
        shared.context.n_read.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        shared.wait()
    }

    /// Copies its first floats.
    ///
    /// # Errors
    /// As [`Buffer::read`].
    ///
    /// # Panics
    /// If it has fewer.
    pub fn read_floats(&self, values: &mut [f32]) -> Result<(), CudaError> {
        // SAFETY: floats are bytes without padding, and any bytes are a float.
        let bytes = unsafe {
            std::slice::from_raw_parts_mut(values.as_mut_ptr().cast::<u8>(), size_of_val(values))
        };
        self.read(bytes)
    }

    /// Makes it hold what another buffer of the same device and size holds, in the stream's order.
    ///
    /// # Errors
    /// If the driver refuses.
    ///
    /// # Panics
    /// If they differ in size.
    pub fn copy_from(&self, from: &Buffer) -> Result<(), CudaError> {
        assert_eq!(self.n_bytes, from.n_bytes, "a copy has the size of what is copied");
        let shared = &self.memory.shared;
        shared.bind()?;
        // SAFETY: both ends have so many bytes, and live until the driver is done with them, since
        // it waits for the stream before it frees.
        let code = unsafe {
            (shared.context.symbols.cuMemcpyDtoDAsync_v2)(
                self.address(),
                from.address(),
                self.n_bytes,
                shared.stream,
            )
        };
        shared.check("cuMemcpyDtoDAsync_v2", code)
    }

    /// Sets every byte to zero.
    ///
    /// # Errors
    /// If the driver refuses.
    pub fn clear(&self) -> Result<(), CudaError> {
        let shared = &self.memory.shared;
        shared.bind()?;
        // SAFETY: the buffer has so many bytes.
        let code = unsafe {
            (shared.context.symbols.cuMemsetD8Async)(self.address(), 0, self.n_bytes, shared.stream)
        };
        shared.check("cuMemsetD8Async", code)
    }
}
