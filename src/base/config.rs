//! Layered configuration: defaults, then files, then the environment, then options, by weight.
//!
//! The shape of the configuration is a plain struct `T` that another room declares; this file is
//! the mechanism. Every leaf of every layer is checked alone against `T`, so that an error names
//! the file, the line and the key, and every leaf that is left remembers where it came from.
//!
//! ```text
//! Default::default() -> known keys        file: [model] n_ctx = 2048      "model.n_ctx", line 2
//!                                         environment: JETFORGE_MODEL_N_CTX
//!                                         option: --ctx-size
//! ```
//!
//! A file is TOML, or YAML with the same keys if its name ends in `.yaml` or `.yml`.
//!
//! The known keys are those that the default value of `T` serialises to, absent options included.
//! It does not watch files: a room that reloads calls `resolve` again and compares.

mod yaml;

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;
use toml::de::{DeTable, DeValue};
use toml::{Table, Value};

use crate::base::env::Env;
use crate::base::file::open_plain;
use crate::base::format::nearest;
use crate::base::limits::CONFIG_BYTES_MAX;

/// Where a value came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// Built in.
    Default,
    /// A line of a file.
    File {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
    },
    /// An environment variable.
    Env(String),
    /// A command line option, as it is spelled.
    Option(String),
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Source::Default => f.write_str("default"),
            Source::File { path, line } => write!(f, "{}:{line}", path.display()),
            Source::Env(name) => write!(f, "environment {name}"),
            Source::Option(name) => write!(f, "option {name}"),
        }
    }
}

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A file cannot be read.
    #[error("cannot read configuration {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// A file is larger than any configuration.
    #[error("configuration {} has {n_bytes} bytes, more than {CONFIG_BYTES_MAX}", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its size.
        n_bytes: u64,
    },
    /// A file is not TOML, or not YAML.
    #[error("{}:{line}: {message}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What the parser says.
        message: String,
    },
    /// A key that nobody reads.
    #[error("{at}: unknown key `{key}`{}", hint(.suggestion))]
    UnknownKey {
        /// Where it stands.
        at: Box<Source>,
        /// The key with its sections.
        key: String,
        /// The key that was probably meant.
        suggestion: Option<String>,
    },
    /// A value of the wrong type or out of range.
    #[error("{at}: `{key}`: {message}")]
    Value {
        /// Where it stands.
        at: Box<Source>,
        /// The key with its sections.
        key: String,
        /// What is wrong with it.
        message: String,
    },
}

fn hint(suggestion: &Option<String>) -> String {
    suggestion.as_ref().map_or(String::new(), |s| format!("; did you mean `{s}`?"))
}

/// A shape of configuration: its default names every key, its check says which values cannot be.
pub trait Shape: Default + Serialize + DeserializeOwned {
    /// The first value out of range: its key and what is wrong.
    fn check(&self) -> Result<(), (&'static str, String)> {
        Ok(())
    }
}

/// One value that an option sets: key, value, and the option as it is spelled.
#[derive(Clone, Debug)]
pub struct Setting {
    /// The key with its sections, `model.n_ctx`.
    pub key: String,
    /// Its value.
    pub value: Value,
    /// The option, `--ctx-size`.
    pub option: String,
}

/// The configuration with the source of each value.
#[derive(Clone, Debug)]
pub struct Resolved<T> {
    /// The values.
    pub config: T,
    leaves: BTreeMap<String, (Option<Value>, Source)>,
    /// Variables that look like ours and that no key answers to.
    pub unknown_variables: Vec<String>,
}

impl<T> Resolved<T> {
    /// Where the value of `key` came from.
    pub fn source(&self, key: &str) -> &Source {
        self.leaves.get(key).map_or(&Source::Default, |(_, source)| source)
    }

    /// Whether nobody set `key`.
    pub fn is_default(&self, key: &str) -> bool {
        *self.source(key) == Source::Default
    }

    /// Whether there is such a key.
    pub fn has(&self, key: &str) -> bool {
        self.leaves.contains_key(key)
    }

    /// Every key in order, with its value (`None` when unset) and source.
    pub fn iter(&self) -> impl Iterator<Item = (&str, Option<&Value>, &Source)> {
        self.leaves.iter().map(|(key, (value, source))| (key.as_str(), value.as_ref(), source))
    }
}

/// Whether a value may be set at a key.
pub type MaySet = fn(&str, &Value) -> bool;

/// The layers above the defaults.
pub struct Layers<'a> {
    /// Files, weakest first.
    pub files: Vec<PathBuf>,
    /// Above those one in TOML that others write as well: it has to be a plain file, and of it only
    /// those keys and values count that may be set.
    pub put: Option<(PathBuf, MaySet)>,
    /// The environment; variables are `prefix` + the key in capitals with `_` for `.`.
    pub env: &'a Env,
    /// The prefix of variables, `JETFORGE_`.
    pub prefix: &'a str,
    /// Variables with the prefix that mean something else.
    pub reserved: &'a [&'a str],
    /// Options, weakest first.
    pub options: Vec<Setting>,
}

/// Whether the value of `key` names a file or a folder, or several, by its type.
pub fn names_files<T: Shape>(key: &str) -> bool {
    let number = Value::Integer(0);
    let one = Stack::<T>::fits(key, &number);
    let several = Stack::<T>::fits(key, &Value::Array(vec![number]));
    // What a type expects is said in its own words: those of the paths of the standard library.
    [one, several].iter().any(|fits| matches!(fits, Err(why) if why.contains("path string")))
}

/// Puts the layers together and checks the result.
///
/// # Errors
/// The first file that cannot be read or parsed, key that is unknown, or value that does not fit.
pub fn resolve<T: Shape>(layers: Layers<'_>) -> Result<Resolved<T>, ConfigError> {
    let mut stack = Stack::<T>::new();
    for path in &layers.files {
        stack.add_file(path)?;
    }
    if let Some((path, may_set)) = &layers.put {
        let text = read_bounded(path, open_plain(path))?;
        stack.add_toml(path, &text, *may_set)?;
    }
    let unknown_variables = stack.add_env(layers.env, layers.prefix, layers.reserved)?;
    for Setting { key, value, option } in layers.options {
        stack.set(&key, value, Source::Option(option))?;
    }
    let config = stack.build()?;
    Ok(Resolved { config, leaves: stack.leaves, unknown_variables })
}

struct Stack<T> {
    leaves: BTreeMap<String, (Option<Value>, Source)>,
    shape: std::marker::PhantomData<T>,
}

impl<T: Shape> Stack<T> {
    fn new() -> Stack<T> {
        let json = serde_json::to_value(T::default()).expect("a configuration is plain data");
        let mut leaves = BTreeMap::new();
        collect_leaves("", &json, &mut leaves);
        Stack { leaves, shape: std::marker::PhantomData }
    }

    fn add_file(&mut self, path: &Path) -> Result<(), ConfigError> {
        let text = read_bounded(path, File::open(path))?;
        match is_yaml(path) {
            true => self.add_yaml(path, &text),
            false => self.add_toml(path, &text, |_, _| true),
        }
    }

    fn add_toml(&mut self, path: &Path, text: &str, may_set: MaySet) -> Result<(), ConfigError> {
        let syntax = |error: toml::de::Error| ConfigError::Syntax {
            path: path.to_owned(),
            line: line_of(text, error.span().map_or(0, |span| span.start)),
            message: error.message().to_owned(),
        };
        let spans = DeTable::parse(text).map_err(syntax)?;
        let values: Table = toml::from_str(text).map_err(syntax)?;
        let mut found = Vec::new();
        self.walk("", spans.get_ref(), &values, &mut found);
        found.retain(|(key, _, value)| may_set(key, value));
        for (key, at, value) in found {
            let source = Source::File { path: path.to_owned(), line: line_of(text, at) };
            self.set(&key, value, source)?;
        }
        Ok(())
    }

    fn add_yaml(&mut self, path: &Path, text: &str) -> Result<(), ConfigError> {
        let entries = yaml::parse(text).map_err(|(line, message)| ConfigError::Syntax {
            path: path.to_owned(),
            line,
            message,
        })?;
        let mut found = Vec::new();
        self.walk_yaml("", entries, &mut found);
        for (key, line, value) in found {
            // A name that looks like a number is one where a text is expected.
            let value = match Self::fits(&key, &value) {
                Err(_) if Self::fits(&key, &as_text(&value)).is_ok() => as_text(&value),
                _ => value,
            };
            self.set(&key, value, Source::File { path: path.to_owned(), line })?;
        }
        Ok(())
    }

    /// Collects the keys of a file with their lines, stopping at known keys.
    fn walk_yaml(
        &self,
        prefix: &str,
        entries: Vec<yaml::Entry>,
        found: &mut Vec<(String, usize, Value)>,
    ) {
        for yaml::Entry { name, line, node } in entries {
            let key = join(prefix, &name);
            match node {
                yaml::Node::Map(inner) if self.is_section(&key) => {
                    self.walk_yaml(&key, inner, found);
                }
                // A section that is empty, or a key that is left unset.
                yaml::Node::Null if self.is_section(&key) || self.leaves.contains_key(&key) => {}
                node => {
                    let value = node.into_value().unwrap_or_else(|| Value::String(String::new()));
                    found.push((key, line, value));
                }
            }
        }
    }

    /// Collects the keys of a file with their byte positions, stopping at known keys.
    fn walk(
        &self,
        prefix: &str,
        spans: &DeTable<'_>,
        values: &Table,
        found: &mut Vec<(String, usize, Value)>,
    ) {
        for (name, value) in spans.iter() {
            let key = join(prefix, name.get_ref());
            let Some(plain) = values.get(name.get_ref().as_ref()) else {
                continue;
            };
            match (value.get_ref(), plain) {
                (DeValue::Table(inner), Value::Table(plain)) if self.is_section(&key) => {
                    self.walk(&key, inner, plain, found);
                }
                _ => found.push((key, name.span().start, plain.clone())),
            }
        }
    }

    fn is_section(&self, key: &str) -> bool {
        let prefix = format!("{key}.");
        self.leaves.keys().any(|known| known.starts_with(&prefix))
    }

    fn add_env(
        &mut self,
        env: &Env,
        prefix: &str,
        reserved: &[&str],
    ) -> Result<Vec<String>, ConfigError> {
        let names: BTreeMap<String, String> =
            self.leaves.keys().map(|key| (variable_name(prefix, key), key.clone())).collect();
        let mut unknown = Vec::new();
        for (name, text) in env.with_prefix(prefix) {
            match names.get(name) {
                Some(key) => self.set_text(key, text, Source::Env(name.to_owned()))?,
                None if reserved.iter().any(|r| name.starts_with(r)) => {}
                None => unknown.push(name.to_owned()),
            }
        }
        Ok(unknown)
    }

    /// Sets a key from text that is TOML (`3`, `true`, `["a"]`) or else a bare string.
    fn set_text(&mut self, key: &str, text: &str, source: Source) -> Result<(), ConfigError> {
        let value = text_value(text);
        if Self::fits(key, &value).is_ok() {
            return self.set(key, value, source);
        }
        let string = Value::String(text.to_owned());
        let use_string = Self::fits(key, &string).is_ok() || value.is_str();
        self.set(key, if use_string { string } else { value }, source)
    }

    fn set(&mut self, key: &str, value: Value, source: Source) -> Result<(), ConfigError> {
        if !self.leaves.contains_key(key) {
            let suggestion = nearest(key, self.leaves.keys().map(String::as_str));
            return Err(ConfigError::UnknownKey {
                at: Box::new(source),
                key: key.to_owned(),
                suggestion: suggestion.map(str::to_owned),
            });
        }
        // Options pass text through `--set`, which knows no types; everything else is typed.
        let value = match (&source, value) {
            (Source::Option(_), Value::String(text))
                if Self::fits(key, &Value::String(text.clone())).is_err() =>
            {
                text_value(&text)
            }
            (_, value) => value,
        };
        Self::fits(key, &value).map_err(|message| ConfigError::Value {
            at: Box::new(source.clone()),
            key: key.to_owned(),
            message,
        })?;
        self.leaves.insert(key.to_owned(), (Some(value), source));
        Ok(())
    }

    /// Whether `T` takes the value at this key.
    fn fits(key: &str, value: &Value) -> Result<(), String> {
        let mut table = Table::new();
        insert(&mut table, key, value.clone());
        T::deserialize(Value::Table(table)).map(drop).map_err(|error| error.message().to_owned())
    }

    fn build(&self) -> Result<T, ConfigError> {
        let mut table = Table::new();
        for (key, (value, source)) in &self.leaves {
            if let (Some(value), false) = (value, *source == Source::Default) {
                insert(&mut table, key, value.clone());
            }
        }
        let at = |key: &str, message: String| ConfigError::Value {
            at: Box::new(self.leaves.get(key).map_or(Source::Default, |(_, s)| s.clone())),
            key: key.to_owned(),
            message,
        };
        let config = T::deserialize(Value::Table(table))
            .map_err(|error| at("(all layers)", error.message().to_owned()))?;
        config.check().map_err(|(key, message)| at(key, message))?;
        Ok(config)
    }
}

fn collect_leaves(
    prefix: &str,
    json: &serde_json::Value,
    leaves: &mut BTreeMap<String, (Option<Value>, Source)>,
) {
    match json.as_object() {
        Some(object) if !object.is_empty() || prefix.is_empty() => {
            for (name, value) in object {
                collect_leaves(&join(prefix, name), value, leaves);
            }
        }
        _ => {
            let value = Value::try_from(json).ok();
            leaves.insert(prefix.to_owned(), (value, Source::Default));
        }
    }
}

fn join(prefix: &str, name: &str) -> String {
    if prefix.is_empty() { name.to_owned() } else { format!("{prefix}.{name}") }
}

/// The variable of a key: `JETFORGE_` and `model.n_ctx` make `JETFORGE_MODEL_N_CTX`.
pub fn variable_name(prefix: &str, key: &str) -> String {
    format!("{prefix}{}", key.replace('.', "_").to_ascii_uppercase())
}

/// The TOML value that the text is, or the text itself.
fn text_value(text: &str) -> Value {
    toml::from_str::<Table>(&format!("v = {text}"))
        .ok()
        .filter(|table| table.len() == 1)
        .and_then(|mut table| table.remove("v"))
        .unwrap_or_else(|| Value::String(text.to_owned()))
}

fn insert(table: &mut Table, key: &str, value: Value) {
    match key.split_once('.') {
        None => {
            table.insert(key.to_owned(), value);
        }
        Some((section, rest)) => {
            let inner =
                table.entry(section.to_owned()).or_insert_with(|| Value::Table(Table::new()));
            if let Value::Table(inner) = inner {
                insert(inner, rest, value);
            }
        }
    }
}

fn as_text(value: &Value) -> Value {
    Value::String(value.to_string())
}

/// A file with its drop-ins, weakest first: `NAME`, then what is in `NAME.d`.
pub fn with_drop_ins(file: &Path) -> Vec<PathBuf> {
    let mut folder = file.as_os_str().to_owned();
    folder.push(".d");
    let mut files = vec![file.to_owned()];
    files.extend(drop_ins(Path::new(&folder)));
    files
}

/// The configuration files of a folder, by name.
pub fn drop_ins(dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(dir) else { return Vec::new() };
    let is_ours = |path: &PathBuf| is_yaml(path) || path.extension().is_some_and(|e| e == "toml");
    let mut files: Vec<PathBuf> =
        entries.flatten().map(|entry| entry.path()).filter(is_ours).collect();
    files.sort();
    files
}

/// Whether a file is YAML by its name.
pub fn is_yaml(path: &Path) -> bool {
    path.extension().is_some_and(|end| end == "yaml" || end == "yml")
}

fn read_bounded(path: &Path, opened: io::Result<File>) -> Result<String, ConfigError> {
    let failed = |source| ConfigError::Read { path: path.to_owned(), source };
    let file = opened.map_err(failed)?;
    let n_bytes = file.metadata().map_err(failed)?.len();
    if n_bytes > CONFIG_BYTES_MAX {
        return Err(ConfigError::TooLarge { path: path.to_owned(), n_bytes });
    }
    io::read_to_string(file).map_err(failed)
}

fn line_of(text: &str, at: usize) -> usize {
    1 + text.as_bytes()[..at.min(text.len())].iter().filter(|b| **b == b'\n').count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;

    #[derive(Debug, Default, Serialize, Deserialize)]
    #[serde(default, deny_unknown_fields)]
    struct Sample {
        model: Model,
        tags: Vec<String>,
    }

    #[derive(Debug, Default, Serialize, Deserialize)]
    #[serde(default, deny_unknown_fields)]
    struct Model {
        name: Option<String>,
        n_ctx: Option<u32>,
        temperature: f32,
    }

    impl Shape for Sample {
        fn check(&self) -> Result<(), (&'static str, String)> {
            match self.model.n_ctx {
                Some(0) => Err(("model.n_ctx", "must be at least 1".to_owned())),
                _ => Ok(()),
            }
        }
    }

    fn resolve_with(
        file: Option<&str>,
        env: &[(&str, &str)],
        options: Vec<Setting>,
    ) -> Result<Resolved<Sample>, ConfigError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.toml");
        let files = file.map(|text| std::fs::write(&path, text).map(|()| path).unwrap());
        resolve(Layers {
            files: files.into_iter().collect(),
            put: None,
            env: &env.iter().copied().collect(),
            prefix: "JETFORGE_",
            reserved: &["JETFORGE_TEST"],
            options,
        })
    }

    fn option(key: &str, value: impl Into<Value>) -> Setting {
        Setting { key: key.into(), value: value.into(), option: "--x".into() }
    }

    #[test]
    fn heavier_layers_win_and_are_remembered() {
        let file = "tags = [\"a\"]\n[model]\nname = \"one\"\nn_ctx = 1\ntemperature = 1\n";
        let env =
            [("JETFORGE_MODEL_N_CTX", "2"), ("JETFORGE_MODEL_NAME", "7"), ("JETFORGE_X", "1")];
        let found = resolve_with(Some(file), &env, vec![option("model.n_ctx", 3)]).unwrap();
        assert_eq!(found.config.model.n_ctx, Some(3));
        assert_eq!(found.config.model.name.as_deref(), Some("7"), "a number can be a name");
        assert_eq!(found.config.tags, ["a"]);
        assert_eq!(found.source("model.n_ctx").to_string(), "option --x");
        assert_eq!(found.source("model.name").to_string(), "environment JETFORGE_MODEL_NAME");
        let temperature = found.source("model.temperature").to_string();
        assert!(temperature.ends_with("config.toml:5"), "{temperature}");
        assert_eq!(found.unknown_variables, ["JETFORGE_X"]);
        assert_eq!(found.iter().count(), 4);
    }

    #[test]
    fn errors_name_file_line_and_key() {
        let cases = [
            ("[model]\nn_ctz = 1\n", ":2: unknown key `model.n_ctz`; did you mean `model.n_ctx`?"),
            ("[model]\n\nn_ctx = \"x\"\n", ":3: `model.n_ctx`: invalid type"),
            ("[model]\nn_ctx = -1\n", ":2: `model.n_ctx`: invalid value"),
            ("[model]\nn_ctx = 0\n", ":2: `model.n_ctx`: must be at least 1"),
            ("model = 3\n", ":1: unknown key `model`"),
            ("[model]\nn_ctx 1\n", ":2: "),
            ("[modell.deep]\nx = 1\n", ":1: unknown key `modell`"),
        ];
        for (file, expected) in cases {
            let message = resolve_with(Some(file), &[], vec![]).unwrap_err().to_string();
            assert!(message.contains(expected), "{file:?}: {message}");
            assert!(message.contains("config.toml"), "{message}");
        }
    }

    #[test]
    fn yaml_has_the_same_keys_and_errors_with_lines() {
        let resolve = |text: &str| {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("config.yaml");
            std::fs::write(&path, text).unwrap();
            resolve::<Sample>(Layers {
                files: vec![path],
                put: None,
                env: &Env::default(),
                prefix: "JETFORGE_",
                reserved: &[],
                options: Vec::new(),
            })
        };
        let text = "model:\n  name: 7\n  n_ctx: 12\n  temperature: 1\ntags:\n";
        let found = resolve(text).unwrap();
        assert_eq!(found.config.model.name.as_deref(), Some("7"), "a number can be a name");
        assert_eq!((found.config.model.n_ctx, found.config.model.temperature), (Some(12), 1.0));
        assert!(found.source("model.n_ctx").to_string().ends_with("config.yaml:3"));
        let unknown = ":2: unknown key `model.n_ctz`; did you mean `model.n_ctx`?";
        for (text, expected) in [
            ("model:\n  n_ctz: 1\n", unknown),
            ("\nmodel:\n  n_ctx: x\n", ":3: `model.n_ctx`: invalid type"),
            ("model:\n  n_ctx: 0\n", ":2: `model.n_ctx`: must be at least 1"),
            ("model: 3\n", ":1: unknown key `model`"),
            ("model:\n  n_ctx: [\n", ":3: "),
            ("other:\n", ":1: unknown key `other`"),
        ] {
            let message = resolve(text).unwrap_err().to_string();
            assert!(message.contains(expected), "{text:?}: {message}");
        }
    }

    #[test]
    fn errors_name_variable_and_option() {
        let error = resolve_with(None, &[("JETFORGE_MODEL_N_CTX", "many")], vec![]).unwrap_err();
        assert!(error.to_string().starts_with("environment JETFORGE_MODEL_N_CTX: `model.n_ctx`"));
        let error = resolve_with(None, &[], vec![option("model.foo", 1)]).unwrap_err();
        assert!(error.to_string().starts_with("option --x: unknown key"));
    }

    #[test]
    fn option_text_takes_the_type_of_its_key() {
        let options = vec![option("model.n_ctx", "12"), option("model.name", "12")];
        let found = resolve_with(None, &[], options).unwrap();
        assert_eq!(found.config.model.n_ctx, Some(12));
        assert_eq!(found.config.model.name.as_deref(), Some("12"));
    }

    #[test]
    fn without_layers_everything_is_default() {
        let found = resolve_with(None, &[("JETFORGE_TEST_DATA", "1")], vec![]).unwrap();
        assert!(found.is_default("model.name") && found.unknown_variables.is_empty());
    }
}
