//! Prefixes that outlive the service: the real binary, killed and started again.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::cli::jetforge;
use crate::serve::Process;
use crate::support::http::{get, post, until};

/// 72 lines that no sampler says by chance.
fn prompt() -> String {
    (0..36).map(|i| format!("def step_{i}(items, n):\n    return items[{i}] + n * {i}\n")).collect()
}

fn start(home: &Path, more: &[&str]) -> Process {
    Process::start(home, &[&["-c", "4096", "-np", "2", "--metrics"], more].concat())
}

fn ask(service: &Process, prompt: &str) -> Value {
    let body = json!({
        "prompt": prompt, "n_predict": 24, "temperature": 0, "ignore_eos": true,
    });
    let answer = post(service.address, "/completion", &body);
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.json()
}

fn n_cached(answer: &Value) -> u64 {
    answer["timings"]["cache_n"].as_u64().unwrap()
}

fn metric(service: &Process, name: &str) -> f64 {
    let text = get(service.address, "/metrics").text();
    let line = text.lines().find(|line| line.starts_with(&format!("{name} ")));
    let line = line.unwrap_or_else(|| panic!("{name} is not in {text}"));
    line.rsplit(' ').next().unwrap().parse().unwrap()
}

/// Waits until `n` pages are on the disk: before, a kill takes what was not written.
fn kept(service: &Process, n: u64) {
    until("the pages are kept", || metric(service, "jetforge_disk_cache_pages") >= n as f64);
}

fn pages(home: &Path) -> Vec<PathBuf> {
    let dir = std::fs::read_dir(home.join("prefixes/pages")).unwrap();
    let mut pages: Vec<_> = dir.map(|file| file.unwrap().path()).collect();
    pages.sort();
    pages
}

fn verb(home: &Path, args: &[&str]) -> Value {
    let output = jetforge(home).args(args).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{args:?}: {said}");
    serde_json::from_slice(&output.stdout).unwrap_or_default()
}

#[test]
fn a_prompt_outlives_a_kill_and_damage_only_costs_time() {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("prefixes").display().to_string();
    let at = ["--disk-cache-dir", &dir];
    let service = start(home.path(), &at);
    let first = ask(&service, &prompt());
    assert_eq!(n_cached(&first), 0);
    let n_prompt = first["timings"]["prompt_n"].as_u64().unwrap();
    kept(&service, (n_prompt - 1).div_ceil(32));
    drop(service); // SIGKILL
    let service = start(home.path(), &at);
    let again = ask(&service, &prompt());
    assert_eq!(again["content"], first["content"]);
    assert!(n_cached(&again) + 8 >= n_prompt, "{} of {n_prompt}", n_cached(&again));
    let longer = ask(&service, &format!("{}def last(", prompt()));
    assert!(n_cached(&longer) + 16 >= n_prompt);
    assert_eq!(metric(&service, "jetforge_tokens_restored_total{model=\"default\"}") as u64, {
        n_cached(&again)
    });
    drop(service);

    // One page cut, one changed, two swapped: what is before them is still good.
    let files = pages(home.path());
    let n = files.len();
    let bytes = std::fs::read(&files[0]).unwrap();
    std::fs::write(&files[0], &bytes[..bytes.len() / 2]).unwrap();
    let mut bytes = std::fs::read(&files[1]).unwrap();
    bytes[1000] ^= 8;
    std::fs::write(&files[1], bytes).unwrap();
    std::fs::rename(&files[2], home.path().join("third")).unwrap();
    std::fs::rename(&files[3], &files[2]).unwrap();
    std::fs::rename(home.path().join("third"), &files[3]).unwrap();
    let service = start(home.path(), &at);
    let damaged = ask(&service, &prompt());
    assert_eq!(damaged["content"], first["content"]);
    assert!(n_cached(&damaged) < n_cached(&again));
    drop(service);

    // Another device key opens nothing; another KV type looks for nothing.
    std::fs::remove_file(find(home.path(), "prefix.key")).unwrap();
    for more in [&[][..], &["--kv-type", "q8_0"]] {
        let service = start(home.path(), &[&at[..], more].concat());
        let foreign = ask(&service, &prompt());
        assert_eq!(n_cached(&foreign), 0);
        if more.is_empty() {
            assert_eq!(foreign["content"], first["content"]);
        }
    }
    assert!(pages(home.path()).len() >= n - 4);
}

fn find(dir: &Path, name: &str) -> PathBuf {
    let mut found = None;
    for file in std::fs::read_dir(dir).unwrap().flatten() {
        if file.path().is_dir() {
            let below = find(&file.path(), name);
            found = found.or((!below.as_os_str().is_empty()).then_some(below));
        } else if file.file_name() == *name {
            found = Some(file.path());
        }
    }
    found.unwrap_or_default()
}

#[test]
fn a_warmed_system_prompt_is_found_by_a_service_that_runs_already() {
    let home = tempfile::tempdir().unwrap();
    let (file, context) = (home.path().join("system.txt"), home.path().join("context.py"));
    std::fs::write(&file, format!("You know this module.\n{}", prompt())).unwrap();
    std::fs::write(&context, prompt()).unwrap();
    let dir = home.path().join("prefixes").display().to_string();
    let set = format!("prefix_cache.dir={dir}");
    let service = start(home.path(), &["--disk-cache-dir", &dir]);
    let file = file.display().to_string();
    let warmed = verb(home.path(), &["warm", &file, "--set", &set, "-t", "1", "--json"]);
    let n_tokens = warmed["n_tokens"].as_u64().unwrap();
    assert!(n_tokens > 500 && warmed["n_page_written"].as_u64().unwrap() >= n_tokens / 32);
    // What the service knows of the directory may be a second old.
    kept(&service, warmed["n_page_written"].as_u64().unwrap());
    let system = std::fs::read_to_string(&file).unwrap();
    let chat = json!({
        "messages": [
            {"role": "system", "content": system.trim_end()},
            {"role": "user", "content": "Which step adds three?"},
        ],
        "max_tokens": 4,
    });
    let answer = post(service.address, "/v1/chat/completions", &chat).json();
    let n_found = answer["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap();
    assert!(n_found + 8 >= n_tokens, "{n_found} of {n_tokens}: {answer}");
    let context = context.display().to_string();
    let more = verb(home.path(), &["warm", "--raw", &context, "--set", &set, "-t", "1", "--json"]);
    let n_written = |told: &Value| told["n_page_written"].as_u64().unwrap();
    kept(&service, n_written(&warmed) + n_written(&more));
    let n_prompt = ask(&service, &prompt())["timings"].clone();
    assert!(n_prompt["cache_n"].as_u64() > Some(500), "{n_prompt}");

    let status = || verb(home.path(), &["cache", "status", "--json", "--set", &set]);
    assert!(status()["n_page"].as_u64() > Some(30) && status()["bytes"].as_u64() > Some(0));
    assert!(status()["written_today"].as_u64() >= status()["bytes"].as_u64());
    let clear = || verb(home.path(), &["cache", "clear", "--json", "--set", &set]);
    assert!(clear()["n_page"].as_u64() > Some(30));
    // What the service was about to keep of the last answer comes after that.
    until("nothing is kept", || {
        clear();
        (status()["n_page"].as_u64(), pages(home.path()).len()) == (Some(0), 0)
    });
    assert_eq!(get(service.address, "/health").status, 200);
}

#[test]
fn off_is_off() {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("prefixes").display().to_string();
    let service = start(home.path(), &["--disk-cache-dir", &dir, "--no-disk-cache"]);
    assert_eq!(n_cached(&ask(&service, &prompt())), 0);
    assert!(!get(service.address, "/metrics").text().contains("jetforge_disk_cache"));
    assert!(!Path::new(&dir).exists() && find(home.path(), "prefix.key").as_os_str().is_empty());
}
