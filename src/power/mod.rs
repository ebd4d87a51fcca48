//! Floor 1: the board's sensors, and what keeps it within its heat and power.
//!
//! ```text
//! sysfs under a root --> EnergyMeter --> joules so far
//!                    --> Sensors ------> Readings: clocks, heat, watts, memory, what is absent
//! ```
//!
//! Only this room reads the kernel's sensors. It knows nothing of tokens' meaning.

mod board;
mod brake;
mod calibrate;
mod config;
mod energy;
mod governor;
mod heat;
mod profile;
mod sensors;
mod sysfs;
#[cfg(test)]
mod tests;

pub use board::{Board, BoardKind};
pub use energy::{EnergyMeter, NoEnergy};
pub use sensors::{Absent, Readings, Sensors};
