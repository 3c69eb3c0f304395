//! Owns the configuration file of a test stack: working defaults, any key of which a test may replace.
//! Does not know what the keys mean; `tollbridge::config` refuses what does not exist.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

/// A configuration under construction.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    sections: Vec<(String, Vec<(String, String)>)>,
    policies: Vec<(String, String)>,
}

// === impl Settings ===

impl Settings {
    /// Two tenants, `acme` and `globex`, on one cluster, with a plan that never refuses.
    pub(crate) fn new() -> Self {
        let defaults: &[(&str, &[(&str, &str)])] = &[
            (
                "[server]",
                &[
                    ("listen", "\"127.0.0.1:0\""),
                    ("public_url", "\"http://127.0.0.1\""),
                    ("drain_timeout", "\"2s\""),
                    ("secret", "{ env = \"TOLLBRIDGE_SECRET\" }"),
                ],
            ),
            ("[server.limits]", &[]),
            ("[admin]", &[("listen", "\"127.0.0.1:0\"")]),
            (
                "[[clusters]]",
                &[
                    ("name", "\"main\""),
                    (
                        "credential",
                        "{ mint = { algorithm = \"HS256\", key = { env = \"AGENTOS_JWT_KEY\" }, audience = \"my-os\" } }",
                    ),
                    ("knowledge", "{ metadata = \"tenant\" }"),
                ],
            ),
            ("[clusters.health]", &[]),
            ("[clusters.timeouts]", &[]),
            ("[identity]", &[("leeway", "\"0s\"")]),
            (
                "[[identity.issuers]]",
                &[
                    ("issuer", "\"https://id.test\""),
                    ("audiences", "[\"tollbridge\"]"),
                    ("algorithms", "[\"HS256\"]"),
                    ("key", "{ env = \"TOLLBRIDGE_JWT_KEY\" }"),
                ],
            ),
            ("[policy]", &[]),
            (
                "[plans.open]",
                &[("requests", "\"unlimited\""), ("concurrent_runs", "\"unlimited\""), ("tokens", "\"unlimited\"")],
            ),
            ("[tenants.acme]", &[]),
            ("[tenants.globex]", &[]),
            ("[quota]", &[("default_plan", "\"open\""), ("flood", "\"off\"")]),
            ("[cache]", &[]),
            ("[mcp]", &[]),
            (
                "[telemetry]",
                &[("access_log", "{ file = \"access.jsonl\" }"), ("audit_log", "{ file = \"audit.jsonl\" }")],
            ),
        ];
        let mut settings = Self { sections: Vec::new(), policies: Vec::new() };
        for (section, keys) in defaults {
            settings.sections.push(((*section).to_owned(), Vec::new()));
            for (key, value) in *keys {
                settings = settings.set(section, key, value);
            }
        }
        settings
    }

    /// Sets a key of a section, named by its header; the value is TOML. A section that is not there is added at the
    /// end; of sections of one name (`[[clusters]]`) this means the first.
    pub(crate) fn set(mut self, section: &str, key: &str, value: &str) -> Self {
        let at = self.sections.iter().position(|(header, _)| header == section).unwrap_or_else(|| {
            self.sections.push((section.to_owned(), Vec::new()));
            self.sections.len() - 1
        });
        let keys = &mut self.sections[at].1;
        keys.retain(|(other, _)| other != key);
        keys.push((key.to_owned(), value.to_owned()));
        self
    }

    /// Adds to a key whose value is an inline table.
    pub(crate) fn amend(mut self, section: &str, key: &str, more: &str) -> Self {
        let keys = self.sections.iter_mut().filter(|(header, _)| header == section).flat_map(|(_, keys)| keys);
        for (_, value) in keys.filter(|(name, _)| name == key) {
            let open = value.strip_suffix('}').unwrap();
            *value = format!("{open}, {more} }}");
        }
        self
    }

    /// Adds a section at the end, also when there is one of that name (`[[clusters]]`, `[[cache.rules]]`).
    pub(crate) fn add(mut self, section: &str, keys: &[(&str, &str)]) -> Self {
        let keys = keys.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        self.sections.push((section.to_owned(), keys));
        self
    }

    /// Adds a policy file beside the shipped ones; its path may begin with `shadow/`.
    pub(crate) fn policy(mut self, path: &str, text: &str) -> Self {
        self.policies.push((path.to_owned(), text.to_owned()));
        self
    }

    /// The folder of the policies: the shipped one, or a copy of it in `folder` with the files of the test.
    pub(super) fn policies(&self, shipped: &Path, folder: &Path) -> PathBuf {
        if self.policies.is_empty() {
            return shipped.to_owned();
        }
        let copy = folder.join("policies");
        std::fs::create_dir_all(copy.join("shadow")).unwrap();
        for entry in std::fs::read_dir(shipped).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|extension| extension == "cedar") {
                std::fs::copy(&path, copy.join(path.file_name().unwrap())).unwrap();
            }
        }
        self.policies.iter().for_each(|(path, text)| std::fs::write(copy.join(path), text).unwrap());
        copy
    }

    /// The file. A cluster that names no endpoints gets these.
    pub(super) fn toml(&self, endpoints: &[String], policies: &Path) -> String {
        let mut text = String::new();
        for (header, keys) in &self.sections {
            writeln!(text, "{header}").unwrap();
            for (key, value) in keys {
                writeln!(text, "{key} = {value}").unwrap();
            }
            let has = |wanted: &str| keys.iter().any(|(key, _)| key == wanted);
            if header == "[[clusters]]" && !has("endpoints") && !has("dns") {
                writeln!(text, "endpoints = {endpoints:?}").unwrap();
            }
            if header == "[policy]" && !has("dir") {
                writeln!(text, "dir = {policies:?}").unwrap();
            }
        }
        text
    }
}
