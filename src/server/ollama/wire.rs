//! What Ollama's requests have in common: options, formats, names, times.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Map, Value, json};

use crate::hosting::{HostError, Lease};
use crate::server::error::ApiError;
use crate::server::fields::Fields;
use crate::server::generate::{blocking, lease_of};
use crate::server::state::Server;

/// Ollama's names of options, and those that the engine's requests have for them.
const OPTIONS: [(&str, &str); 18] = [
    ("num_predict", "max_tokens"),
    ("num_keep", "n_keep"),
    ("seed", "seed"),
    ("temperature", "temperature"),
    ("top_k", "top_k"),
    ("top_p", "top_p"),
    ("min_p", "min_p"),
    ("typical_p", "typical_p"),
    ("repeat_last_n", "repeat_last_n"),
    ("repeat_penalty", "repeat_penalty"),
    ("presence_penalty", "presence_penalty"),
    ("frequency_penalty", "frequency_penalty"),
    ("mirostat", "mirostat"),
    ("mirostat_tau", "mirostat_tau"),
    ("mirostat_eta", "mirostat_eta"),
    ("stop", "stop"),
    ("dry_multiplier", "dry_multiplier"),
    ("xtc_probability", "xtc_probability"),
];
/// Fields of our own that mean the same in every dialect.
const OURS: [&str; 12] = [
    "priority",
    "deadline_ms",
    "cache_private",
    "context_shift",
    "request_id",
    "truncate_prompt",
    "on_disconnect",
    "keep_alive",
    "regex",
    "lark",
    "logprobs",
    "top_logprobs",
];

/// The fields that an engine's request is read from. Ollama streams unless told otherwise.
///
/// # Errors
/// Options of another shape, images, a format that is none.
pub(super) fn translated(fields: &Fields) -> Result<Fields, ApiError> {
    refuse_images(fields.get("images"), "images")?;
    let options = fields.object("options")?.cloned().unwrap_or_default();
    let mut own = Map::new();
    for (theirs, ours) in OPTIONS {
        if let Some(value) = options.get(theirs).filter(|value| !value.is_null()) {
            // -2 stands for the rest of the context, which is what -1 is here.
            let is_rest = theirs == "num_predict" && value.as_i64() == Some(-2);
            own.insert(ours.into(), if is_rest { json!(-1) } else { value.clone() });
        }
    }
    for name in OURS {
        if let Some(value) = fields.get(name) {
            own.insert(name.into(), value.clone());
        }
    }
    let streams = fields.bool("stream")?.unwrap_or(true);
    own.insert("stream".into(), streams.into());
    if let Some(think) = think(fields)? {
        let variables = json!({ "enable_thinking": think });
        own.insert("chat_template_kwargs".into(), variables);
    }
    Ok(Fields(own))
}

/// The schema that `format` asks for.
///
/// # Errors
/// If it is neither `json` nor a schema.
pub(super) fn schema(fields: &Fields) -> Result<Option<Value>, ApiError> {
    match fields.get("format") {
        None => Ok(None),
        Some(Value::String(word)) if word.is_empty() => Ok(None),
        Some(Value::String(word)) if word == "json" => Ok(Some(json!({}))),
        Some(schema @ Value::Object(_)) => Ok(Some(schema.clone())),
        Some(_) => Err(ApiError::field("format", "format must be \"json\" or a JSON schema")),
    }
}

/// Refuses pictures: the models here read text.
pub(super) fn refuse_images(images: Option<&Value>, path: &str) -> Result<(), ApiError> {
    let is_none = |images: &Value| images.is_null() || images.as_array().is_some_and(Vec::is_empty);
    match images {
        Some(images) if !is_none(images) => {
            let message = format!("{path} is not supported: the models here read text alone");
            Err(ApiError::field(path, message))
        }
        _ => Ok(()),
    }
}

/// Whether the model should reason first.
fn think(fields: &Fields) -> Result<Option<bool>, ApiError> {
    match fields.get("think") {
        None => Ok(None),
        Some(Value::Bool(is_on)) => Ok(Some(*is_on)),
        Some(Value::String(level)) if ["low", "medium", "high"].contains(&level.as_str()) => {
            Ok(Some(true))
        }
        Some(_) => Err(ApiError::field("think", "think must be true, false, low, medium or high")),
    }
}

/// A name without the tag that Ollama's clients add.
pub(super) fn plain_name(name: &str) -> &str {
    name.strip_suffix(":latest").unwrap_or(name)
}

/// The name of the model that a request asks for.
///
/// # Errors
/// If it is no text.
pub(super) fn model_name(fields: &Fields) -> Result<Option<String>, ApiError> {
    let name = match fields.str("model")? {
        None => fields.str("name")?,
        name => name,
    };
    Ok(name.map(|name| plain_name(name).to_owned()))
}

/// The model of a request.
///
/// # Errors
/// As for every dialect.
pub(super) async fn lease(server: &Server, fields: &Fields) -> Result<Lease, ApiError> {
    let mut named = Map::new();
    if let Some(name) = model_name(fields)? {
        named.insert("model".into(), name.into());
    }
    if let Some(keep) = fields.get("keep_alive") {
        named.insert("keep_alive".into(), keep.clone());
    }
    lease_of(server, &Fields(named)).await
}

/// The model of a request with nothing to do but to load or unload it, and which of them it was.
///
/// # Errors
/// As for every dialect.
pub(super) async fn moved(
    server: &Server,
    fields: &Fields,
) -> Result<(String, &'static str), ApiError> {
    if !is_unload(fields) {
        return Ok((lease(server, fields).await?.name().to_owned(), "load"));
    }
    let (host, name) = (server.0.host.clone(), model_name(fields)?);
    // The end of an engine is waited for.
    let name = blocking(move || match host.unload(name.as_deref()) {
        // With one model alone any name will do, as where it is to be used.
        Err(HostError::Unknown { .. }) if host.models().len() == 1 => Ok(host.unload(None)?),
        result => Ok(result?),
    });
    Ok((name.await?, "unload"))
}

fn is_unload(fields: &Fields) -> bool {
    match fields.get("keep_alive") {
        Some(Value::Number(keep)) => keep.as_f64() == Some(0.0),
        Some(Value::String(keep)) => keep.trim_end_matches(char::is_alphabetic) == "0",
        _ => false,
    }
}

/// Nanoseconds, as Ollama's durations are.
pub(super) fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// Now, as Ollama writes times.
pub(super) fn now() -> String {
    timestamp(SystemTime::now())
}

/// A time in UTC as RFC 3339 writes it; before 1970 counts as 1970.
pub(super) fn timestamp(time: SystemTime) -> String {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let (days, seconds) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
    // Days since 1970 as a date: eras of 400 years that begin on the first of March.
    let z = days + 719_468;
    let (era, day_of_era) = (z / 146_097, z % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    let micros = since.subsec_micros();
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{micros:06}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_dates() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00.000000Z"),
            (951_782_400, "2000-02-29T00:00:00.000000Z"),
            (1_735_689_599, "2024-12-31T23:59:59.000000Z"),
            (4_107_542_400, "2100-03-01T00:00:00.000000Z"),
        ] {
            assert_eq!(timestamp(UNIX_EPOCH + Duration::from_secs(seconds)), text);
        }
    }

    #[test]
    fn options_have_the_engines_names() {
        let body = json!({"options": {"num_predict": -2, "temperature": 0.5, "num_gpu": 3,
            "stop": ["a"]}, "keep_alive": "5m", "think": "low"});
        let own = translated(&Fields(body.as_object().unwrap().clone())).unwrap();
        assert_eq!(
            Value::Object(own.0),
            json!({"max_tokens": -1, "temperature": 0.5,
            "stop": ["a"], "keep_alive": "5m", "stream": true,
            "chat_template_kwargs": {"enable_thinking": true}})
        );
        for (body, param) in [
            (json!({"images": ["x"]}), "images"),
            (json!({"options": []}), "options"),
            (json!({"think": 1}), "think"),
            (json!({"stream": "no"}), "stream"),
        ] {
            let fields = Fields(body.as_object().unwrap().clone());
            assert_eq!(translated(&fields).unwrap_err().param.as_deref(), Some(param));
        }
        assert_eq!((plain_name("a:latest"), plain_name("a:7b")), ("a", "a:7b"));
    }
}
