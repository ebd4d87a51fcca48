//! Files between two nodes over real stores: by calls, by a stick, and what becomes of them.

use std::io::Cursor;

use serde_json::json;

use super::store::{Side, acts, answer, body, change, exchange, open, pair, submit};
use crate::base::limits::SYNC_ACTS_MAX;
use crate::sync::{BlobId, Imported, Progress, Spool, Told};

/// Calls of `a` about blobs until none moves; how many pieces came to it.
fn haul(a: &Side, b: &Side) -> usize {
    a.sync.note_wants().unwrap();
    b.sync.note_wants().unwrap();
    let (mut asked, mut n_kept) = (Vec::new(), 0);
    for _ in 0..50 {
        let said = a.sync.haul_ask(b.sync.node(), &asked).unwrap();
        let answer = b.sync.haul_answer(a.sync.node(), &said).unwrap();
        let (hauled, wants) = a.sync.haul_hear(b.sync.node(), &answer).unwrap();
        n_kept += usize::from(hauled.is_kept);
        if !hauled.is_kept && wants == asked {
            return n_kept;
        }
        asked = wants;
    }
    panic!("they go on and on");
}

fn random_text(n: usize) -> Vec<u8> {
    (0..n as u64).map(|i| b'a' + (i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 60) as u8).collect()
}

#[test]
fn files_travel_both_ways_by_calls_of_one_side_and_by_a_stick() {
    let (home, pc_home) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (a, b) = (open(home.path()), open(pc_home.path()));
    pair(&a, &b);
    let (bundle, report) = (random_text(5 << 19), random_text(77));
    let of_b = b.sync.send_file(&mut Cursor::new(&bundle), "repo.bundle", "bundle").unwrap();
    let of_a = a.sync.send_file(&mut Cursor::new(&report), "r.json", "report").unwrap();
    exchange(&a, &b);
    let names = |side: &Side| -> Vec<(String, Progress)> {
        let mut files: Vec<_> =
            side.sync.files().unwrap().into_iter().map(|f| (f.name, f.progress)).collect();
        files.sort_by(|x, y| x.0.cmp(&y.0));
        files
    };
    assert_eq!(names(&a)[1], ("repo.bundle".into(), Progress::Absent), "it is known of");
    assert_eq!(haul(&a, &b), 4, "the outline and three pieces");
    let read = |side: &Side, id| {
        let mut bytes = Vec::new();
        side.sync.vault().take_out(&id, &mut bytes).unwrap().map(|_| bytes)
    };
    assert!(read(&a, of_b) == Some(bundle) && read(&b, of_a) == Some(report));
    assert!(names(&a).iter().chain(&names(&b)).all(|file| file.1 == Progress::Whole));
    // By a stick, where the two do not reach each other.
    let model = random_text(3 << 20);
    let id = a.sync.send_file(&mut Cursor::new(&model), "m.gguf", "model").unwrap();
    let mut file = Vec::new();
    assert_eq!(a.sync.export(&mut file).unwrap(), 1);
    assert_eq!(a.sync.export_files(&mut file).unwrap(), 2);
    let told = b.sync.import(&mut &file[..]).unwrap();
    assert_eq!((told.n_applied, told.blobs.len(), told.n_missing()), (1, 2, 0));
    assert_eq!(read(&b, id), Some(model));
    assert_eq!(b.sync.import(&mut &file[..]).unwrap().n_applied, 0, "twice is once");
}

#[test]
fn a_text_beyond_an_entry_travels_beside_it() {
    let (home, pc_home) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (a, b) = (open(home.path()), open(pc_home.path()));
    pair(&a, &b);
    let job = submit(&a, "job-1");
    let text = String::from_utf8(random_text(3 << 19)).unwrap();
    let text = json!({ "content": text }).to_string().into_bytes();
    answer(&a, &job, text.clone());
    exchange(&b, &a);
    let known = body(&b, "job", "job-1");
    assert_eq!(known["answer_bytes"], json!(text.len()));
    assert_eq!(haul(&b, &a), 3);
    let id = BlobId::read(known["answer_blob"]["id"].as_str().unwrap()).unwrap();
    let mut read = Vec::new();
    b.sync.vault().take_out(&id, &mut read).unwrap();
    assert!(read == text);
    // It goes by itself where room is needed, on both sides, so it is no file that is kept.
    assert!([&a, &b].iter().all(|side| side.sync.vault().kept().is_empty()));
}

fn send(side: &Side, name: &str, text: &[u8]) -> BlobId {
    side.sync.send_file(&mut Cursor::new(text), name, "file").unwrap()
}

#[test]
fn a_stick_brings_all_its_files_and_says_which_it_does_not() {
    let (home, pc_home) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (a, b) = (open(home.path()), open(pc_home.path()));
    pair(&a, &b);
    // More than a message asks for, than its entries ask for at a time, and than a message has.
    let ids: Vec<BlobId> =
        (0..100).map(|n| send(&a, &format!("f{n}"), format!("file {n}").as_bytes())).collect();
    let mut file = Vec::new();
    a.sync.export(&mut file).unwrap();
    assert_eq!(a.sync.export_files(&mut file).unwrap(), 100);
    let told = b.sync.import(&mut &file[..]).unwrap();
    assert_eq!((told.n_applied, told.blobs.len(), told.n_missing()), (100, 100, 0));
    assert!(ids.iter().all(|id| b.sync.vault().is_whole(id)));
    // What its reader let go is not taken, and that is said.
    assert!(b.sync.vault().drop_blob(&ids[7]));
    let told = b.sync.import(&mut &file[..]).unwrap();
    assert_eq!((told.n_applied, told.n_missing()), (0, 1));
    assert_eq!(told.blobs.get(&ids[7]), Some(&false));
    assert_eq!(Imported::default().n_missing(), 0);
}

#[test]
fn what_has_no_place_yet_keeps_no_job_from_being_taken_back() {
    let (home, pc_home) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (a, b) = (open(home.path()), open(pc_home.path()));
    pair(&a, &b);
    submit(&a, "job-1");
    exchange(&a, &b);
    let ids: Vec<BlobId> =
        (0..=SYNC_ACTS_MAX).map(|n| send(&b, &format!("f{n}"), &n.to_le_bytes())).collect();
    b.sync.change(change("job", "job-1", json!({"state": "cancelled"}))).unwrap();
    exchange(&a, &b);
    // A folder that cannot be written, as on a full disk.
    let blobs = home.path().join("blobs");
    std::fs::write(&blobs, "").unwrap();
    let looks = [(); 3].map(|()| a.sync.note_wants().unwrap());
    let found: Vec<&str> = looks.iter().flatten().map(|act| act.key()).collect();
    assert_eq!(found, ["job-1"], "behind {} that wait", ids.len());
    a.sync.acted(looks.into_iter().flatten().collect()).unwrap();
    // And what waited is wanted once it can be.
    std::fs::remove_file(&blobs).unwrap();
    while !acts(&a).is_empty() {
        a.sync.note_wants().unwrap();
    }
    assert_eq!(a.sync.vault().wanted().len(), ids.len());
}

#[test]
fn a_file_that_another_one_replaced_goes_and_what_is_kept_is_shown() {
    let (home, pc_home) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (a, b) = (open(home.path()), open(pc_home.path()));
    pair(&a, &b);
    let (old, other) = (send(&a, "repo", b"monday"), send(&a, "other", b"the same"));
    assert_eq!(send(&a, "third", b"the same"), other);
    exchange(&a, &b);
    haul(&b, &a);
    let new = send(&a, "repo", b"tuesday");
    send(&a, "third", b"another");
    exchange(&a, &b);
    haul(&b, &a);
    for side in [&a, &b] {
        let mut kept: Vec<BlobId> = side.sync.vault().kept().iter().map(|(id, _)| *id).collect();
        kept.retain(|id| [old, other, new].contains(id));
        kept.sort();
        let mut meant = [other, new];
        meant.sort();
        assert_eq!(kept, meant, "what another name has as well stays, the old one may go");
        assert!(side.sync.vault().is_whole(&old), "as long as nothing needs its room");
    }
    // What no record names is shown, so that it can be dropped.
    let alone = open(tempfile::tempdir().unwrap().path());
    let id = send(&alone, "x", b"nobody hears of it");
    let files = alone.sync.files().unwrap();
    assert_eq!((files.len(), files[0].id, files[0].what.as_str()), (1, id, "kept"));
    assert_eq!((files[0].n_bytes, &files[0].progress), (18, &Progress::Whole));
}

#[test]
fn a_job_is_taken_back_where_it_may_run_and_as_it_was_when_somebody_looked() {
    let (home, pc_home) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (a, b) = (open(home.path()), open(pc_home.path()));
    pair(&a, &b);
    submit(&a, "job-1");
    exchange(&a, &b);
    // Its owner takes it back: the other side has nothing to do.
    a.sync.change(change("job", "job-1", json!({"state": "cancelled"}))).unwrap();
    exchange(&a, &b);
    assert_eq!(body(&b, "job", "job-1")["state"], "cancelled");
    assert!(acts(&b).is_empty(), "it does not run there");
    // Between a look and its end something newer is told.
    submit(&a, "job-2");
    exchange(&a, &b);
    b.sync.change(change("job", "job-2", json!({"state": "cancelled"}))).unwrap();
    exchange(&a, &b);
    let looked = a.sync.note_wants().unwrap();
    assert_eq!(looked.iter().map(|act| act.key()).collect::<Vec<_>>(), ["job-2"]);
    b.sync.change(change("job", "job-2", json!({"state": "cancelled", "again": 1}))).unwrap();
    exchange(&a, &b);
    a.sync.acted(looked.clone()).unwrap();
    assert_eq!(acts(&a), ["job-2"], "what came meanwhile asks for itself");
    a.sync.acted(a.sync.note_wants().unwrap()).unwrap();
    assert!(acts(&a).is_empty());
}

#[test]
fn what_cannot_be_kept_is_not_told_and_what_is_told_is_told_once() {
    let (home, pc_home) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (a, b) = (open(home.path()), open(pc_home.path()));
    pair(&a, &b);
    let id = send(&a, "first", b"text");
    exchange(&a, &b);
    let told = Told {
        kind: "file".into(),
        name: "second".into(),
        body: json!({"id": id, "n_bytes": 4, "what": "file"}),
    };
    Spool::new(home.path()).put(&told).unwrap();
    // Its note cannot be written, as on a full disk: a folder has its name.
    let note = home.path().join(format!("blobs/{id}.note"));
    std::fs::remove_file(&note).unwrap();
    std::fs::create_dir(&note).unwrap();
    assert!((0..3).all(|_| a.sync.take_in_spool().is_err()));
    assert_eq!(body(&a, "file", &format!("{}/second", a.sync.node())), json!(null));
    std::fs::remove_dir(&note).unwrap();
    assert_eq!((a.sync.take_in_spool().unwrap(), a.sync.take_in_spool().unwrap()), (1, 0));
    exchange(&a, &b);
    assert_eq!(b.sync.files().unwrap().len(), 2);
}

#[test]
fn what_another_process_let_go_of_is_let_go_of_here() {
    let (home, pc_home) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (a, b) = (open(home.path()), open(pc_home.path()));
    pair(&a, &b);
    send(&b, "repo", b"text");
    exchange(&a, &b);
    a.sync.note_wants().unwrap();
    assert_eq!((a.sync.vault().wanted().len(), a.sync.part().unwrap().len()), (1, 0));
    assert!(a.store.delete_peer(b.sync.node()).unwrap());
    assert_eq!(a.sync.part().unwrap(), [b.sync.node()]);
    assert!(a.sync.vault().wanted().is_empty(), "it would never come");
    assert!(a.sync.part().unwrap().is_empty(), "once");
}
