//! Profiles: what a person chooses between, and what each allows.
//!
//! ```text
//!            goal in decode            cores  clocks                jobs
//! max        the most tokens           all    as the supply allows  when cool
//! balanced   95 % of the most          all    as the supply allows  when cool
//! eco        least energy of a token   all *  NVIDIA's 5 W mode     no
//! auto       balanced while somebody waits, eco for jobs (when cool) and when nobody does
//!                                      * two beside a GPU that computes
//! ```
//!
//! The supply comes before the profile: nothing here goes above what it can give. Clocks of the
//! Nano's two modes are those of NVIDIA's `nvpmodel_t210_jetson-nano.conf`.

use serde::{Deserialize, Serialize};

/// What a person chooses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Profile {
    /// The most tokens.
    Max,
    /// Nearly as many, for less heat.
    Balanced,
    /// The least energy of a token.
    Eco,
    /// As it fits who waits.
    #[default]
    Auto,
}

impl Profile {
    /// All of them.
    pub const ALL: [Profile; 4] = [Profile::Max, Profile::Balanced, Profile::Eco, Profile::Auto];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Profile::Max => "max",
            Profile::Balanced => "balanced",
            Profile::Eco => "eco",
            Profile::Auto => "auto",
        }
    }

    /// The profile of a name.
    pub fn parse(name: &str) -> Option<Profile> {
        Profile::ALL.into_iter().find(|profile| profile.name() == name)
    }
}

/// A profile that says all by itself: what `auto` becomes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Tier {
    /// The least energy of a token.
    Eco,
    /// Nearly the most tokens.
    #[default]
    Balanced,
    /// The most tokens.
    Max,
}

/// What decode is to be good at.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Goal {
    /// The most tokens.
    Speed,
    /// The lowest clock that keeps this share of the speed.
    Share(f64),
    /// The least energy of a token, as far as power can be measured; else the lowest clock that
    /// keeps this share of the speed.
    Energy(f64),
}

/// What feeds the board.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Supply {
    /// A weak adapter: NVIDIA's 5 W mode, whatever the profile.
    #[serde(rename = "5w")]
    Watts5,
    /// 5 V, 2 A by USB.
    #[serde(rename = "10w")]
    Watts10,
    /// 5 V, 4 A by the barrel jack.
    #[serde(rename = "barrel")]
    Barrel,
    /// A machine whose supply fits it.
    #[serde(rename = "any")]
    Any,
}

impl Supply {
    /// What the board may take, in milliwatts.
    pub fn limit_mw(self) -> Option<u32> {
        match self {
            Supply::Watts5 => Some(5_000),
            Supply::Watts10 => Some(10_000),
            Supply::Barrel => Some(20_000),
            Supply::Any => None,
        }
    }

    /// The clocks and cores that it can feed. A board of 10 W that measures no watts, such as the
    /// 2 GB one, is not let run to find out: where cores and GPU may compute at once, the GPU stays
    /// at the clock of NVIDIA's 5 W mode. Either of them alone takes less.
    pub fn bounds(self, compute: Compute, is_measured: bool) -> Bounds {
        let at_once = matches!(compute, Compute::Auto | Compute::Both);
        match self {
            Supply::Watts5 => MODE_5W,
            Supply::Watts10 if at_once && !is_measured => {
                Bounds { gpu_hz_max: MODE_5W.gpu_hz_max, ..Bounds::default() }
            }
            Supply::Watts10 | Supply::Barrel | Supply::Any => Bounds::default(),
        }
    }
}

/// The most that clocks and cores may be; `None` for all that there is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bounds {
    /// Clock of the cores, in kHz.
    pub cpu_khz_max: Option<u32>,
    /// Clock of the GPU, in Hz.
    pub gpu_hz_max: Option<u64>,
    /// Cores that run.
    pub n_core_max: Option<usize>,
}

/// NVIDIA's mode 1, `5W`.
pub const MODE_5W: Bounds =
    Bounds { cpu_khz_max: Some(918_000), gpu_hz_max: Some(640_000_000), n_core_max: Some(2) };

impl Bounds {
    /// What both allow.
    pub fn and(self, other: Bounds) -> Bounds {
        fn least<T: Ord>(a: Option<T>, b: Option<T>) -> Option<T> {
            match (a, b) {
                (Some(a), Some(b)) => Some(a.min(b)),
                (a, b) => a.or(b),
            }
        }
        Bounds {
            cpu_khz_max: least(self.cpu_khz_max, other.cpu_khz_max),
            gpu_hz_max: least(self.gpu_hz_max, other.gpu_hz_max),
            n_core_max: least(self.n_core_max, other.n_core_max),
        }
    }
}

/// What computes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Compute {
    /// What the engines say; as long as they say nothing, the GPU is left alone.
    #[default]
    Auto,
    /// The cores.
    Cpu,
    /// The GPU.
    Gpu,
    /// Cores and GPU: a part of the layers each, or a model each.
    Both,
}

impl Compute {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Compute::Auto => "auto",
            Compute::Cpu => "cpu",
            Compute::Gpu => "gpu",
            Compute::Both => "both",
        }
    }

    /// What computes where this does and the other.
    pub fn and(self, other: Compute) -> Compute {
        match (self, other) {
            (Compute::Auto, one) | (one, Compute::Auto) => one,
            (one, same) if one == same => one,
            _ => Compute::Both,
        }
    }

    /// Whether something holds of all clocks that a level of its ladder stands for: of the cores'
    /// unless they only feed a GPU, of the GPU's where it computes.
    pub fn holds(self, of_cpu: bool, of_gpu: bool) -> bool {
        match self {
            Compute::Auto | Compute::Cpu => of_cpu,
            Compute::Gpu => of_gpu,
            Compute::Both => of_cpu && of_gpu,
        }
    }
}

/// A step of the ladder: a clock of each. 0 is a clock that cannot be set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Level {
    /// Highest clock of the cores, in kHz.
    pub cpu_khz: u32,
    /// Highest clock of the GPU, in Hz.
    pub gpu_hz: u64,
}

/// The clocks that what computes can take, lowest first, and never empty: a machine whose clocks
/// cannot be set has one level of zeros. What does not compute follows: the GPU stays at its lowest
/// beside cores that compute, and cores stay fast enough to feed a GPU. Where both do, the clocks
/// of both rise together. Where nobody said yet what computes, the GPU is left as it is, within
/// what the supply gives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ladder {
    levels: Vec<Level>,
}

/// The lowest clocks that are worth computing at.
const CPU_KHZ_MIN: u32 = 300_000;
const GPU_HZ_MIN: u64 = 150_000_000;
/// Clock of cores that feed a GPU.
pub const FEEDING_KHZ: u32 = 918_000;

impl Ladder {
    /// The ladder over these clocks, each list lowest first.
    pub fn new(compute: Compute, cpu_khz: &[u32], gpu_hz: &[u64], bounds: Bounds) -> Ladder {
        let (cpu_max, gpu_max) =
            (bounds.cpu_khz_max.unwrap_or(u32::MAX), bounds.gpu_hz_max.unwrap_or(u64::MAX));
        let cpu: Vec<u32> = cpu_khz.iter().copied().filter(|k| *k <= cpu_max).collect();
        let gpu: Vec<u64> = gpu_hz.iter().copied().filter(|hz| *hz <= gpu_max).collect();
        let feeding = cpu.iter().copied().filter(|k| *k <= FEEDING_KHZ).max();
        let feeding = feeding.or(cpu.first().copied()).unwrap_or(0);
        let resting = gpu.first().copied().unwrap_or(0);
        let ceiling = bounds.gpu_hz_max.and(gpu.last().copied()).unwrap_or(0);
        let beside = |gpu_hz: u64| cpu.iter().map(|k| Level { cpu_khz: *k, gpu_hz }).collect();
        let mut levels: Vec<Level> = match compute {
            Compute::Auto => beside(ceiling),
            Compute::Cpu => beside(resting),
            Compute::Gpu => gpu.iter().map(|hz| Level { cpu_khz: feeding, gpu_hz: *hz }).collect(),
            Compute::Both => {
                let n = cpu.len().max(gpu.len());
                let level = |i| Level {
                    cpu_khz: spread(&cpu, i, n).unwrap_or(0),
                    gpu_hz: spread(&gpu, i, n).unwrap_or(0),
                };
                (0..n).map(level).collect()
            }
        };
        let is_worth = |level: &Level| {
            let cpu_is = cpu.is_empty() || level.cpu_khz >= CPU_KHZ_MIN;
            compute.holds(cpu_is, gpu.is_empty() || level.gpu_hz >= GPU_HZ_MIN)
        };
        if levels.iter().any(is_worth) {
            levels.retain(is_worth);
        }
        if levels.is_empty() {
            levels.push(Level::default());
        }
        Ladder { levels }
    }

    /// Number of the highest level.
    pub fn top(&self) -> usize {
        self.levels.len() - 1
    }

    /// A level; above the highest it is that.
    pub fn level(&self, level_idx: usize) -> Level {
        self.levels[level_idx.min(self.top())]
    }

    /// The highest level within bounds, the lowest if there is none.
    pub fn highest(&self, compute: Compute, bounds: Bounds) -> usize {
        let fits = |level: &Level| {
            let cpu_fits = bounds.cpu_khz_max.is_none_or(|max| level.cpu_khz <= max);
            compute.holds(cpu_fits, bounds.gpu_hz_max.is_none_or(|max| level.gpu_hz <= max))
        };
        self.levels.iter().rposition(fits).unwrap_or(0)
    }
}

/// The entry at place `i` of `n`, of a list that has fewer.
fn spread<T: Copy>(list: &[T], i: usize, n: usize) -> Option<T> {
    let last_idx = list.len().checked_sub(1)?;
    Some(list[i * last_idx / n.saturating_sub(1).max(1)])
}

/// The fan by temperature: straight lines between points of degrees and pulse width.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FanCurve(Vec<(i32, u32)>);

impl FanCurve {
    /// A curve through these points, `(degrees, 0 to 255)`.
    ///
    /// # Errors
    /// If there is none, one is out of range, or they do not rise.
    pub fn new(points: &[(i32, u32)]) -> Result<FanCurve, String> {
        let is_bad = |(degrees, pwm): &(i32, u32)| !(0..=110).contains(degrees) || *pwm > 255;
        if points.is_empty() || points.len() > 16 || points.iter().any(is_bad) {
            return Err("use 1 to 16 points of 0 to 110 degrees and 0 to 255".to_owned());
        }
        if points.windows(2).any(|pair| pair[0].0 >= pair[1].0 || pair[0].1 > pair[1].1) {
            return Err("degrees must rise from point to point, and the fan must not fall".into());
        }
        Ok(FanCurve(points.to_vec()))
    }

    /// Pulse width at a temperature in thousandths of a degree.
    pub fn pwm(&self, temp_mc: i32) -> u32 {
        let (first, last) = (self.0[0], self.0[self.0.len() - 1]);
        if temp_mc <= first.0 * 1000 {
            return first.1;
        }
        for pair in self.0.windows(2) {
            let (low, high) = (pair[0], pair[1]);
            if temp_mc < high.0 * 1000 {
                let part = i64::from(temp_mc - low.0 * 1000) * i64::from(high.1 - low.1);
                let rise = part / i64::from((high.0 - low.0) * 1000);
                return low.1 + u32::try_from(rise).unwrap_or(0);
            }
        }
        last.1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ladder_has_the_clocks_of_what_computes() {
        let cpu = [102_000, 307_200, 921_600, 1_428_000];
        let gpu = [76_800_000, 153_600_000, 614_400_000, 921_600_000];
        let ladder = Ladder::new(Compute::Cpu, &cpu, &gpu, Bounds::default());
        assert_eq!(ladder.top(), 2);
        assert_eq!(ladder.level(0), Level { cpu_khz: 307_200, gpu_hz: 76_800_000 });
        assert_eq!(ladder.level(9).cpu_khz, 1_428_000);
        assert_eq!(ladder.highest(Compute::Cpu, MODE_5W), 0, "921.6 MHz is above 918");
        let weak = Supply::Watts5.bounds(Compute::Gpu, true);
        let ladder = Ladder::new(Compute::Gpu, &cpu, &gpu, weak);
        assert_eq!(ladder.level(9), Level { cpu_khz: 307_200, gpu_hz: 614_400_000 });
        let ladder = Ladder::new(Compute::Both, &cpu, &gpu[..3], Bounds::default());
        let clocks = [0, 1, 9].map(|i| (ladder.level(i).cpu_khz, ladder.level(i).gpu_hz));
        assert_eq!(clocks[..2], [(921_600, 153_600_000), (1_428_000, 614_400_000)]);
        assert_eq!(clocks[2], clocks[1]);
        assert_eq!(ladder.highest(Compute::Both, MODE_5W), 0);
        let none = Ladder::new(Compute::Gpu, &[], &[], Bounds::default());
        assert_eq!((none.top(), none.level(0)), (0, Level::default()));
    }

    #[test]
    fn a_gpu_that_may_compute_is_not_held_at_its_lowest() {
        let (cpu, gpu) = ([918_000, 1_428_000], [76_800_000, 614_400_000, 921_600_000]);
        let gpu_hz = |compute: Compute, supply: Supply, is_measured: bool| {
            let bounds = supply.bounds(compute, is_measured);
            Ladder::new(compute, &cpu, &gpu, bounds).level(9).gpu_hz
        };
        assert_eq!(gpu_hz(Compute::Auto, Supply::Watts10, true), 0, "left as it is");
        assert_eq!(gpu_hz(Compute::Auto, Supply::Watts5, true), 614_400_000);
        assert_eq!(gpu_hz(Compute::Both, Supply::Watts10, true), 921_600_000);
        assert_eq!(gpu_hz(Compute::Both, Supply::Watts10, false), 614_400_000, "unmeasured");
        assert_eq!(gpu_hz(Compute::Gpu, Supply::Watts10, false), 921_600_000);
        assert_eq!(gpu_hz(Compute::Cpu, Supply::Watts10, false), 76_800_000);
        let all = [Compute::Auto, Compute::Cpu, Compute::Cpu];
        assert_eq!(all.into_iter().fold(Compute::Auto, Compute::and), Compute::Cpu);
        assert_eq!(Compute::Cpu.and(Compute::Gpu), Compute::Both);
    }

    #[test]
    fn fans_follow_their_curve() {
        let fan = FanCurve::new(&[(40, 0), (60, 100), (70, 255)]).unwrap();
        let pwm = [20, 40, 50, 60, 65, 90].map(|degrees| fan.pwm(degrees * 1000));
        assert_eq!(pwm, [0, 0, 50, 100, 177, 255]);
        for wrong in [&[][..], &[(40, 300)], &[(50, 1), (40, 2)], &[(40, 9), (50, 3)], &[(-1, 0)]] {
            assert!(FanCurve::new(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn bounds_join_to_the_least() {
        let mine = Bounds { cpu_khz_max: Some(1_000_000), ..Bounds::default() };
        let both = mine.and(MODE_5W);
        assert_eq!(both, MODE_5W);
        assert_eq!(mine.and(Bounds::default()), mine);
    }
}
