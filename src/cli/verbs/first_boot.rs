//! `jetforge first-boot`: makes a fresh machine an appliance of its own, and shows its owner how to
//! reach it.
//!
//! ```text
//! name    jetforge-xxxx, if the machine has the name of its image
//! model   the largest of the store that fits the board, else the one in the program
//! key     for the owner, in place of one from a run that was cut
//! code    by which a PC can be paired
//! card    all of that in a file that only root may read, then on the console
//! stamp   nothing of it is done again
//! ```
//!
//! The stamp comes last and every step can be repeated, so power may go at any moment: the next
//! start does all of it again, and what was shown before opens nothing any more.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::Args;
use sha2::{Digest, Sha256};

use super::{backup, reset};
use crate::app::App;
use crate::base::host::Host;
use crate::base::limits::PAIR_S;
use crate::cli::terminal;
use crate::cli::{Context, exit};
use crate::inference::{Gguf, LoadOptions, plan_memory};
use crate::server::{Class, Grant, KeyFile, PairOffer, Scope, ServerError};

/// In the directory of states: this was done.
pub const STAMP: &str = "first-boot.done";
/// In the directory of the configuration: what the owner has to know.
pub const CARD: &str = "first-boot.txt";
/// There too: what was chosen.
pub const CHOICES: &str = "config.d/10-first-boot.toml";

/// Whose key it is.
const OWNER: &str = "owner";
/// Names that images have; any other is the owner's.
const OF_IMAGES: [&str; 9] = [
    "",
    "localhost",
    "jetson",
    "nano",
    "jetson-nano",
    "jetson-desktop",
    "tegra-ubuntu",
    "ubuntu",
    "debian",
];
/// Of the machine's memory, what a model may take: the rest is the system's.
const MEMORY_PART: (u64, u64) = (3, 4);

/// Options of `first-boot`.
#[derive(Debug, Args)]
pub struct FirstBootArgs {
    /// Do it again: the owner's key before opens nothing any more
    #[arg(long)]
    again: bool,
    /// Where the system's files are
    #[arg(long, hide = true, value_name = "DIR", default_value = "/")]
    root: PathBuf,
}

/// Does what is left to do.
pub fn run(context: &Context, args: &FirstBootArgs) -> anyhow::Result<u8> {
    let app = context.app(Vec::new())?;
    reset::finish(&app)?;
    backup::finish(&app)?;
    let stamp = app.dirs.state.join(STAMP);
    if stamp.exists() && !args.again {
        terminal::note("this machine was set up before; `--again` makes a new key for its owner");
        return Ok(exit::OK);
    }
    let created = [&app.dirs.state, &app.dirs.config].map(std::fs::create_dir_all);
    created.into_iter().collect::<Result<Vec<()>, _>>().context("directories")?;
    let name = name_machine(&args.root).context("the machine's name")?;
    let model = keep_choices(&app)?;
    let key = owners_key(&KeyFile::new(&app.dirs.state))?;
    let code = PairOffer::new(&app.dirs.state).make()?.show();
    give_to_owner_of(&app.dirs.state)?;
    let port = app.config().server.port;
    let card = format!(
        "JetForge on {name}\n\
         address       http://{name}.local:{port}\n\
         API key       {key}\n\
         pairing code  {code}   (good for {} minutes; `jetforge pair` makes another)\n\
         model         {model}\n",
        PAIR_S / 60
    );
    write_private(&app.dirs.config.join(CARD), &card)?;
    let mut out = std::io::stdout().lock();
    out.write_all(card.as_bytes())?;
    out.flush()?;
    write_private(&stamp, "")?;
    give_to_owner_of(&app.dirs.state)?;
    Ok(exit::OK)
}

/// The machine's name, which it gets if it has that of its image.
fn name_machine(root: &Path) -> std::io::Result<String> {
    let file = root.join("etc/hostname");
    let name = std::fs::read_to_string(&file).unwrap_or_default().trim().to_owned();
    if !OF_IMAGES.contains(&name.as_str()) {
        return Ok(name);
    }
    let id = std::fs::read_to_string(root.join("etc/machine-id")).unwrap_or_default();
    let digest = Sha256::digest(format!("jetforge name {}", id.trim()));
    let name = format!("jetforge-{:02x}{:02x}", digest[0], digest[1]);
    let hosts = root.join("etc/hosts");
    let lines = std::fs::read_to_string(&hosts).unwrap_or_default();
    let others = lines.lines().filter(|line| !line.starts_with("127.0.1.1"));
    let lines: Vec<String> =
        others.map(str::to_owned).chain([format!("127.0.1.1\t{name}")]).collect();
    write(&hosts, &(lines.join("\n") + "\n"), 0o644)?;
    write(&file, &format!("{name}\n"), 0o644)?;
    // Without the right to, it has the name from the next start on.
    if root == Path::new("/") {
        let _ = rustix::system::sethostname(name.as_bytes());
    }
    Ok(name)
}

/// Chooses a model and keeps the choice; its name.
fn keep_choices(app: &App) -> anyhow::Result<String> {
    if !app.settings.is_default("model.name") {
        return Ok(app.config().model.name.clone().unwrap_or_default());
    }
    let Some(name) = largest_that_fits(app) else { return Ok("the one in the program".to_owned()) };
    let mut table = toml::Table::new();
    let model = toml::Table::from_iter([("name".to_owned(), name.as_str().into())]);
    table.insert("model".to_owned(), model.into());
    let text = format!("# Chosen at the first start.\n{table}");
    let file = app.dirs.config.join(CHOICES);
    file.parent().map_or(Ok(()), std::fs::create_dir_all)?;
    write(&file, &text, 0o644).with_context(|| file.display().to_string())?;
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

/// Root makes files here that the service has to read: they get the owner of their directory.
pub fn give_to_owner_of(dir: &Path) -> std::io::Result<()> {
    let owner = std::fs::metadata(dir)?;
    for entry in std::fs::read_dir(dir)? {
        let file = entry?.path();
        let is_others = std::fs::symlink_metadata(&file).is_ok_and(|data| {
            data.is_file() && (data.uid(), data.gid()) != (owner.uid(), owner.gid())
        });
        if is_others {
            std::os::unix::fs::chown(&file, Some(owner.uid()), Some(owner.gid()))?;
        }
    }
    Ok(())
}

fn write_private(path: &Path, text: &str) -> anyhow::Result<()> {
    write(path, text, 0o600).with_context(|| path.display().to_string())
}

/// Replaces a file whole: it is there with all of the text, or as it was.
fn write(path: &Path, text: &str, mode: u32) -> std::io::Result<()> {
    let mut next = path.as_os_str().to_owned();
    next.push(".next");
    let next = PathBuf::from(next);
    let mut file =
        File::options().write(true).create(true).truncate(true).mode(mode).open(&next)?;
    file.set_permissions(std::fs::Permissions::from_mode(mode))?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    std::fs::rename(&next, path)?;
    path.parent().map_or(Ok(()), |dir| File::open(dir)?.sync_all())
}
