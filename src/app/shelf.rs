//! The store of models as the service shows it: listed, got from the catalog, deleted.
//!
//! A caller over the network names models of the catalog, never an address: the service asks no
//! host that its owner did not choose.

use std::path::PathBuf;

use crate::base::file::is_disk_full;
use crate::base::limits::PULL_STEP_BYTES_MIN;
use crate::library::{
    Catalog, CatalogEntry, LibraryError, PullEvent, PullOptions, PullRequest, Pulled, Store,
    StoredModel, pull,
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

impl StoreShelf {
    /// A model by its own name, or by that of the catalog, as it was asked for.
    fn find(&self, name: &str) -> Result<StoredModel, ShelfError> {
        self.store.find(name).or_else(|error| {
            let models = self.store.list().unwrap_or_default();
            let entry = self.catalog.find(name);
            let found = entry.and_then(|entry| of_entry(&models, entry));
            found.cloned().ok_or_else(|| failed(&error))
        })
    }
}

impl Shelf for StoreShelf {
    fn list(&self) -> Vec<Shelved> {
        // A directory that cannot be read has no models for a caller.
        let models = self.store.list().unwrap_or_default();
        let by_catalog = |entry: &CatalogEntry| {
            let model = of_entry(&models, entry)?;
            let is_other = models.iter().all(|model| !model.name.eq_ignore_ascii_case(&entry.name));
            is_other.then(|| Shelved { name: entry.name.clone(), ..shelved(model) })
        };
        let others = self.catalog.entries().iter().filter_map(by_catalog);
        models.iter().map(shelved).chain(others).collect()
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
        let mut steps = Steps::new(&request, on_step);
        let pulled = pull(&request, &self.pull, &mut |event| steps.hear(&event));
        steps.end(&pulled.map_err(|error| failed(&error))?);
        Ok(())
    }

    fn remove(&self, name: &str, loaded: &[String]) -> Result<String, ShelfError> {
        // The store finds a model whatever the case of its name.
        let is_loaded = |name: &str| loaded.iter().any(|own| own.eq_ignore_ascii_case(name));
        let in_use = || {
            let message = format!("model {name:?} is loaded; unload it with keep_alive 0 first");
            ShelfError::InUse(message)
        };
        if is_loaded(name) {
            return Err(in_use());
        }
        let model = self.find(name)?;
        let whole = |file: &PathBuf| file.canonicalize().ok();
        let served = self.served.as_ref().and_then(whole);
        if served.is_some() && model.files.iter().any(|file| whole(file) == served) {
            let message = format!("model {name:?} is the one that the service was started with");
            return Err(ShelfError::InUse(message));
        }
        if is_loaded(&model.name) {
            return Err(in_use());
        }
        self.store.remove(&model).map_err(|error| failed(&error))?;
        Ok(model.name)
    }
}

/// The model whose file an entry of the catalog names.
fn of_entry<'a>(models: &'a [StoredModel], entry: &CatalogEntry) -> Option<&'a StoredModel> {
    let name = entry.file_name()?;
    let is_it = |file: &PathBuf| file.file_name().is_some_and(|own| *own == *name);
    models.iter().find(|model| model.files.first().is_some_and(is_it))
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

/// A download as it is told: each state once, and how far a file is whenever that is worth a line.
struct Steps<'a> {
    request: &'a PullRequest,
    on_step: &'a mut dyn FnMut(PullStep),
    /// The state that was told last.
    status: String,
    /// The file that comes, its bytes in all, and those that were told.
    file_name: String,
    total: Option<u64>,
    told_bytes: u64,
}

impl<'a> Steps<'a> {
    fn new(request: &'a PullRequest, on_step: &'a mut dyn FnMut(PullStep)) -> Steps<'a> {
        let (status, file_name) = (String::new(), request.file_name.clone());
        Steps { request, on_step, status, file_name, total: request.size_bytes, told_bytes: 0 }
    }

    fn hear(&mut self, event: &PullEvent<'_>) {
        match event {
            PullEvent::Asking { host } => self.plain(format!("asking {host}")),
            PullEvent::Started { file_name, from_bytes, total_bytes } => {
                (*file_name).clone_into(&mut self.file_name);
                self.total = total_bytes.or(self.request.size_bytes);
                self.reach(*from_bytes, self.request.sha256.clone());
            }
            PullEvent::Received { done_bytes } => {
                let is_whole = self.total == Some(*done_bytes);
                if is_whole || *done_bytes >= self.told_bytes + PULL_STEP_BYTES_MIN {
                    self.reach(*done_bytes, self.request.sha256.clone());
                }
            }
            PullEvent::Retrying { pause, .. } => self.plain(format!("trying again in {pause:?}")),
            PullEvent::Hashing { .. } => self.plain("verifying sha256 digest".to_owned()),
        }
    }

    /// What nobody knew beforehand, or what was here already.
    fn end(&mut self, pulled: &Pulled) {
        if self.request.sha256.is_some() && !pulled.was_here {
            return;
        }
        for (file, sha256) in pulled.files.iter().zip(&pulled.sha256) {
            let name = file.file_name().unwrap_or_default().to_string_lossy();
            let n_bytes = std::fs::metadata(file).map_or(0, |metadata| metadata.len());
            (self.file_name, self.total) = (name.into_owned(), Some(n_bytes));
            self.reach(n_bytes, Some(sha256.clone()));
        }
    }

    fn plain(&mut self, status: String) {
        if self.status != status {
            self.status.clone_from(&status);
            (self.on_step)(PullStep { status, sha256: None, bytes: None });
        }
    }

    fn reach(&mut self, done_bytes: u64, sha256: Option<String>) {
        self.told_bytes = done_bytes;
        self.status = format!("pulling {}", self.file_name);
        let (status, bytes) = (self.status.clone(), Some((done_bytes, self.total)));
        (self.on_step)(PullStep { status, sha256, bytes });
    }
}

/// Without the paths that an error of the store names: a caller is not the owner.
fn failed(error: &LibraryError) -> ShelfError {
    match error {
        LibraryError::UnknownModel { .. } | LibraryError::NoSource { .. } => {
            ShelfError::Unknown(error.to_string())
        }
        LibraryError::Busy { .. } => ShelfError::Failed("another download of it runs".into()),
        LibraryError::NoSpace { .. } => no_room(),
        LibraryError::Io { source, .. } if is_disk_full(source) => no_room(),
        LibraryError::Io { action, .. } => ShelfError::Failed(format!("cannot {action} it")),
        _ => ShelfError::Failed("it could not be got".into()),
    }
}

fn no_room() -> ShelfError {
    let message = "the disk is too full for it; remove a model or something else from that disk \
                   and ask again";
    ShelfError::NoRoom(message.to_owned())
}
