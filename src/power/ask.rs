//! The one way from the sandboxed service to the board: a line asks, a line answers.
//!
//! ```text
//! service: Asker --"set CPU_KHZ GPU_HZ N_CORE PWM"--> socket --> Helper, as root: Actuator
//!                <--"done" or "no REASON"------------
//! connection ends, whatever ended it --> Helper takes back what it set
//! ```
//!
//! `-` stands for what is left as it is. The helper believes nothing: a clock must be a step that
//! this board names, cores and fan within its numbers, all of it within the supply that the owner
//! configured, and the paths are [`plan`]'s, held to the short list of `writes.rs`. So the most
//! that a service in somebody else's hands can do is to choose among the clocks that a board has,
//! and to have its fan turn as a profile says at the heat of that time, or faster. What was put
//! over HTTP counts here as well, so the supply is no bound for who holds the service.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::apply::{Actuator, ApplyError, Owner, Reverted};
use super::config::PowerConfig;
use super::governor::{Settings, Vitals};
use super::profile::{Compute, FEEDING_KHZ};
use super::sensors::Sensors;
use super::writes::plan;
use crate::base::limits::{POWER_ANSWER_MS, POWER_LINE_BYTES_MAX};

/// Where the helper is asked, from the root.
pub const SOCKET: &str = "run/jetforge/power.sock";

/// Asks the helper.
#[derive(Debug)]
pub struct Asker {
    socket: PathBuf,
    stream: Option<BufReader<UnixStream>>,
}

impl Asker {
    /// Where there is a helper under this root.
    pub fn find(root: &Path) -> Option<Asker> {
        let socket = root.join(SOCKET);
        let is_socket = std::fs::metadata(&socket).is_ok_and(|meta| meta.file_type().is_socket());
        is_socket.then_some(Asker { socket, stream: None })
    }

    /// Has the board set.
    ///
    /// # Errors
    /// [`ApplyError::Helper`]: no connection, no answer in time, or the helper's reason.
    pub fn set(&mut self, settings: &Settings) -> Result<(), ApplyError> {
        let failed = |reason: String| ApplyError::Helper { reason };
        let answer = match self.exchange(&line_of(settings)) {
            Ok(answer) => answer,
            Err(error) => {
                // What it had set is taken back with the connection; the next look asks anew.
                self.stream = None;
                return Err(failed(format!("{}: {error}", self.socket.display())));
            }
        };
        match answer.trim_end().split_once(' ') {
            _ if answer.trim_end() == "done" => Ok(()),
            Some(("no", reason)) => Err(failed(reason.to_owned())),
            _ => Err(failed(format!("an answer that is none: {answer:?}"))),
        }
    }

    /// Ends the connection, at which all is taken back.
    pub fn let_go(&mut self) {
        self.stream = None;
    }

    fn exchange(&mut self, line: &str) -> std::io::Result<String> {
        if self.stream.is_none() {
            let stream = UnixStream::connect(&self.socket)?;
            let patience = Some(Duration::from_millis(POWER_ANSWER_MS));
            stream.set_read_timeout(patience)?;
            stream.set_write_timeout(patience)?;
            self.stream = Some(BufReader::new(stream));
        }
        let stream = self.stream.as_mut().expect("it was opened above");
        stream.get_mut().write_all(line.as_bytes())?;
        read_line(stream)?.ok_or_else(|| std::io::ErrorKind::UnexpectedEof.into())
    }
}

/// Sets the board for whoever asks.
#[derive(Debug)]
pub struct Helper {
    config: PowerConfig,
    sensors: Sensors,
    actuator: Actuator,
}

impl Helper {
    /// The board under `root`; what a crash left is taken back first.
    ///
    /// # Errors
    /// A journal that cannot be read, or a file that takes nothing back.
    pub fn open(root: &Path, state_dir: &Path, config: PowerConfig) -> Result<Helper, ApplyError> {
        let actuator = Actuator::new(root, state_dir, Owner::Service);
        actuator.revert()?;
        Ok(Helper { config, sensors: Sensors::open(root), actuator })
    }

    /// Answers every line until there are no more, then takes back what it set.
    ///
    /// # Errors
    /// What could not be taken back; the next helper tries again.
    pub fn run(
        &mut self,
        lines: &mut impl BufRead,
        answers: &mut impl Write,
    ) -> Result<Reverted, ApplyError> {
        while let Ok(Some(line)) = read_line(lines) {
            let answer = match self.answer(&line) {
                Ok(()) => "done\n".to_owned(),
                Err(reason) => format!("no {}\n", reason.replace('\n', " ")),
            };
            if answers.write_all(answer.as_bytes()).and_then(|()| answers.flush()).is_err() {
                break;
            }
        }
        self.actuator.revert()
    }

    fn answer(&mut self, line: &str) -> Result<(), String> {
        let settings = settings_of(line).ok_or("use: set CPU_KHZ GPU_HZ N_CORE PWM, - for none")?;
        if !self.config.set_clocks {
            return Err("power.set_clocks is off".to_owned());
        }
        if !self.sensors.board().is_nano() {
            return Err(format!("this is no Jetson Nano: {}", self.sensors.board().name()));
        }
        let readings = self.sensors.read();
        let Settings { cpu_khz_max: khz, gpu_hz_max: hz, n_core, fan_pwm } = settings;
        let khz_then = stands(khz, readings.cpu.cores.first().and_then(|core| core.max_khz));
        let hz_then = stands(hz, readings.gpus.iter().find_map(|gpu| gpu.max_hz));
        // What is to compute shows in the clocks: cores beside a GPU only feed it.
        let feeds = (1..=FEEDING_KHZ).contains(&khz_then);
        let compute = if feeds { Compute::Gpu } else { Compute::Both };
        let supply = self.config.supply_of(self.sensors.board());
        let bounds = supply.bounds(compute, readings.board_mw().is_some());
        // All cores are those that the supply feeds.
        let settings = Settings { n_core: n_core.or(bounds.n_core_max), ..settings };
        let is_within = khz == 0
            || readings.cpu.steps_khz.contains(&khz) && bounds.cpu_khz_max.is_none_or(|m| khz <= m);
        if !is_within {
            return Err(format!("{khz} kHz is no clock of these cores on this supply"));
        }
        let mut steps = readings.gpus.iter().flat_map(|gpu| &gpu.steps_hz);
        let is_step = hz == 0 || steps.any(|step| *step == hz);
        if !is_step || bounds.gpu_hz_max.is_some_and(|most| hz_then > most) {
            return Err(format!("{hz_then} Hz is no clock of this GPU on this supply"));
        }
        let n_most = readings.cpu.cores.len().min(bounds.n_core_max.unwrap_or(usize::MAX));
        if n_core.is_some_and(|n| n == 0 || n > n_most) {
            return Err(format!("1 to {n_most} cores may run"));
        }
        if fan_pwm.is_some_and(|pwm| pwm > 255) {
            return Err("the fan's pulse width is 0 to 255".to_owned());
        }
        // At its own heat, whatever the service saw or did not want to see.
        let temp_mc = Vitals::of(&readings).temp_mc;
        let least = temp_mc.and_then(|mc| self.config.fan_pwm_min(mc));
        let fan_pwm = fan_pwm.map(|pwm| pwm.max(least.unwrap_or(0)));
        let settings = Settings { fan_pwm, ..settings };
        let changes = self.actuator.changes(&plan(&settings, &readings));
        changes.and_then(|changes| self.actuator.apply(&changes)).map_err(|error| error.to_string())
    }
}

/// A clock that is not named stays, and counts as it stands.
fn stands<T: Default + PartialEq>(asked: T, now: Option<T>) -> T {
    if asked == T::default() { now.unwrap_or_default() } else { asked }
}

fn line_of(settings: &Settings) -> String {
    let Settings { cpu_khz_max, gpu_hz_max, n_core, fan_pwm } = *settings;
    let word = |n: Option<u64>| n.map_or("-".to_owned(), |n| n.to_string());
    let khz = word((cpu_khz_max > 0).then_some(cpu_khz_max.into()));
    let hz = word((gpu_hz_max > 0).then_some(gpu_hz_max));
    let (n_core, pwm) = (word(n_core.map(|n| n as u64)), word(fan_pwm.map(u64::from)));
    format!("set {khz} {hz} {n_core} {pwm}\n")
}

fn settings_of(line: &str) -> Option<Settings> {
    /// `-` is nothing, digits are a number, and all else is no setting.
    fn word<T: std::str::FromStr>(word: &str) -> Option<Option<T>> {
        let is_number = !word.is_empty() && word.bytes().all(|b| b.is_ascii_digit());
        match word {
            "-" => Some(None),
            _ if is_number => word.parse().ok().map(Some),
            _ => None,
        }
    }
    let words: Vec<&str> = line.trim_end_matches('\n').split(' ').collect();
    let ["set", khz, hz, n_core, pwm] = words.as_slice() else { return None };
    Some(Settings {
        cpu_khz_max: word(khz)?.unwrap_or(0),
        gpu_hz_max: word(hz)?.unwrap_or(0),
        n_core: word(n_core)?,
        fan_pwm: word(pwm)?,
    })
}

/// A line with its end, or nothing at the end of the input. A line without an end is none.
fn read_line(from: &mut impl BufRead) -> std::io::Result<Option<String>> {
    let mut line = String::new();
    let n_read = from.take(POWER_LINE_BYTES_MAX).read_line(&mut line)?;
    match line.ends_with('\n') {
        true => Ok(Some(line)),
        false if n_read == 0 => Ok(None),
        false => Err(std::io::ErrorKind::InvalidData.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use proptest::prelude::*;

    use super::*;
    use crate::power::governor::{EngineView, Phase};
    use crate::power::keeper::Keeper;
    use crate::power::profile::Supply;
    use crate::power::sysfs::Sysfs;
    use crate::power::tests::trees::{PC, nano, put, tree};

    const MAX: &str = "sys/devices/system/cpu/cpu0/cpufreq/scaling_max_freq";

    fn willing() -> PowerConfig {
        PowerConfig { set_clocks: true, idle_after_s: 5, ..PowerConfig::default() }
    }

    /// What the helper answers to these lines on a board, and what stands there before it ends.
    fn answers(root: &Path, config: PowerConfig, lines: &[&str]) -> (Vec<String>, i64) {
        let state = tempfile::tempdir().unwrap();
        let mut helper = Helper::open(root, state.path(), config).unwrap();
        let answer = |line: &&str| match helper.answer(&format!("{line}\n")) {
            Ok(()) => "done".to_owned(),
            Err(reason) => reason,
        };
        let answers = lines.iter().map(answer).collect();
        let stands = Sysfs::new(root).number(MAX).unwrap_or(0);
        helper.run(&mut BufReader::new(&b""[..]), &mut std::io::sink()).unwrap();
        (answers, stands)
    }

    #[test]
    fn only_what_the_board_and_its_supply_have_is_set_and_all_is_taken_back() {
        let root = nano();
        let lines = [
            "set 918000 614400000 2 80",
            "set 918001 - - -",
            "set - 999999999999 - -",
            "set - - 0 -",
            "set - - 5 -",
            "set - - - 256",
            "set -1 - - -",
            "profile eco",
            "set 1428000 - -",
            "",
        ];
        let (said, stands) = answers(root.path(), willing(), &lines);
        assert_eq!((said[0].as_str(), stands), ("done", 918_000));
        assert!(said[1..].iter().all(|answer| answer != "done"), "{said:?}");
        assert!(said[1].contains("no clock of these cores"), "{said:?}");
        assert!(said[4].contains("1 to 4 cores"), "{said:?}");
        assert_eq!(Sysfs::new(root.path()).number(MAX), Ok(1_428_000), "taken back");
        let weak = PowerConfig { supply: Some(Supply::Watts5), ..willing() };
        let lines = ["set 1428000 - - -", "set 918000 - 2 -", "set 918000 614400000 2 -"];
        let (said, _) = answers(root.path(), weak, &lines);
        assert!(said[..2].iter().all(|said| said.contains("on this supply")), "{said:?}");
        assert_eq!(said[2], "done");
    }

    #[test]
    fn a_board_that_measures_no_watts_is_not_set_to_the_most_of_everything() {
        let root = nano();
        let all = ["set 1428000 921600000 - -"];
        assert_eq!(answers(root.path(), willing(), &all).0, ["done"], "watts hold it");
        std::fs::remove_dir_all(root.path().join("sys/bus/i2c/devices")).unwrap();
        let (said, _) = answers(root.path(), willing(), &all);
        assert!(said[0].contains("no clock of this GPU on this supply"), "{said:?}");
        let either = ["set 918000 921600000 - -", "set 1428000 614400000 - -"];
        assert_eq!(answers(root.path(), willing(), &either).0, ["done", "done"]);
        let one_by_one = ["set 918000 921600000 - -", "set 1428000 - - -"];
        let (said, _) = answers(root.path(), willing(), &one_by_one);
        assert!(said[0] == "done" && said[1].contains("921600000 Hz is no clock"), "{said:?}");
        let strong = PowerConfig { supply: Some(Supply::Barrel), ..willing() };
        assert_eq!(answers(root.path(), strong, &all).0, ["done"]);
    }

    #[test]
    fn nothing_is_set_on_a_pc_or_where_the_owner_did_not_ask_for_it() {
        let line = ["set - - 1 -"];
        let (said, _) = answers(tree(PC).path(), willing(), &line);
        assert!(said[0].contains("no Jetson Nano"), "{said:?}");
        let (said, _) = answers(nano().path(), PowerConfig::default(), &line);
        assert_eq!(said, ["power.set_clocks is off"]);
    }

    #[test]
    fn a_service_without_rights_sets_the_board_through_it_and_its_end_takes_all_back() {
        let (root, state) = (nano(), tempfile::tempdir().unwrap());
        let socket = root.path().join(SOCKET);
        std::fs::create_dir_all(socket.parent().unwrap()).unwrap();
        let listener = UnixListener::bind(&socket).unwrap();
        let (board, journal) = (root.path().to_owned(), state.path().join("root"));
        let serving = std::thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            let mut helper = Helper::open(&board, &journal, willing()).unwrap();
            helper.run(&mut BufReader::new(&stream), &mut &stream).unwrap()
        });
        let own = state.path().join("service");
        let mut keeper = Keeper::open(root.path(), &own, willing()).unwrap();
        (1..10).for_each(|s| drop(keeper.look(&EngineView::default(), s * 1000)));
        assert_eq!(keeper.trouble(), None);
        let max = || Sysfs::new(root.path()).number(MAX).unwrap();
        assert_eq!(max(), 306_000, "idle");
        assert!(!own.join("power.journal.json").exists(), "it wrote nothing itself");
        // A crash ends the connection just as well.
        drop(keeper);
        assert!(!serving.join().unwrap().done.is_empty());
        assert_eq!(max(), 1_428_000);
    }

    #[test]
    fn what_is_configured_anew_counts_for_the_helper_too() {
        let (root, state) = (nano(), tempfile::tempdir().unwrap());
        let socket = root.path().join(SOCKET);
        std::fs::create_dir_all(socket.parent().unwrap()).unwrap();
        let listener = UnixListener::bind(&socket).unwrap();
        let (board, journal) = (root.path().to_owned(), state.path().join("root"));
        let weak = PowerConfig { supply: Some(Supply::Watts5), ..willing() };
        let configs = [weak.clone(), willing()];
        // As the socket's unit does it: a helper for each connection, configured as then.
        let serving = std::thread::spawn(move || {
            for config in configs {
                let (stream, _) = listener.accept().unwrap();
                let mut helper = Helper::open(&board, &journal, config).unwrap();
                helper.run(&mut BufReader::new(&stream), &mut &stream).unwrap();
            }
        });
        let mut keeper = Keeper::open(root.path(), &state.path().join("service"), weak).unwrap();
        let max = || Sysfs::new(root.path()).number(MAX).unwrap();
        let work = EngineView { phase: Phase::Prefill, n_interactive: 1, ..EngineView::default() };
        keeper.look(&work, 1000);
        assert_eq!((max(), keeper.trouble()), (918_000, None), "all that five watts give");
        keeper.configure(willing()).unwrap();
        (2..5).for_each(|s| drop(keeper.look(&work, s * 1000)));
        assert_eq!((max(), keeper.trouble()), (1_428_000, None));
        (5..60).for_each(|s| drop(keeper.look(&EngineView::default(), s * 1000)));
        assert_eq!(max(), 306_000, "idle");
        keeper.configure(PowerConfig { set_clocks: false, ..willing() }).unwrap();
        serving.join().unwrap();
        assert_eq!((max(), keeper.trouble()), (1_428_000, None), "nothing stays set");
    }

    #[test]
    fn the_fan_never_turns_slower_than_a_profile_says() {
        let root = nano();
        let pwm_by = |config: PowerConfig, line: &str| {
            let state = tempfile::tempdir().unwrap();
            let mut helper = Helper::open(root.path(), state.path(), config).unwrap();
            helper.answer(&format!("{line}\n")).unwrap();
            let pwm = Sysfs::new(root.path()).number("sys/devices/pwm-fan/target_pwm").unwrap();
            helper.run(&mut BufReader::new(&b""[..]), &mut std::io::sink()).unwrap();
            pwm
        };
        let pwm = |line: &str| pwm_by(willing(), line);
        put(root.path(), "sys/class/thermal/thermal_zone1/temp", b"60000\n");
        assert_eq!([pwm("set - - - 0"), pwm("set - - - 200")], [150, 200]);
        let mut quiet = willing();
        quiet.eco.fan = Some(vec![(40, 0), (90, 100)]);
        assert_eq!(pwm_by(quiet, "set - - - 0"), 40, "the service says under which it is");
        put(root.path(), "sys/class/thermal/thermal_zone1/temp", b"75000\n");
        assert_eq!(pwm("set - - - 0"), 255);
    }

    #[test]
    fn without_an_answer_it_says_so() {
        let root = nano();
        let socket = root.path().join(SOCKET);
        std::fs::create_dir_all(socket.parent().unwrap()).unwrap();
        drop(UnixListener::bind(&socket).unwrap());
        let mut asker = Asker::find(root.path()).unwrap();
        let error = asker.set(&Settings::default()).unwrap_err().to_string();
        assert!(error.contains("power.sock"), "{error}");
        assert!(Asker::find(tree(PC).path()).is_none());
    }

    proptest! {
        #[test]
        fn any_line_is_answered_and_what_is_asked_is_what_is_read(
            line in ".{0,60}", khz in any::<u32>(), hz in any::<u64>(),
            n_core in proptest::option::of(0usize..9),
            fan_pwm in proptest::option::of(any::<u32>()),
        ) {
            let _ = settings_of(&line);
            let settings = Settings { cpu_khz_max: khz, gpu_hz_max: hz, n_core, fan_pwm };
            prop_assert_eq!(settings_of(&line_of(&settings)), Some(settings));
        }
    }
}
