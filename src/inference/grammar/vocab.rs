//! The vocabulary as a tree of bytes, shared by all grammars of a model.
//!
//! ```text
//! text tokens       their bytes; of several with the same bytes one stands for all
//! control tokens    0xFF and their name: bytes that no text has, so only a grammar that names
//!                   them lets them in
//! EOG tokens        as control tokens; they stand for the end of the text
//! ```
//!
//! SPM vocabularies have `A` twice, as a piece and as the byte token `<0x41>`: whoever allows one
//! allows both.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

use llguidance::ParserFactory;
use llguidance::toktrie::{ApproximateTokEnv, SimpleVob, TokEnv, TokRxInfo, TokTrie};

use super::error::GrammarError;
use crate::base::limits;
use crate::inference::tokenizer::{TokenId, Tokenizer};

/// What `toktrie` says for "no token".
const NO_TOKEN: u32 = u32::MAX;
/// The tree counts the nodes under a node in 22 bits, and the nodes above it in 10.
const TREE_NODES_MAX: usize = 1 << 22;
const TREE_DEPTH_MAX: usize = 1000;

/// A model's vocabulary in the form that grammars need; cheap to clone.
#[derive(Clone)]
pub struct GrammarVocab(Arc<Inner>);

struct Inner {
    factory: ParserFactory,
    env: TokEnv,
    n_vocab: usize,
    eog: Vec<TokenId>,
    /// Tokens that others stand for: `[(token, its stand-in)]`, ascending.
    aliases: Vec<(TokenId, TokenId)>,
}

/// A token as the tree sees it.
#[derive(Clone, Debug)]
pub(super) enum Word {
    Text(Vec<u8>),
    Control(Vec<u8>),
    End(Vec<u8>),
}

impl GrammarVocab {
    /// Builds the tree, once per model; for 150,000 tokens it takes some 20 MiB.
    ///
    /// # Errors
    /// A vocabulary that is too large for the tree.
    pub fn new(tokenizer: &Tokenizer) -> Result<GrammarVocab, GrammarError> {
        let word = |id: TokenId| {
            let text = tokenizer.token_bytes(id, false);
            if tokenizer.is_eog(id) {
                Word::End(tokenizer.token_bytes(id, true).to_vec())
            } else if text.is_empty() {
                Word::Control(tokenizer.token_bytes(id, true).to_vec())
            } else {
                Word::Text(text.to_vec())
            }
        };
        GrammarVocab::from_words((0..tokenizer.n_vocab() as TokenId).map(word).collect())
    }

    pub(super) fn from_words(words: Vec<Word>) -> Result<GrammarVocab, GrammarError> {
        let n_vocab = words.len();
        if n_vocab == 0 || n_vocab > limits::VOCAB_MAX {
            let reason = format!("{n_vocab} tokens; 1 to {} are allowed", limits::VOCAB_MAX);
            return Err(GrammarError::Vocab { reason });
        }
        let mut eog = Vec::new();
        let mut aliases = Vec::new();
        let mut first_with = HashMap::new();
        let mut entries = Vec::with_capacity(n_vocab);
        for (id, word) in words.into_iter().enumerate() {
            let id = id as TokenId;
            if let Word::End(_) = word {
                eog.push(id);
            }
            let mut entry = entry(word);
            if !entry.is_empty() {
                match first_with.entry(entry.clone()) {
                    Entry::Vacant(slot) => {
                        slot.insert(id);
                    }
                    Entry::Occupied(slot) => {
                        aliases.push((id, *slot.get()));
                        entry.clear();
                    }
                }
            }
            entries.push(entry);
        }
        drop(first_with);
        let n_nodes = tree_nodes(&entries);
        if n_nodes >= TREE_NODES_MAX {
            let reason = format!("its tree has {n_nodes} nodes; {TREE_NODES_MAX} are too many");
            return Err(GrammarError::Vocab { reason });
        }
        let info = TokRxInfo::new(n_vocab as u32, eog.first().copied().unwrap_or(NO_TOKEN));
        let mut trie = TokTrie::from(&info, &entries);
        if !eog.is_empty() {
            trie = trie.with_eos_tokens(&eog);
        }
        let env: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
        let mut factory = ParserFactory::new_simple(&env)
            .map_err(|e| GrammarError::Vocab { reason: e.to_string() })?;
        factory.quiet();
        set_limits(&mut factory);
        Ok(GrammarVocab(Arc::new(Inner { factory, env, n_vocab, eog, aliases })))
    }

    /// Compiles for llguidance.
    pub(super) fn factory(&self) -> &ParserFactory {
        &self.0.factory
    }

    pub(super) fn trie(&self) -> &TokTrie {
        self.0.env.tok_trie()
    }

    pub(super) fn n_vocab(&self) -> usize {
        self.0.n_vocab
    }

    /// Tokens that end a text, ascending.
    pub(super) fn eog(&self) -> &[TokenId] {
        &self.0.eog
    }

    pub(super) fn is_eog(&self, token: TokenId) -> bool {
        self.0.eog.binary_search(&token).is_ok()
    }

    /// The token that stands for this one in the tree.
    pub(super) fn stand_in(&self, token: TokenId) -> TokenId {
        match self.0.aliases.binary_search_by_key(&token, |alias| alias.0) {
            Ok(idx) => self.0.aliases[idx].1,
            Err(_) => token,
        }
    }

    /// Allows every token whose stand-in is allowed.
    pub(super) fn widen(&self, allowed: &mut SimpleVob) {
        for &(token, stand_in) in &self.0.aliases {
            if allowed.is_allowed(stand_in) {
                allowed.allow_token(token);
            }
        }
    }

    /// The bytes that the token adds to a text, none for control tokens.
    pub(super) fn text(&self, token: TokenId) -> &[u8] {
        match self.raw(token) {
            [TokTrie::SPECIAL_TOKEN_MARKER, ..] => &[],
            text => text,
        }
    }

    /// The bytes of the token with control tokens written out by name.
    pub(super) fn spelled(&self, token: TokenId) -> &[u8] {
        match self.raw(token) {
            [TokTrie::SPECIAL_TOKEN_MARKER, name @ ..] => name,
            text => text,
        }
    }

    fn raw(&self, token: TokenId) -> &[u8] {
        let token = self.stand_in(token);
        if (token as usize) < self.0.n_vocab { self.trie().token(token) } else { &[] }
    }

    /// Whether the token has a name, or a text of whole characters without NUL: padding has
    /// neither.
    pub(super) fn is_whole(&self, token: TokenId) -> bool {
        let spelled = self.spelled(token);
        !spelled.is_empty() && !spelled.contains(&0) && std::str::from_utf8(spelled).is_ok()
    }

    /// The token that is spelled so, a control token before a text.
    pub(super) fn find(&self, spelled: &str) -> Option<TokenId> {
        if spelled.is_empty() {
            return None;
        }
        let trie = self.trie();
        trie.get_special_token(spelled).or_else(|| trie.token_id_at_bytes(spelled.as_bytes()))
    }

    /// Control tokens, other than EOG, whose name begins this text; the longest.
    pub(super) fn control_at(&self, text: &str) -> Option<(TokenId, usize)> {
        let trie = self.trie();
        let mut node = trie.child_at_byte(trie.root(), TokTrie::SPECIAL_TOKEN_MARKER)?;
        let mut found = None;
        for (idx, &byte) in text.as_bytes().iter().enumerate() {
            let Some(child) = trie.child_at_byte(node, byte) else { break };
            node = child;
            found = match node.token_id() {
                Some(token) if !self.is_eog(token) => Some((token, idx + 1)),
                _ => found,
            };
        }
        found
    }

    /// Spells bytes in tokens, each as long as possible; nothing if some byte has no token.
    pub(super) fn spell(&self, bytes: &[u8]) -> Option<Vec<TokenId>> {
        let tokens = self.trie().greedy_tokenize(bytes);
        let n_bytes: usize = tokens.iter().map(|&token| self.text(token).len()).sum();
        (n_bytes == bytes.len()).then_some(tokens)
    }
}

/// The bytes in the tree: none for a token that no text can reach.
fn entry(word: Word) -> Vec<u8> {
    let bytes = match word {
        // 0xFF is no part of UTF-8, and means "control" in the tree.
        Word::Text(text) if text.first() == Some(&TokTrie::SPECIAL_TOKEN_MARKER) => vec![],
        Word::Text(text) => text,
        Word::Control(name) | Word::End(name) if name.is_empty() => vec![],
        Word::Control(name) | Word::End(name) => {
            [&[TokTrie::SPECIAL_TOKEN_MARKER], &name[..]].concat()
        }
    };
    if bytes.len() > TREE_DEPTH_MAX { vec![] } else { bytes }
}

/// Nodes of the tree over these byte strings.
fn tree_nodes(entries: &[Vec<u8>]) -> usize {
    let mut sorted: Vec<&[u8]> = entries.iter().map(Vec::as_slice).collect();
    sorted.sort_unstable();
    let shared = |a: &[u8], b: &[u8]| a.iter().zip(b).take_while(|(a, b)| a == b).count();
    let first = sorted.first().map_or(0, |entry| entry.len());
    let rest: usize = sorted.windows(2).map(|w| w[1].len() - shared(w[0], w[1])).sum();
    1 + first + rest
}

fn set_limits(factory: &mut ParserFactory) {
    let set = factory.limits_mut();
    set.max_items_in_row = limits::GRAMMAR_ROW_ITEMS_MAX;
    set.initial_lexer_fuel = limits::GRAMMAR_COMPILE_FUEL;
    set.step_lexer_fuel = limits::GRAMMAR_STEP_FUEL;
    set.step_max_items = limits::GRAMMAR_STEP_ITEMS_MAX;
    set.max_lexer_states = limits::GRAMMAR_LEXER_STATES_MAX;
    set.max_grammar_size = limits::GRAMMAR_SYMBOLS_MAX;
    // Errors would carry the grammar and the text so far into logs.
    set.verbose_errors = false;
}
