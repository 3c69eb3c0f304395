//! Owns what one request says about the client that sent it: its era, how long it waits, what it can be asked.
//! Does not trust any of it: a client's name and abilities decide how it is answered, never what it may do.
//! Invariant: what only the stateless revision has is never offered to an older client.

use std::time::Duration;

use http::HeaderMap;
use http::request::Parts;
use rmcp::model::{ElicitationCapability, ProtocolVersion};
use rmcp::service::RequestContext;
use rmcp::{ErrorData, RoleServer};

use super::sessions::InUse;
use super::settings::RunSettings;

/// How many seconds a run is followed, unless a call says otherwise.
const WAIT: &str = "x-mcp-wait";

/// The client of one request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Client {
    pub(super) era: Era,
    /// How long a run is followed unless the call says otherwise.
    pub(super) budget: Duration,
    /// It can put a form before its user.
    pub(super) elicits: bool,
    /// Its forms offer choices with titles, and several at once.
    pub(super) chooses: bool,
    /// It follows tasks.
    pub(super) tasks: bool,
}

/// The two eras of the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Era {
    /// Every request says everything; leaving is cancelling.
    Stateless,
    /// Sessions; a cancellation is said.
    Sessions,
}

// === impl Client ===

impl Client {
    /// Reads the request.
    ///
    /// # Errors
    /// For a wait in the header that is no number of seconds.
    pub(super) fn of(
        settings: &RunSettings,
        parts: &Parts,
        cx: &RequestContext<RoleServer>,
    ) -> Result<Self, ErrorData> {
        let version = cx.protocol_version();
        let at_least = |first: &ProtocolVersion| version.as_ref().is_some_and(|v| v.as_str() >= first.as_str());
        // A client may have asked for the stateless revision when it opened a session, and got an older one.
        let stateless = parts.extensions.get::<InUse>().is_none() && at_least(&ProtocolVersion::V_2026_07_28);
        let name = cx.client_info().map(|info| info.name.clone()).unwrap_or_default();
        let capabilities = cx.client_capabilities();
        let elicitation = capabilities.as_ref().and_then(|able| able.elicitation.as_ref());
        Ok(Self {
            era: if stateless { Era::Stateless } else { Era::Sessions },
            budget: asked_for(settings, &parts.headers)?.unwrap_or_else(|| settings.wait_of(&name)),
            chooses: at_least(&ProtocolVersion::V_2025_11_25),
            elicits: at_least(&ProtocolVersion::V_2025_06_18) && elicitation.is_some_and(has_forms),
            tasks: stateless && capabilities.as_ref().is_some_and(|able| able.supports_tasks()),
        })
    }
}

/// An empty declaration means forms: the first revision with elicitation had nothing else.
fn has_forms(able: &ElicitationCapability) -> bool {
    able.form.is_some() || able.url.is_none()
}

fn asked_for(settings: &RunSettings, headers: &HeaderMap) -> Result<Option<Duration>, ErrorData> {
    let Some(value) = headers.get(WAIT) else { return Ok(None) };
    let seconds = value.to_str().ok().and_then(|text| text.trim().parse::<u32>().ok());
    let Some(seconds) = seconds else {
        return Err(ErrorData::invalid_params("the header X-MCP-Wait must be a whole number of seconds", None));
    };
    Ok(Some(Duration::from_secs(seconds.into()).min(settings.wait_max)))
}
