//! Proves that the configuration changes under way: as one, without loss, and only when all of it can be served.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::json;
use tokio::task::JoinSet;

use crate::fake::{Event, FakeAgentOs, RUN, Reply};
use crate::stack::{Ask, Settings, Stack, Who, open_at, within};

const RUNS: &str = "/agents/assistant/runs";

fn counted(result: &str) -> String {
    format!("tollbridge_config_reloads_total{{result=\"{result}\"}}")
}

fn two_events() -> [Event; 2] {
    [
        Event::new("RunStarted", json!({ "run_id": "r-1", "session_id": "s-1" })),
        Event::new("RunCompleted", json!({ "run_id": "r-1", "content": "the end" })),
    ]
}

/// A key of tenant `acme` and the settings that know it.
fn with_key(settings: Settings) -> (Settings, String) {
    use sha2::{Digest as _, Sha256};
    let key = "tb_0123456789abcdef0123456789abcdef01234567";
    let hash: String = Sha256::digest(key).iter().map(|byte| format!("{byte:02x}")).collect();
    let keys = [
        ("id", "\"ci\"".to_owned()),
        ("sha256", format!("\"{hash}\"")),
        ("tenant", "\"acme\"".to_owned()),
        ("roles", "[\"operator\"]".to_owned()),
    ];
    let keys: Vec<(&str, &str)> = keys.iter().map(|(key, value)| (*key, &**value)).collect();
    (settings.add("[[identity.api_keys]]", &keys), key.to_owned())
}

#[tokio::test]
async fn a_reload_takes_over_what_the_whole_file_says() {
    let stack = Stack::start().await;
    let (settings, key) = with_key(Settings::new());
    let settings = settings
        .set("[server.limits]", "json_body_bytes", "\"1KiB\"")
        .set("[mcp]", "enabled", "false")
        .add("[tenants.initech]", &[]);
    let newcomer = Who::new("ian").of("initech").role("operator");
    let big = Ask::post("/knowledge/search").json(&json!({ "query": "x".repeat(2000) })).by(&Who::alice());
    let see = async || {
        let status = async |ask: Ask| stack.send(ask).await.status;
        [
            status(Ask::get("/agents").bearer(&key)).await,
            status(Ask::get("/agents").by(&newcomer)).await,
            status(big.clone()).await,
            u16::from(status(Ask::post("/mcp").json(&json!({})).by(&Who::alice())).await == 404),
        ]
    };
    assert_eq!(see().await, [401, 401, 200, 0]);
    stack.configure(&settings);
    stack.running.reload().await.unwrap();
    assert_eq!(see().await, [200, 200, 413, 1]);
    stack.configure(&Settings::new());
    assert_eq!(stack.ask_admin(Ask::post("/reload")).await.status, 200);
    assert_eq!(see().await, [401, 401, 200, 0]);
    assert_eq!(stack.metric(&counted("ok")).await, 2.0);
}

#[tokio::test]
async fn a_broken_file_changes_nothing_and_says_why() {
    let stack = Stack::start().await;
    let broken = Settings::new().set("[server.limits]", "json_body_byte", "\"1KiB\"").set("[tenants.acme]", "x", "1");
    stack.configure(&broken);
    let got = stack.ask_admin(Ask::post("/reload")).await;
    assert_eq!((got.status, got.code().as_str()), (422, "configuration_refused"), "{got:?}");
    let detail = got.json()["detail"].as_str().unwrap().to_owned();
    assert!(detail.contains("did you mean `json_body_bytes`") && detail.contains("unknown key `x`"), "{detail}");
    assert_eq!(stack.send(Ask::get("/agents").by(&Who::alice())).await.status, 200);
    // A problem that only the modules see.
    let key = "{ env = \"AGENTOS_JWT_KEY\" }";
    stack.configure(&Settings::new().set("[[identity.issuers]]", "key", key).set(
        "[[identity.issuers]]",
        "algorithms",
        "[\"RS256\"]",
    ));
    assert!(stack.running.reload().await.is_err());
    assert_eq!(stack.send(Ask::get("/agents").by(&Who::alice())).await.status, 200);
    assert_eq!((stack.metric(&counted("ok")).await, stack.metric(&counted("failed")).await), (0.0, 2.0));
}

#[tokio::test]
async fn what_needs_a_restart_is_named_and_refused_whole() {
    let stack = Stack::start().await;
    let (settings, key) = with_key(Settings::new());
    for (section, name, value, named) in [
        ("[server]", "listen", "\"127.0.0.2:0\"", "`listen` in `[server]`"),
        ("[server]", "threads", "3", "`threads` in `[server]`"),
        ("[server]", "secret", "{ env = \"AGENTOS_JWT_KEY\" }", "`secret` in `[server]`"),
        ("[server.limits]", "connections", "77", "`connections` in `[server.limits]`"),
        ("[admin]", "listen", "\"127.0.0.2:0\"", "`listen` in `[admin]`"),
        ("[quota]", "store", "\"file\"", "`[store]`"),
        ("[telemetry]", "access_log", "\"off\"", "`[telemetry]`"),
    ] {
        let settings = settings.clone().set(section, name, value);
        let settings = if named == "`[store]`" { settings.set("[store]", "file", "\"s.db\"") } else { settings };
        stack.configure(&settings);
        let error = stack.running.reload().await.unwrap_err().to_string();
        assert!(error.starts_with(&format!("{named} cannot change while the process runs\nhelp: ")), "{error}");
        assert_eq!(stack.send(Ask::get("/agents").bearer(&key)).await.status, 401, "{named}");
    }
}

#[tokio::test]
async fn counters_of_quotas_survive_a_reload() {
    let small = |burst: &str| {
        let rate = format!("{{ per_hour = 60, burst = {burst} }}");
        Settings::new().add("[plans.small]", &[("requests", &rate)]).set("[tenants.acme]", "plan", "\"small\"")
    };
    let stack = Stack::with(small("2")).await;
    let status = async || stack.send(Ask::get("/agents").by(&Who::alice())).await.status;
    assert_eq!([status().await, status().await, status().await], [200, 200, 429]);
    stack.running.reload().await.unwrap();
    assert_eq!(status().await, 429);
    stack.configure(&small("3"));
    stack.running.reload().await.unwrap();
    assert_eq!([status().await, status().await], [200, 429]);
}

#[tokio::test]
async fn kept_answers_survive_where_nothing_that_they_depend_on_has_changed() {
    let stack = Stack::start().await;
    let status = async || {
        let got = stack.send(Ask::get("/agents").by(&Who::alice())).await;
        got.header("cache-status").unwrap_or_default().contains("hit")
    };
    assert_eq!([status().await, status().await], [false, true]);
    let (settings, _) = with_key(Settings::new());
    stack.configure(&settings);
    stack.running.reload().await.unwrap();
    assert!(status().await);
    let other = FakeAgentOs::start().await;
    stack.configure_over(&[other.url()], &settings);
    stack.running.reload().await.unwrap();
    assert!(!status().await);
    assert_eq!(other.requests_to("/agents").len(), 1);
}

#[tokio::test]
async fn probes_follow_clusters_that_come_and_go() {
    let stack = Stack::start().await;
    let (second, third) = (FakeAgentOs::start().await, FakeAgentOs::start().await);
    let up = async |cluster: &str, fake: &FakeAgentOs| {
        let labels = [format!("cluster=\"{cluster}\""), format!("endpoint=\"{}\"", fake.url())];
        let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
        stack.wait_for_metric("tollbridge_endpoint_up", &labels, 1.0).await;
    };
    let endpoints = format!("[\"{}\"]", third.url());
    let settings = Settings::new().add(
        "[[clusters]]",
        &[
            ("name", "\"other\""),
            ("endpoints", &endpoints),
            ("credential", "\"none\""),
            ("knowledge", "{ metadata = \"tenant\" }"),
        ],
    );
    stack.configure_over(&[stack.os().url(), second.url()], &settings);
    stack.running.reload().await.unwrap();
    up("main", &second).await;
    up("other", &third).await;
    stack.configure(&Settings::new());
    stack.running.reload().await.unwrap();
    let gone = |cluster: &str| format!("cluster=\"{cluster}\"");
    stack.wait_for_metric("tollbridge_endpoint_up", &[&gone("other")], 0.0).await;
    stack.wait_for_metric("tollbridge_endpoint_up", &[&gone("main")], 1.0).await;
    // And back again.
    stack.configure_over(&[stack.os().url()], &settings);
    stack.running.reload().await.unwrap();
    up("other", &third).await;
}

#[tokio::test]
async fn files_are_watched_where_the_configuration_says_so() {
    let watching = Settings::new().set("[server]", "watch", "\"1s\"");
    let stack = Stack::with(watching.clone()).await;
    let (settings, key) = with_key(watching);
    stack.configure(&settings);
    stack.wait_for_metric("tollbridge_config_reloads_total", &["result=\"ok\""], 1.0).await;
    assert_eq!(stack.send(Ask::get("/agents").bearer(&key)).await.status, 200);
    // What cannot be used is tried once.
    stack.configure(&settings.set("[server]", "no_such_key", "1"));
    stack.wait_for_metric("tollbridge_config_reloads_total", &["result=\"failed\""], 1.0).await;
    assert_eq!(stack.send(Ask::get("/agents").bearer(&key)).await.status, 200);
}

/// Callers without pause, on fresh connections.
struct Load {
    tasks: JoinSet<Vec<String>>,
    stop: Arc<AtomicBool>,
    done: Arc<AtomicUsize>,
}

impl Load {
    fn start(address: std::net::SocketAddr, callers: usize) -> Self {
        let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let mut tasks = JoinSet::new();
        let token = Who::alice().token();
        for _ in 0..callers {
            let (stop, done, token) = (Arc::clone(&stop), Arc::clone(&done), token.clone());
            tasks.spawn(async move {
                let mut failures = Vec::new();
                while !stop.load(Ordering::Relaxed) {
                    for ask in [Ask::get("/sessions"), Ask::plain_run(), Ask::get("/agents")] {
                        let got = open_at(address, ask.bearer(&token)).await.whole().await;
                        if got.status != 200 {
                            failures.push(format!("{got:?}"));
                        }
                        done.fetch_add(1, Ordering::Relaxed);
                    }
                }
                failures
            });
        }
        Self { tasks, stop, done }
    }

    /// Waits for more requests to be answered.
    async fn go_on(&self, more: usize) {
        let goal = self.done.load(Ordering::Relaxed) + more;
        crate::stack::within("requests under load", async {
            while self.done.load(Ordering::Relaxed) < goal {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        })
        .await;
    }

    async fn failures(mut self) -> Vec<String> {
        self.stop.store(true, Ordering::Relaxed);
        let mut all = Vec::new();
        while let Some(failures) = self.tasks.join_next().await {
            all.extend(failures.unwrap());
        }
        all
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reloads_under_load_cost_no_request_and_no_stream() {
    let stack = Stack::before(vec![FakeAgentOs::start().await, FakeAgentOs::start().await], Settings::new()).await;
    let all: Vec<String> = stack.fakes().iter().map(FakeAgentOs::url).collect();
    let (reply, gate) = Reply::paced_sse(&two_events());
    stack.fakes().iter().for_each(|fake| fake.pin("POST", "/agents/records/runs", reply.clone()));
    let mut streams = Vec::new();
    for _ in 0..8 {
        let ask = Ask::post("/agents/records/runs").field("message", "hi").by(&Who::alice());
        streams.push(stack.open(ask).await);
    }
    let load = Load::start(stack.address(), 4);
    let (keyed, _) = with_key(Settings::new());
    for round in 0..6_usize {
        let settings = if round % 2 == 0 { keyed.clone() } else { Settings::new() };
        // One of the replicas leaves in every third round.
        stack.configure_over(if round % 3 == 2 { &all[..1] } else { &all }, &settings);
        stack.running.reload().await.unwrap();
        load.go_on(10).await;
    }
    assert_eq!(load.failures().await, Vec::<String>::new());
    gate.open();
    for mut flow in streams {
        let (rest, clean) = flow.rest().await;
        let whole = rest.contains("RunStarted") && rest.contains("the end") && !rest.contains("event: error");
        assert!(clean && whole, "{rest}");
    }
    assert_eq!(stack.metric(&counted("ok")).await, 6.0);
    assert!(!stack.fakes().iter().any(|fake| fake.requests_to(RUNS).iter().any(|run| run.aborted)));
}

#[tokio::test]
async fn an_endpoint_that_a_reload_removes_ends_its_streams_and_gets_nothing_new() {
    let settings = Settings::new().set("[[clusters]]", "balance", "\"round_robin\"").set(
        "[clusters.ejection]",
        "slow_start",
        "\"0s\"",
    );
    let stack = Stack::before(vec![FakeAgentOs::start().await, FakeAgentOs::start().await], settings.clone()).await;
    let all: Vec<String> = stack.fakes().iter().map(FakeAgentOs::url).collect();
    let events =
        ["RunStarted", "RunCompleted"].map(|name| Event::new(name, json!({"run_id": RUN, "session_id": "s-1"})));
    let mut streams = Vec::new();
    for _ in 0..4 {
        let (reply, gate) = Reply::paced_sse(&events);
        stack.fakes().iter().for_each(|fake| fake.pin("POST", "/agents/records/runs", reply.clone()));
        let mut flow = stack.open(Ask::post("/agents/records/runs").field("message", "hi").by(&Who::alice())).await;
        gate.open_once();
        flow.until("RunStarted").await;
        streams.push((flow, gate));
    }
    let [stays, leaves] = stack.fakes() else { panic!("two") };
    let runs = leaves.requests_to("/agents/records/runs");
    assert_eq!(runs.len(), 2, "streams on both");
    stack.configure_over(&all[..1], &settings);
    stack.running.reload().await.unwrap();

    let before = leaves.requests().len();
    for _ in 0..6 {
        assert_eq!(stack.send(Ask::plain_run().by(&Who::alice())).await.status, 200);
    }
    assert_eq!((stays.requests_to(RUNS).len(), leaves.requests().len()), (6, before));
    // What follows a run that it holds is still sent there.
    let run = runs[0].form().get("run_id").unwrap().to_owned();
    let stored = json!({"run_id": run, "agent_id": "records", "session_id": "s-1", "status": "CANCELLED"});
    stays.pin("GET", &format!("/agents/records/runs/{run}"), Reply::json(200, &stored));
    let cancel = format!("/agents/records/runs/{run}/cancel");
    let got = stack.send(Ask::post(&format!("{cancel}?session_id=s-1")).by(&Who::alice())).await;
    let told = (leaves.requests_to(&cancel).len(), stays.requests_to(&cancel).len());
    assert_eq!((got.status, told), (200, (1, 0)), "{got:?}");
    for (mut flow, gate) in streams {
        gate.open();
        let (rest, clean) = flow.rest().await;
        assert!(clean && rest.contains("RunCompleted") && !rest.contains("event: error"), "{rest}");
    }
    assert!(leaves.requests().iter().all(|request| request.answered && !request.aborted));

    // And back again.
    stack.configure_over(&all, &settings);
    stack.running.reload().await.unwrap();
    within("a run at the endpoint that was added", async {
        while leaves.requests_to(RUNS).is_empty() {
            assert_eq!(stack.send(Ask::plain_run().by(&Who::alice())).await.status, 200);
        }
    })
    .await;
}
