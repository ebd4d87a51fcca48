//! IQ4: 4-bit codes that point into a table of 16 uneven steps, finer near zero.
//!
//! ```text
//! IQ4_NL   weight = scale * STEPS[code]          32 weights, one f16 scale
//! IQ4_XS   weight = d * scale * STEPS[code]      256 weights, 8 parts of 32, 6-bit scales
//! ```
//!
//! The steps are signed bytes, so a part that is looked up once computes like Q8_0. No step is
//! zero: the smallest magnitude is 1, and the table leans to the negative side.

/// What a code stands for. The values belong to the file format.
pub const STEPS: [i8; 16] =
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// IQ4_NL: 32 weights in 18 bytes.
///
/// ```text
/// byte   0   1 | 2 ................ 17
///        scale | low nibble of byte 2 + i -> weight i, high nibble -> weight i + 16
/// ```
pub(super) mod iq4_nl {
    use crate::inference::quant::{expansion::Part, nibbles, u16_at};

    #[inline(always)]
    pub fn part(block: &[u8; 18]) -> Part {
        Part::plain(nibbles(&block[2..]), u16_at(block, 0))
    }
}

/// IQ4_XS: 256 weights in 136 bytes.
///
/// ```text
/// byte   0 1 | 2 .. 3      | 4 ....... 7 | 8 ................ 135
///        d   | high scales | low scales  | part p: 16 bytes from 8 + 16 p, nibbles as in IQ4_NL
///
/// scale of part p, 6 bits, stored 32 too high:
///   low 4 bits    byte 4 + p / 2, low nibble for even p, high nibble for odd p
///   high 2 bits   bits 2 p and 2 p + 1 of the little-endian u16 at byte 2
/// ```
pub(super) mod iq4_xs {
    use crate::inference::quant::{expansion::Part, nibbles, u16_at};

    #[inline(always)]
    pub fn part(block: &[u8; 136], part_idx: usize) -> Part {
        let low = block[4 + part_idx / 2] >> (4 * (part_idx % 2)) & 15;
        let high = block[2 + part_idx / 4] >> (2 * (part_idx % 4)) & 3;
        let scale = (low | high << 4).cast_signed() - 32;
        let codes = nibbles(&block[8 + 16 * part_idx..]);
        Part { scale: [scale; 2], ..Part::plain(codes, u16_at(block, 0)) }
    }
}
