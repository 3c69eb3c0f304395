//! Proves clusters as a whole: who may use which, what AgentOS is shown, probes, reloads, settings.

use std::sync::Mutex;
use std::time::{Duration, UNIX_EPOCH};

use aws_lc_rs::encoding::AsDer as _;
use aws_lc_rs::signature::{self, KeyPair as _, UnparsedPublicKey};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use futures_util::future::join;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use super::*;
use crate::agentos::Catalog;
use crate::agentos::operation::*;
use crate::outbound::Client;
use crate::principal::PrincipalKind;

const SECRET: &str = "0123456789abcdef";

fn tenant(name: &str) -> TenantId {
    TenantId::new(name).unwrap()
}

fn settings(name: &str, tenants: &[&str]) -> Settings {
    Settings {
        name: name.into(),
        hosts: Vec::new(),
        endpoints: vec!["http://127.0.0.1:1".parse().unwrap(), "http://127.0.0.1:2".parse().unwrap()],
        balance: Balance::LeastRequests,
        user_id: UserIdTemplate::default(),
        credential: CredentialSettings::None,
        knowledge: Knowledge::Unset,
        health: Health::default(),
        timeouts: Timeouts::default(),
        load: Load::default(),
        dns: None,
        ejection: Ejection::default(),
        retries: Retries::default(),
        streams: Streams::default(),
        tenants: tenants.iter().map(|name| tenant(name)).collect(),
        open: false,
    }
}

fn table(rows: &[(&str, &[&str])]) -> BTreeMap<TenantId, Vec<Arc<str>>> {
    rows.iter().map(|(name, clusters)| (tenant(name), clusters.iter().map(|c| Arc::from(*c)).collect())).collect()
}

fn secrets() -> Vec<Secret> {
    vec![Secret::new(SECRET)]
}

fn one(settings: Settings) -> Arc<Cluster> {
    let clusters = Clusters::new(vec![settings], &table(&[]), &secrets()).unwrap();
    Arc::clone(clusters.iter().next().unwrap())
}

fn operation(resource: Resource, action: Action, path: &'static str, scopes: &'static [&'static str]) -> Operation {
    let new = Operation::new("test", Method::Get, path);
    Operation { resource, action, scopes, reach: Reach::Owned, ..new }
}

fn run_row() -> Operation {
    operation(Resource::Agent, Action::Run, "/agents/{agent_id}/runs", &["agents:run"])
}

fn alice(cluster: &Cluster) -> UpstreamUser {
    let principal = Principal::new(PrincipalKind::User, "alice", tenant("acme"), vec![], vec![], None, None);
    cluster.upstream_user(&principal).unwrap()
}

#[test]
fn clusters_are_chosen_by_host_then_header_then_default() {
    let mut main = settings("main", &["acme", "umbrella"]);
    main.hosts = vec!["Agents.Example.com".into()];
    let lab = settings("lab", &["acme"]);
    let tenants = table(&[("acme", &["lab", "main"]), ("umbrella", &["main"]), ("poor", &[])]);
    let opened = Settings { open: true, ..main.clone() };
    let clusters = Clusters::new(vec![main, lab.clone()], &tenants, &secrets()).unwrap();
    let choose = |host, header, name| clusters.choose(host, header, &tenant(name)).map(|c| c.name().to_string());
    let ok = |name: &str| Ok(name.to_owned());
    for (host, header, caller, expected) in [
        (None, None, "acme", ok("lab")),
        (None, None, "umbrella", ok("main")),
        (None, Some("main"), "acme", ok("main")),
        (Some("agents.example.COM."), Some("lab"), "acme", ok("main")),
        (Some("other.example.com"), Some("main"), "acme", ok("main")),
        (Some("other.example.com"), None, "acme", ok("lab")),
        // Foreign and unknown ones are the same answer.
        (None, Some("lab"), "umbrella", Err(ClusterUnknown)),
        (None, Some("nowhere"), "umbrella", Err(ClusterUnknown)),
        (Some("agents.example.com"), None, "poor", Err(ClusterUnknown)),
        (None, None, "poor", Err(ClusterUnknown)),
        (None, None, "stranger", Err(ClusterUnknown)),
        (None, Some("main"), "stranger", Err(ClusterUnknown)),
    ] {
        assert_eq!(choose(host, header, caller), expected, "{host:?} {header:?} {caller}");
    }
    let clusters = Clusters::new(vec![opened, lab], &tenants, &secrets()).unwrap();
    assert_eq!(clusters.named("main", &tenant("stranger")).unwrap().name().as_ref(), "main");
    assert_eq!(clusters.named("lab", &tenant("stranger")).unwrap_err(), ClusterUnknown);
    assert_eq!(clusters.choose(None, None, &tenant("poor")).unwrap_err(), ClusterUnknown);
}

#[test]
fn every_problem_is_reported_at_once() {
    let mut first = settings("main", &["acme", "umbrella"]);
    first.hosts = vec!["a.example".into()];
    first.user_id = UserIdTemplate::parse("{subject}").unwrap();
    first.knowledge = Knowledge::Exclusive;
    let mut second = settings("main", &[]);
    second.hosts = vec!["A.example".into()];
    second.endpoints = vec![];
    second.health.path = "health".into();
    let mut third = settings("third", &[]);
    third.endpoints = vec!["http://a:1".parse().unwrap(), "http://A:1".parse().unwrap()];
    third.credential = CredentialSettings::Bearer(Secret::new("line\nbreak"));
    let mut fourth = settings("fourth", &[]);
    let (algorithm, key) = (MintAlgorithm::RS256, Secret::new("shared secret"));
    fourth.credential = CredentialSettings::Mint { algorithm, key, audience: "os".into() };
    let tenants = table(&[("acme", &["main", "gone"])]);
    let errors = Clusters::new(vec![first, second, third, fourth], &tenants, &[Secret::new("short")]).unwrap_err();
    let expected = "\
a secret of the server has 5 bytes; 16 are the least
several tenants may use cluster `main`, but its `user_id` does not name the tenant
several tenants may use cluster `main`, but its knowledge is `exclusive`
two clusters are named `main`
host `a.example` leads to both cluster `main` and cluster `main`
cluster `main` has no endpoints
health path `health` of cluster `main` must be a path such as `/health`
cluster `third` has the endpoint `http://a:1` twice
tenant `acme` names the cluster `gone`, which does not exist
cluster `third`: the bearer token is empty or holds characters that a header cannot carry
cluster `fourth`: `RS256` needs a private key in PEM form";
    assert_eq!(errors.to_string(), expected);
    let none = Clusters::new(vec![], &table(&[]), &[]).unwrap_err();
    assert_eq!(none, SettingsErrors(vec![SettingsError::NoSecret]));
}

#[test]
fn callers_are_named_and_recognised() {
    let cluster = one(settings("main", &["acme"]));
    assert_eq!(alice(&cluster).as_str(), "acme~alice");
    assert_eq!(cluster.caller_of("acme~alice", &tenant("acme")), Some("alice".to_owned()));
    assert_eq!(cluster.caller_of("acme~alice", &tenant("umbrella")), None);
}

#[test]
fn run_ids_carry_their_endpoint_and_owner() {
    let cluster = one(settings("main", &["acme"]));
    let picked = cluster.pick(Want::Any).unwrap();
    let (user, id) = (alice(&cluster), cluster.mint_run_id(&alice(&cluster), picked.endpoint()).to_string());
    let tag = cluster.read_run_id(&id, &user).unwrap();
    assert_eq!(cluster.pick(Want::Tag(tag)).unwrap().endpoint().address, picked.endpoint().address);
    let bob = UserIdTemplate::default().render(&tenant("acme"), "bob").unwrap();
    for (text, user) in
        [(id.as_str(), &bob), (&id.to_uppercase(), &user), (&id.replace('-', ""), &user), ("nope", &user)]
    {
        assert_eq!(cluster.read_run_id(text, user), None, "{text}");
    }
    assert_eq!(one(settings("lab", &["acme"])).read_run_id(&id, &user), None);
}

// === what AgentOS is shown ===

fn minting(algorithm: MintAlgorithm, key: impl Into<Vec<u8>>) -> Arc<Cluster> {
    let credential = CredentialSettings::Mint { algorithm, key: Secret::new(key), audience: "my-os".into() };
    one(Settings { credential, ..settings("main", &["acme"]) })
}

fn at(seconds: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(seconds)
}

/// Splits a token into signed text, claims and signature.
fn parts(value: &HeaderValue) -> (String, Value, Value, Vec<u8>) {
    assert!(value.is_sensitive());
    let token = value.to_str().unwrap().strip_prefix("Bearer ").unwrap();
    let (signed, signature) = token.rsplit_once('.').unwrap();
    let (header, claims) = signed.split_once('.').unwrap();
    let json = |text| serde_json::from_slice(&URL_SAFE_NO_PAD.decode(text).unwrap()).unwrap();
    (signed.to_owned(), json(header), json(claims), URL_SAFE_NO_PAD.decode(signature).unwrap())
}

#[test]
fn minted_tokens_name_the_user_and_the_row_s_scopes() {
    let cluster = minting(MintAlgorithm::HS256, "k");
    let value = cluster.authorization(&alice(&cluster), &run_row(), Some("caller's"), at(1000)).unwrap();
    let (_, header, claims, _) = parts(&value);
    assert_eq!(header, json!({"alg": "HS256", "typ": "JWT"}));
    let expected = json!({"iss": "tollbridge", "sub": "acme~alice", "aud": "my-os", "iat": 970, "exp": 1300,
        "scopes": ["agents:run", "agents:read"]});
    assert_eq!(claims, expected);
    let (_, _, lookup, _) = parts(&cluster.lookup_authorization(None, at(1000)).unwrap());
    let expected = json!({"iss": "tollbridge", "aud": "my-os", "iat": 970, "exp": 1300, "scopes": ["agent_os:admin"]});
    assert_eq!(lookup, expected);
}

#[test]
fn rows_that_agentos_guards_again_get_what_it_asks_for() {
    let cluster = minting(MintAlgorithm::HS256, "k");
    let catalog = Catalog::shipped();
    for (id, expected) in [
        ("resolve_approval", json!(["approvals:write", "agent_os:admin"])),
        ("get_approval", json!(["approvals:read", "agent_os:admin"])),
        ("list_approvals", json!(["approvals:read"])),
        (
            "create_schedule",
            json!([
                "schedules:write",
                "agents:run",
                "agents:read",
                "teams:run",
                "teams:read",
                "workflows:run",
                "workflows:read"
            ]),
        ),
        ("list_schedules", json!(["schedules:read"])),
        ("get_agents", json!(["agents:read"])),
        ("create_agent_run", json!(["agents:run", "agents:read"])),
        ("get_team_run", json!(["teams:read", "teams:run"])),
    ] {
        let value = cluster.authorization(&alice(&cluster), catalog.get(id).unwrap(), None, at(0)).unwrap();
        assert_eq!(parts(&value).2["scopes"], expected, "{id}");
    }
}

#[test]
fn minted_tokens_are_kept_until_shortly_before_they_expire() {
    let cluster = minting(MintAlgorithm::HS256, "k");
    let (user, row) = (alice(&cluster), run_row());
    let mint = |seconds| cluster.authorization(&user, &row, None, at(seconds)).unwrap();
    let first = mint(1000);
    assert_eq!(mint(1239), first);
    assert_ne!(mint(1240), first);
    let later = mint(1240);
    assert_ne!(mint(900), later, "a clock that was set back gets a token of its own time");
    let bob = UserIdTemplate::default().render(&tenant("acme"), "bob").unwrap();
    assert_ne!(cluster.authorization(&bob, &row, None, at(900)), Some(mint(900)));
}

#[test]
fn hmac_signatures_verify() {
    use aws_lc_rs::hmac;
    for (algorithm, hash) in [
        (MintAlgorithm::HS256, hmac::HMAC_SHA256),
        (MintAlgorithm::HS384, hmac::HMAC_SHA384),
        (MintAlgorithm::HS512, hmac::HMAC_SHA512),
    ] {
        let cluster = minting(algorithm, "a shared secret");
        let (signed, header, _, signature) = parts(&cluster.lookup_authorization(None, at(0)).unwrap());
        assert_eq!(header["alg"], algorithm.as_str());
        hmac::verify(&hmac::Key::new(hash, b"a shared secret"), signed.as_bytes(), &signature).unwrap();
    }
}

fn pem(label: &str, der: &[u8]) -> String {
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", STANDARD.encode(der))
}

#[test]
fn asymmetric_signatures_verify() {
    let rsa = aws_lc_rs::rsa::KeyPair::generate(aws_lc_rs::rsa::KeySize::Rsa2048).unwrap();
    let rsa_der: aws_lc_rs::encoding::Pkcs8V1Der<'_> = rsa.as_der().unwrap();
    let p256 = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    let ed25519 = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
    let cases: [(_, String, &dyn signature::VerificationAlgorithm, Vec<u8>); 3] = [
        (
            MintAlgorithm::RS256,
            pem("PRIVATE KEY", rsa_der.as_ref()),
            &signature::RSA_PKCS1_2048_8192_SHA256,
            rsa.public_key().as_ref().to_vec(),
        ),
        (
            MintAlgorithm::ES256,
            p256.serialize_pem(),
            &signature::ECDSA_P256_SHA256_FIXED,
            p256.public_key_raw().to_vec(),
        ),
        (MintAlgorithm::EdDSA, ed25519.serialize_pem(), &signature::ED25519, ed25519.public_key_raw().to_vec()),
    ];
    for (algorithm, key, verifier, public) in &cases {
        let cluster = minting(*algorithm, key.as_str());
        let (signed, header, _, signature) = parts(&cluster.lookup_authorization(None, at(0)).unwrap());
        assert_eq!(header["alg"], algorithm.as_str());
        UnparsedPublicKey::new(*verifier, public).verify(signed.as_bytes(), &signature).unwrap();
    }
    for (algorithm, key) in [(MintAlgorithm::RS256, &cases[1].1), (MintAlgorithm::ES256, &cases[2].1)] {
        let credential =
            CredentialSettings::Mint { algorithm, key: Secret::new(key.as_str()), audience: String::new() };
        let error = Credential::new(&credential).unwrap_err();
        assert_eq!(error, BadCredential::Key(BadKey::WrongKind(algorithm.as_str())));
    }
}

#[test]
fn callers_token_leaves_only_under_forward() {
    let shown = |credential, caller| {
        let cluster = one(Settings { credential, ..settings("main", &["acme"]) });
        let value = cluster.authorization(&alice(&cluster), &run_row(), caller, at(0));
        let text = |value: HeaderValue| value.to_str().unwrap().to_owned();
        (value.map(text), cluster.lookup_authorization(caller, at(0)).map(text))
    };
    let is = |text: &str| Some(text.to_owned());
    assert_eq!(shown(CredentialSettings::Forward, Some("t")), (is("Bearer t"), is("Bearer t")));
    assert_eq!(shown(CredentialSettings::Forward, Some("t\nx: y")), (None, None));
    assert_eq!(shown(CredentialSettings::Forward, None), (None, None));
    assert_eq!(shown(CredentialSettings::None, Some("t")), (None, None));
    let fixed = CredentialSettings::Bearer(Secret::new("os-key"));
    assert_eq!(shown(fixed, Some("t")), (is("Bearer os-key"), is("Bearer os-key")));
}

// === probes and reloads ===

/// Answers `requests` requests, each by path, one connection at a time.
async fn serve(listener: &TcpListener, answers: &[(&str, &str)], requests: usize) {
    for _ in 0..requests {
        let (mut socket, _) = listener.accept().await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(socket.read_u8().await.unwrap());
        }
        let path = String::from_utf8(head).unwrap().split(' ').nth(1).unwrap().to_owned();
        let (_, answer) = answers.iter().find(|(at, _)| *at == path).unwrap();
        socket.write_all(answer.as_bytes()).await.unwrap();
    }
}

const WELL: (&str, &str) = ("/health", "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}");
const ILL: (&str, &str) = ("/health", "HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n");
const V3: (&str, &str) = ("/info", "HTTP/1.1 200 OK\r\ncontent-length: 25\r\n\r\n{\"agno_version\":\"3.1.10\"}");
const V2: (&str, &str) = ("/info", "HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n");

/// One round against a server that answers so; returns (up, changed, failure) of the endpoint.
async fn round(
    cluster: &Cluster,
    listener: &TcpListener,
    answers: &[(&str, &str)],
    requests: usize,
) -> (bool, bool, Option<String>) {
    let client = Client::new(crate::outbound::Settings::default());
    let seen = Mutex::new(Vec::new());
    let report = |probed: &Probed<'_>| seen.lock().unwrap().push((probed.up, probed.changed, probed.failure.clone()));
    join(cluster.probe_round(&client, &report), serve(listener, answers, requests)).await;
    seen.into_inner().unwrap().remove(0)
}

async fn probed_cluster() -> (TcpListener, Arc<Cluster>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let origin = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
    (listener, one(Settings { endpoints: vec![origin], ..settings("main", &["acme"]) }))
}

#[tokio::test]
async fn probes_find_health_and_version() {
    let (listener, cluster) = probed_cluster().await;
    assert_eq!((cluster.version(), cluster.endpoints()[0].state()), (None, State::Unknown));
    assert_eq!(round(&cluster, &listener, &[WELL, V2], 2).await, (true, true, None));
    assert_eq!(cluster.version(), Some(Version::V2));
    assert_eq!(round(&cluster, &listener, &[WELL], 1).await, (true, false, None));
    let failure = Some("`/health` answered 503".to_owned());
    assert_eq!(round(&cluster, &listener, &[ILL], 1).await, (true, false, failure.clone()));
    assert_eq!(round(&cluster, &listener, &[ILL], 1).await, (false, true, failure.clone()));
    assert_eq!(round(&cluster, &listener, &[ILL], 1).await, (false, false, failure));
    assert_eq!(cluster.pick(Want::Any).unwrap_err(), NoEndpoint::AllDown(1));
    assert_eq!(cluster.version(), None);
    // It was upgraded meanwhile.
    assert_eq!(round(&cluster, &listener, &[WELL, V3], 2).await, (true, true, None));
    assert_eq!(cluster.version(), Some(Version::V3));
}

#[tokio::test]
async fn endpoints_that_refuse_are_found_by_probe_and_by_traffic() {
    let (listener, cluster) = probed_cluster().await;
    assert!(round(&cluster, &listener, &[WELL, V3], 2).await.0);
    let picked = cluster.pick(Want::Any).unwrap();
    (0..3).for_each(|_| picked.report(Outcome::ConnectFailed));
    assert!(cluster.pick(Want::Any).is_err());
    assert_eq!(round(&cluster, &listener, &[WELL, V3], 2).await, (true, true, None));
    drop(listener);
    let client = Client::new(crate::outbound::Settings::default());
    cluster.probe_round(&client, &|probed| assert!(probed.failure.is_some())).await;
    cluster.probe_round(&client, &|probed| assert!(!probed.up && probed.changed)).await;
}

#[tokio::test]
async fn silent_endpoints_fail_their_probe_in_time() {
    let (_listener, cluster) = probed_cluster().await;
    let mut settings = cluster.settings.clone();
    settings.health.timeout = Duration::from_millis(30);
    let cluster = one(settings);
    let client = Client::new(crate::outbound::Settings::default());
    let report = |probed: &Probed<'_>| {
        assert_eq!(probed.failure.as_deref(), Some("the document did not come within 30ms"));
    };
    cluster.probe_round(&client, &report).await;
    assert_eq!(cluster.endpoints()[0].state(), State::Down);
}

#[test]
fn reload_keeps_the_endpoints_that_stay() {
    let before = Clusters::new(vec![settings("main", &["acme"])], &table(&[]), &secrets()).unwrap();
    let old = Arc::clone(before.iter().next().unwrap());
    let held: Vec<Picked> = (0..4).map(|_| old.pick(Want::Any).unwrap()).collect();
    old.endpoints()[0].probe_failed();
    let mut changed = settings("main", &["acme"]);
    changed.endpoints = vec!["http://127.0.0.1:3".parse().unwrap(), "http://127.0.0.1:1".parse().unwrap()];
    let after = before.reload(vec![changed, settings("lab", &[])], &table(&[]), &secrets()).unwrap();
    let new = after.iter().next().unwrap();
    assert!(Arc::ptr_eq(&new.endpoints()[1], &old.endpoints()[0]));
    assert_eq!((new.endpoints()[1].in_flight(), new.endpoints()[1].is_up()), (2, false));
    assert_eq!((new.endpoints()[0].in_flight(), new.endpoints()[0].state()), (0, State::Unknown));
    let lab = after.iter().nth(1).unwrap();
    assert_eq!(lab.endpoints()[0].state(), State::Unknown, "another cluster's endpoints are its own");
    drop(held);
    assert_eq!(new.endpoints()[1].in_flight(), 0);
}

#[tokio::test]
async fn a_reload_of_the_load_keeps_the_places_that_are_taken() {
    let with = |queue_max| {
        let load = Load { runs_per_endpoint: Some(1), queue_max, ..Load::default() };
        let endpoints = vec!["http://127.0.0.1:1".parse().unwrap()];
        Settings { load, endpoints, ..settings("main", &["acme"]) }
    };
    let before = Clusters::new(vec![with(1)], &table(&[]), &secrets()).unwrap();
    let old = Arc::clone(before.iter().next().unwrap());
    let held = old.enter(&tenant("acme"), 1).await.unwrap();
    let after = before.reload(vec![with(0)], &table(&[]), &secrets()).unwrap();
    let new = after.iter().next().unwrap();
    assert_eq!(new.enter(&tenant("acme"), 1).await.unwrap_err(), Busy::QueueFull(0));
    drop(held);
    assert!(new.enter(&tenant("acme"), 1).await.unwrap().is_some());
}

#[test]
fn nothing_secret_is_printed() {
    let cluster = minting(MintAlgorithm::HS256, "hunter2");
    cluster.lookup_authorization(None, at(0)).unwrap();
    let clusters = Clusters::new(vec![cluster.settings.clone()], &table(&[]), &secrets()).unwrap();
    let printed = format!("{cluster:?} {clusters:?} {:?} {:?}", clusters.run_ids(), clusters.seal());
    assert!(!printed.contains("hunter2") && !printed.contains(SECRET), "{printed}");
}
