//! Each kernel's smallest cases, before a model is trusted to them.
//!
//! The driver compiles the kernels for the device at hand, so what was proven on a simulator may
//! still be wrong here: a compiler, a device, a loose wire. The cases are a few dozen launches;
//! each result is held to float64 on the host, and the first kernel that fails is named.

use std::ops::Range;

use super::CudaError;
use super::driver::{Buffer, Device};
use super::launch::{
    AttentionBatch, AttentionKernels, AttentionShape, GemvKernels, Inputs, KvFormat, LoraKernels,
    LoraPair, LoraTable, LoraUses, Matrix, Multiply, NormShape, RowKernels, RowShape, StageKernels,
    TokenSpan, Turn,
};
use super::strips::{STRIP_ROWS, pack_strip, strip_bytes};
use super::upload::Upload;
use crate::inference::backend::cases::{activated, activations, normed, turned, weights};
use crate::inference::backend::{Activation, NormKind, PAGE_LEN, RopeStyle};
use crate::inference::quant::{TensorType, dequantize};

/// The largest error of a product, as a share of the root of the sum of its terms' squares: inputs
/// are halves, and so are sums of 8 codes (docs/cuda.md has what is usual).
const PRODUCT_ERROR_MAX: f64 = 1.5e-2;
/// The largest error of what is computed in f32, as a share of the largest result.
const FLOAT_ERROR_MAX: f64 = 1e-4;
/// The same where keys and values are codes, which are what they stand for within half a step. The
/// case is always the same, so its error follows from the format: 0.4 to 1.3 % in 8 bits and 3.4 to
/// 6.5 % in 4 over heads of 16 to 256, with this rounding in float64. Twice the worst of them.
const CODES8_ERROR_MAX: f64 = 0.026;
const CODES4_ERROR_MAX: f64 = 0.13;

const N_ROWS: usize = 3;
const WIDTH: usize = 160;

/// Runs the cases of the kernels that a model with matrices of `types` uses.
///
/// # Errors
/// [`CudaError::SelfTest`] names the kernel; other errors are the driver's.
pub fn run(
    device: &Device,
    (stage, gemv, rows, attention): (&StageKernels, &GemvKernels, &RowKernels, &AttentionKernels),
    types: &[TensorType],
    shape: AttentionShape,
) -> Result<(), CudaError> {
    for &ty in types {
        // More rows than a strip; and so many that rows are shared out otherwise.
        for n in [1, 2, 4, 8, 16] {
            product(device, (stage, gemv), ty, (STRIP_ROWS + 1, n), GemvKernels::multiply)?;
        }
        for n in [1, 16] {
            product(device, (stage, gemv), ty, (512 + 1, n), GemvKernels::multiply)?;
        }
    }
    norms(device, rows, stage)?;
    by_value(device, rows, stage)?;
    choices(device, rows)?;
    attend(device, attention, shape)
}

/// Runs the cases of the kernels for tensor cores, where there are any.
///
/// # Errors
/// As [`run`].
pub fn tensor_cores(
    device: &Device,
    (stage, gemv): (&StageKernels, &GemvKernels),
    types: &[TensorType],
) -> Result<(), CudaError> {
    for &ty in types.iter().filter(|ty| gemv.has_tensor_kernel(**ty)) {
        // Less than a tile, and more than one both ways.
        for shape in [(STRIP_ROWS + 1, 1), (128 + 1, 64 + 1)] {
            product(device, (stage, gemv), ty, shape, GemvKernels::multiply_prompt)?;
        }
    }
    Ok(())
}

/// Runs the cases of the kernels for adapters: two of them, and a row that asks for neither.
///
/// # Errors
/// As [`run`].
pub fn adapters(device: &Device, kernels: &LoraKernels) -> Result<(), CudaError> {
    // Ranks that fill no thread block, and an output that does not fill its second one.
    let (n_out, ranks, scale) = (130, [6, 1], 0.25);
    let [(a, b), (a1, b1)] = ranks
        .map(|rank| (activations(rank, WIDTH, WIDTH, 12), activations(rank, n_out, n_out, 13)));
    let pairs = [(&a, &b, ranks[0]), (&a1, &b1, ranks[1])];
    let pair = |(a, b, rank): (&Vec<f32>, &Vec<f32>, usize)| {
        Ok::<_, CudaError>(Some(LoraPair { a: send(device, a)?, b: send(device, b)?, rank, scale }))
    };
    let place = device.allocate("the self-test", 2 * LoraTable::SLOT_BYTES)?;
    let on_device = pairs.into_iter().map(pair).collect::<Result<_, _>>()?;
    let table = LoraTable::write(on_device, (n_out, WIDTH), place)?;
    let asked: [Option<(usize, f32)>; N_ROWS] = [Some((1, -2.0)), None, Some((0, 0.5))];
    let mut upload = Upload::new(device, 64)?;
    let uses = LoraUses::new(&asked, &mut upload);
    upload.send()?;
    let (x, y) = (rows_of(14), activations(N_ROWS, n_out, n_out, 15));
    let (mut hidden, mut expected) = (vec![0.0; N_ROWS * ranks[0]], wide(&y));
    let (on_device, out) = (send(device, &vec![0.0; hidden.len()])?, send(device, &y)?);
    kernels.apply(&table, &uses, (&send(device, &x)?, WIDTH), (&out, n_out), &on_device)?;
    let rows = hidden.chunks_exact_mut(ranks[0]).zip(expected.chunks_exact_mut(n_out));
    for (((hidden, y), x), asked) in rows.zip(x.chunks_exact(WIDTH)).zip(asked) {
        let Some((slot, factor)) = asked else { continue };
        let (a, b, rank) = pairs[slot];
        let narrow = hidden[..rank].iter_mut().zip(a.chunks_exact(WIDTH));
        for ((hidden, a), b) in narrow.zip(b.chunks_exact(n_out)) {
            let terms = a.iter().zip(x).map(|(a, x)| f64::from(*a) * f64::from(*x));
            *hidden = f64::from(scale * factor) * terms.sum::<f64>();
            y.iter_mut().zip(b).for_each(|(y, b)| *y += f64::from(*b) * *hidden);
        }
    }
    expect("lora_down_f32", &on_device, &hidden)?;
    expect("lora_up_f32", &out, &expected)
}

fn send(device: &Device, values: &[f32]) -> Result<Buffer, CudaError> {
    let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    let buffer = device.allocate("the self-test", bytes.len())?;
    buffer.write(&bytes)?;
    Ok(buffer)
}

fn failed(kernel: impl Into<String>, reason: String) -> CudaError {
    CudaError::SelfTest { kernel: kernel.into(), reason }
}

/// Compares what a buffer begins with.
fn expect(kernel: &str, buffer: &Buffer, expected: &[f64]) -> Result<(), CudaError> {
    expect_within(FLOAT_ERROR_MAX, kernel, buffer, expected)
}

/// The same with errors up to a share of the largest value.
fn expect_within(
    error_max: f64,
    kernel: &str,
    buffer: &Buffer,
    expected: &[f64],
) -> Result<(), CudaError> {
    let mut got = vec![0f32; expected.len()];
    buffer.read_floats(&mut got)?;
    let size = expected.iter().fold(1e-30, |m: f64, y| m.max(y.abs()));
    for (i, (got, expected)) in got.iter().zip(expected).enumerate() {
        let error = (f64::from(*got) - expected).abs() / size;
        // A NaN is not below anything.
        if !matches!(error.partial_cmp(&error_max), Some(std::cmp::Ordering::Less)) {
            return Err(failed(kernel, format!("value {i} is {got} and not {expected}")));
        }
    }
    Ok(())
}

fn product(
    device: &Device,
    (stage, kernels): (&StageKernels, &GemvKernels),
    ty: TensorType,
    (n_rows, n): (usize, usize),
    multiply: Multiply,
) -> Result<(), CudaError> {
    // More columns than a group.
    let n_cols = 288usize.next_multiple_of(ty.row_unit());
    let rows = weights(ty, n_rows, n_cols, 1);
    let row_bytes = rows.len() / n_rows;
    let strip_bytes = strip_bytes(ty, n_cols);
    let mut strips = vec![0; n_rows.div_ceil(STRIP_ROWS) * strip_bytes];
    let packed = strips.chunks_exact_mut(strip_bytes);
    for (rows, strip) in rows.chunks(STRIP_ROWS * row_bytes).zip(packed) {
        pack_strip(ty, rows, n_cols, strip);
    }
    let buffer = device.allocate("the self-test", strips.len())?;
    buffer.write(&strips)?;
    let matrix = Matrix { ty, n_rows, n_cols, strips: buffer };
    let x = activations(n, n_cols, n_cols, 2);
    let inputs = Inputs::new(device, n_cols, n)?;
    let columns = RowShape { n_rows: n, width: n_cols, stride: n_cols };
    stage.stage(columns, &send(device, &x)?, &inputs)?;
    let y = send(device, &vec![0.0; n * n_rows])?;
    multiply(kernels, &matrix, &inputs, None, (&y, n_rows, false), 0..n)?;
    let mut got = vec![0f32; n * n_rows];
    y.read_floats(&mut got)?;
    let mut row = vec![0f32; n_cols];
    for (r, bytes) in rows.chunks_exact(row_bytes).enumerate() {
        dequantize(ty, bytes, &mut row);
        for (c, x) in x.chunks_exact(n_cols).enumerate() {
            let terms = row.iter().zip(x).map(|(w, x)| f64::from(*w) * f64::from(*x));
            let (sum, squares) = terms.fold((0.0, 0.0), |(s, q), t| (s + t, q + t * t));
            let error = (f64::from(got[c * n_rows + r]) - sum).abs() / squares.sqrt().max(1e-30);
            if !matches!(error.partial_cmp(&PRODUCT_ERROR_MAX), Some(std::cmp::Ordering::Less)) {
                let reason = format!("row {r} is {} and not {sum}", got[c * n_rows + r]);
                return Err(failed(format!("product of {ty} with {n} columns"), reason));
            }
        }
    }
    Ok(())
}

fn shape() -> RowShape {
    RowShape { n_rows: N_ROWS, width: WIDTH, stride: WIDTH }
}

fn rows_of(seed: u64) -> Vec<f32> {
    activations(N_ROWS, WIDTH, WIDTH, seed)
}

fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().map(|v| f64::from(*v)).collect()
}

/// Whether a kernel made the rows that it should, and staged them as they are staged alone.
fn expect_staged(
    device: &Device,
    stage: &StageKernels,
    (kernel, rows, inputs): (&str, &Buffer, &Inputs),
    expected: &[f64],
) -> Result<(), CudaError> {
    expect(kernel, rows, expected)?;
    let alone = Inputs::new(device, WIDTH, N_ROWS)?;
    stage.stage(shape(), rows, &alone)?;
    if inputs.read(N_ROWS)? != alone.read(N_ROWS)? {
        return Err(failed(kernel, "its columns are not those of its rows".to_owned()));
    }
    Ok(())
}

fn norms(device: &Device, kernels: &RowKernels, stage: &StageKernels) -> Result<(), CudaError> {
    let (x, weight) = (rows_of(3), activations(1, WIDTH, WIDTH, 4));
    let (from, weight_there) = (send(device, &x)?, send(device, &weight)?);
    for (kind, alone, staged) in [
        (NormKind::Rms, "rms_norm_f32", "rms_norm_stage_f16"),
        (NormKind::Layer, "layer_norm_f32", "layer_norm_stage_f16"),
    ] {
        let norm = NormShape { kind, eps: 1e-5, width: WIDTH };
        let mut expected = wide(&x);
        for row in expected.chunks_exact_mut(WIDTH) {
            normed(row, kind, 1e-5, &weight, None);
        }
        let out = send(device, &vec![0.0; x.len()])?;
        kernels.norm(shape(), norm, (&from, &out), (&weight_there, None))?;
        expect(alone, &out, &expected)?;
        let out = send(device, &vec![0.0; x.len()])?;
        let inputs = Inputs::new(device, WIDTH, N_ROWS)?;
        stage.norm(shape(), norm, (&from, &out), (&weight_there, None), &inputs)?;
        expect_staged(device, stage, (staged, &out, &inputs), &expected)?;
    }
    Ok(())
}

fn by_value(device: &Device, kernels: &RowKernels, stage: &StageKernels) -> Result<(), CudaError> {
    let (x, y) = (rows_of(5), rows_of(6));
    let b = send(device, &y)?;
    let inputs = Inputs::new(device, WIDTH, N_ROWS)?;
    let pairs = || wide(&x).into_iter().zip(wide(&y));
    for activation in [Activation::Silu, Activation::Gelu, Activation::Tanh] {
        for up in [Some(&b), None] {
            let value = |(x, y): (f64, f64)| activated(activation, x) * up.map_or(1.0, |_| y);
            let expected: Vec<f64> = pairs().map(value).collect();
            let a = send(device, &x)?;
            kernels.glu(shape(), activation, (&a, up))?;
            expect("glu_f32", &a, &expected)?;
            let a = send(device, &x)?;
            stage.glu(shape(), activation, (&a, up), &inputs)?;
            expect_staged(device, stage, ("glu_stage_f16", &a, &inputs), &expected)?;
        }
    }
    let a = send(device, &x)?;
    kernels.add(shape(), &a, 0.5, Some(&b))?;
    expect("add_f32", &a, &pairs().map(|(x, y)| 0.5 * x + y).collect::<Vec<_>>())
}

/// Rows that are chosen, and the largest of each.
fn choices(device: &Device, kernels: &RowKernels) -> Result<(), CudaError> {
    let x = rows_of(8);
    let on_device = send(device, &x)?;
    let index = device.allocate("the self-test", 8)?;
    index.write(&[2, 0, 0, 0, 0, 0, 0, 0])?;
    let out = send(device, &[0.0; 2 * WIDTH])?;
    let two = RowShape { n_rows: 2, ..shape() };
    kernels.select(two, (&on_device, N_ROWS), &out, (&index, &[2, 0]))?;
    let chosen = [&x[2 * WIDTH..], &x[..WIDTH]].concat();
    expect("select_f32", &out, &wide(&chosen))?;
    largest(device, kernels, &x)
}

/// The two largest of each row.
fn largest(device: &Device, kernels: &RowKernels, x: &[f32]) -> Result<(), CudaError> {
    let best = device.allocate("the self-test", 2 * 8 * N_ROWS)?;
    kernels.top_k(shape(), &send(device, x)?, 2, &best)?;
    let mut pairs = [0f32; 2 * 2 * N_ROWS];
    best.read_floats(&mut pairs)?;
    for (row, pairs) in x.chunks_exact(WIDTH).zip(pairs.chunks_exact(4)) {
        let mut idxs: Vec<usize> = (0..WIDTH).collect();
        idxs.sort_by(|&a, &b| row[b].total_cmp(&row[a]).then(a.cmp(&b)));
        let got = [pairs[1], pairs[3]].map(|idx| idx.to_bits() as usize);
        if got != idxs[..2] {
            let reason = format!("the largest are {:?} and not {got:?}", &idxs[..2]);
            return Err(failed("top_k_f32", reason));
        }
    }
    Ok(())
}

/// Tokens at the end of a sequence whose pages are in turned order: so few that thread blocks share
/// the positions out, with one row for a warp and with two; and as many as a prompt has, with all
/// rows of a tile and all positions in one block. Each is other code of the driver's.
fn attend(
    device: &Device,
    kernels: &AttentionKernels,
    AttentionShape { head_dim, format, .. }: AttentionShape,
) -> Result<(), CudaError> {
    // So many positions that they are shared out and joined.
    let (n_head, n_kv_head, n_page, n_pos) = (2, 1, 9, 8 * PAGE_LEN + 5);
    let shape = AttentionShape { n_head, n_kv_head, head_dim, n_page, scale: 0.5, format };
    let pages: [u32; 9] = std::array::from_fn(|i| 8 - i as u32);
    let place = |pos: usize| pages[pos / PAGE_LEN] as usize * PAGE_LEN + pos % PAGE_LEN;
    let width = n_head * head_dim;
    let [mut q, mut k, v] = [(9, n_pos * n_head), (10, n_pos), (11, n_pos)]
        .map(|(seed, n)| activations(n, head_dim, head_dim, seed))
        .map(|x| x.into_iter().map(|x| x * 0.1).collect::<Vec<f32>>());
    // The first of them attend, whatever the positions.
    q.rotate_left(ATTENDED[2] * width);
    // They are sent turned back, so that what is attended is the same however it is turned.
    let (n_pair, third) = (head_dim / 4, n_pos / TURNS.len());
    let angles: Vec<[f32; 2]> = (0..n_pos * n_pair)
        .map(|i| (i as f32 * 0.3).sin_cos())
        .map(|(sin, cos)| [cos, sin])
        .collect();
    let back: Vec<[f32; 2]> = angles.iter().map(|[cos, sin]| [*cos, -sin]).collect();
    for x in [&mut q, &mut k] {
        turn_thirds(x, (n_pos, head_dim), &back);
    }
    let (queries, angles_there) = (send(device, &q)?, send(device, angles.as_flattened())?);
    let rows = (send(device, &k)?, send(device, &v)?);
    let cache = || device.allocate("the self-test", shape.cache_bytes());
    let (keys, values) = (cache()?, cache()?);
    let n_token = n_pos + ATTENDED.iter().sum::<usize>();
    let mut upload = Upload::new(device, n_token * AttentionBatch::TOKEN_BYTES + 64)?;
    let on_device = upload.put(pages);
    let span = |pos: usize| TokenSpan { pages_start: 0, start: 0, end: pos + 1, slot: place(pos) };
    let mut batch = |tokens: Range<usize>| {
        AttentionBatch::new(tokens.map(span).collect(), (&pages, &on_device), &mut upload)
    };
    let thirds: [_; 3] = std::array::from_fn(|i| batch(i * third..(i + 1) * third));
    let batches = ATTENDED.map(|n| batch(n_pos - n..n_pos));
    upload.send()?;
    for (i, (batch, style)) in thirds.iter().zip(TURNS).enumerate() {
        let part = |x: &Buffer, width: usize| x.part(4 * i * third * width, 4 * third * width);
        let (queries, angles) = (part(&queries, width), part(&angles_there, 2 * n_pair));
        let turn = |style| Turn { style, angles: &angles, n_pair, queries: (&queries, width) };
        let rows = (&part(&rows.0, head_dim), &part(&rows.1, head_dim), head_dim);
        kernels.append(batch, shape, rows, (&keys, &values), style.map(turn))?;
    }
    for x in [&mut q, &mut k] {
        turn_thirds(x, (n_pos, head_dim), &angles);
    }
    expect(&format!("rope_append_{}", format.name()), &queries, &wide(&q))?;
    for (n, batch) in ATTENDED.into_iter().zip(&batches) {
        let out = send(device, &vec![0.0; n * width])?;
        let first = (n_pos - n) * width;
        let query = queries.part(4 * first, 4 * n * width);
        kernels.attend(batch, shape, (&query, &out, width), (&keys, &values))?;
        let expected = attended(&q[first..], (&k, &v), (n_head, head_dim), n_pos);
        let name = format!("attn_{} for {n} tokens", format.name());
        expect_within(attention_error_max(format), &name, &out, &expected)?;
    }
    Ok(())
}

/// How each third of the positions is turned.
const TURNS: [Option<RopeStyle>; 3] = [None, Some(RopeStyle::Pairs), Some(RopeStyle::Halves)];

/// Turns the heads of each position, `[n_pos][..][head_dim]`, as its third has it.
fn turn_thirds(x: &mut [f32], (n_pos, head_dim): (usize, usize), angles: &[[f32; 2]]) {
    let (width, n_pair) = (x.len() / n_pos, angles.len() / n_pos);
    for (pos, heads) in x.chunks_exact_mut(width).enumerate() {
        let Some(style) = TURNS[pos * TURNS.len() / n_pos] else { continue };
        let angles = &angles[pos * n_pair..][..n_pair];
        heads.chunks_exact_mut(head_dim).for_each(|head| turned(head, style, angles));
    }
}

/// Keys and values in codes are what they stand for within half a step.
fn attention_error_max(format: KvFormat) -> f64 {
    match format {
        KvFormat::F16 => FLOAT_ERROR_MAX,
        KvFormat::Q8_0 => CODES8_ERROR_MAX,
        KvFormat::Q4_0 => CODES4_ERROR_MAX,
    }
}

/// How many tokens attend together.
const ATTENDED: [usize; 3] = [1, 3, 9];

/// Attention of the last tokens of `n_pos`, each of which sees those before it, with scores scaled
/// by a half: `q` is `[n][n_head][head_dim]`, keys and values `[n_pos][head_dim]`.
fn attended(
    q: &[f32],
    (k, v): (&[f32], &[f32]),
    (n_head, head_dim): (usize, usize),
    n_pos: usize,
) -> Vec<f64> {
    let stored =
        |x: &[f32]| -> Vec<f64> { x.iter().map(|x| half::f16::from_f32(*x).to_f64()).collect() };
    let (k, v) = (stored(k), stored(v));
    let first = n_pos - q.len() / (n_head * head_dim);
    let mut expected = Vec::with_capacity(q.len());
    for (row, query) in q.chunks_exact(head_dim).enumerate() {
        let end = first + row / n_head + 1;
        let dot = |key: &[f64]| query.iter().zip(key).map(|(q, k)| f64::from(*q) * k).sum::<f64>();
        let seen = k.chunks_exact(head_dim).take(end);
        let scores: Vec<f64> = seen.map(|key| 0.5 * dot(key)).collect();
        let top = scores.iter().fold(f64::NEG_INFINITY, |m, s| m.max(*s));
        let total: f64 = scores.iter().map(|s| (s - top).exp()).sum();
        expected.extend((0..head_dim).map(|i| {
            let weighted = scores.iter().zip(v.chunks_exact(head_dim));
            weighted.map(|(s, v)| (s - top).exp() / total * v[i]).sum::<f64>()
        }));
    }
    expected
}
