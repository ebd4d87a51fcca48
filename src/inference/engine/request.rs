//! What a caller asks of the engine.

use std::time::Duration;

use super::sampler::SamplerOptions;
use crate::inference::grammar::{GrammarSpec, Trigger};
use crate::inference::tokenizer::TokenId;

/// Who goes first when not everyone can: a class lends a head start over later arrivals of the
/// lower ones, so none starves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Priority {
    /// A person waits.
    #[default]
    Interactive,
    /// A program waits.
    Agent,
    /// Nobody waits.
    Background,
}

/// A grammar for an answer.
#[derive(Clone, Debug, PartialEq)]
pub struct GrammarRequest {
    /// What the answer must look like.
    pub spec: GrammarSpec,
    /// Empty for a grammar that rules from the first token; otherwise it sleeps until one of these
    /// comes.
    pub triggers: Vec<Trigger>,
}

/// Speculation: tokens that are guessed and checked in one step. Never changes an answer.
#[derive(Clone, Debug, PartialEq)]
pub struct SpeculationOptions {
    /// Most tokens guessed at once; 0 turns speculation off.
    pub n_draft_max: usize,
    /// Fewer guesses of a draft model than this are none.
    pub n_draft_min: usize,
    /// A draft model stops at a guess that is less likely than this, among its ten likeliest.
    pub p_min: f32,
    /// Text that the answer may repeat in long runs, such as the file that is being edited.
    pub prediction: Vec<TokenId>,
}

impl Default for SpeculationOptions {
    fn default() -> Self {
        SpeculationOptions { n_draft_max: 8, n_draft_min: 0, p_min: 0.0, prediction: Vec::new() }
    }
}

/// Whose request it is, where that matters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct TenantId(pub u64);

/// A request for one answer, or several to the same prompt.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    /// The caller's name for it, shown in timelines.
    pub id: String,
    /// Tokens to continue.
    pub prompt: Vec<TokenId>,
    /// Answers wanted; they share one prefill. Answer `i` uses `sampler.seed + i`.
    pub n: usize,
    /// Most tokens of an answer; by default as many as the context holds.
    pub n_predict: Option<usize>,
    /// Texts that end an answer; they are not part of it.
    pub stop: Vec<String>,
    /// How tokens are chosen.
    pub sampler: SamplerOptions,
    /// Likeliest tokens reported with each token; 0 for none.
    pub n_probs: usize,
    /// Whether log-probabilities are wanted at all (`n_probs` may be 0).
    pub wants_logprobs: bool,
    /// Log-probabilities are those of the sampling chain's last list, not of the model.
    pub post_sampling_probs: bool,
    /// Goes on past the model's own end.
    pub ignore_eos: bool,
    /// Control tokens are part of the text.
    pub shows_special: bool,
    /// These control tokens are part of the text even where others are not: a format's own marks.
    pub shown_tokens: Vec<TokenId>,
    /// What the answer must look like.
    pub grammar: Option<GrammarRequest>,
    /// Guessing ahead.
    pub speculation: SpeculationOptions,
    /// Adapters by index, and their scales.
    pub adapters: Vec<(usize, f32)>,
    /// Class.
    pub priority: Priority,
    /// Whose it is: requests of one tenant share a cap.
    pub tenant: TenantId,
    /// Keeps its cached prefixes from other tenants, and theirs from it.
    pub is_cache_private: bool,
    /// Whether cached prefixes may be used.
    pub uses_cache: bool,
    /// The slot that should run it, if it is free by then.
    pub slot_idx: Option<usize>,
    /// A full context drops old tokens behind the first `n_keep` and goes on, instead of ending.
    pub context_shift: bool,
    /// Tokens at the start that a shift keeps.
    pub n_keep: usize,
    /// Time after which the request ends, wherever it is.
    pub deadline: Option<Duration>,
    /// Time of writing after which the answer ends, once it has a line end.
    pub predict_time_max: Option<Duration>,
    /// Ends the answer at the first line that is indented less than this, after its first line.
    pub n_indent: usize,
}

impl Default for Request {
    fn default() -> Self {
        Request {
            id: String::new(),
            prompt: Vec::new(),
            n: 1,
            n_predict: None,
            stop: Vec::new(),
            sampler: SamplerOptions::default(),
            n_probs: 0,
            wants_logprobs: false,
            post_sampling_probs: false,
            ignore_eos: false,
            shows_special: false,
            shown_tokens: Vec::new(),
            grammar: None,
            speculation: SpeculationOptions::default(),
            adapters: Vec::new(),
            priority: Priority::default(),
            tenant: TenantId::default(),
            is_cache_private: false,
            uses_cache: true,
            slot_idx: None,
            context_shift: false,
            n_keep: 0,
            deadline: None,
            predict_time_max: None,
            n_indent: 0,
        }
    }
}
