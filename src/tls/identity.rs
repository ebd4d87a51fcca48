//! What a service shows: the owner's certificate, or one that is made once and kept.
//!
//! One that is made here stands with its key in one file of the state directory, which its owner
//! alone may read, and is valid for as long as the file is there: who knows it knows it by its
//! fingerprint, and a new one would have to be told to everybody again.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use rcgen::{CertificateParams, DnType, KeyPair};
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsAcceptor;

use super::{Fingerprint, TlsError, protocols, provider};
use crate::base::limits::TLS_FILE_BYTES_MAX;
use crate::seal;

/// A connection of a service.
pub type Served<S> = tokio_rustls::server::TlsStream<S>;

/// A certificate with its key. Clones share it.
#[derive(Clone)]
pub struct Identity {
    acceptor: TlsAcceptor,
    fingerprint: Fingerprint,
}

impl Identity {
    /// The certificate of a file that holds its key as well. It is made, for `names`, if it is not
    /// there.
    ///
    /// # Errors
    /// If it cannot be read or made, or others may read it.
    pub fn kept(path: &Path, names: &[String]) -> Result<Identity, TlsError> {
        if !path.exists() {
            let failed = |why: String| TlsError::File { path: path.to_owned(), why };
            let pem = made(names).map_err(|error| failed(error.to_string()))?;
            // Of two processes that make one, one wins, and both go on with that.
            seal::write_once(path, pem.as_bytes()).map_err(|error| failed(error.to_string()))?;
        }
        let pem = read(path, true)?;
        Identity::new(path, &pem, path, &pem)
    }

    /// The owner's certificate, with those that lead to its authority behind it, and its key; both
    /// PEM.
    ///
    /// # Errors
    /// If they cannot be read, or do not belong together.
    pub fn from_files(certificate: &Path, key: &Path) -> Result<Identity, TlsError> {
        Identity::new(certificate, &read(certificate, false)?, key, &read(key, true)?)
    }

    fn new(at: &Path, pem: &[u8], key_at: &Path, key_pem: &[u8]) -> Result<Identity, TlsError> {
        let chain = certificates(at, pem)?;
        let fingerprint = Fingerprint::of(&chain[0]);
        let failed = |why: String| TlsError::File { path: key_at.to_owned(), why };
        let key = PrivateKeyDer::from_pem_slice(key_pem)
            .map_err(|error| failed(format!("no private key: {error}")))?;
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .expect("ring speaks TLS 1.2 and 1.3")
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .map_err(|error| failed(error.to_string()))?;
        config.alpn_protocols = protocols();
        Ok(Identity { acceptor: TlsAcceptor::from(Arc::new(config)), fingerprint })
    }

    /// What others know it by.
    pub fn fingerprint(&self) -> Fingerprint {
        self.fingerprint
    }

    /// Secures a connection that somebody opened.
    ///
    /// # Errors
    /// If the other side does not go through with it.
    pub async fn accept<S>(&self, stream: S) -> io::Result<Served<S>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        self.acceptor.accept(stream).await
    }
}

/// The fingerprint of the first certificate in a file.
///
/// # Errors
/// If there is none.
pub fn fingerprint_in(path: &Path) -> Result<Fingerprint, TlsError> {
    Ok(Fingerprint::of(&certificates(path, &read(path, false)?)?[0]))
}

/// At least one certificate.
fn certificates(path: &Path, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let failed = |why: String| TlsError::File { path: path.to_owned(), why };
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let chain = chain.map_err(|error| failed(error.to_string()))?;
    match chain.is_empty() {
        true => Err(failed("it holds no certificate".to_owned())),
        false => Ok(chain),
    }
}

fn read(path: &Path, is_secret: bool) -> Result<Vec<u8>, TlsError> {
    let failed =
        |error: io::Error| TlsError::File { path: path.to_owned(), why: error.to_string() };
    let file = File::open(path).map_err(failed)?;
    if is_secret && file.metadata().map_err(failed)?.mode() & 0o007 != 0 {
        return Err(TlsError::Open { path: path.to_owned() });
    }
    let mut bytes = Vec::new();
    file.take(TLS_FILE_BYTES_MAX).read_to_end(&mut bytes).map_err(failed)?;
    Ok(bytes)
}

/// A new certificate and its key.
fn made(names: &[String]) -> Result<String, rcgen::Error> {
    let mut params = CertificateParams::new(names.to_vec())?;
    params.distinguished_name.push(DnType::CommonName, "jetforge");
    let key = KeyPair::generate()?;
    let certificate = params.self_signed(&key)?;
    Ok(certificate.pem() + &key.serialize_pem())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_certificate_is_made_once_and_only_its_owner_may_read_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state/tls.pem");
        let names = ["localhost", "10.0.0.7", "nano"].map(str::to_owned);
        let [one, two] = [0, 1].map(|_| Identity::kept(&path, &names).unwrap().fingerprint());
        assert_eq!((one, fingerprint_in(&path).unwrap()), (two, two));
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o604)).unwrap();
        let open = Identity::kept(&path, &names).err().unwrap();
        assert!(open.to_string().contains("chmod 600"), "{open}");
        std::fs::remove_file(&path).unwrap();
        assert_ne!(Identity::kept(&path, &names).unwrap().fingerprint(), one);
        // The owner's files are used as they are; halves that do not belong together are refused.
        assert!(Identity::from_files(&path, &path).is_ok());
        let other = dir.path().join("other.pem");
        Identity::kept(&other, &names).unwrap();
        assert!(Identity::from_files(&path, &other).is_err());
        std::fs::write(&other, "no certificate").unwrap();
        for (certificate, key) in [(&other, &path), (&path, &other)] {
            let error = Identity::from_files(certificate, key).err().unwrap();
            assert!(error.to_string().contains("other.pem"), "{error}");
        }
    }
}
