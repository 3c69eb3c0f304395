//! Owns the AgentOS routes that tools use: operation id, method and path template, and how a path is filled.
//! Does not decide and does not send (`ask`).
//! Invariant: an id never enters a path raw; every segment is percent-encoded.

use http::Method;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use crate::agentos::operation::Kind;

/// Everything but RFC 3986 unreserved characters and `~`, which upstream user ids hold.
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// One catalogue row as a tool uses it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Route {
    /// Operation id of the catalogue.
    pub(super) operation: &'static str,
    method: Verb,
    template: &'static str,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verb {
    Get,
    Post,
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

pub(super) const CONFIG: Route = get("get_config", "/config");
pub(super) const SEARCH: Route = post("search_knowledge", "/knowledge/search");
pub(super) const APPROVALS: Route = get("list_approvals", "/approvals");
pub(super) const APPROVAL: Route = get("get_approval", "/approvals/{}");
pub(super) const RESOLVE: Route = post("resolve_approval", "/approvals/{}/resolve");
pub(super) const SESSIONS: Route = get("get_sessions", "/sessions");
pub(super) const SESSION: Route = get("get_session_by_id", "/sessions/{}");

const fn get(operation: &'static str, template: &'static str) -> Route {
    Route { operation, method: Verb::Get, template }
}

const fn post(operation: &'static str, template: &'static str) -> Route {
    Route { operation, method: Verb::Post, template }
}

/// The route of a deed on a kind of component.
pub(super) const fn of(kind: Kind, deed: Deed) -> Route {
    match (kind, deed) {
        (Kind::Agent, Deed::List) => get("get_agents", "/agents"),
        (Kind::Agent, Deed::Start) => post("create_agent_run", "/agents/{}/runs"),
        (Kind::Agent, Deed::Read) => get("get_agent_run", "/agents/{}/runs/{}"),
        (Kind::Agent, Deed::Cancel) => post("cancel_agent_run", "/agents/{}/runs/{}/cancel"),
        (Kind::Agent, Deed::Continue) => post("continue_agent_run", "/agents/{}/runs/{}/continue"),
        (Kind::Team, Deed::List) => get("get_teams", "/teams"),
        (Kind::Team, Deed::Start) => post("create_team_run", "/teams/{}/runs"),
        (Kind::Team, Deed::Read) => get("get_team_run", "/teams/{}/runs/{}"),
        (Kind::Team, Deed::Cancel) => post("cancel_team_run", "/teams/{}/runs/{}/cancel"),
        (Kind::Team, Deed::Continue) => post("continue_team_run", "/teams/{}/runs/{}/continue"),
        (Kind::Workflow, Deed::List) => get("get_workflows", "/workflows"),
        (Kind::Workflow, Deed::Start) => post("create_workflow_run", "/workflows/{}/runs"),
        (Kind::Workflow, Deed::Read) => get("get_workflow_run", "/workflows/{}/runs/{}"),
        (Kind::Workflow, Deed::Cancel) => post("cancel_workflow_run", "/workflows/{}/runs/{}/cancel"),
        (Kind::Workflow, Deed::Continue) => post("continue_workflow_run", "/workflows/{}/runs/{}/continue"),
    }
}

// === impl Route ===

impl Route {
    /// The HTTP method.
    pub(super) fn method(&self) -> Method {
        match self.method {
            Verb::Get => Method::GET,
            Verb::Post => Method::POST,
        }
    }

    /// The path with its ids filled in, in order, each percent-encoded.
    pub(super) fn path(&self, ids: &[&str]) -> String {
        let mut ids = ids.iter();
        let mut path = String::with_capacity(self.template.len() + 64);
        for (index, piece) in self.template.split("{}").enumerate() {
            if index > 0 {
                let id = ids.next().copied().unwrap_or_default();
                path.extend(utf8_percent_encode(id, SEGMENT));
            }
            path.push_str(piece);
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
