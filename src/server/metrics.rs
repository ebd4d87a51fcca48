//! `/metrics` in Prometheus' text format: llama.cpp's names, and ours in base units.
//!
//! llama.cpp's stand for the whole service, ours for each model. A label holds a model's name, a
//! route or a status, never anything that a caller sent.

use std::fmt::Write;
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use axum::routing::get;

use super::sync::standings;
use super::{ApiError, Gate, logs, power};
use crate::hosting::Host;
use crate::inference::{DiskCacheStats, Engine, EngineStats, HISTOGRAM_BOUNDS_S, Histogram, Miss};
use crate::jobs::Counts;
use crate::sync::PeerStanding;

/// The routes of this file.
pub(super) fn routes() -> Router<Gate> {
    Router::new().route("/metrics", get(metrics))
}

async fn metrics(State(gate): State<Gate>) -> Response {
    if !gate.server().0.options.shows_metrics {
        let message = "This server does not support metrics endpoint. Start it with `--metrics`";
        return ApiError::not_supported(message).into_response();
    }
    let mut page = Page::default();
    let host = &gate.server().0.host;
    let engines = host.engines();
    let models: Vec<Reading> = engines
        .iter()
        .map(|(name, engine)| Reading {
            name: name.clone(),
            stats: engine.stats(),
            n_tokens_max: engine
                .timelines()
                .iter()
                .map(|timeline| timeline.timings.n_prompt + timeline.timings.n_generated)
                .max()
                .unwrap_or(0),
        })
        .collect();
    llama_metrics(&mut page, &models);
    engine_metrics(&mut page, &models);
    if let Some(disk) = engines.iter().find_map(|(_, e)| e.options().disk_cache.as_ref()) {
        disk_metrics(&mut page, &disk.stats());
    }
    model_metrics(&mut page, host, &engines);
    service_metrics(&mut page, &gate);
    if let Some(n) = logs::n_lost() {
        let help = "Events that the journal had no time for";
        page.one("jetforge_log_events_lost_total", "counter", help, n as f64);
    }
    if let Some(watch) = gate.power() {
        power::metrics(&mut page, &watch.standing());
    }
    if let Some(door) = gate.jobs() {
        match door.counts().await {
            Ok((counts, _)) => job_metrics(&mut page, &counts),
            Err(error) => return error.into_response(),
        }
    }
    match standings(&gate).await {
        Ok(standings) => sync_metrics(&mut page, &standings),
        Err(error) => return error.into_response(),
    }
    let kind = "text/plain; version=0.0.4; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], page.text).into_response()
}

/// What is in memory, where it computes, and what is on its way there.
fn model_metrics(page: &mut Page, host: &Host, engines: &[(String, Arc<Engine>)]) {
    let hosted = host.models();
    page.head("jetforge_model_memory_bytes", "gauge", "Memory that a loaded model may take");
    for model in hosted.iter().filter(|model| model.is_loaded) {
        let labels = format!("model=\"{}\"", escape(&model.entry.name));
        page.sample("jetforge_model_memory_bytes", &labels, model.memory_bytes as f64);
    }
    page.head("jetforge_model_device", "gauge", "1 for the device that a loaded model runs on");
    for (name, engine) in engines {
        let device = engine.info().device();
        let labels = format!("model=\"{}\",device=\"{}\"", escape(name), device.name);
        page.sample("jetforge_model_device", &labels, 1.0);
    }
    page.head("jetforge_model_loaded", "gauge", "Whether a model is in memory");
    for model in &hosted {
        let labels = format!("model=\"{}\"", escape(&model.entry.name));
        page.sample("jetforge_model_loaded", &labels, f64::from(u8::from(model.is_loaded)));
    }
    let name = "jetforge_model_load_ratio";
    page.head(name, "gauge", "How much of the weights of a model that loads is in its place");
    let loading = host.loading();
    if let Some((loading, ratio)) = loading.and_then(|l| l.progress.fraction().map(|r| (l, r))) {
        page.sample(name, &format!("model=\"{}\"", escape(&loading.name)), ratio);
    }
}

/// How links with peers stand.
fn sync_metrics(page: &mut Page, standings: &[PeerStanding]) {
    type Read = fn(&PeerStanding) -> u64;
    let gauges: [(&str, &str, Read); 3] = [
        ("waiting", "Entries that a peer does not have yet", |of| of.standing.n_waiting),
        ("needs_you", "Things that somebody has to look at", |of| of.standing.n_needs_you()),
        ("failed_calls", "Calls that failed since the last that did not", |of| of.n_failed.into()),
    ];
    for (name, help, read) in gauges.iter().filter(|_| !standings.is_empty()) {
        let name = format!("jetforge_sync_{name}");
        page.head(&name, "gauge", help);
        for of in standings {
            let labels = format!("peer=\"{}\"", escape(&of.peer.name));
            page.sample(&name, &labels, read(of) as f64);
        }
    }
}

/// Jobs, counted in the table.
fn job_metrics(page: &mut Page, counts: &Counts) {
    page.head("jetforge_jobs", "gauge", "Jobs in each state");
    for (state, (n, _)) in counts {
        page.sample("jetforge_jobs", &format!("state=\"{state}\""), *n as f64);
    }
    page.head("jetforge_job_bytes", "gauge", "Bytes that jobs of each state take on the disk");
    for (state, (_, n_bytes)) in counts {
        page.sample("jetforge_job_bytes", &format!("state=\"{state}\""), *n_bytes as f64);
    }
}

/// What one engine says.
struct Reading {
    name: String,
    stats: EngineStats,
    /// The longest sequence of late, prompt and answer.
    n_tokens_max: usize,
}

/// llama.cpp's names and meanings, over all engines.
fn llama_metrics(page: &mut Page, models: &[Reading]) {
    let sum = |read: fn(&EngineStats) -> f64| models.iter().map(|m| read(&m.stats)).sum::<f64>();
    let prompt = sum(|s| s.prefill_tokens_total as f64);
    let prompt_s = sum(|s| s.prefill_seconds_total);
    let predicted = sum(|s| s.generated_tokens_total as f64);
    let predicted_s = sum(|s| s.decode_seconds_total);
    let steps = sum(|s| s.steps_total as f64);
    let longest = models.iter().map(|m| m.n_tokens_max).max().unwrap_or(0);
    let rate = |n: f64, s: f64| if s > 0.0 { n / s } else { 0.0 };
    let counters = [
        ("prompt_tokens_total", "Number of prompt tokens processed, without cached ones", prompt),
        (
            "prompt_tokens_cached_total",
            "Number of prompt tokens reused from the cache",
            sum(|s| s.cached_tokens_total as f64),
        ),
        ("prompt_seconds_total", "Total time spent processing prompts", prompt_s),
        ("tokens_predicted_total", "Number of generated tokens", predicted),
        ("tokens_predicted_seconds_total", "Total time spent generating tokens", predicted_s),
        ("n_decode_total", "Total number of steps", steps),
        ("n_tokens_max", "Longest recent sequence, prompt and answer", longest as f64),
        (
            "spec_decode_num_draft_tokens_total",
            "Tokens guessed by speculation",
            sum(|s| s.draft_tokens_total as f64),
        ),
        (
            "spec_decode_num_accepted_tokens_total",
            "Guessed tokens that were right",
            sum(|s| s.accepted_tokens_total as f64),
        ),
        (
            "spec_decode_num_drafts_total",
            "Steps that checked guesses",
            sum(|s| s.drafts_total as f64),
        ),
    ];
    let gauges = [
        ("prompt_tokens_seconds", "Mean prompt throughput in tokens/s", rate(prompt, prompt_s)),
        ("predicted_tokens_seconds", "Mean throughput in tokens/s", rate(predicted, predicted_s)),
        ("requests_processing", "Sequences that run", sum(|s| s.n_running as f64)),
        ("requests_deferred", "Sequences that wait", sum(|s| s.n_waiting as f64)),
        (
            "n_busy_slots_per_decode",
            "Mean number of sequences in a step",
            sum(|s| s.step_sequences_total as f64) / steps.max(1.0),
        ),
    ];
    let mut put = |kind, rows: &[(&str, &str, f64)]| {
        for (name, help, value) in rows {
            page.head(&format!("llamacpp:{name}"), kind, help);
            page.sample(&format!("llamacpp:{name}"), "", *value);
        }
    };
    put("counter", &counters);
    put("gauge", &gauges);
}

type Row = (&'static str, &'static str, &'static str, fn(&EngineStats) -> f64);

/// Ours that are one number for each engine: name, kind, help, value.
const ROWS: [Row; 20] = [
    ("sequences_running", "gauge", "Sequences that run", |s| s.n_running as f64),
    ("sequences_waiting", "gauge", "Sequences that wait for a place", |s| s.n_waiting as f64),
    ("kv_pages", "gauge", "Pages of the KV cache", |s| s.n_page as f64),
    ("kv_pages_used", "gauge", "Pages that sequences hold", |s| s.n_page_used as f64),
    ("kv_pages_cached", "gauge", "Pages that only the prefix cache holds", |s| {
        s.n_page_cached as f64
    }),
    ("requests_total", "counter", "Requests taken", |s| s.requests_total as f64),
    ("requests_refused_total", "counter", "Requests that found the queue full", |s| {
        s.refused_total as f64
    }),
    ("requests_canceled_total", "counter", "Requests whose reader left", |s| {
        s.canceled_total as f64
    }),
    ("requests_failed_total", "counter", "Requests that failed", |s| s.failed_total as f64),
    ("sequences_preempted_total", "counter", "Sequences that gave up their place", |s| {
        s.preempted_total as f64
    }),
    ("tokens_prefilled_total", "counter", "Prompt tokens computed", |s| {
        s.prefill_tokens_total as f64
    }),
    ("tokens_cached_total", "counter", "Prompt tokens found in the prefix cache", |s| {
        s.cached_tokens_total as f64
    }),
    ("tokens_restored_total", "counter", "Cached prompt tokens that came from the disk", |s| {
        s.restored_tokens_total as f64
    }),
    ("sequences_fetching", "gauge", "Sequences that wait for the disk", |s| s.n_fetching as f64),
    ("prompts_to_keep", "gauge", "Prompts whose pages wait for the disk", |s| s.n_keeping as f64),
    ("tokens_generated_total", "counter", "Tokens generated", |s| s.generated_tokens_total as f64),
    ("tokens_drafted_total", "counter", "Tokens guessed", |s| s.draft_tokens_total as f64),
    ("tokens_accepted_total", "counter", "Guessed tokens that were right", |s| {
        s.accepted_tokens_total as f64
    }),
    ("draft_failures_total", "counter", "Draft models that failed and were set aside", |s| {
        s.draft_failures_total as f64
    }),
    ("steps_total", "counter", "Steps of the model", |s| s.steps_total as f64),
];

type Durations = (&'static str, &'static str, fn(&EngineStats) -> &Histogram);

const HISTOGRAMS: [Durations; 3] = [
    ("time_to_first_token_seconds", "From arrival to the first token", |s| &s.ttft),
    ("inter_token_latency_seconds", "Between two tokens of an answer", |s| &s.itl),
    ("queue_seconds", "From arrival to the first step", |s| &s.queue),
];

fn engine_metrics(page: &mut Page, models: &[Reading]) {
    for (name, kind, help, read) in ROWS {
        let name = format!("jetforge_{name}");
        page.head(&name, kind, help);
        for model in models {
            let labels = format!("model=\"{}\"", escape(&model.name));
            page.sample(&name, &labels, read(&model.stats));
        }
    }
    for (name, help, read) in HISTOGRAMS {
        let name = format!("jetforge_{name}");
        page.head(&name, "histogram", help);
        for model in models {
            page.histogram(&name, &escape(&model.name), read(&model.stats));
        }
    }
}

type DiskRow = (&'static str, &'static str, &'static str, fn(&DiskCacheStats) -> u64);

/// Ours that are one number for the disk cache, which the engines share.
const DISK_ROWS: [DiskRow; 10] = [
    ("pages", "gauge", "Pages on the disk", |s| s.n_entry as u64),
    ("bytes", "gauge", "Bytes on the disk", |s| s.n_bytes),
    ("bytes_max", "gauge", "Bytes that there may be on the disk", |s| s.bytes_max),
    ("hits_total", "counter", "Pages read", |s| s.hits),
    ("read_bytes_total", "counter", "Bytes read", |s| s.read_bytes),
    ("writes_total", "counter", "Pages written", |s| s.writes),
    ("written_bytes_total", "counter", "Bytes written", |s| s.write_bytes),
    ("written_today_bytes", "gauge", "Bytes of the day's write budget that are gone", |s| {
        s.written_today
    }),
    ("write_bytes_per_day_max", "gauge", "The day's write budget", |s| s.write_bytes_per_day_max),
    ("evictions_total", "counter", "Pages removed to make room", |s| s.evictions),
];

fn disk_metrics(page: &mut Page, stats: &DiskCacheStats) {
    for (name, kind, help, read) in DISK_ROWS {
        let name = format!("jetforge_disk_cache_{name}");
        page.head(&name, kind, help);
        page.sample(&name, "", read(stats) as f64);
    }
    let name = "jetforge_disk_cache_misses_total";
    page.head(name, "counter", "Pages looked for and not had, by reason");
    for miss in Miss::ALL {
        let labels = format!("reason=\"{}\"", miss.name());
        page.sample(name, &labels, stats.missed(miss) as f64);
    }
    let name = "jetforge_disk_cache_drops_total";
    page.head(name, "counter", "Pages not written, by reason");
    for (reason, n) in [
        ("queue", stats.drops_queue),
        ("gone", stats.drops_gone),
        ("budget", stats.drops_budget),
        ("space", stats.drops_space),
        ("failed", stats.drops_failed),
    ] {
        page.sample(name, &format!("reason=\"{reason}\""), n as f64);
    }
}

/// What the service counts beside its engines.
fn service_metrics(page: &mut Page, gate: &Gate) {
    page.head("jetforge_http_requests_total", "counter", "Requests by route, method and status");
    for (outcome, n) in gate.requests().counts() {
        let (route, method, status) = (escape(&outcome.route), outcome.method, outcome.status);
        let labels = format!("route=\"{route}\",method=\"{method}\",status=\"{status}\"");
        page.sample("jetforge_http_requests_total", &labels, n as f64);
    }
    let (hits, misses) = gate.cache_counts();
    let rows = [
        ("http_requests_open", "gauge", "Requests in flight", gate.requests().n_open() as f64),
        ("result_cache_hits_total", "counter", "Answers found in the result cache", hits as f64),
        ("result_cache_misses_total", "counter", "Answers looked for in vain", misses as f64),
        (
            "process_resident_memory_bytes",
            "gauge",
            "Memory of the process that is in RAM",
            crate::base::host::resident_bytes() as f64,
        ),
        (
            "uptime_seconds",
            "gauge",
            "Time since the service started",
            gate.server().0.started.elapsed().as_secs_f64(),
        ),
    ];
    for (name, kind, help, value) in rows {
        let name = format!("jetforge_{name}");
        page.head(&name, kind, help);
        page.sample(&name, "", value);
    }
}

/// The text as it grows.
#[derive(Default)]
pub(super) struct Page {
    text: String,
}

impl Page {
    pub fn head(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    /// A metric that is one number.
    pub fn one(&mut self, name: &str, kind: &str, help: &str, value: f64) {
        self.head(name, kind, help);
        self.sample(name, "", value);
    }

    pub fn sample(&mut self, name: &str, labels: &str, value: f64) {
        let _ = match labels {
            "" => writeln!(self.text, "{name} {value}"),
            labels => writeln!(self.text, "{name}{{{labels}}} {value}"),
        };
    }

    fn histogram(&mut self, name: &str, model: &str, durations: &Histogram) {
        let mut n = 0;
        let bounds = HISTOGRAM_BOUNDS_S.iter().map(f64::to_string).chain(["+Inf".to_owned()]);
        for (bound, count) in bounds.zip(durations.counts) {
            n += count;
            let labels = format!("model=\"{model}\",le=\"{bound}\"");
            self.sample(&format!("{name}_bucket"), &labels, n as f64);
        }
        let labels = format!("model=\"{model}\"");
        self.sample(&format!("{name}_sum"), &labels, durations.sum_s);
        self.sample(&format!("{name}_count"), &labels, n as f64);
    }
}

/// A label's value as the format wants it.
pub(super) fn escape(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}
