//! Owns what is wrong with a file: one `Problem` per finding, with its place, and the list of all of them.
//! Does not find problems (the readers do) and does not print (`cli` does).
//! Invariant: no message holds a secret.

use std::fmt;

/// Where in a file, counted from one; columns count characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// Line.
    pub line: usize,
    /// Column.
    pub column: usize,
}

/// One finding in a configuration or test-case file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The file as the caller named it.
    pub file: String,
    /// The place; `None` when it is the file itself (it cannot be read).
    pub place: Option<Place>,
    /// What is wrong: lower case, one line, no final period.
    pub message: String,
    /// What to do next.
    pub help: Option<String>,
}

/// Everything that is wrong, in file order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problems(pub Vec<Problem>);

// === impl Place ===

impl Place {
    /// The place of a byte offset. An offset past the end is the end.
    pub(super) fn of(text: &str, offset: usize) -> Self {
        let before = text.get(..offset).unwrap_or(text);
        let start = before.rfind('\n').map_or(0, |newline| newline + 1);
        let line = before.bytes().filter(|byte| *byte == b'\n').count() + 1;
        Self { line, column: before.get(start..).unwrap_or_default().chars().count() + 1 }
    }
}

// === impl Problem ===

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file)?;
        if let Some(Place { line, column }) = self.place {
            write!(f, ":{line}:{column}")?;
        }
        write!(f, ": {}", self.message)?;
        match &self.help {
            Some(help) => write!(f, "\n       help: {help}"),
            None => Ok(()),
        }
    }
}

// === impl Problems ===

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.0.iter().enumerate() {
            let separator = if index == 0 { "" } else { "\n" };
            write!(f, "{separator}{problem}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_counts_lines_and_characters_from_one() {
        let text = "ä = 1\nbö = 2";
        for (offset, line, column) in [(0, 1, 1), (3, 1, 3), (7, 2, 1), (10, 2, 3), (999, 2, 7)] {
            assert_eq!(Place::of(text, offset), Place { line, column }, "offset {offset}");
        }
    }

    #[test]
    fn a_problem_prints_its_place_and_its_help() {
        let problem = Problem {
            file: "config.toml".to_owned(),
            place: Some(Place { line: 31, column: 14 }),
            message: "unknown key `tokens_per_minuet` in `[quota.tenant]`".to_owned(),
            help: Some("did you mean `tokens_per_minute`?".to_owned()),
        };
        let whole = "config.toml:31:14: unknown key `tokens_per_minuet` in `[quota.tenant]`\n       \
                     help: did you mean `tokens_per_minute`?";
        assert_eq!(Problems(vec![problem.clone(), problem]).to_string(), format!("{whole}\n{whole}"));
    }
}
