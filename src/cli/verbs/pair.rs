//! `jetforge pair`: on the appliance, shows a code that `jetforge setup` on the PC asks for.

use std::io::Write;

use clap::Args;
use serde_json::json;

use crate::base::limits::{PAIR_S, PAIR_TRIES_MAX};
use crate::cli::terminal::{self, print_json};
use crate::cli::{Context, exit};
use crate::server::PairOffer;

/// Options of `pair`.
#[derive(Debug, Args)]
pub struct PairArgs {
    /// As JSON
    #[arg(long)]
    json: bool,
    /// Take the code back instead
    #[arg(long)]
    close: bool,
}

/// Makes a code and shows it.
pub fn run(context: &Context, args: &PairArgs) -> anyhow::Result<u8> {
    let app = context.app_of_state(Vec::new())?;
    let offer = PairOffer::new(&app.dirs.state);
    if args.close {
        offer.close()?;
        return Ok(exit::OK);
    }
    let code = offer.make()?.show();
    if args.json {
        print_json(&json!({"code": code, "seconds": PAIR_S, "tries": PAIR_TRIES_MAX}))?;
    } else {
        writeln!(std::io::stdout(), "{code}")?;
        terminal::note(format!(
            "on the other machine: jetforge setup --nano-ip ADDRESS --nano-port PORT; good for \
             {PAIR_S} s, {PAIR_TRIES_MAX} tries and one machine"
        ));
    }
    Ok(exit::OK)
}
