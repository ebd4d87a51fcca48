//! `jetforge key`: API keys of the service, kept as hashes in the state directory.

use std::io::Write;

use clap::{Args, Subcommand, ValueEnum};
use serde_json::json;

use crate::cli::terminal::{self, print_json, table};
use crate::cli::{Context, exit};
use crate::server::{Class, Grant, KeyFile, KeyRecord, Scope};

/// Options of `key`.
#[derive(Debug, Args)]
pub struct KeyArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Make a key; it is shown once
    Create {
        /// Whose it is
        name: String,
        /// What it opens
        #[arg(long, value_enum, default_value = "inference")]
        scope: Vec<ScopeName>,
        /// The highest class that it may ask for
        #[arg(long, value_enum, default_value = "interactive")]
        class: ClassName,
        /// Requests per minute
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
        per_minute: Option<u32>,
        /// Requests at once
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
        at_once: Option<u32>,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Show the keys, without what opens
    List {
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Take a key back; it opens nothing from now on
    Revoke {
        /// Whose it is
        name: String,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum ScopeName {
    /// Answers, embeddings, tokens, models and metrics
    Inference,
    /// Slots, adapters, defaults and timelines as well
    Admin,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum ClassName {
    /// A person waits
    Interactive,
    /// A program waits
    Agent,
    /// Nobody waits
    Background,
}

/// Makes, lists or revokes keys.
pub fn run(context: &Context, args: &KeyArgs) -> anyhow::Result<u8> {
    let app = context.app_of_state(Vec::new())?;
    let file = KeyFile::new(&app.dirs.state);
    match &args.what {
        What::Create { name, scope, class, per_minute, at_once, json } => {
            let grant = Grant {
                scopes: scopes(scope),
                class: match class {
                    ClassName::Interactive => Class::Interactive,
                    ClassName::Agent => Class::Agent,
                    ClassName::Background => Class::Background,
                },
                per_minute: *per_minute,
                at_once: *at_once,
            };
            let key = file.create(name, grant)?;
            if *json {
                print_json(&json!({"name": name, "key": key}))?;
            } else {
                writeln!(std::io::stdout(), "{key}")?;
                terminal::note("this is shown once; a running service takes it from now on");
            }
        }
        What::List { json } => list(&file.list()?, *json)?,
        What::Revoke { name } => file.revoke(name)?,
    }
    Ok(exit::OK)
}

/// An administrator may do what others may.
fn scopes(named: &[ScopeName]) -> Vec<Scope> {
    match named.contains(&ScopeName::Admin) {
        true => vec![Scope::Inference, Scope::Admin],
        false => vec![Scope::Inference],
    }
}

fn list(keys: &[KeyRecord], as_json: bool) -> std::io::Result<()> {
    if as_json {
        let keys = keys.iter().map(
            |key| json!({"name": key.name, "created_unix": key.created_unix, "grant": key.grant}),
        );
        return print_json(&json!({ "keys": keys.collect::<Vec<_>>() }));
    }
    let number = |n: Option<u32>| n.map_or("any".to_owned(), |n| n.to_string());
    let mut rows =
        vec![["NAME", "SCOPE", "CLASS", "PER MINUTE", "AT ONCE"].map(str::to_owned).to_vec()];
    rows.extend(keys.iter().map(|key| {
        let grant = &key.grant;
        let scope = if grant.scopes.contains(&Scope::Admin) { "admin" } else { "inference" };
        let class = format!("{:?}", grant.class).to_lowercase();
        let (per_minute, at_once) = (number(grant.per_minute), number(grant.at_once));
        vec![key.name.clone(), scope.to_owned(), class, per_minute, at_once]
    }));
    write!(std::io::stdout(), "{}", table(&rows))
}
