//! Owns asking for a better token: a call whose scopes do not suffice is answered with what it lacks, before anything is
//! done about it.
//! Does not decide (`policy`, through `tools::scopes`) and does nothing where there is no authorization server.

use std::sync::Arc;

use http::request::Parts;
use http::{Response, StatusCode};
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::Shared;
use super::authorization::{Challenge, Resource};
use super::endpoint::respond;
use super::narrowing::Narrowing;
use super::tools::scopes::Intent;
use crate::gateway::{Carrier, StreamBody};
use crate::principal::{Principal, PrincipalKind};

#[derive(Deserialize)]
struct Call<'a> {
    #[serde(default)]
    id: Option<Value>,
    method: String,
    #[serde(borrow)]
    params: Params<'a>,
}

#[derive(Deserialize)]
struct Params<'a> {
    name: String,
    #[serde(borrow, default)]
    arguments: Option<&'a RawValue>,
}

#[derive(Deserialize, Default)]
struct Arguments {
    #[serde(default)]
    kind: Option<String>,
}

/// The refusal of a tool call whose caller could get a token with the scope that it lacks.
pub(super) fn refusal(
    service: &Shared,
    resource: &Resource,
    principal: &Arc<Principal>,
    parts: &Parts,
    bytes: &[u8],
) -> Option<Response<StreamBody>> {
    // An API key is not got from an authorization server.
    if !resource.has_server() || principal.kind != PrincipalKind::User {
        return None;
    }
    let call: Call<'_> = serde_json::from_slice(bytes).ok().filter(|call: &Call<'_>| call.method == "tools/call")?;
    let arguments = call.params.arguments.and_then(|raw| serde_json::from_str::<Arguments>(raw.get()).ok());
    let kind = arguments.unwrap_or_default().kind;
    let intent = Intent {
        inner: &service.inner,
        principal,
        peer: parts.extensions.get::<Carrier>()?.peer,
        narrowing: parts.extensions.get::<Narrowing>()?,
        tool: &call.params.name,
        kind: kind.as_deref(),
    };
    let scope = intent.lacks()?;
    let message = format!("`{}` needs the scope `{scope}`: get a token that has it", call.params.name);
    let error = json!({"code": -32603, "message": message, "data": {"reason": "insufficient_scope", "scope": scope}});
    let body = json!({"jsonrpc": "2.0", "id": call.id, "error": error}).to_string();
    let mut response = respond(StatusCode::FORBIDDEN, "application/json", body);
    resource.challenge(response.headers_mut(), Challenge::Insufficient(scope));
    Some(response)
}
