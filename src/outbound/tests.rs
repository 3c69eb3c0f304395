//! Proves the client against scripted servers on loopback sockets: reuse, failures, streaming, disconnects.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join;
use http::{Method, Request};
use http_body::{Body, Frame};
use http_body_util::BodyExt as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot};

use super::*;

mod fetch;
mod streams;

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

async fn listen() -> (TcpListener, Origin) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let origin = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
    (listener, origin)
}

fn client() -> Client {
    Client::new(Settings::default())
}

fn get(path: &str) -> Request<RequestBody> {
    Request::get(path).body(empty()).unwrap()
}

fn fresh() -> SendOptions {
    SendOptions { freshness: Freshness::Fresh, ..SendOptions::default() }
}

async fn accept(listener: &TcpListener) -> TcpStream {
    listener.accept().await.unwrap().0
}

/// Reads one request head.
async fn read_head<S: tokio::io::AsyncRead + Unpin>(socket: &mut S) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(socket.read_u8().await.expect("a request head"));
    }
    String::from_utf8(head).unwrap()
}

/// Answers one request on the socket.
async fn answer(socket: &mut TcpStream, response: &str) -> String {
    let head = read_head(socket).await;
    socket.write_all(response.as_bytes()).await.unwrap();
    head
}

/// Answers one request on a new connection.
async fn accept_and_answer(listener: &TcpListener, response: &str) -> TcpStream {
    let mut socket = accept(listener).await;
    answer(&mut socket, response).await;
    socket
}

async fn text(response: Response<ResponseBody>) -> Result<String, BodyError> {
    let bytes = response.into_body().collect().await?.to_bytes();
    Ok(String::from_utf8(bytes.to_vec()).unwrap())
}

async fn ask(client: &Client, origin: &Origin) -> Result<String, SendError> {
    let response = client.send(origin, get("/"), &SendOptions::default()).await?;
    Ok(text(response).await.unwrap())
}

/// A request body fed by a channel.
struct Fed(mpsc::Receiver<Result<&'static str, BodyError>>);

impl Body for Fed {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        self.0
            .poll_recv(cx)
            .map(|fed| fed.map(|chunk| chunk.map(|text| Frame::data(Bytes::from_static(text.as_bytes())))))
    }
}

#[tokio::test]
async fn connection_is_reused_and_names_its_host() {
    let (listener, origin) = listen().await;
    let client = client();
    let server = async {
        let mut socket = accept(&listener).await;
        let mut heads = VecDeque::new();
        for _ in 0..3 {
            heads.push_back(answer(&mut socket, OK).await);
        }
        (heads, socket)
    };
    let asks = async {
        for _ in 0..3 {
            assert_eq!(ask(&client, &origin).await.unwrap(), "ok");
        }
    };
    let ((heads, _socket), ()) = join(server, asks).await;
    assert_eq!(heads[0], format!("GET / HTTP/1.1\r\nhost: 127.0.0.1:{}\r\n\r\n", origin.port));
    assert_eq!(client.idle_connections(&origin), 1);
}

#[tokio::test]
async fn a_peer_that_restarted_is_asked_once_its_dead_connections_are_used_up() {
    // A task's budget is spent on the dead ones (tokio's is 128 a run): the request goes on all the same.
    const IDLE: usize = 64;
    let (listener, origin) = listen().await;
    let client = client();
    let server = async {
        let mut sockets = Vec::new();
        for _ in 0..IDLE {
            sockets.push(accept(&listener).await);
        }
        for socket in &mut sockets {
            answer(socket, OK).await;
        }
        sockets
    };
    // Each in a task of its own, with its own budget.
    let mut asks = tokio::task::JoinSet::new();
    for _ in 0..IDLE {
        let (client, origin) = (client.clone(), origin.clone());
        asks.spawn(async move { ask(&client, &origin).await });
    }
    let (answers, sockets) = join(asks.join_all(), server).await;
    assert!(answers.iter().all(Result::is_ok));
    assert_eq!(client.idle_connections(&origin), IDLE);
    drop(sockets);
    tokio::time::sleep(Duration::from_millis(50)).await;
    let restarted = async {
        let mut socket = accept(&listener).await;
        let head = read_head(&mut socket).await;
        let mut chunk = [0; b"3\r\nfed\r\n".len()];
        socket.read_exact(&mut chunk).await.unwrap();
        socket.write_all(OK.as_bytes()).await.unwrap();
        (head, chunk)
    };
    let (feed, fed) = mpsc::channel(1);
    feed.send(Ok("fed")).await.unwrap();
    drop(feed);
    let request = Request::post("/").body(Fed(fed).boxed_unsync()).unwrap();
    let asked = async { text(client.send(&origin, request, &SendOptions::default()).await.unwrap()).await.unwrap() };
    let ((head, chunk), answered) = join(restarted, asked).await;
    assert!(head.starts_with("POST / "), "{head}");
    assert_eq!((&chunk, &*answered), (b"3\r\nfed\r\n", "ok"));
}

#[tokio::test]
async fn bytes_that_nobody_asked_for_answer_nobody() {
    let (listener, origin) = listen().await;
    let client = client();
    let server = async {
        let mut socket = accept_and_answer(&listener, OK).await;
        let stray = "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nstray";
        socket.write_all(stray.as_bytes()).await.unwrap();
        (socket, accept_and_answer(&listener, OK).await)
    };
    let asks = async {
        assert_eq!(ask(&client, &origin).await.unwrap(), "ok");
        // What the peer sends meanwhile is there when the connection is taken.
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert_eq!(ask(&client, &origin).await.unwrap(), "ok");
    };
    let (_sockets, ()) = join(server, asks).await;
}

#[tokio::test]
async fn clean_ends_pool_and_others_do_not() {
    for (response, pooled) in [
        (OK, 1),
        ("HTTP/1.1 204 No Content\r\n\r\n", 1),
        ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", 1),
        ("HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n", 1),
        ("HTTP/1.1 500 Internal Server Error\r\ncontent-length: 2\r\n\r\nno", 0),
        ("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok", 0),
        // More bytes than the declared length: whose answer would they be?
        ("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nokHTTP/1.1 200 OK\r\n\r\n", 0),
    ] {
        let (listener, origin) = listen().await;
        let client = client();
        let (_socket, _) = join(accept_and_answer(&listener, response), ask(&client, &origin)).await;
        assert_eq!(client.idle_connections(&origin), pooled, "{response}");
    }
}

#[tokio::test]
async fn body_read_to_its_length_returns_the_connection() {
    let (listener, origin) = listen().await;
    let client = client();
    let server = accept_and_answer(&listener, OK);
    let reader = async {
        let mut body = client.send(&origin, get("/"), &SendOptions::default()).await.unwrap().into_body();
        assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "ok");
        assert!(body.is_end_stream());
    };
    let (_socket, ()) = join(server, reader).await;
    assert_eq!(client.idle_connections(&origin), 1);
}

#[tokio::test]
async fn idle_connection_closed_by_the_peer_is_replaced() {
    let (listener, origin) = listen().await;
    let client = client();
    let (closed, is_closed) = oneshot::channel();
    let server = async {
        drop(accept_and_answer(&listener, OK).await);
        closed.send(()).unwrap();
        accept_and_answer(&listener, OK).await;
    };
    let asks = async {
        assert_eq!(ask(&client, &origin).await.unwrap(), "ok");
        is_closed.await.unwrap();
        // Lets the runtime learn of the close, as it does between any two requests of real traffic.
        tokio::time::timeout(Duration::from_millis(20), std::future::pending::<()>()).await.unwrap_err();
        assert_eq!(ask(&client, &origin).await.unwrap(), "ok");
    };
    join(server, asks).await;
}

#[tokio::test]
async fn connections_idle_too_long_are_not_used() {
    let (listener, origin) = listen().await;
    let client = Client::new(Settings { idle_timeout: Duration::ZERO, ..Settings::default() });
    let server = async {
        let _first = accept_and_answer(&listener, OK).await;
        accept_and_answer(&listener, OK).await;
    };
    join(server, async {
        ask(&client, &origin).await.unwrap();
        ask(&client, &origin).await.unwrap();
    })
    .await;
    client.prune();
    assert_eq!(client.idle_connections(&origin), 0);
}

#[tokio::test]
async fn idle_connections_are_bounded() {
    let (listener, origin) = listen().await;
    let client = Client::new(Settings { idle_max_per_origin: 1, ..Settings::default() });
    let server = async {
        let (mut a, mut b) = (accept(&listener).await, accept(&listener).await);
        join(answer(&mut a, OK), answer(&mut b, OK)).await;
        (a, b)
    };
    let (_sockets, _) = join(server, join(ask(&client, &origin), ask(&client, &origin))).await;
    assert_eq!(client.idle_connections(&origin), 1);
}

#[tokio::test]
async fn fresh_send_leaves_idle_connections_alone() {
    let (listener, origin) = listen().await;
    let client = client();
    let server = async { (accept_and_answer(&listener, OK).await, accept_and_answer(&listener, OK).await) };
    let asks = async {
        ask(&client, &origin).await.unwrap();
        text(client.send(&origin, get("/"), &fresh()).await.unwrap()).await.unwrap();
    };
    let (_sockets, ()) = join(server, asks).await;
    assert_eq!(client.idle_connections(&origin), 2);
}

#[tokio::test]
async fn reset_before_a_response_says_whether_the_connection_was_reused() {
    for reused in [false, true] {
        let (listener, origin) = listen().await;
        let client = client();
        let server = async {
            let mut socket = accept(&listener).await;
            if reused {
                answer(&mut socket, OK).await;
            }
            read_head(&mut socket).await;
        };
        let asks = async {
            if reused {
                ask(&client, &origin).await.unwrap();
            }
            ask(&client, &origin).await.unwrap_err()
        };
        let ((), error) = join(server, asks).await;
        assert!(
            matches!(error, SendError::Reset { request_sent: Sent::Maybe, reused: r, .. } if r == reused),
            "{error:?}"
        );
        assert_eq!(error.retry(), Retry::Idempotent);
    }
}

#[tokio::test]
async fn refused_connect_gives_the_request_back() {
    let (listener, origin) = listen().await;
    drop(listener);
    let request = Request::post("/agents/a/runs").body(full("message=hi")).unwrap();
    let unsent = client().send_or_return(&origin, request, &SendOptions::default()).await.unwrap_err();
    assert!(matches!(unsent.error, SendError::Connect { .. }), "{:?}", unsent.error);
    assert!(unsent.error.retry() == Retry::Always);
    let request = unsent.request.unwrap();
    assert_eq!((request.method(), request.uri().path()), (&Method::POST, "/agents/a/runs"));
    assert_eq!(request.into_body().collect().await.unwrap().to_bytes(), "message=hi");
}

/// Answers every request on every connection with the path it asked for, until dropped.
async fn echo_paths(listener: TcpListener) {
    let mut connections = tokio::task::JoinSet::new();
    loop {
        let mut socket = accept(&listener).await;
        connections.spawn(async move {
            let mut head = Vec::new();
            while let Ok(byte) = socket.read_u8().await {
                head.push(byte);
                if head.ends_with(b"\r\n\r\n") {
                    let path = String::from_utf8(std::mem::take(&mut head)).unwrap();
                    let path = path.split(' ').nth(1).unwrap();
                    let answer = format!(
                        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n{:x}\r\n{path}\r\n0\r\n\r\n",
                        path.len()
                    );
                    socket.write_all(answer.as_bytes()).await.unwrap();
                }
            }
        });
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tasks_share_connections_and_each_gets_its_own_answer() {
    let (listener, origin) = listen().await;
    let client = Client::new(Settings { idle_max_per_origin: 8, ..Settings::default() });
    let mut tasks = tokio::task::JoinSet::new();
    let server = tasks.spawn(echo_paths(listener));
    for task in 0..16 {
        let (client, origin) = (client.clone(), origin.clone());
        tasks.spawn(async move {
            for round in 0..50 {
                let path = format!("/{task}/{round}");
                let response = client.send(&origin, get(&path), &SendOptions::default()).await.unwrap();
                // The body is read by another task than the one that sent.
                let mut reader = tokio::task::JoinSet::new();
                reader.spawn(text(response));
                assert_eq!(reader.join_next().await.unwrap().unwrap().unwrap(), path);
            }
        });
    }
    for _ in 0..16 {
        tasks.join_next().await.unwrap().unwrap();
    }
    server.abort();
    assert!((1..=8).contains(&client.idle_connections(&origin)));
}

fn https_fixture() -> (tokio_rustls::TlsAcceptor, Settings) {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let key = rustls::pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let config = rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    let settings = Settings { extra_roots: vec![made.cert.der().clone()], ..Settings::default() };
    (tokio_rustls::TlsAcceptor::from(Arc::new(config)), settings)
}

#[tokio::test]
async fn https_is_spoken_and_certificates_are_checked() {
    let (acceptor, settings) = https_fixture();
    let (listener, origin) = listen().await;
    let origin = Origin { tls: true, host: "localhost".into(), ..origin };
    let served = async {
        let mut socket = acceptor.accept(accept(&listener).await).await.unwrap();
        read_head(&mut socket).await;
        socket.write_all(OK.as_bytes()).await.unwrap();
        socket.flush().await.unwrap();
        socket
    };
    let trusting = Client::new(settings);
    let (_socket, said) = join(served, ask(&trusting, &origin)).await;
    assert_eq!(said.unwrap(), "ok");

    let refused = async { acceptor.accept(accept(&listener).await).await.err().map(drop) };
    let stranger = Client::new(Settings { extra_roots: https_fixture().1.extra_roots, ..Settings::default() });
    let (alerted, error) = join(refused, async { ask(&stranger, &origin).await.unwrap_err() }).await;
    assert!(alerted.is_some());
    assert!(matches!(error, SendError::Connect { .. }), "{error:?}");
}

#[test]
fn futures_and_bodies_can_move_between_threads() {
    fn is_send<T: Send>(_: &T) {}
    let (client, origin) = (client(), "http://127.0.0.1:1".parse().unwrap());
    let options = SendOptions::default();
    let send = client.send(&origin, get("/"), &options);
    is_send(&send);
    fn is_send_type<T: Send + Unpin>() {}
    is_send_type::<ResponseBody>();
    let _ = std::mem::size_of_val(&send);
    fn is_future<T: Future>(_: &T) {}
    is_future(&send);
}
