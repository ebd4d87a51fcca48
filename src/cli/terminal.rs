//! What a person sees besides answers: colour, notes, progress bars.
//!
//! Answers and tables go to stdout, everything else to stderr. Colour and bars appear only on a
//! terminal; `NO_COLOR` and `--color` are honoured through anstream.

use std::io::{IsTerminal, Write};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use anstyle::{AnsiColor, Style};
use indicatif::{ProgressBar, ProgressStyle};

use crate::inference::{DeviceReport, LoadProgress};

/// Time between two looks at how far a model is loaded; who loads it in less sees no bar.
const LOOK: Duration = Duration::from_millis(500);

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

/// Text of others as a terminal may have it: what would move the cursor, change colours or turn
/// the direction of writing is shown as a mark. Line ends and tabs stay.
pub fn plain(text: &str) -> String {
    let is_turn = |c: char| matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    let is_bad = |c: char| c.is_control() && !matches!(c, '\n' | '\t') || is_turn(c);
    text.chars().map(|c| if is_bad(c) { char::REPLACEMENT_CHARACTER } else { c }).collect()
}

/// Writes an answer that comes piece by piece: as it is to a file or a pipe, plain to a terminal.
///
/// # Errors
/// When stdout is closed.
pub fn say(text: &str) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    match out.is_terminal() {
        true => out.write_all(plain(text).as_bytes())?,
        false => out.write_all(text.as_bytes())?,
    }
    out.flush()
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

/// Loads a model by `load`, with a bar on stderr where somebody watches and it takes long.
pub fn load_bar<T>(load: impl FnOnce(&LoadProgress) -> T) -> T {
    let progress = LoadProgress::default();
    let shown = progress.clone();
    // Where the sender is gone, because `load` ended or broke, so is the bar.
    let (loads, ended) = channel::<()>();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let mut bar = None;
            while ended.recv_timeout(LOOK) == Err(RecvTimeoutError::Timeout) {
                let (done_bytes, total_bytes) = shown.read();
                let bar = bar.get_or_insert_with(|| bytes_bar("loading"));
                bar.set_length(total_bytes);
                bar.set_position(done_bytes);
            }
            bar.iter().for_each(ProgressBar::finish_and_clear);
        });
        let _loads = loads;
        load(&progress)
    })
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

/// Rows of a table as plain text, columns as wide as their widest cell.
pub fn table(rows: &[Vec<String>]) -> String {
    let cell = |cell: &String| plain(cell).replace(['\n', '\t'], " ");
    let rows: Vec<Vec<String>> = rows.iter().map(|row| row.iter().map(cell).collect()).collect();
    let n_columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        rows.iter().filter_map(|row| row.get(column)).map(|c| c.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..n_columns).map(width).collect();
    let mut text = String::new();
    for row in &rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            line.push_str(&format!("{cell:<width$}  "));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_from_the_network_cannot_drive_a_terminal() {
        let name = "nano\u{1b}]0;owned\u{7}\u{1b}[2J\u{202e}x\r\ny\tz";
        let shown = plain(name);
        assert!(!shown.contains(['\u{1b}', '\u{7}', '\u{202e}', '\r']), "{shown:?}");
        assert!(shown.contains("nano") && shown.ends_with("\ny\tz"));
        let table = table(&[vec![name.to_owned(), "b".to_owned()]]);
        assert_eq!(table.lines().count(), 1, "{table:?}");
        assert_eq!(plain("def \u{fc}(): # \u{65e5}"), "def \u{fc}(): # \u{65e5}");
    }
}
