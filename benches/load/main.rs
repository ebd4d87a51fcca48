//! Load on `jetforge serve`, or on any server that speaks OpenAI's completions.
//!
//! ```text
//! cargo bench --bench load -- --model FILE --clients 1,4,16,64        closed loop
//! cargo bench --bench load -- --model FILE --rate 2 --seconds 60      open loop
//! cargo bench --bench load -- --model FILE --llama-server PROGRAM     both servers, in turn
//! cargo bench --bench load -- --model FILE --check                    the promises, with figures
//! cargo bench --bench load -- --model FILE --versus-bench --rounds 5     one client, and `bench`
//! cargo bench --bench load -- --model FILE --ready 7                  starts until it serves
//! cargo bench --bench load -- --soak 3600 --seed 1                    anything, for an hour
//! ```
//!
//! Prompts are tokens, so that they are as long as they say. Every answer is held to its counts;
//! one that is short, or has no end, is an error. The client is one thread and parses only what it
//! must: it runs on the machine that it measures.

mod ask;
mod check;
mod host;
mod measure;
mod prompt;
mod ready;
mod report;
mod soak;
mod soak_kinds;
mod versus;
mod wire;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};

use host::{Host, ServerOptions};
use measure::Load;
use prompt::PromptShape;
use report::Row;

/// Measures a server under load.
#[derive(Debug, Parser)]
#[command(name = "load")]
struct Args {
    /// Server of ours to start
    #[arg(long, value_name = "PROGRAM", default_value = env!("CARGO_BIN_EXE_jetforge"))]
    jetforge: PathBuf,
    /// llama.cpp's server, to be measured in turn with ours
    #[arg(long, value_name = "PROGRAM")]
    llama_server: Option<PathBuf>,
    /// A server that runs already, instead of starting one
    #[arg(long, value_name = "URL", conflicts_with = "llama_server")]
    url: Option<String>,
    /// Its process on this machine, for its memory
    #[arg(long, requires = "url")]
    pid: Option<u32>,
    /// Its key
    #[arg(long, requires = "url")]
    api_key: Option<String>,
    /// Model file; without one, ours uses its own
    #[arg(long, value_name = "FILE")]
    model: Option<PathBuf>,
    /// Threads of a server that is started
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// Its sequences at once
    #[arg(long, default_value_t = 16)]
    parallel: usize,
    /// Its context, of all sequences together
    #[arg(long, value_name = "N")]
    ctx_size: Option<usize>,
    /// Another option for every server that is started; may be repeated
    #[arg(long, value_name = "OPTION", allow_hyphen_values = true)]
    option: Vec<String>,
    /// Where the last started server's log goes
    #[arg(long, value_name = "FILE")]
    log: Option<PathBuf>,
    /// Clients of the closed loop, one run for each number
    #[arg(long, value_delimiter = ',', default_value = "1,4,16,64")]
    clients: Vec<usize>,
    /// Requests of each client; of a few clients more, eight in all
    #[arg(long, default_value_t = 4)]
    requests: usize,
    /// Open loop: requests a second, one run for each number
    #[arg(long, value_delimiter = ',')]
    rate: Vec<f64>,
    /// Open loop: seconds of arrivals
    #[arg(long, default_value_t = 30.0)]
    seconds: f64,
    /// Tokens of a prompt
    #[arg(long, default_value_t = 128)]
    prompt: usize,
    /// Of these, the same in every prompt
    #[arg(long, default_value_t = 64)]
    shared: usize,
    /// Tokens of an answer
    #[arg(long, default_value_t = 32)]
    max_tokens: usize,
    /// Times that everything is measured
    #[arg(long, default_value_t = 1)]
    rounds: usize,
    /// Of prompts, arrivals and samplers
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Measure what the service promises; fails where it is not kept
    #[arg(long)]
    check: bool,
    /// Only these checks, by the first words of their names; may be repeated
    #[arg(long, value_name = "NAME", requires = "check")]
    only: Vec<String>,
    /// One client against `jetforge bench`, in turn; fails where too little is left
    #[arg(long, conflicts_with_all = ["check", "soak", "url"])]
    versus_bench: bool,
    /// Start so often, after once to warm up, and take the time until `/health` says ready
    #[arg(long, value_name = "N", conflicts_with_all = ["check", "soak", "url", "versus_bench"])]
    ready: Option<usize>,
    /// Random load for so many seconds, then nothing may be left over
    #[arg(long, value_name = "SECONDS")]
    soak: Option<u64>,
    /// What cargo bench says
    #[arg(long, hide = true)]
    bench: bool,
}

impl Args {
    fn load(&self) -> Load {
        let prompt = PromptShape { n_prompt: self.prompt, n_shared: self.shared };
        Load { prompt, n_predict: self.max_tokens, seed: self.seed }
    }

    /// `n_ctx_each`: what a sequence needs, where no option says how much there is.
    fn server(&self, program: &std::path::Path, n_ctx_each: usize) -> ServerOptions {
        let is_ours = program == self.jetforge;
        let mut extra = self.option.clone();
        if is_ours {
            // llama-server's default; random weights repeat themselves, which flatters guesses.
            extra.extend(["--draft-max".to_owned(), "0".to_owned()]);
        }
        ServerOptions {
            program: program.to_owned(),
            is_ours,
            model: self.model.clone(),
            n_threads: self.threads,
            n_parallel: self.parallel,
            n_ctx: self.ctx_size.unwrap_or(self.parallel * n_ctx_each),
            extra,
        }
    }

    async fn host(&self, program: &std::path::Path, n_ctx_each: usize) -> anyhow::Result<Host> {
        match &self.url {
            Some(url) => Host::at(url, self.api_key.clone(), self.pid),
            None => Host::start(&self.server(program, n_ctx_each), self.log.as_deref()).await,
        }
    }
}

fn main() -> ExitCode {
    let args = Args::parse();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let result = runtime.map_err(anyhow::Error::from).and_then(|r| r.block_on(until_told(&args)));
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Runs; a signal ends it and, with it, the server that it started.
async fn until_told(args: &Args) -> anyhow::Result<bool> {
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        result = run(args) => result,
        _ = tokio::signal::ctrl_c() => anyhow::bail!("interrupted"),
        _ = terminate.recv() => anyhow::bail!("terminated"),
    }
}

/// Whether all went well.
async fn run(args: &Args) -> anyhow::Result<bool> {
    if let Some(seconds) = args.soak {
        let options = soak::server_options(args.server(&args.jetforge, 1024));
        return soak::run(&options, args.log.as_deref(), seconds, args.seed).await;
    }
    if let Some(n_start) = args.ready {
        return ready::run(args, n_start).await;
    }
    if args.versus_bench {
        return versus::run(args).await;
    }
    if args.check {
        let mut findings = Vec::new();
        for (n_ctx_each, names) in check::GROUPS {
            let names = names.iter().copied().filter(|name| check::is_asked(name, &args.only));
            let names: Vec<&str> = names.collect();
            if !names.is_empty() {
                let host = args.host(&args.jetforge, n_ctx_each).await?;
                findings.extend(check::run(host, args.seed, &names).await?);
            }
        }
        return Ok(check::verdict(&findings, args.json));
    }
    let mut programs = vec![("jetforge", args.jetforge.as_path())];
    programs.extend(args.llama_server.as_deref().map(|program| ("llama-server", program)));
    let mut rounds = Vec::new();
    for round in 0..args.rounds {
        let mut rows = Vec::new();
        for (name, program) in &programs {
            let name = if args.url.is_some() { "url" } else { name };
            // One page more than the longest sequence.
            let host = args.host(program, args.prompt + args.max_tokens + 64).await?;
            rows.extend(measure_all(args, name, host, round as u64).await?);
        }
        rounds.push(rows);
    }
    let (rows, ratios) = report::medians(&rounds);
    if args.json {
        println!("{:#}", report::json(&rows, &ratios));
    } else {
        print!("{}", report::table(&rows));
        ratios.iter().for_each(|line| println!("{line}"));
    }
    Ok(rows.iter().all(Row::is_clean))
}

/// Every load on one server.
async fn measure_all(args: &Args, name: &str, host: Host, round: u64) -> anyhow::Result<Vec<Row>> {
    let load = Load { seed: args.seed.wrapping_add(round << 32), ..args.load() };
    let host = Arc::new(host);
    let warm = load.warm_up(&host).await;
    if let Some(error) = warm.error {
        anyhow::bail!("{name}: {error}");
    }
    let mut rows = Vec::new();
    let mut first_idx = 0;
    let clients: &[usize] = if args.rate.is_empty() { &args.clients } else { &[] };
    for &n_client in clients {
        let n_each = args.requests.max(8usize.div_ceil(n_client.max(1)));
        let outcome = load.closed(&host, n_client, n_each, first_idx).await;
        first_idx += 1 << 20;
        rows.push(Row::of(name, format!("{n_client} clients"), &outcome));
    }
    for &rate in &args.rate {
        let outcome = load.open(&host, rate, args.seconds, first_idx).await;
        first_idx += 1 << 20;
        rows.push(Row::of(name, format!("{rate} a second"), &outcome));
    }
    eprint!("{}", report::table(&rows));
    if let Ok(host) = Arc::try_unwrap(host) {
        host.stop().await?;
    }
    Ok(rows)
}
