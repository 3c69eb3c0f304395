//! Owns the two values at the gateway's edge: the `Call` that a door makes and the `Answer` it gets back.
//! Does not parse transports (the doors do) and does not decide (`admit`).

use std::fmt;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{HeaderMap, HeaderName, StatusCode};
use http_body::{Frame, SizeHint};
use http_body_util::combinators::UnsyncBoxBody;

use crate::principal::{ClientCertificate, Principal};
use crate::telemetry::Door;

/// The name of the field by which a request is found again in the logs.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Why a body ended before its end.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BodyBroken {
    /// The caller took longer than the limits allow.
    #[error("the body came too slowly")]
    TooSlow,
    /// It broke off. The text is for the log.
    #[error("{0}")]
    BrokeOff(String),
}

/// A streamed body of either direction.
pub type StreamBody = UnsyncBoxBody<Bytes, BodyBroken>;

/// A request body as a door hands it over.
pub enum Inbound {
    /// No body.
    Empty,
    /// The whole body.
    Full(Bytes),
    /// Bytes still to come; `length` is the declared `Content-Length`, if any.
    Stream {
        /// Declared length in bytes.
        length: Option<u64>,
        /// The bytes.
        body: StreamBody,
    },
}

/// Who the door says is calling.
#[derive(Debug, Clone)]
pub enum Caller {
    /// Look at the `Authorization` header of the call.
    ByHeaders,
    /// The same, and without one take the client certificate that TLS has verified.
    ByCertificate(Arc<ClientCertificate>),
    /// Already verified by `Gateway::authenticate` for the carrier request (MCP, WebSocket).
    Verified(Arc<Principal>),
}

/// One request to AgentOS, independent of the transport that carried it.
pub struct Call {
    /// The door.
    pub door: Door,
    /// `X-Request-Id`, accepted or minted by the door with [`request_id`].
    pub request_id: Arc<str>,
    /// HTTP method.
    pub method: http::Method,
    /// Raw path as received, not yet canonical.
    pub path: String,
    /// Raw query without `?`.
    pub query: Option<String>,
    /// Request headers; the gateway forwards an allow-list of them only.
    pub headers: HeaderMap,
    /// Host of the request (header or `:authority`), without port.
    pub host: Option<String>,
    /// Caller's address.
    pub peer: IpAddr,
    /// Who calls.
    pub caller: Caller,
    /// Cluster that the door already knows (an MCP run handle), else by host, header and tenant.
    pub cluster: Option<Arc<str>>,
    /// What an MCP client claims: a person confirmed this call. Never sufficient alone.
    pub human: bool,
    /// The MCP tool that makes the call, for its limits.
    pub tool: Option<&'static str>,
    /// Request body.
    pub body: Inbound,
    /// The whole JSON reply, where the door knows it without asking AgentOS. The call is admitted like any other, and
    /// the reply is narrowed to what the caller may see.
    pub known: Option<Bytes>,
}

/// What the gateway answers. Dropping the body early ends the exchange: upstream sees the disconnect.
pub struct Answer {
    /// HTTP status.
    pub status: StatusCode,
    /// Headers, without hop-by-hop fields.
    pub headers: HeaderMap,
    /// The body.
    pub body: AnswerBody,
    /// Set when this is a refusal of the gateway's own: its code.
    pub refused: Option<&'static str>,
}

/// The body of an answer: what the gateway made, or a stream from upstream that settles when it ends.
pub struct AnswerBody(StreamBody);

/// A service that runs in this process behind the HTTP door: the MCP endpoint.
pub trait LocalService: Send + Sync + 'static {
    /// Says whether the service owns the path.
    fn owns(&self, path: &str) -> bool;

    /// Answers what needs no caller: public documents, and requests that are wrong whoever sends them. `None`: the door
    /// finds out who calls first.
    fn answer_anyone(&self, _method: &http::Method, _path: &str, _query: Option<&str>) -> Option<Answer> {
        None
    }

    /// Adds to a refusal of the door how the sender of these headers becomes known here.
    fn challenge(&self, _refusal: &mut Answer, _headers: &HeaderMap) {}

    /// Answers one request. The door has put [`Arc<Principal>`] and [`Carrier`] into its extensions.
    ///
    /// # Cancel safety
    /// Dropping the future or the answer's body is the caller's disconnect.
    fn call(&self, request: http::Request<StreamBody>) -> BoxFuture<'static, http::Response<StreamBody>>;
}

/// What a local service must know about the request that carried its call.
#[derive(Debug, Clone)]
pub struct Carrier {
    /// Request id of the carrier.
    pub request_id: Arc<str>,
    /// Caller's address.
    pub peer: IpAddr,
    /// Host of the carrier.
    pub host: Option<String>,
    /// The client certificate of its connection.
    pub certificate: Option<Arc<ClientCertificate>>,
}

// === impl Caller ===

impl Caller {
    /// Whoever the headers name, or else the certificate, if there is one.
    pub fn named(certificate: Option<Arc<ClientCertificate>>) -> Self {
        certificate.map_or(Self::ByHeaders, Self::ByCertificate)
    }

    /// Says whether the call was not yet looked at: nothing is verified, and no flood guard has seen it.
    pub(super) fn is_fresh(&self) -> bool {
        match self {
            Self::ByHeaders | Self::ByCertificate(_) => true,
            Self::Verified(_) => false,
        }
    }
}

// === impl Inbound ===

impl fmt::Debug for Inbound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("Empty"),
            Self::Full(bytes) => write!(f, "Full({} bytes)", bytes.len()),
            Self::Stream { length, .. } => write!(f, "Stream({length:?})"),
        }
    }
}

impl Inbound {
    /// Takes the body out and leaves none.
    pub fn take(&mut self) -> Self {
        std::mem::replace(self, Self::Empty)
    }

    /// The body as a stream, whatever it is.
    pub fn into_stream(self) -> StreamBody {
        match self {
            Self::Empty => AnswerBody::full(Bytes::new()).into_stream(),
            Self::Full(bytes) => AnswerBody::full(bytes).into_stream(),
            Self::Stream { body, .. } => body,
        }
    }
}

// === impl Answer ===

impl Answer {
    /// The answer of a local service.
    pub fn from_response(response: http::Response<StreamBody>) -> Self {
        let (head, body) = response.into_parts();
        Self { status: head.status, headers: head.headers, body: AnswerBody(body), refused: None }
    }
}

// === impl AnswerBody ===

impl AnswerBody {
    /// A whole body.
    pub fn full(bytes: impl Into<Bytes>) -> Self {
        use http_body_util::BodyExt as _;
        Self(http_body_util::Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync())
    }

    /// A streamed body.
    pub fn stream(body: StreamBody) -> Self {
        Self(body)
    }

    /// The body as a stream.
    pub fn into_stream(self) -> StreamBody {
        self.0
    }
}

impl http_body::Body for AnswerBody {
    type Data = Bytes;
    type Error = BodyBroken;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyBroken>>> {
        Pin::new(&mut self.0).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.0.size_hint()
    }
}

/// Accepts the caller's `X-Request-Id` when it is 1 to 64 characters of `[A-Za-z0-9-]`, else mints a UUIDv4.
pub fn request_id(headers: &HeaderMap) -> Arc<str> {
    let given = headers.get(&REQUEST_ID).and_then(|v| v.to_str().ok());
    let fits = |v: &&str| (1..=64).contains(&v.len()) && v.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    given.filter(fits).map_or_else(
        || Arc::from(&*uuid::Uuid::new_v4().as_hyphenated().encode_lower(&mut uuid::Uuid::encode_buffer())),
        Arc::from,
    )
}
