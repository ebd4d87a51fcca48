//! `jetforge client`: one prompt to a running hub or service, its answer streamed to the terminal.
//!
//! `LLM_SERVER_URL` says where it is asked, else the hub of this machine.

use std::io::Write;

use clap::Args;
use serde_json::{Map, Value, json};

use crate::cli::remote::Remote;
use crate::cli::terminal;
use crate::cli::{Context, exit};

/// Options of `client`.
#[derive(Debug, Default, Args)]
pub struct ClientArgs {
    /// What to ask
    #[arg(short, long, value_name = "TEXT")]
    prompt: String,
    #[command(flatten)]
    remote: Remote,
    /// Model
    #[arg(short, long, value_name = "NAME")]
    model: Option<String>,
    /// Most tokens of the answer
    #[arg(short, long, value_name = "N")]
    n_predict: Option<u32>,
    /// How far the answer strays
    #[arg(long, value_name = "T")]
    temp: Option<f32>,
    /// Without a chat's template
    #[arg(long)]
    raw: bool,
}

impl ClientArgs {
    /// A prompt, and the first of some keys.
    pub fn of(prompt: &str, keys: &[String]) -> ClientArgs {
        let remote = Remote { key: keys.first().cloned(), ..Remote::default() };
        ClientArgs { prompt: prompt.to_owned(), remote, ..ClientArgs::default() }
    }

    fn path_and_body(&self) -> (&'static str, Value) {
        let mut body = Map::new();
        let path = match self.raw {
            true => {
                body.insert("prompt".into(), self.prompt.as_str().into());
                "/v1/completions"
            }
            false => {
                let message = json!({"role": "user", "content": self.prompt});
                body.insert("messages".into(), json!([message]));
                "/v1/chat/completions"
            }
        };
        body.insert("stream".into(), true.into());
        body.extend(self.model.as_ref().map(|model| ("model".to_owned(), json!(model))));
        body.extend(self.n_predict.map(|n| ("max_tokens".to_owned(), json!(n))));
        body.extend(self.temp.map(|temp| ("temperature".to_owned(), json!(temp))));
        (path, Value::Object(body))
    }
}

/// Asks and prints.
pub fn run(context: &Context, args: &ClientArgs) -> anyhow::Result<u8> {
    let variable = context.env.get("LLM_SERVER_URL").and_then(|url| url.to_str());
    let url = args.remote.url.clone().or_else(|| variable.map(str::to_owned));
    let client = Remote { url, ..args.remote.clone() }.hub(&context.app(Vec::new())?)?;
    let (path, body) = args.path_and_body();
    let mut host = None;
    let mut closed = Ok(());
    client.stream(path, &body, |value| {
        host = value["jetforge_host"].as_str().map(str::to_owned).or(host.take());
        let choice = &value["choices"][0];
        let text = choice["delta"]["content"].as_str().or(choice["text"].as_str());
        if closed.is_ok() {
            closed = terminal::say(text.unwrap_or_default());
        }
    })?;
    closed?;
    writeln!(std::io::stdout())?;
    if let Some(host) = host {
        terminal::note(terminal::plain(&format!("answered by {host}")));
    }
    Ok(exit::OK)
}
