//! What several test modules share.

pub mod engine;
pub mod fake;
pub mod hosted;
pub mod http;
pub mod nvml;
pub mod postgres;
pub mod recipe;
pub mod run;
pub mod shapes;
pub mod skip;
pub mod socket;
pub mod source;
pub mod stand_in;
pub mod webdriver;
