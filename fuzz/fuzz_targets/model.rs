//! A small model with some things wrong: it is refused by name, or it loads within its memory plan
//! and runs. Address sanitizer watches the kernels.
#![no_main]

use std::ops::ControlFlow;
use std::path::PathBuf;

use jetforge::inference::{
    EncodeOptions, GenerateRequest, LoadOptions, Message, Model, ModelSource, RenderOptions,
    SamplerKind, SamplerOptions,
};
use jetforge_fuzz::feed::Feed;
use jetforge_fuzz::memory::{Counting, within};
use jetforge_fuzz::tiny::Tiny;
use libfuzzer_sys::fuzz_target;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// What a model may take, 96 MiB of it the plan's own reserve.
const MEMORY_MAX: u64 = 128 << 20;

fuzz_target!(|input: &[u8]| {
    let mut feed = Feed::new(input);
    let mut tiny = Tiny::new(&mut feed);
    let n_edits = feed.u8() % 8;
    (0..n_edits).for_each(|_| tiny.edit(&mut feed));
    let n_fill = usize::from(feed.u8() % 64);
    let fill = feed.bytes(n_fill);
    // In shared memory where there is such a thing: a file is what `Model` loads.
    let folder = ["/dev/shm", "/tmp"].into_iter().map(PathBuf::from).find(|dir| dir.is_dir());
    let path = folder.unwrap_or_default().join(format!("jetforge-fuzz-{}", std::process::id()));
    std::fs::write(&path, tiny.write(fill)).expect("room for a small file");
    let options = LoadOptions {
        n_ctx: Some(feed.number()).filter(|_| feed.u8() & 1 == 1),
        n_batch: Some(u32::from(feed.u8() % 16 + 1)),
        n_threads: Some(1),
        isa: feed.pick(&[None, Some("scalar"), Some("avx2")]).map(str::to_owned),
        kv_type: feed.pick(&[None, Some("f32"), Some("q8_0"), Some("q4_0")]).map(str::to_owned),
        memory_max_bytes: Some(MEMORY_MAX),
        ..LoadOptions::default()
    };
    let source = ModelSource::File(path);
    match within(MEMORY_MAX as usize, "loading", || Model::load(&source, &options)) {
        Ok(mut model) => within(MEMORY_MAX as usize, "running", || exercise(&mut model, &mut feed)),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
});

fn exercise(model: &mut Model, feed: &mut Feed<'_>) {
    let sampler = sampler_options(feed);
    let options = EncodeOptions { add_special: feed.u8() & 1 == 1, parse_special: true };
    let text = feed.rest();
    if let Some(template) = model.chat_template() {
        let content = String::from_utf8_lossy(text).into_owned();
        let messages = [Message { role: "user".to_owned(), content }];
        let _ = template.render(&messages, &RenderOptions::default());
    }
    let Ok(mut tokens) = model.tokenizer().encode_bytes(text, options) else { return };
    let tokenizer = model.tokenizer();
    assert!(tokens.iter().all(|&id| (id as usize) < tokenizer.n_vocab()));
    let _ = tokenizer.decode(&tokens, true);
    let start = String::from_utf8_lossy(&text[..text.len().min(24)]);
    let _ = model.embed(&start, None);
    let _ = model.rerank(&start, "ab abc");
    tokens.truncate(12);
    let _ = model.perplexity(&tokens, 4, &mut |_, _| {});
    let mut request = GenerateRequest { prompt: tokens, n_predict: Some(3), ..Default::default() };
    request.sampler = sampler;
    request.stop = vec!["ab".to_owned(), "\u{fffd}".to_owned()];
    request.n_probs = 2;
    if let Ok(generated) = model.generate(&request, &mut |_| ControlFlow::Continue(())) {
        assert!(generated.tokens.len() <= 3);
        assert!(generated.tokens.iter().all(|&id| (id as usize) < model.hparams().n_vocab));
        if cfg!(feature = "canary") {
            assert!(model.hparams().window.is_none(), "canary");
        }
    }
}

fn sampler_options(feed: &mut Feed<'_>) -> SamplerOptions {
    let mut options = SamplerOptions { seed: 1, ..SamplerOptions::default() };
    for _ in 0..feed.u8() % 6 {
        match feed.u8() % 16 {
            0 => options.top_k = feed.number() as i32,
            1 => options.top_p = feed.float(),
            2 => options.min_p = feed.float(),
            3 => options.typ_p = feed.float(),
            4 => options.temp = feed.float(),
            5 => options.dynatemp_range = feed.float(),
            6 => options.penalty_repeat = feed.float(),
            7 => options.penalty_last_n = feed.number() as i32,
            8 => options.dry_multiplier = feed.float(),
            9 => options.dry_allowed_length = feed.number() as i32,
            10 => options.top_n_sigma = feed.float(),
            11 => options.mirostat = u32::from(feed.u8() % 3),
            12 => options.mirostat_eta = feed.float(),
            13 => options.xtc_probability = feed.float(),
            14 => options.logit_bias = vec![(feed.number(), feed.float())],
            _ => {
                options.samplers =
                    (0..feed.u8() % 6).map(|_| feed.pick(&SamplerKind::ALL)).collect()
            }
        }
    }
    options
}
