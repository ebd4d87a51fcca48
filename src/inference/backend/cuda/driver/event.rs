//! Points of the stream: for times, and to be waited for.

use std::sync::Arc;

use super::super::CudaError;
use super::super::symbols::Handle;
use super::{Device, Shared};

/// The host sleeps while it waits for the event.
const BLOCKING_SYNC: u32 = 1;

impl Device {
    /// Marks this point of the stream.
    ///
    /// # Errors
    /// If the driver refuses.
    pub fn event(&self) -> Result<Event, CudaError> {
        self.shared.bind()?;
        let mut handle = std::ptr::null_mut();
        // SAFETY: the driver writes one handle.
        let code =
            unsafe { (self.shared.context.symbols.cuEventCreate)(&raw mut handle, BLOCKING_SYNC) };
        self.shared.check("cuEventCreate", code)?;
        let event = Event { shared: self.shared.clone(), handle };
        // SAFETY: both handles are alive.
        let code =
            unsafe { (self.shared.context.symbols.cuEventRecord)(handle, self.shared.stream) };
        self.shared.check("cuEventRecord", code)?;
        Ok(event)
    }
}

/// A point of the stream.
pub struct Event {
    shared: Arc<Shared>,
    handle: Handle,
}

impl Event {
    /// Milliseconds of the device from here to a later point, which is waited for.
    ///
    /// # Errors
    /// If the driver refuses, or something between failed.
    pub fn until(&self, later: &Event) -> Result<f32, CudaError> {
        later.wait()?;
        let mut ms = 0.0;
        // SAFETY: both handles are alive; the driver writes one float.
        let code = unsafe {
            (self.shared.context.symbols.cuEventElapsedTime)(&raw mut ms, self.handle, later.handle)
        };
        self.shared.check("cuEventElapsedTime", code)?;
        Ok(ms)
    }

    /// Waits until the device has come here.
    ///
    /// # Errors
    /// If the driver refuses, or something before failed.
    fn wait(&self) -> Result<(), CudaError> {
        self.shared.bind()?;
        // SAFETY: the handle is alive.
        let code = unsafe { (self.shared.context.symbols.cuEventSynchronize)(self.handle) };
        self.shared.check("cuEventSynchronize", code)
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        if self.shared.bind().is_ok() {
            // SAFETY: nobody else has it.
            unsafe { (self.shared.context.symbols.cuEventDestroy_v2)(self.handle) };
        }
    }
}
