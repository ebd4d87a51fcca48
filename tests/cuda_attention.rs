//! Attention on the simulator: what is stored has the bytes of the CPU's cache, results are those
//! of float64, and a token's bits depend neither on its batch nor on the order of threads.

use half::f16;
use jetforge::inference::backend::cases::{Numbers, activations, turned};
use jetforge::inference::backend::cuda::Device;
use jetforge::inference::backend::cuda::driver::Buffer;
use jetforge::inference::backend::cuda::launch::{
    AttentionBatch, AttentionKernels, AttentionShape, KvFormat, TokenSpan, Turn,
};
use jetforge::inference::backend::cuda::upload::Upload;
use jetforge::inference::backend::{PAGE_LEN, RopeStyle};

use crate::cuda::{ORDERS, close, device, download, send};

const BLOCK_LEN: usize = 32;
const N_PAGE: usize = 30;

/// The rotation of 4-bit heads, in place.
fn rotate(x: &mut [f32]) {
    let n = 1usize << x.len().trailing_zeros();
    for x in x.chunks_exact_mut(n) {
        let mut half = 1;
        while half < n {
            for pair in x.chunks_exact_mut(2 * half) {
                let (a, b) = pair.split_at_mut(half);
                for (a, b) in a.iter_mut().zip(b) {
                    (*a, *b) = (*a + *b, *a - *b);
                }
            }
            half *= 2;
        }
        x.iter_mut().for_each(|x| *x *= 1.0 / (n as f32).sqrt());
    }
}

fn inverse(scale: f16) -> f32 {
    if scale == f16::ZERO { 0.0 } else { 1.0 / scale.to_f32() }
}

/// A block in 8-bit codes, as bytes, and its scale.
fn round8(x: &[f32]) -> (Vec<u8>, f16) {
    let far = x.iter().fold(0f32, |far, v| far.max(v.abs()));
    let scale = f16::from_f32((far / 127.0).min(f16::MAX.to_f32()));
    let code = |x: &f32| (x * inverse(scale)).round_ties_even().clamp(-127.0, 127.0) as i8;
    (x.iter().map(|x| code(x).cast_unsigned()).collect(), scale)
}

/// A block in 4-bit codes, the best of five scales.
fn round4(x: &[f32]) -> (Vec<u8>, f16) {
    let far = x.iter().fold(0f32, |far, v| if v.abs() > far.abs() { *v } else { far });
    let code = |x: f32, scale: f16| (x * inverse(scale) + 8.0).round_ties_even().clamp(0.0, 15.0);
    let (mut best, mut best_error) = (f16::ZERO, f32::INFINITY);
    for shrink in [1.0, 0.95, 0.9, 0.85, 0.8] {
        let scale = f16::from_f32(far * shrink / -8.0);
        let miss = |x: &f32| (x - scale.to_f32() * (code(*x, scale) - 8.0)).powi(2);
        let error = x.iter().map(miss).sum::<f32>();
        if error < best_error {
            (best, best_error) = (scale, error);
        }
    }
    let (low, high) = x.split_at(x.len() / 2);
    let byte = |(low, high): (&f32, &f32)| code(*low, best) as u8 | (code(*high, best) as u8) << 4;
    (low.iter().zip(high).map(byte).collect(), best)
}

/// A plane: the keys, or the values, of a page and head.
struct Plane<'a> {
    bytes: &'a mut [u8],
    format: KvFormat,
    is_key: bool,
    head_dim: usize,
}

impl Plane<'_> {
    /// Where number `i` of `n` of a position stands.
    fn place(&self, pos: usize, i: usize, n: usize) -> usize {
        if self.is_key { i * PAGE_LEN + pos } else { pos * n + i }
    }

    fn put_halves(&mut self, start: usize, pos: usize, halves: &[f16]) {
        for (i, half) in halves.iter().enumerate() {
            let at = start + 2 * self.place(pos, i, halves.len());
            self.bytes[at..at + 2].copy_from_slice(&half.to_le_bytes());
        }
    }

    fn half(&self, start: usize, pos: usize, i: usize, n: usize) -> f64 {
        let at = start + 2 * self.place(pos, i, n);
        f16::from_le_bytes([self.bytes[at], self.bytes[at + 1]]).to_f64()
    }

    fn put(&mut self, pos: usize, x: &[f32]) {
        let mut x = x.to_vec();
        let (mut codes, mut scales) = (Vec::new(), Vec::new());
        if self.format == KvFormat::F16 {
            let halves: Vec<f16> = x.iter().map(|x| f16::from_f32(*x)).collect();
            return self.put_halves(0, pos, &halves);
        }
        if self.format == KvFormat::Q4_0 {
            rotate(&mut x);
        }
        for block in x.chunks(BLOCK_LEN) {
            let round = if self.format == KvFormat::Q8_0 { round8 } else { round4 };
            let (bytes, scale) = round(block);
            codes.extend(bytes);
            scales.push(scale);
        }
        for (i, code) in codes.iter().enumerate() {
            let at = self.place(pos, i, codes.len());
            self.bytes[at] = *code;
        }
        self.put_halves(PAGE_LEN * codes.len(), pos, &scales);
    }

    fn get(&self, pos: usize) -> Vec<f64> {
        let n = self.head_dim;
        if self.format == KvFormat::F16 {
            return (0..n).map(|i| self.half(0, pos, i, n)).collect();
        }
        let (n_code, n_block) =
            (if self.format == KvFormat::Q8_0 { n } else { n / 2 }, n.div_ceil(BLOCK_LEN));
        let value = |d: usize| {
            let (block, i) = (d / BLOCK_LEN, d % BLOCK_LEN);
            let scale = self.half(PAGE_LEN * n_code, pos, block, n_block);
            if self.format == KvFormat::Q8_0 {
                return scale * f64::from(self.bytes[self.place(pos, d, n_code)].cast_signed());
            }
            let half = (n - block * BLOCK_LEN).min(BLOCK_LEN) / 2;
            let byte = self.bytes[self.place(pos, block * BLOCK_LEN / 2 + i % half, n_code)];
            scale * (f64::from(if i < half { byte & 15 } else { byte >> 4 }) - 8.0)
        };
        let mut values: Vec<f32> = (0..n).map(|d| value(d) as f32).collect();
        if self.format == KvFormat::Q4_0 {
            rotate(&mut values);
        }
        values.into_iter().map(f64::from).collect()
    }
}

/// A cache and a batch: a prompt's chunk that crosses from one span into the next, the beginning
/// of another prompt, a step far on, and one that sees a window.
struct Case {
    shape: AttentionShape,
    tokens: Vec<TokenSpan>,
    pages: Vec<u32>,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    /// Before the batch; what no token wrote yet is no number.
    before: [Vec<u8>; 2],
    after: [Vec<u8>; 2],
}

impl Case {
    fn new(format: KvFormat, head_dim: usize, (n_head, n_kv_head): (usize, usize)) -> Case {
        let scale = 1.0 / (head_dim as f32).sqrt();
        let shape = AttentionShape { n_head, n_kv_head, head_dim, n_page: N_PAGE, scale, format };
        let mut pages: Vec<u32> = (0..N_PAGE as u32).rev().collect();
        pages.swap(3, 17);
        let mut tokens = Vec::new();
        let mut push = |pages_start: usize, start: usize, pos: usize| {
            let slot = pages[pages_start + pos / PAGE_LEN] as usize * PAGE_LEN + pos % PAGE_LEN;
            tokens.push(TokenSpan { pages_start, start, end: pos + 1, slot });
        };
        (250..268).for_each(|pos| push(0, 0, pos));
        (0..3).for_each(|pos| push(9, 0, pos));
        push(10, 0, 599);
        push(29, 11, 30);
        let n = tokens.len();
        let (q_width, width) = (n_head * head_dim, n_kv_head * head_dim);
        let q = activations(n, q_width, q_width, 3);
        let (k, v) = (activations(n, width, width, 4), activations(n, width, width, 5));
        let empty = vec![0xff; shape.cache_bytes()];
        let mut case = Case {
            shape,
            tokens,
            pages,
            q,
            k,
            v,
            before: [empty.clone(), empty],
            after: [vec![], vec![]],
        };
        case.fill();
        case
    }

    /// Positions before those of the batch, then those.
    fn fill(&mut self) {
        let head_dim = self.shape.head_dim;
        let mut numbers = Numbers::new(6);
        for (pages_start, end) in [(0, 250), (10, 599), (29, 30)] {
            for pos in 0..end {
                let page = self.pages[pages_start + pos / PAGE_LEN] as usize;
                for side in 0..2 {
                    for head in 0..self.shape.n_kv_head {
                        let x: Vec<f32> = (0..head_dim).map(|_| numbers.float()).collect();
                        plane(self.shape, &mut self.before[side], side, page, head)
                            .put(pos % PAGE_LEN, &x);
                    }
                }
            }
        }
        self.after = self.stored(&self.k);
    }

    /// The cache after the batch, with these keys.
    fn stored(&self, k: &[f32]) -> [Vec<u8>; 2] {
        let (head_dim, mut after) = (self.shape.head_dim, self.before.clone());
        let width = self.shape.n_kv_head * head_dim;
        for (t, token) in self.tokens.iter().enumerate() {
            for (side, x) in [k, &self.v].into_iter().enumerate() {
                for (head, x) in x[t * width..][..width].chunks_exact(head_dim).enumerate() {
                    plane(self.shape, &mut after[side], side, token.slot / PAGE_LEN, head)
                        .put(token.slot % PAGE_LEN, x);
                }
            }
        }
        after
    }

    /// What tokens `first ..` see of the cache after the batch.
    fn attend(&self, device: &Device, first: usize, n: usize) -> Vec<f32> {
        let width = self.shape.n_head * self.shape.head_dim;
        let kernels = AttentionKernels::load(device, self.shape, n).expect("kernels");
        let batch = self.batch(device, first, n);
        let [keys, values] = [0, 1].map(|side| on_device(device, &self.after[side]));
        let q = send(device, &self.q[first * width..][..n * width]);
        let out = send(device, &vec![0.0; n * width]);
        kernels.attend(&batch, self.shape, (&q, &out, width), (&keys, &values)).expect("launched");
        download(&out, n * width)
    }

    fn batch(&self, device: &Device, first: usize, n: usize) -> AttentionBatch {
        let mut upload = Upload::new(device, 4096).expect("memory");
        let pages = upload.put(self.pages.iter().copied());
        let tokens = self.tokens[first..first + n].to_vec();
        let batch = AttentionBatch::new(tokens, (&self.pages, &pages), &mut upload);
        upload.send().expect("a copy");
        batch
    }

    /// The cache after the batch was stored by the kernels, and the queries then: turned, where
    /// there are angles, `[n_tokens, n_pair]`.
    fn append(
        &self,
        device: &Device,
        turn: Option<(RopeStyle, &[[f32; 2]])>,
    ) -> ([Vec<u8>; 2], Vec<f32>) {
        let n = self.tokens.len();
        let AttentionShape { n_head, n_kv_head, head_dim, .. } = self.shape;
        let (q_width, width) = (n_head * head_dim, n_kv_head * head_dim);
        let kernels = AttentionKernels::load(device, self.shape, n).expect("kernels");
        let batch = self.batch(device, 0, n);
        let [keys, values] = [0, 1].map(|side| on_device(device, &self.before[side]));
        let [q, k, v] = [&self.q, &self.k, &self.v].map(|x| send(device, x));
        let angles = turn.map(|(style, angles)| (style, send(device, angles.as_flattened())));
        let turn = angles.as_ref().map(|(style, angles)| {
            let n_pair = angles.n_bytes() / 8 / n;
            Turn { style: *style, angles, n_pair, queries: (&q, q_width) }
        });
        let rows = (&k, &v, width);
        kernels.append(&batch, self.shape, rows, (&keys, &values), turn).expect("launched");
        assert_eq!(download(&k, n * width), self.k, "keys stay as they were");
        let cache = [keys, values].map(|buffer| {
            let mut bytes = vec![0; buffer.n_bytes()];
            buffer.read(&mut bytes).expect("a copy");
            bytes
        });
        (cache, download(&q, n * q_width))
    }

    fn expected(&mut self) -> Vec<f64> {
        let AttentionShape { n_head, n_kv_head, head_dim, scale, .. } = self.shape;
        let mut out = Vec::new();
        for (t, token) in self.tokens.iter().enumerate() {
            for head in 0..n_head {
                let query = &self.q[(t * n_head + head) * head_dim..][..head_dim];
                let mut of = |side: usize| -> Vec<Vec<f64>> {
                    let stored = |pos: usize| {
                        let page = self.pages[token.pages_start + pos / PAGE_LEN] as usize;
                        let kv_head = head / (n_head / n_kv_head);
                        plane(self.shape, &mut self.after[side], side, page, kv_head)
                            .get(pos % PAGE_LEN)
                    };
                    (token.start..token.end).map(stored).collect()
                };
                let (keys, values) = (of(0), of(1));
                let dot = |key: &Vec<f64>| {
                    let products = query.iter().zip(key).map(|(q, k)| f64::from(*q) * k);
                    products.sum::<f64>() * f64::from(scale)
                };
                let scores: Vec<f64> = keys.iter().map(dot).collect();
                let top = scores.iter().fold(f64::NEG_INFINITY, |m, s| m.max(*s));
                let total: f64 = scores.iter().map(|s| (s - top).exp()).sum();
                out.extend((0..head_dim).map(|d| {
                    let weighted = scores.iter().zip(&values).map(|(s, v)| (s - top).exp() * v[d]);
                    weighted.sum::<f64>() / total
                }));
            }
        }
        out
    }
}

fn plane(
    shape: AttentionShape,
    cache: &mut [u8],
    side: usize,
    page: usize,
    head: usize,
) -> Plane<'_> {
    let AttentionShape { format, head_dim, n_kv_head, .. } = shape;
    let n = format.plane_bytes(head_dim);
    let bytes = &mut cache[(page * n_kv_head + head) * n..][..n];
    Plane { bytes, format, is_key: side == 0, head_dim }
}

fn on_device(device: &Device, bytes: &[u8]) -> Buffer {
    let buffer = device.allocate("a cache", bytes.len()).expect("memory");
    buffer.write(bytes).expect("a copy");
    buffer
}

/// Formats, widths of heads, and query and key heads: few of them, many, and all of their own.
const CASES: &[(KvFormat, usize, (usize, usize))] = &[
    (KvFormat::F16, 4, (6, 2)),
    (KvFormat::F16, 64, (7, 1)),
    (KvFormat::F16, 80, (3, 3)),
    (KvFormat::F16, 128, (20, 1)),
    (KvFormat::F16, 256, (4, 2)),
    (KvFormat::Q8_0, 16, (6, 2)),
    (KvFormat::Q8_0, 64, (14, 2)),
    (KvFormat::Q8_0, 80, (3, 3)),
    (KvFormat::Q8_0, 256, (9, 1)),
    (KvFormat::Q4_0, 16, (6, 2)),
    (KvFormat::Q4_0, 64, (4, 4)),
    (KvFormat::Q4_0, 80, (3, 1)),
    (KvFormat::Q4_0, 128, (8, 1)),
    // Rotated in pieces of 32, and as a whole.
    (KvFormat::Q4_0, 160, (3, 3)),
    (KvFormat::Q4_0, 256, (9, 1)),
];

#[test]
fn attention_is_that_of_float64_in_any_order_of_threads() {
    for &(format, head_dim, heads) in CASES {
        let mut case = Case::new(format, head_dim, heads);
        let (n, expected) = (case.tokens.len(), case.expected());
        let mut first: Option<Vec<f32>> = None;
        for order in ORDERS {
            let Some((device, _dir)) = device(order) else { return };
            let got = case.attend(&device, 0, n);
            close(&got, &expected, 2e-5, &format!("{format:?} {head_dim} {heads:?}"));
            assert_eq!(*first.get_or_insert(got.clone()), got, "{format:?} {head_dim}: {order}");
        }
    }
}

/// A few tokens have a thread block for each span, many one for all: the bits are the same.
#[test]
fn a_tokens_attention_does_not_depend_on_its_batch() {
    let Some((device, _dir)) = device("") else { return };
    for &(format, head_dim, heads) in CASES {
        let case = Case::new(format, head_dim, heads);
        let (n, width) = (case.tokens.len(), heads.0 * head_dim);
        let all = case.attend(&device, 0, n);
        for (first, n) in [(0, 1), (4, 1), (5, 8), (17, 2), (19, 3), (21, 1), (22, 1)] {
            let fewer = case.attend(&device, first, n);
            let all = &all[first * width..][..n * width];
            assert_eq!(fewer, all, "{format:?} {head_dim} {heads:?}, {n} tokens from {first}");
        }
    }
}

#[test]
fn keys_and_values_are_stored_with_the_bytes_of_the_cpus_cache() {
    for &(format, head_dim, heads) in CASES {
        let case = Case::new(format, head_dim, heads);
        for order in ORDERS {
            let Some((device, _dir)) = device(order) else { return };
            let (got, q) = case.append(&device, None);
            assert!(got == case.after, "{format:?} {head_dim}, {order}");
            assert_eq!(q, case.q, "nothing is turned");
        }
    }
}

/// All pairs of a head, one, and some.
#[test]
fn queries_and_keys_are_turned_on_their_way_with_the_bits_of_the_cpu() {
    for &(format, head_dim, heads) in CASES {
        let case = Case::new(format, head_dim, heads);
        let some = [(RopeStyle::Pairs, head_dim / 2), (RopeStyle::Halves, head_dim / 2)];
        let some =
            some.into_iter().chain([(RopeStyle::Pairs, head_dim / 4), (RopeStyle::Halves, 1)]);
        for (style, n_pair) in some {
            let angle = |i: usize| (i as f32 * 0.3).sin_cos();
            let angles: Vec<[f32; 2]> =
                (0..case.tokens.len() * n_pair).map(|i| [angle(i).1, angle(i).0]).collect();
            let [q, k] = [&case.q, &case.k].map(|x| {
                let mut x = x.clone();
                let width = x.len() / case.tokens.len();
                for (row, angles) in x.chunks_exact_mut(width).zip(angles.chunks_exact(n_pair)) {
                    let heads = row.chunks_exact_mut(head_dim);
                    heads.for_each(|head| turned(head, style, angles));
                }
                x
            });
            let expected = case.stored(&k);
            for order in ORDERS {
                let Some((device, _dir)) = device(order) else { return };
                let got = case.append(&device, Some((style, &angles)));
                let what = format!("{format:?} {head_dim} {style:?} {n_pair}, {order}");
                assert!(got.0 == expected, "what is stored: {what}");
                assert!(got.1 == q, "queries: {what}");
            }
        }
    }
}
