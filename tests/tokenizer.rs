//! The tokenizer against llama.cpp, chat templates against Python's Jinja.
//!
//! The golden files were written by tests/tools/golden_tokenizer.py, whose head says how. Vectors
//! of the default model and of tiny vocabularies are always compared; the vocabularies that
//! llama.cpp's source carries are too large to commit, and are compared where
//! `JETFORGE_TEST_PEER_VOCABS` names their folder.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

use jetforge::base::hash::{fnv1a, hex, unhex};
use jetforge::inference::gguf::{Gguf, Metadata};
use jetforge::inference::tokenizer::{
    ChatTemplate, EncodeOptions, Message, RenderOptions, TemplateError, TokenId, Tokenizer,
};
use serde::Deserialize;
use sha2::{Digest, Sha256};

use crate::support::skip::skip;

const SPECIAL: EncodeOptions = EncodeOptions { add_special: true, parse_special: true };
const PLAIN: EncodeOptions = EncodeOptions { add_special: false, parse_special: false };

/// Vocabularies whose texts llama.cpp tidies when it decodes (` ,` becomes `,`); JetForge does not.
const TIDIED: &[&str] = &[
    "aquila",
    "bert-bge",
    "falcon",
    "gpt-2",
    "gpt-neox",
    "llama-bpe",
    "mpt",
    "refact",
    "starcoder",
    "tiny-bert",
    "tiny-llama-bpe",
    "tiny-starcoder",
];
/// Vocabularies with normal tokens outside the byte alphabet, which llama.cpp shows as
/// `[UNK_BYTE_0x…]` and JetForge as they are.
const RAW_TOKENS: &[&str] = &["aquila", "command-r"];
/// Templates that add plain text to text marked as safe HTML: Python then escapes the plain part
/// (`&lt;`), minijinja and llama.cpp do not.
const ESCAPED_IN_PYTHON: &[&str] = &["meetkai-functionary-medium-v3.1.jinja"];
/// Vocabularies that name no EOT but have several texts for it: llama.cpp takes what its hash table
/// shows first.
const NO_FIXED_EOT: &[&str] =
    &["tiny-deepseek-coder", "tiny-llama-bpe", "tiny-phi3", "tiny-starcoder"];

#[derive(Deserialize)]
#[serde(untagged)]
enum Case {
    Text { text: String },
    Bytes { hex: String },
}

#[derive(Deserialize)]
struct Golden {
    special: BTreeMap<String, serde_json::Value>,
    pieces: [String; 2],
    decoded: String,
    texts: String,
}

#[derive(Deserialize)]
struct FullModel {
    special: BTreeMap<String, serde_json::Value>,
    pieces: [String; 2],
}

#[derive(Deserialize)]
struct Full {
    model: FullModel,
    cases: Vec<(Vec<TokenId>, Vec<TokenId>, String)>,
}

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/tokenizer").join(name)
}

fn read<T: for<'de> Deserialize<'de>>(name: &str) -> T {
    let text = std::fs::read_to_string(golden(name)).unwrap();
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn corpus() -> Vec<Vec<u8>> {
    let cases: Vec<Case> = read("corpus.json");
    let bytes = |case| match case {
        Case::Text { text } => String::into_bytes(text),
        Case::Bytes { hex } => unhex(&hex).unwrap(),
    };
    cases.into_iter().map(bytes).collect()
}

fn default_model() -> Gguf {
    Gguf::open(&Path::new(env!("CARGO_MANIFEST_DIR")).join("models/default.gguf")).unwrap()
}

fn load(path: &Path, pre: Option<&str>) -> (Tokenizer, Metadata) {
    let gguf = Gguf::open(path).unwrap();
    let mut meta = gguf.metadata().clone();
    if let Some(pre) = pre {
        meta.set("tokenizer.ggml.pre", pre);
    }
    let tokenizer = Tokenizer::from_gguf(&meta);
    (tokenizer.unwrap_or_else(|error| panic!("{}: {error}", path.display())), meta)
}

/// FNV-1a over the ids of both lists, as the script computes it.
fn ids_hash(lists: [&[TokenId]; 2]) -> String {
    let ids = lists.into_iter().flat_map(|ids| ids.iter().copied().chain([u32::MAX]));
    format!("{:08x}", fnv1a(ids.flat_map(u32::to_le_bytes)) >> 32)
}

fn hash_of_all<'a>(texts: impl Iterator<Item = std::borrow::Cow<'a, [u8]>>) -> String {
    let mut hash = Sha256::new();
    for text in texts {
        hash.update((text.len() as u32).to_le_bytes());
        hash.update(&text);
    }
    hex(&hash.finalize()[..8])
}

/// The roles as the script writes them, −1 for none.
fn roles(tokenizer: &Tokenizer) -> BTreeMap<String, serde_json::Value> {
    let special = tokenizer.special();
    let id = |id: Option<TokenId>| id.map_or(-1, i64::from).into();
    let pairs = [
        ("bos", id(special.bos)),
        ("eos", id(special.eos)),
        ("eot", id(special.eot)),
        ("sep", id(special.sep)),
        ("pad", id(special.pad)),
        ("fim_prefix", id(special.fim_prefix)),
        ("fim_suffix", id(special.fim_suffix)),
        ("fim_middle", id(special.fim_middle)),
        ("fim_pad", id(special.fim_pad)),
        ("fim_repo", id(special.fim_repo)),
        ("fim_file_sep", id(special.fim_file_sep)),
        ("add_bos", special.add_bos.into()),
        ("add_eos", special.add_eos.into()),
        ("eog", special.eog.clone().into()),
    ];
    pairs.into_iter().map(|(role, value)| (role.to_owned(), value)).collect()
}

/// Every difference between a vocabulary and its golden hashes, one line each.
fn differences(name: &str, tokenizer: &Tokenizer, golden: &Golden) -> Vec<String> {
    let base = name.split('@').next().unwrap();
    let mut found = Vec::new();
    let mut plain_ids = Vec::new();
    let corpus = corpus();
    assert_eq!(corpus.len(), golden.texts.split(' ').count(), "the corpus changed: {name}");
    for (text, expected) in std::iter::zip(corpus, golden.texts.split(' ')) {
        let special = tokenizer.encode_bytes(&text, SPECIAL).unwrap();
        let plain = tokenizer.encode_bytes(&text, PLAIN).unwrap();
        if ids_hash([&special, &plain]) != expected {
            found.push(format!("{name}: {:?} -> {plain:?}", String::from_utf8_lossy(&text)));
        }
        plain_ids.push(plain);
    }
    let ours = roles(tokenizer);
    for (role, value) in &golden.special {
        // The one token that ends a generation here and not there.
        let mut value = value.clone();
        if let (Some(eog), Some(end)) = (value.as_array_mut(), tokenizer.token_id("<|EOT|>")) {
            eog.push(end.into());
        }
        if ours[role] != value && !(role == "eot" && NO_FIXED_EOT.contains(&base)) {
            found.push(format!("{name}: {role} is {}, llama.cpp says {value}", ours[role]));
        }
    }
    for (special, expected) in [(true, &golden.pieces[0]), (false, &golden.pieces[1])] {
        let ids = 0..tokenizer.n_vocab() as TokenId;
        let hash = hash_of_all(ids.map(|id| tokenizer.token_bytes(id, special).into()));
        if hash != *expected && !RAW_TOKENS.contains(&base) {
            found.push(format!("{name}: pieces differ (special: {special})"));
        }
    }
    let decoded = hash_of_all(plain_ids.iter().map(|ids| tokenizer.decode(ids, false).into()));
    if decoded != golden.decoded && !TIDIED.contains(&base) {
        found.push(format!("{name}: decoded texts differ"));
    }
    found
}

#[test]
fn the_default_model_has_the_tokens_of_llama_cpp() {
    let golden: Full = read("default.json");
    let tokenizer = Tokenizer::from_gguf(default_model().metadata()).unwrap();
    let corpus = corpus();
    assert_eq!(corpus.len(), golden.cases.len());
    for (text, (special, plain, decoded)) in std::iter::zip(&corpus, &golden.cases) {
        let shown = String::from_utf8_lossy(text);
        assert_eq!(tokenizer.encode_bytes(text, SPECIAL).unwrap(), *special, "{shown:?}");
        assert_eq!(tokenizer.encode_bytes(text, PLAIN).unwrap(), *plain, "{shown:?}");
        assert_eq!(Some(tokenizer.decode(plain, false)), unhex(decoded), "{shown:?}");
    }
    assert_eq!(roles(&tokenizer), golden.model.special);
    for (special, expected) in [(true, &golden.model.pieces[0]), (false, &golden.model.pieces[1])] {
        let ids = 0..tokenizer.n_vocab() as TokenId;
        let hash = hash_of_all(ids.map(|id| tokenizer.token_bytes(id, special).into()));
        assert_eq!(hash, *expected);
    }
}

#[test]
fn tiny_vocabularies_have_the_tokens_of_llama_cpp() {
    let goldens: BTreeMap<String, Golden> = read("tiny.json");
    assert!(goldens.len() >= 6);
    let mut found = Vec::new();
    for (name, golden) in &goldens {
        let (tokenizer, _) = load(&self::golden(&format!("{name}.gguf")), None);
        found.extend(differences(name, &tokenizer, golden));
    }
    assert!(found.is_empty(), "{} differences:\n{}", found.len(), found.join("\n"));
}

#[test]
fn peer_vocabularies_have_the_tokens_of_llama_cpp() {
    let Some(folder) = std::env::var_os("JETFORGE_TEST_PEER_VOCABS") else {
        skip(
            "peer-vocabs",
            "JETFORGE_TEST_PEER_VOCABS names no folder with llama.cpp's vocabularies",
        );
        return;
    };
    let goldens: BTreeMap<String, Golden> = read("peer_vocabs.json");
    let mut found = Vec::new();
    for (name, golden) in &goldens {
        let (base, pre) = match name.split_once('@') {
            Some((base, pre)) => (base, Some(pre)),
            None => (name.as_str(), None),
        };
        let start = Instant::now();
        let path = Path::new(&folder).join(format!("ggml-vocab-{base}.gguf"));
        let (tokenizer, _) = load(&path, pre);
        let load_ms = start.elapsed().as_millis();
        println!("{name}: {} tokens, loaded in {load_ms} ms", tokenizer.n_vocab());
        found.extend(differences(name, &tokenizer, golden));
    }
    assert!(found.is_empty(), "{} differences:\n{}", found.len(), found.join("\n"));
}

#[test]
fn a_fim_prompt_has_the_order_the_model_was_trained_on() {
    let tokenizer = Tokenizer::from_gguf(default_model().metadata()).unwrap();
    let prompt = tokenizer.fim_prompt("def f(", "    return x<|im_end|>").unwrap();
    let shown = tokenizer.decode(&prompt, true);
    let expected = "<|fim_prefix|>def f(<|fim_suffix|>    return x<|im_end|><|fim_middle|>";
    assert_eq!(String::from_utf8(shown).unwrap(), expected);
    let end_of_turn = tokenizer.token_id("<|im_end|>").unwrap();
    assert!(!prompt.contains(&end_of_turn), "text from outside must not end the turn");
}

#[test]
fn the_default_model_renders_its_own_template() {
    let gguf = default_model();
    let template = ChatTemplate::from_gguf(gguf.metadata()).unwrap().unwrap();
    let message =
        |role: &str, content: &str| Message { role: role.into(), content: content.into() };
    let options = RenderOptions { add_generation_prompt: true, ..RenderOptions::default() };
    let text = template.render(&[message("user", "a < b")], &options).unwrap();
    assert_eq!(
        text,
        "<|im_start|>system\nYou are a coding assistant. Answer with Python code.<|im_end|>\n\
         <|im_start|>user\na < b<|im_end|>\n<|im_start|>assistant\n"
    );
    let tokenizer = Tokenizer::from_gguf(gguf.metadata()).unwrap();
    assert_eq!(tokenizer.encode_chat(&text).unwrap()[0], 1);
}

/// The conversations of the script, each without and with tools.
fn chats() -> Vec<(Vec<Message>, Option<serde_json::Value>)> {
    let chats: [&[(&str, &str)]; 3] = [
        &[("user", "Hi <b> & \"x\"")],
        &[
            ("system", "Be brief."),
            ("user", "  write quick sort  "),
            ("assistant", "def f(): ..."),
            ("user", "now in Rust"),
        ],
        &[("user", "é 你好 🦀"), ("assistant", "ok\n"), ("user", "{{ 1 }}")],
    ];
    let tools = serde_json::json!([{"type": "function", "function": {"name": "run",
        "description": "Runs <code> & \"more\" é", "parameters": {"type": "object",
        "properties": {"n": {"type": "integer", "minimum": 0, "default": 1.5},
        "s": {"type": ["string", "null"], "enum": ["a", null, true]}}, "required": ["n"]}}}]);
    let messages = |chat: &[(&str, &str)]| {
        let message = |&(role, content): &(&str, &str)| Message {
            role: role.to_owned(),
            content: content.to_owned(),
        };
        chat.iter().map(message).collect::<Vec<_>>()
    };
    chats
        .into_iter()
        .flat_map(|chat| [(messages(chat), None), (messages(chat), Some(tools.clone()))])
        .collect()
}

#[test]
fn peer_templates_render_as_pythons_jinja_does() {
    let Some(folder) = std::env::var_os("JETFORGE_TEST_PEER_VOCABS") else {
        skip(
            "peer-templates",
            "JETFORGE_TEST_PEER_VOCABS names no folder with llama.cpp's templates",
        );
        return;
    };
    let goldens: BTreeMap<String, Vec<Option<String>>> = read("templates.json");
    let (mut found, mut n_same, mut n_more) = (Vec::new(), 0, 0);
    for (name, expected) in &goldens {
        let source = std::fs::read_to_string(Path::new(&folder).join("templates").join(name));
        let template = match ChatTemplate::from_source(&source.unwrap(), "<s>", "</s>") {
            Ok(template) => template,
            Err(error) => {
                found.push(format!("{name}: {error}"));
                continue;
            }
        };
        for (idx, ((messages, tools), expected)) in std::iter::zip(chats(), expected).enumerate() {
            let options = RenderOptions {
                add_generation_prompt: true,
                tools,
                now_unix_s: Some(1_720_000_000),
                ..RenderOptions::default()
            };
            let text = template.render(&messages, &options);
            let hash = text.as_ref().ok().map(|text| hex(&Sha256::digest(text)[..8]));
            match (&text, hash == *expected) {
                (_, true) => n_same += 1,
                // Python fails where a template iterates over None, and minijinja does not mind.
                (Ok(_), _) if expected.is_none() => n_more += 1,
                (Ok(_), _) if ESCAPED_IN_PYTHON.contains(&name.as_str()) => {}
                (Err(error), _) => found.push(format!("{name} {idx}: {error}")),
                (Ok(text), _) => {
                    if let Some(out) = std::env::var_os("JETFORGE_TEMPLATES_OUT") {
                        std::fs::write(Path::new(&out).join(format!("{name}.{idx}.txt")), text)
                            .unwrap();
                    }
                    found.push(format!("{name} {idx}: differs"));
                }
            }
        }
    }
    println!("{n_same} renderings are the same, {n_more} fail in Python only");
    assert!(found.is_empty(), "{} differences:\n{}", found.len(), found.join("\n"));
}

#[test]
fn a_template_from_a_file_is_bounded() {
    let endless = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}";
    let template = ChatTemplate::from_source(endless, "", "").unwrap();
    let error = template.render(&[], &RenderOptions::default()).unwrap_err();
    assert!(matches!(error, TemplateError::TooManySteps { .. }), "{error}");
}

#[test]
fn a_wrong_token_is_noticed() {
    let goldens: BTreeMap<String, Golden> = read("tiny.json");
    let (name, mut golden) = goldens.into_iter().next().unwrap();
    let (tokenizer, _) = load(&self::golden(&format!("{name}.gguf")), None);
    let first = golden.texts.split(' ').next().unwrap().to_owned();
    golden.texts = golden.texts.replacen(&first, "00000000", 1);
    assert_eq!(differences(&name, &tokenizer, &golden).len(), 1);
}
