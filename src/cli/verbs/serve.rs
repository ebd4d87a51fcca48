//! `jetforge serve`: the service, until it is told to stop.
//!
//! ```text
//! listen -> say where -> load the first model (503 until it is there) -> serve
//! SIGINT, SIGTERM     nothing new; what is in flight gets its grace; a second one ends at once
//! a broken engine     exit code 70, with where it broke and nothing of what it worked on
//! ```

use std::net::{SocketAddr, SocketAddrV4, ToSocketAddrs};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use tokio::signal::unix::{Signal, SignalKind, signal};
use toml::Value;

use crate::app::{App, AppError, Service, Supervisor, machine_name};
use crate::base::config::Setting;
use crate::base::limits::PAIR_S;
use crate::base::notify::Notifier;
use crate::cli::args::{ModelArgs, parse_size};
use crate::cli::crash;
use crate::cli::exit::CliError;
use crate::cli::sampling_args::{SamplingArgs, float};
use crate::cli::terminal;
use crate::cli::verbs::backup;
use crate::cli::verbs::reload::reload;
use crate::cli::{Context, exit};
use crate::discovery::{Announcement, Responder};
use crate::hosting::{FOREVER, Host, HostError, KeepAliveError, OnPanic, parse_keep_alive};
use crate::hub::{Hub, Probes};
use crate::server::{
    JobRunner, Listener, PairOffer, ServerError, SyncRunner, flush_logs, router, subscriber,
};

/// How often idle models are looked for.
const SWEEP_EVERY: Duration = Duration::from_secs(10);
/// Threads that speak HTTP; the engines have their own.
const N_HTTP_THREAD: usize = 2;

/// Options of `serve`, under llama-server's names.
#[derive(Debug, Args)]
pub struct ServeArgs {
    /// Address to listen on; beyond this machine it needs an API key
    #[arg(long, value_name = "ADDRESS")]
    host: Option<String>,
    /// Port; 0 takes a free one
    #[arg(long, value_name = "PORT")]
    port: Option<u16>,
    /// Sequences that run at once; they share --ctx-size; -1 for the usual number
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    parallel: Option<i64>,
    /// Name of the model for clients; several with commas
    #[arg(short, long, value_name = "NAME", value_delimiter = ',')]
    alias: Vec<String>,
    /// Most tokens of an answer where a request names no number; -1 for as many as fit
    #[arg(short, long, value_name = "N", allow_negative_numbers = true)]
    n_predict: Option<i64>,
    /// Most tokens of one step (the smaller of this and --batch-size counts)
    #[arg(long, value_name = "N")]
    ubatch_size: Option<u32>,
    /// Answer embeddings
    #[arg(long)]
    embedding: bool,
    /// How an encoder's rows become one vector
    #[arg(long, value_name = "HOW")]
    pooling: Option<String>,
    /// Answer /metrics
    #[arg(long)]
    metrics: bool,
    /// Let POST /props change defaults
    #[arg(long)]
    props: bool,
    /// Answer /slots (the default)
    #[arg(long, overrides_with = "no_slots")]
    slots: bool,
    /// Do not answer /slots
    #[arg(long)]
    no_slots: bool,
    /// Where slots are saved
    #[arg(long, value_name = "DIR")]
    slot_save_path: Option<PathBuf>,
    /// Shift a full context where a request says nothing
    #[arg(long, overrides_with = "no_context_shift")]
    context_shift: bool,
    /// End the answer at a full context (the default)
    #[arg(long)]
    no_context_shift: bool,
    /// Chat template in place of the model's
    #[arg(long, value_name = "JINJA", conflicts_with = "chat_template_file")]
    chat_template: Option<String>,
    /// File with a chat template in place of the model's
    #[arg(long, value_name = "FILE")]
    chat_template_file: Option<PathBuf>,
    /// How reasoning is told apart from the answer: none, auto or deepseek
    #[arg(long, value_name = "FORMAT")]
    reasoning_format: Option<String>,
    /// Small model of the same vocabulary that guesses for the model
    #[arg(long, value_name = "FILE|NAME")]
    model_draft: Option<String>,
    /// Most tokens guessed at once; 0 guesses none
    #[arg(long, value_name = "N")]
    draft_max: Option<usize>,
    /// Fewer guesses of the draft model than this are none
    #[arg(long, value_name = "N")]
    draft_min: Option<usize>,
    /// The draft model stops at a guess that is less likely than this
    #[arg(long, value_name = "P")]
    draft_p_min: Option<f32>,
    /// LoRA adapter; several with commas
    #[arg(long, value_name = "FILE", value_delimiter = ',')]
    lora: Vec<PathBuf>,
    /// API key in the clear; several with commas (`jetforge key create` keeps a hash instead)
    #[arg(long, value_name = "KEY", value_delimiter = ',')]
    api_key: Vec<String>,
    /// Speak TLS, with a certificate that is made once
    #[arg(long)]
    tls: bool,
    /// Speak TLS with this certificate (PEM, those that lead to its authority behind it)
    #[arg(long, value_name = "FILE", requires = "ssl_key_file")]
    ssl_cert_file: Option<PathBuf>,
    /// Its private key (PEM)
    #[arg(long, value_name = "FILE", requires = "ssl_cert_file")]
    ssl_key_file: Option<PathBuf>,
    /// File of API keys in the clear, one on a line
    #[arg(long, value_name = "FILE")]
    api_key_file: Option<PathBuf>,
    /// Another name under which the service may be called; several with commas
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    allowed_host: Vec<String>,
    /// Page that may call the service, as scheme://host:port; several with commas, * for all
    #[arg(long, value_name = "ORIGIN", value_delimiter = ',')]
    cors_origin: Vec<String>,
    /// Seconds that a body may take, and that a reader may take nothing
    #[arg(long, value_name = "S")]
    timeout: Option<u64>,
    /// How long a model beside the first stays when nobody uses it: seconds, 5m, 1h30m; -1 for ever
    #[arg(long, value_name = "TIME", allow_negative_numbers = true, value_parser = keep_alive_s)]
    keep_alive: Option<i64>,
    /// Seconds that requests in flight get when the service stops
    #[arg(long, value_name = "S")]
    stop_grace: Option<u64>,
    /// Events as text or json on stderr, or to the journal; auto takes it where stderr goes there
    #[arg(long, value_name = "FORMAT", value_parser = ["auto", "text", "json", "journal"])]
    log_format: Option<String>,
    /// Events on stderr as JSON
    #[arg(long, hide = true)]
    log_json: bool,
    /// Which events: error, warn, info, debug or trace
    #[arg(long, value_name = "LEVEL")]
    log_level: Option<String>,
    /// More events; the same as --log-level debug
    #[arg(short, long)]
    verbose: bool,
    /// Show a code by which another machine can be paired; until then nobody has a key
    #[arg(long)]
    pair: bool,
    /// Tell hubs on the LAN where this service is
    #[arg(long)]
    announce: bool,
    /// Keep no prompts on the disk
    #[arg(long)]
    no_disk_cache: bool,
    /// Where prompts are kept
    #[arg(long, value_name = "DIR")]
    disk_cache_dir: Option<PathBuf>,
    /// What they may take, as in 900M or 4G
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    disk_cache_size: Option<u64>,
    /// Where the kernel's files are looked for
    #[arg(long, hide = true, value_name = "DIR", default_value = "/")]
    board_root: PathBuf,
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    sampling: SamplingArgs,
}

impl ServeArgs {
    fn settings(&self) -> anyhow::Result<Vec<Setting>> {
        let mut settings = self.model.settings()?;
        settings.extend(self.sampling.settings()?);
        settings.extend(self.disk_cache_settings());
        // As in llama.cpp, a step holds what both allow.
        let n_batch = self.ubatch_size.map(|n| n.min(self.model.batch_size.unwrap_or(n)));
        settings.extend(n_batch.map(|n| Setting {
            key: "model.n_batch".to_owned(),
            value: i64::from(n).into(),
            option: "--ubatch-size".to_owned(),
        }));
        settings.extend(self.announce.then(|| Setting {
            key: "hub.announce".to_owned(),
            value: true.into(),
            option: "--announce".to_owned(),
        }));
        let mut add = |key: &str, option: &str, value: Option<Value>| {
            settings.extend(value.map(|value| Setting {
                key: format!("server.{key}"),
                value,
                option: option.to_owned(),
            }));
        };
        for (key, option, value) in self.numbers() {
            add(key, option, value.map(|n| i64::try_from(n).unwrap_or(i64::MAX).into()));
        }
        for (key, option, value) in self.texts() {
            add(key, option, value.map(Value::from));
        }
        add("keep_alive_s", "--keep-alive", self.keep_alive.map(Value::from));
        add("draft_p_min", "--draft-p-min", self.draft_p_min.map(float));
        for (key, option, is_given, value) in self.switches() {
            add(key, option, is_given.then_some(value.into()));
        }
        for (key, option, values) in self.lists() {
            add(key, option, (!values.is_empty()).then(|| values.into()));
        }
        Ok(settings)
    }

    fn disk_cache_settings(&self) -> impl Iterator<Item = Setting> {
        let dir = self.disk_cache_dir.as_ref().map(|dir| dir.display().to_string());
        let size = self.disk_cache_size.map(|n| i64::try_from(n).unwrap_or(i64::MAX));
        let set = |key: &str, option: &str, value: Option<Value>| {
            let (key, option) = (format!("prefix_cache.{key}"), option.to_owned());
            value.map(|value| Setting { key, value, option })
        };
        let settings = [
            set("enabled", "--no-disk-cache", self.no_disk_cache.then_some(false.into())),
            set("dir", "--disk-cache-dir", dir.map(Value::from)),
            set("bytes_max", "--disk-cache-size", size.map(Value::from)),
        ];
        settings.into_iter().flatten()
    }

    fn numbers(&self) -> [(&'static str, &'static str, Option<u64>); 8] {
        let of = |n: Option<usize>| n.map(|n| n as u64);
        [
            ("port", "--port", self.port.map(u64::from)),
            ("n_parallel", "--parallel", self.parallel.and_then(|n| u64::try_from(n).ok())),
            ("n_predict", "--n-predict", self.n_predict.and_then(|n| u64::try_from(n).ok())),
            ("n_draft_max", "--draft-max", of(self.draft_max)),
            ("n_draft_min", "--draft-min", of(self.draft_min)),
            ("body_read_ms", "--timeout", self.timeout.map(|s| s.saturating_mul(1000))),
            ("write_stall_ms", "--timeout", self.timeout.map(|s| s.saturating_mul(1000))),
            ("stop_grace_s", "--stop-grace", self.stop_grace),
        ]
    }

    fn texts(&self) -> [(&'static str, &'static str, Option<String>); 12] {
        let of = |path: &Option<PathBuf>| path.as_ref().map(|path| path.display().to_string());
        let json = self.log_json.then(|| "json".to_owned());
        let debug = self.verbose.then(|| "debug".to_owned());
        [
            ("host", "--host", self.host.clone()),
            ("pooling", "--pooling", self.pooling.clone()),
            ("model_draft", "--model-draft", self.model_draft.clone()),
            ("slot_save_dir", "--slot-save-path", of(&self.slot_save_path)),
            ("chat_template_file", "--chat-template-file", of(&self.chat_template_file)),
            ("chat_template", "--chat-template", self.chat_template.clone()),
            ("reasoning_format", "--reasoning-format", self.reasoning_format.clone()),
            ("api_key_file", "--api-key-file", of(&self.api_key_file)),
            ("tls_cert", "--ssl-cert-file", of(&self.ssl_cert_file)),
            ("tls_key", "--ssl-key-file", of(&self.ssl_key_file)),
            ("log_format", "--log-format", self.log_format.clone().or(json)),
            ("log_level", "--log-level", self.log_level.clone().or(debug)),
        ]
    }

    fn switches(&self) -> [(&'static str, &'static str, bool, bool); 8] {
        [
            ("tls", "--tls", self.tls, true),
            ("embeddings", "--embedding", self.embedding, true),
            ("metrics", "--metrics", self.metrics, true),
            ("props", "--props", self.props, true),
            ("slots", "--slots", self.slots, true),
            ("slots", "--no-slots", self.no_slots, false),
            ("context_shift", "--context-shift", self.context_shift, true),
            ("context_shift", "--no-context-shift", self.no_context_shift, false),
        ]
    }

    fn lists(&self) -> [(&'static str, &'static str, Vec<String>); 4] {
        [
            ("alias", "--alias", self.alias.clone()),
            ("lora", "--lora", self.lora.iter().map(|path| path.display().to_string()).collect()),
            ("allowed_hosts", "--allowed-host", self.allowed_host.clone()),
            ("cors_origins", "--cors-origin", self.cors_origin.clone()),
        ]
    }
}

/// Serves until it is told to stop.
pub fn run(context: &Context, args: &ServeArgs) -> anyhow::Result<u8> {
    let mut app = context.app(args.settings()?)?;
    // What a cut of the power left of a restore is done before anything is opened.
    if backup::go_on(&app)? {
        app = context.app(args.settings()?)?;
    }
    context.own(&app)?;
    app.look_under(&args.board_root);
    let port = app.config().server.port;
    let keys = args.api_key.clone();
    let offer = args.pair.then(|| PairOffer::new(&app.dirs.state));
    launch(app, port, supervisor(context)?, move |app, on_panic| {
        let mut service = app.service(keys, on_panic)?;
        if let Some(offer) = offer {
            let code = offer.make()?;
            service.gate.require_keys();
            service.notes.push(format!("pairing code {}, good for {PAIR_S} s", code.show()));
        }
        Ok((service, None))
    })
}

/// The service manager that started this program, if one did.
pub(super) fn supervisor(context: &Context) -> anyhow::Result<Supervisor> {
    let notifier = Notifier::from_env(&context.env, std::process::id());
    Ok(Supervisor::new(notifier.context("NOTIFY_SOCKET")?))
}

/// Serves what `wire` makes of the program, until it is told to stop.
pub(super) fn launch(
    app: App,
    port: u16,
    supervisor: Supervisor,
    wire: impl FnOnce(App, OnPanic) -> Result<(Service, Option<Arc<Hub>>), AppError>,
) -> anyhow::Result<u8> {
    let config = app.config().server.clone();
    let hub_config = app.config().hub.clone();
    let level = config.log_level().unwrap_or(tracing::Level::INFO);
    let events = subscriber(config.log_format, level, std::io::stderr);
    // Only a second service in one process could find another here.
    let _ = tracing::subscriber::set_global_default(events);
    crash::install();
    let address = address_of(&config.host, port)?;
    let listen = config.listen_options();
    let grace = Duration::from_secs(config.stop_grace_s);
    let (mut service, hub) = wire(app, Arc::new(crash::end))?;
    service.notes.iter().for_each(|note| terminal::note(format!("note: {note}")));
    service.gate.check_exposure(address)?;
    if service.identity.is_none() && !address.ip().is_loopback() {
        terminal::note("note: prompts and keys cross the network as they are; --tls encrypts them");
    }
    let store = service.store.clone();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(N_HTTP_THREAD)
        .enable_all()
        .build()
        .context("cannot start the service's threads")?;
    let result = runtime.block_on(async {
        let bound = Listener::bind(address, listen);
        let mut listener = bound.map_err(|source| ServerError::Bind { address, source })?;
        for port in &config.also_ports {
            let address = SocketAddr::new(address.ip(), *port);
            listener.also(*port).map_err(|source| ServerError::Bind { address, source })?;
        }
        let listener = listener.secured(service.identity.clone());
        service.gate.listens_at(listener.address());
        let signals = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()];
        let [interrupt, terminate, hangup] = signals.map(signal);
        announce(&listener.url())?;
        // Until the last request is answered or cut.
        let _watching = service.watch_board();
        let status = status_line(&service);
        let _supervised = supervisor.start(service.host.clone(), status)?;
        let _responder = hub_config
            .announce
            .then(|| announced(&service, hub_config.discovery, listener.address().port()));
        let _probes = hub.as_ref().map(Probes::start);
        let reloading = reload(Arc::clone(&service.reloader), supervisor.clone(), hangup?);
        let reloading = tokio::spawn(reloading);
        let result = serve(service, listener, [interrupt?, terminate?], grace, supervisor).await;
        reloading.abort();
        result
    });
    // What still runs, such as a model that loads, is not waited for.
    runtime.shutdown_background();
    if let Some(store) = store {
        store.close();
    }
    flush_logs();
    result
}

async fn serve(
    service: Service,
    listener: Listener,
    [mut interrupt, mut terminate]: [Signal; 2],
    grace: Duration,
    supervisor: Supervisor,
) -> anyhow::Result<u8> {
    let Service { host, gate, .. } = service;
    let loading = tokio::spawn(load(host.clone(), supervisor.clone()));
    let sweeping = tokio::spawn(sweep(host.clone()));
    let (failed_sender, failed) = tokio::sync::oneshot::channel();
    let watching = tokio::spawn(async move {
        match loading.await {
            Ok(Err(error)) => drop(failed_sender.send(error)),
            // The model is there; the sender stays, so that nothing seems to have failed.
            _ => std::future::pending().await,
        }
    });
    let app = router(gate.clone());
    let runner = JobRunner::start(&gate);
    let syncing = SyncRunner::start(&gate);
    let mut failure = None;
    let mut stopping = None;
    let stop = async {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            error = failed => failure = error.ok(),
        }
        supervisor.stopping();
        // Jobs make room for requests in flight; they go on when the service is back.
        runner.stop().await;
        syncing.stop();
        let host = host.clone();
        stopping = Some(tokio::task::spawn_blocking(move || host.stop(grace)));
        tracing::info!(grace_s = grace.as_secs(), "stopping");
        tokio::spawn(async move {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            std::process::exit(i32::from(exit::INTERRUPTED));
        });
    };
    listener.serve(app, stop, grace).await;
    watching.abort();
    sweeping.abort();
    if let Some(stopping) = stopping {
        let _ = stopping.await;
    }
    match failure {
        None => Ok(exit::OK),
        Some(AppError::Host(HostError::Load { name, source })) => {
            Err(match Arc::try_unwrap(source) {
                Ok(source) => anyhow::Error::new(source).context(name),
                Err(source) => anyhow::anyhow!("{name}: {source}"),
            })
        }
        Some(error) => Err(error.into()),
    }
}

/// Loads the first model, and tells the service manager when it answers.
async fn load(host: Host, supervisor: Supervisor) -> Result<(), AppError> {
    let started = std::time::Instant::now();
    let lease = host.lease(None).await?;
    let info = lease.info();
    tracing::info!(
        model = lease.name(),
        n_ctx = info.n_ctx(),
        n_parallel = lease.options().n_parallel,
        memory_mib = info.memory_plan().needed_bytes() >> 20,
        backend = info.backend_name(),
        why = info.device().why,
        draft = info.draft().map(tracing::field::display),
        ms = started.elapsed().as_millis() as u64,
        "model loaded"
    );
    if info.device().is_fallback {
        tracing::warn!(why = info.device().why, "the CPU computes in place of the GPU");
    }
    drop(lease);
    supervisor.ready(&host).await
}

/// Whole seconds of a time, -1 for ever. What is less than a second is one: 0 has a meaning.
fn keep_alive_s(text: &str) -> Result<i64, KeepAliveError> {
    let keep = parse_keep_alive(text)?;
    let s = keep.as_secs().saturating_add(u64::from(keep.subsec_nanos() > 0));
    Ok(if keep == FOREVER { -1 } else { i64::try_from(s).unwrap_or(-1) })
}

/// Unloads idle models, again and again: at once those that are not to stay at all.
async fn sweep(host: Host) {
    let mut every = tokio::time::interval(SWEEP_EVERY);
    loop {
        tokio::select! {
            _ = every.tick() => {}
            () = host.due() => {}
        }
        let host = host.clone();
        // An engine's thread is waited for, which is no work for a thread that speaks HTTP.
        let _ = tokio::task::spawn_blocking(move || host.sweep()).await;
    }
}

/// What the service manager shows of the service.
fn status_line(service: &Service) -> impl Fn() -> String + Send + use<> {
    let (host, gate) = (service.host.clone(), service.gate.clone());
    move || {
        let stats: Vec<_> = host.engines().into_iter().map(|(_, e)| e.stats()).collect();
        let n_running: usize = stats.iter().map(|stats| stats.n_running).sum();
        let n_waiting: usize = stats.iter().map(|stats| stats.n_waiting).sum();
        let name = host.default_name();
        let power = gate.power_line().map(|line| format!("; {line}")).unwrap_or_default();
        format!("serving {name}: {n_running} running, {n_waiting} waiting{power}")
    }
}

/// Tells hubs that ask where the service is. Without that it serves all the same.
fn announced(service: &Service, group: SocketAddrV4, port: u16) -> Option<Responder> {
    let node = service.store.as_ref().and_then(|store| store.node().ok()).unwrap_or_default();
    let announcement = Announcement { name: machine_name(), node, port };
    match Responder::start(group, announcement) {
        Ok(responder) => Some(responder),
        Err(error) => {
            terminal::note(format!("note: {error}; hubs do not find this service by themselves"));
            None
        }
    }
}

/// Says where the service is, for people and for scripts that asked for a free port.
fn announce(url: &str) -> std::io::Result<()> {
    use std::io::Write;
    let mut out = std::io::stdout().lock();
    writeln!(out, "listening on {url}")?;
    out.flush()
}

pub(super) fn address_of(host: &str, port: u16) -> anyhow::Result<SocketAddr> {
    if host.ends_with(".sock") {
        return Err(
            CliError::usage("--host: sockets of files are not served; use an address").into()
        );
    }
    let name = host.trim_matches(['[', ']']);
    let mut found = (name, port)
        .to_socket_addrs()
        // Soon after a machine's start, names are not known yet.
        .map_err(|error| CliError::network(format!("--host {host}: {error}")))?;
    let missing = || CliError::network(format!("--host {host}: no address has this name"));
    Ok(found.next().ok_or_else(missing)?)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        serve: ServeArgs,
    }

    #[test]
    fn a_name_that_nobody_knows_yet_is_tried_again() {
        let error = address_of(&"a".repeat(300), 1).unwrap_err();
        assert_eq!(exit::code_of(&error), exit::NETWORK);
        let error = address_of("x.sock", 1).unwrap_err();
        assert_eq!(exit::code_of(&error), exit::USAGE);
    }

    #[test]
    fn a_keep_alive_is_a_time_as_people_write_it() {
        let read = |text: &str| {
            let line = Line::try_parse_from(["serve", "--keep-alive", text]).ok()?;
            let settings = line.serve.settings().unwrap();
            let setting = settings.into_iter().find(|s| s.key == "server.keep_alive_s");
            setting.and_then(|setting| setting.value.as_integer())
        };
        for (text, s) in [("300", 300), ("1h30m", 5400), ("0", 0), ("-1", -1), ("20ms", 1)] {
            assert_eq!(read(text), Some(s), "{text}");
        }
        assert_eq!(read("soon"), None);
    }
}
