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
//!
//! The device's time between two marks, and how many launches lie between them, tell how long one
//! takes; a host that is kept waiting makes no launch longer. A batch that has launches of too long
//! makes those of the next half as large.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};

use super::CudaError;
use super::driver::{Device, Event};
use super::steps::Step;
use crate::base::limits::DEVICE_LAUNCH_MS_MAX;

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
    let (mut passed, mut is_slow) = ((device.event()?, device.n_launch()), false);
    let mut pass = |(mark, n_launch): (Event, u64)| {
        let ms = passed.0.until(&mark)?;
        beat.fetch_add(1, Ordering::Relaxed);
        is_slow |= takes_long(ms, n_launch - passed.1);
        passed = (mark, n_launch);
        Ok::<_, CudaError>(())
    };
    let mut marks = VecDeque::with_capacity(AHEAD_MAX + 1);
    for &step in steps {
        launch(step)?;
        if takes_time(step) {
            marks.push_back((device.event()?, device.n_launch()));
        }
        if marks.len() > AHEAD_MAX {
            marks.pop_front().map_or(Ok(()), &mut pass)?;
        }
    }
    marks.into_iter().try_for_each(pass)?;
    if is_slow {
        device.shorten_launches();
    }
    Ok(())
}

/// Whether so many launches take longer than each may.
fn takes_long(ms: f32, n_launch: u64) -> bool {
    ms > (DEVICE_LAUNCH_MS_MAX * n_launch.max(1)) as f32
}

fn takes_time(step: Step) -> bool {
    matches!(step, Step::MatMul { .. } | Step::Attention { .. })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn launches_take_long_by_their_mean() {
        let limit = DEVICE_LAUNCH_MS_MAX as f32;
        assert!(!takes_long(limit, 1) && takes_long(limit + 1.0, 1));
        assert!(!takes_long(3.0 * limit, 3) && takes_long(4.0 * limit, 3));
        assert!(!takes_long(limit, 0));
    }
}
