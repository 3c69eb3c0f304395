//! Plays HTTP/2 as no library would send it: fields that break HTTP/1, bodies that contradict their length, floods.
//! Does not test what well-behaved clients see (`http_two`).
//! Invariant: nothing of what is malformed reaches AgentOS, and a flood ends its own connection only.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};

use crate::stack::{Ask, Settings, Stack, Who, within};

pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const CONTINUATION: u8 = 9;
pub(crate) const END_STREAM: u8 = 1;
pub(crate) const END_HEADERS: u8 = 4;

/// A frame (RFC 9113 §4.1).
pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = u32::try_from(payload.len()).unwrap().to_be_bytes()[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// Fields as literals that are not indexed, without Huffman coding (RFC 7541 §6.2.2).
pub(crate) fn block(fields: &[(&str, &[u8])]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in fields {
        block.push(0);
        for text in [name.as_bytes(), value] {
            integer(&mut block, text.len());
            block.extend(text);
        }
    }
    block
}

/// A length with a prefix of seven bits (RFC 7541 §5.1).
fn integer(block: &mut Vec<u8>, mut value: usize) {
    if value < 127 {
        return block.push(u8::try_from(value).unwrap());
    }
    block.push(127);
    value -= 127;
    while value >= 128 {
        block.push(u8::try_from(value % 128).unwrap() | 128);
        value /= 128;
    }
    block.push(u8::try_from(value).unwrap());
}

/// One connection with prior knowledge.
pub(crate) struct Two {
    read: OwnedReadHalf,
    write: OwnedWriteHalf,
}

/// How a stream or its connection ended.
#[derive(Debug, PartialEq, Eq)]
enum End {
    /// `RST_STREAM`, with its code.
    Reset(u32),
    /// `GOAWAY`, with its code.
    GoAway(u32),
    /// The connection was closed.
    Closed,
    /// A response; whether it began with `:status: 200`.
    Answered { ok: bool },
}

// === impl Two ===

impl Two {
    async fn open(stack: &Stack) -> Self {
        Self::over(TcpStream::connect(stack.address()).await.unwrap(), &[]).await
    }

    /// Begins with these settings.
    pub(crate) async fn over(stream: TcpStream, settings: &[u8]) -> Self {
        let (read, write) = stream.into_split();
        let mut two = Self { read, write };
        two.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await;
        two.send(&frame(SETTINGS, 0, 0, settings)).await;
        two
    }

    /// Writes; a peer that closed already is for `end` to find.
    pub(crate) async fn send(&mut self, bytes: &[u8]) -> bool {
        within("a write", self.write.write_all(bytes)).await.is_ok()
    }

    /// The next frame: kind, flags, stream and payload.
    pub(crate) async fn frame(&mut self) -> Option<(u8, u8, u32, Vec<u8>)> {
        within("a frame", async {
            let mut head = [0; 9];
            self.read.read_exact(&mut head).await.ok()?;
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
            let mut payload = vec![0; usize::try_from(length).unwrap()];
            self.read.read_exact(&mut payload).await.ok()?;
            Some((head[3], head[4], u32::from_be_bytes(head[5..9].try_into().unwrap()), payload))
        })
        .await
    }

    /// Reads until a stream or the connection has ended.
    async fn end(&mut self, stream: u32) -> End {
        let code = |payload: &[u8], at: usize| u32::from_be_bytes(payload[at..at + 4].try_into().unwrap());
        loop {
            match self.frame().await {
                None => return End::Closed,
                Some((RST_STREAM, _, on, payload)) if on == stream => return End::Reset(code(&payload, 0)),
                Some((GOAWAY, _, _, payload)) => return End::GoAway(code(&payload, 4)),
                Some((HEADERS, _, on, payload)) if on == stream => {
                    return End::Answered { ok: payload.first() == Some(&0x88) };
                }
                Some(_) => {}
            }
        }
    }
}

async fn open_stack() -> Stack {
    Stack::with(Settings::new().set("[server]", "h2c", "true")).await
}

/// A well-formed request, to be spoilt.
fn plain(token: &str) -> Vec<(&'static str, Vec<u8>)> {
    [
        (":method", "GET"),
        (":scheme", "http"),
        (":authority", "localhost"),
        (":path", "/agents"),
        ("authorization", token),
    ]
    .map(|(name, value)| (name, value.as_bytes().to_vec()))
    .to_vec()
}

async fn ask(stack: &Stack, fields: &[(&'static str, Vec<u8>)]) -> End {
    let fields: Vec<(&str, &[u8])> = fields.iter().map(|(name, value)| (*name, value.as_slice())).collect();
    let mut two = Two::open(stack).await;
    let block = block(&fields);
    let mut chunks = block.chunks(16_000).peekable();
    let mut kind = (HEADERS, END_STREAM);
    while let Some(chunk) = chunks.next() {
        let last = if chunks.peek().is_none() { END_HEADERS } else { 0 };
        two.send(&frame(kind.0, kind.1 | last, 1, chunk)).await;
        kind = (CONTINUATION, 0);
    }
    two.end(1).await
}

#[tokio::test]
async fn http2_fields_that_break_http1_are_refused() {
    let stack = open_stack().await;
    let token = format!("Bearer {}", Who::alice().token());
    assert_eq!(ask(&stack, &plain(&token)).await, End::Answered { ok: true });
    let before = stack.os().requests().len();
    let extra: [(&'static str, &[u8]); 16] = [
        ("x-a", b"b\r\nx-user-id: root"),
        ("x-a", b"b\nx-user-id: root"),
        ("x-a", b"b\0c"),
        ("x-a: b\r\nx-user-id", b"root"),
        ("x a", b"b"),
        ("x-a:", b"b"),
        ("X-Upper", b"b"),
        ("", b"b"),
        ("connection", b"close"),
        ("transfer-encoding", b"chunked"),
        ("keep-alive", b"timeout=5"),
        ("proxy-connection", b"keep-alive"),
        ("upgrade", b"websocket"),
        ("te", b"gzip"),
        (":path", b"/teams"),
        (":unknown", b"x"),
    ];
    for (name, value) in extra {
        let mut fields = plain(&token);
        fields.push((name, value.to_vec()));
        let end = ask(&stack, &fields).await;
        assert_ne!(end, End::Answered { ok: true }, "{name:?}: {value:?}");
    }
    for (at, value) in [
        (":path", &b""[..]),
        (":path", b"*"),
        (":path", b"agents"),
        (":path", b"/agents x"),
        (":path", b"/agents HTTP/1.1\r\nhost: other"),
        (":path", b"http://other/agents"),
        (":path", b"//other/agents"),
        (":method", b"GET / HTTP/1.1\r\n"),
        (":method", b""),
        (":authority", b"localhost/x"),
        (":authority", b"root@localhost"),
        (":authority", b"local host"),
        (":scheme", b"file:///etc"),
    ] {
        let mut fields = plain(&token);
        fields.iter_mut().filter(|(name, _)| *name == at).for_each(|(_, old)| *old = value.to_vec());
        let end = ask(&stack, &fields).await;
        assert_ne!(end, End::Answered { ok: true }, "{at}: {value:?}");
    }
    for missing in [":method", ":scheme", ":path"] {
        let mut fields = plain(&token);
        fields.retain(|(name, _)| *name != missing);
        assert_ne!(ask(&stack, &fields).await, End::Answered { ok: true }, "without {missing}");
    }
    // Pseudo fields behind others.
    let mut fields = plain(&token);
    fields.rotate_right(1);
    assert_ne!(ask(&stack, &fields).await, End::Answered { ok: true });
    assert_eq!(stack.os().requests().len(), before, "{:?}", stack.os().requests());
}

#[tokio::test]
async fn an_http2_body_that_contradicts_its_length_is_no_run() {
    let stack = open_stack().await;
    let token = format!("Bearer {}", Who::alice().token());
    let body = b"message=hi&stream=false";
    for length in ["5", "500", "23, 23", "-1", "+23", "0x17"] {
        let mut fields = plain(&token);
        fields[0].1 = b"POST".to_vec();
        fields[3].1 = b"/agents/assistant/runs".to_vec();
        fields.push(("content-type", b"application/x-www-form-urlencoded".to_vec()));
        fields.push(("content-length", length.as_bytes().to_vec()));
        let fields: Vec<(&str, &[u8])> = fields.iter().map(|(name, value)| (*name, value.as_slice())).collect();
        let mut two = Two::open(&stack).await;
        two.send(&frame(HEADERS, END_HEADERS, 1, &block(&fields))).await;
        two.send(&frame(DATA, END_STREAM, 1, body)).await;
        assert_ne!(two.end(1).await, End::Answered { ok: true }, "{length}");
    }
    let runs: Vec<_> =
        stack.os().requests().into_iter().filter(|request| request.answered && !request.aborted).collect();
    assert_eq!(runs, []);
}

#[tokio::test]
async fn http2_errors_have_the_codes_of_the_specification() {
    let stack = open_stack().await;
    let head = END_STREAM | END_HEADERS;
    for (what, bytes, code) in [
        ("PING of another length", frame(PING, 0, 0, b"short"), 6),
        ("SETTINGS of another length", frame(SETTINGS, 0, 0, &[0, 3, 0]), 6),
        ("a window that is too large", frame(SETTINGS, 0, 0, &[0, 4, 0x80, 0, 0, 0]), 3),
        ("DATA on no stream", frame(DATA, END_STREAM, 0, b"x"), 1),
        ("an even stream", frame(HEADERS, head, 2, &[0x82]), 1),
        ("a block without end", frame(HEADERS, head, 1, &[0x40, 0x7f]), 9),
        ("an index that is in no table", frame(HEADERS, head, 1, &[0x80 | 72]), 9),
        ("index 0", frame(HEADERS, head, 1, &[0x80]), 9),
        ("a block that PING interrupts", [frame(HEADERS, 0, 1, &[0x82]), frame(PING, 0, 0, b"tollgate")].concat(), 1),
    ] {
        let mut two = Two::open(&stack).await;
        two.send(&bytes).await;
        assert_eq!(two.end(1).await, End::GoAway(code), "{what}");
    }
    // The first frame must be SETTINGS (RFC 9113 §3.4).
    let (read, write) = TcpStream::connect(stack.address()).await.unwrap().into_split();
    let mut two = Two { read, write };
    two.send(&[&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..], &frame(PING, 0, 0, b"tollgate")].concat()).await;
    assert_eq!(two.end(1).await, End::GoAway(1));
    others_are_served(&stack).await;
}

/// The gateway answers others while one connection misbehaves.
async fn others_are_served(stack: &Stack) {
    assert_eq!(stack.send(Ask::get("/agents").by(&Who::alice())).await.status, 200);
}

#[tokio::test]
async fn rapid_resets_end_their_connection() {
    let stack = open_stack().await;
    let token = format!("Bearer {}", Who::alice().token());
    let fields = plain(&token);
    let fields: Vec<(&str, &[u8])> = fields.iter().map(|(name, value)| (*name, value.as_slice())).collect();
    let head = block(&fields);
    let mut two = Two::open(&stack).await;
    for n in 0..2000 {
        let stream = 2 * n + 1;
        let mut bytes = frame(HEADERS, END_STREAM | END_HEADERS, stream, &head);
        bytes.extend(frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes()));
        if !two.send(&bytes).await {
            break;
        }
    }
    assert!(matches!(two.end(u32::MAX).await, End::GoAway(11) | End::Closed), "ENHANCE_YOUR_CALM");
    others_are_served(&stack).await;
}

#[tokio::test]
async fn endless_heads_end_their_connection() {
    let stack = open_stack().await;
    let mut two = Two::open(&stack).await;
    two.send(&frame(HEADERS, END_STREAM, 1, &block(&[(":method", b"GET")]))).await;
    let more = frame(CONTINUATION, 0, 1, &block(&[("x-filler", &[b'a'; 16_000])]));
    let mut sent = 0;
    while sent < 4 << 20 && two.send(&more).await {
        sent += more.len();
    }
    assert!(matches!(two.end(1).await, End::GoAway(_) | End::Closed | End::Reset(_)));
    assert!(sent < 4 << 20, "{sent} bytes of one head were taken");
    // Empty ones cost no bytes, and count all the same.
    let mut two = Two::open(&stack).await;
    two.send(&frame(HEADERS, END_STREAM, 1, &block(&[(":method", b"GET")]))).await;
    let mut frames = 0;
    while frames < 100_000 && two.send(&frame(CONTINUATION, 0, 1, &[])).await {
        frames += 1;
    }
    assert!(frames < 100_000, "{frames} frames of one head were taken");
    others_are_served(&stack).await;
}

#[tokio::test]
async fn heads_are_bounded_as_in_http1_and_small_references_do_not_swell() {
    let stack = open_stack().await;
    let token = format!("Bearer {}", Who::alice().token());
    let mut fields = plain(&token);
    fields.extend((0..3).map(|_| ("x-filler", vec![b'a'; 12_000])));
    // 431, or the end of the connection: either way it is no request.
    assert_ne!(ask(&stack, &fields).await, End::Answered { ok: true });
    // A field of 4000 bytes once in the table (RFC 7541 §6.2.1), then named a thousand times by one byte each.
    let mut head =
        block(&[(":method", b"GET"), (":scheme", b"http"), (":authority", b"localhost"), (":path", b"/agents")]);
    head.push(0x40);
    integer(&mut head, 1);
    head.push(b'a');
    integer(&mut head, 4000);
    head.extend([b'b'; 4000]);
    head.extend([0x80 | 62; 1000]);
    let mut two = Two::open(&stack).await;
    two.send(&frame(HEADERS, END_STREAM | END_HEADERS, 1, &head)).await;
    assert_ne!(two.end(1).await, End::Answered { ok: true });
    assert_eq!(stack.os().requests(), []);
    others_are_served(&stack).await;
}

#[tokio::test]
async fn floods_of_settings_and_pings_meet_backpressure() {
    let stack = open_stack().await;
    for flood in [frame(SETTINGS, 0, 0, &[0, 3, 0, 0, 0, 100]), frame(PING, 0, 0, b"tollgate")] {
        let mut two = Two::open(&stack).await;
        let many = flood.repeat(1000);
        // Nobody reads the acknowledgements. Sooner or later nothing more is taken, or the connection ends.
        let mut taken = 0;
        while taken < 64 << 20 {
            let write = tokio::time::timeout(std::time::Duration::from_millis(300), two.write.write_all(&many)).await;
            if !matches!(write, Ok(Ok(()))) {
                break;
            }
            taken += many.len();
        }
        assert!(taken < 64 << 20, "{taken} bytes were taken while nothing was read");
        others_are_served(&stack).await;
    }
}

#[tokio::test]
async fn streams_of_one_connection_are_bounded() {
    let stack = open_stack().await;
    stack.os().pin("POST", "/agents/assistant/runs", crate::fake::Reply::never());
    let token = format!("Bearer {}", Who::alice().token());
    let mut fields = plain(&token);
    fields[0].1 = b"POST".to_vec();
    fields[3].1 = b"/agents/assistant/runs".to_vec();
    fields.push(("content-type", b"application/x-www-form-urlencoded".to_vec()));
    let fields: Vec<(&str, &[u8])> = fields.iter().map(|(name, value)| (*name, value.as_slice())).collect();
    let mut two = Two::open(&stack).await;
    let mut refused = None;
    for n in 0..300 {
        two.send(&frame(HEADERS, END_HEADERS, 2 * n + 1, &block(&fields))).await;
        refused = Some(2 * n + 1);
    }
    assert_eq!(two.end(refused.unwrap()).await, End::Reset(7), "REFUSED_STREAM");
    others_are_served(&stack).await;
}
