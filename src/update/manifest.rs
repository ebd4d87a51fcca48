//! What is said of a program before anybody runs it: which version, for what machine, from whom on.

use std::cmp::Ordering;

use serde::{Deserialize, Serialize};

use super::UpdateError;
use crate::base::limits::{UPDATE_MANIFEST_BYTES_MAX, UPDATE_PROGRAM_BYTES_MAX};

/// The form of manifests that is written and read.
const FORMAT: u32 = 1;
/// Characters of a version.
const VERSION_LEN_MAX: usize = 64;

/// `0.1.0`, or `0.1.0+202611221230.abcdef12`: numbers, then the date of the build and its commit.
///
/// Numbers count first, then the date; the commit counts for nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Version {
    text: String,
    numbers: Vec<u64>,
    built: u64,
}

impl Version {
    /// Reads a version.
    ///
    /// # Errors
    /// What it would have to be.
    pub fn read(text: &str) -> Result<Version, String> {
        let wrong = || format!("{text:?} is no version such as 0.1.0 or 0.1.0+202611221230");
        let number = |part: &str| {
            let is_number = !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
            is_number.then(|| part.parse::<u64>().ok()).flatten()
        };
        let (numbers, build) = text.split_once('+').unwrap_or((text, "0"));
        let numbers: Option<Vec<u64>> = numbers.split('.').map(number).collect();
        let is_build = build.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'.');
        match numbers {
            Some(numbers) if numbers.len() <= 4 && text.len() <= VERSION_LEN_MAX && is_build => {
                let built = build.split('.').next().and_then(number).unwrap_or(0);
                Ok(Version { text: text.to_owned(), numbers, built })
            }
            _ => Err(wrong()),
        }
    }

    /// Which of two is newer; `Equal` for two builds that nothing but the commit tells apart.
    pub fn order(&self, other: &Version) -> Ordering {
        let n = self.numbers.len().max(other.numbers.len());
        let at = |version: &Version, i: usize| version.numbers.get(i).copied().unwrap_or(0);
        let numbers = (0..n).map(|i| at(self, i).cmp(&at(other, i)));
        numbers.fold(Ordering::Equal, Ordering::then).then(self.built.cmp(&other.built))
    }
}

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.text)
    }
}

impl TryFrom<String> for Version {
    type Error = String;

    fn try_from(text: String) -> Result<Version, String> {
        Version::read(&text)
    }
}

impl From<Version> for String {
    fn from(version: Version) -> String {
        version.text
    }
}

/// What is said of a program. Only what was signed is ever read as one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    format: u32,
    /// Its version.
    pub version: Version,
    /// What it was compiled for, as in `aarch64-unknown-linux-gnu`.
    pub target: String,
    /// The oldest C library that it runs with.
    pub glibc: Version,
    /// Its size.
    pub n_bytes: u64,
    /// Its SHA-256, in small hexadecimal digits.
    pub sha256: String,
    /// The oldest version that it can follow.
    pub upgrades_from: Version,
    /// The version of the state store that it makes and reads.
    pub state_schema: i64,
}

/// What a program has to fit to.
#[derive(Clone, Debug)]
pub struct Fit {
    /// What this machine runs, as in `aarch64-unknown-linux-gnu`.
    pub target: String,
    /// The machine's C library, where it is known.
    pub glibc: Option<Version>,
    /// What runs now.
    pub runs: Version,
    /// An older program, or the same once more, is taken too.
    pub takes_older: bool,
    /// The version of the state store as it is now.
    pub state_schema: i64,
    /// A program that goes back to a copy of the state is taken too.
    pub takes_state_back: bool,
}

impl Manifest {
    /// A manifest of a program of `n_bytes` with this SHA-256.
    pub fn new(version: Version, target: String, glibc: Version) -> Manifest {
        let upgrades_from = Version { text: "0".to_owned(), numbers: vec![0], built: 0 };
        let sha256 = String::new();
        Manifest {
            format: FORMAT,
            version,
            target,
            glibc,
            n_bytes: 0,
            sha256,
            upgrades_from,
            state_schema: 0,
        }
    }

    /// The text that is signed.
    pub fn to_text(&self) -> String {
        toml::to_string(self).expect("a flat table of texts and numbers can be written")
    }

    /// Reads what was signed.
    ///
    /// # Errors
    /// If it is not one, or of a form that came after this program.
    pub fn read(text: &[u8]) -> Result<Manifest, String> {
        #[derive(Deserialize)]
        struct Form {
            format: u32,
        }
        if text.len() as u64 > UPDATE_MANIFEST_BYTES_MAX {
            return Err("its manifest is too long".to_owned());
        }
        let text = std::str::from_utf8(text).map_err(|_| "its manifest is no text".to_owned())?;
        let form: Form = toml::from_str(text).map_err(|error| one_line(&error))?;
        if form.format != FORMAT {
            return Err(format!(
                "its form is {}, and this program knows {FORMAT}; install a newer package",
                form.format
            ));
        }
        let manifest: Manifest = toml::from_str(text).map_err(|error| one_line(&error))?;
        let is_digest = manifest.sha256.len() == 64
            && manifest.sha256.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        if !is_digest || !(1..=UPDATE_PROGRAM_BYTES_MAX).contains(&manifest.n_bytes) {
            return Err("its size or SHA-256 is none".to_owned());
        }
        Ok(manifest)
    }

    /// Whether it can follow what runs on a machine.
    ///
    /// # Errors
    /// [`UpdateError::Unfit`] with the reason, or [`UpdateError::NewerState`].
    pub fn fits(&self, fit: &Fit) -> Result<(), UpdateError> {
        let unfit =
            |why: String| Err(UpdateError::Unfit { version: self.version.to_string(), why });
        if self.target != fit.target {
            return unfit(format!("is for {}, and this machine is {}", self.target, fit.target));
        }
        if let Some(glibc) = fit.glibc.as_ref().filter(|own| own.order(&self.glibc).is_lt()) {
            return unfit(format!("needs glibc {}, and this machine has {glibc}", self.glibc));
        }
        if fit.runs.order(&self.upgrades_from).is_lt() {
            let (runs, from) = (&fit.runs, &self.upgrades_from);
            return unfit(format!(
                "follows {from} or newer, and {runs} runs; install {from} first"
            ));
        }
        match self.version.order(&fit.runs) {
            Ordering::Less if !fit.takes_older => {
                unfit(format!("is older than {}, which runs; --force-older takes it", fit.runs))
            }
            Ordering::Equal if !fit.takes_older => {
                unfit("runs already; --force-older takes it once more".to_owned())
            }
            _ if self.state_schema < fit.state_schema && !fit.takes_state_back => {
                Err(UpdateError::NewerState { version: self.version.to_string() })
            }
            _ => Ok(()),
        }
    }
}

fn one_line(error: &toml::de::Error) -> String {
    format!("its manifest does not read: {}", error.message())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(text: &str) -> Version {
        Version::read(text).unwrap()
    }

    #[test]
    fn versions_are_ordered_by_numbers_and_then_by_the_date_of_the_build() {
        let rising = ["0.1", "0.1.0+5.abc", "0.1.0+202611221230.ff", "0.1.1", "0.2", "0.10", "1"];
        for pair in rising.windows(2) {
            assert!(version(pair[0]).order(&version(pair[1])).is_lt(), "{pair:?}");
            assert!(version(pair[1]).order(&version(pair[0])).is_gt(), "{pair:?}");
        }
        assert!(version("0.1.0+7.aa").order(&version("0.1+7.bb")).is_eq());
        for wrong in ["", "1.", "v1", "1.2.3.4.5", "1+a b", "1-2", "-1", &"1".repeat(65)] {
            assert!(Version::read(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn what_does_not_fit_is_refused_with_the_reason() {
        let mut manifest = Manifest::new(version("0.2"), "aarch64-x".to_owned(), version("2.27"));
        manifest.upgrades_from = version("0.1");
        let fit = Fit {
            target: "aarch64-x".to_owned(),
            glibc: Some(version("2.27")),
            runs: version("0.1.5"),
            takes_older: false,
            state_schema: 0,
            takes_state_back: false,
        };
        manifest.fits(&fit).unwrap();
        let refused = |fit: Fit, why: &str| {
            let error = manifest.fits(&fit).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        };
        refused(Fit { target: "x86_64-x".to_owned(), ..fit.clone() }, "is for aarch64-x");
        refused(Fit { glibc: Some(version("2.9")), ..fit.clone() }, "needs glibc 2.27");
        refused(Fit { runs: version("0.0.9"), ..fit.clone() }, "install 0.1 first");
        refused(Fit { runs: version("0.3"), ..fit.clone() }, "--force-older");
        refused(Fit { runs: version("0.2"), ..fit.clone() }, "runs already");
        let newer_state = Fit { state_schema: 1, ..fit.clone() };
        refused(newer_state.clone(), "--state-of-before");
        manifest.fits(&Fit { takes_state_back: true, ..newer_state }).unwrap();
        manifest.fits(&Fit { runs: version("0.3"), takes_older: true, ..fit }).unwrap();
    }

    #[test]
    fn a_manifest_of_another_form_or_without_a_digest_is_none() {
        let mut manifest = Manifest::new(version("1"), "t".to_owned(), version("2.27"));
        assert!(Manifest::read(manifest.to_text().as_bytes()).is_err(), "no size");
        (manifest.n_bytes, manifest.sha256) = (1, "0a".repeat(32));
        let text = manifest.to_text();
        assert_eq!(Manifest::read(text.as_bytes()).unwrap(), manifest);
        let newer = text.replace("format = 1", "format = 2");
        assert!(Manifest::read(newer.as_bytes()).unwrap_err().contains("newer package"));
        for (from, to) in [("0a0a", "0A0a"), ("n_bytes = 1", "n_bytes = 99999999999999")] {
            assert!(Manifest::read(text.replace(from, to).as_bytes()).is_err(), "{to}");
        }
    }
}
