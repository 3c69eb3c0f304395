//! Owns the proof that dangerous settings do not load.

use std::time::Duration;

use sha2::{Digest as _, Sha256};

use super::fixture::*;
use crate::identity::{Algorithm, ApiKey, Identity, Issuer, KeySource, Settings};
use crate::secret::Secret;

fn complaint(settings: Settings) -> String {
    Identity::new(settings, Script::of([])).err().map_or_else(String::new, |e| e.to_string())
}

#[test]
fn keys_must_fit_the_algorithms() {
    let table: [(&[Algorithm], Secret, &str); 9] = [
        (
            &[Algorithm::HS256],
            RSA.public.clone(),
            "`identity.issuers[0].key` is an RSA key, which does not fit algorithm `HS256`\n\
             help: a public key is known to everybody; never use it as a shared secret",
        ),
        (
            &[Algorithm::RS256, Algorithm::HS256],
            RSA.public.clone(),
            "`identity.issuers[0].key` is an RSA key, which does not fit algorithm `HS256`\n\
             help: a public key is known to everybody; never use it as a shared secret",
        ),
        (
            &[Algorithm::ES256],
            P384.public.clone(),
            "`identity.issuers[0].key` is a P-384 key, which does not fit algorithm `ES256`\n\
             help: name only algorithms of this key's type, and give public keys in PEM",
        ),
        (
            &[Algorithm::RS256],
            Secret::new(SECRET),
            "`identity.issuers[0].key` is a shared secret, which does not fit algorithm `RS256`\n\
             help: name only algorithms of this key's type, and give public keys in PEM",
        ),
        (
            &[Algorithm::RS256],
            RSA.private.clone(),
            "`identity.issuers[0].key` is not a public key in PEM\nhelp: openssl pkey -in key.pem -pubout",
        ),
        (
            &[Algorithm::HS256],
            Secret::new(RSA.jwk.to_string()),
            "`identity.issuers[0].key` is not a public key in PEM\nhelp: openssl pkey -in key.pem -pubout",
        ),
        (
            &[Algorithm::HS256],
            Secret::new("secret"),
            "`identity.issuers[0].key` is a shared secret of 6 bytes, at least 32 are needed\nhelp: openssl rand -hex 32",
        ),
        (&[Algorithm::RS256, Algorithm::PS512], RSA.public.clone(), ""),
        (&[Algorithm::EdDSA], ED25519.public.clone(), ""),
    ];
    for (algorithms, key, expected) in table {
        assert_eq!(complaint(settings(vec![issuer(algorithms, KeySource::Static(key))])), expected);
    }
    assert_eq!(
        complaint(settings(vec![published(&[Algorithm::RS256, Algorithm::HS512])])),
        "`identity.issuers[0].key` is published at a URL, where algorithm `HS512` has no secret\n\
         help: use RS, PS, ES or EdDSA"
    );
}

#[test]
fn two_issuers_cannot_name_the_same_user() {
    let named = |name: &str, tenants: &[&str], prefix: Option<&str>| Issuer {
        issuer: name.into(),
        tenants: Some(tenants.iter().map(|t| tenant(t)).collect()),
        subject_prefix: prefix.map(str::to_owned),
        ..secret_issuer()
    };
    let clash = "`identity.issuers[0].subject_prefix` `a` and `b` both speak for tenant `acme` and could name the same \
                 user\nhelp: give each a `subject_prefix`, neither the beginning of the other";
    let table = [
        (named("a", &["acme"], None), named("b", &["globex"], None), ""),
        (named("a", &["acme"], None), named("b", &["acme"], None), clash),
        (named("a", &["acme"], Some("a:")), named("b", &["acme"], None), clash),
        (named("a", &["acme"], Some("a:")), named("b", &["acme"], Some("a:b:")), clash),
        (named("a", &["acme"], Some("a:")), named("b", &["acme"], Some("b:")), ""),
    ];
    for (a, b, expected) in table {
        assert_eq!(complaint(settings(vec![a, b])), expected);
    }
    let unlimited = Issuer { tenants: None, ..named("a", &[], None) };
    assert!(complaint(settings(vec![unlimited, named("b", &["acme"], None)])).starts_with(
        "`identity.issuers[0].tenants` is required when there are several issuers\n\
         help: name the tenants that this issuer may assert\n"
    ));
}

#[test]
fn all_problems_are_told_at_once() {
    let bare = Issuer {
        issuer: String::new(),
        audiences: vec![],
        algorithms: vec![],
        tenants: Some(vec![tenant("acme")]),
        tenant: Some(tenant("globex")),
        subject_prefix: Some("key:".into()),
        ..secret_issuer()
    };
    let key = |id: &str| ApiKey {
        id: id.into(),
        sha256: Sha256::digest("x").into(),
        tenant: tenant("acme"),
        roles: vec![],
        scopes: vec![],
        plan: None,
        expires_at: None,
    };
    let all =
        Settings { leeway: Duration::from_secs(61), api_keys: vec![key("a b"), key("a b")], ..settings(vec![bare]) };
    let keys: Vec<String> =
        Identity::new(all, Script::of([])).err().unwrap().problems.into_iter().map(|p| p.key).collect();
    let expected = [
        "identity.leeway",
        "identity.issuers[0].issuer",
        "identity.issuers[0].audiences",
        "identity.issuers[0].algorithms",
        "identity.issuers[0].tenant",
        "identity.issuers[0].subject_prefix",
        "identity.api_keys[0].id",
        "identity.api_keys[1].id",
        "identity.api_keys[1].id",
        "identity.api_keys[1].sha256",
    ];
    assert_eq!(keys, expected);
}

#[test]
fn key_sets_come_from_the_web_only() {
    let complains = |url: &str| {
        let keys = KeySource::Jwks { url: url.into() };
        !complaint(settings(vec![issuer(&[Algorithm::RS256], keys)])).is_empty()
    };
    for good in ["https://id.example.com/jwks", "http://127.0.0.1:8081/jwks?x=1"] {
        assert!(!complains(good), "{good}");
    }
    for bad in ["", "id.example.com/jwks", "file:///etc/passwd", "ftp://a/b", "https://u:p@a/b", "https://a/b#c"] {
        assert!(complains(bad), "{bad}");
    }
}
