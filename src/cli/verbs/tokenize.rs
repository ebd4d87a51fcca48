//! `jetforge tokenize`: a text as tokens, or tokens as a text.

use std::io::Write;
use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::json;

use crate::app::App;
use crate::cli::args::ModelArgs;
use crate::cli::exit::CliError;
use crate::cli::prompt::read_text;
use crate::cli::terminal::{print_json, stdin_is_terminal};
use crate::cli::{Context, exit};
use crate::inference::{EMBEDDED_MODEL, EncodeOptions, Gguf, ModelSource, TokenId, Tokenizer};

/// Options of `tokenize`.
#[derive(Debug, Args)]
pub struct TokenizeArgs {
    /// Text; `-` or nothing reads stdin
    text: Option<String>,
    /// Text of a file
    #[arg(short, long, value_name = "FILE", conflicts_with = "text")]
    file: Option<PathBuf>,
    /// Tokens to turn into text, separated by commas or spaces
    #[arg(long, value_name = "IDS", conflicts_with_all = ["text", "file"])]
    ids: Option<String>,
    /// Print only ids, one line
    #[arg(long, conflicts_with = "json")]
    ids_only: bool,
    /// Control tokens written out in the text are text
    #[arg(long, alias = "no-parse-special")]
    no_special: bool,
    /// Do not add the tokens that start and end a text
    #[arg(long)]
    no_bos: bool,
    /// As JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    model: ModelArgs,
}

/// Prints tokens or text.
pub fn run(context: &Context, args: &TokenizeArgs) -> anyhow::Result<u8> {
    let app = context.app(args.model.settings()?)?;
    let tokenizer = open_tokenizer(&app)?;
    if let Some(ids) = &args.ids {
        return detokenize(&tokenizer, ids, args);
    }
    let text = match (&args.text, &args.file) {
        (Some(text), _) if text != "-" => text.clone(),
        (_, Some(file)) => read_text(file)?,
        (None, None) if stdin_is_terminal() => {
            return Err(CliError::usage("give a text, --file or --ids").into());
        }
        _ => read_text(Path::new("-"))?,
    };
    let options = EncodeOptions { add_special: !args.no_bos, parse_special: !args.no_special };
    let ids = tokenizer.encode(&text, options)?;
    let piece = |id: TokenId| String::from_utf8_lossy(tokenizer.token_bytes(id, true)).into_owned();
    if args.json {
        let tokens: Vec<_> = ids
            .iter()
            .map(|&id| {
                let bytes = tokenizer.token_bytes(id, true);
                match std::str::from_utf8(bytes) {
                    Ok(text) => json!({ "id": id, "piece": text }),
                    Err(_) => json!({ "id": id, "piece": bytes }),
                }
            })
            .collect();
        print_json(&json!({ "n_tokens": ids.len(), "tokens": tokens }))?;
        return Ok(exit::OK);
    }
    let mut out = std::io::stdout().lock();
    if args.ids_only {
        let ids: Vec<String> = ids.iter().map(ToString::to_string).collect();
        writeln!(out, "{}", ids.join(" "))?;
        return Ok(exit::OK);
    }
    for &id in &ids {
        writeln!(out, "{id:>7}  {:?}", piece(id))?;
    }
    Ok(exit::OK)
}

fn detokenize(tokenizer: &Tokenizer, ids: &str, args: &TokenizeArgs) -> anyhow::Result<u8> {
    let words = ids.split([',', ' ', '[', ']', '\n']).filter(|word| !word.is_empty());
    let ids: Vec<TokenId> = words
        .map(|word| {
            let id = word.parse().ok().filter(|id| (*id as usize) < tokenizer.n_vocab());
            let n = tokenizer.n_vocab();
            id.ok_or_else(|| CliError::usage(format!("{word:?} is none of the {n} tokens")))
        })
        .collect::<Result<_, _>>()?;
    let text = tokenizer.decode(&ids, !args.no_special);
    if args.json {
        print_json(&json!({ "text": String::from_utf8_lossy(&text), "n_tokens": ids.len() }))?;
    } else {
        let mut out = std::io::stdout().lock();
        out.write_all(&text)?;
        out.write_all(b"\n")?;
    }
    Ok(exit::OK)
}

/// The vocabulary alone: weights are mapped but never touched.
fn open_tokenizer(app: &App) -> anyhow::Result<Tokenizer> {
    let source = app.model_source()?;
    let gguf = match &source {
        ModelSource::Embedded => Gguf::from_static(EMBEDDED_MODEL),
        ModelSource::File(path) => Gguf::survey(path),
    };
    let wrong = |error: String| CliError::model(format!("{source}: {error}"));
    let gguf = gguf.map_err(|error| wrong(error.to_string()))?;
    Ok(Tokenizer::from_gguf(gguf.metadata()).map_err(|error| wrong(error.to_string()))?)
}
