//! Measures what one policy decision costs among 100 policies: kept, sliced by action, and at worst.
//! Does not measure the gateway around it (`benches/proxy.rs`).
//!
//! `cargo bench --bench policy` prints medians. Budgets: below 1 µs when the decision is kept, below 15 µs when it is
//! not and the policies are about different operations, as in practice. The third line is no budget: it shows what
//! 100 policies cost that all apply to every call.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    missing_docs,
    reason = "a benchmark prints and may panic"
)]

use std::fmt::Write as _;
use std::hint::black_box;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime};

use tollbridge::agentos::{Catalog, Operation};
use tollbridge::policy::{Ask, Context, Policies, ResourceFacts, ScopesMode, Settings};
use tollbridge::principal::{Principal, PrincipalKind, TenantId};

/// As in the binary: much of an uncached decision is small allocations.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Policies in each set.
const POLICIES: usize = 100;
/// Rounds of which the median is taken: short ones, so that most are not interrupted on a busy machine.
const ROUNDS: usize = 2_001;
/// Decisions per round.
const DECISIONS: usize = 25;

fn main() -> ExitCode {
    let catalog = Catalog::shipped();
    let rows: Vec<&'static Operation> = catalog.rows().iter().collect();
    let sliced = load("sliced", &rows, |index, row| {
        format!(
            "action == Tollbridge::Action::\"{}\", resource)\nwhen {{ resource.id like \"team-{index}-*\" }}",
            row.id
        )
    });
    let broad =
        load("broad", &rows, |index, _| format!("action, resource)\nwhen {{ resource.id like \"team-{index}-*\" }}"));
    let results = [
        ("cached", median(&sliced, &catalog, Ids::Same), Some(Duration::from_micros(1))),
        ("uncached, sliced by action", median(&sliced, &catalog, Ids::New), Some(Duration::from_micros(15))),
        ("uncached, all apply", median(&broad, &catalog, Ids::New), None),
    ];
    let mut held = true;
    for (name, median, budget) in results {
        let verdict = match budget {
            None => String::new(),
            Some(budget) if median < budget => format!("  (budget {budget:?}: held)"),
            Some(budget) => {
                held = false;
                format!("  (budget {budget:?}: MISSED)")
            }
        };
        println!("{name:<28} {median:>10.2?}{verdict}");
    }
    if held { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Whether each decision is about another resource, so that no kept one fits.
#[derive(Clone, Copy)]
enum Ids {
    Same,
    New,
}

/// The shipped policies and synthetic ones up to [`POLICIES`]; the rest of a policy's scope and its condition are given.
fn load(name: &str, rows: &[&'static Operation], rest: impl Fn(usize, &Operation) -> String) -> Policies {
    let folder = std::env::temp_dir().join(format!("tollbridge-bench-{}-{name}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let mut count = 0;
    for file in shipped() {
        let text = std::fs::read_to_string(&file).unwrap();
        count += text.matches("@id(").count();
        std::fs::write(folder.join(file.file_name().unwrap()), text).unwrap();
    }
    let mut text = String::new();
    for index in count..POLICIES {
        let row = rows[index * 7 % rows.len()];
        let (head, rest) = (format!("permit (principal in Tollbridge::Role::\"team-{index}\", "), rest(index, row));
        writeln!(text, "@id(\"team-{index}\")\n{head}{rest};").unwrap();
    }
    std::fs::write(folder.join("90-synthetic.cedar"), text).unwrap();
    let settings = Settings { dir: folder.clone(), scopes: ScopesMode::Add };
    let policies = Policies::load(&settings, rows).unwrap_or_else(|errors| panic!("{errors}"));
    std::fs::remove_dir_all(&folder).unwrap();
    policies
}

fn shipped() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("policies");
    let files = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    files.filter(|path| path.extension().is_some_and(|extension| extension == "cedar")).collect()
}

/// Median time of one decision about running an agent, by an operator with two scopes.
fn median(policies: &Policies, catalog: &Catalog, ids: Ids) -> Duration {
    let tenants = ["acme", "globex"].map(|name| TenantId::new(name).unwrap());
    let [acme, _] = &tenants;
    let words = |words: &[&str]| words.iter().map(|&word| word.into()).collect();
    let (roles, scopes) = (words(&["operator"]), words(&["agents:read", "sessions:read"]));
    let caller = Principal::new(PrincipalKind::User, "alice", acme.clone(), roles, scopes, None, None);
    let operation = catalog.get("create_agent_run").unwrap();
    let context = Context {
        door: "http",
        cluster: "main",
        now: SystemTime::now(),
        source_ip: IpAddr::from([127, 0, 0, 1]),
        message_bytes: 100,
        human: false,
    };
    let mut rounds: Vec<Duration> = (0..ROUNDS)
        .map(|round| {
            // Made before the clock starts.
            let names: Vec<String> = (0..DECISIONS)
                .map(|decision| match ids {
                    Ids::Same => "agent".to_owned(),
                    Ids::New => format!("agent-{round}-{decision}"),
                })
                .collect();
            let started = Instant::now();
            for name in &names {
                let resource =
                    ResourceFacts { tenant: Some(acme), ..ResourceFacts::new(operation.resource, name, &tenants) };
                let decision = policies.decide(black_box(&Ask { principal: &caller, operation, resource, context }));
                assert!(black_box(decision).is_allow());
            }
            started.elapsed() / u32::try_from(DECISIONS).unwrap()
        })
        .collect();
    rounds.sort();
    rounds[ROUNDS / 2]
}
