//! `jetpack/image.sh` from the files to an image, with stand-ins for NVIDIA's files and tools and
//! for what only root on an arm64 system can do. What is left of it: the order of its steps, what
//! it calls them with, and what is in the image at the end.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use crate::support::run::Run;
use crate::support::skip::skip;

/// Programs in the place of the system's. `chroot` unpacks a package, makes the list of packages
/// that have to stay, which is empty, and else only tells.
const FAKES: [(&str, &str); 3] = [
    ("id", "echo 0"),
    ("uname", "echo aarch64"),
    (
        "chroot",
        "echo \"chroot $*\" >>\"$STAND_IN_CALLS\"\n\
         case \"$*\" in *'dpkg -i /root/jetforge.deb')\n\
         dpkg-deb -x \"$1/root/jetforge.deb\" \"$1\"; [ -x \"$1/usr/sbin/policy-rc.d\" ] ;;\n\
         *'>/root/stayed'*) : >\"$1/root/stayed\" ;;\n\
         esac",
    ),
];

fn write(path: &Path, text: &str) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, text).unwrap();
}

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The stand-ins' files in `dir`, as options of the script.
fn files(dir: &Path) -> Vec<String> {
    let control = "Package: jetforge\nVersion: 1\nArchitecture: arm64\nMaintainer: a <a@b.c>\n\
        Description: a stand-in\n";
    write(&dir.join("deb/DEBIAN/control"), control);
    write(&dir.join("deb/usr/bin/jetforge"), "a program");
    write(&dir.join("deb/etc/jetforge/config.d/README"), "");
    let deb = dir.join("jetforge_1_arm64.deb");
    Run::of(Command::new("dpkg-deb").arg("-b").arg(dir.join("deb")).arg(&deb)).ok();
    for (name, text) in [
        ("etc/machine-id", "0123\n"),
        ("etc/ssh/ssh_host_ed25519_key", "a key that all cards would share"),
        ("etc/sudoers.d/keep", ""),
        ("etc/systemd/system/keep", ""),
        ("usr/sbin/keep", ""),
        ("root/keep", ""),
        ("var/lib/jetforge-root/first-boot.done", ""),
    ] {
        write(&dir.join("root").join(name), text);
    }
    let tar = dir.join("root.tar");
    Run::of(Command::new("tar").arg("-C").arg(dir.join("root")).arg("-cf").arg(&tar).arg(".")).ok();
    let script = repository().join("jetpack/image/stand_in.sh");
    let sums = Run::of(Command::new(script).arg(&tar).arg(dir.join("nvidia"))).ok().out;
    let mut options = vec!["--deb".to_owned(), deb.display().to_string()];
    for (option, line) in ["bsp", "rootfs"].into_iter().zip(sums.lines()) {
        let (sum, name) = line.split_once("  ").unwrap();
        let file = dir.join("nvidia").join(name).display().to_string();
        options.extend([format!("--{option}"), file, format!("--{option}-sha256"), sum.to_owned()]);
    }
    options
}

/// CRC-32, as a GPT has it.
fn crc32(bytes: &[u8]) -> u32 {
    let step = |crc: u32, _| if crc & 1 == 1 { (crc >> 1) ^ 0xedb8_8320 } else { crc >> 1 };
    !bytes.iter().fold(!0, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), step))
}

/// Number, name, first byte and bytes of each partition of a disk.
fn partitions(disk: &[u8]) -> Vec<(usize, String, usize, usize)> {
    let word = |at: usize| u32::from_le_bytes(disk[at..at + 4].try_into().unwrap());
    let long = |at: usize| u64::from_le_bytes(disk[at..at + 8].try_into().unwrap()) as usize;
    assert_eq!(&disk[512..520], b"EFI PART");
    let mut header = disk[512..604].to_vec();
    header[16..20].fill(0);
    assert_eq!(crc32(&header), word(528), "the header's sum");
    let table = long(512 + 72) * 512;
    assert_eq!(crc32(&disk[table..table + 128 * 128]), word(512 + 88), "the table's sum");
    let part = |(number, at): (usize, usize)| {
        let name = disk[at + 56..at + 128].chunks(2).map(|c| u16::from_le_bytes([c[0], c[1]]));
        let name = String::from_utf16(&name.collect::<Vec<_>>()).unwrap();
        let (from, to) = (long(at + 32) * 512, (long(at + 40) + 1) * 512);
        (number, name.trim_end_matches('\0').to_owned(), from, to - from)
    };
    let entries = (0..128).map(|i| (i + 1, table + i * 128));
    entries.filter(|(_, at)| disk[*at..at + 16].iter().any(|b| *b != 0)).map(part).collect()
}

/// A file system that is looked into.
struct Ext4<'p>(&'p Path);

impl Ext4<'_> {
    fn ask(&self, what: &str) -> String {
        let run = Run::of(Command::new("debugfs").args(["-R", what]).arg(self.0));
        run.out + &run.err
    }

    fn has(&self, path: &str, text: &str) {
        let found = self.ask(&format!("cat {path}"));
        assert!(found.contains(text), "{path}: {found}");
    }
}

/// One run of the script in `dir`, in which it finds its stand-ins; what it said and what was
/// called.
fn make(dir: &Path, options: &[&str]) -> (Run, String) {
    let (fakes, calls) = (dir.join("fakes"), dir.join("calls"));
    for (name, text) in FAKES {
        write(&fakes.join(name), &format!("#!/bin/sh\n{text}\n"));
        let mode = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(fakes.join(name), mode).unwrap();
    }
    let mut command = Command::new(repository().join("jetpack/image.sh"));
    let path = format!("{}:{}", fakes.display(), std::env::var("PATH").unwrap());
    command.current_dir(dir).env("PATH", path).env("STAND_IN_CALLS", &calls);
    command.env("STAND_IN_SIZE", "24M").args(files(dir)).args(options);
    let run = Run::of(command.arg("--work").arg(dir.join("work"))).ok();
    (run, std::fs::read_to_string(calls).unwrap())
}

#[test]
fn an_image_is_made_and_has_what_the_board_needs() {
    let test = "image-run";
    let tools = [("dpkg-deb", "--version"), ("mke2fs", "-V"), ("debugfs", "-V"), ("python3", "-V")];
    for (tool, option) in tools {
        if !Command::new(tool).arg(option).output().is_ok_and(|output| output.status.success()) {
            return skip(test, &format!("there is no {tool}"));
        }
    }
    let dir = tempfile::tempdir().unwrap();
    write(&dir.path().join("id.pub"), "ssh-ed25519 AAAA me\n");
    let options =
        ["--board", "nano-b01", "--supply", "5w", "--accept-license", "--ssh-key", "id.pub"];
    let (run, calls) = make(dir.path(), &options);
    let steps = [
        "apply_binaries.sh",
        "dpkg -i /root/jetforge.deb",
        "systemctl enable jetforge-card.service",
        "systemctl set-default multi-user.target",
        "l4t_create_default_user.sh -u jetson -p ",
        "usermod -L jetson",
        "systemctl is-enabled jetforge.service",
        "jetson-disk-image-creator.sh -o ",
    ];
    let places: Vec<_> = steps.iter().map(|step| calls.find(step)).collect();
    assert!(places.iter().all(Option::is_some) && places.is_sorted(), "{places:?}: {calls}");
    assert!(calls.contains("sd.img -b jetson-nano -r 300\n"), "{calls}");
    assert!(calls.contains("-n jetson --accept-license\n"), "{calls}");
    let sum = std::fs::read_to_string(dir.path().join("jetforge-nano-b01.img.sha256")).unwrap();
    assert!(run.out.contains(sum.trim()), "its sum is told and kept: {sum}");

    let disk = std::fs::read(dir.path().join("jetforge-nano-b01.img")).unwrap();
    let parts = partitions(&disk);
    let names: Vec<(usize, &str)> = parts.iter().map(|part| (part.0, &*part.1)).collect();
    assert_eq!(names, [(1, "APP"), (2, "TBC"), (3, "RP1")]);
    let (_, _, at, n) = parts[0];
    assert!(parts[1..].iter().all(|part| part.2 + part.3 <= at), "it can grow: {parts:?}");
    let file = dir.path().join("app.ext4");
    std::fs::write(&file, &disk[at..at + n]).unwrap();
    let root = Ext4(&file);
    root.has("/usr/bin/jetforge", "a program");
    root.has("/etc/jetforge/config.d/05-supply.toml", "supply = \"5w\"");
    root.has("/etc/nvpmodel.conf", "DEFAULT=1");
    root.has("/home/jetson/.ssh/authorized_keys", "AAAA");
    root.has("/etc/sudoers.d/jetforge-owner", "jetson ALL");
    root.has("/etc/systemd/system/jetforge-card.service", "prepare-card");
    root.has("/usr/lib/jetforge/prepare-card", "resize2fs");
    root.has("/etc/hostname", "jetson");
    for gone in [
        "/etc/ssh/ssh_host_ed25519_key",
        "/usr/sbin/policy-rc.d",
        "/root/jetforge.deb",
        "/root/stayed",
        "/var/lib/jetforge-root/first-boot.done",
    ] {
        let found = root.ask(&format!("stat {gone}"));
        assert!(found.contains("not found"), "{gone} is in the image: {found}");
    }
    let id = root.ask("stat /etc/machine-id");
    assert!(id.contains("Size: 0"), "each board gets an id of its own: {id}");
}
