//! Texts of `/ws/completions` that a hub has written: posted to wherever the hub sends requests,
//! and put down here as they come, so that they can be taken up again at this address.
//!
//! The text is asked for as a stream of OpenAI's, which every backend speaks. What a stream that is
//! cut means is the hub's matter; here it ends, or it has failed.

use axum::Router;
use axum::body::Body;
use axum::http::{Request, StatusCode, header};
use axum::response::Response;
use http_body_util::{BodyExt, Limited};
use hyper::service::Service;
use hyper_util::service::TowerToHyperService;
use serde_json::{Map, Value, json};

use super::fields::Fields;
use super::frames::{self, Form, Said, Splitter};
use super::{ApiError, Caller};
use crate::base::limits::{HUB_FRAME_BYTES_MAX, LIVE_TEXT_BYTES_MAX};

/// Fields that mean nothing elsewhere, or another thing.
const OWN: [&str; 5] = ["request_id", "offset", "cancel", "n", "n_cmpl"];

/// A text on its way from elsewhere.
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

impl Afar {
    /// Asks for the text of `fields`.
    pub async fn ask(dialects: Router, caller: Caller, fields: &Fields) -> Result<Afar, ApiError> {
        let (path, body) = request(&fields.0)?;
        let request = Request::post(path)
            .header(header::CONTENT_TYPE, "application/json")
            .extension(caller)
            .body(Body::from(body.to_string()))
            .map_err(|error| ApiError::internal(error.to_string()))?;
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

/// The path and body that ask elsewhere for what `fields` asks for here.
fn request(fields: &Map<String, Value>) -> Result<(&'static str, Value), ApiError> {
    let mut body = fields.clone();
    OWN.iter().for_each(|name| drop(body.remove(*name)));
    let is_one = |prompt: &Value| match prompt {
        Value::Array(parts) => parts.len() == 1 || parts.iter().all(Value::is_number),
        _ => true,
    };
    if !body.get("prompt").is_none_or(is_one) {
        return Err(ApiError::field("prompt", "prompt must be one prompt"));
    }
    let path = match body.contains_key("messages") {
        true => "/v1/chat/completions",
        false => "/v1/completions",
    };
    if let Some(n) = body.remove("n_predict") {
        body.entry("max_tokens").or_insert(n);
    }
    body.insert("stream".into(), true.into());
    body.insert("stream_options".into(), json!({"include_usage": true}));
    Ok((path, Value::Object(body)))
}

async fn refused(answer: Response) -> ApiError {
    let status = answer.status();
    let body = Limited::new(answer.into_body(), HUB_FRAME_BYTES_MAX).collect().await;
    let bytes = body.map(|body| body.to_bytes()).unwrap_or_default();
    let told: Value = serde_json::from_slice(&bytes).unwrap_or_default();
    let message = told["error"]["message"].as_str().map(str::to_owned);
    let message = message.unwrap_or_else(|| format!("a backend answers {status}"));
    ApiError::new(status, "upstream_error", message)
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
    fn what_is_asked_elsewhere_says_the_same() {
        let ask = |body: Value| request(body.as_object().unwrap());
        let own = json!({"prompt": "p", "n_predict": 4, "request_id": "r", "offset": 3});
        let (path, body) = ask(own).unwrap();
        let usage = json!({"include_usage": true});
        assert_eq!(path, "/v1/completions");
        assert_eq!(
            body,
            json!({"prompt": "p", "max_tokens": 4, "stream": true, "stream_options": usage})
        );
        assert_eq!(ask(json!({"messages": []})).unwrap().0, "/v1/chat/completions");
        assert!(ask(json!({"prompt": ["a", "b"]})).is_err());
        assert!(ask(json!({"prompt": [1, 2]})).is_ok());
    }
}
