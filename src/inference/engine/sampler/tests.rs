//! The chain as a whole: hand values, and what holds for any options.

use proptest::prelude::*;

use super::*;

const NO_VOCAB: BreakerVocab = BreakerVocab { piece: &|_| Vec::new(), encode: &|_| Vec::new() };

fn sampler(options: &SamplerOptions, n_vocab: usize) -> Sampler {
    Sampler::new(options, n_vocab, 2048, &NO_VOCAB).expect("options in their ranges")
}

/// A chain of one step, then a draw that takes the likeliest token that the step left.
fn only(kind: SamplerKind) -> SamplerOptions {
    SamplerOptions {
        samplers: vec![kind, SamplerKind::Temperature],
        temp: 0.0,
        seed: 1,
        ..SamplerOptions::default()
    }
}

/// Which tokens a chain can give, by trying it often.
fn reachable(options: &SamplerOptions, logits: &[f32]) -> Vec<TokenId> {
    let mut sampler = sampler(options, logits.len());
    let mut seen: Vec<_> = (0..300).map(|_| sampler.sample(logits)).collect();
    seen.sort();
    seen.dedup();
    seen
}

fn cutting(change: impl Fn(&mut SamplerOptions)) -> SamplerOptions {
    let mut options = SamplerOptions {
        top_k: 0,
        top_p: 1.0,
        min_p: 0.0,
        temp: 1.0,
        seed: 9,
        ..SamplerOptions::default()
    };
    change(&mut options);
    options
}

/// Probabilities 1/2, 1/4, 1/8, 1/8.
fn halves() -> Vec<f32> {
    [0.5f32, 0.25, 0.125, 0.125].map(f32::ln).to_vec()
}

#[test]
fn cuts_by_hand_values() {
    let tokens = |change: fn(&mut SamplerOptions)| reachable(&cutting(change), &halves());
    assert_eq!(tokens(|_| ()), [0, 1, 2, 3]);
    assert_eq!(tokens(|o| o.top_k = 2), [0, 1]);
    assert_eq!(tokens(|o| o.top_p = 0.4), [0]);
    assert_eq!(tokens(|o| o.top_p = 0.6), [0, 1]);
    assert_eq!(tokens(|o| (o.top_p, o.min_keep) = (0.4, 3)).len(), 3);
    assert_eq!(tokens(|o| o.min_p = 0.4), [0, 1]);
    assert_eq!(tokens(|o| (o.xtc_probability, o.xtc_threshold) = (1.0, 0.2)), [1, 2, 3]);
    // The expected surprise is 1.75 bits; the token with 2 bits is nearest.
    assert_eq!(tokens(|o| o.typ_p = 0.2), [1]);
    assert_eq!(tokens(|o| o.top_n_sigma = 0.5), [0]);
    assert_eq!(tokens(|o| o.logit_bias = vec![(0, f32::NEG_INFINITY), (3, 20.0)]), [3]);
    assert_eq!(tokens(|o| o.temp = -1.0), [0]);
}

#[test]
fn penalties_by_hand_values() {
    let logits = [2.0, 1.5, -1.0];
    let pick = |change: fn(&mut SamplerOptions), text: &[TokenId]| {
        let mut options = only(SamplerKind::Penalties);
        change(&mut options);
        let mut sampler = sampler(&options, 3);
        text.iter().for_each(|&token| sampler.accept(token));
        sampler.sample(&logits)
    };
    assert_eq!(pick(|o| o.penalty_repeat = 2.0, &[]), 0);
    assert_eq!(pick(|o| o.penalty_repeat = 2.0, &[0]), 1);
    assert_eq!(pick(|o| o.penalty_repeat = 1.2, &[0]), 0);
    assert_eq!(pick(|o| o.penalty_freq = 0.3, &[0]), 0);
    assert_eq!(pick(|o| o.penalty_freq = 0.3, &[0, 0]), 1);
    assert_eq!(pick(|o| o.penalty_present = 0.3, &[0, 0]), 0);
    // Only the last token counts, and tokens outside the vocabulary are no tokens.
    assert_eq!(pick(|o| (o.penalty_present, o.penalty_last_n) = (1.0, 1), &[0, 2, 99]), 0);
    assert_eq!(pick(|o| (o.penalty_present, o.penalty_last_n) = (1.0, -1), &[0, 2, 99]), 1);
    assert_eq!(pick(|o| (o.penalty_present, o.penalty_last_n) = (1.0, 0), &[0]), 0);
}

#[test]
fn the_random_seed_is_told_and_reproduces() {
    let options = cutting(|o| o.seed = SEED_RANDOM);
    let logits = [0.0; 64];
    let mut first = sampler(&options, 64);
    assert_ne!(first.seed(), SEED_RANDOM);
    let mut again = sampler(&SamplerOptions { seed: first.seed(), ..options.clone() }, 64);
    let picks: Vec<_> = (0..20).map(|_| first.sample(&logits)).collect();
    assert_eq!(picks, (0..20).map(|_| again.sample(&logits)).collect::<Vec<_>>());
    first.reset();
    assert_eq!(picks, (0..20).map(|_| first.sample(&logits)).collect::<Vec<_>>());
}

#[test]
fn buffers_never_grow() {
    for mirostat in 0..3 {
        let options = SamplerOptions {
            typ_p: 0.9,
            top_k: 1500,
            dry_multiplier: 1.0,
            dry_sequence_breakers: vec![],
            penalty_present: 0.1,
            mirostat,
            seed: 3,
            ..SamplerOptions::default()
        };
        let logits: Vec<f32> = (0..2000).map(|i| (i * 37 % 501) as f32 * 0.02).collect();
        let mut sampler = sampler(&options, logits.len());
        let places = |s: &Sampler| {
            let c = &s.candidates;
            let mut lists = [c.list.as_ptr(), c.spare.as_ptr()];
            lists.sort();
            (lists, c.order.as_ptr(), c.scores.as_ptr())
        };
        let before = places(&sampler);
        for _ in 0..50 {
            let token = sampler.sample(&logits);
            sampler.accept(token);
        }
        assert_eq!(places(&sampler), before);
    }
}

fn any_logit() -> impl Strategy<Value = f32> {
    prop_oneof![
        6 => -15.0f32..15.0,
        2 => (-4i8..4).prop_map(f32::from),
        1 => Just(f32::NEG_INFINITY),
    ]
}

prop_compose! {
    fn any_options()(
        kinds in proptest::collection::vec(0..9usize, 0..12),
        (top_k, min_keep, mirostat, seed) in (-1..50i32, 0..5u32, 0..3u32, any::<u32>()),
        (top_p, min_p, typ_p) in (0.0f32..=1.0, 0.0f32..=1.0, 0.0f32..=1.0),
        (xtc_probability, xtc_threshold) in (0.0f32..=1.0, 0.0f32..=0.6),
        (temp, dynatemp_range) in (-0.5f32..3.0, -0.5f32..2.0),
        (penalty_repeat, penalty_freq, penalty_present) in
            (0.5f32..2.0, -1.0f32..1.0, -1.0f32..1.0),
        (dry_multiplier, dry_allowed_length, top_n_sigma) in
            (0.0f32..2.0, 0..4i32, -1.0f32..3.0),
    ) -> SamplerOptions {
        SamplerOptions {
            samplers: kinds.iter().map(|&i| SamplerKind::ALL[i]).collect(),
            temp: if temp.abs() < 1e-3 { 0.0 } else { temp },
            top_k, min_keep, mirostat, seed, top_p, min_p, typ_p, xtc_probability, xtc_threshold,
            dynatemp_range, penalty_repeat, penalty_freq, penalty_present, dry_multiplier,
            dry_allowed_length, top_n_sigma,
            ..SamplerOptions::default()
        }
    }
}

proptest! {
    #[test]
    fn picks_are_possible_and_reproducible(
        options in any_options(),
        steps in proptest::collection::vec(proptest::collection::vec(any_logit(), 40), 1..12),
    ) {
        let (mut a, mut b) = (sampler(&options, 40), sampler(&options, 40));
        for mut logits in steps {
            logits[7] = 0.5;
            let token = a.sample(&logits);
            prop_assert!(logits[token as usize].is_finite());
            prop_assert_eq!(token, b.sample(&logits));
            a.accept(token);
            b.accept(token);
        }
    }

    #[test]
    fn a_mask_of_all_but_one_leaves_one(options in any_options(), allowed in 0..300usize) {
        let mut sampler = sampler(&options, 300);
        let mut logits = vec![f32::NEG_INFINITY; 300];
        logits[allowed] = -3.0;
        for _ in 0..3 {
            let token = sampler.sample(&logits);
            prop_assert_eq!(token as usize, allowed);
            sampler.accept(token);
        }
    }

    #[test]
    fn top_k_of_one_is_the_highest_logit(
        logits in proptest::collection::vec(-9.0f32..9.0, 1..500),
        seed in any::<u32>(),
    ) {
        let options = SamplerOptions { top_k: 1, seed, ..SamplerOptions::default() };
        let token = sampler(&options, logits.len()).sample(&logits);
        prop_assert_eq!(logits[token as usize], logits.iter().copied().fold(f32::MIN, f32::max));
    }

    #[test]
    fn no_logits_panic(
        options in any_options(),
        logits in proptest::collection::vec(
            prop_oneof![any::<f32>(), Just(f32::NAN), Just(f32::INFINITY), any_logit()], 64),
    ) {
        let mut sampler = sampler(&options, 64);
        for _ in 0..3 {
            let token = sampler.sample(&logits);
            sampler.accept(token);
        }
        sampler.sample(&[f32::NEG_INFINITY; 64]);
    }
}

/// The `n` largest of a row as a device gives them.
fn largest(logits: &[f32], n: usize) -> Vec<(TokenId, f32)> {
    let mut all: Vec<(TokenId, f32)> =
        (0..).zip(logits.iter().copied()).filter(|(_, logit)| !logit.is_nan()).collect();
    all.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    all.resize(all.len().max(n), (TokenId::MAX, f32::NEG_INFINITY));
    all.truncate(n);
    all
}

/// Picks from the largest if they tell, else from the row; and whether they told.
fn pick_by_largest(sampler: &mut Sampler, logits: &[f32], ends: &[TokenId]) -> (TokenId, bool) {
    let n = sampler.n_top(ends.len(), 32);
    let token = match n {
        0 => None,
        n => sampler.sample_top(&largest(logits, n), ends, None),
    };
    let mut row = logits.to_vec();
    ends.iter().for_each(|&token| row[token as usize] = f32::NEG_INFINITY);
    (token.unwrap_or_else(|| sampler.sample(&row)), token.is_some())
}

#[test]
fn a_few_of_the_largest_are_enough_for_what_is_usual() {
    let logits: Vec<f32> = (0..3000).map(|i| (i * 7919 % 3001) as f32 * 0.01).collect();
    let default = SamplerOptions { top_k: 20, seed: 1, ..SamplerOptions::default() };
    let wants = |change: fn(&mut SamplerOptions)| {
        let mut options = default.clone();
        change(&mut options);
        let mut sampler = sampler(&options, logits.len());
        (0..5).for_each(|token| sampler.accept(token * 300));
        let n = sampler.n_top(1, 64);
        let is_enough = n > 0 && sampler.sample_top(&largest(&logits, n), &[9], None).is_some();
        (n, is_enough)
    };
    assert_eq!(wants(|_| ()), (22, true));
    assert_eq!(wants(|o| o.temp = 0.0), (3, true));
    assert_eq!(wants(|o| (o.temp, o.top_k, o.top_p) = (0.0, 0, 0.5)), (3, true));
    assert_eq!(wants(|o| o.penalty_repeat = 1.1), (27, true));
    assert_eq!(wants(|o| (o.temp, o.penalty_freq) = (0.0, 0.5)), (8, true));
    assert_eq!(wants(|o| o.logit_bias = vec![(3, -1.0), (4, f32::NEG_INFINITY)]), (24, true));
    assert_eq!(wants(|o| (o.top_k, o.top_p, o.min_p) = (0, 1.0, 0.9)), (64, true));
    assert_eq!(wants(|o| o.typ_p = 0.9), (22, true));
    // What cuts on, or draws from, the whole row, or may raise any logit of it.
    assert_eq!(wants(|o| o.top_k = 0), (0, false));
    assert_eq!(wants(|o| o.top_k = 64), (0, false));
    assert_eq!(wants(|o| o.logit_bias = vec![(3, 1.0)]), (0, false));
    assert_eq!(wants(|o| o.penalty_repeat = 0.9), (0, false));
    assert_eq!(wants(|o| o.dry_multiplier = 1.0), (0, false));
    assert_eq!(wants(|o| o.top_n_sigma = 1.0), (0, false));
    assert_eq!(wants(|o| o.mirostat = 2), (0, false));
}

#[test]
fn equals_at_the_edge_are_left_to_the_whole_row() {
    let mut logits: Vec<f32> = (0..200).map(|i| i as f32 * 0.1).collect();
    let greedy = SamplerOptions::greedy();
    let mut sampler = sampler(&greedy, logits.len());
    assert_eq!(pick_by_largest(&mut sampler, &logits, &[]), (199, true));
    logits[7] = logits[199];
    assert!(!pick_by_largest(&mut sampler, &logits, &[]).1);
    logits[7] = 1e21;
    assert!(!pick_by_largest(&mut sampler, &logits, &[]).1, "beyond what logits are cut to");
    logits.fill(f32::NAN);
    logits[3] = 0.0;
    assert_eq!(pick_by_largest(&mut sampler, &logits, &[]), (3, true));
}

/// Chains as people write them: a lead, a cut and a tail, each perhaps.
fn usual_options() -> impl Strategy<Value = SamplerOptions> {
    use SamplerKind::{MinP, Penalties, Temperature, TopK, TopNSigma, TopP, Xtc};
    let chains = proptest::sample::select(vec![
        SamplerKind::ALL[..9].to_vec(),
        vec![Penalties, Temperature, TopK, TopP],
        vec![Temperature, MinP, TopK, Xtc],
        vec![MinP, TopP, Temperature],
        vec![TopNSigma, TopP, Temperature],
        vec![TopK, Temperature, TopP, Penalties],
    ]);
    let lowered = proptest::collection::vec((0..40u32, -3.0f32..0.0), 0..3);
    (chains, any_options(), any::<[bool; 4]>(), lowered).prop_map(|(samplers, o, is, bias)| {
        let d = SamplerOptions::default();
        SamplerOptions {
            samplers,
            top_k: o.top_k,
            min_keep: o.min_keep,
            seed: o.seed,
            top_p: o.top_p,
            min_p: if is[0] { o.min_p } else { d.min_p },
            temp: if is[1] { 0.0 } else { o.temp },
            penalty_repeat: if is[2] { 1.1 } else { 1.0 },
            penalty_freq: if is[2] { o.penalty_freq.abs() } else { 0.0 },
            xtc_probability: if is[3] { o.xtc_probability } else { 0.0 },
            top_n_sigma: if is[3] { o.top_n_sigma } else { -1.0 },
            logit_bias: bias,
            ..d
        }
    })
}

proptest! {
    /// Random numbers and penalties go on alike, so one wrong pick or one number too many shows.
    #[test]
    fn the_largest_give_the_token_of_the_whole_row(
        options in prop_oneof![usual_options(), any_options()],
        steps in proptest::collection::vec(proptest::collection::vec(any_logit(), 64), 1..12),
        ends in proptest::sample::subsequence(vec![2u32, 9, 30], 0..3),
    ) {
        let (mut whole, mut few) = (sampler(&options, 64), sampler(&options, 64));
        for mut logits in steps {
            logits[7] = 0.5;
            let (token, _) = pick_by_largest(&mut few, &logits, &ends);
            ends.iter().for_each(|&token| logits[token as usize] = f32::NEG_INFINITY);
            prop_assert_eq!(token, whole.sample(&logits));
            whole.accept(token);
            few.accept(token);
        }
    }
}
