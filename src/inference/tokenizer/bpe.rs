//! Byte-level BPE (`gpt2`): words in GPT-2's byte alphabet, merged by the `tokenizers` crate.
//!
//! The crate does the merging; cutting the text into words, special tokens and bytes are ours, so
//! that its silent places cannot be reached: its regex pre-tokenizer ends quietly at a step limit,
//! and its builder panics on a merge longer than every token.

use std::collections::HashSet;
use std::panic::resume_unwind;

use tokenizers::Model;
use tokenizers::models::bpe::{BPE, Merges, Vocab as TextIds};

use super::error::TokenizerError;
use super::pretokenize::{PreTokenizer, Splitter};
use super::vocab::Vocab;
use super::{TokenId, byte_level};
use crate::inference::gguf::Metadata;

const MERGES: &str = "tokenizer.ggml.merges";

pub(super) struct Bpe {
    model: BPE,
    splitter: Splitter,
}

impl Bpe {
    /// # Errors
    /// No merges, merges of unknown tokens, or two tokens with one text.
    pub(super) fn new(
        meta: &Metadata,
        vocab: &Vocab,
        pre: &PreTokenizer,
    ) -> Result<Bpe, TokenizerError> {
        let lines = meta.strs(MERGES)?.ok_or(TokenizerError::MissingKey { key: MERGES })?;
        let n_bytes_max = vocab.texts.iter().map(|text| text.len()).max().unwrap_or(0);
        // Somebody waits for a model that is loaded, and of these there are 150,000 each.
        let (ids, merges) = std::thread::scope(|scope| {
            let merges = scope.spawn(|| read_merges(&lines, n_bytes_max));
            (text_ids(vocab), merges.join().unwrap_or_else(|panic| resume_unwind(panic)))
        });
        let model = BPE::builder()
            .vocab_and_merges(ids?, merges?)
            .ignore_merges(pre.ignore_merges)
            .cache_capacity(0) // its cache is per thread and outlives the tokenizer
            .build()
            .map_err(|error| bad_merge(&lines, vocab, &error.to_string()))?;
        Ok(Bpe { model, splitter: Splitter::new(pre)? })
    }

    pub(super) fn token_id(&self, text: &str) -> Option<TokenId> {
        self.model.token_to_id(text)
    }

    /// Adds the tokens of a text without special tokens.
    pub(super) fn encode(&self, text: &[u8], out: &mut Vec<TokenId>) -> Result<(), TokenizerError> {
        let text = utf8_as_llama_cpp(text);
        let mut word = String::new();
        for piece in self.splitter.split(&text)? {
            word.clear();
            byte_level::encode(&text.as_bytes()[piece], &mut word);
            let tokens = self
                .model
                .tokenize(&word)
                .map_err(|error| TokenizerError::Bpe { reason: error.to_string() })?;
            out.extend(tokens.iter().map(|token| token.id));
        }
        Ok(())
    }
}

/// The number of each text.
fn text_ids(vocab: &Vocab) -> Result<TextIds, TokenizerError> {
    let mut ids = TextIds::with_capacity(vocab.len());
    for (id, text) in (0..).zip(&vocab.texts) {
        if let Some(first) = ids.insert(text.to_string(), id) {
            let text = text.to_string();
            return Err(TokenizerError::DuplicateToken { first, second: id, text });
        }
    }
    Ok(ids)
}

const NO_PAIR: &str = "it is not two parts with a space between them";
const NO_TOKENS: &str = "its parts and their union must be tokens";

/// The merges as pairs. That their parts and their union are tokens is for the builder to find; it
/// has room for no union that is longer than every token.
fn read_merges(lines: &[&str], n_bytes_max: usize) -> Result<Merges, TokenizerError> {
    let mut merges = Merges::with_capacity(lines.len());
    for (merge_idx, line) in lines.iter().enumerate() {
        let Some((left, right)) = parts(line) else { return Err(bad(merge_idx, line, NO_PAIR)) };
        if left.len() + right.len() > n_bytes_max {
            return Err(bad(merge_idx, line, NO_TOKENS));
        }
        merges.push((left.to_owned(), right.to_owned()));
    }
    Ok(merges)
}

fn parts(line: &str) -> Option<(&str, &str)> {
    // The first character belongs to the left part even if it is a space.
    let n_first = line.chars().next().map_or(0, char::len_utf8);
    let space = n_first + line[n_first..].find(' ')?;
    Some((&line[..space], &line[space + 1..]))
}

fn bad(merge_idx: usize, line: &str, problem: &'static str) -> TokenizerError {
    TokenizerError::BadMerge { merge_idx, merge: line.chars().take(80).collect(), problem }
}

/// The merge that the builder refused; it says which token is missing, but not where.
fn bad_merge(lines: &[&str], vocab: &Vocab, reason: &str) -> TokenizerError {
    let texts: HashSet<&str> = vocab.texts.iter().map(|text| &**text).collect();
    let is_bad = |line: &&str| {
        let is_token = |(left, right): (&str, &str)| {
            let merged = [left, right].concat();
            texts.contains(left) && texts.contains(right) && texts.contains(merged.as_str())
        };
        !parts(line).is_some_and(is_token)
    };
    match lines.iter().position(is_bad) {
        Some(merge_idx) => bad(merge_idx, lines[merge_idx], NO_TOKENS),
        None => TokenizerError::BadBpe { reason: reason.to_owned() },
    }
}

/// Text as llama.cpp reads it before BPE: each byte that starts no character is one U+FFFD.
///
/// (`from_utf8_lossy` would make one of a whole run.) Two oddities are not copied: llama.cpp lets
/// encoded surrogates and overlong forms through; here their bytes are invalid like any others.
fn utf8_as_llama_cpp(text: &[u8]) -> std::borrow::Cow<'_, str> {
    if let Ok(text) = std::str::from_utf8(text) {
        return text.into();
    }
    let mut out = String::with_capacity(text.len() + 2);
    for chunk in text.utf8_chunks() {
        out.push_str(chunk.valid());
        out.extend(chunk.invalid().iter().map(|_| char::REPLACEMENT_CHARACTER));
    }
    out.into()
}
