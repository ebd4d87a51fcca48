//! A batch: the tokens of one forward pass, as spans of sequences at different positions.
//!
//! ```text
//! tokens   [ a b c d | x | p q ]      three spans: a prefill chunk, a decode, a short chunk
//! spans      pos 64    9   0          each with the KV pages of its sequence
//! outputs  [ 3, 4, 6 ]                rows whose logits are wanted
//! ```
//!
//! A span continues its sequence at `pos`: everything before it is already in the KV pages.

/// Positions in a page of the KV cache.
pub const PAGE_LEN: usize = 32;

/// A page of the KV cache, counted from its start.
pub type PageIdx = u32;

/// Consecutive tokens of a batch, all of prompts or none.
pub type ColumnRun = (std::ops::Range<usize>, bool);

/// A LoRA adapter that a backend has loaded.
pub type AdapterIdx = u32;

/// Consecutive tokens of one sequence.
#[derive(Clone, Copy, Debug)]
pub struct Span<'a> {
    /// The sequence's pages, enough for `pos + n_tokens` positions.
    pub pages: &'a [PageIdx],
    /// Position of the first token.
    pub pos: usize,
    /// Tokens of the span.
    pub n_tokens: usize,
    /// Of these, from the first, those of a prompt: a backend may add their products up in another
    /// order. So of a sequence it is always the same ones.
    pub n_prompt: usize,
    /// LoRA adapters in effect and their scales; those of a sequence's earlier tokens are in its
    /// keys and values.
    pub adapters: &'a [(AdapterIdx, f32)],
}

impl Span<'_> {
    /// The pages that the span's tokens are written to.
    pub fn written(&self) -> &[PageIdx] {
        let end = (self.pos + self.n_tokens).div_ceil(PAGE_LEN);
        &self.pages[(self.pos / PAGE_LEN).min(end)..end]
    }
}

/// The input of one forward pass.
#[derive(Clone, Copy, Debug)]
pub struct Batch<'a> {
    /// Token ids, span after span.
    pub tokens: &'a [u32],
    /// The spans, in the order of `tokens`.
    pub spans: &'a [Span<'a>],
    /// Indices into `tokens`, ascending, whose output rows are wanted.
    pub outputs: &'a [u32],
}

/// Positions that move: `from..from + n` of the sequence with pages `src` become `to..to + n` of
/// the one with pages `dst`.
///
/// To drop positions `a..b` of a sequence of `n` and slide the rest left, move `n - b` positions
/// from `b` to `a`. Its pages are then both `src` and `dst`; where some of them are shared with
/// others, `dst` has pages of its own in their place, copies up to position `a`.
#[derive(Clone, Copy, Debug)]
pub struct Shift<'a> {
    /// Pages that are read.
    pub src: &'a [PageIdx],
    /// First position there.
    pub from: usize,
    /// Pages that are written, the caller's own.
    pub dst: &'a [PageIdx],
    /// First position there.
    pub to: usize,
    /// Positions that move.
    pub n: usize,
}

impl Shift<'_> {
    /// Checks that there are pages for all positions, in a cache of `n_page`.
    ///
    /// # Errors
    /// [`BatchError::Pages`].
    pub fn check(&self, n_page: usize) -> Result<(), BatchError> {
        check_pages(self.src, self.from.saturating_add(self.n), n_page)?;
        check_pages(self.dst, self.to.saturating_add(self.n), n_page)
    }
}

/// What a batch must not be.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum BatchError {
    /// The spans do not add up to the tokens.
    #[error("the spans hold {spans} tokens, the batch {tokens}")]
    SpanSum {
        /// Sum over the spans.
        spans: usize,
        /// Tokens of the batch.
        tokens: usize,
    },
    /// More tokens than the backend was made for.
    #[error("a batch of {got} tokens; this backend takes at most {max}")]
    TooLarge {
        /// Tokens of the batch.
        got: usize,
        /// Limit.
        max: usize,
    },
    /// A token outside the vocabulary.
    #[error("token {token} is outside the vocabulary of {n_vocab}")]
    Token {
        /// The token.
        token: u32,
        /// Size of the vocabulary.
        n_vocab: usize,
    },
    /// A span without enough pages, or with a page outside the cache.
    #[error("a span to position {end} has {n_pages} pages, or one outside the cache")]
    Pages {
        /// One past the span's last position.
        end: usize,
        /// Pages that it brought.
        n_pages: usize,
    },
    /// Two spans that write one page.
    #[error("two spans write page {page}; each sequence needs a page of its own to go on in")]
    SharedPage {
        /// The page.
        page: PageIdx,
    },
    /// An adapter that is not loaded.
    #[error("adapter {adapter} is not loaded")]
    Adapter {
        /// The adapter.
        adapter: AdapterIdx,
    },
    /// Output rows out of order or out of range.
    #[error("output rows must ascend and lie inside the batch")]
    Outputs,
}

impl Batch<'_> {
    /// The tokens in runs of prompts' and others, each as long as can be.
    pub fn prompt_runs(&self) -> Vec<ColumnRun> {
        let mut runs: Vec<ColumnRun> = Vec::new();
        let mut start = 0;
        for span in self.spans {
            let n_prompt = span.n_prompt.min(span.n_tokens);
            for (n, is_prompt) in [(n_prompt, true), (span.n_tokens - n_prompt, false)] {
                match runs.last_mut() {
                    _ if n == 0 => {}
                    Some((run, kind)) if *kind == is_prompt => run.end += n,
                    _ => runs.push((start..start + n, is_prompt)),
                }
                start += n;
            }
        }
        runs
    }

    /// Checks the rules above against what a backend was made for.
    ///
    /// # Errors
    /// The first rule that the batch breaks.
    pub fn check(&self, n_max: usize, n_vocab: usize, n_page: usize) -> Result<(), BatchError> {
        let spans = self.spans.iter().map(|s| s.n_tokens).sum();
        if spans != self.tokens.len() {
            return Err(BatchError::SpanSum { spans, tokens: self.tokens.len() });
        }
        if spans > n_max {
            return Err(BatchError::TooLarge { got: spans, max: n_max });
        }
        if let Some(&token) = self.tokens.iter().find(|&&t| t as usize >= n_vocab) {
            return Err(BatchError::Token { token, n_vocab });
        }
        for span in self.spans {
            check_pages(span.pages, span.pos.saturating_add(span.n_tokens), n_page)?;
        }
        let mut written: Vec<PageIdx> =
            self.spans.iter().flat_map(Span::written).copied().collect();
        written.sort_unstable();
        if let Some(pair) = written.windows(2).find(|w| w[0] == w[1]) {
            return Err(BatchError::SharedPage { page: pair[0] });
        }
        let ascending = self.outputs.windows(2).all(|w| w[0] < w[1]);
        let inside = self.outputs.last().is_none_or(|&o| (o as usize) < spans);
        if ascending && inside { Ok(()) } else { Err(BatchError::Outputs) }
    }
}

/// Whether `pages` hold positions up to `end`, and all are in the cache.
fn check_pages(pages: &[PageIdx], end: usize, n_page: usize) -> Result<(), BatchError> {
    let in_cache = pages.iter().all(|&p| (p as usize) < n_page);
    let is_enough = pages.len() >= end.div_ceil(PAGE_LEN);
    if is_enough && in_cache {
        Ok(())
    } else {
        Err(BatchError::Pages { end, n_pages: pages.len() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_of_prompts_are_told_from_the_others() {
        let runs = |spans: &[(usize, usize)]| {
            let span = |&(n_tokens, n_prompt)| Span {
                pages: &[],
                pos: 0,
                n_tokens,
                n_prompt,
                adapters: &[],
            };
            let spans: Vec<Span<'_>> = spans.iter().map(span).collect();
            Batch { tokens: &[], spans: &spans, outputs: &[] }.prompt_runs()
        };
        assert_eq!(runs(&[]), []);
        assert_eq!(runs(&[(1, 0), (1, 0)]), [(0..2, false)]);
        assert_eq!(
            runs(&[(4, 4), (3, 2), (1, 0), (5, 9)]),
            [(0..6, true), (6..8, false), (8..13, true)]
        );
    }

    #[test]
    fn a_batch_that_breaks_a_rule_is_refused_by_name() {
        let pages = [0, 1];
        let span =
            |pos, n_tokens| Span { pages: &pages, pos, n_tokens, n_prompt: 0, adapters: &[] };
        let check = |tokens: &[u32], spans: &[Span<'_>], outputs: &[u32]| {
            Batch { tokens, spans, outputs }.check(4, 10, 2)
        };
        assert_eq!(check(&[1, 2], &[span(0, 2)], &[0, 1]), Ok(()));
        assert!(matches!(check(&[1], &[span(0, 2)], &[]), Err(BatchError::SpanSum { .. })));
        assert!(matches!(check(&[1; 5], &[span(0, 5)], &[]), Err(BatchError::TooLarge { .. })));
        assert!(matches!(check(&[10], &[span(0, 1)], &[]), Err(BatchError::Token { .. })));
        assert!(matches!(check(&[1], &[span(64, 1)], &[]), Err(BatchError::Pages { .. })));
        let twice = [span(0, 1), span(1, 1)];
        assert_eq!(check(&[1, 2], &twice, &[]), Err(BatchError::SharedPage { page: 0 }));
        assert_eq!(check(&[1, 2], &[span(0, 1), span(32, 1)], &[]), Ok(()));
        assert_eq!(check(&[1, 2], &[span(0, 2)], &[1, 0]), Err(BatchError::Outputs));
        assert_eq!(check(&[1, 2], &[span(0, 2)], &[2]), Err(BatchError::Outputs));
    }
}
