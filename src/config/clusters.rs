//! Owns `[[clusters]]`: where AgentOS is, how Tollbridge presents itself there, and who may use it.
//! Does not connect and resolves no names.
//! Invariant: a cluster that several tenants may use keeps their users and their knowledge apart.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crate::agentos::Catalog;
use crate::cluster::{
    Balance, CredentialSettings, Health, Knowledge, Load, MintAlgorithm, SessionRuns, Settings, Timeouts,
    UserIdTemplate,
};
use crate::identity::{self, UnknownTenant};
use crate::outbound::Origin;
use crate::principal::TenantId;
use crate::secret::Secret;

use super::reader::{At, Table, Value};
use super::resilience;
use super::secrets::is_pem;
use super::tenants;
use super::words::{nearest, quoted};

/// Shortest HMAC key without a warning.
const HMAC_KEY_BYTES_MIN: usize = 32;

/// The clusters, and for every tenant the names of those that it may use, default first.
pub(super) type Read = (Vec<Settings>, BTreeMap<TenantId, Vec<Arc<str>>>);

/// A cluster with what its Settings do not keep: where its keys stand.
struct Placed {
    settings: Settings,
    at: usize,
    hosts: Vec<At<String>>,
    user_id: usize,
    credential: usize,
    knowledge: Option<usize>,
}

pub(super) fn read(
    root: &Table<'_>,
    tenants: &tenants::Read,
    identity: Option<&identity::Settings>,
    catalog: Option<&Catalog>,
) -> Option<Read> {
    let unknown = identity.map_or(UnknownTenant::Deny, |settings| settings.unknown_tenant);
    let sections = root.sections("clusters");
    if root.get("clusters").is_none() {
        let help = "add `[[clusters]]` with `name` and `endpoints`".to_owned();
        root.source.problem(0, "the file has no cluster", Some(help));
    }
    let complete = sections.len();
    let mut clusters: Vec<Placed> = Vec::new();
    for section in sections {
        let Some(cluster) = cluster(section, catalog) else { continue };
        for earlier in &clusters {
            collide(root, earlier, &cluster);
        }
        clusters.push(cluster);
    }
    if clusters.len() < complete {
        return None;
    }
    let names: Vec<Arc<str>> = clusters.iter().map(|cluster| Arc::clone(&cluster.settings.name)).collect();
    let allowed = allowed(root, tenants, &names);
    for cluster in &mut clusters {
        let uses = |(_, names): &(&TenantId, &Vec<Arc<str>>)| names.contains(&cluster.settings.name);
        let users = allowed.iter().filter(uses).map(|(tenant, _)| tenant.clone()).collect();
        cluster.settings.tenants = users;
        cluster.settings.open = unknown == UnknownTenant::DefaultPlan;
        isolate(root, cluster, unknown);
        forward(root, cluster, identity);
    }
    Some((clusters.into_iter().map(|cluster| cluster.settings).collect(), allowed))
}

/// For every tenant the clusters that it may use.
fn allowed(root: &Table<'_>, tenants: &tenants::Read, names: &[Arc<str>]) -> BTreeMap<TenantId, Vec<Arc<str>>> {
    let resolve = |name: &At<String>, tenant: &TenantId| {
        let found = names.iter().find(|known| ***known == *name.value).cloned();
        if found.is_none() {
            let candidates = || names.iter().map(|name| &**name);
            let help = nearest(&name.value, candidates())
                .unwrap_or_else(|| format!("the clusters are {}", quoted(candidates())));
            let message = format!("the tenant `{tenant}` names the unknown cluster `{}`", name.value);
            root.source.problem(name.at, message, Some(help));
        }
        found
    };
    let clusters = |(id, tenant): (&TenantId, &tenants::Tenant)| {
        let clusters = match &tenant.clusters {
            Some(written) => written.iter().filter_map(|name| resolve(name, id)).collect(),
            None => names.to_vec(),
        };
        (id.clone(), clusters)
    };
    tenants.tenants.iter().map(clusters).collect()
}

/// Reports what two clusters must not have in common.
fn collide(root: &Table<'_>, earlier: &Placed, cluster: &Placed) {
    let line = root.source.line(earlier.at);
    if earlier.settings.name == cluster.settings.name {
        let message = format!("the cluster `{}` is already defined in line {line}", cluster.settings.name);
        root.source.problem(cluster.at, message, None);
    }
    for host in &cluster.hosts {
        if earlier.hosts.iter().any(|other| other.value == host.value) {
            let message = format!("the host `{}` already leads to the cluster `{}`", host.value, earlier.settings.name);
            root.source.problem(host.at, message, Some("a host leads to one cluster".to_owned()));
        }
    }
}

/// Reports a cluster whose tenants would see each other.
fn isolate(root: &Table<'_>, cluster: &Placed, unknown: UnknownTenant) {
    let name = &cluster.settings.name;
    let users = match (unknown, cluster.settings.tenants.len()) {
        (UnknownTenant::Deny, 0 | 1) => return,
        (UnknownTenant::Deny, count) => format!("{count} tenants may use the cluster `{name}`"),
        (UnknownTenant::DefaultPlan, _) => format!("tenants outside `[tenants]` may use the cluster `{name}`"),
    };
    if !cluster.settings.user_id.names_tenant() {
        let message = format!("{users}, but its `user_id` does not tell them apart");
        let help = "write `user_id = \"{tenant}~{subject}\"`, or let one tenant use it".to_owned();
        root.source.problem(cluster.user_id, message, Some(help));
    }
    match &cluster.settings.knowledge {
        Knowledge::Unset if cluster.knowledge.is_none() => {
            let message = format!("{users}, but it does not say whose knowledge is whose");
            let help = "write `knowledge = { metadata = \"tenant\" }`, or let one tenant use it".to_owned();
            root.source.problem(cluster.at, message, Some(help));
        }
        Knowledge::Exclusive => {
            let message = format!("{users}, but its `knowledge` is `exclusive`");
            let help = "write `knowledge = { metadata = \"tenant\" }`, or let one tenant use it".to_owned();
            root.source.problem(cluster.knowledge.unwrap_or(cluster.at), message, Some(help));
        }
        Knowledge::Unset | Knowledge::Metadata(_) => {}
    }
}

/// Reports a cluster whose AgentOS would name users otherwise than we do: it reads their tokens itself.
fn forward(root: &Table<'_>, cluster: &Placed, identity: Option<&identity::Settings>) {
    let (name, settings) = (&cluster.settings.name, &cluster.settings);
    if !matches!(settings.credential, CredentialSettings::Forward) {
        return;
    }
    if settings.open || settings.tenants.len() > 1 {
        let message = format!("several tenants may use the cluster `{name}`, but its `credential` is `forward`");
        let help = "AgentOS does not know tenants: write `credential = { mint = … }`, or let one tenant use it";
        root.source.problem(cluster.credential, message, Some(help.to_owned()));
    } else if settings.user_id.names_tenant() {
        let message = format!("the `credential` of the cluster `{name}` is `forward`, but its `user_id` is ours");
        let help = "write `user_id = \"{subject}\"`: AgentOS takes the user's name from the token";
        root.source.problem(cluster.credential, message, Some(help.to_owned()));
    }
    let issuers = identity.into_iter().flat_map(|settings| &settings.issuers);
    for issuer in issuers.filter(|issuer| issuer.subject_prefix.is_some()) {
        let message = format!(
            "the `credential` of the cluster `{name}` is `forward`, but the issuer `{}` has a `subject_prefix`",
            issuer.issuer
        );
        let help = "AgentOS would not see the prefix: leave it out, or write `credential = { mint = … }`";
        root.source.problem(cluster.credential, message, Some(help.to_owned()));
    }
}

fn cluster(table: Table<'_>, catalog: Option<&Catalog>) -> Option<Placed> {
    let name = table.require("name", "\"main\"").and_then(|v| cluster_name(&v));
    let hosts = table.get("hosts").and_then(|v| hosts(&v)).unwrap_or_default();
    let dns = resilience::dns(&table);
    let endpoints = endpoints(&table);
    let balance = table.get("balance").and_then(|v| {
        v.word(&[
            ("least_requests", Balance::LeastRequests),
            ("round_robin", Balance::RoundRobin),
            ("session_hash", Balance::SessionHash),
        ])
    });
    let user_id_at = table.get("user_id").map_or(table.at, |v| v.at);
    let user_id = table.get("user_id").map_or_else(|| Some(UserIdTemplate::default()), |v| user_id(&v));
    let help = "{ mint = { algorithm = \"HS256\", key = { env = \"AGENTOS_JWT_KEY\" }, audience = \"my-os\" } }";
    let credential_value = table.require("credential", help);
    let credential_at = credential_value.as_ref().map_or(table.at, |v| v.at);
    let credential = credential_value.and_then(|v| credential(&v));
    let knowledge_value = table.get("knowledge");
    let knowledge = knowledge_value.as_ref().and_then(knowledge).unwrap_or(Knowledge::Unset);
    let (health, timeouts, load) = (health(&table), timeouts(&table), load(&table));
    let (ejection, retries, streams) =
        (resilience::ejection(&table), resilience::retries(&table), resilience::streams(&table, catalog));
    let at = table.at;
    table.close();
    let template = user_id?;
    let settings = Settings {
        name: name?,
        hosts: hosts.iter().map(|host| host.value.clone()).collect(),
        endpoints: endpoints?,
        dns,
        balance: balance.unwrap_or(Balance::LeastRequests),
        user_id: template,
        credential: credential?,
        knowledge,
        health,
        timeouts,
        load,
        ejection,
        retries,
        streams,
        tenants: Vec::new(),
        open: false,
    };
    let knowledge = knowledge_value.map(|value| value.at);
    Some(Placed { settings, at, hosts, user_id: user_id_at, credential: credential_at, knowledge })
}

fn cluster_name(value: &Value<'_>) -> Option<Arc<str>> {
    let name = value.string("a name")?;
    let plain = name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'));
    if plain && name.len() <= 64 {
        return Some(name.into());
    }
    value.problem(format!("is `{name}`, but must be 1 to 64 characters of `A-Z a-z 0-9 . _ -`"), None)
}

fn hosts(value: &Value<'_>) -> Option<Vec<At<String>>> {
    let each = "a host name such as `\"agents.example.com\"`";
    let mut hosts = Vec::new();
    for host in value.strings(each)? {
        let name = host.value.to_ascii_lowercase();
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
        if name.chars().all(plain) {
            hosts.push(At { value: name, at: host.at });
            continue;
        }
        let bare = name.split_once("://").map_or(&*name, |(_, rest)| rest);
        let bare: String = bare.chars().take_while(|c| plain(*c)).collect();
        let help = Some(format!("did you mean `\"{bare}\"`?")).filter(|_| !bare.is_empty());
        value.source.problem(host.at, format!("`{}` is not {each}", host.value), help);
    }
    Some(hosts)
}

fn endpoints(table: &Table<'_>) -> Option<Vec<Origin>> {
    if table.get("dns").is_some() {
        return match table.get("endpoints") {
            None => Some(Vec::new()),
            Some(value) => value.problem("stands beside `dns`", Some("keep one of them".to_owned())),
        };
    }
    let value = table.require("endpoints", "[\"http://127.0.0.1:7777\"]")?;
    let items = value.list("a list of URLs such as `[\"http://127.0.0.1:7777\"]`")?;
    if items.is_empty() {
        return value.problem("is empty: the cluster could answer nothing", None);
    }
    let read: Vec<Option<Origin>> = items.iter().map(endpoint).collect();
    let origins = read.into_iter().collect::<Option<Vec<Origin>>>()?;
    let repeats = |(index, origin): &(usize, &Origin)| origins.iter().take(*index).any(|earlier| earlier == *origin);
    for (index, _) in origins.iter().enumerate().filter(repeats) {
        if let Some(item) = items.get(index) {
            item.problem::<()>("repeats an endpoint", None);
        }
    }
    Some(origins)
}

fn endpoint(value: &Value<'_>) -> Option<Origin> {
    let text = value.string("a URL such as `\"http://127.0.0.1:7777\"`")?;
    let help = || (!text.contains("://") && !text.contains('@')).then(|| format!("did you mean `\"http://{text}\"`?"));
    match text.parse::<Origin>() {
        Ok(origin) => Some(origin),
        Err(bad) => value.problem(format!("is no endpoint: {}", bad.reason), help()),
    }
}

fn user_id(value: &Value<'_>) -> Option<UserIdTemplate> {
    let text = value.string("a template such as `\"{tenant}~{subject}\"`")?;
    UserIdTemplate::parse(text).map_or_else(
        |bad| {
            let help = "write `\"{tenant}~{subject}\"`, or `\"{subject}\"` for an AgentOS of one tenant".to_owned();
            value.problem(format!("is `{text}`, but the template {}", bad.reason), Some(help))
        },
        Some,
    )
}

fn credential(value: &Value<'_>) -> Option<CredentialSettings> {
    match value.text() {
        Some("none") => return Some(CredentialSettings::None),
        Some("forward") => return Some(CredentialSettings::Forward),
        // The text is not repeated: it may be the credential itself.
        Some(_) => {
            let help = "for a fixed key write `{ bearer = { env = \"OS_SECURITY_KEY\" } }`".to_owned();
            return value.problem("is neither `none` nor `forward`", Some(help));
        }
        None => {}
    }
    if !value.is_table() {
        return value.wrong_type("`{ mint = … }`, `{ bearer = … }`, `\"none\"` or `\"forward\"`");
    }
    let table = value.table()?;
    let (minted, fixed) = (table.get("mint"), table.get("bearer"));
    table.close();
    match (minted, fixed) {
        (Some(value), None) => mint(&value),
        (None, Some(value)) => bearer(&value),
        (Some(_), Some(_)) => value.problem("names both `mint` and `bearer`", Some("keep one of them".to_owned())),
        (None, None) => value.problem("is empty", Some("write `mint` or `bearer`".to_owned())),
    }
}

fn bearer(value: &Value<'_>) -> Option<CredentialSettings> {
    let token = value.secret()?.value;
    let plain = token.expose().iter().all(|byte| byte.is_ascii_graphic());
    if plain {
        Some(CredentialSettings::Bearer(token))
    } else {
        value.problem("holds characters that no token has", None)
    }
}

fn mint(value: &Value<'_>) -> Option<CredentialSettings> {
    let table = value.table()?;
    let algorithms: Vec<_> = MintAlgorithm::ALL.iter().map(|algorithm| (algorithm.as_str(), *algorithm)).collect();
    let algorithm = table.get("algorithm").map_or(Some(MintAlgorithm::HS256), |v| v.word(&algorithms));
    let key_value = table.require("key", "{ env = \"AGENTOS_JWT_KEY\" }");
    let key = key_value.as_ref().and_then(|v| v.secret());
    let audience = table.require("audience", "\"my-os\"").and_then(|v| v.string("the id of the AgentOS"));
    table.close();
    let (algorithm, key) = (algorithm?, key?.value);
    signing_key(&key_value?, algorithm, &key)?;
    Some(CredentialSettings::Mint { algorithm, key, audience: audience?.to_owned() })
}

/// Reports a key that cannot be meant for the algorithm.
fn signing_key(value: &Value<'_>, algorithm: MintAlgorithm, key: &Secret) -> Option<()> {
    let symmetric = match algorithm {
        MintAlgorithm::HS256 | MintAlgorithm::HS384 | MintAlgorithm::HS512 => true,
        MintAlgorithm::RS256 | MintAlgorithm::ES256 | MintAlgorithm::EdDSA => false,
    };
    match (symmetric, is_pem(key)) {
        (true, true) => {
            let help = "HS algorithms need the shared secret that AgentOS verifies with".to_owned();
            return value.problem("is a PEM key, but `algorithm` is HS", Some(help));
        }
        (false, false) => {
            let help = "point to a file that begins with `-----BEGIN PRIVATE KEY-----`".to_owned();
            return value
                .problem(format!("is no PEM key, but `{}` signs with a private key", algorithm.as_str()), Some(help));
        }
        (true, false) | (false, true) => {}
    }
    if key.expose().len() < HMAC_KEY_BYTES_MIN {
        let help = "give AgentOS and Tollbridge a key from `openssl rand -hex 32` (RFC 7518 §3.2)".to_owned();
        let message = format!("the key that mints tokens for AgentOS is shorter than {HMAC_KEY_BYTES_MIN} bytes");
        value.source.warn(value.at, message, Some(help));
    }
    Some(())
}

fn knowledge(value: &Value<'_>) -> Option<Knowledge> {
    if value.text().is_some() {
        return value.word(&[("exclusive", Knowledge::Exclusive)]);
    }
    if !value.is_table() {
        return value.wrong_type("`\"exclusive\"` or `{ metadata = \"tenant\" }`");
    }
    let table = value.table()?;
    let key = table.require("metadata", "\"tenant\"").and_then(|v| v.string("the name of a metadata key"));
    table.close();
    Some(Knowledge::Metadata(key?.to_owned()))
}

fn health(cluster: &Table<'_>) -> Health {
    let default = Health::default();
    let Some(table) = cluster.section("health") else { return default };
    let path = table.get("path").and_then(|v| {
        let path = v.string("a path such as `\"/health\"`")?;
        let plain = path.starts_with('/') && http::Uri::try_from(path).is_ok();
        if plain { Some(path.to_owned()) } else { v.problem("must be a path such as `/health`", None) }
    });
    let range = || Duration::from_millis(100)..=Duration::from_mins(5);
    let interval = table.get("interval").and_then(|v| v.duration(range()));
    let timeout = table.get("timeout").and_then(|v| v.duration(range()));
    table.close();
    Health {
        path: path.unwrap_or(default.path),
        interval: interval.unwrap_or(default.interval),
        timeout: timeout.unwrap_or(default.timeout),
    }
}

fn load(cluster: &Table<'_>) -> Load {
    let default = Load::default();
    let Some(table) = cluster.section("load") else { return default };
    let count = |v: Value<'_>| v.integer(1..=1_000_000).and_then(|count| u32::try_from(count).ok());
    let load = Load {
        runs_per_endpoint: table.get("runs_per_endpoint").and_then(|v| match v.text() {
            Some(_) => v.word(&[("unlimited", None)]).flatten(),
            None => count(v),
        }),
        queue_max: table.get("queue_max").and_then(count).unwrap_or(default.queue_max),
        queue_timeout: table
            .get("queue_timeout")
            .and_then(|v| v.duration(Duration::from_millis(10)..=Duration::from_mins(10)))
            .unwrap_or(default.queue_timeout),
        session_runs: table
            .get("session_runs")
            .and_then(|v| {
                v.word(&[
                    ("auto", SessionRuns::Auto),
                    ("one_by_one", SessionRuns::OneByOne),
                    ("at_once", SessionRuns::AtOnce),
                ])
            })
            .unwrap_or(default.session_runs),
        session_timeout: table
            .get("session_timeout")
            .and_then(|v| v.duration(Duration::from_millis(10)..=Duration::from_hours(1)))
            .unwrap_or(default.session_timeout),
    };
    table.close();
    load
}

fn timeouts(cluster: &Table<'_>) -> Timeouts {
    let default = Timeouts::default();
    let Some(table) = cluster.section("timeouts") else { return default };
    let time = |key: &'static str, high: Duration, default: Duration| {
        let written = table.get(key).and_then(|v: Value<'_>| v.duration(Duration::from_millis(10)..=high));
        written.unwrap_or(default)
    };
    let timeouts = Timeouts {
        connect: time("connect", Duration::from_mins(1), default.connect),
        response_header: time("response_header", Duration::from_hours(1), default.response_header),
        stream_idle: time("stream_idle", Duration::from_hours(24), default.stream_idle),
        stream_max: time("stream_max", Duration::from_hours(24), default.stream_max),
    };
    if timeouts.stream_idle > timeouts.stream_max {
        let message = format!("`stream_idle` in {} is longer than `stream_max`", table.label());
        table.source.problem(table.at, message, Some("a stream ends at `stream_max` in any case".to_owned()));
    }
    table.close();
    timeouts
}
