//! The plan: a type and a size for every tensor, known before anything is written.

use std::collections::HashSet;

use fancy_regex::Regex;

use super::recipe::{Recipe, Role, Shape, choose, fit, is_quantisable, role_of};
use super::{Importance, QuantizeError, parse_type};
use crate::inference::gguf::{Gguf, GgufBuilder, Metadata, TensorInfo, Value};
use crate::inference::quant::Form;
use crate::inference::quant::{Codes, TensorType};
use crate::inference::{NativeTensor, Target, outline};

/// What may differ from the recipe.
#[derive(Debug, Default)]
pub struct PlanOptions {
    /// Every matrix gets the recipe's own type.
    pub is_pure: bool,
    /// The type of the output matrix, or of the embeddings that stand in for it.
    pub output: Option<TensorType>,
    /// The type of the embeddings.
    pub embedding: Option<TensorType>,
    /// Types by name; the first pattern that is found in a tensor's name counts.
    pub overrides: Vec<Override>,
    /// Whether weights that are quantised already may be quantised again.
    pub allow_requantize: bool,
}

/// A type for tensors by their name.
#[derive(Debug)]
pub struct Override {
    pattern: String,
    regex: Regex,
    ty: TensorType,
}

impl std::str::FromStr for Override {
    type Err = QuantizeError;

    fn from_str(text: &str) -> Result<Override, QuantizeError> {
        let wrong = || QuantizeError::Override { text: text.to_owned() };
        let (pattern, ty) = text.rsplit_once('=').ok_or_else(wrong)?;
        let regex = Regex::new(pattern).map_err(|error| QuantizeError::Pattern {
            pattern: pattern.to_owned(),
            reason: error.to_string(),
        })?;
        Ok(Override { pattern: pattern.to_owned(), regex, ty: parse_type(ty)? })
    }
}

/// What becomes of one tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorPlan {
    /// The name in the file.
    pub name: String,
    /// Innermost first.
    pub shape: Vec<u64>,
    /// The type in the source.
    pub from: TensorType,
    /// The type in the target.
    pub to: TensorType,
    /// The type that was wanted, where the rows are not whole blocks of it.
    pub instead_of: Option<TensorType>,
    /// Bytes in the target.
    pub n_bytes: u64,
    /// Whether an importance row guides the rounding.
    pub is_guided: bool,
}

impl TensorPlan {
    /// Weights of the tensor.
    pub fn n_weights(&self) -> u64 {
        self.shape.iter().product()
    }
}

/// What becomes of a model.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The recipe.
    pub recipe: Recipe,
    /// Every tensor, in the order of the source.
    pub tensors: Vec<TensorPlan>,
}

impl Plan {
    /// Chooses a type for every tensor of `source`.
    ///
    /// # Errors
    /// If weights would be quantised twice, a pattern fits no matrix, or the importance matrix is
    /// of another model.
    pub fn new(
        source: &Gguf,
        recipe: Recipe,
        options: &PlanOptions,
        importance: Option<&Importance>,
    ) -> Result<Plan, QuantizeError> {
        if has_panels(source) {
            let target = source.native_target().unwrap_or("a processor").to_owned();
            return Err(QuantizeError::PackedSource { target });
        }
        let shape = shape_of(source, importance.is_some())?;
        let mut used = HashSet::new();
        let mut tensors = Vec::with_capacity(source.tensors().len());
        for info in source.tensors() {
            let wanted = wanted(info, recipe, options, shape, &mut used);
            let to = fit(wanted, info.shape[0]);
            let is_float = |ty| Codes::of(ty) == Codes::Float;
            if to != info.ty && !is_float(info.ty) && !options.allow_requantize {
                let (tensor, ty) = (info.name.clone(), info.ty);
                return Err(QuantizeError::Requantize { tensor, ty });
            }
            let n_cols = info.shape[0] as usize;
            let row = match importance {
                Some(importance) if to != info.ty => importance.row(&info.name, n_cols)?,
                _ => None,
            };
            let row_bytes = to.row_bytes(n_cols).unwrap_or(0) as u64;
            tensors.push(TensorPlan {
                name: info.name.clone(),
                shape: info.shape.clone(),
                from: info.ty,
                to,
                instead_of: (to != wanted).then_some(wanted),
                n_bytes: row_bytes * info.shape[1..].iter().product::<u64>(),
                is_guided: row.is_some() && !is_float(to),
            });
        }
        let unused = options.overrides.iter().find(|o| !used.contains(o.pattern.as_str()));
        if let Some(unused) = unused {
            return Err(QuantizeError::PatternUnused { pattern: unused.pattern.clone() });
        }
        if let Some(importance) = importance
            && !tensors.iter().any(|tensor| tensor.is_guided)
            && tensors.iter().any(|tensor| tensor.to != tensor.from)
        {
            return Err(QuantizeError::ImportanceUnused { path: importance.path().to_owned() });
        }
        Ok(Plan { recipe, tensors })
    }

    /// Bytes of all tensors.
    pub fn tensor_bytes(&self) -> u64 {
        self.tensors.iter().map(|tensor| tensor.n_bytes).sum()
    }

    /// Bits that a weight takes on the whole, vectors included.
    pub fn bits_per_weight(&self) -> f64 {
        let n_weights: u64 = self.tensors.iter().map(TensorPlan::n_weights).sum();
        8.0 * self.tensor_bytes() as f64 / n_weights.max(1) as f64
    }

    /// What the target says of the model: what the source says, what llama.cpp says of a quantised
    /// file, and `origin`.
    pub(super) fn metadata(&self, source: &Gguf, origin: &[(String, Value)]) -> Metadata {
        let mut metadata = source.metadata().clone();
        // What an earlier run said of itself is not true of this one.
        const OF_A_RUN: [&str; 4] =
            ["split.", "quantize.imatrix.", "jetforge.quantize.", "jetforge.native."];
        let is_kept = |key: &str| !OF_A_RUN.iter().any(|prefix| key.starts_with(prefix));
        let pairs = metadata.iter().filter(|(key, _)| is_kept(key));
        metadata = Metadata::from_pairs(pairs.map(|(key, value)| (key, value.clone())));
        if self.tensors.iter().any(|tensor| tensor.to != tensor.from) {
            metadata.set("general.quantization_version", 2u32);
            // A number that stands for another mixture would be worse than llama.cpp's "guessed".
            metadata.set("general.file_type", self.recipe.file_type.unwrap_or(1024));
        }
        for (key, value) in origin {
            metadata.set(key.as_str(), value.clone());
        }
        metadata
    }

    /// The file up to its tensor data.
    pub(super) fn header(&self, metadata: &Metadata) -> GgufBuilder<'static> {
        let pairs = metadata.iter();
        let file =
            pairs.fold(GgufBuilder::new(), |file, (key, value)| file.pair(key, value.clone()));
        let tensors = self.tensors.iter();
        tensors.fold(file, |file, tensor| {
            file.tensor(tensor.name.as_str(), &tensor.shape, tensor.to, Vec::new())
                .announce(tensor.n_bytes)
        })
    }

    /// The tensors of a file that is packed for a processor.
    pub(super) fn native_tensors(&self) -> Vec<NativeTensor> {
        let tensor = |tensor: &TensorPlan| NativeTensor {
            name: tensor.name.clone(),
            ty: tensor.to,
            shape: tensor.shape.clone(),
        };
        self.tensors.iter().map(tensor).collect()
    }

    /// The target before it is written, zeros for its weights: to see what memory it will take.
    ///
    /// # Errors
    /// If a tensor has a shape that no file can hold.
    pub fn outline(
        &self,
        source: &Gguf,
        packed_for: Option<Target>,
    ) -> Result<Gguf, QuantizeError> {
        let metadata = self.metadata(source, &[]);
        match packed_for {
            None => Ok(Gguf::outline(&self.header(&metadata))?),
            Some(target) => {
                outline(target, &metadata, self.native_tensors()).map_err(QuantizeError::Native)
            }
        }
    }
}

/// The type for a tensor before its width is looked at; notes the pattern that chose it.
fn wanted<'a>(
    info: &TensorInfo,
    recipe: Recipe,
    options: &'a PlanOptions,
    shape: Shape,
    used: &mut HashSet<&'a str>,
) -> TensorType {
    if !is_quantisable(&info.name, &info.shape) {
        return info.ty;
    }
    let found = |o: &&Override| o.regex.is_match(&info.name).unwrap_or(false);
    if let Some(o) = options.overrides.iter().find(found) {
        used.insert(&o.pattern);
        return o.ty;
    }
    let (role, layer_idx) = role_of(&info.name, shape);
    let asked = match role {
        Role::Head if info.name.starts_with("token_embd") => options.embedding.or(options.output),
        Role::Head => options.output,
        Role::Embedding => options.embedding,
        _ => None,
    };
    match asked {
        Some(ty) => ty,
        None if options.is_pure => recipe.base,
        None => choose(recipe, role, layer_idx, shape),
    }
}

fn has_panels(source: &Gguf) -> bool {
    source.tensors().iter().any(|info| info.form != Form::Rows)
}

fn shape_of(source: &Gguf, has_importance: bool) -> Result<Shape, QuantizeError> {
    let metadata = source.metadata();
    let arch = metadata.str("general.architecture")?.unwrap_or_default();
    let number = |key: &str| metadata.u64(&format!("{arch}.{key}"));
    let n_layer = number("block_count")?.unwrap_or(0) as usize;
    let n_head = number("attention.head_count").ok().flatten().unwrap_or(1);
    let n_kv_head = number("attention.head_count_kv").ok().flatten().unwrap_or(n_head);
    Ok(Shape {
        n_layer,
        n_group: (n_head / n_kv_head.max(1)) as usize,
        is_tied: source.tensor("output.weight").is_none(),
        has_importance,
    })
}
