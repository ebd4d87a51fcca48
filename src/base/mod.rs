//! Floor 0: what every room may use and what uses no room.

pub mod clock;
pub mod config;
pub mod dirs;
pub mod env;
pub mod file;
pub mod format;
pub mod hash;
pub mod host;
pub mod limits;
pub mod notify;
pub mod owner;
pub mod tar;
