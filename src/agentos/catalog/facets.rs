//! Owns the rows that no path leads to: what a `continue` asks for beyond going on. Each is an action of its own in
//! policies, decided beside the operation whose path it shares.
//! Does not read forms: `gateway` finds out what a request asks for.
//!
//! Forking and regenerating make AgentOS run the same conversation again under a new run id, so they are not the
//! same right as answering a paused run. `repeat_approved_*` is asked for in addition where a tool of the run was
//! decided by an approval: a second run would use up a decision that was made about the first. The shipped policies
//! let nobody do that.

use super::row::post;
use crate::agentos::operation::{OnRun, Operation, Place, Reply, Resource};

/// A facet of continuing an agent's or a team's run: workflows can neither be forked nor regenerated.
const fn facet(
    id: &'static str,
    to: OnRun,
    (of, path): (&'static str, &'static str),
    scopes: &'static [&'static str],
) -> Operation {
    post(id, path)
        .v3()
        .on(Resource::Run)
        .owned()
        .runs()
        .model()
        .scopes(scopes)
        .form(&["session_id", "user_id", "stream"])
        .user(&[Place::Form("user_id")])
        .session(&[Place::Form("session_id")])
        .run(&[Place::Path("run_id")])
        .reply(Reply::SseIfStream)
        .follows_run(to)
        .facet_of(of)
}

const AGENT: (&str, &str) = ("continue_agent_run", "/agents/{agent_id}/runs/{run_id}/continue");
const TEAM: (&str, &str) = ("continue_team_run", "/teams/{team_id}/runs/{run_id}/continue");

pub(super) static ROWS: &[Operation] = &[
    facet("fork_agent_run", OnRun::Fork, AGENT, &["agents:run"]),
    facet("regenerate_agent_run", OnRun::Regenerate, AGENT, &["agents:run"]),
    facet("repeat_approved_agent_run", OnRun::RepeatApproved, AGENT, &["approvals:write"]),
    facet("fork_team_run", OnRun::Fork, TEAM, &["teams:run"]),
    facet("regenerate_team_run", OnRun::Regenerate, TEAM, &["teams:run"]),
    facet("repeat_approved_team_run", OnRun::RepeatApproved, TEAM, &["approvals:write"]),
];
