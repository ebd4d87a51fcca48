//! `/ws/completions`: text as it is written, over a WebSocket that may break and be taken up again.
//!
//! ```text
//! {"prompt" or "messages", ...}           begins; on any socket, frames of one text may follow
//! {"request_id", "offset"}                goes on from there, while it is written or afterwards
//! {"request_id", "cancel": true}          ends it
//!
//! {"request_id", "offset", "next", "text", "done": false}
//! {"request_id", "offset", "next", "text": "", "done": true, "finish_reason", "usage"}
//! {"request_id", "error": {...}}
//! ```
//!
//! Offsets are bytes of UTF-8; a caller only sends back the last `next` that it has. A text is
//! written to its end although its reader has gone, into a buffer that is bounded: so many texts,
//! so many bytes, those that are finished go first.
//!
//! A text is asked of the dialects as any request: at a hub it is written wherever the hub has it
//! written. One whose caller named it is a job, so it is there also when the program was killed, or
//! the buffer had no room for it any more: it is asked for again as the job has it, and comes from
//! its start, as much of it as is there.

use std::collections::HashMap;
use std::future::ready;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::extract::ws::WebSocketUpgrade;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::http::HeaderMap;
use axum::response::Response;
use axum::routing::get;
use serde_json::{Value, json};
use tokio::sync::watch;

use super::afar::{Afar, Heard, Wanted};
use super::cache::CacheKey;
use super::fields::Fields;
use super::gate::Message;
use super::jobs::Door;
use super::request;
use super::sockets::{self, Asked, Out};
use super::state::Caller;
use super::{ApiError, Gate};
use crate::base::limits::{LIVE_BYTES_MAX, LIVE_FRAME_BYTES_MAX, LIVE_MAX};
use crate::inference::{EngineError, TenantId};
use crate::jobs::{Job, JobsError};

type Key = (TenantId, String);

/// The routes of this file.
pub(super) fn routes() -> Router<Gate> {
    Router::new().route("/ws/completions", get(open))
}

/// A text that is being written, or was.
struct Text {
    digest: CacheKey,
    written: Mutex<Written>,
    /// Changes whenever `written` does.
    changed: watch::Sender<u64>,
}

#[derive(Default)]
struct Written {
    text: String,
    /// The last frame's own fields, once there is one.
    end: Option<Value>,
    is_canceled: bool,
}

/// Every text that can be taken up again.
#[derive(Default)]
pub(super) struct Texts(Mutex<Kept>);

#[derive(Default)]
struct Kept {
    /// With the time of their last use.
    texts: HashMap<Key, (u64, Arc<Text>)>,
    clock: u64,
}

impl Kept {
    fn find(&mut self, key: &Key) -> Option<Arc<Text>> {
        self.clock += 1;
        let (used_at, text) = self.texts.get_mut(key)?;
        *used_at = self.clock;
        Some(Arc::clone(text))
    }
}

impl Text {
    fn new(digest: CacheKey) -> Text {
        let (changed, _) = watch::channel(0);
        Text { digest, written: Mutex::default(), changed }
    }

    /// One that was ended before any of it was known here.
    fn canceled() -> Text {
        let text = Text::new(CacheKey::default());
        text.lock().end = Some(json!({"finish_reason": "canceled"}));
        text
    }

    fn lock(&self) -> MutexGuard<'_, Written> {
        self.written.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut Written)) {
        change(&mut self.lock());
        self.changed.send_modify(|n| *n += 1);
    }

    fn has_failed(&self) -> bool {
        self.lock().end.as_ref().is_some_and(|end| end["finish_reason"] == "error")
    }

    fn is_over(&self) -> bool {
        self.lock().end.is_some()
    }
}

impl Texts {
    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn find(&self, key: &Key) -> Option<Arc<Text>> {
        self.lock().find(key)
    }

    /// The text of this name, and whether it is new: then it is the caller's to write.
    fn enter(&self, key: &Key, digest: CacheKey) -> Result<(Arc<Text>, bool), ApiError> {
        let mut kept = self.lock();
        // What failed may go again.
        if let Some(text) = kept.find(key).filter(|text| !text.has_failed()) {
            return match text.digest == digest {
                true => Ok((text, false)),
                false => {
                    let message = format!("request_id {:?} stands for another request", key.1);
                    Err(ApiError::conflict(message).at("request_id"))
                }
            };
        }
        let n_bytes = |kept: &Kept| -> usize {
            kept.texts.values().map(|(_, text)| text.lock().text.len()).sum()
        };
        while kept.texts.len() >= LIVE_MAX || n_bytes(&kept) > LIVE_BYTES_MAX {
            let over = kept.texts.iter().filter(|(_, (_, text))| text.is_over());
            let oldest = over.min_by_key(|(_, (used_at, _))| *used_at).map(|(key, _)| key.clone());
            let Some(oldest) = oldest else {
                let busy = "too many texts are being written; try again in a second";
                return Err(ApiError::unavailable(busy, Duration::from_secs(1)));
            };
            kept.texts.remove(&oldest);
        }
        let text = Arc::new(Text::new(digest));
        kept.clock += 1;
        let used_at = kept.clock;
        kept.texts.insert(key.clone(), (used_at, Arc::clone(&text)));
        Ok((text, true))
    }
}

async fn open(
    State(gate): State<Gate>,
    headers: HeaderMap,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response, ApiError> {
    let refusal = |error: ApiError, id| {
        let mut said = error.to_json();
        said["request_id"] = id;
        said
    };
    let talk = sockets::Talk { route: "/ws/completions", answer, refusal };
    sockets::open(gate, &headers, upgrade, talk)
}

async fn answer(asked: Asked) -> Result<(), ApiError> {
    let Asked { gate, message, bytes, out } = asked;
    let fields = Fields::parse(&bytes)?;
    let server = gate.server();
    // Checks the name that the caller chose, or gives one.
    let id = request::own(&fields, &message.caller, &server.0.options)?.id;
    let name = fields.str("request_id")?.filter(|id| !id.is_empty());
    let key = (message.caller.tenant, id);
    let offset = fields.count("offset", usize::MAX)?.unwrap_or(0);
    let kept = server.0.texts.find(&key);
    if fields.bool("cancel")? == Some(true) {
        let text = end(&gate, &key, kept).await?;
        let end = text.lock().text.len();
        return tell(&text, &key.1, end, &out).await;
    }
    let wanted = match (fields.has("prompt") || fields.has("messages"), kept) {
        (true, _) => Wanted::of(&fields.0, name),
        (false, Some(text)) if !text.has_failed() => {
            return tell(&text, &key.1, offset, &out).await;
        }
        (false, kept) => match (job_of(&gate, &key).await?, kept) {
            (Some(of_job), _) => of_job.wanted,
            (None, Some(failed)) => return tell(&failed, &key.1, offset, &out).await,
            (None, None) => return Err(unknown()),
        },
    };
    let text = enter(&gate, message, &key, wanted, name.is_some())?;
    tell(&text, &key.1, offset, &out).await
}

fn unknown() -> ApiError {
    ApiError::not_found("no text of this request_id is kept").at("request_id")
}

/// The job of a text, also of one that memory knows nothing of any more.
struct OfJob {
    door: Door,
    job: Job,
    wanted: Wanted,
}

/// The job of this name, if it is a text's.
async fn job_of(gate: &Gate, key: &Key) -> Result<Option<OfJob>, ApiError> {
    let Some(door) = gate.jobs().cloned() else { return Ok(None) };
    let (tenant, name) = (key.0.0, key.1.clone());
    let found = door.ask(move |jobs| match jobs.of_request(tenant, &name) {
        Err(JobsError::Unknown) => Ok(None),
        Err(error) => Err(error),
        Ok(job) => Ok(Some((jobs.body(&job)?, job))),
    });
    Ok(found.await?.and_then(|(body, job)| {
        let wanted = Wanted::of_job(&job.row.endpoint, &body)?;
        Some(OfJob { door, job, wanted })
    }))
}

/// Ends a text, in memory and as a job.
async fn end(gate: &Gate, key: &Key, kept: Option<Arc<Text>>) -> Result<Arc<Text>, ApiError> {
    if let Some(text) = &kept {
        text.change(|written| written.is_canceled = true);
    }
    match (job_of(gate, key).await?, kept) {
        (None, kept) => kept.ok_or_else(unknown),
        (Some(OfJob { job, .. }), None) if job.state.is_over() => {
            Err(JobsError::Illegal { state: job.state }.into())
        }
        (Some(OfJob { door, job, .. }), kept) => {
            door.take_back(job.row.id).await?;
            Ok(kept.unwrap_or_else(|| Arc::new(Text::canceled())))
        }
    }
}

/// The text of a name, which is asked for if it is not there.
fn enter(
    gate: &Gate,
    mut message: Message,
    key: &Key,
    wanted: Wanted,
    is_named: bool,
) -> Result<Arc<Text>, ApiError> {
    let texts = &gate.server().0.texts;
    if texts.find(key).is_none_or(|text| text.has_failed()) {
        message.begin()?;
    }
    let (text, is_new) = texts.enter(key, wanted.digest())?;
    if is_new {
        let caller = Caller { request_id: key.1.clone(), ..message.caller };
        tokio::spawn(write(gate.clone(), caller, wanted, is_named, Arc::clone(&text)));
    }
    Ok(text)
}

/// Tells a text from `offset` on, to its end.
async fn tell(text: &Text, id: &str, mut offset: usize, out: &Out) -> Result<(), ApiError> {
    let mut changed = text.changed.subscribe();
    loop {
        changed.mark_unchanged();
        let frame = next(&text.lock(), id, offset)?;
        match frame {
            Some((frame, next, is_last)) => {
                offset = next;
                // A peer that has left needs no more.
                if out.send(frame.to_string()).await.is_err() || is_last {
                    return Ok(());
                }
            }
            None if changed.changed().await.is_err() => {
                return Err(ApiError::from(EngineError::Stopping));
            }
            None => {}
        }
    }
}

/// The frame at `offset`, where the next one begins, and whether it is the last; `None` where
/// there is nothing yet.
fn next(
    written: &Written,
    id: &str,
    offset: usize,
) -> Result<Option<(Value, usize, bool)>, ApiError> {
    let rest = match (written.text.get(offset..), &written.end) {
        (Some(rest), _) => rest,
        // A text that is taken up comes from its start.
        (None, None) if offset > written.text.len() => return Ok(None),
        // What went wrong says more than a place that is none.
        (None, Some(end)) if end["finish_reason"] == "error" => "",
        _ => {
            let message = format!("offset is {offset}, which is no place in the text");
            return Err(ApiError::field("offset", message));
        }
    };
    let mut n = rest.len().min(LIVE_FRAME_BYTES_MAX);
    while !rest.is_char_boundary(n) {
        n -= 1;
    }
    let next = offset + n;
    let head = json!({"request_id": id, "offset": offset, "next": next, "text": rest[..n]});
    let Value::Object(mut frame) = head else { return Ok(None) };
    match &written.end {
        _ if n > 0 => {
            frame.insert("done".into(), false.into());
            Ok(Some((frame.into(), next, false)))
        }
        None => Ok(None),
        Some(end) => {
            frame.insert("done".into(), true.into());
            frame.extend(end.as_object().cloned().unwrap_or_default());
            Ok(Some((frame.into(), next, true)))
        }
    }
}

/// Has a text written to its end, whoever reads it; one with a name as a job.
async fn write(gate: Gate, caller: Caller, wanted: Wanted, is_named: bool, text: Arc<Text>) {
    // In its caller's place, also when the engine has all that it needs.
    let _held = caller.held.clone();
    // Whatever happens, readers hear of an end.
    let ending = Ending(Arc::clone(&text));
    if let Err(error) = put_down(&gate, caller, wanted, is_named, &text).await
        && !text.is_over()
    {
        let end = json!({"finish_reason": "error", "error": error.to_json()["error"]});
        text.change(|written| written.end = Some(end));
    }
    drop(ending);
}

struct Ending(Arc<Text>);

impl Drop for Ending {
    fn drop(&mut self) {
        if !self.0.is_over() {
            let error = ApiError::internal("the text ended before its end").to_json();
            let end = json!({"finish_reason": "error", "error": error["error"]});
            self.0.change(|written| written.end = Some(end));
        }
    }
}

/// Puts down what is written, until it is over or somebody ends it.
async fn put_down(
    gate: &Gate,
    caller: Caller,
    wanted: Wanted,
    is_named: bool,
    text: &Text,
) -> Result<(), ApiError> {
    let dialects = gate.dialects().ok_or_else(|| ApiError::internal("nobody answers yet"))?;
    let key = (caller.tenant, caller.request_id.clone());
    let name = is_named.then(|| key.1.clone());
    let mut changed = text.changed.subscribe();
    let mut asking = pin!(Afar::ask(dialects, caller, wanted, name));
    // Whoever ends it ends its job as well: that is no fault of it.
    let mut afar = tokio::select! {
        biased;
        () = canceled(text, &mut changed) => return end_job(gate, &key, is_named, asking).await,
        afar = &mut asking => afar?,
    };
    loop {
        let heard = tokio::select! {
            biased;
            () = canceled(text, &mut changed) => {
                return end_job(gate, &key, is_named, ready(())).await;
            }
            heard = afar.next() => heard?,
        };
        match heard {
            Heard::Text(more) => text.change(|written| written.text.push_str(&more)),
            Heard::End(end) => {
                text.change(|written| written.end = Some(end));
                return Ok(());
            }
        }
    }
}

/// Takes back the job of a text that was ended. Whoever ended it may have come before it was on the
/// disk, while it was asked for, and may have left by now.
async fn end_job(
    gate: &Gate,
    key: &Key,
    is_named: bool,
    asking: impl Future,
) -> Result<(), ApiError> {
    let mut asking = pin!(asking);
    let Some(door) = gate.jobs().filter(|_| is_named) else { return Ok(()) };
    let (mut changes, mut is_asked) = (door.changes(), false);
    loop {
        changes.mark_unchanged();
        if let Some(OfJob { door, job, .. }) = job_of(gate, key).await? {
            return door.take_back(job.row.id).await.map(drop);
        }
        if is_asked {
            return Ok(());
        }
        tokio::select! {
            _ = &mut asking => is_asked = true,
            _ = changes.changed() => {}
        }
    }
}

/// Returns when somebody has ended the text, which is written down.
async fn canceled(text: &Text, changed: &mut watch::Receiver<u64>) {
    while !text.lock().is_canceled {
        // The sender lives as long as the text.
        let _ = changed.changed().await;
    }
    text.change(|written| written.end = Some(json!({"finish_reason": "canceled"})));
}
