//! Owns what a reply of the fake is: a list of steps, written to the socket as they stand, lies included.
//! Does not touch sockets (`connection`).

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::Semaphore;

/// Stands in a scripted reply for the run id that the request gives, and is as long as one.
pub(crate) const RUN: &str = "the-run-that-the-request-has-named--";

/// A reply: what is written, what it waits for, how it ends.
#[derive(Debug, Clone)]
pub(crate) struct Reply {
    pub(super) steps: Vec<Step>,
    pub(super) end: End,
}

/// One step of a reply.
#[derive(Debug, Clone)]
pub(super) enum Step {
    /// Writes these bytes and flushes them.
    Write(Bytes),
    /// Waits until the test opens the gate once more.
    Wait(Gate),
}

/// What becomes of the connection after the last step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// Kept for the next request.
    Keep,
    /// Closed in order, without having announced it.
    Close,
    /// Closed with a TCP reset.
    Reset,
    /// Never: the reply hangs until the caller goes away.
    Hang,
}

/// Holds a reply back until the test lets it go on. Clones are the same gate.
#[derive(Debug, Clone)]
pub(crate) struct Gate(Arc<Semaphore>);

/// A server-sent event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Event {
    name: String,
    data: String,
}

// === impl Gate ===

impl Gate {
    fn closed() -> Self {
        Self(Arc::new(Semaphore::new(0)))
    }

    /// Lets the reply take its next step.
    pub(crate) fn open_once(&self) {
        self.0.add_permits(1);
    }

    /// Lets the reply run to its end.
    pub(crate) fn open(&self) {
        self.0.add_permits(Semaphore::MAX_PERMITS / 2);
    }

    pub(super) async fn pass(&self) {
        self.0.acquire().await.expect("a gate is never destroyed").forget();
    }
}

// === impl Event ===

impl Event {
    /// An event as AgentOS sends it: the name stands in the data too.
    pub(crate) fn new(name: &str, mut data: serde_json::Value) -> Self {
        data["event"] = name.into();
        Self { name: name.to_owned(), data: data.to_string() }
    }

    /// The event on the wire.
    pub(crate) fn to_wire(&self) -> String {
        format!("event: {}\ndata: {}\n\n", self.name, self.data)
    }
}

// === impl Reply ===

impl Reply {
    /// The reply to a request that gives a run this id.
    pub(super) fn about(mut self, run: Option<&str>) -> Self {
        let Some(run) = run.filter(|run| run.len() == RUN.len()) else { return self };
        for step in &mut self.steps {
            if let Step::Write(bytes) = step
                && bytes.windows(RUN.len()).any(|text| text == RUN.as_bytes())
            {
                *bytes = String::from_utf8_lossy(bytes).replace(RUN, run).into();
            }
        }
        self
    }

    /// A JSON document.
    pub(crate) fn json(status: u16, body: &serde_json::Value) -> Self {
        Self::body(status, "application/json", body.to_string())
    }

    /// An error as AgentOS words it.
    pub(crate) fn detail(status: u16, detail: &str) -> Self {
        Self::json(status, &serde_json::json!({ "detail": detail }))
    }

    /// No content.
    pub(crate) fn empty(status: u16) -> Self {
        Self::raw(format!("HTTP/1.1 {status} \r\nserver: uvicorn\r\n\r\n"))
    }

    /// A body with its length.
    pub(crate) fn body(status: u16, content_type: &str, body: impl Into<Bytes>) -> Self {
        let body = body.into();
        let mut wire = head(status, content_type, &format!("content-length: {}", body.len())).into_bytes();
        wire.extend_from_slice(&body);
        Self::raw(wire)
    }

    /// A whole reply, byte for byte.
    pub(crate) fn raw(wire: impl Into<Bytes>) -> Self {
        Self { steps: vec![Step::Write(wire.into())], end: End::Keep }
    }

    /// A stream of events, sent at once, one chunk each.
    pub(crate) fn sse(events: &[Event]) -> Self {
        let mut steps = vec![sse_head()];
        steps.extend(events.iter().map(|event| Step::Write(chunk(&event.to_wire()))));
        steps.push(Step::Write(Bytes::from_static(b"0\r\n\r\n")));
        Self { steps, end: End::Keep }
    }

    /// A stream of events of which each one waits for the gate; the head goes out at once.
    pub(crate) fn paced_sse(events: &[Event]) -> (Self, Gate) {
        let gate = Gate::closed();
        let mut steps = vec![sse_head()];
        for event in events {
            steps.push(Step::Wait(gate.clone()));
            steps.push(Step::Write(chunk(&event.to_wire())));
        }
        steps.push(Step::Write(Bytes::from_static(b"0\r\n\r\n")));
        (Self { steps, end: End::Keep }, gate)
    }

    /// Waits for the gate before the first byte.
    pub(crate) fn stalled(mut self) -> (Self, Gate) {
        let gate = Gate::closed();
        self.steps.insert(0, Step::Wait(gate.clone()));
        (self, gate)
    }

    /// Never answers: the caller has to give up.
    pub(crate) fn never() -> Self {
        Self { steps: Vec::new(), end: End::Hang }
    }

    /// Closes the connection without a byte, as uvicorn does with one that idled too long.
    pub(crate) fn closed_at_once() -> Self {
        Self { steps: Vec::new(), end: End::Close }
    }

    /// Resets the connection without a byte.
    pub(crate) fn reset_at_once() -> Self {
        Self { steps: Vec::new(), end: End::Reset }
    }

    /// Resets the connection after a head that promised a body.
    pub(crate) fn reset_after_head() -> Self {
        Self { steps: vec![Step::Write(head(200, "application/json", "content-length: 64").into())], end: End::Reset }
    }

    /// A stream that ends by a close inside a chunk.
    pub(crate) fn truncated_sse(events: &[Event]) -> Self {
        let mut reply = Self::sse(events);
        reply.steps.pop();
        reply.steps.push(Step::Write(Bytes::from_static(b"ff\r\nevent: RunContent\ndata: {\"content\":\"cut o")));
        reply.end = End::Close;
        reply
    }

    /// A stream that is reset after these events.
    pub(crate) fn broken_sse(events: &[Event]) -> Self {
        let mut reply = Self::sse(events);
        reply.steps.pop();
        reply.end = End::Reset;
        reply
    }

    /// A body that is shorter than its head says; then the connection closes.
    pub(crate) fn short_body(claimed: usize, body: &str) -> Self {
        let mut reply =
            Self::raw(format!("{}{body}", head(200, "application/json", &format!("content-length: {claimed}"))));
        reply.end = End::Close;
        reply
    }

    /// A head that promises a body of which only the beginning comes; the connection stays.
    pub(crate) fn unfinished() -> Self {
        let head = head(200, "application/json", "content-length: 64");
        Self { steps: vec![Step::Write(format!("{head}{{").into())], end: End::Hang }
    }

    /// A body that is longer than its head says; what is too much would start the next reply on the connection.
    pub(crate) fn long_body(claimed: usize, body: &str) -> Self {
        Self::raw(format!("{}{body}", head(200, "application/json", &format!("content-length: {claimed}"))))
    }

    /// Something that is not HTTP.
    pub(crate) fn garbage() -> Self {
        let mut reply = Self::raw("this is not HTTP\r\n\r\n");
        reply.end = End::Close;
        reply
    }

    /// An unhandled exception: uvicorn answers 500 and closes without announcing it.
    pub(crate) fn crash() -> Self {
        Self::detail(500, "Internal Server Error").and_close()
    }

    /// Closes the connection after the reply without having announced it.
    pub(crate) fn and_close(mut self) -> Self {
        self.end = End::Close;
        self
    }
}

fn head(status: u16, content_type: &str, framing: &str) -> String {
    format!(
        "HTTP/1.1 {status} \r\nserver: uvicorn\r\nvary: Origin\r\ncontent-type: {content_type}\r\n{framing}\r\n\r\n"
    )
}

fn sse_head() -> Step {
    Step::Write(head(200, "text/event-stream; charset=utf-8", "transfer-encoding: chunked").into())
}

fn chunk(data: &str) -> Bytes {
    format!("{:x}\r\n{data}\r\n", data.len()).into()
}
