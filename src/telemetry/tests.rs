//! Owns the proof that metrics keep their names and that log lines say what happened, and nothing secret.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, UNIX_EPOCH};

use serde_json::{Value, json};

use super::*;

fn tenant(name: &str) -> TenantId {
    TenantId::new(name).unwrap()
}

fn silent() -> Arc<Telemetry> {
    let settings =
        Settings { access_log: LogTarget::Off, audit_log: LogTarget::Off, audit_failure: AuditFailure::Continue };
    Telemetry::new(settings, [tenant("acme")]).unwrap()
}

fn exchange() -> ExchangeFinished {
    ExchangeFinished {
        door: Door::Http,
        request_id: "r-1".into(),
        peer: IpAddr::V4(Ipv4Addr::LOCALHOST),
        method: "POST",
        operation: Some("create_agent_run"),
        code: "ok",
        status: 200,
        stage: None,
        reason: None,
        cluster: Some("main".into()),
        endpoint: Some("10.0.0.1:7777".into()),
        tenant: Some(tenant("acme")),
        subject: Some("alice".into()),
        policies: Arc::new(["operator".into()]),
        shadow: None,
        cache: CacheResult::Bypass,
        run_id: Some("run-1".to_owned()),
        duration: Duration::from_micros(12_345),
        time_to_first_byte: Some(Duration::from_millis(3)),
        bytes_sent: 99,
        attempts: 1,
        tokens: vec![ModelTokens { model: "gpt".to_owned(), input: 7, output: 5 }],
    }
}

fn refused() -> ExchangeFinished {
    ExchangeFinished {
        operation: None,
        code: "unauthenticated",
        status: 401,
        stage: Some("identity"),
        reason: Some("signature does not verify".to_owned()),
        cluster: None,
        endpoint: None,
        tenant: None,
        subject: None,
        policies: Arc::new([]),
        shadow: None,
        run_id: None,
        time_to_first_byte: None,
        attempts: 0,
        tokens: vec![],
        ..exchange()
    }
}

fn touch_everything(telemetry: &Arc<Telemetry>) {
    telemetry.exchange_finished(&exchange());
    telemetry.exchange_finished(&refused());
    telemetry.head_refused("bad_host");
    telemetry.endpoint_up("main", "10.0.0.1:7777", true);
    telemetry.endpoint_in_flight("main", "10.0.0.1:7777", 3);
    telemetry.upstream_error("main", "10.0.0.1:7777", "reset");
    telemetry.mcp_request("tools/call", "2025-06-18");
    telemetry.policy_decision("operator", "allow");
    telemetry.runs_active(&tenant("acme"), 1);
    telemetry.quota_used(&tenant("acme"), "requests", 0.5);
    telemetry.store_up("redis", true);
}

/// Family name to label names, as scraped.
fn scraped(text: &str) -> BTreeSet<(String, String)> {
    let samples = text.lines().filter(|line| !line.starts_with('#'));
    let families: Vec<&str> = text.lines().filter_map(|l| l.strip_prefix("# TYPE ")?.split(' ').next()).collect();
    samples
        .map(|sample| {
            let (name, rest) = sample.split_once('{').unwrap();
            let family = families.iter().find(|f| name == **f || name.starts_with(&format!("{f}_"))).unwrap();
            let labels = rest.rsplit_once('}').unwrap().0.split(',').map(|pair| pair.split_once('=').unwrap().0);
            let labels: BTreeSet<&str> = labels.filter(|l| *l != "le").collect();
            ((*family).to_owned(), labels.into_iter().collect::<Vec<_>>().join(","))
        })
        .collect()
}

#[test]
fn metric_names_and_labels_are_the_golden_ones() {
    let telemetry = silent();
    touch_everything(&telemetry);
    let _held = telemetry.in_flight(Door::Http);
    let mut golden = String::new();
    let mut expected = BTreeSet::new();
    let text = telemetry.render();
    for row in metrics::ROWS {
        let kind = text.lines().find_map(|l| l.strip_prefix(&format!("# TYPE {} ", row.name))).unwrap();
        writeln!(golden, "{}{{{}}} {kind} {}", row.name, row.labels.join(","), row.help).unwrap();
        let labels: BTreeSet<&str> = row.labels.iter().copied().collect();
        expected.insert((row.name.to_owned(), labels.into_iter().collect::<Vec<_>>().join(",")));
    }
    assert_eq!(scraped(&text), expected);
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/golden/metrics.txt");
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(path, &golden).unwrap();
    }
    let kept = std::fs::read_to_string(path).unwrap_or_default();
    assert_eq!(golden, kept, "metrics are a contract with dashboards; if meant: UPDATE_GOLDEN=1");
}

#[test]
fn exchanges_count_under_closed_labels() {
    let telemetry = silent();
    telemetry.exchange_finished(&exchange());
    telemetry.exchange_finished(&exchange());
    telemetry.exchange_finished(&ExchangeFinished { tenant: Some(tenant("stranger")), ..exchange() });
    telemetry.exchange_finished(&refused());
    let text = telemetry.render();
    let lines = [
        r#"tollbridge_requests_total{cluster="main",code="ok",door="http",operation="create_agent_run",tenant="acme"} 2"#,
        r#"tollbridge_requests_total{cluster="main",code="ok",door="http",operation="create_agent_run",tenant="other"} 1"#,
        r#"tollbridge_requests_total{cluster="none",code="unauthenticated",door="http",operation="none",tenant="other"} 1"#,
        r#"tollbridge_refusals_total{code="unauthenticated",door="http",tenant="other"} 1"#,
        r#"tollbridge_cache_results_total{operation="create_agent_run",result="bypass"} 3"#,
        r#"tollbridge_request_duration_seconds_count{door="http",operation="create_agent_run"} 3"#,
        r#"tollbridge_time_to_first_byte_seconds_count{door="http",operation="none"} 0"#,
        r#"tollbridge_tokens_total{kind="input",model="gpt",tenant="acme"} 14"#,
        r#"tollbridge_tokens_total{kind="output",model="gpt",tenant="other"} 5"#,
        r#"tollbridge_config_reloads_total{result="failed"} 0"#,
    ];
    for line in lines {
        assert!(text.lines().any(|l| l == line), "missing {line}\nin\n{text}");
    }
    assert!(!text.contains("stranger") && !text.contains("alice"), "{text}");
}

#[test]
fn a_flood_of_clusters_and_models_stays_bounded() {
    let telemetry = silent();
    for n in 0..6000 {
        telemetry.exchange_finished(&ExchangeFinished {
            cluster: Some(format!("c{n}").into()),
            tokens: vec![ModelTokens { model: format!("m{n}"), input: 1, output: 1 }],
            ..exchange()
        });
    }
    let text = telemetry.render();
    let series = |name: &str| text.lines().filter(|l| l.starts_with(name)).count();
    assert_eq!(series("tollbridge_requests_total{"), 4096 + 1);
    assert_eq!(series("tollbridge_tokens_total{"), 2 * (64 + 1));
}

#[test]
fn in_flight_counts_until_the_guard_is_dropped() {
    let telemetry = silent();
    let gauge = |telemetry: &Telemetry| {
        let text = telemetry.render();
        text.lines().find_map(|l| l.strip_prefix(r#"tollbridge_in_flight{door="mcp"} "#)).unwrap().to_owned()
    };
    let (one, two) = (telemetry.in_flight(Door::Mcp), telemetry.in_flight(Door::Mcp));
    assert_eq!(gauge(&telemetry), "2");
    drop(one);
    drop(two);
    assert_eq!(gauge(&telemetry), "0");
}

#[test]
fn tenants_after_a_reload_get_their_own_label() {
    let telemetry = silent();
    let of_globex = ExchangeFinished { tenant: Some(tenant("globex")), ..exchange() };
    telemetry.exchange_finished(&of_globex);
    telemetry.set_tenants([tenant("globex")]);
    telemetry.exchange_finished(&of_globex);
    let text = telemetry.render();
    let requests: Vec<&str> = text.lines().filter(|l| l.starts_with("tollbridge_requests_total{")).collect();
    assert_eq!(requests.iter().filter(|l| l.ends_with("tenant=\"globex\"} 1")).count(), 1, "{requests:?}");
    assert_eq!(requests.iter().filter(|l| l.ends_with("tenant=\"other\"} 1")).count(), 1, "{requests:?}");
}

#[test]
fn a_gone_endpoint_leaves_no_gauge() {
    let telemetry = silent();
    telemetry.endpoint_up("main", "a", true);
    telemetry.endpoint_in_flight("main", "a", 1);
    telemetry.endpoint_gone("main", "a");
    assert!(!telemetry.render().contains("tollbridge_endpoint_"));
}

#[test]
fn an_access_line_says_what_happened() {
    let line = line::access(&exchange(), UNIX_EPOCH + Duration::from_millis(1));
    let expected = concat!(
        r#"{"timestamp":"1970-01-01T00:00:00.001Z","log":"access","request_id":"r-1","door":"http","#,
        r#""http.request.method":"POST","operation":"create_agent_run","code":"ok","http.response.status_code":200,"#,
        r#""client.address":"127.0.0.1","tenant":"acme","subject":"alice","cluster":"main","endpoint":"10.0.0.1:7777","#,
        r#""policies":["operator"],"cache":"bypass","run_id":"run-1","attempts":1,"duration_ms":12.345,"ttfb_ms":3.000,"#,
        r#""bytes_sent":99,"gen_ai.response.model":"gpt","gen_ai.usage.input_tokens":7,"gen_ai.usage.output_tokens":5}"#,
        "\n"
    );
    assert_eq!(String::from_utf8(line).unwrap(), expected);
}

#[test]
fn a_refusal_line_leaves_out_what_is_not_known() {
    let line = line::access(&refused(), UNIX_EPOCH);
    let expected = concat!(
        r#"{"timestamp":"1970-01-01T00:00:00.000Z","log":"access","request_id":"r-1","door":"http","#,
        r#""http.request.method":"POST","code":"unauthenticated","http.response.status_code":401,"#,
        r#""client.address":"127.0.0.1","stage":"identity","reason":"signature does not verify","cache":"bypass","#,
        r#""attempts":0,"duration_ms":12.345,"bytes_sent":99}"#,
        "\n"
    );
    assert_eq!(String::from_utf8(line).unwrap(), expected);
}

#[test]
fn hostile_text_stays_one_line_and_short() {
    let hostile =
        format!("a\r\n{{\"log\":\"audit\"}}\u{1b}[31m\u{9b}2J\u{202e}\u{2028}\u{200f}\u{61c}\"{}", "ü".repeat(5000));
    let event = ExchangeFinished { reason: Some(hostile.clone()), run_id: Some(hostile), ..exchange() };
    let line = String::from_utf8(line::access(&event, UNIX_EPOCH)).unwrap();
    assert_eq!(line.find('\n'), Some(line.len() - 1));
    assert!(!line.trim_end().chars().any(|c| c.is_control() || "\u{202e}\u{2028}\u{200f}\u{61c}".contains(c)));
    assert!(line.len() < 4096, "{}", line.len());
    let parsed: Value = serde_json::from_str(&line).unwrap();
    assert!(parsed["reason"].as_str().unwrap().starts_with("a\u{fffd}\u{fffd}{\"log\":\"audit\"}\u{fffd}[31m"));
}

#[test]
fn logs_reach_their_files_across_a_rotation() {
    let dir = tempfile::tempdir().unwrap();
    let (access, audit) = (dir.path().join("access.jsonl"), dir.path().join("audit.jsonl"));
    let settings = Settings {
        access_log: LogTarget::File(access.clone()),
        audit_log: LogTarget::File(audit.clone()),
        audit_failure: AuditFailure::Continue,
    };
    let telemetry = Telemetry::new(settings, []).unwrap();
    telemetry.exchange_finished(&exchange());
    telemetry.flush();
    std::fs::rename(&access, dir.path().join("access.1")).unwrap();
    telemetry.reopen();
    telemetry.exchange_finished(&refused());
    telemetry.audit(&AuditEvent {
        request_id: "r-2".into(),
        door: Door::Mcp,
        tenant: Some(tenant("acme")),
        subject: Some("alice".into()),
        operation: Some("resolve_approval"),
        resource: Some("Approval::a1".to_owned()),
        approvals: vec!["a1".to_owned()],
        policies: Arc::new(["approver".into()]),
        shadow: None,
        stage: None,
        peer: IpAddr::V4(Ipv4Addr::LOCALHOST),
        outcome: "ok",
    });
    drop(telemetry);
    let codes = |path: &std::path::Path| {
        let text = std::fs::read_to_string(path).unwrap();
        text.lines().map(|l| serde_json::from_str::<Value>(l).unwrap()["code"].clone()).collect::<Vec<_>>()
    };
    assert_eq!(codes(&dir.path().join("access.1")), [json!("ok")]);
    assert_eq!(codes(&access), [json!("unauthenticated")]);
    let mut line: Value = serde_json::from_str(&std::fs::read_to_string(&audit).unwrap()).unwrap();
    line["timestamp"] = Value::Null;
    let expected = json!({
        "timestamp": null, "log": "audit", "request_id": "r-2", "door": "mcp", "tenant": "acme", "subject": "alice",
        "operation": "resolve_approval", "resource": "Approval::a1", "approvals": ["a1"],
        "policies": ["approver"], "client.address": "127.0.0.1", "outcome": "ok"
    });
    assert_eq!(line, expected);
}

#[test]
fn a_log_that_cannot_be_opened_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("missing/access.jsonl");
    let settings = Settings {
        access_log: LogTarget::File(path.clone()),
        audit_log: LogTarget::Off,
        audit_failure: AuditFailure::Continue,
    };
    let error = Telemetry::new(settings, []).err().unwrap();
    assert_eq!(error.to_string(), format!("cannot open log file `{}`", path.display()));
}

#[test]
fn a_full_disk_loses_lines_and_counts_them() {
    let settings = Settings {
        access_log: LogTarget::File("/dev/full".into()),
        audit_log: LogTarget::Off,
        audit_failure: AuditFailure::Continue,
    };
    let telemetry = Telemetry::new(settings, []).unwrap();
    telemetry.exchange_finished(&exchange());
    telemetry.exchange_finished(&exchange());
    telemetry.flush();
    assert!(telemetry.render().lines().any(|l| l == r#"tollbridge_log_lines_dropped_total{log="access"} 2"#));
}

fn audited() -> AuditEvent {
    AuditEvent {
        request_id: "r-9".into(),
        door: Door::Http,
        tenant: Some(tenant("acme")),
        subject: Some("alice".into()),
        operation: Some("delete_session"),
        resource: Some("Session::s1".to_owned()),
        approvals: Vec::new(),
        policies: Arc::new([]),
        shadow: None,
        stage: Some("policy"),
        peer: IpAddr::V4(Ipv4Addr::LOCALHOST),
        outcome: "forbidden",
    }
}

fn auditing(path: &str, audit_failure: AuditFailure) -> Arc<Telemetry> {
    let audit_log = LogTarget::File(path.into());
    Telemetry::new(Settings { access_log: LogTarget::Off, audit_log, audit_failure }, []).unwrap()
}

#[test]
fn a_lost_audit_line_alarms() {
    let telemetry = auditing("/dev/full", AuditFailure::Continue);
    telemetry.audit(&audited());
    telemetry.flush();
    let text = telemetry.render();
    assert!(text.lines().any(|l| l == r#"tollbridge_audit_failures_total{reason="target"} 1"#), "{text}");
    assert!(text.lines().any(|l| l == r#"tollbridge_audit_failures_total{reason="queue"} 0"#), "{text}");
    assert!(!telemetry.audits_first());
}

#[tokio::test]
async fn an_audit_line_can_be_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("audit.jsonl");
    let telemetry = auditing(path.to_str().unwrap(), AuditFailure::Refuse);
    assert!(telemetry.audits_first() && telemetry.audit_surely(&audited()).await);
    let line: Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    assert_eq!((&line["outcome"], &line["stage"]), (&json!("forbidden"), &json!("policy")));
    assert!(!auditing("/dev/full", AuditFailure::Refuse).audit_surely(&audited()).await);
}
