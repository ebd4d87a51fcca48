//! Floor 1: the board's sensors, and what keeps it within its heat and power.
//!
//! ```text
//! sysfs under a root --> EnergyMeter --> joules so far
//!                    --> Sensors ------> Readings: clocks, heat, watts, memory, what is absent
//!
//! PowerConfig + Board + Readings -> Policy
//! Policy, State, Vitals, EngineView -> govern -> State, EnginePace, Settings
//! Settings -> plan -> Actuator -> files of the kernel, and a journal of what stood there
//! ```
//!
//! Only this room reads the kernel's sensors, and only `apply.rs` of it writes. It knows nothing of
//! tokens but how many there were.

mod apply;
mod board;
mod brake;
mod calibrate;
mod config;
mod energy;
mod governor;
mod heat;
mod nvpmodel;
mod profile;
mod sensors;
mod sysfs;
#[cfg(test)]
mod tests;
mod tune;

pub use apply::{Actuator, ApplyError, Change, plan};
pub use board::{Board, BoardKind};
pub use calibrate::Calibration;
pub use config::PowerConfig;
pub use energy::{EnergyMeter, NoEnergy};
pub use governor::{
    Cause, Decision, EnginePace, EngineView, Phase, Policy, Settings, State, Vitals, govern,
};
pub use profile::{Profile, Tier};
pub use sensors::{Readings, Sensors};
pub use sysfs::Sysfs;
pub use tune::{Tuning, tune};
