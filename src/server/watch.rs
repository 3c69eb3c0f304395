//! Owns seeing that a file of the configuration has changed: times, sizes and names, never contents.
//! Does not reload.
//! Invariant: what is still being written is not taken: two looks must agree before a change counts.

use std::collections::hash_map::DefaultHasher;
use std::fs;
use std::hash::{Hash as _, Hasher};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// Most files of the policy folder that are looked at.
const FILES_MAX: usize = 10_000;

/// What the files looked like, as one number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Look(u64);

/// The files that a configuration was read from.
#[derive(Debug, Clone)]
pub(super) struct Watched {
    /// Single files.
    pub(super) files: Vec<PathBuf>,
    /// The policies.
    pub(super) policies: PathBuf,
}

/// Remembers looks.
#[derive(Debug)]
pub(super) struct Seen {
    /// What was loaded last, or could not be.
    tried: Look,
    last: Look,
}

// === impl Watched ===

impl Watched {
    /// Looks at every file. Blocks.
    pub(super) fn look(&self) -> Look {
        let mut hasher = DefaultHasher::new();
        self.files.iter().for_each(|file| one(file, &mut hasher));
        let mut found = Vec::new();
        for folder in [self.policies.clone(), self.policies.join("shadow")] {
            let entries = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
            found.extend(entries.filter(|path| path.extension().is_some_and(|e| e == "cedar")).take(FILES_MAX));
        }
        found.sort();
        found.iter().for_each(|file| one(file, &mut hasher));
        Look(hasher.finish())
    }
}

/// Mixes in what a file looks like, also when it is not there.
fn one(path: &Path, hasher: &mut DefaultHasher) {
    let seen = fs::metadata(path).ok();
    (path, seen.map(|file| (file.mtime(), file.mtime_nsec(), file.len(), file.ino()))).hash(hasher);
}

// === impl Seen ===

impl Seen {
    pub(super) fn new(loaded: Look) -> Self {
        Self { tried: loaded, last: loaded }
    }

    /// Says whether to load what these files hold: they changed, and then stayed as they are.
    pub(super) fn is_due(&mut self, now: Look) -> bool {
        let settled = now == self.last;
        self.last = now;
        settled && now != self.tried
    }

    /// Notes what was loaded, or could not be.
    pub(super) fn tried(&mut self, look: Look) {
        self.tried = look;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_counts_once_and_only_when_it_has_settled() {
        let (old, half, new) = (Look(1), Look(2), Look(3));
        let mut seen = Seen::new(old);
        assert!(!seen.is_due(old));
        assert!(!seen.is_due(half));
        assert!(!seen.is_due(new));
        assert!(seen.is_due(new));
        seen.tried(new);
        assert!(!seen.is_due(new));
        assert!(!seen.is_due(old));
        assert!(seen.is_due(old));
    }

    #[test]
    fn every_file_counts_and_only_policies_of_the_folder() {
        let folder = tempfile::TempDir::new().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::create_dir(at("shadow")).unwrap();
        for name in ["config.toml", "a.cedar", "shadow/b.cedar", "a.test.toml"] {
            fs::write(at(name), "1").unwrap();
        }
        let watched = Watched { files: vec![at("config.toml"), at("absent")], policies: folder.path().to_owned() };
        let mut last = watched.look();
        assert_eq!(watched.look(), last);
        for (name, counts) in [
            ("config.toml", true),
            ("a.cedar", true),
            ("shadow/b.cedar", true),
            ("absent", true),
            ("new.cedar", true),
            ("a.test.toml", false),
        ] {
            fs::write(at(name), "22").unwrap();
            let now = watched.look();
            assert_eq!(now != last, counts, "{name}");
            last = now;
        }
    }
}
