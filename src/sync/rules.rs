//! What an entry may be, and which of two about one thing counts.
//!
//! | kind | key | rule when both sides changed it |
//! |---|---|---|
//! | `job` | the job | an answer beats a failure, that beats a cancellation, that a submission |
//! | `setting` | its name | the later one counts |
//! | `snippet`, `feedback`, `report` | its own id | the later one counts |
//! | `inventory` | the node | only the node itself writes it: the later one counts |
//! | any other | | as its writer ranked it, then the later one |
//!
//! One order holds them all: (rank, stamp, origin, id); the greatest counts, so both sides choose
//! the same one in whatever order they hear of them. What does not count though its writer did not
//! know of the other is kept as a copy. Kinds of later programs go by the same order, and so they
//! are kept until there is a program that reads them.

use serde_json::Value;

use super::clock::Stamp;
use super::wire::Entry;
use crate::base::limits::{SYNC_KEY_BYTES_MAX, SYNC_KIND_BYTES_MAX};

/// What an entry says that its writer could not send.
pub const VOID: &str = "void";
/// States of a job, by rank.
pub const JOB_STATES: [&str; 5] = ["submitted", "cancelled", "set_aside", "failed", "done"];
/// Kinds whose body is a JSON object.
const KINDS: [&str; 6] = ["job", "setting", "snippet", "feedback", "report", "inventory"];

/// What is known of one thing.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    /// Who wrote it.
    pub origin: String,
    /// What it said.
    pub entry: Entry,
}

/// What an entry does to a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is the record from now on.
    Succeeds,
    /// It is, and what was there is kept as a copy.
    Wins,
    /// The record stays, and the entry is kept as a copy.
    Loses,
    /// The record stays: it came after this.
    Passed,
}

/// The rank of a job's state; `None` if that is none.
pub fn job_rank(state: &str) -> Option<u8> {
    JOB_STATES.iter().position(|known| *known == state).map(|rank| rank as u8)
}

/// Why an entry cannot take effect here; nothing if it can.
///
/// # Errors
/// With a reason for people.
pub fn check(entry: &Entry) -> Result<(), String> {
    let is_word = |text: &str, n_max: usize| {
        !text.is_empty() && text.len() <= n_max && !text.chars().any(char::is_control)
    };
    if !is_word(&entry.kind, SYNC_KIND_BYTES_MAX) || !is_word(&entry.key, SYNC_KEY_BYTES_MAX) {
        return Err("its kind or key is no name".to_owned());
    }
    if !entry.at.is_sound() {
        return Err("its time is out of range".to_owned());
    }
    if entry.kind == VOID {
        let why = entry.body["why"].as_str().unwrap_or("for a reason that it does not give");
        return Err(format!("its writer could not send {}: {why}", entry.key));
    }
    if KINDS.contains(&entry.kind.as_str()) && !entry.body.is_object() {
        return Err(format!("a {} is an object", entry.kind));
    }
    let state = || entry.body.get("state").and_then(Value::as_str);
    if entry.kind == "job" && state().and_then(job_rank) != Some(entry.rank) {
        return Err("its state is none, or not of its rank".to_owned());
    }
    Ok(())
}

/// Whether an entry asks something of another room: a job that is to be taken back.
pub fn asks_for_act(entry: &Entry) -> bool {
    entry.kind == "job" && entry.body["state"] == "cancelled"
}

/// What a new record keeps of the one before: a job is told of in parts.
pub fn inherit(known: &Record, new: &mut Record) {
    let parts = ["endpoint", "request", "request_bytes", "request_id", "created_ms", "answer"];
    let (Some(known), Some(body)) = (known.entry.body.as_object(), new.entry.body.as_object_mut())
    else {
        return;
    };
    if new.entry.kind != "job" {
        return;
    }
    for part in parts {
        if let (Some(value), None) = (known.get(part), body.get(part)) {
            body.insert(part.to_owned(), value.clone());
        }
    }
}

/// What an entry of `origin` does to what is known.
pub fn judge(known: &Record, origin: &str, entry: &Entry) -> Verdict {
    let order = |origin: &str, entry: &Entry| -> (u8, Stamp, String, u64) {
        (entry.rank, entry.at, origin.to_owned(), entry.id)
    };
    let is_later = order(origin, entry) > order(&known.origin, &known.entry);
    let knew = entry.over == Some(known.entry.at) || known.entry.over == Some(entry.at);
    let is_conflict = known.origin != origin && !knew && known.entry.body != entry.body;
    match (is_later, is_conflict) {
        (true, false) => Verdict::Succeeds,
        (true, true) => Verdict::Wins,
        (false, true) => Verdict::Loses,
        (false, false) => Verdict::Passed,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn entry(at: u64, rank: u8, body: Value) -> Entry {
        let (kind, key) = ("job".to_owned(), "job-1".to_owned());
        Entry { seq: 1, id: at, at: Stamp(at), over: None, kind, key, rank, body }
    }

    fn job(at: u64, state: &str) -> Entry {
        entry(at, job_rank(state).unwrap(), json!({ "state": state }))
    }

    #[test]
    fn an_answer_beats_a_cancellation_and_the_other_is_kept() {
        let done = Record { origin: "nano".into(), entry: job(5, "done") };
        assert_eq!(judge(&done, "pc", &job(9, "cancelled")), Verdict::Loses);
        let cancelled = Record { origin: "pc".into(), entry: job(9, "cancelled") };
        assert_eq!(judge(&cancelled, "nano", &job(5, "done")), Verdict::Wins);
        assert_eq!(judge(&done, "nano", &job(4, "submitted")), Verdict::Passed);
    }

    #[test]
    fn of_two_settings_the_later_counts_and_who_knew_the_other_is_in_no_conflict() {
        let setting = |at, value: u64| Entry {
            kind: "setting".into(),
            ..entry(at, 0, json!({"value": value}))
        };
        let known = Record { origin: "a".into(), entry: setting(5, 1) };
        assert_eq!(judge(&known, "b", &setting(6, 2)), Verdict::Wins);
        assert_eq!(judge(&known, "b", &setting(4, 2)), Verdict::Loses);
        assert_eq!(judge(&known, "b", &setting(6, 1)), Verdict::Succeeds, "they agree");
        let knowing = Entry { over: Some(Stamp(5)), ..setting(6, 2) };
        assert_eq!(judge(&known, "b", &knowing), Verdict::Succeeds);
        assert_eq!(judge(&known, "a", &setting(6, 2)), Verdict::Succeeds);
        assert_eq!(judge(&known, "b", &setting(5, 2)), Verdict::Wins, "names decide a tie");
    }

    #[test]
    fn what_cannot_take_effect_says_why() {
        assert_eq!(check(&job(1, "done")), Ok(()));
        assert_eq!(check(&Entry { kind: "of-tomorrow".into(), ..entry(1, 9, json!(7)) }), Ok(()));
        for wrong in [
            Entry { rank: 1, ..job(1, "done") },
            entry(1, 0, json!({"state": "asleep"})),
            entry(1, 0, json!("text")),
            Entry { key: "a\nb".into(), ..job(1, "done") },
            Entry { kind: String::new(), ..job(1, "done") },
            Entry { at: Stamp(u64::MAX), ..job(1, "done") },
            Entry { kind: VOID.into(), ..job(1, "done") },
        ] {
            assert!(check(&wrong).is_err(), "{wrong:?}");
        }
    }
}
