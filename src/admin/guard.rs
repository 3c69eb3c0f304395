//! Owns who may ask the admin listener: the `Host` that browsers cannot be tricked into, and the token.
//! Does not answer (`reply`).

use std::net::{Ipv4Addr, Ipv6Addr};

use http::header::{AUTHORIZATION, HOST, ORIGIN};
use http::{HeaderMap, Request};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

use super::reply::Problem;
use crate::secret::Secret;

/// Accepts addresses and `localhost`. A page of a stranger can make a browser ask here (DNS rebinding), but only under
/// the stranger's own name.
pub(super) fn check_host<B>(request: &Request<B>) -> Result<(), Problem> {
    if request.uri().authority().is_some() {
        return Err(Problem::BAD_HEAD);
    }
    let mut hosts = request.headers().get_all(HOST).iter();
    let (Some(host), None) = (hosts.next(), hosts.next()) else { return Err(Problem::BAD_HEAD) };
    let host = host.to_str().map_err(|_| Problem::BAD_HEAD)?;
    let name = without_port(host).ok_or(Problem::BAD_HEAD)?;
    let fits = name.eq_ignore_ascii_case("localhost") || is_address(name);
    if fits { Ok(()) } else { Err(Problem::WRONG_HOST) }
}

/// Refuses what a web page sent: a browser names the page's origin on everything that could change something.
pub(super) fn check_no_browser(headers: &HeaderMap) -> Result<(), Problem> {
    let named = headers.contains_key(ORIGIN) || headers.contains_key("sec-fetch-site");
    if named { Err(Problem::FROM_A_PAGE) } else { Ok(()) }
}

/// Says whether the caller shows the token; everybody does where none is set.
pub(super) fn has_token(headers: &HeaderMap, token: Option<&Secret>) -> bool {
    let Some(token) = token else { return true };
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let (Some(value), None) = (values.next(), values.next()) else { return false };
    let Some((scheme, shown)) = value.to_str().ok().and_then(|v| v.split_once(' ')) else { return false };
    // Hashes have one length: the comparison tells nothing, not even how long the token is.
    let equal = Sha256::digest(shown.as_bytes()).ct_eq(&Sha256::digest(token.expose()));
    scheme.eq_ignore_ascii_case("bearer") && bool::from(equal)
}

fn without_port(host: &str) -> Option<&str> {
    let is_port = |p: &str| !p.is_empty() && p.len() <= 5 && p.bytes().all(|b| b.is_ascii_digit());
    let end = if host.starts_with('[') { host.find(']')? + 1 } else { host.find(':').unwrap_or(host.len()) };
    let (name, rest) = host.split_at_checked(end)?;
    match rest.strip_prefix(':') {
        None if rest.is_empty() => Some(name),
        Some(port) if is_port(port) => Some(name),
        None | Some(_) => None,
    }
}

/// Whoever names a literal address has reached us by it; no DNS took part.
fn is_address(name: &str) -> bool {
    match name.strip_prefix('[').and_then(|n| n.strip_suffix(']')) {
        Some(v6) => v6.parse::<Ipv6Addr>().is_ok(),
        None => name.parse::<Ipv4Addr>().is_ok(),
    }
}
