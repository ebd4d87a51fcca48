//! The engine's core: one step after another over everything that runs.
//!
//! ```text
//! step   0 pages that came from the disk are written, pages that it shall keep are handed over
//!        1 those whose caller left or whose time is up end
//!        2 guesses (draft), then scheduler::schedule: who has a place, what goes through the model
//!        3 a place: pages found in the prefix cache are shared, a part of one is copied, and
//!          what the disk has beyond that is fetched while others go on
//!        4 one batch through the model
//!        5 each output row: the sequence's own sampler picks; guesses count while it picks them
//! ```
//!
//! Pages never run short: a place may hold as many as its context needs, there are that many for
//! every place, and what only the prefix cache holds can be had back at any time.

mod commands;
mod ending;
mod guess;
mod restore;

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use self::guess::{Pick, pick_rows};
use super::disk_link::{DiskLink, Waker};
use super::draft_model::DraftModel;
use super::handle::{Command, Submitted};
use super::pace::Pace;
use super::pages::PagePool;
use super::prefix_cache::{PrefixCache, Scope};
use super::runner::Runner;
use super::scheduler::{SequenceId, StepLimits, Work, schedule};
use super::sequence::{Group, LogitRow, Sequence};
use super::stats::StatsCell;
use super::tempo::Tempo;
use super::{EngineError, EngineOptions, EnginePhase, Model, ModelInfo, Priority, Request};
use crate::inference::backend::{AdapterIdx, Batch, PAGE_LEN, PageIdx, Span};
use crate::inference::grammar::Matcher;
use crate::inference::tokenizer::TokenId;

/// The part of the budget between two tokens that a draft model may read for is one in so many.
const DRAFT_SHARE: u32 = 4;

/// What a slot's last sequence left behind.
#[derive(Clone, Default)]
pub(super) struct SlotState {
    pub tokens: Vec<TokenId>,
    pub scope: Scope,
}

/// Everything that the engine thread owns.
pub(super) struct Core {
    pub info: Arc<ModelInfo>,
    pub runner: Box<dyn Runner>,
    pub draft: Option<DraftModel>,
    /// Prefixes that outlive the program.
    pub disk: Option<DiskLink>,
    options: EngineOptions,
    stats: Arc<StatsCell>,
    pub pool: PagePool,
    pub cache: PrefixCache,
    sequences: Vec<Sequence>,
    /// Commands that wait for pages which sequences hold.
    deferred: Vec<Command>,
    pub slots: Vec<SlotState>,
    pace: Pace,
    /// How much of a prompt the draft model reads while others decode.
    draft_pace: Pace,
    /// What is asked of its speed from outside.
    tempo: Tempo,
    phase: EnginePhase,
    started: Instant,
    next_id: SequenceId,
    /// A row of logits, to be changed by its sequence.
    row: Vec<f32>,
}

/// Refuses what cannot be run as it is.
pub(super) fn check(
    request: &Request,
    info: &ModelInfo,
    options: &EngineOptions,
) -> Result<(), EngineError> {
    if !info.hparams.arch.causal {
        return Err(super::InferenceError::NotGenerative.into());
    }
    let (n_prompt, n_ctx) = (request.prompt.len(), info.n_ctx);
    if n_prompt == 0 {
        return Err(super::InferenceError::PromptEmpty.into());
    }
    if n_prompt >= n_ctx {
        return Err(super::InferenceError::PromptTooLong { n_prompt, n_ctx }.into());
    }
    if request.n == 0 || request.n > options.n_answer_max {
        return Err(EngineError::Answers { got: request.n, max: options.n_answer_max });
    }
    let n_adapter = info.adapters.len();
    if let Some(&(adapter, _)) = request.adapters.iter().find(|(i, _)| *i >= n_adapter) {
        return Err(EngineError::Adapter { adapter, n_adapter });
    }
    let n_vocab = info.hparams.n_vocab;
    if let Some(&token) = request.prompt.iter().find(|&&token| token as usize >= n_vocab) {
        return Err(EngineError::Token { token, n_vocab });
    }
    Ok(())
}

impl Core {
    /// `waker` is called when the disk has done something.
    pub fn new(model: Model, options: EngineOptions, stats: Arc<StatsCell>, waker: &Waker) -> Core {
        let (info, runner, draft) = model.into_parts();
        let disk = DiskLink::new(&options, &info, &*runner, waker);
        stats.update(|stats| stats.n_page = info.n_page);
        Core {
            pool: PagePool::new(info.n_page),
            cache: PrefixCache::default(),
            sequences: Vec::new(),
            deferred: Vec::new(),
            slots: vec![SlotState::default(); options.n_parallel],
            pace: Pace::new(options.itl_budget, info.n_batch),
            draft_pace: Pace::new(options.itl_budget / DRAFT_SHARE, info.n_batch),
            tempo: Tempo::default(),
            phase: EnginePhase::default(),
            started: Instant::now(),
            next_id: 0,
            row: vec![0.0; info.hparams.n_vocab],
            info,
            runner,
            draft,
            disk,
            options,
            stats,
        }
    }

    /// Counts on `beat` within long steps.
    pub fn count_on(&mut self, beat: &Arc<AtomicU64>) {
        self.runner.count_on(beat);
        if let Some(draft) = &mut self.draft {
            draft.runner().count_on(beat);
        }
    }

    /// Goes at this tempo from now on.
    pub fn set_tempo(&mut self, tempo: Tempo) {
        if tempo.n_threads != self.tempo.n_threads {
            self.runner.set_n_threads(tempo.n_threads);
            if let Some(draft) = &mut self.draft {
                draft.runner().set_n_threads(tempo.n_threads);
            }
        }
        self.tempo = tempo;
    }

    /// What is done in a pause, in place of a step: nothing that computes.
    pub fn pause(&mut self) {
        self.collect();
        self.end_those_who_should();
        self.gauge();
    }

    /// Whether a step would do anything.
    pub fn has_work(&self) -> bool {
        !self.sequences.is_empty()
            || !self.deferred.is_empty()
            || self.link().is_some_and(DiskLink::has_keeping)
    }

    /// Takes a request.
    pub fn submit(&mut self, submitted: Submitted) {
        let Submitted { request, matcher, sender, arrived } = submitted;
        let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let scope = Scope {
            tenant: request.is_cache_private.then_some(request.tenant.0),
            adapters: request.adapters.iter().map(|&(i, s)| (i, s.to_bits())).collect(),
        };
        let arrived_unix_ms = unix.as_millis() as u64;
        let adapters = request.adapters.iter().map(|&(i, s)| (i as AdapterIdx, s)).collect();
        let group = Group { arrived_unix_ms, request, sender, arrived, scope, adapters };
        self.stats.update(|stats| stats.requests_total += 1);
        let group = Arc::new(group);
        match self.sequences_of(&group, matcher.as_ref()) {
            Ok(sequences) => self.sequences.extend(sequences),
            Err(error) => self.fail(&group, error),
        }
        self.gauge();
    }

    fn sequences_of(
        &mut self,
        group: &Arc<Group>,
        matcher: Option<&Matcher>,
    ) -> Result<Vec<Sequence>, EngineError> {
        let request = &group.request;
        let arrived_ms = group.arrived.saturating_duration_since(self.started).as_millis() as u64;
        let leader = self.next_id;
        let mut sequences = Vec::with_capacity(request.n);
        for answer_idx in 0..request.n {
            let id = self.next_id;
            self.next_id += 1;
            let (group, matcher) = (Arc::clone(group), matcher.cloned());
            let mut sequence =
                Sequence::new(id, group, answer_idx, arrived_ms, &self.info, matcher)?;
            sequence.leader = (answer_idx > 0 && request.uses_cache).then_some(leader);
            sequences.push(sequence);
        }
        Ok(sequences)
    }

    /// One step over everything that runs.
    pub fn step(&mut self) {
        self.collect();
        self.hand_over();
        self.end_those_who_should();
        std::mem::take(&mut self.deferred).into_iter().for_each(|command| self.obey(command));
        let guessed = self.guess();
        let views: Vec<_> = self.sequences.iter().map(Sequence::view).collect();
        let step = schedule(&views, &self.limits());
        step.preempt.iter().for_each(|&id| self.preempt(id));
        step.admit.iter().for_each(|&id| self.admit(id));
        // Whoever got a place just now may have found its prompt on the disk.
        let is_ready = |w: &&Work| self.sequences[self.index(w.id)].fetch.is_none();
        let ready: Vec<Work> = step.work.iter().filter(is_ready).copied().collect();
        let work: Vec<Work> = ready.into_iter().map(|work| self.fit(work)).collect();
        if !work.is_empty() {
            self.run(&work, guessed);
        }
        self.gauge();
    }

    fn limits(&self) -> StepLimits {
        StepLimits {
            n_parallel: self.options.n_parallel,
            n_tenant_max: self.options.n_tenant_max,
            n_batch: self.tempo.n_batch(self.info.n_batch, self.options.n_parallel),
            n_outputs: self.info.n_outputs,
            n_chunk: self.pace.n_chunk(),
            prefill_token_us: self.pace.prefill_token_us(),
        }
    }

    fn index(&self, id: SequenceId) -> usize {
        let found = self.sequences.iter().position(|sequence| sequence.id == id);
        found.expect("the scheduler names sequences that it was shown")
    }

    /// Gives a sequence a place and what the prefix cache has of its tokens.
    fn admit(&mut self, id: SequenceId) {
        let i = self.index(id);
        let now = Instant::now();
        let used = |slot: usize| self.sequences.iter().any(|s| s.slot_idx == Some(slot));
        let free: Vec<usize> = (0..self.slots.len()).filter(|&slot| !used(slot)).collect();
        // The place whose last sequence began alike, as llama.cpp's clients expect.
        let same = |slot: &usize| {
            let (old, new) = (&self.slots[*slot].tokens, &self.sequences[i].tokens);
            old.iter().zip(new).take_while(|(a, b)| a == b).count()
        };
        let asked = self.sequences[i].group.request.slot_idx.filter(|slot| free.contains(slot));
        let slot_idx = asked.or_else(|| free.iter().copied().rev().max_by_key(same));
        let sequence = &mut self.sequences[i];
        sequence.slot_idx = slot_idx;
        sequence.timings.slot_idx = slot_idx.unwrap_or_default();
        sequence.admit(now);
        let queued_s = sequence.timings.queued_ms / 1e3;
        self.stats.admitted(queued_s);
        if self.sequences[i].group.request.uses_cache {
            self.find_prefix(i, true);
        }
        if self.sequences[i].fetch.is_none() {
            self.count_cached(i);
        }
    }

    fn preempt(&mut self, id: SequenceId) {
        let i = self.index(id);
        self.keep(i);
        let sequence = &mut self.sequences[i];
        sequence.pages.drain(..).for_each(|page| self.pool.release(page));
        sequence.n_kv = 0;
        sequence.slot_idx = None;
        let fetch = sequence.fetch.take();
        self.forget_fetch(fetch);
        self.stats.update(|stats| stats.preempted_total += 1);
    }

    /// A free page; the prefix cache gives one up if need be.
    pub fn new_page(&mut self) -> PageIdx {
        loop {
            if let Some(page) = self.pool.alloc() {
                return page;
            }
            assert!(
                self.cache.evict(&mut self.pool),
                "every place has pages for its whole context, and the cache gives up the rest"
            );
        }
    }

    /// Notes what a sequence has in its pages in the prefix cache. Where an answer's tokens have
    /// other bits than a prompt's it is the prompt alone, so that what is found there is what would
    /// be computed.
    fn keep(&mut self, i: usize) {
        let sequence = &mut self.sequences[i];
        if sequence.group.request.uses_cache {
            let n_max = match self.runner.sets_prompts_apart() {
                true => sequence.n_prompt,
                false => usize::MAX,
            };
            let tokens = &sequence.tokens[..sequence.n_kv.min(n_max)];
            let pages = &mut sequence.pages;
            self.cache.insert(&mut self.pool, &sequence.group.scope, tokens, pages);
        }
    }

    /// Cuts work to what a sequence's step really holds, and gets the pages for it.
    fn fit(&mut self, work: Work) -> Work {
        let i = self.index(work.id);
        let n_todo = self.sequences[i].tokens.len() - self.sequences[i].n_kv;
        // What the cache had is not done again.
        let n_tokens = work.n_tokens.min(n_todo);
        let end = self.sequences[i].n_kv + n_tokens + work.n_draft;
        while self.sequences[i].pages.len() < end.div_ceil(PAGE_LEN) {
            let page = self.new_page();
            self.sequences[i].pages.push(page);
        }
        Work { n_tokens, ..work }
    }

    /// Runs one batch and hands each sequence its rows; the guesses in it took `guessed`.
    fn run(&mut self, work: &[Work], guessed: Duration) {
        let started = Instant::now();
        self.tell_phase(match work.iter().any(|work| self.is_prefill(work)) {
            true => EnginePhase::Prefill,
            false => EnginePhase::Decode,
        });
        let indices: Vec<usize> = work.iter().map(|work| self.index(work.id)).collect();
        let (mut tokens, mut outputs, mut owners) = (Vec::new(), Vec::new(), Vec::new());
        for (work, &i) in work.iter().zip(&indices) {
            let sequence = &self.sequences[i];
            tokens.extend_from_slice(&sequence.tokens[sequence.n_kv..][..work.n_tokens]);
            let is_ready = sequence.n_kv + work.n_tokens == sequence.tokens.len();
            let n_draft = if is_ready { work.n_draft } else { 0 };
            if is_ready && sequence.group.request.n_predict != Some(0) {
                let last = tokens.len() as u32 - 1;
                outputs.extend(last..=last + n_draft as u32);
                owners.extend((0..=n_draft).map(|_| i));
            }
            tokens.extend_from_slice(&sequence.draft[..n_draft]);
        }
        let spans: Vec<Span<'_>> = work
            .iter()
            .zip(&indices)
            .map(|(work, &i)| Span {
                pages: &self.sequences[i].pages,
                pos: self.sequences[i].n_kv,
                n_tokens: work.n_tokens + work.n_draft,
                n_prompt: self.sequences[i].n_prompt.saturating_sub(self.sequences[i].n_kv),
                adapters: &self.sequences[i].group.adapters,
            })
            .collect();
        let batch = Batch { tokens: &tokens, spans: &spans, outputs: &outputs };
        let n_top_max = self.runner.n_top_max();
        let n_top = owners.iter().map(|&i| self.sequences[i].n_top(&self.info, n_top_max));
        let n_top: Vec<usize> = n_top.collect();
        if let Err(error) = self.runner.forward_top(&batch, &n_top) {
            return self.fail_all(&error);
        }
        let mut picks: Vec<Pick> = Vec::new();
        let mut row_idx = 0;
        while row_idx < owners.len() {
            let i = owners[row_idx];
            let n_rows = owners[row_idx..].iter().take_while(|&&owner| owner == i).count();
            let sequence = &mut self.sequences[i];
            let mut row = LogitRow { runner: &mut *self.runner, row_idx, all: &mut self.row };
            let result = pick_rows(sequence, &self.info, &self.stats, &mut row, n_rows);
            let (end, n_accepted) = match result {
                Ok((end, n)) => (Ok(end), n),
                Err(error) => (Err(error), 0),
            };
            picks.push(Pick { i, end, n_accepted });
            row_idx += n_rows;
        }
        self.account(work, &indices, guessed + started.elapsed());
        self.advance(work, &indices, &picks);
        self.close(picks);
    }

    /// Moves each sequence past what the model has seen of it.
    fn advance(&mut self, work: &[Work], indices: &[usize], picks: &[Pick]) {
        for (work, &i) in work.iter().zip(indices) {
            let n_accepted = picks.iter().find(|p| p.i == i).map_or(0, |p| p.n_accepted);
            let sequence = &mut self.sequences[i];
            let was_prefilled = sequence.is_prefilled();
            sequence.n_kv += work.n_tokens + n_accepted;
            if !was_prefilled || work.n_tokens > 1 {
                sequence.report_progress();
                // Others with the same beginning need not wait for the end of this answer.
                self.keep(i);
            }
            if !was_prefilled && self.sequences[i].is_prefilled() {
                self.persist(i);
            }
        }
        let done: Vec<SequenceId> =
            self.sequences.iter().filter(|s| s.is_prefilled()).map(|s| s.id).collect();
        for sequence in &mut self.sequences {
            if sequence.leader.is_some_and(|leader| done.contains(&leader)) {
                sequence.leader = None;
            }
        }
    }

    /// Makes room in a full context: what follows the first `n_keep` tokens loses its older half.
    /// The rest is computed again at its new positions, in pages of its own.
    fn shift(&mut self, i: usize) {
        self.keep(i);
        let sequence = &mut self.sequences[i];
        sequence.pages.drain(..).for_each(|page| self.pool.release(page));
        let n_keep = sequence.group.request.n_keep.min(sequence.tokens.len() / 2);
        let n_drop = (sequence.tokens.len() - n_keep) / 2;
        sequence.tokens.drain(n_keep..n_keep + n_drop.max(1));
        sequence.n_prompt = sequence.n_prompt.saturating_sub(n_drop).min(sequence.tokens.len());
        sequence.was_shifted = true;
        let n = sequence.tokens.len() - 1;
        let found = self.cache.find(&mut self.pool, &sequence.group.scope, &sequence.tokens[..n]);
        sequence.pages = found.pages;
        sequence.n_kv = sequence.pages.len() * PAGE_LEN;
    }

    /// Counts what a step did and took.
    fn account(&mut self, work: &[Work], indices: &[usize], took: Duration) {
        let (mut n_prefill, mut n_decode) = (0, 0);
        for (work, &i) in work.iter().zip(indices) {
            if work.n_tokens > 1 || !self.sequences[i].is_prefilled() {
                n_prefill += work.n_tokens;
            } else {
                n_decode += 1;
            }
        }
        self.pace.learn(n_prefill, n_decode, took);
        let n_draft: usize = work.iter().map(|work| work.n_draft).sum();
        self.stats.update(|stats| {
            stats.steps_total += 1;
            stats.step_sequences_total += work.len() as u64;
            stats.prefill_tokens_total += n_prefill as u64;
            stats.drafts_total += work.iter().filter(|work| work.n_draft > 0).count() as u64;
            stats.draft_tokens_total += n_draft as u64;
            let time = match n_prefill {
                0 => &mut stats.decode_seconds_total,
                _ => &mut stats.prefill_seconds_total,
            };
            *time += took.as_secs_f64();
        });
    }

    /// Whether this work reads a prompt.
    fn is_prefill(&self, work: &Work) -> bool {
        work.n_tokens > 1 || !self.sequences[self.index(work.id)].is_prefilled()
    }

    /// Says what the engine is about to do, for those who set clocks by it.
    fn tell_phase(&mut self, phase: EnginePhase) {
        if phase != self.phase {
            self.phase = phase;
            self.stats.update(|stats| stats.phase = phase);
        }
    }

    fn gauge(&mut self) {
        if self.sequences.is_empty() {
            self.tell_phase(EnginePhase::Idle);
        }
        let is_awaited = |s: &&Sequence| s.group.request.priority != Priority::Background;
        let n_interactive = self.sequences.iter().filter(is_awaited).count();
        let n_running = self.sequences.iter().filter(|s| s.slot_idx.is_some()).count();
        let n_idle = self.cache.n_page_idle(&self.pool);
        let n_held = self.pool.n_page() - self.pool.n_free();
        let n_fetching = self.sequences.iter().filter(|s| s.fetch.is_some()).count();
        let n_keeping = self.link().map_or(0, |link| link.keeping.len());
        self.stats.update(|stats| {
            stats.n_interactive = n_interactive;
            stats.n_fetching = n_fetching;
            stats.n_keeping = n_keeping;
            stats.n_running = n_running;
            stats.n_waiting = self.sequences.len() - n_running;
            stats.n_page_cached = n_idle;
            stats.n_page_used = n_held - n_idle;
        });
    }

    /// Pages with the number of sequences that hold them, for tests of the accounting.
    #[cfg(test)]
    pub fn held_pages(&self) -> std::collections::HashMap<PageIdx, u32> {
        let mut held = std::collections::HashMap::new();
        for page in self.sequences.iter().flat_map(|sequence| &sequence.pages) {
            *held.entry(*page).or_default() += 1;
        }
        held
    }
}
