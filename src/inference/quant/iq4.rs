//! IQ4: 4-bit codes that point into a table of 16 uneven steps, finer near zero.
//!
//! ```text
//! IQ4_NL   weight = scale * IQ4_STEPS[code]          32 weights, one f16 scale
//! IQ4_XS   weight = d * scale * IQ4_STEPS[code]      256 weights, 8 parts of 32, 6-bit scales
//! ```
//!
//! The steps are signed bytes, so a part that is looked up once computes like Q8_0. No step is
//! zero: the smallest magnitude is 1, and the table leans to the negative side.

/// What the 16 codes of a type stand for: uneven steps times a power of two.
#[derive(Debug, PartialEq, Eq)]
pub struct Steps {
    /// Each code's step, made unsigned: zero is `1 << zero_log2`.
    pub up: [u8; 16],
    /// Base-2 logarithm of what stands for zero in `up`.
    pub zero_log2: u32,
    /// Base-2 logarithm of the factor of all steps.
    pub factor_log2: i32,
}

impl Steps {
    /// Steps that lie within `1 << zero_log2` of zero.
    pub(super) const fn new(values: [i8; 16], zero_log2: u32, factor_log2: i32) -> Steps {
        let mut up = [0; 16];
        let mut i = 0;
        while i < 16 {
            let value = values[i] as i32 + (1 << zero_log2);
            assert!(value >= 0 && value < 2 << zero_log2);
            up[i] = value as u8;
            i += 1;
        }
        Steps { up, zero_log2, factor_log2 }
    }

    /// The step of a code, before the factor.
    #[inline(always)]
    pub fn value(&self, code: u8) -> f32 {
        (i32::from(self.up[usize::from(code & 15)]) - (1 << self.zero_log2)) as f32
    }

    /// The factor of all steps.
    #[inline(always)]
    pub const fn factor(&self) -> f32 {
        f32::from_bits(((127 + self.factor_log2) as u32) << 23)
    }
}

/// The steps of IQ4. The values belong to the file format.
pub const IQ4_STEPS: Steps =
    Steps::new([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], 7, 0);

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
