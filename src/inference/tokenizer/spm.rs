//! Sentencepiece BPE (`llama`): the pair of neighbours whose union scores best is merged first.
//!
//! ```text
//! 1  the text becomes characters, with ▁ for spaces
//! 2  every two neighbours whose union is a token go to a queue, by score, leftmost first
//! 3  the best pair is merged, and its new neighbours are queued; stale entries are dropped
//! 4  a character that is no token becomes its bytes, `<0xE2><0x82>…`
//! ```
//!
//! Own code and not the `tokenizers` crate: that one takes a list of merges, which for a scored
//! vocabulary would first have to be made from every split of every token, and it orders equal
//! scores otherwise. The order here is llama.cpp's.

use std::collections::{BinaryHeap, HashMap};

use super::TokenId;
use super::error::TokenizerError;
use super::vocab::Vocab;

pub(super) struct Spm {
    ids: HashMap<Box<[u8]>, TokenId>,
    /// `[n_vocab]`
    scores: Vec<f32>,
    /// `[256]`: the token of each byte.
    bytes: Vec<Option<TokenId>>,
}

/// A run of characters; a linked list over positions in the text.
#[derive(Clone, Copy)]
struct Symbol {
    prev: usize,
    next: usize,
    start: usize,
    /// Zero once the symbol was merged into its left neighbour.
    n_bytes: usize,
}

/// Marks the ends of the list.
const NONE: usize = usize::MAX;

/// Two neighbours that could be merged. The order is that of the queue: the greatest comes first.
struct Pair {
    score: f32,
    left: usize,
    right: usize,
    /// Of the union, to tell whether either side has changed since.
    n_bytes: usize,
}

impl Ord for Pair {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.score.total_cmp(&other.score).then(other.left.cmp(&self.left))
    }
}

impl PartialOrd for Pair {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Pair {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Pair {}

impl Spm {
    /// # Errors
    /// Two tokens with one text.
    pub(super) fn new(vocab: &Vocab) -> Result<Spm, TokenizerError> {
        let ids = ids_by_text(vocab)?;
        let by_text = |text: &[u8]| ids.get(text).copied();
        let byte_id =
            |byte: u8| by_text(format!("<0x{byte:02X}>").as_bytes()).or_else(|| by_text(&[byte]));
        let bytes = (0..=255).map(byte_id).collect();
        // −0 and +0 are one score, and total_cmp would tell them apart.
        let mut scores: Vec<f32> = vocab.scores.iter().map(|score| score + 0.0).collect();
        scores.resize(vocab.len(), 0.0);
        Ok(Spm { ids, scores, bytes })
    }

    pub(super) fn token_id(&self, text: &str) -> Option<TokenId> {
        self.ids.get(text.as_bytes()).copied()
    }

    /// Adds the tokens of a text without special tokens; `▁` is written for its spaces, and one
    /// more before it if `space_first`. A byte without a token becomes `unk`.
    ///
    /// # Errors
    /// A byte that has no token, if there is no `unk` either.
    pub(super) fn encode(
        &self,
        text: &[u8],
        space_first: bool,
        unk: Option<TokenId>,
        out: &mut Vec<TokenId>,
    ) -> Result<(), TokenizerError> {
        let text = escape_spaces(text, space_first);
        let mut symbols = characters(&text);
        let mut queue = BinaryHeap::new();
        for right in 1..symbols.len() {
            self.queue_pair(&text, &symbols, right - 1, right, &mut queue);
        }
        while let Some(pair) = queue.pop() {
            let (left, right) = (symbols[pair.left], symbols[pair.right]);
            let stale = left.n_bytes == 0
                || right.n_bytes == 0
                || left.n_bytes + right.n_bytes != pair.n_bytes;
            if stale {
                continue;
            }
            symbols[pair.left].n_bytes = pair.n_bytes;
            symbols[pair.left].next = right.next;
            symbols[pair.right].n_bytes = 0;
            if right.next != NONE {
                symbols[right.next].prev = pair.left;
            }
            self.queue_pair(&text, &symbols, left.prev, pair.left, &mut queue);
            self.queue_pair(&text, &symbols, pair.left, right.next, &mut queue);
        }
        for symbol in symbols.iter().filter(|symbol| symbol.n_bytes > 0) {
            self.emit(&text[symbol.start..symbol.start + symbol.n_bytes], unk, out)?;
        }
        Ok(())
    }

    /// Queues two neighbours if their union is a token.
    fn queue_pair(
        &self,
        text: &[u8],
        symbols: &[Symbol],
        left: usize,
        right: usize,
        queue: &mut BinaryHeap<Pair>,
    ) {
        if left == NONE || right == NONE {
            return;
        }
        let n_bytes = symbols[left].n_bytes + symbols[right].n_bytes;
        let union = &text[symbols[left].start..symbols[left].start + n_bytes];
        if let Some(&id) = self.ids.get(union) {
            queue.push(Pair { score: self.scores[id as usize], left, right, n_bytes });
        }
    }

    fn emit(
        &self,
        symbol: &[u8],
        unk: Option<TokenId>,
        out: &mut Vec<TokenId>,
    ) -> Result<(), TokenizerError> {
        if let Some(&id) = self.ids.get(symbol) {
            out.push(id);
            return Ok(());
        }
        for &byte in symbol {
            let id = self.bytes[byte as usize].or(unk);
            out.push(id.ok_or(TokenizerError::NoByteToken { byte })?);
        }
        Ok(())
    }
}

/// A map from texts to ids.
///
/// # Errors
/// Two tokens with one text.
pub(super) fn ids_by_text(vocab: &Vocab) -> Result<HashMap<Box<[u8]>, TokenId>, TokenizerError> {
    let mut ids = HashMap::with_capacity(vocab.len());
    for (id, text) in (0..).zip(&vocab.texts) {
        if let Some(first) = ids.insert(text.as_bytes().into(), id) {
            return Err(TokenizerError::DuplicateToken {
                first,
                second: id,
                text: text.to_string(),
            });
        }
    }
    Ok(ids)
}

fn escape_spaces(text: &[u8], space_first: bool) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len() + text.len() / 4 + 3);
    if space_first {
        out.extend_from_slice("▁".as_bytes());
    }
    for &byte in text {
        match byte {
            b' ' => out.extend_from_slice("▁".as_bytes()),
            _ => out.push(byte),
        }
    }
    out
}

/// One symbol for each character; a byte that starts none is a symbol of its own.
fn characters(text: &[u8]) -> Vec<Symbol> {
    let mut symbols = Vec::with_capacity(text.len());
    let mut start = 0;
    while start < text.len() {
        let n_bytes = match text[start] >> 4 {
            0..=11 => 1,
            12 | 13 => 2,
            14 => 3,
            _ => 4,
        };
        let n_bytes = n_bytes.min(text.len() - start);
        let idx = symbols.len();
        symbols.push(Symbol { prev: idx.wrapping_sub(1), next: idx + 1, start, n_bytes });
        start += n_bytes;
    }
    if let Some(last) = symbols.last_mut() {
        last.next = NONE;
    }
    symbols
}
