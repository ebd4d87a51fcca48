//! WordPiece (`bert`): normalised words, each the longest known pieces from left to right.
//!
//! GGUF files store the pieces in the "phantom space" form: `▁word` starts a word, the others go
//! on. So there is no `##` and the crate's `WordPiece` does not fit; the rules here are those of
//! llama.cpp, which differ from Hugging Face's in that a word's length is not limited.
//!
//! Normalising: base letters for accented ones, no accents, no control characters, lower case;
//! white space, punctuation and ideographs end a word.

use std::collections::HashMap;

use fancy_regex::Regex;
use tokenizers::NormalizedString;

use super::TokenId;
use super::error::TokenizerError;
use super::spm::ids_by_text;
use super::vocab::Vocab;
use crate::inference::gguf::Metadata;

pub(super) struct WordPiece {
    ids: HashMap<Box<[u8]>, TokenId>,
    n_bytes_max: usize,
    lowercase: bool,
    strip_accents: bool,
    accent: Regex,
    control: Regex,
    punctuation: Regex,
}

impl WordPiece {
    /// # Errors
    /// Two tokens with one text, or a key of the wrong type.
    pub(super) fn new(meta: &Metadata, vocab: &Vocab) -> Result<WordPiece, TokenizerError> {
        let lowercase = meta.bool("tokenizer.ggml.normalizer.lowercase")?.unwrap_or(true);
        let strip_accents =
            meta.bool("tokenizer.ggml.normalizer.strip_accents")?.unwrap_or(lowercase);
        let class = |pattern| {
            Regex::new(pattern).map_err(|source| TokenizerError::Split { source: Box::new(source) })
        };
        Ok(WordPiece {
            ids: ids_by_text(vocab)?,
            n_bytes_max: vocab.texts.iter().map(|text| text.len()).max().unwrap_or(0),
            lowercase,
            strip_accents,
            accent: class(r"^\p{M}$")?,
            control: class(r"^[\p{Cc}\p{Cf}\p{Co}]$")?,
            punctuation: class(r"^\p{P}$")?,
        })
    }

    pub(super) fn token_id(&self, text: &str) -> Option<TokenId> {
        self.ids.get(text.as_bytes()).copied()
    }

    /// Adds the tokens of a text without special tokens; `unk` for a word that has no pieces.
    ///
    /// # Errors
    /// A word without pieces if there is no `unk`.
    pub(super) fn encode(
        &self,
        text: &[u8],
        unk: Option<TokenId>,
        out: &mut Vec<TokenId>,
    ) -> Result<(), TokenizerError> {
        for word in self.words(&String::from_utf8_lossy(text))? {
            let start = out.len();
            if !self.pieces(format!("▁{word}").as_bytes(), out) {
                out.truncate(start);
                out.push(unk.ok_or(TokenizerError::NoSpecial {
                    role: "unknown",
                    place: "unknown words",
                })?);
            }
        }
        Ok(())
    }

    /// Adds the pieces of a word; false if some part of it has none.
    fn pieces(&self, word: &[u8], out: &mut Vec<TokenId>) -> bool {
        let mut start = 0;
        while start < word.len() {
            let longest = word.len().min(start + self.n_bytes_max);
            let found = (start + 1..=longest)
                .rev()
                .find_map(|end| self.ids.get(&word[start..end]).map(|&id| (id, end)));
            let Some((id, end)) = found else { return false };
            out.push(id);
            start = end;
        }
        true
    }

    fn words(&self, text: &str) -> Result<Vec<String>, TokenizerError> {
        let mut words = vec![String::new()];
        let is = |class: &Regex, c: char| {
            class
                .is_match(c.encode_utf8(&mut [0; 4]))
                .map_err(|source| TokenizerError::Split { source: Box::new(source) })
        };
        for c in text.chars() {
            let c = if self.strip_accents { base_letter(c) } else { c };
            if c.is_whitespace() {
                words.push(String::new());
                continue;
            }
            let dropped = c == char::REPLACEMENT_CHARACTER
                || is(&self.control, c)?
                || (self.strip_accents && is(&self.accent, c)?);
            if dropped {
                continue;
            }
            let lower = c.to_lowercase().next().filter(|_| self.lowercase).unwrap_or(c);
            let alone = is_ascii_symbol(c) || is_ideograph(c) || is(&self.punctuation, c)?;
            if alone {
                words.extend([lower.to_string(), String::new()]);
            } else if let Some(word) = words.last_mut() {
                word.push(lower);
            }
        }
        words.retain(|word| !word.is_empty());
        Ok(words)
    }
}

/// The first character of the canonical decomposition: `e` for `é`, as llama.cpp does it (which
/// for Hangul keeps only the first letter of a syllable).
fn base_letter(c: char) -> char {
    if c.is_ascii() {
        return c;
    }
    let mut decomposed = NormalizedString::from(c.encode_utf8(&mut [0; 4]) as &str);
    decomposed.nfd();
    decomposed.get().chars().next().unwrap_or(c)
}

/// An ASCII character of Unicode's symbol categories; the rest of ASCII's signs are punctuation.
fn is_ascii_symbol(c: char) -> bool {
    matches!(c, '$' | '+' | '<' | '=' | '>' | '^' | '`' | '|' | '~')
}

/// BERT's "Chinese characters", with Hugging Face's 2B920 where the original has 2B820.
fn is_ideograph(c: char) -> bool {
    matches!(c as u32,
        0x4e00..=0x9fff | 0x3400..=0x4dbf | 0x20000..=0x2a6df | 0x2a700..=0x2b73f
        | 0x2b740..=0x2b81f | 0x2b920..=0x2ceaf | 0xf900..=0xfaff | 0x2f800..=0x2fa1f)
}
