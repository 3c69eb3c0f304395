//! Owns taking the tenant out of user ids in answers: callers never see how upstream names them.
//! Does not parse JSON: inside a JSON string every quote is escaped, so `"user_id":"` stands only where a field of
//! that name begins.
//! Invariant: a chunk is held back only while its end may be, or is inside, such a field.

use std::ops::Range;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};

use crate::cluster::{Cluster, Side, TEMPLATE_BYTES_MAX, TenantMark};
use crate::principal::{SUBJECT_BYTES_MAX, TENANT_BYTES_MAX, TenantId};

/// How fields that hold an upstream user id begin, compact and spaced.
const FIELDS: [&str; 8] = [
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
/// A user id that is longer than this is none of ours: JSON may spell each two bytes of a name with six.
const VALUE_BYTES_MAX: usize = 3 * (SUBJECT_BYTES_MAX + TENANT_BYTES_MAX) + TEMPLATE_BYTES_MAX;

/// Rewrites user ids in a stream of JSON text (plain or inside SSE).
pub(super) struct UserStripper {
    /// Names that hold no tenant are shown as they are.
    mark: Option<TenantMark>,
    held: BytesMut,
}

impl UserStripper {
    /// A stripper for the names that the cluster gives to a tenant's users.
    pub(super) fn new(cluster: &Arc<Cluster>, tenant: &TenantId) -> Self {
        Self { mark: cluster.settings.user_id.mark(tenant), held: BytesMut::new() }
    }

    /// Rewrites a whole text.
    pub(super) fn whole(mut self, text: Bytes) -> Bytes {
        let front = self.push(text);
        let rest = self.finish();
        if rest.is_empty() { front } else { [front, rest].concat().into() }
    }

    /// Takes a chunk and returns what can go on.
    pub(super) fn push(&mut self, chunk: Bytes) -> Bytes {
        let Some(mark) = &self.mark else { return chunk };
        let text = if self.held.is_empty() {
            chunk
        } else {
            self.held.extend_from_slice(&chunk);
            self.held.split().freeze()
        };
        let used = text.len() - unfinished(&text);
        let out = rewrite(mark, &text, used);
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
}

/// Rewrites the first `used` bytes of a text, in which fields are complete; `None` when there is nothing to rewrite.
fn rewrite(mark: &TenantMark, text: &[u8], used: usize) -> Option<BytesMut> {
    let mut out: Option<BytesMut> = None;
    let mut copied = 0;
    // The character beside the tenant stands in no tenant's name and is rare: each one is looked at.
    for at in memchr::memchr_iter(mark.edge(), text) {
        let Some(value) = marked(mark, text, at).filter(|value| value.start >= copied) else { continue };
        let (from, to) = (value.start + mark.start.len(), value.end.saturating_sub(mark.end.len()));
        let Some(subject) = text.get(from..to).filter(|subject| !subject.is_empty()) else { continue };
        let out = out.get_or_insert_with(|| BytesMut::with_capacity(text.len()));
        out.extend_from_slice(text.get(copied..value.start).unwrap_or_default());
        out.extend_from_slice(subject);
        copied = value.end;
    }
    out.map(|mut out| {
        out.extend_from_slice(text.get(copied..used).unwrap_or_default());
        out
    })
}

/// The value of a field with the mark at both ends, when the edge of the mark is at `at`.
///
/// What is near is asked first, and a quote is looked for no further than a value may reach: callers choose texts, and
/// may fill them with marks.
fn marked(mark: &TenantMark, text: &[u8], at: usize) -> Option<Range<usize>> {
    let (start, end) = (mark.start.as_bytes(), mark.end.as_bytes());
    let value = match mark.side {
        Side::Start => {
            let from = text.get(..=at)?.strip_suffix(start)?.len();
            opens_field(text, from).then_some(())?;
            let reach = text.len().min(from + VALUE_BYTES_MAX);
            from..at + memchr::memchr(b'"', text.get(at..reach)?)?
        }
        Side::End => {
            text.get(at..)?.strip_prefix(end)?.starts_with(b"\"").then_some(())?;
            let reach = at.saturating_sub(VALUE_BYTES_MAX);
            let from = reach + memchr::memrchr(b'"', text.get(reach..at)?)? + 1;
            opens_field(text, from).then_some(())?;
            from..at + end.len()
        }
    };
    let whole = text.get(value.clone())?;
    (whole.starts_with(start) && whole.ends_with(end)).then_some(value)
}

/// Says whether a value that starts at `at` is that of one of the fields.
fn opens_field(text: &[u8], at: usize) -> bool {
    let before = text.get(..at).unwrap_or_default();
    FIELDS.iter().any(|field| before.ends_with(field.as_bytes()))
}

/// How many bytes at the end of a text may be, or are inside, a field that is not complete.
fn unfinished(text: &[u8]) -> usize {
    let Some(quote) = memchr::memrchr(b'"', text) else { return 0 };
    let value = text.len() - quote - 1;
    let open = FIELDS.iter().find(|field| text.get(..=quote).is_some_and(|head| head.ends_with(field.as_bytes())));
    match open {
        Some(field) if value < VALUE_BYTES_MAX => value + field.len(),
        Some(_) => 0,
        None => begun(text),
    }
}

/// Length of the longest end of `text` that is the beginning of a field.
fn begun(text: &[u8]) -> usize {
    let longest = FIELDS.iter().map(|field| field.len() - 1).max().unwrap_or(0).min(text.len());
    let last = text.get(text.len() - longest..).unwrap_or_default();
    let begins = |end: &[u8]| FIELDS.iter().any(|field| field.as_bytes().starts_with(end));
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
            load: crate::cluster::Load::default(),
            dns: None,
            ejection: crate::cluster::Ejection::default(),
            retries: crate::cluster::Retries::default(),
            streams: crate::cluster::Streams::default(),
            tenants: vec![TenantId::new("acme").unwrap()],
            open: false,
        };
        let clusters =
            Clusters::new(vec![settings], &BTreeMap::new(), &[Secret::new("0123456789abcdef0123456789abcdef")]);
        UserStripper::new(clusters.unwrap().iter().next().unwrap(), &TenantId::new("acme").unwrap())
    }

    /// Cut in two at every place, the text comes out as wanted.
    fn check_however_split(template: &str, text: &str, want: &str) {
        for at in 0..text.len() {
            let mut stripper = stripper(template);
            let (a, b) = text.split_at(at);
            let mut out = stripper.push(Bytes::copy_from_slice(a.as_bytes())).to_vec();
            out.extend_from_slice(&stripper.push(Bytes::copy_from_slice(b.as_bytes())));
            out.extend_from_slice(&stripper.finish());
            assert_eq!(String::from_utf8(out).unwrap(), want, "split at {at}");
        }
    }

    #[test]
    fn only_user_ids_lose_the_tenant_however_the_text_is_split() {
        check_however_split("{tenant}~{subject}", TEXT, WANT);
    }

    #[test]
    fn the_tenant_may_stand_behind() {
        let out = stripper("{subject}~{tenant}").whole(Bytes::from_static(br#"{"user_id":"alice~acme"}"#));
        assert_eq!(out, r#"{"user_id":"alice"}"#);
    }

    #[test]
    fn a_tenant_behind_is_found_however_the_text_is_split() {
        const TEXT: &str = r#"{"a":"bob~acme","user_id":"x~bob~acme","user_id":"eve~other"}"#;
        const WANT: &str = r#"{"a":"bob~acme","user_id":"x~bob","user_id":"eve~other"}"#;
        check_however_split("{subject}~{tenant}", TEXT, WANT);
    }

    #[test]
    fn a_value_too_long_to_be_a_user_is_not_waited_for() {
        let mut stripper = stripper("{tenant}~{subject}");
        let text = Bytes::from(format!("{{\"user_id\":\"acme~{}", "x".repeat(VALUE_BYTES_MAX)));
        assert_eq!(stripper.push(text.clone()), text);
    }

    #[test]
    fn a_text_full_of_marks_costs_no_more_than_its_length() {
        // Looked through to its end at each mark, this would take minutes.
        let behind = r#"{"content":""#.to_owned() + &"~acme".repeat(2 << 20) + r#""}"#;
        let before = r#"{"content":""#.to_owned() + &"acme~".repeat(2 << 20) + r#""}"#;
        let quoted = r#"{"user_id":"#.to_owned() + &"\"acme~".repeat(1 << 20);
        for (template, text) in [
            ("{tenant}~{subject}", &before),
            ("{tenant}~{subject}", &quoted),
            ("{subject}~{tenant}", &behind),
            ("{subject}~{tenant}", &"~".repeat(8 << 20)),
        ] {
            let out = stripper(template).whole(Bytes::from(text.clone()));
            assert!(out.len() <= text.len(), "{template}");
        }
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
