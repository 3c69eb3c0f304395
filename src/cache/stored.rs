//! Owns a kept answer, the rules of HTTP for keeping one, and how the cache speaks of it.
//! Does not choose rules per operation (`mod`).

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{AGE, CACHE_CONTROL, CONTENT_ENCODING, SET_COOKIE, VARY};
use http::{HeaderMap, HeaderValue};
use tokio::time::Instant;

/// Largest body that is kept.
pub const BODY_BYTES_MAX: usize = 1024 * 1024;

/// An answer that may be given again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// Its status.
    pub status: u16,
    /// Its media type.
    pub content_type: Option<HeaderValue>,
    /// Its body.
    pub body: Bytes,
    /// When it came.
    pub stored_at: Instant,
    /// How long it is fresh.
    pub ttl: Duration,
}

/// How the cache took part in an answer, for `Cache-Status` (RFC 9211) and metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CacheStatus {
    /// Answered from the cache; fresh for this long.
    Hit(Duration),
    /// Fetched and kept.
    Stored,
    /// Fetched and not kept.
    Miss,
    /// The cache was not asked, or waiting for another fetch took too long.
    Bypass,
}

impl Stored {
    /// An answer that came just now and is fresh for `ttl`.
    pub fn now(status: u16, content_type: Option<HeaderValue>, body: Bytes, ttl: Duration) -> Self {
        Self { status, content_type, body, stored_at: Instant::now(), ttl }
    }

    /// Time since it came.
    pub fn age(&self) -> Duration {
        self.stored_at.elapsed()
    }

    /// The value of `Age`: whole seconds (RFC 9111 §5.1).
    pub fn age_header(&self) -> HeaderValue {
        HeaderValue::from(self.age().as_secs())
    }

    /// How the cache took part when this answer is given from it.
    pub fn hit(&self) -> CacheStatus {
        CacheStatus::Hit(self.ttl.saturating_sub(self.age()))
    }

    pub(super) fn is_fresh(&self) -> bool {
        self.age() < self.ttl
    }
}

impl CacheStatus {
    /// The value of `Cache-Status`.
    pub fn header(self) -> HeaderValue {
        let fixed = match self {
            Self::Hit(ttl) => {
                let text = format!("tollbridge; hit; ttl={}", ttl.as_secs());
                return HeaderValue::from_str(&text).unwrap_or(HeaderValue::from_static("tollbridge; hit"));
            }
            Self::Stored => "tollbridge; fwd=miss; stored",
            Self::Miss => "tollbridge; fwd=miss",
            Self::Bypass => "tollbridge; fwd=bypass",
        };
        HeaderValue::from_static(fixed)
    }

    /// The word in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Hit(_) => "hit",
            Self::Stored | Self::Miss => "miss",
            Self::Bypass => "bypass",
        }
    }
}

/// How long an upstream answer may be kept under a rule of `ttl`; `None` when it may not.
///
/// Upstream wins by being stricter: it can forbid or shorten, never lengthen what the operator set.
/// RFC 9111 §3 and §5.2.2, as a shared cache; answers whose meaning hangs on a header that is not
/// kept (`Set-Cookie`, `Content-Encoding`, `Vary: *`) are not kept either.
pub fn storable(status: u16, headers: &HeaderMap, ttl: Duration) -> Option<Duration> {
    let varies = headers.get_all(VARY).iter().any(|vary| items(vary).any(|item| item == "*"));
    let unkept = headers.contains_key(SET_COOKIE) || headers.contains_key(CONTENT_ENCODING);
    if status != 200 || varies || unkept {
        return None;
    }
    let ttl = upstream_max_age(headers)?.map_or(ttl, |max_age| max_age.min(ttl));
    let age = headers.get(AGE).and_then(|age| age.to_str().ok()?.trim().parse().ok());
    let left = ttl.saturating_sub(Duration::from_secs(age.unwrap_or(0)));
    (!left.is_zero()).then_some(left)
}

/// `None` when upstream forbids keeping, else its lifetime where it states one.
fn upstream_max_age(headers: &HeaderMap) -> Option<Option<Duration>> {
    let (mut max_age, mut s_maxage) = (None, None);
    for directive in headers.get_all(CACHE_CONTROL).iter().flat_map(items) {
        let (name, value) = directive.split_once('=').unwrap_or((&directive, ""));
        let place = match name.trim() {
            "no-store" | "no-cache" | "private" => return None,
            "max-age" => &mut max_age,
            "s-maxage" => &mut s_maxage,
            _ => continue,
        };
        // An unreadable lifetime is stale (RFC 9111 §4.2.1), and of two the shorter one holds.
        let secs = value.trim().trim_matches('"').parse().unwrap_or(0);
        *place = Some(place.map_or(secs, |other: u64| other.min(secs)));
    }
    Some(s_maxage.or(max_age).map(Duration::from_secs))
}

/// The items of a list header, in lower case. Bytes that are no text make an item that matches nothing.
fn items(value: &HeaderValue) -> impl Iterator<Item = String> {
    let text = String::from_utf8_lossy(value.as_bytes()).to_ascii_lowercase();
    text.split(',').map(|item| item.trim().to_owned()).collect::<Vec<_>>().into_iter()
}

/// An answer in the cache's memory with the stamp of its fetch.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) stored: Arc<Stored>,
    pub(super) stamp: super::marks::Stamp,
}

#[cfg(test)]
mod tests {
    use super::*;

    const TTL: Duration = Duration::from_secs(10);

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let pairs =
            pairs.iter().map(|(name, value)| (http::HeaderName::from_static(name), HeaderValue::from_static(value)));
        pairs.collect()
    }

    #[test]
    fn upstream_may_forbid_or_shorten() {
        for (pairs, secs) in [
            (&[][..], Some(10)),
            (&[("cache-control", "public")], Some(10)),
            (&[("cache-control", "max-age=5")], Some(5)),
            (&[("cache-control", "Max-Age=\"5\", must-revalidate")], Some(5)),
            (&[("cache-control", "max-age=60")], Some(10)),
            (&[("cache-control", "max-age=5, s-maxage=7")], Some(7)),
            (&[("cache-control", "max-age=8"), ("cache-control", "max-age=6")], Some(6)),
            (&[("cache-control", "max-age=8"), ("age", "3")], Some(5)),
            (&[("cache-control", "max-age=8"), ("age", "8")], None),
            (&[("cache-control", "max-age=0")], None),
            (&[("cache-control", "max-age=soon")], None),
            (&[("cache-control", "public, No-Store")], None),
            (&[("cache-control", "public"), ("cache-control", "private=\"x\"")], None),
            (&[("cache-control", "no-cache")], None),
            (&[("set-cookie", "a=b")], None),
            (&[("content-encoding", "gzip")], None),
            (&[("vary", "origin")], Some(10)),
            (&[("vary", "origin, *")], None),
        ] {
            assert_eq!(storable(200, &headers(pairs), TTL), secs.map(Duration::from_secs), "{pairs:?}");
        }
    }

    #[test]
    fn only_answers_with_status_200_are_kept() {
        for status in [201, 202, 204, 206, 301, 304, 404, 500, 503] {
            assert_eq!(storable(status, &HeaderMap::new(), TTL), None, "{status}");
        }
        assert_eq!(storable(200, &HeaderMap::new(), Duration::ZERO), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_hit_tells_its_age_and_what_is_left() {
        let stored = Stored::now(200, None, Bytes::new(), TTL);
        tokio::time::advance(Duration::from_millis(3_900)).await;
        assert_eq!(stored.age_header(), "3");
        assert_eq!(stored.hit().header(), "tollbridge; hit; ttl=6");
    }

    #[test]
    fn cache_status_names_what_happened() {
        for (status, header, word) in [
            (CacheStatus::Hit(TTL), "tollbridge; hit; ttl=10", "hit"),
            (CacheStatus::Stored, "tollbridge; fwd=miss; stored", "miss"),
            (CacheStatus::Miss, "tollbridge; fwd=miss", "miss"),
            (CacheStatus::Bypass, "tollbridge; fwd=bypass", "bypass"),
        ] {
            assert_eq!((status.header(), status.as_str()), (HeaderValue::from_static(header), word));
        }
    }
}
