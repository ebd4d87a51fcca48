//! The draw of one token from what the chain left: by weight, or by mirostat.

use super::candidates::Candidates;
use super::cut;
use super::rng::Mt19937;

/// How the token is drawn, and the random numbers for it.
#[derive(Clone, Debug)]
pub struct Draw {
    method: Method,
    rng: Mt19937,
}

#[derive(Clone, Debug)]
enum Method {
    Weighted,
    Mirostat(Mirostat),
}

impl Draw {
    /// Draws by probability.
    pub fn weighted(seed: u32) -> Draw {
        Draw { method: Method::Weighted, rng: Mt19937::new(seed) }
    }

    /// Cuts and draws by mirostat.
    pub fn mirostat(mirostat: Mirostat, seed: u32) -> Draw {
        Draw { method: Method::Mirostat(mirostat), rng: Mt19937::new(seed) }
    }

    /// Whether it draws by probability.
    pub fn is_weighted(&self) -> bool {
        matches!(self.method, Method::Weighted)
    }

    /// Starts over.
    pub fn reset(&mut self, seed: u32) {
        self.rng = Mt19937::new(seed);
        if let Method::Mirostat(mirostat) = &mut self.method {
            mirostat.reset();
        }
    }

    /// The place of the drawn token in the list.
    pub fn pick(&mut self, c: &mut Candidates) -> usize {
        match &mut self.method {
            Method::Weighted => weighted(c, &mut self.rng),
            Method::Mirostat(mirostat) => mirostat.pick(c, &mut self.rng),
        }
    }
}

/// Walks the list until the weights passed reach a random part of their sum. Always spends a
/// random number, and keeps the sums in `f64` over weights in `f32`.
fn weighted(c: &mut Candidates, rng: &mut Mt19937) -> usize {
    let random = rng.next_f64();
    let max = c.max_logit();
    let mut sum = 0.0f64;
    for x in &mut c.list {
        x.p = (x.logit - max).exp();
        sum += f64::from(x.p);
    }
    let target = sum * random;
    let mut passed = 0.0f64;
    let found = c.list.iter().position(|x| {
        passed += f64::from(x.p);
        passed >= target
    });
    found.unwrap_or_else(|| c.argmax())
}

/// Mirostat: keeps the surprise of the text near `tau` bits by feedback on the cut.
#[derive(Clone, Debug)]
pub struct Mirostat {
    /// Version 1 estimates Zipf's exponent; version 2 cuts by surprise.
    is_v1: bool,
    n_vocab: usize,
    tau: f32,
    eta: f32,
    /// Surprise that is let through now.
    mu: f32,
}

/// Tokens that version 1 estimates the distribution from.
const ZIPF_TOKENS: usize = 100;

impl Mirostat {
    pub fn new(is_v1: bool, n_vocab: usize, tau: f32, eta: f32) -> Mirostat {
        Mirostat { is_v1, n_vocab, tau, eta, mu: 2.0 * tau }
    }

    fn reset(&mut self) {
        self.mu = 2.0 * self.tau;
    }

    fn pick(&mut self, c: &mut Candidates, rng: &mut Mt19937) -> usize {
        c.sort();
        c.softmax();
        let keep = if self.is_v1 { self.zipf_k(c) } else { self.n_unsurprising(c) };
        cut::top_k(c, keep);
        c.softmax();
        let pick = rng.discrete(&c.list);
        let surprise = -c.list[pick].p.log2();
        self.mu -= self.eta * (surprise - self.tau);
        pick
    }

    /// Version 2: how many tokens surprise by at most `mu` bits, at least 1.
    fn n_unsurprising(&self, c: &Candidates) -> usize {
        let surprising = |p: f32| -p.log2() > self.mu;
        c.list.iter().position(|x| surprising(x.p)).unwrap_or(c.list.len()).max(1)
    }

    /// Version 1: how many tokens to keep if probabilities fall by Zipf's law, with the exponent
    /// that fits the most probable tokens best.
    fn zipf_k(&self, c: &Candidates) -> usize {
        let (mut products, mut squares) = (0.0f32, 0.0f32);
        for (i, pair) in c.list.windows(2).take(ZIPF_TOKENS - 1).enumerate() {
            let t = ((i + 2) as f32 / (i + 1) as f32).ln();
            let b = (pair[0].p / pair[1].p).ln();
            products += t * b;
            squares += t * t;
        }
        let exponent = products / squares;
        let epsilon = exponent - 1.0;
        // Opaque, because the compiler would call exp2 for a power of the constant 2.
        let two = std::hint::black_box(2.0f32);
        let scale = 1.0 - (self.n_vocab as f32).powf(-epsilon);
        let k = ((epsilon * two.powf(self.mu)) / scale).powf(1.0 / exponent);
        // What does not fit an int keeps one token: so ends the conversion on x86-64.
        if k.abs() < 2_147_483_648.0 { (k as usize).max(1) } else { 1 }
    }
}
