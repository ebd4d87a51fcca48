//! Tiny models without committed weights: a recipe and a formula give the file that llama.cpp read.
//!
//! `tests/tools/golden_model.py` wrote `tests/golden/models/CASE.json` (keys, tensors, llama.cpp's
//! argmax and margins, the SHA-256 of each file) and `CASE.f32` (its logits). The formula for the
//! bytes of a tensor stands in that script's first lines; this is its second implementation.

use std::path::PathBuf;

use half::{bf16, f16};
use jetforge::base::hash::hex;
use jetforge::inference::gguf::{GgufBuilder, Value};
use jetforge::inference::quant::TensorType;
use serde_json::Value as Json;
use sha2::{Digest, Sha256};

/// Every case, by the name of its files.
pub const CASES: [&str; 17] = [
    "llama",
    "llama-linear",
    "llama-yarn",
    "llama-llama3",
    "qwen2",
    "qwen2-yarn",
    "qwen3",
    "phi2",
    "stablelm",
    "stablelm-parallel",
    "starcoder2",
    "starcoder2-untied",
    "gemma3",
    "bert",
    "bert-mean",
    "bert-rank",
    "bert-rank-direct",
];

/// A model of one architecture, in one or all tensor types.
pub struct Recipe {
    json: Json,
    values: Vec<f32>,
}

/// What llama.cpp answers on one file of a recipe.
pub struct Golden {
    /// The type of every matrix in the file.
    pub ty: TensorType,
    /// SHA-256 of the file, in hexadecimal.
    pub sha256: String,
    /// Most likely token after each position; empty for an encoder.
    pub argmax: Vec<usize>,
    /// How much higher its logit is than the next one's.
    pub margin: Vec<f32>,
    /// Logits `[n_sampled, n_vocab]`; of an encoder embeddings `[n_text, n_embd]`; of a reranker
    /// scores `[n_text, 1]`.
    pub rows: Vec<Vec<f32>>,
    /// How far llama.cpp is from itself with exact activations, in a logit.
    pub noise: f32,
}

impl Recipe {
    /// Reads a case from `tests/golden/models/`.
    pub fn read(case: &str) -> Recipe {
        let name = format!("models/{case}");
        Recipe { json: golden_json(&name), values: golden_floats(&name) }
    }

    /// Reads a LoRA adapter from `tests/golden/lora/`: a file without golden values of its own.
    pub fn adapter(name: &str) -> Recipe {
        Recipe { json: golden_json(&format!("lora/{name}")), values: vec![] }
    }

    /// Its keys and their values.
    pub fn keys(&self) -> Vec<(String, Value)> {
        let rows = self.json["metadata"].as_array().expect("a recipe has keys");
        let key = |row: &Json| row[0].as_str().expect("a key is text").to_owned();
        rows.iter().map(|row| (key(row), value(&row[1], &row[2]))).collect()
    }

    /// The same with another value under a key that it has.
    pub fn with(mut self, key: &str, value: impl Into<Json>) -> Recipe {
        let rows = self.json["metadata"].as_array_mut().expect("a recipe has keys");
        let row = rows.iter_mut().find(|row| row[0] == key).expect("the recipe has the key");
        row[2] = value.into();
        self
    }

    /// The same with an array of `n` items, those it has and others behind them.
    pub fn with_items(self, key: &str, n: usize, other: impl Fn(usize) -> Json) -> Recipe {
        let rows = self.json["metadata"].as_array().expect("a recipe has keys");
        let row = rows.iter().find(|row| row[0] == key).expect("the recipe has the key");
        let mut items = row[2].as_array().expect("an array").clone();
        items.extend((items.len()..n).map(other));
        self.with(key, items)
    }

    /// SHA-256 of the first file.
    pub fn sha256(&self) -> &str {
        self.json["files"][0]["sha256"].as_str().expect("a recipe has files")
    }

    /// Tokens fed to the model, or for an encoder those of each text one after the other.
    pub fn tokens(&self) -> Vec<u32> {
        ints(&self.json["tokens"])
    }

    /// Whether a text is scored as an answer to the first one.
    pub fn is_reranker(&self) -> bool {
        self.tensors().iter().any(|tensor| tensor.0 == "cls.output.weight")
    }

    /// Texts given to an encoder; empty otherwise.
    pub fn texts(&self) -> Vec<&str> {
        let texts = self.json["texts"].as_array();
        texts.map_or(vec![], |t| t.iter().filter_map(Json::as_str).collect())
    }

    /// Positions whose logits are in `Golden::rows`.
    pub fn sampled(&self) -> Vec<usize> {
        ints(&self.json["sampled"])
    }

    /// What llama.cpp answers, file by file.
    pub fn goldens(&self) -> Vec<Golden> {
        let files = self.json["files"].as_array().expect("a recipe has files");
        let per_file = self.values.len() / files.len();
        let n_rows = self.texts().len().max(self.sampled().len());
        let one = |(file, values): (&Json, &[f32])| Golden {
            ty: type_by_name(file["type"].as_str().unwrap()),
            sha256: file["sha256"].as_str().unwrap().to_owned(),
            argmax: ints(&file["argmax"]),
            margin: floats(&file["margin"]),
            rows: values.chunks(per_file / n_rows).map(<[f32]>::to_vec).collect(),
            noise: file["noise"].as_f64().unwrap() as f32,
        };
        files.iter().zip(self.values.chunks(per_file)).map(one).collect()
    }

    /// The GGUF file whose matrices are of type `ty`.
    pub fn build(&self, ty: TensorType) -> Vec<u8> {
        let mut file = GgufBuilder::new();
        for row in self.json["metadata"].as_array().unwrap() {
            file = file.pair(row[0].as_str().unwrap(), value(&row[1], &row[2]));
        }
        for (name, shape, is_matrix, center, amp) in self.tensors() {
            let ty = if is_matrix { ty } else { TensorType::F32 };
            file = file.tensor(name, &shape, ty, tensor_bytes(name, &shape, ty, center, amp));
        }
        file.build()
    }

    /// Names of the matrices, which are of the type asked for.
    pub fn matrices(&self) -> Vec<&str> {
        let matrices = self.tensors().into_iter().filter(|t| t.2);
        matrices.map(|t| t.0).collect()
    }

    fn tensors(&self) -> Vec<(&str, Vec<u64>, bool, f32, f32)> {
        let rows = self.json["tensors"].as_array().unwrap();
        let float = |v: &Json| v.as_f64().unwrap() as f32;
        rows.iter()
            .map(|t| {
                let (name, is_matrix) = (t[0].as_str().unwrap(), t[4].as_bool().unwrap());
                (name, ints(&t[1]), is_matrix, float(&t[2]), float(&t[3]))
            })
            .collect()
    }
}

/// `tests/golden/NAME.json`
pub fn golden_json(name: &str) -> Json {
    serde_json::from_slice(&golden(&format!("{name}.json"))).expect("goldens are JSON")
}

/// `tests/golden/NAME.f32`
pub fn golden_floats(name: &str) -> Vec<f32> {
    floats_of(&golden(&format!("{name}.f32")))
}

fn golden(name: &str) -> Vec<u8> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn type_by_name(name: &str) -> TensorType {
    let found = TensorType::ALL.into_iter().find(|t| t.name() == name);
    found.unwrap_or_else(|| panic!("tensor type {name}"))
}

/// The integers of a JSON array, or of an array of arrays.
pub fn ints<T: TryFrom<u64>>(json: &Json) -> Vec<T> {
    let nested = |v: &Json| match v {
        Json::Array(items) => items.clone(),
        one => vec![one.clone()],
    };
    let flat = json.as_array().map_or(vec![], |a| a.iter().flat_map(nested).collect::<Vec<_>>());
    flat.iter().map(|v| v.as_u64().and_then(|n| T::try_from(n).ok()).unwrap()).collect()
}

fn floats(json: &Json) -> Vec<f32> {
    let items = json.as_array().map_or(&[][..], Vec::as_slice);
    items.iter().map(|v| v.as_f64().unwrap() as f32).collect()
}

fn floats_of(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
}

fn value(kind: &Json, json: &Json) -> Value {
    match kind.as_str().unwrap() {
        "str" => json.as_str().unwrap().into(),
        "bool" => json.as_bool().unwrap().into(),
        "u32" => u32::try_from(json.as_u64().unwrap()).unwrap().into(),
        "f32" => (json.as_f64().unwrap() as f32).into(),
        "f32s" => floats(json).as_slice().into(),
        "i32s" => ints::<i32>(json).as_slice().into(),
        "strs" => {
            let items = json.as_array().unwrap().iter();
            items.map(|s| s.as_str().unwrap()).collect::<Vec<_>>().as_slice().into()
        }
        other => panic!("value type {other}"),
    }
}

/// splitmix64, seeded with the tensor's name.
fn words(name: &str) -> impl Iterator<Item = u64> {
    let digest = Sha256::digest(name.as_bytes());
    let mut state = u64::from_le_bytes(digest[..8].try_into().unwrap());
    std::iter::repeat_with(move || {
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (state ^ (state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    })
}

/// The weights of the tensor `name` in the form of type `ty`.
fn tensor_bytes(name: &str, shape: &[u64], ty: TensorType, center: f32, amp: f32) -> Vec<u8> {
    let n = shape.iter().product::<u64>() as usize;
    let scale = |w: u64| center + amp * ((w >> 40) as f32 / (1 << 23) as f32 - 1.0);
    let weights = words(name).take(n).map(scale);
    match ty {
        TensorType::F32 => weights.flat_map(f32::to_le_bytes).collect(),
        TensorType::F16 => weights.flat_map(|w| f16::from_f32(w).to_le_bytes()).collect(),
        TensorType::BF16 => weights.flat_map(|w| bf16::from_f32(w).to_le_bytes()).collect(),
        _ => {
            let row_bytes = ty.row_bytes(shape[0] as usize).expect("rows are whole blocks");
            let stream = words(name).flat_map(u64::to_le_bytes);
            let mut bytes: Vec<u8> = stream.take(n / shape[0] as usize * row_bytes).collect();
            let rows = bytes.chunks_mut(row_bytes);
            rows.flat_map(|row| row.chunks_mut(ty.block_bytes())).for_each(|b| tame(ty, b));
            bytes
        }
    }
}

/// Gives a block of random bytes a scale, and a minimum, that keep its weights about 0.05 in size.
fn tame(ty: TensorType, block: &mut [u8]) {
    // (offset of the scale, its exponent field, offset of the minimum and its distance in bits)
    let (at, exponent, minimum): (usize, u16, Option<(usize, u16)>) = match ty {
        TensorType::Q4_0 => (0, 8, None),
        TensorType::Q4_1 => (0, 8, Some((2, 0x8C00))),
        TensorType::Q5_0 => (0, 7, None),
        TensorType::Q5_1 => (0, 7, Some((2, 0x9000))),
        TensorType::Q8_0 | TensorType::IQ4_NL => (0, 4, None),
        TensorType::Q2_K => (80, 7, Some((82, 0x0200))),
        TensorType::Q3_K => (108, 4, None),
        TensorType::Q4_K | TensorType::N4 => (0, 2, Some((2, 0x0C00))),
        TensorType::N3 => (0, 3, Some((2, 0x0800))),
        TensorType::Q5_K => (0, 1, Some((2, 0x1000))),
        TensorType::Q6_K => (208, 0, None),
        TensorType::IQ4_XS => (0, 0, None),
        TensorType::IQ3_XXS | TensorType::IQ3_S => (0, 3, None),
        TensorType::F32 | TensorType::F16 | TensorType::BF16 => return,
    };
    let kept = if minimum.is_some() { 0x01FF } else { 0x83FF };
    let random = u16::from_le_bytes([block[at], block[at + 1]]);
    let bits = (random & kept) | (exponent << 10);
    block[at..at + 2].copy_from_slice(&bits.to_le_bytes());
    if let Some((at, distance)) = minimum {
        block[at..at + 2].copy_from_slice(&(bits + distance).to_le_bytes());
    }
}

#[test]
fn recipes_build_the_files_that_llama_cpp_read() {
    for case in CASES {
        let recipe = Recipe::read(case);
        for golden in recipe.goldens() {
            let digest = hex(&Sha256::digest(recipe.build(golden.ty)));
            assert_eq!(digest, golden.sha256, "{case} {}", golden.ty);
        }
    }
}
