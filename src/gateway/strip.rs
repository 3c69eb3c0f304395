//! Owns taking the tenant prefix out of user ids in answers: callers never see how upstream names them.
//! Does not parse JSON: inside a JSON string every quote is escaped, so `"user_id":"acme~` stands only where a
//! field of that name has such a value.
//! Invariant: a chunk is held back only while its end may be the beginning of a needle.

use bytes::{Bytes, BytesMut};
use memchr::memmem;

/// Fields of AgentOS answers that hold an upstream user id.
const FIELDS: [&str; 4] = ["user_id", "resolved_by", "requested_by", "created_by"];

/// Removes one prefix from user ids in a stream of JSON text (plain or inside SSE).
pub(super) struct PrefixStripper {
    /// What is looked for, and how much of its front stays.
    needles: Vec<(memmem::Finder<'static>, usize)>,
    longest: usize,
    held: BytesMut,
}

impl PrefixStripper {
    /// A stripper for a prefix such as `acme~`. An empty prefix strips nothing.
    pub(super) fn new(prefix: &str) -> Self {
        let needles: Vec<(memmem::Finder<'static>, usize)> = FIELDS
            .iter()
            .flat_map(|field| [format!("\"{field}\":\""), format!("\"{field}\": \"")])
            .filter(|_| !prefix.is_empty())
            .map(|front| {
                let keep = front.len();
                (memmem::Finder::new(&format!("{front}{prefix}")).into_owned(), keep)
            })
            .collect();
        let longest = needles.iter().map(|(finder, _)| finder.needle().len()).max().unwrap_or(0);
        Self { needles, longest, held: BytesMut::new() }
    }

    /// Takes a chunk and returns what can go on.
    pub(super) fn push(&mut self, chunk: Bytes) -> Bytes {
        if self.needles.is_empty() {
            return chunk;
        }
        if self.held.is_empty() && memchr::memchr(b'~', &chunk).is_none() && self.tail(&chunk) == 0 {
            return chunk;
        }
        self.held.extend_from_slice(&chunk);
        let keep = self.tail(&self.held);
        let ready = self.held.split_to(self.held.len() - keep);
        self.strip(&ready)
    }

    /// Returns what was held back.
    pub(super) fn finish(&mut self) -> Bytes {
        let rest = self.held.split();
        self.strip(&rest)
    }

    fn strip(&self, text: &[u8]) -> Bytes {
        let mut cuts: Vec<(usize, usize)> = Vec::new();
        for (finder, keep) in &self.needles {
            cuts.extend(finder.find_iter(text).map(|at| (at + keep, at + finder.needle().len())));
        }
        if cuts.is_empty() {
            return Bytes::copy_from_slice(text);
        }
        cuts.sort_unstable();
        let mut out = BytesMut::with_capacity(text.len());
        let mut from = 0;
        for (start, end) in cuts {
            out.extend_from_slice(text.get(from..start).unwrap_or_default());
            from = end;
        }
        out.extend_from_slice(text.get(from..).unwrap_or_default());
        out.freeze()
    }

    /// Length of the longest end of `text` that is a proper beginning of a needle.
    fn tail(&self, text: &[u8]) -> usize {
        let longest = self.longest.saturating_sub(1).min(text.len());
        (1..=longest)
            .rev()
            .find(|&n| {
                let end = text.get(text.len() - n..).unwrap_or_default();
                end.starts_with(b"\"") && self.needles.iter().any(|(f, _)| f.needle().starts_with(end))
            })
            .unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r#"{"user_id":"acme~alice","content":"\"user_id\":\"acme~x","by":"acme~y","a":[{"user_id": "acme~bob"}]}"#;
    const WANT: &str = r#"{"user_id":"alice","content":"\"user_id\":\"acme~x","by":"acme~y","a":[{"user_id": "bob"}]}"#;

    #[test]
    fn only_user_ids_lose_the_prefix_however_the_text_is_split() {
        for at in 0..TEXT.len() {
            let mut stripper = PrefixStripper::new("acme~");
            let (a, b) = TEXT.split_at(at);
            let mut out = stripper.push(Bytes::copy_from_slice(a.as_bytes())).to_vec();
            out.extend_from_slice(&stripper.push(Bytes::copy_from_slice(b.as_bytes())));
            out.extend_from_slice(&stripper.finish());
            assert_eq!(String::from_utf8(out).unwrap(), WANT, "split at {at}");
        }
    }

    #[test]
    fn a_whole_event_is_never_held_back() {
        let mut stripper = PrefixStripper::new("acme~");
        let event = Bytes::from_static(b"event: RunContent\ndata: {\"content\":\"x\"}\n\n");
        assert_eq!(stripper.push(event.clone()), event);
    }
}
