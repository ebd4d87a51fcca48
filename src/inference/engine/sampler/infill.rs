//! The infill step: fills a gap with what is certain, and ends it in time.
//!
//! ```text
//! 1  the end is likely enough                 -> only tokens that end the text
//! 2  `re`, `ret`, `return`                    -> one candidate with their probabilities together
//! 3  tokens below 0.2 go, ends stay           -> nothing but ends left: the end of turn
//! 4  tokens below an equal share with the end go, ends stay
//! ```
//!
//! As llama.cpp's step of that name, which its editor plugins put after top-k and top-p. The draw
//! after it looks at logits, so what was joined in 2 decides only who stays. Joining compares every
//! candidate with every other; a chain without a cut before gives this step the highest
//! [`INFILL_CANDIDATES_MAX`] only.

use super::candidates::{Candidate, Candidates};
use crate::base::limits::INFILL_CANDIDATES_MAX;
use crate::inference::tokenizer::Tokenizer;

/// A candidate needs this probability to stay.
const P_MIN: f32 = 0.2;

/// Leaves the candidates that a gap can be filled with.
pub fn infill(c: &mut Candidates, tokenizer: &Tokenizer) {
    c.sort();
    c.softmax();
    let is_end = |candidate: &Candidate| tokenizer.is_eog(candidate.id);
    let (mut p_text, mut p_end) = (0.0f32, 0.0f32);
    for candidate in &c.list {
        *(if is_end(candidate) { &mut p_end } else { &mut p_text }) += candidate.p;
    }
    if 3.0 * p_end * c.list.len() as f32 > p_text {
        c.list.retain(is_end);
        return;
    }
    c.list.truncate(INFILL_CANDIDATES_MAX);
    join(&mut c.list, tokenizer);
    c.list.retain(|candidate| candidate.p >= P_MIN || is_end(candidate));
    let n_text = c.list.iter().filter(|candidate| !is_end(candidate)).count();
    if n_text == 0 {
        let special = tokenizer.special();
        // A vocabulary without an end keeps what there is: none of it is an end then.
        if let Some(id) = special.eot.or(special.eos) {
            c.list.clear();
            c.list.push(Candidate { id, logit: 1.0, p: 1.0 });
        }
        return;
    }
    normalize(&mut c.list);
    let share = 1.0 / (n_text + 1) as f32;
    c.list.retain(|candidate| candidate.p >= share || is_end(candidate));
    normalize(&mut c.list);
}

/// Gives each candidate's probability to a likelier one that begins alike, or that it begins.
fn join(list: &mut [Candidate], tokenizer: &Tokenizer) {
    for i in 0..list.len() {
        let short = tokenizer.token_bytes(list[i].id, false);
        for j in 0..list.len() {
            if list[i].logit == f32::NEG_INFINITY {
                break;
            }
            let long = tokenizer.token_bytes(list[j].id, false);
            let is_gone = list[j].logit == f32::NEG_INFINITY;
            if i == j || is_gone || short.is_empty() || !long.starts_with(short) {
                continue;
            }
            let (into, from) = if list[j].p > list[i].p { (j, i) } else { (i, j) };
            list[into].p += list[from].p;
            list[from].logit = f32::NEG_INFINITY;
            list[from].p = 0.0;
        }
    }
}

fn normalize(list: &mut [Candidate]) {
    let sum: f32 = list.iter().map(|candidate| candidate.p).sum();
    list.iter_mut().for_each(|candidate| candidate.p /= sum);
}
