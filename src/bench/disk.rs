//! The time to the first token when the prompt's beginning comes from the disk, as after a restart.
//!
//! One engine computes a prompt for each round and keeps them; another one, which has nothing in
//! memory, is asked for them with new tokens behind. What is written and read does not stay in the
//! system's memory, so reading is reading.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::ask::{self, request, run};
use super::figures::{Figure, Unit};
use super::model::TTFT_NEW;
use super::{BenchError, Rooms};
use crate::inference::{
    DiskCache, DiskCacheOptions, Engine, EngineOptions, LoadOptions, Model, ModelSource, TokenId,
};

/// How often the disk is looked at until everything is there.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// Times to the first token behind `n` tokens from the disk; a note where they were computed after
/// all.
///
/// # Errors
/// If the model cannot be loaded or `rooms.disk` not be used.
pub fn measure(
    source: &ModelSource,
    load: &LoadOptions,
    rooms: &Rooms,
    n: usize,
    n_rounds: usize,
    notes: &mut Vec<String>,
) -> Result<Option<Figure>, BenchError> {
    let Some(dir) = &rooms.disk else { return Ok(None) };
    let dir = Folder::make(dir)?;
    let cache = DiskCache::open(DiskCacheOptions {
        dir: dir.0.join("prefixes"),
        key_file: dir.0.join("key"),
        bytes_max: u64::MAX,
        write_bytes_per_day_max: u64::MAX,
        read_bytes_per_s_max: None,
    })?;
    let start = || -> Result<Engine, BenchError> {
        let options = EngineOptions {
            disk_cache: Some(cache.clone()),
            n_disk_min: 1,
            keeps_everything: true,
            ..EngineOptions::default()
        };
        let load = LoadOptions { n_parallel: Some(1), ..load.clone() };
        Ok(Engine::start(Model::load(source, &load)?, options, Box::new(|_| {}))?)
    };
    let engine = start()?;
    let tokens = |n, seed| ask::tokens(engine.info(), n, seed);
    let prompts: Vec<Vec<TokenId>> = (0..=n_rounds as u64).map(|i| tokens(n, 7000 + i)).collect();
    let rest: Vec<Vec<TokenId>> =
        (0..=n_rounds as u64).map(|i| tokens(TTFT_NEW, 8000 + i)).collect();
    for prompt in &prompts {
        run(&engine, request(prompt.clone(), 1, true))?;
        settle(&engine, &cache);
    }
    drop(engine);
    let engine = start()?;
    let (mut times, mut n_computed) = (Vec::new(), 0);
    for (prompt, rest) in prompts.into_iter().zip(rest) {
        let run = run(&engine, request([prompt, rest].concat(), 1, true))?;
        // All but what a page at the end was too short for.
        n_computed += usize::from(run.timings.n_cached + TTFT_NEW < n);
        times.push(run.ttft_ms);
    }
    if n_computed > 0 {
        notes.push(format!(
            "a first token behind {n} tokens from the disk was left out: computing them is faster \
             here than reading them, or the disk had no room"
        ));
        return Ok(None);
    }
    // The first one warms up.
    let test = format!("first token of pp{n}, prefix on disk");
    Ok(Some(Figure::new(test, Unit::Milliseconds, times.split_off(1))))
}

/// Waits until everything is on the disk.
fn settle(engine: &Engine, cache: &DiskCache) {
    // A command is answered between two steps: what the last one did is counted by then.
    let _ = engine.slots().wait();
    while engine.stats().n_keeping > 0 || !cache.is_idle() {
        std::thread::sleep(LOOK_EVERY);
    }
}

/// A folder that goes when it was of use.
struct Folder(PathBuf);

impl Folder {
    fn make(parent: &Path) -> Result<Folder, BenchError> {
        let path = parent.join(format!("bench-{}", std::process::id()));
        let failed = |source| BenchError::File { path: path.clone(), source };
        std::fs::create_dir_all(&path).map_err(failed)?;
        Ok(Folder(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
