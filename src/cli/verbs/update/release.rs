//! `jetforge update keygen` and `sign`: what whoever makes releases does, on any machine.

use std::io::Write;
use std::path::PathBuf;

use clap::Args;

use super::target;
use crate::cli::exit::CliError;
use crate::cli::{exit, terminal};
use crate::store::STATE_SCHEMA;
use crate::update::{Manifest, SecretKey, Version, write_bundle};

/// Options of `keygen`.
#[derive(Debug, Args)]
pub struct KeygenArgs {
    /// The file for the secret half; it must not be there yet
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Whose it is
    #[arg(long, default_value = "release")]
    name: String,
}

/// Options of `sign`.
#[derive(Debug, Args)]
pub struct SignArgs {
    /// The program
    #[arg(value_name = "PROGRAM")]
    program: PathBuf,
    /// The secret half of a key
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
    /// Its version
    #[arg(long, value_parser = Version::read)]
    version: Version,
    /// The oldest C library that it runs with, as in 2.27
    #[arg(long, value_name = "VERSION", value_parser = Version::read)]
    glibc: Version,
    /// What it is compiled for; this machine by default
    #[arg(long, value_name = "TRIPLE")]
    target: Option<String>,
    /// The oldest version that it can follow
    #[arg(long, value_name = "VERSION", value_parser = Version::read)]
    upgrades_from: Option<Version>,
    /// The version of its state store; that of this program by default
    #[arg(long, value_name = "N")]
    state_schema: Option<i64>,
    /// The file to write; it is replaced
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
}

/// Makes a key.
pub fn keygen(args: &KeygenArgs) -> anyhow::Result<u8> {
    if args.name.chars().any(char::is_control) {
        return Err(CliError::usage("a name has no control characters").into());
    }
    let key = SecretKey::make(&args.file)?;
    writeln!(std::io::stdout(), "{}", key.public_line(&args.name))?;
    let secret = args.file.display();
    terminal::note("that line goes into /etc/jetforge/update.keys of each machine");
    terminal::note(format!("{secret} signs what they take: keep it safe, and off them"));
    Ok(exit::OK)
}

/// Signs a program.
pub fn sign(args: &SignArgs) -> anyhow::Result<u8> {
    let key = SecretKey::read(&args.key)?;
    let target = args.target.clone().unwrap_or_else(target);
    let mut manifest = Manifest::new(args.version.clone(), target, args.glibc.clone());
    manifest.upgrades_from = args.upgrades_from.clone().unwrap_or(manifest.upgrades_from);
    manifest.state_schema = args.state_schema.unwrap_or(STATE_SCHEMA);
    let manifest = write_bundle(&args.program, manifest, &key, &args.output)?;
    terminal::note(format!("{}: {} for {}", args.output.display(), args.version, manifest.target));
    Ok(exit::OK)
}
