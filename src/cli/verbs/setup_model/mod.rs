//! `jetforge setup-model`: a model by name, in few bits, with the settings of a board.
//!
//! ```text
//! --from, a path, the store, or a download    weights with 8 bits or more
//!   -> recipe for the bits                    N4_M, N3_M, Q8_0, packed for the board's processor
//!   -> preset for the board                   from the header alone; refuses what cannot fit
//!   -> models/NAME-q4.gguf, its preset        written only when both are known
//! ```
//!
//! What is there already is not made or fetched again. Each step leaves either what it promised or
//! a file that the next run knows as unfinished.

mod choice;

use std::io::Write;
use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::json;

use self::choice::{Bits, early_refusal, other_bits, packed_for, recipe_for};
use super::pull;
use super::quantize::{model_stem, open_source};
use crate::app::App;
use crate::base::config::Setting;
use crate::base::format::bytes;
use crate::base::owner::become_owner_of;
use crate::cli::exit::CliError;
use crate::cli::terminal::{self, STRONG, bytes_bar, note, print_json, styled};
use crate::cli::{Context, exit};
use crate::inference::{Gguf, MemoryPlan, Target, TensorType};
use crate::library::{
    self, Board, CatalogEntry, LibraryError, Preset, PullRequest, choose_preset, file_name_of,
};
use crate::quantize::{Importance, Plan, PlanOptions, Recipe, WriteOptions, write};

/// Options of `setup-model`.
#[derive(Debug, Args)]
pub struct SetupModelArgs {
    /// A name of the catalog or of the store, a GGUF file, or a folder of safetensors
    #[arg(short, long, value_name = "NAME|PATH")]
    model: String,
    /// Bits of a weight: 3bit, 4bit or 8bit
    #[arg(long, value_name = "BITS", default_value = "4bit")]
    quantize: Bits,
    /// Board to fit: nano2gb, nano4gb or pc16gb
    #[arg(long, value_name = "BOARD", default_value = "nano4gb", value_parser = board)]
    optimize: Board,
    /// Less of everything: smaller mixes, half the context, one sequence, q8_0 keys and values
    #[arg(long)]
    low_memory: bool,
    /// Take the weights from this GGUF file or folder
    #[arg(long, value_name = "PATH")]
    from: Option<PathBuf>,
    /// Importance matrix, llama.cpp's GGUF or .dat
    #[arg(long, value_name = "FILE")]
    imatrix: Option<PathBuf>,
    /// Quantise weights that have fewer than 8 bits already
    #[arg(long)]
    allow_requantize: bool,
    /// Say what would be done, and write nothing
    #[arg(long)]
    dry_run: bool,
    /// Make the file again if it is there
    #[arg(long)]
    force: bool,
    /// Directory of models
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Certificate authorities to trust beside the system's, PEM
    #[arg(long, value_name = "FILE")]
    ca_file: Option<PathBuf>,
    /// Threads that quantise
    #[arg(short, long, value_name = "N")]
    threads: Option<usize>,
    /// As JSON
    #[arg(long)]
    json: bool,
}

fn board(name: &str) -> Result<Board, String> {
    Board::find(name).ok_or_else(|| {
        let known = Board::ALL.map(|board| board.short_name());
        format!("choose one of: {}", known.join(", "))
    })
}

/// What is to be made.
struct Job<'a> {
    args: &'a SetupModelArgs,
    app: App,
    entry: Option<CatalogEntry>,
    recipe: Recipe,
    packed_for: Target,
    target: PathBuf,
}

/// What came of it.
struct Outcome {
    preset: Preset,
    memory: MemoryPlan,
    n_bytes: u64,
    /// Whether the file, and its preset, were there already.
    was_here: bool,
}

/// Gets, quantises, and keeps the preset.
pub fn run(context: &Context, args: &SetupModelArgs) -> anyhow::Result<u8> {
    let path = |path: &PathBuf| toml::Value::String(path.display().to_string());
    let settings = [
        ("pull.ca_file", "--ca-file", args.ca_file.as_ref().map(path)),
        ("library.dir", "--dir", args.dir.as_ref().map(path)),
    ];
    let settings = settings.into_iter().filter_map(|(key, option, value)| {
        Some(Setting { key: key.to_owned(), value: value?, option: option.to_owned() })
    });
    let app = context.app(settings.collect())?;
    let entry = app.catalog()?.find(&args.model).cloned();
    let name = match &entry {
        Some(entry) => entry.name.clone(),
        None => model_stem(Path::new(&args.model)),
    };
    let target = app.store.dir().join(format!("{name}-{}.gguf", args.quantize.suffix()));
    let recipe = recipe_for(args.quantize, args.low_memory);
    let job = Job { args, app, entry, recipe, packed_for: packed_for(&args.optimize), target };
    let is_here = job.target.exists() && !args.force;
    let outcome = if is_here { job.keep()? } else { job.make()? };
    match outcome {
        Some(outcome) => job.print(&outcome)?,
        None => return Ok(exit::OK),
    }
    Ok(exit::OK)
}

impl Job<'_> {
    /// The file is there: only its preset may be missing, or be another board's.
    fn keep(&self) -> anyhow::Result<Option<Outcome>> {
        become_owner_of(self.app.store.dir())?;
        let model = open(&self.target)?;
        let made_as = model.metadata().str("jetforge.quantize.recipe").ok().flatten();
        if made_as != Some(self.recipe.name) {
            return Err(CliError::usage(format!(
                "{} is there already, made as {} and not {}; --force makes it again",
                self.target.display(),
                made_as.unwrap_or("something else"),
                self.recipe.name
            ))
            .into());
        }
        let (preset, memory) = self.preset(&model, None)?;
        let was_here = Preset::of(&self.target).as_ref() == Some(&preset);
        if !was_here && !self.args.dry_run {
            preset.keep(&self.target)?;
        }
        note(format!("{} is there already", self.target.display()));
        Ok(Some(Outcome { preset, memory, n_bytes: model.file_bytes(), was_here: true }))
    }

    /// The file is made; `None` if a dry run ends where a download would begin.
    fn make(&self) -> anyhow::Result<Option<Outcome>> {
        if let Some(entry) = &self.entry
            && let Some(refusal) = early_refusal(entry, self.recipe, &self.args.optimize)
        {
            return Err(CliError::no_room(format!("{}: {refusal}", entry.name)).into());
        }
        // What is named by its path is for who calls to read; the store is its owner's.
        let named = self.named().map(open_source).transpose()?;
        let importance = self.args.imatrix.as_deref().map(Importance::read).transpose()?;
        become_owner_of(self.app.store.dir())?;
        let opened = match named {
            Some(named) => named,
            None => match self.stored()? {
                Some(path) => open_source(&path)?,
                None => return Ok(None),
            },
        };
        let source = opened.gguf();
        let plan = self.plan(source, self.recipe, importance.as_ref())?;
        let outline = plan.outline(source, Some(self.packed_for))?;
        let (preset, memory) = self.preset(&outline, Some(source))?;
        if self.args.dry_run {
            let n_bytes = outline.file_bytes();
            return Ok(Some(Outcome { preset, memory, n_bytes, was_here: false }));
        }
        let folder = self.app.store.dir();
        std::fs::create_dir_all(folder).map_err(|source| LibraryError::Io {
            action: "create",
            path: folder.to_owned(),
            source,
        })?;
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let n_threads = self.args.threads.unwrap_or(cores);
        let bar = bytes_bar(self.recipe.name);
        let written = write(
            &opened,
            &plan,
            importance.as_ref(),
            &self.target,
            WriteOptions { replace: self.args.force, n_threads, packed_for: Some(self.packed_for) },
            &mut |done, total| {
                bar.set_length(total);
                bar.set_position(done);
            },
        );
        bar.finish_and_clear();
        let n_bytes = written?.n_bytes;
        preset.keep(&self.target)?;
        Ok(Some(Outcome { preset, memory, n_bytes, was_here: false }))
    }

    /// Where the weights are, if that was said.
    fn named(&self) -> Option<&Path> {
        let model = Path::new(&self.args.model);
        self.args.from.as_deref().or_else(|| model.exists().then_some(model))
    }

    /// Where the weights are in the store, fetched if need be; `None` if a dry run would do that.
    fn stored(&self) -> anyhow::Result<Option<PathBuf>> {
        let store = &self.app.store;
        let Some(entry) = &self.entry else {
            let found = store.find(&self.args.model)?;
            return Ok(Some(found.files[0].clone()));
        };
        if entry.source_url.is_empty() {
            return Err(LibraryError::NoSource { name: entry.name.clone() }.into());
        }
        let file_name = file_name_of(&entry.source_url)?;
        if let Ok(found) = store.find(&file_name) {
            return Ok(Some(found.files[0].clone()));
        }
        if self.args.dry_run {
            note(format!(
                "would download {}; context and sizes follow from its header, so run again with \
                 --from and a file that is here, or without --dry-run",
                entry.source_url
            ));
            return Ok(None);
        }
        note(format!("{}, licence {}", entry.title, entry.licence));
        self.download(entry, file_name).map(Some)
    }

    fn download(&self, entry: &CatalogEntry, file_name: String) -> anyhow::Result<PathBuf> {
        let request = PullRequest {
            url: entry.source_url.clone(),
            dir: self.app.store.dir().to_owned(),
            file_name,
            sha256: Some(entry.source_sha256.clone()).filter(|hash| !hash.is_empty()),
            size_bytes: None,
            force: false,
        };
        let bar = bytes_bar("connecting");
        let options = self.app.pull_options();
        let pulled = library::pull(&request, &options, &mut |event| pull::show(&bar, &event));
        bar.finish_and_clear();
        let pulled = pulled?;
        note(format!(
            "pulled {} ({}); `jetforge models remove {}` frees it once the small file is made",
            pulled.name,
            bytes(pulled.size_bytes),
            pulled.name
        ));
        Ok(pulled.files[0].clone())
    }

    /// The types of a recipe. Weights of 8 bits are near enough to their originals to be rounded
    /// once more; those of fewer are only on demand.
    fn plan(
        &self,
        source: &Gguf,
        recipe: Recipe,
        importance: Option<&Importance>,
    ) -> anyhow::Result<Plan> {
        let types = source.tensors().iter().map(|info| info.ty);
        let is_near = |ty: TensorType| {
            matches!(ty, TensorType::F32 | TensorType::F16 | TensorType::BF16 | TensorType::Q8_0)
        };
        let allow_requantize = self.args.allow_requantize || types.clone().all(is_near);
        if types.clone().any(|ty| ty == TensorType::Q8_0) && recipe.base != TensorType::Q8_0 {
            terminal::warn("the source has 8 bits a weight, not 16: a little is lost twice");
        }
        let options = PlanOptions { allow_requantize, ..PlanOptions::default() };
        Ok(Plan::new(source, recipe, &options, importance)?)
    }

    /// The preset, or a refusal that says what would fit instead.
    fn preset(&self, model: &Gguf, source: Option<&Gguf>) -> anyhow::Result<(Preset, MemoryPlan)> {
        let board = self.args.optimize;
        let chosen = choose_preset(model, board, self.args.low_memory);
        let error = match chosen {
            Ok(chosen) => return Ok(chosen),
            Err(error @ LibraryError::DoesNotFit { .. }) => error,
            Err(error) => return Err(error.into()),
        };
        let fits = |(bits, saves_memory): &(Bits, bool)| {
            let recipe = recipe_for(*bits, *saves_memory);
            let Some(source) = source else { return false };
            let plan = self.plan(source, recipe, None);
            let outline = plan.and_then(|p| Ok(p.outline(source, Some(self.packed_for))?));
            outline.is_ok_and(|model| choose_preset(&model, board, *saves_memory).is_ok())
        };
        let asked = (self.args.quantize, self.args.low_memory);
        let hint = match other_bits(asked).find(fits) {
            Some((bits, true)) => format!("; --quantize {bits} --low-memory would fit"),
            Some((bits, false)) => format!("; --quantize {bits} would fit"),
            None => "; take a smaller model or a larger board".to_owned(),
        };
        Err(CliError::no_room(format!("{}: {error}{hint}", self.args.model)).into())
    }

    fn print(&self, outcome: &Outcome) -> anyhow::Result<()> {
        let Outcome { preset, memory, n_bytes, was_here } = outcome;
        let name = self.target.file_stem().unwrap_or_default().to_string_lossy();
        if self.args.json {
            return Ok(print_json(&json!({
                "name": name,
                "path": self.target,
                "bytes": n_bytes,
                "recipe": self.recipe.name,
                "packed_for": self.packed_for.name(),
                "preset": preset,
                "needed_bytes": memory.needed_bytes(),
                "available_bytes": memory.available_bytes,
                "was_here": was_here,
                "dry_run": self.args.dry_run,
            }))?);
        }
        let mut out = anstream::stdout().lock();
        let verb = if self.args.dry_run && !was_here { "would be " } else { "" };
        writeln!(
            out,
            "{} {verb}{} in {}, packed for {}",
            styled(STRONG, self.target.display()),
            bytes(*n_bytes),
            self.recipe.name,
            self.packed_for.name()
        )?;
        writeln!(out, "  {}: {}", self.recipe.name, self.recipe.about)?;
        for line in &preset.why {
            writeln!(out, "  {line}")?;
        }
        writeln!(out, "`jetforge serve --model {name}` runs it so")?;
        Ok(())
    }
}

fn open(path: &Path) -> anyhow::Result<Gguf> {
    let error = |error| CliError::model(format!("{}: {error}", path.display()));
    Ok(Gguf::open(path).map_err(error)?)
}
