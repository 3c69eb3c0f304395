//! Owns what the MCP library asks of a server: who we are, the tools of a caller, a tool call.
//! Does not know HTTP (`endpoint`) and does not run tools (`tools`).
//! Invariants: lists are computed per request and never ask AgentOS; an unknown tool is a protocol error, everything
//! that goes wrong inside a tool is a result that the model reads.

use std::borrow::Cow;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use futures_util::FutureExt as _;
use rmcp::model::{
    CallToolRequestParams, CallToolResponse, CancelTaskParams, ErrorData, GetTaskParams, GetTaskResult, Implementation,
    InitializeRequestParams, InitializeResult, ListToolsResult, PaginatedRequestParams, ProtocolVersion,
    ServerCapabilities, ServerConfig, TASKS_EXTENSION_ID, Tool as McpTool, UpdateTaskParams,
};
use rmcp::service::RequestContext;
use rmcp::{RoleServer, ServerHandler};
use serde_json::Value;

use super::Inner;
use super::ask::Failure;
use super::pause::digest_of;
use super::tasks;
use super::text;
use super::tools;
use super::visit::{Turn, Visit};

/// What is spoken: the revisions that clients in the field negotiate.
const VERSIONS: &[ProtocolVersion] = &[
    ProtocolVersion::V_2025_03_26,
    ProtocolVersion::V_2025_06_18,
    ProtocolVersion::V_2025_11_25,
    ProtocolVersion::V_2026_07_28,
];

const INSTRUCTIONS: &str = "Agents, teams and workflows of AgentOS behind a gateway. Find one with list_agents, run it \
    with run_agent, and wait for long runs with get_run. A paused run waits for a person: show what it waits for.";

/// How long clients may keep a list of tools, in milliseconds.
const LIST_TTL_MS: u64 = 30_000;

/// One server object per request or session; all share what `Inner` holds.
#[derive(Clone)]
pub(super) struct Bridge(pub(super) Arc<Inner>);

impl ServerHandler for Bridge {
    fn get_info(&self) -> ServerConfig {
        let server = Implementation::new("tollbridge", env!("CARGO_PKG_VERSION")).with_title("Tollbridge");
        ServerConfig::new(ServerCapabilities::builder().enable_tools().enable_tasks().build())
            .with_server_info(server)
            .with_instructions(INSTRUCTIONS)
    }

    async fn initialize(
        &self,
        mut request: InitializeRequestParams,
        cx: RequestContext<RoleServer>,
    ) -> Result<InitializeResult, ErrorData> {
        let mut info = self.negotiate_initialize(&request)?;
        // Older revisions have tasks of another make, or none.
        if let Some(extensions) = &mut info.capabilities.extensions {
            extensions.remove(TASKS_EXTENSION_ID);
        }
        info.capabilities.extensions = info.capabilities.extensions.filter(|extensions| !extensions.is_empty());
        // The library reads the revision of a session from here: what was agreed on, not what was asked for.
        request.protocol_version = info.protocol_version.clone();
        cx.peer.set_peer_info(request);
        Ok(info)
    }

    async fn get_task(
        &self,
        request: GetTaskParams,
        cx: RequestContext<RoleServer>,
    ) -> Result<GetTaskResult, ErrorData> {
        let visit = self.task_visit("get_run", &cx)?;
        tasks::get(&visit, &request.task_id).await
    }

    async fn update_task(&self, request: UpdateTaskParams, cx: RequestContext<RoleServer>) -> Result<(), ErrorData> {
        let visit = self.task_visit("continue_run", &cx)?;
        tasks::update(&visit, &request.task_id, request.input_responses).await
    }

    async fn cancel_task(&self, request: CancelTaskParams, cx: RequestContext<RoleServer>) -> Result<(), ErrorData> {
        let visit = self.task_visit("cancel_run", &cx)?;
        tasks::stop(&visit, &request.task_id).await
    }

    fn supported_protocol_versions(&self) -> Cow<'static, [ProtocolVersion]> {
        Cow::Borrowed(VERSIONS)
    }

    async fn list_tools(
        &self,
        request: Option<PaginatedRequestParams>,
        cx: RequestContext<RoleServer>,
    ) -> Result<ListToolsResult, ErrorData> {
        // Everything fits on one page, so every cursor is one that we did not give out.
        if request.is_some_and(|page| page.cursor.is_some_and(|cursor| !cursor.is_empty())) {
            return Err(ErrorData::invalid_params("unknown cursor", None));
        }
        let (visit, _) = Visit::of(&self.0, &cx)?;
        let listed: Vec<McpTool> = tools::listed(&visit).map(tools::Tool::describe).collect();
        let mut result = ListToolsResult::with_all_items(listed);
        result.ttl_ms = Some(LIST_TTL_MS);
        Ok(result)
    }

    async fn call_tool(
        &self,
        request: CallToolRequestParams,
        cx: RequestContext<RoleServer>,
    ) -> Result<CallToolResponse, ErrorData> {
        let (mut visit, progress) = Visit::of(&self.0, &cx)?;
        let tool = tools::find(&visit, &request.name).ok_or_else(|| {
            ErrorData::invalid_params(format!("Unknown tool: {}", text::head(&request.name, 80)), None)
        })?;
        visit.asker.tool = Some(tool.name);
        let most = self.0.runs.calls_in_flight;
        let Some(_flight) = self.0.flights.board(visit.principal(), most) else {
            let text = format!("too_many_calls: {most} calls of yours are under way: wait for one to end");
            return Ok(Failure::Argument(text).result().into());
        };
        let arguments = Value::Object(request.arguments.unwrap_or_default());
        visit.turn = Turn {
            tool: request.name.to_string(),
            arguments: digest_of(&arguments),
            state: request.request_state,
            responses: request.input_responses.unwrap_or_default(),
        };
        let call = Box::pin(tools::call(tool, &visit, progress, arguments));
        // The library answers nothing when a handler panics: its client would wait for ever.
        match AssertUnwindSafe(call).catch_unwind().await {
            Ok(Err(Failure::State(why))) => Err(ErrorData::invalid_params(why, None)),
            Ok(result) => Ok(result.unwrap_or_else(|failure| failure.result().into())),
            Err(_) => {
                tracing::error!(tool = tool.name, request_id = %visit.asker.carrier.request_id, "a tool call panicked");
                Err(ErrorData::internal_error("internal error", None))
            }
        }
    }
}

impl Bridge {
    /// A request about a task is the call of the tool that does the same.
    fn task_visit(&self, tool: &str, cx: &RequestContext<RoleServer>) -> Result<Visit, ErrorData> {
        let (mut visit, _) = Visit::of(&self.0, cx)?;
        let tool = tools::find(&visit, tool);
        let tool = tool.ok_or_else(|| ErrorData::invalid_params("tasks are not offered at this address", None))?;
        visit.asker.tool = Some(tool.name);
        Ok(visit)
    }
}
