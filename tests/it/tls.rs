//! Proves TLS beyond HTTP/2: certificates by server name, client certificates as callers, and their reload.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rcgen::{CertificateParams, DnType, KeyPair, SanType};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_rustls::client::TlsStream;

use crate::stack::{Ask, Settings, Stack, Who, within};

/// A certificate of a test with its key, in files.
struct Made {
    certificate: PathBuf,
    key: PathBuf,
    der: CertificateDer<'static>,
}

fn make(folder: &Path, file: &str, names: Vec<SanType>) -> Made {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.subject_alt_names = names;
    params.distinguished_name.push(DnType::CommonName, file);
    let made = params.self_signed(&key).unwrap();
    let (certificate, key_file) = (folder.join(format!("{file}.pem")), folder.join(format!("{file}.key")));
    std::fs::write(&certificate, made.pem()).unwrap();
    std::fs::write(&key_file, key.serialize_pem()).unwrap();
    Made { certificate, key: key_file, der: made.der().clone() }
}

fn dns(name: &str) -> SanType {
    SanType::DnsName(name.try_into().unwrap())
}

fn uri(name: &str) -> SanType {
    SanType::URI(name.try_into().unwrap())
}

fn pair(made: &Made) -> String {
    format!("certificate = {:?}, key = {:?}", made.certificate, made.key)
}

fn settings(tls: &str) -> Settings {
    Settings::new().set("[server]", "tls", &format!("{{ {tls} }}")).set(
        "[server]",
        "public_url",
        "\"https://localhost\"",
    )
}

/// A client that trusts these, with a certificate of its own or without.
async fn connect(stack: &Stack, name: &str, trusted: &[&Made], own: Option<&Made>) -> Option<TlsStream<TcpStream>> {
    let mut roots = rustls::RootCertStore::empty();
    trusted.iter().for_each(|made| roots.add(made.der.clone()).unwrap());
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let config = config.with_root_certificates(roots);
    let config = match own {
        None => config.with_no_client_auth(),
        Some(own) => {
            let key = PrivateKeyDer::from_pem_file(&own.key).unwrap();
            config.with_client_auth_cert(vec![own.der.clone()], key).unwrap()
        }
    };
    let stream = TcpStream::connect(stack.address()).await.unwrap();
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let name = ServerName::try_from(name.to_owned()).unwrap();
    within("a TLS handshake", connector.connect(name, stream)).await.ok()
}

fn shown(stream: &TlsStream<TcpStream>) -> CertificateDer<'static> {
    stream.get_ref().1.peer_certificates().unwrap()[0].clone()
}

/// Sends one request over a connection; `None` when it was closed instead of answered.
async fn send(stream: TlsStream<TcpStream>, ask: Ask) -> Option<(u16, String)> {
    let mut request = ask.into_request();
    request.headers_mut().insert("host", "localhost".parse().unwrap());
    within("an answer", async {
        let (mut sender, connection) = http1::handshake::<_, Full<bytes::Bytes>>(TokioIo::new(stream)).await.ok()?;
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let _ = connection.await;
        });
        let response = sender.send_request(request).await.ok()?;
        let status = response.status().as_u16();
        let body = response.into_body().collect().await.ok()?.to_bytes();
        Some((status, String::from_utf8_lossy(&body).into_owned()))
    })
    .await
}

#[tokio::test]
async fn the_certificate_is_the_one_of_the_name_that_is_asked_for() {
    let folder = TempDir::new().unwrap();
    let default = make(folder.path(), "default", vec![dns("localhost")]);
    let exact = make(folder.path(), "exact", vec![dns("One.example"), dns("two.example")]);
    let wild = make(folder.path(), "wild", vec![dns("*.example.com")]);
    let more = format!("{}, certificates = [{{ {} }}, {{ {} }}]", pair(&default), pair(&exact), pair(&wild));
    let stack = Stack::with(settings(&more)).await;
    let all = [&default, &exact, &wild];
    for (name, made) in
        [("localhost", &default), ("one.example", &exact), ("TWO.example", &exact), ("a.example.com", &wild)]
    {
        let stream = connect(&stack, name, &all, None).await.unwrap_or_else(|| panic!("{name}"));
        assert_eq!(shown(&stream), made.der, "{name}");
    }
    // A wildcard stands for one label, and whoever asks for a stranger gets the first one, which does not fit.
    for name in ["a.b.example.com", "example.com", "else.example"] {
        assert!(connect(&stack, name, &all, None).await.is_none(), "{name}");
    }
    // Two for one host, or one for none: nothing is served, and nothing changes.
    let nameless = make(folder.path(), "nameless", vec![uri("spiffe://x")]);
    let twice = make(folder.path(), "twice", vec![dns("two.example")]);
    for (bad, why) in [(&nameless, "names no host"), (&twice, "is for `two.example`, as another certificate is")] {
        stack.configure(&settings(&format!(
            "{}, certificates = [{{ {} }}, {{ {} }}]",
            pair(&default),
            pair(&exact),
            pair(bad)
        )));
        let error = stack.running.reload().await.unwrap_err().to_string();
        assert!(error.contains(why), "{error}");
    }
    assert!(connect(&stack, "a.example.com", &all, None).await.is_some());
}

#[tokio::test]
async fn certificates_are_reloaded_and_open_connections_go_on() {
    let folder = TempDir::new().unwrap();
    let old = make(folder.path(), "server", vec![dns("localhost")]);
    let stack = Stack::with(settings(&pair(&old))).await;
    let before = connect(&stack, "localhost", &[&old], None).await.unwrap();
    let new = make(folder.path(), "server", vec![dns("localhost")]);
    stack.running.reload().await.unwrap();
    assert!(connect(&stack, "localhost", &[&old], None).await.is_none());
    let after = connect(&stack, "localhost", &[&new], None).await.unwrap();
    for stream in [before, after] {
        assert_eq!(send(stream, Ask::get("/agents").by(&Who::alice())).await.unwrap().0, 200);
    }
    // A key that does not fit changes nothing.
    std::fs::write(&new.key, KeyPair::generate().unwrap().serialize_pem()).unwrap();
    assert!(stack.running.reload().await.is_err());
    assert!(connect(&stack, "localhost", &[&new], None).await.is_some());
}

fn holder(settings: Settings, name: &str) -> Settings {
    settings.add(
        "[[identity.certificates]]",
        &[("id", "\"billing\""), ("name", name), ("tenant", "\"acme\""), ("roles", "[\"operator\"]")],
    )
}

#[tokio::test]
async fn a_client_certificate_is_a_caller_where_the_configuration_says_whose() {
    let folder = TempDir::new().unwrap();
    let server = make(folder.path(), "server", vec![dns("localhost")]);
    let billing = make(folder.path(), "billing", vec![uri("spiffe://acme/billing"), dns("billing.example")]);
    let tls = format!("{}, client_ca = {:?}, client_certificate = \"optional\"", pair(&server), billing.certificate);
    let stack = Stack::with(holder(settings(&tls), "\"uri:spiffe://acme/billing\"")).await;
    let ask = async |own: Option<&Made>, ask: Ask| {
        let stream = connect(&stack, "localhost", &[&server], own).await?;
        send(stream, ask).await
    };
    let agents = Ask::get("/agents").header("x-request-id", "billed");
    let (status, _) = ask(Some(&billing), agents).await.unwrap();
    assert_eq!(status, 200);
    let line = stack.access_line("billed").await;
    assert!(line.to_string().contains("cert:billing"), "{line}");
    // Over MCP as well, and the run belongs to it.
    let run = Ask::run("assistant").field("message", "hi").field("stream", "false");
    assert_eq!(ask(Some(&billing), run).await.unwrap().0, 200);
    assert_eq!(stack.os().requests_to("/agents/assistant/runs")[0].form().get("user_id"), Some("acme~cert:billing"));
    // A token on the same connection wins, also a bad one.
    assert_eq!(ask(Some(&billing), Ask::get("/agents").bearer("nonsense")).await.unwrap().0, 401);
    let alice = Ask::get("/agents").by(&Who::alice()).header("x-request-id", "alice");
    assert_eq!(ask(Some(&billing), alice).await.unwrap().0, 200);
    assert!(stack.access_line("alice").await.to_string().contains("alice"));
    // A browser shows it by itself: where a page of a stranger asks, it is nobody's.
    let page = |name: &'static str, value: &'static str| Ask::get("/agents").header(name, value);
    for (name, value, expected) in [
        ("origin", "https://evil.example", 401),
        ("origin", "null", 401),
        ("sec-fetch-site", "cross-site", 401),
        ("sec-fetch-site", "none", 200),
    ] {
        assert_eq!(ask(Some(&billing), page(name, value)).await.unwrap().0, expected, "{name}: {value}");
    }
    // Without either nobody is known, and a certificate of another authority ends the handshake.
    assert_eq!(ask(None, Ask::get("/agents")).await.unwrap().0, 401);
    let forged = make(folder.path(), "forged", vec![uri("spiffe://acme/billing")]);
    assert_eq!(ask(Some(&forged), Ask::get("/agents")).await, None);
    // What is not configured is nobody.
    stack.configure(&holder(settings(&tls), "\"dns:other.example\""));
    stack.running.reload().await.unwrap();
    assert_eq!(ask(Some(&billing), Ask::get("/agents")).await.unwrap().0, 401);
    // Revoked by its hash.
    let subject = Settings::clone(&holder(settings(&tls), "\"subject:CN=billing\""));
    let list = folder.path().join("revoked");
    std::fs::write(&list, "").unwrap();
    stack.configure(&subject.set("[identity]", "revoked", &format!("{list:?}")));
    stack.running.reload().await.unwrap();
    assert_eq!(ask(Some(&billing), Ask::get("/agents")).await.unwrap().0, 200);
    std::fs::write(&list, "cert:billing@acme\n").unwrap();
    stack.running.reload().await.unwrap();
    assert_eq!(ask(Some(&billing), Ask::get("/agents")).await.unwrap().0, 401);
}

#[tokio::test]
async fn a_certificate_of_an_authority_that_is_gone_is_nobodys_on_open_connections() {
    let folder = TempDir::new().unwrap();
    let server = make(folder.path(), "server", vec![dns("localhost")]);
    let billing = make(folder.path(), "billing", vec![uri("spiffe://acme/billing")]);
    let other = make(folder.path(), "other", vec![uri("spiffe://acme/other")]);
    let by = |authority: &Made| {
        let tls = format!("{}, client_ca = {:?}", pair(&server), authority.certificate);
        holder(settings(&format!("{tls}, client_certificate = \"optional\"")), "\"uri:spiffe://acme/billing\"")
    };
    let stack = Stack::with(by(&billing)).await;
    let stream = connect(&stack, "localhost", &[&server], Some(&billing)).await.unwrap();
    let (mut sender, connection) = http1::handshake::<_, Full<bytes::Bytes>>(TokioIo::new(stream)).await.unwrap();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move { drop(connection.await) });
    let mut ask = async || {
        let mut request = Ask::get("/agents").into_request();
        request.headers_mut().insert("host", "localhost".parse().unwrap());
        let response = within("an answer", sender.send_request(request)).await.unwrap();
        let status = response.status().as_u16();
        within("a body", response.into_body().collect()).await.unwrap();
        within("a free connection", sender.ready()).await.unwrap();
        status
    };
    assert_eq!(ask().await, 200);
    stack.configure(&by(&other));
    stack.running.reload().await.unwrap();
    assert_eq!(ask().await, 401);
    stack.configure(&by(&billing));
    stack.running.reload().await.unwrap();
    assert_eq!(ask().await, 200);
}
