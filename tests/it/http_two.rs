//! Proves HTTP/2: by ALPN over TLS, by prior knowledge where configured, with the same rules as HTTP/1.1.

use std::sync::Arc;

use bytes::Bytes;
use http::{Request, Response, Version};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::ServerName;
use serde_json::json;
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::fake::{Event, Reply};
use crate::stack::{Settings, Stack, Who, within};

/// A gateway with a certificate of its own, and a client that trusts it.
async fn with_tls() -> (Stack, tempfile::TempDir, rustls::RootCertStore) {
    with_tls_and(|settings| settings).await
}

pub(crate) async fn with_tls_and(
    change: impl FnOnce(Settings) -> Settings,
) -> (Stack, tempfile::TempDir, rustls::RootCertStore) {
    let folder = tempfile::TempDir::new().unwrap();
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let (certificate, key) = (folder.path().join("c.pem"), folder.path().join("k.pem"));
    std::fs::write(&certificate, made.cert.pem()).unwrap();
    std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    let tls = format!("{{ certificate = {certificate:?}, key = {key:?} }}");
    let settings = Settings::new().set("[server]", "tls", &tls).set("[server]", "public_url", "\"https://localhost\"");
    let mut roots = rustls::RootCertStore::empty();
    roots.add(made.cert.der().clone()).unwrap();
    (Stack::with(change(settings)).await, folder, roots)
}

pub(crate) async fn tls(
    stack: &Stack,
    roots: rustls::RootCertStore,
    alpn: &[&[u8]],
) -> tokio_rustls::client::TlsStream<TcpStream> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let mut config = config.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    let stream = TcpStream::connect(stack.address()).await.unwrap();
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let name = ServerName::try_from("localhost").unwrap();
    within("a TLS handshake", connector.connect(name, stream)).await.unwrap()
}

type Sender = http2::SendRequest<Full<Bytes>>;

async fn speak<S>(stream: S) -> (Sender, JoinSet<()>)
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let (sender, connection) =
        within("a handshake", http2::handshake(TokioExecutor::new(), TokioIo::new(stream))).await.unwrap();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let _ = connection.await;
    });
    (sender, tasks)
}

fn request(method: &str, target: &str, body: &'static str) -> Request<Full<Bytes>> {
    let builder = Request::builder().method(method).uri(target).version(Version::HTTP_2);
    let builder = builder.header("authorization", format!("Bearer {}", Who::alice().token()));
    let builder =
        if body.is_empty() { builder } else { builder.header("content-type", "application/x-www-form-urlencoded") };
    builder.body(Full::new(Bytes::from_static(body.as_bytes()))).unwrap()
}

async fn send(sender: &mut Sender, request: Request<Full<Bytes>>) -> Response<Incoming> {
    within("a response", sender.send_request(request)).await.unwrap()
}

async fn text(response: Response<Incoming>) -> String {
    let body = within("a body", response.into_body().collect()).await.unwrap();
    String::from_utf8(body.to_bytes().to_vec()).unwrap()
}

#[tokio::test]
async fn http2_is_spoken_over_tls_where_the_client_offers_it() {
    let (stack, _folder, roots) = with_tls().await;
    let (mut sender, _tasks) = speak(tls(&stack, roots.clone(), &[b"h2", b"http/1.1"]).await).await;
    let response = send(&mut sender, request("GET", "https://localhost/agents", "")).await;
    assert_eq!((response.status().as_u16(), response.version()), (200, Version::HTTP_2));
    assert!(
        response.headers().contains_key("x-request-id") && !response.headers().contains_key("server"),
        "{response:?}"
    );
    assert!(text(response).await.contains("assistant"));
    let run = request("POST", "https://localhost/agents/assistant/runs", "message=hi&stream=false");
    assert!(text(send(&mut sender, run).await).await.contains("echo: hi"));
    let refused = send(&mut sender, request("PUT", "https://localhost/agents", "")).await;
    assert_eq!((refused.status().as_u16(), refused.headers()["allow"].to_str().unwrap()), (405, "GET"));

    // Without the offer it is HTTP/1.1.
    let stream = tls(&stack, roots, &[]).await;
    let (mut sender, connection) = http1::handshake::<_, Full<Bytes>>(TokioIo::new(stream)).await.unwrap();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let _ = connection.await;
    });
    let mut plain = request("GET", "/agents", "");
    *plain.version_mut() = Version::HTTP_11;
    plain.headers_mut().insert("host", "localhost".parse().unwrap());
    let response = within("a response", sender.send_request(plain)).await.unwrap();
    assert_eq!((response.status().as_u16(), response.version()), (200, Version::HTTP_11));
}

#[tokio::test]
async fn mcp_is_spoken_over_http2_where_the_host_is_in_the_target_alone() {
    const LIST: &str = r#"{"jsonrpc":"2.0","id":1,"method":"tools/list","params":{"_meta":{
        "io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientCapabilities":{}}}}"#;
    let (stack, _folder, roots) = with_tls().await;
    let (mut sender, _tasks) = speak(tls(&stack, roots, &[b"h2"]).await).await;
    for (host, status) in [("localhost", 200), ("elsewhere.example", 403)] {
        let mut list = request("POST", &format!("https://{host}/mcp"), LIST);
        let fields = [
            ("content-type", "application/json"),
            ("accept", "application/json, text/event-stream"),
            ("mcp-protocol-version", "2026-07-28"),
            ("mcp-method", "tools/list"),
        ];
        for (name, value) in fields {
            list.headers_mut().insert(name, value.parse().unwrap());
        }
        let response = send(&mut sender, list).await;
        assert_eq!(response.status().as_u16(), status, "{host}");
        assert_eq!(text(response).await.contains("run_agent"), status == 200, "{host}");
    }
}

#[tokio::test]
async fn mcp_without_any_host_is_refused() {
    let stack = Stack::start().await;
    let token = Who::alice().token();
    let head = format!(
        "POST /mcp HTTP/1.0\r\nConnection: close\r\nAuthorization: Bearer {token}\r\nContent-Type: application/json\r\n"
    );
    let accept = "Accept: application/json, text/event-stream\r\nContent-Length: 2\r\n\r\n{}";
    let answer = stack.raw_exchange(format!("{head}{accept}")).await;
    assert!(answer.contains(" 400 ") && answer.contains("Host"), "{answer}");
}

#[tokio::test]
async fn a_failed_handshake_is_counted() {
    let (stack, _folder, _roots) = with_tls().await;
    let mut raw = stack.raw().await;
    raw.write("GET /agents HTTP/1.1\r\nHost: a\r\n\r\n").await;
    let answer = raw.rest().await;
    assert!(!answer.contains("HTTP/1.1"), "{answer}");
    stack.wait_for_metric("tollbridge_heads_refused_total", &["reason=\"tls_handshake\""], 1.0).await;
    assert_eq!(stack.os().requests(), []);
}

#[tokio::test]
async fn http2_without_tls_is_spoken_only_where_it_is_configured() {
    let stack = Stack::with(Settings::new().set("[server]", "h2c", "true")).await;
    let (mut sender, _tasks) = speak(TcpStream::connect(stack.address()).await.unwrap()).await;
    let response = send(&mut sender, request("GET", "http://localhost/agents", "")).await;
    assert_eq!((response.status().as_u16(), response.version()), (200, Version::HTTP_2));
    // HTTP/1.1 goes on beside it.
    assert_eq!(stack.send(crate::stack::Ask::get("/agents").by(&Who::alice())).await.status, 200);

    let stack = Stack::start().await;
    let answer = stack.raw_exchange("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
}

#[tokio::test]
async fn streams_of_one_connection_do_not_wait_for_each_other() {
    let stack = Stack::with(Settings::new().set("[server]", "h2c", "true")).await;
    let (mut sender, _tasks) = speak(TcpStream::connect(stack.address()).await.unwrap()).await;
    let events = ["RunStarted", "RunCompleted"].map(|name| Event::new(name, json!({"run_id": "r", "session_id": "s"})));
    let (reply, gate) = Reply::paced_sse(&events);
    stack.os().script(reply);
    let mut slow = send(&mut sender, request("POST", "http://localhost/agents/assistant/runs", "message=hi")).await;
    gate.open_once();
    let first = within("an event", slow.body_mut().frame()).await.unwrap().unwrap();
    assert_eq!(first.into_data().unwrap(), events[0].to_wire());
    assert_eq!(send(&mut sender, request("GET", "http://localhost/agents", "")).await.status().as_u16(), 200);
    // A reset of one stream ends its run upstream; the connection lives on.
    drop(slow);
    stack.os().wait_for_abort("/agents/assistant/runs").await;
    assert_eq!(send(&mut sender, request("GET", "http://localhost/teams", "")).await.status().as_u16(), 200);
}

#[tokio::test]
async fn an_authority_that_contradicts_the_host_is_refused() {
    let stack = Stack::with(Settings::new().set("[server]", "h2c", "true")).await;
    let (mut sender, _tasks) = speak(TcpStream::connect(stack.address()).await.unwrap()).await;
    let mut odd = request("GET", "http://localhost/agents", "");
    odd.headers_mut().insert("host", "other".parse().unwrap());
    let response = send(&mut sender, odd).await;
    assert_eq!(response.status().as_u16(), 400);
    let body = text(response).await;
    assert!(body.is_empty() || body.contains("bad_head"), "{body}");
    assert_eq!(stack.os().requests(), []);
}

#[tokio::test]
async fn http2_that_never_begins_is_closed_at_the_deadline() {
    let (stack, _folder, roots) =
        with_tls_and(|settings| settings.set("[server.limits]", "header_timeout", "\"200ms\"")).await;
    for begun in [&b""[..], b"PRI * HTTP/2.0\r\n"] {
        let mut stream = tls(&stack, roots.clone(), &[b"h2"]).await;
        tokio::io::AsyncWriteExt::write_all(&mut stream, begun).await.unwrap();
        let mut rest = Vec::new();
        // Closed with or without a farewell.
        let _ = within("the end", tokio::io::AsyncReadExt::read_to_end(&mut stream, &mut rest)).await;
    }
    stack.wait_for_metric("tollbridge_heads_refused_total", &["reason=\"slow\""], 2.0).await;
}

/// What OpenSSL's client says about a handshake.
async fn s_client(stack: &Stack, arguments: &[&str]) -> (bool, String) {
    let mut command = tokio::process::Command::new("openssl");
    command.args(["s_client", "-connect", &stack.address().to_string(), "-servername", "localhost"]).args(arguments);
    command.stdin(std::process::Stdio::null()).kill_on_drop(true);
    let done = within("openssl", command.output()).await.unwrap();
    let said = format!("{}{}", String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
    (said.contains("Cipher is TLS_") || said.contains("Cipher is ECDHE"), said)
}

#[tokio::test]
async fn old_tls_and_weak_suites_are_refused() {
    let (stack, _folder, _roots) = with_tls().await;
    for good in [&["-tls1_2"][..], &["-tls1_3"]] {
        let (spoken, said) = s_client(&stack, good).await;
        assert!(spoken, "{good:?}: {said}");
        // No early data: a replayed request would be a second run.
        assert!(!said.contains("Max Early Data: 1") && !said.contains("Early data was accepted"), "{said}");
    }
    // The client is made to offer what is long out of use.
    for weak in [
        &["-tls1", "-cipher", "ALL:@SECLEVEL=0"][..],
        &["-tls1_1", "-cipher", "ALL:@SECLEVEL=0"],
        &["-tls1_2", "-cipher", "AES128-SHA:AES256-SHA256:@SECLEVEL=0"],
        &["-tls1_2", "-cipher", "ECDHE-ECDSA-AES128-SHA:ECDHE-ECDSA-AES256-SHA384:@SECLEVEL=0"],
        &["-tls1_2", "-cipher", "DHE-RSA-AES128-GCM-SHA256:@SECLEVEL=0"],
        &["-tls1_2", "-cipher", "aNULL:eNULL:@SECLEVEL=0"],
    ] {
        let (spoken, said) = s_client(&stack, weak).await;
        assert!(!spoken, "{weak:?}: {said}");
    }
    let (_, said) = s_client(&stack, &["-tls1_2", "-no_ticket", "-legacy_renegotiation"]).await;
    assert!(!said.contains("Compression: zlib"), "{said}");
    assert_eq!(stack.os().requests(), []);
}

#[tokio::test]
async fn a_client_certificate_is_asked_for_again_after_a_resumption() {
    let made = rcgen::generate_simple_self_signed(vec!["client".to_owned()]).unwrap();
    let authority = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(authority.path(), made.cert.pem()).unwrap();
    let ca = format!("client_ca = {:?}", authority.path());
    let (stack, _folder, _roots) = with_tls_and(|settings| settings.amend("[server]", "tls", &ca)).await;
    for version in ["-tls1_2", "-tls1_3"] {
        let session = tempfile::NamedTempFile::new().unwrap();
        let path = session.path().to_str().unwrap();
        // Without a certificate nothing is served, so no session comes about that could be resumed.
        let (_, said) = s_client(&stack, &[version, "-sess_out", path]).await;
        let (_, again) = s_client(&stack, &[version, "-sess_in", path]).await;
        assert!(!again.contains("Reused, TLS"), "{said}\n{again}");
    }
    assert_eq!(stack.os().requests(), []);
}

#[tokio::test]
async fn a_reader_of_http2_who_stops_reading_is_given_up() {
    let settings = Settings::new().set("[server]", "h2c", "true").set("[server.limits]", "write_timeout", "\"300ms\"");
    let stack = Stack::with(settings).await;
    let event = Event::new("RunContent", json!({"run_id": "r", "content": "x".repeat(16 << 10)}));
    stack.os().pin("POST", "/agents/assistant/runs", Reply::sse(&vec![event; 2000]));
    let (mut sender, _tasks) = speak(TcpStream::connect(stack.address()).await.unwrap()).await;
    let mut run = request("POST", "http://localhost/agents/assistant/runs", "message=hi");
    run.headers_mut().insert("x-request-id", "slow".parse().unwrap());
    // Nobody reads its body: the window closes, and then the deadline runs.
    let _unread = send(&mut sender, run).await;
    let line = stack.access_line("slow").await;
    assert_eq!(line["code"], "client_closed", "{line}");
    // Other streams of the connection go on.
    assert_eq!(send(&mut sender, request("GET", "http://localhost/agents", "")).await.status().as_u16(), 200);
}
