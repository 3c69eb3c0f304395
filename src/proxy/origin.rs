//! Owns who is at the other end when something stands in between: PROXY protocol v2 and `X-Forwarded-For`.
//! Does not trust anybody by itself: only networks of the configuration are believed.
//! Invariants: a header that is malformed or larger than it may be ends the connection; forwarded addresses are counted
//! from the right, so that what a caller writes on the left says nothing.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use http::HeaderMap;
use ipnet::IpNet;
use tokio::io::{AsyncRead, AsyncReadExt as _};

/// How a PROXY protocol header begins.
const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// Signature, version and command, family, length.
const FIXED_BYTES: usize = 16;
/// Longest rest: addresses, and what TLS terminators add.
const REST_BYTES_MAX: usize = 4096;
/// Most hops of `X-Forwarded-For` that are looked at.
const HOPS_MAX: usize = 32;

/// The header is not one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct BadHeader;

/// Says whether an address is in one of the networks; IPv4 in IPv6 clothes is IPv4.
pub(super) fn is_in(networks: &[IpNet], address: IpAddr) -> bool {
    let address = address.to_canonical();
    networks.iter().any(|network| network.contains(&address))
}

/// Reads a PROXY protocol header of version 2 and nothing behind it; says who it names, if it names somebody.
///
/// # Errors
/// [`BadHeader`] for everything else, version 1 too.
pub(super) async fn proxied<S: AsyncRead + Unpin>(stream: &mut S) -> Result<Option<SocketAddr>, BadHeader> {
    let mut fixed = [0; FIXED_BYTES];
    stream.read_exact(&mut fixed).await.map_err(|_| BadHeader)?;
    let [start @ .., command, family, high, low] = fixed;
    let length = usize::from(u16::from_be_bytes([high, low]));
    if start != SIGNATURE || length > REST_BYTES_MAX {
        return Err(BadHeader);
    }
    let mut rest = vec![0; length];
    stream.read_exact(&mut rest).await.map_err(|_| BadHeader)?;
    match command {
        // LOCAL: the proxy speaks for itself, such as in a health check.
        0x20 => Ok(None),
        0x21 => named(family, &rest),
        _ => Err(BadHeader),
    }
}

/// The source address of a PROXY command.
fn named(family: u8, rest: &[u8]) -> Result<Option<SocketAddr>, BadHeader> {
    match family {
        // Not known, or not TCP over IP: then nobody is named.
        0x00 => Ok(None),
        0x11 => {
            let (address, ports) = rest.split_first_chunk::<4>().ok_or(BadHeader)?;
            let port = ports.get(4..8).and_then(<[u8]>::first_chunk).ok_or(BadHeader)?;
            Ok(Some((Ipv4Addr::from(*address), u16::from_be_bytes(*port)).into()))
        }
        0x21 => {
            let (address, ports) = rest.split_first_chunk::<16>().ok_or(BadHeader)?;
            let port = ports.get(16..20).and_then(<[u8]>::first_chunk).ok_or(BadHeader)?;
            Ok(Some((Ipv6Addr::from(*address), u16::from_be_bytes(*port)).into()))
        }
        _ => Err(BadHeader),
    }
}

/// The caller of a request: the peer, or where the peer is trusted, the last hop that is not.
pub(super) fn caller(trusted: &[IpNet], peer: IpAddr, headers: &HeaderMap) -> IpAddr {
    if trusted.is_empty() || !is_in(trusted, peer) {
        return peer;
    }
    let mut caller = peer;
    let values = headers.get_all("x-forwarded-for").iter().rev();
    let hops = values.flat_map(|value| value.as_bytes().rsplit(|byte| *byte == b','));
    for hop in hops.take(HOPS_MAX) {
        // What cannot be read says nothing, nor does anything to the left of it.
        let Some(address) = std::str::from_utf8(hop).ok().and_then(|hop| hop_address(hop.trim())) else { break };
        caller = address.to_canonical();
        if !is_in(trusted, caller) {
            break;
        }
    }
    caller
}

/// An address, with or without a port.
fn hop_address(hop: &str) -> Option<IpAddr> {
    let bare = hop.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(hop);
    bare.parse().ok().or_else(|| hop.parse().ok().map(|address: SocketAddr| address.ip()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nets(list: &[&str]) -> Vec<IpNet> {
        list.iter().map(|net| net.parse().unwrap()).collect()
    }

    async fn read(bytes: &[u8]) -> Result<Option<SocketAddr>, BadHeader> {
        let mut stream = bytes;
        let read = proxied(&mut stream).await;
        if read.is_ok() {
            assert_eq!(stream, b"GET", "what stands behind the header is left");
        }
        read
    }

    fn header(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
        let length = u16::try_from(rest.len()).unwrap().to_be_bytes();
        [&SIGNATURE[..], &[command, family], &length, rest, b"GET"].concat()
    }

    #[tokio::test]
    async fn a_header_names_the_source_whatever_else_it_holds() {
        let four = [192, 0, 2, 7, 10, 0, 0, 1, 0x12, 0x34, 0, 80];
        let source = Some("192.0.2.7:4660".parse().unwrap());
        assert_eq!(read(&header(0x21, 0x11, &four)).await, Ok(source));
        assert_eq!(read(&header(0x21, 0x11, &[&four[..], &[4, 0, 1, 0]].concat())).await, Ok(source));
        let mut six = vec![0_u8; 36];
        six[..4].copy_from_slice(&[0x20, 1, 0xd, 0xb8]);
        six[32..34].copy_from_slice(&[0, 9]);
        assert_eq!(read(&header(0x21, 0x21, &six)).await, Ok(Some("[2001:db8::]:9".parse().unwrap())));
        assert_eq!(read(&header(0x20, 0x11, &four)).await, Ok(None));
        assert_eq!(read(&header(0x20, 0x00, &[])).await, Ok(None));
        assert_eq!(read(&header(0x21, 0x00, &[1, 2, 3])).await, Ok(None));
    }

    #[tokio::test]
    async fn what_is_no_header_is_refused() {
        let four = [192, 0, 2, 7, 10, 0, 0, 1, 0x12, 0x34, 0, 80];
        let whole = header(0x21, 0x11, &four);
        for end in 0..whole.len() - 3 {
            assert_eq!(read(&whole[..end]).await, Err(BadHeader), "cut at {end}");
        }
        for bad in [
            header(0x31, 0x11, &four),
            header(0x22, 0x11, &four),
            header(0x11, 0x11, &four),
            header(0x21, 0x12, &four),
            header(0x21, 0x31, &[0; 216]),
            header(0x21, 0x11, &four[..11]),
            header(0x21, 0x21, &[0; 35]),
            header(0x21, 0x11, &[0; REST_BYTES_MAX + 1]),
            b"PROXY TCP4 192.0.2.7 10.0.0.1 4660 80\r\nGET".to_vec(),
            b"GET / HTTP/1.1\r\nHost: a\r\n\r\n".to_vec(),
        ] {
            assert_eq!(read(&bad).await, Err(BadHeader), "{bad:?}");
        }
    }

    #[test]
    fn forwarded_addresses_are_believed_hop_by_hop_from_the_right() {
        let trusted = nets(&["10.0.0.0/8", "2001:db8::/32"]);
        let of = |peer: &str, fields: &[&str]| {
            let mut headers = HeaderMap::new();
            for field in fields {
                headers.append("x-forwarded-for", field.parse().unwrap());
            }
            caller(&trusted, peer.parse().unwrap(), &headers).to_string()
        };
        assert_eq!(of("192.0.2.1", &["198.51.100.7"]), "192.0.2.1");
        assert_eq!(of("10.0.0.1", &[]), "10.0.0.1");
        assert_eq!(of("10.0.0.1", &["198.51.100.7"]), "198.51.100.7");
        assert_eq!(of("::ffff:10.0.0.1", &["198.51.100.7"]), "198.51.100.7");
        assert_eq!(of("10.0.0.1", &["1.1.1.1, 198.51.100.7, 10.2.0.1"]), "198.51.100.7");
        assert_eq!(of("10.0.0.1", &["1.1.1.1, 198.51.100.7", "10.2.0.1"]), "198.51.100.7");
        assert_eq!(of("10.0.0.1", &["10.3.0.1,10.2.0.1"]), "10.3.0.1");
        assert_eq!(of("2001:db8::1", &["[2001:470::9]:443"]), "2001:470::9");
        assert_eq!(of("10.0.0.1", &["198.51.100.7:1234"]), "198.51.100.7");
        // The last hop that can be read and was believed.
        assert_eq!(of("10.0.0.1", &["1.1.1.1, unknown, 10.2.0.1"]), "10.2.0.1");
        assert_eq!(of("10.0.0.1", &["1.1.1.1,"]), "10.0.0.1");
        let long = vec!["10.0.0.9"; 100].join(",");
        assert_eq!(of("10.0.0.1", &[&format!("1.1.1.1,{long}")]), "10.0.0.9");
    }
}
