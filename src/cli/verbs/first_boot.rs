//! `jetforge first-boot`: makes a fresh machine an appliance of its own, and shows its owner how to
//! reach it.
//!
//! ```text
//! name    jetforge-xxxx, if the machine has the name of a Jetson's image
//! model   the largest of the store that fits the board, else the one in the program
//! key     for the owner, in place of one from a run that was cut
//! code    by which a PC can be paired
//! TLS     where it is asked for, the certificate that the service will show
//! card    all of that in a file that only root may read, then on the console
//! stamp   nothing of it is done again
//! ```
//!
//! The stamp comes last and every step can be repeated, so power may go at any moment: the next
//! start does all of it again, and what was shown before opens nothing any more.
//!
//! Root does it. Stamp and card lie where only root writes, and what the service keeps is written
//! as its user: whoever holds the service cannot have this one write anywhere else.
//!
//! A root that cannot be written keeps its name and its configuration, and the card lies beside the
//! stamp. A state that cannot be written ends it before it begins.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::Args;
use sha2::{Digest, Sha256};

use super::{backup, reset};
use crate::app::App;
use crate::base::file::{Draft, remove, replace};
use crate::base::hash::hex;
use crate::base::host::Host;
use crate::base::limits::PAIR_S;
use crate::base::owner::as_owner_of;
use crate::cli::terminal;
use crate::cli::{Context, exit};
use crate::inference::{Gguf, LoadOptions, plan_memory};
use crate::power::Sensors;
use crate::server::{Class, Grant, KeyFile, PairOffer, Scope, ServerError};

/// Where only root writes: this was done.
pub const STAMP: &str = "first-boot.done";
/// In the directory of the configuration: what the owner has to know.
pub const CARD: &str = "first-boot.txt";
/// There too: what was chosen.
pub const CHOICES: &str = "config.d/10-first-boot.toml";

/// Whose key it is.
const OWNER: &str = "owner";
/// Names that NVIDIA's images have; any other is the owner's.
const OF_IMAGES: [&str; 4] = ["jetson", "jetson-nano", "jetson-desktop", "tegra-ubuntu"];
/// Names that images of a Nano have as well. On a PC they may be its owner's choice.
const ON_A_NANO: [&str; 5] = ["", "localhost", "nano", "ubuntu", "debian"];
/// What the card calls the model that needs no file.
const EMBEDDED: &str = "the one in the program";
/// The address of the machine's own name in `hosts`, as Debian has it.
const OWN_ADDRESS: &str = "127.0.1.1";
/// Of the machine's memory, what a model may take: the rest is the system's.
const MEMORY_PART: (u64, u64) = (3, 4);

/// Options of `first-boot`.
#[derive(Debug, Args)]
pub struct FirstBootArgs {
    /// Do it again: the owner's key before opens nothing any more
    #[arg(long)]
    again: bool,
    /// Show the card on this terminal, such as /dev/console, and not on stdout
    #[arg(long, value_name = "DEVICE")]
    console: Option<PathBuf>,
    /// Where the system's files are
    #[arg(long, hide = true, value_name = "DIR", default_value = "/")]
    root: PathBuf,
}

/// Does what is left to do.
pub fn run(context: &Context, args: &FirstBootArgs) -> anyhow::Result<u8> {
    let app = context.app(Vec::new())?;
    reset::finish(&app)?;
    backup::go_on(&app)?;
    let (state, root_state) = (&app.dirs.state, &app.dirs.root_state);
    let stamp = root_state.join(STAMP);
    if stamp.exists() && !args.again {
        terminal::note("this machine was set up before; `--again` makes a new key for its owner");
        return Ok(exit::OK);
    }
    [state, root_state].into_iter().try_for_each(|dir| prepare(dir))?;
    let name = name_machine(&args.root).context("the machine's name")?;
    let model = keep_choices(&app)?;
    let key = as_owner_of(state, || owners_key(&KeyFile::new(state)))??;
    let code = as_owner_of(state, || PairOffer::new(state).make())??.show();
    let server = &app.config().server;
    let (scheme, port) = (if server.speaks_tls() { "https" } else { "http" }, server.port);
    let certificate = certificate(&app)?;
    let card = format!(
        "JetForge on {name}\n\
         address       {scheme}://{name}.local:{port}\n\
         API key       {key}\n\
         pairing code  {code}   (good for {} minutes; `jetforge pair` makes another)\n\
         model         {model}\n\
         {certificate}",
        PAIR_S / 60
    );
    let kept = keep_card(&app, &card)?;
    match &args.console {
        // A machine without one has the file.
        Some(console) => drop(show(console, &card)),
        None => {
            let mut out = std::io::stdout().lock();
            out.write_all(card.as_bytes())?;
            out.flush()?;
        }
    }
    write(&stamp, "", 0o600)?;
    terminal::note(format!("key and pairing code are in {}", kept.display()));
    Ok(exit::OK)
}

/// Makes a directory, and looks whether it takes files: nothing is promised that could not be kept.
fn prepare(dir: &Path) -> anyhow::Result<()> {
    let take = || -> std::io::Result<()> {
        std::fs::create_dir_all(dir)?;
        Draft::new(&dir.join(STAMP), 0o600).map(drop)
    };
    as_owner_of(dir, take).flatten().with_context(|| {
        format!(
            "nothing was set up: {} has to take files for good, such as from a partition of its \
             own; mount one there or make it writable, then run `jetforge first-boot`",
            dir.display()
        )
    })
}

/// Keeps the card with the configuration, or beside the stamp where that cannot be written; where.
fn keep_card(app: &App, card: &str) -> anyhow::Result<PathBuf> {
    let [beside_stamp, kept] = [&app.dirs.root_state, &app.dirs.config].map(|dir| dir.join(CARD));
    let written = replace(&kept, card.as_bytes(), 0o600);
    if written.as_ref().is_err_and(is_read_only) {
        write(&beside_stamp, card, 0o600)?;
        if kept.exists() {
            terminal::note(format!(
                "{} cannot be written, and its key opens nothing any more",
                kept.display()
            ));
        }
        return Ok(beside_stamp);
    }
    written.with_context(|| kept.display().to_string())?;
    remove(&beside_stamp).with_context(|| beside_stamp.display().to_string())?;
    Ok(kept)
}

/// Whether a file stands where nothing can be written.
pub fn is_read_only(error: &std::io::Error) -> bool {
    error.kind() == std::io::ErrorKind::ReadOnlyFilesystem
}

/// Writes to a terminal that may have nobody behind it: what it does not take at once is lost.
fn show(console: &Path, card: &str) -> std::io::Result<()> {
    let flags = rustix::fs::OFlags::NONBLOCK | rustix::fs::OFlags::NOCTTY;
    let flags = i32::try_from(flags.bits()).unwrap_or(0);
    let mut out = File::options().write(true).custom_flags(flags).open(console)?;
    out.write_all(card.as_bytes())
}

/// The line of the card by which callers know the service's certificate, where it speaks TLS. It is
/// made here, unless the owner has one.
fn certificate(app: &App) -> std::io::Result<String> {
    Ok(match as_owner_of(&app.dirs.state, || app.identity())? {
        Ok(None) => String::new(),
        Ok(Some(own)) => format!("certificate   {}   (its SHA-256)\n", own.fingerprint()),
        // The service says so as well, and does not start; the key is needed all the same.
        Err(error) => {
            terminal::note(format!("the card has no certificate: {error}"));
            String::new()
        }
    })
}

/// The machine's name, which it gets if it has that of its image.
fn name_machine(root: &Path) -> std::io::Result<String> {
    let file = root.join("etc/hostname");
    let name = std::fs::read_to_string(&file).unwrap_or_default().trim().to_owned();
    let is_nano = || Sensors::open(root).board().is_nano();
    let is_own = |names: &[&str]| names.contains(&name.as_str());
    let is_of_an_image = is_own(&OF_IMAGES) || is_own(&ON_A_NANO) && is_nano();
    if !is_of_an_image {
        return Ok(name);
    }
    let before = name;
    let id = std::fs::read_to_string(root.join("etc/machine-id")).unwrap_or_default();
    let digest = Sha256::digest(format!("jetforge name {}", id.trim()));
    let name = format!("jetforge-{}", hex(&digest[..2]));
    let hosts = root.join("etc/hosts");
    let lines = renamed(&std::fs::read_to_string(&hosts).unwrap_or_default(), &before, &name);
    let written = replace(&hosts, lines.as_bytes(), 0o644)
        .and_then(|()| replace(&file, format!("{name}\n").as_bytes(), 0o644));
    if written.as_ref().is_err_and(is_read_only) {
        // A name of this start alone would be another one than the card has.
        terminal::note(format!(
            "{} cannot be written: the machine's name stays {before:?}",
            file.display()
        ));
        return Ok(before);
    }
    written?;
    // Without the right to, it has the name from the next start on.
    if root == Path::new("/") {
        let _ = rustix::system::sethostname(name.as_bytes());
    }
    Ok(name)
}

/// The lines of `hosts` with another name for the machine; others of the same address stay.
fn renamed(lines: &str, before: &str, name: &str) -> String {
    let mut text = String::new();
    for line in lines.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        let is_own = words.first() == Some(&OWN_ADDRESS);
        // It may have the new one, from a run that was cut.
        let is_old = |word: &&str| [before, name].contains(word);
        let line = match is_own && words.iter().any(is_old) {
            true => words.into_iter().filter(|word| !is_old(word)).collect::<Vec<_>>().join("\t"),
            false => line.to_owned(),
        };
        if line != OWN_ADDRESS {
            text += &(line + "\n");
        }
    }
    text + &format!("{OWN_ADDRESS}\t{name}\n")
}

/// Chooses a model and keeps the choice; its name.
fn keep_choices(app: &App) -> anyhow::Result<String> {
    if !app.settings.is_default("model.name") {
        return Ok(app.config().model.name.clone().unwrap_or_default());
    }
    let Some(name) = as_owner_of(app.store.dir(), || largest_that_fits(app))? else {
        return Ok(EMBEDDED.to_owned());
    };
    let mut table = toml::Table::new();
    let model = toml::Table::from_iter([("name".to_owned(), name.as_str().into())]);
    table.insert("model".to_owned(), model.into());
    let text = format!("# Chosen at the first start.\n{table}");
    let file = app.dirs.config.join(CHOICES);
    let written = replace(&file, text.as_bytes(), 0o644);
    if written.as_ref().is_err_and(is_read_only) {
        terminal::note(format!(
            "{} cannot be written: `model.name` would be {name:?}",
            file.display()
        ));
        return Ok(EMBEDDED.to_owned());
    }
    written.with_context(|| file.display().to_string())?;
    Ok(name)
}

fn largest_that_fits(app: &App) -> Option<String> {
    let host = Host::read();
    let memory = host.memory_limit_bytes.unwrap_or(u64::MAX).min(host.memory_total_bytes);
    let available = memory / MEMORY_PART.1 * MEMORY_PART.0;
    let fits = app.store.list().ok()?.into_iter().filter_map(|model| {
        let gguf = Gguf::open(model.files.first()?).ok()?;
        let plan = plan_memory(&gguf, &LoadOptions::default(), available).ok()?;
        Some((plan.needed_bytes(), model.name))
    });
    fits.max().map(|(_, name)| name)
}

/// A new key for the owner; one from a run that was cut was shown to nobody, or is to go.
fn owners_key(keys: &KeyFile) -> Result<String, ServerError> {
    match keys.revoke(OWNER) {
        Err(ServerError::KeyUnknown { .. }) | Ok(()) => {}
        Err(error) => return Err(error),
    }
    let grant = Grant {
        scopes: vec![Scope::Inference, Scope::Admin],
        class: Class::Interactive,
        per_minute: None,
        at_once: None,
    };
    keys.create(OWNER, grant)
}

fn write(path: &Path, text: &str, mode: u32) -> anyhow::Result<()> {
    replace(path, text.as_bytes(), mode).with_context(|| path.display().to_string())
}
