//! Owns what the bridge says when the server does not: what is wrong, and what to do, as a JSON-RPC error and as talk.
//! Does not say anything else: every answer of the server passes as it is.
//! Invariant: nothing of a token and at most a line of a foreign text gets into it.

use std::error::Error as _;
use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, StatusCode, header};
use serde::Deserialize;
use serde_json::{Value, json};

use super::super::chain;
use crate::gateway::REQUEST_ID;
use crate::outbound::{BodyError, SendError};

/// JSON-RPC "internal error": the codes beside it are the specification's.
const INTERNAL_ERROR: i32 = -32603;
/// Longest foreign text that is shown.
const FOREIGN_CHARS_MAX: usize = 300;

/// Why a message has no answer of the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Trouble {
    /// A word for programs.
    reason: &'static str,
    what: String,
    help: String,
    reply: Box<Reply>,
}

/// What a refusal says besides.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Reply {
    status: Option<u16>,
    /// The gateway's refusal code.
    code: Option<String>,
    request_id: Option<String>,
    /// Seconds to wait.
    retry_after: Option<u64>,
}

/// The part of a problem document that is shown.
#[derive(Deserialize, Default)]
struct Problem {
    #[serde(default)]
    detail: Option<String>,
    #[serde(default)]
    code: Option<String>,
    #[serde(default)]
    help: Option<String>,
}

// === impl Trouble ===

impl Trouble {
    fn new(reason: &'static str, what: impl Into<String>, help: impl Into<String>) -> Self {
        let (what, help) = (what.into(), help.into());
        Self { reason, what, help, reply: Box::default() }
    }

    /// The token cannot be shown.
    pub(super) fn token(what: String, help: &str) -> Self {
        Self::new("token", what, help)
    }

    /// A message of the client that cannot be sent.
    pub(super) fn message(what: String, help: &str) -> Self {
        Self::new("message", what, help)
    }

    /// An answer that is none.
    pub(super) fn answer(what: impl Into<String>) -> Self {
        let help = "is --url the MCP endpoint, such as https://gateway.example.com/mcp?";
        Self::new("invalid_answer", what, help)
    }

    /// No answer came.
    pub(super) fn unsent(url: &str, error: &SendError) -> Self {
        let cause = innermost(error);
        match error {
            SendError::Connect { .. } | SendError::ConnectTimeout { .. } => {
                let help = if cause.contains("certificate") {
                    "the certificate must be valid for this name; name a private root in the variable SSL_CERT_FILE"
                } else {
                    "check that the gateway runs (`tollbridge run`) and that --url is its address"
                };
                Self::new("unreachable", format!("`{url}` cannot be reached: {cause}"), help)
            }
            SendError::HeaderTimeout(after) => {
                let what = format!("`{url}` did not answer within {} s", after.as_secs());
                Self::new("timeout", what, "the call may have been carried out: look before you repeat it")
            }
            SendError::Reset { .. } | SendError::InvalidResponse(_) | SendError::BodyFailed(_) => {
                let what = format!("the connection to `{url}` broke: {cause}");
                Self::new("broken", what, "the call may have been carried out: look before you repeat it")
            }
        }
    }

    /// No answer came in the time that others can wait for it.
    pub(super) fn late(url: &str, after: Duration) -> Self {
        let what = format!("`{url}` did not answer within {} s", after.as_secs());
        Self::new("timeout", what, "check that the gateway is well, then restart this server in your client")
    }

    /// The answer broke off.
    pub(super) fn broken(url: &str, error: &BodyError) -> Self {
        let what = format!("the answer of `{url}` broke off: {}", chain(error));
        Self::new("broken", what, "the call may have been carried out: look before you repeat it")
    }

    /// The stream ended before the answer.
    pub(super) fn unanswered(url: &str) -> Self {
        let what = format!("`{url}` ended the stream before the answer");
        Self::new("broken", what, "the gateway may have been restarted: look before you repeat the call")
    }

    /// The server answered with something that is no message of the protocol.
    pub(super) fn refused(url: &str, status: StatusCode, headers: &HeaderMap, body: &Bytes, token_help: &str) -> Self {
        let field = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        let problem: Problem = serde_json::from_slice(body).unwrap_or_default();
        let foreign = || String::from_utf8_lossy(body).into_owned();
        let is_text = field("content-type").is_some_and(|t| t.starts_with("text/plain"));
        let detail = problem.detail.or_else(|| is_text.then(foreign)).map(|text| one_line(&text));
        let shown = detail.filter(|text| !text.is_empty()).map(|text| format!(": {text}")).unwrap_or_default();
        let (reason, what, help) = match status.as_u16() {
            401 => ("unauthenticated", format!("`{url}` refused the token{shown}"), token_help.to_owned()),
            403 => {
                let help = "you may not use this endpoint; if the host is refused, `public_url` in the gateway's \
                    `[server]` must name it";
                ("forbidden", format!("`{url}` refused the call{shown}"), help.to_owned())
            }
            404 | 405 => {
                let help = "--url must be the MCP endpoint: the gateway's address and `path` of its `[mcp]`, such as \
                    https://gateway.example.com/mcp";
                ("not_found", format!("there is no MCP endpoint at `{url}`{shown}"), help.to_owned())
            }
            413 => {
                ("too_large", format!("the message is too large for `{url}`{shown}"), "send less at once".to_owned())
            }
            429 | 503 => ("busy", format!("`{url}` is busy{shown}"), "wait and repeat it".to_owned()),
            300..=399 => {
                let to = one_line(field("location").unwrap_or("another address"));
                ("redirect", format!("`{url}` redirects to `{to}`"), "give that address as --url".to_owned())
            }
            code => {
                let help = "the gateway's log says more under the request id";
                ("refused", format!("`{url}` answered with {code}{shown}"), help.to_owned())
            }
        };
        let help = problem.help.map_or(help.clone(), |more| format!("{help}; {}", one_line(&more)));
        let reply = Reply {
            status: Some(status.as_u16()),
            code: problem.code.map(|code| one_line(&code)),
            request_id: field(REQUEST_ID.as_str()).map(one_line),
            retry_after: field(header::RETRY_AFTER.as_str()).and_then(|text| text.parse().ok()),
        };
        Self { reply: Box::new(reply), ..Self::new(reason, what, help) }
    }

    /// The JSON-RPC error that answers a request.
    pub(super) fn to_answer(&self, id: &Value) -> Bytes {
        let mut data = json!({"reason": self.reason, "help": self.help});
        let fields = [
            ("status", self.reply.status.map(Value::from)),
            ("code", self.reply.code.clone().map(Value::from)),
            ("request_id", self.reply.request_id.clone().map(Value::from)),
            ("retry_after_seconds", self.reply.retry_after.map(Value::from)),
        ];
        if let Value::Object(data) = &mut data {
            data.extend(fields.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))));
        }
        let message = format!("tollbridge mcp: {self}");
        let error = json!({"code": INTERNAL_ERROR, "message": message, "data": data});
        json!({"jsonrpc": "2.0", "id": id, "error": error}).to_string().into()
    }
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)?;
        if let Some(code) = &self.reply.code {
            write!(f, " ({code})")?;
        }
        write!(f, ". What to do: {}", self.help)?;
        match self.reply.retry_after {
            Some(seconds) => write!(f, " after {seconds} s"),
            None => Ok(()),
        }
    }
}

/// The cause at the root: what the system or the peer said.
fn innermost(error: &SendError) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = error.to_string();
        cause = error.source();
    }
    one_line(&text)
}

/// A foreign text, short and without line ends and control characters.
fn one_line(text: &str) -> String {
    let plain = text.trim().chars().map(|c| if c.is_control() { ' ' } else { c });
    plain.take(FOREIGN_CHARS_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const URL: &str = "https://gateway.test/mcp";

    fn refused(status: u16, headers: &[(&'static str, &'static str)], body: &str) -> Trouble {
        let headers = headers.iter().map(|(k, v)| (k.parse().unwrap(), v.parse().unwrap())).collect();
        let status = StatusCode::from_u16(status).unwrap();
        Trouble::refused(URL, status, &headers, &Bytes::copy_from_slice(body.as_bytes()), "bring a token")
    }

    #[test]
    fn a_refusal_says_what_is_wrong_and_what_to_do() {
        let problem = r#"{"detail":"the token has expired","code":"token_expired","help":"get another"}"#;
        let trouble = refused(401, &[("x-request-id", "r-1")], problem);
        let answer: Value = serde_json::from_slice(&trouble.to_answer(&json!(7))).unwrap();
        let message = "tollbridge mcp: `https://gateway.test/mcp` refused the token: the token has expired \
            (token_expired). What to do: bring a token; get another";
        let data = json!({"reason": "unauthenticated", "help": "bring a token; get another", "status": 401,
            "code": "token_expired", "request_id": "r-1"});
        let error = json!({"code": -32603, "message": message, "data": data});
        assert_eq!(answer, json!({"jsonrpc": "2.0", "id": 7, "error": error}));
    }

    #[test]
    fn every_status_has_a_reason() {
        for (status, reason) in [
            (301, "redirect"),
            (401, "unauthenticated"),
            (403, "forbidden"),
            (404, "not_found"),
            (405, "not_found"),
            (413, "too_large"),
            (429, "busy"),
            (500, "refused"),
            (502, "refused"),
            (503, "busy"),
        ] {
            assert_eq!(refused(status, &[], "").reason, reason, "{status}");
        }
        let busy = refused(429, &[("retry-after", "12")], "").to_string();
        assert!(busy.ends_with("What to do: wait and repeat it after 12 s"), "{busy}");
        let moved = refused(308, &[("location", "https://other.test/mcp")], "").to_string();
        assert!(moved.contains("redirects to `https://other.test/mcp`"), "{moved}");
    }

    #[test]
    fn foreign_texts_are_cut_and_pages_are_not_shown() {
        let long = refused(500, &[("content-type", "text/plain")], &format!("a\nb\u{7}{}", "x".repeat(1000)));
        assert!(long.what.len() < 400 && long.what.contains("a b x"), "{}", long.what);
        assert_eq!(refused(502, &[("content-type", "text/html")], "<html>").what, format!("`{URL}` answered with 502"));
    }
}
