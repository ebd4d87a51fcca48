//! `jetforge monitor`: the service and the board on one screen, anew every second.
//!
//! One thread looks and the other draws (see `cli/screen.rs`), so that a service that does not
//! answer keeps nobody from leaving, by q or Ctrl-C. One that goes away is looked for until it is
//! back.
//! Speed is what the service's sequences had more than a second ago; a sequence that came or went
//! in between counts with what it shows.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::Args;
use serde_json::Value;

use super::power::lines;
use crate::app::App;
use crate::cli::remote::Remote;
use crate::cli::screen::{Event, Screen};
use crate::cli::terminal::{plain, say};
use crate::cli::{Context, exit};
use crate::power::{Readings, Sensors, chosen};
use crate::server::{Client, ClientError};

/// Options of `monitor`.
#[derive(Debug, Args)]
pub struct MonitorArgs {
    /// Show one screen and end
    #[arg(long)]
    once: bool,
    /// Seconds between two screens
    #[arg(long, value_name = "S", default_value_t = 1, value_parser = seconds())]
    every: u64,
    #[command(flatten)]
    remote: Remote,
    /// Where the kernel's files are looked for
    #[arg(long, hide = true, value_name = "DIR", default_value = "/")]
    root: PathBuf,
}

/// A second to an hour.
fn seconds() -> impl clap::builder::TypedValueParser {
    clap::value_parser!(u64).range(1..=3600)
}

/// Shows screens until it is stopped.
pub fn run(context: &Context, args: &MonitorArgs) -> anyhow::Result<u8> {
    let app = context.app(Vec::new())?;
    let client = args.remote.service(&app)?;
    let sensors = Sensors::open(&args.root);
    let mut watcher = Watcher { app, client, sensors, speed: Speed::default() };
    if args.once {
        say(&watcher.look())?;
        return Ok(exit::OK);
    }
    let term = context.env.get("TERM").map(|term| term.to_string_lossy().into_owned());
    let screen = Screen::take(&term.unwrap_or_default())?;
    let (texts, pause) = (screen.texts(), Duration::from_secs(args.every));
    let thread = std::thread::Builder::new().name("watcher".to_owned());
    thread.spawn(move || {
        while texts.send(Event::Text(watcher.look())).is_ok() {
            std::thread::sleep(pause);
        }
    })?;
    match screen.show()? {
        true => Ok(exit::INTERRUPTED),
        false => Ok(exit::OK),
    }
}

/// Whom a screen is about, and what was seen before.
struct Watcher {
    app: App,
    client: Client,
    sensors: Sensors,
    speed: Speed,
}

impl Watcher {
    /// A screen of now.
    fn look(&mut self) -> String {
        let readings = self.sensors.read();
        let profile = chosen(&self.app.dirs.state).unwrap_or(self.app.config().power.profile);
        let head = format!("{}, profile {}", self.sensors.board().name(), profile.name());
        let status = self.client.json("GET", "/v1/status");
        let slots = status.as_ref().ok().and_then(|_| self.client.json("GET", "/slots").ok());
        if slots.is_none() {
            // What it had before tells nothing of the one that comes back.
            self.speed = Speed::default();
        }
        let tok_s = slots.and_then(|slots| self.speed.take(&slots, Instant::now()));
        screen(&head, &service(self.client.address(), &status, tok_s), &readings)
    }
}

/// The rows of a screen.
fn screen(head: &str, service: &[(&'static str, String)], readings: &Readings) -> String {
    let mut rows = vec![("board", head.to_owned())];
    rows.extend_from_slice(service);
    if let Some(load) = readings.cpu.load {
        rows.push(("busy", format!("{:.0} % of the cores' time", load * 100.0)));
    }
    rows.extend(lines(readings));
    let line = |text: &str| plain(text).replace(['\n', '\t'], " ");
    rows.iter().map(|(key, text)| format!("{key:<12} {}\n", line(text))).collect()
}

/// What the service says of itself.
fn service(
    address: &str,
    status: &Result<Value, ClientError>,
    tok_s: Option<f64>,
) -> Vec<(&'static str, String)> {
    let status = match status {
        Ok(status) => status,
        Err(error) => return vec![("service", error.to_string())],
    };
    let models: &[Value] = status["models"].as_array().map(Vec::as_slice).unwrap_or_default();
    let sum = |name: &str| models.iter().filter_map(|model| model[name].as_u64()).sum::<u64>();
    let is_loaded = |model: &&Value| model["loaded"] == Value::Bool(true);
    let loaded = models.iter().filter(is_loaded).filter_map(|model| model["name"].as_str());
    let loaded: Vec<&str> = loaded.collect();
    let loaded = if loaded.is_empty() { "no model loaded".to_owned() } else { loaded.join(", ") };
    let speed = tok_s.map_or("unknown".to_owned(), |tok_s| format!("{tok_s:.1} tokens a second"));
    vec![
        ("service", format!("{address}: {loaded}")),
        ("queue", format!("{} run, {} wait", sum("running"), sum("waiting"))),
        ("speed", speed),
    ]
}

/// What every sequence had at the look before.
#[derive(Default)]
struct Speed {
    before: Option<(Instant, BTreeMap<u64, u64>)>,
}

impl Speed {
    /// Tokens a second since the look before.
    fn take(&mut self, slots: &Value, now: Instant) -> Option<f64> {
        let count = |slot: &Value| {
            let next = &slot["next_token"];
            let next = next.get(0).unwrap_or(next);
            let n_decoded = next["n_decoded"].as_u64().or(slot["n_decoded"].as_u64());
            Some((slot["id"].as_u64()?, n_decoded.unwrap_or(0)))
        };
        let counts: BTreeMap<u64, u64> = slots.as_array()?.iter().filter_map(count).collect();
        let (then, before) = self.before.replace((now, counts.clone()))?;
        let more = |(id, n): (&u64, &u64)| match before.get(id) {
            Some(before) if before <= n => n - before,
            _ => *n,
        };
        let seconds = now.saturating_duration_since(then).as_secs_f64();
        (seconds > 0.0).then(|| counts.iter().map(more).sum::<u64>() as f64 / seconds)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn speed_is_what_sequences_had_more() {
        let mut speed = Speed::default();
        let start = Instant::now();
        let slots = |a: u64, b: u64| {
            json!([{ "id": 0, "next_token": { "n_decoded": a } },
                   { "id": 1, "next_token": [{ "n_decoded": b }] }])
        };
        let at = |s| start + Duration::from_secs(s);
        assert_eq!(speed.take(&slots(10, 5), at(0)), None, "nothing before it");
        assert_eq!(speed.take(&slots(30, 15), at(2)), Some(15.0));
        assert_eq!(speed.take(&slots(4, 15), at(3)), Some(4.0), "a new sequence in its place");
        assert_eq!(speed.take(&json!({}), at(4)), None);
    }

    #[test]
    fn a_screen_says_what_there_is() {
        let status = json!({ "models": [
            { "name": "default", "loaded": true, "running": 2, "waiting": 1 },
            { "name": "other", "loaded": false, "running": null, "waiting": null },
        ] });
        let rows = service("127.0.0.1:8080", &Ok(status), Some(9.25));
        let text = screen("Jetson Nano", &rows, &Readings::default());
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "board        Jetson Nano");
        assert_eq!(lines[1], "service      127.0.0.1:8080: default");
        assert_eq!(lines[2], "queue        2 run, 1 wait");
        assert_eq!(lines[3], "speed        9.2 tokens a second");
    }
}
