//! A model's numbers, read from the file's metadata and checked for sense.

use super::{Arch, ModelError};
use crate::base::limits::{LAYERS_MAX, VOCAB_MAX};
use crate::inference::backend::NormKind;
use crate::inference::gguf::Gguf;

/// How the rows of a text become one vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pooling {
    /// The file says nothing: the first row of an encoder, the last of other models.
    None,
    /// The mean over the rows.
    Mean,
    /// The first row.
    Cls,
    /// The last row.
    Last,
    /// A score from a head on an encoder's first row.
    Rank,
}

/// The numbers.
#[derive(Clone, Debug, PartialEq)]
pub struct Hparams {
    /// Architecture.
    pub arch: Arch,
    /// Tokens of the vocabulary.
    pub n_vocab: usize,
    /// Context that the model was trained on.
    pub n_ctx_train: usize,
    /// Model width.
    pub n_embd: usize,
    /// Width of the feed-forward network.
    pub n_ff: usize,
    /// Layers.
    pub n_layer: usize,
    /// Query heads.
    pub n_head: usize,
    /// Key and value heads.
    pub n_kv_head: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Values of a head that are rotated.
    pub n_rot: usize,
    /// Added to the variance in norms.
    pub norm_eps: f32,
    /// Base of the rotary frequencies.
    pub rope_theta: f32,
    /// Base for layers with a sliding window.
    pub rope_theta_window: f32,
    /// Positions that windowed layers see.
    pub window: Option<usize>,
    /// Every layer but each `window_every`-th has the window.
    pub window_every: usize,
    /// Factor on attention scores.
    pub attention_scale: f32,
    /// Pooling that the file asks for.
    pub pooling: Pooling,
}

/// Reads keys of one architecture.
pub(super) struct Keys<'a> {
    gguf: &'a Gguf,
    arch: &'static str,
}

impl<'a> Keys<'a> {
    pub(super) fn new(gguf: &'a Gguf, arch: &'static str) -> Self {
        Keys { gguf, arch }
    }

    pub(super) fn key(&self, key: &str) -> String {
        format!("{}.{key}", self.arch)
    }

    pub(super) fn f32(&self, key: &str) -> Result<Option<f32>, ModelError> {
        let value = self.gguf.metadata().f32(&self.key(key))?;
        match value {
            Some(v) if !v.is_finite() => Err(self.bad(key, v, "it must be finite")),
            value => Ok(value),
        }
    }

    pub(super) fn str(&self, key: &str) -> Result<Option<&'a str>, ModelError> {
        Ok(self.gguf.metadata().str(&self.key(key))?)
    }

    /// A count, at least 1 and at most `max`.
    pub(super) fn count(&self, key: &str, max: usize) -> Result<Option<usize>, ModelError> {
        let Some(n) = self.gguf.metadata().u32(&self.key(key))?.map(|n| n as usize) else {
            return Ok(None);
        };
        if n == 0 || n > max {
            return Err(self.bad(key, n, &format!("it must lie in 1..={max}")));
        }
        Ok(Some(n))
    }

    fn need<T>(&self, key: &str, value: Option<T>) -> Result<T, ModelError> {
        value.ok_or_else(|| ModelError::KeyMissing { key: self.key(key) })
    }

    pub(super) fn bad(&self, key: &str, value: impl ToString, reason: &str) -> ModelError {
        ModelError::Value {
            key: self.key(key),
            value: value.to_string(),
            reason: reason.to_owned(),
        }
    }
}

/// Widths beyond which a file is taken for broken.
const WIDTH_MAX: usize = 1 << 20;
const HEADS_MAX: usize = 4096;
const CONTEXT_MAX: usize = 1 << 28;

impl Hparams {
    /// Reads the numbers of a file.
    ///
    /// # Errors
    /// If the architecture is unknown, or a key is missing or makes no sense.
    pub fn from_gguf(gguf: &Gguf) -> Result<Hparams, ModelError> {
        let name = gguf.metadata().str("general.architecture")?;
        let name =
            name.ok_or_else(|| ModelError::KeyMissing { key: "general.architecture".to_owned() })?;
        let arch = Arch::find(name).ok_or_else(|| ModelError::Architecture {
            name: name.to_owned(),
            supported: Arch::names(),
        })?;
        let keys = Keys::new(gguf, arch.name);
        let need = |key: &str, max| keys.need(key, keys.count(key, max)?);
        let n_embd = need("embedding_length", WIDTH_MAX)?;
        let n_head = need("attention.head_count", HEADS_MAX)?;
        let n_kv_head = keys.count("attention.head_count_kv", HEADS_MAX)?.unwrap_or(n_head);
        let head_dim = keys.count("attention.key_length", WIDTH_MAX)?.unwrap_or(n_embd / n_head);
        if n_head % n_kv_head != 0 {
            let reason = format!("it must divide the {n_head} query heads");
            return Err(keys.bad("attention.head_count_kv", n_kv_head, &reason));
        }
        if head_dim == 0 || head_dim % 8 != 0 {
            let reason = "the width of a head must be a multiple of 8";
            return Err(keys.bad("attention.key_length", head_dim, reason));
        }
        if keys.count("attention.value_length", WIDTH_MAX)?.is_some_and(|n| n != head_dim) {
            let reason = "keys and values of different widths are not supported";
            return Err(keys.bad("attention.value_length", "another width", reason));
        }
        let n_rot = keys.count("rope.dimension_count", WIDTH_MAX)?.unwrap_or(head_dim);
        if n_rot > head_dim || n_rot % 2 != 0 {
            let reason = "it must be even and at most the width of a head";
            return Err(keys.bad("rope.dimension_count", n_rot, reason));
        }
        let eps_key = match arch.norm {
            NormKind::Rms => "attention.layer_norm_rms_epsilon",
            NormKind::Layer => "attention.layer_norm_epsilon",
        };
        let window = gguf.metadata().u32(&keys.key("attention.sliding_window"))?;
        Ok(Hparams {
            arch,
            n_vocab: n_vocab(gguf)?,
            n_ctx_train: need("context_length", CONTEXT_MAX)?,
            n_embd,
            n_ff: need("feed_forward_length", WIDTH_MAX)?,
            n_layer: need("block_count", LAYERS_MAX as usize)?,
            n_head,
            n_kv_head,
            head_dim,
            n_rot,
            norm_eps: keys.need(eps_key, keys.f32(eps_key)?)?,
            rope_theta: keys.f32("rope.freq_base")?.unwrap_or(10_000.0),
            rope_theta_window: keys.f32("rope.freq_base_swa")?.unwrap_or(10_000.0),
            window: window.filter(|&w| w > 0 && arch.name == "gemma3").map(|w| w as usize),
            window_every: 6,
            attention_scale: 1.0 / (head_dim as f32).sqrt(),
            pooling: pooling(&keys, gguf)?,
        })
    }

    /// Whether a layer has the sliding window.
    pub fn is_windowed(&self, layer_idx: usize) -> bool {
        self.window.is_some() && layer_idx % self.window_every != self.window_every - 1
    }
}

/// Rows of the embedding table.
fn n_vocab(gguf: &Gguf) -> Result<usize, ModelError> {
    let name = "token_embd.weight";
    let missing = || ModelError::TensorMissing { name: name.to_owned() };
    let info = gguf.tensor(name).ok_or_else(missing)?;
    let n = info.shape.get(1).copied().unwrap_or(1);
    if n > VOCAB_MAX as u64 {
        return Err(ModelError::Value {
            key: name.to_owned(),
            value: n.to_string(),
            reason: format!("a vocabulary holds at most {VOCAB_MAX} tokens"),
        });
    }
    Ok(n as usize)
}

fn pooling(keys: &Keys<'_>, gguf: &Gguf) -> Result<Pooling, ModelError> {
    Ok(match gguf.metadata().u32(&keys.key("pooling_type"))? {
        None | Some(0) => Pooling::None,
        Some(1) => Pooling::Mean,
        Some(2) => Pooling::Cls,
        Some(3) => Pooling::Last,
        Some(4) => Pooling::Rank,
        Some(n) => return Err(keys.bad("pooling_type", n, "it must lie in 0..=4")),
    })
}
