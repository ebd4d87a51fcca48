//! `jetforge man DIR`: a manual page of the program and one of each verb, for the package.

use std::path::PathBuf;

use clap::{Args, CommandFactory};

use crate::cli::args::Cli;
use crate::cli::exit;

/// Options of `man`.
#[derive(Debug, Args)]
pub struct ManArgs {
    /// Where `jetforge.1`, `jetforge-serve.1` and so on are written
    dir: PathBuf,
}

/// Writes the pages.
pub fn run(args: &ManArgs) -> anyhow::Result<u8> {
    std::fs::create_dir_all(&args.dir)?;
    // The usage of a page must not depend on the terminal that it was written at.
    clap_mangen::generate_to(Cli::command().term_width(100), &args.dir)?;
    Ok(exit::OK)
}
