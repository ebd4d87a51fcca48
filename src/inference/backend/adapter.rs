//! LoRA adapters: changes of low rank to a model's matrices, from GGUF files as llama.cpp has them.
//!
//! ```text
//! y = W x + s alpha / rank B (A x)     NAME.lora_a = A [rank, n_in], NAME.lora_b = B [n_out, rank]
//! ```
//!
//! `s` is the request's scale; an `alpha` of 0 stands for the rank. The pair of the token embedding
//! is stored for look-ups, A as `[n_vocab, rank]`: it changes `Embed`, and not an output matrix
//! that shares the table.
//!
//! A plan knows nothing of adapters: an [`Adapter`] is looked up by the weight at hand. It is made
//! for one plan, or half of one, and holds its matrices as f32 whatever the file's type.

use std::collections::BTreeMap;

use super::{Op, Plan, WeightId, WeightSpec};
use crate::base::limits::LORA_RANK_MAX;
use crate::inference::gguf::{Gguf, GgufError, TensorInfo};

/// Why a file is not an adapter of this model.
#[derive(Debug, thiserror::Error)]
pub enum AdapterError {
    /// A key has the wrong type.
    #[error(transparent)]
    Gguf(#[from] GgufError),
    /// A key says that the file is something else.
    #[error("key '{key}' is {got}, but an adapter for this model needs {expected}")]
    Key {
        /// The key.
        key: &'static str,
        /// What it should say.
        expected: String,
        /// What it says.
        got: String,
    },
    /// A file without a pair.
    #[error("the adapter changes nothing: it has no pair of lora_a and lora_b")]
    Empty,
    /// A tensor that is no half of a pair.
    #[error("tensor '{name}' is neither a lora_a nor a lora_b")]
    Tensor {
        /// The tensor.
        name: String,
    },
    /// Half of a pair.
    #[error("tensor '{name}' has a lora_a or a lora_b, but not both")]
    Half {
        /// The model's tensor.
        name: String,
    },
    /// A pair for a tensor that the model lacks or does not multiply with.
    #[error("the adapter changes '{name}', which is no matrix of this model")]
    NoMatrix {
        /// The tensor.
        name: String,
    },
    /// A pair of other shapes than the model's tensor needs.
    #[error(
        "the adapter's pair for '{name}' has shapes {a:?} and {b:?}, which do not fit the model's \
         {base:?}"
    )]
    Shape {
        /// The model's tensor.
        name: String,
        /// Shape of lora_a, innermost first.
        a: Vec<u64>,
        /// Shape of lora_b, innermost first.
        b: Vec<u64>,
        /// Shape of the model's tensor, innermost first.
        base: Vec<u64>,
    },
    /// A rank beyond reason.
    #[error("the adapter's pair for '{name}' has rank {rank}, more than {LORA_RANK_MAX}")]
    Rank {
        /// The model's tensor.
        name: String,
        /// Its rank.
        rank: u64,
    },
}

/// An adapter, bound to the weights of one plan.
#[derive(Debug)]
pub struct Adapter {
    parts: Vec<Option<AdapterPart>>,
    skipped: Vec<String>,
}

/// What an adapter adds to one weight.
#[derive(Debug)]
pub struct AdapterPart {
    /// Width of the pair's inner side.
    pub rank: usize,
    /// Little-endian f32: `[rank, n_in]`, or for a table `[n_vocab, rank]`.
    pub a: Vec<u8>,
    /// Little-endian f32, `[n_out, rank]`.
    pub b: Vec<u8>,
    /// Rows of `b`.
    pub n_out: usize,
    /// `alpha / rank`, or 1 for an `alpha` of 0.
    pub scale: f32,
}

/// How a plan uses a weight that an adapter can change.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Use {
    Product,
    Table,
}

const TOKEN_EMBD: &str = "token_embd.weight";

impl Adapter {
    /// Reads an adapter for `plan`, which is of a model of architecture `arch`.
    ///
    /// # Errors
    /// If the file is no adapter, one for another architecture, or its shapes do not fit.
    pub fn read(gguf: &Gguf, plan: &Plan, arch: &str) -> Result<Adapter, AdapterError> {
        let file = AdapterFile::read(gguf, arch)?;
        file.check_is_used(&[plan])?;
        file.adapter(plan)
    }

    /// Reads an adapter for a plan that was split: each half takes the pairs of its own matrices.
    ///
    /// # Errors
    /// As [`Adapter::read`].
    pub fn read_halves(
        gguf: &Gguf,
        (head, tail): (&Plan, &Plan),
        arch: &str,
    ) -> Result<(Adapter, Adapter), AdapterError> {
        let file = AdapterFile::read(gguf, arch)?;
        file.check_is_used(&[head, tail])?;
        Ok((file.adapter(head)?, file.adapter(tail)?))
    }

    /// What it adds to `weight`, if anything.
    pub fn part(&self, weight: WeightId) -> Option<&AdapterPart> {
        self.parts.get(weight.0)?.as_ref()
    }

    /// What it adds to each weight of the plan.
    pub fn into_parts(self) -> Vec<Option<AdapterPart>> {
        self.parts
    }

    /// Norm vectors of the file, which have no effect, here as in llama.cpp.
    pub fn skipped(&self) -> &[String] {
        &self.skipped
    }

    /// Bytes of its matrices.
    pub fn bytes(&self) -> usize {
        self.parts.iter().flatten().map(|part| part.a.len() + part.b.len()).sum()
    }
}

/// An adapter's file, whose tensors are pairs.
struct AdapterFile<'a> {
    gguf: &'a Gguf,
    pairs: Pairs<'a>,
    skipped: Vec<String>,
    alpha: f32,
}

impl<'a> AdapterFile<'a> {
    /// Checks what the file says of itself, and finds its pairs.
    fn read(gguf: &'a Gguf, arch: &str) -> Result<AdapterFile<'a>, AdapterError> {
        let metadata = gguf.metadata();
        for (key, expected) in
            [("general.type", "adapter"), ("adapter.type", "lora"), ("general.architecture", arch)]
        {
            let got = metadata.str(key)?.unwrap_or("missing").to_owned();
            if got != expected {
                return Err(AdapterError::Key { key, expected: expected.to_owned(), got });
            }
        }
        // Such an adapter works only from certain tokens on: applied throughout it would be wrong.
        let key = "adapter.alora.invocation_tokens";
        if metadata.get(key).is_some() {
            let (expected, got) = ("no invocation tokens".to_owned(), "present".to_owned());
            return Err(AdapterError::Key { key, expected, got });
        }
        let alpha = metadata.f32("adapter.lora.alpha")?.unwrap_or(0.0);
        let (pairs, skipped) = pairs(gguf)?;
        if pairs.is_empty() {
            return Err(AdapterError::Empty);
        }
        Ok(AdapterFile { gguf, pairs, skipped, alpha })
    }

    /// Refuses a pair that none of the plans has a matrix for.
    fn check_is_used(&self, plans: &[&Plan]) -> Result<(), AdapterError> {
        let is_used = |name: &&String| {
            plans.iter().any(|plan| {
                uses(plan).iter().any(|&(WeightId(i), usage)| {
                    plan.weights[i].name == **name && is_for(name, usage)
                })
            })
        };
        match self.pairs.keys().find(|name| !is_used(name)) {
            Some(name) => Err(AdapterError::NoMatrix { name: name.clone() }),
            None => Ok(()),
        }
    }

    /// What of it a plan uses.
    fn adapter(&self, plan: &Plan) -> Result<Adapter, AdapterError> {
        let mut parts: Vec<Option<AdapterPart>> = plan.weights.iter().map(|_| None).collect();
        for (WeightId(i), usage) in uses(plan) {
            let spec = &plan.weights[i];
            let pair = self.pairs.get(&spec.name).filter(|_| is_for(&spec.name, usage));
            if let Some(&pair) = pair {
                parts[i] = Some(part(self.gguf, spec, usage, pair, self.alpha)?);
            }
        }
        Ok(Adapter { parts, skipped: self.skipped.clone() })
    }
}

/// Whether the pair for the tensor `name` changes this use of it.
fn is_for(name: &str, usage: Use) -> bool {
    (usage == Use::Table) == (name == TOKEN_EMBD)
}

/// The weights that an adapter can change.
fn uses(plan: &Plan) -> Vec<(WeightId, Use)> {
    let usage = |op: &Op| match *op {
        Op::MatMul { weight, .. } => Some((weight, Use::Product)),
        Op::Embed { table, .. } => Some((table, Use::Table)),
        _ => None,
    };
    plan.ops.iter().filter_map(usage).collect()
}

type Pairs<'a> = BTreeMap<String, (&'a TensorInfo, &'a TensorInfo)>;

/// The pairs of a file by the name of the model's tensor, and the tensors that have no effect.
fn pairs(gguf: &Gguf) -> Result<(Pairs<'_>, Vec<String>), AdapterError> {
    let mut halves: BTreeMap<&str, [Option<&TensorInfo>; 2]> = BTreeMap::new();
    let mut skipped = Vec::new();
    for tensor in gguf.tensors() {
        let name = tensor.name.as_str();
        if let Some(base) = name.strip_suffix(".lora_a") {
            halves.entry(base).or_default()[0] = Some(tensor);
        } else if let Some(base) = name.strip_suffix(".lora_b") {
            halves.entry(base).or_default()[1] = Some(tensor);
        } else if name.ends_with("_norm.weight") {
            skipped.push(name.to_owned());
        } else {
            return Err(AdapterError::Tensor { name: name.to_owned() });
        }
    }
    let whole = |(name, halves): (&str, [Option<_>; 2])| match halves {
        [Some(a), Some(b)] => Ok((name.to_owned(), (a, b))),
        _ => Err(AdapterError::Half { name: name.to_owned() }),
    };
    Ok((halves.into_iter().map(whole).collect::<Result<_, _>>()?, skipped))
}

/// Checks a pair against the rows of a weight, and takes its numbers.
fn part(
    gguf: &Gguf,
    spec: &WeightSpec,
    usage: Use,
    (a, b): (&TensorInfo, &TensorInfo),
    alpha: f32,
) -> Result<AdapterPart, AdapterError> {
    let dims = |t: &TensorInfo| -> [u64; 2] {
        let dim = |i: usize| t.shape.get(i).copied().unwrap_or(1);
        [dim(0), t.shape.iter().skip(1).product::<u64>().max(dim(1))]
    };
    let ([n_in, n_out], rank) = ([spec.shape[0], spec.shape[1]], dims(b)[0]);
    let (want_a, want_b) = match usage {
        Use::Product => ([n_in, rank], [rank, n_out]),
        Use::Table => ([rank, n_out], [rank, n_in]),
    };
    let name = spec.name.clone();
    if dims(a) != want_a || dims(b) != want_b || rank == 0 {
        let (a, b, base) = (a.shape.clone(), b.shape.clone(), spec.shape.clone());
        return Err(AdapterError::Shape { name, a, b, base });
    }
    if rank > LORA_RANK_MAX {
        return Err(AdapterError::Rank { name, rank });
    }
    let rank = rank as usize;
    let (row_start, n_out) = match usage {
        Use::Product => (spec.row_start, spec.n_rows),
        Use::Table => (0, spec.n_cols),
    };
    let b = &floats(gguf, b)[4 * row_start * rank..][..4 * n_out * rank];
    let scale = if alpha == 0.0 { 1.0 } else { alpha / rank as f32 };
    Ok(AdapterPart { rank, a: floats(gguf, a), b: b.to_vec(), n_out, scale })
}

/// A tensor as little-endian f32.
fn floats(gguf: &Gguf, tensor: &TensorInfo) -> Vec<u8> {
    let mut values = vec![0f32; tensor.n_elements() as usize];
    gguf.read(tensor, &mut values);
    values.into_iter().flat_map(f32::to_le_bytes).collect()
}
