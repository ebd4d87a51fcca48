//! The room through its face: files that are wrong, roles of tokens, and chat templates.

use serde::Deserialize;

use super::*;
use crate::inference::gguf::Value;

const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const NORMAL: i32 = 1;

/// A byte-level vocabulary of all 256 bytes, a few merges and the tokens given.
fn bpe_meta(extra: &[(&str, i32)]) -> Metadata {
    let mut tokens: Vec<String> = (0..=255u8)
        .map(|byte| {
            let mut text = String::new();
            byte_level::encode(&[byte], &mut text);
            text
        })
        .collect();
    let mut types = vec![NORMAL; tokens.len()];
    for merged in ["ab", "abc", "Ġa"] {
        tokens.push(merged.to_owned());
        types.push(NORMAL);
    }
    for (text, ty) in extra {
        tokens.push((*text).to_owned());
        types.push(*ty);
    }
    let tokens: Vec<&str> = tokens.iter().map(String::as_str).collect();
    Metadata::from_pairs([
        ("general.architecture", Value::from("qwen2")),
        ("tokenizer.ggml.model", Value::from("gpt2")),
        ("tokenizer.ggml.pre", Value::from("qwen2")),
        ("tokenizer.ggml.tokens", Value::from(&tokens[..])),
        ("tokenizer.ggml.token_type", Value::from(&types[..])),
        ("tokenizer.ggml.merges", Value::from(&["a b", "ab c", "Ġ a"][..])),
    ])
}

fn with(mut meta: Metadata, key: &str, value: impl Into<Value>) -> Metadata {
    meta.set(key, value);
    meta
}

fn refused(meta: &Metadata) -> String {
    match Tokenizer::from_gguf(meta) {
        Ok(_) => panic!("it was accepted"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn merges_make_words_and_bytes_come_back() {
    let tokenizer = Tokenizer::from_gguf(&bpe_meta(&[])).unwrap();
    let ids = tokenizer.encode("abcab a\u{1f980}", EncodeOptions::default()).unwrap();
    assert_eq!(ids[..3], [257, 256, 258]);
    assert_eq!(ids.len(), 3 + 4);
    assert_eq!(tokenizer.decode(&ids, false), "abcab a\u{1f980}".as_bytes());
    assert_eq!(tokenizer.token_bytes(u32::MAX, true), b"");
    assert_eq!(tokenizer.token_id("Ġa"), Some(258));
}

#[test]
fn what_is_wrong_with_a_file_is_said() {
    let no_bos = "add_bos_token";
    let cases = [
        (with(bpe_meta(&[]), "tokenizer.ggml.model", "t5"), "`t5` is not supported"),
        (with(bpe_meta(&[]), "tokenizer.ggml.pre", "kimi-k2"), "`kimi-k2` is not supported"),
        (with(bpe_meta(&[]), "tokenizer.ggml.tokens", &["a"; 0][..]), "0 tokens"),
        (with(bpe_meta(&[]), "tokenizer.ggml.tokens", 5u32), "`tokenizer.ggml.tokens`"),
        (with(bpe_meta(&[]), "tokenizer.ggml.token_type", &[1i32][..]), "1 items"),
        (with(bpe_meta(&[]), "tokenizer.ggml.merges", &["ab"][..]), "merge 0 is \"ab\""),
        (with(bpe_meta(&[]), "tokenizer.ggml.merges", &["a b", "abc abc"][..]), "merge 1"),
        (with(bpe_meta(&[]), "tokenizer.ggml.merges", &[""][..]), "merge 0"),
        (bpe_meta(&[("ab", NORMAL)]), "the same text \"ab\""),
        (bpe_meta(&[("<0xZZ>", 6)]), "no byte token"),
        (bpe_meta(&[(&"x".repeat(20_000), NORMAL)]), "20000 bytes"),
        (Metadata::default(), "`tokenizer.ggml.model`"),
    ];
    for (meta, expected) in cases {
        let message = refused(&meta);
        assert!(message.contains(expected), "{message} lacks {expected}");
    }
    let meta = with(bpe_meta(&[]), &format!("tokenizer.ggml.{no_bos}"), true);
    let tokenizer = Tokenizer::from_gguf(&meta).unwrap();
    let options = EncodeOptions { add_special: true, parse_special: false };
    let message = tokenizer.encode("a", options).unwrap_err().to_string();
    assert!(message.contains("BOS"), "{message}");
    let long = "a".repeat(TOKENIZE_BYTES_MAX + 1);
    assert!(tokenizer.encode(&long, EncodeOptions::default()).is_err());
}

#[test]
fn control_tokens_in_a_text_are_text_unless_allowed() {
    let extra = [("<|im_start|>", CONTROL), ("<|im_end|>", NORMAL), ("<tool>", USER_DEFINED)];
    let tokenizer = Tokenizer::from_gguf(&bpe_meta(&extra)).unwrap();
    let text = "<|im_start|>a<tool><|im_end|>";
    let allowed = EncodeOptions { add_special: false, parse_special: true };
    let ids = tokenizer.encode(text, allowed).unwrap();
    assert_eq!(ids, [259, u32::from(b'a'), 261, 260]);
    assert_eq!(tokenizer.decode(&ids, false), b"a<tool>");
    assert_eq!(tokenizer.decode(&ids, true), text.as_bytes());
    let plain = tokenizer.encode(text, EncodeOptions::default()).unwrap();
    assert!(plain.contains(&261) && !plain.contains(&259) && !plain.contains(&260));
    assert_eq!(tokenizer.special().eot, Some(260));
    assert!(tokenizer.is_eog(260) && !tokenizer.is_eog(259));
}

#[test]
fn a_chat_has_one_bos() {
    let meta = bpe_meta(&[("<s>", CONTROL)]);
    let meta = with(
        with(meta, "tokenizer.ggml.bos_token_id", 259u32),
        "tokenizer.ggml.add_bos_token",
        true,
    );
    let tokenizer = Tokenizer::from_gguf(&meta).unwrap();
    assert_eq!(tokenizer.encode_chat("<s>a").unwrap(), [259, 97]);
    assert_eq!(tokenizer.encode_chat("a").unwrap(), [259, 97]);
}

#[test]
fn fim_tokens_are_found_by_their_text() {
    let tokenizer = Tokenizer::from_gguf(&bpe_meta(&[])).unwrap();
    let message = tokenizer.fim_prompt("a", "b").unwrap_err().to_string();
    assert!(message.contains("no prefix token"), "{message}");
    let deepseek =
        ["<｜fim▁hole｜>", "<｜fim▁begin｜>", "<｜fim▁end｜>"].map(|text| (text, NORMAL));
    let tokenizer = Tokenizer::from_gguf(&bpe_meta(&deepseek)).unwrap();
    assert_eq!(tokenizer.fim_prompt("a", "b").unwrap(), [260, 97, 259, 98, 261]);
}

fn say(role: &str, content: &str) -> Message {
    Message { role: role.to_owned(), content: content.to_owned() }
}

fn render(source: &str, messages: &[Message]) -> Result<String, TemplateError> {
    let options = RenderOptions {
        add_generation_prompt: true,
        now_unix_s: Some(1_720_000_000),
        ..RenderOptions::default()
    };
    ChatTemplate::from_source(source, "<s>", "</s>")?.render(messages, &options)
}

#[test]
fn builtin_templates_are_those_of_llama_cpp() {
    let chat = [say("system", "S"), say("user", "U1"), say("assistant", " A1 "), say("user", "U2")];
    let cases = [
        (
            "chatml",
            "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nU1<|im_end|>\n\
             <|im_start|>assistant\n A1 <|im_end|>\n<|im_start|>user\nU2<|im_end|>\n\
             <|im_start|>assistant\n",
        ),
        ("llama2", "[INST] <<SYS>>\nS\n<</SYS>>\n\nU1 [/INST] A1 </s>[INST] U2 [/INST]"),
        (
            "llama3",
            "<|start_header_id|>system<|end_header_id|>\n\nS<|eot_id|>\
             <|start_header_id|>user<|end_header_id|>\n\nU1<|eot_id|>\
             <|start_header_id|>assistant<|end_header_id|>\n\nA1<|eot_id|>\
             <|start_header_id|>user<|end_header_id|>\n\nU2<|eot_id|>\
             <|start_header_id|>assistant<|end_header_id|>\n\n",
        ),
        (
            "deepseek-coder",
            "S### Instruction:\nU1\n### Response:\n A1 \n<|EOT|>\n### Instruction:\nU2\n\
             ### Response:\n",
        ),
        ("phi", "S\nInstruct: U1\nOutput:  A1 \nInstruct: U2\nOutput:"),
        (
            "phi3",
            "<|system|>\nS<|end|>\n<|user|>\nU1<|end|>\n<|assistant|>\n A1 <|end|>\n\
             <|user|>\nU2<|end|>\n<|assistant|>\n",
        ),
        (
            "zephyr",
            "<|system|>\nS</s>\n<|user|>\nU1</s>\n<|assistant|>\n A1 </s>\n<|user|>\nU2</s>\n\
             <|assistant|>\n",
        ),
        (
            "stablelm",
            "<|system|>\nS<|endoftext|>\n<|user|>\nU1<|endoftext|>\n\
             <|assistant|>\n A1 <|endoftext|>\n<|user|>\nU2<|endoftext|>\n<|assistant|>\n",
        ),
        (
            "gemma",
            "<start_of_turn>user\nS\n\nU1<end_of_turn>\n<start_of_turn>model\nA1<end_of_turn>\n\
             <start_of_turn>user\nU2<end_of_turn>\n<start_of_turn>model\n",
        ),
        ("vicuna", "S\n\nUSER: U1\nASSISTANT:  A1 </s>\nUSER: U2\nASSISTANT:"),
    ];
    let options = RenderOptions { add_generation_prompt: true, ..RenderOptions::default() };
    for (name, expected) in cases {
        let template = ChatTemplate::builtin(name).unwrap();
        assert_eq!(template.render(&chat, &options).unwrap(), expected, "{name}");
    }
    assert!(ChatTemplate::builtin("nonesuch").is_none());
}

#[test]
fn a_file_without_a_template_shows_which_it_needs() {
    let source = |meta: &Metadata| {
        ChatTemplate::from_gguf(meta).unwrap().map(|template| template.source().to_owned())
    };
    assert_eq!(source(&bpe_meta(&[])), None);
    let chatml = bpe_meta(&[("<|im_start|>", CONTROL), ("<|im_end|>", CONTROL)]);
    assert_eq!(source(&chatml).as_deref(), builtin::by_name("chatml"));
    let phi = with(bpe_meta(&[]), "general.architecture", "phi2");
    assert_eq!(source(&phi).as_deref(), builtin::by_name("phi"));
    let deepseek = bpe_meta(&[("<|EOT|>", USER_DEFINED), ("<｜begin▁of▁sentence｜>", CONTROL)]);
    assert_eq!(source(&deepseek), None);
    let instruct = with(deepseek, "tokenizer.ggml.eos_token_id", 259u32);
    assert_eq!(source(&instruct).as_deref(), builtin::by_name("deepseek-coder"));
    let own = with(chatml, "tokenizer.chat_template", "{{ messages[0].content }}");
    assert_eq!(source(&own).as_deref(), Some("{{ messages[0].content }}"));
}

#[test]
fn templates_run_as_in_python() {
    let cases = [
        ("{{ true }} {{ none }} {{ [1, 'a', none] }}", "True None [1, 'a', None]"),
        (
            "{{ {'b': '<&>', 'a': [1, 2.0, 1e20, true, none]} | tojson }}",
            "{\"b\": \"<&>\", \"a\": [1, 2.0, 1e+20, true, null]}",
        ),
        ("{{ [{'a': 1}, []] | tojson(indent=2) }}", "[\n  {\n    \"a\": 1\n  },\n  []\n]"),
        ("{{ 'é\n\"' | tojson }}{{ 'é' | tojson(ensure_ascii=true) }}", "\"é\\n\\\"\"\"\\u00e9\""),
        (
            "{{ {'b': 1, 'a': 2} | tojson(separators=(',', ':'), sort_keys=true) }}",
            "{\"a\":2,\"b\":1}",
        ),
        ("{{ strftime_now('%d %B %Y') }}", "03 July 2024"),
        ("{{ bos_token }}{{ ' x '.strip().upper() }}{{ messages[::-1][0].content }}", "<s>XU"),
        (
            "{% generation %}a{%- endgeneration %}\nb {%- generation -%} c {% endgeneration %}",
            "abc ",
        ),
        ("{% if tools is not none %}tools{% endif %}{% if tools is iterable %}i{% endif %}", ""),
        ("{% for m in messages %}\n  {% if true %}\nx\n  {% endif %}\n{% endfor %}", "x\n"),
        (
            "{% set ns = namespace(n=1) %}{% for i in range(3) %}{% set ns.n = ns.n * 2 %}\
             {% endfor %}{{ ns.n }}",
            "8",
        ),
    ];
    for (source, expected) in cases {
        assert_eq!(render(source, &[say("user", "U")]).unwrap(), expected, "{source}");
    }
}

/// With `serde_json/arbitrary_precision` anywhere in the build, both of these go wrong.
#[test]
fn json_numbers_are_numbers() {
    #[derive(Deserialize)]
    struct Inner {
        temp: f32,
    }
    #[derive(Deserialize)]
    struct Outer {
        #[serde(flatten)]
        inner: Inner,
    }
    let outer: Outer = serde_json::from_str("{\"temp\": 0.7}").expect("a number");
    assert_eq!(outer.inner.temp, 0.7);

    let tools = serde_json::from_str("[{\"n\": 0.7, \"m\": 12}]").expect("JSON");
    let options = RenderOptions { tools: Some(tools), ..RenderOptions::default() };
    let source = "{{ tools | tojson }} {{ tools[0].n * 2 + tools[0].m }}";
    let template = ChatTemplate::from_source(source, "", "").expect("a template");
    let text = template.render(&[], &options).expect("it renders");
    assert_eq!(text, "[{\"n\": 0.7, \"m\": 12}] 13.4");
}

#[test]
fn what_a_template_does_wrong_is_said() {
    let message = |source: &str| render(source, &[]).unwrap_err().to_string();
    let refused = message("{{ raise_exception('roles must alternate') }}");
    assert_eq!(refused, "the chat template refuses these messages: roles must alternate");
    assert!(message("{% if %}").contains("not valid Jinja"), "{}", message("{% if %}"));
    assert!(message("{{ nonesuch() }}").contains("nonesuch"));
    assert!(message("{{ missing | tojson }}").contains("tojson"));
    assert!(ChatTemplate::from_source(&" ".repeat(5 << 20), "", "").is_err());
    let nested = "{% set ns = namespace(x=[]) %}{% for i in range(300) %}\
                  {% set ns.x = [ns.x] %}{% endfor %}{{ ns.x | tojson }}";
    assert!(message(nested).contains("nested too deeply"));
}

#[test]
fn a_hostile_template_cannot_overflow_the_stack() {
    let nested = "{% set ns = namespace(x=[]) %}{% for i in range(99999) %}\
                  {% set ns.x = [[[[[[[[[[ns.x]]]]]]]]]] %}{% endfor %}";
    assert!(matches!(render(nested, &[]), Err(TemplateError::TooManySteps { .. })));
    for deep in ["{{ ns.x|string|length }}", "{{ ns.x == [ns.x] }}", "{{ [ns.x, ns.x]|sort }}"] {
        let source = nested.replace("99999", "20000") + deep;
        assert!(render(&source, &[]).is_ok(), "{deep}");
    }
}

/// Each of these asked for a terabyte in one step.
#[test]
fn a_number_in_a_template_cannot_become_that_many_bytes() {
    let hostile = [
        "{{ 'x\\ny' | indent(1099511627776) }}",
        "{{ 'x\\ny' | indent(width=18446744073709551615) }}",
        "{{ '%1000000000000d' | format(1) }}",
        "{{ '%.1000000000000f' | format(1.5) }}",
        "{{ '%-*d' | format(1000000000000, 1) }}",
        "{{ '%(a%)99999999999999999999999d' | format(a=1) }}",
        "{{ '{:1000000000000d}'.format(1) }}",
        "{{ [1] | batch(1000000000000, 'x') }}",
        "{{ [1] | slice(1000000000000) }}",
    ];
    for source in hostile {
        let error = render(source, &[]).expect_err(source).to_string();
        assert!(error.contains("at most 9999") || error.contains("unknown filter"), "{error}");
    }
    let fine = [
        ("{{ 'a\\nb\\n\\nc\\n' | indent }}", "a\n    b\n\n    c"),
        ("{{ 'a\\nb' | indent(2, true) }}", "  a\n  b"),
        ("{{ 'a\\n\\nb' | indent(width=1, first=true, blank=true) }}", " a\n \n b"),
        ("{{ '**%5.1f** of %s' | format(2.25, 100000) }}", "**  2.2** of 100000"),
        ("{{ '{:>4}|{}'.format('a', 2024) }}", "   a|2024"),
    ];
    for (source, expected) in fine {
        assert_eq!(render(source, &[]).expect(source), expected, "{source}");
    }
}

#[test]
fn a_long_chat_is_within_the_bound_on_steps() {
    let chat: Vec<Message> =
        (0..1000).flat_map(|_| [say("user", "hi"), say("assistant", "ho")]).collect();
    let template = ChatTemplate::builtin("llama2").unwrap();
    assert!(template.render(&chat, &RenderOptions::default()).is_ok());
}

/// What differs between two vocabularies, told of the second.
fn mismatch(ours: &Metadata, theirs: &Metadata) -> Option<VocabMismatch> {
    let tokenizer = |meta| Tokenizer::from_gguf(meta).unwrap();
    same_vocab((ours, &tokenizer(ours)), (theirs, &tokenizer(theirs))).err()
}

#[test]
fn vocabularies_are_one_or_differ_in_something_that_is_named() {
    let padded = |n: usize| -> Vec<(String, i32)> {
        (0..n).map(|i| (format!("[PAD{i}]"), USER_DEFINED)).collect()
    };
    let meta = |extra: &[(String, i32)]| {
        let extra: Vec<(&str, i32)> = extra.iter().map(|(text, ty)| (&**text, *ty)).collect();
        bpe_meta(&extra)
    };
    let ours = meta(&padded(9));
    assert_eq!(mismatch(&ours, &ours), None);
    assert_eq!(mismatch(&ours, &meta(&padded(9 + 128))), None, "sizes are padded differently");
    assert_eq!(mismatch(&meta(&padded(9 + 128)), &ours), None);
    let size = mismatch(&ours, &meta(&padded(9 + 129)));
    assert_eq!(size, Some(VocabMismatch::Size { ours: 268, theirs: 397, max: 128 }));
    let mut other = padded(9);
    other[3].0 = "[OTHER]".to_owned();
    let token = mismatch(&ours, &meta(&other)).unwrap();
    assert_eq!(token.to_string(), r#"its token 262 is "[OTHER]", the model's is "[PAD3]""#);
    let bos = |meta: &Metadata, id: u32| {
        let meta = with(meta.clone(), "tokenizer.ggml.add_bos_token", true);
        with(meta, "tokenizer.ggml.bos_token_id", id)
    };
    let text = mismatch(&ours, &bos(&ours, 7)).unwrap().to_string();
    assert_eq!(text, "its texts start with token 7, the model's with no token of their own");
    assert_eq!(mismatch(&bos(&ours, 7), &bos(&ours, 7)), None);
    assert!(matches!(
        mismatch(&bos(&ours, 7), &bos(&ours, 8)),
        Some(VocabMismatch::Bos { ours: Some(7), theirs: Some(8) })
    ));
    let eos = |meta: &Metadata| {
        let meta = with(meta.clone(), "tokenizer.ggml.add_eos_token", true);
        with(meta, "tokenizer.ggml.eos_token_id", 6u32)
    };
    let text = mismatch(&eos(&ours), &ours).unwrap().to_string();
    assert_eq!(text, "its texts end with no token of their own, the model's with token 6");
}
