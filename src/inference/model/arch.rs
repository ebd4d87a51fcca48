//! The supported architectures, as rows of switches.
//!
//! Tensor names and defaults are those of the GGUF files that llama.cpp writes; where a row says
//! nothing, the file's tensors decide (see `forward`).

use crate::inference::backend::{Activation, NormKind, RopeStyle};

/// How attention and feed-forward join the residual stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Residual {
    /// `x += attn(norm(x)); x += ffn(norm(x))`; without a second norm in the file, both read the
    /// first one and are added together.
    PreNorm,
    /// `x = norm(x + attn(x)); x = norm(x + ffn(x))`
    PostNorm,
}

/// What distinguishes one architecture from another.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Arch {
    /// `general.architecture`.
    pub name: &'static str,
    /// Which norm.
    pub norm: NormKind,
    /// How values of a head are paired by the rotary embedding; `None` for learned positions.
    pub rope: Option<RopeStyle>,
    /// The feed-forward network's function.
    pub activation: Activation,
    /// Residual wiring.
    pub residual: Residual,
    /// Whether tokens see only what is before them.
    pub causal: bool,
    /// Whether embeddings are multiplied by `sqrt(n_embd)`.
    pub scale_embd: bool,
}

/// The llama row, from which the others differ.
const LLAMA: Arch = Arch {
    name: "llama",
    norm: NormKind::Rms,
    rope: Some(RopeStyle::Pairs),
    activation: Activation::Silu,
    residual: Residual::PreNorm,
    causal: true,
    scale_embd: false,
};

const NEOX: Option<RopeStyle> = Some(RopeStyle::Halves);

/// Every architecture that runs.
const SUPPORTED: [Arch; 8] = [
    LLAMA,
    Arch { name: "qwen2", rope: NEOX, ..LLAMA },
    Arch { name: "qwen3", rope: NEOX, ..LLAMA },
    Arch { name: "phi2", norm: NormKind::Layer, rope: NEOX, activation: Activation::Gelu, ..LLAMA },
    Arch { name: "stablelm", norm: NormKind::Layer, rope: NEOX, ..LLAMA },
    Arch {
        name: "starcoder2",
        norm: NormKind::Layer,
        rope: NEOX,
        activation: Activation::Gelu,
        ..LLAMA
    },
    Arch { name: "gemma3", rope: NEOX, activation: Activation::Gelu, scale_embd: true, ..LLAMA },
    Arch {
        name: "bert",
        norm: NormKind::Layer,
        rope: None,
        activation: Activation::Gelu,
        residual: Residual::PostNorm,
        causal: false,
        ..LLAMA
    },
];

impl Arch {
    /// The architecture called `name`.
    pub fn find(name: &str) -> Option<Arch> {
        SUPPORTED.into_iter().find(|a| a.name == name)
    }

    /// The names of all, for messages.
    pub fn names() -> String {
        SUPPORTED.map(|a| a.name).join(", ")
    }
}
