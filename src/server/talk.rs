//! A conversation on its way to the engine, for dialects that translate theirs into OpenAI's.
//!
//! ```text
//! their wire -> fields of a chat as OpenAI names them -> Talk -> their words for what comes
//! ```

use std::sync::Arc;

use super::chat::{ParserSpec, Room, prepare};
use super::constraint::blame;
use super::error::ApiError;
use super::fields::Fields;
use super::generate::{Generation, submit};
use super::request::{Wishes, request};
use super::state::{Caller, ServeOptions};
use crate::hosting::Lease;
use crate::inference::ModelInfo;

/// A chat that was handed to the engine, for one answer.
pub(super) struct Talk {
    pub generation: Generation,
    /// How the answer is read.
    pub parser: ParserSpec,
    pub info: Arc<ModelInfo>,
    /// The model's name.
    pub model: String,
    pub wishes: Wishes,
    /// Tokens that were cut off the conversation.
    pub n_dropped: usize,
}

/// Reads a chat's fields, renders its prompt and hands it on. Takes the processor for a while.
///
/// # Errors
/// A wrong field by its path, a prompt that is too long, what the engine refuses.
pub(super) fn start(
    chat: &Fields,
    lease: Lease,
    caller: &Caller,
    options: &ServeOptions,
) -> Result<Talk, ApiError> {
    let wishes = Wishes::read(chat)?;
    let info = Arc::clone(lease.info());
    // A chat reads `json_schema` as its response format; the others are long and not looked at.
    let mut own = chat.clone();
    for name in ["json_schema", "messages", "tools"] {
        own.0.remove(name);
    }
    let mut request = request(&own, &["max_tokens", "n_predict"], &lease, caller, options)?;
    let top = chat.count("top_logprobs", crate::base::limits::TOP_PROBS_MAX)?;
    request.wants_logprobs = top.is_some() || chat.bool("logprobs")?.unwrap_or(false);
    request.n_probs = top.unwrap_or(0);
    let room = Room { n_ctx: info.n_ctx(), n_predict: request.n_predict, trim: wishes.trim };
    let prepared = prepare(chat, &info, options, room)?;
    request.prompt = prepared.prompt;
    request.shown_tokens = prepared.shown_tokens;
    let has_grammar = prepared.grammar.is_some();
    request.grammar = prepared.grammar.or(request.grammar);
    let model = lease.name().to_owned();
    let mut generation = submit(lease, vec![request]).map_err(|error| {
        let is_ours = has_grammar && error.param.as_deref() == Some("grammar");
        if is_ours { error.at(prepared.grammar_param) } else { blame(&chat.0, error) }
    })?;
    if wishes.is_detached {
        generation.detach(caller);
    }
    let (parser, n_dropped) = (prepared.parser, prepared.n_dropped);
    Ok(Talk { generation, parser, info, model, wishes, n_dropped })
}
