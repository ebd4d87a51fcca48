//! What dialects say about an answer in the same words: timings, tokens used, probabilities.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Map, Value, json};

use crate::inference::{Timings, TokenEvent, TokenId, Tokenizer};

/// llama.cpp's `timings`.
pub(super) fn timings_json(timings: &Timings) -> Value {
    let n_prefilled = timings.n_prompt.saturating_sub(timings.n_cached);
    let per = |a: f64, b: f64| if b > 0.0 { a / b } else { 0.0 };
    let (prompt_n, predicted_n) = (n_prefilled as f64, timings.n_generated as f64);
    let mut json = json!({
        "cache_n": timings.n_cached,
        "prompt_n": n_prefilled,
        "prompt_ms": timings.prefill_ms,
        "prompt_per_token_ms": per(timings.prefill_ms, prompt_n),
        "prompt_per_second": per(prompt_n * 1e3, timings.prefill_ms),
        "predicted_n": timings.n_generated,
        "predicted_ms": timings.decode_ms,
        "predicted_per_token_ms": per(timings.decode_ms, predicted_n),
        "predicted_per_second": per(predicted_n * 1e3, timings.decode_ms),
        "queued_ms": timings.queued_ms,
    });
    if timings.n_draft > 0 {
        json["draft_n"] = json!(timings.n_draft);
        json["draft_n_accepted"] = json!(timings.n_accepted);
    }
    json
}

/// What answers took together: each has the timings of its own, prompts count once for `n`
/// answers each.
pub(super) fn sum_timings(answers: &[Timings], n: usize) -> Timings {
    let mut sum = Timings::default();
    for (idx, timings) in answers.iter().enumerate() {
        sum.queued_ms = sum.queued_ms.max(timings.queued_ms);
        sum.decode_ms = sum.decode_ms.max(timings.decode_ms);
        sum.n_generated += timings.n_generated;
        sum.n_draft += timings.n_draft;
        sum.n_accepted += timings.n_accepted;
        if idx % n.max(1) == 0 {
            sum.prefill_ms += timings.prefill_ms;
            sum.n_prompt += timings.n_prompt;
            sum.n_cached += timings.n_cached;
        }
    }
    sum
}

/// OpenAI's `usage`.
pub(super) fn usage_json(timings: &Timings) -> Value {
    json!({
        "prompt_tokens": timings.n_prompt,
        "completion_tokens": timings.n_generated,
        "total_tokens": timings.n_prompt + timings.n_generated,
        "prompt_tokens_details": { "cached_tokens": timings.n_cached },
        "completion_tokens_details": {
            "accepted_prediction_tokens": timings.n_accepted,
            "rejected_prediction_tokens": timings.n_draft - timings.n_accepted,
        },
    })
}

/// A token with its log-probability and the likeliest ones in its place, as OpenAI's chat and
/// llama.cpp write them; `None` if no probabilities were asked for.
pub(super) fn token_json(tokenizer: &Tokenizer, event: &TokenEvent) -> Option<Value> {
    let probs = event.probs.as_ref()?;
    let entry = |token: TokenId, logprob: f32| -> Map<String, Value> {
        let bytes = tokenizer.token_bytes(token, true);
        let mut entry = Map::new();
        entry.insert("id".into(), json!(token));
        entry.insert("token".into(), json!(String::from_utf8_lossy(bytes)));
        entry.insert("bytes".into(), json!(bytes));
        entry.insert("logprob".into(), json!(finite(logprob)));
        entry
    };
    let mut json = entry(event.token, probs.logprob);
    let top = probs.top.iter().map(|&(token, logprob)| Value::Object(entry(token, logprob)));
    json.insert("top_logprobs".into(), top.collect());
    Some(Value::Object(json))
}

/// JSON has no infinity; OpenAI writes -9999 for what cannot be.
pub(super) fn finite(logprob: f32) -> f32 {
    logprob.max(-9999.0)
}

/// Now, in seconds after 1970.
pub(super) fn unix_now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}

/// `len` letters and digits that nobody has seen before.
pub(super) fn random_word(len: usize) -> String {
    const LETTERS: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
    // Each `RandomState` has keys of its own, from the system's random numbers.
    let state = RandomState::new();
    let mut word = String::with_capacity(len);
    for block in 0u32.. {
        let mut hasher = state.build_hasher();
        hasher.write_u32(block);
        let mut bits = hasher.finish();
        for _ in 0..10 {
            if word.len() == len {
                return word;
            }
            word.push(char::from(LETTERS[(bits % 62) as usize]));
            bits /= 62;
        }
    }
    word
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prompt_counts_once_for_its_answers() {
        let one = Timings { n_prompt: 10, n_cached: 4, n_generated: 3, ..Timings::default() };
        let usage = usage_json(&sum_timings(&[one, one, one, one], 2));
        assert_eq!(usage["prompt_tokens"], 20);
        assert_eq!(usage["completion_tokens"], 12);
        assert_eq!(usage["total_tokens"], 32);
        assert_eq!(usage["prompt_tokens_details"]["cached_tokens"], 8);
    }

    #[test]
    fn words_are_long_enough_and_differ() {
        let (a, b) = (random_word(32), random_word(32));
        assert!(a.len() == 32 && a.bytes().all(|b| b.is_ascii_alphanumeric()));
        assert_ne!(a, b);
    }
}
