//! Blobs under a network that cuts and changes bytes, and disks that lose and fill.

use std::collections::BTreeMap;
use std::io::Cursor;
use std::path::Path;

use super::haul::{Ask, Haul, Hold, Want, hear, speak};
use super::tree::{BlobId, Outline, PIECE_BYTES};
use super::vault::{Keep, Progress, Vault};
use crate::base::limits::SYNC_WANTS_MAX;
use crate::sync::tests::random::Random;

/// Wants of a vault.
const N_WANT: usize = 64;

fn bytes_of(seed: u64, n: usize) -> Vec<u8> {
    let mut random = Random(seed);
    std::iter::repeat_with(|| random.next().to_le_bytes()).flatten().take(n).collect()
}

#[derive(Debug, PartialEq, Eq)]
struct Full;

/// Blobs in memory, on a disk that fills and forgets the end of what it was given. It asks for one
/// at a time, so that one that does not come stands before all others if anything lets it.
#[derive(Clone, Default)]
struct Memory {
    whole: BTreeMap<BlobId, (Vec<u8>, Vec<u8>)>,
    wants: Vec<Want>,
    /// How often each was put off.
    n_off: BTreeMap<BlobId, u32>,
    outlines: BTreeMap<BlobId, Vec<u8>>,
    parts: BTreeMap<BlobId, Vec<u8>>,
    room: Option<usize>,
    n_finish: usize,
}

impl Memory {
    fn take(&mut self, n: usize) -> Result<(), Full> {
        match &mut self.room {
            Some(room) if *room < n => Err(Full),
            Some(room) => {
                *room -= n;
                Ok(())
            }
            None => Ok(()),
        }
    }
}

impl Hold for Memory {
    type Error = Full;

    fn wants(&mut self, _: &str) -> Result<Vec<Want>, Full> {
        let n_off = |want: &&Want| self.n_off.get(&want.id).copied();
        Ok(self.wants.iter().min_by_key(n_off).copied().into_iter().collect())
    }

    fn want_of(&mut self, _: &str, id: &BlobId) -> Result<Option<Want>, Full> {
        Ok(self.wants.iter().find(|want| want.id == *id).copied())
    }

    fn outline(&mut self, id: &BlobId) -> Result<Option<Vec<u8>>, Full> {
        Ok(self.outlines.get(id).cloned())
    }

    fn put_outline(&mut self, id: &BlobId, outline: &[u8]) -> Result<(), Full> {
        self.take(outline.len())?;
        self.outlines.insert(*id, outline.to_vec());
        Ok(())
    }

    fn n_here(&mut self, id: &BlobId, outline: &Outline) -> Result<u64, Full> {
        let n = self.parts.get(id).map_or(0, Vec::len) as u64;
        match n == outline.n_bytes() && (n > 0 || self.parts.contains_key(id)) {
            true => Ok(outline.n_piece()),
            false => Ok((n / PIECE_BYTES as u64).min(outline.n_piece() - 1)),
        }
    }

    fn append(&mut self, id: &BlobId, i: u64, piece: &[u8]) -> Result<(), Full> {
        self.take(piece.len())?;
        let part = self.parts.entry(*id).or_default();
        part.truncate(i as usize * PIECE_BYTES);
        part.extend_from_slice(piece);
        Ok(())
    }

    fn finish(&mut self, id: &BlobId, outline: &Outline) -> Result<bool, Full> {
        self.n_finish += 1;
        let part = self.parts.get_mut(id).unwrap();
        let pieces: Vec<&[u8]> = part.chunks(PIECE_BYTES).collect();
        let wrong = pieces.iter().enumerate().find(|(i, piece)| !outline.holds(*i as u64, piece));
        if let Some((i, _)) = wrong {
            part.truncate(i * PIECE_BYTES);
            return Ok(false);
        }
        let whole = self.parts.remove(id).unwrap();
        self.whole.insert(*id, (outline.write(), whole));
        self.wants.retain(|want| want.id != *id);
        Ok(true)
    }

    fn give(&mut self, ask: &Ask) -> Result<Option<Vec<u8>>, Full> {
        let Some((outline, bytes)) = self.whole.get(&ask.id) else { return Ok(None) };
        let Some(i) = ask.piece else { return Ok(Some(outline.clone())) };
        let from = i as usize * PIECE_BYTES;
        let to = bytes.len().min(from + PIECE_BYTES);
        Ok(bytes.get(from..to).map(<[u8]>::to_vec))
    }

    fn put_off(&mut self, _: &str, id: &BlobId, _: &str) -> Result<(), Full> {
        *self.n_off.entry(*id).or_default() += 1;
        Ok(())
    }
}

fn put(memory: &mut Memory, bytes: Vec<u8>) -> Want {
    let (id, outline) = Outline::of_reader(&mut &bytes[..]).unwrap();
    let n_bytes = bytes.len() as u64;
    memory.whole.insert(id, (outline.write(), bytes));
    Want { id, n_bytes }
}

/// What nobody has.
fn lost() -> Want {
    Want { id: BlobId::of(b"gone"), n_bytes: 4 }
}

/// Two who want something of each other, one of them perhaps also what the other let go; and what
/// each is to get.
fn both(seed: u64, random: &mut Random) -> ([Memory; 2], Vec<(usize, Want)>) {
    let mut sides = [Memory::default(), Memory::default()];
    let mut all = Vec::new();
    for i in [0, 1] {
        for n in 0..1 + random.below(2) {
            let n_piece = random.below(3) as usize;
            let n_bytes = n_piece * PIECE_BYTES + random.below(3) as usize * 333;
            let want = put(&mut sides[i], bytes_of(seed * 64 + 2 * n + i as u64, n_bytes));
            sides[1 - i].wants.push(want);
            all.push((1 - i, want));
        }
    }
    if random.percent(50) {
        sides[random.below(2) as usize].wants.insert(0, lost());
    }
    (sides, all)
}

/// A run of one seed: the calls of `a` carry what both want.
fn run(seed: u64) -> (usize, usize) {
    let mut random = Random(seed);
    let (mut sides, all) = both(seed, &mut random);
    let (mut n_call, mut n_fault) = (0, 0);
    let mut asked: [Vec<Ask>; 2] = Default::default();
    let mut kept: Vec<Vec<u8>> = Vec::new();
    while all.iter().any(|(i, want)| !sides[*i].whole.contains_key(&want.id)) {
        n_call += 1;
        assert!(n_call < 400, "seed {seed}: they do not come to an end");
        let is_calm = n_call > 40;
        for from in [0, 1] {
            let to = 1 - from;
            // A disk that is full says so; what was to be written comes again.
            let Ok(haul) = speak(&mut sides[from], "peer", &asked[from]) else { continue };
            let mut bytes = haul.write();
            match random.below(if is_calm { 100 } else { 10 }) {
                0 => continue,
                1 => bytes.truncate(random.below(bytes.len() as u64) as usize),
                2 => {
                    let at = random.below(bytes.len() as u64) as usize;
                    bytes[at] ^= 1 << random.below(8);
                }
                3 if !kept.is_empty() => {
                    bytes = kept[random.below(kept.len() as u64) as usize].clone();
                }
                4 => {
                    // The power goes: the disk forgets some of the end, or what stood there.
                    let n = random.below(PIECE_BYTES as u64) as usize;
                    for part in sides[to].parts.values_mut() {
                        part.truncate(part.len().saturating_sub(n));
                        let at = part.len().saturating_sub(1 + n % 7);
                        part[at..].fill(0);
                    }
                }
                5 => sides[to].room = Some(random.below(2 * PIECE_BYTES as u64) as usize),
                n => {
                    n_fault -= 1;
                    if n == 6 || is_calm {
                        sides[to].room = None;
                    }
                }
            }
            n_fault += 1;
            if kept.len() < 6 {
                kept.push(bytes.clone());
            }
            let Ok(heard) = Haul::read(&bytes) else { continue };
            asked[to] = heard.wants.clone();
            let _ = hear(&mut sides[to], "peer", &heard);
        }
        for side in &sides {
            for (id, (_, bytes)) in &side.whole {
                assert_eq!(BlobId::of(bytes), *id, "seed {seed}: what is visible is right");
            }
        }
    }
    assert!(sides.iter().flat_map(|side| &side.wants).all(|want| *want == lost()));
    (n_call, n_fault as usize)
}

#[test]
fn what_becomes_visible_is_whole_and_right_whatever_happens_on_the_way() {
    let (n_seed, mut sum) = (130, (0, 0));
    for seed in 0..n_seed {
        let (n_call, n_fault) = run(seed);
        sum = (sum.0 + n_call, sum.1 + n_fault);
    }
    println!("{n_seed} seeds: {} calls, {} faults", sum.0, sum.1);
    assert!(sum.1 > n_seed as usize, "faults happen");
}

/// The canary: what is given is believed.
#[test]
fn a_machine_that_does_not_look_at_what_comes_would_be_found_out() {
    let bytes = bytes_of(7, PIECE_BYTES + 9);
    let (mut giver, mut taker) = (Memory::default(), Memory::default());
    let want = put(&mut giver, bytes);
    taker.wants.push(want);
    let mut ask = speak(&mut taker, "a", &[]).unwrap().wants;
    hear(&mut taker, "a", &speak(&mut giver, "b", &ask).unwrap()).unwrap();
    ask = speak(&mut taker, "a", &[]).unwrap().wants;
    let mut wrong = speak(&mut giver, "b", &ask).unwrap();
    wrong.gives.as_mut().unwrap().1[99] ^= 1;
    let hauled = hear(&mut taker, "a", &wrong).unwrap();
    assert!(hauled.is_wrong && !hauled.is_kept && taker.parts.is_empty());
    // Had it been kept all the same, the look at the whole cuts it back.
    let piece = wrong.gives.unwrap().1;
    taker.append(&want.id, 0, &piece).unwrap();
    for _ in 0..4 {
        let asked = speak(&mut taker, "a", &[]).unwrap().wants;
        hear(&mut taker, "a", &speak(&mut giver, "b", &asked).unwrap()).unwrap();
    }
    assert!(taker.n_finish >= 2 && taker.whole.contains_key(&want.id));
}

fn vault(dir: &Path) -> Vault {
    Vault::open(dir).unwrap().bounded(64 << 20, N_WANT)
}

/// One call of `a`, as it is after a restart; whether something came. `cut` is the message that is
/// cut: 0 is the call, 1 the answer.
fn call(homes: [&Path; 2], asked: &mut Vec<Ask>, cut: Option<u64>) -> bool {
    let [mut a, mut b] = homes.map(vault);
    let said = speak(&mut a, "b", asked).unwrap().write();
    if cut == Some(0) {
        assert!(Haul::read(&said[..said.len() / 2]).is_err());
        return false;
    }
    let said = Haul::read(&said).unwrap();
    hear(&mut b, "a", &said).unwrap();
    let answer = speak(&mut b, "a", &said.wants).unwrap().write();
    if cut == Some(1) {
        // What is cut has the wrong length, whatever stands in its first line.
        let cut = Haul::read(&answer[..answer.len() - 1]);
        return cut.is_ok_and(|haul| hear(&mut a, "b", &haul).unwrap().is_kept);
    }
    let answer = Haul::read(&answer).unwrap();
    *asked = answer.wants.clone();
    hear(&mut a, "b", &answer).unwrap().is_kept
}

#[test]
fn a_file_goes_on_where_it_was_cut_at_every_message() {
    let n_piece = 5;
    let bytes = bytes_of(3, (n_piece - 1) * PIECE_BYTES + 77);
    for at in 0..=n_piece {
        for which in [0, 1] {
            let homes = [(); 2].map(|()| tempfile::tempdir().unwrap());
            let paths = homes.each_ref().map(|home| home.path());
            let (id, n_bytes) =
                vault(paths[1]).put(&mut Cursor::new(bytes.clone()), false).unwrap();
            vault(paths[0]).want("b", Want { id, n_bytes }, Keep::default()).unwrap();
            let mut asked = Vec::new();
            let mut n_kept = 0;
            for n in 0..=n_piece + 1 {
                let cut = (n == at).then_some(which);
                n_kept += usize::from(call(paths, &mut asked, cut));
            }
            assert_eq!(n_kept, n_piece + 1, "the outline and each piece once, cut at {at}");
            let mut read = Vec::new();
            assert_eq!(vault(paths[0]).take_out(&id, &mut read).unwrap(), Some(n_bytes));
            assert!(read == bytes && vault(paths[0]).wanted().is_empty());
            // It is sealed on both disks.
            let whole = std::fs::read(paths[0].join(format!("blobs/{id}"))).unwrap();
            assert!(!whole.windows(16).any(|part| part == &bytes[..16]));
        }
    }
}

/// The power went before its want did, or its owner put it in.
#[test]
fn what_is_here_does_not_come_once_more() {
    let bytes = bytes_of(5, 2 * PIECE_BYTES);
    let homes = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let paths = homes.each_ref().map(|home| home.path());
    let (id, n_bytes) = vault(paths[1]).put(&mut Cursor::new(&bytes), false).unwrap();
    vault(paths[0]).want("b", Want { id, n_bytes }, Keep::default()).unwrap();
    let mut asked = Vec::new();
    for _ in 0..2 {
        assert!(call(paths, &mut asked, None));
    }
    let [part, want] = ["part", "want"].map(|end| paths[0].join(format!("blobs/{id}.{end}")));
    assert!(part.is_file() && want.is_file());
    vault(paths[0]).put(&mut Cursor::new(&bytes), false).unwrap();
    assert!(!call(paths, &mut asked, None), "nothing is asked for");
    assert!(!part.exists() && !want.exists() && vault(paths[0]).is_whole(&id));
}

#[test]
fn a_torn_or_changed_part_is_cut_back_and_comes_again() {
    let bytes = bytes_of(9, 3 * PIECE_BYTES);
    let homes = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let paths = homes.each_ref().map(|home| home.path());
    let (id, n_bytes) = vault(paths[1]).put(&mut Cursor::new(bytes), false).unwrap();
    vault(paths[0]).want("b", Want { id, n_bytes }, Keep::default()).unwrap();
    let part = paths[0].join(format!("blobs/{id}.part"));
    let mut asked = Vec::new();
    for _ in 0..3 {
        assert!(call(paths, &mut asked, None));
    }
    let torn = std::fs::read(&part).unwrap();
    std::fs::write(&part, &torn[..torn.len() - 5]).unwrap();
    assert!(call(paths, &mut asked, None), "the second piece again");
    let mut changed = std::fs::read(&part).unwrap();
    changed[PIECE_BYTES / 2] ^= 1;
    std::fs::write(&part, changed).unwrap();
    assert!(call(paths, &mut asked, None), "the last one");
    assert!(!vault(paths[0]).is_whole(&id), "the first one is not what it should be");
    for _ in 0..3 {
        call(paths, &mut asked, None);
    }
    assert!(vault(paths[0]).is_whole(&id));
    // What was changed later does not come out, nor is it given to anybody.
    let whole = paths[0].join(format!("blobs/{id}"));
    let mut changed = std::fs::read(&whole).unwrap();
    changed[7] ^= 1;
    std::fs::write(&whole, changed).unwrap();
    assert!(vault(paths[0]).take_out(&id, &mut Vec::new()).is_err());
    assert_eq!(vault(paths[0]).give(&Ask { id, piece: Some(0) }).unwrap(), None);
}

#[test]
fn what_has_no_room_waits_and_says_why_and_what_passes_makes_room() {
    let homes = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let paths = homes.each_ref().map(|home| home.path());
    let small = |path: &Path| Vault::open(path).unwrap().bounded(3 << 20, N_WANT);
    let mut giver = vault(paths[1]);
    let ids: Vec<Want> = (0..3)
        .map(|seed| {
            let bytes = bytes_of(seed, 2 * PIECE_BYTES);
            let (id, n_bytes) = giver.put(&mut Cursor::new(bytes), false).unwrap();
            Want { id, n_bytes }
        })
        .collect();
    let mut taker = small(paths[0]);
    let text = bytes_of(50, PIECE_BYTES + 5);
    let (text, _) = taker.put(&mut Cursor::new(text), true).unwrap();
    assert!(ids.iter().all(|want| taker.want("b", *want, Keep::default()).unwrap()));
    let mut call = |taker: &mut Vault| {
        let said = speak(taker, "b", &[]).unwrap();
        hear(taker, "b", &speak(&mut giver, "a", &said.wants).unwrap()).unwrap();
        said.wants.len()
    };
    assert_eq!(call(&mut taker), 1, "the others wait for room");
    assert!(!taker.is_whole(&text), "what may go went");
    call(&mut taker);
    call(&mut taker);
    let first = taker.wanted().len();
    assert_eq!(first, 2, "one is here");
    assert_eq!(call(&mut taker), 0);
    let whole: Vec<&Want> = ids.iter().filter(|want| taker.is_whole(&want.id)).collect();
    let waits = ids.iter().find(|want| !taker.is_whole(&want.id)).unwrap();
    let Progress::Coming { why: Some(why), .. } = taker.progress(&waits.id) else { panic!() };
    assert!(why.contains("sync drop"), "{why}");
    assert!(taker.put(&mut Cursor::new(bytes_of(60, 2 << 20)), true).is_err());
    assert!(taker.drop_blob(&whole[0].id) && !taker.drop_blob(&whole[0].id));
    for _ in 0..3 {
        call(&mut taker);
    }
    assert_eq!(taker.wanted().len(), 1, "the next one has come");
    taker.forget("b");
    assert_eq!(taker.wanted(), []);
}

#[test]
fn what_the_other_side_let_go_is_told_and_nothing_unwanted_is_taken() {
    let homes = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let [mut taker, mut giver] = homes.each_ref().map(|home| vault(home.path()));
    let (id, n_bytes) = giver.put(&mut Cursor::new(bytes_of(1, 10)), false).unwrap();
    let gone = Want { id: BlobId::of(b"gone"), n_bytes: 4 };
    taker.want("b", gone, Keep::default()).unwrap();
    let asked = speak(&mut taker, "b", &[]).unwrap();
    let told = speak(&mut giver, "a", &asked.wants).unwrap();
    assert_eq!(told.lacks, [gone.id]);
    hear(&mut taker, "b", &told).unwrap();
    let Progress::Coming { why: Some(why), .. } = taker.progress(&gone.id) else { panic!() };
    assert!(why.contains("does not have it"), "{why}");
    let given = giver.give(&Ask { id, piece: Some(0) }).unwrap().unwrap();
    let unwanted = Haul { gives: Some((Ask { id, piece: Some(0) }, given)), ..Haul::default() };
    assert!(!hear(&mut taker, "b", &unwanted).unwrap().is_kept);
    assert_eq!(taker.progress(&id), Progress::Absent);
    // Nor is it taken from somebody else than it is wanted of.
    taker.want("c", Want { id, n_bytes }, Keep::default()).unwrap();
    assert!(!hear(&mut taker, "b", &unwanted).unwrap().is_kept);
    assert!(hear(&mut taker, "c", &unwanted).unwrap().is_kept && taker.is_whole(&id));
    let many = vec![Ask { id, piece: None }; SYNC_WANTS_MAX + 1];
    assert!(Haul::read(&Haul { wants: many, ..Haul::default() }.write()).is_err());
    for text in ["", "\n", "{}", "{\"wants\": 3}\n"] {
        assert!(Haul::read(text.as_bytes()).is_err(), "{text:?}");
    }
}

/// A vault with a file for each text of `texts`, and a vault that wants each of `wants` of it.
fn pair_of_vaults(
    homes: &[tempfile::TempDir; 2],
    texts: &[&[u8]],
    wants: &[Want],
) -> (Vault, Vault, Vec<Want>) {
    let [taker, giver] = homes.each_ref().map(|home| vault(home.path()));
    wants.iter().for_each(|want| assert!(taker.want("b", *want, Keep::default()).unwrap()));
    let put = |text: &&[u8]| {
        let (id, n_bytes) = giver.put(&mut Cursor::new(text.to_vec()), false).unwrap();
        let want = Want { id, n_bytes };
        assert!(taker.want("b", want, Keep::default()).unwrap());
        want
    };
    let given = texts.iter().map(put).collect();
    (taker, giver, given)
}

/// Calls of the taker, one after the other.
fn calls(taker: &mut Vault, giver: &mut Vault, n: usize) {
    for _ in 0..n {
        let said = speak(taker, "b", &[]).unwrap();
        hear(taker, "b", &speak(giver, "a", &said.wants).unwrap()).unwrap();
    }
}

fn gone(n: usize) -> Vec<Want> {
    (0..n).map(|n| Want { id: BlobId::of(&n.to_le_bytes()), n_bytes: 8 }).collect()
}

#[test]
fn what_was_let_go_keeps_no_other_file_from_coming() {
    let homes = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let wants = gone(2 * SYNC_WANTS_MAX);
    let (mut taker, mut giver, given) = pair_of_vaults(&homes, &[b"behind them"], &wants);
    calls(&mut taker, &mut giver, 3);
    assert!(taker.is_whole(&given[0].id));
    // Nor does it keep its room, or its place.
    let (mut small, mut giver) = (vault(homes[0].path()).bounded(1 << 20, N_WANT), giver);
    let large = Want { id: BlobId::of(b"large"), n_bytes: 900 << 10 };
    assert!(small.want("b", large, Keep::default()).unwrap());
    calls(&mut small, &mut giver, 1);
    let (id, n_bytes) = giver.put(&mut Cursor::new(bytes_of(5, 800 << 10)), false).unwrap();
    assert!(small.want("b", Want { id, n_bytes }, Keep::default()).unwrap());
    calls(&mut small, &mut giver, 1);
    assert!(small.is_whole(&id));
    let more = gone(N_WANT + 1);
    assert!(more.iter().all(|want| small.want("b", *want, Keep::default()).unwrap()));
    assert_eq!(small.wanted().len(), N_WANT);
    // And it comes if it is there again.
    let (id, _) = giver.put(&mut Cursor::new(N_WANT.to_le_bytes()), false).unwrap();
    calls(&mut small, &mut giver, 2 * N_WANT / SYNC_WANTS_MAX);
    assert!(small.is_whole(&id));
}

#[test]
fn wants_beyond_the_bound_are_told_and_not_dropped() {
    let home = tempfile::tempdir().unwrap();
    let taker = vault(home.path());
    let wants = gone(N_WANT + 1);
    let mut has_place = wants.iter().map(|want| taker.want("b", *want, Keep::default()).unwrap());
    assert!(has_place.by_ref().take(N_WANT).all(|has_place| has_place));
    assert_eq!(has_place.next(), Some(false), "all the others may still come");
}

#[test]
fn a_file_that_is_damaged_at_its_sender_keeps_no_other_from_coming() {
    let homes = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let texts = [bytes_of(1, PIECE_BYTES + 9), bytes_of(2, 99)];
    let texts = texts.each_ref().map(Vec::as_slice);
    let (mut taker, mut giver, given) = pair_of_vaults(&homes, &texts, &[]);
    let outline = homes[1].path().join(format!("blobs/{}.outline", given[0].id));
    let whole = std::fs::read(&outline).unwrap();
    let mut damaged = whole.clone();
    damaged[3] ^= 1;
    std::fs::write(&outline, damaged).unwrap();
    calls(&mut taker, &mut giver, 2);
    assert!(taker.is_whole(&given[1].id));
    let Progress::Coming { why: Some(_), .. } = taker.progress(&given[0].id) else { panic!() };
    std::fs::write(&outline, whole).unwrap();
    calls(&mut taker, &mut giver, 3);
    assert!(taker.is_whole(&given[0].id), "it comes once it can");
    // One whose entry says another length never can be right, and says so.
    let (id, n_bytes) = giver.put(&mut Cursor::new(bytes_of(3, 2 * PIECE_BYTES)), false).unwrap();
    let wrong = Want { id, n_bytes: n_bytes + PIECE_BYTES as u64 };
    taker.want("b", wrong, Keep::default()).unwrap();
    let (id, n_bytes) = giver.put(&mut Cursor::new(bytes_of(4, 99)), false).unwrap();
    taker.want("b", Want { id, n_bytes }, Keep::default()).unwrap();
    calls(&mut taker, &mut giver, 2);
    assert!(taker.is_whole(&id));
    let Progress::Coming { why: Some(why), .. } = taker.progress(&wrong.id) else { panic!() };
    assert!(why.contains("not this file"), "{why}");
}

#[test]
fn what_can_never_fit_throws_nothing_away() {
    let homes = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let (mut taker, _, _) = pair_of_vaults(&homes, &[], &[]);
    let passing: Vec<BlobId> = (0..3)
        .map(|seed| taker.put(&mut Cursor::new(bytes_of(seed, 99)), true).unwrap().0)
        .collect();
    for n_bytes in [65 << 20, 20 << 30, u64::MAX] {
        taker.want("b", Want { id: BlobId::of(b"large"), n_bytes }, Keep::default()).unwrap();
        assert_eq!(taker.wants("b").unwrap(), []);
        let Progress::Coming { why: Some(why), .. } = taker.progress(&BlobId::of(b"large")) else {
            panic!()
        };
        assert!(why.contains("64 MiB"), "{why}");
        assert!(passing.iter().all(|id| taker.is_whole(id)), "{n_bytes}");
        taker.drop_blob(&BlobId::of(b"large"));
    }
    let small = vault(homes[0].path()).bounded(1 << 20, N_WANT);
    let too_large = small.put(&mut Cursor::new(bytes_of(9, 2 << 20)), false).unwrap_err();
    assert_eq!(too_large.kind(), std::io::ErrorKind::FileTooLarge);
    // What stays leaves no room for this, though what passes has some.
    let kept = small.put(&mut Cursor::new(bytes_of(8, 600 << 10)), false).unwrap().0;
    let too_much = small.put(&mut Cursor::new(bytes_of(9, 500 << 10)), false).unwrap_err();
    assert_eq!(too_much.kind(), std::io::ErrorKind::StorageFull);
    assert!(passing.iter().all(|id| small.is_whole(id)) && small.is_whole(&kept));
}

#[test]
fn what_is_a_file_as_well_does_not_pass_and_what_is_none_any_more_does() {
    let home = tempfile::tempdir().unwrap();
    let own = vault(home.path()).bounded(1 << 20, N_WANT);
    let text = bytes_of(1, 400 << 10);
    let (id, n_bytes) = own.put(&mut Cursor::new(text.clone()), true).unwrap();
    assert_eq!(own.kept(), []);
    own.put(&mut Cursor::new(text), false).unwrap();
    own.keep(&id, Keep::named("nano/x")).unwrap();
    assert_eq!((own.kept(), own.named()), (vec![(id, n_bytes)], vec![("nano/x".into(), id)]));
    assert!(own.put(&mut Cursor::new(bytes_of(2, 800 << 10)), false).is_err());
    own.keep(&id, Keep::passing()).unwrap();
    own.put(&mut Cursor::new(bytes_of(2, 800 << 10)), false).unwrap();
    assert!(!own.is_whole(&id));
}
