//! Proves what `Quota` promises as a whole: exact admission, leases that always come back, plan
//! choice, reloads. The arithmetic of each part is proven beside it.

mod shared;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::FutureExt as _;
use proptest::prelude::*;

use crate::principal::PrincipalKind;

use super::clock::ManualClock;
use super::*;

const NOON: u64 = 1_735_646_400; // 2024-12-31T12:00:00Z
const MINUTE: Duration = Duration::from_secs(60);

fn principal(tenant: &str, plan: Option<&str>) -> Principal {
    let tenant = TenantId::new(tenant).unwrap();
    Principal::new(PrincipalKind::User, "alice", tenant, vec![], vec![], plan.map(Arc::from), None)
}

fn rate(limit: u64, window: Duration, burst: u64) -> Rate {
    Rate { limit, window, burst }
}

fn plan(limits: Limits) -> Plan {
    Plan { limits, ..Plan::default() }
}

fn requests(requests: Vec<Rate>) -> Plan {
    plan(Limits { requests, ..Limits::default() })
}

fn tokens_per(period: Period, limit: u64) -> Budget {
    Budget { unit: Unit::Tokens, period, limit }
}

/// What is counted in this process is decided at once.
fn now<T>(decision: impl Future<Output = T>) -> T {
    decision.now_or_never().expect("nobody is asked")
}

fn spend(quota: &Quota, who: &Principal) -> Result<Pass, Refused> {
    now(quota.spend(who, &Work::default()))
}

fn lease(quota: &Quota, who: &Principal, agent: &str) -> Result<Lease, Refused> {
    now(quota.lease(who, &Work { cluster: "main", component: Some(("agents", agent)), tool: None }))
}

fn spent(tokens: u64) -> impl Iterator<Item = ModelSpent<'static>> {
    [ModelSpent { model: "m", input: tokens, output: 0 }].into_iter()
}

fn grow(lease: &mut Lease, tokens: u64) {
    assert_eq!(lease.grow(spent(tokens)), Growth::GoOn);
}

fn commit(lease: &mut Lease, tokens: u64) {
    lease.commit(spent(tokens), 0);
}

/// `acme` is on `pro`, everybody else on `free`.
fn settings() -> Settings {
    let free = plan(Limits {
        requests: vec![rate(60, MINUTE, 20)],
        concurrent_runs: Some(2),
        budgets: vec![tokens_per(Period::Day, 2_000), tokens_per(Period::Month, 10_000)],
    });
    let pro = requests(vec![rate(50, Duration::from_secs(1), 100)]);
    Settings {
        plans: [("free".to_owned(), free), ("pro".to_owned(), pro)].into(),
        tenants: [(TenantId::new("acme").unwrap(), TenantQuota { plan: "pro".into(), ..TenantQuota::default() })]
            .into(),
        default_plan: Some("free".into()),
        flood: Some(rate(2, Duration::from_secs(1), 2)),
        ..Settings::default()
    }
}

fn quota() -> (Quota, Arc<ManualClock>) {
    let clock = ManualClock::at(NOON);
    (Quota::with_clock(settings(), clock.clone()).unwrap(), clock)
}

fn one_plan(plan: Plan) -> (Quota, Arc<ManualClock>) {
    let clock = ManualClock::at(NOON);
    let settings =
        Settings { plans: [("p".to_owned(), plan)].into(), default_plan: Some("p".into()), ..Settings::default() };
    (Quota::with_clock(settings, clock.clone()).unwrap(), clock)
}

fn exceeded<T: std::fmt::Debug>(refused: Result<T, Refused>) -> Exceeded {
    match refused.unwrap_err() {
        Refused::Exceeded(exceeded) => exceeded,
        Refused::NoPlan(no_plan) => panic!("{no_plan}"),
    }
}

fn remaining(quota: &Quota, who: &Principal) -> Vec<(&'static str, u64)> {
    now(quota.usage(who, &Work::default())).unwrap().iter().map(|limit| (limit.name, limit.remaining)).collect()
}

#[test]
fn two_hundred_parallel_requests_at_limit_ten_admit_exactly_ten() {
    let (quota, _) = one_plan(requests(vec![rate(10, MINUTE, 10)]));
    let (who, admitted) = (principal("globex", None), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for _ in 0..20 {
            scope.spawn(|| {
                for _ in 0..10 {
                    admitted.fetch_add(usize::from(spend(&quota, &who).is_ok()), Ordering::SeqCst);
                }
            });
        }
    });
    assert_eq!(admitted.into_inner(), 10);
}

#[test]
fn two_hundred_parallel_runs_at_limit_ten_lease_exactly_ten() {
    let (quota, _) = one_plan(plan(Limits { concurrent_runs: Some(10), ..Limits::default() }));
    let who = principal("globex", None);
    let leases: Vec<Lease> = std::thread::scope(|scope| {
        let start = || (0..10).filter_map(|_| lease(&quota, &who, "web-agent").ok()).collect::<Vec<_>>();
        let threads: Vec<_> = (0..20).map(|_| scope.spawn(start)).collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(leases.len(), 10);
    assert_eq!(quota.runs_in_flight(&who), Ok(10));
    drop(leases);
    assert_eq!(quota.runs_in_flight(&who), Ok(0));
}

#[test]
fn a_pass_and_a_refusal_tell_the_state_of_the_rate() {
    let (quota, clock) = quota();
    let who = principal("globex", None);
    let pass = spend(&quota, &who).unwrap();
    assert_eq!(pass.policy_header().unwrap(), r#""requests";q=60;w=60"#);
    assert_eq!(pass.state_header().unwrap(), r#""requests";r=19;t=1"#);
    for _ in 0..19 {
        let _pass = spend(&quota, &who).unwrap();
    }
    clock.advance(Duration::from_millis(1));
    let refused = exceeded(spend(&quota, &who));
    assert_eq!((refused.kind, refused.retry_after_secs(), &*refused.plan), (ExceededKind::Rate, 1, "free"));
    assert_eq!(refused.limit.state_header(), r#""requests";r=0;t=20"#);
    clock.advance(Duration::from_millis(999));
    assert!(spend(&quota, &who).is_ok());
}

#[test]
fn a_request_that_one_rate_refuses_spends_no_other() {
    let (quota, _) = one_plan(requests(vec![rate(100, Duration::from_secs(1), 100), rate(2, MINUTE, 2)]));
    let who = principal("globex", None);
    for _ in 0..2 {
        let _pass = spend(&quota, &who).unwrap();
    }
    let refused = exceeded(spend(&quota, &who));
    assert_eq!((refused.limit.name, refused.retry_after_secs()), ("requests_per_minute", 30));
    assert_eq!(remaining(&quota, &who), [("requests_per_second", 98), ("requests_per_minute", 0)]);
}

#[test]
fn the_tenant_table_wins_over_the_credential_and_the_default_comes_last() {
    let (quota, _) = quota();
    for (tenant, claimed, plan) in [
        ("acme", None, "pro"),
        ("acme", Some("free"), "pro"),
        ("acme", Some("nonsense"), "pro"),
        ("globex", Some("pro"), "pro"),
        ("globex", None, "free"),
    ] {
        assert_eq!(quota.plan_of(&principal(tenant, claimed)), Ok(plan), "{tenant} {claimed:?}");
    }
}

#[test]
fn a_caller_without_a_plan_is_refused() {
    let quota = Quota::with_clock(Settings { default_plan: None, ..settings() }, ManualClock::at(NOON)).unwrap();
    let nobody = principal("globex", None);
    let liar = principal("globex", Some("gold"));
    assert_eq!(
        spend(&quota, &nobody).unwrap_err().to_string(),
        "no plan applies to tenant `globex`: it has none and there is no default plan"
    );
    assert_eq!(
        lease(&quota, &liar, "a").unwrap_err().to_string(),
        "no plan applies to tenant `globex`: its credential names `gold`, which does not exist"
    );
}

#[test]
fn tenants_do_not_share_and_neither_do_plans_that_credentials_choose() {
    let (quota, _) = quota();
    let globex = principal("globex", None);
    for _ in 0..20 {
        let _pass = spend(&quota, &globex).unwrap();
    }
    assert!(spend(&quota, &globex).is_err());
    for other in [principal("acme", None), principal("initech", None), principal("globex", Some("free"))] {
        assert!(spend(&quota, &other).is_ok(), "{other:?}");
    }
}

#[test]
fn a_third_run_waits_for_a_slot() {
    let (quota, _) = quota();
    let who = principal("globex", None);
    let (first, _second) = (lease(&quota, &who, "a").unwrap(), lease(&quota, &who, "a").unwrap());
    let refused = exceeded(lease(&quota, &who, "a"));
    assert_eq!((refused.kind, refused.limit.limit, refused.retry_after_secs()), (ExceededKind::Runs, 2, 1));
    drop(first);
    assert!(lease(&quota, &who, "a").is_ok());
}

#[test]
fn what_a_lease_pays() {
    type End = fn(Lease);
    let table: [(&str, u64, End); 8] = [
        ("committed", 12, |mut lease| commit(&mut lease, 12)),
        ("committed twice: the first counts", 12, |mut lease| (commit(&mut lease, 12), commit(&mut lease, 900)).0),
        ("committed below what was seen", 40, |mut lease| (grow(&mut lease, 40), commit(&mut lease, 12)).1),
        ("committed above the reservation", 700, |mut lease| commit(&mut lease, 700)),
        ("aborted before anything was seen", 500, drop),
        ("aborted below the reservation", 500, |mut lease| grow(&mut lease, 40)),
        ("aborted beyond the reservation", 900, |mut lease| (grow(&mut lease, 900), grow(&mut lease, 800)).0),
        ("waived", 0, |mut lease| lease.waive()),
    ];
    for (name, paid, end) in table {
        let (quota, _) = quota();
        let who = principal("globex", None);
        let lease = lease(&quota, &who, "a").unwrap();
        assert_eq!(remaining(&quota, &who)[2], ("tokens_per_day", 1_500), "{name}");
        end(lease);
        assert_eq!(
            remaining(&quota, &who)[1..],
            [("concurrent_runs", 2), ("tokens_per_day", 2_000 - paid), ("tokens_per_month", 10_000 - paid)],
            "{name}"
        );
    }
}

#[test]
fn a_growing_run_takes_budget_from_runs_that_start_later() {
    let (quota, _) = quota();
    let who = principal("globex", None);
    let mut first = lease(&quota, &who, "a").unwrap();
    grow(&mut first, 1_900);
    let tail = lease(&quota, &who, "a").unwrap();
    assert_eq!(tail.reserved(), 100);
    drop(tail);
    let refused = exceeded(lease(&quota, &who, "a"));
    assert_eq!(
        (refused.kind, refused.limit.name, refused.retry_after_secs()),
        (ExceededKind::Budget, "tokens_per_day", 5)
    );
}

#[test]
fn a_spent_day_comes_back_at_midnight() {
    let (quota, clock) = quota();
    let who = principal("globex", None);
    commit(&mut lease(&quota, &who, "a").unwrap(), 2_000);
    let refused = exceeded(lease(&quota, &who, "a"));
    assert_eq!((refused.kind, refused.retry_after_secs()), (ExceededKind::Budget, 43_200));
    assert_eq!(refused.to_string(), "limit `tokens_per_day` of 2000 is used up, next in 43200s");
    clock.advance(refused.retry_after);
    assert!(lease(&quota, &who, "a").is_ok());
}

#[test]
fn a_run_reserves_what_runs_of_its_agent_used() {
    let (quota, _) = quota();
    let who = principal("globex", None);
    commit(&mut lease(&quota, &who, "big").unwrap(), 900);
    assert_eq!(lease(&quota, &who, "big").unwrap().reserved(), 900);
}

#[test]
fn a_reload_keeps_every_counter() {
    let (quota, _) = quota();
    let who = principal("globex", None);
    let mut held = lease(&quota, &who, "a").unwrap();
    for _ in 0..20 {
        let _pass = spend(&quota, &who).unwrap();
    }
    let mut changed = settings();
    changed.tenants.insert(who.tenant.clone(), TenantQuota { plan: "free".into(), ..TenantQuota::default() });
    changed.plans.get_mut("free").unwrap().limits.requests[0].burst = 10;
    let reloaded = quota.reloaded(changed).unwrap();
    assert_eq!(exceeded(spend(&reloaded, &who)).kind, ExceededKind::Rate);
    assert_eq!(
        remaining(&reloaded, &who),
        [("requests", 0), ("concurrent_runs", 1), ("tokens_per_day", 1_500), ("tokens_per_month", 9_500)]
    );
    commit(&mut held, 1);
    drop(held);
    assert_eq!(remaining(&reloaded, &who)[1..3], [("concurrent_runs", 2), ("tokens_per_day", 1_999)]);
}

#[test]
fn a_flood_from_one_address_is_refused_before_anything_else() {
    let (quota, clock) = quota();
    let address = "2001:db8::1".parse().unwrap();
    assert!(quota.flood(address).is_ok() && quota.flood(address).is_ok());
    let refused = quota.flood(address).unwrap_err();
    assert_eq!((refused.kind, refused.retry_after_secs(), &*refused.plan), (ExceededKind::Flood, 1, ""));
    clock.advance(Duration::from_secs(1));
    assert!(quota.flood(address).is_ok());
}

/// Quotas whose tables are full from the beginning.
fn crowded(plan: Plan, link: Link) -> Quota {
    let settings =
        Settings { plans: [("p".to_owned(), plan)].into(), default_plan: Some("p".into()), ..Settings::default() };
    Quota::build(settings, Arc::new(State::with_room(0)), Arc::new(link), ManualClock::at(NOON)).unwrap()
}

#[test]
fn a_call_whose_parts_have_no_account_of_their_own_is_decided_and_limited() {
    let (tell, hear) = std::sync::mpsc::channel();
    for shares in [false, true] {
        let tell = tell.clone();
        std::thread::spawn(move || {
            let of = |limit| Limits { concurrent_runs: Some(1), ..requests(vec![rate(limit, MINUTE, limit)]).limits };
            let plan = Plan { user: of(2), component: of(5), ..requests(vec![rate(9, MINUTE, 9)]) };
            let quota = crowded(plan, Link::new(Arc::new(MemoryStore::new()), shares));
            let work = Work { cluster: "main", component: Some(("agents", "a")), tool: None };
            let who = principal("globex", None);
            let passed = (0..3).filter(|_| now(quota.spend(&who, &work)).is_ok()).count();
            let first = lease(&quota, &who, "a");
            let second = exceeded(lease(&quota, &who, "a")).kind;
            tell.send((passed, first.is_ok(), second)).unwrap();
        });
        // A lock that is taken twice is never free.
        let heard = hear.recv_timeout(Duration::from_secs(20)).expect("an answer");
        assert_eq!(heard, (2, true, ExceededKind::Runs), "shared: {shares}");
    }
}

#[test]
fn bad_settings_do_not_load() {
    let broken = Settings { default_plan: Some("fre".into()), ..settings() };
    assert_eq!(
        Quota::new(broken).unwrap_err().to_string(),
        "default plan `fre` does not exist\nhelp: did you mean `free`?"
    );
}

proptest! {
    #[test]
    fn every_rate_of_a_plan_holds_in_every_window(gaps in prop::collection::vec(0_u64..300, 1..400)) {
        let rates = [rate(5, Duration::from_secs(1), 3), rate(20, Duration::from_secs(10), 20)];
        let (quota, clock) = one_plan(requests(rates.to_vec()));
        let who = principal("globex", None);
        let (mut now_ms, mut admitted) = (0_u64, Vec::new());
        for gap in gaps {
            clock.advance(Duration::from_millis(gap));
            now_ms += gap;
            if spend(&quota, &who).is_ok() {
                admitted.push(now_ms);
            }
        }
        for (i, start) in admitted.iter().enumerate() {
            for (n, end) in admitted[i..].iter().enumerate() {
                for rate in &rates {
                    let window_ms = u64::try_from(rate.window.as_millis()).unwrap();
                    let promised = rate.burst + (end - start) * rate.limit / window_ms;
                    prop_assert!((n as u64) < promised);
                }
            }
        }
    }

    #[test]
    fn slots_and_reservations_never_leak(steps in prop::collection::vec((0_u8..6, 0_usize..8, 0_u64..3_000), 1..200)) {
        let limits = Limits { concurrent_runs: Some(5), budgets: vec![tokens_per(Period::Month, 1 << 40)], requests: vec![] };
        let (quota, _) = one_plan(plan(limits));
        let (who, mut leases, mut paid) = (principal("globex", None), Vec::<(Lease, Option<u64>, u64)>::new(), 0);
        let end = |(lease, committed, seen): (Lease, Option<u64>, u64)| committed.unwrap_or(seen.max(lease.reserved()));
        for (step, at, tokens) in steps {
            let at = at % leases.len().max(1);
            match (step, leases.get_mut(at)) {
                (0..=2, _) => match lease(&quota, &who, "a") {
                    Ok(lease) => leases.push((lease, None, 0)),
                    Err(_) => prop_assert_eq!(leases.len(), 5),
                },
                (3, Some((lease, committed, seen))) => {
                    grow(lease, tokens);
                    *seen = if committed.is_none() { tokens.max(*seen) } else { *seen };
                }
                (4, Some((lease, committed, seen))) => {
                    commit(lease, tokens);
                    committed.get_or_insert(tokens.max(*seen));
                }
                (_, Some(_)) => paid += end(leases.swap_remove(at)),
                (_, None) => {}
            }
            prop_assert_eq!(quota.runs_in_flight(&who), Ok(u32::try_from(leases.len()).unwrap()));
        }
        paid += leases.into_iter().map(end).sum::<u64>();
        prop_assert_eq!(remaining(&quota, &who), [("concurrent_runs", 5), ("tokens_per_month", (1 << 40) - paid)]);
    }
}
