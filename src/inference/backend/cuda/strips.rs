//! Strips: matrices as the kernels for the Jetson's GPU read them, four rows together.
//!
//! ```text
//! strip    4 rows; those past the matrix are zeros
//! group    8 parts of each row, the last filled with zeros:   heads | scales | planes of codes
//! part     32 weights of a row; its words follow those of the row before, four words to a plane
//! plane    8 parts x 16 bytes
//! ```
//!
//! Which scales a type has and where the bits of a code lie is in [`Layout`], and told with the
//! reasons in `kernels/strip.h` and the kernels. Parts come from `quant`, so every type that can be
//! read can be packed. Packing is for loading: it is plain, and not fast.

use crate::inference::quant::{Codes, Part, TensorType, part};

/// Rows of a strip.
pub const STRIP_ROWS: usize = 4;
/// Parts of a group.
pub const GROUP_PARTS: usize = 8;
/// Weights of a part.
pub const PART_LEN: usize = 32;
const HEAD_BYTES: usize = 16;
const PLANE_BYTES: usize = GROUP_PARTS * 16;
const INPUT_HEADER_BYTES: usize = 16;
const INPUT_GROUP_BYTES: usize = 4 * PLANE_BYTES + GROUP_PARTS * 8;

/// The scales of a part, for each row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scales {
    /// `d`, f16.
    Float,
    /// `d` and `dmin`, f16.
    FloatMin,
    /// `d` and `dmin` in the group's head; a scale and a minimum, a byte each.
    OneMin,
    /// `d` in the head; a scale of the first and of the last 16 weights, a signed byte each.
    Two,
    /// `d` and `dmin` in the head; the same, scale in the low half of a byte, minimum in the high.
    TwoMin,
    /// None: weights are floats.
    None,
}

/// Where codes lie in the words of a part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Words {
    /// Pair `m`, weights `2 m` and `2 m + 1`, in the low and the high half of a word: `low` bits
    /// in the first words, `high` more in those of planes behind.
    Pairs { low: usize, high: usize },
    /// Five pairs of 3 bits in each of three words, the last pair in their spare bits.
    Three,
    /// Eight weights in a word, in their order.
    Nibbles,
    /// Four weights in a word, in their order; floats as the file has them.
    Bytes(usize),
}

/// How a type is packed.
#[derive(Clone, Copy, Debug)]
struct Layout {
    scales: Scales,
    words: Words,
}

impl Layout {
    const fn of(ty: TensorType) -> Layout {
        let (scales, words) = match ty {
            TensorType::N4 | TensorType::Q4_K => (Scales::OneMin, PAIRS_4),
            TensorType::Q4_0 => (Scales::Float, PAIRS_4),
            TensorType::Q4_1 => (Scales::FloatMin, PAIRS_4),
            TensorType::Q5_0 => (Scales::Float, PAIRS_5),
            TensorType::Q5_1 => (Scales::FloatMin, PAIRS_5),
            TensorType::Q5_K => (Scales::OneMin, PAIRS_5),
            TensorType::Q6_K => (Scales::Two, Words::Pairs { low: 4, high: 2 }),
            TensorType::Q2_K => (Scales::TwoMin, Words::Pairs { low: 2, high: 0 }),
            TensorType::N3 => (Scales::OneMin, Words::Three),
            TensorType::Q3_K => (Scales::Two, Words::Three),
            TensorType::Q8_0 => (Scales::Float, Words::Bytes(1)),
            TensorType::IQ4_NL => (Scales::Float, Words::Nibbles),
            TensorType::IQ4_XS | TensorType::IQ3_XXS | TensorType::IQ3_S => {
                (Scales::Two, Words::Nibbles)
            }
            TensorType::F16 | TensorType::BF16 => (Scales::None, Words::Bytes(2)),
            TensorType::F32 => (Scales::None, Words::Bytes(4)),
        };
        Layout { scales, words }
    }

    const fn head_bytes(self) -> usize {
        match self.scales {
            Scales::OneMin | Scales::Two | Scales::TwoMin => HEAD_BYTES,
            Scales::Float | Scales::FloatMin | Scales::None => 0,
        }
    }

    /// Bytes of the scales of a part of four rows.
    const fn scale_bytes(self) -> usize {
        match self.scales {
            Scales::None => 0,
            Scales::FloatMin => 16,
            _ => 8,
        }
    }

    /// Words of a part of a row in its first planes, and in those behind.
    const fn n_word(self) -> (usize, usize) {
        match self.words {
            Words::Pairs { low, high } => (low, high),
            Words::Three => (3, 0),
            Words::Nibbles => (4, 0),
            Words::Bytes(n) => (8 * n, 0),
        }
    }

    const fn codes_at(self) -> usize {
        self.head_bytes() + GROUP_PARTS * self.scale_bytes()
    }

    const fn group_bytes(self) -> usize {
        let (low, high) = self.n_word();
        self.codes_at() + (low + high) * PLANE_BYTES
    }
}

const PAIRS_4: Words = Words::Pairs { low: 4, high: 0 };
const PAIRS_5: Words = Words::Pairs { low: 4, high: 1 };

/// Groups of a row.
pub const fn n_group(n_cols: usize) -> usize {
    n_cols.div_ceil(GROUP_PARTS * PART_LEN)
}

/// Bytes of a strip of rows of `n_cols` weights.
pub const fn strip_bytes(ty: TensorType, n_cols: usize) -> usize {
    n_group(n_cols) * Layout::of(ty).group_bytes()
}

/// Bytes of a staged input column of `n_cols` values.
pub const fn input_bytes(n_cols: usize) -> usize {
    INPUT_HEADER_BYTES + n_group(n_cols) * INPUT_GROUP_BYTES
}

/// Packs up to four plain rows into a strip.
///
/// # Panics
/// Unless `rows` are whole rows of `n_cols` weights, at most four, and `strip` is
/// [`strip_bytes`] long.
pub fn pack_strip(ty: TensorType, rows: &[u8], n_cols: usize, strip: &mut [u8]) {
    let row_bytes = ty.row_bytes(n_cols).expect("rows are whole");
    assert!(rows.len().is_multiple_of(row_bytes) && rows.len() <= STRIP_ROWS * row_bytes);
    assert_eq!(strip.len(), strip_bytes(ty, n_cols));
    let row = |r: usize| &rows[r * row_bytes..][..row_bytes];
    let n_rows = rows.len() / row_bytes;
    if Codes::of(ty) != Codes::Float {
        return pack_parts(ty, (n_rows, n_cols), strip, |r, p| part(ty, row(r), p));
    }
    let layout = Layout::of(ty);
    strip.fill(0);
    each_part(layout, (n_rows, n_cols), strip, |group, first, (r, p)| {
        pack_floats(layout, row(r), first + p, group, (r, p));
    });
}

/// Packs up to four rows of parts into a strip: `part_of` a row and a part of it.
///
/// # Panics
/// If there are more rows, the type has floats, or `strip` is not [`strip_bytes`] long.
pub fn pack_parts(
    ty: TensorType,
    (n_rows, n_cols): (usize, usize),
    strip: &mut [u8],
    mut part_of: impl FnMut(usize, usize) -> Part,
) {
    assert!(n_rows <= STRIP_ROWS && strip.len() == strip_bytes(ty, n_cols));
    let layout = Layout::of(ty);
    strip.fill(0);
    each_part(layout, (n_rows, n_cols), strip, |group, first, (r, p)| {
        let part = part_of(r, first + p);
        pack_scales(layout, &part, group, (r, p));
        pack_codes(layout, &part.codes, group, (r, p));
    });
}

/// Calls `each` with every part: its group, the group's first part, and the row and place in it.
fn each_part(
    layout: Layout,
    (n_rows, n_cols): (usize, usize),
    strip: &mut [u8],
    mut each: impl FnMut(&mut [u8], usize, (usize, usize)),
) {
    for (group_idx, group) in strip.chunks_exact_mut(layout.group_bytes()).enumerate() {
        let first = group_idx * GROUP_PARTS;
        for r in 0..n_rows {
            for p in 0..GROUP_PARTS.min(n_cols.div_ceil(PART_LEN) - first) {
                each(group, first, (r, p));
            }
        }
    }
}

/// Part `p` of row `r`, as far as the row has it.
fn pack_floats(
    layout: Layout,
    row: &[u8],
    part_idx: usize,
    group: &mut [u8],
    (r, p): (usize, usize),
) {
    let (n_word, _) = layout.n_word();
    let start = part_idx * n_word * 4;
    let bytes = &row[start..row.len().min(start + n_word * 4)];
    for (i, bytes) in bytes.chunks(4).enumerate() {
        let mut word = [0; 4];
        word[..bytes.len()].copy_from_slice(bytes);
        put(group, layout.codes_at(), p, r * n_word + i, u32::from_le_bytes(word));
    }
}

fn pack_scales(layout: Layout, part: &Part, group: &mut [u8], (r, p): (usize, usize)) {
    if layout.head_bytes() > 0 {
        group[4 * r..4 * r + 2].copy_from_slice(&part.d.to_le_bytes());
        group[4 * r + 2..4 * r + 4].copy_from_slice(&part.dmin.to_le_bytes());
    }
    let of_row = layout.scale_bytes() / STRIP_ROWS;
    let at = layout.head_bytes() + p * layout.scale_bytes() + r * of_row;
    let [first, last] = part.scale.map(i8::cast_unsigned);
    let fields = match layout.scales {
        Scales::None => return,
        Scales::Float => u32::from(part.d),
        Scales::FloatMin => u32::from(part.d) | u32::from(part.dmin) << 16,
        Scales::OneMin => u32::from(first) | u32::from(part.min[0]) << 8,
        Scales::Two => u32::from(first) | u32::from(last) << 8,
        Scales::TwoMin => {
            u32::from(first | part.min[0] << 4) | u32::from(last | part.min[1] << 4) << 8
        }
    };
    group[at..at + of_row].copy_from_slice(&fields.to_le_bytes()[..of_row]);
}

fn pack_codes(layout: Layout, codes: &[u8; PART_LEN], group: &mut [u8], (r, p): (usize, usize)) {
    let (n_low, n_high) = layout.n_word();
    let pair = |m: usize, shift: usize, mask: u8| {
        let field = |code: u8| u32::from(code >> shift & mask);
        field(codes[2 * m]) | field(codes[2 * m + 1]) << 16
    };
    let mut low = [0u32; PART_LEN];
    let mut high = [0u32; 2];
    match layout.words {
        Words::Pairs { low: low_bits, high: high_bits } => {
            let (in_low, in_high) = (16 / low_bits, 16 / high_bits.max(1));
            for m in 0..16 {
                let mask = (1 << low_bits) - 1;
                low[m / in_low] |= pair(m, 0, mask) << (low_bits * (m % in_low));
                if high_bits > 0 {
                    let bits = pair(m, low_bits, (1 << high_bits) - 1);
                    high[m / in_high] |= bits << (high_bits * (m % in_high));
                }
            }
        }
        Words::Three => {
            for m in 0..15 {
                low[m / 5] |= pair(m, 0, 7) << (3 * (m % 5));
            }
            for (bit, word) in low[..3].iter_mut().enumerate() {
                *word |= pair(15, bit, 1) << 15;
            }
        }
        Words::Nibbles => {
            for (k, &code) in codes.iter().enumerate() {
                low[k / 8] |= u32::from(code) << (4 * (k % 8));
            }
        }
        Words::Bytes(_) => {
            for (k, &code) in codes.iter().enumerate() {
                low[k / 4] |= u32::from(code) << (8 * (k % 4));
            }
        }
    }
    for (i, &word) in low[..n_low].iter().enumerate() {
        put(group, layout.codes_at(), p, r * n_low + i, word);
    }
    for (i, &word) in high[..n_high].iter().enumerate() {
        put(group, layout.codes_at() + n_low * PLANE_BYTES, p, r * n_high + i, word);
    }
}

/// Word `i` of part `p`, four words to a plane.
fn put(group: &mut [u8], planes_at: usize, p: usize, i: usize, word: u32) {
    let at = planes_at + i / 4 * PLANE_BYTES + p * 16 + i % 4 * 4;
    group[at..at + 4].copy_from_slice(&word.to_le_bytes());
}
