//! Tests of what goes upstream when a run is continued. Does not test the look-ups: those need an AgentOS.

use std::time::Duration;

use proptest::prelude::*;
use serde::Deserialize as _;
use serde_json::{Value, json};

use super::answers::{Answered, Wrong, answered};
use std::sync::Arc;

use super::claims::{Continues, NotClaimed, Pause};
use super::rulings::{Row, Rows};
use super::waiting;
use crate::agentos::Kind;

const NOW: u64 = 1_800_000_000;

fn tool(id: &str, more: Value) -> Value {
    let mut tool = json!({"tool_call_id": id, "tool_name": "delete_record", "tool_args": {"record_id": "42"}});
    tool.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    tool
}

fn plain(id: &str) -> Value {
    tool(id, json!({"requires_confirmation": true, "confirmed": null}))
}

fn guarded(id: &str) -> Value {
    let marks = json!({"requires_confirmation": true, "approval_type": "required", "approval_id": "a-1"});
    tool(id, marks)
}

fn booking(more: Value) -> Value {
    let mut booking = json!({
        "tool_call_id": "c-1", "tool_name": "book_room", "tool_args": {"day": "monday"}, "requires_user_input": true,
        "user_input_schema": [
            {"name": "day", "field_type": "str", "description": null, "value": "monday"},
            {"name": "room", "field_type": "str", "description": null, "value": null},
        ],
    });
    booking.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    booking
}

fn parcel(more: Value) -> Value {
    let mut parcel = tool("c-1", more);
    parcel["external_execution_required"] = json!(true);
    parcel
}

fn agent_run(tools: &[Value]) -> Value {
    json!({"run_id": "r-1", "status": "PAUSED", "tools": tools})
}

fn row(status: &str, more: Value) -> Rows {
    let mut row = json!({"id": "a-1", "run_id": "r-1", "status": status, "approval_type": "required"});
    row.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    Rows::new(vec![Row::deserialize(row).unwrap()], NOW, None)
}

fn none() -> Rows {
    Rows::new(Vec::new(), NOW, None)
}

fn continue_agent(stored: Value, given: Value, rows: &Rows) -> Result<Value, Wrong> {
    let given = given.as_array().unwrap().clone();
    answered(Kind::Agent, &agent_run(&[stored]), &given, rows).map(|answered| answered.list[0].clone())
}

#[track_caller]
fn check(stored: Value, given: Value, rows: &Rows, added: Value) {
    let mut expected = stored.clone();
    expected.as_object_mut().unwrap().extend(added.as_object().unwrap().clone());
    assert_eq!(continue_agent(stored, given, rows), Ok(expected));
}

#[track_caller]
fn refused(stored: Value, given: Value, rows: &Rows, wrong: Wrong) {
    assert_eq!(continue_agent(stored, given, rows), Err(wrong));
}

fn yes(id: &str) -> Value {
    json!([{"tool_call_id": id, "confirmed": true}])
}

fn no(id: &str) -> Value {
    json!([{"tool_call_id": id, "confirmed": false, "confirmation_note": "not now"}])
}

#[test]
fn a_plain_confirmation_is_the_callers() {
    check(plain("c-1"), yes("c-1"), &none(), json!({"confirmed": true}));
    check(plain("c-1"), no("c-1"), &none(), json!({"confirmed": false, "confirmation_note": "not now"}));
    refused(plain("c-1"), json!([]), &none(), Wrong::Unanswered("c-1".into()));
    refused(plain("c-1"), json!([{"tool_call_id": "c-1"}]), &none(), Wrong::Unanswered("c-1".into()));
    let odd = json!([{"tool_call_id": "c-1", "confirmed": "true"}]);
    refused(plain("c-1"), odd, &none(), Wrong::Malformed("`confirmed` must be true or false"));
}

#[test]
fn an_approval_decides_whatever_the_caller_says() {
    let given = [json!([]), yes("c-1"), json!([{"tool_call_id": "c-1"}])];
    for given in &given {
        check(guarded("c-1"), given.clone(), &row("approved", json!({})), json!({"confirmed": true}));
    }
    for given in [json!([]), no("c-1")] {
        check(guarded("c-1"), given, &row("rejected", json!({})), json!({"confirmed": false}));
    }
    refused(guarded("c-1"), yes("c-1"), &row("rejected", json!({})), Wrong::Rejected);
    for given in given {
        refused(guarded("c-1"), given, &row("pending", json!({})), Wrong::Pending);
    }
    // The caller may drop what was approved.
    check(guarded("c-1"), no("c-1"), &row("approved", json!({})), json!({"confirmed": false}));
}

#[test]
fn a_stored_yes_does_not_replace_an_approval() {
    let mut stored = guarded("c-1");
    stored["confirmed"] = json!(true);
    refused(stored, json!([]), &row("pending", json!({})), Wrong::Pending);
}

#[test]
fn only_an_approved_row_of_this_call_opens_it() {
    let pending = |rows: &Rows| refused(guarded("c-1"), yes("c-1"), rows, Wrong::Pending);
    pending(&none());
    pending(&row("approved", json!({"id": "a-2"})));
    pending(&row("approved", json!({"run_id": "r-2"})));
    pending(&row("approved", json!({"approval_type": "audit"})));
    pending(&row("approved", json!({"expires_at": NOW})));
    pending(&row("approved", json!({"expires_at": "soon"})));
    pending(&row("granted", json!({})));
    let seen = |call: Value| json!({"requirements": [{"tool_execution": call}]});
    pending(&row("approved", seen(tool("c-1", json!({"tool_args": {"record_id": "7"}})))));
    pending(&row("approved", seen(tool("c-1", json!({"tool_name": "drop_table"})))));
    for more in [json!({"expires_at": NOW + 1}), seen(guarded("c-1")), seen(tool("c-2", json!({"tool_args": {}})))] {
        check(guarded("c-1"), json!([]), &row("approved", more), json!({"confirmed": true}));
    }
}

#[test]
fn an_approval_counts_for_as_long_as_configured() {
    let decided = |at: Value| {
        let row = json!({"id": "a-1", "run_id": "r-1", "status": "approved", "resolved_at": at});
        Rows::new(vec![Row::deserialize(row).unwrap()], NOW, Some(Duration::from_secs(60)))
    };
    check(guarded("c-1"), json!([]), &decided(json!(NOW - 59)), json!({"confirmed": true}));
    for at in [json!(NOW - 60), json!(null), json!("today")] {
        refused(guarded("c-1"), json!([]), &decided(at), Wrong::Pending);
    }
}

#[test]
fn a_mark_is_not_needed_where_a_row_lists_the_call() {
    let listed = json!({"requirements": [{"tool_execution": plain("c-1")}]});
    refused(plain("c-1"), yes("c-1"), &row("pending", listed), Wrong::Pending);
}

#[test]
fn an_audited_tool_is_the_callers() {
    let stored = tool("c-1", json!({"requires_confirmation": true, "approval_type": "audit", "approval_id": "a-1"}));
    check(stored, yes("c-1"), &none(), json!({"confirmed": true}));
}

#[test]
fn arguments_and_names_cannot_be_changed() {
    for change in
        [json!({"tool_args": {"record_id": "43"}}), json!({"tool_name": "drop_table"}), json!({"tool_args": {}})]
    {
        let mut given = tool("c-1", json!({"confirmed": true}));
        given.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        refused(plain("c-1"), json!([given]), &none(), Wrong::Changed("c-1".into()));
        refused(guarded("c-1"), json!([given]), &row("approved", json!({})), Wrong::Changed("c-1".into()));
    }
    let stored = tool("c-1", json!({"requires_confirmation": true, "tool_args": {"amount": 1.0, "to": ["x"]}}));
    let given = json!([{"tool_call_id": "c-1", "confirmed": true, "tool_args": {"amount": 1, "to": ["x"]}}]);
    check(stored, given, &none(), json!({"confirmed": true}));
}

#[test]
fn calls_that_the_run_does_not_wait_for_are_refused() {
    refused(plain("c-1"), yes("c-9"), &none(), Wrong::Unknown("c-9".into()));
    refused(plain("c-1"), json!([{"confirmed": true}]), &none(), Wrong::Malformed("each item needs its id"));
    refused(plain("c-1"), json!([true]), &none(), Wrong::Malformed("each item must be an object"));
    let twice = json!([{"tool_call_id": "c-1", "confirmed": false}, {"tool_call_id": "c-1", "confirmed": true}]);
    refused(plain("c-1"), twice, &none(), Wrong::Ambiguous("c-1".into()));
}

#[test]
fn a_call_that_has_run_stays_as_it_is() {
    let ran = tool("call_0", json!({"requires_confirmation": true, "confirmed": true, "result": "deleted 41"}));
    let run = agent_run(&[ran.clone(), plain("call_0")]);
    let open = answered(Kind::Agent, &run, yes("call_0").as_array().unwrap(), &none()).unwrap();
    assert_eq!(open.list[0], ran);
    assert_eq!(open.list[1]["confirmed"], json!(true));
    // All of them, in their order: the first one is the old call.
    let both =
        [json!({"tool_call_id": "call_0", "confirmed": true}), json!({"tool_call_id": "call_0", "confirmed": false})];
    assert_eq!(answered(Kind::Agent, &run, &both, &none()).unwrap().list[1]["confirmed"], json!(false));
    let run = agent_run(&[plain("call_0"), plain("call_0")]);
    let wrong = answered(Kind::Agent, &run, yes("call_0").as_array().unwrap(), &none()).unwrap_err();
    assert_eq!(wrong, Wrong::Ambiguous("call_0".into()));
}

#[test]
fn declared_fields_are_the_callers() {
    let room = |name: &str, value: Value| json!([{"tool_call_id": "c-1", "user_input_schema": [{"name": name, "value": value}]}]);
    let filled = |day: &str, room: &str| {
        json!({"answered": true, "user_input_schema": [
            {"name": "day", "field_type": "str", "description": null, "value": day},
            {"name": "room", "field_type": "str", "description": null, "value": room},
        ]})
    };
    check(booking(json!({})), room("room", json!("blue")), &none(), filled("monday", "blue"));
    refused(booking(json!({})), room("guests", json!(3)), &none(), Wrong::Undeclared("guests".into()));
    refused(booking(json!({})), json!([]), &none(), Wrong::Unanswered("c-1".into()));

    let approved = || booking(json!({"approval_type": "required", "approval_id": "a-1"}));
    check(approved(), room("room", json!("blue")), &row("approved", json!({})), filled("monday", "blue"));
    // What stood there was approved.
    refused(approved(), room("day", json!("friday")), &row("approved", json!({})), Wrong::Changed("day".into()));
    // Nor does a number that a reader rounds stand for the one that was approved.
    let account =
        |number: Value| json!([{"name": "account", "field_type": "int", "description": null, "value": number}]);
    let approved_number = booking(json!({
        "approval_type": "required", "approval_id": "a-1", "user_input_schema": account(json!(9_007_199_254_740_993_u64)),
    }));
    let rounded = room("account", json!(9_007_199_254_740_992_u64));
    let stays = json!({"answered": true, "user_input_schema": account(json!(9_007_199_254_740_993_u64))});
    check(approved_number, rounded, &row("approved", json!({})), stays);
    let chosen = json!({"resolution_data": {"values": {"room": "red", "door": "open"}}});
    for given in [json!([]), room("room", json!("blue"))] {
        check(approved(), given, &row("approved", chosen.clone()), filled("monday", "red"));
    }
    refused(approved(), json!([]), &row("approved", json!({})), Wrong::Unanswered("c-1".into()));
    // AgentOS would run it all the same.
    refused(approved(), json!([]), &row("rejected", json!({})), Wrong::Rejected);
}

#[test]
fn questions_take_selections_only() {
    let stored = json!({
        "tool_call_id": "c-1", "tool_name": "ask_user", "tool_args": {}, "requires_user_input": true,
        "user_feedback_schema": [{"question": "which?", "options": [{"label": "a"}, {"label": "b"}]}],
    });
    let given = |question: &str, selected: Value| json!([{"tool_call_id": "c-1", "user_feedback_schema": [{"question": question, "selected_options": selected}]}]);
    let mut expected = stored["user_feedback_schema"].clone();
    expected[0]["selected_options"] = json!(["a"]);
    let added = json!({"answered": true, "user_feedback_schema": expected});
    check(stored.clone(), given("which?", json!(["a"])), &none(), added);
    refused(stored.clone(), given("who?", json!(["a"])), &none(), Wrong::Undeclared("who?".into()));
    let odd = Wrong::Malformed("`selected_options` must be a list of strings");
    refused(stored, given("which?", json!("a")), &none(), odd);
}

#[test]
fn results_come_for_external_tools_only() {
    let result = json!([{"tool_call_id": "c-1", "result": "delivered"}]);
    check(parcel(json!({})), result.clone(), &none(), json!({"result": "delivered"}));
    refused(parcel(json!({})), json!([]), &none(), Wrong::Unanswered("c-1".into()));
    refused(plain("c-1"), result.clone(), &none(), Wrong::Unanswered("c-1".into()));
    let marks = json!({"approval_type": "required", "approval_id": "a-1"});
    refused(parcel(marks.clone()), result.clone(), &row("pending", json!({})), Wrong::Pending);
    refused(parcel(marks.clone()), result.clone(), &row("rejected", json!({})), Wrong::Rejected);
    check(parcel(marks), result, &row("approved", json!({})), json!({"result": "delivered"}));
}

fn requirement(id: &str, call: Value, member: &str) -> Value {
    json!({"id": id, "member_run_id": member, "tool_execution": call})
}

#[test]
fn a_teams_requirements_are_decided_by_the_approvals_of_its_members() {
    let rows = row("approved", json!({"run_id": "m-1"}));
    let stored = requirement("q-1", guarded("c-1"), "m-1");
    let run = json!({"run_id": "r-1", "requirements": [stored]});
    let mut expected = stored.clone();
    expected["confirmation"] = json!(true);
    expected["tool_execution"]["confirmed"] = json!(true);
    let done = answered(Kind::Team, &run, &[], &rows);
    assert_eq!(done, Ok(Answered { list: json!([expected]), approvals: vec!["a-1".into()] }));

    let foreign = json!({"run_id": "r-1", "requirements": [requirement("q-1", guarded("c-1"), "m-2")]});
    assert_eq!(answered(Kind::Team, &foreign, &[], &rows), Err(Wrong::Pending));
}

#[test]
fn two_members_with_one_call_id_are_told_apart_by_their_requirements() {
    let run = json!({"run_id": "r-1", "requirements": [
        requirement("q-1", plain("c-1"), "m-1"), requirement("q-2", plain("c-1"), "m-2"),
    ]});
    let given =
        [json!({"id": "q-2", "confirmation": false}), json!({"id": "q-1", "tool_execution": {"confirmed": true}})];
    let done = answered(Kind::Team, &run, &given, &none()).unwrap().list;
    assert_eq!((&done[0]["confirmation"], &done[1]["confirmation"]), (&json!(true), &json!(false)));
    let swapped = [json!({"id": "q-1", "tool_execution": {"tool_call_id": "c-7", "confirmed": true}})];
    assert_eq!(answered(Kind::Team, &run, &swapped, &none()), Err(Wrong::Unknown("c-7".into())));
}

#[test]
fn a_workflow_answers_its_steps_and_their_executors() {
    let rows = row("approved", json!({"run_id": "e-1"}));
    let executor = json!({
        "step_id": "s-1", "step_name": "delete", "requires_executor_input": true, "executor_run_id": "e-1",
        "executor_requirements": [{"id": "q-1", "tool_execution": guarded("c-1")}],
    });
    let run = json!({"run_id": "r-1", "step_requirements": [executor]});
    let done = answered(Kind::Workflow, &run, &[], &rows).unwrap();
    assert_eq!(done.list[0]["executor_requirements"][0]["tool_execution"]["confirmed"], json!(true));
    assert_eq!(done.approvals, ["a-1"]);
    assert_eq!(answered(Kind::Workflow, &run, &[], &none()), Err(Wrong::Pending));

    let step = |more: Value| {
        let mut step = json!({"step_id": "s-1", "step_name": "route"});
        step.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        json!({"run_id": "r-1", "step_requirements": [step]})
    };
    let say = |more: Value| {
        let mut given = json!({"step_id": "s-1"});
        given.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        [given]
    };
    let confirm = step(json!({"requires_confirmation": true}));
    let done = answered(Kind::Workflow, &confirm, &say(json!({"confirmed": true, "step_input": {"x": 1}})), &none());
    assert_eq!(
        done.unwrap().list,
        json!([{"step_id": "s-1", "step_name": "route", "requires_confirmation": true, "confirmed": true}])
    );
    assert_eq!(answered(Kind::Workflow, &confirm, &[], &none()), Err(Wrong::Unanswered("route".into())));

    let route = step(json!({"requires_route_selection": true, "available_choices": ["a", "b"]}));
    let done = answered(Kind::Workflow, &route, &say(json!({"selected_choices": ["b"]})), &none()).unwrap();
    assert_eq!(done.list[0]["selected_choices"], json!(["b"]));
    let other = answered(Kind::Workflow, &route, &say(json!({"selected_choices": ["c"]})), &none());
    assert_eq!(other, Err(Wrong::Undeclared("c".into())));

    let fields = json!([{"name": "room", "value": null}]);
    let input = step(json!({"requires_user_input": true, "user_input_schema": fields}));
    let done = answered(Kind::Workflow, &input, &say(json!({"user_input": {"room": "blue"}})), &none()).unwrap();
    assert_eq!(done.list[0]["user_input"], json!({"room": "blue"}));
    let other = answered(Kind::Workflow, &input, &say(json!({"user_input": {"guests": 1}})), &none());
    assert_eq!(other, Err(Wrong::Undeclared("guests".into())));
}

#[test]
fn another_pause_of_the_same_run_is_another_pause() {
    let run = agent_run(&[guarded("c-1")]);
    let first = waiting::pause(Kind::Agent, &run);
    assert_eq!(waiting::pause(Kind::Agent, &run), first);
    let mut confirmed = run.clone();
    confirmed["tools"][0]["approval_id"] = json!("a-7");
    assert_eq!(waiting::pause(Kind::Agent, &confirmed), first, "an approval does not make it another pause");
    let mut later = run.clone();
    later["messages"] = json!([{}, {}]);
    assert_ne!(waiting::pause(Kind::Agent, &later), first);
    assert_ne!(waiting::pause(Kind::Agent, &agent_run(&[guarded("c-2")])), first);
}

#[tokio::test]
async fn a_run_is_continued_by_one_caller_and_a_pause_once() {
    let (continues, cluster) = (Continues::new(), "main".into());
    let (first, second) = (Pause::of("first"), Pause::of("second"));
    let mut claim = continues.claim(&cluster, "r-1").await.unwrap();
    assert!(claim.take(first).await.unwrap());
    assert_eq!(continues.claim(&cluster, "r-1").await.err(), Some(NotClaimed::Continuing));
    assert!(continues.claim(&cluster, "r-2").await.is_ok());
    drop(claim);
    // Nothing was sent: somebody else may.
    let mut claim = continues.claim(&cluster, "r-1").await.unwrap();
    assert!(claim.take(first).await.unwrap());
    claim.sending();
    claim.unsent();
    drop(claim);
    let mut claim = continues.claim(&cluster, "r-1").await.unwrap();
    assert!(claim.take(first).await.unwrap());
    claim.sending();
    drop(claim);
    let mut claim = continues.claim(&cluster, "r-1").await.unwrap();
    assert!(!claim.take(first).await.unwrap());
    assert!(claim.take(second).await.unwrap());
}

#[tokio::test]
async fn a_pause_is_continued_once_by_all_instances_over_a_store() {
    use futures_util::FutureExt as _;
    let store: Arc<dyn crate::store::Store> = Arc::new(crate::store::MemoryStore::new());
    // What is given back later is given back at once: this store never waits.
    let instance = || Continues::shared(Arc::clone(&store), Arc::new(|_, work| work.now_or_never().is_some()));
    let (here, there, cluster) = (instance(), instance(), Arc::from("main"));
    let pause = Pause::of("first");
    let mut claim = here.claim(&cluster, "r-1").await.unwrap();
    assert_eq!(there.claim(&cluster, "r-1").await.err(), Some(NotClaimed::Continuing));
    assert_eq!(claim.take(pause).await, Ok(true));
    drop(claim);
    let mut claim = there.claim(&cluster, "r-1").await.unwrap();
    assert_eq!(claim.take(pause).await, Ok(true), "nothing was sent: another instance may");
    claim.sending();
    drop(claim);
    let mut claim = here.claim(&cluster, "r-1").await.unwrap();
    assert_eq!(claim.take(pause).await, Ok(false), "another instance has sent it");
    assert_eq!(claim.take(Pause::of("second")).await, Ok(true));
}

fn json_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i32>().prop_map(Value::from),
        "[a-c]{0,3}".prop_map(Value::from),
    ];
    leaf.prop_recursive(2, 8, 3, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
            prop::collection::btree_map("[a-c]", inner, 0..3).prop_map(|map| json!(map)),
        ]
    })
}

/// Fields that a caller may send, with values that may or may not fit.
fn item() -> impl Strategy<Value = Value> {
    const NAMES: [&str; 12] = [
        "tool_call_id",
        "tool_name",
        "tool_args",
        "confirmed",
        "result",
        "answered",
        "requires_confirmation",
        "approval_type",
        "approval_id",
        "external_execution_required",
        "user_input_schema",
        "tool_execution",
    ];
    let value = prop_oneof![json_value(), Just(json!("c-1")), Just(json!("c-2")), Just(json!(true))];
    prop::collection::vec((prop::sample::select(NAMES.to_vec()), value), 0..8)
        .prop_map(|fields| Value::Object(fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()))
}

fn stored_tool() -> impl Strategy<Value = Value> {
    let id = prop::sample::select(vec!["c-1", "c-2", "c-3"]);
    (id, json_value(), any::<[bool; 4]>()).prop_map(|(id, args, [confirm, input, external, approval])| {
        let mut tool = json!({
            "tool_call_id": id, "tool_name": "t", "tool_args": args, "requires_confirmation": confirm,
            "requires_user_input": input, "external_execution_required": external, "result": null,
            "user_input_schema": [{"name": "a", "value": null}],
        });
        if approval {
            tool["approval_type"] = json!("required");
            tool["approval_id"] = json!("a-1");
        }
        tool
    })
}

proptest! {
    #[test]
    fn what_goes_upstream_is_what_was_stored(
        tools in prop::collection::vec(stored_tool(), 1..4),
        given in prop::collection::vec(item(), 0..4),
        status in prop::sample::select(vec!["approved", "rejected", "pending"]),
    ) {
        const ANSWERS: [&str; 5] = ["confirmed", "confirmation_note", "answered", "result", "user_input_schema"];
        let rows = row(status, json!({}));
        if let Ok(done) = answered(Kind::Agent, &agent_run(&tools), &given, &rows) {
            let out = done.list.as_array().unwrap();
            prop_assert_eq!(out.len(), tools.len());
            for (out, stored) in out.iter().zip(&tools) {
                let rest = |tool: &Value| {
                    let mut tool = tool.as_object().unwrap().clone();
                    tool.retain(|name, _| !ANSWERS.contains(&name.as_str()));
                    tool
                };
                prop_assert_eq!(rest(out), rest(stored));
                let guarded = stored.get("approval_type").is_some() && waiting::Needs::of(stored).any();
                if guarded && out["confirmed"] == json!(true) {
                    prop_assert_eq!(status, "approved");
                }
                prop_assert!(!guarded || status != "pending");
            }
        }
    }
}
