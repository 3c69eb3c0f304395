//! Owns what a URL or a header leaves of the tools: toolsets and read-only mode.
//! Does not widen: the configuration and policy are upper bounds. Decided per request, never remembered.
//! Invariant: an unknown toolset in the URL is a wrong address; in a header it selects nothing.

use http::HeaderMap;

use super::tools::Tool;

/// A named group of tools.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Toolset {
    /// List and run agents, teams and workflows.
    Agents,
    /// Search knowledge.
    Knowledge,
    /// See and resolve approvals.
    Approvals,
    /// Read sessions.
    Sessions,
    /// One tool per agent, team and workflow.
    Ask,
    /// Read and add memories.
    Memory,
    /// Read what runs did.
    Traces,
    /// Read what an AgentOS has used.
    Metrics,
    /// See, plan and pause runs by the clock.
    Schedules,
    /// Add to knowledge bases.
    KnowledgeWrite,
    /// See what an AgentOS is made of.
    Admin,
}

/// The tools that one request may see, before policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Narrowing {
    toolsets: Vec<Toolset>,
    read_only: bool,
}

const TOOLSETS: &str = "x-mcp-toolsets";
const SUFFIX_READONLY: &str = "/readonly";
const SUFFIX_TOOLSET: &str = "/x/";

// === impl Toolset ===

impl Toolset {
    /// All of them, as clients get them.
    pub const ALL: [Self; 11] = [
        Self::Agents,
        Self::Knowledge,
        Self::Approvals,
        Self::Sessions,
        Self::Ask,
        Self::Memory,
        Self::Traces,
        Self::Metrics,
        Self::Schedules,
        Self::KnowledgeWrite,
        Self::Admin,
    ];

    /// Those that clients get when they ask for none, unless the configuration says otherwise.
    pub const DEFAULT: [Self; 4] = [Self::Agents, Self::Knowledge, Self::Approvals, Self::Sessions];

    /// The name in the configuration, URLs and headers.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Agents => "agents",
            Self::Knowledge => "knowledge",
            Self::Approvals => "approvals",
            Self::Sessions => "sessions",
            Self::Ask => "ask",
            Self::Memory => "memory",
            Self::Traces => "traces",
            Self::Metrics => "metrics",
            Self::Schedules => "schedules",
            Self::KnowledgeWrite => "knowledge-write",
            Self::Admin => "admin",
        }
    }

    /// The toolset of a name.
    pub(super) fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|t| t.as_str() == name)
    }
}

// === impl Narrowing ===

impl Narrowing {
    /// Reads the narrowing of a request to `base` or below it; `None` when there is no such address. `optional` toolsets
    /// are left only where the address or a header names them.
    pub(super) fn of(
        base: &str,
        (configured, optional): (&[Toolset], &[Toolset]),
        path: &str,
        headers: &HeaderMap,
    ) -> Option<Self> {
        let rest = path.strip_prefix(base)?;
        let mut narrowing = Self { toolsets: configured.to_vec(), read_only: rest == SUFFIX_READONLY };
        if let Some(name) = rest.strip_prefix(SUFFIX_TOOLSET) {
            let only = Toolset::parse(name).filter(|t| configured.contains(t) || optional.contains(t))?;
            narrowing.toolsets = vec![only];
        } else if !rest.is_empty() && !narrowing.read_only {
            return None;
        } else if headers.contains_key(TOOLSETS) {
            narrowing.toolsets.extend(optional.iter().filter(|t| !configured.contains(t)));
        }
        narrowing.read_headers(headers);
        Some(narrowing)
    }

    /// Says whether a path is at or below the endpoint.
    pub(super) fn owns(base: &str, path: &str) -> bool {
        path.strip_prefix(base)
            .is_some_and(|rest| rest.is_empty() || rest == SUFFIX_READONLY || rest.starts_with(SUFFIX_TOOLSET))
    }

    /// Says whether the tool is left.
    pub(super) fn allows(&self, tool: &Tool) -> bool {
        let in_set = tool.toolsets.is_empty() || tool.toolsets.iter().any(|toolset| self.toolsets.contains(toolset));
        in_set && (tool.reads() || !self.read_only)
    }

    /// Says whether a toolset is left.
    pub(super) fn has(&self, toolset: Toolset) -> bool {
        self.toolsets.contains(&toolset)
    }

    /// Says whether what is read beside the tools of a toolset is left: runs are the same whichever tool started them.
    pub(super) fn reads_of(&self, toolset: Toolset) -> bool {
        self.has(toolset) || (toolset == Toolset::Agents && self.has(Toolset::Ask))
    }

    /// Says whether only what changes nothing is left.
    pub(super) fn is_read_only(&self) -> bool {
        self.read_only
    }

    fn read_headers(&mut self, headers: &HeaderMap) {
        if let Some(names) = headers.get(TOOLSETS).map(|v| v.to_str().unwrap_or_default()) {
            let named: Vec<Toolset> = names.split(',').filter_map(|name| Toolset::parse(name.trim())).collect();
            self.toolsets.retain(|toolset| named.contains(toolset));
        }
        let read_only = headers.get("x-mcp-readonly").and_then(|v| v.to_str().ok()).map(str::trim);
        self.read_only |= read_only.is_some_and(|v| v.eq_ignore_ascii_case("true") || v == "1");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(path: &str, headers: &[(&'static str, &'static str)]) -> Option<(Vec<&'static str>, bool)> {
        let configured = [Toolset::Agents, Toolset::Knowledge, Toolset::Sessions];
        let headers = headers.iter().map(|(k, v)| (k.parse().unwrap(), v.parse().unwrap())).collect();
        let optional = [Toolset::Memory, Toolset::KnowledgeWrite];
        let narrowing = Narrowing::of("/mcp", (&configured, &optional), path, &headers)?;
        Some((narrowing.toolsets.iter().map(|t| t.as_str()).collect(), narrowing.read_only))
    }

    #[test]
    fn url_and_headers_only_narrow() {
        assert_eq!(of("/mcp", &[]), Some((vec!["agents", "knowledge", "sessions"], false)));
        assert_eq!(of("/mcp/x/knowledge", &[]), Some((vec!["knowledge"], false)));
        assert_eq!(of("/mcp/readonly", &[]), Some((vec!["agents", "knowledge", "sessions"], true)));
        assert_eq!(of("/mcp", &[("x-mcp-toolsets", "sessions, approvals,nope")]), Some((vec!["sessions"], false)));
        assert_eq!(of("/mcp/x/agents", &[("x-mcp-toolsets", "sessions")]), Some((vec![], false)));
        assert_eq!(of("/mcp/x/memory", &[]), Some((vec!["memory"], false)));
        assert_eq!(of("/mcp/x/agents", &[("x-mcp-toolsets", "memory")]), Some((vec![], false)));
        let both = [("x-mcp-toolsets", "agents,knowledge-write, admin")];
        assert_eq!(of("/mcp", &both), Some((vec!["agents", "knowledge-write"], false)));
        assert_eq!(of("/mcp/readonly", &both), Some((vec!["agents", "knowledge-write"], true)));
        assert_eq!(of("/mcp/x/agents", &[("x-mcp-readonly", "TRUE")]), Some((vec!["agents"], true)));
        for wrong in ["/mcp/x/approvals", "/mcp/x/admin", "/mcp/x/nope", "/mcp/x/", "/mcp/other", "/mcpx"] {
            assert_eq!(of(wrong, &[]), None, "{wrong}");
        }
    }

    #[test]
    fn the_endpoint_owns_itself_and_its_narrowings() {
        for own in ["/mcp", "/mcp/x/agents", "/mcp/x/nope", "/mcp/readonly"] {
            assert!(Narrowing::owns("/mcp", own), "{own}");
        }
        for other in ["/mcpx", "/mc", "/mcp/other", "/agents", "/mcp/readonly/x"] {
            assert!(!Narrowing::owns("/mcp", other), "{other}");
        }
    }
}
