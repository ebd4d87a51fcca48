//! Writes the seeds of every target into `corpus/`, the same bytes each time.

use std::path::PathBuf;

use jetforge::inference::gguf::GgufBuilder;
use jetforge::inference::{Form, TensorType};
use jetforge_fuzz::feed::Feed;
use jetforge_fuzz::service::PATHS;
use jetforge_fuzz::tiny::Tiny;

fn main() -> std::io::Result<()> {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("corpus");
    for (target, seeds) in [
        ("gguf", gguf()),
        ("model", model()),
        ("template", template()),
        ("utf8", utf8()),
        ("grammar", grammar()),
        ("json_body", json_body()),
        ("sse", sse()),
    ] {
        let folder = root.join(target);
        std::fs::create_dir_all(&folder)?;
        for (seed_idx, seed) in seeds.iter().enumerate() {
            std::fs::write(folder.join(format!("seed-{seed_idx:02}")), seed)?;
        }
        println!("{}: {} seeds", folder.display(), seeds.len());
    }
    Ok(())
}

/// Small right files: one with every type of value, and the header of every architecture's model
/// with its tensors cut down to a block.
fn gguf() -> Vec<Vec<u8>> {
    let values = GgufBuilder::new()
        .pair("general.alignment", 64u32)
        .pair("u8", 200u8)
        .pair("i16", -300i16)
        .pair("u64", u64::MAX)
        .pair("f64", 2.5f64)
        .pair("bool", true)
        .pair("strs", &["<s>", "", "\u{e9}\n"])
        .pair("f32s", &[0.5f32, -1.0])
        .pair("bools", &[true, false])
        .pair("none", &[0u64; 0]);
    let native = GgufBuilder::new()
        .target("avx2")
        .tensor("n4", &[96, 2], TensorType::N4, vec![1; 120])
        .tensor("n3", &[32], TensorType::N3, vec![1; 20])
        .tensor_in("q8", &[32, 1], TensorType::Q8_0, Form::Panels, vec![1; 576]);
    let mut seeds = vec![values.build(), GgufBuilder::new().build(), native.build()];
    for arch_idx in 0..8 {
        let mut tiny = Tiny::new(&mut Feed::new(&[arch_idx, 2])); // Q4_0
        tiny.tensors.truncate(2);
        if arch_idx % 3 == 1 {
            // Regexes take most of the time; some seeds do without.
            tiny.pairs.retain(|pair| pair.0 != "tokenizer.ggml.pre");
        }
        seeds.push(tiny.write(&[]));
    }
    seeds
}

/// Every architecture, every tensor type, and an edit of every kind.
fn model() -> Vec<Vec<u8>> {
    let right = |arch_idx: u8, type_idx: u8| {
        // no edits, fill, context, batch, instruction set, KV type, sampler, special tokens, text
        let mut seed = vec![arch_idx, type_idx, 0, 0, 0, 0, 0, 3, 0, 0, 0, 1];
        seed.extend(b"ab abc</s>x");
        seed
    };
    let archs = (0..8).map(|arch_idx| right(arch_idx, 0));
    let types = (1..15).map(|type_idx| right(type_idx % 8, type_idx));
    let edits = (0..8).map(|how| {
        let mut seed = vec![how, how, 1, how, 4, 1, 2, 3, 4, 5, 6, 7, 8, 9];
        seed.extend(b"ab abc");
        seed
    });
    archs.chain(types).chain(edits).collect()
}

fn template() -> Vec<Vec<u8>> {
    let sources = [
        "@chatml\x1euser\x1ehi <|im_end|>\x1eassistant\x1eho",
        "@llama2\x1esystem\x1eS\x1euser\x1eU\x1eassistant\x1eA",
        "@gemma\x1euser\x1eU\x1euser\x1eU",
        "{% for m in messages %}{{ m.role }}: {{ m['content'] | trim }}\n{% endfor %}",
        "{% set ns = namespace(n=1) %}{% for i in range(9) %}{% set ns.n = ns.n * 2 %}{% endfor %}\
         {{ ns.n }}",
        "{{ tools | tojson(indent=2) }}\x1euser\x1eU\x1e\
         [{\"name\": \"run\", \"n\": [1, 2.5, null]}]",
        "{% if messages[0].role != 'user' %}{{ raise_exception('no') }}{% endif %}{{ bos_token }}",
        "{% macro f(x) %}{{ x.strip().upper() }}{% endmacro %}{{ f(messages[-1].content) }}",
        "{% generation %}{{ strftime_now('%d %b %Y') }}{%- endgeneration -%}",
        "{{ messages | map(attribute='content') | join(', ') | replace('a', 'b') | indent(2) }}",
        "{{ '%5.2f' | format(2.5) }}{{ 'x' * 3 }}{{ [1, 2][::-1] }}\
         {{ 'a b'.split() | list | batch(2, 'f') | list }}",
        "{% set x %}a{% endset %}{{ x ~ x }}{{ {'a': 1}.items() | list }}{{ 7 // 2 % 3 ** 2 }}",
    ];
    sources.iter().map(|source| source.as_bytes().to_vec()).collect()
}

fn utf8() -> Vec<Vec<u8>> {
    let texts: [&[u8]; 6] = [
        b"\x05plain",
        "\u{7}\u{e9}\u{20ac}\u{1f980}\u{10ffff}".as_bytes(),
        b"\x01\xf0\x9f\xa6",
        b"\x03\xff\xfe\xe2\x82ok\xc3",
        b"\x09\xed\xa0\x80\xc0\x80",
        b"\x0b\xf4\x90\x80\x80\x80",
    ];
    texts.iter().map(|text| text.to_vec()).collect()
}

/// Every notation at once and lazily; the second byte, which picks the tokens, stays even.
fn grammar() -> Vec<Vec<u8>> {
    let schema = r##"{"type": "object", "properties": {"city": {"enum": ["Rome", "Oslo"]}, "days":
        {"type": "integer", "minimum": 1, "maximum": 9}, "tags": {"type": "array", "items":
        {"type": "string", "pattern": "^[a-z]+$", "maxLength": 4}, "minItems": 1}, "or":
        {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/d"}]}}, "required": ["city"],
        "additionalProperties": false, "$defs": {"d": {"type": "string", "format": "date"}}}"##;
    let texts = [
        (0, schema),
        (0, r#"{"type": "boolean"}"#),
        (1, r"(ab|c)+[^x-z]{2,4}\d?"),
        (2, "start: (WORD | num)+\nnum: /[0-9]+/\nWORD: \"a\"i | \"b\"\n%ignore /[ ]+/"),
        (3, "root ::= item+ [^\\n]*\nitem ::= \"- \" ([a-z] | \"\\x41\"){1,3} \"\\n\" # no more"),
        (3, "root ::= \"(\" root \")\" | expr?\nexpr ::= [0-9]+ (\"+\" expr)*"),
    ];
    let kinds = texts.iter().flat_map(|&(kind, text)| [(kind, text), (0x80 | kind, text)]);
    // 0x80 is 3 more than a multiple of 5.
    let seed = |(kind, text): (u8, &str)| {
        let kind = if kind & 0x80 == 0 { kind } else { 0x80 | (kind + 2) % 5 };
        [&[kind, 4][..], text.as_bytes()].concat()
    };
    kinds.map(seed).collect()
}

/// Bodies that llama-server was asked with, and one for each of OpenAI's paths.
fn json_body() -> Vec<Vec<u8>> {
    let cases = include_str!("../../tests/golden/llama_api.json");
    let cases: Vec<serde_json::Value> = serde_json::from_str(cases).unwrap_or_default();
    let asked = cases.iter().map(|case| (case["path"].as_str(), case["body"].to_string()));
    let openai = [
        ("/v1/completions", r#"{"prompt":"a","max_tokens":2,"n":2,"logprobs":1}"#),
        (
            "/v1/chat/completions",
            r#"{"messages":[{"role":"user","content":"a"}],"stream":true,"tools":[]}"#,
        ),
        ("/v1/embeddings", r#"{"input":["a","b"],"encoding_format":"base64"}"#),
        ("/v1/completions", r#"{"segments":{"prefix":"a","suffix":"b","declarations":[]}}"#),
        (
            "/v1/messages",
            concat!(
                r#"{"max_tokens":2,"messages":"#,
                r#"[{"role":"user","content":[{"type":"text","text":"a"}]}]}"#
            ),
        ),
        ("/api/chat", r#"{"messages":[{"role":"user","content":"a"}],"options":{"top_k":1}}"#),
        ("/api/generate", r#"{"prompt":"a","format":"json","context":[1],"stream":false}"#),
        (
            "/generate",
            r#"{"prompt":"a","parameters":{"max_tokens":2},"context_chunks":[{"content":"c"}]}"#,
        ),
    ];
    let openai = openai.map(|(path, body)| (Some(path), body.to_owned()));
    let seed = |(path, body): (Option<&str>, String)| {
        let path_idx = PATHS.iter().position(|known| Some(*known) == path)?;
        Some([&[path_idx as u8], body.as_bytes()].concat())
    };
    asked.chain(openai).filter_map(seed).collect()
}

/// Tokens by two bytes: words, bytes of characters, line ends.
fn sse() -> Vec<Vec<u8>> {
    let tokens = |ids: &[u16]| ids.iter().flat_map(|id| id.to_le_bytes()).collect();
    vec![
        tokens(&[]),
        tokens(&[274, 17, 308, 204, 204, 316]),
        tokens(&[133, 108, 133, 133, 204, 108]),
        tokens(&[2, 5, 0, 1]),
    ]
}
