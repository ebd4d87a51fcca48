//! What the units ask around each start of the service.
//!
//! ```text
//! ExecStartPre    begin    as root   counts the start, chooses the program
//!                 state    as jetforge, in its sandbox: a copy before a trial, the way back after
//! ExecStartPost   ready    as root   asks /health
//! ExecStopPost    ended    as root   how it ended
//! update.service  watch    as root   keeps or gives up; 0 asks for a start of the service, 7 is
//!                                    the end, and anything else is tried again
//! ```
//!
//! Root touches the folder of slots alone; of the state it asks as the service. An ordinary start,
//! with nothing on trial, costs a look at two files, and opens the state store for its version.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::{Args, Subcommand};

use super::slots;
use crate::base::dirs::{Dirs, Role};
use crate::base::file;
use crate::base::owner::as_owner_of;
use crate::cli::remote::Remote;
use crate::cli::terminal::note;
use crate::cli::{Context, exit};
use crate::store::{go_back, keep_before};
use crate::update::{Ended, Look, Slots, Watch};

/// In the directory of states: what a way back lost.
const LOST: &str = "update-lost.txt";
/// There too, from where the state fits to a program on trial until that ended: it was started.
const FITS: &str = "update-fits";
/// The directory of states of the service, below the root.
const STATE: &str = "var/lib/jetforge";
/// How often a service that just said that it is ready is asked, a second apart.
const N_ASK: u32 = 5;

/// What the units ask for.
#[derive(Debug, Subcommand)]
pub enum Step {
    /// Before a start, as root: count it, and choose the program
    #[command(hide = true)]
    Begin(BootArgs),
    /// Before a start, as the service: let the state fit to the program
    #[command(hide = true)]
    State,
    /// After a start, as root: it is ready
    #[command(hide = true)]
    Ready,
    /// After a stop, as root: how it ended
    #[command(hide = true)]
    Ended,
    /// While a program is on trial, as root; ends with 0 if the service is to be started anew, and
    /// with 7 if there is nothing to watch
    #[command(hide = true)]
    Watch(BootArgs),
    /// A package was installed: its program runs from now on
    #[command(hide = true)]
    Package,
}

/// Which start of the machine it is.
#[derive(Debug, Args)]
pub struct BootArgs {
    /// What systemd calls this start of the machine: in a container the kernel tells a unit with a
    /// sandbox another name for it than one without
    #[arg(long, value_name = "ID")]
    boot: Option<String>,
}

/// Where it stands what a way back lost.
pub fn lost_file(root: &Path) -> PathBuf {
    root.join(STATE).join(LOST)
}

/// Does a step.
pub fn run(context: &Context, root: &Path, step: &Step) -> anyhow::Result<u8> {
    let slots = slots(root)?;
    match step {
        Step::Begin(now) => slots.in_boot(now.boot.as_deref()).begin()?.iter().for_each(note),
        Step::State => return state(context, root),
        Step::Ready => {
            // Only a trial is worth the question.
            if slots.record().trial.is_some() {
                slots.ready(health(context))?.iter().for_each(note);
            }
        }
        Step::Ended => {
            let word = |name: &str| {
                let word = context.env.get(name).unwrap_or_default();
                word.to_string_lossy().chars().filter(|c| !c.is_control()).take(32).collect()
            };
            let [result, code, status] = ["SERVICE_RESULT", "EXIT_CODE", "EXIT_STATUS"].map(word);
            let is_started = was_started(context).unwrap_or(false);
            let ended = Ended { result, code, status, is_started };
            slots.ended(&ended)?.iter().for_each(note);
        }
        Step::Watch(now) => return watch(&slots.in_boot(now.boot.as_deref())),
        Step::Package => slots.take_package()?,
    }
    Ok(exit::OK)
}

/// Looks after a trial until it ends, or until the service is to be started anew.
fn watch(slots: &Slots) -> anyhow::Result<u8> {
    let (began, mut watch) = (Instant::now(), Watch::default());
    loop {
        let (look, said) = slots.look(&mut watch, began.elapsed())?;
        said.iter().for_each(note);
        match look {
            Look::Start => return Ok(exit::OK),
            Look::Over => return Ok(exit::NOTHING),
            Look::Wait => std::thread::sleep(Duration::from_secs(1)),
        }
    }
}

/// What /health says of a service that said itself that it is ready.
fn health(context: &Context) -> Result<(), String> {
    let Ok(app) = context.app(Vec::new()) else {
        // A configuration that only the new program knows: what it said itself has to do.
        return Ok(());
    };
    let ask = || Remote::default().service(&app)?.json("GET", "/health").map_err(Into::into);
    let mut answer: anyhow::Result<serde_json::Value> = ask();
    for _ in 1..N_ASK {
        if answer.is_ok() {
            break;
        }
        std::thread::sleep(Duration::from_secs(1));
        answer = ask();
    }
    let why = |error: anyhow::Error| format!("/health does not answer: {error:#}");
    answer.map(drop).map_err(why)
}

/// The directory of states, as the unit has it.
fn state_dir(context: &Context) -> anyhow::Result<PathBuf> {
    Ok(Dirs::new(Role::from_env(&context.env)?, &context.env)?.state)
}

/// Whether it came from [`state`] to the program on trial, which ended now.
fn was_started(context: &Context) -> anyhow::Result<bool> {
    let dir = state_dir(context)?;
    let mark = dir.join(FITS);
    Ok(as_owner_of(&dir, || std::fs::remove_file(&mark).is_ok())?)
}

/// Lets the state store fit to the program that is about to start. On trial, what cannot be done is
/// a start that failed; else it is the service's own to say.
fn state(context: &Context, root: &Path) -> anyhow::Result<u8> {
    let (slots, dir) = (slots(root)?, state_dir(context)?);
    let (schema, is_tried) = (slots.state_schema(slots.active()), slots.record().trial.is_some());
    let fitted = || -> anyhow::Result<()> {
        file::remove(&dir.join(FITS))?;
        if let Some(lost) = go_back(&dir, schema)? {
            note(&lost);
            std::fs::write(dir.join(LOST), lost + "\n")?;
        }
        if is_tried {
            if let Some(kept) = keep_before(&dir, schema)? {
                note(format!("the state as it is now is kept as {}", kept.display()));
            }
            file::replace(&dir.join(FITS), b"", 0o600)?;
        }
        Ok(())
    };
    match fitted() {
        Err(error) if is_tried => {
            note(format!("{error:#}"));
            Ok(exit::FAILURE)
        }
        Err(error) => {
            note(format!("{error:#}"));
            Ok(exit::OK)
        }
        Ok(()) => Ok(exit::OK),
    }
}
