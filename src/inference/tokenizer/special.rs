//! Special tokens: which ids begin, end or fill in a text, from the file's keys or by their looks.
//!
//! Files name few of them, so llama.cpp knows the others by their text; the lists here are its
//! own. Where several would do (`<|im_end|>` and `<|endoftext|>` both end a turn) it takes
//! whichever its hash table shows first; here the order of the list decides.

use super::TokenId;
use super::error::TokenizerError;
use super::vocab::{Attr, Vocab, VocabKind};
use crate::inference::gguf::Metadata;

/// The tokens with a role, and whether texts get some of them by default.
#[allow(missing_docs)] // named as in the GGUF keys
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SpecialTokens {
    pub bos: Option<TokenId>,
    pub eos: Option<TokenId>,
    /// End of turn.
    pub eot: Option<TokenId>,
    /// End of message.
    pub eom: Option<TokenId>,
    pub unk: Option<TokenId>,
    pub sep: Option<TokenId>,
    pub pad: Option<TokenId>,
    pub fim_prefix: Option<TokenId>,
    pub fim_suffix: Option<TokenId>,
    pub fim_middle: Option<TokenId>,
    pub fim_pad: Option<TokenId>,
    /// Before the name of a repository.
    pub fim_repo: Option<TokenId>,
    /// Before the name of a file.
    pub fim_file_sep: Option<TokenId>,
    /// `add_special` puts BOS before the text.
    pub add_bos: bool,
    /// `add_special` puts EOS (WordPiece: SEP) after the text.
    pub add_eos: bool,
    /// SEP stands between the texts of a pair.
    pub add_sep: bool,
    /// Every token that ends a generation, ascending.
    pub eog: Vec<TokenId>,
}

const EOT: &[&str] = &[
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "<｜end▁of▁sentence｜>",
    "<end_of_utterance>",
];
const EOM: &[&str] = &["<|eom_id|>"];
const FIM_PREFIX: &[&str] = &[
    "<|fim_prefix|>",
    "<fim-prefix>",
    "<fim_prefix>",
    "<｜fim▁begin｜>",
    "<PRE>",
    "▁<PRE>",
    "<|code_prefix|>",
    "<|prefix|>",
];
const FIM_SUFFIX: &[&str] = &[
    "<|fim_suffix|>",
    "<fim-suffix>",
    "<fim_suffix>",
    "<｜fim▁hole｜>",
    "<SUF>",
    "▁<SUF>",
    "<|code_suffix|>",
    "<|suffix|>",
];
const FIM_MIDDLE: &[&str] = &[
    "<|fim_middle|>",
    "<fim-middle>",
    "<fim_middle>",
    "<｜fim▁end｜>",
    "<MID>",
    "▁<MID>",
    "<|code_middle|>",
    "<|middle|>",
];
const FIM_PAD: &[&str] = &["<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"];
const FIM_REPO: &[&str] = &["<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"];
const FIM_FILE_SEP: &[&str] = &["<|file_sep|>"];
/// Texts that end a generation wherever they are in the vocabulary.
const EOG: &[&str] = &[
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<|flush|>",
    "<|calls|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "</s>",
    "<|eom_id|>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "[EOS]",
    "<|end_of_text|>",
    "<end_of_utterance>",
    "<eos>",
    "<turn|>",
    "<|tool_response>",
    "<｜end▁of▁sentence｜>",
    "[e~[",
];
/// DeepSeek-Coder's end of turn, which llama.cpp does not list: its instruct files name it as EOS,
/// and where one does not, an answer would never end. Its kind is left as the file has it, so
/// that texts have the same tokens.
const EOG_BY_FILE: &str = "<|EOT|>";
/// Markers of the Harmony format, which readers want to see.
const ALWAYS_SHOWN: &[&str] = &["<|channel|>", "<|message|>", "<|start|>", "<|constrain|>"];

impl SpecialTokens {
    /// Finds the special tokens, and marks in `vocab` those that the file takes for plain text.
    ///
    /// `find` looks an id up by its text.
    ///
    /// # Errors
    /// A key of the wrong type.
    pub(super) fn read(
        meta: &Metadata,
        kind: VocabKind,
        add_bos: bool,
        vocab: &mut Vocab,
        find: &dyn Fn(&str) -> Option<TokenId>,
    ) -> Result<SpecialTokens, TokenizerError> {
        let mut special = SpecialTokens::from_keys(meta, kind, vocab.len())?;
        special.add_bos = meta.bool("tokenizer.ggml.add_bos_token")?.unwrap_or(add_bos);
        special.add_eos = meta.bool("tokenizer.ggml.add_eos_token")?.unwrap_or(false);
        special.add_sep =
            meta.bool("tokenizer.ggml.add_sep_token")?.unwrap_or(kind == VocabKind::WordPiece);
        let mut by_text = |slot: &mut Option<TokenId>, texts: &[&str]| {
            if slot.is_none() {
                *slot = texts.iter().find_map(|text| find(text));
                if let Some(id) = *slot {
                    vocab.attrs[id as usize].set(Attr::CONTROL, true);
                }
            }
        };
        by_text(&mut special.eot, EOT);
        by_text(&mut special.eom, EOM);
        by_text(&mut special.fim_prefix, FIM_PREFIX);
        by_text(&mut special.fim_suffix, FIM_SUFFIX);
        by_text(&mut special.fim_middle, FIM_MIDDLE);
        by_text(&mut special.fim_pad, FIM_PAD);
        by_text(&mut special.fim_repo, FIM_REPO);
        by_text(&mut special.fim_file_sep, FIM_FILE_SEP);
        special.find_eog(vocab, find);
        for id in ALWAYS_SHOWN.iter().filter_map(|text| find(text)) {
            vocab.attrs[id as usize] = Attr::USER_DEFINED;
        }
        set_strips(meta, vocab, find)?;
        Ok(special)
    }

    /// What the file's keys say, and the defaults of its kind of vocabulary.
    fn from_keys(
        meta: &Metadata,
        kind: VocabKind,
        n_vocab: usize,
    ) -> Result<SpecialTokens, TokenizerError> {
        // llama.cpp gives BPE the default BOS and EOS 11, Falcon's; a comma in most others. A
        // file that names none has none here.
        let (bos, eos, unk, sep, pad) = match kind {
            VocabKind::Bpe => (None, None, None, None, None),
            VocabKind::Spm => (Some(1), Some(2), Some(0), None, None),
            VocabKind::WordPiece => (Some(101), None, Some(100), Some(102), Some(0)),
        };
        let read = |names: &[&str], default: Option<TokenId>| -> Result<_, TokenizerError> {
            let mut id = default.filter(|&id| (id as usize) < n_vocab);
            for name in names {
                let named = meta.u32(&format!("tokenizer.ggml.{name}_token_id"))?;
                // An id outside the vocabulary is overlooked: files have them.
                id = named.filter(|&id| (id as usize) < n_vocab).or(id);
            }
            Ok(id)
        };
        let bos_names: &[&str] =
            if kind == VocabKind::WordPiece { &["cls", "bos"] } else { &["bos"] };
        Ok(SpecialTokens {
            bos: read(bos_names, bos)?,
            eos: read(&["eos"], eos)?,
            eot: read(&["eot"], None)?,
            eom: read(&["eom"], None)?,
            unk: read(&["unknown"], unk)?,
            sep: read(&["seperator"], sep)?, // the format's spelling
            pad: read(&["padding"], pad)?,
            fim_prefix: read(&["fim_pre", "prefix"], None)?,
            fim_suffix: read(&["fim_suf", "suffix"], None)?,
            fim_middle: read(&["fim_mid", "middle"], None)?,
            fim_pad: read(&["fim_pad"], None)?,
            fim_repo: read(&["fim_rep"], None)?,
            fim_file_sep: read(&["fim_sep"], None)?,
            ..SpecialTokens::default()
        })
    }

    fn find_eog(&mut self, vocab: &mut Vocab, find: &dyn Fn(&str) -> Option<TokenId>) {
        let by_text: Vec<TokenId> = EOG.iter().filter_map(|text| find(text)).collect();
        for &id in &by_text {
            vocab.attrs[id as usize].set(Attr::CONTROL, true);
        }
        let by_role = [self.eos, self.eot, self.eom];
        let by_fim = [self.fim_pad, self.fim_repo, self.fim_file_sep, find(EOG_BY_FILE)];
        self.eog = by_text;
        self.eog.extend(by_role.into_iter().chain(by_fim).flatten());
        self.eog.sort_unstable();
        self.eog.dedup();
    }
}

/// Tokens that swallow white space beside them. GGUF has no key for it, so llama.cpp goes by names.
fn set_strips(
    meta: &Metadata,
    vocab: &mut Vocab,
    find: &dyn Fn(&str) -> Option<TokenId>,
) -> Result<(), TokenizerError> {
    let name = meta.str("general.name")?.unwrap_or_default().to_ascii_lowercase();
    let pre = meta.str("tokenizer.ggml.pre")?.unwrap_or_default();
    let arch = meta.str("general.architecture")?.unwrap_or_default();
    let mut set = |text: &str, strip: Attr, yes: bool| {
        if let Some(id) = find(text) {
            vocab.attrs[id as usize].set(strip, yes);
        }
    };
    let jina = ["jina-v2-de", "jina-v2-es", "jina-v2-code"].iter().any(|jina| pre.contains(jina))
        || ["nomic-bert-moe", "jina-bert-v3"].iter().any(|bert| arch.contains(bert));
    if jina {
        set("<mask>", Attr::LSTRIP, true);
    } else if name.contains("phi-3") || name.contains("phi3") {
        for attr in &mut vocab.attrs {
            if attr.has(Attr::HIDDEN) || attr.has(Attr::USER_DEFINED) {
                attr.set(Attr::RSTRIP, true);
            }
        }
        let mut set = |text: &str, yes| {
            if let Some(id) = find(text) {
                vocab.attrs[id as usize].set(Attr::RSTRIP, yes);
            }
        };
        set("</s>", true);
        ["<unk>", "<s>", "<|endoftext|>"].into_iter().for_each(|text| set(text, false));
    } else if name.contains("modern-bert") {
        set("[MASK]", Attr::LSTRIP, true);
    }
    Ok(())
}
