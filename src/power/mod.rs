//! Floor 1: the board's sensors, and what keeps it within its heat and power.
//!
//! ```text
//! sysfs under a root --> EnergyMeter --> joules so far
//!                    --> Sensors ------> Readings: clocks, heat, watts, memory, what is absent
//! NVML: a PC's cards --> both
//!
//! PowerConfig, Board, Readings -> policy
//! policy, state, Readings, EngineView -> governor -> EnginePace, and settings of the board
//! settings -> Actuator -> files of the kernel, and a journal of what stood there
//! Keeper: all of this once a second, setting the board itself or through a Helper with rights
//! Watch: the thread that does it while the service runs
//! ```
//!
//! Only this room reads the kernel's sensors, and only `apply.rs` of it writes to the board. It
//! knows nothing of tokens but how many there were.

mod apply;
mod ask;
mod board;
mod brake;
mod calibrate;
mod config;
mod energy;
mod governor;
mod heat;
mod keeper;
mod nvpmodel;
mod profile;
mod sensors;
mod sysfs;
#[cfg(test)]
mod tests;
mod tune;
mod watch;
mod writes;

pub use apply::{Actuator, ApplyError, Change, Owner, Reverted};
pub use ask::Helper;
pub use board::Board;
pub use config::PowerConfig;
pub use energy::{EnergyMeter, NoEnergy};
pub use governor::{Cause, Decision, EnginePace, EngineView, Phase};
pub use keeper::{Keeper, choose, chosen, tune};
pub use profile::{Compute, Profile, Tier};
pub use sensors::{Readings, Sensors};
pub use watch::{Engines, Standing, Watch, Watching};
