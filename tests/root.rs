//! What root does on a machine with the service, whose state belongs to another user.
//!
//! Each test has a mount namespace of its own, where the service's directories are fresh and the
//! unit of the package is there. Nobody's user stands for the service's.

use std::process::Command;

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
    Some(Run::of(&mut command))
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
