//! Owns a scripted AgentOS for tests: it answers like the real one unless a test tells it to stall, break or lie.
//! Does not decide what is right: it records what reached it and lets the test judge.
//! Invariant: nothing here waits for wall-clock time; a test paces a reply through its [`Gate`], and every wait of a
//! test has the deadline [`PATIENCE`].

#![allow(dead_code, unused_imports, reason = "a fixture offers more than each test takes")]

mod connection;
mod form;
mod reply;
mod routes;
mod socket;
mod tests;

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;

pub(crate) use self::form::Form;
pub(crate) use self::reply::{Event, Gate, RUN, Reply};

/// The longest that a test waits for something to reach the fake.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// Which AgentOS line the fake pretends to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Line {
    /// agno 2.5.6: no `/info`.
    V2,
    /// agno 3.1.10.
    V3,
}

/// A running fake. Dropping it closes the port and every connection.
pub(crate) struct FakeAgentOs {
    address: SocketAddr,
    shared: Arc<Shared>,
    _tasks: JoinSet<()>,
}

/// One request, as it arrived.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Recorded {
    /// The method.
    pub(crate) method: String,
    /// The request target, raw: path and query as sent.
    pub(crate) target: String,
    /// Headers in order, names as sent.
    pub(crate) headers: Vec<(String, String)>,
    /// The whole body, chunked framing removed.
    pub(crate) body: Bytes,
    /// Which connection carried it, counted from 0.
    pub(crate) connection: usize,
    /// Whether the caller went away before the reply was complete.
    pub(crate) aborted: bool,
    /// Whether the reply was sent to its end.
    pub(crate) answered: bool,
}

/// What the connections and the test share.
struct Shared {
    line: Line,
    seen: watch::Sender<Vec<Recorded>>,
    frames: watch::Sender<Vec<String>>,
    script: Mutex<VecDeque<Reply>>,
    pinned: Mutex<HashMap<(String, String), Reply>>,
    world: Mutex<routes::World>,
}

// === impl FakeAgentOs ===

impl FakeAgentOs {
    /// Starts a fake of the newest line on a free port.
    pub(crate) async fn start() -> Self {
        Self::start_as(Line::V3).await
    }

    /// Starts a fake of a given line on a free port.
    pub(crate) async fn start_as(line: Line) -> Self {
        Self::listening(TcpListener::bind("127.0.0.1:0").await.unwrap(), line)
    }

    /// Starts a fake of the newest line where another one has been.
    pub(crate) async fn start_at(address: SocketAddr) -> Self {
        Self::listening(TcpListener::bind(address).await.unwrap(), Line::V3)
    }

    fn listening(listener: TcpListener, line: Line) -> Self {
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            line,
            seen: watch::Sender::new(Vec::new()),
            frames: watch::Sender::new(Vec::new()),
            script: Mutex::default(),
            pinned: Mutex::default(),
            world: Mutex::default(),
        });
        let mut tasks = JoinSet::new();
        tasks.spawn(connection::accept(listener, Arc::clone(&shared)));
        Self { address, shared, _tasks: tasks }
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its origin, as an endpoint in a configuration.
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Answers the next request with `reply`, whatever it asks. Several replies queue up. Probes (`/health`, `/info`,
    /// `/openapi.json`, and looks at the components) are never answered from this queue: use [`Self::pin`] for them.
    pub(crate) fn script(&self, reply: Reply) {
        self.shared.script.lock().unwrap().push_back(reply);
    }

    /// Answers every request for `method` and `path` (without the query) with `reply`, until pinned anew.
    pub(crate) fn pin(&self, method: &str, path: &str, reply: Reply) {
        self.shared.pinned.lock().unwrap().insert((method.to_owned(), path.to_owned()), reply);
    }

    /// Takes a [`Self::pin`] back.
    pub(crate) fn unpin(&self, method: &str, path: &str) {
        self.shared.pinned.lock().unwrap().remove(&(method.to_owned(), path.to_owned()));
    }

    /// Every request so far, probes left out.
    pub(crate) fn requests(&self) -> Vec<Recorded> {
        self.shared.seen.borrow().iter().filter(|request| !request.is_probe()).cloned().collect()
    }

    /// Every request so far, probes too.
    pub(crate) fn requests_and_probes(&self) -> Vec<Recorded> {
        self.shared.seen.borrow().clone()
    }

    /// The requests for a path, whatever their query.
    pub(crate) fn requests_to(&self, path: &str) -> Vec<Recorded> {
        self.requests().into_iter().filter(|request| request.path() == path).collect()
    }

    /// Every WebSocket text frame that callers sent.
    pub(crate) fn frames(&self) -> Vec<String> {
        self.shared.frames.borrow().clone()
    }

    /// Waits until the requests so far (probes too) fit, and returns them.
    pub(crate) async fn wait_for(&self, what: &str, fits: impl FnMut(&Vec<Recorded>) -> bool) -> Vec<Recorded> {
        let mut seen = self.shared.seen.subscribe();
        match tokio::time::timeout(PATIENCE, seen.wait_for(fits)).await {
            Ok(requests) => requests.unwrap().clone(),
            Err(_) => panic!("waited {PATIENCE:?} for {what}; so far: {:#?}", self.requests()),
        }
    }

    /// Waits until the caller of a request to `path` went away before its reply was complete.
    pub(crate) async fn wait_for_abort(&self, path: &str) {
        self.wait_for(&format!("an abort of {path}"), |seen| seen.iter().any(|r| r.path() == path && r.aborted)).await;
    }

    /// Waits for the `count`th request to `path` and returns it.
    pub(crate) async fn wait_for_request(&self, path: &str, count: usize) -> Recorded {
        let matching = |seen: &Vec<Recorded>| seen.iter().filter(|request| request.path() == path).count() >= count;
        let seen = self.wait_for(&format!("request {count} to {path}"), matching).await;
        seen.into_iter().filter(|request| request.path() == path).nth(count - 1).unwrap()
    }
}

// === impl Recorded ===

impl Recorded {
    /// The target without its query.
    pub(crate) fn path(&self) -> &str {
        self.target.split_once('?').map_or(self.target.as_str(), |(path, _)| path)
    }

    /// The query, without the question mark.
    pub(crate) fn query(&self) -> &str {
        self.target.split_once('?').map_or("", |(_, query)| query)
    }

    /// The one value of a header.
    ///
    /// # Panics
    /// When the header came more than once: a proxy that duplicates a header has failed its test.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let mut values = self.headers.iter().filter(|(other, _)| other.eq_ignore_ascii_case(name));
        let value = values.next().map(|(_, value)| value.as_str());
        assert!(values.next().is_none(), "header `{name}` came more than once: {:?}", self.headers);
        value
    }

    /// The fields of a multipart or urlencoded body.
    pub(crate) fn form(&self) -> Form {
        Form::parse(self.header("content-type").unwrap_or_default(), &self.body)
    }

    /// The claims of the bearer token, unverified.
    pub(crate) fn claims(&self) -> serde_json::Value {
        use base64::Engine as _;
        let token = self.header("authorization").and_then(|value| value.strip_prefix("Bearer ")).unwrap();
        let claims = token.split('.').nth(1).unwrap();
        serde_json::from_slice(&base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(claims).unwrap()).unwrap()
    }

    fn is_probe(&self) -> bool {
        self.method == "GET"
            && (matches!(self.path(), "/health" | "/info" | "/openapi.json")
                || self.header("user-agent") == Some("tollbridge-discovery"))
    }
}

// === impl Shared ===

impl Shared {
    /// Notes a request and returns its place in the record.
    fn record(&self, request: Recorded) -> usize {
        let mut index = 0;
        self.seen.send_modify(|seen| {
            index = seen.len();
            seen.push(request);
        });
        index
    }

    /// The reply to a request: pinned, else scripted, else what AgentOS would say.
    fn reply(&self, request: &Recorded) -> Reply {
        let key = (request.method.clone(), request.path().to_owned());
        let run = || request.header("content-type").and_then(|_| request.form().get("run_id").map(str::to_owned));
        if let Some(reply) = self.pinned.lock().unwrap().get(&key) {
            return reply.clone().about(run().as_deref());
        }
        if !request.is_probe()
            && let Some(reply) = self.script.lock().unwrap().pop_front()
        {
            return reply.about(run().as_deref());
        }
        routes::answer(&mut self.world.lock().unwrap(), self.line, request)
    }

    fn mark(&self, index: usize, change: impl FnOnce(&mut Recorded)) {
        self.seen.send_modify(|seen| change(&mut seen[index]));
    }
}
