//! Owns making a byte stream to an origin: name resolution, TCP, TLS, all under one deadline.
//! Does not speak HTTP (`channel`) and does not keep streams (`channel`).

use std::io;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;

use rustls::pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::origin::Origin;

/// A TCP or TLS stream. An enum, not a box: every body byte passes through it.
pub(super) enum Stream {
    Tcp(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// Makes streams. The TLS side is built when the first `https` origin is met.
pub(super) struct Connector {
    extra_roots: Vec<CertificateDer<'static>>,
    tls: OnceLock<Result<TlsConnector, String>>,
}

// === impl Connector ===

impl Connector {
    pub(super) fn new(extra_roots: Vec<CertificateDer<'static>>) -> Self {
        Self { extra_roots, tls: OnceLock::new() }
    }

    /// Connects within `limit`; name resolution, TCP and TLS share it.
    ///
    /// # Errors
    /// [`io::ErrorKind::TimedOut`] when the limit has passed, else the cause.
    pub(super) async fn connect(&self, origin: &Origin, limit: Duration) -> io::Result<Stream> {
        tokio::time::timeout(limit, self.open(origin)).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
    }

    async fn open(&self, origin: &Origin) -> io::Result<Stream> {
        // Tries each resolved address in turn.
        let tcp = TcpStream::connect((origin.host.as_str(), origin.port)).await?;
        tcp.set_nodelay(true)?;
        if !origin.tls {
            return Ok(Stream::Tcp(tcp));
        }
        let name = ServerName::try_from(origin.host.clone()).map_err(io::Error::other)?;
        let tls = self.tls.get_or_init(|| tls_connector(&self.extra_roots));
        let tls = tls.as_ref().map_err(|reason| io::Error::other(reason.as_str()))?;
        Ok(Stream::Tls(Box::new(tls.connect(name, tcp).await?)))
    }
}

fn tls_connector(extra_roots: &[CertificateDer<'static>]) -> Result<TlsConnector, String> {
    let mut roots = rustls::RootCertStore::empty();
    // A machine may hold a broken certificate among good ones: skip it, as every TLS client does.
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    for root in extra_roots {
        roots.add(root.clone()).map_err(|cause| format!("a root certificate was refused: {cause}"))?;
    }
    if roots.is_empty() {
        return Err("no root certificate was found on this machine".into());
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|cause| cause.to_string())?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsConnector::from(Arc::new(config)))
}

// === impl Stream ===

macro_rules! each {
    ($self:ident, $stream:ident => $call:expr) => {
        match $self.get_mut() {
            Stream::Tcp($stream) => {
                let $stream = Pin::new($stream);
                $call
            }
            Stream::Tls($stream) => {
                let $stream = Pin::new(&mut **$stream);
                $call
            }
        }
    };
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        each!(self, stream => stream.poll_read(cx, buf))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        each!(self, stream => stream.poll_write(cx, buf))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        each!(self, stream => stream.poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Tcp(stream) => stream.is_write_vectored(),
            Self::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, stream => stream.poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, stream => stream.poll_shutdown(cx))
    }
}
