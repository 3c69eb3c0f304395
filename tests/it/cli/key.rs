//! Proves `tollbridge key new`.

use sha2::{Digest as _, Sha256};

use super::Desk;

fn sha256(text: &str) -> String {
    Sha256::digest(text.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn a_new_key_is_shown_once_and_its_record_is_a_valid_configuration() {
    let desk = Desk::new("http://127.0.0.1:9", "");
    let words = ["key", "new", "--id", "ci", "--tenant", "acme", "--role", "operator", "--scope", "agents:run"];
    let said = desk.run(&[&words[..], &["--expires", "90d"]].concat());
    assert_eq!(said.code, 0, "{said:?}");
    let key = said.out.trim_end();
    assert!(key.starts_with("tb_") && key.len() == 46 && said.out.lines().count() == 1, "{said:?}");
    assert!(!said.err.contains(key), "the key belongs to stdout alone: {said:?}");
    let block = &said.err[said.err.find("[[identity.api_keys]]").unwrap()..];
    assert!(block.contains(&format!("sha256 = \"{}\"", sha256(key))), "{block}");
    assert!(block.contains("roles = [\"operator\"]\nscopes = [\"agents:run\"]\nexpires_at = 2"), "{block}");
    let with_key = Desk::new("http://127.0.0.1:9", block);
    let checked = with_key.run(&["check"]);
    assert_eq!(checked.code, 0, "{checked:?}");
    let again = with_key.run(&words);
    assert_eq!((again.code, again.out.as_str()), (1, ""), "{again:?}");
    assert!(again.err.contains("the API key id `ci` is already used"), "{again:?}");
}

#[test]
fn a_new_key_can_be_printed_as_json_without_any_configuration() {
    let desk = Desk::new("http://127.0.0.1:9", "");
    std::fs::remove_file(desk.file("config.toml")).unwrap();
    let one = desk.run(&["key", "new", "--id", "ci", "--tenant", "acme", "--format", "json"]).json();
    let two = desk.run(&["key", "new", "--id", "ci", "--tenant", "acme", "--format", "json"]).json();
    assert_eq!(one["sha256"], sha256(one["key"].as_str().unwrap()));
    assert_ne!(one["key"], two["key"]);
    assert_eq!(one["expires_at"], serde_json::Value::Null);
}

#[test]
fn a_key_that_could_not_be_used_is_not_made() {
    let desk = Desk::new("http://127.0.0.1:9", "");
    for (id, tenant, expires, wrong) in [
        ("a b", "acme", "1d", "--id: `a b` must be"),
        ("ci", "a~b", "1d", "tenant name `a~b` must be"),
        ("ci", "acme", "soon", "--expires: "),
    ] {
        let said = desk.run(&["key", "new", "--id", id, "--tenant", tenant, "--expires", expires]);
        assert_eq!((said.code, said.out.as_str()), (2, ""), "{said:?}");
        assert!(said.err.starts_with(wrong), "{said:?}");
    }
}
