//! Owns the addresses of resources: what can be named, how it is written, which parts it has.
//! Does not look anything up (`read`).
//! Invariant: an address that is written reads back as itself; every part is percent-encoded.

use std::fmt;

use crate::agentos::operation::Kind;
use crate::agentos::{decode_segment, encode_segment};

const SCHEME: &str = "agno://";
/// Longest address that is looked at: a run's handle is its longest part.
const BYTES_MAX: usize = 8 * 1024;

/// What a resource is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Address {
    /// An agent, team or workflow, as `list_agents` names it; of a kind, where the id alone is ambiguous.
    Agent { agent: String, kind: Option<Kind> },
    /// A run by its sealed handle.
    Run { run: String, part: Part },
    /// A session, as `list_sessions` names it; of a kind, which saves asking for the others.
    Session { session: String, kind: Option<Kind> },
    /// One content of a knowledge base, as `list_knowledge` names it.
    Content { knowledge: String, content: String },
}

/// What of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    /// Where it stands, and what there is of it.
    Summary,
    /// Its answer from a character on.
    Output { offset: usize },
    /// One of the media that it made, by number.
    Media { number: usize },
}

impl Address {
    /// Reads an address; `None` for anything that is not one of ours.
    pub(crate) fn parse(uri: &str) -> Option<Self> {
        let rest = uri.strip_prefix(SCHEME).filter(|_| uri.len() <= BYTES_MAX)?;
        let (path, query) = rest.split_once('?').map_or((rest, None), |(path, query)| (path, Some(query)));
        let segments: Vec<String> = path.split('/').map(decode_segment).collect::<Option<_>>()?;
        let segments: Vec<&str> = segments.iter().map(String::as_str).collect();
        if segments.iter().any(|segment| segment.is_empty()) {
            return None;
        }
        match *segments.as_slice() {
            ["agents", agent] => Some(Self::Agent { agent: agent.to_owned(), kind: kind_of(query)? }),
            // Some clients do not encode the slash between a cluster and an id.
            ["agents", cluster, agent] => {
                Some(Self::Agent { agent: format!("{cluster}/{agent}"), kind: kind_of(query)? })
            }
            ["sessions", session] => Some(Self::Session { session: session.to_owned(), kind: kind_of(query)? }),
            ["sessions", cluster, session] => {
                Some(Self::Session { session: format!("{cluster}/{session}"), kind: kind_of(query)? })
            }
            ["runs", run] if query.is_none() => Some(Self::Run { run: run.to_owned(), part: Part::Summary }),
            ["runs", run, "output"] => {
                let offset = match only(query, "offset")? {
                    Some(offset) => offset.parse().ok()?,
                    None => 0,
                };
                Some(Self::Run { run: run.to_owned(), part: Part::Output { offset } })
            }
            ["runs", run, "media", number] if query.is_none() => {
                Some(Self::Run { run: run.to_owned(), part: Part::Media { number: number.parse().ok()? } })
            }
            ["knowledge", knowledge, "content", content] if query.is_none() => {
                Some(Self::Content { knowledge: knowledge.to_owned(), content: content.to_owned() })
            }
            _ => None,
        }
    }
}

/// The one parameter that a query may have; `None` for a query with any other.
fn only<'a>(query: Option<&'a str>, name: &str) -> Option<Option<&'a str>> {
    match query {
        None | Some("") => Some(None),
        Some(query) => query.split_once('=').filter(|(key, _)| *key == name).map(|(_, value)| Some(value)),
    }
}

fn kind_of(query: Option<&str>) -> Option<Option<Kind>> {
    match only(query, "kind")? {
        None => Some(None),
        Some(word) => Kind::parse(word).map(Some),
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind_after = |kind: &Option<Kind>| kind.map(|kind| format!("?kind={kind}")).unwrap_or_default();
        match self {
            Self::Agent { agent, kind } => {
                write!(f, "{SCHEME}agents/{}{}", encode_segment(agent), kind_after(kind))
            }
            Self::Session { session, kind } => {
                write!(f, "{SCHEME}sessions/{}{}", encode_segment(session), kind_after(kind))
            }
            Self::Run { run, part: Part::Summary } => write!(f, "{SCHEME}runs/{}", encode_segment(run)),
            Self::Run { run, part: Part::Output { offset: 0 } } => {
                write!(f, "{SCHEME}runs/{}/output", encode_segment(run))
            }
            Self::Run { run, part: Part::Output { offset } } => {
                write!(f, "{SCHEME}runs/{}/output?offset={offset}", encode_segment(run))
            }
            Self::Run { run, part: Part::Media { number } } => {
                write!(f, "{SCHEME}runs/{}/media/{number}", encode_segment(run))
            }
            Self::Content { knowledge, content } => {
                write!(f, "{SCHEME}knowledge/{}/content/{}", encode_segment(knowledge), encode_segment(content))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn addresses_read_back_as_themselves() {
        let run = |part| Address::Run { run: "abc-_".into(), part };
        for (address, text) in [
            (Address::Agent { agent: "web".into(), kind: None }, "agno://agents/web"),
            (
                Address::Agent { agent: "blue/a b".into(), kind: Some(Kind::Team) },
                "agno://agents/blue%2Fa%20b?kind=team",
            ),
            (run(Part::Summary), "agno://runs/abc-_"),
            (run(Part::Output { offset: 0 }), "agno://runs/abc-_/output"),
            (run(Part::Output { offset: 80 }), "agno://runs/abc-_/output?offset=80"),
            (run(Part::Media { number: 3 }), "agno://runs/abc-_/media/3"),
            (Address::Session { session: "s?1".into(), kind: None }, "agno://sessions/s%3F1"),
            (Address::Content { knowledge: "kb".into(), content: "ü".into() }, "agno://knowledge/kb/content/%C3%BC"),
        ] {
            assert_eq!(address.to_string(), text);
            assert_eq!(Address::parse(text), Some(address), "{text}");
        }
        let spelled = Address::parse("agno://agents/blue/web");
        assert_eq!(spelled, Some(Address::Agent { agent: "blue/web".into(), kind: None }));
    }

    #[test]
    fn everything_else_is_no_address() {
        let long = format!("agno://runs/{}", "x".repeat(BYTES_MAX));
        for text in [
            "",
            "agno://",
            "agno://agents",
            "agno://agents/",
            "agno://agents/a/b/c",
            "agno://agents/web?kind=robot",
            "agno://agents/web?id=1",
            "agno://runs/a/output?offset=-1",
            "agno://runs/a/media/x",
            "agno://runs/a/secret",
            "agno://runs/a?x=1",
            "agno://sessions//s",
            "agno://agents/%ff",
            "agno://agents/%2",
            "file:///etc/passwd",
            "AGNO://agents/web",
            "agno://knowledge/kb",
            "agno://knowledge/kb/content",
            long.as_str(),
        ] {
            assert_eq!(Address::parse(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn what_is_read_is_written_the_same(text in "agno://(agents|sessions|runs|knowledge)/[a-zA-Z0-9%/?=._~-]{0,40}") {
            if let Some(address) = Address::parse(&text) {
                prop_assert_eq!(Address::parse(&address.to_string()), Some(address));
            }
        }
    }
}
