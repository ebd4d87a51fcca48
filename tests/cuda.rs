//! The CUDA backend without a GPU: driver layer, launchers and kernels on a stand-in for libcuda
//! that runs the same kernel sources on the processor.
//!
//! Kernels meet the arithmetic of the reference in float64, on the case table that the CPU's
//! kernels are tested by; in other orders of threads they must give the same bits. What the
//! stand-in cannot see is the machine code: that is counted and checked by `kernels/build.sh`.

use std::ops::Range;

use jetforge::inference::backend::cases::{
    MATMUL, Numbers, activated, activations, normed, weights,
};
use jetforge::inference::backend::cuda::Device;
use jetforge::inference::backend::cuda::driver::Buffer;
use jetforge::inference::backend::cuda::launch::{
    GemvKernels, Inputs, Matrix, Multiply, NormShape, RowKernels, RowShape, StageKernels, TOP_K_MAX,
};
use jetforge::inference::backend::cuda::strips::{STRIP_ROWS, pack_strip, strip_bytes};
use jetforge::inference::backend::{Activation, NormKind};
use jetforge::inference::quant::{TensorType, dequantize};

use crate::support::stand_in;

/// Orders in which threads of a block run.
pub const ORDERS: &[&str] = &["", "order reverse", "order mixed 5"];

/// The largest error of a sum of products, as a share of the size that a sum of such terms has
/// where their signs are random: inputs are halves, and so are sums of 8 codes.
const GEMV_ERROR_MAX: f64 = 1.5e-2;
/// The same over a whole result, in the root mean square.
const GEMV_RMS_MAX: f64 = 3e-3;

pub fn device(conf: &str) -> Option<(Device, tempfile::TempDir)> {
    let (device, dir) = stand_in::device(conf)?;
    Some((device.expect("the stand-in has a device"), dir))
}

pub fn send(device: &Device, values: &[f32]) -> Buffer {
    let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    let buffer = device.allocate("a test", bytes.len()).expect("memory");
    buffer.write(&bytes).expect("a copy");
    buffer
}

pub fn download(buffer: &Buffer, n: usize) -> Vec<f32> {
    let mut bytes = vec![0; 4 * n];
    buffer.read(&mut bytes).expect("a copy");
    bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
}

fn upload_matrix(
    device: &Device,
    ty: TensorType,
    rows: &[u8],
    (n_rows, n_cols): (usize, usize),
) -> Matrix {
    let row_bytes = ty.row_bytes(n_cols).expect("whole rows");
    let mut strips = vec![0; n_rows.div_ceil(STRIP_ROWS) * strip_bytes(ty, n_cols)];
    let packed = strips.chunks_exact_mut(strip_bytes(ty, n_cols));
    for (rows, strip) in rows.chunks(STRIP_ROWS * row_bytes).zip(packed) {
        pack_strip(ty, rows, n_cols, strip);
    }
    let buffer = device.allocate("a matrix", strips.len()).expect("memory");
    buffer.write(&strips).expect("a copy");
    Matrix { ty, n_rows, n_cols, strips: buffer }
}

/// Stages rows one behind the other.
fn stage(device: &Device, x: &[f32], inputs: &Inputs) {
    let width = inputs.n_cols();
    let shape = RowShape { n_rows: x.len() / width, width, stride: width };
    let kernels = StageKernels::load(device).expect("kernels");
    kernels.stage(shape, &send(device, x), inputs).expect("staged");
}

/// A product and what it should be.
struct Product {
    ty: TensorType,
    shape: (usize, usize),
    n: usize,
    rows: Vec<u8>,
    x: Vec<f32>,
    bias: Vec<f32>,
}

impl Product {
    fn new(ty: TensorType, shape: (usize, usize), n: usize) -> Product {
        let (n_rows, n_cols) = shape;
        let rows = weights(ty, n_rows, n_cols, 7);
        let x = activations(n, n_cols, n_cols, 11);
        let mut numbers = Numbers::new(13);
        let bias = (0..n_rows).map(|_| numbers.float()).collect();
        Product { ty, shape, n, rows, x, bias }
    }

    /// `y` begins as `[n, n_rows + 3]` of `before`; the result.
    fn run(&self, device: &Device, add: bool) -> Vec<f32> {
        self.run_by(device, add, GemvKernels::multiply)
    }

    fn run_by(&self, device: &Device, add: bool, multiply: Multiply) -> Vec<f32> {
        let (n_rows, n_cols) = self.shape;
        let kernels = GemvKernels::load(device, &[self.ty]).expect("kernels");
        let matrix = upload_matrix(device, self.ty, &self.rows, self.shape);
        let inputs = Inputs::new(device, n_cols, self.n).expect("memory");
        stage(device, &self.x, &inputs);
        let (bias, stride) = (send(device, &self.bias), n_rows + 3);
        let y = send(device, &vec![0.25; self.n * stride]);
        let to = (&y, stride, add);
        multiply(&kernels, &matrix, &inputs, Some(&bias), to, 0..self.n).expect("launched");
        download(&y, self.n * stride)
    }

    /// Each result in float64, and the root of the sum of its terms' squares.
    fn expected(&self) -> Vec<(f64, f64)> {
        let (n_rows, n_cols) = self.shape;
        let row_bytes = self.ty.row_bytes(n_cols).expect("whole rows");
        let mut row = vec![0f32; n_cols];
        let mut out = vec![(0.0, 0.0); self.n * n_rows];
        for (r, bytes) in self.rows.chunks_exact(row_bytes).enumerate() {
            dequantize(self.ty, bytes, &mut row);
            for (c, x) in self.x.chunks_exact(n_cols).enumerate() {
                let terms = row.iter().zip(x).map(|(w, x)| f64::from(*w) * f64::from(*x));
                let (sum, squares) =
                    terms.fold((0.0, 0.0), |(sum, squares), t| (sum + t, squares + t * t));
                out[c * n_rows + r] = (sum + f64::from(self.bias[r]), squares.sqrt());
            }
        }
        out
    }

    /// The largest error and its root mean square; nothing is written behind a row.
    fn check(&self, got: &[f32], before: f64) -> (f64, f64) {
        let n_rows = self.shape.0;
        let expected = self.expected();
        let (mut worst, mut squares) = (0f64, 0.0);
        for (c, row) in got.chunks_exact(n_rows + 3).enumerate() {
            assert_eq!(row[n_rows..], [0.25; 3], "{} writes past its rows", self.ty);
            for (r, y) in row[..n_rows].iter().enumerate() {
                let (expected, size) = expected[c * n_rows + r];
                let error = (f64::from(*y) - expected - before).abs() / size.max(1e-30);
                assert!(error.is_finite(), "{} row {r} of column {c} is {y}", self.ty);
                worst = worst.max(error);
                squares += error * error;
            }
        }
        (worst, (squares / expected.len() as f64).sqrt())
    }
}

/// Rows that are no longer split on a small device, of several groups.
const MANY_ROWS: (usize, usize) = (517, 768);

#[test]
fn every_type_multiplies_like_the_reference() {
    let Some((device, _dir)) = device("") else { return };
    let (mut report, mut is_close) = (Vec::new(), true);
    for ty in TensorType::ALL {
        let (mut worst, mut rms) = (0f64, 0f64);
        let cases = MATMUL.iter().map(|case| ((case.n_rows.min(40), case.n_cols(ty)), case.n));
        // And so many rows that a warp has several strips, as in all but the smallest models, by
        // the kernels for few columns and for many.
        for (shape, n) in cases.chain([(MANY_ROWS, 2), (MANY_ROWS, 9)]) {
            let product = Product::new(ty, shape, n);
            let (w, r) = product.check(&product.run(&device, false), 0.0);
            (worst, rms) = (worst.max(w), rms.max(r));
        }
        report.push(format!("{ty}: worst {worst:.1e}, rms {rms:.1e}"));
        is_close &= worst < GEMV_ERROR_MAX && rms < GEMV_RMS_MAX;
    }
    println!("{}", report.join("\n"));
    assert!(is_close, "the largest error of a type, see above");
}

#[test]
fn a_product_can_be_added_to_what_is_there() {
    let Some((device, _dir)) = device("") else { return };
    for n in [2, 20] {
        let product = Product::new(TensorType::N4, (9, 96), n);
        let (worst, _) = product.check(&product.run(&device, true), 0.25);
        assert!(worst < GEMV_ERROR_MAX, "{n} columns: {worst:.1e}");
    }
}

/// One column and few go by one kind of kernel, many by another; rows of a small matrix are split
/// among more lanes than those of a large one.
#[test]
fn a_column_has_the_same_bits_in_any_company() {
    let Some((device, _dir)) = device("") else { return };
    for ty in TensorType::ALL {
        for shape in [(13, 2048), MANY_ROWS, (9, 320usize.next_multiple_of(ty.row_unit()))] {
            let together = Product::new(ty, shape, 22);
            let (n_rows, n_cols) = together.shape;
            let all = together.run(&device, false);
            for (first, n) in [(0, 1), (1, 2), (5, 7), (15, 1), (21, 1)] {
                let x = together.x[first * n_cols..][..n * n_cols].to_vec();
                let fewer = Product { n, x, ..Product::new(ty, shape, 1) }.run(&device, false);
                let all = &all[first * (n_rows + 3)..][..n * (n_rows + 3)];
                assert_eq!(fewer, all, "{ty} {shape:?}, {n} columns from {first}");
            }
        }
    }
}

/// Tokens of prompts and of answers in one batch: each kind goes by ranges of the columns.
#[test]
fn a_range_of_columns_has_the_bits_of_all_and_leaves_the_others_alone() {
    let Some((device, _dir)) = device("capability 8 0") else { return };
    for multiply in [GemvKernels::multiply, GemvKernels::multiply_prompt] as [Multiply; 2] {
        let (n_rows, n_cols, n) = (13, 512, 70);
        let product = Product::new(TensorType::Q4_0, (n_rows, n_cols), n);
        let kernels = GemvKernels::load(&device, &[product.ty]).expect("kernels");
        let matrix = upload_matrix(&device, product.ty, &product.rows, product.shape);
        let inputs = Inputs::new(&device, n_cols, n).expect("memory");
        stage(&device, &product.x, &inputs);
        let run = |ranges: Vec<Range<usize>>| {
            let y = send(&device, &vec![0.25; n * n_rows]);
            for range in ranges {
                let to = (&y, n_rows, false);
                multiply(&kernels, &matrix, &inputs, None, to, range).expect("launched");
            }
            download(&y, n * n_rows)
        };
        let whole = 0..n;
        let all = run(vec![whole]);
        assert_eq!(run(vec![69..70, 0..3, 3..3, 40..69, 3..40]), all);
        let some = run(vec![5..30, 69..70]);
        assert_eq!(some[5 * n_rows..30 * n_rows], all[5 * n_rows..30 * n_rows]);
        assert_eq!(some[69 * n_rows..], all[69 * n_rows..]);
        assert!(
            some[..5 * n_rows].iter().chain(&some[30 * n_rows..69 * n_rows]).all(|y| *y == 0.25)
        );
    }
}

#[test]
fn products_have_the_same_bits_in_any_order_of_threads() {
    for ty in TensorType::ALL {
        for (shape, n) in [((7, 1280), 5), ((7, 1280), 13), (MANY_ROWS, 13)] {
            let product = Product::new(ty, shape, n);
            let mut first: Option<Vec<f32>> = None;
            for order in ORDERS {
                let Some((device, _dir)) = device(order) else { return };
                let got = product.run(&device, false);
                assert_eq!(*first.get_or_insert(got.clone()), got, "{ty}, {n} columns, {order}");
            }
        }
    }
}

/// On tensor cores, as a device of capability 8.0 has them.
#[test]
fn a_prompt_multiplies_like_the_reference_on_tensor_cores_in_any_company() {
    let Some((device, _dir)) = device("capability 8 0") else { return };
    for ty in [TensorType::N4, TensorType::Q4_K, TensorType::Q4_0] {
        for (shape, n) in [((1, 256), 1), ((131, 512), 9), ((37, 768), 70)] {
            let product = Product::new(ty, shape, n);
            let got = product.run_by(&device, false, GemvKernels::multiply_prompt);
            let (worst, rms) = product.check(&got, 0.0);
            println!("{ty} {shape:?} {n}: worst {worst:.1e}, rms {rms:.1e}");
            assert!(worst < GEMV_ERROR_MAX && rms < GEMV_RMS_MAX, "{ty} {shape:?}");
            let (n_rows, n_cols) = shape;
            let x = product.x[(n - 1) * n_cols..].to_vec();
            let last = Product { n: 1, x, ..Product::new(ty, shape, 1) };
            let last = last.run_by(&device, false, GemvKernels::multiply_prompt);
            assert_eq!(last, got[(n - 1) * (n_rows + 3)..], "{ty} {shape:?}");
        }
    }
    let orders = ["order reverse", "order mixed 5"];
    let product = Product::new(TensorType::N4, (40, 512), 66);
    let first = product.run_by(&device, true, GemvKernels::multiply_prompt);
    for order in orders {
        let Some((device, _dir)) = self::device(&format!("capability 8 0\n{order}")) else {
            return;
        };
        let got = product.run_by(&device, true, GemvKernels::multiply_prompt);
        assert_eq!(got, first, "{order}");
    }
}

#[test]
fn inputs_of_any_size_are_staged() {
    let Some((device, _dir)) = device("") else { return };
    for scale in [0.0, 1e-30, 1e-6, 1e6, 1e30] {
        let mut product = Product::new(TensorType::N4, (5, 320), 1);
        product.x.iter_mut().for_each(|x| *x *= scale);
        product.bias.fill(0.0);
        let got = product.run(&device, false);
        if scale == 0.0 {
            assert_eq!(got[..5], [0.0; 5]);
        } else {
            let (worst, _) = product.check(&got, 0.0);
            assert!(worst < GEMV_ERROR_MAX, "times {scale}: {worst:.1e}");
        }
    }
}

pub fn close(got: &[f32], expected: &[f64], error_max: f64, what: &str) {
    assert_eq!(got.len(), expected.len(), "{what}");
    let size = expected.iter().fold(0f64, |m, y| m.max(y.abs())).max(1e-30);
    for (i, (got, expected)) in got.iter().zip(expected).enumerate() {
        let error = (f64::from(*got) - expected).abs() / size;
        assert!(error <= error_max, "{what} [{i}]: {got} and not {expected}");
    }
}

#[test]
fn norms_are_those_of_float64_in_any_order_of_threads() {
    for order in ORDERS {
        let Some((device, _dir)) = device(order) else { return };
        let kernels = RowKernels::load(&device).expect("kernels");
        for (width, n_run) in [(1, 1), (64, 3), (129, 1), (2048, 1)] {
            let (n_rows, stride) = (3, width * n_run + 5);
            let x = activations(n_rows, width * n_run, stride, 3);
            let weight: Vec<f32> = activations(1, width, width, 4);
            let bias: Vec<f32> = activations(1, width, width, 5);
            for kind in [NormKind::Rms, NormKind::Layer] {
                let shape = RowShape { n_rows, width: width * n_run, stride };
                let norm = NormShape { kind, eps: 1e-5, width };
                let (buffer, w, b) =
                    (send(&device, &x), send(&device, &weight), send(&device, &bias));
                kernels.norm(shape, norm, (&buffer, &buffer), (&w, Some(&b))).expect("launched");
                let mut expected: Vec<f64> = x.iter().map(|v| f64::from(*v)).collect();
                for row in expected.chunks_exact_mut(stride) {
                    for run in row[..width * n_run].chunks_exact_mut(width) {
                        normed(run, kind, 1e-5, &weight, Some(&bias));
                    }
                }
                close(&download(&buffer, x.len()), &expected, 2e-6, &format!("{kind:?} {width}"));
            }
        }
    }
}

/// Lengths of rows: the shortest, those that fill no part, group or thread block, the widest of a
/// small model, and of a large one.
const STAGED: [usize; 6] = [1, 31, 257, 513, 2048, 18_944];

/// Runs an operation alone, and staged with its rows, which then must have the same bits; the rows.
fn staged(
    (device, kernels): (&Device, &StageKernels),
    (x, shape): (&[f32], RowShape),
    alone: impl Fn(&Buffer),
    both: impl Fn(&Buffer, &Inputs),
    what: &str,
) -> Vec<f32> {
    let columns = || Inputs::new(device, shape.width, shape.n_rows).expect("memory");
    let [(rows, first), (rows_of_both, second)] = [(); 2].map(|()| (send(device, x), columns()));
    alone(&rows);
    kernels.stage(shape, &rows, &first).expect("launched");
    both(&rows_of_both, &second);
    let got = download(&rows, x.len());
    assert!(download(&rows_of_both, x.len()) == got, "the rows of {what}");
    let [first, second] = [first, second].map(|columns| columns.read(shape.n_rows).expect("read"));
    assert!(first == second, "the columns of {what}");
    got
}

#[test]
fn a_norm_that_is_staged_has_the_bits_of_both_alone_in_any_order_of_threads() {
    for (order, width) in ORDERS.iter().flat_map(|order| STAGED.map(|width| (order, width))) {
        let Some((device, _dir)) = device(order) else { return };
        let kernels = RowKernels::load(&device).expect("kernels");
        let stages = StageKernels::load(&device).expect("kernels");
        let shape = RowShape { n_rows: 3, width, stride: width + 5 };
        let x = activations(3, width, shape.stride, 3);
        let (from, weight) = (send(&device, &x), activations(1, width, width, 4));
        let bias = activations(1, width, width, 5);
        let there = (send(&device, &weight), send(&device, &bias));
        for kind in [NormKind::Rms, NormKind::Layer] {
            let norm = NormShape { kind, eps: 1e-5, width };
            for (in_place, bias) in [(true, None), (false, Some(&bias))] {
                let what = format!("{kind:?} of {width}, {order}");
                let weights = (&there.0, bias.map(|_| &there.1));
                let from = if in_place { None } else { Some(&from) };
                let alone = |out: &Buffer| {
                    let bufs = (from.unwrap_or(out), out);
                    kernels.norm(shape, norm, bufs, weights).expect("launched");
                };
                let both = |out: &Buffer, inputs: &Inputs| {
                    let bufs = (from.unwrap_or(out), out);
                    stages.norm(shape, norm, bufs, weights, inputs).expect("launched");
                };
                let got = staged((&device, &stages), (&x, shape), alone, both, &what);
                let mut expected = wide(&x);
                for row in expected.chunks_exact_mut(shape.stride) {
                    normed(&mut row[..width], kind, 1e-5, &weight, bias.map(|bias| &bias[..]));
                }
                close(&got, &expected, 2e-6, &what);
            }
        }
    }
}

#[test]
fn an_activation_that_is_staged_has_the_bits_of_both_alone_in_any_order_of_threads() {
    for (order, width) in ORDERS.iter().flat_map(|order| STAGED.map(|width| (order, width))) {
        let Some((device, _dir)) = device(order) else { return };
        let kernels = RowKernels::load(&device).expect("kernels");
        let stages = StageKernels::load(&device).expect("kernels");
        let shape = RowShape { n_rows: 3, width, stride: width + 5 };
        let [x, y] = [1, 2].map(|seed| activations(3, width, shape.stride, seed));
        let factors = send(&device, &y);
        for activation in [Activation::Silu, Activation::Gelu, Activation::Tanh] {
            for up in [Some(&factors), None] {
                let what = format!("{activation:?} of {width}, {order}");
                let got = staged(
                    (&device, &stages),
                    (&x, shape),
                    |x| kernels.glu(shape, activation, (x, up)).expect("launched"),
                    |x, inputs| stages.glu(shape, activation, (x, up), inputs).expect("launched"),
                    &what,
                );
                let mut expected = wide(&x);
                for (row, y) in
                    expected.chunks_exact_mut(shape.stride).zip(y.chunks_exact(shape.stride))
                {
                    for (x, y) in row[..width].iter_mut().zip(y) {
                        *x = activated(activation, *x) * up.map_or(1.0, |_| f64::from(*y));
                    }
                }
                close(&got, &expected, 1e-6, &what);
            }
        }
    }
}

fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().map(|v| f64::from(*v)).collect()
}

#[test]
fn rows_are_added_and_chosen() {
    let Some((device, _dir)) = device("") else { return };
    let kernels = RowKernels::load(&device).expect("kernels");
    let shape = RowShape { n_rows: 3, width: 320, stride: 320 };
    let (x, y) = (activations(3, 320, 320, 1), activations(3, 320, 320, 2));
    let (a, b) = (send(&device, &x), send(&device, &y));
    kernels.add(shape, &a, 0.5, Some(&b)).expect("launched");
    let expected: Vec<f64> = wide(&x).iter().zip(wide(&y)).map(|(x, y)| x * 0.5 + y).collect();
    close(&download(&a, x.len()), &expected, 1e-7, "add");

    let out = send(&device, &vec![0.0; 640]);
    let index = device.allocate("rows", 8).expect("memory");
    index.write(&[2, 0, 0, 0, 0, 0, 0, 0]).expect("a copy");
    let two = RowShape { n_rows: 2, ..shape };
    kernels.select(two, (&send(&device, &x), 3), &out, (&index, &[2, 0])).expect("launched");
    assert_eq!(download(&out, 640), [&x[640..], &x[..320]].concat());
}

#[test]
fn the_largest_come_in_order_whatever_the_order_of_threads() {
    let (n_rows, width) = (3, 5000);
    let mut x = activations(n_rows, width, width, 9);
    // Equals, one run's best values all together, and values that are no numbers.
    [4000, 17, 2300, 999].iter().for_each(|&i| x[i] = 50.0);
    (0..4).for_each(|i| x[5 + 1024 * i] = 60.0 + i as f32);
    [0, 1, 1024].iter().for_each(|&i| x[i] = f32::NAN);
    x[2 * width..].fill(f32::NAN);
    x[2 * width + 77] = f32::NEG_INFINITY;
    for order in ORDERS {
        let Some((device, _dir)) = device(order) else { return };
        let kernels = RowKernels::load(&device).expect("kernels");
        let shape = RowShape { n_rows, width, stride: width };
        for k in [1, 7, TOP_K_MAX] {
            let out = device.allocate("answers", 8 * n_rows * k).expect("memory");
            kernels.top_k(shape, &send(&device, &x), k, &out).expect("launched");
            let got = download(&out, 2 * n_rows * k);
            for (row, got) in x.chunks_exact(width).zip(got.chunks_exact(2 * k)) {
                let mut expected: Vec<(f32, u32)> =
                    row.iter().copied().zip(0..).filter(|(x, _)| !x.is_nan()).collect();
                expected.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
                expected.resize(expected.len().max(k), (f32::NEG_INFINITY, u32::MAX));
                let got: Vec<(f32, u32)> =
                    got.chunks_exact(2).map(|pair| (pair[0], pair[1].to_bits())).collect();
                assert_eq!(got, expected[..k], "{k} of a row, {order}");
            }
        }
    }
}
