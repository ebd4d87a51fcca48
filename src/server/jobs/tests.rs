//! Runs of jobs over a real store and a dialect of one answer, told when it may come.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::Router;
use axum::routing::post;
use tokio::sync::Semaphore;

use super::{Door, recall, runner};
use crate::jobs::{AlwaysGo, Asked, Job, Jobs, JobsConfig, State, Submitted};
use crate::server::{Admitted, Answering, Forward, Here, Unwanted, Withdrawing, Withdrawn};
use crate::store::{Peer, Store};

/// Doors to jobs whose answers are numbers, each of them given when it is let go.
struct House {
    _dir: tempfile::TempDir,
    jobs: Jobs,
    door: Door,
    /// Requests that have come.
    n_asked: Arc<AtomicUsize>,
    /// Answers that may be given.
    may_answer: Arc<Semaphore>,
}

fn house() -> House {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap().store;
    let (jobs, _) = Jobs::open(store, JobsConfig::default(), Box::new(AlwaysGo)).unwrap();
    let door = Door::new(jobs.clone());
    let n_asked = Arc::new(AtomicUsize::new(0));
    let may_answer = Arc::new(Semaphore::new(0));
    let (asked, may) = (Arc::clone(&n_asked), Arc::clone(&may_answer));
    let answer = post(move || async move {
        let n = asked.fetch_add(1, Ordering::SeqCst) + 1;
        // The first never comes to its end.
        if n == 1 {
            std::future::pending::<()>().await;
        }
        may.acquire().await.unwrap().forget();
        n.to_string()
    });
    door.answer_with(Router::new().route("/completion", answer));
    House { _dir: dir, jobs, door, n_asked, may_answer }
}

impl House {
    fn submit(&self) -> Job {
        let asked = Asked {
            endpoint: "/completion".to_owned(),
            body: b"{}".to_vec(),
            n_attempt_max: 3,
            ..Asked::default()
        };
        match self.jobs.submit(asked).unwrap() {
            Submitted::New(job) => job,
            Submitted::Known(job) => panic!("{job:?}"),
        }
    }

    async fn until(&self, what: &str, is_so: impl Fn(&House) -> bool) {
        let look = async {
            while !is_so(self) {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), look).await.expect(what);
    }

    fn n_asked(&self) -> usize {
        self.n_asked.load(Ordering::SeqCst)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_runs_of_a_job_are_told_apart() {
    let house = house();
    let taking = tokio::spawn(runner::take(house.door.clone()));
    let job = house.submit();
    house.door.tell();
    house.until("the first run is asked", |house| house.n_asked() == 1).await;
    // Taken back and asked for again before its first run has heard of it.
    let cancelled = house.jobs.cancel(0, &job.row.id).unwrap();
    house.jobs.retry(0, &job.row.id).unwrap();
    house.door.tell();
    house.until("the second is asked", |house| house.n_asked() == 2).await;
    assert_eq!(house.door.live().len(), 2);
    house.door.break_off(&cancelled).await;
    house.until("the first has ended", |house| house.door.live().len() == 1).await;
    assert_eq!(house.jobs.get(0, &job.row.id).unwrap().state, State::Running);
    house.may_answer.add_permits(1);
    house.until("the second has ended", |house| house.door.live().is_empty()).await;
    let job = house.jobs.get(0, &job.row.id).unwrap();
    assert_eq!((job.state, job.row.ledger.n_attempt), (State::Done, 0));
    assert_eq!(house.jobs.outcome(&job).unwrap().unwrap().body, b"2");
    taking.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_waits_for_what_is_about_to_run() {
    let house = house();
    let entering = house.door.enter().await.unwrap();
    let door = house.door.clone();
    let stopping = tokio::spawn(async move { door.stop().await });
    house.until("it is told to stop", |house| *house.door.stopping().borrow()).await;
    tokio::task::yield_now().await;
    assert!(!stopping.is_finished(), "a job is on its way");
    drop(entering);
    stopping.await.unwrap();
    assert!(house.door.enter().await.is_none(), "and none comes after it");
    let job = house.submit();
    runner::take(house.door.clone()).await;
    assert_eq!(house.jobs.get(0, &job.row.id).unwrap().state, State::Queued);
}

/// Machines that do what they are called.
struct Machines;

impl Forward for Machines {
    fn answer(self: Arc<Self>, _: Admitted, _: Here) -> Answering {
        Box::pin(std::future::pending())
    }

    fn reaches(&self, host: &str) -> bool {
        host != "away"
    }

    fn withdraw(self: Arc<Self>, unwanted: Unwanted) -> Withdrawing {
        let told = match unwanted.holder.host.as_str() {
            "deaf" => Withdrawn::Untold("it does not listen".to_owned()),
            "fast" => Withdrawn::Answered,
            _ => Withdrawn::Over,
        };
        Box::pin(async move { told })
    }

    fn join(self: Arc<Self>, _: Peer) -> bool {
        false
    }

    fn meet(self: Arc<Self>, _: Vec<Peer>) {}

    fn leave(&self, _: &str) {}
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_cannot_hear_that_a_job_is_not_wanted_keeps_nobody_else_from_it() {
    let house = house();
    let hosts = ["away", "deaf", "fast", "nano", "deaf"];
    let jobs = hosts.map(|host| {
        let job = house.submit();
        let run = house.jobs.begin(&job).unwrap().unwrap();
        house.jobs.give(&run.job, Some(host)).unwrap().unwrap();
        house.jobs.cancel(0, &job.row.id).unwrap()
    });
    let recalling = tokio::spawn(recall::recall(house.door.clone(), Arc::new(Machines)));
    house.until("others have heard", |house| house.jobs.unwanted().unwrap().len() == 3).await;
    let left = house.jobs.unwanted().unwrap().into_iter().map(|row| row.holder);
    let left: Vec<String> = left.map(|text| text.split(' ').next().unwrap().to_owned()).collect();
    assert_eq!(left, ["away", "deaf", "deaf"]);
    for (host, job) in hosts.into_iter().zip(jobs) {
        let state = house.jobs.get(0, &job.row.id).unwrap().state;
        let expected = if host == "fast" { State::Queued } else { State::Cancelled };
        assert_eq!(state, expected, "{host}");
    }
    recalling.abort();
}
