//! Strips: four rows of a quantised matrix, as the kernels for the Jetson's GPU read them.
//!
//! ```text
//! strip    4 rows; those past the matrix are zeros
//! group    8 parts of each row, the last filled with zeros:   heads | scales | planes of codes
//! part     32 weights of a row; its words follow those of the row before, four words to a plane
//! plane    8 parts x 16 bytes
//! ```
//!
//! Which scales a type has and where the bits of a code lie is in [`Layout`], and told with the
//! reasons in `kernels/strip.h` and the kernels. The layout is part of the native file format
//! (`docs/formats.md`); floats have one too, for the device's memory alone. Packing is for loading
//! and for writing files: it is plain, and not fast.

use super::{Codes, Part, TensorType, part, u16_at};

/// Rows of a strip.
pub const STRIP_ROWS: usize = 4;
/// Parts of a group.
pub const GROUP_PARTS: usize = 8;
/// Weights of a part.
pub const PART_LEN: usize = 32;
const HEAD_BYTES: usize = 16;
const PLANE_BYTES: usize = GROUP_PARTS * 16;

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

/// Packs up to four plain rows into a strip.
///
/// # Panics
/// Unless `rows` are whole rows of `n_cols` weights, at most four, and `strip` is
/// [`strip_bytes`] long.
pub fn pack_strip(ty: TensorType, rows: &[u8], n_cols: usize, strip: &mut [u8]) {
    let row_bytes = ty.row_bytes(n_cols).expect("rows are whole");
    assert!(rows.len().is_multiple_of(row_bytes) && rows.len() <= STRIP_ROWS * row_bytes);
    let row = |r: usize| &rows[r * row_bytes..][..row_bytes];
    if Codes::of(ty) != Codes::Float {
        let n_row = rows.len() / row_bytes;
        return pack_parts(ty, n_row, n_cols, |r, b| part(ty, row(r), b), strip);
    }
    let layout = Layout::of(ty);
    assert_eq!(strip.len(), strip_bytes(ty, n_cols));
    strip.fill(0);
    for r in 0..rows.len() / row_bytes {
        for b in 0..n_cols.div_ceil(PART_LEN) {
            let group = &mut strip[b / GROUP_PARTS * layout.group_bytes()..];
            pack_floats(layout, row(r), b, group, (r, b % GROUP_PARTS));
        }
    }
}

/// Packs `n_row` rows (4 at most) of parts, wherever those come from: `part(r, b)` is part `b` of
/// row `r`.
///
/// # Panics
/// Unless `ty` has codes and `strip` is [`strip_bytes`] long.
pub fn pack_parts(
    ty: TensorType,
    n_row: usize,
    n_cols: usize,
    part: impl Fn(usize, usize) -> Part,
    strip: &mut [u8],
) {
    assert!(n_row <= STRIP_ROWS && strip.len() == strip_bytes(ty, n_cols));
    let layout = Layout::of(ty);
    strip.fill(0);
    for r in 0..n_row {
        for b in 0..n_cols / PART_LEN {
            let group = &mut strip[b / GROUP_PARTS * layout.group_bytes()..];
            let part = part(r, b);
            pack_scales(layout, &part, group, (r, b % GROUP_PARTS));
            pack_codes(layout, &part.codes, group, (r, b % GROUP_PARTS));
        }
    }
}

/// The part that was packed as part `b` of row `r`, bit for bit.
///
/// # Panics
/// Unless `ty` has codes, and the row and the part are in the strip.
pub fn unpack(ty: TensorType, strip: &[u8], r: usize, b: usize) -> Part {
    assert!(r < STRIP_ROWS);
    let layout = Layout::of(ty);
    let group = &strip[b / GROUP_PARTS * layout.group_bytes()..][..layout.group_bytes()];
    let p = b % GROUP_PARTS;
    let (mut d, mut dmin) = match layout.head_bytes() {
        0 => (0, 0),
        _ => (u16_at(group, 4 * r), u16_at(group, 4 * r + 2)),
    };
    let of_row = layout.scale_bytes() / STRIP_ROWS;
    let fields = &group[layout.head_bytes() + p * layout.scale_bytes() + r * of_row..][..of_row];
    let signed = |i: usize| fields[i].cast_signed();
    let (scale, min) = match layout.scales {
        Scales::None => unreachable!("floats have no parts"),
        Scales::Float => {
            d = u16_at(fields, 0);
            ([1; 2], [0; 2])
        }
        Scales::FloatMin => {
            (d, dmin) = (u16_at(fields, 0), u16_at(fields, 2));
            ([1; 2], [1; 2])
        }
        Scales::OneMin => ([signed(0); 2], [fields[1]; 2]),
        Scales::Two => ([signed(0), signed(1)], [0; 2]),
        Scales::TwoMin => {
            ([0, 1].map(|i| (fields[i] & 15).cast_signed()), [0, 1].map(|i| fields[i] >> 4))
        }
    };
    Part { codes: unpack_codes(layout, group, (r, p)), d, dmin, scale, min }
}

fn unpack_codes(layout: Layout, group: &[u8], (r, p): (usize, usize)) -> [u8; PART_LEN] {
    let (n_low, n_high) = layout.n_word();
    let low = |i: usize| get(group, layout.codes_at(), p, r * n_low + i);
    let high = |i: usize| get(group, layout.codes_at() + n_low * PLANE_BYTES, p, r * n_high + i);
    // Bits of weight `k`, which are `n_bit` from bit `at` of its half of a word.
    let half = |word: u32, k: usize, at: usize, n_bit: usize| {
        (word >> (16 * (k % 2) + at)) as u8 & ((1 << n_bit) - 1)
    };
    std::array::from_fn(|k| match layout.words {
        Words::Pairs { low: n_bit, high: n_more } => {
            let field = |word: &dyn Fn(usize) -> u32, n_bit: usize| {
                let in_word = 16 / n_bit;
                half(word(k / 2 / in_word), k, n_bit * (k / 2 % in_word), n_bit)
            };
            match n_more {
                0 => field(&low, n_bit),
                _ => field(&low, n_bit) | field(&high, n_more) << n_bit,
            }
        }
        Words::Three if k < 30 => half(low(k / 10), k, 3 * (k / 2 % 5), 3),
        Words::Three => (0..3).map(|bit| half(low(bit), k, 15, 1) << bit).sum(),
        Words::Nibbles => (low(k / 8) >> (4 * (k % 8))) as u8 & 15,
        Words::Bytes(_) => (low(k / 4) >> (8 * (k % 4))) as u8,
    })
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

/// Word `i` of part `p`, four words to a plane.
fn get(group: &[u8], planes_at: usize, p: usize, i: usize) -> u32 {
    let at = planes_at + i / 4 * PLANE_BYTES + p * 16 + i % 4 * 4;
    u32::from_le_bytes([group[at], group[at + 1], group[at + 2], group[at + 3]])
}
