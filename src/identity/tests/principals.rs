//! Owns the proof that a good credential becomes exactly the caller that it names.

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::fixture::*;
use crate::identity::{Algorithm, ApiKey, Identity, KeySource, Mint, Refused, UnknownTenant, mint};
use crate::principal::{CredentialId, Principal, PrincipalKind};
use crate::secret::Secret;

const INVALID_TIME: Refused = Refused::Invalid("a time claim is not a whole number of seconds");

fn judged(changes: &Value) -> Result<std::sync::Arc<Principal>, Refused> {
    verify(&identity(vec![secret_issuer()]), &hs256(&claims_with(changes)))
}

/// A bounded issuer speaks for its tenants, not for what they share with others.
#[test]
fn only_issuers_with_the_right_to_it_assert_platform_admin() {
    let claims = claims_with(&json!({ "roles": ["platform_admin", "admin"] }));
    let roles = |platform_admin| {
        let caller =
            verify(&identity(vec![crate::identity::Issuer { platform_admin, ..secret_issuer() }]), &hs256(&claims));
        caller.unwrap().roles.iter().map(|role| role.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(roles(true), ["admin", "platform_admin"]);
    assert_eq!(roles(false), ["admin"]);
}

#[test]
fn every_algorithm_family_makes_a_round_trip() {
    let secret = Secret::new("s".repeat(64));
    for algorithm in Algorithm::ALL {
        let (private, public) = match algorithm {
            Algorithm::HS256 | Algorithm::HS384 | Algorithm::HS512 => (&secret, &secret),
            Algorithm::ES256 => (&P256.private, &P256.public),
            Algorithm::ES384 => (&P384.private, &P384.public),
            Algorithm::EdDSA => (&ED25519.private, &ED25519.public),
            _ => (&RSA.private, &RSA.public),
        };
        let identity = identity(vec![issuer(&[algorithm], KeySource::Static(public.clone()))]);
        let token = mint(
            &Mint {
                issuer: ISSUER,
                audience: AUDIENCE,
                subject: "alice",
                tenant: Some(&tenant("acme")),
                roles: &["operator".into(), "viewer".into()],
                scopes: &["agents:run".into()],
                plan: Some("pro"),
                ttl: std::time::Duration::from_secs(600),
                algorithm,
                key: private,
                claims: &Default::default(),
            },
            at(NOW),
        )
        .unwrap();
        let mut expected = Principal::new(
            PrincipalKind::User,
            "alice",
            tenant("acme"),
            vec!["operator".into(), "viewer".into()],
            vec!["agents:run".into()],
            Some("pro".into()),
            Some(NOW + 600),
        );
        expected.credential = Some(CredentialId {
            id: None,
            sha256: Sha256::digest(token.as_bytes()).into(),
            audiences: vec!["tollbridge".into()],
        });
        assert_eq!(verify(&identity, &token).as_deref(), Ok(&expected), "{algorithm}");
    }
}

#[test]
fn required_claims_have_one_exact_shape() {
    let audience = Refused::Invalid("token is not for this audience");
    let issuer_shape = Refused::Invalid("claim `iss` missing or not a string");
    let subject_shape = Refused::Invalid("claim `sub` missing or not a string");
    let table = [
        (json!({"iss": null}), issuer_shape.clone()),
        (json!({"iss": [ISSUER]}), issuer_shape),
        (json!({"iss": format!("{ISSUER}/")}), Refused::Invalid("issuer not configured")),
        (json!({"iss": "HTTPS://id.example.com"}), Refused::Invalid("issuer not configured")),
        (json!({"aud": null}), audience.clone()),
        (json!({"aud": "Tollbridge"}), audience.clone()),
        (json!({"aud": "tollbridge2"}), audience.clone()),
        (json!({"aud": "toll"}), audience.clone()),
        (json!({"aud": []}), audience.clone()),
        (json!({"aud": ["other"]}), audience.clone()),
        (json!({"aud": ["tollbridge", 1]}), audience.clone()),
        (json!({"aud": {"tollbridge": true}}), audience),
        (json!({"sub": null}), subject_shape.clone()),
        (json!({"sub": 1}), subject_shape.clone()),
        (json!({"sub": ["alice"]}), subject_shape),
        (json!({"exp": null}), Refused::Invalid("claim `exp` missing")),
        (json!({"exp": (NOW + 600).to_string()}), INVALID_TIME),
        (json!({"exp": 1_800_000_600.5}), INVALID_TIME),
        (json!({"exp": 1e308}), INVALID_TIME),
        (json!({"exp": -1}), INVALID_TIME),
        (json!({"exp": [NOW + 600]}), INVALID_TIME),
        (json!({"nbf": "now"}), INVALID_TIME),
        (json!({"iat": 1.5}), INVALID_TIME),
    ];
    for (changes, expected) in table {
        assert_eq!(judged(&changes), Err(expected), "{changes}");
    }
    assert!(judged(&json!({"aud": ["other", AUDIENCE]})).is_ok());
}

#[test]
fn times_hold_to_the_second_with_the_leeway() {
    assert!(judged(&json!({"exp": NOW - 29})).is_ok());
    assert_eq!(judged(&json!({"exp": NOW - 30})), Err(Refused::Expired));
    assert_eq!(judged(&json!({"exp": 0})), Err(Refused::Expired));
    assert!(judged(&json!({"exp": u64::MAX})).is_ok());
    assert!(judged(&json!({"nbf": NOW + 30})).is_ok());
    assert_eq!(judged(&json!({"nbf": NOW + 31})), Err(Refused::Invalid("token is not valid yet")));
    assert!(judged(&json!({"iat": NOW + 30})).is_ok());
    assert_eq!(judged(&json!({"iat": NOW + 31})), Err(Refused::Invalid("token was issued in the future")));
}

#[test]
fn a_remembered_token_expires_to_the_second() {
    let identity = identity(vec![secret_issuer()]);
    let token = hs256(&claims_with(&json!({"exp": NOW + 60})));
    let first = verify(&identity, &token).unwrap();
    let again = verify_at(&identity, &token, NOW + 89).unwrap();
    assert!(std::sync::Arc::ptr_eq(&first, &again), "the second look must not verify again");
    assert_eq!(verify_at(&identity, &token, NOW + 90), Err(Refused::Expired));
}

#[test]
fn subjects_are_short_plain_and_not_reserved() {
    for good in ["a", "alice@example.com", "auth0|123", "Zoë", "a~b", "sally:x", "_x", &"s".repeat(256)] {
        assert_eq!(&*judged(&json!({"sub": good})).unwrap().subject, good);
    }
    let bad = ["", "a\nb", "a\u{0}b", "a\u{7f}", "a\u{85}b"];
    for sub in bad {
        let expected = Refused::Invalid("subject is empty or has control characters");
        assert_eq!(judged(&json!({"sub": sub})), Err(expected), "{sub:?}");
    }
    for sub in ["key:ci", "cert:ci", "sa:robot", "__scheduler__", "__"] {
        assert_eq!(judged(&json!({"sub": sub})), Err(Refused::Invalid("subject is reserved")), "{sub}");
    }
    assert_eq!(judged(&json!({"sub": "s".repeat(257)})), Err(Refused::Invalid("subject too long")));
}

#[test]
fn a_subject_prefix_is_part_of_the_subject() {
    let prefixed = |prefix: &str| {
        identity(vec![crate::identity::Issuer { subject_prefix: Some(prefix.into()), ..secret_issuer() }])
    };
    let token = |sub: &str| hs256(&claims_with(&json!({ "sub": sub })));
    assert_eq!(&*verify(&prefixed("corp:"), &token("alice")).unwrap().subject, "corp:alice");
    assert_eq!(verify(&prefixed("corp:"), &token("key:1")), Err(Refused::Invalid("subject is reserved")));
    // Neither half is reserved, the whole is.
    assert_eq!(verify(&prefixed("s"), &token("a:robot")), Err(Refused::Invalid("subject is reserved")));
    assert_eq!(verify(&prefixed("_"), &token("_scheduler__")), Err(Refused::Invalid("subject is reserved")));
    assert_eq!(verify(&prefixed("corp:"), &token(&"s".repeat(252))), Err(Refused::Invalid("subject too long")));
}

#[test]
fn the_tenant_is_one_that_the_issuer_may_assert() {
    let bad_name = Refused::Invalid("tenant claim is not a tenant name");
    let bad_type = Refused::Invalid("tenant claim is not a string");
    let table = [
        (json!({"tenant": null}), Refused::Invalid("tenant claim missing")),
        (json!({"tenant": ""}), bad_name.clone()),
        (json!({"tenant": "a~b"}), bad_name),
        (json!({"tenant": ["acme"]}), bad_type.clone()),
        (json!({"tenant": 1}), bad_type),
        (json!({"tenant": "initech"}), Refused::UnknownTenant),
    ];
    for (changes, expected) in table {
        assert_eq!(judged(&changes), Err(expected), "{changes}");
    }
    let limited = identity(vec![crate::identity::Issuer {
        tenants: Some(vec![tenant("acme")]),
        tenant: Some(tenant("acme")),
        ..secret_issuer()
    }]);
    assert_eq!(verify(&limited, &hs256(&claims_with(&json!({"tenant": null})))).unwrap().tenant, tenant("acme"));
    let other = hs256(&claims_with(&json!({"tenant": "globex"})));
    assert_eq!(verify(&limited, &other), Err(Refused::Invalid("issuer may not assert this tenant")));
    // An explicit `null` is a tenant claim of a wrong type, not an absent one.
    let null = good_claims().to_string().replace("\"acme\"", "null");
    let token = sign_raw(r#"{"alg":"HS256"}"#, &null, Algorithm::HS256, &Secret::new(SECRET));
    assert_eq!(verify(&limited, &token), Err(Refused::Invalid("tenant claim is not a string")));
}

#[test]
fn an_unknown_tenant_is_served_where_the_operator_says_so() {
    let open =
        crate::identity::Settings { unknown_tenant: UnknownTenant::DefaultPlan, ..settings(vec![secret_issuer()]) };
    let open = Identity::new(open, Script::of([])).unwrap();
    let token = hs256(&claims_with(&json!({"tenant": "initech"})));
    assert_eq!(verify(&open, &token).unwrap().tenant, tenant("initech"));
}

#[test]
fn scopes_come_as_lists_or_words_and_nothing_else() {
    let scopes = |changes: &Value| {
        let principal = judged(changes).unwrap();
        principal.scopes.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
    };
    let table = [
        (json!({"scopes": ["agents:run", "a:b"]}), "a:b,agents:run"),
        (json!({"scope": "agents:run a:b "}), "a:b,agents:run"),
        (json!({"scp": "x", "scope": "y", "scopes": ["z"]}), "x,y,z"),
        (json!({"scp": ["x", "x"]}), "x"),
        (json!({"scopes": ["a", 1]}), ""),
        (json!({"scopes": [["a"]]}), ""),
        (json!({"scopes": {"a": true}}), ""),
        (json!({"scopes": 1}), ""),
        (json!({"scopes": true}), ""),
        (json!({"scopes": "a\tb"}), ""),
        (json!({"scopes": ["", "a\u{0}"]}), ""),
        (json!({"scopes": "agents:*"}), "agents:*"),
        (json!({"Scopes": "a"}), ""),
    ];
    for (changes, expected) in table {
        assert_eq!(scopes(&changes), expected, "{changes}");
    }
    assert_eq!(
        judged(&json!({"roles": "operator viewer"})).unwrap().roles,
        ["operator", "viewer"].map(std::sync::Arc::<str>::from)
    );
    assert_eq!(judged(&json!({"plan": ["pro"]})).unwrap().plan, None);
}

#[test]
fn api_keys_are_services() {
    let key = |id: &str, text: &str, expires_at| ApiKey {
        id: id.into(),
        sha256: Sha256::digest(text).into(),
        tenant: tenant("acme"),
        roles: vec!["operator".into()],
        scopes: vec![],
        plan: None,
        expires_at,
    };
    let api_keys =
        vec![key("ci", "tb_one", None), key("old", "tb_two", Some(NOW)), key("new", "tb_three", Some(NOW + 1))];
    let stranger = ApiKey { tenant: tenant("initech"), ..key("stranger", "tb_four", None) };
    let api_keys = api_keys.into_iter().chain([stranger]).collect();
    let identity = Identity::new(crate::identity::Settings { api_keys, ..settings(vec![]) }, Script::of([])).unwrap();
    let ci = verify(&identity, "tb_one").unwrap();
    let mut expected =
        Principal::new(PrincipalKind::Service, "key:ci", tenant("acme"), vec!["operator".into()], vec![], None, None);
    expected.credential = Some(CredentialId { id: None, sha256: Sha256::digest(b"tb_one").into(), audiences: vec![] });
    assert_eq!(*ci, expected);
    assert_eq!(verify(&identity, "tb_two"), Err(Refused::Expired));
    assert_eq!(verify(&identity, "tb_three").unwrap().expires_at, Some(NOW + 1));
    assert_eq!(verify(&identity, "tb_four"), Err(Refused::UnknownTenant));
    for wrong in ["tb_", "tb_on", "tb_onee", "tb_ONE"] {
        assert_eq!(verify(&identity, wrong), Err(Refused::Invalid("API key unknown")), "{wrong}");
    }
    // The prefix decides: without it the same text is a token, and a bad one.
    assert_eq!(verify(&identity, "one"), Err(Refused::Invalid("token is not in JWS compact form")));
}
