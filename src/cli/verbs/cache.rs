//! `jetforge cache`: the prefixes that outlive the service, what they take, and their end.

use std::io::Write;

use clap::{Args, Subcommand};
use serde_json::json;

use crate::base::format;
use crate::cli::terminal::print_json;
use crate::cli::{Context, exit};

/// Options of `cache`.
#[derive(Debug, Args)]
pub struct CacheArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Show where prefixes are kept and what they take
    Status {
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Remove every kept prefix; a service that runs goes on
    Clear {
        /// As JSON
        #[arg(long)]
        json: bool,
    },
}

/// Shows or clears.
pub fn run(context: &Context, args: &CacheArgs) -> anyhow::Result<u8> {
    let app = context.app_of_state(Vec::new())?;
    let options = app.disk_cache_options();
    let config = &app.config().prefix_cache;
    let mut out = std::io::stdout().lock();
    match args.what {
        What::Status { json } => {
            let (n_page, n_bytes, written_today) = options.survey()?;
            if json {
                drop(out);
                print_json(&json!({
                    "dir": options.dir.display().to_string(),
                    "enabled": config.enabled,
                    "n_page": n_page,
                    "bytes": n_bytes,
                    "bytes_max": options.bytes_max,
                    "written_today": written_today,
                    "write_bytes_per_day_max": options.write_bytes_per_day_max,
                }))?;
                return Ok(exit::OK);
            }
            let state = if config.enabled { "on" } else { "off" };
            writeln!(out, "directory  {} ({state})", options.dir.display())?;
            writeln!(
                out,
                "pages      {n_page}, {} of {}",
                format::bytes(n_bytes),
                format::bytes(options.bytes_max)
            )?;
            let per_day = format::bytes(options.write_bytes_per_day_max);
            writeln!(out, "written    {} of {per_day} today", format::bytes(written_today))?;
        }
        What::Clear { json } => {
            let (n_page, n_bytes) = options.clear()?;
            if json {
                drop(out);
                print_json(&json!({"n_page": n_page, "bytes": n_bytes}))?;
                return Ok(exit::OK);
            }
            writeln!(out, "removed {n_page} pages, {}", format::bytes(n_bytes))?;
        }
    }
    Ok(exit::OK)
}
