//! Owns the translation of an `Ask` into Cedar's request and entities.
//! Does not evaluate (`slice`) and does not decide what counts as a fact.
//! Invariant: what it builds conforms to `schema`, apart from attributes that nobody is going to read; debug builds
//! check every request and entity.

use std::collections::{HashMap, HashSet};
use std::str::FromStr as _;

use cedar_policy::{
    Context as CedarContext, Entities, Entity, EntityId, EntityTypeName, EntityUid, Request, RestrictedExpression,
    Schema,
};

use crate::agentos::{Operation, Resource};
use crate::principal::{Principal, PrincipalKind, TenantId};

use super::ask::Ask;
use super::attribute::{Attribute, Reads};
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

/// An action with the entity that says its group.
pub(super) struct Action {
    uid: EntityUid,
    entity: Entities,
}

/// Why an ask has no Cedar form. The text is for the log.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Unbuildable(String);

/// Attributes on their way into an entity: those that are read.
struct Attributes {
    reads: Reads,
    pairs: HashMap<String, RestrictedExpression>,
}

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
        let entity = Entity::new_no_attrs(uid.clone(), HashSet::from([group]));
        let entity = Entities::from_entities([entity], None).ok()?;
        Some(Action { uid, entity })
    }

    /// Builds the request and its entities, with the attributes that are read and no others.
    pub(super) fn build(
        &self,
        ask: &Ask<'_>,
        action: &Action,
        mode: ScopesMode,
        reads: Reads,
        schema: Option<&Schema>,
    ) -> Result<(Request, Entities), Unbuildable> {
        let context = CedarContext::from_pairs(context(ask, mode, reads)).map_err(unbuildable)?;
        let (caller, target) = (self.caller(ask.principal), uid(&self.resource(ask.resource.kind), ask.resource.id));
        let request = Request::new(caller.clone(), action.uid.clone(), target.clone(), context, schema);
        let mut entities = action.entity.clone();
        if reads.entities() {
            let pair = [self.principal(caller, ask.principal, reads)?, self.facts(target, ask, reads)?];
            entities = entities.add_entities(pair, schema).map_err(unbuildable)?;
        }
        Ok((request.map_err(unbuildable)?, entities))
    }

    fn caller(&self, principal: &Principal) -> EntityUid {
        let kind = match principal.kind {
            PrincipalKind::User => &self.user,
            PrincipalKind::Service => &self.service,
        };
        uid(kind, &format!("{}~{}", principal.tenant, principal.subject))
    }

    fn principal(&self, uid: EntityUid, principal: &Principal, reads: Reads) -> Result<Entity, Unbuildable> {
        let tenant = self.tenant(&principal.tenant);
        let mut attributes = Attributes::new(reads);
        attributes.put(Attribute::Subject, || Some(text(&principal.subject)));
        attributes.put(Attribute::Tenant, || Some(RestrictedExpression::new_entity_uid(tenant.clone())));
        attributes.put(Attribute::Scopes, || Some(texts(principal.scopes.iter().map(AsRef::as_ref))));
        attributes.put(Attribute::Plan, || principal.plan.as_deref().map(text));
        let roles = principal.roles.iter().map(|role| self::uid(&self.role, role));
        let parents = roles.chain([tenant.clone()]).collect();
        Entity::new(uid, attributes.pairs, parents).map_err(unbuildable)
    }

    fn facts(&self, uid: EntityUid, ask: &Ask<'_>, reads: Reads) -> Result<Entity, Unbuildable> {
        let facts = &ask.resource;
        let tenants = || facts.tenants.iter().chain(facts.open.then_some(&ask.principal.tenant));
        let tenant = |id: &TenantId| RestrictedExpression::new_entity_uid(self.tenant(id));
        let mut attributes = Attributes::new(reads);
        attributes.put(Attribute::Id, || Some(text(facts.id)));
        attributes.put(Attribute::Tenants, || Some(RestrictedExpression::new_set(tenants().map(tenant))));
        attributes.put(Attribute::Owner, || facts.owner.map(text));
        attributes.put(Attribute::Tenant, || facts.tenant.map(tenant));
        attributes.put(Attribute::Component, || facts.component.map(text));
        if let (Resource::Approval, Some(approval)) = (facts.kind, &facts.approval) {
            attributes.put(Attribute::ToolName, || approval.tool_name.map(text));
            attributes.put(Attribute::Status, || approval.status.map(text));
            attributes.put(Attribute::RequestedBy, || approval.requested_by.map(text));
        }
        Entity::new(uid, attributes.pairs, HashSet::new()).map_err(unbuildable)
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

fn texts<'a>(values: impl Iterator<Item = &'a str>) -> RestrictedExpression {
    RestrictedExpression::new_set(values.map(text))
}

fn unbuildable(error: impl std::fmt::Display) -> Unbuildable {
    Unbuildable(error.to_string())
}

fn context(ask: &Ask<'_>, mode: ScopesMode, reads: Reads) -> HashMap<String, RestrictedExpression> {
    let Ask { principal, operation, resource, context } = ask;
    let bool = |value| Some(RestrictedExpression::new_bool(value));
    let bytes = i64::try_from(context.message_bytes).unwrap_or(i64::MAX);
    let mut pairs = Attributes::new(reads);
    pairs.put(Attribute::Door, || Some(text(context.door)));
    pairs.put(Attribute::Operation, || Some(text(operation.id)));
    pairs.put(Attribute::Cluster, || Some(text(context.cluster)));
    pairs.put(Attribute::Now, || Some(RestrictedExpression::new_datetime(instant::spell(context.now))));
    pairs.put(Attribute::SourceIp, || Some(RestrictedExpression::new_ip(context.source_ip.to_string())));
    pairs.put(Attribute::MessageBytes, || Some(RestrictedExpression::new_long(bytes)));
    pairs.put(Attribute::Human, || bool(context.human));
    pairs.put(Attribute::Destructive, || bool(operation.destructive));
    pairs.put(Attribute::Reach, || Some(text(operation.reach.as_str())));
    pairs.put(Attribute::Exclusive, || bool(!resource.open && resource.tenants.len() == 1));
    pairs.put(Attribute::ScopesAccepted, || {
        Some(texts(scopes::accepted(operation, resource, &principal.scopes).iter().map(String::as_str)))
    });
    pairs.put(Attribute::ScopesMode, || Some(text(mode.as_str())));
    pairs.pairs
}

// === impl Attributes ===

impl Attributes {
    fn new(reads: Reads) -> Self {
        Self { reads, pairs: HashMap::new() }
    }

    /// Adds what is read and there.
    fn put(&mut self, attribute: Attribute, value: impl FnOnce() -> Option<RestrictedExpression>) {
        if self.reads.contain(attribute) {
            self.pairs.extend(value().map(|value| (attribute.name().to_owned(), value)));
        }
    }
}
