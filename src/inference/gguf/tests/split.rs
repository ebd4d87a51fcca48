//! Any shard opens the whole model; shards that do not belong together open nothing.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use super::super::*;
use super::{floats, refusal};

/// Three shards with one, two and one tensors; the second has an alignment of its own.
fn shards() -> [GgufBuilder<'static>; 3] {
    let shard = |no: u16| {
        GgufBuilder::new()
            .pair("split.no", no)
            .pair("split.count", 3u16)
            .pair("split.tensors.count", 4i32)
    };
    let first = shard(0).pair("general.architecture", "llama");
    let second = shard(1).pair("general.alignment", 128u32);
    [
        first.tensor("a", &[4], TensorType::F32, floats(4)),
        second.tensor("b", &[4], TensorType::F16, vec![1; 8]).tensor(
            "c",
            &[32],
            TensorType::Q8_0,
            vec![2; 34],
        ),
        shard(2).tensor("d", &[2, 2], TensorType::F32, floats(4)),
    ]
}

fn shard_path(dir: &Path, number: usize) -> PathBuf {
    dir.join(format!("m-{number:05}-of-00003.gguf"))
}

fn write_shards(shards: &[GgufBuilder<'_>]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a directory");
    for (shard_idx, shard) in shards.iter().enumerate() {
        std::fs::write(shard_path(dir.path(), shard_idx + 1), shard.build()).expect("written");
    }
    dir
}

#[test]
fn any_shard_opens_the_whole_model() {
    let dir = write_shards(&shards());
    for number in 1..=3 {
        let gguf = Gguf::open(&shard_path(dir.path(), number)).expect("a split model");
        assert_eq!(gguf.n_shards(), 3);
        assert_eq!(gguf.metadata().str("general.architecture").unwrap(), Some("llama"));
        let places: Vec<_> = gguf
            .tensors()
            .iter()
            .map(|i| (i.name.as_str(), i.shard_idx(), gguf.bytes(i)))
            .collect();
        let floats = floats(4);
        let expected: [(&str, usize, &[u8]); 4] =
            [("a", 0, &floats), ("b", 1, &[1; 8]), ("c", 1, &[2; 34]), ("d", 2, &floats)];
        assert_eq!(places, expected);
        let file_bytes: usize = shards().iter().map(|shard| shard.build().len()).sum();
        assert_eq!(gguf.file_bytes() as usize, file_bytes);
    }
}

/// The message of opening shard 1 and of every error below it.
fn split_refusal(dir: &Path) -> String {
    let error = Gguf::open(&shard_path(dir, 1)).expect_err("a wrong model");
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(&error);
    while let Some(error) = cause {
        write!(text, ": {error}").expect("strings take all text");
        cause = error.source();
    }
    text
}

#[test]
fn wrong_splits_are_refused() {
    let dir = write_shards(&shards());
    std::fs::remove_file(shard_path(dir.path(), 2)).expect("removed");
    let text = split_refusal(dir.path());
    assert!(text.contains("m-00002-of-00003.gguf") && text.contains("cannot read"), "{text}");

    let dir = write_shards(&shards());
    std::fs::copy(shard_path(dir.path(), 2), shard_path(dir.path(), 3)).expect("copied");
    let text = split_refusal(dir.path());
    assert!(text.contains("shard 1 of 3; shard 2 of 3 was expected"), "{text}");

    let [first, second, third] = shards();
    let extra = third.clone().tensor("e", &[1], TensorType::F32, vec![0; 4]);
    let text = split_refusal(write_shards(&[first.clone(), second.clone(), extra]).path());
    assert!(text.contains("has 4 tensors") && text.contains("hold 5"), "{text}");

    let twin = GgufBuilder::new().pair("split.no", 2u16).pair("split.count", 3u16).tensor(
        "a",
        &[1],
        TensorType::F32,
        vec![0; 4],
    );
    let text = split_refusal(write_shards(&[first.clone(), second.clone(), twin]).path());
    assert_eq!(text, "tensor `a` appears twice");

    let dir = write_shards(&[first, second, third]);
    std::fs::write(shard_path(dir.path(), 3), &shards()[2].build()[..170]).expect("written");
    let text = split_refusal(dir.path());
    assert!(text.contains("m-00003-of-00003.gguf") && text.contains("cut short"), "{text}");
}

#[test]
fn a_shard_needs_its_name_and_its_siblings() {
    let dir = write_shards(&shards());
    let renamed = dir.path().join("renamed.gguf");
    std::fs::rename(shard_path(dir.path(), 1), &renamed).expect("renamed");
    let error = Gguf::open(&renamed).expect_err("siblings cannot be found");
    assert!(error.to_string().contains("-00001-of-00003.gguf"), "{error}");

    let alone = refusal(shards()[0].build());
    assert!(matches!(alone, GgufError::SplitInMemory { n_shards: 3 }));
    let split = |no: u32, count: u32| {
        refusal(GgufBuilder::new().pair("split.no", no).pair("split.count", count).build())
    };
    assert!(matches!(split(3, 3), GgufError::KeyRange { .. }));
    assert!(matches!(split(0, 65_535), GgufError::TooMany { .. }));
    let single = GgufBuilder::new().pair("split.no", 0u16).pair("split.count", 1u16);
    assert!(Gguf::from_vec(single.build()).is_ok());
}
