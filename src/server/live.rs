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
//! so many bytes, those that are finished go first. At a hub the text comes from wherever the hub
//! has it written, and is kept here all the same.

use std::collections::HashMap;
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

use super::afar::{Afar, Heard};
use super::cache::{CacheKey, digest};
use super::chat::{Delta, Parser};
use super::constraint::blame;
use super::fields::Fields;
use super::generate::{Generation, blocking, fit_prompt, lease_for, submit};
use super::openai::finish_reason;
use super::prompts::prompts;
use super::report::usage_json;
use super::request::{self, request};
use super::sockets::{self, Asked, Out};
use super::state::{Caller, Server};
use super::{ApiError, Gate, talk};
use crate::base::limits::{LIVE_BYTES_MAX, LIVE_FRAME_BYTES_MAX, LIVE_MAX, LIVE_TEXT_BYTES_MAX};
use crate::inference::{EngineError, Event, TenantId};

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
        let (changed, _) = watch::channel(0);
        let text = Arc::new(Text { digest, written: Mutex::default(), changed });
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
    let Asked { server, elsewhere, mut message, bytes, out } = asked;
    let fields = Fields::parse(&bytes)?;
    // Checks the name that the caller chose, or gives one.
    let name = request::own(&fields, &message.caller, &server.0.options)?.id;
    let key = (message.caller.tenant, name);
    let offset = fields.count("offset", usize::MAX)?.unwrap_or(0);
    let texts = &server.0.texts;
    let unknown = || ApiError::not_found("no text of this request_id is kept").at("request_id");
    if fields.bool("cancel")? == Some(true) {
        let text = texts.find(&key).ok_or_else(unknown)?;
        text.change(|written| written.is_canceled = true);
        let end = text.lock().text.len();
        return tell(&text, &key.1, end, &out).await;
    }
    if !fields.has("prompt") && !fields.has("messages") {
        let text = texts.find(&key).ok_or_else(unknown)?;
        return tell(&text, &key.1, offset, &out).await;
    }
    let mut body = fields.clone();
    ["offset", "stream"].iter().for_each(|name| drop(body.0.remove(*name)));
    // Nobody may be reading, and a context that is shifted never fills up.
    body.0.insert("context_shift".into(), false.into());
    if texts.find(&key).is_none_or(|text| text.has_failed()) {
        message.begin()?;
    }
    let (text, is_new) = texts.enter(&key, digest(&Value::Object(body.0.clone())))?;
    if is_new {
        body.0.insert("request_id".into(), key.1.as_str().into());
        let caller = Caller { request_id: key.1.clone(), ..message.caller };
        tokio::spawn(write(server.clone(), elsewhere, caller, body, Arc::clone(&text)));
    }
    tell(&text, &key.1, offset, &out).await
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
    let Some(rest) = written.text.get(offset..) else {
        let message = format!("offset is {offset}, which is no place in the text");
        return Err(ApiError::field("offset", message));
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

/// Writes a text to its end, whoever reads it.
async fn write(
    server: Server,
    elsewhere: Option<Router>,
    caller: Caller,
    fields: Fields,
    text: Arc<Text>,
) {
    // In its caller's place, also when the engine has all that it needs.
    let _held = caller.held.clone();
    // Whatever happens, readers hear of an end.
    let ending = Ending(Arc::clone(&text));
    let written = match elsewhere {
        Some(dialects) => written_afar(dialects, caller, fields, &text).await,
        None => written(server, caller, fields, &text).await,
    };
    if let Err(error) = written {
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

async fn written(
    server: Server,
    caller: Caller,
    fields: Fields,
    text: &Text,
) -> Result<(), ApiError> {
    let lease = lease_for(&server, &fields, &caller).await?;
    let work = move || {
        let options = &server.0.options;
        if fields.has("messages") {
            let talk = talk::start(&fields, lease, &caller, options)?;
            return Ok((talk.generation, Some(talk.parser.parser())));
        }
        let mut request = request(&fields, &["max_tokens", "n_predict"], &lease, &caller, options)?;
        let prompt = fields.get("prompt").cloned().unwrap_or_default();
        let mut several = prompts(&prompt, "prompt", lease.info().tokenizer())?;
        let (Some(mut prompt), true) = (several.pop(), several.is_empty()) else {
            return Err(ApiError::field("prompt", "prompt must be one prompt"));
        };
        fit_prompt(&mut prompt, request::trim(&fields)?, lease.info().n_ctx(), request.n_predict)?;
        request.prompt = prompt;
        let submitted = submit(lease, vec![request]);
        Ok((submitted.map_err(|error| blame(&fields.0, error))?, None))
    };
    let (generation, parser) = blocking(work).await?;
    follow(generation, parser, text).await
}

/// Puts down what is written elsewhere, until it is over or somebody ends it.
async fn written_afar(
    dialects: Router,
    caller: Caller,
    fields: Fields,
    text: &Text,
) -> Result<(), ApiError> {
    let mut changed = text.changed.subscribe();
    let mut afar = tokio::select! {
        afar = Afar::ask(dialects, caller, &fields) => afar?,
        () = canceled(text, &mut changed) => return Ok(()),
    };
    loop {
        let heard = tokio::select! {
            heard = afar.next() => heard?,
            () = canceled(text, &mut changed) => return Ok(()),
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

/// Returns when somebody has ended the text, which is written down.
async fn canceled(text: &Text, changed: &mut watch::Receiver<u64>) {
    while !text.lock().is_canceled {
        // The sender lives as long as the text.
        let _ = changed.changed().await;
    }
    text.change(|written| written.end = Some(json!({"finish_reason": "canceled"})));
}

/// Puts down what is said, until it is over or somebody ends it.
async fn follow(
    mut generation: Generation,
    mut parser: Option<Parser>,
    text: &Text,
) -> Result<(), ApiError> {
    let spoken = |deltas: Vec<Delta>| -> String {
        let content = deltas.into_iter().filter_map(|delta| match delta {
            Delta::Content(text) => Some(text),
            _ => None,
        });
        content.collect()
    };
    let mut changed = text.changed.subscribe();
    loop {
        // Also what was taken back before anybody listened.
        if text.lock().is_canceled {
            text.change(|written| written.end = Some(json!({"finish_reason": "canceled"})));
            return Ok(());
        }
        let event = tokio::select! {
            event = generation.next() => event,
            _ = changed.changed() => continue,
        };
        match event {
            None => return Err(ApiError::from(EngineError::Stopping)),
            Some((_, Event::Failed(error))) => return Err(ApiError::from(error.as_ref())),
            Some((_, Event::Progress { .. })) => {}
            Some((_, Event::Text { text: more, timings, .. })) => {
                let more = match &mut parser {
                    Some(parser) => spoken(parser.push(&more)),
                    None => more,
                };
                if !more.is_empty() {
                    text.change(|written| written.text.push_str(&more));
                }
                if text.lock().text.len() > LIVE_TEXT_BYTES_MAX {
                    let end = json!({"finish_reason": "length", "usage": usage_json(&timings)});
                    text.change(|written| written.end = Some(end));
                    return Ok(());
                }
            }
            Some((_, Event::Done { finish, timings, .. })) => {
                let rest = parser.as_mut().map(|parser| spoken(parser.finish()));
                let end = json!({
                    "finish_reason": finish_reason(&finish, false),
                    "usage": usage_json(&timings),
                });
                text.change(|written| {
                    written.text.push_str(&rest.unwrap_or_default());
                    written.end = Some(end);
                });
                return Ok(());
            }
        }
    }
}
