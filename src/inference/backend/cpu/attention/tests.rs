//! Attention against its plain twin in f64, and against itself in other company.

use super::*;
use crate::inference::backend::cpu::kv_cache::{KvType, get, half_of};
use crate::inference::backend::{PageIdx, PlanBuilder, Rows as BufRows};

/// Lengths of the sequences of a batch, and how many of the last tokens each has in it.
type Sequences = [(usize, usize)];

/// A batch on a cache of its own.
struct Bench {
    spec: AttentionSpec,
    kv: KvCache,
    pages: Vec<Vec<PageIdx>>,
    isa: Isa,
    n_threads: usize,
    /// Whether two channels of every key stand out.
    has_loud_keys: bool,
}

/// Numbers in -1..1 that follow from what they are for.
fn noise(n: usize, seed: usize) -> Vec<f32> {
    let mut state = (seed as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let next = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    std::iter::repeat_with(next).take(n).collect()
}

fn spec(head_dim: usize, n_kv_head: usize, n_rep: usize) -> AttentionSpec {
    AttentionSpec {
        layer_idx: 1,
        n_head: n_kv_head * n_rep,
        n_kv_head,
        head_dim,
        scale: 1.0 / (head_dim as f32).sqrt(),
        causal: true,
        window: None,
    }
}

impl Bench {
    /// Pages are dealt out so that those of a sequence are neither in order nor neighbours.
    fn new(spec: AttentionSpec, ty: KvType, lens: &[usize]) -> Bench {
        let mut plan = PlanBuilder::new(1, 2, spec.n_kv_head, spec.head_dim);
        let out = plan.buf(1, BufRows::Tokens);
        let n_page: usize = lens.iter().map(|n| n.div_ceil(PAGE_LEN)).sum();
        let kv = KvCache::new(&plan.finish(out), n_page, ty).expect("a small cache");
        let mut next = 0..n_page as PageIdx;
        let mut take = |n: &usize| -> Vec<PageIdx> {
            let mut pages: Vec<_> = next.by_ref().take(n.div_ceil(PAGE_LEN)).collect();
            pages.reverse();
            pages
        };
        let isa = Isa::choose(None).expect("the fastest");
        Bench {
            spec,
            kv,
            pages: lens.iter().map(&mut take).collect(),
            isa,
            n_threads: 3,
            has_loud_keys: false,
        }
    }

    fn stride(&self) -> usize {
        (self.spec.n_head * self.spec.head_dim).next_multiple_of(32)
    }

    /// Rows of `n_head` heads for positions `from..to` of a sequence.
    fn rows(&self, n_head: usize, seed: usize, from: usize, to: usize) -> Vec<f32> {
        let row = |pos| {
            let mut row = noise(n_head * self.spec.head_dim, seed * 10_007 + pos);
            if self.has_loud_keys && seed % 3 == 1 {
                for head in row.chunks_exact_mut(self.spec.head_dim) {
                    head[5] += 12.0;
                    head[self.spec.head_dim - 3] -= 8.0;
                }
            }
            row.resize(self.stride(), 0.0);
            row
        };
        (from..to).flat_map(row).collect()
    }

    /// Runs positions `from..to` of each of `batch`'s (sequence, from, to) in one batch: the
    /// output rows, one after another.
    fn forward(&mut self, batch: &[(usize, usize, usize)]) -> Vec<f32> {
        let (stride, spec) = (self.stride(), self.spec);
        let all = |n_head, seed| -> Vec<f32> {
            let rows = |&(seq, from, to): &(usize, usize, usize)| {
                self.rows(n_head, 3 * seq + seed, from, to)
            };
            batch.iter().flat_map(rows).collect()
        };
        let (q, k, v) = (all(spec.n_head, 0), all(spec.n_kv_head, 1), all(spec.n_kv_head, 2));
        let span = |&(seq, pos, to): &(usize, usize, usize)| Span {
            pages: &self.pages[seq],
            pos,
            n_tokens: to - pos,
            n_prompt: 0,
            adapters: &[],
        };
        let spans: Vec<Span<'_>> = batch.iter().map(span).collect();
        let rows = |data| Rows { data, stride, n: q.len() / stride };
        let mut pool = Pool::new(self.n_threads).expect("threads start");
        self.kv.append(&mut pool, spec.layer_idx, &spans, rows(&k), rows(&v));
        let mut out = vec![0f32; q.len()];
        let mut attention = Attention::new(self.n_threads);
        attention.run(&mut pool, self.isa, spec, &self.kv, &spans, rows(&q), &mut out);
        out
    }

    /// The plain twin: softmax in f64 over what the cache holds, for one position of a sequence
    /// of `len`.
    fn twin(&self, seq: usize, pos: usize, len: usize) -> Vec<f64> {
        let AttentionSpec { head_dim, n_head, n_kv_head, .. } = self.spec;
        let q = self.rows(n_head, 3 * seq, pos, pos + 1);
        let end = if self.spec.causal { pos + 1 } else { len };
        let start = self.spec.window.map_or(0, |w| (pos + 1).saturating_sub(w));
        let shape = self.kv.shape();
        let stored = |side, pos: usize, kv_head| {
            let at = shape.at(1, self.pages[seq][pos / PAGE_LEN], kv_head);
            let bytes = &self.kv.bytes()[at..][..shape.head_bytes()];
            let mut x = vec![0f32; head_dim];
            get(shape.ty, half_of(bytes, side), side, pos % PAGE_LEN, &mut x);
            x
        };
        let mut out = vec![];
        for head in 0..n_head {
            let kv_head = head / (n_head / n_kv_head);
            let q = &q[head * head_dim..][..head_dim];
            let dot = |k: Vec<f32>| -> f64 {
                k.iter().zip(q).map(|(k, q)| f64::from(*k) * f64::from(*q)).sum()
            };
            let score = |p| dot(stored(Side::Keys, p, kv_head)) * f64::from(self.spec.scale);
            let scores: Vec<f64> = (start..end).map(score).collect();
            let max = scores.iter().fold(f64::MIN, |m, &s| m.max(s));
            let weights: Vec<f64> = scores.iter().map(|s| (s - max).exp()).collect();
            let sum: f64 = weights.iter().sum();
            let mut row = vec![0f64; head_dim];
            for (p, w) in (start..end).zip(&weights) {
                let v = stored(Side::Values, p, kv_head);
                row.iter_mut().zip(v).for_each(|(r, v)| *r += w / sum * f64::from(v));
            }
            out.extend(row);
        }
        out
    }
}

/// Runs sequences of these lengths up to their last tokens, those in one batch, and compares every
/// token of it with the twin.
fn check(spec: AttentionSpec, ty: KvType, sequences: &Sequences) {
    let lens: Vec<usize> = sequences.iter().map(|s| s.0).collect();
    let mut bench = Bench::new(spec, ty, &lens);
    for (seq, &(len, n)) in sequences.iter().enumerate() {
        if len > n {
            bench.forward(&[(seq, 0, len - n)]);
        }
    }
    let last = |(seq, &(len, n)): (usize, &(usize, usize))| (seq, len - n, len);
    let batch: Vec<_> = sequences.iter().enumerate().map(last).collect();
    let out = bench.forward(&batch);
    let mut rows = out.chunks(bench.stride());
    for (seq, from, to) in batch {
        for pos in from..to {
            let row = rows.next().expect("a row for each token");
            for (got, wanted) in row.iter().zip(bench.twin(seq, pos, to)) {
                // Sums of up to 700 terms of size 1 in f32.
                let error = (f64::from(*got) - wanted).abs();
                assert!(error < 2e-5, "{spec:?} {} {pos}: {got}, not {wanted}", ty.name());
            }
        }
    }
}

#[test]
fn every_shape_and_type_follows_the_f64_twin() {
    for (i, head_dim) in [64, 80, 96, 128, 256, 8, 40].into_iter().enumerate() {
        for ty in KvType::ALL {
            // From the first token to one past a page, then over two borders of runs.
            check(spec(head_dim, 2, 1 + i % 8), ty, &[(33, 33), (1, 1), (520, 3), (257, 9)]);
        }
    }
}

#[test]
fn every_group_of_query_heads_follows_the_f64_twin() {
    for n_rep in 1..=8 {
        for ty in KvType::ALL {
            check(spec(64, 1, n_rep), ty, &[(40, 39), (300, 1)]);
        }
    }
}

#[test]
fn windows_and_encoders_follow_the_f64_twin() {
    for window in [1, 31, 32, 40, 300] {
        let windowed = AttentionSpec { window: Some(window), ..spec(64, 2, 3) };
        check(windowed, KvType::F16, &[(70, 70), (300, 2), (600, 10)]);
    }
    let encoder = AttentionSpec { causal: false, ..spec(32, 3, 1) };
    check(encoder, KvType::F32, &[(70, 70), (5, 5), (290, 290)]);
}

#[test]
fn a_token_has_the_same_bits_in_any_chunk_and_batch_on_any_threads_and_instruction_set() {
    for ty in KvType::ALL {
        for (head_dim, n_rep, window) in [(80, 3, None), (64, 7, Some(290)), (40, 1, None)] {
            let spec = AttentionSpec { window, ..spec(head_dim, 2, n_rep) };
            let (len, last) = (320, 20);
            let mut bench = Bench::new(spec, ty, &[len, 70]);
            let whole = bench.forward(&[(0, 0, len)]);
            let tail = &whole[(len - last) * bench.stride()..];
            let threads = [4, 1, 2].into_iter().cycle();
            for (isa, n_threads) in Isa::available().into_iter().zip(threads) {
                let mut other = Bench::new(spec, ty, &[len, 70]);
                (other.isa, other.n_threads) = (isa, n_threads);
                other.forward(&[(0, 0, 250)]);
                other.forward(&[(0, 250, 290), (1, 0, 7)]);
                other.forward(&[(1, 7, 70), (0, 290, 300)]);
                let mut rows = vec![];
                // Long and short spans: those of one task and those that are split.
                for (from, to) in [(300, 301), (301, 305), (305, 319), (319, 320)] {
                    rows.extend(other.forward(&[(0, from, to)]));
                }
                assert!(rows == tail, "{} {} {n_threads}", ty.name(), isa.name());
            }
        }
    }
}

#[test]
fn a_page_is_the_same_whatever_the_chunks_that_wrote_it() {
    for ty in KvType::ALL {
        let spec = spec(80, 2, 2);
        let mut whole = Bench::new(spec, ty, &[100]);
        whole.forward(&[(0, 0, 100)]);
        let mut parts = Bench::new(spec, ty, &[100]);
        for (from, to) in [(0, 1), (1, 31), (31, 33), (33, 64), (64, 99), (99, 100)] {
            parts.forward(&[(0, from, to)]);
        }
        assert!(whole.kv.bytes() == parts.kv.bytes(), "{}", ty.name());
    }
}

/// Values and queries lie in -1..1, so a code is off by at most 1/254, 0.0023 rms. A score, scaled
/// by 1/sqrt(head_dim), is then off by 0.0023 x 0.58 rms, 0.0013, and so is a weight relative to
/// its size; five times that on values of size 1, plus the values' own half step, is the bound.
#[test]
fn q8_0_stays_within_its_steps_of_f32_and_f16_closer() {
    for head_dim in [64, 80, 128] {
        let out = |ty| {
            let mut bench = Bench::new(spec(head_dim, 2, 2), ty, &[300]);
            bench.forward(&[(0, 0, 300)])
        };
        let exact = out(KvType::F32);
        for (ty, bound) in [(KvType::Q8_0, 5.0 * 0.0013 + 1.0 / 254.0), (KvType::F16, 1e-3)] {
            let worst = out(ty).iter().zip(&exact).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(worst > 0.0 && worst < bound, "{} {head_dim}: {worst}", ty.name());
        }
    }
}

/// A few channels of keys are far larger than the rest, as in real models: rounded as they are to 4
/// bits, they would leave the others no steps. Rotated, the whole output is off by a few hundredths
/// of what it is.
#[test]
fn rotated_q4_0_bears_channels_that_stand_out() {
    for head_dim in [64, 80, 128] {
        let spec = spec(head_dim, 2, 2);
        let out = |ty| {
            let mut bench = Bench::new(spec, ty, &[300]);
            bench.has_loud_keys = true;
            bench.forward(&[(0, 0, 300)])
        };
        let (exact, got) = (out(KvType::F32), out(KvType::Q4_0));
        let norm = |x: &mut dyn Iterator<Item = f32>| x.map(|x| x * x).sum::<f32>().sqrt();
        let error = norm(&mut exact.iter().zip(&got).map(|(a, b)| a - b));
        let share = error / norm(&mut exact.iter().copied());
        assert!(share > 0.0 && share < 0.15, "{head_dim}: {share}");
    }
}
