//! `jetforge jobs`: the jobs of a running service.

use std::io::Write;

use clap::{Args, Subcommand};
use serde_json::Value;

use crate::cli::remote::Remote;
use crate::cli::terminal::{self, print_json, table};
use crate::cli::{Context, exit};
use crate::server::{Client, ClientError};

/// Times that a watch asks again after the service went.
const N_WATCH: usize = 60;

/// Options of `jobs`.
#[derive(Debug, Args)]
pub struct JobsArgs {
    #[command(subcommand)]
    what: What,
    #[command(flatten)]
    remote: Remote,
    /// As JSON
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Show the jobs, the newest first
    List {
        /// Only those in this state
        #[arg(long, value_name = "STATE")]
        state: Option<String>,
        /// How many
        #[arg(long, value_name = "N", default_value_t = 50)]
        limit: u32,
    },
    /// Show a job with its answer
    Show {
        /// Its id
        id: String,
    },
    /// Let a job that failed, was taken back or set aside run again
    Retry {
        /// Its id
        id: String,
    },
    /// Take a job back
    Cancel {
        /// Its id
        id: String,
    },
    /// Print a job's text as it grows, until it is over
    Watch {
        /// Its id
        id: String,
    },
}

/// Speaks with the service.
pub fn run(context: &Context, args: &JobsArgs) -> anyhow::Result<u8> {
    let client = args.remote.service(&context.app(Vec::new())?)?;
    let one = |id: &str| format!("/v1/jobs/{id}");
    match &args.what {
        What::List { state, limit } => {
            let state = state.as_ref().map(|state| format!("&state={state}")).unwrap_or_default();
            list(&client.json("GET", &format!("/v1/jobs?limit={limit}{state}"))?, args.json)?;
        }
        What::Show { id } => print_json(&client.json("GET", &one(id))?)?,
        What::Retry { id } => {
            told(&client.json("POST", &format!("{}/retry", one(id)))?, args.json)?;
        }
        What::Cancel { id } => told(&client.json("DELETE", &one(id))?, args.json)?,
        What::Watch { id } => return watch(&client, &one(id)),
    }
    Ok(exit::OK)
}

fn told(job: &Value, as_json: bool) -> std::io::Result<()> {
    match as_json {
        true => print_json(job),
        false => writeln!(std::io::stdout(), "{} is {}", text(job, "id"), text(job, "state")),
    }
}

fn text(job: &Value, name: &str) -> String {
    match &job[name] {
        Value::Null => String::new(),
        Value::String(text) => terminal::plain(text),
        value => value.to_string(),
    }
}

fn list(answer: &Value, as_json: bool) -> std::io::Result<()> {
    if as_json {
        return print_json(answer);
    }
    let heads = ["ID", "STATE", "ENDPOINT", "TOKENS", "WAY", "REASON"];
    let mut rows = vec![heads.map(str::to_owned).to_vec()];
    for job in answer["data"].as_array().into_iter().flatten() {
        let names = ["id", "state", "endpoint", "n_token", "way", "reason"];
        rows.push(names.map(|name| text(job, name)).to_vec());
    }
    write!(std::io::stdout(), "{}", table(&rows))?;
    if let Some(reason) = answer["waits_for"].as_str() {
        terminal::note(terminal::plain(&format!("jobs wait: {reason}")));
    }
    if answer["has_more"] == Value::Bool(true) {
        terminal::note("there are more; --limit shows them");
    }
    Ok(())
}

/// Follows a job; a service that went is asked again where it broke off.
fn watch(client: &Client, path: &str) -> anyhow::Result<u8> {
    let mut last: Option<String> = None;
    let mut end = None;
    for n_try in 0..N_WATCH {
        let heard = client.events(&format!("{path}/events"), last.as_deref(), |event, data| {
            match event {
                "text" => {
                    let _ = terminal::say(data["text"].as_str().unwrap_or_default());
                }
                "restart" => terminal::note("\nthe text begins anew"),
                "state" => terminal::note(format!("[{}]", text(data, "state"))),
                "end" => end = Some(data.clone()),
                _ => {}
            }
            event != "end"
        });
        match heard {
            Ok(id) => last = id,
            Err(error @ ClientError::Refused { .. }) => return Err(error.into()),
            Err(error) if n_try == 0 || n_try + 1 == N_WATCH => return Err(error.into()),
            Err(_) => {}
        }
        if let Some(job) = &end {
            let state = text(job, "state");
            let reason = text(job, "reason");
            let _ = writeln!(std::io::stdout());
            if !reason.is_empty() {
                terminal::note(reason);
            }
            return Ok(if state == "done" { exit::OK } else { exit::FAILURE });
        }
        std::thread::sleep(std::time::Duration::from_secs(1));
    }
    anyhow::bail!("the service went and did not come back")
}
