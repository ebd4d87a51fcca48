//! Takes a job back from the appliance that has it, or may be about to.
//!
//! ```text
//! post     the job under its name, for a day that never comes: the appliance has one of that name,
//!          or has from now on; what was posted before and is still on its way finds it there
//! delete   unless it is over; then it was answered, or nothing comes of it
//! ```
//!
//! The first step says what the job is called there, also to a hub that was killed before it knew.

use std::sync::Arc;

use axum::body::Bytes;
use axum::http::header::{CONTENT_TYPE, HeaderMap, HeaderValue};
use axum::http::{Method, StatusCode};
use serde_json::{Value, json};

use super::Hub;
use super::ask::whose;
use super::backend::Backend;
use super::dial::Call;
use super::hand::{NAME, is_over, path_of, view};
use super::policy::{Kind, Standing};
use super::target::Target;
use crate::server::{TENANT, Unwanted, Withdrawn};

/// The end of the year 9999, in milliseconds since 1970.
const NEVER_MS: i64 = 253_402_300_799_000;

/// A job on its way back.
struct Withdrawal<'a> {
    hub: &'a Hub,
    backend: &'a Backend,
    target: &'a Target,
    headers: HeaderMap,
}

impl Hub {
    /// The appliance that jobs were given to by this word, if it answers its probes.
    fn holder(&self, host: &str) -> Option<Arc<Backend>> {
        let is_it = |own: &Arc<Backend>| own.kind == Kind::Appliance && own.is_known_as(host);
        let own = self.backends().into_iter().find(is_it)?;
        (own.view(self.now_ms()).standing == Standing::Well).then_some(own)
    }

    /// Whether the machine that jobs were given to by this word answers its probes.
    pub(super) fn reaches(&self, host: &str) -> bool {
        self.holder(host).is_some()
    }

    /// See the module.
    pub(super) async fn withdraw(&self, unwanted: &Unwanted) -> Withdrawn {
        let own = self.holder(&unwanted.holder.host);
        let Some((backend, target)) =
            own.as_ref().and_then(|own| Some((own, own.target.as_ref()?)))
        else {
            return Withdrawn::Untold("it is not there".to_owned());
        };
        let Ok(name) = HeaderValue::from_str(&unwanted.holder.name) else { return Withdrawn::Over };
        let whose = whose(unwanted.tenant, backend).map(|whose| (TENANT, whose));
        let headers: HeaderMap = whose.into_iter().collect();
        let withdrawal = Withdrawal { hub: self, backend, target, headers };
        match withdrawal.run(name, unwanted).await {
            Ok(withdrawn) => withdrawn,
            Err(why) => Withdrawn::Untold(why),
        }
    }
}

impl Withdrawal<'_> {
    async fn run(&self, name: HeaderValue, unwanted: &Unwanted) -> Result<Withdrawn, String> {
        let job = json!({
            "endpoint": unwanted.endpoint,
            "body": unwanted.body,
            "not_before_ms": NEVER_MS,
        });
        let mut call = self.call(Method::POST, "/v1/jobs");
        call.body = Bytes::from(job.to_string());
        call.headers.insert(NAME, name);
        call.headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        let (status, view) = self.ask(call).await?;
        let Some(path) = path_of(&view).filter(|_| status.is_success()) else {
            return match status {
                // Another job has that name, so ours has none there.
                StatusCode::CONFLICT => Ok(Withdrawn::Over),
                status => Err(format!("it answers {status}")),
            };
        };
        if is_over(&view) {
            return Ok(became(&view));
        }
        match self.ask(self.call(Method::DELETE, &path)).await? {
            (StatusCode::OK | StatusCode::NOT_FOUND, _) => Ok(Withdrawn::Over),
            // It was over before.
            (StatusCode::CONFLICT, _) => {
                let (status, view) = self.ask(self.call(Method::GET, &path)).await?;
                match status.is_success() && is_over(&view) {
                    true => Ok(became(&view)),
                    false => Err(format!("it answers {status} for {path}")),
                }
            }
            (status, _) => Err(format!("it answers {status} for {path}")),
        }
    }

    fn call<'c>(&'c self, method: Method, path: &'c str) -> Call<'c> {
        Call { method, headers: self.headers.clone(), ..Call::get(path, self.backend) }
    }

    async fn ask(&self, call: Call<'_>) -> Result<(StatusCode, Value), String> {
        let wait = self.hub.waits().head;
        let told = view(self.hub, self.backend, self.target, call, wait).await;
        let (status, view) = told.map_err(|error| error.why)?;
        Ok((StatusCode::from_u16(status).map_err(|error| error.to_string())?, view))
    }
}

/// What became of a job that is over.
fn became(view: &Value) -> Withdrawn {
    if view["state"] == "done" { Withdrawn::Answered } else { Withdrawn::Over }
}
