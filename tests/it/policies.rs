//! Proves that every shipped policy, the examples included, is shown by cases: calls that it decides, and calls that it
//! leaves alone.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use toml::Table;

/// A policy file and its cases, as text.
struct Shipped {
    name: String,
    policies: String,
    cases: Vec<Table>,
}

fn shipped() -> Vec<Shipped> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("policies");
    let all = [(folder.clone(), ""), (folder.join("examples"), ".example")];
    let files = |folder: &Path| {
        let mut files: Vec<PathBuf> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        files.sort();
        files
    };
    let mut found = Vec::new();
    for (folder, end) in all {
        for file in files(&folder) {
            let name = file.file_name().unwrap().to_str().unwrap().to_owned();
            let Some(stem) = name.strip_suffix(&format!(".cedar{end}")) else { continue };
            let cases = std::fs::read_to_string(folder.join(format!("{stem}.test.toml{end}")))
                .unwrap_or_else(|_| panic!("{name} has no cases"));
            let cases: Table = cases.parse().unwrap();
            let cases = cases["case"].as_array().unwrap().iter().map(|case| case.as_table().unwrap().clone()).collect();
            found.push(Shipped { policies: std::fs::read_to_string(&file).unwrap(), name, cases });
        }
    }
    assert!(found.len() >= 9, "where are the policies?");
    found
}

/// The policies of a file with their effect: `("viewer-reads", "permit")`.
fn policies(text: &str) -> Vec<(String, String)> {
    let blocks = text.split("@id(\"").skip(1);
    let policy = |block: &str| {
        let (id, rest) = block.split_once("\")").unwrap();
        (id.to_owned(), rest.split_whitespace().next().unwrap().trim_end_matches('(').to_owned())
    };
    blocks.map(policy).collect()
}

fn deciding(case: &Table) -> Vec<&str> {
    let policies = case.get("policies").and_then(|list| list.as_array());
    policies.into_iter().flatten().filter_map(|policy| policy.as_str()).collect()
}

#[test]
fn every_shipped_policy_has_a_case_that_it_decides_and_one_that_it_leaves_alone() {
    for file in shipped() {
        let expects: BTreeSet<&str> = file.cases.iter().map(|case| case["expect"].as_str().unwrap()).collect();
        assert_eq!(expects, BTreeSet::from(["allow", "deny"]), "{}", file.name);
        for (id, effect) in policies(&file.policies) {
            let (with, without) = match effect.as_str() {
                "permit" => ("allow", "deny"),
                "forbid" => ("deny", "allow"),
                other => panic!("{id}: {other}"),
            };
            let is = |case: &&Table, expect: &str| case["expect"].as_str() == Some(expect);
            let decides = file.cases.iter().any(|case| is(&case, with) && deciding(case).contains(&id.as_str()));
            assert!(decides, "{}: no case is decided by `{id}`", file.name);
            let leaves = file.cases.iter().any(|case| is(&case, without) && !deciding(case).contains(&id.as_str()));
            assert!(leaves, "{}: no case is left alone by `{id}`", file.name);
        }
    }
}
