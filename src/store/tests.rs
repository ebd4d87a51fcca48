//! The store as a loss of power, another hand or another version leaves it.

use std::fs;

use rusqlite::Connection;

use super::*;

const LIMITS: QueueLimits = QueueLimits { n_max: 1000, bytes_max: 1 << 30 };

fn ledger(state: &str) -> LedgerRow {
    LedgerRow {
        state: state.to_owned(),
        due_ms: 1,
        epoch: 1,
        way: "fresh".to_owned(),
        finished_ms: (state == "done").then_some(5),
        ..LedgerRow::default()
    }
}

fn new_job(i: usize) -> NewJobRow {
    NewJobRow {
        id: format!("job-{i}"),
        request_id: Some(format!("request {i}")),
        body_hash: vec![i as u8; 32],
        endpoint: "/completion".to_owned(),
        body: format!("{{\"prompt\": \"secret {i}\"}}").into_bytes(),
        seed: 7,
        created_ms: 1,
        n_attempt_max: 3,
        ledger: ledger("queued"),
        ..NewJobRow::default()
    }
}

fn insert(store: &Store, i: usize) -> JobRow {
    match store.insert_job(new_job(i), LIMITS).unwrap() {
        Insert::New(job) => job,
        other => panic!("{other:?}"),
    }
}

/// Changes a job from its revision in hand, which is one more then.
fn change(store: &Store, job: &mut JobRow, to: &str) -> bool {
    let answer = AnswerRow { status: 200, media_type: "text/plain".into(), body: b"done".to_vec() };
    let answer = (to == "done").then_some(answer);
    let update = Update { answer, ..Update::of(job, ledger(to)) };
    let is_done = store.update_jobs(vec![update]).unwrap() == [Changed::Done];
    job.revision += i64::from(is_done);
    is_done
}

fn piece(job: &JobRow, end: i64) -> Append {
    let row = PieceRow { epoch: 1, end, pieces: format!("piece {end}").into_bytes() };
    Append { n: job.n, id: job.id.clone(), revision: job.revision, row }
}

fn append(store: &Store, job: &JobRow, end: i64) {
    assert_eq!(store.append_pieces(vec![piece(job, end)]).unwrap(), [true]);
}

fn all(store: &Store) -> Vec<JobRow> {
    store.jobs(&JobFilter { n_max: 1000, ..JobFilter::default() }).unwrap()
}

/// Everything that a store says, opened.
fn said(store: &Store) -> Vec<String> {
    let line = |job: JobRow| {
        let body = String::from_utf8(store.job_body(&job).unwrap()).unwrap();
        let answer = store.job_answer(&job).unwrap().map(|answer| answer.body);
        let pieces = store.job_pieces(&job, 1, 0).unwrap();
        let counts = store.job_counts().unwrap();
        format!("{} {} {body} {answer:?} {pieces:?} {counts:?}", job.id, job.ledger.state)
    };
    all(store).into_iter().map(line).collect()
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for name in ["state.db", "state.db-wal", "device.key"] {
        let _ = fs::remove_file(to.join(name));
        if from.join(name).exists() {
            fs::copy(from.join(name), to.join(name)).unwrap();
        }
    }
}

/// A life of a few jobs, step by step.
fn live(store: &Store, mut after_step: impl FnMut(&Store)) {
    for i in 0..4 {
        let mut job = insert(store, i);
        after_step(store);
        assert!(change(store, &mut job, "running"));
        after_step(store);
        for end in 1..4 {
            append(store, &job, end);
            after_step(store);
        }
        let mut before = job.clone();
        assert!(change(store, &mut job, "done"));
        after_step(store);
        assert!(!change(store, &mut before, "done"), "of two ends one counts");
    }
}

/// Numbers below what is asked for, the same in each run.
fn random() -> impl FnMut(usize) -> usize {
    let mut state = 88172645463325252u64;
    move |n| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % n as u64) as usize
    }
}

#[test]
fn a_store_that_was_closed_keeps_what_it_has_and_takes_nothing_more() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap().store;
    let held = store.clone();
    insert(&store, 1);
    store.close();
    store.close();
    assert!(matches!(held.insert_job(new_job(2), LIMITS), Err(StoreError::Closed)));
    drop((store, held));
    let opened = Store::open(dir.path()).unwrap();
    assert!(opened.notes.is_empty(), "{:?}", opened.notes);
    assert!(opened.store.job("job-1").unwrap().is_some());
    assert!(opened.store.job("job-2").unwrap().is_none());
}

#[test]
fn after_every_write_what_was_acknowledged_is_there() {
    let (dir, copies) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut told = vec![Vec::new()];
    {
        let store = Store::open(dir.path()).unwrap().store;
        live(&store, |store| {
            copy(dir.path(), &copies.path().join(told.len().to_string()));
            told.push(said(store));
        });
    }
    for (i, told) in told.iter().enumerate().skip(1) {
        let opened = Store::open(&copies.path().join(i.to_string())).unwrap();
        assert!(opened.notes.is_empty(), "{:?}", opened.notes);
        assert_eq!(said(&opened.store), *told, "step {i}");
    }
}

#[test]
fn a_log_that_was_cut_anywhere_is_a_store_of_some_moment_before() {
    let (dir, cut) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let whole = cut.path().join("whole");
    let mut told = vec![Vec::new()];
    {
        let store = Store::open(dir.path()).unwrap().store;
        live(&store, |store| told.push(said(store)));
        copy(dir.path(), &whole);
    }
    let log = fs::read(whole.join("state.db-wal")).unwrap();
    let n_frame = (log.len() - 32) / (4096 + 24);
    assert!(n_frame > 24, "{n_frame}");
    let mut seen = std::collections::BTreeSet::new();
    for i in 0..2 * n_frame {
        let end = 32 + i / 2 * (4096 + 24) + if i % 2 == 1 { 1000 } else { 0 };
        let at = cut.path().join("cut");
        copy(&whole, &at);
        fs::write(at.join("state.db-wal"), &log[..end]).unwrap();
        match Store::open(&at) {
            Ok(opened) => {
                let said = said(&opened.store);
                let moment = told.iter().position(|told| *told == said);
                seen.insert(moment.unwrap_or_else(|| panic!("cut at {end}: {said:?}")));
            }
            Err(error) => panic!("cut at {end}: {error}"),
        }
        fs::remove_dir_all(&at).unwrap();
    }
    assert!(seen.len() > 20, "the cuts reach {seen:?} of {} moments", told.len());
}

#[test]
fn a_broken_file_gives_way_to_its_backup_and_what_is_lost_is_named() {
    let dir = tempfile::tempdir().unwrap();
    {
        let store = Store::open(dir.path()).unwrap().store;
        insert(&store, 0);
        store.back_up().unwrap();
        let job = insert(&store, 1);
        append(&store, &job, 1);
    }
    let path = dir.path().join("state.db");
    let page: i64 = Connection::open(&path)
        .unwrap()
        .query_row("SELECT rootpage FROM sqlite_schema WHERE name = 'pieces'", [], |r| r.get(0))
        .unwrap();
    let mut bytes = fs::read(&path).unwrap();
    bytes[(page as usize - 1) * 4096..page as usize * 4096].fill(0xa5);
    fs::write(&path, bytes).unwrap();
    let opened = Store::open(dir.path()).unwrap();
    assert_eq!(opened.notes.len(), 1);
    assert!(opened.notes[0].contains("1 jobs are lost [job-1]"), "{:?}", opened.notes);
    let ids: Vec<String> = all(&opened.store).into_iter().map(|job| job.id).collect();
    assert_eq!(ids, ["job-0"]);
    assert!(dir.path().join("state.broken").exists(), "what was there is kept");
}

#[test]
fn a_missing_file_beside_a_backup_is_restored_from_it() {
    let dir = tempfile::tempdir().unwrap();
    {
        let store = Store::open(dir.path()).unwrap().store;
        insert(&store, 0);
        store.back_up().unwrap();
        insert(&store, 1);
    }
    for end in ["", "-wal", "-shm"] {
        let _ = fs::remove_file(dir.path().join(format!("state.db{end}")));
    }
    let opened = Store::open(dir.path()).unwrap();
    assert!(opened.notes[0].contains("it is missing"), "{:?}", opened.notes);
    let ids: Vec<String> = all(&opened.store).into_iter().map(|job| job.id).collect();
    assert_eq!(ids, ["job-0"]);
}

#[test]
fn a_job_is_kept_by_the_time_that_the_machine_was_up() {
    let dir = tempfile::tempdir().unwrap();
    let keep_ms = 1000;
    {
        // It ended in 1970: the clock was not set yet, and will be when it is looked at next.
        let store = Store::open(dir.path()).unwrap().store;
        let mut job = insert(&store, 0);
        assert!(change(&store, &mut job, "done"));
        assert_eq!(store.purge_jobs(600, keep_ms, 1 << 30).unwrap(), 0);
    }
    let store = Store::open(dir.path()).unwrap().store;
    assert_eq!(store.purge_jobs(999, keep_ms, 1 << 30).unwrap(), 0);
    let mut job = all(&store).remove(0);
    assert!(change(&store, &mut job, "queued") && change(&store, &mut job, "done"));
    assert_eq!(store.purge_jobs(1, keep_ms, 1 << 30).unwrap(), 0, "it was asked for again");
    assert_eq!(store.purge_jobs(999, keep_ms, 1 << 30).unwrap(), 0);
    assert_eq!(store.purge_jobs(1, keep_ms, 1 << 30).unwrap(), 1);
}

#[test]
fn pieces_that_have_no_place_cost_nobody_elses() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap().store;
    let mut jobs: Vec<JobRow> = (0..3).map(|i| insert(&store, i)).collect();
    jobs.iter_mut().for_each(|job| assert!(change(&store, job, "running")));
    let of_before = Append { revision: jobs[1].revision - 1, ..piece(&jobs[1], 1) };
    let of_nobody = Append { n: 99, ..piece(&jobs[2], 1) };
    append(&store, &jobs[2], 7);
    let taken = piece(&jobs[2], 7);
    let rows = vec![piece(&jobs[0], 1), of_before, of_nobody, taken, piece(&jobs[2], 8)];
    let put = store.append_pieces(rows).unwrap();
    assert_eq!(put, [true, false, false, false, true]);
    let ends = |job: &JobRow| {
        let rows = store.job_pieces(job, 1, 0).unwrap();
        rows.into_iter().map(|row| row.end).collect::<Vec<i64>>()
    };
    assert_eq!(jobs.iter().map(ends).collect::<Vec<_>>(), [vec![1], vec![], vec![7, 8]]);
}

#[test]
fn pieces_take_room_while_a_job_runs_and_when_it_is_over() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap().store;
    let n_bytes = || store.job_counts().unwrap().iter().map(|count| count.n_bytes).sum::<i64>();
    let mut job = insert(&store, 0);
    assert!(change(&store, &mut job, "running"));
    let before = n_bytes();
    append(&store, &job, 1);
    let one = n_bytes() - before;
    assert!(one > 7, "its text and the seal: {one}");
    append(&store, &job, 2);
    assert_eq!(n_bytes(), before + 2 * one);
    assert!(change(&store, &mut job, "queued"));
    assert_eq!(n_bytes(), before + 2 * one);
    let limits = QueueLimits { n_max: 10, bytes_max: n_bytes() + 50 };
    let full = store.insert_job(new_job(1), limits).unwrap();
    assert!(matches!(full, Insert::Full(Full::Bytes(n)) if n == n_bytes()), "{full:?}");
}

#[test]
fn what_waits_may_take_half_of_the_room() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap().store;
    let heavy = |i: usize| NewJobRow { body: vec![b'x'; 400], ..new_job(i) };
    let limits = QueueLimits { n_max: 10, bytes_max: 2000 };
    let put = |i: usize| match store.insert_job(heavy(i), limits).unwrap() {
        Insert::New(job) => Some(job),
        Insert::Full(Full::Bytes(_)) => None,
        other => panic!("{other:?}"),
    };
    let mut first = put(0).unwrap();
    assert!(put(1).is_some());
    assert!(put(2).is_none(), "half is taken");
    assert!(change(&store, &mut first, "done"));
    assert!(put(3).is_some(), "the other half is for what is over");
}

#[test]
fn no_change_of_the_file_is_taken_for_sound_data() {
    let dir = tempfile::tempdir().unwrap();
    let told = {
        let store = Store::open(dir.path()).unwrap().store;
        live(&store, |_| {});
        said(&store)
    };
    let bytes = fs::read(dir.path().join("state.db")).unwrap();
    let mut random = random();
    let (mut n_whole, mut n_refused) = (0, 0);
    for round in 0..60 {
        let mut bytes = bytes.clone();
        match round % 4 {
            0 => bytes.truncate(random(bytes.len())),
            1 => bytes[..16].fill(0),
            _ => (0..1 + random(40)).for_each(|_| {
                let i = random(bytes.len());
                bytes[i] ^= 1 << random(8);
            }),
        }
        let at = tempfile::tempdir().unwrap();
        copy(dir.path(), at.path());
        fs::write(at.path().join("state.db"), &bytes).unwrap();
        let Ok(opened) = Store::open(at.path()) else {
            n_refused += 1;
            continue;
        };
        // What opens says what was said, or that it does not open.
        let store = &opened.store;
        let Ok(jobs) = store.jobs(&JobFilter { n_max: 1000, ..JobFilter::default() }) else {
            n_refused += 1;
            continue;
        };
        for job in jobs {
            let Ok(body) = store.job_body(&job) else { continue };
            let body = String::from_utf8(body).unwrap();
            assert!(told.iter().any(|line| line.contains(&body)), "{body}");
        }
        n_whole += 1;
    }
    assert!(n_refused > 10 && n_whole + n_refused == 60, "{n_whole} whole, {n_refused} refused");
}

#[test]
fn one_process_has_it_and_nothing_is_in_the_clear() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap().store;
    assert!(matches!(Store::open(dir.path()), Err(StoreError::Locked { .. })));
    live(&store, |_| {});
    store.back_up().unwrap();
    drop(store);
    for entry in fs::read_dir(dir.path()).unwrap() {
        let entry = entry.unwrap();
        let bytes = fs::read(entry.path()).unwrap();
        assert!(!bytes.windows(6).any(|w| w == b"secret"), "{:?}", entry.path());
        use std::os::unix::fs::MetadataExt;
        assert_eq!(entry.metadata().unwrap().mode() & 0o077, 0, "{entry:?}");
    }
    fs::remove_file(dir.path().join("device.key")).unwrap();
    assert!(matches!(Store::open(dir.path()), Err(StoreError::Foreign { .. })));
}

#[test]
fn a_migration_is_whole_or_has_not_happened_and_a_newer_file_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state.db");
    {
        let store = Store::open(dir.path()).unwrap().store;
        insert(&store, 0);
    }
    let mut connection = Connection::open(&path).unwrap();
    let (now, next) = (schema::NEWEST, schema::NEWEST + 1);
    let with = |step| [&schema::STEPS[..], &[step]].concat();
    let broken = with("CREATE TABLE more (x); SELECT broken");
    assert!(schema::migrate_by(&mut connection, &broken).is_err());
    assert_eq!(schema::version(&connection).unwrap(), now);
    let works = with("CREATE TABLE more (x)");
    open::update_by(&mut connection, dir.path(), &works).unwrap();
    assert_eq!(schema::version(&connection).unwrap(), next);
    let before = Connection::open(dir.path().join(format!("state.{next}.before"))).unwrap();
    assert_eq!(schema::version(&before).unwrap(), now, "a checked copy of what was");
    drop(connection);
    let bytes = fs::read(&path).unwrap();
    let error = Store::open(dir.path()).map(|_| ()).unwrap_err();
    let is_newer =
        matches!(error, StoreError::TooNew { found, known, .. } if found == next && known == now);
    assert!(is_newer, "{error}");
    assert_eq!(fs::read(&path).unwrap(), bytes);
}

#[test]
fn an_export_comes_back_as_it_was_and_twice_is_once() {
    let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let store = Store::open(dir.path()).unwrap().store;
    live(&store, |_| {});
    let mut lines = Vec::new();
    let n_row = store.export(ExportFormat::JsonLines, &mut lines).unwrap();
    let theirs = Store::open(other.path()).unwrap().store;
    let imported = theirs.import(&lines[..]).unwrap();
    assert_eq!((imported.n_added, imported.n_known), (n_row, 0));
    assert_eq!(said(&theirs), said(&store), "under another device's key");
    assert_eq!(theirs.import(&lines[..]).unwrap().n_known, n_row);
    let wrong = theirs.import(&b"{\"table\": \"jobs\", \"row\": {\"x\": 1}}\n"[..]).unwrap_err();
    assert!(matches!(wrong, StoreError::Line { line: 1, .. }), "{wrong}");
    let mut sql = Vec::new();
    store.export(ExportFormat::Sql, &mut sql).unwrap();
    let mut plain = Connection::open_in_memory().unwrap();
    schema::migrate(&mut plain).unwrap();
    plain.execute_batch(&String::from_utf8(sql).unwrap()).unwrap();
    let n: i64 = plain.query_row("SELECT count(*) FROM pieces", [], |row| row.get(0)).unwrap();
    assert_eq!(n, 12);
}

#[test]
fn what_is_over_makes_room_and_what_waits_stays() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap().store;
    live(&store, |_| {});
    let waiting = insert(&store, 9);
    assert_eq!(store.purge_jobs(0, 100, 1 << 30).unwrap(), 0);
    let n_bytes: i64 = store.job_counts().unwrap().iter().map(|count| count.n_bytes).sum();
    assert_eq!(store.purge_jobs(99, 100, n_bytes / 2).unwrap(), 3, "the oldest go");
    assert_eq!(store.purge_jobs(1, 100, 1 << 30).unwrap(), 1);
    assert_eq!(all(&store).into_iter().map(|job| job.id).collect::<Vec<_>>(), [waiting.id]);
}

/// Bytes that this thread has written.
fn n_written() -> u64 {
    let text = fs::read_to_string("/proc/thread-self/io").unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("wchar: "));
    line.unwrap().trim().parse().unwrap()
}

/// The budget of docs/jobs.md: a day in which jobs write without a pause.
#[test]
fn a_busy_day_stays_within_the_budget_of_writes() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = connection::writer(&dir.path().join("state.db")).unwrap();
    schema::migrate(&mut writer).unwrap();
    let mut job = new_job(0);
    job.body = vec![b'x'; 2000];
    let sealed = vec![0; 2048];
    jobs::insert(&writer, &job, &sealed, LIMITS).unwrap();
    let n_commit = 2000;
    // 20 tokens a commit, as 10 tokens a second are.
    let row = |i: i64| PieceRow { epoch: 1, end: 20 * i, pieces: vec![0; 600] };
    let before = n_written();
    for i in 1..=n_commit {
        writer.execute_batch("BEGIN IMMEDIATE").unwrap();
        assert!(jobs::put_pieces(&writer, 1, 0, &row(i), &row(i).pieces).unwrap());
        writer.execute_batch("COMMIT").unwrap();
    }
    let per_commit = (n_written() - before) / n_commit as u64;
    let per_day_mb = per_commit * (24 * 3600 / 2) / 1_000_000;
    println!("{per_commit} bytes a commit, {per_day_mb} MB a day");
    assert!(per_day_mb <= 600, "{per_day_mb} MB a day");
}

/// A newer program migrated the store and was given up.
#[test]
fn a_store_of_a_newer_program_goes_back_to_its_copy_and_what_that_loses_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let newer = STATE_SCHEMA + 1;
    let none = |found: Result<Option<String>, StoreError>| assert_eq!(found.unwrap(), None);
    none(go_back(dir.path(), STATE_SCHEMA));
    assert_eq!(keep_before(dir.path(), newer).unwrap(), None, "there is no store");
    let store = Store::open(dir.path()).unwrap().store;
    insert(&store, 1);
    let locked = keep_before(dir.path(), newer).unwrap_err();
    assert!(matches!(locked, StoreError::Locked { .. }), "{locked}");
    drop(store);
    assert_eq!(keep_before(dir.path(), STATE_SCHEMA).unwrap(), None, "nothing is migrated");
    let kept = keep_before(dir.path(), newer).unwrap().unwrap();
    let store = Store::open(dir.path()).unwrap().store;
    insert(&store, 2);
    drop(store);
    none(go_back(dir.path(), STATE_SCHEMA));
    let migrate = || {
        let steps = [&schema::STEPS[..], &["CREATE TABLE newer (n INTEGER) STRICT"]].concat();
        let mut writer = connection::writer(&connection::file(dir.path())).unwrap();
        open::update_by(&mut writer, dir.path(), &steps).unwrap();
    };
    let jobs = || {
        let store = Store::open(dir.path()).unwrap().store;
        [1, 2].map(|i| store.job(&format!("job-{i}")).unwrap().is_some())
    };
    migrate();
    assert!(matches!(Store::open(dir.path()), Err(StoreError::TooNew { .. })));
    let said = go_back(dir.path(), STATE_SCHEMA).unwrap().unwrap();
    assert!(said.contains("0 jobs are lost"), "the migration's own copy is newer: {said}");
    assert_eq!(jobs(), [true, true]);
    migrate();
    fs::remove_file(dir.path().join(format!("state.{newer}.before"))).unwrap();
    let said = go_back(dir.path(), STATE_SCHEMA).unwrap().unwrap();
    assert!(said.contains("1 jobs are lost [job-2]"), "{said}");
    assert_eq!(jobs(), [true, false]);
    assert!(dir.path().join("state.newer").exists(), "for whoever wants to look");
    migrate();
    for copy in [kept, dir.path().join(format!("state.{newer}.before"))] {
        fs::write(copy, "no store").unwrap();
    }
    let error = go_back(dir.path(), STATE_SCHEMA).unwrap_err();
    assert!(matches!(error, StoreError::TooNew { .. }), "{error}");
}
