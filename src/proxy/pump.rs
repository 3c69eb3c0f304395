//! Owns moving bytes between a pingora session and the gateway's bodies, both ways at once.
//! Does not look into them.
//! Invariant: no body is read from the caller before the gateway has room for it, and a caller who goes away
//! while an answer is made or sent ends it at once.

use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, header};
use http_body::{Body as _, Frame};
use http_body_util::{BodyExt as _, StreamBody as FrameStream};
use pingora::http::ResponseHeader;
use pingora::protocols::http::ServerSession;
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::gateway::{Answer, BodyBroken, Inbound, StreamBody};

/// Chunks between the socket and the gateway; more would only be a queue.
const CHUNKS_IN_FLIGHT: usize = 1;

/// The caller went away, or broke the protocol, while the exchange ran.
#[derive(Debug)]
pub(super) struct Gone;

/// The upload half of an exchange.
pub(super) struct Upload {
    sender: Option<mpsc::Sender<Result<Bytes, BodyBroken>>>,
    ended: bool,
    pace: Pace,
}

/// How slowly a body may come. Only time counts in which somebody waits for the caller.
#[derive(Default)]
struct Pace {
    silence_max: Duration,
    bytes_per_second_min: u64,
    bytes: u64,
    waited: Duration,
    /// When the wait for the next chunk began.
    since: Option<Instant>,
}

impl Pace {
    /// How long to wait for the next chunk, from now.
    fn left(&mut self) -> Duration {
        let since = *self.since.get_or_insert_with(Instant::now);
        let earned = self.bytes.checked_div(self.bytes_per_second_min).map_or(Duration::MAX, Duration::from_secs);
        let in_all = earned.max(self.silence_max).saturating_sub(self.waited);
        in_all.min(self.silence_max).saturating_sub(since.elapsed())
    }

    fn came(&mut self, bytes: usize) {
        self.bytes += bytes as u64;
        self.waited += self.since.take().map_or(Duration::ZERO, |since| since.elapsed());
    }
}

// === impl Upload ===

impl Upload {
    /// Opens the upload of a request: what the gateway gets to read, and the half that feeds it.
    ///
    /// A caller who is silent for longer than `silence_max`, or after that much waiting in all has sent less than
    /// `bytes_per_second_min`, is too slow.
    pub(super) fn open(
        session: &mut ServerSession,
        silence_max: Duration,
        bytes_per_second_min: u64,
    ) -> (Inbound, Self) {
        if session.is_body_empty() {
            return (Inbound::Empty, Self { sender: None, ended: true, pace: Pace::default() });
        }
        let length = session.get_header(header::CONTENT_LENGTH);
        let length = length.and_then(|v| v.to_str().ok()?.parse().ok());
        let (sender, mut receiver) = mpsc::channel::<Result<Bytes, BodyBroken>>(CHUNKS_IN_FLIGHT);
        let frames = futures_util::stream::poll_fn(move |cx| {
            receiver
                .poll_recv(cx)
                .map(|next: Option<Result<Bytes, BodyBroken>>| next.map(|chunk| chunk.map(Frame::data)))
        });
        let body = FrameStream::new(frames).boxed_unsync();
        let pace = Pace { silence_max, bytes_per_second_min, ..Pace::default() };
        (Inbound::Stream { length, body }, Self { sender: Some(sender), ended: false, pace })
    }

    /// The upload of a request whose body nobody reads.
    pub(super) fn none() -> Self {
        Self { sender: None, ended: false, pace: Pace::default() }
    }

    /// Moves one chunk, or waits for the caller to go away once nothing is left to move.
    ///
    /// # Errors
    /// [`Gone`] when the caller disconnected.
    ///
    /// # Cancel safety
    /// Safe: a chunk is read only while its place in the channel is held.
    pub(super) async fn turn(&mut self, session: &mut ServerSession) -> Result<(), Gone> {
        if self.ended {
            return match session.read_body_or_idle(true).await {
                Ok(_) | Err(_) => Err(Gone),
            };
        }
        let Some(sender) = self.sender.clone() else { return std::future::pending().await };
        let Ok(permit) = sender.reserve().await else {
            // The gateway has decided without the rest; the door drains or closes afterwards.
            self.sender = None;
            return Ok(());
        };
        let Ok(read) = tokio::time::timeout(self.pace.left(), session.read_body_or_idle(false)).await else {
            // The gateway answers; the connection is not used again, because its body has not ended.
            permit.send(Err(BodyBroken::TooSlow));
            self.sender = None;
            return Ok(());
        };
        match read {
            Ok(Some(chunk)) => {
                self.pace.came(chunk.len());
                permit.send(Ok(chunk));
                // Asked again after the last byte, pingora would wait for the caller to go away.
                if session.is_body_done() {
                    self.ended = true;
                    self.sender = None;
                }
                Ok(())
            }
            Ok(None) => {
                self.ended = true;
                self.sender = None;
                Ok(())
            }
            Err(error) => {
                permit.send(Err(BodyBroken::BrokeOff(error.etype().as_str().to_owned())));
                Err(Gone)
            }
        }
    }
}

/// Runs `work` while the upload moves; the caller's disconnect drops it.
///
/// # Errors
/// [`Gone`] when the caller went away first.
pub(super) async fn while_uploading<T>(
    session: &mut ServerSession,
    upload: &mut Upload,
    work: impl Future<Output = T>,
) -> Result<T, Gone> {
    let mut work = std::pin::pin!(work);
    loop {
        tokio::select! {
            biased;
            done = &mut work => return Ok(done),
            turn = upload.turn(session) => turn?,
        }
    }
}

/// Sends an answer, watching for the caller to go away.
///
/// # Errors
/// [`Gone`] when the caller went away or the body broke off: the connection must not be used again.
pub(super) async fn send(
    session: &mut ServerSession,
    upload: &mut Upload,
    answer: Answer,
    head_only: bool,
) -> Result<(), Gone> {
    let (mut head, ()) = http::Response::new(()).into_parts();
    (head.status, head.headers) = (answer.status, answer.headers);
    let mut body: StreamBody = answer.body.into_stream();
    // Without a length pingora flushes the head at once: a stream's head must not wait for its first event.
    match body.size_hint().exact() {
        Some(length) => drop(head.headers.insert(header::CONTENT_LENGTH, length.into())),
        None if session.req_header().version == http::Version::HTTP_11 => {
            head.headers.insert(header::TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
        }
        None => {}
    }
    let limit = session.get_write_timeout();
    in_time(limit, session.write_response_header(Box::new(ResponseHeader::from(head)))).await?;
    if head_only {
        return in_time(limit, session.write_response_body(Bytes::new(), true)).await;
    }
    loop {
        let frame = tokio::select! {
            biased;
            frame = body.frame() => frame,
            turn = upload.turn(session) => { turn?; continue }
        };
        match frame {
            None => break,
            Some(Ok(frame)) => {
                if let Ok(data) = frame.into_data() {
                    session.write_response_body(data, false).await.map_err(|_| Gone)?;
                }
            }
            // Without a clean end the caller can tell that something is missing.
            Some(Err(_)) => return Err(Gone),
        }
    }
    in_time(limit, session.write_response_body(Bytes::new(), true)).await
}

/// Writes within the session's `limit`, which pingora itself applies to pieces of a body alone: a caller who reads nothing
/// would hold a head, or the end of an answer, without end.
///
/// # Errors
/// [`Gone`] when the caller went away or did not take it in time: the connection must not be used again.
pub(super) async fn in_time<T>(
    limit: Option<Duration>,
    write: impl Future<Output = pingora::Result<T>>,
) -> Result<T, Gone> {
    let mut write = std::pin::pin!(write);
    // Most is taken at once, and needs no timer.
    if let Poll::Ready(written) = futures_util::poll!(write.as_mut()) {
        return written.map_err(|_| Gone);
    }
    let written = match limit {
        Some(limit) => tokio::time::timeout(limit, write).await.map_err(|_| Gone)?,
        None => write.await,
    };
    written.map_err(|_| Gone)
}
