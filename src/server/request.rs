//! The fields of a generation that mean the same in every dialect, as an engine's request.
//!
//! The prompt, the number of answers and what a dialect calls its own stay with the dialect.

use std::time::Duration;

use super::constraint::{exclusive, own_spec};
use super::error::ApiError;
use super::fields::Fields;
use super::generate::Trim;
use super::sampling::sampler_options;
use super::state::{Caller, ServeOptions};
use crate::base::limits::{ADAPTERS_MAX, REQUEST_ID_BYTES_MAX, STOPS_MAX, TOP_PROBS_MAX};
use crate::hosting::Lease;
use crate::inference::{GrammarRequest, GrammarSpec, Priority, Request, SpeculationOptions};

/// What a request wants besides its tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Wishes {
    /// Events instead of one answer.
    pub streams: bool,
    /// The last event of a stream says what it took.
    pub include_usage: bool,
    /// Timings with every event.
    pub timings_per_token: bool,
    /// Events while the prompt is read.
    pub return_progress: bool,
    /// A prompt that is too long is cut.
    pub trim: Option<Trim>,
    /// The request goes on when its reader leaves.
    pub is_detached: bool,
}

impl Wishes {
    /// Reads them.
    ///
    /// # Errors
    /// A field of the wrong type.
    pub fn read(fields: &Fields) -> Result<Wishes, ApiError> {
        let is_set = |name| fields.bool(name).map(|value| value == Some(true));
        let stream_options = fields.object("stream_options")?.cloned().unwrap_or_default();
        let usage = Fields(stream_options).bool("include_usage");
        let usage = usage.map_err(|error| error.at("stream_options.include_usage"))?;
        Ok(Wishes {
            streams: is_set("stream")?,
            include_usage: usage == Some(true),
            timings_per_token: is_set("timings_per_token")?,
            return_progress: is_set("return_progress")?,
            trim: trim(fields)?,
            is_detached: is_detached(fields)?,
        })
    }
}

/// How a prompt that is too long is cut; `None` where it is not.
///
/// # Errors
/// A word that is none of the three.
pub(super) fn trim(fields: &Fields) -> Result<Option<Trim>, ApiError> {
    Ok(match fields.choice("truncate_prompt", &["none", "middle", "start"])? {
        Some(1) => Some(Trim::Middle),
        Some(2) => Some(Trim::Start),
        _ => None,
    })
}

/// Whether the request goes on when its reader leaves.
///
/// # Errors
/// A word that is none of the two.
pub(super) fn is_detached(fields: &Fields) -> Result<bool, ApiError> {
    Ok(fields.choice("on_disconnect", &["cancel", "detach"])? == Some(1))
}

/// A request of nothing but who asks and the fields of our own, the same in every dialect.
///
/// # Errors
/// A field of the wrong type or out of its range.
pub(super) fn own(
    fields: &Fields,
    caller: &Caller,
    options: &ServeOptions,
) -> Result<Request, ApiError> {
    Ok(Request {
        id: id(fields, caller)?,
        tenant: caller.tenant,
        priority: priority(fields, caller)?,
        deadline: millis(fields, "deadline_ms")?,
        is_cache_private: fields.bool("cache_private")?.unwrap_or(false),
        context_shift: fields.bool("context_shift")?.unwrap_or(options.context_shift),
        ..Request::default()
    })
}

/// Everything but the prompt. `max_names` are the dialect's names for the most tokens of an
/// answer, the first that is there counts.
///
/// # Errors
/// A field of the wrong type or out of its range.
pub(super) fn request(
    fields: &Fields,
    max_names: &[&str],
    lease: &Lease,
    caller: &Caller,
    options: &ServeOptions,
) -> Result<Request, ApiError> {
    let is_set = |name, default: bool| fields.bool(name).map(|value| value.unwrap_or(default));
    let n_keep = fields.int("n_keep", -1..=i64::from(i32::MAX))?.unwrap_or(0);
    let mut request = Request {
        n_predict: n_predict(fields, max_names, options)?,
        stop: stop(fields)?,
        sampler: sampler_options(fields, lease.sampler(), lease.info().tokenizer())?,
        ignore_eos: is_set("ignore_eos", false)?,
        grammar: grammar(fields)?,
        adapters: adapters(fields, lease)?,
        uses_cache: is_set("cache_prompt", true)?,
        slot_idx: slot_idx(fields)?,
        n_keep: usize::try_from(n_keep).unwrap_or(usize::MAX),
        predict_time_max: millis(fields, "t_max_predict_ms")?,
        n_indent: fields.count("n_indent", i32::MAX as usize)?.unwrap_or(0),
        ..own(fields, caller, options)?
    };
    request.speculation = speculation(fields, options)?;
    Ok(request)
}

/// A request may be guessed for less than the service would, not more.
fn speculation(fields: &Fields, options: &ServeOptions) -> Result<SpeculationOptions, ApiError> {
    let serve = options.speculation();
    let n_max = fields.count("speculative.n_max", usize::MAX)?.unwrap_or(usize::MAX);
    let n_min = fields.count("speculative.n_min", usize::MAX)?;
    let p_min = fields.float("speculative.p_min")?;
    Ok(SpeculationOptions {
        n_draft_max: serve.n_draft_max.min(n_max),
        n_draft_min: n_min.unwrap_or(serve.n_draft_min),
        p_min: p_min.unwrap_or(serve.p_min),
        ..serve
    })
}

/// The number of likeliest tokens in the field `name`, up to a bound.
///
/// # Errors
/// A number that is negative or too large.
pub(super) fn n_probs(fields: &Fields, name: &str) -> Result<Option<usize>, ApiError> {
    fields.count(name, TOP_PROBS_MAX)
}

/// The caller's name for a request in timelines: its own, else the one that the service gave.
fn id(fields: &Fields, caller: &Caller) -> Result<String, ApiError> {
    let Some(id) = fields.str("request_id")? else { return Ok(caller.request_id.clone()) };
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_.:/".contains(c);
    if id.len() > REQUEST_ID_BYTES_MAX || !id.chars().all(is_plain) {
        let message = format!(
            "request_id must be at most {REQUEST_ID_BYTES_MAX} letters, digits or any of -_.:/"
        );
        return Err(ApiError::field("request_id", message));
    }
    Ok(id.to_owned())
}

/// -1 stands for as many as fit.
fn n_predict(
    fields: &Fields,
    names: &[&str],
    options: &ServeOptions,
) -> Result<Option<usize>, ApiError> {
    let Some(name) = names.iter().find(|name| fields.has(name)) else {
        return Ok(options.n_predict);
    };
    let n = fields.int(name, -1..=i64::from(i32::MAX))?;
    Ok(n.and_then(|n| usize::try_from(n).ok()))
}

fn stop(fields: &Fields) -> Result<Vec<String>, ApiError> {
    let mut stop = fields.strings("stop")?;
    stop.retain(|text| !text.is_empty());
    if stop.len() > STOPS_MAX {
        let message = format!("stop has {} strings; at most {STOPS_MAX} are allowed", stop.len());
        return Err(ApiError::field("stop", message));
    }
    Ok(stop)
}

/// `json_schema`, `grammar`, `regex` or `lark`. As in llama.cpp, an empty schema means any object.
fn grammar(fields: &Fields) -> Result<Option<GrammarRequest>, ApiError> {
    if let Some(spec) = own_spec(&fields.0)? {
        return Ok(Some(GrammarRequest { spec, triggers: Vec::new() }));
    }
    let gbnf = fields.str("grammar")?.filter(|text| !text.is_empty());
    let schema = fields.get("json_schema");
    let spec = match (schema, gbnf) {
        (Some(_), Some(_)) => return Err(exclusive("grammar", "json_schema")),
        (Some(schema), None) => schema_spec(schema, "json_schema")?,
        (None, Some(gbnf)) => GrammarSpec::Gbnf(gbnf.to_owned()),
        (None, None) => return Ok(None),
    };
    Ok(Some(GrammarRequest { spec, triggers: Vec::new() }))
}

/// A grammar for what fits a JSON schema.
///
/// # Errors
/// If it is no schema, as an error of the field `param`.
pub(super) fn schema_spec(
    schema: &serde_json::Value,
    param: &str,
) -> Result<GrammarSpec, ApiError> {
    match schema {
        serde_json::Value::Object(keys) if keys.is_empty() => Ok(GrammarSpec::JsonObject),
        serde_json::Value::Object(_) | serde_json::Value::Bool(true) => {
            Ok(GrammarSpec::JsonSchema(schema.to_string()))
        }
        _ => Err(ApiError::field(param, format!("{param} must be a JSON schema, an object"))),
    }
}

/// `[{"id": 0, "scale": 0.5}]`; a scale of 0 leaves the adapter out.
fn adapters(fields: &Fields, lease: &Lease) -> Result<Vec<(usize, f32)>, ApiError> {
    let Some(entries) = fields.array("lora")? else { return Ok(lease.adapters().to_vec()) };
    let mut adapters = Vec::new();
    for entry in entries {
        let id = entry.get("id").and_then(serde_json::Value::as_u64);
        let scale = entry.get("scale").and_then(serde_json::Value::as_f64);
        let (Some(id), Some(scale)) = (id, scale) else {
            let message = "lora must be an array of objects with id and scale";
            return Err(ApiError::field("lora", message));
        };
        if scale != 0.0 {
            adapters.push((id as usize, scale as f32));
        }
    }
    if adapters.len() > ADAPTERS_MAX {
        let message = format!("lora has more than {ADAPTERS_MAX} entries");
        return Err(ApiError::field("lora", message));
    }
    Ok(adapters)
}

/// The class that is asked for, no higher than the key allows.
fn priority(fields: &Fields, caller: &Caller) -> Result<Priority, ApiError> {
    let asked = match fields.choice("priority", &["interactive", "agent", "background"])? {
        None => caller.priority,
        Some(0) => Priority::Interactive,
        Some(1) => Priority::Agent,
        Some(_) => Priority::Background,
    };
    // A later class is a lower one.
    Ok(asked.max(caller.priority))
}

/// The slot that should run it; -1 for any.
fn slot_idx(fields: &Fields) -> Result<Option<usize>, ApiError> {
    let slot_idx = fields.int("id_slot", -1..=i64::from(i32::MAX))?;
    Ok(slot_idx.and_then(|slot_idx| usize::try_from(slot_idx).ok()))
}

/// A time in milliseconds; 0 and -1 stand for none.
fn millis(fields: &Fields, name: &str) -> Result<Option<Duration>, ApiError> {
    let ms = fields.int(name, -1..=i64::MAX)?.filter(|ms| *ms > 0);
    Ok(ms.map(|ms| Duration::from_millis(ms as u64)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inference::TenantId;
    use serde_json::json;

    #[test]
    fn our_own_fields_are_read_once_for_every_dialect() {
        let read = |body: serde_json::Value, class: Priority| {
            let fields = Fields::parse(body.to_string().as_bytes()).unwrap();
            let caller = Caller {
                tenant: TenantId(7),
                priority: class,
                request_id: "req-1".into(),
                ..Caller::default()
            };
            own(&fields, &caller, &ServeOptions { context_shift: true, ..Default::default() })
        };
        let plain = read(json!({}), Priority::Interactive).unwrap();
        assert_eq!((plain.id.as_str(), plain.tenant, plain.deadline), ("req-1", TenantId(7), None));
        assert_eq!((plain.is_cache_private, plain.context_shift), (false, true));
        let body = json!({"priority": "interactive", "deadline_ms": 1500, "cache_private": true,
            "context_shift": false, "request_id": "mine"});
        let asked = read(body, Priority::Agent).unwrap();
        assert_eq!(asked.priority, Priority::Agent, "never above what the key allows");
        assert_eq!(asked.deadline, Some(Duration::from_millis(1500)));
        assert_eq!((asked.is_cache_private, asked.context_shift), (true, false));
        assert_eq!(asked.id, "mine");
    }
}
