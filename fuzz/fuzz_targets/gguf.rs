//! Any bytes: the reader refuses them or keeps every promise that its face makes.
//!
//! Run with `-malloc_limit_mb=64`: no allocation may be larger than the bytes present justify,
//! and inputs of 64 KiB justify far less.

#![no_main]

use jetforge::inference::gguf::{Gguf, GgufBuilder, Value};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    // Most inputs would die at the magic, so inputs without one get one.
    let bytes = match bytes {
        [b'G', b'G', b'U', b'F', ..] => bytes.to_vec(),
        _ => [b"GGUF\x03\0\0\0", bytes].concat(),
    };
    match Gguf::from_vec(bytes) {
        Ok(gguf) => exercise(&gguf),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
});

fn exercise(gguf: &Gguf) {
    let mut builder = GgufBuilder::new().version(gguf.version());
    let metadata = gguf.metadata();
    for (key, value) in metadata.iter() {
        assert!(!value.to_string().is_empty());
        let _ = (
            metadata.u32(key),
            metadata.u64(key),
            metadata.f32(key),
            metadata.bool(key),
        );
        let _ = (
            metadata.str(key),
            metadata.i32s(key),
            metadata.f32s(key),
            metadata.bools(key),
        );
        assert!(metadata.strs(key).is_ok_and(|strs| strs.is_some()) == is_strs(value));
        builder = builder.pair(key, value.clone());
    }
    let mut ranges = Vec::new();
    for info in gguf.tensors() {
        let bytes = gguf.bytes(info);
        assert_eq!(bytes.len() as u64, info.n_bytes);
        assert_eq!(gguf.tensor(&info.name), Some(info));
        let rows = info.shape[1..].iter().product::<u64>();
        let row_bytes = info
            .ty
            .row_bytes(info.shape[0] as usize)
            .expect("whole blocks");
        assert_eq!(rows * row_bytes as u64, info.n_bytes);
        ranges.push(info.file_offset()..info.file_offset() + info.n_bytes);
        builder = builder.tensor(&info.name, &info.shape, info.ty, bytes);
    }
    ranges.sort_by_key(|range| range.start);
    assert!(ranges.windows(2).all(|pair| pair[0].end <= pair[1].start));

    // What was read can be written, and reads the same.
    let again = Gguf::from_vec(builder.build()).expect("a right file");
    assert!(
        again
            .metadata()
            .iter()
            .map(|(k, _)| k)
            .eq(metadata.iter().map(|(k, _)| k))
    );
    for (a, b) in again.tensors().iter().zip(gguf.tensors()) {
        assert_eq!((&a.name, &a.shape, a.ty), (&b.name, &b.shape, b.ty));
        assert_eq!(again.bytes(a), gguf.bytes(b));
    }
}

fn is_strs(value: &Value) -> bool {
    matches!(value, Value::Array(array) if array.item_type().name() == "str")
}
