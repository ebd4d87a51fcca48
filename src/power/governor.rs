//! The governor: what the board tells and what the engine does, into how fast it may go.
//!
//! ```text
//! (state, vitals, engine, now) -> (state, decision)
//!
//! who waits      -> tier      auto: balanced for people, eco for jobs; rises at once, falls late
//! tier, phase    -> level     idle: lowest   prefill: highest   decode: what calibration found
//! heat, supply   -> caps      on the level, and on the share of the time that computes
//! ```
//!
//! It is a pure function: no clock, no file, no thread. Called about once a second and whenever the
//! engine's phase changes. Two hold times keep it from swinging: a level goes down at least 2 s
//! after it was last raised (caps aside, which act at once), a tier at least 30 s after its last
//! change. Prefill races at the highest level, because it is bound by arithmetic and every second
//! it takes the rest of the board burns too; decode waits for memory, so it goes as low as it can
//! without being noticed.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::brake::{At, Brake};
use super::calibrate::{Calibration, Probe, Seen};
use super::heat::{Heat, HeatPolicy};
use super::profile::{Compute, FanCurve, Goal, Ladder, Level, Profile, Tier};
use super::sensors::{Part, Readings, ZoneReading};
use crate::base::hash::fnv1a;
use crate::base::limits::{POWER_CALIBRATIONS_MAX, POWER_STEPS_MAX};

/// What the engine does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Nothing.
    #[default]
    Idle,
    /// Reads prompts.
    Prefill,
    /// Makes tokens.
    Decode,
}

/// What the engine says of itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EngineView {
    /// What it does now.
    pub phase: Phase,
    /// What those that are loaded compute on.
    pub compute: Compute,
    /// A number of the model that runs, for what was measured of it.
    pub model: u64,
    /// Tokens decoded since its start.
    pub n_decoded: u64,
    /// Sequences that run.
    pub n_sequence: u32,
    /// Of these and of those that wait, how many somebody waits for.
    pub n_interactive: u32,
}

/// What the board says that matters here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Vitals {
    /// The hottest chip, in thousandths of a degree.
    pub temp_mc: Option<i32>,
    /// What the board takes.
    pub board_mw: Option<u32>,
    /// Over-currents since some start.
    pub n_over_current: Option<u64>,
    /// Highest clock that the cores have, in kHz, as the kernel says.
    pub cpu_khz_max: Option<u32>,
    /// Highest clock that the GPU has, in Hz, as the kernel says.
    pub gpu_hz_max: Option<u64>,
    /// Whether the zone of the cores and that of the GPU answer; `None` for what has no power.
    pub answers: [Option<bool>; 2],
}

impl Vitals {
    /// Of all that was read, what matters here.
    pub fn of(readings: &Readings) -> Vitals {
        let gpu = readings.gpus.iter().find(|gpu| !gpu.devfreq.is_empty());
        let is_off = readings.gpus.iter().any(|gpu| gpu.is_railgated == Some(true));
        let answers = |part: Part| {
            let of_part = |zone: &&ZoneReading| zone.part() == Some(part);
            readings.zones.iter().filter(of_part).any(|zone| zone.temp_mc.is_some())
        };
        Vitals {
            temp_mc: readings.hottest_mc(),
            board_mw: readings.board_mw(),
            n_over_current: readings.throttle.n_over_current,
            cpu_khz_max: readings.cpu.cores.first().and_then(|core| core.max_khz),
            gpu_hz_max: gpu.and_then(|gpu| gpu.max_hz),
            // A GPU that has no power is cold, whatever its sensor says or does not.
            answers: [Some(answers(Part::Cpu)), (!is_off).then(|| answers(Part::Gpu))],
        }
    }

    /// Whether the board is at a level, as it says itself: a level of a clock that cannot be set
    /// is where it is.
    fn is_at(&self, level: Level, compute: Compute) -> bool {
        let cpu_is = level.cpu_khz == 0 || self.cpu_khz_max == Some(level.cpu_khz);
        compute.holds(cpu_is, level.gpu_hz == 0 || self.gpu_hz_max == Some(level.gpu_hz))
    }
}

/// What a tier allows.
#[derive(Clone, Debug, PartialEq)]
pub struct TierPolicy {
    /// Its highest level.
    pub level_max: usize,
    /// Cores that run; `None` for all.
    pub n_core: Option<usize>,
    /// Threads that compute; `None` for one on each core.
    pub n_threads: Option<usize>,
    /// Most tokens of a step; `None` for the configured number.
    pub n_batch: Option<usize>,
    /// Whether jobs may run; `None` lets them, but not in a chosen eco.
    pub background: Option<bool>,
    /// The fan.
    pub fan: FanCurve,
    /// What decode is to be good at.
    pub goal: Goal,
}

/// What never changes while the program runs, but by its owner's hand.
#[derive(Clone, Debug, PartialEq)]
pub struct Policy {
    /// The owner's choice.
    pub profile: Profile,
    /// What computes, and so whose clock is a level's.
    pub compute: Compute,
    /// The clocks that there are.
    pub ladder: Ladder,
    /// What eco, balanced and max allow.
    pub tiers: [TierPolicy; 3],
    /// What heat may be.
    pub heat: HeatPolicy,
    /// What the board may take.
    pub supply_mw: Option<u32>,
    /// Time without work after which clocks fall.
    pub idle_after_ms: u64,
}

/// What the governor remembers.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct State {
    now_ms: Option<u64>,
    tier: Option<(Tier, u64)>,
    busy_ms: u64,
    level_idx: Option<usize>,
    raised_ms: u64,
    heat: Heat,
    brake: Brake,
    probe: Probe,
    duty_permille: u16,
    known: BTreeMap<String, Calibration>,
}

/// What the engine is asked to keep to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct EnginePace {
    /// Of a thousand milliseconds, how many may compute.
    pub duty_permille: u16,
    /// Threads that compute; `None` for the configured number.
    pub n_threads: Option<usize>,
    /// Most tokens of a step; `None` for the configured number.
    pub n_batch: Option<usize>,
    /// Whether jobs may run.
    pub background: bool,
}

/// What the board is to be set to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Settings {
    /// Highest clock of the cores in kHz; 0 leaves it.
    pub cpu_khz_max: u32,
    /// Highest clock of the GPU in Hz; 0 leaves it.
    pub gpu_hz_max: u64,
    /// Cores that run; `None` for all.
    pub n_core: Option<usize>,
    /// The fan; `None` leaves it.
    pub fan_pwm: Option<u32>,
}

/// Why it does not go faster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// Nobody asks for anything.
    Idle,
    /// The chip is near its soft limit.
    Heat,
    /// The sensor of heat is silent.
    NoSensor,
    /// The supply sagged.
    OverCurrent,
    /// The board takes as much as its supply may give.
    Supply,
    /// A level is being measured.
    Calibration,
}

impl Cause {
    /// For people, such as who asks what jobs wait for.
    pub fn words(self) -> &'static str {
        match self {
            Cause::Idle => "nothing to do",
            Cause::Heat => "the board is hot",
            Cause::NoSensor => "the board's temperature cannot be read",
            Cause::OverCurrent => "the power supply sagged",
            Cause::Supply => "the power supply gives no more",
            Cause::Calibration => "the model's clock is being measured",
        }
    }
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Decision {
    /// For the engine and the jobs.
    pub pace: EnginePace,
    /// For the board.
    pub settings: Settings,
    /// What `auto` came to.
    pub tier: Tier,
    /// The level of the ladder.
    pub level_idx: usize,
    /// Why it does not go faster.
    pub causes: Vec<Cause>,
}

/// A level falls no sooner than this after it rose.
const HOLD_MS: u64 = 2_000;
/// A tier falls no sooner than this after it changed.
const TIER_HOLD_MS: u64 = 30_000;
/// What a sensor of a running chip can say.
const BELIEVED_MC: std::ops::RangeInclusive<i32> = -40_000..=150_000;
/// Time between two looks counts as at most this much.
const DT_S_MAX: f64 = 5.0;
/// The pace is told anew when it changed by this much.
const PACE_STEP: u16 = 20;

/// What to do now, and what to remember. See the top of this file.
pub fn govern(
    policy: &Policy,
    state: &State,
    vitals: &Vitals,
    engine: &EngineView,
    now_ms: u64,
) -> (State, Decision) {
    let mut state = state.clone();
    // A clock that goes back stands still here.
    let now_ms = now_ms.max(state.now_ms.unwrap_or(0));
    let dt_ms = now_ms - state.now_ms.replace(now_ms).unwrap_or(now_ms);
    let dt_s = (dt_ms as f64 / 1000.0).min(DT_S_MAX);
    if engine.phase != Phase::Idle {
        state.busy_ms = now_ms;
    }
    let tier = state.choose_tier(policy, engine, now_ms);
    let spec = &policy.tiers[tier as usize];
    let top = policy.ladder.top();
    let level_now = state.level_idx.unwrap_or(spec.level_max);
    let temp_mc = vitals.temp_mc.filter(|mc| BELIEVED_MC.contains(mc));
    let temp_mc = state.heat.listen(temp_mc, vitals.answers, now_ms);
    let heat = state.heat.step(&policy.heat, &spec.fan, temp_mc, now_ms, dt_s, top);
    let (mw, n_alarm) = (vitals.board_mw, vitals.n_over_current);
    let is_there = vitals.is_at(policy.ladder.level(level_now), policy.compute);
    let at = At { level_idx: level_now, top, is_there };
    let supply = state.brake.step(policy.supply_mw, mw, n_alarm, at, now_ms);
    let cap = heat.level_max.min(supply.level_max);
    let duty = heat.duty.min(supply.duty);
    let is_free = duty >= 1.0 && cap >= spec.level_max;
    let at = Attempt { tier, is_free, is_there, mw, now_ms };
    let (wanted, mut causes) = state.want(spec, policy, engine, at);
    let level_idx = state.move_level(wanted, cap.min(spec.level_max), now_ms);
    let mut because = |is: bool, cause: Cause| causes.extend(is.then_some(cause));
    let is_hot = heat.duty < 1.0 || heat.level_max < spec.level_max;
    because(is_hot && !heat.is_blind, Cause::Heat);
    because(heat.is_blind, Cause::NoSensor);
    because(supply.is_alarm, Cause::OverCurrent);
    let is_over = supply.level_max < spec.level_max || supply.duty < 1.0;
    because(!supply.is_alarm && is_over, Cause::Supply);
    let is_cool = heat.is_cool && supply.is_steady && duty >= super::heat::DUTY_MIN;
    // The profile of now: a person may have chosen another than the configured one.
    let is_built_in = tier != Tier::Eco || policy.profile == Profile::Auto;
    let is_allowed = spec.background.unwrap_or(is_built_in);
    let level = policy.ladder.level(level_idx);
    let decision = Decision {
        pace: EnginePace {
            duty_permille: state.tell_duty(duty),
            n_threads: spec.n_threads.or(spec.n_core),
            n_batch: spec.n_batch,
            background: is_allowed && is_cool,
        },
        settings: Settings {
            cpu_khz_max: level.cpu_khz,
            gpu_hz_max: level.gpu_hz,
            n_core: spec.n_core,
            fan_pwm: heat.fan_pwm,
        },
        tier,
        level_idx,
        causes,
    };
    (state, decision)
}

/// The circumstances of a look at decode.
#[derive(Clone, Copy, Debug)]
struct Attempt {
    tier: Tier,
    /// Whether nothing holds the level down.
    is_free: bool,
    /// Whether the board is at the level that it was set to.
    is_there: bool,
    mw: Option<u32>,
    now_ms: u64,
}

/// Under which what was measured of a model is kept: all that its meaning hangs on.
fn key(policy: &Policy, tier: Tier, model: u64) -> String {
    let spec = &policy.tiers[tier as usize];
    let compute = policy.compute.name();
    let n_core = spec.n_core.unwrap_or(0);
    let of_ladder = of_ladder(&policy.ladder);
    format!("{model:016x}-{}-{compute}-{n_core}-{}{of_ladder}", tier as usize, spec.level_max)
}

/// The end of the keys of this ladder: levels of another one are other clocks.
fn of_ladder(ladder: &Ladder) -> String {
    let clocks = (0..=ladder.top()).flat_map(|level_idx| {
        let Level { cpu_khz, gpu_hz } = ladder.level(level_idx);
        [u64::from(cpu_khz), gpu_hz]
    });
    format!("-{:016x}", fnv1a(clocks.flat_map(u64::to_le_bytes)))
}

impl State {
    /// What is known of models, by their keys, for the next start.
    pub fn calibrations(&self) -> &BTreeMap<String, Calibration> {
        &self.known
    }

    /// A state that begins with what was known before; what cannot be of its ladder is left out.
    /// What was measured on another ladder stays for when that one is back.
    pub fn with_calibrations(known: BTreeMap<String, Calibration>, ladder: &Ladder) -> State {
        let end = of_ladder(ladder);
        let top_of = |key: &str| if key.ends_with(&end) { ladder.top() } else { POWER_STEPS_MAX };
        let known = known.into_iter().filter(|(key, known)| known.is_sound(top_of(key)));
        State { known: known.take(POWER_CALIBRATIONS_MAX).collect(), ..State::default() }
    }

    /// The same on another ladder: heat and supply stay as they were, levels begin anew.
    pub fn on_ladder(self, ladder: &Ladder) -> State {
        let State { known, heat, brake, now_ms, .. } = self;
        State { heat, brake, now_ms, ..State::with_calibrations(known, ladder) }
    }

    /// The tier of the profile; `auto` looks at who waits. It rises at once and falls late.
    fn choose_tier(&mut self, policy: &Policy, engine: &EngineView, now_ms: u64) -> Tier {
        let fixed = match policy.profile {
            Profile::Max => Some(Tier::Max),
            Profile::Balanced => Some(Tier::Balanced),
            Profile::Eco => Some(Tier::Eco),
            Profile::Auto => None,
        };
        let wanted = if engine.n_interactive > 0 { Tier::Balanced } else { Tier::Eco };
        let tier = match (fixed, self.tier) {
            (Some(tier), _) => tier,
            (None, None) => wanted,
            (None, Some((tier, since_ms))) => {
                let is_late = now_ms - since_ms.min(now_ms) >= TIER_HOLD_MS;
                if wanted > tier || is_late { wanted } else { tier.min(Tier::Balanced) }
            }
        };
        // Somebody who waits keeps it up; the time counts from when the last one left.
        let is_kept = fixed.is_none() && wanted == tier;
        match self.tier {
            Some((same, _)) if same == tier && !is_kept => {}
            _ => self.tier = Some((tier, now_ms)),
        }
        tier
    }

    /// The level for what the engine does, caps aside.
    fn want(
        &mut self,
        spec: &TierPolicy,
        policy: &Policy,
        engine: &EngineView,
        at: Attempt,
    ) -> (usize, Vec<Cause>) {
        let Attempt { tier, is_free, is_there, mw, now_ms } = at;
        let level_now = self.level_idx.unwrap_or(spec.level_max);
        if engine.phase != Phase::Decode {
            self.probe.disturb();
            let is_idle = now_ms.saturating_sub(self.busy_ms) >= policy.idle_after_ms;
            return match engine.phase {
                Phase::Idle if is_idle => (0, vec![Cause::Idle]),
                Phase::Idle => (level_now, Vec::new()),
                _ => (spec.level_max, Vec::new()),
            };
        }
        if spec.goal == Goal::Speed || policy.ladder.top() == 0 {
            return (spec.level_max, Vec::new());
        }
        let key = key(policy, tier, engine.model);
        if !self.known.contains_key(&key) && self.known.len() >= POWER_CALIBRATIONS_MAX {
            self.known.pop_first();
        }
        let known = self.known.entry(key).or_default();
        if !known.is_done() {
            let (n_decoded, n_sequence) = (engine.n_decoded, engine.n_sequence);
            let seen = Seen { now_ms, level_idx: level_now, n_decoded, n_sequence, mw };
            // Where the walk goes on as soon as the board is there.
            let next = known.next(spec.level_max).filter(|_| is_free && !is_there);
            match is_free && is_there {
                true => {
                    if let Some(level) = self.probe.step(known, spec.level_max, seen) {
                        return (level, vec![Cause::Calibration]);
                    }
                }
                false => {
                    self.probe.disturb();
                    if let Some(level) = next {
                        return (level, vec![Cause::Calibration]);
                    }
                }
            }
        }
        (known.choose(spec.goal, spec.level_max).unwrap_or(spec.level_max), Vec::new())
    }

    /// Moves towards the wanted level: up at once, down after a while, under the cap always.
    fn move_level(&mut self, wanted: usize, cap: usize, now_ms: u64) -> usize {
        let level_now = self.level_idx.unwrap_or(wanted);
        let may_fall = now_ms - self.raised_ms.min(now_ms) >= HOLD_MS;
        let level = if wanted >= level_now || may_fall { wanted } else { level_now };
        let level = level.min(cap);
        if level > level_now || self.level_idx.is_none() {
            self.raised_ms = now_ms;
        }
        self.level_idx = Some(level);
        level
    }

    /// The share of the time in thousandths; small changes are not told.
    fn tell_duty(&mut self, duty: f64) -> u16 {
        let permille = (duty * 1000.0).round().clamp(0.0, 1000.0) as u16;
        let is_end = permille == 0 || permille == 1000;
        if is_end || permille.abs_diff(self.duty_permille) >= PACE_STEP {
            self.duty_permille = permille;
        }
        self.duty_permille
    }
}
