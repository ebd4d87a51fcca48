//! Native files: weights in the form that a target computes with, so that mapping is loading.
//!
//! A file is written front to back and nothing is held but the header and sixteen rows:
//!
//! ```text
//! NativeWriter::new       header: every size follows from types and shapes
//!   write, write, ...     plain rows of the tensors in their order, cut anywhere
//!     16 rows together    packed into a panel and written, where the tensor stands in panels
//! finish                  refuses a file that is not whole
//! ```
//!
//! The processors that the CPU backend knows read the same panels: files for `avx2`, `avx512` and
//! `neon` differ in what they say only. The GPU of `sm53` reads strips. Tables that are only looked
//! up row by row stand in rows for every target; `docs/formats.md` has the bytes.

use std::io::{self, Write};

use super::backend::cpu::{pack_panel, repack_panel};
use super::gguf::{Gguf, GgufBuilder, GgufError, Metadata, TensorInfo};
use super::quant::panel::BLOCK_LEN;
use super::quant::strip::{pack_parts, pack_strip};
use super::quant::{Codes, Form, NativePart, Part, TensorType, write_super};

/// Bytes that tensors of a native file are aligned to: a page, so that each can be mapped, locked
/// or given back by itself.
const ALIGNMENT: u32 = 4096;
/// Rows that are written at once where they stand in rows.
const ROWS_AT_ONCE: usize = 16;

/// What a native file is written for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// x86 with AVX2.
    Avx2,
    /// x86 with AVX-512 VNNI.
    Avx512,
    /// ARMv8.
    Neon,
    /// Maxwell GPUs of the Jetson Nano.
    Sm53,
}

impl Target {
    /// Every target.
    pub const ALL: [Target; 4] = [Target::Avx2, Target::Avx512, Target::Neon, Target::Sm53];

    /// The name on the command line and in the file.
    pub const fn name(self) -> &'static str {
        match self {
            Target::Avx2 => "avx2",
            Target::Avx512 => "avx512",
            Target::Neon => "neon",
            Target::Sm53 => "sm53",
        }
    }

    /// The target with this name.
    pub fn from_name(name: &str) -> Option<Target> {
        Target::ALL.into_iter().find(|target| target.name() == name)
    }

    /// How a matrix that is multiplied stands in files for this target.
    pub const fn form(self) -> Form {
        match self {
            Target::Avx2 | Target::Avx512 | Target::Neon => Form::Panels,
            Target::Sm53 => Form::Strips,
        }
    }
}

/// A tensor of a file to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NativeTensor {
    /// Name in the file.
    pub name: String,
    /// Type of its rows.
    pub ty: TensorType,
    /// Innermost first.
    pub shape: Vec<u64>,
}

/// Why a native file could not be written.
#[derive(Debug, thiserror::Error)]
pub enum NativeError {
    /// The file cannot be written.
    #[error("the file cannot be written")]
    Io(#[from] io::Error),
    /// A file that could not be read back.
    #[error("the file could not be read back")]
    Outline(#[from] GgufError),
    /// A tensor that no file can hold.
    #[error("tensor '{name}' cannot be {ty} with shape {shape:?}")]
    Shape {
        /// Its name.
        name: String,
        /// The type asked for.
        ty: TensorType,
        /// Its shape, innermost first.
        shape: Vec<u64>,
    },
    /// More bytes than the tensors have.
    #[error("{n_bytes} bytes are left behind the last tensor")]
    Surplus {
        /// How many.
        n_bytes: usize,
    },
    /// Fewer bytes than the tensors have.
    #[error("tensor '{name}' lacks {n_bytes} bytes of its rows")]
    Missing {
        /// The first that is not whole.
        name: String,
        /// Bytes that it lacks.
        n_bytes: u64,
    },
}

/// A tensor whose place in the file is known.
struct Placed {
    tensor: NativeTensor,
    form: Form,
    /// Bytes in the file, without padding.
    n_bytes: u64,
    row_bytes: usize,
    n_rows: u64,
}

impl Placed {
    /// Bytes of a panel or a strip.
    fn packed_bytes(&self) -> usize {
        (self.n_bytes / self.n_rows.div_ceil(self.form.unit_rows() as u64)) as usize
    }
}

/// Writes a native file from plain rows.
pub struct NativeWriter<W> {
    out: W,
    placed: Vec<Placed>,
    /// The tensor that is being written, and its rows that are not in the file yet.
    tensor_idx: usize,
    rows_left: u64,
    /// Bytes that do not make a unit yet: a panel, a strip, or some rows.
    rest: Vec<u8>,
    unit: Vec<u8>,
}

impl<W: Write> NativeWriter<W> {
    /// Writes the header of a file for `target`. `metadata` is what the file says of the model;
    /// its `general.alignment` is replaced.
    ///
    /// # Errors
    /// `Shape`, and those of `out`.
    pub fn new(
        out: W,
        target: Target,
        metadata: &Metadata,
        tensors: Vec<NativeTensor>,
    ) -> Result<NativeWriter<W>, NativeError> {
        let forms = forms(target, metadata, &tensors);
        NativeWriter::with_forms(out, target, metadata, tensors.into_iter().zip(forms).collect())
    }

    fn with_forms(
        mut out: W,
        target: Target,
        metadata: &Metadata,
        tensors: Vec<(NativeTensor, Form)>,
    ) -> Result<NativeWriter<W>, NativeError> {
        let (header, placed) = lay_out(target, metadata, tensors)?;
        out.write_all(&header.header())?;
        let rows_left = placed.first().map_or(0, |tensor| tensor.n_rows);
        let (rest, unit) = (Vec::new(), Vec::new());
        Ok(NativeWriter { out, placed, tensor_idx: 0, rows_left, rest, unit })
    }

    /// The next plain-row bytes of the tensors, in their order: a call may end anywhere.
    ///
    /// # Errors
    /// `Surplus`, and those of the file.
    pub fn write(&mut self, mut bytes: &[u8]) -> Result<(), NativeError> {
        while !bytes.is_empty() {
            let Some(unit_bytes) = self.unit_bytes() else {
                return Err(NativeError::Surplus { n_bytes: bytes.len() });
            };
            if self.rest.is_empty() && bytes.len() >= unit_bytes {
                let (unit, tail) = bytes.split_at(unit_bytes);
                self.put_unit(unit)?;
                bytes = tail;
                continue;
            }
            let (taken, tail) = bytes.split_at(bytes.len().min(unit_bytes - self.rest.len()));
            self.rest.extend_from_slice(taken);
            bytes = tail;
            if self.rest.len() == unit_bytes {
                let unit = std::mem::take(&mut self.rest);
                self.put_unit(&unit)?;
                self.rest = unit;
                self.rest.clear();
            }
        }
        Ok(())
    }

    /// Ends the file and gives it back; flushing and syncing are the caller's.
    ///
    /// # Errors
    /// `Missing` if a tensor is not whole.
    pub fn finish(self) -> Result<W, NativeError> {
        match self.placed.get(self.tensor_idx) {
            None => Ok(self.out),
            Some(Placed { tensor, row_bytes, .. }) => Err(NativeError::Missing {
                name: tensor.name.clone(),
                n_bytes: self.rows_left * *row_bytes as u64 - self.rest.len() as u64,
            }),
        }
    }

    /// Bytes of the rows that are written together; `None` behind the last tensor.
    fn unit_bytes(&self) -> Option<usize> {
        let tensor = self.placed.get(self.tensor_idx)?;
        let n_row = match tensor.form {
            Form::Rows => ROWS_AT_ONCE,
            form => form.unit_rows(),
        };
        Some(self.rows_left.min(n_row as u64) as usize * tensor.row_bytes)
    }

    fn put_unit(&mut self, rows: &[u8]) -> Result<(), NativeError> {
        let placed = &self.placed[self.tensor_idx];
        let (ty, n_cols) = (placed.tensor.ty, placed.tensor.shape[0] as usize);
        let n_row = (rows.len() / placed.row_bytes) as u64;
        match placed.form {
            Form::Rows => self.out.write_all(rows)?,
            form => {
                self.unit.clear();
                self.unit.resize(placed.packed_bytes(), 0);
                match form {
                    Form::Strips => pack_strip(ty, rows, n_cols, &mut self.unit),
                    _ => pack_panel(ty, rows, n_cols, &mut self.unit),
                }
                self.out.write_all(&self.unit)?;
            }
        }
        self.rows_left -= n_row;
        self.end_tensor()
    }

    /// The whole of the next tensor, which stands in panels or strips, out of the other of the two.
    fn write_repacked(&mut self, form: Form, bytes: &[u8]) -> Result<(), NativeError> {
        let placed = &self.placed[self.tensor_idx];
        let (ty, n_cols) = (placed.tensor.ty, placed.tensor.shape[0] as usize);
        let n_rows = placed.n_rows as usize;
        let unit_rows = placed.form.unit_rows();
        for first in (0..n_rows).step_by(unit_rows) {
            let n = unit_rows.min(n_rows - first);
            self.unit.clear();
            self.unit.resize(placed.packed_bytes(), 0);
            let part = |r: usize, b: usize| form.part(ty, bytes, n_cols, first + r, b);
            match placed.form {
                Form::Strips => pack_parts(ty, n, n_cols, part, &mut self.unit),
                _ => repack_panel((ty, form), bytes, n_cols, first, n, &mut self.unit),
            }
            self.out.write_all(&self.unit)?;
        }
        self.rows_left = 0;
        self.end_tensor()
    }

    /// Pads a tensor whose rows are all there, and goes on to the next.
    fn end_tensor(&mut self) -> Result<(), NativeError> {
        if self.rows_left == 0 {
            let n_bytes = self.placed[self.tensor_idx].n_bytes;
            let padding = n_bytes.next_multiple_of(ALIGNMENT.into()) - n_bytes;
            self.out.write_all(&[0; ALIGNMENT as usize][..padding as usize])?;
            self.tensor_idx += 1;
            self.rows_left = self.placed.get(self.tensor_idx).map_or(0, |tensor| tensor.n_rows);
        }
        Ok(())
    }

    /// The whole of the next tensor, as it is to stand.
    fn write_whole(&mut self, bytes: &[u8]) -> Result<(), NativeError> {
        self.out.write_all(bytes)?;
        self.rows_left = 0;
        self.end_tensor()
    }
}

/// The file that [`NativeWriter`] would write, with zeros for weights: for sizing it beforehand.
///
/// # Errors
/// `Shape`, and `Outline` if the file could not be read back.
pub fn outline(
    target: Target,
    metadata: &Metadata,
    tensors: Vec<NativeTensor>,
) -> Result<Gguf, NativeError> {
    let forms = forms(target, metadata, &tensors);
    let (file, _) = lay_out(target, metadata, tensors.into_iter().zip(forms).collect())?;
    Ok(Gguf::outline(&file)?)
}

/// The header of a file, and where its tensors stand.
fn lay_out(
    target: Target,
    metadata: &Metadata,
    tensors: Vec<(NativeTensor, Form)>,
) -> Result<(GgufBuilder<'static>, Vec<Placed>), NativeError> {
    let mut header = GgufBuilder::new().target(target.name());
    for (key, value) in metadata.iter().filter(|(key, _)| is_kept(key)) {
        header = header.pair(key, value.clone());
    }
    header = header.pair("general.alignment", ALIGNMENT);
    let mut placed = Vec::with_capacity(tensors.len());
    for (tensor, form) in tensors {
        let tensor = place(tensor, form)?;
        let NativeTensor { name, ty, shape } = &tensor.tensor;
        header = header.tensor_in(name, shape, *ty, form, Vec::new()).announce(tensor.n_bytes);
        placed.push(tensor);
    }
    Ok((header, placed))
}

fn place(tensor: NativeTensor, form: Form) -> Result<Placed, NativeError> {
    let refused = |tensor: &NativeTensor| NativeError::Shape {
        name: tensor.name.clone(),
        ty: tensor.ty,
        shape: tensor.shape.clone(),
    };
    let n_elements = tensor.shape.iter().try_fold(1u64, |n, &dim| n.checked_mul(dim));
    let (Some(n @ 1..), Some(&n_cols)) = (n_elements, tensor.shape.first()) else {
        return Err(refused(&tensor));
    };
    let n_rows = n / n_cols;
    let n_bytes = form.n_bytes(tensor.ty, n_cols, n_rows);
    let row_bytes = tensor.ty.row_bytes(n_cols as usize);
    let (Some(n_bytes), Some(row_bytes)) = (n_bytes, row_bytes) else {
        return Err(refused(&tensor));
    };
    Ok(Placed { tensor, form, n_bytes, row_bytes, n_rows })
}

/// Whether a key of the source is true of the file as well, which is one and has an alignment of
/// its own.
fn is_kept(key: &str) -> bool {
    key != "general.alignment" && !key.starts_with("split.")
}

/// How each tensor stands in a file for `target`.
fn forms(target: Target, metadata: &Metadata, tensors: &[NativeTensor]) -> Vec<Form> {
    let has_output = tensors.iter().any(|tensor| tensor.name == "output.weight");
    let is_encoder = metadata.str("general.architecture").ok().flatten() == Some("bert");
    let form = |tensor: &NativeTensor| {
        let is_looked_up = match tensor.name.as_str() {
            "token_embd.weight" => has_output || is_encoder,
            "position_embd.weight" | "token_types.weight" => true,
            _ => false,
        };
        let is_matrix = tensor.shape.len() == 2 && tensor.shape[1] > 1;
        let has_codes = Codes::of(tensor.ty) != Codes::Float;
        if is_matrix && has_codes && !is_looked_up { target.form() } else { Form::Rows }
    };
    tensors.iter().map(form).collect()
}

/// Writes a model as it is, weight for weight, into a file for `target`.
///
/// Panels and strips of GGUF's own types cannot be taken apart into rows again; they become the
/// one or the other, and stay so where a target has rows.
///
/// # Errors
/// As [`NativeWriter`].
pub fn convert<W: Write>(gguf: &Gguf, target: Target, out: W) -> Result<W, NativeError> {
    let tensor = |info: &TensorInfo| {
        let mut shape = info.shape.clone();
        while shape.len() > 1 && shape.last() == Some(&1) {
            shape.pop();
        }
        NativeTensor { name: info.name.clone(), ty: info.ty, shape }
    };
    let tensors: Vec<NativeTensor> = gguf.tensors().iter().map(tensor).collect();
    let wanted = forms(target, gguf.metadata(), &tensors);
    let forms = gguf.tensors().iter().zip(wanted).map(|(info, wanted)| {
        let has_rows = info.form == Form::Rows || info.ty.is_native();
        if wanted == Form::Rows && !has_rows { info.form } else { wanted }
    });
    let forms: Vec<Form> = forms.collect();
    let tensors = tensors.into_iter().zip(forms.iter().copied()).collect();
    let mut writer = NativeWriter::with_forms(out, target, gguf.metadata(), tensors)?;
    for (info, form) in gguf.tensors().iter().zip(forms) {
        match (info.form, form) {
            (Form::Rows, _) => copy_rows(gguf, info, &mut writer)?,
            (_, Form::Rows) => unpack_rows(gguf, info, &mut writer)?,
            (from, to) if from == to => writer.write_whole(gguf.bytes(info))?,
            (from, _) => writer.write_repacked(from, gguf.bytes(info))?,
        }
    }
    writer.finish()
}

/// Writes a tensor's rows, giving back the file's pages on the way.
fn copy_rows<W: Write>(
    gguf: &Gguf,
    info: &TensorInfo,
    writer: &mut NativeWriter<W>,
) -> Result<(), NativeError> {
    const STEP_BYTES: usize = 8 << 20;
    for (step_idx, bytes) in gguf.bytes(info).chunks(STEP_BYTES).enumerate() {
        writer.write(bytes)?;
        gguf.release(info, step_idx * STEP_BYTES..step_idx * STEP_BYTES + bytes.len());
    }
    Ok(())
}

/// Writes the rows of a native type that stands in panels or strips.
fn unpack_rows<W: Write>(
    gguf: &Gguf,
    info: &TensorInfo,
    writer: &mut NativeWriter<W>,
) -> Result<(), NativeError> {
    let (n_cols, n_rows) = (info.shape[0] as usize, info.n_elements() / info.shape[0]);
    let bytes = gguf.bytes(info);
    for row_idx in 0..n_rows as usize {
        let part = |b| info.form.part(info.ty, bytes, n_cols, row_idx, b);
        let parts: Vec<Part> = (0..n_cols / BLOCK_LEN).map(part).collect();
        let mut row = Vec::new();
        for parts in parts.chunks(8) {
            let (d, dmin) = (parts[0].d, parts[0].dmin);
            let field = |part: &Part| NativePart {
                codes: part.codes,
                scale: part.scale[0].cast_unsigned() & 63,
                min: part.min[0] & 63,
            };
            let parts: Vec<NativePart> = parts.iter().map(field).collect();
            write_super(info.ty, &parts, d, dmin, &mut row);
        }
        writer.write(&row)?;
    }
    Ok(())
}
