//! Which context chunks find a place in a prompt, and how many tokens they may take.
//!
//! ```text
//! direct         all that fit
//! dependencies   at most 30 % of the budget
//! interfaces     at most 20 %
//! examples       at most 20 %, and only while less than 80 % are used
//! ```
//!
//! Chunks come in the order in which they were sent, class after class. One that does not fit is
//! left out whole, and a smaller one behind it may still come; the same text counts once. Counts
//! are those of `/tokenize` for each chunk by itself. The line end behind each chunk counts against
//! the budget and no share.

/// What a chunk is to the task.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Class {
    Direct,
    Dependency,
    Interface,
    Example,
}

impl Class {
    const ALL: [Class; 4] = [Class::Direct, Class::Dependency, Class::Interface, Class::Example];

    /// The class that a message names, one or many.
    pub fn from_name(name: &str) -> Option<Class> {
        Some(match name {
            "direct" | "context" | "file" => Class::Direct,
            "dependency" | "dependencies" => Class::Dependency,
            "interface" | "interfaces" => Class::Interface,
            "example" | "examples" => Class::Example,
            _ => return None,
        })
    }

    /// The most tokens of this class when all may have `n_max`.
    fn share(self, n_max: usize) -> usize {
        match self {
            Class::Direct => n_max,
            Class::Dependency => n_max / 10 * 3 + n_max % 10 * 3 / 10,
            Class::Interface | Class::Example => n_max / 5,
        }
    }
}

/// A piece of the project.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Chunk {
    pub id: String,
    pub content: String,
    pub class: Class,
}

/// What was chosen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Choice {
    /// Indices of the chunks, in the order of the prompt.
    pub chosen: Vec<usize>,
    /// Indices of those that found no place.
    pub dropped: Vec<usize>,
    /// Tokens of each class.
    pub n_class: [usize; 4],
    /// Tokens of the line ends behind the chosen ones.
    pub n_joins: usize,
    /// The budget.
    pub n_max: usize,
}

impl Choice {
    /// Tokens of all chosen chunks.
    pub fn n_tokens(&self) -> usize {
        self.n_class.iter().sum()
    }

    /// For a header field.
    pub fn in_words(&self) -> String {
        let (n_chosen, n_dropped) = (self.chosen.len(), self.dropped.len());
        let (n_tokens, n_max) = (self.n_tokens(), self.n_max);
        format!("chunks={n_chosen}; dropped={n_dropped}; tokens={n_tokens}; budget={n_max}")
    }

    /// Leaves the last chunks out after all, of at least `n_over` tokens; whether there was one.
    pub fn give_up(&mut self, chunks: &[Chunk], counts: &Counts, n_over: usize) -> bool {
        let (n_before, mut n_given) = (self.chosen.len(), 0);
        while n_given < n_over
            && let Some(idx) = self.chosen.pop()
        {
            self.dropped.push(idx);
            self.n_class[chunks[idx].class as usize] -= counts.n_tokens[idx];
            self.n_joins -= counts.n_join;
            n_given += counts.n_tokens[idx] + counts.n_join;
        }
        self.dropped.sort_unstable();
        self.chosen.len() < n_before
    }
}

/// What chunks take.
#[derive(Clone, Debug, Default)]
pub(super) struct Counts {
    /// Tokens of each chunk.
    pub n_tokens: Vec<usize>,
    /// Tokens of the line end behind each.
    pub n_join: usize,
}

/// Chooses among chunks that take as much as `counts` says.
pub(super) fn choose(chunks: &[Chunk], counts: &Counts, n_max: usize) -> Choice {
    let mut choice = Choice { n_max, ..Choice::default() };
    let mut seen = std::collections::HashSet::new();
    for class in Class::ALL {
        let is_full = choice.n_tokens() * 10 >= n_max * 8;
        let room = if class == Class::Example && is_full { 0 } else { class.share(n_max) };
        for (idx, chunk) in chunks.iter().enumerate().filter(|(_, chunk)| chunk.class == class) {
            let n = counts.n_tokens[idx];
            let n_class = &choice.n_class[class as usize];
            let n_all = choice.n_tokens() + n + choice.n_joins + counts.n_join;
            let fits = n_class + n <= room && n_all <= n_max;
            match fits && seen.insert(chunk.content.as_str()) {
                true => {
                    choice.n_class[class as usize] += n;
                    choice.n_joins += counts.n_join;
                    choice.chosen.push(idx);
                }
                false => choice.dropped.push(idx),
            }
        }
    }
    choice.dropped.sort_unstable();
    choice
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn chunks(classes: &[Class]) -> Vec<Chunk> {
        let chunk = |(idx, class): (usize, &Class)| Chunk {
            id: idx.to_string(),
            content: format!("text {idx}"),
            class: *class,
        };
        classes.iter().enumerate().map(chunk).collect()
    }

    fn counts(n_tokens: &[usize], n_join: usize) -> Counts {
        Counts { n_tokens: n_tokens.to_vec(), n_join }
    }

    #[test]
    fn classes_come_in_order_and_keep_to_their_shares() {
        use Class::*;
        let chunks = chunks(&[Example, Interface, Dependency, Direct, Dependency, Dependency]);
        let choice = choose(&chunks, &counts(&[150, 200, 250, 290, 80, 50], 0), 1000);
        assert_eq!(choice.chosen, [3, 2, 5, 1, 0], "the dependency of 80 would be one too many");
        assert_eq!((choice.dropped, choice.n_class), (vec![4], [290, 300, 200, 150]));
        let full = choose(&chunks, &counts(&[150, 200, 250, 400, 80, 50], 0), 1000);
        assert_eq!(full.n_class, [400, 300, 200, 0], "no example once 80 % are used");
        let mut twice = chunks.clone();
        twice[5].content = twice[2].content.clone();
        assert_eq!(
            choose(&twice, &counts(&[1; 6], 0), 1000).dropped,
            [5],
            "the same text counts once"
        );
        let joined = counts(&[10; 6], 3);
        let mut choice = choose(&chunks, &joined, 5 * 13);
        assert_eq!((choice.chosen.len(), choice.n_joins), (4, 12), "a share each, and the joins");
        assert!(choice.give_up(&chunks, &joined, 14), "two at a time");
        assert_eq!((choice.n_tokens(), choice.n_joins), (20, 6));
        assert!(choice.give_up(&chunks, &joined, 100) && !choice.give_up(&chunks, &joined, 1));
        assert_eq!((choice.n_tokens(), choice.dropped.len()), (0, 6));
    }

    proptest! {
        #[test]
        fn sums_and_shares_hold_and_nothing_is_lost(
            sizes in proptest::collection::vec((0usize..4, 0usize..900), 0..40),
            n_max in 0usize..3000,
            n_join in 0usize..4,
        ) {
            let classes: Vec<Class> = sizes.iter().map(|(class, _)| Class::ALL[*class]).collect();
            let sizes: Vec<usize> = sizes.iter().map(|(_, n)| *n).collect();
            let (chunks, counts) = (chunks(&classes), counts(&sizes, n_join));
            let choice = choose(&chunks, &counts, n_max);
            prop_assert!(choice.n_tokens() + choice.n_joins <= n_max);
            prop_assert_eq!(choice.n_joins, choice.chosen.len() * n_join);
            for class in Class::ALL {
                let chosen = choice.chosen.iter().filter(|idx| chunks[**idx].class == class);
                let n: usize = chosen.map(|idx| sizes[*idx]).sum();
                prop_assert_eq!(n, choice.n_class[class as usize]);
            }
            prop_assert!(choice.n_class[1] * 10 <= n_max * 3);
            prop_assert!(choice.n_class[2] * 5 <= n_max && choice.n_class[3] * 5 <= n_max);
            prop_assert!(choice.chosen.is_sorted_by_key(|idx| (chunks[*idx].class, *idx)));
            let mut all: Vec<usize> =
                choice.chosen.iter().chain(&choice.dropped).copied().collect();
            all.sort_unstable();
            prop_assert_eq!(all, (0..chunks.len()).collect::<Vec<_>>());
            prop_assert_eq!(choose(&chunks, &counts, n_max), choice);
        }
    }
}
