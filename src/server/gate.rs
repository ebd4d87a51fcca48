//! What every request passes on its way in, and every answer on its way out.
//!
//! ```text
//! in     name it -> Host, Origin -> header size -> model there? -> key, scope -> quota
//!        -> body within its bounds -> result cache -> the dialect, whose panics cost one request
//! out    result cache -> x-request-id -> its account: counted and logged at the last byte
//! ```

use std::hash::{BuildHasher, Hasher};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{MatchedPath, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http_body_util::BodyExt;
use serde_json::json;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

use super::access::{Access, check_exposure};
use super::account::{Account, Requests};
use super::cache::{CACHE_HEADER, CacheKey, CacheOptions, Kept, ResultCache, cache_key};
use super::forms::in_form_of;
use super::forward::Forward;
use super::intake::{Intake, drain};
use super::jobs::{Door, asks_for_job};
use super::keys::KeyFile;
use super::pairing::{Card, PairDesk, PairOffer};
use super::quota::{Held, Place};
use super::ring::{Key, KeyRing};
use super::settings::Settings;
use super::{ApiError, Caller, Server, ServerError};
use crate::base::limits::{
    HTTP_BODY_BYTES_MAX, HTTP_BODY_READ_MS, HTTP_HEADER_BYTES_MAX, REQUEST_ID_BYTES_MAX,
    RESULT_BYTES_MAX, SOCKETS_MAX,
};
use crate::jobs::Jobs;
use crate::power::Watch;
use crate::store::Store;
use crate::sync::Node;

/// The header with a request's name, in and out.
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// When a caller may ask again while the model loads.
const LOADING_RETRY: Duration = Duration::from_secs(1);

/// What stands before the service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GateOptions {
    /// Keys in the clear, as `--api-key` gives them.
    pub api_keys: Vec<String>,
    /// The state directory, whose file of keys counts as well.
    pub state_dir: Option<std::path::PathBuf>,
    /// Names under which the service may be called, beside addresses and localhost.
    pub allowed_hosts: Vec<String>,
    /// Pages that may call it, as `scheme://host:port`; `*` for all.
    pub cors_origins: Vec<String>,
    /// Bytes of a request's body.
    pub body_bytes_max: usize,
    /// Time in which a body has to come.
    pub body_read: Duration,
    /// The result cache.
    pub cache: CacheOptions,
}

impl Default for GateOptions {
    fn default() -> Self {
        GateOptions {
            api_keys: Vec::new(),
            state_dir: None,
            allowed_hosts: Vec::new(),
            cors_origins: Vec::new(),
            body_bytes_max: HTTP_BODY_BYTES_MAX,
            body_read: Duration::from_millis(HTTP_BODY_READ_MS),
            cache: CacheOptions::default(),
        }
    }
}

/// What stands before the service. Clones share it.
#[derive(Clone)]
pub struct Gate(Arc<Shared>);

struct Shared {
    server: Server,
    access: Access,
    intake: Intake,
    cache: ResultCache,
    requests: Arc<Requests>,
    is_ready: AtomicBool,
    /// Places for WebSockets.
    sockets: Arc<Semaphore>,
    /// Makes names of requests differ between two runs of the program.
    run: u32,
    n_request: AtomicU64,
    jobs: OnceLock<Door>,
    sync: OnceLock<Node>,
    sync_bell: Arc<Notify>,
    forward: OnceLock<Arc<dyn Forward>>,
    /// The dialects, with what is promised of their answers.
    dialects: OnceLock<Router>,
    pair_desk: OnceLock<PairDesk>,
    settings: OnceLock<Arc<dyn Settings>>,
}

impl Gate {
    /// A gate before `server`.
    ///
    /// # Errors
    /// If the file of keys cannot be read.
    pub fn new(server: Server, options: GateOptions) -> Result<Gate, ServerError> {
        let file = options.state_dir.as_deref().map(KeyFile::new);
        let hosts = options.allowed_hosts.iter().map(|host| host.to_ascii_lowercase()).collect();
        let run = std::collections::hash_map::RandomState::new().build_hasher().finish() as u32;
        Ok(Gate(Arc::new(Shared {
            server,
            access: Access {
                ring: KeyRing::new(&options.api_keys, file)?,
                hosts,
                origins: options.cors_origins,
            },
            intake: Intake::new(options.body_bytes_max, options.body_read),
            cache: ResultCache::new(options.cache),
            requests: Arc::default(),
            is_ready: AtomicBool::new(false),
            sockets: Arc::new(Semaphore::new(SOCKETS_MAX)),
            run,
            n_request: AtomicU64::new(0),
            jobs: OnceLock::new(),
            sync: OnceLock::new(),
            sync_bell: Arc::default(),
            forward: OnceLock::new(),
            dialects: OnceLock::new(),
            pair_desk: OnceLock::new(),
            settings: OnceLock::new(),
        })))
    }

    /// Refuses an address that others can reach while no request needs a key.
    ///
    /// # Errors
    /// With the command that makes a key.
    pub fn check_exposure(&self, address: std::net::SocketAddr) -> Result<(), ServerError> {
        check_exposure(address, &self.0.access.ring)
    }

    /// Shows the configuration from now on, and lets it be changed.
    pub fn keep_settings(&self, settings: Arc<dyn Settings>) {
        let _ = self.0.settings.set(settings);
    }

    pub(super) fn settings(&self) -> Option<&Arc<dyn Settings>> {
        self.0.settings.get()
    }

    /// Says how the board stands from now on, and lets a profile be chosen.
    pub fn keep_power(&self, watch: Arc<Watch>) {
        let _ = self.server().0.power.set(watch);
    }

    /// Who governs heat and power, if somebody does.
    pub(super) fn power(&self) -> Option<&Arc<Watch>> {
        self.server().0.power.get()
    }

    /// The profile in force and why it does not go faster, in a line.
    pub fn power_line(&self) -> Option<String> {
        let standing = self.power()?.standing();
        let decision = standing.decision?;
        let why: Vec<&str> = decision.causes.iter().map(|cause| cause.words()).collect();
        let name = standing.profile.name();
        let end = if why.is_empty() { String::new() } else { format!(", {}", why.join(", ")) };
        Some(format!("profile {name}{end}"))
    }

    /// Lets those who run jobs look again whether they may.
    pub fn wake_jobs(&self) {
        if let Some(door) = self.jobs() {
            door.tell();
        }
    }

    /// Takes jobs from now on; a router that is made afterwards answers for them.
    pub fn keep_jobs(&self, jobs: Jobs) {
        let _ = self.0.jobs.set(Door::new(jobs));
    }

    /// Syncs with peers from now on.
    pub fn keep_sync(&self, sync: Node) {
        let _ = self.0.sync.set(sync);
    }

    /// The node that syncs, if the service keeps a store.
    pub(super) fn sync(&self) -> Option<&Node> {
        self.0.sync.get()
    }

    /// Whether the key of this SHA-256 was taken back.
    pub(super) fn is_revoked(&self, sha256: &[u8; 32]) -> bool {
        self.0.access.ring.is_revoked(sha256)
    }

    /// Takes a key of the file back, if there is one of this name.
    pub(super) fn revoke_key(&self, name: &str) {
        self.0.access.ring.revoke(name);
    }

    /// Wakes whoever calls peers.
    pub(super) fn wake_sync(&self) {
        self.0.sync_bell.notify_one();
    }

    /// What wakes them.
    pub(super) fn sync_bell(&self) -> Arc<Notify> {
        Arc::clone(&self.0.sync_bell)
    }

    /// Lets other machines pair by the codes of `state_dir` from now on, which are told what stands
    /// on `card`.
    pub fn pair_with(&self, state_dir: &std::path::Path, store: Store, card: Card) {
        let (offer, keys) = (PairOffer::new(state_dir), KeyFile::new(state_dir));
        let _ = self.0.pair_desk.set(PairDesk::new(offer, keys, store, card));
    }

    /// Says where the service listens.
    pub fn listens_at(&self, address: std::net::SocketAddr) {
        if let Some(desk) = self.pair_desk() {
            desk.listens_at(address);
        }
    }

    pub(super) fn pair_desk(&self) -> Option<&PairDesk> {
        self.0.pair_desk.get()
    }

    /// Asks for keys, also while there is none, as before the first machine is paired.
    pub fn require_keys(&self) {
        self.0.access.ring.require();
    }

    /// Asks `forward` from now on where requests are answered; a router that is made afterwards
    /// does so.
    pub fn forward_with(&self, forward: Arc<dyn Forward>) {
        let _ = self.0.forward.set(forward);
    }

    /// Says who answers messages of WebSockets that are whole requests.
    pub(super) fn answer_messages(&self, dialects: Router) {
        let _ = self.0.dialects.set(dialects);
    }

    pub(super) fn dialects(&self) -> Option<Router> {
        self.0.dialects.get().cloned()
    }

    /// Who decides where requests are answered, if it is not always here.
    pub(super) fn forward(&self) -> Option<&Arc<dyn Forward>> {
        self.0.forward.get()
    }

    /// Where jobs go, if the service keeps any.
    pub(super) fn jobs(&self) -> Option<&Door> {
        self.0.jobs.get()
    }

    pub(super) fn server(&self) -> &Server {
        &self.0.server
    }

    /// Pages that may call the service.
    pub(super) fn origins(&self) -> &[String] {
        &self.0.access.origins
    }

    pub(super) fn requests(&self) -> &Requests {
        &self.0.requests
    }

    /// Answers found in the result cache, and looked for in vain.
    pub(super) fn cache_counts(&self) -> (u64, u64) {
        self.0.cache.counts()
    }

    /// Whether the first model is there; once it was, it stays.
    fn is_ready(&self) -> bool {
        if self.0.is_ready.load(Ordering::Relaxed) {
            return true;
        }
        let host = &self.0.server.0.host;
        let is_ready = host.engines().iter().any(|(name, _)| name == host.default_name());
        self.0.is_ready.fetch_or(is_ready, Ordering::Relaxed);
        is_ready
    }

    /// llama.cpp's words while the first model loads, and how far it is.
    fn still_loading(&self) -> ApiError {
        let mut error = ApiError::unavailable("Loading model", LOADING_RETRY);
        if let Some(loading) = self.0.server.0.host.loading() {
            let (done_bytes, total_bytes) = loading.progress.read();
            let progress = json!({"done_bytes": done_bytes, "total_bytes": total_bytes});
            error.extra.insert("progress".into(), progress);
        }
        error
    }

    /// The caller's name for a request if it is a sound one, else one of ours.
    fn request_id(&self, headers: &HeaderMap) -> String {
        let is_sound = |id: &&str| {
            let is_plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
            !id.is_empty() && id.len() <= REQUEST_ID_BYTES_MAX && id.bytes().all(is_plain)
        };
        let given = headers.get(REQUEST_ID).and_then(|id| id.to_str().ok()).filter(is_sound);
        let n = self.0.n_request.fetch_add(1, Ordering::Relaxed);
        given.map_or_else(|| format!("req-{:08x}-{n:x}", self.0.run), str::to_owned)
    }

    /// Everything before the body.
    fn admit(
        &self,
        parts: &Parts,
        route: Option<&str>,
        account: &mut Account,
    ) -> Result<Caller, ApiError> {
        let access = &self.0.access;
        access.check_host(&parts.uri, &parts.headers)?;
        access.check_origin(&parts.uri, &parts.headers)?;
        check_header_size(parts)?;
        if !self.is_ready() && route != Some("/") {
            return Err(self.still_loading());
        }
        let key = access.check_key(&parts.method, route, &parts.headers)?;
        let Some(key) = key else {
            let is_known = access.knows(&parts.headers);
            return Ok(Caller { is_known, ..Caller::default() });
        };
        account.tenant = key.name.clone();
        let place = key.quota.admit(Instant::now()).map_err(|retry| spent(&key, retry))?;
        account.place = Some(Arc::new(place));
        let held = Held { place: account.place.clone(), room: None };
        let (tenant, priority) = key.on_behalf(&parts.headers);
        Ok(Caller { tenant, priority, held, is_known: true, ..Caller::default() })
    }

    /// Whether whoever sent this header may know what is here.
    pub(super) fn knows(&self, headers: &HeaderMap) -> bool {
        self.0.access.knows(headers)
    }

    /// A place for one more WebSocket.
    pub(super) fn socket_place(&self) -> Result<OwnedSemaphorePermit, ApiError> {
        let busy = "too many WebSockets; try again in a second";
        let place = Arc::clone(&self.0.sockets).try_acquire_owned();
        place.map_err(|_| ApiError::unavailable(busy, LOADING_RETRY))
    }

    /// Admits one message of a connection that was let in, as if it were a request of its own: its
    /// key may have been revoked since, and its quota spent. A place among those at once is taken
    /// by [`Message::begin`], for some messages are about a text that has one.
    pub(super) fn admit_message(
        &self,
        headers: &HeaderMap,
        route: &str,
        n_bytes: usize,
    ) -> Result<Message, ApiError> {
        let key = self.0.access.check_key(&Method::GET, Some(route), headers)?;
        let room = Some(Arc::new(self.0.intake.reserve(n_bytes)?));
        if let Some(key) = &key {
            key.quota.spend(Instant::now()).map_err(|retry| spent(key, retry))?;
        }
        let ranks = key.as_ref().map(|key| (key.tenant, key.priority));
        let (tenant, priority) = ranks.unwrap_or_default();
        let request_id = self.request_id(&HeaderMap::new());
        let held = Held { place: None, room };
        let caller = Caller { tenant, priority, request_id, held, is_known: true };
        Ok(Message { caller, key })
    }

    /// The whole way of a request that was let in.
    async fn pass(&self, mut caller: Caller, id: &str, request: Request, next: Next) -> Response {
        let (mut parts, body) = request.into_parts();
        caller.request_id = id.to_owned();
        let tenant = caller.tenant;
        // A connection that becomes a WebSocket has no body.
        if parts.method == Method::GET && parts.headers.contains_key(header::UPGRADE) {
            parts.extensions.insert(caller);
            return next.run(Request::from_parts(parts, body)).await;
        }
        let taken = match self.0.intake.read(&parts.headers, body).await {
            Ok(taken) => taken,
            Err(error) => return error.into_response(),
        };
        caller.held.room = taken.room.map(Arc::new);
        parts.extensions.insert(caller);
        let key = match parts.extensions.get::<MatchedPath>() {
            Some(route) if parts.method == Method::POST && !asks_for_job(&parts.headers) => {
                cache_key(&parts.headers, tenant, route.as_str(), &taken.bytes)
            }
            _ => None,
        };
        if let Some(kept) = key.and_then(|key| self.0.cache.get(&key, Instant::now())) {
            return found(kept);
        }
        let response = next.run(Request::from_parts(parts, Body::from(taken.bytes))).await;
        match key {
            Some(key) => self.keep(key, response).await,
            None => response,
        }
    }

    /// Keeps an answer for those who ask again.
    async fn keep(&self, key: CacheKey, response: Response) -> Response {
        let (mut parts, body) = response.into_parts();
        parts.headers.insert(CACHE_HEADER, HeaderValue::from_static("miss"));
        let is_small = hyper::body::Body::size_hint(&body)
            .exact()
            .is_some_and(|n| n <= RESULT_BYTES_MAX as u64);
        let content_type = parts.headers.get(header::CONTENT_TYPE).cloned();
        let Some(content_type) = content_type.filter(|_| is_small && parts.status == 200) else {
            return Response::from_parts(parts, body);
        };
        let Ok(body) = body.collect().await.map(|collected| collected.to_bytes()) else {
            return ApiError::internal("the answer broke off").into_response();
        };
        self.0.cache.put(key, Kept { content_type, body: body.clone() }, Instant::now());
        Response::from_parts(parts, Body::from(body))
    }
}

/// A message that was let in.
pub(super) struct Message {
    /// Who sent it.
    pub caller: Caller,
    key: Option<Arc<Key>>,
}

impl Message {
    /// Takes a place in the key's quota for what its caller is about to begin.
    pub fn begin(&mut self) -> Result<(), ApiError> {
        if let Some(key) = &self.key {
            let place: Place = key.quota.enter().map_err(|retry| spent(key, retry))?;
            self.caller.held.place = Some(Arc::new(place));
        }
        Ok(())
    }
}

fn spent(key: &Key, retry_after: Duration) -> ApiError {
    let message = format!("the key {:?} has spent its quota", key.name);
    let error = ApiError::new(StatusCode::TOO_MANY_REQUESTS, "rate_limit_error", message);
    ApiError { retry_after: Some(retry_after), ..error }
}

impl From<Server> for Gate {
    fn from(server: Server) -> Gate {
        Gate::new(server, GateOptions::default()).expect("without a file of keys none can fail")
    }
}

/// The layer itself.
pub(super) async fn pass_gate(State(gate): State<Gate>, request: Request, next: Next) -> Response {
    let id = gate.request_id(request.headers());
    let route = request.extensions().get::<MatchedPath>().cloned();
    let route = route.as_ref().map(MatchedPath::as_str);
    let mut account = Account::open(&gate.0.requests, request.method(), route, &id);
    let (parts, body) = request.into_parts();
    let mut response = match gate.admit(&parts, route, &mut account) {
        Ok(caller) => gate.pass(caller, &id, Request::from_parts(parts, body), next).await,
        Err(error) => {
            drain(&parts.headers, body).await;
            error.into_response()
        }
    };
    response = in_form_of(route, &id, response);
    if let Ok(id) = HeaderValue::from_str(&id) {
        response.headers_mut().insert(REQUEST_ID, id);
    }
    account.follow(response)
}

/// A kept answer.
fn found(kept: Kept) -> Response {
    let hit = HeaderValue::from_static("hit");
    let cache = HeaderName::from_static(CACHE_HEADER);
    let headers = [(header::CONTENT_TYPE, kept.content_type), (cache, hit)];
    (headers, Bytes::clone(&kept.body)).into_response()
}

fn check_header_size(parts: &Parts) -> Result<(), ApiError> {
    let fields = parts.headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 4);
    let line = parts.uri.path_and_query().map_or(0, |path| path.as_str().len());
    if fields.sum::<usize>() + line <= HTTP_HEADER_BYTES_MAX {
        return Ok(());
    }
    let message = format!("the header has more than {HTTP_HEADER_BYTES_MAX} bytes");
    let status = StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE;
    Err(ApiError::new(status, "invalid_request_error", message))
}
