//! The server under load: a child process on a free port of this machine, or a URL.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use super::wire::Client;

/// How long a server may take until it answers.
const START_MAX: Duration = Duration::from_secs(180);
/// Between two questions whether it does.
const LOOK_EVERY: Duration = Duration::from_millis(5);
/// How long it may take to end.
const STOP_MAX: Duration = Duration::from_secs(40);

/// How a server is started; llama-server's option names, which ours has, too.
#[derive(Clone, Debug)]
pub struct ServerOptions {
    /// The program.
    pub program: PathBuf,
    /// Whether it is ours: `serve` comes first, and no guesses are made unless asked for.
    pub is_ours: bool,
    /// The model; without one, ours has its own.
    pub model: Option<PathBuf>,
    /// Threads.
    pub n_threads: usize,
    /// Sequences at once.
    pub n_parallel: usize,
    /// Context of all of them together.
    pub n_ctx: usize,
    /// More, as they are.
    pub extra: Vec<String>,
}

impl ServerOptions {
    /// Its arguments, with which it listens on `port`.
    pub fn arguments(&self, port: u16) -> Vec<String> {
        let mut args: Vec<String> = Vec::new();
        args.extend(self.is_ours.then(|| "serve".to_owned()));
        if let Some(model) = &self.model {
            args.extend(["--model".to_owned(), model.display().to_string()]);
        }
        let numbers = [
            ("--port", usize::from(port)),
            ("--threads", self.n_threads),
            ("--parallel", self.n_parallel),
            ("--ctx-size", self.n_ctx),
        ];
        for (name, value) in numbers {
            args.extend([name.to_owned(), value.to_string()]);
        }
        args.extend(["--host".to_owned(), "127.0.0.1".to_owned(), "--metrics".to_owned()]);
        args.extend(self.extra.iter().cloned());
        args
    }
}

/// A server and, where it is ours to end, its process.
#[derive(Debug)]
pub struct Host {
    /// Its address.
    pub client: Client,
    /// From its start until it had its model; nothing where it ran already.
    pub ready_after: Duration,
    child: Option<Child>,
    pid: Option<u32>,
    home: Option<tempfile::TempDir>,
}

impl Host {
    /// One that runs already; `pid` tells whose memory is looked at.
    pub fn at(url: &str, api_key: Option<String>, pid: Option<u32>) -> anyhow::Result<Host> {
        let (client, ready_after) = (Client::new(url, api_key)?, Duration::ZERO);
        Ok(Host { client, ready_after, child: None, pid, home: None })
    }

    /// Starts one, and waits until it has its model. Its words go to `log`.
    pub async fn start(options: &ServerOptions, log: Option<&Path>) -> anyhow::Result<Host> {
        let home = tempfile::tempdir()?;
        let free = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let said = match log {
            Some(path) => std::fs::File::create(path)?,
            None => std::fs::File::create(home.path().join("log"))?,
        };
        let started = Instant::now();
        let child = Command::new(&options.program)
            .args(options.arguments(free))
            .env("HOME", home.path())
            .stdin(Stdio::null())
            .stdout(said.try_clone()?)
            .stderr(said)
            .spawn()
            .with_context(|| options.program.display().to_string())?;
        let client = Client::new(&format!("http://127.0.0.1:{free}"), None)?;
        let pid = Some(child.id());
        let (child, home) = (Some(child), Some(home));
        let mut host = Host { client, ready_after: Duration::ZERO, child, pid, home };
        while host.client.get_json("/health").await.is_err() {
            if !host.is_alive() || started.elapsed() > START_MAX {
                bail!("{} does not serve: {}", options.program.display(), host.last_words(log));
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        host.ready_after = started.elapsed();
        Ok(host)
    }

    fn last_words(&self, log: Option<&Path>) -> String {
        let kept = self.home.as_ref().map(|home| home.path().join("log"));
        let Some(path) = log.map(Path::to_owned).or(kept) else { return String::new() };
        let said = std::fs::read_to_string(path).unwrap_or_default();
        let from = said.lines().count().saturating_sub(5);
        said.lines().skip(from).collect::<Vec<_>>().join("\n")
    }

    /// Whether its process runs; true where there is none to look at.
    pub fn is_alive(&mut self) -> bool {
        self.child.as_mut().is_none_or(|child| matches!(child.try_wait(), Ok(None)))
    }

    /// Bytes in memory that are its own, and all; `None` where its process is not known.
    ///
    /// All counts pages of the model's file, which the system takes back when it likes: rows of the
    /// token embedding come in as tokens first occur.
    pub fn resident_bytes(&self) -> Option<(u64, u64)> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid?)).ok()?;
        let bytes = |name| -> Option<u64> {
            let line = status.lines().find(|line| line.starts_with(name))?;
            let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
            Some(kib << 10)
        };
        Some((bytes("RssAnon:")?, bytes("VmRSS:")?))
    }

    /// A number of `/metrics`, over all its labels; `None` where the server has no such name.
    pub async fn metric(&self, name: &str) -> Option<f64> {
        let page = self.client.get_text("/metrics").await.ok()?;
        let values = page.lines().filter_map(|line| {
            let rest = line.strip_prefix(name)?;
            let value = match rest.strip_prefix('{') {
                Some(labels) => labels.rsplit_once("} ")?.1,
                None => rest.strip_prefix(' ')?,
            };
            value.trim().parse::<f64>().ok()
        });
        values.reduce(|sum, value| sum + value)
    }

    /// Asks it to end and waits; how it ended, where that can be known.
    pub async fn stop(mut self) -> anyhow::Result<Option<std::process::ExitStatus>> {
        self.client.forget();
        let Some(mut child) = self.child.take() else { return Ok(None) };
        let pid = rustix::process::Pid::from_child(&child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
        let asked = Instant::now();
        loop {
            if let Some(status) = child.try_wait()? {
                return Ok(Some(status));
            }
            if asked.elapsed() > STOP_MAX {
                eprintln!("the server did not end within {} s: killed", STOP_MAX.as_secs());
                child.kill()?;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
