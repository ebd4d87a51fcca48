//! Advice: which model suits a machine, by arithmetic that is shown.
//!
//! ```text
//! decode    tok/s = memory (GB/s) x DECODE_SHARE / bytes that a token reads
//! prefill   tok/s = integer rate (GMAC/s) x PREFILL_SHARE / weights
//! ```
//!
//! Of this machine both limits are measured. Of a board that is not here they are a profile, and
//! what follows from them is a prediction.

use super::limits::Limits;
use super::predicted::{Predicted, Work};

/// Part of the memory's rate that decode reaches, taken low: see docs/performance.md.
const DECODE_SHARE: f64 = 0.75;
/// Part of the integer rate that prefill reaches, taken low.
const PREFILL_SHARE: f64 = 0.35;
/// Slower than this nobody waits for it: about the pace at which people read code.
const DECODE_MIN: f64 = 5.0;
/// A shorter context holds no file worth speaking of.
const N_CTX_MIN: u32 = 2048;

/// A machine as far as advice needs it.
#[derive(Clone, Debug, PartialEq)]
pub struct Profile {
    /// Name for people.
    pub name: String,
    /// What it can do.
    pub limits: Limits,
    /// Threads to use.
    pub n_threads: usize,
    /// What to set before.
    pub power_mode: &'static str,
    /// Whether it has the GPU that [`Work::predict`] is about.
    pub has_nano_gpu: bool,
    /// Whether the limits were measured here.
    pub is_measured: bool,
}

impl Profile {
    /// A board that is not here. Four Cortex-A57 at 1.43 GHz: sysbench reads 6.9 GB/s with one
    /// thread and nobody published four, so that is what is assumed; 6 multiply-adds a cycle and
    /// core is the bound that the NEON kernels are held to.
    pub fn board(name: &str) -> Option<Profile> {
        name.starts_with("jetson-nano").then(|| Profile {
            name: name.to_owned(),
            limits: Limits { memory_gb_s: Some(6.9), integer_gmac_s: Some(4.0 * 1.43 * 6.0) },
            n_threads: 4,
            power_mode: "nvpmodel -m 0 (MAXN, 10 W; needs the barrel jack on a 4 GB board)",
            has_nano_gpu: true,
            is_measured: false,
        })
    }
}

/// A model that could be used.
#[derive(Clone, Debug, PartialEq)]
pub struct Candidate {
    /// Name to ask for it by.
    pub name: String,
    /// Weights.
    pub n_params: f64,
    /// Bytes of the file.
    pub file_bytes: f64,
    /// Largest context that fits beside the weights, 0 if none does.
    pub n_ctx_fits: u32,
    /// What its tokens cost on a GPU.
    pub work: Work,
    /// Whether it is on this machine.
    pub is_here: bool,
}

/// What follows for one model.
#[derive(Clone, Debug, PartialEq)]
pub struct Verdict {
    /// The model.
    pub candidate: Candidate,
    /// Tokens a second of an answer.
    pub decode: f64,
    /// Tokens a second of a prompt, where the integer rate is known.
    pub prefill: Option<f64>,
    /// What the GPU should do, where there is one that is known.
    pub gpu: Option<Predicted>,
    /// Why not, if not.
    pub against: Option<String>,
}

/// What to use.
#[derive(Clone, Debug, PartialEq)]
pub struct Advice {
    /// Each candidate, largest first.
    pub verdicts: Vec<Verdict>,
    /// The best of them.
    pub choice: Option<usize>,
    /// Context, threads, keys and values, and power mode, as lines of text.
    pub settings: Vec<String>,
}

/// Judges candidates on a machine: the largest that fits and is fast enough is best.
pub fn advise(profile: &Profile, mut candidates: Vec<Candidate>) -> Advice {
    candidates.sort_by(|a, b| b.n_params.total_cmp(&a.n_params));
    let memory = profile.limits.memory_gb_s.unwrap_or(0.0);
    let verdict = |candidate: Candidate| {
        let decode = memory * 1e9 * DECODE_SHARE / candidate.file_bytes.max(1.0);
        let rate = profile.limits.integer_gmac_s;
        let prefill = rate.map(|rate| rate * 1e9 * PREFILL_SHARE / candidate.n_params.max(1.0));
        let gpu = profile.has_nano_gpu.then(|| candidate.work.predict());
        let best = gpu.map_or(decode, |gpu| gpu.decode.max(decode));
        let against = if candidate.n_ctx_fits < N_CTX_MIN {
            Some("does not fit".to_owned())
        } else if best < DECODE_MIN {
            Some(format!("below {DECODE_MIN} tok/s"))
        } else {
            None
        };
        Verdict { candidate, decode, prefill, gpu, against }
    };
    let verdicts: Vec<Verdict> = candidates.into_iter().map(verdict).collect();
    let choice = verdicts.iter().position(|verdict| verdict.against.is_none());
    let settings = choice.map_or_else(Vec::new, |i| settings(profile, &verdicts[i]));
    Advice { verdicts, choice, settings }
}

fn settings(profile: &Profile, verdict: &Verdict) -> Vec<String> {
    let candidate = &verdict.candidate;
    let how = if profile.is_measured { "measured" } else { "assumed, not measured" };
    let gb = candidate.file_bytes / 1e9;
    let memory = profile.limits.memory_gb_s.unwrap_or(0.0);
    let mut lines = vec![format!(
        "decode  {memory:.1} GB/s ({how}) x {DECODE_SHARE} / {gb:.2} GB = {:.1} tok/s",
        verdict.decode
    )];
    if let (Some(rate), Some(prefill)) = (profile.limits.integer_gmac_s, verdict.prefill) {
        lines.push(format!(
            "prefill {rate:.0} GMAC/s ({how}) x {PREFILL_SHARE} / {:.2}e9 weights = {prefill:.0} \
             tok/s",
            candidate.n_params / 1e9
        ));
    }
    if profile.has_nano_gpu {
        lines.extend(candidate.work.told());
    }
    // A power of two up to 8,192: longer prompts take minutes at this pace.
    let n_ctx = 1u32 << candidate.n_ctx_fits.min(8192).ilog2();
    lines.push(format!(
        "context {n_ctx}: {} positions fit beside the weights",
        candidate.n_ctx_fits
    ));
    lines.push(format!("threads {}", profile.n_threads));
    let kv = if candidate.n_ctx_fits < 2 * N_CTX_MIN {
        "q8_0: with f16 little more than half the context fits"
    } else {
        "f16: there is room"
    };
    lines.push(format!("keys and values {kv}"));
    lines.push(format!("power   {}", profile.power_mode));
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidate(name: &str, n_params: f64, n_ctx_fits: u32) -> Candidate {
        let name = name.to_owned();
        let file_bytes = n_params * 0.6;
        let work = Work::of_size(n_params, file_bytes);
        Candidate { name, n_params, file_bytes, n_ctx_fits, work, is_here: false }
    }

    fn choice(profile: &Profile, candidates: &[Candidate]) -> Option<String> {
        let advice = advise(profile, candidates.to_vec());
        advice.choice.map(|i| advice.verdicts[i].candidate.name.clone())
    }

    #[test]
    fn the_choice_follows_the_machine() {
        let all = [
            candidate("0.5b", 0.5e9, 32_768),
            candidate("1.5b", 1.5e9, 8192),
            candidate("7b", 7e9, 4096),
            candidate("14b", 14e9, 0),
        ];
        let nano = Profile::board("jetson-nano-4gb").unwrap();
        assert_eq!(choice(&nano, &all).as_deref(), Some("1.5b"));
        let limits = Limits { memory_gb_s: Some(50.0), integer_gmac_s: None };
        let pc = Profile { limits, has_nano_gpu: false, ..nano.clone() };
        assert_eq!(choice(&pc, &all).as_deref(), Some("7b"));
        let limits = Limits { memory_gb_s: Some(1.0), integer_gmac_s: None };
        assert_eq!(choice(&Profile { limits, ..pc }, &all), None);
        // Its GPU writes what its processor is too slow for.
        let three = [candidate("3b", 3e9, 4096)];
        assert_eq!(choice(&nano, &three).as_deref(), Some("3b"));
        assert_eq!(choice(&Profile { has_nano_gpu: false, ..nano }, &three), None);
        assert!(Profile::board("pc-16gb").is_none());
    }

    #[test]
    fn the_arithmetic_is_shown() {
        let nano = Profile::board("jetson-nano-4gb").unwrap();
        let advice = advise(&nano, vec![candidate("1.5b", 1.5e9, 5000)]);
        assert_eq!(
            advice.settings[0],
            "decode  6.9 GB/s (assumed, not measured) x 0.75 / 0.90 GB = 5.8 tok/s"
        );
        assert!(advice.settings[2].starts_with("GPU decode  15.4 GB/s (assumed) / 0.90 GB = 17.1"));
        assert_eq!(advice.settings[4], "context 4096: 5000 positions fit beside the weights");
    }
}
