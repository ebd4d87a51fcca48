//! N4 and N3: formats of our own for small models, 4.5 and 3.5 bits a weight.
//!
//! ```text
//! weight = d * scale * code - dmin * min     32 weights a part, 6-bit scale and minimum
//!
//! row           full super-blocks of 8 parts (256 weights), then one of 1 to 7 parts if need be
//! super-block   of p parts, a multiple of 4 bytes; 144 bytes (N4) or 112 bytes (N3) when full
//!   byte 0 1    d, f16
//!   byte 2 3    dmin, f16
//!   byte 4 ..   4 * ceil(3 p / 8) bytes of scales and minima
//!               part i: the little-endian u16 at byte 4 + 3 i / 2, shifted right by 4 (i % 2);
//!               bits 0 to 5 are its scale, bits 6 to 11 its minimum; bits that are left are 0
//!   then        codes of part 0, of part 1, and so on
//!
//! codes of a part
//!   N4  16 bytes  byte j: weight j in the low nibble, weight j + 16 in the high one
//!   N3  12 bytes  byte j of the first 8: low two bits of weight j + 8 i at bits 2 i
//!                 byte j of the last 4: third bit of weight j + 4 i at bit i
//! ```
//!
//! The numbers are those of Q4_K (and its kin with 3 bits), so N4 has its quality; what differs is
//! that a row need not be a multiple of 256: any multiple of 32 will do, and a model 896 wide is
//! not padded and not held in a worse type. Scales stand at one regular place each, and every
//! super-block starts at a multiple of 4 bytes, as 32-bit loads like it.
//!
//! Minima are not negative and codes neither: `dmin` carries the sign. Finding good codes is the
//! quantizer's task; here they are only laid down and read.

use super::expansion::Part;
use super::{TensorType, each_byte, nibbles, u16_at};

/// Weights of a part.
pub const PART_LEN: usize = 32;
/// Parts of a full super-block.
pub const SUPER_PARTS: usize = 8;
/// The largest scale or minimum.
const SCALE_MAX: u8 = 63;

/// 32 weights as a quantizer chose them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NativePart {
    /// Codes in the order of the weights: below 16 for N4, below 8 for N3.
    pub codes: [u8; PART_LEN],
    /// Up to 63: it has 6 bits.
    pub scale: u8,
    /// Up to 63: it has 6 bits.
    pub min: u8,
}

/// Appends a super-block of 1 to 8 parts; a row has fewer than 8 only in its last one. `d` and
/// `dmin` are f16 bits.
///
/// # Panics
/// If `ty` is neither N4 nor N3, there are no parts or more than 8, or a number has too many bits.
pub fn write_super(ty: TensorType, parts: &[NativePart], d: u16, dmin: u16, out: &mut Vec<u8>) {
    assert!((1..=SUPER_PARTS).contains(&parts.len()), "{} parts in a super-block", parts.len());
    let code_max = match ty {
        TensorType::N4 => 15,
        TensorType::N3 => 7,
        _ => panic!("{ty} is not a native type"),
    };
    let head = head_bytes(parts.len());
    let start = out.len();
    out.resize(start + head, 0);
    out[start..start + 2].copy_from_slice(&d.to_le_bytes());
    out[start + 2..start + 4].copy_from_slice(&dmin.to_le_bytes());
    for (i, part) in parts.iter().enumerate() {
        assert!(part.scale <= SCALE_MAX && part.min <= SCALE_MAX, "a scale has 6 bits");
        assert!(part.codes.iter().all(|&code| code <= code_max), "a code of {ty} is too large");
        let field = (u16::from(part.scale) | u16::from(part.min) << 6) << (4 * (i % 2));
        for (out, byte) in out[start + 4 + 3 * i / 2..].iter_mut().zip(field.to_le_bytes()) {
            *out |= byte;
        }
    }
    for part in parts {
        match ty {
            TensorType::N4 => {
                out.extend((0..16).map(|j| part.codes[j] | part.codes[j + 16] << 4));
            }
            _ => {
                let bits = |at: usize, step: usize, shift: u32, mask: u8| {
                    let codes = part.codes[at..].iter().step_by(step).enumerate();
                    let n_bits = mask.count_ones() as usize;
                    codes.fold(0, |byte, (i, code)| byte | (code >> shift & mask) << (n_bits * i))
                };
                out.extend((0..8).map(|j| bits(j, 8, 0, 3)));
                out.extend((0..4).map(|j| bits(j, 4, 2, 1)));
            }
        }
    }
}

/// Bytes of what stands before the codes of a super-block of `n_part` parts.
#[inline(always)]
const fn head_bytes(n_part: usize) -> usize {
    4 + 4 * (3 * n_part).div_ceil(8)
}

// `fields` reads the number of parts off the length of the last super-block, which the rounding up
// of its head must not hide: it adds less than a part of the smaller type, N3, has bytes of codes.
const _: () = {
    let mut n_part = 1;
    while n_part < SUPER_PARTS {
        let slack = head_bytes(n_part) - head_bytes(1);
        assert!(head_bytes(1) == 8 && slack < 12);
        assert!(n_part * 12 + head_bytes(n_part) < row_bytes(SUPER_PARTS, 12));
        n_part += 1;
    }
};

/// Bytes of a row of `n_part` parts, a part having `code_bytes` of codes.
pub(super) const fn row_bytes(n_part: usize, code_bytes: usize) -> usize {
    let tail = match n_part % SUPER_PARTS {
        0 => 0,
        n => head_bytes(n) + n * code_bytes,
    };
    n_part / SUPER_PARTS * (head_bytes(SUPER_PARTS) + SUPER_PARTS * code_bytes) + tail
}

/// Part `part_idx` of a row of N4.
#[inline(always)]
pub(super) fn n4_part(row: &[u8], part_idx: usize) -> Part {
    let (head, codes) = fields::<16>(row, part_idx);
    part(nibbles(codes), head, part_idx)
}

/// Part `part_idx` of a row of N3.
#[inline(always)]
pub(super) fn n3_part(row: &[u8], part_idx: usize) -> Part {
    let (head, bits) = fields::<12>(row, part_idx);
    let (low, high) = bits.split_at(8);
    let mut codes = [0; PART_LEN];
    for (i, eight) in codes.as_chunks_mut::<8>().0.iter_mut().enumerate() {
        let low = low.as_chunks().0[0];
        // Bit 2 i of a byte is of the eight's first half, bit 2 i + 1 of its second.
        let high = u64::from(u32::from_le_bytes(high.as_chunks().0[0])) >> (2 * i);
        let third = (high | high >> 1 << 32) & u64::from_le_bytes([1; 8]);
        let low = each_byte(low, |word| word >> (2 * i), 3);
        *eight = (u64::from_le_bytes(low) | third << 2).to_le_bytes();
    }
    part(codes, head, part_idx)
}

/// The head of a part's super-block, and the `C` bytes of its codes.
#[inline(always)]
fn fields<const C: usize>(row: &[u8], part_idx: usize) -> (&[u8], &[u8; C]) {
    let full_bytes = row_bytes(SUPER_PARTS, C);
    let (super_idx, in_super) = (part_idx / SUPER_PARTS, part_idx % SUPER_PARTS);
    let rest = &row[super_idx * full_bytes..];
    // The tail's own length says how many parts it has: a part weighs more than rounding up can.
    let n_part = if rest.len() >= full_bytes { SUPER_PARTS } else { (rest.len() - 8) / C };
    let (head, codes) = rest.split_at(head_bytes(n_part));
    (head, &codes.as_chunks::<C>().0[in_super])
}

#[inline(always)]
fn part(codes: [u8; PART_LEN], head: &[u8], part_idx: usize) -> Part {
    let i = part_idx % SUPER_PARTS;
    let field = u16_at(head, 4 + 3 * i / 2) >> (4 * (i % 2));
    let (scale, min) = ((field & 63) as u8, (field >> 6 & 63) as u8);
    let (d, dmin) = (u16_at(head, 0), u16_at(head, 2));
    Part { codes, d, dmin, scale: [scale.cast_signed(); 2], min: [min; 2] }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inference::quant::{dequantize, part};

    /// Parts whose every number is different.
    fn parts(n: usize, code_max: u8) -> Vec<NativePart> {
        let code =
            |i: usize, k: usize| ((i * 7 + k * 5 + k / 8) % (usize::from(code_max) + 1)) as u8;
        let of = |i: usize| NativePart {
            codes: std::array::from_fn(|k| code(i, k)),
            scale: (63 - 5 * i % 64) as u8,
            min: (11 * i % 64) as u8,
        };
        (0..n).map(of).collect()
    }

    #[test]
    fn what_is_written_is_read_for_every_length_of_row() {
        for (ty, code_max) in [(TensorType::N4, 15), (TensorType::N3, 7)] {
            for n in 1..=27 {
                let written = parts(n, code_max);
                let mut row = Vec::new();
                for (i, parts) in written.chunks(SUPER_PARTS).enumerate() {
                    write_super(ty, parts, 0x3c00 + i as u16, 0x8400 + i as u16, &mut row);
                    assert!(row.len().is_multiple_of(4));
                }
                assert_eq!(ty.row_bytes(32 * n), Some(row.len()), "{ty}, {n} parts");
                for (i, expected) in written.iter().enumerate() {
                    let got = part(ty, &row, i);
                    let super_idx = (i / SUPER_PARTS) as u16;
                    assert_eq!(got.codes, expected.codes, "{ty}, part {i} of {n}");
                    assert_eq!(got.scale, [expected.scale.cast_signed(); 2]);
                    assert_eq!(got.min, [expected.min; 2]);
                    assert_eq!((got.d, got.dmin), (0x3c00 + super_idx, 0x8400 + super_idx));
                }
            }
        }
    }

    #[test]
    fn the_layout_by_hand() {
        let mut codes = [0; 32];
        (codes[0], codes[4], codes[9], codes[16], codes[31]) = (5, 1, 2, 7, 4);
        let part = NativePart { codes, scale: 0b10_0001, min: 0b11_0000 };
        let mut n4 = Vec::new();
        write_super(TensorType::N4, &[part; 2], 0x3c00, 0x3800, &mut n4);
        // Fields of 12 bits: min, scale = 110000 100001 = c21, twice.
        assert_eq!(n4[..8], [0, 0x3c, 0, 0x38, 0x21, 0x1c, 0xc2, 0]);
        assert_eq!((n4[8], n4[8 + 4], n4[8 + 9], n4[8 + 15]), (0x75, 1, 2, 0x40));
        assert_eq!((n4.len(), n4[24]), (8 + 32, 0x75));
        let mut n3 = Vec::new();
        write_super(TensorType::N3, &[part], 0x3c00, 0x3800, &mut n3);
        // The sample of docs/formats.md.
        assert_eq!(n3[..8], [0, 0x3c, 0, 0x38, 0x21, 0x0c, 0, 0]);
        assert_eq!(n3[8..], [0x31, 8, 0, 0, 1, 0, 0, 0, 0x11, 0, 0, 0x80]);
        let mut weights = [0.0; 32];
        dequantize(TensorType::N3, &n3, &mut weights);
        assert_eq!((weights[0], weights[1], weights[31]), (33.0 * 5.0 - 24.0, -24.0, 108.0));
    }

    #[test]
    fn sizes_are_those_that_the_page_says() {
        assert_eq!(
            (TensorType::N4.row_bytes(256), TensorType::N3.row_bytes(256)),
            (Some(144), Some(112))
        );
        assert_eq!(TensorType::N4.row_bytes(896), Some(3 * 144 + 76));
        assert_eq!(TensorType::N3.row_bytes(896), Some(3 * 112 + 60));
        assert_eq!((TensorType::N4.row_bytes(48), TensorType::N4.row_bytes(0)), (None, Some(0)));
    }

    #[test]
    #[should_panic(expected = "a code of N3 is too large")]
    fn codes_that_do_not_fit_are_the_callers_error() {
        let part = NativePart { codes: [8; 32], scale: 0, min: 0 };
        write_super(TensorType::N3, &[part], 0, 0, &mut Vec::new());
    }
}
