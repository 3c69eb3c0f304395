//! Owns what the MCP library asks of a server: who we are, the lists of a caller, a tool call, a read, a subscription.
//! Does not know HTTP (`endpoint`) and does not do the work (`tools`, `resources`, `prompts`, `notices`).
//! Invariants: lists are computed per request and never ask AgentOS; an unknown tool is a protocol error, everything
//! that goes wrong inside a tool is a result that the model reads.

use std::borrow::Cow;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use futures_util::FutureExt as _;
use rmcp::model::{
    CallToolRequestParams, CallToolResponse, CancelTaskParams, CompleteRequestParams, CompleteResult, ErrorData,
    GetPromptRequestParams, GetPromptResponse, GetTaskParams, GetTaskResult, Implementation, InitializeRequestParams,
    InitializeResult, ListPromptsResult, ListResourceTemplatesResult, ListResourcesResult, ListToolsResult,
    PaginatedRequestParams, ProtocolVersion, ReadResourceRequestParams, ReadResourceResponse, ReadResourceResult,
    ServerCapabilities, ServerConfig, SubscribeRequestParams, SubscriptionFilter, TASKS_EXTENSION_ID,
    UnsubscribeRequestParams, UpdateTaskParams,
};
use rmcp::service::{NotificationContext, RequestContext, SubscriptionContext};
use rmcp::{RoleServer, ServerHandler};
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use super::Inner;
use super::ask::Failure;
use super::narrowing::Toolset;
use super::notices::{Notices, WATCHED_MAX, Wanted, Way};
use super::pages;
use super::pause::digest_of;
use super::prompts;
use super::reader::Reader;
use super::refused;
use super::resources;
use super::sessions::{InUse, Session};
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
        let offered = ServerCapabilities::builder()
            .enable_tools()
            .enable_tool_list_changed()
            .enable_prompts()
            .enable_prompts_list_changed()
            .enable_resources()
            .enable_resources_list_changed()
            .enable_resources_subscribe()
            .enable_completions()
            .enable_tasks()
            .build();
        ServerConfig::new(offered).with_server_info(server).with_instructions(INSTRUCTIONS)
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
        pages::only(request.as_ref())?;
        let (visit, _) = Visit::of(&self.0, &cx)?;
        // Only these tools are named after what discovery finds: the others need not wait for its first look.
        let named = visit.narrowing.has(Toolset::Ask);
        let viewer = if named { resources::settle(&visit).await } else { visit.viewer() };
        let mut result = ListToolsResult::with_all_items(tools::described(&viewer));
        result.ttl_ms = Some(LIST_TTL_MS);
        Ok(result)
    }

    async fn list_prompts(
        &self,
        request: Option<PaginatedRequestParams>,
        cx: RequestContext<RoleServer>,
    ) -> Result<ListPromptsResult, ErrorData> {
        let (visit, _) = Visit::of(&self.0, &cx)?;
        let (shown, next) = pages::page(prompts::listed(&resources::settle(&visit).await), request.as_ref())?;
        let mut result = ListPromptsResult::with_all_items(shown.iter().map(prompts::describe).collect());
        (result.next_cursor, result.ttl_ms) = (next, Some(LIST_TTL_MS));
        Ok(result)
    }

    async fn get_prompt(
        &self,
        request: GetPromptRequestParams,
        cx: RequestContext<RoleServer>,
    ) -> Result<GetPromptResponse, ErrorData> {
        let (visit, _) = Visit::of(&self.0, &cx)?;
        caught(&visit, cx.ct.clone(), prompts::get(&visit, request)).await.map(Into::into)
    }

    async fn list_resources(
        &self,
        request: Option<PaginatedRequestParams>,
        cx: RequestContext<RoleServer>,
    ) -> Result<ListResourcesResult, ErrorData> {
        let (visit, _) = Visit::of(&self.0, &cx)?;
        let (shown, next) = pages::page(resources::listed(&resources::settle(&visit).await), request.as_ref())?;
        let mut result = ListResourcesResult::with_all_items(resources::describe(&shown));
        (result.next_cursor, result.ttl_ms) = (next, Some(LIST_TTL_MS));
        Ok(result)
    }

    async fn list_resource_templates(
        &self,
        request: Option<PaginatedRequestParams>,
        cx: RequestContext<RoleServer>,
    ) -> Result<ListResourceTemplatesResult, ErrorData> {
        pages::only(request.as_ref())?;
        let (visit, _) = Visit::of(&self.0, &cx)?;
        let mut result = ListResourceTemplatesResult::with_all_items(resources::templates(&visit.viewer()));
        result.ttl_ms = Some(LIST_TTL_MS);
        Ok(result)
    }

    async fn read_resource(
        &self,
        request: ReadResourceRequestParams,
        cx: RequestContext<RoleServer>,
    ) -> Result<ReadResourceResponse, ErrorData> {
        let (visit, _) = Visit::of(&self.0, &cx)?;
        let uri = request.uri;
        let reading = async {
            let read = resources::read(&visit, &uri).await;
            read.map(ReadResourceResult::new).map_err(|unread| resources::error(&uri, unread))
        };
        caught(&visit, cx.ct.clone(), reading).await.map(Into::into)
    }

    async fn complete(
        &self,
        request: CompleteRequestParams,
        cx: RequestContext<RoleServer>,
    ) -> Result<CompleteResult, ErrorData> {
        let (visit, _) = Visit::of(&self.0, &cx)?;
        caught(&visit, cx.ct.clone(), resources::complete(&visit, &request)).await.map(CompleteResult::new)
    }

    fn accepted_subscription_filter(&self, requested: &SubscriptionFilter) -> Option<SubscriptionFilter> {
        // Resources that this caller cannot watch were taken out before (`endpoint`): here nobody knows who calls.
        Some(requested.clone())
    }

    async fn listen(&self, cx: SubscriptionContext) -> Result<(), ErrorData> {
        let (visit, _) = Visit::of(&self.0, cx.request_context())?;
        let parts = cx.request_context().extensions.get::<http::request::Parts>();
        let reader = parts.and_then(|parts| parts.extensions.get::<Arc<Reader>>().cloned()).unwrap_or_default();
        let accepted = cx.accepted();
        let wanted = Wanted {
            tools: accepted.tools_list_changed == Some(true),
            prompts: accepted.prompts_list_changed == Some(true),
            resources: accepted.resources_list_changed == Some(true),
        };
        let way = Way::Listen(cx.sink().clone());
        let mut notices = Notices::new(visit.viewer(), visit.asker.clone(), way, reader, wanted);
        notices.watch(accepted.resource_subscriptions.as_deref().unwrap_or_default());
        tokio::select! {
            () = notices.tell(None) => {}
            () = cx.cancelled() => {}
        }
        Ok(())
    }

    async fn subscribe(
        &self,
        request: SubscribeRequestParams,
        cx: RequestContext<RoleServer>,
    ) -> Result<(), ErrorData> {
        let (visit, _) = Visit::of(&self.0, &cx)?;
        let uri = request.uri;
        if !resources::can_be_watched(&resources::settle(&visit).await, &uri) {
            return Err(refused::absent(&uri));
        }
        let fits = session_of(&cx)?.watch(&uri);
        let many = || ErrorData::invalid_params(format!("at most {WATCHED_MAX} resources can be watched"), None);
        if fits { Ok(()) } else { Err(many()) }
    }

    async fn unsubscribe(
        &self,
        request: UnsubscribeRequestParams,
        cx: RequestContext<RoleServer>,
    ) -> Result<(), ErrorData> {
        session_of(&cx)?.unwatch(&request.uri);
        Ok(())
    }

    async fn on_initialized(&self, cx: NotificationContext<RoleServer>) {
        let parts = cx.extensions.get::<http::request::Parts>();
        if let Some(used) = parts.and_then(|parts| parts.extensions.get::<InUse>()) {
            used.session().ready(cx.peer.clone());
        }
    }

    async fn call_tool(
        &self,
        request: CallToolRequestParams,
        cx: RequestContext<RoleServer>,
    ) -> Result<CallToolResponse, ErrorData> {
        let (mut visit, progress) = Visit::of(&self.0, &cx)?;
        let said = Value::Object(request.arguments.unwrap_or_default());
        let digest = digest_of(&said);
        let (tool, arguments) = tools::choose(&visit, &request.name, said).await.ok_or_else(|| {
            ErrorData::invalid_params(format!("Unknown tool: {}", text::head(&request.name, 80)), None)
        })?;
        visit.asker.tool = Some(tool.name);
        let most = self.0.runs.load().calls_in_flight;
        let Some(_flight) = self.0.flights.board(visit.principal(), most) else {
            let text = format!("too_many_calls: {most} calls of yours are under way: wait for one to end");
            return Ok(Failure::Argument(text).result().into());
        };
        visit.turn = Turn {
            tool: request.name.to_string(),
            arguments: digest,
            state: request.request_state,
            responses: request.input_responses.unwrap_or_default(),
        };
        let call = Box::pin(async { tools::call(tool, &visit, progress, arguments?).await });
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

/// The session of a request.
fn session_of(cx: &RequestContext<RoleServer>) -> Result<Arc<Session>, ErrorData> {
    let used = cx.extensions.get::<http::request::Parts>().and_then(|parts| parts.extensions.get::<InUse>());
    used.map(|used| Arc::clone(used.session())).ok_or_else(|| ErrorData::invalid_request("no session", None))
}

/// The outcome of a request: its client may cancel it, and a panic is an answer, for which its client would otherwise
/// wait for ever.
async fn caught<T>(
    visit: &Visit,
    ct: CancellationToken,
    work: impl Future<Output = Result<T, ErrorData>>,
) -> Result<T, ErrorData> {
    let internal = || ErrorData::internal_error("internal error", None);
    tokio::select! {
        outcome = Box::pin(AssertUnwindSafe(work).catch_unwind()) => outcome.unwrap_or_else(|_| {
            tracing::error!(request_id = %visit.asker.carrier.request_id, "a request panicked");
            Err(internal())
        }),
        () = ct.cancelled() => Err(internal()),
    }
}

impl Bridge {
    /// A request about a task is the call of the tool that does the same.
    fn task_visit(&self, tool: &str, cx: &RequestContext<RoleServer>) -> Result<Visit, ErrorData> {
        let (mut visit, _) = Visit::of(&self.0, cx)?;
        let tool = tools::find(&visit.inner, &visit.narrowing, tool);
        let tool = tool.ok_or_else(|| ErrorData::invalid_params("tasks are not offered at this address", None))?;
        visit.asker.tool = Some(tool.name);
        Ok(visit)
    }
}
