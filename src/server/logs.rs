//! Where events go: to one writer, as lines of text or of JSON, or to the journal of systemd.
//!
//! Only this program's events are written, and none of them has a prompt, an answer, a body or a
//! path in it; what a caller sent is quoted to that caller and to nobody else.
//!
//! The last lines are kept as well, for an owner who asks over HTTP. What looks like a key is taken
//! out of them: they go further than the terminal.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::{Mutex, OnceLock, PoisonError};

use serde::{Deserialize, Serialize};
use tracing::{Level, Subscriber};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::{Registry, fmt, reload};

use super::journal::Journal;
use crate::base::limits::{LOG_LINE_BYTES_MAX, LOG_LINES_MAX};

/// The last lines, the oldest first. A process has one log.
static RECENT: Mutex<VecDeque<String>> = Mutex::new(VecDeque::new());

/// How an event looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// To the journal where the service manager put stderr there, else a line for people.
    #[default]
    Auto,
    /// A line for people.
    Text,
    /// An object on a line.
    Json,
    /// To the journal of systemd.
    Journal,
}

/// What the process's log can be told later: which events, and that the program ends.
static LEVEL: OnceLock<reload::Handle<Targets, Registry>> = OnceLock::new();
static JOURNAL: OnceLock<Journal> = OnceLock::new();

/// A subscriber that writes events of `level` and above.
pub fn subscriber<W>(
    format: LogFormat,
    level: Level,
    writer: W,
) -> Box<dyn Subscriber + Send + Sync>
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
    for<'w> <W as MakeWriter<'w>>::Writer: Write,
{
    let (ours, handle) = reload::Layer::new(targets(level));
    // A process has one log; a second subscriber is one of a test.
    let _ = LEVEL.set(handle);
    let lines = fmt::layer().with_writer(writer).with_ansi(false).with_target(false);
    let kept = fmt::layer().with_writer(|| Recent).with_ansi(false).with_target(false);
    let events = Registry::default().with(ours).with(kept);
    let is_journal = match format {
        LogFormat::Auto => systemd_journal_logger::connected_to_journal(),
        format => format == LogFormat::Journal,
    };
    // Without a journal, lines on stderr are better than none.
    let journal = if is_journal { Journal::open().ok() } else { None };
    match (format, journal) {
        (_, Some(journal)) => {
            let _ = JOURNAL.set(journal.clone());
            Box::new(events.with(journal))
        }
        (LogFormat::Json, None) => Box::new(events.with(lines.json().flatten_event(true))),
        (_, None) => Box::new(events.with(lines)),
    }
}

fn targets(level: Level) -> Targets {
    Targets::new()
        .with_default(LevelFilter::WARN)
        .with_target(env!("CARGO_PKG_NAME"), LevelFilter::from_level(level))
}

/// Writes events of `level` and above from now on.
pub fn set_log_level(level: Level) {
    if let Some(handle) = LEVEL.get() {
        let _ = handle.reload(targets(level));
    }
}

/// Waits a moment until what was said is in the journal, if events go there.
pub fn flush_logs() {
    JOURNAL.get().into_iter().for_each(Journal::flush);
}

/// Events that the journal had no time for; `None` where they do not go there.
pub(super) fn n_lost() -> Option<u64> {
    JOURNAL.get().map(Journal::n_lost)
}

/// The last `n` lines, the oldest first.
pub(super) fn recent(n: usize) -> Vec<String> {
    let lines = RECENT.lock().unwrap_or_else(PoisonError::into_inner);
    lines.iter().skip(lines.len().saturating_sub(n)).cloned().collect()
}

/// Writes into [`RECENT`]; the layer writes a line at once.
struct Recent;

impl Write for Recent {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let cut = &bytes[..bytes.len().min(LOG_LINE_BYTES_MAX)];
        let line = redacted(String::from_utf8_lossy(cut).trim_end());
        let mut lines = RECENT.lock().unwrap_or_else(PoisonError::into_inner);
        if lines.len() >= LOG_LINES_MAX {
            lines.pop_front();
        }
        lines.push_back(line);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A line without what looks like a key: our own, or what follows `Bearer`.
pub fn redacted(line: &str) -> String {
    let mut text = String::with_capacity(line.len());
    let mut rest = line;
    while let Some((at, mark)) =
        ["jf-", "Bearer "].iter().filter_map(|mark| Some((rest.find(mark)?, *mark))).min()
    {
        let (before, after) = rest.split_at(at + mark.len());
        let n = after.find(|c: char| !c.is_ascii_alphanumeric() && !"-_.".contains(c));
        let (word, behind) = after.split_at(n.unwrap_or(after.len()));
        text.push_str(before);
        // A short word behind `jf-` is a name and no key.
        let is_key = word.len() >= 16 || (mark == "Bearer " && !word.is_empty());
        text.push_str(if is_key { "***" } else { word });
        rest = behind;
    }
    text + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_lines_are_kept_without_keys() {
        let key = format!("jf-{}", "0123456789abcdef".repeat(4));
        for (line, expected) in [
            (format!("tenant {key}: done"), "tenant jf-***: done".to_owned()),
            ("Authorization: Bearer abc.d e".to_owned(), "Authorization: Bearer *** e".to_owned()),
            ("a jf-board and Bearer".to_owned(), "a jf-board and Bearer".to_owned()),
        ] {
            assert_eq!(redacted(&line), expected);
        }
        for n in 0..LOG_LINES_MAX + 5 {
            Recent.write_all(format!("line {n}\n").as_bytes()).unwrap();
        }
        Recent.write_all(&[b'x'; LOG_LINE_BYTES_MAX * 2]).unwrap();
        let lines = recent(2);
        assert!(lines[1].len() == LOG_LINE_BYTES_MAX && lines[0].starts_with("line "));
        assert!(recent(usize::MAX).len() <= LOG_LINES_MAX);
    }
}
