//! The formats against gguf-py's bits, hand values and each other.
//!
//! Golden vectors: `python3 tests/tools/golden_quant.py tests/golden/quant`.

use super::*;
use proptest::prelude::*;
use std::path::Path;

/// Bytes of `tests/golden/quant/TYPE.WHAT.bin`.
fn golden(ty: TensorType, what: &str) -> Vec<u8> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/quant");
    let path = dir.join(format!("{}.{what}.bin", ty.name().to_lowercase()));
    std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect()
}

/// The first place where the bits differ.
fn first_difference(got: &[f32], expected: &[f32]) -> Option<usize> {
    assert_eq!(got.len(), expected.len());
    got.iter().zip(expected).position(|(g, e)| g.to_bits() != e.to_bits())
}

fn quantised_types() -> impl Iterator<Item = TensorType> {
    TensorType::ALL.into_iter().filter(|&ty| Codes::of(ty) != Codes::Float)
}

/// Where the blocks of a type keep f16 values.
fn f16_places(ty: TensorType) -> &'static [usize] {
    match ty {
        TensorType::F32 | TensorType::F16 | TensorType::BF16 => &[],
        TensorType::Q4_0 | TensorType::Q5_0 | TensorType::Q8_0 => &[0],
        TensorType::IQ4_NL | TensorType::IQ4_XS => &[0],
        TensorType::IQ3_XXS | TensorType::IQ3_S => &[0],
        TensorType::Q4_1 | TensorType::Q5_1 | TensorType::Q4_K | TensorType::Q5_K => &[0, 2],
        TensorType::Q2_K => &[80, 82],
        TensorType::Q3_K => &[108],
        TensorType::Q6_K => &[208],
        TensorType::N4 | TensorType::N3 => &[0, 2],
    }
}

/// Asserts that the parts of `row`, multiplied out, give the numbers of `dequantize`, or are as
/// little finite, and that their codes fit the bits that kernels reserve for them.
fn assert_expansion(ty: TensorType, row: &[u8]) {
    let mut weights = vec![0.0; row.len() / ty.block_bytes() * ty.block_len()];
    dequantize(ty, row, &mut weights);
    let code_max = match ty {
        TensorType::Q2_K => 3,
        TensorType::Q3_K | TensorType::N3 => 7,
        TensorType::Q5_0 | TensorType::Q5_1 | TensorType::Q5_K => 31,
        TensorType::Q6_K => 63,
        TensorType::Q8_0 => 255,
        _ => 15,
    };
    for (part_idx, expected) in weights.as_chunks::<32>().0.iter().enumerate() {
        let p = part(ty, row, part_idx);
        assert!(p.codes.iter().all(|&code| code <= code_max), "{ty}: {:?}", p.codes);
        for (k, expected) in expected.iter().enumerate() {
            let scale = f16_to_f32(p.d) * f32::from(p.scale[k / 16]);
            let min = f16_to_f32(p.dmin) * f32::from(p.min[k / 16]);
            let got = match Codes::of(ty) {
                Codes::Centered(zero) => scale * (f32::from(p.codes[k]) - f32::from(zero)),
                Codes::Steps(steps) => scale * (steps.factor() * steps.value(p.codes[k])),
                Codes::WithMin => scale * f32::from(p.codes[k]) - min,
                Codes::Float => unreachable!("{ty} has no blocks"),
            };
            let agree = got == *expected || !got.is_finite() && !expected.is_finite();
            assert!(agree, "{ty} part {part_idx} weight {k}: {got} is not {expected}");
        }
    }
}

#[test]
fn dequantize_has_the_bits_of_gguf_py() {
    for ty in TensorType::ALL.into_iter().filter(|ty| !ty.is_native()) {
        let file = golden(ty, "dequantize");
        let n_blocks = file.len() / (ty.block_bytes() + 4 * ty.block_len());
        assert!(n_blocks >= 6, "{ty}: {n_blocks} blocks");
        let (blocks, weights) = file.split_at(n_blocks * ty.block_bytes());
        let expected = floats(weights);
        let mut got = vec![f32::NAN; expected.len()];
        dequantize(ty, blocks, &mut got);
        if let Some(i) = first_difference(&got, &expected) {
            panic!("{ty} weight {i}: {:e} is not {:e}", got[i], expected[i]);
        }
    }
}

#[test]
fn quantize_has_the_bits_of_gguf_py() {
    use TensorType::*;
    for ty in [F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0] {
        let file = golden(ty, "quantize");
        let n_blocks = file.len() / (ty.block_bytes() + 4 * ty.block_len());
        let (weights, expected) = file.split_at(n_blocks * 4 * ty.block_len());
        let weights = floats(weights);
        let got = quantize(ty, &weights, None).expect("the type is offered");
        for (i, (g, e)) in
            got.chunks(ty.block_bytes()).zip(expected.chunks(ty.block_bytes())).enumerate()
        {
            assert_eq!(g, e, "{ty} block {i}, first weight {:e}", weights[i * ty.block_len()]);
        }
    }
}

/// Canary: the golden comparison sees one flipped bit, even in a code or in the sign of a zero.
#[test]
fn golden_comparison_can_fail() {
    let ty = TensorType::Q6_K;
    let file = golden(ty, "dequantize");
    let n_blocks = file.len() / (ty.block_bytes() + 4 * ty.block_len());
    let (blocks, weights) = file.split_at(n_blocks * ty.block_bytes());
    let mut blocks = blocks.to_vec();
    blocks[ty.block_bytes()] ^= 1;
    let expected = floats(weights);
    let mut got = vec![0.0; expected.len()];
    dequantize(ty, &blocks, &mut got);
    assert_eq!(first_difference(&got, &expected), Some(ty.block_len()));
    assert_eq!(first_difference(&[0.0], &[-0.0]), Some(0));
}

/// Every f16 by its definition, so that a software and a hardware conversion agree.
#[test]
fn every_f16_is_read_by_its_definition() {
    for bits in 0..=u16::MAX {
        let mut got = [0.0];
        dequantize(TensorType::F16, &bits.to_le_bytes(), &mut got);
        let sign = if bits >> 15 == 1 { -1.0 } else { 1.0 };
        let (exponent, mantissa) = (i32::from(bits >> 10 & 31), f32::from(bits & 1023));
        match exponent {
            31 if mantissa == 0.0 => assert_eq!(got[0], sign * f32::INFINITY),
            31 => assert!(got[0].is_nan()),
            0 => assert_eq!(got[0].to_bits(), (sign * mantissa * 2f32.powi(-24)).to_bits()),
            e => assert_eq!(got[0], sign * (1024.0 + mantissa) * 2f32.powi(e - 25)),
        }
    }
}

#[test]
fn q4_0_by_hand() {
    let mut block = [0u8; 18];
    block[..2].copy_from_slice(&half::f16::from_f32(0.5).to_le_bytes());
    block[2] = 0xF3; // weight 0 has code 3, weight 16 has code 15
    let mut got = [0.0; 32];
    dequantize(TensorType::Q4_0, &block, &mut got);
    assert_eq!((got[0], got[1], got[16]), (-2.5, -4.0, 3.5));
    let p = part(TensorType::Q4_0, &block, 0);
    assert_eq!((p.codes[0], p.codes[16], p.d, p.scale), (3, 15, 0x3800, [1; 2]));
}

#[test]
fn every_type_is_written_or_says_that_it_is_not() {
    use TensorType::*;
    for ty in TensorType::ALL {
        assert_eq!(quantize(ty, &[1.0; 256], None).is_some(), is_written(ty), "{ty}");
    }
    for ty in [IQ3_XXS, IQ3_S, IQ4_NL, IQ4_XS] {
        assert_eq!(quantize(ty, &[1.0; 256], None), None, "{ty}");
    }
    assert_eq!(quantize(Q8_0, &[], None), Some(Vec::new()));
}

#[test]
fn an_f32_comes_back_as_it_was() {
    let weights = [1.5, -0.0, f32::MIN_POSITIVE / 8.0, f32::INFINITY, f32::MAX];
    let bytes = quantize(TensorType::F32, &weights, None).expect("floats are offered");
    let mut got = [0.0; 5];
    dequantize(TensorType::F32, &bytes, &mut got);
    assert_eq!(first_difference(&got, &weights), None);
}

#[test]
#[should_panic(expected = "bytes of 32 Q4_0 weights")]
fn wrong_lengths_are_the_callers_error() {
    dequantize(TensorType::Q4_0, &[0; 17], &mut [0.0; 32]);
}

/// Codes of all zeros, all ones and both mixed, under every pair of extreme f16 scales.
/// What is packed comes out again bit for bit, part by part and as weights.
#[test]
fn strips_are_taken_apart_into_the_parts_that_made_them() {
    for ty in quantised_types() {
        for n_col in [1, 3, 9].map(|n| n * ty.row_unit()) {
            let row_bytes = ty.row_bytes(n_col).unwrap();
            let bytes = (0..6 * row_bytes).map(|i| (i * i * 7 / 3 % 251) as u8);
            let mut rows: Vec<u8> = bytes.collect();
            for block in rows.chunks_mut(row_bytes).flat_map(|row| row.chunks_mut(ty.block_bytes()))
            {
                for &at in f16_places(ty) {
                    block[at + 1] = 0x20 | block[at + 1] & 0x8f;
                }
            }
            let n_byte = Form::Strips.n_bytes(ty, n_col as u64, 6).unwrap() as usize;
            let mut strips = vec![0xff; n_byte];
            let packed = strips.chunks_mut(n_byte / 2);
            for (strip, rows) in packed.zip(rows.chunks(4 * row_bytes)) {
                strip::pack_strip(ty, rows, n_col, strip);
            }
            for (r, row) in rows.chunks(row_bytes).enumerate() {
                for b in 0..n_col / 32 {
                    let got = Form::Strips.part(ty, &strips, n_col, r, b);
                    assert_eq!(got, part(ty, row, b), "{ty} row {r} block {b} of {n_col}");
                }
                let (mut got, mut expected) = (vec![0.0; n_col], vec![0.0; n_col]);
                Form::Strips.read_row(ty, &strips, r, &mut got);
                dequantize(ty, row, &mut expected);
                assert_eq!(first_difference(&got, &expected), None, "{ty} row {r}");
            }
        }
    }
}

#[test]
fn expansion_is_dequantize_at_the_extremes() {
    let scales = [0, 0x8000, 1, 0x8001, 0x0400, 0x3C00, 0xBC00, 0x7BFF, 0xFBFF, 0x7C00, 0xFC00];
    for ty in quantised_types() {
        for fill in [0x00u8, 0xFF, 0x0F, 0xF0, 0x55, 0x80, 0x7F] {
            for first in scales {
                for second in scales {
                    let mut row = vec![fill; 2 * ty.block_bytes()];
                    for block in row.chunks_mut(ty.block_bytes()) {
                        for (&at, scale) in f16_places(ty).iter().zip([first, second]) {
                            block[at..at + 2].copy_from_slice(&u16::to_le_bytes(scale));
                        }
                    }
                    assert_expansion(ty, &row);
                }
            }
        }
    }
}

proptest! {
    /// Neither reading nor expanding panics on any bytes, and they agree: NaN scales included.
    #[test]
    fn expansion_is_dequantize_on_any_bytes(bytes in prop::collection::vec(any::<u8>(), 420)) {
        for ty in quantised_types() {
            assert_expansion(ty, &bytes[..2 * ty.block_bytes()]);
        }
    }

    #[test]
    fn reading_floats_never_panics(bytes in prop::collection::vec(any::<u8>(), 64)) {
        for ty in [TensorType::F32, TensorType::F16, TensorType::BF16] {
            dequantize(ty, &bytes, &mut vec![0.0; 64 / ty.block_bytes()]);
        }
    }

    /// Any 32 floats at all, NaN and infinity too, can be written without a panic.
    #[test]
    fn writing_never_panics(bits in prop::array::uniform32(any::<u32>())) {
        for ty in TensorType::ALL.into_iter().filter(|ty| ty.row_unit() <= 32) {
            quantize(ty, &bits.map(f32::from_bits), None);
        }
    }

    /// A weight comes back within half a step, or a whole one at the end of the `_0` types that
    /// lacks a code. Storing scale and minimum as f16 costs up to 2^-11 of the range besides.
    #[test]
    fn a_round_trip_stays_within_a_step(weights in prop::array::uniform32(-100.0f32..100.0)) {
        use TensorType::*;
        let peak = weights.iter().fold(0.0f32, |p, w| p.max(w.abs()));
        for (ty, rounding) in [
            (Q4_0, peak / 8.0), (Q4_1, peak / 15.0), (Q5_0, peak / 16.0), (Q5_1, peak / 31.0),
            (Q8_0, peak / 254.0),
        ] {
            let bytes = quantize(ty, &weights, None).expect("the type is offered");
            let mut got = [0.0; 32];
            dequantize(ty, &bytes, &mut got);
            for (w, g) in weights.iter().zip(got) {
                let error_max = rounding + peak * 2f32.powi(-9) + 1e-6;
                prop_assert!((w - g).abs() <= error_max, "{ty}: {w} came back as {g}");
            }
        }
    }
}

/// The searched quantizers against llama.cpp's, on rows that both make from the same seed.
///
/// Golden errors: `python3 tests/tools/golden_quantize.py tests/golden/quantize`.
mod search {
    use super::*;

    const N_ROWS: usize = 24;
    const N_COLS: usize = 1024;

    #[derive(serde::Deserialize)]
    struct Figure {
        rows: String,
        seed: u64,
        importance: bool,
        #[serde(rename = "type")]
        ty: String,
        error: f64,
    }

    /// Numbers in 0 to 1 from splitmix64.
    fn uniforms(seed: u64, n: usize) -> Vec<f64> {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
            let mut z = state;
            z = (z ^ z >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            z = (z ^ z >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
            ((z ^ z >> 31) >> 11) as f64 / (1u64 << 53) as f64
        };
        (0..n).map(|_| next()).collect()
    }

    fn weights(kind: &str, seed: u64) -> Vec<f32> {
        let u = uniforms(seed, 5 * N_ROWS * N_COLS);
        let weight = |u: &[f64; 5]| {
            let x = (((u[0] + u[1]) + u[2]) + u[3] - 2.0) * 0.05;
            (if kind == "heavy" { x / (0.1 + u[4]) } else { x }) as f32
        };
        u.as_chunks::<5>().0.iter().map(weight).collect()
    }

    fn importance(seed: u64) -> Vec<f32> {
        uniforms(seed, N_COLS).iter().map(|u| (0.05 + 1.0 / (0.02 + u).powf(1.5)) as f32).collect()
    }

    /// The error that rows have after they were written and read, as a part of their square.
    fn error_of(ty: TensorType, rows: &[f32], importance: Option<&[f32]>) -> f64 {
        let (mut miss, mut all) = (0f64, 0f64);
        for row in rows.chunks(N_COLS) {
            let bytes = quantize(ty, row, importance).expect("the type is written");
            let mut got = vec![0.0; N_COLS];
            dequantize(ty, &bytes, &mut got);
            for (i, (x, y)) in row.iter().zip(got).enumerate() {
                let w = importance.map_or(1.0, |row| f64::from(row[i]));
                miss += w * f64::from(x - y).powi(2);
                all += w * f64::from(*x).powi(2);
            }
        }
        miss / all
    }

    #[test]
    fn errors_are_no_larger_than_llama_cpps() {
        let golden = include_str!("../../../tests/golden/quantize/errors.json");
        let figures: Vec<Figure> = serde_json::from_str(golden).expect("errors.json");
        assert_eq!(figures.len(), 40);
        let importance = importance(3);
        let mut worse = Vec::new();
        for figure in figures {
            let ty = TensorType::ALL.into_iter().find(|ty| ty.name() == figure.ty).expect("a type");
            let rows = weights(&figure.rows, figure.seed);
            let row = figure.importance.then_some(&importance[..]);
            let ratio = error_of(ty, &rows, row) / figure.error;
            if ratio > 1.01 {
                worse.push((figure.rows, ty, figure.importance, ratio));
            }
        }
        assert!(worse.is_empty(), "{worse:?}");
    }

    /// N4 has the bits of Q4_K and N3 nearly those of Q3_K, and both do better; so does a row that
    /// ends in a short block.
    #[test]
    fn native_types_are_better_than_k_quants_of_their_size() {
        let importance = importance(3);
        for kind in ["normal", "heavy"] {
            let rows = weights(kind, 5);
            for row in [None, Some(&importance[..])] {
                let error = |ty| error_of(ty, &rows, row);
                let n4 = error(TensorType::N4) / error(TensorType::Q4_K);
                let n3 = error(TensorType::N3) / error(TensorType::Q3_K);
                assert!(n4 < 0.98 && n3 < 0.99, "{kind}: {n4}, {n3}");
            }
        }
    }

    /// Constant, tiny, huge and mostly empty rows come back as well as a scale of f16 allows.
    #[test]
    fn rows_without_a_spread_come_back() {
        use TensorType::*;
        let mut one_peak = [0.0; 256];
        one_peak[77] = -3.0;
        for row in [[0.0; 256], [0.5; 256], [-0.5; 256], one_peak] {
            for ty in [Q2_K, Q3_K, Q4_K, Q5_K, Q6_K] {
                let bytes = quantize(ty, &row, None).expect("the type is written");
                let mut got = [f32::NAN; 256];
                dequantize(ty, &bytes, &mut got);
                let worst = row.iter().zip(got).map(|(x, y)| (x - y).abs()).fold(0.0, f32::max);
                assert!(worst <= 0.02, "{ty}: {worst} off in a row that begins {}", row[0]);
            }
        }
    }

    /// An importance of zeros says nothing, and one column that counts does not silence the rest.
    #[test]
    fn an_importance_without_sense_does_no_harm() {
        let rows = weights("normal", 4);
        let row = &rows[..256];
        let mut one_column = [0.0; 256];
        one_column[3] = 1.0;
        let plain = quantize(TensorType::Q4_K, row, None);
        for nonsense in [[0.0; 256], [f32::NAN; 256], [f32::INFINITY; 256], [-1.0; 256]] {
            assert_eq!(quantize(TensorType::Q4_K, row, Some(&nonsense)), plain);
        }
        let bytes = quantize(TensorType::Q4_K, row, Some(&one_column)).expect("it is written");
        let mut got = [0.0; 256];
        dequantize(TensorType::Q4_K, &bytes, &mut got);
        let square = |x: f32| x * x;
        let miss: f32 = row.iter().zip(got).map(|(x, y)| square(x - y)).sum();
        assert!(miss < 0.01 * row.iter().copied().map(square).sum::<f32>(), "{miss}");
    }

    proptest! {
        #[test]
        fn searching_never_panics(
            bits in prop::collection::vec(any::<u32>(), 256),
            importance in prop::collection::vec(any::<u32>(), 256),
        ) {
            let row: Vec<f32> = bits.into_iter().map(f32::from_bits).collect();
            let importance: Vec<f32> = importance.into_iter().map(f32::from_bits).collect();
            for ty in TensorType::ALL {
                quantize(ty, &row, None);
                quantize(ty, &row, Some(&importance));
            }
        }
    }
}
