//! Choices out of the fuzzer's bytes. Past their end every choice is the first one.

/// Reads bytes from the front.
pub struct Feed<'a>(&'a [u8]);

impl<'a> Feed<'a> {
    pub fn new(bytes: &'a [u8]) -> Feed<'a> {
        Feed(bytes)
    }

    pub fn u8(&mut self) -> u8 {
        let Some((&first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        first
    }

    pub fn u32(&mut self) -> u32 {
        u32::from_le_bytes([self.u8(), self.u8(), self.u8(), self.u8()])
    }

    pub fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[usize::from(self.u8()) % of.len()]
    }

    /// A number that is small, at an edge, or anything.
    pub fn number(&mut self) -> u32 {
        match self.u8() % 8 {
            0..=3 => u32::from(self.u8()),
            4 => 1 << (self.u8() % 32),
            5 => (1u32 << (self.u8() % 32)).wrapping_sub(1),
            _ => self.u32(),
        }
    }

    /// A float of any bits, or one of the usual sizes.
    pub fn float(&mut self) -> f32 {
        match self.u8() % 4 {
            0 => f32::from(self.u8()) / 128.0,
            1 => self.pick(&[0.0, -0.0, 1.0, -1.0, f32::NAN, f32::INFINITY, f32::MIN, 1e-38]),
            _ => f32::from_bits(self.u32()),
        }
    }

    /// The next `n` bytes or fewer.
    pub fn bytes(&mut self, n: usize) -> &'a [u8] {
        let (head, rest) = self.0.split_at(n.min(self.0.len()));
        self.0 = rest;
        head
    }

    pub fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.0)
    }
}
