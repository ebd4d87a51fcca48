//! Chains of operations on rows, done row by row: what one operation writes the next finds in the
//! cache, and threads meet once for all of them. Where a multiplication follows, a chain ends by
//! rounding its input.
//!
//! A row is still worked on by one thread, with the same operations in the same order, so a chain
//! changes no bit.

use super::acts::{self, ActScale};
use super::matmul::act_scale;
use super::rowwise::{self, RowOp};
use super::shared::SharedMut;
use super::{Batch, BufId, CpuBackend, Op, Rows};

/// Where a row of a buffer lies.
struct View {
    data: SharedMut<f32>,
    width: usize,
    stride: usize,
}

impl View {
    /// Row `i`.
    ///
    /// # Safety
    /// As [`SharedMut::slice`]: the caller owns row `i` and holds no other reference to it.
    #[allow(clippy::mut_from_ref)] // tasks own their rows
    unsafe fn row(&self, i: usize) -> &mut [f32] {
        // SAFETY: passed on.
        unsafe { self.data.slice(i * self.stride, self.width) }
    }
}

/// The buffer that an operation on rows writes; `None` for any other operation.
fn written(op: Op) -> Option<BufId> {
    match op {
        Op::Norm { out, .. } => Some(out),
        Op::Rope { x, .. } | Op::Act { x, .. } | Op::Add { x, .. } | Op::Scale { x, .. } => Some(x),
        Op::Glu { gate, .. } => Some(gate),
        _ => None,
    }
}

impl CpuBackend {
    /// Runs the operations on rows from `start` on, none past `end`; returns how many they were.
    pub(super) fn run_chain(&mut self, start: usize, end: usize, batch: &Batch<'_>) -> usize {
        let Some(first) = written(self.plan.ops[start]) else { return 0 };
        let rows = self.bufs[first.0].rows;
        let is_part = |op: &&Op| written(**op).is_some_and(|buf| self.bufs[buf.0].rows == rows);
        let n_op = self.plan.ops[start..end].iter().take_while(is_part).count();
        let (ops, after) = self.plan.ops[start..end].split_at(n_op);
        let is_written = |buf: BufId| ops.iter().any(|&op| written(op) == Some(buf));
        if self.acts_of.is_some_and(|(of, _)| is_written(of)) {
            self.acts_of = None;
        }
        let rounded = match after.first() {
            Some(&Op::MatMul { x, weight, .. }) if is_written(x) => {
                act_scale(self.weights.matrix(weight).ty).map(|per| (x, per))
            }
            _ => None,
        };
        let n = match rows {
            Rows::Tokens => batch.tokens.len(),
            Rows::Outputs => batch.outputs.len(),
        };
        if let Some((x, _)) = rounded {
            acts::make_room(&mut self.acts, self.bufs[x.0].width, n);
            self.acts_of = rounded;
        }
        self.run_rows(start..start + n_op, rounded, n);
        n_op
    }

    /// Does operations `ops` of the plan to each of `n` rows, then rounds what `rounded` says.
    fn run_rows(
        &mut self,
        ops: std::ops::Range<usize>,
        rounded: Option<(BufId, ActScale)>,
        n: usize,
    ) {
        let views: Vec<View> = (self.bufs.iter_mut())
            .map(|buf| View {
                data: SharedMut::new(&mut buf.data),
                width: buf.width,
                stride: buf.stride,
            })
            .collect();
        let acts = SharedMut::new(&mut self.acts);
        let (isa, plan, weights, angles) =
            (self.config.isa, &self.plan, &self.weights, &self.angles);
        self.pool.run(n, &|i, _| {
            for &op in &plan.ops[ops.clone()] {
                // SAFETY: each task owns row `i` of every buffer, and an operation names a buffer
                // once; the instruction set is of this machine.
                unsafe {
                    let (x, op) = match op {
                        Op::Norm { x, out, norm } => {
                            if x != out {
                                views[out.0].row(i).copy_from_slice(views[x.0].row(i));
                            }
                            let op = RowOp::Norm {
                                kind: norm.kind,
                                eps: norm.eps,
                                width: norm.width,
                                weight: weights.vector(norm.weight),
                                bias: norm.bias.map(|b| weights.vector(b)),
                            };
                            (out, op)
                        }
                        Op::Rope { x, rope, head_dim } => {
                            let spec = &plan.ropes[rope.0];
                            let n_pair = spec.inv_freq.len();
                            let angles = &angles[rope.0][i * n_pair..][..n_pair];
                            (x, RowOp::Rope { style: spec.style, angles, head_dim })
                        }
                        Op::Glu { gate, up, activation } => {
                            (gate, RowOp::Glu(activation, views[up.0].row(i)))
                        }
                        Op::Add { x, y } => (x, RowOp::Add(views[y.0].row(i))),
                        Op::Act { x, activation } => (x, RowOp::Act(activation)),
                        Op::Scale { x, factor } => (x, RowOp::Scale(factor)),
                        _ => unreachable!("not an operation on rows"),
                    };
                    rowwise::apply(isa, views[x.0].row(i), op);
                }
            }
            if let Some((x, per)) = rounded {
                // SAFETY: the task owns column `i`, and row `i` is only read from here on.
                unsafe { acts::quantize_row(isa, views[x.0].row(i), per, &acts, n, i) };
            }
        });
    }
}
