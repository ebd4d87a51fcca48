//! `jetforge reset`: forgets everything that this machine was told and made, as if it were new.
//!
//! ```text
//! 1 a mark that it is to be done   2 the stamp of the first start   3 state, cache, choices
//! 4 the mark
//! ```
//!
//! If power goes in between, the first start, whose stamp is gone, finds the mark and goes on.
//! What the owner wrote by hand into the configuration stays, and so do models, if not asked for.

use std::path::Path;

use anyhow::Context as _;
use clap::Args;

use super::first_boot::{CARD, CHOICES, STAMP};
use crate::app::App;
use crate::cli::exit::CliError;
use crate::cli::terminal;
use crate::cli::{Context, exit};
use crate::store::{Store, StoreError};

/// In the directory of states: a reset is to be done; with this text, models go as well.
const MARK: &str = "reset.pending";
const AND_MODELS: &str = "models";

/// Options of `reset`.
#[derive(Debug, Args)]
pub struct ResetArgs {
    /// Really: keys, pairings, jobs, kept prompts and choices are gone for good
    #[arg(long)]
    yes: bool,
    /// Models as well
    #[arg(long)]
    models: bool,
}

/// Resets the machine.
pub fn run(context: &Context, args: &ResetArgs) -> anyhow::Result<u8> {
    let app = context.app(Vec::new())?;
    if !args.yes {
        let message = format!(
            "this forgets keys, pairings, jobs, kept prompts and choices in {} and {} for good; \
             --yes does it",
            app.dirs.state.display(),
            app.dirs.cache.display()
        );
        return Err(CliError::usage(message).into());
    }
    if app.dirs.state.is_dir() {
        // A service that runs holds the store; one that is broken is what a reset is for.
        if let Err(error @ StoreError::Locked { .. }) = Store::open(&app.dirs.state).map(drop) {
            return Err(anyhow::Error::from(error).context("stop the service first"));
        }
        let text = if args.models { AND_MODELS } else { "" };
        std::fs::write(app.dirs.state.join(MARK), text).context("the directory of states")?;
        finish(&app)?;
    }
    terminal::note("this machine knows nothing any more; `jetforge first-boot` sets it up");
    Ok(exit::OK)
}

/// Does, or goes on with, a reset that is to be done.
pub fn finish(app: &App) -> anyhow::Result<()> {
    let state = &app.dirs.state;
    let Ok(text) = std::fs::read_to_string(state.join(MARK)) else { return Ok(()) };
    let (models, goes) = (app.store.dir(), text == AND_MODELS);
    let is_kept = |path: &Path| !goes && models.starts_with(path);
    let sweep = || -> std::io::Result<()> {
        remove(&state.join(STAMP))?;
        if goes {
            remove(models)?;
        }
        for name in [CARD, CHOICES] {
            remove(&app.dirs.config.join(name))?;
        }
        for dir in [&app.dirs.cache, state] {
            let Ok(entries) = std::fs::read_dir(dir) else { continue };
            for entry in entries {
                let path = entry?.path();
                if !path.ends_with(MARK) && !is_kept(&path) {
                    remove(&path)?;
                }
            }
            std::fs::File::open(dir)?.sync_all()?;
        }
        remove(&state.join(MARK))
    };
    sweep().context("the reset is not done; it goes on with the next start")
}

/// Removes a file or a folder, which may be gone already.
fn remove(path: &Path) -> std::io::Result<()> {
    let is_folder = std::fs::symlink_metadata(path).is_ok_and(|data| data.is_dir());
    let removed =
        if is_folder { std::fs::remove_dir_all(path) } else { std::fs::remove_file(path) };
    match removed {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
