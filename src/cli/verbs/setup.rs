//! `jetforge setup`: on the PC, pairs it with an appliance by the code that the appliance shows.

use std::io::{BufRead, Write};
use std::net::SocketAddrV4;
use std::time::Duration;

use clap::Args;
use serde_json::json;

use crate::app::machine_name;
use crate::cli::exit::CliError;
use crate::cli::terminal::{self, print_json};
use crate::cli::{Context, exit};
use crate::discovery::browse;
use crate::pair::Code;
use crate::server::{Client, Introduction, PairingError, pair_with, random_key};
use crate::store::{Peer, Store, now_ms};

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
    /// As JSON
    #[arg(long)]
    json: bool,
}

/// Pairs, and keeps the appliance.
pub fn run(context: &Context, args: &SetupArgs) -> anyhow::Result<u8> {
    let app = context.app(Vec::new())?;
    // First of all, so that no code is spent on a pairing that could not be kept.
    let store = Store::open(&app.dirs.state)?.store;
    let code = match &args.code {
        Some(code) => code.clone(),
        None => asked()?,
    };
    let code = Code::read(&code).map_err(PairingError::from)?;
    let address = match &args.nano_ip {
        Some(host) => typed(host.trim_matches(['[', ']']), args.nano_port),
        None => announced(app.config().hub.discovery)?,
    };
    let name = args.name.clone().unwrap_or_else(machine_name);
    let ours = Introduction { node: store.node()?, name, key: random_key()? };
    let theirs = pair_with(&Client::new(&address, None), code, &ours)?;
    store.insert_peer(Peer {
        node: theirs.node.clone(),
        name: theirs.name.clone(),
        address: format!("http://{address}"),
        key_digest: ours.key_digest(),
        key: theirs.key,
        certificate: None,
        paired_ms: now_ms(),
    })?;
    if args.json {
        print_json(&json!({"node": theirs.node, "name": theirs.name, "address": address}))?;
    } else {
        writeln!(std::io::stdout(), "paired with {} at {address}", theirs.name)?;
        terminal::note("`jetforge hub` asks it from now on");
    }
    Ok(exit::OK)
}

fn typed(host: &str, port: u16) -> String {
    match host.contains(':') {
        true => format!("[{host}]:{port}"),
        false => format!("{host}:{port}"),
    }
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
