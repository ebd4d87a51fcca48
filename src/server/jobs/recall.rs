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
    let (mut changes, mut deaf, mut left) = (door.changes(), Deaf::new(), Vec::new());
    let pause = Duration::from_millis(JOB_UNWANTED_PAUSE_MS);
    changes.mark_changed();
    loop {
        if left.is_empty() && changes.changed().await.is_err() {
            return;
        }
        // Some machines never come back: the disk is asked again after changes alone.
        if left.is_empty() || changes.has_changed().unwrap_or(false) {
            changes.mark_unchanged();
            match door.ask(|jobs| jobs.unwanted()).await {
                Ok(rows) => left = rows,
                Err(error) => {
                    let error = error.message;
                    tracing::warn!(error, "jobs that nobody wants wait for the disk");
                    changes.mark_changed();
                    tokio::time::sleep(pause).await;
                    continue;
                }
            }
        }
        left = tell_all(&door, &forward, &mut deaf, left).await;
        if !left.is_empty() {
            tokio::time::sleep(pause).await;
        }
    }
}

/// Tells whoever can be told; who is left.
async fn tell_all(
    door: &Door,
    forward: &Arc<dyn Forward>,
    deaf: &mut Deaf,
    rows: Vec<UnwantedRow>,
) -> Vec<UnwantedRow> {
    let mut left = Vec::new();
    deaf.retain(|holder, _| rows.iter().any(|row| row.holder == *holder));
    for row in rows {
        let host = row.holder.split(' ').next().unwrap_or_default();
        let is_left_alone =
            deaf.get(&row.holder).is_some_and(|(since, pause)| since.elapsed() < *pause);
        if is_left_alone || !forward.reaches(host) {
            left.push(row);
            continue;
        }
        match tell(door, forward, row.clone()).await {
            Ok(()) => door.tell(),
            Err(why) => {
                tracing::info!(host, why, job = row.id, "a job is not taken back there yet");
                leave_alone(deaf, row.holder.clone());
                left.push(row);
            }
        }
    }
    left
}

/// Tells a machine, and writes down that it has heard.
///
/// # Errors
/// Why it is told again.
async fn tell(door: &Door, forward: &Arc<dyn Forward>, row: UnwantedRow) -> Result<(), String> {
    let found = unwanted(door, row.clone()).await.map_err(|error| error.message)?;
    let told = match found {
        Some(unwanted) => Arc::clone(forward).withdraw(unwanted).await,
        // Nobody could say what it was.
        None => Withdrawn::Over,
    };
    let was_answered = match told {
        Withdrawn::Untold(why) => return Err(why),
        told => told == Withdrawn::Answered,
    };
    let settled = door.ask(move |jobs| jobs.settle_unwanted(&row, was_answered)).await;
    settled.map_err(|error| error.message)
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
