//! `jetforge perplexity`: how well a model predicts a text, as llama.cpp measures it.

use std::io::Write;
use std::path::PathBuf;

use clap::Args;
use serde_json::json;

use crate::app::App;
use crate::cli::args::ModelArgs;
use crate::cli::prompt::read_text;
use crate::cli::terminal::{load_bar, print_json, steps_bar, tell_device};
use crate::cli::{Context, exit};
use crate::inference::EncodeOptions;

/// Options of `perplexity`.
#[derive(Debug, Args)]
pub struct PerplexityArgs {
    /// Text file; `-` reads stdin
    #[arg(short, long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// Text file, without the option
    #[arg(value_name = "FILE", required_unless_present = "file")]
    path: Option<PathBuf>,
    /// As JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    model: ModelArgs,
}

/// llama.cpp's default window, so that figures compare.
const N_CTX: usize = 512;

/// Measures and prints.
pub fn run(context: &Context, args: &PerplexityArgs) -> anyhow::Result<u8> {
    let app = context.app(args.model.settings()?)?;
    let path = args.file.as_ref().or(args.path.as_ref()).expect("clap asks for one of them");
    let text = read_text(path)?;
    let source = app.model_source()?;
    let mut model = load_bar(|progress| app.load(progress))?;
    tell_device(model.device());
    let options = EncodeOptions { add_special: true, parse_special: false };
    let tokens = model.tokenizer().encode(&text, options)?;
    let n_ctx = app.config().model.n_ctx.map_or(N_CTX, |n| n as usize).min(model.n_ctx());
    let bar = steps_bar("perplexity");
    let result = model.perplexity(&tokens, n_ctx, &mut |done, total| {
        bar.set_length(total as u64);
        bar.set_position(done as u64);
    });
    bar.finish_and_clear();
    let perplexity = result.map_err(|error| App::inference(&source, error))?;
    if args.json {
        print_json(&json!({
            "model": model.name(),
            "perplexity": perplexity.value,
            "stderr": perplexity.stderr,
            "n_tokens": perplexity.n_tokens,
            "n_ctx": n_ctx,
        }))?;
    } else {
        let mut out = std::io::stdout().lock();
        writeln!(
            out,
            "perplexity {:.4} +/- {:.4} over {} tokens in windows of {n_ctx}",
            perplexity.value, perplexity.stderr, perplexity.n_tokens
        )?;
    }
    Ok(exit::OK)
}
