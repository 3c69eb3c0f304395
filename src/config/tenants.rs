//! Owns `[tenants.*]`: which tenants there are, their plans and the clusters that they may use.
//! Does not read clusters (`clusters` resolves the names).

use std::collections::BTreeMap;

use crate::principal::TenantId;
use crate::quota;

use super::plans;
use super::reader::{At, Table, Value};
use super::words::{nearest, quoted};

/// The tenants, as far as they could be read.
pub(super) struct Read {
    pub(super) tenants: BTreeMap<TenantId, Tenant>,
    /// Whether the file has a tenant whose name was refused: then unknown names are no finding.
    broken: bool,
}

/// One tenant.
pub(super) struct Tenant {
    plan: String,
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
    table.close();
    Tenant { plan: plan.map(|plan| plan.value).unwrap_or_default(), clusters }
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
        let tenants = self.tenants.into_iter().map(|(id, tenant)| (id, quota::TenantQuota { plan: tenant.plan }));
        quota::Settings {
            tenants: tenants.collect(),
            plans: plans.plans,
            default_plan: plans.default_plan.map(|name| name.value),
            flood: plans.flood,
        }
    }
}
