//! Owns the MCP clients of a test: raw JSON-RPC over HTTP, in both eras, message by message.
//! Does not use an MCP library and does not judge.
//! Invariant: every wait has the deadline of the stack.

#![allow(dead_code, reason = "a fixture offers more than each test takes")]

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};

use serde_json::{Value, json};

use crate::stack::{Ask, Flow, Got, Stack, Who};

/// The stateless revision.
pub(crate) const MODERN: &str = "2026-07-28";
/// The newest revision with sessions.
pub(crate) const LEGACY: &str = "2025-11-25";

/// The two eras of the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Era {
    /// Every request says everything.
    Modern,
    /// A session.
    Legacy,
}

/// One client.
pub(crate) struct McpClient<'a> {
    stack: &'a Stack,
    token: String,
    /// The session, of an older client.
    pub(crate) session: Option<String>,
    /// Where it connects.
    pub(crate) path: &'static str,
    /// What it declares it can do.
    pub(crate) able: Value,
    ids: AtomicU64,
}

/// The messages of one answer, as they come.
pub(crate) struct Messages {
    flow: Flow,
    text: String,
    ready: VecDeque<Value>,
    stream: bool,
}

/// The result of a tool call.
#[derive(Debug, Clone)]
pub(crate) struct Told {
    /// `isError`.
    pub(crate) is_error: bool,
    /// The text blocks, one after the other.
    pub(crate) text: String,
    /// The whole result.
    pub(crate) whole: Value,
}

// === impl Era ===

impl Era {
    /// Both.
    pub(crate) const ALL: [Self; 2] = [Self::Modern, Self::Legacy];
}

// === impl McpClient ===

impl<'a> McpClient<'a> {
    /// A client of the stateless revision.
    pub(crate) fn modern(stack: &'a Stack, who: &Who) -> Self {
        Self::with_token(stack, &who.token())
    }

    /// The same with a token of the test's own.
    pub(crate) fn with_token(stack: &'a Stack, token: &str) -> Self {
        Self { stack, token: token.to_owned(), session: None, path: "/mcp", able: json!({}), ids: AtomicU64::new(1) }
    }

    /// The same at another address.
    pub(crate) fn at(self, path: &'static str) -> Self {
        Self { path, ..self }
    }

    /// A client with a session.
    pub(crate) async fn legacy(stack: &'a Stack, who: &Who) -> Self {
        Self::able(stack, Era::Legacy, who, json!({})).await
    }

    /// A client of an era that declares what it can do.
    pub(crate) async fn able(stack: &'a Stack, era: Era, who: &Who, able: Value) -> Self {
        let mut client = Self::modern(stack, who);
        client.able = able;
        if era == Era::Modern {
            return client;
        }
        let mut opening = initialize();
        opening["params"]["capabilities"] = client.able.clone();
        let got = stack.send(client.post(&opening)).await;
        assert_eq!(got.status, 200, "{}", got.text());
        client.session = Some(got.header("mcp-session-id").unwrap().to_owned());
        let ready = client.post(&json!({"jsonrpc": "2.0", "method": "notifications/initialized"}));
        assert_eq!(stack.send(ready).await.status, 202);
        client
    }

    /// A client of an era.
    pub(crate) async fn of(stack: &'a Stack, era: Era, who: &Who) -> Self {
        match era {
            Era::Modern => Self::modern(stack, who),
            Era::Legacy => Self::legacy(stack, who).await,
        }
    }

    /// A request with this message, as the client sends it.
    pub(crate) fn post(&self, message: &Value) -> Ask {
        self.bare("POST").body("application/json", message.to_string())
    }

    /// A request of a method with the client's token and session.
    pub(crate) fn bare(&self, method: &str) -> Ask {
        let ask =
            Ask::new(method, self.path).bearer(&self.token).header("accept", "application/json, text/event-stream");
        match &self.session {
            Some(session) => ask.header("mcp-session-id", session).header("mcp-protocol-version", LEGACY),
            None => ask,
        }
    }

    /// A JSON-RPC request in the client's era; `token` asks for progress.
    pub(crate) fn request(&self, method: &str, mut params: Value, token: Option<&str>) -> Ask {
        let mut meta = json!({});
        if let Some(token) = token {
            meta["progressToken"] = json!(token);
        }
        let names = ["name", "uri", "taskId"];
        let name = names.iter().find_map(|name| params[*name].as_str()).unwrap_or_default().to_owned();
        if self.session.is_none() {
            meta["io.modelcontextprotocol/protocolVersion"] = json!(MODERN);
            meta["io.modelcontextprotocol/clientCapabilities"] = self.able.clone();
            meta["io.modelcontextprotocol/clientInfo"] = json!({"name": "test", "version": "1"});
        }
        params["_meta"] = meta;
        let id = self.ids.fetch_add(1, Ordering::Relaxed);
        let ask = self.post(&json!({"jsonrpc": "2.0", "id": id, "method": method, "params": params}));
        match (&self.session, name.is_empty()) {
            (Some(_), _) => ask,
            (None, true) => ask.header("mcp-protocol-version", MODERN).header("mcp-method", method),
            (None, false) => {
                ask.header("mcp-protocol-version", MODERN).header("mcp-method", method).header("mcp-name", &name)
            }
        }
    }

    /// A tool call.
    pub(crate) fn calling(&self, tool: &str, arguments: Value, token: Option<&str>) -> Ask {
        self.request("tools/call", json!({"name": tool, "arguments": arguments}), token)
    }

    /// Sends a request; its messages are read by the test.
    pub(crate) async fn open(&self, ask: Ask) -> Messages {
        Messages::of(self.stack.open(ask).await)
    }

    /// Sends a request and gives its last message.
    pub(crate) async fn ask(&self, method: &str, params: Value) -> Value {
        self.open(self.request(method, params, None)).await.last().await
    }

    /// Answers a question of the server in a session.
    pub(crate) async fn answer(&self, id: &Value, result: &Value) {
        let message = json!({"jsonrpc": "2.0", "id": id, "result": result});
        assert_eq!(self.stack.send(self.post(&message)).await.status, 202);
    }

    /// Calls a tool and gives its result.
    pub(crate) async fn call(&self, tool: &str, arguments: Value) -> Told {
        Told::of(&self.open(self.calling(tool, arguments, None)).await.last().await)
    }

    /// The names of the tools that are listed.
    pub(crate) async fn tools(&self) -> Vec<String> {
        let answer = self.ask("tools/list", json!({})).await;
        let tools = answer["result"]["tools"].as_array().unwrap_or_else(|| panic!("{answer}"));
        tools.iter().map(|tool| tool["name"].as_str().unwrap().to_owned()).collect()
    }
}

/// The first message of an older client.
pub(crate) fn initialize() -> Value {
    json!({"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": {
        "protocolVersion": LEGACY, "capabilities": {}, "clientInfo": {"name": "test", "version": "1"}}})
}

// === impl Messages ===

impl Messages {
    /// Reads an answer as messages.
    pub(crate) fn of(flow: Flow) -> Self {
        let content_type = flow.headers().get("content-type").map_or("", |value| value.to_str().unwrap());
        let stream = content_type.starts_with("text/event-stream");
        Self { flow, text: String::new(), ready: VecDeque::new(), stream }
    }

    /// The next message; `None` at the end.
    pub(crate) async fn next(&mut self) -> Option<Value> {
        while self.ready.is_empty() {
            match self.flow.next().await {
                Some(data) => self.text.push_str(std::str::from_utf8(&data.unwrap()).unwrap()),
                None if self.text.trim().is_empty() => return None,
                None => return Some(whole(&std::mem::take(&mut self.text))),
            }
            if self.stream {
                while let Some((event, rest)) = self.text.split_once("\n\n") {
                    self.ready.extend(event.lines().filter_map(data).map(whole));
                    self.text = rest.to_owned();
                }
            }
        }
        self.ready.pop_front()
    }

    /// The last message.
    pub(crate) async fn last(mut self) -> Value {
        let mut last = Value::Null;
        while let Some(message) = self.next().await {
            last = message;
        }
        last
    }
}

fn data(line: &str) -> Option<&str> {
    line.strip_prefix("data:").map(str::trim).filter(|data| !data.is_empty())
}

fn whole(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

// === impl Told ===

impl Told {
    /// Reads the answer to a tool call.
    pub(crate) fn of(answer: &Value) -> Self {
        let whole = answer["result"].clone();
        let content = whole["content"].as_array().unwrap_or_else(|| panic!("no result: {answer}"));
        let text: Vec<&str> = content.iter().filter_map(|block| block["text"].as_str()).collect();
        Self { is_error: whole["isError"] == json!(true), text: text.join("\n"), whole }
    }

    /// A field of the lines that a run's result ends with: `run`, `status`, `session_id`.
    pub(crate) fn field(&self, name: &str) -> String {
        let found = self.text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
        found.unwrap_or_else(|| panic!("no `{name}`: {}", self.text)).to_owned()
    }
}

/// The JSON-RPC error of an answer that is not a stream.
pub(crate) fn error_of(got: &Got) -> Value {
    got.json()["error"].clone()
}
