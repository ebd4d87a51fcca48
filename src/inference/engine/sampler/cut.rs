//! The steps that drop candidates: top-k, top-p, min-p, typical, top-n-sigma, XTC.
//!
//! Each keeps the sums in the precision and order that llama.cpp uses: a probability that lands
//! one bit beside a threshold is another token, and after it another text.

use super::candidates::Candidates;
use super::rng::Mt19937;
use super::sort;

/// Longer unsorted lists are first tried with their `TOP_P_FIRST` highest candidates.
const TOP_P_SMALL: usize = 1024;
const TOP_P_FIRST: usize = 256;

/// Keeps the `k` highest logits (`k` at least 1), sorted.
pub fn top_k(c: &mut Candidates, k: usize) {
    let k = k.min(c.list.len());
    if c.sorted {
        c.list.truncate(k);
    } else {
        c.sort_top(k);
    }
}

/// Keeps the smallest set of most probable tokens whose probabilities sum to `p`.
pub fn top_p(c: &mut Candidates, p: f32, min_keep: usize) {
    c.softmax();
    if !c.sorted && c.list.len() <= TOP_P_SMALL {
        c.sort_top(c.list.len());
    }
    if c.sorted {
        let keep = prefix_of(c.list.iter().map(|x| x.p), p, min_keep).unwrap_or(c.list.len());
        c.list.truncate(keep);
        return;
    }
    // A full sort of a large vocabulary is rarely needed: look at the top, then at everything.
    // The running sum goes on across the second look, which may order ties in the first part
    // differently; hence one sum over both.
    c.copy_top(TOP_P_FIRST);
    let mut sum = 0.0f32;
    let mut keep = c.list.len();
    for i in 0..c.list.len() {
        sum += c.spare[i].p;
        if sum >= p && i + 1 >= min_keep {
            keep = i + 1;
            break;
        }
        if i + 1 == TOP_P_FIRST {
            c.copy_top(c.list.len());
        }
    }
    std::mem::swap(&mut c.list, &mut c.spare);
    c.list.truncate(keep);
    c.sorted = true;
}

/// How many leading probabilities reach `p`, at least `min_keep`; `None` if all do not.
fn prefix_of(probs: impl Iterator<Item = f32>, p: f32, min_keep: usize) -> Option<usize> {
    let mut sum = 0.0f32;
    probs.enumerate().find_map(|(i, x)| {
        sum += x;
        (sum >= p && i + 1 >= min_keep).then_some(i + 1)
    })
}

/// Keeps tokens at least `p` times as probable as the most probable one (`p` above 0).
pub fn min_p(c: &mut Candidates, p: f32, min_keep: usize) {
    if !c.sorted {
        let max = c.list.iter().fold(f32::MIN, |m, x| m.max(x.logit));
        let min = max + p.ln();
        let n_kept = c.list.iter().filter(|x| x.logit >= min).count();
        if n_kept > 0 && n_kept >= min_keep {
            c.list.retain(|x| x.logit >= min);
            return;
        }
        c.sort();
    }
    let min = c.list[0].logit + p.ln();
    let n = c.list.len();
    let keep = (1..n).find(|&i| c.list[i].logit < min && i >= min_keep).unwrap_or(n);
    c.list.truncate(keep);
}

/// Keeps the tokens whose surprise is nearest the expected one until they sum to more than `p`.
///
/// A token of probability 0 makes the entropy NaN, then no token is nearer than another and the
/// order is what the sort makes of equal keys. llama.cpp lives with that, so this does.
pub fn typical(c: &mut Candidates, p: f32, min_keep: usize) {
    c.sort();
    c.softmax();
    let entropy = c.list.iter().fold(0.0f32, |sum, x| sum + -x.p * x.p.ln());
    let Candidates { list, spare, order, scores, .. } = c;
    scores.clear();
    scores.extend(list.iter().map(|x| (-x.p.ln() - entropy).abs()));
    order.clear();
    order.extend(0..list.len() as u32);
    sort::sort(order, &|&a: &u32, &b: &u32| scores[a as usize] < scores[b as usize]);
    let mut sum = 0.0f32;
    spare.clear();
    for (i, &place) in order.iter().enumerate() {
        let candidate = list[place as usize];
        spare.push(candidate);
        sum += candidate.p;
        if sum > p && i + 1 >= min_keep {
            break;
        }
    }
    std::mem::swap(list, spare);
    c.sorted = false;
}

/// Makes tokens impossible that lie more than `n` standard deviations below the highest logit.
pub fn top_n_sigma(c: &mut Candidates, n: f32) {
    if c.list.len() <= 1 {
        return;
    }
    let possible = |logit: f32| logit != f32::NEG_INFINITY;
    let mut max = c.list[0].logit;
    let (mut sum, mut count) = (0.0f32, 0usize);
    for x in c.list.iter().filter(|x| possible(x.logit)) {
        max = max.max(x.logit);
        sum += x.logit;
        count += 1;
    }
    if count == 0 {
        return;
    }
    let mean = sum / count as f32;
    let mut squares = 0.0f32;
    for x in c.list.iter().filter(|x| possible(x.logit)) {
        let d = f64::from(x.logit - mean);
        squares = (f64::from(squares) + d * d) as f32;
    }
    let min = max - n * (squares / count as f32).sqrt();
    for x in c.list.iter_mut().filter(|x| x.logit < min) {
        x.logit = f32::NEG_INFINITY;
    }
}

/// XTC: with some chance, drops every token above a threshold but the least probable of them.
#[derive(Clone, Debug)]
pub struct Xtc {
    pub probability: f32,
    pub threshold: f32,
    pub min_keep: usize,
    /// Its own generator, seeded as the final draw's is.
    pub rng: Mt19937,
}

impl Xtc {
    pub fn apply(&mut self, c: &mut Candidates) {
        if c.list.len() < 2 || self.rng.next_f32() > self.probability {
            return;
        }
        c.sort();
        c.softmax();
        let n_above = c.list.iter().take_while(|x| x.p >= self.threshold).count();
        let n_drop = n_above.saturating_sub(1);
        if c.list.len() - n_drop >= self.min_keep {
            c.list.drain(..n_drop);
        }
    }
}
