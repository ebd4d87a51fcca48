//! How far the device is with a long batch, for whoever watches whether work goes on.
//!
//! ```text
//! host      launch launch mark  launch mark  ...  wait  launch mark  wait  ...  wait wait
//! device    -------------------------------------------------------------------------->
//! beat                                          +1                +1          +1   +1
//! ```
//!
//! Launches return at once, so a host that waits for the last of them says nothing for as long as
//! a prompt takes. So the stream is marked behind each product and each attention, which are what
//! takes time. The host stays [`AHEAD_MAX`] marks ahead, which is work enough for the device, and
//! counts each mark that the device has passed. What is launched alone counts for nothing.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};

use super::CudaError;
use super::driver::{Device, Event};
use super::steps::Step;
use crate::inference::backend::Op;

/// Marks that the device has not passed, at most.
const AHEAD_MAX: usize = 16;

/// Launches the steps, and returns when the device has passed the last mark.
///
/// # Errors
/// Of a launch, or of what ran before a mark.
pub fn run(
    device: &Device,
    beat: &AtomicU64,
    steps: &[Step],
    launch: impl Fn(Step) -> Result<(), CudaError>,
) -> Result<(), CudaError> {
    let pass = |mark: Event| {
        mark.wait()?;
        beat.fetch_add(1, Ordering::Relaxed);
        Ok(())
    };
    let mut marks = VecDeque::with_capacity(AHEAD_MAX + 1);
    for &step in steps {
        launch(step)?;
        if takes_time(step) {
            marks.push_back(device.mark()?);
        }
        if marks.len() > AHEAD_MAX {
            marks.pop_front().map_or(Ok(()), pass)?;
        }
    }
    marks.into_iter().try_for_each(pass)
}

fn takes_time(step: Step) -> bool {
    matches!(step, Step::MatMul { .. } | Step::Op(Op::Attention { .. }))
}
