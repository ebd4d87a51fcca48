//! The vocabulary of operations, and a forward pass written in it.
//!
//! Buffers are matrices `[rows, width]`, f32, where the rows are the batch's tokens or, past
//! [`Op::SelectOutputs`], its output rows. Weights are rows of tensors in the model file. Both are
//! opaque numbers here: only a backend knows where they lie.

/// A buffer of activations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BufId(pub usize);

/// A weight: a tensor of the file, or a run of its rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WeightId(pub usize);

/// A table of rotary angles.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RopeId(pub usize);

/// What the rows of a buffer are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rows {
    /// A row for each token of the batch.
    Tokens,
    /// A row for each output of the batch.
    Outputs,
}

/// How a row is brought to unit size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NormKind {
    /// `x / sqrt(mean(x^2) + eps)`.
    Rms,
    /// `(x - mean(x)) / sqrt(var(x) + eps)`.
    Layer,
}

/// A normalisation with its learned weights.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Norm {
    /// Which formula.
    pub kind: NormKind,
    /// Added to the variance.
    pub eps: f32,
    /// Multiplies the result: `[width]`, or as many runs of that as the row has.
    pub weight: WeightId,
    /// Added to the result.
    pub bias: Option<WeightId>,
    /// Values normalised together: the buffer's width, or `head_dim` for a norm per head.
    pub width: usize,
}

/// A non-linear function of the feed-forward network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `x / (1 + exp(-x))`.
    Silu,
    /// `0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))`.
    Gelu,
    /// `tanh(x)`, of a classification head.
    Tanh,
}

/// Which values of a head are rotated together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RopeStyle {
    /// Neighbours: (0, 1), (2, 3), ... as the llama family is stored.
    Pairs,
    /// Halves: (0, n_rot/2), (1, n_rot/2 + 1), ... as GPT-NeoX is stored.
    Halves,
}

/// Rotary position embedding: value pair `i` turns by `pos * inv_freq[i]`, scaled by `magnitude`.
#[derive(Clone, Debug, PartialEq)]
pub struct RopeSpec {
    /// Pairing.
    pub style: RopeStyle,
    /// Radians per position, `[n_rot / 2]`, with every scaling method already applied.
    pub inv_freq: Vec<f64>,
    /// Factor on sine and cosine (YaRN's attention factor; 1 otherwise).
    pub magnitude: f32,
}

/// Attention of one layer over the KV cache.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttentionSpec {
    /// Layer, which names the KV cache's part.
    pub layer_idx: usize,
    /// Query heads.
    pub n_head: usize,
    /// Key and value heads; `n_head` is a multiple.
    pub n_kv_head: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Factor on the scores.
    pub scale: f32,
    /// Whether a token sees only itself and what is before it; else its whole sequence.
    pub causal: bool,
    /// Positions that a token sees, itself included; `None` for all.
    pub window: Option<usize>,
}

/// One operation. Outputs may not alias inputs unless the operation says so.
#[derive(Clone, Copy, Debug, PartialEq)]
#[allow(missing_docs)] // the fields are what the operation's line names
pub enum Op {
    /// `out[t] = table[tokens[t]]`
    Embed { table: WeightId, out: BufId },
    /// `x[t] += table[position of t]`, in place
    AddPosition { x: BufId, table: WeightId },
    /// `x[t] += row`, in place
    AddRow { x: BufId, row: WeightId },
    /// `out = norm(x)`; `out` may be `x`
    Norm { x: BufId, out: BufId, norm: Norm },
    /// `out[t] = weight . x[t] + bias`, weight `[width of out, width of x]`
    MatMul { x: BufId, weight: WeightId, bias: Option<WeightId>, out: BufId },
    /// turns each head of `x` in place
    Rope { x: BufId, rope: RopeId, head_dim: usize },
    /// appends `k` and `v` to the KV cache, then `out = softmax(q . K^T) . V`
    Attention { q: BufId, k: BufId, v: BufId, out: BufId, spec: AttentionSpec },
    /// `gate = activation(gate) * up`, in place
    Glu { gate: BufId, up: BufId, activation: Activation },
    /// `x = activation(x)`, in place
    Act { x: BufId, activation: Activation },
    /// `x += y`, in place
    Add { x: BufId, y: BufId },
    /// `x *= factor`, in place
    Scale { x: BufId, factor: f32 },
    /// `out` = the rows of `x` that the batch wants
    SelectOutputs { x: BufId, out: BufId },
}

impl Op {
    /// The buffers whose values it depends on.
    pub fn reads(&self) -> [Option<BufId>; 3] {
        match *self {
            Op::Embed { .. } => [None; 3],
            Op::AddPosition { x, .. } | Op::AddRow { x, .. } => [Some(x), None, None],
            Op::Norm { x, .. } | Op::MatMul { x, .. } | Op::Rope { x, .. } => [Some(x), None, None],
            Op::Act { x, .. } | Op::Scale { x, .. } => [Some(x), None, None],
            Op::SelectOutputs { x, .. } => [Some(x), None, None],
            Op::Attention { q, k, v, .. } => [Some(q), Some(k), Some(v)],
            Op::Glu { gate, up, .. } => [Some(gate), Some(up), None],
            Op::Add { x, y } => [Some(x), Some(y), None],
        }
    }

    /// The buffer that it writes.
    pub fn writes(&self) -> BufId {
        match *self {
            Op::Embed { out, .. } | Op::Norm { out, .. } | Op::MatMul { out, .. } => out,
            Op::Attention { out, .. } | Op::SelectOutputs { out, .. } => out,
            Op::AddPosition { x, .. } | Op::AddRow { x, .. } | Op::Rope { x, .. } => x,
            Op::Act { x, .. } | Op::Add { x, .. } | Op::Scale { x, .. } => x,
            Op::Glu { gate, .. } => gate,
        }
    }
}

/// A weight: where it is in the file and the shape that the model needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WeightSpec {
    /// The tensor's name.
    pub name: String,
    /// Shape of the whole tensor, innermost first.
    pub shape: Vec<u64>,
    /// First row used.
    pub row_start: usize,
    /// Rows used.
    pub n_rows: usize,
    /// Values in a row.
    pub n_cols: usize,
    /// Whether it is a vector, kept as f32, rather than a matrix.
    pub is_vector: bool,
}

/// A forward pass: what to compute for any batch.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// The operations, in order.
    pub ops: Vec<Op>,
    /// Width and rows of each buffer.
    pub bufs: Vec<(usize, Rows)>,
    /// The weights.
    pub weights: Vec<WeightSpec>,
    /// The tables of rotary angles.
    pub ropes: Vec<RopeSpec>,
    /// The buffer whose rows are given with each batch, where the plan does not begin with them.
    pub input: Option<BufId>,
    /// Where each layer begins among the operations, and, behind the last, the output.
    pub layers: Vec<usize>,
    /// The buffer that holds the result: logits, scores, or the embeddings of an encoder.
    pub output: BufId,
    /// Where the embeddings are ready: after how many operations, and in which buffer.
    pub embedding: (usize, BufId),
    /// Tokens that the embedding knows.
    pub n_vocab: usize,
    /// Layers with a KV cache.
    pub n_layer: usize,
    /// Key and value heads of a layer.
    pub n_kv_head: usize,
    /// Width of a head.
    pub head_dim: usize,
}

impl Plan {
    /// The rotation that the cached keys of each layer have, `[n_layer]`.
    pub fn key_ropes(&self) -> Vec<Option<RopeId>> {
        let mut ropes = vec![None; self.n_layer];
        let mut turned = vec![None; self.bufs.len()];
        for op in &self.ops {
            match *op {
                Op::MatMul { out, .. } => turned[out.0] = None,
                Op::Rope { x, rope, .. } => turned[x.0] = Some(rope),
                Op::Attention { k, spec, .. } => ropes[spec.layer_idx] = turned[k.0],
                _ => {}
            }
        }
        ropes
    }
}

/// Writes a [`Plan`], handing out numbers for buffers and weights.
#[derive(Debug)]
pub struct PlanBuilder {
    plan: Plan,
}

impl PlanBuilder {
    /// An empty plan for a model of these dimensions.
    pub fn new(n_vocab: usize, n_layer: usize, n_kv_head: usize, head_dim: usize) -> Self {
        let plan = Plan {
            ops: Vec::new(),
            bufs: Vec::new(),
            weights: Vec::new(),
            ropes: Vec::new(),
            input: None,
            layers: Vec::new(),
            output: BufId(0),
            embedding: (0, BufId(0)),
            n_vocab,
            n_layer,
            n_kv_head,
            head_dim,
        };
        PlanBuilder { plan }
    }

    /// A buffer `[rows, width]`.
    pub fn buf(&mut self, width: usize, rows: Rows) -> BufId {
        self.plan.bufs.push((width, rows));
        BufId(self.plan.bufs.len() - 1)
    }

    /// A vector of the file.
    pub fn vector(&mut self, name: String, n: usize) -> WeightId {
        self.vector_part(name, n, 0, n)
    }

    /// `n_rows` vectors of the file, one after another.
    pub fn vectors(&mut self, name: String, n_rows: usize, n_cols: usize) -> WeightId {
        let shape = vec![n_cols as u64, n_rows as u64];
        let n_cols = n_rows * n_cols;
        self.push(WeightSpec { name, shape, row_start: 0, n_rows: 1, n_cols, is_vector: true })
    }

    /// A run of a vector, `n_rows` values from `row_start` of `n_total`.
    pub fn vector_part(
        &mut self,
        name: String,
        n_total: usize,
        row_start: usize,
        n: usize,
    ) -> WeightId {
        let shape = vec![n_total as u64];
        self.push(WeightSpec { name, shape, row_start, n_rows: 1, n_cols: n, is_vector: true })
    }

    /// A matrix `[n_rows, n_cols]` of the file.
    pub fn matrix(&mut self, name: String, n_rows: usize, n_cols: usize) -> WeightId {
        self.matrix_part(name, n_rows, n_cols, 0, n_rows)
    }

    /// Rows `row_start..row_start + n_rows` of a matrix `[n_total, n_cols]` of the file.
    pub fn matrix_part(
        &mut self,
        name: String,
        n_total: usize,
        n_cols: usize,
        row_start: usize,
        n_rows: usize,
    ) -> WeightId {
        let shape = vec![n_cols as u64, n_total as u64];
        self.push(WeightSpec { name, shape, row_start, n_rows, n_cols, is_vector: false })
    }

    /// A table of rotary angles.
    pub fn rope(&mut self, rope: RopeSpec) -> RopeId {
        self.plan.ropes.push(rope);
        RopeId(self.plan.ropes.len() - 1)
    }

    /// Begins a layer; behind the last, the output.
    pub fn layer(&mut self) {
        self.plan.layers.push(self.plan.ops.len());
    }

    /// Appends an operation.
    pub fn op(&mut self, op: Op) {
        self.plan.ops.push(op);
    }

    /// Says that the rows of `buf` are, at this point, the embeddings of the output rows.
    pub fn embedding(&mut self, buf: BufId) {
        self.plan.embedding = (self.plan.ops.len(), buf);
    }

    /// The finished plan, whose result lies in `output`.
    pub fn finish(mut self, output: BufId) -> Plan {
        self.plan.output = output;
        self.plan
    }

    fn push(&mut self, weight: WeightSpec) -> WeightId {
        self.plan.weights.push(weight);
        WeightId(self.plan.weights.len() - 1)
    }
}
