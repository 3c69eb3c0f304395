//! Owns `[server]`, `[admin]` and `[mcp]`: what listens, and for whom (`front` has what stands before requests).
//! Does not bind and does not load certificates.

use std::net::SocketAddr;
use std::time::Duration;

use crate::gateway::Limits;
use crate::mcp::Toolset;
use crate::secret::Secret;
use crate::{admin, mcp, proxy};

use super::front::{self, ReadLimits};
use super::mcp_authorization;
use super::mcp_pins;
use super::mcp_runs;
use super::reader::{At, Table, Value, narrow};
use super::runtime::{ServerSettings, Threads};
use super::words::{nearest, quoted};

/// Shortest `[server] secret`: the output size of the MAC.
const SECRET_BYTES_MIN: usize = 32;
/// Shortest admin token.
const TOKEN_BYTES_MIN: usize = 16;

/// What these sections hold.
pub(super) struct Read {
    pub(super) server: ServerSettings,
    pub(super) secrets: Vec<Secret>,
    pub(super) limits: Limits,
    /// Operations that have limits of their own, with their places.
    pub(super) operations: Vec<At<String>>,
    pub(super) proxy: proxy::Settings,
    pub(super) mcp: mcp::Settings,
    pub(super) admin: admin::Settings,
}

pub(super) fn read(root: &Table<'_>) -> Option<Read> {
    let Some(table) = root.require_section("server", "secret = { env = \"TOLLBRIDGE_SECRET\" }") else {
        // For their problems only.
        admin_door(root, None);
        mcp_door(root, None);
        return None;
    };
    let listen = table.get("listen").map_or(Some(loopback(8080)), |v| v.address());
    let public_url = public_url(&table, listen);
    let tls = table.get("tls").and_then(|v| front::tls(&v));
    let h2c = table.get("h2c").and_then(|v| v.boolean()).unwrap_or(false);
    let secrets = secrets(&table);
    let threads = table.get("threads").and_then(|v| threads(&v)).unwrap_or(Threads::Auto);
    let drain = seconds(0)..=Duration::from_hours(1);
    let drain_timeout = table.get("drain_timeout").and_then(|v| v.duration(drain)).unwrap_or(seconds(30));
    let drain = seconds(0)..=Duration::from_hours(24);
    let upgrade_timeout =
        table.get("upgrade_timeout").and_then(|v| v.duration(drain)).unwrap_or(Duration::from_hours(1));
    let pid_file = table.get("pid_file").and_then(|v| v.path());
    let watch = table.get("watch").and_then(|v| watch(&v)).unwrap_or_default();
    let from = |key: &'static str| {
        let section = table.section(key)?;
        let networks = section.require("from", "[\"10.0.0.0/8\"]").and_then(|v| front::networks(&v));
        section.close();
        networks
    };
    let proxy_protocol = from("proxy_protocol").unwrap_or_default();
    let forwarded_for = from("forwarded_for").unwrap_or_default();
    let (cors, gzip_bytes_min) = (front::cors(&table), front::compression(&table));
    let ReadLimits { limits, connections_max, operations } = front::limits(&table);
    table.close();
    let admin = admin_door(root, listen);
    let mut mcp = mcp_door(root, public_url.as_ref());
    if let (Some(mcp), Some(cors)) = (&mut mcp, &cors) {
        mcp.origins.clone_from(&cors.origins);
    }
    let listen = listen?;
    let server = ServerSettings { listen, threads, drain_timeout, upgrade_timeout, pid_file, watch, connections_max };
    let proxy =
        proxy::Settings { public_url: public_url?, tls, h2c, proxy_protocol, forwarded_for, cors, gzip_bytes_min };
    Some(Read { server, secrets: secrets?, limits, operations, proxy, mcp: mcp?, admin: admin? })
}

fn public_url(table: &Table<'_>, listen: Option<SocketAddr>) -> Option<url::Url> {
    let Some(value) = table.get("public_url") else {
        let (listen, scheme) = (listen?, if table.get("tls").is_some() { "https" } else { "http" });
        if listen.ip().is_unspecified() {
            let message = format!("{} lacks `public_url`, and clients cannot reach `{listen}`", table.label());
            let help = "write `public_url = \"https://gateway.example.com\"`: MCP checks Host and Origin against it";
            table.source.warn(table.at, message, Some(help.to_owned()));
        }
        return url::Url::parse(&format!("{scheme}://{listen}")).ok();
    };
    let url = value.url()?;
    let bare = url.path() == "/" && url.query().is_none() && url.fragment().is_none();
    let anonymous = url.username().is_empty() && url.password().is_none();
    if bare && anonymous {
        return Some(url);
    }
    let help = format!("write `{}`", url.origin().ascii_serialization());
    value.problem("must hold scheme, host and port only", Some(help))
}

/// One secret or a list of them: the first signs, all verify.
fn secrets(table: &Table<'_>) -> Option<Vec<Secret>> {
    let value = table.require("secret", "{ env = \"TOLLBRIDGE_SECRET\" }")?;
    let items = if value.is_list() { value.list("a list of secrets")? } else { vec![value.clone()] };
    if items.is_empty() {
        return value.problem("is an empty list", Some("name at least one secret".to_owned()));
    }
    let long_enough = |item: &Value<'_>| {
        let secret = item.secret()?.value;
        let bytes = secret.expose().len();
        if bytes >= SECRET_BYTES_MIN {
            return Some(secret);
        }
        let help = "make one with `openssl rand -hex 32`".to_owned();
        item.problem(format!("refers to a secret of {bytes} bytes, but needs at least {SECRET_BYTES_MIN}"), Some(help))
    };
    // Every item is read before the first failure counts.
    let read: Vec<Option<Secret>> = items.iter().map(long_enough).collect();
    read.into_iter().collect()
}

/// `"off"` or how often to look.
fn watch(value: &Value<'_>) -> Option<Option<Duration>> {
    match value.text() {
        Some("off") => Some(None),
        Some(_) | None => value.duration(seconds(1)..=Duration::from_hours(1)).map(Some),
    }
}

fn threads(value: &Value<'_>) -> Option<Threads> {
    match value.text() {
        Some(_) => value.word(&[("auto", Threads::Auto)]),
        None => value.integer(1..=1024).map(|count| Threads::Count(narrow(count))),
    }
}

fn admin_door(root: &Table<'_>, main: Option<SocketAddr>) -> Option<admin::Settings> {
    let Some(table) = root.section("admin") else {
        return Some(admin::Settings { listen: loopback(9090), token: None });
    };
    let value = table.get("listen");
    let listen = value.as_ref().map_or(Some(loopback(9090)), Value::address);
    let token_given = table.get("token").is_some();
    let token = table.get("token").and_then(|v| admin_token(&v));
    let at = value.map_or(table.at, |v| v.at);
    table.close();
    let listen = listen?;
    if !listen.ip().is_loopback() && !token_given {
        let help = "write `token = { env = \"TOLLBRIDGE_ADMIN_TOKEN\" }`, or listen on `127.0.0.1`".to_owned();
        root.source.problem(at, format!("the admin address `{listen}` is not loopback and has no token"), Some(help));
    }
    if main.is_some_and(|main| collide(main, listen)) {
        let message = format!("the admin address `{listen}` is taken by `listen` in `[server]`");
        root.source.problem(at, message, Some("give it a port of its own".to_owned()));
    }
    Some(admin::Settings { listen, token })
}

fn admin_token(value: &Value<'_>) -> Option<Secret> {
    let token = value.secret()?.value;
    let bytes = token.expose().len();
    if bytes >= TOKEN_BYTES_MIN {
        return Some(token);
    }
    let help = "make one with `openssl rand -hex 32`".to_owned();
    value.problem(format!("refers to a token of {bytes} bytes, but needs at least {TOKEN_BYTES_MIN}"), Some(help))
}

fn mcp_door(root: &Table<'_>, public_url: Option<&url::Url>) -> Option<mcp::Settings> {
    let toolsets = || Toolset::DEFAULT.to_vec();
    let optional = || Toolset::ALL.into_iter().filter(|toolset| !Toolset::DEFAULT.contains(toolset)).collect();
    let default = |url: &url::Url| mcp::Settings {
        enabled: true,
        path: "/mcp".to_owned(),
        toolsets: toolsets(),
        optional_toolsets: optional(),
        public_url: url.clone(),
        runs: mcp::RunSettings::default(),
        authorization: None,
        discovery_interval: mcp::settings::DISCOVERY_INTERVAL,
        origins: Vec::new(),
        pins: Vec::new(),
    };
    let Some(table) = root.section("mcp") else { return public_url.map(default) };
    let enabled = table.get("enabled").and_then(|v| v.boolean()).unwrap_or(true);
    let path = table.get("path").and_then(|v| mcp_path(&v)).unwrap_or_else(|| "/mcp".to_owned());
    let chosen = table.get("toolsets").and_then(|v| known_toolsets(&v));
    let optional_toolsets = table.get("optional_toolsets").and_then(|v| known_toolsets(&v));
    // Whoever says which tools there are is not given more of them.
    let unsaid = if chosen.is_some() { Vec::new() } else { optional() };
    let (toolsets, optional_toolsets) = (chosen.unwrap_or_else(toolsets), optional_toolsets.unwrap_or(unsaid));
    let (runs, authorization) = (mcp_runs::read(&table), mcp_authorization::read(&table));
    let range = seconds(1)..=seconds(3_600);
    let discovery_interval = table.get("discovery_interval").and_then(|v| v.duration(range));
    let discovery_interval = discovery_interval.unwrap_or(mcp::settings::DISCOVERY_INTERVAL);
    let pins = mcp_pins::read(&table);
    table.close();
    let (public_url, origins) = (public_url?.clone(), Vec::new());
    Some(mcp::Settings {
        enabled,
        path,
        toolsets,
        optional_toolsets,
        public_url,
        runs,
        authorization,
        discovery_interval,
        origins,
        pins,
    })
}

fn mcp_path(value: &Value<'_>) -> Option<String> {
    let path = value.string("a path such as `\"/mcp\"`")?;
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '/' | '-' | '_' | '.');
    let named = path.split('/').skip(1).all(|segment| !matches!(segment, "" | "." | ".."));
    if path.starts_with('/') && named && path.chars().all(plain) {
        return Some(path.to_owned());
    }
    let tidy: Vec<&str> = path.split('/').filter(|segment| !matches!(*segment, "" | "." | "..")).collect();
    let help = Some(format!("did you mean `\"/{}\"`?", tidy.join("/"))).filter(|_| !tidy.is_empty());
    value.problem(format!("is `{path}`, which is not a path such as `/mcp`"), help)
}

fn known_toolsets(value: &Value<'_>) -> Option<Vec<Toolset>> {
    let words = || Toolset::ALL.into_iter().map(Toolset::as_str);
    let expected = format!("one of {}", quoted(words()));
    let known = |name: &At<&str>| {
        let toolset = Toolset::ALL.into_iter().find(|toolset| toolset.as_str() == name.value);
        if toolset.is_none() {
            let help = nearest(name.value, words()).unwrap_or_else(|| format!("the toolsets are {expected}"));
            value.source.problem(name.at, format!("unknown toolset `{}`", name.value), Some(help));
        }
        toolset
    };
    Some(value.strings(&expected)?.iter().filter_map(known).collect())
}

/// Two listeners cannot share a port on one address; port 0 is a fresh port each time.
fn collide(one: SocketAddr, other: SocketAddr) -> bool {
    let everywhere = one.ip().is_unspecified() || other.ip().is_unspecified();
    one.port() != 0 && one.port() == other.port() && (everywhere || one.ip() == other.ip())
}

fn loopback(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

const fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}
