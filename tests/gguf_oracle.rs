//! gguf-rs as the second opinion on our GGUF reader. Run with `--features gguf-oracle`.
//!
//! Files from three hands (ours, gguf-rs's writer, the default model's exporter) are read by both
//! readers, which must agree on version, alignment, where the data starts, and on every key and
//! tensor. gguf-rs has traps that the comparison steps around: its default constructor cuts
//! vocabularies to three entries, its values are JSON and so lose their types, and its sizes are
//! wrong for types whose block it does not know.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

use gguf_rs::writer::{GGUFWriter, MetadataValue, TensorInfo};
use gguf_rs::{ByteOrder, GGUFContainer, GGUFModel};
use jetforge::inference::gguf::{Gguf, GgufBuilder, GgufError, Value};
use jetforge::inference::quant::TensorType;

/// Types whose size gguf-rs 0.1.8 computes wrongly.
const SIZE_WRONG: [TensorType; 2] = [TensorType::BF16, TensorType::IQ4_NL];

fn oracle(path: &Path) -> GGUFModel {
    let mut file = BufReader::new(File::open(path).expect("the file is there"));
    let mut magic = [0; 4];
    file.read_exact(&mut magic).expect("a magic");
    assert_eq!(&magic, b"GGUF");
    let mut container = GGUFContainer::new(ByteOrder::LE, Box::new(file), u64::MAX);
    container.decode().expect("gguf-rs reads the file")
}

/// Numbers are compared by their text, which is exact for integers and the shortest that means
/// the float (a float of its own width or widened to f64).
fn assert_same_value(key: &str, ours: &Value, theirs: &serde_json::Value) {
    let text = theirs.to_string();
    match ours {
        Value::Str(ours) => assert_eq!(theirs.as_str(), Some(ours.as_str()), "{key}"),
        Value::Bool(ours) => assert_eq!(theirs.as_bool(), Some(*ours), "{key}"),
        Value::F32(ours) => assert_eq!(text.parse::<f64>().map(|v| v as f32), Ok(*ours), "{key}"),
        Value::F64(ours) => assert_eq!(text.parse(), Ok(*ours), "{key}"),
        Value::Array(ours) => {
            let theirs = theirs.as_array().expect("an array in both");
            assert_eq!(ours.len(), theirs.len(), "{key}");
            let strs = ours.strs().map(Value::from);
            ours.values().chain(strs).zip(theirs).for_each(|(o, t)| assert_same_value(key, &o, t));
            assert_eq!(ours.values().count() + ours.strs().count(), theirs.len(), "{key}");
        }
        number => assert_eq!(text.parse(), Ok(number.as_int().expect("an integer")), "{key}"),
    }
}

/// Reads the file with both and compares everything that both know.
fn assert_same(path: &Path) -> Gguf {
    let ours = Gguf::open(path).expect("our reader reads the file");
    let theirs = oracle(path);
    assert_eq!(format!("v{}", ours.version()), theirs.get_version());
    assert_eq!(ours.alignment(), theirs.alignment());
    assert_eq!(ours.data_offset(), theirs.data_offset());
    assert_eq!(ours.metadata().len() as u64, theirs.num_kv());
    for (key, value) in ours.metadata().iter() {
        assert_same_value(key, value, &theirs.metadata()[key]);
    }
    assert_eq!(ours.tensors().len(), theirs.tensors().len());
    for (o, t) in ours.tensors().iter().zip(theirs.tensors()) {
        assert_eq!((&o.name, &o.shape, o.ty.ggml_id()), (&t.name, &t.shape, Some(t.kind)));
        assert_eq!(o.file_offset(), theirs.data_offset() + t.offset, "{}", o.name);
        if !SIZE_WRONG.contains(&o.ty) {
            assert_eq!(o.n_bytes, t.size, "{}", o.name);
        }
    }
    ours
}

#[test]
fn the_default_model_reads_the_same() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/default.gguf");
    assert!(!assert_same(&path).tensors().is_empty());
}

/// Every value type, every tensor type.
fn ours_whole() -> GgufBuilder<'static> {
    let mut builder = GgufBuilder::new()
        .pair("general.architecture", "llama")
        .pair("u8", u8::MAX)
        .pair("i8", i8::MIN)
        .pair("u16", u16::MAX)
        .pair("i16", i16::MIN)
        .pair("u32", u32::MAX)
        .pair("i32", i32::MIN)
        .pair("u64", u64::MAX)
        .pair("i64", i64::MIN)
        .pair("f32", 1.0f32 / 3.0)
        .pair("f64", 1.0f64 / 3.0)
        .pair("bool", true)
        .pair("str", "naïve \u{1f980}\0\n")
        .pair("tokenizer.ggml.tokens", &["<s>", "", "▁the", "é", "\0"])
        .pair("tokenizer.ggml.scores", &[0.0f32, -1.5, 1e-7, f32::MAX, f32::MIN_POSITIVE])
        .pair("bools", &[true, false, true])
        .pair("u64s", &[0, u64::MAX])
        .pair("none", &[0i16; 0]);
    for (n_rows, ty) in (1..).zip(TensorType::ALL.into_iter().filter(|ty| !ty.is_native())) {
        let n_bytes = ty.row_bytes(256).expect("256 is a multiple of every block") * n_rows;
        let shape = [256, n_rows as u64];
        builder =
            builder.tensor(format!("blk.{n_rows}.{ty}"), &shape, ty, vec![n_rows as u8; n_bytes]);
    }
    builder
}

#[test]
fn files_of_our_writer_read_the_same() {
    let dir = tempfile::tempdir().expect("a directory");
    let files = [
        ("v3.gguf", ours_whole()),
        ("v2.gguf", ours_whole().version(2)),
        ("aligned.gguf", ours_whole().pair("general.alignment", 4096u32)),
        ("vocabulary.gguf", GgufBuilder::new().pair("general.architecture", "llama")),
        ("empty.gguf", GgufBuilder::new()),
    ];
    for (name, builder) in files {
        let path = dir.path().join(name);
        std::fs::write(&path, builder.build()).expect("written");
        assert_same(&path);
    }
}

/// A file that gguf-rs wrote: metadata of each type that it offers, and tensors.
fn theirs(dir: &Path, version: i32, alignment: u64) -> PathBuf {
    let path = dir.join(format!("theirs-v{version}-{alignment}.gguf"));
    let mut writer = GGUFWriter::new(&path, version).expect("a writer").with_alignment(alignment);
    writer.add_metadata("general.architecture", "qwen2");
    writer.add_metadata_u32("qwen2.block_count", 24);
    writer.add_metadata_i32("split.tensors.count", -1);
    writer.add_metadata_u64("long", u64::MAX);
    writer.add_metadata_f32("qwen2.rope.freq_base", 1e6);
    writer.add_metadata_bool("tokenizer.ggml.add_bos_token", false);
    let texts = ["<s>", "é", ""].map(|text| MetadataValue::String(text.to_owned()));
    writer.add_metadata_array("tokenizer.ggml.tokens", texts.to_vec());
    writer.add_metadata_array("types", vec![MetadataValue::Int8(-1), MetadataValue::Int8(6)]);
    let types = [TensorType::F32, TensorType::Q8_0, TensorType::Q3_K, TensorType::IQ4_XS];
    for ty in types {
        let (name, shape, dtype) =
            (format!("w.{ty}"), vec![256, 3], ty.ggml_id().expect("a type of GGUF"));
        writer.add_tensor(TensorInfo { name, shape, dtype });
    }
    writer.write().expect("written");
    for (tensor_idx, ty) in types.into_iter().enumerate() {
        let data = vec![tensor_idx as u8 + 1; ty.row_bytes(256).expect("whole blocks") * 3];
        writer.write_tensor_data(tensor_idx, &data).expect("written");
    }
    writer.finalize().expect("flushed");
    path
}

#[test]
fn files_of_their_writer_read_the_same() {
    let dir = tempfile::tempdir().expect("a directory");
    for (version, alignment) in [(2, 32), (3, 32), (3, 8), (3, 128)] {
        let gguf = assert_same(&theirs(dir.path(), version, alignment));
        for (fill, info) in (1..).zip(gguf.tensors()) {
            assert!(gguf.bytes(info).iter().all(|&byte| byte == fill), "{}", info.name);
        }
    }
    let old = Gguf::open(&theirs(dir.path(), 1, 32));
    assert!(matches!(old, Err(GgufError::Version { version: 1 })));
    let odd = Gguf::open(&theirs(dir.path(), 3, 24));
    assert!(matches!(odd, Err(GgufError::Alignment { alignment: 24, .. })));
}
