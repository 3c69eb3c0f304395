//! Owns how a method and a canonical path find their row: the segment tree and what it returns.
//! Does not parse paths (`path`) and does not look at exposure or versions: the gateway does.
//! Invariant: the row found is the one whose route Starlette would run, since a literal segment is registered
//! before a parameter in every router of AgentOS (`catalog::check` refuses templates where order would matter).

use std::sync::Arc;

use super::operation::{Exposure, Kind, Method, Operation, Place, Resource};
use super::path::CanonicalPath;

/// A request's operation and the decoded parameters of its path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Matched {
    /// The row.
    pub operation: &'static Operation,
    /// Decoded values of the template's parameters.
    pub params: Params,
}

/// Decoded path parameters, in template order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Params(Vec<(&'static str, String)>);

/// Why no operation was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NotMatched {
    /// No row has the path.
    Unknown,
    /// Rows have the path with these methods only.
    MethodNotAllowed {
        /// For the `Allow` header, in a fixed order.
        allow: Vec<Method>,
    },
}

/// The segment tree over all templates.
#[derive(Debug, Clone)]
pub(super) struct Router {
    nodes: Arc<[Node]>,
}

/// One segment of a template.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Segment {
    /// This text.
    Literal(&'static str),
    /// Any one segment.
    One(&'static str),
    /// All that is left, at least one segment.
    Rest(&'static str),
}

#[derive(Debug, Default)]
struct Node {
    literals: Vec<(&'static str, usize)>,
    one: Option<usize>,
    rest: Option<usize>,
    ends: [Option<&'static Operation>; Method::ALL.len()],
}

/// What a walk looks for, and the methods it met on paths that fit.
struct Walk<'a> {
    nodes: &'a [Node],
    method: Option<Method>,
    allow: [bool; Method::ALL.len()],
}

// === impl Matched ===

impl Matched {
    /// The agent, team or workflow that the path names.
    pub fn component(&self) -> Option<(Kind, &str)> {
        Kind::ALL.iter().find_map(|kind| Some((*kind, self.params.get(id_name(kind.resource())?)?)))
    }

    /// The id of the row's resource, when the path names it: the run of a run row, the session of a session row.
    ///
    /// A row whose resource travels elsewhere (query, body) has none; so has a knowledge row, unless its path
    /// names the knowledge base.
    pub fn resource_id(&self) -> Option<&str> {
        self.params.get(id_name(self.operation.resource)?)
    }

    /// The value at a place, when the place is a path segment.
    pub fn at(&self, places: &[Place]) -> Option<&str> {
        places.iter().find_map(|place| match place {
            Place::Path(name) => self.params.get(name),
            Place::Query(_) | Place::Form(_) | Place::Json(_) => None,
        })
    }
}

// === impl Params ===

impl Params {
    /// The decoded value of a parameter.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(known, _)| *known == name).map(|(_, value)| value.as_str())
    }

    /// Every parameter, in template order.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, &str)> {
        self.0.iter().map(|(name, value)| (*name, value.as_str()))
    }
}

// === impl Router ===

impl Router {
    /// Compiles rows that passed `catalog::check`.
    pub(super) fn new(rows: &'static [Operation]) -> Self {
        let mut nodes = vec![Node::default()];
        for row in rows.iter().filter(|row| !matches!(row.exposure, Exposure::Facet(_))) {
            let mut at = 0;
            for segment in segments(row.path) {
                at = step(&mut nodes, at, segment);
            }
            if let Some(end) = nodes.get_mut(at).and_then(|node| node.ends.get_mut(row.method as usize)) {
                *end = Some(row);
            }
        }
        Self { nodes: nodes.into() }
    }

    /// Finds the row of a request. Allocates for the parameters only.
    pub(super) fn find(&self, method: &http::Method, path: &CanonicalPath) -> Result<Matched, NotMatched> {
        let method = Method::parse(method.as_str());
        let mut walk = Walk { nodes: &self.nodes, method, allow: Default::default() };
        if let Some(operation) = walk.down(0, path.segments()) {
            return Ok(Matched { operation, params: params(operation, path.segments()) });
        }
        let allow: Vec<Method> =
            Method::ALL.iter().copied().filter(|method| walk.allow.get(*method as usize) == Some(&true)).collect();
        if allow.is_empty() { Err(NotMatched::Unknown) } else { Err(NotMatched::MethodNotAllowed { allow }) }
    }
}

// === impl Walk ===

impl Walk<'_> {
    /// Depth first, the literal before the parameter. A path that fits without the method does not end the
    /// search: as in Starlette, a later route that has both wins (`DELETE /approvals/count` is an approval's).
    fn down(&mut self, at: usize, left: &[String]) -> Option<&'static Operation> {
        let node = self.nodes.get(at)?;
        let Some((segment, left)) = left.split_first() else {
            return self.end(node);
        };
        let literal = node.literals.iter().find(|(text, _)| text == segment).map(|(_, next)| *next);
        if let Some(found) = literal.and_then(|next| self.down(next, left)) {
            return Some(found);
        }
        if let Some(found) = node.one.and_then(|next| self.down(next, left)) {
            return Some(found);
        }
        self.end(self.nodes.get(node.rest?)?)
    }

    fn end(&mut self, node: &Node) -> Option<&'static Operation> {
        for (seen, end) in self.allow.iter_mut().zip(&node.ends) {
            *seen |= end.is_some();
        }
        node.ends.get(self.method? as usize).copied().flatten()
    }
}

/// Splits a template into its segments; the root has none.
pub(super) fn segments(template: &'static str) -> impl Iterator<Item = Segment> {
    template.split('/').skip(1).filter(|segment| !segment.is_empty()).map(|segment| {
        let name = segment.strip_prefix('{').and_then(|rest| rest.strip_suffix('}'));
        match name.map(|name| (name, name.strip_suffix(":path"))) {
            Some((_, Some(name))) => Segment::Rest(name),
            Some((name, None)) => Segment::One(name),
            None => Segment::Literal(segment),
        }
    })
}

/// The child of a node for a segment, made when it is missing.
fn step(nodes: &mut Vec<Node>, at: usize, segment: Segment) -> usize {
    let fresh = nodes.len();
    let Some(node) = nodes.get_mut(at) else { return at };
    let next = match segment {
        Segment::Literal(text) => match node.literals.iter().find(|(known, _)| *known == text) {
            Some((_, next)) => *next,
            None => {
                node.literals.push((text, fresh));
                fresh
            }
        },
        Segment::One(_) => *node.one.get_or_insert(fresh),
        Segment::Rest(_) => *node.rest.get_or_insert(fresh),
    };
    if next == fresh {
        nodes.push(Node::default());
    }
    next
}

/// Takes the parameters of a matched row out of the segments.
fn params(operation: &'static Operation, given: &[String]) -> Params {
    let mut values = Vec::new();
    for (index, segment) in segments(operation.path).enumerate() {
        match segment {
            Segment::Literal(_) => {}
            Segment::One(name) => values.extend(given.get(index).map(|value| (name, value.clone()))),
            Segment::Rest(name) => values.extend(given.get(index..).map(|rest| (name, rest.join("/")))),
        }
    }
    Params(values)
}

/// The path parameter that names a resource of a type.
pub(super) const fn id_name(resource: Resource) -> Option<&'static str> {
    match resource {
        Resource::Agent => Some("agent_id"),
        Resource::Team => Some("team_id"),
        Resource::Workflow => Some("workflow_id"),
        Resource::Knowledge => Some("knowledge_id"),
        Resource::Session => Some("session_id"),
        Resource::Run => Some("run_id"),
        Resource::Memory => Some("memory_id"),
        Resource::Approval => Some("approval_id"),
        Resource::Trace => Some("trace_id"),
        Resource::Schedule => Some("schedule_id"),
        Resource::Component => Some("component_id"),
        Resource::Evaluation => Some("eval_run_id"),
        Resource::Learning => Some("learning_id"),
        Resource::Os => None,
    }
}
