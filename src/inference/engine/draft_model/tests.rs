//! The draft model by itself, on a runner that notes what it was given.

use std::sync::{Arc, Mutex};

use super::*;
use crate::inference::engine::runner::FnRunner;

const N_VOCAB: usize = 20;
const EOG: TokenId = 19;

/// A pass's spans: first page, position, tokens.
type Pass = Vec<(PageIdx, usize, Vec<TokenId>)>;
type Passes = Arc<Mutex<Vec<Pass>>>;

/// A model that says the next number; how sure it is falls with the number. It has three places of
/// two pages, contexts of 40 positions, passes of 16 tokens.
fn counter() -> (DraftModel, Passes) {
    let passes = Passes::default();
    let noted = Arc::clone(&passes);
    let runner = FnRunner::boxed(move |batch| {
        batch.check(16, N_VOCAB, 6)?;
        let mut start = 0;
        let mut pass = Vec::new();
        for span in batch.spans {
            let tokens = batch.tokens[start..start + span.n_tokens].to_vec();
            pass.push((span.pages[0], span.pos, tokens));
            start += span.n_tokens;
        }
        noted.lock().unwrap().push(pass);
        let row = |&i: &u32| {
            let next = batch.tokens[i as usize] as usize + 1;
            let mut row = vec![0.0; N_VOCAB];
            row[next.min(N_VOCAB - 1)] = (N_VOCAB - next) as f32 / 2.0;
            row
        };
        Ok(batch.outputs.iter().map(row).collect())
    });
    (DraftModel::new(runner, 3, 40, 16, N_VOCAB, vec![EOG]), passes)
}

struct Wish(usize, Vec<TokenId>, usize);

/// Drafts for each wish (place, tokens, most guesses), and the passes that it took.
fn drafts(
    (draft, passes): &mut (DraftModel, Passes),
    wishes: &[Wish],
    set: impl Fn(&mut Ask<'_>),
) -> (Vec<Vec<TokenId>>, Vec<Pass>) {
    let mut drafts = vec![Vec::new(); wishes.len()];
    let ask = |(wish, draft)| {
        let Wish(slot_idx, tokens, n_max): &Wish = wish;
        let (slot_idx, n_max) = (*slot_idx, *n_max);
        let mut ask = Ask { slot_idx, tenant: None, tokens, n_max, n_min: 0, p_min: 0.0, draft };
        set(&mut ask);
        ask
    };
    let mut asks: Vec<Ask<'_>> = wishes.iter().zip(&mut drafts).map(ask).collect();
    draft.draft(&mut asks, 8).unwrap();
    (drafts, std::mem::take(&mut *passes.lock().unwrap()))
}

#[test]
fn one_pass_serves_every_sequence_and_only_what_is_new_runs() {
    let mut counter = counter();
    let wishes = [Wish(0, vec![1, 2, 3], 3), Wish(2, vec![7], 2), Wish(1, vec![5, 5], 0)];
    let (guesses, passes) = drafts(&mut counter, &wishes, |_| {});
    assert_eq!(guesses, [vec![4, 5, 6], vec![8, 9], vec![]]);
    assert_eq!(passes.len(), 3);
    assert_eq!(passes[0], [(4, 0, vec![7]), (2, 0, vec![5, 5]), (0, 0, vec![1, 2, 3])]);
    assert_eq!(passes[1], [(4, 1, vec![8]), (0, 3, vec![4])]);
    assert_eq!(passes[2], [(0, 4, vec![5])]);
    // All right, so what was guessed last is new with the token behind it; one right; none.
    let wishes = [Wish(0, vec![1, 2, 3, 4, 5, 6, 7], 1), Wish(2, vec![7, 8, 3], 1)];
    let (guesses, passes) = drafts(&mut counter, &wishes, |_| {});
    assert_eq!(guesses, [vec![8], vec![4]]);
    assert_eq!(passes, [[(4, 2, vec![3]), (0, 5, vec![6, 7])]]);
    let (_, passes) = drafts(&mut counter, &[Wish(2, vec![7, 1], 1)], |_| {});
    assert_eq!(passes, [[(4, 1, vec![1])]]);
}

#[test]
fn a_place_is_read_anew_where_its_beginning_is_not_to_be_known() {
    let mut counter = counter();
    let wish = [Wish(0, vec![1, 2, 3], 1)];
    drafts(&mut counter, &wish, |_| {});
    let (_, passes) = drafts(&mut counter, &wish, |_| {});
    assert_eq!(passes, [[(0, 2, vec![3])]], "the last token runs for its logits");
    let (_, passes) = drafts(&mut counter, &wish, |ask| ask.tenant = Some(1));
    assert_eq!(passes, [[(0, 0, vec![1, 2, 3])]]);
    counter.0.forget(0);
    let (_, passes) = drafts(&mut counter, &wish, |ask| ask.tenant = Some(1));
    assert_eq!(passes, [[(0, 0, vec![1, 2, 3])]]);
}

#[test]
fn a_draft_ends_where_it_is_unsure_too_short_or_at_an_end() {
    let wish = [Wish(0, vec![10], 9)];
    let all = drafts(&mut counter(), &wish, |_| {}).0.remove(0);
    assert_eq!(all, [11, 12, 13, 14, 15, 16, 17, 18], "nothing follows the end of an answer");
    // exp(4.5) against nine others is 0.91; exp(4) is 0.86.
    let sure = drafts(&mut counter(), &wish, |ask| ask.p_min = 0.9).0.remove(0);
    assert_eq!(sure, [11]);
    let none = |ask: &mut Ask<'_>| (ask.p_min, ask.n_min) = (0.9, 2);
    assert!(drafts(&mut counter(), &wish, none).0[0].is_empty());
}

#[test]
fn a_long_prompt_is_read_in_parts_and_holds_nobody_up() {
    let mut counter = counter();
    let long: Vec<TokenId> = (0..20).map(|i| i % 7).collect();
    let wishes = [Wish(0, long.clone(), 2), Wish(1, vec![1, 2], 2)];
    let (guesses, passes) = drafts(&mut counter, &wishes, |_| {});
    assert_eq!(guesses, [vec![], vec![3, 4]]);
    assert_eq!(passes[0], [(2, 0, vec![1, 2]), (0, 0, long[..6].to_vec())]);
    let (guesses, _) = drafts(&mut counter, &wishes[..1], |_| {});
    assert!(guesses[0].is_empty());
    let (guesses, passes) = drafts(&mut counter, &wishes[..1], |_| {});
    assert_eq!((guesses, passes[0][0].1), (vec![vec![6, 7]], 14));
}

#[test]
fn what_it_cannot_read_it_does_not_guess_for() {
    // A token that only the model knows, a place that it has not, a context longer than its own.
    let beyond = [Wish(0, vec![1, 25, 2], 2), Wish(9, vec![1], 2)];
    let (guesses, passes) = drafts(&mut counter(), &beyond, |_| {});
    assert_eq!((guesses, passes), (vec![vec![], vec![]], vec![vec![(0, 0, vec![1])]]));
    let mut counter = counter();
    let mut long: Vec<TokenId> = (0..39).map(|i| i % 7).collect();
    (0..5).for_each(|_| drop(drafts(&mut counter, &[Wish(0, long.clone(), 0)], |_| {})));
    let (guesses, _) = drafts(&mut counter, &[Wish(0, long.clone(), 5)], |_| {});
    assert_eq!(guesses, [vec![4, 5]], "two fit: what follows position 38, and what follows 39");
    long.extend([1, 2, 3]);
    let (guesses, _) = drafts(&mut counter, &[Wish(0, long, 5)], |_| {});
    assert!(guesses[0].is_empty());
}

#[test]
fn the_likeliest_token_and_how_likely_among_ten() {
    assert_eq!(likeliest(&[0.0, 2.0, 2.0]).0, 1, "the first of equals");
    let (token, p) = likeliest(&[1.0; 32]);
    assert_eq!((token, p), (0, 0.1));
    assert_eq!(likeliest(&[f32::NEG_INFINITY, 3.0]), (1, 1.0));
    assert_eq!(likeliest(&[f32::NAN, f32::NAN]).0, 0);
}
