//! Owns the names that callers have inside an AgentOS: `{tenant}~{subject}`, rendered and taken apart.
//! Does not verify subjects (`identity`).
//! Invariant: under one template, two callers never share a name: a rendered id splits in one way only.

use std::fmt;
use std::sync::Arc;

use crate::principal::{Principal, TenantId};

/// Longest template, in bytes.
pub const TEMPLATE_BYTES_MAX: usize = 128;
const TENANT: &str = "{tenant}";
const SUBJECT: &str = "{subject}";

/// How a cluster names its callers upstream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UserIdTemplate {
    text: String,
    before: String,
    between: String,
    after: String,
    order: Order,
}

/// Which placeholder comes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Order {
    SubjectOnly,
    TenantFirst,
    SubjectFirst,
}

/// Why a template was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("user id template `{text}` {reason}")]
pub struct BadTemplate {
    /// The template.
    pub text: String,
    /// What is wrong with it.
    pub reason: &'static str,
}

/// A caller's name inside an AgentOS.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct UpstreamUser(Arc<str>);

/// What every name of one tenant's users begins and ends with; the subject stands between.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TenantMark {
    /// The names begin so; holds the tenant, or may be empty.
    pub start: String,
    /// The names end so; holds the tenant, or may be empty.
    pub end: String,
    /// Which of them holds the tenant.
    pub side: Side,
}

/// Where the tenant stands in a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// Before the subject.
    Start,
    /// Behind the subject.
    End,
}

/// The rendered name is one that AgentOS keeps for itself.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the upstream user id `{0}` is reserved by AgentOS")]
pub struct ReservedName(pub String);

// === impl UserIdTemplate ===

impl UserIdTemplate {
    /// Parses a template: `{subject}` once, `{tenant}` at most once, plain characters around them.
    ///
    /// # Errors
    /// [`BadTemplate`] when a rendered id could be read in two ways, or would need percent-encoding.
    pub fn parse(text: &str) -> Result<Self, BadTemplate> {
        Self::split(text)
            .map_err(|reason| BadTemplate { text: text.chars().take(TEMPLATE_BYTES_MAX).collect(), reason })
    }

    /// What the names of a tenant's users have in common; `None` where names hold no tenant.
    pub fn mark(&self, tenant: &TenantId) -> Option<TenantMark> {
        let Self { before, between, after, .. } = self;
        let (before, between, after, tenant) = (before.as_str(), between.as_str(), after.as_str(), tenant.as_str());
        let (start, end, side) = match self.order {
            Order::SubjectOnly => return None,
            Order::TenantFirst => ([before, tenant, between].concat(), after.to_owned(), Side::Start),
            Order::SubjectFirst => (before.to_owned(), [between, tenant, after].concat(), Side::End),
        };
        Some(TenantMark { start, end, side })
    }

    /// Says whether the tenant is part of the name: a template without it is for one tenant only.
    pub fn names_tenant(&self) -> bool {
        self.order != Order::SubjectOnly
    }

    /// Renders the name of a caller.
    ///
    /// # Errors
    /// [`ReservedName`] when AgentOS gives the name a meaning of its own.
    pub fn render(&self, tenant: &TenantId, subject: &str) -> Result<UpstreamUser, ReservedName> {
        let Self { before, between, after, .. } = self;
        let name = match self.order {
            Order::SubjectOnly => [before, subject, after].concat(),
            Order::TenantFirst => [before, tenant.as_str(), between, subject, after].concat(),
            Order::SubjectFirst => [before, subject, between, tenant.as_str(), after].concat(),
        };
        if is_reserved(&name) { Err(ReservedName(name)) } else { Ok(UpstreamUser(name.into())) }
    }

    /// The subject of a rendered name, when it belongs to the tenant.
    ///
    /// Without `{tenant}` every name belongs to the cluster's one tenant.
    pub fn subject_of<'a>(&self, name: &'a str, tenant: &TenantId) -> Option<&'a str> {
        let inner = name.strip_prefix(self.before.as_str())?.strip_suffix(self.after.as_str())?;
        let subject = match self.order {
            Order::SubjectOnly => inner,
            Order::TenantFirst => inner.strip_prefix(tenant.as_str())?.strip_prefix(self.between.as_str())?,
            Order::SubjectFirst => inner.strip_suffix(tenant.as_str())?.strip_suffix(self.between.as_str())?,
        };
        (!subject.is_empty()).then_some(subject)
    }

    /// The template as written.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    fn split(text: &str) -> Result<Self, &'static str> {
        if text.len() > TEMPLATE_BYTES_MAX {
            return Err("is longer than 128 bytes");
        }
        let (head, tail) = text.split_once(SUBJECT).ok_or("must hold `{subject}`")?;
        let (order, before, between, after) = match (head.split_once(TENANT), tail.split_once(TENANT)) {
            (None, None) => (Order::SubjectOnly, head, "", tail),
            (Some((before, between)), None) => (Order::TenantFirst, before, between, tail),
            (None, Some((between, after))) => (Order::SubjectFirst, head, between, after),
            (Some(_), Some(_)) => return Err("holds `{tenant}` twice"),
        };
        if [before, between, after].iter().any(|literal| !literal.bytes().all(is_plain)) {
            return Err("may hold `{tenant}` and `{subject}` once, and beside them only `A-Z a-z 0-9 . _ ~ : | @ -`");
        }
        // The character next to the tenant ends it: no tenant name may hold that character.
        let edge = match order {
            Order::SubjectOnly => Some(b'~'),
            Order::TenantFirst => between.bytes().next(),
            Order::SubjectFirst => between.bytes().next_back(),
        };
        if edge.is_none_or(in_tenant_names) {
            return Err(
                "needs a character between `{tenant}` and `{subject}` that no tenant name may hold, such as `~`",
            );
        }
        let [text, before, between, after] = [text, before, between, after].map(str::to_owned);
        Ok(Self { text, before, between, after, order })
    }
}

// === impl TenantMark ===

impl TenantMark {
    /// The character that ends the tenant's part towards the subject.
    pub fn edge(&self) -> u8 {
        let edge = match self.side {
            Side::Start => self.start.bytes().next_back(),
            Side::End => self.end.bytes().next(),
        };
        // A mark holds at least the character between tenant and subject.
        edge.unwrap_or(b'~')
    }
}

impl Default for UserIdTemplate {
    fn default() -> Self {
        Self {
            text: "{tenant}~{subject}".into(),
            before: String::new(),
            between: "~".into(),
            after: String::new(),
            order: Order::TenantFirst,
        }
    }
}

// === impl UpstreamUser ===

impl UpstreamUser {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name as a shared string.
    pub fn shared(&self) -> Arc<str> {
        Arc::clone(&self.0)
    }
}

impl fmt::Display for UpstreamUser {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl UserIdTemplate {
    /// Renders the name of a principal.
    ///
    /// # Errors
    /// [`ReservedName`], as [`UserIdTemplate::render`].
    pub fn render_principal(&self, principal: &Principal) -> Result<UpstreamUser, ReservedName> {
        self.render(&principal.tenant, &principal.subject)
    }
}

/// Service accounts are `sa:<name>`; the scheduler is `__scheduler__`, and the form is kept free for its kin.
fn is_reserved(name: &str) -> bool {
    let name = name.trim();
    name.is_empty() || name.starts_with("__") || name.get(..3).is_some_and(|head| head.eq_ignore_ascii_case("sa:"))
}

fn is_plain(byte: u8) -> bool {
    in_tenant_names(byte) || matches!(byte, b'~' | b':' | b'|' | b'@')
}

fn in_tenant_names(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-')
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn tenant(name: &str) -> TenantId {
        TenantId::new(name).unwrap()
    }

    #[test]
    fn names_are_rendered_and_taken_apart() {
        for (template, name) in [
            ("{tenant}~{subject}", "acme~alice"),
            ("{subject}", "alice"),
            ("tb:{tenant}:{subject}", "tb:acme:alice"),
            ("{subject}@{tenant}", "alice@acme"),
        ] {
            let template = UserIdTemplate::parse(template).unwrap();
            assert_eq!(template.render(&tenant("acme"), "alice").unwrap().as_str(), name);
            assert_eq!(template.subject_of(name, &tenant("acme")), Some("alice"));
            let foreign = template.subject_of(name, &tenant("umbrella"));
            assert_eq!(foreign.is_none(), template.names_tenant(), "{name}");
        }
        assert_eq!(UserIdTemplate::parse("{tenant}~{subject}").unwrap(), UserIdTemplate::default());
    }

    #[test]
    fn foreign_names_are_not_taken_apart() {
        let template = UserIdTemplate::default();
        for name in ["acme2~alice", "acm~alice", "acme~", "alice", "", "~alice", "acme"] {
            assert_eq!(template.subject_of(name, &tenant("acme")), None, "{name}");
        }
    }

    #[test]
    fn templates_that_read_in_two_ways_are_refused() {
        let ambiguous =
            "needs a character between `{tenant}` and `{subject}` that no tenant name may hold, such as `~`";
        let plain = "may hold `{tenant}` and `{subject}` once, and beside them only `A-Z a-z 0-9 . _ ~ : | @ -`";
        for (text, reason) in [
            ("", "must hold `{subject}`"),
            ("{tenant}", "must hold `{subject}`"),
            ("{tenant}{subject}", ambiguous),
            ("{tenant}-{subject}", ambiguous),
            ("{subject}~x{tenant}", ambiguous),
            ("{tenant}~{subject}~{tenant}", "holds `{tenant}` twice"),
            ("{tenant}~{subject}{subject}", plain),
            ("{tenant}/{subject}", plain),
            ("{tenant}~{subject} ", plain),
        ] {
            assert_eq!(UserIdTemplate::parse(text).unwrap_err().reason, reason, "{text}");
        }
    }

    #[test]
    fn reserved_names_are_refused() {
        let bare = UserIdTemplate::parse("{subject}").unwrap();
        for subject in ["sa:ci", "SA:ci", " sa:ci", "__scheduler__", "__x", "", " "] {
            let refused = bare.render(&tenant("acme"), subject);
            assert_eq!(refused, Err(ReservedName(subject.into())));
        }
        let default = UserIdTemplate::default();
        assert!(default.render(&tenant("acme"), "__scheduler__").is_ok());
        assert!(default.render(&tenant("__x"), "alice").is_err());
    }

    proptest! {
        #[test]
        fn two_callers_never_share_a_name(
            a in ("[A-Za-z0-9._-]{1,6}", "[a-z~:@._-]{1,8}"),
            b in ("[A-Za-z0-9._-]{1,6}", "[a-z~:@._-]{1,8}"),
            template in prop::sample::select(vec![
                "{tenant}~{subject}",
                "{subject}@{tenant}",
                "x:{tenant}:-{subject}~",
            ]),
        ) {
            let template = UserIdTemplate::parse(template).unwrap();
            let render = |(t, s): &(String, String)| template.render(&tenant(t), s);
            if let (Ok(first), Ok(second)) = (render(&a), render(&b)) {
                prop_assert_eq!(first == second, a == b);
                prop_assert_eq!(template.subject_of(first.as_str(), &tenant(&a.0)), Some(a.1.as_str()));
                if a.0 != b.0 {
                    prop_assert_eq!(template.subject_of(first.as_str(), &tenant(&b.0)), None);
                }
            }
        }
    }
}
