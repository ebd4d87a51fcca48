//! Exit codes, given once. A script can tell what went wrong without reading messages.
//!
//! ```text
//! 0    done                                4    does not fit in memory
//! 1    failed                              5    network
//! 2    wrong usage or configuration        6    bytes are not what they should be
//! 3    model not found or not readable     7    nothing to wait for
//!                                          70   an engine broke
//!                                          130  interrupted
//! ```

use crate::app::AppError;
use crate::base::config::ConfigError;
use crate::inference::InferenceError;
use crate::library::LibraryError;
use crate::pair::PairError;
use crate::quantize::{FolderError, QuantizeError};
use crate::server::{PairingError, ServerError};
use crate::store::StoreError;
use crate::update::UpdateError;

/// Done.
pub const OK: u8 = 0;
/// Failed for a reason without a code of its own.
pub const FAILURE: u8 = 1;
/// Wrong options, arguments or configuration.
pub const USAGE: u8 = 2;
/// The model is not there or cannot be read.
pub const MODEL: u8 = 3;
/// The model or its context does not fit in memory, or a file on the disk.
pub const NO_ROOM: u8 = 4;
/// The network, or a server on it.
pub const NETWORK: u8 = 5;
/// A size, hash or self-test is not what it should be.
pub const INTEGRITY: u8 = 6;
/// There is nothing to wait for.
pub const NOTHING: u8 = 7;
/// An engine broke; a supervisor starts the program again.
pub const BROKEN: u8 = 70;
/// Stopped by Ctrl-C.
pub const INTERRUPTED: u8 = 130;

/// An error of the command line's own, with its code.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct CliError {
    code: u8,
    message: String,
}

impl CliError {
    /// Wrong usage.
    pub fn usage(message: impl Into<String>) -> CliError {
        CliError { code: USAGE, message: message.into() }
    }

    /// An answer that is not the right one.
    pub fn integrity(message: impl Into<String>) -> CliError {
        CliError { code: INTEGRITY, message: message.into() }
    }

    /// The network does not give what is asked.
    pub fn network(message: impl Into<String>) -> CliError {
        CliError { code: NETWORK, message: message.into() }
    }

    /// The model cannot do what is asked.
    pub fn model(message: impl Into<String>) -> CliError {
        CliError { code: MODEL, message: message.into() }
    }

    /// Something does not fit.
    pub fn no_room(message: impl Into<String>) -> CliError {
        CliError { code: NO_ROOM, message: message.into() }
    }
}

/// Whether the reader of our output went away, which is no error of ours.
pub fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause
            .downcast_ref::<std::io::Error>()
            .is_some_and(|io| io.kind() == std::io::ErrorKind::BrokenPipe)
    })
}

/// The exit code of an error: that of the first cause with a code.
pub fn code_of(error: &anyhow::Error) -> u8 {
    error.chain().find_map(code_of_cause).unwrap_or(FAILURE)
}

fn code_of_cause(cause: &(dyn std::error::Error + 'static)) -> Option<u8> {
    if let Some(error) = cause.downcast_ref::<CliError>() {
        return Some(error.code);
    }
    if let Some(error) = cause.downcast_ref::<QuantizeError>() {
        return Some(of_quantize(error));
    }
    if let Some(error) = cause.downcast_ref::<AppError>() {
        return match error {
            AppError::Config(error) => Some(of_config(error)),
            AppError::Dirs(_) => Some(USAGE),
            AppError::Library(error) => Some(of_library(error)),
            AppError::Server(error) => Some(of_server(error)),
            AppError::Hub(_) => Some(USAGE),
            AppError::Pairing(error) => of_pairing(error),
            AppError::Host(_) | AppError::Mute { .. } => None,
            AppError::Inference { source, .. } => Some(of_inference(source)),
        };
    }
    if let Some(error) = cause.downcast_ref::<ServerError>() {
        return Some(of_server(error));
    }
    if let Some(error) = cause.downcast_ref::<PairingError>() {
        return of_pairing(error);
    }
    if let Some(error) = cause.downcast_ref::<LibraryError>() {
        return Some(of_library(error));
    }
    if let Some(error) = cause.downcast_ref::<UpdateError>() {
        return Some(of_update(error));
    }
    if let Some(error) = cause.downcast_ref::<StoreError>() {
        return error.is_disk_full().then_some(NO_ROOM);
    }
    cause.downcast_ref::<InferenceError>().map(of_inference)
}

fn of_pairing(error: &PairingError) -> Option<u8> {
    match error {
        PairingError::Pair(PairError::NoCode) => Some(USAGE),
        PairingError::Pair(PairError::WrongCode) => Some(INTEGRITY),
        PairingError::Client(_) | PairingError::Foreign(_) => Some(NETWORK),
        PairingError::InBetween { .. } | PairingError::Spent => Some(INTEGRITY),
        PairingError::Pair(_) | PairingError::Offer(_) | PairingError::Store(_) => None,
    }
}

fn of_update(error: &UpdateError) -> u8 {
    match error {
        UpdateError::NoKeys { .. }
        | UpdateError::Keys { .. }
        | UpdateError::Unfit { .. }
        | UpdateError::NothingBefore
        | UpdateError::NewerState { .. } => USAGE,
        UpdateError::NoBundle { .. }
        | UpdateError::Signature { .. }
        | UpdateError::Program { .. } => INTEGRITY,
        UpdateError::NoRoom { .. } => NO_ROOM,
        UpdateError::File { .. } | UpdateError::Busy { .. } => FAILURE,
    }
}

fn of_config(error: &ConfigError) -> u8 {
    match error {
        ConfigError::Read { source, .. } => of_reading(source),
        _ => USAGE,
    }
}

/// A file that is not there, or is no text, was named or written wrongly. All else may pass, such
/// as a card that does not answer: a service that is started again may find it well.
fn of_reading(error: &std::io::Error) -> u8 {
    match error.kind() {
        std::io::ErrorKind::NotFound | std::io::ErrorKind::InvalidData => USAGE,
        _ => FAILURE,
    }
}

fn of_server(error: &ServerError) -> u8 {
    match error {
        ServerError::NoKey { .. }
        | ServerError::Tls(_)
        | ServerError::KeyName { .. }
        | ServerError::KeyTaken { .. }
        | ServerError::KeyReserved { .. }
        | ServerError::KeyUnknown { .. } => USAGE,
        ServerError::File { source, .. } => of_reading(source),
        ServerError::Bind { .. } => NETWORK,
        ServerError::KeyFile { .. } | ServerError::KeysFull => FAILURE,
    }
}

fn of_library(error: &LibraryError) -> u8 {
    match error {
        LibraryError::UnknownModel { .. } | LibraryError::NoSource { .. } => MODEL,
        LibraryError::Catalog { .. }
        | LibraryError::BadName { .. }
        | LibraryError::BadUrl { .. }
        | LibraryError::Certificates { .. } => USAGE,
        LibraryError::Exists { .. } | LibraryError::Busy { .. } => FAILURE,
        LibraryError::Io { source, .. } => match source.kind() {
            std::io::ErrorKind::NotFound => MODEL,
            std::io::ErrorKind::StorageFull => NO_ROOM,
            _ => FAILURE,
        },
        LibraryError::NoSpace { .. } | LibraryError::DoesNotFit { .. } => NO_ROOM,
        LibraryError::Inference(error) => of_inference(error),
        LibraryError::Refused { .. }
        | LibraryError::Redirect { .. }
        | LibraryError::Network { .. }
        | LibraryError::Untrusted { .. } => NETWORK,
        LibraryError::Mismatch { .. } | LibraryError::NotAModel { .. } => INTEGRITY,
    }
}

fn of_quantize(error: &QuantizeError) -> u8 {
    match error {
        QuantizeError::UnknownRecipe { .. }
        | QuantizeError::UnknownType { .. }
        | QuantizeError::Override { .. }
        | QuantizeError::Pattern { .. }
        | QuantizeError::PatternUnused { .. }
        | QuantizeError::Requantize { .. } => USAGE,
        QuantizeError::FolderRuns { .. } => USAGE,
        QuantizeError::Folder(FolderError::Io { source, .. }) => match source.kind() {
            std::io::ErrorKind::NotFound => MODEL,
            _ => FAILURE,
        },
        QuantizeError::Gguf(_)
        | QuantizeError::Folder(_)
        | QuantizeError::TooLarge { .. }
        | QuantizeError::PackedSource { .. }
        | QuantizeError::Native(_)
        | QuantizeError::NotFinite { .. }
        | QuantizeError::ImportanceShape { .. }
        | QuantizeError::ImportanceUnused { .. }
        | QuantizeError::ImportanceFile { .. } => MODEL,
        QuantizeError::Inference(error) => of_inference(error),
        QuantizeError::Exists { .. }
        | QuantizeError::SameFile { .. }
        | QuantizeError::Busy { .. } => FAILURE,
        QuantizeError::DiskFull { .. } => NO_ROOM,
        QuantizeError::Io { source, .. } => match source.kind() {
            std::io::ErrorKind::NotFound => MODEL,
            std::io::ErrorKind::StorageFull => NO_ROOM,
            _ => FAILURE,
        },
    }
}

fn of_inference(error: &InferenceError) -> u8 {
    match error {
        error if error.is_out_of_memory() => NO_ROOM,
        InferenceError::Memory { .. } => NO_ROOM,
        InferenceError::Draft { source, .. } => of_inference(source),
        InferenceError::DraftVocab { .. }
        | InferenceError::Gguf(_)
        | InferenceError::Model(_)
        | InferenceError::Tokenizer(_)
        | InferenceError::Template(_)
        | InferenceError::NotGenerative
        | InferenceError::NotReranker => MODEL,
        InferenceError::Sampler(_)
        | InferenceError::ContextTrained { .. }
        | InferenceError::PromptTooLong { .. }
        | InferenceError::PromptEmpty
        | InferenceError::TextTooShort { .. } => USAGE,
        InferenceError::Backend(error) if error.is_wrong_option() => USAGE,
        InferenceError::Backend(_) | InferenceError::Thread(_) => FAILURE,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_pass_is_no_wrong_configuration() {
        let read = |kind: std::io::ErrorKind| {
            let config = ConfigError::Read { path: "x".into(), source: kind.into() };
            let server = ServerError::File { path: "x".into(), source: kind.into() };
            (code_of(&AppError::from(config).into()), code_of(&AppError::from(server).into()))
        };
        assert_eq!(read(std::io::ErrorKind::NotFound), (USAGE, USAGE));
        for kind in [std::io::ErrorKind::PermissionDenied, std::io::ErrorKind::Other] {
            assert_eq!(read(kind), (FAILURE, FAILURE), "{kind}");
        }
    }
}
