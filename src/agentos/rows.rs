//! Owns where AgentOS keeps single rows that the gateway looks up, and where runs are steered: their paths, ids
//! encoded.
//! Does not look (`gateway`) and is no part of what callers may ask for (`catalog`).

use super::operation::{Kind, Resource};
use super::path::encode_segment;

/// A run inside its session.
pub fn run(kind: Kind, component: &str, run: &str, session: &str) -> String {
    format!("{}/{}?session_id={}", runs(kind, component), encode_segment(run), encode_segment(session))
}

/// Where a run is cancelled.
pub fn cancel(kind: Kind, component: &str, run: &str) -> String {
    format!("{}/{}/cancel", runs(kind, component), encode_segment(run))
}

/// Where the events of a run are attached to.
pub fn resume(kind: Kind, component: &str, run: &str) -> String {
    format!("{}/{}/resume", runs(kind, component), encode_segment(run))
}

/// Where runs of a component are started.
pub fn runs(kind: Kind, component: &str) -> String {
    format!("/{}/{}/runs", kind.plural(), encode_segment(component))
}

/// A schedule.
pub fn schedule(id: &str) -> String {
    format!("/schedules/{}", encode_segment(id))
}

/// A session of a kind: AgentOS keeps three kinds under one path.
pub fn session(session: &str, kind: Kind) -> String {
    format!("/sessions/{}?type={kind}", encode_segment(session))
}

/// An approval.
pub fn approval(id: &str) -> String {
    format!("/approvals/{}", encode_segment(id))
}

/// The newest approvals of a run, at most this many.
pub fn approvals_of(run: &str, limit: usize) -> String {
    format!("/approvals?run_id={}&limit={limit}", encode_segment(run))
}

/// A content of a knowledge base.
pub fn content(id: &str) -> String {
    format!("/knowledge/content/{}", encode_segment(id))
}

/// A row that has an owner, of a resource whose rows AgentOS shows with their `user_id`.
pub fn owned(resource: Resource, id: &str) -> Option<String> {
    let rows = match resource {
        Resource::Memory => "memories",
        Resource::Learning => "learnings",
        Resource::Trace => "traces",
        Resource::Schedule => "schedules",
        Resource::Evaluation => "eval-runs",
        Resource::Agent
        | Resource::Team
        | Resource::Workflow
        | Resource::Knowledge
        | Resource::Session
        | Resource::Run
        | Resource::Approval
        | Resource::Component
        | Resource::Os => return None,
    };
    Some(format!("/{rows}/{}", encode_segment(id)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agentos::{Affinity, CanonicalPath, Catalog, OnRun};

    #[test]
    fn every_row_is_one_that_the_catalogue_reads() {
        let catalog = Catalog::shipped();
        let owned = [Resource::Memory, Resource::Learning, Resource::Trace, Resource::Schedule, Resource::Evaluation]
            .map(|resource| owned(resource, "a b").unwrap_or_default());
        let others = [
            run(Kind::Team, "a b", "r", "s"),
            session("a b", Kind::Workflow),
            approval("a b"),
            approvals_of("a b", 7),
            content("a b"),
        ];
        for target in owned.iter().chain(&others) {
            let path = target.split('?').next().unwrap_or_default();
            let path = CanonicalPath::parse(path).unwrap_or_else(|bad| panic!("{target}: {bad}"));
            assert!(catalog.find(&http::Method::GET, &path).is_ok(), "{target}");
        }
        assert_eq!(others[0], "/teams/a%20b/runs/r?session_id=s");
    }

    #[test]
    fn what_is_sent_to_a_run_is_what_the_catalogue_says_of_it() {
        let catalog = Catalog::shipped();
        for kind in Kind::ALL {
            let steps = [
                (runs(*kind, "a b"), Affinity::StartsRun),
                (cancel(*kind, "a b", "r"), Affinity::FollowsRun(OnRun::Cancel)),
                (resume(*kind, "a b", "r"), Affinity::FollowsRun(OnRun::Resume)),
            ];
            for (path, affinity) in steps {
                let canonical = CanonicalPath::parse(&path).unwrap_or_else(|bad| panic!("{path}: {bad}"));
                let matched = catalog.find(&http::Method::POST, &canonical).unwrap_or_else(|_| panic!("{path}"));
                assert_eq!(matched.operation.affinity, affinity, "{path}");
            }
        }
    }
}
