//! Owns finding an earlier decision: the audit log's lines with the id that a `Tollbridge-Decision` header named.
//! Does not follow rotated files: name the file that held the day.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _};
use std::path::Path;

use serde_json::Value;

use crate::cli::{Ended, Format, say, talk};
use crate::config::Config;
use crate::telemetry::LogTarget;

/// Longest line that is looked at; ours are far shorter.
const LINE_BYTES_MAX: u64 = 64 * 1024;

pub(super) fn run(config: &Config, id: &str, log: Option<&Path>, format: Format) -> Ended {
    let file = match (log, &config.telemetry.audit_log) {
        (Some(file), _) => file,
        (None, LogTarget::File(file)) => file,
        (None, LogTarget::Off | LogTarget::Stdout) => {
            talk(
                "the audit log is no file here\nhelp: write `audit_log = { file = \"…\" }` in `[telemetry]`, or name one with `--audit-log`",
            );
            return Ended::Failed;
        }
    };
    match find(file, id) {
        Ok(found) if found.is_empty() => {
            talk(&format!(
                "no decision `{id}` in `{}`\nhelp: a rotated file is searched with `--audit-log FILE`",
                file.display()
            ));
            Ended::Wrong
        }
        Ok(found) => say(&render(&found, format)),
        Err(error) => {
            talk(&format!("cannot read `{}`: {error}", file.display()));
            Ended::Failed
        }
    }
}

/// Every line of the id, oldest first: one request may have carried several calls.
fn find(file: &Path, id: &str) -> std::io::Result<Vec<Value>> {
    let mut reader = BufReader::new(File::open(file)?);
    let mut found = Vec::new();
    let mut line = Vec::new();
    loop {
        line.clear();
        if reader.by_ref().take(LINE_BYTES_MAX).read_until(b'\n', &mut line)? == 0 {
            return Ok(found);
        }
        let parsed = serde_json::from_slice::<Value>(&line).ok();
        found.extend(parsed.filter(|line| line.get("request_id").and_then(Value::as_str) == Some(id)));
    }
}

fn render(found: &[Value], format: Format) -> String {
    match format {
        Format::Table => found.iter().map(|line| format!("{line}\n")).collect(),
        Format::Json => format!("{:#}\n", Value::from(found.to_vec())),
    }
}
