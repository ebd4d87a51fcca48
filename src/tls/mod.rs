//! Floor 0.6: TLS in one place: whom a client trusts, and what a service shows.
//!
//! ```text
//! trust      the system's authorities, and a file's     downloads, servers outside
//!            one certificate, by its SHA-256            machines that were paired
//!            whoever answers                            a pairing, which finds out who it is
//! identity   the owner's certificate and key, or one that is made once and kept
//! ```
//!
//! A pinned certificate is compared whole: names and dates in it mean nothing, for a board without
//! a battery does not know the date, and its address changes. That its owner has the key is proved
//! by the handshake, as ever.

mod identity;
mod trust;

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

pub use identity::{Identity, Served, fingerprint_in};
use rustls::crypto::CryptoProvider;
use sha2::{Digest, Sha256};
pub use trust::{Blocking, Secured, Trust};

use crate::base::hash::{hex, unhex};

/// What is spoken within; browsers ask for more.
const PROTOCOLS: [&[u8]; 1] = [b"http/1.1"];

/// SHA-256 of a certificate.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Fingerprint(pub [u8; 32]);

impl Fingerprint {
    fn of(certificate: &[u8]) -> Fingerprint {
        Fingerprint(Sha256::digest(certificate).into())
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(&self.0))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A text that is no fingerprint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a fingerprint has 64 hexadecimal digits")]
pub struct NoFingerprint;

impl FromStr for Fingerprint {
    type Err = NoFingerprint;

    /// Reads hexadecimal digits, in any case, with or without colons.
    fn from_str(text: &str) -> Result<Fingerprint, NoFingerprint> {
        let digits = text.chars().filter(|c| *c != ':' && !c.is_whitespace());
        unhex(&digits.collect::<String>()).map(Fingerprint).ok_or(NoFingerprint)
    }
}

/// Why a connection is not secure, or cannot become so.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file of certificates or keys cannot be used.
    #[error("{}: {why}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// Others may read a private key.
    #[error("{}: others may read this private key; use chmod 600", path.display())]
    Open {
        /// Its file.
        path: PathBuf,
    },
    /// No certificate can be for this name.
    #[error("{name:?} is no name that a certificate can prove")]
    Name {
        /// The name.
        name: String,
    },
    /// The certificate proves nothing to us.
    #[error("{why}")]
    Untrusted {
        /// What is wrong with it.
        why: String,
    },
    /// The certificate is not the pinned one.
    #[error(
        "it shows another certificate than when it was paired ({got}, not {expected}): if it was \
         made anew, pair the two again (`jetforge pair` there, `jetforge setup` here); else \
         somebody stands in between"
    )]
    Changed {
        /// The pinned one.
        expected: Fingerprint,
        /// The one that was shown.
        got: Fingerprint,
    },
    /// The other side does not speak TLS.
    #[error("it does not speak TLS")]
    NotTls,
    /// The handshake broke off.
    #[error("the TLS handshake broke off: {0}")]
    Handshake(io::Error),
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn protocols() -> Vec<Vec<u8>> {
    PROTOCOLS.map(<[u8]>::to_vec).to_vec()
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[test]
    fn fingerprints_are_read_as_tools_write_them() {
        let own = Fingerprint(std::array::from_fn(|i| i as u8 * 7));
        let text = own.to_string();
        assert_eq!((text.len(), text.parse()), (64, Ok(own)));
        let pairs: Vec<&str> = (0..32).map(|i| &text[2 * i..2 * i + 2]).collect();
        assert_eq!(pairs.join(":").to_uppercase().parse(), Ok(own));
        for wrong in ["", "0", &text[1..], &format!("{text}0"), &text.replace('0', "x")] {
            assert_eq!(wrong.parse::<Fingerprint>(), Err(NoFingerprint), "{wrong}");
        }
    }

    fn identity(dir: &tempfile::TempDir) -> Identity {
        Identity::kept(&dir.path().join("tls.pem"), &["localhost".to_owned()]).unwrap()
    }

    /// One handshake and a few words through a pipe; why the client did not trust.
    async fn meet(identity: &Identity, trust: &Trust) -> Result<Fingerprint, TlsError> {
        let (ours, theirs) = tokio::io::duplex(1 << 14);
        let serve = async {
            let Ok(mut stream) = identity.accept(theirs).await else { return };
            let mut heard = [0; 4];
            stream.read_exact(&mut heard).await.unwrap();
            stream.write_all(&heard).await.unwrap();
            stream.shutdown().await.unwrap();
        };
        let ask = async {
            let mut stream = trust.connect("10.0.0.7", ours).await?;
            stream.write_all(b"ping").await.unwrap();
            let mut heard = Vec::new();
            stream.read_to_end(&mut heard).await.unwrap();
            assert_eq!(heard, b"ping");
            Ok(Trust::shown(&stream).unwrap())
        };
        tokio::join!(serve, ask).1
    }

    #[tokio::test]
    async fn a_pinned_certificate_is_trusted_and_no_other_one() {
        let dirs = [(); 2].map(|()| tempfile::tempdir().unwrap());
        let [one, two] = [identity(&dirs[0]), identity(&dirs[1])];
        let pinned = Trust::pinned(one.fingerprint());
        assert_eq!(meet(&one, &pinned).await.unwrap(), one.fingerprint());
        let changed = meet(&two, &pinned).await.unwrap_err();
        let TlsError::Changed { expected, got } = &changed else { panic!("{changed}") };
        assert_eq!((*expected, *got), (one.fingerprint(), two.fingerprint()));
        assert!(changed.to_string().contains("jetforge setup"), "{changed}");
        assert_eq!(meet(&two, &Trust::anyone()).await.unwrap(), two.fingerprint());
        let system = Trust::system(None).unwrap();
        let error = meet(&one, &system).await.unwrap_err();
        assert!(matches!(error, TlsError::Untrusted { .. }), "{error}");
    }

    #[test]
    fn who_waits_on_a_thread_is_told_the_same() {
        let dirs = [(); 2].map(|()| tempfile::tempdir().unwrap());
        let own = identity(&dirs[0]);
        let pins = [own.fingerprint(), identity(&dirs[1]).fingerprint()];
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let serving = std::thread::spawn(move || {
            runtime.block_on(async {
                listener.set_nonblocking(true).unwrap();
                let listener = tokio::net::TcpListener::from_std(listener).unwrap();
                for _ in 0..2 {
                    let (stream, _) = listener.accept().await.unwrap();
                    if let Ok(mut stream) = own.accept(stream).await {
                        stream.write_all(b"hello").await.unwrap();
                        stream.shutdown().await.unwrap();
                    }
                }
            });
        });
        let ask = |pin| {
            let stream = TcpStream::connect(address).unwrap();
            Trust::pinned(pin).connect_blocking("127.0.0.1", stream)
        };
        let mut heard = String::new();
        ask(pins[0]).unwrap().read_to_string(&mut heard).unwrap();
        assert_eq!(heard, "hello");
        assert!(matches!(ask(pins[1]).err().unwrap(), TlsError::Changed { .. }));
        serving.join().unwrap();
    }

    #[test]
    fn a_plain_service_is_found_out() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let serving = std::thread::spawn(move || {
            let mut stream = listener.accept().unwrap().0;
            let _ = stream.read(&mut [0; 4096]);
            stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").unwrap();
        });
        let stream = TcpStream::connect(address).unwrap();
        let error = Trust::anyone().connect_blocking("localhost", stream).err().unwrap();
        assert!(matches!(error, TlsError::NotTls), "{error}");
        serving.join().unwrap();
    }
}
