//! Whether two vocabularies are one: what a draft model and its model must have in common.
//!
//! The rules are llama.cpp's. Sizes may differ a little, because makers pad them differently, and
//! the first few tokens are not looked at, because fine-tunes rename them.

use super::error::TokenizerError;
use super::vocab::TOKENS;
use super::{TokenId, Tokenizer};
use crate::inference::gguf::Metadata;

/// Tokens by which the sizes may differ.
const N_DIFFERENCE_MAX: usize = 128;
/// The first token whose text is compared.
const FIRST_COMPARED: usize = 5;

/// What differs, first the model's and then the draft model's.
#[allow(missing_docs)] // the fields are the values that each message shows
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VocabMismatch {
    #[error("its tokenizer is `{theirs}`, the model's is `{ours}`")]
    Kind { ours: String, theirs: String },
    #[error("its texts start {}, the model's {}", Role(*theirs), Role(*ours))]
    Bos { ours: Option<TokenId>, theirs: Option<TokenId> },
    #[error("its texts end {}, the model's {}", Role(*theirs), Role(*ours))]
    Eos { ours: Option<TokenId>, theirs: Option<TokenId> },
    #[error("it has {theirs} tokens, the model {ours}; they may differ by {max}")]
    Size { ours: usize, theirs: usize, max: usize },
    #[error("its token {token} is {theirs:?}, the model's is {ours:?}")]
    Token { token: TokenId, ours: String, theirs: String },
    #[error("{reason}")]
    Unreadable { reason: String },
}

struct Role(Option<TokenId>);

impl std::fmt::Display for Role {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            Some(token) => write!(f, "with token {token}"),
            None => f.write_str("with no token of their own"),
        }
    }
}

/// Compares two vocabularies, ours and theirs, each as its file's keys and what was made of them.
///
/// # Errors
/// The first difference.
pub fn same_vocab(
    (our_meta, our): (&Metadata, &Tokenizer),
    (their_meta, their): (&Metadata, &Tokenizer),
) -> Result<(), VocabMismatch> {
    let unreadable =
        |error: TokenizerError| VocabMismatch::Unreadable { reason: error.to_string() };
    let kind = |meta: &Metadata| -> Result<String, TokenizerError> {
        Ok(meta.str("tokenizer.ggml.model")?.unwrap_or_default().to_owned())
    };
    let (ours, theirs) = (kind(our_meta), kind(their_meta));
    let (ours, theirs) = (ours.map_err(unreadable)?, theirs.map_err(unreadable)?);
    if ours != theirs {
        return Err(VocabMismatch::Kind { ours, theirs });
    }
    let bos = |t: &Tokenizer| t.special.bos.filter(|_| t.special.add_bos);
    if bos(our) != bos(their) {
        return Err(VocabMismatch::Bos { ours: bos(our), theirs: bos(their) });
    }
    let eos = |t: &Tokenizer| t.special.eos.filter(|_| t.special.add_eos);
    if eos(our) != eos(their) {
        return Err(VocabMismatch::Eos { ours: eos(our), theirs: eos(their) });
    }
    let (ours, theirs) = (our.n_vocab(), their.n_vocab());
    if ours.abs_diff(theirs) > N_DIFFERENCE_MAX {
        return Err(VocabMismatch::Size { ours, theirs, max: N_DIFFERENCE_MAX });
    }
    let texts = |meta| -> Result<_, TokenizerError> { Ok(Metadata::strs(meta, TOKENS)?) };
    let ours = texts(our_meta).map_err(unreadable)?.unwrap_or_default();
    let theirs = texts(their_meta).map_err(unreadable)?.unwrap_or_default();
    let mut both = ours.into_iter().zip(theirs).enumerate().skip(FIRST_COMPARED);
    match both.find(|(_, (ours, theirs))| ours != theirs) {
        None => Ok(()),
        Some((token, (ours, theirs))) => Err(VocabMismatch::Token {
            token: token as TokenId,
            ours: ours.to_owned(),
            theirs: theirs.to_owned(),
        }),
    }
}
