//! The configuration of a running service: put over HTTP, read anew, and kept when it is wrong.

use std::path::Path;

use serde_json::{Value, json};

use crate::cli::jetforge;
use crate::serve::Process;
use crate::support::http::{Answer, get, send, until};
use crate::support::run::Run;

fn put(service: &Process, body: &Value) -> Answer {
    send(service.address, "PUT", "/v1/config", &[], &body.to_string())
}

fn value(service: &Process, key: &str) -> Value {
    get(service.address, "/v1/config").json()["keys"][key].clone()
}

fn profile(service: &Process) -> Value {
    get(service.address, "/v1/power").json()["profile"].clone()
}

fn config_file(home: &Path, name: &str, text: &str) {
    let path = home.join(".config/jetforge").join(name);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, text).unwrap();
}

#[test]
fn what_is_put_is_in_force_or_said_to_wait_and_stays() {
    let home = tempfile::tempdir().unwrap();
    let service = Process::start(home.path(), &[]);
    let body = json!({
        "power": {"profile": "eco"}, "server.log_level": "debug", "model": {"n_ctx": 512},
    });
    let answer = put(&service, &body);
    assert_eq!(answer.status, 200, "{}", answer.text());
    let answer = answer.json();
    assert_eq!(answer["changed"], json!(["power.profile", "server.log_level"]));
    assert_eq!(answer["needs_restart"], json!(["model.n_ctx"]));
    assert_eq!(answer["overridden"], json!([]));
    until("the board is run under it", || profile(&service) == "eco");
    let shown = value(&service, "model.n_ctx");
    assert_eq!(shown["value"], 512);
    let source = shown["source"].as_str().unwrap();
    assert!(source.contains("config.put.toml:"), "{source}");
    service.kill();
    let service = Process::start(home.path(), &[]);
    until("it is still", || profile(&service) == "eco");
    assert_eq!(put(&service, &json!({"power": {"profile": null}})).status, 200);
    until("it was taken back", || profile(&service) == "auto");
    assert_eq!(value(&service, "model.n_ctx")["value"], 512, "and nothing else");
}

#[test]
fn what_cannot_be_is_refused_by_its_path_and_changes_nothing() {
    let home = tempfile::tempdir().unwrap();
    let service = Process::start(home.path(), &["--set", "power.profile=max"]);
    for (body, path) in [
        (json!({"model": {"n_ctx": 0}}), "model.n_ctx"),
        (json!({"power": {"profile": "eco", "soft_limit_c": 20}}), "power.soft_limit_c"),
        (json!({"power.profil": "eco"}), "power.profil"),
        (json!({"power": {"profile": "turbo"}}), "power.profile"),
        (json!({"server": {"n_parallel": "many"}}), "server.n_parallel"),
        (json!({"server": {"api_key_file": "/etc/shadow"}}), "server.api_key_file"),
        (json!({"model": {"name": "/etc/passwd"}}), "model.name"),
        (json!({"hub": {"nano": ["evil.example:1"]}}), "hub.nano"),
        (json!({"turbo": true}), "turbo"),
    ] {
        let answer = put(&service, &body);
        let param = answer.json()["error"]["param"].clone();
        assert_eq!((answer.status, param), (422, json!(path)), "{body}: {}", answer.text());
    }
    assert_eq!(value(&service, "model.n_ctx")["source"], "default");
    let state = home.path().join(".local/state/jetforge");
    assert!(
        !state.join("config.put.toml").exists() && !state.join("config.put.next.toml").exists()
    );
    let answer = put(&service, &json!({"power": {"profile": "eco"}})).json();
    assert_eq!(answer["overridden"], json!(["power.profile"]), "an option is stronger");
    assert_eq!(value(&service, "power.profile")["value"], "max");
}

#[test]
fn files_are_read_anew_and_the_last_good_ones_stay() {
    let home = tempfile::tempdir().unwrap();
    config_file(home.path(), "config.yaml", "power:\n  profile: balanced\n");
    let service = Process::start(home.path(), &[]);
    until("the file counts", || profile(&service) == "balanced");
    config_file(home.path(), "config.d/10-more.toml", "[power]\nprofile = \"eco\"\n");
    service.signal(rustix::process::Signal::HUP);
    until("a signal was heard", || profile(&service) == "eco");
    config_file(home.path(), "config.d/10-more.toml", "[power]\nprofile = \"turbo\"\n");
    service.signal(rustix::process::Signal::HUP);
    config_file(home.path(), "config.d/20-last.yml", "power: {idle_after_s: 77}\n");
    service.signal(rustix::process::Signal::HUP);
    until("the wrong file was read", || {
        get(service.address, "/logs").text().contains("the last good one stays")
    });
    assert_eq!(profile(&service), "eco", "neither the default nor nothing");
    assert_eq!(value(&service, "power.idle_after_s")["value"], 30, "nor a part of what is wrong");
    config_file(home.path(), "config.d/10-more.toml", "[power]\nprofile = \"max\"\n");
    until("a changed file was seen", || profile(&service) == "max");
    assert_eq!(value(&service, "power.idle_after_s")["value"], 77);
    service.terminate();
    let (code, said) = service.end();
    assert_eq!(code, Some(0));
    assert!(said.contains("configuration read"), "{said}");
}

#[test]
fn only_an_administrator_sees_and_changes_it() {
    let home = tempfile::tempdir().unwrap();
    let created = Run::of(jetforge(home.path()).args(["key", "create", "reader"])).ok().out;
    let service = Process::start(home.path(), &["--api-key", "admin"]);
    let ask = |method: &str, key: &str| {
        let key = format!("Bearer {key}");
        let headers = [("authorization", key.as_str())];
        send(service.address, method, "/v1/config", &headers, "{}").status
    };
    assert_eq!((ask("GET", created.trim()), ask("PUT", created.trim())), (403, 403));
    assert_eq!((ask("GET", "admin"), ask("PUT", "admin"), ask("GET", "none")), (200, 200, 401));
}

#[test]
fn a_configuration_is_checked_before_it_is_used() {
    let home = tempfile::tempdir().unwrap();
    let check = |args: &[&str]| {
        Run::of(jetforge(home.path()).args([&["config", "check"][..], args].concat()))
    };
    assert_eq!(check(&[]).ok().out, "0 keys are set\n");
    let file = home.path().join("jetforge.toml");
    std::fs::write(&file, "[model]\nn_ctx = 7\n").unwrap();
    let drop_in = home.path().join("jetforge.toml.d/site.yaml");
    std::fs::create_dir_all(drop_in.parent().unwrap()).unwrap();
    std::fs::write(&drop_in, "sampling:\n  temp: 0.5\n").unwrap();
    let name = file.display().to_string();
    let good = format!("{name}: good\n{}: good\n2 keys are set\n", drop_in.display());
    assert_eq!(check(&[&name]).ok().out, good);
    std::fs::write(&drop_in, "sampling:\n  temp: warm\n").unwrap();
    let wrong = check(&[&name]);
    assert_eq!(wrong.code, 2);
    assert!(wrong.err.contains("site.yaml:2: `sampling.temp`"), "{}", wrong.err);
}
