//! Owns `tollbridge quota`: shows and corrects quotas of a gateway that runs, through its admin listener.
//! Does not count anything itself.

use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use http::{HeaderMap, HeaderValue, Method, header};
use serde_json::Value;

use super::{Ended, Format, configuration, say, talk};
use crate::config::Config;
use crate::outbound::{self, Client, FetchOptions};

/// Longest wait for an answer: an export may read many days.
const DEADLINE: Duration = Duration::from_secs(60);
const ANSWER_BYTES_MAX: usize = 256 * 1024 * 1024;

/// What to do.
#[derive(Debug, Subcommand)]
pub(super) enum QuotaVerb {
    /// Show a tenant's plan, limits and use.
    Show(Tenant),
    /// Count everything that a tenant has used as unused, and fill its buckets.
    Reset(Tenant),
    /// Let a tenant use more in the current day and month.
    Grant(Grant),
    /// Print usage per day, tenant, agent and model, for billing.
    Export(Export),
}

/// A tenant.
#[derive(Debug, Args)]
pub(super) struct Tenant {
    /// Its name.
    tenant: String,
    /// The plan, where the tenant's credentials choose one.
    #[arg(long, value_name = "PLAN")]
    plan: Option<String>,
    /// How to print.
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,
}

/// A grant.
#[derive(Debug, Args)]
pub(super) struct Grant {
    #[command(flatten)]
    tenant: Tenant,
    /// Model tokens.
    #[arg(long, value_name = "COUNT", required_unless_present = "money", conflicts_with = "money")]
    tokens: Option<u64>,
    /// Money, such as `12.50`.
    #[arg(long, value_name = "AMOUNT")]
    money: Option<String>,
}

/// An export.
#[derive(Debug, Args)]
pub(super) struct Export {
    /// One tenant; by default all.
    #[arg(long, value_name = "TENANT")]
    tenant: Option<String>,
    /// First day, `YYYY-MM-DD` in UTC; by default the first of the month of the last day.
    #[arg(long, value_name = "DAY")]
    from: Option<String>,
    /// Last day; by default today.
    #[arg(long, value_name = "DAY")]
    to: Option<String>,
    /// How to print.
    #[arg(long, value_enum, default_value_t = ExportFormat::Csv)]
    format: ExportFormat,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ExportFormat {
    /// Comma-separated values with a line of names.
    Csv,
    /// One JSON document.
    Json,
}

/// Asks the gateway and prints what it says.
pub(super) fn run(path: &Path, verb: &QuotaVerb) -> Ended {
    let Some(config) = configuration(path) else { return Ended::Failed };
    let answer = target(verb).and_then(|(method, target)| ask(&config, method, &target));
    match answer {
        Ok((200, body)) => say(&printed(verb, &body)),
        Ok((_, body)) => {
            let problem: Value = serde_json::from_str(&body).unwrap_or(Value::Null);
            talk(problem.get("detail").and_then(Value::as_str).unwrap_or("the gateway refused"));
            Ended::Wrong
        }
        Err(error) => {
            talk(&error);
            Ended::Failed
        }
    }
}

fn target(verb: &QuotaVerb) -> Result<(Method, String), String> {
    let mut query = url::form_urlencoded::Serializer::new(String::new());
    let mut add = |name: &str, value: &Option<String>| {
        if let Some(value) = value {
            query.append_pair(name, value);
        }
    };
    // What is no tenant's name must not lead to another path.
    let of = |tenant: &Tenant| -> String { url::form_urlencoded::byte_serialize(tenant.tenant.as_bytes()).collect() };
    let (method, path) = match verb {
        QuotaVerb::Show(tenant) => {
            add("plan", &tenant.plan);
            (Method::GET, format!("/quota/{}", of(tenant)))
        }
        QuotaVerb::Reset(tenant) => {
            add("plan", &tenant.plan);
            (Method::POST, format!("/quota/{}/reset", of(tenant)))
        }
        QuotaVerb::Grant(grant) => {
            add("plan", &grant.tenant.plan);
            add("tokens", &grant.tokens.map(|tokens| tokens.to_string()));
            add("money_millionths", &grant.money.as_deref().map(millionths).transpose()?);
            (Method::POST, format!("/quota/{}/grant", of(&grant.tenant)))
        }
        QuotaVerb::Export(export) => {
            add("tenant", &export.tenant);
            add("from", &export.from);
            add("to", &export.to);
            let format = if export.format == ExportFormat::Csv { "csv" } else { "json" };
            add("format", &Some(format.to_owned()));
            (Method::GET, "/usage".to_owned())
        }
    };
    Ok((method, format!("{path}?{}", query.finish())))
}

fn millionths(amount: &str) -> Result<String, String> {
    let (whole, fraction) = amount.split_once('.').unwrap_or((amount, ""));
    let digits = |text: &str| text.bytes().all(|b| b.is_ascii_digit());
    if whole.is_empty() || !digits(whole) || !digits(fraction) || fraction.len() > 6 {
        return Err(format!("`{amount}` is not an amount such as `12.50`"));
    }
    Ok(format!("{whole}{fraction:0<6}"))
}

fn ask(config: &Config, method: Method, target: &str) -> Result<(u16, String), String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| format!("cannot start the runtime: {error}"))?;
    let mut headers = HeaderMap::new();
    if let Some(token) = config.admin.token.as_ref().and_then(|token| token.expose_str()) {
        let value = HeaderValue::from_str(&format!("Bearer {token}"));
        headers.insert(header::AUTHORIZATION, value.map_err(|_| "the admin token cannot be sent".to_owned())?);
    }
    let options = FetchOptions { deadline: DEADLINE, bytes_max: ANSWER_BYTES_MAX, headers };
    // What listens everywhere is reached here.
    let mut address = config.admin.listen;
    if address.ip().is_unspecified() {
        address.set_ip(if address.is_ipv4() { [127, 0, 0, 1].into() } else { std::net::Ipv6Addr::LOCALHOST.into() });
    }
    let url = format!("http://{address}{target}");
    runtime.block_on(async {
        let client = Client::new(outbound::Settings::default());
        let fetched = client.ask(method, &url, &options).await;
        let fetched = fetched.map_err(|error| format!("no gateway answers at `{address}`: {error}"))?;
        Ok((fetched.status, String::from_utf8_lossy(&fetched.body).into_owned()))
    })
}

fn printed(verb: &QuotaVerb, body: &str) -> String {
    let format = match verb {
        QuotaVerb::Show(tenant) | QuotaVerb::Reset(tenant) => tenant.format,
        QuotaVerb::Grant(grant) => grant.tenant.format,
        QuotaVerb::Export(_) => return body.to_owned(),
    };
    match (format, serde_json::from_str::<Value>(body)) {
        (Format::Table, Ok(shown)) => table(&shown),
        (Format::Table, Err(_)) | (Format::Json, _) => format!("{body}\n"),
    }
}

/// One line per limit, in columns.
fn table(shown: &Value) -> String {
    let text = |name: &str| shown.get(name).and_then(Value::as_str).unwrap_or("?");
    let runs = shown.get("runs_in_flight_here").and_then(Value::as_u64).unwrap_or(0);
    let (tenant, plan, counted) = (text("tenant"), text("plan"), text("counted"));
    let mut out = format!("tenant {tenant}, plan {plan}, counted by {counted}, {runs} runs in flight here\n");
    let limits = shown.get("limits").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    for limit in limits {
        let number = |name: &str| limit.get(name).and_then(Value::as_u64).unwrap_or(0);
        let name = limit.get("name").and_then(Value::as_str).unwrap_or("?");
        let (used, left, most, reset) = (number("used"), number("remaining"), number("limit"), number("reset_s"));
        // Writing to a String cannot fail.
        let _ = writeln!(out, "{name:<28} used {used:>14}  left {left:>14}  limit {most:>14}  whole in {reset} s");
    }
    out
}
