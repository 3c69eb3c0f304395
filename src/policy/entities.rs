//! Owns the translation of an `Ask` into Cedar's request and entities.
//! Does not evaluate (`slice`) and does not decide what counts as a fact.
//! Invariant: what it builds conforms to `schema`; debug builds check every request and entity.

use std::collections::{HashMap, HashSet};
use std::str::FromStr as _;

use cedar_policy::{
    Context as CedarContext, Entities, Entity, EntityId, EntityTypeName, EntityUid, Request, RestrictedExpression,
    Schema,
};

use crate::agentos::{Operation, Resource};
use crate::principal::{Principal, PrincipalKind, TenantId};

use super::ask::{Ask, ResourceFacts};
use super::schema::NAMESPACE;
use super::{ScopesMode, instant, scopes};

/// The entity type names, parsed once.
pub(super) struct Names {
    user: EntityTypeName,
    service: EntityTypeName,
    role: EntityTypeName,
    tenant: EntityTypeName,
    action: EntityTypeName,
    resources: HashMap<Resource, EntityTypeName>,
}

/// An action and its group.
pub(super) struct Action {
    pub(super) uid: EntityUid,
    pub(super) group: EntityUid,
    entity: Entities,
}

/// Why an ask has no Cedar form. The text is for the log.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Unbuildable(String);

type Attributes = HashMap<String, RestrictedExpression>;

// === impl Names ===

impl Names {
    /// Parses the names of the schema; `None` when Cedar refuses one, which tests rule out.
    pub(super) fn new() -> Option<Self> {
        let name = |word: &str| EntityTypeName::from_str(&format!("{NAMESPACE}::{word}")).ok();
        let resources = Resource::ALL.iter().map(|r| Some((*r, name(r.as_str())?)));
        Some(Self {
            user: name("User")?,
            service: name("Service")?,
            role: name("Role")?,
            tenant: name("Tenant")?,
            action: name("Action")?,
            resources: resources.collect::<Option<_>>()?,
        })
    }

    /// The type of a resource.
    pub(super) fn resource(&self, resource: Resource) -> EntityTypeName {
        self.resources.get(&resource).unwrap_or(&self.action).clone()
    }

    /// The action of a row, with the entity that says its group.
    pub(super) fn action(&self, row: &Operation) -> Option<Action> {
        let uid = uid(&self.action, row.id);
        let group = uid_of_group(&self.action, row);
        let entity = Entity::new_no_attrs(uid.clone(), HashSet::from([group.clone()]));
        let entity = Entities::from_entities([entity], None).ok()?;
        Some(Action { uid, group, entity })
    }

    /// Builds the request and its entities.
    pub(super) fn build(
        &self,
        ask: &Ask<'_>,
        action: &Action,
        mode: ScopesMode,
        schema: Option<&Schema>,
    ) -> Result<(Request, Entities), Unbuildable> {
        let principal = self.principal(ask.principal)?;
        let resource = self.facts(&ask.resource, &ask.principal.tenant)?;
        let context = CedarContext::from_pairs(context(ask, mode)).map_err(unbuildable)?;
        let request = Request::new(principal.uid(), action.uid.clone(), resource.uid(), context, schema);
        let entities = action.entity.clone().add_entities([principal, resource], schema);
        Ok((request.map_err(unbuildable)?, entities.map_err(unbuildable)?))
    }

    fn principal(&self, principal: &Principal) -> Result<Entity, Unbuildable> {
        let kind = match principal.kind {
            PrincipalKind::User => &self.user,
            PrincipalKind::Service => &self.service,
        };
        let uid = uid(kind, &format!("{}~{}", principal.tenant, principal.subject));
        let tenant = self.tenant(&principal.tenant);
        let scopes = principal.scopes.iter().map(|scope| text(scope));
        let mut attributes = Attributes::from([
            ("subject".to_owned(), text(&principal.subject)),
            ("tenant".to_owned(), RestrictedExpression::new_entity_uid(tenant.clone())),
            ("scopes".to_owned(), RestrictedExpression::new_set(scopes)),
        ]);
        put(&mut attributes, "plan", principal.plan.as_deref().map(text));
        let roles = principal.roles.iter().map(|role| self::uid(&self.role, role));
        Entity::new(uid, attributes, roles.chain([tenant]).collect()).map_err(unbuildable)
    }

    fn facts(&self, facts: &ResourceFacts<'_>, caller: &TenantId) -> Result<Entity, Unbuildable> {
        let tenants = facts.tenants.iter().chain(facts.open.then_some(caller));
        let tenant = |id: &TenantId| RestrictedExpression::new_entity_uid(self.tenant(id));
        let mut attributes = Attributes::from([
            ("id".to_owned(), text(facts.id)),
            ("tenants".to_owned(), RestrictedExpression::new_set(tenants.map(tenant))),
        ]);
        put(&mut attributes, "owner", facts.owner.map(text));
        put(&mut attributes, "tenant", facts.tenant.map(tenant));
        put(&mut attributes, "component", facts.component.map(text));
        if let (Resource::Approval, Some(approval)) = (facts.kind, &facts.approval) {
            put(&mut attributes, "tool_name", approval.tool_name.map(text));
            put(&mut attributes, "status", approval.status.map(text));
            put(&mut attributes, "requested_by", approval.requested_by.map(text));
        }
        let uid = uid(&self.resource(facts.kind), facts.id);
        Entity::new(uid, attributes, HashSet::new()).map_err(unbuildable)
    }

    fn tenant(&self, tenant: &TenantId) -> EntityUid {
        uid(&self.tenant, tenant.as_str())
    }
}

fn uid(kind: &EntityTypeName, id: &str) -> EntityUid {
    EntityUid::from_type_name_and_id(kind.clone(), EntityId::new(id))
}

fn uid_of_group(kind: &EntityTypeName, row: &Operation) -> EntityUid {
    uid(kind, row.action.as_str())
}

fn text(value: &str) -> RestrictedExpression {
    RestrictedExpression::new_string(value.to_owned())
}

fn put(attributes: &mut Attributes, name: &str, value: Option<RestrictedExpression>) {
    attributes.extend(value.map(|value| (name.to_owned(), value)));
}

fn unbuildable(error: impl std::fmt::Display) -> Unbuildable {
    Unbuildable(error.to_string())
}

fn context(ask: &Ask<'_>, mode: ScopesMode) -> [(String, RestrictedExpression); 12] {
    let Ask { principal, operation, resource, context } = ask;
    let accepted = scopes::accepted(operation, resource, &principal.scopes);
    let bool = RestrictedExpression::new_bool;
    [
        ("door", text(context.door)),
        ("operation", text(operation.id)),
        ("cluster", text(context.cluster)),
        ("now", RestrictedExpression::new_datetime(instant::spell(context.now))),
        ("source_ip", RestrictedExpression::new_ip(context.source_ip.to_string())),
        ("message_bytes", RestrictedExpression::new_long(i64::try_from(context.message_bytes).unwrap_or(i64::MAX))),
        ("human", bool(context.human)),
        ("destructive", bool(operation.destructive)),
        ("reach", text(operation.reach.as_str())),
        ("exclusive", bool(!resource.open && resource.tenants.len() == 1)),
        ("scopes_accepted", RestrictedExpression::new_set(accepted.iter().map(|scope| text(scope)))),
        ("scopes_mode", text(mode.as_str())),
    ]
    .map(|(name, value)| (name.to_owned(), value))
}
