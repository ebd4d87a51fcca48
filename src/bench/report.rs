//! A report: the machine, a model and its figures, as JSON lines and as Markdown.
//!
//! Each line is one figure with everything that is needed to read it alone, so that files of
//! several runs can be put together with `cat`.

use serde::{Deserialize, Serialize};

use super::BenchError;
use super::figures::Figure;
use super::model::ModelFacts;

/// The machine that measured.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Machine {
    /// The processor's name.
    pub cpu: String,
    /// `x86_64` or `aarch64`.
    pub arch: String,
    /// Instruction set of the kernels.
    pub isa: String,
    /// Threads that computed.
    pub n_threads: usize,
    /// `Linux 6.1.0` for example.
    pub kernel: String,
    /// Version of jetforge.
    pub version: String,
}

/// What was measured in one run over one model, or without one.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    /// Who measured.
    pub machine: Machine,
    /// What was loaded; `None` for probes of the machine.
    pub model: Option<ModelFacts>,
    /// What came out.
    pub figures: Vec<Figure>,
    /// What was left out, and why.
    pub notes: Vec<String>,
}

/// A figure as it stands in a file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Line {
    /// Name of the model; empty for probes.
    pub model: String,
    /// Bytes of its file.
    pub file_bytes: u64,
    /// The figure.
    #[serde(flatten)]
    pub figure: Figure,
    /// Its median.
    pub median: f64,
    /// The part of a limit that this is, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peak_fraction: Option<f64>,
    /// Who measured.
    pub machine: Machine,
}

/// One line of JSON for each figure.
pub fn to_lines(report: &Report) -> String {
    let mut text = String::new();
    for figure in &report.figures {
        let line = Line {
            model: report.model.as_ref().map_or_else(String::new, |model| model.name.clone()),
            file_bytes: report.model.as_ref().map_or(0, |model| model.file_bytes),
            median: figure.median(),
            peak_fraction: figure.share.map(|share| share.fraction()),
            figure: figure.clone(),
            machine: report.machine.clone(),
        };
        text.push_str(&serde_json::to_string(&line).expect("names and numbers are JSON"));
        text.push('\n');
    }
    text
}

/// Reads what [`to_lines`] wrote; empty lines are passed over.
///
/// # Errors
/// If a line is something else.
pub fn read_lines(text: &str) -> Result<Vec<Line>, BenchError> {
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let read = |(i, line)| {
        serde_json::from_str(line).map_err(|error: serde_json::Error| BenchError::Line {
            line: i + 1,
            message: error.to_string(),
        })
    };
    lines.map(read).collect()
}

/// A table with its head: test, median, lowest and highest round, rate, share of the limit; and
/// behind the median what was predicted, where anything was.
pub fn table(figures: &[Figure]) -> Vec<Vec<String>> {
    let mut table = vec![HEAD.map(str::to_owned).to_vec()];
    table.extend(figures.iter().map(|figure| row(figure).to_vec()));
    if figures.iter().any(|figure| figure.predicted.is_some()) {
        let of = |figure: &Figure| match figure.predicted {
            Some(value) => format!("{} {}", number(value), figure.unit.sign()),
            None => String::new(),
        };
        let column = std::iter::once("predicted".to_owned()).chain(figures.iter().map(of));
        table.iter_mut().zip(column).for_each(|(row, cell)| row.insert(2, cell));
    }
    table
}

fn number(value: f64) -> String {
    match value {
        v if v >= 100.0 => format!("{v:.0}"),
        v if v >= 10.0 => format!("{v:.1}"),
        v if v >= 0.1 => format!("{v:.2}"),
        v => format!("{v:.3}"),
    }
}

fn row(figure: &Figure) -> [String; 5] {
    let spread = match figure.values.len() {
        0 | 1 => String::new(),
        _ => format!("{} - {}", number(figure.low()), number(figure.high())),
    };
    let (rate, share) = match figure.share {
        Some(share) => (
            format!("{} of {} {}", number(share.rate), number(share.limit), share.unit.sign()),
            format!("{:.0} %", 100.0 * share.fraction()),
        ),
        None => (String::new(), String::new()),
    };
    let median = format!("{} {}", number(figure.median()), figure.unit.sign());
    [figure.test.clone(), median, spread, rate, share]
}

const HEAD: [&str; 5] = ["test", "median", "lowest - highest", "of the limit", ""];

/// What stands over a report's figures.
pub fn title(report: &Report) -> String {
    let machine = &report.machine;
    let on = format!(
        "{}, {}, {} threads, {}, jetforge {}",
        machine.cpu, machine.isa, machine.n_threads, machine.kernel, machine.version
    );
    match &report.model {
        Some(model) => format!(
            "{} ({:.2}e9 weights, {:.0} MiB) on {on}",
            model.name,
            model.n_params as f64 / 1e9,
            model.file_bytes as f64 / f64::from(1 << 20)
        ),
        None => on,
    }
}

/// Reports as Markdown.
pub fn markdown(reports: &[Report]) -> String {
    let mut text = String::new();
    for report in reports {
        text.push_str(&format!("{}\n\n", title(report)));
        for (i, row) in table(&report.figures).into_iter().enumerate() {
            text.push_str(&format!("| {} |\n", row.join(" | ")));
            if i == 0 {
                text.push_str(&format!("|{}\n", "---|".repeat(row.len())));
            }
        }
        text.push('\n');
        for note in &report.notes {
            text.push_str(&format!("{note}.\n\n"));
        }
    }
    text
}

#[cfg(test)]
pub mod tests {
    use super::super::figures::Unit;
    use super::*;

    /// A report of two figures.
    pub fn report(scale: f64) -> Report {
        let figure = |test: &str, values: &[f64]| {
            let values = values.iter().map(|value| value * scale).collect();
            Figure::new(test, Unit::TokensPerSecond, values)
        };
        let pp = figure("pp512", &[100.0, 120.0, 110.0]);
        let tg = figure("tg128", &[10.0, 12.0, 11.0]);
        let machine = Machine { cpu: "a <fast> one".into(), n_threads: 2, ..Machine::default() };
        let model = ModelFacts {
            name: "tiny | model".into(),
            file_bytes: 1 << 20,
            n_params: 1_000_000,
            backend: "cpu".into(),
        };
        Report {
            machine,
            model: Some(model),
            figures: vec![pp.against(Some(4.0), 0.01, Unit::GigaMacs), tg],
            notes: vec!["left out: nothing".into()],
        }
    }

    #[test]
    fn lines_are_read_as_they_were_written() {
        let report = report(1.0);
        let lines = read_lines(&to_lines(&report)).unwrap();
        assert_eq!(lines.iter().map(|l| l.figure.clone()).collect::<Vec<_>>(), report.figures);
        assert_eq!(lines[0].median, 110.0);
        assert_eq!(lines[1].machine, report.machine);
        let share = report.figures[0].share.unwrap();
        assert_eq!(lines[0].peak_fraction, Some(share.fraction()));
        assert_eq!(lines[1].peak_fraction, None);
    }

    #[test]
    fn a_line_that_is_no_figure_is_named() {
        let text = format!("\n{}not json\n", to_lines(&report(1.0)));
        let error = read_lines(&text).unwrap_err().to_string();
        assert!(error.starts_with("line 4 is no figure"), "{error}");
    }

    #[test]
    fn what_was_predicted_stands_beside_what_was_measured() {
        let mut report = report(1.0);
        report.figures[1] = report.figures[1].clone().beside(Some(25.75));
        let text = markdown(std::slice::from_ref(&report));
        assert!(text.contains("| test | median | predicted | lowest - highest |"), "{text}");
        assert!(text.contains("| pp512 | 110 tok/s |  | 100 - 120 |"), "{text}");
        assert!(text.contains("| tg128 | 11.0 tok/s | 25.8 tok/s | 10.0 - 12.0 |  |  |"), "{text}");
        let read = read_lines(&to_lines(&report)).unwrap();
        assert_eq!(read[1].figure.predicted, Some(25.75));
    }

    #[test]
    fn markdown_holds_every_figure() {
        let text = markdown(&[report(1.0)]);
        assert!(text.contains("| pp512 | 110 tok/s | 100 - 120 | 1.10 of 4.00 GMAC/s | 28 % |"));
        assert!(text.contains("| tg128 | 11.0 tok/s | 10.0 - 12.0 |  |  |"));
        assert!(text.contains("left out: nothing."));
    }
}
