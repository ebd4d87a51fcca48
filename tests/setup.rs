//! `jetforge setup-model`: the real verb with a server of its own, boards that are too small, and
//! runs that end in the middle.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use jetforge::base::hash::hex;
use jetforge::inference::gguf::{Gguf, GgufBuilder};
use jetforge::inference::quant::TensorType;
use sha2::{Digest, Sha256};

use crate::cli::jetforge;
use crate::serve::Process;
use crate::support::http::get;
use crate::support::recipe::Recipe;
use crate::support::run::Run;

const DEFAULT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/models/default.gguf");

/// A home whose store stands in `models`.
struct Place {
    home: tempfile::TempDir,
}

impl Place {
    fn new() -> Place {
        Place { home: tempfile::tempdir().unwrap() }
    }

    fn dir(&self) -> PathBuf {
        self.home.path().join("models")
    }

    fn command(&self, verb: &str) -> Command {
        let mut command = jetforge(self.home.path());
        command.env("JETFORGE_LIBRARY_DIR", self.dir()).arg(verb);
        command
    }

    fn setup(&self, args: &[&str]) -> Run {
        Run::of(self.command("setup-model").args(args))
    }

    fn files(&self) -> Vec<String> {
        let Ok(entries) = std::fs::read_dir(self.dir()) else { return vec![] };
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<String> = names.collect();
        names.sort();
        names
    }
}

/// Serves `body` to everybody; the count says how often.
fn server(body: Vec<u8>) -> (String, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let count = Arc::new(AtomicUsize::new(0));
    let counter = count.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let mut reader = BufReader::new(stream);
            let mut line = String::new();
            while reader.read_line(&mut line).is_ok_and(|n| n > 2) {
                line.clear();
            }
            counter.fetch_add(1, Ordering::SeqCst);
            let head = "HTTP/1.1 200 OK\r\nConnection: close\r\nETag: \"v1\"\r\n";
            let out = reader.get_mut();
            let _ = write!(out, "{head}Content-Length: {}\r\n\r\n", body.len());
            let _ = out.write_all(&body);
        }
    });
    (format!("http://{address}/tiny-f32.gguf"), count)
}

fn catalog(place: &Place, url: &str, body: &[u8]) -> String {
    let hash = hex(&Sha256::digest(body));
    let path = place.home.path().join("catalog.toml");
    let text = format!(
        "[[model]]\nname = \"tiny\"\nparams_m = 1\nsource_url = \"{url}\"\nlicence = \"MIT\"\n\
         source_sha256 = \"{hash}\"\n"
    );
    std::fs::write(&path, text).unwrap();
    format!("library.catalog={}", path.display())
}

#[test]
fn a_model_is_fetched_made_small_and_run_as_its_preset_says() {
    let place = Place::new();
    let body = Recipe::read("llama").build(TensorType::F32);
    let (url, n_asked) = server(body.clone());
    let catalog = catalog(&place, &url, &body);
    let args = ["--model", "tiny", "--quantize", "4bit", "--optimize", "nano4gb", "--low-memory"];
    let args = [&args[..], &["--set", &catalog, "--json"]].concat();

    let dry = place.setup(&[&args[..], &["--dry-run"]].concat());
    assert!(dry.err.contains("would download http://"), "{}", dry.err);
    assert_eq!((n_asked.load(Ordering::SeqCst), place.files()), (0, vec![]));

    let made = place.setup(&args).json();
    let files = ["tiny-f32.gguf", "tiny-q4.gguf"];
    let hidden = [".tiny-f32.gguf.json", ".tiny-q4.gguf.preset.json"];
    assert_eq!(place.files(), [&hidden[..], &files[..]].concat());
    let preset = &made["preset"];
    assert_eq!((&made["recipe"], &preset["kv_type"]), (&"N4".into(), &"q8_0".into()));
    assert_eq!((&preset["n_parallel"], &preset["n_batch"]), (&1.into(), &128.into()));
    assert!(preset["why"].as_array().unwrap().len() == 6 && made["was_here"] == false, "{made}");
    let model = Gguf::open(&place.dir().join("tiny-q4.gguf")).unwrap();
    assert_eq!(model.native_target(), Some("neon"));
    assert!(model.tensors().iter().any(|info| info.ty == TensorType::N4));

    let again = place.setup(&args).json();
    assert_eq!((&again["was_here"], &again["preset"]), (&true.into(), preset));
    assert_eq!(place.setup(&[&args[..], &["--force"]].concat()).json()["was_here"], false);
    assert_eq!(n_asked.load(Ordering::SeqCst), 1, "what is in the store is not fetched again");

    // Another board wants another preset, not other weights.
    let args: Vec<&str> = args.iter().map(|a| if *a == "nano4gb" { "pc16gb" } else { a }).collect();
    let moved = place.setup(&args).json();
    assert_eq!((&moved["was_here"], &moved["preset"]["board"]), (&true.into(), &"pc-16gb".into()));

    let inspect = Run::of(place.command("inspect").args(["tiny-q4", "--json"])).json();
    assert_eq!(inspect["fits"][0]["n_ctx"], moved["preset"]["n_ctx"]);
    let dir = format!("library.dir={}", place.dir().display());
    let service = Process::start(place.home.path(), &["--model", "tiny-q4", "--set", &dir]);
    let props = get(service.address, "/props").json();
    assert_eq!(props["total_slots"], 1);
    assert_eq!(props["default_generation_settings"]["n_ctx"], moved["preset"]["n_ctx"]);
    let options = ["--model", "tiny-q4", "--set", &dir, "-np", "2", "-c", "128"];
    let service = Process::start(place.home.path(), &options);
    let props = get(service.address, "/props").json();
    assert_eq!(
        (&props["total_slots"], &props["default_generation_settings"]["n_ctx"]),
        (&2.into(), &64.into())
    );

    let removed = Run::of(place.command("models").args(["remove", "tiny-q4"]));
    assert_eq!(removed.code, 0, "{}", removed.err);
    assert_eq!(place.files(), [hidden[0], files[0]], "the preset goes with the model");
}

/// A model with the shapes of one of `n_layer` layers 2,048 wide, whose weights are a hole.
fn hollow(path: &Path, n_layer: u32) {
    let recipe = Gguf::from_vec(Recipe::read("llama").build(TensorType::F32)).unwrap();
    let mut file = GgufBuilder::new();
    for (key, value) in recipe.metadata().iter() {
        file = match key {
            "llama.embedding_length" => file.pair(key, 2048u32),
            "llama.feed_forward_length" => file.pair(key, 5504u32),
            "llama.attention.head_count" | "llama.attention.head_count_kv" => file.pair(key, 16u32),
            "llama.block_count" => file.pair(key, n_layer),
            "llama.context_length" => file.pair(key, 16_384u32),
            "llama.rope.dimension_count" => file.pair(key, 128u32),
            key if key.starts_with("llama.attention.key") => continue,
            key if key.starts_with("llama.attention.value") => continue,
            _ => file.pair(key, value.clone()),
        };
    }
    let n_vocab = recipe.tensor("token_embd.weight").unwrap().shape[1];
    let mut n_bytes = 0;
    let mut add = |file: GgufBuilder<'static>, name: &str, shape: &[u64], ty: TensorType| {
        let n = ty.row_bytes(shape[0] as usize).unwrap() as u64 * shape.get(1).unwrap_or(&1);
        n_bytes += n.next_multiple_of(32);
        file.tensor(name, shape, ty, vec![]).announce(n)
    };
    let (f16, f32) = (TensorType::F16, TensorType::F32);
    file = add(file, "token_embd.weight", &[2048, n_vocab], f16);
    file = add(file, "output.weight", &[2048, n_vocab], f16);
    file = add(file, "output_norm.weight", &[2048], f32);
    for i in 0..n_layer {
        for (name, shape) in [
            ("attn_q", [2048, 2048]),
            ("attn_k", [2048, 2048]),
            ("attn_v", [2048, 2048]),
            ("attn_output", [2048, 2048]),
            ("ffn_gate", [2048, 5504]),
            ("ffn_up", [2048, 5504]),
            ("ffn_down", [5504, 2048]),
        ] {
            file = add(file, &format!("blk.{i}.{name}.weight"), &shape, f16);
        }
        file = add(file, &format!("blk.{i}.attn_norm.weight"), &[2048], f32);
        file = add(file, &format!("blk.{i}.ffn_norm.weight"), &[2048], f32);
    }
    let header = file.header();
    let mut out = std::fs::File::create(path).unwrap();
    out.write_all(&header).unwrap();
    out.set_len(header.len() as u64 + n_bytes).unwrap();
}

/// The shape of DeepSeek-Coder 1.3B: 24 layers, 192 KiB of f16 keys and values a position.
#[test]
fn what_cannot_fit_is_refused_with_the_sum_and_with_what_would() {
    let place = Place::new();
    let path = place.home.path().join("deep-f16.gguf");
    hollow(&path, 24);
    let path = path.to_str().unwrap();
    let setup = |board: &str, more: &[&str]| {
        let args = ["--model", path, "--optimize", board, "--dry-run"];
        place.setup(&[&args[..], more].concat())
    };
    let nano = setup("nano4gb", &["--quantize", "4bit", "--json"]).json();
    assert!(nano["path"].as_str().unwrap().ends_with("models/deep-q4.gguf"));
    let needed = nano["needed_bytes"].as_u64().unwrap();
    assert!(needed <= nano["available_bytes"].as_u64().unwrap());
    let low = setup("nano4gb", &["--quantize", "4bit", "--low-memory", "--json"]).json();
    assert!(low["needed_bytes"].as_u64().unwrap() < needed);

    let refused = setup("nano2gb", &["--quantize", "8bit"]);
    assert_eq!(refused.code, 4, "{}", refused.err);
    assert!(refused.err.contains("the board has 1980 MiB, less 768 MiB for the system = 1212 MiB"));
    assert!(refused.err.contains("--quantize 4bit would fit"), "{}", refused.err);
    // The sum that is shown is a sum.
    let sum = refused.err.split("does not fit").nth(1).unwrap().split(';').next().unwrap();
    let (parts, total) = sum.split_once(" = ").unwrap();
    let mib = |text: &str| {
        let words: Vec<&str> = text.split_whitespace().collect();
        let at = words.iter().position(|word| word.starts_with("MiB")).unwrap();
        words[at - 1].parse::<u64>().unwrap()
    };
    let added: u64 = parts.split('+').map(mib).sum();
    assert!(added.abs_diff(mib(total)) <= 4, "rounded up each: {sum}");
    assert!(refused.err.contains(&format!("{} MiB too few", mib(total) - 1212)), "{}", refused.err);

    let larger = place.setup(&["--model", "deepseek-coder-6.7b", "--optimize", "nano4gb"]);
    assert_eq!(larger.code, 4, "{}", larger.err);
    assert!(larger.err.contains("6740 million weights x 4.5 bits / 8"), "{}", larger.err);
    assert!(place.files().is_empty(), "nothing was fetched or written");
}

#[test]
fn a_killed_run_leaves_nothing_half() {
    let place = Place::new();
    let program = assert_cmd::cargo::cargo_bin!("jetforge");
    let mut shell = Command::new("sh");
    let line = r#"ulimit -f 2000; exec "$0" setup-model --model mine --from "$1" --dir "$2""#;
    shell.env_clear().env("HOME", place.home.path()).args(["-c", line]);
    let killed = Run::of(shell.arg(program).arg(DEFAULT).arg(place.dir()));
    assert_eq!(killed.code, -1, "ended by a signal: {}", killed.err);
    assert_eq!(place.files(), ["mine-q4.gguf.partial"]);
    let list = Run::of(place.command("models").args(["list", "--json"])).json();
    assert!(!list.to_string().contains("mine"), "{list}");
    let made = place.setup(&["--model", "mine", "--from", DEFAULT, "--json"]).json();
    assert_eq!((&made["was_here"], &made["recipe"]), (&false.into(), &"N4_M".into()));
    assert_eq!(place.files(), [".mine-q4.gguf.preset.json", "mine-q4.gguf"]);
    // Killed between the two: the preset is made up for.
    std::fs::remove_file(place.dir().join(".mine-q4.gguf.preset.json")).unwrap();
    let again = place.setup(&["--model", "mine", "--from", DEFAULT, "--json"]).json();
    assert_eq!((&again["was_here"], &again["preset"]), (&true.into(), &made["preset"]));
    assert_eq!(place.files(), [".mine-q4.gguf.preset.json", "mine-q4.gguf"]);
}

#[test]
fn refusals_say_what_to_do() {
    let place = Place::new();
    std::fs::create_dir(place.dir()).unwrap();
    std::fs::copy(DEFAULT, place.dir().join("mine-q4.gguf")).unwrap();
    let small = place.dir().join("small.gguf");
    std::fs::write(&small, Recipe::read("llama").build(TensorType::Q4_0)).unwrap();
    let small = small.to_str().unwrap();
    for (args, code, says) in [
        (&["--model", "nothing-like-it"][..], 3, "no model named"),
        (&["--model", "tiny", "--optimize", "nano8gb"][..], 2, "nano2gb, nano4gb, pc16gb"),
        (&["--model", "tiny", "--quantize", "5bit"][..], 2, "3bit, 4bit, 8bit"),
        (&["--model", "mine", "--from", DEFAULT][..], 2, "--force makes it again"),
        (&["--model", "phi-1.5"][..], 3, "names no source"),
        (&["--model", small][..], 2, "--allow-requantize"),
    ] {
        let run = place.setup(args);
        assert_eq!(run.code, code, "{args:?}: {}", run.err);
        assert!(run.err.contains(says), "{args:?}: {}", run.err);
    }
}
