//! `jetforge inspect`: what a GGUF file holds, and where it would fit.
//!
//! Weights are mapped and never touched, so this is quick for any size. The memory plan is the one
//! that loading enforces, with a board's memory in the place of this machine's. A file with tensor
//! types that nothing here can compute with is shown all the same, and fits nowhere.

use std::collections::BTreeMap;
use std::io::Write;

use clap::Args;
use serde_json::{Value as Json, json};

use crate::app::App;
use crate::base::format::bytes;
use crate::cli::args::ModelArgs;
use crate::cli::exit::CliError;
use crate::cli::terminal::{FAINT, GOOD, STRONG, WARNING, print_json, styled, table};
use crate::cli::{Context, exit};
use crate::inference::{
    ChatTemplate, DeviceChoice, EMBEDDED_MODEL, Form, Gguf, LoadOptions, MemoryPlan, ModelSource,
    Tokenizer, plan_memory,
};
use crate::library::Board;

/// Options of `inspect`.
#[derive(Debug, Args)]
pub struct InspectArgs {
    /// GGUF file or name in the store; the configured model otherwise
    #[arg(value_name = "FILE|NAME", conflicts_with = "model")]
    file: Option<String>,
    /// Board to plan for; exit code 4 when the model does not fit there
    #[arg(long = "for", value_name = "BOARD", value_parser = board_names())]
    board: Option<String>,
    /// List every metadata key
    #[arg(long)]
    metadata: bool,
    /// List every tensor
    #[arg(long)]
    tensors: bool,
    /// As JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    model: ModelArgs,
}

fn board_names() -> clap::builder::PossibleValuesParser {
    Board::ALL.map(|board| board.name).into()
}

/// A machine and what the memory plan says about it.
struct Fit {
    machine: String,
    available_bytes: u64,
    plan: Result<MemoryPlan, String>,
}

/// Shows the file.
pub fn run(context: &Context, args: &InspectArgs) -> anyhow::Result<u8> {
    let mut model = ModelArgs { model: args.model.model.clone(), ..ModelArgs::default() };
    if let Some(file) = &args.file {
        model.model = Some(file.clone());
    }
    let mut settings = args.model.settings()?;
    settings.extend(model.settings()?);
    let app = context.app(settings)?;
    let source = app.model_source()?;
    let gguf = open(&source)?;
    let fits = fits(&app, &source, &gguf, args.board.as_deref());
    if args.json {
        print_json(&to_json(&source, &gguf, &fits, args))?;
    } else {
        print(&source, &gguf, &fits, args)?;
    }
    let is_refused = args.board.is_some() && fits.iter().any(|fit| fit.plan.is_err());
    Ok(if is_refused { exit::NO_ROOM } else { exit::OK })
}

fn open(source: &ModelSource) -> anyhow::Result<Gguf> {
    let gguf = match source {
        ModelSource::Embedded => Gguf::from_static(EMBEDDED_MODEL),
        ModelSource::File(path) => Gguf::survey(path),
    };
    gguf.map_err(|error| CliError::model(format!("{source}: {error}")).into())
}

fn fits(app: &App, source: &ModelSource, gguf: &Gguf, board: Option<&str>) -> Vec<Fit> {
    let options = app.load_options_of(source);
    let plan = |machine: &str, options: &LoadOptions, available_bytes: u64| Fit {
        machine: machine.to_owned(),
        available_bytes,
        plan: match gguf.refusal() {
            Some(refusal) => Err(refusal.to_string()),
            None => plan_memory(gguf, options, available_bytes).map_err(|e| e.to_string()),
        },
    };
    // What a GPU of this machine has room for says nothing of a board.
    let on_cpu = LoadOptions { device: DeviceChoice::Cpu, ..options.clone() };
    let on_board = |board: Board| plan(board.name, &on_cpu, board.available_bytes());
    if let Some(board) = board.and_then(Board::find) {
        return vec![on_board(board)];
    }
    let mut fits = vec![plan("this machine", &options, app.memory_for_models())];
    fits.extend(Board::ALL.map(on_board));
    fits
}

/// What people ask first of a model file, in the order in which they ask it.
fn facts(source: &ModelSource, gguf: &Gguf) -> Vec<(&'static str, Json)> {
    let meta = gguf.metadata();
    let text = |key: &str| meta.str(key).ok().flatten().map(str::to_owned);
    let arch = text("general.architecture").unwrap_or_default();
    let number = |key: &str| meta.u64(&format!("{arch}.{key}")).ok().flatten();
    let read = gguf.tensors().iter().map(|tensor| &tensor.shape);
    let unread = gguf.unread().iter().map(|tensor| &tensor.shape);
    let n_weights = |shape: &Vec<u64>| shape.iter().fold(1u64, |n, d| n.saturating_mul(*d));
    let n_params = read.chain(unread).map(n_weights).fold(0, u64::saturating_add);
    let tokenizer = Tokenizer::from_gguf(meta);
    let template = match meta.str("tokenizer.chat_template").ok().flatten() {
        Some(_) => "in the file",
        None if ChatTemplate::from_gguf(meta).is_ok_and(|t| t.is_some()) => "built in",
        None => "none",
    };
    let fim = tokenizer.as_ref().is_ok_and(|t| t.special().fim_prefix.is_some());
    vec![
        ("file", json!(source.to_string())),
        ("name", json!(text("general.name"))),
        ("licence", json!(text("general.license"))),
        ("architecture", json!(arch)),
        ("parameters", json!(n_params)),
        ("file_bytes", json!(gguf.file_bytes())),
        ("gguf_version", json!(gguf.version())),
        ("native_for", json!(gguf.native_target())),
        ("shards", json!(gguf.n_shards())),
        ("n_ctx_train", json!(number("context_length"))),
        ("n_layer", json!(number("block_count"))),
        ("n_embd", json!(number("embedding_length"))),
        ("n_ff", json!(number("feed_forward_length"))),
        ("n_head", json!(number("attention.head_count"))),
        ("n_kv_head", json!(number("attention.head_count_kv"))),
        ("pooling", json!(number("pooling_type").map(pooling_name))),
        ("tokenizer", json!(text("tokenizer.ggml.model"))),
        ("pre_tokenizer", json!(text("tokenizer.ggml.pre"))),
        ("n_vocab", json!(tokenizer.as_ref().ok().map(Tokenizer::n_vocab))),
        ("tokenizer_error", json!(tokenizer.as_ref().err().map(ToString::to_string))),
        ("chat_template", json!(template)),
        ("fill_in_the_middle", json!(fim)),
    ]
}

/// How an encoder's rows become one vector, or a score.
fn pooling_name(number: u64) -> &'static str {
    match number {
        0 => "none",
        1 => "mean",
        2 => "first row",
        3 => "last row",
        4 => "rank: scores a query and a document",
        _ => "not known",
    }
}

/// Tensors and bytes of each type; how large the blocks of an unsupported type are is not known.
fn by_type(gguf: &Gguf) -> BTreeMap<String, (usize, Option<u64>)> {
    let mut types = BTreeMap::new();
    for tensor in gguf.tensors() {
        let (n, n_bytes) = types.entry(tensor.ty.name().to_owned()).or_insert((0, Some(0)));
        *n += 1;
        *n_bytes = n_bytes.map(|n| n + tensor.n_bytes);
    }
    for tensor in gguf.unread() {
        types.entry(tensor.ty.clone()).or_insert((0, None)).0 += 1;
    }
    types
}

/// A line of the list of tensors.
struct Listed<'a> {
    name: &'a str,
    ty: String,
    /// How the rows stand, where they do not stand one after another.
    form: Option<&'static str>,
    shape: &'a [u64],
    n_bytes: Option<u64>,
}

/// Every tensor, those that can be read first.
fn each_tensor(gguf: &Gguf) -> impl Iterator<Item = Listed<'_>> {
    let read = gguf.tensors().iter().map(|t| Listed {
        name: &t.name,
        ty: t.ty.to_string(),
        form: (t.form != Form::Rows).then(|| t.form.name()),
        shape: &t.shape,
        n_bytes: Some(t.n_bytes),
    });
    let unread = gguf.unread().iter().map(|t| Listed {
        name: &t.name,
        ty: t.ty.clone(),
        form: None,
        shape: &t.shape,
        n_bytes: None,
    });
    read.chain(unread)
}

fn to_json(source: &ModelSource, gguf: &Gguf, fits: &[Fit], args: &InspectArgs) -> Json {
    let facts = facts(source, gguf).into_iter().map(|(key, value)| (key.to_owned(), value));
    let mut object = Json::Object(facts.collect());
    object["tensor_types"] = by_type(gguf)
        .into_iter()
        .map(|(name, (n, n_bytes))| json!({ "type": name, "tensors": n, "bytes": n_bytes }))
        .collect();
    object["fits"] = fits.iter().map(fit_json).collect();
    if args.metadata {
        let pairs = gguf.metadata().iter();
        object["metadata"] =
            pairs.map(|(key, value)| json!({ "key": key, "value": value.to_string() })).collect();
    }
    if args.tensors {
        object["tensors"] = each_tensor(gguf)
            .map(|Listed { name, ty, form, shape, n_bytes }| {
                let layout = form.unwrap_or(Form::Rows.name());
                json!({
                    "name": name, "type": ty, "layout": layout, "shape": shape, "bytes": n_bytes
                })
            })
            .collect();
    }
    object
}

fn fit_json(fit: &Fit) -> Json {
    let mut object = json!({
        "machine": fit.machine,
        "available_bytes": fit.available_bytes,
        "fits": fit.plan.is_ok(),
    });
    match &fit.plan {
        Ok(plan) => {
            object["n_ctx"] = json!(plan.n_ctx);
            object["weights_bytes"] = json!(plan.weights_bytes);
            object["packed_bytes"] = json!(plan.packed_bytes);
            object["kv_bytes"] = json!(plan.kv_bytes);
            object["scratch_bytes"] = json!(plan.scratch_bytes);
            object["reserve_bytes"] = json!(plan.reserve_bytes);
        }
        Err(reason) => object["reason"] = json!(reason),
    }
    object
}

fn print(
    source: &ModelSource,
    gguf: &Gguf,
    fits: &[Fit],
    args: &InspectArgs,
) -> std::io::Result<()> {
    let mut out = anstream::stdout().lock();
    for (key, value) in facts(source, gguf) {
        let value = match (key, &value) {
            (_, Json::Null) => continue,
            ("file_bytes", Json::Number(n)) => bytes(n.as_u64().unwrap_or(0)),
            ("parameters", Json::Number(n)) => millions(n.as_u64().unwrap_or(0)),
            (_, Json::String(text)) => text.clone(),
            (_, Json::Bool(yes)) => if *yes { "yes" } else { "no" }.to_owned(),
            (_, other) => other.to_string(),
        };
        let label = if key == "file_bytes" { "size".into() } else { key.replace('_', " ") };
        writeln!(out, "{} {value}", styled(STRONG, format!("{label:<19}")))?;
    }
    let rows: Vec<Vec<String>> = by_type(gguf)
        .into_iter()
        .map(|(name, (n, n_bytes))| {
            let size = n_bytes.map_or_else(|| "not supported".to_owned(), bytes);
            vec![format!("  {name}"), format!("{n} tensors"), size]
        })
        .collect();
    write!(out, "\n{}\n{}", styled(STRONG, "tensors"), table(&rows))?;
    if args.metadata {
        writeln!(out, "\n{}", styled(STRONG, "metadata"))?;
        for (key, value) in gguf.metadata().iter() {
            writeln!(out, "  {key} = {value}")?;
        }
    }
    if args.tensors {
        let rows: Vec<Vec<String>> = each_tensor(gguf)
            .map(|Listed { name, ty, form, shape, .. }| {
                let form = form.unwrap_or_default().to_owned();
                vec![format!("  {name}"), ty, format!("{shape:?}"), form]
            })
            .collect();
        write!(out, "\n{}\n{}", styled(STRONG, "each tensor, innermost first"), table(&rows))?;
    }
    writeln!(out, "\n{}", styled(STRONG, "fits"))?;
    for fit in fits {
        let (word, text) = match &fit.plan {
            Ok(plan) => (styled(GOOD, "yes"), plan.to_string()),
            Err(reason) => (styled(WARNING, "no "), reason.clone()),
        };
        let free = styled(FAINT, format!("({} for models)", bytes(fit.available_bytes)));
        writeln!(
            out,
            "  {word} {:<16} {free}\n      {}",
            fit.machine,
            text.replace('\n', "\n      ")
        )?;
    }
    Ok(())
}

fn millions(n: u64) -> String {
    match n {
        0..=999_999_999 => format!("{:.1} million", n as f64 / 1e6),
        _ => format!("{:.2} billion", n as f64 / 1e9),
    }
}
