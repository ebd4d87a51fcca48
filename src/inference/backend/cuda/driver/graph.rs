//! Launches that are recorded once and started together: a token of a small model is a few hundred
//! launches, and each costs the host of a board as much as a good part of its work.

use std::ffi::c_int;
use std::sync::Arc;

use super::super::CudaError;
use super::super::symbols::Handle;
use super::{Device, Shared};

/// Other threads may do with the driver what they like while a stream is recorded.
const CAPTURE_RELAXED: c_int = 2;

/// Launches, recorded.
pub struct Graph {
    shared: Arc<Shared>,
    executable: Handle,
}

// SAFETY: as for `Shared`.
unsafe impl Send for Graph {}
// SAFETY: as above.
unsafe impl Sync for Graph {}

impl Device {
    /// Records what `launches` asks of this device's stream, without running it; `None` where the
    /// driver has no graphs.
    ///
    /// # Errors
    /// If a launch is refused, or the driver makes no graph of them.
    pub fn record(
        &self,
        launches: impl FnOnce() -> Result<(), CudaError>,
    ) -> Result<Option<Graph>, CudaError> {
        let shared = &self.shared;
        let symbols = &shared.context.symbols;
        let (Some(begin), Some(end), Some(instantiate), Some(_), Some(_), Some(destroy)) = (
            symbols.cuStreamBeginCapture_v2,
            symbols.cuStreamEndCapture,
            symbols.cuGraphInstantiate,
            symbols.cuGraphLaunch,
            symbols.cuGraphExecDestroy,
            symbols.cuGraphDestroy,
        ) else {
            return Ok(None);
        };
        shared.bind()?;
        // SAFETY: the stream is alive.
        let code = unsafe { begin(shared.stream, CAPTURE_RELAXED) };
        shared.check("cuStreamBeginCapture_v2", code)?;
        let launched = launches();
        let (mut graph, mut executable) = (std::ptr::null_mut(), std::ptr::null_mut());
        // SAFETY: recording has begun; the driver writes one handle.
        let code = unsafe { end(shared.stream, &raw mut graph) };
        if let Err(error) = launched.and_then(|()| shared.check("cuStreamEndCapture", code)) {
            if !graph.is_null() {
                // SAFETY: nobody else has it.
                unsafe { destroy(graph) };
            }
            return Err(error);
        }
        let nowhere = std::ptr::null_mut::<Handle>();
        // SAFETY: the graph is alive; the driver writes one handle, and no log.
        let code = unsafe {
            let code = instantiate(&raw mut executable, graph, nowhere, nowhere.cast(), 0);
            destroy(graph);
            code
        };
        shared.check("cuGraphInstantiate", code)?;
        Ok(Some(Graph { shared: shared.clone(), executable }))
    }
}

impl Graph {
    /// Starts the launches.
    ///
    /// # Errors
    /// If the driver refuses. What goes wrong while they run is told by [`Device::wait`].
    ///
    /// # Safety
    /// What was promised of each launch when it was recorded is true now.
    pub unsafe fn launch(&self) -> Result<(), CudaError> {
        let shared = &self.shared;
        shared.bind()?;
        let Some(launch) = shared.context.symbols.cuGraphLaunch else { return Ok(()) };
        // SAFETY: the caller's promise; both handles are alive.
        shared.check("cuGraphLaunch", unsafe { launch(self.executable, shared.stream) })
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        if let Some(destroy) = self.shared.context.symbols.cuGraphExecDestroy
            && self.shared.bind().is_ok()
        {
            // SAFETY: nobody else has it; the driver waits for a launch that still runs.
            unsafe { destroy(self.executable) };
        }
    }
}
