//! `config.json`: what the architecture's keys are, and which tensors the model must have.

use serde_json::Value as Json;

use super::FolderError;
use super::family::{Bias, FAMILIES, Family, Side};
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
    family: &'static Family,
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
        let class = json["architectures"][0].as_str().unwrap_or("nothing");
        let family = FAMILIES.iter().find(|family| family.classes.contains(&class));
        let family = family.ok_or_else(|| FolderError::Unsupported {
            key: "architectures",
            value: class.to_owned(),
            supported: "LlamaForCausalLM, Qwen2ForCausalLM, PhiForCausalLM and \
                        StableLmForCausalLM are",
        })?;
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
            family,
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
        if !says("hidden_act", self.family.activations) {
            return Err(refused("hidden_act", "the one of the family (silu, or gelu for Phi) is"));
        }
        if self.json["qk_layernorm"] == true {
            return Err(refused("qk_layernorm", "queries and keys without norms are"));
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
        let arch = self.family.arch;
        let n_ctx = self.json["max_position_embeddings"].as_u64().unwrap_or(2048);
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
        let (eps_key, eps) = self.epsilon();
        add(eps_key, (eps as f32).into());
        add("rope.freq_base", (theta as f32).into());
        add("rope.dimension_count", self.n_rotated()?.into());
        if arch == "stablelm" {
            let is_parallel = self.json["use_parallel_residual"].as_bool().unwrap_or(true);
            add("use_parallel_residual", is_parallel.into());
        }
        if !self.json["head_dim"].is_null() {
            add("attention.key_length", (self.head_dim as u32).into());
            add("attention.value_length", (self.head_dim as u32).into());
        }
        for (key, value) in self.rope_scaling()? {
            add(key, value);
        }
        Ok(pairs)
    }

    /// What is added to a variance before its root, and GGUF's key of it.
    fn epsilon(&self) -> (&'static str, f64) {
        let number = |key: &str| self.json[key].as_f64();
        match self.family.is_layer_norm {
            false => ("attention.layer_norm_rms_epsilon", number("rms_norm_eps").unwrap_or(1e-6)),
            true => {
                let keys = ["layer_norm_eps", "layer_norm_epsilon", "norm_eps"];
                let eps = keys.into_iter().find_map(number);
                ("attention.layer_norm_epsilon", eps.unwrap_or(1e-5))
            }
        }
    }

    /// Values of a head that positions turn.
    fn n_rotated(&self) -> Result<u32, FolderError> {
        let said = self.float("partial_rotary_factor", "rope_parameters");
        let part = said.or(self.json["rope_pct"].as_f64()).unwrap_or(self.family.rotated);
        let n = (part * self.head_dim as f64) as u32;
        let is_whole = n > 0 && n.is_multiple_of(2) && u64::from(n) <= self.head_dim;
        is_whole.then_some(n).ok_or_else(|| FolderError::Unsupported {
            key: "partial_rotary_factor",
            value: part.to_string(),
            supported: "a part of a head in whole pairs is",
        })
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
        let mut wanted = Vec::new();
        let mut add = |name: String, gguf_name: String, shape: Vec<u64>, n_head: Option<u64>| {
            wanted.push(Wanted { name, gguf_name, shape, n_head });
        };
        let table = vec![self.n_vocab, self.n_embd];
        let gguf = |name: &str| name.to_owned();
        add(gguf("model.embed_tokens.weight"), gguf("token_embd.weight"), table.clone(), None);
        for (i, part) in
            (0..self.n_layer).flat_map(|i| self.family.parts.iter().map(move |p| (i, p)))
        {
            let name = format!("model.layers.{i}.{}", part.name);
            let gguf = format!("blk.{i}.{}", part.gguf_name);
            let weight = format!("{name}.weight");
            if part.is_optional && !has(&weight) {
                continue;
            }
            let shape: Vec<u64> = part.sides.iter().map(|side| self.length_of(*side)).collect();
            let n_head = match part.gguf_name {
                "attn_q" if self.family.is_paired => Some(self.n_head),
                "attn_k" if self.family.is_paired => Some(self.n_kv_head),
                _ => None,
            };
            let bias = format!("{name}.bias");
            add(weight, format!("{gguf}.weight"), shape.clone(), n_head);
            if part.bias == Bias::Always || (part.bias == Bias::Some && has(&bias)) {
                add(bias, format!("{gguf}.bias"), vec![shape[0]], n_head);
            }
        }
        let norm = self.family.final_norm;
        add(format!("{norm}.weight"), gguf("output_norm.weight"), vec![self.n_embd], None);
        if self.family.is_layer_norm {
            add(format!("{norm}.bias"), gguf("output_norm.bias"), vec![self.n_embd], None);
        }
        if has("lm_head.weight") && !self.is_tied() {
            add(gguf("lm_head.weight"), gguf("output.weight"), table, None);
            if has("lm_head.bias") {
                add(gguf("lm_head.bias"), gguf("output.bias"), vec![self.n_vocab], None);
            }
        }
        wanted
    }

    fn length_of(&self, side: Side) -> u64 {
        match side {
            Side::Embd => self.n_embd,
            Side::Queries => self.n_head * self.head_dim,
            Side::Keys => self.n_kv_head * self.head_dim,
            Side::Ff => self.n_ff,
        }
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
