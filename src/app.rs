//! Floor 6: the only file that knows every room; it wires them from the configuration.
//!
//! ```text
//! environment, options, files -> Config -> directories -> store of models -> a loaded model
//! ```
//!
//! Each room owns the shape of its options; `Config` only gives them a section. A new room adds a
//! field here and nothing else changes: files, environment and `config show` follow.

mod board;
mod hub;
mod prefixes;
mod reload;
mod service;
mod shelf;
mod supervisor;

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::base::config::{ConfigError, Resolved, Setting, Shape};
use crate::base::dirs::{Dirs, DirsError, Role};
use crate::base::env::Env;
use crate::base::host::Host;
use crate::hosting::HostError;
use crate::hub::{HubConfig, HubError};
use crate::inference::{
    DeviceChoice, DiskCache, InferenceError, LoadOptions, LoadProgress, Model, ModelSource,
    SamplerOptions,
};
use crate::jobs::JobsConfig;
use crate::library::{Catalog, LibraryError, Preset, PullOptions, Store};
use crate::power::PowerConfig;
use crate::server::{PairingError, ServerConfig, ServerError};
pub use board::Board;
pub use hub::BackendKeys;
pub use prefixes::PrefixCacheConfig;
use reload::Origin;
pub use reload::{Reloaded, Reloader};
pub use service::{Service, machine_name};
pub use supervisor::{Supervised, Supervisor};

/// Prefix of the environment variables that set configuration keys.
pub const ENV_PREFIX: &str = "JETFORGE_";

/// The model that is part of the program.
pub const EMBEDDED_NAME: &str = "default";

/// Everything that can be set.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The model and the room that it gets.
    pub model: ModelConfig,
    /// How tokens are chosen, under llama.cpp's names.
    pub sampling: SamplerOptions,
    /// Where models are kept.
    pub library: LibraryConfig,
    /// How models are downloaded.
    pub pull: PullConfig,
    /// The service.
    pub server: ServerConfig,
    /// Prefixes that outlive the service.
    pub prefix_cache: PrefixCacheConfig,
    /// Work that survives.
    pub jobs: JobsConfig,
    /// The hub.
    pub hub: HubConfig,
    /// Heat and power of the board.
    pub power: PowerConfig,
}

/// The section `model`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ModelConfig {
    /// Name in the store, path of a GGUF file, or `default` for the embedded one.
    pub name: Option<String>,
    /// Positions of the context; unset takes those that the model was trained on, up to 4,096. The
    /// service shares them among its sequences, and unset gives each as many.
    pub n_ctx: Option<u32>,
    /// Most tokens of one step.
    pub n_batch: Option<u32>,
    /// Threads; unset takes the machine's cores.
    pub n_threads: Option<usize>,
    /// Whether each thread stays on a core of its own: for a machine that does nothing else.
    pub pin_threads: bool,
    /// Instruction set of the kernels; unset takes the best that the machine has.
    pub isa: Option<String>,
    /// How keys and values are stored, `f16` or `f32`.
    pub kv_type: Option<String>,
    /// Memory that weights, KV cache and scratch may take; unset takes what is free.
    pub memory_max_bytes: Option<u64>,
    /// What computes: `cpu`, `cuda`, `cuda:1`, or `auto` for a GPU that can and else the CPU.
    pub device: Option<String>,
    /// Layers that a GPU has, counted from the end, the output being the last; unset takes all, or
    /// with `auto` as many as fit.
    pub n_gpu_layers: Option<u32>,
}

/// The section `library`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LibraryConfig {
    /// Directory of models; unset takes the one of the table of directories.
    pub dir: Option<PathBuf>,
    /// A catalog file that adds to the built-in one.
    pub catalog: Option<PathBuf>,
}

/// The section `pull`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PullConfig {
    /// Certificate authorities to trust beside the system's, PEM.
    pub ca_file: Option<PathBuf>,
    /// Longest silence of the network before a try counts as failed.
    pub stall_ms: u64,
    /// First pause between two tries; it doubles.
    pub pause_ms: u64,
}

impl Default for PullConfig {
    fn default() -> PullConfig {
        PullConfig { ca_file: None, stall_ms: 30_000, pause_ms: 1000 }
    }
}

impl Shape for Config {
    fn check(&self) -> Result<(), (&'static str, String)> {
        let model = &self.model;
        let at_least = |min: u64| format!("must be at least {min}");
        if model.n_ctx == Some(0) {
            return Err(("model.n_ctx", at_least(1)));
        }
        if model.n_batch == Some(0) {
            return Err(("model.n_batch", at_least(1)));
        }
        if model.n_threads == Some(0) {
            return Err(("model.n_threads", at_least(1)));
        }
        if model.device.as_deref().is_some_and(|name| DeviceChoice::from_name(name).is_none()) {
            return Err(("model.device", "must be auto, cpu, cuda or cuda:N".to_owned()));
        }
        if self.pull.stall_ms == 0 {
            return Err(("pull.stall_ms", at_least(1)));
        }
        self.prefix_cache.check()?;
        self.jobs.check()?;
        self.hub.check()?;
        self.power.check()?;
        self.server.check()
    }
}

/// Why the program cannot do what it is asked for.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    /// The configuration cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The directories are not known.
    #[error(transparent)]
    Dirs(#[from] DirsError),
    /// A model cannot be had.
    #[error(transparent)]
    Library(#[from] LibraryError),
    /// The service cannot start.
    #[error(transparent)]
    Server(#[from] ServerError),
    /// The pairing code cannot be made.
    #[error(transparent)]
    Pairing(#[from] PairingError),
    /// The hub cannot start.
    #[error(transparent)]
    Hub(#[from] HubError),
    /// A model cannot be had.
    #[error(transparent)]
    Host(#[from] HostError),
    /// A model was loaded and says nothing.
    #[error("{model}: it was loaded, and makes no token")]
    Mute {
        /// The model.
        model: String,
    },
    /// A model cannot be loaded or run.
    #[error("{model}: {source}")]
    Inference {
        /// The model.
        model: String,
        /// What happened.
        source: InferenceError,
    },
}

/// What the program starts with.
pub struct Start<'a> {
    /// The environment.
    pub env: &'a Env,
    /// Read this file instead of those of the configuration directory.
    pub config_file: Option<PathBuf>,
    /// What options set.
    pub settings: Vec<Setting>,
}

/// The configured program, before any model is loaded.
#[derive(Debug)]
pub struct App {
    /// The configuration with the source of each value.
    pub settings: Resolved<Config>,
    /// Whose directories are used.
    pub role: Role,
    /// The table of directories.
    pub dirs: Dirs,
    /// The configuration files that were read, weakest first.
    pub config_files: Vec<PathBuf>,
    /// The models of this machine.
    pub store: Store,
    /// What the configuration comes from.
    origin: Origin,
    /// Where the service's engines keep prefixes; set when it is wired.
    disk_cache: Option<DiskCache>,
    /// Where the kernel's files are looked for, `/` outside of tests.
    board_root: PathBuf,
}

impl App {
    /// Reads the configuration and opens the store.
    ///
    /// # Errors
    /// Wrong configuration, or no home directory.
    pub fn start(start: Start<'_>) -> Result<App, AppError> {
        let role = Role::from_env(start.env)?;
        let dirs = Dirs::new(role, start.env)?;
        let Start { env, config_file, settings } = start;
        let origin = Origin { env: env.clone(), config_file, settings };
        let config_files = origin.files(&dirs, None);
        let settings = origin.resolve(config_files.clone())?;
        let models = settings.config.library.dir.clone().unwrap_or_else(|| dirs.models.clone());
        let store = Store::new(models, dirs.models_shared.clone());
        let board_root = PathBuf::from("/");
        Ok(App { settings, role, dirs, config_files, store, origin, disk_cache: None, board_root })
    }

    /// The configuration.
    pub fn config(&self) -> &Config {
        &self.settings.config
    }

    /// The catalog of models to pull.
    ///
    /// # Errors
    /// When the configured catalog file is wrong.
    pub fn catalog(&self) -> Result<Catalog, AppError> {
        Ok(Catalog::load(self.config().library.catalog.as_deref())?)
    }

    /// How models are downloaded.
    pub fn pull_options(&self) -> PullOptions {
        let pull = &self.config().pull;
        PullOptions {
            ca_file: pull.ca_file.clone(),
            stall: Duration::from_millis(pull.stall_ms),
            pause: Duration::from_millis(pull.pause_ms),
        }
    }

    /// The configured model: a path, a name in the store, a name of the catalog whose file is in
    /// the store, or the embedded one.
    ///
    /// # Errors
    /// When there is none of this name; the error says how to get it where that is known.
    pub fn model_source(&self) -> Result<ModelSource, AppError> {
        self.find_model(self.config().model.name.as_deref().unwrap_or(EMBEDDED_NAME))
    }

    /// The model that guesses for the configured one, if there is to be one.
    ///
    /// # Errors
    /// As [`App::model_source`].
    pub fn draft_source(&self) -> Result<Option<ModelSource>, AppError> {
        let name = self.config().server.model_draft.as_deref();
        name.map(|name| self.find_model(name)).transpose()
    }

    fn find_model(&self, name: &str) -> Result<ModelSource, AppError> {
        if name == EMBEDDED_NAME {
            return Ok(ModelSource::Embedded);
        }
        let path = Path::new(name);
        if path.is_file() {
            return Ok(ModelSource::File(path.to_owned()));
        }
        if name.contains('/') {
            let name = name.to_owned();
            let hint = match path.exists() {
                true => ": that is no regular file".to_owned(),
                false => ": there is no such file".to_owned(),
            };
            return Err(LibraryError::UnknownModel { name, hint }.into());
        }
        let error = match self.store.find(name) {
            Ok(model) => return Ok(ModelSource::File(model.files[0].clone())),
            Err(error) => error,
        };
        let catalog = self.catalog()?;
        let Some(entry) = catalog.find(name) else {
            return Err(error.into());
        };
        if let Some(model) = entry.file_name().and_then(|file| self.store.find(&file).ok()) {
            return Ok(ModelSource::File(model.files[0].clone()));
        }
        let hint = format!(" here; `jetforge pull {}` gets it", entry.name);
        Err(LibraryError::UnknownModel { name: name.to_owned(), hint }.into())
    }

    /// What the configuration says about loading.
    pub fn load_options(&self) -> LoadOptions {
        let model = &self.config().model;
        LoadOptions {
            kv_type: model.kv_type.clone(),
            n_ctx: model.n_ctx,
            n_parallel: None,
            adapters: Vec::new(),
            draft: None,
            n_batch: model.n_batch,
            n_threads: model.n_threads,
            pin_threads: model.pin_threads,
            isa: model.isa.clone(),
            memory_max_bytes: Some(self.memory_for_models()),
            device: model.device.as_deref().map_or(DeviceChoice::Auto, device_named),
            n_gpu_layers: model.n_gpu_layers,
            cuda_library: None,
            cuda_images: Some(self.dirs.cache.join("cuda")),
        }
    }

    /// The same for a model of its own: its preset gives what nobody set.
    pub fn load_options_of(&self, source: &ModelSource) -> LoadOptions {
        let options = self.load_options();
        let Some(preset) = preset_of(source).map(|preset| preset.load_options()) else {
            return options;
        };
        // A preset for a board of four cores may be tried on a machine of two.
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        LoadOptions {
            n_ctx: options.n_ctx.or(preset.n_ctx),
            n_batch: options.n_batch.or(preset.n_batch),
            n_threads: options.n_threads.or(preset.n_threads.map(|n| n.min(cores))),
            kv_type: options.kv_type.or(preset.kv_type),
            ..options
        }
    }

    /// Memory that a model may take: as configured, or what this machine has free.
    pub fn memory_for_models(&self) -> u64 {
        let configured = self.config().model.memory_max_bytes;
        configured.unwrap_or_else(|| Host::read().memory_available_bytes)
    }

    /// Loads the configured model, and counts on `progress` how far it is.
    ///
    /// # Errors
    /// When it is not there, cannot be read, or does not fit.
    pub fn load(&self, progress: &LoadProgress) -> Result<Model, AppError> {
        let source = self.model_source()?;
        let options = self.load_options_of(&source);
        let model = Model::load_counted(&source, &options, progress);
        model.map_err(|error| App::inference(&source, error))
    }

    /// An inference error with the model that it is about.
    pub fn inference(source: &ModelSource, error: InferenceError) -> AppError {
        AppError::Inference { model: source.to_string(), source: error }
    }

    /// How tokens are chosen. The embedded model learned programs by heart, so it is asked for the
    /// likeliest token unless somebody sets a temperature.
    pub fn sampling(&self, source: &ModelSource) -> SamplerOptions {
        let mut sampling = self.config().sampling.clone();
        if *source == ModelSource::Embedded && self.settings.is_default("sampling.temp") {
            sampling.temp = 0.0;
        }
        sampling
    }
}

/// The device of this name, which was checked with the configuration.
fn device_named(name: &str) -> DeviceChoice {
    DeviceChoice::from_name(name).unwrap_or(DeviceChoice::Auto)
}

/// How a model's file says that it is run, if `setup-model` made it.
fn preset_of(source: &ModelSource) -> Option<Preset> {
    match source {
        ModelSource::File(path) => Preset::of(path),
        ModelSource::Embedded => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn app(env: &[(&str, &str)]) -> Result<App, AppError> {
        let env = env.iter().copied().collect();
        App::start(Start { env: &env, config_file: None, settings: Vec::new() })
    }

    #[test]
    fn every_key_can_come_from_the_environment() {
        let app = app(&[
            ("HOME", "/nowhere"),
            ("JETFORGE_MODEL_N_CTX", "512"),
            ("JETFORGE_SAMPLING_TEMP", "0.5"),
            ("JETFORGE_LIBRARY_DIR", "/ssd"),
        ])
        .unwrap();
        assert_eq!(app.config().model.n_ctx, Some(512));
        assert_eq!(app.config().sampling.temp, 0.5);
        assert_eq!(app.store.dir(), Path::new("/ssd"));
        assert_eq!(app.sampling(&ModelSource::Embedded).temp, 0.5);
    }

    #[test]
    fn the_embedded_model_is_greedy_by_default() {
        let app = app(&[("HOME", "/nowhere")]).unwrap();
        assert_eq!(app.model_source().unwrap(), ModelSource::Embedded);
        assert_eq!(app.sampling(&ModelSource::Embedded).temp, 0.0);
        assert_eq!(app.sampling(&ModelSource::File("x".into())).temp, 0.8);
    }

    #[test]
    fn a_model_of_the_catalog_says_how_to_get_it() {
        let app = app(&[("HOME", "/nowhere"), ("JETFORGE_MODEL_NAME", "phi-2")]).unwrap();
        let error = app.model_source().unwrap_err().to_string();
        assert!(error.contains("jetforge pull phi-2"), "{error}");
    }

    #[test]
    fn values_out_of_range_name_their_source() {
        let error = app(&[("HOME", "/x"), ("JETFORGE_MODEL_N_CTX", "0")]).unwrap_err();
        assert!(error.to_string().contains("JETFORGE_MODEL_N_CTX"), "{error}");
    }
}
