//! Owns `[tenants.*]`: which tenants there are, their plans and the clusters that they may use.
//! Does not read clusters (`clusters` resolves the names).

use std::collections::BTreeMap;

use crate::principal::TenantId;
use crate::quota::{self, Instead, Limits, Plan};

use super::reader::{At, Table, Value};
use super::words::{nearest, quoted};
use super::{limits, plans};

/// The tenants, as far as they could be read.
pub(super) struct Read {
    pub(super) tenants: BTreeMap<TenantId, Tenant>,
    /// Whether the file has a tenant whose name was refused: then unknown names are no finding.
    broken: bool,
}

/// One tenant.
pub(super) struct Tenant {
    plan: String,
    /// Limits that replace those of the plan.
    instead: Instead,
    /// Clusters it may use, default first; `None` means every cluster.
    pub(super) clusters: Option<Vec<At<String>>>,
}

pub(super) fn read(root: &Table<'_>, plans: &plans::Read) -> Read {
    let mut read = Read { tenants: BTreeMap::new(), broken: false };
    let Some(table) = root.section("tenants") else { return read };
    for (name, value) in table.entries() {
        let tenant = value.table().map(|table| tenant(root, table, name.at, plans));
        match TenantId::new(name.value) {
            Ok(id) => {
                read.broken |= tenant.is_none();
                read.tenants.extend(tenant.map(|tenant| (id, tenant)));
            }
            Err(bad) => {
                read.broken = true;
                root.source.problem(name.at, bad.to_string(), None);
            }
        }
    }
    read
}

fn tenant(root: &Table<'_>, table: Table<'_>, at: usize, plans: &plans::Read) -> Tenant {
    let plan = match table.get("plan") {
        Some(value) => value.string("the name of a plan").map(|name| value.at(name.to_owned())),
        None => plans.default_plan.clone().or_else(|| {
            let help = "write `plan = \"…\"` here, or `default_plan` in `[quota]`".to_owned();
            root.source.problem(at, format!("{} has no plan", table.label()), Some(help));
            None
        }),
    };
    if let (Some(plan), Some(_)) = (&plan, table.get("plan")) {
        plans.known(root, plan, &format!("`plan` in {}", table.label()));
    }
    let clusters = table.get("clusters").and_then(|v| clusters(&v));
    let instead = limits::read(&table);
    keepable(&table, at, &instead, plans);
    table.close();
    Tenant { plan: plan.map(|plan| plan.value).unwrap_or_default(), instead, clusters }
}

/// Reports limits of a tenant's own that cannot be kept, or not be counted.
fn keepable(table: &Table<'_>, at: usize, instead: &Instead, plans: &plans::Read) {
    let limits = limits::whole(instead.clone(), Limits::default());
    let alone = BTreeMap::from([(String::new(), Plan { limits, ..Plan::default() })]);
    if let Err(error) = (quota::Settings { plans: alone, ..quota::Settings::default() }).check() {
        table.source.problem(at, format!("{} cannot be kept: {}", table.label(), limits::reasons(error)), None);
    }
    if plans.prices.is_empty() && instead.money.as_ref().is_some_and(|budgets| !budgets.is_empty()) {
        let help = "write `[prices.\"the model\"]` and below it `input = \"2.50\"` and `output = \"10.00\"`".to_owned();
        table.source.problem(at, format!("{} limits money, but no model has a price", table.label()), Some(help));
    }
}

fn clusters(value: &Value<'_>) -> Option<Vec<At<String>>> {
    let names = value.strings("the name of a cluster")?;
    if names.is_empty() {
        let help = "leave `clusters` out to allow every cluster".to_owned();
        return value.problem("is empty: the tenant could call nothing", Some(help));
    }
    Some(names.into_iter().map(|name| At { value: name.value.to_owned(), at: name.at }).collect())
}

// === impl Read ===

impl Read {
    /// A tenant that `[tenants]` must have: reports a bad or unknown name.
    pub(super) fn known(&self, root: &Table<'_>, name: &At<&str>, label: &str) -> Option<TenantId> {
        let id = self.plausible(root, name)?;
        if self.tenants.contains_key(&id) || self.broken {
            return Some(id);
        }
        let names = || self.tenants.keys().map(TenantId::as_str);
        let help = nearest(name.value, names()).unwrap_or_else(|| match self.tenants.is_empty() {
            true => format!("add a table `[tenants.{}]`", name.value),
            false => format!("the tenants are {}", quoted(names())),
        });
        root.source.problem(name.at, format!("{label} names the unknown tenant `{}`", name.value), Some(help));
        None
    }

    /// A tenant that need not be in `[tenants]`: reports a bad name only.
    pub(super) fn plausible(&self, root: &Table<'_>, name: &At<&str>) -> Option<TenantId> {
        TenantId::new(name.value).map_err(|bad| root.source.problem(name.at, bad.to_string(), None)).ok()
    }

    /// The Settings of `quota`.
    pub(super) fn quota(self, plans: plans::Read) -> quota::Settings {
        let quota = |tenant: Tenant| quota::TenantQuota { plan: tenant.plan, instead: tenant.instead };
        let tenants = self.tenants.into_iter().map(|(id, tenant)| (id, quota(tenant)));
        quota::Settings {
            tenants: tenants.collect(),
            plans: plans.plans,
            default_plan: plans.default_plan.map(|name| name.value),
            flood: plans.flood,
            prices: plans.prices,
            legacy_headers: plans.legacy_headers,
        }
    }
}
