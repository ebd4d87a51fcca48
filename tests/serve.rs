//! `jetforge serve` and `jetforge key`: the real binary, its output and its end.

use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::JoinHandle;

use jetforge::inference::quant::TensorType;
use jetforge::server::Client;
use jetforge::tls::Fingerprint;
use serde_json::json;

use crate::cli::jetforge;
use crate::support::http::{Wire, get, post, request, send, until};
use crate::support::recipe::Recipe;

/// A service in a process of its own, killed when it is dropped.
pub struct Process {
    child: Child,
    pub address: SocketAddr,
    /// What it shows, where it speaks TLS.
    pub certificate: Option<Fingerprint>,
    /// Reads stderr as it comes, so that the service never waits for its reader.
    said: Option<JoinHandle<String>>,
}

/// Waits for the model of a service that speaks TLS; its certificate.
fn until_ready(address: SocketAddr) -> Fingerprint {
    let (client, shown) = Client::meet(&address.to_string()).unwrap();
    until("the model is loaded", || client.json("GET", "/health").is_ok());
    shown.expect("it speaks TLS")
}

impl Process {
    /// Starts the service and waits until its model is there.
    pub fn start(home: &Path, options: &[&str]) -> Process {
        Process::start_verb(home, "serve", &[&["--port", "0"], options].concat())
    }

    /// Starts a verb that serves, and waits until its model is there.
    pub fn start_verb(home: &Path, verb: &str, options: &[&str]) -> Process {
        let mut command: Command = jetforge(home);
        command.args([verb, "--threads", "1"]).args(options);
        Process::spawn(command)
    }

    /// Starts a command that serves, and waits until its model is there.
    pub fn spawn(mut command: Command) -> Process {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut stderr = child.stderr.take().unwrap();
        let said = std::thread::spawn(move || {
            let mut said = String::new();
            stderr.read_to_string(&mut said).unwrap();
            said
        });
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let url = line.trim().strip_prefix("listening on ").and_then(|url| url.split_once("://"));
        let Some((scheme, address)) = url else {
            let _ = child.wait();
            panic!("it does not listen: {line:?} {}", said.join().unwrap());
        };
        let address = address.parse().unwrap();
        let certificate = (scheme == "https").then(|| until_ready(address));
        until("the model is loaded", || {
            if certificate.is_some() {
                return true;
            }
            let answer = get(address, "/health");
            if answer.status != 200 {
                assert_eq!(
                    (answer.status, answer.error_type().as_str()),
                    (503, "unavailable_error")
                );
                assert_eq!(answer.json()["error"]["message"], "Loading model");
            }
            answer.status == 200
        });
        Process { child, address, certificate, said: Some(said) }
    }

    /// Its number among the machine's processes.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Asks it to end.
    pub fn terminate(&self) {
        self.signal(rustix::process::Signal::TERM);
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, signal).unwrap();
    }

    /// Ends it as a cut of its power would.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Its exit code and what it said on stderr.
    pub fn end(mut self) -> (Option<i32>, String) {
        let said = self.said.take().unwrap().join().unwrap();
        (self.child.wait().unwrap().code(), said)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Code, stdout and stderr of a run that ends by itself.
fn run(home: &Path, args: &[&str]) -> (i32, String, String) {
    let output = jetforge(home).args(args).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap_or(-1), text(output.stdout), text(output.stderr))
}

#[test]
fn a_script_for_llama_server_runs() {
    let home = tempfile::tempdir().unwrap();
    let options = ["-c", "1024", "-np", "2", "-ngl", "99", "-fa", "on", "--jinja", "-n", "8"];
    let service = Process::start(home.path(), &[&options[..], &["--alias", "coder"]].concat());
    let answer = post(service.address, "/completion", &json!({"prompt": "def add(a, b):"}));
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(answer.json()["tokens_predicted"], 8, "--n-predict is the default");
    let models = get(service.address, "/v1/models").json();
    assert_eq!(models["data"][0]["id"], "coder");
    assert_eq!(get(service.address, "/slots").json().as_array().unwrap().len(), 2);
    let answer = get(service.address, "/metrics");
    assert_eq!((answer.status, answer.error_type().as_str()), (501, "not_supported_error"));
    service.terminate();
    let (code, said) = service.end();
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("-fa has no counterpart"), "{said}");
    assert!(!said.contains("--jinja") && !said.contains("-ngl has no"), "{said}");
}

/// Else every start would look through a store that may be large.
#[test]
fn a_service_that_is_asked_to_end_closes_its_store() {
    let home = tempfile::tempdir().unwrap();
    for _ in 0..3 {
        let service = Process::start(home.path(), &[]);
        service.terminate();
        let (code, said) = service.end();
        assert_eq!(code, Some(0), "{said}");
        assert!(said.contains("stopping") && !said.contains("not closed cleanly"), "{said}");
    }
}

#[test]
fn a_draft_model_saves_steps_and_changes_no_answer() {
    let home = tempfile::tempdir().unwrap();
    let file = |case: &str| {
        let path = home.path().join(format!("{case}.gguf"));
        std::fs::write(&path, Recipe::read(case).build(TensorType::F32)).unwrap();
        path.display().to_string()
    };
    let (model, draft, other) = (file("qwen2"), file("qwen3"), file("llama"));
    let body = json!({"prompt": "fn main() {", "n_predict": 30, "seed": 5, "ignore_eos": true});
    let answers =
        [&["-m", &model][..], &["-m", &model, "-md", &draft, "--draft", "4"]].map(|own| {
            let options =
                [own, &["--metrics", "--draft-n-min", "0", "--draft-p-min", "0.0"]].concat();
            let service = Process::start(home.path(), &options);
            let answer = post(service.address, "/completion", &body).json();
            let props = get(service.address, "/props").json();
            let types = &props["default_generation_settings"]["params"]["speculative.types"];
            let metrics = get(service.address, "/metrics").text();
            service.terminate();
            assert_eq!(service.end().0, Some(0));
            assert!(
                metrics.contains("jetforge_draft_failures_total{model=\"qwen2\"} 0"),
                "{metrics}"
            );
            let n_draft = answer["timings"]["draft_n"].as_u64().unwrap_or_default();
            (answer["content"].clone(), types.clone(), n_draft, metrics)
        });
    let [(plain, types, n_plain, _), (drafted, both, n_draft, metrics)] = answers;
    assert_eq!(plain, drafted);
    assert_eq!((types, both), (json!("ngram-simple"), json!("ngram-simple,draft-simple")));
    assert!(n_draft > n_plain, "{n_draft} guesses, {n_plain} by lookup alone");
    let total = format!("llamacpp:spec_decode_num_draft_tokens_total {n_draft}");
    assert!(metrics.contains(&total), "{metrics}");
    let wrong = ["serve", "--port", "0", "-m", &model, "--model-draft", &other];
    let (code, _, said) = run(home.path(), &wrong);
    assert!(said.contains("has another vocabulary"), "{said}");
    assert_eq!(code, 3, "{said}");
    let (code, _, said) = run(home.path(), &["serve", "--draft-p-min", "1.5"]);
    assert_eq!(code, 2, "{said}");
}

#[test]
fn what_a_caller_sends_is_in_no_log_metric_or_timeline() {
    const CANARY: &str = "xylophone-4711-marmalade";
    let home = tempfile::tempdir().unwrap();
    for format in ["text", "json"] {
        let options = ["--metrics", "--log-level", "trace", "--log-format", format];
        let service = Process::start(home.path(), &options);
        let at = service.address;
        let word = json!({"prompt": CANARY, "n_predict": 4, "stop": [CANARY]});
        assert_eq!(post(at, "/completion", &word).status, 200);
        let chat = json!({"messages": [{"role": "user", "content": CANARY}], "max_tokens": 4});
        assert_eq!(post(at, "/v1/chat/completions", &chat).status, 200);
        send(at, "POST", "/completion", &[], &format!("{{\"prompt\": \"{CANARY}"));
        send(at, "POST", "/v1/completions", &[("authorization", CANARY)], CANARY);
        get(at, &format!("/health?q={CANARY}"));
        get(at, &format!("/{CANARY}"));
        get(at, &format!("/timeline/{CANARY}"));
        send(at, "GET", "/health", &[("host", &format!("{CANARY}.example"))], "");
        send(at, "GET", "/health", &[("origin", CANARY), ("user-agent", CANARY)], "");
        let bad = json!({"prompt": "x", "grammar": format!("root ::= {CANARY} ]")});
        assert_eq!(post(at, "/completion", &bad).status, 400);
        let unknown = json!({"model": CANARY, "messages": [{"role": "user", "content": "x"}]});
        post(at, "/v1/chat/completions", &unknown);
        let mut left = Wire::open(at);
        left.write(&request("POST", "/completion", &[], &word.to_string())[..60]);
        drop(left);
        for path in ["/metrics", "/timeline"] {
            assert!(!get(at, path).text().contains(CANARY), "{path}");
        }
        service.terminate();
        let (code, said) = service.end();
        assert_eq!(code, Some(0));
        assert!(!said.contains(CANARY), "{said}");
        assert!(said.contains("/v1/chat/completions") && said.contains("model loaded"), "{said}");
        if format == "json" {
            for line in said.lines() {
                serde_json::from_str::<serde_json::Value>(line)
                    .unwrap_or_else(|_| panic!("{line}"));
            }
        }
    }
}

#[test]
fn a_machine_answers_to_its_own_name() {
    let home = tempfile::tempdir().unwrap();
    let service = Process::start(home.path(), &["--allowed-host", "nano.lan"]);
    let status = |host: &str| {
        send(service.address, "GET", "/v1/models", &[("host", &format!("{host}:8080"))], "").status
    };
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    let name = name.trim();
    let host = name.split('.').next().unwrap();
    for own in [name, &format!("{host}.local"), &format!("{host}.LOCAL."), "nano.lan"] {
        assert_eq!(status(own), 200, "{own}");
    }
    for other in [format!("{host}.example"), format!("x{host}.local"), format!("{name}x")] {
        assert_eq!(status(&other), 403, "{other}");
    }
}

#[test]
fn a_signal_lets_a_stream_finish() {
    let home = tempfile::tempdir().unwrap();
    let service = Process::start(home.path(), &["-c", "4096", "-np", "2"]);
    let body = json!({"prompt": "x", "n_predict": 600, "ignore_eos": true, "stream": true});
    let mut reader = Wire::open(service.address);
    reader.write(request("POST", "/completion", &[], &body.to_string()));
    assert_eq!(reader.read_head().unwrap().0, 200);
    assert!(reader.read_chunk().is_some());
    service.terminate();
    let mut last = Vec::new();
    while let Some(chunk) = reader.read_chunk() {
        last = chunk;
    }
    let last = String::from_utf8(last).unwrap();
    assert!(last.contains("\"stop\":true"), "{last}");
    assert_eq!(service.end().0, Some(0));
}

#[test]
fn a_signal_without_grace_cuts_a_stream_off() {
    let home = tempfile::tempdir().unwrap();
    let service = Process::start(home.path(), &["-c", "16384", "-np", "1", "--stop-grace", "0"]);
    let body = json!({"prompt": "x", "n_predict": -1, "ignore_eos": true, "stream": true,
        "context_shift": true});
    let mut reader = Wire::open(service.address);
    reader.write(request("POST", "/completion", &[], &body.to_string()));
    assert!(reader.read_chunk_after_head());
    service.terminate();
    while reader.read_chunk().is_some() {}
    assert_eq!(service.end().0, Some(0));
}

#[test]
fn raw_bytes_cuts_and_a_crowd_leave_the_service_whole() {
    let home = tempfile::tempdir().unwrap();
    let service = Process::start(home.path(), &["-c", "1024", "-np", "2"]);
    let at = service.address;
    for body in ["{", "{\"prompt\": }", "\u{0}", "[]"] {
        let answer = send(at, "POST", "/completion", &[], body);
        assert_eq!((answer.status, &*answer.error_type()), (400, "invalid_request_error"));
    }
    let endless = json!({"prompt": "x", "n_predict": -1, "ignore_eos": true, "stream": true,
        "context_shift": true});
    let bytes = request("POST", "/completion", &[], &endless.to_string());
    for n in [1, 20, bytes.len() - 1] {
        let mut half = Wire::open(at);
        half.write(&bytes[..n]);
        drop(half);
    }
    let n_busy = || {
        let slots = get(at, "/slots").json();
        slots.as_array().unwrap().iter().filter(|slot| slot["is_processing"] == true).count()
    };
    let mut caller = Wire::open(at);
    caller.write(&bytes);
    assert!(caller.read_chunk_after_head());
    assert_eq!(n_busy(), 1);
    drop(caller);
    until("the slot is free", || n_busy() == 0);
    let call = move |_| {
        std::thread::spawn(move || {
            let answer = post(at, "/completion", &json!({"prompt": "x", "n_predict": 2}));
            let comes_back = answer.status == 503 && answer.header("retry-after").is_some();
            assert!(answer.status == 200 || comes_back, "{}", answer.text());
        })
    };
    let callers: Vec<JoinHandle<()>> = (0..200).map(call).collect();
    callers.into_iter().for_each(|caller| caller.join().unwrap());
    assert_eq!((get(at, "/health").status, n_busy()), (200, 0));
    service.terminate();
    assert_eq!(service.end().0, Some(0));
}

#[test]
fn a_request_says_how_long_its_model_stays() {
    let home = tempfile::tempdir().unwrap();
    let options = ["-c", "512", "-np", "1", "--keep-alive", "1h30m"];
    let service = Process::start(home.path(), &options);
    let at = service.address;
    let is_loaded =
        || get(at, "/v1/models").json()["data"][0]["status"]["value"] == json!("loaded");
    let ask = |keep: serde_json::Value| {
        post(at, "/completion", &json!({"prompt": "x", "n_predict": 2, "keep_alive": keep}))
    };
    assert_eq!(ask(json!("5m")).status, 200);
    assert!(is_loaded());
    assert_eq!(ask(json!(0)).status, 200);
    until("the model is unloaded", || !is_loaded());
    assert_eq!(ask(json!(-1)).status, 200, "it is loaded again");
    assert!(is_loaded());
    for wrong in [json!("soon"), json!([5])] {
        let answer = ask(wrong);
        assert_eq!((answer.status, &answer.json()["error"]["param"]), (400, &json!("keep_alive")));
    }
    assert_eq!(run(home.path(), &["serve", "--keep-alive", "soon"]).0, 2);
}

#[test]
fn options_are_understood_refused_or_nearly_guessed() {
    let home = tempfile::tempdir().unwrap();
    let (code, _, said) = run(home.path(), &["serve", "--ctx-siez", "512"]);
    assert_eq!(code, 2);
    assert!(said.contains("--ctx-size"), "{said}");
    let (code, _, said) = run(home.path(), &["serve", "-hf", "a/b"]);
    assert_eq!(code, 2);
    assert!(said.contains("jetforge pull"), "{said}");
    let (code, _, said) = run(home.path(), &["serve", "--model", "no-such-model"]);
    assert_eq!(code, 3, "{said}");
    let (code, _, said) = run(home.path(), &["serve", "--parallel", "0"]);
    assert_eq!(code, 2);
    assert!(said.contains("--parallel"), "{said}");
}

#[test]
fn beyond_this_machine_a_key_is_needed() {
    let home = tempfile::tempdir().unwrap();
    let exposed = ["serve", "--host", "0.0.0.0", "--port", "0"];
    let (code, out, said) = run(home.path(), &exposed);
    assert_eq!((code, out.as_str()), (2, ""), "{said}");
    assert!(said.contains("jetforge key create NAME"), "{said}");
    let (code, key, said) = run(home.path(), &["key", "create", "editor", "--per-minute", "100"]);
    assert_eq!(code, 0, "{said}");
    let key = key.trim();
    let (_, list, _) = run(home.path(), &["key", "list"]);
    assert!(list.contains("editor") && list.contains("100") && !list.contains(key), "{list}");
    let service = Process::start(home.path(), &["--host", "0.0.0.0"]);
    let at = SocketAddr::from(([127, 0, 0, 1], service.address.port()));
    let ask = |key: &str| {
        let bearer = format!("Bearer {key}");
        send(at, "POST", "/tokenize", &[("authorization", &bearer)], "{\"content\":\"x\"}").status
    };
    assert_eq!((ask(key), ask("wrong")), (200, 401));
    let (code, ..) = run(home.path(), &["key", "revoke", "editor"]);
    assert_eq!((code, ask(key)), (0, 401), "the running service notices");
    let (code, _, said) = run(home.path(), &["key", "revoke", "editor"]);
    assert_eq!(code, 2, "{said}");
}

#[test]
fn a_context_that_does_not_fit_is_reduced_or_refused() {
    let home = tempfile::tempdir().unwrap();
    let service = Process::start(home.path(), &["--memory-max", "115M", "-np", "4"]);
    service.terminate();
    let (code, said) = service.end();
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("each sequence gets a context of"), "{said}");
    let asked = ["serve", "--port", "0", "--memory-max", "115M", "-c", "64000"];
    let (code, _, said) = run(home.path(), &asked);
    assert_eq!(code, 4, "{said}");
}
