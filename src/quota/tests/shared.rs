//! Proves what several instances promise together over one store: bounds in every window, caps on runs, budgets that
//! survive loss. The store is the one in memory, on the tests' clock, behind a gate that can be shut.

use std::sync::atomic::{AtomicBool, AtomicU64};

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;

use super::*;
use crate::store::{self, Outcome, StoreError};

/// A store that can be out of reach, and answers only when it is polled again.
#[derive(Debug)]
struct Gate {
    store: parking_lot::Mutex<Arc<dyn Store>>,
    shut: AtomicBool,
    calls: AtomicU64,
}

/// Instances over one store.
struct Instances {
    quotas: Vec<Quota>,
    upkeeps: Vec<Upkeep>,
    gate: Arc<Gate>,
    clock: Arc<ManualClock>,
    plan: Plan,
}

impl store::Time for ManualClock {
    fn steady_us(&self) -> u64 {
        u64::try_from(self.monotonic().as_micros()).unwrap() + NOON * 1_000_000
    }

    fn wall_secs(&self) -> u64 {
        wall_secs(self)
    }
}

impl Gate {
    fn over(clock: &Arc<ManualClock>) -> Arc<Self> {
        let store: Arc<dyn Store> = Arc::new(MemoryStore::with_time(clock.clone()));
        Arc::new(Self { store: store.into(), shut: AtomicBool::new(false), calls: AtomicU64::new(0) })
    }

    /// The store, unless it is out of reach. Takes a moment, in which a caller can go away.
    async fn pass(&self) -> Result<Arc<dyn Store>, StoreError> {
        self.calls.fetch_add(1, Ordering::SeqCst);
        tokio::task::yield_now().await;
        if self.shut.load(Ordering::SeqCst) { Err(StoreError("shut".into())) } else { Ok(self.store.lock().clone()) }
    }
}

/// Passes a call on; the answer takes another moment.
macro_rules! passed {
    ($gate:expr, $call:expr) => {
        Box::pin(async move {
            let store = $gate.pass().await?;
            let answer = $call(&*store).await;
            tokio::task::yield_now().await;
            answer
        })
    };
}

impl Store for Gate {
    fn cells(&self, takes: Vec<store::Cells>) -> Outcome<'_, Vec<store::Taken>> {
        passed!(self, async |store: &dyn Store| store.cells(takes).await)
    }

    fn hold(&self, groups: Vec<Vec<store::Part>>) -> Outcome<'_, Vec<store::Held>> {
        passed!(self, async |store: &dyn Store| store.hold(groups).await)
    }

    fn correct(&self, key: String, correction: store::Correction, expires: u64) -> Outcome<'_, i64> {
        passed!(self, async |store: &dyn Store| store.correct(key, correction, expires).await)
    }

    fn record<'a>(&'a self, instance: &'a str, rows: Vec<store::UsageRow>) -> Outcome<'a, ()> {
        passed!(self, async |store: &dyn Store| store.record(instance, rows).await)
    }

    fn usage<'a>(&'a self, tenant: Option<&'a str>, from: u32, to: u32) -> Outcome<'a, Vec<store::UsageRow>> {
        passed!(self, async |store: &dyn Store| store.usage(tenant, from, to).await)
    }

    fn claim<'a>(&'a self, name: &'a str, owner: &'a str, lasts: Duration) -> Outcome<'a, bool> {
        passed!(self, async |store: &dyn Store| store.claim(name, owner, lasts).await)
    }

    fn holder<'a>(&'a self, name: &'a str) -> Outcome<'a, Option<String>> {
        passed!(self, async |store: &dyn Store| store.holder(name).await)
    }

    fn release<'a>(&'a self, name: &'a str, owner: &'a str) -> Outcome<'a, ()> {
        passed!(self, async |store: &dyn Store| store.release(name, owner).await)
    }

    fn beat<'a>(&'a self, instance: &'a str, lasts: Duration) -> Outcome<'a, store::Beat> {
        passed!(self, async |store: &dyn Store| store.beat(instance, lasts).await)
    }
}

impl Instances {
    async fn start(count: usize, plan: Plan) -> Self {
        let clock = ManualClock::at(NOON);
        let gate = Gate::over(&clock);
        let mut all = Self { quotas: Vec::new(), upkeeps: Vec::new(), gate, clock, plan };
        for _ in 0..count {
            let quota = all.instance();
            all.upkeeps.push(quota.upkeep());
            all.quotas.push(quota);
        }
        // Twice: the first to ask sees the last only then.
        all.upkeep().await;
        all.upkeep().await;
        all
    }

    fn instance(&self) -> Quota {
        let plans = [("p".to_owned(), self.plan.clone())].into();
        let settings = Settings { plans, default_plan: Some("p".into()), ..Settings::default() };
        Quota::with_clock(settings, self.clock.clone()).unwrap().sharing(self.gate.clone())
    }

    /// Everything that is done between calls, on every instance.
    async fn upkeep(&mut self) {
        for upkeep in &mut self.upkeeps {
            upkeep.all_due();
            upkeep.round(&|_| {}).await;
        }
    }

    fn shut(&self, shut: bool) {
        self.gate.shut.store(shut, Ordering::SeqCst);
    }

    async fn spend(&self, at: usize, who: &Principal) -> bool {
        self.quotas[at].spend(who, &Work::default()).await.is_ok()
    }

    async fn lease(&self, at: usize, who: &Principal) -> Result<Lease, Refused> {
        self.quotas[at].lease(who, &Work { cluster: "main", component: Some(("agents", "a")), tool: None }).await
    }

    async fn remaining(&self, at: usize, who: &Principal) -> Vec<(&'static str, u64)> {
        let usage = self.quotas[at].usage(who, &Work::default()).await.unwrap();
        usage.iter().map(|limit| (limit.name, limit.remaining)).collect()
    }
}

fn run<T>(test: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap().block_on(test)
}

#[test]
fn a_warm_tenant_costs_no_round_trip() {
    run(async {
        let mut all = Instances::start(2, requests(vec![rate(6_000, MINUTE, 4_000)])).await;
        let who = principal("globex", None);
        assert!(all.spend(0, &who).await, "the first request asks");
        for _ in 0..20 {
            let calls = all.gate.calls.load(Ordering::SeqCst);
            for _ in 0..40 {
                assert!(all.spend(0, &who).await);
            }
            assert_eq!(all.gate.calls.load(Ordering::SeqCst), calls, "forty requests out of a batch of a hundred");
            all.upkeep().await;
        }
        let missing = 4_000 - all.remaining(1, &who).await[0].1;
        assert!((801..=1_001).contains(&missing), "spent or leased by the other instance: {missing}");
    });
}

#[test]
fn cells_that_nobody_spends_are_given_back() {
    run(async {
        let mut all = Instances::start(2, requests(vec![rate(400, MINUTE * 60 * 24, 400)])).await;
        let who = principal("globex", None);
        assert!(all.spend(0, &who).await);
        assert_eq!(all.remaining(1, &who).await, [("requests", 390)], "a batch of ten is leased");
        all.upkeep().await;
        all.upkeep().await;
        assert_eq!(all.remaining(1, &who).await, [("requests", 399)]);
    });
}

#[test]
fn after_a_pause_of_all_instances_the_first_to_beat_does_not_lease_for_all() {
    run(async {
        let mut all = Instances::start(3, requests(vec![rate(80, MINUTE * 60 * 24, 80)])).await;
        let who = principal("globex", None);
        all.clock.advance(Duration::from_secs(60));
        all.upkeep().await;
        assert!(all.spend(0, &who).await);
        assert_eq!(all.remaining(1, &who).await, [("requests", 79)], "one cell is leased, not a batch of four");
    });
}

#[test]
fn an_instance_that_is_gone_is_believed_gone_after_some_beats() {
    run(async {
        let mut all = Instances::start(3, requests(vec![rate(80, MINUTE * 60 * 24, 80)])).await;
        let who = principal("globex", None);
        all.clock.advance(Duration::from_secs(60));
        for beats in 1..=5 {
            all.upkeeps[0].all_due();
            all.upkeeps[0].round(&|_| {}).await;
            let shown = all.quotas[0].tenant(&who.tenant, None).await.unwrap();
            assert_eq!(shown.instances, if beats < 5 { 3 } else { 1 }, "{beats}");
        }
    });
}

#[test]
fn a_warm_instance_gives_back_what_belongs_to_those_that_join() {
    run(async {
        let mut all = Instances::start(1, requests(vec![rate(400, MINUTE * 60 * 24, 400)])).await;
        let who = principal("globex", None);
        assert!(all.spend(0, &who).await);
        for _ in 0..3 {
            let quota = all.instance();
            all.upkeeps.push(quota.upkeep());
            all.quotas.push(quota);
        }
        assert_eq!(all.remaining(0, &who).await, [("requests", 399)], "19 of them leased");
        all.upkeep().await;
        assert!(all.spend(0, &who).await);
        all.upkeep().await;
        assert_eq!(all.remaining(1, &who).await, [("requests", 398 - 5)], "a batch of four instances is five");
    });
}

#[test]
fn the_last_cell_of_a_bucket_is_found_wherever_it_is_asked_for() {
    run(async {
        let all = Instances::start(3, requests(vec![rate(10, MINUTE * 60 * 24, 10)])).await;
        let who = principal("globex", None);
        let mut admitted = 0;
        for n in 0..200 {
            admitted += u32::from(all.spend(n % 3, &who).await);
        }
        assert_eq!(admitted, 10);
    });
}

#[test]
fn parts_of_a_tenant_have_limits_of_their_own() {
    run(async {
        let user = Limits { requests: vec![rate(2, MINUTE * 60, 2)], ..Limits::default() };
        let tool = Limits { requests: vec![rate(1, MINUTE * 60, 1)], ..Limits::default() };
        let agent = Limits { concurrent_runs: Some(1), ..Limits::default() };
        let plan = Plan {
            user,
            tools: [("search_knowledge".to_owned(), tool)].into(),
            components: [("agents/a".to_owned(), agent)].into(),
            ..requests(vec![rate(100, MINUTE, 100)])
        };
        let all = Instances::start(2, plan).await;
        let alice = principal("globex", None);
        let bob = Principal { subject: "bob".into(), ..alice.clone() };
        let search = Work { tool: Some("search_knowledge"), ..Work::default() };
        assert!(all.quotas[0].spend(&alice, &search).await.is_ok());
        let refused = exceeded(all.quotas[1].spend(&bob, &search).await);
        assert_eq!((refused.limit.full_name().as_ref(), refused.limit.limit), ("tool_requests", 1));
        assert!(all.spend(1, &alice).await && !all.spend(0, &alice).await && all.spend(0, &bob).await);
        let refused = exceeded(all.quotas[0].spend(&alice, &Work::default()).await);
        assert_eq!(refused.limit.full_name(), "user_requests");

        let _held = all.lease(0, &alice).await.unwrap();
        let refused = exceeded(all.lease(1, &bob).await);
        assert_eq!(
            (refused.kind, refused.limit.full_name().as_ref()),
            (ExceededKind::Runs, "component_concurrent_runs")
        );
    });
}

#[test]
fn a_run_waits_for_a_slot_where_the_plan_says_so() {
    run(async {
        let limits = Limits { concurrent_runs: Some(1), ..Limits::default() };
        let all = Instances::start(1, Plan { queue: Some(Duration::from_secs(10)), ..plan(limits) }).await;
        let who = principal("globex", None);
        let held = all.lease(0, &who).await.unwrap();
        let began = tokio::time::Instant::now();
        assert_eq!(exceeded(all.lease(0, &who).await).kind, ExceededKind::Runs);
        assert!((10..11).contains(&began.elapsed().as_secs()), "{:?}", began.elapsed());
        let (waited, ()) = tokio::join!(all.lease(0, &who), async {
            tokio::time::sleep(Duration::from_secs(3)).await;
            drop(held);
        });
        assert!(waited.is_ok());
        assert!((13..14).contains(&began.elapsed().as_secs()), "{:?}", began.elapsed());
    });
}

#[test]
fn at_most_a_thousand_wait_for_a_slot() {
    run(async {
        let limits = Limits { concurrent_runs: Some(0), ..Limits::default() };
        let all = Instances::start(1, Plan { queue: Some(Duration::from_secs(10)), ..plan(limits) }).await;
        let who = principal("globex", None);
        let mut asking: FuturesUnordered<_> = (0..1_001).map(|_| all.lease(0, &who)).collect();
        let first = tokio::time::timeout(Duration::from_secs(1), asking.next()).await.expect("one too many");
        assert_eq!(exceeded(first.unwrap()).kind, ExceededKind::Runs);
        assert!(tokio::time::timeout(Duration::from_secs(9), asking.next()).await.is_err(), "all others wait");
    });
}

#[test]
fn fifty_runs_on_three_instances_overspend_by_what_they_used_beyond_their_reservations() {
    run(async {
        let limits = Limits { budgets: vec![tokens_per(Period::Day, 10_000)], ..Limits::default() };
        let mut all = Instances::start(3, plan(limits)).await;
        let who = principal("globex", None);
        let mut leases = Vec::new();
        for n in 0..50 {
            leases.extend(all.lease(n % 3, &who).await);
        }
        assert_eq!(leases.len(), 20, "500 are reserved for each");
        let beyond: u64 = leases.iter().map(|lease| 800_u64.saturating_sub(lease.reserved())).sum();
        for mut lease in leases {
            commit(&mut lease, 800);
        }
        all.upkeep().await;
        assert_eq!(exceeded(all.lease(1, &who).await).limit.used, 10_000 + beyond);
    });
}

#[test]
fn what_is_used_while_the_store_is_lost_is_known_again_afterwards() {
    run(async {
        let budgets = vec![tokens_per(Period::Month, 100_000)];
        let mut all = Instances::start(3, plan(Limits { budgets, concurrent_runs: Some(6), requests: vec![] })).await;
        let who = principal("globex", None);
        commit(&mut all.lease(0, &who).await.unwrap(), 10_000);
        all.upkeep().await;
        all.shut(true);
        let (first, second) = (all.lease(1, &who).await.unwrap(), all.lease(1, &who).await.unwrap());
        let refused = exceeded(all.lease(1, &who).await);
        assert_eq!((refused.kind, refused.limit.remaining), (ExceededKind::Runs, 0), "two of six are its share");
        for mut lease in [first, second] {
            commit(&mut lease, 5_000);
        }
        all.upkeep().await;
        all.shut(false);
        all.upkeep().await;
        assert_eq!(all.remaining(2, &who).await, [("concurrent_runs", 6), ("tokens_per_month", 80_000)]);

        // A store that comes back empty is told everything again.
        *all.gate.store.lock() = Arc::new(MemoryStore::with_time(all.clock.clone()));
        all.upkeep().await;
        all.upkeep().await;
        assert_eq!(all.remaining(2, &who).await[1], ("tokens_per_month", 80_000));
        let rows = all.quotas[2].export(None, 0, all.quotas[0].today()).await.unwrap();
        assert_eq!((rows.len(), rows[0].runs, rows[0].input), (1, 3, 20_000));
    });
}

#[test]
fn an_instance_that_ends_without_a_word_leaves_its_reservations_charged_and_its_slots_free() {
    run(async {
        let budgets = vec![tokens_per(Period::Month, 100_000)];
        let mut all = Instances::start(2, plan(Limits { budgets, concurrent_runs: Some(1), requests: vec![] })).await;
        let who = principal("globex", None);
        let held = all.lease(0, &who).await.unwrap();
        all.upkeeps.remove(0);
        std::mem::forget(held);
        assert_eq!(exceeded(all.lease(1, &who).await).kind, ExceededKind::Runs);
        all.clock.advance(Duration::from_secs(21));
        assert!(all.lease(1, &who).await.is_ok());
        all.upkeep().await;
        assert_eq!(all.remaining(1, &who).await[1], ("tokens_per_month", 99_000), "500 each, both aborted");
    });
}

#[test]
fn a_loss_and_a_return_are_told_once_each() {
    run(async {
        let mut all = Instances::start(2, requests(vec![rate(12, MINUTE, 12)])).await;
        let told = parking_lot::Mutex::new(Vec::new());
        for shut in [true, true, true, false, false] {
            all.shut(shut);
            all.clock.advance(Duration::from_secs(1));
            all.upkeeps[0].all_due();
            all.upkeeps[0].round(&|change| told.lock().push(change)).await;
        }
        let lost = Change::Lost { why: "shut".into(), instances: 2 };
        assert_eq!(told.into_inner(), [lost, Change::Found { instances: 2, empty: false }]);
    });
}

#[test]
fn plans_say_what_holds_while_the_store_is_lost() {
    for (lost, admitted, kind) in [
        (WhenLost::Share, 4, ExceededKind::Rate),
        (WhenLost::Open, 12, ExceededKind::Rate),
        (WhenLost::Closed, 0, ExceededKind::Unknown),
    ] {
        run(async {
            let all = Instances::start(3, Plan { lost, ..requests(vec![rate(12, MINUTE * 60 * 24, 12)]) }).await;
            all.shut(true);
            let who = principal("globex", None);
            let mut passed = 0;
            while all.spend(0, &who).await {
                passed += 1;
            }
            assert_eq!(passed, admitted, "{lost:?}");
            assert_eq!(exceeded(all.quotas[0].spend(&who, &Work::default()).await).kind, kind, "{lost:?}");
        });
    }
}

#[test]
fn who_waits_for_a_turn_does_not_ask_a_store_that_was_lost_meanwhile() {
    let limits = Limits { concurrent_runs: Some(50), ..requests(vec![rate(50, MINUTE * 60 * 24, 50)]).limits };
    let who = principal("globex", None);
    for runs in [true, false] {
        run(async {
            let all = Instances::start(1, plan(limits.clone())).await;
            all.shut(true);
            let calls = all.gate.calls.load(Ordering::SeqCst);
            let (all, who) = (&all, &who);
            let ask = |_| async move { if runs { all.lease(0, who).await.is_ok() } else { all.spend(0, who).await } };
            let passed = futures_util::future::join_all((0..20).map(ask)).await;
            assert!(passed.iter().all(|passed| *passed), "runs: {runs}");
            assert_eq!(all.gate.calls.load(Ordering::SeqCst) - calls, 1, "runs: {runs}");
        });
    }
}

#[test]
fn resets_and_grants_reach_every_instance() {
    run(async {
        let limits = Limits {
            requests: vec![rate(4, MINUTE * 60 * 24, 4)],
            budgets: vec![tokens_per(Period::Day, 1_000)],
            concurrent_runs: None,
        };
        let mut all = Instances::start(2, plan(limits)).await;
        let who = principal("globex", None);
        commit(&mut all.lease(0, &who).await.unwrap(), 1_500);
        while all.spend(0, &who).await {}
        all.upkeep().await;
        assert_eq!(all.remaining(1, &who).await, [("requests", 0), ("tokens_per_day", 0)]);
        let correct = |correct| all.quotas[1].correct(&who.tenant, None, correct);
        correct(Correct::Grant(Unit::Tokens, 700)).await.unwrap().unwrap();
        assert_eq!(all.remaining(0, &who).await[1], ("tokens_per_day", 200));
        correct(Correct::Reset).await.unwrap().unwrap();
        assert_eq!(all.remaining(0, &who).await, [("requests", 4), ("tokens_per_day", 1_000)]);
        all.clock.advance(Duration::from_secs(1));
        assert!(all.spend(0, &who).await, "the instance that found the bucket empty asks again");
        let shown = all.quotas[1].tenant(&who.tenant, None).await.unwrap();
        assert_eq!((&*shown.plan, shown.shared, shown.limits[1].remaining), ("p", true, 1_000));
    });
}

#[test]
fn a_hundred_thousand_cancels_leak_no_slot() {
    run(async {
        let limits =
            Limits { concurrent_runs: Some(7), budgets: vec![tokens_per(Period::Month, 1 << 50)], requests: vec![] };
        let mut all = Instances::start(3, plan(limits)).await;
        let who = principal("globex", None);
        // Marsaglia's xorshift: the same steps in every run.
        let mut seed = 0x9E37_79B9_7F4A_7C15_u64;
        let mut next = |below: u64| {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            seed % below
        };
        let mut held: Vec<Lease> = Vec::new();
        for step in 0..100_000 {
            {
                let at = usize::try_from(next(3)).unwrap();
                let mut asking = Box::pin(all.lease(at, &who));
                let mut patience = next(6);
                while patience > 0 {
                    patience -= 1;
                    if let Some(answer) = futures_util::future::poll_immediate(asking.as_mut()).await {
                        held.extend(answer);
                        break;
                    }
                }
            }
            assert!(held.len() <= 7, "step {step}");
            if held.len() >= usize::try_from(next(8)).unwrap() && !held.is_empty() {
                let mut lease = held.swap_remove(usize::try_from(next(held.len() as u64)).unwrap());
                if next(2) == 0 {
                    lease.waive();
                }
            }
            if next(4) == 0 {
                all.upkeep().await;
            }
        }
        drop(held);
        all.upkeep().await;
        for at in 0..3 {
            assert_eq!(all.remaining(at, &who).await[0], ("concurrent_runs", 7));
            assert_eq!(all.quotas[at].runs_in_flight(&who), Ok(0));
        }
        let mut all_slots = Vec::new();
        for n in 0..7 {
            all_slots.push(all.lease(n % 3, &who).await.unwrap());
        }
        assert!(all.lease(0, &who).await.is_err());
    });
}

/// One thing that happens to a cluster.
#[derive(Debug, Clone)]
enum Step {
    /// Requests at one instance.
    Arrive(usize, u8),
    /// Time passes.
    Pass(u64),
    /// An instance ends without a word and another begins.
    Restart(usize),
    /// The wall clock of all instances jumps, in seconds.
    Jump(i64),
    /// What is done between calls.
    Upkeep,
    /// The store is lost, or found.
    Lose(bool),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        10 => (0_usize..3, 1_u8..40).prop_map(|(at, count)| Step::Arrive(at, count)),
        6 => (1_u64..2_000).prop_map(Step::Pass),
        4 => Just(Step::Upkeep),
        1 => (0_usize..3).prop_map(Step::Restart),
        1 => (-100_000_i64..100_000).prop_map(Step::Jump),
        1 => any::<bool>().prop_map(Step::Lose),
    ];
    prop::collection::vec(step, 1..120)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn no_window_admits_more_than_the_limit_and_the_stated_overshoot(
        steps in steps(), limit in 1_u64..200, burst in 1_u64..200,
    ) {
        let admitted = run(async {
            let second = Duration::from_secs(1);
            let mut all = Instances::start(3, requests(vec![rate(limit, second, burst)])).await;
            let who = principal("globex", None);
            let (mut admitted, mut now_ms, mut losses, mut lost) = (Vec::new(), 0_u64, 0_u64, false);
            for step in steps {
                match step {
                    Step::Arrive(at, count) => {
                        for _ in 0..count {
                            if all.spend(at, &who).await {
                                admitted.push((now_ms, losses));
                            }
                        }
                    }
                    Step::Pass(ms) => {
                        all.clock.advance(Duration::from_millis(ms));
                        now_ms += ms;
                    }
                    // What an instance admitted while it could tell nobody ends with it: stated in the documentation.
                    Step::Restart(at) if !lost => {
                        let quota = all.instance();
                        all.upkeeps[at] = quota.upkeep();
                        all.quotas[at] = quota;
                        all.upkeep().await;
                    }
                    Step::Restart(_) => {}
                    Step::Jump(by) => {
                        let wall = wall_secs(&*all.clock);
                        all.clock.set_wall(wall.saturating_add_signed(by));
                    }
                    Step::Upkeep => all.upkeep().await,
                    Step::Lose(shut) => {
                        losses += u64::from(shut && !lost);
                        lost = shut;
                        all.shut(shut);
                        all.upkeep().await;
                    }
                }
            }
            admitted
        });
        // Three instances, perhaps one more for each that was restarted: the store remembers those for a while.
        let batches = 3 * u64::from(rates::batch(burst, 3)).max(1);
        for (i, (start, losses)) in admitted.iter().enumerate() {
            for (n, (end, later)) in admitted[i..].iter().enumerate() {
                let bursts = burst * (1 + later - losses + u64::from(*losses > 0)) + 3 * (later - losses);
                let promised = bursts + (end - start) * limit / 1_000 + batches;
                prop_assert!((n as u64) < promised, "{} in {} ms, promised {promised}", n + 1, end - start);
            }
        }
    }
}
