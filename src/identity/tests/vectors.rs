//! Owns published vectors: Wycheproof's signatures and MACs, and the examples of RFC 7515, 7516, 7519, 7520, 7797 and
//! 8037, played against the verifier. What is invalid is refused; what is valid is accepted unless our profile is
//! narrower, and then the table says why.

use serde_json::Value;
use wycheproof::{ecdsa, eddsa, mac, rsa_pkcs1_verify as pkcs1, rsa_pss_verify as pss};

use super::fixture::{b64, identity, secret_issuer, verify};
use crate::identity::jwks::read_key;
use crate::identity::jws::Jws;
use crate::identity::key::{VerifyingKey, from_secret};
use crate::identity::{Algorithm, Refused};
use crate::secret::Secret;

/// What our profile says to vectors that their authors call valid.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Profile {
    /// Accepted.
    Ours,
    /// Refused, for this reason.
    Narrower(&'static str),
}

use Profile::{Narrower, Ours};

/// How many vectors of each verdict were played.
#[derive(Debug, Default, PartialEq, Eq)]
struct Played {
    accepted: usize,
    refused: usize,
}

/// The keys of a group, as an operator and as an issuer would publish them.
fn keys(group: &Value, algorithm: Algorithm) -> Vec<VerifyingKey> {
    let pem = group["publicKeyPem"].as_str().unwrap();
    let configured = VerifyingKey::from_settings(&Secret::new(pem), &[algorithm]).unwrap();
    let published = group["publicKeyJwk"].as_object().map(|jwk| {
        // Wycheproof pads coordinates with a zero byte, which RFC 7518 §6.2.1.2 does not allow.
        read_key(jwk).or_else(|| read_key(&unpadded(jwk)))
    });
    std::iter::once(configured).chain(published.flatten()).collect()
}

fn unpadded(jwk: &serde_json::Map<String, Value>) -> serde_json::Map<String, Value> {
    use base64::Engine as _;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;
    let width = if jwk["crv"] == "P-384" { 48 } else { 32 };
    let mut jwk = jwk.clone();
    for name in ["x", "y"] {
        if let Some(bytes) = jwk.get(name).and_then(|v| URL_SAFE_NO_PAD.decode(v.as_str()?).ok()) {
            let cut = bytes.len().saturating_sub(width);
            let mut fixed = vec![0; width.saturating_sub(bytes.len())];
            fixed.extend_from_slice(&bytes[cut..]);
            jwk.insert(name.to_owned(), b64(fixed).into());
        }
    }
    jwk
}

/// Plays a set of signatures; every mismatch is listed.
fn play(json: &str, algorithm: Algorithm, profile: Profile) -> Played {
    let set: Value = serde_json::from_str(json).unwrap();
    let (mut played, mut wrong) = (Played::default(), Vec::new());
    for group in set["testGroups"].as_array().unwrap() {
        for key in keys(group, algorithm) {
            for test in group["tests"].as_array().unwrap() {
                check(test, &key, algorithm, profile, &mut played, &mut wrong);
            }
        }
    }
    assert_eq!(wrong, Vec::<String>::new(), "{algorithm}");
    played
}

fn check(
    test: &Value,
    key: &VerifyingKey,
    algorithm: Algorithm,
    profile: Profile,
    played: &mut Played,
    wrong: &mut Vec<String>,
) {
    let given = test.get("sig").or_else(|| test.get("tag")).unwrap();
    let accepted = key.verify(algorithm, &hex(&test["msg"]), &b64(hex(given))).is_ok();
    // Invalid by the parameters of its set, and by that exactly what we ask for.
    let ours = algorithm_salt(algorithm).is_some_and(|salt| test["comment"] == format!("s_len changed to {salt}"));
    let fits = match (test["result"].as_str().unwrap(), profile) {
        ("invalid", Narrower(_)) if ours => true,
        ("valid", Ours) => accepted,
        ("acceptable", Ours) => true,
        (_, Ours | Narrower(_)) => !accepted,
    };
    if !fits {
        wrong.push(format!("#{} {} ({}): accepted {accepted}", test["tcId"], test["comment"], test["result"]));
    }
    if accepted {
        played.accepted += 1;
    } else {
        played.refused += 1;
    }
}

/// The length of the salt that goes with an algorithm.
fn algorithm_salt(algorithm: Algorithm) -> Option<usize> {
    match algorithm {
        Algorithm::PS256 => Some(32),
        Algorithm::PS384 => Some(48),
        Algorithm::PS512 => Some(64),
        Algorithm::HS256 | Algorithm::HS384 | Algorithm::HS512 | Algorithm::RS256 | Algorithm::RS384 => None,
        Algorithm::RS512 | Algorithm::ES256 | Algorithm::ES384 | Algorithm::EdDSA => None,
    }
}

fn hex(text: &Value) -> Vec<u8> {
    let digits = text.as_str().unwrap();
    (0..digits.len()).step_by(2).map(|at| u8::from_str_radix(&digits[at..at + 2], 16).unwrap()).collect()
}

#[test]
fn wycheproof_ecdsa_signatures_are_judged_as_published() {
    const DER: Profile = Narrower("RFC 7518 §3.4: R and S have a fixed size, never DER");
    use ecdsa::TestName as N;
    let sets = [
        (N::EcdsaSecp256r1Sha256P1363, Algorithm::ES256, Ours),
        (N::EcdsaSecp384r1Sha384P1363, Algorithm::ES384, Ours),
        (N::EcdsaSecp256r1Sha256, Algorithm::ES256, DER),
        (N::EcdsaSecp384r1Sha384, Algorithm::ES384, DER),
        (N::EcdsaSecp256r1Sha512P1363, Algorithm::ES256, Narrower("RFC 7518 §3.4: P-256 goes with SHA-256")),
        (N::EcdsaSecp384r1Sha512P1363, Algorithm::ES384, Narrower("RFC 7518 §3.4: P-384 goes with SHA-384")),
    ];
    for (name, algorithm, profile) in sets {
        let played = play(name.json_data(), algorithm, profile);
        assert_eq!(played.accepted > 0, profile == Ours, "{name:?}: {played:?}");
        assert!(played.refused > 50, "{name:?}: {played:?}");
    }
}

#[test]
fn wycheproof_ed25519_signatures_are_judged_as_published() {
    let played = play(eddsa::TestName::Ed25519.json_data(), Algorithm::EdDSA, Ours);
    assert!(played.accepted > 100 && played.refused > 50, "{played:?}");
}

#[test]
fn wycheproof_rsa_pkcs1_signatures_are_judged_as_published() {
    use Algorithm::{RS256, RS384, RS512};
    use pkcs1::TestName as N;
    let sets = [
        (N::Rsa2048Sha256, RS256),
        (N::Rsa2048Sha384, RS384),
        (N::Rsa2048Sha512, RS512),
        (N::Rsa3072Sha256, RS256),
        (N::Rsa3072Sha384, RS384),
        (N::Rsa3072Sha512, RS512),
        (N::Rsa4096Sha256, RS256),
        (N::Rsa4096Sha384, RS384),
        (N::Rsa4096Sha512, RS512),
    ];
    for (name, algorithm) in sets {
        let played = play(name.json_data(), algorithm, Ours);
        assert!(played.accepted > 0 && played.refused > 100, "{name:?}: {played:?}");
    }
}

#[test]
fn wycheproof_rsa_pss_signatures_are_judged_as_published() {
    const SALT: Profile = Narrower("RFC 7518 §3.5: the salt is as long as the hash");
    use Algorithm::{PS256, PS384, PS512};
    use pss::TestName as N;
    let sets = [
        (N::RsaPss2048Sha256Mgf1SaltLen32, PS256, Ours),
        (N::RsaPss3072Sha256Mgf1SaltLen32, PS256, Ours),
        (N::RsaPss4096Sha256Mgf1SaltLen32, PS256, Ours),
        (N::RsaPss2048Sha384Mgf1SaltLen48, PS384, Ours),
        (N::RsaPss4096Sha384Mgf1SaltLen48, PS384, Ours),
        (N::RsaPss4096Sha512Mgf1SaltLen64, PS512, Ours),
        (N::RsaPss2048Sha256Mgf1SaltLen0, PS256, SALT),
        (N::RsaPss4096Sha512Mgf1SaltLen32, PS512, SALT),
        (N::RsaPss2048Sha256Mgf1Sha1_20, PS256, Narrower("RFC 7518 §3.5: MGF1 uses the same hash")),
    ];
    for (name, algorithm, profile) in sets {
        let played = play(name.json_data(), algorithm, profile);
        assert_eq!(played.accepted > 1, profile == Ours, "{name:?}: {played:?}");
        assert!(played.refused > 0, "{name:?}: {played:?}");
    }
}

#[test]
fn wycheproof_hmac_tags_are_judged_as_published() {
    use mac::TestName as N;
    let sets = [
        (N::HmacSha256, Algorithm::HS256, 256),
        (N::HmacSha384, Algorithm::HS384, 384),
        (N::HmacSha512, Algorithm::HS512, 512),
    ];
    for (name, algorithm, bits) in sets {
        let set: Value = serde_json::from_str(name.json_data()).unwrap();
        let (mut played, mut wrong) = (Played::default(), Vec::new());
        for group in set["testGroups"].as_array().unwrap() {
            let whole = group["tagSize"] == bits;
            let profile = if whole { Ours } else { Narrower("RFC 7518 §3.2: a tag is as long as the hash") };
            for test in group["tests"].as_array().unwrap() {
                let key = from_secret(&hex(&test["key"]));
                check(test, &key, algorithm, profile, &mut played, &mut wrong);
            }
        }
        assert_eq!(wrong, Vec::<String>::new(), "{algorithm}");
        assert!(played.accepted > 20 && played.refused > 100, "{name:?}: {played:?}");
    }
}

/// What the verifier makes of a token and a JWK, claims aside.
fn judge(key: &Value, token: &str) -> Result<(), Refused> {
    let jws = Jws::parse(token)?;
    let key = match key["k"].as_str() {
        // A published set never holds secrets; an operator configures them.
        Some(k) => {
            use base64::Engine as _;
            from_secret(&base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(k).unwrap())
        }
        None => read_key(key.as_object().unwrap()).ok_or(Refused::Invalid("key type not supported"))?,
    };
    if !key.fits(jws.algorithm) {
        return Err(Refused::Invalid("algorithm does not fit the key"));
    }
    key.verify(jws.algorithm, jws.message.as_bytes(), jws.signature)
}

#[test]
fn the_examples_of_the_standards_are_judged_as_the_table_says() {
    let table = include_str!("../../../tests/fixtures/jose/rfc.json");
    let table: Vec<Value> = serde_json::from_str(table).unwrap();
    for row in &table {
        let (name, token) = (row["name"].as_str().unwrap(), row["token"].as_str().unwrap());
        let verdict = match judge(&row["key"], token) {
            Ok(()) => "accepted",
            Err(Refused::Invalid(why)) => why,
            Err(other) => panic!("{name}: {other}"),
        };
        assert_eq!(verdict, row["verdict"].as_str().unwrap(), "{name}");
        // None of them was made for us: as a credential each is refused.
        assert!(verify(&identity(vec![secret_issuer()]), token).is_err(), "{name}");
        if verdict == "accepted" {
            let (message, signature) = token.rsplit_once('.').unwrap();
            let flipped = if signature.starts_with('A') { 'B' } else { 'A' };
            let changed = format!("{message}.{flipped}{}", &signature[1..]);
            assert_eq!(judge(&row["key"], &changed), Err(Refused::Invalid("signature does not verify")), "{name}");
        }
    }
    assert_eq!(table.iter().filter(|row| row["verdict"] == "accepted").count(), 7);
}
