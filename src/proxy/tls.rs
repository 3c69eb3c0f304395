//! Owns TLS of the main listener: certificate, key, client authorities, ALPN.
//! Does not reload (`server` builds a new acceptor and swaps it).

use std::fs::File;
use std::io::{self, BufReader};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;

use super::settings::Tls;

/// Turns a TCP stream into a TLS stream. Cloning shares the configuration.
#[derive(Clone)]
pub struct TlsAcceptor(pub(super) tokio_rustls::TlsAcceptor);

/// Why the TLS settings cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("cannot read `{path}`")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A file holds no usable PEM.
    #[error("`{path}` holds no valid {what}")]
    Pem {
        /// The file.
        path: PathBuf,
        /// What was looked for.
        what: &'static str,
    },
    /// Certificate and key do not fit, or the client authorities are unusable.
    #[error("certificate, key and client authorities do not fit together")]
    Mismatch(#[source] rustls::Error),
}

impl TlsAcceptor {
    /// Reads the files and builds an acceptor for HTTP/2 and HTTP/1.1.
    ///
    /// # Errors
    /// [`TlsError`] names the file that is missing or wrong.
    pub fn new(settings: &Tls) -> Result<Self, TlsError> {
        let certificates = certificates(&settings.certificate)?;
        let key_error = |_| TlsError::Pem { path: settings.key.clone(), what: "private key" };
        let key = PrivateKeyDer::from_pem_reader(open(&settings.key)?).map_err(key_error)?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = rustls::ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(TlsError::Mismatch)?;
        let builder = match &settings.client_ca {
            None => builder.with_no_client_auth(),
            Some(path) => {
                let mut roots = RootCertStore::empty();
                for certificate in self::certificates(path)? {
                    roots.add(certificate).map_err(TlsError::Mismatch)?;
                }
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
                    .build()
                    .map_err(|_| TlsError::Pem { path: path.clone(), what: "client authority" })?;
                builder.with_client_cert_verifier(verifier)
            }
        };
        let mut config = builder.with_single_cert(certificates, key).map_err(TlsError::Mismatch)?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Self(tokio_rustls::TlsAcceptor::from(Arc::new(config))))
    }
}

fn open(path: &Path) -> Result<BufReader<File>, TlsError> {
    File::open(path).map(BufReader::new).map_err(|source| TlsError::Read { path: path.to_owned(), source })
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let bad = || TlsError::Pem { path: path.to_owned(), what: "certificate" };
    let found: Result<Vec<_>, _> = CertificateDer::pem_reader_iter(open(path)?).collect();
    found.ok().filter(|found| !found.is_empty()).ok_or_else(bad)
}
