//! Requests to an engine, and when their tokens came.

use std::time::Instant;

use crate::inference::{
    Engine, EngineError, Event, EventStream, ModelInfo, Request, SamplerOptions,
    SpeculationOptions, Timings, TokenId,
};

/// What a request went through.
#[derive(Debug)]
pub struct Run {
    /// From submission to the first token, in milliseconds.
    pub ttft_ms: f64,
    /// Between two tokens, in milliseconds.
    pub gaps_ms: Vec<f64>,
    /// The answer.
    pub tokens: Vec<TokenId>,
    /// The engine's own account.
    pub timings: Timings,
    started: Instant,
    last: Instant,
}

impl Run {
    /// From submission to the last token, in milliseconds.
    pub fn total_ms(&self) -> f64 {
        ms(self.started, self.last)
    }

    /// When its tokens after the first one came, in milliseconds since submission.
    fn times_ms(&self) -> Vec<f64> {
        let sum = |at: &mut f64, gap: &f64| {
            *at += gap;
            Some(*at)
        };
        self.gaps_ms.iter().scan(self.ttft_ms, sum).collect()
    }

    /// Tokens a second after the first one.
    pub fn decode_rate(&self) -> f64 {
        // The engine's clock: a reader that is late sees several tokens at once.
        let n = self.timings.n_generated.saturating_sub(1);
        n as f64 * 1e3 / self.timings.decode_ms.max(f64::MIN_POSITIVE)
    }
}

fn ms(from: Instant, to: Instant) -> f64 {
    (to - from).as_secs_f64() * 1e3
}

/// A request for exactly `n_predict` tokens after `prompt`, without guessing ahead.
pub fn request(prompt: Vec<TokenId>, n_predict: usize, uses_cache: bool) -> Request {
    Request {
        prompt,
        n_predict: Some(n_predict),
        sampler: SamplerOptions { temp: 0.0, ..SamplerOptions::default() },
        ignore_eos: true,
        speculation: SpeculationOptions { n_draft_max: 0, ..SpeculationOptions::default() },
        uses_cache,
        ..Request::default()
    }
}

/// Runs one request to its end.
///
/// # Errors
/// If the engine refuses it.
pub fn run(engine: &Engine, request: Request) -> Result<Run, EngineError> {
    let started = Instant::now();
    let stream = engine.submit(request)?;
    follow(stream, started)
}

/// Runs requests at the same time; tokens a second of all together, from the last one's first
/// token to the first one's end. Where these cross (answers are short, a reader is late) all tokens
/// count, over all the time.
///
/// # Errors
/// If the engine refuses one.
pub fn run_together(engine: &Engine, requests: Vec<Request>) -> Result<f64, EngineError> {
    let started = Instant::now();
    let streams: Result<Vec<_>, _> = requests.into_iter().map(|r| engine.submit(r)).collect();
    let streams = streams?;
    let runs: Result<Vec<Run>, EngineError> = std::thread::scope(|scope| {
        let threads: Vec<_> =
            streams.into_iter().map(|s| scope.spawn(move || follow(s, started))).collect();
        threads.into_iter().map(|t| t.join().expect("it only waits")).collect()
    });
    let runs = runs?;
    let times: Vec<f64> = runs.iter().flat_map(Run::times_ms).collect();
    let begin = runs.iter().map(|run| run.ttft_ms).fold(0.0, f64::max);
    let end = runs.iter().map(Run::total_ms).fold(f64::INFINITY, f64::min);
    let n = times.iter().filter(|at| (begin..=end).contains(*at)).count();
    if n > 0 && end > begin {
        return Ok(n as f64 * 1e3 / (end - begin));
    }
    let longest = runs.iter().map(Run::total_ms).fold(f64::MIN_POSITIVE, f64::max);
    Ok(times.len() as f64 * 1e3 / longest)
}

fn follow(mut stream: EventStream, started: Instant) -> Result<Run, EngineError> {
    let mut last: Option<Instant> = None;
    let mut run = Run {
        ttft_ms: 0.0,
        gaps_ms: Vec::new(),
        tokens: Vec::new(),
        timings: Timings::default(),
        started,
        last: started,
    };
    while let Some(event) = stream.recv() {
        match event {
            Event::Text { tokens, timings, .. } => {
                run.timings = timings;
                run.tokens.extend(tokens.iter().map(|token| token.token));
                let now = Instant::now();
                // Tokens that were read together came somewhere in between.
                let n = tokens.len();
                match last {
                    None if n > 0 => {
                        run.ttft_ms = ms(started, now);
                        run.gaps_ms.extend((1..n).map(|_| 0.0));
                    }
                    Some(before) => {
                        run.gaps_ms.extend((0..n).map(|_| ms(before, now) / n as f64));
                    }
                    None => continue,
                }
                if n > 0 {
                    last = Some(now);
                    run.last = now;
                }
            }
            Event::Done { timings, .. } => run.timings = timings,
            Event::Progress { .. } => {}
            Event::Failed(error) => {
                return Err(EngineError::Step { reason: error.to_string() });
            }
        }
    }
    Ok(run)
}

/// `n` tokens of the vocabulary that end nothing: spread evenly, and the same for each `seed`.
pub fn tokens(info: &ModelInfo, n: usize, seed: u64) -> Vec<TokenId> {
    let n_vocab = info.hparams().n_vocab as u64;
    let eog = &info.tokenizer().special().eog;
    // Splitmix64 by Steele, Lea and Flood.
    let number = |i: u64| {
        let mut z = (seed << 32 | i).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        z = (z ^ z >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ z >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ z >> 31
    };
    let any = (1..).map(|i| (number(i) % n_vocab.max(1)) as TokenId);
    any.filter(|token| !eog.contains(token)).take(n).collect()
}
