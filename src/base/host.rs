//! What this machine is: processor, memory and its limits, disk, kernel and C library.
//!
//! Memory that may be used is the least of what the kernel says is available and what is left of
//! every control group above the process, because a service or a container often has less than
//! the machine. Both versions of control groups are read: the Nano's kernel has the first.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sysinfo::{CpuRefreshKind, MemoryRefreshKind, RefreshKind, System};

/// The machine, as far as it can be read without rights.
#[derive(Clone, Debug, Serialize)]
pub struct Host {
    /// `x86_64` or `aarch64`.
    pub arch: &'static str,
    /// The processor's name, empty when the kernel does not tell.
    #[serde(rename = "cpu")]
    pub cpu_name: String,
    /// Instruction sets that matter to kernels: `avx2`, `fma`, `neon` and so on.
    pub isa: Vec<&'static str>,
    /// Threads that this process may use.
    pub n_threads: usize,
    /// Memory of the machine.
    pub memory_total_bytes: u64,
    /// Memory that could be used now without swapping, within the control group's limit.
    pub memory_available_bytes: u64,
    /// The control group's limit, if there is one below the machine's memory.
    pub memory_limit_bytes: Option<u64>,
    /// `Linux 6.1.0` for example.
    pub kernel: String,
    /// `glibc 2.36`, or `unknown`.
    pub libc: String,
}

impl Host {
    /// Reads the machine.
    pub fn read() -> Host {
        let system = system();
        let total = system.as_ref().map_or(0, System::total_memory);
        let available = system.as_ref().map_or(0, System::available_memory);
        let groups = cgroup_dirs(&read("/proc/self/cgroup"), Path::new("/sys/fs/cgroup"));
        let (limit, left) = within_groups(&groups, total, available);
        let uname = rustix::system::uname();
        Host {
            arch: std::env::consts::ARCH,
            cpu_name: system.as_ref().and_then(cpu_name).unwrap_or_default(),
            isa: isa(),
            n_threads: std::thread::available_parallelism().map_or(1, usize::from),
            memory_total_bytes: total,
            memory_available_bytes: left,
            memory_limit_bytes: limit,
            kernel: format!(
                "{} {}",
                uname.sysname().to_string_lossy(),
                uname.release().to_string_lossy()
            ),
            libc: libc_version(),
        }
    }
}

/// A moment in the life of a machine that was started once. A board without a battery for its clock
/// learns the date minutes after its start; this goes on evenly, also while the machine sleeps.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Moment {
    /// The kernel's name for this start.
    pub boot: String,
    /// Seconds since then.
    pub s: u64,
}

impl Moment {
    /// Now.
    ///
    /// # Errors
    /// Where the kernel does not tell.
    pub fn now() -> std::io::Result<Moment> {
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned();
        let uptime = std::fs::read_to_string("/proc/uptime")?;
        let s = uptime.split('.').next().and_then(|s| s.parse().ok());
        Ok(Moment { boot, s: s.ok_or(std::io::ErrorKind::InvalidData)? })
    }

    /// This much later.
    pub fn after(&self, s: u64) -> Moment {
        Moment { boot: self.boot.clone(), s: self.s.saturating_add(s) }
    }

    /// Seconds until another moment of the same start; none if it is over, or of another one.
    pub fn until(&self, end: &Moment) -> Option<u64> {
        (self.boot == end.boot).then(|| end.s.checked_sub(self.s)).flatten()
    }
}

/// Bytes that an ordinary user may still write to the file system of `path`, or of its nearest
/// directory that exists.
pub fn disk_free_bytes(path: &Path) -> Option<u64> {
    let existing = path.ancestors().find(|p| p.exists()).unwrap_or(Path::new("."));
    let stat = rustix::fs::statvfs(existing).ok()?;
    Some(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// What tells this machine from others of its kind, and stays with it when its disk or card is put
/// into another: the board's serial number, the addresses of its network cards. Empty where
/// nothing is told, as in most containers.
pub fn machine_marks() -> Vec<String> {
    let serial = read("/proc/device-tree/serial-number");
    let serial = serial.trim_matches(|c: char| c == '\0' || c.is_whitespace());
    let mut marks: Vec<String> = match serial {
        "" => Vec::new(),
        serial => vec![format!("serial {serial}")],
    };
    let cards = std::fs::read_dir("/sys/class/net").into_iter().flatten().flatten();
    // A card that was made up, as of a bridge, stands on no device.
    for card in cards.filter(|card| card.path().join("device").exists()) {
        let address = std::fs::read_to_string(card.path().join("address")).unwrap_or_default();
        let address = address.trim();
        if !address.is_empty() && address.chars().any(|c| c != '0' && c != ':') {
            marks.push(format!("card {address}"));
        }
    }
    marks.sort();
    marks
}

/// Memory of this process that is in RAM; 0 where the kernel does not tell.
pub fn resident_bytes() -> u64 {
    status_bytes(&read("/proc/self/status"), "VmRSS:").unwrap_or(0)
}

/// Lets [`peak_resident_bytes`] begin anew, where the kernel can.
pub fn reset_peak_resident() {
    let _ = std::fs::write("/proc/self/clear_refs", "5");
}

/// The most memory of this process that was in RAM at once since its start or the last
/// [`reset_peak_resident`]; 0 where the kernel does not tell.
pub fn peak_resident_bytes() -> u64 {
    status_bytes(&read("/proc/self/status"), "VmHWM:").unwrap_or(0)
}

fn read(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

/// A line such as `VmRSS:  16384 kB`.
fn status_bytes(text: &str, key: &str) -> Option<u64> {
    let line = text.lines().find(|line| line.starts_with(key))?;
    let kib: u64 = line[key.len()..].split_whitespace().next()?.parse().ok()?;
    kib.checked_mul(1024)
}

/// The directories of the process's memory groups, innermost first, up to the root.
fn cgroup_dirs(proc_cgroup: &str, root: &Path) -> Vec<PathBuf> {
    let mut dirs = Vec::new();
    for line in proc_cgroup.lines() {
        let mut fields = line.splitn(3, ':');
        let (_, Some(controllers), Some(path)) = (fields.next(), fields.next(), fields.next())
        else {
            continue;
        };
        let base = match controllers {
            "" => root.to_owned(),
            c if c.split(',').any(|c| c == "memory") => root.join("memory"),
            _ => continue,
        };
        let full = base.join(path.trim_start_matches('/'));
        dirs.extend(full.ancestors().take_while(|p| p.starts_with(&base)).map(Path::to_owned));
    }
    dirs
}

/// The least limit below `total`, and the least that the groups leave of what is available.
fn within_groups(groups: &[PathBuf], total: u64, available: u64) -> (Option<u64>, u64) {
    let (mut limit, mut left) = (None, available);
    for (max, current) in groups.iter().filter_map(|dir| cgroup_memory(dir)) {
        if max < total {
            limit = Some(limit.unwrap_or(max).min(max));
            left = left.min(max.saturating_sub(current));
        }
    }
    (limit, left)
}

/// The limit and the present use of one group, in bytes.
fn cgroup_memory(dir: &Path) -> Option<(u64, u64)> {
    let number = |name: &str| -> Option<u64> {
        std::fs::read_to_string(dir.join(name)).ok()?.trim().parse().ok()
    };
    // The page cache counts as use but gives way, so only what cannot be dropped is charged.
    let inactive = |name: &str, key: &str| -> u64 {
        let text = std::fs::read_to_string(dir.join(name)).unwrap_or_default();
        text.lines().find_map(|line| line.strip_prefix(key)?.trim().parse().ok()).unwrap_or(0)
    };
    if let Some(max) = number("memory.max") {
        let used = number("memory.current").unwrap_or(0);
        return Some((max, used.saturating_sub(inactive("memory.stat", "inactive_file "))));
    }
    let max = number("memory.limit_in_bytes")?;
    let used = number("memory.usage_in_bytes").unwrap_or(0);
    Some((max, used.saturating_sub(inactive("memory.stat", "total_inactive_file "))))
}

/// What the system says of processor and memory; `None` where it says nothing.
fn system() -> Option<System> {
    let memory = MemoryRefreshKind::nothing().with_ram();
    let wanted = RefreshKind::nothing().with_memory(memory).with_cpu(CpuRefreshKind::nothing());
    System::new_with_specifics(wanted).ok()
}

fn cpu_name(system: &System) -> Option<String> {
    Some(system.cpus().first()?.brand().to_owned())
}

#[cfg(target_arch = "x86_64")]
fn isa() -> Vec<&'static str> {
    let mut found = vec!["sse2"];
    macro_rules! detect {
        ($($name:tt),*) => { $(if is_x86_feature_detected!($name) { found.push($name); })* };
    }
    detect!("avx", "avx2", "fma", "f16c", "avxvnni", "avx512f", "avx512bw", "avx512vnni");
    found
}

#[cfg(target_arch = "aarch64")]
fn isa() -> Vec<&'static str> {
    let mut found = vec!["neon"];
    macro_rules! detect {
        ($($name:tt),*) => {
            $(if std::arch::is_aarch64_feature_detected!($name) { found.push($name); })*
        };
    }
    detect!("fp16", "dotprod", "i8mm", "sve");
    found
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn isa() -> Vec<&'static str> {
    Vec::new()
}

#[cfg(all(target_os = "linux", target_env = "gnu"))]
fn libc_version() -> String {
    unsafe extern "C" {
        fn gnu_get_libc_version() -> *const std::ffi::c_char;
    }
    // SAFETY: glibc returns a pointer to a constant, NUL-terminated string that is never freed.
    let version = unsafe { std::ffi::CStr::from_ptr(gnu_get_libc_version()) };
    format!("glibc {}", version.to_string_lossy())
}

#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
fn libc_version() -> String {
    "unknown".to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cgroup_paths_of_both_versions() {
        let root = Path::new("/sys/fs/cgroup");
        let v2 = cgroup_dirs("0::/user.slice/a\n", root);
        assert_eq!(v2[0], Path::new("/sys/fs/cgroup/user.slice/a"));
        assert_eq!(v2.last().unwrap(), root);
        let v1 = cgroup_dirs("5:cpu,cpuacct:/x\n4:memory:/jet\n", root);
        assert_eq!(v1, [root.join("memory/jet"), root.join("memory")]);
    }

    #[test]
    fn a_group_charges_what_cannot_be_dropped() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("memory.max"), "4000\n").unwrap();
        std::fs::write(dir.path().join("memory.current"), "3000\n").unwrap();
        std::fs::write(dir.path().join("memory.stat"), "anon 1\ninactive_file 500\n").unwrap();
        assert_eq!(cgroup_memory(dir.path()), Some((4000, 2500)));
        std::fs::write(dir.path().join("memory.max"), "max\n").unwrap();
        assert_eq!(cgroup_memory(dir.path()), None);
    }

    #[test]
    fn the_tightest_group_of_2_4_and_16_gb_counts() {
        const GIB: u64 = 1 << 30;
        for (n_gib, files) in [
            (2, ["memory.limit_in_bytes", "memory.usage_in_bytes"]),
            (4, ["memory.max", "memory.current"]),
            (16, ["memory.max", "memory.current"]),
        ] {
            let root = tempfile::tempdir().unwrap();
            let is_v1 = files[0] == "memory.limit_in_bytes";
            let top = if is_v1 { root.path().join("memory") } else { root.path().to_owned() };
            let group = top.join("service/jetforge");
            std::fs::create_dir_all(&group).unwrap();
            std::fs::write(group.join(files[0]), (n_gib * GIB).to_string()).unwrap();
            std::fs::write(group.join(files[1]), (GIB / 4).to_string()).unwrap();
            // The group above has more, and version 1 says "no limit" with a huge number.
            let loose = if is_v1 { u64::MAX / 2 } else { 20 * GIB };
            std::fs::write(top.join("service").join(files[0]), loose.to_string()).unwrap();
            let line = if is_v1 { "4:memory:/service/jetforge" } else { "0::/service/jetforge" };
            let groups = cgroup_dirs(line, root.path());
            let found = within_groups(&groups, 24 * GIB, 23 * GIB);
            assert_eq!(found, (Some(n_gib * GIB), n_gib * GIB - GIB / 4));
        }
    }

    #[test]
    fn this_machine_has_memory_and_threads() {
        let host = Host::read();
        assert!(host.n_threads >= 1 && host.memory_available_bytes > 0);
        assert!(host.memory_available_bytes <= host.memory_total_bytes);
        assert!(disk_free_bytes(Path::new("/tmp/does/not/exist")).is_some());
    }
}
