//! Owns what clients are told about getting a token: the endpoint's metadata (RFC 9728), challenges (RFC 6750), and which
//! tokens are for this endpoint at all (RFC 8707).
//! Does not verify tokens (`identity`, behind the door) and does not decide (`policy`).
//! Invariants: without an authorization server nothing hints at one, else clients ignore the token they were given; a
//! token in a URL is refused, whoever it belongs to.

use http::header::{ACCESS_CONTROL_ALLOW_ORIGIN, CACHE_CONTROL, WWW_AUTHENTICATE};
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use serde_json::{Value, json};
use url::Url;

use super::narrowing::Narrowing;
use super::settings::{Authorization, resource};
use crate::gateway::{Answer, AnswerBody};
use crate::principal::{Principal, PrincipalKind};

const WELL_KNOWN: &str = "/.well-known/oauth-protected-resource";
/// Names under which clients are known to put tokens into URLs (RFC 6750 §2.3, and what people try).
const QUERY_TOKENS: [&str; 3] = ["access_token", "token", "authorization"];

/// The endpoint as a protected resource.
pub(super) struct Resource {
    /// Path of the endpoint.
    base: String,
    told: Option<Told>,
}

/// What is said about it, where an authorization server is configured.
struct Told {
    /// The resource's identifier, which tokens must name as an audience.
    resource: String,
    metadata: String,
    /// Where the metadata stands.
    metadata_url: String,
    scopes: String,
}

/// Why a caller is sent for a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Challenge<'a> {
    /// There is none.
    Missing,
    /// It is no good here.
    Invalid,
    /// It lacks these scopes.
    Insufficient(&'a str),
}

// === impl Resource ===

impl Resource {
    pub(super) fn new(public_url: &Url, base: &str, authorization: Option<&Authorization>) -> Self {
        let told = authorization.map(|authorization| {
            let resource = resource(public_url, base);
            let mut metadata = json!({"resource": resource, "authorization_servers": authorization.servers,
                "bearer_methods_supported": ["header"], "resource_name": "Tollbridge"});
            if let (Value::Object(fields), false) = (&mut metadata, authorization.scopes.is_empty()) {
                fields.insert("scopes_supported".to_owned(), json!(authorization.scopes));
            }
            let origin = public_url.as_str().trim_end_matches('/');
            let metadata_url = format!("{origin}{WELL_KNOWN}{base}");
            let metadata = metadata.to_string();
            Told { resource, metadata, metadata_url, scopes: authorization.scopes.join(" ") }
        });
        Self { base: base.to_owned(), told }
    }

    /// Says whether the path is where clients look for the metadata of the endpoint or of a part of it.
    pub(super) fn owns(&self, path: &str) -> bool {
        let rest = path.strip_prefix(WELL_KNOWN);
        rest.is_some_and(|rest| rest.is_empty() || rest == "/" || Narrowing::owns(&self.base, rest))
    }

    /// Answers what needs no caller: the metadata, or that there is none, and requests with a token in their URL.
    pub(super) fn answer_anyone(&self, method: &Method, path: &str, query: Option<&str>) -> Option<Answer> {
        if self.owns(path) {
            return Some(self.metadata(method));
        }
        let mut names = url::form_urlencoded::parse(query.unwrap_or_default().as_bytes()).map(|(name, _)| name);
        names.any(|name| QUERY_TOKENS.iter().any(|token| name.eq_ignore_ascii_case(token))).then(|| {
            let text = "a token belongs in the `Authorization` header, never in the URL: URLs are logged";
            let mut answer = problem(StatusCode::BAD_REQUEST, "Bad Request", text);
            answer.headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer error=\"invalid_request\""));
            answer
        })
    }

    fn metadata(&self, method: &Method) -> Answer {
        let Some(told) = &self.told else {
            return problem(
                StatusCode::NOT_FOUND,
                "Not Found",
                "no authorization server is configured for this endpoint",
            );
        };
        if !matches!(*method, Method::GET | Method::HEAD) {
            return problem(StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed", "the metadata can only be read");
        }
        let mut answer = whole(StatusCode::OK, "application/json", told.metadata.clone());
        answer.headers.insert(CACHE_CONTROL, HeaderValue::from_static("public, max-age=300"));
        // Clients in browsers read it before they have anything to prove.
        answer.headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
        answer
    }

    /// Says whether the caller's token was made for this endpoint. API keys are always made for this gateway.
    pub(super) fn is_for(&self, principal: &Principal) -> bool {
        let Some(told) = &self.told else { return true };
        let named = || principal.credential.iter().flat_map(|credential| &credential.audiences);
        match principal.kind {
            PrincipalKind::Service => true,
            PrincipalKind::User => named().any(|audience| **audience == *told.resource),
        }
    }

    /// Says whether callers can get better tokens than they have.
    pub(super) fn has_server(&self) -> bool {
        self.told.is_some()
    }

    /// Tells a refused client where to get a token, where there is such a place.
    pub(super) fn challenge(&self, headers: &mut HeaderMap, challenge: Challenge<'_>) {
        let Some(told) = &self.told else { return };
        let (error, scopes) = match challenge {
            Challenge::Missing => ("", told.scopes.as_str()),
            Challenge::Invalid => ("error=\"invalid_token\", ", told.scopes.as_str()),
            Challenge::Insufficient(scopes) => ("error=\"insufficient_scope\", ", scopes),
        };
        let mut text = format!("Bearer {error}resource_metadata=\"{}\"", told.metadata_url);
        if !scopes.is_empty() {
            text.push_str(&format!(", scope=\"{scopes}\""));
        }
        if let Ok(value) = HeaderValue::from_str(&text) {
            headers.insert(WWW_AUTHENTICATE, value);
        }
    }

    /// Refuses a token that was made for something else.
    pub(super) fn refuse_foreign(&self) -> Answer {
        let text = "the token was not made for this endpoint";
        let mut answer = problem(StatusCode::UNAUTHORIZED, "Unauthorized", text);
        self.challenge(&mut answer.headers, Challenge::Invalid);
        answer
    }
}

fn problem(status: StatusCode, title: &str, detail: &str) -> Answer {
    let body = json!({"type": "about:blank", "title": title, "status": status.as_u16(), "detail": detail});
    whole(status, "application/problem+json", body.to_string())
}

fn whole(status: StatusCode, content_type: &'static str, body: String) -> Answer {
    let headers = HeaderMap::from_iter([(http::header::CONTENT_TYPE, HeaderValue::from_static(content_type))]);
    Answer { status, headers, body: AnswerBody::full(body), refused: None }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::principal::{CredentialId, TenantId};

    fn resource(authorization: Option<Authorization>) -> Resource {
        Resource::new(&"https://gateway.test".parse().unwrap(), "/mcp", authorization.as_ref())
    }

    fn protected() -> Resource {
        let (servers, scopes) =
            (vec!["https://id.test".to_owned()], vec!["agents:read".to_owned(), "agents:run".to_owned()]);
        resource(Some(Authorization { servers, scopes }))
    }

    #[test]
    fn the_metadata_is_where_clients_look_for_it() {
        let paths = ["", "/", "/mcp", "/mcp/readonly", "/mcp/x/agents"].map(|rest| format!("{WELL_KNOWN}{rest}"));
        for path in &paths {
            let answer = protected().answer_anyone(&Method::GET, path, None).unwrap();
            assert_eq!(
                (answer.status, &answer.headers["access-control-allow-origin"]),
                (StatusCode::OK, &HeaderValue::from_static("*"))
            );
            let answer = resource(None).answer_anyone(&Method::GET, path, None).unwrap();
            assert_eq!(answer.status, StatusCode::NOT_FOUND, "{path}");
        }
        assert_eq!(protected().answer_anyone(&Method::POST, &paths[0], None).unwrap().status, 405);
        for other in ["/.well-known/oauth-protected-resource/other", "/.well-known/oauth-protected-resourcemcp", "/mcp"]
        {
            assert!(protected().answer_anyone(&Method::GET, other, None).is_none(), "{other}");
        }
        let metadata: Value = serde_json::from_str(&protected().told.unwrap().metadata).unwrap();
        let wanted = json!({"resource": "https://gateway.test/mcp", "authorization_servers": ["https://id.test"],
            "bearer_methods_supported": ["header"], "resource_name": "Tollbridge",
            "scopes_supported": ["agents:read", "agents:run"]});
        assert_eq!(metadata, wanted);
    }

    #[test]
    fn a_token_in_the_url_is_refused() {
        for query in ["access_token=x", "a=1&Access_Token=", "%61ccess_token=x", "token=x", "authorization=Bearer+x"] {
            let answer = resource(None).answer_anyone(&Method::POST, "/mcp", Some(query)).unwrap();
            assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{query}");
        }
        for query in [None, Some(""), Some("a=access_token"), Some("tokens=1")] {
            assert!(resource(None).answer_anyone(&Method::POST, "/mcp", query).is_none(), "{query:?}");
        }
    }

    #[test]
    fn challenges_name_the_metadata_and_the_scopes() {
        let told = |resource: &Resource, challenge| {
            let mut headers = HeaderMap::from_iter([(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"))]);
            resource.challenge(&mut headers, challenge);
            headers[WWW_AUTHENTICATE].to_str().unwrap().to_owned()
        };
        let place = "resource_metadata=\"https://gateway.test/.well-known/oauth-protected-resource/mcp\"";
        let scopes = "scope=\"agents:read agents:run\"";
        assert_eq!(told(&protected(), Challenge::Missing), format!("Bearer {place}, {scopes}"));
        assert_eq!(
            told(&protected(), Challenge::Invalid),
            format!("Bearer error=\"invalid_token\", {place}, {scopes}")
        );
        let insufficient = format!("Bearer error=\"insufficient_scope\", {place}, scope=\"agents:run\"");
        assert_eq!(told(&protected(), Challenge::Insufficient("agents:run")), insufficient);
        for challenge in [Challenge::Missing, Challenge::Invalid, Challenge::Insufficient("x")] {
            assert_eq!(told(&resource(None), challenge), "Bearer");
        }
    }

    #[test]
    fn only_tokens_for_the_endpoint_are_for_it() {
        let principal = |kind, audiences: &[&str]| {
            let tenant = TenantId::new("acme").unwrap();
            let mut principal = Principal::new(kind, "alice", tenant, vec![], vec![], None, None);
            let audiences = audiences.iter().map(|audience| (*audience).into()).collect();
            principal.credential = Some(CredentialId { id: None, sha256: [0; 32], audiences });
            principal
        };
        for (kind, audiences, good) in [
            (PrincipalKind::User, &["https://gateway.test/mcp"][..], true),
            (PrincipalKind::User, &["tollbridge", "https://gateway.test/mcp"], true),
            (PrincipalKind::User, &["tollbridge"], false),
            (PrincipalKind::User, &["https://gateway.test/mcp/"], false),
            (PrincipalKind::User, &[], false),
            (PrincipalKind::Service, &[], true),
        ] {
            assert_eq!(protected().is_for(&principal(kind, audiences)), good, "{kind:?} {audiences:?}");
            assert!(resource(None).is_for(&principal(kind, audiences)));
        }
    }
}
