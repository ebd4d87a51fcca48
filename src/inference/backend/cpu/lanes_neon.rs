//! Lanes of NEON: four rows, without arithmetic on f16. They come with dot products of bytes, which
//! are ARMv8.2's, and without, as a Cortex-A57 has them.
//!
//! ```text
//! codes   k0 k1 k2 k3 | k0 k1 k2 k3 | k0 k1 k2 k3 | k0 k1 k2 k3      a chunk of four rows
//! acts    a0 a1 a2 a3 | a0 a1 a2 a3 | a0 a1 a2 a3 | a0 a1 a2 a3      the same four for every row
//! smlal   low: 8 products in 16 bits  | high: 8 products in 16 bits
//! sdot    row 0 in 32 bits | row 1    | row 2         | row 3
//! ```
//!
//! `smlal` multiplies eight pairs and adds them to 16 bits, one a cycle on this core: products of
//! as many chunks as fit are added there before anything is widened. For codes of 4 bits that is a
//! whole block of 32 weights, with two additions across its lanes at the end. Nothing crosses the
//! four lanes of a row before, and sums are exact, so rows come out with the bits of plain Rust.
//!
//! Four rows a vector, not sixteen, leave registers for the sums of eight columns, so that codes
//! are unpacked once for eight. llvm-mca, which models this core, counts 4.9 to 7.4
//! multiply-adds a cycle for such a tile, by type (`jetpack/neon_bound.py`); the multiplier could
//! do 8. No core was timed.
//!
//! `sdot` adds the four products of each row to its sum in 32 bits, where any codes fit, and takes
//! the four activations by their place in a vector: nothing is copied, nothing widened. The model
//! of a Neoverse N1 counts 9.0 to 18.9 multiply-adds a cycle, of 32; 4.9 to 6.7 without. What is
//! the same either way is the same code, so `DOT` is an argument of one type.
//!
//! Many columns do not meet expanded panels here: a vector's rows are a quarter of every line, so
//! each line of twice as many bytes would be fetched four times.

// Every AArch64 processor has these instructions, `sdot` aside, which a machine with `DOT` has. So
// what is left to vouch for is the pointers: the rule of the trait, and the reason of each block
// below.
#![allow(clippy::undocumented_unsafe_blocks)]

use super::lanes::{Dot, Lanes, unroll};
use std::arch::aarch64::*;
use std::arch::asm;

/// NEON: four rows; with `DOT` on a machine that has dot products of bytes.
#[derive(Clone, Copy)]
pub struct NeonLanes<const DOT: bool>;

/// Four bytes from `p`, in the lower half.
///
/// # Safety
/// They are readable.
#[inline(always)]
unsafe fn four_bytes(p: *const u8) -> uint8x8_t {
    unsafe { vcreate_u8(u64::from(p.cast::<u32>().read_unaligned())) }
}

/// The four activation codes of chunk `j`, of which `acts` holds every four, for every row.
#[inline(always)]
unsafe fn four_acts(acts: int8x16_t, j: usize) -> int8x16_t {
    // One load of sixteen and four copies of a lane are fewer operations than four loads that copy,
    // which are two operations each and need an address each.
    unsafe {
        let acts = vreinterpretq_s32_s8(acts);
        vreinterpretq_s8_s32(match j % 4 {
            0 => vdupq_laneq_s32::<0>(acts),
            1 => vdupq_laneq_s32::<1>(acts),
            2 => vdupq_laneq_s32::<2>(acts),
            _ => vdupq_laneq_s32::<3>(acts),
        })
    }
}

/// Adds the dot products of four codes of each row and four activations, the `AT`th of `acts`.
#[inline]
#[target_feature(enable = "dotprod")]
pub fn sdot<const AT: i32>(mut sums: int32x4_t, codes: int8x16_t, acts: int8x16_t) -> int32x4_t {
    // The compiler's intrinsic of it, `vdotq_laneq_s32`, came with Rust 1.98. What is not `pure`
    // stays in the order that it is written in: the scheduler, which does not know how long this
    // takes, put columns that take turns one after another again.
    unsafe {
        asm!(
            "sdot {sums:v}.4s, {codes:v}.16b, {acts:v}.4b[{at}]",
            sums = inlateout(vreg) sums,
            codes = in(vreg) codes,
            acts = in(vreg) acts,
            at = const AT,
            options(nomem, nostack, preserves_flags),
        );
    }
    sums
}

// SAFETY: each function touches the lanes that the trait names; every AArch64 processor has NEON,
// and with `DOT` the caller's has dot products.
unsafe impl<const DOT: bool> Lanes for NeonLanes<DOT> {
    const ROWS: usize = 4;
    const COLS: usize = 8;
    type F = float32x4_t;
    type I = uint8x16_t;
    type N = int32x4_t;
    type S = int32x4_t;
    type P = [int16x4_t; 2];
    const CENTERS_BYTES: bool = true;

    #[inline(always)]
    unsafe fn splat(x: f32) -> float32x4_t {
        unsafe { vdupq_n_f32(x) }
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> float32x4_t {
        unsafe { vld1q_f32(p) }
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const u8) -> float32x4_t {
        unsafe {
            let bits = p.cast::<uint16x4_t>().read_unaligned();
            vcvt_f32_f16(vreinterpret_f16_u16(bits))
        }
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const u8) -> float32x4_t {
        unsafe {
            let bits = p.cast::<uint16x4_t>().read_unaligned();
            vreinterpretq_f32_u32(vshlq_n_u32::<16>(vmovl_u16(bits)))
        }
    }
    #[inline(always)]
    unsafe fn load_i8(p: *const u8) -> int32x4_t {
        unsafe {
            let bytes = vreinterpret_s8_u8(four_bytes(p));
            vmovl_s16(vget_low_s16(vmovl_s8(bytes)))
        }
    }
    #[inline(always)]
    unsafe fn load_u4(p: *const u8, is_high: bool) -> int32x4_t {
        unsafe {
            let bytes = four_bytes(p);
            let half = if is_high { vshr_n_u8::<4>(bytes) } else { vand_u8(bytes, vdup_n_u8(15)) };
            vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(vmovl_u8(half))))
        }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, x: float32x4_t) {
        unsafe { vst1q_f32(p, x) }
    }
    #[inline(always)]
    unsafe fn add(a: float32x4_t, b: float32x4_t) -> float32x4_t {
        unsafe { vaddq_f32(a, b) }
    }
    #[inline(always)]
    unsafe fn mul(a: float32x4_t, b: float32x4_t) -> float32x4_t {
        unsafe { vmulq_f32(a, b) }
    }
    #[inline(always)]
    unsafe fn fma(a: float32x4_t, b: float32x4_t, c: float32x4_t) -> float32x4_t {
        unsafe { vfmaq_f32(c, a, b) }
    }
    #[inline(always)]
    unsafe fn fnma(a: float32x4_t, b: float32x4_t, c: float32x4_t) -> float32x4_t {
        unsafe { vfmsq_f32(c, a, b) }
    }
    #[inline(always)]
    unsafe fn load_codes(p: *const u8) -> uint8x16_t {
        unsafe { vld1q_u8(p) }
    }
    #[inline(always)]
    unsafe fn bits(x: uint8x16_t, n: u32, from: u32, to: u32) -> uint8x16_t {
        unsafe {
            // Shifts are byte by byte, so what leaves at an end needs no mask.
            let moved = vshlq_u8(x, vdupq_n_s8(to as i8 - from as i8));
            if (from + n == 8 && to == 0) || (from == 0 && to + n == 8) {
                return moved;
            }
            vandq_u8(moved, vdupq_n_u8((((1u32 << n) - 1) << to) as u8))
        }
    }
    #[inline(always)]
    unsafe fn or(a: uint8x16_t, b: uint8x16_t) -> uint8x16_t {
        unsafe { vorrq_u8(a, b) }
    }
    #[inline(always)]
    unsafe fn steps(x: uint8x16_t, table: &[u8; 16]) -> uint8x16_t {
        unsafe { vqtbl1q_u8(vld1q_u8(table.as_ptr()), x) }
    }
    #[inline(always)]
    unsafe fn dot(w: &[uint8x16_t], a: *const i8, neg_sum: i32, dot: Dot) -> float32x4_t {
        // Codes become signed once for all columns, so nothing is left to add for each of them, and
        // more products fit 16 bits: as many as 127 times the largest code goes into them.
        unsafe {
            vcvtq_f32_s32(match dot.zero_log2 {
                // Here the zero costs nothing: it is what the sum begins with.
                Some(z) if DOT && dot.bits < 8 => dotted(vdupq_n_s32(neg_sum << z), w, a, 0),
                Some(z) => products::<DOT>(w, a, 1 << z, 1 << z),
                None => products::<DOT>(w, a, 0, (1 << dot.bits) - 1),
            })
        }
    }
    #[inline(always)]
    unsafe fn int(x: i32) -> int32x4_t {
        unsafe { vdupq_n_s32(x) }
    }
    #[inline(always)]
    unsafe fn to_f32(x: int32x4_t) -> float32x4_t {
        unsafe { vcvtq_f32_s32(x) }
    }
    #[inline(always)]
    unsafe fn scales(x: int32x4_t) -> int32x4_t {
        x
    }
    #[inline(always)]
    unsafe fn pairs(first: int32x4_t, second: int32x4_t) -> [int16x4_t; 2] {
        unsafe { [vmovn_s32(first), vmovn_s32(second)] }
    }
    #[inline(always)]
    unsafe fn add_scaled(
        acc: int32x4_t,
        w: &[uint8x16_t],
        a: *const i8,
        scale: int32x4_t,
        bits: u32,
    ) -> int32x4_t {
        unsafe {
            let dot = if bits == 8 {
                products::<DOT>(w, a, 128, 128)
            } else {
                products::<DOT>(w, a, 0, (1 << bits) - 1)
            };
            vmlaq_s32(acc, dot, scale)
        }
    }
    #[inline(always)]
    unsafe fn add_scaled_tile<const C: usize>(
        acc: &mut [int32x4_t; C],
        w: &[uint8x16_t],
        a: *const i8,
        stride: usize,
        scale: int32x4_t,
        bits: u32,
    ) {
        unsafe {
            unroll!(C, |c| {
                if !DOT {
                    acc[c] = Self::add_scaled(acc[c], w, a.add(c * stride), scale, bits);
                } else if c % TURN == 0 {
                    let acc = &mut acc[c..C.min(c + TURN)];
                    let zero = if bits == 8 { 128 } else { 0 };
                    add_turn(acc, w, a.add(c * stride), stride, scale, zero);
                }
            });
        }
    }
    #[inline(always)]
    unsafe fn add_pairs(acc: int32x4_t, p: [int16x4_t; 2], a: *const i16) -> int32x4_t {
        unsafe {
            let acc = vmlal_s16(acc, p[0], vdup_n_s16(a.read()));
            vmlal_s16(acc, p[1], vdup_n_s16(a.add(1).read()))
        }
    }
    #[inline(always)]
    unsafe fn sub_shifted(a: int32x4_t, b: int32x4_t, by: u32) -> int32x4_t {
        unsafe { vsubq_s32(a, vshlq_s32(b, vdupq_n_s32(by.cast_signed()))) }
    }
}

/// For each row, `sum of (w - zero) * a`, where `|w - zero|` is at most `code_max`.
#[inline(always)]
unsafe fn products<const DOT: bool>(
    w: &[uint8x16_t],
    a: *const i8,
    zero: u8,
    code_max: i32,
) -> int32x4_t {
    unsafe { if DOT { dotted(vdupq_n_s32(0), w, a, zero) } else { widened(w, a, zero, code_max) } }
}

/// Adds the four products of a row at once.
#[inline(always)]
unsafe fn dotted(mut sums: int32x4_t, w: &[uint8x16_t], a: *const i8, zero: u8) -> int32x4_t {
    unsafe {
        unroll!(8, |j| {
            if j < w.len() {
                sums = add_chunk(sums, w[j], a, j, zero);
            }
        });
        sums
    }
}

/// Adds the products of chunk `j`.
#[inline(always)]
unsafe fn add_chunk(sums: int32x4_t, w: uint8x16_t, a: *const i8, j: usize, zero: u8) -> int32x4_t {
    unsafe {
        let codes = vreinterpretq_s8_u8(vsubq_u8(w, vdupq_n_u8(zero)));
        let acts = vld1q_s8(a.add(j / 4 * 16));
        match j % 4 {
            0 => sdot::<0>(sums, codes, acts),
            1 => sdot::<1>(sums, codes, acts),
            2 => sdot::<2>(sums, codes, acts),
            _ => sdot::<3>(sums, codes, acts),
        }
    }
}

/// Columns that take turns at `sdot`: a core that keeps the order of its instructions would wait
/// for each sum four cycles.
const TURN: usize = 4;

/// [`Lanes::add_scaled`] for up to [`TURN`] columns, chunk by chunk.
#[inline(always)]
unsafe fn add_turn(
    acc: &mut [int32x4_t],
    w: &[uint8x16_t],
    a: *const i8,
    stride: usize,
    scale: int32x4_t,
    zero: u8,
) {
    unsafe {
        let mut sums = [vdupq_n_s32(0); TURN];
        unroll!(8, |j| {
            if j < w.len() {
                for (c, sums) in sums.iter_mut().enumerate().take(acc.len()) {
                    *sums = add_chunk(*sums, w[j], a.add(c * stride), j, zero);
                }
            }
        });
        for (acc, sums) in acc.iter_mut().zip(sums) {
            *acc = vmlaq_s32(*acc, sums, scale);
        }
    }
}

/// Products in 16 bits, of which as many are added as fit before they are widened.
#[inline(always)]
unsafe fn widened(w: &[uint8x16_t], a: *const i8, zero: u8, code_max: i32) -> int32x4_t {
    // 2 for codes of 8 bits; 4 or more, what shares a scale, for the others.
    let n_fit = (32_767 / (127 * code_max)) as usize;
    unsafe {
        let first = vld1q_s8(a);
        let second = if w.len() > 4 { vld1q_s8(a.add(16)) } else { first };
        let (mut low, mut high) = (vdupq_n_s16(0), vdupq_n_s16(0));
        let mut sums = [vdupq_n_s32(0); 2];
        unroll!(8, |j| {
            if j < w.len() {
                let a = four_acts(if j < 4 { first } else { second }, j);
                let k = vreinterpretq_s8_u8(vsubq_u8(w[j], vdupq_n_u8(zero)));
                if j % n_fit == 0 {
                    (low, high) = (vmull_s8(vget_low_s8(k), vget_low_s8(a)), vmull_high_s8(k, a));
                } else {
                    low = vmlal_s8(low, vget_low_s8(k), vget_low_s8(a));
                    high = vmlal_high_s8(high, k, a);
                }
                if n_fit < w.len() && (j + 1) % n_fit == 0 {
                    sums = [vpadalq_s16(sums[0], low), vpadalq_s16(sums[1], high)];
                }
            }
        });
        if 2 * w.len() <= n_fit {
            vpaddlq_s16(vpaddq_s16(low, high))
        } else if n_fit < w.len() {
            vpaddq_s32(sums[0], sums[1])
        } else {
            vpaddq_s32(vpaddlq_s16(low), vpaddlq_s16(high))
        }
    }
}
