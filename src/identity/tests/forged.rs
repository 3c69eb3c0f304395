//! Owns the table of forged and malformed tokens: each is refused, none panics, none reaches a key source.

use serde_json::{Value, json};

use super::fixture::*;
use crate::identity::{Algorithm, Credential, KeySource, Refused};
use crate::secret::Secret;

fn refused(token: &str) -> Refused {
    verify(&identity(vec![secret_issuer()]), token).expect_err(token)
}

#[test]
fn the_untouched_token_is_accepted() {
    assert_eq!(&*verify(&identity(vec![secret_issuer()]), &hs256(&good_claims())).unwrap().subject, "alice");
}

#[test]
fn tokens_without_a_signature_are_refused() {
    let payload = b64(good_claims().to_string());
    for alg in ["none", "None", "nOnE", "NONE", "", " none", "hs256", "HS256 ", "HS1", "null"] {
        let header = b64(json!({ "alg": alg }).to_string());
        for signature in ["", "AAAA"] {
            let verdict = refused(&format!("{header}.{payload}.{signature}"));
            assert!(matches!(verdict, Refused::Invalid(_)), "{alg:?} {signature:?}: {verdict:?}");
        }
    }
    for alg in [Value::Null, json!(["HS256"]), json!({"HS256": 1}), json!(256)] {
        let token = sign(&json!({ "alg": alg }), &good_claims(), Algorithm::HS256, &Secret::new(SECRET));
        assert_eq!(refused(&token), Refused::Invalid("token algorithm unknown"), "{alg}");
    }
    let header = b64(r#"{"alg":"HS256"}"#);
    for token in [format!("{header}.{payload}"), format!("{header}.{payload}."), format!("{header}..AAAA")] {
        assert_eq!(refused(&token), Refused::Invalid("token is not in JWS compact form"), "{token}");
    }
}

#[test]
fn a_public_key_never_serves_as_a_shared_secret() {
    let identity = identity(vec![issuer(&[Algorithm::RS256], KeySource::Static(RSA.public.clone()))]);
    let pem = RSA.public.expose_str().unwrap();
    let n = RSA.jwk["n"].as_str().unwrap();
    for guess in [pem.to_owned(), pem.trim().to_owned(), pem.replace('\n', ""), RSA.jwk.to_string(), n.to_owned()] {
        for algorithm in [Algorithm::HS256, Algorithm::HS384, Algorithm::HS512] {
            let token =
                sign(&json!({"alg": algorithm.as_str()}), &good_claims(), algorithm, &Secret::new(guess.as_str()));
            let expected = Refused::Invalid("algorithm not allowed for this issuer");
            assert_eq!(verify(&identity, &token).expect_err(&guess), expected, "{algorithm}");
        }
    }
}

#[test]
fn the_algorithm_must_be_the_one_that_the_issuer_allows() {
    let rs256_only = identity(vec![issuer(&[Algorithm::RS256], KeySource::Static(RSA.public.clone()))]);
    for algorithm in [Algorithm::RS384, Algorithm::RS512, Algorithm::PS256] {
        let token = sign(&json!({"alg": algorithm.as_str()}), &good_claims(), algorithm, &RSA.private);
        assert_eq!(verify(&rs256_only, &token), Err(Refused::Invalid("algorithm not allowed for this issuer")));
    }
    // Signed as PS256, labelled RS256.
    let mislabelled = sign(&json!({"alg": "RS256"}), &good_claims(), Algorithm::PS256, &RSA.private);
    assert_eq!(verify(&rs256_only, &mislabelled), Err(Refused::Invalid("signature does not verify")));
}

#[test]
fn signatures_of_other_keys_and_changed_texts_are_refused() {
    let by_other = sign(&json!({"alg": "HS256"}), &good_claims(), Algorithm::HS256, &Secret::new("x".repeat(32)));
    assert_eq!(refused(&by_other), Refused::Invalid("signature does not verify"));
    let good = hs256(&good_claims());
    let (message, signature) = good.rsplit_once('.').unwrap();
    let (header, _) = message.split_once('.').unwrap();
    let changed = format!("{header}.{}.{signature}", b64(claims_with(&json!({"tenant": "globex"})).to_string()));
    assert_eq!(refused(&changed), Refused::Invalid("signature does not verify"));
    for cut in [&good[..good.len() - 1], &good[..good.len() - 4], &format!("{good}A"), &format!("{good}=")] {
        assert!(matches!(refused(cut), Refused::Invalid(_)), "{cut}");
    }
}

#[test]
fn psychic_signatures_are_refused() {
    let identity = identity(vec![issuer(&[Algorithm::ES256], KeySource::Static(P256.public.clone()))]);
    let message = format!("{}.{}", b64(r#"{"alg":"ES256"}"#), b64(good_claims().to_string()));
    let der_zero: &[u8] = &[0x30, 0x06, 0x02, 0x01, 0x00, 0x02, 0x01, 0x00];
    for signature in [&[0_u8; 64][..], &[0; 63], &[0; 65], &[0xff; 64], &[], der_zero] {
        assert!(verify(&identity, &format!("{message}.{}", b64(signature))).is_err());
    }
}

#[test]
fn headers_that_ask_for_special_treatment_are_refused() {
    let table = [
        json!({"crit": ["exp"]}),
        json!({"crit": []}),
        json!({"crit": ["b64"], "b64": false}),
        json!({"b64": true}),
        json!({"jku": "https://evil.test/jwks"}),
        json!({"jwk": {"kty": "oct", "k": b64(SECRET)}}),
        json!({"x5u": "https://evil.test/cert"}),
        json!({"x5c": ["MIIB"]}),
        json!({"zip": "DEF"}),
        json!({"enc": "A128GCM"}),
        json!({"cty": "JWT"}),
        json!({"jku": null}),
    ];
    for more in table {
        let mut header = more.clone();
        header["alg"] = json!("HS256");
        let token = sign(&header, &good_claims(), Algorithm::HS256, &Secret::new(SECRET));
        assert_eq!(refused(&token), Refused::Invalid("token header asks for special treatment"), "{more}");
    }
}

#[test]
fn types_made_for_other_purposes_are_refused() {
    let identity = identity(vec![secret_issuer()]);
    let typed = |typ: &Value| {
        let header = json!({"alg": "HS256", "typ": typ});
        verify(&identity, &sign(&header, &good_claims(), Algorithm::HS256, &Secret::new(SECRET)))
    };
    for good in ["JWT", "jwt", "at+jwt", "application/at+jwt", "AT+JWT"] {
        assert!(typed(&json!(good)).is_ok(), "{good}");
    }
    for bad in [json!("dpop+jwt"), json!("logout+jwt"), json!("secevent+jwt"), json!(""), json!(1), Value::Null] {
        assert_eq!(typed(&bad), Err(Refused::Invalid("token type is not JWT")), "{bad}");
    }
}

#[test]
fn key_ids_are_short_strings() {
    let identity = identity(vec![secret_issuer()]);
    let with_kid = |kid: &Value| {
        let header = json!({"alg": "HS256", "kid": kid});
        verify(&identity, &sign(&header, &good_claims(), Algorithm::HS256, &Secret::new(SECRET)))
    };
    for harmless in ["a", "../../dev/null", "' or 1=1 --", "|/bin/true", "\u{0}", &"k".repeat(256)] {
        assert!(with_kid(&json!(harmless)).is_ok(), "{harmless:?}");
    }
    for bad in [json!("k".repeat(257)), json!(1), json!(["a"]), json!({}), Value::Null] {
        assert!(matches!(with_kid(&bad), Err(Refused::Invalid("token key id has a bad form"))), "{bad}");
    }
}

#[test]
fn repeated_names_are_refused_in_header_and_claims() {
    let claims = good_claims().to_string();
    let key = Secret::new(SECRET);
    for header in [
        r#"{"alg":"HS256","alg":"HS256"}"#,
        r#"{"alg":"none","alg":"HS256"}"#,
        r#"{"alg":"HS256","kid":"a","kid":"b"}"#,
    ] {
        let token = sign_raw(header, &claims, Algorithm::HS256, &key);
        assert_eq!(refused(&token), Refused::Invalid("token header is not strict JSON"), "{header}");
    }
    let more = [
        r#""sub":"root""#,
        r#""iss":"x""#,
        r#""aud":"tollbridge""#,
        r#""exp":1"#,
        r#""s\u0075b":"root""#,
        r#""tenant":"globex""#,
    ];
    for member in more {
        let doubled = format!("{},{member}}}", claims.strip_suffix('}').unwrap());
        let token = sign_raw(r#"{"alg":"HS256"}"#, &doubled, Algorithm::HS256, &key);
        assert_eq!(refused(&token), Refused::Invalid("claims are not strict JSON"), "{member}");
    }
}

#[test]
fn other_serializations_are_refused() {
    let good = hs256(&good_claims());
    let parts: Vec<&str> = good.split('.').collect();
    let header = parts[0];
    // Padding and the other alphabet would give one token several texts.
    for token in [
        format!("{good}.{}", parts[2]),
        format!("{header}.a.b.c.d"),
        format!("{header}=.{}.{}", parts[1], parts[2]),
        format!(".{}.{}", parts[1], parts[2]),
        "...".to_owned(),
        "a.b.c".to_owned(),
    ] {
        assert!(matches!(refused(&token), Refused::Invalid(_)), "{token}");
    }
    let flattened = json!({"protected": header, "payload": parts[1], "signature": parts[2]}).to_string();
    assert_eq!(Credential::bearer(&flattened), None);
}

#[test]
fn hostile_sizes_are_refused_before_any_work() {
    assert_eq!(Credential::bearer(&"a".repeat(8 * 1024 + 1)), None);
    let key = Secret::new(SECRET);
    let deep = format!("{{\"sub\":{}1{}}}", "[".repeat(2000), "]".repeat(2000));
    let token = sign_raw(r#"{"alg":"HS256"}"#, &deep, Algorithm::HS256, &key);
    assert_eq!(refused(&token), Refused::Invalid("claims are not strict JSON"));
    let deep_header = format!("{{\"alg\":\"HS256\",\"a\":{}1{}}}", "[".repeat(2000), "]".repeat(2000));
    let token = sign_raw(&deep_header, "{}", Algorithm::HS256, &key);
    assert_eq!(refused(&token), Refused::Invalid("token header is not strict JSON"));
}

#[test]
fn a_token_changed_at_any_place_is_refused() {
    let identity = identity(vec![secret_issuer()]);
    let good = hs256(&good_claims());
    for place in 0..good.len() {
        for other in ["A", "Q", "_", ".", ""] {
            let changed = format!("{}{other}{}", &good[..place], &good[place + 1..]);
            if changed != good {
                assert!(verify(&identity, &changed).is_err(), "{place} {other:?}: {changed}");
            }
        }
    }
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(64))]

    #[test]
    fn no_text_becomes_a_caller(header in "\\PC{0,60}", payload in "\\PC{0,60}", signature in "[A-Za-z0-9_-]{0,60}") {
        let token = format!("{}.{}.{signature}", b64(&header), b64(&payload));
        proptest::prop_assert!(verify(&identity(vec![secret_issuer()]), &token).is_err());
        proptest::prop_assert!(verify(&identity(vec![secret_issuer()]), &header).is_err());
    }
}
