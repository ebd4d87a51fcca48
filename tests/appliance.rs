//! The first start of a machine and its way back to one, the real binary on folders of its own.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use jetforge::inference::gguf::GgufBuilder;
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
        let hosts = format!("127.0.0.1\tlocalhost\n127.0.1.1\t{name} a.lan\n127.0.1.10\tb.lan\n");
        std::fs::write(etc.join("hosts"), hosts).unwrap();
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

    fn model(&self, name: &str) -> PathBuf {
        self.home.path().join(format!(".local/share/jetforge/models/{name}.gguf"))
    }

    /// A model in the store, another with half as many bits, and one that this machine has no room
    /// for.
    fn keep_models(&self) {
        let path = |name: &str| self.model(name);
        std::fs::create_dir_all(path("huge").parent().unwrap()).unwrap();
        for (name, ty) in [("large", TensorType::F32), ("small", TensorType::F16)] {
            std::fs::write(path(name), Recipe::read("llama").build(ty)).unwrap();
        }
        let (header, hole) = huge();
        std::fs::write(path("huge"), &header).unwrap();
        let file = std::fs::File::options().write(true).open(path("huge")).unwrap();
        file.set_len(header.len() as u64 + hole).unwrap();
    }

    fn status_with(&self, service: &Process, key: &str) -> u16 {
        let key = format!("Bearer {key}");
        send(service.address, "GET", "/v1/config", &[("authorization", &key)], "").status
    }
}

/// The header of a model with twice as many bytes as this machine has memory, and the size of the
/// hole that stands for its weights.
fn huge() -> (Vec<u8>, u64) {
    const N_EMBD: u64 = 1024;
    const N_FF: u64 = 1 << 20;
    let memory_bytes = jetforge::base::host::Host::read().memory_total_bytes;
    let n_layer = (2 * memory_bytes).div_ceil(3 * 4 * N_EMBD * N_FF);
    let mut file = GgufBuilder::new()
        .pair("general.architecture", "qwen2")
        .pair("qwen2.context_length", 512u32)
        .pair("qwen2.embedding_length", 1024u32)
        .pair("qwen2.feed_forward_length", 1u32 << 20)
        .pair("qwen2.block_count", u32::try_from(n_layer).unwrap())
        .pair("qwen2.attention.head_count", 16u32)
        .pair("qwen2.attention.head_count_kv", 16u32)
        .pair("qwen2.attention.layer_norm_rms_epsilon", 1e-6f32);
    let tensor = |name: &str, shape: &[u64]| (name.to_owned(), shape.to_vec());
    let mut tensors =
        vec![tensor("token_embd.weight", &[N_EMBD, 256]), tensor("output_norm.weight", &[N_EMBD])];
    for layer in 0..n_layer {
        let rows: [(&str, &[u64]); 9] = [
            ("attn_norm", &[N_EMBD]),
            ("attn_q", &[N_EMBD, N_EMBD]),
            ("attn_k", &[N_EMBD, N_EMBD]),
            ("attn_v", &[N_EMBD, N_EMBD]),
            ("attn_output", &[N_EMBD, N_EMBD]),
            ("ffn_norm", &[N_EMBD]),
            ("ffn_gate", &[N_EMBD, N_FF]),
            ("ffn_up", &[N_EMBD, N_FF]),
            ("ffn_down", &[N_FF, N_EMBD]),
        ];
        tensors.extend(rows.map(|(name, row)| tensor(&format!("blk.{layer}.{name}.weight"), row)));
    }
    let mut offset = 0;
    for (name, shape) in tensors {
        file = file.tensor(name, &shape, TensorType::F32, Vec::new()).claim_offset(offset);
        offset += 4 * shape.iter().product::<u64>();
    }
    (file.header(), offset)
}

/// The file of the card.
const CARD: &str = "first-boot.txt";

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
    let others = "127.0.0.1\tlocalhost\n127.0.1.1\ta.lan\n127.0.1.10\tb.lan\n";
    assert_eq!(machine.etc("hosts"), format!("{others}127.0.1.1\t{name}\n"));
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
fn a_name_that_may_be_its_owners_choice_stays_unless_the_board_is_a_nano() {
    let machine = Machine::new("debian");
    machine.first_boot(&[]).ok();
    assert_eq!(machine.etc("hostname"), "debian\n");
    let tree = machine.root.path().join("proc/device-tree");
    std::fs::create_dir_all(&tree).unwrap();
    std::fs::write(tree.join("compatible"), "nvidia,jetson-nano\0nvidia,tegra210\0").unwrap();
    machine.first_boot(&["--again"]).ok();
    assert!(machine.etc("hostname").starts_with("jetforge-"));
}

#[test]
fn where_tls_is_asked_for_the_card_has_the_certificate_that_callers_will_see() {
    let machine = Machine::new("kitchen");
    let plain = machine.first_boot(&[]).ok().out;
    assert!(!plain.contains("certificate"), "{plain}");
    std::fs::write(machine.config().join("config.toml"), "[server]\ntls = true\n").unwrap();
    let card = machine.first_boot(&["--again"]).ok().out;
    assert_eq!(of_card(&card, "address"), "https://kitchen.local:8080");
    let service = Process::start(machine.home.path(), &[]);
    let shown = service.certificate.expect("it speaks TLS").to_string();
    assert_eq!(of_card(&card, "certificate"), shown);
    drop(service);
    // What the owner's file does not hold keeps nobody from their key.
    let wrong = format!("[server]\ntls_cert = \"{CARD}\"\ntls_key = \"{CARD}\"\n");
    std::fs::write(machine.config().join("config.toml"), wrong).unwrap();
    let run = machine.first_boot(&["--again"]).ok();
    assert!(run.err.contains("the card has no certificate"), "{}", run.err);
    assert!(of_card(&run.out, "API key").starts_with("jf-"), "{}", run.out);
}

#[test]
fn on_a_console_the_card_is_shown_and_nothing_that_is_recorded_has_it() {
    let machine = Machine::new("nano");
    let console = machine.home.path().join("console");
    std::fs::write(&console, "").unwrap();
    let run = machine.first_boot(&["--console", &console.display().to_string()]).ok();
    let card = std::fs::read_to_string(&console).unwrap();
    let key = of_card(&card, "API key").to_owned();
    assert!(run.out.is_empty() && !run.err.contains(&key), "{}{}", run.out, run.err);
    assert!(run.err.contains("first-boot.txt"), "{}", run.err);
    // A machine without a console has the file.
    machine.first_boot(&["--again", "--console", "/no/such/console"]).ok();
}

#[test]
fn a_first_start_that_was_cut_is_done_again() {
    let machine = Machine::new("kitchen");
    let first = machine.first_boot(&[]).ok().out;
    assert_eq!(of_card(&first, "address"), "http://kitchen.local:8080", "a name of the owner's");
    assert!(machine.etc("hosts").contains("127.0.1.1\tkitchen a.lan\n"));
    // As if the power went before the stamp, with a half-written file about.
    std::fs::remove_file(machine.state().join("first-boot.done")).unwrap();
    std::fs::write(machine.config().join("first-boot.txt.next"), "half").unwrap();
    let second = machine.first_boot(&[]).ok().out;
    assert_ne!(of_card(&first, "API key"), of_card(&second, "API key"));
    let keys = machine.run(&["key", "list", "--json"]).json();
    assert_eq!(keys["keys"].as_array().unwrap().len(), 1);
}

/// Each of its writes in turn finds a folder in its place, and the run ends there.
#[test]
fn a_first_start_that_ended_before_any_of_its_writes_is_done_again() {
    let whole = Machine::new("jetson");
    whole.first_boot(&[]).ok();
    for place in ["hosts", "keys.json", "pair.json", CARD] {
        let machine = Machine::new("jetson");
        machine.keep_models();
        let folder = match place {
            "hosts" => machine.root.path().join("etc"),
            CARD => machine.config(),
            _ => machine.state(),
        };
        let before = std::fs::read(folder.join(place)).ok();
        let _ = std::fs::remove_file(folder.join(place));
        std::fs::create_dir_all(folder.join(place).join("in the way")).unwrap();
        let cut = machine.first_boot(&[]);
        assert!(cut.code != 0 && cut.out.is_empty(), "{place}: {}{}", cut.out, cut.err);
        assert!(!machine.state().join("first-boot.done").exists(), "{place}");
        std::fs::remove_dir_all(folder.join(place)).unwrap();
        before.into_iter().for_each(|bytes| std::fs::write(folder.join(place), bytes).unwrap());
        let card = machine.first_boot(&[]).ok().out;
        assert_eq!(std::fs::read_to_string(machine.config().join(CARD)).unwrap(), card, "{place}");
        for file in ["hosts", "hostname"] {
            assert_eq!(machine.etc(file), whole.etc(file), "{place}");
        }
        let keys = machine.run(&["key", "list", "--json"]).json();
        assert_eq!(keys["keys"].as_array().unwrap().len(), 1, "{place}");
        let shown = machine.run(&["config", "show", "--json"]).json();
        assert_eq!(shown["model.name"]["value"], of_card(&card, "model"), "{place}");
        let again = machine.first_boot(&[]).ok();
        assert!(again.err.contains("set up before"), "{place}: {}", again.err);
    }
    // Between the two files of the name there is nothing that could be in the way.
    let machine = Machine::new("jetson");
    std::fs::write(machine.root.path().join("etc/hosts"), whole.etc("hosts")).unwrap();
    machine.first_boot(&[]).ok();
    assert_eq!(machine.etc("hosts"), whole.etc("hosts"));
}

#[test]
fn the_model_is_the_largest_that_fits_unless_the_owner_chose() {
    let machine = Machine::new("nano");
    machine.keep_models();
    // Nothing but the memory speaks against the one that is larger still.
    let huge = machine.model("huge").display().to_string();
    let inspected = machine.run(&["inspect", "--json", "--memory-max", "100000G", &huge]).json();
    assert_eq!(inspected["fits"][0]["fits"], true, "{inspected}");
    let card = machine.first_boot(&[]).ok().out;
    assert_eq!(of_card(&card, "model"), "large", "{card}");
    let shown = machine.run(&["config", "show", "--json"]).json();
    assert_eq!(shown["model.name"]["value"], "large");
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
    let elsewhere = Machine::new("nano").run(&["reset", "--yes"]);
    assert!(
        elsewhere.code == 2 && elsewhere.err.contains("nothing to forget"),
        "{}",
        elsewhere.err
    );
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
    assert!(old.state().join("state.reserve").exists() && whole.len() < 1 << 20, "no empty room");
    let mut changed = whole.clone();
    let at = changed.windows(12).position(|w| w == b"n_ctx = 512\n").unwrap();
    changed[at + 8] = b'9';
    for wrong in [&whole[..whole.len() / 2], &changed[..]] {
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
    // What the new card was told meanwhile does not stand above what was there before.
    let told =
        [new.config().join("config.d/10-first-boot.toml"), new.state().join("config.put.toml")];
    for file in &told {
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(file, "[model]\nn_ctx = 64\n").unwrap();
    }
    new.run(&["restore", &name]).ok();
    assert!(!new.state().join("restore.next").exists());
    assert!(told.iter().all(|file| !file.exists()));
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
    // Unpacked and marked; one file was moved, this one was not, and what is to go is there.
    std::fs::create_dir_all(state.join("restore.next/state")).unwrap();
    std::fs::rename(state.join("keys.json"), state.join("restore.next/state/keys.json")).unwrap();
    std::fs::write(state.join("config.put.toml"), "[model]\nn_ctx = 64\n").unwrap();
    let names = ["state/keys.json", "state/pair.json", "config/first-boot.txt"];
    let sums: String = names.iter().map(|name| format!("{}  {name}\n", "0".repeat(64))).collect();
    std::fs::write(state.join("restore.pending"), sums).unwrap();
    let service = Process::start(machine.home.path(), &[]);
    assert_eq!(machine.status_with(&service, of_card(&card, "API key")), 200);
    assert!(!state.join("restore.pending").exists() && !state.join("restore.next").exists());
    assert!(!state.join("config.put.toml").exists() && state.join("pair.json").exists());
}

#[test]
fn a_backup_that_could_not_have_everything_is_none() {
    let machine = Machine::new("nano");
    let file = machine.home.path().join("all.backup");
    let backup = || machine.run(&["backup", &file.display().to_string()]);
    let none = backup();
    assert!(none.code == 2 && none.err.contains("nothing to keep"), "{}", none.err);
    machine.first_boot(&[]).ok();
    let deep = machine.state().join("a/b/c/d/e");
    std::fs::create_dir_all(&deep).unwrap();
    std::fs::write(deep.join("f"), "").unwrap();
    let run = backup();
    assert!(run.code != 0 && run.err.contains("state/a/b/c/d/e"), "{}", run.err);
    assert!(!file.exists());
    std::fs::remove_dir_all(machine.state().join("a")).unwrap();
    // A store that cannot be opened goes in as it is, and that is said.
    std::fs::write(machine.state().join("device.key"), [7; 32]).unwrap();
    let run = backup().ok();
    assert!(run.err.contains("kept as it lies"), "{}", run.err);
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
    // Nor does any other text that somebody set, except words of ours.
    let keys = machine.run(&["config", "show", "--json"]).json();
    let mut n_text = 0;
    let numbers = |value: &serde_json::Value| value.is_number() || value.is_boolean();
    let texts = keys.as_object().unwrap().iter().filter(|(_, own)| !numbers(&own["value"]));
    for (key, _) in texts {
        for value in ["canary/7f3a", "[\"http://canary/7f3a\"]"] {
            let (set, file) = (format!("{key}={value}"), file.display().to_string());
            if machine.run(&["support", "--set", &set, &file]).code == 0 {
                n_text += 1;
                let text = String::from_utf8(std::fs::read(&file).unwrap()).unwrap();
                assert!(!text.contains("canary/7f3a"), "{set} is in it");
                assert!(text.contains("(set)"), "{set}");
            }
        }
    }
    assert!(n_text > 15, "{n_text} keys take a text");
    assert!(!text.contains(&machine.home.path().display().to_string()), "paths name people");
    let hashes = std::fs::read_to_string(machine.state().join("keys.json")).unwrap();
    let hashes: serde_json::Value = serde_json::from_str(&hashes).unwrap();
    assert!(!text.contains(hashes["keys"][0]["sha256"].as_str().unwrap()));
}
