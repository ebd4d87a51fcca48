//! `jetforge update` as whoever makes releases, the owner and the units call it, on a folder that
//! stands in for the system. A program that is tried is never started here.

use std::path::PathBuf;

use crate::cli::jetforge;
use crate::support::run::Run;
use crate::support::skip::skip;

/// A system with a package, and a stick.
struct System {
    home: tempfile::TempDir,
    root: tempfile::TempDir,
}

impl System {
    fn new() -> System {
        let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let [home, root] = dirs;
        let system = System { home, root };
        for dir in ["usr/bin", "usr/lib/jetforge", "etc/jetforge", "stick"] {
            std::fs::create_dir_all(system.path(dir)).unwrap();
        }
        std::fs::write(system.path("usr/bin/jetforge"), "packaged").unwrap();
        std::fs::write(system.path("usr/lib/jetforge/version"), "1.0+5.abc\n").unwrap();
        system
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    fn update(&self, args: &[&str]) -> Run {
        self.update_in(args, &[])
    }

    fn update_in(&self, args: &[&str], variables: &[(&str, &str)]) -> Run {
        let mut command = jetforge(self.home.path());
        command.arg("update").args(args).arg("--root").arg(self.root.path());
        Run::of(command.envs(variables.iter().copied()))
    }

    /// Signs a program that is one by its header alone.
    fn release(&self, version: &str, options: &[&str]) -> Run {
        let mut program = b"\x7fELF\x02\x01".to_vec();
        program.resize(18, 0);
        program.extend(if cfg!(target_arch = "aarch64") { [183, 0] } else { [62, 0] });
        program.extend(version.bytes());
        let [file, key] = ["built", "secret"].map(|name| self.path(name));
        std::fs::write(&file, program).unwrap();
        let to = self.path(&format!("stick/jetforge-{version}.update"));
        let [file, key, to] = [file, key, to].map(|path| path.display().to_string());
        let args = ["sign", &file, "--key", &key, "--version", version, "--glibc", "2.27"];
        self.update(&[&args[..], &["--output", &to], options].concat())
    }

    fn trust(&self) {
        let secret = self.path("secret").display().to_string();
        let line = self.update(&["keygen", &secret, "--name", "us"]).ok().out;
        std::fs::write(self.path("etc/jetforge/update.keys"), line).unwrap();
    }

    fn stick(&self) -> String {
        self.path("stick").display().to_string()
    }

    fn started(&self) -> String {
        let bytes = std::fs::read(self.path("var/lib/jetforge-update/current/jetforge")).unwrap();
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

#[test]
fn without_a_key_nothing_is_taken_and_it_says_what_to_do() {
    let system = System::new();
    let refused = system.update(&["apply", &system.stick()]);
    assert_eq!(refused.code, 2, "{}", refused.err);
    assert!(refused.err.contains("update.keys") && refused.err.contains("keygen"));
    let status = system.update(&["status"]).ok();
    assert!(status.out.contains("package") && status.out.contains("1.0+5.abc"), "{}", status.out);
    assert!(status.err.contains("keygen"), "{}", status.err);
}

#[test]
fn an_update_from_a_stick_is_checked_tried_and_taken_back() {
    let system = System::new();
    system.trust();
    system.release("1.2", &[]).ok();
    system.release("1.1", &[]).ok();
    let checked = system.update(&["check", &system.stick(), "--json"]).json();
    assert_eq!(
        (&checked["manifest"]["version"], &checked["signer"]),
        (&"1.2".into(), &"us".into())
    );
    assert!(!system.path("var/lib/jetforge-update").exists(), "a look changes nothing");
    let applied = system.update(&["apply", &system.stick()]).ok();
    assert!(applied.err.contains("1.2 lies in slot a"), "{}", applied.err);
    assert!(applied.err.contains("next start"), "no systemd runs there: {}", applied.err);
    assert_eq!(system.update(&["watch"]).code, 0, "a start is wanted");
    let begun = system.update(&["begin", "--boot=today"]).ok();
    assert!(begun.err.contains("1.2 is tried, start 1"), "{}", begun.err);
    assert!(system.started().ends_with("1.2"));
    let status = system.update(&["status", "--json"]).json();
    assert_eq!(status["record"]["trial"]["version"], "1.2");
    assert_eq!(
        status["record"]["trial"]["boot"], "today",
        "as systemd calls it, in a container too"
    );
    assert_eq!((&status["started"], &status["takes_updates"]), (&"a".into(), &true.into()));
    // As systemd tells it of a program that does not take the configuration. Of a start that did
    // not come to the program, 237 tells how an earlier one ended.
    let ended = [("SERVICE_RESULT", "exit-code"), ("EXIT_CODE", "exited"), ("EXIT_STATUS", "2")];
    let said = system.update_in(&["ended"], &ended).ok();
    assert!(!said.err.contains("given up"), "{}", said.err);
    system.update(&["begin"]).ok();
    system.update(&["state"]).ok();
    let said = system.update_in(&["ended"], &ended).ok();
    assert!(said.err.contains("1.2 was given up"), "{}", said.err);
    assert_eq!(system.update(&["watch"]).code, 0, "the unit would not start it again");
    assert_eq!(system.update(&["watch"]).code, 7, "and that is all");
    system.update(&["begin"]).ok();
    assert_eq!(system.started(), "packaged");
    let status = system.update(&["status"]).ok();
    assert!(status.err.contains("1.2 was given up") && status.err.contains("configuration"));
    assert_eq!(system.update(&["rollback"]).code, 2, "nothing ran before");
}

#[test]
fn what_does_not_fit_this_machine_is_refused_by_name() {
    let system = System::new();
    system.trust();
    let refused = |version: &str, options: &[&str], code: i32, why: &str| {
        system.release(version, options).ok();
        let file = system.path(&format!("stick/jetforge-{version}.update"));
        let run = system.update(&["apply", &file.display().to_string()]);
        assert_eq!(run.code, code, "{version}: {}", run.err);
        assert!(run.err.contains(why), "{version}: {}", run.err);
        assert!(!system.path("var/lib/jetforge-update/record.json").exists(), "{version}");
    };
    refused("0.9", &[], 2, "--force-older");
    refused("1.0+5.def", &[], 2, "runs already");
    refused("3", &["--upgrades-from", "2"], 2, "install 2 first");
    refused("4", &["--glibc", "99"], 2, "needs glibc 99");
    refused("6", &["--state-schema", "1"], 2, "--state-of-before");
    refused("0.8", &["--state-schema", "1"], 2, "--force-older");
    let wrong = system.release("5", &["--target", "riscv64-unknown-linux-gnu"]);
    assert_eq!(wrong.code, 6, "the program's own header counts: {}", wrong.err);
    let file = system.path("stick/torn.update");
    std::fs::write(&file, &std::fs::read(system.path("stick/jetforge-4.update")).unwrap()[..700])
        .unwrap();
    assert_eq!(system.update(&["check", &file.display().to_string()]).code, 6);
    // What is older in both has to be asked for in both.
    let older = system.path("stick/jetforge-0.8.update").display().to_string();
    let lossy = system.update(&["apply", &older, "--force-older"]);
    assert_eq!(lossy.code, 2, "{}", lossy.err);
    assert!(lossy.err.contains("--state-of-before"), "{}", lossy.err);
    system.update(&["apply", &older, "--force-older", "--state-of-before"]).ok();
}

/// The file may say whose programs run here, so it is read of root or of the caller alone.
#[test]
fn keys_that_belong_to_somebody_else_count_for_nothing() {
    let system = System::new();
    system.trust();
    system.release("2", &[]).ok();
    let keys = system.path("etc/jetforge/update.keys");
    if std::os::unix::fs::chown(&keys, Some(65_534), None).is_err() {
        return skip("update-keys", "only root gives a file away");
    }
    let refused = system.update(&["check", &system.stick()]);
    assert_eq!(refused.code, 2, "{}", refused.err);
    assert!(refused.err.contains("chown root"), "{}", refused.err);
}

/// The service's directory is the service's: what it left in a file's place is not waited for.
#[test]
fn a_pipe_in_the_place_of_what_was_lost_holds_nobody_up() {
    let system = System::new();
    let state = system.path("var/lib/jetforge");
    std::fs::create_dir_all(&state).unwrap();
    std::fs::write(state.join("update-lost.txt"), "two jobs\n").unwrap();
    assert_eq!(system.update(&["status", "--json"]).json()["lost"], "two jobs\n");
    std::fs::remove_file(state.join("update-lost.txt")).unwrap();
    let (cwd, mode) = (rustix::fs::CWD, rustix::fs::Mode::RWXU);
    rustix::fs::mkfifoat(cwd, state.join("update-lost.txt"), mode).unwrap();
    assert!(system.update(&["status", "--json"]).json()["lost"].is_null());
}

/// What the service does before it starts, in its own name: see the store's tests for the way back.
#[test]
fn the_state_is_kept_before_a_program_that_would_migrate_it() {
    let system = System::new();
    system.trust();
    let state = system.home.path().join(".local/state/jetforge");
    drop(jetforge::store::Store::open(&state).unwrap());
    system.update(&["state"]).ok();
    let newer = (jetforge::store::STATE_SCHEMA + 1).to_string();
    system.release("2", &["--state-schema", &newer]).ok();
    system.update(&["apply", &system.stick()]).ok();
    system.update(&["begin"]).ok();
    let said = system.update(&["state"]).ok();
    let kept = state.join("state.update.before");
    assert!(kept.exists() && said.err.contains("state.update.before"), "{}", said.err);
    // A store that is in use cannot be kept: then this start of the new program has failed.
    let open = jetforge::store::Store::open(&state).unwrap();
    assert_eq!(system.update(&["state"]).code, 1);
    system.update(&["rollback"]).ok();
    system.update(&["begin"]).ok();
    assert_eq!(system.update(&["state"]).code, 0, "without a trial the service says it itself");
    drop(open);
}
