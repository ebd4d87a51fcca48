//! The tempo: what it changes is time, and nothing else.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Mutex, PoisonError};

use super::*;

/// An engine whose model says nothing before it is let.
fn held(n_parallel: usize) -> (Engine, Sender<()>, Receiver<()>) {
    let (let_go, may_go) = channel();
    let (tell, told) = channel();
    let gate = Mutex::new((may_go, tell));
    let script = move |history: &[TokenId]| {
        let gate = gate.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = gate.1.send(());
        let _ = gate.0.recv();
        count(history)
    };
    (start(load(512, n_parallel).with_script(Box::new(script)), n_parallel), let_go, told)
}

fn halted() -> Tempo {
    Tempo { duty_permille: 0, ..Tempo::default() }
}

#[test]
fn no_tempo_changes_an_answer() {
    let options = LoadOptions {
        n_ctx: Some(512),
        n_parallel: Some(3),
        n_threads: Some(2),
        ..LoadOptions::default()
    };
    let engine = start(Model::load(&ModelSource::Embedded, &options).unwrap(), 3);
    let requests: Vec<Request> = (0..5).map(|i| request(40 + i * 60, 12)).collect();
    let answers = |tempo: &mut dyn FnMut(usize)| -> Vec<Heard> {
        let streams: Vec<_> = requests.iter().map(|r| engine.submit(r.clone()).unwrap()).collect();
        let streams = streams.into_iter().enumerate().map(|(i, stream)| {
            tempo(i);
            let mut heard = listen(stream, 1).unwrap();
            heard.timings.clear();
            heard
        });
        streams.collect()
    };
    let plain = answers(&mut |_| {});
    let tempos = [
        Tempo { n_threads: Some(1), ..Tempo::default() },
        Tempo { n_batch: Some(1), duty_permille: 700, ..Tempo::default() },
        Tempo { n_threads: Some(9), n_batch: Some(33), duty_permille: 950 },
        Tempo::default(),
        Tempo { n_threads: Some(0), n_batch: Some(0), ..Tempo::default() },
    ];
    let paced = answers(&mut |i| engine.set_tempo(tempos[i]));
    assert_eq!(paced, plain);
    assert_at_rest(&engine);
}

#[test]
fn at_no_duty_nothing_is_computed_and_everything_else_is_seen_to() {
    let engine = scripted(512, 1);
    engine.set_tempo(halted());
    engine.slots().wait().unwrap();
    let n_step = engine.stats().steps_total;
    let stream = engine.submit(request(20, 4)).unwrap();
    let left = engine.submit(request(30, 4)).unwrap();
    let embedding = engine.embed(vec![300, 301], crate::inference::model::Pooling::Mean);
    assert_eq!(engine.slots().wait().unwrap().len(), 1, "whoever asks is answered");
    drop(left);
    while engine.stats().canceled_total == 0 {
        std::thread::yield_now();
    }
    // The canceled one is counted while the queue is swept, those who wait after it.
    engine.slots().wait().unwrap();
    let stats = engine.stats();
    assert_eq!((stats.steps_total, stats.n_waiting, stats.n_interactive), (n_step, 1, 1));
    engine.set_tempo(Tempo::default());
    assert_eq!(listen(stream, 1).unwrap().finish, [Some(Finish::Length)]);
    assert!(embedding.wait().is_ok());
    assert_at_rest(&engine);
}

#[test]
fn a_stop_in_a_pause_ends_with_its_grace() {
    let engine = scripted(512, 1);
    engine.set_tempo(halted());
    let stream = engine.submit(request(20, 4)).unwrap();
    engine.stop(Duration::ZERO);
    assert!(listen(stream, 1).unwrap_err().contains("stopping"));
}

#[test]
fn the_phase_is_told_before_its_work_and_waiting_classes_are_counted() {
    let (engine, let_go, told) = held(2);
    assert_eq!(engine.stats().phase, EnginePhase::Idle);
    let waited = engine.submit(request(20, 2)).unwrap();
    told.recv().unwrap();
    assert_eq!(engine.stats().phase, EnginePhase::Prefill);
    let_go.send(()).unwrap();
    told.recv().unwrap();
    assert_eq!(engine.stats().phase, EnginePhase::Decode);
    assert_eq!(engine.stats().n_interactive, 1);
    drop(let_go);
    listen(waited, 1).unwrap();
    let background = Request { priority: Priority::Background, ..request(20, 2) };
    listen(engine.submit(background).unwrap(), 1).unwrap();
    assert_at_rest(&engine);
    let stats = engine.stats();
    assert_eq!((stats.phase, stats.n_interactive), (EnginePhase::Idle, 0));
}

#[test]
fn a_thread_that_lives_answers_a_call_and_a_stuck_one_does_not() {
    let (engine, let_go, told) = held(1);
    let before = engine.beat();
    while engine.beat() == before {
        std::thread::yield_now();
    }
    engine.set_tempo(halted());
    let before = engine.beat();
    while engine.beat() == before {
        std::thread::yield_now();
    }
    engine.set_tempo(Tempo::default());
    let stream = engine.submit(request(20, 2)).unwrap();
    told.recv().unwrap();
    let stuck = engine.beat();
    for _ in 0..1000 {
        assert_eq!(engine.beat(), stuck, "the thread is in the middle of a step that never ends");
    }
    drop(let_go);
    listen(stream, 1).unwrap();
    assert!(engine.beat() > stuck);
}

#[test]
fn the_beat_goes_on_within_a_step() {
    let engine = start(load(512, 1), 1);
    engine.slots().wait().unwrap();
    let before = engine.beat();
    listen(engine.submit(request(64, 1)).unwrap(), 1).unwrap();
    let n_step = engine.stats().steps_total;
    assert!(engine.beat() - before > 10 * n_step, "operations count, not steps");
}
