//! Heat and power over HTTP: how the board stands, and which profile it is run under.
//!
//! ```text
//! GET /v1/power                        the board, the pace and its cause, clocks, heat, watts
//! PUT /v1/power {"profile": "eco"}     for an administrator; `configured` goes back
//! ```

use axum::extract::State;
use axum::routing::get;
use axum::{Json, Router};
use serde_json::{Value, json};

use super::fields::Fields;
use super::metrics::{Page, escape};
use super::{ApiError, Gate};
use crate::power::{Decision, Profile, Readings, Standing};

/// The word for the profile of the configuration.
const CONFIGURED: &str = "configured";

/// The routes of this file.
pub(super) fn routes() -> Router<Gate> {
    Router::new().route("/v1/power", get(show).put(choose))
}

async fn show(State(gate): State<Gate>) -> Result<Json<Value>, ApiError> {
    Ok(Json(whole(&standing(&gate)?)))
}

async fn choose(State(gate): State<Gate>, fields: Fields) -> Result<Json<Value>, ApiError> {
    let watch = gate.power().ok_or_else(nobody)?;
    let names = [Profile::ALL.map(Profile::name).as_slice(), &[CONFIGURED]].concat();
    let unset = || {
        let message = format!("profile is missing; it must be one of {}", names.join(", "));
        ApiError::field("profile", message)
    };
    let name = names[fields.choice("profile", &names)?.ok_or_else(unset)?];
    let watch = std::sync::Arc::clone(watch);
    let chosen = Profile::parse(name);
    let kept = tokio::task::spawn_blocking(move || watch.choose(chosen)).await;
    let kept = kept.map_err(|error| ApiError::internal(error.to_string()))?;
    kept.map_err(|error| ApiError::unkept("the choice is not kept", &error))?;
    tracing::info!(profile = name, "power profile chosen");
    Ok(Json(json!({"profile": name})))
}

fn standing(gate: &Gate) -> Result<Standing, ApiError> {
    Ok(gate.power().ok_or_else(nobody)?.standing())
}

fn nobody() -> ApiError {
    ApiError::not_supported("nobody governs heat and power in this service")
}

/// Everything.
fn whole(standing: &Standing) -> Value {
    let mut value = brief(standing);
    value["board"] = standing.board.as_str().into();
    value["chosen"] = standing.is_chosen.into();
    value["set"] = json!(standing.decision.as_ref().map(|decision| decision.settings));
    value["trouble"] = json!(standing.trouble);
    value["energy"] = json!({
        "sensor": standing.energy_sensor,
        "joules": standing.energy_sensor.as_ref().map(|_| standing.joules),
        "joule_per_token": standing.joule_per_token(),
    });
    value["readings"] = json!(standing.readings);
    value
}

/// What matters to whoever waits.
pub(super) fn brief(standing: &Standing) -> Value {
    let decision = standing.decision.as_ref();
    let of = |read: fn(&Decision) -> Value| decision.map_or(Value::Null, read);
    let readings = &standing.readings;
    json!({
        "profile": standing.profile,
        "tier": of(|decision| json!(decision.tier)),
        "level": of(|decision| json!(decision.level_idx)),
        "pace": of(|decision| json!(decision.pace)),
        "causes": of(|decision| json!(decision.causes)),
        "why": of(|decision| {
            let words: Vec<&str> = decision.causes.iter().map(|cause| cause.words()).collect();
            words.into()
        }),
        "jobs_wait_for": standing.jobs_wait_for(),
        "temperature_c": readings.hottest_mc().map(|mc| f64::from(mc) / 1000.0),
        "watts": readings.board_mw().map(|mw| f64::from(mw) / 1000.0),
        "throttled": readings.throttle.is_throttled(),
    })
}

/// Everything that is a number, for Prometheus.
pub(super) fn metrics(page: &mut Page, standing: &Standing) {
    if let Some(decision) = &standing.decision {
        pace_metrics(page, standing, decision);
    }
    if standing.energy_sensor.is_some() {
        let help = "Energy that the machine took since the service started";
        page.one("jetforge_energy_joules_total", "counter", help, standing.joules);
        let help = "Energy that it took while tokens were made and no prompt was read";
        page.one("jetforge_decode_joules_total", "counter", help, standing.decode_joules);
        let help = "Tokens made meanwhile";
        page.one("jetforge_decode_tokens_total", "counter", help, standing.n_decoded as f64);
    }
    if let Some(joules) = standing.joule_per_token() {
        let help = "Energy of a token, the rest of the machine included";
        page.one("jetforge_joule_per_token", "gauge", help, joules);
    }
    clock_metrics(page, &standing.readings);
    gpu_metrics(page, &standing.readings);
    heat_metrics(page, &standing.readings);
}

fn pace_metrics(page: &mut Page, standing: &Standing, decision: &Decision) {
    let name = "jetforge_power_profile";
    page.head(name, "gauge", "The profile in force, and what auto came to");
    let (profile, tier) = (standing.profile.name(), json!(decision.tier));
    let tier = tier.as_str().unwrap_or_default();
    page.sample(name, &format!("profile=\"{profile}\",tier=\"{tier}\""), 1.0);
    let pace = &decision.pace;
    let duty = f64::from(pace.duty_permille) / 1000.0;
    let of = |n: Option<usize>| n.map_or(-1.0, |n| n as f64);
    let background = f64::from(u8::from(pace.background));
    let rows = [
        ("power_level", "The clock's level, 0 for the lowest", decision.level_idx as f64),
        ("pace_duty_ratio", "Share of the time that may compute", duty),
        ("pace_threads", "Threads that compute, -1 for all", of(pace.n_threads)),
        ("pace_batch_tokens", "Most tokens of a step, -1 for all", of(pace.n_batch)),
        ("pace_background", "Whether jobs may run", background),
    ];
    for (name, help, value) in rows {
        page.one(&format!("jetforge_{name}"), "gauge", help, value);
    }
    let name = "jetforge_pace_cause";
    page.head(name, "gauge", "Why it does not go faster");
    for cause in &decision.causes {
        let cause = json!(cause);
        let cause = cause.as_str().unwrap_or_default();
        page.sample(name, &format!("cause=\"{cause}\""), 1.0);
    }
}

fn clock_metrics(page: &mut Page, readings: &Readings) {
    let khz: Vec<(usize, u32)> = readings
        .cpu
        .cores
        .iter()
        .enumerate()
        .filter_map(|(i, core)| Some((i, core.khz.filter(|_| core.is_online)?)))
        .collect();
    if !khz.is_empty() {
        let name = "jetforge_cpu_frequency_hertz";
        page.head(name, "gauge", "Clock of each core that is on");
        for (i, khz) in khz {
            page.sample(name, &format!("core=\"{i}\""), f64::from(khz) * 1e3);
        }
    }
    if let Some(khz) = readings.emc.khz {
        let help = "Clock of the memory";
        page.one("jetforge_memory_frequency_hertz", "gauge", help, f64::from(khz) * 1e3);
    }
}

fn gpu_metrics(page: &mut Page, readings: &Readings) {
    let mut row = |name: &str, help: &str, values: Vec<Option<f64>>| {
        let name = format!("jetforge_gpu_{name}");
        let told: Vec<_> = readings.gpus.iter().zip(values).collect();
        if told.iter().any(|(_, value)| value.is_some()) {
            page.head(&name, "gauge", help);
        }
        for (gpu, value) in told {
            let labels = format!("gpu=\"{}\"", escape(&gpu.name));
            value.into_iter().for_each(|value| page.sample(&name, &labels, value));
        }
    };
    let gpus = || readings.gpus.iter();
    let number = |n: Option<u64>| n.map(|n| n as f64);
    row("frequency_hertz", "Clock of each GPU", gpus().map(|gpu| number(gpu.hz)).collect());
    let help = "Share of the time that each GPU is busy";
    row("busy_ratio", help, gpus().map(|gpu| gpu.load).collect());
    let help = "Clock of each card's own memory";
    row("memory_frequency_hertz", help, gpus().map(|gpu| number(gpu.memory_hz)).collect());
    let help = "Each card's own memory";
    row("memory_bytes", help, gpus().map(|gpu| number(gpu.memory_total_bytes)).collect());
    let help = "What of it is in use, by whomever";
    row("memory_used_bytes", help, gpus().map(|gpu| number(gpu.memory_used_bytes)).collect());
    let help = "How far each card's own fan is on";
    let fans = gpus().map(|gpu| gpu.fan.as_ref()?.pwm.map(|pwm| f64::from(pwm) / 255.0));
    row("fan_ratio", help, fans.collect());
}

fn heat_metrics(page: &mut Page, readings: &Readings) {
    let zones = readings.zones.iter().filter_map(|zone| Some((&zone.name, zone.temp_mc?)));
    let mut zones: Vec<_> = zones.collect();
    // A PC has several zones of one type; the hottest speaks for them.
    zones.sort_by_key(|(name, mc)| ((*name).clone(), std::cmp::Reverse(*mc)));
    zones.dedup_by_key(|(name, _)| (*name).clone());
    if !zones.is_empty() {
        let name = "jetforge_temperature_celsius";
        page.head(name, "gauge", "Temperature of each zone");
        for (zone, mc) in zones {
            let labels = format!("zone=\"{}\"", escape(zone));
            page.sample(name, &labels, f64::from(mc) / 1e3);
        }
    }
    let rails: Vec<_> =
        readings.rails.iter().filter_map(|rail| Some((&rail.name, rail.mw?))).collect();
    if !rails.is_empty() {
        let name = "jetforge_power_watts";
        page.head(name, "gauge", "Power of each rail and card");
        for (rail, mw) in rails {
            page.sample(name, &format!("rail=\"{}\"", escape(rail)), f64::from(mw) / 1e3);
        }
    }
    if let Some(pwm) = readings.fan.as_ref().and_then(|fan| fan.pwm) {
        page.one("jetforge_fan_ratio", "gauge", "How far the fan is on", f64::from(pwm) / 255.0);
    }
    let throttle = &readings.throttle;
    let is_throttled = f64::from(u8::from(throttle.is_throttled()));
    page.one(
        "jetforge_throttled",
        "gauge",
        "Whether the kernel or a card holds a clock down",
        is_throttled,
    );
    let counts = [
        ("over_currents_total", "Times that the supply sagged", throttle.n_over_current),
        ("thermal_throttles_total", "Times that heat slowed the chip", throttle.n_thermal),
    ];
    for (name, help, n) in counts {
        if let Some(n) = n {
            page.one(&format!("jetforge_{name}"), "counter", help, n as f64);
        }
    }
}
