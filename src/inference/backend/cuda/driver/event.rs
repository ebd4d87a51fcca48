//! Points of the stream: for times, and to be waited for.

use std::sync::Arc;

use super::super::CudaError;
use super::super::symbols::Handle;
use super::{Device, Shared};

/// The host sleeps while it waits for the event, and the event knows no time.
const TO_BE_WAITED_FOR: u32 = 1 | 2;

impl Device {
    /// Marks this point of the stream, for times.
    ///
    /// # Errors
    /// If the driver refuses.
    pub fn event(&self) -> Result<Event, CudaError> {
        self.event_with(0)
    }

    /// Marks this point of the stream, for [`Event::wait`] alone.
    ///
    /// # Errors
    /// If the driver refuses.
    pub fn mark(&self) -> Result<Event, CudaError> {
        self.event_with(TO_BE_WAITED_FOR)
    }

    fn event_with(&self, flags: u32) -> Result<Event, CudaError> {
        self.shared.bind()?;
        let mut handle = std::ptr::null_mut();
        // SAFETY: the driver writes one handle.
        let code = unsafe { (self.shared.context.symbols.cuEventCreate)(&raw mut handle, flags) };
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
    pub fn wait(&self) -> Result<(), CudaError> {
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
