//! Ready to serve: from starting the program to the first 200 of `/health`, with its model loaded.
//!
//! Servers take turns, and each start is that of a new process with a home of its own, so that
//! nothing but the system's copy of the model's file is left of the one before.

use std::path::Path;

use serde_json::json;

use super::Args;
use super::report::median;

/// Positions of a sequence: as many as a short answer takes.
const N_CTX_EACH: usize = 256;

/// Starts each server `n_start` times after one start that warms up, and prints; true, because no
/// time is promised here.
pub async fn run(args: &Args, n_start: usize) -> anyhow::Result<bool> {
    let mut programs = vec![("jetforge", args.jetforge.as_path(), Vec::new())];
    programs.extend(args.llama_server.as_deref().map(|path| ("llama-server", path, Vec::new())));
    for turn in 0..=n_start {
        for (_, program, times) in &mut programs {
            let ms = start(args, program).await?;
            times.extend((turn > 0).then_some(ms));
        }
    }
    for (name, _, times) in programs {
        let low = times.iter().copied().fold(f64::INFINITY, f64::min);
        let high = times.iter().copied().fold(0.0, f64::max);
        let middle = median(times.clone());
        if args.json {
            println!("{}", json!({ "server": name, "ready_ms": times, "median": middle }));
        } else {
            println!("{name}: ready after {middle:.0} ms ({low:.0}-{high:.0}, {n_start} starts)");
        }
    }
    Ok(true)
}

/// Milliseconds until a server is ready.
async fn start(args: &Args, program: &Path) -> anyhow::Result<f64> {
    let host = args.host(program, N_CTX_EACH).await?;
    let ready = host.ready_after;
    host.stop().await?;
    Ok(ready.as_secs_f64() * 1e3)
}
