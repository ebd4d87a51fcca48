//! What root does on a machine with the service, whose state belongs to another user.
//!
//! Each test of the program has a mount namespace of its own, where the service's directories are
//! fresh and the unit of the package is there. Nobody's user stands for the service's.

use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::process::Command;

use jetforge::base::owner::{as_owner_of, become_owner_of, is_root};
use rustix::process::{Uid, geteuid};
use rustix::thread::set_thread_res_uid;

use crate::support::run::Run;
use crate::support::skip::skip;

/// Makes the directories as the package does; `root` and `service` run the program.
const STAGE: &str = r#"
set -e
mount --make-rprivate /
for dir in /var/lib /var/cache /mnt; do mount -t tmpfs none $dir; done
mkdir /mnt/upper /mnt/work /mnt/units /mnt/units.work
mount -t overlay none -o lowerdir=/etc,upperdir=/mnt/upper,workdir=/mnt/work /etc
mount -t overlay none -o lowerdir=/lib/systemd/system,upperdir=/mnt/units,workdir=/mnt/units.work \
    /lib/systemd/system
touch /lib/systemd/system/jetforge.service /var/cache/jf
mount --bind "$PROGRAM" /var/cache/jf
rm -rf /etc/jetforge
mkdir -p /etc/jetforge/config.d /var/lib/jetforge /var/lib/jetforge-root /var/cache/jetforge
chmod 750 /var/lib/jetforge /var/cache/jetforge
chown 65534:65534 /var/lib/jetforge /var/cache/jetforge
unset JETFORGE_ROLE
export LC_ALL=C
root() { /var/cache/jf "$@"; }
service() {
    JETFORGE_ROLE=service setpriv --reuid 65534 --regid 65534 --clear-groups /var/cache/jf "$@"
}
first_boot() {
    mkdir -p /mnt/root/etc
    echo nano >/mnt/root/etc/hostname
    root first-boot --root /mnt/root "$@"
}
"#;

/// Runs a script on such a machine. `None` where that cannot be had.
fn on_a_machine(test: &str, script: &str) -> Option<Run> {
    let mut mount = Command::new("unshare");
    mount.args(["--mount", "mount", "-t", "tmpfs", "none", "/mnt"]);
    if !mount.output().is_ok_and(|output| output.status.success()) {
        skip(test, "only root has mounts of its own");
        return None;
    }
    if !std::path::Path::new("/lib/systemd/system").is_dir() {
        skip(test, "there is no folder of units");
        return None;
    }
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", &format!("{STAGE}{script}")]);
    command.env("PROGRAM", assert_cmd::cargo::cargo_bin!("jetforge")).env("HOME", "/mnt/home");
    command.env("MODEL", concat!(env!("CARGO_MANIFEST_DIR"), "/models/default.gguf"));
    Some(Run::of(&mut command))
}

/// A folder of root's that everybody can reach, and in it one of somebody else's, `theirs`.
fn folders(test: &str) -> Option<tempfile::TempDir> {
    if !is_root() {
        skip(test, "only root becomes somebody else");
        return None;
    }
    let dir = tempfile::tempdir().unwrap();
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    std::fs::create_dir(dir.path().join("theirs")).unwrap();
    chown(dir.path().join("theirs"), Some(65_534), Some(65_534)).unwrap();
    Some(dir)
}

#[test]
fn root_writes_as_who_owns_the_folder_and_is_root_again() {
    let Some(dir) = folders("root-as-owner") else { return };
    let private = tempfile::tempdir().unwrap();
    let secret = private.path().join("secret");
    std::fs::write(&secret, "root's").unwrap();
    std::fs::set_permissions(&secret, std::fs::Permissions::from_mode(0o600)).unwrap();
    let theirs = dir.path().join("theirs");
    let (file, link) = (theirs.join("in/it/file"), theirs.join("link"));
    symlink(&secret, &link).unwrap();
    let read = as_owner_of(&theirs.join("in/it"), || {
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(&file, "theirs").unwrap();
        std::fs::read_to_string(&link)
    });
    assert_eq!(read.unwrap().unwrap_err().kind(), io::ErrorKind::PermissionDenied);
    let owner = std::fs::metadata(&file).unwrap();
    assert_eq!((owner.uid(), owner.gid()), (65_534, 65_534));
    assert_eq!(std::fs::read_to_string(&link).unwrap(), "root's", "root again");
    assert!(is_root() && as_owner_of(private.path(), is_root).unwrap(), "root's own folder");
}

#[test]
fn below_a_folder_of_somebody_elses_all_is_that_ones() {
    let Some(dir) = folders("root-and-owners") else { return };
    let path = |name: &str| dir.path().join(name);
    for (link, target) in [
        ("theirs/link", dir.path()),
        ("link", "theirs".as_ref()),
        ("up", "theirs/..".as_ref()),
        ("round", "round".as_ref()),
    ] {
        symlink(target, path(link)).unwrap();
    }
    std::fs::create_dir(path("theirs/roots")).unwrap();
    std::fs::create_dir(path("own")).unwrap();
    symlink("own", path("to-own")).unwrap();
    let who = |name: &str| as_owner_of(&path(name), || geteuid().as_raw()).ok();
    for name in ["theirs", "theirs/new/one", "theirs/link", "theirs/link/own", "theirs/roots"] {
        assert_eq!(who(name), Some(65_534), "{name}");
    }
    for (name, uid) in [("own", 0), ("new/one", 0), ("to-own", 0), ("link", 65_534)] {
        assert_eq!(who(name), Some(uid), "{name}");
    }
    assert_eq!(who("up/own"), Some(65_534), "the way leads through what is theirs");
    assert_eq!(who("round"), None, "nobody knows where that leads");
}

#[test]
fn who_became_somebody_else_stays_it() {
    let Some(dir) = folders("root-for-good") else { return };
    let file = dir.path().join("theirs/file");
    let place = file.clone();
    // The rights are a thread's, so the other tests keep theirs.
    let left = std::thread::spawn(move || {
        become_owner_of(place.parent().unwrap()).unwrap();
        std::fs::write(&place, "").unwrap();
        set_thread_res_uid(None, Uid::ROOT, None).is_err() && !is_root()
    });
    assert!(left.join().unwrap());
    assert_eq!(std::fs::metadata(file).unwrap().uid(), 65_534);
    assert!(is_root());
}

#[test]
fn what_root_makes_for_the_service_the_service_reads() {
    let script = r#"
first_boot >/mnt/card
root key create guest >/dev/null
root pair >/dev/null
root power eco
service key list --json
find /var/lib/jetforge ! -user 65534
stat -c '%n %U %a' /var/lib/jetforge-root/first-boot.done
service config show --changed >/dev/null
! ls /mnt/home 2>/dev/null
"#;
    let Some(run) = on_a_machine("root-and-service", script) else { return };
    let out = run.ok().out;
    let (keys, rest) = out.split_once('\n').unwrap();
    assert!(keys.contains("owner") && keys.contains("guest"), "{keys}");
    assert_eq!(rest, "/var/lib/jetforge-root/first-boot.done root 600\n", "all is the service's");
}

#[test]
fn what_root_restores_the_service_reads() {
    let script = r#"
first_boot >/dev/null
echo '[model]
n_ctx = 512' >/etc/jetforge/config.toml
service export /var/cache/jetforge/before
root backup /mnt/all.backup
rm -rf /etc/jetforge/* /var/lib/jetforge/* /var/lib/jetforge-root/*
umask 077
root restore /mnt/all.backup
stat -c '%U %a %n' /etc/jetforge/config.toml /etc/jetforge/first-boot.txt
find /var/lib/jetforge ! -user 65534
service export /var/cache/jetforge/after
service config show --changed
service key list --json
"#;
    let Some(run) = on_a_machine("root-restores", script) else { return };
    let out = run.ok().out;
    let first = "root 644 /etc/jetforge/config.toml\nroot 600 /etc/jetforge/first-boot.txt\n";
    assert!(out.starts_with(first), "{out}");
    assert!(!out.contains("/var/lib/jetforge/"), "all is the service's: {out}");
    assert!(out.contains("n_ctx = 512") && out.contains("\"owner\""), "{out}");
}

#[test]
fn a_restore_that_was_cut_is_finished_by_root_and_the_service_waits_for_that() {
    let script = r#"
first_boot >/dev/null
root backup /mnt/all.backup
rm -rf /var/lib/jetforge/*
mkdir -m 700 /var/lib/jetforge-root/restore.next
tar -x --no-same-owner -C /var/lib/jetforge-root/restore.next -f /mnt/all.backup
mv /var/lib/jetforge-root/restore.next/SHA256SUMS /var/lib/jetforge-root/restore.pending
code=0; service serve --port 0 || code=$?
echo "code $code"
root restore --finish
ls /var/lib/jetforge-root
find /var/lib/jetforge ! -user 65534
service key list --json
"#;
    let Some(run) = on_a_machine("root-finishes", script) else { return };
    assert!(run.err.contains("jetforge restore --finish"), "{}", run.err);
    let out = run.ok().out;
    // Not 2, after which the service's unit would not try again.
    assert!(out.starts_with("code 1\nfirst-boot.done\n{"), "{out}");
    assert!(out.contains("\"owner\""), "{out}");
}

#[test]
fn what_the_service_leaves_about_leads_root_nowhere() {
    let script = r#"
mkdir /mnt/secret /mnt/target /mnt/theirs
echo secret >/mnt/secret/file && chmod 600 /mnt/secret/file
cd /var/lib/jetforge
# As somebody who holds the service would leave it for the next start as root.
mkdir -p restore.next/config restore.next/state
ln -s /mnt/target x
ln -s /mnt/secret restore.next/state/taken
echo evil >restore.next/config/evil.toml
touch restore.pending reset.pending first-boot.done
for name in keys.json keys.json.next keys.lock pair.json state.lock power.journal.json; do
    ln -sf /mnt/secret/file $name
done
chown -hR 65534:65534 .
cd /
first_boot >/dev/null 2>&1 || echo "refused"
root key create guest >/dev/null 2>&1 || echo "refused"
cat /mnt/secret/file
stat -c '%U %a' /mnt/secret/file
ls /mnt/target /etc/jetforge /var/lib/jetforge-root
"#;
    let Some(run) = on_a_machine("root-and-links", script) else { return };
    let out = run.ok().out;
    let folders = "/etc/jetforge:\nconfig.d\n\n/mnt/target:\n\n/var/lib/jetforge-root:\n";
    let expected = format!("refused\nrefused\nsecret\nroot 600\n{folders}");
    assert_eq!(out, expected, "nothing was written, moved or given");
}

#[test]
fn what_root_puts_into_the_store_of_models_is_the_services() {
    let script = r#"
mkdir -m 700 /mnt/stick /mnt/secret
cp "$MODEL" /mnt/stick/m.gguf
echo secret >/mnt/secret/file
mkdir /var/lib/jetforge/models
cd /var/lib/jetforge/models
leave() {
    for name in "$@"; do ln -s /mnt/secret/file $name; done
    chown -hR 65534:65534 .
}
import() { root models import /mnt/stick/m.gguf >/dev/null 2>&1; }
make() { root setup-model --model mine --from /mnt/stick/m.gguf >/dev/null 2>&1; }
shrink() {
    root quantize /mnt/stick/m.gguf $PWD/n.gguf Q5_0 --allow-requantize >/dev/null 2>&1
}
leave .m.gguf.part mine-q4.gguf.partial n.gguf.partial
import || echo refused
make || echo refused
shrink || echo refused
rm -f .m.gguf.part *.partial
leave .m.gguf.json .mine-q4.gguf.json .mine-q4.gguf.preset.json
import
make
shrink
root models verify mine-q4 >/dev/null 2>&1
cat /mnt/secret/file
find . ! -user 65534
ls -A
service models verify >/dev/null
root models remove m mine-q4 n 2>/dev/null
ls -A
"#;
    let Some(run) = on_a_machine("root-and-models", script) else { return };
    let files = "m.gguf\nmine-q4.gguf\nn.gguf\n";
    let hidden = ".m.gguf.json\n.mine-q4.gguf.json\n.mine-q4.gguf.preset.json\n";
    let expected = format!("refused\nrefused\nrefused\nsecret\n{hidden}{files}");
    assert_eq!(run.ok().out, expected);
}

#[test]
fn a_reset_takes_nothing_that_the_service_only_points_at() {
    let script = r#"
mkdir /mnt/target
echo kept >/mnt/target/file
first_boot >/dev/null 2>&1
ln -s /mnt/target /var/lib/jetforge/models
echo '[library]
dir = "/mnt/target"
[model]
n_ctx = 512' >/var/lib/jetforge/config.put.toml
chown -h 65534:65534 /var/lib/jetforge/*
root config show --changed
root reset --yes --models 2>/dev/null
cat /mnt/target/file
ls -A /var/lib/jetforge
"#;
    let Some(run) = on_a_machine("root-resets", script) else { return };
    let out = run.ok().out;
    assert!(out.contains("n_ctx = 512") && !out.contains("/mnt/target"), "{out}");
    assert!(out.ends_with("kept\n"), "{out}");
}

#[test]
fn a_first_start_on_a_root_that_cannot_be_written_makes_a_key_all_the_same() {
    let script = r#"
mkdir -p /mnt/root/etc /var/lib/jetforge/models
echo jetson >/mnt/root/etc/hostname
cp "$MODEL" /var/lib/jetforge/models/m.gguf
mount --bind /mnt/root/etc /mnt/root/etc
mount -o remount,bind,ro /mnt/root/etc
mount -o remount,ro /etc
! touch /etc/x 2>/dev/null
first() { root first-boot --root /mnt/root "$@"; }
first
service key list --json
stat -c '%n %U %a' /var/lib/jetforge-root/*
cat /mnt/root/etc/hostname
first
root reset --yes
ls -A /var/lib/jetforge /var/lib/jetforge-root
first >/dev/null
mount -o remount,rw /etc
first --again >/dev/null
ls -A /var/lib/jetforge-root /etc/jetforge
mount -o remount,ro /etc
root reset --yes
ls -A /var/lib/jetforge /var/lib/jetforge-root
first >/dev/null
ls -A /var/lib/jetforge-root
"#;
    let Some(run) = on_a_machine("root-read-only", script) else { return };
    for told in ["hostname cannot be written", "10-first-boot.toml cannot be", "set up before"] {
        assert!(run.err.contains(told), "{told}: {}", run.err);
    }
    assert!(run.err.contains("jetforge-root/first-boot.txt"), "{}", run.err);
    // And where it became so after its first start.
    for told in ["10-first-boot.toml cannot be removed", "its key opens nothing any more"] {
        assert!(run.err.contains(told), "{told}: {}", run.err);
    }
    let out = run.ok().out;
    let (card, rest) = out.split_once("{\"keys\"").unwrap();
    assert!(card.starts_with("JetForge on jetson\n") && card.contains("API key"), "{card}");
    assert!(card.contains("the one in the program"), "{card}");
    let (keys, rest) = rest.split_once('\n').unwrap();
    assert!(keys.contains("\"owner\""), "{keys}");
    let root = "/var/lib/jetforge-root";
    let kept = format!("{root}/first-boot.done root 600\n{root}/first-boot.txt root 600\njetson\n");
    let forgotten = format!("/var/lib/jetforge:\nmodels\n\n{root}:\n");
    let moved = format!("/etc/jetforge:\nconfig.d\nfirst-boot.txt\n\n{root}:\nfirst-boot.done\n");
    let beside = "first-boot.done\nfirst-boot.txt\n";
    assert_eq!(rest, format!("{kept}{forgotten}{moved}{forgotten}{beside}"));
}

#[test]
fn a_first_start_whose_state_cannot_be_written_says_what_to_do_and_does_nothing() {
    let script = r#"
mkdir -p /mnt/root/etc
echo jetson >/mnt/root/etc/hostname
for dir in /var/lib/jetforge /var/lib/jetforge-root; do
    mount --bind $dir $dir
    mount -o remount,bind,ro $dir
    code=0; root first-boot --root /mnt/root || code=$?
    echo "code $code"
    umount $dir
done
cat /mnt/root/etc/hostname
ls -A /var/lib/jetforge /var/lib/jetforge-root /etc/jetforge
root first-boot --root /mnt/root | sed -n 's/^\(API key\).*/\1/p'
"#;
    let Some(run) = on_a_machine("root-no-state", script) else { return };
    let told = "/var/lib/jetforge has to take files for good";
    assert!(run.err.contains(told) && run.err.contains("Read-only file system"), "{}", run.err);
    assert!(run.err.contains("/var/lib/jetforge-root has to take"), "{}", run.err);
    let folders = "/etc/jetforge:\nconfig.d\n\n/var/lib/jetforge:\n\n/var/lib/jetforge-root:\n";
    let expected = format!("code 1\ncode 1\njetson\n{folders}API key\n");
    assert_eq!(run.ok().out, expected);
}
