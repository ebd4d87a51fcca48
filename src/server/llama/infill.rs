//! `POST /infill`: the text between a prefix and a suffix, with other files for context.
//!
//! ```text
//! [REPO] myproject\n
//! [FILE] filename of a chunk\n  chunk          for each chunk of input_extra; without a [FILE]
//! ...                                          token the line "--- snippet ---" stands between
//! [FILE] filename\n
//! BOS [PREFIX] input_prefix prompt [SUFFIX] input_suffix [MIDDLE]
//! ```
//!
//! As in llama.cpp, the lines around the cursor have a bounded room, three quarters of it for the
//! prefix, and chunks fill the rest of the context. What finds no room is cut where it is farthest
//! from the cursor: the start of the prefix, the end of the suffix, the first chunks. Unlike there,
//! room is left for the answer, chunks have up to half of a context however small, and the answer
//! says how many tokens were cut. The rooms do not depend on the lines, so that while somebody
//! types, the chunks stay where they are in the cache.

use axum::extract::State;
use axum::response::Response;
use serde_json::Value;

use super::completion::{respond, start};
use super::fields::LlamaFields;
use crate::base::limits::INFILL_TOKENS_MAX;
use crate::inference::{EncodeOptions, ModelInfo, TokenId, Tokenizer};
use crate::server::fields::Fields;
use crate::server::generate::{blocking, lease_for};
use crate::server::prompts::mixed;
use crate::server::{ApiError, Caller, Server};

/// Between chunks of models that have no token for it.
const SNIPPET: &str = "\n\n--- snippet ---\n\n";
/// The repository's and the file's name, which the client does not tell.
const REPO: &str = "myproject\n";
const FILE: &str = "filename\n";

/// `POST /infill`.
pub async fn infill(
    State(server): State<Server>,
    caller: Caller,
    fields: Fields,
) -> Result<Response, ApiError> {
    let lease = lease_for(&server, &fields, &caller).await?;
    let started = blocking(move || {
        let tokenizer = lease.info().tokenizer();
        require_fim(tokenizer)?;
        let parts = Parts::parse(LlamaFields::new(&fields.0), tokenizer)?;
        let n_predict = fields.int("n_predict", -1..=i32::MAX.into())?.unwrap_or(-1);
        let n_predict = usize::try_from(n_predict).ok().or(server.0.options.n_predict);
        let (prompt, n_dropped) = parts.prompt(tokenizer, lease.info().n_ctx(), n_predict);
        start(&server, &caller, lease, &fields, vec![prompt], n_dropped)
    });
    respond(started.await?).await
}

/// The prompt of `input_prefix`, `input_suffix` and `input_extra` for a dialect that has other
/// names for them; what is far from the cursor is cut.
///
/// # Errors
/// A model without tokens for it, a field of the wrong type.
pub(in crate::server) fn fill_in(
    fields: &Fields,
    info: &ModelInfo,
    n_predict: Option<usize>,
) -> Result<Vec<TokenId>, ApiError> {
    let tokenizer = info.tokenizer();
    require_fim(tokenizer)?;
    let parts = Parts::parse(LlamaFields::new(&fields.0), tokenizer)?;
    Ok(parts.prompt(tokenizer, info.n_ctx(), n_predict).0)
}

/// A model without these tokens cannot fill in.
fn require_fim(tokenizer: &Tokenizer) -> Result<(), ApiError> {
    let special = tokenizer.special();
    let mut missing = String::new();
    for (token, name) in [
        (special.fim_prefix, "prefix"),
        (special.fim_suffix, "suffix"),
        (special.fim_middle, "middle"),
    ] {
        if token.is_none() {
            missing += &format!("{name} token is missing. ");
        }
    }
    match missing.is_empty() {
        true => Ok(()),
        false => {
            let message = format!("Infill is not supported by this model: {missing}");
            Err(ApiError::not_supported(message))
        }
    }
}

/// What the cursor stands in.
#[derive(Debug)]
struct Parts {
    prefix: Vec<TokenId>,
    suffix: Vec<TokenId>,
    prompt: Vec<TokenId>,
    extra: Vec<TokenId>,
}

impl Parts {
    fn parse(fields: LlamaFields<'_>, tokenizer: &Tokenizer) -> Result<Parts, ApiError> {
        let is_text = |value: &Value| value.is_string() || value.is_null();
        if fields.get("prompt").is_some_and(|prompt| !is_text(prompt)) {
            return Err(ApiError::field("prompt", "\"prompt\" must be a string"));
        }
        let plain = EncodeOptions::default();
        let part = |name: &str| {
            let missing = || ApiError::field(name, format!("\"{name}\" is required"));
            mixed(fields.get(name).ok_or_else(missing)?, name, tokenizer, plain)
        };
        let special = EncodeOptions { add_special: false, parse_special: true };
        let prompt = fields.get("prompt");
        Ok(Parts {
            prefix: part("input_prefix")?,
            suffix: part("input_suffix")?,
            prompt: prompt.map_or(Ok(vec![]), |p| mixed(p, "prompt", tokenizer, special))?,
            extra: extra(fields.get("input_extra"), tokenizer)?,
        })
    }

    /// The prompt, and how many tokens found no room in it.
    fn prompt(
        mut self,
        tokenizer: &Tokenizer,
        n_ctx: usize,
        n_predict: Option<usize>,
    ) -> (Vec<TokenId>, usize) {
        let special = tokenizer.special();
        // Room for the answer: what it may have, at most half of the context.
        let n_answer = n_predict.unwrap_or(n_ctx / 4).clamp(1, (n_ctx / 2).max(1));
        let n_room = n_ctx - n_answer;
        let n_batch = INFILL_TOKENS_MAX.min(n_room - self.extra.len().min(n_room / 2));
        // BOS and the three tokens of the pattern count as the suffix's.
        let n_suffix = (n_batch / 4).saturating_sub(4 + self.prompt.len()).min(self.suffix.len());
        let n_prefix = (3 * (n_batch / 4)).min(self.prefix.len());
        let n_local = n_prefix + n_suffix + self.prompt.len() + 4;
        let n_extra = n_room.saturating_sub(n_batch.max(n_local)).min(self.extra.len());
        let n_dropped = self.prefix.len() + self.suffix.len() + self.extra.len()
            - (n_prefix + n_suffix + n_extra);
        let mut tokens = self.extra.split_off(self.extra.len() - n_extra);
        tokens.extend(special.bos.filter(|_| special.add_bos));
        tokens.extend(special.fim_prefix);
        tokens.extend(self.prefix.split_off(self.prefix.len() - n_prefix));
        tokens.extend(self.prompt);
        tokens.extend(special.fim_suffix);
        self.suffix.truncate(n_suffix);
        tokens.extend(self.suffix);
        tokens.extend(special.fim_middle);
        (tokens, n_dropped)
    }
}

/// The other files, each after its name.
fn extra(value: Option<&Value>, tokenizer: &Tokenizer) -> Result<Vec<TokenId>, ApiError> {
    let special = tokenizer.special();
    let mut tokens = Vec::new();
    let mut add = |before: Option<TokenId>, text: &str| -> Result<(), ApiError> {
        let ids = tokenizer.encode(text, EncodeOptions::default());
        tokens.extend(before);
        tokens.extend(ids.map_err(|error| ApiError::field("input_extra", error.to_string()))?);
        Ok(())
    };
    if special.fim_repo.is_some() {
        add(special.fim_repo, REPO)?;
    }
    for (name, text) in chunks(value)? {
        match special.fim_file_sep {
            Some(file) => add(Some(file), &format!("{name}\n"))?,
            None => add(None, SNIPPET)?,
        }
        add(None, text)?;
    }
    if special.fim_file_sep.is_some() {
        add(special.fim_file_sep, FILE)?;
    }
    Ok(tokens)
}

/// Names and texts of `input_extra`.
fn chunks(value: Option<&Value>) -> Result<Vec<(&str, &str)>, ApiError> {
    let wrong = |message: &str| ApiError::field("input_extra", message);
    let shape = "\"input_extra\" must be an array of {\"filename\": string, \"text\": string}";
    let Some(value) = value else { return Ok(Vec::new()) };
    let chunk = |item| -> Result<(&str, &str), ApiError> {
        let field = |name: &str| Value::get(item, name);
        let text = field("text").and_then(Value::as_str).ok_or_else(|| {
            wrong("extra_context chunk must contain a \"text\" field with a string value")
        })?;
        let name = match field("filename") {
            None => "tmp",
            Some(name) => name.as_str().ok_or_else(|| {
                wrong("extra_context chunk's \"filename\" field must be a string")
            })?,
        };
        Ok((name, text))
    };
    value.as_array().ok_or_else(|| wrong(shape))?.iter().map(chunk).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inference::{LoadOptions, Model, ModelSource};
    use serde_json::json;

    fn parts(n_prefix: usize, n_suffix: usize, n_extra: usize) -> Parts {
        let ids = |from: u32, n: usize| (from..from + n as u32).collect();
        Parts {
            prefix: ids(100, n_prefix),
            suffix: ids(300, n_suffix),
            prompt: vec![99],
            extra: ids(500, n_extra),
        }
    }

    #[test]
    fn what_is_far_from_the_cursor_goes_first() {
        let load = LoadOptions { n_ctx: Some(64), ..LoadOptions::default() };
        let model = Model::load(&ModelSource::Embedded, &load).unwrap();
        let tokenizer = model.tokenizer();
        let special = tokenizer.special();
        let (all, n_dropped) = parts(3, 2, 4).prompt(tokenizer, 64, Some(16));
        let mut expected = vec![500, 501, 502, 503];
        expected.extend(special.bos.filter(|_| special.add_bos));
        expected.extend(special.fim_prefix);
        expected.extend([100, 101, 102, 99]);
        expected.extend(special.fim_suffix);
        expected.extend([300, 301]);
        expected.extend(special.fim_middle);
        assert_eq!((all, n_dropped), (expected, 0));
        let (all, n_dropped) = parts(100, 100, 100).prompt(tokenizer, 64, Some(16));
        assert!(
            all.len() + 16 <= 64 && n_dropped == 300 - (18 + 1 + 24),
            "{} {n_dropped}",
            all.len()
        );
        assert!(all.contains(&199) && all.contains(&300) && !all.contains(&100));
        let (all, _) = parts(9, 9, 5000).prompt(tokenizer, 4096, Some(96));
        assert_eq!(all[0], 500 + 5000 - 2000, "the last chunks stay");
        assert!(all.len() + 96 <= 4096);
    }

    #[test]
    fn chunks_are_checked() {
        let read = |value: Value| chunks(Some(&value)).map(|all| all.len()).map_err(|e| e.message);
        assert_eq!(
            read(json!([{"text": "a"}, {"text": "b", "filename": "c", "time": 1.5}])),
            Ok(2)
        );
        assert!(read(json!({"text": "a"})).unwrap_err().contains("must be an array"));
        assert!(read(json!([{"filename": "a"}])).unwrap_err().contains("\"text\""));
        assert!(read(json!([{"text": "a", "filename": 1}])).unwrap_err().contains("filename"));
        assert!(read(json!([7])).unwrap_err().contains("\"text\""));
    }
}
