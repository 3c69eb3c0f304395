//! Owns the guard of `continue`: a paused run goes on once, with the calls that are stored, as its approvals say.
//! Does not resolve approvals (an operation of AgentOS) and does not say who may continue (`policy`).
//! Invariants: a tool that needs an approval is confirmed only by an approved row; arguments never come from the
//! caller; while a run is being continued, and after, the same pause is not continued again; a run whose tools had an
//! approval is not run a second time unless policy names that right.
//!
//! AgentOS does none of this: it executes a rejected tool when the form says `confirmed`, runs arguments that were
//! changed after the approval, and continues as often as it is asked.

mod answers;
mod claims;
mod pairing;
mod rulings;
mod waiting;

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::Value;

use self::answers::Wrong;
use self::claims::Claim;
pub(super) use self::claims::Continues;
use self::claims::NotClaimed;
use self::rulings::Rows;
use super::body::Payload;
use super::exchange::Exchange;
use super::explain;
use super::facts::{Facts, look_up, not_found};
use super::form::Form;
use super::ground::Ground;
use super::refusal::{Code, Refusal, Stage};
use crate::agentos::{Kind, OnRun, RunStatus, rows as at};
use crate::policy::Decision;

/// Most approvals of one run that are read: the most that AgentOS puts on a page.
const ROWS_MAX: usize = 1000;
/// Most runs (members of a team, steps of a workflow) whose approvals are read for one continuation.
const RUNS_MAX: usize = 16;

/// How approvals are read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ApprovalSettings {
    /// How long an approval lets its run go on, counted from the decision. `None`: for ever.
    pub valid_for: Option<Duration>,
}

/// What a continuation that was let through has to carry.
pub(super) struct Continuing {
    /// Held until the exchange ends.
    claim: Option<Claim>,
    /// Approvals that decided, for the audit log.
    pub(super) approvals: Vec<String>,
    /// The paused run that goes on; `None` where another one begins.
    pub(super) stored: Option<Box<str>>,
}

/// What a request to continue asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Deed {
    /// A paused run goes on.
    Answer,
    /// A finished run goes on as another run.
    Fork,
    /// A finished run is done again.
    Regenerate,
}

/// How a pause is taken: for good, or only looked at.
enum Taking<'a> {
    Claimed(&'a mut Claim),
    Look { continues: &'a Continues, cluster: &'a Arc<str>, run_id: &'a str },
}

// === impl Taking ===

impl Taking<'_> {
    /// Says whether the pause is still to be continued.
    async fn take(self, pause: claims::Pause) -> Result<bool, Refusal> {
        match self {
            Self::Claimed(claim) => claim.take(pause).await.map_err(not_claimed),
            Self::Look { continues, cluster, run_id } => Ok(!continues.was_continued(cluster, run_id, pause)),
        }
    }
}

// === impl Continuing ===

impl Continuing {
    /// From here on AgentOS may have begun to continue the run.
    pub(super) fn sending(&mut self) {
        if let Some(claim) = &mut self.claim {
            claim.sending();
        }
    }

    /// AgentOS did not begin: it was not reached, or refused.
    pub(super) fn unsent(&mut self) {
        if let Some(claim) = &mut self.claim {
            claim.unsent();
        }
    }
}

fn not_claimed(not: NotClaimed) -> Refusal {
    match not {
        NotClaimed::Continuing => refuse(Code::AlreadyContinued).saying("this run is being continued right now"),
        NotClaimed::Full => refuse(Code::Overloaded).because("too many runs are being continued"),
        NotClaimed::Lost => refuse(Code::Overloaded).because("the store of claims is out of reach"),
    }
}

/// Guards a call that continues a run, and rewrites what it will send. `None` for every other operation.
///
/// # Errors
/// 409 `already_continued`, `approval_pending`, `approval_rejected`; 404 for a run that is not there; 403 for a second
/// execution; 400 when the caller's list does not fit the stored one.
///
/// # Cancel safety
/// Safe: the claim is given back on drop.
pub(super) async fn guard(
    ground: &Ground<'_>,
    facts: &Facts,
    payload: &mut Payload,
) -> Result<Option<Continuing>, Refusal> {
    if !ground.operation().does(OnRun::Continue) {
        return Ok(None);
    }
    let kind = component_kind(ground)?;
    // Boxed: few calls continue a run, and every call would carry its state.
    Box::pin(claimed(ground, facts, payload, kind)).await.map(Some)
}

async fn claimed(ground: &Ground<'_>, facts: &Facts, payload: &mut Payload, kind: Kind) -> Result<Continuing, Refusal> {
    let (form, run_id) = asked(facts, payload)?;
    let deed = Deed::of(form)?;
    let claim = ground.gateway.continues.claim(&ground.cluster.settings.name, run_id).await;
    let mut claim = claim.map_err(not_claimed)?;
    let run = stored(ground, facts, run_id).await?;
    let approvals = weigh(ground, facts, form, (kind, deed), &run, Taking::Claimed(&mut claim)).await?;
    let stored = (deed == Deed::Answer).then(|| run.to_string().into_boxed_str());
    Ok(Continuing { claim: (deed == Deed::Answer).then_some(claim), approvals, stored })
}

/// Says what `guard` would, without claiming the run.
///
/// # Errors
/// As `guard`.
///
/// # Cancel safety
/// Safe: it reads only.
pub(super) async fn rehearse(
    ground: &Ground<'_>,
    facts: &Facts,
    payload: &mut Payload,
    exchange: &mut Exchange,
) -> Result<(), Refusal> {
    if !ground.operation().does(OnRun::Continue) {
        return Ok(());
    }
    let kind = component_kind(ground)?;
    if facts.run.is_none() {
        explain::approvals_unknown(exchange);
        return Ok(());
    }
    let (form, run_id) = asked(facts, payload)?;
    let deed = Deed::of(form)?;
    let (cluster, continues) = (&ground.cluster.settings.name, &ground.gateway.continues);
    if continues.is_claimed(cluster, run_id) {
        return Err(refuse(Code::AlreadyContinued).saying("this run is being continued right now"));
    }
    let run = match stored(ground, facts, run_id).await {
        Err(refusal) if explain::is_out_of_reach(refusal.code) => {
            explain::approvals_unknown(exchange);
            return Ok(());
        }
        run => run?,
    };
    let look = Taking::Look { continues, cluster, run_id };
    let weighed = weigh(ground, facts, form, (kind, deed), &run, look).await;
    if weighed.as_ref().is_err_and(|refusal| refusal.stage == Stage::Policy) {
        let rows = deed.rights().into_iter().filter_map(|right| ground.snapshot.catalog.on_run(kind, right));
        rows.for_each(|row| explain::right(ground, row, facts, exchange));
    }
    explain::approvals(&weighed?, exchange);
    Ok(())
}

fn asked<'a>(facts: &'a Facts, payload: &'a mut Payload) -> Result<(&'a mut Form, &'a str), Refusal> {
    match (payload, facts.run.as_deref()) {
        (Payload::Form(form), Some(run_id)) => Ok((form, run_id)),
        (Payload::Form(_) | Payload::None | Payload::Json(_) | Payload::Raw(_), _) => {
            Err(refuse(Code::FormMalformed).saying("a run is continued with a form"))
        }
    }
}

/// Judges a deed on a stored run, and writes the answers into the form; names the approvals that decided.
async fn weigh(
    ground: &Ground<'_>,
    facts: &Facts,
    form: &mut Form,
    (kind, deed): (Kind, Deed),
    run: &Value,
    taking: Taking<'_>,
) -> Result<Vec<String>, Refusal> {
    match (deed, RunStatus::of(run)) {
        (Deed::Answer, Some(RunStatus::Paused)) => {
            if !taking.take(waiting::pause(kind, run)).await? {
                return Err(refuse(Code::AlreadyContinued));
            }
            answer(ground, form, kind, run, facts.run.as_deref().unwrap_or_default()).await
        }
        (Deed::Answer, _) => Err(refuse(Code::AlreadyContinued).saying("this run does not wait to be continued")),
        // Its copy would wait for the same answers, and take the same approvals.
        (Deed::Fork | Deed::Regenerate, Some(RunStatus::Paused)) => {
            Err(refuse(Code::Forbidden).saying("a paused run can neither be forked nor regenerated: answer it first"))
        }
        (Deed::Fork | Deed::Regenerate, _) => {
            again(ground, facts, form, (kind, deed), run).await?;
            Ok(Vec::new())
        }
    }
}

/// The kind of the component whose run goes on: the catalogue has no row that continues one and does not name it.
fn component_kind(ground: &Ground<'_>) -> Result<Kind, Refusal> {
    ground.matched.component().map(|(kind, _)| kind).ok_or_else(not_found)
}

async fn stored(ground: &Ground<'_>, facts: &Facts, run_id: &str) -> Result<Value, Refusal> {
    let Some(session) = facts.session.as_deref() else {
        return Err(refuse(Code::FormMalformed).saying("`session_id` is needed to continue a run"));
    };
    let Some((kind, component)) = ground.matched.component() else { return Err(not_found()) };
    let run = look_up(ground, &at::run(kind, component, run_id, session)).await?.ok_or_else(not_found)?;
    // AgentOS 2.x does not check that the run is the component's own.
    let own = format!("{kind}_id");
    match waiting::string(&run, &own) {
        Some(id) if id != component => Err(not_found()),
        Some(_) | None => Ok(run),
    }
}

/// Writes the answers into the form; names the approvals that decided.
async fn answer(
    ground: &Ground<'_>,
    form: &mut Form,
    kind: Kind,
    run: &Value,
    run_id: &str,
) -> Result<Vec<String>, Refusal> {
    let field = waiting::field(kind);
    let given = given(form, field)?;
    let rows = if waiting::mentions_approval(run) { rows(ground, kind, run, run_id).await? } else { Rows::default() };
    let answered = answers::answered(kind, run, &given, &rows).map_err(wrong)?;
    form.set(field, &answered.list.to_string());
    // Answering is all that this is; AgentOS reads these as wishes for more.
    for name in ["fork", "regenerate", "replace_original", "continue_from"] {
        form.remove(name);
    }
    Ok(answered.approvals)
}

/// Whether a finished run may be run again: a right of its own, and another one where an approval was involved.
async fn again(
    ground: &Ground<'_>,
    facts: &Facts,
    form: &Form,
    what: (Kind, Deed),
    run: &Value,
) -> Result<(), Refusal> {
    let (kind, deed) = what;
    if form.text(waiting::field(kind)).is_some_and(|list| !list.is_empty()) {
        return Err(super::body::field_not_allowed(waiting::field(kind)));
    }
    let [once, repeated] = deed.rights();
    permit(ground, facts, kind, once)?;
    let run_id = facts.run.as_deref().unwrap_or_default();
    let rows = rows(ground, kind, run, run_id).await?;
    if waiting::mentions_approval(run) || rows.any_of(&runs(kind, run, run_id)) {
        permit(ground, facts, kind, repeated)?;
    }
    Ok(())
}

fn permit(ground: &Ground<'_>, facts: &Facts, kind: Kind, right: OnRun) -> Result<(), Refusal> {
    let forbidden = || Refusal::new(Code::Forbidden, Stage::Policy);
    let Some(operation) = ground.snapshot.catalog.on_run(kind, right) else {
        return Err(forbidden().because(format!("no action lets a run of a {kind} be run again")));
    };
    match ground.judge(operation, facts) {
        Decision::Allow { .. } => Ok(()),
        Decision::Deny { policies, .. } => {
            let named: Vec<&str> = policies.iter().map(|policy| &**policy).collect();
            Err(forbidden().because(format!("`{}` is denied by [{}]", operation.id, named.join(", "))))
        }
    }
}

/// The runs whose approvals may decide: the run itself, its members, the executors of its steps.
fn runs<'a>(kind: Kind, run: &'a Value, run_id: &'a str) -> Vec<&'a str> {
    let mut all = vec![run_id];
    for (_, runs) in waiting::tools(kind, waiting::items(run, waiting::field(kind))) {
        all.extend(runs);
    }
    all.sort_unstable();
    all.dedup();
    all
}

/// Reads the approvals of a run. What cannot be read whole is refused.
async fn rows(ground: &Ground<'_>, kind: Kind, run: &Value, run_id: &str) -> Result<Rows, Refusal> {
    let unreadable = |why: &str| refuse(Code::UpstreamInvalid).because(format!("approvals of a run: {why}"));
    let runs = runs(kind, run, run_id);
    if runs.len() > RUNS_MAX {
        return Err(unreadable("too many runs in one"));
    }
    let mut all = Vec::new();
    for run in runs {
        let Some(page) = look_up(ground, &at::approvals_of(run, ROWS_MAX)).await? else { continue };
        let page = rulings::page(&page).ok_or_else(|| unreadable("the list is malformed"))?;
        if page.len() >= ROWS_MAX {
            return Err(unreadable("too many"));
        }
        all.extend(page);
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(u64::MAX, |now| now.as_secs());
    Ok(Rows::new(all, now, ground.snapshot.approvals.valid_for))
}

/// The caller's list; an absent, empty or null one says nothing.
fn given(form: &Form, field: &'static str) -> Result<Vec<Value>, Refusal> {
    let malformed = || refuse(Code::FormMalformed).saying(format!("`{field}` must be a JSON list"));
    match form.text(field).map(str::trim).filter(|text| !text.is_empty()) {
        None => Ok(Vec::new()),
        Some(text) => match serde_json::from_str(text) {
            Ok(Value::Array(items)) => Ok(items),
            Ok(Value::Null) => Ok(Vec::new()),
            Ok(Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Object(_)) | Err(_) => Err(malformed()),
        },
    }
}

// === impl Deed ===

impl Deed {
    fn of(form: &Form) -> Result<Self, Refusal> {
        let regenerate = flag(form, "regenerate")?;
        let replace = form.text("replace_original").is_some_and(|text| !text.trim().is_empty());
        let from = form.text("continue_from").map_or("end", str::trim);
        Ok(if regenerate || replace {
            Self::Regenerate
        } else if flag(form, "fork")? || !matches!(from, "end" | "") {
            Self::Fork
        } else {
            Self::Answer
        })
    }

    /// The operations that policy decides about: the deed itself, and where an approval was involved.
    fn rights(self) -> [OnRun; 2] {
        let deed = match self {
            Self::Answer => OnRun::Continue,
            Self::Fork => OnRun::Fork,
            Self::Regenerate => OnRun::Regenerate,
        };
        [deed, OnRun::RepeatApproved]
    }
}

/// A form boolean as pydantic reads it. What it would refuse is refused here too: it must not count as `false`.
fn flag(form: &Form, name: &str) -> Result<bool, Refusal> {
    let Some(text) = form.text(name) else { return Ok(false) };
    match text.trim().to_ascii_lowercase().as_str() {
        "" | "false" | "0" | "off" | "no" | "n" | "f" => Ok(false),
        "true" | "1" | "on" | "yes" | "y" | "t" => Ok(true),
        _ => Err(refuse(Code::FormMalformed).saying(format!("`{name}` must be true or false"))),
    }
}

fn refuse(code: Code) -> Refusal {
    Refusal::new(code, Stage::Facts)
}

/// Ids come from the caller or from its own run; they are cut like field names.
fn wrong(wrong: Wrong) -> Refusal {
    let shown = super::body::shown;
    match wrong {
        Wrong::Pending => refuse(Code::ApprovalPending),
        Wrong::Rejected => refuse(Code::ApprovalRejected),
        Wrong::Unknown(id) => {
            refuse(Code::FieldNotAllowed).saying(format!("the run does not wait for `{}`", shown(&id)))
        }
        Wrong::Ambiguous(id) => refuse(Code::FieldDuplicated)
            .saying(format!("`{}` stands for several calls: send all of them in their order, or one", shown(&id))),
        Wrong::Changed(id) => {
            refuse(Code::FieldNotAllowed).saying(format!("what `{}` was paused with cannot be changed", shown(&id)))
        }
        Wrong::Undeclared(name) => {
            refuse(Code::FieldNotAllowed).saying(format!("`{}` was not asked for", shown(&name)))
        }
        Wrong::Unanswered(id) => {
            refuse(Code::FormMalformed).saying(format!("`{}` still waits for an answer", shown(&id)))
        }
        Wrong::Malformed(why) => refuse(Code::FormMalformed).saying(why),
    }
}
