//! A plan cut in two between layers, for two backends: the first one's rows are what the second
//! begins with.
//!
//! ```text
//! head   embedding, layers 0 .. s        -> the residual stream, a row for each token
//! tail   those rows -> layers s .. n, the output
//! ```
//!
//! Each half has the weights, buffers and layers that its operations name, numbered anew, so that
//! it is a plan like any other.

use std::ops::Range;

use super::{BufId, Op, Plan, WeightId};

impl Plan {
    /// The plan before layer `layer_idx` and from there on; the number of layers leaves the rest
    /// with the output alone. `None` if that is no layer, or what comes after it reads more of what
    /// came before than one buffer.
    pub fn split(&self, layer_idx: usize) -> Option<(Plan, Plan)> {
        let at = *self.layers.get(layer_idx)?;
        let (head, tail) = self.ops.split_at(at);
        let [stream] = unwritten(tail)[..] else { return None };
        if head.is_empty() {
            return None;
        }
        let mut first = self.part(0..at, 0..layer_idx);
        (first.output, first.embedding) = (stream, (at, stream));
        let mut second = self.part(at..self.ops.len(), layer_idx..self.n_layer);
        second.input = Some(stream);
        Some((first, second))
    }

    /// Some of the operations, which have these layers.
    fn part(&self, ops: Range<usize>, layers: Range<usize>) -> Plan {
        let mut ids = vec![None; self.weights.len()];
        let mut weights = Vec::new();
        let mut id_of = |id: WeightId| {
            *ids[id.0].get_or_insert_with(|| {
                weights.push(self.weights[id.0].clone());
                WeightId(weights.len() - 1)
            })
        };
        let mut part = Vec::with_capacity(ops.len());
        for &op in &self.ops[ops.clone()] {
            part.push(numbered(op, &mut id_of, layers.start));
        }
        let is_used = |buf: BufId| {
            part.iter().any(|op| op.writes() == buf || op.reads().contains(&Some(buf)))
        };
        let bufs = self.bufs.iter().enumerate().map(|(i, &(width, rows))| {
            // What nobody names takes no memory.
            (if is_used(BufId(i)) { width } else { 0 }, rows)
        });
        let begins = self.layers[layers.start..=layers.end].iter().map(|at| at - ops.start);
        Plan {
            bufs: bufs.collect(),
            weights,
            ropes: self.ropes.clone(),
            input: None,
            output: self.output,
            embedding: (self.embedding.0.saturating_sub(ops.start), self.embedding.1),
            layers: begins.collect(),
            n_layer: layers.len(),
            ops: part,
            ..*self
        }
    }
}

/// Buffers that are read before they are written.
fn unwritten(ops: &[Op]) -> Vec<BufId> {
    let (mut written, mut found) = (Vec::new(), Vec::new());
    for op in ops {
        for buf in op.reads().into_iter().flatten() {
            if !written.contains(&buf) && !found.contains(&buf) {
                found.push(buf);
            }
        }
        written.push(op.writes());
    }
    found
}

/// An operation with other numbers of its weights, and of its layer.
fn numbered(op: Op, id: &mut impl FnMut(WeightId) -> WeightId, first_layer: usize) -> Op {
    match op {
        Op::Embed { table, out } => Op::Embed { table: id(table), out },
        Op::AddPosition { x, table } => Op::AddPosition { x, table: id(table) },
        Op::AddRow { x, row } => Op::AddRow { x, row: id(row) },
        Op::MatMul { x, weight, bias, out } => {
            Op::MatMul { x, weight: id(weight), bias: bias.map(id), out }
        }
        Op::Norm { x, out, mut norm } => {
            norm.weight = id(norm.weight);
            norm.bias = norm.bias.map(id);
            Op::Norm { x, out, norm }
        }
        Op::Attention { q, k, v, out, mut spec } => {
            spec.layer_idx -= first_layer;
            Op::Attention { q, k, v, out, spec }
        }
        op => op,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inference::backend::{PlanBuilder, Rows};

    /// Two layers of one product each, and an output.
    fn plan() -> Plan {
        let mut b = PlanBuilder::new(8, 2, 1, 4);
        let (x, y) = (b.buf(4, Rows::Tokens), b.buf(4, Rows::Tokens));
        let logits = b.buf(8, Rows::Outputs);
        let ids: Vec<WeightId> = (0..4).map(|i| b.matrix(format!("w{i}"), 4, 4)).collect();
        b.op(Op::Embed { table: ids[0], out: x });
        for weight in &ids[1..3] {
            b.layer();
            b.op(Op::MatMul { x, weight: *weight, bias: None, out: y });
            b.op(Op::Add { x, y });
        }
        b.layer();
        b.op(Op::SelectOutputs { x, out: logits });
        b.finish(logits)
    }

    #[test]
    fn halves_have_what_they_name_and_the_second_takes_the_first_ones_rows() {
        let plan = plan();
        let names = |plan: &Plan| -> Vec<String> {
            plan.weights.iter().map(|weight| weight.name.clone()).collect()
        };
        let (head, tail) = plan.split(1).expect("a layer");
        assert_eq!((head.ops.len(), tail.ops.len()), (3, 3));
        assert_eq!(
            (names(&head), names(&tail)),
            (vec!["w0".into(), "w1".into()], vec!["w2".into()])
        );
        assert_eq!((head.output, tail.input, head.input), (BufId(0), Some(BufId(0)), None));
        assert_eq!((head.n_layer, tail.n_layer), (1, 1));
        assert_eq!((head.bufs[2].0, tail.bufs[2].0), (0, 8), "logits are the second's alone");
        assert_eq!(tail.output, plan.output);
        let (head, tail) = plan.split(2).expect("the output alone");
        assert_eq!((head.n_layer, tail.n_layer, tail.ops.len()), (2, 0, 1));
        assert!(plan.split(3).is_none());
    }

    #[test]
    fn a_layer_that_reads_two_buffers_of_the_one_before_is_not_cut_off() {
        let mut plan = plan();
        plan.ops[3] = Op::Add { x: BufId(0), y: BufId(1) };
        assert!(plan.split(1).is_none());
    }
}
