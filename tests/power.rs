//! `jetforge power` and `jetforge tune`, the real binary on a folder that stands in for a Nano.
//!
//! The forms of the files are those that `src/power/tests/trees.rs` cites.

use std::io::Write;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Instant;

use serde_json::{Value, json};

use crate::cli::jetforge;
use crate::serve::Process;
use crate::support::http::{get, post, send, until};
use crate::support::recipe::Recipe;
use crate::support::run::Run;
use crate::support::stand_in;

const FILES: [(&str, &str); 14] = [
    ("proc/device-tree/model", "NVIDIA Jetson Nano Developer Kit\0"),
    ("proc/device-tree/compatible", "nvidia,p3449-0000-b00+p3448-0000-b00\0nvidia,tegra210\0"),
    ("proc/meminfo", "MemTotal: 4059328 kB\nMemAvailable: 3000000 kB\nNvMapMemUsed: 81920 kB\n"),
    ("proc/sys/vm/swappiness", "60\n"),
    ("proc/sys/kernel/random/boot_id", "5d3ac43d\n"),
    ("sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq", "1428000\n"),
    ("sys/devices/system/cpu/cpu0/cpufreq/scaling_min_freq", "102000\n"),
    ("sys/devices/system/cpu/cpu0/cpufreq/scaling_max_freq", "1428000\n"),
    (
        "sys/devices/system/cpu/cpu0/cpufreq/scaling_available_frequencies",
        "102000 918000 1428000\n",
    ),
    ("sys/devices/system/cpu/cpu3/online", "1\n"),
    ("sys/class/thermal/thermal_zone0/type", "CPU-therm\n"),
    ("sys/class/thermal/thermal_zone0/temp", "41500\n"),
    ("sys/bus/i2c/devices/6-0040/name", "ina3221x\n"),
    ("sys/class/powercap/.keep", ""),
];

struct Board {
    home: tempfile::TempDir,
    root: tempfile::TempDir,
}

impl Board {
    fn new() -> Board {
        let board =
            Board { home: tempfile::tempdir().unwrap(), root: tempfile::tempdir().unwrap() };
        FILES.iter().for_each(|(path, text)| board.put(path, text));
        board
    }

    /// Exit code, stdout and stderr of a verb on this board.
    fn run(&self, args: &[&str]) -> (i32, String, String) {
        let mut command = jetforge(self.home.path());
        command.args(args).arg("--root").arg(self.root.path());
        let output = command.output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (output.status.code().unwrap_or(-1), text(output.stdout), text(output.stderr))
    }

    /// What a verb says that knows no boards.
    fn run_plain(&self, args: &[&str]) -> String {
        let output = jetforge(self.home.path()).args(args).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    fn json(&self, args: &[&str]) -> Value {
        let (code, out, err) = self.run(&[args, &["--json"]].concat());
        assert_eq!(code, 0, "{err}");
        serde_json::from_str(&out).unwrap()
    }

    /// A service on this board.
    fn serve(&self, options: &[&str]) -> Process {
        let root = self.root.path().display().to_string();
        Process::start(self.home.path(), &[&["--board-root", &root, "--metrics"], options].concat())
    }

    fn put(&self, path: &str, text: &str) {
        let path = self.root.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    fn text(&self, path: &str) -> String {
        std::fs::read_to_string(self.root.path().join(path)).unwrap().trim().to_owned()
    }
}

#[test]
fn the_board_is_shown_and_what_is_absent_by_name() {
    let board = Board::new();
    let (code, out, err) = board.run(&["power"]);
    assert_eq!(code, 0, "{err}");
    for line in [
        "board        Jetson Nano 4 GB, B01",
        "profile      auto (default)",
        "supply       10 W",
        "heat         CPU-therm 41.5 C",
    ] {
        assert!(out.contains(line), "{line} in {out}");
    }
    assert!(out.contains("power rails") && out.contains("no INA3221"), "{out}");
    let json = board.json(&["power", "status"]);
    assert_eq!(json["board"]["kind"], "nano_b01");
    assert_eq!(json["readings"]["memory"]["gpu_bytes"], 80 << 20);
}

#[test]
fn a_profile_is_chosen_and_given_back() {
    let board = Board::new();
    let profile = || {
        let json = board.json(&["power"]);
        [json["profile"].as_str().unwrap(), json["profile_source"].as_str().unwrap()].join(" by ")
    };
    let (code, _, err) = board.run(&["power", "eco"]);
    assert_eq!(code, 0, "{err}");
    assert!(err.contains("power.set_clocks is off"), "{err}");
    assert_eq!(profile(), "eco by jetforge power");
    assert_eq!(board.run(&["power", "configured"]).0, 0);
    assert_eq!(profile(), "auto by default");
    let (code, _, err) = board.run(&["power", "--set", "power.profile=turbo"]);
    assert_eq!(code, 2);
    assert!(err.contains("power.profile"), "{err}");
    let (code, _, err) = board.run(&["power", "--set", "power.hard_limit_c=60"]);
    assert_eq!(code, 2);
    assert!(err.contains("power.hard_limit_c"), "{err}");
}

#[test]
fn tuning_is_shown_made_and_undone() {
    let board = Board::new();
    let watts5 = ["--set", "power.supply=5w"];
    let cpu = "sys/devices/system/cpu";
    let max = format!("{cpu}/cpu0/cpufreq/scaling_max_freq");
    let tune = |option: &str| {
        let (code, out, err) = board.run(&[&["tune", option][..], &watts5].concat());
        assert_eq!(code, 0, "{err}");
        out
    };
    let shown = tune("--dry-run");
    let lines = [
        format!("would write 0 to /{cpu}/cpu3/online (was 1)"),
        format!("would write 918000 to /{max} (was 1428000)"),
        "would write 10 to /proc/sys/vm/swappiness (was 60)".to_owned(),
    ];
    assert_eq!(shown.lines().collect::<Vec<_>>(), lines);
    assert_eq!(board.text(&max), "1428000", "nothing was written");
    assert_eq!(tune("--apply"), shown.replace("would write", "wrote"));
    assert_eq!(
        (board.text(&max), board.text("proc/sys/vm/swappiness")),
        ("918000".into(), "10".into())
    );
    assert_eq!(tune("--apply"), "");
    assert_eq!(tune("--revert").lines().count(), 3);
    assert_eq!(
        (board.text(&max), board.text("proc/sys/vm/swappiness")),
        ("1428000".into(), "60".into())
    );
    assert_eq!(tune("--revert"), "");
}

#[test]
fn this_machine_is_shown_as_well() {
    let home = tempfile::tempdir().unwrap();
    let output = jetforge(home.path()).args(["power", "--json"]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let json: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(json["readings"]["cpu"]["cores"].as_array().is_some_and(|cores| !cores.is_empty()));
    assert!(
        !Path::new(home.path()).join(".local/state/jetforge").exists(),
        "looking writes nothing"
    );
}

#[test]
fn a_screen_is_plain_text_also_without_a_service() {
    let (code, out, err) = Board::new().run(&["monitor", "--once", "--url", "127.0.0.1:1"]);
    assert_eq!(code, 0, "{err}");
    assert!(out.starts_with("board        Jetson Nano 4 GB, B01, profile auto\nservice "), "{out}");
    assert!(out.contains("heat         CPU-therm 41.5 C") && !out.contains('\x1b'), "{out}");
}

#[test]
fn the_appliance_tunes_memory_and_leaves_clocks_to_the_service() {
    let board = Board::new();
    let args = ["tune", "--memory", "--dry-run", "--set", "power.supply=5w"];
    let (code, out, err) = board.run(&args);
    assert_eq!((code, err.contains("nvpmodel")), (0, false), "{err}");
    assert_eq!(out, "would write 10 to /proc/sys/vm/swappiness (was 60)\n");
}

#[test]
fn the_helper_answers_lines_and_takes_all_back_at_their_end() {
    let board = Board::new();
    let max = "sys/devices/system/cpu/cpu0/cpufreq/scaling_max_freq";
    let helper = |lines: &str| {
        let mut command = jetforge(board.home.path());
        command.args(["power-helper", "--set", "power.set_clocks=true", "--root"]);
        command.arg(board.root.path()).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
        let run = Run::from(child.wait_with_output().unwrap());
        (run.code, run.out, run.err)
    };
    let (code, out, err) = helper("set 918000 - - -\nset 5 - - -\nprofile max\n");
    assert_eq!(code, 0, "{err}");
    let answers: Vec<&str> = out.lines().collect();
    assert_eq!((answers.len(), answers[0]), (3, "done"), "{answers:?}");
    assert!(answers[1].starts_with("no 5 kHz"), "{answers:?}");
    assert!(answers[2].starts_with("no use: set"), "{answers:?}");
    assert!(err.contains("1 files are as they were before"), "{err}");
    assert_eq!(board.text(max), "1428000");
}

const MAX: &str = "sys/devices/system/cpu/cpu0/cpufreq/scaling_max_freq";
const HEAT: &str = "sys/class/thermal/thermal_zone0/temp";
const SET: [&str; 4] = ["--set", "power.set_clocks=true", "--set", "power.idle_after_s=0"];

fn power(service: &Process) -> Value {
    get(service.address, "/v1/power").json()
}

#[test]
fn a_service_keeps_its_board_and_gives_it_back() {
    let board = Board::new();
    let service = board.serve(&SET);
    until("the clock of an idle board falls", || board.text(MAX) == "918000");
    let now = power(&service);
    assert_eq!(now["board"], "Jetson Nano 4 GB, B01");
    assert_eq!((&now["profile"], &now["chosen"]), (&json!("auto"), &json!(false)));
    assert_eq!((&now["causes"], &now["trouble"]), (&json!(["idle"]), &Value::Null));
    assert_eq!(now["temperature_c"], 41.5);
    let metrics = get(service.address, "/metrics").text();
    for line in [
        "jetforge_temperature_celsius{zone=\"CPU-therm\"} 41.5",
        "jetforge_cpu_frequency_hertz{core=\"0\"} 1428000000",
        "jetforge_pace_duty_ratio 1",
        "jetforge_pace_cause{cause=\"idle\"} 1",
        "jetforge_throttled 0",
    ] {
        assert!(metrics.contains(&format!("{line}\n")), "{line} in {metrics}");
    }
    let answer = post(service.address, "/completion", &json!({"prompt": "fn", "n_predict": 4}));
    assert_eq!(answer.json()["tokens_predicted"], 4);
    service.terminate();
    let (code, said) = service.end();
    assert_eq!((code, board.text(MAX).as_str()), (Some(0), "1428000"), "{said}");
}

const GPU_MAX: &str = "sys/devices/gpu.0/devfreq/57000000.gpu/max_freq";

#[test]
fn the_gpu_that_computes_is_not_held_down() {
    let Some((library, _dir)) = stand_in::copy("") else { return };
    let board = Board::new();
    let gpu = GPU_MAX.strip_suffix("max_freq").unwrap();
    board.put(&format!("{gpu}available_frequencies"), "76800000 614400000 921600000\n");
    board.put(&format!("{gpu}min_freq"), "76800000\n");
    board.put(GPU_MAX, "921600000\n");
    let mut command = jetforge(board.home.path());
    command.args(["serve", "--port", "0", "--threads", "1", "-c", "256", "--board-root"]);
    command.arg(board.root.path()).args(SET).args(["--set", "power.profile=max"]);
    command.env("LD_LIBRARY_PATH", library.parent().unwrap());
    let service = Process::spawn(command);
    let device = get(service.address, "/props").json()["device"]["name"].clone();
    assert_eq!(device, "cuda:0");
    let clocks = || [MAX, GPU_MAX].map(|path| board.text(path));
    let busy = Busy::start(service.address, 2);
    until("it computes at its highest, and cores feed it", || clocks() == ["918000", "921600000"]);
    drop(busy);
    until("it rests", || clocks() == ["918000", "614400000"]);
    service.terminate();
    let (code, said) = service.end();
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(clocks(), ["1428000", "921600000"], "{said}");
}

/// Has a service make tokens until it is dropped.
struct Busy {
    end: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Busy {
    /// With requests for so many tokens each.
    fn start(address: SocketAddr, n_predict: u32) -> Busy {
        let end = Arc::new(AtomicBool::new(false));
        let is_over = Arc::clone(&end);
        let body = json!({"prompt": "fn", "n_predict": n_predict, "ignore_eos": true});
        let thread = std::thread::spawn(move || {
            while !is_over.load(Ordering::Relaxed) {
                assert_eq!(post(address, "/completion", &body).status, 200);
            }
        });
        Busy { end, thread: Some(thread) }
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Relaxed);
        let ended = self.thread.take().unwrap().join();
        assert!(ended.is_ok() || std::thread::panicking());
    }
}

#[test]
fn the_energy_of_a_token_is_told() {
    let board = Board::new();
    let chip = "sys/bus/i2c/devices/6-0040/iio:device0";
    board.put(&format!("{chip}/rail_name_0"), "POM_5V_IN\n");
    board.put(&format!("{chip}/in_power0_input"), "4000\n");
    let start = Instant::now();
    let service = board.serve(&[]);
    let metric = |page: &str, name: &str| -> Option<f64> {
        let mut lines = page.lines().filter_map(|line| line.split_once(' '));
        lines.find(|(of, _)| *of == name).map(|(_, value)| value.parse().unwrap())
    };
    let (busy, mut page) = (Busy::start(service.address, 200), String::new());
    until("tokens were made between two looks", || {
        page = get(service.address, "/metrics").text();
        metric(&page, "jetforge_joule_per_token").is_some()
    });
    drop(busy);
    let of = |name: &str| metric(&page, &format!("jetforge_{name}")).unwrap();
    let all = of("energy_joules_total");
    assert!(all > 0.0 && all <= 4.0 * start.elapsed().as_secs_f64(), "{all} J at 4 W");
    let (joules, tokens) = (of("decode_joules_total"), of("decode_tokens_total"));
    assert!(joules > 0.0 && joules <= all && tokens >= 1.0, "{joules} of {all} J, {tokens}");
    let told = of("joule_per_token");
    assert!((told - joules / tokens).abs() < 1e-6 * told, "{told} J of {joules} and {tokens}");
    assert_eq!(power(&service)["energy"]["sensor"], "POM_5V_IN");
}

#[test]
fn what_a_killed_service_set_is_taken_back_by_the_next() {
    let board = Board::new();
    let service = board.serve(&SET);
    until("the clock of an idle board falls", || board.text(MAX) == "918000");
    service.kill();
    assert_eq!(board.text(MAX), "918000");
    let service = board.serve(&[]);
    assert_eq!(board.text(MAX), "1428000");
    assert_eq!(power(&service)["trouble"], Value::Null);
}

#[test]
fn a_hot_board_computes_nothing_and_says_why() {
    let board = Board::new();
    let service = board.serve(&[]);
    until("the board is looked at", || !power(&service)["pace"].is_null());
    board.put(HEAT, "95000\n");
    until("nothing may compute", || power(&service)["pace"]["duty_permille"] == 0);
    let status = get(service.address, "/v1/status").json();
    assert_eq!(status["power"]["causes"][0], "heat", "{status}");
    assert_eq!(status["power"]["jobs_wait_for"], "the board is hot");
    let job = json!({"endpoint": "/completion", "body": {"prompt": "fn", "n_predict": 2}});
    let job = post(service.address, "/v1/jobs", &job).json();
    let id = job["id"].as_str().unwrap();
    let path = format!("/v1/jobs/{id}");
    assert_eq!(get(service.address, &path).json()["state"], "queued");
    let slots = get(service.address, "/slots");
    assert_eq!(slots.status, 200, "whoever asks is answered");
    board.put(HEAT, "41500\n");
    until("jobs run again", || get(service.address, &path).json()["state"] == "done");
}

/// What the kernel of a Nano says of a supply that sags reaches the engine and who has jobs.
#[test]
fn a_supply_that_sags_slows_the_engine_and_holds_jobs_up() {
    let board = Board::new();
    board.put("dev/kmsg", "4,1,1,-;soctherm: OC ALARM 0x00000001\n");
    let service = board.serve(&[]);
    until("the board is looked at", || !power(&service)["pace"].is_null());
    assert_eq!(power(&service)["causes"].to_string().find("over_current"), None, "of before");
    let log = board.root.path().join("dev/kmsg");
    let mut log = std::fs::File::options().append(true).open(log).unwrap();
    log.write_all(b"4,2,2,-;soctherm: OC ALARM 0x00000001\n").unwrap();
    until("the engine is slowed", || power(&service)["pace"]["duty_permille"] == 500);
    let now = power(&service);
    assert!(now["causes"].to_string().contains("over_current"), "{now}");
    let status = get(service.address, "/v1/status").json();
    assert_eq!(status["power"]["jobs_wait_for"], "the power supply sagged", "{status}");
    let answer = post(service.address, "/completion", &json!({"prompt": "fn", "n_predict": 2}));
    assert_eq!(answer.json()["tokens_predicted"], 2, "people are answered");
}

#[test]
fn a_profile_is_chosen_over_http_and_by_the_command() {
    let board = Board::new();
    let service = board.serve(&["--api-key", "all"]);
    let key = [("authorization", "Bearer all")];
    let put = |body: Value| send(service.address, "PUT", "/v1/power", &key, &body.to_string());
    let profile = || {
        let answer = send(service.address, "GET", "/v1/power", &key, "");
        answer.json()["profile"].as_str().unwrap_or_default().to_owned()
    };
    assert_eq!(put(json!({"profile": "eco"})).json()["profile"], "eco");
    until("it is in force", || profile() == "eco");
    assert_eq!(board.json(&["power"])["profile"], "eco", "the command sees the same choice");
    assert_eq!(board.run(&["power", "max"]).0, 0);
    until("the command's choice is in force", || profile() == "max");
    assert_eq!(put(json!({"profile": "configured"})).status, 200);
    until("the configured one is back", || profile() == "auto");
    for body in [json!({}), json!({"profile": "turbo"}), json!({"profile": 3})] {
        let answer = put(body.clone());
        assert_eq!((answer.status, &answer.json()["error"]["param"]), (400, &json!("profile")));
    }
    let created = board.run_plain(&["key", "create", "reader"]);
    let key = format!("Bearer {}", created.trim());
    let reader = [("authorization", key.as_str())];
    let body = json!({"profile": "eco"}).to_string();
    assert_eq!(send(service.address, "PUT", "/v1/power", &reader, &body).status, 403);
    assert_eq!(send(service.address, "GET", "/v1/power", &reader, "").status, 200);
    assert_eq!(send(service.address, "PUT", "/v1/power", &[], &body).status, 401);
}

#[test]
fn the_class_of_a_request_chooses_its_model() {
    let board = Board::new();
    let models = tempfile::tempdir().unwrap();
    let bytes = Recipe::read("llama").build(jetforge::inference::quant::TensorType::F32);
    std::fs::write(models.path().join("tiny.gguf"), bytes).unwrap();
    let dir = format!("library.dir={}", models.path().display());
    let service = board.serve(&[
        "--set",
        &dir,
        "--set",
        "power.profile=balanced",
        "--set",
        "power.balanced.model_background=tiny",
        "--set",
        "power.balanced.model_interactive=no-such-model",
    ]);
    until("the board is looked at", || !power(&service)["pace"].is_null());
    let model = |extra: Value| {
        let mut body = json!({"prompt": "fn", "n_predict": 2});
        body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        let answer = post(service.address, "/completion", &body);
        assert_eq!(answer.status, 200, "{}", answer.text());
        answer.json()["model"].as_str().unwrap().to_owned()
    };
    assert_eq!(model(json!({"priority": "background"})), "tiny");
    assert_eq!(model(json!({})), "default", "one that cannot be had is no reason to refuse");
    let named = json!({"priority": "background", "model": "default"});
    assert_eq!(model(named), "default", "a name is obeyed");
}

#[test]
fn the_service_manager_hears_of_its_life() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("notify");
    let manager = std::os::unix::net::UnixDatagram::bind(&path).unwrap();
    let hear = || {
        let mut bytes = [0; 512];
        let n = manager.recv(&mut bytes).unwrap();
        String::from_utf8(bytes[..n].to_vec()).unwrap()
    };
    let hear_until = |what: &str| while !hear().starts_with(what) {};
    let mut command = jetforge(home.path());
    command.args(["serve", "--port", "0", "--threads", "1"]);
    command.env("NOTIFY_SOCKET", &path).env("WATCHDOG_USEC", "300000");
    let service = Process::spawn(command);
    hear_until("READY=1");
    hear_until("STATUS=serving default: 0 running, 0 waiting; profile auto");
    hear_until("WATCHDOG=1");
    hear_until("WATCHDOG=1");
    service.terminate();
    hear_until("STOPPING=1");
    assert_eq!(service.end().0, Some(0));
}
