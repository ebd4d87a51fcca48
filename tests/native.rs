//! Native files: the same weights in panels give the same bits, loading packs nothing, and a writer
//! keeps its promises.

use std::path::{Path, PathBuf};

use jetforge::inference::gguf::{Gguf, Metadata};
use jetforge::inference::{
    Form, LoadOptions, Model, ModelSource, NativeError, NativeTensor, NativeWriter, Target,
    TensorType, convert,
};

use crate::support::recipe::Recipe;

/// Writes the model of a recipe, and the same for a target.
fn files(folder: &Path, case: &str, ty: TensorType, target: Target) -> [PathBuf; 2] {
    let plain = folder.join(format!("{case}-{ty}.gguf"));
    std::fs::write(&plain, Recipe::read(case).build(ty)).expect("the model is written");
    let native = folder.join(format!("{case}-{ty}-{}.gguf", target.name()));
    let gguf = Gguf::open(&plain).expect("the reader takes the file");
    let bytes = convert(&gguf, target, Vec::new()).expect("the weights fit");
    std::fs::write(&native, bytes).expect("the native file is written");
    [plain, native]
}

fn load(path: &Path) -> Model {
    let options = LoadOptions { n_ctx: Some(64), ..LoadOptions::default() };
    Model::load(&ModelSource::File(path.to_owned()), &options).expect("the model loads")
}

fn logits(model: &mut Model, case: &str) -> Vec<u32> {
    let tokens = Recipe::read(case).tokens();
    let logits = model.logits(&tokens).expect("logits");
    assert!(logits.iter().all(|x| x.is_finite()));
    logits.iter().map(|x| x.to_bits()).collect()
}

#[test]
fn panels_in_the_file_give_the_bits_of_panels_that_were_packed() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    // A tied output, an output of its own, and matrices that are slices of one tensor.
    for case in ["qwen2", "llama", "phi2"] {
        for ty in [TensorType::Q4_0, TensorType::N4, TensorType::N3, TensorType::IQ3_S] {
            let [plain, native] = files(folder.path(), case, ty, Target::Avx2);
            let (mut packed, mut mapped) = (load(&plain), load(&native));
            assert!(packed.memory_plan().packed_bytes > 0, "{case} {ty}");
            assert_eq!(mapped.memory_plan().packed_bytes, 0, "{case} {ty}");
            let file_bytes = std::fs::metadata(&native).expect("it is there").len();
            assert_eq!(mapped.memory_plan().weights_bytes, file_bytes, "{case} {ty}");
            assert!(mapped.memory_plan().to_string().contains("(mapped)"));
            assert_eq!(logits(&mut mapped, case), logits(&mut packed, case), "{case} {ty}");
        }
    }
}

#[test]
fn a_file_of_any_target_runs_and_can_be_written_for_another() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    for (case, ty) in [
        ("llama", TensorType::N3),
        ("llama", TensorType::Q6_K),
        ("qwen2", TensorType::N4),
        ("phi2", TensorType::Q5_0),
    ] {
        let [plain, strips] = files(folder.path(), case, ty, Target::Sm53);
        let expected = logits(&mut load(&plain), case);
        let mut loaded = load(&strips);
        assert!(loaded.memory_plan().packed_bytes > 0, "{case} {ty}: panels out of strips");
        assert_eq!(logits(&mut loaded, case), expected, "{case} {ty} in strips");
        let strips = std::fs::read(&strips).expect("it is there");
        let in_strips = Gguf::from_vec(strips.clone()).expect("a right file");
        assert_eq!(in_strips.native_target(), Some("sm53"));
        assert!(in_strips.tensors().iter().any(|info| info.form == Form::Strips));
        let panels = convert(&in_strips, Target::Neon, Vec::new()).expect("it is written");
        let in_panels = Gguf::from_vec(panels.clone()).expect("a right file");
        let form = |name| in_panels.tensor(name).map(|info| info.form);
        assert!(in_panels.tensors().iter().all(|info| info.form != Form::Strips));
        if case == "llama" {
            // A table that is only looked up is not worth a panel.
            assert_eq!(form("blk.0.attn_q.weight"), Some(Form::Panels));
            assert_eq!(form("token_embd.weight"), Some(Form::Rows));
        }
        let [_, packed] = files(folder.path(), case, ty, Target::Neon);
        let packed = std::fs::read(&packed).expect("it is there");
        assert!(packed == panels, "{case} {ty}: rows and strips give the same panels");
        let same = convert(&in_panels, Target::Avx512, Vec::new()).expect("it is written");
        let same = Gguf::from_vec(same).expect("a right file");
        for (a, b) in same.tensors().iter().zip(in_panels.tensors()) {
            assert!(same.bytes(a) == in_panels.bytes(b), "{}", a.name);
        }
        let back = convert(&in_panels, Target::Sm53, Vec::new()).expect("it is written");
        assert!(back == strips, "{case} {ty} came back");
    }
}

/// Two tensors, the second of which stands in panels.
fn two(ty: TensorType) -> Vec<NativeTensor> {
    let tensor = |name: &str, ty, shape: &[u64]| NativeTensor {
        name: name.to_owned(),
        ty,
        shape: shape.to_vec(),
    };
    vec![tensor("a", TensorType::F32, &[5]), tensor("b", ty, &[96, 35])]
}

#[test]
fn a_writer_takes_rows_cut_anywhere() {
    let metadata = Metadata::from_pairs([("general.alignment", 32u32.into())]);
    let n_bytes = 20 + 35 * 60;
    let bytes: Vec<u8> = (0..n_bytes).map(|i| (i * 7 % 251) as u8).collect();
    let whole = |step: usize| {
        let tensors = two(TensorType::N4);
        let mut writer =
            NativeWriter::new(Vec::new(), Target::Neon, &metadata, tensors).expect("a header");
        bytes.chunks(step).for_each(|bytes| writer.write(bytes).expect("memory takes it"));
        writer.finish().expect("every byte was there")
    };
    let file = whole(n_bytes);
    for step in [1, 59, 60, 61, 1000] {
        assert!(whole(step) == file, "in steps of {step}");
    }
    let gguf = Gguf::from_vec(file).expect("a right file");
    assert_eq!((gguf.alignment(), gguf.native_target()), (4096, Some("neon")));
    let b = gguf.tensor("b").expect("b");
    assert_eq!((b.form, b.file_offset() % 4096), (Form::Panels, 0));
    let mut weights = vec![0.0; 96 * 35];
    gguf.read(b, &mut weights);
    for (row, bytes) in weights.chunks(96).zip(bytes[20..].chunks(60)) {
        let mut expected = [0.0; 96];
        jetforge::inference::quant::dequantize(TensorType::N4, bytes, &mut expected);
        assert_eq!(bits(row), bits(&expected));
    }
}

fn bits(weights: &[f32]) -> Vec<u32> {
    weights.iter().map(|w| w.to_bits()).collect()
}

#[test]
fn a_writer_refuses_what_is_not_the_model() {
    let start =
        |tensors| NativeWriter::new(Vec::new(), Target::Avx2, &Metadata::default(), tensors);
    let mut writer = start(two(TensorType::Q8_0)).expect("a header");
    writer.write(&[0; 20]).expect("the first tensor");
    writer.write(&[0; 100]).expect("a part of the second");
    match writer.finish() {
        Err(NativeError::Missing { name, n_bytes }) => {
            assert_eq!((name.as_str(), n_bytes), ("b", 35 * 102 - 100));
        }
        other => panic!("{:?}", other.map(|file| file.len())),
    }
    let mut writer = start(two(TensorType::Q8_0)).expect("a header");
    let surplus = writer.write(&vec![0; 20 + 35 * 102 + 3]);
    assert!(matches!(surplus, Err(NativeError::Surplus { n_bytes: 3 })));
    for (ty, shape) in [
        (TensorType::Q4_K, vec![96, 4]),
        (TensorType::N4, vec![48, 4]),
        (TensorType::F32, vec![]),
        (TensorType::F32, vec![4, 0]),
        (TensorType::F32, vec![1 << 40, 1 << 40]),
    ] {
        let tensor = NativeTensor { name: "w".to_owned(), ty, shape };
        assert!(matches!(start(vec![tensor]), Err(NativeError::Shape { .. })), "{ty}");
    }
}
