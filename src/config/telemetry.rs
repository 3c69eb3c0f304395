//! Owns `[telemetry]`: where the access log and the audit log go, and what happens when the latter cannot.
//! Does not open files.

use crate::telemetry::{AuditFailure, LogTarget, Settings};

use super::reader::{Table, Value};

pub(super) fn read(root: &Table<'_>) -> Settings {
    let audit_log = LogTarget::File(root.source.path("audit.jsonl"));
    let default = Settings { access_log: LogTarget::Stdout, audit_log, audit_failure: AuditFailure::Continue };
    let Some(table) = root.section("telemetry") else { return default };
    let access_log = table.get("access_log").and_then(|v| target(&v)).unwrap_or(default.access_log);
    let audit_log = table.get("audit_log").and_then(|v| target(&v)).unwrap_or(default.audit_log);
    let words = [("continue", AuditFailure::Continue), ("refuse", AuditFailure::Refuse)];
    let failure = table.get("audit_failure");
    let audit_failure = failure.as_ref().and_then(|v| v.word(&words)).unwrap_or_default();
    if let (Some(value), AuditFailure::Refuse, LogTarget::Off) = (&failure, audit_failure, &audit_log) {
        let help = "write `audit_log = { file = \"audit.jsonl\" }`, or leave `audit_failure` out".to_owned();
        let _: Option<()> = value.problem("is `refuse`, but `audit_log` is off: nothing would be audited", Some(help));
    }
    table.close();
    Settings { access_log, audit_log, audit_failure }
}

fn target(value: &Value<'_>) -> Option<LogTarget> {
    if value.text().is_some() {
        return value.word(&[("stdout", LogTarget::Stdout), ("off", LogTarget::Off)]);
    }
    if !value.is_table() {
        return value.wrong_type("`\"stdout\"`, `\"off\"` or `{ file = \"path\" }`");
    }
    let table = value.table()?;
    let file = table.require("file", "\"access.jsonl\"").and_then(|v| v.path());
    table.close();
    Some(LogTarget::File(file?))
}
