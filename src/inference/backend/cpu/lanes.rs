//! Lanes: the vocabulary of matrix multiplication. In panels a lane is an output row.
//!
//! A vector of codes holds four consecutive weights of each of its rows, so that one integer dot
//! instruction advances every row by four weights, and no sum ever crosses lanes. Each instruction
//! set does the same exact integer sums and the same float operations on each row, in the same
//! order; only how many rows share a register differs. So results are equal bit for bit.

use super::expand::Fold;
use crate::inference::quant::f16_to_f32;
pub use crate::inference::quant::panel::Dot;

/// Does `$body` for each number below `$n`, at most 16, written out: a loop of a large body is left
/// rolled by the compiler, and the sums it adds to would live in memory.
macro_rules! unroll {
    ($n:expr, |$i:ident| $body:block) => {
        unroll!($n, $i, $body, 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15)
    };
    ($n:expr, $i:ident, $body:block, $($at:literal)*) => {
        $(if $at < $n {
            let $i: usize = $at;
            $body
        })*
    };
}
pub(super) use unroll;

/// `ROWS` lanes of f32, and as many lanes of four codes or an i32.
///
/// # Safety
/// Callers run on a machine that has the instruction set, and pointers are readable (writable for
/// `store`) for the lanes named.
pub unsafe trait Lanes: Copy {
    /// Rows of a vector; divides 16.
    const ROWS: usize;
    /// Columns of a tile: as many as leave its sums in registers.
    const COLS: usize;
    /// An f32 for each row.
    type F: Copy;
    /// Four bytes for each row.
    type I: Copy;
    /// An i32 for each row.
    type N: Copy;
    /// An integer scale for each row, in the form that `add_scaled` multiplies by.
    type S: Copy;
    /// Two i16 for each row.
    type P: Copy;
    /// Whether `add_scaled` takes 128 from codes of eight bits.
    const CENTERS_BYTES: bool;

    /// The same value in each lane.
    unsafe fn splat(x: f32) -> Self::F;
    /// f32 values from `p`.
    unsafe fn load(p: *const f32) -> Self::F;
    /// f16 values from `p`, widened exactly.
    unsafe fn load_f16(p: *const u8) -> Self::F;
    /// bf16 values from `p`, widened exactly.
    unsafe fn load_bf16(p: *const u8) -> Self::F;
    /// Signed bytes from `p`.
    unsafe fn load_i8(p: *const u8) -> Self::N;
    /// The low half of each byte from `p`, or the high half.
    unsafe fn load_u4(p: *const u8, is_high: bool) -> Self::N;
    /// Values to `p`.
    unsafe fn store(p: *mut f32, x: Self::F);
    /// `a + b`
    unsafe fn add(a: Self::F, b: Self::F) -> Self::F;
    /// `a * b`
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F;
    /// `a * b + c`, rounded once
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// `c - a * b`, rounded once
    unsafe fn fnma(a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// `4 * ROWS` bytes from `p`.
    unsafe fn load_codes(p: *const u8) -> Self::I;
    /// Moves the `n` bits at `from` of each byte to `to`; the others become zero.
    unsafe fn bits(x: Self::I, n: u32, from: u32, to: u32) -> Self::I;
    /// `a | b`
    unsafe fn or(a: Self::I, b: Self::I) -> Self::I;
    /// Each byte, at most 15, becomes the step of that number.
    unsafe fn steps(x: Self::I, table: &[u8; 16]) -> Self::I;
    /// For each row, `sum over j, k < 4 of (w[j][k] - zero) * a[4 j + k]`; `a` is within +-127, and
    /// `neg_sum` is minus the sum of `a`.
    unsafe fn dot(w: &[Self::I], a: *const i8, neg_sum: i32, dot: Dot) -> Self::F;
    /// The same integer in each lane.
    unsafe fn int(x: i32) -> Self::N;
    /// Integers, each rounded to the nearest f32.
    unsafe fn to_f32(x: Self::N) -> Self::F;
    /// Scales, each within i8.
    unsafe fn scales(x: Self::N) -> Self::S;
    /// Pairs of numbers within i8.
    unsafe fn pairs(first: Self::N, second: Self::N) -> Self::P;
    /// `acc + scale * (sum over j, k < 4 of w[j][k] * a[4 j + k])` for codes of `bits` bits; `a` is
    /// within +-127, and the sum and its product fit an i32.
    unsafe fn add_scaled(
        acc: Self::N,
        w: &[Self::I],
        a: *const i8,
        scale: Self::S,
        bits: u32,
    ) -> Self::N;
    /// [`Lanes::add_scaled`] for the columns of a tile, whose `a` are `stride` bytes apart. A set
    /// whose dot instruction waits for the one before it takes the columns in turn at each.
    #[inline(always)]
    unsafe fn add_scaled_tile<const C: usize>(
        acc: &mut [Self::N; C],
        w: &[Self::I],
        a: *const i8,
        stride: usize,
        scale: Self::S,
        bits: u32,
    ) {
        // SAFETY: passed on.
        unsafe {
            unroll!(C, |c| {
                acc[c] = Self::add_scaled(acc[c], w, a.add(c * stride), scale, bits);
            });
        }
    }
    /// `acc + p[0] * a[0] + p[1] * a[1]`
    unsafe fn add_pairs(acc: Self::N, p: Self::P, a: *const i16) -> Self::N;
    /// `a - (b << by)`
    unsafe fn sub_shifted(a: Self::N, b: Self::N, by: u32) -> Self::N;
}

/// Lanes of a set on which many columns meet panels expanded to bytes, 64 of them to a vector of
/// four codes of 16 rows: what `wide_kernel` does for two vectors of rows and `C` columns at once.
///
/// In each function `w` is where the codes of the two begin, a vector every 64 bytes; `a` is where
/// those of the first column do, with the bytes to the next. The defaults are plain.
///
/// # Safety
/// As [`Lanes`].
pub unsafe trait WideLanes: Lanes {
    /// Whether products that fit a byte are expanded in place of codes (`expand::Fold`).
    const FOLDS: bool;
    /// Whether sums that fit 16 bits meet their scale in [`WideLanes::add_narrow`].
    const NARROWS: bool;
    /// Whether codes that have a zero and a scale for each 16 are expanded signed and meet
    /// unsigned activations ([`WideLanes::add_biased`]).
    const BIASES: bool;

    /// Codes times the scale of their row, as a fold has them, where the set has folds.
    #[inline(always)]
    unsafe fn fold(codes: Self::I, scale: Self::N, fold: Fold) -> Self::I {
        let _ = (codes, scale, fold);
        unreachable!("no set is asked that does not fold");
    }
    /// [`Lanes::dot`] of a block for each vector and column; with the codes of the first column
    /// come minus their sum, and the bytes from either to the next.
    #[inline(always)]
    unsafe fn dot_pair<const C: usize>(
        w: [*const u8; 2],
        (a, neg_sum, stride): (*const i8, *const i32, usize),
        dot: Dot,
    ) -> [[Self::F; C]; 2] {
        // SAFETY: passed on.
        unsafe {
            let mut dots = [[Self::splat(0.0); C]; 2];
            for (dots, w) in dots.iter_mut().zip(w) {
                let w = load_vectors::<Self, 8>(w);
                for (c, dot_of) in dots.iter_mut().enumerate() {
                    let neg_sum = neg_sum.byte_add(c * stride).read();
                    *dot_of = Self::dot(&w, a.add(c * stride), neg_sum, dot);
                }
            }
            dots
        }
    }
    /// [`Lanes::add_scaled`] of `N` vectors for each vector of rows and column.
    #[inline(always)]
    unsafe fn add_scaled_pair<const C: usize, const N: usize>(
        acc: &mut [[Self::N; C]; 2],
        w: [*const u8; 2],
        (a, stride): (*const i8, usize),
        scale: [Self::S; 2],
        bits: u32,
    ) {
        // SAFETY: passed on.
        unsafe {
            for r in 0..2 {
                let w = load_vectors::<Self, N>(w[r]);
                for (c, acc) in acc[r].iter_mut().enumerate() {
                    *acc = Self::add_scaled(*acc, &w, a.add(c * stride), scale[r], bits);
                }
            }
        }
    }
    /// `acc + scale * (from + sum over j < 8, k < 4 of w[j][k] * a[4 j + k])` where what stands in
    /// brackets fits an i16 and `scale` is not negative. `from` is that of the first column.
    #[inline(always)]
    unsafe fn add_narrow<const C: usize>(
        acc: &mut [[Self::N; C]; 2],
        w: [*const u8; 2],
        (a, from, stride): (*const i8, Option<*const i32>, usize),
        scale: [Self::S; 2],
    ) {
        let _ = (acc, w, a, from, stride, scale);
        unreachable!("no set is asked that does not narrow");
    }
    /// The codes of a block minus `zero`, in the order of `ActChunk::biased`.
    #[inline(always)]
    unsafe fn signed(codes: [Self::I; 8], zero: u8) -> [Self::I; 8] {
        let _ = (codes, zero);
        unreachable!("no set is asked that does not bias");
    }
    /// `acc + sum over j < 8, k < 4 of scale[k / 2] * w[j][k] * a[4 j + k]` for signed codes of
    /// `bits` bits and unsigned activations. It fits an i32: 6 bits times a scale of 8 times 255,
    /// 256 times, and half as much for the bias.
    #[inline(always)]
    unsafe fn add_biased<const C: usize>(
        acc: &mut [[Self::N; C]; 2],
        w: [*const u8; 2],
        (a, stride): (*const u8, usize),
        scale: [Self::P; 2],
        bits: u32,
    ) {
        let _ = (acc, w, a, stride, scale, bits);
        unreachable!("no set is asked that does not bias");
    }
    /// `acc + sum over j < N, k < 4 of w[j][k] * a[4 j + k]`, which fits an i32.
    #[inline(always)]
    unsafe fn add_dots<const C: usize, const N: usize>(
        acc: &mut [[Self::N; C]; 2],
        w: [*const u8; 2],
        a: *const i8,
        stride: usize,
    ) {
        // SAFETY: passed on.
        unsafe {
            let one = Self::scales(Self::int(1));
            Self::add_scaled_pair::<C, N>(acc, w, (a, stride), [one; 2], 8);
        }
    }
}

/// `N` vectors of codes, one every 64 bytes.
#[inline(always)]
unsafe fn load_vectors<L: Lanes, const N: usize>(w: *const u8) -> [L::I; N] {
    // SAFETY: the caller vouches for the bytes.
    unsafe {
        let mut vectors = [L::load_codes(w); N];
        for (j, vector) in vectors.iter_mut().enumerate() {
            *vector = L::load_codes(w.add(64 * j));
        }
        vectors
    }
}

// SAFETY: no instruction set is needed.
unsafe impl WideLanes for ScalarLanes {
    const FOLDS: bool = true;
    const NARROWS: bool = false;
    const BIASES: bool = false;

    #[inline(always)]
    unsafe fn fold(mut codes: [u8; 64], scale: [i32; 16], fold: Fold) -> [u8; 64] {
        for (codes, scale) in codes.as_chunks_mut::<4>().0.iter_mut().zip(scale) {
            for code in codes {
                let product = scale as i16 * (i16::from(*code) - fold.code_zero);
                *code = (product + fold.product_zero) as u8;
            }
        }
        codes
    }
}

// No closure stands between a kernel and an intrinsic below: a closure is compiled without the
// instruction set of the function around it, and the intrinsic would become a call.

/// Plain Rust: arrays and loops.
#[derive(Clone, Copy)]
pub struct ScalarLanes;

// SAFETY: no instruction set is needed; each function touches the lanes that the trait names.
unsafe impl Lanes for ScalarLanes {
    const ROWS: usize = 16;
    const COLS: usize = 2;
    type F = [f32; 16];
    type I = [u8; 64];
    type N = [i32; 16];
    type S = [i32; 16];
    type P = [[i32; 2]; 16];
    const CENTERS_BYTES: bool = false;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self::F {
        [x; 16]
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self::F {
        // SAFETY: the caller vouches for the lanes, here and below.
        unsafe { p.cast::<Self::F>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const u8) -> Self::F {
        // SAFETY: as above.
        let bits = unsafe { p.cast::<[[u8; 2]; 16]>().read_unaligned() };
        bits.map(|b| f16_to_f32(u16::from_le_bytes(b)))
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const u8) -> Self::F {
        // SAFETY: as above.
        let bits = unsafe { p.cast::<[[u8; 2]; 16]>().read_unaligned() };
        bits.map(|b| f32::from_bits(u32::from(u16::from_le_bytes(b)) << 16))
    }
    #[inline(always)]
    unsafe fn load_i8(p: *const u8) -> Self::N {
        // SAFETY: as above.
        unsafe { p.cast::<[i8; 16]>().read_unaligned() }.map(i32::from)
    }
    #[inline(always)]
    unsafe fn load_u4(p: *const u8, is_high: bool) -> Self::N {
        // SAFETY: as above.
        let bytes = unsafe { p.cast::<[u8; 16]>().read_unaligned() };
        bytes.map(|b| i32::from(if is_high { b >> 4 } else { b & 15 }))
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, x: Self::F) {
        // SAFETY: as above.
        unsafe { p.cast::<Self::F>().write_unaligned(x) }
    }
    #[inline(always)]
    unsafe fn add(a: Self::F, b: Self::F) -> Self::F {
        std::array::from_fn(|r| a[r] + b[r])
    }
    #[inline(always)]
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F {
        std::array::from_fn(|r| a[r] * b[r])
    }
    #[inline(always)]
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        std::array::from_fn(|r| a[r].mul_add(b[r], c[r]))
    }
    #[inline(always)]
    unsafe fn fnma(a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        std::array::from_fn(|r| (-a[r]).mul_add(b[r], c[r]))
    }
    #[inline(always)]
    unsafe fn load_codes(p: *const u8) -> Self::I {
        // SAFETY: as above.
        unsafe { p.cast::<Self::I>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn bits(x: Self::I, n: u32, from: u32, to: u32) -> Self::I {
        x.map(|b| (b >> from & ((1u32 << n) - 1) as u8) << to)
    }
    #[inline(always)]
    unsafe fn or(a: Self::I, b: Self::I) -> Self::I {
        std::array::from_fn(|i| a[i] | b[i])
    }
    #[inline(always)]
    unsafe fn steps(x: Self::I, table: &[u8; 16]) -> Self::I {
        x.map(|b| table[usize::from(b & 15)])
    }
    #[inline(always)]
    unsafe fn dot(w: &[Self::I], a: *const i8, neg_sum: i32, dot: Dot) -> Self::F {
        let mut sums = [dot.zero_log2.map_or(0, |z| neg_sum << z); 16];
        for (j, w) in w.iter().enumerate() {
            // SAFETY: as above.
            let a = unsafe { a.add(4 * j).cast::<[i8; 4]>().read_unaligned() };
            for (sum, w) in sums.iter_mut().zip(w.as_chunks::<4>().0) {
                *sum += (0..4).map(|k| i32::from(w[k]) * i32::from(a[k])).sum::<i32>();
            }
        }
        sums.map(|s| s as f32)
    }
    #[inline(always)]
    unsafe fn int(x: i32) -> Self::N {
        [x; 16]
    }
    #[inline(always)]
    unsafe fn to_f32(x: Self::N) -> Self::F {
        x.map(|x| x as f32)
    }
    #[inline(always)]
    unsafe fn scales(x: Self::N) -> Self::S {
        x
    }
    #[inline(always)]
    unsafe fn pairs(first: Self::N, second: Self::N) -> Self::P {
        std::array::from_fn(|r| [first[r], second[r]])
    }
    #[inline(always)]
    unsafe fn add_scaled(
        mut acc: Self::N,
        w: &[Self::I],
        a: *const i8,
        scale: Self::S,
        _bits: u32,
    ) -> Self::N {
        let mut sums = [0; 16];
        for (j, w) in w.iter().enumerate() {
            // SAFETY: as above.
            let a = unsafe { a.add(4 * j).cast::<[i8; 4]>().read_unaligned() };
            for (sum, w) in sums.iter_mut().zip(w.as_chunks::<4>().0) {
                *sum += (0..4).map(|k| i32::from(w[k]) * i32::from(a[k])).sum::<i32>();
            }
        }
        for r in 0..16 {
            acc[r] += scale[r] * sums[r];
        }
        acc
    }
    #[inline(always)]
    unsafe fn add_pairs(acc: Self::N, p: Self::P, a: *const i16) -> Self::N {
        // SAFETY: as above.
        let a = unsafe { a.cast::<[i16; 2]>().read_unaligned() }.map(i32::from);
        std::array::from_fn(|r| acc[r] + p[r][0] * a[0] + p[r][1] * a[1])
    }
    #[inline(always)]
    unsafe fn sub_shifted(a: Self::N, b: Self::N, by: u32) -> Self::N {
        std::array::from_fn(|r| a[r] - (b[r] << by))
    }
}
