//! Owns the shape of a catalogue row: the columns of an AgentOS operation and their safe defaults.
//! Does not hold the rows (`catalog`) and does not match requests (`matching`).

use std::fmt;

/// An HTTP method that AgentOS routes use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Method {
    /// `GET`
    Get,
    /// `POST`
    Post,
    /// `PUT`
    Put,
    /// `PATCH`
    Patch,
    /// `DELETE`
    Delete,
}

/// The AgentOS line of an endpoint or a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Version {
    /// agno 2.x (measured on 2.5.6).
    V2,
    /// agno 3.x (measured on 3.1.10).
    V3,
}

/// The AgentOS versions that have an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Versions {
    /// 2.x and 3.x.
    Both,
    /// Only one of them.
    Only(Version),
}

/// The Cedar resource type that an operation acts on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Resource {
    /// An agent.
    Agent,
    /// A team.
    Team,
    /// A workflow.
    Workflow,
    /// A knowledge base.
    Knowledge,
    /// A session.
    Session,
    /// A run.
    Run,
    /// A memory of a user.
    Memory,
    /// An approval row.
    Approval,
    /// A trace.
    Trace,
    /// A schedule.
    Schedule,
    /// A stored component (agent builder).
    Component,
    /// An evaluation run.
    Evaluation,
    /// A learning.
    Learning,
    /// The AgentOS itself: configuration, metrics, databases, service accounts.
    Os,
}

/// The group of an operation in policies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Action {
    /// Changes nothing.
    Read,
    /// Starts or steers a run.
    Run,
    /// Changes stored rows.
    Write,
    /// Removes stored rows.
    Delete,
}

/// Whose rows an operation touches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reach {
    /// Rows that belong to one user.
    Owned,
    /// An agent, team, workflow or knowledge base, shared by the users of a cluster.
    Component,
    /// Everything in the AgentOS: needs `platform_admin` or a cluster of one tenant.
    OsWide,
}

/// What one call may cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Cost {
    /// A database read or write.
    Light,
    /// Model calls: takes a concurrency slot and a token budget.
    Model,
}

/// What an operation accepts as its request body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Body {
    /// No body; a request that carries one is refused.
    None,
    /// A JSON document; for an object, only these top-level fields. An empty list allows any.
    Json(&'static [&'static str]),
    /// A form, multipart or urlencoded, with only these fields.
    Form(&'static [&'static str]),
}

/// The form fields that are files in AgentOS, and whether one may come several times. Every other field is text there,
/// whatever a caller calls it.
pub const FILE_FIELDS: [(&str, bool); 2] = [("file", false), ("files", true)];

/// What an operation answers with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reply {
    /// A JSON document.
    Json,
    /// Server-sent events.
    Sse,
    /// Server-sent events unless the form says `stream=false`, then JSON.
    SseIfStream,
    /// Nothing (204).
    Empty,
    /// Anything else, passed through.
    Opaque,
}

/// Where an identifier travels in a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// A path segment by its template name.
    Path(&'static str),
    /// A query parameter.
    Query(&'static str),
    /// A form field.
    Form(&'static str),
    /// A top-level JSON field.
    Json(&'static str),
}

/// Whether an answer may be kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Caching {
    /// Never kept. The default.
    Never,
    /// Fetched once for everybody with the gateway's own identity, filtered per caller afterwards.
    Shared,
    /// Kept per tenant and subject.
    PerPrincipal,
}

/// Which endpoint an operation has to reach.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Affinity {
    /// Any healthy endpoint. The default.
    Any,
    /// Starts a run: the endpoint that is chosen is written into the run id.
    StartsRun,
    /// Follows a run: must reach the endpoint that holds it.
    FollowsRun(OnRun),
    /// Changes a session: keeps to one endpoint per session.
    Session,
}

/// What an operation does to the run that it follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnRun {
    /// Stops it. AgentOS answers 200 whether or not it held the run.
    Cancel,
    /// Answers what it paused for, so that it goes on.
    Continue,
    /// Attaches to its events, those that were missed first.
    Resume,
    /// Goes on from it as another run.
    Fork,
    /// Does it again as another run.
    Regenerate,
    /// Does a second time what an approval had let it do once.
    RepeatApproved,
    /// Nothing that the gateway has to know.
    Other,
}

/// A reply that is a list which the gateway filters per caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct List {
    /// Where the items stand: `""` for a top-level array, else a top-level field such as `data`.
    pub items: &'static str,
    /// The field of an item that holds its id.
    pub id: &'static str,
    /// Whose rows the list may show.
    pub scope: ListScope,
}

/// Whose rows a list shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ListScope {
    /// Items are components: each one is shown when policy lets the caller read it.
    PerItem,
    /// Only the caller's own rows: the user id is pinned.
    Own,
    /// Rows of the caller's tenant, where policy lets the caller see them. Each must carry its `user_id`: session rows
    /// of 2.x do not.
    Tenant,
    /// Rows without an owner: where tenants share a cluster, those that carry the tenant's mark.
    Marked,
}

/// How a request says whose knowledge it is about, and what its reply may not say, where tenants share a cluster:
/// AgentOS gives knowledge no owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mark {
    /// A JSON field that filters by metadata: the tenant's filter joins the caller's.
    Filter(&'static str),
    /// A form field that holds metadata: the tenant's mark joins the caller's.
    Metadata(&'static str),
    /// The same, where leaving the field out keeps the mark that is stored.
    MetadataIfGiven(&'static str),
    /// A field of the reply that mixes what belongs to all tenants: it is emptied.
    Mixed(&'static str),
}

/// What a request makes AgentOS run by itself, now or later: it is authorized as that run besides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Triggers {
    /// What the `endpoint` and `payload` of a schedule say: those of the body, for the rest those that are stored.
    Schedule,
    /// The components that `agent_id` and `team_id` of the body name.
    Components,
}

/// What the gateway answers itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Own {
    /// That the gateway is well; asked without a credential.
    Health,
    /// What is left of the caller's limits.
    Quota,
    /// The WebSocket handshake, which its door answers; a plain request finds nothing.
    Socket,
}

/// Whether callers can reach an operation at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exposure {
    /// Served.
    Offered,
    /// Answered by the gateway itself, never upstream.
    Local(Own),
    /// Refused unless an operator turns it on; the text says why.
    Off(&'static str),
    /// Not routed: policies decide it beside the named operation, when a request to that one asks for more.
    Facet(&'static str),
}

/// One AgentOS operation. Built by `catalog` (and by `[[operation]]` rows) with safe defaults.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Operation {
    /// The id used in policies, metrics and logs: AgentOS's operation id where usable, else `verb_noun`.
    pub id: &'static str,
    /// Operation ids in the OpenAPI documents of AgentOS, where they differ from `id`.
    pub upstream_ids: &'static [&'static str],
    /// Versions that have it.
    pub versions: Versions,
    /// HTTP method.
    pub method: Method,
    /// Path template, such as `/agents/{agent_id}/runs`. A last segment `{name:path}` takes the rest.
    pub path: &'static str,
    /// Cedar resource type.
    pub resource: Resource,
    /// Policy group.
    pub action: Action,
    /// AgentOS scopes any of which grants it (`agents:run`); union of both versions' mappings.
    pub scopes: &'static [&'static str],
    /// Scopes that AgentOS asks for besides: a minted token gets them, they grant a caller nothing.
    pub upstream_scopes: &'static [&'static str],
    /// Whose rows it touches.
    pub reach: Reach,
    /// What it may cost.
    pub cost: Cost,
    /// Request body and its allowed fields.
    pub body: Body,
    /// Answer shape.
    pub reply: Reply,
    /// Query parameters that AgentOS reads; others are dropped.
    pub query: &'static [&'static str],
    /// Where a user id travels: the gateway overwrites all of them.
    pub user_id: &'static [Place],
    /// Where a session id travels.
    pub session_id: &'static [Place],
    /// A session id in the request need not exist: the operation makes the session.
    pub creates_session: bool,
    /// Where a run id travels.
    pub run_id: &'static [Place],
    /// Whether the answer may be kept.
    pub cache: Caching,
    /// Ids of cached operations that this one makes stale.
    pub purges: &'static [&'static str],
    /// Endpoint choice.
    pub affinity: Affinity,
    /// List shape, for replies that are filtered.
    pub list: Option<List>,
    /// Lists inside an object reply: the field, and the operation that decides about its items.
    pub lists_within: &'static [(&'static str, &'static str)],
    /// How the request carries a tenant's mark.
    pub mark: Option<Mark>,
    /// What the request makes AgentOS run by itself.
    pub triggers: Option<Triggers>,
    /// The MCP tool that exposes it.
    pub tool: Option<&'static str>,
    /// Hard to undo: policies may refuse it over MCP.
    pub destructive: bool,
    /// Whether it is served.
    pub exposure: Exposure,
}

/// The kind of a runnable component.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// An agent.
    Agent,
    /// A team.
    Team,
    /// A workflow.
    Workflow,
}

macro_rules! words {
    ($type:ident { $($variant:ident => $word:literal),+ $(,)? }) => {
        impl $type {
            /// Every variant, in order.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The word used in policies, logs, metrics and configuration.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word),+ }
            }

            /// The variant of a word, if there is one.
            pub fn parse(word: &str) -> Option<Self> {
                Self::ALL.iter().copied().find(|v| v.as_str() == word)
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}

words!(Method { Get => "GET", Post => "POST", Put => "PUT", Patch => "PATCH", Delete => "DELETE" });
words!(Version { V2 => "2", V3 => "3" });
words!(Resource {
    Agent => "Agent", Team => "Team", Workflow => "Workflow", Knowledge => "Knowledge",
    Session => "Session", Run => "Run", Memory => "Memory", Approval => "Approval",
    Trace => "Trace", Schedule => "Schedule", Component => "Component",
    Evaluation => "Evaluation", Learning => "Learning", Os => "Os",
});
words!(Action { Read => "read", Run => "run", Write => "write", Delete => "delete" });
words!(Reach { Owned => "owned", Component => "component", OsWide => "os_wide" });
words!(Cost { Light => "light", Model => "model" });
words!(Kind { Agent => "agent", Team => "team", Workflow => "workflow" });

// === impl Kind ===

impl Kind {
    /// The first path segment of its routes: `agents`, `teams`, `workflows`.
    pub const fn plural(self) -> &'static str {
        match self {
            Self::Agent => "agents",
            Self::Team => "teams",
            Self::Workflow => "workflows",
        }
    }

    /// The resource type of the component.
    pub const fn resource(self) -> Resource {
        match self {
            Self::Agent => Resource::Agent,
            Self::Team => Resource::Team,
            Self::Workflow => Resource::Workflow,
        }
    }
}

// === impl Affinity ===

impl Affinity {
    /// Every value, in order.
    pub const ALL: &'static [Self] = &[
        Self::Any,
        Self::StartsRun,
        Self::FollowsRun(OnRun::Other),
        Self::FollowsRun(OnRun::Cancel),
        Self::FollowsRun(OnRun::Continue),
        Self::FollowsRun(OnRun::Resume),
        Self::FollowsRun(OnRun::Fork),
        Self::FollowsRun(OnRun::Regenerate),
        Self::FollowsRun(OnRun::RepeatApproved),
        Self::Session,
    ];

    /// The word used in configuration and by `tollbridge operations`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Any => "any",
            Self::StartsRun => "starts_run",
            Self::FollowsRun(OnRun::Other) => "follows_run",
            Self::FollowsRun(OnRun::Cancel) => "cancels_run",
            Self::FollowsRun(OnRun::Continue) => "continues_run",
            Self::FollowsRun(OnRun::Resume) => "resumes_run",
            Self::FollowsRun(OnRun::Fork) => "forks_run",
            Self::FollowsRun(OnRun::Regenerate) => "regenerates_run",
            Self::FollowsRun(OnRun::RepeatApproved) => "repeats_approved_run",
            Self::Session => "session",
        }
    }

    /// Says whether the call must reach the endpoint that holds a run.
    pub const fn follows_run(self) -> bool {
        matches!(self, Self::FollowsRun(_))
    }
}

// === impl OnRun ===

impl OnRun {
    /// Says whether it is asked for inside a `continue`, and has no route of its own.
    pub const fn is_facet(self) -> bool {
        match self {
            Self::Fork | Self::Regenerate | Self::RepeatApproved => true,
            Self::Cancel | Self::Continue | Self::Resume | Self::Other => false,
        }
    }
}

// === impl Exposure ===

impl Exposure {
    /// Says whether the gateway answers itself.
    pub const fn is_local(self) -> bool {
        matches!(self, Self::Local(_))
    }
}

// === impl Place ===

impl Place {
    /// The name of the segment, parameter or field.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Path(name) | Self::Query(name) | Self::Form(name) | Self::Json(name) => name,
        }
    }
}

// === impl Versions ===

impl Versions {
    /// Says whether AgentOS of that version has the operation.
    pub fn include(self, version: Version) -> bool {
        match self {
            Self::Both => true,
            Self::Only(only) => only == version,
        }
    }
}
