//! Owns which rows of the catalogue tools use, and how their paths are filled.
//! Does not decide and does not send (`ask`).
//! Invariants: a route is a row of the catalogue; an id never enters a path raw, every segment is percent-encoded.

use http::Method;

use crate::agentos::{self, Catalog, Kind, Operation, encode_segment};

/// One catalogue row as a tool uses it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Route {
    /// Operation id of the catalogue.
    pub(super) operation: &'static str,
    method: agentos::Method,
    template: &'static str,
}

/// What can be done with a kind of component.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Deed {
    /// List the components.
    List,
    /// Start a run.
    Start,
    /// Read a run.
    Read,
    /// Cancel a run.
    Cancel,
    /// Continue a paused run.
    Continue,
}

/// The routes of a tool to each kind of component.
struct Routes {
    agent: Route,
    team: Route,
    workflow: Route,
}

pub(super) const CONFIG: Route = to("get_config");
pub(super) const SEARCH: Route = to("search_knowledge");
pub(super) const APPROVALS: Route = to("list_approvals");
pub(super) const APPROVAL: Route = to("get_approval");
pub(super) const RESOLVE: Route = to("resolve_approval");
pub(super) const SESSIONS: Route = to("get_sessions");
pub(super) const SESSION: Route = to("get_session_by_id");
pub(super) const CONTENT: Route = to("get_content_by_id");
pub(super) const CONTENTS: Route = to("get_content");
pub(super) const MEMORIES: Route = to("get_memories");
pub(super) const REMEMBER: Route = to("create_memory");
pub(super) const TRACES: Route = to("get_traces");
pub(super) const TRACE: Route = to("get_trace");
pub(super) const METRICS: Route = to("get_metrics");
pub(super) const SCHEDULES: Route = to("list_schedules");
pub(super) const SCHEDULE: Route = to("create_schedule");
pub(super) const SCHEDULE_ON: Route = to("enable_schedule");
pub(super) const SCHEDULE_OFF: Route = to("disable_schedule");
pub(super) const UPLOAD: Route = to("upload_content");
pub(super) const UPLOADED: Route = to("get_content_status");
pub(super) const COMPONENTS: Route = to("list_components");
pub(super) const REGISTRY: Route = to("list_registry");

/// The route to a shipped row. A row that does not exist does not compile.
const fn to(operation: &str) -> Route {
    via(Catalog::row(operation))
}

const fn via(row: &Operation) -> Route {
    Route { operation: row.id, method: row.method, template: row.path }
}

/// The route of a deed on a kind of component.
pub(super) const fn of(kind: Kind, deed: Deed) -> Route {
    let routes = match deed {
        Deed::List => const { Routes::of_tool("list_agents") },
        Deed::Start => const { Routes::of_tool("run_agent") },
        Deed::Read => const { Routes::of_tool("get_run") },
        Deed::Cancel => const { Routes::of_tool("cancel_run") },
        Deed::Continue => const { Routes::of_tool("continue_run") },
    };
    match kind {
        Kind::Agent => routes.agent,
        Kind::Team => routes.team,
        Kind::Workflow => routes.workflow,
    }
}

/// The route to what a component is.
pub(super) const fn show(kind: Kind) -> Route {
    match kind {
        Kind::Agent => const { to("get_agent") },
        Kind::Team => const { to("get_team") },
        Kind::Workflow => const { to("get_workflow") },
    }
}

// === impl Routes ===

impl Routes {
    const fn of_tool(tool: &str) -> Self {
        Self {
            agent: via(Catalog::row_of_tool(tool, Kind::Agent)),
            team: via(Catalog::row_of_tool(tool, Kind::Team)),
            workflow: via(Catalog::row_of_tool(tool, Kind::Workflow)),
        }
    }
}

// === impl Route ===

impl Route {
    /// The HTTP method.
    pub(super) fn method(&self) -> Method {
        match self.method {
            agentos::Method::Get => Method::GET,
            agentos::Method::Post => Method::POST,
            agentos::Method::Put => Method::PUT,
            agentos::Method::Patch => Method::PATCH,
            agentos::Method::Delete => Method::DELETE,
        }
    }

    /// The path with its ids filled in, in order, each percent-encoded.
    pub(super) fn path(&self, ids: &[&str]) -> String {
        let mut ids = ids.iter();
        let mut path = String::with_capacity(self.template.len() + 64);
        for segment in self.template.split('/').skip(1) {
            path.push('/');
            if segment.starts_with('{') {
                path.push_str(&encode_segment(ids.next().copied().unwrap_or_default()));
            } else {
                path.push_str(segment);
            }
        }
        debug_assert!(ids.next().is_none(), "more ids than `{}` takes", self.template);
        path
    }
}

/// Encodes a query or a form.
pub(super) fn pairs(fields: &[(&str, &str)]) -> String {
    url::form_urlencoded::Serializer::new(String::new()).extend_pairs(fields).finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_encoded_per_segment() {
        let route = of(Kind::Team, Deed::Cancel);
        assert_eq!(route.path(&["a b", "x?y#z%2f~"]), "/teams/a%20b/runs/x%3Fy%23z%252f~/cancel");
        assert_eq!(SESSIONS.path(&[]), "/sessions");
        assert_eq!(APPROVAL.path(&["é"]), "/approvals/%C3%A9");
    }

    #[test]
    fn forms_are_urlencoded() {
        assert_eq!(pairs(&[("a", "1 2"), ("b", "é&=")]), "a=1+2&b=%C3%A9%26%3D");
    }
}
