//! Owns reading a policy into terms, from Cedar's JSON form of it.
//! Does not evaluate them (`sieve`).
//! Invariant: whatever is not understood in full becomes `Term::Unknown`.

use cedar_policy::{ActionConstraint, EntityTypeName, EntityUid, Policy, PrincipalConstraint, ResourceConstraint};
use serde_json::Value as Json;

use crate::agentos::Resource;

use super::super::attribute::Attribute;
use super::super::schema::NAMESPACE;
use super::value::Kind;
use super::{Constant, Piece, Sieve, Term, Variable};

/// How deep an expression is followed.
const DEPTH_MAX: usize = 48;

// === impl Sieve ===

impl Sieve {
    /// Reads a policy; one that cannot be read is always a question for Cedar.
    pub(in super::super) fn of(policy: &Policy) -> Self {
        let head = vec![principal(policy), action(policy), resource(policy)];
        let json = policy.to_json().ok();
        let conditions = json.as_ref().and_then(|json| json.get("conditions")?.as_array());
        let conditions = conditions.map_or_else(|| vec![Term::Unknown], |list| list.iter().map(condition).collect());
        Self { head: head.into_iter().flatten().collect(), conditions }
    }
}

fn principal(policy: &Policy) -> Option<Term> {
    let head = Head(Variable::Principal);
    match policy.principal_constraint() {
        PrincipalConstraint::Any => None,
        PrincipalConstraint::In(uid) => Some(head.is_in(&[uid])),
        PrincipalConstraint::Eq(uid) => Some(head.equals(&uid)),
        PrincipalConstraint::Is(kind) => Some(head.is(&kind)),
        PrincipalConstraint::IsIn(kind, uid) => Some(and(head.is(&kind), head.is_in(&[uid]))),
    }
}

fn action(policy: &Policy) -> Option<Term> {
    let head = Head(Variable::Action);
    match policy.action_constraint() {
        ActionConstraint::Any => None,
        ActionConstraint::In(uids) => Some(head.is_in(&uids)),
        ActionConstraint::Eq(uid) => Some(head.equals(&uid)),
    }
}

fn resource(policy: &Policy) -> Option<Term> {
    let head = Head(Variable::Resource);
    match policy.resource_constraint() {
        ResourceConstraint::Any => None,
        ResourceConstraint::In(uid) => Some(head.is_in(&[uid])),
        ResourceConstraint::Eq(uid) => Some(and(head.is(uid.type_name()), head.equals(&uid))),
        ResourceConstraint::Is(kind) => Some(head.is(&kind)),
        ResourceConstraint::IsIn(kind, uid) => Some(and(head.is(&kind), head.is_in(&[uid]))),
    }
}

/// A place in the head of a policy.
#[derive(Clone, Copy)]
struct Head(Variable);

// === impl Head ===

impl Head {
    fn equals(self, uid: &EntityUid) -> Term {
        let Some(constant) = entity(uid) else { return Term::Unknown };
        Term::Equal(Box::new([Term::Variable(self.0), Term::Constant(constant)]))
    }

    fn is_in(self, uids: &[EntityUid]) -> Term {
        let Some(constants) = uids.iter().map(entity).collect() else { return Term::Unknown };
        Term::In(Box::new([Term::Variable(self.0), Term::Constants(constants)]))
    }

    fn is(self, name: &EntityTypeName) -> Term {
        kind(&name.to_string()).map_or(Term::Unknown, |kind| Term::Is(self.0, kind))
    }
}

fn and(one: Term, two: Term) -> Term {
    Term::And(Box::new([one, two]))
}

fn entity(uid: &EntityUid) -> Option<Constant> {
    Some(Constant::Entity(kind(&uid.type_name().to_string())?, uid.id().unescaped().into()))
}

fn kind(name: &str) -> Option<Kind> {
    let name = name.strip_prefix(NAMESPACE)?.strip_prefix("::")?;
    match name {
        "User" => Some(Kind::User),
        "Service" => Some(Kind::Service),
        "Role" => Some(Kind::Role),
        "Tenant" => Some(Kind::Tenant),
        "Action" => Some(Kind::Action),
        name => Resource::ALL.iter().copied().find(|resource| resource.as_str() == name).map(Kind::Resource),
    }
}

fn condition(json: &Json) -> Term {
    let Some(body) = json.get("body") else { return Term::Unknown };
    match json.get("kind").and_then(Json::as_str) {
        Some("when") => term(body, DEPTH_MAX),
        Some("unless") => Term::Not(Box::new(term(body, DEPTH_MAX))),
        _ => Term::Unknown,
    }
}

fn term(json: &Json, depth: usize) -> Term {
    let Some(depth) = depth.checked_sub(1) else { return Term::Unknown };
    let Some((operator, body)) = json.as_object().filter(|o| o.len() == 1).and_then(|o| o.iter().next()) else {
        return Term::Unknown;
    };
    let one = |name: &str| body.get(name).map_or(Term::Unknown, |json| term(json, depth));
    let two = || Box::new([one("left"), one("right")]);
    match operator.as_str() {
        "Value" => constant(body).map_or(Term::Unknown, Term::Constant),
        "Set" => constants(body).map_or(Term::Unknown, Term::Constants),
        "Var" => variable(json).map_or(Term::Unknown, Term::Variable),
        "." => attribute(body).map_or(Term::Unknown, |(of, attribute)| Term::Get(of, attribute)),
        "has" => attribute(body).map_or(Term::Unknown, |(of, attribute)| Term::Has(of, attribute)),
        "!" => Term::Not(Box::new(one("arg"))),
        "isEmpty" => Term::IsEmpty(Box::new(one("arg"))),
        "&&" => Term::And(two()),
        "||" => Term::Or(two()),
        "==" => Term::Equal(two()),
        "!=" => Term::Not(Box::new(Term::Equal(two()))),
        "in" => Term::In(two()),
        "contains" => Term::Contains(two()),
        "containsAny" => Term::ContainsAny(two()),
        "containsAll" => Term::ContainsAll(two()),
        "if-then-else" => Term::If(Box::new([one("if"), one("then"), one("else")])),
        "is" => is(body, one("in")),
        "like" => pattern(body).map_or(Term::Unknown, |pieces| Term::Like(Box::new(one("left")), pieces)),
        _ => Term::Unknown,
    }
}

fn variable(json: &Json) -> Option<Variable> {
    match json.get("Var")?.as_str()? {
        "principal" => Some(Variable::Principal),
        "action" => Some(Variable::Action),
        "resource" => Some(Variable::Resource),
        "context" => Some(Variable::Context),
        _ => None,
    }
}

fn attribute(body: &Json) -> Option<(Variable, Attribute)> {
    Some((variable(body.get("left")?)?, Attribute::named(body.get("attr")?.as_str()?)?))
}

fn is(body: &Json, within: Term) -> Term {
    let of = body.get("left").and_then(variable);
    let kind = body.get("entity_type").and_then(Json::as_str).and_then(kind);
    let (Some(of), Some(kind)) = (of, kind) else { return Term::Unknown };
    if body.get("in").is_none() {
        return Term::Is(of, kind);
    }
    and(Term::Is(of, kind), Term::In(Box::new([Term::Variable(of), within])))
}

fn constant(json: &Json) -> Option<Constant> {
    match json {
        Json::Bool(value) => Some(Constant::Bool(*value)),
        Json::String(text) => Some(Constant::Text(text.as_str().into())),
        Json::Object(_) => {
            let uid = json.get("__entity")?;
            let kind = kind(uid.get("type")?.as_str()?)?;
            Some(Constant::Entity(kind, uid.get("id")?.as_str()?.into()))
        }
        Json::Null | Json::Number(_) | Json::Array(_) => None,
    }
}

fn constants(json: &Json) -> Option<Vec<Constant>> {
    json.as_array()?.iter().map(|element| constant(element.get("Value")?)).collect()
}

fn pattern(body: &Json) -> Option<Vec<Piece>> {
    let mut pieces: Vec<Piece> = Vec::new();
    for piece in body.get("pattern")?.as_array()? {
        if piece == "Wildcard" {
            pieces.push(Piece::Anything);
            continue;
        }
        let text = piece.get("Literal")?.as_str()?;
        match pieces.last_mut() {
            // One text: a pattern may come letter by letter.
            Some(Piece::Text(before)) => *before = format!("{before}{text}").into(),
            _ => pieces.push(Piece::Text(text.into())),
        }
    }
    Some(pieces)
}
