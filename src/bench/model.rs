//! What a model does on this machine: prefill, decode, several at once, first tokens, loading.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Instant;

use super::BenchError;
use super::ask::{self, request, run, run_together};
use super::disk;
use super::edit;
use super::energy::{self, Energy};
use super::figures::{Figure, Unit, percentile};
use super::limits::Limits;
use super::predicted::{Predicted, Work};
use super::tasks::Task;
use crate::base::host;
use crate::inference::{
    Engine, EngineOptions, LoadOptions, Model, ModelInfo, ModelSource, Request, plan_memory,
};
use crate::power::{Compute, Sensors};

/// Tokens of a prompt whose time to the first token is measured, and those that come new.
const TTFT_PROMPT: usize = 512;
pub const TTFT_NEW: usize = 16;
/// Tokens of each prompt where several answers are written at the same time.
const N_STREAM_PROMPT: usize = 8;

/// What is measured.
#[derive(Clone, Debug, PartialEq)]
pub struct Tests {
    /// Lengths of prompts whose prefill is measured.
    pub n_prompt: Vec<usize>,
    /// Tokens that are generated.
    pub n_generate: Vec<usize>,
    /// Tokens before those.
    pub n_depth: Vec<usize>,
    /// Answers written at the same time.
    pub n_streams: Vec<usize>,
    /// Whether the time to the first token is measured.
    pub ttft: bool,
    /// Whether loading is measured.
    pub load: bool,
    /// Whether an edit is measured, with guesses and without.
    pub edit: bool,
    /// Whole tasks.
    pub tasks: Vec<Task>,
    /// Rounds after one that warms up.
    pub n_rounds: usize,
    /// Where on the machine things are.
    pub rooms: Rooms,
}

/// Where on the machine things are that tests of a model need.
#[derive(Clone, Debug, PartialEq)]
pub struct Rooms {
    /// The root of the tree in which sysfs has the machine's sensors.
    pub root: PathBuf,
    /// A folder for pages on the disk; without one no first token is measured whose prefix comes
    /// from there.
    pub disk: Option<PathBuf>,
}

impl Default for Rooms {
    fn default() -> Rooms {
        Rooms { root: PathBuf::from("/"), disk: None }
    }
}

impl Default for Tests {
    fn default() -> Tests {
        Tests {
            n_prompt: vec![512],
            n_generate: vec![128],
            n_depth: vec![0, 2048],
            n_streams: vec![2, 4],
            ttft: true,
            load: true,
            edit: true,
            tasks: Vec::new(),
            n_rounds: 5,
            rooms: Rooms::default(),
        }
    }
}

impl Tests {
    /// Positions for the longest of them, and one more: a full context ends an answer.
    fn n_ctx(&self) -> usize {
        let longest = |lens: &[usize]| lens.iter().copied().max().unwrap_or(0);
        let prefill = longest(&self.n_prompt) + 1;
        let before = if self.n_streams.is_empty() { 1 } else { N_STREAM_PROMPT };
        let decode = longest(&self.n_depth).max(before) + longest(&self.n_generate) + 1;
        let ttft = if self.ttft { TTFT_PROMPT + TTFT_NEW + 1 } else { 0 };
        let tasks = self.tasks.iter().map(|task| task.n_prompt + task.n_predict);
        1 + tasks.chain([prefill, decode, ttft]).max().unwrap_or(0)
    }
}

/// What a model is, for those who read the figures.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelFacts {
    /// Name for people.
    pub name: String,
    /// Bytes of its file.
    pub file_bytes: u64,
    /// Weights.
    pub n_params: u64,
    /// What computed, `cpu (avx2, 4 threads)` for example.
    pub backend: String,
}

/// Measures a model; `progress` hears what is done next.
///
/// # Errors
/// If the model cannot be loaded or a test not be run.
pub fn measure(
    source: &ModelSource,
    load: &LoadOptions,
    tests: &Tests,
    limits: &Limits,
    progress: &mut dyn FnMut(&str),
) -> Result<(ModelFacts, Vec<Figure>, Vec<String>), BenchError> {
    let mut notes = Vec::new();
    let load = room(source, load, tests, &mut notes)?;
    let energy = Energy::open(&tests.rooms.root, &mut notes);
    let mut figures = Vec::from_iter(energy.idle());
    host::reset_peak_resident();
    if tests.load {
        progress("load");
        figures.extend(load_times(source, &load, tests.n_rounds, limits)?);
    }
    let model = Model::load(source, &load)?;
    let n_parallel = load.n_parallel.unwrap_or(1);
    let options = EngineOptions { n_parallel, ..EngineOptions::default() };
    let engine = Engine::start(model, options, Box::new(|_| {}))?;
    let cost = Cost::of(engine.info(), n_parallel);
    let is_nano = Sensors::open(&tests.rooms.root).board().is_nano();
    let predicted =
        (is_all_there(&engine) && is_nano).then(|| Work::of_file(engine.info().gguf()).predict());
    let limits = limits_of(&engine, limits, is_nano, &mut notes);
    let compute = if is_all_there(&engine) { Compute::Gpu } else { Compute::Both };
    let energy = energy.of_work(compute, &mut notes);
    let bench = Bench {
        engine: &engine,
        tests,
        limits,
        cost,
        predicted,
        energy: &energy,
        notes: &mut notes,
    };
    figures.extend(bench.run(progress)?);
    let peak = host::peak_resident_bytes() as f64 / f64::from(1 << 20);
    figures.push(Figure::new("peak memory", Unit::Mebibytes, vec![peak]));
    let info = engine.info();
    let facts = ModelFacts {
        name: info.name().to_owned(),
        file_bytes: info.gguf().file_bytes(),
        n_params: cost.n_params as u64,
        backend: info.backend_name().to_owned(),
    };
    let n_ttft = ttft_prompt(&engine);
    drop(engine);
    if tests.ttft {
        progress("first token from the disk");
        let (rooms, n_rounds) = (&tests.rooms, tests.n_rounds);
        figures.extend(disk::measure(source, &load, rooms, n_ttft, n_rounds, &mut notes)?);
    }
    if tests.edit {
        progress("edit");
        figures.extend(edit::measure(source, &load, tests.n_rounds)?);
    }
    Ok((facts, figures, notes))
}

/// Whether all of the model is on a GPU.
fn is_all_there(engine: &Engine) -> bool {
    engine.info().backend_name().starts_with("cuda")
}

/// The limits of what computes: this machine's cores, or a GPU if all of the model is there. Of
/// both together none is known.
fn limits_of(engine: &Engine, machine: &Limits, is_nano: bool, notes: &mut Vec<String>) -> Limits {
    let device = engine.info().device();
    if device.is_split {
        notes.push("no limit is known of layers on the CPU and on a GPU".to_owned());
        return Limits::default();
    }
    if !is_all_there(engine) {
        return *machine;
    }
    let limits = Limits::of_gpu(device.memory_peak_bytes_s, is_nano);
    notes.push(match (limits.memory_gb_s, device.memory_peak_bytes_s) {
        (Some(gb_s), Some(_)) => {
            format!(
                "the limit is {gb_s:.1} GB/s: clock and wires of the GPU's memory, by its driver"
            )
        }
        (Some(gb_s), None) => {
            format!("the limit is {gb_s:.1} GB/s: the board's memory; its driver tells no clock")
        }
        (None, _) => "no limit is known: the driver does not tell its memory's clock".to_owned(),
    });
    limits
}

/// Load options with a context that the tests fit into, or as large as the model's own.
fn room(
    source: &ModelSource,
    load: &LoadOptions,
    tests: &Tests,
    notes: &mut Vec<String>,
) -> Result<LoadOptions, BenchError> {
    let n_parallel = tests.n_streams.iter().copied().max().unwrap_or(1).max(1);
    let n_ctx = load.n_ctx.unwrap_or(tests.n_ctx() as u32);
    let mut load = LoadOptions { n_ctx: Some(n_ctx), n_parallel: Some(n_parallel), ..load.clone() };
    let gguf = source.open()?;
    let available = load.memory_max_bytes.unwrap_or(u64::MAX);
    if plan_memory(&gguf, &load, available).is_err() && n_parallel > 1 {
        // One answer at a time is better than nothing.
        notes.push("answers at the same time were left out: they do not fit".to_owned());
        load.n_parallel = Some(1);
    }
    Ok(load)
}

/// Time of loading: from the disk where the system lets its copy go, and from memory.
fn load_times(
    source: &ModelSource,
    load: &LoadOptions,
    n_rounds: usize,
    limits: &Limits,
) -> Result<Vec<Figure>, BenchError> {
    let timed = || {
        let started = Instant::now();
        let model = Model::load(source, load)?;
        let time = started.elapsed().as_secs_f64() * 1e3;
        drop(model);
        Ok::<_, BenchError>(time)
    };
    let mut figures = Vec::new();
    if let ModelSource::File(path) = source {
        let cold: Vec<f64> = (0..n_rounds.min(3))
            .map(|_| forget(path).and_then(|()| timed()))
            .collect::<Result<_, _>>()?;
        figures.push(Figure::new("load, cold", Unit::Milliseconds, cold));
    }
    timed()?;
    let warm = (0..n_rounds).map(|_| timed()).collect::<Result<_, _>>()?;
    let warm = Figure::new("load, warm", Unit::Milliseconds, warm);
    let n_giga = source.open()?.file_bytes() as f64 / 1e9;
    figures.push(warm.taking(limits.memory_gb_s, n_giga, Unit::GigabytesPerSecond));
    Ok(figures)
}

/// Asks the system to drop its copy of a file.
fn forget(path: &Path) -> Result<(), BenchError> {
    let failed = |source: std::io::Error| BenchError::File { path: path.to_owned(), source };
    let file = File::open(path).map_err(failed)?;
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)
        .map_err(|error| failed(error.into()))
}

/// What a token costs, from the file.
#[derive(Clone, Copy, Debug)]
struct Cost {
    n_params: f64,
    /// Weights that every token is multiplied with.
    n_macs: f64,
    /// Bytes of the file that decode reads for a token.
    weight_bytes: f64,
    /// Bytes of keys and values for each token before.
    kv_bytes: f64,
}

impl Cost {
    fn of(info: &ModelInfo, n_parallel: usize) -> Cost {
        let (mut n_params, mut n_macs, mut weight_bytes) = (0.0, 0.0, 0.0);
        let tensors = info.gguf().tensors();
        let has_head = tensors.iter().any(|t| t.name == "output.weight");
        for tensor in tensors {
            let n = tensor.shape.iter().map(|&d| d as f64).product::<f64>();
            n_params += n;
            let is_table = tensor.name == "token_embd.weight";
            let is_head = tensor.name == "output.weight" || is_table && !has_head;
            // A table is only looked up; of a prompt only the last token meets the head.
            if !is_table || is_head {
                weight_bytes += info.gguf().bytes(tensor).len() as f64;
            }
            if !is_table && !is_head && tensor.shape.len() > 1 {
                n_macs += n;
            }
        }
        let memory = info.memory_plan();
        let n_position = f64::from(memory.n_ctx.max(1)) * n_parallel as f64;
        let kv_bytes = memory.kv_bytes as f64 / n_position;
        Cost { n_params, n_macs, weight_bytes, kv_bytes }
    }
}

struct Bench<'a> {
    engine: &'a Engine,
    tests: &'a Tests,
    limits: Limits,
    cost: Cost,
    /// What this model should do here, where that is known.
    predicted: Option<Predicted>,
    energy: &'a Energy,
    notes: &'a mut Vec<String>,
}

impl Bench<'_> {
    fn run(mut self, progress: &mut dyn FnMut(&str)) -> Result<Vec<Figure>, BenchError> {
        let mut figures = Vec::new();
        for &n in &self.tests.n_prompt {
            progress(&format!("pp{n}"));
            figures.extend(self.prefill(n)?);
        }
        for &depth in &self.tests.n_depth {
            for &n in &self.tests.n_generate {
                progress(&decode_name(n, depth));
                figures.extend(self.decode(n, depth)?);
            }
        }
        for &n_streams in &self.tests.n_streams {
            for &n in &self.tests.n_generate {
                progress(&format!("tg{n} x {n_streams}"));
                let all = self.streams(n, n_streams)?;
                let ratio = all.as_ref().and_then(|all| over_one(all, n, &figures));
                figures.extend(all.into_iter().chain(ratio.filter(|_| n_streams > 1)));
            }
        }
        if self.tests.ttft {
            progress("time to the first token");
            figures.extend(self.ttft()?);
        }
        for task in &self.tests.tasks {
            progress(task.name);
            figures.extend(self.task(task)?);
        }
        Ok(figures)
    }

    /// Whether `n` tokens fit; says so where they do not.
    fn fits(&mut self, test: &str, n: usize) -> bool {
        let n_ctx = self.engine.info().n_ctx();
        if n >= n_ctx {
            self.notes
                .push(format!("{test} was left out: {n} tokens, and the context has {n_ctx}"));
        }
        n < n_ctx
    }

    /// `each` once to warm up, then once for each round.
    fn rounds<T>(
        &self,
        mut each: impl FnMut(u64) -> Result<T, BenchError>,
    ) -> Result<Vec<T>, BenchError> {
        each(0)?;
        (1..=self.tests.n_rounds as u64).map(each).collect()
    }

    fn prompt(&self, n: usize, seed: u64) -> Vec<u32> {
        ask::tokens(self.engine.info(), n, seed)
    }

    /// Runs a request; what it took in joules, where that can be read.
    fn measured(&self, request: Request) -> Result<(ask::Run, Option<f64>), BenchError> {
        let (run, joules) = self.energy.of(|| run(self.engine, request));
        Ok((run?, joules))
    }

    fn prefill(&mut self, n: usize) -> Result<Vec<Figure>, BenchError> {
        let test = format!("pp{n}");
        if !self.fits(&test, n + 1) {
            return Ok(Vec::new());
        }
        let runs = self.rounds(|round| self.measured(request(self.prompt(n, round), 1, false)))?;
        let rates = runs.iter().map(|(run, _)| n as f64 * 1e3 / run.timings.prefill_ms).collect();
        let figure = Figure::new(test.clone(), Unit::TokensPerSecond, rates);
        let figure = figure.beside(self.predicted.map(|predicted| predicted.prefill));
        let limit = self.limits.integer_gmac_s;
        let mut figures = vec![figure.against(limit, self.cost.n_macs / 1e9, Unit::GigaMacs)];
        let joules = runs.into_iter().map(|(_, joules)| joules).collect();
        figures.extend(energy::figures(&test, n, joules));
        Ok(figures)
    }

    fn decode(&mut self, n: usize, depth: usize) -> Result<Vec<Figure>, BenchError> {
        let test = decode_name(n, depth);
        if !self.fits(&test, depth.max(1) + n + 1) {
            return Ok(Vec::new());
        }
        // The same prompt each time: what stands before is prefilled once.
        let prompt = self.prompt(depth.max(1), 99);
        let runs = self.rounds(|_| self.measured(request(prompt.clone(), n + 1, true)))?;
        let (runs, joules): (Vec<_>, Vec<_>) = runs.into_iter().unzip();
        let rates = runs.iter().map(ask::Run::decode_rate).collect();
        let bytes = self.cost.weight_bytes + self.cost.kv_bytes * (depth + n / 2) as f64;
        let figure = Figure::new(test.clone(), Unit::TokensPerSecond, rates);
        let predicted = self.predicted.filter(|_| depth == 0);
        let figure = figure.beside(predicted.map(|predicted| predicted.decode));
        let limit = self.limits.memory_gb_s;
        let mut figures = vec![figure.against(limit, bytes / 1e9, Unit::GigabytesPerSecond)];
        for p in [50.0, 95.0, 99.0] {
            let values = runs.iter().map(|run| percentile(&run.gaps_ms, p)).collect();
            let name = format!("{test}: p{p:.0} between tokens");
            figures.push(Figure::new(name, Unit::Milliseconds, values));
        }
        figures.extend(energy::figures(&test, n + 1, joules));
        Ok(figures)
    }

    fn streams(&mut self, n: usize, n_streams: usize) -> Result<Option<Figure>, BenchError> {
        if n_streams > self.engine.options().n_parallel {
            return Ok(None);
        }
        let rates = self.rounds(|round| {
            let each = |i| request(self.prompt(N_STREAM_PROMPT, round * 1000 + i), n + 1, false);
            let requests = (0..n_streams as u64).map(each).collect();
            Ok(run_together(self.engine, requests)?)
        })?;
        // A step reads the weights once for all, and what each has before.
        let n_before = (n_streams * (N_STREAM_PROMPT + n / 2)) as f64;
        let bytes = self.cost.weight_bytes + self.cost.kv_bytes * n_before;
        let per_token = bytes / n_streams as f64 / 1e9;
        let figure = Figure::new(format!("tg{n} x {n_streams}"), Unit::TokensPerSecond, rates);
        let limit = self.limits.memory_gb_s;
        Ok(Some(figure.against(limit, per_token, Unit::GigabytesPerSecond)))
    }

    fn ttft(&mut self) -> Result<Vec<Figure>, BenchError> {
        let n = ttft_prompt(self.engine);
        let cold = self.rounds(|round| {
            Ok(run(self.engine, request(self.prompt(n, round), 1, false))?.ttft_ms)
        })?;
        let prefix = self.prompt(n, 77);
        run(self.engine, request(prefix.clone(), 1, true))?;
        let warm = self.rounds(|round| {
            let mut prompt = prefix.clone();
            prompt.extend(self.prompt(TTFT_NEW, 500 + round));
            Ok(run(self.engine, request(prompt, 1, true))?.ttft_ms)
        })?;
        let (limit, n_macs) = (self.limits.integer_gmac_s, self.cost.n_macs / 1e9);
        let figure = |what, values, n_new: usize| {
            let test = format!("first token of pp{n}, {what}");
            let figure = Figure::new(test, Unit::Milliseconds, values);
            figure.taking(limit, n_new as f64 * n_macs, Unit::GigaMacs)
        };
        let (cold, warm) = (figure("cold", cold, n), figure("prefix in memory", warm, TTFT_NEW));
        let ratio = warm.over(&cold, format!("{} over cold", warm.test), Unit::TimeRatio);
        Ok([cold, warm].into_iter().chain(ratio).collect())
    }

    fn task(&mut self, task: &Task) -> Result<Vec<Figure>, BenchError> {
        if !self.fits(task.name, task.n_prompt + task.n_predict) {
            return Ok(Vec::new());
        }
        let runs = self.rounds(|round| {
            let prompt = self.prompt(task.n_prompt, 3000 + round);
            Ok(run(self.engine, request(prompt, task.n_predict, false))?)
        })?;
        let figure = |what: &str, unit, of: &dyn Fn(&ask::Run) -> f64| {
            let values = runs.iter().map(of).collect();
            Figure::new(format!("{}: {what}", task.name), unit, values)
        };
        let first = figure("first token", Unit::Milliseconds, &|run| run.ttft_ms);
        let whole = figure("whole answer", Unit::Milliseconds, &ask::Run::total_ms);
        let decode = figure("decode", Unit::TokensPerSecond, &ask::Run::decode_rate);
        let n_before = (task.n_prompt + task.n_predict / 2) as f64;
        let bytes = self.cost.weight_bytes + self.cost.kv_bytes * n_before;
        let limit = self.limits.memory_gb_s;
        let decode = decode.against(limit, bytes / 1e9, Unit::GigabytesPerSecond);
        let predicted = self.predicted.map(|predicted| task.predict(&predicted));
        Ok(vec![
            first,
            whole.beside(predicted.map(|seconds| seconds * 1e3)),
            decode.beside(self.predicted.map(|predicted| predicted.decode)),
        ])
    }
}

/// Tokens of the prompt whose first token is timed, as far as they fit.
fn ttft_prompt(engine: &Engine) -> usize {
    TTFT_PROMPT.min(engine.info().n_ctx().saturating_sub(TTFT_NEW + 2))
}

/// What answers at the same time come to over one alone.
fn over_one(all: &Figure, n: usize, figures: &[Figure]) -> Option<Figure> {
    let of = |test: String| figures.iter().find(|figure| figure.test == test);
    let one = of(format!("tg{n} x 1")).or_else(|| of(format!("tg{n}")))?;
    all.over(one, format!("{} over {}", all.test, one.test), Unit::Times)
}

fn decode_name(n: usize, depth: usize) -> String {
    if depth == 0 { format!("tg{n}") } else { format!("tg{n} @ {depth}") }
}
