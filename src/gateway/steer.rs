//! Owns what operators see and steer of quotas: shown, corrected, exported.
//! Does not check who asks (`admin` does) and does not speak HTTP.
//! Invariant: a correction is logged with what it changed.

use serde_json::{Value, json};

use super::path::Gateway;
use super::refusal::limit_json;
use crate::principal::TenantId;
use crate::quota::{Correct, NoPlan, day_of, day_text};

/// Longest range of an export, in days.
const EXPORT_DAYS_MAX: u32 = 400;

/// Why an operator's wish is not met.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unsteerable {
    /// There is no such tenant, or it has no plan.
    #[error("{0}")]
    NotFound(String),
    /// The wish makes no sense.
    #[error("{0}")]
    Bad(String),
    /// The store does not answer.
    #[error("{0}")]
    Store(String),
}

/// Usage of one agent with one model on one day.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct UsageLine {
    /// `YYYY-MM-DD`, UTC.
    pub day: String,
    /// Tenant.
    pub tenant: String,
    /// Cluster, kind and id of the component.
    pub agent: String,
    /// Model, or `estimated` for tokens that were charged and not reported.
    pub model: String,
    /// Runs that used the model.
    pub runs: u64,
    /// Input tokens.
    pub input_tokens: u64,
    /// Output tokens.
    pub output_tokens: u64,
    /// Price in millionths of the currency.
    pub price_millionths: u64,
}

impl Gateway {
    /// A tenant's plan, limits and use; `plan` where its credentials choose one.
    ///
    /// # Errors
    /// [`Unsteerable`].
    pub async fn tenant_quota(&self, tenant: &str, plan: Option<&str>) -> Result<Value, Unsteerable> {
        let tenant = tenant_id(tenant)?;
        let shown = self.snapshot().quota.tenant(&tenant, plan).await.map_err(no_plan)?;
        Ok(json!({
            "tenant": shown.tenant.as_str(),
            "plan": &*shown.plan,
            "limits": shown.limits.iter().map(limit_json).collect::<Vec<_>>(),
            "runs_in_flight_here": shown.runs_in_flight,
            "instances": shown.instances,
            "counted": if shown.shared { "all instances" } else { "this instance" },
        }))
    }

    /// Corrects what a tenant has used; returns its limits afterwards.
    ///
    /// # Errors
    /// [`Unsteerable`].
    pub async fn correct_quota(
        &self,
        tenant: &str,
        plan: Option<&str>,
        correct: Correct,
    ) -> Result<Value, Unsteerable> {
        let id = tenant_id(tenant)?;
        let corrected = self.snapshot().quota.correct(&id, plan, correct).await.map_err(no_plan)?;
        corrected.map_err(|error| Unsteerable::Store(error.to_string()))?;
        tracing::info!(tenant, correction = ?correct, "quota corrected by an operator");
        self.tenant_quota(tenant, plan).await
    }

    /// Usage per day, tenant, agent and model; `from` and `to` are `YYYY-MM-DD`, by default this month so far.
    ///
    /// # Errors
    /// [`Unsteerable`].
    pub async fn usage_lines(
        &self,
        tenant: Option<&str>,
        from: Option<&str>,
        to: Option<&str>,
    ) -> Result<Vec<UsageLine>, Unsteerable> {
        let snapshot = self.snapshot();
        let tenant = tenant.map(tenant_id).transpose()?;
        let day = |text: &str| {
            day_of(text).ok_or_else(|| Unsteerable::Bad(format!("`{text}` is no day such as `2027-01-31`")))
        };
        let today = snapshot.quota.today();
        let to = to.map_or(Ok(today), day)?;
        let month = day_text(to).get(..8).and_then(|month| day_of(&format!("{month}01")));
        let from = from.map_or(Ok(month.unwrap_or(to)), day)?;
        if from > to || to - from >= EXPORT_DAYS_MAX {
            return Err(Unsteerable::Bad(format!("the range must be 1 to {EXPORT_DAYS_MAX} days")));
        }
        let rows = snapshot.quota.export(tenant.as_ref(), from, to).await;
        let rows = rows.map_err(|error| Unsteerable::Store(error.to_string()))?;
        let line = |row: crate::store::UsageRow| UsageLine {
            day: day_text(row.day),
            tenant: row.tenant,
            agent: row.agent,
            model: row.model,
            runs: row.runs,
            input_tokens: row.input,
            output_tokens: row.output,
            price_millionths: row.micros,
        };
        Ok(rows.into_iter().map(line).collect())
    }
}

fn tenant_id(tenant: &str) -> Result<TenantId, Unsteerable> {
    TenantId::new(tenant).map_err(|bad| Unsteerable::Bad(bad.to_string()))
}

fn no_plan(no_plan: NoPlan) -> Unsteerable {
    Unsteerable::NotFound(no_plan.to_string())
}
