//! Owns the names of everything that a policy can read of a caller, a resource or the circumstances.
//! Does not know their values (`entities`, `sieve`).
//! Invariant: `Reads` of a policy holds every attribute that evaluating it may touch.

use super::lint::Reading;

/// An attribute of an entity or of the context.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Attribute {
    Subject,
    Tenant,
    Scopes,
    Plan,
    Id,
    Tenants,
    Owner,
    Component,
    ToolName,
    Status,
    RequestedBy,
    Door,
    Operation,
    Cluster,
    Now,
    SourceIp,
    MessageBytes,
    Human,
    Destructive,
    Reach,
    Exclusive,
    ScopesAccepted,
    ScopesMode,
}

/// A set of attributes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Reads(u32);

// === impl Attribute ===

impl Attribute {
    /// Every attribute.
    pub(super) const ALL: [Self; 23] = [
        Self::Subject,
        Self::Tenant,
        Self::Scopes,
        Self::Plan,
        Self::Id,
        Self::Tenants,
        Self::Owner,
        Self::Component,
        Self::ToolName,
        Self::Status,
        Self::RequestedBy,
        Self::Door,
        Self::Operation,
        Self::Cluster,
        Self::Now,
        Self::SourceIp,
        Self::MessageBytes,
        Self::Human,
        Self::Destructive,
        Self::Reach,
        Self::Exclusive,
        Self::ScopesAccepted,
        Self::ScopesMode,
    ];

    /// The name that policies write.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Subject => "subject",
            Self::Tenant => "tenant",
            Self::Scopes => "scopes",
            Self::Plan => "plan",
            Self::Id => "id",
            Self::Tenants => "tenants",
            Self::Owner => "owner",
            Self::Component => "component",
            Self::ToolName => "tool_name",
            Self::Status => "status",
            Self::RequestedBy => "requested_by",
            Self::Door => "door",
            Self::Operation => "operation",
            Self::Cluster => "cluster",
            Self::Now => "now",
            Self::SourceIp => "source_ip",
            Self::MessageBytes => "message_bytes",
            Self::Human => "human",
            Self::Destructive => "destructive",
            Self::Reach => "reach",
            Self::Exclusive => "exclusive",
            Self::ScopesAccepted => "scopes_accepted",
            Self::ScopesMode => "scopes_mode",
        }
    }

    /// The attribute of that name.
    pub(super) fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|attribute| attribute.name() == name)
    }
}

// Each has a bit of its own in `Reads`, below that of `ENTITIES`.
#[expect(clippy::indexing_slicing, reason = "a place out of bounds fails the build")]
const _: () = {
    let mut at = 0;
    while at < Attribute::ALL.len() {
        assert!(Attribute::ALL[at] as usize == at && at < 31, "`ALL` holds every variant in order");
        at += 1;
    }
};

// === impl Reads ===

impl Reads {
    /// The place of what is no attribute: that a policy looks at entities at all.
    const ENTITIES: u32 = 1 << 31;
    /// Everything.
    pub(super) const ALL: Self = Self(u32::MAX);

    /// What a policy reads. Whose attribute it is does not count: `owner` of anything is `owner`.
    pub(super) fn of(reading: &Reading) -> Self {
        if reading.reads_everything() {
            return Self::ALL;
        }
        let none = Self(if reading.reads_entities() { Self::ENTITIES } else { 0 });
        let read = Attribute::ALL.into_iter().filter(|attribute| reading.reads(attribute.name()));
        read.fold(none, |reads, attribute| Self(reads.0 | 1 << attribute as u32))
    }

    /// What is read by one or the other.
    pub(super) fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Says whether attributes or parents of the caller or the resource are read.
    pub(super) fn entities(self) -> bool {
        self.0 & Self::ENTITIES != 0
    }

    /// Says whether the attribute is read.
    pub(super) fn contain(self, attribute: Attribute) -> bool {
        self.0 & 1 << attribute as u32 != 0
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::agentos::Catalog;

    /// An attribute of the schema that is not among these would be missing where policies ask for it: a `forbid` that
    /// looks whether it is there would forbid nothing.
    #[test]
    fn the_attributes_are_those_of_the_schema() {
        let catalog = Catalog::shipped();
        let schema = crate::policy::schema::text(&catalog.rows().iter().collect::<Vec<_>>());
        let declared = schema.lines().filter(|line| line.starts_with("    ") && !line.trim().starts_with("//"));
        let declared = declared.filter_map(|line| Some(line.split_once(':')?.0.trim().trim_end_matches('?')));
        let names = Attribute::ALL.iter().map(|attribute| attribute.name());
        assert_eq!(names.collect::<BTreeSet<_>>(), declared.collect());
    }
}
