//! Measures what the quota stage costs a request, and what a million tenants cost in memory.
//! Does not measure the gateway around it (`benches/proxy.rs`).
//!
//! `cargo bench --bench quota` prints medians. Budgets: below 1 µs per request, counted in this process and with cells
//! leased from a Redis of the benchmark's own; below 500 MiB for 1,000,000 tenants. Without `redis-server` the second
//! line says so.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    missing_docs,
    reason = "a benchmark prints and may panic"
)]

use std::hint::black_box;
use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use tollbridge::principal::{Principal, PrincipalKind, TenantId};
use tollbridge::quota::{Budget, Limits, ModelSpent, Period, Plan, Quota, Rate, Settings, Unit, Work};
use tollbridge::secret::Secret;
use tollbridge::store::RedisStore;

/// As in the binary.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Rounds of which the median is taken.
const ROUNDS: usize = 501;
/// Requests per round.
const REQUESTS: u32 = 1_000;
const TENANTS: usize = 1_000_000;
const STAGE_BUDGET: Duration = Duration::from_micros(1);
const MEMORY_BUDGET_MIB: u64 = 500;

fn main() -> ExitCode {
    let memory = median(&quota(), &mut || {});
    let mut held = report("a request, counted in this process", memory);
    match redis() {
        Some((mut server, socket, _folder)) => {
            held &= report("a request, with cells leased from Redis", leased(&socket));
            server.kill().unwrap();
            server.wait().unwrap();
        }
        None => println!("a request, with cells leased from Redis: not measured, `redis-server` is missing"),
    }
    let mib = million();
    let verdict = if mib < MEMORY_BUDGET_MIB { "held" } else { "MISSED" };
    println!(
        "{TENANTS} tenants, each with a request and a run: {mib} MiB  (budget {MEMORY_BUDGET_MIB} MiB: {verdict})"
    );
    if held && mib < MEMORY_BUDGET_MIB { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn report(name: &str, median: Duration) -> bool {
    let held = median < STAGE_BUDGET;
    println!("{name}: {median:?}  (budget {STAGE_BUDGET:?}: {})", if held { "held" } else { "MISSED" });
    held
}

/// A plan that never refuses here: what is measured is counting.
fn quota() -> Quota {
    let rate = |limit, secs| Rate { limit, window: Duration::from_secs(secs), burst: limit };
    let limits = Limits {
        requests: vec![rate(100_000_000, 1), rate(1_000_000_000_000, 86_400)],
        concurrent_runs: Some(1_000),
        budgets: vec![Budget { unit: Unit::Tokens, period: Period::Month, limit: 1 << 40 }],
    };
    let plan = Plan { limits, ..Plan::default() };
    let plans = [("pro".to_owned(), plan)].into();
    Quota::new(Settings { plans, default_plan: Some("pro".to_owned()), ..Settings::default() }).unwrap()
}

fn tenant(name: &str) -> Principal {
    let tenant = TenantId::new(name).unwrap();
    Principal::new(PrincipalKind::User, "alice", tenant, vec![], vec![], None, None)
}

fn median(quota: &Quota, between: &mut dyn FnMut()) -> Duration {
    let who = tenant("acme");
    let work = Work { cluster: "main", component: Some(("agents", "web-agent")), tool: None };
    let mut rounds: Vec<Duration> = (0..ROUNDS)
        .map(|_| {
            between();
            let began = Instant::now();
            for _ in 0..REQUESTS {
                // A warm tenant never waits for the store.
                let _pass = black_box(quota.spend(black_box(&who), &work).now_or_never().unwrap().unwrap());
            }
            began.elapsed() / REQUESTS
        })
        .collect();
    rounds.sort();
    rounds[ROUNDS / 2]
}

fn leased(socket: &str) -> Duration {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let store = RedisStore::new(&Secret::new(format!("unix://{socket}"))).unwrap();
    let quota = quota().sharing(Arc::new(store));
    let mut upkeep = quota.upkeep();
    let _pass = runtime.block_on(quota.spend(&tenant("acme"), &Work::default())).unwrap();
    median(&quota, &mut || runtime.block_on(upkeep.round(&|_| {})))
}

/// A Redis on a socket in a temporary folder.
fn redis() -> Option<(Child, String, tempfile::TempDir)> {
    let folder = tempfile::TempDir::new().unwrap();
    let socket = folder.path().join("redis.sock").display().to_string();
    let mut server = Command::new("redis-server")
        .args(["--port", "0", "--save", "", "--unixsocket", &socket])
        .current_dir(folder.path())
        .stdout(Stdio::piped())
        .spawn()
        .ok()?;
    let mut lines = BufReader::new(server.stdout.take().unwrap()).lines();
    lines.find(|line| line.as_ref().is_ok_and(|line| line.contains("eady to accept connections")))?.ok()?;
    std::mem::forget(lines);
    Some((server, socket, folder))
}

/// What the process holds more after a million tenants have come, in MiB.
fn million() -> u64 {
    let quota = quota();
    let before = resident_kib();
    for n in 0..TENANTS {
        let who = tenant(&format!("tenant-{n:07}"));
        let work = Work { cluster: "main", component: Some(("agents", "web-agent")), tool: None };
        let _pass = quota.spend(&who, &work).now_or_never().unwrap().unwrap();
        let mut lease = quota.lease(&who, &work).now_or_never().unwrap().unwrap();
        // Without a model nothing enters the book of usage, which has a bound of its own.
        lease.commit(std::iter::empty::<ModelSpent<'_>>(), 1);
    }
    let after = resident_kib();
    black_box(&quota);
    (after - before) / 1_024
}

fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}
