//! Owns how a catalogue row is written, a base with safe defaults and one `const fn` per column, and what follows from the
//! columns of a row.
//! Does not hold rows and does not check them (`check`).
//! Invariant: a column that a row leaves out has the strictest value.

use crate::agentos::operation::{
    Action, Affinity, Body, Caching, Cost, Exposure, Kind, List, ListScope, Mark, Method, OnRun, Operation, Own, Place,
    Reach, Reply, Resource, Triggers, Version, Versions,
};

/// A row that reads.
pub(super) const fn get(id: &'static str, path: &'static str) -> Operation {
    Operation::new(id, Method::Get, path)
}

/// A row that writes unless it says otherwise.
pub(super) const fn post(id: &'static str, path: &'static str) -> Operation {
    Operation::new(id, Method::Post, path)
}

/// A row that writes.
pub(super) const fn put(id: &'static str, path: &'static str) -> Operation {
    Operation::new(id, Method::Put, path)
}

/// A row that writes.
pub(super) const fn patch(id: &'static str, path: &'static str) -> Operation {
    Operation::new(id, Method::Patch, path)
}

/// A row that deletes.
pub(super) const fn delete(id: &'static str, path: &'static str) -> Operation {
    Operation::new(id, Method::Delete, path)
}

// === impl Operation ===

impl Operation {
    /// A row with safe defaults: OS-wide, no scope grants it, no body, no query, nothing cached.
    ///
    /// The action follows the method: `GET` reads, `DELETE` deletes (and is destructive), the rest writes.
    pub const fn new(id: &'static str, method: Method, path: &'static str) -> Self {
        let action = match method {
            Method::Get => Action::Read,
            Method::Delete => Action::Delete,
            Method::Post | Method::Put | Method::Patch => Action::Write,
        };
        Self {
            id,
            upstream_ids: &[],
            versions: Versions::Both,
            method,
            path,
            resource: Resource::Os,
            action,
            scopes: &[],
            upstream_scopes: &[],
            reach: Reach::OsWide,
            cost: Cost::Light,
            body: Body::None,
            reply: Reply::Json,
            query: &[],
            user_id: &[],
            session_id: &[],
            creates_session: false,
            run_id: &[],
            cache: Caching::Never,
            purges: &[],
            affinity: Affinity::Any,
            list: None,
            lists_within: &[],
            mark: None,
            triggers: None,
            tool: None,
            destructive: matches!(method, Method::Delete),
            exposure: Exposure::Offered,
        }
    }

    /// Operation ids in the OpenAPI documents of AgentOS.
    pub fn upstream_ids(&self) -> &[&'static str] {
        if self.upstream_ids.is_empty() { std::slice::from_ref(&self.id) } else { self.upstream_ids }
    }

    /// Scopes that AgentOS asks for besides: the row's own, else those of the component that the path goes through.
    ///
    /// AgentOS 3 checks such a path twice: the route's scope first, then `run` or `read` on the component.
    pub fn upstream_scopes(&self) -> &'static [&'static str] {
        if !self.upstream_scopes.is_empty() {
            return self.upstream_scopes;
        }
        let below = |kind: Kind| self.path.strip_prefix('/').and_then(|path| path.strip_prefix(kind.plural()));
        match self.kind().filter(|kind| below(*kind).is_some_and(|path| path.starts_with("/{"))) {
            Some(Kind::Agent) => &["agents:read", "agents:run"],
            Some(Kind::Team) => &["teams:read", "teams:run"],
            Some(Kind::Workflow) => &["workflows:read", "workflows:run"],
            None => &[],
        }
    }

    /// The kind of component whose routes its path is among: `/agents`, and what is below it.
    #[expect(clippy::indexing_slicing, reason = "constants have no iterators; each index is below its length")]
    pub const fn kind(&self) -> Option<Kind> {
        let mut at = 0;
        while at < Kind::ALL.len() {
            if is_under(self.path, Kind::ALL[at].plural()) {
                return Some(Kind::ALL[at]);
            }
            at += 1;
        }
        None
    }

    /// Says whether it does that to the run that it follows.
    pub fn does(&self, on_run: OnRun) -> bool {
        self.affinity == Affinity::FollowsRun(on_run)
    }

    pub(super) const fn upstream(mut self, ids: &'static [&'static str]) -> Self {
        self.upstream_ids = ids;
        self
    }

    /// Only agno 2.x has it.
    pub(super) const fn v2(mut self) -> Self {
        self.versions = Versions::Only(Version::V2);
        self
    }

    /// Only agno 3.x has it.
    pub(super) const fn v3(mut self) -> Self {
        self.versions = Versions::Only(Version::V3);
        self
    }

    pub(super) const fn on(mut self, resource: Resource) -> Self {
        self.resource = resource;
        self
    }

    /// A `POST` that changes nothing.
    pub(super) const fn reads(mut self) -> Self {
        self.action = Action::Read;
        self
    }

    /// Starts or steers a run.
    pub(super) const fn runs(mut self) -> Self {
        self.action = Action::Run;
        self
    }

    pub(super) const fn scopes(mut self, scopes: &'static [&'static str]) -> Self {
        self.scopes = scopes;
        self
    }

    /// AgentOS asks for these besides.
    pub(super) const fn also_upstream(mut self, scopes: &'static [&'static str]) -> Self {
        self.upstream_scopes = scopes;
        self
    }

    pub(super) const fn owned(mut self) -> Self {
        self.reach = Reach::Owned;
        self
    }

    pub(super) const fn component(mut self) -> Self {
        self.reach = Reach::Component;
        self
    }

    /// Calls models.
    pub(super) const fn model(mut self) -> Self {
        self.cost = Cost::Model;
        self
    }

    pub(super) const fn json(mut self, fields: &'static [&'static str]) -> Self {
        self.body = Body::Json(fields);
        self
    }

    pub(super) const fn form(mut self, fields: &'static [&'static str]) -> Self {
        self.body = Body::Form(fields);
        self
    }

    pub(super) const fn reply(mut self, reply: Reply) -> Self {
        self.reply = reply;
        self
    }

    pub(super) const fn query(mut self, names: &'static [&'static str]) -> Self {
        self.query = names;
        self
    }

    pub(super) const fn user(mut self, places: &'static [Place]) -> Self {
        self.user_id = places;
        self
    }

    pub(super) const fn session(mut self, places: &'static [Place]) -> Self {
        self.session_id = places;
        self
    }

    /// The session that is named need not exist.
    pub(super) const fn creates_session(mut self) -> Self {
        self.creates_session = true;
        self
    }

    pub(super) const fn run(mut self, places: &'static [Place]) -> Self {
        self.run_id = places;
        self
    }

    pub(super) const fn shared(mut self) -> Self {
        self.cache = Caching::Shared;
        self
    }

    pub(super) const fn per_principal(mut self) -> Self {
        self.cache = Caching::PerPrincipal;
        self
    }

    pub(super) const fn purges(mut self, ids: &'static [&'static str]) -> Self {
        self.purges = ids;
        self
    }

    pub(super) const fn starts_run(mut self) -> Self {
        self.affinity = Affinity::StartsRun;
        self
    }

    pub(super) const fn follows_run(mut self, to: OnRun) -> Self {
        self.affinity = Affinity::FollowsRun(to);
        self
    }

    pub(super) const fn keeps_session(mut self) -> Self {
        self.affinity = Affinity::Session;
        self
    }

    pub(super) const fn list(mut self, items: &'static str, id: &'static str, scope: ListScope) -> Self {
        self.list = Some(List { items, id, scope });
        self
    }

    /// Lists inside an object reply, each with the operation that decides about its items.
    pub(super) const fn lists_within(mut self, lists: &'static [(&'static str, &'static str)]) -> Self {
        self.lists_within = lists;
        self
    }

    pub(super) const fn mark(mut self, mark: Mark) -> Self {
        self.mark = Some(mark);
        self
    }

    pub(super) const fn triggers(mut self, triggers: Triggers) -> Self {
        self.triggers = Some(triggers);
        self
    }

    pub(super) const fn tool(mut self, name: &'static str) -> Self {
        self.tool = Some(name);
        self
    }

    pub(super) const fn destructive(mut self) -> Self {
        self.destructive = true;
        self
    }

    /// Answered by the gateway itself.
    pub(super) const fn local(mut self, own: Own) -> Self {
        self.exposure = Exposure::Local(own);
        self
    }

    /// Decided beside another operation, never routed.
    pub(super) const fn facet_of(mut self, id: &'static str) -> Self {
        self.exposure = Exposure::Facet(id);
        self
    }

    /// Refused unless an operator turns it on.
    pub(super) const fn off(mut self, why: &'static str) -> Self {
        self.exposure = Exposure::Off(why);
        self
    }
}

/// Whether the first segment of a path is that text.
#[expect(clippy::indexing_slicing, reason = "constants have no iterators; each index is below its length")]
const fn is_under(path: &str, first: &str) -> bool {
    let (path, first) = (path.as_bytes(), first.as_bytes());
    if path.len() <= first.len() || path[0] != b'/' {
        return false;
    }
    let mut at = 0;
    while at < first.len() {
        if path[at + 1] != first[at] {
            return false;
        }
        at += 1;
    }
    path.len() == first.len() + 1 || path[first.len() + 1] == b'/'
}
