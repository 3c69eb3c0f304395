//! Owns what of a list a caller may see: items by policy, rows by tenant, knowledge by its mark.
//! Does not fetch (`forward`).
//! Invariant: a list that cannot be read as the catalogue says is refused, never passed on unfiltered.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use super::admit::Admitted;
use super::call::{Answer, AnswerBody};
use super::ground::Ground;
use super::knowledge;
use super::refusal::{Code, Refusal, Stage};
use super::snapshot::Snapshot;
use super::strip::UserStripper;
use super::view::View;
use crate::agentos::{ListScope, Mark, Operation};
use crate::cache::Stored;
use crate::cluster::{Cluster, Knowledge};
use crate::principal::Principal;

/// How the reply of an operation is narrowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rule {
    /// Not at all.
    Pass,
    /// Each item of a top-level array, by policy.
    PerItem,
    /// The lists inside an object, each item by policy.
    Within,
    /// Rows whose user is of the caller's tenant.
    TenantRows,
    /// Content rows with the tenant's mark.
    MarkedRows,
    /// An object without what this field mixes.
    Emptied(&'static str),
}

/// Who looks, through which door, at which cluster.
pub(super) struct Eye<'a> {
    snapshot: &'a Snapshot,
    principal: &'a Principal,
    cluster: &'a Arc<Cluster>,
    operation: &'static Operation,
    view: View,
}

#[derive(Deserialize)]
struct Item {
    id: Option<String>,
}

/// Says whether the rows of a list carry the user that a tenant-wide view is filtered by.
pub(super) fn can_be_tenant_wide(operation: &Operation) -> bool {
    operation.list.is_some_and(|list| list.scope == ListScope::Tenant)
}

/// Says whether the items of a list decide for themselves who sees them.
pub(super) fn decides_per_item(operation: &Operation) -> bool {
    operation.list.is_some_and(|list| list.scope == ListScope::PerItem)
}

/// How the reply is narrowed.
pub(super) fn rule(operation: &Operation, cluster: &Cluster, tenant_wide: bool) -> Rule {
    if !operation.lists_within.is_empty() {
        return Rule::Within;
    }
    let shares_knowledge = matches!(cluster.settings.knowledge, Knowledge::Metadata(_));
    if let Some(Mark::Mixed(field)) = operation.mark.filter(|_| shares_knowledge) {
        return Rule::Emptied(field);
    }
    match operation.list {
        Some(list) if list.scope == ListScope::PerItem => Rule::PerItem,
        Some(list) if list.scope == ListScope::Tenant && tenant_wide => Rule::TenantRows,
        Some(list) if list.scope == ListScope::Marked && shares_knowledge => Rule::MarkedRows,
        Some(_) | None => Rule::Pass,
    }
}

/// The answer to a call from a kept reply, filtered for this caller.
///
/// # Errors
/// `forbidden` when nothing of the list may be seen, `upstream_invalid` when it cannot be read.
pub(super) fn cached(ground: &Ground<'_>, stored: &Stored, mut headers: HeaderMap) -> Result<Answer, Refusal> {
    let body = Eye::of_ground(ground).narrow(stored.body.clone())?;
    headers.insert(header::AGE, stored.age_header());
    headers.insert("cache-status", stored.hit().header());
    if let Some(content_type) = &stored.content_type {
        headers.insert(header::CONTENT_TYPE, content_type.clone());
    }
    let status = StatusCode::from_u16(stored.status).unwrap_or(StatusCode::OK);
    Ok(Answer { status, headers, body: AnswerBody::full(body), refused: None })
}

/// The answer to a call whose reply the door knew, filtered for this caller.
///
/// # Errors
/// Those of [`Eye::narrow`].
pub(super) fn known(ground: &Ground<'_>, body: Bytes, mut headers: HeaderMap) -> Result<Answer, Refusal> {
    let body = Eye::of_ground(ground).narrow(body)?;
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Ok(Answer { status: StatusCode::OK, headers, body: AnswerBody::full(body), refused: None })
}

// === impl Eye ===

impl<'a> Eye<'a> {
    pub(super) fn of_ground(ground: &'a Ground<'_>) -> Self {
        let (snapshot, cluster) = (&**ground.snapshot, ground.cluster);
        Self {
            snapshot,
            principal: ground.principal,
            cluster,
            operation: ground.operation(),
            view: ground.view.clone(),
        }
    }

    pub(super) fn of_admitted(admitted: &'a Admitted) -> Self {
        Self {
            snapshot: &admitted.snapshot,
            principal: &admitted.principal,
            cluster: &admitted.cluster,
            operation: admitted.operation(),
            view: admitted.view.clone(),
        }
    }

    /// Narrows a whole reply and takes the tenant prefix out of it.
    ///
    /// # Errors
    /// `forbidden` when the caller may see no item of a list, `upstream_invalid` when it cannot be read.
    pub(super) fn narrow(&self, body: Bytes) -> Result<Bytes, Refusal> {
        let body = match rule(self.operation, self.cluster, false) {
            Rule::PerItem => self.items(body)?,
            Rule::Within => self.within(&body)?,
            Rule::Emptied(field) => emptied(field, &body)?,
            // Rows are narrowed while they are paged (`forward::rows`).
            Rule::Pass | Rule::TenantRows | Rule::MarkedRows => body,
        };
        Ok(UserStripper::new(self.cluster, &self.principal.tenant).whole(body))
    }

    /// Says whether a row of a tenant-wide list may be shown.
    pub(super) fn shows_row(&self, rule: Rule, row: &Value) -> bool {
        match rule {
            Rule::TenantRows => {
                let user = row.get("user_id").and_then(Value::as_str);
                user.is_some_and(|user| self.cluster.caller_of(user, &self.principal.tenant).is_some())
            }
            Rule::MarkedRows => match &self.cluster.settings.knowledge {
                Knowledge::Metadata(key) => knowledge::belongs(row, key, self.principal.tenant.as_str()),
                Knowledge::Exclusive | Knowledge::Unset => true,
            },
            Rule::Pass | Rule::PerItem | Rule::Within | Rule::Emptied(_) => true,
        }
    }

    fn items(&self, body: Bytes) -> Result<Bytes, Refusal> {
        let items: Vec<&RawValue> = serde_json::from_slice(&body).map_err(|e| unreadable(&e))?;
        let shown: Vec<&RawValue> =
            items.iter().copied().filter(|item| self.shows_item(self.operation, item)).collect();
        if shown.len() == items.len() {
            return Ok(body);
        }
        if shown.is_empty() {
            return Err(Refusal::new(Code::Forbidden, Stage::Policy).because("no policy permits any item of the list"));
        }
        Ok(serde_json::to_vec(&shown).map_err(|e| unreadable(&e))?.into())
    }

    fn within(&self, body: &[u8]) -> Result<Bytes, Refusal> {
        let mut object: serde_json::Map<String, Value> = serde_json::from_slice(body).map_err(|e| unreadable(&e))?;
        for (field, operation) in self.operation.lists_within {
            let operation = self.snapshot.catalog.get(operation).ok_or_else(|| {
                Refusal::new(Code::Internal, Stage::Forward)
                    .because(format!("no row `{operation}` decides about `{field}`"))
            })?;
            match object.get_mut(*field) {
                Some(Value::Array(items)) => items.retain(|item| {
                    item.get("id").and_then(Value::as_str).is_some_and(|id| self.may_see(operation, id))
                }),
                Some(other) => *other = Value::Array(Vec::new()),
                None => {}
            }
        }
        Ok(serde_json::to_vec(&object).map_err(|e| unreadable(&e))?.into())
    }

    fn shows_item(&self, operation: &'static Operation, item: &RawValue) -> bool {
        let id = serde_json::from_str::<Item>(item.get()).ok().and_then(|item| item.id);
        id.is_some_and(|id| self.may_see(operation, &id))
    }

    fn may_see(&self, operation: &'static Operation, id: &str) -> bool {
        self.view.may(&self.snapshot.policies, self.principal, self.cluster, operation, id)
    }
}

/// An object with an empty list in the place of a field.
fn emptied(field: &str, body: &[u8]) -> Result<Bytes, Refusal> {
    let mut object: serde_json::Map<String, Value> = serde_json::from_slice(body).map_err(|e| unreadable(&e))?;
    if let Some(value) = object.get_mut(field) {
        *value = Value::Array(Vec::new());
    }
    Ok(serde_json::to_vec(&object).map_err(|e| unreadable(&e))?.into())
}

fn unreadable(error: &serde_json::Error) -> Refusal {
    Refusal::new(Code::UpstreamInvalid, Stage::Forward).because(format!("cannot read a list: {error}"))
}
