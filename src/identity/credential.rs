//! Owns the one credential of a call, as sent.
//! Does not judge it (`verify`); a credential in a query, a cookie or another header is no credential.
//! Invariant: `Debug` prints nothing of it.

use std::fmt;
use std::sync::Arc;

use http::HeaderMap;
use http::header::AUTHORIZATION;

/// Longest credential that is looked at, in bytes.
pub const TOKEN_BYTES_MAX: usize = 8 * 1024;
/// How API keys begin.
pub(super) const API_KEY_START: &str = "tb_";

/// What a caller presents. Cloning shares the bytes.
#[derive(Clone, PartialEq, Eq)]
pub struct Credential(Inner);

/// A call that presents more than one credential: choosing one would let the caller choose who they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("more than one credential")]
pub struct Ambiguous;

/// A credential by its form.
pub(super) enum Form<'a> {
    ApiKey(&'a str),
    Token(&'a str),
    Malformed(&'static str),
}

#[derive(Clone, PartialEq, Eq)]
enum Inner {
    Bearer(Arc<str>),
    Malformed(&'static str),
}

// === impl Credential ===

impl Credential {
    /// Extracts the one credential of a call; `None` when there is no `Authorization`.
    ///
    /// Something unusable in `Authorization` (another scheme, two spaces, too long) is a credential that
    /// verification refuses, not an absent one.
    ///
    /// # Errors
    /// [`Ambiguous`] for two `Authorization` fields or several values in one.
    ///
    /// RFC 6750 §2: "Clients MUST NOT use more than one method to transmit the token in each request".
    pub fn from_headers(headers: &HeaderMap) -> Result<Option<Self>, Ambiguous> {
        let mut values = headers.get_all(AUTHORIZATION).iter();
        let Some(value) = values.next() else { return Ok(None) };
        if values.next().is_some() {
            return Err(Ambiguous);
        }
        match bearer_of(value.as_bytes()) {
            Ok(token) => Ok(Some(Self(Inner::Bearer(token.into())))),
            // No token holds a comma: it separates values (RFC 9110 §5.6.1).
            Err(_) if value.as_bytes().contains(&b',') => Err(Ambiguous),
            Err(reason) => Ok(Some(Self(Inner::Malformed(reason)))),
        }
    }

    /// Wraps a bare token or API key; `None` when it is empty, too long, or holds a character that no token has.
    pub fn bearer(token: &str) -> Option<Self> {
        plain(token.as_bytes()).map(|token| Self(Inner::Bearer(token.into())))
    }

    /// The bare token, where it must leave its wrapper: to be forwarded to an upstream that shares the issuer. API keys
    /// are for this gateway only.
    pub fn expose(&self) -> Option<&str> {
        match self.form() {
            Form::Token(token) => Some(token),
            Form::ApiKey(_) | Form::Malformed(_) => None,
        }
    }

    pub(super) fn form(&self) -> Form<'_> {
        match &self.0 {
            Inner::Bearer(token) if token.starts_with(API_KEY_START) => Form::ApiKey(token),
            Inner::Bearer(token) => Form::Token(token),
            Inner::Malformed(reason) => Form::Malformed(reason),
        }
    }
}

/// The token of an `Authorization` value, or what is wrong with it.
fn bearer_of(value: &[u8]) -> Result<&str, &'static str> {
    let space = value.iter().position(|b| *b == b' ').ok_or("authorization has no scheme")?;
    let (scheme, token) = value.split_at(space);
    if !scheme.eq_ignore_ascii_case(b"bearer") {
        return Err("authorization scheme is not bearer");
    }
    plain(token.get(1..).unwrap_or_default()).ok_or("bearer token has a bad form")
}

/// The bytes as a token: not empty, not too long, RFC 6750 §2.1 `b64token`.
fn plain(token: &[u8]) -> Option<&str> {
    let fits = (1..=TOKEN_BYTES_MAX).contains(&token.len());
    let is_plain = |b: u8| {
        let letter = (b | 0x20).wrapping_sub(b'a') < 26;
        // `-`, `.`, `/` and the digits stand side by side.
        let near_digit = b.wrapping_sub(b'-') < 13;
        letter | near_digit | (b == b'_') | (b == b'~') | (b == b'+') | (b == b'=')
    };
    // Without an early end several bytes are looked at at once.
    let plain = fits && token.iter().fold(true, |plain, b| plain & is_plain(*b));
    if plain { std::str::from_utf8(token).ok() } else { None }
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credential([redacted])")
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn read(values: &[&[u8]]) -> Result<Option<Credential>, Ambiguous> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(AUTHORIZATION, HeaderValue::from_bytes(value).unwrap());
        }
        Credential::from_headers(&headers)
    }

    #[test]
    fn scheme_is_bearer_in_any_case_and_one_space() {
        for good in ["Bearer abc", "bearer abc", "BEARER abc"] {
            assert_eq!(read(&[good.as_bytes()]).unwrap().unwrap().expose(), Some("abc"), "{good}");
        }
        let long = format!("Bearer {}", "a".repeat(TOKEN_BYTES_MAX + 1));
        for bad in
            ["Bearer", "Bearer ", "Bearer  abc", "Bearer a b", "Basic YTpi", "Token abc", "", "Bearer\tabc", &long]
        {
            assert_eq!(read(&[bad.as_bytes()]).unwrap().unwrap().expose(), None, "{bad}");
        }
        assert_eq!(read(&["Bearer é".as_bytes()]).unwrap().unwrap().expose(), None);
    }

    #[test]
    fn a_token_holds_only_what_rfc_6750_allows() {
        for b in 0..=u8::MAX {
            let allowed = b.is_ascii_alphanumeric() || b"-._~+/=".contains(&b);
            assert_eq!(plain(&[b'a', b, b'z']).is_some(), allowed, "{b:#x}");
        }
    }

    #[test]
    fn more_than_one_credential_is_refused() {
        assert_eq!(read(&[b"Bearer a", b"Bearer b"]), Err(Ambiguous));
        assert_eq!(read(&[b"Bearer a", b"Bearer a"]), Err(Ambiguous));
        assert_eq!(read(&[b"Bearer a, Bearer b"]), Err(Ambiguous));
        assert_eq!(read(&[b"Bearer a,b"]), Err(Ambiguous));
    }

    #[test]
    fn other_places_hold_no_credential() {
        let mut headers = HeaderMap::new();
        headers.insert("cookie", HeaderValue::from_static("access_token=abc"));
        headers.insert("x-api-key", HeaderValue::from_static("tb_abc"));
        headers.insert("proxy-authorization", HeaderValue::from_static("Bearer abc"));
        assert_eq!(Credential::from_headers(&headers), Ok(None));
    }

    #[test]
    fn debug_prints_nothing_of_it() {
        assert_eq!(format!("{:?}", Credential::bearer("tb_secret").unwrap()), "Credential([redacted])");
    }
}
