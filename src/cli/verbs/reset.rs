//! `jetforge reset`: forgets everything that this machine was told and made, as if it were new.
//!
//! ```text
//! 1 a mark that it is to be done   2 the stamp of the first start   3 state, cache, choices
//! 4 the mark
//! ```
//!
//! If power goes in between, the first start, whose stamp is gone, finds the mark and goes on.
//! What the owner wrote by hand into the configuration stays, and so do models, if not asked for.
//! Of a link in the state the link goes, and nothing that it leads to.
//! The mark lies where only root writes, and root removes what is the service's as the service's
//! user.

use std::path::Path;

use anyhow::Context as _;
use clap::Args;

use super::backup::{self, hold};
use super::first_boot::{CARD, CHOICES, STAMP, is_read_only};
use crate::app::App;
use crate::base::file::{self, discard};
use crate::base::owner::as_owner_of;
use crate::cli::exit::CliError;
use crate::cli::terminal;
use crate::cli::{Context, exit};

/// Beside the stamp of the first start: a reset is to be done; with this text, models go as well.
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
    if !app.dirs.state.is_dir() {
        let message = format!("there is no {}: nothing to forget", app.dirs.state.display());
        return Err(CliError::usage(message).into());
    }
    // A service that runs holds the store; one that is broken is what a reset is for.
    let _held = hold(&app)?;
    let (mark, text) = (app.dirs.root_state.join(MARK), if args.models { AND_MODELS } else { "" });
    file::replace(&mark, text.as_bytes(), 0o600).with_context(|| mark.display().to_string())?;
    finish(&app)?;
    let state = app.dirs.state.display();
    terminal::note(format!(
        "nothing is known in {state} any more; `jetforge first-boot` sets it up"
    ));
    Ok(exit::OK)
}

/// Does, or goes on with, a reset that is to be done.
pub fn finish(app: &App) -> anyhow::Result<()> {
    let (state, root) = (&app.dirs.state, &app.dirs.root_state);
    let Ok(text) = std::fs::read_to_string(root.join(MARK)) else { return Ok(()) };
    let (models, goes) = (app.store.dir(), text == AND_MODELS);
    let is_kept = |path: &Path| path.ends_with(MARK) || !goes && models.starts_with(path);
    let sweep = || -> std::io::Result<()> {
        file::remove_for_good(&root.join(STAMP))?;
        file::remove(&root.join(CARD))?;
        backup::forget(app)?;
        for name in [CARD, CHOICES] {
            let path = app.dirs.config.join(name);
            let removed = file::remove(&path);
            if removed.as_ref().is_err_and(is_read_only) {
                // A key of before opens nothing, and what cannot be chosen anew stays chosen.
                terminal::note(format!("{} cannot be removed, and stays", path.display()));
            } else {
                removed?;
            }
        }
        for dir in [&app.dirs.cache, state] {
            as_owner_of(dir, || empty(dir, &is_kept)).flatten()?;
        }
        if goes {
            as_owner_of(models, || empty(models, &|_| false)).flatten()?;
        }
        file::remove_for_good(&root.join(MARK))
    };
    sweep().context("the reset is not done; it goes on with the next start")
}

/// Removes what is in a folder, if there is one, but what is kept.
fn empty(dir: &Path, is_kept: &dyn Fn(&Path) -> bool) -> std::io::Result<()> {
    let entries = match std::fs::read_dir(dir) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let path = entry?.path();
        if !is_kept(&path) {
            discard(&path)?;
        }
    }
    std::fs::File::open(dir)?.sync_all()
}
