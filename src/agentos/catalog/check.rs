//! Owns the rules that every row has to meet, shipped or an operator's. Does not change rows.
//! Invariant: a table without problems routes each request to one row and never caches, pins or purges by a
//! name that does not exist.

use std::collections::BTreeMap;

use super::Problem;
use crate::agentos::matching::{Segment, id_name, segments};
use crate::agentos::operation::{
    Action, Affinity, Body, Caching, Cost, Exposure, Kind, Mark, Method, OnRun, Operation, Place, Reach, Reply,
    Resource,
};

/// Longest tool name that every MCP client takes.
const TOOL_NAME_MAX: usize = 40;

/// Longest operation id: it is a metric label.
const ID_MAX: usize = 64;

/// Templates that cross (each is literal where the other is not), where the order of AgentOS's routers is known
/// and the left one comes first: `GET /knowledge/content/sources` is the content `sources`.
const KNOWN_ORDER: &[(&str, &str)] = &[("/knowledge/content/{content_id}", "/knowledge/{knowledge_id}/sources")];

/// What only the gateway may write in a row.
pub(super) fn operator_rows(rows: &[Operation]) -> Vec<Problem> {
    let own = rows.iter().filter_map(|row| match row.exposure {
        Exposure::Offered | Exposure::Off(_) => match row.affinity {
            Affinity::FollowsRun(on_run) if on_run.is_facet() => {
                Some(problem(row, "only the gateway's own rows are facets of others"))
            }
            Affinity::Any | Affinity::StartsRun | Affinity::FollowsRun(_) | Affinity::Session => None,
        },
        Exposure::Local(_) => Some(problem(row, "only the gateway's own rows are answered locally")),
        Exposure::Facet(_) => Some(problem(row, "only the gateway's own rows are facets of others")),
    });
    own.collect()
}

/// Every problem of a table.
pub(super) fn rows(rows: &[Operation]) -> Vec<Problem> {
    let mut problems: Vec<Problem> = rows.iter().flat_map(|row| one(row, rows)).collect();
    problems.extend(pairs(rows));
    problems
}

/// The rules that look at one row, and at the ids of the others.
fn one(row: &Operation, rows: &[Operation]) -> Vec<Problem> {
    let mut texts = Vec::new();
    words(row, rows, &mut texts);
    template(row, &mut texts);
    places(row, &mut texts);
    caching(row, rows, &mut texts);
    runs(row, &mut texts);
    shape(row, &mut texts);
    references(row, rows, &mut texts);
    texts.into_iter().map(|text| problem(row, text)).collect()
}

fn problem(row: &Operation, text: impl Into<String>) -> Problem {
    Problem { row: row.id, text: text.into() }
}

/// Ids, tools and scopes: names that leave the process.
fn words(row: &Operation, rows: &[Operation], texts: &mut Vec<String>) {
    if !is_word(row.id, ID_MAX) {
        texts.push(format!("id must be 1 to {ID_MAX} characters of `a-z0-9_`"));
    }
    if let Some(tool) = row.tool
        && !(is_word(tool, TOOL_NAME_MAX) && tool.bytes().all(|byte| !byte.is_ascii_digit()))
    {
        texts.push(format!("tool `{tool}` must be 1 to {TOOL_NAME_MAX} characters of `a-z_`"));
    }
    for scope in row.scopes {
        let parts = scope.split_once(':');
        if !parts.is_some_and(|(resource, action)| is_word(resource, ID_MAX) && is_word(action, ID_MAX)) {
            texts.push(format!("scope `{scope}` must read `resource:action`"));
        }
    }
    if row.scopes.is_empty() && !row.exposure.is_local() {
        texts.push("no scope grants it".to_owned());
    }
    if let Exposure::Facet(of) = row.exposure
        && !rows.iter().any(|other| (other.id, other.path, other.method) == (of, row.path, row.method))
    {
        texts.push(format!("is a facet of `{of}`, which does not exist on its path"));
    }
    if row.exposure == Exposure::Off("") {
        texts.push("an operation that is off must say why".to_owned());
    }
}

fn template(row: &Operation, texts: &mut Vec<String>) {
    let path = row.path;
    if !path.starts_with('/') || path.contains("//") || (path.len() > 1 && path.ends_with('/')) {
        texts.push(format!("path `{path}` must start with `/` and have no empty segment"));
        return;
    }
    let all: Vec<Segment> = segments(path).collect();
    let mut names = Vec::new();
    for (index, segment) in all.iter().enumerate() {
        match *segment {
            Segment::Literal("." | "..") => texts.push(format!("path `{path}` has a dot segment")),
            Segment::Literal(text) if text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._~:".contains(&b)) => {}
            Segment::Literal(text) => texts.push(format!("path segment `{text}` is neither plain text nor `{{name}}`")),
            Segment::Rest(_) if index.saturating_add(1) != all.len() => {
                texts.push(format!("`:path` stands before the end of `{path}`"));
            }
            Segment::One(name) | Segment::Rest(name) if !is_word(name, ID_MAX) => {
                texts.push(format!("path parameter `{name}` must be of `a-z0-9_`"));
            }
            Segment::One(name) | Segment::Rest(name) if names.contains(&name) => {
                texts.push(format!("path parameter `{name}` stands twice"));
            }
            Segment::One(name) | Segment::Rest(name) => names.push(name),
        }
    }
}

/// Where identities travel must exist, and a user id must not travel unseen.
fn places(row: &Operation, texts: &mut Vec<String>) {
    for place in row.user_id.iter().chain(row.session_id).chain(row.run_id) {
        // The gateway writes the run id of a new run into the form; callers may not.
        let sets_run_id = row.affinity == Affinity::StartsRun && row.run_id.contains(place);
        let exists = match place {
            Place::Path(name) => parameters(row).any(|known| known == *name),
            Place::Query(name) => row.query.contains(name),
            Place::Form(name) => sets_run_id || matches!(row.body, Body::Form(fields) if fields.contains(name)),
            Place::Json(name) => matches!(row.body, Body::Json(f) if f.is_empty() || f.contains(name)),
        };
        if !exists {
            texts.push(format!("an identity is said to travel in `{}`, which the row does not have", place.name()));
        }
    }
    let travels = parameters(row).chain(row.query.iter().copied()).chain(fields(row).iter().copied());
    let unseen = travels.filter(|name| *name == "user_id").count() > row.user_id.len();
    if unseen && row.reach != Reach::OsWide {
        texts.push("takes a `user_id` that its row does not list as a place of the user id".to_owned());
    }
}

fn caching(row: &Operation, rows: &[Operation], texts: &mut Vec<String>) {
    if row.cache != Caching::Never && (row.action != Action::Read || row.cost == Cost::Model) {
        texts.push("only a light operation that reads may be cached".to_owned());
    }
    if row.cache != Caching::Never && (row.reply != Reply::Json || matches!(row.body, Body::Form(_))) {
        texts.push("only JSON answers to queries or JSON bodies are cached".to_owned());
    }
    if row.cache == Caching::Shared && (row.reach != Reach::Component || row.method != Method::Get) {
        texts.push("only a `GET` of what a cluster's users share may be cached for all of them".to_owned());
    }
    if !row.purges.is_empty() && row.action == Action::Read {
        texts.push("an operation that reads purges nothing".to_owned());
    }
    for id in row.purges {
        match rows.iter().find(|other| other.id == *id) {
            None => texts.push(format!("purges `{id}`, which does not exist")),
            Some(other) if other.cache == Caching::Never => texts.push(format!("purges `{id}`, which is never cached")),
            Some(_) => {}
        }
    }
}

fn runs(row: &Operation, texts: &mut Vec<String>) {
    let needs = match row.affinity {
        Affinity::Any => None,
        Affinity::StartsRun if row.cost != Cost::Model => Some("starts a run without the cost of a model"),
        Affinity::FollowsRun(OnRun::Continue) if row.cost != Cost::Model => {
            Some("continues a run without the cost of a model")
        }
        Affinity::StartsRun | Affinity::FollowsRun(_) if row.run_id.is_empty() => {
            Some("has run affinity but no run id")
        }
        Affinity::FollowsRun(on_run) if on_run != OnRun::Other && row.resource != Resource::Run => {
            Some("cancels, continues or resumes a run, but its resource is no run")
        }
        // What is known of such a run is looked up by the two.
        Affinity::FollowsRun(on_run) if on_run != OnRun::Other && !names_run_and_component(row) => {
            Some("cancels, continues or resumes a run, but its path does not name the run and its component")
        }
        Affinity::StartsRun | Affinity::FollowsRun(_) => None,
        Affinity::Session if row.session_id.is_empty() => Some("has session affinity but no session id"),
        Affinity::Session => None,
    };
    texts.extend(needs.map(str::to_owned));
    texts.extend(undeclared(row));
    let streams = matches!(row.body, Body::Form(fields) if fields.contains(&"stream"));
    if row.reply == Reply::SseIfStream && !streams {
        texts.push("streams if its form says so, but its form has no field `stream`".to_owned());
    }
}

/// What AgentOS would do to a run, while the row does not say so: it would be neither confirmed nor guarded.
fn undeclared(row: &Operation) -> Option<String> {
    const STEPS: [(&str, OnRun); 3] =
        [("cancel", OnRun::Cancel), ("continue", OnRun::Continue), ("resume", OnRun::Resume)];
    let ends_in = |word| row.path.strip_suffix(word).is_some_and(|path| path.ends_with("/{run_id}/"));
    let (word, on_run) = STEPS.into_iter().find(|(word, _)| ends_in(*word))?;
    let says_so = matches!(row.affinity, Affinity::FollowsRun(said) if said == on_run || said.is_facet());
    let affinity = Affinity::FollowsRun(on_run).as_str();
    (!says_so).then(|| format!("its path ends in `/{{run_id}}/{word}`, but its affinity is not `{affinity}`"))
}

/// Exactly one component: which of two a run belongs to would be a guess.
fn names_run_and_component(row: &Operation) -> bool {
    let is_component = |name: &&str| Kind::ALL.iter().any(|kind| id_name(kind.resource()) == Some(name));
    parameters(row).filter(is_component).count() == 1
        && id_name(Resource::Run).is_some_and(|run| row.run_id.contains(&Place::Path(run)))
}

fn shape(row: &Operation, texts: &mut Vec<String>) {
    if row.list.is_some() && (row.reply != Reply::Json || row.action != Action::Read) {
        texts.push("a list is a JSON answer to an operation that reads".to_owned());
    }
    if row.method == Method::Get && row.body != Body::None {
        texts.push("a `GET` has no body".to_owned());
    }
    if row.action == Action::Delete && !row.destructive {
        texts.push("deletes, so it is destructive".to_owned());
    }
    for list in [row.query, fields(row)] {
        let twice = list.iter().enumerate().find(|(index, name)| list.iter().skip(index + 1).any(|n| n == *name));
        texts.extend(twice.map(|(_, name)| format!("names `{name}` twice")));
    }
}

/// What a row says about its own fields and about other rows must exist.
fn references(row: &Operation, rows: &[Operation], texts: &mut Vec<String>) {
    for (field, id) in row.lists_within {
        if !rows.iter().any(|other| other.id == *id && other.action == Action::Read) {
            texts.push(format!("`{id}` decides about `{field}`, and is no operation that reads"));
        }
    }
    let holds_mark = match row.mark {
        None => true,
        Some(Mark::Mixed(_)) => row.reply == Reply::Json && row.body == Body::None,
        Some(Mark::Filter(name)) => matches!(row.body, Body::Json(fields) if fields.contains(&name)),
        Some(Mark::Metadata(name) | Mark::MetadataIfGiven(name)) => {
            matches!(row.body, Body::Form(fields) if fields.contains(&name))
        }
    };
    if !holds_mark {
        texts.push("its body has no field for the tenant's mark".to_owned());
    }
}

/// The rules between rows: ids are unique, and no request fits two templates in an unknown order.
fn pairs(rows: &[Operation]) -> Vec<Problem> {
    let mut problems = Vec::new();
    let mut seen: BTreeMap<&str, &Operation> = BTreeMap::new();
    for (index, row) in rows.iter().enumerate() {
        if let Some(first) = seen.insert(row.id, row) {
            problems.push(problem(row, format!("id is taken by `{} {}`", first.method, first.path)));
        }
        if matches!(row.exposure, Exposure::Facet(_)) {
            continue;
        }
        for other in rows.iter().take(index).filter(|other| other.method == row.method) {
            if matches!(other.exposure, Exposure::Facet(_)) {
                continue;
            }
            if ambiguous(other.path, row.path) {
                let text =
                    format!("`{} {}` is ambiguous with `{}` of `{}`", row.method, row.path, other.path, other.id);
                problems.push(problem(row, text));
            }
        }
    }
    problems
}

/// Whether some path fits both templates and neither is the more literal one throughout.
fn ambiguous(one: &'static str, other: &'static str) -> bool {
    if KNOWN_ORDER.iter().any(|pair| *pair == (one, other) || *pair == (other, one)) {
        return false;
    }
    let (mut one, mut other) = (segments(one), segments(other));
    let (mut one_literal, mut other_literal) = (false, false);
    loop {
        match (one.next(), other.next()) {
            (None, None) => return one_literal == other_literal,
            (None, Some(_)) | (Some(_), None) => return false,
            (Some(Segment::Rest(_)), Some(Segment::Rest(_))) => return one_literal == other_literal,
            // The rest takes what the other template spells out: the other one is more literal from here on.
            (Some(Segment::Rest(_)), Some(_)) => return one_literal,
            (Some(_), Some(Segment::Rest(_))) => return other_literal,
            (Some(Segment::Literal(left)), Some(Segment::Literal(right))) if left != right => return false,
            (Some(Segment::Literal(_)), Some(Segment::Literal(_))) => {}
            (Some(Segment::Literal(_)), Some(Segment::One(_))) => one_literal = true,
            (Some(Segment::One(_)), Some(Segment::Literal(_))) => other_literal = true,
            (Some(Segment::One(_)), Some(Segment::One(_))) => {}
        }
    }
}

fn parameters(row: &Operation) -> impl Iterator<Item = &'static str> {
    segments(row.path).filter_map(|segment| match segment {
        Segment::Literal(_) => None,
        Segment::One(name) | Segment::Rest(name) => Some(name),
    })
}

fn fields(row: &Operation) -> &'static [&'static str] {
    match row.body {
        Body::None => &[],
        Body::Json(fields) | Body::Form(fields) => fields,
    }
}

fn is_word(text: &str, length_max: usize) -> bool {
    let fits = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
    text.len() <= length_max && text.starts_with(|c: char| c.is_ascii_lowercase()) && text.bytes().all(fits)
}
