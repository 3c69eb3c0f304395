//! Proves that the stores keep what they promise: the same rules in memory, in a file and in Redis, and that a file
//! survives a kill at any moment.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures_util::future::join_all;
use tempfile::TempDir;
use tollbridge::secret::Secret;
use tollbridge::store::{
    Cells, Correction, FileStore, Held, MemoryStore, Part, RedisStore, Settings, Share, Store, UsageRow, open,
};

use crate::redis_server::RedisServer;

/// Tells the child of the kill test where its store is.
const CHILD: &str = "TOLLBRIDGE_TEST_STORE";

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

fn part(key: &str, part: &str, base: i64, want: u64, cap: Option<i64>) -> Part {
    Part { key: format!("tb:{{acme}}:{key}"), part: part.into(), base, want, cap, expires: now() + 3_600 }
}

fn cells(key: &str, want: i64) -> Cells {
    // Ten, and one more per hour: nothing comes back during a test.
    Cells { key: key.into(), interval_us: 3_600_000_000, depth_us: 36_000_000_000, want }
}

fn row(day: u32, tenant: &str, agent: &str, runs: u64, input: u64) -> UsageRow {
    let (tenant, agent) = (tenant.to_owned(), agent.to_owned());
    UsageRow { day, tenant, agent, model: "m".into(), runs, input, output: 2 * input, micros: 7 }
}

async fn granted(store: &dyn Store, parts: Vec<Part>) -> bool {
    store.hold(vec![parts]).await.unwrap()[0].granted
}

/// What everybody but the reader holds of a sum.
async fn read(store: &dyn Store, key: &str) -> i64 {
    store.hold(vec![vec![part(key, "reader", 0, 0, None)]]).await.unwrap()[0].shares[0].others
}

/// Every rule, on one empty store.
pub(crate) async fn keeps_its_promises(store: Arc<dyn Store>) {
    buckets(&*store).await;
    sums(&*store).await;
    corrections(&*store).await;
    usage(&*store).await;
    claims(&*store).await;
    let first = store.beat("a", Duration::from_secs(60)).await.unwrap();
    let second = store.beat("b", Duration::from_secs(60)).await.unwrap();
    assert_eq!((first.instances, second.instances), (1, 2));
    assert_eq!(first.epoch, second.epoch);
    assert!(second.now.abs_diff(now()) <= 2);
}

async fn buckets(store: &dyn Store) {
    let calls = (0..200).map(|_| store.cells(vec![cells("tb:{acme}:r", 1)]));
    let taken: u64 = join_all(calls).await.into_iter().map(|taken| taken.unwrap()[0].granted).sum();
    assert_eq!(taken, 10, "200 at once at a limit of 10");
    let given_back = store.cells(vec![cells("tb:{acme}:r", -4)]).await.unwrap();
    assert_eq!(given_back[0].granted, 0);
    let taken = store.cells(vec![cells("tb:{acme}:r", 9), cells("tb:{globex}:r", 3)]).await.unwrap();
    assert_eq!((taken[0].granted, taken[1].granted), (4, 3));
    assert!(taken[0].debt_us > 35_900_000_000, "{taken:?}");
}

async fn sums(store: &dyn Store) {
    let calls = (0..50).map(|n| granted(store, vec![part("runs", &format!("i{n}"), 0, 1, Some(10))]));
    assert_eq!(join_all(calls).await.into_iter().filter(|granted| *granted).count(), 10);
    assert!(granted(store, vec![part("runs", "i0", 0, 0, Some(10))]).await, "stating less is always possible");

    let both = |want| vec![part("slots", "a", 0, 1, Some(1)), part("tokens", "a", 100, want, Some(1_000))];
    assert!(granted(store, vec![part("tokens", "b", 850, 0, None)]).await);
    let held = store.hold(vec![both(500)]).await.unwrap();
    let shares = vec![Share { granted: 1, others: 0 }, Share { granted: 50, others: 850 }];
    assert_eq!(held, [Held { granted: true, shares }], "what is left is granted");
    let full = vec![part("slots", "c", 0, 1, Some(1)), part("tokens", "c", 0, 1, Some(2_000))];
    let held = store.hold(vec![full]).await.unwrap();
    assert!(!held[0].granted && held[0].shares[1].granted == 1, "all or none: {held:?}");
    let held = store.hold(vec![vec![part("tokens", "d", 0, 1, Some(1_001))]]).await.unwrap();
    assert_eq!(held[0].shares, [Share { granted: 1, others: 1_000 }], "the refused group added nothing");

    let gone = Part { expires: now() - 1, ..part("late", "a", 99, 0, None) };
    assert!(granted(store, vec![gone]).await);
    let held = store.hold(vec![vec![part("late", "b", 0, 5, Some(5))], Vec::new()]).await.unwrap();
    assert_eq!(held[0].shares, [Share { granted: 5, others: 0 }]);
    assert!(held[1].granted, "nothing is always granted");
}

async fn corrections(store: &dyn Store) {
    let key = || "tb:{acme}:month".to_owned();
    let ends = now() + 3_600;
    assert!(granted(store, vec![part("month", "a", 900, 0, None)]).await);
    assert_eq!(store.correct(key(), Correction::By(-500), ends).await, Ok(400));
    assert!(granted(store, vec![part("month", "b", 0, 100, Some(500))]).await);
    assert_eq!(store.correct(key(), Correction::To(0), ends).await, Ok(0));
    assert!(granted(store, vec![part("month", "a", 950, 0, None)]).await);
    assert_eq!(store.correct(key(), Correction::By(0), ends).await, Ok(50), "corrections stay when parts are stated");
}

async fn usage(store: &dyn Store) {
    let today = u32::try_from(now() / 86_400).unwrap();
    store.record("one", vec![row(today, "acme", "main/a", 1, 10), row(today, "globex", "main/a", 1, 1)]).await.unwrap();
    store.record("one", vec![row(today, "acme", "main/a", 2, 25)]).await.unwrap();
    store
        .record("two", vec![row(today, "acme", "main/a", 1, 5), row(today - 1, "acme", "main/b", 1, 1)])
        .await
        .unwrap();
    let sum = UsageRow { micros: 14, ..row(today, "acme", "main/a", 3, 30) };
    let all = [row(today - 1, "acme", "main/b", 1, 1), sum.clone(), row(today, "globex", "main/a", 1, 1)];
    assert_eq!(store.usage(None, today - 1, today).await.unwrap(), all);
    assert_eq!(store.usage(Some("acme"), today, today).await.unwrap(), [sum]);
    assert_eq!(store.usage(Some("nobody"), 0, today).await.unwrap(), []);
}

async fn claims(store: &dyn Store) {
    let minute = Duration::from_secs(60);
    let claims = join_all(["a", "b", "c", "d"].map(|owner| store.claim("run", owner, minute))).await;
    assert_eq!(claims.iter().filter(|claimed| **claimed == Ok(true)).count(), 1);
    let owner = ["a", "b", "c", "d"][claims.iter().position(|claimed| *claimed == Ok(true)).unwrap()];
    assert_eq!(store.claim("run", owner, minute).await, Ok(true), "an owner may claim again");
    assert_eq!(store.holder("run").await, Ok(Some(owner.to_owned())));
    assert_eq!(store.holder("another run").await, Ok(None));
    store.release("run", "nobody").await.unwrap();
    assert_eq!(store.claim("run", "e", minute).await, Ok(false));
    store.release("run", owner).await.unwrap();
    assert_eq!(store.holder("run").await, Ok(None));
    assert_eq!(store.claim("run", "e", minute).await, Ok(true));
}

#[tokio::test]
async fn memory_keeps_its_promises() {
    keeps_its_promises(Arc::new(MemoryStore::new())).await;
}

#[tokio::test]
async fn a_file_keeps_its_promises_and_remembers_them() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("store.redb");
    let store: Arc<dyn Store> = Arc::new(FileStore::open(&path).unwrap());
    keeps_its_promises(Arc::clone(&store)).await;
    let epoch = store.beat("a", Duration::from_secs(60)).await.unwrap().epoch;
    let today = u32::try_from(now() / 86_400).unwrap();
    let usage = store.usage(None, 0, today).await.unwrap();
    let error = FileStore::open(&path).unwrap_err().to_string();
    assert!(error.starts_with("cannot open the store `") && error.contains("already open"), "{error}");
    drop(store);

    let store = FileStore::open(&path).unwrap();
    assert_eq!(store.beat("z", Duration::from_secs(60)).await.unwrap().epoch, epoch);
    assert_eq!(store.usage(None, 0, today).await.unwrap(), usage);
    assert_eq!(store.cells(vec![cells("tb:{acme}:r", 1)]).await.unwrap()[0].granted, 0, "the bucket is still empty");
    assert!(!granted(&store, vec![part("runs", "new", 0, 1, Some(9))]).await, "the slots are still taken");
    assert_eq!(store.claim("run", "f", Duration::from_secs(60)).await, Ok(false));
    assert_eq!(store.holder("run").await, Ok(Some("e".to_owned())));
}

#[tokio::test]
async fn a_file_forgets_what_is_too_old() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("store.redb");
    let store = FileStore::open(&path).unwrap();
    let today = u32::try_from(now() / 86_400).unwrap();
    let recent = row(today - 399, "acme", "main/a", 1, 1);
    store.record("one", vec![row(today - 401, "acme", "main/a", 1, 1), recent.clone()]).await.unwrap();
    // What has expired is looked for every 4,096 calls.
    for _ in 0..4_096 {
        store.beat("one", Duration::from_secs(60)).await.unwrap();
    }
    assert_eq!(store.usage(None, 0, today).await.unwrap(), std::slice::from_ref(&recent));
    drop(store);
    assert_eq!(FileStore::open(&path).unwrap().usage(None, 0, today).await.unwrap(), [recent]);
}

#[tokio::test]
async fn redis_keeps_its_promises() {
    let server = RedisServer::start();
    keeps_its_promises(open(&Settings::Redis(server.url())).unwrap()).await;
}

#[tokio::test]
async fn redis_with_a_password_is_asked_with_it() {
    let server = RedisServer::with(&["--requirepass", "correct horse"]);
    let with = |pass: &str| Secret::new(format!("{}?pass={pass}", server.url().expose_str().unwrap()));
    let store = RedisStore::new(&with("correct%20horse")).unwrap();
    assert_eq!(store.claim("run", "a", Duration::from_secs(60)).await, Ok(true));
    let error = RedisStore::new(&with("wrong")).unwrap().claim("run", "a", Duration::from_secs(60)).await.unwrap_err();
    assert!(error.0.starts_with("Redis: ") && !error.0.contains("wrong"), "{error}");
}

#[tokio::test]
async fn a_redis_that_was_lost_is_asked_again_and_is_known_to_be_another() {
    let mut server = RedisServer::start();
    let store = RedisStore::new(&server.url()).unwrap();
    let before = store.beat("a", Duration::from_secs(60)).await.unwrap();
    server.kill();
    assert!(store.beat("a", Duration::from_secs(60)).await.is_err());
    server.revive();
    // The first call after the loss may still meet the dead connection.
    let _ = store.beat("a", Duration::from_secs(60)).await;
    let after = store.beat("a", Duration::from_secs(60)).await.unwrap();
    assert_ne!(before.epoch, after.epoch);
}

#[tokio::test]
async fn tls_is_spoken_where_the_url_says_so() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let store = RedisStore::new(&Secret::new(format!("rediss://127.0.0.1:{port}"))).unwrap();
    let (answer, hello) = tokio::join!(store.beat("a", Duration::from_secs(60)), async {
        use tokio::io::AsyncReadExt as _;
        let mut hello = [0; 3];
        listener.accept().await.unwrap().0.read_exact(&mut hello).await.unwrap();
        hello
    });
    assert_eq!(hello, [0x16, 3, 1], "a TLS handshake (RFC 8446 §5.1), and no command in the clear");
    assert!(answer.is_err());
}

#[test]
fn urls_are_checked_without_connecting_and_never_repeated() {
    for good in [
        "redis://127.0.0.1:6379",
        "rediss://user:pass@redis.internal:6380/2",
        "unix:///run/redis.sock",
        "redis+cluster://:pass@a:1,b:2",
        "rediss+cluster://a:1",
        "redis+sentinel://user:pass@a:26379,b:26379/mymaster?db=3",
        "rediss+sentinel://a:26379/mymaster",
    ] {
        assert!(RedisStore::new(&Secret::new(good)).is_ok(), "{good}");
    }
    for (bad, said) in [
        ("127.0.0.1:6379", "it has no scheme such as `redis://`"),
        ("http://hunter2@x", "Redis URL did not parse"),
        ("redis+sentinel://:hunter2@a:26379", "it lacks the name of the service: `…/mymaster`"),
        ("redis+sentinel://:hunter2@a/mymaster", "one of its addresses is not `host:port`"),
        ("redis+ring://:hunter2@a:1", "its scheme is none of redis, rediss, unix, redis+cluster, redis+sentinel"),
    ] {
        let error = RedisStore::new(&Secret::new(bad)).unwrap_err().to_string();
        assert!(!error.contains("hunter2"), "{error}");
        assert!(error.starts_with("cannot use the URL of the store: "), "{error}");
        assert!(bad.starts_with("http") || error.ends_with(said), "{bad}: {error}");
    }
}

/// Not a test of its own: the process that is killed. It states ever larger parts and says each that is on disk.
#[tokio::test]
async fn child_of_the_kill_test() {
    let Some(path) = std::env::var_os(CHILD) else { return };
    let store = FileStore::open(Path::new(&path)).unwrap();
    let before = read(&store, "sum").await;
    for n in before + 1.. {
        assert!(granted(&store, vec![part("sum", "life", n, 0, None), part("twin", "life", n, 0, None)]).await);
        writeln!(std::io::stdout(), "said {n}").unwrap();
    }
}

#[tokio::test]
async fn what_a_file_said_it_kept_survives_a_kill_at_any_moment() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("store.redb");
    for round in 1..=12_usize {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "stores::child_of_the_kill_test", "--nocapture"])
            .env(CHILD, &path)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        // Another number of writes in each round, and then wherever the child happens to be.
        let said = |line: &str| line.strip_prefix("said ").and_then(|n| n.parse::<i64>().ok());
        let mut heard = lines.by_ref().filter_map(|line| said(&line.unwrap()));
        let last = heard.nth(round * 7 % 23).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        let last = heard.last().unwrap_or(last);

        let store = FileStore::open(&path).unwrap();
        let (sum, twin) = (read(&store, "sum").await, read(&store, "twin").await);
        assert_eq!(sum, twin, "round {round}: what changes together is kept together");
        assert!((last..=last + 1).contains(&sum), "round {round}: said {last}, kept {sum}");
    }
}
