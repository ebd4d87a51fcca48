//! The families of models that a folder may hold, as data: what Hugging Face calls their parts, and
//! what GGUF does.

/// Length of a side of a tensor, by what it counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    /// The width of the model.
    Embd,
    /// All query heads.
    Queries,
    /// All key heads, or value heads.
    Keys,
    /// The width inside the feed-forward network.
    Ff,
}

/// Whether a part has a bias beside its weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Bias {
    Never,
    /// Where the folder has it.
    Some,
    Always,
}

/// A part of each layer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Part {
    pub(super) name: &'static str,
    pub(super) gguf_name: &'static str,
    /// Outermost first; a vector has one.
    pub(super) sides: &'static [Side],
    pub(super) bias: Bias,
    /// Whether the folder may lack it.
    pub(super) is_optional: bool,
}

/// A family.
#[derive(Debug)]
pub(super) struct Family {
    /// What `architectures` says.
    pub(super) classes: &'static [&'static str],
    /// GGUF's name.
    pub(super) arch: &'static str,
    /// What `hidden_act` may say.
    pub(super) activations: &'static [&'static str],
    /// Whether rows of queries and keys go from halves to pairs.
    pub(super) is_paired: bool,
    /// Whether norms subtract the mean and have a bias.
    pub(super) is_layer_norm: bool,
    /// The norm at the end, as the folder calls it.
    pub(super) final_norm: &'static str,
    /// The part of a head that is rotated, where `config.json` is silent.
    pub(super) rotated: f64,
    pub(super) parts: &'static [Part],
}

const fn part(
    name: &'static str,
    gguf_name: &'static str,
    sides: &'static [Side],
    bias: Bias,
) -> Part {
    Part { name, gguf_name, sides, bias, is_optional: false }
}

use Side::{Embd, Ff, Keys, Queries};

const Q: &str = "self_attn.q_proj";
const K: &str = "self_attn.k_proj";
const V: &str = "self_attn.v_proj";

const LLAMA: [Part; 9] = [
    part("input_layernorm", "attn_norm", &[Embd], Bias::Never),
    part(Q, "attn_q", &[Queries, Embd], Bias::Some),
    part(K, "attn_k", &[Keys, Embd], Bias::Some),
    part(V, "attn_v", &[Keys, Embd], Bias::Some),
    part("self_attn.o_proj", "attn_output", &[Embd, Queries], Bias::Some),
    part("post_attention_layernorm", "ffn_norm", &[Embd], Bias::Never),
    part("mlp.gate_proj", "ffn_gate", &[Ff, Embd], Bias::Never),
    part("mlp.up_proj", "ffn_up", &[Ff, Embd], Bias::Never),
    part("mlp.down_proj", "ffn_down", &[Embd, Ff], Bias::Never),
];

const PHI: [Part; 7] = [
    part("input_layernorm", "attn_norm", &[Embd], Bias::Always),
    part(Q, "attn_q", &[Queries, Embd], Bias::Always),
    part(K, "attn_k", &[Keys, Embd], Bias::Always),
    part(V, "attn_v", &[Keys, Embd], Bias::Always),
    part("self_attn.dense", "attn_output", &[Embd, Queries], Bias::Always),
    part("mlp.fc1", "ffn_up", &[Ff, Embd], Bias::Always),
    part("mlp.fc2", "ffn_down", &[Embd, Ff], Bias::Always),
];

const STABLELM: [Part; 9] = [
    part("input_layernorm", "attn_norm", &[Embd], Bias::Always),
    part(Q, "attn_q", &[Queries, Embd], Bias::Some),
    part(K, "attn_k", &[Keys, Embd], Bias::Some),
    part(V, "attn_v", &[Keys, Embd], Bias::Some),
    part("self_attn.o_proj", "attn_output", &[Embd, Queries], Bias::Never),
    // Layers whose two halves run side by side have one norm.
    Part {
        is_optional: true,
        ..part("post_attention_layernorm", "ffn_norm", &[Embd], Bias::Always)
    },
    part("mlp.gate_proj", "ffn_gate", &[Ff, Embd], Bias::Never),
    part("mlp.up_proj", "ffn_up", &[Ff, Embd], Bias::Never),
    part("mlp.down_proj", "ffn_down", &[Embd, Ff], Bias::Never),
];

/// Every family.
pub(super) const FAMILIES: [Family; 4] = [
    Family {
        classes: &["LlamaForCausalLM", "LLaMAForCausalLM"],
        arch: "llama",
        activations: &["silu", "swish"],
        is_paired: true,
        is_layer_norm: false,
        final_norm: "model.norm",
        rotated: 1.0,
        parts: &LLAMA,
    },
    Family {
        classes: &["Qwen2ForCausalLM"],
        arch: "qwen2",
        activations: &["silu", "swish"],
        is_paired: false,
        is_layer_norm: false,
        final_norm: "model.norm",
        rotated: 1.0,
        parts: &LLAMA,
    },
    Family {
        classes: &["PhiForCausalLM"],
        arch: "phi2",
        activations: &["gelu_new", "gelu_pytorch_tanh", "gelu"],
        is_paired: false,
        is_layer_norm: true,
        final_norm: "model.final_layernorm",
        rotated: 0.5,
        parts: &PHI,
    },
    Family {
        classes: &["StableLmForCausalLM", "StableLMEpochForCausalLM"],
        arch: "stablelm",
        activations: &["silu", "swish"],
        is_paired: false,
        is_layer_norm: true,
        final_norm: "model.norm",
        rotated: 0.25,
        parts: &STABLELM,
    },
];
