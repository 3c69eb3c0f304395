//! Owns a watch over the frames of an HTTP/2 connection, both ways: what the library behind it lets pass, or answers with
//! another code than RFC 9113 and RFC 7541 demand.
//! Does not decode header blocks (`block` looks into one that was refused). Invariant: what it refuses no frame-parsing peer may send; what
//! it does not know it lets pass, for the library to judge.

mod block;

use std::collections::VecDeque;
use std::ops::Range;

/// Length of what a client sends first (RFC 9113 §3.4).
const PREFACE_BYTES: usize = 24;
const HEAD_BYTES: usize = 9;
/// Streams whose end is remembered; an error on an older one keeps the library's code.
const ENDED_MAX: usize = 128;
/// How much of a header block is kept to tell two errors apart.
const BLOCK_BYTES_MAX: usize = 16 * 1024;
/// Largest flow-control window (RFC 9113 §6.9.1).
const WINDOW_MAX: u32 = 0x7fff_ffff;
/// What of four bytes is the number of a stream (RFC 9113 §4.1).
const STREAM_BITS: u32 = 0x7fff_ffff;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const PRIORITY: u8 = 2;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const ACK: u8 = 1;
const END_HEADERS: u8 = 4;
const PADDED: u8 = 8;
const WITH_PRIORITY: u8 = 0x20;
const INITIAL_WINDOW_SIZE: u8 = 4;

/// Why a connection ends (RFC 9113 §7).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reason {
    Protocol = 1,
    FlowControl = 3,
    StreamClosed = 5,
    FrameSize = 6,
    Compression = 9,
}

/// Where a direction stands between two frames.
#[derive(Default)]
struct Cursor {
    /// Bytes still to come before the first frame.
    preface: usize,
    head: [u8; HEAD_BYTES],
    head_seen: usize,
    /// Bytes of the payload still to come, and of which those already seen.
    left: usize,
    seen: usize,
}

/// The watch over one connection.
pub(super) struct Frames {
    inward: Cursor,
    outward: Cursor,
    /// The first frame was there: it must be SETTINGS.
    begun: bool,
    /// Bytes of a setting that is split.
    setting: [u8; 6],
    /// The stream of a header block that goes on in the next frame.
    block: Option<u32>,
    /// The block opens a stream.
    opens: bool,
    stream_max: u32,
    /// Streams that the client has ended, youngest last.
    ended: VecDeque<u32>,
    /// What the library's PROTOCOL_ERROR about the last frame would be in the words of the specification.
    meant: Option<Reason>,
    /// The block of the last frame, if it opened a stream; looked at only when the library gives up.
    fields: Vec<u8>,
    /// Which part of the payload of HEADERS is the block.
    part: Range<usize>,
}

// === impl Cursor ===

impl Cursor {
    /// Takes the bytes that belong together: a whole head, or a piece of a payload.
    fn advance<'a>(&mut self, bytes: &mut &'a [u8]) -> Option<Piece<'a>> {
        let skipped = self.preface.min(bytes.len());
        self.preface -= skipped;
        take(bytes, skipped);
        if bytes.is_empty() {
            return None;
        }
        if self.left > 0 {
            let at = self.seen;
            let piece = take(bytes, self.left.min(bytes.len()));
            self.left -= piece.len();
            self.seen += piece.len();
            return Some(Piece::Payload { at, bytes: piece });
        }
        let piece = take(bytes, (HEAD_BYTES - self.head_seen).min(bytes.len()));
        for (to, from) in self.head.iter_mut().skip(self.head_seen).zip(piece) {
            *to = *from;
        }
        self.head_seen += piece.len();
        if self.head_seen < HEAD_BYTES {
            return None;
        }
        let head = self.head();
        (self.head_seen, self.left, self.seen) = (0, head.length, 0);
        Some(Piece::Head(head))
    }

    /// The head that was read last.
    fn head(&self) -> Head {
        let [a, b, c, kind, flags, stream @ ..] = self.head;
        let length = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
        Head { kind, flags, length, stream: u32::from_be_bytes(stream) & STREAM_BITS }
    }
}

enum Piece<'a> {
    Head(Head),
    Payload { at: usize, bytes: &'a [u8] },
}

struct Head {
    kind: u8,
    flags: u8,
    length: usize,
    stream: u32,
}

fn take<'a>(bytes: &mut &'a [u8], count: usize) -> &'a [u8] {
    let (piece, rest) = bytes.split_at(count);
    *bytes = rest;
    piece
}

// === impl Frames ===

impl Frames {
    /// A watch over a connection whose preface is still to be read.
    pub(super) fn new() -> Self {
        Self {
            inward: Cursor { preface: PREFACE_BYTES, ..Cursor::default() },
            outward: Cursor::default(),
            begun: false,
            setting: [0; 6],
            block: None,
            opens: false,
            stream_max: 0,
            ended: VecDeque::new(),
            meant: None,
            fields: Vec::new(),
            part: 0..0,
        }
    }

    /// Sees bytes on their way to the library.
    ///
    /// # Errors
    /// How the connection has to end: the library must not see these bytes.
    pub(super) fn read(&mut self, mut bytes: &[u8]) -> Result<(), Reason> {
        while let Some(piece) = self.inward.advance(&mut bytes) {
            match piece {
                Piece::Head(head) => self.head(&head)?,
                Piece::Payload { at, bytes } => match self.inward.head() {
                    head if head.kind == SETTINGS => self.settings(at, bytes)?,
                    head if head.kind == HEADERS => self.keep_fields(&head, at, bytes)?,
                    head if head.kind == CONTINUATION => self.keep(bytes),
                    _ => {}
                },
            }
        }
        Ok(())
    }

    /// Sees bytes on their way to the client; gives the place and the value of a byte that has to be another: the code
    /// with which the library gives up.
    pub(super) fn write(&mut self, bytes: &[u8]) -> Option<(usize, u8)> {
        let (mut rest, mut other) = (bytes, None);
        while let Some(piece) = self.outward.advance(&mut rest) {
            // Last stream, then the code (RFC 9113 §6.8), in one piece.
            if let Piece::Payload { at: 0, bytes: payload } = piece
                && self.outward.head().kind == GOAWAY
                && payload.get(4..8) == Some(&(Reason::Protocol as u32).to_be_bytes())
                && let Some(meant) = self.meant
                && (meant != Reason::Compression || !block::names_a_fault(&self.fields))
            {
                other = Some((bytes.len() - rest.len() - payload.len() + 7, meant as u8));
            }
        }
        other
    }

    /// The frame that ends the connection (RFC 9113 §6.8); `None` inside a frame of the library's.
    pub(super) fn goodbye(&self, reason: Reason) -> Option<[u8; 17]> {
        let between = self.outward.head_seen == 0 && self.outward.left == 0;
        let [a, b, c, d] = self.stream_max.to_be_bytes();
        between.then_some([0, 0, 8, GOAWAY, 0, 0, 0, 0, 0, a, b, c, d, 0, 0, 0, reason as u8])
    }

    fn head(&mut self, head: &Head) -> Result<(), Reason> {
        self.meant = None;
        if !std::mem::replace(&mut self.begun, true) && head.kind != SETTINGS {
            return Err(Reason::Protocol);
        }
        let goes_on = head.kind == CONTINUATION && self.block == Some(head.stream);
        if !goes_on {
            // Not `clear`: a connection that rests holds no block.
            self.fields = Vec::new();
        }
        if !goes_on && (self.block.is_some() || head.kind == CONTINUATION) {
            return Err(Reason::Protocol);
        }
        let fits = match head.kind {
            SETTINGS if head.flags & ACK != 0 => head.length == 0,
            SETTINGS => head.length.is_multiple_of(6),
            PRIORITY => head.length == 5,
            RST_STREAM | WINDOW_UPDATE => head.length == 4,
            PING => head.length == 8,
            _ => true,
        };
        if !fits {
            return Err(Reason::FrameSize);
        }
        if matches!(head.kind, DATA | HEADERS) && self.ended.contains(&head.stream) {
            self.meant = Some(Reason::StreamClosed);
            self.opens = false;
        } else if head.kind == HEADERS {
            self.opens = head.stream % 2 == 1 && head.stream > self.stream_max;
            self.stream_max = self.stream_max.max(head.stream);
        }
        if matches!(head.kind, HEADERS | CONTINUATION) {
            let last = head.flags & END_HEADERS != 0;
            self.block = (!last).then_some(head.stream);
            // What else may be wrong with a new stream's block costs that stream only.
            if last && self.opens {
                self.meant = Some(Reason::Compression);
            }
        }
        self.note_end(head);
        Ok(())
    }

    fn note_end(&mut self, head: &Head) {
        let ends = matches!(head.kind, DATA | HEADERS) && head.flags & END_STREAM != 0 || head.kind == RST_STREAM;
        if ends && !self.ended.contains(&head.stream) {
            if self.ended.len() >= ENDED_MAX {
                self.ended.pop_front();
            }
            self.ended.push_back(head.stream);
        }
    }

    /// Finds the block between padding and priority (RFC 9113 §6.2).
    fn keep_fields(&mut self, head: &Head, at: usize, bytes: &[u8]) -> Result<(), Reason> {
        if at == 0 {
            let padded = head.flags & PADDED != 0;
            let start = usize::from(padded) + if head.flags & WITH_PRIORITY != 0 { 5 } else { 0 };
            let padding = if padded { bytes.first().map_or(0, |n| usize::from(*n)) } else { 0 };
            let end = head.length.checked_sub(padding).filter(|end| *end >= start).ok_or(Reason::Protocol)?;
            self.part = start..end;
        }
        let (from, to) = (self.part.start.saturating_sub(at), self.part.end.saturating_sub(at).min(bytes.len()));
        self.keep(bytes.get(from..to).unwrap_or_default());
        Ok(())
    }

    fn keep(&mut self, bytes: &[u8]) {
        let room = BLOCK_BYTES_MAX.saturating_sub(self.fields.len());
        self.fields.extend_from_slice(bytes.get(..room.min(bytes.len())).unwrap_or_default());
    }

    fn settings(&mut self, at: usize, bytes: &[u8]) -> Result<(), Reason> {
        for (offset, byte) in bytes.iter().enumerate() {
            let place = (at + offset) % 6;
            if let Some(to) = self.setting.get_mut(place) {
                *to = *byte;
            }
            let [0, INITIAL_WINDOW_SIZE, value @ ..] = self.setting else { continue };
            if place == 5 && u32::from_be_bytes(value) > WINDOW_MAX {
                return Err(Reason::FlowControl);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

    fn frame(kind: u8, flags: u8, stream: u8, payload: &[u8]) -> Vec<u8> {
        let length = u8::try_from(payload.len()).unwrap();
        [&[0, 0, length, kind, flags, 0, 0, 0, stream], payload].concat()
    }

    fn begun() -> Frames {
        let mut frames = Frames::new();
        frames.read(&[PREFACE, &frame(SETTINGS, 0, 0, &[0, 3, 0, 0, 0, 100])].concat()).unwrap();
        frames
    }

    /// The code that a client is told when the library gives up with PROTOCOL_ERROR after these bytes.
    fn told(bytes: &[u8]) -> u8 {
        let mut frames = begun();
        frames.read(bytes).unwrap();
        let mut goaway = frame(GOAWAY, 0, 0, &[0, 0, 0, 1, 0, 0, 0, 1]);
        if let Some((at, code)) = frames.write(&goaway) {
            goaway[at] = code;
        }
        goaway[16]
    }

    #[test]
    fn frames_that_no_peer_may_send_end_the_connection() {
        let continued = frame(HEADERS, END_STREAM, 1, b"x");
        let cases = [
            ("PING of another length", frame(PING, 0, 0, b"short"), Reason::FrameSize),
            ("RST_STREAM of another length", frame(RST_STREAM, 0, 1, b"abc"), Reason::FrameSize),
            ("WINDOW_UPDATE of another length", frame(WINDOW_UPDATE, 0, 0, b"abc"), Reason::FrameSize),
            ("PRIORITY of another length", frame(PRIORITY, 0, 1, b"abcd"), Reason::FrameSize),
            ("SETTINGS of another length", frame(SETTINGS, 0, 0, b"abcd"), Reason::FrameSize),
            ("SETTINGS ACK with a payload", frame(SETTINGS, ACK, 0, &[0, 3, 0, 0, 0, 1]), Reason::FrameSize),
            ("a window too large", frame(SETTINGS, 0, 0, &[0, 4, 0x80, 0, 0, 0]), Reason::FlowControl),
            ("CONTINUATION of nothing", frame(CONTINUATION, END_HEADERS, 1, b"x"), Reason::Protocol),
            ("a block that PING interrupts", [continued, frame(PING, 0, 0, b"12345678")].concat(), Reason::Protocol),
            ("padding without end", frame(HEADERS, END_HEADERS | PADDED, 1, &[9, 0x82]), Reason::Protocol),
        ];
        for (what, bytes, reason) in cases {
            assert_eq!(begun().read(&bytes), Err(reason), "{what}");
            // However the bytes are split.
            let mut frames = begun();
            let found = bytes.iter().find_map(|byte| frames.read(std::slice::from_ref(byte)).err());
            assert_eq!(found, Some(reason), "{what}, byte by byte");
        }
        assert_eq!(Frames::new().read(&[PREFACE, &frame(PING, 0, 0, b"12345678")].concat()), Err(Reason::Protocol));
    }

    #[test]
    fn the_library_s_code_becomes_the_one_of_the_specification() {
        let get = frame(HEADERS, END_STREAM | END_HEADERS, 1, b"x");
        assert_eq!(told(&get), 9, "a block that cannot be decoded");
        assert_eq!(told(&[frame(HEADERS, END_STREAM, 1, b"x"), frame(CONTINUATION, END_HEADERS, 1, b"x")].concat()), 9);
        assert_eq!(told(&[get.clone(), frame(DATA, 0, 1, b"x")].concat()), 5, "DATA after the end");
        assert_eq!(told(&[get.clone(), get.clone()].concat()), 5, "HEADERS after the end");
        let malformed = frame(HEADERS, END_STREAM | END_HEADERS, 1, b"\x82\x00\x01x\x02\r\n");
        assert_eq!(told(&malformed), 1, "a field that is malformed, in a block that is not");
        assert_eq!(told(&frame(HEADERS, END_HEADERS, 2, b"x")), 1, "an even stream");
        assert_eq!(told(&frame(DATA, 0, 0, b"x")), 1, "stream 0");
        assert_eq!(told(&[get, frame(PING, 0, 3, b"12345678")].concat()), 1, "another frame came since");
    }

    #[test]
    fn goodbye_is_said_between_frames_only() {
        let mut frames = begun();
        assert!(frames.goodbye(Reason::Protocol).is_some());
        assert_eq!(frames.write(&frame(DATA, 0, 1, b"hello")[..11]), None);
        assert_eq!(frames.goodbye(Reason::Protocol), None);
        assert_eq!(frames.write(b"llo"), None);
        assert_eq!(frames.goodbye(Reason::FrameSize).map(|bytes| bytes[16]), Some(6));
    }
}
