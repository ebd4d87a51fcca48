//! Jobs over a real store, without anybody who answers.

use std::sync::atomic::{AtomicBool, Ordering};

use super::*;
use crate::jobs::AlwaysGo;

fn open(dir: &std::path::Path, config: JobsConfig) -> (Jobs, usize) {
    let store = Store::open(dir).unwrap().store;
    Jobs::open(store, config, Box::new(AlwaysGo)).unwrap()
}

/// Jobs of which none starts by itself.
fn hot() -> (tempfile::TempDir, Jobs) {
    struct Hot;
    impl Pace for Hot {
        fn verdict(&self, _: i64) -> Verdict {
            Verdict::Wait { reason: "the board is too hot".into(), until_ms: None }
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap().store;
    let (jobs, _) = Jobs::open(store, JobsConfig::default(), Box::new(Hot)).unwrap();
    (dir, jobs)
}

fn asked(body: &str) -> Asked {
    Asked {
        endpoint: "/v1/completions".to_owned(),
        body: body.as_bytes().to_vec(),
        n_attempt_max: 3,
        ..Asked::default()
    }
}

fn new(jobs: &Jobs, asked: Asked) -> Job {
    match jobs.submit(asked).unwrap() {
        Submitted::New(job) => job,
        Submitted::Known(job) => panic!("{job:?}"),
    }
}

fn run(jobs: &Jobs) -> Option<Run> {
    match jobs.take().unwrap() {
        Taken::Run(run) => Some(*run),
        Taken::Changed => run(jobs),
        Taken::Wait { .. } => None,
    }
}

fn answered(text: &str) -> Ended {
    let outcome = Outcome { status: 200, media_type: "application/json".into(), body: text.into() };
    Ended { happening: Happening::Answered, outcome: Some(outcome), tail: None }
}

fn piece(token: u32) -> Piece {
    Piece { prompt_idx: 0, answer_idx: 0, text: format!("t{token}"), tokens: vec![token] }
}

fn append(jobs: &Jobs, job: &Job, end: i64, tokens: &[u32]) -> Vec<bool> {
    let pieces = tokens.iter().map(|token| piece(*token)).collect();
    jobs.append(vec![(job.clone(), end, pieces)]).unwrap()
}

#[test]
fn the_same_name_and_body_is_the_same_job_also_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let named = |body: &str| Asked { request_id: Some("r1".into()), ..asked(body) };
    let (jobs, _) = open(dir.path(), JobsConfig::default());
    let job = new(&jobs, named(r#"{"prompt": "a", "n": 1}"#));
    let first = run(&jobs).unwrap();
    jobs.end(&first.job, answered("the answer")).unwrap();
    drop(jobs);
    let (jobs, _) = open(dir.path(), JobsConfig::default());
    let again = jobs.submit(named(r#"{"n":1,"prompt":"a"}"#)).unwrap();
    let Submitted::Known(known) = again else { panic!("{again:?}") };
    assert_eq!((known.row.id.clone(), known.state), (job.row.id.clone(), State::Done));
    assert_eq!(jobs.outcome(&known).unwrap().unwrap().body, b"the answer");
    let other = jobs.submit(named(r#"{"prompt": "b", "n": 1}"#)).unwrap_err();
    assert!(matches!(other, JobsError::Conflict { id, .. } if id == job.row.id));
    let theirs = jobs.submit(Asked { tenant: 7, ..named(r#"{"prompt": "b"}"#) }).unwrap();
    assert!(matches!(theirs, Submitted::New(_)), "names belong to a tenant");
    assert!(matches!(jobs.get(7, &job.row.id), Err(JobsError::Unknown)), "and so do jobs");
    assert_eq!(jobs.list(7, None, None, 10).unwrap().len(), 1);
}

#[test]
fn what_ran_when_the_program_went_goes_on_and_in_the_end_is_set_aside() {
    let dir = tempfile::tempdir().unwrap();
    let (jobs, _) = open(dir.path(), JobsConfig::default());
    let job = new(&jobs, asked("{}"));
    let first = run(&jobs).unwrap();
    assert_eq!((first.pieces.len(), first.job.row.ledger.way.as_str()), (0, "fresh"));
    assert_eq!(append(&jobs, &first.job, 2, &[5, 6]), [true]);
    drop(jobs);
    let mut ways = Vec::new();
    for _ in 0..3 {
        let (jobs, n_interrupted) = open(dir.path(), JobsConfig::default());
        assert_eq!(n_interrupted, 1);
        let Some(run) = run(&jobs) else { break };
        assert_eq!(run.pieces, [piece(5), piece(6)]);
        ways.push((run.job.row.ledger.way.clone(), run.job.row.ledger.n_broken));
        drop(jobs);
    }
    assert_eq!(ways, [("resumed".to_owned(), 1), ("resumed".to_owned(), 2)]);
    let (jobs, n_interrupted) = open(dir.path(), JobsConfig::default());
    assert_eq!(n_interrupted, 0);
    let aside = jobs.get(0, &job.row.id).unwrap();
    assert_eq!(aside.state, State::SetAside);
    assert_eq!(jobs.counts().unwrap().0["set_aside"].0, 1);
    assert_eq!(jobs.retry(0, &job.row.id).unwrap().state, State::Queued);
    let run = run(&jobs).unwrap();
    let anew = jobs.restart(&run.job).unwrap().unwrap();
    assert_eq!((anew.row.ledger.epoch, anew.row.n_token), (2, 0));
    assert_eq!(append(&jobs, &anew, 1, &[9]), [true]);
    assert_eq!(jobs.pieces(&anew, 1, 0).unwrap(), [], "the other text is gone");
    assert_eq!(jobs.pieces(&anew, 2, 0).unwrap(), [(1, piece(9))]);
    jobs.end(&anew, Ended { tail: Some((2, vec![piece(10)])), ..answered("x") }).unwrap();
    assert_eq!(jobs.pieces(&anew, 2, 1).unwrap(), [(2, piece(10))]);
}

#[test]
fn a_job_that_was_taken_back_while_it_ran_stays_so() {
    let dir = tempfile::tempdir().unwrap();
    let (jobs, _) = open(dir.path(), JobsConfig::default());
    let job = new(&jobs, asked("{}"));
    let first = run(&jobs).unwrap();
    assert_eq!(jobs.cancel(0, &job.row.id).unwrap().state, State::Cancelled);
    jobs.end(&first.job, answered("too late")).unwrap();
    let job = jobs.get(0, &job.row.id).unwrap();
    assert_eq!((job.state, jobs.outcome(&job).unwrap()), (State::Cancelled, None));
    let twice = jobs.cancel(0, &job.row.id).unwrap_err();
    assert!(matches!(twice, JobsError::Illegal { state: State::Cancelled }));
}

#[test]
fn who_has_a_job_in_vain_is_known_until_they_have_heard_it() {
    let dir = tempfile::tempdir().unwrap();
    let (jobs, _) = open(dir.path(), JobsConfig::default());
    let given = |jobs: &Jobs| {
        let run = run(jobs).unwrap();
        let job = jobs.give(&run.job, Some("nano")).unwrap().unwrap();
        job.row.ledger.holder.clone().unwrap()
    };
    let in_vain = |jobs: &Jobs| -> Vec<String> {
        jobs.unwanted().unwrap().into_iter().map(|row| row.holder).collect()
    };
    let job = new(&jobs, asked("{}"));
    let first = given(&jobs);
    assert_eq!(in_vain(&jobs), [""; 0], "somebody wants it");
    jobs.cancel(0, &job.row.id).unwrap();
    drop(jobs);
    let (jobs, _) = open(dir.path(), JobsConfig::default());
    assert_eq!(in_vain(&jobs), std::slice::from_ref(&first), "also after a restart");
    // Asked for again, it is another one there, and the first is still not wanted.
    jobs.retry(0, &job.row.id).unwrap();
    let second = given(&jobs);
    assert_ne!(second, first);
    let of_before = jobs.unwanted().unwrap().remove(0);
    jobs.settle_unwanted(&of_before, true).unwrap();
    let running = jobs.get(0, &job.row.id).unwrap();
    assert_eq!((running.state, in_vain(&jobs)), (State::Running, vec![]), "of an earlier round");
    jobs.cancel(0, &job.row.id).unwrap();
    let row = jobs.unwanted().unwrap().remove(0);
    jobs.settle_unwanted(&row, true).unwrap();
    let again = jobs.get(0, &job.row.id).unwrap();
    assert_eq!((again.state, again.row.ledger.holder), (State::Queued, Some(second)));
    assert_eq!(in_vain(&jobs), [""; 0], "its answer is fetched");
    // Who answered, or failed, has no more to hear; and who was told comes to nothing.
    let fetching = run(&jobs).unwrap();
    jobs.end(&fetching.job, answered("x")).unwrap();
    assert_eq!((jobs.get(0, &job.row.id).unwrap().state, in_vain(&jobs)), (State::Done, vec![]));
    let other = new(&jobs, asked("{}"));
    given(&jobs);
    jobs.cancel(0, &other.row.id).unwrap();
    let row = jobs.unwanted().unwrap().remove(0);
    jobs.settle_unwanted(&row, false).unwrap();
    assert_eq!(jobs.get(0, &other.row.id).unwrap().state, State::Cancelled);
    assert_eq!(in_vain(&jobs), [""; 0]);
}

#[test]
fn who_had_a_job_that_somebody_else_gets_is_to_hear_so() {
    let dir = tempfile::tempdir().unwrap();
    let (jobs, _) = open(dir.path(), JobsConfig::default());
    let job = new(&jobs, asked("{}"));
    let first = run(&jobs).unwrap().job;
    let give = |job: &Job, host: Option<&str>| jobs.give(job, host).unwrap().unwrap();
    let holder = |job: &Job| job.row.ledger.holder.clone().unwrap();
    let in_vain =
        || -> Vec<String> { jobs.unwanted().unwrap().into_iter().map(|row| row.holder).collect() };
    // What did not arrive is nobody's.
    let back = give(&give(&first, Some("full")), None);
    assert_eq!(in_vain(), [""; 0]);
    let forgotten = give(&back, Some("forgotten"));
    let nano = give(&forgotten, Some("nano"));
    assert_eq!(in_vain(), [holder(&forgotten)], "its place is another one's");
    let stumbled = Ended {
        happening: Happening::Stumbled("the text broke off".into()),
        outcome: None,
        tail: None,
    };
    jobs.end(&nano, stumbled).unwrap();
    let again = jobs.get(0, &job.row.id).unwrap();
    assert_eq!((again.state, &again.row.ledger.holder), (State::Queued, &None));
    assert_eq!(in_vain(), [holder(&forgotten), holder(&nano)], "it may go on there");
}

#[test]
fn who_is_given_a_job_once_more_is_told_once_more() {
    let dir = tempfile::tempdir().unwrap();
    let (jobs, _) = open(dir.path(), JobsConfig::default());
    let job = new(&jobs, asked("{}"));
    let run = run(&jobs).unwrap();
    jobs.give(&run.job, Some("nano")).unwrap().unwrap();
    jobs.cancel(0, &job.row.id).unwrap();
    let first = jobs.unwanted().unwrap().remove(0);
    // It had answered, so it has the job again; but nobody waits for that.
    jobs.settle_unwanted(&first, true).unwrap();
    jobs.cancel(0, &job.row.id).unwrap();
    let second = jobs.unwanted().unwrap().remove(0);
    assert_eq!((&second.holder, second.revision > first.revision), (&first.holder, true));
    jobs.settle_unwanted(&first, false).unwrap();
    assert_eq!(jobs.unwanted().unwrap(), std::slice::from_ref(&second), "the word of before");
    jobs.settle_unwanted(&second, false).unwrap();
    assert_eq!(jobs.unwanted().unwrap(), []);
}

#[test]
fn a_job_of_nobody_is_that_of_who_names_it_once_there_are_keys() {
    let dir = tempfile::tempdir().unwrap();
    let (jobs, _) = open(dir.path(), JobsConfig::default());
    let named = |tenant, body: &str| Asked { tenant, request_id: Some("r".into()), ..asked(body) };
    let job = new(&jobs, named(0, r#"{"prompt": "a"}"#));
    let running = run(&jobs).unwrap();
    let other = new(&jobs, named(7, r#"{"prompt": "b"}"#));
    assert_ne!(other.row.id, job.row.id, "another body is another job");
    let Submitted::Known(known) = jobs.submit(named(8, r#"{"prompt": "a"}"#)).unwrap() else {
        panic!("it is written twice");
    };
    assert_eq!((known.row.id, known.row.tenant), (job.row.id.clone(), 8));
    jobs.end(&running.job, answered("x")).unwrap();
    assert_eq!(jobs.get(8, &job.row.id).unwrap().state, State::Done, "its run goes on");
    assert!(matches!(jobs.get(0, &job.row.id), Err(JobsError::Unknown)));
    let theirs = jobs.submit(named(9, r#"{"prompt": "a"}"#)).unwrap();
    assert!(matches!(theirs, Submitted::New(_)), "a job of somebody stays theirs");
}

#[test]
fn a_run_that_was_taken_back_ends_nothing_of_the_next_one() {
    let dir = tempfile::tempdir().unwrap();
    let (jobs, _) = open(dir.path(), JobsConfig::default());
    let job = new(&jobs, asked("{}"));
    let first = run(&jobs).unwrap();
    jobs.cancel(0, &job.row.id).unwrap();
    jobs.retry(0, &job.row.id).unwrap();
    let second = run(&jobs).unwrap();
    assert_eq!(append(&jobs, &first.job, 1, &[5]), [false], "nor tells its text as the next one's");
    assert_eq!(jobs.restart(&first.job).unwrap(), None);
    jobs.end(&first.job, answered("the first")).unwrap();
    assert_eq!(jobs.get(0, &job.row.id).unwrap().state, State::Running);
    // A change that was begun before the text began anew does not take that back.
    let anew = jobs.restart(&second.job).unwrap().unwrap();
    jobs.end(&second.job, answered("of the text before")).unwrap();
    assert_eq!(jobs.get(0, &job.row.id).unwrap().row.ledger.epoch, 2);
    jobs.end(&anew, answered("the second")).unwrap();
    let job = jobs.get(0, &job.row.id).unwrap();
    assert_eq!((job.state, job.row.ledger.epoch), (State::Done, 2));
    assert_eq!(jobs.outcome(&job).unwrap().unwrap().body, b"the second");
}

#[test]
fn texts_that_do_not_open_set_their_job_aside_and_the_queue_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let (jobs, _) = open(dir.path(), JobsConfig::default());
    let broken: Vec<Job> = (0..2).map(|_| new(&jobs, asked("{}"))).collect();
    for (i, run) in [run(&jobs).unwrap(), run(&jobs).unwrap()].into_iter().enumerate() {
        let row = PieceRow { epoch: 1, end: 1, pieces: b"no pieces".to_vec() };
        // The second are sealed as another job's.
        let id = if i == 0 { run.job.row.id.clone() } else { "job-x".to_owned() };
        let append = Append { n: run.job.row.n, id, revision: run.job.row.revision, row };
        assert_eq!(jobs.0.store.append_pieces(vec![append]).unwrap(), [true]);
        let stopped = Ended { happening: Happening::Stopped, outcome: None, tail: None };
        jobs.end(&run.job, stopped).unwrap();
    }
    let sound = new(&jobs, asked("{}"));
    assert_eq!(run(&jobs).unwrap().job.row.id, sound.row.id);
    for job in &broken {
        let aside = jobs.get(0, &job.row.id).unwrap();
        assert_eq!(aside.state, State::SetAside);
        assert!(aside.row.ledger.reason.is_some(), "{aside:?}");
    }
    jobs.retry(0, &broken[0].row.id).unwrap();
    let anew = run(&jobs).unwrap();
    assert_eq!((anew.pieces.len(), anew.job.row.ledger.way.as_str()), (0, "restarted"));
}

#[test]
fn a_break_beside_a_suspect_is_the_suspects() {
    let dir = tempfile::tempdir().unwrap();
    let (jobs, _) = open(dir.path(), JobsConfig::default());
    let suspect = new(&jobs, asked("{}"));
    run(&jobs).unwrap();
    drop(jobs);
    let (jobs, _) = open(dir.path(), JobsConfig { n_at_once: 1, ..JobsConfig::default() });
    let again = run(&jobs).unwrap().job.row;
    assert_eq!(again.id, suspect.row.id);
    assert_eq!(again.ledger.way, "restarted", "nothing of it was durable yet");
    let sound = new(&jobs, asked("{}"));
    assert_eq!(run(&jobs).unwrap().job.row.id, sound.row.id, "it waits for nobody");
    drop(jobs);
    let (jobs, n_interrupted) = open(dir.path(), JobsConfig::default());
    let n_broken = |job: &Job| jobs.get(0, &job.row.id).unwrap().row.ledger.n_broken;
    assert_eq!((n_interrupted, n_broken(&suspect), n_broken(&sound)), (2, 2, 0));
}

#[test]
fn a_job_that_is_asked_for_again_needs_room_and_has_no_answer_of_before() {
    let dir = tempfile::tempdir().unwrap();
    let config = JobsConfig { n_waiting_max: 1, bytes_max: 1000, ..JobsConfig::default() };
    let (jobs, _) = open(dir.path(), config);
    let long = format!("{{\"prompt\": \"{}\"}}", "x".repeat(200));
    let job = new(&jobs, Asked { n_attempt_max: 1, ..asked(&long) });
    let first = run(&jobs).unwrap();
    let happening = Happening::Stumbled("busy".into());
    jobs.end(&first.job, Ended { happening, ..answered("503") }).unwrap();
    let failed = jobs.get(0, &job.row.id).unwrap();
    assert_eq!(jobs.outcome(&failed).unwrap().unwrap().body, b"503");
    let other = new(&jobs, asked("{}"));
    let full = jobs.retry(0, &job.row.id).unwrap_err();
    assert!(matches!(full, JobsError::FullCount { n: 1 }), "{full}");
    jobs.cancel(0, &other.row.id).unwrap();
    jobs.retry(0, &job.row.id).unwrap();
    let cancelled = jobs.cancel(0, &job.row.id).unwrap();
    assert_eq!(jobs.outcome(&cancelled).unwrap(), None, "it was taken back since");
    drop(jobs);
    let config = JobsConfig { bytes_max: 400, ..JobsConfig::default() };
    let (jobs, _) = open(dir.path(), config);
    let full = jobs.retry(0, &job.row.id);
    assert!(matches!(full, Err(JobsError::TooLarge { .. } | JobsError::Unknown)), "{full:?}");
}

#[test]
fn a_callback_that_is_late_says_nothing_of_the_next_end() {
    let dir = tempfile::tempdir().unwrap();
    let (jobs, _) = open(dir.path(), JobsConfig::default());
    let callback = Some("http://pc:9/done".to_owned());
    let job = new(&jobs, Asked { callback, ..asked("{}") });
    jobs.cancel(0, &job.row.id).unwrap();
    let due = |host: &str| jobs.due_callbacks(Some(host), 10).unwrap();
    assert_eq!((due("pc:9").len(), due("pc").len(), due("other:9").len()), (1, 0, 0));
    let first = due("pc:9").remove(0);
    jobs.retry(0, &job.row.id).unwrap();
    assert_eq!(due("pc:9"), [], "it is not over");
    jobs.settle_callback(&first, None, true).unwrap();
    jobs.cancel(0, &job.row.id).unwrap();
    jobs.settle_callback(&first, None, true).unwrap();
    let second = due("pc:9").remove(0);
    assert_eq!(second.n_try, 0);
    jobs.settle_callback(&second, None, true).unwrap();
    let state = jobs.get(0, &job.row.id).unwrap().row.callback_state;
    assert_eq!((due("pc:9").len(), state.as_deref()), (0, Some("sent")));
}

#[test]
fn the_queue_is_bounded_by_count_and_by_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let config = JobsConfig { n_waiting_max: 2, bytes_max: 4000, ..JobsConfig::default() };
    let (jobs, _) = open(dir.path(), config);
    new(&jobs, asked("{}"));
    // Half of the bytes are for those that wait.
    let heavy = |n| jobs.submit(asked(&"x".repeat(n)));
    assert!(matches!(heavy(4000), Err(JobsError::TooLarge { n_bytes_max: 2000 })));
    assert!(matches!(heavy(1940), Err(JobsError::FullBytes { .. })));
    new(&jobs, asked("{}"));
    assert!(matches!(jobs.submit(asked("{}")), Err(JobsError::FullCount { n: 2 })));
    let first = run(&jobs).unwrap();
    jobs.end(&first.job, answered("y")).unwrap();
    new(&jobs, asked("{}"));
}

#[test]
fn a_full_queue_leaves_room_for_those_that_are_waited_for() {
    let awaited = |body: &str| Asked { starts_now: true, ..asked(body) };
    let full = |n_waiting_max, bytes_max, body: &str| {
        let dir = tempfile::tempdir().unwrap();
        let config = JobsConfig { n_waiting_max, bytes_max, ..JobsConfig::default() };
        let (jobs, _) = open(dir.path(), config);
        new(&jobs, asked(body));
        assert!(jobs.submit(asked(body)).is_err());
        (dir, jobs)
    };
    let (_dir, jobs) = full(1, 1 << 20, "{}");
    for _ in 0..JOBS_AWAITED_MAX {
        let job = new(&jobs, awaited("{}"));
        assert_eq!((job.state, job.row.ledger.way.as_str()), (State::Running, "fresh"));
    }
    let error = jobs.submit(awaited("{}")).unwrap_err();
    assert!(matches!(error, JobsError::FullCount { n } if n == JOBS_AWAITED_MAX + 1), "{error}");
    // What waits may take half of the bytes, and these an eighth of that more.
    let (_dir, jobs) = full(9, 4000, &"x".repeat(1900));
    new(&jobs, awaited(&"y".repeat(100)));
    let error = jobs.submit(awaited(&"z".repeat(400))).unwrap_err();
    assert!(matches!(error, JobsError::FullBytes { .. }), "{error}");
}

#[test]
fn a_job_that_is_asked_for_again_begins_out_of_its_turn() {
    let (_dir, jobs) = hot();
    let job = new(&jobs, Asked { digest: Some(vec![7]), ..asked(r#"{"prompt": "p"}"#) });
    assert_eq!((job.row.body_hash.clone(), run(&jobs)), (vec![7], None));
    let begun = jobs.begin(&job).unwrap().unwrap();
    assert_eq!(
        (begun.job.state, begun.body.as_slice()),
        (State::Running, &b"{\"prompt\": \"p\"}"[..])
    );
    assert_eq!(jobs.begin(&job).unwrap(), None, "it runs");
    jobs.end(&begun.job, answered("x")).unwrap();
    assert_eq!(jobs.begin(&begun.job).unwrap(), None, "it is over");
}

#[test]
fn a_deadline_passes_and_times_and_priorities_are_kept() {
    let dir = tempfile::tempdir().unwrap();
    let (jobs, _) = open(dir.path(), JobsConfig::default());
    let late = new(&jobs, Asked { deadline_ms: Some(1), ..asked("{}") });
    let far = now_ms() + 3_600_000;
    new(&jobs, Asked { not_before_ms: Some(far), ..asked("{}") });
    let low = new(&jobs, asked("{}"));
    let high = new(&jobs, Asked { priority: 3, ..asked("{}") });
    let order: Vec<String> = std::iter::from_fn(|| run(&jobs)).map(|run| run.job.row.id).collect();
    assert_eq!(order, [high.row.id, low.row.id]);
    let late = jobs.get(0, &late.row.id).unwrap();
    assert_eq!(late.state, State::Failed);
    assert_eq!(late.row.ledger.reason.as_deref(), Some("its deadline has passed"));
}

#[test]
fn times_do_not_count_before_somebody_has_set_the_clock() {
    let dir = tempfile::tempdir().unwrap();
    struct Started(Arc<AtomicBool>);
    impl Pace for Started {
        fn verdict(&self, _: i64) -> Verdict {
            Verdict::Go
        }
        fn knows_time(&self) -> bool {
            self.0.load(Ordering::Relaxed)
        }
    }
    let is_set = Arc::new(AtomicBool::new(false));
    let store = Store::open(dir.path()).unwrap().store;
    let pace = Box::new(Started(Arc::clone(&is_set)));
    let (jobs, _) = Jobs::open(store, JobsConfig::default(), pace).unwrap();
    let late = new(&jobs, Asked { deadline_ms: Some(1), ..asked("{}") });
    let due = new(&jobs, Asked { not_before_ms: Some(1), ..asked("{}") });
    let plain = new(&jobs, asked("{}"));
    let state = |job: &Job| jobs.get(0, &job.row.id).unwrap().state;
    assert_eq!(run(&jobs).unwrap().job.row.id, plain.row.id);
    assert_eq!(run(&jobs), None);
    assert_eq!((state(&late), state(&due)), (State::Queued, State::Queued));
    assert_eq!(jobs.counts().unwrap().1.as_deref(), Some(NO_TIME));
    jobs.end(&jobs.get(0, &plain.row.id).unwrap(), answered("x")).unwrap();
    is_set.store(true, Ordering::Relaxed);
    assert_eq!(run(&jobs).unwrap().job.row.id, due.row.id);
    assert_eq!(state(&late), State::Failed);
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap().store;
    let hours = JobsConfig { windows_utc: vec!["00:00-00:00".into()], ..JobsConfig::default() };
    let pace = Box::new(Started(Arc::clone(&is_set)));
    let (jobs, _) = Jobs::open(store, hours, pace).unwrap();
    new(&jobs, asked("{}"));
    is_set.store(false, Ordering::Relaxed);
    assert_eq!(run(&jobs), None, "nobody knows what hour it is");
    is_set.store(true, Ordering::Relaxed);
    assert!(run(&jobs).is_some());
}

#[test]
fn hours_of_jobs_hold_them_up_with_their_reason() {
    let (_dir, jobs) = hot();
    new(&jobs, asked("{}"));
    assert_eq!(run(&jobs), None);
    assert_eq!(jobs.counts().unwrap().1.as_deref(), Some("the board is too hot"));
}
