//! Owns the tests of the endpoint as a whole: real MCP messages in, a scripted gateway behind.
//! Does not test what has its own unit tests beside it.

mod double;
mod each;
mod listening;
mod optional;
mod pauses;
mod reads;
mod resources;
mod runs;
mod tasks;
mod wire;

use std::sync::Arc;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::BodyExt as _;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::{Hooks, McpService, Pin, RunSettings, Settings, Toolset};
use crate::agentos::SseEvents;
use crate::gateway::{AnswerBody, Carrier, LocalService as _, StreamBody};
use crate::principal::{Principal, PrincipalKind, TenantId};
use double::{Readers, Script};

const MODERN: &str = "2026-07-28";
const LEGACY: &str = "2025-11-25";

/// The endpoint over a scripted gateway.
struct Fixture {
    service: Arc<McpService>,
    script: Arc<Script>,
    readers: Arc<Readers>,
    _background: JoinSet<()>,
}

/// One client of it.
struct Client<'a> {
    fixture: &'a Fixture,
    principal: Arc<Principal>,
    name: &'static str,
    /// Of an older client.
    session: Option<String>,
    path: &'static str,
    /// What it declares it can do.
    able: Value,
}

fn principal(tenant: &str, subject: &str) -> Arc<Principal> {
    let tenant = TenantId::new(tenant).unwrap();
    Arc::new(Principal::new(PrincipalKind::User, subject, tenant, vec!["operator".into()], vec![], None, None))
}

impl Fixture {
    fn new(script: Script) -> Self {
        Self::with(script, RunSettings::default())
    }

    /// An endpoint that treats runs like this.
    fn with(script: Script, runs: RunSettings) -> Self {
        Self::pinned(script, runs, Vec::new())
    }

    /// The same with pinned texts.
    fn pinned(script: Script, runs: RunSettings, pins: Vec<Pin>) -> Self {
        let (script, readers) = (Arc::new(script), Arc::new(Readers::default()));
        let detach = Arc::clone(&readers);
        let hooks = Hooks { detach: Arc::new(move |task| detach.take(task)), counted: Arc::new(|_, _| {}) };
        let settings = settings(runs, pins);
        let path: Arc<dyn super::Path> = script.clone();
        let service = McpService::new(settings, path, hooks);
        let mut background = JoinSet::new();
        background.spawn(Arc::clone(&service).discovery_loop());
        Self { service, script, readers, _background: background }
    }

    /// A client of the stateless revision.
    fn modern(&self, subject: &str) -> Client<'_> {
        Client {
            fixture: self,
            principal: principal("acme", subject),
            name: "test",
            session: None,
            path: "/mcp",
            able: json!({}),
        }
    }

    /// A client with a session.
    async fn legacy(&self, subject: &str) -> Client<'_> {
        self.able(subject, LEGACY, json!({})).await
    }

    /// A client with a session of some revision that declares what it can do.
    async fn able(&self, subject: &str, version: &str, able: Value) -> Client<'_> {
        let mut client = self.modern(subject);
        let mut opening = initialize(version);
        opening["params"]["capabilities"] = able;
        let response = client.send("POST", &[], opening.to_string()).await;
        assert_eq!(response.status(), StatusCode::OK);
        client.session = Some(response.headers()["mcp-session-id"].to_str().unwrap().to_owned());
        let ready = json!({"jsonrpc": "2.0", "method": "notifications/initialized"});
        let response = client.send("POST", &[], ready.to_string()).await;
        assert_eq!(response.status(), StatusCode::ACCEPTED);
        client
    }
}

fn settings(runs: RunSettings, pins: Vec<Pin>) -> Settings {
    Settings {
        enabled: true,
        path: "/mcp".to_owned(),
        toolsets: Toolset::DEFAULT.to_vec(),
        optional_toolsets: Toolset::ALL.to_vec(),
        public_url: "https://agents.example.com".parse().unwrap(),
        runs,
        authorization: None,
        discovery_interval: std::time::Duration::from_secs(30),
        origins: Vec::new(),
        pins,
    }
}

fn initialize(version: &str) -> Value {
    json!({"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": {
        "protocolVersion": version, "capabilities": {}, "clientInfo": {"name": "test", "version": "1"}}})
}

impl Client<'_> {
    /// Sends one HTTP request as this caller.
    async fn send(&self, method: &str, headers: &[(&str, &str)], body: impl Into<Bytes>) -> Response<StreamBody> {
        let mut request = Request::builder()
            .method(method)
            .uri(self.path)
            .header("host", "agents.example.com")
            .header("content-type", "application/json");
        if let Some(session) = &self.session {
            request = request.header("mcp-session-id", session);
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let mut request = request.body(AnswerBody::full(body).into_stream()).unwrap();
        request.extensions_mut().insert(Arc::clone(&self.principal));
        request.extensions_mut().insert(Carrier {
            request_id: "req-1".into(),
            peer: "192.0.2.7".parse().unwrap(),
            host: Some("agents.example.com".to_owned()),
            certificate: None,
        });
        self.fixture.service.call(request).await
    }

    /// Sends one JSON-RPC request in the client's era; `token` asks for progress.
    async fn request(&self, method: &str, mut params: Value, token: Option<&str>) -> Response<StreamBody> {
        let mut meta = json!({});
        if let Some(token) = token {
            meta["progressToken"] = json!(token);
        }
        let names = ["name", "uri", "taskId"];
        let name = names.iter().find_map(|name| params[*name].as_str()).unwrap_or_default().to_owned();
        let mut headers = vec![];
        if self.session.is_none() {
            meta["io.modelcontextprotocol/protocolVersion"] = json!(MODERN);
            meta["io.modelcontextprotocol/clientCapabilities"] = self.able.clone();
            meta["io.modelcontextprotocol/clientInfo"] = json!({"name": self.name, "version": "1"});
            headers = vec![("mcp-protocol-version", MODERN), ("mcp-method", method)];
            if !name.is_empty() {
                headers.push(("mcp-name", name.as_str()));
            }
        } else {
            headers.push(("mcp-protocol-version", LEGACY));
        }
        params["_meta"] = meta;
        // Ids of requests under way must differ within a session.
        let id = if method == "tools/call" { 7 } else { 8 };
        let body = json!({"jsonrpc": "2.0", "id": id, "method": method, "params": params});
        self.send("POST", &headers, body.to_string()).await
    }

    /// Calls a method and gives its last message.
    async fn ask(&self, method: &str, params: Value) -> Value {
        let messages = Messages::of(self.request(method, params, None).await).rest().await;
        messages.last().unwrap().clone()
    }

    /// Calls a tool and gives its result.
    async fn call(&self, tool: &str, arguments: Value) -> Value {
        let answer = self.ask("tools/call", json!({"name": tool, "arguments": arguments})).await;
        assert_eq!(answer["error"], Value::Null, "{answer}");
        answer["result"].clone()
    }

    /// Sends a request of the stateless revision with more headers, and gives the answer.
    async fn call_with(&self, more: &[(&str, &str)], mut params: Value) -> Value {
        params["_meta"] = json!({"io.modelcontextprotocol/protocolVersion": MODERN,
            "io.modelcontextprotocol/clientCapabilities": self.able,
            "io.modelcontextprotocol/clientInfo": {"name": self.name, "version": "1"}});
        let name = params["name"].as_str().unwrap().to_owned();
        let mut headers = vec![("mcp-protocol-version", MODERN), ("mcp-method", "tools/call"), ("mcp-name", &name)];
        headers.extend(more);
        let body = json!({"jsonrpc": "2.0", "id": 7, "method": "tools/call", "params": params});
        Messages::of(self.send("POST", &headers, body.to_string()).await).rest().await.pop().unwrap()
    }

    async fn tools(&self) -> Vec<String> {
        let answer = self.ask("tools/list", json!({})).await;
        let tools = answer["result"]["tools"].as_array().unwrap();
        tools.iter().map(|tool| tool["name"].as_str().unwrap().to_owned()).collect()
    }
}

/// The JSON-RPC messages of a response, as they come.
struct Messages {
    body: StreamBody,
    events: SseEvents,
    ready: std::collections::VecDeque<Value>,
    stream: bool,
}

impl Messages {
    fn of(response: Response<StreamBody>) -> Self {
        let stream = response.headers()["content-type"].to_str().unwrap().starts_with("text/event-stream");
        Self { body: response.into_body(), events: SseEvents::new(1 << 20), ready: Default::default(), stream }
    }

    async fn next(&mut self) -> Option<Value> {
        while self.ready.is_empty() {
            let data = self.body.frame().await?.unwrap().into_data().unwrap();
            if self.stream {
                let ready = &mut self.ready;
                self.events.push(&data, &mut |event| {
                    ready.extend((!event.data.is_empty()).then(|| serde_json::from_str::<Value>(event.data).unwrap()));
                });
            } else {
                self.ready.push_back(serde_json::from_slice(&data).unwrap());
            }
        }
        self.ready.pop_front()
    }

    async fn rest(mut self) -> Vec<Value> {
        let mut all = vec![];
        while let Some(message) = self.next().await {
            all.push(message);
        }
        all
    }
}

/// The text blocks of a tool result.
fn texts(result: &Value) -> Vec<String> {
    let blocks = result["content"].as_array().unwrap();
    blocks.iter().map(|block| block["text"].as_str().unwrap().to_owned()).collect()
}

/// The `run` handle that a result ends with.
fn handle(result: &Value) -> String {
    let last = texts(result).pop().unwrap();
    last.lines().find_map(|line| line.strip_prefix("run: ")).unwrap().to_owned()
}
