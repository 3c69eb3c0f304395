//! Owns reading a request body as far as decisions need it, under the limits and against the row's allow-list.
//! Does not set identity fields (`shape`) and does not send (`forward`).
//! Invariant: a field that the row does not name never reaches AgentOS, which would pass it into `arun(**kwargs)`.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, header};
use http_body_util::BodyExt as _;

use super::call::{BodyBroken, Inbound, StreamBody};
use super::form::{Field, Form, Rest, malformed};
use super::json::{NotAnObject, Object};
use super::limits::Limits;
use super::multipart::{Event, Parser, PartHead};
use super::refusal::{Code, Refusal, Stage};
use crate::agentos::{Body, FILE_FIELDS, Operation};

/// How much of a form is read before admission; deciding fields must start within it.
const FORM_PREFIX_BYTES: usize = 48 * 1024;
/// Least room that is made for what comes next of a body.
const PIECE_BYTES_MIN: usize = 512;
/// Longest silence while a body is read, should a door not watch it. Above what `body_timeout` may be.
const BODY_SILENCE_MAX: Duration = Duration::from_mins(11);

/// A request body, read and checked.
pub(super) enum Payload {
    /// No body.
    None,
    /// A JSON object.
    Json(Object),
    /// JSON of another shape, where the row allows any.
    Raw(Bytes),
    /// A form.
    Form(Form),
}

/// What was read of a body that must be whole, in pieces: one buffer that grows would be twice as large as what came, and
/// leave behind a hole of half its size, for every caller who is slow.
#[derive(Default)]
struct Gathered {
    pieces: Vec<Vec<u8>>,
    bytes: usize,
}

/// Reads the body that the operation expects.
///
/// # Errors
/// 413, 415, 408 and the 400s of malformed, unknown and duplicated fields.
///
/// # Cancel safety
/// Nothing is kept when dropped; the caller's remaining bytes are the door's to drain.
pub(super) async fn read(
    inbound: Inbound,
    operation: &Operation,
    headers: &HeaderMap,
    limits: &Limits,
) -> Result<Payload, Refusal> {
    let limits = &Limits { body_bytes: limits.body_bytes_of(operation.id), ..limits.clone() };
    if declared(&inbound).is_some_and(|length| length > limits.body_bytes) {
        return Err(Refusal::new(Code::BodyTooLarge, Stage::Request));
    }
    if !matches!(inbound, Inbound::Empty) && headers.get(header::CONTENT_ENCODING).is_some_and(|v| v != "identity") {
        return Err(
            Refusal::new(Code::MediaTypeUnsupported, Stage::Request).saying("content encodings are not accepted")
        );
    }
    let content_type = headers.get(header::CONTENT_TYPE).map_or("", |v| v.to_str().unwrap_or("?"));
    match operation.body {
        Body::None => nothing(inbound).await,
        // Boxed: most calls have no body, and each would carry the state of reading one.
        Body::Json(allowed) => Box::pin(json(inbound, content_type, allowed, limits)).await,
        Body::Form(allowed) => Box::pin(form(inbound, content_type, allowed, limits)).await,
    }
}

/// A field name, cut to what is safe to show.
pub(super) fn shown(name: &str) -> String {
    name.chars().filter(|c| !c.is_control()).take(64).collect()
}

/// The refusal of a field that the row does not name.
pub(super) fn field_not_allowed(name: &str) -> Refusal {
    Refusal::new(Code::FieldNotAllowed, Stage::Request).saying(format!("field `{}` is not accepted here", shown(name)))
}

fn field_duplicated(name: &str) -> Refusal {
    Refusal::new(Code::FieldDuplicated, Stage::Request).saying(format!("field `{}` is given twice", shown(name)))
}

fn declared(inbound: &Inbound) -> Option<u64> {
    match inbound {
        Inbound::Empty => Some(0),
        Inbound::Full(bytes) => Some(bytes.len() as u64),
        Inbound::Stream { length, .. } => *length,
    }
}

/// A limit on a kind of body, or the one on the operation's where that is narrower.
fn narrowest(bytes_max: usize, limits: &Limits) -> usize {
    usize::try_from(limits.body_bytes).unwrap_or(usize::MAX).min(bytes_max)
}

// === impl Gathered ===

impl Gathered {
    /// Adds bytes as they came, copied: the buffer that they came in is larger and is read into again.
    fn add(&mut self, data: &[u8]) {
        self.bytes += data.len();
        let room = self.pieces.last().map_or(0, |last| last.capacity() - last.len());
        let (fits, more) = data.split_at(room.min(data.len()));
        if let Some(last) = self.pieces.last_mut() {
            last.extend_from_slice(fits);
        }
        if !more.is_empty() {
            // A quarter of all so far keeps the pieces few, however small they come.
            let mut piece = Vec::with_capacity(more.len().max(self.bytes / 4).max(PIECE_BYTES_MIN));
            piece.extend_from_slice(more);
            self.pieces.push(piece);
        }
    }

    fn whole(mut self) -> Bytes {
        if self.pieces.len() > 1 {
            return self.pieces.concat().into();
        }
        self.pieces.pop().unwrap_or_default().into()
    }
}

async fn nothing(inbound: Inbound) -> Result<Payload, Refusal> {
    if collect(inbound, 0).await.is_ok_and(|b| b.is_empty()) {
        return Ok(Payload::None);
    }
    Err(Refusal::new(Code::FieldNotAllowed, Stage::Request).saying("this operation takes no request body"))
}

async fn json(
    inbound: Inbound,
    content_type: &str,
    allowed: &'static [&'static str],
    limits: &Limits,
) -> Result<Payload, Refusal> {
    let bytes = collect(inbound, narrowest(limits.json_body_bytes, limits)).await?;
    if bytes.is_empty() {
        return Ok(Payload::None);
    }
    if !is_type(content_type, "application/json") {
        return Err(Refusal::new(Code::MediaTypeUnsupported, Stage::Request).saying("send `application/json`"));
    }
    let object = match Object::parse(&bytes) {
        Ok(object) => object,
        Err(NotAnObject::OtherValue) if allowed.is_empty() => return Ok(Payload::Raw(bytes)),
        Err(NotAnObject::OtherValue) => {
            return Err(Refusal::new(Code::FormMalformed, Stage::Request).saying("the body must be a JSON object"));
        }
        Err(NotAnObject::Duplicate(name)) => return Err(field_duplicated(&name)),
        Err(NotAnObject::Malformed(why)) => {
            return Err(Refusal::new(Code::FormMalformed, Stage::Request)
                .saying("the body is not valid JSON")
                .because(why));
        }
    };
    if let Some(name) = object.names().find(|name| !allowed.is_empty() && !allowed.contains(name)) {
        return Err(field_not_allowed(name));
    }
    Ok(Payload::Json(object))
}

async fn form(
    inbound: Inbound,
    content_type: &str,
    allowed: &'static [&'static str],
    limits: &Limits,
) -> Result<Payload, Refusal> {
    if matches!(inbound, Inbound::Empty) || declared(&inbound) == Some(0) {
        return Ok(Payload::Form(Form::new(Vec::new(), false, None)));
    }
    let form = if is_type(content_type, "application/x-www-form-urlencoded") {
        let body = collect(inbound, narrowest(limits.form_field_bytes, limits)).await?;
        if std::str::from_utf8(&body).is_err() {
            return Err(Refusal::new(Code::FormMalformed, Stage::Request).saying("the form is not UTF-8"));
        }
        Form::urlencoded(&body)
    } else if is_type(content_type, "multipart/form-data") {
        multipart(inbound, content_type, allowed, limits).await?
    } else {
        return Err(Refusal::new(Code::MediaTypeUnsupported, Stage::Request)
            .saying("send `multipart/form-data` or `application/x-www-form-urlencoded`"));
    };
    check_names(&form, allowed)?;
    Ok(Payload::Form(form))
}

/// Only a list of files may repeat: Starlette takes the last of anything else, whoever checks the first is bypassed.
fn check_names(form: &Form, allowed: &[&str]) -> Result<(), Refusal> {
    let mut seen: Vec<&str> = Vec::new();
    for name in form.names() {
        if !allowed.contains(&name) {
            return Err(field_not_allowed(name));
        }
        if seen.contains(&name) && !FILE_FIELDS.contains(&(name, true)) {
            return Err(field_duplicated(name));
        }
        seen.push(name);
    }
    Ok(())
}

/// Says whether a part may be there at all. A field that decides must not come as a file, where nobody reads it;
/// a file that comes as text would be held in memory.
pub(super) fn check_part(head: &PartHead, allowed: &[&str]) -> Result<(), Refusal> {
    let name = head.name.as_str();
    if !allowed.contains(&name) {
        return Err(field_not_allowed(name));
    }
    let kind = match (head.filename.is_some(), FILE_FIELDS.iter().any(|(field, _)| *field == name)) {
        (true, true) | (false, false) => return Ok(()),
        (true, false) => "text",
        (false, true) => "a file",
    };
    Err(Refusal::new(Code::FieldNotAllowed, Stage::Request).saying(format!("field `{}` must be {kind}", shown(name))))
}

/// The refusal of a field that decides, but comes when the decision must have been made.
pub(super) fn field_too_late(name: &str) -> Refusal {
    Refusal::new(Code::FieldTooLate, Stage::Request)
        .saying(format!("field `{}` came after the first 48 KiB of the body", shown(name)))
}

async fn multipart(
    inbound: Inbound,
    content_type: &str,
    allowed: &'static [&'static str],
    limits: &Limits,
) -> Result<Form, Refusal> {
    let mut parser = Parser::for_content_type(content_type).map_err(malformed)?;
    let mut body = inbound.into_stream();
    let mut fields: Vec<Field> = Vec::new();
    let (mut read, mut open, mut ended, mut late) = (0_usize, false, false, false);
    loop {
        while let Some(event) = parser.next().map_err(malformed)? {
            match event {
                Event::Part(head) => {
                    check_part(&head, allowed)?;
                    // Each name once, and none late: that bounds what is held in memory.
                    match (&head.filename, fields.iter().any(|f| f.head.name == head.name)) {
                        (None, true) => return Err(field_duplicated(&head.name)),
                        (None, false) if late => return Err(field_too_late(&head.name)),
                        (Some(_), _) | (None, false) => {}
                    }
                    open = true;
                    fields.push(Field { head, value: Vec::new() });
                }
                Event::Data(data) => append(&mut fields, data, limits)?,
                Event::PartEnd => open = false,
                Event::End => ended = true,
            }
        }
        let text_open = open && fields.last().is_some_and(|f| f.head.filename.is_none());
        if read >= FORM_PREFIX_BYTES && !text_open && !ended {
            let bytes_left = limits.body_bytes.saturating_sub(read as u64);
            let body = parking_lot::Mutex::new(body);
            let rest = Rest { parser, body, open, allowed, bytes_left };
            return Ok(Form::new(fields, true, Some(rest)));
        }
        parser.compact();
        let Some(chunk) = next_chunk(&mut body).await? else { break };
        late = read >= FORM_PREFIX_BYTES;
        read += chunk.len();
        if read as u64 > limits.body_bytes {
            return Err(Refusal::new(Code::BodyTooLarge, Stage::Request));
        }
        parser.feed(&chunk);
    }
    parser.finish().map_err(malformed)?;
    Ok(Form::new(fields, true, None))
}

fn append(fields: &mut [Field], data: Bytes, limits: &Limits) -> Result<(), Refusal> {
    let Some(field) = fields.last_mut() else { return Ok(()) };
    if field.head.filename.is_none() && field.text_bytes().len() + data.len() > limits.form_field_bytes {
        return Err(Refusal::new(Code::BodyTooLarge, Stage::Request)
            .saying(format!("field `{}` is larger than the limit", shown(&field.head.name))));
    }
    field.append(data);
    Ok(())
}

/// Reads a whole body of at most `bytes_max`.
async fn collect(inbound: Inbound, bytes_max: usize) -> Result<Bytes, Refusal> {
    let too_large = || Refusal::new(Code::BodyTooLarge, Stage::Request);
    if declared(&inbound).is_some_and(|length| length > bytes_max as u64) {
        return Err(too_large());
    }
    let mut body = match inbound {
        Inbound::Empty => return Ok(Bytes::new()),
        Inbound::Full(bytes) => return Ok(bytes),
        Inbound::Stream { body, .. } => body,
    };
    let mut gathered = Gathered::default();
    while let Some(chunk) = next_chunk(&mut body).await? {
        if gathered.bytes + chunk.len() > bytes_max {
            return Err(too_large());
        }
        gathered.add(&chunk);
    }
    Ok(gathered.whole())
}

async fn next_chunk(body: &mut StreamBody) -> Result<Option<Bytes>, Refusal> {
    loop {
        let frame = tokio::time::timeout(BODY_SILENCE_MAX, body.frame()).await;
        let frame = frame.map_err(|_| Refusal::new(Code::RequestTimeout, Stage::Request))?;
        match frame {
            None => return Ok(None),
            Some(Ok(frame)) => {
                if let Ok(data) = frame.into_data() {
                    return Ok(Some(data));
                }
            }
            Some(Err(BodyBroken::TooSlow)) => return Err(Refusal::new(Code::RequestTimeout, Stage::Request)),
            Some(Err(BodyBroken::BrokeOff(why))) => {
                return Err(Refusal::new(Code::FormMalformed, Stage::Request)
                    .saying("the request body broke off")
                    .because(why));
            }
        }
    }
}

/// Compares the essence of a media type; parameters are the parser's.
fn is_type(content_type: &str, want: &str) -> bool {
    content_type.split(';').next().is_some_and(|essence| essence.trim().eq_ignore_ascii_case(want))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_is_gathered_in_order_and_with_little_to_spare() {
        for chunk in [1, 7, 700, 16 << 10] {
            let body: Vec<u8> = (0..40_000_u32).map(|at| (at % 251) as u8).collect();
            let mut gathered = Gathered::default();
            for part in body.chunks(chunk) {
                gathered.add(part);
                let room: usize = gathered.pieces.iter().map(Vec::capacity).sum();
                assert!(
                    room <= gathered.bytes + (gathered.bytes / 4).max(PIECE_BYTES_MIN),
                    "{room} of {}",
                    gathered.bytes
                );
            }
            assert!(gathered.pieces.len() < 20, "{} pieces", gathered.pieces.len());
            assert_eq!(gathered.whole(), body);
        }
        assert_eq!(Gathered::default().whole(), Bytes::new());
    }
}
