//! JSON schemas, regular expressions and Lark grammars, by llguidance.
//!
//! It parses with Earley's algorithm over a lexer of derivatives, and its errors are final: a
//! matcher that gave up stays so. It catches its own panics; compiling runs on a thread with a
//! large stack, for schemas nest and the stack's end cannot be caught.
//!
//! JSON comes out in the order of the schema's properties. Between its tokens stands nothing, one
//! space, or one or two line ends with up to 20 spaces, as in llama.cpp: white space without a
//! bound lets a weak model write nothing else.

use std::thread;

use llguidance::api::{StopReason, TopLevelGrammar};
use llguidance::toktrie::SimpleVob;
use llguidance::{Matcher, TokenParser};
use serde_json::{Map, Value, json};

use super::error::GrammarError;
use super::vocab::GrammarVocab;
use crate::base::limits;
use crate::inference::tokenizer::TokenId;

const WHITE_SPACE: &str = r" |\n{1,2}[ \t]{0,20}";
/// Where schemas may carry options of llguidance; only `lenient` is listened to.
const OPTIONS: &str = "x-guidance";
/// Bytes of a reason that are shown.
const REASON_BYTES_MAX: usize = 500;

/// A grammar of llguidance at a place in a text.
#[derive(Clone)]
pub(super) struct Guided {
    vocab: GrammarVocab,
    matcher: Matcher,
}

impl Guided {
    pub(super) fn json_schema(vocab: &GrammarVocab, text: &str) -> Result<Guided, GrammarError> {
        let kind = "JSON schema";
        let schema = serde_json::from_str(text)
            .map_err(|e| GrammarError::NotJson { reason: e.to_string() })?;
        let schema = match schema {
            Value::Bool(true) => Map::new(),
            Value::Object(schema) => schema,
            _ => {
                let reason = "it must be an object, and admit something".to_owned();
                return Err(GrammarError::Refused { kind, reason });
            }
        };
        Guided::compile(vocab, kind, TopLevelGrammar::from_json_schema(with_options(schema)))
    }

    pub(super) fn json_object(vocab: &GrammarVocab) -> Result<Guided, GrammarError> {
        Guided::json_schema(vocab, r#"{"type": "object"}"#)
    }

    pub(super) fn regex(vocab: &GrammarVocab, regex: &str) -> Result<Guided, GrammarError> {
        let grammar = match regex {
            "" => TopLevelGrammar::from_lark("start: \"\"".to_owned()),
            _ => TopLevelGrammar::from_regex(regex),
        };
        Guided::compile(vocab, "regular expression", grammar)
    }

    pub(super) fn lark(vocab: &GrammarVocab, lark: &str) -> Result<Guided, GrammarError> {
        Guided::compile(vocab, "Lark grammar", TopLevelGrammar::from_lark(lark.to_owned()))
    }

    fn compile(
        vocab: &GrammarVocab,
        kind: &'static str,
        grammar: TopLevelGrammar,
    ) -> Result<Guided, GrammarError> {
        let refused = |reason: &str| GrammarError::Refused { kind, reason: shortened(reason) };
        let parser = with_stack(|| vocab.factory().create_parser(grammar))?
            .map_err(|e| refused(&format!("{e:#}")))?;
        let matcher = Matcher::new(Ok::<TokenParser, _>(parser));
        match matcher.get_error() {
            Some(error) => Err(refused(&error)),
            None => Ok(Guided { vocab: vocab.clone(), matcher }),
        }
    }

    /// The tokens that may come next.
    pub(super) fn allowed(&mut self) -> Result<SimpleVob, GrammarError> {
        match self.matcher.compute_mask_or_eos() {
            Ok(mut allowed) => {
                self.vocab.widen(&mut allowed);
                Ok(allowed)
            }
            Err(error) => Err(self.gave_up(&error.to_string())),
        }
    }

    /// Whether the token was allowed; if so, it is now part of the text.
    pub(super) fn accept(&mut self, token: TokenId) -> Result<bool, GrammarError> {
        match self.matcher.try_consume_tokens(&[self.vocab.stand_in(token)]) {
            Ok(n_accepted) => Ok(n_accepted == 1),
            Err(error) => Err(self.gave_up(&error.to_string())),
        }
    }

    /// Accepts text that need not end where a token does.
    pub(super) fn accept_bytes(&mut self, bytes: &[u8]) -> Result<bool, GrammarError> {
        let Some(tokens) = self.vocab.spell(bytes) else { return Ok(false) };
        match self.matcher.try_consume_tokens(&tokens) {
            Ok(n_accepted) => Ok(n_accepted == tokens.len()),
            Err(error) => Err(self.gave_up(&error.to_string())),
        }
    }

    pub(super) fn is_finished(&self) -> bool {
        self.matcher.is_stopped() && self.matcher.stop_reason().is_ok()
    }

    pub(super) fn is_accepting(&mut self) -> bool {
        self.is_finished() || self.matcher.is_accepting().unwrap_or(false)
    }

    fn gave_up(&self, reason: &str) -> GrammarError {
        match self.matcher.stop_reason() {
            StopReason::NoExtensionBias => GrammarError::Stuck,
            _ => GrammarError::GaveUp { reason: shortened(reason) },
        }
    }
}

/// The schema as llguidance gets it. Its own options do not come from outside, except `lenient`,
/// which has unknown keywords ignored.
fn with_options(mut schema: Map<String, Value>) -> Value {
    let lenient = schema.get(OPTIONS).and_then(|options| options.get("lenient"));
    let options = json!({
        "whitespace_pattern": WHITE_SPACE,
        "coerce_one_of": true,
        "lenient": lenient == Some(&Value::Bool(true)),
    });
    schema.insert(OPTIONS.to_owned(), options);
    Value::Object(schema)
}

/// Runs a computation that may recurse deeply.
fn with_stack<T: Send>(run: impl FnOnce() -> T + Send) -> Result<T, GrammarError> {
    let gave_up = |reason: &str| GrammarError::GaveUp { reason: reason.to_owned() };
    thread::scope(|scope| {
        thread::Builder::new()
            .name("grammar".to_owned())
            .stack_size(limits::GRAMMAR_STACK_BYTES)
            .spawn_scoped(scope, run)
            .map_err(|_| gave_up("no thread to compile it"))?
            .join()
            .map_err(|_| gave_up("compiling it failed"))
    })
}

/// The reason without llguidance's dumps of state, backtraces and markers.
fn shortened(reason: &str) -> String {
    let end = ["<state>", "<backtrace>", "<non-verbose/>"]
        .iter()
        .filter_map(|marker| reason.find(marker))
        .min()
        .unwrap_or(reason.len());
    let mut end = end.min(REASON_BYTES_MAX);
    while !reason.is_char_boundary(end) {
        end -= 1;
    }
    reason[..end].trim().to_owned()
}
