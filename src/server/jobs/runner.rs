//! Runs jobs: takes the next one, posts its body to its endpoint, and writes down how it went.
//!
//! ```text
//! take -> run, in a task of its own -> end       as many at once as configured
//! every flush_ms: what running jobs have said since becomes durable, in one commit
//! recall: who has a job that nobody wants any more hears so, see there
//! stop: what runs is broken off and waits again, with every token it had said
//! ```

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::{Request, StatusCode, header};
use http_body_util::{BodyExt, Limited};
use hyper::service::Service;
use hyper_util::service::TowerToHyperService;
use serde_json::{Value, json};
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;

use super::callback;
use super::door::{Door, Hearing, Live, Said};
use super::hand::JobHand;
use super::recall::recall;
use super::tap::{Drained, Tap, heard_by};
use crate::base::limits::JOB_ANSWER_BYTES_MAX;
use crate::inference::{Priority, TenantId};
use crate::jobs::{Ended, Happening, Job, Outcome, Run, Taken};
use crate::server::forms::in_form_of;
use crate::server::{ApiError, Caller, Gate, Untaken};
use crate::store::now_ms;

/// Longest sleep without a look: clocks may jump.
const LOOK_EVERY: Duration = Duration::from_secs(30);
/// Pause after the store could not be asked.
const TROUBLE_PAUSE: Duration = Duration::from_secs(5);
/// How long the end of running jobs may take.
const STOP_MAX: Duration = Duration::from_secs(10);

/// The tasks that run jobs.
pub struct JobRunner {
    door: Option<Door>,
    tasks: Vec<JoinHandle<()>>,
}

impl JobRunner {
    /// Runs the jobs of a gate, if it has any, once there is a router before it.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn start(gate: &Gate) -> JobRunner {
        let Some(door) = gate.jobs().cloned() else {
            return JobRunner { door: None, tasks: Vec::new() };
        };
        let mut tasks = vec![
            tokio::spawn(take(door.clone())),
            tokio::spawn(flush(door.clone())),
            tokio::spawn(callback::send(door.clone())),
        ];
        let forward = gate.forward().cloned();
        tasks.extend(forward.map(|forward| tokio::spawn(recall(door.clone(), forward))));
        JobRunner { door: Some(door), tasks }
    }

    /// Breaks off what runs, so that it waits again, and returns when that is on the disk.
    pub async fn stop(self) {
        let Some(door) = self.door else { return };
        let mut changes = door.changes();
        let over = async {
            door.stop().await;
            while !door.live().is_empty() {
                if changes.changed().await.is_err() {
                    break;
                }
            }
        };
        let _ = tokio::time::timeout(STOP_MAX, over).await;
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

/// Takes jobs as long as the service runs.
pub(super) async fn take(door: Door) {
    let mut stopping = door.stopping();
    let mut changes = door.changes();
    while !*stopping.borrow_and_update() {
        changes.mark_unchanged();
        let Some(entering) = door.enter().await else { return };
        let taken = door.ask(|jobs| jobs.take()).await;
        let pause = match taken {
            Ok(Taken::Run(run)) => {
                let caller = Caller { priority: Priority::Background, ..Caller::default() };
                start(&door, *run, caller);
                continue;
            }
            Ok(Taken::Changed) => {
                door.tell();
                continue;
            }
            Ok(Taken::Wait { until_ms: None }) => LOOK_EVERY,
            Ok(Taken::Wait { until_ms: Some(at) }) => {
                let ms = u64::try_from(at.saturating_sub(now_ms())).unwrap_or(0);
                Duration::from_millis(ms.max(1)).min(LOOK_EVERY)
            }
            Err(error) => {
                tracing::error!(error = error.message, "jobs cannot be taken");
                TROUBLE_PAUSE
            }
        };
        drop(entering);
        tokio::select! {
            _ = changes.changed() => {}
            _ = stopping.changed() => {}
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// Runs a job in a task of its own, in the class and the place of whoever waits for it.
pub(super) fn start(door: &Door, run: Run, caller: Caller) -> Hearing {
    let (say, said) = watch::channel(Said::default());
    let seed = u32::try_from(run.job.row.seed).unwrap_or(0);
    let live = Live {
        job: run.job.clone(),
        tap: Tap::new(seed, &run.pieces),
        cancelled: Arc::new(Notify::new()),
        said: said.clone(),
    };
    let run_idx = door.begin(live.clone());
    let hand = JobHand::new(door.clone(), run_idx, live.tap.clone());
    let work = post(door.dialects(), run, (caller, hand), say);
    tokio::spawn(attend(door.clone(), run_idx, live, work));
    said
}

/// A job's run from its start to its end on the disk.
async fn attend(
    door: Door,
    run_idx: u64,
    live: Live,
    work: impl Future<Output = Result<Ran, String>> + Send + 'static,
) {
    let mut stopping = door.stopping();
    let (limit, at_limit) = limit(&door, &live.job);
    // A panic of a dialect costs this attempt and nothing else.
    let mut work = tokio::spawn(heard_by(Some(live.tap.clone()), work));
    let (happening, outcome) = tokio::select! {
        done = &mut work => match done {
            Ok(outcome) => match judge(outcome) {
                (Happening::Answered, _) if live.tap.has_failed() => {
                    (Happening::Stumbled("the text broke off".to_owned()), None)
                }
                judged => judged,
            },
            Err(_) => (Happening::Stumbled("the request met a bug".to_owned()), None),
        },
        () = tokio::time::sleep(limit) => (at_limit, None),
        () = live.cancelled.notified() => (Happening::CancelAsked, None),
        _ = stopping.wait_for(|stops| *stops) => (Happening::Stopped, None),
    };
    work.abort();
    if happening == Happening::Answered {
        live.tap.end();
    }
    if let Err(error) = settle(&door, run_idx, &live.tap, happening, outcome).await {
        tracing::error!(job = live.job.row.id, error = error.message, "a job's end is not kept");
    }
    door.live().remove(&run_idx);
    door.tell();
}

/// The time between two tries to write down how a run ended.
const END_PAUSE: Duration = Duration::from_secs(1);

/// Writes down how a run ended, with its last tokens.
async fn settle(
    door: &Door,
    run_idx: u64,
    tap: &Tap,
    happening: Happening,
    outcome: Option<Outcome>,
) -> Result<(), ApiError> {
    let mut tail: Option<Drained> = None;
    loop {
        let flushing = door.flushing().lock().await;
        tail = tail.or_else(|| tap.drain());
        let end = (happening.clone(), outcome.clone());
        let ended = written_down(door, run_idx, &mut tail, end).await;
        drop(flushing);
        match ended {
            // A full disk, or a backup that takes long: the answer waits for it.
            Err(error) if error.status.is_server_error() && !*door.stopping().borrow() => {
                tracing::warn!(error = error.message, "a job's end waits for the disk");
                tokio::time::sleep(END_PAUSE).await;
            }
            ended => return ended,
        }
    }
}

/// Tries once to write down how a run ended. One that was taken back has nothing to say.
async fn written_down(
    door: &Door,
    run_idx: u64,
    tail: &mut Option<Drained>,
    (happening, outcome): (Happening, Option<Outcome>),
) -> Result<(), ApiError> {
    let Some(job) = current(door, run_idx, tail.as_mut()).await? else { return Ok(()) };
    let tail = tail.as_ref().filter(|drained| !drained.pieces.is_empty());
    let tail = tail.map(|drained| (drained.end, drained.pieces.clone()));
    door.ask(move |jobs| jobs.end(&job, Ended { happening, outcome, tail })).await
}

/// The job of a run as it stands, its text begun anew first where that came out otherwise; `None`
/// if it was taken back since.
async fn current(
    door: &Door,
    run_idx: u64,
    drained: Option<&mut Drained>,
) -> Result<Option<Job>, ApiError> {
    let job = door.live().get(&run_idx).map(|live| live.job.clone());
    let Some(drained) = drained.filter(|drained| drained.has_diverged) else { return Ok(job) };
    let Some(job) = job else { return Ok(None) };
    let anew = door.ask(move |jobs| jobs.restart(&job)).await?;
    if let Some(anew) = &anew
        && let Some(live) = door.live().get_mut(&run_idx)
    {
        live.job = anew.clone();
        drained.has_diverged = false;
    }
    Ok(anew)
}

/// How long a job may run, and what it means when it has.
fn limit(door: &Door, job: &Job) -> (Duration, Happening) {
    let run_max = Duration::from_secs(door.jobs().config().run_max_s);
    let left = job
        .row
        .deadline_ms
        .map(|at| Duration::from_millis(u64::try_from(at.saturating_sub(now_ms())).unwrap_or(0)));
    match left {
        Some(left) if left < run_max => (left, Happening::DeadlinePassed),
        _ => (run_max, Happening::TimedOut),
    }
}

/// What was answered, and where that is none: nobody took the job, or somebody still has it.
type Ran = (Outcome, Option<Untaken>);

/// Posts a job's body to its endpoint.
async fn post(
    dialects: Option<Router>,
    run: Run,
    (caller, hand): (Caller, JobHand),
    say: watch::Sender<Said>,
) -> Result<Ran, String> {
    let Some(dialects) = dialects else { return Err("nobody answers yet".to_owned()) };
    let row = &run.job.row;
    let body = as_asked(&run.body).map_err(|error| error.to_string())?;
    let tenant = TenantId(row.tenant as u64);
    let caller = Caller { tenant, request_id: row.id.clone(), ..caller };
    let request = Request::post(row.endpoint.as_str())
        .header(header::CONTENT_TYPE, "application/json")
        .extension(caller)
        .extension(hand)
        .body(Body::from(body.to_string()))
        .map_err(|error| error.to_string())?;
    let answer = TowerToHyperService::new(dialects).call(request).await;
    let mut untaken = None;
    let (parts, body) = match answer.inspect(|answer| untaken = Untaken::of(answer)) {
        Ok(answer) => in_form_of(Some(&row.endpoint), &row.id, answer).into_parts(),
        Err(never) => match never {},
    };
    let head = (parts.status, parts.headers.clone());
    say.send_modify(|said| said.head = Some(head));
    let body = collected(body, &say).await;
    let body = body.map_err(|error| format!("the answer cannot be kept: {error}"))?;
    let media_type = parts.headers.get(header::CONTENT_TYPE);
    let media_type = media_type.and_then(|kind| kind.to_str().ok()).unwrap_or("text/plain");
    let (status, media_type) = (i64::from(parts.status.as_u16()), media_type.to_owned());
    Ok((Outcome { status, media_type, body }, untaken))
}

/// A job's body as its endpoint gets it.
pub(super) fn as_asked(body: &[u8]) -> serde_json::Result<Value> {
    let mut body: Value = serde_json::from_slice(body)?;
    if let Some(fields) = body.as_object_mut() {
        // Some dialects stream unless told otherwise.
        fields.entry("stream").or_insert(json!(false));
        fields.remove("on_disconnect");
    }
    Ok(body)
}

/// A whole answer, told as it comes.
async fn collected(
    body: Body,
    say: &watch::Sender<Said>,
) -> Result<Vec<u8>, Box<dyn std::error::Error + Send + Sync>> {
    let mut body = Limited::new(body, JOB_ANSWER_BYTES_MAX);
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame?.into_data() else { continue };
        say.send_modify(|said| said.frames.push(data));
    }
    Ok(say.borrow().frames.concat())
}

/// What an answer means for its job.
fn judge(ran: Result<Ran, String>) -> (Happening, Option<Outcome>) {
    let (outcome, untaken) = match ran {
        Ok(ran) => ran,
        Err(why) => return (Happening::Stumbled(why), None),
    };
    let status = u16::try_from(outcome.status).ok().and_then(|n| StatusCode::from_u16(n).ok());
    let status = status.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let why = format!("the answer was {status}");
    let passes = [StatusCode::REQUEST_TIMEOUT, StatusCode::TOO_MANY_REQUESTS];
    let happening = match () {
        () if status.is_success() => Happening::Answered,
        () if status.is_client_error() && !passes.contains(&status) => Happening::Refused(why),
        () if status == StatusCode::NOT_IMPLEMENTED => Happening::Refused(why),
        () => match untaken {
            Some(Untaken::ByAnybody) => Happening::Untaken(format!("no backend took it: {why}")),
            Some(Untaken::Held) => {
                Happening::Untaken(format!("who has it is not done with it: {why}"))
            }
            None => Happening::Stumbled(why),
        },
    };
    (happening, Some(outcome))
}

/// Makes what running jobs have said durable, again and again.
async fn flush(door: Door) {
    let period = Duration::from_millis(door.jobs().config().flush_ms);
    let mut every = tokio::time::interval(period);
    every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    // The first comes at once.
    every.tick().await;
    loop {
        every.tick().await;
        let flushing = door.flushing().lock().await;
        let has_any = flush_once(&door).await;
        drop(flushing);
        if has_any {
            door.tell();
        }
    }
}

/// Makes what running jobs have said durable; whether they had said anything.
async fn flush_once(door: &Door) -> bool {
    let taps: Vec<(u64, Tap)> =
        door.live().iter().map(|(run_idx, live)| (*run_idx, live.tap.clone())).collect();
    let mut has_any = false;
    let mut rows = Vec::new();
    for (run_idx, tap) in taps {
        let Some(mut drained) = tap.drain() else { continue };
        match current(door, run_idx, Some(&mut drained)).await {
            Ok(Some(job)) => {
                has_any = true;
                if !drained.pieces.is_empty() {
                    rows.push((job, tap, drained));
                }
            }
            // It was taken back meanwhile.
            Ok(None) => {}
            Err(_) => tap.put_back(drained),
        }
    }
    if rows.is_empty() {
        return has_any;
    }
    let written =
        rows.iter().map(|(job, _, drained)| (job.clone(), drained.end, drained.pieces.clone()));
    let written = written.collect();
    match door.ask(move |jobs| jobs.append(written)).await {
        Ok(put) => {
            let lost = rows.iter().zip(put).filter(|(_, is_put)| !is_put);
            // A gap would be told as if it were the text.
            lost.for_each(|((_, tap, _), _)| tap.begin_anew());
        }
        Err(error) => {
            tracing::error!(error = error.message, "what jobs have written is not kept yet");
            rows.into_iter().for_each(|(_, tap, drained)| tap.put_back(drained));
        }
    }
    has_any
}
