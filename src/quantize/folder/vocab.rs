//! The vocabulary of a folder, as GGUF keeps it.
//!
//! ```text
//! tokenizer.model                  SentencePiece: texts, scores and kinds as they stand
//! tokenizer.json, byte_fallback    the same without scores: merges come in the order of numbers
//! tokenizer.json                   byte-level BPE: texts, merges, and the pre-tokenizer's name
//! tokenizer_config.json            which tokens are special, and the chat template
//! ```
//!
//! As llama.cpp's converter, with one difference: where `tokenizer_config.json` says whether BOS is
//! added, that counts, because Hugging Face's own tokenizers of that kind follow it.

use std::path::Path;

use serde_json::Value as Json;

use super::config::Config;
use super::{FolderError, json, pre, read, sentencepiece};
use crate::base::hash::unhex;
use crate::base::limits::{CHAT_TEMPLATE_BYTES_MAX, FOLDER_JSON_BYTES_MAX};
use crate::inference::gguf::Value;

const NORMAL: i32 = 1;
const UNKNOWN: i32 = 2;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const UNUSED: i32 = 5;
const BYTE: i32 = 6;

/// Roles of tokens: Hugging Face's name, and GGUF's key.
const ROLES: [(&str, &str); 5] = [
    ("bos", "bos_token_id"),
    ("eos", "eos_token_id"),
    ("unk", "unknown_token_id"),
    ("sep", "seperator_token_id"),
    ("pad", "padding_token_id"),
];

/// The vocabulary being put together.
struct Vocab {
    texts: Vec<String>,
    scores: Vec<f32>,
    types: Vec<i32>,
}

impl Vocab {
    /// Names for every number, until something is known of it.
    fn unknown(n_vocab: usize) -> Vocab {
        Vocab {
            texts: (0..n_vocab).map(|id| format!("[PAD{id}]")).collect(),
            scores: vec![-10_000.0; n_vocab],
            types: vec![UNUSED; n_vocab],
        }
    }

    fn set(&mut self, id: usize, text: &str, score: f32, ty: i32) -> Result<(), FolderError> {
        if id >= self.texts.len() {
            let n_vocab = self.texts.len();
            let reason = format!("token {id} is beyond vocab_size = {n_vocab} of config.json");
            return Err(FolderError::Tokenizer { reason });
        }
        text.clone_into(&mut self.texts[id]);
        (self.scores[id], self.types[id]) = (score, ty);
        Ok(())
    }

    /// Tokens that were added to a vocabulary: special ones, and texts that stand for themselves.
    fn add(&mut self, id: usize, text: &str, is_special: bool) -> Result<(), FolderError> {
        let is_special = is_special || looks_special(text);
        let ty = if is_special { CONTROL } else { USER_DEFINED };
        let text = if is_special { text.to_owned() } else { text.replace('▁', " ") };
        self.set(id, &text, -1000.0, ty)
    }

    fn find(&self, text: &str) -> Option<usize> {
        self.texts.iter().position(|known| known == text)
    }
}

/// Some added tokens control a model and do not say so.
fn looks_special(text: &str) -> bool {
    let within = |start: &str, end: &str| text.starts_with(start) && text.ends_with(end);
    matches!(text, "<pad>" | "<mask>" | "<2mass>" | "[@BOS@]")
        || within("<|", "|>")
        || within("<｜", "｜>")
        || within("<unused", ">")
}

/// Every key of the tokenizer.
pub(super) fn pairs(path: &Path, config: &Config) -> Result<Vec<(String, Value)>, FolderError> {
    let tokenizer = json(&path.join("tokenizer.json"))?;
    let settings = json(&path.join("tokenizer_config.json"))?.unwrap_or_default();
    let key = |key: &str| format!("tokenizer.ggml.{key}");
    let n_vocab = config.n_vocab as usize;
    let model = read(&path.join("tokenizer.model"), FOLDER_JSON_BYTES_MAX)?;
    let mut pairs: Vec<(String, Value)> = Vec::new();
    let vocab = match (&model, &tokenizer) {
        (Some(model), _) => from_sentencepiece(model, &settings, n_vocab)?,
        (None, Some(tokenizer)) => from_json(tokenizer, n_vocab)?,
        (None, None) => return Err(refused("there is no tokenizer.json and no tokenizer.model")),
    };
    let is_spm = model.is_some() || is_byte_fallback(tokenizer.as_ref());
    pairs.push((key("model"), if is_spm { "llama" } else { "gpt2" }.into()));
    if is_spm {
        pairs.push((key("pre"), "default".into()));
        pairs.push((key("scores"), vocab.scores.as_slice().into()));
        if let Some(adds) = settings["add_prefix_space"].as_bool() {
            pairs.push((key("add_space_prefix"), adds.into()));
        }
    } else {
        let tokenizer = tokenizer.as_ref().unwrap_or(&Json::Null);
        let pre = pre::name_of(&tokenizer["pre_tokenizer"]).map_err(|reason| refused(&reason))?;
        pairs.push((key("pre"), pre.into()));
        pairs.push((key("merges"), merges(tokenizer)?.as_slice().into()));
    }
    let texts: Vec<&str> = vocab.texts.iter().map(String::as_str).collect();
    pairs.push((key("tokens"), texts.as_slice().into()));
    pairs.push((key("token_type"), vocab.types.as_slice().into()));
    for (role, name) in ROLES {
        if let Some(id) = special(role, &settings, config, &vocab) {
            pairs.push((key(name), (id as u32).into()));
        }
    }
    for role in ["bos", "eos"] {
        let said = settings[format!("add_{role}_token")].as_bool();
        let post = tokenizer.as_ref().map_or(&Json::Null, |tokenizer| &tokenizer["post_processor"]);
        if let Some(adds) = said.or_else(|| adds(post, role, &settings)) {
            pairs.push((key(&format!("add_{role}_token")), adds.into()));
        }
    }
    if let Some(template) = template(path, &settings)? {
        pairs.push(("tokenizer.chat_template".to_owned(), template.as_str().into()));
    }
    Ok(pairs)
}

fn refused(reason: &str) -> FolderError {
    FolderError::Tokenizer { reason: reason.to_owned() }
}

fn is_byte_fallback(tokenizer: Option<&Json>) -> bool {
    tokenizer.is_some_and(|tokenizer| tokenizer["model"]["byte_fallback"] == true)
}

fn from_sentencepiece(bytes: &[u8], settings: &Json, n_vocab: usize) -> Result<Vocab, FolderError> {
    let pieces = sentencepiece::pieces(bytes, n_vocab)
        .ok_or_else(|| refused("tokenizer.model is no SentencePiece model of this size"))?;
    let mut vocab = Vocab::unknown(n_vocab);
    for (id, piece) in pieces.iter().enumerate() {
        vocab.set(id, &piece.text, piece.score, piece.kind)?;
    }
    for (id, token) in settings["added_tokens_decoder"].as_object().into_iter().flatten() {
        let (Ok(id), Some(text)) = (id.parse::<usize>(), token["content"].as_str()) else {
            return Err(refused("added_tokens_decoder has a token without number or text"));
        };
        // The base's own tokens, unknown and control, are listed again; they stay what they are.
        let is_known = vocab.texts.get(id).is_some_and(|known| known == text)
            && matches!(vocab.types.get(id), Some(&(UNKNOWN | CONTROL)));
        if !is_known {
            vocab.add(id, text, token["special"] == true)?;
        }
    }
    Ok(vocab)
}

/// Tokens of a BPE, byte-level or with bytes to fall back on.
fn from_json(tokenizer: &Json, n_vocab: usize) -> Result<Vocab, FolderError> {
    let model = &tokenizer["model"];
    if model["type"].as_str().is_some_and(|ty| ty != "BPE") || !model["merges"].is_array() {
        return Err(refused("tokenizer.json has another model than BPE"));
    }
    let tokens = model["vocab"].as_object().ok_or_else(|| refused("it has no vocabulary"))?;
    let is_spm = is_byte_fallback(Some(tokenizer));
    let unknown = model["unk_token"].as_str();
    let mut vocab = Vocab::unknown(n_vocab);
    for (text, id) in tokens {
        let id = id.as_u64().and_then(|id| usize::try_from(id).ok());
        let id = id.ok_or_else(|| refused("a token has no number"))?;
        let ty = match text.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>')) {
            _ if !is_spm => NORMAL,
            Some(hex) if unhex::<[u8; 1]>(hex).is_some() => BYTE,
            _ if unknown == Some(text) => UNKNOWN,
            _ => NORMAL,
        };
        // SentencePiece numbers the tokens of a BPE in the order of their merges, and its scores
        // count down with them.
        let score = if ty == NORMAL { -(id as f32) } else { 0.0 };
        vocab.set(id, text, score, ty)?;
    }
    for token in tokenizer["added_tokens"].as_array().into_iter().flatten() {
        let (Some(id), Some(text)) = (token["id"].as_u64(), token["content"].as_str()) else {
            return Err(refused("added_tokens has a token without number or text"));
        };
        let id = id as usize;
        if is_spm && vocab.types.get(id) == Some(&UNKNOWN) {
            continue;
        }
        vocab.add(id, text, token["special"] == true)?;
    }
    Ok(vocab)
}

/// Merges as GGUF writes them: two tokens with a space between.
fn merges(tokenizer: &Json) -> Result<Vec<String>, FolderError> {
    let merges = tokenizer["model"]["merges"].as_array();
    let merge = |merge: &Json| match merge {
        Json::String(text) => Some(text.clone()),
        Json::Array(pair) => match pair.as_slice() {
            [Json::String(a), Json::String(b)] => Some(format!("{a} {b}")),
            _ => None,
        },
        _ => None,
    };
    let merges = merges.into_iter().flatten().map(merge).collect::<Option<Vec<String>>>();
    merges.ok_or_else(|| refused("a merge is no pair of tokens"))
}

/// The number of a token with a role: by its text, or as `config.json` has it.
fn special(role: &str, settings: &Json, config: &Config, vocab: &Vocab) -> Option<usize> {
    let entry = &settings[format!("{role}_token")];
    let text = entry.as_str().or_else(|| entry["content"].as_str());
    let by_text = text.and_then(|text| vocab.find(text));
    let by_number = || config.token_id(&format!("{role}_token_id")).map(|id| id as usize);
    by_text.or_else(by_number).filter(|id| *id < vocab.texts.len())
}

/// Whether a post-processor puts a token at the start or the end of a text, if it says so.
fn adds(post: &Json, role: &str, settings: &Json) -> Option<bool> {
    let several = post["processors"].as_array();
    let each = several.map_or(vec![post], |processors| processors.iter().collect());
    let mut found = None;
    for processor in each {
        match processor["type"].as_str() {
            Some("ByteLevel") => found = found.or(Some(false)),
            Some("TemplateProcessing") => {
                let single = processor["single"].as_array()?;
                let end = if role == "bos" { single.first() } else { single.last() }?;
                let entry = &settings[format!("{role}_token")];
                let wanted = entry.as_str().or_else(|| entry["content"].as_str());
                found = Some(wanted.is_some() && end["SpecialToken"]["id"].as_str() == wanted);
            }
            _ => {}
        }
    }
    found
}

/// The chat template, the one called `default` where there are several.
fn template(path: &Path, settings: &Json) -> Result<Option<String>, FolderError> {
    let said = &settings["chat_template"];
    if let Some(text) = said.as_str() {
        return Ok(Some(text.to_owned()));
    }
    let several = said.as_array().into_iter().flatten();
    let usual = several.into_iter().find(|template| template["name"] == "default");
    if let Some(text) = usual.and_then(|template| template["template"].as_str()) {
        return Ok(Some(text.to_owned()));
    }
    let bytes = read(&path.join("chat_template.jinja"), CHAT_TEMPLATE_BYTES_MAX)?;
    Ok(bytes.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()))
}
