//! Any bytes: the reader refuses them or keeps every promise that its face makes, and what is built
//! from the metadata (vocabulary, chat template, model) refuses or works.
//!
//! Memory is counted: no more is held than the bytes of the file justify.

#![no_main]

use jetforge::inference::gguf::{Gguf, GgufBuilder, Value};
use jetforge::inference::model::{Hparams, plan};
use jetforge::inference::{
    ChatTemplate, EncodeOptions, LoadOptions, Message, RenderOptions, Tokenizer, plan_memory,
};
use jetforge_fuzz::memory::{Counting, within};
use libfuzzer_sys::fuzz_target;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// A tensor's record takes 33 bytes in the file and some 400 as `TensorInfo` and in maps of names.
const READER_FACTOR: usize = 32;
const READER_BASE: usize = 64 << 10;
/// A token takes 8 bytes in the file and some 400 in maps from and to its text. Regexes of a
/// pre-tokenizer and the tables of rotary angles (at most 2^19 of them) do not depend on the file.
const BUILT_FACTOR: usize = 128;
const BUILT_BASE: usize = 32 << 20;

fuzz_target!(|bytes: &[u8]| {
    // Most inputs would die at the magic, so inputs without one get one.
    let bytes = match bytes {
        [b'G', b'G', b'U', b'F', ..] => bytes.to_vec(),
        _ => [b"GGUF\x03\0\0\0", bytes].concat(),
    };
    let n = bytes.len();
    let read = within(n * READER_FACTOR + READER_BASE, "reading", || Gguf::from_vec(bytes));
    match read {
        Ok(gguf) => {
            exercise(&gguf);
            within(n * BUILT_FACTOR + BUILT_BASE, "building", || build(&gguf));
            // What a template may hold is not bounded by its length.
            render(&gguf);
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
});

/// Builds everything that a model is made of, and uses it a little.
fn build(gguf: &Gguf) {
    match Hparams::from_gguf(gguf) {
        Ok(hparams) => {
            if let Ok(plan) = plan(gguf, &hparams) {
                assert!(!plan.ops.is_empty());
            }
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
    for n_ctx in [None, Some(1), Some(u32::MAX)] {
        let options = LoadOptions { n_ctx, ..LoadOptions::default() };
        if let Ok(plan) = plan_memory(gguf, &options, 4 << 30) {
            assert!(plan.needed_bytes() <= 4 << 30);
        }
    }
    if let Ok(tokenizer) = Tokenizer::from_gguf(gguf.metadata()) {
        let options = EncodeOptions { add_special: true, parse_special: true };
        for text in [&b"ab  abc\n<s></s>\xff\xe2\x96\x81"[..], "\u{e9}\u{1f980} 12345".as_bytes()] {
            let Ok(ids) = tokenizer.encode_bytes(text, options) else { continue };
            assert!(ids.iter().all(|&id| (id as usize) < tokenizer.n_vocab()));
            let _ = tokenizer.decode(&ids, true);
        }
    }
}

fn render(gguf: &Gguf) {
    if let Ok(Some(template)) = ChatTemplate::from_gguf(gguf.metadata()) {
        let message = Message { role: "user".to_owned(), content: "hi".to_owned() };
        let _ = template.render(&[message], &RenderOptions::default());
    }
}

fn exercise(gguf: &Gguf) {
    let mut builder = GgufBuilder::new().version(gguf.version());
    if let Some(target) = gguf.native_target() {
        builder = builder.target(target);
    }
    let metadata = gguf.metadata();
    for (key, value) in metadata.iter() {
        assert!(!value.to_string().is_empty());
        let _ = (metadata.u32(key), metadata.u64(key), metadata.f32(key), metadata.bool(key));
        let _ = (metadata.str(key), metadata.i32s(key), metadata.f32s(key));
        assert!(metadata.strs(key).is_ok_and(|strs| strs.is_some()) == is_strs(value));
        builder = builder.pair(key, value.clone());
    }
    let mut ranges = Vec::new();
    for info in gguf.tensors() {
        let bytes = gguf.bytes(info);
        assert_eq!(bytes.len() as u64, info.n_bytes);
        assert_eq!(gguf.tensor(&info.name), Some(info));
        let rows = info.shape[1..].iter().product::<u64>();
        assert_eq!(info.form.n_bytes(info.ty, info.shape[0], rows), Some(info.n_bytes));
        if info.n_elements() <= 1 << 12 {
            gguf.read(info, &mut vec![0.0; info.n_elements() as usize]);
        }
        ranges.push(info.file_offset()..info.file_offset() + info.n_bytes);
        builder = builder.tensor_in(&info.name, &info.shape, info.ty, info.form, bytes);
    }
    ranges.sort_by_key(|range| range.start);
    assert!(ranges.windows(2).all(|pair| pair[0].end <= pair[1].start));

    if cfg!(feature = "canary") {
        assert!(gguf.version() == 3, "canary");
    }

    // What was read can be written, and reads the same.
    let again = Gguf::from_vec(builder.build()).expect("a right file");
    assert!(again.metadata().iter().map(|(k, _)| k).eq(metadata.iter().map(|(k, _)| k)));
    for (a, b) in again.tensors().iter().zip(gguf.tensors()) {
        assert_eq!((&a.name, &a.shape, a.ty, a.form), (&b.name, &b.shape, b.ty, b.form));
        assert_eq!(again.bytes(a), gguf.bytes(b));
    }
}

fn is_strs(value: &Value) -> bool {
    matches!(value, Value::Array(array) if array.item_type().name() == "str")
}
