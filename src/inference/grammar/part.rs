//! A character of which some bytes have come, and what it can still become.

/// The first bytes of a character: the bits so far and the bytes that are missing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Part {
    bits: u32,
    n_missing: u8,
}

/// What a byte makes of a part.
pub(super) enum Step {
    Char(u32),
    Part(Part),
    /// No character has these bytes.
    Invalid,
}

impl Part {
    /// Whether no character has begun.
    pub(super) fn is_none(self) -> bool {
        self.n_missing == 0
    }

    /// Adds a byte. Overlong forms, surrogates and code points beyond Unicode are invalid.
    pub(super) fn push(self, byte: u8) -> Step {
        if self.is_none() {
            return match byte {
                0x00..=0x7F => Step::Char(byte.into()),
                0xC2..=0xDF => Step::Part(Part { bits: byte as u32 & 0x1F, n_missing: 1 }),
                0xE0..=0xEF => Step::Part(Part { bits: byte as u32 & 0x0F, n_missing: 2 }),
                0xF0..=0xF4 => Step::Part(Part { bits: byte as u32 & 0x07, n_missing: 3 }),
                _ => Step::Invalid,
            };
        }
        // What has come tells the lead byte: 0xE0, 0xED, 0xF0 and 0xF4 restrict what follows.
        let allowed = match (self.bits, self.n_missing) {
            (0x0, 2) => 0xA0..=0xBF,
            (0xD, 2) => 0x80..=0x9F,
            (0x0, 3) => 0x90..=0xBF,
            (0x4, 3) => 0x80..=0x8F,
            _ => 0x80..=0xBF,
        };
        if !allowed.contains(&byte) {
            return Step::Invalid;
        }
        let bits = self.bits << 6 | byte as u32 & 0x3F;
        match self.n_missing {
            1 => Step::Char(bits),
            n => Step::Part(Part { bits, n_missing: n - 1 }),
        }
    }

    /// The least and greatest code point that it can become.
    pub(super) fn range(self) -> (u32, u32) {
        let shift = 6 * self.n_missing as u32;
        let low = self.bits << shift;
        let high = low | ((1 << shift) - 1);
        match (self.bits, self.n_missing) {
            (0, 2) => (0x800, high),
            (0, 3) => (0x1_0000, high),
            _ => (low, high),
        }
    }
}
