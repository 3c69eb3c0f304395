//! Proves what becomes of request bodies: written anew with our own identity fields, refused when ambiguous, streamed
//! when large.

use std::collections::BTreeMap;

use serde_json::json;

use crate::fake::Reply;
use crate::stack::{Ask, Settings, Stack, Who};

const MULTIPART: &str = "multipart/form-data; boundary=b";

/// One part of a form with boundary `b`.
fn part(disposition: &str, value: &str) -> String {
    format!("--b\r\nContent-Disposition: form-data; {disposition}\r\n\r\n{value}\r\n")
}

fn field(name: &str, value: &str) -> String {
    part(&format!("name=\"{name}\""), value)
}

fn file(name: &str, value: &str) -> String {
    part(&format!("name=\"{name}\"; filename=\"f.txt\""), value)
}

fn form(parts: &[String]) -> String {
    format!("{}--b--\r\n", parts.concat())
}

#[tokio::test]
async fn a_form_reaches_upstream_with_our_own_ids() {
    let stack = Stack::start().await;
    let theirs = [("message", "hi & <there>\r\n"), ("stream", "false"), ("user_id", "globex~eve")];
    let multipart = form(&theirs.map(|(name, value)| field(name, value)));
    let urlencoded = url::form_urlencoded::Serializer::new(String::new()).extend_pairs(theirs).finish();
    for (what, kind, body) in [
        ("multipart", MULTIPART, multipart),
        ("urlencoded", "application/x-www-form-urlencoded", urlencoded),
        (
            "parameters",
            "application/x-www-form-urlencoded; charset=UTF-8",
            "message=hi+%26+%3Cthere%3E%0D%0A&stream=false".into(),
        ),
    ] {
        let before = stack.os().requests().len();
        let got = stack.send(Ask::run("assistant").body(kind, body).by(&Who::alice())).await;
        assert_eq!(got.status, 200, "{what}: {got:?}");
        let seen = &stack.os().requests()[before..];
        assert_eq!(seen.len(), 1, "{what}");
        let form = seen[0].form();
        let run_id = got.json()["run_id"].as_str().unwrap().to_owned();
        let expected: BTreeMap<&str, &str> = [
            ("message", "hi & <there>\r\n"),
            ("stream", "false"),
            ("user_id", "acme~alice"),
            ("run_id", &run_id),
            ("knowledge_filters", r#"{"tenant":"acme"}"#),
        ]
        .into();
        assert_eq!(form.0.len(), expected.len(), "{what}: {form:?}");
        assert_eq!(form.to_map(), expected, "{what}");
        assert_eq!(uuid::Uuid::parse_str(&run_id).unwrap().get_version_num(), 8, "{what}");
    }
}

#[tokio::test]
async fn bodies_that_can_be_read_two_ways_never_reach_upstream() {
    let stack = Stack::start().await;
    let hi = || field("message", "hi");
    let form_cases = [
        ("duplicate", form(&[hi(), hi()]), "field_duplicated"),
        ("two user ids", form(&[hi(), field("user_id", "a"), field("user_id", "b")]), "field_duplicated"),
        ("unknown field", form(&[hi(), field("debug_mode", "true")]), "field_not_allowed"),
        ("our run id", form(&[hi(), field("run_id", "r")]), "field_not_allowed"),
        ("array notation", form(&[hi(), field("user_id[]", "eve")]), "field_not_allowed"),
        ("a file as a text field", form(&[hi(), file("user_id", "eve")]), "field_not_allowed"),
        ("the session as a file", form(&[hi(), file("session_id", "theirs")]), "field_not_allowed"),
        ("no end", hi(), "form_malformed"),
        ("truncated", "--b\r\nContent-Disposition: form-data; name=\"mess".into(), "form_malformed"),
        ("epilogue", format!("{}--b\r\n", form(&[hi()])), "form_malformed"),
        ("preamble", format!("x\r\n{}", form(&[hi()])), "form_malformed"),
        ("line feeds only", form(&[hi()]).replace("\r\n", "\n"), "form_malformed"),
        ("two names", form(&[part("name=\"message\"; name=\"user_id\"", "x")]), "form_malformed"),
        ("extended name", form(&[part("name*=utf-8''message", "x")]), "form_malformed"),
        ("a path in a file name", form(&[hi(), part("name=\"files\"; filename=\"../../x\"", "x")]), "form_malformed"),
        ("a NUL in a name", form(&[part("name=\"mes\0sage\"", "x")]), "form_malformed"),
    ];
    for (what, body, code) in form_cases {
        let got = stack.send(Ask::run("assistant").body(MULTIPART, body).by(&Who::alice())).await;
        assert_eq!((got.status, got.code()), (400, code.to_owned()), "{what}: {got:?}");
    }
    let json_cases = [
        ("duplicate", r#"{"query":"a","query":"b"}"#, 400, "field_duplicated"),
        ("escaped duplicate", r#"{"query":"a","\u0071uery":"b"}"#, 400, "field_duplicated"),
        ("unknown field", r#"{"query":"a","user_id":"eve"}"#, 400, "field_not_allowed"),
        ("trailing garbage", r#"{"query":"a"}{}"#, 400, "form_malformed"),
        ("byte order mark", "\u{feff}{\"query\":\"a\"}", 400, "form_malformed"),
        ("not a number", r#"{"query":NaN}"#, 400, "form_malformed"),
        ("an array", r#"[{"query":"a"}]"#, 400, "form_malformed"),
        ("a filter that is no object", r#"{"query":"a","filters":[]}"#, 400, "field_not_allowed"),
    ];
    for (what, body, status, code) in json_cases {
        let ask = Ask::post("/knowledge/search").body("application/json", body).by(&Who::alice());
        let got = stack.send(ask).await;
        assert_eq!((got.status, got.code()), (status, code.to_owned()), "{what}: {got:?}");
    }
    let type_cases = [
        ("JSON for a run", Ask::run("assistant").json(&json!({"message": "hi"}))),
        ("no type", Ask::run("assistant").body("", "message=hi")),
        ("mixed", Ask::run("assistant").body("multipart/mixed; boundary=b", form(&[hi()]))),
        ("a form for a search", Ask::post("/knowledge/search").field("query", "a")),
        ("text for a search", Ask::post("/knowledge/search").body("text/plain", r#"{"query":"a"}"#)),
        ("gzip", Ask::post("/knowledge/search").json(&json!({"query": "a"})).header("content-encoding", "gzip")),
    ];
    for (what, ask) in type_cases {
        let got = stack.send(ask.by(&Who::alice())).await;
        assert_eq!((got.status, got.code()), (415, "media_type_unsupported".to_owned()), "{what}: {got:?}");
    }
    let boundaries =
        ["multipart/form-data", "multipart/form-data; boundary=b; boundary=c", "multipart/form-data; boundary="];
    for kind in boundaries {
        let got = stack.send(Ask::run("assistant").body(kind, form(&[hi()])).by(&Who::alice())).await;
        assert_eq!((got.status, got.code()), (400, "form_malformed".to_owned()), "{kind}: {got:?}");
    }
    assert_eq!(stack.os().requests(), []);
}

#[tokio::test]
async fn identity_in_the_query_is_ours_and_twice_is_refused() {
    let stack = Stack::start().await;
    let alice = Who::alice();
    assert_eq!(stack.send(Ask::get("/sessions?user_id=globex~eve&limit=5").by(&alice)).await.status, 200);
    assert_eq!(stack.send(Ask::get("/sessions?user%5Fid=globex~eve").by(&alice)).await.status, 200);
    let users: Vec<Vec<(String, String)>> = stack
        .os()
        .requests_to("/sessions")
        .iter()
        .map(|seen| {
            let pairs = url::form_urlencoded::parse(seen.query().as_bytes()).into_owned();
            pairs.filter(|(name, _)| name == "user_id").collect()
        })
        .collect();
    let ours = vec![("user_id".to_owned(), "acme~alice".to_owned())];
    assert_eq!(users, [ours.clone(), ours]);
    let got = stack.send(Ask::get("/sessions?user_id=a&user_id=b").by(&alice)).await;
    assert_eq!((got.status, got.code()), (400, "field_duplicated".to_owned()));
    assert_eq!(stack.os().requests_to("/sessions").len(), 2);
}

#[tokio::test]
async fn bodies_over_their_limits_are_refused() {
    let settings = Settings::new()
        .set("[server.limits]", "body_bytes", "\"256KiB\"")
        .set("[server.limits]", "form_field_bytes", "\"8KiB\"")
        .set("[server.limits]", "json_body_bytes", "\"4KiB\"");
    let stack = Stack::with(settings).await;
    let long = |length: usize| "x".repeat(length);
    let hi = || field("message", "hi");
    let many = (0..20).map(|_| field("message", &long(4 << 10))).collect::<Vec<_>>();
    let cases = [
        ("a text field", Ask::run("assistant").body(MULTIPART, form(&[field("message", &long(9 << 10))])), 413),
        ("an urlencoded form", Ask::run("assistant").field("message", &long(9 << 10)), 413),
        ("JSON", Ask::post("/knowledge/search").json(&json!({"query": long(5 << 10)})), 413),
        (
            "a declared length",
            Ask::run("assistant").body(MULTIPART, form(&[hi(), file("files", &long(300 << 10))])),
            413,
        ),
        ("field after field", Ask::run("assistant").body(MULTIPART, form(&many)), 400),
    ];
    for (what, ask, status) in cases {
        let got = stack.send(ask.by(&Who::alice())).await;
        assert_eq!(got.status, status, "{what}: {got:?}");
    }
    assert_eq!(stack.os().requests(), []);
}

/// The head of a chunked multipart run.
fn chunked_head() -> String {
    format!(
        "POST /agents/assistant/runs HTTP/1.1\r\nHost: gateway\r\nAuthorization: Bearer {}\r\n\
         Content-Type: {MULTIPART}\r\nTransfer-Encoding: chunked\r\n\r\n",
        Who::alice().token()
    )
}

fn chunk(data: &str) -> String {
    format!("{:x}\r\n{data}\r\n", data.len())
}

#[tokio::test]
async fn a_chunked_body_over_the_limit_is_cut_off() {
    let stack = Stack::with(Settings::new().set("[server.limits]", "body_bytes", "\"256KiB\"")).await;
    // A file that streams, and fields that would be collected: one after the other, none of them large.
    let endless_file = format!(
        "{}--b\r\nContent-Disposition: form-data; name=\"files\"; filename=\"f\"\r\n\r\n",
        field("message", "hi")
    );
    let piece = "x".repeat(16 << 10);
    for (what, start, next) in [
        ("a file", endless_file, piece.clone()),
        (
            "fields",
            String::new(),
            format!("{piece}\r\n--b\r\nContent-Disposition: form-data; name=\"message\"\r\n\r\n"),
        ),
    ] {
        let mut raw = stack.raw().await;
        raw.write(chunked_head()).await;
        let start = if start.is_empty() {
            "--b\r\nContent-Disposition: form-data; name=\"message\"\r\n\r\n".into()
        } else {
            start
        };
        raw.write(chunk(&start)).await;
        for _ in 0..64 {
            raw.write(chunk(&next)).await;
        }
        let (head, body) = raw.answer().await;
        let expected = [("413", "body_too_large"), ("400", "field_duplicated"), ("400", "field_too_late")];
        let fits = expected.iter().any(|(status, code)| head[9..12] == **status && body.contains(code));
        assert!(fits, "{what}: {head}{body}");
    }
    assert!(stack.os().requests().iter().all(|seen| !seen.answered), "{:?}", stack.os().requests());
}

#[tokio::test]
async fn an_upload_streams_while_upstream_reads() {
    const PIECE: usize = 64 << 10;
    const PIECES: usize = 320;
    let upstream = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", upstream.local_addr().unwrap());
    // The probes take connections of this listener too: it answers them and waits for the upload.
    let (first_byte, seen_first) = tokio::sync::oneshot::channel();
    let mut receiver = tokio::task::JoinSet::new();
    receiver.spawn(receive(upstream, first_byte));
    let stack = Stack::over(&[url], Settings::new()).await;
    let mut raw = stack.raw().await;
    raw.write(chunked_head()).await;
    let start = format!(
        "{}--b\r\nContent-Disposition: form-data; name=\"files\"; filename=\"big.bin\"\r\n\r\n",
        field("message", "hi")
    );
    raw.write(chunk(&start)).await;
    let piece = "\u{1}".repeat(PIECE);
    for _ in 0..2 {
        raw.write(chunk(&piece)).await;
    }
    // The caller has sent 128 KiB of 20 MiB; upstream has begun to read.
    crate::stack::within("the first bytes upstream", seen_first).await.unwrap();
    for _ in 2..PIECES {
        raw.write(chunk(&piece)).await;
    }
    raw.write(chunk("\r\n--b--\r\n")).await;
    raw.write("0\r\n\r\n").await;
    let (head, body) = raw.answer().await;
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}{body}");
    let uploaded = crate::stack::within("the whole upload", receiver.join_next()).await.unwrap().unwrap();
    assert_eq!(uploaded, PIECE * PIECES);
}

/// An AgentOS of one upload: answers probes, says when the first KiB of a file came, counts the file's bytes (all 1).
async fn receive(listener: tokio::net::TcpListener, first_byte: tokio::sync::oneshot::Sender<()>) -> usize {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let mut first_byte = Some(first_byte);
    loop {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut head = Vec::new();
        let mut buffer = vec![0; 64 << 10];
        while memchr::memmem::find(&head, b"\r\n\r\n").is_none() {
            let read = stream.read(&mut buffer).await.unwrap();
            head.extend_from_slice(&buffer[..read]);
            if read == 0 {
                break;
            }
        }
        let answer = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 27\r\nconnection: close\r\n\r\n\
                      {\"agno_version\": \"3.1.10\"} ";
        if !head.starts_with(b"POST") {
            stream.write_all(answer.as_bytes()).await.unwrap();
            continue;
        }
        let (mut count, mut tail) = (0, head);
        loop {
            count += memchr::memchr_iter(1, &tail).count();
            if count > 1000
                && let Some(first_byte) = first_byte.take()
            {
                first_byte.send(()).unwrap();
            }
            if tail.ends_with(b"0\r\n\r\n") {
                break;
            }
            let read = stream.read(&mut buffer).await.unwrap();
            assert_ne!(read, 0, "the upload broke off");
            tail = buffer[..read].to_vec();
        }
        stream.write_all(answer.as_bytes()).await.unwrap();
        return count;
    }
}

#[tokio::test]
async fn late_parts_of_an_upload_meet_the_same_rules() {
    let stack = Stack::start().await;
    let big = file("files", &"x".repeat(200 << 10));
    for (what, late, status, code) in [
        ("a text field", field("session_id", "theirs"), 400, "field_too_late"),
        ("an unknown field", field("debug_mode", "1"), 400, "field_not_allowed"),
        ("a file as a text field", file("user_id", "eve"), 400, "field_not_allowed"),
        ("a cut", "--b\r\nContent-Dispo".to_owned(), 400, "form_malformed"),
    ] {
        let end = if what == "a cut" { "" } else { "--b--\r\n" };
        let body = format!("{}{big}{late}{end}", field("message", "hi"));
        let got = stack.send(Ask::run("assistant").body(MULTIPART, body).by(&Who::alice())).await;
        assert_eq!((got.status, got.code()), (status, code.to_owned()), "{what}: {got:?}");
    }
    // Several files are what forms are for.
    let body = form(&[field("message", "hi"), field("stream", "false"), big.clone(), big]);
    let got = stack.send(Ask::run("assistant").body(MULTIPART, body).by(&Who::alice())).await;
    assert_eq!(got.status, 200, "{got:?}");
    let runs: Vec<_> = stack.os().requests().into_iter().filter(|seen| seen.answered).collect();
    assert_eq!(runs.len(), 1);
    let names: Vec<String> = runs[0].form().0.into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["run_id", "knowledge_filters", "user_id", "message", "stream", "files", "files"]);
}

#[tokio::test]
async fn a_caller_who_still_uploads_reads_the_refusal() {
    let stack = Stack::start().await;
    let mut raw = stack.raw().await;
    raw.write("POST /agents/assistant/runs HTTP/1.1\r\nHost: a\r\nContent-Type: text/plain\r\nContent-Length: 9000000\r\n\r\n").await;
    for _ in 0..32 {
        raw.write("x".repeat(16 << 10)).await;
    }
    let (head, body) = raw.answer().await;
    assert!(head.starts_with("HTTP/1.1 401 ") && body.contains("unauthenticated"), "{head}{body}");
    assert!(head.to_lowercase().contains("connection: close"), "{head}");
}

#[tokio::test]
async fn an_upstream_that_refuses_early_is_heard() {
    let stack = Stack::start().await;
    stack.os().pin("POST", "/agents/assistant/runs", Reply::detail(422, "no"));
    let body = form(&[field("message", "hi"), file("files", &"x".repeat(300 << 10))]);
    let got = stack.send(Ask::run("assistant").body(MULTIPART, body).by(&Who::alice())).await;
    assert_eq!((got.status, got.json()), (422, json!({"detail": "no"})));
}
