//! What several test modules share.

pub mod http;
pub mod recipe;
pub mod source;
