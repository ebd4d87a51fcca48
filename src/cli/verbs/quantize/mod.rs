//! `jetforge quantize`: a smaller file of a model, an importance matrix, a report on what is lost.
//!
//! ```text
//! jetforge quantize SOURCE [TARGET] RECIPE              write it
//! jetforge quantize SOURCE TARGET COPY --target NAME    the same weights, packed for a processor
//! jetforge quantize SOURCE RECIPE --dry-run             show types and sizes
//! jetforge quantize SOURCE --imatrix-from TEXT --write-imatrix FILE
//! jetforge quantize SOURCE RECIPE --report TEXT         measure it beside GGUF's of its size
//! ```
//!
//! The order of arguments is that of llama.cpp's tool.

mod report;

use std::io::Write;
use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::json;

use crate::app::App;
use crate::base::config::Setting;
use crate::base::format::bytes;
use crate::base::limits::THREADS_MAX;
use crate::cli::exit::CliError;
use crate::cli::prompt::read_text;
use crate::cli::terminal::{
    STRONG, bytes_bar, load_bar, note, print_json, steps_bar, styled, table,
};
use crate::cli::{Context, exit};
use crate::inference::{DeviceChoice, EncodeOptions, Gguf, LoadOptions, Model, Target, TokenId};
use crate::quantize::{
    Importance, Override, Plan, PlanOptions, QuantizeError, Recipe, Source, WriteOptions,
    check_target, pack, parse_recipe, parse_type, write,
};

/// Options of `quantize`.
#[derive(Debug, Args)]
pub struct QuantizeArgs {
    /// GGUF file in F16, BF16 or F32, any shard of a split one; or a folder of safetensors
    #[arg(value_name = "SOURCE")]
    source: PathBuf,
    /// File to write (else named after source and recipe), and a recipe: N3, N4, Q4_K_M, Q8_0, ..;
    /// COPY keeps the weights as they are and packs them for `--target`
    #[arg(value_name = "[TARGET] RECIPE", num_args = 0..=2)]
    target_and_recipe: Vec<String>,
    /// Show each tensor's type and size, and write nothing
    #[arg(long)]
    dry_run: bool,
    /// Every matrix in the recipe's own type
    #[arg(long)]
    pure: bool,
    /// Type for tensors by name, as in `ffn_down=Q6_K`; the first that fits counts
    #[arg(long, value_name = "REGEX=TYPE")]
    tensor_type: Vec<String>,
    /// Type of the output matrix
    #[arg(long, value_name = "TYPE", visible_alias = "output-tensor-type")]
    output_type: Option<String>,
    /// Type of the embeddings
    #[arg(long, value_name = "TYPE", visible_alias = "token-embedding-type")]
    embedding_type: Option<String>,
    /// Importance matrix, llama.cpp's GGUF or .dat
    #[arg(long, value_name = "FILE", conflicts_with = "imatrix_from")]
    imatrix: Option<PathBuf>,
    /// Make the importance matrix from a text that is like the work to come
    #[arg(long, value_name = "TEXT")]
    imatrix_from: Option<PathBuf>,
    /// Where to keep it (else beside the source)
    #[arg(long, value_name = "FILE", requires = "imatrix_from")]
    write_imatrix: Option<PathBuf>,
    /// Compare with the source, and with GGUF's recipes of the size, over this text
    #[arg(long, value_name = "TEXT")]
    report: Option<PathBuf>,
    /// Recipes for the report, instead of those of the size
    #[arg(long, value_name = "RECIPE", value_delimiter = ',', requires = "report")]
    against: Vec<String>,
    /// Pack the weights for a processor, so that loading the file is mapping it
    #[arg(long, value_name = "NAME", value_parser = target_names())]
    target: Option<String>,
    /// Quantise weights that are quantised already
    #[arg(long)]
    allow_requantize: bool,
    /// Replace the target if it is there
    #[arg(long)]
    force: bool,
    /// Threads
    #[arg(short, long, value_name = "N")]
    threads: Option<usize>,
    /// Tokens of a window of text
    #[arg(short, long, value_name = "N", default_value_t = 512)]
    ctx_size: usize,
    /// As JSON
    #[arg(long)]
    json: bool,
}

fn target_names() -> clap::builder::PossibleValuesParser {
    Target::ALL.map(Target::name).into()
}

/// What every part of the verb works with.
struct Job<'a> {
    args: &'a QuantizeArgs,
    app: App,
    source: Source,
    importance: Option<Importance>,
    n_threads: usize,
}

/// Does what was asked for.
pub fn run(context: &Context, args: &QuantizeArgs) -> anyhow::Result<u8> {
    if let [target @ .., recipe] = &args.target_and_recipe[..]
        && recipe.eq_ignore_ascii_case("COPY")
    {
        return copy(args, target.first().map(String::as_str));
    }
    let (target, recipe) = match &args.target_and_recipe[..] {
        [] => (None, None),
        [recipe] => (None, Some(parse_recipe(recipe)?)),
        [target, recipe, ..] => (Some(PathBuf::from(target)), Some(parse_recipe(recipe)?)),
    };
    if recipe.is_none() && args.imatrix_from.is_none() {
        let known = Recipe::ALL.map(|recipe| format!("  {:<7} {}", recipe.name, recipe.about));
        let message = format!("name a recipe:\n{}", known.join("\n"));
        return Err(CliError::usage(message).into());
    }
    let app = context.app(settings(args))?;
    let source = open_source(&args.source)?;
    let runs = args.report.is_some() || args.imatrix_from.is_some();
    if runs && !source.is_runnable() {
        return Err(QuantizeError::FolderRuns { path: source.path().to_owned() }.into());
    }
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let n_threads = args.threads.unwrap_or(cores).clamp(1, THREADS_MAX);
    let mut job = Job { args, app, source, importance: None, n_threads };
    job.importance = job.importance()?;
    let Some(recipe) = recipe else { return Ok(exit::OK) };
    let plan = Plan::new(job.source.gguf(), recipe, &job.options()?, job.importance.as_ref())?;
    if args.dry_run {
        show(job.source.gguf(), &plan, args.json)?;
        return Ok(exit::OK);
    }
    match (&args.report, target) {
        (Some(text), target) => report::run(&job, &plan, text, target)?,
        (None, target) => {
            let target = target.unwrap_or_else(|| default_target(&args.source, recipe));
            job.write(&plan, &target)?;
        }
    }
    Ok(exit::OK)
}

/// Packs the weights as they are.
fn copy(args: &QuantizeArgs, target: Option<&str>) -> anyhow::Result<u8> {
    let Some(packed_for) = args.target.as_deref().and_then(Target::from_name) else {
        let message = "COPY changes no weight: name the processor to pack for with --target";
        return Err(CliError::usage(message).into());
    };
    let source = open_source(&args.source)?;
    let named = || format!("{}-{}.gguf", model_stem(&args.source), packed_for.name());
    let target = target.map_or_else(|| args.source.with_file_name(named()), PathBuf::from);
    let written = pack(&source, &target, args.force, packed_for)?;
    if args.json {
        print_json(&json!({"path": written.path, "bytes": written.n_bytes, "recipe": "COPY"}))?;
    } else {
        let mut out = std::io::stdout().lock();
        writeln!(out, "{}: {}", written.path.display(), bytes(written.n_bytes))?;
    }
    Ok(exit::OK)
}

/// Opens a file or a folder; what is wrong with it names it.
pub(super) fn open_source(path: &Path) -> anyhow::Result<Source> {
    Source::open(path).map_err(|error| match error {
        QuantizeError::Gguf(error) => {
            CliError::model(format!("{}: {error}", path.display())).into()
        }
        error => anyhow::Error::new(error),
    })
}

fn settings(args: &QuantizeArgs) -> Vec<Setting> {
    let setting = |key: &str, option: &str, value: toml::Value| Setting {
        key: format!("model.{key}"),
        value,
        option: option.to_owned(),
    };
    let mut settings = vec![
        setting("name", "SOURCE", args.source.display().to_string().into()),
        setting("n_ctx", "--ctx-size", (args.ctx_size as i64).into()),
    ];
    let n_threads = args.threads.map(|n| n.clamp(1, THREADS_MAX) as i64);
    let n_threads = n_threads.map(|n| setting("n_threads", "--threads", n.into()));
    settings.extend(n_threads);
    settings
}

/// `model-f16.gguf` and Q4_K_M give `model-q4_k_m.gguf` in the same directory.
fn default_target(source: &Path, recipe: Recipe) -> PathBuf {
    let name = format!("{}-{}.gguf", model_stem(source), recipe.name.to_ascii_lowercase());
    source.with_file_name(name)
}

/// The name of a model's file without the type of its weights.
pub(super) fn model_stem(source: &Path) -> String {
    let name = source.file_name().unwrap_or_default().to_string_lossy();
    let stem = name.strip_suffix(".gguf").unwrap_or(&name);
    let lower = stem.to_ascii_lowercase();
    let suffixes = ["bf16", "fp16", "f16", "f32"];
    let suffix = suffixes.into_iter().find(|suffix| lower.ends_with(suffix));
    let kept = &stem[..stem.len() - suffix.map_or(0, str::len)];
    kept.trim_end_matches(['-', '.', '_']).to_owned()
}

impl Job<'_> {
    fn options(&self) -> Result<PlanOptions, QuantizeError> {
        let ty = |name: &Option<String>| name.as_deref().map(parse_type).transpose();
        let overrides = self.args.tensor_type.iter().map(|text| text.parse::<Override>());
        Ok(PlanOptions {
            is_pure: self.args.pure,
            output: ty(&self.args.output_type)?,
            embedding: ty(&self.args.embedding_type)?,
            overrides: overrides.collect::<Result<_, _>>()?,
            allow_requantize: self.args.allow_requantize,
        })
    }

    /// The importance matrix that was named, or one made from the text that was named.
    fn importance(&self) -> anyhow::Result<Option<Importance>> {
        if let Some(path) = &self.args.imatrix {
            return Ok(Some(Importance::read(path)?));
        }
        let Some(text) = &self.args.imatrix_from else { return Ok(None) };
        let path = self.args.write_imatrix.clone();
        let path = path.unwrap_or_else(|| self.args.source.with_extension("imatrix.gguf"));
        check_target(&self.source, &path, self.args.force)?;
        let source = self.app.model_source()?;
        let options =
            LoadOptions { device: DeviceChoice::Cpu, ..self.app.load_options_of(&source) };
        let model = load_bar(|progress| Model::load_counted(&source, &options, progress));
        let mut model = model.map_err(|error| App::inference(&source, error))?;
        let tokens = tokens(&model, text)?;
        let n_ctx = self.args.ctx_size.min(model.n_ctx());
        let bar = steps_bar("importance");
        let sums = model.input_sums(&tokens, n_ctx, &mut |done, total| {
            bar.set_length(total as u64);
            bar.set_position(done as u64);
        });
        bar.finish_and_clear();
        let sums = sums.map_err(|error| App::inference(&source, error))?;
        let dataset = text.file_name().unwrap_or_default().to_string_lossy();
        let n_chunk = tokens.len() / n_ctx.max(1);
        let importance = Importance::write(&path, &sums, &dataset, n_ctx, n_chunk)?;
        note(format!(
            "importance of {} matrices from {} tokens: {}",
            importance.n_entries(),
            n_chunk * n_ctx,
            path.display()
        ));
        Ok(Some(importance))
    }

    /// Writes the plan and says what came of it.
    fn write(&self, plan: &Plan, target: &Path) -> anyhow::Result<()> {
        note_fallbacks(plan);
        let started = std::time::Instant::now();
        let written = self.write_quietly(plan, target, self.args.force)?;
        if written.had_leftover {
            note("an unfinished file of an earlier run was replaced");
        }
        let bits = plan.bits_per_weight();
        if self.args.json {
            print_json(&json!({
                "path": written.path,
                "bytes": written.n_bytes,
                "bits_per_weight": bits,
                "recipe": plan.recipe.name,
            }))?;
            return Ok(());
        }
        let mut out = std::io::stdout().lock();
        writeln!(
            out,
            "{}: {} ({bits:.2} bits per weight), {:.1} s",
            written.path.display(),
            bytes(written.n_bytes),
            started.elapsed().as_secs_f64()
        )?;
        Ok(())
    }

    fn write_quietly(
        &self,
        plan: &Plan,
        target: &Path,
        replace: bool,
    ) -> Result<crate::quantize::Written, QuantizeError> {
        let bar = bytes_bar(plan.recipe.name);
        let packed_for = self.args.target.as_deref().and_then(Target::from_name);
        let options = WriteOptions { replace, n_threads: self.n_threads, packed_for };
        let written = write(
            &self.source,
            plan,
            self.importance.as_ref(),
            target,
            options,
            &mut |done, total| {
                bar.set_length(total);
                bar.set_position(done);
            },
        );
        bar.finish_and_clear();
        written
    }
}

fn tokens(model: &Model, text: &Path) -> anyhow::Result<Vec<TokenId>> {
    let options = EncodeOptions { add_special: true, parse_special: false };
    Ok(model.tokenizer().encode(&read_text(text)?, options)?)
}

/// Says which tensors get another type than the recipe means, because of their width.
fn note_fallbacks(plan: &Plan) {
    let replaced: Vec<_> =
        plan.tensors.iter().filter_map(|t| Some((t.instead_of?, t.to, t.shape[0]))).collect();
    let mut seen = Vec::new();
    for kind in &replaced {
        if seen.contains(kind) {
            continue;
        }
        let (wanted, to, n_cols) = kind;
        let n = replaced.iter().filter(|other| *other == kind).count();
        note(format!(
            "{n} tensors of width {n_cols} have no whole blocks of {wanted} and get {to}; \
             {:.2} bits per weight in all",
            plan.bits_per_weight()
        ));
        seen.push(*kind);
    }
}

fn show(source: &Gguf, plan: &Plan, as_json: bool) -> anyhow::Result<()> {
    let alignment = source.alignment();
    let data: u64 = plan.tensors.iter().map(|t| t.n_bytes.next_multiple_of(alignment)).sum();
    if as_json {
        let tensors = plan.tensors.iter().map(|t| {
            json!({
                "name": t.name, "shape": t.shape, "from": t.from.name(), "to": t.to.name(),
                "instead_of": t.instead_of.map(|ty| ty.name()), "bytes": t.n_bytes,
                "importance": t.is_guided,
            })
        });
        print_json(&json!({
            "recipe": plan.recipe.name,
            "tensors": tensors.collect::<Vec<_>>(),
            "tensor_bytes": plan.tensor_bytes(),
            "data_bytes": data,
            "bits_per_weight": plan.bits_per_weight(),
        }))?;
        return Ok(());
    }
    let row = |t: &crate::quantize::TensorPlan| {
        let shape: Vec<String> = t.shape.iter().map(u64::to_string).collect();
        let mut why = if t.is_guided { "importance" } else { "" }.to_owned();
        if let Some(wanted) = t.instead_of {
            why = format!("{why} instead of {wanted}").trim().to_owned();
        }
        let arrow = if t.from == t.to { String::new() } else { format!("-> {}", t.to) };
        vec![t.name.clone(), shape.join(" x "), t.from.to_string(), arrow, bytes(t.n_bytes), why]
    };
    let rows: Vec<Vec<String>> = plan.tensors.iter().map(row).collect();
    let mut out = anstream::stdout().lock();
    write!(out, "{}", table(&rows))?;
    writeln!(
        out,
        "{} {}, {} of tensors (source {}), {:.2} bits per weight",
        styled(STRONG, "total"),
        plan.recipe.name,
        bytes(data),
        bytes(source.tensors().iter().map(|t| t.n_bytes).sum()),
        plan.bits_per_weight()
    )?;
    Ok(())
}
