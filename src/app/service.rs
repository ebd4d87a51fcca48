//! The service, wired: models by name, what stands before them, and the order of its stop.
//!
//! ```text
//! model.name            the first model: loaded at start, kept for good
//! names of the store    loaded when a request asks for them, unloaded when idle
//! stop                  no new connections; engines finish within the grace; the rest is cut
//! ```

use std::io::Read;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::board::BoardPace;
use super::shelf::StoreShelf;
use super::{App, AppError, Board, EMBEDDED_NAME, Reloader, preset_of};
use crate::base::limits::{CHAT_TEMPLATE_BYTES_MAX, KEYS_FILE_BYTES_MAX, PARALLEL_MAX};
use crate::hosting::{Finder, Host, ModelEntry};
use crate::inference::{
    EMBEDDED_MODEL, EngineOptions, Gguf, InferenceError, LoadOptions, ModelSource, plan_memory,
};
use crate::jobs::Jobs;
use crate::library::Catalog;
use crate::server::{Card, Gate, Server, ServerError};
use crate::store::{Opened, SharedOptions, Store, StoreError};
use crate::sync::Node;
use crate::tls::{Fingerprint, Identity, fingerprint_in};

/// The service before it listens.
pub struct Service {
    /// The models.
    pub host: Host,
    /// What stands before them.
    pub gate: Gate,
    /// What the owner should know, such as a context that was reduced.
    pub notes: Vec<String>,
    /// What survives, if it could be opened.
    pub store: Option<Store>,
    /// Who reads the configuration anew.
    pub reloader: Arc<Reloader>,
    /// Heat and power, which nobody watches yet.
    pub board: Option<Board>,
    /// Who it shows itself as, where it speaks TLS.
    pub identity: Option<Identity>,
}

impl App {
    /// The configured service. `api_keys` are in the clear and count beside those that are kept;
    /// `on_panic` is told when an engine breaks.
    ///
    /// # Errors
    /// When the model is not there, or a file of keys or of a template cannot be read.
    pub fn service(
        mut self,
        mut api_keys: Vec<String>,
        on_panic: Arc<dyn Fn(String) + Send + Sync>,
    ) -> Result<Service, AppError> {
        let server = self.config().server.clone();
        if let Some(path) = &server.api_key_file {
            let text = read(path, KEYS_FILE_BYTES_MAX)?;
            let lines = text.lines().map(str::trim);
            let keys = lines.filter(|line| !line.is_empty() && !line.starts_with('#'));
            api_keys.extend(keys.map(str::to_owned));
        }
        let template = server.chat_template_file.as_deref();
        let template = template.map(|path| read(path, CHAT_TEMPLATE_BYTES_MAX)).transpose()?;
        let template = template.or_else(|| server.chat_template.clone());
        let source = self.model_source()?;
        let identity = self.identity()?;
        let certificate = identity.as_ref().map(Identity::fingerprint);
        let mut notes = Vec::new();
        notes.extend(certificate.map(|own| format!("certificate {own}, its SHA-256")));
        match self.open_disk_cache() {
            Ok(disk_cache) => self.disk_cache = disk_cache,
            Err(error) => notes.push(format!("{error}; prompts do not outlive the service")),
        }
        let first = self.entry(&source, &mut notes)?;
        let memory_max_bytes = self.memory_for_models();
        let mut kept = None;
        let board = self.board(&mut notes);
        let watch = board.as_ref().map(|board| Arc::clone(&board.watch));
        let reloader = self.reloader(watch.clone());
        let card = self.card(None);
        let jobs = self.open_jobs(&mut kept, &mut notes, BoardPace::new(board.as_ref()));
        let (state_dir, called) = (self.dirs.state.clone(), self.config().hub.called());
        let mut gate_options = server.gate_options(api_keys, self.dirs.state.clone());
        gate_options.allowed_hosts.extend(machine_names().into_iter().chain(called));
        let catalog = self.catalog().unwrap_or_else(|error| {
            notes.push(format!("{error}; no model can be got over the network"));
            Catalog::default()
        });
        let (store, pull) = (self.store.clone(), self.pull_options());
        let served = match &source {
            ModelSource::File(path) => Some(path.clone()),
            ModelSource::Embedded => None,
        };
        let shelf = StoreShelf { store, catalog, pull, served };
        let find: Finder = Box::new(move |name| self.found(name));
        let host = Host::new(vec![first], memory_max_bytes, find, on_panic);
        let options = server.serve_options(template);
        let server = Server::with_shelf(host.clone(), options, Some(Arc::new(shelf)));
        let gate = Gate::new(server, gate_options)?;
        if let Some(jobs) = jobs {
            gate.keep_jobs(jobs);
        }
        watch.into_iter().for_each(|watch| gate.keep_power(watch));
        gate.keep_settings(Arc::clone(&reloader) as _);
        let store = kept.map(|(store, sync)| {
            gate.pair_with(&state_dir, store.clone(), card);
            gate.keep_sync(sync);
            store
        });
        Ok(Service { host, gate, notes, store, reloader, board, identity })
    }

    /// Who the service shows itself as, if it speaks TLS: by the owner's certificate, or by one of
    /// the state directory, which is made once.
    ///
    /// # Errors
    /// If a certificate or its key cannot be read, made or used.
    pub fn identity(&self) -> Result<Option<Identity>, ServerError> {
        let server = &self.config().server;
        if !server.speaks_tls() {
            return Ok(None);
        }
        if let (Some(certificate), Some(key)) = (&server.tls_cert, &server.tls_key) {
            return Ok(Some(Identity::from_files(certificate, key)?));
        }
        let addresses = ["127.0.0.1", "::1", "localhost"].map(str::to_owned);
        let named = machine_names().into_iter().filter(|name| name.is_ascii());
        let names: Vec<String> = named.chain(addresses).collect();
        Ok(Some(Identity::kept(&self.own_certificate(), &names)?))
    }

    fn own_certificate(&self) -> PathBuf {
        self.dirs.state.join("tls.pem")
    }

    /// The certificate that a service of this machine shows, if there is one.
    pub fn own_fingerprint(&self) -> Option<Fingerprint> {
        let path = self.config().server.tls_cert.clone().unwrap_or_else(|| self.own_certificate());
        fingerprint_in(&path).ok()
    }

    /// What this machine tells of itself as it pairs; it listens there.
    pub fn card(&self, listens: Option<SocketAddr>) -> Card {
        let speaks_tls = self.config().server.speaks_tls();
        let certificate = self.own_fingerprint().filter(|_| speaks_tls);
        // Nobody could know it without the certificate, which is made at the first start.
        let listens = listens.filter(|_| certificate.is_some() == speaks_tls);
        let address = self.config().hub.address.clone();
        Card { name: machine_name(), certificate, address, listens }
    }

    /// The store of the state directory, with the tables that it shares with other processes.
    ///
    /// # Errors
    /// As [`Store::open`] and [`Store::open_shared`].
    pub fn open_state(&self) -> Result<Opened, StoreError> {
        match self.shared_store() {
            Some(options) => Store::open_shared(&self.dirs.state, &options),
            None => Store::open(&self.dirs.state),
        }
    }

    /// The tables that this machine's state directory shares with other processes, if it does.
    pub fn shared_store(&self) -> Option<SharedOptions> {
        // What is wrong with it was said when the configuration was checked.
        self.config().hub.shared().ok().flatten()
    }

    /// The jobs of the state directory; its store, and who tells peers of them, are `kept`. A
    /// service whose jobs cannot be had answers requests, and says why it keeps none.
    fn open_jobs(
        &self,
        kept: &mut Option<(Store, Node)>,
        notes: &mut Vec<String>,
        pace: BoardPace,
    ) -> Option<Jobs> {
        let config = self.config().jobs.clone();
        if !config.enabled {
            return None;
        }
        let open = || -> Result<Jobs, Box<dyn std::error::Error>> {
            let opened = self.open_state()?;
            notes.extend(opened.notes);
            // Peers are told of what ran when the program went, so this comes before the jobs.
            let sync = Node::open(opened.store.clone())?;
            *kept = Some((opened.store.clone(), sync));
            let (jobs, n_interrupted) = Jobs::open(opened.store, config, Box::new(pace))?;
            if n_interrupted > 0 {
                notes.push(format!("{n_interrupted} jobs ran when the program last went"));
            }
            Ok(jobs)
        };
        match open() {
            Ok(jobs) => Some(jobs),
            Err(error) => {
                notes.push(format!("{error}; this service keeps no jobs"));
                None
            }
        }
    }

    /// The first model.
    fn entry(&self, source: &ModelSource, notes: &mut Vec<String>) -> Result<ModelEntry, AppError> {
        let server = &self.config().server;
        let (adapters, draft) = (server.lora.clone(), self.draft_source()?);
        let load = LoadOptions { adapters, draft, ..self.shared_load_options(source) };
        let load = fitting(source, load, notes).map_err(|error| App::inference(source, error))?;
        let (stem, file) = match source {
            ModelSource::Embedded => (EMBEDDED_NAME.to_owned(), None),
            ModelSource::File(path) => {
                let part = |part: Option<&std::ffi::OsStr>| {
                    part.unwrap_or_default().to_string_lossy().into_owned()
                };
                (part(path.file_stem()), Some(part(path.file_name())))
            }
        };
        // The name that is shown first, and every other that a client may know it by.
        let configured = self.config().model.name.clone();
        let names = server.alias.iter().cloned().chain([stem]).chain(file).chain(configured);
        let mut names: Vec<String> = names.collect();
        let mut seen = std::collections::BTreeSet::new();
        names.retain(|name| seen.insert(name.clone()));
        let name = names.remove(0);
        Ok(ModelEntry { name, aliases: names, keep_alive: None, ..self.base_entry(source, load) })
    }

    /// A model of the store that a request names. Paths are not looked at: a caller is not the
    /// owner.
    fn found(&self, name: &str) -> Option<ModelEntry> {
        let (name, source) = match name {
            EMBEDDED_NAME => (name.to_owned(), ModelSource::Embedded),
            _ => {
                let in_store = |name: &str| self.store.find(name).ok();
                let of_catalog = || {
                    let file = self.catalog().ok()?.find(name)?.file_name()?;
                    in_store(&file)
                };
                let model = in_store(name).or_else(of_catalog)?;
                (model.name.clone(), ModelSource::File(model.files.first()?.clone()))
            }
        };
        let load = self.shared_load_options(&source);
        // What does not fit is told when it is loaded.
        let load = fitting(&source, load.clone(), &mut Vec::new()).unwrap_or(load);
        let keep_alive = Some(self.config().server.keep_alive());
        Some(ModelEntry { name, keep_alive, ..self.base_entry(&source, load) })
    }

    fn base_entry(&self, source: &ModelSource, load: LoadOptions) -> ModelEntry {
        let n_parallel = load.n_parallel.unwrap_or(self.config().server.n_parallel);
        ModelEntry {
            name: String::new(),
            aliases: Vec::new(),
            source: source.clone(),
            load,
            // While others wait, one key has half of the places at most.
            engine: EngineOptions {
                n_parallel,
                n_tenant_max: n_parallel.div_ceil(2),
                disk_cache: self.disk_cache.clone(),
                n_disk_min: self.config().prefix_cache.n_tokens_min,
                ..EngineOptions::default()
            },
            sampler: self.sampling(source),
            keep_alive: None,
        }
    }

    /// What the configuration says about loading, the context shared among the sequences; what it
    /// does not say comes from the model's preset, whose context is a sequence's own.
    fn shared_load_options(&self, source: &ModelSource) -> LoadOptions {
        let is_unset = self.settings.is_default("server.n_parallel");
        let preset = preset_of(source).filter(|_| is_unset).map(|preset| preset.n_parallel);
        let n_parallel = preset.unwrap_or(self.config().server.n_parallel).clamp(1, PARALLEL_MAX);
        let options = self.load_options_of(source);
        let n_ctx = match self.config().model.n_ctx {
            Some(n) => Some((n / n_parallel as u32).max(1)),
            None => options.n_ctx,
        };
        LoadOptions { n_ctx, n_parallel: Some(n_parallel), ..options }
    }
}

/// What this machine is called.
pub fn machine_name() -> String {
    let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    if name.is_empty() { "jetforge".to_owned() } else { name }
}

/// What the LAN calls this machine: its name, and that name in multicast DNS.
fn machine_names() -> [String; 2] {
    let machine = machine_name();
    let host = machine.split('.').next().unwrap_or_default();
    let local = format!("{host}.local");
    [machine, local]
}

/// Options that fit the memory: a context that nobody asked for is reduced, with a note.
fn fitting(
    source: &ModelSource,
    load: LoadOptions,
    notes: &mut Vec<String>,
) -> Result<LoadOptions, InferenceError> {
    let gguf = match source {
        ModelSource::File(path) => Gguf::open(path)?,
        ModelSource::Embedded => Gguf::from_static(EMBEDDED_MODEL)?,
    };
    let available = load.memory_max_bytes.unwrap_or(u64::MAX);
    match plan_memory(&gguf, &load, available) {
        Ok(_) => Ok(load),
        Err(InferenceError::Memory { n_ctx_fits: Some(n), plan, .. }) if load.n_ctx.is_none() => {
            notes.push(format!(
                "each sequence gets a context of {n} instead of {} positions: no more fits; \
                 --parallel with fewer sequences leaves more for each",
                plan.n_ctx
            ));
            Ok(LoadOptions { n_ctx: Some(n), ..load })
        }
        Err(error) => Err(error),
    }
}

fn read(path: &Path, n_bytes_max: u64) -> Result<String, ServerError> {
    read_file(path, n_bytes_max)
        .map_err(|source| ServerError::File { path: path.to_owned(), source })
}

/// The start of a small file.
pub(super) fn read_file(path: &Path, n_bytes_max: u64) -> std::io::Result<String> {
    let mut text = String::new();
    std::fs::File::open(path)?.take(n_bytes_max).read_to_string(&mut text)?;
    Ok(text)
}
