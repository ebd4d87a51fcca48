//! A tree of files for each board.
//!
//! Forms of the Nano's files: rbonghi/jetson_stats `tests` and `jtop/core` (identity, nvpmodel,
//! clocks, rails), OE4T/linux-nvgpu l4t-r32.7.6 `os/linux/sysfs.c` (GPU), ollama/ollama#9317
//! (`nv_tegra_release`), the kernel's `driver-api/thermal/sysfs-api` (zones, coolers). The 2 GB
//! board's device tree: upstream `tegra210-p3541-0000.dts` and OE4T/meta-tegra. Orin: the kernel's
//! `hwmon/ina3221`. The PC: `admin-guide/pm/cpufreq`, `power/powercap`. The Pi: its own
//! `bcm2711-rpi-4-b.dts`.

use std::path::Path;

/// Files of a tree: path from the root, text.
pub type Files<'a> = &'a [(&'a str, &'a str)];

/// A folder with these files.
pub fn tree(files: Files<'_>) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    files.iter().for_each(|(path, text)| put(dir.path(), path, text.as_bytes()));
    dir
}

/// Writes a file of a tree.
pub fn put(root: &Path, path: &str, bytes: &[u8]) {
    let path = root.join(path);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, bytes).unwrap();
}

/// A Nano of the second revision with everything that it shows.
pub fn nano() -> tempfile::TempDir {
    let dir = tree(NANO_B01);
    NANO.iter().for_each(|(path, text)| put(dir.path(), path, text.as_bytes()));
    for core in 0..4 {
        for (name, text) in NANO_CORE {
            let path = format!("sys/devices/system/cpu/cpu{core}/{name}");
            put(dir.path(), &path, text.as_bytes());
        }
    }
    dir
}

pub const NANO_B01: Files<'static> = &[
    ("proc/device-tree/model", "NVIDIA Jetson Nano Developer Kit\0"),
    (
        "proc/device-tree/compatible",
        "nvidia,p3449-0000-b00+p3448-0000-b00\0nvidia,jetson-nano\0nvidia,tegra210\0",
    ),
    (
        "etc/nv_tegra_release",
        "# R32 (release), REVISION: 7.6, GCID: 38171779, BOARD: t210ref, EABI: aarch64, DATE: x\n",
    ),
    ("proc/meminfo", MEMINFO),
];

pub const NANO_A02: Files<'static> = &[
    ("proc/device-tree/model", "NVIDIA Jetson Nano Developer Kit\0"),
    (
        "proc/device-tree/compatible",
        "nvidia,p3449-0000-a02+p3448-0000-a02\0nvidia,jetson-nano\0nvidia,tegra210\0",
    ),
    ("proc/meminfo", MEMINFO),
];

pub const NANO_2GB: Files<'static> = &[
    ("proc/device-tree/model", "NVIDIA Jetson Nano 2GB Developer Kit\0"),
    (
        "proc/device-tree/compatible",
        "nvidia,p3542-0000+p3448-0003\0nvidia,jetson-nano-2gb\0nvidia,jetson-nano\0\
         nvidia,tegra210\0",
    ),
    ("proc/meminfo", "MemTotal:        2026496 kB\nMemAvailable:    1500000 kB\n"),
];

pub const ORIN: Files<'static> = &[
    ("proc/device-tree/model", "NVIDIA Jetson Orin Nano Developer Kit\0"),
    ("proc/device-tree/compatible", "nvidia,p3768-0000+p3767-0005\0nvidia,tegra234\0"),
    ("sys/class/hwmon/hwmon1/name", "ina3221\n"),
    ("sys/class/hwmon/hwmon1/in1_label", "VDD_IN\n"),
    ("sys/class/hwmon/hwmon1/in1_input", "5000\n"),
    ("sys/class/hwmon/hwmon1/curr1_input", "1040\n"),
    ("sys/class/hwmon/hwmon1/curr1_crit", "5000\n"),
    ("sys/class/hwmon/hwmon2/name", "soctherm_oc\n"),
    ("sys/class/hwmon/hwmon2/oc1_event_cnt", "2\n"),
    ("sys/class/hwmon/hwmon2/oc3_event_cnt", "1\n"),
    ("sys/class/devfreq/17000000.ga10b/device/of_node/name", "ga10b\0"),
    ("sys/class/devfreq/17000000.ga10b/device/load", "250\n"),
    ("sys/class/devfreq/17000000.ga10b/cur_freq", "306000000\n"),
    ("sys/class/devfreq/15340000.vic/device/of_node/name", "vic\0"),
];

pub const PC: Files<'static> = &[
    ("sys/class/dmi/id/product_name", "OptiPlex 7090\n"),
    ("proc/meminfo", "MemTotal:       16300000 kB\nMemAvailable:   12000000 kB\n"),
    ("proc/stat", "cpu  1 2 3 4 5 6 7 8 9 10\ncpu0 1 2 3 4 5 6 7 8 9 10\n"),
    ("proc/loadavg", "0.52 0.58 0.59 1/467 12345\n"),
    ("sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq", "3400000\n"),
    ("sys/devices/system/cpu/cpu0/cpufreq/scaling_governor", "powersave\n"),
    ("sys/devices/system/cpu/cpu0/thermal_throttle/package_throttle_count", "5\n"),
    ("sys/devices/system/cpu/cpu1/thermal_throttle/package_throttle_count", "5\n"),
    ("sys/devices/system/cpu/cpu1/online", "0\n"),
    ("sys/class/powercap/intel-rapl:0/name", "package-0\n"),
    ("sys/class/powercap/intel-rapl:0/energy_uj", "123456789\n"),
    ("sys/class/hwmon/hwmon0/name", "coretemp\n"),
    ("sys/class/hwmon/hwmon0/temp1_input", "55000\n"),
    ("sys/class/hwmon/hwmon1/pwm1", "128\n"),
    ("sys/class/hwmon/hwmon1/fan1_input", "1200\n"),
    ("sys/class/drm/card0/device/gpu_busy_percent", "40\n"),
];

pub const PI: Files<'static> = &[
    ("proc/device-tree/model", "Raspberry Pi 4 Model B Rev 1.4\0"),
    ("proc/device-tree/compatible", "raspberrypi,4-model-b\0brcm,bcm2711\0"),
];

const MEMINFO: &str = "MemTotal:        4059328 kB\nMemFree:          500000 kB\n\
    MemAvailable:    3000000 kB\nSwapTotal:       2029664 kB\nSwapFree:        2029664 kB\n\
    NvMapMemUsed:      81920 kB\n";

const NANO_CORE: Files<'static> = &[
    ("online", "1\n"),
    (
        "cpufreq/scaling_available_frequencies",
        "102000 204000 306000 408000 510000 612000 714000 816000 918000 1020000 1122000 1224000 \
         1326000 1428000 \n",
    ),
    ("cpufreq/scaling_cur_freq", "1428000\n"),
    ("cpufreq/scaling_min_freq", "102000\n"),
    ("cpufreq/scaling_max_freq", "1428000\n"),
    ("cpufreq/scaling_governor", "schedutil\n"),
];

const NANO: Files<'static> = &[
    ("proc/stat", "cpu  100 0 100 700 100 0 0 0 0 0\n"),
    ("proc/loadavg", "1.25 0.58 0.59 1/467 12345\n"),
    ("proc/sys/vm/swappiness", "60\n"),
    ("proc/sys/kernel/random/boot_id", "5d3ac43d-1d5f-4b4a-9d3c-0a62a0f6a0aa\n"),
    ("sys/devices/gpu.0/load", "870\n"),
    ("sys/devices/gpu.0/is_railgated", "no\n"),
    ("sys/devices/gpu.0/devfreq/57000000.gpu/cur_freq", "921600000\n"),
    ("sys/devices/gpu.0/devfreq/57000000.gpu/min_freq", "76800000\n"),
    ("sys/devices/gpu.0/devfreq/57000000.gpu/max_freq", "921600000\n"),
    ("sys/devices/gpu.0/devfreq/57000000.gpu/governor", "nvhost_podgov\n"),
    (
        "sys/devices/gpu.0/devfreq/57000000.gpu/available_frequencies",
        "76800000 153600000 230400000 307200000 384000000 460800000 537600000 614400000 \
         691200000 768000000 844800000 921600000\n",
    ),
    ("sys/kernel/debug/tegra_bwmgr/emc_rate", "1600000000\n"),
    ("sys/kernel/actmon_avg_activity/mc_all", "400000\n"),
    ("sys/kernel/nvpmodel_emc_cap/emc_iso_cap", "0\n"),
    ("sys/class/thermal/thermal_zone0/type", "AO-therm\n"),
    ("sys/class/thermal/thermal_zone0/temp", "45500\n"),
    ("sys/class/thermal/thermal_zone1/type", "CPU-therm\n"),
    ("sys/class/thermal/thermal_zone1/temp", "41000\n"),
    ("sys/class/thermal/thermal_zone1/trip_point_0_temp", "97000\n"),
    ("sys/class/thermal/thermal_zone1/trip_point_0_type", "passive\n"),
    ("sys/class/thermal/thermal_zone1/trip_point_1_temp", "102500\n"),
    ("sys/class/thermal/thermal_zone1/trip_point_1_type", "critical\n"),
    ("sys/class/thermal/thermal_zone2/type", "GPU-therm\n"),
    ("sys/class/thermal/thermal_zone2/temp", "40500\n"),
    ("sys/class/thermal/thermal_zone2/trip_point_0_temp", "97500\n"),
    ("sys/class/thermal/thermal_zone2/trip_point_0_type", "passive\n"),
    ("sys/class/thermal/thermal_zone3/type", "PLL-therm\n"),
    ("sys/class/thermal/thermal_zone3/temp", "39000\n"),
    ("sys/class/thermal/thermal_zone3/trip_point_0_temp", "70000\n"),
    ("sys/class/thermal/thermal_zone3/trip_point_0_type", "passive\n"),
    ("sys/class/thermal/thermal_zone4/type", "PMIC-Die\n"),
    ("sys/class/thermal/thermal_zone4/temp", "100000\n"),
    ("sys/class/thermal/thermal_zone5/type", "thermal-fan-est\n"),
    ("sys/class/thermal/thermal_zone5/temp", "44000\n"),
    ("sys/class/thermal/cooling_device0/type", "pwm-fan\n"),
    ("sys/class/thermal/cooling_device0/cur_state", "2\n"),
    ("sys/class/thermal/cooling_device0/max_state", "10\n"),
    ("sys/class/thermal/cooling_device1/type", "cpu-balanced\n"),
    ("sys/class/thermal/cooling_device1/cur_state", "0\n"),
    ("sys/class/thermal/cooling_device1/max_state", "14\n"),
    ("sys/bus/i2c/devices/6-0040/name", "ina3221x\n"),
    ("sys/bus/i2c/devices/6-0040/iio:device0/rail_name_0", "POM_5V_IN\n"),
    ("sys/bus/i2c/devices/6-0040/iio:device0/in_voltage0_input", "5024\n"),
    ("sys/bus/i2c/devices/6-0040/iio:device0/in_current0_input", "816\n"),
    ("sys/bus/i2c/devices/6-0040/iio:device0/in_power0_input", "4099\n"),
    ("sys/bus/i2c/devices/6-0040/iio:device0/warn_current_limit_0", "3500\n"),
    ("sys/bus/i2c/devices/6-0040/iio:device0/crit_current_limit_0", "4000\n"),
    ("sys/bus/i2c/devices/6-0040/iio:device0/rail_name_1", "POM_5V_GPU\n"),
    ("sys/bus/i2c/devices/6-0040/iio:device0/in_voltage1_input", "5016\n"),
    ("sys/bus/i2c/devices/6-0040/iio:device0/in_current1_input", "100\n"),
    ("sys/bus/i2c/devices/6-0040/iio:device0/rail_name_2", "POM_5V_CPU\n"),
    ("sys/bus/i2c/devices/6-0040/iio:device0/in_power2_input", "800\n"),
    ("sys/devices/pwm-fan/target_pwm", "120\n"),
    ("sys/devices/pwm-fan/cur_pwm", "118\n"),
    ("sys/devices/pwm-fan/pwm_cap", "255\n"),
    ("sys/devices/pwm-fan/temp_control", "1\n"),
    ("sys/devices/pwm-fan/rpm_measured", "0\n"),
    ("dev/kmsg", "6,1,1,-;booting\n4,2,2,-;soctherm: OC ALARM 0x00000001\n"),
];
