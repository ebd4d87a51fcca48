//! What can be wrong with a grammar or a token, each case naming the values.

/// Why a grammar cannot be used, or an answer not go on under it.
#[allow(missing_docs)] // the fields are the values that each message shows
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum GrammarError {
    #[error("the vocabulary cannot be used for grammars: {reason}")]
    Vocab { reason: String },
    #[error("the grammar has {n_bytes} bytes; {max} are allowed")]
    TooLong { n_bytes: usize, max: usize },
    #[error("the JSON schema is not JSON: {reason}")]
    NotJson { reason: String },
    #[error("the {kind} is refused: {reason}")]
    Refused { kind: &'static str, reason: String },
    #[error("line {line}, column {column} of the grammar: {problem}")]
    Gbnf { line: usize, column: usize, problem: String },
    #[error("the grammar's rule `{rule}` is not defined")]
    NoRule { rule: String },
    #[error(
        "the grammar's rule `{rule}` begins with itself; write the repetition with `*` or put the \
         recursion at the end"
    )]
    LeftRecursion { rule: String },
    #[error("the grammar is too complex: more than {max} {what}")]
    TooComplex { what: &'static str, max: usize },
    #[error("trigger {trigger:?} cannot be used: {reason}")]
    BadTrigger { trigger: String, reason: String },
    #[error("{got} triggers; at most {max} are allowed")]
    TooManyTriggers { got: usize, max: usize },
    #[error("the grammar does not begin with the text that triggered it: {text:?}")]
    Trigger { text: String },
    #[error("{got} logits for a vocabulary of {n_vocab}")]
    Logits { got: usize, n_vocab: usize },
    #[error("the grammar does not allow token {token} here")]
    NotAllowed { token: u32 },
    #[error("no token of the vocabulary can go on as the grammar wants")]
    Stuck,
    #[error("the grammar gave up: {reason}")]
    GaveUp { reason: String },
}
