//! Proves `fetch`: one deadline, one byte limit, no redirects, no doubtful URLs.

use super::*;

async fn fetched(response: &'static str, options: FetchOptions) -> Result<Fetched, FetchError> {
    let (listener, origin) = listen().await;
    let client = client();
    let server = async {
        let mut socket = accept(&listener).await;
        assert!(answer(&mut socket, response).await.starts_with("GET /keys?v=1 HTTP/1.1\r\n"));
        let _ = socket.read(&mut [0; 1]).await;
    };
    let url = format!("{origin}/keys?v=1");
    tokio::select! {
        fetched = client.fetch(&url, &options) => fetched,
        () = server => unreachable!("the client hangs up last"),
    }
}

#[tokio::test]
async fn fetch_is_bounded_and_follows_nothing() {
    let small = || FetchOptions { bytes_max: 2, ..FetchOptions::default() };
    assert_eq!(fetched(OK, small()).await.unwrap(), Fetched { status: 200, body: Bytes::from_static(b"ok") });
    let moved = "HTTP/1.1 302 Found\r\nlocation: http://169.254.169.254/\r\ncontent-length: 0\r\n\r\n";
    assert_eq!(fetched(moved, small()).await.unwrap(), Fetched { status: 302, body: Bytes::new() });

    let large = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n";
    assert!(matches!(fetched(large, small()).await.unwrap_err(), FetchError::TooLarge(2)));
    let slow = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\no";
    let hasty = FetchOptions { deadline: Duration::from_millis(30), ..FetchOptions::default() };
    assert!(matches!(fetched(slow, hasty).await.unwrap_err(), FetchError::Deadline(_)));
}

#[tokio::test]
async fn fetch_refuses_urls_it_cannot_mean() {
    for url in ["", "/keys", "file:///etc/passwd", "http://user:pass@a/keys", "http://"] {
        let refused = client().fetch(url, &FetchOptions::default()).await.unwrap_err();
        assert!(matches!(refused, FetchError::BadUrl(_)), "{url}: {refused:?}");
    }
}
