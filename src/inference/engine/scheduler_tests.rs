//! The scheduler under thousands of arrival patterns, by the very function that the engine calls.

use std::collections::HashMap;

use super::*;

const LIMITS: StepLimits = StepLimits {
    n_parallel: 4,
    n_tenant_max: 3,
    n_batch: 64,
    n_outputs: 16,
    n_chunk: 32,
    prefill_token_us: 1000,
};

fn view(id: SequenceId, n_todo: usize) -> SequenceView {
    SequenceView {
        id,
        priority: Priority::Interactive,
        tenant: TenantId(id),
        arrived_ms: id,
        is_running: false,
        is_fetching: false,
        is_follower: false,
        n_todo,
        n_draft: 0,
    }
}

fn running(id: SequenceId, n_todo: usize) -> SequenceView {
    SequenceView { is_running: true, ..view(id, n_todo) }
}

#[test]
fn a_decode_goes_along_with_every_chunk() {
    let step = schedule(&[running(1, 1), running(2, 4000)], &LIMITS);
    assert_eq!(step.work[0], Work { id: 1, n_tokens: 1, n_draft: 0 });
    assert_eq!(step.work[1], Work { id: 2, n_tokens: 32, n_draft: 0 });
    let alone = schedule(&[running(2, 4000)], &LIMITS);
    assert_eq!(alone.work[0].n_tokens, 64, "nobody waits: the whole batch");
}

#[test]
fn a_short_prompt_overtakes_a_long_one_but_not_for_ever() {
    let long = SequenceView { arrived_ms: 0, ..running(1, 500) };
    let short = SequenceView { arrived_ms: 300, ..running(2, 30) };
    let step = schedule(&[long, short, running(3, 1)], &LIMITS);
    assert_eq!(
        step.work[1..].iter().map(|w| (w.id, w.n_tokens)).collect::<Vec<_>>(),
        [(2, 30), (1, 2)]
    );
    let late = SequenceView { arrived_ms: 600, ..running(2, 30) };
    let step = schedule(&[long, late, running(3, 1)], &LIMITS);
    assert_eq!(step.work[1].id, 1);
}

#[test]
fn drafts_share_the_output_rows() {
    let views: Vec<SequenceView> =
        (1..=4).map(|id| SequenceView { n_draft: 8, ..running(id, 1) }).collect();
    let step = schedule(&views, &LIMITS);
    let rows: usize = step.work.iter().map(|work| 1 + work.n_draft).sum();
    assert_eq!(rows, LIMITS.n_outputs);
}

#[test]
fn a_person_takes_the_place_of_background_work() {
    let views: Vec<SequenceView> = (1..=4)
        .map(|id| SequenceView { priority: Priority::Background, ..running(id, 1) })
        .chain([view(100, 10)])
        .collect();
    let step = schedule(&views, &LIMITS);
    assert_eq!((step.admit, step.preempt), (vec![100], vec![4]));
}

#[test]
fn a_tenant_cannot_have_every_place_while_another_waits() {
    let one = |id| SequenceView { tenant: TenantId(7), ..view(id, 10) };
    let step = schedule(&[one(1), one(2), one(3), one(4), one(5)], &LIMITS);
    assert_eq!(step.admit, [1, 2, 3, 4], "alone it may");
    let step = schedule(&[one(1), one(2), one(3), one(4), view(5, 10)], &LIMITS);
    assert_eq!(step.admit, [1, 2, 3, 5]);
}

/// xorshift: enough for arrival patterns.
struct Rng(u64);

impl Rng {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % n
    }
}

struct Sim {
    view: SequenceView,
    n_left: usize,
    admitted_ms: Option<u64>,
}

fn arrival(rng: &mut Rng, id: SequenceId, now_ms: u64) -> SequenceView {
    SequenceView {
        priority: [Priority::Interactive, Priority::Agent, Priority::Background]
            [rng.below(3) as usize],
        tenant: TenantId(rng.below(3)),
        arrived_ms: now_ms,
        n_draft: rng.below(5) as usize,
        ..view(id, 1 + rng.below(300) as usize)
    }
}

/// Plays one arrival pattern to its end. Nobody waits for a place longer than all the work takes,
/// one token after another, that came before it or within the longest head start after it.
fn play(seed: u64) {
    let mut rng = Rng(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let limits = StepLimits {
        n_parallel: 1 + rng.below(5) as usize,
        n_tenant_max: 1 + rng.below(5) as usize,
        n_batch: 16 + rng.below(64) as usize,
        n_chunk: 8 + rng.below(16) as usize,
        n_outputs: 6 + rng.below(16) as usize,
        prefill_token_us: rng.below(2000),
    };
    let n_arrival = 1 + rng.below(40);
    let mut live: HashMap<SequenceId, Sim> = HashMap::new();
    let (mut now_ms, mut next_id, mut n_done) = (0u64, 0, 0);
    let mut work_ms = 0u64;
    // When each came, and how long it takes alone.
    let mut arrivals: Vec<(u64, u64)> = Vec::new();
    while n_done < n_arrival {
        while next_id < n_arrival && (live.is_empty() || rng.below(4) == 0) {
            let view = arrival(&mut rng, next_id, now_ms);
            let n_left = 1 + rng.below(30) as usize;
            arrivals.push((now_ms, (view.n_todo + n_left) as u64 * 10));
            work_ms += arrivals.last().map_or(0, |(_, ms)| *ms);
            live.insert(next_id, Sim { view, n_left, admitted_ms: None });
            next_id += 1;
        }
        let mut views: Vec<SequenceView> = live.values().map(|sim| sim.view).collect();
        views.sort_by_key(|view| view.id);
        let step = schedule(&views, &limits);
        check(&step, &views, &limits);
        for id in &step.preempt {
            let sim = live.get_mut(id).unwrap();
            sim.view.is_running = false;
        }
        for id in &step.admit {
            let sim = live.get_mut(id).unwrap();
            sim.view.is_running = true;
            if sim.admitted_ms.replace(now_ms).is_none() {
                let waited = now_ms - sim.view.arrived_ms;
                let bound = longest_wait(&limits, &arrivals, sim.view.arrived_ms);
                assert!(waited <= bound, "seed {seed}: {id} waited {waited} ms of {bound}");
            }
        }
        for work in &step.work {
            let sim = live.get_mut(&work.id).unwrap();
            sim.view.n_todo -= work.n_tokens;
            if sim.view.n_todo == 0 {
                sim.view.n_todo = 1;
                sim.n_left -= 1;
            }
            if sim.n_left == 0 {
                live.remove(&work.id);
                n_done += 1;
            }
        }
        // A caller leaves now and then.
        if rng.below(50) == 0
            && let Some(&id) = live.keys().min()
        {
            live.remove(&id);
            n_done += 1;
        }
        now_ms += 10;
        assert!(
            now_ms <= work_ms + n_arrival * 1000 + 10,
            "seed {seed}: every step does some of the work that there is"
        );
    }
}

/// The longest wait for a place of one that came at `arrived_ms`; where a tenant's cap keeps places
/// free, all the work there is.
fn longest_wait(limits: &StepLimits, arrivals: &[(u64, u64)], arrived_ms: u64) -> u64 {
    let is_capped = limits.n_tenant_max < limits.n_parallel;
    let latest = if is_capped { u64::MAX } else { arrived_ms + BACKGROUND_DELAY_MS };
    arrivals.iter().filter(|(came, _)| *came <= latest).map(|(_, ms)| ms).sum()
}

/// What every step keeps to.
fn check(step: &Step, views: &[SequenceView], limits: &StepLimits) {
    let of = |id: SequenceId| views.iter().find(|view| view.id == id).expect("a known sequence");
    let n_running =
        views.iter().filter(|v| v.is_running).count() + step.admit.len() - step.preempt.len();
    assert!(n_running <= limits.n_parallel);
    assert!(step.admit.iter().all(|&id| !of(id).is_running));
    assert!(step.preempt.iter().all(|&id| of(id).is_running));
    assert!(!step.work.is_empty(), "a step without work would spin");
    let n_tokens: usize = step.work.iter().map(|work| work.n_tokens + work.n_draft).sum();
    assert!(n_tokens <= limits.n_batch);
    let rows: usize = step.work.iter().map(|work| 1 + work.n_draft).sum();
    assert!(rows <= limits.n_outputs.max(limits.n_parallel));
    for work in &step.work {
        let view = of(work.id);
        let has_place =
            (view.is_running && !step.preempt.contains(&work.id)) || step.admit.contains(&work.id);
        assert!(has_place && work.n_tokens >= 1 && work.n_tokens <= view.n_todo);
        assert!(work.n_draft <= view.n_draft);
    }
    // Whoever decodes goes along: no token waits for more than one chunk.
    for view in views.iter().filter(|v| v.is_running && v.n_todo == 1) {
        let goes = step.work.iter().any(|work| work.id == view.id);
        assert!(goes || step.preempt.contains(&view.id));
    }
    let decodes = step.work.iter().any(|work| of(work.id).n_todo == 1);
    let n_prefill: usize =
        step.work.iter().filter(|work| of(work.id).n_todo > 1).map(|work| work.n_tokens).sum();
    assert!(!decodes || n_prefill <= limits.n_chunk);
    // Nobody is overtaken beyond the head start of a class.
    for waiting in views.iter().filter(|v| !v.is_running && !step.admit.contains(&v.id)) {
        for &id in &step.admit {
            let late = of(id).arrived_ms.saturating_sub(waiting.arrived_ms);
            let over_cap =
                views.iter().filter(|v| v.tenant == waiting.tenant).count() > limits.n_tenant_max;
            assert!(late <= BACKGROUND_DELAY_MS || over_cap);
        }
    }
}

#[test]
fn thousands_of_arrival_patterns_end_and_keep_the_rules() {
    for seed in 0..5000 {
        play(seed);
    }
}
