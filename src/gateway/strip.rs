//! Owns taking the tenant out of user ids in answers: callers never see how upstream names them.
//! Does not parse JSON: inside a JSON string every quote is escaped, so `"user_id":"` stands only where a field of
//! that name begins.
//! Invariant: a chunk is held back only while its end may be, or is inside, such a field.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use memchr::memmem::Finder;

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
/// A user id that is longer than this is none of ours.
const VALUE_BYTES_MAX: usize = 512;

/// Rewrites user ids in a stream of JSON text (plain or inside SSE).
pub(super) struct UserStripper {
    cluster: Arc<Cluster>,
    tenant: TenantId,
    finders: Vec<Finder<'static>>,
    held: BytesMut,
}

impl UserStripper {
    /// A stripper for the names that the cluster gives to a tenant's users.
    pub(super) fn new(cluster: &Arc<Cluster>, tenant: &TenantId) -> Self {
        let finders =
            if cluster.settings.user_id.names_tenant() { NEEDLES.iter().map(Finder::new).collect() } else { Vec::new() };
        Self { cluster: Arc::clone(cluster), tenant: tenant.clone(), finders, held: BytesMut::new() }
    }

    /// Rewrites a whole text.
    pub(super) fn whole(mut self, text: Bytes) -> Bytes {
        let front = self.push(text);
        let rest = self.finish();
        if rest.is_empty() { front } else { [front, rest].concat().into() }
    }

    /// Takes a chunk and returns what can go on.
    pub(super) fn push(&mut self, chunk: Bytes) -> Bytes {
        if self.finders.is_empty() {
            return chunk;
        }
        let text = if self.held.is_empty() {
            chunk
        } else {
            self.held.extend_from_slice(&chunk);
            self.held.split().freeze()
        };
        let (out, used) = self.rewrite(&text);
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
    fn rewrite(&self, text: &[u8]) -> (Option<BytesMut>, usize) {
        let mut out: Option<BytesMut> = None;
        let (mut copied, mut from) = (0, 0);
        while let Some((start, value_at)) = self.next_field(text, from) {
            let value = text.get(value_at..).unwrap_or_default();
            let Some(length) = memchr::memchr(b'"', value) else {
                if value.len() < VALUE_BYTES_MAX {
                    return self.done(text, out, copied, start);
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
        let end = text.len() - self.tail(text.get(from..).unwrap_or_default());
        self.done(text, out, copied, end)
    }

    fn done(&self, text: &[u8], out: Option<BytesMut>, copied: usize, end: usize) -> (Option<BytesMut>, usize) {
        let out = out.map(|mut out| {
            out.extend_from_slice(text.get(copied..end).unwrap_or_default());
            out
        });
        (out, end)
    }

    /// The next field: where it starts and where its value does.
    fn next_field(&self, text: &[u8], from: usize) -> Option<(usize, usize)> {
        let text = text.get(from..)?;
        let found = self.finders.iter().filter_map(|f| f.find(text).map(|at| (from + at, from + at + f.needle().len())));
        found.min()
    }

    /// Length of the longest end of `text` that is the beginning of a field.
    fn tail(&self, text: &[u8]) -> usize {
        let longest = NEEDLES.iter().map(|needle| needle.len() - 1).max().unwrap_or(0).min(text.len());
        let begins = |end: &[u8]| NEEDLES.iter().any(|needle| needle.as_bytes().starts_with(end));
        let end = |n: &usize| text.get(text.len() - n..).unwrap_or_default();
        (1..=longest).rev().find(|n| end(n).starts_with(b"\"") && begins(end(n))).unwrap_or(0)
    }
}
