//! Proves the architecture's rules on the source itself: floors, siblings, module heads, who may name
//! which crate, sizes, owned tasks, and nothing unfinished.
//! Each finding prints `file:line: rule`. The rules are tested on planted violations below.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use proc_macro2::{TokenStream, TokenTree};
use syn::spanned::Spanned as _;
use syn::visit::{self, Visit};

/// The floors, lowest first; a module imports lower floors only. Same order as `src/lib.rs`.
const FLOORS: [&[&str]; 8] = [
    &["agentos", "principal", "secret"],
    &["outbound", "telemetry", "store"],
    &["cache", "cluster", "identity", "policy", "quota", "usage"],
    &["gateway"],
    &["admin", "mcp", "proxy"],
    &["config"],
    &["server"],
    &["cli"],
];

/// What a door may see besides floor 0.
const DOOR_SEES: [&str; 2] = ["gateway", "telemetry"];
const DOOR_FLOOR: usize = 4;

/// Crates (or paths into them) and the one module that may name them.
const OWNERS: [(&[&str], &str); 13] = [
    (&["pingora"], "proxy"),
    (&["rmcp"], "mcp"),
    (&["toml"], "config"),
    (&["prometheus"], "telemetry"),
    (&["opentelemetry"], "telemetry"),
    (&["tracing_subscriber"], "telemetry"),
    (&["jsonwebtoken"], "identity"),
    (&["cedar_policy"], "policy"),
    (&["redis"], "store"),
    (&["hickory_resolver"], "outbound"),
    (&["redb"], "store"),
    (&["hyper", "client"], "outbound"),
    (&["hyper_util", "client"], "outbound"),
];

/// Longest file; the tables of the catalogue are exempt.
const FILE_LINES_MAX: usize = 600;
const TABLES: &str = "src/agentos/catalog/";
/// Longest function outside tests.
const FUNCTION_LINES_MAX: usize = 70;

/// A broken rule.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Finding {
    file: String,
    line: usize,
    rule: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.file, self.line, self.rule)
    }
}

// === the source ===

#[test]
fn the_source_obeys_the_architecture() {
    let mut findings = Vec::new();
    for (file, text) in files().iter().filter(|(file, _)| file.ends_with(".rs")) {
        findings.extend(check(file, text));
    }
    assert_none(findings);
}

#[test]
fn no_file_names_a_path_of_the_machine_it_was_written_on() {
    assert_none(files().iter().flat_map(|(file, text)| machine_paths(file, text)).collect());
}

#[test]
fn the_table_of_contents_and_the_floors_name_the_same_modules() {
    let text = fs::read_to_string(root().join("src/lib.rs")).unwrap();
    let listed: Vec<String> = syn::parse_file(&text).unwrap().items.into_iter().filter_map(module_name).collect();
    let floors: BTreeSet<&str> = FLOORS.concat().into_iter().collect();
    for module in &listed {
        assert!(floors.contains(module.as_str()), "src/lib.rs declares `{module}`, which has no floor");
    }
    let known = |module: &&str| listed.iter().any(|listed| listed == *module);
    let absent: Vec<&str> = floors.into_iter().filter(|module| !known(module)).collect();
    assert_eq!(absent, Vec::<&str>::new(), "modules with a floor that src/lib.rs does not declare");
}

fn module_name(item: syn::Item) -> Option<String> {
    if let syn::Item::Mod(module) = item { Some(module.ident.to_string()) } else { None }
}

fn assert_none(mut findings: Vec<Finding>) {
    findings.sort();
    findings.dedup();
    let lines: Vec<String> = findings.iter().map(Finding::to_string).collect();
    assert!(lines.is_empty(), "{} broken rules\n{}", lines.len(), lines.join("\n"));
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Every text file of the project with its path from the root: what git tracks or would, else what is there.
fn files() -> Vec<(String, String)> {
    let listed = Command::new("git")
        .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
        .current_dir(root())
        .output();
    let paths = match listed {
        Ok(output) if output.status.success() => {
            String::from_utf8(output.stdout).unwrap().split_terminator('\0').map(str::to_owned).collect()
        }
        Ok(_) | Err(_) => {
            let mut paths = Vec::new();
            for top in ["src", "tests", "policies", "examples", "benches", "docs"] {
                walk(&root().join(top), &mut paths);
            }
            paths
        }
    };
    let read = |path: String| fs::read_to_string(root().join(&path)).ok().map(|text| (path, text));
    paths.into_iter().filter_map(read).collect()
}

fn walk(directory: &Path, paths: &mut Vec<String>) {
    let Ok(entries) = fs::read_dir(directory) else { return };
    for path in entries.map(|entry| entry.unwrap().path()) {
        if path.is_dir() {
            walk(&path, paths);
        } else {
            paths.push(path.strip_prefix(root()).unwrap().display().to_string());
        }
    }
}

// === the rules ===

/// Every rule that reads one Rust file.
fn check(file: &str, text: &str) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut found = |line: usize, rule: &str| {
        findings.push(Finding { file: file.to_owned(), line, rule: rule.to_owned() });
    };
    if !text.starts_with("//! ") {
        found(1, "the first line is not a module head `//! …`");
    }
    let lines = text.lines().count();
    if lines > FILE_LINES_MAX && !file.starts_with(TABLES) {
        found(lines, &format!("{lines} lines; {FILE_LINES_MAX} is the limit: split at a noun"));
    }
    if file.starts_with("src/") {
        for (index, line) in text.lines().enumerate() {
            for word in ["TODO", "FIXME", "XXX"] {
                if line.split(|c: char| !c.is_alphanumeric()).any(|part| part == word) {
                    found(index + 1, &format!("`{word}`: finish it, or leave it out"));
                }
            }
        }
    }
    match syn::parse_file(text) {
        Ok(parsed) => {
            let mut walk = Walk { file, module: module_of(file), test: is_test_file(file), findings: Vec::new() };
            walk.visit_file(&parsed);
            findings.extend(walk.findings);
        }
        Err(error) => found(error.span().start().line, &format!("does not parse: {error}")),
    }
    findings
}

/// `src/identity/jwt.rs` → `identity`, `jwt`; nothing outside `src` and for the crate's roots.
fn module_of(file: &str) -> Vec<String> {
    let Some(path) = file.strip_prefix("src/").and_then(|path| path.strip_suffix(".rs")) else { return Vec::new() };
    let path = path.strip_suffix("/mod").unwrap_or(path);
    if matches!(path, "lib" | "main") { Vec::new() } else { path.split('/').map(str::to_owned).collect() }
}

fn is_test_file(file: &str) -> bool {
    !file.starts_with("src/") || file.ends_with("/tests.rs") || file.contains("/tests/")
}

/// The floor of a module.
fn floor(module: &str) -> Option<usize> {
    FLOORS.iter().position(|modules| modules.contains(&module))
}

/// What is wrong with `from` naming `to`.
fn edge(from: &str, to: &str) -> Option<String> {
    let (low, high) = (floor(from)?, floor(to)?);
    if from == to {
        return None;
    }
    if low == high {
        return Some(format!("`{from}` imports its sibling `{to}`: modules of one floor are strangers"));
    }
    if low < high {
        return Some(format!(
            "`{from}` (floor {low}) imports `{to}` (floor {high}): only lower floors may be imported"
        ));
    }
    let hidden = low == DOOR_FLOOR && high != 0 && !DOOR_SEES.contains(&to);
    hidden.then(|| format!("`{from}` is a door and imports `{to}`: doors see `gateway`, `telemetry` and floor 0 only"))
}

struct Walk<'f> {
    file: &'f str,
    /// Module path of the place that is visited.
    module: Vec<String>,
    /// Whether that place is a test.
    test: bool,
    findings: Vec<Finding>,
}

impl Walk<'_> {
    fn found(&mut self, line: usize, rule: impl Into<String>) {
        self.findings.push(Finding { file: self.file.to_owned(), line, rule: rule.into() });
    }

    /// Judges one path, wherever it was written.
    fn path(&mut self, segments: &[String], line: usize) {
        if !self.file.starts_with("src/") {
            return;
        }
        match segments.first().map(String::as_str) {
            Some("crate") => self.inside(segments.get(1), line),
            Some("super") => {
                let ups = segments.iter().take_while(|segment| *segment == "super").count();
                if ups == self.module.len() {
                    self.inside(segments.get(ups), line);
                }
            }
            Some("self" | "Self") | None => {}
            Some(_) => self.outside(segments, line),
        }
    }

    /// A path to a module of this crate.
    fn inside(&mut self, target: Option<&String>, line: usize) {
        let (Some(from), Some(to)) = (self.module.first(), target) else { return };
        if let Some(rule) = edge(from, to) {
            self.found(line, rule);
        }
    }

    /// A path into another crate.
    fn outside(&mut self, segments: &[String], line: usize) {
        let here = self.module.first().map_or("", String::as_str).to_owned();
        let head = segments[0].as_str();
        for (path, owner) in OWNERS {
            // `pingora_core` and its kin belong to `pingora`.
            let family = head == path[0] || (path.len() == 1 && head.starts_with(&format!("{}_", path[0])));
            let inner = segments.iter().skip(1).zip(&path[1..]).all(|(segment, part)| segment == part);
            if family && inner && segments.len() >= path.len() && here != owner {
                self.found(line, format!("names `{}`: only `{owner}` may", path.join("::")));
            }
        }
        let spawns = [&["tokio", "spawn"][..], &["tokio", "task", "spawn"]].iter().any(|path| segments == *path);
        if spawns && here != "server" && !self.test {
            self.found(line, "names `tokio::spawn`: tasks are owned and joined by `server`");
        }
    }

    /// Paths in tokens that are not parsed: arguments of macros and attributes.
    fn tokens(&mut self, tokens: TokenStream) {
        let (mut segments, mut line, mut colons) = (Vec::new(), 0, 0);
        for token in tokens {
            match &token {
                TokenTree::Ident(ident) if segments.is_empty() || colons == 2 => {
                    line = ident.span().start().line;
                    segments.push(ident.to_string());
                    colons = 0;
                    continue;
                }
                TokenTree::Punct(punct) if punct.as_char() == ':' && !segments.is_empty() && colons < 2 => {
                    colons += 1;
                    continue;
                }
                TokenTree::Ident(_) | TokenTree::Punct(_) | TokenTree::Group(_) | TokenTree::Literal(_) => {}
            }
            self.written(&mut segments, line);
            colons = 0;
            match token {
                TokenTree::Group(group) => self.tokens(group.stream()),
                TokenTree::Ident(ident) => {
                    line = ident.span().start().line;
                    segments.push(ident.to_string());
                }
                TokenTree::Punct(_) | TokenTree::Literal(_) => {}
            }
        }
        self.written(&mut segments, line);
    }

    /// A lone word is no path.
    fn written(&mut self, segments: &mut Vec<String>, line: usize) {
        if segments.len() > 1 {
            self.path(segments, line);
        }
        segments.clear();
    }

    fn length(&mut self, name: &syn::Ident, block: proc_macro2::Span) {
        let lines = block.end().line - block.start().line + 1;
        if lines > FUNCTION_LINES_MAX && !self.test && !self.file.starts_with(TABLES) {
            let rule = format!("`{name}` has {lines} lines; {FUNCTION_LINES_MAX} is the limit");
            self.found(name.span().start().line, rule);
        }
    }
}

impl<'ast> Visit<'ast> for Walk<'_> {
    fn visit_item_mod(&mut self, item: &'ast syn::ItemMod) {
        let outer = self.test;
        self.test |= item.attrs.iter().any(is_cfg_test);
        self.module.push(item.ident.to_string());
        visit::visit_item_mod(self, item);
        self.module.pop();
        self.test = outer;
    }

    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        let mut paths = Vec::new();
        flatten(&item.tree, &mut Vec::new(), &mut paths);
        for (segments, line) in paths {
            self.path(&segments, line);
        }
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let segments: Vec<String> = path.segments.iter().map(|segment| segment.ident.to_string()).collect();
        if segments.len() > 1 {
            self.path(&segments, path.span().start().line);
        }
        visit::visit_path(self, path);
    }

    fn visit_macro(&mut self, call: &'ast syn::Macro) {
        let line = call.path.span().start().line;
        for name in ["todo", "unimplemented"] {
            if call.path.is_ident(name) {
                self.found(line, format!("`{name}!`: finish it, or leave it out"));
            }
        }
        self.tokens(call.tokens.clone());
        visit::visit_macro(self, call);
    }

    fn visit_attribute(&mut self, attribute: &'ast syn::Attribute) {
        if attribute.path().is_ident("ignore") {
            self.found(attribute.span().start().line, "`#[ignore]`: a test runs, or it goes");
        }
        if let syn::Meta::List(list) = &attribute.meta {
            self.tokens(list.tokens.clone());
        }
        visit::visit_attribute(self, attribute);
    }

    fn visit_item_fn(&mut self, function: &'ast syn::ItemFn) {
        self.length(&function.sig.ident, function.block.span());
        visit::visit_item_fn(self, function);
    }

    fn visit_impl_item_fn(&mut self, function: &'ast syn::ImplItemFn) {
        self.length(&function.sig.ident, function.block.span());
        visit::visit_impl_item_fn(self, function);
    }
}

fn is_cfg_test(attribute: &syn::Attribute) -> bool {
    let syn::Meta::List(list) = &attribute.meta else { return false };
    list.path.is_ident("cfg") && list.tokens.to_string().contains("test")
}

/// Every path of a `use`, written out.
fn flatten(tree: &syn::UseTree, prefix: &mut Vec<String>, paths: &mut Vec<(Vec<String>, usize)>) {
    let mut leaf = |name: &syn::Ident| {
        let mut path = prefix.clone();
        path.push(name.to_string());
        paths.push((path, name.span().start().line));
    };
    match tree {
        syn::UseTree::Path(path) => {
            prefix.push(path.ident.to_string());
            flatten(&path.tree, prefix, paths);
            prefix.pop();
        }
        syn::UseTree::Name(name) => leaf(&name.ident),
        syn::UseTree::Rename(rename) => leaf(&rename.ident),
        syn::UseTree::Glob(glob) => paths.push((prefix.clone(), glob.span().start().line)),
        syn::UseTree::Group(group) => {
            for item in &group.items {
                flatten(item, prefix, paths);
            }
        }
    }
}

/// Absolute paths below directories that differ from machine to machine.
fn machine_paths(file: &str, text: &str) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (index, line) in text.lines().enumerate() {
        for top in ["home", "root", "tmp", "work", "Users"] {
            let needle = format!("/{top}/");
            for (at, _) in line.match_indices(&needle) {
                let before = line[..at].chars().next_back();
                let after = line[at + needle.len()..].chars().next();
                let begins =
                    before.is_none_or(|c| !c.is_alphanumeric() && !matches!(c, '.' | '-' | '_' | '/' | '}' | '*'));
                if begins && after.is_some_and(|c| c.is_alphanumeric() || matches!(c, '.' | '_')) {
                    let rule = format!("names a path of one machine below `/{top}`");
                    findings.push(Finding { file: file.to_owned(), line: index + 1, rule });
                }
            }
        }
    }
    findings
}

// === the rules, tested ===

/// The findings of a planted source, as `line: rule`.
fn planted(file: &str, body: &str) -> Vec<String> {
    let mut findings = check(file, &format!("//! Head.\n{body}"));
    findings.sort();
    findings.dedup();
    findings.into_iter().map(|finding| format!("{}: {}", finding.line, finding.rule)).collect()
}

#[test]
fn a_planted_edge_is_found_however_it_is_written() {
    let up = "`quota` (floor 2) imports `gateway` (floor 3): only lower floors may be imported";
    let sibling = "`quota` imports its sibling `cache`: modules of one floor are strangers";
    for (body, expected) in [
        ("use crate::gateway::Call;", up),
        ("use crate::{principal::TenantId, gateway::{Call, Answer}};", up),
        ("use super::gateway;", up),
        ("fn f() -> crate::gateway::Call { g() }", up),
        ("fn f() { println!(\"{}\", crate::gateway::X) }", up),
        ("fn f() { vec![(1, [crate::gateway::X])]; }", up),
        ("mod deep { fn f() { super::super::gateway::g() } }", up),
        ("#[cfg(test)]\nmod tests { use crate::gateway::Call; }", up),
        ("use crate::cache as other;", sibling),
    ] {
        let line = body.lines().count() + 1;
        assert_eq!(planted("src/quota/mod.rs", body), [format!("{line}: {expected}")], "{body}");
    }
    let door = "2: `proxy` is a door and imports `identity`: doors see `gateway`, `telemetry` and floor 0 only";
    assert_eq!(planted("src/proxy/mod.rs", "use crate::identity::Identity;"), [door]);
}

#[test]
fn edges_to_lower_floors_are_fine() {
    for (file, body) in [
        ("src/quota/mod.rs", "use crate::principal::TenantId;\nuse super::telemetry;\nuse self::gateway::X;"),
        ("src/quota/rate.rs", "use super::gateway;\nuse crate::quota::gateway;"),
        ("src/quota/mod.rs", "mod tests { use super::cache::X; }"),
        ("src/proxy/mod.rs", "use crate::{gateway::Call, principal::TenantId, telemetry::Door};"),
        ("src/cli/mod.rs", "use crate::{server, config, gateway, quota};"),
        ("tests/it/x.rs", "use tollbridge::cli;\nfn f() { tokio::spawn(async {}); }"),
    ] {
        assert_eq!(planted(file, body), Vec::<String>::new(), "{file}: {body}");
    }
}

#[test]
fn a_crate_is_named_by_its_owner_only() {
    for (body, owner, name) in [
        ("use pingora::proxy::Session;", "proxy", "pingora"),
        ("use pingora_core::Error;", "proxy", "pingora"),
        ("fn f() { rmcp::serve() }", "mcp", "rmcp"),
        ("fn f() { assert!(toml::from_str(x)) }", "config", "toml"),
        ("use prometheus::Registry;", "telemetry", "prometheus"),
        ("use {tracing_subscriber as log};", "telemetry", "tracing_subscriber"),
        ("use jsonwebtoken::{decode, Validation};", "identity", "jsonwebtoken"),
        ("use cedar_policy::*;", "policy", "cedar_policy"),
        ("use hyper::{body::Body, client::conn};", "outbound", "hyper::client"),
        ("type C = hyper_util::client::legacy::Client;", "outbound", "hyper_util::client"),
    ] {
        assert_eq!(planted("src/usage/mod.rs", body), [format!("2: names `{name}`: only `{owner}` may")], "{body}");
        assert_eq!(planted(&format!("src/{owner}/x.rs"), body), Vec::<String>::new(), "{body}");
    }
    assert_eq!(
        planted("src/usage/mod.rs", "use hyper::body::Body;\nfn f(toml: u8) { g!(toml) }"),
        Vec::<String>::new()
    );
}

#[test]
fn unfinished_and_unowned_work_is_found() {
    let todo = format!("fn f() {{ {}!() }}", "todo");
    let comment = format!("// {}: later", "TODO");
    let long = format!("fn f() {{\n{}}}", "g();\n".repeat(70));
    for (body, expected) in [
        ("fn f() { tokio::spawn(g()); }", "2: names `tokio::spawn`: tasks are owned and joined by `server`"),
        ("use tokio::task::spawn;", "2: names `tokio::spawn`: tasks are owned and joined by `server`"),
        ("#[test]\n#[ignore]\nfn f() {}", "3: `#[ignore]`: a test runs, or it goes"),
        (&todo, "2: `todo!`: finish it, or leave it out"),
        (&comment, "2: `TODO`: finish it, or leave it out"),
        (&long, "2: `f` has 72 lines; 70 is the limit"),
        ("fn f( {}", "2: does not parse: expected one of: `)`, identifier, `_`, `&`, `self`"),
    ] {
        let said = planted("src/usage/mod.rs", body);
        assert_eq!(said.len(), 1, "{body}: {said:?}");
        let same = said[0] == expected || (said[0].starts_with("2: does not parse") && expected.contains("parse"));
        assert!(same, "{body}: {said:?}");
    }
    assert_eq!(planted("src/server/tasks.rs", "fn f() { tokio::spawn(g()); }"), Vec::<String>::new());
    assert_eq!(planted("src/usage/tests.rs", "fn f() { tokio::spawn(g()); }"), Vec::<String>::new());
}

#[test]
fn heads_and_sizes_are_checked() {
    let said = |file: &str, text: &str| check(file, text).iter().map(Finding::to_string).collect::<Vec<_>>();
    assert_eq!(said("src/usage/x.rs", "use a;"), ["src/usage/x.rs:1: the first line is not a module head `//! …`"]);
    let long = format!("//! Head.\n{}", "\n".repeat(FILE_LINES_MAX));
    assert_eq!(said("src/usage/x.rs", &long), ["src/usage/x.rs:601: 601 lines; 600 is the limit: split at a noun"]);
    assert_eq!(said("src/agentos/catalog/agents.rs", &long), Vec::<String>::new());
}

#[test]
fn a_path_of_one_machine_is_found() {
    for (top, text, found) in [
        ("home", "see /TOP/jane/notes", true),
        ("tmp", "\"/TOP/socket\"", true),
        ("work", "https://example.com/TOP/x", false),
        ("root", "src/TOP/x", false),
        ("tmp", "the directory /TOP/", false),
    ] {
        let findings = machine_paths("README.md", &text.replace("TOP", top));
        assert_eq!(!findings.is_empty(), found, "{text} with {top}: {findings:?}");
    }
}
