//! The section `server` of the configuration, and what each part of the service makes of it.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{CacheOptions, GateOptions, ListenOptions, LogFormat, ServeOptions};
use crate::base::limits::{
    HTTP_BODIES_BYTES_MAX, HTTP_BODY_BYTES_MAX, HTTP_BODY_READ_MS, HTTP_CONNECTIONS_MAX,
    HTTP_HEADER_READ_MS, HTTP_WRITE_STALL_MS, KEEP_ALIVE_S_MAX, LISTEN_PORTS_MAX, PARALLEL_MAX,
    RESULT_CACHE_ENTRIES, RESULT_CACHE_S,
};
use crate::hosting::FOREVER;
use crate::inference::{Pooling, SpeculationOptions};

/// The section `server`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ServerConfig {
    /// Address or name to listen on.
    pub host: String,
    /// Port; 0 takes a free one.
    pub port: u16,
    /// Further ports of the same address, which answer the same.
    pub also_ports: Vec<u16>,
    /// Sequences that run at once; they share `model.n_ctx`.
    pub n_parallel: usize,
    /// Names of the model, the first of which is shown.
    pub alias: Vec<String>,
    /// Most tokens of an answer where a request names no number.
    pub n_predict: Option<usize>,
    /// A small model of the same vocabulary that guesses for the first one: a name in the store or
    /// a path.
    pub model_draft: Option<String>,
    /// Most tokens guessed at once; 0 guesses none.
    pub n_draft_max: usize,
    /// Fewer guesses of a draft model than this are none.
    pub n_draft_min: usize,
    /// A draft model stops at a guess that is less likely than this.
    pub draft_p_min: f32,
    /// Whether embeddings are answered.
    pub embeddings: bool,
    /// How an encoder's rows become one vector; unset takes the model's own way.
    pub pooling: Option<String>,
    /// Whether `/slots` answers.
    pub slots: bool,
    /// Whether `/metrics` answers.
    pub metrics: bool,
    /// Whether `POST /props` may change defaults.
    pub props: bool,
    /// Where slots are saved.
    pub slot_save_dir: Option<PathBuf>,
    /// A full context is shifted where a request says nothing.
    pub context_shift: bool,
    /// A chat template in place of the model's.
    pub chat_template: Option<String>,
    /// A file with one.
    pub chat_template_file: Option<PathBuf>,
    /// How reasoning is told apart from the answer.
    pub reasoning_format: String,
    /// Files of LoRA adapters.
    pub lora: Vec<PathBuf>,
    /// A file of keys in the clear, one on a line.
    pub api_key_file: Option<PathBuf>,
    /// Whether the service speaks TLS: by the certificate below, or by one that it makes once.
    pub tls: bool,
    /// The owner's certificate, PEM, with those that lead to its authority behind it.
    pub tls_cert: Option<PathBuf>,
    /// Its private key, PEM.
    pub tls_key: Option<PathBuf>,
    /// Names under which the service may be called, beside addresses and localhost.
    pub allowed_hosts: Vec<String>,
    /// Pages that may call it.
    pub cors_origins: Vec<String>,
    /// Connections that are served at once.
    pub n_connection_max: usize,
    /// Bytes of a request's body.
    pub body_bytes_max: usize,
    /// Time in which a header has to come, and that a kept connection may be idle.
    pub header_read_ms: u64,
    /// Time in which a body has to come.
    pub body_read_ms: u64,
    /// Time without a byte taken after which a reader counts as gone.
    pub write_stall_ms: u64,
    /// Answers that the result cache keeps.
    pub cache_entries: usize,
    /// Seconds that it keeps them.
    pub cache_s: u64,
    /// Seconds that a model beside the first stays when nobody uses it; -1 for ever.
    pub keep_alive_s: i64,
    /// Seconds that requests in flight get when the service stops.
    pub stop_grace_s: u64,
    /// Events as `text`, `json` or `journal`; `auto` takes the journal where stderr goes there.
    pub log_format: LogFormat,
    /// `error`, `warn`, `info`, `debug` or `trace`.
    pub log_level: String,
}

impl Default for ServerConfig {
    fn default() -> ServerConfig {
        ServerConfig {
            host: "127.0.0.1".to_owned(),
            port: 8080,
            also_ports: Vec::new(),
            n_parallel: 4,
            alias: Vec::new(),
            n_predict: None,
            model_draft: None,
            n_draft_max: SpeculationOptions::default().n_draft_max,
            n_draft_min: SpeculationOptions::default().n_draft_min,
            draft_p_min: SpeculationOptions::default().p_min,
            embeddings: false,
            pooling: None,
            slots: true,
            metrics: false,
            props: false,
            slot_save_dir: None,
            context_shift: false,
            chat_template: None,
            chat_template_file: None,
            reasoning_format: "auto".to_owned(),
            lora: Vec::new(),
            api_key_file: None,
            tls: false,
            tls_cert: None,
            tls_key: None,
            allowed_hosts: Vec::new(),
            cors_origins: Vec::new(),
            n_connection_max: HTTP_CONNECTIONS_MAX,
            body_bytes_max: HTTP_BODY_BYTES_MAX,
            header_read_ms: HTTP_HEADER_READ_MS,
            body_read_ms: HTTP_BODY_READ_MS,
            write_stall_ms: HTTP_WRITE_STALL_MS,
            cache_entries: RESULT_CACHE_ENTRIES,
            cache_s: RESULT_CACHE_S,
            keep_alive_s: 300,
            stop_grace_s: 30,
            log_format: LogFormat::Auto,
            log_level: "info".to_owned(),
        }
    }
}

impl ServerConfig {
    /// The first value out of range: its key and what is wrong.
    ///
    /// # Errors
    /// See above.
    pub fn check(&self) -> Result<(), (&'static str, String)> {
        let wrong = |key, words: &str| Err((key, words.to_owned()));
        if !(1..=PARALLEL_MAX).contains(&self.n_parallel) {
            return Err(("server.n_parallel", format!("must be 1 to {PARALLEL_MAX}")));
        }
        if self.also_ports.len() > LISTEN_PORTS_MAX {
            return wrong("server.also_ports", "must be at most 8 ports");
        }
        if self.n_connection_max == 0 {
            return wrong("server.n_connection_max", "must be at least 1");
        }
        if self.body_bytes_max > HTTP_BODIES_BYTES_MAX {
            let message = format!("must be at most {HTTP_BODIES_BYTES_MAX}");
            return Err(("server.body_bytes_max", message));
        }
        if self.header_read_ms == 0 || self.body_read_ms == 0 || self.write_stall_ms == 0 {
            return wrong("server.header_read_ms", "this and other times must be at least 1");
        }
        if self.tls_cert.is_some() != self.tls_key.is_some() {
            return wrong(
                "server.tls_cert",
                "a certificate needs server.tls_key, and that needs it",
            );
        }
        if !(0.0..=1.0).contains(&self.draft_p_min) {
            return wrong("server.draft_p_min", "must be 0 to 1");
        }
        if !(-1..=KEEP_ALIVE_S_MAX as i64).contains(&self.keep_alive_s) {
            let message = format!("must be -1 to {KEEP_ALIVE_S_MAX}");
            return Err(("server.keep_alive_s", message));
        }
        if self.log_level().is_none() {
            return wrong("server.log_level", "use error, warn, info, debug or trace");
        }
        if !["none", "auto", "deepseek", "deepseek-legacy"].contains(&&*self.reasoning_format) {
            return wrong("server.reasoning_format", "use none, auto or deepseek");
        }
        if self.pooling.is_some() && self.pooling().is_none() {
            return wrong("server.pooling", "use none, mean, cls, last or rank");
        }
        Ok(())
    }

    /// Whether the service speaks TLS.
    pub fn speaks_tls(&self) -> bool {
        self.tls || self.tls_cert.is_some()
    }

    /// How events are chosen.
    pub fn log_level(&self) -> Option<tracing::Level> {
        self.log_level.parse().ok()
    }

    /// How long a model beside the first stays.
    pub fn keep_alive(&self) -> Duration {
        u64::try_from(self.keep_alive_s).map_or(FOREVER, Duration::from_secs)
    }

    /// How connections are treated.
    pub fn listen_options(&self) -> ListenOptions {
        ListenOptions {
            n_connection_max: self.n_connection_max,
            header_read: Duration::from_millis(self.header_read_ms),
            write_stall: Duration::from_millis(self.write_stall_ms),
        }
    }

    /// What stands before the service; `api_keys` are in the clear.
    pub fn gate_options(&self, api_keys: Vec<String>, state_dir: PathBuf) -> GateOptions {
        let keep = Duration::from_secs(self.cache_s);
        GateOptions {
            api_keys,
            state_dir: Some(state_dir),
            allowed_hosts: self.allowed_hosts.clone(),
            cors_origins: self.cors_origins.clone(),
            body_bytes_max: self.body_bytes_max,
            body_read: Duration::from_millis(self.body_read_ms),
            cache: CacheOptions { n_entry_max: self.cache_entries, keep },
        }
    }

    /// How the service behaves, with this chat template in place of the model's.
    pub fn serve_options(&self, chat_template: Option<String>) -> ServeOptions {
        ServeOptions {
            n_predict: self.n_predict,
            serves_embeddings: self.embeddings,
            pooling: self.pooling(),
            shows_slots: self.slots,
            shows_metrics: self.metrics,
            allows_props: self.props,
            slot_save_dir: self.slot_save_dir.clone(),
            context_shift: self.context_shift,
            chat_template,
            reasoning_format: self.reasoning_format.clone(),
            n_draft_max: self.n_draft_max,
            n_draft_min: self.n_draft_min,
            draft_p_min: self.draft_p_min,
        }
    }

    fn pooling(&self) -> Option<Pooling> {
        Some(match self.pooling.as_deref()? {
            "none" => Pooling::None,
            "mean" => Pooling::Mean,
            "cls" => Pooling::Cls,
            "last" => Pooling::Last,
            "rank" => Pooling::Rank,
            _ => return None,
        })
    }
}
