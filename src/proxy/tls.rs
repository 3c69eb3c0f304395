//! Owns TLS of the main listener: certificates by server name, client authorities, ALPN, and what a client certificate
//! says about its holder.
//! Does not reload (`server` builds a new acceptor and swaps it) and does not know callers (`identity` does).
//! Invariant: a certificate names somebody only after it was verified against the client authorities.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufReader};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::RootCertStore;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use sha2::{Digest as _, Sha256};
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};

use super::settings::{ClientCertificates, KeyPair, Tls};
use crate::principal::ClientCertificate;

/// Most names of one client certificate that are looked at.
const NAMES_MAX: usize = 64;

/// Turns a TCP stream into a TLS stream. Cloning shares the configuration.
#[derive(Clone)]
pub struct TlsAcceptor {
    pub(super) acceptor: tokio_rustls::TlsAcceptor,
    /// Hash of the authorities that client certificates are verified by.
    pub(super) authorities: Option<[u8; 32]>,
}

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
    /// A further certificate names no host, so that nobody could ask for it.
    #[error("`{path}` names no host")]
    Nameless {
        /// The file.
        path: PathBuf,
    },
    /// Two further certificates are for one host.
    #[error("`{path}` is for `{host}`, as another certificate is")]
    HostTwice {
        /// The file.
        path: PathBuf,
        /// The host.
        host: String,
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
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let (default, _) = key_pair(&settings.default, &provider)?;
        let mut by_host = HashMap::new();
        for pair in &settings.more {
            let (key, hosts) = key_pair(pair, &provider)?;
            let path = &pair.certificate;
            if hosts.is_empty() {
                return Err(TlsError::Nameless { path: path.clone() });
            }
            for host in hosts {
                if by_host.insert(host.clone(), Arc::clone(&key)).is_some() {
                    return Err(TlsError::HostTwice { path: path.clone(), host });
                }
            }
        }
        let builder = rustls::ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(TlsError::Mismatch)?;
        let mut authorities = None;
        let builder = match &settings.client_ca {
            None => builder.with_no_client_auth(),
            Some(path) => {
                let mut roots = RootCertStore::empty();
                let mut hash = Sha256::new();
                for certificate in certificates(path)? {
                    hash.update(&certificate);
                    roots.add(certificate).map_err(TlsError::Mismatch)?;
                }
                authorities = Some(hash.finalize().into());
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
                let verifier = match settings.client_certificate {
                    ClientCertificates::Required => verifier,
                    ClientCertificates::Optional => verifier.allow_unauthenticated(),
                };
                let verifier =
                    verifier.build().map_err(|_| TlsError::Pem { path: path.clone(), what: "client authority" })?;
                builder.with_client_cert_verifier(verifier)
            }
        };
        let mut config = builder.with_cert_resolver(Arc::new(Chosen { default, by_host }));
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Self { acceptor: tokio_rustls::TlsAcceptor::from(Arc::new(config)), authorities })
    }
}

/// The certificate of a connection, by the name that the caller asks for.
#[derive(Debug)]
struct Chosen {
    default: Arc<CertifiedKey>,
    /// Hosts in lower case; `*.example.com` stands for one label.
    by_host: HashMap<String, Arc<CertifiedKey>>,
}

impl Chosen {
    fn of(&self, name: Option<&str>) -> &Arc<CertifiedKey> {
        let found = name.and_then(|name| {
            let name = name.to_ascii_lowercase();
            let wild = || self.by_host.get(&format!("*.{}", name.split_once('.')?.1));
            self.by_host.get(&name).or_else(wild)
        });
        found.unwrap_or(&self.default)
    }
}

impl ResolvesServerCert for Chosen {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(self.of(hello.server_name())))
    }
}

/// What a verified client certificate says; `None` when it cannot be read.
pub(super) fn holder(certificate: &CertificateDer<'_>) -> Option<ClientCertificate> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    // Written without escapes: a value with one of these could spell another subject.
    let plain = |value: &str| !value.contains([',', '+', '=', '"', '\\']);
    let subject = parsed.subject();
    let unambiguous = subject.iter_attributes().all(|attribute| attribute.as_str().is_ok_and(plain));
    let mut names: Vec<_> = unambiguous.then(|| format!("subject:{subject}")).into_iter().collect();
    if let Ok(Some(alternatives)) = parsed.subject_alternative_name() {
        let known = alternatives.value.general_names.iter().filter_map(|name| match name {
            GeneralName::DNSName(name) => Some(format!("dns:{}", name.to_ascii_lowercase())),
            GeneralName::URI(name) => Some(format!("uri:{name}")),
            GeneralName::RFC822Name(name) => Some(format!("email:{name}")),
            _ => None,
        });
        names.extend(known.take(NAMES_MAX));
    }
    let expires_at = u64::try_from(parsed.validity().not_after.timestamp()).unwrap_or(0);
    Some(ClientCertificate { names, sha256: Sha256::digest(certificate).into(), expires_at })
}

/// A certificate chain with its key, and the hosts that it is for.
fn key_pair(pair: &KeyPair, provider: &CryptoProvider) -> Result<(Arc<CertifiedKey>, Vec<String>), TlsError> {
    let chain = certificates(&pair.certificate)?;
    let key_error = |_| TlsError::Pem { path: pair.key.clone(), what: "private key" };
    let key = PrivateKeyDer::from_pem_reader(open(&pair.key)?).map_err(key_error)?;
    let hosts = chain.first().map(hosts).unwrap_or_default();
    let certified = CertifiedKey::from_der(chain, key, provider).map_err(TlsError::Mismatch)?;
    Ok((Arc::new(certified), hosts))
}

fn hosts(leaf: &CertificateDer<'static>) -> Vec<String> {
    let Ok((_, parsed)) = X509Certificate::from_der(leaf) else { return Vec::new() };
    let Ok(Some(alternatives)) = parsed.subject_alternative_name() else { return Vec::new() };
    let dns = alternatives.value.general_names.iter().filter_map(|name| match name {
        GeneralName::DNSName(name) => Some(name.to_ascii_lowercase()),
        _ => None,
    });
    dns.collect()
}

fn open(path: &Path) -> Result<BufReader<File>, TlsError> {
    File::open(path).map(BufReader::new).map_err(|source| TlsError::Read { path: path.to_owned(), source })
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let bad = || TlsError::Pem { path: path.to_owned(), what: "certificate" };
    let found: Result<Vec<_>, _> = CertificateDer::pem_reader_iter(open(path)?).collect();
    found.ok().filter(|found| !found.is_empty()).ok_or_else(bad)
}
