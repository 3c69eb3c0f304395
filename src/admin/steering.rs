//! Owns the admin API of quotas: `/quota/{tenant}` shows, `…/reset` and `…/grant` correct, `/usage` exports.
//! Does not decide anything (`gateway`).
//! Invariant: what changes something is a POST that no web page can send.

use futures_util::future::BoxFuture;
use http::{Request, Response};
use http_body_util::Full;
use serde_json::Value;

use bytes::Bytes;

use super::reply::{self, Problem};
use crate::gateway::{Correct, Gateway, Unit, Unsteerable, UsageLine};

/// What the admin API asks of the gateway.
pub trait Steering: Send + Sync {
    /// A tenant's plan, limits and use.
    fn show<'a>(&'a self, tenant: &'a str, plan: Option<&'a str>) -> BoxFuture<'a, Result<Value, Unsteerable>>;

    /// Corrects what a tenant has used.
    fn correct<'a>(
        &'a self,
        tenant: &'a str,
        plan: Option<&'a str>,
        correct: Correct,
    ) -> BoxFuture<'a, Result<Value, Unsteerable>>;

    /// Usage of days.
    fn usage<'a>(
        &'a self,
        tenant: Option<&'a str>,
        from: Option<&'a str>,
        to: Option<&'a str>,
    ) -> BoxFuture<'a, Result<Vec<UsageLine>, Unsteerable>>;
}

impl Steering for Gateway {
    fn show<'a>(&'a self, tenant: &'a str, plan: Option<&'a str>) -> BoxFuture<'a, Result<Value, Unsteerable>> {
        Box::pin(self.tenant_quota(tenant, plan))
    }

    fn correct<'a>(
        &'a self,
        tenant: &'a str,
        plan: Option<&'a str>,
        correct: Correct,
    ) -> BoxFuture<'a, Result<Value, Unsteerable>> {
        Box::pin(self.correct_quota(tenant, plan, correct))
    }

    fn usage<'a>(
        &'a self,
        tenant: Option<&'a str>,
        from: Option<&'a str>,
        to: Option<&'a str>,
    ) -> BoxFuture<'a, Result<Vec<UsageLine>, Unsteerable>> {
        Box::pin(self.usage_lines(tenant, from, to))
    }
}

/// A wish of the admin API.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Wish {
    Show { tenant: String },
    Reset { tenant: String },
    Grant { tenant: String },
    Usage,
}

impl Wish {
    /// The wish of a path; `None` for paths of others.
    pub(super) fn of(path: &str) -> Option<Self> {
        if path == "/usage" {
            return Some(Self::Usage);
        }
        let mut segments = path.strip_prefix("/quota/")?.split('/');
        let tenant = segments.next().filter(|tenant| !tenant.is_empty())?.to_owned();
        match (segments.next(), segments.next()) {
            (None, None) => Some(Self::Show { tenant }),
            (Some("reset"), None) => Some(Self::Reset { tenant }),
            (Some("grant"), None) => Some(Self::Grant { tenant }),
            (_, _) => None,
        }
    }

    /// The only method of the wish.
    pub(super) const fn method(&self) -> &'static str {
        match self {
            Self::Show { .. } | Self::Usage => "GET",
            Self::Reset { .. } | Self::Grant { .. } => "POST",
        }
    }

    /// Fulfils it.
    pub(super) async fn fulfil<B>(
        &self,
        steering: &dyn Steering,
        request: &Request<B>,
    ) -> Result<Response<Full<Bytes>>, Problem> {
        let query = Query::of(request.uri().query().unwrap_or(""));
        let plan = query.get("plan");
        let shown = match self {
            Self::Show { tenant } => steering.show(tenant, plan).await,
            Self::Reset { tenant } => steering.correct(tenant, plan, Correct::Reset).await,
            Self::Grant { tenant } => steering.correct(tenant, plan, query.grant()?).await,
            Self::Usage => {
                let lines = steering.usage(query.get("tenant"), query.get("from"), query.get("to")).await;
                let lines = lines.map_err(refused)?;
                return Ok(match query.get("format") {
                    Some("csv") => reply::document("text/csv; charset=utf-8", csv(&lines)),
                    Some("json") | None => json(&serde_json::json!({ "usage": lines })),
                    Some(_) => return Err(Problem::bad("`format` is `json` or `csv`".to_owned())),
                });
            }
        };
        shown.map(|shown| json(&shown)).map_err(refused)
    }
}

/// The parameters of a request, decoded.
struct Query(Vec<(String, String)>);

impl Query {
    fn of(text: &str) -> Self {
        Self(url::form_urlencoded::parse(text.as_bytes()).into_owned().collect())
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    fn grant(&self) -> Result<Correct, Problem> {
        let number = |text: &str| text.replace('_', "").parse::<u64>().ok().filter(|n| *n <= 1_000_000_000_000);
        match (self.get("tokens").map(number), self.get("money_millionths").map(number)) {
            (Some(Some(tokens)), None) => Ok(Correct::Grant(Unit::Tokens, tokens)),
            (None, Some(Some(millionths))) => Ok(Correct::Grant(Unit::Money, millionths)),
            (_, _) => Err(Problem::bad("name one of `tokens` and `money_millionths`, a whole number".to_owned())),
        }
    }
}

fn refused(why: Unsteerable) -> Problem {
    match why {
        Unsteerable::NotFound(detail) => Problem::NOT_FOUND.saying(detail),
        Unsteerable::Bad(detail) => Problem::bad(detail),
        Unsteerable::Store(detail) => Problem::STORE_LOST.saying(detail),
    }
}

fn json(value: &Value) -> Response<Full<Bytes>> {
    reply::document("application/json", value.to_string())
}

/// RFC 4180, with a line of names.
fn csv(lines: &[UsageLine]) -> String {
    let mut text = String::from("day,tenant,agent,model,runs,input_tokens,output_tokens,price_millionths\r\n");
    let quoted = |field: &str| format!("\"{}\"", field.replace('"', "\"\""));
    for line in lines {
        let names = [&line.day, &line.tenant, &line.agent, &line.model].map(|field| quoted(field)).join(",");
        let counts = [line.runs, line.input_tokens, line.output_tokens, line.price_millionths].map(|n| n.to_string());
        text.push_str(&format!("{names},{}\r\n", counts.join(",")));
    }
    text
}
