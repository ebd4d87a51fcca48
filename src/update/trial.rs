//! What a trial comes to: by how its starts end, and by how long the last one holds.
//!
//! ```text
//! READY, /health answers, and no other start for a while    it is kept
//! READY, and /health does not answer                        back at once
//! exit code 2                                               back: nobody would start it again
//! ten minutes                                               back
//! ```
//!
//! The while is longer than systemd's watchdog waits, so a program that is ready and then hangs is
//! seen. What was ready before the machine itself was started anew counts for nothing. The one who
//! watches is a process of its own, which such a program does not hold up. Time is that of its own
//! life: the clock of a board without a battery jumps.

use std::time::Duration;

use super::UpdateError;
use super::slots::{Outcome, Record, Slots};
use crate::base::limits::{UPDATE_SETTLE_S, UPDATE_TRIAL_S};

/// The exit code after which the unit does not start the service again.
const USAGE: &str = "2";

/// How a run of the service ended, in the words of systemd.
#[derive(Clone, Debug, Default)]
pub struct Ended {
    /// `SERVICE_RESULT`: `success`, `exit-code`, `signal`, `watchdog`, `timeout` and others.
    pub result: String,
    /// `EXIT_CODE`: `exited`, `killed` or `dumped`.
    pub code: String,
    /// `EXIT_STATUS`: a number, or a signal's name.
    pub status: String,
    /// Whether it came to the program at all. If not, systemd 237 tells code and status of an
    /// earlier one.
    pub is_started: bool,
}

/// What the one who watches is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Look {
    /// Look again in a second.
    Wait,
    /// Start the service anew.
    Start,
    /// Nothing more.
    Over,
}

/// What was seen since the watch began.
#[derive(Debug, Default)]
pub struct Watch {
    ready: Option<(u32, Duration)>,
}

impl Slots {
    /// The service is ready: its model answered. `health` is what /health said; a sentence if that
    /// ends a trial.
    ///
    /// # Errors
    /// If the folder takes nothing.
    pub fn ready(&self, health: Result<(), String>) -> Result<Option<String>, UpdateError> {
        self.change_trial(|record| {
            // What is ready before the first start of a trial is the program that ran.
            let trial = record.trial.as_mut().filter(|trial| trial.n_start > 0)?;
            match health {
                Ok(()) => {
                    trial.is_ready = true;
                    None
                }
                Err(why) => {
                    record.wants_start = true;
                    Some(self.go_back(record, &format!("it is ready, but {why}")))
                }
            }
        })
    }

    /// A run of the service ended; a sentence if that ends a trial.
    ///
    /// # Errors
    /// If the folder takes nothing.
    pub fn ended(&self, ended: &Ended) -> Result<Option<String>, UpdateError> {
        self.change_trial(|record| {
            let trial = record.trial.as_mut().filter(|trial| trial.n_start > 0)?;
            trial.is_ready = false;
            if ended.result == "success" {
                return None;
            }
            let how = match ended.is_started {
                true => format!("{} {}", ended.code, ended.status),
                false => "before the program".to_owned(),
            };
            let why = format!("{}, {how}", ended.result);
            trial.why = Some(why.trim_end_matches([' ', ',']).to_owned());
            if !ended.is_started || (&*ended.code, &*ended.status) != ("exited", USAGE) {
                return None;
            }
            record.wants_start = true;
            Some(self.go_back(record, "it does not take this machine's configuration"))
        })
    }

    /// A look at a trial, `now` after the watch began, with a sentence if it came to an end.
    ///
    /// # Errors
    /// If the folder takes nothing.
    pub fn look(
        &self,
        watch: &mut Watch,
        now: Duration,
    ) -> Result<(Look, Option<String>), UpdateError> {
        self.change(|record| {
            Ok(match watch.step(record, &self.boot, now) {
                Step::Wait => (Look::Wait, None),
                Step::Over => (Look::Over, None),
                Step::Keep => (Look::Over, Some(self.keep(record))),
                Step::Start => {
                    record.wants_start = false;
                    (Look::Start, None)
                }
                Step::Late => {
                    let why = format!("it did not hold within {UPDATE_TRIAL_S} s");
                    (Look::Start, Some(self.go_back(record, &why)))
                }
            })
        })
    }

    /// Changes the record where there is a trial.
    fn change_trial(
        &self,
        change: impl FnOnce(&mut Record) -> Option<String>,
    ) -> Result<Option<String>, UpdateError> {
        match self.record().trial {
            None => Ok(None),
            Some(_) => self.change(|record| Ok(change(record))),
        }
    }

    fn keep(&self, record: &mut Record) -> String {
        let Some(trial) = record.trial.take() else { return String::new() };
        let why = format!("it held for {UPDATE_SETTLE_S} s");
        let said = format!("{} is kept: {why}", trial.version);
        let runs = trial.version.clone();
        record.last = Some(Outcome { version: trial.version, is_kept: true, runs, why });
        (record.before, record.runs) = (Some(record.runs), trial.slot);
        said
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Wait,
    Start,
    Keep,
    Late,
    Over,
}

impl Watch {
    fn step(&mut self, record: &Record, boot: &str, now: Duration) -> Step {
        if record.wants_start {
            return Step::Start;
        }
        let Some(trial) = &record.trial else { return Step::Over };
        let is_ready = trial.is_ready && trial.boot == boot;
        // A crash in between is another start, whose time begins anew.
        let since = match self.ready {
            Some((n_start, since)) if n_start == trial.n_start => since,
            _ => now,
        };
        self.ready = is_ready.then_some((trial.n_start, since));
        match is_ready {
            true if now - since >= Duration::from_secs(UPDATE_SETTLE_S) => Step::Keep,
            _ if now >= Duration::from_secs(UPDATE_TRIAL_S) => Step::Late,
            _ => Step::Wait,
        }
    }
}
