//! Owns the bridge's side of the HTTP connection: where it goes, which headers every request carries, which session is open.
//! Does not read answers (`exchange`).
//! Invariants: a session that the server no longer knows is opened anew at most once at a time; the token leaves in
//! `Authorization` and nowhere else.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, USER_AGENT};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, Uri};
use parking_lot::Mutex;
use tokio::sync::watch;
use url::Url;

use super::message::{Message, PROTOCOL_VERSION};
use super::token::Token;
use super::trouble::Trouble;
use crate::outbound::{self, Client, Freshness, Origin, ResponseBody, SendOptions};

const SESSION_ID: HeaderName = HeaderName::from_static("mcp-session-id");
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// A call whose answer is one document answers when it is done; the gateway hands long runs back long before.
const HEADER_TIMEOUT: Duration = Duration::from_secs(900);
/// The gateway sends a comment every 15 s.
const IDLE_TIMEOUT: Duration = Duration::from_secs(120);
const BOTH: &str = "application/json, text/event-stream";

/// The way to the server.
pub(super) struct Link {
    /// As the user wrote it.
    pub(super) url: String,
    pub(super) token: Token,
    client: Client,
    origin: Origin,
    target: Uri,
    session: watch::Sender<Option<Arc<Session>>>,
    /// The message that opened the session, to open it anew.
    opener: Mutex<Option<Message>>,
    pub(super) reopening: tokio::sync::Mutex<()>,
}

/// A session of the older revisions.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Session {
    /// `None` where the server keeps none.
    pub(super) id: Option<HeaderValue>,
    /// The revision that was agreed on.
    pub(super) version: Option<HeaderValue>,
}

/// A response, and the token that was shown for it.
pub(super) struct Answered {
    pub(super) response: Response<ResponseBody>,
    pub(super) shown: Option<HeaderValue>,
}

// === impl Link ===

impl Link {
    /// A way to a URL.
    ///
    /// # Errors
    /// A sentence when it cannot be one.
    pub(super) fn new(url: &str, token: Token) -> Result<Self, String> {
        let bad = |reason: &str| format!("--url: {reason}\nhelp: write it like https://gateway.example.com/mcp");
        let parsed = Url::parse(url).map_err(|error| bad(&error.to_string()))?;
        let origin = Origin::of_url(&parsed).map_err(bad)?;
        let target = match parsed.query() {
            Some(query) => format!("{}?{query}", parsed.path()),
            None => parsed.path().to_owned(),
        };
        let target = Uri::try_from(target).map_err(|error| bad(&error.to_string()))?;
        // A query may hold what is nobody's business.
        let shown = format!("{origin}{}", parsed.path());
        let client =
            Client::new(outbound::Settings { connect_timeout: CONNECT_TIMEOUT, ..outbound::Settings::default() });
        let (session, _) = watch::channel(None);
        let reopening = tokio::sync::Mutex::new(());
        Ok(Self { url: shown, token, client, origin, target, session, opener: Mutex::new(None), reopening })
    }

    /// Says whether the token would cross a network in the clear.
    pub(super) fn is_exposed(&self) -> bool {
        let loopback = self.origin.host == "localhost"
            || self.origin.host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback());
        !self.origin.tls && !loopback && !matches!(self.token, Token::Absent)
    }

    /// The open session.
    pub(super) fn session(&self) -> Option<Arc<Session>> {
        self.session.borrow().clone()
    }

    /// Tells of sessions that are opened and forgotten.
    pub(super) fn sessions(&self) -> watch::Receiver<Option<Arc<Session>>> {
        self.session.subscribe()
    }

    /// Takes note of a session that a message has opened.
    pub(super) fn opened(&self, by: &Message, session: Session) {
        *self.opener.lock() = Some(by.clone());
        self.session.send_replace(Some(Arc::new(session)));
    }

    /// The message that opened the session.
    pub(super) fn opener(&self) -> Option<Message> {
        self.opener.lock().clone()
    }

    /// Sends a message of the client.
    ///
    /// # Errors
    /// [`Trouble`] when no response came.
    ///
    /// # Cancel safety
    /// Dropping the future closes the connection, which cancels the call in the stateless revision.
    pub(super) async fn post(&self, message: &Message, session: Option<&Session>) -> Result<Answered, Trouble> {
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, HeaderValue::from_static(BOTH));
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        message.mirror(&mut headers);
        let session = session.filter(|_| message.stateless.is_none() && !message.opens_session());
        let sent = self.send(Method::POST, headers.clone(), &message.text, session).await;
        match sent {
            // An idle connection died under it. What only asks may be asked again.
            Err((_, true)) if message.is_repeatable() => self.send(Method::POST, headers, &message.text, session).await,
            sent => sent,
        }
        .map_err(|(trouble, _)| trouble)
    }

    /// Asks for the messages that the server sends by itself.
    ///
    /// # Errors
    /// [`Trouble`] when no response came.
    pub(super) async fn listen(&self, session: &Session) -> Result<Answered, Trouble> {
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, HeaderValue::from_static("text/event-stream"));
        self.send(Method::GET, headers, &Bytes::new(), Some(session)).await.map_err(|(trouble, _)| trouble)
    }

    /// Ends the session at the server, if there is one.
    pub(super) async fn close(&self) {
        let Some(session) = self.session().filter(|session| session.id.is_some()) else { return };
        // The server reaps what is not closed: one attempt is enough.
        let _ = self.send(Method::DELETE, HeaderMap::new(), &Bytes::new(), Some(&session)).await;
    }

    /// Sends one request; the flag of an error says that an idle connection had died.
    async fn send(
        &self,
        method: Method,
        mut headers: HeaderMap,
        body: &Bytes,
        session: Option<&Session>,
    ) -> Result<Answered, (Trouble, bool)> {
        let shown = self.token.authorization().map_err(|trouble| (trouble, false))?;
        let agent = HeaderValue::from_static(concat!("tollbridge-mcp/", env!("CARGO_PKG_VERSION")));
        let session_id = session.and_then(|session| session.id.clone());
        let version = session.and_then(|session| session.version.clone());
        let more = [
            (USER_AGENT, Some(agent)),
            (AUTHORIZATION, shown.clone()),
            (SESSION_ID, session_id),
            (PROTOCOL_VERSION, version),
        ];
        headers.extend(more.into_iter().filter_map(|(name, value)| Some((name, value?))));
        let body = if method == Method::POST { outbound::full(body.clone()) } else { outbound::empty() };
        let mut request = Request::new(body);
        *request.method_mut() = method;
        *request.uri_mut() = self.target.clone();
        *request.headers_mut() = headers;
        let options = SendOptions {
            connect_timeout: CONNECT_TIMEOUT,
            header_timeout: HEADER_TIMEOUT,
            freshness: Freshness::Pooled,
        };
        let sent = self.client.send(&self.origin, request, &options).await;
        let response = sent.map_err(|error| (Trouble::unsent(&self.url, &error), error.is_stale()))?;
        Ok(Answered { response: response.map(|body| body.with_idle_timeout(IDLE_TIMEOUT)), shown })
    }
}

// === impl Session ===

impl Session {
    /// The session that the answer to `initialize` opens.
    pub(super) fn of(headers: &HeaderMap, version: Option<&str>) -> Self {
        let version = version.and_then(|version| HeaderValue::from_str(version).ok());
        Self { id: headers.get(SESSION_ID).cloned(), version }
    }
}
