//! Owns which addresses AgentOS may be told to fetch from: `url` of an upload is fetched from inside its network.
//! Does not fetch, and cannot keep a name from resolving to something else a moment later: AgentOS resolves it again.
//! Invariant: what cannot be read as a public http or https address is refused.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use serde_json::Value;
use url::{Host, Url};

use super::refusal::{Code, Refusal, Stage};

/// Longest wait for a name to resolve.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(2);
/// Most addresses in one field.
const URLS_MAX: usize = 16;

/// Checks a `url` field: one address, or a JSON list of them as AgentOS 2.x reads it.
///
/// # Errors
/// `forbidden` when one of them is not public, `form_malformed` when it is no address.
///
/// # Cancel safety
/// Safe: nothing but names is looked up.
pub(super) async fn check(text: &str) -> Result<(), Refusal> {
    let listed = match serde_json::from_str::<Value>(text) {
        Ok(Value::Array(list)) => list.into_iter().map(|item| item.as_str().map(str::to_owned)).collect(),
        Ok(Value::String(one)) => Some(vec![one]),
        Ok(Value::Null | Value::Bool(_) | Value::Number(_) | Value::Object(_)) => None,
        Err(_) => Some(vec![text.to_owned()]),
    };
    let listed: Vec<String> = listed.filter(|list| list.len() <= URLS_MAX).ok_or_else(no_address)?;
    for url in &listed {
        check_one(url).await?;
    }
    Ok(())
}

async fn check_one(text: &str) -> Result<(), Refusal> {
    // Parsers disagree on what white space, control characters and backslashes in an address mean.
    if text.contains(|c: char| c.is_whitespace() || c.is_control() || c == '\\') {
        return Err(no_address());
    }
    let url = Url::parse(text).map_err(|_| no_address())?;
    if !matches!(url.scheme(), "http" | "https") || !url.username().is_empty() || url.password().is_some() {
        return Err(not_public("scheme or user info"));
    }
    match url.host().ok_or_else(no_address)? {
        Host::Ipv4(address) if is_public(address.into()) => Ok(()),
        Host::Ipv6(address) if is_public(address.into()) => Ok(()),
        Host::Ipv4(_) | Host::Ipv6(_) => Err(not_public("the address is not public")),
        Host::Domain(name) => {
            let port = url.port_or_known_default().unwrap_or(443);
            let found = tokio::time::timeout(RESOLVE_TIMEOUT, tokio::net::lookup_host((name, port))).await;
            let Ok(Ok(found)) = found else { return Err(not_public("the name does not resolve")) };
            let mut found = found.peekable();
            let public = found.peek().is_some() && found.all(|address| is_public(address.ip()));
            if public { Ok(()) } else { Err(not_public("the name resolves to an address that is not public")) }
        }
    }
}

fn no_address() -> Refusal {
    Refusal::new(Code::FormMalformed, Stage::Request).saying("field `url` is not an address")
}

fn not_public(why: &'static str) -> Refusal {
    Refusal::new(Code::Forbidden, Stage::Request)
        .saying("field `url` must be a public http or https address")
        .because(why)
}

/// Says whether an address is reachable from anywhere (IANA special-purpose registries).
fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => is_public_v4(address),
        IpAddr::V6(address) => is_public_v6(address),
    }
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    let [a, b, c, _] = address.octets();
    let special = match a {
        0 | 10 | 127 => true,
        100 => (64..128).contains(&b),
        169 => b == 254,
        172 => (16..32).contains(&b),
        192 => b == 168 || (b == 0 && matches!(c, 0 | 2)) || (b == 88 && c == 99),
        198 => matches!(b, 18 | 19) || (b == 51 && c == 100),
        203 => b == 0 && c == 113,
        _ => a >= 224,
    };
    !special
}

/// Global unicast only, without the ranges inside it that carry another address or lead nowhere.
fn is_public_v6(address: Ipv6Addr) -> bool {
    if let Some(mapped) = address.to_ipv4_mapped() {
        return is_public_v4(mapped);
    }
    let [a, b, ..] = address.segments();
    let global = a & 0xe000 == 0x2000;
    let special = a == 0x2002 || (a == 0x2001 && (b < 0x200 || b == 0x0db8)) || (a == 0x3fff && b < 0x1000);
    global && !special
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_public_addresses_pass() {
        for good in [
            "http://93.184.215.14/a?b=c",
            "https://[2606:2800:21f:cb07::1]:8443/",
            r#"["http://8.8.8.8/","https://1.1.1.1/"]"#,
        ] {
            assert!(check(good).await.is_ok(), "{good}");
        }
        for bad in [
            "http://127.0.0.1/",
            "http://127.1/",
            "http://2130706433/",
            "http://0x7f.0.0.1/",
            "http://0177.0.0.1/",
            "http://localhost:7777/",
            "http://0/",
            "http://10.0.0.1/",
            "http://172.16.0.1/",
            "http://192.168.1.1/",
            "http://169.254.169.254/latest/meta-data/",
            "http://100.64.0.1/",
            "http://224.0.0.1/",
            "http://[::1]/",
            "http://[::]/",
            "http://[::ffff:127.0.0.1]/",
            "http://[::ffff:a9fe:a9fe]/",
            "http://[fd00::1]/",
            "http://[fe80::1]/",
            "http://[64:ff9b::7f00:1]/",
            "http://[2002:7f00:1::]/",
            "file:///etc/passwd",
            "gopher://8.8.8.8/",
            "ftp://8.8.8.8/",
            "http://a:b@8.8.8.8/",
            "http://8.8.8.8\\@127.0.0.1/",
            " http://8.8.8.8/",
            "http:///",
            "",
            "8.8.8.8",
            "{}",
            "1",
            r#"["http://8.8.8.8/","http://127.0.0.1/"]"#,
            r#"[1]"#,
        ] {
            assert!(check(bad).await.is_err(), "{bad}");
        }
    }
}
