//! `jetforge update`: a newer program beside the one that runs, from a file or a stick.
//!
//! ```text
//! whoever makes releases   keygen, sign
//! the owner                check, apply, status, rollback
//! the units                steps.rs
//! ```
//!
//! No network is needed and none is asked. The program that speaks here is the package's; the one
//! that runs is where `status` says.

mod release;
mod steps;

use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use clap::{Args, Subcommand};
use serde_json::json;

use crate::base::file;
use crate::base::format::bytes;
use crate::base::host::Host;
use crate::base::limits::{UPDATE_RECORD_BYTES_MAX, UPDATE_SETTLE_S, UPDATE_TRIAL_S};
use crate::base::owner;
use crate::cli::exit::CliError;
use crate::cli::terminal::{self, print_json, table};
use crate::cli::{Context, exit};
use crate::store::STATE_SCHEMA;
use crate::update::{Bundle, Fit, Package, Record, Slot, Slots, TrustedKeys, UpdateError, Version};

/// Below the system's root: the slots, the keys, the package's program and its version.
const SLOTS: &str = "var/lib/jetforge-update";
const KEYS: &str = "etc/jetforge/update.keys";
const PACKAGE: &str = "usr/bin";
const PACKAGE_VERSION: &str = "usr/lib/jetforge/version";
/// There while systemd runs.
const SYSTEMD: &str = "run/systemd/system";

/// Options of `update`.
#[derive(Debug, Args)]
pub struct UpdateArgs {
    #[command(subcommand)]
    what: What,
    /// Where the system's files are
    #[arg(long, hide = true, global = true, value_name = "DIR", default_value = "/")]
    root: PathBuf,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Show what a file or folder would bring, and whether this machine would take it
    Check {
        #[command(flatten)]
        from: From,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Write the program beside the one that runs, try it, and keep it or go back
    Apply {
        #[command(flatten)]
        from: From,
        /// Do not wait for how it ends
        #[arg(long)]
        no_wait: bool,
    },
    /// Show what runs, what is tried, and how the last update ended
    Status {
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Go back to the program that ran before
    Rollback {
        /// Also where that goes back to a copy of the state, and loses the jobs since
        #[arg(long)]
        state_of_before: bool,
    },
    /// Make the key that signs releases; prints the line for /etc/jetforge/update.keys
    Keygen(release::KeygenArgs),
    /// Sign a program and write it as an update
    Sign(Box<release::SignArgs>),
    #[command(flatten)]
    Step(steps::Step),
}

#[derive(Debug, Args)]
struct From {
    /// An update, or a folder with one or many: the newest that fits is taken
    #[arg(value_name = "FILE|DIR")]
    file: PathBuf,
    /// Take an older program too, or the same once more
    #[arg(long)]
    force_older: bool,
    /// Also one that goes back to a copy of the state, and loses the jobs since
    #[arg(long)]
    state_of_before: bool,
}

/// Does what is asked.
pub fn run(context: &Context, args: &UpdateArgs) -> anyhow::Result<u8> {
    let root = &args.root;
    match &args.what {
        What::Check { from, json } => check(root, from, *json),
        What::Apply { from, no_wait } => apply(root, from, *no_wait),
        What::Status { json } => status(root, *json),
        What::Rollback { state_of_before } => {
            let said = slots(root)?.roll_back(*state_of_before)?;
            terminal::note(said);
            tell_of_start(root);
            Ok(exit::OK)
        }
        What::Keygen(args) => release::keygen(args),
        What::Sign(args) => release::sign(args),
        What::Step(step) => steps::run(context, root, step),
    }
}

/// The slots of this machine.
fn slots(root: &Path) -> anyhow::Result<Slots> {
    let text = std::fs::read_to_string(root.join(PACKAGE_VERSION));
    let text = text.unwrap_or_else(|_| env!("CARGO_PKG_VERSION").to_owned());
    let version = Version::read(text.trim()).map_err(CliError::usage).context(PACKAGE_VERSION)?;
    let package = Package { dir: root.join(PACKAGE), version, state_schema: STATE_SCHEMA };
    Ok(Slots::new(&root.join(SLOTS), package))
}

/// What a program is compiled for that this machine runs.
fn target() -> String {
    format!("{}-unknown-linux-gnu", std::env::consts::ARCH)
}

fn find(root: &Path, slots: &Slots, from: &From) -> anyhow::Result<Bundle> {
    let keys = TrustedKeys::read(&root.join(KEYS))?;
    let libc = Host::read().libc;
    let runs = slots.record().runs;
    let state_schema = slots.state_schema(runs);
    let runs = slots.version(runs).context("the program that runs has no version")?;
    let fit = Fit {
        target: target(),
        glibc: libc.strip_prefix("glibc ").and_then(|text| Version::read(text).ok()),
        runs,
        takes_older: from.force_older,
        state_schema,
        takes_state_back: from.state_of_before,
    };
    let (bundle, passed) = Bundle::find(&from.file, &keys, &fit)?;
    passed.iter().for_each(|why| terminal::note(terminal::plain(&format!("passed over: {why}"))));
    bundle.manifest.fits(&fit)?;
    Ok(bundle)
}

fn check(root: &Path, from: &From, as_json: bool) -> anyhow::Result<u8> {
    let slots = slots(root)?;
    let bundle = find(root, &slots, from)?;
    bundle.copy_program(&mut std::io::sink())?;
    let (manifest, path) = (&bundle.manifest, bundle.path.display().to_string());
    if as_json {
        print_json(&json!({"file": path, "signer": bundle.signer, "manifest": manifest}))?;
        return Ok(exit::OK);
    }
    let row = |name: &str, value: String| vec![name.to_owned(), terminal::plain(&value)];
    let rows = [
        row("FILE", path),
        row("version", manifest.version.to_string()),
        row("signed by", bundle.signer.clone()),
        row("size", bytes(manifest.n_bytes)),
        row("state", state_line(manifest.state_schema, slots.state_schema(slots.active()))),
    ];
    terminal::say(&table(&rows))?;
    terminal::note("it would be taken");
    Ok(exit::OK)
}

fn state_line(of_update: i64, of_now: i64) -> String {
    match of_update.cmp(&of_now) {
        std::cmp::Ordering::Equal => "stays as it is".to_owned(),
        std::cmp::Ordering::Greater => "is copied, then migrated".to_owned(),
        std::cmp::Ordering::Less => "goes back to a copy of before: jobs since are lost".to_owned(),
    }
}

fn apply(root: &Path, from: &From, no_wait: bool) -> anyhow::Result<u8> {
    let slots = slots(root)?;
    let bundle = find(root, &slots, from)?;
    let slot = slots.install(&bundle)?;
    let version = &bundle.manifest.version;
    terminal::note(format!("{version} lies in slot {} and is on trial", slot.name()));
    if no_wait || !root.join(SYSTEMD).exists() {
        tell_of_start(root);
        return Ok(exit::OK);
    }
    terminal::note(format!("it is kept once it held for {UPDATE_SETTLE_S} s"));
    // The one who watches ends it sooner; a stop of the machine ends this as well.
    let deadline = Instant::now() + Duration::from_secs(2 * UPDATE_TRIAL_S);
    while slots.record().trial.is_some() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_secs(1));
    }
    let record = slots.record();
    match record.last {
        Some(last) if record.trial.is_none() => {
            let says = format!("{} runs: {}", last.runs, last.why);
            terminal::note(terminal::plain(&says));
            Ok(if last.is_kept { exit::OK } else { exit::FAILURE })
        }
        _ => Err(anyhow::anyhow!("nobody decided; see `journalctl -u jetforge-update`")),
    }
}

fn tell_of_start(root: &Path) {
    if !root.join(SYSTEMD).exists() {
        terminal::note("it counts from the next start of the service");
    }
}

/// What a way back lost. The file is the service's, so root reads it as the service, and no further
/// than it should be long.
fn lost(root: &Path) -> Option<String> {
    let path = steps::lost_file(root);
    let read = || {
        let mut text = String::new();
        file::open_plain(&path)?
            .take(UPDATE_RECORD_BYTES_MAX)
            .read_to_string(&mut text)
            .map(|_| text)
    };
    owner::as_owner_of(path.parent()?, read).ok()?.ok()
}

fn status(root: &Path, as_json: bool) -> anyhow::Result<u8> {
    let slots = slots(root)?;
    let record = slots.record();
    let has_keys = TrustedKeys::read(&root.join(KEYS));
    let lost = lost(root);
    if as_json {
        let places = [Slot::Package, Slot::A, Slot::B].map(|slot| {
            let version = slots.version(slot).map(|version| version.to_string());
            json!({"slot": slot, "version": version, "state_schema": slots.state_schema(slot)})
        });
        print_json(&json!({
            "record": record,
            "started": slots.active(),
            "slots": places,
            "takes_updates": has_keys.is_ok(),
            "lost": lost,
        }))?;
        return Ok(exit::OK);
    }
    let mut rows = vec![["SLOT", "VERSION", ""].map(str::to_owned).to_vec()];
    for slot in [Slot::Package, Slot::A, Slot::B] {
        let version = slots.version(slot).map_or("-".to_owned(), |version| version.to_string());
        rows.push(vec![slot.name().to_owned(), version, role(&record, slot).to_owned()]);
    }
    terminal::say(&table(&rows))?;
    if let Some(last) = &record.last {
        let verdict = if last.is_kept { "was kept" } else { "was given up" };
        let says = format!("{} {verdict}: {}; {} ran then", last.version, last.why, last.runs);
        terminal::note(terminal::plain(&says));
    }
    lost.iter().for_each(|lost| terminal::note(terminal::plain(lost.trim_end())));
    if let Err(error @ UpdateError::NoKeys { .. }) = has_keys {
        terminal::note(error);
    }
    Ok(exit::OK)
}

fn role(record: &Record, slot: Slot) -> &'static str {
    let is_tried = record.trial.as_ref().is_some_and(|trial| trial.slot == slot);
    match () {
        () if is_tried => "on trial",
        () if record.runs == slot => "runs",
        () if record.before == Some(slot) => "ran before",
        () => "",
    }
}
