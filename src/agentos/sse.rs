//! Owns the incremental parser of server-sent events: bytes in any chunks to named events.
//! Does not know what events mean (`usage`, `mcp`) and keeps no history.
//! Invariant: holds at most the given number of bytes of one event's data, and about as many of one line.
//!
//! WHATWG HTML §9.2.6, "Interpreting an event stream".

use std::ops::ControlFlow;

use memchr::memchr2;

/// One event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Event<'a> {
    /// The `event` field; `message` when there is none.
    pub name: &'a str,
    /// The `data` lines, joined by line feeds; cut when `oversized`.
    pub data: &'a str,
    /// The data was longer than the bound.
    pub oversized: bool,
}

/// Parses a stream of events as its bytes come.
#[derive(Debug)]
pub struct SseEvents {
    bytes_max: usize,
    /// The beginning of a line whose end has not come.
    line: Vec<u8>,
    name: Vec<u8>,
    data: Vec<u8>,
    has_data: bool,
    oversized: bool,
    /// The last byte was CR: a LF that follows belongs to the same line end.
    after_cr: bool,
    /// A byte order mark may only stand in front of the first line.
    begun: bool,
}

const BYTE_ORDER_MARK: &[u8] = b"\xEF\xBB\xBF";

impl SseEvents {
    /// A parser at the beginning of a stream. Of an event's data `bytes_max` are kept; the rest is dropped and the event
    /// says so.
    pub fn new(bytes_max: usize) -> Self {
        Self {
            bytes_max,
            line: Vec::new(),
            name: Vec::new(),
            data: Vec::new(),
            has_data: false,
            oversized: false,
            after_cr: false,
            begun: false,
        }
    }

    /// Takes the next bytes and hands every event that they complete to `sink`, in order.
    pub fn push(&mut self, chunk: &[u8], sink: &mut dyn FnMut(Event<'_>)) {
        let mut rest = chunk;
        while let ControlFlow::Continue(next) = self.push_line(rest, sink) {
            rest = next;
        }
    }

    fn push_line<'c>(&mut self, bytes: &'c [u8], sink: &mut dyn FnMut(Event<'_>)) -> ControlFlow<(), &'c [u8]> {
        let bytes = match bytes {
            [b'\n', rest @ ..] if self.after_cr => rest,
            other => other,
        };
        if bytes.is_empty() {
            return ControlFlow::Break(());
        }
        self.after_cr = false;
        let end = memchr2(b'\n', b'\r', bytes);
        let (text, tail) = bytes.split_at(end.unwrap_or(bytes.len()));
        let Some((line_end, rest)) = tail.split_first() else {
            self.keep(text);
            return ControlFlow::Break(());
        };
        self.after_cr = *line_end == b'\r';
        if self.line.is_empty() {
            self.take_line(text, sink);
        } else {
            self.keep(text);
            let mut line = std::mem::take(&mut self.line);
            self.take_line(&line, sink);
            line.clear();
            self.line = line;
        }
        ControlFlow::Continue(rest)
    }

    /// Keeps the beginning of a line, up to the bound.
    fn keep(&mut self, text: &[u8]) {
        // The field name and its colon stand in front of the data.
        let room = (self.bytes_max + 16).saturating_sub(self.line.len());
        self.line.extend_from_slice(text.get(..room).unwrap_or(text));
        self.oversized |= text.len() > room;
    }

    fn take_line(&mut self, line: &[u8], sink: &mut dyn FnMut(Event<'_>)) {
        let first = !std::mem::replace(&mut self.begun, true);
        let line = if first { line.strip_prefix(BYTE_ORDER_MARK).unwrap_or(line) } else { line };
        if line.is_empty() {
            return self.dispatch(sink);
        }
        let colon = memchr::memchr(b':', line).unwrap_or(line.len());
        let (field, value) = line.split_at(colon);
        let value = value.strip_prefix(b":").unwrap_or(value);
        let value = value.strip_prefix(b" ").unwrap_or(value);
        match field {
            b"event" => {
                self.name.clear();
                self.name.extend_from_slice(value.get(..NAME_BYTES_MAX).unwrap_or(value));
            }
            b"data" => self.take_data(value),
            // Comments (an empty field), `id`, `retry` and unknown fields carry nothing for us.
            _ => {}
        }
    }

    fn take_data(&mut self, value: &[u8]) {
        let line_break: &[u8] = if std::mem::replace(&mut self.has_data, true) { b"\n" } else { b"" };
        for part in [line_break, value] {
            let room = self.bytes_max.saturating_sub(self.data.len());
            self.data.extend_from_slice(part.get(..room).unwrap_or(part));
            self.oversized |= part.len() > room;
        }
    }

    /// Ends an event. One without data is dropped, as the standard says.
    fn dispatch(&mut self, sink: &mut dyn FnMut(Event<'_>)) {
        if self.has_data {
            let name = String::from_utf8_lossy(&self.name);
            let name = if name.is_empty() { "message" } else { &*name };
            sink(Event { name, data: &String::from_utf8_lossy(&self.data), oversized: self.oversized });
        }
        self.name.clear();
        self.data.clear();
        self.has_data = false;
        self.oversized = false;
    }
}

/// Longest event name that is kept; AgentOS's longest has 32 bytes.
const NAME_BYTES_MAX: usize = 128;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const EVENT_BYTES_MAX: usize = 256 * 1024;

    type Seen = (String, String, bool);

    fn parse<'c>(chunks: impl IntoIterator<Item = &'c [u8]>) -> Vec<Seen> {
        let (mut events, mut seen) = (SseEvents::new(EVENT_BYTES_MAX), Vec::new());
        for chunk in chunks {
            let mut sink = |e: Event<'_>| seen.push((e.name.to_owned(), e.data.to_owned(), e.oversized));
            events.push(chunk, &mut sink);
        }
        seen
    }

    fn seen(name: &str, data: &str) -> Seen {
        (name.to_owned(), data.to_owned(), false)
    }

    #[test]
    fn fields_are_read_as_the_standard_says() {
        for (stream, expected) in [
            ("event: A\ndata: {}\n\n", vec![seen("A", "{}")]),
            ("event:A\ndata:{}\n\n", vec![seen("A", "{}")]),
            ("data:  two spaces\n\n", vec![seen("message", " two spaces")]),
            ("event: A\r\ndata: 1\r\n\r\nevent: B\rdata: 2\r\r", vec![seen("A", "1"), seen("B", "2")]),
            ("data: a\ndata: b\ndata\n\n", vec![seen("message", "a\nb\n")]),
            (": keepalive\n\nid: 7\nretry: 5\ndata: x\n\n", vec![seen("message", "x")]),
            ("event: A\n\ndata: x\n\n", vec![seen("message", "x")]),
            ("event: A\nevent: B\ndata: x\n\n", vec![seen("B", "x")]),
            ("\u{feff}data: x\n\n\u{feff}data: y\n\n", vec![seen("message", "x")]),
            ("event: A\ndata: no blank line at the end\n", vec![]),
        ] {
            assert_eq!(parse([stream.as_bytes()]), expected, "{stream:?}");
        }
    }

    #[test]
    fn an_oversized_event_is_cut_and_keeps_its_name() {
        let big = "x".repeat(EVENT_BYTES_MAX + 100);
        let stream = format!("event: Big\ndata: {big}\n\nevent: Small\ndata: 1\n\n");
        let expected = [("Big".to_owned(), big[..EVENT_BYTES_MAX].to_owned(), true), seen("Small", "1")];
        assert_eq!(parse([stream.as_bytes()]), expected);
        assert_eq!(parse(stream.as_bytes().chunks(1_000)), expected);
    }

    #[test]
    fn many_data_lines_stay_within_the_bound() {
        for line in ["data: 0123456789\n", "data\n"] {
            let stream = format!("{}\n", line.repeat(2 * EVENT_BYTES_MAX / (line.len() - 4)));
            let events = parse([stream.as_bytes()]);
            assert!(matches!(events.as_slice(), [(_, data, true)] if data.len() <= EVENT_BYTES_MAX), "{line:?}");
        }
    }

    #[test]
    fn invalid_utf8_does_not_stop_the_stream() {
        assert_eq!(parse([&b"data: \xFF\n\ndata: ok\n\n"[..]]), [seen("message", "\u{fffd}"), seen("message", "ok")]);
    }

    proptest! {
        #[test]
        fn chunk_borders_change_nothing(cuts in prop::collection::vec(0_usize..200, 0..30)) {
            let stream = "event: RunStarted\r\ndata: {\"a\":\"é🙂\"}\r\n\r\n: ping\n\ndata: 1\r\ndata: 2\n\nevent: B\rdata: ü\r\r";
            let bytes = stream.as_bytes();
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(bytes.len())).collect();
            cuts.push(bytes.len());
            cuts.sort_unstable();
            let mut from = 0;
            let chunks = cuts.into_iter().map(|cut| &bytes[std::mem::replace(&mut from, cut)..cut]);
            let expected = [seen("RunStarted", "{\"a\":\"é🙂\"}"), seen("message", "1\n2"), seen("B", "ü")];
            prop_assert_eq!(parse(chunks), expected);
        }
    }
}
