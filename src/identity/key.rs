//! Owns one verifying key and the algorithms it may be used with.
//! Does not know where keys come from (`issuer`, `jwks`).
//! Invariant: a key verifies only algorithms of its own type; a public key never serves as a shared secret.

use std::sync::Arc;

use jsonwebtoken::DecodingKey;

use super::{Algorithm, Refused};
use crate::secret::Secret;

/// Shortest shared secret. RFC 7518 §3.2 asks for at least the size of the hash.
const SECRET_BYTES_MIN: usize = 32;

/// A key that verifies signatures.
pub(super) struct VerifyingKey {
    pub(super) kid: Option<Arc<str>>,
    /// The one algorithm that its publisher allows, if it says so.
    pub(super) pinned: Option<Algorithm>,
    pub(super) shape: Shape,
    pub(super) key: DecodingKey,
}

/// The type of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shape {
    Secret,
    Rsa,
    P256,
    P384,
    Ed25519,
}

// === impl Shape ===

impl Shape {
    pub(super) const fn fits(self, algorithm: Algorithm) -> bool {
        use Algorithm as A;
        match self {
            Self::Secret => algorithm.is_symmetric(),
            Self::Rsa => matches!(algorithm, A::RS256 | A::RS384 | A::RS512 | A::PS256 | A::PS384 | A::PS512),
            Self::P256 => matches!(algorithm, A::ES256),
            Self::P384 => matches!(algorithm, A::ES384),
            Self::Ed25519 => matches!(algorithm, A::EdDSA),
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Secret => "a shared secret",
            Self::Rsa => "an RSA key",
            Self::P256 => "a P-256 key",
            Self::P384 => "a P-384 key",
            Self::Ed25519 => "an Ed25519 key",
        }
    }
}

// === impl VerifyingKey ===

impl VerifyingKey {
    /// Loads a configured key and checks that it fits every algorithm of its issuer.
    ///
    /// The error is a sentence for the operator; it holds nothing of the key.
    pub(super) fn from_settings(secret: &Secret, algorithms: &[Algorithm]) -> Result<Self, String> {
        let bytes = secret.expose();
        let loaded = if looks_public(bytes) { from_pem(bytes)? } else { from_secret(bytes) };
        if let Some(misfit) = algorithms.iter().find(|a| !loaded.shape.fits(**a)) {
            let help = if misfit.is_symmetric() {
                "help: a public key is known to everybody; never use it as a shared secret"
            } else {
                "help: name only algorithms of this key's type, and give public keys in PEM"
            };
            return Err(format!("is {}, which does not fit algorithm `{misfit}`\n{help}", loaded.shape.name()));
        }
        if loaded.shape == Shape::Secret && bytes.len() < SECRET_BYTES_MIN {
            return Err(format!(
                "is a shared secret of {} bytes, at least {SECRET_BYTES_MIN} are needed\nhelp: openssl rand -hex 32",
                bytes.len()
            ));
        }
        Ok(loaded)
    }

    pub(super) fn fits(&self, algorithm: Algorithm) -> bool {
        self.shape.fits(algorithm) && self.pinned.is_none_or(|pinned| pinned == algorithm)
    }

    pub(super) fn verify(&self, algorithm: Algorithm, message: &[u8], signature: &str) -> Result<(), Refused> {
        let verified = jsonwebtoken::crypto::verify(signature, message, &self.key, to_library(algorithm));
        if verified.unwrap_or(false) { Ok(()) } else { Err(Refused::Invalid("signature does not verify")) }
    }
}

/// PEM in any dress, or a JWK: things that are public or structured, never a shared secret.
fn looks_public(bytes: &[u8]) -> bool {
    let text = bytes.trim_ascii_start();
    memchr::memmem::find(text, b"-----BEGIN").is_some() || memchr::memmem::find(text, b"\"kty\"").is_some()
}

/// A shared secret of any length; `from_settings` wants a long one.
pub(super) fn from_secret(bytes: &[u8]) -> VerifyingKey {
    VerifyingKey { kid: None, pinned: None, shape: Shape::Secret, key: DecodingKey::from_secret(bytes) }
}

fn from_pem(bytes: &[u8]) -> Result<VerifyingKey, String> {
    let marks = |mark: &[u8]| memchr::memmem::find(bytes, mark).is_some();
    if marks(b"PRIVATE KEY-----") || marks(b"BEGIN CERTIFICATE") || !marks(b"PUBLIC KEY-----") {
        return Err("is not a public key in PEM\nhelp: openssl pkey -in key.pem -pubout".to_owned());
    }
    let ec = DecodingKey::from_ec_pem(bytes).ok().and_then(|key| {
        // An uncompressed point: 0x04, x, y.
        let shape = match key.try_get_as_bytes().map_or(0, <[u8]>::len) {
            65 => Shape::P256,
            97 => Shape::P384,
            _ => return None,
        };
        Some((shape, key))
    });
    let ed = || DecodingKey::from_ed_pem(bytes).ok().map(|key| (Shape::Ed25519, key));
    let rsa = || DecodingKey::from_rsa_pem(bytes).ok().map(|key| (Shape::Rsa, key));
    let (shape, key) = ec
        .or_else(ed)
        .or_else(rsa)
        .ok_or("is not an RSA, P-256, P-384 or Ed25519 public key\nhelp: openssl pkey -in key.pem -pubout")?;
    Ok(VerifyingKey { kid: None, pinned: None, shape, key })
}

/// The same algorithm in the library's words.
pub(super) const fn to_library(algorithm: Algorithm) -> jsonwebtoken::Algorithm {
    use jsonwebtoken::Algorithm as L;
    match algorithm {
        Algorithm::HS256 => L::HS256,
        Algorithm::HS384 => L::HS384,
        Algorithm::HS512 => L::HS512,
        Algorithm::RS256 => L::RS256,
        Algorithm::RS384 => L::RS384,
        Algorithm::RS512 => L::RS512,
        Algorithm::PS256 => L::PS256,
        Algorithm::PS384 => L::PS384,
        Algorithm::PS512 => L::PS512,
        Algorithm::ES256 => L::ES256,
        Algorithm::ES384 => L::ES384,
        Algorithm::EdDSA => L::EdDSA,
    }
}
