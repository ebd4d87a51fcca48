//! Mutated files are refused or keep every promise; they never panic.

use proptest::prelude::*;

use super::super::*;
use super::{native, sample};

/// Uses everything that an accepted file offers; what is promised must hold for any bytes.
fn exercise(gguf: &Gguf) {
    for info in gguf.tensors() {
        assert_eq!(gguf.bytes(info).len() as u64, info.n_bytes);
        assert_eq!(gguf.tensor(&info.name), Some(info));
        assert!(info.n_elements() > 0);
        let n_rows = info.n_elements() / info.shape[0];
        assert_eq!(info.form.n_bytes(info.ty, info.shape[0], n_rows), Some(info.n_bytes));
        if info.n_elements() <= 1 << 12 {
            gguf.read(info, &mut vec![0.0; info.n_elements() as usize]);
        }
    }
    let m = gguf.metadata();
    for (key, value) in m.iter() {
        let _ = (value.to_string(), m.u32(key), m.f32(key), m.bool(key), m.str(key));
        let _ = (m.i32s(key), m.f32s(key));
        if let Value::Array(array) = value {
            let n_items = array.strs().count() + array.values().count();
            assert_eq!(n_items, array.len(), "{key}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    #[test]
    fn mutated_bytes_never_panic(
        edits in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        keep in prop::option::weighted(0.2, any::<prop::sample::Index>()),
        is_native in any::<bool>(),
    ) {
        let file = if is_native { native::sample() } else { sample() };
        let mut bytes = file.build();
        let header_len = file.header().len();
        for (at, byte) in edits {
            bytes[at.index(header_len)] = byte;
        }
        if let Some(keep) = keep {
            bytes.truncate(keep.index(bytes.len()));
        }
        if let Ok(gguf) = Gguf::from_vec(bytes) {
            exercise(&gguf);
        }
    }

    #[test]
    fn mutated_words_never_panic(
        at in any::<prop::sample::Index>(),
        word in prop_oneof![
            any::<u64>(),
            (0u32..64).prop_map(|bit| 1 << bit),
            (0u64..32).prop_map(|small| !small),
        ],
        is_native in any::<bool>(),
    ) {
        let file = if is_native { native::sample() } else { sample() };
        let mut bytes = file.build();
        let at = at.index(file.header().len() - 8);
        bytes[at..at + 8].copy_from_slice(&word.to_le_bytes());
        if let Ok(gguf) = Gguf::from_vec(bytes) {
            exercise(&gguf);
        }
    }

    #[test]
    fn noise_behind_the_magic_never_panics(tail in proptest::collection::vec(any::<u8>(), 0..256)) {
        let mut bytes = b"GGUF\x03\0\0\0".to_vec();
        bytes.extend(tail);
        if let Ok(gguf) = Gguf::from_vec(bytes) {
            exercise(&gguf);
        }
    }
}
