//! Which job runs next, as a pure function of those that wait and of those that run.
//!
//! ```text
//! due now?  -> the highest priority -> the oldest
//! ```
//!
//! A job that broke before is a suspect. It begins when no other job is due and nothing runs, and
//! takes nobody's place: who comes later runs beside it, and if the program goes down again, it was
//! the suspect.

use super::pace::Verdict;

/// A job that waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Waiting {
    /// Its number: lower ones came earlier.
    pub n: i64,
    /// Higher ones run first.
    pub priority: i64,
    /// When it may run.
    pub due_ms: i64,
    /// It broke before.
    pub is_suspect: bool,
}

/// What to do now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// Start this one.
    Start(i64),
    /// Look again when something changes, and at this time at the latest.
    Wait {
        /// The time, if one is known.
        until_ms: Option<i64>,
        /// Why nothing starts, where jobs could.
        reason: Option<String>,
    },
}

/// Chooses. `running` says of each job that runs whether it is a suspect.
pub fn choose(
    waiting: &[Waiting],
    running: &[bool],
    n_at_once: usize,
    verdict: &Verdict,
    now_ms: i64,
) -> Next {
    let wait = |until_ms, reason| Next::Wait { until_ms, reason };
    let n_sound = running.iter().filter(|is_suspect| !**is_suspect).count();
    if waiting.is_empty() || n_sound >= n_at_once {
        return wait(None, None);
    }
    if let Verdict::Wait { reason, until_ms } = verdict {
        return wait(*until_ms, Some(reason.clone()));
    }
    let due = waiting.iter().filter(|job| job.due_ms <= now_ms);
    let sound = due.clone().filter(|job| !job.is_suspect);
    let best = |job: &&Waiting| (job.priority, std::cmp::Reverse(job.n));
    if let Some(job) = sound.max_by_key(best) {
        return Next::Start(job.n);
    }
    match due.max_by_key(best) {
        Some(suspect) if running.is_empty() => Next::Start(suspect.n),
        Some(_) => wait(None, None),
        None => wait(waiting.iter().map(|job| job.due_ms).min(), None),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn job(n: i64, priority: i64, due_ms: i64, is_suspect: bool) -> Waiting {
        Waiting { n, priority, due_ms, is_suspect }
    }

    #[test]
    fn the_highest_priority_then_the_oldest_then_suspects_alone() {
        let go =
            |waiting: &[Waiting], running: &[bool]| choose(waiting, running, 2, &Verdict::Go, 100);
        let idle = Next::Wait { until_ms: None, reason: None };
        assert_eq!(go(&[], &[]), idle);
        assert_eq!(go(&[job(1, 0, 0, false), job(2, 5, 0, false)], &[]), Next::Start(2));
        assert_eq!(go(&[job(2, 0, 0, false), job(1, 0, 0, false)], &[false]), Next::Start(1));
        assert_eq!(go(&[job(1, 9, 0, true), job(2, 0, 0, false)], &[]), Next::Start(2));
        assert_eq!(go(&[job(1, 9, 0, true)], &[]), Next::Start(1));
        assert_eq!(go(&[job(1, 9, 0, true)], &[false]), idle, "not beside another");
        assert_eq!(go(&[job(1, 9, 0, true)], &[true]), idle, "nor beside its like");
        assert_eq!(go(&[job(2, 9, 0, false)], &[true]), Next::Start(2), "it delays nobody");
        assert_eq!(go(&[job(3, 9, 0, false)], &[true, false]), Next::Start(3), "nor takes a place");
        assert_eq!(go(&[job(4, 9, 0, false)], &[true, false, false]), idle);
        let later = Next::Wait { until_ms: Some(300), reason: None };
        assert_eq!(go(&[job(1, 0, 500, false), job(2, 0, 300, false)], &[]), later);
        let hot = Verdict::Wait { reason: "too hot".into(), until_ms: Some(900) };
        let told = Next::Wait { until_ms: Some(900), reason: Some("too hot".into()) };
        assert_eq!(choose(&[job(1, 0, 0, false)], &[], 2, &hot, 100), told);
    }

    proptest! {
        /// Nothing starves: as long as a place is free and jobs are due, one starts, and what
        /// starts is due.
        #[test]
        fn a_free_place_and_a_due_job_meet(
            jobs in proptest::collection::vec((0i64..3, 0i64..10, any::<bool>()), 0..12),
        ) {
            let mut waiting: Vec<Waiting> = jobs.iter().enumerate()
                .map(|(n, &(priority, due, suspect))| job(n as i64, priority, due, suspect))
                .collect();
            let mut now_ms = 0;
            while !waiting.is_empty() {
                match choose(&waiting, &[], 1, &Verdict::Go, now_ms) {
                    Next::Start(n) => {
                        let at = waiting.iter().position(|job| job.n == n).unwrap();
                        prop_assert!(waiting.remove(at).due_ms <= now_ms);
                    }
                    Next::Wait { until_ms, .. } => {
                        prop_assert!(until_ms.unwrap() > now_ms);
                        now_ms = until_ms.unwrap();
                    }
                }
            }
        }
    }
}
