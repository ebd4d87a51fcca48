//! Updates over a folder: good ones, bad ones, ones that crash, and the power that goes anywhere.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::disk::Disk;
use super::*;
use crate::base::limits::{
    UPDATE_FREE_BYTES_MIN, UPDATE_SETTLE_S, UPDATE_STARTS_MAX, UPDATE_TRIAL_S,
};

const TARGET: &str = "x86_64-unknown-linux-gnu";
const PACKAGED: &[u8] = b"the package's program";

fn version(text: &str) -> Version {
    Version::read(text).unwrap()
}

/// A machine with a package of version 1, and whoever makes releases for it.
struct World {
    dir: tempfile::TempDir,
}

impl World {
    fn new() -> World {
        let world = World { dir: tempfile::tempdir().unwrap() };
        fs::create_dir(world.path("bin")).unwrap();
        fs::write(world.path("bin/jetforge"), PACKAGED).unwrap();
        let key = SecretKey::make(&world.path("secret")).unwrap();
        fs::write(world.path("update.keys"), key.public_line("release")).unwrap();
        world
    }

    /// The same machine once more.
    fn copy(&self) -> World {
        fn copy(from: &Path, to: &Path) {
            for entry in fs::read_dir(from).unwrap() {
                let (entry, kind) = entry.map(|e| (e.path(), e.file_type().unwrap())).unwrap();
                let to = to.join(entry.file_name().unwrap());
                if kind.is_symlink() {
                    std::os::unix::fs::symlink(fs::read_link(entry).unwrap(), to).unwrap();
                } else if kind.is_dir() {
                    fs::create_dir(&to).unwrap();
                    copy(&entry, &to);
                } else {
                    fs::copy(entry, to).unwrap();
                }
            }
        }
        let world = World { dir: tempfile::tempdir().unwrap() };
        copy(self.dir.path(), world.dir.path());
        world
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn slots(&self) -> Slots {
        let package = Package { dir: self.path("bin"), version: version("1"), state_schema: 4 };
        Slots::new(&self.path("update"), package)
    }

    fn keys(&self) -> TrustedKeys {
        TrustedKeys::read(&self.path("update.keys")).unwrap()
    }

    /// A release in one file.
    fn release(&self, text: &str) -> PathBuf {
        self.release_of(text, 4)
    }

    fn release_of(&self, text: &str, state_schema: i64) -> PathBuf {
        let program = self.path("built");
        fs::write(&program, program_of(text)).unwrap();
        let mut manifest = Manifest::new(version(text), TARGET.to_owned(), version("2.27"));
        manifest.state_schema = state_schema;
        let to = self.path(&format!("jetforge-{text}.update"));
        let key = SecretKey::read(&self.path("secret")).unwrap();
        write_bundle(&program, manifest, &key, &to).unwrap();
        to
    }

    fn apply(&self, slots: &Slots, file: &Path) -> Result<Slot, UpdateError> {
        slots.install(&Bundle::open(file, &self.keys())?)
    }

    /// The program that the unit would start, after what it runs before.
    fn start(&self) -> Vec<u8> {
        self.slots().begin().unwrap();
        fs::read(self.path("update/current/jetforge")).unwrap()
    }

    /// Brings a version to where it is kept.
    fn keep(&self, text: &str) {
        self.apply(&self.slots(), &self.release(text)).unwrap();
        self.start();
        self.slots().ready(Ok(())).unwrap();
        assert_eq!(self.watch(&[0, UPDATE_SETTLE_S]).last(), Some(&Look::Over));
        assert_eq!(self.runs(), text);
    }

    /// One watch, which looks at these seconds.
    fn watch(&self, seconds: &[u64]) -> Vec<Look> {
        let mut watch = Watch::default();
        let look = |s: &u64| self.slots().look(&mut watch, Duration::from_secs(*s)).unwrap().0;
        seconds.iter().map(look).collect()
    }

    fn runs(&self) -> String {
        let slots = self.slots();
        slots.version(slots.record().runs).unwrap().to_string()
    }

    fn why(&self) -> String {
        self.slots().record().last.map_or(String::new(), |last| last.why)
    }
}

/// What a version's program looks like; large enough to be cut in the middle.
fn program_of(text: &str) -> Vec<u8> {
    let mut bytes = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\x3e\0".to_vec();
    bytes.extend(text.bytes().cycle().take(100_000));
    bytes
}

fn ended(result: &str, code: &str, status: &str) -> Ended {
    Ended { result: result.into(), code: code.into(), status: status.into(), is_started: true }
}

#[test]
fn a_good_update_is_tried_and_kept_and_the_one_before_stays_beside_it() {
    let world = World::new();
    assert_eq!(world.start(), PACKAGED, "without any update the package's program runs");
    let slot = world.apply(&world.slots(), &world.release("2")).unwrap();
    assert_eq!(slot, Slot::A);
    assert!(world.path("update/pending").exists(), "somebody is to watch");
    assert_eq!(world.watch(&[0]), [Look::Start]);
    assert_eq!(world.watch(&[0, 1]), [Look::Wait, Look::Wait], "it is asked for once");
    assert_eq!(world.start(), program_of("2"));
    assert_eq!(world.runs(), "1", "on trial it does not count yet");
    let early = world.watch(&[0, UPDATE_SETTLE_S]);
    assert_eq!(early, [Look::Wait, Look::Wait], "started is not ready");
    world.slots().ready(Ok(())).unwrap();
    let looks = world.watch(&[5, 5 + UPDATE_SETTLE_S - 1, 5 + UPDATE_SETTLE_S]);
    assert_eq!(looks, [Look::Wait, Look::Wait, Look::Over]);
    assert_eq!((world.runs(), world.slots().record().before), ("2".into(), Some(Slot::Package)));
    assert!(!world.path("update/pending").exists());
    assert_eq!(world.start(), program_of("2"));
    world.keep("3");
    assert_eq!(world.slots().record().before, Some(Slot::A));
    world.keep("4");
    assert_eq!((world.slots().active(), world.start()), (Slot::A, program_of("4")));
    assert_eq!(world.slots().version(Slot::B), Some(version("3")), "the way back");
}

#[test]
fn what_is_not_signed_or_not_whole_changes_nothing() {
    let world = World::new();
    let whole = fs::read(world.release("2")).unwrap();
    let file = world.path("changed.update");
    let refused = |bytes: &[u8], why: &str| {
        fs::write(&file, bytes).unwrap();
        let error = world.apply(&world.slots(), &file).unwrap_err().to_string();
        assert!(error.contains(why), "{why}: {error}");
        assert_eq!(world.slots().record(), Record::default(), "{why}");
        assert_eq!(world.start(), PACKAGED, "{why}");
    };
    let mut changed = whole.clone();
    let at = whole.windows(7).position(|part| part == b"version").unwrap() + 11;
    changed[at] = b'9';
    refused(&changed, "signed is something else");
    let mut changed = whole.clone();
    let n = changed.len();
    changed[n - 5000] ^= 1;
    refused(&changed, "another SHA-256");
    for n in [0, 100, 513, 600, 1024, 1600] {
        refused(&whole[..n], "");
    }
    for n in [3000, whole.len() - 2000, whole.len() - 1024] {
        refused(&whole[..n], "");
    }
    refused(b"no archive at all", "");
    refused(&[0; 4096], "not those of an update");
    let alien = World::new();
    fs::copy(alien.release("2"), &file).unwrap();
    refused(&fs::read(&file).unwrap(), "does not know that key");
    // Two programs of the same key, mixed.
    let folder = world.path("stick");
    fs::create_dir(&folder).unwrap();
    for (name, text) in [("manifest.toml", "2"), ("manifest.sig", "2"), ("jetforge", "3")] {
        let mut bytes = Vec::new();
        let from = fs::File::open(world.release(text)).unwrap();
        crate::base::tar::read_tar(from, |entry, from| {
            if entry.name == name {
                std::io::copy(from, &mut bytes)?;
            }
            Ok(())
        })
        .unwrap();
        fs::write(folder.join(name), bytes).unwrap();
    }
    let error = world.apply(&world.slots(), &folder).unwrap_err().to_string();
    assert!(error.contains("another SHA-256"), "{error}");
    fs::write(folder.join("jetforge"), program_of("2")).unwrap();
    world.apply(&world.slots(), &folder).unwrap();
    assert_eq!(world.start(), program_of("2"), "a folder does as well");
}

#[test]
fn of_a_folder_the_newest_that_fits_is_taken_and_the_others_are_named() {
    let world = World::new();
    let fit = Fit {
        target: TARGET.to_owned(),
        glibc: Some(version("2.31")),
        runs: version("1"),
        takes_older: false,
        state_schema: 4,
        takes_state_back: false,
    };
    let find = || Bundle::find(world.dir.path(), &world.keys(), &fit);
    assert!(find().unwrap_err().to_string().contains("no file *.update"));
    for text in ["0.9", "2", "10", "3"] {
        world.release(text);
    }
    fs::write(world.path("torn.update"), "half").unwrap();
    let (bundle, passed) = find().unwrap();
    assert_eq!((bundle.manifest.version, &*bundle.signer), (version("10"), "release"));
    assert_eq!(passed.len(), 2, "{passed:?}");
    assert!(passed[0].contains("0.9 is older") && passed[1].contains("torn"), "{passed:?}");
}

#[test]
fn a_program_that_does_not_hold_is_given_up_and_what_ran_runs_again() {
    let world = World::new();
    world.keep("2");
    world.apply(&world.slots(), &world.release("3")).unwrap();
    assert_eq!(world.watch(&[0]), [Look::Start]);
    for _ in 0..UPDATE_STARTS_MAX {
        assert_eq!(world.start(), program_of("3"));
        world.slots().ended(&ended("signal", "killed", "SEGV")).unwrap();
    }
    assert_eq!(world.start(), program_of("2"));
    assert!(world.why().contains("3 starts; the last ended by: signal, killed SEGV"));
    assert_eq!(world.watch(&[9]), [Look::Over], "the unit starts it again by itself");
    assert!(!world.path("update/pending").exists());
    let last = world.slots().record().last.unwrap();
    assert_eq!((&*last.version, last.is_kept, &*last.runs), ("3", false, "2"));
    world.keep("4");
}

#[test]
fn one_that_crashes_after_it_was_ready_has_to_hold_anew() {
    let world = World::new();
    world.apply(&world.slots(), &world.release("2")).unwrap();
    assert_eq!(world.watch(&[0]), [Look::Start]);
    let (mut watch, slots) = (Watch::default(), world.slots());
    let mut look = |s: u64| slots.look(&mut watch, Duration::from_secs(s)).unwrap().0;
    world.start();
    world.slots().ready(Ok(())).unwrap();
    assert_eq!(look(10), Look::Wait);
    world.slots().ended(&ended("watchdog", "killed", "ABRT")).unwrap();
    assert_eq!(look(11), Look::Wait);
    world.start();
    world.slots().ready(Ok(())).unwrap();
    assert_eq!(look(20), Look::Wait);
    assert_eq!(look(10 + UPDATE_SETTLE_S), Look::Wait, "the first start counts for nothing");
    assert_eq!(look(20 + UPDATE_SETTLE_S), Look::Over);
    assert_eq!(world.runs(), "2");
}

#[test]
fn what_nobody_would_start_again_is_given_up_at_once() {
    let world = World::new();
    let tried = |end: &dyn Fn(&Slots)| {
        world.apply(&world.slots(), &world.release("2")).unwrap();
        assert_eq!(world.watch(&[0]), [Look::Start]);
        assert_eq!(world.start(), program_of("2"));
        end(&world.slots());
        assert_eq!(world.slots().record().trial, None);
        assert_eq!(world.start(), PACKAGED);
        world.why()
    };
    let why = tried(&|slots| {
        slots.ended(&ended("exit-code", "exited", "2")).unwrap().unwrap();
        assert_eq!(world.watch(&[1]), [Look::Start], "the unit would leave it");
    });
    assert!(why.contains("configuration"), "{why}");
    let why = tried(&|slots| drop(slots.ready(Err("/health says 500".into())).unwrap().unwrap()));
    assert!(why.contains("/health says 500"), "{why}");
    // One that loads for ever: whoever watches has enough of it.
    let why = tried(&|_| {
        assert_eq!(world.watch(&[0, UPDATE_TRIAL_S]), [Look::Wait, Look::Start]);
    });
    assert!(why.contains("600 s"), "{why}");
    // One whose bytes the card lost.
    let why = tried(&|slots| {
        let program = world.path("update/a/jetforge");
        fs::write(&program, vec![0; program_of("2").len()]).unwrap();
        slots.begin().unwrap();
    });
    assert!(why.contains("not whole"), "{why}");
    assert_eq!(world.slots().ended(&ended("signal", "killed", "9")).unwrap(), None);
}

#[test]
fn a_start_that_does_not_come_to_the_program_says_nothing_of_its_configuration() {
    let world = World::new();
    world.apply(&world.slots(), &world.release("2")).unwrap();
    for _ in 0..UPDATE_STARTS_MAX {
        assert_eq!(world.start(), program_of("2"));
        let before = Ended { is_started: false, ..ended("exit-code", "exited", "2") };
        assert_eq!(world.slots().ended(&before).unwrap(), None);
    }
    assert_eq!(world.start(), PACKAGED);
    assert!(world.why().ends_with("ended by: exit-code, before the program"), "{}", world.why());
}

#[test]
fn only_what_is_ready_in_this_start_of_the_machine_is_ready() {
    let world = World::new();
    world.apply(&world.slots(), &world.release("2")).unwrap();
    assert_eq!(world.watch(&[0]), [Look::Start]);
    let is_ready = || world.slots().record().trial.unwrap().is_ready;
    world.slots().ready(Ok(())).unwrap();
    assert!(!is_ready(), "it is the program of before that is ready");
    assert_eq!(world.slots().ready(Err("no".into())).unwrap(), None);
    world.start();
    world.slots().ready(Ok(())).unwrap();
    assert!(is_ready());
    // The power goes; whoever watches is there before the service.
    let (mut slots, mut watch) = (world.slots(), Watch::default());
    slots.boot = "the next".to_owned();
    let mut look = |s: u64| slots.look(&mut watch, Duration::from_secs(s)).unwrap().0;
    assert_eq!([look(0), look(UPDATE_SETTLE_S)], [Look::Wait; 2]);
    slots.begin().unwrap();
    slots.ready(Ok(())).unwrap();
    assert_eq!([look(100), look(100 + UPDATE_SETTLE_S)], [Look::Wait, Look::Over]);
    assert_eq!(world.runs(), "2");
}

#[test]
fn what_is_half_written_takes_no_room_from_the_next_one() {
    let begun = World::new();
    let release = begun.release("2");
    fs::create_dir_all(begun.path("update/a")).unwrap();
    for name in ["jetforge.next", "manifest.toml.next"] {
        fs::write(begun.path("update/a").join(name), program_of("1")).unwrap();
    }
    let n_bytes = program_of("2").len() as u64 + UPDATE_FREE_BYTES_MIN;
    for (n_bytes, fits) in [(n_bytes, true), (n_bytes - 1, false)] {
        let world = begun.copy();
        let mut slots = world.slots();
        slots.disk = Disk::of_size(n_bytes);
        assert_eq!(world.apply(&slots, &release).is_ok(), fits, "{n_bytes}");
    }
    // A name that is not to be had.
    let place = begun.path("folder");
    fs::create_dir(&place).unwrap();
    Disk::default().write_text(&place, b"text").unwrap_err();
    assert!(!begun.path("folder.next").exists());
}

#[test]
fn a_way_back_by_hand_leads_to_what_ran_before_and_forth_again() {
    let world = World::new();
    let back = |takes_state_back| world.slots().roll_back(takes_state_back);
    assert!(matches!(back(false), Err(UpdateError::NothingBefore)));
    world.keep("2");
    world.keep("3");
    assert!(back(false).unwrap().contains("2 runs"));
    assert_eq!(world.watch(&[0, 0]), [Look::Start, Look::Over]);
    assert_eq!(world.start(), program_of("2"));
    back(false).unwrap();
    assert_eq!(world.start(), program_of("3"), "and forth");
    world.apply(&world.slots(), &world.release("4")).unwrap();
    let busy = world.apply(&world.slots(), &world.release("5")).unwrap_err().to_string();
    assert!(busy.contains("4 is still on trial"), "{busy}");
    world.start();
    back(false).unwrap();
    assert_eq!(world.start(), program_of("3"), "out of a trial");
    // A newer state is not left without a word.
    world.apply(&world.slots(), &world.release_of("6", 5)).unwrap();
    world.start();
    world.slots().ready(Ok(())).unwrap();
    world.watch(&[0]);
    world.watch(&[0, UPDATE_SETTLE_S]);
    let schema = world.slots().state_schema(world.slots().record().runs);
    assert_eq!((&*world.runs(), schema), ("6", 5));
    assert!(back(false).unwrap_err().to_string().contains("--state-of-before"));
    assert_eq!(world.start(), program_of("6"));
    back(true).unwrap();
    assert_eq!(world.start(), program_of("3"));
}

#[test]
fn a_slot_or_a_record_that_the_card_lost_leaves_a_program_to_start() {
    let world = World::new();
    world.keep("2");
    world.keep("3");
    fs::remove_file(world.path("update/b/jetforge")).unwrap();
    assert_eq!(world.start(), program_of("2"));
    fs::remove_dir_all(world.path("update/a")).unwrap();
    assert_eq!(world.start(), PACKAGED);
    fs::write(world.path("update/record.json"), "{").unwrap();
    fs::remove_file(world.path("update/current")).unwrap();
    assert_eq!(world.start(), PACKAGED);
    fs::remove_dir_all(world.path("update")).unwrap();
    assert_eq!(world.start(), PACKAGED);
    world.keep("4");
}

#[test]
fn a_package_that_is_installed_takes_the_place_of_what_ran() {
    let world = World::new();
    world.slots().take_package().unwrap();
    assert!(!world.path("update").exists(), "a machine without updates gets no folder");
    world.keep("2");
    world.apply(&world.slots(), &world.release("3")).unwrap();
    world.slots().take_package().unwrap();
    assert_eq!((world.start(), world.slots().record().trial), (PACKAGED.to_vec(), None));
    world.slots().roll_back(false).unwrap();
    assert_eq!(world.start(), program_of("2"), "which stays the way back");
}

/// The power goes before each call that changes the disk, in everything that a machine does with
/// an update; afterwards a whole program starts, and the update can be made.
#[test]
fn wherever_the_power_goes_a_whole_program_starts_and_the_update_can_go_on() {
    type Step<'a> = (&'a str, &'a dyn Fn(&World, &Slots));
    let steps: [Step<'_>; 6] = [
        ("apply", &|world, slots| drop(world.apply(slots, &world.path("jetforge-4.update")))),
        ("begin", &|_, slots| drop(slots.begin())),
        ("ready", &|_, slots| drop(slots.ready(Ok(())))),
        ("watch", &|_, slots| {
            let mut watch = Watch::default();
            for s in [0, 1, 1 + UPDATE_SETTLE_S] {
                let _ = slots.look(&mut watch, Duration::from_secs(s));
            }
        }),
        ("back", &|_, slots| drop(slots.roll_back(false))),
        ("begin again", &|_, slots| drop(slots.begin())),
    ];
    let mut n_cuts = Vec::new();
    let begun = World::new();
    begun.keep("2");
    begun.keep("3");
    let releases = ["4", "5"].map(|text| begun.release(text));
    for cut_idx in 0..steps.len() {
        if cut_idx > 0 {
            steps[cut_idx - 1].1(&begun, &begun.slots());
        }
        for n in 0.. {
            let world = begun.copy();
            let mut slots = world.slots();
            slots.disk = Disk::cut_after(n);
            steps[cut_idx].1(&world, &slots);
            let place = format!("{}, call {n}", steps[cut_idx].0);
            // What the link leads to without any help, as the unit may find it.
            let found = fs::read(world.path("update/current/jetforge")).unwrap();
            let is_whole = |bytes: &[u8]| ["2", "3", "4"].iter().any(|v| bytes == program_of(v));
            assert!(is_whole(&found), "{place}");
            assert!(is_whole(&world.start()), "{place}: after a start");
            let record = world.slots().record();
            let is_watched = world.path("update/pending").exists();
            assert!(is_watched || record.trial.is_none(), "{place}: nobody watches");
            if record.trial.is_some() {
                world.slots().roll_back(false).unwrap();
                world.start();
            }
            assert!(["2", "3", "4"].contains(&&*world.runs()), "{place}");
            world.apply(&world.slots(), &releases[1]).unwrap();
            assert_eq!(world.start(), program_of("5"), "{place}: the next one");
            if !slots.disk.is_cut() {
                n_cuts.push(n);
                break;
            }
        }
    }
    assert!(n_cuts[0] > 15 && n_cuts.iter().all(|n| *n > 0), "it was cut: {n_cuts:?}");
}
