//! Proves what the configuration reader says: the shipped file loads, and every problem is reported
//! whole, in its place, all in one run (golden files in `tests/fixtures/config`).
//! Set `UPDATE_GOLDEN=1` to write the golden files anew.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tollbridge::config::{Config, Env as _, Problem, Problems, ProcessEnv, load, policy_cases};

/// The directory of the crate.
fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The environment that fixtures refer to.
fn env() -> BTreeMap<String, String> {
    let long = "0123456789abcdef0123456789abcdef";
    let vars = [
        ("TOLLBRIDGE_SECRET", long),
        ("TOLLBRIDGE_JWT_KEY", long),
        ("AGENTOS_JWT_KEY", long),
        ("SHORT", "hunter2"),
        ("EMPTY", ""),
        ("PUBLIC_PEM", "-----BEGIN PUBLIC KEY-----\nMFkw\n-----END PUBLIC KEY-----\n"),
    ];
    vars.map(|(name, value)| (name.to_owned(), value.to_owned())).into()
}

fn read(path: &Path) -> Result<(Config, Vec<Problem>), Problems> {
    load(path, &env())
}

/// Problems, or the warnings of a file without problems, as an operator sees them.
fn report(path: &Path) -> String {
    let text = match read(path) {
        Ok((_, warnings)) if warnings.is_empty() => "ok".to_owned(),
        Ok((_, warnings)) => format!("ok, with warnings\n{}", Problems(warnings)),
        Err(problems) => problems.to_string(),
    };
    // The directory is the machine's, not the message's.
    text.replace(&format!("{}/", path.parent().unwrap().display()), "") + "\n"
}

fn fixtures() -> Vec<PathBuf> {
    let entries = fs::read_dir(root().join("tests/fixtures/config")).unwrap();
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "toml"));
    paths.sort();
    paths
}

#[test]
fn every_problem_is_reported_whole_and_in_its_place() {
    let update = ProcessEnv.var("UPDATE_GOLDEN").is_some();
    let mut wrong = Vec::new();
    for path in fixtures() {
        let (golden, said) = (path.with_extension("errors"), report(&path));
        if update {
            fs::write(&golden, &said).unwrap();
        }
        let expected = fs::read_to_string(&golden).unwrap_or_default();
        if said != expected {
            wrong.push(format!("{}\n--- expected\n{expected}--- said\n{said}", golden.display()));
        }
    }
    assert!(wrong.is_empty(), "run again with UPDATE_GOLDEN=1 if this is meant\n{}", wrong.join("\n"));
}

#[test]
fn every_golden_file_has_its_fixture() {
    let entries = fs::read_dir(root().join("tests/fixtures/config")).unwrap();
    let paths: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    let orphan = |path: &&PathBuf| !path.with_extension("toml").exists() || !path.with_extension("errors").exists();
    assert_eq!(paths.iter().filter(orphan).collect::<Vec<_>>(), Vec::<&PathBuf>::new());
}

#[test]
fn the_shipped_configuration_loads_without_a_warning() {
    let (config, warnings) = read(&root().join("config.toml")).unwrap_or_else(|problems| panic!("{problems}"));
    assert_eq!(warnings, vec![]);
    assert_eq!(config.server.listen.to_string(), "127.0.0.1:8080");
    assert_eq!(config.admin.listen.to_string(), "127.0.0.1:9090");
    assert_eq!(config.secrets.len(), 1);
    assert_eq!(config.limits, tollbridge::gateway::Limits::default());
    assert_eq!(config.clusters.len(), 1);
    assert_eq!(&*config.clusters[0].name, "main");
    assert_eq!(config.clusters[0].endpoints.len(), 2);
    assert_eq!(config.clusters[0].tenants.iter().map(|t| t.as_str()).collect::<Vec<_>>(), ["acme", "globex"]);
    assert_eq!(config.identity.issuers[0].issuer, "https://demo.tollbridge.local");
    assert_eq!(config.cache.rules[0].ttl, Duration::from_secs(30));
    assert_eq!(config.mcp.path, "/mcp");
    assert_eq!(config.policy.dir, root().join("policies"));
}

#[test]
fn the_shipped_configuration_states_the_defaults() {
    let dir = tempfile::tempdir().unwrap();
    let shipped = fs::read_to_string(root().join("config.toml")).unwrap();
    let (full, bare) = (dir.path().join("full.toml"), dir.path().join("bare.toml"));
    fs::write(&full, &shipped).unwrap();
    fs::write(&bare, without_defaults(&shipped)).unwrap();
    let (full, bare) = (read(&full).unwrap().0, read(&bare).unwrap_or_else(|problems| panic!("{problems}")).0);
    assert_eq!(show(&bare), show(&full));
}

/// Everything but the catalogue, which both share.
fn show(config: &Config) -> String {
    let Config { server, limits, proxy, mcp, admin, clusters, tenants, .. } = config;
    let Config { identity, policy, quota, cache, telemetry, operations, .. } = config;
    format!(
        "{server:#?} {limits:#?} {proxy:#?} {mcp:#?} {admin:#?} {clusters:#?} {tenants:#?} {identity:#?} {policy:#?} \
         {quota:#?} {cache:#?} {telemetry:#?} {operations:#?}"
    )
}

/// Cuts every line of the shipped file whose key has a default.
fn without_defaults(shipped: &str) -> String {
    let defaults = [
        "listen",
        "public_url",
        "drain_timeout",
        "threads",
        "h2c",
        "header_bytes",
        "body_bytes",
        "form_field_bytes",
        "json_body_bytes",
        "connections",
        "upgrade_timeout",
        "watch",
        "compression",
        "compression_bytes_min",
        "header_fields",
        "connections_per_address",
        "body_timeout",
        "body_bytes_per_second",
        "write_timeout",
        "streams_per_connection",
        "header_timeout",
        "balance",
        "user_id",
        "path",
        "interval",
        "timeout",
        "connect",
        "response_header",
        "stream_idle",
        "stream_max",
        "unknown_tenant",
        "stream_grace",
        "leeway",
        "dir",
        "scopes",
        "store",
        "flood",
        "max_bytes",
        "enabled",
        "toolsets",
        "access_log",
        "audit_log",
        "clusters",
        "tenant",
        "roles",
    ];
    let keep = |line: &&str| !defaults.contains(&line.split_once(" = ").map_or("", |(key, _)| key));
    shipped.lines().filter(keep).collect::<Vec<_>>().join("\n")
}

#[test]
fn a_missing_file_is_one_problem_without_a_place() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("absent.toml");
    let problems = read(&path).unwrap_err().0;
    assert_eq!(problems.len(), 1);
    assert_eq!(problems[0].place, None);
    assert!(problems[0].message.starts_with("cannot be read: "), "{}", problems[0].message);
}

#[test]
fn secrets_are_read_from_files_beside_the_configuration() {
    use std::os::unix::fs::PermissionsExt as _;
    let dir = tempfile::tempdir().unwrap();
    let (path, key) = (dir.path().join("config.toml"), dir.path().join("secret"));
    let shipped = fs::read_to_string(root().join("config.toml")).unwrap();
    fs::write(&path, shipped.replacen("{ env = \"TOLLBRIDGE_SECRET\" }", "{ file = \"secret\" }", 1)).unwrap();
    fs::write(&key, "0123456789abcdef0123456789abcdef\n").unwrap();

    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
    let (config, warnings) = read(&path).unwrap();
    assert_eq!((config.secrets[0].expose(), warnings), (&b"0123456789abcdef0123456789abcdef"[..], vec![]));

    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
    let (_, warnings) = read(&path).unwrap();
    let said: Vec<_> = warnings.iter().map(|warning| (warning.message.as_str(), warning.help.as_deref())).collect();
    let expected = "`secret` in `[server]` refers to the file `secret`, which everybody may read";
    assert_eq!(said, [(expected, Some("run `chmod 600 secret`"))]);
}

#[test]
fn no_message_ever_holds_a_secret() {
    for path in fixtures() {
        let said = report(&path);
        for secret in ["hunter2", "0123456789abcdef", "sk-inline"] {
            assert!(!said.contains(secret), "{} shows `{secret}`:\n{said}", path.display());
        }
    }
}

#[test]
fn every_shipped_policy_case_is_read() {
    let entries = fs::read_dir(root().join("policies")).unwrap().map(|entry| entry.unwrap().path());
    let files: Vec<PathBuf> = entries.filter(|path| path.to_string_lossy().ends_with(".test.toml")).collect();
    assert!(!files.is_empty());
    for file in files {
        let cases = policy_cases(&file).unwrap_or_else(|problems| panic!("{problems}"));
        assert!(!cases.case.is_empty(), "{}", file.display());
    }
}

#[test]
fn a_policy_case_with_an_unknown_key_is_refused_in_its_place() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("roles.test.toml");
    fs::write(&path, "[[case]]\nname = \"a viewer reads\"\nprinciple = {}\n").unwrap();
    let said = policy_cases(&path).unwrap_err().to_string().replace(&format!("{}/", dir.path().display()), "");
    assert!(said.starts_with("roles.test.toml:3:1: unknown field `principle`, expected one of `name`"), "{said}");
}
