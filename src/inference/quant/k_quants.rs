//! K-quants: 256 weights in a block, whose scales are small integers times one f16.
//!
//! ```text
//! Q2_K   weight = d * scale * code - dmin * min     2-bit codes, 16 groups of 16, 4-bit scales
//! Q3_K   weight = d * scale * (code - 4)            3-bit codes, 16 groups of 16, 6-bit scales
//! Q4_K   weight = d * scale * code - dmin * min     4-bit codes,  8 groups of 32, 6-bit scales
//! Q5_K   weight = d * scale * code - dmin * min     5-bit codes,  8 groups of 32, 6-bit scales
//! Q6_K   weight = d * scale * (code - 32)           6-bit codes, 16 groups of 16, 8-bit scales
//! ```
//!
//! `d` and `dmin` are f16. `d * scale` is exact in f32, 11 bits of mantissa times 7 at most, and so
//! is its product with a code; only the subtraction of a minimum rounds.
//!
//! Codes are packed for wide registers: one run of 32 bytes holds the same bits of several parts,
//! a part being 32 consecutive weights. Part p of a block, weights 32 p .. 32 p + 31, takes bits
//! from each run at one shift:
//!
//! ```text
//! 2 bits a weight   run p / 4, shift 2 (p % 4)      Q2_K, Q3_K low bits, Q6_K high bits
//! 4 bits a weight   run p / 2, shift 4 (p % 2)      Q4_K, Q5_K low bits
//! 4 bits a weight   run 2 (p / 4) + p % 2, shift 4 (p / 2 % 2)     Q6_K low bits
//! 1 bit a weight    the only run, shift p           Q3_K and Q5_K high bits
//! ```

use super::each_byte;

/// Bits `shift ..` under `mask` of the 32 bytes of a run.
#[inline(always)]
fn bits(runs: &[u8], run_idx: usize, shift: usize, mask: u8) -> [u8; 32] {
    let mut out = [0; 32];
    let run = runs[32 * run_idx..][..32].as_chunks::<8>().0;
    for (out, eight) in out.as_chunks_mut::<8>().0.iter_mut().zip(run) {
        *out = each_byte(*eight, |word| word >> shift, mask);
    }
    out
}

/// Puts `high` above the lowest `n` bits of `low`.
#[inline(always)]
fn join(mut low: [u8; 32], high: [u8; 32], n: u32) -> [u8; 32] {
    let high = high.as_chunks::<8>().0;
    for (low, high) in low.as_chunks_mut::<8>().0.iter_mut().zip(high) {
        *low = (u64::from_le_bytes(*low) | u64::from_le_bytes(*high) << n).to_le_bytes();
    }
    low
}

/// Q2_K: 256 weights in 84 bytes.
///
/// ```text
/// byte   0 .............. 15 | 16 ...... 79 | 80 81 | 82 83
///        low nibble: scale,  | 2-bit codes  | d     | dmin
///        high nibble: min of |
///        group i             |
/// ```
pub(super) mod q2_k {
    use crate::inference::quant::{expansion::Part, u16_at};

    #[inline(always)]
    pub fn part(block: &[u8; 84], part_idx: usize) -> Part {
        let codes = super::bits(&block[16..80], part_idx / 4, 2 * (part_idx % 4), 3);
        let (d, dmin) = (u16_at(block, 80), u16_at(block, 82));
        let pair = [block[2 * part_idx], block[2 * part_idx + 1]];
        let scale = pair.map(|b| (b & 15).cast_signed());
        Part { codes, d, dmin, scale, min: pair.map(|b| b >> 4) }
    }
}

/// Q3_K: 256 weights in 110 bytes.
///
/// ```text
/// byte   0 ...... 31 | 32 ......... 95 | 96 ... 107 | 108 109
///        third bits  | low 2 code bits | scales     | d
///
/// scale of group g, 6 bits, stored 32 too high:
///   low 4 bits    byte 96 + g % 8, low nibble for g < 8, high nibble above
///   high 2 bits   byte 104 + g % 4, shift 2 (g / 4)
/// ```
pub(super) mod q3_k {
    use crate::inference::quant::{expansion::Part, u16_at};

    #[inline(always)]
    pub fn part(block: &[u8; 110], part_idx: usize) -> Part {
        let low = super::bits(&block[32..96], part_idx / 4, 2 * (part_idx % 4), 3);
        let third = super::bits(&block[..32], 0, part_idx, 1);
        let scale = [2 * part_idx, 2 * part_idx + 1].map(|group| scale(block, group));
        Part { scale, ..Part::plain(super::join(low, third, 2), u16_at(block, 108)) }
    }

    /// The integer scale of `group`, -32 to 31.
    #[inline(always)]
    fn scale(block: &[u8; 110], group: usize) -> i8 {
        let low = block[96 + group % 8] >> (4 * (group / 8)) & 15;
        let high = block[104 + group % 4] >> (2 * (group / 4)) & 3;
        (low | high << 4).cast_signed() - 32
    }
}

/// Q4_K: 256 weights in 144 bytes.
///
/// ```text
/// byte   0 1 | 2  3 | 4 ............. 15 | 16 ..... 143
///        d   | dmin | scales and minima  | 4-bit codes
///
/// scales and minima, 6 bits each; s0 to s7 and m0 to m7 belong to parts 0 to 7
///   byte 4 + i    bits 0-5: s[i]              bits 6-7: bits 4-5 of s[i + 4]     i = 0 to 3
///   byte 8 + i    bits 0-5: m[i]              bits 6-7: bits 4-5 of m[i + 4]
///   byte 12 + i   bits 0-3: of s[i + 4]       bits 4-7: bits 0-3 of m[i + 4]
/// ```
pub(super) mod q4_k {
    use crate::inference::quant::{expansion::Part, u16_at};

    #[inline(always)]
    pub fn part(block: &[u8; 144], part_idx: usize) -> Part {
        let codes = super::bits(&block[16..], part_idx / 2, 4 * (part_idx % 2), 15);
        with_scale_min(codes, &block[..16], part_idx)
    }

    /// A part with the scale and minimum that stand in the 16 bytes that open a block of Q4_K and
    /// of Q5_K.
    #[inline(always)]
    pub fn with_scale_min(codes: [u8; 32], head: &[u8], part_idx: usize) -> Part {
        let i = part_idx % 4;
        let (scales, mins, rest) = (head[4 + i], head[8 + i], head[12 + i]);
        let (scale, min) = if part_idx < 4 {
            (scales & 63, mins & 63)
        } else {
            (rest & 15 | scales >> 6 << 4, rest >> 4 | mins >> 6 << 4)
        };
        let (d, dmin) = (u16_at(head, 0), u16_at(head, 2));
        Part { codes, d, dmin, scale: [scale.cast_signed(); 2], min: [min; 2] }
    }
}

/// Q5_K: 256 weights in 176 bytes.
///
/// ```text
/// byte   0 1 | 2  3 | 4 ............. 15 | 16 ... 47  | 48 ......... 175
///        d   | dmin | scales and minima, | fifth bits | low 4 code bits
///            |      | as in Q4_K         |            |
/// ```
pub(super) mod q5_k {
    use crate::inference::quant::expansion::Part;

    #[inline(always)]
    pub fn part(block: &[u8; 176], part_idx: usize) -> Part {
        let low = super::bits(&block[48..], part_idx / 2, 4 * (part_idx % 2), 15);
        let fifth = super::bits(&block[16..48], 0, part_idx, 1);
        super::q4_k::with_scale_min(super::join(low, fifth, 4), &block[..16], part_idx)
    }
}

/// Q6_K: 256 weights in 210 bytes.
///
/// ```text
/// byte   0 ......... 127 | 128 ......... 191 | 192 ............ 207 | 208 209
///        low 4 code bits | high 2 code bits  | signed scale of      | d
///                        |                   | group i              |
/// ```
pub(super) mod q6_k {
    use crate::inference::quant::{expansion::Part, u16_at};

    #[inline(always)]
    pub fn part(block: &[u8; 210], part_idx: usize) -> Part {
        let (half, quarter) = (part_idx / 4, part_idx % 4);
        let low = super::bits(&block[..128], 2 * half + quarter % 2, 4 * (quarter / 2), 15);
        let high = super::bits(&block[128..192], half, 2 * quarter, 3);
        let pair = [block[192 + 2 * part_idx], block[193 + 2 * part_idx]];
        let scale = pair.map(u8::cast_signed);
        Part { scale, ..Part::plain(super::join(low, high, 4), u16_at(block, 208)) }
    }
}
