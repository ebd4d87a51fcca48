//! The fan: what it is told and how fast it turns.
//!
//! The Nano's `sys/devices/pwm-fan/{target_pwm,cur_pwm,pwm_cap,temp_control,rpm_measured}`
//! (NVIDIA's driver for kernel 4.9; `rpm_measured` needs a fan with four wires), else the first
//! `sys/class/hwmon/hwmonN/{pwm1,fan1_input}` (the kernel's `hwmon/sysfs-interface`). 0 is still,
//! 255 full speed.

use serde::Serialize;

use super::Gather;

/// A fan.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct FanReading {
    /// What it gets, 0 to 255.
    pub pwm: Option<u32>,
    /// What it is told to get.
    pub target_pwm: Option<u32>,
    /// The most that it may get.
    pub cap_pwm: Option<u32>,
    /// Turns a minute.
    pub rpm: Option<u32>,
    /// Whether the kernel sets it by temperature.
    pub is_automatic: Option<bool>,
}

/// The Nano's fan.
pub const NANO: &str = "sys/devices/pwm-fan";

pub fn read(gather: &mut Gather<'_>) -> Option<FanReading> {
    let sysfs = gather.sysfs;
    if sysfs.has(NANO) {
        let small = |name: &str| sysfs.small(&format!("{NANO}/{name}")).ok();
        let pwm = sysfs.small(&format!("{NANO}/cur_pwm"));
        return Some(FanReading {
            pwm: gather.optional("fan", pwm),
            target_pwm: small("target_pwm"),
            cap_pwm: small("pwm_cap"),
            rpm: small("rpm_measured"),
            is_automatic: small("temp_control").map(|on| on != 0),
        });
    }
    let class = "sys/class/hwmon";
    for (_, dir) in sysfs.numbered(class, "hwmon") {
        let pwm = sysfs.small(&format!("{class}/{dir}/pwm1")).ok();
        let rpm = sysfs.small(&format!("{class}/{dir}/fan1_input")).ok();
        if pwm.or(rpm).is_some() {
            return Some(FanReading { pwm, rpm, ..FanReading::default() });
        }
    }
    gather.miss("fan", "none that sysfs shows");
    None
}
