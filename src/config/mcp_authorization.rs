//! Owns the keys of `[mcp]` that tell connectors where tokens come from, and what contradicts them elsewhere.
//! Does not answer anybody (`mcp`).

use crate::identity;
use crate::mcp::{self, Authorization};

use super::reader::{Table, Value};

/// Longest scope that is shown to clients.
const SCOPE_BYTES_MAX: usize = 256;

pub(super) fn read(mcp: &Table<'_>) -> Option<Authorization> {
    let servers = mcp.get("authorization_servers");
    let scopes = mcp.get("scopes_supported");
    if let (None, Some(scopes)) = (&servers, &scopes) {
        let help = "name the authorization server in `authorization_servers`, or leave this out".to_owned();
        scopes.problem::<()>("says something to clients that are not sent anywhere", Some(help));
    }
    let scopes = scopes.and_then(|value| scope_names(&value)).unwrap_or_default();
    let servers = server_urls(&servers?)?;
    Some(Authorization { servers, scopes })
}

/// Issuer identifiers (RFC 8414 §2): https, no query, no fragment; as written, since clients compare them.
fn server_urls(value: &Value<'_>) -> Option<Vec<String>> {
    let items = value.list("a list of URLs")?;
    if items.is_empty() {
        let help = "name the issuer of your authorization server, or leave this out".to_owned();
        return value.problem("is an empty list", Some(help));
    }
    let one = |item: &Value<'_>| {
        let url = item.url()?;
        let local = matches!(url.host_str(), Some("localhost" | "127.0.0.1" | "[::1]"));
        if url.scheme() != "https" && !local {
            return item.problem("must be https", Some("clients send people there to sign in".to_owned()));
        }
        if url.query().is_some() || url.fragment().is_some() || !url.username().is_empty() || url.password().is_some() {
            let help = "write the issuer as its own metadata names it".to_owned();
            return item.problem("must hold scheme, host and path only", Some(help));
        }
        item.text().map(str::to_owned)
    };
    let urls: Vec<Option<String>> = items.iter().map(one).collect();
    urls.into_iter().collect()
}

/// RFC 6749 §3.3: `scope-token`.
fn scope_names(value: &Value<'_>) -> Option<Vec<String>> {
    let plain = |name: &str| name.bytes().all(|b| b.is_ascii_graphic() && !matches!(b, b'"' | b'\\'));
    let names = value.strings("a scope such as `\"agents:run\"`")?;
    for name in &names {
        if name.value.is_empty() || name.value.len() > SCOPE_BYTES_MAX || !plain(name.value) {
            let message = format!("`{}` is no scope", name.value.escape_default());
            value.source.problem(name.at, message, Some("write it like `agents:run`".to_owned()));
        }
    }
    Some(names.iter().map(|name| name.value.to_owned()).collect())
}

/// Reports an endpoint for which no issuer may make tokens: every caller would be sent away for a better one, for ever.
pub(super) fn contradict(root: &Table<'_>, mcp: &mcp::Settings, identity: &identity::Settings) {
    let resource = mcp.resource();
    let accepted = |issuer: &identity::Issuer| issuer.audiences.contains(&resource);
    if mcp.authorization.is_none() || identity.issuers.iter().any(accepted) {
        return;
    }
    let at = root.get("mcp").and_then(|mcp| mcp.table()?.get("authorization_servers").map(|value| value.at));
    let message = format!(
        "`authorization_servers` in `[mcp]` is set, but no issuer accepts tokens for `{resource}`: no caller could use the endpoint"
    );
    let help = format!("add `\"{resource}\"` to `audiences` of its issuer in `[[identity.issuers]]`");
    root.source.problem(at.unwrap_or(0), message, Some(help));
}
