//! Byte-level BPE (`gpt2`): words in GPT-2's byte alphabet, merged by the `tokenizers` crate.
//!
//! The crate does the merging; cutting the text into words, special tokens and bytes are ours, so
//! that its silent places cannot be reached: its regex pre-tokenizer ends quietly at a step limit,
//! and its builder panics on a merge longer than every token.

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
        let mut ids = TextIds::with_capacity(vocab.len());
        for (id, text) in (0..).zip(&vocab.texts) {
            if let Some(first) = ids.insert(text.to_string(), id) {
                return Err(TokenizerError::DuplicateToken {
                    first,
                    second: id,
                    text: text.to_string(),
                });
            }
        }
        let merges = read_merges(&lines, &ids)?;
        let model = BPE::builder()
            .vocab_and_merges(ids, merges)
            .ignore_merges(pre.ignore_merges)
            .cache_capacity(0) // its cache is per thread and outlives the tokenizer
            .build()
            .map_err(|error| TokenizerError::BadBpe { reason: error.to_string() })?;
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

/// The merges as pairs, each checked: the builder trusts them.
fn read_merges(lines: &[&str], ids: &TextIds) -> Result<Merges, TokenizerError> {
    let mut merged = String::new();
    let mut merges = Merges::with_capacity(lines.len());
    for (merge_idx, line) in lines.iter().enumerate() {
        let bad = |problem| {
            let merge = line.chars().take(80).collect();
            Err(TokenizerError::BadMerge { merge_idx, merge, problem })
        };
        // The first character belongs to the left part even if it is a space.
        let n_first = line.chars().next().map_or(0, char::len_utf8);
        let Some(space) = line[n_first..].find(' ') else {
            return bad("it is not two parts with a space between them");
        };
        let (left, right) = (&line[..n_first + space], &line[n_first + space + 1..]);
        merged.clear();
        merged.push_str(left);
        merged.push_str(right);
        if ![left, right, merged.as_str()].iter().all(|&part| ids.contains_key(part)) {
            return bad("its parts and their union must be tokens");
        }
        merges.push((left.to_owned(), right.to_owned()));
    }
    Ok(merges)
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
