//! The service against `jetforge bench`: what is left of its tokens a second behind HTTP.
//!
//! One client asks for as many tokens as `bench` writes, greedily and after as short a prompt; the
//! two take turns, and each turn gives a ratio.

use std::process::Command;
use std::time::Instant;

use anyhow::{Context, bail};
use serde_json::Value;

use super::Args;
use super::ask::{Ask, Sample};
use super::host::Host;
use super::report::median;

/// Tokens of an answer.
const N_PREDICT: usize = 128;
/// What is promised.
const SHARE_MIN: f64 = 0.97;
/// Answers of a turn, after one that warms up; `bench` gives as many rounds.
const N_ANSWER: usize = 3;

/// Measures in turn and prints; whether the promise is kept.
pub async fn run(args: &Args) -> anyhow::Result<bool> {
    let host = args.host(&args.jetforge, N_PREDICT + 64).await?;
    let mut turns = Vec::new();
    println!("| turn | bench tok/s | service tok/s | share |\n|---|---|---|---|");
    for turn in 0..args.rounds.max(1) {
        let service = service(&host).await?;
        let bench = bench(args)?;
        println!("| {turn} | {bench:.1} | {service:.1} | {:.3} |", service / bench);
        turns.push(service / bench);
    }
    host.stop().await?;
    let low = turns.iter().copied().fold(f64::INFINITY, f64::min);
    let high = turns.iter().copied().fold(0.0, f64::max);
    let middle = median(turns);
    let is_kept = middle >= SHARE_MIN;
    let word = if is_kept { "kept" } else { "MISSED" };
    println!("share of bench: {middle:.3} ({low:.3}-{high:.3}), promised {SHARE_MIN}: {word}");
    Ok(is_kept)
}

/// Tokens a second as the client sees them: the middle of some answers.
async fn service(host: &Host) -> anyhow::Result<f64> {
    let mut rates = Vec::new();
    for _ in 0..=N_ANSWER {
        let ask = Ask { prompt: vec![1], n_predict: N_PREDICT + 1, seed: 1, temperature: 0.0 };
        let sample = ask.run(&host.client, 0, Instant::now()).await;
        if let Some(error) = &sample.error {
            bail!("{error}");
        }
        rates.push(rate(&sample));
    }
    Ok(median(rates.split_off(1)))
}

/// All tokens over all the time, from asking to the end of the stream: a prompt of one token takes
/// as long as a token of the answer, and whatever HTTP adds counts.
fn rate(sample: &Sample) -> f64 {
    sample.n_generated as f64 / sample.wait_s
}

/// What `bench` says of the same model and threads.
fn bench(args: &Args) -> anyhow::Result<f64> {
    let mut command = Command::new(&args.jetforge);
    command.args(["bench", "--quick", "--json", "-p", "1", "-d", "0", "--streams", "1"]);
    command.args(["-n", &N_PREDICT.to_string(), "-r", &N_ANSWER.to_string()]);
    command.args(["-t", &args.threads.to_string()]);
    if let Some(model) = &args.model {
        command.arg("-m").arg(model);
    }
    let home = tempfile::tempdir()?;
    let output = command.env("HOME", home.path()).output()?;
    if !output.status.success() {
        bail!("bench: {}", String::from_utf8_lossy(&output.stderr));
    }
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let lines = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let test = format!("tg{N_PREDICT}");
    let figure = lines.into_iter().find(|line| line["test"] == test.as_str());
    figure.and_then(|figure| figure["median"].as_f64()).context("bench printed no such figure")
}
