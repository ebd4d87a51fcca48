//! Text to tokens and back, from the vocabulary in a GGUF file; chat templates; UTF-8 streaming.
//!
//! ```text
//! text ── partition ──> special tokens, and plain text between them
//!                       └─ bpe | spm | wordpiece ──> tokens
//! ids ── pieces ──> bytes ── Utf8Stream ──> text
//! ```
//!
//! The oracle is llama.cpp: the same file and text give the same tokens. What is deliberately
//! different stands where it is different; tests/tokenizer.rs compares both.
//!
//! An unknown model or pre-tokenizer is refused: a guess would look right and cost quality.

mod bpe;
mod builtin;
mod byte_level;
mod error;
mod partition;
mod pretokenize;
mod same_vocab;
mod special;
mod spm;
mod strftime;
mod template;
mod template_widths;
#[cfg(test)]
mod tests;
mod tojson;
mod utf8;
mod vocab;
mod wordpiece;

pub use error::{TemplateError, TokenizerError};
pub use same_vocab::{VocabMismatch, same_vocab};
pub use special::SpecialTokens;
pub use template::{ChatTemplate, Message, RenderOptions};
pub use utf8::Utf8Stream;

use crate::base::limits::TOKENIZE_BYTES_MAX;
use crate::inference::gguf::Metadata;
use bpe::Bpe;
use partition::{Fragment, Partition};
use spm::Spm;
use vocab::{Attr, Pieces, Vocab, VocabKind};
use wordpiece::WordPiece;

/// The number of a token in its vocabulary.
pub type TokenId = u32;

/// What a text may contain.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EncodeOptions {
    /// Puts BOS before and EOS after the text if the model wants them.
    pub add_special: bool,
    /// Control tokens written out in the text (`<|im_end|>`) become those tokens. Never for text
    /// from outside: it could end its own turn.
    pub parse_special: bool,
}

enum Model {
    Bpe(Box<Bpe>),
    Spm(Spm),
    WordPiece(Box<WordPiece>),
}

impl Model {
    fn token_id(&self, text: &str) -> Option<TokenId> {
        match self {
            Model::Bpe(bpe) => bpe.token_id(text),
            Model::Spm(spm) => spm.token_id(text),
            Model::WordPiece(wordpiece) => wordpiece.token_id(text),
        }
    }
}

/// A model's vocabulary and how texts are cut into it.
pub struct Tokenizer {
    model: Model,
    partition: Partition,
    special: SpecialTokens,
    /// `[n_vocab]`: tokens that are no part of the text for its reader.
    hidden: Vec<bool>,
    pieces: Pieces,
    /// SPM: a text starts with a space that the reader does not see.
    add_space_prefix: bool,
}

impl Tokenizer {
    /// Builds the tokenizer that the file describes.
    ///
    /// # Errors
    /// Keys that are missing, of the wrong type or at odds with each other; a tokenizer model or
    /// pre-tokenizer that is not supported, with the list of those that are.
    pub fn from_gguf(meta: &Metadata) -> Result<Tokenizer, TokenizerError> {
        let key = "tokenizer.ggml.model";
        let name = meta.str(key)?.ok_or(TokenizerError::MissingKey { key })?;
        let kind = VocabKind::from_name(name)?;
        let pre = match kind {
            VocabKind::Bpe => meta.str("tokenizer.ggml.pre")?.unwrap_or_default(),
            _ => "default", // only BPE looks at the name
        };
        let pre = pretokenize::by_name(pre)?;
        let mut vocab = Vocab::read(meta)?;
        let model = match kind {
            VocabKind::Bpe => Model::Bpe(Box::new(Bpe::new(meta, &vocab, &pre)?)),
            VocabKind::Spm => Model::Spm(Spm::new(&vocab)?),
            VocabKind::WordPiece => Model::WordPiece(Box::new(WordPiece::new(meta, &vocab)?)),
        };
        let add_bos = kind != VocabKind::Bpe || pre.add_bos;
        let find = |text: &str| model.token_id(text);
        let special = SpecialTokens::read(meta, kind, add_bos, &mut vocab, &find)?;
        Ok(Tokenizer {
            partition: Partition::new(&vocab),
            hidden: vocab.attrs.iter().map(|attr| attr.has(Attr::HIDDEN)).collect(),
            pieces: vocab.pieces(kind)?,
            add_space_prefix: meta
                .bool("tokenizer.ggml.add_space_prefix")?
                .unwrap_or(kind == VocabKind::Spm),
            model,
            special,
        })
    }

    /// The tokens of a text.
    ///
    /// # Errors
    /// A text beyond the limit, a character that the vocabulary cannot say, a special token that
    /// the file wants and does not have.
    pub fn encode(
        &self,
        text: &str,
        options: EncodeOptions,
    ) -> Result<Vec<TokenId>, TokenizerError> {
        self.encode_bytes(text.as_bytes(), options)
    }

    /// The tokens of bytes that should be UTF-8 but need not be.
    ///
    /// SPM keeps bad bytes as byte tokens; BPE and WordPiece read each as U+FFFD, as llama.cpp.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_bytes(
        &self,
        text: &[u8],
        options: EncodeOptions,
    ) -> Result<Vec<TokenId>, TokenizerError> {
        if text.len() > TOKENIZE_BYTES_MAX {
            let max = TOKENIZE_BYTES_MAX;
            return Err(TokenizerError::TextTooLong { n_bytes: text.len(), max });
        }
        let mut ids = Vec::with_capacity(text.len() / 3 + 2);
        if options.add_special {
            ids.extend(self.first_token()?);
        }
        let mut is_after_special = true;
        for fragment in self.partition.split(text, options.parse_special) {
            match fragment {
                Fragment::Token(id) => ids.push(id),
                Fragment::Text(text) => self.encode_plain(text, is_after_special, &mut ids)?,
            }
            is_after_special = matches!(fragment, Fragment::Token(_));
        }
        if options.add_special {
            ids.extend(self.last_token()?);
        }
        Ok(ids)
    }

    /// The tokens of a rendered chat template: control tokens count, and the BOS that many
    /// templates write is not doubled by the one that the model wants.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_chat(&self, rendered: &str) -> Result<Vec<TokenId>, TokenizerError> {
        let options = EncodeOptions { add_special: true, parse_special: true };
        let mut ids = self.encode(rendered, options)?;
        if let [first, second, ..] = ids[..]
            && first == second
            && Some(first) == self.special.bos
            && self.special.add_bos
        {
            ids.remove(0);
        }
        Ok(ids)
    }

    fn encode_plain(
        &self,
        text: &[u8],
        is_after_special: bool,
        ids: &mut Vec<TokenId>,
    ) -> Result<(), TokenizerError> {
        let unk = self.special.unk;
        match &self.model {
            Model::Bpe(bpe) => bpe.encode(text, ids),
            Model::Spm(spm) => {
                spm.encode(text, self.add_space_prefix && is_after_special, unk, ids)
            }
            Model::WordPiece(wordpiece) => wordpiece.encode(text, unk, ids),
        }
    }

    /// What `add_special` puts before a text.
    fn first_token(&self) -> Result<Option<TokenId>, TokenizerError> {
        let missing = TokenizerError::NoSpecial { role: "BOS", place: "start" };
        match (&self.model, self.special.add_bos) {
            (Model::WordPiece(_), _) | (_, true) => self.special.bos.ok_or(missing).map(Some),
            _ => Ok(None),
        }
    }

    /// What `add_special` puts after a text.
    fn last_token(&self) -> Result<Option<TokenId>, TokenizerError> {
        let (role, token, add) = match &self.model {
            Model::WordPiece(_) => ("SEP", self.special.sep, true),
            _ => ("EOS", self.special.eos, self.special.add_eos),
        };
        match add {
            true => token.ok_or(TokenizerError::NoSpecial { role, place: "end" }).map(Some),
            false => Ok(None),
        }
    }

    /// The bytes that the token adds to a text; none for a control token unless `special`, and
    /// none for an id outside the vocabulary.
    pub fn token_bytes(&self, id: TokenId, special: bool) -> &[u8] {
        match self.hidden.get(id as usize) {
            Some(true) if !special => &[],
            _ => self.pieces.get(id),
        }
    }

    /// The text of a whole token sequence, as bytes.
    ///
    /// The space that SPM puts before a text is taken away from the first token again. Nothing
    /// else is tidied: llama.cpp's `detokenize` also removes the spaces in `a , b` for some
    /// vocabularies, which changes programs, and its generation does not.
    pub fn decode(&self, ids: &[TokenId], special: bool) -> Vec<u8> {
        let mut text = Vec::with_capacity(ids.len() * 4);
        for (idx, &id) in ids.iter().enumerate() {
            let piece = self.token_bytes(id, special);
            text.extend_from_slice(match piece {
                [b' ', rest @ ..] if idx == 0 && self.add_space_prefix => rest,
                _ => piece,
            });
        }
        text
    }

    /// Number of tokens.
    pub fn n_vocab(&self) -> usize {
        self.hidden.len()
    }

    /// The tokens with a role.
    pub fn special(&self) -> &SpecialTokens {
        &self.special
    }

    /// Whether the token ends a generation.
    pub fn is_eog(&self, id: TokenId) -> bool {
        self.special.eog.binary_search(&id).is_ok()
    }

    /// The token with exactly this text, as the vocabulary spells it: `Ġthe`, `▁the`, `</s>`.
    pub fn token_id(&self, text: &str) -> Option<TokenId> {
        self.model.token_id(text)
    }

    /// A prompt whose answer stands between `prefix` and `suffix`: prefix, suffix, middle, each
    /// after its token.
    ///
    /// The order is that of every family here: DeepSeek's begin, hole and end tokens stand in the
    /// same three places. Repository and file names, which llama.cpp's server invents for models
    /// that have tokens for them, are left to the caller.
    ///
    /// # Errors
    /// A model without these tokens, and what [`Tokenizer::encode`] refuses.
    pub fn fim_prompt(&self, prefix: &str, suffix: &str) -> Result<Vec<TokenId>, TokenizerError> {
        let get = |id: Option<TokenId>, missing| id.ok_or(TokenizerError::NoFim { missing });
        let before = get(self.special.fim_prefix, "prefix")?;
        let hole = get(self.special.fim_suffix, "suffix")?;
        let after = get(self.special.fim_middle, "middle")?;
        let mut ids = Vec::new();
        if self.special.add_bos {
            ids.extend(self.first_token()?);
        }
        ids.push(before);
        ids.extend(self.encode(prefix, EncodeOptions::default())?);
        ids.push(hole);
        ids.extend(self.encode(suffix, EncodeOptions::default())?);
        ids.push(after);
        Ok(ids)
    }

    /// The tokens of a query and a document for a reranker: `[CLS] query [SEP] document`, and what
    /// else the file asks for, as llama.cpp's server puts them together.
    ///
    /// # Errors
    /// A special token that the file wants and does not have, and what [`Tokenizer::encode`]
    /// refuses.
    pub fn pair_prompt(&self, query: &str, document: &str) -> Result<Vec<TokenId>, TokenizerError> {
        let special = &self.special;
        let get = |wanted: bool, id: Option<TokenId>, role, place| match wanted {
            true => id.ok_or(TokenizerError::NoSpecial { role, place }).map(Some),
            false => Ok(None),
        };
        let bos = get(special.add_bos, special.bos, "BOS", "start")?;
        let eos = get(special.add_eos, special.eos.or(special.sep), "EOS", "end")?;
        let sep = get(special.add_sep, special.sep, "SEP", "middle")?;
        let mut ids: Vec<TokenId> = bos.into_iter().collect();
        ids.extend(self.encode(query, EncodeOptions::default())?);
        ids.extend(eos.into_iter().chain(sep));
        ids.extend(self.encode(document, EncodeOptions::default())?);
        ids.extend(eos);
        Ok(ids)
    }
}
