//! Forms: how a matrix stands in a file or in memory, and how to take it apart again.

use super::{Codes, Part, TensorType, dequantize, panel, part, strip};

/// How a matrix stands in a file or in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Row after row, as the type has them.
    Rows,
    /// Panels of sixteen rows, one after another: what processors multiply.
    Panels,
    /// Strips of four rows, one after another: what the Jetson's GPU multiplies.
    Strips,
}

impl Form {
    /// What a native file calls it.
    pub const fn name(self) -> &'static str {
        match self {
            Form::Rows => "rows",
            Form::Panels => "panels16",
            Form::Strips => "strips4",
        }
    }

    /// The form that a native file calls so.
    pub fn from_name(name: &str) -> Option<Form> {
        [Form::Rows, Form::Panels, Form::Strips].into_iter().find(|form| form.name() == name)
    }

    /// Rows that stand together: those of a unit.
    pub const fn unit_rows(self) -> usize {
        match self {
            Form::Rows => 1,
            Form::Panels => panel::PANEL_ROWS,
            Form::Strips => strip::STRIP_ROWS,
        }
    }

    /// Bytes of a unit of rows of `n_cols` weights; `None` if a row cannot have so many weights, or
    /// the type does not stand in this form.
    pub fn unit_bytes(self, ty: TensorType, n_cols: u64) -> Option<usize> {
        if self == Form::Rows {
            return ty.row_bytes(usize::try_from(n_cols).ok()?);
        }
        // A unit of so many columns at most is far from overflowing.
        let n_cols = u32::try_from(n_cols).ok()? as usize;
        if Codes::of(ty) == Codes::Float || !n_cols.is_multiple_of(ty.row_unit()) {
            return None;
        }
        Some(match self {
            Form::Strips => strip::strip_bytes(ty, n_cols),
            _ => panel::Layout::of(ty).panel_bytes(n_cols / panel::BLOCK_LEN),
        })
    }

    /// Bytes of a matrix; `None` as with [`Form::unit_bytes`], and if the size overflows.
    pub fn n_bytes(self, ty: TensorType, n_cols: u64, n_rows: u64) -> Option<u64> {
        let n_unit = n_rows.div_ceil(self.unit_rows() as u64);
        (self.unit_bytes(ty, n_cols)? as u64).checked_mul(n_unit)
    }

    /// Block `block_idx` of row `row_idx` of a matrix that stands in this form: 32 weights of rows
    /// of `n_cols`.
    ///
    /// # Panics
    /// Unless the type has codes, `bytes` are those of such a matrix, and the block is there.
    pub fn part(
        self,
        ty: TensorType,
        bytes: &[u8],
        n_cols: usize,
        row_idx: usize,
        block_idx: usize,
    ) -> Part {
        let unit_bytes = self.unit_bytes(ty, n_cols as u64).expect("the matrix stands so");
        let unit = &bytes[row_idx / self.unit_rows() * unit_bytes..][..unit_bytes];
        let r = row_idx % self.unit_rows();
        match self {
            Form::Rows => part(ty, unit, block_idx),
            Form::Panels => panel::unpack(ty, unit, n_cols / panel::BLOCK_LEN, r, block_idx),
            Form::Strips => strip::unpack(ty, unit, r, block_idx),
        }
    }

    /// The weights of row `row_idx` of a matrix that stands in this form.
    ///
    /// # Panics
    /// Unless `bytes` are those of a matrix with rows of `out.len()` weights and the row is there.
    pub fn read_row(self, ty: TensorType, bytes: &[u8], row_idx: usize, out: &mut [f32]) {
        let n_cols = out.len();
        if self == Form::Rows {
            let row_bytes = ty.row_bytes(n_cols).expect("rows are whole");
            return dequantize(ty, &bytes[row_idx * row_bytes..][..row_bytes], out);
        }
        for (block_idx, out) in out.as_chunks_mut().0.iter_mut().enumerate() {
            self.part(ty, bytes, n_cols, row_idx, block_idx).write(Codes::of(ty), out);
        }
    }
}
