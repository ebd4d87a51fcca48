//! `jetforge export` and `jetforge import`: what the state store keeps, as text and back.

use std::fs::File;
use std::io::{BufReader, BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

use anyhow::Context as _;
use clap::{Args, ValueEnum};

use crate::app::App;
use crate::cli::{Context, exit, terminal};
use crate::store::{ExportFormat, Imported, Store};

/// Options of `export`.
#[derive(Debug, Args)]
pub struct ExportArgs {
    /// Where to; stdout by default
    file: Option<PathBuf>,
    /// How it is written
    #[arg(long, value_enum, default_value = "jsonl")]
    format: Format,
}

/// Options of `import`.
#[derive(Debug, Args)]
pub struct ImportArgs {
    /// A file of JSON lines; `-` for stdin
    file: PathBuf,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Format {
    /// A JSON object a line, texts in the clear
    Jsonl,
    /// SQL, texts sealed
    Sql,
}

/// Writes everything.
pub fn export(context: &Context, args: &ExportArgs) -> anyhow::Result<u8> {
    let app = context.app(Vec::new())?;
    let format = match args.format {
        Format::Jsonl => ExportFormat::JsonLines,
        Format::Sql => ExportFormat::Sql,
    };
    // Whose the file is says who calls; the store is its owner's.
    let file = args.file.as_ref().map(|path| {
        // Prompts and answers are in it.
        let mut options = File::options();
        let options = options.write(true).create(true).truncate(true).mode(0o600);
        options.open(path).with_context(|| path.display().to_string())
    });
    let file = file.transpose()?;
    context.own(&app)?;
    let store = open(&app)?;
    let n_row = match file {
        Some(file) => {
            let mut out = BufWriter::new(file);
            let n_row = store.export(format, &mut out)?;
            out.into_inner().map_err(|error| error.into_error())?.sync_all()?;
            n_row
        }
        None => {
            let mut out = BufWriter::new(std::io::stdout().lock());
            let n_row = store.export(format, &mut out)?;
            out.flush()?;
            n_row
        }
    };
    terminal::note(format!("{n_row} rows"));
    Ok(exit::OK)
}

/// Reads what is not there yet.
pub fn import(context: &Context, args: &ImportArgs) -> anyhow::Result<u8> {
    let app = context.app(Vec::new())?;
    let file = (args.file.to_str() != Some("-"))
        .then(|| File::open(&args.file).with_context(|| args.file.display().to_string()))
        .transpose()?;
    context.own(&app)?;
    let store = open(&app)?;
    let imported = match file {
        None => store.import(std::io::stdin().lock())?,
        Some(file) => store.import(BufReader::new(file))?,
    };
    let Imported { n_added, n_known, n_left } = imported;
    let left = match n_left {
        0 => String::new(),
        n => format!(", {n} are of sync and stay where they were"),
    };
    terminal::note(format!("{n_added} rows added, {n_known} were there already{left}"));
    Ok(exit::OK)
}

fn open(app: &App) -> anyhow::Result<Store> {
    let opened = Store::open(&app.dirs.state)?;
    opened.notes.iter().for_each(|note| terminal::note(format!("note: {note}")));
    Ok(opened.store)
}
