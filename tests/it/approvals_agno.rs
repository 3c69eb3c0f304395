//! Tests `continue` against real agno, oldest and newest: each hole is shown open on bare AgentOS, with its own
//! authorization on, then closed through the gateway, and the rightful call works.
//! Does not enumerate malformed requests (`approvals`).

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use http::Request;
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::agno::{AgentOs, Agno, Setup, on_each_agno};
use crate::stack::{AGENTOS_KEY, Settings, Stack, Who, agentos_token};

/// Longest wait for one answer of a Python server on a busy machine.
const SLOWEST: Duration = Duration::from_secs(120);

/// One real AgentOS, the gateway before it, and the ledger of what its tools have done.
struct Scene {
    agno: Agno,
    os: AgentOs,
    stack: Stack,
    folder: TempDir,
}

/// Which way a call goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// Straight to AgentOS.
    Bare,
    /// Through the gateway.
    Gated,
}

/// A paused run.
struct Paused {
    way: Way,
    kind: &'static str,
    component: &'static str,
    run: String,
    session: String,
    /// What the answer of the run listed as waiting.
    body: Value,
}

#[derive(Debug)]
struct Said {
    status: u16,
    body: Value,
    text: String,
}

async fn call(address: SocketAddr, token: &str, method: &str, target: &str, content_type: &str, body: String) -> Said {
    let stream = TcpStream::connect(address).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    let mut tasks = JoinSet::new();
    tasks.spawn(connection);
    let request = Request::builder()
        .method(method)
        .uri(target)
        .header("host", address.to_string())
        .header("authorization", format!("Bearer {token}"))
        .header("content-type", content_type)
        .body(Full::new(bytes::Bytes::from(body)))
        .unwrap();
    let whole = async {
        let response = sender.send_request(request).await.unwrap();
        let status = response.status().as_u16();
        (status, response.into_body().collect().await.map(|body| body.to_bytes()).unwrap_or_default())
    };
    let (status, body) = tokio::time::timeout(SLOWEST, whole).await.unwrap_or_else(|_| panic!("no answer: {target}"));
    let text = String::from_utf8_lossy(&body).into_owned();
    Said { status, body: serde_json::from_str(&text).unwrap_or_default(), text }
}

// === impl Scene ===

impl Scene {
    async fn open(agno: Agno, setup: Setup) -> Self {
        let folder = TempDir::new().unwrap();
        let ledger = folder.path().join("ledger");
        let setup = setup.and("LEDGER", ledger.to_str().unwrap());
        let os = AgentOs::start(setup).await;
        // A Python server on a busy machine must not count as down.
        let settings = Settings::new().set("[clusters.health]", "timeout", "\"20s\"").set(
            "[clusters.health]",
            "interval",
            "\"20s\"",
        );
        let stack = Stack::over(&[os.url()], settings).await;
        Self { agno, os, stack, folder }
    }

    fn address(&self, way: Way) -> SocketAddr {
        match way {
            Way::Bare => SocketAddr::from(([127, 0, 0, 1], self.os.port())),
            Way::Gated => self.stack.address(),
        }
    }

    /// Alice, who may run everything; Adam, who answers approvals.
    fn token(way: Way, who: &str) -> String {
        match (way, who) {
            (Way::Bare, "adam") => agentos_token("acme~adam", &["approvals:read", "approvals:write"]),
            (Way::Bare, subject) => {
                let scopes =
                    ["agents:read", "agents:run", "teams:read", "teams:run", "workflows:read", "workflows:run"];
                agentos_token(&format!("acme~{subject}"), &scopes)
            }
            (Way::Gated, "adam") => Who::new("adam").role("approver").token(),
            (Way::Gated, subject) => Who::new(subject).role("operator").token(),
        }
    }

    /// How often the tools have done this.
    fn done(&self, deed: &str) -> usize {
        let ledger: PathBuf = self.folder.path().join("ledger");
        std::fs::read_to_string(ledger).unwrap_or_default().lines().filter(|line| *line == deed).count()
    }

    async fn form(&self, way: Way, who: &str, target: &str, fields: &[(&str, &str)]) -> Said {
        let body = url::form_urlencoded::Serializer::new(String::new()).extend_pairs(fields).finish();
        let content_type = "application/x-www-form-urlencoded";
        call(self.address(way), &Self::token(way, who), "POST", target, content_type, body).await
    }

    /// Starts a run that pauses.
    async fn pause(&self, way: Way, kind: &'static str, component: &'static str, message: &str) -> Paused {
        let fields = [("message", message), ("stream", "false")];
        let said = self.form(way, "alice", &format!("/{kind}/{component}/runs"), &fields).await;
        assert_eq!((said.status, said.body["status"].as_str()), (200, Some("PAUSED")), "{said:?}");
        let text = |name: &str| said.body[name].as_str().unwrap().to_owned();
        Paused { way, kind, component, run: text("run_id"), session: text("session_id"), body: said.body.clone() }
    }

    /// The tools that a paused agent run lists, with changes to the first one.
    fn tools(paused: &Paused, changes: Value) -> String {
        let mut tools = paused.body["tools"].clone();
        tools[0].as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        tools.to_string()
    }

    async fn go_on(&self, paused: &Paused, who: &str, fields: &[(&str, &str)]) -> Said {
        let target = format!("/{}/{}/runs/{}/continue", paused.kind, paused.component, paused.run);
        let fields = [&[("session_id", paused.session.as_str()), ("stream", "false")], fields].concat();
        self.form(paused.way, who, &target, &fields).await
    }

    /// Adam answers the approval of a paused run.
    async fn resolve(&self, paused: &Paused, approval: &str, status: &str) -> Value {
        let target = format!("/approvals/{approval}/resolve");
        let body = json!({"status": status, "resolved_by": "mallory"}).to_string();
        let token = Self::token(paused.way, "adam");
        let said = call(self.address(paused.way), &token, "POST", &target, "application/json", body).await;
        assert_eq!(said.status, 200, "{said:?}");
        said.body
    }

    fn approval(paused: &Paused) -> String {
        let tool = match paused.kind {
            "agents" => &paused.body["tools"][0],
            "teams" => &paused.body["requirements"][0]["tool_execution"],
            _ => &paused.body["step_requirements"][0]["executor_requirements"][0]["tool_execution"],
        };
        tool["approval_id"].as_str().unwrap_or_else(|| panic!("no approval in {}", paused.body)).to_owned()
    }

    async fn paused_and(&self, way: Way, status: &str, message: &str) -> Paused {
        let paused = self.pause(way, "agents", "records", message).await;
        self.resolve(&paused, &Self::approval(&paused), status).await;
        paused
    }
}

// === impl Said ===

impl Said {
    #[track_caller]
    fn refused(&self, status: u16, code: &str) {
        assert_eq!((self.status, self.body["code"].as_str()), (status, Some(code)), "{}", self.text);
    }

    #[track_caller]
    fn completed(&self) {
        assert_eq!((self.status, self.body["status"].as_str()), (200, Some("COMPLETED")), "{}", self.text);
    }
}

async fn a_pending_approval_holds(scene: &Scene) {
    // Whoever may answer approvals passes AgentOS's own gate, with its own run as well.
    let bare = scene.pause(Way::Bare, "agents", "records", "delete b-pending").await;
    let scopes = ["agents:read", "agents:run", "approvals:write"];
    let token = agentos_token("acme~alice", &scopes);
    let tools = Scene::tools(&bare, json!({"confirmed": true}));
    let body = url::form_urlencoded::Serializer::new(String::new())
        .extend_pairs([("session_id", bare.session.as_str()), ("stream", "false"), ("tools", &tools)])
        .finish();
    let target = format!("/agents/records/runs/{}/continue", bare.run);
    let form = "application/x-www-form-urlencoded";
    call(scene.address(Way::Bare), &token, "POST", &target, form, body).await.completed();
    assert_eq!(scene.done("deleted b-pending"), 1, "the hole is not open");

    let gated = scene.pause(Way::Gated, "agents", "records", "delete g-pending").await;
    scene.go_on(&gated, "alice", &[]).await.refused(409, "approval_pending");
    let tools = Scene::tools(&gated, json!({"confirmed": true}));
    scene.go_on(&gated, "alice", &[("tools", &tools)]).await.refused(409, "approval_pending");
    assert_eq!(scene.done("deleted g-pending"), 0);
}

async fn a_rejected_tool_does_not_run(scene: &Scene) {
    let bare = scene.paused_and(Way::Bare, "rejected", "delete b-rejected").await;
    let tools = Scene::tools(&bare, json!({"confirmed": true}));
    scene.go_on(&bare, "alice", &[("tools", &tools)]).await.completed();
    assert_eq!(scene.done("deleted b-rejected"), 1, "the hole is not open");

    let gated = scene.pause(Way::Gated, "agents", "records", "delete g-rejected").await;
    let row = scene.resolve(&gated, &Scene::approval(&gated), "rejected").await;
    assert_eq!(row["resolved_by"], json!("adam"), "the verified caller, not what the body says");
    let tools = Scene::tools(&gated, json!({"confirmed": true}));
    scene.go_on(&gated, "alice", &[("tools", &tools)]).await.refused(409, "approval_rejected");
    // The run may end, with its tool rejected.
    scene.go_on(&gated, "alice", &[]).await.completed();
    scene.go_on(&gated, "alice", &[]).await.refused(409, "already_continued");
    assert_eq!(scene.done("deleted g-rejected"), 0);
}

async fn approved_arguments_run_once_as_approved(scene: &Scene) {
    let bare = scene.paused_and(Way::Bare, "approved", "delete b-approved").await;
    let changed = Scene::tools(&bare, json!({"confirmed": true, "tool_args": {"record_id": "b-other"}}));
    scene.go_on(&bare, "alice", &[("tools", &changed)]).await.completed();
    assert_eq!(scene.done("deleted b-other"), 1, "the hole is not open");

    let gated = scene.paused_and(Way::Gated, "approved", "delete g-approved").await;
    let changed = Scene::tools(&gated, json!({"confirmed": true, "tool_args": {"record_id": "g-other"}}));
    scene.go_on(&gated, "alice", &[("tools", &changed)]).await.refused(400, "field_not_allowed");
    scene.go_on(&gated, "alice", &[("fork", "true")]).await.refused(403, "forbidden");
    assert_eq!(scene.done("deleted g-approved") + scene.done("deleted g-other"), 0);
    // Another person of the tenant does not know the run.
    assert_ne!(scene.go_on(&gated, "olga", &[]).await.status, 200);
    scene.go_on(&gated, "alice", &[]).await.completed();
    assert_eq!((scene.done("deleted g-approved"), scene.done("deleted g-other")), (1, 0));
}

async fn a_finished_run_is_not_run_again(scene: &Scene) {
    // A run that has ended with its tool rejected: AgentOS 3.x goes on in a copy of it, and runs the tool there.
    let bare = scene.paused_and(Way::Bare, "rejected", "delete b-twice").await;
    scene.go_on(&bare, "alice", &[("tools", &Scene::tools(&bare, json!({"confirmed": false})))]).await.completed();
    let again = scene.go_on(&bare, "alice", &[("tools", &Scene::tools(&bare, json!({"confirmed": true})))]).await;
    match scene.agno {
        Agno::Oldest => assert_eq!((again.status, scene.done("deleted b-twice")), (409, 0)),
        Agno::Newest => assert_eq!((again.status, scene.done("deleted b-twice")), (200, 1), "the hole is not open"),
    }
    let gated = scene.paused_and(Way::Gated, "rejected", "delete g-late").await;
    scene.go_on(&gated, "alice", &[]).await.completed();
    let tools = Scene::tools(&gated, json!({"confirmed": true}));
    scene.go_on(&gated, "alice", &[("tools", &tools)]).await.refused(409, "already_continued");
    scene.go_on(&gated, "alice", &[("fork", "true"), ("tools", &tools)]).await.refused(400, "field_not_allowed");
    assert_eq!(scene.done("deleted g-late"), 0);

    let gated = scene.paused_and(Way::Gated, "approved", "delete g-twice").await;
    let tools = Scene::tools(&gated, json!({"confirmed": true}));
    scene.go_on(&gated, "alice", &[("tools", &tools)]).await.completed();
    scene.go_on(&gated, "alice", &[("tools", &tools)]).await.refused(409, "already_continued");
    for fields in [[("fork", "true")], [("regenerate", "true")], [("continue_from", "1")]] {
        scene.go_on(&gated, "alice", &fields).await.refused(403, "forbidden");
    }
    assert_eq!(scene.done("deleted g-twice"), 1);
}

/// Eight at once; returns their statuses in order.
async fn eight(scene: &Scene, paused: &Paused, fields: &[(&str, &str)]) -> Vec<u16> {
    let calls = (0..8).map(|_| scene.go_on(paused, "alice", fields));
    let mut statuses: Vec<u16> = futures_util::future::join_all(calls).await.iter().map(|said| said.status).collect();
    statuses.sort_unstable();
    statuses
}

async fn of_eight_at_once_one_runs(scene: &Scene) {
    let mut open = false;
    // How many of them AgentOS lets through is a matter of luck.
    for attempt in 0..10 {
        let id = format!("b-eight-{attempt}");
        let bare = scene.paused_and(Way::Bare, "approved", &format!("delete {id}")).await;
        let tools = Scene::tools(&bare, json!({"confirmed": true}));
        eight(scene, &bare, &[("tools", &tools)]).await;
        open = scene.done(&format!("deleted {id}")) > 1;
        if open {
            break;
        }
    }
    assert!(open, "the hole is not open");

    let gated = scene.paused_and(Way::Gated, "approved", "delete g-eight").await;
    let statuses = eight(scene, &gated, &[]).await;
    assert_eq!((statuses, scene.done("deleted g-eight")), (vec![200, 409, 409, 409, 409, 409, 409, 409], 1));
}

async fn a_plain_confirmation_confirms_what_was_shown(scene: &Scene) {
    let bare = scene.pause(Way::Bare, "agents", "mailer", "mail b-bob").await;
    let changed = Scene::tools(&bare, json!({"confirmed": true, "tool_args": {"to": "b-eve"}}));
    scene.go_on(&bare, "alice", &[("tools", &changed)]).await.completed();
    assert_eq!(scene.done("mailed b-eve"), 1, "the hole is not open");

    let gated = scene.pause(Way::Gated, "agents", "mailer", "mail g-bob").await;
    let changed = Scene::tools(&gated, json!({"confirmed": true, "tool_args": {"to": "g-eve"}}));
    scene.go_on(&gated, "alice", &[("tools", &changed)]).await.refused(400, "field_not_allowed");
    scene.go_on(&gated, "alice", &[]).await.refused(400, "form_malformed");
    let yes = Scene::tools(&gated, json!({"confirmed": true}));
    scene.go_on(&gated, "alice", &[("tools", &yes)]).await.completed();
    assert_eq!((scene.done("mailed g-bob"), scene.done("mailed g-eve")), (1, 0));

    let gated = scene.pause(Way::Gated, "agents", "mailer", "mail g-carol").await;
    let no = json!([{"tool_call_id": gated.body["tools"][0]["tool_call_id"], "confirmed": false}]).to_string();
    scene.go_on(&gated, "alice", &[("tools", &no)]).await.completed();
    assert_eq!(scene.done("mailed g-carol"), 0);
}

async fn inputs_and_results_come_from_the_caller(scene: &Scene) {
    let gated = scene.pause(Way::Gated, "agents", "booker", "book monday").await;
    let mut schema = gated.body["tools"][0]["user_input_schema"].clone();
    schema[1]["value"] = json!("blue");
    let given = Scene::tools(&gated, json!({"user_input_schema": schema}));
    scene.go_on(&gated, "alice", &[("tools", &given)]).await.completed();
    assert_eq!(scene.done("booked blue for monday"), 1);

    let gated = scene.pause(Way::Gated, "agents", "courier", "carry rome").await;
    let given = Scene::tools(&gated, json!({"result": "left at the gate"}));
    let said = scene.go_on(&gated, "alice", &[("tools", &given)]).await;
    // AgentOS 2.5.6 pauses such a run again when it has been continued: what counts is that the result arrived.
    assert_eq!(said.status, 200, "{said:?}");
    assert!(said.text.contains("left at the gate"), "{said:?}");
    assert_eq!(scene.done("carried to rome"), 0);
}

async fn a_streamed_continuation_is_guarded_alike(scene: &Scene) {
    let gated = scene.pause(Way::Gated, "agents", "records", "delete g-streamed").await;
    let target = format!("/agents/records/runs/{}/continue", gated.run);
    let fields = [("session_id", gated.session.as_str()), ("stream", "true")];
    scene.form(Way::Gated, "alice", &target, &fields).await.refused(409, "approval_pending");
    scene.resolve(&gated, &Scene::approval(&gated), "approved").await;
    let said = scene.form(Way::Gated, "alice", &target, &fields).await;
    assert!(said.status == 200 && said.text.contains("event: RunCompleted"), "{said:?}");
    scene.form(Way::Gated, "alice", &target, &fields).await.refused(409, "already_continued");
    assert_eq!(scene.done("deleted g-streamed"), 1);
}

/// Teams and workflows: 2.x cannot continue them.
async fn teams_and_workflows(scene: &Scene) {
    for (kind, component, field) in
        [("teams", "archive", "requirements"), ("workflows", "clean-up", "step_requirements")]
    {
        // Confirms everything that the answer listed.
        let confirmed = |paused: &Paused| {
            let text = paused.body[field].to_string();
            text.replace("\"confirmed\":null", "\"confirmed\":true")
        };
        let mut open = 0;
        for attempt in 0..10 {
            let id = format!("b-{kind}-{attempt}");
            let bare = scene.pause(Way::Bare, kind, component, &format!("delete {id}")).await;
            if kind == "workflows" {
                scene.resolve(&bare, &Scene::approval(&bare), "rejected").await;
                scene.go_on(&bare, "alice", &[(field, &confirmed(&bare))]).await;
                open = scene.done(&format!("deleted {id}"));
            } else {
                // Teams heed the approval; eight callers at once get the tool run more than once all the same.
                scene.resolve(&bare, &Scene::approval(&bare), "approved").await;
                eight(scene, &bare, &[(field, &confirmed(&bare))]).await;
                open = scene.done(&format!("deleted {id}")).saturating_sub(1);
            }
            if open > 0 {
                break;
            }
        }
        assert!(open > 0, "the hole is not open: {kind}");

        let gated = scene.pause(Way::Gated, kind, component, &format!("delete g-{kind}")).await;
        let yes = confirmed(&gated);
        scene.go_on(&gated, "alice", &[(field, &yes)]).await.refused(409, "approval_pending");
        scene.go_on(&gated, "alice", &[]).await.refused(409, "approval_pending");
        scene.resolve(&gated, &Scene::approval(&gated), "rejected").await;
        scene.go_on(&gated, "alice", &[(field, &yes)]).await.refused(409, "approval_rejected");
        assert_eq!(scene.go_on(&gated, "alice", &[]).await.status, 200);
        scene.go_on(&gated, "alice", &[]).await.refused(409, "already_continued");
        assert_eq!(scene.done(&format!("deleted g-{kind}")), 0);

        let gated = scene.pause(Way::Gated, kind, component, &format!("delete y-{kind}")).await;
        let changed = confirmed(&gated).replace(&format!("y-{kind}"), &format!("z-{kind}"));
        scene.resolve(&gated, &Scene::approval(&gated), "approved").await;
        scene.go_on(&gated, "alice", &[(field, &changed)]).await.refused(400, "field_not_allowed");
        let statuses = eight(scene, &gated, &[]).await;
        assert_eq!(statuses, [200, 409, 409, 409, 409, 409, 409, 409], "{kind}");
        assert_eq!((scene.done(&format!("deleted y-{kind}")), scene.done(&format!("deleted z-{kind}"))), (1, 0));
    }
}

/// A run is named by its own session and by the path of its own component.
async fn a_run_is_continued_where_it_is(scene: &Scene) {
    let gated = scene.pause(Way::Gated, "agents", "mailer", "mail g-dora").await;
    let other = scene.pause(Way::Gated, "agents", "mailer", "mail g-emma").await;
    let yes = Scene::tools(&gated, json!({"confirmed": true}));
    for (component, session, status, code) in [
        ("mailer", Some("nowhere"), 404, "not_found"),
        ("mailer", Some(other.session.as_str()), 404, "not_found"),
        ("assistant", Some(gated.session.as_str()), 404, "not_found"),
        ("mailer", None, 400, "form_malformed"),
    ] {
        let target = format!("/agents/{component}/runs/{}/continue", gated.run);
        let mut fields = vec![("stream", "false"), ("tools", yes.as_str())];
        fields.extend(session.map(|session| ("session_id", session)));
        scene.form(Way::Gated, "alice", &target, &fields).await.refused(status, code);
    }
    assert_eq!(scene.done("mailed g-dora"), 0);
    scene.go_on(&gated, "alice", &[("tools", &yes)]).await.completed();
    assert_eq!(scene.done("mailed g-dora"), 1);
}

/// Of six who decide one approval at once one does.
async fn an_approval_is_decided_once(scene: &Scene) {
    let gated = scene.pause(Way::Gated, "agents", "records", "delete g-decided").await;
    let target = format!("/approvals/{}/resolve", Scene::approval(&gated));
    let token = Scene::token(Way::Gated, "adam");
    let body = json!({"status": "rejected", "resolved_by": "mallory"}).to_string();
    let decide = || call(scene.address(Way::Gated), &token, "POST", &target, "application/json", body.clone());
    let mut statuses: Vec<u16> =
        futures_util::future::join_all((0..6).map(|_| decide())).await.iter().map(|said| said.status).collect();
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 409, 409, 409, 409, 409]);
}

/// The same where AgentOS itself asks nobody who they are.
#[tokio::test]
async fn continue_is_guarded_before_an_open_agno() {
    for agno in Agno::ALL {
        let scene = Scene::open(agno, Setup::open(agno)).await;
        a_pending_approval_holds(&scene).await;
        a_rejected_tool_does_not_run(&scene).await;
        approved_arguments_run_once_as_approved(&scene).await;
        a_finished_run_is_not_run_again(&scene).await;
        a_plain_confirmation_confirms_what_was_shown(&scene).await;
        a_run_is_continued_where_it_is(&scene).await;
    }
}

/// And where AgentOS 3 keeps users apart: approvers decide what is not theirs.
#[tokio::test]
async fn continue_is_guarded_before_an_isolating_agno() {
    let setup = Setup::with_jwt(Agno::Newest, AGENTOS_KEY).and("USER_ISOLATION", "1");
    let scene = Scene::open(Agno::Newest, setup).await;
    let gated = scene.paused_and(Way::Gated, "rejected", "delete g-rejected").await;
    scene.go_on(&gated, "alice", &[]).await.completed();
    let gated = scene.paused_and(Way::Gated, "approved", "delete g-approved").await;
    let changed = Scene::tools(&gated, json!({"confirmed": true, "tool_args": {"record_id": "g-other"}}));
    scene.go_on(&gated, "alice", &[("tools", &changed)]).await.refused(400, "field_not_allowed");
    scene.go_on(&gated, "alice", &[]).await.completed();
    assert_eq!(scene.done("deleted g-approved"), 1);
    assert_eq!(scene.done("deleted g-rejected") + scene.done("deleted g-other"), 0);
    an_approval_is_decided_once(&scene).await;
    a_run_is_continued_where_it_is(&scene).await;
}

async fn continue_is_guarded_on(agno: Agno) {
    let scene = Scene::open(agno, Setup::with_jwt(agno, AGENTOS_KEY)).await;
    a_pending_approval_holds(&scene).await;
    a_rejected_tool_does_not_run(&scene).await;
    approved_arguments_run_once_as_approved(&scene).await;
    a_finished_run_is_not_run_again(&scene).await;
    of_eight_at_once_one_runs(&scene).await;
    a_plain_confirmation_confirms_what_was_shown(&scene).await;
    inputs_and_results_come_from_the_caller(&scene).await;
    a_streamed_continuation_is_guarded_alike(&scene).await;
    a_run_is_continued_where_it_is(&scene).await;
    an_approval_is_decided_once(&scene).await;
    if agno == Agno::Newest {
        teams_and_workflows(&scene).await;
    }
}

on_each_agno!(continue_is_guarded: continue_is_guarded_on);
