//! Owns the outer form of a token: three parts, a header that asks for nothing special, a payload, a signature.
//! Does not verify the signature (`issuer`) and does not read claims (`claims`).
//! Invariant: no member of the header names a key, a certificate or a place to get one from; `kid` is only compared.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Map, Value};

use super::{Algorithm, Refused, TOKEN_BYTES_MAX, json};

/// Longest `kid`, in bytes.
pub(super) const KID_BYTES_MAX: usize = 256;

/// Header members that would change how or with which key a token is verified. RFC 7515 §4.1.11 demands refusal of an
/// unknown `crit`; the others would let the token choose its own key, or are the marks of encrypted or nested tokens.
const REFUSED_MEMBERS: [&str; 9] = ["crit", "jwk", "jku", "x5u", "x5c", "zip", "b64", "enc", "cty"];

/// A token in JWS compact form, not verified.
pub(super) struct Jws<'a> {
    pub(super) algorithm: Algorithm,
    pub(super) kid: Option<String>,
    pub(super) payload: Vec<u8>,
    /// What is signed: header and payload as sent.
    pub(super) message: &'a str,
    /// Signature in base64url, as sent.
    pub(super) signature: &'a str,
}

impl<'a> Jws<'a> {
    pub(super) fn parse(token: &'a str) -> Result<Self, Refused> {
        if token.len() > TOKEN_BYTES_MAX {
            return Err(Refused::Invalid("token too long"));
        }
        let not_compact = Refused::Invalid("token is not in JWS compact form");
        let (message, signature) = token.rsplit_once('.').ok_or(not_compact.clone())?;
        let (header, payload) = message.split_once('.').ok_or(not_compact.clone())?;
        if payload.contains('.') || header.is_empty() || payload.is_empty() || signature.is_empty() {
            return Err(not_compact);
        }
        let decode = |part: &str| URL_SAFE_NO_PAD.decode(part).map_err(|_| Refused::Invalid("token is not base64url"));
        let header = json::object(&decode(header)?).map_err(|_| Refused::Invalid("token header is not strict JSON"))?;
        let (algorithm, kid) = read_header(&header)?;
        Ok(Self { algorithm, kid, payload: decode(payload)?, message, signature })
    }
}

fn read_header(header: &Map<String, Value>) -> Result<(Algorithm, Option<String>), Refused> {
    if REFUSED_MEMBERS.iter().any(|name| header.contains_key(*name)) {
        return Err(Refused::Invalid("token header asks for special treatment"));
    }
    let algorithm = header.get("alg").and_then(Value::as_str).and_then(Algorithm::parse);
    let algorithm = algorithm.ok_or(Refused::Invalid("token algorithm unknown"))?;
    match header.get("typ") {
        None => {}
        Some(Value::String(typ)) if is_access_token(typ) => {}
        Some(_) => return Err(Refused::Invalid("token type is not JWT")),
    }
    let kid = match header.get("kid") {
        None => None,
        Some(Value::String(kid)) if kid.len() <= KID_BYTES_MAX => Some(kid.clone()),
        Some(_) => return Err(Refused::Invalid("token key id has a bad form")),
    };
    Ok((algorithm, kid))
}

/// Other types are made for other purposes (logout, DPoP proofs, security events); RFC 8725 §3.11.
fn is_access_token(typ: &str) -> bool {
    let typ = typ.to_ascii_lowercase();
    matches!(typ.strip_prefix("application/").unwrap_or(&typ), "jwt" | "at+jwt")
}
