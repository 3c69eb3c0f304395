//! Owns `tollbridge tools`: the MCP tools that a caller would be shown, as the endpoint itself lists them.
//! Does not serve and asks no AgentOS: a list never does.
//! Invariant: what is printed is the answer of the real endpoint to `tools/list`.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, header};
use http_body_util::{BodyExt as _, Full};
use serde_json::{Value, json};

use super::{Ended, Format, configuration, rehearsal, say, talk};
use crate::config::Config;
use crate::gateway::{Answer, Carrier, Gateway, LocalService as _};
use crate::mcp::{self, McpService};
use crate::principal::Principal;
use crate::telemetry::Door;

/// The revision that the list is asked for in.
const VERSION: &str = "2026-07-28";

/// Whose tools, and how to print them.
#[derive(Debug, Args)]
pub(super) struct ToolsArguments {
    /// Bearer token or API key of the caller.
    #[arg(long, value_name = "TOKEN", conflicts_with = "claims", required_unless_present = "claims")]
    token: Option<String>,
    /// File with the claims of the caller, not verified; `iss`, `aud` and `exp` may be left out.
    #[arg(long = "as", value_name = "CLAIMS.JSON")]
    claims: Option<PathBuf>,
    /// What follows the endpoint's path: `readonly` or `x/TOOLSET`. Tools of `x/ask` are known to a running gateway only.
    #[arg(long, value_name = "PATH")]
    below: Option<String>,
    /// Address of the caller.
    #[arg(long, default_value = "127.0.0.1", value_name = "ADDRESS")]
    address: std::net::IpAddr,
    /// How to print.
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,
}

/// Prints the tools.
pub(super) fn run(path: &Path, arguments: &ToolsArguments) -> Ended {
    let Some(config) = configuration(path) else { return Ended::Failed };
    match list(&config, arguments) {
        Ok(Ok(tools)) => say(&render(&tools, arguments.format)),
        Ok(Err(refused)) => {
            talk(&refused);
            Ended::Wrong
        }
        Err(error) => {
            talk(&error);
            Ended::Failed
        }
    }
}

/// The tools, or why the caller gets none.
fn list(config: &Config, arguments: &ToolsArguments) -> Result<Result<Vec<Value>, String>, String> {
    if !config.mcp.enabled {
        return Err("the MCP endpoint is off\nhelp: write `enabled = true` in `[mcp]`".to_owned());
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| format!("cannot start the runtime: {error}"))?;
    runtime.block_on(async {
        let (snapshot, client) = rehearsal::stages(config)?;
        let supposed = arguments.claims.as_deref().map(|file| rehearsal::supposed(&snapshot, file)).transpose()?;
        let gateway = rehearsal::gateway(config, snapshot, client)?;
        let carrier = Carrier { request_id: "tools".into(), peer: arguments.address, host: None, certificate: None };
        let principal = match supposed {
            Some(principal) => Arc::new(principal),
            None => match authenticate(&gateway, &carrier, arguments.token.as_deref().unwrap_or_default()).await? {
                Ok(principal) => principal,
                Err(refused) => return Ok(Err(refused)),
            },
        };
        let below = arguments.below.as_deref().map(|below| format!("/{}", below.trim_start_matches('/')));
        let path = format!("{}{}", config.mcp.path, below.unwrap_or_default());
        ask(config, gateway, principal, carrier, &path).await
    })
}

async fn authenticate(
    gateway: &Arc<Gateway>,
    carrier: &Carrier,
    token: &str,
) -> Result<Result<Arc<Principal>, String>, String> {
    let value = HeaderValue::try_from(format!("Bearer {token}"))
        .map_err(|_| "--token: has characters that no token has".to_owned())?;
    let headers = HeaderMap::from_iter([(header::AUTHORIZATION, value)]);
    match gateway.authenticate(Door::Mcp, &headers, carrier, &Method::POST).await {
        Ok(principal) => Ok(Ok(principal)),
        Err(Answer { refused, .. }) => {
            let code = refused.unwrap_or("unauthenticated");
            Ok(Err(format!("the gateway would refuse the token: {code}\nhelp: `tollbridge explain` says more")))
        }
    }
}

async fn ask(
    config: &Config,
    gateway: Arc<Gateway>,
    principal: Arc<Principal>,
    carrier: Carrier,
    path: &str,
) -> Result<Result<Vec<Value>, String>, String> {
    let hooks = mcp::Hooks { detach: Arc::new(|_| false), counted: Arc::new(|_, _| {}) };
    let service = McpService::new(config.mcp.clone(), gateway, hooks);
    let meta = json!({"io.modelcontextprotocol/protocolVersion": VERSION,
        "io.modelcontextprotocol/clientCapabilities": {}});
    let message = json!({"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {"_meta": meta}});
    let body = Full::from(message.to_string()).map_err(|never| match never {}).boxed_unsync();
    let mut request = Request::new(body);
    *request.method_mut() = Method::POST;
    *request.uri_mut() = path.parse().map_err(|_| format!("--below: `{path}` is no path"))?;
    for (name, value) in [
        ("host", "127.0.0.1"),
        ("content-type", "application/json"),
        ("accept", "application/json, text/event-stream"),
        ("mcp-protocol-version", VERSION),
        ("mcp-method", "tools/list"),
    ] {
        request.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    request.extensions_mut().insert(principal);
    request.extensions_mut().insert(carrier);
    if !service.owns(path) {
        return Ok(Err(format!("there is no MCP endpoint at `{path}`")));
    }
    let response = service.call(request).await;
    let status = response.status();
    let body = response.into_body().collect().await.map_err(|error| format!("the list broke off: {error}"))?.to_bytes();
    if status != StatusCode::OK {
        return Ok(Err(format!("the endpoint answered with {status}: {}", String::from_utf8_lossy(&body))));
    }
    let answer: Value = serde_json::from_slice(&body).map_err(|error| format!("the list is no JSON: {error}"))?;
    match answer.pointer("/result/tools").and_then(Value::as_array) {
        Some(tools) => Ok(Ok(tools.clone())),
        None => Err(format!("the endpoint listed nothing: {answer}")),
    }
}

fn render(tools: &[Value], format: Format) -> String {
    if format == Format::Json {
        return format!("{:#}\n", Value::from(tools));
    }
    let text = |tool: &Value, field: &str| tool.get(field).and_then(Value::as_str).unwrap_or_default().to_owned();
    let rows: Vec<[String; 4]> = std::iter::once(["TOOL", "EFFECT", "ARGUMENTS", "DOES"].map(str::to_owned))
        .chain(tools.iter().map(|tool| [text(tool, "name"), effect(tool), parameters(tool), text(tool, "description")]))
        .collect();
    let width = |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max();
    let widths = [0, 1, 2].map(|column| width(column).unwrap_or_default());
    let line = |[name, effect, parameters, does]: &[String; 4]| {
        let [a, b, c] = widths;
        format!("{}\n", format!("{name:a$}  {effect:b$}  {parameters:c$}  {does}").trim_end())
    };
    rows.iter().map(line).collect()
}

/// What a client is told to expect.
fn effect(tool: &Value) -> String {
    let hint = |name: &str| tool.pointer(&format!("/annotations/{name}")).and_then(Value::as_bool).unwrap_or_default();
    let word = if hint("readOnlyHint") {
        "reads"
    } else if hint("openWorldHint") {
        "acts"
    } else {
        "changes"
    };
    word.to_owned()
}

/// The arguments; those that may be left out have a question mark.
fn parameters(tool: &Value) -> String {
    let required = tool.pointer("/inputSchema/required").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    let Some(Value::Object(properties)) = tool.pointer("/inputSchema/properties") else { return String::new() };
    let shown = |name: &String| {
        if required.iter().any(|r| r == name.as_str()) { name.clone() } else { format!("{name}?") }
    };
    let (needed, free): (Vec<_>, Vec<_>) = properties.keys().map(shown).partition(|name| !name.ends_with('?'));
    needed.into_iter().chain(free).collect::<Vec<_>>().join(" ")
}
