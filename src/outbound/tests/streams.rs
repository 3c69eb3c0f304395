//! Proves bodies in both directions: first bytes, disconnects, broken ends, silence, slow uploads.

use super::*;

#[tokio::test]
async fn first_byte_arrives_while_the_stream_goes_on() {
    let (listener, origin) = listen().await;
    let client = client();
    let (seen, was_seen) = oneshot::channel();
    let server = async {
        let mut socket = accept(&listener).await;
        answer(&mut socket, "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nfirst\r\n").await;
        was_seen.await.unwrap();
        socket.write_all(b"4\r\nlast\r\n0\r\n\r\n").await.unwrap();
        socket
    };
    let reader = async {
        let mut body = client.send(&origin, get("/"), &fresh()).await.unwrap().into_body();
        assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "first");
        seen.send(()).unwrap();
        assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "last");
        assert!(body.frame().await.is_none());
    };
    let (_socket, ()) = join(server, reader).await;
    assert_eq!(client.idle_connections(&origin), 1);
}

#[tokio::test]
async fn dropping_a_body_or_a_send_closes_the_socket() {
    for response in ["", "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nfirst\r\n"] {
        let (listener, origin) = listen().await;
        let client = client();
        let (asked, was_asked) = oneshot::channel();
        let server = async {
            let mut socket = accept(&listener).await;
            answer(&mut socket, response).await;
            asked.send(()).unwrap();
            socket.read(&mut [0; 16]).await.unwrap_or(0)
        };
        let reader = async {
            let options = fresh();
            let send = client.send(&origin, get("/"), &options);
            if response.is_empty() {
                tokio::select! { _ = send => unreachable!(), _ = was_asked => () }
            } else {
                send.await.unwrap().into_body().frame().await.unwrap().unwrap();
            }
        };
        assert_eq!(join(server, reader).await, (0, ()));
        assert_eq!(client.idle_connections(&origin), 0);
    }
}

#[tokio::test]
async fn truncated_bodies_are_errors() {
    for response in [
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nfirst\r\n",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n9\r\nfirst",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nxyz\r\nfirst\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nfirst",
    ] {
        let (listener, origin) = listen().await;
        let client = client();
        let server = async { answer(&mut accept(&listener).await, response).await };
        let (_, ended) =
            join(server, async { text(client.send(&origin, get("/"), &fresh()).await.unwrap()).await }).await;
        assert!(matches!(ended, Err(BodyError::Broken(_))), "{response}: {ended:?}");
        assert_eq!(client.idle_connections(&origin), 0);
    }
}

#[tokio::test]
async fn invalid_heads_are_refused() {
    let large = format!("HTTP/1.1 200 OK\r\nx: {}\r\n\r\n", "x".repeat(70_000));
    let many = format!("HTTP/1.1 200 OK\r\n{}\r\n", "x: y\r\n".repeat(129));
    for response in ["SSH-2.0-OpenSSH\r\n\r\n", &large, &many, "HTTP/1.1 101 Switching Protocols\r\n\r\n"] {
        let (listener, origin) = listen().await;
        let client = client();
        let server = async {
            let mut socket = accept(&listener).await;
            read_head(&mut socket).await;
            // The client may hang up in the middle.
            let _ = socket.write_all(response.as_bytes()).await;
        };
        let (_, error) = join(server, async { ask(&client, &origin).await.expect_err(response) }).await;
        assert!(matches!(error, SendError::InvalidResponse(_)), "{response:.40}: {error:?}");
        assert_eq!(error.retry(), Retry::Never);
    }
}

#[tokio::test]
async fn silent_peer_meets_the_header_timeout() {
    let (listener, origin) = listen().await;
    let client = client();
    let limit = Duration::from_millis(30);
    let options = SendOptions { header_timeout: limit, ..fresh() };
    let server = async {
        let mut socket = accept(&listener).await;
        read_head(&mut socket).await;
        socket.read(&mut [0; 1]).await.unwrap_or(0)
    };
    let (rest, error) = join(server, async { client.send(&origin, get("/"), &options).await.unwrap_err() }).await;
    assert!(matches!(error, SendError::HeaderTimeout(l) if l == limit), "{error:?}");
    assert_eq!(rest, 0, "the peer sees the disconnect");
}

#[tokio::test]
async fn silent_stream_meets_its_idle_timeout() {
    let (listener, origin) = listen().await;
    let client = client();
    let limit = Duration::from_millis(30);
    let server = async {
        let mut socket = accept(&listener).await;
        answer(&mut socket, "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nfirst\r\n").await;
        socket.read(&mut [0; 1]).await.unwrap_or(0)
    };
    let reader = async {
        let body = client.send(&origin, get("/"), &fresh()).await.unwrap().into_body();
        let mut body = body.with_idle_timeout(limit);
        assert!(body.frame().await.unwrap().is_ok());
        let error = body.frame().await.unwrap().unwrap_err();
        assert!(matches!(error, BodyError::IdleTimeout(l) if l == limit), "{error:?}");
        assert!(body.frame().await.is_none());
        assert_eq!(error.to_string(), "no byte came for 30ms");
    };
    // The body is still alive here: the timeout itself closed the socket.
    assert_eq!(join(server, reader).await, (0, ()));
}

#[tokio::test]
async fn upload_goes_on_after_an_early_response() {
    let (listener, origin) = listen().await;
    let client = client();
    let (feed, fed) = mpsc::channel(1);
    let server = async {
        let mut socket = accept(&listener).await;
        answer(&mut socket, "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nearly\r\n").await;
        let mut upload = Vec::new();
        while !upload.ends_with(b"0\r\n\r\n") {
            upload.push(socket.read_u8().await.unwrap());
        }
        socket.write_all(b"0\r\n\r\n").await.unwrap();
        (socket, upload)
    };
    let uploader = async {
        let request = Request::post("/").body(Fed(fed).boxed_unsync()).unwrap();
        let mut body = client.send(&origin, request, &fresh()).await.unwrap().into_body();
        assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "early");
        let feeding = async {
            for part in ["one", "two"] {
                feed.send(Ok(part)).await.unwrap();
            }
            drop(feed);
        };
        let (rest, ()) = join(body.frame(), feeding).await;
        assert!(rest.is_none());
    };
    let ((_socket, upload), ()) = join(server, uploader).await;
    assert_eq!(upload, b"3\r\none\r\n3\r\ntwo\r\n0\r\n\r\n");
    assert_eq!(client.idle_connections(&origin), 1);
}

#[tokio::test]
async fn failing_producer_is_told_apart_from_a_failing_peer() {
    let (listener, origin) = listen().await;
    let client = client();
    let (feed, fed) = mpsc::channel(2);
    let server = async {
        let mut socket = accept(&listener).await;
        let mut rest = Vec::new();
        socket.read_to_end(&mut rest).await.unwrap();
        assert!(!rest.ends_with(b"0\r\n\r\n"), "a failed upload must not look complete");
    };
    let uploader = async {
        feed.send(Ok("part")).await.unwrap();
        feed.send(Err(BodyError::Producer("caller went away".into()))).await.unwrap();
        let request = Request::post("/").body(Fed(fed).boxed_unsync()).unwrap();
        client.send(&origin, request, &fresh()).await.unwrap_err()
    };
    let ((), error) = join(server, uploader).await;
    assert!(
        matches!(&error, SendError::BodyFailed(BodyError::Producer(reason)) if reason == "caller went away"),
        "{error:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn slow_upload_does_not_meet_the_header_timeout() {
    let (listener, origin) = listen().await;
    let client = client();
    let (feed, fed) = mpsc::channel(1);
    let server = async {
        let mut socket = accept(&listener).await;
        let mut upload = Vec::new();
        while !upload.ends_with(b"0\r\n\r\n") {
            upload.push(socket.read_u8().await.unwrap());
        }
        socket.write_all(OK.as_bytes()).await.unwrap();
        socket
    };
    let feeding = async {
        for _ in 0..5 {
            tokio::time::timeout(Duration::from_secs(30), std::future::pending::<()>()).await.unwrap_err();
            feed.send(Ok("part")).await.unwrap();
        }
        drop(feed);
    };
    let options = SendOptions { header_timeout: Duration::from_secs(40), ..fresh() };
    let request = Request::post("/").body(Fed(fed).boxed_unsync()).unwrap();
    let uploader = async { text(client.send(&origin, request, &options).await.unwrap()).await.unwrap() };
    let (_socket, (said, ())) = join(server, join(uploader, feeding)).await;
    assert_eq!(said, "ok");
}
