//! Tells machines that have a job of ours that nobody wants it of them any more.
//!
//! ```text
//! taken back, too late, refused   the job's change and who is to hear of it: one transaction
//! recall                          whoever can be reached is told, and has no more to hear
//!                                 who had answered before: the job is theirs, and so is its answer
//! ```
//!
//! Who is away is told when it is back, by whichever run of this program there is then, as long as
//! the job is kept. Nobody is asked who does not answer probes, so a look costs nothing.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::door::Door;
use super::hand::Holder;
use super::runner::as_asked;
use crate::base::limits::{JOB_UNWANTED_PAUSE_MS, JOB_UNWANTED_PAUSE_MS_MAX};
use crate::inference::TenantId;
use crate::jobs::JobsError;
use crate::server::{ApiError, Forward, Unwanted, Withdrawn};
use crate::store::{StoreError, UnwantedRow};

/// Words that were not taken: since when they are left alone, and for how long. One that is never
/// taken keeps no other from being told.
type Deaf = BTreeMap<String, (Instant, Duration)>;

/// Looks whom there is to tell, as long as the service runs.
pub(super) async fn recall(door: Door, forward: Arc<dyn Forward>) {
    let (mut changes, mut deaf) = (door.changes(), Deaf::new());
    loop {
        changes.mark_unchanged();
        let has_left = tell_all(&door, &forward, &mut deaf).await.unwrap_or_else(|error| {
            tracing::warn!(error = error.message, "jobs that nobody wants wait for the disk");
            true
        });
        if has_left {
            tokio::time::sleep(Duration::from_millis(JOB_UNWANTED_PAUSE_MS)).await;
        } else if changes.changed().await.is_err() {
            return;
        }
    }
}

/// Tells whoever can be told; whether somebody is left.
async fn tell_all(
    door: &Door,
    forward: &Arc<dyn Forward>,
    deaf: &mut Deaf,
) -> Result<bool, ApiError> {
    let mut has_left = false;
    let rows = door.ask(|jobs| jobs.unwanted()).await?;
    deaf.retain(|holder, _| rows.iter().any(|row| row.holder == *holder));
    for row in rows {
        let holder = row.holder.clone();
        let host = holder.split(' ').next().unwrap_or_default().to_owned();
        let is_left_alone =
            deaf.get(&holder).is_some_and(|(since, pause)| since.elapsed() < *pause);
        if is_left_alone || !forward.reaches(&host) {
            has_left = true;
            continue;
        }
        let told = match unwanted(door, row.clone()).await? {
            Some(unwanted) => Arc::clone(forward).withdraw(unwanted).await,
            // Nobody could say what it was.
            None => Withdrawn::Over,
        };
        let (id, was_answered) = (row.id.clone(), told == Withdrawn::Answered);
        let why = match told {
            Withdrawn::Untold(why) => Some(why),
            _ => {
                let settled = door.ask(move |jobs| jobs.settle_unwanted(&row, was_answered));
                settled.await.err().map(|error| error.message)
            }
        };
        if let Some(why) = why {
            tracing::info!(host, why, job = id, "a job is not taken back there yet");
            leave_alone(deaf, holder);
            has_left = true;
        } else {
            door.tell();
        }
    }
    Ok(has_left)
}

/// Each time for twice as long, within bounds.
fn leave_alone(deaf: &mut Deaf, holder: String) {
    let (min, max) = (JOB_UNWANTED_PAUSE_MS, JOB_UNWANTED_PAUSE_MS_MAX);
    let pause = deaf.get(&holder).map_or(Duration::ZERO, |(_, pause)| *pause * 2);
    let pause = pause.clamp(Duration::from_millis(min), Duration::from_millis(max));
    deaf.insert(holder, (Instant::now(), pause));
}

/// What a job is, for who has it; `None` if it is gone or does not open.
async fn unwanted(door: &Door, row: UnwantedRow) -> Result<Option<Unwanted>, ApiError> {
    let Some(holder) = Holder::read(&row.holder) else { return Ok(None) };
    let found = door.ask(move |jobs| {
        let found = jobs.any(&row.id).and_then(|job| Ok((jobs.body(&job)?, job)));
        match found {
            Ok(found) => Ok(Some(found)),
            Err(
                error @ (JobsError::Unknown
                | JobsError::Record { .. }
                | JobsError::Store(StoreError::Sealed { .. })),
            ) => {
                tracing::error!(job = row.id, %error, "a job cannot be taken back where it is");
                Ok(None)
            }
            Err(error) => Err(error),
        }
    });
    let Some((body, job)) = found.await? else { return Ok(None) };
    let Ok(body) = as_asked(&body) else { return Ok(None) };
    let (tenant, endpoint) = (TenantId(job.row.tenant as u64), job.row.endpoint);
    Ok(Some(Unwanted { holder, tenant, endpoint, body }))
}
