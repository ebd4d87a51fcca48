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
use super::tasks::Task;

/// Part of the memory's rate that decode reaches, taken low: see docs/performance.md.
const DECODE_SHARE: f64 = 0.75;
/// Part of the integer rate that prefill reaches, taken low.
const PREFILL_SHARE: f64 = 0.35;
/// Slower than this nobody waits for it: about the pace at which people read code.
const DECODE_MIN: f64 = 5.0;
/// From here on nobody reads along, and more bits of a weight are worth more than speed.
const DECODE_AMPLE: f64 = 20.0;
/// A shorter context holds no file worth speaking of.
const N_CTX_MIN: u32 = 2048;
/// What `setup-model --quantize` makes: its name, bits of a weight with scales and a better head,
/// and the rate from which on fewer bits are not worth it.
const QUANTS: [(&str, f64, f64); 3] =
    [("8bit", 8.5, DECODE_AMPLE), ("4bit", 4.9, DECODE_MIN), ("3bit", 4.0, DECODE_MIN)];

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
    pub power_mode: String,
    /// Memory for a model: weights, keys and values, scratch.
    pub available_bytes: u64,
    /// Whether it has the GPU that [`Work::predict`] is about.
    pub has_nano_gpu: bool,
    /// Whether the limits were measured here.
    pub is_measured: bool,
}

impl Profile {
    /// A machine that is not here, with so much memory for a model.
    ///
    /// Jetson Nano, four Cortex-A57 at 1.43 GHz: sysbench reads 6.9 GB/s with one thread and
    /// nobody published four, so that is what is assumed; 6 multiply-adds a cycle and core is the
    /// bound that the NEON kernels are held to. A PC: 60 % of two channels of DDR4-3200, and four
    /// cores at 3 GHz with half of the 64 multiply-adds that AVX2 has in a cycle.
    pub fn board(name: &str, available_bytes: u64) -> Option<Profile> {
        let is_nano = name.starts_with("jetson-nano");
        let (memory_gb_s, integer_gmac_s) = match name {
            _ if is_nano => (6.9, 4.0 * 1.43 * 6.0),
            "pc-16gb" => (0.6 * 51.2, 4.0 * 3.0 * 32.0),
            _ => return None,
        };
        Some(Profile {
            name: name.to_owned(),
            limits: Limits { memory_gb_s: Some(memory_gb_s), integer_gmac_s: Some(integer_gmac_s) },
            n_threads: 4,
            power_mode: Profile::power_mode(is_nano, None),
            available_bytes,
            has_nano_gpu: is_nano,
            is_measured: false,
        })
    }

    /// What to set on a Jetson Nano that is fed so much, if that is known, or on another machine.
    pub fn power_mode(is_nano: bool, supply_mw: Option<u32>) -> String {
        match (is_nano, supply_mw) {
            (false, _) => "nothing to set: only a Nano's clocks are chosen by jetforge".to_owned(),
            (true, Some(mw)) if mw < 10_000 => {
                format!("jetforge power max, within the {} W of power.supply", mw / 1000)
            }
            (true, _) => {
                "jetforge power max: nvpmodel's mode 0, MAXN, for which a 4 GB board needs \
                          its barrel jack"
                    .to_owned()
            }
        }
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

impl Verdict {
    /// What it does at best, where that is known: on the GPU, if there is one that is known.
    pub fn rates(&self) -> Option<Predicted> {
        self.gpu.or(self.prefill.map(|prefill| Predicted { decode: self.decode, prefill }))
    }

    /// Seconds that a task takes, if it fits.
    pub fn seconds(&self, task: &Task) -> Option<f64> {
        let fits = task.n_prompt + task.n_predict <= self.candidate.n_ctx_fits as usize;
        self.rates().filter(|_| fits).map(|rates| task.predict(&rates))
    }
}

/// Whether a file of a model whose shapes are not known fits: a third of the weights is generous
/// for keys and values.
pub fn has_room(file_bytes: u64, available_bytes: u64) -> bool {
    file_bytes.saturating_add(file_bytes / 3).saturating_add(96 << 20) < available_bytes
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
    lines.extend(quants(profile, candidate));
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

/// What the model would do with other bits of a weight, and how many to take.
fn quants(profile: &Profile, candidate: &Candidate) -> Vec<String> {
    let memory = profile.limits.memory_gb_s.unwrap_or(0.0);
    let judged = QUANTS.map(|(name, bits, enough)| {
        let n_bytes = candidate.n_params * bits / 8.0;
        let gpu =
            profile.has_nano_gpu.then(|| Work::of_size(candidate.n_params, n_bytes).predict());
        let decode = memory * 1e9 * DECODE_SHARE / n_bytes.max(1.0);
        let decode = gpu.map_or(decode, |gpu| gpu.decode.max(decode));
        let fits = has_room(n_bytes as u64, profile.available_bytes);
        let room = if fits { "" } else { ", does not fit" };
        let text = format!("{name} {:.2} GB, {decode:.1} tok/s{room}", n_bytes / 1e9);
        (name, fits && decode >= enough, text)
    });
    let texts = judged.each_ref().map(|(_, _, text)| text.as_str());
    let own = 8.0 * candidate.file_bytes / candidate.n_params.max(1.0);
    let best = judged.iter().find(|(_, is_good, _)| *is_good).map(|(name, ..)| *name);
    let advice = match best {
        Some(name) => format!(
            "{name}, which `setup-model --quantize {name}` makes: the most bits that fit and write \
             {DECODE_MIN} tok/s, 8 bits {DECODE_AMPLE}; this file has {own:.1}"
        ),
        None => format!("the {own:.1} bits of this file"),
    };
    vec![format!("bits    {}", texts.join("; ")), format!("quant   {advice}")]
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
        let nano = Profile::board("jetson-nano-4gb", 3 << 30).unwrap();
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
        let pc = Profile::board("pc-16gb", 13 << 30).unwrap();
        assert_eq!(choice(&pc, &all).as_deref(), Some("7b"));
        assert!(Profile::board("toaster", 0).is_none());
    }

    /// The line behind a word.
    fn line(advice: &Advice, word: &str) -> String {
        let of = advice.settings.iter().find_map(|line| line.strip_prefix(word));
        of.unwrap_or_else(|| panic!("{word}: {:?}", advice.settings)).trim().to_owned()
    }

    #[test]
    fn bits_are_as_many_as_fit_and_are_fast_enough() {
        let pc = |available_bytes| Profile {
            limits: Limits { memory_gb_s: Some(30.0), integer_gmac_s: None },
            ..Profile::board("pc-16gb", available_bytes).unwrap()
        };
        let quant = |profile: &Profile, n_params| {
            let advice = advise(profile, vec![candidate("x", n_params, 8192)]);
            line(&advice, "quant").split(',').next().unwrap().to_owned()
        };
        assert_eq!(quant(&pc(13 << 30), 0.5e9), "8bit", "42 tok/s");
        assert_eq!(quant(&pc(13 << 30), 1.5e9), "4bit", "14 tok/s with 8 bits");
        assert_eq!(quant(&pc(13 << 30), 7.0e9), "4bit", "5.2 tok/s");
        assert_eq!(quant(&pc(1100 << 20), 1.5e9), "3bit", "4 bits do not fit");
        assert!(quant(&pc(1 << 20), 1.5e9).starts_with("the 4.8 bits of this file"));
        let nano = Profile::board("jetson-nano-2gb", 1200 << 20).unwrap();
        assert_eq!(quant(&nano, 0.5e9), "8bit", "its GPU writes 29 tok/s");
    }

    #[test]
    fn the_power_mode_is_that_of_the_board_and_its_supply() {
        assert!(Profile::power_mode(false, None).starts_with("nothing to set"));
        assert!(Profile::power_mode(true, Some(10_000)).contains("MAXN"));
        assert!(Profile::power_mode(true, Some(5_000)).contains("within the 5 W"));
    }

    #[test]
    fn a_task_takes_its_prompt_and_its_answer() {
        let task = Task { name: "x", n_prompt: 1000, n_predict: 101 };
        let pc = Profile::board("pc-16gb", 13 << 30).unwrap();
        let verdict = |n_ctx| advise(&pc, vec![candidate("x", 1e9, n_ctx)]).verdicts.remove(0);
        let (slow, rates) = (verdict(1000), verdict(1101).rates().unwrap());
        assert_eq!(slow.seconds(&task), None, "it does not fit");
        let seconds = 1000.0 / rates.prefill + 100.0 / rates.decode;
        assert_eq!(verdict(1101).seconds(&task), Some(seconds));
    }

    #[test]
    fn the_arithmetic_is_shown() {
        let nano = Profile::board("jetson-nano-4gb", 3 << 30).unwrap();
        let advice = advise(&nano, vec![candidate("1.5b", 1.5e9, 5000)]);
        assert_eq!(
            advice.settings[0],
            "decode  6.9 GB/s (assumed, not measured) x 0.75 / 0.90 GB = 5.8 tok/s"
        );
        assert!(advice.settings[2].starts_with("GPU decode  15.4 GB/s (assumed) / 0.90 GB = 17.1"));
        assert_eq!(line(&advice, "context"), "4096: 5000 positions fit beside the weights");
        assert!(line(&advice, "bits").starts_with("8bit 1.59 GB, 9.7 tok/s; 4bit 0.92 GB, 16.8"));
    }
}
