//! Owns `[identity]`: issuers, claims and API keys, and the contradictions between them.
//! Does not verify anything and fetches no keys.
//! Invariant: two issuers that may assert one tenant can never assert one subject.

use std::time::{Duration, UNIX_EPOCH};

use serde_json::json;

use crate::identity::{
    Algorithm, ApiKey, CertificateHolder, Claims, Issuer, KeySource, LEEWAY_MAX, Settings, UnknownTenant,
};
use crate::principal::TenantId;
use crate::telemetry::Timestamp;

use super::plans;
use super::reader::{At, Table, Value};
use super::secrets::is_pem;
use super::tenants;
use super::words::quoted;

/// Beginnings of subjects that name API keys, client certificates, service accounts and AgentOS itself.
const RESERVED: [&str; 4] = ["key:", "cert:", "sa:", "__"];
/// Longest `subject_prefix`, as `identity` takes it.
const PREFIX_BYTES_MAX: usize = 64;

/// What is needed to read names of tenants and plans.
struct Tenants<'a, 'r> {
    root: &'a Table<'r>,
    read: &'a tenants::Read,
    plans: &'a plans::Read,
    unknown: UnknownTenant,
}

pub(super) fn read(root: &Table<'_>, tenants: &tenants::Read, plans: &plans::Read) -> Option<Settings> {
    let table = root.require_section("identity", "[[identity.issuers]]")?;
    let words = [("deny", UnknownTenant::Deny), ("default_plan", UnknownTenant::DefaultPlan)];
    let unknown_tenant = table.get("unknown_tenant").and_then(|v| v.word(&words)).unwrap_or(UnknownTenant::Deny);
    let grace = Duration::ZERO..=Duration::from_hours(24);
    let stream_grace = table.get("stream_grace").and_then(|v| v.duration(grace)).unwrap_or(Duration::from_mins(5));
    let leeway =
        table.get("leeway").and_then(|v| v.duration(Duration::ZERO..=LEEWAY_MAX)).unwrap_or(Duration::from_secs(30));
    let revoked = table.get("revoked").and_then(|v| v.path());
    let names = Tenants { root, read: tenants, plans, unknown: unknown_tenant };
    let issuers = issuers(&table, &names);
    let claims = claims(&table);
    let api_keys = api_keys(&table, &names);
    let certificates = certificates(&table, &names);
    let absent = |key| table.get(key).is_none();
    if absent("issuers") && absent("api_keys") && absent("certificates") {
        let help = "add `[[identity.issuers]]` or `[[identity.api_keys]]`".to_owned();
        root.source.problem(table.at, "no issuer and no API key: nobody could call", Some(help));
    }
    table.close();
    let tenants = tenants.tenants.keys().cloned().collect();
    Some(Settings { unknown_tenant, stream_grace, revoked, leeway, issuers, claims, api_keys, certificates, tenants })
}

fn claims(table: &Table<'_>) -> Claims {
    let section = table.section("claims");
    let name = |key: &'static str| {
        let written = section.as_ref().and_then(|table| table.get(key));
        written.and_then(|v| v.string("the name of a claim").map(str::to_owned)).unwrap_or_else(|| key.to_owned())
    };
    let claims = Claims { tenant: name("tenant"), roles: name("roles"), scopes: name("scopes"), plan: name("plan") };
    if let Some(section) = section {
        section.close();
    }
    claims
}

// === impl Tenants ===

impl Tenants<'_, '_> {
    /// A tenant name, known when unknown tenants are denied.
    fn name(&self, name: &At<&str>, label: &str) -> Option<TenantId> {
        match self.unknown {
            UnknownTenant::Deny => self.read.known(self.root, name, label),
            UnknownTenant::DefaultPlan => self.read.plausible(self.root, name),
        }
    }

    fn value(&self, value: &Value<'_>) -> Option<TenantId> {
        self.name(&value.at(value.string("the name of a tenant")?), &value.label)
    }

    fn list(&self, value: &Value<'_>) -> Option<Vec<TenantId>> {
        let names = value.strings("the name of a tenant")?;
        if names.is_empty() {
            return value.problem("is empty: the issuer could assert no tenant", None);
        }
        Some(names.iter().filter_map(|name| self.name(name, &value.label)).collect())
    }
}

fn issuers(table: &Table<'_>, tenants: &Tenants<'_, '_>) -> Vec<Issuer> {
    let sections = table.sections("issuers");
    let several = sections.len() > 1;
    let mut read: Vec<At<Issuer>> = Vec::new();
    for section in sections {
        let (at, places) = (section.at, Places::of(&section));
        let Some(issuer) = issuer(section, tenants) else { continue };
        if several && places.tenants.is_none() {
            let message = format!("the issuer `{}` does not say which tenants it may assert", issuer.issuer);
            let help = "with several issuers each one needs `tenants = [\"…\"]`".to_owned();
            tenants.root.source.problem(at, message, Some(help));
        }
        for earlier in &read {
            disagree(tenants.root, earlier, &issuer, at);
        }
        read.push(At { value: issuer, at });
    }
    read.into_iter().map(|issuer| issuer.value).collect()
}

/// Where keys stand whose absence matters.
struct Places {
    tenants: Option<usize>,
}

impl Places {
    fn of(table: &Table<'_>) -> Self {
        Self { tenants: table.get("tenants").map(|value| value.at) }
    }
}

/// Reports what two issuers must not have in common.
fn disagree(root: &Table<'_>, earlier: &At<Issuer>, issuer: &Issuer, at: usize) {
    let (line, other) = (root.source.line(earlier.at), &earlier.value);
    if other.issuer == issuer.issuer {
        let message = format!("the issuer `{}` is already defined in line {line}", issuer.issuer);
        return root.source.problem(
            at,
            message,
            Some("an issuer stands once; `jwks_url` serves several keys".to_owned()),
        );
    }
    let (Some(ours), Some(theirs)) = (&issuer.tenants, &other.tenants) else { return };
    let Some(shared) = ours.iter().find(|tenant| theirs.contains(tenant)) else { return };
    let (prefix, other_prefix) = (issuer.subject_prefix.as_deref(), other.subject_prefix.as_deref());
    let apart = match (prefix, other_prefix) {
        (Some(one), Some(two)) => !one.starts_with(two) && !two.starts_with(one),
        (Some(_), None) | (None, Some(_)) | (None, None) => false,
    };
    if !apart {
        let message = format!(
            "the issuers `{}` and `{}` (line {line}) may both assert the tenant `{shared}`, so one could speak for a \
             user of the other",
            issuer.issuer, other.issuer
        );
        let help = "give each a `subject_prefix`, neither of which begins with the other".to_owned();
        root.source.problem(at, message, Some(help));
    }
}

fn issuer(table: Table<'_>, tenants: &Tenants<'_, '_>) -> Option<Issuer> {
    let issuer = table.require("issuer", "\"https://id.example.com\"");
    let issuer = issuer.and_then(|v| v.string("the `iss` claim of its tokens").map(str::to_owned));
    let allowed = table.get("tenants").and_then(|v| tenants.list(&v));
    let tenant = table.get("tenant").and_then(|v| {
        let tenant = tenants.value(&v)?;
        match &allowed {
            Some(list) if !list.contains(&tenant) => {
                v.problem(format!("is `{tenant}`, which is not in `tenants`"), None)
            }
            Some(_) | None => Some(tenant),
        }
    });
    let platform_admin = table.get("platform_admin").and_then(|v| v.boolean());
    let subject_prefix = table.get("subject_prefix").and_then(|v| subject_prefix(&v));
    let audiences = table.require("audiences", "[\"tollbridge\"]").and_then(|v| names(&v, "an audience"));
    let algorithms = table.require("algorithms", "[\"RS256\"]").and_then(|v| algorithms(&v));
    let keys = keys(&table, algorithms.as_deref());
    table.close();
    Some(Issuer {
        issuer: issuer?,
        // Whoever may speak for every tenant may speak for the platform; others are told so.
        platform_admin: platform_admin.unwrap_or(allowed.is_none()),
        tenants: allowed,
        tenant,
        subject_prefix,
        audiences: audiences?,
        algorithms: algorithms?,
        keys: keys?,
    })
}

fn subject_prefix(value: &Value<'_>) -> Option<String> {
    let prefix = value.string("a prefix such as `\"corp:\"`")?;
    if let Some(reserved) = RESERVED.iter().find(|reserved| prefix.starts_with(**reserved)) {
        return value.problem(format!("begins with `{reserved}`, which is reserved"), None);
    }
    if prefix.len() > PREFIX_BYTES_MAX || prefix.chars().any(char::is_control) {
        return value.problem(format!("must be 1 to {PREFIX_BYTES_MAX} bytes without control characters"), None);
    }
    Some(prefix.to_owned())
}

/// A list of names with at least one item.
fn names(value: &Value<'_>, each: &str) -> Option<Vec<String>> {
    let names = value.strings(each)?;
    if names.is_empty() {
        return value.problem(format!("is empty, but needs {each}"), None);
    }
    Some(names.into_iter().map(|name| name.value.to_owned()).collect())
}

fn algorithms(value: &Value<'_>) -> Option<Vec<Algorithm>> {
    let items = value.list("a list of algorithms such as `[\"RS256\"]`")?;
    if items.is_empty() {
        return value.problem("is empty, but needs an algorithm", None);
    }
    let none = |item: &&Value<'_>| item.text().is_some_and(|text| text.eq_ignore_ascii_case("none"));
    if let Some(item) = items.iter().find(none) {
        return item.problem("is `none`: unsigned tokens are never accepted", None);
    }
    let algorithms = Algorithm::ALL.map(|algorithm| (algorithm.as_str(), algorithm));
    let read: Vec<Option<Algorithm>> = items.iter().map(|item| item.word(&algorithms)).collect();
    let read: Vec<Algorithm> = read.into_iter().collect::<Option<_>>()?;
    let symmetric = read.iter().filter(|algorithm| algorithm.is_symmetric()).count();
    if symmetric != 0 && symmetric != read.len() {
        let help = "one key cannot be both: define two issuers, or drop the HS algorithms".to_owned();
        return value.problem("mixes algorithms with a shared secret and with a public key", Some(help));
    }
    Some(read)
}

fn keys(table: &Table<'_>, algorithms: Option<&[Algorithm]>) -> Option<KeySource> {
    let symmetric = algorithms.map(|list| list.iter().any(|algorithm| algorithm.is_symmetric()));
    match (table.get("key"), table.get("jwks_url")) {
        (Some(key), None) => static_key(&key, symmetric),
        (None, Some(url)) => jwks(&url, symmetric),
        (Some(_), Some(url)) => url.problem("stands beside `key`", Some("keep one of them".to_owned())),
        (None, None) => {
            let message = format!("{} names no key", table.label());
            let help = "write `jwks_url = \"https://…\"`, or `key = { file = \"public.pem\" }`".to_owned();
            table.source.problem(table.at, message, Some(help));
            None
        }
    }
}

fn static_key(value: &Value<'_>, symmetric: Option<bool>) -> Option<KeySource> {
    let key = value.secret()?.value;
    let bytes = key.expose().len();
    match symmetric {
        // CVE-2016-5431 and its kind: a public key that everybody knows must never be a shared secret.
        Some(true) if is_pem(&key) => {
            let help = "HS algorithms need a shared secret; for a key pair write RS256, ES256 or EdDSA".to_owned();
            value.problem("is a PEM key, but `algorithms` are HS", Some(help))
        }
        Some(true) if bytes < 32 => {
            let help = "make one with `openssl rand -hex 32` (RFC 7518 §3.2)".to_owned();
            value.problem(
                format!("refers to a secret of {bytes} bytes, but an HS algorithm needs at least 32"),
                Some(help),
            )
        }
        Some(false) if !is_pem(&key) => {
            let help = "point to a file that begins with `-----BEGIN PUBLIC KEY-----`".to_owned();
            value.problem("is no PEM key, but `algorithms` need a public key", Some(help))
        }
        Some(true | false) | None => Some(KeySource::Static(key)),
    }
}

fn jwks(value: &Value<'_>, symmetric: Option<bool>) -> Option<KeySource> {
    let url = value.url()?;
    if symmetric == Some(true) {
        let help = "a key set holds public keys: write RS256, ES256 or EdDSA, or `key = { env = \"…\" }`".to_owned();
        return value.problem("cannot serve HS algorithms", Some(help));
    }
    let local = matches!(url.host_str(), Some("localhost" | "127.0.0.1" | "[::1]"));
    if url.scheme() == "http" && !local {
        let message = format!("{} is not https: whoever is on the way can replace the keys", value.label);
        value.source.warn(value.at, message, None);
    }
    Some(KeySource::Jwks { url: url.into() })
}

fn api_keys(table: &Table<'_>, tenants: &Tenants<'_, '_>) -> Vec<ApiKey> {
    let mut read: Vec<At<ApiKey>> = Vec::new();
    for section in table.sections("api_keys") {
        let at = section.at;
        let Some(key) = api_key(section, tenants) else { continue };
        for earlier in &read {
            let line = tenants.root.source.line(earlier.at);
            if earlier.value.id == key.id {
                let message = format!("the API key id `{}` is already used in line {line}", key.id);
                tenants.root.source.problem(at, message, None);
            } else if earlier.value.sha256 == key.sha256 {
                let message =
                    format!("the API key `{}` is the same key as `{}` (line {line})", key.id, earlier.value.id);
                tenants.root.source.problem(at, message, Some("give each its own key".to_owned()));
            }
        }
        read.push(At { value: key, at });
    }
    read.into_iter().map(|key| key.value).collect()
}

fn api_key(table: Table<'_>, tenants: &Tenants<'_, '_>) -> Option<ApiKey> {
    let id = table.require("id", "\"ci\"").and_then(|v| key_id(&v));
    let sha256 = table.require("sha256", "\"…\"").and_then(|v| sha256(&v));
    let tenant = table.require("tenant", "\"acme\"").and_then(|v| tenants.value(&v));
    let (roles, scopes, plan) = rights(&table, tenants);
    let expires_at = table.get("expires_at").and_then(|v| v.time());
    table.close();
    Some(ApiKey { id: id?, sha256: sha256?, tenant: tenant?, roles, scopes, plan, expires_at })
}

fn certificates(table: &Table<'_>, tenants: &Tenants<'_, '_>) -> Vec<CertificateHolder> {
    let mut read: Vec<At<CertificateHolder>> = Vec::new();
    for section in table.sections("certificates") {
        let at = section.at;
        let Some(holder) = certificate(section, tenants) else { continue };
        for earlier in &read {
            let line = tenants.root.source.line(earlier.at);
            if earlier.value.id == holder.id {
                let message = format!("the certificate id `{}` is already used in line {line}", holder.id);
                tenants.root.source.problem(at, message, None);
            } else if earlier.value.name == holder.name {
                let message =
                    format!("certificates named `{}` stand for `{}` (line {line})", holder.name, earlier.value.id);
                tenants.root.source.problem(at, message, Some("give each its own name".to_owned()));
            }
        }
        read.push(At { value: holder, at });
    }
    read.into_iter().map(|holder| holder.value).collect()
}

fn certificate(table: Table<'_>, tenants: &Tenants<'_, '_>) -> Option<CertificateHolder> {
    let id = table.require("id", "\"billing\"").and_then(|v| key_id(&v));
    let name = table.require("name", "\"uri:spiffe://example.com/billing\"").and_then(|v| certificate_name(&v));
    let tenant = table.require("tenant", "\"acme\"").and_then(|v| tenants.value(&v));
    let (roles, scopes, plan) = rights(&table, tenants);
    table.close();
    Some(CertificateHolder { id: id?, name: name?, tenant: tenant?, roles, scopes, plan })
}

fn certificate_name(value: &Value<'_>) -> Option<String> {
    let kinds = CertificateHolder::KINDS;
    let text = value.string("a name of a certificate such as `\"dns:billing.example.com\"`")?;
    match kinds.into_iter().find(|kind| text.starts_with(kind) && text.len() > kind.len()) {
        Some("dns:") => Some(text.to_ascii_lowercase()),
        Some(_) => Some(text.to_owned()),
        None => {
            let help = format!("it begins with one of {}", quoted(kinds.into_iter()));
            value.problem(format!("is `{text}`, which names nothing in a certificate"), Some(help))
        }
    }
}

/// Roles, scopes and plan of a machine.
fn rights(table: &Table<'_>, tenants: &Tenants<'_, '_>) -> (Vec<String>, Vec<String>, Option<String>) {
    let list = |key: &'static str, each: &str| {
        let names = table.get(key).and_then(|v| v.strings(each)).unwrap_or_default();
        names.into_iter().map(|name| name.value.to_owned()).collect::<Vec<_>>()
    };
    let (roles, scopes) = (list("roles", "a role"), list("scopes", "a scope"));
    let plan = table.get("plan").and_then(|v| {
        let name = v.at(v.string("the name of a plan")?.to_owned());
        tenants.plans.known(tenants.root, &name, &v.label);
        Some(name.value)
    });
    (roles, scopes, plan)
}

/// An API key's record as it stands in a configuration file.
///
/// Names are quoted as JSON strings, which TOML reads alike; control characters are not written at all.
pub fn api_key_block(key: &ApiKey) -> String {
    let quoted = |name: &str| json!(name.replace(char::is_control, "")).to_string();
    let list = |names: &[String]| format!("[{}]", names.iter().map(|name| quoted(name)).collect::<Vec<_>>().join(", "));
    let hash: String = key.sha256.iter().map(|byte| format!("{byte:02x}")).collect();
    let mut block = format!("[[identity.api_keys]]\nid = {}\nsha256 = \"{hash}\"\n", quoted(&key.id));
    block.push_str(&format!("tenant = {}\n", quoted(key.tenant.as_str())));
    for (name, names) in [("roles", &key.roles), ("scopes", &key.scopes)] {
        if !names.is_empty() {
            block.push_str(&format!("{name} = {}\n", list(names)));
        }
    }
    if let Some(plan) = &key.plan {
        block.push_str(&format!("plan = {}\n", quoted(plan)));
    }
    if let Some(seconds) = key.expires_at {
        block.push_str(&format!("expires_at = {}\n", Timestamp(UNIX_EPOCH + Duration::from_secs(seconds))));
    }
    block
}

/// Says whether an API key may have this id.
pub fn is_key_id(id: &str) -> bool {
    let plain = id.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'));
    plain && (1..=64).contains(&id.len())
}

fn key_id(value: &Value<'_>) -> Option<String> {
    let id = value.string("a name")?;
    if is_key_id(id) {
        return Some(id.to_owned());
    }
    value.problem(format!("is `{id}`, but must be 1 to 64 characters of `A-Z a-z 0-9 . _ -`"), None)
}

fn sha256(value: &Value<'_>) -> Option<[u8; 32]> {
    if value.text().is_some_and(|text| text.starts_with("tb_")) {
        let help = "write its hash: `printf %s \"$KEY\" | sha256sum`, and replace the key".to_owned();
        return value.problem("holds the API key itself", Some(help));
    }
    value.sha256("write the output of `printf %s \"$KEY\" | sha256sum`")
}
