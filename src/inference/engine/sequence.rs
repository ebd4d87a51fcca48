//! A sequence: one answer on its way, from its prompt to its last token.

use std::sync::Arc;
use std::time::Instant;

use super::EngineError;
use super::answer::Answer;
use super::disk_link::Fetching;
use super::draft::{Ask, Luck, PromptLookup};
use super::event::{Event, EventSender, Finish, Timings, TokenEvent};
use super::info::ModelInfo;
use super::prefix_cache::Scope;
use super::request::Request;
use super::runner::Runner;
use super::sampler::{BreakerVocab, Sampler, TokenLogProb, log_probs};
use super::scheduler::{SequenceId, SequenceView};
use crate::inference::backend::{AdapterIdx, PageIdx};
use crate::inference::grammar::Matcher;
use crate::inference::tokenizer::{EncodeOptions, TokenId};

/// A request with the sequences that answer it.
pub(super) struct Group {
    pub request: Request,
    pub sender: EventSender,
    pub arrived: Instant,
    pub arrived_unix_ms: u64,
    pub scope: Scope,
    pub adapters: Vec<(AdapterIdx, f32)>,
}

/// A sequence of a group.
pub(super) struct Sequence {
    pub id: SequenceId,
    pub group: Arc<Group>,
    pub answer_idx: usize,
    /// The group's first sequence, while its prefill is waited for.
    pub leader: Option<SequenceId>,
    pub arrived_ms: u64,
    /// Prompt and answer, less what a shift dropped.
    pub tokens: Vec<TokenId>,
    /// Tokens of the prompt among them.
    pub n_prompt: usize,
    /// Of `tokens`, those whose keys and values are in `pages`.
    pub n_kv: usize,
    pub pages: Vec<PageIdx>,
    pub slot_idx: Option<usize>,
    /// Pages that are on their way from the disk.
    pub fetch: Option<Fetching>,
    pub draft: Vec<TokenId>,
    pub timings: Timings,
    pub was_shifted: bool,
    sampler: Sampler,
    matcher: Option<Matcher>,
    answer: Answer,
    lookup: PromptLookup,
    /// How well a draft model guesses.
    luck: Luck,
    /// Whether `draft` is a draft model's.
    is_drafted: bool,
    admitted: Option<Instant>,
    first_token: Option<Instant>,
    pub last_token: Option<Instant>,
}

impl Sequence {
    /// A sequence that waits. The matcher is that of the request's grammar.
    pub fn new(
        id: SequenceId,
        group: Arc<Group>,
        answer_idx: usize,
        arrived_ms: u64,
        info: &ModelInfo,
        matcher: Option<Matcher>,
    ) -> Result<Sequence, EngineError> {
        let request = &group.request;
        let mut sampler = sampler(info, request, answer_idx)?;
        // A text that another model wrote may have tokens that this one lacks.
        let is_known = |token: &&TokenId| (**token as usize) < info.hparams.n_vocab;
        let prediction = request.speculation.prediction.iter().take_while(is_known);
        let prediction: Vec<TokenId> = prediction.copied().collect();
        request.prompt.iter().for_each(|&token| sampler.accept(token));
        Ok(Sequence {
            id,
            answer_idx,
            leader: None,
            arrived_ms,
            tokens: request.prompt.clone(),
            n_prompt: request.prompt.len(),
            n_kv: 0,
            pages: Vec::new(),
            slot_idx: None,
            fetch: None,
            draft: Vec::new(),
            timings: Timings { n_prompt: request.prompt.len(), ..Timings::default() },
            was_shifted: false,
            sampler,
            matcher,
            answer: Answer::new(&request.stop, request.n_indent),
            lookup: PromptLookup::new(&prediction),
            luck: Luck::default(),
            is_drafted: false,
            admitted: None,
            first_token: None,
            last_token: None,
            group,
        })
    }

    /// What the scheduler sees.
    pub fn view(&self) -> SequenceView {
        SequenceView {
            id: self.id,
            priority: self.group.request.priority,
            tenant: self.group.request.tenant,
            arrived_ms: self.arrived_ms,
            is_running: self.slot_idx.is_some(),
            is_fetching: self.fetch.is_some(),
            is_follower: self.leader.is_some(),
            n_todo: self.tokens.len() - self.n_kv,
            n_draft: self.draft.len(),
        }
    }

    /// Guesses ahead by lookup, if it decodes and may.
    pub fn guess(&mut self, n_ctx: usize) {
        self.draft.clear();
        self.is_drafted = false;
        let n_max = self.n_guess_max(n_ctx);
        if n_max > 0 && self.slot_idx.is_some() && self.is_decoding() {
            self.draft = self.lookup.draft(&self.tokens, n_max);
        }
    }

    /// What it wants of a draft model, if it may guess and has not yet.
    pub fn ask(&mut self, n_ctx: usize) -> Option<Ask<'_>> {
        let (n_max, slot_idx) = (self.n_guess_max(n_ctx), self.slot_idx?);
        if n_max == 0 || !self.draft.is_empty() {
            return None;
        }
        self.is_drafted = self.is_decoding();
        let speculation = &self.group.request.speculation;
        let n_luck = self.luck.n_draft().max(speculation.n_draft_min);
        Some(Ask {
            slot_idx,
            tenant: self.group.scope.tenant,
            n_max: if self.is_drafted { n_max.min(n_luck) } else { 0 },
            n_min: speculation.n_draft_min,
            p_min: speculation.p_min,
            tokens: &self.tokens,
            draft: &mut self.draft,
        })
    }

    /// Most tokens that may be guessed: at most to the end of its answer and context.
    fn n_guess_max(&self, n_ctx: usize) -> usize {
        let request = &self.group.request;
        let n_left = match request.n_predict {
            Some(n) => n.saturating_sub(self.timings.n_generated + 1),
            None => usize::MAX,
        };
        let n_room = n_ctx.saturating_sub(self.tokens.len());
        request.speculation.n_draft_max.min(n_left).min(n_room)
    }

    /// Whether only its next token is lacking.
    pub fn is_decoding(&self) -> bool {
        self.tokens.len() - self.n_kv == 1
    }

    /// Hears that it has a place.
    pub fn admit(&mut self, now: Instant) {
        if self.admitted.is_none() {
            self.timings.queued_ms = ms(now - self.group.arrived);
            self.admitted = Some(now);
        }
    }

    /// Whether the prompt has been through the model.
    pub fn is_prefilled(&self) -> bool {
        self.n_kv >= self.n_prompt
    }

    /// Tells the caller how far the prompt is.
    pub fn report_progress(&self) {
        if self.timings.n_generated == 0 {
            let (n_done, n_prompt) = (self.n_kv.min(self.n_prompt), self.n_prompt);
            let n_cached = self.timings.n_cached;
            self.group.sender.push(Event::Progress { n_done, n_prompt, n_cached });
        }
    }

    /// How many of a row's largest logits its next pick wants, at most `n_max`; 0 for all of them.
    pub fn n_top(&self, info: &ModelInfo, n_max: usize) -> usize {
        if self.wants_all_logits() {
            return 0;
        }
        self.sampler.n_top(self.forbidden(info).len(), n_max)
    }

    fn wants_all_logits(&self) -> bool {
        self.matcher.is_some() || self.group.request.wants_logprobs
    }

    /// Tokens that it may not pick.
    fn forbidden<'a>(&self, info: &'a ModelInfo) -> &'a [TokenId] {
        if self.group.request.ignore_eos { &info.tokenizer.special().eog } else { &[] }
    }

    /// Picks the next token from a row of logits.
    pub fn pick(
        &mut self,
        info: &ModelInfo,
        row: &mut LogitRow<'_>,
    ) -> Result<Picked, EngineError> {
        let now = Instant::now();
        let since = match self.last_token.replace(now) {
            Some(last) => Since::LastToken(now - last),
            None => Since::Arrival(now - self.group.arrived),
        };
        self.first_token.get_or_insert(now);
        // Where others of the step want few, a few of this row are there as well.
        let top = if self.wants_all_logits() { &[] } else { row.runner.top(row.row_idx) };
        let forbidden = self.forbidden(info);
        let (token, probs) = match self.sampler.sample_top(top, forbidden, Some(&info.tokenizer)) {
            Some(token) => (token, None),
            None => self.pick_of_all(info, row.read()?)?,
        };
        self.sampler.accept(token);
        self.tokens.push(token);
        self.timings.n_generated += 1;
        let is_eog = info.tokenizer.is_eog(token);
        let mut is_complete = false;
        if let Some(matcher) = &mut self.matcher
            && !is_eog
        {
            matcher.accept(token)?;
            is_complete = matcher.is_finished();
        }
        Ok(Picked { event: TokenEvent { token, probs }, is_eog, is_complete, since })
    }

    /// The token, and its probability if it was asked for, from a whole row, which it may change.
    fn pick_of_all(
        &mut self,
        info: &ModelInfo,
        logits: &mut [f32],
    ) -> Result<(TokenId, Option<TokenLogProb>), EngineError> {
        for &token in self.forbidden(info) {
            if let Some(logit) = logits.get_mut(token as usize) {
                *logit = f32::NEG_INFINITY;
            }
        }
        let request = &self.group.request;
        let is_raw = request.wants_logprobs && !request.post_sampling_probs;
        let raw = (is_raw && self.matcher.is_some()).then(|| logits.to_vec());
        if let Some(matcher) = &mut self.matcher {
            matcher.mask(logits)?;
        }
        let token = self.sampler.sample_text(logits, &info.tokenizer);
        let probs = match (request.wants_logprobs, is_raw) {
            (false, _) => None,
            (_, true) => Some(log_probs(raw.as_deref().unwrap_or(logits), token, request.n_probs)),
            (_, false) => Some(self.sampler.last_log_probs(token, request.n_probs)),
        };
        Ok((token, probs))
    }

    /// Shows a picked token and says whether it was the last.
    pub fn show(&mut self, info: &ModelInfo, picked: Picked, n_ctx: usize) -> Option<Finish> {
        let request = &self.group.request;
        let (mut text, mut end) = (String::new(), picked.is_eog.then_some(Finish::Eog));
        if end.is_none() || request.shows_special {
            let token = picked.event.token;
            let special = request.shows_special || request.shown_tokens.contains(&token);
            let bytes = info.tokenizer.token_bytes(token, special);
            let (shown, stopped) = self.answer.push(bytes);
            text = shown;
            end = end.or(stopped);
        }
        let n_predict = request.n_predict.unwrap_or(usize::MAX);
        let is_full = self.tokens.len() >= n_ctx && !request.context_shift;
        end = end
            .or(picked.is_complete.then_some(Finish::Eog))
            .or((self.timings.n_generated >= n_predict).then_some(Finish::Length))
            .or(is_full.then_some(Finish::ContextFull))
            .or(self.is_late().then_some(Finish::TimeUp));
        self.update_times();
        let (answer_idx, timings) = (self.answer_idx, self.timings);
        let tokens = vec![picked.event];
        self.group.sender.push(Event::Text { answer_idx, text, tokens, timings });
        end
    }

    /// Whether one of its times is up.
    pub fn is_late(&self) -> bool {
        let request = &self.group.request;
        let is_over = request.deadline.is_some_and(|max| self.group.arrived.elapsed() >= max);
        let writes = self.first_token.map(|first| first.elapsed());
        let time_box = request.predict_time_max.zip(writes);
        is_over || (self.answer.has_newline() && time_box.is_some_and(|(max, took)| took >= max))
    }

    /// Says that the answer is over.
    pub fn end(&mut self, finish: Finish) -> Finish {
        let (answer_idx, mut finish) = (self.answer_idx, finish);
        if !matches!(finish, Finish::Stop(_) | Finish::Indent | Finish::Canceled) {
            let (text, stopped) = self.answer.finish();
            finish = stopped.unwrap_or(finish);
            if !text.is_empty() {
                let (tokens, timings) = (Vec::new(), self.timings);
                self.group.sender.push(Event::Text { answer_idx, text, tokens, timings });
            }
        }
        self.update_times();
        let is_incomplete = self.matcher.as_mut().is_some_and(|m| !m.is_accepting());
        let (was_shifted, timings) = (self.was_shifted, self.timings);
        self.group.sender.push(Event::Done {
            answer_idx,
            finish: finish.clone(),
            is_incomplete,
            was_shifted,
            timings,
        });
        finish
    }

    /// Hears how the last guess went.
    pub fn learn(&mut self, n_draft: usize, n_accepted: usize) {
        if n_draft > 0 {
            self.timings.n_draft += n_draft;
            self.timings.n_accepted += n_accepted;
            match self.is_drafted {
                true => self.luck.learn(n_draft, n_accepted),
                false => self.lookup.learn(n_draft, n_accepted),
            }
        }
    }

    fn update_times(&mut self) {
        let now = Instant::now();
        if let Some(admitted) = self.admitted {
            let first = self.first_token.unwrap_or(now);
            self.timings.prefill_ms = ms(first - admitted);
            self.timings.decode_ms = ms(self.last_token.unwrap_or(first) - first);
        }
    }
}

/// An output row of the step that just ran, read where it is only as far as it is wanted.
pub(super) struct LogitRow<'a> {
    pub runner: &'a mut dyn Runner,
    pub row_idx: usize,
    /// Room for all of it, `[n_vocab]`.
    pub all: &'a mut [f32],
}

impl LogitRow<'_> {
    /// All of it.
    fn read(&mut self) -> Result<&mut [f32], EngineError> {
        match self.runner.row(self.row_idx) {
            Ok(row) => self.all.copy_from_slice(row),
            Err(error) => return Err(EngineError::Step { reason: error.to_string() }),
        }
        Ok(self.all)
    }
}

/// A token that was picked.
pub(super) struct Picked {
    event: TokenEvent,
    is_eog: bool,
    is_complete: bool,
    pub since: Since,
}

impl Picked {
    /// The token.
    pub fn token(&self) -> TokenId {
        self.event.token
    }
}

/// How long a token took, since what came before it.
#[derive(Clone, Copy, Debug)]
pub(super) enum Since {
    Arrival(std::time::Duration),
    LastToken(std::time::Duration),
}

fn ms(duration: std::time::Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

fn sampler(info: &ModelInfo, request: &Request, answer_idx: usize) -> Result<Sampler, EngineError> {
    let tokenizer = &info.tokenizer;
    let vocab = BreakerVocab {
        piece: &|token| tokenizer.decode(&[token], true),
        encode: &|bytes| {
            tokenizer.encode_bytes(bytes, EncodeOptions::default()).unwrap_or_default()
        },
    };
    let mut options = request.sampler.clone();
    if options.seed != super::sampler::SEED_RANDOM {
        options.seed = options.seed.wrapping_add(answer_idx as u32);
    }
    let (n_vocab, n_ctx_train) = (info.hparams.n_vocab, info.hparams.n_ctx_train);
    Ok(Sampler::new(&options, n_vocab, n_ctx_train, &vocab)?)
}
