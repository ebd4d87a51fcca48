//! Sampling options under llama.cpp's names; each is one key of the section `sampling`.

use clap::Args;
use toml::Value;

use super::exit::CliError;
use crate::base::config::Setting;
use crate::inference::SamplerKind;

/// How tokens are chosen.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "Sampling")]
pub struct SamplingArgs {
    /// Start of the random numbers; -1 takes one from the system
    #[arg(short, long, value_name = "N", allow_negative_numbers = true)]
    pub seed: Option<i64>,
    /// Temperature; 0 chooses the likeliest token
    #[arg(long, alias = "temperature", value_name = "T", allow_negative_numbers = true)]
    pub temp: Option<f32>,
    /// Choose the likeliest token; the same as --temp 0
    #[arg(long, conflicts_with = "temp")]
    pub greedy: bool,
    /// Keep the K likeliest tokens; 0 keeps all
    #[arg(long, value_name = "K", allow_negative_numbers = true)]
    pub top_k: Option<i32>,
    /// Keep the likeliest tokens that make up P; 1 keeps all
    #[arg(long, value_name = "P")]
    pub top_p: Option<f32>,
    /// Keep tokens at least P times as likely as the likeliest
    #[arg(long, value_name = "P")]
    pub min_p: Option<f32>,
    /// Keep the typical tokens that make up P; 1 keeps all
    #[arg(long, alias = "typical-p", value_name = "P")]
    pub typical: Option<f32>,
    /// Keep tokens within N standard deviations of the best; -1 keeps all
    #[arg(long, alias = "top-n-sigma", value_name = "N", allow_negative_numbers = true)]
    pub top_nsigma: Option<f32>,
    /// Chance that XTC acts
    #[arg(long, value_name = "P")]
    pub xtc_probability: Option<f32>,
    /// Probability from which XTC drops tokens
    #[arg(long, value_name = "P")]
    pub xtc_threshold: Option<f32>,
    /// Tokens that the penalties look back over; 0 none, -1 the context
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub repeat_last_n: Option<i32>,
    /// Penalty of tokens already there; 1 none
    #[arg(long, value_name = "X")]
    pub repeat_penalty: Option<f32>,
    /// Penalty for being there
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    pub presence_penalty: Option<f32>,
    /// Penalty for each time there
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    pub frequency_penalty: Option<f32>,
    /// Strength of the penalty for repeated sequences; 0 none
    #[arg(long, value_name = "X")]
    pub dry_multiplier: Option<f32>,
    /// Growth of that penalty with each token
    #[arg(long, value_name = "X")]
    pub dry_base: Option<f32>,
    /// Shorter repetitions go free
    #[arg(long, value_name = "N")]
    pub dry_allowed_length: Option<i32>,
    /// Tokens that it looks back over; 0 none, -1 the context
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub dry_penalty_last_n: Option<i32>,
    /// Text that ends a repetition; the first replaces the defaults, `none` leaves none
    #[arg(long, value_name = "TEXT")]
    pub dry_sequence_breaker: Vec<String>,
    /// How far the temperature follows the entropy
    #[arg(long, value_name = "X")]
    pub dynatemp_range: Option<f32>,
    /// How the entropy maps to the temperature
    #[arg(long, alias = "dynatemp-exponent", value_name = "X")]
    pub dynatemp_exp: Option<f32>,
    /// Mirostat version: 0, 1 or 2
    #[arg(long, value_name = "N")]
    pub mirostat: Option<u32>,
    /// Surprise that mirostat aims at
    #[arg(long, alias = "mirostat-tau", value_name = "X")]
    pub mirostat_ent: Option<f32>,
    /// How fast mirostat corrects itself
    #[arg(long, alias = "mirostat-eta", value_name = "X")]
    pub mirostat_lr: Option<f32>,
    /// Bias of a token, as in 15043+1 or 15043-inf
    #[arg(short, long, value_name = "ID(+|-)BIAS")]
    pub logit_bias: Vec<String>,
    /// Steps of the chain in order, separated by semicolons
    #[arg(long, value_name = "NAMES")]
    pub samplers: Option<String>,
    /// Steps of the chain in order, one letter each
    #[arg(long, alias = "sampler-seq", value_name = "LETTERS", conflicts_with = "samplers")]
    pub sampling_seq: Option<String>,
}

impl SamplingArgs {
    /// The options that were given, as settings.
    ///
    /// # Errors
    /// An unknown step of the chain, or a bias that is none.
    pub fn settings(&self) -> Result<Vec<Setting>, CliError> {
        let mut settings = self.numbers();
        if self.greedy {
            settings.push(setting("temp", "--greedy", 0.0));
        }
        if !self.dry_sequence_breaker.is_empty() {
            let breakers = self.dry_sequence_breaker.iter().filter(|b| *b != "none");
            let breakers: Vec<Value> = breakers.map(|b| b.replace("\\n", "\n").into()).collect();
            settings.push(setting("dry_sequence_breakers", "--dry-sequence-breaker", breakers));
        }
        if !self.logit_bias.is_empty() {
            let biases = self.logit_bias.iter().map(|text| parse_bias(text));
            let biases: Vec<Value> = biases.collect::<Result<_, _>>()?;
            settings.push(setting("logit_bias", "--logit-bias", biases));
        }
        if let Some(kinds) = self.chain()? {
            let names: Vec<Value> = kinds.iter().map(|kind| kind.name().into()).collect();
            settings.push(setting("samplers", "--samplers", names));
        }
        Ok(settings)
    }

    fn numbers(&self) -> Vec<Setting> {
        let seed = self.seed.map(|s| if s < 0 { i64::from(u32::MAX) } else { s });
        let cuts = [
            ("seed", "--seed", seed.map(Value::Integer)),
            ("temp", "--temp", self.temp.map(float)),
            ("top_k", "--top-k", self.top_k.map(Value::from)),
            ("top_p", "--top-p", self.top_p.map(float)),
            ("min_p", "--min-p", self.min_p.map(float)),
            ("typ_p", "--typical", self.typical.map(float)),
            ("top_n_sigma", "--top-nsigma", self.top_nsigma.map(float)),
            ("xtc_probability", "--xtc-probability", self.xtc_probability.map(float)),
            ("xtc_threshold", "--xtc-threshold", self.xtc_threshold.map(float)),
            ("dynatemp_range", "--dynatemp-range", self.dynatemp_range.map(float)),
            ("dynatemp_exponent", "--dynatemp-exp", self.dynatemp_exp.map(float)),
            ("mirostat", "--mirostat", self.mirostat.map(Value::from)),
            ("mirostat_tau", "--mirostat-ent", self.mirostat_ent.map(float)),
            ("mirostat_eta", "--mirostat-lr", self.mirostat_lr.map(float)),
        ];
        given(cuts).chain(self.penalties()).collect()
    }

    fn penalties(&self) -> Vec<Setting> {
        let dry_last_n = self.dry_penalty_last_n.map(Value::from);
        let rows = [
            ("penalty_last_n", "--repeat-last-n", self.repeat_last_n.map(Value::from)),
            ("penalty_repeat", "--repeat-penalty", self.repeat_penalty.map(float)),
            ("penalty_present", "--presence-penalty", self.presence_penalty.map(float)),
            ("penalty_freq", "--frequency-penalty", self.frequency_penalty.map(float)),
            ("dry_multiplier", "--dry-multiplier", self.dry_multiplier.map(float)),
            ("dry_base", "--dry-base", self.dry_base.map(float)),
            (
                "dry_allowed_length",
                "--dry-allowed-length",
                self.dry_allowed_length.map(Value::from),
            ),
            ("dry_penalty_last_n", "--dry-penalty-last-n", dry_last_n),
        ];
        given(rows).collect()
    }

    fn chain(&self) -> Result<Option<Vec<SamplerKind>>, CliError> {
        let named = self.samplers.as_ref().map(|names| {
            let names = names.split(';').filter(|name| !name.trim().is_empty());
            names.map(|name| SamplerKind::from_name(name.trim())).collect::<Result<_, _>>()
        });
        let lettered = || {
            let letters = self.sampling_seq.as_ref()?;
            Some(letters.chars().map(SamplerKind::from_letter).collect::<Result<_, _>>())
        };
        let chain: Option<Result<Vec<_>, _>> = named.or_else(lettered);
        chain.transpose().map_err(|error| CliError::usage(error.to_string()))
    }
}

/// Through text, so that 0.8 is 0.8 in `config show` and not the nearest single.
pub fn float(x: f32) -> Value {
    Value::Float(x.to_string().parse().unwrap_or(f64::from(x)))
}

type Row = (&'static str, &'static str, Option<Value>);

/// The rows that were given, as settings.
fn given<const N: usize>(rows: [Row; N]) -> impl Iterator<Item = Setting> {
    rows.into_iter().filter_map(|(key, option, value)| Some(setting(key, option, value?)))
}

fn setting(key: &str, option: &str, value: impl Into<Value>) -> Setting {
    Setting { key: format!("sampling.{key}"), value: value.into(), option: option.to_owned() }
}

/// `15043+1`, `15043-0.5`, `15043-inf`, as llama.cpp writes them.
fn parse_bias(text: &str) -> Result<Value, CliError> {
    let wrong = || CliError::usage(format!("--logit-bias {text}: use ID+BIAS or ID-BIAS"));
    let sign_at = text.find(['+', '-']).ok_or_else(wrong)?;
    let token: u32 = text[..sign_at].parse().map_err(|_| wrong())?;
    let bias: f64 = text[sign_at..].parse().map_err(|_| wrong())?;
    Ok(Value::Array(vec![i64::from(token).into(), bias.into()]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_is_one_of_the_sampler() {
        let known = serde_json::to_value(crate::inference::SamplerOptions::default());
        let known = known.unwrap();
        let args = SamplingArgs {
            seed: Some(-1),
            greedy: true,
            logit_bias: vec!["5-inf".into(), "6+1.5".into()],
            samplers: Some("top_k;temperature".into()),
            dry_sequence_breaker: vec!["none".into()],
            mirostat: Some(2),
            ..SamplingArgs::default()
        };
        let settings = args.settings().unwrap();
        assert_eq!(settings.len(), 6);
        for setting in settings {
            let key = setting.key.strip_prefix("sampling.").unwrap();
            assert!(known.get(key).is_some(), "{key}");
        }
        let wrong = SamplingArgs { logit_bias: vec!["x".into()], ..SamplingArgs::default() };
        assert!(wrong.settings().is_err());
    }
}
