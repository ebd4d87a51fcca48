//! A seeded world of backends that go, come back, hang and err; the policy, the health and the
//! retries run in it as in the hub, and what they promise is looked at after every step.

use super::health::{Failure, Health, Moment};
use super::policy::{Haste, Kind, Need, Speech, Standing, Stocked, View, mix, rank};
use super::retry::{Next, Outcome, Stakes, next};
use crate::base::limits::{HUB_EJECT_FAILURES, HUB_PAUSE_MS_MAX, HUB_TRIES_MAX};

const N_SEED: u64 = 500;
const TICK_MS: u64 = 200;
const N_TICK: u64 = 400;
const PROBE_MS: u64 = 5000;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Mood {
    Well,
    Dead,
    Hanging,
    Erring,
    Full,
}

struct Peer {
    mood: Mood,
    health: Health,
    /// Requests in a row that met it bad while it counted as well.
    n_vain: u32,
}

struct World {
    /// Failures are not written down: a broken hub.
    forgets: bool,
    random: u64,
    now_ms: u64,
    peers: Vec<Peer>,
}

impl World {
    fn new(seed: u64, forgets: bool) -> World {
        let n = 1 + seed % 3;
        let peer = |_| Peer { mood: Mood::Well, health: Health::default(), n_vain: 0 };
        World { forgets, random: seed, now_ms: 1, peers: (0..n).map(peer).collect() }
    }

    fn roll(&mut self, n: u64) -> u64 {
        self.random = mix(self.random);
        self.random % n
    }

    fn at(&mut self) -> Moment {
        Moment { now_ms: self.now_ms, random: self.roll(u64::MAX) }
    }

    /// Some change their mood.
    fn weather(&mut self) {
        for idx in 0..self.peers.len() {
            if self.roll(25) == 0 {
                let moods = [Mood::Well, Mood::Dead, Mood::Hanging, Mood::Erring, Mood::Full];
                self.peers[idx].mood = moods[self.roll(5) as usize];
                self.peers[idx].n_vain = 0;
            }
        }
    }

    fn probe(&mut self) {
        for idx in 0..self.peers.len() {
            if self.peers[idx].health.probe_ms() > self.now_ms {
                continue;
            }
            let at = self.at();
            let peer = &mut self.peers[idx];
            let failure = match peer.mood {
                // It lists its models while its engine is broken: probes alone are not enough.
                Mood::Well | Mood::Full | Mood::Erring => {
                    peer.health.probed(at.now_ms, PROBE_MS);
                    continue;
                }
                Mood::Dead => Failure::Gone,
                Mood::Hanging => Failure::Slow,
            };
            peer.health.probe_failed(failure, String::new(), at, PROBE_MS);
        }
    }

    fn views(&self) -> Vec<View> {
        let view = |(id, peer): (usize, &Peer)| View {
            id: id as u64,
            kind: [Kind::Appliance, Kind::External][id % 2],
            standing: peer.health.standing(),
            is_spare: false,
            speaks_llama: false,
            stock: Some(vec![Stocked { names: vec!["m".into()], n_ctx: None }]),
            may_have_more: false,
            n_place: 1,
            n_busy: usize::from(peer.health.is_busy(self.now_ms)),
            first_word_ms: peer.health.first_word_ms(self.now_ms),
        };
        self.peers.iter().enumerate().map(view).collect()
    }

    /// A try at one backend.
    fn ask(&mut self, idx: usize) -> Outcome {
        let at = self.at();
        let peer = &mut self.peers[idx];
        let (failure, outcome) = match peer.mood {
            Mood::Well => {
                peer.health.answered(at.now_ms, 50);
                peer.n_vain = 0;
                return Outcome::Status(200);
            }
            Mood::Full => {
                peer.health.refused(at.now_ms, 1000);
                return Outcome::Status(503);
            }
            Mood::Dead => (Failure::Gone, Outcome::NotSent),
            Mood::Hanging => (Failure::Slow, Outcome::Lost),
            Mood::Erring => (Failure::Wrong, Outcome::Status(500)),
        };
        if !self.forgets {
            peer.health.failed(failure, String::new(), at);
        }
        outcome
    }

    /// A request; whether it was answered.
    fn request(&mut self, is_kept: bool) -> bool {
        let need = Need {
            speech: Speech::Openai,
            model: Some("m".to_owned()),
            n_position: 1,
            haste: [Haste::Now, Haste::Later][self.roll(2) as usize],
            affinity: self.roll(9),
        };
        let views = self.views();
        let order: Vec<usize> = rank(&need, &views).into_iter().take(HUB_TRIES_MAX).collect();
        let has_other = views.iter().any(|v| !matches!(v.standing, Standing::Ejected { .. }));
        let mut was_taken = false;
        for (i, &idx) in order.iter().enumerate() {
            let is_out = matches!(views[idx].standing, Standing::Ejected { .. });
            assert!(!(is_out && has_other), "an ejected one was asked without need");
            assert!(!(was_taken && is_kept), "a job that may be kept was given to two");
            let outcome = self.ask(idx);
            was_taken |= outcome == Outcome::Lost;
            let peer = &mut self.peers[idx];
            if outcome != Outcome::Status(200) && outcome != Outcome::Status(503) && !is_out {
                peer.n_vain += 1;
                let is_known = peer.n_vain > HUB_EJECT_FAILURES && peer.mood != Mood::Erring;
                assert!(!is_known, "one that is bad was asked in vain, again and again");
            }
            let stakes = Stakes { is_kept, can_replay: false, n_left: order.len() - i - 1 };
            match next(outcome, stakes) {
                Next::Answer => return outcome == Outcome::Status(200),
                Next::Another => {}
                Next::Fail | Next::Replay => return false,
            }
        }
        false
    }
}

#[test]
fn whoever_is_well_is_found_and_whoever_is_not_is_left_alone() {
    live(N_SEED, false);
}

#[test]
#[should_panic(expected = "was asked in vain")]
fn canary_a_hub_that_forgets_failures_is_found_out() {
    live(N_SEED, true);
}

fn live(n_seed: u64, forgets: bool) {
    for seed in 0..n_seed {
        let mut world = World::new(seed, forgets);
        for tick in 0..N_TICK {
            world.now_ms += TICK_MS;
            world.weather();
            world.probe();
            let is_kept = world.roll(8) == 0;
            let is_well = |peer: &Peer| {
                peer.mood == Mood::Well
                    && !matches!(peer.health.standing(), Standing::Ejected { .. })
            };
            let somebody = world.peers.iter().any(is_well);
            let answered = world.request(is_kept);
            assert!(answered || !somebody || is_kept, "seed {seed}, tick {tick}");
        }
        // The storm is over: everybody comes back by itself, within the longest pause.
        world.peers.iter_mut().for_each(|peer| peer.mood = Mood::Well);
        let end_ms = world.now_ms + HUB_PAUSE_MS_MAX * 9 / 8 + TICK_MS;
        while world.now_ms < end_ms {
            world.now_ms += TICK_MS;
            world.probe();
        }
        for peer in &world.peers {
            assert_eq!(peer.health.standing(), Standing::Well, "seed {seed}");
        }
        assert!(world.request(false), "seed {seed}");
    }
}
