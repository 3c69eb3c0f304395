//! Proves that every way to reach a Redis that `docs/quotas.md` names is one that works: TLS, passwords, Sentinel with
//! a failover, Cluster of three nodes.

use std::io::Write as _;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tollbridge::secret::Secret;
use tollbridge::store::{RedisStore, Settings, Store, open};

use crate::redis_server::RedisServer;
use crate::stack::within;
use crate::stores::keeps_its_promises;

/// Tells the child of the TLS test what to connect to.
const CHILD: &str = "TOLLBRIDGE_TEST_REDISS";
const MINUTE: Duration = Duration::from_secs(60);

/// A port that nobody listened on a moment ago: Redis takes no port 0, and Sentinel and Cluster no sockets.
fn free_port() -> String {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port().to_string()
}

/// A server on a port of 127.0.0.1, with further options.
fn on_port(port: &str, options: &[&str]) -> RedisServer {
    RedisServer::with(&[&["--port", port, "--bind", "127.0.0.1"], options].concat())
}

fn store(url: &str) -> RedisStore {
    RedisStore::new(&Secret::new(url)).unwrap()
}

#[tokio::test]
async fn user_and_password_in_a_url_are_used() {
    let port = free_port();
    let acl = ["--user", "gate", "on", ">hunter2", "~tb:*", "&*", "+@all", "--requirepass", "other"];
    let _server = on_port(&port, &acl);
    let address = format!("127.0.0.1:{port}");
    for (login, fits) in [("gate:hunter2@", true), (":other@", true), ("gate:wrong@", false), ("", false)] {
        let claimed = store(&format!("redis://{login}{address}/0")).claim("run", "a", MINUTE).await;
        assert_eq!(claimed.is_ok(), fits, "{login}: {claimed:?}");
        assert!(
            !format!("{claimed:?}").contains("hunter2") && !format!("{claimed:?}").contains("wrong"),
            "{claimed:?}"
        );
    }
}

/// Not a test of its own: connects with the roots that its environment names.
#[tokio::test]
async fn child_of_the_tls_test() {
    let Some(url) = std::env::var_os(CHILD).and_then(|url| url.into_string().ok()) else { return };
    let claimed = store(&url).claim("run", "a", MINUTE).await;
    writeln!(std::io::stdout(), "claimed {claimed:?}").unwrap();
}

#[tokio::test]
async fn tls_is_spoken_with_servers_that_the_system_trusts_and_no_others() {
    let (folder, port) = (TempDir::new().unwrap(), free_port());
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let [ours, other] = [(); 2].map(|()| rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap());
    let (certificate, key) = (file("a.pem", &ours.cert.pem()), file("a.key", &ours.signing_key.serialize_pem()));
    let stranger = file("b.pem", &other.cert.pem());
    let tls = ["--port", "0", "--tls-port", &port, "--tls-auth-clients", "no"];
    let files = ["--tls-cert-file", &certificate, "--tls-key-file", &key, "--tls-ca-cert-file", &certificate];
    let _server = RedisServer::with(&[&tls[..], &files[..]].concat());
    let claimed = |roots: &str, host: &str| {
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "redis_kinds::child_of_the_tls_test", "--nocapture"])
            .env(CHILD, format!("rediss://{host}:{port}"))
            .env("SSL_CERT_FILE", roots)
            .stderr(Stdio::null())
            .output()
            .unwrap();
        String::from_utf8(output.stdout).unwrap().contains("claimed Ok(true)")
    };
    assert!(claimed(&certificate, "localhost"));
    assert!(!claimed(&stranger, "localhost"), "a certificate of nobody known");
    assert!(!claimed(&certificate, "127.0.0.1"), "a certificate for another name");
}

#[tokio::test]
async fn a_cluster_of_three_nodes_keeps_its_promises() {
    let ports = [free_port(), free_port(), free_port()];
    let buses = [free_port(), free_port(), free_port()];
    let node = |(port, bus): (&String, &String)| {
        let cluster = ["--cluster-enabled", "yes", "--cluster-port", bus, "--requirepass", "hunter2"];
        on_port(port, &cluster)
    };
    let nodes: Vec<RedisServer> = ports.iter().zip(&buses).map(node).collect();
    let addresses = ports.each_ref().map(|port| format!("127.0.0.1:{port}"));
    let mut create = Command::new("redis-cli");
    create.args(["--no-auth-warning", "-a", "hunter2", "--cluster", "create"]).args(&addresses).arg("--cluster-yes");
    let created = create.output().unwrap();
    assert!(created.status.success(), "{}", String::from_utf8_lossy(&created.stdout));

    let url = |login: &str| Secret::new(format!("redis+cluster://{login}{}", addresses[..2].join(",")));
    assert!(RedisStore::new(&url("")).unwrap().claim("run", "a", MINUTE).await.is_err(), "without the password");
    let store = open(&Settings::Redis(url(":hunter2@"))).unwrap();
    // The nodes agree a moment after they were told.
    within("the cluster", async { while store.claim("ready", "a", MINUTE).await.is_err() {} }).await;
    keeps_its_promises(store).await;
    drop(nodes);
}

/// Asks a server until it says something.
fn until_said(port: &str, words: &[&str], answer: &str) {
    let patience = Instant::now() + MINUTE;
    loop {
        let mut ask = Command::new("redis-cli");
        ask.args(["--no-auth-warning", "-a", "hunter2", "-p", port]).args(words).stderr(Stdio::null());
        let said = String::from_utf8(ask.output().unwrap().stdout).unwrap();
        if said.contains(answer) {
            return;
        }
        assert!(Instant::now() < patience, "{words:?} said {said}");
    }
}

/// A sentinel that watches one master.
fn sentinel(folder: &Path, port: &str, master: &str) -> std::process::Child {
    let file = folder.join("sentinel.conf");
    let text = format!(
        "port {port}\nbind 127.0.0.1\ndir {}\nsentinel monitor mymaster 127.0.0.1 {master} 1\n\
         sentinel auth-pass mymaster hunter2\nsentinel down-after-milliseconds mymaster 500\n\
         sentinel failover-timeout mymaster 3000\n",
        folder.display()
    );
    std::fs::write(&file, text).unwrap();
    let mut command = Command::new("redis-server");
    command.arg(&file).arg("--sentinel").stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap()
}

#[tokio::test]
async fn what_a_master_knew_is_known_after_a_sentinel_has_promoted_its_replica() {
    let (folder, ports) = (TempDir::new().unwrap(), [free_port(), free_port(), free_port()]);
    let [master_port, replica_port, sentinel_port] = &ports;
    let login = ["--requirepass", "hunter2", "--masterauth", "hunter2"];
    let mut master = on_port(master_port, &login);
    let replica = on_port(replica_port, &[&login[..], &["--replicaof", "127.0.0.1", master_port]].concat());
    let direct = store(&format!("redis://:hunter2@127.0.0.1:{master_port}"));
    assert_eq!(direct.claim("run", "a", MINUTE * 10).await, Ok(true));
    until_said(replica_port, &["info", "replication"], "master_link_status:up");

    let mut watcher = sentinel(folder.path(), sentinel_port, master_port);
    let store = store(&format!("redis+sentinel://:hunter2@127.0.0.1:{sentinel_port}/mymaster"));
    within("the sentinel", async { while store.claim("run", "b", MINUTE).await != Ok(false) {} }).await;
    assert_eq!(store.claim("walk", "a", MINUTE * 10).await, Ok(true));
    // Of a master that is gone nobody learns which replicas it had.
    until_said(sentinel_port, &["sentinel", "replicas", "mymaster"], replica_port);
    until_said(replica_port, &["get", "tb:walk"], "a");
    master.kill();
    within("the failover", async { while store.claim("walk", "a", MINUTE * 10).await.is_err() {} }).await;
    assert_eq!(store.claim("run", "b", MINUTE).await, Ok(false), "the claim was kept");
    watcher.kill().unwrap();
    watcher.wait().unwrap();
    drop(replica);
}
