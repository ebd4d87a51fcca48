//! Floor 1: the board's sensors.
//!
//! ```text
//! sysfs under a root --> EnergyMeter --> joules so far
//! ```
//!
//! Only this room reads power sensors. It knows nothing of tokens.

mod energy;

pub use energy::{EnergyMeter, NoEnergy};
