//! The first start of a machine and its way back to one, the real binary on folders of its own.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use jetforge::inference::quant::TensorType;

use crate::cli::jetforge;
use crate::serve::Process;
use crate::support::http::send;
use crate::support::recipe::Recipe;
use crate::support::run::Run;

struct Machine {
    home: tempfile::TempDir,
    root: tempfile::TempDir,
}

impl Machine {
    fn new(name: &str) -> Machine {
        let machine =
            Machine { home: tempfile::tempdir().unwrap(), root: tempfile::tempdir().unwrap() };
        let etc = machine.root.path().join("etc");
        std::fs::create_dir_all(&etc).unwrap();
        std::fs::write(etc.join("hostname"), format!("{name}\n")).unwrap();
        std::fs::write(etc.join("hosts"), "127.0.0.1\tlocalhost\n127.0.1.1\told\n").unwrap();
        std::fs::write(etc.join("machine-id"), "0123456789abcdef0123456789abcdef\n").unwrap();
        machine
    }

    fn run(&self, args: &[&str]) -> Run {
        Run::of(jetforge(self.home.path()).args(args))
    }

    fn first_boot(&self, more: &[&str]) -> Run {
        let root = self.root.path().display().to_string();
        self.run(&[&["first-boot", "--root", &root], more].concat())
    }

    fn etc(&self, name: &str) -> String {
        std::fs::read_to_string(self.root.path().join("etc").join(name)).unwrap()
    }

    fn state(&self) -> PathBuf {
        self.home.path().join(".local/state/jetforge")
    }

    fn config(&self) -> PathBuf {
        self.home.path().join(".config/jetforge")
    }

    fn status_with(&self, service: &Process, key: &str) -> u16 {
        let key = format!("Bearer {key}");
        send(service.address, "GET", "/v1/config", &[("authorization", &key)], "").status
    }
}

/// What stands behind a word of the card.
fn of_card<'c>(card: &'c str, word: &str) -> &'c str {
    let line = card.lines().find_map(|line| line.strip_prefix(word));
    line.unwrap_or_else(|| panic!("{word} in {card}")).split_whitespace().next().unwrap()
}

#[test]
fn a_fresh_machine_gets_a_name_a_key_and_a_code_that_only_its_owner_can_read() {
    let machine = Machine::new("jetson-nano");
    let card = machine.first_boot(&[]).ok().out;
    let name = machine.etc("hostname").trim().to_owned();
    assert!(name.starts_with("jetforge-") && name.len() == 13, "{name}");
    assert!(machine.etc("hosts").ends_with(&format!("localhost\n127.0.1.1\t{name}\n")));
    assert_eq!(of_card(&card, "address"), format!("http://{name}.local:8080"));
    let kept = machine.config().join("first-boot.txt");
    assert_eq!(std::fs::read_to_string(&kept).unwrap(), card);
    assert_eq!(std::fs::metadata(&kept).unwrap().permissions().mode() & 0o777, 0o600);
    let key = of_card(&card, "API key");
    let service = Process::start(machine.home.path(), &[]);
    assert_eq!(machine.status_with(&service, key), 200, "it is an administrator's");
    assert!(machine.state().join("pair.json").exists());
    let again = machine.first_boot(&[]).ok();
    assert!(again.out.is_empty() && again.err.contains("set up before"), "{}", again.err);
    assert_eq!(machine.status_with(&service, key), 200);
    let other = machine.first_boot(&["--again"]).ok().out;
    assert_eq!(of_card(&other, "address"), of_card(&card, "address"), "its name stays");
    assert_eq!(machine.status_with(&service, key), 401, "the key before opens nothing");
    assert_eq!(machine.status_with(&service, of_card(&other, "API key")), 200);
}

#[test]
fn a_first_start_that_was_cut_is_done_again() {
    let machine = Machine::new("kitchen");
    let first = machine.first_boot(&[]).ok().out;
    assert_eq!(of_card(&first, "address"), "http://kitchen.local:8080", "a name of the owner's");
    assert_eq!(machine.etc("hosts"), "127.0.0.1\tlocalhost\n127.0.1.1\told\n");
    // As if the power went before the stamp, with a half-written file about.
    std::fs::remove_file(machine.state().join("first-boot.done")).unwrap();
    std::fs::write(machine.config().join("first-boot.txt.next"), "half").unwrap();
    let second = machine.first_boot(&[]).ok().out;
    assert_ne!(of_card(&first, "API key"), of_card(&second, "API key"));
    let keys = machine.run(&["key", "list", "--json"]).json();
    assert_eq!(keys["keys"].as_array().unwrap().len(), 1);
}

#[test]
fn the_model_is_the_largest_that_fits_unless_the_owner_chose() {
    let machine = Machine::new("nano");
    let models = machine.home.path().join(".local/share/jetforge/models");
    std::fs::create_dir_all(&models).unwrap();
    for (name, case) in [("small", "llama"), ("other", "qwen2")] {
        let bytes = Recipe::read(case).build(TensorType::F32);
        std::fs::write(models.join(format!("{name}.gguf")), bytes).unwrap();
    }
    let card = machine.first_boot(&[]).ok().out;
    let model = of_card(&card, "model");
    assert!(["small", "other"].contains(&model), "{card}");
    let shown = machine.run(&["config", "show", "--json"]).json();
    assert_eq!(shown["model.name"]["value"], model);
    let choices = machine.config().join("config.d/10-first-boot.toml");
    std::fs::remove_file(choices).unwrap();
    std::fs::write(machine.config().join("config.toml"), "[model]\nname = \"default\"\n").unwrap();
    let card = machine.first_boot(&["--again"]).ok().out;
    assert_eq!(of_card(&card, "model"), "default");
}

fn is_empty_but(dir: &Path, kept: &[&str]) -> bool {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries.into_iter().all(|entry| kept.iter().any(|kept| entry.file_name() == *kept))
}

#[test]
fn a_reset_leaves_what_the_owner_wrote_and_nothing_else() {
    let machine = Machine::new("nano");
    machine.first_boot(&[]).ok();
    std::fs::write(machine.config().join("config.toml"), "[model]\nn_ctx = 512\n").unwrap();
    let refused = machine.run(&["reset"]);
    assert!(refused.code == 2 && refused.err.contains("--yes"), "{}", refused.err);
    let service = Process::start(machine.home.path(), &[]);
    let busy = machine.run(&["reset", "--yes"]);
    assert!(busy.code != 0 && busy.err.contains("stop the service first"), "{}", busy.err);
    service.terminate();
    assert_eq!(service.end().0, Some(0));
    machine.run(&["reset", "--yes"]).ok();
    assert!(is_empty_but(&machine.state(), &[]));
    assert!(is_empty_but(&machine.config(), &["config.toml", "config.d"]));
    assert_eq!(machine.run(&["key", "list", "--json"]).json()["keys"], serde_json::json!([]));
    machine.first_boot(&[]).ok();
    assert!(machine.state().join("first-boot.done").exists());
}

#[test]
fn a_reset_that_was_cut_goes_on_with_the_next_first_start() {
    let machine = Machine::new("nano");
    machine.first_boot(&[]).ok();
    machine.run(&["key", "create", "guest"]).ok();
    // The mark was made and the stamp is gone; nothing else was done.
    std::fs::write(machine.state().join("reset.pending"), "").unwrap();
    std::fs::remove_file(machine.state().join("first-boot.done")).unwrap();
    machine.first_boot(&[]).ok();
    let keys = machine.run(&["key", "list", "--json"]).json();
    assert_eq!(keys["keys"][0]["name"], "owner");
    assert_eq!(keys["keys"].as_array().unwrap().len(), 1, "the guest's went with the reset");
    assert!(!machine.state().join("reset.pending").exists());
}

#[test]
fn a_backup_brings_keys_and_configuration_to_another_card() {
    let (old, new) = (Machine::new("nano"), Machine::new("nano"));
    let card = old.first_boot(&[]).ok().out;
    let key = of_card(&card, "API key").to_owned();
    std::fs::write(old.config().join("config.toml"), "[model]\nn_ctx = 512\n").unwrap();
    let file = old.home.path().join("all.backup");
    let name = file.display().to_string();
    let service = Process::start(old.home.path(), &[]);
    let busy = old.run(&["backup", &name]);
    assert!(busy.code != 0 && busy.err.contains("stop the service first"), "{}", busy.err);
    service.terminate();
    assert_eq!(service.end().0, Some(0));
    old.run(&["backup", &name]).ok();
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    // What was cut or changed changes nothing.
    let whole = std::fs::read(&file).unwrap();
    let mut changed = whole.clone();
    let at = changed.windows(12).position(|w| w == b"n_ctx = 512\n").unwrap();
    changed[at + 8] = b'9';
    for wrong in [&whole[..whole.len() / 2], &changed] {
        let other = new.home.path().join("wrong.backup");
        std::fs::write(&other, wrong).unwrap();
        let refused = new.run(&["restore", &other.display().to_string()]);
        assert!(
            refused.code != 0 && refused.err.contains("nothing was changed"),
            "{}",
            refused.err
        );
        assert!(!new.config().join("config.toml").exists());
    }
    new.run(&["restore", &name]).ok();
    assert!(!new.state().join("restore.next").exists());
    let shown = new.run(&["config", "show", "--json"]).json();
    assert_eq!(shown["model.n_ctx"]["value"], 512);
    let service = Process::start(new.home.path(), &[]);
    assert_eq!(new.status_with(&service, &key), 200, "the key opens the new one as well");
}

#[test]
fn a_restore_that_was_cut_is_finished_by_the_service() {
    let machine = Machine::new("nano");
    let card = machine.first_boot(&[]).ok().out;
    let state = machine.state();
    // Unpacked and marked; one file was moved, this one was not.
    std::fs::create_dir_all(state.join("restore.next/state")).unwrap();
    std::fs::rename(state.join("keys.json"), state.join("restore.next/state/keys.json")).unwrap();
    std::fs::write(state.join("restore.pending"), "").unwrap();
    let service = Process::start(machine.home.path(), &[]);
    assert_eq!(machine.status_with(&service, of_card(&card, "API key")), 200);
    assert!(!state.join("restore.pending").exists() && !state.join("restore.next").exists());
}

#[test]
fn a_support_file_holds_no_secret() {
    let machine = Machine::new("nano");
    let card = machine.first_boot(&[]).ok().out;
    let secrets = [of_card(&card, "API key"), of_card(&card, "pairing code"), "canary-7f3a"];
    let config = "[server]\nchat_template = \"canary-7f3a\"\nalias = [\"Bearer canary-7f3a\"]\n\
                  [hub]\nnano = [\"http://user:canary-7f3a@10.0.0.7\"]\n";
    std::fs::write(machine.config().join("config.toml"), config).unwrap();
    let file = machine.home.path().join("support.tar");
    machine.run(&["support", &file.display().to_string()]).ok();
    let text = String::from_utf8(std::fs::read(&file).unwrap()).unwrap();
    for part in ["version.txt", "machine.json", "config.json", "board.json", "keys.json"] {
        assert!(text.contains(part), "{part}");
    }
    for secret in secrets {
        assert!(!text.contains(secret), "{secret} is in it");
    }
    let hashes = std::fs::read_to_string(machine.state().join("keys.json")).unwrap();
    let hashes: serde_json::Value = serde_json::from_str(&hashes).unwrap();
    assert!(!text.contains(hashes["keys"][0]["sha256"].as_str().unwrap()));
}
