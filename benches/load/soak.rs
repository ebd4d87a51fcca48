//! A soak: anything, at random, for as long as it is told, with clients that leave when they like.
//! At the end nothing may be left over: no sequence, no page but cached ones, no memory.
//!
//! ```text
//! reference   each twin is asked while nothing else runs; its text is kept
//! soak        workers draw requests; one in four leaves before the answer, in it, or within its
//!             own request; some read slowly; some open a new connection for each request
//! end         wait until idle; look at metrics, slots and memory; ask the twins again; stop
//! ```

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use hyper::body::Bytes;
use serde_json::Value;
use tokio::io::AsyncWriteExt;

use super::host::{Host, ServerOptions};
use super::prompt::Dice;
use super::report::median;
use super::soak_kinds::{Check, N_CTX, Shot, draw, texts, twin};
use super::wire::{Answer, Client};

/// Clients at once.
const N_WORKER: usize = 14;
/// Requests whose answers are known.
const N_TWIN: usize = 12;
/// How long it may take until nothing runs.
const IDLE_MAX: Duration = Duration::from_secs(120);
/// What is kept of complaints.
const N_COMPLAINT_MAX: usize = 50;
/// Memory at the end over memory at the beginning that still counts as flat, and bytes beyond it.
const GROWTH_MAX: f64 = 1.03;
const GROWTH_BYTES: f64 = 4e6;

/// Our server as a soak wants it: embeddings, its own model unless another was named.
pub fn server_options(options: ServerOptions) -> ServerOptions {
    let mut extra: Vec<String> = vec!["--embedding".into(), "--log-level".into(), "warn".into()];
    extra.extend(options.extra.into_iter().filter(|option| option != "--draft-max"));
    // Guesses are part of what is soaked; the number behind the option goes with it.
    extra.retain(|option| option != "0");
    ServerOptions { n_parallel: 4, n_ctx: 4 * N_CTX, extra, ..options }
}

/// When a client leaves.
#[derive(Clone, Copy, Debug)]
enum Leave {
    Never,
    /// So long after asking, if no answer began.
    Before(Duration),
    /// After so many frames or chunks.
    Amid(usize),
    /// After a part of its own request, in hundredths.
    Half(usize),
}

/// What came of the requests so far.
#[derive(Debug, Default)]
struct Book {
    /// By kind: whole answers, those left, refused for want of room.
    counts: BTreeMap<&'static str, [u64; 3]>,
    statuses: BTreeMap<u16, u64>,
    n_complaint: usize,
    complaints: Vec<String>,
    /// Seconds, and bytes of memory that is the server's own.
    resident: Vec<(f64, u64)>,
}

/// What all workers see.
struct Soak {
    url: String,
    book: Mutex<Book>,
    /// The twins' texts.
    known: Vec<Vec<(String, bool)>>,
    started: Instant,
    until: Instant,
}

impl Soak {
    fn book(&self) -> std::sync::MutexGuard<'_, Book> {
        self.book.lock().expect("no one panics with it")
    }

    fn complain(&self, what: String) {
        let at_s = self.started.elapsed().as_secs();
        let mut book = self.book();
        book.n_complaint += 1;
        if book.complaints.len() < N_COMPLAINT_MAX {
            eprintln!("{at_s} s: {what}");
            book.complaints.push(what);
        }
    }

    fn count(&self, name: &'static str, column: usize) {
        self.book().counts.entry(name).or_default()[column] += 1;
    }

    async fn worker(self: Arc<Self>, mut dice: Dice) -> anyhow::Result<()> {
        let client = Client::new(&self.url, None)?;
        while Instant::now() < self.until {
            let shot = draw(&mut dice, N_TWIN);
            if dice.chance(30) {
                client.forget();
            }
            let leave = match dice.within(0, 100) {
                0..8 => Leave::Before(Duration::from_micros(dice.within(0, 60_000) as u64)),
                8..22 => Leave::Amid(dice.within(0, 20)),
                22..25 => Leave::Half(dice.within(0, 100)),
                _ => Leave::Never,
            };
            let dawdles = dice.chance(5);
            if let Err(error) = self.shoot(&client, &shot, leave, dawdles).await {
                let body = String::from_utf8_lossy(&shot.body);
                let body: String = body.chars().take(300).collect();
                self.complain(format!("{} {leave:?}: {error:#}; asked: {body}", shot.name));
            }
            // Bursts and lulls.
            let pause_ms = if dice.chance(2) { dice.within(0, 4000) } else { dice.within(0, 60) };
            tokio::time::sleep(Duration::from_millis(pause_ms as u64)).await;
        }
        Ok(())
    }

    async fn shoot(
        &self,
        client: &Client,
        shot: &Shot,
        leave: Leave,
        dawdles: bool,
    ) -> anyhow::Result<()> {
        if let Leave::Half(hundredths) = leave {
            half_request(client, shot, hundredths).await?;
            self.count(shot.name, 1);
            return Ok(());
        }
        let sent = client.send_bytes(shot.method, shot.path, Bytes::from(shot.body.clone()));
        let mut answer = match leave {
            Leave::Before(after) => match tokio::time::timeout(after, sent).await {
                Ok(answer) => answer?,
                Err(_) => {
                    self.count(shot.name, 1);
                    return Ok(());
                }
            },
            _ => sent.await?,
        };
        let status = answer.status;
        *self.book().statuses.entry(status).or_default() += 1;
        if matches!(status, 503 | 429) && answer.has_retry_after {
            self.count(shot.name, 2);
            answer.bytes().await?;
            return Ok(());
        }
        if !shot.expects.contains(&status) {
            let body = answer.bytes().await?;
            bail!("{status} {}", String::from_utf8_lossy(&body));
        }
        let n_read_max = if let Leave::Amid(n) = leave { n } else { usize::MAX };
        match read(&mut answer, shot, n_read_max, dawdles).await? {
            None => self.count(shot.name, 1),
            Some(answers) => {
                self.count(shot.name, 0);
                if status == 200 {
                    self.check(shot, &answers)?;
                }
            }
        }
        Ok(())
    }

    fn check(&self, shot: &Shot, answers: &[Value]) -> anyhow::Result<()> {
        match shot.check {
            Check::Status => {}
            Check::Json => {
                for (text, _) in texts(answers).iter().filter(|(_, was_cut)| !was_cut) {
                    // A time limit may have cut it, too.
                    let is_timed = shot.body.windows(3).any(|three| three == b"_ms");
                    if !is_timed && serde_json::from_str::<Value>(text).is_err() {
                        bail!("not JSON: {text:?}");
                    }
                }
            }
            Check::Twin(idx) => {
                let got = texts(answers);
                if self.known.get(idx).is_some_and(|known| *known != got) {
                    bail!("twin {idx} says {got:?} instead of {:?}", self.known[idx]);
                }
            }
        }
        Ok(())
    }
}

/// Sends a part of a request and leaves.
async fn half_request(client: &Client, shot: &Shot, hundredths: usize) -> anyhow::Result<()> {
    let head = format!(
        "{} {} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\n\r\n",
        shot.method,
        shot.path,
        shot.body.len()
    );
    let bytes = [head.as_bytes(), &shot.body].concat();
    let mut socket = client.socket().await?;
    socket.write_all(&bytes[..bytes.len() * hundredths / 100]).await?;
    Ok(())
}

/// The JSON values of an answer, one for each frame of a stream; `None` if the client left.
async fn read(
    answer: &mut Answer<'_>,
    shot: &Shot,
    n_read_max: usize,
    dawdles: bool,
) -> anyhow::Result<Option<Vec<Value>>> {
    let mut values = Vec::new();
    let mut body = Vec::new();
    let is_stream = shot.streams && answer.status == 200;
    let mut is_done = shot.path != "/v1/completions" && shot.path != "/v1/chat/completions";
    for n_read in 0.. {
        if n_read >= n_read_max {
            return Ok(None);
        }
        if dawdles {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        if is_stream {
            match answer.event().await? {
                None if is_done => return Ok(Some(values)),
                None => bail!("the stream ended without [DONE]"),
                Some(event) if event == "[DONE]" => is_done = true,
                Some(event) => values.push(serde_json::from_str(&event).context("a frame")?),
            }
            if let Some(error) = values.last().and_then(|value: &Value| value.get("error")) {
                bail!("within the stream: {error}");
            }
        } else {
            match answer.chunk().await? {
                Some(chunk) => body.extend_from_slice(&chunk),
                None => break,
            }
        }
    }
    // Metrics and the page are no JSON, and need not be.
    values.extend(serde_json::from_slice::<Value>(&body).ok());
    Ok(Some(values))
}

/// Runs a soak; whether nothing was left over and nothing went wrong.
pub async fn run(
    options: &ServerOptions,
    log: Option<&Path>,
    seconds: u64,
    seed: u64,
) -> anyhow::Result<bool> {
    let mut host = Host::start(options, log).await?;
    println!("soak of {seconds} s, seed {seed}: {}", options.program.display());
    println!("options: {}", options.arguments(0).join(" "));
    let known = ask_twins(&host.client).await?;
    let url = host.client.url();
    let started = Instant::now();
    let until = started + Duration::from_secs(seconds);
    let soak = Arc::new(Soak { url, book: Mutex::default(), known, started, until });
    let workers: Vec<_> = (0..N_WORKER)
        .map(|idx| tokio::spawn(Arc::clone(&soak).worker(Dice::new(seed, idx as u64))))
        .collect();
    watch(&soak, &mut host, seconds).await?;
    for worker in workers {
        worker.await??;
    }
    let mut faults = until_idle(&host).await;
    let again = ask_twins(&host.client).await?;
    if again != soak.known {
        faults.push("the twins' answers are not those of the beginning".to_owned());
    }
    faults.extend(until_idle(&host).await);
    print_summary(&soak);
    faults.extend(growth(&soak.book().resident, seconds as f64));
    print_leftovers(&host).await;
    faults.extend((!host.is_alive()).then(|| "the server ended".to_owned()));
    match host.stop().await {
        Ok(Some(status)) if status.success() => println!("stopped: {status}"),
        other => faults.push(format!("it did not stop well: {other:?}")),
    }
    let n_complaint = soak.book().n_complaint;
    if n_complaint > 0 {
        faults.push(format!("{n_complaint} answers were wrong"));
    }
    faults.iter().for_each(|fault| println!("FAULT: {fault}"));
    println!("{}", if faults.is_empty() { "PASS" } else { "FAIL" });
    Ok(faults.is_empty())
}

/// Looks at memory and speaks of progress until the time is over.
async fn watch(soak: &Soak, host: &mut Host, seconds: u64) -> anyhow::Result<()> {
    let every = Duration::from_secs_f64((seconds as f64 / 400.0).clamp(0.25, 10.0));
    let mut next_word = started_after(soak, seconds, 1);
    let mut n_word = 1;
    while Instant::now() < soak.until {
        tokio::time::sleep(every).await;
        if !host.is_alive() {
            bail!("the server ended after {} s", soak.started.elapsed().as_secs());
        }
        let resident = host.resident_bytes().map_or(0, |(own, _)| own);
        let at_s = soak.started.elapsed().as_secs_f64();
        soak.book().resident.push((at_s, resident));
        if Instant::now() >= next_word {
            let book = soak.book();
            let n: u64 = book.counts.values().flatten().sum();
            let mb = resident as f64 / 1e6;
            println!("{at_s:.0} s: {n} requests, {mb:.1} MB, {} wrong", book.n_complaint);
            n_word += 1;
            next_word = started_after(soak, seconds, n_word);
        }
    }
    Ok(())
}

/// When twentieth `n` of the soak is over.
fn started_after(soak: &Soak, seconds: u64, n: u64) -> Instant {
    soak.started + Duration::from_secs_f64(seconds as f64 * n as f64 / 20.0)
}

/// What the twins say when they are alone.
async fn ask_twins(client: &Client) -> anyhow::Result<Vec<Vec<(String, bool)>>> {
    let mut known = Vec::new();
    for idx in 0..N_TWIN {
        let shot = twin(idx);
        let body = Bytes::from(shot.body.clone());
        let mut answer = client.send_bytes(shot.method, shot.path, body).await?;
        let values = read(&mut answer, &shot, usize::MAX, false).await?;
        known.push(texts(&values.unwrap_or_default()));
    }
    Ok(known)
}

/// Waits until nothing runs; says what still does.
async fn until_idle(host: &Host) -> Vec<String> {
    let started = Instant::now();
    loop {
        let mut faults = Vec::new();
        // The look at the metrics is a request, too.
        let most = [
            ("jetforge_sequences_running", 0.0),
            ("jetforge_sequences_waiting", 0.0),
            ("jetforge_kv_pages_used", 0.0),
            ("jetforge_http_requests_open", 1.0),
        ];
        for (name, most) in most {
            match host.metric(name).await {
                Some(value) if value <= most => {}
                Some(value) => faults.push(format!("{name} is {value}")),
                None => faults.push(format!("{name} cannot be read")),
            }
        }
        match host.client.get_json("/slots").await {
            Ok(slots) => {
                let busy = slots.as_array().into_iter().flatten();
                let n = busy.filter(|slot| slot["is_processing"] != false).count();
                faults.extend((n > 0).then(|| format!("{n} slots are busy")));
            }
            Err(error) => faults.push(format!("{error:#}")),
        }
        if faults.is_empty() || started.elapsed() > IDLE_MAX {
            return faults;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Memory at the beginning, behind a tenth of the time to get warm, and at the end.
fn growth(resident: &[(f64, u64)], seconds: f64) -> Option<String> {
    let tenth = |n: f64| {
        let within = |&&(at_s, _): &&(f64, u64)| (n..n + 1.0).contains(&(at_s * 10.0 / seconds));
        median(resident.iter().filter(within).map(|&(_, bytes)| bytes as f64).collect())
    };
    let tenths: Vec<f64> = (0..10).map(|n| tenth(f64::from(n))).collect();
    let mb: Vec<String> = tenths.iter().map(|bytes| format!("{:.1}", bytes / 1e6)).collect();
    println!("MB of its own, median of each tenth: {}", mb.join(" "));
    let (first, last) = (tenths[1], tenths[9]);
    (last > first * GROWTH_MAX + GROWTH_BYTES)
        .then(|| format!("memory grew from {:.1} to {:.1} MB", first / 1e6, last / 1e6))
}

fn print_summary(soak: &Soak) {
    let book = soak.book();
    println!("| kind | whole | left | refused for want of room |\n|---|---|---|---|");
    for (name, [whole, left, refused]) in &book.counts {
        println!("| {name} | {whole} | {left} | {refused} |");
    }
    let statuses: Vec<String> = book.statuses.iter().map(|(s, n)| format!("{n} x {s}")).collect();
    println!("statuses: {}", statuses.join(", "));
}

async fn print_leftovers(host: &Host) {
    let names = [
        "jetforge_sequences_running",
        "jetforge_sequences_waiting",
        "jetforge_kv_pages",
        "jetforge_kv_pages_used",
        "jetforge_kv_pages_cached",
        "jetforge_requests_total",
        "jetforge_requests_canceled_total",
        "jetforge_requests_failed_total",
        "jetforge_sequences_preempted_total",
        "jetforge_tokens_generated_total",
        "jetforge_tokens_accepted_total",
        "jetforge_tokens_cached_total",
    ];
    for name in names {
        println!("{name} {}", host.metric(name).await.unwrap_or(f64::NAN));
    }
}
