//! Replays the corpora of `fuzz/` and seeded mutations of them, so that what the fuzz targets promise holds in every
//! test run. Does not search for new inputs: `cargo fuzz run TARGET` does.
//! Invariant: the mutations come from a fixed seed.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

/// Mutations of each file.
const MUTATIONS: usize = 300;

/// A target by the name of its corpus.
type Target = (&'static str, fn(&[u8]));

const TARGETS: [Target; 7] = [
    ("arguments", tollbridge::mcp::fuzzing::arguments),
    ("head", tollbridge::proxy::fuzzing::head),
    ("json", tollbridge::gateway::fuzzing::json),
    ("multipart", tollbridge::gateway::fuzzing::multipart),
    ("sse", tollbridge::usage::fuzzing::meter),
    ("target", tollbridge::agentos::fuzzing::target),
    ("urlencoded", tollbridge::gateway::fuzzing::urlencoded),
];

/// Pieces that mean something to one parser or another.
const PIECES: [&[u8]; 24] = [
    b"\r\n",
    b"\n",
    b"\r",
    b"\0",
    b"--",
    b"--XX",
    b"--XX--",
    b":",
    b";",
    b"=",
    b"&",
    b"%",
    b"%2F",
    b"..",
    b"//",
    b"\"",
    b"\\",
    b"{",
    b"[",
    b",",
    b"\xff",
    b"\xef\xbb\xbf",
    b"data:",
    b"1e999",
];

fn corpus(target: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let mut paths: Vec<PathBuf> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths.into_iter().map(|path| (path.clone(), std::fs::read(path).unwrap())).collect()
}

/// Calls a target; a broken promise becomes a line.
fn broken(target: fn(&[u8]), data: &[u8]) -> Option<String> {
    let panic = catch_unwind(AssertUnwindSafe(|| target(data))).err()?;
    let said =
        panic.downcast_ref::<String>().cloned().or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned()));
    Some(format!("{:?}: {}", String::from_utf8_lossy(data), said.unwrap_or_default()))
}

/// The next number of a seeded generator (SplitMix64), below `sides`.
fn roll(seed: &mut u64, sides: usize) -> usize {
    *seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *seed;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    usize::try_from((z ^ (z >> 31)) % sides.max(1) as u64).unwrap()
}

/// Changes up to four places: a byte, a cut, a repetition, a meaningful piece.
fn mutate(data: &[u8], seed: &mut u64) -> Vec<u8> {
    let mut data = data.to_vec();
    for _ in 0..=roll(seed, 4) {
        let at = roll(seed, data.len() + 1);
        match roll(seed, 4) {
            0 if at < data.len() => data[at] = u8::try_from(roll(seed, 256)).unwrap(),
            1 if at < data.len() => {
                let end = at + roll(seed, data.len() - at + 1);
                data.drain(at..end);
            }
            2 if at < data.len() => {
                let piece = data[at..data.len().min(at + 40)].to_vec();
                let to = roll(seed, data.len());
                data.splice(to..to, piece);
            }
            _ => drop(data.splice(at..at, PIECES[roll(seed, PIECES.len())].iter().copied())),
        }
    }
    data
}

#[test]
fn every_parser_keeps_its_promises_on_its_corpus_and_near_it() {
    let mut lines = Vec::new();
    for (name, target) in TARGETS {
        let files = corpus(name);
        assert!(files.len() >= 4, "the corpus of `{name}` has {} files", files.len());
        let mut seed = 0x701;
        for (path, data) in files {
            lines.extend(broken(target, &data).map(|line| format!("{}: {line}", path.display())));
            for _ in 0..MUTATIONS {
                lines.extend(broken(target, &mutate(&data, &mut seed)).map(|line| format!("{name}, mutated: {line}")));
            }
        }
    }
    lines.truncate(10);
    assert!(lines.is_empty(), "{}", lines.join("\n"));
}

#[test]
fn every_fuzz_target_has_a_corpus_that_is_replayed() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/fuzz_targets");
    let mut names: Vec<String> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path().file_stem().unwrap().to_string_lossy().into_owned())
        .collect();
    names.sort();
    assert_eq!(names, TARGETS.map(|(name, _)| name));
}
