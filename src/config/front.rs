//! Owns what stands before requests: `tls`, `proxy_protocol`, `forwarded_for`, `[server.cors]`, compression and
//! `[server.limits]`.
//! Does not load certificates and does not bind.
//! Invariants: a limit that is not written is the default, never none; no network of trusted proxies is the whole world.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

use crate::agentos::Catalog;
use crate::gateway::Limits;
use crate::proxy::{ClientCertificates, Cors, KeyPair, Tls};

use super::reader::{At, Table, Value, narrow};
use super::secrets::unreadable;
use super::words::nearest;

/// Open connections, when nothing is said.
const CONNECTIONS: usize = 20_000;
/// Smallest JSON answer that is compressed, when nothing is said: about a packet.
const GZIP_BYTES_MIN: usize = 1024;

/// The limits, and how many connections may be open.
pub(super) struct ReadLimits {
    pub(super) limits: Limits,
    pub(super) connections_max: usize,
    /// Limits of single operations, with their places: the catalogue is read later.
    pub(super) operations: Vec<At<String>>,
}

pub(super) fn tls(value: &Value<'_>) -> Option<Tls> {
    let table = value.table()?;
    let default = key_pair(&table);
    let listed = table.get("certificates");
    let more = match &listed {
        None => Some(Vec::new()),
        Some(list) => {
            let items =
                list.list("a list such as `[{ certificate = \"b.pem\", key = \"b.key\" }]`").unwrap_or_default();
            let pairs = items.iter().map(|item| {
                let table = item.table()?;
                let pair = key_pair(&table);
                table.close();
                pair
            });
            pairs.collect::<Vec<_>>().into_iter().collect()
        }
    };
    let client_ca = table.get("client_ca").and_then(readable);
    let words = [("required", ClientCertificates::Required), ("optional", ClientCertificates::Optional)];
    let asked = table.get("client_certificate");
    let client_certificate = asked.as_ref().and_then(|v| v.word(&words)).unwrap_or(ClientCertificates::Required);
    if let Some(asked) = asked.filter(|_| table.get("client_ca").is_none()) {
        let help = "write `client_ca = \"clients.pem\"`, whose certificates are asked for".to_owned();
        asked.problem::<()>("says nothing without `client_ca`", Some(help));
    }
    table.close();
    Some(Tls { default: default?, more: more?, client_ca, client_certificate })
}

fn key_pair(table: &Table<'_>) -> Option<KeyPair> {
    let certificate = table.require("certificate", "\"server.pem\"").and_then(readable);
    let key = table.require("key", "\"server.key\"").and_then(readable);
    Some(KeyPair { certificate: certificate?, key: key? })
}

fn readable(value: Value<'_>) -> Option<std::path::PathBuf> {
    let path = value.path()?;
    value.source.depends_on(&path);
    match std::fs::File::open(&path) {
        Ok(_) => Some(path),
        Err(error) => value.problem(format!("cannot be read: {}", unreadable(error)), None),
    }
}

/// Networks, as `"10.0.0.0/8"` or a single address.
pub(super) fn networks(value: &Value<'_>) -> Option<Vec<IpNet>> {
    let expected = "a network such as `\"10.0.0.0/8\"`";
    let network = |item: &At<&str>| {
        let read = item.value.parse().ok().or_else(|| item.value.parse::<IpAddr>().ok().map(IpNet::from));
        if read.is_none() {
            value.source.problem(item.at, format!("`{}` is not {expected}", item.value), None);
        }
        read
    };
    let read: Vec<Option<IpNet>> = value.strings(expected)?.iter().map(network).collect();
    if read.iter().flatten().any(|network| network.prefix_len() == 0) {
        let help = "name the networks of your proxies: everybody else could claim any address".to_owned();
        return value.problem("trusts the whole world", Some(help));
    }
    read.into_iter().collect()
}

pub(super) fn cors(server: &Table<'_>) -> Option<Cors> {
    let table = server.section("cors")?;
    let origins = table.require("allowed_origins", "[\"https://app.example.com\"]").and_then(|v| origins(&v));
    let headers =
        table.get("allowed_headers").and_then(|v| v.strings("the name of a header field")).unwrap_or_default();
    let token = |name: &At<&str>| {
        let name = name.value.to_ascii_lowercase();
        http::HeaderName::try_from(&name).is_ok().then_some(name)
    };
    for bad in headers.iter().filter(|name| token(name).is_none()) {
        table.source.problem(bad.at, format!("`{}` is not the name of a header field", bad.value), None);
    }
    let ages = Duration::ZERO..=Duration::from_hours(24);
    let max_age = table.get("max_age").and_then(|v| v.duration(ages)).unwrap_or(Duration::from_mins(10));
    let headers = headers.iter().filter_map(token).collect();
    table.close();
    Some(Cors { origins: origins?, headers, max_age })
}

/// Exact origins; a page cannot be told from another by a pattern that its owner did not mean.
fn origins(value: &Value<'_>) -> Option<Vec<String>> {
    let expected = "an origin such as `\"https://app.example.com\"`";
    let origin = |item: &At<&str>| {
        let url = url::Url::parse(item.value).ok();
        let origin = url.map(|url| url.origin().ascii_serialization()).filter(|origin| origin != "null");
        if origin.as_deref() == Some(item.value) && !item.value.contains('*') {
            return origin;
        }
        let help = match origin {
            Some(_) | None if item.value.contains('*') => {
                Some("name each origin: patterns are not accepted".to_owned())
            }
            Some(origin) => Some(format!("did you mean `\"{origin}\"`?")),
            None => None,
        };
        value.source.problem(item.at, format!("`{}` is not {expected}", item.value), help);
        None
    };
    let read: Vec<Option<String>> = value.strings(expected)?.iter().map(origin).collect();
    read.into_iter().collect()
}

/// `"off"`, or `"gzip"` for answers from `compression_bytes_min` on.
pub(super) fn compression(server: &Table<'_>) -> Option<usize> {
    let wanted = server.get("compression").and_then(|v| v.word(&[("gzip", true), ("off", false)])).unwrap_or(true);
    let sizes = 256..=64 << 20;
    let bytes_min = server.get("compression_bytes_min").and_then(|v| v.size(sizes)).map_or(GZIP_BYTES_MIN, narrow);
    wanted.then_some(bytes_min)
}

pub(super) fn limits(server: &Table<'_>) -> ReadLimits {
    let default = Limits::default();
    let Some(table) = server.section("limits") else {
        return ReadLimits { limits: default, connections_max: CONNECTIONS, operations: Vec::new() };
    };
    let size = |key, low, high| table.get(key).and_then(|v: Value<'_>| v.size(low..=high));
    let count = |key, high| table.get(key).and_then(|v: Value<'_>| v.integer(1..=high));
    let time = |key, high| {
        table.get(key).and_then(|v: Value<'_>| v.duration(Duration::from_millis(100)..=Duration::from_secs(high)))
    };
    let connections = count("connections", 1_000_000).map_or(CONNECTIONS, narrow);
    let per_address = table.get("connections_per_address");
    let per_address_max = per_address.as_ref().and_then(|v| v.integer(1..=1_000_000)).map(narrow);
    if let Some(value) = per_address.filter(|_| per_address_max.is_some_and(|max| max > connections)) {
        value.problem::<()>(format!("is more than `connections`, which is {connections}"), None);
    }
    let (operations, places) = operations(&table);
    let limits = Limits {
        header_bytes: size("header_bytes", 1 << 10, 1 << 20).map_or(default.header_bytes, narrow),
        header_fields: count("header_fields", 10_000).map_or(default.header_fields, narrow),
        body_bytes: size("body_bytes", 1 << 10, 64 << 30).unwrap_or(default.body_bytes),
        operations: Arc::new(operations),
        form_field_bytes: size("form_field_bytes", 1 << 10, 64 << 20).map_or(default.form_field_bytes, narrow),
        json_body_bytes: size("json_body_bytes", 1 << 10, 64 << 20).map_or(default.json_body_bytes, narrow),
        header_timeout: time("header_timeout", 300).unwrap_or(default.header_timeout),
        body_timeout: time("body_timeout", 600).unwrap_or(default.body_timeout),
        body_bytes_per_second_min: size("body_bytes_per_second", 0, 1 << 30)
            .unwrap_or(default.body_bytes_per_second_min),
        write_timeout: time("write_timeout", 3600).unwrap_or(default.write_timeout),
        connections_per_address: per_address_max.unwrap_or_else(|| default.connections_per_address.min(connections)),
        streams_per_connection: count("streams_per_connection", 10_000)
            .and_then(|count| u32::try_from(count).ok())
            .unwrap_or(default.streams_per_connection),
    };
    table.close();
    ReadLimits { limits, connections_max: connections, operations: places }
}

/// Sizes of bodies by operation.
fn operations(limits: &Table<'_>) -> (BTreeMap<String, u64>, Vec<At<String>>) {
    let Some(table) = limits.section("operations") else { return Default::default() };
    let (mut sizes, mut places) = (BTreeMap::new(), Vec::new());
    for (name, value) in table.entries() {
        places.push(At { value: name.value.to_owned(), at: name.at });
        if let Some(size) = value.size(1 << 10..=64 << 30) {
            sizes.insert(name.value.to_owned(), size);
        }
    }
    (sizes, places)
}

/// Reports limits of operations that do not exist.
pub(super) fn known_operations(root: &Table<'_>, catalog: &Catalog, operations: &[At<String>]) {
    for name in operations.iter().filter(|name| catalog.get(&name.value).is_none()) {
        let help = nearest(&name.value, catalog.rows().iter().map(|row| row.id));
        let help = help.unwrap_or_else(|| "`tollbridge operations` lists them".to_owned());
        root.source.problem(name.at, format!("there is no operation `{}`", name.value), Some(help));
    }
}
