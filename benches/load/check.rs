//! What the service promises on a model of half a billion weights, measured one by one.
//!
//! Each check prints its figure beside its bound; the exit status says whether all were kept. On a
//! machine that others use, figures of time are theirs, too.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;

use super::ask::Ask;
use super::host::Host;
use super::measure::Load;
use super::prompt::PromptShape;
use super::report::{Row, median, percentile, unfairness};

/// Positions that the longest check needs.
const N_CTX_LONG: usize = 4608;
/// Positions for the look at memory: before the first thousand short requests are over, the prefix
/// cache has used every page once, which is when the system backs it with memory.
const N_CTX_SHORT: usize = 1024;
/// Longest gap between tokens that prefill beside them may cause (`ITL_BUDGET` of the engine).
const ITL_BUDGET_S: f64 = 0.150;
/// Requests over which memory has to stay, and after which it is looked at first.
const N_FLAT: usize = 10_000;
const N_WARM: usize = 1_000;
/// Growth that still counts as flat.
const GROWTH_MAX: f64 = 1.02;

/// A promise and what was measured.
#[derive(Debug)]
pub struct Finding {
    name: &'static str,
    /// `None` where it cannot be measured here.
    is_kept: Option<bool>,
    figure: String,
}

fn finding(name: &'static str, is_kept: bool, figure: String) -> Finding {
    Finding { name, is_kept: Some(is_kept), figure }
}

fn load(n_prompt: usize, n_shared: usize, n_predict: usize, seed: u64) -> Load {
    Load { prompt: PromptShape { n_prompt, n_shared }, n_predict, seed }
}

/// The groups of checks that share a server, with the context of each of its sequences.
pub const GROUPS: [(usize, &[&str]); 2] =
    [(N_CTX_LONG, &[BATCH, ERRORS, FAIR, HEALTH, PREFIX, GAP]), (N_CTX_SHORT, &[MEMORY])];

/// Whether `only`, if it has any words, asks for this check.
pub fn is_asked(name: &str, only: &[String]) -> bool {
    only.is_empty() || only.iter().any(|word| name.starts_with(word.as_str()))
}

/// Measures what `names` names.
pub async fn run(host: Host, seed: u64, names: &[&'static str]) -> anyhow::Result<Vec<Finding>> {
    let host = Arc::new(host);
    load(64, 0, 16, seed).warm_up(&host).await;
    let mut findings = Vec::new();
    for name in names {
        let found = measure(name, &host, seed).await?;
        let verdict = match found.is_kept {
            Some(true) => "pass",
            Some(false) => "FAIL",
            None => "not measured",
        };
        eprintln!("{verdict:4}  {name}: {}", found.figure);
        findings.push(found);
    }
    if let Ok(host) = Arc::try_unwrap(host) {
        host.stop().await?;
    }
    Ok(findings)
}

/// Prints the findings as JSON; whether all was kept.
pub fn verdict(findings: &[Finding], as_json: bool) -> bool {
    if as_json {
        let row = |f: &Finding| json!({"name": f.name, "pass": f.is_kept, "figure": f.figure});
        println!("{:#}", json!({"checks": findings.iter().map(row).collect::<Vec<_>>()}));
    }
    findings.iter().all(|finding| finding.is_kept != Some(false))
}

const BATCH: &str = "8 clients, 1.8 times the tokens of one";
const ERRORS: &str = "64 clients, no error";
const FAIR: &str = "16 equal clients, the slowest at most 1.5 times the median";
const HEALTH: &str = "health and models while decoding, p95 at most 50 ms";
const PREFIX: &str = "warm prefix of 1,000 tokens and 32 new ones, p95 at most 2 s";
const GAP: &str = "gap beside a prompt of 4,000 tokens, p99 at most 150 ms";
const MEMORY: &str = "memory flat over 10,000 requests";

async fn measure(name: &'static str, host: &Arc<Host>, seed: u64) -> anyhow::Result<Finding> {
    Ok(match name {
        BATCH => batch(host, seed).await,
        ERRORS => errors(host, seed).await,
        FAIR => fair(host, seed).await,
        HEALTH => health(host, seed).await?,
        PREFIX => prefix(host, seed).await,
        GAP => gap(host, seed).await,
        _ => memory(host, seed).await,
    })
}

async fn batch(host: &Arc<Host>, seed: u64) -> Finding {
    let load = load(32, 0, 64, seed);
    let (mut ratios, mut ones, mut eights) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..5 {
        let first_idx = round << 20;
        let one = Row::of("", String::new(), &load.closed(host, 1, 3, first_idx).await);
        let eight = load.closed(host, 8, 2, first_idx + 1000).await;
        let eight = Row::of("", String::new(), &eight);
        ratios.push(eight.tok_s / one.tok_s);
        ones.push(one.tok_s);
        eights.push(eight.tok_s);
    }
    let ratio = median(ratios.clone());
    let [low, high] = [0.0, 100.0].map(|p| percentile(&mut ratios, p));
    let (one, eight) = (median(ones), median(eights));
    let figure = format!("{ratio:.2} ({low:.2}-{high:.2} in 5 rounds; {one:.1}, {eight:.1} tok/s)");
    finding(BATCH, ratio >= 1.8, figure)
}

async fn errors(host: &Arc<Host>, seed: u64) -> Finding {
    let outcome = load(64, 32, 16, seed).closed(host, 64, 4, 10 << 20).await;
    let row = Row::of("", String::new(), &outcome);
    let n_error: usize = row.errors.values().sum();
    let figure = format!("{n_error} of {} requests: {:?}", row.n_request, row.first_error);
    finding(ERRORS, row.is_clean(), figure.replace(": None", ""))
}

async fn fair(host: &Arc<Host>, seed: u64) -> Finding {
    let mut worst = Vec::new();
    let mut single = Vec::new();
    for round in 0..3 {
        let load = load(64, 0, 32, seed);
        let outcome = load.closed(host, 16, 4, (20 + round) << 20).await;
        worst.push(unfairness(&outcome));
        let mut waits: Vec<f64> = outcome.samples.iter().map(|s| s.wait_s).collect();
        single.push(percentile(&mut waits, 100.0) / percentile(&mut waits, 50.0));
    }
    let [low, high] = [0.0, 100.0].map(|p| percentile(&mut worst, p));
    let (worst, single) = (median(worst), median(single));
    let figure =
        format!("{worst:.2} ({low:.2}-{high:.2} in 3 rounds); single requests {single:.2}");
    finding(FAIR, worst <= 1.5, figure)
}

/// Eight streams until they are told to stop; their gaps are not looked at.
async fn background(host: Arc<Host>, seed: u64, stop: Arc<AtomicBool>) {
    let mut first_idx = 30 << 20;
    while !stop.load(Ordering::Relaxed) {
        load(32, 0, 64, seed).closed(&host, 8, 1, first_idx).await;
        first_idx += 1000;
    }
}

async fn health(host: &Arc<Host>, seed: u64) -> anyhow::Result<Finding> {
    let stop = Arc::new(AtomicBool::new(false));
    let streams = tokio::spawn(background(Arc::clone(host), seed, Arc::clone(&stop)));
    tokio::time::sleep(Duration::from_millis(500)).await;
    let mut figures = Vec::new();
    let mut is_kept = true;
    for path in ["/health", "/v1/models"] {
        let mut times = Vec::new();
        for _ in 0..200 {
            let started = Instant::now();
            host.client.get_json(path).await?;
            times.push(started.elapsed().as_secs_f64() * 1e3);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let [p50, p95, p100] = [50.0, 95.0, 100.0].map(|p| percentile(&mut times, p));
        is_kept &= p95 <= 50.0;
        figures.push(format!("{path} p50 {p50:.1}, p95 {p95:.1}, most {p100:.1} ms"));
    }
    stop.store(true, Ordering::Relaxed);
    streams.await?;
    Ok(finding(HEALTH, is_kept, figures.join("; ")))
}

async fn prefix(host: &Arc<Host>, seed: u64) -> Finding {
    let load = load(1008, 1000, 32, seed);
    load.warm_up(host).await;
    let outcome = load.closed(host, 1, 40, 40 << 20).await;
    let n_cold = outcome.samples.iter().filter(|s| s.n_cached < 900).count();
    let row = Row::of("", String::new(), &outcome);
    let [p50, p95, p99] = row.wait_s;
    let figure = format!("p50 {p50:.2}, p95 {p95:.2}, p99 {p99:.2} s; {n_cold} of 40 not cached");
    finding(PREFIX, p95 <= 2.0 && n_cold == 0 && row.is_clean(), figure)
}

/// A stream runs while long prompts come, one after another; only gaps that ended while one was
/// being read count.
async fn gap(host: &Arc<Host>, seed: u64) -> Finding {
    let mut gaps = Vec::new();
    let mut prefill_s = Vec::new();
    for round in 0..3u64 {
        let prompt = PromptShape { n_prompt: 32, n_shared: 0 }.tokens(seed, (50 + round) << 20);
        let ask = Ask { prompt, n_predict: 4000, seed, temperature: 1.0 };
        let beside = Arc::clone(host);
        let (sender, mut ends) = tokio::sync::mpsc::unbounded_channel();
        let stream = tokio::spawn(async move { ask.watch(&beside.client, &sender).await });
        tokio::time::sleep(Duration::from_millis(1500)).await;
        let started = Instant::now();
        let long = load(4000, 0, 1, seed).closed(host, 1, 1, (60 + round) << 20).await;
        prefill_s.push(long.took_s);
        stream.abort();
        let _ = stream.await;
        let mut last = None;
        while let Ok(end) = ends.try_recv() {
            if let Some(last) = last.replace(end).filter(|_| end > started) {
                gaps.push((end - last).as_secs_f64());
            }
        }
    }
    let [p50, p99, most] = [50.0, 99.0, 100.0].map(|p| percentile(&mut gaps, p) * 1e3);
    let n = gaps.len();
    let prefill_s = median(prefill_s);
    let figure = format!(
        "p50 {p50:.0}, p99 {p99:.0}, most {most:.0} ms of {n} gaps in 3 prompts of {prefill_s:.1} s"
    );
    finding(GAP, p99 <= ITL_BUDGET_S * 1e3, figure)
}

async fn memory(host: &Arc<Host>, seed: u64) -> Finding {
    if host.resident_bytes().is_none() {
        let figure = "the process is not known (--pid)".to_owned();
        return Finding { name: MEMORY, is_kept: None, figure };
    }
    let load = load(8, 0, 2, seed);
    let (mut resident, mut resident_all) = (Vec::new(), Vec::new());
    let mut n_error = 0;
    for n in (0..N_FLAT).step_by(N_WARM) {
        let outcome = load.closed(host, 8, N_WARM / 8, (70 << 20) + n as u64).await;
        n_error += outcome.samples.iter().filter(|s| s.error.is_some()).count();
        let (own, all) = host.resident_bytes().unwrap_or_default();
        resident.push(own as f64 / 1e6);
        resident_all.push(all as f64 / 1e6);
    }
    let (first, last) = (resident[0], resident[resident.len() - 1]);
    // The last answer is there before the engine has put its pages away.
    for _ in 0..100 {
        if host.metric("jetforge_kv_pages_used").await.is_none_or(|used| used == 0.0) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let mut pages = Vec::new();
    for name in ["jetforge_kv_pages_used", "jetforge_kv_pages_cached", "jetforge_kv_pages"] {
        pages.push(host.metric(name).await.unwrap_or(f64::NAN).to_string());
    }
    let pages = pages.join(" / ");
    let each: Vec<String> = resident.iter().map(|mb| format!("{mb:.0}")).collect();
    let figure = format!(
        "{first:.1} MB of its own after {N_WARM}, {last:.1} MB after {N_FLAT} (each {N_WARM}: {}); \
         with the model's file {:.0} and {:.0} MB; {n_error} errors; pages used / cached / all: \
         {pages}",
        each.join(" "),
        resident_all[0],
        resident_all[resident_all.len() - 1]
    );
    finding(MEMORY, last <= first * GROWTH_MAX && n_error == 0, figure)
}
