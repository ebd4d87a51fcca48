//! A model that says what it is told: for tests of behaviour that no random weights show, and, over
//! a real forward pass, for the time that such behaviour takes.
//!
//! It keeps the tokens that were written to each page, and its next token is a function of what it
//! finds there. So a page that was shared, copied or freed wrongly changes the text.

use super::draft_model::DraftModel;
use super::runner::Runner;
use super::{Model, ModelInfo};
use crate::inference::backend::{AdapterIdx, BackendError, Batch, PAGE_LEN, PageIdx};
use crate::inference::gguf::Gguf;
use crate::inference::tokenizer::TokenId;

/// What comes after a history.
pub type Script = Box<dyn Fn(&[TokenId]) -> TokenId + Send>;

/// Logit of the token that the script names; the others lie between 0 and 1.
const LOGIT_NAMED: f32 = 12.0;

struct Scripted {
    script: Script,
    /// Runs as well, for its time; only what it says is not heard.
    real: Option<Box<dyn Runner>>,
    pages: Vec<[Option<TokenId>; PAGE_LEN]>,
    n_batch: usize,
    n_vocab: usize,
    rows: Vec<Vec<f32>>,
}

impl Runner for Scripted {
    fn forward(&mut self, batch: &Batch<'_>) -> Result<Vec<&[f32]>, BackendError> {
        batch.check(self.n_batch, self.n_vocab, self.pages.len())?;
        if let Some(real) = &mut self.real {
            real.forward(batch)?;
        }
        self.rows.clear();
        let (mut start, mut outputs) = (0, batch.outputs.iter().peekable());
        for span in batch.spans {
            for i in 0..span.n_tokens {
                let pos = span.pos + i;
                let page = span.pages[pos / PAGE_LEN] as usize;
                self.pages[page][pos % PAGE_LEN] = Some(batch.tokens[start + i]);
                if outputs.next_if(|&&o| o as usize == start + i).is_some() {
                    let row = self.row_after(&span.pages[..=pos / PAGE_LEN], pos + 1);
                    self.rows.push(row);
                }
            }
            start += span.n_tokens;
        }
        Ok(self.rows.iter().map(Vec::as_slice).collect())
    }

    fn row(&mut self, row_idx: usize) -> Result<&[f32], BackendError> {
        Ok(&self.rows[row_idx])
    }

    fn embed(&mut self, batch: &Batch<'_>) -> Result<Vec<&[f32]>, BackendError> {
        self.forward(batch)
    }

    fn add_adapter(&mut self, _gguf: &Gguf, _arch: &str) -> Result<AdapterIdx, BackendError> {
        Ok(0)
    }

    fn copy_page(&mut self, from: PageIdx, to: PageIdx) -> Result<(), BackendError> {
        if let Some(real) = &mut self.real {
            real.copy_page(from, to)?;
        }
        self.pages[to as usize] = self.pages[from as usize];
        Ok(())
    }

    fn numerics(&self) -> String {
        "scripted".to_owned()
    }

    fn page_bytes(&self) -> usize {
        PAGE_LEN * size_of::<TokenId>()
    }

    fn read_page(&self, page: PageIdx, out: &mut [u8]) -> Result<(), BackendError> {
        for (out, token) in
            out.chunks_exact_mut(size_of::<TokenId>()).zip(self.pages[page as usize])
        {
            out.copy_from_slice(&token.unwrap_or(TokenId::MAX).to_le_bytes());
        }
        Ok(())
    }

    fn write_page(&mut self, page: PageIdx, bytes: &[u8]) -> Result<(), BackendError> {
        let tokens = bytes.as_chunks::<4>().0.iter().map(|bytes| TokenId::from_le_bytes(*bytes));
        for (slot, token) in self.pages[page as usize].iter_mut().zip(tokens) {
            *slot = (token != TokenId::MAX).then_some(token);
        }
        Ok(())
    }
}

impl Scripted {
    fn row_after(&self, pages: &[PageIdx], n: usize) -> Vec<f32> {
        let slots = pages.iter().flat_map(|&page| self.pages[page as usize]);
        let history: Vec<TokenId> =
            slots.take(n).map(|token| token.expect("no position is skipped")).collect();
        // splitmix64 over the history: other logits depend on it as well.
        let mut state = history.iter().fold(n as u64, |hash, &token| {
            (hash ^ u64::from(token)).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29)
        });
        let mut row: Vec<f32> = (0..self.n_vocab)
            .map(|_| {
                state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
                (state >> 40) as f32 / (1u64 << 24) as f32
            })
            .collect();
        row[(self.script)(&history) as usize] = LOGIT_NAMED;
        row
    }
}

impl Scripted {
    fn new(script: Script, info: &ModelInfo, n_page: usize) -> Scripted {
        Scripted {
            script,
            real: None,
            pages: vec![[None; PAGE_LEN]; n_page],
            n_batch: info.n_batch,
            n_vocab: info.hparams.n_vocab,
            rows: Vec::new(),
        }
    }
}

impl Model {
    /// The same vocabulary and limits, with a script in the place of weights.
    pub fn with_script(self, script: Script) -> Model {
        let (info, _, draft) = self.into_parts();
        let runner = Scripted::new(script, &info, info.n_page);
        Model::from_parts(info, Box::new(runner)).with_draft(draft)
    }

    /// The same model, whose passes run as they would, with a script in the place of what it says.
    pub fn with_forced_tokens(self, script: Script) -> Model {
        let (info, real, draft) = self.into_parts();
        let runner = Scripted { real: Some(real), ..Scripted::new(script, &info, info.n_page) };
        Model::from_parts(info, Box::new(runner)).with_draft(draft)
    }

    /// The same model with a script in the place of a draft model, for `n_parallel` sequences.
    pub fn with_draft_script(self, script: Script, n_parallel: usize) -> Model {
        let info = &self.info;
        let n_page = n_parallel * info.n_ctx.div_ceil(PAGE_LEN);
        let runner = Box::new(Scripted::new(script, info, n_page));
        let eog = info.tokenizer.special().eog.clone();
        let (n_ctx, n_batch, n_vocab) = (info.n_ctx, info.n_batch, info.hparams.n_vocab);
        let draft = DraftModel::new(runner, n_parallel, n_ctx, n_batch, n_vocab, eog);
        self.with_draft(Some(draft))
    }
}
