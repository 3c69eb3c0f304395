//! Owns the tests of the cache: partitions, single flight, purges, sizes.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, header};

use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn cache() -> Arc<Cache> {
    Cache::new(&Settings { max_bytes: 1 << 20, rules: Vec::new() })
}

fn key(request: &str, subject: Option<&str>) -> Key {
    let partition = match subject {
        None => Partition::Shared,
        Some(subject) => Partition::Principal { tenant: TenantId::new("acme").unwrap(), subject: subject.into() },
    };
    Key { cluster: "main".into(), operation: "get_agents", request: request.into(), partition }
}

fn reply(body: &'static str) -> Stored {
    Stored::new(200, None, Bytes::from_static(body.as_bytes()), 60 * SECOND)
}

async fn miss(cache: &Arc<Cache>, key: Key) -> FillGuard {
    match cache.lookup(key, SECOND).await {
        Lookup::Miss(fill) => fill,
        other => panic!("expected a miss, got {other:?}"),
    }
}

async fn fresh(cache: &Arc<Cache>, key: Key) -> Bytes {
    match cache.lookup(key, SECOND).await {
        Lookup::Fresh(stored, _) => stored.body.clone(),
        other => panic!("expected a hit, got {other:?}"),
    }
}

#[tokio::test]
async fn a_reply_is_found_by_its_whole_key_only() {
    let cache = cache();
    miss(&cache, key("/a", Some("alice"))).await.fill(reply("alice's"));
    assert_eq!(fresh(&cache, key("/a", Some("alice"))).await, "alice's");
    drop(miss(&cache, key("/a", Some("bob"))).await);
    drop(miss(&cache, key("/a", None)).await);
    drop(miss(&cache, key("/a?x", Some("alice"))).await);
}

#[tokio::test(start_paused = true)]
async fn one_caller_fetches_and_the_others_wait() {
    let cache = cache();
    let fill = miss(&cache, key("/a", None)).await;
    let waiters = futures_util::future::join_all((0..10).map(|_| fresh(&cache, key("/a", None))));
    let filler = async { fill.fill(reply("x")) };
    let (bodies, ()) = tokio::join!(waiters, filler);
    assert_eq!(bodies, vec![Bytes::from_static(b"x"); 10]);
}

#[tokio::test(start_paused = true)]
async fn a_waiter_takes_over_when_the_filler_gives_up() {
    let cache = cache();
    let fill = miss(&cache, key("/a", None)).await;
    let (second, ()) = tokio::join!(miss(&cache, key("/a", None)), async { drop(fill) });
    second.fill(reply("second"));
    assert_eq!(fresh(&cache, key("/a", None)).await, "second");
}

#[tokio::test(start_paused = true)]
async fn a_waiter_does_not_wait_for_ever() {
    let cache = cache();
    let _fill = miss(&cache, key("/a", None)).await;
    assert!(matches!(cache.lookup(key("/a", None), SECOND).await, Lookup::Bypass));
}

#[tokio::test]
async fn a_fetch_that_began_before_a_purge_is_not_kept() {
    let cache = cache();
    miss(&cache, key("/a", None)).await.fill(reply("old"));
    let racing = miss(&cache, key("/b", None)).await;
    cache.purge(&"main".into(), &["get_agents"]);
    racing.fill(reply("old too"));
    drop(miss(&cache, key("/a", None)).await);
    drop(miss(&cache, key("/b", None)).await);
}

#[tokio::test]
async fn a_purge_spares_other_clusters_and_operations() {
    let cache = cache();
    miss(&cache, key("/a", None)).await.fill(reply("x"));
    cache.purge(&"other".into(), &["get_agents"]);
    cache.purge(&"main".into(), &["get_teams"]);
    assert_eq!(fresh(&cache, key("/a", None)).await, "x");
}

#[test]
fn upstream_has_the_last_word_on_keeping() {
    let kept = |name: header::HeaderName, value: &'static str| {
        storable(200, &HeaderMap::from_iter([(name, HeaderValue::from_static(value))]), 10, 60 * SECOND)
    };
    let cases = [
        (header::CACHE_CONTROL, "no-store", None),
        (header::CACHE_CONTROL, "private, max-age=5", None),
        (header::CACHE_CONTROL, "max-age=5", Some(5 * SECOND)),
        (header::CACHE_CONTROL, "max-age=0", None),
        (header::CACHE_CONTROL, "max-age=600", Some(60 * SECOND)),
        (header::CACHE_CONTROL, "max-age=odd", None),
        (header::VARY, "*", None),
        (header::VARY, "origin", Some(60 * SECOND)),
        (header::SET_COOKIE, "a=b", None),
    ];
    for (name, value, want) in cases {
        assert_eq!(kept(name.clone(), value), want, "{name}: {value}");
    }
    assert_eq!(storable(404, &HeaderMap::new(), 10, SECOND), None);
    assert_eq!(storable(200, &HeaderMap::new(), REPLY_BYTES_MAX + 1, SECOND), None);
}

#[test]
fn shared_rows_are_kept_a_while_and_others_by_rule_only() {
    let rule = |operation: &str, ttl| Rule {
        operation: operation.into(),
        ttl,
        stale_while_revalidate: Duration::ZERO,
        stale_if_error: Duration::ZERO,
    };
    let catalog = crate::agentos::Catalog::shipped();
    let ttl = |rules, id| Cache::new(&Settings { max_bytes: 1, rules }).ttl(catalog.get(id).unwrap());
    assert_eq!(ttl(vec![], "get_agents"), Some(SHARED_TTL));
    assert_eq!(ttl(vec![rule("get_agents", Duration::ZERO)], "get_agents"), None);
    assert_eq!(ttl(vec![], "search_knowledge"), None);
    assert_eq!(ttl(vec![rule("search_knowledge", SECOND)], "search_knowledge"), Some(SECOND));
    assert_eq!(ttl(vec![rule("get_sessions", SECOND)], "get_sessions"), None);
}
