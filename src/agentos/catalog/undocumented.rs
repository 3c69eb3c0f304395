//! Owns the rows that no OpenAPI document of AgentOS lists: the gateway's own, the WebSocket, the documents
//! themselves and the optional interfaces A2A and AG-UI. Slack, WhatsApp and Telegram webhooks have no rows:
//! they authenticate by signatures that only AgentOS can check.

use super::row::{get, post};
use crate::agentos::operation::{Operation, Own, Reply, Resource};

const DOCUMENTS: &str = "describes all of AgentOS, also what the caller may not use";
const A2A: &str = "takes the caller's identity from its body; 2.x checks no scopes on it";
const AG_UI: &str = "takes user and session from `forwardedProps` in its body; 2.x checks no scopes on it";

/// Bodies of the interfaces are JSON-RPC or AG-UI documents, passed as they are.
const ANY: &[&str] = &[];

#[rustfmt::skip]
pub(super) static ROWS: &[Operation] = &[
    get("get_quota", "/quota").owned().local(Own::Quota),
    // The handshake only: every message on the socket is admitted as the operation that it stands for. AgentOS
    // would read a plain GET here as a workflow called `ws`.
    get("workflow_websocket", "/workflows/ws")
        .on(Resource::Workflow).component().runs().scopes(&["workflows:run"]).reply(Reply::Opaque).local(Own::Socket),

    get("get_openapi_document", "/openapi.json").component().scopes(&["config:read"]).off(DOCUMENTS),
    get("get_docs", "/docs").component().scopes(&["config:read"]).reply(Reply::Opaque).off(DOCUMENTS),
    get("get_docs_oauth2_redirect", "/docs/oauth2-redirect").component().scopes(&["config:read"])
        .reply(Reply::Opaque).off(DOCUMENTS),
    get("get_redoc", "/redoc").component().scopes(&["config:read"]).reply(Reply::Opaque).off(DOCUMENTS),

    get("get_agent_card", "/a2a/agents/{agent_id}/.well-known/agent-card.json")
        .on(Resource::Agent).component().scopes(&["agents:read"]).off(A2A),
    post("send_agent_message", "/a2a/agents/{agent_id}/v1/message:send")
        .on(Resource::Agent).component().runs().model().scopes(&["agents:run"]).json(ANY).off(A2A),
    post("stream_agent_message", "/a2a/agents/{agent_id}/v1/message:stream")
        .on(Resource::Agent).component().runs().model().scopes(&["agents:run"]).json(ANY).reply(Reply::Sse).off(A2A),
    post("get_agent_task", "/a2a/agents/{agent_id}/v1/tasks:get")
        .on(Resource::Agent).component().reads().scopes(&["agents:read"]).json(ANY).off(A2A),
    post("cancel_agent_task", "/a2a/agents/{agent_id}/v1/tasks:cancel")
        .on(Resource::Agent).component().runs().scopes(&["agents:run"]).json(ANY).off(A2A),
    get("get_team_card", "/a2a/teams/{team_id}/.well-known/agent-card.json")
        .on(Resource::Team).component().scopes(&["teams:read"]).off(A2A),
    post("send_team_message", "/a2a/teams/{team_id}/v1/message:send")
        .on(Resource::Team).component().runs().model().scopes(&["teams:run"]).json(ANY).off(A2A),
    post("stream_team_message", "/a2a/teams/{team_id}/v1/message:stream")
        .on(Resource::Team).component().runs().model().scopes(&["teams:run"]).json(ANY).reply(Reply::Sse).off(A2A),
    post("get_team_task", "/a2a/teams/{team_id}/v1/tasks:get")
        .on(Resource::Team).component().reads().scopes(&["teams:read"]).json(ANY).off(A2A),
    post("cancel_team_task", "/a2a/teams/{team_id}/v1/tasks:cancel")
        .on(Resource::Team).component().runs().scopes(&["teams:run"]).json(ANY).off(A2A),
    get("get_workflow_card", "/a2a/workflows/{workflow_id}/.well-known/agent-card.json")
        .on(Resource::Workflow).component().scopes(&["workflows:read"]).off(A2A),
    post("send_workflow_message", "/a2a/workflows/{workflow_id}/v1/message:send")
        .on(Resource::Workflow).component().runs().model().scopes(&["workflows:run"]).json(ANY).off(A2A),
    post("stream_workflow_message", "/a2a/workflows/{workflow_id}/v1/message:stream")
        .on(Resource::Workflow).component().runs().model().scopes(&["workflows:run"]).json(ANY).reply(Reply::Sse)
        .off(A2A),
    // Deprecated: the component is named in the body, so nothing can be decided on the path.
    post("send_a2a_message", "/a2a/message/send").v2()
        .runs().model().scopes(&["agents:run"]).json(ANY).off(A2A),
    post("stream_a2a_message", "/a2a/message/stream").v2()
        .runs().model().scopes(&["agents:run"]).json(ANY).reply(Reply::Sse).off(A2A),

    post("run_agui", "/agui").runs().model().scopes(&["agents:run"]).json(ANY).reply(Reply::Sse).off(AG_UI),
    get("get_agui_status", "/status").component().scopes(&["config:read"]).off(AG_UI),
];
