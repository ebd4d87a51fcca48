//! Lanes of ARMv8.0's NEON: four rows, as a Cortex-A57 has them, without dot product instructions
//! and without arithmetic on f16.
//!
//! ```text
//! codes   k0 k1 k2 k3 | k0 k1 k2 k3 | k0 k1 k2 k3 | k0 k1 k2 k3      a chunk of four rows
//! acts    a0 a1 a2 a3 | a0 a1 a2 a3 | a0 a1 a2 a3 | a0 a1 a2 a3      the same four for every row
//!         low: 8 products in 16 bits  | high: 8 products in 16 bits
//! ```
//!
//! `smlal` multiplies eight pairs and adds them to 16 bits, one a cycle on this core: products of as
//! many chunks as fit are added there before anything is widened. For codes of 4 bits that is a
//! whole block of 32 weights, with two additions across its lanes at the end.
//!
//! Four rows a vector, not sixteen, leave registers for the sums of eight columns, so that codes
//! are unpacked once for eight.
//!
//! Every AArch64 processor has these instructions, so nothing is enabled by the callers.

// Every AArch64 processor has these instructions, so what is left to vouch for is the pointers: the
// rule of the trait, and the reason of each block below.
#![allow(clippy::undocumented_unsafe_blocks)]

use super::lanes::{Dot, Lanes, STEPS_UP};
use std::arch::aarch64::*;

/// NEON: four rows.
#[derive(Clone, Copy)]
pub struct NeonLanes;

/// Four bytes from `p`, in the lower half.
///
/// # Safety
/// They are readable.
#[inline(always)]
unsafe fn four_bytes(p: *const u8) -> uint8x8_t {
    unsafe { vcreate_u8(u64::from(p.cast::<u32>().read_unaligned())) }
}

/// Four activation codes from `a`, for every row.
///
/// # Safety
/// They are readable.
#[inline(always)]
unsafe fn four_acts(a: *const i8) -> int8x16_t {
    unsafe { vreinterpretq_s8_s32(vdupq_n_s32(a.cast::<i32>().read_unaligned())) }
}

/// Products of chunks of codes with activations from `a`, in two sums of 16 bits for each row: of
/// the first two rows, and of the last two. Codes of 8 bits are taken as code minus 128.
///
/// # Safety
/// `4 * run.len()` activations are readable.
#[inline(always)]
unsafe fn products(run: &[uint8x16_t], a: *const i8, bits: u32) -> (int16x8_t, int16x8_t) {
    unsafe {
        let (mut low, mut high) = (vdupq_n_s16(0), vdupq_n_s16(0));
        for (j, &w) in run.iter().enumerate() {
            let w = if bits == 8 { veorq_u8(w, vdupq_n_u8(0x80)) } else { w };
            let w = vreinterpretq_s8_u8(w);
            let a = four_acts(a.add(4 * j));
            if j == 0 {
                (low, high) = (vmull_s8(vget_low_s8(w), vget_low_s8(a)), vmull_high_s8(w, a));
            } else {
                low = vmlal_s8(low, vget_low_s8(w), vget_low_s8(a));
                high = vmlal_high_s8(high, w, a);
            }
        }
        (low, high)
    }
}

// SAFETY: each function touches the lanes that the trait names; every AArch64 processor has NEON.
unsafe impl Lanes for NeonLanes {
    const ROWS: usize = 4;
    const COLS: usize = 8;
    type F = float32x4_t;
    type I = uint8x16_t;

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
    unsafe fn load_i8(p: *const u8) -> float32x4_t {
        unsafe {
            let bytes = vreinterpret_s8_u8(four_bytes(p));
            vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(bytes))))
        }
    }
    #[inline(always)]
    unsafe fn load_u8(p: *const u8, shift: u32, mask: u8) -> float32x4_t {
        unsafe {
            let bytes = vshl_u8(four_bytes(p), vdup_n_s8(-(shift as i8)));
            let bytes = vand_u8(bytes, vdup_n_u8(mask));
            vcvtq_f32_u32(vmovl_u16(vget_low_u16(vmovl_u8(bytes))))
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
    unsafe fn steps(x: uint8x16_t) -> uint8x16_t {
        unsafe { vqtbl1q_u8(vld1q_u8(STEPS_UP.as_ptr()), x) }
    }
    #[inline(always)]
    unsafe fn dot(w: &[uint8x16_t], a: *const i8, neg_sum: i32, dot: Dot) -> float32x4_t {
        unsafe {
            // Products that 16 bits hold: a code is at most 2^bits - 1, or 128 where 8 bits are signed.
            let code_max = if dot.bits == 8 { 128 } else { (1 << dot.bits) - 1 };
            let n_fit = 32_767 / (127 * code_max);
            let zero = match dot.zero_log2 {
                Some(z) if dot.bits < 8 => vshlq_s32(vdupq_n_s32(neg_sum), vdupq_n_s32(z as i32)),
                _ => vdupq_n_s32(0), // taken off the codes, or a minimum
            };
            if 2 * w.len() <= n_fit {
                let (low, high) = products(w, a, dot.bits);
                return vcvtq_f32_s32(vpadalq_s16(zero, vpaddq_s16(low, high)));
            }
            let mut sums = [vdupq_n_s32(0); 2];
            for (i, run) in w.chunks(n_fit).enumerate() {
                let (low, high) = products(run, a.add(4 * i * n_fit), dot.bits);
                sums = [vpadalq_s16(sums[0], low), vpadalq_s16(sums[1], high)];
            }
            vcvtq_f32_s32(vaddq_s32(zero, vpaddq_s32(sums[0], sums[1])))
        }
    }
}
