//! `jetforge setup`: on the PC, pairs it with an appliance by the code that the appliance shows.

use std::io::{BufRead, Write};
use std::net::SocketAddrV4;
use std::time::Duration;

use clap::Args;
use serde_json::json;

use super::serve::address_of;
use crate::cli::exit::CliError;
use crate::cli::remote::{Remote, with_port};
use crate::cli::terminal::{self, print_json};
use crate::cli::{Context, exit};
use crate::discovery::browse;
use crate::server::pair_and_keep;
use crate::store::StoreError;

/// How long appliances have to announce themselves.
const BROWSE: Duration = Duration::from_secs(2);
/// Bytes of a line with a code.
const LINE_BYTES_MAX: u64 = 256;

/// Options of `setup`.
#[derive(Debug, Args)]
pub struct SetupArgs {
    /// Address of the appliance; the one on the LAN that announces itself by default
    #[arg(long, value_name = "ADDRESS")]
    nano_ip: Option<String>,
    /// Its port
    #[arg(long, value_name = "PORT", default_value_t = 8080)]
    nano_port: u16,
    /// The code that it shows; asked for if it is not given
    #[arg(long, value_name = "CODE")]
    code: Option<String>,
    /// What this machine is called there
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// The hub that runs on this machine, if one does
    #[arg(long, value_name = "HOST:PORT")]
    hub: Option<String>,
    /// The key to show to it
    #[arg(long, value_name = "KEY")]
    key: Option<String>,
    /// As JSON
    #[arg(long)]
    json: bool,
}

/// Pairs, and keeps the appliance.
pub fn run(context: &Context, args: &SetupArgs) -> anyhow::Result<u8> {
    let app = context.app_of_state(Vec::new())?;
    // First of all, so that no code is spent on a pairing that could not be kept.
    let store = match app.open_state() {
        Ok(opened) => Some(opened.store),
        // A running hub has it, and pairs for us.
        Err(StoreError::Locked { .. }) => None,
        Err(error) => return Err(error.into()),
    };
    let address = match &args.nano_ip {
        Some(host) => with_port(host, args.nano_port),
        None => announced(app.config().hub.discovery)?,
    };
    let code = match &args.code {
        Some(code) => code.clone(),
        None => asked()?,
    };
    // Where a hub of this configuration will be.
    let listens = address_of(&app.config().server.host, app.config().hub.port).ok();
    let mut card = app.card(listens);
    card.name = args.name.clone().unwrap_or(card.name);
    let paired = match store {
        Some(store) => {
            let peer = pair_and_keep(&store, &address, &code, &card)?;
            json!({"node": peer.node, "name": peer.name})
        }
        None => {
            let said = json!({"address": address, "code": code, "name": card.name});
            let hub = Remote { url: args.hub.clone(), key: args.key.clone(), pin: None };
            let hub = hub.hub(&app)?;
            hub.post("POST", "/v1/pair/ask", said.to_string().as_bytes())?
        }
    };
    if args.json {
        print_json(&paired)?;
    } else {
        let name = terminal::plain(paired["name"].as_str().unwrap_or_default());
        writeln!(std::io::stdout(), "paired with {name} at {address}")?;
        match paired["is_asked"] == false {
            true => terminal::note("the hub has as many backends as it can have, and not this one"),
            false => terminal::note("`jetforge hub` asks it from now on"),
        }
    }
    Ok(exit::OK)
}

/// The one appliance that announces itself.
fn announced(group: SocketAddrV4) -> anyhow::Result<String> {
    let found = browse(group, BROWSE)?;
    match &found[..] {
        [one] => Ok(one.address.to_string()),
        [] => Err(CliError::usage("no appliance announces itself; give --nano-ip").into()),
        many => {
            let all: Vec<String> = many.iter().map(|own| own.address.to_string()).collect();
            let message = format!("there are {}; give --nano-ip", all.join(", "));
            Err(CliError::usage(message).into())
        }
    }
}

/// A code that a person types.
fn asked() -> std::io::Result<String> {
    terminal::note("the code that the appliance shows (`jetforge pair` there shows one):");
    let mut line = String::new();
    std::io::Read::take(std::io::stdin().lock(), LINE_BYTES_MAX).read_line(&mut line)?;
    Ok(line)
}
