//! Owns the traffic of the bridge: what is read when, what runs beside what, how it ends.
//! Does not know HTTP (`link`, `exchange`) and answers nothing itself, except for what gets no answer.
//! Invariants: messages that depend on their order leave in order; a cancelled call of the stateless revision closes its
//! stream at once; nothing but messages is written to the output.

use std::io;
use std::pin::pin;
use std::time::Duration;

use futures_util::future::{AbortHandle, Abortable, BoxFuture, FutureExt as _};
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use http::StatusCode;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;

use super::super::talk;
use super::exchange::{self, Output};
use super::lines::{self, LINE_BYTES_MAX, Line, Lines};
use super::link::Link;
use super::message::{Kind, Message};
use super::trouble::Trouble;

/// Most requests that are on their way at once.
const REQUESTS_MAX: usize = 256;
/// Messages that wait for the client to read them.
const OUTPUT_MESSAGES: usize = 16;
/// How long answers may still come when the client has closed its side. Clients kill after two seconds.
const LAST_ANSWERS: Duration = Duration::from_millis(1_000);
/// How long the end of the session, and the last bytes of output, may take.
const CLOSING: Duration = Duration::from_millis(500);
/// Longest wait for a message that others wait for.
const IN_ORDER: Duration = Duration::from_secs(30);
/// Pauses before the server's own stream is asked for again.
const LISTEN_PAUSE_MIN: Duration = Duration::from_millis(500);
const LISTEN_PAUSE_MAX: Duration = Duration::from_secs(30);

/// Something that is under way.
type Work<'a> = BoxFuture<'a, Done>;

/// What has ended.
enum Done {
    /// A request.
    Request(u64),
    /// A message before which nothing else is read.
    InOrder(After),
    /// The server's own stream.
    Listening,
}

/// What follows a message that was sent in order.
enum After {
    /// Reading goes on.
    Nothing,
    /// The session is open: the server may have something to say by itself.
    Listen,
    /// The server was told to stop working on this request.
    Forget(Value),
}

/// A request that has no answer yet.
struct Pending {
    number: u64,
    id: Value,
    /// Whether closing its stream cancels it.
    stateless: bool,
    /// Whether it lasts as long as the client.
    lasts: bool,
    abort: AbortHandle,
}

/// The state of the traffic.
struct Relay<'a> {
    link: &'a Link,
    output: Output,
    works: FuturesUnordered<Work<'a>>,
    pending: Vec<Pending>,
    numbers: u64,
    /// A message whose successors must wait for it.
    in_order: bool,
    listening: bool,
}

/// Passes messages between a client on two streams and the server, until the client is gone or `stop` is ready.
pub(super) async fn run(
    link: &Link,
    input: impl AsyncRead + Unpin,
    output: impl AsyncWrite + Unpin,
    stop: impl Future<Output = ()>,
) -> io::Result<()> {
    let (sender, messages) = mpsc::channel(OUTPUT_MESSAGES);
    let mut relay = Relay {
        link,
        output: sender,
        works: FuturesUnordered::new(),
        pending: Vec::new(),
        numbers: 0,
        in_order: false,
        listening: false,
    };
    let mut writing = pin!(lines::write(messages, output));
    let mut gone = false;
    let ended = {
        let mut traffic = pin!(relay.traffic(input));
        let mut stop = pin!(stop);
        tokio::select! {
            ended = &mut traffic => ended,
            () = &mut stop => Ok(()),
            // The client does not read any more: that is its choice.
            ended = &mut writing => {
                gone = true;
                ended.or_else(|error| if error.kind() == io::ErrorKind::BrokenPipe { Ok(()) } else { Err(error) })
            }
        }
    };
    // Dropped here: streams close, and with the last sender the output ends.
    drop(relay);
    if !gone {
        let _ = tokio::time::timeout(CLOSING, &mut writing).await;
    }
    let _ = tokio::time::timeout(CLOSING, link.close()).await;
    ended
}

// === impl Relay ===

impl<'a> Relay<'a> {
    async fn traffic(&mut self, input: impl AsyncRead + Unpin) -> io::Result<()> {
        let mut lines = Lines::new(input, LINE_BYTES_MAX);
        loop {
            tokio::select! {
                Some(done) = self.works.next(), if !self.works.is_empty() => self.finished(&done),
                line = lines.next(), if !self.in_order => match line? {
                    Line::Whole(text) => self.take(Message::read(text)).await,
                    Line::TooLong => {
                        let what = format!("the message is longer than {LINE_BYTES_MAX} bytes");
                        self.complain(&Value::Null, &Trouble::message(what, "send less at once")).await;
                    }
                    Line::End => break,
                },
            }
        }
        let rest = async {
            while self.pending.iter().any(|pending| !pending.lasts) || self.in_order {
                match self.works.next().await {
                    Some(done) => self.finished(&done),
                    None => break,
                }
            }
        };
        let _ = tokio::time::timeout(LAST_ANSWERS, rest).await;
        Ok(())
    }

    async fn take(&mut self, message: Message) {
        if let Some(id) = &message.cancels
            && self.cancel(id)
        {
            return;
        }
        match message.kind.clone() {
            Kind::Request(id) if message.opens_session() => self.send_in_order(message, Some(id)),
            Kind::Request(id) => self.request(message, id).await,
            // The stateless revision knows no other message of a client; what it cannot cancel is over.
            Kind::Notification if message.cancels.is_some() && self.link.session().is_none() => {}
            Kind::Notification | Kind::Other => self.send_in_order(message, None),
        }
    }

    /// Cancels a request of the stateless revision, where closing its stream says so.
    fn cancel(&mut self, id: &Value) -> bool {
        let Some(at) = self.pending.iter().position(|pending| pending.id == *id && pending.stateless) else {
            return false;
        };
        self.pending.swap_remove(at).abort.abort();
        true
    }

    async fn request(&mut self, message: Message, id: Value) {
        if self.pending.len() >= REQUESTS_MAX {
            let what = format!("{REQUESTS_MAX} requests are on their way");
            return self.complain(&id, &Trouble::message(what, "wait for their answers")).await;
        }
        self.numbers += 1;
        let (abort, registration) = AbortHandle::new_pair();
        let number = self.numbers;
        let stateless = message.stateless.is_some();
        let lasts = message.method == "subscriptions/listen";
        self.pending.push(Pending { number, id: id.clone(), stateless, lasts, abort });
        let (link, output) = (self.link, self.output.clone());
        let work = async move { carried(link, &message, Some(&id), &output).await };
        self.works.push(Abortable::new(work, registration).map(move |_| Done::Request(number)).boxed());
    }

    fn send_in_order(&mut self, message: Message, id: Option<Value>) {
        self.in_order = true;
        let (link, output) = (self.link, self.output.clone());
        let after = match &message.cancels {
            Some(id) => After::Forget(id.clone()),
            None if message.method == "notifications/initialized" => After::Listen,
            None => After::Nothing,
        };
        let work = async move {
            carried_in_time(link, &message, id.as_ref(), &output).await;
            Done::InOrder(after)
        };
        self.works.push(work.boxed());
    }

    fn finished(&mut self, done: &Done) {
        match done {
            Done::Request(number) => self.pending.retain(|pending| pending.number != *number),
            Done::InOrder(after) => {
                self.in_order = false;
                match after {
                    After::Nothing => {}
                    After::Listen => self.listen(),
                    After::Forget(id) => self.pending.iter().filter(|p| p.id == *id).for_each(|p| p.abort.abort()),
                }
            }
            Done::Listening => self.listening = false,
        }
    }

    fn listen(&mut self) {
        let in_session = self.link.session().is_some_and(|session| session.id.is_some());
        if in_session && !std::mem::replace(&mut self.listening, true) {
            let (link, output) = (self.link, self.output.clone());
            self.works.push(async move { listen(link, &output).await }.boxed());
        }
    }

    async fn complain(&mut self, id: &Value, trouble: &Trouble) {
        talk(&format!("tollbridge mcp: {trouble}"));
        let _ = self.output.send(trouble.to_answer(id)).await;
    }
}

/// As [`carried`], for a message that others wait for.
async fn carried_in_time(link: &Link, message: &Message, id: Option<&Value>, output: &Output) {
    let carried = carried(link, message, id, output);
    if tokio::time::timeout(IN_ORDER, carried).await.is_ok() {
        return;
    }
    let trouble = Trouble::late(&link.url, IN_ORDER);
    talk(&format!("tollbridge mcp: {trouble}"));
    if let Some(id) = id {
        let _ = output.send(trouble.to_answer(id)).await;
    }
}

/// Carries a message; what goes wrong becomes the answer to a request, or talk.
async fn carried(link: &Link, message: &Message, id: Option<&Value>, output: &Output) {
    let Err(trouble) = exchange::carry(link, message, output).await else { return };
    talk(&format!("tollbridge mcp: {trouble}"));
    if let Some(id) = id {
        let _ = output.send(trouble.to_answer(id)).await;
    }
}

/// Listens to what the server sends by itself, for as long as there are sessions; a server without such a stream is fine.
async fn listen(link: &Link, output: &Output) -> Done {
    let mut sessions = link.sessions();
    let mut pause = LISTEN_PAUSE_MIN;
    loop {
        let Some(session) = link.session() else { return Done::Listening };
        let heard = exchange::listen(link, &session, output).await;
        match heard {
            Ok(()) => pause = LISTEN_PAUSE_MIN,
            Err((_, Some(StatusCode::METHOD_NOT_ALLOWED))) => std::future::pending().await,
            // The next message finds that out too, and opens another session.
            Err((_, Some(StatusCode::NOT_FOUND))) => {
                let other = |now: &Option<_>| now.as_ref() != Some(&session);
                if sessions.wait_for(other).await.is_err() {
                    return Done::Listening;
                }
                continue;
            }
            Err(_) => pause = (pause * 2).min(LISTEN_PAUSE_MAX),
        }
        tokio::time::sleep(pause).await;
    }
}
