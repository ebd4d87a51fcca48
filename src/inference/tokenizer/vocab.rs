//! The vocabulary of a GGUF file: each token's text, kind and the bytes that it adds to a text.
//!
//! ```text
//! texts   as in the file: "Ġthe" (byte-level BPE), "▁the" (SPM, WordPiece), "<0x0A>", "</s>"
//! pieces  what a reader sees: " the", " the", "\n", "</s>"; one byte string with an index
//! ```
//!
//! A token can be of several kinds at once: a token typed "normal" that looks like `<|im_end|>`
//! is a control token too, as in llama.cpp.

use super::error::TokenizerError;
use super::{TokenId, byte_level};
use crate::base::hash::unhex;
use crate::base::limits::{TOKEN_BYTES_MAX, VOCAB_MAX};
use crate::inference::gguf::Metadata;

pub(super) const TOKENS: &str = "tokenizer.ggml.tokens";
const TYPES: &str = "tokenizer.ggml.token_type";
const SCORES: &str = "tokenizer.ggml.scores";

/// What `tokenizer.ggml.model` names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum VocabKind {
    /// `gpt2`: byte-level BPE.
    Bpe,
    /// `llama`: sentencepiece, merges by score.
    Spm,
    /// `bert`: WordPiece with `▁` before the words.
    WordPiece,
}

impl VocabKind {
    pub(super) fn from_name(model: &str) -> Result<VocabKind, TokenizerError> {
        match model {
            "gpt2" => Ok(VocabKind::Bpe),
            "llama" => Ok(VocabKind::Spm),
            "bert" => Ok(VocabKind::WordPiece),
            _ => Err(TokenizerError::UnknownModel {
                model: model.to_owned(),
                supported: "gpt2 (BPE), llama (SPM), bert (WordPiece)",
            }),
        }
    }
}

/// A set of kinds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Attr(u8);

impl Attr {
    const UNKNOWN: Attr = Attr(1);
    const UNUSED: Attr = Attr(1 << 1);
    pub(super) const NORMAL: Attr = Attr(1 << 2);
    pub(super) const CONTROL: Attr = Attr(1 << 3);
    pub(super) const USER_DEFINED: Attr = Attr(1 << 4);
    const BYTE: Attr = Attr(1 << 5);
    /// Swallows white space on its left.
    pub(super) const LSTRIP: Attr = Attr(1 << 6);
    /// Swallows white space on its right.
    pub(super) const RSTRIP: Attr = Attr(1 << 7);
    /// Not part of the text that a reader sees.
    pub(super) const HIDDEN: Attr = Attr(Attr::UNKNOWN.0 | Attr::CONTROL.0);

    /// Whether the sets have a kind in common.
    pub(super) fn has(self, any_of: Attr) -> bool {
        self.0 & any_of.0 != 0
    }

    pub(super) fn set(&mut self, kinds: Attr, yes: bool) {
        self.0 = if yes { self.0 | kinds.0 } else { self.0 & !kinds.0 };
    }

    /// The kind that a `tokenizer.ggml.token_type` number stands for.
    fn from_type(ty: i32) -> Attr {
        match ty {
            1 => Attr::NORMAL,
            2 => Attr::UNKNOWN,
            3 => Attr::CONTROL,
            4 => Attr::USER_DEFINED,
            5 => Attr::UNUSED,
            6 => Attr::BYTE,
            _ => Attr(0),
        }
    }
}

/// Tokens by id, as the file has them.
pub(super) struct Vocab {
    /// `[n_vocab]`
    pub(super) texts: Vec<Box<str>>,
    /// `[n_vocab]`
    pub(super) attrs: Vec<Attr>,
    /// `[n_vocab]`, or empty if the file has none.
    pub(super) scores: Vec<f32>,
}

impl Vocab {
    /// Reads texts, kinds and scores.
    ///
    /// # Errors
    /// A missing list, a size out of bounds, or lists of unequal length.
    pub(super) fn read(meta: &Metadata) -> Result<Vocab, TokenizerError> {
        let texts = meta.strs(TOKENS)?.ok_or(TokenizerError::MissingKey { key: TOKENS })?;
        let n_vocab = texts.len();
        if n_vocab == 0 || n_vocab > VOCAB_MAX {
            return Err(TokenizerError::VocabSize { n_vocab, max: VOCAB_MAX });
        }
        if let Some((id, text)) =
            texts.iter().enumerate().find(|(_, text)| text.len() > TOKEN_BYTES_MAX)
        {
            let max = TOKEN_BYTES_MAX;
            return Err(TokenizerError::TokenTooLong { id, n_bytes: text.len(), max });
        }
        let attrs = match meta.i32s(TYPES)? {
            None => vec![Attr::NORMAL; n_vocab],
            Some(types) => whole(TYPES, types.len(), n_vocab)
                .map(|()| types[..n_vocab].iter().map(|&ty| Attr::from_type(ty)).collect())?,
        };
        // Some converters write scores as integers.
        let scores = match meta.f32s(SCORES) {
            Ok(scores) => scores,
            Err(_) => meta.i32s(SCORES)?.map(|ints| ints.iter().map(|&i| i as f32).collect()),
        }
        .unwrap_or_default();
        if !scores.is_empty() {
            whole(SCORES, scores.len(), n_vocab)?;
        }
        let texts = texts.into_iter().enumerate().map(|(id, text)| match text {
            "" => format!("[EMPTY_{id}]").into_boxed_str(),
            _ => text.into(),
        });
        Ok(Vocab { texts: texts.collect(), attrs, scores })
    }

    pub(super) fn len(&self) -> usize {
        self.texts.len()
    }

    /// What each token adds to a text.
    ///
    /// # Errors
    /// A byte token that does not name a byte.
    pub(super) fn pieces(&self, kind: VocabKind) -> Result<Pieces, TokenizerError> {
        let mut pieces = Pieces { bytes: Vec::new(), ends: Vec::with_capacity(self.len()) };
        for (id, (text, &attr)) in self.texts.iter().zip(&self.attrs).enumerate() {
            let out = &mut pieces.bytes;
            if attr.has(Attr(Attr::HIDDEN.0 | Attr::USER_DEFINED.0)) {
                out.extend_from_slice(text.as_bytes());
            } else if attr.has(Attr::NORMAL) {
                match kind {
                    VocabKind::Bpe => byte_level::decode(text, out),
                    _ => out.extend_from_slice(text.replace('▁', " ").as_bytes()),
                }
            } else if attr.has(Attr::BYTE) {
                let byte = byte_token(text)
                    .ok_or_else(|| TokenizerError::BadByteToken { id, text: text.to_string() })?;
                out.push(byte);
            }
            pieces.ends.push(pieces.bytes.len());
        }
        pieces.bytes.shrink_to_fit();
        Ok(pieces)
    }
}

fn whole(key: &'static str, got: usize, n_vocab: usize) -> Result<(), TokenizerError> {
    if got < n_vocab {
        return Err(TokenizerError::ArrayLen { key, got, n_vocab });
    }
    Ok(())
}

/// The byte of `<0x41>`.
fn byte_token(text: &str) -> Option<u8> {
    unhex(text.strip_prefix("<0x")?.strip_suffix('>')?).map(u8::from_be_bytes)
}

/// The bytes of every token, end to end.
pub(super) struct Pieces {
    bytes: Vec<u8>,
    /// `[n_vocab]`: where each token's bytes end.
    ends: Vec<usize>,
}

impl Pieces {
    /// The token's bytes; none for an id outside the vocabulary.
    pub(super) fn get(&self, id: TokenId) -> &[u8] {
        let id = id as usize;
        match self.ends.get(id) {
            Some(&end) => {
                let start = if id == 0 { 0 } else { self.ends[id - 1] };
                &self.bytes[start..end]
            }
            None => &[],
        }
    }
}
