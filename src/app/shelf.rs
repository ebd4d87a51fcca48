//! The store of models as the service shows it: listed, got from the catalog, deleted.
//!
//! A caller over the network names models of the catalog, never an address: the service asks no
//! host that its owner did not choose.

use std::path::PathBuf;

use crate::library::{
    Catalog, LibraryError, PullEvent, PullOptions, PullRequest, Store, StoredModel, pull,
};
use crate::server::{PullStep, Shelf, ShelfError, Shelved};

/// The store, and where its models come from.
pub struct StoreShelf {
    /// The models.
    pub store: Store,
    /// What can be got by name.
    pub catalog: Catalog,
    /// How it is got.
    pub pull: PullOptions,
    /// The file that the service was started with: it stays.
    pub served: Option<PathBuf>,
}

impl Shelf for StoreShelf {
    fn list(&self) -> Vec<Shelved> {
        // A directory that cannot be read has no models for a caller.
        self.store.list().unwrap_or_default().iter().map(shelved).collect()
    }

    fn pull(&self, name: &str, on_step: &mut dyn FnMut(PullStep)) -> Result<(), ShelfError> {
        let entry = self.catalog.find(name).filter(|entry| !entry.url.is_empty());
        let unknown = || ShelfError::Unknown(format!("the catalog has no model {name:?} to get"));
        let entry = entry.ok_or_else(unknown)?;
        let request = PullRequest {
            url: entry.url.clone(),
            dir: self.store.dir().to_owned(),
            file_name: entry.file_name().ok_or_else(unknown)?,
            sha256: Some(entry.sha256.clone()).filter(|hash| !hash.is_empty()),
            size_bytes: Some(entry.size_bytes).filter(|size| *size > 0),
            force: false,
        };
        let mut total = request.size_bytes;
        let pulled = pull(&request, &self.pull, &mut |event| {
            if let PullEvent::Started { total_bytes, .. } = &event {
                total = total_bytes.or(total);
            }
            if let Some(step) = step(&event, total) {
                on_step(step);
            }
        });
        pulled.map(drop).map_err(|error| failed(&error))
    }

    fn remove(&self, name: &str, loaded: &[String]) -> Result<(), ShelfError> {
        // The store finds a model whatever the case of its name.
        let is_loaded = |name: &str| loaded.iter().any(|own| own.eq_ignore_ascii_case(name));
        let in_use = || {
            let message = format!("model {name:?} is loaded; unload it with keep_alive 0 first");
            ShelfError::InUse(message)
        };
        if is_loaded(name) {
            return Err(in_use());
        }
        let model = self.store.find(name).map_err(|error| failed(&error))?;
        let whole = |file: &PathBuf| file.canonicalize().ok();
        let served = self.served.as_ref().and_then(whole);
        if served.is_some() && model.files.iter().any(|file| whole(file) == served) {
            let message = format!("model {name:?} is the one that the service was started with");
            return Err(ShelfError::InUse(message));
        }
        if is_loaded(&model.name) {
            return Err(in_use());
        }
        self.store.remove(&model).map_err(|error| failed(&error))
    }
}

fn shelved(model: &StoredModel) -> Shelved {
    let record = model.records().into_iter().next().flatten();
    let file = model.files.first().and_then(|file| std::fs::metadata(file).ok());
    Shelved {
        name: model.name.clone(),
        size_bytes: model.size_bytes,
        sha256: record.map(|record| record.sha256),
        modified: file.and_then(|file| file.modified().ok()),
    }
}

fn step(event: &PullEvent<'_>, total: Option<u64>) -> Option<PullStep> {
    let plain = |status: String| Some(PullStep { status, bytes: None });
    match event {
        PullEvent::Asking { host } => plain(format!("asking {host}")),
        PullEvent::Started { file_name, from_bytes, .. } => Some(PullStep {
            status: format!("pulling {file_name}"),
            bytes: Some((*from_bytes, total)),
        }),
        PullEvent::Received { done_bytes } => {
            Some(PullStep { status: "pulling".to_owned(), bytes: Some((*done_bytes, total)) })
        }
        PullEvent::Retrying { pause, .. } => plain(format!("trying again in {pause:?}")),
        PullEvent::Hashing { .. } => plain("verifying sha256 digest".to_owned()),
    }
}

/// Without the paths that an error of the store names: a caller is not the owner.
fn failed(error: &LibraryError) -> ShelfError {
    match error {
        LibraryError::UnknownModel { .. } | LibraryError::NoSource { .. } => {
            ShelfError::Unknown(error.to_string())
        }
        LibraryError::Busy { .. } => ShelfError::Failed("another download of it runs".into()),
        LibraryError::NoSpace { .. } => ShelfError::Failed("the disk is too full for it".into()),
        LibraryError::Io { action, .. } => ShelfError::Failed(format!("cannot {action} it")),
        _ => ShelfError::Failed("it could not be got".into()),
    }
}
