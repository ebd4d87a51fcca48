//! `jetforge tune`: settings of the system that the appliance profits from, shown, made or undone.

use std::io::Write;
use std::path::PathBuf;

use clap::Args;

use crate::cli::terminal::{note, print_json};
use crate::cli::{Context, exit};
use crate::power::{Actuator, ApplyError, Change, Owner, tune};

/// Options of `tune`.
#[derive(Debug, Args)]
pub struct TuneArgs {
    /// Show what would be written, and do nothing; this is the default
    #[arg(long, conflicts_with_all = ["apply", "revert"])]
    dry_run: bool,
    /// Write it; what stood there before is kept for `--revert`
    #[arg(long, conflicts_with = "revert")]
    apply: bool,
    /// Write back what stood there before
    #[arg(long)]
    revert: bool,
    /// Only what concerns memory; clocks, cores and the fan are left to the service
    #[arg(long, conflicts_with = "revert")]
    memory: bool,
    /// As JSON
    #[arg(long)]
    json: bool,
    /// Where the kernel's files are looked for
    #[arg(long, hide = true, value_name = "DIR", default_value = "/")]
    root: PathBuf,
}

/// Shows, makes or undoes the settings.
pub fn run(context: &Context, args: &TuneArgs) -> anyhow::Result<u8> {
    let app = context.app(Vec::new())?;
    let actuator = Actuator::new(&args.root, &app.dirs.root_state, Owner::Tune);
    if args.revert {
        let pending = actuator.pending()?;
        return match actuator.revert() {
            Ok(reverted) => {
                reverted.left.iter().for_each(note);
                told("wrote", &reverted.done, args.json)
            }
            Err(error) => refused(error, "--revert", &backwards(pending)),
        };
    }
    let mut tuning = tune(&args.root, &app.config().power);
    if args.memory {
        tuning.wanted.retain(|(path, _)| is_of_memory(path));
        tuning.notes.clear();
    }
    let changes = actuator.changes(&tuning.wanted)?;
    if args.apply {
        return match actuator.apply(&changes) {
            Ok(()) => told("wrote", &changes, args.json),
            Err(error) => refused(error, "--apply", &changes),
        };
    }
    told("would write", &changes, args.json)?;
    tuning.notes.iter().for_each(note);
    if !changes.is_empty() {
        note("do it with: sudo jetforge tune --apply; take it back with: --revert");
    }
    Ok(exit::OK)
}

/// Swappiness and the bound of zram.
fn is_of_memory(path: &str) -> bool {
    path.starts_with("proc/sys/vm/") || path.starts_with("sys/block/")
}

/// What would be written back, last first.
fn backwards(pending: Vec<Change>) -> Vec<Change> {
    let swap = |c: Change| Change { path: c.path, before: c.value, value: c.before };
    pending.into_iter().rev().map(swap).collect()
}

fn told(verb: &str, changes: &[Change], as_json: bool) -> anyhow::Result<u8> {
    if as_json {
        print_json(&serde_json::to_value(changes)?)?;
        return Ok(exit::OK);
    }
    let mut out = std::io::stdout().lock();
    for Change { path, before, value } in changes {
        writeln!(out, "{verb} {value} to /{path} (was {before})")?;
    }
    if changes.is_empty() {
        note("everything is as it should be");
    }
    Ok(exit::OK)
}

/// Without rights it says exactly what it would write, and how.
fn refused(error: ApplyError, option: &str, changes: &[Change]) -> anyhow::Result<u8> {
    if error.is_permission() {
        note(format!("only root may do this: sudo jetforge tune {option}, or by hand:"));
        for Change { path, value, .. } in changes {
            note(format!("  echo {value} | sudo tee /{path}"));
        }
    }
    Err(error.into())
}
