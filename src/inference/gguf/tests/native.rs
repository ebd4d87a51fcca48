//! Tensors that are bytes to others come back as what they are, and every lie about them is named.

use super::super::*;
use super::refusal;
use crate::inference::quant::{dequantize, panel::Layout};

/// A file with all that the extension can say: our types in rows, types of GGUF in panels, and one
/// plain tensor between them.
pub(super) fn sample() -> GgufBuilder<'static> {
    let panel = Layout::of(TensorType::Q4_0).panel_bytes(2);
    GgufBuilder::new()
        .pair("general.architecture", "llama")
        .pair("general.alignment", 64u32)
        .target("avx2")
        .tensor("n4", &[96, 3], TensorType::N4, vec![1; 3 * 60])
        .tensor("plain", &[4], TensorType::F32, vec![0; 16])
        .tensor("n3", &[288], TensorType::N3, vec![2; 112 + 20])
        .tensor_in("q4", &[64, 17], TensorType::Q4_0, Form::Panels, vec![3; 2 * panel])
}

/// The sample's tensor `w` alone, with keys of its own after those that the builder writes.
fn one(keys: &[(&str, Value)]) -> Vec<u8> {
    let mut file = GgufBuilder::new().tensor_of_type_id("w", &[60], 24, vec![0; 60]);
    for (key, value) in keys {
        file = file.pair(format!("jetforge.native.{key}"), value.clone());
    }
    file.build()
}

/// The keys of `w` as N4 with rows of 96, but for `changed`.
fn keys(changed: &[(&'static str, Option<Value>)]) -> Vec<(&'static str, Value)> {
    let mut keys = vec![
        ("version", Value::U32(1)),
        ("names", Value::from(&["w"])),
        ("types", Value::from(&["N4"])),
        ("columns", Value::from(&[96u64])),
        ("rows", Value::from(&[1u64])),
        ("layouts", Value::from(&["rows"])),
    ];
    for (key, value) in changed {
        keys.retain(|pair| pair.0 != *key);
        keys.extend(value.clone().map(|value| (*key, value)));
    }
    keys
}

fn refused(changed: &[(&'static str, Option<Value>)]) -> GgufError {
    refusal(one(&keys(changed)))
}

#[test]
fn native_tensors_have_name_type_shape_and_form() {
    let gguf = Gguf::from_vec(sample().build()).expect("a right file");
    let found: Vec<_> = gguf.tensors().iter().map(|t| (&t.name[..], t.ty, t.form)).collect();
    assert_eq!(
        found,
        [
            ("n4", TensorType::N4, Form::Rows),
            ("plain", TensorType::F32, Form::Rows),
            ("n3", TensorType::N3, Form::Rows),
            ("q4", TensorType::Q4_0, Form::Panels),
        ]
    );
    assert_eq!(gguf.tensor("n4").unwrap().shape, [96, 3]);
    assert_eq!(gguf.tensor("n3").unwrap().shape, [288, 1]);
    assert_eq!(gguf.native_target(), Some("avx2"));
    // How this file stores its tensors is no property of the model.
    let keys: Vec<&str> = gguf.metadata().iter().map(|(key, _)| key).collect();
    assert_eq!(keys, ["general.architecture", "general.alignment"]);

    let mut again = GgufBuilder::new().target("avx2");
    for (key, value) in gguf.metadata().iter() {
        again = again.pair(key, value.clone());
    }
    for t in gguf.tensors() {
        let shape = if t.name == "n3" { &t.shape[..1] } else { &t.shape };
        again = again.tensor_in(&t.name, shape, t.ty, t.form, gguf.bytes(t));
    }
    assert_eq!(again.build(), sample().build());
}

#[test]
fn other_readers_see_bytes() {
    let bytes = sample().build();
    let key = b"jetforge.native.version";
    let at = bytes.windows(key.len()).position(|w| w == key).expect("the key is there");
    // With the version's key under another name, nothing is translated.
    let mut foreign = bytes.clone();
    foreign[at] = b'x';
    let folder = tempfile::tempdir().expect("a directory");
    let path = folder.path().join("x.gguf");
    std::fs::write(&path, foreign).expect("written");
    let gguf = Gguf::survey(&path).expect("GGUF by all its rules");
    let unread: Vec<_> = gguf.unread().iter().map(|t| (&t.name[..], &t.ty[..])).collect();
    assert_eq!(unread, [("n4", "I8 (type 24)"), ("n3", "I8 (type 24)"), ("q4", "I8 (type 24)")]);
    assert!(gguf.metadata().strs("jetforge.native.names").unwrap().is_some());
}

#[test]
fn weights_are_the_same_in_every_form() {
    let gguf = Gguf::from_vec(sample().build()).expect("a right file");
    let info = gguf.tensor("n4").unwrap();
    let mut got = vec![0.0; 3 * 96];
    gguf.read(info, &mut got);
    for (row, bytes) in got.chunks(96).zip(gguf.bytes(info).chunks(60)) {
        let mut expected = [0.0; 96];
        dequantize(TensorType::N4, bytes, &mut expected);
        assert_eq!(row, expected);
    }
    let mut panels = vec![0.0; 17 * 64];
    gguf.read(gguf.tensor("q4").unwrap(), &mut panels);
    // Every byte is 3: codes 3 and 0 under a scale of 0x0303.
    assert!(panels.iter().all(|w| *w == panels[0] || *w == panels[0] * 8.0 / 5.0));
}

#[test]
fn a_wrong_description_is_refused_by_name() {
    assert!(Gguf::from_vec(one(&keys(&[]))).is_ok());
    let array = |items: &[u64]| Some(Value::from(items));
    let text = |item: &str| Some(Value::from(&[item]));
    let version = refused(&[("version", Some(Value::U32(2)))]);
    assert!(matches!(version, GgufError::NativeVersion { version: 2 }));
    for key in ["types", "columns", "rows", "layouts"] {
        let error = refused(&[(key, None)]);
        assert!(matches!(error, GgufError::NativeCount { want: 1, got: 0, .. }), "{error}");
        let error = refused(&[(key, Some(Value::U32(1)))]);
        assert!(matches!(error, GgufError::KeyType { .. }), "{error}");
    }
    let error = refused(&[("types", text("N5"))]);
    assert_eq!(
        error.to_string(),
        "`jetforge.native.types` says \"N5\" for tensor `w`, which this version does not know"
    );
    assert!(matches!(refused(&[("layouts", text("tiles"))]), GgufError::NativeWord { .. }));
    assert!(matches!(refused(&[("rows", array(&[0]))]), GgufError::ZeroDimension { .. }));
    assert!(matches!(refused(&[("columns", array(&[97]))]), GgufError::RowLength { .. }));
    for huge in [1 << 63, u64::MAX / 32 * 32] {
        let columns = refused(&[("columns", array(&[huge]))]);
        let too_large = matches!(columns, GgufError::TensorTooLarge { .. });
        assert!(too_large || matches!(columns, GgufError::NativeLength { .. }), "{columns}");
        let rows = refused(&[("rows", array(&[huge]))]);
        assert!(matches!(rows, GgufError::TensorTooLarge { .. }));
        let panels = refused(&[("columns", array(&[huge])), ("layouts", text("panels16"))]);
        assert!(matches!(panels, GgufError::TensorTooLarge { .. }));
    }
    assert_eq!(
        refused(&[("rows", array(&[2]))]).to_string(),
        "tensor `w` is listed with shape [60]; as N4 in rows it has 120 bytes"
    );
    // Floats have no panels.
    let floats = refused(&[("types", text("F32")), ("layouts", text("panels16"))]);
    assert!(matches!(floats, GgufError::TensorTooLarge { .. }));
    assert_eq!(
        refused(&[("names", text("v"))]).to_string(),
        "the native extension describes tensor `v`, which the file does not have"
    );
    let two = |item: &str| Some(Value::from(&[item, item]));
    let columns = || array(&[96, 96]);
    let twice = [("names", two("w")), ("types", two("N4")), ("columns", columns())];
    let twice = [&twice[..], &[("rows", array(&[1, 1])), ("layouts", two("rows"))]].concat();
    assert!(matches!(refused(&twice), GgufError::DuplicateTensor { .. }));

    let mut described = GgufBuilder::new().tensor("w", &[15], TensorType::F32, vec![0; 60]);
    for (key, value) in keys(&[]) {
        described = described.pair(format!("jetforge.native.{key}"), value);
    }
    assert_eq!(
        refusal(described.build()).to_string(),
        "the native extension describes tensor `w`, which is not stored as I8"
    );
}
