//! Owns what can be said of a policy and a call at a glance: satisfied, not satisfied, or a question for Cedar.
//! Does not evaluate what it does not understand in full, and never an operation that can fail (`slice` asks Cedar).
//! Invariant: a term has a value only if Cedar, asked the same, would compute that value without an error. Generated
//! policies prove it (`tests/sliced.rs`), and debug builds ask Cedar about every policy of every decision.

mod compile;
mod value;

use crate::agentos::{Operation, Resource};

use super::ScopesMode;
use super::ask::Ask;
use super::attribute::Attribute;
use super::scopes;

use value::{Entity, Kind, Set, Value};

/// What is known of a call: the row when policies are loaded, everything when one is decided.
#[derive(Clone, Copy)]
pub(super) struct Known<'a> {
    row: &'static Operation,
    call: Option<(&'a Ask<'a>, ScopesMode)>,
}

/// The conditions of one policy, in the order in which Cedar evaluates them.
#[derive(Debug)]
pub(super) struct Sieve {
    /// The head. It cannot fail, so an unknown part of it does not hide a later one that does not hold.
    head: Vec<Term>,
    conditions: Vec<Term>,
}

/// An expression, so far as it is understood here.
#[derive(Debug)]
enum Term {
    Unknown,
    Constant(Constant),
    Constants(Vec<Constant>),
    Variable(Variable),
    Get(Variable, Attribute),
    Has(Variable, Attribute),
    Not(Box<Term>),
    And(Box<[Term; 2]>),
    Or(Box<[Term; 2]>),
    If(Box<[Term; 3]>),
    Equal(Box<[Term; 2]>),
    In(Box<[Term; 2]>),
    Is(Variable, Kind),
    Contains(Box<[Term; 2]>),
    ContainsAny(Box<[Term; 2]>),
    ContainsAll(Box<[Term; 2]>),
    IsEmpty(Box<Term>),
    Like(Box<Term>, Vec<Piece>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Variable {
    Principal,
    Action,
    Resource,
    Context,
}

/// A literal.
#[derive(Debug)]
enum Constant {
    Bool(bool),
    Text(Box<str>),
    Entity(Kind, Box<str>),
}

/// A part of a pattern.
#[derive(Debug)]
enum Piece {
    Anything,
    Text(Box<str>),
}

// === impl Known ===

impl<'a> Known<'a> {
    /// What is known of every call to the row.
    pub(super) fn of_row(row: &'static Operation) -> Self {
        Self { row, call: None }
    }

    /// What is known of one call.
    pub(super) fn of_call(ask: &'a Ask<'a>, mode: ScopesMode) -> Self {
        Self { row: ask.operation, call: Some((ask, mode)) }
    }

    fn ask(&self) -> Option<&'a Ask<'a>> {
        self.call.map(|(ask, _)| ask)
    }

    fn variable(&self, variable: Variable) -> Option<Value<'a>> {
        let entity = match variable {
            Variable::Principal => Entity::caller(self.ask()?.principal),
            Variable::Action => Entity::plain(Kind::Action, self.row.id),
            Variable::Resource => Entity::plain(Kind::Resource(self.row.resource), self.ask()?.resource.id),
            Variable::Context => return None,
        };
        Some(Value::Entity(entity))
    }

    /// The value of an attribute; `None` when it is not there or not known.
    fn get(&self, of: Variable, attribute: Attribute) -> Option<Value<'a>> {
        match of {
            Variable::Principal => self.of_principal(attribute),
            Variable::Resource => self.of_resource(attribute),
            Variable::Context => self.of_context(attribute),
            Variable::Action => None,
        }
    }

    fn of_principal(&self, attribute: Attribute) -> Option<Value<'a>> {
        let principal = self.ask()?.principal;
        match attribute {
            Attribute::Subject => Some(Value::Text(&principal.subject)),
            Attribute::Tenant => Some(Value::tenant(&principal.tenant)),
            Attribute::Scopes => Some(Value::Set(Set::Held(&principal.scopes))),
            Attribute::Plan => principal.plan.as_deref().map(Value::Text),
            _ => None,
        }
    }

    fn of_resource(&self, attribute: Attribute) -> Option<Value<'a>> {
        let ask = self.ask()?;
        let facts = &ask.resource;
        let approval = facts.approval.as_ref().filter(|_| facts.kind == Resource::Approval);
        match attribute {
            Attribute::Id => Some(Value::Text(facts.id)),
            Attribute::Tenants => {
                Some(Value::Set(Set::Tenants(facts.tenants, facts.open.then_some(&ask.principal.tenant))))
            }
            Attribute::Owner => facts.owner.map(Value::Text),
            Attribute::Tenant => facts.tenant.map(Value::tenant),
            Attribute::Component => facts.component.map(Value::Text),
            Attribute::ToolName => approval?.tool_name.map(Value::Text),
            Attribute::Status => approval?.status.map(Value::Text),
            Attribute::RequestedBy => approval?.requested_by.map(Value::Text),
            _ => None,
        }
    }

    fn of_context(&self, attribute: Attribute) -> Option<Value<'a>> {
        match attribute {
            Attribute::Operation => return Some(Value::Text(self.row.id)),
            Attribute::Destructive => return Some(Value::Bool(self.row.destructive)),
            Attribute::Reach => return Some(Value::Text(self.row.reach.as_str())),
            Attribute::ScopesAccepted => return Some(Value::Set(Set::Accepted)),
            _ => {}
        }
        let (ask, mode) = self.call?;
        match attribute {
            Attribute::Door => Some(Value::Text(ask.context.door)),
            Attribute::Cluster => Some(Value::Text(ask.context.cluster)),
            Attribute::Human => Some(Value::Bool(ask.context.human)),
            Attribute::Exclusive => Some(Value::Bool(!ask.resource.open && ask.resource.tenants.len() == 1)),
            Attribute::ScopesMode => Some(Value::Text(mode.as_str())),
            _ => None,
        }
    }

    /// Says whether an attribute that may be missing is there.
    fn has(&self, of: Variable, attribute: Attribute) -> Option<bool> {
        self.ask()?;
        match (of, attribute) {
            (Variable::Principal, Attribute::Plan)
            | (
                Variable::Resource,
                Attribute::Owner
                | Attribute::Tenant
                | Attribute::Component
                | Attribute::ToolName
                | Attribute::Status
                | Attribute::RequestedBy,
            ) => Some(self.get(of, attribute).is_some()),
            _ => None,
        }
    }

    /// `one in other`: the caller is in its roles and its tenant, the action in its group, anything in itself.
    fn is_in(&self, one: Entity<'_>, other: Entity<'_>) -> Option<bool> {
        let parent = match other.kind {
            Kind::Role | Kind::Tenant => {
                let principal = self.ask()?.principal;
                let is_parent = match other.kind {
                    Kind::Role => principal.roles.iter().any(|role| other == Entity::plain(Kind::Role, role)),
                    _ => other == Entity::plain(Kind::Tenant, principal.tenant.as_str()),
                };
                is_parent && one == Entity::caller(principal)
            }
            Kind::Action => {
                one == Entity::plain(Kind::Action, self.row.id)
                    && other == Entity::plain(Kind::Action, self.row.action.as_str())
            }
            Kind::User | Kind::Service | Kind::Resource(_) => false,
        };
        Some(parent || one == other)
    }

    fn accepts(&self, scope: &str) -> Option<bool> {
        let ask = self.ask()?;
        Some(scopes::accepts(self.row, &ask.resource, &ask.principal.scopes, scope))
    }

    fn contains(&self, set: Set<'_>, value: Value<'_>) -> Option<bool> {
        match (set, value) {
            (Set::Accepted, Value::Text(scope)) => self.accepts(scope),
            (Set::Accepted, Value::Bool(_) | Value::Entity(_)) => Some(false),
            (_, Value::Set(_)) => None,
            (listed, value) => listed.elements().map(|mut elements| elements.any(|element| element.is(value))),
        }
    }

    fn any_of(&self, elements: Set<'_>, set: Set<'_>) -> Option<bool> {
        for element in elements.elements()? {
            if self.contains(set, element)? {
                return Some(true);
            }
        }
        Some(false)
    }

    fn all_of(&self, elements: Set<'_>, set: Set<'_>) -> Option<bool> {
        for element in elements.elements()? {
            if !self.contains(set, element)? {
                return Some(false);
            }
        }
        Some(true)
    }

    fn is_empty(&self, set: Set<'_>) -> Option<bool> {
        match set {
            // Every scope of a row is accepted for it.
            Set::Accepted => Some(self.row.scopes.is_empty()),
            listed => listed.elements().map(|mut elements| elements.next().is_none()),
        }
    }
}

// === impl Sieve ===

impl Sieve {
    /// Says whether the call certainly satisfies the policy, or certainly does not; in both cases it does not fail.
    pub(super) fn is_satisfied(&self, known: Known<'_>) -> Option<bool> {
        let mut head = Some(true);
        for term in &self.head {
            match term.bool(known) {
                Some(true) => {}
                Some(false) => return Some(false),
                None => head = None,
            }
        }
        for term in &self.conditions {
            if !term.bool(known)? {
                return Some(false);
            }
        }
        head
    }
}

// === impl Term ===

impl Term {
    fn bool(&self, known: Known<'_>) -> Option<bool> {
        match self {
            Self::Has(of, attribute) => known.has(*of, *attribute),
            Self::Not(term) => Some(!term.bool(known)?),
            Self::And(terms) => {
                let [left, right] = &**terms;
                if left.bool(known)? { right.bool(known) } else { Some(false) }
            }
            Self::Or(terms) => {
                let [left, right] = &**terms;
                if left.bool(known)? { Some(true) } else { right.bool(known) }
            }
            Self::If(terms) => {
                let [condition, yes, no] = &**terms;
                if condition.bool(known)? { yes.bool(known) } else { no.bool(known) }
            }
            Self::Is(of, kind) => Self::is(known, *of, *kind),
            Self::Equal(terms) => {
                let [left, right] = &**terms;
                match (left.value(known)?, right.value(known)?) {
                    (Value::Set(_), _) | (_, Value::Set(_)) => None,
                    (left, right) => Some(left.is(right)),
                }
            }
            Self::In(terms) => {
                let [left, right] = &**terms;
                Self::is_in(known, left.value(known)?, right.value(known)?)
            }
            Self::Contains(terms) => {
                let [set, element] = &**terms;
                known.contains(set.set(known)?, element.value(known)?)
            }
            Self::ContainsAny(terms) => {
                let [left, right] = &**terms;
                let (left, right) = (left.set(known)?, right.set(known)?);
                known.any_of(left, right).or_else(|| known.any_of(right, left))
            }
            Self::ContainsAll(terms) => {
                let [left, right] = &**terms;
                known.all_of(right.set(known)?, left.set(known)?)
            }
            Self::IsEmpty(set) => known.is_empty(set.set(known)?),
            Self::Like(text, pattern) => match text.value(known)? {
                Value::Text(text) => Some(value::is_like(text, pattern)),
                Value::Bool(_) | Value::Entity(_) | Value::Set(_) => None,
            },
            Self::Constant(_) | Self::Get(..) => match self.value(known)? {
                Value::Bool(value) => Some(value),
                Value::Text(_) | Value::Entity(_) | Value::Set(_) => None,
            },
            Self::Unknown | Self::Constants(_) | Self::Variable(_) => None,
        }
    }

    fn value<'a>(&'a self, known: Known<'a>) -> Option<Value<'a>> {
        match self {
            Self::Constant(constant) => Some(constant.value()),
            Self::Constants(constants) => Some(Value::Set(Set::Literal(constants))),
            Self::Variable(variable) => known.variable(*variable),
            Self::Get(of, attribute) => known.get(*of, *attribute),
            Self::Unknown => None,
            _ => self.bool(known).map(Value::Bool),
        }
    }

    fn set<'a>(&'a self, known: Known<'a>) -> Option<Set<'a>> {
        match self.value(known)? {
            Value::Set(set) => Some(set),
            Value::Bool(_) | Value::Text(_) | Value::Entity(_) => None,
        }
    }

    fn is(known: Known<'_>, of: Variable, kind: Kind) -> Option<bool> {
        match of {
            Variable::Resource => Some(kind == Kind::Resource(known.row.resource)),
            Variable::Action => Some(kind == Kind::Action),
            Variable::Principal => Some(kind == Entity::caller(known.ask()?.principal).kind),
            Variable::Context => None,
        }
    }

    fn is_in(known: Known<'_>, one: Value<'_>, other: Value<'_>) -> Option<bool> {
        match (one, other) {
            (Value::Entity(one), Value::Entity(other)) => known.is_in(one, other),
            (Value::Entity(one), Value::Set(Set::Literal(others))) => {
                let mut found = false;
                for other in others {
                    let Value::Entity(other) = other.value() else { return None };
                    found |= known.is_in(one, other)?;
                }
                Some(found)
            }
            _ => None,
        }
    }
}
