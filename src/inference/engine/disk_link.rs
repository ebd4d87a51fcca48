//! The engine's end of the disk cache: prompts become names, and names pages.
//!
//! ```text
//! fingerprint   digest of program, model files, instruction set, KV type, page; the C library,
//!               whose sines rotate keys
//! scope         tenant, where it asked to be kept apart; digests of adapters, and their scales
//! name          of a page: fingerprint, scope, and every token up to its end
//! tail          the last page of a prompt, 8 to 31 tokens: found by trying each length
//! ```
//!
//! Kept are prompts of `n_disk_min` tokens and more, when their prefill is done. What was answered
//! is kept once it comes back as part of a prompt. When more than half of the day's writes are
//! spent, a page is kept only if it was in an earlier prompt too, so that a hundred variants of one
//! line do not wear the card out. Nothing is kept or read that could be computed faster than read.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};

use super::ModelInfo;
use super::core::Core;
use super::options::EngineOptions;
use super::prefix_cache::Scope;
use super::runner::Runner;
use crate::base::host::Host;
use crate::base::limits::{PREFIX_FETCH_MS, PREFIX_SEEN_MAX, PREFIX_STALL_MS};
use crate::inference::backend::PAGE_LEN;
use crate::inference::disk_cache::{DiskCache, Found, Identity, Key, Letter, Mailbox, Miss, Part};
use crate::inference::gguf::{Gguf, ShardBytes};
use crate::inference::tokenizer::TokenId;

/// Fewer tokens at the end of a prompt are not worth a page of their own, and fewer tokens gained
/// are not worth a look at the disk.
const N_TAIL_MIN: usize = 8;

/// Wakes the engine thread.
pub(super) type Waker = Arc<dyn Fn() + Send + Sync>;

/// Pages of a sequence that are on their way.
pub(super) struct Fetching {
    pub ticket: u64,
    /// Tokens in each page that is still to come; none when the disk is only asked what it has.
    pub lens: VecDeque<usize>,
    /// When it is given up unless a page comes before.
    pub stall_at: Instant,
    /// When it is given up whatever comes.
    end_at: Instant,
}

impl Fetching {
    /// A fetch that begins now, of tokens that would take `compute` to compute, zero where that is
    /// not known. Reading for longer than that would be no gain.
    fn new(ticket: u64, lens: VecDeque<usize>, compute: Duration, now: Instant) -> Fetching {
        let most = Duration::from_millis(PREFIX_FETCH_MS);
        let stall = Duration::from_millis(PREFIX_STALL_MS);
        let end = if compute.is_zero() { most } else { compute.clamp(stall, most) };
        Fetching { ticket, lens, stall_at: now + stall, end_at: now + end }
    }

    /// Gives the next page its time, as far as there is some left for all of them.
    pub fn renew(&mut self, now: Instant) {
        self.stall_at = (now + Duration::from_millis(PREFIX_STALL_MS)).min(self.end_at);
    }
}

/// A prompt whose pages are to be kept.
pub(super) struct Keeping {
    pub scope: Scope,
    pub tokens: Vec<TokenId>,
    /// Tokens that are done, and the name up to there.
    pub n_done: usize,
    pub at: Option<Key>,
}

/// What the disk is asked for.
pub(super) enum Wish {
    /// It has nothing that is worth reading.
    Nothing,
    /// It has to say first what it has.
    List,
    /// These pages, and how many tokens count in each.
    Pages(Vec<Key>, VecDeque<usize>),
}

/// See the module.
pub(super) struct DiskLink {
    pub cache: DiskCache,
    pub keeping: VecDeque<Keeping>,
    mailbox: Arc<Mailbox>,
    pub model: Arc<Identity>,
    adapters: Vec<Arc<Identity>>,
    page_bytes: usize,
    n_tokens_min: usize,
    keeps_everything: bool,
    seen: Seen,
    next_ticket: u64,
}

impl DiskLink {
    /// The link of an engine, if its options name a disk cache.
    pub fn new(
        options: &EngineOptions,
        info: &ModelInfo,
        runner: &dyn Runner,
        waker: &Waker,
    ) -> Option<DiskLink> {
        let cache = options.disk_cache.clone()?;
        let wake = Arc::clone(waker);
        let mailbox = Arc::new(Mailbox::new(Box::new(move || wake())));
        cache.subscribe(&mailbox);
        let identify = |parts: Vec<Part>| {
            let wake = Arc::clone(waker);
            cache.identify(parts, move || wake())
        };
        let mut parts = program(runner)?;
        parts.extend(files(info.gguf())?);
        let model = identify(parts);
        let of_adapter = |gguf: &Gguf| Some(identify(files(gguf)?));
        let adapters = info.adapter_ggufs.iter().map(of_adapter).collect::<Option<_>>()?;
        let (page_bytes, n_tokens_min) = (runner.page_bytes(), options.n_disk_min);
        let (keeping, seen) = (VecDeque::new(), Seen::default());
        let next_ticket = 0;
        Some(DiskLink {
            cache,
            keeping,
            mailbox,
            model,
            adapters,
            page_bytes,
            n_tokens_min,
            keeps_everything: options.keeps_everything,
            seen,
            next_ticket,
        })
    }

    /// Whether a prompt is long enough.
    pub fn takes(&self, n_tokens: usize) -> bool {
        n_tokens >= self.n_tokens_min && self.page_bytes > 0
    }

    /// The name of the empty text, once every file behind it has its digest.
    pub fn root(&self, scope: &Scope) -> Option<Key> {
        let fingerprint = self.model.get()?;
        let mut bytes = vec![u8::from(scope.tenant.is_some())];
        bytes.extend(scope.tenant.unwrap_or_default().to_le_bytes());
        for &(adapter, scale) in &scope.adapters {
            bytes.extend(self.adapters.get(adapter)?.get()?);
            bytes.extend(scale.to_le_bytes());
        }
        Some(self.cache.root(fingerprint, &bytes))
    }

    /// What the disk could add to the first `n_page` pages and `n_tokens` tokens of a prompt.
    /// `token_us` is what a token takes to compute, 0 where that is not known.
    pub fn wish(
        &self,
        scope: &Scope,
        prompt: &[TokenId],
        (n_page, n_tokens): (usize, usize),
        token_us: u64,
    ) -> Wish {
        if !self.takes(prompt.len()) {
            return Wish::Nothing;
        }
        let n_full = prompt.len() / PAGE_LEN;
        let Some(root) = self.root(scope) else {
            let miss = if self.has_failed() { Miss::Failed } else { Miss::Unready };
            self.cache.count_miss(miss, (n_full - n_page.min(n_full)) as u64);
            return Wish::Nothing;
        };
        let mut keys = self.chain(root, prompt);
        if prompt.len() < n_tokens + N_TAIL_MIN {
            // Memory has it all, and keeps nothing from getting old on the disk.
            self.cache.renew(&keys);
            return Wish::Nothing;
        }
        let n_found = match self.cache.find(&keys) {
            Found::Unlisted => return Wish::List,
            Found::First(n) => n,
        };
        self.cache.count_miss(Miss::Absent, (n_full - n_found.max(n_page).min(n_full)) as u64);
        keys.truncate(n_found);
        let mut lens: VecDeque<usize> = keys.iter().map(|_| PAGE_LEN).collect();
        let before = keys.last().copied().unwrap_or(root);
        let tail = self.tail(before, &prompt[n_found * PAGE_LEN..]);
        if let Some((key, n)) = tail.filter(|&(_, n)| self.is_faster(1, n, token_us)) {
            keys.push(key);
            lens.push_back(n);
        }
        let n_gained = lens.iter().sum::<usize>().saturating_sub(n_tokens);
        if n_gained < N_TAIL_MIN {
            return Wish::Nothing;
        }
        keys.drain(..n_page);
        lens.drain(..n_page);
        if !self.is_faster(keys.len(), n_gained, token_us) {
            self.cache.count_miss(Miss::Slow, keys.len() as u64);
            return Wish::Nothing;
        }
        Wish::Pages(keys, lens)
    }

    fn chain(&self, root: Key, prompt: &[TokenId]) -> Vec<Key> {
        let mut at = root;
        let mut next = |tokens: &[TokenId]| {
            at = self.cache.next(&at, tokens);
            at
        };
        prompt.as_chunks::<PAGE_LEN>().0.iter().map(|tokens| next(tokens)).collect()
    }

    /// The longest kept end of a prompt that goes on like `rest`.
    fn tail(&self, before: Key, rest: &[TokenId]) -> Option<(Key, usize)> {
        let n_max = rest.len().min(PAGE_LEN - 1);
        (N_TAIL_MIN..=n_max).rev().find_map(|n| {
            let key = self.cache.next(&before, &rest[..n]);
            (self.cache.find(&[key]) == Found::First(1)).then_some((key, n))
        })
    }

    /// Whether reading pages is faster than computing tokens.
    pub fn is_faster(&self, n_page: usize, n_tokens: usize, token_us: u64) -> bool {
        let read_s = (n_page * self.page_bytes) as f64 / self.cache.read_bytes_per_s().max(1.0);
        token_us == 0 || read_s < n_tokens as f64 * token_us as f64 / 1e6
    }

    /// Asks the disk for pages of tokens that take `token_us` each to compute.
    pub fn fetch(&mut self, keys: Vec<Key>, lens: VecDeque<usize>, token_us: u64) -> Fetching {
        self.next_ticket += 1;
        let ticket = self.next_ticket;
        self.cache.fetch(&self.mailbox, ticket, keys, self.page_bytes);
        let n_tokens = lens.iter().sum::<usize>() as u64;
        let compute = Duration::from_micros(n_tokens.saturating_mul(token_us));
        Fetching::new(ticket, lens, compute, Instant::now())
    }

    /// Wants nothing of a fetch any more.
    pub fn cancel(&self, fetching: &Fetching) {
        self.cache.cancel(&self.mailbox, fetching.ticket);
    }

    /// What came from the disk.
    pub fn letter(&self) -> Option<Letter> {
        self.cache.take(&self.mailbox)
    }

    /// Whether something came.
    pub fn has_letter(&self) -> bool {
        !self.mailbox.is_empty()
    }

    /// The name of a prompt's next page that is to be kept, and its tokens.
    pub fn next_page(&mut self) -> Option<(Key, usize)> {
        let keeping = self.keeping.front()?;
        let rest = &keeping.tokens[keeping.n_done..];
        let n = rest.len().min(PAGE_LEN);
        if n < N_TAIL_MIN {
            return None;
        }
        let before = keeping.at.or_else(|| self.root(&keeping.scope))?;
        let key = self.cache.next(&before, &rest[..n]);
        let is_again = self.seen.insert(key.short());
        if !is_again && !self.keeps_everything && self.cache.is_frugal() {
            // When the prompt comes again, so does the rest of it.
            let keys = self.chain(key, &rest[n..]);
            self.seen.extend(keys.iter().map(Key::short));
            return None;
        }
        Some((key, n))
    }

    /// Whether prompts wait that can be kept now or as soon as the queue has room, or never.
    pub fn has_keeping(&self) -> bool {
        let is_ready = || self.identities().all(|identity| identity.get().is_some());
        !self.keeping.is_empty() && (is_ready() || self.has_failed())
    }

    /// Whether a file could not be digested, so that nothing can be kept.
    pub fn has_failed(&self) -> bool {
        self.identities().any(Identity::has_failed)
    }

    fn identities(&self) -> impl Iterator<Item = &Identity> {
        self.adapters.iter().chain([&self.model]).map(|identity| &**identity)
    }

    /// Counts as lost what waits to be kept.
    pub fn lose_all(&mut self) {
        let n_left = |k: &Keeping| (k.tokens.len() - k.n_done).div_ceil(PAGE_LEN) as u64;
        self.cache.count_lost(self.keeping.drain(..).map(|keeping| n_left(&keeping)).sum());
    }

    /// Whether the queue has room for a page.
    pub fn has_room(&self) -> bool {
        self.cache.has_room(self.page_bytes)
    }

    /// Bytes of a page.
    pub fn page_bytes(&self) -> usize {
        self.page_bytes
    }
}

/// What a program's numbers depend on besides the files of a model.
fn program(runner: &dyn Runner) -> Option<Vec<Part>> {
    let text = format!(
        "jetforge prefix 1\n{}\n{}\n{}\n{}\npages of {PAGE_LEN} positions, {} bytes\n",
        env!("CARGO_PKG_VERSION"),
        std::env::consts::ARCH,
        Host::read().libc,
        runner.numerics(),
        runner.page_bytes(),
    );
    let mut parts = vec![Part::Bytes(text.into_bytes())];
    // A version's number stays the same while its kernels change; the program itself does not. The
    // program that runs unit tests is large and always the same.
    if !cfg!(test) {
        parts.push(Part::File(std::fs::File::open("/proc/self/exe").ok()?));
    }
    Some(parts)
}

fn files(gguf: &Gguf) -> Option<Vec<Part>> {
    let part = |shard: ShardBytes<'_>| match shard {
        ShardBytes::File(file) => Some(Part::File(file.try_clone().ok()?)),
        ShardBytes::Memory(bytes) => Some(Part::Bytes(Sha256::digest(bytes).to_vec())),
    };
    gguf.shards().map(part).collect()
}

/// The pages that came lately, by a few bits of their names.
#[derive(Default)]
struct Seen {
    set: HashSet<u64>,
    order: VecDeque<u64>,
}

impl Seen {
    fn extend(&mut self, shorts: impl Iterator<Item = u64>) {
        shorts.for_each(|short| {
            self.insert(short);
        });
    }

    /// Notes a page; whether it came before.
    fn insert(&mut self, short: u64) -> bool {
        if !self.set.insert(short) {
            return true;
        }
        self.order.push_back(short);
        if self.order.len() > PREFIX_SEEN_MAX {
            let oldest = self.order.pop_front();
            oldest.map(|oldest| self.set.remove(&oldest));
        }
        false
    }
}

/// A core without a disk cache has no link.
impl Core {
    /// The link, where there is one.
    pub(super) fn link(&self) -> Option<&DiskLink> {
        self.disk.as_ref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fetch_is_bounded_page_by_page_and_in_all() {
        let start = Instant::now();
        let at = |s| start + Duration::from_secs(s);
        let fetch =
            |compute| Fetching::new(1, VecDeque::new(), Duration::from_secs(compute), start);
        let mut fetching = fetch(5);
        assert_eq!(fetching.stall_at, at(2));
        fetching.renew(at(1));
        assert_eq!(fetching.stall_at, at(3));
        fetching.renew(at(4));
        assert_eq!(fetching.stall_at, at(5), "computing it all would be done by then");
        fetching.renew(at(5));
        assert_eq!(fetching.stall_at, at(5));
        let most = PREFIX_FETCH_MS / 1000;
        for (compute, end) in [(0, most), (1, 2), (1_000_000, most)] {
            let mut fetching = fetch(compute);
            fetching.renew(at(1_000_000));
            assert_eq!(fetching.stall_at, at(end));
        }
    }
}
