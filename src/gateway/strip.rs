//! Owns taking the tenant out of user ids in answers: callers never see how upstream names them.
//! Does not parse JSON: inside a JSON string every quote is escaped, so `"user_id":"` stands only where a field of
//! that name begins.
//! Invariant: a chunk is held back only while its end may be, or is inside, such a field.

use std::sync::{Arc, LazyLock};

use aho_corasick::AhoCorasick;
use bytes::{Bytes, BytesMut};

use crate::cluster::Cluster;
use crate::principal::TenantId;

/// How fields that hold an upstream user id begin, compact and spaced.
const NEEDLES: [&str; 8] = [
    "\"user_id\":\"",
    "\"user_id\": \"",
    // The session state that AgentOS 2.x keeps for every run.
    "\"current_user_id\":\"",
    "\"current_user_id\": \"",
    "\"resolved_by\":\"",
    "\"resolved_by\": \"",
    "\"requested_by\":\"",
    "\"created_by\":\"",
];
/// One pass finds all of them. `None` cannot happen: the needles are constant and few.
static FIELDS: LazyLock<Option<AhoCorasick>> = LazyLock::new(|| AhoCorasick::new(NEEDLES).ok());
/// A user id that is longer than this is none of ours.
const VALUE_BYTES_MAX: usize = 512;

/// Rewrites user ids in a stream of JSON text (plain or inside SSE).
pub(super) struct UserStripper {
    cluster: Arc<Cluster>,
    tenant: TenantId,
    /// Names that hold no tenant are shown as they are.
    fields: Option<&'static AhoCorasick>,
    held: BytesMut,
}

impl UserStripper {
    /// A stripper for the names that the cluster gives to a tenant's users.
    pub(super) fn new(cluster: &Arc<Cluster>, tenant: &TenantId) -> Self {
        let fields = FIELDS.as_ref().filter(|_| cluster.settings.user_id.names_tenant());
        Self { cluster: Arc::clone(cluster), tenant: tenant.clone(), fields, held: BytesMut::new() }
    }

    /// Rewrites a whole text.
    pub(super) fn whole(mut self, text: Bytes) -> Bytes {
        let front = self.push(text);
        let rest = self.finish();
        if rest.is_empty() { front } else { [front, rest].concat().into() }
    }

    /// Takes a chunk and returns what can go on.
    pub(super) fn push(&mut self, chunk: Bytes) -> Bytes {
        let Some(fields) = self.fields else { return chunk };
        let text = if self.held.is_empty() {
            chunk
        } else {
            self.held.extend_from_slice(&chunk);
            self.held.split().freeze()
        };
        let (out, used) = self.rewrite(fields, &text);
        self.held.extend_from_slice(text.get(used..).unwrap_or_default());
        match out {
            Some(out) => out.freeze(),
            None => text.slice(..used),
        }
    }

    /// Returns what was held back.
    pub(super) fn finish(&mut self) -> Bytes {
        self.held.split().freeze()
    }

    /// Rewrites as much as is complete: the new text if it differs, and how many bytes of the old it stands for.
    fn rewrite(&self, fields: &AhoCorasick, text: &[u8]) -> (Option<BytesMut>, usize) {
        let mut out: Option<BytesMut> = None;
        let (mut copied, mut from) = (0, 0);
        while let Some((start, value_at)) = next_field(fields, text, from) {
            let value = text.get(value_at..).unwrap_or_default();
            let Some(length) = memchr::memchr(b'"', value) else {
                if value.len() < VALUE_BYTES_MAX {
                    return done(text, out, copied, start);
                }
                from = value_at;
                continue;
            };
            let name = value.get(..length).and_then(|name| std::str::from_utf8(name).ok());
            if let Some(subject) = name.and_then(|name| self.cluster.settings.user_id.subject_of(name, &self.tenant)) {
                let out = out.get_or_insert_with(|| BytesMut::with_capacity(text.len()));
                out.extend_from_slice(text.get(copied..value_at).unwrap_or_default());
                out.extend_from_slice(subject.as_bytes());
                copied = value_at + length;
            }
            from = value_at + length;
        }
        let end = text.len() - tail(text.get(from..).unwrap_or_default());
        done(text, out, copied, end)
    }
}

/// Ends a rewrite: what was copied so far, and the rest up to `end`.
fn done(text: &[u8], out: Option<BytesMut>, copied: usize, end: usize) -> (Option<BytesMut>, usize) {
    let out = out.map(|mut out| {
        out.extend_from_slice(text.get(copied..end).unwrap_or_default());
        out
    });
    (out, end)
}

/// The next field: where it starts and where its value does.
fn next_field(fields: &AhoCorasick, text: &[u8], from: usize) -> Option<(usize, usize)> {
    let found = fields.find(text.get(from..)?)?;
    Some((from + found.start(), from + found.end()))
}

/// Length of the longest end of `text` that is the beginning of a field.
fn tail(text: &[u8]) -> usize {
    let longest = NEEDLES.iter().map(|needle| needle.len() - 1).max().unwrap_or(0).min(text.len());
    let last = text.get(text.len() - longest..).unwrap_or_default();
    let begins = |end: &[u8]| NEEDLES.iter().any(|needle| needle.as_bytes().starts_with(end));
    // Every field begins with a quote: only those are looked at.
    let quotes = memchr::memchr_iter(b'"', last);
    quotes.map(|at| last.get(at..).unwrap_or_default()).find(|end| begins(end)).map_or(0, <[u8]>::len)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::cluster::*;
    use crate::secret::Secret;

    const TEXT: &str = r#"{"user_id":"acme~alice","content":"\"user_id\":\"acme~x","by":"acme~y","a":[{"user_id": "acme~bob"},{"user_id":"x"}]}"#;
    const WANT: &str = r#"{"user_id":"alice","content":"\"user_id\":\"acme~x","by":"acme~y","a":[{"user_id": "bob"},{"user_id":"x"}]}"#;

    fn stripper(template: &str) -> UserStripper {
        let settings = Settings {
            name: "main".into(),
            hosts: Vec::new(),
            endpoints: vec!["http://127.0.0.1:1".parse().unwrap()],
            balance: Balance::LeastRequests,
            user_id: UserIdTemplate::parse(template).unwrap(),
            credential: CredentialSettings::None,
            knowledge: Knowledge::Exclusive,
            health: Health::default(),
            timeouts: Timeouts::default(),
            tenants: vec![TenantId::new("acme").unwrap()],
            open: false,
        };
        let clusters =
            Clusters::new(vec![settings], &BTreeMap::new(), &[Secret::new("0123456789abcdef0123456789abcdef")]);
        UserStripper::new(clusters.unwrap().iter().next().unwrap(), &TenantId::new("acme").unwrap())
    }

    #[test]
    fn only_user_ids_lose_the_tenant_however_the_text_is_split() {
        for at in 0..TEXT.len() {
            let mut stripper = stripper("{tenant}~{subject}");
            let (a, b) = TEXT.split_at(at);
            let mut out = stripper.push(Bytes::copy_from_slice(a.as_bytes())).to_vec();
            out.extend_from_slice(&stripper.push(Bytes::copy_from_slice(b.as_bytes())));
            out.extend_from_slice(&stripper.finish());
            assert_eq!(String::from_utf8(out).unwrap(), WANT, "split at {at}");
        }
    }

    #[test]
    fn the_tenant_may_stand_behind() {
        let out = stripper("{subject}~{tenant}").whole(Bytes::from_static(br#"{"user_id":"alice~acme"}"#));
        assert_eq!(out, r#"{"user_id":"alice"}"#);
    }

    #[test]
    fn names_without_a_tenant_are_left_alone() {
        let text = Bytes::from_static(br#"{"user_id":"alice"}"#);
        assert_eq!(stripper("{subject}").whole(text.clone()), text);
    }

    #[test]
    fn a_whole_event_is_never_held_back() {
        let mut stripper = stripper("{tenant}~{subject}");
        let event = Bytes::from_static(b"event: RunContent\ndata: {\"content\":\"x\"}\n\n");
        assert_eq!(stripper.push(event.clone()), event);
    }
}
