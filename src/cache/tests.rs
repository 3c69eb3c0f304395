//! Proves the cache as a whole: freshness, single flight, purges, partitions, bounds. Time is tokio's
//! and stands still.

use std::future::Future;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use proptest::prelude::*;

use crate::agentos::Method;

use super::*;

const TTL: Duration = Duration::from_secs(10);
const WAIT: Duration = Duration::from_secs(2);

fn cache() -> Arc<Cache> {
    Arc::new(Cache::new(&Settings { max_bytes: 1 << 20, rules: Vec::new() }))
}

fn tenant(name: &str) -> TenantId {
    TenantId::new(name).unwrap()
}

fn shared(target: &str) -> Key {
    let (target, body) = (target.to_owned(), Bytes::new());
    Key { cluster: "main".into(), operation: "get_agents", target, body, partition: Partition::Shared }
}

fn own(name: &str, subject: &str) -> Key {
    let partition = Partition::Principal { tenant: tenant(name), subject: subject.into() };
    Key { partition, ..shared("/agents") }
}

fn answer(text: &'static str) -> Stored {
    Stored::now(200, None, Bytes::from_static(text.as_bytes()), TTL)
}

/// Polls once: what waits stays pending.
fn poll<T>(future: Pin<&mut impl Future<Output = T>>) -> Poll<T> {
    future.poll(&mut Context::from_waker(Waker::noop()))
}

async fn guard(cache: &Arc<Cache>, key: &Key) -> FillGuard {
    match cache.lookup(key.clone(), WAIT).await {
        Lookup::Miss(guard) => guard,
        other => panic!("{other:?}"),
    }
}

/// What a lookup finds: a body, or "miss" or "bypass".
async fn found(cache: &Arc<Cache>, key: &Key) -> String {
    told(cache.lookup(key.clone(), WAIT).await)
}

fn told(lookup: Lookup) -> String {
    match lookup {
        Lookup::Fresh(stored, _) => String::from_utf8(stored.body.to_vec()).unwrap(),
        Lookup::Miss(_) => "miss".to_owned(),
        Lookup::Bypass => "bypass".to_owned(),
    }
}

fn ready<T>(poll: Poll<T>) -> T {
    match poll {
        Poll::Ready(value) => value,
        Poll::Pending => panic!("still waits"),
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_is_fresh_until_its_lifetime_ends() {
    let (cache, key) = (cache(), shared("/agents"));
    assert_eq!(guard(&cache, &key).await.fill(answer("a")), CacheStatus::Stored);
    tokio::time::advance(TTL - Duration::from_millis(1)).await;
    match cache.lookup(key.clone(), WAIT).await {
        Lookup::Fresh(stored, age) => {
            assert_eq!((&stored.body[..], age), (&b"a"[..], TTL - Duration::from_millis(1)));
        }
        other => panic!("{other:?}"),
    }
    tokio::time::advance(Duration::from_millis(1)).await;
    assert_eq!(found(&cache, &key).await, "miss");
}

#[tokio::test(start_paused = true)]
async fn requests_that_differ_in_anything_do_not_share() {
    let cache = cache();
    let key = own("acme", "alice");
    let _stored = guard(&cache, &key).await.fill(answer("alice's"));
    for other in [
        own("acme", "bob"),
        own("globex", "alice"),
        shared("/agents"),
        Key { cluster: "other".into(), ..key.clone() },
        Key { operation: "get_teams", ..key.clone() },
        Key { target: "/agents?page=2".into(), ..key.clone() },
        Key { body: Bytes::from_static(b"{}"), ..key.clone() },
    ] {
        assert_eq!(found(&cache, &other).await, "miss", "{other:?}");
    }
    assert_eq!(found(&cache, &key).await, "alice's");
}

#[tokio::test(start_paused = true)]
async fn one_caller_fetches_and_the_others_get_its_answer() {
    let (cache, key) = (cache(), shared("/agents"));
    let first = guard(&cache, &key).await;
    let mut waiters: Vec<_> = (0..50).map(|_| Box::pin(found(&cache, &key))).collect();
    assert!(waiters.iter_mut().all(|waiter| poll(waiter.as_mut()).is_pending()));
    let _stored = first.fill(answer("a"));
    assert!(waiters.iter_mut().all(|waiter| ready(poll(waiter.as_mut())) == "a"));
    drop(waiters);
    assert_eq!(cache.flights.len(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_fetch_that_fails_passes_to_the_longest_waiter() {
    let (cache, key) = (cache(), shared("/agents"));
    let first = guard(&cache, &key).await;
    let (mut second, mut third) = (pin!(cache.lookup(key.clone(), WAIT)), pin!(found(&cache, &key)));
    assert!(poll(second.as_mut()).is_pending() && poll(third.as_mut()).is_pending());
    drop(first);
    let Lookup::Miss(taken_over) = ready(poll(second.as_mut())) else { panic!("takes over") };
    assert!(poll(third.as_mut()).is_pending());
    let _stored = taken_over.fill(answer("b"));
    assert_eq!(ready(poll(third.as_mut())), "b");
}

#[tokio::test(start_paused = true)]
async fn a_waiter_that_leaves_as_its_turn_comes_passes_it_on() {
    let (cache, key) = (cache(), shared("/agents"));
    let first = guard(&cache, &key).await;
    let mut second = Box::pin(found(&cache, &key));
    let mut third = Box::pin(found(&cache, &key));
    assert!(poll(second.as_mut()).is_pending() && poll(third.as_mut()).is_pending());
    drop(first);
    drop(second);
    assert_eq!(ready(poll(third.as_mut())), "miss");
    drop(third);
    assert_eq!(cache.flights.len(), 0);
}

#[tokio::test(start_paused = true)]
async fn waiting_is_bounded() {
    let (cache, key) = (cache(), shared("/agents"));
    let first = guard(&cache, &key).await;
    let begun = tokio::time::Instant::now();
    assert_eq!(found(&cache, &key).await, "bypass");
    assert_eq!(begun.elapsed(), WAIT);
    let _stored = first.fill(answer("a"));
    assert_eq!(found(&cache, &key).await, "a");
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_may_not_be_shared_frees_all_waiters_at_once() {
    let (cache, key) = (cache(), shared("/agents"));
    let first = guard(&cache, &key).await;
    let mut waiters: Vec<_> = (0..3).map(|_| Box::pin(found(&cache, &key))).collect();
    assert!(waiters.iter_mut().all(|waiter| poll(waiter.as_mut()).is_pending()));
    assert_eq!(first.decline(), CacheStatus::Miss);
    assert!(waiters.iter_mut().all(|waiter| ready(poll(waiter.as_mut())) == "bypass"));
    assert_eq!(found(&cache, &key).await, "miss");
}

#[tokio::test(start_paused = true)]
async fn a_purge_reaches_what_is_kept() {
    let acme = tenant("acme");
    for (purge, left) in [
        ((None, "main", "get_agents"), ["miss", "miss", "miss"]),
        ((Some(&acme), "main", "get_agents"), ["miss", "miss", "globex"]),
        ((None, "main", "get_teams"), ["shared", "acme", "globex"]),
        ((None, "other", "get_agents"), ["shared", "acme", "globex"]),
    ] {
        let cache = cache();
        let keys = [shared("/agents"), own("acme", "alice"), own("globex", "alice")];
        for (key, text) in keys.iter().zip(["shared", "acme", "globex"]) {
            let _stored = guard(&cache, key).await.fill(answer(text));
        }
        let (of, cluster, operation) = purge;
        cache.purge(cluster, &["get_knowledge", operation], of);
        for (key, text) in keys.iter().zip(left) {
            assert_eq!(found(&cache, key).await, text, "{purge:?} {key:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_fetch_from_before_a_purge_is_not_kept() {
    let (cache, key) = (cache(), shared("/agents"));
    let before = guard(&cache, &key).await;
    cache.purge("main", &["get_agents"], None);
    let _status = before.fill(answer("old"));
    assert_eq!(found(&cache, &key).await, "miss");
}

#[tokio::test(start_paused = true)]
async fn callers_from_after_a_purge_do_not_wait_for_a_fetch_from_before_it() {
    let (cache, key) = (cache(), shared("/agents"));
    let before = guard(&cache, &key).await;
    let mut early = pin!(found(&cache, &key));
    assert!(poll(early.as_mut()).is_pending());
    cache.purge("main", &["get_agents"], None);
    let after = guard(&cache, &key).await;
    let mut late = pin!(found(&cache, &key));
    assert!(poll(late.as_mut()).is_pending());
    let _status = before.fill(answer("old"));
    assert_eq!(ready(poll(early.as_mut())), "old");
    assert!(poll(late.as_mut()).is_pending());
    let _status = after.fill(answer("new"));
    assert_eq!(ready(poll(late.as_mut())), "new");
    assert_eq!(found(&cache, &key).await, "new");
}

#[tokio::test(start_paused = true)]
async fn a_slow_fetch_from_before_a_purge_does_not_replace_a_newer_one() {
    let (cache, key) = (cache(), shared("/agents"));
    let before = guard(&cache, &key).await;
    cache.purge("main", &["get_agents"], None);
    let _status = guard(&cache, &key).await.fill(answer("new"));
    assert_eq!(before.fill(answer("old")), CacheStatus::Miss);
    assert_eq!(found(&cache, &key).await, "new");
}

#[tokio::test(start_paused = true)]
async fn a_waiter_that_takes_over_after_a_purge_fills_for_later_callers() {
    let (cache, key) = (cache(), shared("/agents"));
    let before = guard(&cache, &key).await;
    let mut waiter = pin!(cache.lookup(key.clone(), WAIT));
    assert!(poll(waiter.as_mut()).is_pending());
    cache.purge("main", &["get_agents"], None);
    drop(before);
    let Lookup::Miss(taken_over) = ready(poll(waiter.as_mut())) else { panic!("takes over") };
    let _status = taken_over.fill(answer("new"));
    assert_eq!(found(&cache, &key).await, "new");
}

#[tokio::test(start_paused = true)]
async fn large_answers_reach_the_waiters_and_are_not_kept() {
    let (cache, key) = (cache(), shared("/agents"));
    let first = guard(&cache, &key).await;
    let mut waiter = pin!(cache.lookup(key.clone(), WAIT));
    assert!(poll(waiter.as_mut()).is_pending());
    let large = Bytes::from(vec![b'x'; BODY_BYTES_MAX + 1]);
    assert_eq!(first.fill(Stored::now(200, None, large, TTL)), CacheStatus::Miss);
    assert!(matches!(ready(poll(waiter.as_mut())), Lookup::Fresh(stored, _) if stored.body.len() > BODY_BYTES_MAX));
    assert_eq!(found(&cache, &key).await, "miss");
}

#[tokio::test(start_paused = true)]
async fn large_requests_and_a_cache_of_no_bytes_are_bypassed() {
    let large = shared(&"x".repeat(KEY_BYTES_MAX + 1));
    assert_eq!(found(&cache(), &large).await, "bypass");
    let off = Arc::new(Cache::new(&Settings::default()));
    assert_eq!(found(&off, &shared("/agents")).await, "bypass");
}

#[tokio::test(start_paused = true)]
async fn memory_stays_within_its_bound() {
    let cache = cache();
    for n in 0..200 {
        let key = shared(&format!("/agents?page={n}"));
        let body = Bytes::from(vec![b'x'; 32 * 1024]);
        if let Lookup::Miss(guard) = cache.lookup(key, WAIT).await {
            let _status = guard.fill(Stored::now(200, None, body, TTL));
        }
    }
    cache.answers.run_pending_tasks();
    assert!(cache.answers.weighted_size() <= 1 << 20, "{}", cache.answers.weighted_size());
}

#[test]
fn rules_choose_how_long_answers_are_fresh() {
    let rule = |operation: &str, secs| {
        let (ttl, none) = (Duration::from_secs(secs), Duration::ZERO);
        Rule { operation: operation.to_owned(), ttl, stale_while_revalidate: none, stale_if_error: none }
    };
    let rules = vec![rule("ruled", 30), rule("off", 0)];
    let cache = Cache::new(&Settings { max_bytes: 1, rules });
    for (id, caching, secs) in [
        ("plain", Caching::Shared, Some(10)),
        ("ruled", Caching::Shared, Some(30)),
        ("off", Caching::Shared, None),
        ("plain", Caching::PerPrincipal, None),
        ("ruled", Caching::PerPrincipal, Some(30)),
        ("ruled", Caching::Never, None),
    ] {
        let ttl = cache.ttl(&operation(id, caching));
        assert_eq!(ttl, secs.map(Duration::from_secs), "{id} {caching:?}");
    }
    assert_eq!(Cache::new(&Settings::default()).ttl(&operation("plain", Caching::Shared)), None);
}

fn operation(id: &'static str, cache: Caching) -> Operation {
    Operation { cache, ..Operation::new(id, Method::Get, "/") }
}

proptest! {
    /// The world is a number that writes raise; every fetch reads it when it begins. Whatever the
    /// order, nobody who asks after a write and its purge is given an older number.
    #[test]
    fn nobody_is_given_an_answer_older_than_the_last_purge(steps in prop::collection::vec((0_u8..5, 0_usize..6), 1..120)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let (cache, key) = (cache(), shared("/agents"));
            let (mut world, mut fetches, mut waiters) = (0_u8, Vec::new(), Vec::new());
            for (step, at) in steps {
                match step {
                    0 => {
                        world += 1;
                        cache.purge("main", &["get_agents"], None);
                    }
                    1 | 2 => waiters.push((world, Box::pin(cache.lookup(key.clone(), WAIT)))),
                    3 if at < fetches.len() => {
                        let (read, guard): (u8, FillGuard) = fetches.swap_remove(at);
                        let _status = guard.fill(Stored::now(200, None, Bytes::copy_from_slice(&[read]), TTL));
                    }
                    4 if at < fetches.len() => drop(fetches.swap_remove(at)),
                    _ => {}
                }
                let mut waiting = Vec::new();
                for (asked, mut waiter) in waiters {
                    match poll(waiter.as_mut()) {
                        Poll::Pending => waiting.push((asked, waiter)),
                        Poll::Ready(Lookup::Miss(guard)) => fetches.push((world, guard)),
                        Poll::Ready(Lookup::Fresh(stored, _)) => assert!(stored.body[0] >= asked, "older than asked"),
                        Poll::Ready(Lookup::Bypass) => panic!("nobody declines and no time passes"),
                    }
                }
                waiters = waiting;
            }
            drop((fetches, waiters));
            assert_eq!(cache.flights.len(), 0);
        });
    }
}
