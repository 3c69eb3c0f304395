//! Owns the whole gateway of a test: real configuration file, repository policies, free ports, an AgentOS behind it.
//! Does not judge; it offers tokens, plain HTTP, raw sockets, metrics and the access log.
//! Invariant: every wait has the deadline [`PATIENCE`].

#![allow(dead_code, reason = "a fixture offers more than each test takes")]

mod client;
mod settings;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, SystemTime};

use serde_json::Value;
use tempfile::TempDir;
use tollbridge::config;
use tollbridge::gateway::Code;
use tollbridge::identity::{Algorithm, Claims, Mint, mint};
use tollbridge::principal::TenantId;
use tollbridge::secret::Secret;
use tollbridge::server::{self, Reread, Running};

use crate::fake::{FakeAgentOs, PATIENCE};

pub(crate) use self::client::{Ask, Flow, Got, Raw, open as open_at};
pub(crate) use self::settings::Settings;

/// The secret that AgentOS checks our tokens with.
pub(crate) const AGENTOS_KEY: &str = "agentos-key-agentos-key-agentos-key-0123";
/// A token that AgentOS itself believes, as the gateway would mint it or a caller might have got it.
pub(crate) fn agentos_token(subject: &str, scopes: &[&str]) -> String {
    let scopes: Vec<String> = scopes.iter().map(|scope| (*scope).to_owned()).collect();
    let what = Mint {
        issuer: "https://elsewhere.test",
        audience: "my-os",
        subject,
        tenant: None,
        roles: &[],
        scopes: &scopes,
        plan: None,
        ttl: Duration::from_secs(3600),
        algorithm: Algorithm::HS256,
        key: &Secret::new(AGENTOS_KEY),
        claims: &Claims::default(),
    };
    mint(&what, SystemTime::now()).unwrap()
}

/// Proves that every refusal code was seen or is listed with its reason, and none of them twice.
pub(crate) fn assert_every_code(seen: &BTreeSet<&str>, listed: &[(&str, &str)]) {
    let all: BTreeSet<&str> = Code::ALL.iter().map(|code| code.row().code).collect();
    let listed: BTreeSet<&str> = listed.iter().map(|(code, _)| *code).collect();
    let wrongly: Vec<_> = seen.intersection(&listed).collect();
    assert!(wrongly.is_empty(), "seen, though listed as not: {wrongly:?}");
    let known: BTreeSet<&str> = seen.union(&listed).copied().collect();
    assert_eq!(known, all);
}

/// The secret that callers' tokens are signed with.
pub(crate) const CALLER_KEY: &str = "caller-key-caller-key-caller-key-01234567";
/// The issuer of callers' tokens.
pub(crate) const ISSUER: &str = "https://id.test";

/// A gateway that serves, and what stands behind it.
pub(crate) struct Stack {
    /// The first fake AgentOS, unless the test brought endpoints of its own.
    fakes: Vec<FakeAgentOs>,
    /// The gateway itself.
    pub(crate) running: Running,
    endpoints: Vec<String>,
    folder: TempDir,
}

/// Who calls: the claims of a token.
#[derive(Debug, Clone)]
pub(crate) struct Who {
    subject: String,
    tenant: Option<TenantId>,
    roles: Vec<String>,
    scopes: Vec<String>,
    plan: Option<String>,
    ttl: Duration,
}

// === impl Stack ===

impl Stack {
    /// The gateway with default settings in front of one fake AgentOS 3.
    pub(crate) async fn start() -> Self {
        Self::with(Settings::new()).await
    }

    /// The gateway with these settings in front of one fake AgentOS 3.
    pub(crate) async fn with(settings: Settings) -> Self {
        Self::before(vec![FakeAgentOs::start().await], settings).await
    }

    /// The gateway in front of these fakes.
    pub(crate) async fn before(fakes: Vec<FakeAgentOs>, settings: Settings) -> Self {
        let endpoints: Vec<String> = fakes.iter().map(FakeAgentOs::url).collect();
        let mut stack = Self::over(&endpoints, settings).await;
        stack.fakes = fakes;
        stack
    }

    /// The gateway in front of endpoints that the test owns: real AgentOS, ports where nothing listens.
    pub(crate) async fn over(endpoints: &[String], settings: Settings) -> Self {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("config.toml");
        let policies = settings.policies(&repository().join("policies"), folder.path());
        std::fs::write(&path, settings.toml(endpoints, &policies)).unwrap();
        let environment = [
            ("TOLLBRIDGE_SECRET", "secret-secret-secret-secret-secret-0123"),
            ("TOLLBRIDGE_JWT_KEY", CALLER_KEY),
            ("AGENTOS_JWT_KEY", AGENTOS_KEY),
        ];
        let environment: BTreeMap<String, String> = environment.map(|(name, value)| (name.into(), value.into())).into();
        let (config, _warnings) = config::load(&path, &environment).unwrap_or_else(|problems| panic!("{problems}"));
        let from = path.clone();
        let reread: Reread = std::sync::Arc::new(move || config::load(&from, &environment));
        let running = server::start(config, reread).await.unwrap_or_else(|error| panic!("{error:?}"));
        let stack = Self { fakes: Vec::new(), running, endpoints: endpoints.to_vec(), folder };
        stack.probed().await;
        stack
    }

    /// Writes another configuration file; nobody has read it yet.
    pub(crate) fn configure(&self, settings: &Settings) {
        self.configure_over(&self.endpoints, settings);
    }

    /// The same, with these endpoints.
    pub(crate) fn configure_over(&self, endpoints: &[String], settings: &Settings) {
        let policies = settings.policies(&repository().join("policies"), self.folder());
        let text = settings.toml(endpoints, &policies);
        std::fs::write(self.folder.path().join("config.toml"), text).unwrap();
    }

    /// Waits until every endpoint was probed: its version is known, or that it is down.
    pub(crate) async fn probed(&self) {
        let known = || {
            let snapshot = self.running.gateway.snapshot();
            snapshot.clusters.iter().all(|c| c.endpoints().iter().all(|e| e.version().is_some() || !e.is_up()))
        };
        within("the first probes", async {
            while !known() {
                // A round trip to the admin door: the probes run meanwhile.
                self.admin("/healthz").await;
            }
        })
        .await;
    }

    /// The fake AgentOS.
    pub(crate) fn os(&self) -> &FakeAgentOs {
        &self.fakes[0]
    }

    /// The fakes, in the order of their endpoints.
    pub(crate) fn fakes(&self) -> &[FakeAgentOs] {
        &self.fakes
    }

    /// Where the gateway listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.running.address
    }

    /// The origin that clients use.
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.running.address)
    }

    /// Sends one request on a connection of its own and reads the whole answer.
    pub(crate) async fn send(&self, ask: Ask) -> Got {
        self.open(ask).await.whole().await
    }

    /// Sends one request on a connection of its own; the body is read by the test.
    pub(crate) async fn open(&self, ask: Ask) -> Flow {
        client::open(self.address(), ask).await
    }

    /// A raw connection.
    pub(crate) async fn raw(&self) -> Raw {
        Raw::connect(self.address()).await
    }

    /// Sends raw bytes on a connection of their own and returns all that comes back until it is closed.
    pub(crate) async fn raw_exchange(&self, bytes: impl AsRef<[u8]>) -> String {
        let mut raw = self.raw().await;
        raw.write(bytes).await;
        raw.rest().await
    }

    /// A body of the admin door.
    pub(crate) async fn admin(&self, path: &str) -> String {
        let got = client::open(self.running.admin_address, Ask::get(path)).await.whole().await;
        got.text()
    }

    /// The value of one metric line, such as `tollbridge_in_flight{door="http"}`; 0 when it is not there.
    pub(crate) async fn metric(&self, line: &str) -> f64 {
        value_of(&self.admin("/metrics").await, line)
    }

    /// The sum over every line of a metric that has all these labels, written `name="value"`.
    pub(crate) async fn metric_sum(&self, name: &str, labels: &[&str]) -> f64 {
        sum_of(&self.admin("/metrics").await, name, labels)
    }

    /// Waits until the sum over a metric's lines is this value.
    pub(crate) async fn wait_for_metric(&self, name: &str, labels: &[&str], value: f64) {
        let mut last = String::new();
        let reached = tokio::time::timeout(PATIENCE, async {
            loop {
                last = self.admin("/metrics").await;
                if (sum_of(&last, name, labels) - value).abs() < f64::EPSILON {
                    return;
                }
            }
        });
        let reached = reached.await;
        assert!(reached.is_ok(), "waited {PATIENCE:?} for {name}{labels:?} = {value}; the metrics are:\n{last}");
    }

    /// The access log's line about a request, once it is written.
    pub(crate) async fn access_line(&self, request_id: &str) -> Value {
        let lines = self.access_lines(request_id, 1).await;
        lines.into_iter().next().unwrap()
    }

    /// The access log's lines about a request, once there are `count`.
    pub(crate) async fn access_lines(&self, request_id: &str, count: usize) -> Vec<Value> {
        let path = self.folder.path().join("access.jsonl");
        within("the access log", async {
            loop {
                let text = std::fs::read_to_string(&path).unwrap_or_default();
                let lines = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
                let lines: Vec<Value> = lines.filter(|line| line["request_id"] == request_id).collect();
                if lines.len() >= count {
                    return lines;
                }
                // A round trip: the writer goes on meanwhile.
                self.admin("/healthz").await;
            }
        })
        .await
    }

    /// Asks the admin door.
    pub(crate) async fn ask_admin(&self, ask: Ask) -> Got {
        client::open(self.running.admin_address, ask).await.whole().await
    }

    /// A token for these claims.
    pub(crate) fn token(&self, who: &Who) -> String {
        who.token()
    }

    /// The folder of the configuration and the logs.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }
}

/// Sends one request past the gateway, to somebody else, and reads the whole answer.
pub(crate) async fn send_to(address: SocketAddr, ask: Ask) -> Got {
    client::open(address, ask).await.whole().await
}

/// Waits for something, for as long as a test is patient.
pub(crate) async fn within<T>(what: &str, work: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, work).await {
        Ok(done) => done,
        Err(_) => panic!("waited {PATIENCE:?} for {what}"),
    }
}

fn value_of(metrics: &str, line: &str) -> f64 {
    let found = metrics.lines().find_map(|l| l.strip_prefix(line)?.trim().parse().ok());
    found.unwrap_or(0.0)
}

fn sum_of(metrics: &str, name: &str, labels: &[&str]) -> f64 {
    let of_name = |line: &&str| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' ']));
    let fits = |line: &&str| labels.iter().all(|label| line.contains(label));
    let value = |line: &str| line.rsplit(' ').next().and_then(|value| value.parse::<f64>().ok());
    metrics.lines().filter(of_name).filter(fits).filter_map(value).sum()
}

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

// === impl Who ===

impl Who {
    /// A caller of tenant `acme` without roles or scopes.
    pub(crate) fn new(subject: &str) -> Self {
        Self {
            subject: subject.to_owned(),
            tenant: TenantId::new("acme").ok(),
            roles: Vec::new(),
            scopes: Vec::new(),
            plan: None,
            ttl: Duration::from_secs(600),
        }
    }

    /// Alice of `acme`, an operator.
    pub(crate) fn alice() -> Self {
        Self::new("alice").role("operator")
    }

    /// Of another tenant.
    pub(crate) fn of(mut self, tenant: &str) -> Self {
        self.tenant = Some(TenantId::new(tenant).unwrap());
        self
    }

    /// Adds a role.
    pub(crate) fn role(mut self, role: &str) -> Self {
        self.roles.push(role.to_owned());
        self
    }

    /// Adds a scope.
    pub(crate) fn scope(mut self, scope: &str) -> Self {
        self.scopes.push(scope.to_owned());
        self
    }

    /// Names a plan.
    pub(crate) fn plan(mut self, plan: &str) -> Self {
        self.plan = Some(plan.to_owned());
        self
    }

    /// Valid for this long.
    pub(crate) fn ttl(mut self, ttl: Duration) -> Self {
        self.ttl = ttl;
        self
    }

    /// The signed token.
    pub(crate) fn token(&self) -> String {
        self.token_at(SystemTime::now())
    }

    /// The token, signed at another time.
    pub(crate) fn token_at(&self, now: SystemTime) -> String {
        let what = Mint {
            issuer: ISSUER,
            audience: "tollbridge",
            subject: &self.subject,
            tenant: self.tenant.as_ref(),
            roles: &self.roles,
            scopes: &self.scopes,
            plan: self.plan.as_deref(),
            ttl: self.ttl,
            algorithm: Algorithm::HS256,
            key: &Secret::new(CALLER_KEY),
            claims: &Claims::default(),
        };
        mint(&what, now).unwrap()
    }
}

#[tokio::test]
async fn a_run_passes_through_the_whole_stack() {
    let stack = Stack::start().await;
    let got = stack.send(Ask::run("assistant").field("message", "hi").field("stream", "false").by(&Who::alice())).await;
    assert_eq!((got.status, got.json()["content"].as_str()), (200, Some("echo: hi")), "{got:?}");
    let seen = stack.os().requests_to("/agents/assistant/runs");
    assert_eq!(seen[0].form().get("user_id"), Some("acme~alice"));
}
