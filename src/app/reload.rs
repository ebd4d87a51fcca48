//! The configuration of a running service, read anew: what changes at once, what needs a restart.
//!
//! ```text
//! SIGHUP, a file that changed    files, environment, options -> resolve -> apply
//! PUT /v1/config                 keys -> config.put.toml, if all of it can be used -> the same
//! cannot be used                 said with file, line and key; the last good one stays
//! ```
//!
//! What is put stands in the state directory, above the files and below the environment and the
//! options. Keys that name files, addresses or other machines are not put: who may do that has an
//! account on this machine. They count for nothing in that file either, which is the service's:
//! root reads it too.

use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use serde_json::{Map, Value, json};
use toml::Table;

use super::{App, Config, ENV_PREFIX};
use crate::base::config::{self, ConfigError, Layers, Resolved, Setting, Source};
use crate::base::dirs::{Dirs, Role};
use crate::base::env::Env;
use crate::base::file::Draft;
use crate::base::limits::CONFIG_BYTES_MAX;
use crate::power::Watch;
use crate::server::{PutError, Settings, set_log_level};

/// What was put over HTTP, in the state directory.
const PUT_FILE: &str = "config.put.toml";
/// Keys that a running service takes over; the others need a restart.
const LIVE: [&str; 2] = ["power.", "server.log_level"];
/// What may be put, by the beginning of a key, and what of that may not.
const PUT: [&str; 6] = ["model.", "sampling.", "power.", "jobs.", "server.", "prefix_cache."];
const NOT_PUT: [&str; 9] = [
    "jobs.callbacks",
    "server.host",
    "server.port",
    "server.also_ports",
    "server.alias",
    "server.model_draft",
    "server.allowed_hosts",
    "server.cors_origins",
    "server.props",
];

/// All that the configuration comes from, so that it can be read again.
#[derive(Clone, Debug, Default)]
pub(super) struct Origin {
    pub env: Env,
    pub config_file: Option<PathBuf>,
    pub settings: Vec<Setting>,
}

impl Origin {
    /// The files that there are, weakest first; `put` in place of what was put before.
    pub fn files(&self, dirs: &Dirs, put: Option<&Path>) -> Vec<PathBuf> {
        let mut files = match &self.config_file {
            Some(file) => config::with_drop_ins(file),
            None => dirs.config_files(),
        };
        let kept = dirs.state.join(PUT_FILE);
        let is_there = || std::fs::symlink_metadata(&kept).is_ok_and(|about| about.is_file());
        files.extend(put.map(Path::to_owned).or_else(|| is_there().then(|| kept.clone())));
        files
    }

    /// The configuration as these files say.
    pub fn resolve(&self, mut files: Vec<PathBuf>) -> Result<Resolved<Config>, ConfigError> {
        let may_set = |key: &str, value: &toml::Value| check_key(key, value.as_str()).is_ok();
        let put = files.pop_if(|file| is_put(file)).map(|file| (file, may_set as config::MaySet));
        config::resolve(Layers {
            files,
            put,
            env: &self.env,
            prefix: ENV_PREFIX,
            reserved: &[Role::ENV, "JETFORGE_CONFIG", "JETFORGE_TEST"],
            options: self.settings.clone(),
        })
    }
}

/// What a reading came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reloaded {
    /// Keys that are in force with another value than before.
    pub changed: Vec<String>,
    /// Keys whose value takes a restart.
    pub needs_restart: Vec<String>,
}

/// What tells a version of a file from another.
type Stamp = (PathBuf, Option<(SystemTime, u64)>);

struct Now {
    resolved: Resolved<Config>,
    stamps: Vec<Stamp>,
}

/// The configuration of a running service.
pub struct Reloader {
    origin: Origin,
    dirs: Dirs,
    /// What the service was started with.
    started: Resolved<Config>,
    now: Mutex<Now>,
    watch: Option<Arc<Watch>>,
}

impl App {
    /// Who reads the configuration anew for a service whose board is watched by `watch`.
    pub(super) fn reloader(&self, watch: Option<Arc<Watch>>) -> Arc<Reloader> {
        let stamps = stamps(&self.config_files);
        let (origin, dirs) = (self.origin.clone(), self.dirs.clone());
        let started = self.settings.clone();
        let now = Mutex::new(Now { resolved: started.clone(), stamps });
        Arc::new(Reloader { origin, dirs, started, now, watch })
    }
}

impl Reloader {
    /// Reads the configuration and puts into force what can be.
    ///
    /// # Errors
    /// If it cannot be used; the last good one stays.
    pub fn reload(&self) -> Result<Reloaded, ConfigError> {
        let mut now = self.lock();
        self.read(&mut now)
    }

    /// Whether a file changed, came or went since it was read.
    pub fn is_stale(&self) -> bool {
        let files = self.origin.files(&self.dirs, None);
        stamps(&files) != self.lock().stamps
    }

    fn read(&self, now: &mut Now) -> Result<Reloaded, ConfigError> {
        let files = self.origin.files(&self.dirs, None);
        // A file that cannot be used is not tried again before it changes.
        now.stamps = stamps(&files);
        let resolved = self.origin.resolve(files)?;
        let differs = |a: &Resolved<Config>, b: &Resolved<Config>| -> Vec<String> {
            let pairs = a.iter().zip(b.iter());
            let other = pairs.filter(|((_, a, _), (_, b, _))| a != b);
            other.map(|((key, _, _), _)| key.to_owned()).collect()
        };
        let is_live = |key: &String| LIVE.iter().any(|live| key.starts_with(live));
        let mut changed = differs(&now.resolved, &resolved);
        changed.retain(is_live);
        let mut needs_restart = differs(&self.started, &resolved);
        needs_restart.retain(|key| !is_live(key));
        now.resolved = resolved;
        if !changed.is_empty() {
            let config = &now.resolved.config;
            self.watch.iter().for_each(|watch| watch.configure(config.power.clone()));
            config.server.log_level().into_iter().for_each(set_log_level);
        }
        Ok(Reloaded { changed, needs_restart })
    }

    fn lock(&self) -> MutexGuard<'_, Now> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes what is put and everything that was put before beside its file, and looks whether it
    /// can be used; what it overrides in vain.
    fn prepare(&self, changes: &Map<String, Value>) -> Result<(Draft, Vec<String>), PutError> {
        let mut table = read_table(&self.dirs.state.join(PUT_FILE));
        let mut keys = Vec::new();
        flatten("", changes, &self.started, &mut |key, value| {
            check_key(&key, value.as_str())?;
            let value = match value {
                Value::Null => None,
                value => Some(toml::Value::try_from(value).map_err(|error| PutError::Key {
                    path: key.clone(),
                    message: error.to_string(),
                })?),
            };
            set(&mut table, &key, value);
            keys.push(key);
            Ok(())
        })?;
        let text = toml::to_string(&table).map_err(|error| PutError::Ours(error.to_string()))?;
        let write = || {
            std::fs::create_dir_all(&self.dirs.state)?;
            let mut draft = Draft::new(&self.dirs.state.join(PUT_FILE), 0o640)?;
            draft.write_all(text.as_bytes()).map(|()| draft)
        };
        let draft = write().map_err(PutError::Unkept)?;
        let files = self.origin.files(&self.dirs, Some(draft.beside()));
        let resolved = self.origin.resolve(files).map_err(put_error)?;
        let is_in_vain =
            |key: &String| matches!(resolved.source(key), Source::Env(_) | Source::Option(_));
        let in_vain = keys.into_iter().filter(is_in_vain).collect();
        Ok((draft, in_vain))
    }
}

impl Settings for Reloader {
    fn show(&self) -> Value {
        let now = self.lock();
        let keys: Map<String, Value> = now
            .resolved
            .iter()
            .map(|(key, value, source)| {
                (key.to_owned(), json!({"value": value, "source": source.to_string()}))
            })
            .collect();
        let files: Vec<&PathBuf> = now.stamps.iter().map(|(file, _)| file).collect();
        json!({ "keys": keys, "files": files })
    }

    fn put(&self, changes: &Map<String, Value>) -> Result<Value, PutError> {
        let mut now = self.lock();
        let (draft, in_vain) = self.prepare(changes)?;
        draft.commit().map_err(PutError::Unkept)?;
        let Reloaded { changed, needs_restart } = self.read(&mut now).map_err(put_error)?;
        tracing::info!(?changed, ?needs_restart, "configuration put");
        Ok(json!({"changed": changed, "needs_restart": needs_restart, "overridden": in_vain}))
    }
}

/// An error of the whole as one of what was put.
fn put_error(error: ConfigError) -> PutError {
    let path = match &error {
        ConfigError::Value { key, .. } | ConfigError::UnknownKey { key, .. } => Some(key.clone()),
        _ => None,
    };
    let message = match error {
        ConfigError::Value { key, message, .. } => format!("`{key}`: {message}"),
        error => error.to_string(),
    };
    match path {
        Some(path) => PutError::Key { path, message },
        None => PutError::Ours(message),
    }
}

/// Whether a file is the one of what was put, or is about to be.
fn is_put(file: &Path) -> bool {
    file.file_name().is_some_and(|name| name.to_string_lossy().starts_with(PUT_FILE))
}

/// Whether a key may be put with this value, if that is a text.
fn check_key(key: &str, text: Option<&str>) -> Result<(), PutError> {
    let is_path = key == "model.name" && text.is_some_and(|name| name.contains('/'));
    let may = PUT.iter().any(|start| key.starts_with(start))
        && !NOT_PUT.contains(&key)
        && !config::names_files::<Config>(key);
    if may && !is_path {
        return Ok(());
    }
    let message = format!("`{key}` is set in a file on the machine, and not over HTTP");
    Err(PutError::Key { path: key.to_owned(), message })
}

/// Every key of an object of objects, or of dotted names.
fn flatten(
    prefix: &str,
    map: &Map<String, Value>,
    known: &Resolved<Config>,
    each: &mut dyn FnMut(String, &Value) -> Result<(), PutError>,
) -> Result<(), PutError> {
    for (name, value) in map {
        let key = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
        match value {
            Value::Object(inner) if !known.has(&key) && key.split('.').count() < 4 => {
                flatten(&key, inner, known, each)?;
            }
            value => each(key, value)?,
        }
    }
    Ok(())
}

fn set(table: &mut Table, key: &str, value: Option<toml::Value>) {
    let Some((section, rest)) = key.split_once('.') else {
        match value {
            Some(value) => drop(table.insert(key.to_owned(), value)),
            None => drop(table.remove(key)),
        }
        return;
    };
    let inner = table.entry(section).or_insert_with(|| toml::Value::Table(Table::new()));
    if let toml::Value::Table(inner) = inner {
        set(inner, rest, value);
        if inner.is_empty() {
            table.remove(section);
        }
    }
}

/// What was put before; nothing if that cannot be read.
fn read_table(path: &Path) -> Table {
    let mut text = String::new();
    let read = File::open(path).and_then(|f| f.take(CONFIG_BYTES_MAX).read_to_string(&mut text));
    read.ok().and_then(|_| toml::from_str(&text).ok()).unwrap_or_default()
}

fn stamps(files: &[PathBuf]) -> Vec<Stamp> {
    let stamp = |file: &PathBuf| {
        let metadata = std::fs::metadata(file).ok();
        let stamp = metadata.and_then(|data| Some((data.modified().ok()?, data.len())));
        (file.clone(), stamp)
    };
    files.iter().map(stamp).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::config::Shape;

    #[test]
    fn no_key_that_names_a_file_is_put() {
        fn names<T: Shape>(known: &Resolved<T>) -> Vec<&str> {
            known.iter().map(|(key, ..)| key).filter(|key| config::names_files::<T>(key)).collect()
        }
        let known = Origin::default().resolve(Vec::new()).unwrap();
        let expected = [
            "hub.key_file",
            "hub.store_key_file",
            "hub.store_password_file",
            "library.catalog",
            "library.dir",
            "prefix_cache.dir",
            "pull.ca_file",
            "server.api_key_file",
            "server.chat_template_file",
            "server.lora",
            "server.slot_save_dir",
            "server.tls_cert",
            "server.tls_key",
        ];
        assert_eq!(names(&known), expected);
        for key in expected {
            assert!(check_key(key, Some("/x")).is_err(), "{key}");
        }
        assert!(check_key("server.tls", None).is_ok());
    }

    #[test]
    fn what_may_not_be_put_counts_for_nothing_in_its_file() {
        let env = Env::default();
        let mut dirs = Dirs::new(Role::Service, &env).unwrap();
        let dir = tempfile::tempdir().unwrap();
        (dirs.config, dirs.state) = (dir.path().join("etc"), dir.path().to_owned());
        let put = dir.path().join(PUT_FILE);
        let read = || Origin::default().resolve(Origin::default().files(&dirs, None)).unwrap();
        let text = "[library]\ndir = \"/etc\"\n[model]\nname = \"/etc/x\"\nn_ctx = 512\n\
            [server]\nhost = \"0.0.0.0\"\n";
        std::fs::write(&put, text).unwrap();
        let set: Vec<String> = read()
            .iter()
            .filter(|(_, _, source)| **source != Source::Default)
            .map(|(key, ..)| key.to_owned())
            .collect();
        assert_eq!(set, ["model.n_ctx"]);
        // What is no file there is as good as none.
        std::fs::rename(&put, dir.path().join("other")).unwrap();
        std::os::unix::fs::symlink("other", &put).unwrap();
        assert!(read().is_default("model.n_ctx"));
    }
}
