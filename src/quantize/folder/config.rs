//! `config.json`: what the architecture's keys are, and which tensors the model must have.

use serde_json::Value as Json;

use super::FolderError;
use crate::base::limits::{LAYERS_MAX, VOCAB_MAX};
use crate::inference::gguf::Value;

/// The widest matrix that is believed.
const WIDTH_MAX: u64 = 1 << 20;
/// Positions and heads likewise.
const CONTEXT_MAX: u64 = 1 << 28;
const HEADS_MAX: u64 = 4096;

/// The numbers of a model.
#[derive(Debug)]
pub(super) struct Config {
    json: Json,
    /// GGUF's name of the architecture.
    pub(super) arch: &'static str,
    pub(super) n_vocab: u64,
    n_layer: u64,
    n_embd: u64,
    n_ff: u64,
    n_head: u64,
    n_kv_head: u64,
    head_dim: u64,
}

/// A tensor that the model has.
pub(super) struct Wanted {
    /// Its name in the folder.
    pub(super) name: String,
    /// Its name in GGUF.
    pub(super) gguf_name: String,
    /// Outermost first.
    pub(super) shape: Vec<u64>,
    /// Heads whose rows are to be put in pairs.
    pub(super) n_head: Option<u64>,
}

impl Config {
    pub(super) fn new(json: Json) -> Result<Config, FolderError> {
        let arch = match json["architectures"][0].as_str() {
            Some("LlamaForCausalLM" | "LLaMAForCausalLM") => "llama",
            Some("Qwen2ForCausalLM") => "qwen2",
            other => {
                return Err(FolderError::Unsupported {
                    key: "architectures",
                    value: other.unwrap_or("nothing").to_owned(),
                    supported: "LlamaForCausalLM and Qwen2ForCausalLM are",
                });
            }
        };
        let number = |key: &'static str, max: u64, usual: Option<u64>| {
            let value = &json[key];
            let found = if value.is_null() { usual } else { value.as_u64() };
            found.filter(|n| (1..=max).contains(n)).ok_or_else(|| FolderError::Unsupported {
                key,
                value: value.to_string(),
                supported: "it has to be a number of a usual size",
            })
        };
        let n_embd = number("hidden_size", WIDTH_MAX, None)?;
        let n_head = number("num_attention_heads", HEADS_MAX, None)?;
        let config = Config {
            arch,
            n_vocab: number("vocab_size", VOCAB_MAX as u64, None)?,
            n_layer: number("num_hidden_layers", LAYERS_MAX.into(), None)?,
            n_embd,
            n_ff: number("intermediate_size", WIDTH_MAX, None)?,
            n_head,
            n_kv_head: number("num_key_value_heads", HEADS_MAX, Some(n_head))?,
            head_dim: number("head_dim", WIDTH_MAX, Some((n_embd / n_head).max(1)))?,
            json,
        };
        config.check()?;
        Ok(config)
    }

    /// Refuses what would be computed differently.
    fn check(&self) -> Result<(), FolderError> {
        let refused = |key: &'static str, supported: &'static str| FolderError::Unsupported {
            key,
            value: self.json[key].to_string(),
            supported,
        };
        let says = |key: &str, usual: &[&str]| {
            let value = &self.json[key];
            value.is_null() || value.as_str().is_some_and(|text| usual.contains(&text))
        };
        if !says("hidden_act", &["silu", "swish"]) {
            return Err(refused("hidden_act", "silu is"));
        }
        if self.json["use_sliding_window"] == true {
            return Err(refused("use_sliding_window", "attention to everything is"));
        }
        if self.json["mlp_bias"] == true {
            return Err(refused("mlp_bias", "a network without biases is"));
        }
        if self.head_dim % 2 == 1 || self.n_head % self.n_kv_head != 0 {
            return Err(refused("num_key_value_heads", "heads of pairs in whole groups are"));
        }
        Ok(())
    }

    /// A number that may stand in one of two sections.
    fn float(&self, key: &str, section: &str) -> Option<f64> {
        self.json[key].as_f64().or_else(|| self.json[section][key].as_f64())
    }

    /// A token's number, for folders whose tokenizer names none.
    pub(super) fn token_id(&self, key: &str) -> Option<u64> {
        let value = &self.json[key];
        value.as_u64().or_else(|| value[0].as_u64())
    }

    /// The keys of the architecture, under llama.cpp's names.
    pub(super) fn pairs(&self, name: &str) -> Result<Vec<(String, Value)>, FolderError> {
        let arch = self.arch;
        let n_ctx = self.json["max_position_embeddings"].as_u64().unwrap_or(2048);
        let eps = self.json["rms_norm_eps"].as_f64().unwrap_or(1e-6);
        let theta = self.float("rope_theta", "rope_parameters").unwrap_or(10_000.0);
        let mut pairs: Vec<(String, Value)> = vec![
            ("general.architecture".to_owned(), arch.into()),
            ("general.type".to_owned(), "model".into()),
            ("general.name".to_owned(), name.into()),
        ];
        let mut add = |key: &str, value: Value| pairs.push((format!("{arch}.{key}"), value));
        add("vocab_size", (self.n_vocab as u32).into());
        add("context_length", (n_ctx.min(CONTEXT_MAX) as u32).into());
        add("embedding_length", (self.n_embd as u32).into());
        add("block_count", (self.n_layer as u32).into());
        add("feed_forward_length", (self.n_ff as u32).into());
        add("attention.head_count", (self.n_head as u32).into());
        add("attention.head_count_kv", (self.n_kv_head as u32).into());
        add("attention.layer_norm_rms_epsilon", (eps as f32).into());
        add("rope.freq_base", (theta as f32).into());
        add("rope.dimension_count", (self.head_dim as u32).into());
        if !self.json["head_dim"].is_null() {
            add("attention.key_length", (self.head_dim as u32).into());
            add("attention.value_length", (self.head_dim as u32).into());
        }
        for (key, value) in self.rope_scaling()? {
            add(key, value);
        }
        Ok(pairs)
    }

    /// How positions are stretched.
    fn rope_scaling(&self) -> Result<Vec<(&'static str, Value)>, FolderError> {
        let old = &self.json["rope_scaling"];
        let scaling = if old.is_null() { &self.json["rope_parameters"] } else { old };
        let kind = scaling["rope_type"].as_str().or_else(|| scaling["type"].as_str());
        let refused = || FolderError::Unsupported {
            key: "rope_scaling",
            value: scaling.to_string(),
            supported: "none, linear and yarn with a factor are",
        };
        let factor = || scaling["factor"].as_f64().filter(|f| f.is_finite() && *f > 0.0);
        let mut pairs = Vec::new();
        match kind {
            None if scaling.is_null() || scaling["factor"].is_null() => return Ok(pairs),
            Some("default") => return Ok(pairs),
            Some(kind @ ("linear" | "yarn")) => {
                let factor = factor().ok_or_else(refused)?;
                pairs.push(("rope.scaling.type", kind.into()));
                pairs.push(("rope.scaling.factor", (factor as f32).into()));
                if kind == "yarn" {
                    let n_ctx = scaling["original_max_position_embeddings"].as_u64();
                    let n_ctx = n_ctx.and_then(|n| u32::try_from(n).ok()).ok_or_else(refused)?;
                    pairs.push(("rope.scaling.original_context_length", n_ctx.into()));
                }
            }
            _ => return Err(refused()),
        }
        Ok(pairs)
    }

    /// Every tensor, in the order in which the model uses them; `has` says which of the optional
    /// ones are there.
    pub(super) fn tensors(&self, has: impl Fn(&str) -> bool) -> Vec<Wanted> {
        let (n_q, n_kv) = (self.n_head * self.head_dim, self.n_kv_head * self.head_dim);
        let is_llama = self.arch == "llama";
        let pairs_of = |n_head: u64| is_llama.then_some(n_head);
        let (embd, ff) = (self.n_embd, self.n_ff);
        let mut wanted = Vec::new();
        let mut add = |name: String, gguf: String, shape: &[u64], n_head: Option<u64>| {
            wanted.push(Wanted { name, gguf_name: gguf, shape: shape.to_vec(), n_head });
        };
        let embeddings = "model.embed_tokens.weight".to_owned();
        add(embeddings, "token_embd.weight".to_owned(), &[self.n_vocab, embd], None);
        for i in 0..self.n_layer {
            for (name, gguf, shape, n_head) in [
                ("input_layernorm", "attn_norm", &[embd][..], None),
                ("self_attn.q_proj", "attn_q", &[n_q, embd], pairs_of(self.n_head)),
                ("self_attn.k_proj", "attn_k", &[n_kv, embd], pairs_of(self.n_kv_head)),
                ("self_attn.v_proj", "attn_v", &[n_kv, embd], None),
                ("self_attn.o_proj", "attn_output", &[embd, n_q], None),
                ("post_attention_layernorm", "ffn_norm", &[embd], None),
                ("mlp.gate_proj", "ffn_gate", &[ff, embd], None),
                ("mlp.up_proj", "ffn_up", &[ff, embd], None),
                ("mlp.down_proj", "ffn_down", &[embd, ff], None),
            ] {
                let (name, gguf) = (format!("model.layers.{i}.{name}"), format!("blk.{i}.{gguf}"));
                add(format!("{name}.weight"), format!("{gguf}.weight"), shape, n_head);
                let bias = format!("{name}.bias");
                if name.contains("self_attn") && has(&bias) {
                    add(bias, format!("{gguf}.bias"), &shape[..1], n_head);
                }
            }
        }
        add("model.norm.weight".to_owned(), "output_norm.weight".to_owned(), &[embd], None);
        if has("lm_head.weight") && !self.is_tied() {
            let head = "lm_head.weight".to_owned();
            add(head, "output.weight".to_owned(), &[self.n_vocab, embd], None);
        }
        wanted
    }

    fn is_tied(&self) -> bool {
        self.json["tie_word_embeddings"] == true
    }

    /// Whether a tensor may be left out: a head that is the embeddings again, and tables that are
    /// computed.
    pub(super) fn is_spare(&self, name: &str) -> bool {
        let is_computed =
            name.ends_with("rotary_emb.inv_freq") || name.ends_with("attn.masked_bias");
        is_computed || (name == "lm_head.weight" && self.is_tied())
    }
}
