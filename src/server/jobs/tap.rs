//! What a job hears of its own generation, and how a text that was begun before goes on.
//!
//! ```text
//! submit   tokens that are durable become guesses, a random seed the job's own
//! events   tokens up to the durable ones: compared; those behind them: new pieces
//! ```
//!
//! So a text that was cut off is computed again as fast as guesses are checked, several tokens a
//! step, and every token of it is checked. If one differs (another model, other weights), the text
//! begins anew, and is said to.
//!
//! The tap goes beside the dialects, as a value of the task that runs the job: they do not know it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::inference::{Event, Request, TokenId};
use crate::jobs::Piece;

/// The seed that asks for a random one.
const SEED_RANDOM: u32 = u32::MAX;

tokio::task_local! {
    static TAP: Tap;
}

/// Runs a future whose generations are heard by `tap`.
pub(in crate::server) async fn heard_by<T>(tap: Option<Tap>, work: impl Future<Output = T>) -> T {
    match tap {
        Some(tap) => TAP.scope(tap, work).await,
        None => work.await,
    }
}

/// Runs work of another thread whose generations are heard by `tap`.
pub(in crate::server) fn heard_by_sync<T>(tap: Option<Tap>, work: impl FnOnce() -> T) -> T {
    match tap {
        Some(tap) => TAP.sync_scope(tap, work),
        None => work(),
    }
}

/// The tap of the job that runs here, if one does.
pub(in crate::server) fn current() -> Option<Tap> {
    TAP.try_with(Tap::clone).ok()
}

/// See the module. Clones share it.
#[derive(Clone)]
pub(in crate::server) struct Tap(Arc<Mutex<Heard>>);

/// A text of one answer.
#[derive(Clone, Debug, Default)]
struct Text {
    text: String,
    tokens: Vec<TokenId>,
}

struct Heard {
    seed: u32,
    /// Requests that were submitted.
    n_request: usize,
    /// What is durable, by prompt and answer.
    durable: BTreeMap<(usize, usize), Text>,
    /// What came in this run.
    now: BTreeMap<(usize, usize), Text>,
    /// Pieces behind the durable ones that are not on the disk yet.
    fresh: Vec<Piece>,
    /// Tokens up to the end of `fresh`.
    n_token: i64,
    has_diverged: bool,
    /// The engine gave up.
    has_failed: bool,
}

/// What is to be made durable.
#[derive(Clone)]
pub(in crate::server) struct Drained {
    /// The text is another one than before: these are all of its pieces.
    pub has_diverged: bool,
    /// The pieces.
    pub pieces: Vec<Piece>,
    /// Tokens up to their end.
    pub end: i64,
}

impl Tap {
    /// A tap for a job of this seed with these durable pieces.
    pub fn new(seed: u32, pieces: &[Piece]) -> Tap {
        let mut durable: BTreeMap<_, Text> = BTreeMap::new();
        for piece in pieces {
            let text = durable.entry((piece.prompt_idx, piece.answer_idx)).or_default();
            text.text.push_str(&piece.text);
            text.tokens.extend_from_slice(&piece.tokens);
        }
        let n_token = pieces.iter().map(Piece::n_step).sum();
        Tap(Arc::new(Mutex::new(Heard {
            seed,
            n_request: 0,
            durable,
            now: BTreeMap::new(),
            fresh: Vec::new(),
            n_token,
            has_diverged: false,
            has_failed: false,
        })))
    }

    /// Whether the engine gave a generation up: an answer that streams says so in its text alone.
    pub fn has_failed(&self) -> bool {
        self.lock().has_failed
    }

    fn lock(&self) -> MutexGuard<'_, Heard> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Prepares requests of the job; the number of those that were submitted before.
    pub fn prepare(&self, requests: &mut [Request]) -> usize {
        let mut heard = self.lock();
        let first = heard.n_request;
        heard.n_request += requests.len();
        for (i, request) in requests.iter_mut().enumerate() {
            if request.sampler.seed == SEED_RANDOM {
                request.sampler.seed = heard.seed;
            }
            if let Some(text) = heard.durable.get(&(first + i, 0)) {
                request.speculation.prediction = text.tokens.clone();
            }
        }
        first
    }

    /// Hears an event.
    pub fn heard(&self, prompt_idx: usize, event: &Event) {
        if let Event::Text { answer_idx, text, tokens, .. } = event {
            let tokens: Vec<TokenId> = tokens.iter().map(|token| token.token).collect();
            self.hear((prompt_idx, *answer_idx), text, &tokens);
        }
        if let Event::Failed(_) = event {
            self.lock().has_failed = true;
        }
    }

    /// Hears a piece of a text, by prompt and answer.
    pub fn hear(&self, at: (usize, usize), text: &str, tokens: &[TokenId]) {
        self.lock().add(at, text, tokens);
    }

    /// Whoever writes begins anew: what came in this run is void as well.
    pub fn forget(&self) {
        let mut heard = self.lock();
        heard.now.clear();
        heard.diverge();
    }

    /// Another one writes from the start: what came in this run, if anything did, is void.
    pub fn pass_on(&self) {
        if !self.lock().now.is_empty() {
            self.forget();
        }
    }

    /// The answer is whole: a text that ended before its durable tokens did is another one.
    pub fn end(&self) {
        let mut heard = self.lock();
        let is_short = heard.durable.iter().any(|(at, text)| {
            heard.now.get(at).is_none_or(|now| now.tokens.len() < text.tokens.len())
        });
        if is_short {
            heard.diverge();
        }
    }

    /// Takes what is to be made durable; `None` if there is nothing.
    pub fn drain(&self) -> Option<Drained> {
        let mut heard = self.lock();
        let has_diverged = std::mem::take(&mut heard.has_diverged);
        let pieces = std::mem::take(&mut heard.fresh);
        let has_any = has_diverged || !pieces.is_empty();
        has_any.then_some(Drained { has_diverged, pieces, end: heard.n_token })
    }

    /// What was taken is lost: everything is to be made durable again, as another text.
    pub fn begin_anew(&self) {
        self.lock().diverge();
    }

    /// Puts back what could not be made durable.
    pub fn put_back(&self, drained: Drained) {
        let mut heard = self.lock();
        if heard.has_diverged {
            // What came since holds all of it.
            return;
        }
        heard.has_diverged = drained.has_diverged;
        heard.fresh.splice(0..0, drained.pieces);
    }
}

impl Heard {
    fn add(&mut self, at: (usize, usize), text: &str, tokens: &[TokenId]) {
        let now = self.now.entry(at).or_default();
        let (n_text, n_token) = (now.text.len(), now.tokens.len());
        now.text.push_str(text);
        now.tokens.extend_from_slice(tokens);
        let none = Text::default();
        let durable = self.durable.get(&at).unwrap_or(&none);
        let n_known = durable.tokens.len().min(now.tokens.len());
        let n_same = durable.text.len().min(now.text.len());
        let is_same = durable.tokens[..n_known] == now.tokens[..n_known]
            && durable.text.as_bytes()[..n_same] == now.text.as_bytes()[..n_same];
        if !is_same {
            return self.diverge();
        }
        // Both are texts, and one is the start of the other: this is a border of letters.
        let text = &now.text[n_text.max(n_same)..];
        let tokens = &now.tokens[n_token.max(n_known)..];
        if text.is_empty() && tokens.is_empty() {
            return;
        }
        let (text, tokens) = (text.to_owned(), tokens.to_vec());
        let piece = Piece { prompt_idx: at.0, answer_idx: at.1, text, tokens };
        self.n_token += piece.n_step();
        self.fresh.push(piece);
    }

    /// Forgets what was durable: everything of this run is new.
    fn diverge(&mut self) {
        self.durable.clear();
        self.has_diverged = true;
        let piece = |(at, text): (&(usize, usize), &Text)| Piece {
            prompt_idx: at.0,
            answer_idx: at.1,
            text: text.text.clone(),
            tokens: text.tokens.clone(),
        };
        self.fresh = self.now.iter().map(piece).collect();
        self.n_token = self.fresh.iter().map(Piece::n_step).sum();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn piece(text: &str, tokens: &[u32]) -> Piece {
        Piece { prompt_idx: 0, answer_idx: 0, text: text.into(), tokens: tokens.to_vec() }
    }

    fn add(tap: &Tap, text: &str, tokens: &[u32]) {
        tap.lock().add((0, 0), text, tokens);
    }

    #[test]
    fn a_text_goes_on_behind_its_durable_tokens() {
        let tap = Tap::new(5, &[piece("ab", &[1, 2])]);
        add(&tap, "a", &[1]);
        assert!(tap.drain().is_none());
        add(&tap, "bcd", &[2, 3, 4]);
        let drained = tap.drain().unwrap();
        assert_eq!((drained.pieces, drained.end), (vec![piece("cd", &[3, 4])], 4));
        assert!(!drained.has_diverged);
        tap.end();
        assert!(tap.drain().is_none());
    }

    #[test]
    fn another_text_begins_anew() {
        let tap = Tap::new(5, &[piece("ab", &[1, 2])]);
        add(&tap, "a", &[1]);
        add(&tap, "x", &[7]);
        let drained = tap.drain().unwrap();
        assert!(drained.has_diverged);
        assert_eq!((drained.pieces, drained.end), (vec![piece("ax", &[1, 7])], 2));
        add(&tap, "y", &[8]);
        assert_eq!(tap.drain().unwrap().pieces, [piece("y", &[8])]);
        let tap = Tap::new(5, &[piece("ab", &[1, 2])]);
        add(&tap, "a", &[1]);
        tap.end();
        assert!(tap.drain().unwrap().has_diverged, "a shorter one is another one");
    }

    #[test]
    fn what_one_machine_gave_up_is_no_beginning_of_anothers_text() {
        let tap = Tap::new(5, &[]);
        tap.pass_on();
        assert!(tap.drain().is_none(), "nothing was heard");
        add(&tap, "abc", &[1, 2, 3]);
        assert!(!tap.drain().unwrap().has_diverged);
        tap.pass_on();
        add(&tap, "xy", &[7, 8]);
        let drained = tap.drain().unwrap();
        assert_eq!((drained.pieces, drained.end), (vec![piece("xy", &[7, 8])], 2));
        assert!(drained.has_diverged);
    }

    #[test]
    fn guesses_and_the_seed_go_to_the_engine() {
        let tap = Tap::new(77, &[piece("ab", &[1, 2])]);
        let mut requests = [Request::default(), Request::default()];
        requests[1].sampler.seed = 3;
        assert_eq!(tap.prepare(&mut requests), 0);
        assert_eq!(requests[0].speculation.prediction, [1, 2]);
        assert_eq!((requests[0].sampler.seed, requests[1].sampler.seed), (77, 3));
        assert_eq!(tap.prepare(&mut requests), 2);
    }

    proptest! {
        /// However a text is cut into events, and wherever it was cut off before: what is durable
        /// and what is new are the text, once.
        #[test]
        fn nothing_is_lost_and_nothing_comes_twice(
            tokens in proptest::collection::vec(0u32..50, 1..40),
            cuts in proptest::collection::vec(1usize..5, 40),
            n_before in 0usize..40,
            lag in 0usize..3,
        ) {
            let letter = |t: u32| char::from(b'a' + (t % 26) as u8);
            let text: String = tokens.iter().map(|&t| letter(t)).collect();
            let n_before = n_before.min(tokens.len());
            let n_told = n_before.saturating_sub(lag);
            let before = piece(&text[..n_told], &tokens[..n_before]);
            let tap = Tap::new(1, std::slice::from_ref(&before));
            let (mut at, mut all) = (0, vec![before]);
            for cut in cuts {
                let end = (at + cut).min(tokens.len());
                add(&tap, &text[at..end], &tokens[at..end]);
                at = end;
                all.extend(tap.drain().into_iter().flat_map(|d| d.pieces));
            }
            add(&tap, &text[at..], &tokens[at..]);
            tap.end();
            all.extend(tap.drain().into_iter().flat_map(|d| d.pieces));
            let got: String = all.iter().map(|p| p.text.as_str()).collect();
            let heard: Vec<u32> = all.iter().flat_map(|p| p.tokens.clone()).collect();
            prop_assert_eq!(got, text);
            prop_assert_eq!(heard, tokens);
        }
    }
}
