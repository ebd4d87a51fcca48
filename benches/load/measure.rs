//! Loads: closed (so many clients, each with one request at a time) and open (requests come when
//! they come, whether or not the last is answered).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::ask::{Ask, Sample};
use super::host::Host;
use super::prompt::{Dice, PromptShape};

/// What every request of a load looks like.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// Prompts.
    pub prompt: PromptShape,
    /// Tokens of an answer.
    pub n_predict: usize,
    /// Of prompts, arrivals and samplers.
    pub seed: u64,
}

/// What came of a load.
#[derive(Debug)]
pub struct Outcome {
    /// One for each request.
    pub samples: Vec<Sample>,
    /// Seconds from the first request to the last answer.
    pub took_s: f64,
}

impl Load {
    fn ask(&self, idx: u64) -> Ask {
        let prompt = self.prompt.tokens(self.seed, idx);
        // llama.cpp's seeds have 32 bits.
        let seed = (self.seed ^ idx) & 0x7fff_ffff;
        Ask { prompt, n_predict: self.n_predict, seed, temperature: 1.0 }
    }

    /// Has the shared prefix in the cache before anything is timed.
    pub async fn warm_up(&self, host: &Host) -> Sample {
        self.ask(u64::MAX - 1).run(&host.client, 0, Instant::now()).await
    }

    /// `n_client` clients with `n_each` requests each, one after another; `first_idx` keeps the
    /// prompts of several loads apart.
    pub async fn closed(
        &self,
        host: &Arc<Host>,
        n_client: usize,
        n_each: usize,
        first_idx: u64,
    ) -> Outcome {
        let started = Instant::now();
        let next = Arc::new(AtomicU64::new(first_idx));
        let clients: Vec<_> = (0..n_client)
            .map(|client_idx| {
                let (load, host, next) = (*self, Arc::clone(host), Arc::clone(&next));
                tokio::spawn(async move {
                    let mut samples = Vec::with_capacity(n_each);
                    for _ in 0..n_each {
                        let ask = load.ask(next.fetch_add(1, Ordering::Relaxed));
                        samples.push(ask.run(&host.client, client_idx, Instant::now()).await);
                    }
                    samples
                })
            })
            .collect();
        let mut samples = Vec::new();
        for client in clients {
            samples.extend(client.await.expect("a client does not panic"));
        }
        Outcome { samples, took_s: started.elapsed().as_secs_f64() }
    }

    /// Requests for `seconds`, `rate` a second, at random; times count from their arrival.
    pub async fn open(&self, host: &Arc<Host>, rate: f64, seconds: f64, first_idx: u64) -> Outcome {
        let started = Instant::now();
        let mut dice = Dice::new(self.seed, first_idx ^ 0x6f70_656e);
        let mut at_s = dice.pause_s(rate);
        let mut requests = Vec::new();
        while at_s < seconds {
            let due = started + Duration::from_secs_f64(at_s);
            tokio::time::sleep_until(due.into()).await;
            let idx = requests.len();
            let (ask, host) = (self.ask(first_idx + idx as u64), Arc::clone(host));
            requests.push(tokio::spawn(async move { ask.run(&host.client, idx, due).await }));
            at_s += dice.pause_s(rate);
        }
        let mut samples = Vec::new();
        for request in requests {
            samples.push(request.await.expect("a request does not panic"));
        }
        Outcome { samples, took_s: started.elapsed().as_secs_f64() }
    }
}
