//! What the GPU of a Jetson Nano should do with a model: two rates and counts of machine code.
//!
//! ```text
//! decode    s = max(bytes / MEMORY, instructions / ISSUE)     each matrix, one column
//! prefill   s = instructions / ISSUE                          each but the head, many columns
//! ```
//!
//! A prediction: no board was measured. Left out are attention, norms, staging and what the host
//! does, which are a few percent each in a short context, and slow instructions, which take two or
//! four turns of units that would otherwise rest. docs/performance.md has the figures.

use crate::inference::{Gguf, ProductCost, TensorType};

/// Bytes a second that the memory can give by its clock and wires: 1,600 MHz, two bits, 64 wires.
pub const NANO_MEMORY_PEAK: f64 = 25.6e9;
/// Bytes a second: 60 % of them. The only published figure is a copy at 16.5 GB/s.
const MEMORY: f64 = 15.4e9;
/// Turns a second in which a lane can issue: 128 lanes at 921.6 MHz.
const TURNS: f64 = 128.0 * 921.6e6;
/// Part of the turns in which one does: assumed.
const ISSUE_SHARE: f64 = 0.9;

/// Tokens a second.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Predicted {
    /// Of an answer, after a short prompt.
    pub decode: f64,
    /// Of a prompt.
    pub prefill: f64,
}

/// What a token costs.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Work {
    /// Bytes that decode reads.
    n_bytes: f64,
    /// Instructions of decode.
    decode: f64,
    /// Instructions of prefill.
    prefill: f64,
}

impl Work {
    /// Of a model's matrices: (type, (rows, columns), whether only last tokens meet it).
    pub fn of(matrices: impl IntoIterator<Item = (TensorType, (usize, usize), bool)>) -> Work {
        let mut work = Work::default();
        for (ty, shape, is_head) in matrices {
            let cost = ProductCost::of(ty, shape);
            work.n_bytes += cost.n_bytes;
            work.decode += cost.gemv;
            work.prefill += if is_head { 0.0 } else { cost.gemm };
        }
        work
    }

    /// Of a model in a file.
    pub fn of_file(gguf: &Gguf) -> Work {
        let tensors = gguf.tensors();
        let has_head = tensors.iter().any(|t| t.name == "output.weight");
        Work::of(tensors.iter().filter_map(|tensor| {
            let is_table = tensor.name == "token_embd.weight";
            let is_head = tensor.name == "output.weight" || is_table && !has_head;
            let [n_cols, n_rows] = tensor.shape[..] else { return None };
            let shape = (usize::try_from(n_rows).ok()?, usize::try_from(n_cols).ok()?);
            (!is_table || is_head).then_some((tensor.ty, shape, is_head))
        }))
    }

    /// Of a model of which no more is known than its weights and the bytes of its file: as if all
    /// were N4, and none the head's.
    pub fn of_size(n_params: f64, file_bytes: f64) -> Work {
        let cost = ProductCost::of(TensorType::N4, (4, 2048));
        let each = n_params / (4.0 * 2048.0);
        Work { n_bytes: file_bytes, decode: each * cost.gemv, prefill: each * cost.gemm }
    }

    /// What follows for a Jetson Nano in its 10 W mode.
    pub fn predict(&self) -> Predicted {
        let issue = TURNS * ISSUE_SHARE;
        let rate = |seconds: f64| 1.0 / seconds.max(1e-12);
        Predicted {
            decode: rate((self.n_bytes / MEMORY).max(self.decode / issue)),
            prefill: rate(self.prefill / issue),
        }
    }

    /// The arithmetic of [`Work::predict`], in two lines.
    pub fn told(&self) -> [String; 2] {
        let Predicted { decode, prefill } = self.predict();
        let (gb, giga) = (self.n_bytes / 1e9, |n: f64| n / 1e9);
        let issue = giga(TURNS);
        [
            format!(
                "GPU decode  {:.1} GB/s (assumed) / {gb:.2} GB = {:.1} tok/s; {:.2}e9 of \
                 {issue:.0}e9 x {ISSUE_SHARE} instructions allow {:.1}: {decode:.1} tok/s",
                giga(MEMORY),
                MEMORY / self.n_bytes,
                giga(self.decode),
                TURNS * ISSUE_SHARE / self.decode,
            ),
            format!(
                "GPU prefill {issue:.0}e9 x {ISSUE_SHARE} instructions a second / {:.2}e9 of a \
                 token = {prefill:.0} tok/s",
                giga(self.prefill),
            ),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// (n_layer, n_embd, n_kv, n_ff, n_vocab)
    type Shape = (usize, usize, usize, usize, usize);

    /// A model with a gated feed-forward part, all of one type.
    fn llama(ty: TensorType, (n_layer, n_embd, n_kv, n_ff, n_vocab): Shape) -> Work {
        let layer = [
            (n_embd, n_embd),
            (n_kv, n_embd),
            (n_kv, n_embd),
            (n_embd, n_embd),
            (n_ff, n_embd),
            (n_ff, n_embd),
            (n_embd, n_ff),
        ];
        let body = std::iter::repeat_n(layer, n_layer).flatten().map(|shape| (ty, shape, false));
        Work::of(body.chain([(ty, (n_vocab, n_embd), true)]))
    }

    const TINY_LLAMA: Shape = (22, 2048, 256, 5632, 32_000);
    const SHAPES: [(&str, Shape); 4] = [
        ("TinyLlama 1.1B", TINY_LLAMA),
        ("Qwen2.5 0.5B", (24, 896, 128, 4864, 151_936)),
        ("Qwen2.5 1.5B", (28, 1536, 256, 8960, 151_936)),
        ("Qwen2.5 3B", (36, 2048, 256, 11_008, 151_936)),
    ];

    /// The table of "A Jetson Nano, predicted", row by row.
    #[test]
    fn the_documented_figures_follow_from_the_counts() {
        let page = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/performance.md"));
        for (name, shape) in SHAPES {
            for ty in [TensorType::N4, TensorType::Q4_0, TensorType::N3] {
                let work = llama(ty, shape);
                let Predicted { decode, prefill } = work.predict();
                let row = format!(
                    "| {name}, {ty} | {:.0} | {:.2} | {decode:.1} | {:.2} | {prefill:.0} |",
                    work.n_bytes / 1e6,
                    work.decode / 1e9,
                    work.prefill / 1e9,
                );
                assert!(page.lines().any(|line| line.starts_with(&row)), "{row}");
            }
        }
    }

    #[test]
    fn decode_is_bound_by_whatever_is_slower() {
        let work = llama(TensorType::N4, TINY_LLAMA);
        let is = |work: &Work, rate: f64| (work.predict().decode / rate - 1.0).abs() < 1e-9;
        assert!(is(&work, MEMORY / work.n_bytes));
        let slow = Work { decode: 10.0 * work.decode, ..work };
        assert!(is(&slow, TURNS * ISSUE_SHARE / slow.decode));
    }

    #[test]
    fn the_arithmetic_is_shown() {
        let [decode, prefill] = llama(TensorType::N4, TINY_LLAMA).told();
        assert!(
            decode.starts_with("GPU decode  15.4 GB/s (assumed) / 0.60 GB = 25.8 tok/s"),
            "{decode}"
        );
        assert!(prefill.contains("118e9 x 0.9 instructions a second / 0.83e9"), "{prefill}");
    }

    #[test]
    fn a_file_is_what_its_tensors_are() {
        let gguf = Gguf::from_static(crate::inference::EMBEDDED_MODEL).unwrap();
        let work = Work::of_file(&gguf);
        let n_bytes: usize = gguf.tensors().iter().map(|t| gguf.bytes(t).len()).sum();
        let share = work.n_bytes / n_bytes as f64;
        assert!((0.8..1.6).contains(&share), "{share} of the file, which strips fill up");
        assert!(work.prefill < work.decode);
    }
}
