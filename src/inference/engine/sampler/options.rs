//! What a caller may ask of the sampling chain, under llama.cpp's names and with its defaults.

use serde::{Deserialize, Serialize};

use crate::base::limits::{
    DRY_BREAKERS_MAX, LOGIT_BIAS_MAX, SAMPLER_LAST_N_MAX, SAMPLERS_MAX, VOCAB_MAX,
};
use crate::inference::tokenizer::TokenId;

/// The seed that asks for a random one.
pub const SEED_RANDOM: u32 = u32::MAX;

/// Largest magnitude of an option without a natural bound. Keeps every logit a number.
const FACTOR_MAX: f32 = 1e6;

/// Why options cannot be used.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[allow(missing_docs)]
pub enum SamplerError {
    #[error("{field} is {got}; it must be {range}")]
    OutOfRange { field: &'static str, got: String, range: &'static str },
    #[error("{field} has {got} entries; at most {max} are allowed")]
    TooMany { field: &'static str, got: usize, max: usize },
    #[error("logit_bias names token {token}, but the vocabulary has {n_vocab} tokens")]
    BiasToken { token: TokenId, n_vocab: usize },
    #[error("unknown sampler {name:?}; known are {}", SamplerKind::names())]
    UnknownSampler { name: String },
    #[error("a vocabulary of {n_vocab} tokens cannot be sampled from")]
    Vocabulary { n_vocab: usize },
}

impl SamplerError {
    /// The option at fault, if one is.
    pub fn field(&self) -> Option<&'static str> {
        match self {
            SamplerError::OutOfRange { field, .. } | SamplerError::TooMany { field, .. } => {
                Some(field)
            }
            SamplerError::BiasToken { .. } => Some("logit_bias"),
            SamplerError::UnknownSampler { .. } => Some("samplers"),
            SamplerError::Vocabulary { .. } => None,
        }
    }
}

/// A step of the chain, by the name that llama.cpp's `--samplers` uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs)]
pub enum SamplerKind {
    Penalties,
    Dry,
    TopNSigma,
    TopK,
    #[serde(alias = "typical_p")]
    TypP,
    TopP,
    MinP,
    Xtc,
    Temperature,
}

impl SamplerKind {
    /// Every step, in the default order of the chain.
    pub const ALL: [SamplerKind; 9] = [
        SamplerKind::Penalties,
        SamplerKind::Dry,
        SamplerKind::TopNSigma,
        SamplerKind::TopK,
        SamplerKind::TypP,
        SamplerKind::TopP,
        SamplerKind::MinP,
        SamplerKind::Xtc,
        SamplerKind::Temperature,
    ];

    /// Its name, and its letter in llama.cpp's `--sampling-seq`.
    const fn row(self) -> (&'static str, char) {
        match self {
            SamplerKind::Penalties => ("penalties", 'e'),
            SamplerKind::Dry => ("dry", 'd'),
            SamplerKind::TopNSigma => ("top_n_sigma", 's'),
            SamplerKind::TopK => ("top_k", 'k'),
            SamplerKind::TypP => ("typ_p", 'y'),
            SamplerKind::TopP => ("top_p", 'p'),
            SamplerKind::MinP => ("min_p", 'm'),
            SamplerKind::Xtc => ("xtc", 'x'),
            SamplerKind::Temperature => ("temperature", 't'),
        }
    }

    /// The name that `--samplers` uses.
    pub const fn name(self) -> &'static str {
        self.row().0
    }

    fn names() -> String {
        SamplerKind::ALL.map(SamplerKind::name).join(", ")
    }

    /// The step of this name. As in llama.cpp, `top-k` and `topk` are `top_k`, case is ignored,
    /// and a few steps have a second name.
    ///
    /// # Errors
    /// When there is no such step.
    pub fn from_name(name: &str) -> Result<SamplerKind, SamplerError> {
        let plain = |name: &str| name.to_ascii_lowercase().replace(['_', '-'], "");
        let wanted = plain(name);
        let wanted = match wanted.as_str() {
            "nucleus" => "topp",
            "temp" => "temperature",
            "typ" | "typicalp" => "typp",
            other => other,
        };
        SamplerKind::ALL
            .into_iter()
            .find(|kind| plain(kind.name()) == wanted)
            .ok_or_else(|| SamplerError::UnknownSampler { name: name.to_string() })
    }

    /// The step of this letter in `--sampling-seq`.
    ///
    /// # Errors
    /// When there is no such step.
    pub fn from_letter(letter: char) -> Result<SamplerKind, SamplerError> {
        SamplerKind::ALL
            .into_iter()
            .find(|kind| kind.row().1 == letter)
            .ok_or_else(|| SamplerError::UnknownSampler { name: letter.to_string() })
    }
}

/// How the next token is chosen. Names, meanings and defaults are llama.cpp's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct SamplerOptions {
    /// The steps and their order. The bias comes before them, the draw after.
    pub samplers: Vec<SamplerKind>,
    /// Start of the random numbers; [`SEED_RANDOM`] takes one from the system.
    pub seed: u32,
    /// Tokens that top-p, min-p, typical and XTC leave at least.
    pub min_keep: u32,
    /// Keep the k likeliest tokens; 0 and below keep all.
    pub top_k: i32,
    /// Keep the likeliest tokens that make up this probability; 1 keeps all.
    pub top_p: f32,
    /// Keep tokens at least this part as likely as the likeliest; 0 keeps all.
    pub min_p: f32,
    /// Chance that XTC acts; 0 turns it off.
    pub xtc_probability: f32,
    /// Probability from which XTC drops tokens; above 0.5 turns it off.
    pub xtc_threshold: f32,
    /// Keep the typical tokens that make up this probability; 1 keeps all.
    pub typ_p: f32,
    /// Temperature; 0 and below choose the likeliest token.
    pub temp: f32,
    /// How far the temperature follows the entropy to either side; 0 and below fix it.
    pub dynatemp_range: f32,
    /// How the entropy maps to the temperature.
    pub dynatemp_exponent: f32,
    /// Tokens that the penalties look back over; 0 turns them off, -1 takes the model's context.
    pub penalty_last_n: i32,
    /// Divides the logits of tokens already there; 1 turns it off.
    pub penalty_repeat: f32,
    /// Subtracted for each time that the token is there.
    pub penalty_freq: f32,
    /// Subtracted once if the token is there.
    pub penalty_present: f32,
    /// Strength of DRY; 0 turns it off.
    pub dry_multiplier: f32,
    /// Growth of DRY's penalty with each repeated token; below 1 turns it off.
    pub dry_base: f32,
    /// Repetitions shorter than this go free.
    pub dry_allowed_length: i32,
    /// Tokens that DRY looks back over; 0 turns it off, -1 takes the model's context.
    pub dry_penalty_last_n: i32,
    /// Texts that end a repetition.
    pub dry_sequence_breakers: Vec<String>,
    /// Keep tokens within this many standard deviations of the best logit; 0 and below keep all.
    pub top_n_sigma: f32,
    /// 0: the chain above; 1 or 2: temperature and that version of mirostat in its place.
    pub mirostat: u32,
    /// Surprise, in bits, that mirostat aims at.
    pub mirostat_tau: f32,
    /// How fast mirostat corrects itself.
    pub mirostat_eta: f32,
    /// Added to the logits of these tokens; negative infinity forbids one. JSON cannot carry that.
    pub logit_bias: Vec<(TokenId, f32)>,
}

impl Default for SamplerOptions {
    fn default() -> SamplerOptions {
        SamplerOptions {
            samplers: SamplerKind::ALL.to_vec(),
            seed: SEED_RANDOM,
            min_keep: 0,
            top_k: 40,
            top_p: 0.95,
            min_p: 0.05,
            xtc_probability: 0.0,
            xtc_threshold: 0.1,
            typ_p: 1.0,
            temp: 0.8,
            dynatemp_range: 0.0,
            dynatemp_exponent: 1.0,
            penalty_last_n: 64,
            penalty_repeat: 1.0,
            penalty_freq: 0.0,
            penalty_present: 0.0,
            dry_multiplier: 0.0,
            dry_base: 1.75,
            dry_allowed_length: 2,
            dry_penalty_last_n: 64,
            dry_sequence_breakers: ["\n", ":", "\"", "*"].map(String::from).to_vec(),
            top_n_sigma: -1.0,
            mirostat: 0,
            mirostat_tau: 5.0,
            mirostat_eta: 0.1,
            logit_bias: Vec::new(),
        }
    }
}

impl SamplerOptions {
    /// Options that choose the likeliest token.
    pub fn greedy() -> SamplerOptions {
        SamplerOptions { temp: 0.0, ..SamplerOptions::default() }
    }

    /// Whether every option is in its range, for a vocabulary of `n_vocab` tokens.
    ///
    /// # Errors
    /// The first option that is not, with its range.
    pub fn check(&self, n_vocab: usize) -> Result<(), SamplerError> {
        if n_vocab == 0 || n_vocab > VOCAB_MAX {
            return Err(SamplerError::Vocabulary { n_vocab });
        }
        self.check_cuts()?;
        self.check_factors()?;
        self.check_counts()?;
        for &(token, bias) in &self.logit_bias {
            if token as usize >= n_vocab {
                return Err(SamplerError::BiasToken { token, n_vocab });
            }
            let fine = bias == f32::NEG_INFINITY || bias.abs() <= 1e9;
            require(fine, "logit_bias", bias, "between -1e9 and 1e9, or -inf to forbid the token")?;
        }
        Ok(())
    }

    fn check_cuts(&self) -> Result<(), SamplerError> {
        for (field, value) in [
            ("top_p", self.top_p),
            ("min_p", self.min_p),
            ("typ_p", self.typ_p),
            ("xtc_probability", self.xtc_probability),
            ("xtc_threshold", self.xtc_threshold),
        ] {
            require((0.0..=1.0).contains(&value), field, value, "between 0 and 1")?;
        }
        let fine = self.temp <= 0.0 || (1e-6..=FACTOR_MAX).contains(&self.temp);
        require(fine, "temp", self.temp, "0 or below (greedy), or between 1e-6 and 1e6")
    }

    fn check_factors(&self) -> Result<(), SamplerError> {
        for (field, value) in [
            ("dynatemp_exponent", self.dynatemp_exponent),
            ("dry_multiplier", self.dry_multiplier),
            ("dry_base", self.dry_base),
            ("mirostat_tau", self.mirostat_tau),
            ("mirostat_eta", self.mirostat_eta),
        ] {
            require((0.0..=FACTOR_MAX).contains(&value), field, value, "between 0 and 1e6")?;
        }
        for (field, value) in [
            ("dynatemp_range", self.dynatemp_range),
            ("top_n_sigma", self.top_n_sigma),
            ("penalty_freq", self.penalty_freq),
            ("penalty_present", self.penalty_present),
        ] {
            require(value.abs() <= FACTOR_MAX, field, value, "between -1e6 and 1e6")?;
        }
        let fine = (1e-6..=FACTOR_MAX).contains(&self.penalty_repeat);
        require(fine, "penalty_repeat", self.penalty_repeat, "between 1e-6 and 1e6")
    }

    fn check_counts(&self) -> Result<(), SamplerError> {
        for (field, value) in [
            ("penalty_last_n", self.penalty_last_n),
            ("dry_penalty_last_n", self.dry_penalty_last_n),
        ] {
            let fine = (-1..=SAMPLER_LAST_N_MAX).contains(&value);
            require(fine, field, value, "-1 (the model's context), or between 0 and 1048576")?;
        }
        let length = self.dry_allowed_length;
        require(length >= 0, "dry_allowed_length", length, "0 or above")?;
        require(self.mirostat <= 2, "mirostat", self.mirostat, "0, 1 or 2")?;
        for (field, got, max) in [
            ("samplers", self.samplers.len(), SAMPLERS_MAX),
            ("logit_bias", self.logit_bias.len(), LOGIT_BIAS_MAX),
            ("dry_sequence_breakers", self.dry_sequence_breakers.len(), DRY_BREAKERS_MAX),
        ] {
            if got > max {
                return Err(SamplerError::TooMany { field, got, max });
            }
        }
        Ok(())
    }
}

fn require(
    fine: bool,
    field: &'static str,
    got: impl ToString,
    range: &'static str,
) -> Result<(), SamplerError> {
    if fine {
        return Ok(());
    }
    Err(SamplerError::OutOfRange { field, got: got.to_string(), range })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_range_in_the_message_is_the_range_in_the_code() {
        assert_eq!(SAMPLER_LAST_N_MAX, 1_048_576);
        assert_eq!(FACTOR_MAX, 1e6);
    }

    #[test]
    fn errors_name_field_value_and_range() {
        let check = |change: &dyn Fn(&mut SamplerOptions)| {
            let mut options = SamplerOptions::default();
            change(&mut options);
            options.check(100).map_err(|e| e.to_string())
        };
        assert_eq!(check(&|_| ()), Ok(()));
        assert_eq!(check(&|o| o.temp = -3.0), Ok(()));
        assert_eq!(check(&|o| o.logit_bias = vec![(99, f32::NEG_INFINITY)]), Ok(()));
        for (change, message) in [
            (
                &(|o: &mut SamplerOptions| o.top_p = 1.5) as &dyn Fn(&mut SamplerOptions),
                "top_p is 1.5; it must be between 0 and 1",
            ),
            (
                &|o| o.temp = f32::NAN,
                "temp is NaN; it must be 0 or below (greedy), or between 1e-6 and 1e6",
            ),
            (&|o| o.penalty_repeat = 0.0, "penalty_repeat is 0; it must be between 1e-6 and 1e6"),
            (
                &|o| o.penalty_last_n = -2,
                "penalty_last_n is -2; it must be -1 (the model's context), \
                 or between 0 and 1048576",
            ),
            (&|o| o.mirostat = 3, "mirostat is 3; it must be 0, 1 or 2"),
            (
                &|o| o.logit_bias = vec![(100, 1.0)],
                "logit_bias names token 100, but the vocabulary has 100 tokens",
            ),
            (
                &|o| o.samplers = vec![SamplerKind::Dry; 65],
                "samplers has 65 entries; at most 64 are allowed",
            ),
        ] {
            assert_eq!(check(change), Err(message.to_string()));
        }
    }

    #[test]
    fn names_are_read_as_llama_cpp_reads_them() {
        for kind in SamplerKind::ALL {
            let name = kind.name();
            for spelling in [name.to_string(), name.replace('_', "-"), name.to_uppercase()] {
                assert_eq!(SamplerKind::from_name(&spelling), Ok(kind));
            }
            assert_eq!(serde_json::to_value(kind).unwrap(), name);
            assert_eq!(SamplerKind::from_letter(kind.row().1), Ok(kind));
        }
        assert_eq!(SamplerKind::from_name("nucleus"), Ok(SamplerKind::TopP));
        let error = SamplerKind::from_name("beam").unwrap_err().to_string();
        assert!(error.starts_with("unknown sampler \"beam\"; known are penalties, dry"), "{error}");
    }

    #[test]
    fn options_survive_json_and_toml() {
        let options = SamplerOptions {
            samplers: vec![SamplerKind::TopK, SamplerKind::TypP],
            logit_bias: vec![(3, -1.5)],
            temp: 0.35,
            ..SamplerOptions::default()
        };
        let json = serde_json::to_string(&options).unwrap();
        assert_eq!(serde_json::from_str::<SamplerOptions>(&json).unwrap(), options);
        let toml = toml::to_string(&options).unwrap();
        assert_eq!(toml::from_str::<SamplerOptions>(&toml).unwrap(), options);
        assert_eq!(toml::from_str::<SamplerOptions>("").unwrap(), SamplerOptions::default());
    }
}
