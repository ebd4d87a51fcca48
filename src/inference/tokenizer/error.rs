//! What can be wrong with a vocabulary, a text or a template, each case naming the values.

use crate::inference::gguf::GgufError;

/// Why a file has no usable tokenizer, or a text no tokens.
#[allow(missing_docs)] // the fields are the values that each message shows
#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    #[error(transparent)]
    Gguf(#[from] GgufError),
    #[error("the file has no key `{key}`, so it carries no tokenizer")]
    MissingKey { key: &'static str },
    #[error("tokenizer model `{model}` is not supported; these are: {supported}")]
    UnknownModel { model: String, supported: &'static str },
    #[error("pre-tokenizer `{pre}` is not supported; these are: {supported}")]
    UnknownPre { pre: String, supported: String },
    #[error("the vocabulary has {n_vocab} tokens; 1 to {max} are allowed")]
    VocabSize { n_vocab: usize, max: usize },
    #[error("key `{key}` has {got} items for a vocabulary of {n_vocab}")]
    ArrayLen { key: &'static str, got: usize, n_vocab: usize },
    #[error("token {id} has {n_bytes} bytes; {max} are allowed")]
    TokenTooLong { id: usize, n_bytes: usize, max: usize },
    #[error("tokens {first} and {second} are the same text {text:?}")]
    DuplicateToken { first: u32, second: u32, text: String },
    #[error("token {id} is {text:?}, which is no byte token of the form <0x41>")]
    BadByteToken { id: usize, text: String },
    #[error("merge {merge_idx} is {merge:?}: {problem}")]
    BadMerge { merge_idx: usize, merge: String, problem: &'static str },
    #[error("the BPE model refused the vocabulary: {reason}")]
    BadBpe { reason: String },
    #[error("the text has {n_bytes} bytes; at most {max} are tokenized at once")]
    TextTooLong { n_bytes: usize, max: usize },
    #[error("the vocabulary has no token for the byte {byte:#04x}")]
    NoByteToken { byte: u8 },
    #[error("the model wants a {role} token for the text's {place}, but the file names none")]
    NoSpecial { role: &'static str, place: &'static str },
    #[error("the pre-tokenizer gave up on the text")]
    Split { source: Box<fancy_regex::Error> },
    #[error("the BPE model gave up on a word: {reason}")]
    Bpe { reason: String },
    #[error("the model has no fill-in-the-middle tokens: no {missing} token")]
    NoFim { missing: &'static str },
}

/// Why a chat template cannot be read or rendered.
#[allow(missing_docs)] // the fields are the values that each message shows
#[derive(Debug, thiserror::Error)]
pub enum TemplateError {
    #[error(transparent)]
    Gguf(#[from] GgufError),
    #[error("the chat template has {n_bytes} bytes; {max} are allowed")]
    TooLong { n_bytes: usize, max: u64 },
    #[error("the chat template is not valid Jinja: {reason}")]
    Syntax { reason: String },
    #[error("the chat template refuses these messages: {message}")]
    Refused { message: String },
    #[error("the chat template took more than {max} steps")]
    TooManySteps { max: u64 },
    #[error("the chat template failed: {reason}")]
    Render { reason: String },
}
