//! Owns `tollbridge test`: runs the policy cases of a file or folder and says which fail, and how.
//! Does not evaluate (`policy`).

use std::path::{Path, PathBuf};

use super::{Ended, configuration, say, talk};
use crate::agentos::Catalog;
use crate::config;
use crate::policy::Policies;

/// How files with cases are named.
const CASES_END: &str = ".test.toml";

/// Runs the cases under `cases`, by default those in the policy folder.
pub(super) fn run(path: &Path, cases: Option<&Path>) -> Ended {
    let Some(config) = configuration(path) else { return Ended::Wrong };
    let catalog = match Catalog::with_rows(config.operations) {
        Ok(catalog) => catalog,
        Err(error) => {
            talk(&error.to_string());
            return Ended::Wrong;
        }
    };
    let rows: Vec<_> = catalog.rows().iter().collect();
    let policies = match Policies::load(&config.policy, &rows) {
        Ok(policies) => policies,
        Err(errors) => {
            talk(&errors.to_string());
            return Ended::Wrong;
        }
    };
    match files(cases.unwrap_or(&config.policy.dir)) {
        Ok(files) if files.is_empty() => {
            talk(&format!("no file ends with `{CASES_END}`"));
            Ended::Wrong
        }
        Ok(files) => report(&policies, &files),
        Err(error) => {
            talk(&error);
            Ended::Failed
        }
    }
}

fn report(policies: &Policies, files: &[PathBuf]) -> Ended {
    let (mut passed, mut failed) = (0, 0);
    for file in files {
        let cases = match config::policy_cases(file) {
            Ok(cases) => cases.case,
            Err(problems) => {
                talk(&problems.to_string());
                failed += 1;
                continue;
            }
        };
        for result in policies.check(&cases) {
            match result.failure {
                None => passed += 1,
                Some(why) => {
                    failed += 1;
                    talk(&format!("{}: case `{}`: {why}", file.display(), result.name));
                }
            }
        }
    }
    // The count is what was asked for: data, whatever it says.
    match (say(&format!("{passed} passed, {failed} failed\n")), failed) {
        (Ended::Done, 0) => Ended::Done,
        (Ended::Done, _) => Ended::Wrong,
        (ended, _) => ended,
    }
}

/// The files with cases, sorted.
fn files(path: &Path) -> Result<Vec<PathBuf>, String> {
    if path.is_file() {
        return Ok(vec![path.to_owned()]);
    }
    let entries = std::fs::read_dir(path).map_err(|error| format!("cannot read `{}`: {error}", path.display()))?;
    let mut files: Vec<PathBuf> = entries
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .filter(|file| file.to_string_lossy().ends_with(CASES_END))
        .collect();
    files.sort();
    Ok(files)
}
