//! The systemd units: that they say nothing that systemd 237 does not know, that what they name is
//! there, and that they promise what docs/appliance.md says. And the plan of an image.
//!
//! Of a directive that is newer, systemd 237 only warns: the service would start on the board
//! without a protection that was there on the PC. So every directive in use stands in a table with
//! the version that brought it, by systemd's NEWS.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use jetforge::base::hash::hex;

use crate::cli::jetforge;
use crate::support::run::Run;
use crate::support::skip::skip;

/// JetPack 4.6 is Ubuntu 18.04, which has this one.
const SYSTEMD: u32 = 237;

/// Section, directive, and the version that brought it; 183 for all that came before 184.
const KNOWN: &[(&str, &str, u32)] = &[
    ("Unit", "Description Documentation After Before Wants ConditionPathExists", 183),
    ("Unit", "StartLimitIntervalSec", 230),
    ("Unit", "CollectMode", 236),
    ("Unit", "ConditionMemory", 242),
    ("Install", "WantedBy", 183),
    ("Service", "Type NotifyAccess WatchdogSec TimeoutStartSec TimeoutStopSec", 183),
    ("Service", "ExecStart ExecReload ExecStop Restart RestartSec RemainAfterExit", 183),
    ("Service", "ExecStartPre ExecStartPost ExecStopPost", 183),
    ("Service", "RestartPreventExitStatus SystemCallErrorNumber", 209),
    ("Service", "User Group SupplementaryGroups UMask Environment LimitNOFILE LimitCORE", 183),
    ("Service", "StandardInput StandardOutput StandardError OOMScoreAdjust", 183),
    ("Service", "CapabilityBoundingSet PrivateTmp PrivateNetwork", 183),
    ("Service", "StateDirectory StateDirectoryMode CacheDirectory CacheDirectoryMode", 235),
    ("Service", "LogsDirectory LogsDirectoryMode LockPersonality KeyringMode", 235),
    ("Service", "NoNewPrivileges SystemCallFilter", 187),
    ("Service", "DevicePolicy DeviceAllow", 208),
    ("Service", "SystemCallArchitectures", 209),
    ("Service", "RestrictAddressFamilies", 211),
    ("Service", "ProtectSystem ProtectHome", 214),
    ("Service", "TasksMax", 227),
    ("Service", "AmbientCapabilities", 229),
    ("Service", "MemoryMax ReadWritePaths MemoryDenyWriteExecute RestrictRealtime", 231),
    ("Service", "ProtectKernelTunables ProtectKernelModules ProtectControlGroups RemoveIPC", 232),
    ("Service", "RestrictNamespaces", 233),
    ("Service", "TemporaryFileSystem", 238),
    ("Service", "PrivateMounts", 239),
    ("Service", "ProtectHostname RestrictSUIDSGID", 242),
    ("Service", "OOMPolicy ExecCondition", 243),
    ("Service", "ProtectKernelLogs", 244),
    ("Service", "ProtectClock", 245),
    ("Service", "ProtectProc ProcSubset", 247),
    ("Socket", "ListenStream SocketMode DirectoryMode Accept MaxConnections", 183),
    ("Socket", "SocketUser SocketGroup RemoveOnStop", 214),
    ("Path", "PathExists", 183),
    ("Journal", "Storage RuntimeMaxUse RuntimeMaxFileSize", 183),
    ("Manager", "RuntimeWatchdogSec ShutdownWatchdogSec", 183),
    ("Manager", "DumpCore", 183),
];

/// The sets of system calls of 237; `@system-service` came with 239.
const CALL_SETS: &str = "@aio @basic-io @chown @clock @cpu-emulation @debug @default @file-system \
    @io-event @ipc @keyring @memlock @module @mount @network-io @obsolete @privileged @process \
    @raw-io @reboot @resources @setuid @signal @swap @sync @timer";

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("systemd")
}

fn read(name: &str) -> String {
    std::fs::read_to_string(folder().join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// The units, by name.
fn units() -> BTreeMap<String, String> {
    let names = std::fs::read_dir(folder()).unwrap().map(|entry| entry.unwrap().file_name());
    let names = names.map(|name| name.into_string().unwrap());
    let ends = [".service", ".socket", ".path"];
    let is_unit = |name: &String| ends.iter().any(|end| name.ends_with(end));
    names.filter(is_unit).map(|name| (name.clone(), read(&name))).collect()
}

/// Section, directive and value of each line.
fn directives(text: &str) -> Vec<(String, String, String)> {
    let mut section = String::new();
    let mut found = Vec::new();
    for line in text.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix('[') {
            section = name.trim_end_matches(']').to_owned();
        } else if let Some((key, value)) = line.split_once('=').filter(|_| !line.starts_with('#')) {
            found.push((section.clone(), key.trim().to_owned(), value.trim().to_owned()));
        }
    }
    found
}

/// Everything that systemd 237 would not understand.
fn too_new(text: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    for (section, key, value) in directives(text) {
        let row = KNOWN
            .iter()
            .find(|(of, keys, _)| *of == section && keys.split(' ').any(|known| known == key));
        match row {
            None => wrong.push(format!("[{section}] {key}= is not in the table")),
            Some((_, _, version)) if *version > SYSTEMD => {
                wrong.push(format!("[{section}] {key}= came with {version}"));
            }
            Some(_) => {}
        }
        if key == "SystemCallFilter" {
            let sets = value.trim_start_matches('~').split(' ');
            let is_new = |set: &&str| !CALL_SETS.split_whitespace().any(|known| known == *set);
            wrong.extend(sets.filter(is_new).map(|set| format!("{set} is no set of 237")));
        }
        // `+` came with 231; `:` and `|` before a command came later than 237.
        if key.starts_with("Exec")
            && value.trim_start_matches(['-', '+', '@']).starts_with([':', '|'])
        {
            wrong.push(format!("{key}={value} came with 244 or later"));
        }
        if value.contains("append:") {
            wrong.push(format!("{key}={value} came with 240"));
        }
    }
    wrong
}

/// All values of a directive in a unit.
fn values(unit: &str, key: &str) -> Vec<String> {
    let all = directives(&read(unit)).into_iter();
    all.filter(|(_, name, _)| name == key).map(|(_, _, value)| value).collect()
}

#[test]
fn no_unit_says_what_systemd_237_does_not_know() {
    let mut files = units();
    assert!(files.len() >= 5, "{:?}", files.keys());
    for name in ["journald-jetforge.conf", "system-jetforge.conf"] {
        files.insert(name.to_owned(), read(name));
    }
    for (name, text) in files {
        assert_eq!(too_new(&text), Vec::<String>::new(), "{name}");
    }
}

#[test]
fn what_is_newer_would_be_noticed() {
    let text = "[Service]\nProtectHostname=yes\nSystemCallFilter=@system-service\nNice=1\n\
        StandardOutput=append:/x\n#ProtectClock=yes\nExecStartPre=-+/x\nExecStartPre=-:/x\n";
    let expected = [
        "[Service] ProtectHostname= came with 242",
        "@system-service is no set of 237",
        "[Service] Nice= is not in the table",
        "StandardOutput=append:/x came with 240",
        "ExecStartPre=-:/x came with 244 or later",
    ];
    assert_eq!(too_new(text), expected);
}

/// Where the service's program is: the package's, or an update.
const STARTED: &str = "/var/lib/jetforge-update/current/jetforge";
/// What waits for the nodes of the GPU; where it lies on 18.04.
const SETTLE: &str = "-/bin/udevadm settle --timeout=10";
/// The one command of a shell.
const SHELL: &str = "/bin/sh -c 'while :; do /usr/bin/jetforge update watch --boot=%b; case $$? in \
    0) systemctl --no-block restart jetforge.service;; 7) exit 0;; *) sleep 5;; esac; done'";

#[test]
fn every_command_is_a_verb_of_the_program_with_its_options() {
    let home = tempfile::tempdir().unwrap();
    let mut n = 0;
    for (unit, text) in units() {
        for (_, key, value) in directives(&text) {
            let is_other = ["/bin/kill -HUP $MAINPID", SHELL, SETTLE].contains(&value.as_str());
            if !key.starts_with("Exec") || is_other {
                continue;
            }
            let mut words: Vec<&str> = value.trim_start_matches(['-', '+']).split(' ').collect();
            let program = words.remove(0);
            assert!([STARTED, "/usr/bin/jetforge"].contains(&program), "{unit}: {value}");
            let options: Vec<&str> = words.iter().copied().filter(|w| w.starts_with('-')).collect();
            // What an option has behind it is a path.
            words.retain(|word| !word.starts_with(['-', '/']));
            let help = jetforge(home.path()).args(&words).arg("--help").output().unwrap();
            let help = Run::from(help);
            assert_eq!(help.code, 0, "{unit}: {value}: {}", help.err);
            assert!(help.out.contains(&words.join(" ")), "{unit}: {value}: {}", help.out);
            for option in options {
                let option = option.split('=').next().unwrap();
                assert!(help.out.contains(option), "{unit}: {value} has no {option}");
            }
            n += 1;
        }
    }
    assert!(n >= 9, "{n} commands");
}

/// The program that the unit starts is where the package and `jetforge update` put it.
#[test]
fn an_update_is_where_the_unit_starts_it() {
    assert_eq!(values("jetforge.service", "ExecStart"), [format!("{STARTED} serve")]);
    let lines = read("jetforge.tmpfiles");
    assert!(lines.contains("\nL /var/lib/jetforge-update/current - - - - /usr/bin\n"), "{lines}");
    let pending = ["/var/lib/jetforge-update/pending"];
    assert_eq!(values("jetforge-update.path", "PathExists"), pending);
    assert_eq!(values("jetforge-update.service", "ExecStart"), [SHELL]);
    // Only the package's own program runs with rights, and the service can still start without.
    let pre = values("jetforge.service", "ExecStartPre");
    let begin = "-+/usr/bin/jetforge update begin --boot=%b";
    assert_eq!(pre, [begin, "/usr/bin/jetforge update state"], "the name that the watch goes by");
    // A program that is ready and hangs is seen by the watchdog before it counts as good.
    let watchdog: u64 = values("jetforge.service", "WatchdogSec")[0].parse().unwrap();
    assert!(jetforge::base::limits::UPDATE_SETTLE_S > watchdog);
    // What is given up at once is what the unit would not start again.
    assert_eq!(values("jetforge.service", "RestartPreventExitStatus"), ["2"]);
}

#[test]
fn what_a_unit_names_is_there() {
    let units = units();
    for (unit, text) in &units {
        for (_, key, value) in directives(text) {
            if ["After", "Before", "Wants", "Unit"].contains(&key.as_str()) {
                for name in value.split(' ').filter(|name| name.starts_with("jetforge")) {
                    assert!(units.contains_key(name), "{unit}: {key}={name}");
                }
            }
        }
    }
    let users = read("jetforge.sysusers");
    assert_eq!(values("jetforge.service", "User"), ["jetforge"]);
    assert!(users.contains("\nu jetforge "), "{users}");
    let socket = values("jetforge-power.socket", "ListenStream").remove(0);
    let asked = include_str!("../src/power/ask.rs");
    assert!(asked.contains(&format!("const SOCKET: &str = \"{}\"", &socket[1..])), "{socket}");
    let directories = read("jetforge.tmpfiles");
    let sandboxed = ["StateDirectory", "CacheDirectory", "LogsDirectory"];
    for (key, base) in sandboxed.into_iter().zip(["/var/lib", "/var/cache", "/var/log"]) {
        let name = values("jetforge.service", key).remove(0);
        let line = format!("d {base}/{name} 0750 jetforge jetforge");
        assert!(directories.contains(&line), "{line}");
    }
}

/// Whoever holds the service writes into its directories: what root goes by must not lie there.
#[test]
fn root_goes_by_nothing_that_the_service_can_write() {
    let own = "/var/lib/jetforge-root";
    assert!(read("jetforge.tmpfiles").contains(&format!("\nd {own} 0755 root root -\n")));
    for unit in ["jetforge-first-boot.service", "jetforge-restore.service"] {
        let condition = values(unit, "ConditionPathExists").remove(0);
        assert!(condition.trim_start_matches('!').starts_with(&format!("{own}/")), "{condition}");
    }
    for unit in ["jetforge-power@.service", "jetforge-tune.service"] {
        let places = values(unit, "ReadWritePaths").remove(0);
        let places: Vec<&str> = places.split(' ').filter(|path| path.starts_with("/var")).collect();
        assert_eq!(places, [own], "{unit}: where its journal lies");
    }
    for (unit, text) in units().iter().filter(|(_, text)| text.contains("\n[Service]\n")) {
        let is_over_all = ["CAP_DAC_OVERRIDE", "CAP_FOWNER"].iter().any(|cap| text.contains(cap));
        assert!(!is_over_all, "{unit}: what is another's is written as that one");
    }
    let wants = values("jetforge.service", "Wants").remove(0);
    assert!(wants.contains("jetforge-restore.service"), "{wants}");
    assert_eq!(values("jetforge-restore.service", "Before"), ["jetforge.service"]);
}

#[test]
fn the_key_of_the_first_boot_goes_to_no_journal() {
    let unit = "jetforge-first-boot.service";
    assert_eq!(values(unit, "StandardOutput"), ["journal"]);
    let start = values(unit, "ExecStart").remove(0);
    assert!(start.ends_with(" --console /dev/console"), "{start}");
}

#[test]
fn the_service_promises_what_the_docs_say() {
    let promises = [
        ("Type", "notify"),
        ("WatchdogSec", "60"),
        ("Restart", "on-failure"),
        ("StartLimitIntervalSec", "0"),
        ("LimitCORE", "0"),
        ("MemoryMax", "75%"),
        ("TasksMax", "640"),
        ("CapabilityBoundingSet", ""),
        ("NoNewPrivileges", "yes"),
        ("ProtectSystem", "strict"),
        ("DevicePolicy", "closed"),
    ];
    for (key, value) in promises {
        assert_eq!(values("jetforge.service", key), [value], "{key}");
    }
    let devices = values("jetforge.service", "DeviceAllow");
    for node in ["nvmap", "nvhost-ctrl", "nvhost-ctrl-gpu", "nvhost-gpu", "nvhost-as-gpu"] {
        assert!(devices.contains(&format!("/dev/{node} rw")), "{node}");
    }
    assert!(devices.contains(&"/dev/kmsg r".to_owned()), "where over-currents are told");
    // systemd waits longer for a stop than the service waits for requests in flight.
    let stop: u64 = values("jetforge.service", "TimeoutStopSec")[0].parse().unwrap();
    let home = tempfile::tempdir().unwrap();
    let show =
        Run::from(jetforge(home.path()).args(["config", "show", "--json"]).output().unwrap());
    let grace = show.json()["server.stop_grace_s"]["value"].as_u64();
    assert!(stop >= grace.unwrap_or(30) + 15, "{stop} {grace:?}");
}

/// What the board's package sets of the system; `jetpack/prove.sh` asks for it in force.
#[test]
fn the_boards_system_spares_its_card_and_starts_again() {
    let set = |name: &str, line: &str| {
        let text = read(name);
        assert!(text.lines().any(|own| own == line), "{name} has no {line:?}:\n{text}");
    };
    set("journald-jetforge.conf", "Storage=volatile");
    set("journald-jetforge.conf", "RuntimeMaxUse=16M");
    set("jetforge.sysctl", "vm.dirty_background_bytes = 16777216");
    set("jetforge.sysctl", "vm.dirty_bytes = 67108864");
    set("jetforge.sysctl", "kernel.panic = 10");
    set("system-jetforge.conf", "RuntimeWatchdogSec=30s");
    set("jetforge-tune.service", "ExecStart=/usr/bin/jetforge tune --memory --apply");
    set("jetforge-tune.service", "ExecStop=/usr/bin/jetforge tune --revert");
    // On a PC these are its owner's to choose.
    let script = include_str!("../jetpack/deb.sh");
    let (all, of_board) = script.split_once("[ \"$arch\" = arm64 ] || return 0\n").unwrap();
    let of_board = of_board.split_inclusive('\n').take_while(|line| *line != "}\n");
    let of_board: String = of_board.collect();
    for (name, place) in [
        ("jetforge.sysctl", "usr/lib/sysctl.d/60-jetforge.conf"),
        ("journald-jetforge.conf", "usr/lib/systemd/journald.conf.d/jetforge.conf"),
        ("system-jetforge.conf", "usr/lib/systemd/system.conf.d/jetforge.conf"),
    ] {
        assert!(of_board.contains(&format!("put systemd/{name} {place}\n")) && !all.contains(name));
    }
    let script = include_str!("../jetpack/deb/postinst");
    let on_board = "[ \"$arch\" != arm64 ] || units=\"jetforge-tune.service $units\"\n";
    assert!(script.contains(on_board), "{script}");
}

/// What a service may open is settled as it starts, so another one waits for the nodes before it.
#[test]
fn the_nodes_of_the_gpu_are_waited_for_before_the_service_is_confined() {
    let (unit, service) = ("jetforge-gpu.service", "jetforge.service");
    assert_eq!(values(unit, "ExecStart"), [SETTLE]);
    assert_eq!(values(unit, "Before"), [service]);
    // A PC does not wait.
    assert_eq!(values(unit, "ConditionPathExists"), ["/etc/nv_tegra_release"]);
    for key in ["After", "Wants"] {
        let named = values(service, key).join(" ");
        assert!(named.split(' ').any(|name| name == unit), "{key}: {named}");
    }
}

#[test]
fn the_packaged_configuration_is_taken_and_needs_a_key() {
    let home = tempfile::tempdir().unwrap();
    let config = folder().join("config.toml");
    let with = |args: &[&str]| {
        let mut command = jetforge(home.path());
        command.args(args).arg("--config").arg(&config);
        Run::from(command.output().unwrap())
    };
    let show = with(&["config", "show", "--changed"]);
    assert_eq!(show.code, 0, "{}", show.err);
    let lines =
        ["host = \"0.0.0.0\"", "also_ports = [8888]", "announce = true", "set_clocks = true"];
    for line in lines {
        assert!(show.out.contains(line), "{line}: {}", show.out);
    }
    let serve = with(&["serve"]);
    assert_ne!(serve.code, 0, "without a key it does not listen on the LAN");
    assert!(serve.err.contains("key"), "{}", serve.err);
}

/// The units in a folder of their own, with the binary of this build as their program.
fn staged() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let program = assert_cmd::cargo::cargo_bin!("jetforge").display().to_string();
    for (name, text) in units() {
        let text = text.replace("/usr/bin/jetforge", &program).replace(STARTED, &program);
        // A container has no udev.
        let text = text.replace("/bin/udevadm", "/bin/true");
        std::fs::write(dir.path().join(name), text).unwrap();
    }
    dir
}

#[test]
fn the_installed_systemd_finds_nothing_wrong_and_little_exposed() {
    let test = "systemd-analyze";
    let version = Command::new(test).arg("--version").output();
    let Ok(version) = version.map(|output| String::from_utf8_lossy(&output.stdout).into_owned())
    else {
        return skip(test, "systemd is not installed");
    };
    let dir = staged();
    let files: BTreeSet<PathBuf> = units().keys().map(|name| dir.path().join(name)).collect();
    // The colon stands for the system's own units.
    let path = format!("{}:", dir.path().display());
    let mut verify = Command::new(test);
    verify.args(["verify", "--man=no"]).args(&files).env("SYSTEMD_UNIT_PATH", path);
    let verify = Run::from(verify.output().unwrap());
    let ours: Vec<&str> = verify.err.lines().filter(|line| line.contains("jetforge")).collect();
    assert_eq!((verify.code, ours), (0, vec![]), "{}", verify.err);
    // `security` reads files since systemd 250.
    let number = version.split_whitespace().nth(1).and_then(|word| word.parse::<u32>().ok());
    if number.unwrap_or(0) < 250 {
        return skip(test, "`security --offline` needs systemd 250");
    }
    for unit in ["jetforge.service", "jetforge-power@.service", "jetforge-update.service"] {
        let tenths_max = 25;
        let mut security = Command::new(test);
        let threshold = format!("--threshold={tenths_max}");
        security.args(["security", "--offline=true", "--no-pager", &threshold]);
        let run = Run::from(security.arg(dir.path().join(unit)).output().unwrap());
        assert_eq!(run.code, 0, "{unit}: {}", run.out.lines().last().unwrap_or(""));
    }
}

/// Files under NVIDIA's names, and a package that is one by its control file alone.
fn downloads(dir: &Path) -> Option<[PathBuf; 3]> {
    let bsp = dir.join("Jetson-210_Linux_R32.7.6_aarch64.tbz2");
    let rootfs = dir.join("Tegra_Linux_Sample-Root-Filesystem_R32.7.6_aarch64.tbz2");
    std::fs::write(&bsp, "a driver package").unwrap();
    std::fs::write(&rootfs, "a root file system").unwrap();
    let control = "Package: jetforge\nVersion: 1\nArchitecture: arm64\nMaintainer: a <a@b.c>\n\
        Description: a stand-in\n";
    std::fs::create_dir_all(dir.join("deb/DEBIAN")).unwrap();
    std::fs::write(dir.join("deb/DEBIAN/control"), control).unwrap();
    let deb = dir.join("jetforge_1_arm64.deb");
    let mut pack = Command::new("dpkg-deb");
    let packed = pack.arg("-b").arg(dir.join("deb")).arg(&deb).output();
    packed.is_ok_and(|output| output.status.success()).then_some([bsp, rootfs, deb])
}

#[test]
fn the_image_is_planned_from_files_that_are_what_they_should_be() {
    let test = "image-dry-run";
    let dir = tempfile::tempdir().unwrap();
    let Some([bsp, rootfs, deb]) = downloads(dir.path()) else {
        return skip(test, "there is no dpkg-deb");
    };
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("jetpack/image.sh");
    let image = |options: &[&str]| {
        let mut command = Command::new(&script);
        command.arg("--dry-run").current_dir(dir.path()).arg("--bsp").arg(&bsp);
        command.arg("--rootfs").arg(&rootfs).arg("--deb").arg(&deb).args(options);
        Run::of(&mut command)
    };
    let sha256 = |text: &str| hex(&<sha2::Sha256 as sha2::Digest>::digest(text));
    let (bsp_hash, rootfs_hash) = (sha256("a driver package"), sha256("a root file system"));
    let right = ["--bsp-sha256", &bsp_hash, "--rootfs-sha256", &rootfs_hash];
    let wrong = image(&["--board", "nano-b01"]);
    assert!(wrong.err.contains("865717eed7076bab"), "the known hash: {}", wrong.err);
    let unknown = image(&["--board", "nano-b01", right[0], right[1]]);
    assert!(unknown.err.contains("--rootfs-sha256"), "{}", unknown.err);
    assert!(unknown.err.contains(&rootfs_hash), "{}", unknown.err);
    let refused = |options: &[&str], why: &str| {
        let run = image(&[&right[..], options].concat());
        assert!(run.code != 0 && run.err.contains(why), "{why}: {}", run.err);
    };
    refused(&["--board", "orin"], "--board is");
    refused(&["--board", "nano-b01", "--supply", "9v"], "--supply is");
    refused(&["--board", "nano-b01", "--user", "a b"], "--user is");
    refused(&["--board", "nano-b01", "--ssh-key", "none"], "none is not there");
    refused(&["--board", "nano-b01", "--deb", bsp.to_str().unwrap()], "no package of jetforge");
    for (board, creator) in [
        ("nano-b01", "-b jetson-nano -r 300"),
        ("nano-a02", "-b jetson-nano -r 200"),
        ("nano-2gb", "-b jetson-nano-2gb-devkit"),
    ] {
        let plan = image(&[&right[..], &["--board", board, "--write", "/dev/sdx"]].concat()).ok();
        let steps = ["apply_binaries.sh", "dpkg -i", "set-default multi-user", "-n jetson"];
        let places: Vec<_> = steps.iter().map(|step| plan.out.find(step)).collect();
        assert!(places.is_sorted() && places[0].is_some(), "{places:?}: {}", plan.out);
        assert!(plan.out.contains(creator), "{board}: {}", plan.out);
        assert!(plan.out.contains("Everything on /dev/sdx will be gone"), "{}", plan.out);
    }
    // Whose password is locked has to become root without one.
    let key = bsp.to_str().unwrap();
    let plan = image(&[&right[..], &["--board", "nano-b01", "--ssh-key", key]].concat()).ok();
    assert!(plan.out.contains("NOPASSWD: ALL") && plan.out.contains("sudoers.d/"), "{}", plan.out);
    let left: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().path()).collect();
    assert_eq!(left.len(), 4, "nothing was made: {left:?}");
}

/// What `jetpack/cross.sh` looks for in the board's program, on a disassembly that has it all.
#[test]
fn instructions_that_the_board_lacks_are_found_in_a_disassembly() {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("jetpack/instructions.awk");
    let dir = tempfile::tempdir().unwrap();
    let text = dir.path().join("disassembly");
    let found = |function: &str, lines: &str| {
        let lines = lines.replace("; ", "\n4:\t").replace(' ', "\t");
        std::fs::write(&text, format!("0000 <{function}>:\n0:\t{lines}\n")).unwrap();
        let output = Command::new("awk").arg("-f").arg(&script).arg(&text).output().ok()?;
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Some(String::from_utf8(output.stdout).unwrap())
    };
    let all = "ldaddal w0,w1,[x2]; casp x0,x1; swpb w0,w1,[x2]; stadd w0,[x1]; ldapr x0,[x1]; \
        sdot v0.4s,v1.16b,v2.16b; fadd h0,h1,h2; fmla v0.8h,v1.8h; add z0.s,z0.s,z1.s";
    let Some(lacking) = found("sums", all) else {
        return skip("instructions", "there is no awk");
    };
    let names: Vec<&str> = lacking.lines().filter_map(|line| line.strip_prefix("sums ")).collect();
    let expected = ["ldaddal", "casp", "swpb", "stadd", "ldapr", "sdot", "fadd", "fmla", "add"];
    assert_eq!(names, expected);
    let plain = "fcvt s0,h1; fcvtl v0.4s,v1.4h; add v0.8h,v1.8h; bfi w0,w1; ldr h0,[x1]; sub x0,x1";
    assert_eq!(found("sums", plain).unwrap(), "");
    let asked = found("__aarch64_ldadd4_acq_rel", "ldaddal w0,w0,[x1]").unwrap();
    assert_eq!(asked, "", "both forms are there, and the processor was asked");
    let kernel = "_RINvNtNtNtNtCs_8jetforge9inference7backend3cpu6matmul14panels_dotprodE";
    assert_eq!(found(kernel, "sdot v0.4s,v1.16b,v2.4b[1]").unwrap(), "", "it is taken where it is");
}

/// What `docs/flashing.md` quotes is what the script says.
#[test]
fn the_guide_quotes_the_script() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let guide = std::fs::read_to_string(root.join("docs/flashing.md")).unwrap();
    let script = std::fs::read_to_string(root.join("jetpack/image.sh")).unwrap();
    for words in [
        "no hash is known of",
        "compare it with what NVIDIA's page says, or with another download, and give it as",
        "NVIDIA's license is on the page of the files, and beside them in",
        "Do you accept it?",
        "to go on:",
        "Everything on",
        "will be gone.",
        "Password for",
    ] {
        assert!(guide.contains(words), "the guide has no {words:?}");
        assert!(script.contains(words), "the script does not say {words:?}");
    }
    for option in ["--board", "--supply", "--ssh-key", "--user", "--keep-desktop", "--write"] {
        assert!(guide.contains(option) && script.contains(option), "{option}");
    }
}
