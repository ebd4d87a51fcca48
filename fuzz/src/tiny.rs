//! Models of a few kilobytes, right in every way, and the ways to make them wrong.
//!
//! A fuzzer that starts from bytes hardly ever gets past the shapes of tensors. So the input is a
//! list of choices: architecture, tensor type, vocabulary, then edits of keys and tensors. Without
//! edits the model loads and runs; `tests/` of the main package compares such models to llama.cpp.

use jetforge::inference::gguf::{GgufBuilder, Value};
use jetforge::inference::quant::TensorType;

use crate::feed::Feed;

const ARCHS: [&str; 8] =
    ["llama", "qwen2", "qwen3", "phi2", "stablelm", "starcoder2", "gemma3", "bert"];
const N_VOCAB: u64 = 96;

/// A file before it is written.
pub struct Tiny {
    pub pairs: Vec<(String, Value)>,
    pub tensors: Vec<Tensor>,
}

/// A tensor; its data is made when the file is written.
#[derive(Clone)]
pub struct Tensor {
    pub name: String,
    pub shape: Vec<u64>,
    pub ty: TensorType,
}

impl Tiny {
    /// The right model that the first bytes choose.
    pub fn new(feed: &mut Feed<'_>) -> Tiny {
        let arch = feed.pick(&ARCHS);
        let ty = feed.pick(&TensorType::ALL);
        let n_embd = if ty.row_unit() == 256 { 256 } else { 64 };
        let mut tiny = Tiny { pairs: Vec::new(), tensors: Vec::new() };
        tiny.hparams(arch, n_embd);
        tiny.vocabulary(arch);
        tiny.weights(arch, ty, u64::from(n_embd));
        tiny
    }

    fn set(&mut self, key: &str, value: impl Into<Value>) {
        let value = value.into();
        match self.pairs.iter_mut().find(|pair| pair.0 == key) {
            Some(pair) => pair.1 = value,
            None => self.pairs.push((key.to_owned(), value)),
        }
    }

    fn hparams(&mut self, arch: &str, n_embd: u32) {
        self.set("general.architecture", arch);
        let n_kv_head = if matches!(arch, "phi2" | "bert") { 4u32 } else { 2 };
        let counts = [
            ("context_length", 64),
            ("embedding_length", n_embd),
            ("block_count", 1),
            ("feed_forward_length", n_embd),
            ("attention.head_count", 4),
            ("attention.head_count_kv", n_kv_head),
        ];
        for (key, count) in counts {
            self.set(&format!("{arch}.{key}"), count);
        }
        let is_rms = matches!(arch, "llama" | "qwen2" | "qwen3" | "gemma3");
        let eps = if is_rms { "layer_norm_rms_epsilon" } else { "layer_norm_epsilon" };
        self.set(&format!("{arch}.attention.{eps}"), 1e-5f32);
    }

    fn vocabulary(&mut self, arch: &str) {
        let model = match arch {
            "llama" | "gemma3" => "llama",
            "bert" => "bert",
            _ => "gpt2",
        };
        self.set("tokenizer.ggml.model", model);
        if model == "gpt2" {
            self.set("tokenizer.ggml.pre", "qwen2");
        }
        let named = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<0x0A>"];
        let parts = ["ab", "abc", "▁a", "▁", "Ġ", "Ċ", "Ġa"];
        let ascii = (b'!'..).map(|byte| char::from(byte).to_string());
        let named = named.into_iter().chain(parts).map(str::to_owned);
        let tokens: Vec<String> = named.chain(ascii).take(N_VOCAB as usize).collect();
        let kind = |id: usize| match id {
            0 => 2,
            1..5 => 3,
            5 => 6,
            _ => 1,
        };
        self.set("tokenizer.ggml.tokens", &tokens[..]);
        self.set(
            "tokenizer.ggml.token_type",
            &(0..tokens.len()).map(kind).collect::<Vec<i32>>()[..],
        );
        let scores: Vec<f32> = (0..tokens.len()).map(|id| -(id as f32)).collect();
        self.set("tokenizer.ggml.scores", &scores[..]);
        self.set("tokenizer.ggml.merges", &["a b", "ab c", "Ġ a"]);
        for (role, id) in [("bos", 1u32), ("eos", 2), ("unknown", 0), ("seperator", 2), ("cls", 1)]
        {
            self.set(&format!("tokenizer.ggml.{role}_token_id"), id);
        }
    }

    fn add(&mut self, name: &str, shape: &[u64], ty: TensorType) {
        self.tensors.push(Tensor { name: name.to_owned(), shape: shape.to_vec(), ty });
    }

    fn weights(&mut self, arch: &str, ty: TensorType, n: u64) {
        let f32s = TensorType::F32;
        let has_bias = matches!(arch, "phi2" | "starcoder2" | "bert" | "qwen2");
        self.add("token_embd.weight", &[n, N_VOCAB], ty);
        let mut norms = vec!["output_norm".to_owned()];
        if arch == "bert" {
            self.add("token_types.weight", &[n, 2], f32s);
            self.add("position_embd.weight", &[n, 64], f32s);
            norms = vec!["token_embd_norm".to_owned()];
        }
        let n_kv = if matches!(arch, "phi2" | "bert") { n } else { n / 2 };
        for layer in ["blk.0"] {
            let linears: &[(&str, u64)] = match arch {
                "phi2" => {
                    &[("attn_qkv", 3 * n), ("attn_output", n), ("ffn_up", n), ("ffn_down", n)]
                }
                _ => &[
                    ("attn_q", n),
                    ("attn_k", n_kv),
                    ("attn_v", n_kv),
                    ("attn_output", n),
                    ("ffn_up", n),
                    ("ffn_down", n),
                    ("ffn_gate", n),
                ],
            };
            for (name, n_out) in linears {
                self.add(&format!("{layer}.{name}.weight"), &[n, *n_out], ty);
                if has_bias {
                    self.add(&format!("{layer}.{name}.bias"), &[*n_out], f32s);
                }
            }
            let names: &[&str] = match arch {
                "bert" => &["attn_output_norm", "layer_output_norm"],
                "phi2" => &["attn_norm"],
                "gemma3" => &["attn_norm", "ffn_norm", "post_attention_norm", "post_ffw_norm"],
                _ => &["attn_norm", "ffn_norm"],
            };
            norms.extend(names.iter().map(|name| format!("{layer}.{name}")));
            if matches!(arch, "qwen3" | "gemma3") {
                self.add(&format!("{layer}.attn_q_norm.weight"), &[n / 4], f32s);
                self.add(&format!("{layer}.attn_k_norm.weight"), &[n / 4], f32s);
            }
        }
        for name in norms {
            self.add(&format!("{name}.weight"), &[n], f32s);
            if has_bias {
                self.add(&format!("{name}.bias"), &[n], f32s);
            }
        }
    }

    /// Changes one thing, as the next bytes say.
    pub fn edit(&mut self, feed: &mut Feed<'_>) {
        match feed.u8() % 8 {
            0..=2 => self.edit_key(feed),
            3 => {
                if !self.pairs.is_empty() {
                    self.pairs.swap_remove(usize::from(feed.u8()) % self.pairs.len());
                }
            }
            4 => self.edit_vocabulary(feed),
            _ => self.edit_tensor(feed),
        }
    }

    fn edit_key(&mut self, feed: &mut Feed<'_>) {
        let arch = ARCHS
            .into_iter()
            .find(|arch| self.pairs.first().is_some_and(|pair| pair.1 == Value::from(*arch)));
        let key = feed.pick(&KEYS).replace("ARCH", arch.unwrap_or("llama"));
        let text = feed.pick(&TEXTS);
        match feed.u8() % 8 {
            0..=2 => self.set(&key, feed.number()),
            3 => self.set(&key, feed.float()),
            4 => self.set(&key, feed.u8() & 1 == 1),
            5 => self.set(&key, text),
            6 => {
                let n = usize::from(feed.u8() % 32);
                self.set(&key, String::from_utf8_lossy(feed.bytes(n)).as_ref());
            }
            _ => self.set(&key, &[feed.number() as i32, feed.number() as i32][..]),
        }
    }

    fn edit_vocabulary(&mut self, feed: &mut Feed<'_>) {
        let n = usize::from(feed.u8() % 24);
        let words = |feed: &mut Feed<'_>| -> Vec<String> {
            let word = |feed: &mut Feed<'_>| {
                let n = usize::from(feed.u8() % 6);
                String::from_utf8_lossy(feed.bytes(n)).into_owned()
            };
            (0..n).map(|_| word(feed)).collect()
        };
        match feed.u8() % 4 {
            0 => self.set("tokenizer.ggml.tokens", &words(feed)[..]),
            1 => self.set("tokenizer.ggml.merges", &words(feed)[..]),
            2 => {
                let kinds: Vec<i32> = (0..N_VOCAB).map(|_| i32::from(feed.u8() % 8)).collect();
                self.set("tokenizer.ggml.token_type", &kinds[..]);
            }
            _ => {
                let scores: Vec<f32> = (0..N_VOCAB).map(|_| feed.float()).collect();
                self.set("tokenizer.ggml.scores", &scores[..]);
            }
        }
    }

    fn edit_tensor(&mut self, feed: &mut Feed<'_>) {
        let dims = [1, 0, 2, 3, 8, 16, 32, 48, 64, 96, 128, 192, 256, 768];
        let idx = usize::from(feed.u8()) % self.tensors.len().max(1);
        let name = feed.pick(&TENSORS).replace("LAYER", feed.pick(&["blk.0", "blk.0", "blk.1"]));
        let ty = feed.pick(&TensorType::ALL);
        let how = feed.u8() % 6;
        let shape: Vec<u64> = (0..feed.u8() % 4 + 1).map(|_| feed.pick(&dims)).collect();
        if how == 5 || self.tensors.is_empty() {
            return self.tensors.push(Tensor { name, shape, ty });
        }
        match how {
            0 => drop(self.tensors.remove(idx)),
            1 => self.tensors[idx].ty = ty,
            2 => self.tensors[idx].shape = shape,
            3 => self.tensors[idx].shape.push(feed.pick(&dims)),
            _ => self.tensors[idx].name = name,
        }
    }

    /// The file; the weights repeat `fill`, whatever bits those are.
    pub fn write(&self, fill: &[u8]) -> Vec<u8> {
        let mut file = GgufBuilder::new();
        for (key, value) in &self.pairs {
            file = file.pair(key.as_str(), value.clone());
        }
        for tensor in &self.tensors {
            let n_rows = tensor.shape.iter().skip(1).product::<u64>().min(1 << 20) as usize;
            let row_len = tensor.shape.first().map_or(0, |&n| n.min(1 << 20) as usize);
            let row_bytes = tensor.ty.row_bytes(row_len.next_multiple_of(tensor.ty.row_unit()));
            let n_bytes = (n_rows * row_bytes.unwrap_or(0)).min(1 << 22);
            let fill = if fill.is_empty() { &[0x2c] } else { fill };
            let mut data = fill.repeat(n_bytes / fill.len() + 1);
            data.truncate(n_bytes);
            file = file.tensor(tensor.name.as_str(), &tensor.shape, tensor.ty, data);
        }
        file.build()
    }
}

/// Without `general.alignment`: the builder would pad as far as it says.
const KEYS: [&str; 39] = [
    "general.architecture",
    "general.name",
    "ARCH.context_length",
    "ARCH.embedding_length",
    "ARCH.block_count",
    "ARCH.feed_forward_length",
    "ARCH.attention.head_count",
    "ARCH.attention.head_count_kv",
    "ARCH.attention.key_length",
    "ARCH.attention.value_length",
    "ARCH.attention.layer_norm_rms_epsilon",
    "ARCH.attention.layer_norm_epsilon",
    "ARCH.attention.sliding_window",
    "ARCH.rope.dimension_count",
    "ARCH.rope.freq_base",
    "ARCH.rope.freq_base_swa",
    "ARCH.rope.scaling.type",
    "ARCH.rope.scaling.factor",
    "ARCH.rope.scaling.attn_factor",
    "ARCH.rope.scaling.original_context_length",
    "ARCH.rope.scaling.yarn_log_multiplier",
    "ARCH.pooling_type",
    "ARCH.vocab_size",
    "split.count",
    "tokenizer.ggml.model",
    "tokenizer.ggml.pre",
    "tokenizer.ggml.bos_token_id",
    "tokenizer.ggml.eos_token_id",
    "tokenizer.ggml.eot_token_id",
    "tokenizer.ggml.unknown_token_id",
    "tokenizer.ggml.seperator_token_id",
    "tokenizer.ggml.cls_token_id",
    "tokenizer.ggml.fim_pre_token_id",
    "tokenizer.ggml.add_bos_token",
    "tokenizer.ggml.add_eos_token",
    "tokenizer.ggml.add_space_prefix",
    "tokenizer.ggml.normalizer.lowercase",
    "tokenizer.ggml.token_type_count",
    "tokenizer.chat_template",
];

const TEXTS: [&str; 16] = [
    "gpt2",
    "llama",
    "bert",
    "qwen2",
    "phi-2",
    "deepseek-coder",
    "starcoder",
    "llama-bpe",
    "default",
    "yarn",
    "linear",
    "none",
    "phi3",
    "jina-v2-code",
    "gemma3",
    "{{ messages[0].content }}",
];

const TENSORS: [&str; 18] = [
    "token_embd.weight",
    "token_types.weight",
    "position_embd.weight",
    "output.weight",
    "output.bias",
    "output_norm.weight",
    "output_norm.bias",
    "rope_freqs.weight",
    "LAYER.attn_qkv.weight",
    "LAYER.attn_qkv.bias",
    "LAYER.attn_q_norm.weight",
    "LAYER.attn_k_norm.bias",
    "LAYER.attn_q.bias",
    "LAYER.ffn_norm.weight",
    "LAYER.ffn_gate.weight",
    "LAYER.ffn_down.bias",
    "LAYER.post_attention_norm.weight",
    "LAYER.post_ffw_norm.bias",
];
