//! Answers in llama-server's words: whole ones, and the chunks of a stream.

use serde_json::{Map, Value, json};

use super::params::Params;
use super::settings;
use crate::inference::{Finish, ModelInfo, Timings, TokenEvent, TokenId};
use crate::server::generate::Answer;
use crate::server::{ServeOptions, prompts};

/// The seed that asks for a random one.
const SEED_RANDOM: u32 = u32::MAX;

/// What every answer to a request says.
pub struct Wire {
    /// What was asked.
    pub params: Params,
    /// `generation_settings`.
    settings: Value,
    /// The model's name.
    model: String,
    info: std::sync::Arc<ModelInfo>,
    /// Tokens of each prompt.
    prompts: Vec<Vec<TokenId>>,
    /// Tokens of the prompts that were cut off: as asked for, and parts of `/infill`.
    pub n_dropped: usize,
}

impl Wire {
    /// For answers of `model` to `prompts`.
    pub fn new(
        params: Params,
        serve: &ServeOptions,
        model: &str,
        info: std::sync::Arc<ModelInfo>,
        prompts: Vec<Vec<TokenId>>,
    ) -> Wire {
        let settings = settings::all(&params, serve, &info);
        Wire { params, settings, model: model.to_owned(), info, prompts, n_dropped: 0 }
    }

    /// Answers to each prompt.
    pub fn n_answer(&self) -> usize {
        self.params.n_cmpl
    }

    /// A whole answer; `has_new_line` tells of all its text.
    pub fn whole(&self, index: usize, answer: &Answer, has_new_line: bool) -> Value {
        let finish = answer.finish.as_ref();
        let prompt: &[TokenId] = self.prompts.get(index / self.n_answer()).map_or(&[], |p| p);
        let timings = &answer.timings;
        let tokens: Vec<TokenId> = match self.params.return_tokens && !self.params.stream {
            true => answer.tokens.iter().map(|event| event.token).collect(),
            false => Vec::new(),
        };
        let n_past = (prompt.len() + timings.n_generated.saturating_sub(1)).min(self.info.n_ctx());
        let mut whole = json!({
            "index": index,
            "content": answer.text,
            "tokens": tokens,
            "id_slot": timings.slot_idx,
            "stop": true,
            "model": self.model,
            "tokens_predicted": timings.n_generated,
            "tokens_evaluated": prompt.len(),
            "generation_settings": self.settings(index % self.n_answer()),
            "prompt": prompts::text(prompt, self.info.tokenizer()),
            "has_new_line": has_new_line,
            "truncated": answer.was_shifted || finish == Some(&Finish::ContextFull),
            "stop_type": stop_type(finish),
            "stopping_word": match finish {
                Some(Finish::Stop(word)) => word.as_str(),
                _ => "",
            },
            "tokens_cached": n_past,
            "timings": timings_json(timings),
        });
        if answer.is_incomplete {
            // Ours: a grammar ruled the answer, and its text ends before it is complete.
            whole["grammar_incomplete"] = json!(true);
        }
        if self.n_dropped > 0 {
            // Ours: what was cut to fit the context is never cut silently.
            whole["tokens_dropped"] = json!(self.n_dropped);
        }
        let shown = self.without_stop(answer);
        if !self.params.stream && self.params.n_probs > 0 && !shown.is_empty() {
            whole["completion_probabilities"] = self.probabilities(shown);
        }
        match self.params.response_fields.is_empty() {
            true => whole,
            false => nested(&self.params.response_fields, &whole),
        }
    }

    /// A chunk of a stream, with `n_done` tokens so far.
    pub fn chunk(&self, index: usize, text: &str, tokens: &[TokenEvent], n_done: usize) -> Value {
        let ids: Vec<TokenId> = tokens.iter().map(|event| event.token).collect();
        let mut chunk = json!({
            "index": index,
            "content": text,
            "tokens": ids,
            "stop": false,
            // llama.cpp names the slot only in the last chunk.
            "id_slot": -1,
            "tokens_predicted": n_done,
            "tokens_evaluated": self.prompts.get(index / self.n_answer()).map_or(0, Vec::len),
        });
        if self.params.n_probs > 0 && !tokens.is_empty() {
            chunk["completion_probabilities"] = self.probabilities(tokens);
        }
        chunk
    }

    /// The settings of an answer: each but the first has a seed of its own.
    fn settings(&self, answer_idx: usize) -> Value {
        let mut settings = self.settings.clone();
        let seed = self.params.sampler.seed;
        if answer_idx > 0 && seed != SEED_RANDOM {
            settings["seed"] = json!(seed.wrapping_add(answer_idx as u32));
        }
        settings
    }

    /// An answer's tokens without those that made up its stop string.
    fn without_stop<'a>(&self, answer: &'a Answer) -> &'a [TokenEvent] {
        let n_stop = match &answer.finish {
            Some(Finish::Stop(word)) => {
                self.info.tokenizer().encode(word, Default::default()).map_or(0, |ids| ids.len())
            }
            _ => 0,
        };
        &answer.tokens[..answer.tokens.len().saturating_sub(n_stop)]
    }

    fn probabilities(&self, tokens: &[TokenEvent]) -> Value {
        let is_post = self.params.post_sampling_probs;
        let (one, many) = if is_post { ("prob", "top_probs") } else { ("logprob", "top_logprobs") };
        let entry = |token: TokenId, log_prob: f32| {
            let bytes = self.info.tokenizer().token_bytes(token, false);
            let mut entry = Map::new();
            entry.insert("id".into(), json!(token));
            entry.insert("token".into(), json!(whole_characters(bytes)));
            entry.insert("bytes".into(), json!(bytes));
            let value = if is_post { log_prob.exp() } else { log_prob.max(f32::MIN) };
            entry.insert(one.into(), json!(value));
            entry
        };
        let of = |event: &TokenEvent| {
            let (log_prob, top) =
                event.probs.as_ref().map_or((f32::MIN, &[][..]), |p| (p.logprob, &p.top[..]));
            let mut all = entry(event.token, log_prob);
            let top: Vec<Value> =
                top.iter().map(|&(id, log_prob)| Value::Object(entry(id, log_prob))).collect();
            all.insert(many.into(), json!(top));
            Value::Object(all)
        };
        tokens.iter().map(of).collect()
    }
}

/// llama-server's `timings`. The first token counts as prefill's, as there.
pub fn timings_json(t: &Timings) -> Value {
    let n_prefill = t.n_prompt.saturating_sub(t.n_cached);
    let n_steps = t.n_generated.saturating_sub(1);
    // Both are zero where nothing was done: what is reported stays a number.
    let prefill_ms = if t.n_prompt == 0 { 0.0 } else { t.prefill_ms };
    let decode_ms = if t.n_generated == 0 { 0.0 } else { t.decode_ms.max(0.001) };
    let per = |ms: f64, n: usize| if n > 0 { ms / n as f64 } else { 0.0 };
    let speed = |ms: f64, n: usize| if ms > 0.0 { 1e3 / ms * n as f64 } else { 0.0 };
    let mut timings = json!({
        "cache_n": t.n_cached,
        "prompt_n": n_prefill,
        "prompt_ms": prefill_ms,
        "prompt_per_token_ms": per(prefill_ms, n_prefill),
        "prompt_per_second": speed(prefill_ms, n_prefill),
        "predicted_n": t.n_generated,
        "predicted_ms": decode_ms,
        "predicted_per_token_ms": per(decode_ms, n_steps),
        "predicted_per_second": speed(decode_ms, n_steps),
    });
    if t.n_draft > 0 {
        timings["draft_n"] = json!(t.n_draft);
        timings["draft_n_accepted"] = json!(t.n_accepted);
    }
    timings
}

fn stop_type(finish: Option<&Finish>) -> &'static str {
    match finish {
        Some(Finish::Eog) => "eos",
        Some(Finish::Stop(_)) => "word",
        Some(Finish::Length | Finish::ContextFull | Finish::TimeUp | Finish::Indent) => "limit",
        Some(Finish::Canceled) | None => "none",
    }
}

/// The text of bytes, less a character at the end that is cut off.
fn whole_characters(bytes: &[u8]) -> String {
    let mut utf8 = crate::inference::Utf8Stream::new();
    utf8.push(bytes)
}

/// The fields on these paths, `generation_settings/n_predict` for one inside another.
fn nested(paths: &[String], whole: &Value) -> Value {
    let mut fields = Map::new();
    for path in paths {
        let found = path.split('/').try_fold(whole, |value, key| value.as_object()?.get(key));
        if let Some(value) = found {
            fields.insert(path.clone(), value.clone());
        }
    }
    Value::Object(fields)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn response_fields_unnest_and_skip_what_is_not_there() {
        let whole = json!({"a": 1, "b": {"c": {"d": 2}}});
        let paths = ["b/c/d", "a", "a/x", "z", ""].map(String::from);
        assert_eq!(nested(&paths, &whole), json!({"b/c/d": 2, "a": 1}));
    }

    #[test]
    fn timings_of_nothing_are_numbers() {
        let zero = timings_json(&Timings::default());
        assert!(zero.as_object().unwrap().values().all(|v| v.as_f64() == Some(0.0)), "{zero}");
        let t = Timings {
            n_prompt: 10,
            n_cached: 4,
            prefill_ms: 12.0,
            n_generated: 5,
            decode_ms: 8.0,
            ..Timings::default()
        };
        let t = timings_json(&t);
        assert_eq!((&t["prompt_n"], &t["cache_n"]), (&json!(6), &json!(4)));
        assert_eq!(
            (&t["prompt_per_token_ms"], &t["prompt_per_second"]),
            (&json!(2.0), &json!(500.0))
        );
        assert_eq!(
            (&t["predicted_per_token_ms"], &t["predicted_per_second"]),
            (&json!(2.0), &json!(500.0))
        );
    }
}
