//! Writing the target: a few megabytes of rows at a time, and its name only when it is whole.
//!
//! ```text
//! source.gguf   hashed once, then read row by row; its pages are given back behind the reader
//! NAME.partial  header, tensors in order; synced to the disk
//! NAME          the same file under its name, which the directory keeps through a power cut
//! ```
//!
//! Whatever ends the program before the last step leaves no file of the target's name. The next
//! run knows the leftover by its name and replaces it.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use super::{Importance, Plan, QuantizeError, Source, TensorPlan};
use crate::base::file;
use crate::base::limits::{DISK_RESERVE_BYTES, QUANTIZE_CHUNK_WEIGHTS, THREADS_MAX};
use crate::base::owner::as_owner_of;
use crate::inference::gguf::{Metadata, TensorInfo, Value};
use crate::inference::quant::{Codes, TensorType, dequantize, quantize};
use crate::inference::{NativeError, NativeWriter, Target, convert};

/// The largest number of F16.
const F16_MAX: f32 = 65_504.0;

/// A file that was written.
#[derive(Clone, Debug)]
pub struct Written {
    /// Its name.
    pub path: PathBuf,
    /// Its size.
    pub n_bytes: u64,
    /// Whether the leftover of a run that was cut short was in the way.
    pub had_leftover: bool,
}

/// How a file is written.
#[derive(Clone, Copy, Debug)]
pub struct WriteOptions {
    /// Whether the target may be there already.
    pub replace: bool,
    /// Threads that round.
    pub n_threads: usize,
    /// The processor that the weights are packed for; `None` for plain rows.
    pub packed_for: Option<Target>,
}

/// Writes `plan` to `target`; `progress` gets bytes of tensors done and in all.
///
/// # Errors
/// If the target is there (unless it may be) or is the source, the disk is too full or fails, or a
/// weight is not finite. The target is as it was then.
pub fn write(
    source: &Source,
    plan: &Plan,
    importance: Option<&Importance>,
    target: &Path,
    options: WriteOptions,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Written, QuantizeError> {
    check_target(source, target, options.replace)?;
    let total = plan.tensor_bytes();
    check_room(target, total + total / 16)?;
    let metadata = plan.metadata(source.gguf(), &origin(source, plan, importance)?);
    whole_or_absent(target, |partial| {
        write_rows(source, plan, importance, &metadata, options, partial, progress)
    })
}

/// Writes the weights as they are to `target`, packed for a processor.
///
/// # Errors
/// As [`write`].
pub fn pack(
    source: &Source,
    target: &Path,
    replace: bool,
    packed_for: Target,
) -> Result<Written, QuantizeError> {
    if !source.is_runnable() {
        return Err(QuantizeError::FolderRuns { path: source.path().to_owned() });
    }
    check_target(source, target, replace)?;
    // Scales widen in panels, by a quarter at most (docs/formats.md).
    check_room(target, source.gguf().file_bytes() + source.gguf().file_bytes() / 4)?;
    whole_or_absent(target, |partial| {
        let out = BufWriter::with_capacity(1 << 20, open_partial(partial)?);
        let out = convert(source.gguf(), packed_for, out).map_err(native(partial))?;
        out.into_inner().map_err(|error| QuantizeError::io(partial)(error.into_error()))
    })
}

/// Lets `write` fill a file, which gets the target's name when it is whole and on the disk.
fn whole_or_absent(
    target: &Path,
    write: impl FnOnce(&Path) -> Result<File, QuantizeError>,
) -> Result<Written, QuantizeError> {
    let partial = partial_of(target);
    let make = || {
        let had_leftover = partial.exists();
        let file = write(&partial).inspect_err(|error| {
            // What is left would be of no use to anyone, unless another run is at it.
            if !matches!(error, QuantizeError::Busy { .. }) {
                let _ = std::fs::remove_file(&partial);
            }
        })?;
        publish(&file, &partial, target)?;
        let n_bytes = file.metadata().map_err(QuantizeError::io(target))?.len();
        Ok(Written { path: target.to_owned(), n_bytes, had_leftover })
    };
    // In the service's store root follows no link that somebody left there.
    as_owner_of(folder_of(target), make).map_err(QuantizeError::io(target))?
}

/// Writes the whole file under the name `partial`.
fn write_rows(
    source: &Source,
    plan: &Plan,
    importance: Option<&Importance>,
    metadata: &Metadata,
    options: WriteOptions,
    partial: &Path,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<File, QuantizeError> {
    let file = open_partial(partial)?;
    let out = BufWriter::with_capacity(1 << 20, file);
    let mut sink = Sink::new(out, partial, plan, metadata, options.packed_for)?;
    let (mut done, total) = (0, plan.tensor_bytes());
    for (tensor_idx, tensor) in plan.tensors.iter().enumerate() {
        let row = importance.filter(|_| tensor.is_guided);
        let row = row.map(|i| i.row(&tensor.name, tensor.shape[0] as usize)).transpose()?.flatten();
        let part = Part { source, tensor_idx, tensor, importance: row };
        part.write(options.n_threads.clamp(1, THREADS_MAX), &mut |bytes| {
            done += bytes.len() as u64;
            progress(done, total);
            sink.put(bytes, partial)
        })?;
        sink.pad(tensor.n_bytes, partial)?;
    }
    sink.finish(partial)
}

/// The leftover of an earlier run or a new file, empty, and locked against other runs.
fn open_partial(partial: &Path) -> Result<File, QuantizeError> {
    let file = File::options().create(true).truncate(false).write(true).open(partial);
    let file = file.map_err(QuantizeError::io(partial))?;
    // A file system without locks (some USB sticks) still takes files.
    if let Err(std::fs::TryLockError::WouldBlock) = file.try_lock() {
        return Err(QuantizeError::Busy { path: partial.to_owned() });
    }
    file.set_len(0).map_err(QuantizeError::io(partial))?;
    Ok(file)
}

/// Where rows go: to a plain GGUF file, or to one that packs them.
enum Sink {
    Plain { out: BufWriter<File>, alignment: u64 },
    Packed(Box<NativeWriter<BufWriter<File>>>),
}

impl Sink {
    /// Writes the header.
    fn new(
        mut out: BufWriter<File>,
        path: &Path,
        plan: &Plan,
        metadata: &Metadata,
        packed_for: Option<Target>,
    ) -> Result<Sink, QuantizeError> {
        let Some(packed_for) = packed_for else {
            out.write_all(&plan.header(metadata).header()).map_err(QuantizeError::io(path))?;
            let alignment = metadata.u64("general.alignment")?.unwrap_or(32);
            return Ok(Sink::Plain { out, alignment });
        };
        let writer = NativeWriter::new(out, packed_for, metadata, plan.native_tensors());
        writer.map(|writer| Sink::Packed(Box::new(writer))).map_err(native(path))
    }

    /// Rows of the tensor at hand.
    fn put(&mut self, bytes: &[u8], path: &Path) -> Result<(), QuantizeError> {
        match self {
            Sink::Plain { out, .. } => out.write_all(bytes).map_err(QuantizeError::io(path)),
            Sink::Packed(writer) => writer.write(bytes).map_err(native(path)),
        }
    }

    /// Zeros behind a tensor of `n_bytes`.
    fn pad(&mut self, n_bytes: u64, path: &Path) -> Result<(), QuantizeError> {
        let Sink::Plain { out, alignment } = self else { return Ok(()) };
        let padding = vec![0; (n_bytes.next_multiple_of(*alignment) - n_bytes) as usize];
        out.write_all(&padding).map_err(QuantizeError::io(path))
    }

    fn finish(self, path: &Path) -> Result<File, QuantizeError> {
        let out = match self {
            Sink::Plain { out, .. } => out,
            Sink::Packed(writer) => writer.finish().map_err(native(path))?,
        };
        out.into_inner().map_err(|error| QuantizeError::io(path)(error.into_error()))
    }
}

fn native(path: &Path) -> impl FnOnce(NativeError) -> QuantizeError {
    let path = path.to_owned();
    move |error| match error {
        NativeError::Io(source) => QuantizeError::Io { path, source },
        error => QuantizeError::Native(error),
    }
}

/// The unfinished form of a file.
pub(super) fn partial_of(target: &Path) -> PathBuf {
    let mut name = target.file_name().unwrap_or_default().to_owned();
    name.push(".partial");
    target.with_file_name(name)
}

/// Writes a small file so that its name never stands for half of it.
pub(super) fn replace_file(target: &Path, bytes: &[u8]) -> Result<(), QuantizeError> {
    let write = || file::replace(target, bytes, 0o644);
    as_owner_of(folder_of(target), write).flatten().map_err(QuantizeError::io(target))
}

fn publish(file: &File, partial: &Path, target: &Path) -> Result<(), QuantizeError> {
    file.sync_all().map_err(QuantizeError::io(partial))?;
    std::fs::rename(partial, target).map_err(QuantizeError::io(target))?;
    let folder = File::open(folder_of(target)).map_err(QuantizeError::io(target))?;
    folder.sync_all().map_err(QuantizeError::io(target))
}

fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Refuses a target that is the source, or that is there and may not be replaced.
///
/// # Errors
/// As it says.
pub fn check_target(source: &Source, target: &Path, replace: bool) -> Result<(), QuantizeError> {
    let path = target.to_owned();
    let Ok(there) = std::fs::metadata(target) else { return Ok(()) };
    if source.has_file(&there) {
        return Err(QuantizeError::SameFile { path });
    }
    if replace { Ok(()) } else { Err(QuantizeError::Exists { path }) }
}

fn check_room(target: &Path, needed: u64) -> Result<(), QuantizeError> {
    let folder = folder_of(target);
    let disk = rustix::fs::statvfs(folder).map_err(|e| QuantizeError::io(folder)(e.into()))?;
    let leftover = std::fs::metadata(partial_of(target)).map_or(0, |metadata| metadata.len());
    let free = disk.f_bavail.saturating_mul(disk.f_frsize) + leftover;
    let free = free.saturating_sub(DISK_RESERVE_BYTES);
    if needed <= free {
        return Ok(());
    }
    Err(QuantizeError::DiskFull { path: target.to_owned(), needed, free })
}

/// Where the target comes from, for its metadata.
fn origin(
    source: &Source,
    plan: &Plan,
    importance: Option<&Importance>,
) -> Result<Vec<(String, Value)>, QuantizeError> {
    let hashes = source.hashes()?;
    let name = source.path().file_name().unwrap_or_default().to_string_lossy().into_owned();
    let key = |key: &str| format!("jetforge.quantize.{key}");
    let mut origin = vec![
        (key("version"), Value::from(env!("CARGO_PKG_VERSION"))),
        (key("recipe"), Value::from(plan.recipe.name)),
        (key("source"), Value::Str(name)),
        (key("source_sha256"), Value::Str(hashes.join(" "))),
    ];
    origin.extend(importance.into_iter().flat_map(Importance::pairs));
    Ok(origin)
}

/// One tensor on its way from the source to the target.
struct Part<'a> {
    source: &'a Source,
    tensor_idx: usize,
    tensor: &'a TensorPlan,
    importance: Option<&'a [f32]>,
}

impl Part<'_> {
    fn info(&self) -> &TensorInfo {
        &self.source.gguf().tensors()[self.tensor_idx]
    }

    /// The target's bytes, in order, a few megabytes of rows at a time.
    fn write(
        &self,
        n_threads: usize,
        put: &mut dyn FnMut(&[u8]) -> Result<(), QuantizeError>,
    ) -> Result<(), QuantizeError> {
        let info = self.info();
        let n_cols = info.shape[0] as usize;
        let n_rows = (info.n_elements() / info.shape[0].max(1)) as usize;
        let chunk_rows = (QUANTIZE_CHUNK_WEIGHTS / n_cols.max(1)).max(1);
        let mut buffer = Vec::new();
        for first_row in (0..n_rows).step_by(chunk_rows) {
            let rows = first_row..n_rows.min(first_row + chunk_rows);
            let bytes = self.source.rows(self.tensor_idx, rows.clone(), &mut buffer)?;
            for blocks in self.quantize(&bytes, first_row, n_threads)? {
                put(blocks.as_deref().unwrap_or(&bytes))?;
            }
            self.source.release(self.tensor_idx, rows);
        }
        Ok(())
    }

    /// The rows in the target's type, each thread's apart; `None` where they stay as they are.
    fn quantize(
        &self,
        bytes: &[u8],
        first_row: usize,
        n_threads: usize,
    ) -> Result<Vec<Option<Vec<u8>>>, QuantizeError> {
        let is_copied = self.tensor.to == self.tensor.from;
        if is_copied && Codes::of(self.tensor.from) != Codes::Float {
            return Ok(vec![None]);
        }
        let row_bytes = self.row_bytes();
        let share = (bytes.len() / row_bytes).div_ceil(n_threads).max(1);
        let blocks: Result<Vec<Vec<u8>>, QuantizeError> = std::thread::scope(|scope| {
            let shares = bytes.chunks(share * row_bytes).enumerate();
            let threads: Vec<_> = shares
                .map(|(i, bytes)| {
                    scope.spawn(move || self.quantize_share(bytes, first_row + i * share))
                })
                .collect();
            let joined = threads.into_iter().map(|thread| match thread.join() {
                Ok(blocks) => blocks,
                Err(panic) => std::panic::resume_unwind(panic),
            });
            joined.collect()
        });
        // Numbers that are copied were looked at, and no more.
        let blocks = blocks?;
        Ok(if is_copied { vec![None] } else { blocks.into_iter().map(Some).collect() })
    }

    fn row_bytes(&self) -> usize {
        let info = self.info();
        info.ty.row_bytes(info.shape[0] as usize).unwrap_or(0).max(1)
    }

    fn quantize_share(&self, bytes: &[u8], first_row: usize) -> Result<Vec<u8>, QuantizeError> {
        let TensorPlan { name, from, to, .. } = self.tensor;
        let mut row = vec![0.0f32; self.info().shape[0] as usize];
        let mut out = Vec::new();
        for (i, bytes) in bytes.chunks_exact(self.row_bytes()).enumerate() {
            dequantize(*from, bytes, &mut row);
            let (tensor, row_idx) = (name.clone(), first_row + i);
            if !row.iter().all(|weight| weight.is_finite()) {
                return Err(QuantizeError::NotFinite { tensor, row_idx });
            }
            if to == from {
                continue;
            }
            // F16 would hold infinity, and so might the scales of types that have theirs in F16.
            let holds_all = matches!(to, TensorType::F32 | TensorType::BF16);
            let large = row.iter().find(|weight| weight.abs() > F16_MAX);
            if let (Some(&weight), false) = (large, holds_all) {
                return Err(QuantizeError::TooLarge { tensor, row_idx, weight, ty: *to });
            }
            // A plan holds no type that cannot be written.
            out.extend(quantize(*to, &row, self.importance).unwrap_or_default());
        }
        Ok(out)
    }
}
