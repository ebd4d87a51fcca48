//! Models come and go as they are asked for.

use super::*;

fn entry(name: &str) -> ModelEntry {
    let load = LoadOptions { n_ctx: Some(256), n_threads: Some(1), ..LoadOptions::default() };
    ModelEntry {
        name: name.to_owned(),
        aliases: vec![format!("{name}-alias")],
        source: ModelSource::Embedded,
        load,
        engine: EngineOptions::default(),
        sampler: SamplerOptions::default(),
        keep_alive: Some(Duration::from_secs(300)),
    }
}

fn host(names: &[&str], memory_max_bytes: u64) -> Host {
    let entries = names.iter().map(|name| entry(name)).collect();
    let find: Finder = Box::new(|name| (name == "found").then(|| entry("found")));
    Host::new(entries, memory_max_bytes, find, Arc::new(|reason| panic!("{reason}")))
}

fn loaded(host: &Host) -> Vec<String> {
    host.engines().into_iter().map(|(name, _)| name).collect()
}

/// Memory for one of the models but not for two.
async fn room_for_one() -> u64 {
    let host = host(&["a"], u64::MAX);
    host.lease(None).await.unwrap().info().memory_plan().needed_bytes() * 3 / 2
}

#[tokio::test]
async fn a_model_is_loaded_when_it_is_asked_for() {
    let host = host(&["a", "b"], u64::MAX);
    assert!(loaded(&host).is_empty());
    assert_eq!(host.lease(None).await.unwrap().name(), "a");
    assert_eq!(host.lease(Some("b-alias")).await.unwrap().name(), "b");
    assert_eq!(host.lease(Some("found")).await.unwrap().name(), "found");
    assert_eq!(loaded(&host), ["a", "b", "found"]);
    let error = host.lease(Some("c")).await.map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("\"c\"") && error.contains("a, b, found"), "{error}");
}

#[tokio::test]
async fn an_idle_model_makes_room_and_a_busy_one_is_waited_for() {
    let host = host(&["a", "b"], room_for_one().await);
    let lease = host.lease(Some("a")).await.unwrap();
    let other = host.clone();
    let waiting = tokio::spawn(async move { other.lease(Some("b")).await.map(|_| ()) });
    tokio::task::yield_now().await;
    assert_eq!(loaded(&host), ["a"], "a busy model stays");
    drop(lease);
    waiting.await.unwrap().unwrap();
    assert_eq!(loaded(&host), ["b"]);
}

#[tokio::test]
async fn what_cannot_fit_is_refused_with_what_is_missing() {
    let host = host(&["a"], 50 << 20);
    let error = host.lease(None).await.map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("too few"), "{error}");
}

#[tokio::test]
async fn an_idle_model_is_unloaded_after_its_time() {
    let host = host(&["a"], u64::MAX);
    let lease = host.lease(None).await.unwrap();
    host.keep_alive("a", Duration::ZERO);
    assert_eq!(loaded(&host), ["a"], "in use");
    drop(lease);
    host.sweep();
    assert!(loaded(&host).is_empty());
    drop(host.lease(None).await.unwrap());
    host.sweep();
    assert_eq!(loaded(&host), ["a"], "its own keep-alive holds again");
}

#[tokio::test]
async fn a_lease_decides_how_long_its_model_stays() {
    let host = host(&["a", "b"], room_for_one().await);
    let lease = host.lease(Some("a")).await.unwrap();
    lease.keep_alive(Duration::ZERO);
    drop(lease);
    host.due().await;
    host.sweep();
    assert!(loaded(&host).is_empty());
    let lease = host.lease(Some("a")).await.unwrap();
    lease.keep_alive(FOREVER);
    drop(lease);
    host.sweep();
    assert_eq!(loaded(&host), ["a"]);
    drop(host.lease(Some("b")).await.unwrap());
    assert_eq!(loaded(&host), ["b"], "even then it makes room");
}

#[tokio::test]
async fn a_stopped_host_gives_no_leases() {
    let host = host(&["a"], u64::MAX);
    drop(host.lease(None).await.unwrap());
    host.stop(Duration::ZERO);
    assert!(matches!(host.lease(None).await.map(|_| ()), Err(HostError::Stopping)));
}

#[tokio::test]
async fn a_draft_model_comes_and_goes_with_its_model() {
    let mut drafted = entry("a");
    drafted.load.draft = Some(ModelSource::Embedded);
    let find: Finder = Box::new(|_| None);
    let host = Host::new(vec![drafted, entry("b")], u64::MAX, find, Arc::new(|_| {}));
    let bytes = |name: &str| {
        let models = host.models();
        models.iter().find(|model| model.entry.name == name).unwrap().memory_bytes
    };
    let lease = host.lease(Some("a")).await.unwrap();
    assert_eq!(lease.info().draft(), Some(&ModelSource::Embedded));
    drop(host.lease(Some("b")).await.unwrap());
    assert_eq!(bytes("a"), bytes("b") + lease.info().memory_plan().draft_bytes);
    drop(lease);
    host.keep_alive("a", Duration::ZERO);
    assert_eq!(loaded(&host), ["b"]);
}

#[test]
fn what_loads_is_loaded_once_though_whoever_asked_for_it_leaves() {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_all().max_blocking_threads(1).build().unwrap();
    runtime.block_on(async {
        let host = host(&["a"], u64::MAX);
        let (go, gone) = std::sync::mpsc::channel::<()>();
        // The only thread that could load is busy.
        tokio::task::spawn_blocking(move || gone.recv());
        let ask = || {
            let host = host.clone();
            tokio::spawn(async move { host.lease(None).await.map(|_| ()) })
        };
        let leaving = ask();
        tokio::task::yield_now().await;
        let first = host.loading().expect("the model is on its way");
        leaving.abort();
        assert!(leaving.await.unwrap_err().is_cancelled());
        let staying = ask();
        tokio::task::yield_now().await;
        let second = host.loading().expect("it still is");
        assert!(Arc::ptr_eq(&first, &second), "nobody loads beside it");
        drop((go, first, second));
        staying.await.unwrap().unwrap();
        assert_eq!(loaded(&host), ["a"]);
    });
}

/// The lines of a log.
#[derive(Clone, Default)]
struct Said(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Said {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_model_that_takes_long_says_again_and_again_how_far_it_is() {
    let said = Said::default();
    let writer = said.clone();
    let log = tracing_subscriber::fmt().with_writer(move || writer.clone()).with_ansi(false);
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_all().start_paused(true).max_blocking_threads(1).build().unwrap();
    let watch = async {
        let host = host(&["a"], u64::MAX);
        let (go, gone) = std::sync::mpsc::channel::<()>();
        // The only thread that could load is busy.
        tokio::task::spawn_blocking(move || gone.recv());
        let other = host.clone();
        let waiting = tokio::spawn(async move { other.lease(None).await.map(|_| ()) });
        tokio::task::yield_now().await;
        let loading = host.loading().expect("the model is on its way");
        assert_eq!((&loading.name[..], loading.progress.fraction()), ("a", None));
        loading.progress.begin(200 << 20);
        for _ in 0..2 {
            loading.progress.add(43 << 20);
            tokio::time::advance(LOADING_TOLD_EVERY + Duration::from_millis(1)).await;
            // Until whoever waited for that time was heard.
            for _ in 0..4 {
                tokio::task::yield_now().await;
            }
        }
        let lines = String::from_utf8(said.0.lock().unwrap().clone()).unwrap();
        drop((go, loading));
        waiting.await.unwrap().unwrap();
        assert!(host.loading().is_none(), "it is there");
        lines
    };
    let lines = tracing::subscriber::with_default(log.finish(), || runtime.block_on(watch));
    let told = lines.lines().filter_map(|line| Some(line.split_once("loading ")?.1));
    let told: Vec<&str> = told.collect();
    let expected = [43, 86].map(|done| format!("model=\"a\" done_mib={done} total_mib=200"));
    assert_eq!(told, expected);
}
