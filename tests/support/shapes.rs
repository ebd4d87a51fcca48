//! Models of real shapes with random weights, to be measured where there is a machine for it.
//!
//! Every layer has the same weights, so that a file of gigabytes is made of one layer's; what is
//! computed with them means nothing and takes its time.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use jetforge::inference::backend::cases::{activations, weights};
use jetforge::inference::gguf::GgufBuilder;
use jetforge::inference::quant::TensorType;

use super::recipe::Recipe;

/// A model of Qwen2.5's family.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub name: &'static str,
    n_layer: usize,
    n_embd: usize,
    n_head: usize,
    n_kv_head: usize,
    n_ff: usize,
    n_vocab: usize,
    /// Of every matrix.
    ty: TensorType,
}

const fn shape(
    name: &'static str,
    [n_layer, n_embd, n_head, n_kv_head, n_ff, n_vocab]: [usize; 6],
    ty: TensorType,
) -> Shape {
    Shape { name, n_layer, n_embd, n_head, n_kv_head, n_ff, n_vocab, ty }
}

/// Rows of 896 are in no K-quant.
pub const SHAPES: [Shape; 5] = [
    shape("tiny", [1, 256, 4, 2, 512, 400], TensorType::Q4_0),
    shape("0.5b", [24, 896, 14, 2, 4864, 151_936], TensorType::Q4_0),
    shape("1.5b", [28, 1536, 12, 2, 8960, 151_936], TensorType::Q4_K),
    shape("3b", [36, 2048, 16, 2, 11_008, 151_936], TensorType::Q4_K),
    shape("7b", [28, 3584, 28, 4, 18_944, 152_064], TensorType::Q4_K),
];

impl Shape {
    /// Writes the model.
    ///
    /// # Panics
    /// If it cannot be written.
    pub fn write(self, path: &Path) {
        let Shape { n_layer, n_embd, n_ff, n_vocab, .. } = self;
        let n_kv = n_embd / self.n_head * self.n_kv_head;
        let matrices = [
            ("attn_q.weight", n_embd, n_embd),
            ("attn_k.weight", n_kv, n_embd),
            ("attn_v.weight", n_kv, n_embd),
            ("attn_output.weight", n_embd, n_embd),
            ("ffn_gate.weight", n_ff, n_embd),
            ("ffn_up.weight", n_ff, n_embd),
            ("ffn_down.weight", n_embd, n_ff),
        ]
        .map(|(name, rows, cols)| (name, rows, cols, weights(self.ty, rows, cols, 1)));
        let vectors = [
            ("attn_norm.weight", n_embd),
            ("ffn_norm.weight", n_embd),
            ("attn_q.bias", n_embd),
            ("attn_k.bias", n_kv),
            ("attn_v.bias", n_kv),
        ]
        .map(|(name, n)| (name, n, floats(n)));
        let table = weights(self.ty, n_vocab, n_embd, 2);
        let norm = floats(n_embd);
        let long = |n: usize| n as u64;
        let mut file = self.keys();
        file = file.tensor("token_embd.weight", &[long(n_embd), long(n_vocab)], self.ty, &table);
        file = file.tensor("output_norm.weight", &[long(n_embd)], TensorType::F32, &norm);
        for layer in 0..n_layer {
            for (name, rows, cols, bytes) in &matrices {
                let (name, shape) = (format!("blk.{layer}.{name}"), [long(*cols), long(*rows)]);
                file = file.tensor(name, &shape, self.ty, bytes);
            }
            for (name, n, bytes) in &vectors {
                let name = format!("blk.{layer}.{name}");
                file = file.tensor(name, &[long(*n)], TensorType::F32, bytes);
            }
        }
        let mut out = BufWriter::new(File::create(path).expect("the model's file"));
        file.write_to(&mut out).and_then(|()| out.flush()).expect("the model is written");
    }

    /// The keys of a small model of the family, with these numbers and tokens that no text has.
    fn keys<'a>(self) -> GgufBuilder<'a> {
        let numbers = [
            ("context_length", 8192),
            ("embedding_length", self.n_embd),
            ("block_count", self.n_layer),
            ("feed_forward_length", self.n_ff),
            ("attention.head_count", self.n_head),
            ("attention.head_count_kv", self.n_kv_head),
            ("rope.dimension_count", self.n_embd / self.n_head),
            ("vocab_size", self.n_vocab),
        ];
        let recipe = Recipe::read("qwen2")
            .with("general.name", format!("random-{}", self.name))
            .with_items("tokenizer.ggml.tokens", self.n_vocab, |i| format!("<{i}>").into())
            .with_items("tokenizer.ggml.token_type", self.n_vocab, |_| 1.into());
        let recipe = numbers
            .into_iter()
            .fold(recipe, |recipe, (key, number)| recipe.with(&format!("qwen2.{key}"), number));
        let file = GgufBuilder::new();
        recipe.keys().into_iter().fold(file, |file, (key, value)| file.pair(key, value))
    }
}

fn floats(n: usize) -> Vec<u8> {
    activations(1, n, n, 3).into_iter().flat_map(|x| (x * 0.1).to_le_bytes()).collect()
}
