//! Special tokens in a text: cuts it into tokens and the stretches of plain text between them.
//!
//! The rule is llama.cpp's: the longest special text first, its places from left to right, then
//! the next one in what is left. User-defined tokens are always found; control and unknown tokens
//! only where the caller lets text mean control. Trying every special token on every text would
//! cost their product, so one pass over the text first finds which of them occur at all.

use super::TokenId;
use super::vocab::{Attr, Vocab};

/// A piece of the text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Fragment<'a> {
    Text(&'a [u8]),
    Token(TokenId),
}

struct Special {
    text: Box<str>,
    id: TokenId,
    attr: Attr,
}

/// The special tokens of a vocabulary.
pub(super) struct Partition {
    /// Sorted by text, so that those that begin alike stand together.
    specials: Vec<Special>,
    /// Whether some special text starts with the byte.
    starts: [bool; 256],
}

impl Partition {
    pub(super) fn new(vocab: &Vocab) -> Partition {
        let wanted = |attr: &Attr| attr.has(Attr::HIDDEN) || attr.has(Attr::USER_DEFINED);
        let mut specials: Vec<Special> = (0..vocab.len())
            .filter(|&id| wanted(&vocab.attrs[id]))
            .map(|id| Special {
                text: vocab.texts[id].clone(),
                id: id as TokenId,
                attr: vocab.attrs[id],
            })
            .collect();
        specials.sort_by(|a, b| a.text.cmp(&b.text));
        let mut starts = [false; 256];
        for special in &specials {
            starts[special.text.as_bytes()[0] as usize] = true;
        }
        Partition { specials, starts }
    }

    /// Cuts `text`; control and unknown tokens count only with `parse_special`.
    pub(super) fn split<'a>(&self, text: &'a [u8], parse_special: bool) -> Vec<Fragment<'a>> {
        let mut fragments = Vec::new();
        if !text.is_empty() {
            fragments.push(Fragment::Text(text));
        }
        for special in self.occurring(text, parse_special) {
            let mut next = Vec::with_capacity(fragments.len() + 2);
            for fragment in fragments {
                match fragment {
                    Fragment::Text(text) => cut(text, special, &mut next),
                    token => next.push(token),
                }
            }
            fragments = next;
        }
        fragments
    }

    /// The special tokens that occur in the text, the longest first.
    fn occurring(&self, text: &[u8], parse_special: bool) -> Vec<&Special> {
        let mut found = vec![false; self.specials.len()];
        for at in 0..text.len() {
            if self.starts[text[at] as usize] {
                self.mark_at(&text[at..], &mut found);
            }
        }
        let counts = |special: &&Special| parse_special || !special.attr.has(Attr::HIDDEN);
        let mut specials: Vec<&Special> = std::iter::zip(&self.specials, found)
            .filter_map(|(special, found)| found.then_some(special))
            .filter(counts)
            .collect();
        // llama.cpp leaves the order of equally long ones open; here the lower id goes first.
        specials.sort_by_key(|special| (std::cmp::Reverse(special.text.len()), special.id));
        specials
    }

    /// Marks every special text that `rest` starts with, narrowing the sorted list byte by byte.
    fn mark_at(&self, rest: &[u8], found: &mut [bool]) {
        let (mut low, mut high) = (0, self.specials.len());
        for (depth, &byte) in rest.iter().enumerate() {
            // All of low..high share the first `depth` bytes; a text that ends here sorts first.
            let at = |special: &Special| special.text.as_bytes().get(depth).copied();
            let range = &self.specials[low..high];
            let below = range.partition_point(|special| at(special) < Some(byte));
            let upto = range.partition_point(|special| at(special) <= Some(byte));
            (low, high) = (low + below, low + upto);
            if low == high {
                return;
            }
            // Only the first can end here: no two texts are the same.
            found[low] |= self.specials[low].text.len() == depth + 1;
        }
    }
}

/// Cuts `text` at every place of one special token.
fn cut<'a>(mut text: &'a [u8], special: &Special, out: &mut Vec<Fragment<'a>>) {
    let needle = special.text.as_bytes();
    while let Some(at) = find(text, needle) {
        let (mut left, mut right) = (&text[..at], &text[at + needle.len()..]);
        if special.attr.has(Attr::LSTRIP) {
            while let [rest @ .., last] = left
                && is_c_space(*last)
            {
                left = rest;
            }
        }
        if special.attr.has(Attr::RSTRIP) {
            while let [first, rest @ ..] = right
                && is_c_space(*first)
            {
                right = rest;
            }
        }
        if !left.is_empty() {
            out.push(Fragment::Text(left));
        }
        out.push(Fragment::Token(special.id));
        text = right;
    }
    if !text.is_empty() {
        out.push(Fragment::Text(text));
    }
}

fn find(text: &[u8], needle: &[u8]) -> Option<usize> {
    let first = needle[0];
    let mut from = 0;
    while let Some(step) = text[from..].iter().position(|&byte| byte == first) {
        from += step;
        if text[from..].starts_with(needle) {
            return Some(from);
        }
        from += 1;
    }
    None
}

/// C's `isspace`.
fn is_c_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t'..=b'\r')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn partition(tokens: &[(&str, Attr)]) -> Partition {
        Partition::new(&Vocab {
            texts: tokens.iter().map(|(text, _)| (*text).into()).collect(),
            attrs: tokens.iter().map(|(_, attr)| *attr).collect(),
            scores: Vec::new(),
        })
    }

    fn show(partition: &Partition, text: &str, parse_special: bool) -> String {
        let show = |fragment: Fragment| match fragment {
            Fragment::Text(text) => format!("[{}]", String::from_utf8_lossy(text)),
            Fragment::Token(id) => id.to_string(),
        };
        partition.split(text.as_bytes(), parse_special).into_iter().map(show).collect()
    }

    #[test]
    fn control_tokens_need_leave_and_user_tokens_none() {
        let p =
            partition(&[("<s>", Attr::CONTROL), ("<u>", Attr::USER_DEFINED), ("s", Attr::NORMAL)]);
        assert_eq!(show(&p, "a<s>b<u>c", true), "[a]0[b]1[c]");
        assert_eq!(show(&p, "a<s>b<u>c", false), "[a<s>b]1[c]");
        assert_eq!(show(&p, "<s><s>", true), "00");
        assert_eq!(show(&p, "", true), "");
    }

    #[test]
    fn the_longest_text_wins_wherever_it_stands() {
        let p =
            partition(&[("ab", Attr::CONTROL), ("bcd", Attr::CONTROL), ("abcd", Attr::CONTROL)]);
        assert_eq!(show(&p, "abcd", true), "2");
        assert_eq!(show(&p, "xabcxbcd", true), "[x]0[cx]1");
        let p = partition(&[("ab", Attr::CONTROL), ("bcd", Attr::CONTROL)]);
        assert_eq!(show(&p, "abcd", true), "[a]1");
    }

    #[test]
    fn stripping_tokens_swallow_white_space() {
        let (mut left, mut right) = (Attr::CONTROL, Attr::CONTROL);
        left.set(Attr::LSTRIP, true);
        right.set(Attr::RSTRIP, true);
        let p = partition(&[("<l>", left), ("<r>", right)]);
        assert_eq!(show(&p, "a \n<l> b", true), "[a]0[ b]");
        assert_eq!(show(&p, "a <r> \n<r>\t", true), "[a ]11");
    }
}
