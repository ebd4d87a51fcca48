use std::os::unix::net::UnixDatagram;
use std::sync::mpsc::channel;

use super::*;
use crate::hosting::ModelEntry;
use crate::inference::{
    Engine, EngineOptions, LoadOptions, Model, ModelSource, SamplerOptions, Script, Tempo,
};

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

/// A manager and the line to it, with a watchdog of 60 ms.
struct Manager {
    socket: UnixDatagram,
    supervisor: Supervisor,
    _dir: tempfile::TempDir,
}

impl Manager {
    fn new() -> Manager {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        let path = path.display().to_string();
        let env = [("NOTIFY_SOCKET", &*path), ("WATCHDOG_USEC", "60000")].into_iter().collect();
        let supervisor = Supervisor::new(Notifier::from_env(&env, 1).unwrap());
        Manager { socket, supervisor, _dir: dir }
    }

    fn heard(&self) -> String {
        let mut bytes = [0; 1024];
        let n = self.socket.recv(&mut bytes).unwrap();
        String::from_utf8(bytes[..n].to_vec()).unwrap()
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

#[tokio::test]
async fn it_is_ready_when_the_model_answers_and_not_before() {
    let (manager, host) = (Manager::new(), host(None));
    let supervised = manager.supervisor.start(host.clone(), || "fine".to_owned()).unwrap();
    let loading = manager.until("STATUS=");
    assert_eq!(loading.last().unwrap(), "STATUS=loading");
    manager.until("EXTEND_TIMEOUT_USEC=60000000");
    manager.supervisor.ready(&host).await.unwrap();
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

#[tokio::test]
async fn a_stuck_engine_misses_the_watchdog_until_it_goes_on() {
    let manager = Manager::new();
    let (let_go, may_go) = channel::<()>();
    let may_go = std::sync::Mutex::new(may_go);
    let n_said = std::sync::atomic::AtomicUsize::new(0);
    let script: Script = Box::new(move |_| {
        // The first is the one that makes the service ready.
        if n_said.fetch_add(1, std::sync::atomic::Ordering::Relaxed) > 0 {
            let _ = may_go.lock().unwrap().recv();
        }
        300
    });
    let host = host(Some(script));
    let supervised = manager.supervisor.start(host.clone(), || "fine".to_owned()).unwrap();
    manager.supervisor.ready(&host).await.unwrap();
    manager.until("READY=1");
    manager.until("WATCHDOG=1");
    let lease = host.lease(None).await.unwrap();
    let request = Request { prompt: vec![1], n_predict: Some(1), ..Request::default() };
    let mut stream = lease.submit(request).unwrap();
    // HTTP would go on answering; the manager is told nothing but what is wrong.
    manager.until("STATUS=an engine stands still; fine");
    drop(let_go);
    let after = manager.until("WATCHDOG=1");
    assert!(after.len() <= 2, "nothing but the new status was said meanwhile: {after:?}");
    while stream.next().await.is_some() {}
    // An engine that pauses for heat is no engine that hangs.
    host.set_tempo(Tempo { duty_permille: 0, ..Tempo::default() });
    manager.until("WATCHDOG=1");
    manager.until("WATCHDOG=1");
    drop(supervised);
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

#[tokio::test]
async fn without_a_manager_nothing_is_asked_of_the_model() {
    let (supervisor, host) = (Supervisor::new(None), host(None));
    let _supervised = supervisor.start(host.clone(), String::new).unwrap();
    supervisor.ready(&host).await.unwrap();
    assert_eq!(host.engines()[0].1.stats().requests_total, 0);
}
