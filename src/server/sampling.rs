//! Sampling fields, under llama.cpp's names and OpenAI's: the same in every dialect.

use serde_json::Value;

use super::error::ApiError;
use super::fields::Fields;
use crate::base::limits::SAMPLER_LAST_N_MAX;
use crate::inference::{EncodeOptions, SamplerKind, SamplerOptions, TokenId, Tokenizer};

/// Sampling options of a request: what it names, else `defaults`.
///
/// # Errors
/// A field of the wrong type or out of its range, by its name.
pub(super) fn sampler_options(
    fields: &Fields,
    defaults: &SamplerOptions,
    tokenizer: &Tokenizer,
) -> Result<SamplerOptions, ApiError> {
    let mut options = defaults.clone();
    read_floats(fields, &mut options)?;
    read_counts(fields, &mut options)?;
    if let Some(breakers) = fields.array("dry_sequence_breakers")? {
        let texts = fields.strings("dry_sequence_breakers")?;
        if breakers.is_empty() {
            let message = "dry_sequence_breakers must hold at least one string";
            return Err(ApiError::field("dry_sequence_breakers", message));
        }
        options.dry_sequence_breakers = texts;
    }
    if let Some(value) = fields.get("samplers") {
        options.samplers = samplers(value)?;
    }
    if let Some(value) = fields.get("logit_bias") {
        options.logit_bias = logit_bias(value, tokenizer)?;
    }
    options.check(tokenizer.n_vocab()).map_err(|error| {
        let param = error.field().map(|field| wire_name(fields, field).to_owned());
        ApiError { param, ..ApiError::invalid(error.to_string()) }
    })?;
    Ok(options)
}

/// The wire's names of options whose own names differ; the first that a request uses counts.
const RENAMED: [(&str, &[&str]); 6] = [
    ("temp", &["temperature", "temp"]),
    ("typ_p", &["typical_p", "typ_p"]),
    ("penalty_last_n", &["repeat_last_n", "penalty_last_n"]),
    ("penalty_repeat", &["repeat_penalty", "penalty_repeat"]),
    ("penalty_freq", &["frequency_penalty", "penalty_freq"]),
    ("penalty_present", &["presence_penalty", "penalty_present"]),
];

fn wire_name<'a>(fields: &Fields, field: &'a str) -> &'a str {
    let Some((_, names)) = RENAMED.iter().find(|(own, _)| *own == field) else { return field };
    names.iter().find(|name| fields.has(name)).unwrap_or(&names[0])
}

fn read_floats(fields: &Fields, options: &mut SamplerOptions) -> Result<(), ApiError> {
    for (field, place) in [
        ("temp", &mut options.temp),
        ("top_p", &mut options.top_p),
        ("min_p", &mut options.min_p),
        ("typ_p", &mut options.typ_p),
        ("xtc_probability", &mut options.xtc_probability),
        ("xtc_threshold", &mut options.xtc_threshold),
        ("top_n_sigma", &mut options.top_n_sigma),
        ("dynatemp_range", &mut options.dynatemp_range),
        ("dynatemp_exponent", &mut options.dynatemp_exponent),
        ("penalty_repeat", &mut options.penalty_repeat),
        ("penalty_freq", &mut options.penalty_freq),
        ("penalty_present", &mut options.penalty_present),
        ("dry_multiplier", &mut options.dry_multiplier),
        ("dry_base", &mut options.dry_base),
        ("mirostat_tau", &mut options.mirostat_tau),
        ("mirostat_eta", &mut options.mirostat_eta),
    ] {
        if let Some(value) = fields.float(wire_name(fields, field))? {
            *place = value;
        }
    }
    Ok(())
}

fn read_counts(fields: &Fields, options: &mut SamplerOptions) -> Result<(), ApiError> {
    let last_n = i64::from(SAMPLER_LAST_N_MAX);
    for (field, place, min, max) in [
        ("top_k", &mut options.top_k, i64::from(i32::MIN), i64::from(i32::MAX)),
        ("penalty_last_n", &mut options.penalty_last_n, -1, last_n),
        ("dry_penalty_last_n", &mut options.dry_penalty_last_n, -1, last_n),
        ("dry_allowed_length", &mut options.dry_allowed_length, 0, i64::from(i32::MAX)),
    ] {
        if let Some(value) = fields.int(wire_name(fields, field), min..=max)? {
            *place = value as i32;
        }
    }
    for (field, place, max) in [
        ("mirostat", &mut options.mirostat, 2),
        ("min_keep", &mut options.min_keep, i64::from(i32::MAX)),
    ] {
        if let Some(value) = fields.int(field, 0..=max)? {
            *place = value as u32;
        }
    }
    // Seeds of more than 32 bits are cut; -1 is llama.cpp's random seed.
    if let Some(seed) = fields.int("seed", i64::MIN..=i64::MAX)? {
        options.seed = seed as u32;
    }
    Ok(())
}

/// A list of names, or a string of letters.
fn samplers(value: &Value) -> Result<Vec<SamplerKind>, ApiError> {
    let wrong = |message: String| ApiError::field("samplers", message);
    let shape = || wrong("samplers must be an array of names or a string of letters".into());
    match value {
        Value::String(letters) => {
            let kinds = letters.chars().map(SamplerKind::from_letter);
            kinds.collect::<Result<_, _>>().map_err(|error| wrong(error.to_string()))
        }
        Value::Array(names) => names
            .iter()
            .map(|name| {
                let name = name.as_str().ok_or_else(shape)?;
                SamplerKind::from_name(name).map_err(|error| wrong(error.to_string()))
            })
            .collect(),
        _ => Err(shape()),
    }
}

/// `{"15": -100}`, `[[15, -1.0], ["text", false]]`: tokens, or texts whose tokens are meant; as a
/// bias, `false` forbids.
fn logit_bias(value: &Value, tokenizer: &Tokenizer) -> Result<Vec<(TokenId, f32)>, ApiError> {
    let wrong = |message: &str| ApiError::field("logit_bias", message);
    let bias_of = |value: &Value| match value {
        Value::Bool(false) => Ok(f32::NEG_INFINITY),
        value => value
            .as_f64()
            .map(|bias| bias as f32)
            .ok_or_else(|| wrong("a bias in logit_bias must be a number or false")),
    };
    let tokens_of = |text: &str| {
        let tokens = tokenizer.encode(text, EncodeOptions::default());
        tokens.map_err(|error| wrong(&error.to_string()))
    };
    let mut biases = Vec::new();
    let mut add = |tokens: Vec<TokenId>, bias: f32| {
        biases.extend(tokens.into_iter().map(|token| (token, bias)));
    };
    match value {
        Value::Object(entries) => {
            for (key, bias) in entries {
                let tokens = key.trim().parse().map_or_else(|_| tokens_of(key), |id| Ok(vec![id]));
                add(tokens?, bias_of(bias)?);
            }
        }
        Value::Array(pairs) => {
            for pair in pairs {
                let pair = pair.as_array().map(Vec::as_slice);
                let Some([key, bias]) = pair else {
                    return Err(wrong("an entry of logit_bias must be a pair [token, bias]"));
                };
                let token = key.as_u64().and_then(|id| TokenId::try_from(id).ok());
                let tokens = match (token, key.as_str()) {
                    (Some(token), _) => vec![token],
                    (None, Some(text)) => tokens_of(text)?,
                    (None, None) => {
                        return Err(wrong("a token in logit_bias must be an id or a text"));
                    }
                };
                add(tokens, bias_of(bias)?);
            }
        }
        _ => return Err(wrong("logit_bias must be an object or an array of pairs")),
    }
    Ok(biases)
}
