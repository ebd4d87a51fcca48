//! The random numbers of llama.cpp: std::mt19937 and libstdc++'s distributions over it.
//!
//! The generator is fixed by the C++ standard; how many draws a uniform number takes and how they
//! are put together is libstdc++'s choice, and a seed gives llama.cpp's text only with the same
//! choice: one 32-bit draw for an `f32`, two (low word first) for an `f64`.

use super::candidates::Candidate;

const N: usize = 624;
const M: usize = 397;

/// The Mersenne Twister with 32-bit words.
#[derive(Clone, Debug)]
pub struct Mt19937 {
    state: [u32; N],
    next: usize,
}

impl Mt19937 {
    /// The generator that this seed starts.
    pub fn new(seed: u32) -> Mt19937 {
        let mut state = [seed; N];
        for i in 1..N {
            let last = state[i - 1];
            state[i] = 1_812_433_253u32.wrapping_mul(last ^ (last >> 30)).wrapping_add(i as u32);
        }
        Mt19937 { state, next: N }
    }

    /// 32 random bits.
    pub fn next_u32(&mut self) -> u32 {
        if self.next == N {
            self.twist();
        }
        let mut y = self.state[self.next];
        self.next += 1;
        y ^= y >> 11;
        y ^= (y << 7) & 0x9d2c_5680;
        y ^= (y << 15) & 0xefc6_0000;
        y ^ (y >> 18)
    }

    fn twist(&mut self) {
        for i in 0..N {
            let y = (self.state[i] & 0x8000_0000) | (self.state[(i + 1) % N] & 0x7fff_ffff);
            let odd = if y & 1 == 1 { 0x9908_b0df } else { 0 };
            self.state[i] = self.state[(i + M) % N] ^ (y >> 1) ^ odd;
        }
        self.next = 0;
    }

    /// A uniform number in [0, 1) from one draw.
    pub fn next_f32(&mut self) -> f32 {
        let unit = self.next_u32() as f32 / 4_294_967_296.0;
        // The conversion rounds the highest draws up to 1, which the range excludes.
        unit.min(1.0 - f32::EPSILON / 2.0)
    }

    /// A uniform number in [0, 1) from two draws.
    pub fn next_f64(&mut self) -> f64 {
        let low = f64::from(self.next_u32());
        let high = f64::from(self.next_u32());
        let unit = (low + high * 4_294_967_296.0) / 18_446_744_073_709_551_616.0;
        unit.min(1.0 - f64::EPSILON / 2.0)
    }

    /// An index drawn with the weights `p`, as std::discrete_distribution draws it: cumulative
    /// probabilities in `f64`, the last of them taken as 1. A single candidate costs no draw.
    ///
    /// # Panics
    /// When `candidates` is empty.
    pub fn discrete(&mut self, candidates: &[Candidate]) -> usize {
        assert!(!candidates.is_empty(), "a pick needs a candidate");
        let last = candidates.len() - 1;
        if last == 0 {
            return 0;
        }
        let sum: f64 = candidates.iter().map(|c| f64::from(c.p)).sum();
        let target = self.next_f64();
        let mut reached = 0.0;
        candidates[..last]
            .iter()
            .position(|c| {
                reached += f64::from(c.p) / sum;
                reached >= target
            })
            .unwrap_or(last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_standard_names_the_ten_thousandth_number() {
        let mut rng = Mt19937::new(5489);
        let mut last = 0;
        for _ in 0..10_000 {
            last = rng.next_u32();
        }
        assert_eq!(last, 4_123_659_995);
    }

    #[test]
    fn uniform_numbers_spend_one_and_two_draws() {
        let mut raw = Mt19937::new(7);
        let words: Vec<f64> = (0..3).map(|_| f64::from(raw.next_u32())).collect();
        let mut rng = Mt19937::new(7);
        assert_eq!(rng.next_f64(), (words[0] + words[1] * 2f64.powi(32)) / 2f64.powi(64));
        assert_eq!(rng.next_f32(), words[2] as f32 / 2f32.powi(32));
    }

    #[test]
    fn a_single_candidate_costs_no_draw() {
        let (mut a, mut b) = (Mt19937::new(1), Mt19937::new(1));
        let one = Candidate { id: 3, logit: 0.0, p: 1.0 };
        assert_eq!(a.discrete(&[one]), 0);
        assert_eq!(a.next_u32(), b.next_u32());
    }
}
