//! A report as a page that opens without a network: tables, and a bar for each figure.

use super::figures::{Figure, Unit};
use super::report::{Report, table, title};

const STYLE: &str = "body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:64rem;\
padding:0 1rem;color:#1c2430;background:#fff}table{border-collapse:collapse;width:100%}\
td,th{text-align:left;padding:.25rem .75rem .25rem 0;border-bottom:1px solid #d9dee5}\
td:nth-child(n+2){font-variant-numeric:tabular-nums}h2{margin-top:2.5rem}\
svg{display:block;width:100%;height:auto;margin:1rem 0}text{font:12px system-ui,sans-serif;\
fill:currentColor}@media(prefers-color-scheme:dark){body{color:#dfe5ee;background:#14181e}\
td,th{border-color:#333b46}}";

/// Width of a plot, and where its bars begin.
const WIDTH: f64 = 900.0;
const BARS_AT: f64 = 260.0;
const BAR_HEIGHT: f64 = 22.0;

/// Units whose figures are worth a plot.
const PLOTTED: [Unit; 5] = [
    Unit::TokensPerSecond,
    Unit::Milliseconds,
    Unit::GigabytesPerSecond,
    Unit::GigaMacs,
    Unit::JoulesPerToken,
];

/// The page.
pub fn page(reports: &[Report]) -> String {
    let mut body = String::new();
    for report in reports {
        body.push_str(&format!("<h2>{}</h2>\n", escape(&title(report))));
        for unit in PLOTTED {
            let figures: Vec<&Figure> = report.figures.iter().filter(|f| f.unit == unit).collect();
            if !figures.is_empty() {
                body.push_str(&plot(&figures, unit));
            }
        }
        let cells = |tag: &str, cells: &[String]| {
            let cells = cells.iter().map(|cell| format!("<{tag}>{}</{tag}>", escape(cell)));
            format!("<tr>{}</tr>\n", cells.collect::<String>())
        };
        body.push_str("<table>\n");
        for (i, row) in table(&report.figures).iter().enumerate() {
            body.push_str(&cells(if i == 0 { "th" } else { "td" }, row));
        }
        body.push_str("</table>\n");
        for note in &report.notes {
            body.push_str(&format!("<p>{}.</p>\n", escape(note)));
        }
    }
    format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width\"><title>jetforge bench</title>\
         <style>{STYLE}</style></head><body>\n<h1>jetforge bench</h1>\n{body}\
         <p>Bars end at the median; lines go from the lowest to the highest round.</p>\n\
         </body></html>\n"
    )
}

/// Bars of figures with one unit, on one scale.
fn plot(figures: &[&Figure], unit: Unit) -> String {
    let most = figures.iter().map(|figure| figure.high()).fold(0.0, f64::max);
    let x = |value: f64| BARS_AT + (WIDTH - BARS_AT - 90.0) * value / most.max(f64::MIN_POSITIVE);
    let height = BAR_HEIGHT * figures.len() as f64 + 4.0;
    let mut svg = format!("<svg viewBox=\"0 0 {WIDTH} {height}\" role=\"img\">\n");
    for (i, figure) in figures.iter().enumerate() {
        let y = BAR_HEIGHT * i as f64;
        let (low, median, high) = (x(figure.low()), x(figure.median()), x(figure.high()));
        let (middle, line) = (y + 15.0, y + 11.0);
        svg.push_str(&format!(
            "<text x=\"0\" y=\"{middle}\">{}</text>\
             <rect x=\"{BARS_AT}\" y=\"{}\" width=\"{:.1}\" height=\"14\" fill=\"#3d7ea6\"/>\
             <line x1=\"{low:.1}\" x2=\"{high:.1}\" y1=\"{line}\" y2=\"{line}\" \
             stroke=\"#d1603d\"/>\
             <text x=\"{:.1}\" y=\"{middle}\">{:.1} {}</text>\n",
            escape(&figure.test),
            y + 4.0,
            median - BARS_AT,
            high + 6.0,
            figure.median(),
            unit.sign(),
        ));
    }
    svg.push_str("</svg>\n");
    svg
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::super::report::tests::report;
    use super::*;

    #[test]
    fn the_page_needs_nothing_else_and_shows_names_as_text() {
        let page = page(&[report(1.0)]);
        assert!(!page.contains("http") && !page.contains("<script"));
        assert!(page.contains("a &lt;fast&gt; one"));
        assert!(page.contains("110.0 tok/s") && page.contains("28 %"));
        assert_eq!(page.matches("<rect").count(), 2);
    }
}
