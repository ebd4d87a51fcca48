//! What an entry may be, who may write it, and which of two about one thing counts.
//!
//! | kind | key | who may write it | rule when both sides changed it |
//! |---|---|---|---|
//! | `job` | the job | who runs it; all may take it back | the rank of its state, see below |
//! | `setting` | `NODE/name`, or a name | that node and hubs, or all | the later one counts |
//! | `snippet` | its own id | all | the later one counts |
//! | `feedback` | its own id | who wrote it first | the later one counts |
//! | `report`, `file` | `NODE/name` | that node | the later one counts |
//! | `inventory` | the node | that node | the later one counts |
//! | any other | | all | as its writer ranked it, then the later one |
//!
//! Of a job an answer beats a failure, that beats a cancellation, that a submission; one that is
//! tried again beats all that was before.
//!
//! One order holds them all: (rank, stamp, origin, id); the greatest counts, so both sides choose
//! the same one in whatever order they hear of them. What does not count though its writer did not
//! know of the other is kept as a copy. Kinds of later programs go by the same order, and so they
//! are kept until there is a program that reads them.

use serde_json::Value;

use super::blob::BlobId;
use super::clock::Stamp;
use super::wire::Entry;
use crate::base::limits::{SYNC_KEY_BYTES_MAX, SYNC_KIND_BYTES_MAX};

/// What an entry says that its writer could not send.
pub const VOID: &str = "void";
/// States of a job, by rank.
pub const JOB_STATES: [&str; 5] = ["submitted", "cancelled", "set_aside", "failed", "done"];
/// Ranks between two rounds of a job: one that is tried again begins a new round.
const ROUND: u8 = 8;
/// Kinds whose body is a JSON object.
const KINDS: [&str; 7] = ["job", "setting", "snippet", "feedback", "report", "inventory", "file"];

/// Who wrote an entry.
#[derive(Clone, Copy, Debug)]
pub struct Writer<'a> {
    /// The node.
    pub node: &'a str,
    /// Whether it is a hub.
    pub is_hub: bool,
}

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

/// The rank of a change of what is known: a job that is over and comes again begins a new round.
pub fn ranked(kind: &str, rank: u8, known: Option<&Record>) -> u8 {
    let (true, Some(known)) = (kind == "job", known) else { return rank };
    let (round, is_over) = (known.entry.rank / ROUND, known.entry.rank % ROUND > 0);
    let round = if rank == 0 && is_over { round.saturating_add(1) } else { round };
    round.min(u8::MAX / ROUND) * ROUND + rank
}

/// Whether an entry about a job is of an earlier round than what is known of it.
pub fn is_of_before(entry: &Entry, known: &Record) -> bool {
    entry.kind == "job" && entry.rank / ROUND < known.entry.rank / ROUND
}

/// Whether a record is of a job that was taken back, and that `node` may be running.
pub fn is_taken_back(record: &Record, node: &str) -> bool {
    let Entry { kind, body, .. } = &record.entry;
    kind == "job" && body["state"] == "cancelled" && may_run(record, node)
}

/// Whether a job may be one that `node` runs: nobody else says that it is its own.
pub fn may_run(record: &Record, node: &str) -> bool {
    owner(record).is_none_or(|owner| owner == node)
}

/// Whose a thing is; `None` if nobody who may say so has spoken of it.
fn owner(record: &Record) -> Option<&str> {
    let body = &record.entry.body;
    let is_bare = record.entry.kind == "job" && body["state"] == "cancelled";
    body["owner"].as_str().or((!is_bare).then_some(&record.origin))
}

/// Whether `writer` may write an entry about what is known.
///
/// # Errors
/// With the rule, for people.
pub fn may_write(entry: &Entry, writer: &Writer<'_>, known: Option<&Record>) -> Result<(), String> {
    let node = entry.key.split_once('/').map(|(node, _)| node);
    let is_owner = known.and_then(owner).is_none_or(|owner| owner == writer.node);
    let (may, rule) = match entry.kind.as_str() {
        "job" if entry.body["owner"].as_str().is_some_and(|owner| owner != writer.node) => {
            (false, "nobody says whose a job is but its owner")
        }
        "job" => (
            is_owner || entry.body["state"] == "cancelled",
            "only the machine that runs a job says how it goes; others may take it back",
        ),
        "feedback" => (is_owner, "only who gave it changes it"),
        "inventory" => (entry.key == writer.node, "a machine counts its own models alone"),
        "report" | "file" => (node == Some(writer.node), "a machine tells of its own alone"),
        "setting" => (
            writer.is_hub || node.is_none_or(|node| node == writer.node),
            "an appliance changes its own settings alone",
        ),
        _ => return Ok(()),
    };
    if may { Ok(()) } else { Err(format!("{} may not write it: {rule}", writer.node)) }
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
    if entry.kind == "file" && blobs_of(entry).is_empty() {
        return Err("it names no file".to_owned());
    }
    let state = || entry.body.get("state").and_then(Value::as_str);
    if entry.kind == "job" {
        return match state().and_then(job_rank) == Some(entry.rank % ROUND) {
            true => Ok(()),
            false => Err("its state is none, or not of its rank".to_owned()),
        };
    }
    // Nothing that its owner does would beat it.
    if KINDS.contains(&entry.kind.as_str()) && entry.rank > 0 {
        return Err(format!("a {} has no rank", entry.kind));
    }
    Ok(())
}

/// Whether an entry asks for something: a job that is to be taken back, blobs that are to come.
pub fn asks_for_act(entry: &Entry) -> bool {
    (entry.kind == "job" && entry.body["state"] == "cancelled") || !blobs_of(entry).is_empty()
}

/// The blobs that an entry speaks of, with their bytes.
pub fn blobs_of(entry: &Entry) -> Vec<(BlobId, u64)> {
    let body = &entry.body;
    let read = |at: &Value| Some((BlobId::read(at["id"].as_str()?)?, at["n_bytes"].as_u64()?));
    match entry.kind.as_str() {
        "file" => read(body).into_iter().collect(),
        "job" => {
            ["request_blob", "answer_blob"].iter().filter_map(|name| read(&body[*name])).collect()
        }
        _ => Vec::new(),
    }
}

/// What a new record keeps of the one before: a job is told of in parts.
pub fn inherit(known: &Record, new: &mut Record) {
    let parts = [
        "endpoint",
        "request",
        "request_bytes",
        "request_blob",
        "request_id",
        "created_ms",
        "answer",
        "answer_bytes",
        "answer_blob",
    ];
    let Some(body) = new.entry.body.as_object_mut().filter(|_| new.entry.kind == "job") else {
        return;
    };
    // Who takes a job back does not make it its own.
    if let Some(owner) = owner(known) {
        body.insert("owner".to_owned(), owner.into());
    }
    for part in parts {
        if let (Some(value), None) = (known.entry.body.get(part), body.get(part)) {
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
    fn a_job_that_is_tried_again_is_behind_all_that_was_before() {
        let failed = Record { origin: "nano".into(), entry: job(5, "failed") };
        let rank = ranked("job", 0, Some(&failed));
        let again = Entry { rank, ..job(9, "submitted") };
        assert_eq!(check(&again), Ok(()));
        assert_eq!(judge(&failed, "nano", &again), Verdict::Succeeds);
        let again = Record { origin: "nano".into(), entry: again };
        assert_eq!(ranked("job", 0, Some(&again)), rank, "it is told twice");
        let cancelled = ranked("job", job_rank("cancelled").unwrap(), Some(&again));
        let cancelled = Entry { rank: cancelled, ..job(10, "cancelled") };
        assert_eq!(judge(&again, "pc", &cancelled), Verdict::Wins);
        assert!(!is_of_before(&cancelled, &again));
        assert!(is_of_before(&job(11, "cancelled"), &again), "it was meant for the one before");
        let last = Record { entry: Entry { rank: 255, ..job(1, "done") }, ..again };
        assert_eq!(ranked("job", 0, Some(&last)), 248, "there is an end to it");
    }

    #[test]
    fn who_may_write_what_is_a_rule() {
        let of = |kind: &str, key: &str, body: Value| Entry {
            kind: kind.into(),
            key: key.into(),
            rank: 0,
            ..entry(7, 0, body)
        };
        let record = |entry: Entry| Record { origin: "nano".into(), entry };
        let may = |entry: &Entry, node: &str, known: Option<&Record>| {
            may_write(entry, &Writer { node, is_hub: node == "pc" }, known).is_ok()
        };
        let known = record(job(5, "submitted"));
        for node in ["nano", "pc", "else"] {
            let is_owner = node == "nano";
            assert_eq!(may(&job(6, "done"), node, Some(&known)), is_owner);
            assert!(may(&job(6, "cancelled"), node, Some(&known)));
            assert_eq!(may(&of("inventory", "nano", json!({})), node, None), is_owner);
            assert_eq!(may(&of("report", "nano/bench", json!({})), node, None), is_owner);
            assert_eq!(may(&of("file", "nano/x", json!({})), node, None), is_owner);
            assert_eq!(may(&of("setting", "nano/temp", json!({})), node, None), node != "else");
            assert!(may(&of("setting", "theme", json!({})), node, None));
            let said = record(of("feedback", "f", json!({})));
            assert_eq!(may(&said.entry, node, Some(&said)), is_owner);
            assert!(may(&of("snippet", "s", json!({})), node, Some(&said)));
        }
        assert!(!may(&of("report", "bench", json!({})), "nano", None), "a report is somebody's");
        // A cancellation does not change whose it is, whoever says so.
        let mut taken = Record { origin: "pc".into(), entry: job(6, "cancelled") };
        assert!(may(&job(7, "done"), "nano", Some(&taken)), "nobody knew the job here");
        inherit(&known, &mut taken);
        assert!(may(&job(7, "done"), "nano", Some(&taken)));
        assert!(!may(&job(7, "done"), "pc", Some(&taken)));
        let claim = entry(6, 1, json!({"state": "cancelled", "owner": "pc"}));
        assert!(!may(&claim, "else", Some(&known)));
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
            Entry { kind: "setting".into(), ..entry(1, 1, json!({})) },
            Entry { kind: VOID.into(), ..job(1, "done") },
        ] {
            assert!(check(&wrong).is_err(), "{wrong:?}");
        }
    }
}
