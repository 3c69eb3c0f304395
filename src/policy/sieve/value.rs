//! Owns the values that a glance compares: entities, sets and patterns, borrowed from the call or the policy.
//! Does not look anything up (`sieve`).
//! Invariant: two values are the same here exactly when they are equal to Cedar.

use std::sync::Arc;

use crate::agentos::Resource;
use crate::principal::{Principal, PrincipalKind, TenantId};

use super::{Constant, Piece};

/// A type of entity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    User,
    Service,
    Role,
    Tenant,
    Action,
    Resource(Resource),
}

/// An entity's name. A caller's is kept in its two parts, which `~` joins.
#[derive(Debug, Clone, Copy)]
pub(super) struct Entity<'a> {
    pub(super) kind: Kind,
    tenant: Option<&'a str>,
    rest: &'a str,
}

/// What a term comes to.
#[derive(Debug, Clone, Copy)]
pub(super) enum Value<'a> {
    Bool(bool),
    Text(&'a str),
    Entity(Entity<'a>),
    Set(Set<'a>),
}

/// A set.
#[derive(Debug, Clone, Copy)]
pub(super) enum Set<'a> {
    Literal(&'a [Constant]),
    /// The scopes of the caller.
    Held(&'a [Arc<str>]),
    /// The tenants that may use the cluster, and the caller's where it is open.
    Tenants(&'a [TenantId], Option<&'a TenantId>),
    /// The scopes that grant the call: never written out, only asked.
    Accepted,
}

// === impl Entity ===

impl<'a> Entity<'a> {
    pub(super) fn plain(kind: Kind, id: &'a str) -> Self {
        Self { kind, tenant: None, rest: id }
    }

    pub(super) fn caller(principal: &'a Principal) -> Self {
        let kind = match principal.kind {
            PrincipalKind::User => Kind::User,
            PrincipalKind::Service => Kind::Service,
        };
        Self { kind, tenant: Some(principal.tenant.as_str()), rest: &principal.subject }
    }
}

impl PartialEq for Entity<'_> {
    fn eq(&self, other: &Self) -> bool {
        let same_id = match (self.tenant, other.tenant) {
            (Some(tenant), None) => is_joined(other.rest, tenant, self.rest),
            (None, Some(tenant)) => is_joined(self.rest, tenant, other.rest),
            (one, two) => one == two && self.rest == other.rest,
        };
        self.kind == other.kind && same_id
    }
}

fn is_joined(id: &str, tenant: &str, subject: &str) -> bool {
    id.strip_prefix(tenant).and_then(|rest| rest.strip_prefix('~')) == Some(subject)
}

// === impl Value ===

impl<'a> Value<'a> {
    pub(super) fn tenant(tenant: &'a TenantId) -> Self {
        Self::Entity(Entity::plain(Kind::Tenant, tenant.as_str()))
    }

    /// Equality of single values. Sets are never asked about.
    pub(super) fn is(self, other: Value<'_>) -> bool {
        match (self, other) {
            (Self::Bool(one), Value::Bool(two)) => one == two,
            (Self::Text(one), Value::Text(two)) => one == two,
            (Self::Entity(one), Value::Entity(two)) => one == two,
            _ => false,
        }
    }
}

// === impl Set ===

impl<'a> Set<'a> {
    /// The elements, when the set is written out.
    pub(super) fn elements(self) -> Option<impl Iterator<Item = Value<'a>>> {
        let (literal, held, (tenants, guest)): (&[_], &[_], (&[_], _)) = match self {
            Self::Literal(constants) => (constants, &[], (&[], None)),
            Self::Held(scopes) => (&[], scopes, (&[], None)),
            Self::Tenants(tenants, guest) => (&[], &[], (tenants, guest)),
            Self::Accepted => return None,
        };
        let held = held.iter().map(|scope: &Arc<str>| Value::Text(scope));
        Some(literal.iter().map(Constant::value).chain(held).chain(tenants.iter().chain(guest).map(Value::tenant)))
    }
}

// === impl Constant ===

impl Constant {
    pub(super) fn value(&self) -> Value<'_> {
        match self {
            Self::Bool(value) => Value::Bool(*value),
            Self::Text(text) => Value::Text(text),
            Self::Entity(kind, id) => Value::Entity(Entity::plain(*kind, id)),
        }
    }
}

/// `like`: every text in its order, and whatever between them where the pattern says so.
pub(super) fn is_like(text: &str, pattern: &[Piece]) -> bool {
    let mut rest = text;
    // A wildcard stands before the next text.
    let mut anything = false;
    let mut pieces = pattern.iter().peekable();
    while let Some(piece) = pieces.next() {
        match piece {
            Piece::Anything => anything = true,
            Piece::Text(literal) if !anything => match rest.strip_prefix(&**literal) {
                Some(after) => rest = after,
                None => return false,
            },
            Piece::Text(literal) if pieces.peek().is_none() => return rest.ends_with(&**literal),
            // The first place is as good as any: what follows begins with a wildcard.
            Piece::Text(literal) => match rest.split_once(&**literal) {
                Some((_, after)) => (rest, anything) = (after, false),
                None => return false,
            },
        }
    }
    anything || rest.is_empty()
}
