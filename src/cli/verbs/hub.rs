//! `jetforge hub`: the service before appliances and servers outside; `hub status` looks at one.

use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::client::{self, ClientArgs};
use super::serve::{launch, supervisor};
use crate::app::BackendKeys;
use crate::base::config::Setting;
use crate::cli::args::ModelArgs;
use crate::cli::exit::CliError;
use crate::cli::remote::Remote;
use crate::cli::terminal::{self, print_json, table};
use crate::cli::{Context, exit};
use crate::discovery::browse;
use crate::server::ClientError;

/// Options of `hub`.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct HubArgs {
    #[command(subcommand)]
    what: Option<What>,
    #[command(flatten)]
    serve: HubServeArgs,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Look for appliances on the LAN that announce themselves
    Discover {
        /// How long, in milliseconds
        #[arg(long, value_name = "MS", default_value_t = 2000)]
        wait: u64,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Show the backends of a running hub and how they stand
    Status {
        #[command(flatten)]
        remote: Remote,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
}

/// What a hub is started with.
#[derive(Debug, Args)]
pub struct HubServeArgs {
    /// Address to listen on; beyond this machine it needs an API key
    #[arg(long, value_name = "ADDRESS")]
    host: Option<String>,
    /// Port; 0 takes a free one
    #[arg(long, value_name = "PORT")]
    port: Option<u16>,
    /// An appliance; several with commas or again
    #[arg(long, value_name = "HOST:PORT", value_delimiter = ',')]
    nano: Vec<String>,
    /// A server that speaks OpenAI's words; prompts leave for it
    #[arg(long, value_name = "URL", value_delimiter = ',')]
    external_llama: Vec<String>,
    /// Key to show to appliances that have none of their own
    #[arg(long, value_name = "KEY")]
    nano_key: Option<String>,
    /// Key to show to servers outside that have none of their own
    #[arg(long, value_name = "KEY")]
    external_key: Option<String>,
    /// Seconds that a server outside may take
    #[arg(long, value_name = "S")]
    external_timeout: Option<u32>,
    /// File with an address and its key on each line
    #[arg(long, value_name = "FILE")]
    backend_keys: Option<PathBuf>,
    /// Do not answer with this machine's engine
    #[arg(long)]
    no_local: bool,
    /// Speak TLS, with a certificate that is made once
    #[arg(long)]
    tls: bool,
    /// API key of the hub in the clear; several with commas (`jetforge key create` keeps a hash)
    #[arg(long, value_name = "KEY", value_delimiter = ',')]
    api_key: Vec<String>,
    /// Sequences of this machine's engine that run at once
    #[arg(long, value_name = "N")]
    parallel: Option<u16>,
    #[command(flatten)]
    model: ModelArgs,
}

/// Options of `orchestrate`.
#[derive(Debug, Args)]
pub struct OrchestrateArgs {
    /// Serve
    #[arg(long, required_unless_present = "prompt", conflicts_with = "prompt")]
    serve: bool,
    /// Ask a running hub once
    #[arg(long, value_name = "TEXT")]
    prompt: Option<String>,
    #[command(flatten)]
    hub: HubServeArgs,
}

impl HubServeArgs {
    fn settings(&self) -> anyhow::Result<Vec<Setting>> {
        let mut settings = self.model.settings()?;
        let mut add = |key: &str, option: &str, value: Option<toml::Value>| {
            let (key, option) = (key.to_owned(), option.to_owned());
            settings.extend(value.map(|value| Setting { key, value, option }));
        };
        let list = |own: &[String]| (!own.is_empty()).then(|| own.to_vec().into());
        let wait = self.external_timeout.map(|s| (i64::from(s) * 1000).into());
        let file = self.backend_keys.as_ref().map(|path| path.display().to_string().into());
        add("server.host", "--host", self.host.clone().map(Into::into));
        add("server.n_parallel", "--parallel", self.parallel.map(|n| i64::from(n).into()));
        add("server.tls", "--tls", self.tls.then_some(true.into()));
        add("hub.port", "--port", self.port.map(|port| i64::from(port).into()));
        add("hub.nano", "--nano", list(&self.nano));
        add("hub.external_llama", "--external-llama", list(&self.external_llama));
        add("hub.external_ms", "--external-timeout", wait);
        add("hub.key_file", "--backend-keys", file);
        add("hub.local", "--no-local", self.no_local.then_some(false.into()));
        Ok(settings)
    }
}

/// Serves, or shows how a hub stands.
pub fn run(context: &Context, args: &HubArgs) -> anyhow::Result<u8> {
    match &args.what {
        Some(What::Status { remote, json }) => status(context, remote, *json),
        Some(What::Discover { wait, json }) => discover(context, *wait, *json),
        None => serve(context, &args.serve),
    }
}

/// The hub under AutoCoder's name.
pub fn orchestrate(context: &Context, args: &OrchestrateArgs) -> anyhow::Result<u8> {
    match &args.prompt {
        Some(prompt) => client::run(context, &ClientArgs::of(prompt, &args.hub.api_key)),
        None => serve(context, &args.hub),
    }
}

fn serve(context: &Context, args: &HubServeArgs) -> anyhow::Result<u8> {
    let app = context.app_of_state(args.settings()?)?;
    let port = app.config().hub.port;
    let keys = BackendKeys { nano: args.nano_key.clone(), external: args.external_key.clone() };
    let api_keys = args.api_key.clone();
    launch(app, port, supervisor(context)?, move |app, on_panic| {
        let (service, hub) = app.hub(api_keys, keys, on_panic)?;
        Ok((service, Some(hub)))
    })
}

fn discover(context: &Context, wait_ms: u64, as_json: bool) -> anyhow::Result<u8> {
    let app = context.app(Vec::new())?;
    let found = browse(app.config().hub.discovery, Duration::from_millis(wait_ms))?;
    if as_json {
        let found = found.iter().map(
            |own| json!({"name": own.name, "node": own.node, "address": own.address.to_string()}),
        );
        print_json(&json!({ "found": found.collect::<Vec<_>>() }))?;
        return Ok(exit::OK);
    }
    let mut rows = vec![["NAME", "ADDRESS", "NODE"].map(str::to_owned).to_vec()];
    rows.extend(found.into_iter().map(|own| vec![own.name, own.address.to_string(), own.node]));
    write!(std::io::stdout(), "{}", table(&rows))?;
    Ok(exit::OK)
}

fn status(context: &Context, remote: &Remote, as_json: bool) -> anyhow::Result<u8> {
    let client = remote.hub(&context.app(Vec::new())?)?;
    let status = client.json("GET", "/v1/status")?;
    let Some(backends) = status["upstream"]["backends"].as_array() else {
        let address = client.address();
        return Err(CliError::usage(format!("{address} is a service, and no hub")).into());
    };
    let told = match client.json("GET", "/v1/sync/appliances") {
        Err(ClientError::Refused { status: 401 | 403, message }) => {
            terminal::note(format!("what appliances told of themselves is not shown: {message}"));
            Value::Null
        }
        // A hub that keeps no store has none.
        told => told.unwrap_or_default(),
    };
    let appliances = told["appliances"].as_array().cloned().unwrap_or_default();
    if as_json {
        let mut shown = status["upstream"].clone();
        shown["appliances"] = appliances.into();
        print_json(&shown)?;
        return Ok(exit::OK);
    }
    let heads = ["NAME", "KIND", "TLS", "STANDING", "BUSY", "ANSWERED", "FAILED", "MODELS", "WHY"];
    let mut rows = vec![heads.map(str::to_owned).to_vec()];
    rows.extend(backends.iter().map(row));
    write!(std::io::stdout(), "{}", table(&rows))?;
    if !appliances.is_empty() {
        let heads = ["APPLIANCE", "SYNC", "JOBS", "MODELS", "LAST BENCH", "FEEDBACK", "FILES"];
        let mut rows = vec![heads.map(str::to_owned).to_vec()];
        rows.extend(appliances.iter().map(told_row));
        write!(std::io::stdout(), "\n{}", table(&rows))?;
    }
    Ok(exit::OK)
}

/// What an appliance told of itself.
fn told_row(told: &Value) -> Vec<String> {
    // An appliance can call its models what it likes; the terminal is not its own.
    let text = |value: &Value| -> String {
        value.as_str().unwrap_or_default().chars().filter(|c| !c.is_control()).collect()
    };
    let states = told["jobs"].as_object().into_iter().flatten();
    let jobs: Vec<String> =
        states.map(|(state, n)| format!("{n} {}", text(&state.as_str().into()))).collect();
    let models = told["inventory"]["models"].as_array().map_or(0, Vec::len);
    let bench = &told["bench"][0];
    let figures = bench["figures"].as_array().into_iter().flatten();
    let figures: Vec<String> = figures
        .filter(|figure| figure["unit"] == "tok/s")
        .take(2)
        .filter_map(|figure| {
            let median = figure["median"].as_f64()?;
            Some(format!("{} {median:.1} tok/s", text(&figure["test"])))
        })
        .collect();
    let bench = match figures.is_empty() {
        true => String::new(),
        false => format!("{}: {}", text(&bench["model"]["name"]), figures.join(", ")),
    };
    vec![
        text(&told["name"]),
        text(&told["state"]),
        jobs.join(", "),
        models.to_string(),
        bench,
        told["n_feedback"].to_string(),
        told["n_file"].to_string(),
    ]
}

fn row(backend: &Value) -> Vec<String> {
    let text = |name: &str| match &backend[name] {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        value => value.to_string(),
    };
    let models = backend["models"].as_array().into_iter().flatten();
    let models: Vec<&str> = models.filter_map(|model| model["names"][0].as_str()).collect();
    let busy = format!("{}/{}", text("n_busy"), text("n_place"));
    vec![
        text("name"),
        text("kind"),
        text("tls"),
        text("standing"),
        busy,
        text("answered"),
        text("failed"),
        models.join(", "),
        text("why"),
    ]
}
