//! Floor 0: what every room may use and what uses no room.

pub mod limits;
