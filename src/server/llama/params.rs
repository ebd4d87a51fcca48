//! What `/completion` and `/infill` may be asked: llama-server's fields, each with its default,
//! its range and its meaning, as one of our requests.
//!
//! Deliberately different: a grammar and a JSON schema of the wrong type are refused instead of
//! ignored; -1 still means the whole context in `repeat_last_n` and `dry_penalty_last_n`, as it
//! did in older servers; `n_probs` has a bound. docs/api-llama.md lists all of it.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};

use super::fields::{LlamaFields, Outside, as_int, field_error};
use crate::base::limits::{LLAMA_PROBS_MAX, SAMPLER_LAST_N_MAX, STOPS_MAX};
use crate::hosting::Lease;
use crate::inference::{
    EncodeOptions, GrammarRequest, GrammarSpec, ModelInfo, Request, SamplerKind, SamplerOptions,
    SpeculationOptions, TokenId, Trigger,
};
use crate::server::constraint::own_spec;
use crate::server::{ApiError, ServeOptions};

const I32_MAX: i32 = i32::MAX;
const F32: (f32, f32) = (f32::MIN, f32::MAX);

/// A parsed body, less its prompt.
#[derive(Clone, Debug, Default)]
pub struct Params {
    /// How tokens are chosen.
    pub sampler: SamplerOptions,
    /// Most tokens of an answer; -1 for no limit.
    pub n_predict: i32,
    /// Tokens that a shift of the context keeps; -1 for the whole prompt.
    pub n_keep: i32,
    /// Only reported: a shift drops half.
    pub n_discard: i32,
    /// Indentation that every further line must have.
    pub n_indent: usize,
    /// Answers to each prompt.
    pub n_cmpl: usize,
    /// Strings that end an answer.
    pub stop: Vec<String>,
    /// Goes on past the model's own end.
    pub ignore_eos: bool,
    /// Answers as they grow.
    pub stream: bool,
    /// Cached prefixes may be used.
    pub cache_prompt: bool,
    /// `tokens` of a whole answer has its tokens.
    pub return_tokens: bool,
    /// A stream tells how far the prompt is.
    pub return_progress: bool,
    /// A stream has timings in each chunk.
    pub timings_per_token: bool,
    /// Likeliest tokens shown with each token.
    pub n_probs: usize,
    /// Probabilities are those after the sampling chain.
    pub post_sampling_probs: bool,
    /// Time of writing after which the answer ends at the next line end.
    pub t_max_predict: Option<Duration>,
    /// What the answer must look like.
    pub grammar: Option<GrammarRequest>,
    /// Tokens that triggers may name.
    pub preserved_tokens: Vec<TokenId>,
    /// Adapters and their scales; `None` for those in effect.
    pub lora: Option<Vec<(usize, f32)>>,
    /// The slot that should run it.
    pub id_slot: Option<usize>,
    /// Guessing ahead, at most as the service allows.
    pub speculation: SpeculationOptions,
    /// Fields that the answer is cut down to; empty for all.
    pub response_fields: Vec<String>,
}

impl Params {
    /// Reads a body's fields.
    ///
    /// # Errors
    /// The first field that is wrong.
    pub fn parse(
        fields: LlamaFields<'_>,
        defaults: &SamplerOptions,
        info: &ModelInfo,
        serve: &ServeOptions,
    ) -> Result<Params, ApiError> {
        let names = ["n_predict", "max_completion_tokens", "max_tokens"];
        let time = fields.int(&["t_max_predict_ms"], -1, (-1, i64::MAX), Outside::Refuse)?;
        let slot = fields.int(&["id_slot"], -1, (i64::MIN, i64::MAX), Outside::Clamp)?;
        let n_probs_max = LLAMA_PROBS_MAX as i32;
        let n_probs = fields.i32(&["n_probs", "logprobs"], 0, (i32::MIN, n_probs_max))?;
        let n_predict = serve.n_predict.and_then(|n| i32::try_from(n).ok()).unwrap_or(-1);
        let (grammar, preserved_tokens) = grammar(fields, info)?;
        Ok(Params {
            sampler: sampler(fields, defaults, info)?,
            n_predict: fields.i32(&names, n_predict, (-1, I32_MAX))?,
            n_keep: fields.i32(&["n_keep"], 0, (-1, I32_MAX))?,
            n_discard: fields.i32(&["n_discard"], 0, (0, I32_MAX))?,
            n_indent: fields.i32(&["n_indent"], 0, (0, I32_MAX))? as usize,
            n_cmpl: fields.i32(&["n_cmpl", "n"], 1, (1, I32_MAX))? as usize,
            stop: stop(fields)?,
            ignore_eos: fields.bool("ignore_eos", false)?,
            stream: fields.bool("stream", false)?,
            cache_prompt: fields.bool("cache_prompt", true)?,
            return_tokens: fields.bool("return_tokens", false)?,
            return_progress: fields.bool("return_progress", false)?,
            timings_per_token: fields.bool("timings_per_token", false)?,
            n_probs: n_probs.max(0) as usize,
            post_sampling_probs: fields.bool("post_sampling_probs", false)?,
            t_max_predict: u64::try_from(time).ok().filter(|&t| t > 0).map(Duration::from_millis),
            grammar,
            preserved_tokens,
            lora: lora(fields)?,
            id_slot: usize::try_from(slot).ok(),
            speculation: speculation(fields, serve)?,
            response_fields: fields.strings("response_fields")?.unwrap_or_default(),
        })
    }

    /// The request for one prompt; `own` has the fields that no dialect differs in.
    pub fn request(
        &self,
        prompt: Vec<TokenId>,
        lease: &Lease,
        serve: &ServeOptions,
        own: Request,
    ) -> Request {
        let info = lease.info();
        // Adapters that are not loaded are ignored, as llama.cpp does.
        let n_adapter = info.adapters().len();
        let asked = self.lora.as_deref().unwrap_or(lease.adapters());
        let adapters = asked.iter().copied().filter(|(id, _)| *id < n_adapter);
        let n_keep = usize::try_from(self.n_keep).unwrap_or(prompt.len());
        let special = info.tokenizer().special();
        // Without a limit of its own a request has the server's.
        let n_predict = usize::try_from(self.n_predict).ok().or(serve.n_predict);
        Request {
            // llama.cpp keeps the BOS besides.
            n_keep: n_keep + usize::from(special.add_bos),
            prompt,
            n: self.n_cmpl,
            n_predict,
            stop: self.stop.clone(),
            sampler: self.sampler.clone(),
            n_probs: self.n_probs,
            wants_logprobs: self.n_probs > 0,
            post_sampling_probs: self.post_sampling_probs,
            ignore_eos: self.ignore_eos,
            grammar: self.grammar.clone(),
            speculation: self.speculation.clone(),
            adapters: adapters.collect(),
            uses_cache: self.cache_prompt,
            slot_idx: self.id_slot,
            predict_time_max: self.t_max_predict,
            n_indent: self.n_indent,
            ..own
        }
    }
}

fn sampler(
    fields: LlamaFields<'_>,
    defaults: &SamplerOptions,
    info: &ModelInfo,
) -> Result<SamplerOptions, ApiError> {
    let d = defaults;
    let last_n = (-1, SAMPLER_LAST_N_MAX);
    let any = (i64::MIN, i64::MAX);
    let base = fields.f32("dry_base", d.dry_base, F32)?;
    let breakers = fields.strings("dry_sequence_breakers")?;
    if breakers.as_ref().is_some_and(Vec::is_empty) {
        let message = "Error: dry_sequence_breakers must be a non-empty array of strings";
        return Err(field_error("dry_sequence_breakers", message));
    }
    let mirostat = fields.int(&["mirostat"], d.mirostat.into(), (0, 2), Outside::Clamp)?;
    let top_k = fields.int(&["top_k"], d.top_k.into(), (0, I32_MAX.into()), Outside::Clamp)?;
    Ok(SamplerOptions {
        samplers: samplers(fields)?.unwrap_or_else(|| d.samplers.clone()),
        // As a C cast takes it: -1 is the largest seed, which asks for a random one.
        seed: fields.int(&["seed"], d.seed.into(), any, Outside::Clamp)? as u32,
        min_keep: fields.i32(&["min_keep"], d.min_keep as i32, (0, I32_MAX))? as u32,
        top_k: top_k as i32,
        top_p: fields.f32("top_p", d.top_p, (0.0, 1.0))?,
        min_p: fields.f32("min_p", d.min_p, (0.0, 1.0))?,
        xtc_probability: fields.f32("xtc_probability", d.xtc_probability, (0.0, 1.0))?,
        xtc_threshold: fields.f32("xtc_threshold", d.xtc_threshold, (0.0, 1.0))?,
        // Above 1 it is off, as at 1.
        typ_p: fields.f32("typical_p", d.typ_p, (0.0, 1.0))?,
        temp: fields.f32("temperature", d.temp, (0.0, f32::MAX))?,
        dynatemp_range: fields.f32("dynatemp_range", d.dynatemp_range, F32)?,
        dynatemp_exponent: fields.f32("dynatemp_exponent", d.dynatemp_exponent, F32)?,
        penalty_last_n: fields.i32(&["repeat_last_n"], d.penalty_last_n, last_n)?,
        penalty_repeat: fields.f32("repeat_penalty", d.penalty_repeat, F32)?,
        penalty_freq: fields.f32("frequency_penalty", d.penalty_freq, F32)?,
        penalty_present: fields.f32("presence_penalty", d.penalty_present, F32)?,
        dry_multiplier: fields.f32("dry_multiplier", d.dry_multiplier, F32)?,
        dry_base: if base < 1.0 { d.dry_base } else { base },
        dry_allowed_length: fields.i32(
            &["dry_allowed_length"],
            d.dry_allowed_length,
            (0, I32_MAX),
        )?,
        dry_penalty_last_n: fields.i32(&["dry_penalty_last_n"], d.dry_penalty_last_n, last_n)?,
        dry_sequence_breakers: breakers.unwrap_or_else(|| d.dry_sequence_breakers.clone()),
        top_n_sigma: fields.f32("top_n_sigma", d.top_n_sigma, F32)?,
        mirostat: mirostat as u32,
        mirostat_tau: fields.f32("mirostat_tau", d.mirostat_tau, F32)?,
        mirostat_eta: fields.f32("mirostat_eta", d.mirostat_eta, F32)?,
        logit_bias: match fields.get("logit_bias") {
            Some(bias) => logit_bias(bias, info)?,
            None => d.logit_bias.clone(),
        },
    })
}

/// The chain by names, or by letters; what nobody knows is left out, as llama.cpp does.
fn samplers(fields: LlamaFields<'_>) -> Result<Option<Vec<SamplerKind>>, ApiError> {
    Ok(match fields.get("samplers") {
        Some(Value::String(letters)) => {
            Some(letters.chars().filter_map(|c| SamplerKind::from_letter(c).ok()).collect())
        }
        Some(_) => fields.strings("samplers")?.map(|names| {
            names.iter().filter_map(|name| SamplerKind::from_name(name).ok()).collect()
        }),
        None => None,
    })
}

/// `[[token or text, bias], ..]`, `{"token or text": bias, ..}`; `false` forbids. Pairs of another
/// shape are left out, as llama.cpp does.
fn logit_bias(value: &Value, info: &ModelInfo) -> Result<Vec<(TokenId, f32)>, ApiError> {
    let amount = |value: &Value| match value {
        Value::Number(number) => number.as_f64().map(|bias| bias as f32),
        Value::Bool(false) => Some(f32::NEG_INFINITY),
        _ => None,
    };
    let mut biases = Vec::new();
    let mut add = |key: &Value, bias: &Value| -> Result<(), ApiError> {
        let Some(bias) = amount(bias) else { return Ok(()) };
        match key {
            Value::String(text) => {
                let tokens = info.tokenizer().encode(text, EncodeOptions::default());
                let tokens = tokens.map_err(|error| field_error("logit_bias", error))?;
                biases.extend(tokens.into_iter().map(|token| (token, bias)));
            }
            Value::Number(number) => {
                let token = number.as_u64().and_then(|token| TokenId::try_from(token).ok());
                let known = |token: &TokenId| (*token as usize) < info.tokenizer().n_vocab();
                biases.extend(token.filter(known).map(|token| (token, bias)));
            }
            _ => {}
        }
        Ok(())
    };
    match value {
        Value::Array(pairs) => {
            for pair in pairs {
                if let Some([key, bias]) = pair.as_array().map(Vec::as_slice) {
                    add(key, bias)?;
                }
            }
        }
        Value::Object(pairs) => {
            for (key, bias) in pairs {
                let token = key.trim().parse::<i64>().ok();
                add(&token.map_or_else(|| json!(key), |token| json!(token)), bias)?;
            }
        }
        _ => {}
    }
    Ok(biases)
}

fn stop(fields: LlamaFields<'_>) -> Result<Vec<String>, ApiError> {
    let Some(Value::String(word)) = fields.get("stop") else {
        let mut words = fields.strings("stop")?.unwrap_or_default();
        words.retain(|word| !word.is_empty());
        if words.len() > STOPS_MAX {
            let message = format!("{} texts, and at most {STOPS_MAX} are taken", words.len());
            return Err(field_error("stop", &message));
        }
        return Ok(words);
    };
    Ok(vec![word.clone()])
}

/// The grammar, asleep or not, and the tokens that its triggers may name.
fn grammar(
    fields: LlamaFields<'_>,
    info: &ModelInfo,
) -> Result<(Option<GrammarRequest>, Vec<TokenId>), ApiError> {
    let mut preserved = Vec::new();
    for text in fields.strings("preserved_tokens")?.unwrap_or_default() {
        let tokens = special_tokens(&text, info, "preserved_tokens")?;
        preserved.extend(match tokens[..] {
            [token] => Some(token),
            _ => None,
        });
    }
    preserved.sort_unstable();
    preserved.dedup();
    let mut triggers = Vec::new();
    for item in fields.array("grammar_triggers")?.unwrap_or_default() {
        triggers.push(trigger(item, &preserved, info)?);
    }
    if !fields.bool("grammar_lazy", false)? {
        triggers.clear();
    } else if triggers.is_empty() {
        return Err(field_error("grammar_triggers", "Error: no triggers set for lazy grammar!"));
    }
    let schema = fields.get("json_schema").map(|schema| match schema {
        Value::Object(object) if object.is_empty() => GrammarSpec::JsonObject,
        schema => GrammarSpec::JsonSchema(schema.to_string()),
    });
    let gbnf = fields.str("grammar")?.filter(|text| !text.is_empty());
    let theirs = gbnf.map(|text| GrammarSpec::Gbnf(text.to_owned())).or(schema);
    let spec = own_spec(fields.object())?.or(theirs);
    Ok((spec.map(|spec| GrammarRequest { spec, triggers }), preserved))
}

/// `{"type": 0 to 3, "value": text, "token": id}`: a token, a word, a pattern, a whole pattern.
fn trigger(item: &Value, preserved: &[TokenId], info: &ModelInfo) -> Result<Trigger, ApiError> {
    let name = "grammar_triggers";
    let wrong = || field_error(name, "a trigger is {\"type\": 0 to 3, \"value\": string}");
    let kind = item.get("type").and_then(as_int).ok_or_else(wrong)?;
    let text = item.get("value").and_then(Value::as_str).ok_or_else(wrong)?;
    match kind {
        0 => {
            let token = item.get("token").and_then(as_int).ok_or_else(wrong)?;
            let token = TokenId::try_from(token).map_err(|_| wrong())?;
            Ok(Trigger::Token(token))
        }
        1 => match special_tokens(text, info, name)?[..] {
            [token] if preserved.contains(&token) => Ok(Trigger::Token(token)),
            [_] => {
                let message = "Grammar trigger word should be marked as preserved token";
                Err(field_error(name, format!("{message}: {text}")))
            }
            _ => Ok(Trigger::Word(text.to_owned())),
        },
        2 => Ok(Trigger::Pattern(text.to_owned())),
        3 => Ok(Trigger::Pattern(format!("^(?:{text})$"))),
        _ => Err(wrong()),
    }
}

fn special_tokens(text: &str, info: &ModelInfo, name: &str) -> Result<Vec<TokenId>, ApiError> {
    let options = EncodeOptions { add_special: false, parse_special: true };
    info.tokenizer().encode(text, options).map_err(|error| field_error(name, error))
}

fn speculation(
    fields: LlamaFields<'_>,
    serve: &ServeOptions,
) -> Result<SpeculationOptions, ApiError> {
    let serve = serve.speculation();
    let count = |name, default: usize| {
        let default = i32::try_from(default).unwrap_or(I32_MAX);
        fields.i32(&[name], default, (0, I32_MAX)).map(|n| n as usize)
    };
    Ok(SpeculationOptions {
        n_draft_max: count("speculative.n_max", serve.n_draft_max)?.min(serve.n_draft_max),
        n_draft_min: count("speculative.n_min", serve.n_draft_min)?,
        p_min: fields.f32("speculative.p_min", serve.p_min, (0.0, 1.0))?,
        ..serve
    })
}

/// `[{"id": 0, "scale": 0.5}, ..]`.
fn lora(fields: LlamaFields<'_>) -> Result<Option<Vec<(usize, f32)>>, ApiError> {
    let message = "Error: 'lora' must be an array of objects with 'id' and 'scale' fields";
    let wrong = || field_error("lora", message);
    match fields.get("lora") {
        None => Ok(None),
        Some(value) => adapters(value).map(Some).ok_or_else(wrong),
    }
}

/// Adapters and their scales as `lora` and `POST /lora-adapters` name them, each once: the last
/// scale counts, and 0 leaves one out. So does a missing id.
pub fn adapters(value: &Value) -> Option<Vec<(usize, f32)>> {
    let mut scales = BTreeMap::new();
    for item in value.as_array()? {
        let id = item.as_object()?.get("id").and_then(as_int).unwrap_or(-1);
        let scale = item.get("scale").and_then(Value::as_f64).unwrap_or(0.0) as f32;
        scales.extend(usize::try_from(id).ok().map(|id| (id, scale)));
    }
    Some(scales.into_iter().filter(|(_, scale)| *scale != 0.0).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inference::{LoadOptions, Model, ModelSource};

    fn parse(body: Value) -> Result<Params, String> {
        let load = LoadOptions { n_ctx: Some(64), ..LoadOptions::default() };
        let model = Model::load(&ModelSource::Embedded, &load).unwrap();
        let fields = LlamaFields::new(body.as_object().unwrap());
        let serve = ServeOptions { n_predict: Some(9), ..ServeOptions::default() };
        Params::parse(fields, &SamplerOptions::default(), model.info(), &serve)
            .map_err(|error| error.message)
    }

    #[test]
    fn samplers_by_name_and_by_letter_without_the_unknown_ones() {
        use SamplerKind::{Infill, Temperature, TopK, TopP};
        let samplers = |value| parse(json!({ "samplers": value })).map(|p| p.sampler.samplers);
        let infill = vec![TopK, TopP, Infill];
        assert_eq!(samplers(json!(["top_k", "nucleus", "beam", "infill"])), Ok(infill.clone()));
        assert_eq!(samplers(json!("kp?i")), Ok(infill));
        assert_eq!(samplers(json!([])), Ok(vec![]));
        assert_eq!(samplers(json!(["TEMP"])), Ok(vec![Temperature]));
        assert!(samplers(json!(5)).unwrap_err().starts_with("Field 'samplers': "));
        assert_eq!(samplers(json!(null)), Ok(SamplerOptions::default().samplers));
    }

    #[test]
    fn biases_in_every_form() {
        let bias = |value| parse(json!({ "logit_bias": value })).unwrap().sampler.logit_bias;
        assert_eq!(
            bias(json!([[5, -1.5], [6, false], [7, true], [8]])),
            [(5, -1.5), (6, f32::NEG_INFINITY)]
        );
        assert_eq!(bias(json!({"5": 2, "999999": 1, "-1": 1})), [(5, 2.0)]);
        let words = bias(json!([["return", 1.0]]));
        assert!(!words.is_empty() && words.iter().all(|(_, bias)| *bias == 1.0));
        assert_eq!(bias(json!({"return": 1.0})), words);
    }

    #[test]
    fn limits_of_the_request_and_of_the_server() {
        assert_eq!(parse(json!({})).unwrap().n_predict, 9);
        assert_eq!(parse(json!({"n_predict": -1, "max_tokens": 4})).unwrap().n_predict, -1);
        assert_eq!(parse(json!({"max_tokens": 4})).unwrap().n_predict, 4);
        assert_eq!(parse(json!({"t_max_predict_ms": 0})).unwrap().t_max_predict, None);
        let time = parse(json!({"t_max_predict_ms": 250})).unwrap().t_max_predict;
        assert_eq!(time, Some(Duration::from_millis(250)));
        assert_eq!(parse(json!({"seed": -1})).unwrap().sampler.seed, u32::MAX);
        assert_eq!(parse(json!({"dry_base": 0.5})).unwrap().sampler.dry_base, 1.75);
        assert_eq!(parse(json!({"stop": vec!["a"; 64]})).unwrap().stop.len(), 64);
        assert!(parse(json!({"stop": vec!["a"; 65]})).unwrap_err().contains("at most 64"));
    }

    #[test]
    fn a_grammar_wins_over_a_schema_and_a_lazy_one_needs_a_trigger() {
        let grammar = |body| parse(body).map(|params| params.grammar.map(|g| g.spec));
        let gbnf = GrammarSpec::Gbnf("root ::= \"a\"".into());
        let both = json!({"grammar": "root ::= \"a\"", "json_schema": {"type": "object"}});
        assert_eq!(grammar(both), Ok(Some(gbnf)));
        assert_eq!(grammar(json!({"json_schema": {}})), Ok(Some(GrammarSpec::JsonObject)));
        assert_eq!(grammar(json!({"grammar": ""})), Ok(None));
        let lazy = json!({"grammar": "root ::= \"a\"", "grammar_lazy": true});
        assert!(grammar(lazy).unwrap_err().contains("no triggers set"));
        let lazy = json!({
            "grammar": "root ::= \"a\"", "grammar_lazy": true,
            "grammar_triggers": [{"type": 2, "value": "x+"}, {"type": 0, "value": "", "token": 3}],
        });
        let triggers = parse(lazy).unwrap().grammar.unwrap().triggers;
        assert_eq!(triggers, [Trigger::Pattern("x+".into()), Trigger::Token(3)]);
    }

    #[test]
    fn adapters_are_named_once() {
        let value = json!([
            {"id": 1, "scale": 0.5}, {"id": 0, "scale": 1}, {"id": 1, "scale": 2}, {"scale": 3},
            {"id": 2},
        ]);
        assert_eq!(adapters(&value), Some(vec![(0, 1.0), (1, 2.0)]));
        assert_eq!(adapters(&json!({"id": 0})), None);
    }
}
