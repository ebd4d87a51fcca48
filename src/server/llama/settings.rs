//! `generation_settings`: a request as llama.cpp tells it back.

use serde_json::{Map, Value, json};

use super::params::Params;
use crate::inference::{GrammarRequest, GrammarSpec, ModelInfo, SamplerKind, Trigger};
use crate::server::ServeOptions;

/// Every setting of a request to this model.
pub fn all(params: &Params, serve: &ServeOptions, info: &ModelInfo) -> Value {
    let o = &params.sampler;
    let eog = &info.tokenizer().special().eog;
    let mut settings = numbers(params, serve, info);
    let mut bias: Vec<Value> =
        o.logit_bias.iter().map(|(token, bias)| json!({"bias": bias, "token": token})).collect();
    if params.ignore_eos {
        // JSON has no infinity; llama.cpp writes null, too.
        bias.extend(eog.iter().map(|token| json!({"bias": null, "token": token})));
    }
    let grammar = params.grammar.as_ref();
    let triggers: Vec<Value> =
        grammar.map_or_else(Vec::new, |g| g.triggers.iter().map(trigger).collect());
    settings.extend([
        ("dry_sequence_breakers".to_owned(), json!(o.dry_sequence_breakers)),
        ("stop".to_owned(), json!(params.stop)),
        ("logit_bias".to_owned(), json!(bias)),
        ("grammar".to_owned(), json!(grammar.map_or("", text))),
        ("grammar_lazy".to_owned(), json!(!triggers.is_empty())),
        ("grammar_triggers".to_owned(), json!(triggers)),
        ("preserved_tokens".to_owned(), json!(params.preserved_tokens)),
    ]);
    Value::Object(settings)
}

/// The settings without texts, for `/props` and `/slots`.
pub fn brief(params: &Params, serve: &ServeOptions, info: &ModelInfo) -> Value {
    Value::Object(numbers(params, serve, info))
}

fn numbers(params: &Params, serve: &ServeOptions, info: &ModelInfo) -> Map<String, Value> {
    let o = &params.sampler;
    let names: Vec<&str> = o.samplers.iter().copied().map(SamplerKind::name).collect();
    let lora: Vec<Value> =
        params.lora.iter().flatten().map(|(id, scale)| json!({"id": id, "scale": scale})).collect();
    let mut settings = Map::new();
    let mut set = |name: &str, value: Value| {
        settings.insert(name.to_owned(), value);
    };
    set("seed", json!(o.seed));
    set("temperature", json!(o.temp));
    set("dynatemp_range", json!(o.dynatemp_range));
    set("dynatemp_exponent", json!(o.dynatemp_exponent));
    set("top_k", json!(o.top_k));
    set("top_p", json!(o.top_p));
    set("min_p", json!(o.min_p));
    set("top_n_sigma", json!(o.top_n_sigma));
    set("xtc_probability", json!(o.xtc_probability));
    set("xtc_threshold", json!(o.xtc_threshold));
    set("typical_p", json!(o.typ_p));
    set("repeat_last_n", json!(o.penalty_last_n));
    set("repeat_penalty", json!(o.penalty_repeat));
    set("presence_penalty", json!(o.penalty_present));
    set("frequency_penalty", json!(o.penalty_freq));
    set("dry_multiplier", json!(o.dry_multiplier));
    set("dry_base", json!(o.dry_base));
    set("dry_allowed_length", json!(o.dry_allowed_length));
    set("dry_penalty_last_n", json!(o.dry_penalty_last_n));
    set("mirostat", json!(o.mirostat));
    set("mirostat_tau", json!(o.mirostat_tau));
    set("mirostat_eta", json!(o.mirostat_eta));
    // Adaptive sampling is not done here; these say that it is off.
    set("adaptive_target", json!(-1.0));
    set("adaptive_decay", json!(0.9f32));
    set("max_tokens", json!(params.n_predict));
    set("n_predict", json!(params.n_predict));
    set("n_keep", json!(params.n_keep));
    set("n_discard", json!(params.n_discard));
    set("ignore_eos", json!(params.ignore_eos));
    set("stream", json!(params.stream));
    set("n_probs", json!(params.n_probs));
    set("min_keep", json!(o.min_keep));
    set("chat_format", json!("Content-only"));
    let reasoning = Some(serve.reasoning_format.as_str()).filter(|name| !name.is_empty());
    set("reasoning_format", json!(reasoning.unwrap_or("deepseek")));
    set("reasoning_in_content", json!(false));
    set("generation_prompt", json!(""));
    set("samplers", json!(names));
    set("speculative.types", json!(speculation(serve, info)));
    set("timings_per_token", json!(params.timings_per_token));
    set("post_sampling_probs", json!(params.post_sampling_probs));
    set("backend_sampling", json!(false));
    set("lora", json!(lora));
    settings
}

/// llama.cpp's names for those who guess, in the order in which they are asked.
fn speculation(serve: &ServeOptions, info: &ModelInfo) -> &'static str {
    match info.draft() {
        _ if serve.n_draft_max == 0 => "none",
        None => "ngram-simple",
        Some(_) => "ngram-simple,draft-simple",
    }
}

fn text(grammar: &GrammarRequest) -> &str {
    match &grammar.spec {
        GrammarSpec::JsonObject => "{\"type\":\"object\"}",
        GrammarSpec::JsonSchema(text)
        | GrammarSpec::Regex(text)
        | GrammarSpec::Lark(text)
        | GrammarSpec::Gbnf(text) => text,
    }
}

fn trigger(trigger: &Trigger) -> Value {
    match trigger {
        Trigger::Token(token) => json!({"type": 0, "value": "", "token": token}),
        Trigger::Word(text) => json!({"type": 1, "value": text}),
        Trigger::Pattern(text) => json!({"type": 2, "value": text}),
    }
}
