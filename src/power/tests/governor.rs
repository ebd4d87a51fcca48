//! What the governor promises, whatever comes in.

use std::sync::OnceLock;

use proptest::prelude::*;

use crate::power::board::Board;
use crate::power::config::PowerConfig;
use crate::power::governor::{Cause, Decision, EngineView, Phase, Policy, State, Vitals, govern};
use crate::power::profile::{Compute, Profile, Supply, Tier};
use crate::power::sensors::{Readings, Sensors};
use crate::power::tests::trees::nano;

/// The policy of a Nano whose clocks may be set.
pub fn policy_of(config: &PowerConfig) -> Policy {
    static NANO: OnceLock<(Board, Readings)> = OnceLock::new();
    let (board, readings) = NANO.get_or_init(|| {
        let dir = nano();
        let mut sensors = Sensors::open(dir.path());
        let readings = sensors.read();
        (sensors.board().clone(), readings)
    });
    let config = PowerConfig { set_clocks: true, ..config.clone() };
    config.policy(board, readings, Compute::Cpu).unwrap()
}

fn of(profile: Profile) -> Policy {
    policy_of(&PowerConfig { profile, supply: Some(Supply::Barrel), ..PowerConfig::default() })
}

/// A governor that is asked second by second.
struct Run {
    policy: Policy,
    state: State,
    vitals: Vitals,
    now_ms: u64,
    n_decoded: u64,
    /// The board takes no settings.
    is_deaf: bool,
}

impl Run {
    fn new(profile: Profile) -> Run {
        let vitals = Vitals {
            temp_mc: Some(40_000),
            board_mw: Some(4_000),
            n_over_current: Some(0),
            ..Vitals::default()
        };
        let (policy, state) = (of(profile), State::default());
        Run { policy, state, vitals, now_ms: 1000, n_decoded: 0, is_deaf: false }
    }

    fn look(&mut self, phase: Phase, n_interactive: u32) -> Decision {
        self.now_ms += 1000;
        self.n_decoded += if phase == Phase::Decode { 10 } else { 0 };
        let engine = EngineView {
            phase,
            compute: Compute::Cpu,
            model: 7,
            n_decoded: self.n_decoded,
            n_sequence: u32::from(phase != Phase::Idle),
            n_interactive,
        };
        let (state, decision) =
            govern(&self.policy, &self.state, &self.vitals, &engine, self.now_ms);
        self.state = state;
        if !self.is_deaf {
            self.vitals.cpu_khz_max = Some(decision.settings.cpu_khz_max);
        }
        decision
    }

    fn wait(&mut self, seconds: usize, phase: Phase, n_interactive: u32) -> Decision {
        let mut last = self.look(phase, n_interactive);
        (1..seconds).for_each(|_| last = self.look(phase, n_interactive));
        last
    }
}

#[test]
fn prefill_races_and_idle_rests() {
    let mut run = Run::new(Profile::Balanced);
    let top = run.policy.ladder.top();
    assert_eq!(run.look(Phase::Prefill, 1).level_idx, top);
    let known = run.wait(120, Phase::Decode, 1);
    assert_eq!(known.level_idx, 0, "this engine is as fast at any clock");
    assert_eq!(run.look(Phase::Prefill, 1).level_idx, top, "at once");
    assert_eq!(run.look(Phase::Decode, 1).level_idx, top, "not yet");
    assert_eq!(run.wait(2, Phase::Decode, 1).level_idx, 0);
    run.look(Phase::Prefill, 1);
    let idle = run.wait(29, Phase::Idle, 0);
    assert_eq!((idle.level_idx, idle.causes.len()), (top, 0), "it may go on any moment");
    let idle = run.wait(2, Phase::Idle, 0);
    assert_eq!((idle.level_idx, idle.causes), (0, vec![Cause::Idle]));
    assert_eq!(run.look(Phase::Prefill, 1).level_idx, top, "raised before the prompt is read");
}

#[test]
fn auto_rises_at_once_and_falls_late() {
    let mut run = Run::new(Profile::Auto);
    assert_eq!(run.look(Phase::Idle, 0).tier, Tier::Eco);
    assert_eq!(run.look(Phase::Prefill, 1).tier, Tier::Balanced);
    run.wait(300, Phase::Decode, 1);
    assert_eq!(run.wait(29, Phase::Decode, 0).tier, Tier::Balanced, "jobs alone, for a while");
    let jobs = run.wait(2, Phase::Decode, 0);
    assert_eq!((jobs.tier, jobs.pace.background), (Tier::Eco, true));
    assert!(jobs.settings.cpu_khz_max <= 918_000);
    assert!(!Run::new(Profile::Eco).look(Phase::Idle, 0).pace.background);
}

#[test]
fn jobs_wait_for_a_cool_board() {
    let mut run = Run::new(Profile::Balanced);
    assert!(run.look(Phase::Idle, 0).pace.background);
    run.vitals.temp_mc = Some(66_000);
    assert!(!run.look(Phase::Idle, 0).pace.background);
    run.vitals.temp_mc = Some(61_000);
    assert!(!run.look(Phase::Idle, 0).pace.background, "five degrees cooler, not four");
    run.vitals.temp_mc = Some(60_000);
    assert!(run.look(Phase::Idle, 0).pace.background);
    run.vitals.n_over_current = Some(1);
    let decision = run.look(Phase::Idle, 0);
    assert!(!decision.pace.background && decision.causes.contains(&Cause::OverCurrent));
}

#[test]
fn a_board_whose_sensor_is_silent_is_careful_and_recovers() {
    let mut run = Run::new(Profile::Max);
    let top = run.policy.ladder.top();
    assert_eq!(run.wait(20, Phase::Decode, 1).level_idx, top);
    run.vitals.temp_mc = None;
    assert_eq!(run.wait(10, Phase::Decode, 1).pace.duty_permille, 1000, "one reading may fail");
    let blind = run.wait(10, Phase::Decode, 1);
    assert_eq!((blind.level_idx, blind.pace.duty_permille), (top / 3, 500));
    assert_eq!(blind.causes, [Cause::NoSensor]);
    assert_eq!(blind.settings.fan_pwm, Some(255));
    run.vitals.temp_mc = Some(45_000);
    let back = run.wait(30, Phase::Decode, 1);
    assert_eq!((back.level_idx, back.pace.duty_permille), (top, 1000));
    let mut never = Run::new(Profile::Max);
    never.vitals.temp_mc = None;
    let never = never.wait(30, Phase::Decode, 1);
    assert_eq!(never.causes, [Cause::NoSensor], "a Nano has one");
    assert_eq!(never.settings.fan_pwm, Some(255));
}

#[test]
fn a_board_that_was_too_hot_stays_stopped_while_it_is_blind() {
    let mut run = Run::new(Profile::Max);
    run.vitals.temp_mc = Some(92_000);
    assert_eq!(run.look(Phase::Decode, 1).pace.duty_permille, 0);
    run.vitals.temp_mc = None;
    let duties = [(); 40].map(|()| run.look(Phase::Decode, 1).pace.duty_permille);
    assert_eq!(duties, [0; 40]);
    run.vitals.temp_mc = Some(60_000);
    assert!(run.wait(30, Phase::Decode, 1).pace.duty_permille > 0);
}

#[test]
fn cooler_zones_do_not_speak_for_a_silent_one() {
    let mut run = Run::new(Profile::Max);
    (run.vitals.temp_mc, run.vitals.answers) = (Some(92_000), [Some(true); 2]);
    assert_eq!(run.look(Phase::Decode, 1).pace.duty_permille, 0);
    (run.vitals.temp_mc, run.vitals.answers) = (Some(50_000), [Some(false), Some(true)]);
    assert_eq!(run.wait(10, Phase::Decode, 1).pace.duty_permille, 0, "50 is the GPU's");
    let blind = run.look(Phase::Decode, 1);
    assert_eq!((blind.causes, blind.settings.fan_pwm), (vec![Cause::NoSensor], Some(255)));
    run.vitals.answers = [Some(true); 2];
    assert!(run.wait(400, Phase::Decode, 1).causes.is_empty());
    run.vitals.answers = [Some(true), None];
    assert!(run.wait(60, Phase::Decode, 1).causes.is_empty(), "a GPU without power");
    run.vitals.answers = [Some(true), Some(false)];
    assert_eq!(run.wait(12, Phase::Decode, 1).causes, [Cause::NoSensor]);
}

#[test]
fn a_profile_may_have_a_fan_of_its_own() {
    let mut config = PowerConfig::default();
    config.eco.fan = Some(vec![(40, 0), (90, 100)]);
    let pwm = |profile| {
        let policy = policy_of(&PowerConfig { profile, ..config.clone() });
        let vitals = Vitals { temp_mc: Some(60_000), ..Vitals::default() };
        let (_, decision) = govern(&policy, &State::default(), &vitals, &EngineView::default(), 0);
        decision.settings.fan_pwm
    };
    assert_eq!([Profile::Eco, Profile::Max].map(pwm), [Some(40), Some(150)]);
}

#[test]
fn a_level_that_the_board_is_not_at_is_not_measured() {
    let mut run = Run::new(Profile::Balanced);
    (run.is_deaf, run.vitals.cpu_khz_max) = (true, Some(1_428_000));
    run.wait(300, Phase::Decode, 1);
    let points = run.state.calibrations().values().map(|known| known.points().len());
    assert_eq!(points.collect::<Vec<_>>(), [1], "the top, where it is");
    run.is_deaf = false;
    run.wait(300, Phase::Decode, 1);
    assert!(run.state.calibrations().values().all(|known| known.is_done()));
    let mut run = Run::new(Profile::Balanced);
    let config = PowerConfig { profile: Profile::Balanced, ..PowerConfig::default() };
    let dir = nano();
    let mut sensors = Sensors::open(dir.path());
    let readings = sensors.read();
    run.policy = config.policy(sensors.board(), &readings, Compute::Cpu).unwrap();
    assert_eq!(run.policy.ladder.top(), 0, "clocks that nobody may set");
    run.wait(300, Phase::Decode, 1);
    assert!(run.state.calibrations().is_empty());
}

#[test]
fn each_tier_is_measured_by_itself() {
    let mut run = Run::new(Profile::Balanced);
    run.wait(200, Phase::Decode, 1);
    assert_eq!(run.state.calibrations().len(), 1);
    run.policy.profile = Profile::Eco;
    run.wait(200, Phase::Decode, 1);
    let points = run.state.calibrations().values().map(|known| known.points()[0].level_idx);
    let tiers = &run.policy.tiers;
    assert_eq!(points.collect::<Vec<_>>(), [tiers[0].level_max, tiers[1].level_max]);
    let known = run.state.calibrations().clone();
    let other = of(Profile::Max).ladder;
    assert_eq!(State::with_calibrations(known.clone(), &other).calibrations(), &known);
}

#[derive(Clone, Debug)]
struct Look {
    after_ms: u64,
    vitals: Vitals,
    engine: EngineView,
}

fn looks() -> impl Strategy<Value = Vec<Look>> {
    let phase = prop_oneof![Just(Phase::Idle), Just(Phase::Prefill), Just(Phase::Decode)];
    let temp = prop_oneof![
        4 => (20_000..100_000i32).prop_map(Some),
        1 => Just(None),
        1 => Just(Some(i32::MAX)),
        1 => Just(Some(i32::MIN)),
    ];
    let mw = prop::option::of(prop_oneof![0..12_000u32, Just(u32::MAX)]);
    let counts = prop::option::of(prop_oneof![0..4u64, Just(u64::MAX)]);
    let after = prop_oneof![0..3_000u64, Just(1_000_000_000u64)];
    let engine = (phase, 0..3u64, 0..1000u64, 0..4u32, 0..2u32);
    let look = (after, temp, mw, counts, engine);
    let look = look.prop_map(|(after_ms, temp_mc, board_mw, n_over_current, engine)| {
        let (phase, model, n_decoded, n_sequence, n_interactive) = engine;
        Look {
            after_ms,
            vitals: Vitals { temp_mc, board_mw, n_over_current, ..Vitals::default() },
            engine: EngineView {
                phase,
                compute: Compute::Cpu,
                model,
                n_decoded,
                n_sequence,
                n_interactive,
            },
        }
    });
    prop::collection::vec(look, 1..120)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn limits_hold_whatever_comes(
        looks in looks(), profile in 0..4usize, supply in 0..3usize, compute in 0..3usize,
    ) {
        let compute = [Compute::Cpu, Compute::Gpu, Compute::Both][compute];
        let supply = [Supply::Watts5, Supply::Watts10, Supply::Barrel][supply];
        let profile = Profile::ALL[profile];
        let supplied = PowerConfig { supply: Some(supply), ..PowerConfig::default() };
        let policy = policy_of(&PowerConfig { profile, compute, ..supplied });
        let top = policy.ladder.top();
        let (mut state, mut now_ms, mut raised_ms) = (State::default(), 5_000, 0);
        let mut before: Option<(Decision, Look)> = None;
        let mut n_seen = None;
        for look in looks {
            now_ms += look.after_ms;
            let args = (&look.vitals, &look.engine);
            let (next, now) = govern(&policy, &state, args.0, args.1, now_ms);
            let again = govern(&policy, &state, args.0, args.1, now_ms);
            prop_assert_eq!(&again, &(next.clone(), now.clone()), "the same in, the same out");
            state = next;
            let spec = &policy.tiers[now.tier as usize];
            prop_assert!(now.level_idx <= spec.level_max && now.pace.duty_permille <= 1000);
            prop_assert!(supply != Supply::Watts5 || now.settings.cpu_khz_max <= 918_000);
            prop_assert!(supply != Supply::Watts5 || now.settings.gpu_hz_max <= 640_000_000);
            prop_assert!(supply != Supply::Watts5 || now.settings.n_core == Some(2));
            if look.vitals.temp_mc.is_some_and(|mc| (policy.heat.hard_mc..=150_000).contains(&mc)) {
                prop_assert_eq!(now.pace.duty_permille, 0, "nothing at the hard limit");
                prop_assert!(!now.pace.background);
            }
            let is_alarm = match (n_seen, look.vitals.n_over_current) {
                (Some(before), Some(n)) => n > before,
                _ => false,
            };
            n_seen = look.vitals.n_over_current.or(n_seen);
            if let Some((last, _)) = &before {
                if is_alarm {
                    prop_assert!(now.level_idx <= last.level_idx / 2, "an alarm halves at once");
                    prop_assert!(!now.pace.background);
                }
                let is_over = policy.supply_mw.zip(look.vitals.board_mw);
                if is_over.is_some_and(|(limit, mw)| mw > limit) {
                    prop_assert!(now.level_idx <= last.level_idx.saturating_sub(1).min(top));
                }
                let ours = [Cause::Idle, Cause::Calibration];
                let is_capped = now.causes.iter().any(|cause| !ours.contains(cause));
                let is_hold = now_ms - raised_ms < 2_000 && now.tier == last.tier;
                if now.level_idx < last.level_idx && is_hold && !is_capped {
                    prop_assert!(false, "fell {} ms after it rose", now_ms - raised_ms);
                }
                if now.level_idx > last.level_idx {
                    raised_ms = now_ms;
                }
            } else {
                raised_ms = now_ms;
            }
            before = Some((now, look));
        }
    }
}
