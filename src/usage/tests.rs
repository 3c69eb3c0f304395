//! Proves the sums against replies that were captured from agno 2.5.6 and 3.1.10.

use proptest::prelude::*;

use super::*;
use crate::agentos::Event;

fn fixture(name: &str) -> Vec<u8> {
    let path = format!("{}/tests/fixtures/usage/{name}", env!("CARGO_MANIFEST_DIR"));
    std::fs::read(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn metered(name: &str) -> Meter {
    let (mut meter, bytes) = (Meter::new(), fixture(name));
    if name.ends_with(".sse") {
        meter.sse(&bytes)
    } else {
        meter.json(&bytes)
    }
    meter
}

fn record(name: &str) -> UsageRecord {
    metered(name).finish()
}

fn usage(models: &[(&str, u64, u64)], terminal: Option<Terminal>, incomplete: bool) -> UsageRecord {
    let mut record = UsageRecord { terminal, incomplete, ..UsageRecord::default() };
    for (model, input, output) in models {
        record.add(Some(model), *input, *output);
    }
    record
}

fn sse(events: &[(&str, &str)]) -> Vec<u8> {
    events.iter().map(|(name, data)| format!("event: {name}\ndata: {data}\n\n")).collect::<String>().into_bytes()
}

fn streamed(events: &[(&str, &str)]) -> UsageRecord {
    let mut meter = Meter::new();
    meter.sse(&sse(events));
    meter.finish()
}

#[test]
fn captured_replies_are_summed_exactly() {
    use Terminal::{Cancelled, Completed, Error, Paused};
    type Row<'a> = (&'a str, &'a [(&'a str, u64, u64)], Option<Terminal>, bool);
    let table: [Row<'_>; 44] = [
        ("2.5.6-agent.sse", &[("echo-1", 7, 5)], Some(Completed), false),
        ("2.5.6-agent.json", &[("echo-1", 7, 5)], Some(Completed), false),
        ("3.1.10-agent.sse", &[("echo-1", 7, 5)], Some(Completed), false),
        ("3.1.10-agent.json", &[("echo-1", 7, 5)], Some(Completed), false),
        ("2.5.6-tool.sse", &[("echo-tool", 75, 14)], Some(Completed), false),
        ("2.5.6-tool.json", &[("echo-tool", 75, 14)], Some(Completed), false),
        ("3.1.10-tool.sse", &[("echo-tool", 75, 14)], Some(Completed), false),
        ("3.1.10-tool.json", &[("echo-tool", 75, 14)], Some(Completed), false),
        ("2.5.6-paused.sse", &[("echo-tool", 7, 5)], Some(Paused), false),
        ("2.5.6-paused.json", &[("echo-tool", 7, 5)], Some(Paused), false),
        ("3.1.10-paused.sse", &[("echo-tool", 7, 5)], Some(Paused), false),
        ("3.1.10-paused.json", &[("echo-tool", 7, 5)], Some(Paused), false),
        ("2.5.6-team.sse", &[("echo-lead", 441, 13), ("echo-1", 2, 3)], Some(Completed), false),
        // The JSON reply of a 2.5.6 team leaves its members out, and the record says so.
        ("2.5.6-team.json", &[("echo-lead", 441, 13)], Some(Completed), true),
        ("3.1.10-team.sse", &[("echo-lead", 509, 13), ("echo-1", 2, 3)], Some(Completed), false),
        ("3.1.10-team.json", &[("echo-lead", 509, 13), ("echo-1", 2, 3)], Some(Completed), false),
        ("2.5.6-workflow.sse", &[("echo-1", 5, 7)], Some(Completed), false),
        ("2.5.6-workflow.json", &[("echo-1", 5, 7)], Some(Completed), false),
        ("3.1.10-workflow.sse", &[("echo-1", 5, 7)], Some(Completed), false),
        ("3.1.10-workflow.json", &[("echo-1", 5, 7)], Some(Completed), false),
        ("2.5.6-error.sse", &[], Some(Error), false),
        ("2.5.6-error.json", &[], Some(Error), false),
        ("3.1.10-error.sse", &[], Some(Error), false),
        ("3.1.10-error.json", &[], Some(Error), false),
        ("2.5.6-team_error.sse", &[], Some(Error), false),
        ("2.5.6-team_error.json", &[], Some(Error), false),
        ("3.1.10-team_error.sse", &[], Some(Error), false),
        ("3.1.10-team_error.json", &[], Some(Error), false),
        // 2.5.6 goes on after a failed step, and its next step answers.
        ("2.5.6-workflow_error.sse", &[("echo-1", 11, 12)], Some(Completed), false),
        ("2.5.6-workflow_error.json", &[], Some(Completed), false),
        ("3.1.10-workflow_error.sse", &[], Some(Completed), false),
        ("3.1.10-workflow_error.json", &[], Some(Completed), false),
        // The model call that a cancel cut off used tokens that nobody reports.
        ("2.5.6-cancelled.sse", &[], Some(Cancelled), true),
        ("3.1.10-cancelled.sse", &[], Some(Cancelled), true),
        ("2.5.6-cancelled.json", &[("echo-slow", 3, 20)], Some(Cancelled), true),
        ("3.1.10-cancelled.json", &[("echo-slow", 3, 20)], Some(Cancelled), true),
        ("2.5.6-workflow_cancelled.sse", &[], Some(Completed), true),
        ("3.1.10-workflow_cancelled.sse", &[], Some(Cancelled), true),
        ("2.5.6-continued.sse", &[("echo-tool", 9, 8)], Some(Completed), false),
        ("3.1.10-continued.sse", &[("echo-tool", 9, 8)], Some(Completed), false),
        ("2.5.6-background.json", &[], None, false),
        ("3.1.10-background.json", &[], None, false),
        ("2.5.6-before_continue.json", &[("echo-tool", 6, 5)], Some(Paused), false),
        ("3.1.10-before_continue.json", &[("echo-tool", 6, 5)], Some(Paused), false),
    ];
    for (name, models, terminal, incomplete) in table {
        assert_eq!(record(name), usage(models, terminal, incomplete), "{name}");
    }
}

#[test]
fn a_continued_run_pays_what_was_used_after_its_pause() {
    for version in ["2.5.6", "3.1.10"] {
        let stored = || String::from_utf8(fixture(&format!("{version}-before_continue.json"))).unwrap().into();
        let (mut whole, mut stream) = (Meter::continuing(stored()), Meter::continuing(stored()));
        whole.json(&fixture(&format!("{version}-continued.json")));
        stream.sse(&fixture(&format!("{version}-continued.sse")));
        let expected = usage(&[("echo-tool", 9, 8)], Some(Terminal::Completed), false);
        assert_eq!((whole.finish(), stream.finish()), (expected.clone(), expected), "{version}");
    }
}

#[test]
fn a_run_that_a_workflow_lists_twice_counts_once_as_it_ended() {
    let listed = |tokens: u64| format!(r#"{{"run_id":"s","model":"m","metrics":{{"input_tokens":{tokens}}}}}"#);
    let reply = format!(
        r#"{{"run_id":"w","workflow_id":"w","status":"COMPLETED","step_executor_runs":[{},{},{{"model":"m","metrics":{{"input_tokens":1}}}}]}}"#,
        listed(8),
        listed(59),
    );
    let mut meter = Meter::new();
    meter.json(reply.as_bytes());
    assert_eq!(meter.finish().tokens(), 60);
}

#[test]
fn what_members_and_silent_models_used_before_a_pause_is_not_counted_again() {
    let before = r#"{"run_id":"t","status":"PAUSED","metrics":{"details":{"memory_model":[{"id":"s","input_tokens":3,"output_tokens":1}]}},
        "member_responses":[{"run_id":"x","model":"m","metrics":{"input_tokens":7,"output_tokens":3}}]}"#;
    let mut meter = Meter::continuing(before.into());
    meter.sse(&sse(&[
        ("TeamRunContinued", r#"{"run_id":"t","session_id":"s"}"#),
        (
            "TeamRunCompleted",
            r#"{"run_id":"t","session_id":"s","metrics":{"details":{"memory_model":[{"id":"s","input_tokens":5,"output_tokens":2}]}},"member_responses":[{"run_id":"x","model":"m","metrics":{"input_tokens":9,"output_tokens":4}}]}"#,
        ),
    ]));
    assert_eq!(meter.finish(), usage(&[("s", 2, 1), ("m", 2, 1)], Some(Terminal::Completed), false));
}

#[test]
fn run_and_session_are_known_from_the_first_event() {
    for (name, run_id, session_id) in [
        ("2.5.6-cancelled.sse", "0190a000-0000-8000-8000-000000000001", "s-c"),
        ("3.1.10-cancelled.sse", "0190a000-0000-8000-8000-000000000001", "s-c"),
        ("2.5.6-workflow_cancelled.sse", "0190a000-0000-8000-8000-000000000002", "s-wc"),
        ("3.1.10-workflow_cancelled.sse", "0190a000-0000-8000-8000-000000000002", "s-wc"),
        ("3.1.10-cancelled.json", "0190a000-0000-8000-8000-000000000003", "s-cj"),
    ] {
        let expected = RunSeen { run_id: run_id.to_owned(), session_id: Some(session_id.to_owned()) };
        assert_eq!(metered(name).run(), Some(&expected), "{name}");
    }
    let mut meter = Meter::new();
    meter.sse(&fixture("3.1.10-team.sse")[..300]);
    assert_eq!(meter.run().and_then(|run| run.session_id.as_deref()), Some("s-team-sse"));
}

#[test]
fn tokens_are_known_while_the_run_goes_on() {
    let (bytes, mut meter, mut steps) = (fixture("3.1.10-team.sse"), Meter::new(), vec![0]);
    for chunk in bytes.chunks(64) {
        meter.sse(chunk);
        if steps.last() != Some(&meter.tokens_so_far()) {
            assert_eq!(meter.terminal(), None);
            steps.push(meter.tokens_so_far());
        }
    }
    assert_eq!(steps, [0, 258, 263, 527]);
}

#[test]
fn a_nested_end_does_not_end_the_run() {
    for end in ["RunCompleted", "RunError", "RunCancelled", "RunPaused"] {
        let record = streamed(&[
            ("TeamRunStarted", r#"{"run_id":"team","session_id":"s"}"#),
            ("RunStarted", r#"{"run_id":"member","session_id":"s"}"#),
            (end, r#"{"run_id":"member","session_id":"s"}"#),
        ]);
        assert_eq!(record.terminal, None, "{end}");
    }
}

#[test]
fn a_workflow_of_2_5_6_ends_with_the_pause_of_its_step() {
    let record = streamed(&[
        ("WorkflowStarted", r#"{"run_id":"w","session_id":"s"}"#),
        ("StepPaused", r#"{"run_id":"w","session_id":"s"}"#),
    ]);
    assert_eq!(record.terminal, Some(Terminal::Paused));
}

#[test]
fn a_replayed_stream_goes_on_after_its_pause() {
    let mut meter = Meter::following("r");
    meter.sse(&sse(&[("RunPaused", r#"{"run_id":"r"}"#)]));
    assert_eq!(meter.terminal(), Some(Terminal::Paused));
    meter.sse(&sse(&[("RunContinued", r#"{"run_id":"r"}"#)]));
    assert_eq!(meter.terminal(), None);
    meter.sse(&sse(&[("RunCompleted", r#"{"run_id":"r"}"#)]));
    assert_eq!(meter.terminal(), Some(Terminal::Completed));
}

#[test]
fn a_stream_that_is_resumed_within_a_step_belongs_to_its_workflow() {
    let record = streamed(&[
        ("RunContent", r#"{"run_id":"step","workflow_run_id":"w","session_id":"s"}"#),
        ("RunCompleted", r#"{"run_id":"step","workflow_run_id":"w","session_id":"s"}"#),
        ("WorkflowCompleted", r#"{"run_id":"w","session_id":"s"}"#),
    ]);
    assert_eq!(record.terminal, Some(Terminal::Completed));
}

#[test]
fn a_broken_stream_ends_in_an_error() {
    let record = streamed(&[("error", r#"{"event":"error","error":"Run nope not found in buffer or database"}"#)]);
    assert_eq!(record, usage(&[], Some(Terminal::Error), false));
}

#[test]
fn models_that_stream_no_events_are_counted_from_the_last_event() {
    let record = streamed(&[
        (
            "ModelRequestCompleted",
            r#"{"run_id":"r","session_id":"s","model":"big","input_tokens":10,"output_tokens":2}"#,
        ),
        (
            "RunCompleted",
            r#"{"run_id":"r","session_id":"s","metrics":{"input_tokens":14,"output_tokens":4,"details":{
                "model":[{"id":"big","input_tokens":10,"output_tokens":2}],
                "memory_model":[{"id":"small","input_tokens":3,"output_tokens":1}],
                "session_summary_model":[{"id":"small","input_tokens":1,"output_tokens":1}]}}}"#
                .replace('\n', "")
                .as_str(),
        ),
    ]);
    assert_eq!(record, usage(&[("big", 10, 2), ("small", 4, 2)], Some(Terminal::Completed), false));
}

#[test]
fn members_and_steps_whose_events_are_not_streamed_are_counted_from_the_last_event() {
    let team = streamed(&[
        (
            "TeamModelRequestCompleted",
            r#"{"run_id":"t","session_id":"s","model":"lead","input_tokens":5,"output_tokens":1}"#,
        ),
        (
            "ModelRequestCompleted",
            r#"{"run_id":"seen","session_id":"s","model":"m","input_tokens":2,"output_tokens":2}"#,
        ),
        (
            "TeamRunCompleted",
            r#"{"run_id":"t","session_id":"s","member_responses":[{"run_id":"seen","model":"m","metrics":{"input_tokens":2,"output_tokens":2}},{"run_id":"unseen","model":"m","metrics":{"input_tokens":7,"output_tokens":3}}]}"#,
        ),
    ]);
    assert_eq!(team, usage(&[("lead", 5, 1), ("m", 9, 5)], Some(Terminal::Completed), false));
    let workflow = streamed(&[
        ("WorkflowStarted", r#"{"run_id":"w","session_id":"s"}"#),
        (
            "WorkflowCompleted",
            r#"{"run_id":"w","step_results":[{"step_run_id":"x","metrics":{"details":{"model":[{"id":"m","input_tokens":7,"output_tokens":3}]}}}]}"#,
        ),
    ]);
    assert_eq!(workflow, usage(&[("m", 7, 3)], Some(Terminal::Completed), false));
}

#[test]
fn nested_steps_are_not_counted_twice() {
    let mut meter = Meter::new();
    meter.json(
        br#"{"run_id":"w","status":"COMPLETED","step_results":[{"metrics":{"input_tokens":5,"output_tokens":5},
            "steps":[{"metrics":{"input_tokens":2,"output_tokens":3}},{"metrics":{"input_tokens":3,"output_tokens":2}}]}]}"#,
    );
    assert_eq!(meter.finish(), usage(&[("unknown", 5, 5)], Some(Terminal::Completed), false));
}

#[test]
fn an_oversized_last_event_still_ends_the_run() {
    let content = "x".repeat(meter::EVENT_BYTES_MAX);
    let last = format!(r#"{{"event":"RunCompleted","run_id":"r","session_id":"s","content":"{content}"}}"#);
    let record = streamed(&[
        ("RunStarted", r#"{"run_id":"r","session_id":"s"}"#),
        ("RunContent", &last),
        ("RunCompleted", &last),
    ]);
    assert_eq!(record.terminal, Some(Terminal::Completed));
}

#[test]
fn frames_without_a_name_are_read_by_the_event_in_their_data() {
    let mut meter = Meter::new();
    let data = r#"{"event":"ModelRequestCompleted","run_id":"r","session_id":"s","model":"m","input_tokens":1,"output_tokens":2}"#;
    meter.event(Event { name: "message", data, oversized: false });
    assert_eq!(meter.finish(), usage(&[("m", 1, 2)], None, false));
}

#[test]
fn replies_that_are_no_runs_count_nothing() {
    for reply in
        ["", "null", "[]", "{\"detail\":\"Agent not found\"}", "{\"metrics\":7,\"member_responses\":{}}", "\u{0}"]
    {
        let mut meter = Meter::new();
        meter.json(reply.as_bytes());
        meter.sse(reply.as_bytes());
        assert_eq!(meter.finish(), UsageRecord::default(), "{reply}");
    }
}

#[test]
fn absurdly_nested_replies_neither_overflow_nor_pass_as_complete() {
    let depth = 5_000;
    let json = format!("{}{}", r#"{"member_responses":["#.repeat(depth), "]}".repeat(depth));
    let mut meter = Meter::new();
    meter.json(json.as_bytes());
    assert!(meter.finish().incomplete);
}

proptest! {
    #[test]
    fn chunk_borders_do_not_change_the_sum(size in 1_usize..400, crlf in any::<bool>()) {
        let text = String::from_utf8(fixture("3.1.10-team.sse")).unwrap();
        let text = if crlf { text.replace('\n', "\r\n") } else { text };
        let mut meter = Meter::new();
        for chunk in text.as_bytes().chunks(size) {
            meter.sse(chunk);
        }
        prop_assert_eq!(meter.finish(), record("3.1.10-team.sse"));
    }

    #[test]
    fn no_bytes_break_the_meter(chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..60), 0..20)) {
        let mut meter = Meter::new();
        for chunk in &chunks {
            meter.sse(chunk);
        }
        meter.json(&chunks.concat());
        prop_assert_eq!(meter.finish().tokens(), 0);
    }
}
