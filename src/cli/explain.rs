//! Owns `tollbridge explain`: a call played through admission without a server, and earlier decisions by their id.
//! Does not decide (`gateway`): it makes the call, runs the dry run and prints what each stage said.
//! Invariant: exit code 0 says allowed, 1 refused, 2 that nothing could be said.

mod decision;
mod print;

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use http::{HeaderMap, HeaderValue, header};

use super::{Ended, Format, configuration, rehearsal, say, talk};
use crate::agentos::{Body, CanonicalPath};
use crate::config::Config;
use crate::gateway::{Call, Caller, Explanation, Inbound, Snapshot};
use crate::outbound::Client;
use crate::telemetry::Door;

/// Longest wait for the endpoints to say that they are there.
const PROBE_DEADLINE: Duration = Duration::from_secs(3);

/// The call to be explained, or the decision to be found.
#[derive(Debug, Args)]
pub(super) struct ExplainArguments {
    /// HTTP method.
    #[arg(required_unless_present = "decision")]
    method: Option<String>,
    /// Path, with its query.
    #[arg(required_unless_present = "decision")]
    path: Option<String>,
    /// Bearer token or API key of the caller.
    #[arg(long, value_name = "TOKEN", conflicts_with = "claims", required_unless_present_any = ["claims", "decision"])]
    token: Option<String>,
    /// File with the claims of the caller, not verified; `iss`, `aud` and `exp` may be left out.
    #[arg(long = "as", value_name = "CLAIMS.JSON")]
    claims: Option<PathBuf>,
    /// A field of the body; may be given several times.
    #[arg(long = "form", value_name = "NAME=VALUE")]
    form: Vec<String>,
    /// The door that the call comes through.
    #[arg(long, default_value = "http", value_parser = ["http", "mcp", "websocket"])]
    door: String,
    /// Cluster; by default the tenant's first.
    #[arg(long, value_name = "NAME")]
    cluster: Option<String>,
    /// Address of the caller.
    #[arg(long, default_value = "127.0.0.1", value_name = "ADDRESS")]
    address: IpAddr,
    /// Find the decision that a `Tollbridge-Decision` header names in the audit log.
    #[arg(long, value_name = "ID", conflicts_with_all = ["method", "path", "token", "claims", "form"])]
    decision: Option<String>,
    /// Audit log to search, when it is not the one of the configuration (after a rotation).
    #[arg(long, value_name = "FILE", requires = "decision")]
    audit_log: Option<PathBuf>,
    /// How to print.
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,
}

/// Explains one call, or prints an earlier decision.
pub(super) fn run(path: &Path, arguments: &ExplainArguments) -> Ended {
    let Some(config) = configuration(path) else { return Ended::Failed };
    if let Some(id) = &arguments.decision {
        return decision::run(&config, id, arguments.audit_log.as_deref(), arguments.format);
    }
    let explained = explain(&config, arguments);
    match explained {
        Ok(explanation) => {
            let refused = explanation.refused.is_some();
            match (say(&print::render(&explanation, arguments.format)), refused) {
                (Ended::Done, true) => Ended::Wrong,
                (ended, _) => ended,
            }
        }
        Err(error) => {
            talk(&error);
            Ended::Failed
        }
    }
}

fn explain(config: &Config, arguments: &ExplainArguments) -> Result<Explanation, String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| format!("cannot start the runtime: {error}"))?;
    runtime.block_on(async {
        let (snapshot, client) = rehearsal::stages(config)?;
        let call = call(&snapshot, arguments)?;
        probe(&snapshot, &client).await;
        Ok(rehearsal::gateway(config, snapshot, client)?.explain(call).await)
    })
}

/// Learns which endpoints are there and what version they are.
async fn probe(snapshot: &Snapshot, client: &Client) {
    let rounds = snapshot.clusters.iter().map(|cluster| cluster.probe_round(client, &|_| {}));
    // What has not answered by then is unknown, which is said.
    let _ = tokio::time::timeout(PROBE_DEADLINE, futures_util::future::join_all(rounds)).await;
}

fn call(snapshot: &Snapshot, arguments: &ExplainArguments) -> Result<Call, String> {
    let method = arguments.method.as_deref().unwrap_or_default().to_ascii_uppercase();
    let method = http::Method::from_bytes(method.as_bytes()).map_err(|_| format!("`{method}` is no HTTP method"))?;
    let target = arguments.path.as_deref().unwrap_or_default();
    let (path, query) = target.split_once('?').map_or((target, None), |(path, query)| (path, Some(query.to_owned())));
    let mut headers = HeaderMap::new();
    let caller = caller(snapshot, arguments, &mut headers)?;
    let body = body(snapshot, &method, path, &arguments.form, &mut headers)?;
    Ok(Call {
        door: match arguments.door.as_str() {
            "mcp" => Door::Mcp,
            "websocket" => Door::WebSocket,
            _ => Door::Http,
        },
        request_id: "explain".into(),
        method,
        path: path.to_owned(),
        query,
        headers,
        host: None,
        peer: arguments.address,
        caller,
        cluster: arguments.cluster.as_deref().map(Arc::from),
        human: false,
        tool: None,
        known: None,
        body,
    })
}

fn caller(snapshot: &Snapshot, arguments: &ExplainArguments, headers: &mut HeaderMap) -> Result<Caller, String> {
    let Some(file) = &arguments.claims else {
        let token = arguments.token.as_deref().unwrap_or_default();
        let value = HeaderValue::try_from(format!("Bearer {token}"))
            .map_err(|_| "--token: has characters that no token has".to_owned())?;
        headers.insert(header::AUTHORIZATION, value);
        return Ok(Caller::ByHeaders);
    };
    let principal = rehearsal::supposed(snapshot, file)?;
    Ok(Caller::Verified(Arc::new(principal)))
}

/// The fields in the encoding that the operation takes.
fn body(
    snapshot: &Snapshot,
    method: &http::Method,
    path: &str,
    fields: &[String],
    headers: &mut HeaderMap,
) -> Result<Inbound, String> {
    let pairs: Vec<(&str, &str)> = fields
        .iter()
        .map(|field| field.split_once('=').ok_or_else(|| format!("--form: `{field}` is not `name=value`")))
        .collect::<Result<_, _>>()?;
    if pairs.is_empty() {
        return Ok(Inbound::Empty);
    }
    let row = CanonicalPath::parse(path).ok().and_then(|path| snapshot.catalog.find(method, &path).ok());
    let is_json = row.is_some_and(|matched| matches!(matched.operation.body, Body::Json(_)));
    let (content_type, text) = if is_json {
        let value = |text: &str| serde_json::from_str(text).unwrap_or_else(|_| serde_json::Value::from(text));
        let object: serde_json::Map<_, _> =
            pairs.iter().map(|(name, text)| ((*name).to_owned(), value(text))).collect();
        ("application/json", serde_json::Value::Object(object).to_string())
    } else {
        let text = url::form_urlencoded::Serializer::new(String::new()).extend_pairs(&pairs).finish();
        ("application/x-www-form-urlencoded", text)
    };
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    Ok(Inbound::Full(text.into()))
}
