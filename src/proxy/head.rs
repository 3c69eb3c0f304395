//! Owns the raw check of an HTTP/1 head: read under limits, refused when malformed or ambiguous.
//! Does not build requests: pingora parses the same bytes afterwards, once nothing in them can be read two ways.
//! Invariant: what passes has one meaning for every RFC 9112 parser.

use std::net::Ipv6Addr;
use std::pin::Pin;
use std::str::FromStr;
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::time::{Instant, Sleep};

/// How much is asked from the socket at a time.
const READ_BYTES: usize = 2048;
/// The connection preface of HTTP/2 (RFC 9113 §3.4) up to its first blank line.
const HTTP2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\n";

/// What the bytes at the start of an exchange are.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Head {
    /// A checked HTTP/1 head, at the start of the buffer.
    Http1,
    /// The HTTP/2 preface.
    Http2,
    /// The peer closed.
    Closed,
}

/// Why a head was refused: a word for the metric, and whether it was too large or too slow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BadHead {
    /// Malformed or ambiguous.
    Malformed(&'static str),
    /// Larger than `header_bytes` or with too many fields.
    TooLarge,
    /// Not complete within `header_timeout`.
    Slow,
}

/// A line that ends in another way than RFC 9112 §2.2 has it, or NUL.
const BARE_BREAK: BadHead = BadHead::Malformed("bare_line_break");

/// How large a head may be, and how long it may take.
#[derive(Debug, Clone, Copy)]
pub(super) struct HeadLimits {
    /// Most bytes of a head.
    pub(super) bytes_max: usize,
    /// Most header fields of a head.
    pub(super) fields_max: usize,
    /// From the first byte to the last.
    pub(super) timeout: Duration,
}

/// The timer of a connection between its heads: moving one costs less than making one for each.
pub(super) struct Silence(Pin<Box<Sleep>>);

// === impl Silence ===

impl Silence {
    pub(super) fn new() -> Self {
        Self(Box::pin(tokio::time::sleep(Duration::ZERO)))
    }
}

/// Reads one head into `buffer`, behind what [`begin`] or the last exchange left there, and checks it.
///
/// # Errors
/// [`BadHead`] when it is malformed, too large, or too slow.
///
/// # Cancel safety
/// Bytes read so far stay in `buffer`.
pub(super) async fn read<S>(stream: &mut S, buffer: &mut BytesMut, limits: HeadLimits) -> Result<Head, BadHead>
where
    S: AsyncRead + Unpin + ?Sized,
{
    // Most heads are there at once: the clock is read for the others.
    let mut deadline = None;
    let mut searched = 0_usize;
    loop {
        if let Some(end) = end_of_head(buffer, searched) {
            let head = buffer.get(..end).unwrap_or_default();
            if head == HTTP2_PREFACE {
                return Ok(Head::Http2);
            }
            if head.len() > limits.bytes_max {
                return Err(BadHead::TooLarge);
            }
            return check(head, limits.fields_max).map(|()| Head::Http1);
        }
        // A bare line feed could end the head for another parser: do not wait for more.
        if has_bare_break(buffer) {
            return Err(BARE_BREAK);
        }
        if buffer.len() > limits.bytes_max {
            return Err(BadHead::TooLarge);
        }
        searched = buffer.len();
        let now = Instant::now();
        let left = deadline.get_or_insert(now + limits.timeout).saturating_duration_since(now);
        match more(stream, buffer, left).await {
            Some(true) => {}
            Some(false) => return Ok(Head::Closed),
            None => return Err(BadHead::Slow),
        }
    }
}

/// Waits for the first bytes of a head: `false` when the peer closed or stayed silent for too long.
///
/// # Cancel safety
/// Safe: what was read is in `buffer`.
pub(super) async fn begin<S>(stream: &mut S, buffer: &mut BytesMut, idle: Duration, silence: &mut Silence) -> bool
where
    S: AsyncRead + Unpin + ?Sized,
{
    buffer.reserve(READ_BYTES);
    silence.0.as_mut().reset(Instant::now() + idle);
    tokio::select! {
        biased;
        read = stream.read_buf(buffer) => read.is_ok_and(|n| n > 0),
        () = silence.0.as_mut() => false,
    }
}

/// Reads once: `None` when the wait ran out, `Some(false)` when the peer closed.
async fn more<S: AsyncRead + Unpin + ?Sized>(stream: &mut S, buffer: &mut BytesMut, wait: Duration) -> Option<bool> {
    buffer.reserve(READ_BYTES);
    match tokio::time::timeout(wait, stream.read_buf(buffer)).await {
        Ok(Ok(n)) => Some(n > 0),
        Ok(Err(_)) => Some(false),
        Err(_) => None,
    }
}

/// Where the first blank line ends, when none ends before `searched`.
fn end_of_head(bytes: &[u8], searched: usize) -> Option<usize> {
    let mut ends = memchr::memchr_iter(b'\n', bytes.get(searched..)?).map(|at| searched + at + 1);
    ends.find(|end| bytes.get(..*end).is_some_and(|head| head.ends_with(b"\r\n\r\n")))
}

/// Checks a complete head, blank line included.
pub(super) fn check(head: &[u8], fields_max: usize) -> Result<(), BadHead> {
    let checked = check_lines(head, fields_max);
    // A head that passes holds neither. Of one that does not, this says more than what was met first.
    match checked {
        Err(_) if has_bare_break(head) || head.contains(&0) => Err(BARE_BREAK),
        checked => checked,
    }
}

fn check_lines(head: &[u8], fields_max: usize) -> Result<(), BadHead> {
    use BadHead::Malformed;
    let text = head.strip_suffix(b"\r\n\r\n").ok_or(BARE_BREAK)?;
    let mut lines = lines_of(text);
    let http10 = request_line(lines.next().ok_or(Malformed("request_line"))??)?;
    let mut seen = Seen::default();
    for (at, line) in lines.enumerate() {
        if at >= fields_max {
            return Err(BadHead::TooLarge);
        }
        seen.field(line?)?;
    }
    match (seen.hosts, http10) {
        (1, _) | (0, true) => {}
        (0, false) => return Err(Malformed("host_missing")),
        (_, _) => return Err(Malformed("host_duplicated")),
    }
    if seen.lengths > 1 {
        return Err(Malformed("content_length_duplicated"));
    }
    if seen.encodings > 1 || (seen.encodings > 0 && (seen.lengths > 0 || http10)) {
        return Err(Malformed("framing_ambiguous"));
    }
    Ok(())
}

/// Fields that must not be ambiguous, counted.
#[derive(Default)]
struct Seen {
    hosts: usize,
    lengths: usize,
    encodings: usize,
}

impl Seen {
    fn field(&mut self, line: &[u8]) -> Result<(), BadHead> {
        use BadHead::Malformed;
        let colon = memchr::memchr(b':', line).ok_or(Malformed("field_without_colon"))?;
        let (name, value) = line.split_at(colon);
        let value = value.get(1..).unwrap_or_default();
        if name.is_empty() || !all_are(name, TOKEN) {
            return Err(Malformed("field_name"));
        }
        if !is_value(value) {
            return Err(Malformed("field_value"));
        }
        // What is left of ASCII's white space is a space or a tab (RFC 9110 §5.6.3).
        let value = value.trim_ascii();
        if name.eq_ignore_ascii_case(b"host") {
            self.hosts += 1;
            if host_of(value).is_none() {
                return Err(Malformed("host_malformed"));
            }
        } else if name.eq_ignore_ascii_case(b"content-length") {
            self.lengths += 1;
            if value.is_empty() || value.len() > 19 || !value.iter().all(u8::is_ascii_digit) {
                return Err(Malformed("content_length"));
            }
        } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
            self.encodings += 1;
            if !value.eq_ignore_ascii_case(b"chunked") {
                return Err(Malformed("transfer_encoding"));
            }
        }
        Ok(())
    }
}

/// Checks `METHOD target HTTP/1.x`; says whether it is HTTP/1.0.
fn request_line(line: &[u8]) -> Result<bool, BadHead> {
    use BadHead::Malformed;
    let mut words = line.split(|b| *b == b' ');
    let (Some(method), Some(target), Some(version), None) = (words.next(), words.next(), words.next(), words.next())
    else {
        return Err(Malformed("request_line"));
    };
    // TRACE and CONNECT are refused with the unknown ones: AgentOS has no use for them, attackers have.
    const METHODS: [&[u8]; 7] = [b"GET", b"POST", b"PUT", b"PATCH", b"DELETE", b"HEAD", b"OPTIONS"];
    if !METHODS.contains(&method) {
        return Err(Malformed("method"));
    }
    // Absolute form, authority form and `*` are for proxies and servers that we are not.
    if !target.starts_with(b"/") || !all_are(target, TARGET) {
        return Err(Malformed("target"));
    }
    match version {
        b"HTTP/1.1" => Ok(false),
        b"HTTP/1.0" => Ok(true),
        _ => Err(Malformed("version")),
    }
}

/// The host of an authority that is `host` or `host:port` (RFC 9110 §7.2), brackets of an IPv6 address included. `None` for
/// every other, such as one with user info or a path.
pub(super) fn host_of(authority: &[u8]) -> Option<&[u8]> {
    let end = match authority.strip_prefix(b"[") {
        Some(rest) => {
            let end = memchr::memchr(b']', rest)?;
            parsed::<Ipv6Addr>(rest.get(..end)?)?;
            end + 2
        }
        None => memchr::memchr(b':', authority).unwrap_or(authority.len()),
    };
    let (host, port) = authority.split_at_checked(end)?;
    let named = host.starts_with(b"[") || ((1..=253).contains(&host.len()) && all_are(host, HOST));
    let ported = match port.strip_prefix(b":") {
        None => port.is_empty(),
        Some(digits) => digits.iter().all(u8::is_ascii_digit) && parsed::<u16>(digits).is_some(),
    };
    (named && ported).then_some(host)
}

fn parsed<T: FromStr>(text: &[u8]) -> Option<T> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// Characters of a field name (RFC 9110 §5.6.2).
const TOKEN: u8 = 1;
/// Characters of a request target; a fragment is none of it.
const TARGET: u8 = 2;
/// Characters of a host name, and of those that are none but are in use.
const HOST: u8 = 4;

/// What each byte may stand in. One look per byte: this runs over every byte of every head.
#[allow(clippy::indexing_slicing, reason = "computed while compiling")]
const KINDS: [u8; 256] = {
    let mut kinds = [0; 256];
    let mut at = 0;
    while at < 256 {
        #[expect(clippy::cast_possible_truncation, reason = "256 bytes have 256 values")]
        let b = at as u8;
        let mark = matches!(
            b,
            b'!' | b'#' | b'$' | b'%' | b'&' | b'\'' | b'*' | b'+' | b'-' | b'.' | b'^' | b'_' | b'`' | b'|' | b'~'
        );
        let token = if b.is_ascii_alphanumeric() || mark { TOKEN } else { 0 };
        let target = if b > 0x20 && b < 0x7f && b != b'#' { TARGET } else { 0 };
        let host = if b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_') { HOST } else { 0 };
        kinds[at] = token | target | host;
        at += 1;
    }
    kinds
};

/// Says whether the bytes may stand in a field value (RFC 9110 §5.5), whatever is above ASCII included.
///
/// Looks at all of them whatever it finds: values are long, and without an early end several are looked at at once.
fn is_value(bytes: &[u8]) -> bool {
    bytes.iter().fold(true, |plain, b| plain & (((*b >= 0x20) & (*b != 0x7f)) | (*b == b'\t')))
}

fn all_are(bytes: &[u8], kind: u8) -> bool {
    bytes.iter().all(|b| KINDS.get(usize::from(*b)).is_some_and(|kinds| kinds & kind != 0))
}

/// A CR without LF or an LF without CR anywhere.
fn has_bare_break(bytes: &[u8]) -> bool {
    memchr::memchr2_iter(b'\r', b'\n', bytes).any(|at| {
        let here = bytes.get(at).copied();
        if here == Some(b'\r') {
            bytes.get(at + 1).is_some_and(|next| *next != b'\n')
        } else {
            at.checked_sub(1).and_then(|before| bytes.get(before)).is_none_or(|before| *before != b'\r')
        }
    })
}

/// The lines of a text; one that ends without a carriage return is an error.
fn lines_of(text: &[u8]) -> impl Iterator<Item = Result<&[u8], BadHead>> {
    let mut rest = Some(text);
    std::iter::from_fn(move || {
        let text = rest?;
        let Some(at) = memchr::memchr(b'\n', text) else { return rest.take().map(Ok) };
        rest = text.get(at + 1..);
        Some(text.get(..at)?.strip_suffix(b"\r").ok_or(BARE_BREAK))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(head: &str) -> Result<(), BadHead> {
        check(head.as_bytes(), 100)
    }

    #[test]
    fn plain_heads_pass() {
        for head in [
            "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
            "POST /agents/x/runs?a=b HTTP/1.1\r\nHost: example.com:8080\r\nContent-Length: 5\r\nX: \tv\r\n\r\n",
            "GET / HTTP/1.1\r\nhost: [::1]:80\r\nTransfer-Encoding: Chunked\r\n\r\n",
            "GET / HTTP/1.0\r\n\r\n",
        ] {
            assert_eq!(checked(head), Ok(()), "{head:?}");
        }
    }

    #[test]
    fn malformed_and_ambiguous_heads_are_refused() {
        let host = "Host: a\r\n";
        let cases: Vec<(String, &str)> = vec![
            ("GET / HTTP/1.1\r\n\r\n".into(), "host_missing"),
            (format!("GET / HTTP/1.1\r\n{host}{host}\r\n"), "host_duplicated"),
            ("GET / HTTP/1.1\nHost: a\r\n\r\n".into(), "bare_line_break"),
            (format!("GET / HTTP/1.1\r\n{host}X: a\rb\r\n\r\n"), "bare_line_break"),
            (format!("TRACE / HTTP/1.1\r\n{host}\r\n"), "method"),
            (format!("get / HTTP/1.1\r\n{host}\r\n"), "method"),
            (format!("CONNECT a:1 HTTP/1.1\r\n{host}\r\n"), "method"),
            (format!("GET http://a/ HTTP/1.1\r\n{host}\r\n"), "target"),
            (format!("GET /a#b HTTP/1.1\r\n{host}\r\n"), "target"),
            (format!("GET /a b HTTP/1.1\r\n{host}\r\n"), "request_line"),
            (format!("GET /ä HTTP/1.1\r\n{host}\r\n"), "target"),
            (format!("GET / HTTP/2.0\r\n{host}\r\n"), "version"),
            (format!("\r\nGET / HTTP/1.1\r\n{host}\r\n"), "request_line"),
            (format!("GET / HTTP/1.1\r\n{host}X : b\r\n\r\n"), "field_name"),
            ("GET / HTTP/1.1\r\nHost: a\x0c\r\n\r\n".into(), "field_value"),
            (format!("POST / HTTP/1.1\r\n{host}Transfer-Encoding: \x0cchunked\r\n\r\n"), "field_value"),
            (format!("GET / HTTP/1.1\r\n{host} folded\r\n\r\n"), "field_without_colon"),
            (format!("GET / HTTP/1.1\r\n{host}\tfolded: x\r\n\r\n"), "field_name"),
            (
                format!("POST / HTTP/1.1\r\n{host}Content-Length: 5\r\nContent-Length: 5\r\n\r\n"),
                "content_length_duplicated",
            ),
            (format!("POST / HTTP/1.1\r\n{host}Content-Length: 5, 5\r\n\r\n"), "content_length"),
            (format!("POST / HTTP/1.1\r\n{host}Content-Length: +5\r\n\r\n"), "content_length"),
            (
                format!("POST / HTTP/1.1\r\n{host}Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n"),
                "framing_ambiguous",
            ),
            (format!("POST / HTTP/1.1\r\n{host}Transfer-Encoding: gzip, chunked\r\n\r\n"), "transfer_encoding"),
            (format!("POST / HTTP/1.1\r\n{host}Transfer-Encoding: xchunked\r\n\r\n"), "transfer_encoding"),
            (format!("POST / HTTP/1.0\r\n{host}Transfer-Encoding: chunked\r\n\r\n"), "framing_ambiguous"),
        ];
        for (head, why) in cases {
            assert_eq!(checked(&head), Err(BadHead::Malformed(why)), "{head:?}");
        }
    }

    #[test]
    fn hosts_are_plain() {
        for bad in [
            "", "a/b", "a?b", "a#b", "a b", "a,b", "a\\b", "u@a", "a:port", "a:99999", "[::1", "[x]", "[::1]x", "[]",
            ":80", "a:", "a:+80",
        ] {
            assert_eq!(host_of(bad.as_bytes()), None, "{bad}");
        }
        for (good, host) in [
            ("a", "a"),
            ("example.com", "example.com"),
            ("127.0.0.1:8080", "127.0.0.1"),
            ("[::1]", "[::1]"),
            ("[::1]:1", "[::1]"),
            ("a_b.c", "a_b.c"),
        ] {
            assert_eq!(host_of(good.as_bytes()), Some(host.as_bytes()), "{good}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_head_that_comes_too_slowly_is_refused() {
        let (mut client, mut server) = tokio::io::duplex(64);
        tokio::io::AsyncWriteExt::write_all(&mut client, b"GET / HT").await.unwrap();
        let second = Duration::from_secs(1);
        let limits = HeadLimits { bytes_max: 1024, fields_max: 100, timeout: second };
        assert_eq!(read(&mut server, &mut BytesMut::new(), limits).await, Err(BadHead::Slow));
    }

    #[tokio::test]
    async fn the_rest_of_a_read_stays_in_the_buffer() {
        let (mut client, mut server) = tokio::io::duplex(1024);
        tokio::io::AsyncWriteExt::write_all(&mut client, b"GET / HTTP/1.1\r\nHost: a\r\n\r\nGET /2").await.unwrap();
        let second = Duration::from_secs(1);
        let limits = HeadLimits { bytes_max: 1024, fields_max: 100, timeout: second };
        let mut buffer = BytesMut::new();
        assert_eq!(read(&mut server, &mut buffer, limits).await, Ok(Head::Http1));
        assert!(buffer.ends_with(b"GET /2"));
    }
}
