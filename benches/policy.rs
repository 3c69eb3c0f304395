//! Measures what one policy decision costs among 100 policies: kept, not kept, and at worst.
//! Does not measure the gateway around it (`benches/proxy.rs`).
//!
//! `cargo bench --bench policy` prints medians. Budgets: below 1 µs when the decision is kept, below 15 µs when it is
//! not, for each of a dozen typical calls. The set is what a company of some departments would run: the shipped
//! policies and its own, about who runs whose agents, who sees what, and what nobody does. Two more lines
//! have no budget: what a policy costs that reads clock and address, so that Cedar must be asked at every call, and what
//! a set costs of which nearly nothing can be settled without Cedar.
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
use tollbridge::policy::{ApprovalFacts, Ask, Context, Policies, ResourceFacts, ScopesMode, Settings};
use tollbridge::principal::{Principal, PrincipalKind, TenantId};

/// As in the binary: much of an uncached decision is small allocations.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Policies in each set.
const POLICIES: usize = 100;
/// Rounds of which the median is taken: short ones, so that most are not interrupted on a busy machine.
const ROUNDS: usize = 1_001;
/// Decisions per round.
const DECISIONS: usize = 25;
const CACHED: Duration = Duration::from_micros(1);
const UNCACHED: Duration = Duration::from_micros(15);

/// What a department adds: it runs its own agents, leads see more, interns change nothing, what is confidential stays
/// inside, big messages and other people's tools are refused.
const DEPARTMENT: [&str; 7] = [
    r#"permit (principal in Tollbridge::Role::"NAME", action == Tollbridge::Action::"create_agent_run", resource)
when { ["NAME-writer", "NAME-reader"].contains(resource.id) || resource.id like "NAME-bot-*" };"#,
    r#"permit (principal in Tollbridge::Role::"NAME", action in Tollbridge::Action::"read", resource)
when { resource has component && resource.component like "NAME-*" };"#,
    r#"permit (principal in Tollbridge::Role::"NAME-lead", action in [Tollbridge::Action::"read", Tollbridge::Action::"resolve_approval"], resource is Tollbridge::Approval)
when { resource has tool_name && resource.tool_name like "NAME_*" };"#,
    r#"forbid (principal in Tollbridge::Role::"NAME-intern", action in [Tollbridge::Action::"write", Tollbridge::Action::"delete"], resource);"#,
    r#"forbid (principal, action == Tollbridge::Action::"create_agent_run", resource)
when { resource.id like "NAME-confidential-*" } unless { principal in Tollbridge::Role::"NAME" };"#,
    r#"forbid (principal is Tollbridge::Service, action in Tollbridge::Action::"run", resource)
when { principal has plan && principal.plan == "NAME-trial" && context.destructive };"#,
    r#"forbid (principal, action, resource is Tollbridge::Knowledge)
when { context.cluster == "NAME-vault" && !(principal in Tollbridge::Role::"NAME-lead") };"#,
];

/// What no glance settles: it reads what differs from call to call.
const OFFICE_HOURS: &str = r#"forbid (principal, action == Tollbridge::Action::"resolve_approval", resource)
unless { context.source_ip.isInRange(ip("127.0.0.0/8")) && context.now.toTime() < duration("25h") };"#;

/// A call that is made every day: its operation, resource, owner and caller's roles and scopes.
struct Everyday {
    operation: &'static str,
    id: &'static str,
    owner: Option<&'static str>,
    roles: &'static [&'static str],
    scopes: &'static [&'static str],
}

const fn call(
    operation: &'static str,
    id: &'static str,
    owner: Option<&'static str>,
    roles: &'static [&'static str],
    scopes: &'static [&'static str],
) -> Everyday {
    Everyday { operation, id, owner, roles, scopes }
}

const MINE: Option<&str> = Some("alice");
const EVERYDAY: [Everyday; 12] = [
    call("create_agent_run", "agent", None, &["operator"], &["agents:read", "sessions:read"]),
    call("create_agent_run", "dept3-bot", None, &["dept3", "viewer"], &[]),
    call("create_team_run", "team", None, &[], &["teams:run", "teams:read", "sessions:read"]),
    call("cancel_agent_run", "run", MINE, &["operator"], &[]),
    call("get_agents", "", None, &["viewer"], &["agents:read"]),
    call("get_sessions", "", None, &["viewer", "dept1"], &[]),
    call("get_session_by_id", "session", MINE, &["viewer"], &["sessions:read"]),
    call("get_session_by_id", "session", Some("bob"), &["admin"], &[]),
    call("get_session_by_id", "session", Some("bob"), &["operator", "dept1", "dept1-lead"], &["sessions:read"]),
    call("delete_session", "session", MINE, &["operator", "dept2-intern"], &[]),
    call("resolve_approval", "approval", Some("bob"), &["approver", "dept5-lead"], &["approvals:write"]),
    call("search_knowledge", "", None, &["viewer"], &["knowledge:read"]),
];

fn main() -> ExitCode {
    let catalog = Catalog::shipped();
    let rows: Vec<&'static Operation> = catalog.rows().iter().collect();
    let company = load("company", &rows, |index| {
        let name = format!("dept{}", index / DEPARTMENT.len());
        DEPARTMENT[index % DEPARTMENT.len()].replace("NAME", &name)
    });
    let hours = load("hours", &rows, |index| match index {
        0 => OFFICE_HOURS.to_owned(),
        index => format!("forbid (principal in Tollbridge::Role::\"guest-{index}\", action, resource);"),
    });
    let broad = load("broad", &rows, |index| {
        format!("forbid (principal, action, resource)\nwhen {{ context.message_bytes > {} }};", 1_000_000 + index)
    });
    println!("{:<66} {:>10} {:>10}", "median of one decision", "cached", "uncached");
    let mut worst = [Duration::ZERO; 2];
    for everyday in &EVERYDAY {
        let measured = [Ids::Same, Ids::New].map(|ids| median(&company, &catalog, everyday, ids));
        worst = [worst[0].max(measured[0]), worst[1].max(measured[1])];
        let Everyday { operation, owner, roles, scopes, .. } = everyday;
        let owner = owner.map_or(String::new(), |owner| format!(" of {owner}"));
        let name = format!("{operation}{owner} as {}", [*roles, *scopes].concat().join(" "));
        println!("{name:<66} {:>10.2?} {:>10.2?}", measured[0], measured[1]);
    }
    let approval = &EVERYDAY[10];
    let hours = median(&hours, &catalog, approval, Ids::New);
    println!("{:<66} {:>10} {hours:>10.2?}", "resolve_approval, and Cedar reads clock and address", "never");
    let broad = median(&broad, &catalog, &EVERYDAY[0], Ids::New);
    println!("{:<66} {:>10} {broad:>10.2?}", "create_agent_run, and Cedar reads the message in 82 policies", "never");
    let held = [("cached", worst[0], CACHED), ("uncached", worst[1], UNCACHED)].map(|(name, worst, budget)| {
        let verdict = if worst < budget { "held" } else { "MISSED" };
        println!("worst {name}: {worst:.2?} (budget {budget:?}: {verdict})");
        worst < budget
    });
    if held == [true, true] { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Whether each decision is about another resource, so that no kept one fits.
#[derive(Clone, Copy)]
enum Ids {
    Same,
    New,
}

/// The shipped policies and further ones up to [`POLICIES`], given by their number.
fn load(name: &str, rows: &[&'static Operation], policy: impl Fn(usize) -> String) -> Policies {
    let folder = std::env::temp_dir().join(format!("tollbridge-bench-{}-{name}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let mut count = 0;
    for file in shipped() {
        let text = std::fs::read_to_string(&file).unwrap();
        count += text.matches("@id(").count();
        std::fs::write(folder.join(file.file_name().unwrap()), text).unwrap();
    }
    let mut text = String::new();
    for index in 0..POLICIES - count {
        writeln!(text, "@id(\"own-{index}\")\n{}", policy(index)).unwrap();
    }
    std::fs::write(folder.join("90-own.cedar"), text).unwrap();
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

/// Median time of one decision about a call, by alice on a cluster of two tenants.
fn median(policies: &Policies, catalog: &Catalog, everyday: &Everyday, ids: Ids) -> Duration {
    let tenants = ["acme", "globex"].map(|name| TenantId::new(name).unwrap());
    let [acme, _] = &tenants;
    let words = |words: &[&str]| words.iter().map(|&word| word.into()).collect();
    let (roles, scopes) = (words(everyday.roles), words(everyday.scopes));
    let caller = Principal::new(PrincipalKind::User, "alice", acme.clone(), roles, scopes, None, None);
    let operation = catalog.get(everyday.operation).unwrap();
    let approval = ApprovalFacts { tool_name: Some("refund"), status: Some("pending"), requested_by: everyday.owner };
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
            // Made before the clock starts. A collection has no id of its own: there the cluster differs.
            let names: Vec<String> = (0..DECISIONS)
                .map(|decision| match ids {
                    Ids::Same => everyday.id.to_owned(),
                    Ids::New => format!("{}-{round}-{decision}", everyday.id),
                })
                .collect();
            let started = Instant::now();
            for name in &names {
                let (id, cluster) = if everyday.id.is_empty() { ("", name.as_str()) } else { (name.as_str(), "main") };
                let resource = ResourceFacts {
                    owner: everyday.owner,
                    tenant: Some(acme),
                    approval: Some(approval),
                    ..ResourceFacts::new(operation.resource, id, &tenants)
                };
                let context = Context { cluster, ..context };
                let decision = policies.decide(black_box(&Ask { principal: &caller, operation, resource, context }));
                _ = black_box(decision);
            }
            started.elapsed() / u32::try_from(DECISIONS).unwrap()
        })
        .collect();
    rounds.sort();
    rounds[ROUNDS / 2]
}
