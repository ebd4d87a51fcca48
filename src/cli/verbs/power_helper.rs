//! `jetforge power-helper`: sets the board for a service that has no rights to.
//!
//! Started as root by `jetforge-power.socket`, with the connection as stdin and stdout. What it
//! takes and what it refuses is told in `src/power/ask.rs`. What was set and what was taken back
//! goes to stderr, which is the journal.

use std::path::PathBuf;

use clap::Args;

use crate::cli::terminal::note;
use crate::cli::{Context, exit};
use crate::power::Helper;

/// Options of `power-helper`.
#[derive(Debug, Args)]
pub struct PowerHelperArgs {
    /// Where the kernel's files are looked for
    #[arg(long, value_name = "DIR", default_value = "/")]
    root: PathBuf,
}

/// Answers until the service goes away.
pub fn run(context: &Context, args: &PowerHelperArgs) -> anyhow::Result<u8> {
    let app = context.app(Vec::new())?;
    let mut helper = Helper::open(&args.root, &app.dirs.root_state, app.config().power.clone())?;
    let (mut lines, mut answers) = (std::io::stdin().lock(), std::io::stdout().lock());
    let reverted = helper.run(&mut lines, &mut answers)?;
    reverted.left.iter().for_each(note);
    note(format!("{} files are as they were before", reverted.done.len()));
    Ok(exit::OK)
}
