//! Proves that a gateway over a file can be killed at any moment: what a run used whose answer has ended is charged and
//! billed afterwards, and what was in flight is charged its reservation at most.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;
use tempfile::TempDir;

use crate::quotas_shared::{plan, quota, run, used};
use crate::stack::{Settings, Stack};

/// Tells the gateway that is killed where its file is.
const CHILD: &str = "TOLLBRIDGE_TEST_GATEWAY_FILE";
/// What a run of the fake AgentOS uses.
const TOKENS: u64 = 5;

fn over(file: &Path) -> Settings {
    let settings = plan(&[("tokens", "{ per_month = 1_000_000 }")]).set("[quota]", "store", "\"file\"");
    settings.set("[store]", "file", &format!("{file:?}"))
}

/// Not a test of its own: says how many answers of runs have ended.
#[tokio::test]
async fn gateway_of_the_kill_test() {
    let Some(file) = std::env::var_os(CHILD) else { return };
    let stack = Stack::with(over(Path::new(&file))).await;
    for n in 1_u64.. {
        let stream = if n.is_multiple_of(2) { "true" } else { "false" };
        assert_eq!(stack.send(run().field("stream", stream)).await.status, 200);
        writeln!(std::io::stdout(), "ended {n}").unwrap();
    }
}

#[tokio::test]
async fn what_runs_used_whose_answers_have_ended_survives_a_kill_at_any_moment() {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("store.redb");
    let mut ended = 0;
    for round in 1..=4_u64 {
        let mut gateway = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "quotas_kept::gateway_of_the_kill_test", "--nocapture"])
            .env(CHILD, &file)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let lines = BufReader::new(gateway.stdout.take().unwrap()).lines();
        let mut heard = lines.filter_map(|line| line.unwrap().strip_prefix("ended ")?.parse::<u64>().ok());
        // After another number of runs in each round, and then wherever the gateway happens to be.
        let last = heard.nth(usize::try_from(round * 5 % 8).unwrap()).unwrap();
        gateway.kill().unwrap();
        gateway.wait().unwrap();
        ended += heard.last().unwrap_or(last);

        let stack = Stack::with(over(&file)).await;
        let charged = used(&quota(&stack, "acme").await, "tokens_per_month");
        let in_flight = round * 500;
        assert!((ended * TOKENS..=ended * TOKENS + in_flight).contains(&charged), "{ended} runs, {charged} charged");
        let usage: Value = serde_json::from_str(&stack.admin("/usage?tenant=acme").await).unwrap();
        let lines = usage["usage"].as_array().unwrap();
        let runs: u64 = lines.iter().map(|line| line["runs"].as_u64().unwrap()).sum();
        assert!((ended..=ended + round).contains(&runs), "{ended} runs, {runs} billed");
        assert_eq!(stack.running.drain().await, 0);
    }
}
