//! Owns the callers of a test: plain HTTP/1.1 by hyper, and raw sockets for what hyper would refuse to send.
//! Does not retry and does not follow anything.

use std::net::SocketAddr;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use tollbridge::gateway::{Call, Caller, Inbound};
use tollbridge::telemetry::Door;

use super::{Who, within};

/// A request to be sent.
#[derive(Debug, Clone)]
pub(crate) struct Ask {
    method: Method,
    target: String,
    headers: HeaderMap,
    body: Bytes,
    fields: Vec<(String, String)>,
}

/// A whole answer.
#[derive(Debug, Clone)]
pub(crate) struct Got {
    /// The status.
    pub(crate) status: u16,
    /// The headers.
    pub(crate) headers: HeaderMap,
    /// The body.
    pub(crate) body: Bytes,
}

/// An answer whose body still comes. Dropping it closes the connection.
pub(crate) struct Flow {
    response: Response<Incoming>,
    seen: String,
    _connection: JoinSet<()>,
}

/// A raw connection.
pub(crate) struct Raw {
    stream: TcpStream,
    seen: Vec<u8>,
}

// === impl Ask ===

impl Ask {
    /// A request without body.
    pub(crate) fn new(method: &str, target: &str) -> Self {
        let method = Method::from_bytes(method.as_bytes()).unwrap();
        Self { method, target: target.to_owned(), headers: HeaderMap::new(), body: Bytes::new(), fields: Vec::new() }
    }

    /// A run that is not streamed.
    pub(crate) fn plain_run() -> Self {
        Self::run("assistant").field("message", "hi").field("stream", "false")
    }

    /// `GET`.
    pub(crate) fn get(target: &str) -> Self {
        Self::new("GET", target)
    }

    /// `POST`.
    pub(crate) fn post(target: &str) -> Self {
        Self::new("POST", target)
    }

    /// A run of an agent; add fields.
    pub(crate) fn run(agent: &str) -> Self {
        Self::post(&format!("/agents/{agent}/runs"))
    }

    /// With the token of a caller.
    pub(crate) fn by(self, who: &Who) -> Self {
        let token = who.token();
        self.bearer(&token)
    }

    /// With a bearer credential.
    pub(crate) fn bearer(self, token: &str) -> Self {
        self.header("authorization", &format!("Bearer {token}"))
    }

    /// Adds a header.
    pub(crate) fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.append(name.parse::<HeaderName>().unwrap(), HeaderValue::from_str(value).unwrap());
        self
    }

    /// Adds a field of an urlencoded form.
    pub(crate) fn field(mut self, name: &str, value: &str) -> Self {
        self.fields.push((name.to_owned(), value.to_owned()));
        self
    }

    /// With a JSON body.
    pub(crate) fn json(self, body: &Value) -> Self {
        self.body("application/json", body.to_string())
    }

    /// With a body.
    pub(crate) fn body(mut self, content_type: &str, body: impl Into<Bytes>) -> Self {
        self.body = body.into();
        self.header("content-type", content_type)
    }

    /// The request as the HTTP door would hand it to the gateway.
    pub(crate) fn call(self) -> Call {
        let whole = self.written();
        let (path, query) =
            whole.target.split_once('?').map_or((&*whole.target, None), |(path, query)| (path, Some(query)));
        Call {
            door: Door::Http,
            request_id: "call".into(),
            method: whole.method,
            path: path.to_owned(),
            query: query.map(str::to_owned),
            headers: whole.headers,
            host: None,
            peer: [127, 0, 0, 1].into(),
            caller: Caller::ByHeaders,
            cluster: None,
            human: false,
            tool: None,
            known: None,
            body: if whole.body.is_empty() { Inbound::Empty } else { Inbound::Full(whole.body) },
        }
    }

    /// The request, for a connection of the test's own.
    pub(crate) fn into_request(self) -> Request<Full<Bytes>> {
        self.request()
    }

    /// With its fields as the body.
    fn written(self) -> Self {
        if self.fields.is_empty() {
            return self;
        }
        let body = url::form_urlencoded::Serializer::new(String::new()).extend_pairs(&self.fields).finish();
        self.body("application/x-www-form-urlencoded", body)
    }

    pub(super) fn request(mut self) -> Request<Full<Bytes>> {
        self = self.written();
        let mut request = Request::new(Full::new(self.body));
        *request.method_mut() = self.method;
        *request.uri_mut() = self.target.parse().unwrap();
        *request.headers_mut() = self.headers;
        request
    }
}

/// Sends one request on a connection of its own.
pub(crate) async fn open(address: SocketAddr, ask: Ask) -> Flow {
    let mut request = ask.request();
    if !request.headers().contains_key("host") {
        request.headers_mut().insert("host", HeaderValue::from_str(&address.to_string()).unwrap());
    }
    within("the head of an answer", async {
        let stream = TcpStream::connect(address).await.unwrap();
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            // How a connection ends is for the body to show.
            let _ = connection.await;
        });
        let response = sender.send_request(request).await.unwrap();
        Flow { response, seen: String::new(), _connection: tasks }
    })
    .await
}

// === impl Flow ===

impl Flow {
    /// The status.
    pub(crate) fn status(&self) -> u16 {
        self.response.status().as_u16()
    }

    /// The headers.
    pub(crate) fn headers(&self) -> &HeaderMap {
        self.response.headers()
    }

    /// The next piece of the body; `None` at its clean end.
    ///
    /// # Errors
    /// When the connection broke before the end of the body.
    pub(crate) async fn next(&mut self) -> Option<Result<Bytes, hyper::Error>> {
        loop {
            match within("the next piece of a body", self.response.body_mut().frame()).await? {
                Ok(frame) => {
                    if let Ok(data) = frame.into_data() {
                        return Some(Ok(data));
                    }
                }
                Err(error) => return Some(Err(error)),
            }
        }
    }

    /// Reads until the text read since the last call contains this; returns that text.
    pub(crate) async fn until(&mut self, wanted: &str) -> String {
        while !self.seen.contains(wanted) {
            match self.next().await {
                Some(Ok(data)) => self.seen.push_str(std::str::from_utf8(&data).unwrap()),
                other => panic!("the body ended ({other:?}) before `{wanted}`; it was {:?}", self.seen),
            }
        }
        std::mem::take(&mut self.seen)
    }

    /// Reads to the end; says what came and whether the end was clean.
    pub(crate) async fn rest(&mut self) -> (String, bool) {
        loop {
            match self.next().await {
                Some(Ok(data)) => self.seen.push_str(&String::from_utf8_lossy(&data)),
                None => return (std::mem::take(&mut self.seen), true),
                Some(Err(_)) => return (std::mem::take(&mut self.seen), false),
            }
        }
    }

    /// The whole answer.
    pub(crate) async fn whole(mut self) -> Got {
        let mut body = Vec::new();
        while let Some(data) = self.next().await {
            body.extend_from_slice(&data.unwrap());
        }
        let (head, _) = self.response.into_parts();
        Got { status: head.status.as_u16(), headers: head.headers, body: body.into() }
    }
}

// === impl Got ===

impl Got {
    /// The one value of a header.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let values: Vec<_> = self.headers.get_all(name).iter().collect();
        assert!(values.len() < 2, "header `{name}` came more than once: {:?}", self.headers);
        values.first().map(|value| value.to_str().unwrap())
    }

    /// The body as text.
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON; `null` when it is none.
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }

    /// The code of a problem body, or `-`.
    pub(crate) fn code(&self) -> String {
        self.json()["code"].as_str().unwrap_or("-").to_owned()
    }
}

// === impl Raw ===

impl Raw {
    /// A raw connection to any address.
    pub(crate) async fn connect(address: SocketAddr) -> Self {
        let stream = within("a connection", TcpStream::connect(address)).await.unwrap();
        stream.set_nodelay(true).unwrap();
        Self { stream, seen: Vec::new() }
    }

    /// Writes bytes. A gateway that has closed already is no error here: what it answered is still to be read.
    pub(crate) async fn write(&mut self, bytes: impl AsRef<[u8]>) {
        let _ = within("room to write", self.stream.write_all(bytes.as_ref())).await;
    }

    /// Ends the sending half.
    pub(crate) async fn finish(&mut self) {
        let _ = self.stream.shutdown().await;
    }

    /// Reads until what came since the last call contains this; returns all of that.
    pub(crate) async fn until(&mut self, wanted: &str) -> String {
        loop {
            if let Some(at) = memchr::memmem::find(&self.seen, wanted.as_bytes()) {
                let rest = self.seen.split_off(at + wanted.len());
                return String::from_utf8_lossy(&std::mem::replace(&mut self.seen, rest)).into_owned();
            }
            assert!(self.fill().await, "closed before `{wanted}`; it sent {:?}", String::from_utf8_lossy(&self.seen));
        }
    }

    /// Reads until what came contains one of these, or the other side closes; returns all of it.
    pub(crate) async fn until_any(&mut self, wanted: &[&str]) -> String {
        loop {
            let seen = String::from_utf8_lossy(&self.seen).into_owned();
            if wanted.iter().any(|wanted| seen.contains(wanted)) || !self.fill().await {
                return seen;
            }
        }
    }

    /// Reads one answer with a `Content-Length`; returns head and body.
    pub(crate) async fn answer(&mut self) -> (String, String) {
        let head = self.until("\r\n\r\n").await;
        let lower = head.to_ascii_lowercase();
        let length = lower
            .split("content-length:")
            .nth(1)
            .and_then(|rest| rest.split("\r\n").next())
            .map_or(0, |text| text.trim().parse::<usize>().unwrap());
        while self.seen.len() < length {
            assert!(self.fill().await, "closed inside a body: {head}");
        }
        let rest = self.seen.split_off(length);
        (head, String::from_utf8_lossy(&std::mem::replace(&mut self.seen, rest)).into_owned())
    }

    /// Everything until the gateway closes.
    pub(crate) async fn rest(&mut self) -> String {
        while self.fill().await {}
        String::from_utf8_lossy(&std::mem::take(&mut self.seen)).into_owned()
    }

    /// Everything until the gateway closes, if it has closed or closes within a moment.
    pub(crate) async fn try_rest(&mut self) -> Option<String> {
        tokio::time::timeout(std::time::Duration::from_millis(20), self.rest()).await.ok()
    }

    async fn fill(&mut self) -> bool {
        let mut buffer = vec![0; 64 * 1024];
        // A reset ends the reading as a close does; what came before it counts.
        let read = within("bytes of the gateway", self.stream.read(&mut buffer)).await.unwrap_or(0);
        self.seen.extend_from_slice(&buffer[..read]);
        read > 0
    }
}
