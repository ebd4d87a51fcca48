//! A plan as the device runs it: what the host prepares, and the launches in their order.
//!
//! ```text
//! Embed, Scale, AddRow, AddPosition     at the beginning: rows that the host makes and sends, or
//!                                       sends for whoever ran the layers before
//! MatMul                             -> Stage, where its input is not staged yet; the product
//! MatMul y; Add x += y               -> the product added to x, where nothing else reads y, and
//!                                       x is not what is multiplied
//! anything else                      -> as it is
//! ```

use super::CudaError;
use crate::inference::backend::{BufId, Op, Plan, WeightId};

/// What the device does.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Step {
    /// Brings the rows of a buffer into the form that is multiplied.
    Stage {
        /// The rows.
        x: BufId,
    },
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
    /// An operation of the plan, other than a product.
    Op(Op),
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
    /// [`CudaError::Unsupported`] if rows are looked up anywhere but at its beginning.
    pub fn compile(plan: &Plan) -> Result<Steps, CudaError> {
        let what = "a plan that looks rows up in its middle";
        let unsupported = || CudaError::Unsupported { what: what.to_owned() };
        let ops = &plan.ops;
        let Some(rows) = host_buf(plan) else { return Err(unsupported()) };
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
            at += 1;
            let mut written = ops[at - 1].writes();
            match ops[at - 1] {
                Op::Embed { .. } | Op::AddRow { .. } | Op::AddPosition { .. } => {
                    return Err(unsupported());
                }
                Op::MatMul { x, weight, bias, out } => {
                    if staged != Some(x) {
                        steps.push(Step::Stage { x });
                        staged = Some(x);
                    }
                    // What adapters add to a product reads its input after it.
                    let sum = sum_of(plan, at, out).filter(|&sum| sum != x);
                    steps.push(Step::MatMul {
                        x,
                        weight,
                        bias,
                        out: sum.unwrap_or(out),
                        adds: sum.is_some(),
                    });
                    at += usize::from(sum.is_some());
                    written = sum.unwrap_or(out);
                }
                op => steps.push(Step::Op(op)),
            }
            staged = staged.filter(|&x| x != written);
        }
        if plan.embedding.0 >= ops.len() {
            n_embedding = steps.len();
        }
        Ok(Steps { host: (ops[..n_host].to_vec(), rows), steps, n_embedding })
    }
}

/// The buffer that the operation after a product adds `y` to, if that is all that becomes of `y`.
fn sum_of(plan: &Plan, at: usize, y: BufId) -> Option<BufId> {
    let Some(&Op::Add { x, y: added }) = plan.ops.get(at) else { return None };
    let is_kept = plan.output == y || plan.embedding.1 == y || plan.embedding.0 == at;
    let later = &plan.ops[at + 1..];
    let next = later.iter().find(|op| op.reads().contains(&Some(y)) || op.writes() == y);
    let is_read = next.is_some_and(|op| op.reads().contains(&Some(y)));
    (added == y && x != y && !is_kept && !is_read).then_some(x)
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
    use crate::inference::backend::{PlanBuilder, Rows};

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

    #[test]
    fn rows_that_are_looked_up_in_the_middle_are_refused() {
        let mut late = plan(Use::Added);
        late.ops.push(Op::AddRow { x: BufId(2), row: WeightId(0) });
        assert!(matches!(Steps::compile(&late), Err(CudaError::Unsupported { .. })));
    }
}
