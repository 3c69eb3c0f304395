//! Owns what HTTP says about keeping a reply: `Cache-Control`, `Vary`, `Cache-Status`.
//! Does not keep.

use std::time::Duration;

use http::{HeaderMap, header};

use super::REPLY_BYTES_MAX;

/// How long a reply may be kept: the rule's time, shortened by upstream's `Cache-Control` (RFC 9111 §5.2.2).
///
/// `None` for anything but a whole 200 without cookies, and for what upstream forbids to keep.
pub fn storable(status: u16, headers: &HeaderMap, body_bytes: usize, ttl: Duration) -> Option<Duration> {
    let varies = headers.get_all(header::VARY).iter().any(|v| v.as_bytes().contains(&b'*'));
    if status != 200 || body_bytes > REPLY_BYTES_MAX || varies || headers.contains_key(header::SET_COOKIE) {
        return None;
    }
    let mut ttl = ttl;
    for value in headers.get_all(header::CACHE_CONTROL) {
        for directive in value.to_str().unwrap_or("no-store").split(',') {
            let directive = directive.trim().to_ascii_lowercase();
            match directive.split_once('=') {
                Some(("max-age" | "s-maxage", age)) => {
                    ttl = ttl.min(Duration::from_secs(age.trim_matches('"').parse().unwrap_or(0)));
                }
                Some(_) => {}
                None if matches!(directive.as_str(), "no-store" | "no-cache" | "private") => return None,
                None => {}
            }
        }
    }
    (!ttl.is_zero()).then_some(ttl)
}

/// `Cache-Status` of a miss (RFC 9211 §2.2): whether the reply was kept.
pub fn miss_status(kept: Option<Duration>) -> String {
    match kept {
        Some(ttl) => format!("tollbridge; fwd=miss; stored; ttl={}", ttl.as_secs()),
        None => "tollbridge; fwd=miss".to_owned(),
    }
}
