//! Owns one MCP request as tools see it: who calls, from where, with which clusters, and how to report progress.
//! Does not run tools (`tools`).
//! Invariant: a visit lives for one request; nothing of it is kept for the next one.

use std::sync::Arc;

use http::{HeaderMap, HeaderValue};
use rmcp::ErrorData;
use rmcp::RoleServer;
use rmcp::model::InputResponses;
use rmcp::service::{Peer, RequestContext};
use tokio_util::sync::CancellationToken;

use super::Inner;
use super::ask::{Asker, Failure};
use super::client::Client;
use super::handle::RunHandle;
use super::narrowing::Narrowing;
use super::progress::Progress;
use super::reader::Reader;
use super::viewer::Viewer;
use crate::gateway::Carrier;
use crate::principal::Principal;

/// Longest id of a component, session, run, approval or knowledge base.
const ID_CHARS_MAX: usize = 200;
/// One request.
pub(super) struct Visit {
    pub(super) inner: Arc<Inner>,
    pub(super) asker: Asker,
    pub(super) narrowing: Narrowing,
    /// Never empty.
    pub(super) clusters: Vec<Arc<str>>,
    pub(super) ct: CancellationToken,
    pub(super) client: Client,
    /// Where an older client is asked something.
    pub(super) peer: Peer<RoleServer>,
    /// What the call says besides its tool.
    pub(super) turn: Turn,
}

/// What a tool call brings besides the arguments that its tool reads.
#[derive(Debug, Default)]
pub(super) struct Turn {
    /// The tool's name, as it was called.
    pub(super) tool: String,
    /// A digest of the arguments.
    pub(super) arguments: String,
    /// The state of a question that this call answers.
    pub(super) state: Option<String>,
    /// The answers.
    pub(super) responses: InputResponses,
}

impl Visit {
    /// Reads the request.
    ///
    /// # Errors
    /// An internal error when the door put no principal or carrier into it, and what is wrong with its headers.
    pub(super) fn of(inner: &Arc<Inner>, cx: &RequestContext<RoleServer>) -> Result<(Self, Progress), ErrorData> {
        let missing = || ErrorData::internal_error("the request has no caller", None);
        let parts = cx.extensions.get::<http::request::Parts>().ok_or_else(missing)?;
        let principal = parts.extensions.get::<Arc<Principal>>().cloned().ok_or_else(missing)?;
        let carrier = parts.extensions.get::<Carrier>().cloned().ok_or_else(missing)?;
        let narrowing = parts.extensions.get::<Narrowing>().cloned().ok_or_else(missing)?;
        let reader = parts.extensions.get::<Arc<Reader>>().cloned().ok_or_else(missing)?;
        let clusters = inner.path.clusters_for(&principal);
        inner.discovery.want();
        let client = Client::of(&inner.runs.load(), parts, cx)?;
        let path = Arc::clone(&inner.path);
        let visit = Self {
            inner: Arc::clone(inner),
            asker: Asker { path, principal, carrier, trace: trace(cx), tool: None },
            narrowing,
            clusters,
            ct: cx.ct.clone(),
            client,
            peer: cx.peer.clone(),
            turn: Turn::default(),
        };
        let progress = Progress::new(cx.peer.clone(), cx.meta.get_progress_token(), reader);
        Ok((visit, progress))
    }

    /// The caller as lists see it.
    pub(super) fn viewer(&self) -> Viewer {
        Viewer {
            inner: Arc::clone(&self.inner),
            principal: Arc::clone(&self.asker.principal),
            peer: self.asker.carrier.peer,
            narrowing: self.narrowing.clone(),
            clusters: self.clusters.clone(),
        }
    }

    /// The caller.
    pub(super) fn principal(&self) -> &Principal {
        &self.asker.principal
    }

    /// How an id is written for this caller: `cluster/id` where it may use several clusters.
    pub(super) fn name(&self, cluster: &str, id: &str) -> String {
        if self.clusters.len() > 1 { format!("{cluster}/{id}") } else { id.to_owned() }
    }

    /// Reads an id that may name its cluster; `None` when it does not and there are several.
    ///
    /// # Errors
    /// A text for the model when the id cannot be one, or the cluster is none of the caller's.
    pub(super) fn place(&self, what: &str, text: &str) -> Result<(Option<Arc<str>>, String), Failure> {
        match text.split_once('/') {
            Some((cluster, id)) => {
                let cluster = self.clusters.iter().find(|name| &***name == cluster).ok_or_else(|| {
                    Failure::Argument(format!("`{what}` names an unknown cluster `{}`", super::text::head(cluster, 80)))
                })?;
                Ok((Some(Arc::clone(cluster)), id_of(what, id)?))
            }
            None => {
                let only = self.clusters.first().filter(|_| self.clusters.len() == 1);
                Ok((only.map(Arc::clone), id_of(what, text)?))
            }
        }
    }

    /// The same, with the caller's default cluster where none is named.
    ///
    /// # Errors
    /// See [`Visit::place`], and a failure for a caller without clusters.
    pub(super) fn place_or_default(&self, what: &str, text: &str) -> Result<(Arc<str>, String), Failure> {
        let (cluster, id) = self.place(what, text)?;
        let cluster = cluster.or_else(|| self.clusters.first().cloned()).ok_or_else(no_cluster)?;
        Ok((cluster, id))
    }

    /// The caller's default cluster.
    ///
    /// # Errors
    /// When the caller has none.
    pub(super) fn default_cluster(&self) -> Result<Arc<str>, Failure> {
        self.clusters.first().cloned().ok_or_else(no_cluster)
    }

    /// The clusters to ask: the named one or all.
    ///
    /// # Errors
    /// When the caller has none.
    pub(super) fn clusters_or(&self, named: Option<Arc<str>>) -> Result<Vec<Arc<str>>, Failure> {
        let clusters = named.map_or_else(|| self.clusters.clone(), |cluster| vec![cluster]);
        if clusters.is_empty() { Err(no_cluster()) } else { Ok(clusters) }
    }

    /// Opens a `run` handle of this caller.
    ///
    /// # Errors
    /// One failure for every handle that is not the caller's.
    pub(super) fn run(&self, text: &str) -> Result<RunHandle, Failure> {
        RunHandle::open(&*self.inner.path, self.principal(), text)
    }
}

fn no_cluster() -> Failure {
    Failure::Argument("you may not use any cluster".to_owned())
}

/// Checks an id: it becomes one path segment.
///
/// # Errors
/// A text for the model.
pub(super) fn id_of(what: &str, id: &str) -> Result<String, Failure> {
    let id = id.trim();
    let length_fits = (1..=ID_CHARS_MAX).contains(&id.chars().count());
    let plain = !id.chars().any(|c| c.is_control() || matches!(c, '/' | '\\'));
    if length_fits && plain && !matches!(id, "." | "..") {
        return Ok(id.to_owned());
    }
    Err(Failure::Argument(format!("`{what}` must be an id of 1 to {ID_CHARS_MAX} characters without slashes")))
}

/// The trace context that the client sent in `_meta`.
fn trace(cx: &RequestContext<RoleServer>) -> HeaderMap {
    let fields = [("traceparent", cx.meta.get_traceparent()), ("tracestate", cx.meta.get_tracestate())];
    fields
        .into_iter()
        .filter_map(|(name, value)| Some((http::HeaderName::from_static(name), HeaderValue::from_str(value?).ok()?)))
        .collect()
}
