//! Owns the bounds of label values: every value costs memory here and in the database that scrapes us; and the way from
//! labels that every exchange counts under to their handles.
//! Does not know metrics.

use foldhash::{HashMap, HashSet};
use parking_lot::RwLock;

/// The value for everything that does not fit.
pub(super) const OTHER: &str = "other";
/// Longest label value, in bytes.
const VALUE_BYTES_MAX: usize = 128;

/// The first names seen, up to a number; later ones are `other`.
pub(super) struct FirstNames {
    names_max: usize,
    seen: RwLock<HashSet<Box<str>>>,
}

impl FirstNames {
    pub(super) fn new(names_max: usize) -> Self {
        Self { names_max, seen: RwLock::default() }
    }

    pub(super) fn label<'a>(&self, name: &'a str) -> &'a str {
        if self.seen.read().contains(name) {
            return name;
        }
        if name.is_empty() || name.len() > VALUE_BYTES_MAX || name.chars().any(char::is_control) {
            return OTHER;
        }
        let mut seen = self.seen.write();
        if seen.contains(name) {
            return name;
        }
        if seen.len() >= self.names_max {
            return OTHER;
        }
        seen.insert(name.into());
        name
    }
}

/// Handles by a bounded name and a word from a closed set: the labels of one are put together once.
pub(super) struct Handles<H>(RwLock<ByName<Words<H>>>);

type ByName<T> = HashMap<Box<str>, T>;
type Words<H> = Vec<(&'static str, H)>;

// === impl Handles ===

impl<H> Handles<H> {
    pub(super) fn new() -> Self {
        Self(RwLock::default())
    }

    /// Uses the handle of a name and a word; says `false` when there is none yet.
    pub(super) fn with(&self, name: &str, word: &'static str, use_it: impl FnOnce(&H)) -> bool {
        let kept = self.0.read();
        let handle = kept.get(name).and_then(|words| words.iter().find(|(known, _)| *known == word));
        handle.map(|(_, handle)| use_it(handle)).is_some()
    }

    /// Keeps a handle. The caller bounds the names.
    pub(super) fn keep(&self, name: &str, word: &'static str, handle: H) {
        let mut kept = self.0.write();
        let words = kept.entry(name.into()).or_default();
        if !words.iter().any(|(known, _)| *known == word) {
            words.push((word, handle));
        }
    }

    pub(super) fn clear(&self) {
        self.0.write().clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_first_names_get_their_own_label() {
        let names = FirstNames::new(2);
        let seen: Vec<&str> = ["a", "b", "c", "a", "", "x\n"].into_iter().map(|n| names.label(n)).collect();
        assert_eq!(seen, ["a", "b", OTHER, "a", OTHER, OTHER]);
        assert_eq!(FirstNames::new(2).label(&"x".repeat(129)), OTHER);
    }

    #[test]
    fn a_handle_is_found_by_name_and_word_until_it_is_cleared() {
        let handles = Handles::new();
        handles.keep("a", "allow", 1);
        handles.keep("a", "deny", 2);
        handles.keep("a", "deny", 3);
        let found = |name: &str, word| {
            let mut found = None;
            handles.with(name, word, |handle| found = Some(*handle)).then_some(found).flatten()
        };
        assert_eq!(
            [found("a", "allow"), found("a", "deny"), found("b", "deny"), found("a", "x")],
            [Some(1), Some(2), None, None]
        );
        handles.clear();
        assert_eq!(found("a", "allow"), None);
    }
}
