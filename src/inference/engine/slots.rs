//! Saved and restored slots, as llama.cpp's clients know them.
//!
//! ```text
//! "JFSLOT1\n" | fingerprint [32] | page bytes u32 | tokens u32 | tokens [u32]
//!              | the bytes of each page | SHA-256 of everything before [32]
//! ```
//!
//! Numbers are little-endian. The fingerprint is of what shapes keys and values: the model's file,
//! the form that they are stored in, what computes, and the scope of the sequence. A file that is
//! damaged, cut or of another model is refused whole.

use std::fs::{self, File};
use std::io::{BufWriter, Read, Write};
use std::path::Path;

use sha2::{Digest, Sha256};

use super::EngineError;
use super::core::{Core, SlotState};
use super::handle::SlotFile;
use super::prefix_cache::Scope;
use crate::inference::backend::{PAGE_LEN, PageIdx};
use crate::inference::tokenizer::TokenId;

const MAGIC: &[u8; 8] = b"JFSLOT1\n";
/// Bytes before the tokens.
const HEADER_LEN: usize = 8 + 32 + 4 + 4;
const DIGEST_LEN: usize = 32;
/// Bytes of each tensor that the fingerprint looks at.
const SAMPLE_LEN: usize = 1024;

impl Core {
    fn slot(&mut self, slot_idx: usize) -> Result<&mut SlotState, EngineError> {
        let n_slot = self.slots.len();
        self.slots.get_mut(slot_idx).ok_or(EngineError::Slot { slot_idx, n_slot })
    }

    /// Writes what a slot's last sequence left in the prefix cache, as far as it is still there.
    pub fn save_slot(&mut self, slot_idx: usize, path: &Path) -> Result<SlotFile, EngineError> {
        let SlotState { tokens, scope } = self.slot(slot_idx)?.clone();
        let found = self.cache.find(&mut self.pool, &scope, &tokens);
        let n_tokens = found.n_tokens();
        let pages: Vec<PageIdx> =
            found.pages.iter().copied().chain(found.partial.map(|(page, _)| page)).collect();
        let saved = self.write_slot(path, &scope, &tokens[..n_tokens], &pages);
        found.pages.iter().for_each(|&page| self.pool.release(page));
        let n_bytes = saved.map_err(|error| slot_error(path, error.to_string()))?;
        Ok(SlotFile { n_tokens, n_bytes })
    }

    fn write_slot(
        &self,
        path: &Path,
        scope: &Scope,
        tokens: &[TokenId],
        pages: &[PageIdx],
    ) -> std::io::Result<u64> {
        // Written beside its place first, so that a file under its name is always whole.
        let part = path.with_extension("part");
        let mut out = Hashing { out: BufWriter::new(File::create(&part)?), hash: Sha256::new() };
        let mut page_buf = vec![0u8; self.runner.page_bytes()];
        out.put(MAGIC)?;
        out.put(&self.fingerprint(scope))?;
        out.put(&(page_buf.len() as u32).to_le_bytes())?;
        out.put(&(tokens.len() as u32).to_le_bytes())?;
        tokens.iter().try_for_each(|token| out.put(&token.to_le_bytes()))?;
        for &page in pages {
            self.runner.read_page(page, &mut page_buf).map_err(std::io::Error::other)?;
            out.put(&page_buf)?;
        }
        let digest = out.hash.finalize();
        out.out.write_all(&digest)?;
        out.out.into_inner()?.sync_all()?;
        fs::rename(&part, path)?;
        Ok(fs::metadata(path)?.len())
    }

    /// Brings a saved slot into the prefix cache, and notes it as what the slot holds.
    pub fn restore_slot(&mut self, slot_idx: usize, path: &Path) -> Result<SlotFile, EngineError> {
        self.slot(slot_idx)?;
        let refuse = |reason: String| slot_error(path, reason);
        let (tokens, pages) = self.read_slot(path).map_err(refuse)?;
        let n_bytes = (HEADER_LEN + 4 * tokens.len() + pages.len() + DIGEST_LEN) as u64;
        let n_page = tokens.len().div_ceil(PAGE_LEN);
        let mut held = Vec::with_capacity(n_page);
        let mut written = Ok(());
        for bytes in pages.chunks_exact(self.runner.page_bytes()) {
            let Some(page) = self.spare_page() else {
                written = Err("running sequences hold the pages that it needs".to_owned());
                break;
            };
            held.push(page);
            written = self.runner.write_page(page, bytes).map_err(|error| error.to_string());
        }
        if written.is_ok() {
            self.cache.insert(&mut self.pool, &Scope::default(), &tokens, &mut held);
        }
        held.into_iter().for_each(|page| self.pool.release(page));
        written.map_err(|reason| slot_error(path, reason))?;
        let n_tokens = tokens.len();
        *self.slot(slot_idx)? = SlotState { tokens, scope: Scope::default() };
        Ok(SlotFile { n_tokens, n_bytes })
    }

    /// The tokens and the pages' bytes of a slot file.
    fn read_slot(&self, path: &Path) -> Result<(Vec<TokenId>, Vec<u8>), String> {
        let n_ctx = self.info.n_ctx;
        let page_bytes = self.runner.page_bytes();
        let n_max = HEADER_LEN + 4 * n_ctx + n_ctx.div_ceil(PAGE_LEN) * page_bytes + DIGEST_LEN;
        let mut bytes = Vec::new();
        let file = File::open(path).map_err(|error| error.to_string())?;
        file.take(n_max as u64 + 1).read_to_end(&mut bytes).map_err(|error| error.to_string())?;
        if bytes.len() > n_max {
            return Err(format!("it holds more than a context of {n_ctx} tokens"));
        }
        let Some((body, digest)) = bytes.split_last_chunk::<DIGEST_LEN>() else {
            return Err("it is cut".to_owned());
        };
        if body.len() < HEADER_LEN || !body.starts_with(MAGIC) {
            return Err("it is no slot file".to_owned());
        }
        if Sha256::digest(body).as_slice() != digest {
            return Err("it is damaged".to_owned());
        }
        // It comes back for everyone and without adapters: what was computed for one API key alone,
        // or with an adapter, is not that.
        if body[8..40] != self.fingerprint(&Scope::default()) {
            return Err(
                "it is of another model, KV type, instruction set or version of jetforge, \
                        or was computed with an adapter or a private cache"
                    .to_owned(),
            );
        }
        let number = |at: usize| u32::from_le_bytes(std::array::from_fn(|i| body[at + i])) as usize;
        let n_tokens = number(44);
        let (tokens, pages) = body[HEADER_LEN..]
            .split_at_checked(n_tokens.saturating_mul(4))
            .ok_or_else(|| "it is cut".to_owned())?;
        if number(40) != page_bytes || pages.len() != n_tokens.div_ceil(PAGE_LEN) * page_bytes {
            return Err("its pages have another size".to_owned());
        }
        let tokens: Vec<TokenId> =
            tokens.as_chunks::<4>().0.iter().map(|bytes| TokenId::from_le_bytes(*bytes)).collect();
        if tokens.iter().any(|&token| token as usize >= self.info.hparams.n_vocab) {
            return Err("it names tokens outside the vocabulary".to_owned());
        }
        Ok((tokens, pages.to_vec()))
    }

    /// A page that nobody needs, if there is one.
    fn spare_page(&mut self) -> Option<PageIdx> {
        if self.pool.n_free() == 0 && !self.cache.evict(&mut self.pool) {
            return None;
        }
        self.pool.alloc()
    }

    /// Forgets what a slot's last sequence left in the prefix cache; how many tokens.
    pub fn erase_slot(&mut self, slot_idx: usize) -> Result<usize, EngineError> {
        let state = std::mem::take(self.slot(slot_idx)?);
        self.cache.forget(&mut self.pool, &state.scope, &state.tokens);
        if let Some(draft) = &mut self.draft {
            draft.forget(slot_idx);
        }
        Ok(state.tokens.len())
    }

    /// A hash of what shapes keys and values.
    fn fingerprint(&self, scope: &Scope) -> [u8; 32] {
        let mut hash = Sha256::new();
        let gguf = self.info.gguf();
        hash.update(env!("CARGO_PKG_VERSION"));
        hash.update(self.runner.numerics());
        if *scope != Scope::default() {
            // Names nothing that another start of the program would know again.
            hash.update(format!("{scope:?}"));
        }
        hash.update(gguf.file_bytes().to_le_bytes());
        hash.update((self.runner.page_bytes() as u64).to_le_bytes());
        for tensor in gguf.tensors() {
            hash.update(tensor.name.as_bytes());
            let bytes = gguf.bytes(tensor);
            hash.update(&bytes[..bytes.len().min(SAMPLE_LEN)]);
        }
        hash.finalize().into()
    }
}

struct Hashing<W: Write> {
    out: W,
    hash: Sha256,
}

impl<W: Write> Hashing<W> {
    fn put(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.hash.update(bytes);
        self.out.write_all(bytes)
    }
}

fn slot_error(path: &Path, reason: String) -> EngineError {
    EngineError::SlotFile { path: path.display().to_string(), reason }
}
