//! Owns the resources: agents, runs, sessions and contents of knowledge bases, by address.
//! Does not decide who may read them: every read is admitted like any other call.
//! Invariants: a list of resources never asks AgentOS; what belongs to another principal looks absent.

mod address;
mod complete;
mod read;

use std::collections::HashMap;

use rmcp::ErrorData;
use rmcp::model::{Resource, ResourceTemplate};

use super::narrowing::Toolset;
use super::refused;
use super::routes::{self, Deed};
use super::viewer::{Shown, Viewer};
use super::visit::Visit;
use crate::agentos::operation::Kind;

pub(super) use address::{Address, Part};
pub(super) use complete::complete;
pub(super) use read::{Unread, read, stored, word};

const JSON: &str = "application/json";
const TEXT: &str = "text/plain";

/// A template, and what a caller needs to get it listed.
struct Template {
    uri: &'static str,
    name: &'static str,
    title: &'static str,
    description: &'static str,
    mime: Option<&'static str>,
    toolset: Toolset,
}

static TEMPLATES: &[Template] = &[
    Template {
        uri: "agno://agents/{id}{?kind}",
        name: "agent",
        title: "Agent, team or workflow",
        description: "What an agent, team or workflow is. `id` as list_agents gives it; `kind` where it is ambiguous.",
        mime: Some(JSON),
        toolset: Toolset::Agents,
    },
    Template {
        uri: "agno://knowledge/{knowledge}/content/{id}",
        name: "content",
        title: "Content of a knowledge base",
        description: "What is known of one content: name, type, size, status, metadata. Ids as the knowledge tools give \
            them.",
        mime: Some(JSON),
        toolset: Toolset::Knowledge,
    },
    Template {
        uri: "agno://runs/{id}",
        name: "run",
        title: "Run",
        description: "Where a run stands, with its answer. `id` is the `run` handle that run_agent returned.",
        mime: Some(JSON),
        toolset: Toolset::Agents,
    },
    Template {
        uri: "agno://runs/{id}/media/{number}",
        name: "run_media",
        title: "Image, video, sound or file of a run",
        description: "One of the media that a run made, by its number.",
        mime: None,
        toolset: Toolset::Agents,
    },
    Template {
        uri: "agno://runs/{id}/output{?offset}",
        name: "run_output",
        title: "Answer of a run",
        description: "The text of a run's answer from a character on, a page at a time.",
        mime: Some(TEXT),
        toolset: Toolset::Agents,
    },
    Template {
        uri: "agno://sessions/{id}{?kind}",
        name: "session",
        title: "Session",
        description: "The conversation of one session. `id` as list_sessions gives it; `kind` saves a look-up.",
        mime: Some(JSON),
        toolset: Toolset::Sessions,
    },
];

/// The components that the caller may read.
pub(super) fn listed(viewer: &Viewer) -> Vec<Shown> {
    if !viewer.narrowing.reads_of(Toolset::Agents) {
        return Vec::new();
    }
    viewer.components_now(Deed::List)
}

/// As clients see them.
pub(super) fn describe(all: &[Shown]) -> Vec<Resource> {
    let mut named: HashMap<&str, usize> = HashMap::with_capacity(all.len());
    all.iter().for_each(|shown| *named.entry(&shown.name).or_default() += 1);
    let one = |shown: &Shown| {
        let found = &shown.found;
        let kind = Some(found.kind).filter(|_| named.get(shown.name.as_str()).is_some_and(|count| *count > 1));
        let address = Address::Agent { agent: shown.name.clone(), kind };
        let resource = Resource::new(address.to_string(), shown.name.as_str()).with_mime_type(JSON);
        let title = if found.name.is_empty() { &found.id } else { &found.name };
        let resource = resource.with_title(format!("{title} ({})", found.kind));
        if found.description.is_empty() { resource } else { resource.with_description(found.description.as_str()) }
    };
    all.iter().map(one).collect()
}

/// The templates of what the caller may read something of.
pub(super) fn templates(viewer: &Viewer) -> Vec<ResourceTemplate> {
    let listed =
        TEMPLATES.iter().filter(|template| viewer.narrowing.reads_of(template.toolset) && template.readable(viewer));
    listed.map(Template::describe).collect()
}

/// Says whether the caller could be told of changes of a resource: it may read it now, and it is of a kind that changes
/// in ways the gateway sees.
pub(super) fn can_be_watched(viewer: &Viewer, uri: &str) -> bool {
    match Address::parse(uri) {
        Some(Address::Agent { agent, kind }) => !named(&listed(viewer), &agent, kind).is_empty(),
        Some(Address::Run { run, part: Part::Summary }) => {
            let open = super::handle::RunHandle::open(&*viewer.inner.path, &viewer.principal, &run);
            viewer.narrowing.reads_of(Toolset::Agents) && open.is_ok()
        }
        Some(Address::Run { .. } | Address::Session { .. } | Address::Content { .. }) | None => false,
    }
}

/// Those of a name, and of a kind if one is given.
pub(super) fn named<'a>(all: &'a [Shown], name: &str, kind: Option<Kind>) -> Vec<&'a Shown> {
    all.iter().filter(|shown| shown.name == name && kind.is_none_or(|kind| shown.found.kind == kind)).collect()
}

/// The error of a read.
pub(super) fn error(uri: &str, unread: Unread) -> ErrorData {
    match unread {
        Unread::Absent => refused::absent(uri),
        Unread::Ambiguous(why) => ErrorData::invalid_params(why, None),
        Unread::Failed(failure) if failure.is_not_found() => refused::absent(uri),
        Unread::Failed(failure) => refused::protocol_error(&failure),
    }
}

// === impl Template ===

impl Template {
    fn readable(&self, viewer: &Viewer) -> bool {
        let some = |deed| {
            let whole = |kind: &Kind| viewer.may(routes::of(*kind, deed).operation, "");
            Kind::ALL.iter().any(whole) || Kind::ALL.iter().any(|kind| viewer.may_some(*kind, deed))
        };
        match self.toolset {
            Toolset::Agents if self.name == "agent" => some(Deed::List),
            Toolset::Agents => some(Deed::Read),
            Toolset::Knowledge => viewer.may(routes::CONTENT.operation, ""),
            Toolset::Sessions => viewer.may(routes::SESSION.operation, ""),
            _ => false,
        }
    }

    fn describe(&self) -> ResourceTemplate {
        let template = ResourceTemplate::new(self.uri, self.name).with_title(self.title);
        let template = template.with_description(self.description);
        match self.mime {
            Some(mime) => template.with_mime_type(mime),
            None => template,
        }
    }
}

/// What is told of a visit's resources on one page.
pub(super) async fn settle(visit: &Visit) -> Viewer {
    visit.inner.discovery.settled(&visit.clusters).await;
    visit.viewer()
}
