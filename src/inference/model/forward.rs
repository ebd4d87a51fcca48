//! The forward pass, once, for every architecture.
//!
//! ```text
//! x = embed(tokens) (+ positions, + type)
//! each layer:   h = norm(x);  x += attn(h);  h = norm(x);  x += ffn(h)      (see `Residual`)
//! result:       norm(x at the output rows) . output matrix, or x itself for an encoder,
//!               or for a reranker its head on x
//! ```

use super::arch::Residual;
use super::rope::rope_spec;
use super::{Hparams, ModelError, Pooling};
use crate::inference::backend::{
    Activation, AttentionSpec, BufId, Norm, Op, Plan, PlanBuilder, RopeId, Rows, WeightId,
};
use crate::inference::gguf::Gguf;

/// The plan of a model file.
///
/// # Errors
/// If the file asks for a rotary scaling that is not known. Tensors are checked by the backend.
pub fn plan(gguf: &Gguf, hparams: &Hparams) -> Result<Plan, ModelError> {
    let p = hparams;
    let mut b = PlanBuilder::new(p.n_vocab, p.n_layer, p.n_kv_head, p.head_dim);
    let (n_q, n_kv) = (p.n_head * p.head_dim, p.n_kv_head * p.head_dim);
    let bufs = Bufs {
        x: b.buf(p.n_embd, Rows::Tokens),
        h: b.buf(p.n_embd, Rows::Tokens),
        y: b.buf(p.n_embd, Rows::Tokens),
        q: b.buf(n_q, Rows::Tokens),
        k: b.buf(n_kv, Rows::Tokens),
        v: b.buf(n_kv, Rows::Tokens),
        attn: b.buf(n_q, Rows::Tokens),
        gate: b.buf(p.n_ff, Rows::Tokens),
        up: b.buf(p.n_ff, Rows::Tokens),
    };
    let mut ropes = None;
    if let Some(style) = p.arch.rope {
        let full = b.rope(rope_spec(gguf, p, style, p.rope_theta, true)?);
        let windowed = match p.window {
            Some(_) => b.rope(rope_spec(gguf, p, style, p.rope_theta_window, false)?),
            None => full,
        };
        ropes = Some((full, windowed));
    }
    let mut forward = Forward { gguf, p, b, bufs, ropes };
    forward.embed();
    for layer_idx in 0..p.n_layer {
        forward.layer(layer_idx);
    }
    Ok(forward.result())
}

/// The buffers of the pass.
struct Bufs {
    /// The residual stream.
    x: BufId,
    /// What attention and feed-forward read.
    h: BufId,
    /// What they give back.
    y: BufId,
    q: BufId,
    k: BufId,
    v: BufId,
    attn: BufId,
    gate: BufId,
    up: BufId,
}

struct Forward<'a> {
    gguf: &'a Gguf,
    p: &'a Hparams,
    b: PlanBuilder,
    bufs: Bufs,
    /// Angles of full and of windowed layers.
    ropes: Option<(RopeId, RopeId)>,
}

impl Forward<'_> {
    fn has(&self, name: &str) -> bool {
        self.gguf.tensor(name).is_some()
    }

    fn embed(&mut self) {
        let (x, n_embd) = (self.bufs.x, self.p.n_embd);
        let table = self.b.matrix("token_embd.weight".to_owned(), self.p.n_vocab, n_embd);
        self.b.op(Op::Embed { table, out: x });
        if self.p.arch.scale_embd {
            self.b.op(Op::Scale { x, factor: (n_embd as f32).sqrt() });
        }
        if self.p.arch.rope.is_none() {
            if let Some(types) = self.gguf.tensor("token_types.weight") {
                let n = types.shape.get(1).copied().unwrap_or(1) as usize;
                let row = self.b.matrix(types.name.clone(), n, n_embd);
                self.b.op(Op::AddRow { x, row });
            }
            let name = "position_embd.weight".to_owned();
            let table = self.b.matrix(name, self.p.n_ctx_train, n_embd);
            self.b.op(Op::AddPosition { x, table });
            self.norm("token_embd_norm", x, x, n_embd);
        }
    }

    fn layer(&mut self, layer_idx: usize) {
        self.b.layer();
        let (x, h, y) = (self.bufs.x, self.bufs.h, self.bufs.y);
        let n_embd = self.p.n_embd;
        let name = |part: &str| format!("blk.{layer_idx}.{part}");
        match self.p.arch.residual {
            Residual::PreNorm => {
                self.norm(&name("attn_norm"), x, h, n_embd);
                self.attention(layer_idx, h, y);
                self.optional_norm(&name("post_attention_norm"), y);
                self.b.op(Op::Add { x, y });
                // Without a norm of its own the feed-forward reads what attention read.
                if self.has(&name("ffn_norm.weight")) {
                    self.norm(&name("ffn_norm"), x, h, n_embd);
                }
                self.feed_forward(layer_idx, h, y);
                self.optional_norm(&name("post_ffw_norm"), y);
                self.b.op(Op::Add { x, y });
            }
            Residual::PostNorm => {
                self.attention(layer_idx, x, y);
                self.b.op(Op::Add { x, y });
                self.norm(&name("attn_output_norm"), x, x, n_embd);
                self.feed_forward(layer_idx, x, y);
                self.b.op(Op::Add { x, y });
                self.norm(&name("layer_output_norm"), x, x, n_embd);
            }
        }
    }

    fn attention(&mut self, layer_idx: usize, input: BufId, out: BufId) {
        let p = self.p;
        let Bufs { q, k, v, attn, .. } = self.bufs;
        let (n_q, n_kv) = (p.n_head * p.head_dim, p.n_kv_head * p.head_dim);
        let name = |part: &str| format!("blk.{layer_idx}.{part}");
        let fused = name("attn_qkv");
        if self.has(&format!("{fused}.weight")) {
            let n_total = n_q + 2 * n_kv;
            for (buf, start, n) in [(q, 0, n_q), (k, n_q, n_kv), (v, n_q + n_kv, n_kv)] {
                self.linear_part(&fused, input, buf, (p.n_embd, n_total), (start, n));
            }
        } else {
            for (part, buf, n) in [("attn_q", q, n_q), ("attn_k", k, n_kv), ("attn_v", v, n_kv)] {
                self.linear(&name(part), input, buf, p.n_embd, n);
            }
        }
        self.head_norm(&name("attn_q_norm"), q, p.n_head);
        self.head_norm(&name("attn_k_norm"), k, p.n_kv_head);
        let windowed = p.is_windowed(layer_idx);
        if let Some((full, window)) = self.ropes {
            let rope = if windowed { window } else { full };
            for x in [q, k] {
                self.b.op(Op::Rope { x, rope, head_dim: p.head_dim });
            }
        }
        let spec = AttentionSpec {
            layer_idx,
            n_head: p.n_head,
            n_kv_head: p.n_kv_head,
            head_dim: p.head_dim,
            scale: p.attention_scale,
            causal: p.arch.causal,
            window: p.window.filter(|_| windowed),
        };
        self.b.op(Op::Attention { q, k, v, out: attn, spec });
        self.linear(&name("attn_output"), attn, out, n_q, p.n_embd);
    }

    fn feed_forward(&mut self, layer_idx: usize, input: BufId, out: BufId) {
        let (n_embd, n_ff) = (self.p.n_embd, self.p.n_ff);
        let (gate, up, activation) = (self.bufs.gate, self.bufs.up, self.p.arch.activation);
        let name = |part: &str| format!("blk.{layer_idx}.{part}");
        if self.has(&name("ffn_gate.weight")) {
            self.linear(&name("ffn_gate"), input, gate, n_embd, n_ff);
            self.linear(&name("ffn_up"), input, up, n_embd, n_ff);
            self.b.op(Op::Glu { gate, up, activation });
        } else {
            self.linear(&name("ffn_up"), input, gate, n_embd, n_ff);
            self.b.op(Op::Act { x: gate, activation });
        }
        self.linear(&name("ffn_down"), gate, out, n_ff, n_embd);
    }

    fn result(mut self) -> Plan {
        let (x, n_embd, n_vocab) = (self.bufs.x, self.p.n_embd, self.p.n_vocab);
        let last = self.b.buf(n_embd, Rows::Outputs);
        self.b.layer();
        self.b.op(Op::SelectOutputs { x, out: last });
        if self.p.arch.residual == Residual::PostNorm {
            self.b.embedding(last);
            let output = if self.p.pooling == Pooling::Rank { self.score(last) } else { last };
            return self.b.finish(output);
        }
        self.norm("output_norm", last, last, n_embd);
        self.b.embedding(last);
        let logits = self.b.buf(n_vocab, Rows::Outputs);
        // Small models reuse the embedding table as the output matrix.
        let head = if self.has("output.weight") { "output" } else { "token_embd" };
        self.linear(head, last, logits, n_embd, n_vocab);
        self.b.finish(logits)
    }

    /// A reranker's head: one score, or one for each of its labels. Files have a dense layer, an
    /// output layer, or both.
    fn score(&mut self, row: BufId) -> BufId {
        let n_embd = self.p.n_embd;
        let mut x = row;
        if self.has("cls.weight") {
            x = self.b.buf(n_embd, Rows::Outputs);
            self.linear("cls", row, x, n_embd, n_embd);
            self.b.op(Op::Act { x, activation: Activation::Tanh });
        }
        let output = self.gguf.tensor("cls.output.weight");
        if output.is_none() && x != row {
            return x;
        }
        let n_label = output.and_then(|info| info.shape.get(1).copied()).unwrap_or(1) as usize;
        let scores = self.b.buf(n_label, Rows::Outputs);
        self.linear("cls.output", x, scores, n_embd, n_label);
        scores
    }

    /// `out = W x (+ bias)`, the bias if the file has one.
    fn linear(&mut self, name: &str, x: BufId, out: BufId, n_in: usize, n_out: usize) {
        self.linear_part(name, x, out, (n_in, n_out), (0, n_out));
    }

    /// Rows `start..start + n` of a matrix `[n_total, n_in]`.
    fn linear_part(
        &mut self,
        name: &str,
        x: BufId,
        out: BufId,
        (n_in, n_total): (usize, usize),
        (start, n): (usize, usize),
    ) {
        let weight = self.b.matrix_part(format!("{name}.weight"), n_total, n_in, start, n);
        let bias = format!("{name}.bias");
        let bias = self.has(&bias).then(|| self.b.vector_part(bias, n_total, start, n));
        self.b.op(Op::MatMul { x, weight, bias, out });
    }

    fn norm(&mut self, name: &str, x: BufId, out: BufId, width: usize) {
        let weight = self.b.vector(format!("{name}.weight"), width);
        self.norm_op(name, x, out, weight, width);
    }

    fn norm_op(&mut self, name: &str, x: BufId, out: BufId, weight: WeightId, width: usize) {
        let bias = format!("{name}.bias");
        let bias = self.has(&bias).then(|| self.b.vector(bias, width));
        let (kind, eps) = (self.p.arch.norm, self.p.norm_eps);
        self.b.op(Op::Norm { x, out, norm: Norm { kind, eps, weight, bias, width } });
    }

    /// A norm that only some files have, in place.
    fn optional_norm(&mut self, name: &str, x: BufId) {
        if self.has(&format!("{name}.weight")) {
            self.norm(name, x, x, self.p.n_embd);
        }
    }

    /// A norm of each head, with one weight vector for all heads or one for each.
    fn head_norm(&mut self, name: &str, x: BufId, n_head: usize) {
        let head_dim = self.p.head_dim;
        let weight = format!("{name}.weight");
        let Some(info) = self.gguf.tensor(&weight) else {
            return;
        };
        let weight = match info.shape.len() {
            1 => self.b.vector(weight, head_dim),
            _ => self.b.vectors(weight, n_head, head_dim),
        };
        self.norm_op(name, x, x, weight, head_dim);
    }
}
