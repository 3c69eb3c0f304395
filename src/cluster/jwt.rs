//! Owns signing the tokens that we show to AgentOS (RFC 7515 compact form, RFC 7519 claims).
//! Does not verify tokens (`identity`) and does not choose claims (`credential`).

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeyPair as RsaKeyPair;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, RSA_PKCS1_SHA256};
use aws_lc_rs::{error, hmac};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject as _;

use crate::secret::Secret;

/// An algorithm that upstream tokens can be signed with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(clippy::upper_case_acronyms, reason = "the names of RFC 7518 §3.1 and RFC 8037")]
pub enum MintAlgorithm {
    /// HMAC with SHA-256.
    HS256,
    /// HMAC with SHA-384.
    HS384,
    /// HMAC with SHA-512.
    HS512,
    /// RSA PKCS #1 v1.5 with SHA-256.
    RS256,
    /// ECDSA on P-256 with SHA-256.
    ES256,
    /// Ed25519.
    EdDSA,
}

/// Why a key does not fit its algorithm. Never holds key bytes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadKey {
    /// No bytes.
    #[error("the key is empty")]
    Empty,
    /// An asymmetric algorithm needs a private key as PEM.
    #[error("`{0}` needs a private key in PEM form")]
    NotPem(&'static str),
    /// A PEM, but of another kind of key.
    #[error("the private key is none for `{0}`")]
    WrongKind(&'static str),
}

/// Signs with one key.
pub(super) struct Signer {
    key: Key,
    /// The encoded header and its dot.
    header: String,
}

enum Key {
    Hmac(Box<hmac::Key>),
    Rsa(Box<RsaKeyPair>),
    Ecdsa(Box<EcdsaKeyPair>),
    Ed25519(Box<Ed25519KeyPair>),
}

// === impl MintAlgorithm ===

impl MintAlgorithm {
    /// Every algorithm, in order.
    pub const ALL: &'static [Self] = &[Self::HS256, Self::HS384, Self::HS512, Self::RS256, Self::ES256, Self::EdDSA];

    /// The name in a token's header and in the configuration.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::HS256 => "HS256",
            Self::HS384 => "HS384",
            Self::HS512 => "HS512",
            Self::RS256 => "RS256",
            Self::ES256 => "ES256",
            Self::EdDSA => "EdDSA",
        }
    }

    /// The algorithm of a name, if we can sign with it.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|algorithm| algorithm.as_str() == name)
    }
}

// === impl Signer ===

impl Signer {
    pub(super) fn new(algorithm: MintAlgorithm, secret: &Secret) -> Result<Self, BadKey> {
        let bytes = secret.expose();
        if bytes.is_empty() {
            return Err(BadKey::Empty);
        }
        let name = algorithm.as_str();
        let wrong = || BadKey::WrongKind(name);
        let pem = || PrivateKeyDer::from_pem_slice(bytes).map_err(|_| BadKey::NotPem(name));
        let key = match algorithm {
            MintAlgorithm::HS256 => Key::Hmac(Box::new(hmac::Key::new(hmac::HMAC_SHA256, bytes))),
            MintAlgorithm::HS384 => Key::Hmac(Box::new(hmac::Key::new(hmac::HMAC_SHA384, bytes))),
            MintAlgorithm::HS512 => Key::Hmac(Box::new(hmac::Key::new(hmac::HMAC_SHA512, bytes))),
            MintAlgorithm::RS256 => Key::Rsa(Box::new(rsa(&pem()?).ok_or_else(wrong)?)),
            MintAlgorithm::ES256 => Key::Ecdsa(Box::new(ecdsa(&pem()?).ok_or_else(wrong)?)),
            MintAlgorithm::EdDSA => Key::Ed25519(Box::new(ed25519(&pem()?).ok_or_else(wrong)?)),
        };
        let header = URL_SAFE_NO_PAD.encode(format!(r#"{{"alg":"{name}","typ":"JWT"}}"#)) + ".";
        let signer = Self { key, header };
        // A key that parses but cannot sign is found at load, not at the first call.
        signer.token(b"{}").map_err(|_| wrong())?;
        Ok(signer)
    }

    /// Returns the compact token over the claims.
    pub(super) fn token(&self, claims: &[u8]) -> Result<String, error::Unspecified> {
        let mut token = self.header.clone();
        URL_SAFE_NO_PAD.encode_string(claims, &mut token);
        let signature = self.key.sign(token.as_bytes())?;
        token.push('.');
        URL_SAFE_NO_PAD.encode_string(signature, &mut token);
        Ok(token)
    }
}

impl Key {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, error::Unspecified> {
        match self {
            Self::Hmac(key) => Ok(hmac::sign(key, message).as_ref().to_vec()),
            Self::Rsa(key) => {
                let mut signature = vec![0; key.public_modulus_len()];
                key.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), message, &mut signature)?;
                Ok(signature)
            }
            Self::Ecdsa(key) => Ok(key.sign(&SystemRandom::new(), message)?.as_ref().to_vec()),
            Self::Ed25519(key) => Ok(key.sign(message).as_ref().to_vec()),
        }
    }
}

fn rsa(pem: &PrivateKeyDer<'_>) -> Option<RsaKeyPair> {
    match pem {
        PrivateKeyDer::Pkcs8(der) => RsaKeyPair::from_pkcs8(der.secret_pkcs8_der()).ok(),
        PrivateKeyDer::Pkcs1(der) => RsaKeyPair::from_der(der.secret_pkcs1_der()).ok(),
        _ => None,
    }
}

fn ecdsa(pem: &PrivateKeyDer<'_>) -> Option<EcdsaKeyPair> {
    let algorithm = &ECDSA_P256_SHA256_FIXED_SIGNING;
    match pem {
        PrivateKeyDer::Pkcs8(der) => EcdsaKeyPair::from_pkcs8(algorithm, der.secret_pkcs8_der()).ok(),
        PrivateKeyDer::Sec1(der) => EcdsaKeyPair::from_private_key_der(algorithm, der.secret_sec1_der()).ok(),
        _ => None,
    }
}

fn ed25519(pem: &PrivateKeyDer<'_>) -> Option<Ed25519KeyPair> {
    match pem {
        PrivateKeyDer::Pkcs8(der) => Ed25519KeyPair::from_pkcs8_maybe_unchecked(der.secret_pkcs8_der()).ok(),
        _ => None,
    }
}
