//! Owns one accepted connection as pingora wants to see it: plain or TLS, with bytes put back and writes gathered.
//! Does not parse HTTP; the frames of HTTP/2 are watched over by `frames`.
//! Invariants: the write buffer is freed when it is flushed, so an idle stream costs no buffer; a connection that is given up
//! while its peer takes nothing is reset, so the kernel keeps nothing of it.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use async_trait::async_trait;
use bytes::{Buf as _, BytesMut};
use pingora::protocols::{
    ALPN, GetProxyDigest, GetSocketDigest, GetTimingDigest, Peek, Shutdown, SocketDigest, Ssl, TimingDigest, UniqueID,
    UniqueIDType, raw_connect::ProxyDigest,
};
use rustls::pki_types::CertificateDer;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;

use super::frames::{Frames, Reason};

/// Writes are gathered up to this many bytes before they must go out: a head and a small body share a packet.
const GATHER_BYTES_MAX: usize = 16 * 1024;
/// Most that is read at once. Pingora keeps room for 64 KiB of a body that is under way, of which the pages that were ever
/// filled stay: a client that falls silent in an upload would hold all of them. What is kept of a body is kept in such
/// pieces; larger ones would no longer share extents of the allocator (see `main`).
const READ_BYTES_MAX: u64 = 14 * 1024;
/// Length of what HTTP/2 begins with.
const PREFACE_BYTES: usize = 24;

/// The transport below.
pub(super) enum Transport {
    /// Plain TCP.
    Plain(TcpStream),
    /// TLS over TCP.
    Tls(Box<TlsStream<TcpStream>>),
}

/// A connection with read-ahead and gathered writes.
pub(super) struct Connection {
    transport: Transport,
    peer: SocketAddr,
    ahead: BytesMut,
    out: BytesMut,
    http2: bool,
    /// The watch over an HTTP/2 connection.
    frames: Option<Box<Frames>>,
    /// The peer broke the protocol: nothing more is read.
    broken: bool,
    /// What was written last waits for the peer.
    stalled: bool,
}

// === impl Connection ===

impl Connection {
    /// Wraps an accepted transport.
    pub(super) fn new(transport: Transport, peer: SocketAddr) -> Self {
        let http2 = match &transport {
            Transport::Plain(_) => false,
            Transport::Tls(stream) => stream.get_ref().1.alpn_protocol() == Some(b"h2"),
        };
        let (ahead, out) = (BytesMut::new(), BytesMut::new());
        Self { transport, peer, ahead, out, http2, frames: None, broken: false, stalled: false }
    }

    /// Says whether the peer speaks HTTP/2.
    pub(super) fn is_http2(&self) -> bool {
        self.http2
    }

    /// Marks a plain connection as HTTP/2 with prior knowledge (RFC 9113 §3.3) and puts the bytes back.
    pub(super) fn into_http2(mut self, read: BytesMut) -> Self {
        self.http2 = true;
        self.frames = Some(Box::new(Frames::new()));
        self.ahead = read;
        self
    }

    /// Waits for the bytes by which HTTP/2 begins (RFC 9113 §3.4): pingora would wait for them without end. `None` when
    /// the peer went away first. Whether they are right is for pingora to say.
    pub(super) async fn with_preface(mut self) -> Option<Self> {
        let mut preface = BytesMut::zeroed(PREFACE_BYTES);
        self.read_exact(&mut preface).await.ok()?;
        Some(self.into_http2(preface))
    }

    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.out.is_empty() {
            let written = self.transport.poll_write(cx, &self.out);
            self.stalled = written.is_pending();
            match ready!(written)? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                written => self.out.advance(written),
            }
        }
        self.out = BytesMut::new();
        Poll::Ready(Ok(()))
    }

    fn poll_fill(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if !self.ahead.is_empty() {
            let n = self.ahead.len().min(buf.remaining());
            buf.put_slice(&self.ahead.split_to(n));
            return Poll::Ready(Ok(()));
        }
        self.transport.poll_read(cx, buf)
    }

    /// Says why, as far as the peer takes it now, and reads nothing more: the library sees the end of the connection.
    fn give_up(&mut self, reason: Reason, cx: &mut Context<'_>) {
        self.broken = true;
        if let Some(goodbye) = self.frames.as_ref().and_then(|frames| frames.goodbye(reason)) {
            self.out.extend_from_slice(&goodbye);
        }
        // What is left goes out when the library flushes or closes; an error is found there again.
        let _ = self.poll_drain(cx);
    }
}

impl Drop for Connection {
    /// What the kernel holds for a peer that takes nothing would stay with it for minutes, and the peer would see no end.
    fn drop(&mut self) {
        if self.stalled {
            // A socket that is broken has nothing to keep either.
            let _ = self.transport.tcp().set_zero_linger();
        }
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.broken {
            return Poll::Ready(Ok(()));
        }
        let before = buf.filled().len();
        ready!(self.poll_fill(cx, buf))?;
        let read = buf.filled().get(before..).unwrap_or_default();
        if let Some(Err(reason)) = self.frames.as_mut().map(|frames| frames.read(read)) {
            buf.set_filled(before);
            self.give_up(reason, cx);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.out.len() + bytes.len() > GATHER_BYTES_MAX {
            ready!(self.poll_drain(cx))?;
            if bytes.len() >= GATHER_BYTES_MAX {
                let written = self.transport.poll_write(cx, bytes);
                self.stalled = written.is_pending();
                let written = ready!(written)?;
                if let Some(frames) = &mut self.frames {
                    frames.write(bytes.get(..written).unwrap_or_default());
                }
                return Poll::Ready(Ok(written));
            }
        }
        let at = self.out.len();
        self.out.extend_from_slice(bytes);
        if let Some((offset, value)) = self.frames.as_mut().and_then(|frames| frames.write(bytes))
            && let Some(byte) = self.out.get_mut(at + offset)
        {
            *byte = value;
        }
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_drain(cx))?;
        // TLS takes what the kernel does not take yet.
        let flushed = self.transport.poll_flush(cx);
        self.stalled = flushed.is_pending();
        flushed
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_drain(cx))?;
        let shut = self.transport.poll_shutdown(cx);
        self.stalled = shut.is_pending();
        shut
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Connection({})", self.peer)
    }
}

#[async_trait]
impl Shutdown for Connection {
    async fn shutdown(&mut self) {
        // The peer may be gone already; there is nobody to tell.
        let _ = AsyncWriteExt::shutdown(self).await;
    }
}

impl UniqueID for Connection {
    fn id(&self) -> UniqueIDType {
        UniqueIDType::from(self.peer.port())
    }
}

impl Ssl for Connection {
    fn selected_alpn_proto(&self) -> Option<ALPN> {
        self.http2.then_some(ALPN::H2)
    }
}

impl GetTimingDigest for Connection {
    fn get_timing_digest(&self) -> Vec<Option<TimingDigest>> {
        Vec::new()
    }
}

impl GetProxyDigest for Connection {
    fn get_proxy_digest(&self) -> Option<Arc<ProxyDigest>> {
        None
    }
}

impl GetSocketDigest for Connection {
    fn get_socket_digest(&self) -> Option<Arc<SocketDigest>> {
        None
    }
}

impl Peek for Connection {}

// === impl Transport ===

impl Transport {
    /// The certificate of the other side, verified.
    pub(super) fn certificate(&self) -> Option<&CertificateDer<'static>> {
        match self {
            Self::Plain(_) => None,
            Self::Tls(stream) => stream.get_ref().1.peer_certificates()?.first(),
        }
    }

    fn tcp(&self) -> &TcpStream {
        match self {
            Self::Plain(stream) => stream,
            Self::Tls(stream) => stream.get_ref().0,
        }
    }

    fn poll_read(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Plain(stream) => Pin::new(&mut stream.take(READ_BYTES_MAX)).poll_read(cx, buf),
            Self::Tls(stream) => Pin::new(&mut stream.as_mut().take(READ_BYTES_MAX)).poll_read(cx, buf),
        }
    }

    fn poll_write(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, bytes),
            Self::Tls(stream) => Pin::new(stream.as_mut()).poll_write(cx, bytes),
        }
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream.as_mut()).poll_flush(cx),
        }
    }

    fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream.as_mut()).poll_shutdown(cx),
        }
    }
}
