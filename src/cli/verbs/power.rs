//! `jetforge power`: what the board tells of itself, and which profile it is run under.

use std::io::Write;
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use serde_json::json;

use crate::app::App;
use crate::base::format::bytes;
use crate::cli::terminal::{FAINT, STRONG, note, print_json, styled, table};
use crate::cli::{Context, exit};
use crate::power::{Actuator, Owner, Profile, Readings, Sensors, choose, chosen};

/// Options of `power`.
#[derive(Debug, Args)]
pub struct PowerArgs {
    /// Show the board, or run it under a profile from now on
    #[arg(value_enum, default_value_t = What::Status)]
    what: What,
    /// As JSON
    #[arg(long)]
    json: bool,
    /// Where the kernel's files are looked for
    #[arg(long, hide = true, value_name = "DIR", default_value = "/")]
    root: PathBuf,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum What {
    /// Show the board
    Status,
    /// The most tokens
    Max,
    /// Nearly as many, for less heat
    Balanced,
    /// The least energy of a token
    Eco,
    /// As it fits who waits
    Auto,
    /// Back to the profile of the configuration
    Configured,
}

/// Shows the board or chooses a profile.
pub fn run(context: &Context, args: &PowerArgs) -> anyhow::Result<u8> {
    let app = context.app(Vec::new())?;
    let profile = match args.what {
        What::Status => {
            status(&app, args)?;
            return Ok(exit::OK);
        }
        What::Max => Some(Profile::Max),
        What::Balanced => Some(Profile::Balanced),
        What::Eco => Some(Profile::Eco),
        What::Auto => Some(Profile::Auto),
        What::Configured => None,
    };
    context.own(&app)?;
    let failed = |error| anyhow::Error::from(error).context(app.dirs.state.display().to_string());
    choose(&app.dirs.state, profile).map_err(failed)?;
    let name = profile.unwrap_or(app.config().power.profile).name();
    note(format!("profile {name}, for the {} of {}", app.role.name(), app.dirs.state.display()));
    if !app.config().power.set_clocks {
        note("power.set_clocks is off: only the engine's pace follows, no clock is set");
    }
    Ok(exit::OK)
}

fn status(app: &App, args: &PowerArgs) -> anyhow::Result<()> {
    let mut sensors = Sensors::open(&args.root);
    let readings = sensors.read();
    let config = &app.config().power;
    let profile = chosen(&app.dirs.state);
    let pending = Actuator::new(&args.root, &app.dirs.root_state, Owner::Service).pending()?;
    let (name, source) = match profile {
        Some(profile) => (profile.name(), "jetforge power".to_owned()),
        None => (config.profile.name(), app.settings.source("power.profile").to_string()),
    };
    if args.json {
        let board = sensors.board();
        return Ok(print_json(&json!({
            "board": board,
            "name": board.name(),
            "profile": name,
            "profile_source": source,
            "supply": config.supply_of(board),
            "set": pending,
            "readings": readings,
        }))?);
    }
    let supply = match config.supply_of(sensors.board()).limit_mw() {
        Some(mw) => format!("{} W", mw / 1000),
        None => "as the machine needs".to_owned(),
    };
    let mut rows = vec![
        ("board", sensors.board().name()),
        ("profile", format!("{name} ({source})")),
        ("supply", supply),
    ];
    rows.extend(lines(&readings));
    if !pending.is_empty() {
        rows.push(("set", format!("{} files, until the service stops", pending.len())));
    }
    let mut out = anstream::stdout().lock();
    for (key, text) in rows {
        writeln!(out, "{} {text}", styled(STRONG, format!("{key:<12}")))?;
    }
    let absent: Vec<Vec<String>> =
        readings.absent.iter().map(|a| vec![a.source.clone(), a.reason.clone()]).collect();
    if !absent.is_empty() {
        writeln!(out, "{}", styled(FAINT, "not to be had:"))?;
        write!(out, "{}", styled(FAINT, table(&absent)))?;
    }
    Ok(())
}

/// What each GPU tells.
pub fn gpu_lines(readings: &Readings) -> Vec<String> {
    let mut lines = Vec::new();
    for gpu in &readings.gpus {
        let mhz = |hz: Option<u64>| hz.map(|hz| format!("{} MHz", hz / 1_000_000));
        let used = gpu.memory_used_bytes.zip(gpu.memory_total_bytes);
        let fan = gpu.fan.as_ref().and_then(|fan| fan.pwm);
        let parts = [
            Some(gpu.name.clone()),
            mhz(gpu.hz),
            gpu.load.map(|load| format!("{:.0} % busy", load * 100.0)),
            used.map(|(used, total)| format!("{} of {} used", bytes(used), bytes(total))),
            mhz(gpu.memory_hz).map(|mhz| format!("memory {mhz}")),
            fan.map(|pwm| format!("fan {pwm} of 255")),
        ];
        lines.push(parts.into_iter().flatten().collect::<Vec<_>>().join(", "));
    }
    lines
}

/// What was read, a line for each kind that there is.
pub fn lines(readings: &Readings) -> Vec<(&'static str, String)> {
    let mut rows = Vec::new();
    let cores = &readings.cpu.cores;
    let n_online = cores.iter().filter(|core| core.is_online).count();
    let mhz = cores.iter().filter_map(|core| core.khz).max().map(|khz| khz / 1000);
    let clock = mhz.map(|mhz| format!(", {mhz} MHz")).unwrap_or_default();
    rows.push(("cores", format!("{n_online} of {} on{clock}", cores.len())));
    rows.extend(gpu_lines(readings).into_iter().map(|line| ("gpu", line)));
    if let Some(khz) = readings.emc.khz {
        rows.push(("memory clock", format!("{} MHz", khz / 1000)));
    }
    let degrees = |mc: i32| format!("{:.1} C", f64::from(mc) / 1000.0);
    let zones: Vec<String> = readings
        .zones
        .iter()
        .filter_map(|zone| Some(format!("{} {}", zone.name, degrees(zone.temp_mc?))))
        .collect();
    if !zones.is_empty() {
        rows.push(("heat", zones.join(", ")));
    }
    let rails: Vec<String> = readings
        .rails
        .iter()
        .filter_map(|rail| Some(format!("{} {:.2} W", rail.name, f64::from(rail.mw?) / 1000.0)))
        .collect();
    if !rails.is_empty() {
        rows.push(("power", rails.join(", ")));
    }
    if let Some(fan) = &readings.fan {
        let pwm = fan.pwm.map_or("?".to_owned(), |pwm| pwm.to_string());
        let rpm = fan.rpm.map(|rpm| format!(", {rpm} turns a minute")).unwrap_or_default();
        rows.push(("fan", format!("{pwm} of 255{rpm}")));
    }
    let throttle = &readings.throttle;
    let holding: Vec<&str> = throttle.holding().map(|cooler| cooler.name.as_str()).collect();
    let held = match holding.is_empty() {
        true => "no".to_owned(),
        false => format!("yes, {}", holding.join(", ")),
    };
    let counts = [("over-currents", throttle.n_over_current), ("by heat", throttle.n_thermal)];
    let counts = counts.iter().filter_map(|(name, n)| Some(format!(", {name} {}", (*n)?)));
    rows.push(("throttled", format!("{held}{}", counts.collect::<String>())));
    let memory = &readings.memory;
    if let (Some(total), Some(available)) = (memory.total_bytes, memory.available_bytes) {
        let gpu = memory.gpu_bytes.map(|n| format!(", the GPU holds {}", bytes(n)));
        let text = format!("{} of {} free", bytes(available), bytes(total));
        rows.push(("memory", format!("{text}{}", gpu.unwrap_or_default())));
    }
    rows
}
