//! What a load's samples come to: percentiles, a table for people, JSON for programs.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::measure::Outcome;

/// The value below which `percent` of the values lie (nearest rank); 0 for none.
pub fn percentile(values: &mut [f64], percent: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    let rank = (percent / 100.0 * values.len() as f64).ceil() as usize;
    values.get(rank.saturating_sub(1)).copied().unwrap_or(0.0)
}

/// p50, p95 and p99.
fn percentiles(values: &mut [f64]) -> [f64; 3] {
    [50.0, 95.0, 99.0].map(|percent| percentile(values, percent))
}

/// The middle of some values; 0 for none.
pub fn median(mut values: Vec<f64>) -> f64 {
    percentile(&mut values, 50.0)
}

/// One row of the table.
#[derive(Clone, Debug)]
pub struct Row {
    /// Which server.
    pub server: String,
    /// Clients, or the rate of arrivals.
    pub load: String,
    /// Requests.
    pub n_request: usize,
    /// Seconds until the first text.
    pub ttft_s: [f64; 3],
    /// Seconds between texts.
    pub itl_s: [f64; 3],
    /// Seconds until the end.
    pub wait_s: [f64; 3],
    /// The slowest client's mean wait over the median client's.
    pub unfairness: f64,
    /// Tokens of answers a second, all together.
    pub tok_s: f64,
    /// Errors by status (0: no answer, 200: an answer that was not whole).
    pub errors: BTreeMap<u16, usize>,
    /// The first of them.
    pub first_error: Option<String>,
}

impl Row {
    /// Of one outcome.
    pub fn of(server: &str, load: String, outcome: &Outcome) -> Row {
        let good: Vec<_> = outcome.samples.iter().filter(|s| s.error.is_none()).collect();
        let n_generated: usize = good.iter().map(|s| s.n_generated).sum();
        let mut errors = BTreeMap::new();
        for sample in outcome.samples.iter().filter(|s| s.error.is_some()) {
            *errors.entry(sample.status).or_insert(0) += 1;
        }
        let mut ttft: Vec<f64> = good.iter().map(|s| s.ttft_s).collect();
        let mut itl: Vec<f64> = good.iter().flat_map(|s| s.gaps_s.iter().copied()).collect();
        let mut wait: Vec<f64> = good.iter().map(|s| s.wait_s).collect();
        Row {
            server: server.to_owned(),
            load,
            n_request: outcome.samples.len(),
            ttft_s: percentiles(&mut ttft),
            itl_s: percentiles(&mut itl),
            wait_s: percentiles(&mut wait),
            unfairness: unfairness(outcome),
            tok_s: n_generated as f64 / outcome.took_s,
            errors,
            first_error: outcome.samples.iter().find_map(|s| s.error.clone()),
        }
    }

    /// Whether every answer came and was whole.
    pub fn is_clean(&self) -> bool {
        self.errors.is_empty()
    }

    fn json(&self) -> Value {
        let named = |[p50, p95, p99]: [f64; 3]| json!({"p50": p50, "p95": p95, "p99": p99});
        json!({
            "server": self.server,
            "load": self.load,
            "n_request": self.n_request,
            "ttft_s": named(self.ttft_s),
            "inter_token_s": named(self.itl_s),
            "wait_s": named(self.wait_s),
            "slowest_client_over_median": self.unfairness,
            "generated_tok_s": self.tok_s,
            "errors": self.errors,
            "first_error": self.first_error,
        })
    }
}

/// The slowest client's mean wait over the median client's.
pub fn unfairness(outcome: &Outcome) -> f64 {
    let mut waits: BTreeMap<usize, Vec<f64>> = BTreeMap::new();
    for sample in &outcome.samples {
        waits.entry(sample.client_idx).or_default().push(sample.wait_s);
    }
    let means = waits.values().map(|waits| waits.iter().sum::<f64>() / waits.len() as f64);
    let mut means: Vec<f64> = means.collect();
    percentile(&mut means, 100.0) / percentile(&mut means, 50.0).max(1e-9)
}

/// The rows as a table in Markdown.
pub fn table(rows: &[Row]) -> String {
    let mut text = String::from(
        "| server | load | requests | tok/s | TTFT ms p50/p95/p99 | between tokens ms \
         p50/p95/p99 | wait s p50/p95/p99 | slowest client | errors |\n|---|---|---|---|---|---|---|---|---|\n",
    );
    let ms = |p: [f64; 3]| p.map(|s| format!("{:.0}", s * 1e3)).join(" / ");
    let s = |p: [f64; 3]| p.map(|s| format!("{s:.2}")).join(" / ");
    for row in rows {
        let errors: Vec<String> = row.errors.iter().map(|(s, n)| format!("{n} x {s}")).collect();
        let cells = [
            row.server.clone(),
            row.load.clone(),
            row.n_request.to_string(),
            format!("{:.1}", row.tok_s),
            ms(row.ttft_s),
            ms(row.itl_s),
            s(row.wait_s),
            format!("{:.2}", row.unfairness),
            if errors.is_empty() { "0".to_owned() } else { errors.join(", ") },
        ];
        text += &format!("| {} |\n", cells.join(" | "));
    }
    for error in rows.iter().filter_map(|row| row.first_error.as_ref()) {
        text += &format!("first error: {error}\n");
    }
    text
}

/// One row for each server and load: the medians of the rounds, and of the ratios of their
/// tokens a second to those of the second server, with the lowest and highest.
pub fn medians(rounds: &[Vec<Row>]) -> (Vec<Row>, Vec<String>) {
    let Some(first) = rounds.first() else { return Default::default() };
    let mut rows = Vec::new();
    for (idx, row) in first.iter().enumerate() {
        let all = || rounds.iter().filter_map(|round| round.get(idx));
        let of = |read: &dyn Fn(&Row) -> f64| median(all().map(read).collect());
        let three =
            |read: fn(&Row) -> [f64; 3]| std::array::from_fn(|p| of(&|row: &Row| read(row)[p]));
        let mut errors = BTreeMap::new();
        for (status, n) in all().flat_map(|row| row.errors.clone()) {
            *errors.entry(status).or_insert(0) += n;
        }
        rows.push(Row {
            n_request: all().map(|row| row.n_request).sum(),
            ttft_s: three(|row| row.ttft_s),
            itl_s: three(|row| row.itl_s),
            wait_s: three(|row| row.wait_s),
            unfairness: of(&|row| row.unfairness),
            tok_s: of(&|row| row.tok_s),
            errors,
            first_error: all().find_map(|row| row.first_error.clone()),
            ..row.clone()
        });
    }
    (rows, ratios(rounds))
}

fn ratios(rounds: &[Vec<Row>]) -> Vec<String> {
    let mut by_load: BTreeMap<usize, (String, Vec<f64>)> = BTreeMap::new();
    for round in rounds {
        let Some(ours) = round.first().map(|row| row.server.clone()) else { continue };
        for (idx, row) in round.iter().filter(|row| row.server == ours).enumerate() {
            let peer = round.iter().find(|p| p.server != ours && p.load == row.load);
            let Some(peer) = peer.filter(|peer| peer.tok_s > 0.0) else { continue };
            let entry = by_load.entry(idx).or_insert_with(|| (row.load.clone(), Vec::new()));
            entry.1.push(row.tok_s / peer.tok_s);
        }
    }
    let say = |(load, mut ratios): (String, Vec<f64>)| {
        let [low, middle, high] = [0.0, 50.0, 100.0].map(|p| percentile(&mut ratios, p));
        format!("{load}: {middle:.2} ({low:.2}-{high:.2}) of the second server's tokens a second")
    };
    by_load.into_values().map(say).collect()
}

/// Everything as JSON.
pub fn json(rows: &[Row], ratios: &[String]) -> Value {
    json!({"rows": rows.iter().map(Row::json).collect::<Vec<_>>(), "ratios": ratios})
}
