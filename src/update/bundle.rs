//! A program on its way: its manifest, who signed that, and the program itself.
//!
//! ```text
//! one file    a tar of manifest.toml, manifest.sig, jetforge, in this order
//! a folder    those three; or files NAME.update, of which the newest that fits is taken
//! ```
//!
//! Nothing of the manifest is read before its signature was found good, and nothing of the program
//! counts before its size and SHA-256 are those of the manifest.

use std::fs::File;
use std::io::{self, BufReader, Read, Write};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::UpdateError;
use super::keys::{SecretKey, TrustedKeys};
use super::manifest::{Fit, Manifest};
use crate::base::hash::hex;
use crate::base::limits::{UPDATE_MANIFEST_BYTES_MAX, UPDATE_OFFERS_MAX, UPDATE_PROGRAM_BYTES_MAX};
use crate::base::tar::{TarWriter, read_tar};

/// Names in a bundle.
pub const MANIFEST: &str = "manifest.toml";
/// See above.
pub const SIGNATURES: &str = "manifest.sig";
/// See above.
pub const PROGRAM: &str = "jetforge";
/// How a bundle in one file is named.
const ENDING: &str = "update";

/// A bundle whose manifest a trusted key signed.
#[derive(Debug)]
pub struct Bundle {
    /// What was signed.
    pub manifest: Manifest,
    /// Who signed it.
    pub signer: String,
    /// Where it is.
    pub path: PathBuf,
    pub(super) manifest_text: Vec<u8>,
    pub(super) signatures: Vec<u8>,
}

impl Bundle {
    /// Opens a file or folder.
    ///
    /// # Errors
    /// If it is no bundle, or its signature does not count.
    pub fn open(path: &Path, keys: &TrustedKeys) -> Result<Bundle, UpdateError> {
        let (manifest_text, signatures) = match path.is_dir() {
            true => read_folder(path)?,
            false => read_file(path)?,
        };
        let refused = |why| UpdateError::Signature { path: path.to_owned(), why };
        let signer = keys.signer(&manifest_text, &signatures).map_err(refused)?.to_owned();
        let manifest = Manifest::read(&manifest_text)
            .map_err(|why| UpdateError::NoBundle { path: path.to_owned(), why })?;
        Ok(Bundle { manifest, signer, path: path.to_owned(), manifest_text, signatures })
    }

    /// Opens a file or folder, or the newest bundle of a folder that fits; what was passed over,
    /// and why.
    ///
    /// # Errors
    /// If there is none, with the reasons against each.
    pub fn find(
        path: &Path,
        keys: &TrustedKeys,
        fit: &Fit,
    ) -> Result<(Bundle, Vec<String>), UpdateError> {
        if !path.is_dir() || path.join(MANIFEST).exists() {
            return Bundle::open(path, keys).map(|bundle| (bundle, Vec::new()));
        }
        let (mut best, mut passed) = (None::<Bundle>, Vec::new());
        for file in offers(path)? {
            let bundle = Bundle::open(&file, keys);
            match bundle.and_then(|bundle| bundle.manifest.fits(fit).map(|()| bundle)) {
                Err(error) => passed.push(error.to_string()),
                Ok(bundle) => {
                    let version = &bundle.manifest.version;
                    if best.as_ref().is_none_or(|b| b.manifest.version.order(version).is_lt()) {
                        best = Some(bundle);
                    }
                }
            }
        }
        let why = match passed.is_empty() {
            true => format!("there is no {MANIFEST} and no file *.{ENDING} in it"),
            false => passed.join("; "),
        };
        let none = || UpdateError::NoBundle { path: path.to_owned(), why };
        best.ok_or_else(none).map(|bundle| (bundle, passed))
    }

    /// Writes the program to `out`.
    ///
    /// # Errors
    /// If it breaks off or is not the one that was signed. What was written is then worth nothing.
    pub fn copy_program(&self, out: &mut dyn Write) -> Result<(), UpdateError> {
        let failed = UpdateError::file(&self.path);
        let mut copied = None;
        if self.path.is_dir() {
            let file = File::open(self.path.join(PROGRAM)).map_err(&failed)?;
            copied = Some(copy_summed(&mut BufReader::new(file), out).map_err(&failed)?);
        } else {
            let file = BufReader::new(File::open(&self.path).map_err(&failed)?);
            let read = read_tar(file, |entry, from| {
                if entry.name == PROGRAM && copied.is_none() {
                    copied = Some(copy_summed(from, out)?);
                }
                Ok(())
            });
            read.map_err(&failed)?;
        }
        let wrong =
            |why: &str| UpdateError::Program { path: self.path.clone(), why: why.to_owned() };
        match copied {
            None => Err(wrong("there is none")),
            Some((n, _)) if n != self.manifest.n_bytes => {
                Err(wrong(&format!("{n} bytes instead of {}", self.manifest.n_bytes)))
            }
            Some((_, sum)) if sum != self.manifest.sha256 => Err(wrong("another SHA-256")),
            Some(_) => Ok(()),
        }
    }
}

/// Signs a program and writes it with its manifest to one file; the size and the SHA-256 of
/// `manifest` are filled in.
///
/// # Errors
/// If the program cannot be read, or is none of the manifest's machine, or `to` is not taken.
pub fn write_bundle(
    program: &Path,
    mut manifest: Manifest,
    key: &SecretKey,
    to: &Path,
) -> Result<Manifest, UpdateError> {
    let failed = UpdateError::file(program);
    let mut file = File::open(program).map_err(&failed)?;
    let wrong = |why: String| Err(UpdateError::NoBundle { path: program.to_owned(), why });
    let mut head = Vec::new();
    (&mut file).take(20).read_to_end(&mut head).map_err(&failed)?;
    match machine_of(&head) {
        Some(machine) if manifest.target.starts_with(machine) => {}
        Some(machine) => {
            return wrong(format!("it is a program for {machine}, not for {}", manifest.target));
        }
        None => return wrong("it is no program of Linux for a machine of 64 bits".to_owned()),
    }
    let mut whole = BufReader::new(File::open(program).map_err(&failed)?);
    (manifest.n_bytes, manifest.sha256) =
        copy_summed(&mut whole, &mut io::sink()).map_err(&failed)?;
    let text = manifest.to_text();
    if let Err(why) = Manifest::read(text.as_bytes()) {
        return wrong(why);
    }
    let signatures = key.sign(text.as_bytes());
    let write = || -> io::Result<()> {
        let mut tar = TarWriter::new(io::BufWriter::new(File::create(to)?));
        for (name, text) in [(MANIFEST, &text), (SIGNATURES, &signatures)] {
            tar.add(name, 0o644, text.len() as u64, &mut text.as_bytes())?;
        }
        tar.add(PROGRAM, 0o755, manifest.n_bytes, &mut File::open(program)?)?;
        tar.finish()?.into_inner().map_err(|error| error.into_error())?.sync_all()
    };
    write().map_err(UpdateError::file(to))?;
    Ok(manifest)
}

/// Copies to the end, at most what a program may have; how much, and its SHA-256.
pub(super) fn copy_summed(from: &mut dyn Read, out: &mut dyn Write) -> io::Result<(u64, String)> {
    let (mut sum, mut n, mut buffer) = (Sha256::new(), 0u64, vec![0; 64 << 10]);
    loop {
        let n_read = match from.read(&mut buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            n_read => n_read?,
        };
        n += n_read as u64;
        if n_read == 0 || n > UPDATE_PROGRAM_BYTES_MAX {
            return Ok((n, hex(&sum.finalize())));
        }
        sum.update(&buffer[..n_read]);
        out.write_all(&buffer[..n_read])?;
    }
}

/// The machine that an ELF header names, as targets begin.
fn machine_of(head: &[u8]) -> Option<&'static str> {
    let is_elf = head.starts_with(b"\x7fELF\x02\x01");
    match is_elf.then(|| head.get(18..20)).flatten()? {
        [183, 0] => Some("aarch64-"),
        [62, 0] => Some("x86_64-"),
        _ => None,
    }
}

fn read_folder(path: &Path) -> Result<(Vec<u8>, Vec<u8>), UpdateError> {
    let read = |name: &str| {
        let path = path.join(name);
        let file = File::open(&path).map_err(UpdateError::file(&path))?;
        read_short(&mut { file }).map_err(UpdateError::file(&path))
    };
    Ok((read(MANIFEST)?, read(SIGNATURES)?))
}

/// The first two files of an archive; what comes behind them is not read.
fn read_file(path: &Path) -> Result<(Vec<u8>, Vec<u8>), UpdateError> {
    let file = File::open(path).map_err(UpdateError::file(path))?;
    let mut found = Vec::new();
    let read = read_tar(BufReader::new(file), |entry, from| {
        let expected = [MANIFEST, SIGNATURES].get(found.len());
        if expected.is_none_or(|name| *name != entry.name) {
            return Err(io::Error::other("its files are not those of an update"));
        }
        found.push(read_short(from)?);
        // The rest is the program, which is read when it is wanted.
        if found.len() == 2 { Err(io::ErrorKind::Interrupted.into()) } else { Ok(()) }
    });
    match (<[Vec<u8>; 2]>::try_from(found), read) {
        (Ok([manifest, signatures]), _) => Ok((manifest, signatures)),
        (Err(_), Ok(())) => Err(UpdateError::NoBundle {
            path: path.to_owned(),
            why: "its files are not those of an update".to_owned(),
        }),
        (Err(_), Err(error)) => {
            Err(UpdateError::NoBundle { path: path.to_owned(), why: error.to_string() })
        }
    }
}

fn read_short(from: &mut dyn Read) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    from.take(UPDATE_MANIFEST_BYTES_MAX + 1).read_to_end(&mut bytes)?;
    match bytes.len() as u64 > UPDATE_MANIFEST_BYTES_MAX {
        true => Err(io::Error::other("a manifest or signature is too long")),
        false => Ok(bytes),
    }
}

/// The bundles of a folder, by name.
fn offers(path: &Path) -> Result<Vec<PathBuf>, UpdateError> {
    let entries = std::fs::read_dir(path).map_err(UpdateError::file(path))?;
    let is_offer = |path: &PathBuf| path.extension().is_some_and(|ending| ending == ENDING);
    let mut files: Vec<PathBuf> =
        entries.flatten().map(|entry| entry.path()).filter(is_offer).collect();
    files.sort();
    match files.len() {
        n if n > UPDATE_OFFERS_MAX => Err(UpdateError::NoBundle {
            path: path.to_owned(),
            why: format!("{n} files *.{ENDING}; name one"),
        }),
        _ => Ok(files),
    }
}
