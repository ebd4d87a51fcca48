//! A model on a host of this process, with a script in the place of its weights where a test wants
//! to say what it says.

use jetforge::hosting::{Host, ModelEntry};
use jetforge::inference::{
    Engine, EngineOptions, LoadOptions, Model, ModelSource, SamplerOptions, Script,
};

/// What is hosted.
pub struct Hosted {
    /// Its name in requests.
    pub name: &'static str,
    /// Other names of it.
    pub aliases: &'static [&'static str],
    /// Where it comes from; read once, so the file may go afterwards.
    pub source: ModelSource,
    /// Positions of a sequence; the model's own if unset.
    pub n_ctx: Option<u32>,
    /// Sequences at once.
    pub n_parallel: usize,
    /// What it says in place of its weights.
    pub script: Option<Script>,
}

impl Hosted {
    /// Loads it, on one thread. A panic of its engine is one of the test.
    pub fn start(self) -> Host {
        let load = LoadOptions {
            n_ctx: self.n_ctx,
            n_parallel: Some(self.n_parallel),
            n_threads: Some(1),
            ..LoadOptions::default()
        };
        let model = Model::load(&self.source, &load).unwrap();
        let model = match self.script {
            Some(script) => model.with_script(script),
            None => model,
        };
        let options = EngineOptions { n_parallel: self.n_parallel, ..EngineOptions::default() };
        let entry = ModelEntry {
            name: self.name.to_owned(),
            aliases: self.aliases.iter().map(|&alias| alias.to_owned()).collect(),
            source: self.source,
            load,
            engine: options.clone(),
            sampler: SamplerOptions::default(),
            keep_alive: None,
        };
        let engine = Engine::start(model, options, Box::new(|reason| panic!("{reason}"))).unwrap();
        Host::single(entry, engine)
    }
}
