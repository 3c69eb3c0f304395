//! Owns one message's way to the server and its answer's way back: documents, streams, refusals, lost sessions.
//! Does not decide what runs beside it (`relay`).
//! Invariants: what the server says passes as it is; a request gets exactly one answer, of the server or of ours; an id
//! that the server could not read is put back.

use bytes::{Bytes, BytesMut};
use http::header::CONTENT_TYPE;
use http::{HeaderMap, StatusCode};
use http_body_util::BodyExt as _;
use serde::de::IgnoredAny;
use serde_json::{Value, json};
use std::time::Duration;
use tokio::sync::mpsc::Sender;

use super::lines::LINE_BYTES_MAX;
use super::link::{Answered, Link, Session};
use super::message::{Answer, Kind, Message};
use super::trouble::Trouble;
use crate::agentos::SseEvents;
use crate::outbound::ResponseBody;

/// Most of a refusal that is read.
const REFUSAL_BYTES_MAX: usize = 64 * 1024;
/// How long the end of a stream is waited for once the answer is there: then the connection can be used again.
const END_WAIT: Duration = Duration::from_secs(1);

/// Where messages for the client go.
pub(super) type Output = Sender<Bytes>;

/// Sends a message and passes on whatever comes back.
///
/// # Errors
/// [`Trouble`] when there is no answer of the server to pass on.
///
/// # Cancel safety
/// Dropping it closes the stream. A message is passed on whole or not at all.
pub(super) async fn carry(link: &Link, message: &Message, output: &Output) -> Result<(), Trouble> {
    let session = link.session();
    let mut answered = link.post(message, session.as_deref()).await?;
    if answered.response.status() == StatusCode::UNAUTHORIZED && link.token.differs_from(answered.shown.as_ref()) {
        answered = link.post(message, link.session().as_deref()).await?;
    }
    let in_session = message.stateless.is_none() && !message.opens_session();
    if answered.response.status() == StatusCode::NOT_FOUND
        && in_session
        && let Some(lost) = session.filter(|session| session.id.is_some())
    {
        reopen(link, &lost).await?;
        answered = link.post(message, link.session().as_deref()).await?;
    }
    pass(link, message, answered, output).await
}

/// Opens the session anew: the server was restarted, or has forgotten it.
async fn reopen(link: &Link, lost: &Session) -> Result<(), Trouble> {
    let _alone = link.reopening.lock().await;
    if link.session().is_some_and(|now| *now != *lost) {
        return Ok(());
    }
    let forgotten = || Trouble::answer(format!("`{}` does not know the session any more", link.url));
    let opener = link.opener().ok_or_else(forgotten)?;
    let Answered { response, .. } = link.post(&opener, None).await?;
    let (parts, body) = response.into_parts();
    if !parts.status.is_success() {
        return Err(refusal(link, parts.status, &parts.headers, body).await);
    }
    let mut version = None;
    let mut see = |text: &[u8]| version = version.take().or(Answer::read(text).and_then(|answer| answer.version));
    if is_stream(&parts.headers) {
        let mut events = Events::new(body);
        while let Some(texts) = events.next(link).await? {
            texts.iter().for_each(|text| see(text));
        }
    } else {
        see(&whole(link, body, LINE_BYTES_MAX).await?);
    }
    let session = Session::of(&parts.headers, version.as_deref());
    link.opened(&opener, session);
    let ready = Message::read(r#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#);
    link.post(&ready, link.session().as_deref()).await.map(drop)
}

/// Passes a response on.
async fn pass(link: &Link, message: &Message, answered: Answered, output: &Output) -> Result<(), Trouble> {
    let (parts, body) = answered.response.into_parts();
    if !parts.status.is_success() {
        return pass_refusal(link, message, parts.status, &parts.headers, body, output).await;
    }
    if is_stream(&parts.headers) {
        return pass_stream(link, message, &parts.headers, body, output).await;
    }
    let text = whole(link, body, LINE_BYTES_MAX).await?;
    if text.trim_ascii().is_empty() {
        let taken = || Trouble::answer(format!("`{}` took the request without an answer", link.url));
        return if message.id().is_some() { Err(taken()) } else { Ok(()) };
    }
    if serde_json::from_slice::<IgnoredAny>(&text).is_err() {
        return Err(Trouble::answer(format!("what `{}` answers is not JSON", link.url)));
    }
    note_session(link, message, &parts.headers, &text);
    emit(output, text).await;
    Ok(())
}

async fn pass_stream(
    link: &Link,
    message: &Message,
    headers: &HeaderMap,
    body: ResponseBody,
    output: &Output,
) -> Result<(), Trouble> {
    let mut events = Events::new(body);
    let mut answered = message.id().is_none();
    loop {
        let next = events.next(link);
        let texts = if answered && message.id().is_some() {
            // The call is over; nothing that goes wrong now concerns the client.
            match tokio::time::timeout(END_WAIT, next).await {
                Ok(Ok(texts)) => texts,
                Ok(Err(_)) | Err(_) => return Ok(()),
            }
        } else {
            next.await?
        };
        let Some(texts) = texts else { break };
        for text in texts {
            if let Some(answer) = Answer::read(&text) {
                answered |= answer.id.as_ref() == message.id();
                note_session(link, message, headers, &text);
            }
            emit(output, text).await;
        }
    }
    if answered { Ok(()) } else { Err(Trouble::unanswered(&link.url)) }
}

/// Passes a refusal on: an error of the protocol as it is, anything else in our words.
async fn pass_refusal(
    link: &Link,
    message: &Message,
    status: StatusCode,
    headers: &HeaderMap,
    body: ResponseBody,
    output: &Output,
) -> Result<(), Trouble> {
    let text = whole(link, body, REFUSAL_BYTES_MAX).await.unwrap_or_default();
    let answer = Answer::read(&text).filter(|answer| answer.is_error);
    match (answer, &message.kind) {
        (Some(answer), Kind::Request(id)) => {
            emit(output, if answer.id.is_none() { with_id(&text, id) } else { text }).await;
            Ok(())
        }
        // Nobody can tell whose it is: the client sent something unreadable.
        (Some(_), Kind::Other) => {
            emit(output, text).await;
            Ok(())
        }
        (Some(_), Kind::Notification) | (None, _) => {
            Err(Trouble::refused(&link.url, status, headers, &text, &link.token.help()))
        }
    }
}

/// Passes on what the server sends by itself, until its stream ends.
///
/// # Errors
/// [`Trouble`] when there is no stream; the status, if there was a response.
pub(super) async fn listen(
    link: &Link,
    session: &Session,
    output: &Output,
) -> Result<(), (Trouble, Option<StatusCode>)> {
    let Answered { response, .. } = link.listen(session).await.map_err(|trouble| (trouble, None))?;
    let (parts, body) = response.into_parts();
    if !parts.status.is_success() || !is_stream(&parts.headers) {
        return Err((refusal(link, parts.status, &parts.headers, body).await, Some(parts.status)));
    }
    let mut events = Events::new(body);
    while let Some(texts) = events.next(link).await.map_err(|trouble| (trouble, None))? {
        for text in texts {
            emit(output, text).await;
        }
    }
    Ok(())
}

async fn refusal(link: &Link, status: StatusCode, headers: &HeaderMap, body: ResponseBody) -> Trouble {
    let text = whole(link, body, REFUSAL_BYTES_MAX).await.unwrap_or_default();
    Trouble::refused(&link.url, status, headers, &text, &link.token.help())
}

fn note_session(link: &Link, message: &Message, headers: &HeaderMap, text: &[u8]) {
    if !message.opens_session() {
        return;
    }
    if let Some(answer) = Answer::read(text).filter(|answer| !answer.is_error && answer.id.as_ref() == message.id()) {
        link.opened(message, Session::of(headers, answer.version.as_deref()));
    }
}

/// Nobody reads any more when it fails: the relay ends then.
async fn emit(output: &Output, text: Bytes) {
    let _ = output.send(text).await;
}

fn is_stream(headers: &HeaderMap) -> bool {
    headers.get(CONTENT_TYPE).and_then(|v| v.to_str().ok()).is_some_and(|v| v.starts_with("text/event-stream"))
}

fn with_id(text: &Bytes, id: &Value) -> Bytes {
    let mut error: Value = serde_json::from_slice(text).unwrap_or_else(|_| json!({}));
    if let Value::Object(fields) = &mut error {
        fields.insert("id".to_owned(), id.clone());
    }
    error.to_string().into()
}

/// A whole body under a limit.
async fn whole(link: &Link, mut body: ResponseBody, bytes_max: usize) -> Result<Bytes, Trouble> {
    let mut bytes = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(|error| Trouble::broken(&link.url, &error))?.into_data() else { continue };
        if bytes.len() + data.len() > bytes_max {
            return Err(Trouble::answer(format!("the answer of `{}` is longer than {bytes_max} bytes", link.url)));
        }
        bytes.extend_from_slice(&data);
    }
    Ok(bytes.freeze())
}

/// The messages of a stream.
struct Events {
    body: ResponseBody,
    parser: SseEvents,
}

impl Events {
    fn new(body: ResponseBody) -> Self {
        Self { body, parser: SseEvents::new(LINE_BYTES_MAX) }
    }

    /// The messages that the next bytes complete, perhaps none; `None` at the end.
    async fn next(&mut self, link: &Link) -> Result<Option<Vec<Bytes>>, Trouble> {
        let Some(frame) = self.body.frame().await else { return Ok(None) };
        let Ok(data) = frame.map_err(|error| Trouble::broken(&link.url, &error))?.into_data() else {
            return Ok(Some(Vec::new()));
        };
        let (mut texts, mut cut) = (Vec::new(), false);
        self.parser.push(&data, &mut |event| {
            cut |= event.oversized;
            // An empty event only says that the stream has begun.
            let is_message = event.name == "message" && !event.data.trim().is_empty();
            if is_message && serde_json::from_str::<IgnoredAny>(event.data).is_ok() {
                texts.push(Bytes::copy_from_slice(event.data.as_bytes()));
            }
        });
        if cut {
            let what = format!("a message of `{}` is longer than {LINE_BYTES_MAX} bytes", link.url);
            return Err(Trouble::answer(what));
        }
        Ok(Some(texts))
    }
}
