//! Proves that the catalogue's router and the router of a real AgentOS read a path alike: generated targets go to
//! both, and whatever Starlette would route, ours routes to the same operation with the same parameters, or refuses.
//! The other side is `starlette_router.py`, the example application without a network.
//! Invariant: the targets come from a fixed seed, so that a failure is the same on every machine.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::process::{Command, Stdio};

use tollbridge::agentos::{CanonicalPath, Catalog, Exposure, Operation, Version};

use crate::agno::Agno;

/// Targets in one run; the forwarded form of every accepted one is asked as well.
const CASES: usize = 5200;

const METHODS: [&str; 8] = ["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "get"];

/// What stands in an id: plain, encoded, deceptive, malformed.
const IDS: &[&str] = &[
    "assistant",
    "a-b_c.d~e",
    "%61ssistant",
    "acme~alice",
    "x%2Fruns",
    "x%2fruns",
    "x%252Fruns",
    "x%25252Fruns",
    "%2F",
    "a%5Cb",
    "a\\b",
    "..",
    ".",
    "%2e%2e",
    ".%2e",
    "%2E",
    "..;",
    "..;a=b",
    "...",
    "a;v=1",
    ";a=b",
    "a=b",
    "%00",
    "a%00",
    "%0d%0a",
    "%09",
    "a%0ab",
    "%20",
    "a%20",
    "%20a",
    "a%20b",
    "a+b",
    "%7f",
    "%c2%85",
    "%c0%af",
    "%c1%81",
    "%e0%80%af",
    "%ff",
    "%ed%a0%80",
    "%f4%90%80%80",
    "%c3%a9",
    "%EF%BC%8F",
    "%e2%80%8b",
    "%e2%80%ae",
    "%ef%bb%bf",
    "%f0%9f%98%80",
    "%3F",
    "%23",
    "%3f=1",
    "%",
    "%2",
    "%zz",
    "%u002f",
    "%25",
    "%2525",
    "*",
    "[a]*",
    "{agent_id}",
    "%7Bagent_id%7D",
    "a|b",
    "a\"b",
    "a'b",
    "a<b>",
    "a^b`c",
    "a,b",
    "a:b",
    "a@b",
    "a&b",
    "a$b",
    "a!b",
    "(a)",
    "current",
    "all",
    "%E2%84%AA",
    "%C5%BF",
    "%CC%81a",
    "0",
    "-1",
    "agent",
    "AGENTS",
    "%41gents",
    "a/b",
    "a//b",
    "",
    "\u{e9}",
    "a b",
    "%2e%2e%2fadmin",
    "..%2f",
    "%252e%252e",
    "runs%2F..",
    "x%3B",
    "%26user_id=bob",
    "__scheduler__",
    "sa:robot",
];

/// Words that stand between ids in some template.
const WORDS: &[&str] = &[
    "agents",
    "teams",
    "workflows",
    "sessions",
    "runs",
    "memories",
    "approvals",
    "count",
    "continue",
    "cancel",
    "status",
    "resolve",
    "schedules",
    "knowledge",
    "content",
    "traces",
    "components",
    "configs",
    "metrics",
    "refresh",
    "config",
    "resume",
    "fork",
    "compact",
    "ws",
    "%72uns",
    "RUNS",
    "run%73",
    "runs;",
    "runs%20",
    "docs",
    "mcp",
    "search",
];

/// What a target ends with.
const ENDS: &[&str] =
    &["", "", "", "", "", "/", "//", "///", "?a=b", "/?a=/b", "#f", "%2F", "/.", "/..", ";", "%00", "/x.css"];

/// A seeded generator (SplitMix64).
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((z ^ (z >> 31)) % sides as u64).unwrap()
    }

    fn one_in(&mut self, sides: usize) -> bool {
        self.roll(sides) == 0
    }

    fn pick<'a>(&mut self, list: &[&'a str]) -> &'a str {
        list[self.roll(list.len())]
    }

    /// A template with ids in it and, mostly, something odd about it.
    fn target(&mut self, templates: &[&'static str]) -> String {
        let template = templates[self.roll(templates.len())];
        let mut target = String::new();
        for segment in template.split('/').skip(1) {
            target.push('/');
            if self.one_in(40) {
                target.push('/');
            }
            match segment.starts_with('{') {
                true if self.one_in(8) => target.push_str(self.pick(WORDS)),
                true if self.one_in(3) => target.push_str(&format!("id{}", self.roll(1000))),
                true => target.push_str(self.pick(IDS)),
                false if self.one_in(25) => target.push_str(self.pick(WORDS)),
                false if self.one_in(40) => target.push_str(self.pick(IDS)),
                false if self.one_in(30) => target.push_str(&segment.to_uppercase()),
                false if self.one_in(20) => target.push_str(&encode_one(segment, self.roll(segment.len().max(1)))),
                false => target.push_str(segment),
            }
        }
        target + self.pick(ENDS)
    }
}

/// A segment with one of its characters percent-encoded.
fn encode_one(segment: &str, at: usize) -> String {
    let each =
        segment.char_indices().map(|(i, c)| if i == at { format!("%{:02x}", u32::from(c)) } else { c.to_string() });
    each.collect()
}

/// A route with its parameters, on either side.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Routed {
    template: String,
    params: BTreeMap<String, String>,
}

/// What Starlette says of one target: the route that would run, if any.
fn ask_starlette(agno: Agno, asked: &[(String, String)]) -> Vec<Option<Routed>> {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/starlette_router.py");
    let mut child = Command::new(agno.python())
        .arg(script)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let lines: String = asked.iter().map(|line| serde_json::to_string(line).unwrap() + "\n").collect();
    let writer = std::thread::spawn(move || stdin.write_all(lines.as_bytes()));
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "the router ended: {said}");
    writer.join().unwrap().unwrap();
    let answers: Vec<_> = String::from_utf8(output.stdout).unwrap().lines().map(read_answer).collect();
    assert_eq!(answers.len(), asked.len(), "{said}");
    answers
}

fn read_answer(line: &str) -> Option<Routed> {
    let answer: Option<(String, BTreeMap<String, String>, bool)> = serde_json::from_str(line).unwrap();
    answer.filter(|(_, _, taken)| *taken).map(|(template, params, _)| Routed { template, params })
}

/// What our side makes of one target: the path to forward, and the row.
fn ours(catalog: &Catalog, method: &str, target: &str) -> Option<(String, &'static Operation, Routed)> {
    let path = CanonicalPath::parse(target.split('?').next().unwrap()).ok()?;
    let matched = catalog.find(&method.parse().ok()?, &path).ok()?;
    let params = matched.params.iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
    let routed = Routed { template: matched.operation.path.to_owned(), params };
    Some((path.as_str().to_owned(), matched.operation, routed))
}

/// Plays the targets against one release; returns how many both sides routed.
fn compare(agno: Agno, version: Version, seed: u64) -> usize {
    let catalog = Catalog::shipped();
    let templates: Vec<&'static str> = catalog.rows().iter().map(|row| row.path).collect();
    let mut dice = Dice(seed);
    let mut asked: Vec<(String, String)> = Vec::with_capacity(CASES * 2);
    for row in catalog.rows() {
        asked.push((row.method.to_string(), row.path.replace(['{', '}'], "").replace(":path", "")));
    }
    while asked.len() < CASES {
        let target = dice.target(&templates);
        // Mostly a method that some row of this path may have.
        let method = if dice.one_in(4) { METHODS[dice.roll(METHODS.len())] } else { METHODS[dice.roll(5)] };
        asked.push((method.to_owned(), target));
    }
    let raw = asked.len();
    let routed: Vec<_> = asked.iter().map(|(method, target)| ours(&catalog, method, target)).collect();
    // What the gateway answers itself never goes upstream, whatever AgentOS would make of it.
    let forwarded = |row: &Operation| !matches!(row.exposure, Exposure::Local(_));
    let accepted: Vec<usize> =
        (0..raw).filter(|at| routed[*at].as_ref().is_some_and(|(_, row, _)| forwarded(row))).collect();
    for at in &accepted {
        let (forwarded, _, _) = routed[*at].as_ref().unwrap();
        asked.push((asked[*at].0.clone(), forwarded.clone()));
    }
    let theirs = ask_starlette(agno, &asked);
    let known: Vec<&Routed> = theirs.iter().flatten().collect();
    let mut wrong = Vec::new();
    for (n, at) in accepted.iter().enumerate() {
        let (forwarded, row, mine) = routed[*at].as_ref().unwrap();
        // A row that this release lacks, or that the example does not mount, has no route to compare with.
        let exists = row.versions.include(version) && known.iter().any(|r| r.template == row.path);
        for (what, other) in [("the caller's path", &theirs[*at]), ("the forwarded path", &theirs[raw + n])] {
            if other.as_ref().map_or(exists, |other| other != mine) {
                let (method, target) = &asked[*at];
                wrong.push(format!("{method} {target:?} → {forwarded:?}, {what}: ours {mine:?}, Starlette {other:?}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{} of {raw} differ on agno {}:\n{}", wrong.len(), agno.version(), wrong.join("\n"));
    accepted.iter().filter(|at| theirs[**at].is_some()).count()
}

#[test]
fn agno_newest_routes_what_our_router_routes() {
    let both = compare(Agno::Newest, Version::V3, 0x3110);
    assert!(both > CASES / 10, "only {both} targets were routed by both sides");
}

#[test]
fn agno_oldest_routes_what_our_router_routes() {
    let both = compare(Agno::Oldest, Version::V2, 0x256);
    assert!(both > CASES / 10, "only {both} targets were routed by both sides");
}
