//! Owns the scripted gateway: answers by method and path, and a record of what was asked.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{HeaderMap, StatusCode, header};
use http_body::Frame;
use http_body_util::BodyExt as _;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use crate::agentos::Kind;
use crate::gateway::{Answer, AnswerBody, BodyBroken, Call, Inbound, Once};
use crate::mcp::Path;
use crate::principal::Principal;

/// One call as the gateway got it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Asked {
    /// `METHOD cluster /path?query`
    pub(super) line: String,
    pub(super) body: String,
    pub(super) headers: Vec<(String, String)>,
    /// A person is said to have confirmed it.
    pub(super) human: bool,
    /// The tool whose limits count.
    pub(super) tool: Option<&'static str>,
}

type Script1 = Box<dyn FnMut(&Asked) -> Answer + Send>;

/// Answers calls from a script. What is not in it is `not_found`.
pub(super) struct Script {
    routes: Mutex<HashMap<String, Script1>>,
    asked: watch::Sender<Vec<Asked>>,
    denied: HashSet<&'static str>,
    allowed_ids: HashSet<&'static str>,
    clusters: Vec<Arc<str>>,
    /// Subjects and the ids that they may not see.
    hidden: Mutex<HashSet<(String, String)>>,
    /// A cluster that cannot be asked without a caller.
    unasked: Option<&'static str>,
    changed: watch::Sender<u64>,
    /// Subjects whose credentials have ended.
    ended: watch::Sender<HashSet<String>>,
    taken: Mutex<HashSet<String>>,
    afterwards: Mutex<HashMap<String, Box<dyn FnOnce() + Send>>>,
}

impl Script {
    pub(super) fn new() -> Self {
        Self {
            routes: Mutex::default(),
            asked: watch::Sender::new(vec![]),
            denied: HashSet::new(),
            allowed_ids: HashSet::new(),
            clusters: vec!["main".into()],
            hidden: Mutex::default(),
            unasked: None,
            changed: watch::Sender::new(0),
            ended: watch::Sender::default(),
            taken: Mutex::default(),
            afterwards: Mutex::default(),
        }
    }

    pub(super) fn clusters(mut self, names: &[&str]) -> Self {
        self.clusters = names.iter().map(|name| Arc::from(*name)).collect();
        self
    }

    /// Policy refuses the operation, except for ids that are allowed.
    pub(super) fn deny(mut self, operations: &[&'static str]) -> Self {
        self.denied.extend(operations);
        self
    }

    pub(super) fn allow_id(mut self, id: &'static str) -> Self {
        self.allowed_ids.insert(id);
        self
    }

    /// The cluster cannot be asked without a caller.
    pub(super) fn unasked(mut self, cluster: &'static str) -> Self {
        self.unasked = Some(cluster);
        self
    }

    /// Hides an id from a subject.
    pub(super) fn hide(self, subject: &str, id: &str) -> Self {
        self.hidden.lock().insert((subject.to_owned(), id.to_owned()));
        self
    }

    /// Hides nothing from a subject any more.
    pub(super) fn unhide(&self, subject: &str) {
        self.hidden.lock().retain(|(who, _)| who != subject);
    }

    /// Answers a line with a function.
    pub(super) fn with(self, line: &str, answer: impl FnMut(&Asked) -> Answer + Send + 'static) -> Self {
        self.routes.lock().insert(line.to_owned(), Box::new(answer));
        self
    }

    /// Answers a line with JSON.
    pub(super) fn json(self, line: &str, value: Value) -> Self {
        self.with(line, move |_| answer(200, "application/json", value.to_string()))
    }

    /// Answers a line with a stream that the test feeds; each use takes the next one.
    pub(super) fn stream(self, line: &str, feed: Feed) -> Self {
        let mut body = Some(feed.body());
        self.with(line, move |_| event_stream(body.take().unwrap_or_else(|| AnswerBody::full(""))))
    }

    /// Gives a line a new stream.
    pub(super) fn replace_stream(&self, line: &str, feed: Feed) {
        let mut body = Some(feed.body());
        let script = move |_: &Asked| event_stream(body.take().unwrap_or_else(|| AnswerBody::full("")));
        self.routes.lock().insert(line.to_owned(), Box::new(script));
    }

    /// Answers a line anew from now on, and says that something has changed.
    pub(super) fn change(&self, line: &str, value: Value) {
        let script = move |_: &Asked| answer(200, "application/json", value.to_string());
        self.routes.lock().insert(line.to_owned(), Box::new(script));
        self.touch();
    }

    /// Says that something has changed, such as a policy.
    pub(super) fn touch(&self) {
        self.changed.send_modify(|count| *count += 1);
    }

    /// Ends the credentials of a subject.
    pub(super) fn end(&self, subject: &str) {
        self.ended.send_modify(|ended| {
            ended.insert(subject.to_owned());
        });
    }

    /// Answers a line in another way from now on.
    pub(super) fn replace(&self, line: &str, answer: impl FnMut(&Asked) -> Answer + Send + 'static) {
        self.routes.lock().insert(line.to_owned(), Box::new(answer));
    }

    /// Answers a line with other JSON from now on.
    pub(super) fn replace_json(&self, line: &str, value: Value) {
        self.replace(line, move |_| answer(200, "application/json", value.to_string()));
    }

    /// Does something once, when a line has been answered.
    pub(super) fn after(&self, line: &str, then: impl FnOnce() + Send + 'static) {
        self.afterwards.lock().insert(line.to_owned(), Box::new(then));
    }

    /// Every call so far.
    pub(super) fn all(&self) -> Vec<Asked> {
        self.asked.borrow().clone()
    }

    /// The lines of the calls that a person is said to have confirmed.
    pub(super) fn humans(&self) -> Vec<String> {
        self.asked.borrow().iter().filter(|asked| asked.human).map(|asked| asked.line.clone()).collect()
    }

    /// The lines of every call so far.
    pub(super) fn lines(&self) -> Vec<String> {
        self.asked.borrow().iter().map(|asked| asked.line.clone()).collect()
    }

    pub(super) fn last(&self) -> Asked {
        self.asked.borrow().last().cloned().unwrap()
    }

    /// Waits until a line was asked.
    pub(super) async fn asked(&self, line: &str) {
        let mut seen = self.asked.subscribe();
        seen.wait_for(|all| all.iter().any(|asked| asked.line == line)).await.unwrap();
    }
}

impl Path for Script {
    fn serve(self: Arc<Self>, call: Call) -> BoxFuture<'static, Answer> {
        Box::pin(async move {
            let body = match call.body {
                Inbound::Empty => Bytes::new(),
                Inbound::Full(bytes) => bytes,
                Inbound::Stream { body, .. } => body.collect().await.unwrap().to_bytes(),
            };
            let query = call.query.map(|query| format!("?{query}")).unwrap_or_default();
            let cluster = call.cluster.unwrap();
            let headers = call.headers.iter().map(|(k, v)| (k.to_string(), v.to_str().unwrap().to_owned()));
            let asked = Asked {
                line: format!("{} {cluster} {}{query}", call.method, call.path),
                body: String::from_utf8(body.to_vec()).unwrap(),
                headers: headers.collect(),
                human: call.human,
                tool: call.tool,
            };
            self.asked.send_modify(|all| all.push(asked.clone()));
            let answer = match self.routes.lock().get_mut(&asked.line) {
                // What the door knows is answered as the gateway answers it, unless the script refuses.
                Some(script) => match (script(&asked), call.known) {
                    (said, Some(known)) if said.status.is_success() => {
                        answer(200, "application/json", String::from_utf8(known.to_vec()).unwrap())
                    }
                    (said, _) => said,
                },
                None => match call.known {
                    Some(known) => answer(200, "application/json", String::from_utf8(known.to_vec()).unwrap()),
                    None => refusal(404, "not_found", "there is no such thing", None),
                },
            };
            let then = self.afterwards.lock().remove(&asked.line);
            if let Some(then) = then {
                then();
            }
            answer
        })
    }

    fn clusters_to_ask(&self) -> Vec<Arc<str>> {
        self.clusters.iter().filter(|name| self.unasked != Some(&***name)).cloned().collect()
    }

    fn components(self: Arc<Self>, cluster: Arc<str>, kind: Kind) -> BoxFuture<'static, Result<Value, &'static str>> {
        Box::pin(async move {
            let line = format!("GET {cluster} /{}", kind.plural());
            let asked = Asked { line, body: String::new(), headers: vec![], human: false, tool: None };
            let said = self.routes.lock().get_mut(&asked.line).map(|script| script(&asked));
            let said = said.ok_or("not_found")?;
            match said.refused {
                Some(code) => Err(code),
                None => Ok(serde_json::from_slice(&said.body.collect().await.unwrap().to_bytes()).unwrap()),
            }
        })
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    fn ended(self: Arc<Self>, principal: Arc<Principal>) -> BoxFuture<'static, ()> {
        let mut ended = self.ended.subscribe();
        Box::pin(async move {
            let _ = ended.wait_for(|ended| ended.contains(&*principal.subject)).await;
        })
    }

    fn may(&self, _: IpAddr, principal: &Principal, _: &str, operation: &str, resource_id: &str) -> bool {
        if self.hidden.lock().contains(&(principal.subject.to_string(), resource_id.to_owned())) {
            return false;
        }
        !self.denied.contains(operation) || self.allowed_ids.contains(resource_id)
    }

    fn clusters_for(&self, _: &Principal) -> Vec<Arc<str>> {
        self.clusters.clone()
    }

    fn limits_of(self: Arc<Self>, _: Arc<Principal>) -> BoxFuture<'static, Option<Value>> {
        Box::pin(async { Some(json!([{"name": "requests", "remaining": 7}])) })
    }

    fn would(self: Arc<Self>, call: Call) -> BoxFuture<'static, bool> {
        let resolves = call.path.ends_with("/resolve");
        Box::pin(async move { !(resolves && self.denied.contains("resolve_approval")) })
    }

    fn take_once(self: Arc<Self>, name: String, _: Duration) -> BoxFuture<'static, Once> {
        let first = self.taken.lock().insert(name);
        Box::pin(async move { if first { Once::First } else { Once::Taken } })
    }

    fn seal(&self, purpose: &str, bytes: &[u8]) -> String {
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        format!("{purpose}.{hex}")
    }

    fn open(&self, purpose: &str, text: &str) -> Option<Vec<u8>> {
        let hex = text.strip_prefix(purpose)?.strip_prefix('.')?;
        (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(hex.get(at..at + 2)?, 16).ok()).collect()
    }
}

/// Feeds one event stream.
#[derive(Clone)]
pub(super) struct Feed(
    Arc<Mutex<Option<mpsc::UnboundedSender<Bytes>>>>,
    Arc<Mutex<Option<mpsc::UnboundedReceiver<Bytes>>>>,
);

impl Feed {
    pub(super) fn new() -> Self {
        let (sender, receiver) = mpsc::unbounded_channel();
        Self(Arc::new(Mutex::new(Some(sender))), Arc::new(Mutex::new(Some(receiver))))
    }

    /// Sends one event in AgentOS's shape.
    pub(super) fn event(&self, name: &str, mut data: Value) {
        data["event"] = json!(name);
        self.bytes(&format!("event: {name}\ndata: {data}\n\n"));
    }

    pub(super) fn bytes(&self, bytes: &str) {
        let _ = self.0.lock().as_ref().unwrap().send(Bytes::copy_from_slice(bytes.as_bytes()));
    }

    /// The first event of an agent's run.
    pub(super) fn started(&self) {
        self.event("RunStarted", json!({"run_id": "r1", "session_id": "s1", "agent_id": "web"}));
    }

    /// The last event of an agent's run.
    pub(super) fn completed(&self, content: &str) {
        self.event("RunCompleted", json!({"run_id": "r1", "session_id": "s1", "content": content}));
        self.end();
    }

    pub(super) fn end(&self) {
        self.0.lock().take();
    }

    /// Waits until nobody reads any more.
    pub(super) async fn dropped(&self) {
        let sender = self.0.lock().clone().unwrap();
        sender.closed().await;
    }

    fn body(&self) -> AnswerBody {
        let receiver = self.1.lock().take().unwrap();
        let frames = futures_util::stream::unfold(receiver, |mut receiver| async move {
            let bytes = receiver.recv().await?;
            Some((Ok::<_, BodyBroken>(Frame::data(bytes)), receiver))
        });
        AnswerBody::stream(http_body_util::StreamBody::new(frames).boxed_unsync())
    }
}

/// Whoever reads abandoned streams on.
#[derive(Default)]
pub(super) struct Readers {
    tasks: Mutex<JoinSet<()>>,
    refusing: Mutex<bool>,
}

impl Readers {
    pub(super) fn refuse(&self, refusing: bool) {
        *self.refusing.lock() = refusing;
    }

    pub(super) fn count(&self) -> usize {
        let mut tasks = self.tasks.lock();
        while tasks.try_join_next().is_some() {}
        tasks.len()
    }

    pub(super) fn take(&self, task: BoxFuture<'static, ()>) -> bool {
        if *self.refusing.lock() {
            return false;
        }
        self.tasks.lock().spawn(task);
        true
    }
}

pub(super) fn answer(status: u16, content_type: &str, body: impl Into<Bytes>) -> Answer {
    let mut headers = HeaderMap::new();
    headers.insert(header::CONTENT_TYPE, content_type.parse().unwrap());
    let status = StatusCode::from_u16(status).unwrap();
    Answer { status, headers, body: AnswerBody::full(body), refused: None }
}

pub(super) fn event_stream(body: AnswerBody) -> Answer {
    Answer { body, ..answer(200, "text/event-stream; charset=utf-8", "") }
}

pub(super) fn refusal(status: u16, code: &'static str, detail: &str, retry_after: Option<u64>) -> Answer {
    let problem = json!({"status": status, "code": code, "detail": detail, "request_id": "req-1"});
    let mut answer = answer(status, "application/problem+json", problem.to_string());
    answer.refused = Some(code);
    if let Some(seconds) = retry_after {
        answer.headers.insert(header::RETRY_AFTER, seconds.into());
    }
    answer
}
