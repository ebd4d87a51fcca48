//! Reads the configuration of a running service anew: on SIGHUP, and when a file of it changed.

use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::Signal;

use crate::app::{Reloaded, Reloader, Supervisor};

/// How often the files are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// Reloads until it is dropped.
pub async fn reload(reloader: Arc<Reloader>, supervisor: Supervisor, mut hangup: Signal) {
    let mut every = tokio::time::interval(LOOK_EVERY);
    loop {
        let is_asked = tokio::select! {
            _ = every.tick() => false,
            asked = hangup.recv() => asked.is_some(),
        };
        let (reloader, supervisor) = (Arc::clone(&reloader), supervisor.clone());
        let work = move || {
            if is_asked || reloader.is_stale() {
                supervisor.reload(|| tell(reloader.reload()));
            }
        };
        let _ = tokio::task::spawn_blocking(work).await;
    }
}

fn tell(result: Result<Reloaded, impl std::fmt::Display>) {
    match result {
        Ok(Reloaded { changed, needs_restart }) => {
            tracing::info!(?changed, ?needs_restart, "configuration read");
        }
        Err(error) => {
            tracing::error!(%error, "the configuration cannot be used; the last good one stays");
        }
    }
}
