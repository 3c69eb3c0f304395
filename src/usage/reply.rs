//! Owns what a run reply (JSON) used: an agent's metrics, a team's leader and members, a workflow's
//! steps. Does not read streams (`meter`). Walks at most `DEPTH_MAX` levels of nested runs.

use std::collections::HashMap;

use super::node::{Field, Node};
use super::record::UsageRecord;

/// Deepest nesting of runs that is walked; deeper ones make the record incomplete.
const DEPTH_MAX: usize = 16;

/// Says which runs are counted already.
pub(super) type Counted<'s> = &'s dyn Fn(&str) -> bool;

/// Sums what a run and everything in it used, except runs that are counted already.
pub(super) fn run_usage(run: &Node<'_>, counted: Counted<'_>) -> UsageRecord {
    sum_run(run, counted, DEPTH_MAX)
}

/// Sums the members of a team, except runs that are counted already.
pub(super) fn members_usage(run: &Node<'_>, counted: Counted<'_>) -> UsageRecord {
    sum_runs(run.member_responses, counted, DEPTH_MAX)
}

/// Sums the steps of a workflow, except runs that are counted already.
///
/// AgentOS reports steps twice: the runs that executed them (with members of teams) and the results
/// (which alone are there when runs are not kept). The one that knows more is taken.
pub(super) fn steps_usage(run: &Node<'_>, counted: Counted<'_>) -> UsageRecord {
    sum_workflow(run, counted, DEPTH_MAX)
}

/// Sums what one `metrics` object reports of its own run; `model` names what has no details.
fn metrics_usage(metrics: Field<'_>, model: Option<&str>) -> UsageRecord {
    let mut record = UsageRecord::default();
    let Some(metrics) = metrics.node() else { return record };
    for (_, entries) in metrics.details.fields() {
        add_entries(&mut record, entries);
    }
    // Totals cover the details; whatever they know beyond them belongs to the run's model.
    let input = metrics.input_tokens.count().saturating_sub(record.input_tokens);
    let output = metrics.output_tokens.count().saturating_sub(record.output_tokens);
    record.add(model, input, output);
    record
}

/// Sums the model calls of a run that AgentOS streams no event for: memory, session summary,
/// reasoning and the like. They stand in the details of the run's last event.
pub(super) fn silent_usage(metrics: Field<'_>) -> UsageRecord {
    let mut record = UsageRecord::default();
    let Some(metrics) = metrics.node() else { return record };
    for (role, entries) in metrics.details.fields() {
        if !matches!(role.as_str(), "model" | "parser_model" | "output_model") {
            add_entries(&mut record, entries);
        }
    }
    record
}

fn add_entries(record: &mut UsageRecord, entries: Field<'_>) {
    for entry in entries.nodes() {
        record.add(entry.id.text().as_deref(), entry.input_tokens.count(), entry.output_tokens.count());
    }
}

fn sum_run(run: &Node<'_>, counted: Counted<'_>, depth: usize) -> UsageRecord {
    let mut record = UsageRecord::default();
    if run.run_id.text().is_none_or(|id| !counted(&id)) {
        record.merge(&metrics_usage(run.metrics, run.model.text().as_deref()));
    }
    record.merge(&sum_runs(run.member_responses, counted, depth));
    record.merge(&sum_workflow(run, counted, depth));
    record.incomplete |= delegations(run) > run.member_responses.nodes().count();
    record
}

/// A workflow of 3.x that went on after a pause lists the run that had paused twice, the second time as it ended: of
/// runs of one id the one that knows more counts.
fn sum_runs(runs: Field<'_>, counted: Counted<'_>, depth: usize) -> UsageRecord {
    let mut record = UsageRecord::default();
    let (mut sums, mut places) = (Vec::<UsageRecord>::new(), HashMap::new());
    for run in runs.nodes() {
        if depth == 0 {
            record.incomplete = true;
            break;
        }
        let sum = sum_run(&run, counted, depth - 1);
        let place = run.run_id.text().map_or(sums.len(), |id| *places.entry(id).or_insert(sums.len()));
        match sums.get_mut(place) {
            Some(known) if sum.tokens() >= known.tokens() => *known = sum,
            Some(_) => {}
            None => sums.push(sum),
        }
    }
    sums.iter().for_each(|sum| record.merge(sum));
    record
}

fn sum_workflow(run: &Node<'_>, counted: Counted<'_>, depth: usize) -> UsageRecord {
    let mut runs = sum_runs(run.step_executor_runs, counted, depth);
    if let Some(agent) = run.workflow_agent_run.node().filter(|_| depth > 0) {
        runs.merge(&sum_run(&agent, counted, depth - 1));
    }
    let results = sum_steps(run.step_results, counted, depth);
    if results.tokens() > runs.tokens() { results } else { runs }
}

fn sum_steps(steps: Field<'_>, counted: Counted<'_>, depth: usize) -> UsageRecord {
    let mut record = UsageRecord::default();
    for step in steps.nodes() {
        if step.step_run_id.text().is_some_and(|id| counted(&id)) {
            continue;
        }
        // A step that holds steps reports their sum as its own.
        let inner = if depth > 0 { sum_steps(step.steps, counted, depth - 1) } else { UsageRecord::default() };
        let own = metrics_usage(step.metrics, None);
        record.merge(if inner.tokens() > 0 { &inner } else { &own });
    }
    record
}

/// How often a team's leader handed work to members.
fn delegations(run: &Node<'_>) -> usize {
    let names = run.tools.nodes().filter_map(|tool| tool.tool_name.text());
    names.filter(|name| name.starts_with("delegate_task_to_member")).count()
}
