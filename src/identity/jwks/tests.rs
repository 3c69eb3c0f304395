//! Owns the proof of the fetch intervals, with a clock that the test moves.

use std::sync::atomic::{AtomicUsize, Ordering};

use base64::Engine as _;
use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;

use super::*;

/// Answers always the same, or never.
struct Source {
    answer: Option<Result<Bytes, String>>,
    fetches: AtomicUsize,
}

impl Source {
    fn new(answer: Option<Result<Bytes, String>>) -> Self {
        Self { answer, fetches: AtomicUsize::new(0) }
    }

    fn ed25519() -> Self {
        let x = URL_SAFE_NO_PAD.encode([7; 32]);
        Self::new(Some(Ok(format!(r#"{{"keys":[{{"kty":"OKP","crv":"Ed25519","kid":"k","x":"{x}"}}]}}"#).into())))
    }

    fn fetches(&self) -> usize {
        self.fetches.load(Ordering::SeqCst)
    }
}

impl KeyFetch for Source {
    fn fetch(&self, _url: &str) -> BoxFuture<'_, Result<Bytes, String>> {
        self.fetches.fetch_add(1, Ordering::SeqCst);
        match self.answer.clone() {
            Some(answer) => std::future::ready(answer).boxed(),
            None => std::future::pending().boxed(),
        }
    }
}

fn token(kid: &str) -> Jws<'static> {
    Jws {
        algorithm: Algorithm::EdDSA,
        kid: Some(kid.to_owned()),
        payload: Vec::new(),
        message: "a.b",
        signature: "AAAA",
    }
}

fn now_or_never(jwks: &Jwks, source: &Source, now: Instant) -> Option<Result<(), Refused>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let _inside = runtime.enter();
    jwks.verify(&token("unknown"), source, now).now_or_never()
}

const UNKNOWN: Refused = Refused::Invalid("issuer has no key of this id and algorithm");

#[test]
fn unknown_key_ids_fetch_once_per_interval() {
    let (jwks, source, start) = (Jwks::new("url".into()), Source::ed25519(), Instant::now());
    for (after, fetches) in [(0, 1), (1, 1), (9, 1), (10, 2), (19, 2), (20, 3)] {
        let now = start + Duration::from_secs(after);
        assert_eq!(now_or_never(&jwks, &source, now), Some(Err(UNKNOWN)), "{after}");
        assert_eq!(source.fetches(), fetches, "after {after}s");
    }
}

#[test]
fn an_abandoned_fetch_is_tried_again_soon_and_not_at_once() {
    let (jwks, never, start) = (Jwks::new("url".into()), Source::new(None), Instant::now());
    assert_eq!(now_or_never(&jwks, &never, start), None);
    assert_eq!(now_or_never(&jwks, &never, start), Some(Err(Refused::KeysUnavailable)));
    assert_eq!(never.fetches(), 1);
    assert_eq!(now_or_never(&jwks, &never, start + Duration::from_secs(1)), None);
    assert_eq!(never.fetches(), 2);
}

#[test]
fn keys_that_nobody_confirms_for_a_day_are_not_used() {
    let (jwks, start) = (Jwks::new("url".into()), Instant::now());
    assert_eq!(now_or_never(&jwks, &Source::ed25519(), start), Some(Err(UNKNOWN)));
    let down = Source::new(Some(Err("connection refused".to_owned())));
    let day = Duration::from_secs(24 * 60 * 60);
    assert_eq!(now_or_never(&jwks, &down, start + day - Duration::from_secs(1)), Some(Err(UNKNOWN)));
    assert_eq!(now_or_never(&jwks, &down, start + day), Some(Err(Refused::KeysUnavailable)));
}
