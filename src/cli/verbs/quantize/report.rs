//! The report: perplexity, divergence and agreement of recipes beside the source, in one table.
//!
//! Every recipe becomes a file beside the target, is measured against the source and removed;
//! the one that was asked for stays if it has a name. Two models are in memory at a time.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};

use serde_json::{Value as Json, json};

use super::{Job, default_target, note_fallbacks, tokens};
use crate::app::App;
use crate::base::format::bytes;
use crate::cli::terminal::{STRONG, print_json, steps_bar, styled, table};
use crate::inference::{DeviceChoice, LoadOptions, Model, ModelSource, TokenId};
use crate::quantize::{
    Comparison, Plan, PlanOptions, QuantizeError, Recipe, compare, parse_recipe,
};

/// How far a recipe's size may be from that of the one asked for, to be shown beside it.
const SIZE_DIFFERENCE_MAX: f64 = 0.10;

/// One line of the table.
struct Line {
    plan: Plan,
    comparison: Comparison,
}

/// A file that goes when its measurement is over.
struct Temporary(PathBuf);

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// A hidden name beside the source, of this process alone.
fn temporary_name(source: &Path, recipe: Recipe) -> PathBuf {
    let target = default_target(source, recipe);
    let name = target.file_name().unwrap_or_default().to_string_lossy().into_owned();
    target.with_file_name(format!(".{name}.{}.report", std::process::id()))
}

/// Measures `plan` and those to compare it with, and prints the table.
pub fn run(job: &Job<'_>, plan: &Plan, text: &Path, target: Option<PathBuf>) -> anyhow::Result<()> {
    note_fallbacks(plan);
    let source = job.app.model_source()?;
    // Source and candidate run at the same time, on half of the threads each.
    let options = LoadOptions {
        n_threads: Some((job.n_threads / 2).max(1)),
        device: DeviceChoice::Cpu,
        ..job.app.load_options_of(&source)
    };
    let load = |source: &ModelSource| {
        Model::load(source, &options).map_err(|error| App::inference(source, error))
    };
    let mut model = load(&source)?;
    let tokens = tokens(&model, text)?;
    let mut plans = vec![plan.clone()];
    plans.extend(others(job, plan)?);
    let mut lines = Vec::new();
    for (i, plan) in plans.into_iter().enumerate() {
        let kept = target.as_ref().filter(|_| i == 0);
        let temporary = temporary_name(&job.args.source, plan.recipe);
        let path = kept.unwrap_or(&temporary);
        let _guard = kept.is_none().then(|| Temporary(temporary.clone()));
        job.write_quietly(&plan, path, kept.is_none() || job.args.force)?;
        let candidate = ModelSource::File(path.clone());
        let mut loaded = load(&candidate)?;
        let comparison = measure(job, &mut model, &mut loaded, &tokens, plan.recipe)
            .map_err(|error| App::inference(&source, error))?;
        lines.push(Line { plan, comparison });
    }
    if job.args.json {
        print_json(&lines.iter().map(to_json).collect())?;
        return Ok(());
    }
    print(&lines)
}

fn measure(
    job: &Job<'_>,
    source: &mut Model,
    model: &mut Model,
    tokens: &[TokenId],
    recipe: Recipe,
) -> Result<Comparison, crate::inference::InferenceError> {
    let n_ctx = job.args.ctx_size.min(source.n_ctx()).min(model.n_ctx());
    let bar = steps_bar(recipe.name);
    let comparison = compare(source, model, tokens, n_ctx, &mut |done, total| {
        bar.set_length(total as u64);
        bar.set_position(done as u64);
    });
    bar.finish_and_clear();
    comparison
}

/// The recipes that were named, or GGUF's whose files are about as large.
fn others(job: &Job<'_>, plan: &Plan) -> Result<Vec<Plan>, QuantizeError> {
    let plain =
        || PlanOptions { allow_requantize: job.args.allow_requantize, ..PlanOptions::default() };
    let plan_of =
        |recipe: Recipe| Plan::new(job.source.gguf(), recipe, &plain(), job.importance.as_ref());
    if !job.args.against.is_empty() {
        return job.args.against.iter().map(|name| plan_of(parse_recipe(name)?)).collect();
    }
    let gguf = Recipe::ALL.into_iter().filter(|r| r.file_type.is_some() && *r != plan.recipe);
    let plans: Result<Vec<Plan>, QuantizeError> = gguf.map(plan_of).collect();
    let size = |plan: &Plan| plan.tensor_bytes() as f64;
    let is_near = |other: &Plan| (size(other) / size(plan) - 1.0).abs() <= SIZE_DIFFERENCE_MAX;
    Ok(plans?.into_iter().filter(is_near).collect())
}

/// The types of a plan: for each kind of tensor, how many have which.
fn types(plan: &Plan) -> BTreeMap<String, BTreeMap<&'static str, usize>> {
    let mut kinds: BTreeMap<String, BTreeMap<&'static str, usize>> = BTreeMap::new();
    for tensor in plan.tensors.iter().filter(|tensor| tensor.shape.len() > 1) {
        let kind = tensor.name.strip_prefix("blk.").and_then(|rest| rest.split_once('.'));
        let kind = kind.map_or(tensor.name.as_str(), |(_, kind)| kind);
        let kind = kind.strip_suffix(".weight").unwrap_or(kind).to_owned();
        *kinds.entry(kind).or_default().entry(tensor.to.name()).or_default() += 1;
    }
    kinds
}

fn to_json(line: &Line) -> Json {
    let Line { plan, comparison } = line;
    let tensors = plan.tensors.iter().map(|t| json!({ "name": t.name, "type": t.to.name() }));
    json!({
        "recipe": plan.recipe.name,
        "tensor_bytes": plan.tensor_bytes(),
        "bits_per_weight": plan.bits_per_weight(),
        "source_perplexity": comparison.source_perplexity,
        "perplexity": comparison.perplexity,
        "kl": comparison.kl,
        "kl_99": comparison.kl_99,
        "same_top": comparison.same_top,
        "n_tokens": comparison.n_tokens,
        "tensors": tensors.collect::<Vec<_>>(),
    })
}

fn print(lines: &[Line]) -> anyhow::Result<()> {
    let head = ["recipe", "size", "bits", "perplexity", "more", "KL", "KL 99 %", "same top"];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    for Line { plan, comparison } in lines {
        let more = 100.0 * (comparison.perplexity / comparison.source_perplexity - 1.0);
        rows.push(vec![
            plan.recipe.name.to_owned(),
            bytes(plan.tensor_bytes()),
            format!("{:.2}", plan.bits_per_weight()),
            format!("{:.4}", comparison.perplexity),
            format!("{more:+.2} %"),
            format!("{:.5}", comparison.kl),
            format!("{:.4}", comparison.kl_99),
            format!("{:.2} %", 100.0 * comparison.same_top),
        ]);
    }
    let mut out = anstream::stdout().lock();
    write!(out, "{}", table(&rows))?;
    if let Some(Line { comparison, .. }) = lines.first() {
        writeln!(
            out,
            "source: perplexity {:.4} over {} tokens",
            comparison.source_perplexity, comparison.n_tokens
        )?;
    }
    for Line { plan, .. } in lines {
        let kinds = types(plan).into_iter().map(|(kind, types)| {
            let types = types.into_iter();
            let types: Vec<String> = types.map(|(ty, n)| format!("{n} {ty}")).collect();
            format!("{kind} {}", types.join(" + "))
        });
        let kinds: Vec<String> = kinds.collect();
        writeln!(out, "{} {}", styled(STRONG, plan.recipe.name), kinds.join(", "))?;
    }
    Ok(())
}
