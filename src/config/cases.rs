//! Owns the reading of policy test cases, `*.test.toml`.
//! Does not run them (`policy` does).

use std::path::Path;

use crate::policy::CaseFile;

use super::problem::{Place, Problem, Problems};

/// Reads the policy test cases of a file.
///
/// # Errors
/// [`Problems`]: the file cannot be read, is not TOML, or holds something else than cases.
pub fn policy_cases(path: &Path) -> Result<CaseFile, Problems> {
    let text = super::read(path)?;
    super::parse(path, &text)?;
    let problem = |error: toml::de::Error| Problem {
        file: path.display().to_string(),
        place: error.span().map(|span| Place::of(&text, span.start)),
        message: super::one_line(error.message()),
        help: None,
    };
    toml::from_str(&text).map_err(|error| Problems(vec![problem(error)]))
}
