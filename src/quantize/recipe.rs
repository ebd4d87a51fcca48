//! Recipes: which tensor gets which type.
//!
//! ```text
//! kept as it is     vectors, norms, positions, token types: small, and the model leans on them
//! head              the output matrix, or the embeddings that stand in for it
//! more bits         the values of attention and the second half of the network, in the first and
//!                   last eighth of the layers and every third between, or in all of them
//! the rest          the recipe's own type
//! ```
//!
//! The recipes with GGUF's names make the choices of llama.cpp's, so that a file has the size and
//! the quality that its name promises. Where a row has no whole blocks of the type, another type
//! takes its place, again as there; the plan says so.

use crate::inference::TensorType;
use TensorType::{
    BF16, F16, F32, N3, N4, Q2_K, Q3_K, Q4_0, Q4_1, Q4_K, Q5_0, Q5_1, Q5_K, Q6_K, Q8_0,
};

/// A recipe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Recipe {
    /// The name that people know, `Q4_K_M` for example.
    pub name: &'static str,
    /// What most tensors get.
    pub base: TensorType,
    /// What llama.cpp writes as `general.file_type`; ours have no number there.
    pub file_type: Option<u32>,
    /// For whom it is, in a few words.
    pub about: &'static str,
}

const fn recipe(
    name: &'static str,
    base: TensorType,
    file_type: u32,
    about: &'static str,
) -> Recipe {
    Recipe { name, base, file_type: Some(file_type), about }
}

impl Recipe {
    /// Every recipe, small ones first, ours before those of GGUF.
    pub const ALL: [Recipe; 22] = [
        Recipe { name: "N3", base: N3, file_type: None, about: "3.5 bits, head at 4.5" },
        Recipe { name: "N3_S", base: N3, file_type: None, about: "3.5 bits, 4.5 in attention" },
        Recipe { name: "N3_M", base: N3, file_type: None, about: "3.5 bits, 4.5 where it tells" },
        Recipe { name: "N4", base: N4, file_type: None, about: "4.5 bits" },
        Recipe { name: "N4_M", base: N4, file_type: None, about: "4.5 bits, 6.6 where it tells" },
        recipe("Q2_K", Q2_K, 10, "2.6 bits and more where it tells"),
        recipe("Q3_K_S", Q3_K, 11, "3.4 bits"),
        recipe("Q3_K_M", Q3_K, 12, "3.4 bits, 4.5 to 5.5 where it tells"),
        recipe("Q3_K_L", Q3_K, 13, "3.4 bits, 5.5 where it tells"),
        recipe("Q4_0", Q4_0, 2, "4.5 bits, the simplest"),
        recipe("Q4_1", Q4_1, 3, "5 bits, with a minimum"),
        recipe("Q4_K_S", Q4_K, 14, "4.5 bits, 5.5 in the first layers"),
        recipe("Q4_K_M", Q4_K, 15, "4.5 bits, 6.6 where it tells"),
        recipe("Q5_0", Q5_0, 8, "5.5 bits, simple"),
        recipe("Q5_1", Q5_1, 9, "6 bits, with a minimum"),
        recipe("Q5_K_S", Q5_K, 16, "5.5 bits"),
        recipe("Q5_K_M", Q5_K, 17, "5.5 bits, 6.6 where it tells"),
        recipe("Q6_K", Q6_K, 18, "6.6 bits"),
        recipe("Q8_0", Q8_0, 7, "8.5 bits, next to no loss"),
        recipe("F16", F16, 1, "16 bits"),
        recipe("BF16", BF16, 32, "16 bits with the range of 32"),
        recipe("F32", F32, 0, "32 bits"),
    ];

    /// The recipe of this name, in capitals or not.
    pub fn find(name: &str) -> Option<Recipe> {
        Recipe::ALL.into_iter().find(|recipe| recipe.name.eq_ignore_ascii_case(name))
    }
}

/// What a tensor is for, as far as recipes care.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// The output matrix, or the embeddings in a model without one.
    Head,
    /// Embeddings of a model with an output matrix.
    Embedding,
    /// Keys of attention.
    Key,
    /// Values of attention, alone or fused with queries and keys.
    Value,
    /// The second half of the feed-forward network.
    Down,
    /// What follows attention.
    AttnOut,
    /// Any other matrix.
    Other,
}

/// What is known of the model when a tensor's type is chosen.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    pub(super) n_layer: usize,
    /// Query heads for each key head.
    pub(super) n_group: usize,
    /// Whether the embeddings are the output matrix as well.
    pub(super) is_tied: bool,
    pub(super) has_importance: bool,
}

/// The role of a tensor that can be quantised, and its layer (0 outside the layers).
pub(super) fn role_of(name: &str, shape: Shape) -> (Role, usize) {
    let layer = name.strip_prefix("blk.").and_then(|rest| rest.split('.').next());
    let layer_idx = layer.and_then(|n| n.parse().ok()).unwrap_or(0);
    let role = match name {
        "output.weight" => Role::Head,
        "token_embd.weight" if shape.is_tied => Role::Head,
        "token_embd.weight" => Role::Embedding,
        _ if name.contains("attn_v.weight") || name.contains("attn_qkv.weight") => Role::Value,
        _ if name.contains("attn_k.weight") => Role::Key,
        _ if name.contains("ffn_down") => Role::Down,
        _ if name.contains("attn_output.weight") => Role::AttnOut,
        _ => Role::Other,
    };
    (role, layer_idx)
}

/// Whether a tensor is a matrix that may lose bits.
pub(super) fn is_quantisable(name: &str, shape: &[u64]) -> bool {
    const KEPT: [&str; 6] =
        ["_norm.weight", "ffn_gate_inp.weight", "position_embd", "token_types", "altup", "laurel"];
    let is_matrix = shape.iter().skip(1).any(|&dim| dim > 1);
    is_matrix && name.ends_with("weight") && !KEPT.iter().any(|part| name.contains(part))
}

/// The type that a recipe gives to a tensor, before its width is looked at.
pub(super) fn choose(recipe: Recipe, role: Role, layer_idx: usize, shape: Shape) -> TensorType {
    let base = recipe.base;
    match recipe.base {
        F32 | F16 | BF16 => base,
        N4 | N3 => choose_native(recipe, role, layer_idx, shape),
        _ if role == Role::Head => {
            if base == Q8_0 {
                Q8_0
            } else {
                Q6_K
            }
        }
        _ if matches!(role, Role::Embedding | Role::Key | Role::Other) => base,
        _ => choose_gguf(recipe, role, layer_idx, shape),
    }
}

/// The first and last eighth of the layers and every third between.
fn is_telling(layer_idx: usize, n_layer: usize) -> bool {
    let eighth = n_layer / 8;
    let is_last = layer_idx >= n_layer.saturating_mul(7) / 8;
    layer_idx < eighth || is_last || (layer_idx - eighth) % 3 == 2
}

fn choose_gguf(recipe: Recipe, role: Role, layer_idx: usize, shape: Shape) -> TensorType {
    let n_layer = shape.n_layer;
    let tells = is_telling(layer_idx, n_layer);
    let first_eighth = layer_idx < n_layer / 8;
    match (recipe.name, role) {
        ("Q2_K", Role::Value) => {
            if shape.n_group >= 4 {
                Q4_K
            } else {
                Q3_K
            }
        }
        ("Q2_K", _) => Q3_K,
        ("Q3_K_M", Role::Value) => {
            if layer_idx < 2 {
                Q5_K
            } else {
                Q4_K
            }
        }
        ("Q3_K_M", Role::Down) => {
            if layer_idx < n_layer / 16 {
                Q5_K
            } else {
                Q4_K
            }
        }
        ("Q3_K_M", Role::AttnOut) => Q4_K,
        ("Q3_K_L", _) => Q5_K,
        ("Q4_K_M" | "Q5_K_M", Role::Value | Role::Down) if tells => Q6_K,
        ("Q4_K_S", Role::Value) if layer_idx < 4 => Q5_K,
        ("Q4_K_S", Role::Down) if first_eighth => Q5_K,
        ("Q4_0", Role::Down) if first_eighth && shape.has_importance => Q4_1,
        ("Q5_0", Role::Down) if first_eighth && shape.has_importance => Q5_1,
        _ => recipe.base,
    }
}

fn choose_native(recipe: Recipe, role: Role, layer_idx: usize, shape: Shape) -> TensorType {
    let ends = layer_idx == 0 || layer_idx.checked_add(1) == Some(shape.n_layer);
    match (recipe.name, role) {
        ("N4_M", Role::Head) => Q6_K,
        ("N4_M", Role::Value) if shape.n_group >= 2 => Q6_K,
        // Where heads share keys and values these are few, and tell most for their bits; what
        // follows attention comes next: see docs/quantize.md.
        ("N3_S" | "N3_M", Role::Value) if shape.n_group >= 2 => Q6_K,
        ("N3_S" | "N3_M", Role::Key) if shape.n_group >= 2 => N4,
        ("N3_S" | "N3_M", Role::Value | Role::AttnOut) => N4,
        ("N3_M", Role::Down) => N4,
        ("N3_M", Role::Key | Role::Other) if ends => N4,
        (_, Role::Head | Role::Embedding) => N4,
        _ => recipe.base,
    }
}

/// The type for rows of `n_cols` that was asked for, or the one that takes its place where they are
/// not whole blocks.
pub(super) fn fit(ty: TensorType, n_cols: u64) -> TensorType {
    let fits = |ty: TensorType| n_cols.is_multiple_of(ty.row_unit() as u64);
    if fits(ty) {
        return ty;
    }
    let smaller = match ty {
        Q2_K | Q3_K => Q4_0,
        Q4_K => Q5_0,
        Q5_K => Q5_1,
        Q6_K => Q8_0,
        _ => F16,
    };
    if fits(smaller) { smaller } else { F16 }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bits a weight of a whole Llama, matrices of `[rows, columns]`.
    fn bits(recipe: &str, n_layer: usize, [n_embd, n_kv, n_ff, n_vocab]: [u64; 4]) -> f64 {
        let recipe = Recipe::find(recipe).expect("a recipe");
        let n_group = (n_embd / n_kv) as usize;
        let shape = Shape { n_layer, n_group, is_tied: false, has_importance: false };
        let of_layer = [
            ("attn_q", [n_embd, n_embd]),
            ("attn_k", [n_kv, n_embd]),
            ("attn_v", [n_kv, n_embd]),
            ("attn_output", [n_embd, n_embd]),
            ("ffn_gate", [n_ff, n_embd]),
            ("ffn_up", [n_ff, n_embd]),
            ("ffn_down", [n_embd, n_ff]),
        ];
        let layers = (0..n_layer)
            .flat_map(|i| of_layer.map(|(name, dims)| (format!("blk.{i}.{name}.weight"), dims)));
        let ends =
            ["token_embd.weight", "output.weight"].map(|name| (name.to_owned(), [n_vocab, n_embd]));
        let (mut n_bits, mut n_weight) = (0.0, 0.0);
        for (name, [n_rows, n_cols]) in layers.chain(ends) {
            let (role, layer_idx) = role_of(&name, shape);
            let ty = fit(choose(recipe, role, layer_idx, shape), n_cols);
            let n = (n_rows * n_cols) as f64;
            n_bits += n * 8.0 * ty.block_bytes() as f64 / ty.block_len() as f64;
            n_weight += n;
        }
        n_bits / n_weight
    }

    #[test]
    fn three_bit_mixes_have_the_bits_that_they_are_named_for() {
        // TinyLlama 1.1B and DeepSeek-Coder 1.3B, whose heads share nothing.
        for (n_layer, dims) in [(22, [2048, 256, 5632, 32_000]), (24, [2048, 2048, 5504, 32_256])] {
            let [small, medium, large] =
                ["N3_S", "N3_M", "N4"].map(|recipe| bits(recipe, n_layer, dims));
            assert!((3.5..=3.8).contains(&small), "{small}");
            assert!(small < medium && medium < large && large == 4.5, "{medium} {large}");
        }
    }
}
