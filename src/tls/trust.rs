//! Whom a client trusts.

use std::io::{self, Read, Write};
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{
    CertificateError, ClientConfig, ClientConnection, DigitallySignedStruct, OtherError,
    RootCertStore, SignatureScheme, StreamOwned,
};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;

use super::{Fingerprint, TlsError, protocols, provider};

/// A connection of a client.
pub type Secured<S> = tokio_rustls::client::TlsStream<S>;
/// A connection of a client that waits on its thread.
pub type Blocking<S> = StreamOwned<ClientConnection, S>;

/// Whom a client trusts. Clones share it, and what it remembers of servers.
#[derive(Clone, Debug)]
pub struct Trust(Arc<ClientConfig>);

impl Trust {
    /// Trusts the system's certificate authorities and those of `ca_file` (PEM).
    ///
    /// # Errors
    /// If that file holds none.
    pub fn system(ca_file: Option<&Path>) -> Result<Trust, TlsError> {
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        if let Some(path) = ca_file {
            let failed = |why: String| TlsError::File { path: path.to_owned(), why };
            let certificates = CertificateDer::pem_file_iter(path)
                .and_then(Iterator::collect::<Result<Vec<_>, _>>)
                .map_err(|error| failed(error.to_string()))?;
            if roots.add_parsable_certificates(certificates).0 == 0 {
                return Err(failed("it holds no certificate".to_owned()));
            }
        }
        let config = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .expect("ring speaks TLS 1.2 and 1.3")
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Trust::new(config))
    }

    /// Trusts whoever has the key of one certificate.
    pub fn pinned(fingerprint: Fingerprint) -> Trust {
        Trust::by_sight(Some(fingerprint))
    }

    /// Trusts whoever answers: for an exchange that finds out by itself who that is.
    pub fn anyone() -> Trust {
        Trust::by_sight(None)
    }

    fn by_sight(pin: Option<Fingerprint>) -> Trust {
        let provider = provider();
        let algorithms = provider.signature_verification_algorithms;
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("ring speaks TLS 1.2 and 1.3")
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Sight { pin, algorithms }))
            .with_no_client_auth();
        Trust::new(config)
    }

    fn new(mut config: ClientConfig) -> Trust {
        config.alpn_protocols = protocols();
        Trust(Arc::new(config))
    }

    /// Secures a connection to `host`.
    ///
    /// # Errors
    /// If `host` is not trusted, or does not speak TLS.
    pub async fn connect<S>(&self, host: &str, stream: S) -> Result<Secured<S>, TlsError>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let connector = TlsConnector::from(Arc::clone(&self.0));
        connector.connect(name(host)?, stream).await.map_err(read)
    }

    /// The same on the thread that asks.
    ///
    /// # Errors
    /// As [`Trust::connect`].
    pub fn connect_blocking<S>(&self, host: &str, mut stream: S) -> Result<Blocking<S>, TlsError>
    where
        S: Read + Write,
    {
        let connection = ClientConnection::new(Arc::clone(&self.0), name(host)?);
        let mut connection = connection.map_err(|error| read(io::Error::other(error)))?;
        while connection.is_handshaking() {
            connection.complete_io(&mut stream).map_err(read)?;
        }
        Ok(StreamOwned::new(connection, stream))
    }

    /// The certificate that a server showed.
    pub fn shown<S>(stream: &Secured<S>) -> Option<Fingerprint> {
        first(stream.get_ref().1)
    }

    /// The same of a connection that waits on its thread.
    pub fn shown_blocking<S: Read + Write>(stream: &Blocking<S>) -> Option<Fingerprint> {
        first(&stream.conn)
    }
}

fn first(connection: &ClientConnection) -> Option<Fingerprint> {
    connection.peer_certificates()?.first().map(|own| Fingerprint::of(own))
}

fn name(host: &str) -> Result<ServerName<'static>, TlsError> {
    if let Ok(address) = host.trim_matches(['[', ']']).parse::<IpAddr>() {
        return Ok(address.into());
    }
    ServerName::try_from(host.to_owned()).map_err(|_| TlsError::Name { name: host.to_owned() })
}

/// What a handshake's error is about.
fn read(error: io::Error) -> TlsError {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match inner {
        Some(rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(why)))) => {
            match why.downcast_ref::<Other>() {
                Some(Other { expected, got }) => {
                    TlsError::Changed { expected: *expected, got: *got }
                }
                None => TlsError::Untrusted { why: why.to_string() },
            }
        }
        Some(inner @ rustls::Error::InvalidCertificate(_)) => {
            TlsError::Untrusted { why: inner.to_string() }
        }
        Some(rustls::Error::InvalidMessage(_)) => TlsError::NotTls,
        _ => TlsError::Handshake(error),
    }
}

/// Knows a certificate by sight, if any.
#[derive(Debug)]
struct Sight {
    pin: Option<Fingerprint>,
    algorithms: WebPkiSupportedAlgorithms,
}

/// It is another one.
#[derive(Debug, thiserror::Error)]
#[error("another certificate than the pinned one")]
struct Other {
    expected: Fingerprint,
    got: Fingerprint,
}

impl ServerCertVerifier for Sight {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let got = Fingerprint::of(end_entity);
        match self.pin {
            Some(expected) if expected != got => {
                let other = OtherError(Arc::new(Other { expected, got }));
                Err(CertificateError::Other(other).into())
            }
            _ => Ok(ServerCertVerified::assertion()),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
