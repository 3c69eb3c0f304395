//! What loading refuses, and how it says so.

use super::*;

#[test]
fn the_schema_names_every_operation() {
    let schema = Policies::schema(&rows());
    for row in ROWS {
        let line = format!(
            "  action \"{}\" in [\"{}\"] appliesTo {{ principal: [User, Service], resource: [{}], context: CallContext }};\n",
            row.id, row.action, row.resource
        );
        assert!(schema.contains(&line), "{schema}");
    }
}

#[test]
fn every_problem_is_told_at_once_with_place_and_help() {
    let errors = load(&[
        (
            "a.cedar",
            "// a comment\n@id(\"typo\")\nforbid (principal, action, resource)\nwhen { resource.tenantt == principal.tenant };\n",
        ),
        ("b.cedar", "permit (principal, action == Tollbridge::Action::\"get_agentz\", resource);\n"),
        ("c.cedar", "@id(\"broken\")\npermit (principal, action resource);\n"),
        ("d.cedar", "@id(\"door\")\nforbid (principal, action, resource)\nwhen { context.door == \"mpc\" };\n"),
        (
            "e.cedar",
            "@id(\"never\")\npermit (principal, action == Tollbridge::Action::\"get_agent\", resource is Tollbridge::Session);\n",
        ),
        ("f.cedar", "@id(\"unguarded\")\npermit (principal, action, resource) when { resource.owner == \"x\" };\n"),
        ("g.cedar", "@id(\"slot\")\npermit (principal == ?principal, action, resource);\n"),
        (
            "h.cedar",
            "@id(\"door\")\npermit (principal, action, resource);\n@id(\"not plain\")\npermit (principal, action, resource);\n",
        ),
        ("shadow/a.cedar", "permit (principal, action, resource);"),
        ("ignored.cedar.example", "nonsense"),
    ]);
    assert_eq!(errors.unwrap_err(), PROBLEMS);
}

#[test]
fn a_directory_without_policies_is_refused() {
    let help = "\n       help: without a policy every call would be refused: copy the shipped `policies/` or set `dir` in `[policy]`";
    for files in [&[][..], &[("a.cedar", "// nothing yet\n")], &[("shadow/a.cedar", PERMIT_ALL)]] {
        assert_eq!(load(files).unwrap_err(), format!("policies: no policy found in `*.cedar`{help}"));
    }
    let settings = Settings { dir: "no/such/dir".into(), scopes: ScopesMode::Add };
    let error = Policies::load(&settings, &rows()).unwrap_err().to_string();
    assert_eq!(error, format!("no/such/dir: no policy found in `*.cedar`{help}"));
}

#[test]
fn files_that_cannot_be_read_are_refused() {
    let dir = written(&[("a.cedar", PERMIT_ALL), ("c.cedar/inside", "")]);
    std::fs::write(dir.path().join("b.cedar"), [0xff, 0xfe]).unwrap();
    std::fs::File::create(dir.path().join("d.cedar")).unwrap().set_len(2 * 1024 * 1024).unwrap();
    let settings = Settings { dir: dir.path().to_owned(), scopes: ScopesMode::Add };
    let errors = Policies::load(&settings, &rows()).unwrap_err();
    let told = errors.to_string().replace(&dir.path().display().to_string(), "policies");
    let expected = "policies/b.cedar: cannot be read: stream did not contain valid UTF-8
policies/c.cedar: cannot be read: Is a directory (os error 21)
policies/d.cedar: is 2097152 bytes long: a policy file may have 1048576";
    assert_eq!(told, expected);
}

#[test]
fn operation_ids_that_break_the_schema_are_refused() {
    static GROUP: Operation = row("read", Resource::Os, Action::Read, Reach::OsWide, &[]);
    let dir = written(&[("a.cedar", PERMIT_ALL)]);
    let settings = Settings { dir: dir.path().to_owned(), scopes: ScopesMode::Add };
    let errors = Policies::load(&settings, &[&GROUP]).unwrap_err();
    assert_eq!(errors.errors.len(), 1);
    assert!(errors.to_string().starts_with("[[operation]]: the catalogue makes no valid schema: "), "{errors}");
}

#[test]
fn a_policy_is_found_by_its_id() {
    let policies =
        load(&[("a.cedar", PERMIT_ALL), ("shadow/b.cedar", "\n@id(\"all\") permit (principal, action, resource);")]);
    let location = policies.unwrap().location("all").cloned().unwrap();
    assert!(location.file.ends_with("a.cedar"), "{location:?}");
    assert_eq!(location.line, 1);
}

const PROBLEMS: &str = r#"policies/a.cedar:4:8: attribute `tenantt` on entity type `Tollbridge::Agent` not found
       help: did you mean `tenant`?
policies/b.cedar:1:1: policy has no `@id`
       help: write `@id("short-name")` before it, of `a-z A-Z 0-9 . _ -`: decisions, logs and metrics name it
policies/b.cedar:1:30: unrecognized action `Tollbridge::Action::"get_agentz"`
       help: did you mean `get_agent`?
policies/c.cedar:2:27: unexpected token `resource`
policies/d.cedar:3:24: `context.door` is never `mpc`
       help: did you mean `mcp`?
policies/e.cedar:1:1: policy can never apply: no call satisfies its head and conditions
       help: compare the type of `resource` and the attributes with the schema of the action
policies/f.cedar:2:45: unable to guarantee safety of access to optional attribute `owner` on entity type `Tollbridge::Agent`
       help: try testing for the attribute's presence with `e has owner && ..`
policies/g.cedar:1:1: `?principal` and `?resource` have nothing to be filled with
       help: write the policy for roles or attributes instead
policies/h.cedar:1:1: policy id `door` is taken by policies/d.cedar:1
       help: ids name policies in logs and metrics: choose another one
policies/h.cedar:3:1: policy id `not plain` is not 1 to 64 plain characters
       help: write `@id("short-name")` before it, of `a-z A-Z 0-9 . _ -`: decisions, logs and metrics name it
policies/shadow/a.cedar:1:1: policy has no `@id`
       help: write `@id("short-name")` before it, of `a-z A-Z 0-9 . _ -`: decisions, logs and metrics name it"#;
