//! Proves that both doors decide alike: every catalogue row behind a tool is played over HTTP and as a tool call, by
//! every kind of caller, and the access log must say the same of both.
//! Does not test what the doors add of their own: formats, sessions, progress.
//! Invariant: a row that gets a tool without a twin here fails the test by name.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::Path;

use serde_json::{Value, json};
use tempfile::TempDir;
use tollbridge::agentos::{Catalog, Kind, ListScope, Operation};

use crate::fake::Reply;
use crate::mcp_client::{McpClient, Told};
use crate::stack::{Ask, Settings, Stack, Who};

/// Each tool and the rows that are played through it.
const PLAYED: &[(&str, &[&str])] = &[
    ("add_knowledge", &["upload_content"]),
    ("add_memory", &["create_memory"]),
    ("cancel_run", &["cancel_agent_run", "cancel_team_run", "cancel_workflow_run"]),
    ("continue_run", &["continue_agent_run", "continue_team_run", "continue_workflow_run"]),
    ("create_schedule", &["create_schedule"]),
    ("get_approval", &["get_approval"]),
    ("get_metrics", &["get_metrics"]),
    ("get_run", &["get_agent_run", "get_team_run", "get_workflow_run"]),
    ("get_session", &["get_session_by_id"]),
    ("get_trace", &["get_trace"]),
    ("knowledge_status", &["get_content_status"]),
    ("list_agents", &["get_agents", "get_teams", "get_workflows"]),
    ("list_approvals", &["list_approvals"]),
    ("list_components", &["list_components"]),
    ("list_knowledge", &["get_config"]),
    ("list_memories", &["get_memories"]),
    ("list_registry", &["list_registry"]),
    ("list_schedules", &["list_schedules"]),
    ("list_sessions", &["get_sessions"]),
    ("list_traces", &["get_traces"]),
    ("resolve_approval", &["resolve_approval"]),
    ("run_agent", &["create_agent_run", "create_team_run", "create_workflow_run"]),
    ("search_knowledge", &["search_knowledge"]),
    ("set_schedule", &["enable_schedule", "disable_schedule"]),
];

/// What a client asks for that wants every tool.
const EVERY_TOOLSET: &str = "agents,knowledge,approvals,sessions,memory,traces,metrics,schedules,knowledge-write,admin";

/// Roles of the callers, for policies that are made up.
const ROLES: [&str; 5] = ["viewer", "operator", "approver", "admin", "platform_admin"];

/// Somebody who calls, or who owns what is called for.
#[derive(Debug, Clone)]
struct Caller {
    name: &'static str,
    subject: &'static str,
    tenant: &'static str,
    who: Who,
}

/// One request for both doors.
struct Twin {
    tool: &'static str,
    arguments: Value,
    /// The same over HTTP: what the tool asks, in its order.
    steps: Vec<Ask>,
    go_on: GoOn,
}

/// When the next step is taken.
#[derive(Clone, Copy, PartialEq, Eq)]
enum GoOn {
    /// After a success: the tool needs all steps.
    WhenServed,
    /// After a 404: the tool looks in one place after the other.
    WhenAbsent,
}

/// What the test played on one stack.
struct Stage<'a> {
    stack: &'a Stack,
    caller: &'a Caller,
    owner: &'a Caller,
}

// === impl Caller ===

impl Caller {
    fn new(name: &'static str, subject: &'static str) -> Self {
        Self { name, subject, tenant: "acme", who: Who::new(subject) }
    }

    fn role(mut self, role: &str) -> Self {
        self.who = self.who.role(role);
        self
    }

    fn scope(mut self, scope: &str) -> Self {
        self.who = self.who.scope(scope);
        self
    }

    /// The same person with every right, to set the stage.
    fn stager(&self) -> Who {
        Who::new(self.subject).of(self.tenant).role("admin").role("stager")
    }

    fn user_id(&self) -> String {
        format!("{}~{}", self.tenant, self.subject)
    }

    fn session(&self) -> String {
        format!("s-{}-{}", self.tenant, self.subject)
    }

    fn trace(&self) -> String {
        format!("t-{}-{}", self.tenant, self.subject)
    }
}

fn alice() -> Caller {
    Caller::new("owner", "alice").role("operator")
}

fn callers() -> Vec<Caller> {
    let foreign = Caller {
        tenant: "globex",
        who: Who::new("gus").of("globex").role("admin"),
        ..Caller::new("foreign tenant", "gus")
    };
    vec![
        Caller::new("viewer", "vic").role("viewer"),
        Caller::new("operator", "oli").role("operator"),
        Caller::new("approver", "pat").role("approver"),
        Caller::new("admin", "ada").role("admin"),
        Caller::new("platform admin", "root").role("platform_admin"),
        Caller::new("platform operator", "opal").role("platform_admin").role("operator"),
        Caller::new("scopes only", "sam").scope("agents:run").scope("agents:read").scope("sessions:read"),
        Caller::new("no role", "nora"),
        foreign,
    ]
}

// === impl Stage ===

impl Stage<'_> {
    /// The two ways to ask for a row; `None` for a row that nobody taught this test.
    async fn twin(&self, row: &Operation) -> Option<Twin> {
        let (verb, kind) = run_verb(row.id);
        match (verb, kind) {
            ("list", Some(kind)) => {
                return Some(Twin::one(
                    "list_agents",
                    json!({"kind": kind.as_str()}),
                    Ask::get(&format!("/{}", kind.plural())),
                ));
            }
            ("create", Some(kind)) => return Some(self.create(kind)),
            ("get" | "cancel" | "continue", Some(kind)) => return Some(self.run(verb, kind).await),
            _ => {}
        }
        let session = self.owner.session();
        Some(match row.id {
            "get_config" => Twin::one("list_knowledge", json!({}), Ask::get("/config")),
            "search_knowledge" => {
                let body = json!({"query": "what", "max_results": 10, "meta": {"limit": 10, "page": 1}});
                Twin::one("search_knowledge", json!({"query": "what"}), Ask::post("/knowledge/search").json(&body))
            }
            "list_approvals" => Twin::one("list_approvals", json!({}), Ask::get("/approvals?limit=100&status=pending")),
            "get_approval" => {
                let approval = self.approval().await;
                Twin::one("get_approval", json!({"approval_id": approval}), Ask::get(&format!("/approvals/{approval}")))
            }
            "resolve_approval" => {
                let approval = self.approval().await;
                let ask = Ask::post(&format!("/approvals/{approval}/resolve")).json(&json!({"status": "approved"}));
                Twin::one("resolve_approval", json!({"approval_id": approval, "decision": "approve"}), ask)
            }
            "get_sessions" => {
                let query = "type=agent&limit=20&sort_by=updated_at&sort_order=desc";
                Twin::one("list_sessions", json!({"kind": "agent"}), Ask::get(&format!("/sessions?{query}")))
            }
            "get_session_by_id" => Twin {
                tool: "get_session",
                arguments: json!({"session_id": session}),
                steps: Kind::ALL.iter().map(|kind| Ask::get(&format!("/sessions/{session}?type={kind}"))).collect(),
                go_on: GoOn::WhenAbsent,
            },
            other => return self.optional(other),
        })
    }

    /// Tools that a client gets when it asks for them.
    fn optional(&self, row: &str) -> Option<Twin> {
        let (trace, knows) = (self.owner.trace(), "c-1");
        let set = |on: bool| {
            let ask = Ask::post(if on { "/schedules/s-1/enable" } else { "/schedules/s-1/disable" });
            Twin::one("set_schedule", json!({"schedule_id": "s-1", "enabled": on}), ask)
        };
        Some(match row {
            "get_memories" => {
                Twin::one("list_memories", json!({}), Ask::get("/memories?limit=20&sort_by=updated_at&sort_order=desc"))
            }
            "create_memory" => {
                let body = json!({"memory": "likes tea"});
                Twin::one("add_memory", body.clone(), Ask::post("/memories").json(&body))
            }
            "get_traces" => Twin::one("list_traces", json!({}), Ask::get("/traces?limit=20")),
            "get_trace" => Twin::one("get_trace", json!({"trace_id": trace}), Ask::get(&format!("/traces/{trace}"))),
            "get_metrics" => Twin::one("get_metrics", json!({}), Ask::get("/metrics")),
            "list_schedules" => Twin::one("list_schedules", json!({}), Ask::get("/schedules?limit=20")),
            "create_schedule" => {
                let arguments = json!({"name": "nightly", "agent": "assistant", "kind": "agent", "message": "go",
                    "cron": "0 3 * * *"});
                let body = json!({"name": "nightly", "cron_expr": "0 3 * * *", "endpoint": "/agents/assistant/runs",
                    "method": "POST", "payload": {"message": "go"}});
                Twin::one("create_schedule", arguments, Ask::post("/schedules").json(&body))
            }
            "enable_schedule" => set(true),
            "disable_schedule" => set(false),
            "upload_content" => {
                let ask = Ask::post("/knowledge/content").field("name", "n").field("text_content", "t");
                Twin::one("add_knowledge", json!({"name": "n", "text": "t"}), ask)
            }
            "get_content_status" => Twin::one(
                "knowledge_status",
                json!({"content_id": knows}),
                Ask::get(&format!("/knowledge/content/{knows}/status")),
            ),
            "list_components" => Twin::one("list_components", json!({}), Ask::get("/components?limit=50")),
            "list_registry" => Twin::one("list_registry", json!({}), Ask::get("/registry?limit=50")),
            _ => return None,
        })
    }

    fn create(&self, kind: Kind) -> Twin {
        let (component, session) = (component(kind), self.owner.session());
        let arguments = json!({"agent": component, "kind": kind.as_str(), "message": "hello", "session_id": session});
        let ask = Ask::post(&format!("/{}/{component}/runs", kind.plural()));
        let ask = ask.field("stream", "true").field("session_id", &session).field("message", "hello");
        Twin::one("run_agent", arguments, ask)
    }

    async fn run(&self, verb: &str, kind: Kind) -> Twin {
        let component = if verb == "continue" { "records" } else { component(kind) };
        let run = self.started(kind, component).await;
        if verb == "continue" && kind == Kind::Agent {
            self.approve(&run).await;
        }
        let session = self.owner.session();
        let base = format!("/{}/{component}/runs/{run}", kind.plural());
        // A handle of the caller's own, also where the run is not: the doors are compared, not the handles.
        let handle = json!({"cluster": "main", "kind": kind.as_str(), "component": component, "session_id": session,
            "run_id": run, "tenant": self.caller.tenant, "subject": self.caller.subject});
        let handle = self.stack.running.gateway.seal().seal("run", handle.to_string().as_bytes());
        let read = Ask::get(&format!("{base}?session_id={session}"));
        match verb {
            "get" => Twin::one("get_run", json!({"run": handle, "wait_s": 0}), read),
            "cancel" => Twin::one(
                "cancel_run",
                json!({"run": handle}),
                Ask::post(&format!("{base}/cancel?session_id={session}")),
            ),
            _ => {
                let answers = match kind {
                    Kind::Agent => "tools",
                    Kind::Team => "requirements",
                    Kind::Workflow => "step_requirements",
                };
                let ask = Ask::post(&format!("{base}/continue"));
                let ask = ask.field("stream", "true").field("session_id", &session).field(answers, "[]");
                let arguments = json!({"run": handle});
                Twin { tool: "continue_run", arguments, steps: vec![read, ask], go_on: GoOn::WhenServed }
            }
        }
    }

    /// A run of the owner's that has ended, or waits.
    async fn started(&self, kind: Kind, component: &str) -> String {
        let ask = Ask::post(&format!("/{}/{component}/runs", kind.plural())).by(&self.owner.stager());
        let ask = ask.field("stream", "false").field("session_id", &self.owner.session()).field("message", "stage");
        let got = self.stack.send(ask).await;
        assert_eq!(got.status, 200, "setting the stage: {}", got.text());
        got.json()["run_id"].as_str().unwrap().to_owned()
    }

    /// Lets a waiting run of the owner's go on.
    async fn approve(&self, run: &str) {
        let boss = Who::new("boss").of(self.owner.tenant).role("admin").role("stager");
        let ask = Ask::post(&format!("/approvals/approval-{run}/resolve")).json(&json!({"status": "approved"}));
        let got = self.stack.send(ask.by(&boss)).await;
        assert_eq!(got.status, 200, "setting the stage: {}", got.text());
    }

    /// An approval that a run of the owner's waits for.
    async fn approval(&self) -> String {
        format!("approval-{}", self.started(Kind::Agent, "records").await)
    }

    /// Plays a row through both doors and gives what the log says of it, which must be one.
    async fn play(&self, row: &Operation) -> Vec<Value> {
        let what = format!("{} by {} ({} owns)", row.id, self.caller.name, self.owner.name);
        let id = format!("{}-{}-{}", row.id, self.caller.subject, self.owner.subject).replace('_', "-");
        let twin = self.twin(row).await.unwrap_or_else(|| panic!("`{}` has a tool and no twin", row.id));
        let over_http = self.over_http(twin, &id).await;

        let twin = self.twin(row).await.unwrap();
        let client = McpClient::modern(self.stack, &self.caller.who);
        let ask = client.calling(twin.tool, twin.arguments, None).header("x-request-id", &id);
        let ask = ask.header("x-mcp-toolsets", EVERY_TOOLSET);
        let told = Told::of(&client.open(ask).await.last().await);
        let lines = self.stack.access_lines(&id, over_http.len()).await;
        assert!(lines.iter().all(|line| line["door"] == "mcp"), "{what}: {lines:?}");
        let over_mcp = facts(&lines);
        assert_eq!(over_mcp, over_http, "{what}; the tool said: {}", told.text);

        let code = over_http.last().unwrap()["code"].as_str().unwrap();
        // A run that AgentOS has not stored yet looks absent: whoever has its handle is told to wait.
        if (row.id.starts_with("get_") && row.id.ends_with("_run") && code == "not_found") || code == "ok" {
            assert!(!told.is_error, "{what}: {}", told.text);
        } else {
            assert!(told.is_error && told.text.starts_with(&format!("{code}: ")), "{what}: {}", told.text);
        }
        over_mcp
    }

    async fn over_http(&self, twin: Twin, id: &str) -> Vec<Value> {
        let mut lines = Vec::new();
        for (number, step) in twin.steps.into_iter().enumerate() {
            let id = format!("{id}-{number}");
            let got = self.stack.send(step.by(&self.caller.who).header("x-request-id", &id)).await;
            lines.push(self.stack.access_line(&id).await);
            let goes_on = match twin.go_on {
                GoOn::WhenServed => got.status < 300,
                GoOn::WhenAbsent => got.status == 404,
            };
            if !goes_on {
                break;
            }
        }
        assert!(lines.iter().all(|line| line["door"] == "http"), "{lines:?}");
        facts(&lines)
    }
}

// === impl Twin ===

impl Twin {
    fn one(tool: &'static str, arguments: Value, step: Ask) -> Self {
        Self { tool, arguments, steps: vec![step], go_on: GoOn::WhenServed }
    }
}

/// What both doors must say of an exchange; equal neighbours count once.
fn facts(lines: &[Value]) -> Vec<Value> {
    const SAME: [&str; 8] =
        ["operation", "code", "http.response.status_code", "tenant", "subject", "cluster", "stage", "policies"];
    let fact = |line: &Value| SAME.map(|name| (name.to_owned(), line[name].clone())).into_iter().collect();
    let mut facts: Vec<Value> = lines.iter().map(fact).collect();
    facts.dedup();
    facts
}

/// The deed and the kind of a row about components and their runs.
fn run_verb(id: &str) -> (&str, Option<Kind>) {
    let listed = Kind::ALL.iter().find(|kind| id == format!("get_{}", kind.plural()));
    if let Some(kind) = listed {
        return ("list", Some(*kind));
    }
    let mut words = id.split('_');
    let (verb, kind, rest) = (words.next().unwrap_or(""), words.next().and_then(Kind::parse), words.next());
    (verb, kind.filter(|_| rest == Some("run")))
}

fn component(kind: Kind) -> &'static str {
    match kind {
        Kind::Agent => "assistant",
        Kind::Team => "newsroom",
        Kind::Workflow => "daily-report",
    }
}

fn rows_with_tools() -> Vec<&'static Operation> {
    Catalog::shipped().rows().iter().filter(|row| row.tool.is_some()).collect()
}

/// Plays everything on one stack; gives the codes of each row.
async fn play_all(settings: Settings) -> BTreeMap<&'static str, BTreeSet<String>> {
    let stack = Stack::with(settings).await;
    let mut codes: BTreeMap<&'static str, BTreeSet<String>> = BTreeMap::new();
    for person in callers().iter().chain([&alice()]) {
        let row = json!({"session_id": person.session(), "user_id": person.user_id()});
        stack.os().pin("GET", &format!("/sessions/{}", person.session()), Reply::json(200, &row));
        let row = json!({"trace_id": person.trace(), "user_id": person.user_id()});
        stack.os().pin("GET", &format!("/traces/{}", person.trace()), Reply::json(200, &row));
    }
    pin_optional(&stack);
    for caller in &callers() {
        for owner in [caller, &alice()] {
            let stage = Stage { stack: &stack, caller, owner };
            for row in rows_with_tools() {
                let facts = stage.play(row).await;
                codes.entry(row.id).or_default().extend(facts.last().map(|fact| text(&fact["code"])));
            }
        }
    }
    codes
}

/// What AgentOS says to tools that a client gets when it asks for them.
fn pin_optional(stack: &Stack) {
    let page = json!({"data": [], "meta": {"page": 1, "limit": 20, "total_pages": 1, "total_count": 0}});
    // As the gateway writes it where tenants share a cluster: what lacks the mark cannot be turned on.
    let payload = json!({"message": "go", "knowledge_filters": "{\"tenant\":\"acme\"}"});
    let schedule = json!({"id": "s-1", "name": "nightly", "endpoint": "/agents/assistant/runs", "method": "POST",
        "payload": payload});
    let content = json!({"id": "c-1", "status": "completed", "metadata": {"tenant": "acme"}});
    for (method, path, status, body) in [
        ("GET", "/memories", 200, &page),
        ("POST", "/memories", 200, &json!({"memory_id": "m-1", "memory": "likes tea", "user_id": "acme~alice"})),
        ("GET", "/traces", 200, &page),
        ("GET", "/metrics", 200, &json!({"metrics": []})),
        ("GET", "/schedules", 200, &page),
        ("POST", "/schedules", 201, &schedule),
        ("GET", "/schedules/s-1", 200, &schedule),
        ("POST", "/schedules/s-1/enable", 200, &schedule),
        ("POST", "/schedules/s-1/disable", 200, &schedule),
        ("POST", "/knowledge/content", 202, &json!({"id": "c-1", "status": "processing"})),
        ("GET", "/knowledge/content/c-1", 200, &content),
        ("GET", "/knowledge/content/c-1/status", 200, &json!({"id": "c-1", "status": "completed"})),
        ("GET", "/components", 200, &page),
        ("GET", "/registry", 200, &page),
    ] {
        stack.os().pin(method, path, Reply::json(status, body));
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// Equal is not enough: each row must have been served and refused at least once.
fn check_that_it_says_something(codes: &BTreeMap<&'static str, BTreeSet<String>>) {
    for row in rows_with_tools() {
        let told = &codes[row.id];
        assert!(told.contains("ok"), "nobody was served by `{}`: {told:?}", row.id);
        let filtered = row.list.is_some_and(|list| list.scope == ListScope::PerItem);
        assert!(filtered || told.contains("forbidden"), "nobody was refused by `{}`: {told:?}", row.id);
    }
}

/// Policies that nobody would write: each role may use some rows, by the order of their letters.
fn made_up(folder: &Path) {
    let mut text = String::from(
        "@id(\"stager\") permit (principal in Tollbridge::Role::\"stager\", action, resource);\n\
         @id(\"scopes\") permit (principal, action, resource)\n\
         when { principal.scopes.containsAny(context.scopes_accepted) };\n\
         @id(\"owner\") forbid (principal, action in Tollbridge::Action::\"read\", resource)\n\
         when { resource has owner && resource.owner != principal.subject }\n\
         unless { principal in Tollbridge::Role::\"platform_admin\" };\n",
    );
    for (r, role) in ROLES.iter().enumerate() {
        for row in rows_with_tools() {
            let letters: usize = row.id.bytes().map(usize::from).sum();
            if !(letters + r * 7).is_multiple_of(3) {
                writeln!(
                    text,
                    "@id(\"{role}-{id}\") permit (principal in Tollbridge::Role::\"{role}\", action == \
                     Tollbridge::Action::\"{id}\", resource);",
                    id = row.id
                )
                .unwrap();
            }
        }
    }
    assert!(!text.contains("door") && !text.contains("human"));
    std::fs::write(folder.join("made-up.cedar"), text).unwrap();
}

/// A tool that is named after a component is that component's run: whoever may start it over HTTP has the tool and gets
/// the same answer of the same policies; for everybody else there is no such tool.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tools_that_are_named_after_components_are_for_whoever_may_run_them() {
    let stack = Stack::with(Settings::new()).await;
    let mut codes: BTreeSet<String> = BTreeSet::new();
    for (caller, kind) in callers().iter().flat_map(|caller| Kind::ALL.iter().map(move |kind| (caller, *kind))) {
        let what = format!("{kind} by {}", caller.name);
        let id = format!("{kind}-{}-by-name", caller.subject);
        let ask = Ask::post(&format!("/{}/{}/runs", kind.plural(), component(kind)));
        let ask = ask.field("stream", "true").field("message", "hello").by(&caller.who);
        stack.send(ask.header("x-request-id", &format!("{id}-http"))).await;
        let over_http = vec![stack.access_line(&format!("{id}-http")).await];
        let code = text(&over_http[0]["code"]);

        let tool = format!("ask_{}", component(kind).replace('-', "_"));
        let client = McpClient::modern(&stack, &caller.who).at("/mcp/x/ask");
        assert_eq!(client.tools().await.contains(&tool), code == "ok", "{what}: {code}");
        let ask = client.calling(&tool, json!({"message": "hello"}), None).header("x-request-id", &id);
        let answer = client.open(ask).await.last().await;
        if code == "ok" {
            let told = Told::of(&answer);
            assert!(!told.is_error && told.text.starts_with("echo: hello"), "{what}: {}", told.text);
            assert_eq!(facts(&stack.access_lines(&id, 1).await), facts(&over_http), "{what}");
        } else {
            assert_eq!(answer["error"]["message"], format!("Unknown tool: {tool}"), "{what}: {answer}");
        }
        codes.insert(code);
    }
    assert!(codes.contains("ok") && codes.len() > 1, "{codes:?}");
}

#[test]
fn every_row_behind_a_tool_is_played() {
    let mut tools: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for row in rows_with_tools() {
        tools.entry(row.tool.unwrap()).or_default().push(row.id);
    }
    let played: BTreeMap<&str, Vec<&str>> = PLAYED.iter().map(|(tool, rows)| (*tool, rows.to_vec())).collect();
    assert_eq!(tools, played, "a row behind a tool needs a twin");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_doors_decide_alike_under_the_shipped_policies() {
    check_that_it_says_something(&play_all(Settings::new()).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_doors_decide_alike_under_policies_that_read_neither_door_nor_human() {
    let folder = TempDir::new().unwrap();
    made_up(folder.path());
    let settings = Settings::new().set("[policy]", "dir", &format!("{:?}", folder.path()));
    check_that_it_says_something(&play_all(settings).await);
}
