//! Proves the command line on the built binary: what goes to stdout and stderr, and the exit codes.
//! Does not test what the modules behind it decide.

mod bridge;
mod cases;
mod check;
mod explain;
mod key;
mod signals;
mod upgrade;

use std::path::Path;
use std::process::Command;

use serde_json::Value;
use tempfile::TempDir;

/// The secret that callers' tokens are signed with.
const CALLER_KEY: &str = "caller-key-caller-key-caller-key-01234567";

/// A folder with a configuration, in which commands run.
struct Desk {
    folder: TempDir,
}

/// What a command left behind.
#[derive(Debug)]
struct Said {
    code: i32,
    out: String,
    err: String,
}

// === impl Desk ===

impl Desk {
    /// The configuration of two tenants on one cluster whose only endpoint is this; `more` stands at its end.
    fn new(endpoint: &str, more: &str) -> Self {
        let folder = TempDir::new().unwrap();
        let policies = Path::new(env!("CARGO_MANIFEST_DIR")).join("policies");
        let config = format!(
            r#"
[server]
listen = "127.0.0.1:0"
public_url = "http://127.0.0.1"
secret = {{ env = "TOLLBRIDGE_SECRET" }}
[admin]
listen = "127.0.0.1:0"
[[clusters]]
name = "main"
endpoints = ["{endpoint}"]
credential = {{ mint = {{ algorithm = "HS256", key = {{ env = "AGENTOS_JWT_KEY" }}, audience = "my-os" }} }}
knowledge = {{ metadata = "tenant" }}
[plans.open]
requests = {{ per_minute = 60 }}
concurrent_runs = 2
tokens = "unlimited"
[tenants.acme]
[tenants.globex]
[quota]
default_plan = "open"
[policy]
dir = {policies:?}
[[identity.issuers]]
issuer = "https://id.test"
audiences = ["tollbridge"]
algorithms = ["HS256"]
key = {{ env = "TOLLBRIDGE_JWT_KEY" }}
{more}
"#
        );
        std::fs::write(folder.path().join("config.toml"), config).unwrap();
        Self { folder }
    }

    /// A command with its environment, not yet run.
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tollbridge"));
        command.args(arguments).current_dir(self.folder.path()).env_clear();
        command.env("TOLLBRIDGE_SECRET", "secret-secret-secret-secret-secret-0123");
        command.env("TOLLBRIDGE_JWT_KEY", CALLER_KEY);
        command.env("AGENTOS_JWT_KEY", "agentos-key-agentos-key-agentos-key-0123");
        command
    }

    fn run(&self, arguments: &[&str]) -> Said {
        let output = self.command(arguments).output().unwrap();
        Said {
            code: output.status.code().unwrap(),
            out: String::from_utf8(output.stdout).unwrap(),
            err: String::from_utf8(output.stderr).unwrap(),
        }
    }

    fn file(&self, name: &str) -> std::path::PathBuf {
        self.folder.path().join(name)
    }
}

// === impl Said ===

impl Said {
    fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}
