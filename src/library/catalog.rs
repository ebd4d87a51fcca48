//! The catalog: models by name, with their source, size and licence.
//!
//! The built-in one is `models/catalog.toml`; a file of the same form adds to it and replaces
//! entries of the same name. An empty field means "not known" and is never filled by guessing.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::LibraryError;
use super::board::Board;
use super::url;
use crate::base::format::nearest;
use crate::base::limits::CATALOG_BYTES_MAX;

const BUILT_IN: &str = include_str!("../../models/catalog.toml");

/// One model of the catalog.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CatalogEntry {
    /// What the user types.
    pub name: String,
    /// What it is.
    pub title: String,
    /// Where the file is; empty when unknown.
    pub url: String,
    /// Its name in the store; empty for the URL's own.
    pub file: String,
    /// Where the weights are with 8 bits or more, to make smaller files of; empty when unknown.
    pub source_url: String,
    /// Hash of that file; empty when unknown.
    pub source_sha256: String,
    /// Hash in lower-case hexadecimal; empty when unknown.
    pub sha256: String,
    /// Exact size; 0 when unknown.
    pub size_bytes: u64,
    /// Rounded size, for people.
    pub size_about_bytes: u64,
    /// Millions of parameters.
    pub params_m: u32,
    /// GGUF architecture.
    pub architecture: String,
    /// SPDX name of the licence, or its publisher's name for it.
    pub licence: String,
    /// Whether it answers a conversation.
    pub chat: bool,
    /// Boards that it fits.
    pub boards: Vec<String>,
    /// A word of advice.
    pub note: String,
}

impl CatalogEntry {
    /// The file's name in the store, if a source is known.
    pub fn file_name(&self) -> Option<String> {
        match (self.file.is_empty(), self.url.is_empty()) {
            (false, _) => Some(self.file.clone()),
            (true, false) => url::file_name_of(&self.url).ok(),
            (true, true) => None,
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CatalogFile {
    #[serde(default)]
    model: Vec<CatalogEntry>,
}

/// All models by name.
#[derive(Clone, Debug, Default)]
pub struct Catalog {
    entries: Vec<CatalogEntry>,
}

impl Catalog {
    /// The built-in catalog, with `extra` on top when it is given.
    ///
    /// # Errors
    /// When the extra file cannot be read or is not a catalog.
    pub fn load(extra: Option<&Path>) -> Result<Catalog, LibraryError> {
        let mut entries = parse(BUILT_IN, "models/catalog.toml")?;
        if let Some(path) = extra {
            let n_bytes = std::fs::metadata(path).map_err(LibraryError::io("read", path))?.len();
            let origin = path.display().to_string();
            if n_bytes > CATALOG_BYTES_MAX {
                let message = format!("has {n_bytes} bytes, more than {CATALOG_BYTES_MAX}");
                return Err(LibraryError::Catalog { origin, message });
            }
            let text = std::fs::read_to_string(path).map_err(LibraryError::io("read", path))?;
            for entry in parse(&text, &origin)? {
                entries.retain(|known| known.name != entry.name);
                entries.push(entry);
            }
        }
        Ok(Catalog { entries })
    }

    /// The models in the order of the files.
    pub fn entries(&self) -> &[CatalogEntry] {
        &self.entries
    }

    /// The model of this name, in any case.
    pub fn find(&self, name: &str) -> Option<&CatalogEntry> {
        self.entries.iter().find(|entry| entry.name.eq_ignore_ascii_case(name))
    }

    /// The name that was probably meant.
    pub fn nearest(&self, name: &str) -> Option<&str> {
        nearest(name, self.entries.iter().map(|entry| entry.name.as_str()))
    }
}

fn parse(text: &str, origin: &str) -> Result<Vec<CatalogEntry>, LibraryError> {
    let wrong = |message: String| LibraryError::Catalog { origin: origin.to_owned(), message };
    let file: CatalogFile = toml::from_str(text).map_err(|error| wrong(error.to_string()))?;
    for entry in &file.model {
        let name = &entry.name;
        if name.is_empty() {
            return Err(wrong("a model has no name".to_owned()));
        }
        let is_hash = |s: &str| s.len() == 64 && s.bytes().all(|b| b.is_ascii_hexdigit());
        let hashes = [&entry.sha256, &entry.source_sha256];
        if hashes.into_iter().any(|hash| !hash.is_empty() && !is_hash(hash)) {
            return Err(wrong(format!("{name}: sha256 must be 64 hexadecimal digits")));
        }
        for address in [&entry.url, &entry.source_url].into_iter().filter(|url| !url.is_empty()) {
            url::parse(address).map_err(|error| wrong(format!("{name}: {error}")))?;
        }
        if let Some(board) = entry.boards.iter().find(|b| Board::find(b).is_none()) {
            return Err(wrong(format!("{name}: unknown board {board:?}")));
        }
    }
    Ok(file.model)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_built_in_catalog_is_sound() {
        let catalog = Catalog::load(None).unwrap();
        assert!(catalog.entries().len() >= 11);
        for entry in catalog.entries() {
            assert!(!entry.licence.is_empty() && entry.size_about_bytes > 0, "{}", entry.name);
            let addresses = [&entry.url, &entry.source_url];
            let is_safe = |url: &&String| url.is_empty() || url.starts_with("https://");
            assert!(addresses.iter().all(is_safe), "{}", entry.name);
            assert!(entry.boards.contains(&"pc-16gb".to_owned()), "{}", entry.name);
            assert!(entry.file_name().is_some_and(|f| f.ends_with(".gguf")), "{}", entry.name);
        }
        assert_eq!(catalog.nearest("qwen2.5-coder-1.5"), Some("qwen2.5-coder-1.5b"));
    }

    #[test]
    fn an_extra_catalog_adds_and_replaces() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("extra.toml");
        let text = "[[model]]\nname = \"phi-2\"\nurl = \"https://h/x.gguf\"\n";
        std::fs::write(&path, text).unwrap();
        let catalog = Catalog::load(Some(&path)).unwrap();
        assert_eq!(catalog.find("PHI-2").unwrap().file_name().as_deref(), Some("x.gguf"));
        let built_in = Catalog::load(None).unwrap();
        assert_eq!(catalog.entries().len(), built_in.entries().len());
        std::fs::write(&path, "[[model]]\nname = \"a\"\nsha256 = \"12\"\n").unwrap();
        assert!(Catalog::load(Some(&path)).unwrap_err().to_string().contains("64 hexadecimal"));
    }
}
