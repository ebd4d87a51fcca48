//! NVIDIA's cards in a PC, on a stand-in for their library: what they tell arrives where a Jetson's
//! GPU tells it, and whatever is missing, fails or goes away takes only itself.

use std::path::Path;
use std::time::Instant;

use jetforge::power::{Compute, EnergyMeter, Sensors};
use serde_json::{Value, json};

use crate::cli::jetforge;
use crate::serve::Process;
use crate::support::http::{get, until};
use crate::support::nvml::{CARD, Nvml};
use crate::support::run::Run;
use crate::support::skip::skip;

const FILES: [(&str, &str); 6] = [
    ("sys/class/dmi/id/product_name", "OptiPlex 7090\n"),
    ("proc/meminfo", "MemTotal: 16300000 kB\nMemAvailable: 12000000 kB\n"),
    ("sys/class/thermal/thermal_zone0/type", "x86_pkg_temp\n"),
    ("sys/class/thermal/thermal_zone0/temp", "55000\n"),
    (RAPL, "package-0\n"),
    (PACKAGE, "1000000\n"),
];
const RAPL: &str = "sys/class/powercap/intel-rapl:0/name";
const PACKAGE: &str = "sys/class/powercap/intel-rapl:0/energy_uj";

/// A folder that stands in for a PC.
struct Pc(tempfile::TempDir);

impl Pc {
    fn new() -> Pc {
        let pc = Pc(tempfile::tempdir().unwrap());
        FILES.iter().for_each(|(path, text)| pc.put(path, text));
        pc
    }

    fn put(&self, path: &str, text: &str) {
        let path = self.root().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        // A meter may read it meanwhile.
        let next = path.with_extension("next");
        std::fs::write(&next, text).unwrap();
        std::fs::rename(next, path).unwrap();
    }

    fn root(&self) -> &Path {
        self.0.path()
    }

    /// With a card whose library lacks a function.
    fn with_card(&self, left_out: Option<&str>) -> Nvml {
        Nvml::under(self.root(), left_out)
    }

    fn read(&self) -> Value {
        json!(Sensors::open(self.root()).read())
    }

    fn run(&self, args: &[&str]) -> String {
        let home = tempfile::tempdir().unwrap();
        let mut command = jetforge(home.path());
        command.args(args).arg("--root").arg(self.root());
        Run::of(&mut command).ok().out
    }
}

/// The lines of what is absent that speak of NVIDIA's cards.
fn absent(readings: &Value) -> Vec<String> {
    let lines = readings["absent"].as_array().unwrap().iter();
    let text = |line: &Value, key: &str| line[key].as_str().unwrap().to_owned();
    let lines = lines.map(|line| [text(line, "source"), text(line, "reason")].join(": "));
    lines.filter(|line| line.contains("NVIDIA")).collect()
}

#[test]
fn a_card_tells_what_a_jetsons_gpu_does() {
    let pc = Pc::new();
    let card = pc.with_card(None);
    let r = pc.read();
    let gpu = &r["gpus"][0];
    let shown = ["name", "hz", "load", "memory_hz", "memory_total_bytes", "memory_used_bytes"];
    assert_eq!(
        json!(shown.map(|key| &gpu[key])),
        json!([CARD, 1_777_000_000, 0.35, 7_501_000_000_u64, 12_u64 << 30, 3_u64 << 30])
    );
    assert_eq!((&gpu["fan"]["pwm"], &gpu["fan"]["rpm"]), (&json!(102), &json!(1500)));
    let zone = json!({"name": CARD, "temp_mc": 61_000, "counts": true, "trips": []});
    assert_eq!(r["zones"][1], zone);
    assert_eq!((&r["rails"][0]["name"], &r["rails"][0]["mw"]), (&json!(CARD), &json!(120_500)));
    assert_eq!(r["counters"][1], json!({"name": CARD, "energy_uj": 9_000_000_000_u64}));
    assert_eq!(absent(&r), [] as [&str; 0]);
    let of_gpu = |line: &&Value| line["source"].as_str().unwrap().contains("gpu");
    let missed = r["absent"].as_array().unwrap().iter().find(of_gpu);
    assert_eq!(missed, None, "a card that tells all of it is the GPU that nobody misses");

    let mut sensors = Sensors::open(pc.root());
    let readings = sensors.read();
    assert_eq!(readings.hottest_mc(), Some(61_000));
    assert!(!readings.throttle.is_throttled(), "a card that idles is not held down");
    for (bits, word) in
        [(4, "power"), (0x80, "power"), (0x20, "heat"), (0x40, "heat"), (8, "hardware")]
    {
        card.say(&format!("reasons {bits}\n"));
        let readings = sensors.read();
        let holding: Vec<_> = readings.throttle.holding().map(|c| c.name.as_str()).collect();
        assert_eq!(holding, [format!("{CARD}: {word}")]);
    }
    card.say("celsius 4000000\npercent 900\nfan_percent 130\n");
    let r = pc.read();
    let doubts =
        [format!("load of {CARD}: says 900 %"), format!("heat of {CARD}: says 4000000 degrees")];
    assert_eq!(absent(&r), doubts);
    assert_eq!(r["zones"].as_array().unwrap().len(), 1, "no chip is that hot");
    assert_eq!((&r["gpus"][0]["load"], &r["gpus"][0]["fan"]["pwm"]), (&Value::Null, &json!(255)));
}

/// Functions of the library, what they are about, and where that stands.
const ASKED: [(&str, &[&str], &[&str]); 8] = [
    ("nvmlDeviceGetClockInfo", &["clock", "memory clock"], &["/gpus/0/hz", "/gpus/0/memory_hz"]),
    ("nvmlDeviceGetUtilizationRates", &["load"], &["/gpus/0/load"]),
    (
        "nvmlDeviceGetMemoryInfo_v2",
        &["memory"],
        &["/gpus/0/memory_total_bytes", "/gpus/0/memory_used_bytes"],
    ),
    ("nvmlDeviceGetFanSpeed_v2", &["fan"], &["/gpus/0/fan"]),
    ("nvmlDeviceGetTemperature", &["heat"], &["/zones/1"]),
    ("nvmlDeviceGetPowerUsage", &["power"], &["/rails/0"]),
    ("nvmlDeviceGetTotalEnergyConsumption", &["energy"], &["/counters/1"]),
    ("nvmlDeviceGetCurrentClocksThrottleReasons", &["throttling"], &["/throttle/coolers/0"]),
];

#[test]
fn a_function_that_is_missing_or_fails_takes_its_own_number_alone() {
    let pc = Pc::new();
    let card = pc.with_card(None);
    let whole = pc.read();
    let not_supported = |function: &str| {
        card.say(&format!("{function} 3\n"));
        ("the requested operation is not available", pc.read())
    };
    let left_out = |function: &str| {
        let pc = Pc::new();
        pc.with_card(Some(function));
        ("undefined symbol", pc.read())
    };
    for (function, about, places) in ASKED {
        for (reason, r) in [not_supported(function), left_out(function)] {
            let absent = absent(&r);
            assert_eq!(absent.len(), about.len(), "{function}: {absent:?}");
            for (line, about) in absent.iter().zip(about) {
                let is_right = line.starts_with(&format!("{about} of {CARD}: "));
                assert!(is_right && line.contains(reason), "{function}: {line}");
            }
            for place in ASKED.iter().flat_map(|(_, _, places)| *places) {
                let told = r.pointer(place).filter(|told| !told.is_null());
                let expected = (!places.contains(place)).then(|| whole.pointer(place).unwrap());
                assert_eq!(told, expected, "{place} without {function}");
            }
        }
    }
    let pc = Pc::new();
    pc.with_card(Some("nvmlDeviceGetName"));
    assert_eq!(pc.read()["gpus"][0]["name"], "NVIDIA GPU");
    let pc = Pc::new();
    pc.with_card(Some("nvmlDeviceGetFanSpeedRPM"));
    let fan = pc.read()["gpus"][0]["fan"].clone();
    assert_eq!((&fan["pwm"], &fan["rpm"]), (&json!(102), &Value::Null), "older drivers lack it");
    let pc = Pc::new();
    pc.with_card(Some("nvmlSystemGetDriverVersion"));
    assert_eq!(pc.read()["gpus"][0]["name"], CARD);
}

#[test]
fn a_library_that_cannot_be_used_is_one_line_with_its_reason() {
    let without = |function| {
        let pc = Pc::new();
        pc.with_card(Some(function));
        pc.read()
    };
    let saying = |lines| {
        let pc = Pc::new();
        pc.with_card(None).say(lines);
        pc.read()
    };
    let holding = |bytes: &str| {
        let pc = Pc::new();
        pc.put("usr/lib/libnvidia-ml.so.1", bytes);
        pc.read()
    };
    for (r, reason) in [
        (Pc::new().read(), "No such file"),
        (holding("no library"), "libnvidia-ml.so.1"),
        (without("nvmlInit_v2"), "nvmlInit_v2"),
        (without("nvmlShutdown"), "has no nvmlShutdown"),
        (without("nvmlDeviceGetCount_v2"), "nvmlDeviceGetCount_v2"),
        (saying("nvmlInit_v2 9"), "driver is not loaded"),
        (saying("nvmlInit_v2 4321"), "4321"),
        (saying("nvmlDeviceGetCount_v2 999"), "internal driver error"),
        (saying("n_card 0"), "names no card"),
    ] {
        let absent = absent(&r);
        assert_eq!((absent.len(), &r["gpus"]), (1, &json!([])), "{absent:?}");
        let is_right = absent[0].starts_with("cards of NVIDIA: ") && absent[0].contains(reason);
        assert!(is_right, "{reason} in {absent:?}");
    }
    let r = without("nvmlDeviceGetHandleByIndex_v2");
    let absent = absent(&r);
    assert_eq!((absent.len(), &r["gpus"]), (1, &json!([])));
    assert!(absent[0].starts_with("NVIDIA GPU: ") && absent[0].contains("HandleByIndex"));
}

#[test]
fn a_card_that_is_lost_is_one_line_until_it_is_back() {
    let pc = Pc::new();
    let card = pc.with_card(None);
    let mut sensors = Sensors::open(pc.root());
    let mut look = || json!(sensors.read());
    let whole = look();
    for lost in ["cards 15", "nvmlDeviceGetHandleByIndex_v2 15", "nvmlDeviceGetTemperature 15"] {
        card.say(lost);
        let r = look();
        let absent = absent(&r);
        let is_right = absent[0].starts_with(&format!("{CARD}: device fell off the bus"));
        assert!(absent.len() == 1 && is_right, "{lost}: {absent:?}");
        let told = [&r["gpus"], &r["rails"], &r["throttle"]["coolers"]];
        assert_eq!(told, [&json!([]); 3], "nothing of before is told, after {lost}");
        assert_eq!(r["zones"], json!([whole["zones"][0]]), "the processor's zone stays");
        card.say("");
        assert_eq!(look()["gpus"], whole["gpus"], "after {lost}");
    }
}

#[test]
fn a_library_that_is_not_there_is_looked_for_once() {
    let pc = Pc::new();
    let mut sensors = Sensors::open(pc.root());
    let mut look = || absent(&json!(sensors.read()));
    let before = look();
    assert_eq!(before.len(), 1);
    pc.with_card(None);
    assert_eq!(look(), before, "it is not looked for again");
    assert_eq!(pc.read()["gpus"][0]["name"], CARD, "but by the next that opens the sensors");
}

#[test]
fn cards_of_one_name_are_told_apart() {
    let pc = Pc::new();
    pc.with_card(None).say("n_card 2");
    let gpus = pc.read()["gpus"].clone();
    let names: Vec<_> = gpus.as_array().unwrap().iter().map(|gpu| gpu["name"].clone()).collect();
    assert_eq!(names, [format!("{CARD} (0)"), format!("{CARD} (1)")]);
}

#[test]
fn a_jetson_is_never_asked_for_cards() {
    let pc = Pc::new();
    pc.with_card(None);
    pc.put("proc/device-tree/compatible", "nvidia,p3768-0000+p3767-0005\0nvidia,tegra234\0");
    let r = pc.read();
    assert_eq!((&r["gpus"], absent(&r)), (&json!([]), Vec::<String>::new()));
    assert_eq!(EnergyMeter::open_still(pc.root()).unwrap().name(), "package-0");
}

#[test]
fn the_machines_energy_is_the_processors_and_the_cards() {
    let pc = Pc::new();
    let card = pc.with_card(None);
    let meter = EnergyMeter::open_still(pc.root()).unwrap();
    assert_eq!(meter.name(), format!("package-0, {CARD}"));
    assert!([Compute::Cpu, Compute::Gpu, Compute::Both].iter().all(|c| meter.covers(*c)));
    let joules = || (meter.joules() * 1e3).round() / 1e3;
    assert_eq!(joules(), 0.0);
    pc.put(PACKAGE, "6000000\n");
    card.say("mj 9003000");
    assert_eq!(joules(), 8.0, "five and three");
    card.say("cards 15\nmj 9004000");
    assert_eq!(joules(), 8.0, "a card that is lost adds nothing");
    card.say("mj 9005000");
    assert_eq!(joules(), 10.0, "and what it took meanwhile when it is back");
    card.say("mj 500");
    assert_eq!(joules(), 10.5, "its driver was loaded anew");
}

#[test]
fn a_card_alone_says_so_and_counts_for_nothing_but_its_own_work() {
    let pc = Pc::new();
    std::fs::remove_file(pc.root().join(PACKAGE)).unwrap();
    let refused = EnergyMeter::open_still(pc.root()).err().unwrap().to_string();
    assert!(refused.contains("energy_uj"), "{refused}");
    let card = pc.with_card(None);
    let meter = EnergyMeter::open_still(pc.root()).unwrap();
    assert_eq!(meter.name(), format!("{CARD} alone"));
    let covered = [Compute::Gpu, Compute::Both, Compute::Cpu, Compute::Auto];
    assert_eq!(covered.map(|compute| meter.covers(compute)), [true, false, false, false]);
    card.say("nvmlDeviceGetTotalEnergyConsumption 3\nmw 2000000");
    let start = Instant::now();
    let meter = EnergyMeter::open_still(pc.root()).unwrap();
    assert!(meter.joules() >= 0.0);
    let (joules, seconds) = (meter.joules(), start.elapsed().as_secs_f64());
    assert!(joules > 0.0 && joules <= 2000.0 * seconds, "{joules} J at 2 kW in {seconds} s");
    card.say("nvmlDeviceGetTotalEnergyConsumption 3\nnvmlDeviceGetPowerUsage 3");
    let refused = EnergyMeter::open_still(pc.root()).err().unwrap().to_string();
    assert!(refused.contains("energy_uj"), "a card without a sensor is none: {refused}");
}

#[test]
fn the_command_shows_a_card_and_doctor_does() {
    let pc = Pc::new();
    pc.with_card(None).say("reasons 4");
    let gpu = format!(
        "{CARD}, 1777 MHz, 35 % busy, 3.00 GiB of 12.0 GiB used, memory 7501 MHz, fan 102 of 255"
    );
    let out = pc.run(&["power"]);
    for line in [
        format!("gpu          {gpu}"),
        format!("heat         x86_pkg_temp 55.0 C, {CARD} 61.0 C"),
        format!("power        {CARD} 120.50 W"),
        format!("throttled    yes, {CARD}: power"),
    ] {
        assert!(out.contains(&format!("{line}\n")), "{line} in {out}");
    }
    assert!(pc.run(&["monitor", "--once", "--url", "127.0.0.1:1"]).contains(&gpu));
    let sensors = |pc: &Pc| {
        let report: Value = serde_json::from_str(&pc.run(&["doctor", "--no-self-test", "--json"]))
            .expect("doctor speaks JSON");
        let rows = report["findings"].as_array().unwrap().iter();
        let mut rows = rows.filter(|row| row["what"] == "gpu sensors");
        rows.next().unwrap()["text"].as_str().unwrap().to_owned()
    };
    assert_eq!(sensors(&pc), gpu);
    let without = sensors(&Pc::new());
    assert!(without.contains("no cards of NVIDIA: ") && without.contains("No such file"));
    assert!(without.contains("no gpu: no device that sysfs shows"), "{without}");
}

#[test]
fn a_service_tells_of_its_card() {
    let pc = Pc::new();
    let card = pc.with_card(None);
    let home = tempfile::tempdir().unwrap();
    let root = pc.root().display().to_string();
    let service = Process::start(home.path(), &["--board-root", &root, "--metrics"]);
    let metrics = || get(service.address, "/metrics").text();
    let gpu = format!("{{gpu=\"{CARD}\"}}");
    let page = metrics();
    for line in [
        format!("jetforge_gpu_frequency_hertz{gpu} 1777000000"),
        format!("jetforge_gpu_busy_ratio{gpu} 0.35"),
        format!("jetforge_gpu_memory_frequency_hertz{gpu} 7501000000"),
        format!("jetforge_gpu_memory_bytes{gpu} 12884901888"),
        format!("jetforge_gpu_memory_used_bytes{gpu} 3221225472"),
        format!("jetforge_gpu_fan_ratio{gpu} 0.4"),
        format!("jetforge_temperature_celsius{{zone=\"{CARD}\"}} 61"),
        format!("jetforge_power_watts{{rail=\"{CARD}\"}} 120.5"),
        "jetforge_throttled 0".to_owned(),
    ] {
        assert!(page.contains(&format!("{line}\n")), "{line} in {page}");
    }
    let power = get(service.address, "/v1/power").json();
    assert_eq!(power["energy"]["sensor"], format!("package-0, {CARD}"));
    card.say("mj 9007000\nreasons 64\ncelsius 88");
    until("seven joules are told", || metrics().contains("jetforge_energy_joules_total 7\n"));
    let status = || get(service.address, "/v1/status").json()["power"].clone();
    until("its heat is told", || status()["temperature_c"] == 88.0);
    until("and what it does to it", || status()["throttled"] == true);
    assert_eq!(status()["pace"]["duty_permille"], 1000, "its driver holds it, not the engine");
    card.say("cards 15");
    until("a card that is gone is told no more", || !metrics().contains(&format!("{gpu} ")));
    let absent = absent(&get(service.address, "/v1/power").json()["readings"]);
    assert!(absent[0].starts_with(&format!("{CARD}: device fell off")), "{absent:?}");
    service.terminate();
    let (code, said) = service.end();
    assert_eq!(code, Some(0), "{said}");
    assert!(!said.contains(CARD) && !said.contains("libnvidia-ml"), "no log a second: {said}");
}

#[test]
fn a_machine_of_its_own_has_the_library_that_the_loader_finds() {
    if ["/proc/device-tree", "/sys/firmware/devicetree/base"].iter().any(|t| Path::new(t).exists())
    {
        skip("nvml-loader", "this machine has a device tree, and is never asked for cards");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let card = Nvml::at(dir.path().join("libnvidia-ml.so.1"), None);
    card.say("mhz 1234");
    let mut command = jetforge(dir.path());
    command.args(["power", "--json"]).env("LD_LIBRARY_PATH", dir.path());
    let json = Run::of(&mut command).json();
    let gpus = json["readings"]["gpus"].as_array().unwrap();
    let gpu = gpus.iter().find(|gpu| gpu["name"] == CARD).expect("the stand-in's card");
    assert_eq!(gpu["hz"], 1_234_000_000);
}
