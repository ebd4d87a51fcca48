//! Whose programs are taken: Ed25519 keys that the owner of the machine wrote into a file.
//!
//! ```text
//! update.keys      ed25519 PUBLIC NAME        a line each, # for remarks
//! manifest.sig     ed25519 PUBLIC SIGNATURE   a line each; one of a key of that file is enough
//! secret key       ed25519-secret SEED        in a file of 0600, at whoever makes releases
//! ```
//!
//! A signature is of a fixed line and the manifest, so that it can be one of nothing else.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use ring::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};

use super::UpdateError;
use crate::base::hash::{hex, unhex};
use crate::base::limits::{UPDATE_KEYS_BYTES_MAX, UPDATE_KEYS_MAX};
use crate::seal;

const KEY_LEN: usize = 32;
const SIGNATURE_LEN: usize = 64;
const WHAT: &[u8] = b"jetforge update 1\n";

/// The keys whose programs a machine takes.
#[derive(Debug)]
pub struct TrustedKeys {
    path: PathBuf,
    keys: Vec<([u8; KEY_LEN], String)>,
}

impl TrustedKeys {
    /// Reads a file of keys.
    ///
    /// # Errors
    /// If there is none or no key in it, a line is none, or others than root or the caller may
    /// write it.
    pub fn read(path: &Path) -> Result<TrustedKeys, UpdateError> {
        let wrong = |why: String| UpdateError::Keys { path: path.to_owned(), why };
        let file = match File::open(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(UpdateError::NoKeys { path: path.to_owned() });
            }
            file => file.map_err(UpdateError::file(path))?,
        };
        let about = file.metadata().map_err(UpdateError::file(path))?;
        if about.mode() & 0o022 != 0 {
            return Err(wrong("others than its owner may write it; use chmod 644".to_owned()));
        }
        if ![0, rustix::process::geteuid().as_raw()].contains(&about.uid()) {
            return Err(wrong("it belongs to somebody else; use chown root".to_owned()));
        }
        let mut text = String::new();
        let n = file.take(UPDATE_KEYS_BYTES_MAX + 1).read_to_string(&mut text);
        if n.map_err(UpdateError::file(path))? as u64 > UPDATE_KEYS_BYTES_MAX {
            return Err(wrong("it is too long".to_owned()));
        }
        let mut keys = Vec::new();
        for (idx, line) in text.lines().enumerate() {
            let words: Vec<&str> = line.split_whitespace().collect();
            match words.as_slice() {
                [] => {}
                [first, ..] if first.starts_with('#') => {}
                ["ed25519", key, name @ ..] => {
                    let key = unhex(key).ok_or_else(|| wrong(format!("line {}: no key", idx + 1)));
                    keys.push((key?, name.join(" ")));
                }
                _ => return Err(wrong(format!("line {}: use `ed25519 KEY NAME`", idx + 1))),
            }
        }
        match keys.len() {
            0 => Err(UpdateError::NoKeys { path: path.to_owned() }),
            n if n > UPDATE_KEYS_MAX => {
                Err(wrong(format!("{n} keys; {UPDATE_KEYS_MAX} are the most")))
            }
            _ => Ok(TrustedKeys { path: path.to_owned(), keys }),
        }
    }

    /// Who of the trusted signed a manifest.
    ///
    /// # Errors
    /// Why nobody's signature counts.
    pub fn signer(&self, manifest: &[u8], signatures: &[u8]) -> Result<&str, String> {
        let text = std::str::from_utf8(signatures).map_err(|_| "its signature is no text")?;
        let message = [WHAT, manifest].concat();
        let mut strangers = Vec::new();
        for line in text.lines().take(UPDATE_KEYS_MAX) {
            let words: Vec<&str> = line.split_whitespace().collect();
            let ["ed25519", key, signature] = words.as_slice() else { continue };
            let key_bytes: Option<[u8; KEY_LEN]> = unhex(key);
            let known = key_bytes.and_then(|key| self.keys.iter().find(|(own, _)| *own == key));
            let Some((key, name)) = known else {
                strangers.push(key.chars().take(16).collect::<String>());
                continue;
            };
            let signature: [u8; SIGNATURE_LEN] = unhex(signature).ok_or("its signature is none")?;
            let key = UnparsedPublicKey::new(&ED25519, key);
            return match key.verify(&message, &signature) {
                Ok(()) => Ok(name),
                Err(_) => Err(format!("what {name} signed is something else")),
            };
        }
        match strangers.is_empty() {
            true => Err("it is not signed".to_owned()),
            false => Err(format!(
                "it is signed by {}, and {} does not know that key",
                strangers.join(" and "),
                self.path.display()
            )),
        }
    }
}

/// The half of a key that signs.
pub struct SecretKey(Ed25519KeyPair);

impl SecretKey {
    /// Makes a key and writes it to a new file that its owner alone may read.
    ///
    /// # Errors
    /// If the file is there or cannot be written, or the system has no random bytes.
    pub fn make(path: &Path) -> Result<SecretKey, UpdateError> {
        let failed = UpdateError::file(path);
        let seed = seal::random().map_err(&failed)?;
        let mut file = File::options();
        let file = file.write(true).create_new(true).mode(0o600).open(path);
        let mut file = file.map_err(&failed)?;
        let text = format!("ed25519-secret {}\n", hex(&seed));
        file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(&failed)?;
        Ok(SecretKey::of(&seed))
    }

    /// Reads a key.
    ///
    /// # Errors
    /// If the file cannot be read, is no key, or others may read it.
    pub fn read(path: &Path) -> Result<SecretKey, UpdateError> {
        let wrong = |why: &str| UpdateError::Keys { path: path.to_owned(), why: why.to_owned() };
        let file = File::open(path).map_err(UpdateError::file(path))?;
        if file.metadata().map_err(UpdateError::file(path))?.mode() & 0o077 != 0 {
            return Err(wrong("others may read it; use chmod 600"));
        }
        let mut text = String::new();
        let file = file.take(UPDATE_KEYS_BYTES_MAX);
        { file }.read_to_string(&mut text).map_err(UpdateError::file(path))?;
        let seed = text.trim().strip_prefix("ed25519-secret ").and_then(unhex::<[u8; KEY_LEN]>);
        Ok(SecretKey::of(&seed.ok_or_else(|| wrong("it is no key of `update keygen`"))?))
    }

    fn of(seed: &[u8; KEY_LEN]) -> SecretKey {
        SecretKey(Ed25519KeyPair::from_seed_unchecked(seed).expect("a seed has this length"))
    }

    /// The line for a machine's file of keys.
    pub fn public_line(&self, name: &str) -> String {
        format!("ed25519 {} {name}", hex(self.0.public_key().as_ref()))
    }

    /// The signature of a manifest, as it stands beside it.
    pub fn sign(&self, manifest: &[u8]) -> String {
        let signature = self.0.sign(&[WHAT, manifest].concat());
        format!("ed25519 {} {}\n", hex(self.0.public_key().as_ref()), hex(signature.as_ref()))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn only_a_key_of_the_file_signs_and_only_what_it_signed() {
        let dir = tempfile::tempdir().unwrap();
        let (own, alien) = (dir.path().join("own"), dir.path().join("alien"));
        let keys = dir.path().join("update.keys");
        let refused = TrustedKeys::read(&keys).unwrap_err().to_string();
        assert!(refused.contains("keygen"), "{refused}");
        SecretKey::make(&own).unwrap();
        assert!(SecretKey::make(&own).is_err(), "a key is not overwritten");
        assert_eq!(std::fs::metadata(&own).unwrap().permissions().mode() & 0o777, 0o600);
        let (own, alien) = (SecretKey::read(&own).unwrap(), SecretKey::make(&alien).unwrap());
        std::fs::write(&keys, format!("# ours\n\n{}\n", own.public_line("a b"))).unwrap();
        let trusted = TrustedKeys::read(&keys).unwrap();
        let (signed, strange) = (own.sign(b"text"), alien.sign(b"text"));
        assert_eq!(trusted.signer(b"text", signed.as_bytes()), Ok("a b"));
        let both = format!("{strange}{signed}");
        assert_eq!(trusted.signer(b"text", both.as_bytes()), Ok("a b"), "one is enough");
        let why = |manifest: &[u8], lines: &str| trusted.signer(manifest, lines.as_bytes());
        assert!(why(b"texT", &signed).unwrap_err().contains("something else"));
        assert!(why(b"text", &strange).unwrap_err().contains("does not know that key"));
        assert!(why(b"text", "").unwrap_err().contains("not signed"));
        assert!(why(b"text", &signed[..signed.len() - 3]).is_err());
        let claimed = signed.split_at(72).0.to_owned() + strange.split_at(72).1;
        assert!(why(b"text", &claimed).unwrap_err().contains("something else"));
    }

    #[test]
    fn a_file_of_keys_that_others_write_or_that_is_damaged_counts_for_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("update.keys");
        let read = |text: &str, mode: u32| {
            std::fs::write(&path, text).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            TrustedKeys::read(&path).map(drop).map_err(|error| error.to_string())
        };
        let line = format!("ed25519 {} me\n", "0a".repeat(KEY_LEN));
        assert_eq!(read(&line, 0o644), Ok(()));
        assert!(read(&line, 0o664).unwrap_err().contains("chmod 644"));
        assert!(read("# nobody\n", 0o600).unwrap_err().contains("keygen"));
        assert!(read("ed25519 0a me\n", 0o600).unwrap_err().contains("line 1"));
        assert!(read("rsa 0a me\n", 0o600).unwrap_err().contains("ed25519 KEY NAME"));
        assert!(read(&line.repeat(UPDATE_KEYS_MAX + 1), 0o600).unwrap_err().contains("the most"));
        assert!(read(&"#".repeat(UPDATE_KEYS_BYTES_MAX as usize + 1), 0o600).is_err());
    }
}
