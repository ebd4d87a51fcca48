//! Where events go: to one writer, as lines of text or of JSON.
//!
//! Only this program's events are written, and none of them has a prompt, an answer, a body or a
//! path in it; what a caller sent is quoted to that caller and to nobody else.

use std::io::Write;

use tracing::{Level, Subscriber};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::{Registry, fmt};

/// How an event looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// A line for people.
    #[default]
    Text,
    /// An object on a line.
    Json,
}

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
    let ours = Targets::new()
        .with_default(LevelFilter::WARN)
        .with_target(env!("CARGO_PKG_NAME"), LevelFilter::from_level(level));
    let lines = fmt::layer().with_writer(writer).with_ansi(false).with_target(false);
    match format {
        LogFormat::Text => Box::new(Registry::default().with(ours).with(lines)),
        LogFormat::Json => {
            Box::new(Registry::default().with(ours).with(lines.json().flatten_event(true)))
        }
    }
}
