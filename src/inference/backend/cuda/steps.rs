//! A plan as the device runs it: what the host prepares, and the launches in their order.
//!
//! ```text
//! Embed, Scale, AddRow, AddPosition     at the beginning: rows that the host makes and sends, or
//!                                       sends for whoever ran the layers before
//! MatMul                             -> Stage, where its input is not staged yet; the product
//! Norm of rows, Glu, Act; Stage      -> OpStage, where it makes what is staged next
//! MatMul y; Add x += y               -> the product added to x, where nothing else reads y, and
//!                                       x is not what is multiplied
//! Rope q; Rope k; Attention          -> Attention, which turns them on their way
//! anything else                      -> as it is
//! ```
//!
//! What is fused follows from the plan alone, never from a batch.

use super::CudaError;
use crate::inference::backend::{AttentionSpec, BufId, Op, Plan, RopeId, WeightId};

/// What the device does.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Step {
    /// Brings the rows of a buffer into the form that is multiplied.
    Stage {
        /// The rows.
        x: BufId,
    },
    /// An operation that makes whole rows, `Norm`, `Glu` or `Act`, and stages them as well.
    OpStage(Op),
    /// `out (+)= weight . x + bias`, where `x` is what was staged last
    MatMul {
        /// The rows, as they were before they were staged.
        x: BufId,
        /// The matrix.
        weight: WeightId,
        /// Added to each row.
        bias: Option<WeightId>,
        /// The result.
        out: BufId,
        /// Whether it is added to what `out` holds.
        adds: bool,
    },
    /// Appends `k` and `v` to the KV cache, then `out = softmax(q . K^T) . V`
    Attention {
        /// Queries, which are turned in place.
        q: BufId,
        /// Keys, which are turned as they are stored.
        k: BufId,
        /// Values.
        v: BufId,
        /// The result.
        out: BufId,
        /// Heads and positions.
        spec: AttentionSpec,
        /// How queries and keys are turned, if they are.
        rope: Option<RopeId>,
    },
    /// Any other operation of the plan.
    Op(Op),
}

impl Step {
    /// The buffer whose rows it makes or stages.
    pub fn rows(&self) -> BufId {
        match *self {
            Step::Stage { x } => x,
            Step::MatMul { out, .. } | Step::Attention { out, .. } => out,
            Step::Op(op) | Step::OpStage(op) => op.writes(),
        }
    }
}

/// A plan, compiled.
#[derive(Clone, Debug, PartialEq)]
pub struct Steps {
    /// What the host does to each row, and the buffer that the rows go to.
    pub host: (Vec<Op>, BufId),
    /// What the device does.
    pub steps: Vec<Step>,
    /// How many steps lead to the embeddings.
    pub n_embedding: usize,
}

impl Steps {
    /// Compiles a plan.
    ///
    /// # Errors
    /// [`CudaError::Unsupported`] if rows are looked up anywhere but at its beginning, or turned
    /// anywhere but on their way to attention.
    pub fn compile(plan: &Plan) -> Result<Steps, CudaError> {
        let unsupported =
            |what: &str| CudaError::Unsupported { what: format!("a plan that {what}") };
        let looks_up = || unsupported("looks rows up in its middle");
        let ops = &plan.ops;
        let Some(rows) = host_buf(plan) else { return Err(looks_up()) };
        let is_host = |op: &&Op| match **op {
            Op::Embed { out, .. } => out == rows,
            Op::Scale { x, .. } | Op::AddRow { x, .. } | Op::AddPosition { x, .. } => x == rows,
            _ => false,
        };
        let n_host = ops.iter().take_while(is_host).count();
        let (mut steps, mut staged, mut n_embedding) = (Vec::new(), None, 0);
        let mut at = n_host;
        while at < ops.len() {
            if at == plan.embedding.0 {
                n_embedding = steps.len();
            }
            let first = at;
            at += 1;
            match ops[first] {
                Op::Embed { .. } | Op::AddRow { .. } | Op::AddPosition { .. } => {
                    return Err(looks_up());
                }
                Op::MatMul { x, weight, bias, out } => {
                    if staged != Some(x) {
                        push_stage(plan, &mut steps, x);
                        staged = Some(x);
                    }
                    // What adapters add to a product reads its input after it.
                    let sum = sum_of(plan, at, out).filter(|&sum| sum != x);
                    let (out, adds) = (sum.unwrap_or(out), sum.is_some());
                    steps.push(Step::MatMul { x, weight, bias, out, adds });
                    at += usize::from(adds);
                }
                Op::Rope { .. } => {
                    let turns = || unsupported("turns what attention does not read next");
                    steps.push(turned_attention(plan, first).ok_or_else(turns)?);
                    at += 2;
                }
                Op::Attention { q, k, v, out, spec } => {
                    steps.push(Step::Attention { q, k, v, out, spec, rope: None });
                }
                op => steps.push(Step::Op(op)),
            }
            staged = staged.filter(|&x| ops[first..at].iter().all(|op| op.writes() != x));
        }
        if plan.embedding.0 >= ops.len() {
            n_embedding = steps.len();
        }
        Ok(Steps { host: (ops[..n_host].to_vec(), rows), steps, n_embedding })
    }
}

/// Stages the rows of `x`: by the step before, if that makes them and has whole rows at hand. Where
/// the embeddings end there, they end behind it: it leaves them in `x` as well.
fn push_stage(plan: &Plan, steps: &mut Vec<Step>, x: BufId) {
    let has_rows = |op: &Op| match op {
        Op::Norm { norm, .. } => norm.width == plan.bufs[x.0].0,
        Op::Glu { .. } | Op::Act { .. } => true,
        _ => false,
    };
    let makes = |step: &mut Step| matches!(step, Step::Op(op) if op.writes() == x && has_rows(op));
    let made = steps.pop_if(makes);
    steps.push(match made {
        Some(Step::Op(op)) => Step::OpStage(op),
        _ => Step::Stage { x },
    });
}

/// The attention that three operations are, of which two turn its queries and its keys, if nobody
/// wants the turned keys but the cache.
fn turned_attention(plan: &Plan, at: usize) -> Option<Step> {
    let &[
        Op::Rope { x: a, rope, head_dim },
        Op::Rope { x: b, rope: rope_b, head_dim: head_dim_b },
        Op::Attention { q, k, v, out, spec },
    ] = plan.ops.get(at..at + 3)?
    else {
        return None;
    };
    let is_of = [(q, k), (k, q)].contains(&(a, b)) && a != b && ![a, b].contains(&v);
    let is_alike = rope == rope_b && [head_dim, head_dim_b] == [spec.head_dim; 2];
    let is_cut = (at + 1..at + 3).contains(&plan.embedding.0);
    let fits = is_of && is_alike && !is_cut && is_over(plan, at + 3, k);
    fits.then_some(Step::Attention { q, k, v, out, spec, rope: Some(rope) })
}

/// The buffer that the operation after a product adds `y` to, if that is all that becomes of `y`.
fn sum_of(plan: &Plan, at: usize, y: BufId) -> Option<BufId> {
    let Some(&Op::Add { x, y: added }) = plan.ops.get(at) else { return None };
    let is_cut = plan.embedding.0 == at;
    (added == y && x != y && !is_cut && is_over(plan, at + 1, y)).then_some(x)
}

/// Whether nobody wants what a buffer holds when the operations from `at` on begin.
fn is_over(plan: &Plan, at: usize, buf: BufId) -> bool {
    let is_kept = plan.output == buf || plan.embedding.1 == buf;
    let is_read = |op: &Op| op.reads().contains(&Some(buf));
    let next = plan.ops[at..].iter().find(|op| is_read(op) || op.writes() == buf);
    !is_kept && !next.is_some_and(is_read)
}

/// The buffer whose rows the host makes, or is given.
pub fn host_buf(plan: &Plan) -> Option<BufId> {
    match plan.ops.first() {
        Some(&Op::Embed { out, .. }) => Some(out),
        _ => plan.input,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inference::backend::{
        Activation, Norm, NormKind, PlanBuilder, RopeSpec, RopeStyle, Rows,
    };

    /// What becomes of a product.
    #[derive(Clone, Copy, PartialEq)]
    enum Use {
        /// It is added to a buffer.
        Added,
        /// And read later.
        ReadLater,
        /// It is added to what was multiplied.
        AddedToInput,
    }

    /// `x` is multiplied twice, the second product added to `z`, or to `x`, and `x` multiplied
    /// again.
    fn plan(usage: Use) -> Plan {
        let mut b = PlanBuilder::new(8, 0, 1, 2);
        let [x, y, z] = [(); 3].map(|()| b.buf(4, Rows::Tokens));
        let w: Vec<WeightId> = (0..3).map(|i| b.matrix(format!("w{i}"), 4, 4)).collect();
        b.op(Op::Embed { table: w[0], out: x });
        b.op(Op::Scale { x, factor: 2.0 });
        b.op(Op::MatMul { x, weight: w[1], bias: None, out: z });
        b.op(Op::MatMul { x, weight: w[2], bias: None, out: y });
        b.op(Op::Add { x: if usage == Use::AddedToInput { x } else { z }, y });
        if usage == Use::ReadLater {
            b.op(Op::Add { x: z, y });
        }
        b.op(Op::MatMul { x, weight: w[1], bias: None, out: z });
        b.embedding(z);
        b.finish(z)
    }

    #[test]
    fn an_input_is_staged_once_and_a_product_is_added_where_nothing_else_reads_it() {
        let (x, y, z) = (BufId(0), BufId(1), BufId(2));
        let product = |i, out, adds| {
            let weight = WeightId(i);
            Step::MatMul { x, weight, bias: None, out, adds }
        };
        let steps = |usage| {
            let steps = Steps::compile(&plan(usage)).expect("it begins with rows");
            assert_eq!((steps.host.0.len(), steps.n_embedding), (2, steps.steps.len()));
            steps.steps
        };
        let head = [Step::Stage { x }, product(1, z, false)];
        let last = product(1, z, false);
        let add = |x| Step::Op(Op::Add { x, y });
        assert_eq!(steps(Use::Added), [&head[..], &[product(2, z, true), last]].concat());
        let plain = [product(2, y, false), add(z), add(z), last];
        assert_eq!(steps(Use::ReadLater), [&head[..], &plain].concat());
        let again = [product(2, y, false), add(x), Step::Stage { x }, last];
        assert_eq!(steps(Use::AddedToInput), [&head[..], &again].concat());
    }

    /// Buffers of a layer: the stream, what is multiplied, queries, keys, values, their attention,
    /// the two products of the feed-forward network, the wanted rows and their logits.
    fn bufs() -> [BufId; 10] {
        std::array::from_fn(BufId)
    }

    const W: WeightId = WeightId(0);

    fn norm(x: BufId, out: BufId, width: usize) -> Op {
        let norm = Norm { kind: NormKind::Rms, eps: 1e-5, weight: W, bias: None, width };
        Op::Norm { x, out, norm }
    }

    fn product(x: BufId, out: BufId) -> Op {
        Op::MatMul { x, weight: W, bias: None, out }
    }

    fn attention() -> AttentionSpec {
        let (layer_idx, n_head, n_kv_head, head_dim) = (0, 2, 2, 2);
        let (scale, causal, window) = (1.0, true, None);
        AttentionSpec { layer_idx, n_head, n_kv_head, head_dim, scale, causal, window }
    }

    /// A layer with norms of heads, and the output behind it.
    fn layer() -> Plan {
        let mut b = PlanBuilder::new(8, 1, 2, 2);
        for i in 0..10 {
            b.buf(4, if i < 8 { Rows::Tokens } else { Rows::Outputs });
        }
        let [x, h, q, k, v, attn, gate, up, last, logits] = bufs();
        b.matrix("w".to_owned(), 4, 4);
        let (style, inv_freq, magnitude) = (RopeStyle::Pairs, vec![1.0], 1.0);
        let rope = b.rope(RopeSpec { style, inv_freq, magnitude });
        b.op(Op::Embed { table: W, out: x });
        b.op(norm(x, h, 4));
        [q, k, v].into_iter().for_each(|out| b.op(product(h, out)));
        [q, k].into_iter().for_each(|x| b.op(norm(x, x, 2)));
        [q, k].into_iter().for_each(|x| b.op(Op::Rope { x, rope, head_dim: 2 }));
        b.op(Op::Attention { q, k, v, out: attn, spec: attention() });
        b.op(product(attn, h));
        b.op(Op::Add { x, y: h });
        b.op(norm(x, h, 4));
        [gate, up].into_iter().for_each(|out| b.op(product(h, out)));
        b.op(Op::Glu { gate, up, activation: Activation::Silu });
        b.op(product(gate, h));
        b.op(Op::Add { x, y: h });
        b.op(Op::SelectOutputs { x, out: last });
        b.op(norm(last, last, 4));
        b.embedding(last);
        b.op(product(last, logits));
        b.finish(logits)
    }

    #[test]
    fn what_makes_rows_stages_them_and_attention_turns_what_it_reads() {
        let [x, h, q, k, v, attn, gate, up, last, logits] = bufs();
        let steps = Steps::compile(&layer()).expect("there are steps for all of it");
        let product = |x, out, adds| Step::MatMul { x, weight: W, bias: None, out, adds };
        let spec = attention();
        let expected = [
            Step::OpStage(norm(x, h, 4)),
            product(h, q, false),
            product(h, k, false),
            product(h, v, false),
            Step::Op(norm(q, q, 2)),
            Step::Op(norm(k, k, 2)),
            Step::Attention { q, k, v, out: attn, spec, rope: Some(RopeId(0)) },
            Step::Stage { x: attn },
            product(attn, x, true),
            Step::OpStage(norm(x, h, 4)),
            product(h, gate, false),
            product(h, up, false),
            Step::OpStage(Op::Glu { gate, up, activation: Activation::Silu }),
            product(gate, x, true),
            Step::Op(Op::SelectOutputs { x, out: last }),
            Step::OpStage(norm(last, last, 4)),
            product(last, logits, false),
        ];
        assert_eq!(steps.steps, expected);
        assert_eq!(steps.n_embedding, expected.len() - 1, "the last norm is the embedding");
    }

    /// A norm by heads has no whole rows at hand, and what is multiplied later is staged then.
    #[test]
    fn rows_are_staged_alone_where_the_operation_before_did_not_make_them() {
        let [x, h, q, ..] = bufs();
        let stages = |ops: &[Op]| {
            let plan = Plan { ops: [&layer().ops[..1], ops].concat(), ..layer() };
            let steps = Steps::compile(&plan).expect("there are steps for all of it").steps;
            steps.iter().filter(|step| matches!(step, Step::Stage { .. })).count()
        };
        assert_eq!(stages(&[norm(x, h, 4), product(h, q)]), 0);
        assert_eq!(stages(&[norm(x, h, 2), product(h, q)]), 1);
        let scale = Op::Scale { x: q, factor: 2.0 };
        assert_eq!(stages(&[norm(x, h, 4), scale, product(h, q)]), 1);
        assert_eq!(stages(&[norm(x, h, 4), product(h, q), scale, product(h, q)]), 0);
        assert_eq!(stages(&[norm(x, h, 4), product(h, q), norm(x, h, 2), product(h, q)]), 1);
    }

    #[test]
    fn what_is_turned_must_be_what_attention_reads_next_and_nobody_else() {
        let refused = |change: &dyn Fn(&mut Plan)| {
            let mut plan = layer();
            change(&mut plan);
            matches!(Steps::compile(&plan), Err(CudaError::Unsupported { .. }))
        };
        let [x, _, _, k, v, ..] = bufs();
        let plan = layer();
        let at = plan.ops.iter().position(|op| matches!(op, Op::Rope { .. })).expect("one");
        assert!(!refused(&|_| ()));
        assert!(!refused(&|plan| plan.ops.swap(at, at + 1)), "keys first");
        let none = |plan: &mut Plan| drop(plan.ops.drain(at..at + 2));
        assert!(!refused(&none), "nothing is turned");
        assert!(refused(&|plan| drop(plan.ops.drain(at..at + 1))), "keys alone");
        let other = Op::Rope { x: k, rope: RopeId(1), head_dim: 2 };
        assert!(refused(&|plan| plan.ops[at + 1] = other), "each by angles of its own");
        let values = Op::Rope { x: v, rope: RopeId(0), head_dim: 2 };
        assert!(refused(&|plan| plan.ops.insert(at, values)), "values too");
        assert!(refused(&|plan| plan.ops.insert(at + 1, Op::Scale { x, factor: 2.0 })), "later");
        assert!(refused(&|plan| plan.ops.insert(at + 3, Op::Add { x, y: k })), "keys are read");
        assert!(refused(&|plan| plan.output = k), "keys are wanted");
        assert!(refused(&|plan| plan.embedding.0 = at + 1), "the plan is cut there");
    }

    #[test]
    fn rows_that_are_looked_up_in_the_middle_are_refused() {
        let mut late = plan(Use::Added);
        late.ops.push(Op::AddRow { x: BufId(2), row: WeightId(0) });
        assert!(matches!(Steps::compile(&late), Err(CudaError::Unsupported { .. })));
    }
}
