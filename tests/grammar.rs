//! Structured output over the vocabulary of the default model: what llama.cpp's grammars allow, and
//! that whatever a mask lets through is what was asked for.
//!
//! `cases.jsonl` and its format come from `tests/tools/golden_grammar.py`, which says how to make
//! them again, and how to compare other grammars and vocabularies.

use std::path::{Path, PathBuf};

use jetforge::inference::gguf::Gguf;
use jetforge::inference::grammar::{GrammarSpec, GrammarVocab, Matcher};
use jetforge::inference::tokenizer::{EncodeOptions, TokenId, Tokenizer};
use serde::Deserialize;
use serde_json::Value;

#[derive(Deserialize)]
struct Case {
    g: String,
    tokens: Vec<TokenId>,
    n: Vec<usize>,
    h: Vec<u32>,
    end: Vec<u8>,
}

/// A path beside Cargo.toml, or the one in the environment.
fn path(variable: &str, default: &str) -> PathBuf {
    let default = || Path::new(env!("CARGO_MANIFEST_DIR")).join(default);
    std::env::var_os(variable).map_or_else(default, PathBuf::from)
}

fn tokenizer(model: &Path) -> Tokenizer {
    let gguf = Gguf::open(model).unwrap();
    Tokenizer::from_gguf(gguf.metadata()).unwrap()
}

fn default_model() -> (Tokenizer, GrammarVocab) {
    let tokenizer = tokenizer(&path("", "models/default.gguf"));
    let vocab = GrammarVocab::new(&tokenizer).unwrap();
    (tokenizer, vocab)
}

fn grammar(folder: &Path, name: &str) -> GrammarSpec {
    let file = folder.join(format!("{name}.gbnf"));
    GrammarSpec::Gbnf(std::fs::read_to_string(file).unwrap())
}

/// The allowed tokens that are text, and whether the text may end. Bytes that no UTF-8 has are
/// left out, for llama.cpp lets them begin a character.
fn allowed(tokenizer: &Tokenizer, matcher: &mut Matcher) -> (Vec<TokenId>, bool) {
    let mut logits = vec![0.0; tokenizer.n_vocab()];
    matcher.mask(&mut logits).unwrap();
    let ids = (0..tokenizer.n_vocab() as TokenId).filter(|&id| logits[id as usize] == 0.0);
    let (eog, others): (Vec<_>, Vec<_>) = ids.partition(|&id| tokenizer.is_eog(id));
    let is_text = |&id: &TokenId| {
        let text = tokenizer.token_bytes(id, false);
        !text.is_empty() && text.iter().all(|&byte| byte < 0xF5)
    };
    (others.into_iter().filter(is_text).collect(), !eog.is_empty())
}

/// 32-bit FNV-1a over the ids as little-endian u32.
fn fnv(ids: &[TokenId]) -> u32 {
    let bytes = ids.iter().flat_map(|id| id.to_le_bytes());
    bytes.fold(0x811C_9DC5, |h, byte| (h ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}

#[test]
fn gbnf_allows_the_tokens_that_llama_cpp_allows() {
    let folder = path("JETFORGE_GRAMMAR_DIR", "tests/golden/grammar");
    let cases = path("JETFORGE_GRAMMAR_CASES", "tests/golden/grammar/cases.jsonl");
    let tokenizer = tokenizer(&path("JETFORGE_GRAMMAR_MODEL", "models/default.gguf"));
    let vocab = GrammarVocab::new(&tokenizer).unwrap();
    let cases = std::fs::read_to_string(cases).unwrap();
    assert!(!cases.is_empty());
    for line in cases.lines() {
        let case: Case = serde_json::from_str(line).unwrap();
        let mut matcher = Matcher::new(&vocab, &grammar(&folder, &case.g)).unwrap();
        for step in 0..case.n.len() {
            let (texts, may_end) = allowed(&tokenizer, &mut matcher);
            let place = || {
                let text = tokenizer.decode(&case.tokens[..step], true);
                format!("{} after {:?}", case.g, String::from_utf8_lossy(&text))
            };
            assert_eq!(may_end, case.end[step] == 1, "the end: {}", place());
            assert_eq!(texts.len(), case.n[step], "how many: {}", place());
            assert_eq!(fnv(&texts), case.h[step], "which: {}", place());
            if let Some(&token) = case.tokens.get(step) {
                matcher.accept(token).unwrap_or_else(|e| panic!("{e}: {}", place()));
            }
        }
    }
}

/// Whether the grammar takes the tokens of the whole text and lets it end.
fn accepts(tokenizer: &Tokenizer, matcher: &Matcher, text: &str) -> bool {
    let mut matcher = matcher.clone();
    let tokens = tokenizer.encode(text, EncodeOptions::default()).unwrap();
    tokens.into_iter().all(|token| matcher.accept(token).is_ok()) && matcher.is_accepting()
}

#[test]
fn gbnf_files_accept_and_refuse_whole_texts() {
    let (tokenizer, vocab) = default_model();
    let folder = path("", "tests/golden/grammar");
    let cases: &[(&str, &[&str], &[&str])] = &[
        ("json", &["{}", "{\"a\": [1, -0.5e+3, {\"b\\u00e9\": null}]}\n  "], &["[]", "{\"a\":01}"]),
        ("rows", &["[\n  {\"id\": 7, \"name\": \"é\", \"ok\": true}\n]"], &["[]", "[\n\n]"]),
        ("sums", &["a + 2*(b - -3) = x_1\n"], &["a = \n", "a + = 1\n", "a = 1"]),
        ("bullets", &["- one\n  - two\n"], &["- one", "* one\n"]),
        (
            "functions",
            &["int main(char** v) {\n  int x = f(1, -y)*2;\n  /* a * b **/\n}\n"],
            &["int main() {}\n", "int main() {\n  int x = ;\n}\n"],
        ),
        ("moves", &["1. e4 e5\n2. Nf3 Nc6\n3. exd5=Q+ O-O-O#\n"], &["1. e4\n", "2. e4 e5\n"]),
        ("kana", &["こんにちは 世界\nカタ"], &["hello", " こ"]),
        ("python", &["def f(x):\n    if [a, 12]:\n        return self.b\n"], &["def f:\n"]),
        (
            "tool",
            &[concat!(
                "<tool_call>\n{\"name\": \"run\", ",
                "\"arguments\": {\"cmd\": \"ls\\n\"}}\n</tool_call>"
            )],
            &["<tool_call>\n{\"name\": \"rm\", \"arguments\": {\"cmd\": \"x\"}}\n</tool_call>"],
        ),
        ("ambiguous", &["ab", "abce", "aa.", "ababcabb."], &["a.", "e", "xab."]),
    ];
    for (name, good, bad) in cases {
        let matcher = Matcher::new(&vocab, &grammar(&folder, name)).unwrap();
        for text in *good {
            assert!(accepts(&tokenizer, &matcher, text), "{name} refuses {text:?}");
        }
        for text in *bad {
            assert!(!accepts(&tokenizer, &matcher, text), "{name} accepts {text:?}");
        }
    }
}

/// A xorshift generator: the same answers on every machine.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

/// A text by random tokens under the mask. `closing` is how much tokens that end something are
/// preferred, so that texts end.
fn random_text(tokenizer: &Tokenizer, matcher: &Matcher, seed: u64) -> Option<String> {
    let mut matcher = matcher.clone();
    let mut random = Random(seed * 2 + 1);
    let mut tokens = vec![];
    for step in 0..400 {
        let mut logits: Vec<f32> = (0..tokenizer.n_vocab() as TokenId)
            .map(|id| {
                let text = tokenizer.token_bytes(id, false);
                let closes = text.iter().filter(|b| b"]}\"".contains(b)).count() as f32;
                let opens = text.iter().filter(|b| b"[{ ,\\".contains(b)).count() as f32;
                (random.next() % 1000) as f32 / 100.0 + (closes - opens) * step as f32 / 10.0
            })
            .collect();
        matcher.mask(&mut logits).unwrap();
        let best = (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap();
        assert!(logits[best] > f32::NEG_INFINITY);
        let token = best as TokenId;
        matcher.accept(token).unwrap();
        if !tokenizer.is_eog(token) {
            tokens.push(token);
        }
        if matcher.is_finished() {
            return Some(String::from_utf8(tokenizer.decode(&tokens, true)).unwrap());
        }
    }
    None
}

/// A schema and what its values must be.
type SchemaCase = (&'static str, fn(&Value) -> bool);

fn is_short(value: &Value, key: &str) -> bool {
    value[key].as_str().is_some_and(|s| (2..=5).contains(&s.chars().count()))
}

#[test]
fn whatever_the_mask_lets_through_parses_and_fits_the_schema() {
    let (tokenizer, vocab) = default_model();
    let cases: &[SchemaCase] = &[
        ("{}", |_| true),
        (r#"{"type":"object"}"#, Value::is_object),
        (
            r#"{"type":"object","properties":{"name":{"type":"string","minLength":2,"maxLength":5},
               "age":{"type":"integer","minimum":0,"maximum":150},"tags":{"type":"array",
               "items":{"enum":["a","b"]},"minItems":1,"maxItems":3}},
               "required":["name","age","tags"],"additionalProperties":false}"#,
            |v| {
                let keys: Vec<&String> = v.as_object().unwrap().keys().collect();
                let tags = v["tags"].as_array().unwrap();
                keys == ["name", "age", "tags"]
                    && is_short(v, "name")
                    && v["age"].as_u64().unwrap() <= 150
                    && (1..=3).contains(&tags.len())
                    && tags.iter().all(|tag| tag == "a" || tag == "b")
            },
        ),
        (
            r#"{"anyOf":[{"const":7},{"type":"object","properties":{"x":{"type":"boolean"}},
               "required":["x"]}]}"#,
            |v| v == 7 || v["x"].is_boolean(),
        ),
        (
            r##"{"$defs":{"t":{"type":"object","properties":{"v":{"type":"integer"},"kids":{
               "type":"array","items":{"$ref":"#/$defs/t"},"maxItems":2}},
               "required":["v","kids"],"additionalProperties":false}},"$ref":"#/$defs/t"}"##,
            |v| {
                fn is_tree(v: &Value) -> bool {
                    v["v"].is_i64()
                        || v["v"].is_u64()
                        || v["v"].is_f64() // beyond 64 bits
                        && v["kids"].as_array().is_some_and(|kids| kids.iter().all(is_tree))
                }
                is_tree(v)
            },
        ),
        (r#"{"type":"string","pattern":"^[a-f]{2}-[0-9]+$"}"#, |v| {
            let (head, tail) = v.as_str().unwrap().split_once('-').unwrap();
            head.len() == 2 && tail.bytes().all(|b| b.is_ascii_digit())
        }),
        (r#"{"type":"array","items":{"type":"string","format":"date-time"},"minItems":1}"#, |v| {
            v.as_array().unwrap().iter().all(|s| s.as_str().unwrap().contains(['T', 't']))
        }),
    ];
    let mut n_finished = 0;
    for (schema, fits) in cases {
        let spec = GrammarSpec::JsonSchema((*schema).to_owned());
        let matcher = Matcher::new(&vocab, &spec).unwrap();
        for seed in 0..12 {
            let Some(text) = random_text(&tokenizer, &matcher, seed) else { continue };
            n_finished += 1;
            match serde_json::from_str::<Value>(&text) {
                Ok(value) => assert!(fits(&value), "{schema}: {text}"),
                // JSON, but a number that no f64 holds.
                Err(e) if e.to_string().contains("out of range") => {}
                Err(e) => panic!("{schema}: {e}: {text}"),
            }
        }
    }
    assert!(n_finished >= 60, "only {n_finished} of 84 answers came to an end");
}
