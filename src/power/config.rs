//! The section `power` of the configuration, and the policy that it makes with a board.

use serde::{Deserialize, Serialize};

use super::board::{Board, BoardKind};
use super::governor::{Policy, TierPolicy};
use super::heat::HeatPolicy;
use super::profile::{Bounds, Compute, FanCurve, Goal, Ladder, MODE_5W, Profile, Supply, Tier};
use super::sensors::Readings;

/// The section `power`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PowerConfig {
    /// `max`, `balanced`, `eco` or `auto`.
    pub profile: Profile,
    /// What feeds the board: `5w`, `10w`, `barrel` or `any`; unset takes `10w` for a Nano.
    pub supply: Option<Supply>,
    /// What computes: `cpu`, `gpu` or `both`; `auto` goes by what the engines say.
    pub compute: Compute,
    /// Whether the service may set clocks, cores and the fan.
    pub set_clocks: bool,
    /// Degrees at which pauses hold the chip; unset takes 75 on a Jetson, and elsewhere leaves heat
    /// to the machine.
    pub soft_limit_c: Option<u32>,
    /// Degrees at which computing stops; unset takes 90 on a Jetson.
    pub hard_limit_c: Option<u32>,
    /// Degrees above which no job runs; unset takes 65 on a Jetson.
    pub background_max_c: Option<u32>,
    /// Seconds without work after which clocks fall.
    pub idle_after_s: u64,
    /// Share of the speed of decode that `balanced` keeps.
    pub share_min: f64,
    /// The fan: degrees and pulse width, 0 to 255.
    pub fan: Vec<(i32, u32)>,
    /// Changes of `max`.
    pub max: TierConfig,
    /// Changes of `balanced`.
    pub balanced: TierConfig,
    /// Changes of `eco`.
    pub eco: TierConfig,
}

/// Changes of a profile; unset leaves what is built in.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TierConfig {
    /// Highest clock of the cores.
    pub cpu_mhz_max: Option<u32>,
    /// Highest clock of the GPU.
    pub gpu_mhz_max: Option<u32>,
    /// Cores that run.
    pub n_core: Option<usize>,
    /// Threads that compute.
    pub n_threads: Option<usize>,
    /// Most tokens of a step.
    pub n_batch: Option<usize>,
    /// Whether jobs may run.
    pub background: Option<bool>,
    /// The fan under this profile, in the place of [`PowerConfig::fan`].
    pub fan: Option<Vec<(i32, u32)>>,
    /// The model that answers people under this profile.
    pub model_interactive: Option<String>,
    /// The model that runs jobs under it.
    pub model_background: Option<String>,
}

impl Default for PowerConfig {
    fn default() -> PowerConfig {
        PowerConfig {
            profile: Profile::default(),
            supply: None,
            compute: Compute::default(),
            set_clocks: false,
            soft_limit_c: None,
            hard_limit_c: None,
            background_max_c: None,
            idle_after_s: 30,
            share_min: 0.95,
            fan: vec![(40, 0), (50, 80), (60, 150), (70, 255)],
            max: TierConfig::default(),
            balanced: TierConfig::default(),
            eco: TierConfig::default(),
        }
    }
}

/// Limits of a Jetson whose owner names none. The chips of PCs are made to run at 95 degrees, and
/// hold themselves there: a limit below that would be one that nobody asked for.
const SOFT_LIMIT_C: u32 = 75;
const HARD_LIMIT_C: u32 = 90;
const BACKGROUND_MAX_C: u32 = 65;
/// More than any chip has.
const NEVER_MC: i32 = 1_000_000;
/// Share of the speed that `eco` keeps where power cannot be measured.
const ECO_SHARE: f64 = 0.75;
/// Degrees between the two limits, at the least: the chip moves that far in a second.
const LIMITS_APART_C: u32 = 8;
/// What the kernel says of its throttle never takes the soft limit below this: a trip that is for
/// something else would stop all work on a board that is merely warm.
const SOFT_FROM_TRIPS_C: u32 = 60;

impl PowerConfig {
    /// The first value out of range: its key and what is wrong.
    ///
    /// # Errors
    /// See above.
    pub fn check(&self) -> Result<(), (&'static str, String)> {
        let soft_c = self.soft_limit_c.unwrap_or(SOFT_LIMIT_C);
        let hard_c =
            self.hard_limit_c.unwrap_or(HARD_LIMIT_C.max(soft_c.saturating_add(LIMITS_APART_C)));
        let background_c = self.background_max_c.unwrap_or(BACKGROUND_MAX_C.min(soft_c));
        if !(40..=95).contains(&soft_c) {
            return Err(("power.soft_limit_c", "must be 40 to 95".to_owned()));
        }
        if !(soft_c + LIMITS_APART_C..=105).contains(&hard_c) {
            let message = format!("must be power.soft_limit_c + {LIMITS_APART_C} to 105");
            return Err(("power.hard_limit_c", message));
        }
        if !(30..=soft_c).contains(&background_c) {
            return Err(("power.background_max_c", "must be 30 to power.soft_limit_c".to_owned()));
        }
        if self.idle_after_s > 86_400 {
            return Err(("power.idle_after_s", "must be at most 86400".to_owned()));
        }
        if !(0.5..=1.0).contains(&self.share_min) {
            return Err(("power.share_min", "must be 0.5 to 1".to_owned()));
        }
        FanCurve::new(&self.fan).map_err(|message| ("power.fan", message))?;
        let keys = ["power.max.n_core", "power.max.n_threads", "power.max.n_batch"];
        self.max.check(keys, "power.max.fan")?;
        let keys = ["power.balanced.n_core", "power.balanced.n_threads", "power.balanced.n_batch"];
        self.balanced.check(keys, "power.balanced.fan")?;
        let keys = ["power.eco.n_core", "power.eco.n_threads", "power.eco.n_batch"];
        self.eco.check(keys, "power.eco.fan")
    }

    /// What feeds this board.
    pub fn supply_of(&self, board: &Board) -> Supply {
        let usual = if board.is_nano() { Supply::Watts10 } else { Supply::Any };
        self.supply.unwrap_or(usual)
    }

    /// The model for a request under a tier, where the configuration names one.
    pub fn model_for(&self, tier: Tier, is_interactive: bool) -> Option<&str> {
        let tier = self.tier(tier);
        let model = if is_interactive { &tier.model_interactive } else { &tier.model_background };
        model.as_deref()
    }

    /// The least that the fan turns under any profile, at a temperature in thousandths of a degree;
    /// none where [`PowerConfig::check`] refuses a curve.
    pub fn fan_pwm_min(&self, temp_mc: i32) -> Option<u32> {
        let pwm = |tier| Some(self.fan(tier).ok()?.pwm(temp_mc));
        Some(pwm(Tier::Eco)?.min(pwm(Tier::Balanced)?).min(pwm(Tier::Max)?))
    }

    /// The fan under a tier: its own curve, else that of all.
    fn fan(&self, tier: Tier) -> Result<FanCurve, (&'static str, String)> {
        let points = self.tier(tier).fan.as_ref().unwrap_or(&self.fan);
        FanCurve::new(points).map_err(|message| ("power.fan", message))
    }

    fn tier(&self, tier: Tier) -> &TierConfig {
        match tier {
            Tier::Eco => &self.eco,
            Tier::Balanced => &self.balanced,
            Tier::Max => &self.max,
        }
    }

    /// The policy for a board as it was read, and for what the engines say that computes. Clocks
    /// are those of a Nano whose owner lets them be set: on any other machine nothing is, and only
    /// the engine's pace is governed.
    ///
    /// # Errors
    /// As [`PowerConfig::check`].
    pub fn policy(
        &self,
        board: &Board,
        readings: &Readings,
        engines: Compute,
    ) -> Result<Policy, (&'static str, String)> {
        self.check()?;
        let compute = if self.compute == Compute::Auto { engines } else { self.compute };
        let supply = self.supply_of(board);
        let bounds = supply.bounds(compute, readings.board_mw().is_some());
        let gpu_hz = readings.gpus.iter().find(|gpu| !gpu.devfreq.is_empty());
        let gpu_hz = gpu_hz.map(|gpu| gpu.steps_hz.clone()).unwrap_or_default();
        // Clocks that nobody sets are no levels: one would be measured like the other.
        let is_set = board.is_nano() && self.set_clocks;
        let has_cpu = readings.cpu.cores.first().is_some_and(|core| core.max_khz.is_some());
        let has_gpu = readings.gpus.iter().any(|gpu| gpu.max_hz.is_some());
        let cpu = if is_set && has_cpu { readings.cpu.steps_khz.as_slice() } else { &[] };
        let gpu = if is_set && has_gpu { gpu_hz.as_slice() } else { &[] };
        let ladder = Ladder::new(compute, cpu, gpu, bounds);
        let tier = |tier: Tier| self.tier_policy(tier, board, bounds, compute, &ladder);
        let is_jetson = board.is_nano() || board.kind == BoardKind::OtherJetson;
        Ok(Policy {
            profile: self.profile,
            compute,
            tiers: [tier(Tier::Eco)?, tier(Tier::Balanced)?, tier(Tier::Max)?],
            heat: self.heat(is_jetson, readings.throttle_at_mc()),
            supply_mw: supply.limit_mw(),
            idle_after_ms: self.idle_after_s * 1000,
            ladder,
        })
    }

    /// What heat may be on a board whose kernel slows it down at `throttle_mc`.
    fn heat(&self, is_jetson: bool, throttle_mc: Option<i32>) -> HeatPolicy {
        let mc = |c: u32| i32::try_from(c * 1000).unwrap_or(NEVER_MC);
        let usual = |c: u32| if is_jetson { mc(c) } else { NEVER_MC };
        let soft_mc = self.soft_limit_c.map_or(usual(SOFT_LIMIT_C), mc);
        let apart_mc = mc(LIMITS_APART_C);
        let usual_hard_mc = usual(HARD_LIMIT_C).max(soft_mc.saturating_add(apart_mc));
        let hard_mc = self.hard_limit_c.map_or(usual_hard_mc, mc);
        let background_mc = self.background_max_c.map_or(usual(BACKGROUND_MAX_C), mc);
        // The kernel's own throttle must stay out of reach, wherever this board has it.
        let is_held = soft_mc < NEVER_MC;
        let throttle_mc = throttle_mc.filter(|_| is_held).unwrap_or(i32::MAX);
        let below_mc = throttle_mc.saturating_sub(apart_mc).max(mc(SOFT_FROM_TRIPS_C));
        let soft_mc = soft_mc.min(below_mc);
        HeatPolicy {
            soft_mc,
            hard_mc: hard_mc.min(throttle_mc).max(soft_mc + 1000),
            background_mc: background_mc.min(soft_mc),
            needs_sensor: is_jetson,
        }
    }

    fn tier_policy(
        &self,
        tier: Tier,
        board: &Board,
        supply: Bounds,
        compute: Compute,
        ladder: &Ladder,
    ) -> Result<TierPolicy, (&'static str, String)> {
        let config = self.tier(tier);
        let own = match tier {
            // Cores that compute stay on in eco: half of them need the rest of the board for
            // longer, which costs more energy a token than their lower clocks save.
            Tier::Eco if board.is_nano() && compute == Compute::Gpu => MODE_5W,
            Tier::Eco if board.is_nano() => Bounds { n_core_max: None, ..MODE_5W },
            _ => Bounds::default(),
        };
        let chosen = Bounds {
            cpu_khz_max: config.cpu_mhz_max.map(|mhz| mhz.saturating_mul(1000)),
            gpu_hz_max: config.gpu_mhz_max.map(|mhz| u64::from(mhz) * 1_000_000),
            n_core_max: config.n_core,
        };
        // The owner's bounds take the place of the tier's, never of the supply's.
        let bounds = Bounds {
            cpu_khz_max: chosen.cpu_khz_max.or(own.cpu_khz_max),
            gpu_hz_max: chosen.gpu_hz_max.or(own.gpu_hz_max),
            n_core_max: chosen.n_core_max.or(own.n_core_max),
        };
        let bounds = bounds.and(supply);
        Ok(TierPolicy {
            level_max: ladder.highest(compute, bounds),
            n_core: bounds.n_core_max.filter(|_| board.is_nano()),
            n_threads: config.n_threads,
            n_batch: config.n_batch,
            background: config.background,
            fan: self.fan(tier)?,
            goal: match tier {
                Tier::Eco => Goal::Energy(ECO_SHARE),
                Tier::Balanced => Goal::Share(self.share_min),
                Tier::Max => Goal::Speed,
            },
        })
    }
}

impl TierConfig {
    fn check(
        &self,
        keys: [&'static str; 3],
        of_fan: &'static str,
    ) -> Result<(), (&'static str, String)> {
        let counts = [self.n_core, self.n_threads, self.n_batch];
        if let Some((_, key)) = counts.iter().zip(keys).find(|(count, _)| **count == Some(0)) {
            return Err((key, "must be at least 1".to_owned()));
        }
        let mut curves = self.fan.iter().map(|points| FanCurve::new(points));
        curves.try_for_each(|curve| curve.map(drop).map_err(|message| (of_fan, message)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::power::sensors::Sensors;
    use crate::power::tests::governor::policy_of;
    use crate::power::tests::trees::{PC, nano, put, tree};

    #[test]
    fn a_nano_has_the_modes_of_nvidia() {
        let policy = policy_of(&PowerConfig::default());
        assert_eq!(policy.ladder.level(99).cpu_khz, 1_428_000);
        let [eco, balanced, max] = &policy.tiers;
        assert_eq!(policy.ladder.level(eco.level_max).cpu_khz, 918_000);
        assert_eq!((eco.n_core, balanced.n_core, max.n_core), (None, None, None));
        let gpu = policy_of(&PowerConfig { compute: Compute::Gpu, ..PowerConfig::default() });
        let eco = (gpu.tiers[0].n_core, gpu.ladder.level(gpu.tiers[0].level_max).gpu_hz);
        assert_eq!(eco, (Some(2), 614_400_000), "NVIDIA's 5 W mode");
        assert_eq!(balanced.level_max, policy.ladder.top());
        assert_eq!((policy.supply_mw, policy.heat.soft_mc), (Some(10_000), 75_000));
        assert!(policy.heat.needs_sensor);
    }

    #[test]
    fn the_supply_comes_before_the_owner() {
        let mut config = PowerConfig { supply: Some(Supply::Watts5), ..PowerConfig::default() };
        config.max = TierConfig { n_core: Some(4), cpu_mhz_max: Some(2000), ..Default::default() };
        config.soft_limit_c = Some(95);
        config.hard_limit_c = Some(105);
        let policy = policy_of(&config);
        assert_eq!(policy.ladder.level(99).cpu_khz, 918_000);
        assert_eq!(policy.tiers[2].n_core, Some(2));
        let heat = (policy.heat.soft_mc, policy.heat.hard_mc);
        assert_eq!(heat, (89_000, 97_000), "below the kernel's own throttle at 97 degrees");
    }

    #[test]
    fn only_trips_of_what_computes_count_and_never_below_sixty() {
        // The tree has the memory's trip at 70 degrees in PLL-therm.
        let heat = policy_of(&PowerConfig::default()).heat;
        assert_eq!((heat.soft_mc, heat.hard_mc), (75_000, 90_000));
        let dir = nano();
        put(dir.path(), "sys/class/thermal/thermal_zone1/trip_point_0_temp", b"50000\n");
        let mut sensors = Sensors::open(dir.path());
        let readings = sensors.read();
        let policy = PowerConfig::default().policy(sensors.board(), &readings, Compute::Auto);
        let heat = policy.unwrap().heat;
        assert_eq!((heat.soft_mc, heat.hard_mc), (60_000, 61_000));
    }

    #[test]
    fn on_a_pc_only_the_pace_is_governed() {
        let dir = tree(PC);
        let mut sensors = Sensors::open(dir.path());
        let readings = sensors.read();
        let of =
            |config: PowerConfig| config.policy(sensors.board(), &readings, Compute::Cpu).unwrap();
        let policy = of(PowerConfig::default());
        assert_eq!((policy.ladder.top(), policy.supply_mw), (0, None));
        assert_eq!(policy.tiers[0].n_core, None);
        assert!(!policy.heat.needs_sensor);
        let heat = |config: PowerConfig| of(config).heat;
        let usual = heat(PowerConfig::default());
        assert!(usual.background_mc > 200_000, "its heat is its own to hold: {usual:?}");
        let asked = heat(PowerConfig { soft_limit_c: Some(80), ..PowerConfig::default() });
        assert_eq!((asked.soft_mc, asked.background_mc), (80_000, 80_000));
    }

    #[test]
    fn what_cannot_be_is_refused_by_its_key() {
        let wrong = |change: fn(&mut PowerConfig)| {
            let mut config = PowerConfig::default();
            change(&mut config);
            config.check().unwrap_err().0
        };
        assert_eq!(wrong(|c| c.soft_limit_c = Some(20)), "power.soft_limit_c");
        assert_eq!(wrong(|c| c.hard_limit_c = Some(80)), "power.hard_limit_c");
        assert_eq!(wrong(|c| c.background_max_c = Some(80)), "power.background_max_c");
        assert_eq!(wrong(|c| c.share_min = f64::NAN), "power.share_min");
        assert_eq!(wrong(|c| c.fan = Vec::new()), "power.fan");
        assert_eq!(wrong(|c| c.eco.n_threads = Some(0)), "power.eco.n_threads");
        assert_eq!(wrong(|c| c.eco.fan = Some(vec![(50, 300)])), "power.eco.fan");
        assert_eq!(PowerConfig::default().check(), Ok(()));
    }
}
