//! Prompts as tokens, so that both servers see the same number of them, and the dice behind them.

/// SplitMix64: small, seeded, good enough for loads.
#[derive(Clone, Debug)]
pub struct Dice(u64);

impl Dice {
    /// The same seed and stream give the same numbers.
    pub fn new(seed: u64, stream: u64) -> Dice {
        let mut dice = Dice(seed ^ stream.wrapping_mul(0xa076_1d64_78bd_642f));
        dice.next();
        dice
    }

    /// 64 random bits.
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Within `low..high`.
    pub fn within(&mut self, low: usize, high: usize) -> usize {
        low + (self.next() % (high - low).max(1) as u64) as usize
    }

    /// Within 0 and 1, never 0.
    pub fn unit(&mut self) -> f64 {
        ((self.next() >> 11) + 1) as f64 / (1u64 << 53) as f64
    }

    /// True in `percent` of a hundred cases.
    pub fn chance(&mut self, percent: u64) -> bool {
        self.next() % 100 < percent
    }

    /// Seconds to the next arrival of a Poisson process.
    pub fn pause_s(&mut self, rate: f64) -> f64 {
        -self.unit().ln() / rate
    }

    /// One of them.
    pub fn pick<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        &items[self.within(0, items.len())]
    }
}

/// Tokens that every vocabulary has and that are no control tokens.
const TOKEN_MIN: usize = 300;
const TOKEN_MAX: usize = 4000;

/// What prompts look like.
#[derive(Clone, Copy, Debug)]
pub struct PromptShape {
    /// Tokens.
    pub n_prompt: usize,
    /// Of these, at the beginning, the same in every prompt.
    pub n_shared: usize,
}

impl PromptShape {
    /// The tokens of prompt `idx` of a run, `[n_prompt]`.
    pub fn tokens(&self, seed: u64, idx: u64) -> Vec<u32> {
        let mut shared = Dice::new(seed, u64::MAX);
        let mut own = Dice::new(seed, idx);
        let n_shared = self.n_shared.min(self.n_prompt);
        let draw = |dice: &mut Dice| dice.within(TOKEN_MIN, TOKEN_MAX) as u32;
        (0..self.n_prompt)
            .map(|i| draw(if i < n_shared { &mut shared } else { &mut own }))
            .collect()
    }
}
