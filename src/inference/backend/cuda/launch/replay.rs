//! Launches of batches that look alike, recorded the second time and started together from then on.

use super::super::CudaError;
use super::super::driver::{Device, Graph};
use crate::base::limits::DEVICE_GRAPHS_MAX;
use crate::inference::backend::ColumnRun;

/// What decides every argument of a batch's launches, but for what the kernels read from memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Likeness {
    /// Launches are those of so many steps.
    pub n_steps: usize,
    /// Which tokens go by which kernels.
    pub runs: Vec<ColumnRun>,
    /// Tokens and output rows.
    pub n_rows: (usize, usize),
    /// Shares of attention, for each set of positions that layers see.
    pub n_split: Vec<usize>,
    /// How many adapters a row asks for, at most, and a number that is another one when adapters
    /// came or went.
    pub adapters: (usize, u64),
    /// Where what is sent begins, with its pages, and where its rows and wanted outputs are: all
    /// else follows from these and the counts.
    pub places: [u64; 3],
}

/// Recorded launches.
#[derive(Default)]
pub struct Replays {
    /// The latest last.
    kept: Vec<(Likeness, Option<Graph>)>,
    /// Set when the driver would not record.
    is_off: bool,
}

impl Replays {
    /// Runs `launches`, which are the same for every batch of this likeness.
    ///
    /// # Errors
    /// If the driver refuses a launch. One that does not record is not asked again.
    pub fn run(
        &mut self,
        device: &Device,
        likeness: Likeness,
        launches: impl Fn() -> Result<(), CudaError>,
    ) -> Result<(), CudaError> {
        let found = self.kept.iter().position(|(kept, _)| *kept == likeness);
        let Some(found) = found.filter(|_| !self.is_off) else {
            if !self.is_off {
                let n_over = (self.kept.len() + 1).saturating_sub(DEVICE_GRAPHS_MAX);
                self.kept.drain(..n_over);
                self.kept.push((likeness, None));
            }
            return launches();
        };
        let (likeness, graph) = self.kept.remove(found);
        let graph = match graph {
            Some(graph) => graph,
            None => match device.record(&launches) {
                Ok(Some(graph)) => graph,
                Ok(None) | Err(_) => {
                    self.is_off = true;
                    return launches();
                }
            },
        };
        // SAFETY: arguments follow from the likeness, their memory is the backend's, and what
        // kernels read of the batch was checked before it was sent, as for launches one by one.
        let launched = unsafe { graph.launch() };
        if launched.is_ok() {
            self.kept.push((likeness, Some(graph)));
        }
        launched
    }
}
