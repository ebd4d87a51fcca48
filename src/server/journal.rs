//! Events to the journal of systemd, by way of a queue.
//!
//! ```text
//! tracing event -> a line -> queue, or counted as lost -> a thread -> journald's socket
//! ```
//!
//! Whoever says something never waits: journald may be slow, as on a full disk, and an engine that
//! waits for it is an engine that stands still. What found the queue full is counted, and the next
//! line that gets through says how many there were.

use std::fmt::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, channel, sync_channel};
use std::time::Duration;

use systemd_journal_logger::JournalLog;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

use super::logs::redacted;
use crate::base::limits::{JOURNAL_QUEUE_MAX, LOG_LINE_BYTES_MAX};

/// How long the end of the program waits for what is still to be written.
const FLUSH_MAX: Duration = Duration::from_secs(1);

enum Letter {
    Line(Level, String),
    /// Answered when everything before it is written.
    Flush(std::sync::mpsc::Sender<()>),
}

/// The queue. Clones share it.
#[derive(Clone)]
pub(super) struct Journal {
    letters: SyncSender<Letter>,
    n_lost: Arc<AtomicU64>,
}

impl Journal {
    /// The journal of this machine.
    ///
    /// # Errors
    /// If there is none, or no thread can be had.
    pub fn open() -> std::io::Result<Journal> {
        let journal = JournalLog::empty()?.with_syslog_identifier("jetforge".to_owned());
        Journal::over(move |level, line| {
            let level = match level {
                Level::ERROR => log::Level::Error,
                Level::WARN => log::Level::Warn,
                Level::INFO => log::Level::Info,
                Level::DEBUG => log::Level::Debug,
                Level::TRACE => log::Level::Trace,
            };
            let args = format_args!("{line}");
            let record = log::Record::builder().level(level).target("jetforge").args(args).build();
            // A journal that is gone is no reason to end.
            let _ = journal.journal_send(&record);
        })
    }

    /// A queue whose lines are handed to `write`, one after the other, on a thread of its own.
    fn over(write: impl FnMut(Level, &str) + Send + 'static) -> std::io::Result<Journal> {
        let (letters, received) = sync_channel(JOURNAL_QUEUE_MAX);
        let n_lost = Arc::<AtomicU64>::default();
        let lost = Arc::clone(&n_lost);
        let work = move || deliver(&received, &lost, write);
        std::thread::Builder::new().name("journal".into()).spawn(work)?;
        Ok(Journal { letters, n_lost })
    }

    fn say(&self, level: Level, line: String) {
        if self.letters.try_send(Letter::Line(level, line)).is_err() {
            self.n_lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Lines that nobody will read.
    pub fn n_lost(&self) -> u64 {
        self.n_lost.load(Ordering::Relaxed)
    }

    /// Waits a moment for what was said so far.
    pub fn flush(&self) {
        let (done, is_done) = channel();
        if self.letters.try_send(Letter::Flush(done)).is_ok() {
            let _ = is_done.recv_timeout(FLUSH_MAX);
        }
    }
}

fn deliver(received: &Receiver<Letter>, n_lost: &AtomicU64, mut write: impl FnMut(Level, &str)) {
    let mut n_told = 0;
    for letter in received {
        match letter {
            Letter::Line(level, line) => {
                let n = n_lost.load(Ordering::Relaxed);
                if n > n_told {
                    write(Level::WARN, &format!("{} events were lost", n - n_told));
                    n_told = n;
                }
                write(level, &line);
            }
            Letter::Flush(done) => drop(done.send(())),
        }
    }
}

impl<S: Subscriber> Layer<S> for Journal {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut line = Line::default();
        event.record(&mut line);
        let mut text = line.message + &line.fields;
        text.truncate(text.floor_char_boundary(LOG_LINE_BYTES_MAX));
        self.say(*event.metadata().level(), redacted(&text));
    }
}

/// An event as a line: its message, then its fields.
#[derive(Default)]
struct Line {
    message: String,
    fields: String,
}

impl Visit for Line {
    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "message" => value.clone_into(&mut self.message),
            name => drop(write!(self.fields, " {name}={value:?}")),
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        match field.name() {
            "message" => self.message = format!("{value:?}"),
            name => drop(write!(self.fields, " {name}={value:?}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use tracing_subscriber::layer::SubscriberExt;

    use super::*;

    /// A journal whose lines are kept here, and that takes none before it is let.
    fn slow() -> (Journal, std::sync::mpsc::Sender<()>, Arc<Mutex<Vec<String>>>) {
        let (let_go, may_go) = channel::<()>();
        let lines = Arc::<Mutex<Vec<String>>>::default();
        let kept = Arc::clone(&lines);
        let write = move |level: Level, line: &str| {
            let _ = may_go.recv();
            kept.lock().unwrap().push(format!("{level} {line}"));
        };
        (Journal::over(write).unwrap(), let_go, lines)
    }

    #[test]
    fn an_event_is_a_line_without_keys() {
        let (journal, let_go, lines) = slow();
        drop(let_go);
        let subscriber = tracing_subscriber::registry().with(journal.clone());
        tracing::subscriber::with_default(subscriber, || {
            tracing::info!(status = 200, route = "/x", key = "Bearer abcdef", "request");
            tracing::error!("a panic");
        });
        journal.flush();
        let lines = lines.lock().unwrap().clone();
        assert_eq!(lines[0], "INFO request status=200 route=\"/x\" key=\"Bearer ***\"");
        assert_eq!(lines[1], "ERROR a panic");
    }

    #[test]
    fn nobody_waits_for_a_slow_journal_and_losses_are_told() {
        let (journal, let_go, lines) = slow();
        // One line may be in the writer's hands already.
        let n_said = JOURNAL_QUEUE_MAX as u64 + 10;
        (0..n_said).for_each(|n| journal.say(Level::INFO, n.to_string()));
        let n_lost = journal.n_lost();
        assert!(n_lost == 9 || n_lost == 10, "{n_lost}");
        drop(let_go);
        while lines.lock().unwrap().len() as u64 <= n_said - n_lost {
            std::thread::yield_now();
        }
        let lines = lines.lock().unwrap().clone();
        let told: Vec<&String> = lines.iter().filter(|line| line.contains("lost")).collect();
        let n_told = |line: &String| line.split(' ').nth(1).and_then(|n| n.parse::<u64>().ok());
        assert_eq!(told.iter().filter_map(|line| n_told(line)).sum::<u64>(), n_lost, "{told:?}");
    }
}
