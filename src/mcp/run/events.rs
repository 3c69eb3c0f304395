//! Owns the splitting of an AgentOS event stream into events, however its bytes are cut.
//! Does not know what events mean (`view`).
//! Invariant: one event is held at a time, at most [`EVENT_BYTES_MAX`]; of a larger one only the name is kept.

/// Largest event that is kept. A terminal event repeats the whole answer of a run.
pub(crate) const EVENT_BYTES_MAX: usize = 4 * 1024 * 1024;

/// One event.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct SseEvent {
    /// The `event` field; empty when there is none.
    pub(crate) name: String,
    /// The `data` lines, joined; empty for an event that was too large.
    pub(crate) data: String,
}

/// Splits a byte stream into events.
#[derive(Debug, Default)]
pub(crate) struct SseEvents {
    line: Vec<u8>,
    line_skipped: bool,
    name: String,
    data: Vec<u8>,
    has_data: bool,
    too_large: bool,
    after_cr: bool,
}

impl SseEvents {
    /// Takes the next bytes and gives the events that they complete.
    pub(crate) fn push(&mut self, mut bytes: &[u8]) -> Vec<SseEvent> {
        let mut events = Vec::new();
        while let Some(at) = memchr::memchr2(b'\n', b'\r', bytes) {
            let (head, rest) = bytes.split_at(at);
            let crlf_tail = at == 0 && self.after_cr && rest.first() == Some(&b'\n');
            self.after_cr = rest.first() == Some(&b'\r');
            bytes = rest.get(1..).unwrap_or_default();
            if !crlf_tail {
                self.hold(head);
                events.extend(self.end_line());
            }
        }
        if !bytes.is_empty() {
            self.after_cr = false;
            self.hold(bytes);
        }
        events
    }

    fn hold(&mut self, bytes: &[u8]) {
        if self.line.len() + bytes.len() > EVENT_BYTES_MAX {
            self.line_skipped = true;
        } else if !self.line_skipped {
            self.line.extend_from_slice(bytes);
        }
    }

    fn end_line(&mut self) -> Option<SseEvent> {
        let line = std::mem::take(&mut self.line);
        if std::mem::take(&mut self.line_skipped) {
            (self.too_large, self.has_data) = (true, true);
            return None;
        }
        if line.is_empty() {
            return self.end_event();
        }
        let (field, value) = match memchr::memchr(b':', &line) {
            Some(at) => (line.get(..at).unwrap_or_default(), line.get(at + 1..).unwrap_or_default()),
            None => (line.as_slice(), &[][..]),
        };
        let value = value.strip_prefix(b" ").unwrap_or(value);
        match field {
            b"event" => self.name = String::from_utf8_lossy(value).into_owned(),
            b"data" => self.add_data(value),
            // Spec: comments, `id`, `retry` and unknown fields do not matter here.
            _ => {}
        }
        None
    }

    fn add_data(&mut self, value: &[u8]) {
        if self.data.len() + value.len() + 1 > EVENT_BYTES_MAX {
            self.too_large = true;
        } else if !self.too_large {
            if self.has_data {
                self.data.push(b'\n');
            }
            self.data.extend_from_slice(value);
        }
        self.has_data = true;
    }

    fn end_event(&mut self) -> Option<SseEvent> {
        let (name, data) = (std::mem::take(&mut self.name), std::mem::take(&mut self.data));
        let too_large = std::mem::take(&mut self.too_large);
        let has_data = std::mem::take(&mut self.has_data);
        let data = if too_large { String::new() } else { String::from_utf8_lossy(&data).into_owned() };
        has_data.then_some(SseEvent { name, data })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::indexing_slicing, reason = "a test may panic")]
    use super::*;

    fn event(name: &str, data: &str) -> SseEvent {
        SseEvent { name: name.to_owned(), data: data.to_owned() }
    }

    #[test]
    fn a_stream_may_be_cut_anywhere() {
        let text = ": hello\n\nevent: RunStarted\ndata: {\"a\":\"ä\"}\n\r\nid: 7\r\ndata:x\r\ndata: y\r\n\r\nevent: none\n\ndata\n\n";
        let whole = vec![event("RunStarted", "{\"a\":\"ä\"}"), event("", "x\ny"), event("", "")];
        for at in 0..=text.len() {
            let mut events = SseEvents::default();
            let mut seen = events.push(&text.as_bytes()[..at]);
            seen.extend(events.push(&text.as_bytes()[at..]));
            assert_eq!(seen, whole, "cut at {at}");
        }
        let mut events = SseEvents::default();
        let seen: Vec<SseEvent> = text.bytes().flat_map(|byte| events.push(&[byte])).collect();
        assert_eq!(seen, whole);
    }

    #[test]
    fn of_an_oversized_event_only_the_name_is_kept() {
        let mut events = SseEvents::default();
        assert!(events.push(b"event: RunCompleted\ndata: ").is_empty());
        for _ in 0..5 {
            assert!(events.push(&vec![b'x'; 1024 * 1024]).is_empty());
        }
        assert_eq!(events.push(b"\n\ndata: next\n\n"), vec![event("RunCompleted", ""), event("", "next")]);
    }
}
