//! Proves the bridge against a scripted server: what it sends, what it passes on, what it says when there is nothing to pass.
//! The gateway itself is met in `tests/it/cli/bridge.rs`.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, DuplexStream, Lines};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::link::Link;
use super::relay;
use super::token::Token;

const PATIENCE: Duration = Duration::from_secs(10);

/// A request that the server got.
#[derive(Debug, Clone)]
struct Seen {
    method: Method,
    headers: HeaderMap,
    body: Value,
}

type Body = UnsyncBoxBody<Bytes, std::convert::Infallible>;
type Script = Arc<dyn Fn(&Seen) -> Response<Body> + Send + Sync>;

/// The scripted server, and the client's side of a bridge to it.
struct Desk {
    seen: Arc<Mutex<Vec<Seen>>>,
    stdin: Option<DuplexStream>,
    stdout: Lines<BufReader<DuplexStream>>,
    bridge: JoinSet<std::io::Result<()>>,
    _server: JoinSet<()>,
}

// === impl Seen ===

impl Seen {
    fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }

    fn rpc(&self) -> &str {
        self.body["method"].as_str().unwrap_or_default()
    }
}

// === impl Desk ===

impl Desk {
    async fn new(script: impl Fn(&Seen) -> Response<Body> + Send + Sync + 'static) -> Self {
        Self::with(Token::Absent, script).await
    }

    async fn with(token: Token, script: impl Fn(&Seen) -> Response<Body> + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let link = Link::new(&format!("http://{}/mcp", listener.local_addr().unwrap()), token).unwrap();
        let seen = Arc::default();
        let mut server = JoinSet::new();
        server.spawn(serve(listener, Arc::clone(&seen), Arc::new(script)));
        let (stdin, input) = tokio::io::duplex(64 * 1024);
        let (output, stdout) = tokio::io::duplex(64 * 1024);
        let mut bridge = JoinSet::new();
        bridge.spawn(async move { relay::run(&link, input, output, std::future::pending()).await });
        Self { seen, stdin: Some(stdin), stdout: BufReader::new(stdout).lines(), bridge, _server: server }
    }

    async fn say(&mut self, message: &Value) {
        self.write(&format!("{message}\n")).await;
    }

    async fn write(&mut self, text: &str) {
        self.stdin.as_mut().unwrap().write_all(text.as_bytes()).await.unwrap();
    }

    async fn hear(&mut self) -> Value {
        let line = tokio::time::timeout(PATIENCE, self.stdout.next_line()).await.expect("a message in time");
        serde_json::from_str(&line.unwrap().expect("a message")).unwrap()
    }

    async fn ask(&mut self, message: &Value) -> Value {
        self.say(message).await;
        self.hear().await
    }

    /// Closes the client's side and gives what the server had seen by the end of the bridge.
    async fn close(mut self) -> Vec<Seen> {
        self.stdin = None;
        let ended = tokio::time::timeout(PATIENCE, self.bridge.join_next()).await.expect("an end in time");
        ended.unwrap().unwrap().unwrap();
        self.seen.lock().clone()
    }

    async fn until(&self, what: &str, holds: impl Fn(&[Seen]) -> bool) {
        let wait = async {
            while !holds(&self.seen.lock()) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("{what}: {:?}", self.seen.lock()));
    }
}

async fn serve(listener: TcpListener, seen: Arc<Mutex<Vec<Seen>>>, script: Script) {
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        let (seen, script) = (Arc::clone(&seen), Arc::clone(&script));
        connections.spawn(async move {
            let answer = service_fn(move |request: http::Request<Incoming>| {
                let (seen, script) = (Arc::clone(&seen), Arc::clone(&script));
                async move {
                    let (parts, body) = request.into_parts();
                    let bytes = body.collect().await?.to_bytes();
                    let body = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
                    let now = Seen { method: parts.method, headers: parts.headers, body };
                    seen.lock().push(now.clone());
                    Ok::<_, hyper::Error>(script(&now))
                }
            });
            let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), answer).await;
        });
    }
}

// === answers ===

fn reply(status: u16, content_type: &str, body: impl Into<Bytes>) -> Response<Body> {
    let builder = Response::builder().status(status).header("content-type", content_type);
    builder.body(Full::new(body.into()).boxed_unsync()).unwrap()
}

fn result(seen: &Seen, result: Value) -> Response<Body> {
    reply(200, "application/json", json!({"jsonrpc": "2.0", "id": seen.body["id"], "result": result}).to_string())
}

fn accepted() -> Response<Body> {
    Response::builder().status(StatusCode::ACCEPTED).body(Full::default().boxed_unsync()).unwrap()
}

/// A stream whose chunks come through a channel.
fn stream() -> (mpsc::UnboundedSender<String>, Response<Body>) {
    let (sender, mut chunks) = mpsc::unbounded_channel::<String>();
    let frames = futures_util::stream::poll_fn(move |cx| {
        chunks.poll_recv(cx).map(|chunk| chunk.map(|text| Ok(Frame::data(Bytes::from(text)))))
    });
    let builder = Response::builder().header("content-type", "text/event-stream");
    (sender, builder.body(StreamBody::new(frames).boxed_unsync()).unwrap())
}

/// What a server of the session revisions says; each `initialize` opens another session.
fn sessions(seen: &Seen, opened: &AtomicUsize) -> Option<Response<Body>> {
    match (seen.method.as_str(), seen.rpc()) {
        ("GET", _) => Some(reply(405, "text/plain", "")),
        ("DELETE", _) => Some(reply(204, "text/plain", "")),
        (_, "initialize") => {
            let mut answer = result(seen, json!({"protocolVersion": "2025-06-18"}));
            let id = format!("s{}", opened.fetch_add(1, Ordering::Relaxed) + 1);
            answer.headers_mut().insert("mcp-session-id", id.parse().unwrap());
            Some(answer)
        }
        (_, "notifications/initialized") => Some(accepted()),
        _ => None,
    }
}

fn initialize() -> Value {
    json!({"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": {"protocolVersion": "2025-11-25"}})
}

fn initialized() -> Value {
    json!({"jsonrpc": "2.0", "method": "notifications/initialized"})
}

fn request(id: u64, method: &str) -> Value {
    json!({"jsonrpc": "2.0", "id": id, "method": method})
}

fn modern(id: u64, method: &str) -> Value {
    let meta = json!({"io.modelcontextprotocol/protocolVersion": "2026-07-28"});
    json!({"jsonrpc": "2.0", "id": id, "method": method, "params": {"name": "run_agent", "_meta": meta}})
}

// === sessions ===

#[tokio::test]
async fn a_session_is_kept_and_closed_at_the_end() {
    let opened = AtomicUsize::new(0);
    let mut desk = Desk::new(move |seen| sessions(seen, &opened).unwrap_or_else(|| result(seen, json!({})))).await;
    let answer = desk.ask(&initialize()).await;
    assert_eq!(answer["result"]["protocolVersion"], "2025-06-18");
    desk.say(&initialized()).await;
    assert_eq!(desk.ask(&request(1, "tools/list")).await["id"], 1);
    let seen = desk.close().await;
    let posts: Vec<_> = seen.iter().filter(|seen| seen.method == Method::POST).collect();
    let of = |seen: &Seen| {
        let header = |name: &str| seen.header(name).map(str::to_owned);
        (header("mcp-session-id"), header("mcp-protocol-version"))
    };
    assert_eq!(of(posts[0]), (None, None));
    let kept = (Some("s1".to_owned()), Some("2025-06-18".to_owned()));
    assert!(posts[1..].iter().all(|seen| of(seen) == kept), "{posts:?}");
    assert!(posts.iter().all(|seen| seen.header("mcp-method").is_none()));
    let last = seen.last().unwrap();
    assert_eq!((last.method.as_str(), last.header("mcp-session-id")), ("DELETE", Some("s1")));
}

#[tokio::test]
async fn a_lost_session_is_opened_anew_and_the_call_repeated() {
    let opened = AtomicUsize::new(0);
    let mut desk = Desk::new(move |seen| {
        let lost = seen.header("mcp-session-id") == Some("s1") && seen.rpc() == "tools/list";
        if lost {
            return reply(404, "text/plain", "Not Found: Session not found");
        }
        sessions(seen, &opened).unwrap_or_else(|| result(seen, json!({"in": seen.header("mcp-session-id")})))
    })
    .await;
    desk.ask(&initialize()).await;
    desk.say(&initialized()).await;
    desk.say(&request(1, "tools/list")).await;
    desk.say(&request(2, "tools/list")).await;
    let mut answers = [desk.hear().await, desk.hear().await];
    answers.sort_by_key(|answer| answer["id"].as_u64());
    for (answer, id) in answers.iter().zip([1, 2]) {
        assert_eq!((&answer["id"], &answer["result"]["in"]), (&json!(id), &json!("s2")), "{answer}");
    }
    let seen = desk.close().await;
    assert_eq!(seen.iter().filter(|seen| seen.rpc() == "initialize").count(), 2, "opened anew once, for both");
}

#[tokio::test]
async fn what_the_server_says_by_itself_is_passed_on() {
    let opened = AtomicUsize::new(0);
    let (chunks, listening) = stream();
    let listening = Mutex::new(Some(listening));
    let mut desk = Desk::new(move |seen| {
        if seen.method == Method::GET {
            return listening.lock().take().unwrap_or_else(|| reply(405, "text/plain", ""));
        }
        sessions(seen, &opened).unwrap_or_else(|| result(seen, json!({})))
    })
    .await;
    desk.ask(&initialize()).await;
    desk.say(&initialized()).await;
    chunks.send("id: 0\nretry: 3000\ndata:\n\n: ping\n\ndata: {\"jsonrpc\":\"2.0\",".to_owned()).unwrap();
    chunks.send("\"method\":\"notifications/tools/list_changed\"}\n\n".to_owned()).unwrap();
    assert_eq!(desk.hear().await["method"], "notifications/tools/list_changed");
    let get = desk.seen.lock().iter().find(|seen| seen.method == Method::GET).cloned().unwrap();
    assert_eq!((get.header("accept"), get.header("mcp-session-id")), (Some("text/event-stream"), Some("s1")));
    desk.close().await;
}

#[tokio::test]
async fn a_request_of_the_server_is_answered_through_the_bridge() {
    let opened = AtomicUsize::new(0);
    let (chunks, answering) = stream();
    let answering = Mutex::new(Some(answering));
    let after = chunks.clone();
    let mut desk = Desk::new(move |seen| {
        if seen.rpc() == "tools/call" {
            return answering.lock().take().unwrap();
        }
        if seen.body["result"]["action"] == "accept" {
            after.send("data: {\"jsonrpc\":\"2.0\",\"id\":1,\"result\":{}}\n\n".to_owned()).unwrap();
            return accepted();
        }
        sessions(seen, &opened).unwrap()
    })
    .await;
    desk.ask(&initialize()).await;
    desk.say(&initialized()).await;
    desk.say(&request(1, "tools/call")).await;
    chunks.send("data: {\"jsonrpc\":\"2.0\",\"id\":0,\"method\":\"elicitation/create\"}\n\n".to_owned()).unwrap();
    assert_eq!(desk.hear().await["method"], "elicitation/create");
    let answer = desk.ask(&json!({"jsonrpc": "2.0", "id": 0, "result": {"action": "accept"}})).await;
    assert_eq!(answer, json!({"jsonrpc": "2.0", "id": 1, "result": {}}));
    drop(chunks);
    desk.close().await;
}

#[tokio::test]
async fn a_cancellation_in_a_session_is_passed_on_and_ends_the_wait() {
    let opened = AtomicUsize::new(0);
    let (chunks, answering) = stream();
    let answering = Mutex::new(Some(answering));
    let mut desk = Desk::new(move |seen| match seen.rpc() {
        "tools/call" => answering.lock().take().unwrap(),
        "notifications/cancelled" => accepted(),
        _ => sessions(seen, &opened).unwrap_or_else(|| result(seen, json!({}))),
    })
    .await;
    desk.ask(&initialize()).await;
    desk.say(&initialized()).await;
    desk.say(&request(1, "tools/call")).await;
    desk.until("the call", |seen| seen.iter().any(|seen| seen.rpc() == "tools/call")).await;
    let cancel = json!({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 1}});
    desk.say(&cancel).await;
    desk.until("the cancellation", |seen| seen.iter().any(|seen| seen.body == cancel)).await;
    tokio::time::timeout(PATIENCE, chunks.closed()).await.expect("the stream is closed");
    assert_eq!(desk.ask(&request(2, "tools/list")).await["id"], 2);
    desk.close().await;
}

// === the stateless revision ===

#[tokio::test]
async fn the_stateless_revision_has_headers_and_no_session() {
    let mut desk = Desk::new(|seen| {
        let mut answer = result(seen, json!({}));
        answer.headers_mut().insert("mcp-session-id", "never".parse().unwrap());
        answer
    })
    .await;
    desk.ask(&modern(1, "server/discover")).await;
    desk.ask(&modern(2, "tools/call")).await;
    let seen = desk.close().await;
    let headers = |name: &str| seen.iter().map(|seen| seen.header(name).map(str::to_owned)).collect::<Vec<_>>();
    let both = |text: &str| vec![Some(text.to_owned()), Some(text.to_owned())];
    assert_eq!(headers("mcp-protocol-version"), both("2026-07-28"));
    assert_eq!(headers("mcp-method"), [Some("server/discover".to_owned()), Some("tools/call".to_owned())]);
    assert_eq!(headers("mcp-name"), [None, Some("run_agent".to_owned())]);
    assert_eq!(headers("mcp-session-id"), [None, None]);
    assert_eq!(headers("accept"), both("application/json, text/event-stream"));
}

#[tokio::test]
async fn a_cancellation_of_the_stateless_revision_closes_the_stream() {
    let (chunks, answering) = stream();
    let answering = Mutex::new(Some(answering));
    let mut desk = Desk::new(move |seen| answering.lock().take().unwrap_or_else(|| result(seen, json!({})))).await;
    desk.say(&modern(7, "tools/call")).await;
    chunks.send("data: {\"jsonrpc\":\"2.0\",\"method\":\"notifications/progress\"}\n\n".to_owned()).unwrap();
    assert_eq!(desk.hear().await["method"], "notifications/progress");
    desk.say(&json!({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 7}})).await;
    tokio::time::timeout(PATIENCE, chunks.closed()).await.expect("the stream is closed");
    assert_eq!(desk.ask(&modern(8, "tools/list")).await["id"], 8, "no answer to the cancelled call");
    let seen = desk.close().await;
    assert!(seen.iter().all(|seen| seen.rpc() != "notifications/cancelled"), "{seen:?}");
}

#[tokio::test]
async fn the_end_of_the_client_closes_what_is_under_way() {
    let (chunks, answering) = stream();
    let answering = Mutex::new(Some(answering));
    let mut desk = Desk::new(move |_| answering.lock().take().unwrap()).await;
    desk.say(&modern(1, "subscriptions/listen")).await;
    chunks
        .send("data: {\"jsonrpc\":\"2.0\",\"method\":\"notifications/subscriptions/acknowledged\"}\n\n".into())
        .unwrap();
    desk.hear().await;
    desk.close().await;
    tokio::time::timeout(PATIENCE, chunks.closed()).await.expect("the stream is closed");
}

// === what goes wrong ===

#[tokio::test]
async fn every_request_is_answered_when_there_is_nothing_to_pass_on() {
    for (answer, reason) in [
        (("401", "application/problem+json", r#"{"detail":"no","code":"unauthenticated"}"#), "unauthenticated"),
        (("403", "text/plain", "Forbidden: Host header is not allowed"), "forbidden"),
        (("404", "text/html", "<html>"), "not_found"),
        (("502", "text/html", "<html>"), "refused"),
        (("200", "text/html", "<html>"), "invalid_answer"),
        (("200", "application/json", ""), "invalid_answer"),
        (("200", "text/event-stream", "data: {\"jsonrpc\":\"2.0\",\"method\":\"x\"}\n\n"), "broken"),
    ] {
        let (status, content_type, body) = answer;
        let mut desk = Desk::new(move |_| reply(status.parse().unwrap(), content_type, body)).await;
        let mut heard = desk.ask(&modern(5, "tools/call")).await;
        if heard["method"] == "x" {
            heard = desk.hear().await;
        }
        let error = &heard["error"];
        let told = (&heard["id"], &error["code"], error["data"]["reason"].as_str());
        assert_eq!(told, (&json!(5), &json!(-32603), Some(reason)), "{heard}");
        let message = error["message"].as_str().unwrap();
        assert!(message.contains("http://127.0.0.1:") && message.contains("What to do: "), "{message}");
        desk.close().await;
    }
}

#[tokio::test]
async fn a_server_that_is_not_there_is_named() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let link = Link::new(&format!("http://{}/mcp", listener.local_addr().unwrap()), Token::Absent).unwrap();
    drop(listener);
    let mut output = Vec::new();
    let input = format!("{}\n", modern(1, "server/discover"));
    relay::run(&link, input.as_bytes(), &mut output, std::future::pending()).await.unwrap();
    let answer: Value = serde_json::from_slice(&output).unwrap();
    let message = answer["error"]["message"].as_str().unwrap();
    assert!(message.contains("cannot be reached: Connection refused"), "{message}");
    assert!(message.contains("check that the gateway runs"), "{message}");
}

#[tokio::test]
async fn errors_of_the_protocol_pass_as_they_are() {
    let mismatch = r#"{"jsonrpc":"2.0","id":5,"error":{"code":-32020,"message":"header mismatch"}}"#;
    let mut desk = Desk::new(move |_| reply(400, "application/json", mismatch)).await;
    assert_eq!(desk.ask(&modern(5, "tools/call")).await, serde_json::from_str::<Value>(mismatch).unwrap());
    desk.close().await;
    let nobody = r#"{"jsonrpc":"2.0","id":null,"error":{"code":-32600,"message":"batches"}}"#;
    let mut desk = Desk::new(move |_| reply(400, "application/json", nobody)).await;
    assert_eq!(desk.ask(&modern(5, "tools/call")).await["id"], 5, "the id is put back");
    desk.write("[{]\n").await;
    assert_eq!(desk.hear().await, serde_json::from_str::<Value>(nobody).unwrap());
    desk.close().await;
}

#[tokio::test]
async fn a_refused_token_is_read_again_from_its_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("token");
    std::fs::write(&path, "old").unwrap();
    let time = std::fs::metadata(&path).unwrap().modified().unwrap();
    let rewritten = path.clone();
    let mut desk = Desk::with(Token::from(Some(&path)).unwrap(), move |seen| {
        if seen.header("authorization") == Some("Bearer new") {
            return result(seen, json!({}));
        }
        // As if written within the same tick: neither time nor length tells.
        std::fs::write(&rewritten, "new").unwrap();
        std::fs::File::options().write(true).open(&rewritten).unwrap().set_modified(time).unwrap();
        reply(401, "application/problem+json", "{}")
    })
    .await;
    assert_eq!(desk.ask(&modern(1, "tools/list")).await["result"], json!({}));
    let shown: Vec<_> = desk.close().await.iter().map(|seen| seen.header("authorization").map(str::to_owned)).collect();
    assert_eq!(shown, [Some("Bearer old".to_owned()), Some("Bearer new".to_owned())]);
}

#[tokio::test]
async fn a_missing_token_file_is_an_answer_too() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("token");
    let mut desk = Desk::with(Token::from(Some(&path)).unwrap(), |seen| result(seen, json!({}))).await;
    let answer = desk.ask(&modern(1, "tools/list")).await;
    assert!(answer["error"]["message"].as_str().unwrap().contains("the token file"), "{answer}");
    std::fs::write(&path, "there").unwrap();
    assert_eq!(desk.ask(&modern(2, "tools/list")).await["result"], json!({}));
    assert_eq!(desk.close().await.len(), 1, "nothing was sent without the token");
}

#[test]
fn a_url_that_cannot_be_one_is_refused() {
    for (url, reason) in [
        ("gateway", "relative URL without a base"),
        ("ftp://gateway/mcp", "the scheme must be http or https"),
        ("http://user:pass@gateway/mcp", "credentials are not allowed in it"),
    ] {
        let error = Link::new(url, Token::Absent).err().unwrap();
        assert!(error.contains(reason) && !error.contains("pass@"), "{error}");
    }
}
