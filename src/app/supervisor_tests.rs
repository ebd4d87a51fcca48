//! What the service manager hears, of a model that answers and of one that hangs.

use std::os::unix::net::UnixDatagram;
use std::sync::mpsc::{Receiver, channel};

use super::*;
use crate::hosting::ModelEntry;
use crate::inference::{
    Engine, EngineOptions, LoadOptions, Model, ModelSource, SamplerOptions, Script, Tempo,
};

/// Waits for a future of a loaded model, which needs no more than to be asked again.
fn wait<T>(future: impl Future<Output = T>) -> T {
    let mut future = std::pin::pin!(future);
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    loop {
        if let std::task::Poll::Ready(value) = future.as_mut().poll(&mut context) {
            return value;
        }
        std::thread::yield_now();
    }
}

/// A host of the default model, which says what `script` says.
fn host(script: Option<Script>) -> Host {
    let load = LoadOptions { n_ctx: Some(64), n_threads: Some(1), ..LoadOptions::default() };
    let model = Model::load(&ModelSource::Embedded, &load).unwrap();
    let model = match script {
        Some(script) => model.with_script(script),
        None => model,
    };
    let engine = EngineOptions::default();
    let entry = ModelEntry {
        name: "default".to_owned(),
        aliases: Vec::new(),
        source: ModelSource::Embedded,
        load,
        engine: engine.clone(),
        sampler: SamplerOptions::default(),
        keep_alive: None,
    };
    let started = Engine::start(model, engine, Box::new(|reason| panic!("{reason}"))).unwrap();
    Host::single(entry, started)
}

/// A manager and the line to it, with a watchdog of 600 ms.
struct Manager {
    said: Receiver<String>,
    supervisor: Supervisor,
    _dir: tempfile::TempDir,
}

impl Manager {
    fn new() -> Manager {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        let path = path.display().to_string();
        let env = [("NOTIFY_SOCKET", &*path), ("WATCHDOG_USEC", "600000")].into_iter().collect();
        let supervisor = Supervisor::new(Notifier::from_env(&env, 1).unwrap());
        let (tell, said) = channel();
        // The queue of a socket is short; a manager reads at once.
        std::thread::spawn(move || {
            let mut bytes = [0; 1024];
            while let Ok(n) = socket.recv(&mut bytes) {
                if tell.send(String::from_utf8_lossy(&bytes[..n]).into_owned()).is_err() {
                    return;
                }
            }
        });
        Manager { said, supervisor, _dir: dir }
    }

    fn heard(&self) -> String {
        self.said.recv().unwrap()
    }

    /// Everything up to a message that begins so.
    fn until(&self, start: &str) -> Vec<String> {
        let mut all = Vec::new();
        while !all.last().is_some_and(|last: &String| last.starts_with(start)) {
            all.push(self.heard());
        }
        all
    }
}

#[test]
fn it_is_ready_when_the_model_answers_and_not_before() {
    let (manager, host) = (Manager::new(), host(None));
    let supervised = manager.supervisor.start(host.clone(), || "fine".to_owned()).unwrap();
    let loading = manager.until("STATUS=");
    assert_eq!(loading, ["EXTEND_TIMEOUT_USEC=60000000", "STATUS=loading"]);
    wait(manager.supervisor.ready(&host)).unwrap();
    let before = manager.until("READY=1");
    assert!(before.iter().all(|said| !said.starts_with("WATCHDOG")), "{before:?}");
    assert_eq!(manager.until("STATUS=").last().unwrap(), "STATUS=fine");
    manager.until("WATCHDOG=1");
    assert_eq!(manager.supervisor.reload(|| 3), 3);
    manager.until("RELOADING=1");
    manager.until("READY=1");
    manager.supervisor.stopping();
    manager.until("STOPPING=1");
    manager.until("WATCHDOG=1");
    drop(supervised);
}

#[test]
fn a_start_says_how_far_it_is() {
    let said = [None, Some(0.0), Some(0.439), Some(1.0)].map(loading);
    assert_eq!(said, ["loading", "loading, 0 %", "loading, 43 %", "loading, 100 %"]);
}

#[test]
fn a_start_that_hangs_is_not_waited_for_without_end() {
    let (manager, host) = (Manager::new(), host(None));
    let notifier = &manager.supervisor.0.as_ref().unwrap().notifier;
    let mut looks = Looks::default();
    let mut n_more = 0;
    for _ in 0..2 * START_S_MAX / LOOK.as_secs() {
        looks.look(notifier, Stage::Loading, &host, &String::new);
        // What finds the queue full is lost, so it is emptied after each look.
        notifier.ready();
        let heard = manager.until("READY=1");
        n_more += heard.iter().filter(|said| said.starts_with("EXTEND_TIMEOUT_USEC=")).count();
    }
    assert_eq!(n_more as u64, START_S_MAX / LOOK.as_secs());
}

#[test]
fn a_stuck_engine_misses_the_watchdog_until_it_goes_on() {
    let manager = Manager::new();
    let notifier = &manager.supervisor.0.as_ref().unwrap().notifier;
    let (let_go, may_go) = channel::<()>();
    let (tell, told) = channel::<()>();
    let hands = std::sync::Mutex::new((may_go, tell));
    let script: Script = Box::new(move |_| {
        let hands = hands.lock().unwrap();
        let _ = hands.1.send(());
        let _ = hands.0.recv();
        300
    });
    let host = host(Some(script));
    let engine = host.engines().remove(0).1;
    let mut looks = Looks::default();
    let mut look = || {
        looks.look(notifier, Stage::Serving, &host, &|| "fine".to_owned());
        // A call that a living thread answers before the next look.
        let before = engine.beat();
        move |engine: &Engine| {
            while engine.beat() == before {
                std::thread::yield_now();
            }
        }
    };
    look()(&engine);
    look()(&engine);
    assert_eq!(manager.heard(), "WATCHDOG=1");
    assert_eq!(manager.heard(), "STATUS=fine");
    assert_eq!(manager.heard(), "WATCHDOG=1");
    let request = Request { prompt: vec![1], n_predict: Some(1), ..Request::default() };
    let mut stream = wait(host.lease(None)).unwrap().submit(request).unwrap();
    told.recv().unwrap();
    // HTTP would go on answering; the manager is told nothing but what is wrong.
    let _ = (look(), look(), look());
    assert_eq!(manager.heard(), "WATCHDOG=1", "it moved since the look before");
    assert_eq!(manager.heard(), "STATUS=an engine stands still; fine");
    drop(let_go);
    while stream.recv().is_some() {}
    // The thread may still have to hear the calls of the looks before; then it moves at each.
    look()(&engine);
    look()(&engine);
    assert!(manager.until("STATUS=fine").contains(&"WATCHDOG=1".to_owned()));
    notifier.ready();
    manager.until("READY=1");
    // An engine that pauses for heat is no engine that hangs.
    host.set_tempo(Tempo { duty_permille: 0, ..Tempo::default() });
    look()(&engine);
    look()(&engine);
    assert_eq!(manager.heard(), "WATCHDOG=1");
    assert_eq!(manager.heard(), "WATCHDOG=1");
}

#[test]
fn a_pulse_is_felt_of_every_engine() {
    let mut pulse = Pulse::default();
    let mut feel = |beats: &[(&str, u64)]| {
        pulse.feel(beats.iter().map(|(name, beat)| ((*name).to_owned(), *beat)).collect())
    };
    assert!(feel(&[]) && feel(&[("a", 1)]) && feel(&[("a", 2), ("b", 7)]));
    assert!(!feel(&[("a", 3), ("b", 7)]), "one of two hangs");
    assert!(feel(&[("a", 4)]), "and was unloaded");
    assert!(!feel(&[("a", 4)]));
}

#[test]
fn without_a_manager_nothing_is_asked_of_the_model() {
    let (supervisor, host) = (Supervisor::new(None), host(None));
    let _supervised = supervisor.start(host.clone(), String::new).unwrap();
    wait(supervisor.ready(&host)).unwrap();
    assert_eq!(host.engines()[0].1.stats().requests_total, 0);
}
