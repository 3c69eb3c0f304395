//! Plays the measured holes of AgentOS twice, on both releases, with its authorization on and off and with its user
//! isolation: straight at a replica, to show that the hole is open there, and through the gateway, where it is closed
//! while the rightful owner's call still works.
//! The holes of paused runs and approvals' continuation have a suite of their own (`approvals_agno`).
//! Invariant: a case makes its own rows on its own side, so that cases do not see each other.

mod apart;
mod interfaces;
mod scopes;
mod sockets;
mod users;

use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use futures_util::future::BoxFuture;
use serde_json::Value;
use tollbridge::identity::{Algorithm, Claims, Mint, mint};
use tollbridge::principal::TenantId;
use tollbridge::secret::Secret;

use crate::agno::{AgentOs, Agno, Setup};
use crate::stack::{AGENTOS_KEY, Ask, CALLER_KEY, Got, ISSUER, Raw, Settings, Stack, open_at};

/// A measured hole.
#[derive(Clone, Copy)]
struct Hole {
    name: &'static str,
    /// On which releases a bare AgentOS has it, with scopes on.
    open_on: &'static [Agno],
    /// With authorization off.
    open_off: &'static [Agno],
    /// With users kept apart as well.
    open_isolated: &'static [Agno],
    /// Plays it on one side.
    play: for<'a> fn(&'a Side) -> BoxFuture<'a, Seen>,
}

/// How AgentOS itself is guarded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Guard {
    /// Not at all.
    Off,
    /// Tokens and scopes.
    Scopes,
    /// And each user sees rows of its own only (3.x).
    Isolation,
}

const BOTH: &[Agno] = &Agno::ALL;
const NEWEST: &[Agno] = &[Agno::Newest];
const OLDEST: &[Agno] = &[Agno::Oldest];
const NONE: &[Agno] = &[];

/// Without authorization nearly all holes are open; with user isolation few.
macro_rules! hole {
    ($name:literal, $open_on:expr, $play:path) => {
        hole!($name, $open_on, off BOTH, isolated NONE, |side| $play(side).boxed())
    };
    ($name:literal, $open_on:expr, off $off:expr, isolated $isolated:expr, $play:expr) => {
        Hole { name: $name, open_on: $open_on, open_off: $off, open_isolated: $isolated, play: $play }
    };
}
use hole;

/// What came of a case on one side.
#[derive(Debug)]
struct Seen {
    /// The attack worked.
    open: bool,
    /// The rightful caller's own call worked.
    owner: bool,
    /// For the message.
    said: String,
}

/// Where calls go: to a replica, or to the gateway in front of it.
#[derive(Debug, Clone, Copy)]
struct Side {
    address: SocketAddr,
    gateway: bool,
    guard: Guard,
}

/// A caller. Straight at AgentOS the scopes count and there are no tenants; at the gateway both count, and roles.
#[derive(Debug, Clone, Copy)]
struct Person {
    name: &'static str,
    tenant: &'static str,
    roles: &'static [&'static str],
    scopes: &'static [&'static str],
}

const USER_SCOPES: &[&str] = &[
    "agents:read",
    "agents:run",
    "sessions:read",
    "sessions:write",
    "sessions:delete",
    "memories:read",
    "memories:write",
    "memories:delete",
    "traces:read",
    "approvals:read",
];
/// The owner of what the attacks are after.
const ALICE: Person = Person { name: "alice", tenant: "acme", roles: &["operator"], scopes: USER_SCOPES };
/// A colleague with the same rights.
const BOB: Person = Person { name: "bob", ..ALICE };
/// The same rights in another tenant.
const GINA: Person = Person { name: "gina", tenant: "globex", ..ALICE };
/// A valid token that grants nothing.
const NOBODY: Person = Person { name: "nobody", tenant: "acme", roles: &[], scopes: &[] };
/// Decides approvals in alice's tenant.
const ADAM: Person =
    Person { name: "adam", tenant: "acme", roles: &["approver"], scopes: &["approvals:read", "approvals:write"] };
/// Runs the installation.
const ROOT: Person =
    Person { name: "root", tenant: "acme", roles: &["platform_admin", "admin"], scopes: &["agent_os:admin"] };

impl Side {
    async fn send(&self, who: Person, ask: Ask) -> Got {
        let token = if self.gateway {
            self.token(who, CALLER_KEY, "tollbridge")
        } else {
            self.token(who, AGENTOS_KEY, "my-os")
        };
        self.bare(ask.bearer(&token)).await
    }

    /// Without a credential, unless the request brings one.
    async fn bare(&self, ask: Ask) -> Got {
        open_at(self.address, ask).await.whole().await
    }

    fn token(&self, who: Person, key: &str, audience: &str) -> String {
        let owned = |list: &[&str]| list.iter().map(|&s| s.to_owned()).collect::<Vec<_>>();
        let tenant = TenantId::new(who.tenant).unwrap();
        let what = Mint {
            issuer: ISSUER,
            audience,
            subject: who.name,
            tenant: Some(&tenant),
            roles: &owned(who.roles),
            scopes: &owned(who.scopes),
            plan: None,
            ttl: Duration::from_secs(600),
            algorithm: Algorithm::HS256,
            key: &Secret::new(key),
            claims: &Claims::default(),
        };
        mint(&what, SystemTime::now()).unwrap()
    }

    /// A session's name on this side, wherever `s-…` stands: both sides share a database.
    fn own(&self, text: &str) -> String {
        text.replace("s-", if self.gateway { "s-g-" } else { "s-d-" })
    }

    /// A bare AgentOS without authorization believes who the form says it serves.
    fn named(&self, who: Person, ask: Ask) -> Ask {
        if self.guard == Guard::Off && !self.gateway { ask.field("user_id", who.name) } else { ask }
    }

    /// Starts a run that is over when this returns; gives its run and session.
    async fn run(&self, who: Person, agent: &str, message: &str, session: &str) -> Value {
        let ask = Ask::run(agent).field("message", message).field("stream", "false").field("session_id", session);
        let got = self.send(who, self.named(who, ask)).await;
        assert_eq!(got.status, 200, "{who:?}: {got:?}");
        got.json()
    }
}

/// A busy machine answers probes late; that is no part of these tests.
fn patient() -> Settings {
    Settings::new().set("[clusters.health]", "timeout", "\"30s\"")
}

// === impl Hole ===

impl Hole {
    fn is_open(&self, agno: Agno, guard: Guard) -> bool {
        let on = match guard {
            Guard::Off => self.open_off,
            Guard::Scopes => self.open_on,
            Guard::Isolation => self.open_isolated,
        };
        on.contains(&agno)
    }
}

/// Starts the release and the gateway, plays the tables on both sides, and names every surprise.
async fn play(agno: Agno, guard: Guard, setup: Setup, tables: &[&[Hole]]) {
    let os = AgentOs::start(setup).await;
    let stack = Stack::over(&[os.url()], patient()).await;
    let direct = Side { address: SocketAddr::from(([127, 0, 0, 1], os.port())), gateway: false, guard };
    let through = Side { address: stack.address(), gateway: true, guard };
    let mut surprises = Vec::new();
    for hole in tables.iter().copied().flatten() {
        let open = hole.is_open(agno, guard);
        let seen = (hole.play)(&direct).await;
        if seen.open != open {
            surprises.push(format!("{}: bare agno: expected open: {open}: {seen:?}", hole.name));
        }
        let seen = (hole.play)(&through).await;
        if seen.open || !seen.owner {
            surprises.push(format!("{}: through the gateway: {seen:?}", hole.name));
        }
    }
    assert!(surprises.is_empty(), "agno {}, {guard:?}:\n{}", agno.version(), surprises.join("\n"));
}

/// Every case that needs nothing special.
const ALL: &[&[Hole]] = &[users::HOLES, scopes::HOLES, sockets::DOORS, interfaces::HOLES, apart::HOLES];

fn with_everything(setup: Setup) -> Setup {
    setup.and("MCP", "1").and("EXTRAS", "1").and("SLOW_CHUNKS", "8")
}

#[tokio::test]
async fn agno_oldest_holes_are_closed() {
    let setup = Setup::with_jwt(Agno::Oldest, AGENTOS_KEY).and("VERIFY_AUD", "0").and("TRACING", "1");
    play(Agno::Oldest, Guard::Scopes, with_everything(setup), &[ALL, &[scopes::TOKENS, apart::TRACES]].concat()).await;
}

#[tokio::test]
async fn agno_newest_holes_are_closed() {
    let setup = Setup::with_jwt(Agno::Newest, AGENTOS_KEY).and("VERIFY_AUD", "0");
    play(Agno::Newest, Guard::Scopes, with_everything(setup), &[ALL, &[scopes::TOKENS]].concat()).await;
}

#[tokio::test]
async fn agno_oldest_without_authorization_is_closed() {
    play(Agno::Oldest, Guard::Off, with_everything(Setup::open(Agno::Oldest)), ALL).await;
}

#[tokio::test]
async fn agno_newest_without_authorization_is_closed() {
    play(Agno::Newest, Guard::Off, with_everything(Setup::open(Agno::Newest)), ALL).await;
}

/// What AgentOS keeps apart by itself must still work for owners, approvers and those who run the installation.
#[tokio::test]
async fn agno_newest_with_user_isolation_serves_the_rightful() {
    let setup = Setup::with_jwt(Agno::Newest, AGENTOS_KEY).and("USER_ISOLATION", "1");
    play(Agno::Newest, Guard::Isolation, with_everything(setup), ALL).await;
}

/// With one shared key AgentOS 2.x guards its REST routes only.
#[tokio::test]
async fn agno_beside_a_security_key_is_closed() {
    for agno in Agno::ALL {
        let setup = Setup::open(agno).and("MCP", "1").and("EXTRAS", "1").and("OS_SECURITY_KEY", AGENTOS_KEY);
        play(agno, Guard::Scopes, setup, &[interfaces::ANONYMOUS]).await;
    }
}

/// A database of its own per agent.
#[tokio::test]
async fn agno_newest_with_two_databases_serves_the_rightful() {
    let setup = Setup::with_jwt(Agno::Newest, AGENTOS_KEY).and("ANNEX", "1");
    play(Agno::Newest, Guard::Scopes, setup, &[apart::DATABASES]).await;
}

/// The first part of what was said, for messages.
fn said(got: &Got) -> String {
    format!("{} {}", got.status, got.text().chars().take(160).collect::<String>())
}

/// An answer that lets its caller see a text.
fn shows(got: &Got, text: &str) -> bool {
    got.status < 300 && got.text().contains(text)
}
