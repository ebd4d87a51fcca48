//! What several test modules share.

pub mod recipe;
pub mod source;
