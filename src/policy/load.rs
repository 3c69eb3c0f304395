//! Owns reading policy files: finding, parsing, validating and naming them, with every problem told at once.
//! Does not decide which of them apply to what (`slice`).
//! Invariant: what it returns without a problem is strictly valid and has unique ids.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::path::Path;
use std::str::FromStr as _;

use cedar_policy::{
    Policy, PolicyId, PolicySet, Schema, ValidationError, ValidationMode, ValidationWarning, Validator,
};
use miette::Diagnostic;

use crate::agentos::Action;

use super::lint::{Reading, nearest};

/// Longest policy id, in bytes.
const ID_BYTES_MAX: usize = 64;
/// Largest policy file, in bytes.
const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// Everything that is wrong with a set of policies, in the order of the files.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct LoadErrors {
    /// The problems; never empty.
    pub errors: Vec<LoadError>,
}

/// One problem of a policy file or of the policy directory.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct LoadError {
    /// The file or directory.
    pub file: String,
    /// Line, from 1; 0 when the problem has no place inside the file.
    pub line: usize,
    /// Column in characters, from 1; 0 when `line` is.
    pub column: usize,
    /// What is wrong.
    pub message: String,
    /// What to do about it.
    pub help: Option<String>,
}

/// A valid policy and where it stands.
#[derive(Debug, Clone)]
pub(super) struct Loaded {
    pub(super) id: String,
    pub(super) policy: Policy,
    pub(super) file: String,
    pub(super) line: usize,
}

/// What policies are checked against.
pub(super) struct Judge {
    validator: Validator,
    operations: Vec<&'static str>,
}

/// A policy file.
struct Source {
    file: String,
    text: String,
}

// === impl LoadErrors ===

impl fmt::Display for LoadErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, error) in self.errors.iter().enumerate() {
            let end_of_previous = if index == 0 { "" } else { "\n" };
            write!(f, "{end_of_previous}{error}")?;
        }
        Ok(())
    }
}

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.line == 0 {
            write!(f, "{}: {}", self.file, self.message)?;
        } else {
            write!(f, "{}:{}:{}: {}", self.file, self.line, self.column, self.message)?;
        }
        match &self.help {
            Some(help) => write!(f, "\n       help: {help}"),
            None => Ok(()),
        }
    }
}

// === impl LoadError ===

impl LoadError {
    /// A problem of a whole file or directory.
    pub(super) fn of(file: impl fmt::Display, message: impl Into<String>, help: Option<&str>) -> Self {
        Self { file: file.to_string(), line: 0, column: 0, message: message.into(), help: help.map(str::to_owned) }
    }
}

/// Reads every `*.cedar` file of the directory, in the order of their names.
///
/// A directory that is not there has no policies; the caller says whether that is a problem.
pub(super) fn read(dir: &Path, judge: &Judge, problems: &mut Vec<LoadError>) -> Vec<Loaded> {
    let mut loaded = Vec::new();
    for source in sources(dir, problems) {
        match PolicySet::from_str(&source.text) {
            Ok(set) => judge.file(&source, &set, &mut loaded, problems),
            Err(errors) => problems.extend(errors.iter().map(|error| source.diagnostic(error, error.to_string()))),
        }
    }
    refuse_twins(&loaded, problems);
    loaded
}

fn sources(dir: &Path, problems: &mut Vec<LoadError>) -> Vec<Source> {
    let names = match file_names(dir) {
        Ok(names) => names,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Vec::new(),
        Err(error) => {
            problems.push(LoadError::of(dir.display(), format!("cannot be read: {error}"), None));
            return Vec::new();
        }
    };
    let mut sources = Vec::new();
    for name in names {
        let path = dir.join(name);
        let file = path.display().to_string();
        match read_text(&path) {
            Ok(text) => sources.push(Source { file, text }),
            Err(reason) => problems.push(LoadError::of(file, reason, None)),
        }
    }
    sources
}

fn file_names(dir: &Path) -> io::Result<BTreeSet<std::ffi::OsString>> {
    let mut names = BTreeSet::new();
    for entry in std::fs::read_dir(dir)? {
        let name = entry?.file_name();
        let hidden = name.to_str().is_some_and(|n| n.starts_with('.'));
        if !hidden && Path::new(&name).extension().is_some_and(|e| e == "cedar") {
            names.insert(name);
        }
    }
    Ok(names)
}

fn read_text(path: &Path) -> Result<String, String> {
    let bytes = std::fs::metadata(path).map_err(|error| format!("cannot be read: {error}"))?.len();
    if bytes > FILE_BYTES_MAX {
        return Err(format!("is {bytes} bytes long: a policy file may have {FILE_BYTES_MAX}"));
    }
    std::fs::read_to_string(path).map_err(|error| format!("cannot be read: {error}"))
}

/// Reports every policy whose id another one has taken.
fn refuse_twins(loaded: &[Loaded], problems: &mut Vec<LoadError>) {
    let mut first: BTreeMap<&str, &Loaded> = BTreeMap::new();
    for policy in loaded {
        if let Some(other) = first.get(policy.id.as_str()) {
            let message = format!("policy id `{}` is taken by {}:{}", policy.id, other.file, other.line);
            problems.push(LoadError {
                line: policy.line,
                column: 1,
                ..LoadError::of(
                    &policy.file,
                    message,
                    Some("ids name policies in logs and metrics: choose another one"),
                )
            });
        } else {
            first.insert(&policy.id, policy);
        }
    }
}

// === impl Judge ===

impl Judge {
    /// A judge over the schema and the operation ids.
    pub(super) fn new(schema: &Schema, operations: Vec<&'static str>) -> Self {
        Self { validator: Validator::new(schema.clone()), operations }
    }

    fn file(&self, source: &Source, set: &PolicySet, loaded: &mut Vec<Loaded>, problems: &mut Vec<LoadError>) {
        for template in set.templates() {
            let place = template.as_ref().loc().map_or(0, |loc| loc.start());
            let message = "`?principal` and `?resource` have nothing to be filled with";
            let help = Some("write the policy for roles or attributes instead");
            problems.push(source.problem(place, message.to_owned(), help.map(str::to_owned)));
        }
        let mut policies: Vec<&Policy> = set.policies().collect();
        policies.sort_by_key(|policy| start(policy));
        for policy in policies {
            self.dead_words(source, policy, problems);
            match named(source, policy) {
                Ok(policy) => loaded.push(policy),
                Err(problem) => problems.push(problem),
            }
        }
        problems.extend(self.validate(source, set));
    }

    /// Strict validation. Warnings count: a policy that can never apply protects or permits nothing.
    fn validate(&self, source: &Source, set: &PolicySet) -> Vec<LoadError> {
        let result = self.validator.validate(set, ValidationMode::Strict);
        let wrong: BTreeSet<&PolicyId> = result.validation_errors().map(ValidationError::policy_id).collect();
        // A policy with an error is often impossible because of it: the error says it all.
        let warnings = result.validation_warnings().filter(|warning| !wrong.contains(warning.policy_id()));
        let errors = result.validation_errors().map(|error| self.error(source, error));
        let mut found: Vec<LoadError> = errors.chain(warnings.map(|warning| self.warning(source, warning))).collect();
        found.sort();
        // The validator repeats itself for every resource type: one problem per place is enough.
        found.dedup_by_key(|problem| (problem.line, problem.column));
        found
    }

    fn error(&self, source: &Source, error: &ValidationError) -> LoadError {
        let mut problem = source.diagnostic(error, without_policy(error, error.policy_id()));
        if let ValidationError::UnrecognizedActionId(_) = error {
            // Cedar's own guess compares whole names, which all begin alike.
            let known = self.operations.iter().copied().chain(Action::ALL.iter().map(|group| group.as_str()));
            let word = problem.message.split('"').nth(1).unwrap_or_default();
            problem.help = nearest(word, known).map(|near| format!("did you mean `{near}`?"));
        }
        problem
    }

    fn warning(&self, source: &Source, warning: &ValidationWarning) -> LoadError {
        let problem = source.diagnostic(warning, without_policy(warning, warning.policy_id()));
        match warning {
            ValidationWarning::ImpossiblePolicy(_) => LoadError {
                message: "policy can never apply: no call satisfies its head and conditions".to_owned(),
                help: Some(
                    "compare the type of `resource` and the attributes with the schema of the action".to_owned(),
                ),
                ..problem
            },
            _ => problem,
        }
    }

    fn dead_words(&self, source: &Source, policy: &Policy, problems: &mut Vec<LoadError>) {
        let from = start(policy);
        for dead in Reading::of(policy).dead_words(&self.operations) {
            let quoted = format!("\"{}\"", dead.word);
            let place = source.text.get(from..).and_then(|rest| rest.find(&quoted)).map_or(from, |at| from + at);
            let message = format!("`context.{}` is never `{}`", dead.attribute, dead.word);
            let help = dead.nearest.map(|word| format!("did you mean `{word}`?"));
            problems.push(source.problem(place, message, help));
        }
    }
}

fn named(source: &Source, policy: &Policy) -> Result<Loaded, LoadError> {
    let place = start(policy);
    let help = "write `@id(\"short-name\")` before it, of `a-z A-Z 0-9 . _ -`: decisions, logs and metrics name it";
    let problem = |message: String| source.problem(place, message, Some(help.to_owned()));
    let id = policy.annotation("id").ok_or_else(|| problem("policy has no `@id`".to_owned()))?;
    let plain = id.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'));
    if !plain || !(1..=ID_BYTES_MAX).contains(&id.len()) {
        return Err(problem(format!("policy id `{}` is not 1 to 64 plain characters", id.escape_debug())));
    }
    Ok(Loaded {
        id: id.to_owned(),
        policy: policy.new_id(PolicyId::new(id)),
        file: source.file.clone(),
        line: source.position(place).0,
    })
}

/// Byte offset of a policy in its file.
fn start(policy: &Policy) -> usize {
    policy.as_ref().loc().map_or(0, |loc| loc.start())
}

/// Cedar starts its messages with the number of the policy in the file, which the position says better.
fn without_policy(error: &impl fmt::Display, id: &PolicyId) -> String {
    let text = error.to_string();
    text.strip_prefix(&format!("for policy `{id}`, ")).unwrap_or(&text).to_owned()
}

// === impl Source ===

impl Source {
    fn diagnostic(&self, error: &dyn Diagnostic, message: String) -> LoadError {
        let place = error.labels().and_then(|mut labels| labels.next()).map_or(0, |label| label.offset());
        self.problem(place, message, error.help().map(|help| help.to_string()))
    }

    fn problem(&self, place: usize, message: String, help: Option<String>) -> LoadError {
        let (line, column) = self.position(place);
        let one_line = |text: String| text.split_whitespace().collect::<Vec<_>>().join(" ");
        LoadError { file: self.file.clone(), line, column, message: one_line(message), help: help.map(one_line) }
    }

    /// Line and column of a byte offset.
    fn position(&self, place: usize) -> (usize, usize) {
        let before = self.text.get(..place).unwrap_or(&self.text);
        let line_start = before.rfind('\n').map_or(0, |at| at + 1);
        let column = before.get(line_start..).unwrap_or_default().chars().count() + 1;
        (before.matches('\n').count() + 1, column)
    }
}
