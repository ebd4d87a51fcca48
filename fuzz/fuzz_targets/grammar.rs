//! Any text as a JSON schema, regular expression, Lark grammar or GBNF: it compiles or says why
//! not, and what it lets through it also accepts.
//!
//! The first byte chooses the notation, the second the tokens that are picked under the mask.
#![no_main]

use std::sync::OnceLock;

use jetforge::inference::gguf::Gguf;
use jetforge::inference::grammar::{GrammarSpec, GrammarVocab, Matcher, Trigger};
use jetforge::inference::tokenizer::{TokenId, Tokenizer};
use libfuzzer_sys::fuzz_target;

static VOCAB: OnceLock<(GrammarVocab, usize)> = OnceLock::new();

fn vocab() -> &'static (GrammarVocab, usize) {
    VOCAB.get_or_init(|| {
        let model = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/default.gguf");
        let gguf = Gguf::open(model.as_ref()).expect("the default model opens");
        let tokenizer = Tokenizer::from_gguf(gguf.metadata()).expect("it has a vocabulary");
        let vocab = GrammarVocab::new(&tokenizer).expect("grammars can use it");
        (vocab, tokenizer.n_vocab())
    })
}

fuzz_target!(|input: (u8, u8, &str)| {
    let (kind, seed, text) = input;
    let text = text.to_owned();
    let spec = match kind % 5 {
        0 => GrammarSpec::JsonSchema(text),
        1 => GrammarSpec::Regex(text),
        2 => GrammarSpec::Lark(text),
        _ => GrammarSpec::Gbnf(text),
    };
    let (vocab, n_vocab) = vocab();
    let matcher = match kind & 0x80 {
        0 => Matcher::new(vocab, &spec),
        _ => Matcher::lazy(vocab, &spec, &[Trigger::Word("a".to_owned())]),
    };
    let Ok(mut matcher) = matcher else { return };
    let mut logits = vec![0.0; *n_vocab];
    for step in 0..8 {
        logits.fill(0.0);
        if matcher.mask(&mut logits).is_err() {
            return;
        }
        if step % 3 == 2 {
            matcher = matcher.clone();
        }
        let left: Vec<usize> = (0..*n_vocab).filter(|&id| logits[id] == 0.0).collect();
        let Some(&token) = left.get((usize::from(seed) * 31 + step * 7) % left.len().max(1)) else {
            return;
        };
        let was_waiting = matcher.is_waiting();
        let accepted = matcher.accept(token as TokenId);
        assert!(accepted.is_ok() || was_waiting, "token {token} of {spec:?}: {accepted:?}");
        if cfg!(feature = "canary") {
            assert!(!matcher.is_finished() || seed % 2 == 0, "canary");
        }
        if accepted.is_err() || matcher.is_finished() {
            return;
        }
    }
});
