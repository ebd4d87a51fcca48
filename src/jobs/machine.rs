//! What may become of a job, as a pure function of its ledger and of what happened.
//!
//! ```text
//! queued --start--> running --answered--> done
//!    ^                 |-----refused-----> failed       the request itself is wrong
//!    |<---stumbled-----|                                may go better: again after a pause,
//!    |                 |-----stumbled----> failed       until its attempts are spent
//!    |<---nobody took it-----------------|              again after a pause, no attempt is spent
//!    |<---stopped, crashed, timed out----|
//!    |                 |-----crashed-----> set aside    broke without getting further, k times
//!    |-----cancel, deadline--------------> cancelled, failed
//!    |-----unreadable--------------------> set aside    its texts do not open
//!    |<---------retry--------------------- failed, cancelled, set aside
//!    |<-answered where it is, all the same- cancelled
//! ```
//!
//! Who has a job is named in it until they are done with it, or nobody waits for it there any more:
//! then they are to hear that, which is no matter of the job's own states.
//!
//! A crash after new tokens became durable counts as the first one: a long job in a place where
//! power fails often gets on, and one that always breaks in the same place does not.

use crate::store::LedgerRow;

/// Where a job is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum State {
    /// It waits.
    Queued,
    /// It runs.
    Running,
    /// It has its answer.
    Done,
    /// It has none and will have none.
    Failed,
    /// Somebody took it back.
    Cancelled,
    /// It broke too often.
    SetAside,
}

impl State {
    /// All of them.
    pub const ALL: [State; 6] = [
        State::Queued,
        State::Running,
        State::Done,
        State::Failed,
        State::Cancelled,
        State::SetAside,
    ];

    /// Its word on the wire and on the disk.
    pub fn name(self) -> &'static str {
        match self {
            State::Queued => "queued",
            State::Running => "running",
            State::Done => "done",
            State::Failed => "failed",
            State::Cancelled => "cancelled",
            State::SetAside => "set_aside",
        }
    }

    /// The state of a word.
    pub fn from_name(name: &str) -> Option<State> {
        State::ALL.into_iter().find(|state| state.name() == name)
    }

    /// Whether nothing more happens by itself.
    pub fn is_over(self) -> bool {
        !matches!(self, State::Queued | State::Running)
    }
}

/// How a text goes on after a start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// From its first token, and for the first time.
    Fresh,
    /// From its last durable token: those before it were computed again and were the same.
    Resumed,
    /// Again from the first token: none was durable, or the text came out as another one.
    Restarted,
}

impl Way {
    /// Its word on the wire and on the disk.
    pub fn name(self) -> &'static str {
        match self {
            Way::Fresh => "fresh",
            Way::Resumed => "resumed",
            Way::Restarted => "restarted",
        }
    }
}

/// Something that happens to a job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Happening {
    /// It begins, with so many durable tokens.
    Started {
        /// Of its text.
        n_token: i64,
    },
    /// Tokens that were durable came out otherwise.
    Diverged,
    /// It was answered.
    Answered,
    /// It never can be.
    Refused(String),
    /// Not this time.
    Stumbled(String),
    /// Nobody was there to take it, or who has it is not there to say how it goes.
    Untaken(String),
    /// It is given to another machine: which one, and its name there. `None` has it back.
    Given(Option<String>),
    /// It took too long.
    TimedOut,
    /// The service ends, and not by this job.
    Stopped,
    /// The program or the power went, with so many durable tokens.
    Crashed {
        /// Of its text.
        n_token: i64,
    },
    /// What is kept of it does not open.
    Unreadable(String),
    /// Whoever had it answered it before they heard that it was taken back: which machine, and its
    /// name there.
    AnsweredThere(String),
    /// Its deadline has passed.
    DeadlinePassed,
    /// Somebody takes it back.
    CancelAsked,
    /// Somebody wants it again.
    RetryAsked,
}

/// What is allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Breaks without progress after which a job is set aside.
    pub n_broken_max: i64,
    /// First pause after a stumble; it doubles.
    pub pause_ms: i64,
    /// Longest pause.
    pub pause_max_ms: i64,
}

/// What becomes of a job; `None` where it cannot happen in its state.
pub fn next(
    ledger: &LedgerRow,
    n_attempt_max: i64,
    happening: &Happening,
    now_ms: i64,
    policy: &Policy,
) -> Option<LedgerRow> {
    use Happening as H;
    let state = State::from_name(&ledger.state)?;
    // Whoever has it then is not asked how it goes.
    let over = |state: State, reason: Option<String>| LedgerRow {
        state: state.name().to_owned(),
        finished_ms: Some(now_ms),
        reason,
        holder: None,
        ..ledger.clone()
    };
    let again = |pause_ms: i64, reason: String| LedgerRow {
        state: State::Queued.name().to_owned(),
        due_ms: if pause_ms == 0 { DUE_AT_ONCE } else { now_ms.saturating_add(pause_ms) },
        reason: Some(reason),
        ..ledger.clone()
    };
    Some(match (state, happening) {
        (State::Queued, H::Started { n_token }) => started(ledger, *n_token, now_ms),
        (State::Running, H::Diverged) => diverged(ledger),
        (State::Running, H::Given(to)) => LedgerRow { holder: to.clone(), ..ledger.clone() },
        (State::Running, H::Answered) => over(State::Done, None),
        (State::Running, H::Refused(why)) => over(State::Failed, Some(why.clone())),
        (State::Running, H::Stumbled(why)) => {
            let n_attempt = ledger.n_attempt + 1;
            let row = match n_attempt >= n_attempt_max {
                true => over(State::Failed, Some(format!("after {n_attempt} attempts: {why}"))),
                false => again(pause(n_attempt, policy), why.clone()),
            };
            // Whoever had it is done with it, or hears that nobody wants it there.
            LedgerRow { n_attempt, holder: None, ..row }
        }
        (State::Running, H::Untaken(why)) => again(untaken_pause(policy), why.clone()),
        (State::Running, H::TimedOut) => {
            broken(ledger, ledger.n_broken + 1, "it took longer than a job may", now_ms, policy)
        }
        (State::Running, H::Crashed { n_token }) => {
            let has_progress = *n_token > ledger.n_token_start;
            let n_broken = if has_progress { 1 } else { ledger.n_broken + 1 };
            broken(ledger, n_broken, "the program or the power went while it ran", now_ms, policy)
        }
        (State::Running, H::Stopped) => again(0, "the service was stopped".to_owned()),
        // Pieces that do not open go: if it is asked for again, its text begins anew.
        (State::Queued, H::Unreadable(why)) => {
            let (epoch, holder) = (ledger.epoch + 1, ledger.holder.clone());
            LedgerRow { epoch, holder, ..over(State::SetAside, Some(why.clone())) }
        }
        (State::Queued | State::Running, H::DeadlinePassed) => {
            over(State::Failed, Some("its deadline has passed".to_owned()))
        }
        (State::Queued | State::Running, H::CancelAsked) => over(State::Cancelled, None),
        (State::Failed | State::Cancelled | State::SetAside, H::RetryAsked) => retried(ledger),
        // An answer is never thrown away because somebody took the job back meanwhile. It comes as
        // that of any job does that somebody has.
        (State::Cancelled, H::AnsweredThere(holder)) => LedgerRow {
            finished_ms: None,
            holder: Some(holder.clone()),
            ..again(0, "it was answered before it was taken back there".to_owned())
        },
        _ => return None,
    })
}

/// As a new one whose text may have begun. Who has one that was set aside has it still.
fn retried(ledger: &LedgerRow) -> LedgerRow {
    LedgerRow {
        epoch: ledger.epoch,
        n_token_start: ledger.n_token_start,
        way: ledger.way.clone(),
        started_ms: ledger.started_ms,
        holder: ledger.holder.clone(),
        ..fresh(DUE_AT_ONCE)
    }
}

/// A ledger whose text begins anew.
fn diverged(ledger: &LedgerRow) -> LedgerRow {
    LedgerRow {
        epoch: ledger.epoch + 1,
        n_token_start: 0,
        way: Way::Restarted.name().to_owned(),
        ..ledger.clone()
    }
}

/// A ledger that has begun.
fn started(ledger: &LedgerRow, n_token: i64, now_ms: i64) -> LedgerRow {
    let way = match n_token > 0 {
        true => Way::Resumed,
        false if ledger.started_ms.is_some() => Way::Restarted,
        false => Way::Fresh,
    };
    LedgerRow {
        state: State::Running.name().to_owned(),
        n_token_start: n_token,
        way: way.name().to_owned(),
        started_ms: Some(now_ms),
        finished_ms: None,
        ..ledger.clone()
    }
}

fn broken(
    ledger: &LedgerRow,
    n_broken: i64,
    what: &str,
    now_ms: i64,
    policy: &Policy,
) -> LedgerRow {
    let is_poison = n_broken >= policy.n_broken_max;
    let state = if is_poison { State::SetAside } else { State::Queued };
    LedgerRow {
        state: state.name().to_owned(),
        n_broken,
        due_ms: DUE_AT_ONCE,
        finished_ms: is_poison.then_some(now_ms),
        reason: Some(format!("{what} ({n_broken} of {})", policy.n_broken_max)),
        ..ledger.clone()
    }
}

/// The pause after so many attempts.
fn pause(n_attempt: i64, policy: &Policy) -> i64 {
    let doubled = policy.pause_ms.saturating_mul(1 << n_attempt.clamp(1, 32).saturating_sub(1));
    doubled.min(policy.pause_max_ms)
}

/// The pause of a job that nobody took. It does not grow, for the job has not failed, however long
/// the outage is; each look costs two commits.
fn untaken_pause(policy: &Policy) -> i64 {
    policy.pause_ms.saturating_mul(3)
}

/// When a job is due that waits for no moment. Times after 1970 are for those that do: this clock
/// may have been set back since.
pub const DUE_AT_ONCE: i64 = 0;

/// A ledger of a new job that may run from `due_ms` on.
pub fn fresh(due_ms: i64) -> LedgerRow {
    LedgerRow {
        state: State::Queued.name().to_owned(),
        due_ms,
        n_attempt: 0,
        n_broken: 0,
        epoch: 1,
        n_token_start: 0,
        way: Way::Fresh.name().to_owned(),
        started_ms: None,
        finished_ms: None,
        reason: None,
        holder: None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const POLICY: Policy = Policy { n_broken_max: 3, pause_ms: 1000, pause_max_ms: 60_000 };

    fn after(steps: &[Happening]) -> LedgerRow {
        steps.iter().enumerate().fold(fresh(0), |ledger, (i, happening)| {
            next(&ledger, 3, happening, i as i64, &POLICY).unwrap_or_else(|| panic!("step {i}"))
        })
    }

    fn start(n_token: i64) -> Happening {
        Happening::Started { n_token }
    }

    fn crash(n_token: i64) -> Happening {
        Happening::Crashed { n_token }
    }

    #[test]
    fn a_job_that_breaks_in_one_place_is_set_aside_with_its_reason() {
        let row = after(&[start(0), crash(0), start(0), crash(0), start(0), crash(0)]);
        assert_eq!(row.state, "set_aside");
        assert!(row.reason.unwrap().contains("3 of 3"));
        let row = after(&[start(0), crash(5), start(5), crash(9), start(9), crash(12)]);
        assert_eq!((row.state.as_str(), row.n_broken), ("queued", 1), "it gets on");
        let row = after(&[start(0), Happening::TimedOut, start(3), Happening::TimedOut]);
        assert_eq!((row.state.as_str(), row.n_broken), ("queued", 2));
    }

    #[test]
    fn attempts_are_spent_with_growing_pauses() {
        let stumble = || Happening::Stumbled("busy".to_owned());
        let row = after(&[start(0), stumble()]);
        assert_eq!((row.state.as_str(), row.due_ms), ("queued", 1 + 1000));
        let row = after(&[start(0), stumble(), start(0), stumble()]);
        assert_eq!((row.state.as_str(), row.due_ms), ("queued", 3 + 2000));
        let row = after(&[start(0), stumble(), start(0), stumble(), start(0), stumble()]);
        assert_eq!(row.state, "failed");
        assert_eq!(row.reason.unwrap(), "after 3 attempts: busy");
        assert_eq!(pause(1_000_000, &POLICY), 60_000);
    }

    #[test]
    fn an_outage_spends_no_attempts() {
        let untaken = || Happening::Untaken("nobody is there".to_owned());
        let steps: Vec<Happening> = (0..100).flat_map(|_| [start(0), untaken()]).collect();
        let row = after(&steps);
        assert_eq!((row.state.as_str(), row.n_attempt, row.n_broken), ("queued", 0, 0));
        assert_eq!((row.due_ms, row.reason.as_deref()), (199 + 3000, Some("nobody is there")));
    }

    #[test]
    fn how_a_text_goes_on_is_said() {
        assert_eq!(after(&[start(0)]).way, "fresh");
        let stopped = [start(0), Happening::Stopped, start(7)];
        assert_eq!((after(&stopped).way.as_str(), after(&stopped).n_token_start), ("resumed", 7));
        let other = [start(0), crash(7), start(7), Happening::Diverged];
        let row = after(&other);
        assert_eq!((row.way.as_str(), row.epoch, row.n_token_start), ("restarted", 2, 0));
        // Nothing of it was durable yet.
        for broken in [crash(0), Happening::Stopped, Happening::TimedOut] {
            let row = after(&[start(0), broken.clone(), start(0)]);
            assert_eq!((row.way.as_str(), row.epoch), ("restarted", 1), "{broken:?}");
        }
    }

    #[test]
    fn who_has_a_job_is_known_until_it_is_done_with_it() {
        let given = |holder: Option<&str>| Happening::Given(holder.map(str::to_owned));
        let has = |then: &[Happening]| {
            let steps = [&[start(0), given(Some("nano job-1"))], then].concat();
            after(&steps).holder.is_some()
        };
        let away = Happening::Untaken("away".to_owned());
        for kept in [away, Happening::Stopped, Happening::TimedOut, crash(0)] {
            assert!(has(std::slice::from_ref(&kept)), "{kept:?}");
        }
        assert!(!has(&[Happening::Stumbled("it failed there".to_owned())]));
        assert!(!has(&[given(None)]));
        for over in [Happening::CancelAsked, Happening::DeadlinePassed, Happening::Answered] {
            assert!(!has(&[over]));
        }
        assert!(!has(&[Happening::CancelAsked, Happening::RetryAsked]));
    }

    #[test]
    fn what_was_answered_before_anybody_heard_that_it_was_taken_back_is_fetched() {
        let there = || Happening::AnsweredThere("nano job-1-1".to_owned());
        let given = Happening::Given(Some("nano job-1-1".to_owned()));
        let row = after(&[start(0), given.clone(), Happening::CancelAsked, there()]);
        assert_eq!((row.state.as_str(), row.due_ms), ("queued", DUE_AT_ONCE));
        assert_eq!((row.holder.as_deref(), row.finished_ms), (Some("nano job-1-1"), None));
        assert!(row.reason.is_some(), "peers do not hear of a new round");
        for over in [Happening::DeadlinePassed, Happening::Answered, Happening::Refused("x".into())]
        {
            let row = after(&[start(0), given.clone(), over]);
            assert_eq!(next(&row, 3, &there(), 9, &POLICY), None, "{}", row.state);
        }
    }

    fn happening() -> impl Strategy<Value = Happening> {
        prop_oneof![
            (0i64..50).prop_map(|n_token| Happening::Started { n_token }),
            Just(Happening::Diverged),
            Just(Happening::Answered),
            Just(Happening::Refused("no".to_owned())),
            Just(Happening::Stumbled("busy".to_owned())),
            Just(Happening::TimedOut),
            Just(Happening::Stopped),
            (0i64..50).prop_map(|n_token| Happening::Crashed { n_token }),
            Just(Happening::Unreadable("lost".to_owned())),
            Just(Happening::DeadlinePassed),
            Just(Happening::CancelAsked),
            Just(Happening::RetryAsked),
            Just(Happening::Given(Some("nano job-1-1".to_owned()))),
            Just(Happening::AnsweredThere("nano job-1-1".to_owned())),
        ]
    }

    proptest! {
        /// Whatever happens in whatever order: what is over stays so until it is asked for again,
        /// an answer is final, and nothing is tried more often than it may be.
        #[test]
        fn every_order_of_happenings_keeps_the_promises(
            steps in proptest::collection::vec(happening(), 0..60),
        ) {
            let mut ledger = fresh(0);
            for (i, step) in steps.iter().enumerate() {
                let before = State::from_name(&ledger.state).unwrap();
                let Some(row) = next(&ledger, 3, step, i as i64, &POLICY) else { continue };
                let after = State::from_name(&row.state).unwrap();
                let was_answered = matches!(step, Happening::AnsweredThere(_));
                let goes_on = *step == Happening::RetryAsked
                    || (was_answered && before == State::Cancelled);
                prop_assert!(!before.is_over() || goes_on);
                prop_assert!(row.holder.is_none() || !after.is_over() || after == State::SetAside);
                prop_assert_ne!(before, State::Done, "an answer is final");
                prop_assert_eq!(after.is_over(), row.finished_ms.is_some());
                prop_assert!(row.n_attempt <= 3 && row.n_broken <= 3);
                prop_assert!(row.n_attempt < 3 || after.is_over());
                prop_assert!(row.n_broken < 3 || after == State::SetAside);
                prop_assert!(row.epoch >= ledger.epoch);
                let has_reason = row.reason.is_some();
                prop_assert!(has_reason || !matches!(after, State::Failed | State::SetAside));
                ledger = row;
            }
        }
    }
}
