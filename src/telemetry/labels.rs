//! Owns the bounds of label values: every value costs memory here and in the database that scrapes us.
//! Does not know metrics.

use std::collections::HashSet;

use parking_lot::RwLock;

/// The value for everything that does not fit.
pub(super) const OTHER: &str = "other";
/// Longest label value, in bytes.
const VALUE_BYTES_MAX: usize = 128;

/// The first names seen, up to a number; later ones are `other`.
pub(super) struct FirstNames {
    names_max: usize,
    seen: RwLock<HashSet<Box<str>, foldhash::fast::RandomState>>,
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
}
