//! Owns signing with the server's secret: sealed values that leave us and come back unchanged.
//! Does not encrypt: whoever holds a sealed value can read it.
//! Invariant: a value sealed for one purpose opens for no other; the first secret signs, all verify.

use std::sync::Arc;

use aws_lc_rs::hmac;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use subtle::ConstantTimeEq as _;

use crate::secret::Secret;

/// Bytes of the MAC behind a payload.
const MAC_BYTES: usize = 16;
/// Longest text that is looked at.
const SEALED_BYTES_MAX: usize = 16 * 1024;

/// Keys derived from the server's secrets for one use, newest first.
#[derive(Clone)]
pub(super) struct Keys(Arc<[hmac::Key]>);

/// Seals and opens values. Clones share the keys.
#[derive(Clone)]
pub struct Seal(Keys);

// === impl Keys ===

impl Keys {
    /// Derives a key per secret: what is signed for one use says nothing about another.
    pub(super) fn derive(secrets: &[Secret], purpose: &str) -> Self {
        let derive = |secret: &Secret| {
            let root = hmac::Key::new(hmac::HMAC_SHA256, secret.expose());
            let key = hmac::sign(&root, format!("tollbridge/{purpose}/v1").as_bytes());
            hmac::Key::new(hmac::HMAC_SHA256, key.as_ref())
        };
        Self(secrets.iter().map(derive).collect())
    }

    /// The MAC over all parts, by the newest key. Each part is preceded by its length: none can lean into the next.
    pub(super) fn sign(&self, parts: &[&[u8]]) -> Option<[u8; MAC_BYTES]> {
        self.0.first().map(|key| mac(key, parts))
    }

    /// Says whether the first bytes of any key's MAC are these, in constant time.
    pub(super) fn verify(&self, parts: &[&[u8]], given: &[u8]) -> bool {
        let matches = |key| mac(key, parts).get(..given.len()).is_some_and(|own| own.ct_eq(given).into());
        !given.is_empty() && self.0.iter().any(matches)
    }
}

fn mac(key: &hmac::Key, parts: &[&[u8]]) -> [u8; MAC_BYTES] {
    let mut context = hmac::Context::with_key(key);
    for part in parts {
        context.update(&(part.len() as u64).to_be_bytes());
        context.update(part);
    }
    let mut short = [0; MAC_BYTES];
    short.iter_mut().zip(context.sign().as_ref()).for_each(|(to, from)| *to = *from);
    short
}

// === impl Seal ===

impl Seal {
    /// Takes the server's secrets, newest first. Without a secret nothing opens.
    pub fn new(secrets: &[Secret]) -> Self {
        Self(Keys::derive(secrets, "seal"))
    }

    /// Returns the bytes and a 128-bit MAC over purpose and bytes, as URL-safe text.
    pub fn seal(&self, purpose: &str, bytes: &[u8]) -> String {
        let mac = self.0.sign(&[purpose.as_bytes(), bytes]).unwrap_or_default();
        URL_SAFE_NO_PAD.encode([bytes, &mac].concat())
    }

    /// Returns the bytes of a value that was sealed for the purpose, by any of the secrets.
    pub fn open(&self, purpose: &str, text: &str) -> Option<Vec<u8>> {
        if text.len() > SEALED_BYTES_MAX {
            return None;
        }
        let mut bytes = URL_SAFE_NO_PAD.decode(text).ok()?;
        let mac = bytes.split_off(bytes.len().checked_sub(MAC_BYTES)?);
        self.0.verify(&[purpose.as_bytes(), &bytes], &mac).then_some(bytes)
    }
}

impl std::fmt::Debug for Seal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Seal([redacted])")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn seal(secrets: &[&str]) -> Seal {
        Seal::new(&secrets.iter().map(|s| Secret::new(*s)).collect::<Vec<_>>())
    }

    #[test]
    fn sealed_values_open_for_their_purpose_only() {
        let seal = seal(&["one"]);
        let sealed = seal.seal("run", b"payload");
        assert_eq!(seal.open("run", &sealed), Some(b"payload".to_vec()));
        assert_eq!(seal.open("runs", &sealed), None);
        assert_eq!(seal.open("run", &format!("{sealed}A")), None);
        assert_eq!(seal.open("run", ""), None);
        assert_eq!(seal.open("run", &"A".repeat(SEALED_BYTES_MAX + 1)), None);
    }

    #[test]
    fn secrets_rotate() {
        let old = seal(&["one"]).seal("run", b"x");
        assert_eq!(seal(&["two", "one"]).open("run", &old), Some(b"x".to_vec()));
        assert_eq!(seal(&["two"]).open("run", &old), None);
        let new = seal(&["two", "one"]).seal("run", b"x");
        assert_eq!(seal(&["two"]).open("run", &new), Some(b"x".to_vec()));
    }

    #[test]
    fn nothing_opens_without_a_secret() {
        let none = seal(&[]);
        assert_eq!(none.open("run", &none.seal("run", b"x")), None);
    }

    proptest! {
        #[test]
        fn any_change_breaks_the_seal(
            bytes in prop::collection::vec(any::<u8>(), 0..40),
            at in any::<prop::sample::Index>(),
            bit in 0u8..8,
        ) {
            let seal = seal(&["one"]);
            let sealed = seal.seal("run", &bytes);
            prop_assert_eq!(seal.open("run", &sealed), Some(bytes));
            let mut raw = URL_SAFE_NO_PAD.decode(&sealed).unwrap();
            let at = at.index(raw.len());
            raw[at] ^= 1 << bit;
            prop_assert_eq!(seal.open("run", &URL_SAFE_NO_PAD.encode(raw)), None);
        }
    }
}
