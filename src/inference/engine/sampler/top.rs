//! The same token from a row's largest logits alone, where the others cannot change it.
//!
//! ```text
//! lead     bias, penalties, forbidden ends, a temperature      what comes before the first cut
//! cut      the best, the k highest, or all within min-p        the first that drops tokens
//! rest     as ever, on what the cut left
//! ```
//!
//! A GPU gives away a few of a row's largest logits for a small part of what the whole row costs.
//! They are enough where two things are certain. What the row holds beyond them is at most as
//! high as the last of them, and the lead lowers logits or scales all, so the cut's members are
//! known once all of them are above that. And no two of them are equal: in what order equals
//! stand, and which of them stay, follows from the whole row (`sort`). Where either is not
//! certain the caller is told to bring the row, and nothing has been spent: no random number and
//! no memory of the text.

use super::candidates::{Candidate, Candidates, LOGIT_MAX};
use super::{Sampler, Step};
use crate::inference::tokenizer::{TokenId, Tokenizer};

/// What the first cut keeps.
#[derive(Clone, Copy, Debug)]
enum Cut {
    /// So many of the highest. Of a chain that ends in the likeliest token, one: the cuts between
    /// keep it whatever else they keep.
    Highest(usize),
    /// Those within this distance of the highest, if they are at least so many.
    Near(f32, usize),
}

/// The beginning of a chain.
#[derive(Clone, Copy, Debug)]
struct Lead {
    /// Steps before the cut.
    n_steps: usize,
    cut: Cut,
    /// Tokens that those steps may lower by more than others.
    n_lowered: usize,
}

impl Sampler {
    /// How many of a row's largest logits [`Sampler::sample_top`] wants, at most `n_max`, where
    /// `n_forbidden` tokens are not to be chosen; 0 if it takes all of them.
    pub fn n_top(&self, n_forbidden: usize, n_max: usize) -> usize {
        let Some(lead) = self.lead() else { return 0 };
        let n = match lead.cut {
            // One more shows that the last that stays is above all that go.
            Cut::Highest(k) if k < n_max => k.saturating_add(1 + lead.n_lowered + n_forbidden),
            Cut::Highest(_) => return 0,
            Cut::Near(..) => n_max,
        };
        let n = n.min(n_max);
        if n < self.n_vocab { n } else { 0 }
    }

    /// Chooses the token that [`Sampler::sample_text`] chooses from the whole row, with every
    /// token of `forbidden` at minus infinity. `top` is (token, logit) of the row's largest, from
    /// the largest. `None` if they do not tell.
    pub fn sample_top(
        &mut self,
        top: &[(TokenId, f32)],
        forbidden: &[TokenId],
        tokenizer: Option<&Tokenizer>,
    ) -> Option<TokenId> {
        let lead = self.lead()?;
        // Logits are cut at the limit, so those above it would become equals.
        let (first, mut floor) = (top.first()?.1, top.last()?.1);
        if first >= LOGIT_MAX {
            return None;
        }
        let c = &mut self.candidates;
        c.load_some(top, self.n_vocab);
        let is_forbidden = |c: &&mut Candidate| forbidden.contains(&c.id);
        c.list.iter_mut().filter(is_forbidden).for_each(|c| c.logit = f32::NEG_INFINITY);
        for step in &mut self.steps[..lead.n_steps] {
            match step {
                Step::Bias(biases) => {
                    for c in &mut c.list {
                        let its = biases.iter().filter(|(token, _)| *token == c.id);
                        its.for_each(|(_, bias)| c.logit += bias);
                    }
                }
                Step::Temperature(temperature) => {
                    floor /= temperature.temp;
                    temperature.apply(c);
                }
                step => step.apply(c, tokenizer),
            }
        }
        c.list.sort_by(|a, b| b.logit.total_cmp(&a.logit).then(a.id.cmp(&b.id)));
        lead.cut.certain(c, floor)?;
        Some(self.rest_of_chain(lead.n_steps, tokenizer))
    }

    /// The beginning of the chain, if it has a cut whose members can be certain.
    fn lead(&self) -> Option<Lead> {
        if !self.draw.is_weighted() {
            return None;
        }
        let mut n_lowered = 0;
        for (n_steps, step) in self.steps.iter().enumerate() {
            let is_greedy = is_greedy(&self.steps[n_steps..]);
            let cut = match step {
                _ if is_greedy => Cut::Highest(1),
                Step::TopK(k) => Cut::Highest(*k),
                Step::MinP(p, min_keep) => Cut::Near(p.ln(), *min_keep),
                Step::Bias(biases) if biases.iter().all(|(_, bias)| *bias <= 0.0) => {
                    n_lowered += biases.len();
                    continue;
                }
                Step::Penalties(penalties) if penalties.only_lower() => {
                    n_lowered += penalties.n_last();
                    continue;
                }
                Step::Temperature(t) if t.range <= 0.0 && t.temp > 0.0 => continue,
                _ => return None,
            };
            return Some(Lead { n_steps, cut, n_lowered });
        }
        None
    }
}

/// Whether these steps leave the highest logit alone, if only one is the highest: cuts that keep
/// it, and a temperature of 0.
fn is_greedy(steps: &[Step]) -> bool {
    let is_zero =
        |step: &Step| matches!(step, Step::Temperature(t) if t.range <= 0.0 && t.temp <= 0.0);
    let keeps_it = |step: &Step| {
        let is_cut =
            matches!(step, Step::TopK(_) | Step::TopP(..) | Step::MinP(..) | Step::TopNSigma(_));
        is_cut || is_zero(step)
    };
    steps.iter().any(is_zero) && steps.iter().all(keeps_it)
}

impl Cut {
    /// Leaves what the cut keeps of a whole row, of which `list` has the highest, sorted; every
    /// other is at most `floor`. `None` if that is not certain.
    fn certain(self, c: &mut Candidates, floor: f32) -> Option<()> {
        let list = &mut c.list;
        match self {
            Cut::Highest(k) => {
                let last = list.get(k - 1)?.logit;
                let next = list.get(k).map_or(floor, |c| c.logit.max(floor));
                let is_above = |pair: &[Candidate]| pair[0].logit > pair[1].logit;
                if !(list[..k].windows(2).all(is_above) && last > next) {
                    return None;
                }
                list.truncate(k);
                c.sorted = true;
            }
            Cut::Near(distance, min_keep) => {
                let min = list.first()?.logit + distance;
                let n = list.iter().filter(|c| c.logit >= min).count();
                if !(floor < min && n > 0 && n >= min_keep) {
                    return None;
                }
                // They stay in the vocabulary's order, so that equals do not matter.
                list.truncate(n);
                list.sort_by_key(|c| c.id);
                c.sorted = false;
            }
        }
        Some(())
    }
}
