//! What a person sees besides answers: colour, notes, progress bars.
//!
//! Answers and tables go to stdout, everything else to stderr. Colour and bars appear only on a
//! terminal; `NO_COLOR` and `--color` are honoured through anstream.

use std::io::{IsTerminal, Write};
use std::time::Duration;

use anstyle::{AnsiColor, Style};
use indicatif::{ProgressBar, ProgressStyle};

use crate::inference::DeviceReport;

/// Errors.
pub const ERROR: Style = AnsiColor::Red.on_default().bold();
/// Warnings.
pub const WARNING: Style = AnsiColor::Yellow.on_default().bold();
/// What is right.
pub const GOOD: Style = AnsiColor::Green.on_default();
/// Headings and names.
pub const STRONG: Style = Style::new().bold();
/// What matters less.
pub const FAINT: Style = Style::new().dimmed();

/// Text in a style, for `format!`.
pub fn styled(style: Style, text: impl std::fmt::Display) -> String {
    format!("{style}{text}{style:#}")
}

/// A line on stderr. It must not fail: stderr may be closed.
pub fn note(text: impl std::fmt::Display) {
    let _ = writeln!(anstream::stderr(), "{text}");
}

/// A warning on stderr.
pub fn warn(text: impl std::fmt::Display) {
    note(format!("{} {text}", styled(WARNING, "warning:")));
}

/// Says that a GPU was there and is not used; that there is none is nothing to say.
pub fn tell_device(device: &DeviceReport) {
    if device.is_fallback {
        warn(format!("{}; the CPU computes instead (--device cpu says so)", device.why));
    }
}

/// Whether a person types.
pub fn stdin_is_terminal() -> bool {
    std::io::stdin().is_terminal()
}

/// A bar of bytes on stderr, invisible where nobody watches.
pub fn bytes_bar(label: &str) -> ProgressBar {
    let style = ProgressStyle::with_template(
        "{msg} {wide_bar} {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} {eta}",
    )
    .expect("the template is constant");
    bar(label, style)
}

/// A bar of steps on stderr, invisible where nobody watches.
pub fn steps_bar(label: &str) -> ProgressBar {
    let style = ProgressStyle::with_template("{msg} {wide_bar} {pos}/{len} {eta}")
        .expect("the template is constant");
    bar(label, style)
}

fn bar(label: &str, style: ProgressStyle) -> ProgressBar {
    let bar = ProgressBar::new(0).with_style(style).with_message(label.to_owned());
    bar.enable_steady_tick(Duration::from_millis(500));
    bar
}

/// One JSON object on one line of stdout.
///
/// # Errors
/// When stdout is closed.
pub fn print_json(value: &serde_json::Value) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    serde_json::to_writer(&mut out, value)?;
    writeln!(out)
}

/// Rows of a table as text, columns as wide as their widest cell.
pub fn table(rows: &[Vec<String>]) -> String {
    let n_columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        rows.iter().filter_map(|row| row.get(column)).map(|c| c.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..n_columns).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            line.push_str(&format!("{cell:<width$}  "));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}
