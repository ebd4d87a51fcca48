//! Texts of `/ws/completions` as they are asked of the dialects: posted as any request, so to
//! wherever a hub sends it and as a job where it has a name, and put down as they come.
//!
//! A text is asked for as a stream of OpenAI's, which every backend speaks. What a stream that is
//! cut means is the hub's matter; here it ends, or it has failed.

use axum::Router;
use axum::body::Body;
use axum::http::{Request, StatusCode, header};
use axum::response::Response;
use http_body_util::{BodyExt, Limited};
use hyper::service::Service;
use hyper_util::service::TowerToHyperService;
use serde_json::{Map, Value, json};

use super::cache::{CacheKey, digest};
use super::frames::{self, Form, Said, Splitter};
use super::{ApiError, Caller};
use crate::base::limits::{HUB_FRAME_BYTES_MAX, LIVE_TEXT_BYTES_MAX};

const CHAT: &str = "/v1/chat/completions";
const TEXT: &str = "/v1/completions";
/// Fields that mean nothing there, or another thing.
const OWN: [&str; 6] = ["request_id", "offset", "cancel", "on_disconnect", "n", "n_cmpl"];

/// A text that is asked for.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Wanted {
    path: &'static str,
    body: Value,
}

/// A text on its way.
pub(super) struct Afar {
    body: Body,
    frames: Splitter,
    n_text: usize,
    finish: Option<Value>,
    usage: Value,
    host: Value,
}

/// What comes.
pub(super) enum Heard {
    /// More of the text.
    Text(String),
    /// Its end.
    End(Value),
}

impl Wanted {
    /// What `fields` ask for. One that has a name is the same text whenever it is asked for: where
    /// it has no seed, its name gives it one.
    pub fn of(fields: &Map<String, Value>, name: Option<&str>) -> Wanted {
        let mut body = fields.clone();
        OWN.iter().for_each(|name| drop(body.remove(*name)));
        let path = match body.contains_key("messages") {
            true => CHAT,
            false => TEXT,
        };
        if let Some(n) = body.remove("n_predict") {
            body.entry("max_tokens").or_insert(n);
        }
        // Nobody may be reading, and a context that is shifted never fills up.
        body.insert("context_shift".into(), false.into());
        body.insert("stream".into(), true.into());
        body.insert("stream_options".into(), json!({"include_usage": true}));
        let has_seed = body.get("seed").and_then(Value::as_i64).is_some_and(|seed| seed >= 0);
        if let Some(name) = name.filter(|_| !has_seed) {
            let [a, b, c, d, ..] = digest(&json!([name, path, body]));
            body.insert("seed".into(), (u32::from_le_bytes([a, b, c, d]) >> 1).into());
        }
        Wanted { path, body: body.into() }
    }

    /// What was asked for by a job; `None` if that was something else.
    pub fn of_job(endpoint: &str, body: &[u8]) -> Option<Wanted> {
        let path = [CHAT, TEXT].into_iter().find(|path| *path == endpoint)?;
        let body: Value = serde_json::from_slice(body).ok()?;
        (body["stream"] == true).then_some(Wanted { path, body })
    }

    /// What tells it from others.
    pub fn digest(&self) -> CacheKey {
        digest(&json!([self.path, self.body]))
    }

    /// # Errors
    /// If there is more than one prompt.
    fn check(&self) -> Result<(), ApiError> {
        let is_one = match &self.body["prompt"] {
            Value::Array(parts) => parts.len() == 1 || parts.iter().all(Value::is_number),
            _ => true,
        };
        is_one.then_some(()).ok_or_else(|| ApiError::field("prompt", "prompt must be one prompt"))
    }
}

impl Afar {
    /// Asks for a text; by `name` it is a job.
    pub async fn ask(
        dialects: Router,
        caller: Caller,
        wanted: Wanted,
        name: Option<String>,
    ) -> Result<Afar, ApiError> {
        wanted.check()?;
        let mut request = Request::post(wanted.path)
            .header(header::CONTENT_TYPE, "application/json")
            .extension(caller);
        if let Some(name) = name {
            request = request.header("idempotency-key", name);
        }
        let request = request.body(Body::from(wanted.body.to_string()));
        let request = request.map_err(|error| ApiError::internal(error.to_string()))?;
        let Ok(mut answer) = TowerToHyperService::new(dialects).call(request).await;
        if let Some(error) = answer.extensions_mut().remove::<ApiError>() {
            return Err(error);
        }
        if !answer.status().is_success() {
            return Err(refused(answer).await);
        }
        let body = answer.into_body();
        let (usage, host) = (Value::Null, Value::Null);
        let frames = Splitter::new(Form::Events);
        Ok(Afar { body, frames, n_text: 0, finish: None, usage, host })
    }

    /// What comes next. After the end nothing does.
    pub async fn next(&mut self) -> Result<Heard, ApiError> {
        loop {
            while let Some(frame) = self.frames.next_frame() {
                if let Some(heard) = self.hear(&frame)? {
                    return Ok(heard);
                }
            }
            let broke =
                || ApiError::new(StatusCode::BAD_GATEWAY, "upstream_error", "the answer broke off");
            match self.body.frame().await {
                Some(Ok(frame)) => {
                    let bytes = frame.into_data().unwrap_or_default();
                    self.frames.push(&bytes).map_err(|_| broke())?;
                }
                // Not every server says that it is done.
                None if self.finish.is_some() => return Ok(self.end()),
                Some(Err(_)) | None => return Err(broke()),
            }
        }
    }

    fn hear(&mut self, frame: &[u8]) -> Result<Option<Heard>, ApiError> {
        let value = match frames::read(Form::Events, frame) {
            Said::Nothing => return Ok(None),
            Said::Done => return Ok(Some(self.end())),
            Said::Value(value) => value,
            Said::Other => return Err(ApiError::internal("a frame that is no JSON")),
        };
        if frames::has_error(&value) {
            let message = value["error"]["message"].as_str().unwrap_or("the answer failed");
            return Err(ApiError::new(StatusCode::BAD_GATEWAY, "upstream_error", message));
        }
        let take = |name: &str, own: &mut Value| {
            if let Some(value) = value.get(name).filter(|value| !value.is_null()) {
                *own = value.clone();
            }
        };
        take("usage", &mut self.usage);
        take("jetforge_host", &mut self.host);
        let choice = &value["choices"][0];
        if !choice["finish_reason"].is_null() {
            self.finish = Some(choice["finish_reason"].clone());
        }
        let text = choice["delta"]["content"].as_str().or(choice["text"].as_str());
        let Some(text) = text.filter(|text| !text.is_empty()) else { return Ok(None) };
        self.n_text += text.len();
        if self.n_text > LIVE_TEXT_BYTES_MAX {
            self.finish = Some("length".into());
            return Ok(Some(self.end()));
        }
        Ok(Some(Heard::Text(text.to_owned())))
    }

    fn end(&self) -> Heard {
        let finish = self.finish.clone().unwrap_or_else(|| "stop".into());
        let mut end = json!({"finish_reason": finish, "usage": self.usage});
        if !self.host.is_null() {
            end["jetforge_host"] = self.host.clone();
        }
        Heard::End(end)
    }
}

async fn refused(answer: Response) -> ApiError {
    let status = answer.status();
    let body = Limited::new(answer.into_body(), HUB_FRAME_BYTES_MAX).collect().await;
    let bytes = body.map(|body| body.to_bytes()).unwrap_or_default();
    let told: Value = serde_json::from_slice(&bytes).unwrap_or_default();
    let message = told["error"]["message"].as_str().map(str::to_owned);
    let message = message.unwrap_or_else(|| format!("a backend answers {status}"));
    let param = told["error"]["param"].as_str().map(str::to_owned);
    ApiError { param, ..ApiError::new(status, "upstream_error", message) }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn told(text: &str) -> (String, Result<Value, String>) {
        let (usage, host) = (Value::Null, Value::Null);
        let (body, frames) = (Body::from(text.to_owned()), Splitter::new(Form::Events));
        let mut afar = Afar { body, frames, n_text: 0, finish: None, usage, host };
        let mut text = String::new();
        loop {
            match afar.next().await {
                Ok(Heard::Text(more)) => text += &more,
                Ok(Heard::End(end)) => return (text, Ok(end)),
                Err(error) => return (text, Err(error.message)),
            }
        }
    }

    #[tokio::test]
    async fn a_text_from_elsewhere_ends_or_has_failed() {
        let whole = ": hi\n\ndata: {\"jetforge_host\":\"nano\",\"choices\":[{\"text\":\"de\"}]}\n\n\
            data: {\"choices\":[{\"text\":\"f\",\"finish_reason\":\"stop\"}]}\n\n\
            data: {\"choices\":[],\"usage\":{\"total_tokens\":3}}\n\ndata: [DONE]\n\n";
        let end = json!({"finish_reason": "stop", "usage": {"total_tokens": 3},
            "jetforge_host": "nano"});
        assert_eq!(told(whole).await, ("def".to_owned(), Ok(end.clone())));
        // As servers outside end their lines.
        let other = whole.replace('\n', "\r\n");
        assert_eq!(told(&other).await, ("def".to_owned(), Ok(end)));
        let chat = "data: {\"choices\":[{\"delta\":{\"content\":\"x\"},\
            \"finish_reason\":\"length\"}]}\n\n";
        let (text, end) = told(chat).await;
        assert_eq!((text.as_str(), &end.unwrap()["finish_reason"]), ("x", &json!("length")));
        let cut = "data: {\"choices\":[{\"text\":\"de\"}]}\n\ndata: {\"cho";
        assert_eq!(told(cut).await, ("de".to_owned(), Err("the answer broke off".to_owned())));
        let failed = "data: {\"error\":{\"message\":\"no\"}}\n\n";
        assert_eq!(told(failed).await, (String::new(), Err("no".to_owned())));
    }

    #[test]
    fn what_is_asked_there_says_the_same_whenever_it_is_asked() {
        let of = |body: Value, name| Wanted::of(body.as_object().unwrap(), name);
        let own = json!({"prompt": "p", "n_predict": 4, "request_id": "r", "offset": 3});
        let Wanted { path, body } = of(own.clone(), None);
        let usage = json!({"include_usage": true});
        assert_eq!(path, "/v1/completions");
        assert_eq!(
            body,
            json!({"prompt": "p", "max_tokens": 4, "stream": true, "stream_options": usage,
                "context_shift": false})
        );
        assert_eq!(of(json!({"messages": []}), None).path, "/v1/chat/completions");
        assert!(of(json!({"prompt": ["a", "b"]}), None).check().is_err());
        assert!(of(json!({"prompt": [1, 2]}), None).check().is_ok());
        let named = of(own.clone(), Some("r"));
        assert!(named.body["seed"].is_u64() && named == of(own.clone(), Some("r")), "{named:?}");
        assert_ne!(named.body["seed"], of(own.clone(), Some("s")).body["seed"]);
        let seeded = json!({"prompt": "p", "seed": 7});
        assert_eq!(of(seeded, Some("r")).body["seed"], 7);
        // As its job has it.
        let job = |path: &str, body: &Value| Wanted::of_job(path, body.to_string().as_bytes());
        let found = job("/v1/completions", &named.body).unwrap();
        assert_eq!((found.digest(), &found), (named.digest(), &named));
        assert_eq!(job("/v1/completions", &own), None, "it does not stream");
        assert_eq!(job("/completion", &named.body), None);
    }
}
