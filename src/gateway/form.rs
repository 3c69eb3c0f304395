//! Owns a form on its way upstream: what was read of it, what the gateway sets in it, what still streams.
//! Does not know operations (`body` hands it the allow-list) and never buffers a file whole.
//! Invariant: what goes upstream is written anew from the parse; the caller's own bytes of structure never pass.

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{BufMut as _, Bytes, BytesMut};
use http_body::{Body as _, Frame};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use super::call::StreamBody;
use super::multipart::{Event, Parser, PartHead};
use super::refusal::{Code, Refusal, Stage};

/// Everything but unreserved characters is percent-encoded in an urlencoded form.
const FORM: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');
/// How the boundary of every multipart body that the gateway writes begins. A random part follows: no body holds it.
const BOUNDARY_PREFIX: &str = "tollbridge-";
/// A piece of at least this many bytes goes upstream as it came; smaller ones are copied together.
const PIECE_BYTES_MIN: usize = 1024;

/// One field that was read whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Field {
    pub(super) head: PartHead,
    /// A text is one piece at most; a file is in pieces as they came.
    pub(super) value: Vec<Bytes>,
}

/// A form, read as far as it had to be.
pub(super) struct Form {
    fields: Vec<Field>,
    multipart: bool,
    rest: Option<Rest>,
}

/// What of a large form is still to come.
pub(super) struct Rest {
    pub(super) parser: Parser,
    /// Behind a lock that is never contended: a shared reference to a form must be `Send`, its body is not `Sync`.
    pub(super) body: parking_lot::Mutex<StreamBody>,
    /// The last field of the form is a part whose bytes still come.
    pub(super) open: bool,
    /// Field names that may still come.
    pub(super) allowed: &'static [&'static str],
    /// Most bytes in the whole body.
    pub(super) bytes_left: u64,
}

/// A form ready to be sent.
pub(super) enum Outgoing {
    /// Whole, can be sent again.
    Whole(Bytes),
    /// Streams, can be sent once.
    Streamed(Box<FormStream>),
}

/// A large form as it goes upstream: the fields that were read, then the rest as it comes.
pub(super) struct FormStream {
    pieces: Pieces,
    rest: Rest,
    boundary: String,
    done: bool,
}

/// Bytes in order, on their way upstream.
#[derive(Default)]
struct Pieces {
    ready: VecDeque<Bytes>,
    /// The end, to which small ones are still added.
    open: BytesMut,
}

// === impl Form ===

impl Form {
    /// A form from what was read and what is still to come.
    pub(super) fn new(fields: Vec<Field>, multipart: bool, rest: Option<Rest>) -> Self {
        Self { fields, multipart, rest }
    }

    /// Reads an urlencoded body.
    pub(super) fn urlencoded(body: &[u8]) -> Self {
        let fields = url::form_urlencoded::parse(body).map(|(name, value)| Field::text(&name, value.into_owned()));
        Self { fields: fields.collect(), multipart: false, rest: None }
    }

    /// Names of the fields that were read, in order.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.fields.iter().map(|f| f.head.name.as_str())
    }

    /// The text of a field that was read, if it is there and no file.
    pub(super) fn text(&self, name: &str) -> Option<&str> {
        let field = self.fields.iter().find(|f| f.head.name == name && f.head.filename.is_none())?;
        std::str::from_utf8(field.text_bytes()).ok()
    }

    /// Sets a text field, replacing every field of that name.
    pub(super) fn set(&mut self, name: &str, value: &str) {
        self.remove(name);
        // In front: what the gateway says must come before anything that streams.
        self.fields.insert(0, Field::text(name, value.to_owned()));
    }

    /// Removes every field of that name.
    pub(super) fn remove(&mut self, name: &str) {
        self.fields.retain(|f| f.head.name != name);
    }

    /// A second form like this one, where nothing of it streams.
    pub(super) fn copy(&self) -> Option<Self> {
        self.rest.is_none().then(|| Self { fields: self.fields.clone(), multipart: self.multipart, rest: None })
    }

    /// The content type and the body to send.
    pub(super) fn into_outgoing(self) -> (String, Outgoing) {
        if !self.multipart {
            let pairs = self.fields.iter().map(|f| {
                let value = String::from_utf8_lossy(f.text_bytes());
                format!("{}={}", utf8_percent_encode(&f.head.name, FORM), utf8_percent_encode(&value, FORM))
            });
            let body = pairs.collect::<Vec<_>>().join("&");
            return ("application/x-www-form-urlencoded".into(), Outgoing::Whole(body.into()));
        }
        let boundary = format!("{BOUNDARY_PREFIX}{}", uuid::Uuid::new_v4().simple());
        let content_type = format!("multipart/form-data; boundary={boundary}");
        let mut pieces = Pieces::default();
        let (last, open) = (self.fields.len(), self.rest.as_ref().is_some_and(|rest| rest.open));
        for (at, field) in self.fields.into_iter().enumerate() {
            write_part_head(&mut pieces.open, &boundary, &field.head);
            field.value.into_iter().for_each(|piece| pieces.push(piece));
            if !open || at + 1 < last {
                pieces.open.put_slice(b"\r\n");
            }
        }
        match self.rest {
            None => {
                write_end(&mut pieces.open, &boundary);
                (content_type, Outgoing::Whole(pieces.whole()))
            }
            Some(rest) => {
                let stream = FormStream { pieces, rest, boundary, done: false };
                (content_type, Outgoing::Streamed(Box::new(stream)))
            }
        }
    }
}

impl Field {
    fn text(name: &str, value: String) -> Self {
        let head = PartHead { name: name.to_owned(), filename: None, content_type: None };
        Self { head, value: vec![value.into()] }
    }

    /// Adds bytes as they came: a text becomes one piece, a file is not copied, but for pieces so small that a list of
    /// them would hold many times their bytes.
    pub(super) fn append(&mut self, data: Bytes) {
        let is_text = self.head.filename.is_none();
        match self.value.last_mut() {
            Some(last) if is_text || last.len() < PIECE_BYTES_MIN => {
                let mut joined = BytesMut::from(std::mem::take(last));
                joined.put_slice(&data);
                *last = joined.freeze();
            }
            // Copied: it is kept until it is sent, and would keep all that came with it.
            None if is_text => self.value.push(Bytes::copy_from_slice(&data)),
            Some(_) | None => self.value.push(data),
        }
    }

    /// The bytes of a text.
    pub(super) fn text_bytes(&self) -> &[u8] {
        self.value.first().map_or(&[], |text| text)
    }
}

// === impl Pieces ===

impl Pieces {
    fn push(&mut self, piece: Bytes) {
        if piece.len() < PIECE_BYTES_MIN {
            self.open.put_slice(&piece);
        } else {
            self.close();
            self.ready.push_back(piece);
        }
    }

    fn close(&mut self) {
        if !self.open.is_empty() {
            self.ready.push_back(std::mem::take(&mut self.open).freeze());
        }
    }

    fn next(&mut self) -> Option<Bytes> {
        if self.ready.is_empty() {
            self.close();
        }
        self.ready.pop_front()
    }

    fn whole(mut self) -> Bytes {
        self.close();
        if self.ready.len() == 1 {
            return self.ready.pop_front().unwrap_or_default();
        }
        let mut whole = BytesMut::with_capacity(self.ready.iter().map(Bytes::len).sum());
        self.ready.iter().for_each(|piece| whole.put_slice(piece));
        whole.freeze()
    }
}

// === impl FormStream ===

impl FormStream {
    /// Polls the next bytes to send.
    ///
    /// # Errors
    /// A [`Refusal`] when the rest of the form is malformed, too large, or holds a field that came too late.
    pub(super) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Refusal>>> {
        loop {
            if let Some(piece) = self.pieces.next() {
                return Poll::Ready(Some(Ok(piece)));
            }
            if self.done {
                return Poll::Ready(None);
            }
            match self.drain_parser() {
                Ok(true) => continue,
                Ok(false) => {}
                Err(refusal) => return Poll::Ready(Some(Err(refusal))),
            }
            match Pin::new(self.rest.body.get_mut()).poll_frame(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Some(Ok(frame))) => {
                    if let Err(refusal) = self.feed(frame) {
                        return Poll::Ready(Some(Err(refusal)));
                    }
                }
                Poll::Ready(Some(Err(broken))) => {
                    let refusal = Refusal::new(Code::FormMalformed, Stage::Request).because(broken.to_string());
                    return Poll::Ready(Some(Err(refusal)));
                }
                Poll::Ready(None) => {
                    // The end of a form is an event of the parser: what comes here breaks off.
                    let broken = self.rest.parser.finish().map_err(malformed).err();
                    return Poll::Ready(broken.map(Err));
                }
            }
        }
    }

    fn feed(&mut self, frame: Frame<Bytes>) -> Result<(), Refusal> {
        let Ok(data) = frame.into_data() else { return Ok(()) };
        let left = self.rest.bytes_left.checked_sub(data.len() as u64);
        self.rest.bytes_left = left.ok_or_else(|| Refusal::new(Code::BodyTooLarge, Stage::Request))?;
        self.rest.parser.feed(&data);
        Ok(())
    }

    /// Takes what the parser has; says whether it had anything.
    fn drain_parser(&mut self) -> Result<bool, Refusal> {
        let mut any = false;
        while let Some(event) = self.rest.parser.next().map_err(malformed)? {
            any = true;
            match event {
                Event::Part(head) => {
                    self.admit_late(&head)?;
                    write_part_head(&mut self.pieces.open, &self.boundary, &head);
                }
                // Of a file: a text that has begun was read whole before, and none may begin now.
                Event::Data(data) => self.pieces.push(data),
                Event::PartEnd => self.pieces.open.put_slice(b"\r\n"),
                Event::End => {
                    write_end(&mut self.pieces.open, &self.boundary);
                    self.done = true;
                }
            }
        }
        self.rest.parser.compact();
        Ok(any)
    }

    /// Only files may come after the first 48 KiB.
    fn admit_late(&self, head: &PartHead) -> Result<(), Refusal> {
        super::body::check_part(head, self.rest.allowed)?;
        if head.filename.is_none() {
            return Err(super::body::field_too_late(&head.name));
        }
        Ok(())
    }
}

/// A multipart error as a refusal; the text of [`super::multipart::Malformed`] is safe to show.
pub(super) fn malformed(error: super::multipart::Malformed) -> Refusal {
    Refusal::new(Code::FormMalformed, Stage::Request).saying(error.0)
}

fn write_part_head(out: &mut BytesMut, boundary: &str, head: &PartHead) {
    let quoted = |text: &str| text.replace('"', "%22").replace(['\r', '\n'], " ");
    out.put_slice(
        format!("--{boundary}\r\nContent-Disposition: form-data; name=\"{}\"", quoted(&head.name)).as_bytes(),
    );
    if let Some(filename) = &head.filename {
        out.put_slice(format!("; filename=\"{}\"", quoted(filename)).as_bytes());
    }
    if let Some(content_type) = &head.content_type {
        out.put_slice(format!("\r\nContent-Type: {content_type}").as_bytes());
    }
    out.put_slice(b"\r\n\r\n");
}

fn write_end(out: &mut BytesMut, boundary: &str) {
    out.put_slice(format!("--{boundary}--\r\n").as_bytes());
}

#[cfg(test)]
mod tests {
    use super::super::body::{self, Payload};
    use super::super::call::Inbound;
    use super::super::limits::Limits;
    use super::*;
    use crate::agentos::Catalog;

    fn file() -> Field {
        let head = PartHead { name: "files".into(), filename: Some("a".into()), content_type: None };
        Field { head, value: Vec::new() }
    }

    #[test]
    fn a_file_that_comes_byte_by_byte_is_no_list_of_bytes() {
        let (mut field, bytes) = (file(), 48 << 10);
        for _ in 0..bytes {
            field.append(Bytes::from_static(b"x"));
        }
        assert_eq!(field.value.iter().map(Bytes::len).sum::<usize>(), bytes);
        assert!(field.value.len() <= bytes / PIECE_BYTES_MIN, "{} pieces", field.value.len());
    }

    #[test]
    fn large_pieces_go_upstream_as_they_came_and_in_order() {
        let large = Bytes::from(vec![b'a'; 4096]);
        let mut field = file();
        field.append(large.clone());
        field.append(Bytes::from_static(b"end"));
        let mut pieces = Pieces::default();
        pieces.open.put_slice(b"head");
        field.value.into_iter().for_each(|piece| pieces.push(piece));
        pieces.open.put_slice(b"tail");
        let sent: Vec<Bytes> = std::iter::from_fn(|| pieces.next()).collect();
        assert_eq!(sent, [Bytes::from_static(b"head"), large.clone(), Bytes::from_static(b"endtail")]);
        assert_eq!(sent[1].as_ptr(), large.as_ptr());
    }

    const TYPE: &str = "multipart/form-data; boundary=theirs";

    /// A form as a caller writes it: a text, and files of these contents.
    fn written(files: &[Vec<u8>]) -> Vec<u8> {
        let mut body = b"--theirs\r\nContent-Disposition: form-data; name=\"message\"\r\n\r\nhi".to_vec();
        for content in files {
            let head = "\r\n--theirs\r\nContent-Disposition: form-data; name=\"files\"; filename=\"a\"\r\n\r\n";
            body.extend_from_slice(head.as_bytes());
            body.extend_from_slice(content);
        }
        body.extend_from_slice(b"\r\n--theirs--\r\n");
        body
    }

    /// Names and contents of a form, read whole.
    fn parts(content_type: &str, body: &[u8]) -> Vec<(PartHead, Vec<u8>)> {
        let mut parser = Parser::for_content_type(content_type).unwrap();
        parser.feed(body);
        let mut parts: Vec<(PartHead, Vec<u8>)> = Vec::new();
        while let Some(event) = parser.next().unwrap() {
            match event {
                Event::Part(head) => parts.push((head, Vec::new())),
                Event::Data(data) => parts.last_mut().unwrap().1.extend_from_slice(&data),
                Event::PartEnd | Event::End => {}
            }
        }
        parser.finish().unwrap();
        parts
    }

    /// What goes upstream of a body that comes in these pieces, with its content type; says too whether it streamed.
    async fn passed(pieces: Vec<Bytes>) -> (String, Vec<u8>, bool) {
        let frames = futures_util::stream::iter(pieces.into_iter().map(|piece| Ok(Frame::data(piece))));
        let body = http_body_util::BodyExt::boxed_unsync(http_body_util::StreamBody::new(frames));
        let mut headers = http::HeaderMap::new();
        headers.insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static(TYPE));
        let row = Catalog::shipped().get("create_agent_run").unwrap();
        let inbound = Inbound::Stream { length: None, body };
        let payload = body::read(inbound, row, &headers, &Limits::default()).await;
        let Payload::Form(form) = payload.unwrap_or_else(|refusal| panic!("{refusal:?}")) else { panic!("no form") };
        let (content_type, outgoing) = form.into_outgoing();
        match outgoing {
            Outgoing::Whole(bytes) => (content_type, bytes.to_vec(), false),
            Outgoing::Streamed(mut stream) => {
                let mut sent = Vec::new();
                while let Some(piece) = std::future::poll_fn(|cx| stream.poll_next(cx)).await {
                    let piece = piece.unwrap_or_else(|refusal| panic!("{refusal:?}"));
                    assert!(!piece.is_empty(), "an empty piece would end a chunked body");
                    sent.extend_from_slice(&piece);
                }
                (content_type, sent, true)
            }
        }
    }

    proptest::proptest! {
        #![proptest_config(proptest::prelude::ProptestConfig::with_cases(64))]

        #[test]
        fn a_form_says_the_same_upstream_however_it_comes(
            sizes in proptest::collection::vec(0_usize..80_000, 0..4),
            cuts in proptest::collection::vec(1_usize..20_000, 1..40),
            noise in 0_u8..=255,
        ) {
            // Line breaks and dashes, so that much of it may begin a boundary.
            let content = |size| b"\r\n--theirx".iter().copied().cycle().skip(noise.into()).take(size).collect();
            let body = written(&sizes.iter().map(|size| content(*size)).collect::<Vec<_>>());
            let (mut rest, mut pieces) = (Bytes::from(body.clone()), Vec::new());
            for cut in cuts.iter().cycle() {
                if rest.is_empty() {
                    break;
                }
                pieces.push(rest.split_to(rest.len().min(*cut)));
            }
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
            let (content_type, sent, streamed) = runtime.block_on(passed(pieces));
            proptest::prop_assert_eq!(parts(&content_type, &sent), parts(TYPE, &body));
            proptest::prop_assert!(streamed || body.len() < 96 << 10, "{} bytes were read whole", body.len());
        }
    }
}
