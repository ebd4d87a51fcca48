//! A right file is read whole, and each wrong one is refused by name.

mod metadata;
mod mutation;
mod native;
mod split;

use std::path::Path;
use std::sync::Arc;

use super::cursor::{Cursor, Place};
use super::*;
use crate::base::limits;

/// A small file with every value type and tensors of several types and dimensions.
fn sample() -> GgufBuilder<'static> {
    GgufBuilder::new()
        .pair("general.architecture", "llama")
        .pair("general.alignment", 64u32)
        .pair("a.u8", 200u8)
        .pair("a.i8", -3i8)
        .pair("a.u16", 60_000u16)
        .pair("a.i16", -300i16)
        .pair("a.i32", -70_000i32)
        .pair("a.u64", u64::MAX)
        .pair("a.i64", i64::MIN)
        .pair("a.f32", 1e-5f32)
        .pair("a.f64", 2.5f64)
        .pair("a.bool", true)
        .pair("list.str", &["<s>", "", "Größe\n"])
        .pair("list.f32", &[0.5f32, -1.0])
        .pair("list.f64", &[0.25f64])
        .pair("list.i32", &[1i32, -2, 3])
        .pair("list.u8", &[7u8; 5])
        .pair("list.bool", &[true, false])
        .pair("list.none", &[0u64; 0])
        .tensor("token_embd.weight", &[4, 3], TensorType::F32, floats(12))
        .tensor("blk.0.attn_q.weight", &[64, 2], TensorType::Q4_0, vec![0x5a; 72])
        .tensor("blk.0.attn_norm.weight", &[5], TensorType::F16, vec![1; 10])
        .tensor("blk.0.cube", &[256, 1, 2, 1], TensorType::Q4_K, vec![9; 288])
}

fn floats(n: usize) -> Vec<u8> {
    (0..n).flat_map(|i| (i as f32).to_le_bytes()).collect()
}

/// One F32 tensor of four weights called `w`, the rest as `builder` has it.
fn with_w(builder: GgufBuilder<'static>) -> GgufBuilder<'static> {
    builder.tensor("w", &[4], TensorType::F32, floats(4))
}

fn refusal(bytes: Vec<u8>) -> GgufError {
    Gguf::from_vec(bytes).expect_err("a wrong file")
}

#[test]
fn a_right_file_is_read_whole() {
    for version in [2, 3] {
        let gguf = Gguf::from_vec(sample().version(version).build()).expect("a right file");
        assert_eq!((gguf.version(), gguf.alignment(), gguf.n_shards()), (version, 64, 1));
        assert_eq!(gguf.data_offset() as usize, sample().header().len());
        assert_eq!(gguf.file_bytes() as usize, sample().build().len());
        let names: Vec<_> = gguf.tensors().iter().map(|info| info.name.as_str()).collect();
        assert_eq!(
            names,
            ["token_embd.weight", "blk.0.attn_q.weight", "blk.0.attn_norm.weight", "blk.0.cube"]
        );
        let embd = gguf.tensor("token_embd.weight").expect("present");
        assert_eq!(
            (embd.shape.as_slice(), embd.ty, embd.n_bytes),
            (&[4, 3][..], TensorType::F32, 48)
        );
        assert_eq!(embd.n_elements(), 12);
        assert_eq!(gguf.bytes(embd), floats(12));
        let cube = gguf.tensor("blk.0.cube").expect("present");
        assert_eq!(cube.file_offset(), gguf.data_offset() + 64 + 128 + 64);
        assert_eq!(gguf.bytes(cube), [9; 288]);
        assert!(gguf.tensor("blk.1.cube").is_none());
    }
}

#[test]
fn values_keep_their_types() {
    let gguf = Gguf::from_vec(sample().build()).expect("a right file");
    let m = gguf.metadata();
    assert_eq!(m.str("general.architecture").unwrap(), Some("llama"));
    assert_eq!(m.u32("a.u8").unwrap(), Some(200));
    assert_eq!(m.u32("a.u16").unwrap(), Some(60_000));
    assert_eq!(m.u64("a.u64").unwrap(), Some(u64::MAX));
    assert_eq!(m.get("a.i64"), Some(&Value::I64(i64::MIN)));
    assert_eq!(m.f32("a.f32").unwrap(), Some(1e-5));
    assert_eq!(m.f32("a.f64").unwrap(), Some(2.5));
    assert_eq!(m.bool("a.bool").unwrap(), Some(true));
    assert_eq!(m.strs("list.str").unwrap(), Some(vec!["<s>", "", "Größe\n"]));
    assert_eq!(m.f32s("list.f32").unwrap(), Some(vec![0.5, -1.0]));
    assert_eq!(m.f32s("list.f64").unwrap(), Some(vec![0.25]));
    assert_eq!(m.i32s("list.i32").unwrap(), Some(vec![1, -2, 3]));
    assert_eq!(m.i32s("list.u8").unwrap(), Some(vec![7; 5]));
    assert_eq!(m.i32s("list.none").unwrap(), Some(vec![]));
    assert_eq!(m.u32("absent").unwrap(), None);
    assert_eq!(m.strs("absent").unwrap(), None);
    assert_eq!(m.len(), 19);
    assert_eq!(m.iter().nth(2), Some(("a.u8", &Value::U8(200))));
}

#[test]
fn what_is_written_is_read_and_written_again_the_same() {
    let bytes = sample().build();
    let gguf = Gguf::from_vec(bytes.clone()).expect("a right file");
    let mut again = GgufBuilder::new();
    for (key, value) in gguf.metadata().iter() {
        again = again.pair(key, value.clone());
    }
    for info in gguf.tensors() {
        again = again.tensor(&info.name, &info.shape, info.ty, gguf.bytes(info));
    }
    let mut written = Vec::new();
    again.write_to(&mut written).expect("memory takes all bytes");
    assert_eq!(written, bytes);
    assert_eq!(again.build(), bytes);
}

#[test]
fn a_file_without_tensors_is_a_vocabulary() {
    let mut bytes = GgufBuilder::new().pair("general.architecture", "llama").build();
    bytes.truncate(70); // the padding before an empty data section may be absent
    let gguf = Gguf::from_vec(bytes).expect("a vocabulary");
    assert!(gguf.tensors().is_empty());
    assert_eq!(gguf.metadata().len(), 1);
}

#[test]
fn foreign_files_and_versions_are_refused() {
    assert!(matches!(refusal(vec![]), GgufError::Truncated { missing_bytes: 4, .. }));
    assert!(matches!(refusal(b"GG".to_vec()), GgufError::Truncated { missing_bytes: 2, .. }));
    assert!(matches!(refusal(b"PK\x03\x04abcd".to_vec()), GgufError::NotGguf { .. }));
    assert!(matches!(refusal(b"FUGG\0\0\0\x03".to_vec()), GgufError::BigEndian));
    assert!(matches!(refusal(b"GGUF\0\0\0\x03".to_vec()), GgufError::BigEndian));
    for version in [0, 1, 4, 77] {
        let error = refusal(sample().version(version).build());
        assert!(matches!(error, GgufError::Version { version: v } if v == version), "{error}");
    }
}

#[test]
fn wrong_keys_are_refused_by_name() {
    let one = |key: &str, value: Value| refusal(GgufBuilder::new().pair(key, value).build());
    let two = GgufBuilder::new().pair("k", 1u32).pair("k", 2u32).build();
    assert_eq!(refusal(two).to_string(), "key `k` appears twice");
    assert_eq!(one("", Value::U8(1)).to_string(), "key 0 has an empty name");

    let mut bytes = GgufBuilder::new().pair("k", 1u32).build();
    bytes[33] = 13; // the value's type, behind the file's 24 bytes and the key's 9
    assert!(matches!(refusal(bytes), GgufError::UnknownValueType { key, id: 13 } if key == "k"));

    let mut bytes = GgufBuilder::new().pair("k", &[1u32]).build();
    bytes[37] = ValueType::Array.id() as u8;
    assert_eq!(
        refusal(bytes).to_string(),
        "key `k` is an array of arrays; only flat arrays are read"
    );

    let mut bytes = GgufBuilder::new().pair("k", true).build();
    bytes[37] = 2;
    assert!(matches!(refusal(bytes), GgufError::BadBool { value: 2, .. }));
    let mut bytes = GgufBuilder::new().pair("k", &[true, false]).build();
    bytes[50] = 255;
    assert!(matches!(refusal(bytes), GgufError::BadBool { value: 255, .. }));

    let mut bytes = GgufBuilder::new().pair("k", "é").build();
    bytes[46] = b'x';
    assert_eq!(refusal(bytes).to_string(), "the value of key `k` has a string that is not UTF-8");
    let mut bytes = GgufBuilder::new().pair("k", "é").build();
    bytes[32] = 0xff;
    assert!(matches!(refusal(bytes), GgufError::NotUtf8 { .. }));
    let mut bytes = GgufBuilder::new().pair("k", &["é"]).build();
    bytes[57] = 0xff;
    assert!(matches!(refusal(bytes), GgufError::NotUtf8 { .. }));
}

#[test]
fn lengths_beyond_the_limits_are_refused() {
    let one = |key: &str, value: Value| Gguf::from_vec(GgufBuilder::new().pair(key, value).build());
    let text = |n: u64| Value::Str("x".repeat(n as usize));
    assert!(one("k", text(limits::GGUF_STRING_BYTES_MAX)).is_ok());
    let error = one("k", text(limits::GGUF_STRING_BYTES_MAX + 1)).unwrap_err();
    assert!(error.to_string().starts_with("the value of key `k` has a string of 1048577 bytes"));
    let template = "tokenizer.chat_template";
    assert!(one(template, text(limits::CHAT_TEMPLATE_BYTES_MAX)).is_ok());
    assert!(one(template, text(limits::CHAT_TEMPLATE_BYTES_MAX + 1)).is_err());
    assert!(one(&"k".repeat(65_535), Value::U8(0)).is_ok());
    assert!(one(&"k".repeat(65_536), Value::U8(0)).is_err());
    let max = limits::GGUF_ARRAY_ITEMS_MAX as usize;
    assert!(one("k", Value::from(vec![0u8; max].as_slice())).is_ok());
    let error = one("k", Value::from(vec![0u8; max + 1].as_slice())).unwrap_err();
    assert!(matches!(error, GgufError::TooMany { count: 2_000_001, .. }), "{error}");

    let name = |n: usize| {
        let builder = GgufBuilder::new().tensor("t".repeat(n), &[4], TensorType::F32, floats(4));
        Gguf::from_vec(builder.build())
    };
    assert!(name(64).is_ok());
    assert!(matches!(name(65), Err(GgufError::StringTooLong { n_bytes: 65, max: 64, .. })));
}

#[test]
fn counts_are_not_believed() {
    for (at, what) in [(8, "tensors"), (16, "metadata keys")] {
        for count in [65_537, u64::MAX] {
            let mut bytes = sample().build();
            bytes[at..at + 8].copy_from_slice(&count.to_le_bytes());
            let error = refusal(bytes);
            assert!(matches!(&error, GgufError::TooMany { what: w, .. } if w == what), "{error}");
        }
        let mut bytes = sample().build();
        bytes[at..at + 8].copy_from_slice(&65_536u64.to_le_bytes());
        assert!(matches!(refusal(bytes), GgufError::Truncated { .. }));
    }
    // An array that claims items which the file has no bytes for.
    let mut bytes = GgufBuilder::new().pair("k", &[1u64]).build();
    bytes[41..49].copy_from_slice(&2_000_000u64.to_le_bytes());
    let error = refusal(bytes);
    let GgufError::Truncated { place, missing_bytes } = &error else { panic!("{error}") };
    assert_eq!(place, "the value of key `k`");
    assert_eq!(*missing_bytes, 16_000_000 - 15); // 8 bytes of item, 7 of padding are there
}

#[test]
fn a_header_ends_within_its_limit() {
    let file = vec![0; limits::GGUF_HEADER_BYTES_MAX as usize + 4];
    let mut cursor = Cursor::new(&file);
    cursor.take(limits::GGUF_HEADER_BYTES_MAX - 2).expect("within the limit");
    cursor.place = Place::Value("k");
    let error = cursor.u32().unwrap_err();
    assert!(matches!(&error, GgufError::HeaderTooLong { place, .. } if place.contains("`k`")));
}

#[test]
fn alignment_is_a_power_of_two_in_range() {
    for alignment in [8u32, 16, 32, 4096, 65_536] {
        let bytes = with_w(GgufBuilder::new().pair("general.alignment", alignment)).build();
        let gguf = Gguf::from_vec(bytes).expect("a right alignment");
        assert_eq!(gguf.alignment(), u64::from(alignment));
        assert_eq!(gguf.bytes(&gguf.tensors()[0]), floats(4));
    }
    for alignment in [0u32, 1, 4, 24, 33, 131_072] {
        let error =
            refusal(with_w(GgufBuilder::new().pair("general.alignment", alignment)).build());
        assert!(matches!(error, GgufError::Alignment { .. }), "{error}");
    }
    let error = refusal(GgufBuilder::new().pair("general.alignment", "32").build());
    assert!(matches!(error, GgufError::KeyType { .. }), "{error}");
}

#[test]
fn wrong_tensors_are_refused_by_name() {
    let shaped =
        |shape: &[u64], ty| refusal(GgufBuilder::new().tensor("w", shape, ty, vec![0; 64]).build());
    let f32 = TensorType::F32;
    assert!(matches!(shaped(&[], f32), GgufError::DimensionCount { n_dims: 0, .. }));
    assert!(matches!(shaped(&[1; 5], f32), GgufError::DimensionCount { n_dims: 5, .. }));
    assert!(matches!(shaped(&[4, 0], f32), GgufError::ZeroDimension { .. }));
    assert!(matches!(shaped(&[1 << 62, 4], f32), GgufError::TensorTooLarge { .. }));
    assert!(matches!(shaped(&[1 << 32; 3], f32), GgufError::TensorTooLarge { .. }));
    assert!(matches!(shaped(&[1 << 62], f32), GgufError::TensorTooLarge { .. }));
    assert_eq!(
        shaped(&[33], TensorType::Q8_0).to_string(),
        "tensor `w` has rows of 33 weights, not a multiple of the 32 in a block of Q8_0"
    );
    assert!(matches!(shaped(&[32, 8], TensorType::Q4_K), GgufError::RowLength { .. }));

    let twice = with_w(with_w(GgufBuilder::new())).build();
    assert_eq!(refusal(twice).to_string(), "tensor `w` appears twice");
}

#[test]
fn an_unsupported_type_is_called_by_its_name() {
    for (id, name) in [(40, "NVFP4"), (19, "IQ1_S"), (4, "removed"), (28, "F64"), (43, "43")] {
        let file = GgufBuilder::new().tensor_of_type_id("blk.7.x", &[64], id, vec![0; 512]).build();
        let message = refusal(file).to_string();
        assert!(message.starts_with("tensor `blk.7.x` has type "), "{message}");
        assert!(message.contains(name) && message.contains("supported are F32, F16"), "{message}");
    }
}

#[test]
fn tensors_out_of_place_are_refused() {
    let at = |offset| refusal(with_w(GgufBuilder::new()).claim_offset(offset).build());
    assert_eq!(
        at(16).to_string(),
        "tensor `w` is at offset 16, not a multiple of the alignment 32"
    );
    assert!(matches!(at(64), GgufError::TruncatedTensor { missing_bytes: 48, .. }));
    assert!(matches!(at(u64::MAX - 31), GgufError::TensorTooLarge { .. }));
    assert!(matches!(at(1 << 63), GgufError::TruncatedTensor { .. }));

    let file = GgufBuilder::new()
        .tensor("a", &[16], TensorType::F32, floats(16))
        .tensor("b", &[16], TensorType::F32, floats(16))
        .claim_offset(32)
        .build();
    assert_eq!(refusal(file).to_string(), "tensors `a` and `b` overlap");
}

#[test]
fn every_cut_file_says_how_much_is_missing() {
    let whole = sample().build();
    let padding = whole.len() - (sample().header().len() + 64 + 128 + 64 + 288);
    for len in 0..whole.len() - padding {
        match refusal(whole[..len].to_vec()) {
            GgufError::Truncated { missing_bytes, .. } => {
                assert!(missing_bytes > 0 && missing_bytes <= (whole.len() - len) as u64);
            }
            GgufError::TruncatedTensor { missing_bytes, file_bytes, .. } => {
                assert_eq!(file_bytes, len as u64);
                assert_eq!(missing_bytes, (whole.len() - padding - len) as u64);
            }
            error => panic!("cut to {len}: {error}"),
        }
    }
    let error = refusal(whole[..sample().header().len() + 70].to_vec());
    assert!(error.to_string().contains("tensor `blk.0.attn_q.weight` is the first"), "{error}");
}

#[test]
fn files_that_cannot_be_mapped_are_named() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("x.gguf");
    assert!(matches!(Gguf::open(&path), Err(GgufError::Io { path: p, .. }) if p == path));
    assert!(matches!(Gguf::open(dir.path()), Err(GgufError::NotAFile { .. })));
    std::fs::write(&path, b"").expect("written");
    assert!(matches!(Gguf::open(&path), Err(GgufError::Truncated { .. })));
    std::fs::write(&path, sample().build()).expect("written");
    let gguf = Gguf::open(&path).expect("a right file");
    assert_eq!(gguf.bytes(&gguf.tensors()[0]), floats(12));
}

#[test]
fn the_default_model_opens() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/default.gguf");
    let gguf = Gguf::open(&path).expect("the default model");
    assert_eq!(gguf.metadata().str("general.architecture").unwrap(), Some("qwen2"));
    let tokens = gguf.metadata().strs("tokenizer.ggml.tokens").unwrap().expect("a vocabulary");
    let embd = gguf.tensor("token_embd.weight").expect("embeddings");
    assert_eq!(embd.shape[1], tokens.len() as u64);
    let end = gguf.tensors().iter().map(|info| info.file_offset() + info.n_bytes).max();
    assert!(end <= Some(gguf.file_bytes()));
}

#[test]
fn a_model_can_be_shared_between_threads() {
    fn check<T: Send + Sync + 'static>(_: &T) {}
    check(&Arc::new(Gguf::from_vec(sample().build()).expect("a right file")));
    check(&GgufError::NoShards);
}
