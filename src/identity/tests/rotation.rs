//! Owns the proof that published keys rotate, survive outages, and cannot be made a lever for load.

use futures_util::future::join_all;
use serde_json::{Value, json};

use super::fixture::*;
use crate::identity::{Algorithm, Credential, Identity, Issuer, KeyChange, KeySource, Refused};
use crate::secret::Secret;

fn with_kid(kid: &str, pair: &Pair) -> String {
    sign(&json!({"alg": "RS256", "kid": kid}), &good_claims(), Algorithm::RS256, &pair.private)
}

fn rs256(kid: &str) -> String {
    with_kid(kid, &RSA)
}

fn plain(kid: &str) -> Value {
    jwk(&RSA, kid, &json!({"alg": "RS256", "use": "sig"}))
}

fn with_script(script: &std::sync::Arc<Script>) -> Identity {
    Identity::new(settings(vec![published(&[Algorithm::RS256])]), std::sync::Arc::clone(script) as _).unwrap()
}

const UNKNOWN: Refused = Refused::Invalid("issuer has no key of this id and algorithm");

#[test]
fn keys_are_fetched_when_first_needed_and_then_kept() {
    let script = Script::of([key_set(&[plain("k1")])]);
    let identity = with_script(&script);
    assert_eq!(identity.issuers_without_keys(), [std::sync::Arc::<str>::from(ISSUER)]);
    for _ in 0..3 {
        assert!(verify(&identity, &rs256("k1")).is_ok());
    }
    assert_eq!((script.fetches(), identity.issuers_without_keys().len()), (1, 0));
}

#[test]
fn concurrent_callers_share_one_fetch() {
    let script = Script::of([key_set(&[plain("k1")])]);
    let identity = with_script(&script);
    let credential = Credential::bearer(&rs256("k1")).unwrap();
    let verdicts = block_on(join_all((0..50).map(|_| identity.verify(&credential, at(NOW)))));
    assert!(verdicts.iter().all(Result::is_ok));
    assert_eq!(script.fetches(), 1);
}

#[test]
fn a_flood_of_unknown_key_ids_causes_one_fetch() {
    let script = Script::of([key_set(&[plain("k1")])]);
    let identity = with_script(&script);
    for n in 0..200 {
        assert_eq!(verify(&identity, &rs256(&format!("made-up-{n}"))), Err(UNKNOWN));
    }
    assert_eq!(script.fetches(), 1);
}

#[test]
fn a_withdrawn_key_is_refused_after_the_refresh_also_for_remembered_tokens() {
    let script = Script::of([key_set(&[plain("k1")]), key_set(&[jwk(&RSA_OTHER, "k2", &json!({}))])]);
    let identity = with_script(&script);
    let old = rs256("k1");
    assert!(verify(&identity, &old).is_ok());
    let round = block_on(identity.refresh());
    assert_eq!(round.len(), 1);
    assert_eq!(round[0].outcome, Ok(KeyChange::Changed));
    assert!(verify(&identity, &with_kid("k2", &RSA_OTHER)).is_ok());
    assert_eq!(verify(&identity, &old), Err(UNKNOWN));
    // The new key id with the old key.
    assert_eq!(verify(&identity, &rs256("k2")), Err(Refused::Invalid("signature does not verify")));
}

#[test]
fn keys_in_use_survive_every_kind_of_bad_answer() {
    let too_many: Vec<Value> = (0..65).map(|n| plain(&n.to_string())).collect();
    let big = format!("{{\"keys\":[],\"x\":\"{}\"}}", "x".repeat(256 * 1024));
    let bad = [
        (Err("connection refused".to_owned()), "connection refused"),
        (Ok("<html>".into()), "key set is not strict JSON"),
        (Ok("{}".into()), "document has no list `keys`"),
        (Ok(r#"{"keys":{}}"#.into()), "document has no list `keys`"),
        (Ok(r#"{"keys":[],"keys":[]}"#.into()), "key set is not strict JSON"),
        (key_set(&[]), "key set has no usable signature key among 0"),
        (key_set(&too_many), "key set has 65 keys, at most 64 are read"),
        (Ok(big.into()), "key set has 262162 bytes, at most 262144 are read"),
    ];
    let script = Script::of([key_set(&[plain("k1")])]);
    let identity = with_script(&script);
    block_on(identity.refresh());
    for (answer, expected) in bad {
        script.then(answer);
        assert_eq!(block_on(identity.refresh())[0].outcome, Err(expected.to_owned()));
        identity.forget_verified();
        assert!(verify(&identity, &rs256("k1")).is_ok(), "{expected}");
    }
    script.then(key_set(&[plain("k1")]));
    assert_eq!(block_on(identity.refresh())[0].outcome, Ok(KeyChange::Same));
}

#[test]
fn without_any_keys_the_verdict_says_so() {
    assert_eq!(verify(&with_script(&Script::of([])), &rs256("k1")), Err(Refused::KeysUnavailable));
}

#[test]
fn keys_that_may_not_verify_are_not_used() {
    let mut short = plain("k1");
    short["n"] = json!("AQAB");
    let unusable = [
        jwk(&RSA, "k1", &json!({"use": "enc"})),
        jwk(&RSA, "k1", &json!({"use": 1})),
        jwk(&RSA, "k1", &json!({"key_ops": ["sign"]})),
        jwk(&RSA, "k1", &json!({"key_ops": "verify"})),
        jwk(&RSA, "k1", &json!({"alg": "RS512"})),
        jwk(&RSA, "k1", &json!({"alg": "ES256"})),
        jwk(&RSA, "k1", &json!({"alg": "RSA-OAEP"})),
        jwk(&RSA, "k1", &json!({"alg": null})),
        jwk(&RSA, "k1", &json!({"kty": "EC", "crv": "P-256"})),
        jwk(&RSA, "k1", &json!({"crv": "P-256"})),
        jwk(&RSA, "k1", &json!({"d": "AQAB"})),
        jwk(&RSA, "k1", &json!({"kid": 1})),
        json!({"kty": "oct", "kid": "k1", "k": b64(SECRET), "alg": "HS256"}),
        json!({"kid": "k1"}),
        json!("k1"),
    ];
    for key in unusable {
        // A good neighbour, so that the set itself is usable.
        let identity = with_script(&Script::of([key_set(&[key.clone(), jwk(&P256, "other", &json!({}))])]));
        assert_eq!(verify(&identity, &rs256("k1")), Err(UNKNOWN), "{key}");
    }
    let identity = with_script(&Script::of([key_set(&[short])]));
    assert_eq!(verify(&identity, &rs256("k1")), Err(Refused::Invalid("signature does not verify")));
}

#[test]
fn a_published_secret_never_verifies() {
    let secret = json!({"kty": "oct", "kid": "k1", "k": b64(SECRET)});
    let identity = with_script(&Script::of([key_set(&[secret, plain("k2")])]));
    let token = sign(&json!({"alg": "HS256", "kid": "k1"}), &good_claims(), Algorithm::HS256, &Secret::new(SECRET));
    assert_eq!(verify(&identity, &token), Err(Refused::Invalid("algorithm not allowed for this issuer")));
}

#[test]
fn every_published_key_type_verifies_its_algorithm() {
    let all = [Algorithm::PS256, Algorithm::ES256, Algorithm::ES384, Algorithm::EdDSA];
    let keys = [&RSA, &P256, &P384, &ED25519].map(|pair| jwk(pair, "same", &json!({"key_ops": ["verify"]})));
    let script = Script::of([key_set(&keys)]);
    let identity = Identity::new(settings(vec![published(&all)]), script).unwrap();
    for (algorithm, pair) in all.into_iter().zip([&RSA, &P256, &P384, &ED25519]) {
        let header = json!({"alg": algorithm.as_str(), "kid": "same"});
        assert!(verify(&identity, &sign(&header, &good_claims(), algorithm, &pair.private)).is_ok(), "{algorithm}");
    }
}

#[test]
fn a_token_without_key_id_needs_an_only_key() {
    let without = sign(&json!({"alg": "RS256"}), &good_claims(), Algorithm::RS256, &RSA.private);
    let one = with_script(&Script::of([key_set(&[plain("k1"), jwk(&P256, "k2", &json!({}))])]));
    assert!(verify(&one, &without).is_ok());
    let two = with_script(&Script::of([key_set(&[plain("k1"), jwk(&RSA_OTHER, "k2", &json!({}))])]));
    assert_eq!(verify(&two, &without), Err(Refused::Invalid("more than one key of the issuer fits the token")));
}

#[test]
fn a_key_of_one_issuer_does_not_speak_for_another() {
    let other = Issuer {
        issuer: "https://other.example".into(),
        tenants: Some(vec![tenant("globex")]),
        ..issuer(&[Algorithm::RS256], KeySource::Static(RSA_OTHER.public.clone()))
    };
    let first = Issuer { tenants: Some(vec![tenant("acme")]), ..published(&[Algorithm::RS256]) };
    let identity = Identity::new(settings(vec![first, other]), Script::of([key_set(&[plain("k1")])])).unwrap();
    assert!(verify(&identity, &rs256("k1")).is_ok());
    // The other issuer's key signs "I am the first issuer", with the first issuer's key id.
    assert_eq!(verify(&identity, &with_kid("k1", &RSA_OTHER)), Err(Refused::Invalid("signature does not verify")));
    let borrowed = claims_with(&json!({"iss": "https://other.example"}));
    let token = sign(&json!({"alg": "RS256"}), &borrowed, Algorithm::RS256, &RSA_OTHER.private);
    assert_eq!(verify(&identity, &token), Err(Refused::Invalid("issuer may not assert this tenant")));
}

#[test]
fn a_reload_during_an_outage_keeps_the_keys() {
    let before = with_script(&Script::of([key_set(&[plain("k1")])]));
    block_on(before.refresh());
    let after = with_script(&Script::of([]));
    after.adopt_keys(&before);
    assert!(verify(&after, &rs256("k1")).is_ok());
}
