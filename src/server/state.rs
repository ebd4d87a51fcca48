//! What every handler shares: the models, the options, the caller.

use std::convert::Infallible;
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use axum::extract::FromRequestParts;
use axum::http::request::Parts;

use super::autocoder::{Contexts, Notes};
use super::live::Texts;
use super::quota::Held;
use super::shelf::Shelf;
use super::tabby::Events;
use crate::hosting::Host;
use crate::inference::{Pooling, Priority, SpeculationOptions, TenantId};
use crate::power::Watch;

/// How the service behaves.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ServeOptions {
    /// Most tokens of an answer where a request names no number; `None` for as many as fit.
    pub n_predict: Option<usize>,
    /// Whether embeddings were asked for at start.
    pub serves_embeddings: bool,
    /// How a model's rows become one vector, where not in its own way.
    pub pooling: Option<Pooling>,
    /// Whether `/slots` answers.
    pub shows_slots: bool,
    /// Whether `/metrics` answers.
    pub shows_metrics: bool,
    /// Whether `POST /props` may change defaults.
    pub allows_props: bool,
    /// Where slots are saved; `None` refuses.
    pub slot_save_dir: Option<std::path::PathBuf>,
    /// A full context is shifted where a request says nothing.
    pub context_shift: bool,
    /// A chat template in place of the model's.
    pub chat_template: Option<String>,
    /// How reasoning is told apart from the answer: `none`, `deepseek` or `auto`.
    pub reasoning_format: String,
    /// Most tokens guessed at once.
    pub n_draft_max: usize,
    /// Fewer guesses of a draft model than this are none.
    pub n_draft_min: usize,
    /// Probability below which a draft model stops.
    pub draft_p_min: f32,
}

impl ServeOptions {
    /// How a request is guessed for that says nothing, and the most that it can ask for.
    pub fn speculation(&self) -> SpeculationOptions {
        SpeculationOptions {
            n_draft_max: self.n_draft_max,
            n_draft_min: self.n_draft_min,
            p_min: self.draft_p_min,
            prediction: Vec::new(),
        }
    }
}

/// The service's state. Clones share it.
#[derive(Clone)]
pub struct Server(pub Arc<Shared>);

/// See [`Server`].
pub struct Shared {
    /// The models.
    pub host: Host,
    /// How the service behaves.
    pub options: ServeOptions,
    /// When it started.
    pub started: Instant,
    /// What became of the context chunks of recent tasks.
    pub(super) contexts: Contexts,
    /// Notes about answers that no store keeps.
    pub(super) notes: Notes,
    /// Texts that are written over WebSockets.
    pub(super) texts: Texts,
    /// What became of completions, as editors tell.
    pub(super) events: Events,
    /// Models beside those of the host.
    pub(super) shelf: Option<Arc<dyn Shelf>>,
    /// Who governs heat and power.
    pub(super) power: OnceLock<Arc<Watch>>,
}

/// Who calls; the outer layers put it into a request's extensions.
#[derive(Clone, Debug, Default)]
pub struct Caller {
    /// Whose key it is; 0 without keys.
    pub tenant: TenantId,
    /// The highest class that the key may ask for.
    pub priority: Priority,
    /// The request's name in logs and timelines.
    pub request_id: String,
    /// It showed a key, or none is needed here.
    pub is_known: bool,
    /// What the request takes while anybody works for it.
    pub(super) held: Held,
}

/// A request that came past the outer layers is nobody's.
impl<S: Send + Sync> FromRequestParts<S> for Caller {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Caller, Infallible> {
        Ok(parts.extensions.get::<Caller>().cloned().unwrap_or_default())
    }
}

impl Server {
    /// A service over `host`.
    pub fn new(host: Host, options: ServeOptions) -> Server {
        Server::with_shelf(host, options, None)
    }

    /// A service over `host` that shows a shelf of models, and gets and deletes them for an
    /// administrator.
    pub fn with_shelf(host: Host, options: ServeOptions, shelf: Option<Arc<dyn Shelf>>) -> Server {
        Server(Arc::new(Shared {
            host,
            options,
            started: Instant::now(),
            contexts: Contexts::default(),
            notes: Notes::default(),
            texts: Texts::default(),
            events: Events::default(),
            shelf,
            power: OnceLock::new(),
        }))
    }
}
