//! Owns reading `multipart/form-data` piece by piece, strictly: one boundary, CRLF, one name per part.
//! Does not decide which fields are allowed (`form`) and never holds more than it was fed plus one part head.
//! Invariant: a body without its final boundary is an error, never a shorter form (AgentOS would take it silently).

use bytes::{Bytes, BytesMut};
use memchr::memmem;

/// Longest part head, in bytes.
const PART_HEAD_BYTES_MAX: usize = 8 * 1024;
/// Most parts in one body.
const PARTS_MAX: usize = 256;
/// Longest boundary (RFC 2046 §5.1.1).
const BOUNDARY_BYTES_MAX: usize = 70;

/// Why a multipart body was refused; safe to show to the caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(super) struct Malformed(pub(super) &'static str);

/// The head of one part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PartHead {
    /// Field name.
    pub(super) name: String,
    /// File name, when the part is a file.
    pub(super) filename: Option<String>,
    /// Content type of the part.
    pub(super) content_type: Option<String>,
}

/// What a multipart body consists of, in order.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Event {
    /// A part begins.
    Part(PartHead),
    /// Bytes of the part.
    Data(Bytes),
    /// The part ends.
    PartEnd,
    /// The final boundary was seen.
    End,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Boundary,
    Head,
    Data,
    Epilogue,
}

/// An incremental parser: feed bytes, take events.
pub(super) struct Parser {
    delimiter: Vec<u8>,
    buffer: BytesMut,
    state: State,
    parts: usize,
}

// === impl Parser ===

impl Parser {
    /// A parser for the boundary of a `Content-Type`.
    ///
    /// # Errors
    /// [`Malformed`] when the parameter is missing, given twice, too long, or holds odd characters.
    pub(super) fn for_content_type(content_type: &str) -> Result<Self, Malformed> {
        let boundary = boundary_of(content_type)?;
        // The body opens with the boundary and no CRLF before it: lending one makes every boundary look alike.
        Ok(Self {
            delimiter: [b"\r\n--", boundary.as_bytes()].concat(),
            buffer: BytesMut::from(&b"\r\n"[..]),
            state: State::Boundary,
            parts: 0,
        })
    }

    /// Adds bytes as they came.
    pub(super) fn feed(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// Gives back the memory of what was taken: a tail that may begin a boundary would keep the whole chunk until the
    /// next one comes, which may be long.
    pub(super) fn compact(&mut self) {
        self.buffer = BytesMut::from(&*self.buffer);
    }

    /// Takes the next event, or `None` when more bytes are needed.
    ///
    /// # Errors
    /// [`Malformed`] says what is wrong; the body cannot be read further.
    pub(super) fn next(&mut self) -> Result<Option<Event>, Malformed> {
        match self.state {
            State::Boundary => self.boundary(),
            State::Head => self.head(),
            State::Data => Ok(self.data()),
            State::Epilogue => self.epilogue(),
        }
    }

    /// Says whether the final boundary was seen, once the body has ended.
    ///
    /// # Errors
    /// [`Malformed`] when the body broke off.
    pub(super) fn finish(&self) -> Result<(), Malformed> {
        match self.state {
            State::Epilogue => Ok(()),
            State::Boundary | State::Head | State::Data => {
                Err(Malformed("the multipart body ends before its final boundary"))
            }
        }
    }

    fn boundary(&mut self) -> Result<Option<Event>, Malformed> {
        let need = self.delimiter.len() + 2;
        if self.buffer.len() < need {
            return Ok(None);
        }
        let head = self.buffer.split_to(need);
        if !head.starts_with(&self.delimiter) {
            return Err(Malformed("the multipart body does not start with its boundary"));
        }
        if head.ends_with(b"--") {
            self.state = State::Epilogue;
            return Ok(Some(Event::End));
        }
        if !head.ends_with(b"\r\n") {
            return Err(Malformed("a multipart boundary is followed by other bytes"));
        }
        self.parts += 1;
        if self.parts > PARTS_MAX {
            return Err(Malformed("the multipart body has too many parts"));
        }
        self.state = State::Head;
        self.head()
    }

    fn head(&mut self) -> Result<Option<Event>, Malformed> {
        let Some(end) = memmem::find(&self.buffer, b"\r\n\r\n") else {
            return if self.buffer.len() > PART_HEAD_BYTES_MAX {
                Err(Malformed("a multipart part head is too long"))
            } else {
                Ok(None)
            };
        };
        if end > PART_HEAD_BYTES_MAX {
            return Err(Malformed("a multipart part head is too long"));
        }
        let raw = self.buffer.split_to(end);
        // The CRLF that ends the head stays: an empty part is directly followed by its boundary.
        let _ = self.buffer.split_to(2);
        let head = part_head(&raw)?;
        let _ = self.buffer.split_to(2);
        self.state = State::Data;
        Ok(Some(Event::Part(head)))
    }

    fn data(&mut self) -> Option<Event> {
        if let Some(at) = memmem::find(&self.buffer, &self.delimiter) {
            if at > 0 {
                return Some(Event::Data(self.buffer.split_to(at).freeze()));
            }
            self.state = State::Boundary;
            return Some(Event::PartEnd);
        }
        // The tail may be the beginning of a boundary.
        let safe = self.buffer.len().saturating_sub(self.delimiter.len() - 1);
        (safe > 0).then(|| Event::Data(self.buffer.split_to(safe).freeze()))
    }

    fn epilogue(&mut self) -> Result<Option<Event>, Malformed> {
        if self.buffer.is_empty() || b"\r\n".starts_with(&self.buffer) {
            Ok(None)
        } else {
            Err(Malformed("bytes follow the final multipart boundary"))
        }
    }
}

/// Reads the one `boundary` parameter of a `Content-Type`.
fn boundary_of(content_type: &str) -> Result<String, Malformed> {
    let mut boundary = None;
    for (name, value) in parameters(content_type)? {
        if name.eq_ignore_ascii_case("boundary") && boundary.replace(value).is_some() {
            return Err(Malformed("the content type names two boundaries"));
        }
    }
    let boundary = boundary.ok_or(Malformed("the content type names no boundary"))?;
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"'()+_,-./:=? ".contains(&b);
    if boundary.is_empty()
        || boundary.len() > BOUNDARY_BYTES_MAX
        || !boundary.bytes().all(plain)
        || boundary.ends_with(' ')
    {
        return Err(Malformed("the multipart boundary is not valid"));
    }
    Ok(boundary)
}

fn part_head(raw: &[u8]) -> Result<PartHead, Malformed> {
    let text = std::str::from_utf8(raw).map_err(|_| Malformed("a multipart part head is not UTF-8"))?;
    let (mut disposition, mut content_type) = (None, None);
    for line in text.split("\r\n") {
        let (name, value) =
            line.split_once(':').ok_or(Malformed("a multipart part head has a line without a colon"))?;
        if line.contains(['\r', '\n', '\0']) {
            return Err(Malformed("a multipart part head has a bare line break"));
        }
        let slot = match name.to_ascii_lowercase().as_str() {
            "content-disposition" => &mut disposition,
            "content-type" => &mut content_type,
            // Informative only; the length that counts is the boundary's.
            "content-length" => continue,
            _ => return Err(Malformed("a multipart part head has an unexpected header")),
        };
        if slot.replace(value.trim()).is_some() {
            return Err(Malformed("a multipart part head has a header twice"));
        }
    }
    let (name, filename) = disposition_of(disposition.ok_or(Malformed("a multipart part has no disposition"))?)?;
    Ok(PartHead { name, filename, content_type: content_type.map(str::to_owned) })
}

/// Reads `form-data; name="…"; filename="…"`. `name*` and `filename*` are refused (RFC 7578 §4.2).
fn disposition_of(value: &str) -> Result<(String, Option<String>), Malformed> {
    if !value.split(';').next().is_some_and(|kind| kind.trim().eq_ignore_ascii_case("form-data")) {
        return Err(Malformed("a multipart part is not `form-data`"));
    }
    let (mut name, mut filename) = (None, None);
    for (key, value) in parameters(value)? {
        let slot = match key.to_ascii_lowercase().as_str() {
            "name" => &mut name,
            "filename" => &mut filename,
            _ => return Err(Malformed("a multipart disposition has an unexpected parameter")),
        };
        if slot.replace(value).is_some() {
            return Err(Malformed("a multipart disposition has a parameter twice"));
        }
    }
    let name = name.filter(|n| !n.is_empty()).ok_or(Malformed("a multipart part has no name"))?;
    if filename.as_deref().is_some_and(|f| f.contains(['/', '\\']) || f.chars().any(char::is_control)) {
        return Err(Malformed("a file name holds a path separator or a control character"));
    }
    Ok((name, filename))
}

/// Splits `value; a=b; c="d"` into its parameters. Backslash escapes are refused: parsers disagree on them.
fn parameters(value: &str) -> Result<Vec<(String, String)>, Malformed> {
    const BAD: Malformed = Malformed("a header parameter is malformed");
    let mut rest = value.find(';').and_then(|at| value.get(at..)).unwrap_or("");
    let mut found = Vec::new();
    while let Some(after) = rest.strip_prefix(';') {
        let after = after.trim_start();
        if after.is_empty() {
            break;
        }
        let (key, tail) = after.split_once('=').ok_or(BAD)?;
        let (value, tail) = match tail.strip_prefix('"') {
            Some(quoted) => quoted.split_once('"').ok_or(BAD)?,
            None => tail.split_at(tail.find(';').unwrap_or(tail.len())),
        };
        if key.contains(['*', ' ', '"']) || value.contains(['\\', '"', '\r', '\n', '\0']) {
            return Err(BAD);
        }
        found.push((key.to_owned(), value.trim_end().to_owned()));
        rest = tail.trim_start();
    }
    if rest.is_empty() || rest.starts_with(';') { Ok(found) } else { Err(BAD) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Name, file name and content of a part.
    type Part = (String, Option<String>, Vec<u8>);

    fn parse(content_type: &str, chunks: &[&[u8]]) -> Result<Vec<Part>, Malformed> {
        let mut parser = Parser::for_content_type(content_type)?;
        let mut parts: Vec<Part> = Vec::new();
        for chunk in chunks {
            parser.feed(chunk);
            while let Some(event) = parser.next()? {
                match event {
                    Event::Part(head) => parts.push((head.name, head.filename, Vec::new())),
                    Event::Data(data) => parts.last_mut().unwrap().2.extend_from_slice(&data),
                    Event::PartEnd | Event::End => {}
                }
            }
        }
        parser.finish()?;
        Ok(parts)
    }

    const TYPE: &str = "multipart/form-data; boundary=XX";
    const BODY: &[u8] = b"--XX\r\nContent-Disposition: form-data; name=\"message\"\r\n\r\nhi\r\nthere\r\n--XX\r\n\
        Content-Disposition: form-data; name=\"files\"; filename=\"a.txt\"\r\nContent-Type: text/plain\r\n\r\n\r\n--XY\r\n--XX--\r\n";

    #[test]
    fn parts_are_the_same_however_the_body_is_split() {
        let whole = parse(TYPE, &[BODY]).unwrap();
        assert_eq!(
            whole,
            vec![
                ("message".into(), None, b"hi\r\nthere".to_vec()),
                ("files".into(), Some("a.txt".into()), b"\r\n--XY".to_vec()),
            ]
        );
        let bytes: Vec<&[u8]> = BODY.chunks(1).collect();
        assert_eq!(parse(TYPE, &bytes).unwrap(), whole);
        for at in 1..BODY.len() {
            let (a, b) = BODY.split_at(at);
            assert_eq!(parse(TYPE, &[a, b]).unwrap(), whole, "split at {at}");
        }
    }

    #[test]
    fn odd_bodies_are_refused() {
        let part = |head: &str| format!("--XX\r\n{head}\r\n\r\nv\r\n--XX--\r\n").into_bytes();
        let cases: Vec<(&str, Vec<u8>)> = vec![
            ("no final boundary", b"--XX\r\nContent-Disposition: form-data; name=\"a\"\r\n\r\nv\r\n".to_vec()),
            ("preamble", b"hello\r\n--XX--\r\n".to_vec()),
            ("epilogue", b"--XX--\r\n--XX\r\n".to_vec()),
            ("bare LF", b"--XX\nContent-Disposition: form-data; name=\"a\"\n\nv\n--XX--\n".to_vec()),
            (
                "two dispositions",
                part("Content-Disposition: form-data; name=\"a\"\r\nContent-Disposition: form-data; name=\"b\""),
            ),
            ("two names", part("Content-Disposition: form-data; name=\"a\"; name=\"b\"")),
            ("extended name", part("Content-Disposition: form-data; name*=utf-8''a")),
            ("escaped quote", part("Content-Disposition: form-data; name=\"a\\\"b\"")),
            ("path in file name", part("Content-Disposition: form-data; name=\"f\"; filename=\"../x\"")),
            (
                "transfer encoding",
                part("Content-Disposition: form-data; name=\"a\"\r\nContent-Transfer-Encoding: base64"),
            ),
            ("no name", part("Content-Disposition: form-data")),
            ("attachment", part("Content-Disposition: attachment; name=\"a\"")),
        ];
        for (what, body) in cases {
            assert!(parse(TYPE, &[&body]).is_err(), "{what}");
        }
    }

    #[test]
    fn odd_boundaries_are_refused() {
        for content_type in [
            "multipart/form-data",
            "multipart/form-data; boundary=a; boundary=b",
            "multipart/form-data; boundary=",
            "multipart/form-data; boundary=\"a\\b\"",
            "multipart/form-data; boundary=\"a\" x",
        ] {
            assert!(Parser::for_content_type(content_type).is_err(), "{content_type}");
        }
        assert!(Parser::for_content_type("multipart/form-data; boundary=\"a b\"").is_ok());
    }
}
