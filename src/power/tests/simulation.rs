//! Hours of a Nano's life: the governor against a small model of its heat, power and speed.
//!
//! ```text
//! chip 3 J/K --1.0 K/W-- heat sink 70 J/K --6 K/W (2 with the fan)-- air
//! watts = 1.25 + leakage(chip) + share of time that computes * (0.7 memory + cores * f V^2)
//! ```
//!
//! The numbers are guesses of the right size (a 10 W board that a bare heat sink holds some 50
//! degrees above the air); what is asserted must hold for many of them, so seeds vary them.

use crate::power::config::PowerConfig;
use crate::power::governor::{Cause, Decision, EngineView, Phase, Policy, State, Vitals, govern};
use crate::power::profile::{Compute, Profile, Supply};
use crate::power::tests::governor::policy_of;

/// Numbers that look random, from a seed (splitmix64).
struct Rng(u64);

impl Rng {
    fn unit(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }

    fn between(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * self.unit()
    }
}

/// A board in a room.
struct Nano {
    air_c: f64,
    sink_c: f64,
    chip_c: f64,
    /// Kelvin for a watt from sink to air, without fan.
    resistance: f64,
    has_fan: bool,
    /// Watts of four cores at the top.
    cores_w: f64,
    /// Tokens a second that memory allows, and that the cores allow at the top.
    memory_tok_s: f64,
    cores_tok_s: f64,
}

const TOP_KHZ: f64 = 1_428_000.0;

impl Nano {
    fn new(rng: &mut Rng, air_c: f64, has_fan: bool) -> Nano {
        Nano {
            air_c,
            sink_c: air_c,
            chip_c: air_c,
            resistance: rng.between(5.0, 7.0),
            has_fan,
            cores_w: rng.between(4.0, 7.0),
            memory_tok_s: 10.0,
            cores_tok_s: rng.between(13.0, 20.0),
        }
    }

    /// Clock and cores as shares of the most.
    fn clock(decision: &Decision) -> (f64, f64) {
        let cores = decision.settings.n_core.unwrap_or(4) as f64 / 4.0;
        (f64::from(decision.settings.cpu_khz_max) / TOP_KHZ, cores)
    }

    fn decode_tok_s(&self, decision: &Decision) -> f64 {
        let (clock, cores) = Nano::clock(decision);
        let of_cores = self.cores_tok_s * clock * cores;
        (of_cores.powi(-4) + self.memory_tok_s.powi(-4)).powf(-0.25)
    }

    fn watts(&self, decision: &Decision, phase: Phase) -> f64 {
        let (clock, cores) = Nano::clock(decision);
        let volts = (0.75 + 0.35 * clock) / 1.1;
        let busy = match phase {
            Phase::Idle => 0.0,
            _ => f64::from(decision.pace.duty_permille) / 1000.0,
        };
        let leakage = 0.3 * ((self.chip_c - 50.0) / 40.0).exp();
        let dynamic = self.cores_w * cores * clock * volts * volts;
        1.25 + leakage + busy * (0.7 + dynamic) + 0.05 * dynamic
    }

    fn warm(&mut self, watts: f64, fan_pwm: u32, seconds: f64) {
        let fan = if self.has_fan { f64::from(fan_pwm) / 255.0 } else { 0.0 };
        let to_air = 1.0 / self.resistance + fan * (0.5 - 1.0 / self.resistance);
        for _ in 0..10 {
            let dt = seconds / 10.0;
            let up = self.chip_c - self.sink_c;
            self.chip_c += dt * (watts - up) / 3.0;
            self.sink_c += dt * (up - to_air * (self.sink_c - self.air_c)) / 70.0;
        }
    }
}

/// What happens to a board.
struct World {
    policy: Policy,
    nano: Nano,
    rng: Rng,
    state: State,
    now_s: u64,
    last: Decision,
    /// Share of the time in which there is work.
    work: f64,
    phase: Phase,
    phase_left_s: f64,
    tokens: f64,
    joules: f64,
    n_over_current: u64,
    is_blind: bool,
    /// Temperature, level and share of time, second by second.
    trace: Vec<(f64, usize, u16)>,
}

impl World {
    fn new(seed: u64, config: &PowerConfig, air_c: f64, has_fan: bool) -> World {
        let mut rng = Rng(seed);
        let nano = Nano::new(&mut rng, air_c, has_fan);
        let policy = policy_of(config);
        let start = Vitals { temp_mc: Some(40_000), ..Vitals::default() };
        let (state, last) = govern(&policy, &State::default(), &start, &EngineView::default(), 0);
        World {
            policy,
            nano,
            rng,
            state,
            now_s: 0,
            last,
            work: 1.0,
            phase: Phase::Idle,
            phase_left_s: 0.0,
            tokens: 0.0,
            joules: 0.0,
            n_over_current: 0,
            is_blind: false,
            trace: Vec::new(),
        }
    }

    /// The next phase of the engine; prefill is as long as its arithmetic.
    fn work(&mut self) {
        self.phase_left_s -= match self.phase {
            Phase::Prefill => {
                let (clock, cores) = Nano::clock(&self.last);
                clock * cores * f64::from(self.last.pace.duty_permille) / 1000.0
            }
            _ => 1.0,
        };
        if self.phase_left_s > 0.0 {
            return;
        }
        (self.phase, self.phase_left_s) = match self.phase {
            Phase::Prefill => (Phase::Decode, self.rng.between(20.0, 120.0)),
            _ if self.rng.unit() < self.work => (Phase::Prefill, self.rng.between(2.0, 20.0)),
            _ => (Phase::Idle, self.rng.between(10.0, 300.0)),
        };
    }

    fn second(&mut self) {
        self.work();
        let watts = self.nano.watts(&self.last, self.phase);
        let fan_pwm = self.last.settings.fan_pwm.unwrap_or(0);
        self.nano.warm(watts, fan_pwm, 1.0);
        self.joules += watts;
        if self.phase == Phase::Decode {
            let duty = f64::from(self.last.pace.duty_permille) / 1000.0;
            self.tokens += self.nano.decode_tok_s(&self.last) * duty;
        }
        // Sensors have steps of half a degree, and the rail's a little noise.
        let mc = (self.nano.chip_c * 2.0).round() as i32 * 500;
        let mw = watts * self.rng.between(0.99, 1.01) * 1000.0;
        let vitals = Vitals {
            temp_mc: (!self.is_blind).then_some(mc),
            board_mw: Some(mw as u32),
            n_over_current: Some(self.n_over_current),
            cpu_khz_max: Some(self.last.settings.cpu_khz_max),
            ..Vitals::default()
        };
        let is_busy = u32::from(self.phase != Phase::Idle);
        let engine = EngineView {
            phase: self.phase,
            compute: Compute::Cpu,
            model: 1,
            n_decoded: self.tokens as u64,
            n_sequence: is_busy,
            n_interactive: is_busy,
        };
        self.now_s += 1;
        let now_ms = self.now_s * 1000;
        (self.state, self.last) = govern(&self.policy, &self.state, &vitals, &engine, now_ms);
        let duty = self.last.pace.duty_permille;
        self.trace.push((self.nano.chip_c, self.last.level_idx, duty));
    }

    fn run(&mut self, seconds: usize) -> &mut World {
        (0..seconds).for_each(|_| self.second());
        self
    }

    fn hottest_c(&self) -> f64 {
        self.trace.iter().map(|(chip_c, _, _)| *chip_c).fold(0.0, f64::max)
    }
}

fn config(profile: Profile) -> PowerConfig {
    PowerConfig { profile, supply: Some(Supply::Barrel), ..PowerConfig::default() }
}

const HOUR: usize = 3600;

/// Two hours each of 60 boards, without a fan in rooms of up to 45 degrees: the soft limit of 75
/// degrees is passed by no more than the chip moves between two looks.
#[test]
fn heat_is_held_by_pauses() {
    for seed in 0..60 {
        let mut rng = Rng(seed + 1000);
        let profile = Profile::ALL[seed as usize % 4];
        let mut world = World::new(seed, &config(profile), rng.between(15.0, 45.0), false);
        world.work = rng.between(0.5, 1.0);
        world.run(2 * HOUR);
        let hottest_c = world.hottest_c();
        assert!(hottest_c < 78.0, "seed {seed}, {profile:?}: {hottest_c}");
    }
}

/// Work without end in a room of 40 degrees, no fan. In the third and fourth hour a level changes
/// at most a few times, and what the engine is told moves little.
#[test]
fn nothing_swings_once_it_is_warm() {
    for seed in 0..20 {
        let mut world = World::new(seed, &config(Profile::Max), 40.0, false);
        (world.phase, world.phase_left_s) = (Phase::Decode, f64::INFINITY);
        world.run(4 * HOUR);
        let late = &world.trace[2 * HOUR..];
        let n_change = late.windows(2).filter(|pair| pair[0].1 != pair[1].1).count();
        assert!(n_change <= 12, "seed {seed}: {n_change} changes of level in two hours");
        let turns = late.windows(2).filter(|pair| pair[0].2 != pair[1].2).count();
        assert!(turns < 2 * HOUR / 20, "seed {seed}: told anew {turns} times in two hours");
        assert!(world.hottest_c() < 78.0, "seed {seed}: {}", world.hottest_c());
    }
}

/// The same work under each profile, a fan, a room of 25 degrees.
#[test]
fn max_is_the_fastest_and_eco_the_cheapest() {
    for seed in 0..20 {
        let run = |profile| {
            let mut world = World::new(seed, &config(profile), 25.0, true);
            (world.phase, world.phase_left_s) = (Phase::Decode, f64::INFINITY);
            world.run(HOUR);
            (world.tokens, world.joules / world.tokens)
        };
        let (max, balanced, eco) = (run(Profile::Max), run(Profile::Balanced), run(Profile::Eco));
        assert!(
            max.0 >= balanced.0 && balanced.0 >= eco.0,
            "seed {seed}: {max:?} {balanced:?} {eco:?}"
        );
        assert!(balanced.0 >= 0.93 * max.0, "seed {seed}: {max:?} {balanced:?}");
        assert!(balanced.1 < max.1, "seed {seed}: {max:?} {balanced:?}");
        assert!(eco.1 < max.1, "seed {seed}: {max:?} {eco:?}");
    }
}

/// A board that would take more than its supply gives stays below it, but for single seconds.
#[test]
fn the_class_of_the_supply_is_kept() {
    for seed in 0..20 {
        let mut config = config(Profile::Max);
        config.supply = Some(Supply::Watts5);
        let mut world = World::new(seed, &config, 25.0, true);
        world.nano.cores_w = 16.0;
        (world.phase, world.phase_left_s) = (Phase::Decode, f64::INFINITY);
        let mut n_over = 0;
        for _ in 0..HOUR {
            world.second();
            n_over += usize::from(world.nano.watts(&world.last, world.phase) > 5.05);
        }
        assert!(n_over <= 30, "seed {seed}: over for {n_over} seconds of an hour");
    }
}

/// Silent sensors and sagging supplies, at any time: half an hour later the board is as fast as it
/// was, and meanwhile it never came near the hard limit.
#[test]
fn it_recovers_from_what_breaks() {
    for seed in 0..20 {
        let mut world = World::new(seed, &config(Profile::Max), 25.0, true);
        (world.phase, world.phase_left_s) = (Phase::Decode, f64::INFINITY);
        world.run(HOUR / 2);
        let before = (world.last.level_idx, world.last.pace.duty_permille);
        world.is_blind = true;
        let for_s = 20 + world.rng.between(0.0, 600.0) as usize;
        world.run(for_s);
        assert!(world.last.causes.contains(&Cause::NoSensor), "seed {seed}");
        world.is_blind = false;
        world.n_over_current += 1;
        world.run(1);
        assert!(world.last.level_idx <= before.0 / 2, "seed {seed}");
        world.run(HOUR / 2);
        let after = (world.last.level_idx, world.last.pace.duty_permille);
        assert_eq!(after, before, "seed {seed}");
        assert!(world.hottest_c() < 85.0, "seed {seed}: {}", world.hottest_c());
    }
}
