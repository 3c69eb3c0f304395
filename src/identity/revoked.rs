//! Owns the credentials that are refused although they are good: by token id, by caller, or by hash.
//! Does not read files (`server` does) and does not end streams: it tells those who wait that a caller's authority ended.
//! Invariant: a list replaces the one before as a whole, and whoever waits hears of it at once.

use std::collections::HashSet;
use std::sync::Arc;

use arc_swap::ArcSwap;
use tokio::sync::watch;

use crate::principal::Principal;

/// Most entries of a list.
const ENTRIES_MAX: usize = 1_000_000;
/// Longest entry, in bytes.
const ENTRY_BYTES_MAX: usize = 512;

/// A list of revoked credentials. One entry per line: a token's `jti`, `subject@tenant`, or the SHA-256 of a token or
/// API key in hexadecimal digits. Empty lines and those that begin with `#` say nothing.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RevokedList {
    names: HashSet<Box<str>>,
    hashes: HashSet<[u8; 32]>,
}

/// Why a list was not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadList {
    /// A line that is no entry.
    #[error("line {0} is no entry: it must be at most {ENTRY_BYTES_MAX} bytes without control characters")]
    Line(usize),
    /// More than a list may hold.
    #[error("has more than {ENTRIES_MAX} entries")]
    TooMany,
}

/// What is revoked now. Shared by the snapshots of a process, so that a stream hears of a list that came later.
pub struct Revocations {
    list: ArcSwap<RevokedList>,
    changes: watch::Sender<u64>,
}

// === impl RevokedList ===

impl RevokedList {
    /// Reads a list.
    ///
    /// # Errors
    /// [`BadList`]: a list that is half understood would let somebody through.
    pub fn parse(text: &str) -> Result<Self, BadList> {
        let mut list = Self::default();
        for (index, line) in text.lines().enumerate() {
            let entry = line.trim();
            if entry.is_empty() || entry.starts_with('#') {
                continue;
            }
            if entry.len() > ENTRY_BYTES_MAX || entry.chars().any(char::is_control) {
                return Err(BadList::Line(index + 1));
            }
            // A hash may also be somebody's `jti`.
            list.hashes.extend(hash(entry));
            list.names.insert(entry.into());
            if list.names.len() > ENTRIES_MAX {
                return Err(BadList::TooMany);
            }
        }
        Ok(list)
    }

    /// How many entries there are.
    pub fn len(&self) -> usize {
        self.names.len()
    }

    /// Says whether nothing is revoked.
    pub fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    fn covers(&self, principal: &Principal) -> bool {
        if self.is_empty() {
            return false;
        }
        let credential = principal.credential.as_ref();
        credential.is_some_and(|credential| self.hashes.contains(&credential.sha256))
            || credential.and_then(|credential| credential.id.as_deref()).is_some_and(|id| self.names.contains(id))
            || self.names.contains(format!("{}@{}", principal.subject, principal.tenant).as_str())
    }
}

// === impl Revocations ===

impl Default for Revocations {
    fn default() -> Self {
        Self { list: ArcSwap::default(), changes: watch::Sender::new(0) }
    }
}

impl Revocations {
    /// Replaces the list; says whether it differs from the one before.
    pub(super) fn replace(&self, list: RevokedList) -> bool {
        if **self.list.load() == list {
            return false;
        }
        self.list.store(Arc::new(list));
        self.changes.send_modify(|change| *change += 1);
        true
    }

    /// Says whether the caller's credential is revoked.
    pub fn covers(&self, principal: &Principal) -> bool {
        self.list.load().covers(principal)
    }

    /// Waits until the caller's credential is revoked; for ever when it never is.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn ended(self: Arc<Self>, principal: Arc<Principal>) {
        let mut changes = self.changes.subscribe();
        while !self.covers(&principal) {
            // The sender lives in `self`: this ends with a change only.
            let _ = changes.changed().await;
        }
    }
}

/// 64 hexadecimal digits as bytes.
fn hash(text: &str) -> Option<[u8; 32]> {
    let digit = |byte: &u8| char::from(*byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let pairs = text.as_bytes().chunks(2).map(|pair| match pair {
        [high, low] => Some(digit(high)? << 4 | digit(low)?),
        _ => None,
    });
    pairs.collect::<Option<Vec<u8>>>()?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;
    use crate::principal::{CredentialId, PrincipalKind, TenantId};

    fn caller(subject: &str, jti: Option<&str>) -> Principal {
        let tenant = TenantId::new("acme").unwrap();
        let mut caller = Principal::new(PrincipalKind::User, subject, tenant, vec![], vec![], None, None);
        caller.credential = Some(CredentialId { id: jti.map(Arc::from), sha256: [0xab; 32], audiences: Vec::new() });
        caller
    }

    #[test]
    fn a_credential_is_covered_by_its_id_its_caller_or_its_hash() {
        let caller = caller("al@example.com", Some("t-1"));
        for (line, covered) in [
            ("t-1", true),
            ("al@example.com@acme", true),
            (&"ab".repeat(32), true),
            (&"AB".repeat(32), true),
            ("  t-1  ", true),
            ("t-2", false),
            ("al@example.com", false),
            ("al@example.com@globex", false),
            ("# t-1", false),
            (&"ac".repeat(32), false),
            ("", false),
        ] {
            let list = RevokedList::parse(&format!("# revoked\n\n{line}\n")).unwrap();
            assert_eq!(list.covers(&caller), covered, "{line}");
        }
    }

    #[test]
    fn a_line_that_is_no_entry_spoils_the_list() {
        assert_eq!(RevokedList::parse("a\nb\u{7}c"), Err(BadList::Line(2)));
        assert_eq!(RevokedList::parse(&"x".repeat(513)), Err(BadList::Line(1)));
    }

    #[tokio::test]
    async fn whoever_waits_hears_of_the_revocation_at_once() {
        let revocations = Arc::new(Revocations::default());
        let mut ended = Box::pin(Arc::clone(&revocations).ended(Arc::new(caller("alice", None))));
        assert_eq!((&mut ended).now_or_never(), None);
        assert!(revocations.replace(RevokedList::parse("bob@acme").unwrap()));
        assert_eq!((&mut ended).now_or_never(), None);
        assert!(revocations.replace(RevokedList::parse("alice@acme").unwrap()));
        assert!(!revocations.replace(RevokedList::parse("alice@acme\n").unwrap()));
        assert_eq!((&mut ended).now_or_never(), Some(()));
    }
}
