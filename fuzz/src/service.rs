//! The service over a scripted model, asked in this process.

use axum::Router;
use axum::body::Body;
use axum::http::Request;
use http_body_util::BodyExt;
use hyper::service::Service as _;
use hyper_util::service::TowerToHyperService;
use jetforge::hosting::{Host, ModelEntry};
use jetforge::inference::{
    Engine, EngineOptions, LoadOptions, Model, ModelSource, SamplerOptions, TokenId,
};
use jetforge::server::{ServeOptions, Server, router};
use tokio::runtime::{Builder, Runtime};

/// Paths that take a body.
pub const PATHS: &[&str] = &[
    "/completion",
    "/infill",
    "/tokenize",
    "/detokenize",
    "/apply-template",
    "/embedding",
    "/rerank",
    "/lora-adapters",
    "/slots/0?action=save",
    "/slots/0?action=erase",
    "/v1/completions",
    "/v1/chat/completions",
    "/v1/embeddings",
    "/generate",
    "/refactor",
    "/explain",
    "/test",
    "/feedback",
    "/v1/messages",
    "/v1/messages/count_tokens",
    "/api/generate",
    "/api/chat",
    "/api/embed",
    "/api/embeddings",
    "/api/show",
    "/v1/events",
];

/// What comes after a history; the second value is the token that ends an answer.
pub type Say = Box<dyn Fn(&[TokenId], TokenId) -> TokenId + Send>;

/// A service, and what runs it.
pub struct Service {
    router: Router,
    runtime: Runtime,
    /// Tokens of its vocabulary.
    pub n_vocab: u32,
}

impl Service {
    /// A service whose model says this.
    pub fn new(say: Say) -> Service {
        let load = LoadOptions {
            n_ctx: Some(256),
            n_parallel: Some(2),
            n_threads: Some(1),
            ..LoadOptions::default()
        };
        let model = Model::load(&ModelSource::Embedded, &load).expect("the embedded model loads");
        let end = model.tokenizer().special().eos.expect("the embedded model has an end");
        let n_vocab = model.tokenizer().n_vocab() as u32;
        let model = model.with_script(Box::new(move |history| say(history, end)));
        let engine = EngineOptions { n_parallel: 2, ..EngineOptions::default() };
        let entry = ModelEntry {
            name: "default".into(),
            aliases: Vec::new(),
            source: ModelSource::Embedded,
            load,
            engine: engine.clone(),
            sampler: SamplerOptions::default(),
            keep_alive: None,
        };
        let panic = Box::new(|reason| panic!("{reason}"));
        let engine = Engine::start(model, engine, panic).expect("a thread starts");
        let options = ServeOptions {
            n_predict: Some(16),
            shows_slots: true,
            allows_props: true,
            slot_save_dir: Some(std::env::temp_dir()),
            ..ServeOptions::default()
        };
        let router = router(Server::new(Host::single(entry, engine), options));
        let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
        Service { router, runtime, n_vocab }
    }

    /// The status and the text that a body comes back with.
    pub fn post(&self, path: &str, body: &[u8]) -> (u16, String) {
        let request = Request::builder().method("POST").uri(path);
        let request = request.header("content-type", "application/json");
        let request = request.body(Body::from(body.to_vec())).expect("a request");
        self.runtime.block_on(async {
            let service = TowerToHyperService::new(self.router.clone());
            let response = service.call(request).await.unwrap_or_else(|never| match never {});
            let status = response.status().as_u16();
            let bytes = response.into_body().collect().await.expect("a body in memory").to_bytes();
            (status, String::from_utf8(bytes.to_vec()).expect("answers are UTF-8"))
        })
    }
}
