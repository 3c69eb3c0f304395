//! Owns the command line: one module per verb, data to stdout, talk to stderr.
//! Does not serve (`server`) and does not read configuration files (`config`).
//! Invariant: everything that is printed as a table can be printed as JSON.

mod check;
mod explain;
mod key;
mod mcp;
pub mod operations;
mod quota;
mod rehearsal;
mod serve;
mod test;
mod token;
mod tools;

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::agentos::Catalog;
use crate::config::{self, Config, ProcessEnv};
use crate::policy::Policies;
use crate::principal::TenantId;

/// Programmable reverse proxy and MCP bridge for Agno AgentOS clusters.
#[derive(Debug, Parser)]
#[command(name = "tollbridge", version, about, arg_required_else_help = true)]
struct Arguments {
    /// Configuration file.
    #[arg(long, global = true, default_value = "config.toml", value_name = "FILE")]
    config: PathBuf,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Serve until SIGTERM, which drains.
    Run,
    /// Check everything that can be checked without binding a port.
    Check,
    /// Say what would happen to a call, stage by stage, and what would allow it; or find an earlier decision.
    Explain(explain::ExplainArguments),
    /// Print the catalogue of operations.
    Operations(Printed),
    /// Print the MCP tools that a caller would be shown.
    Tools(tools::ToolsArguments),
    /// Connect a client that starts its MCP servers to the gateway's MCP endpoint; or print its configuration.
    Mcp(mcp::McpArguments),
    /// Work with policies.
    Policy {
        #[command(subcommand)]
        verb: PolicyVerb,
    },
    /// Run policy test cases (`*.test.toml`).
    Test {
        /// A file, or a folder of them; by default the policy folder of the configuration.
        path: Option<PathBuf>,
    },
    /// Mint a development token with a key of the configuration.
    Token(token::TokenArguments),
    /// Show, correct and export quotas of a gateway that runs.
    Quota {
        #[command(subcommand)]
        verb: quota::QuotaVerb,
    },
    /// Work with API keys.
    Key {
        #[command(subcommand)]
        verb: KeyVerb,
    },
}

#[derive(Debug, Subcommand)]
enum KeyVerb {
    /// Make an API key: the key to stdout, once; its configuration block to stderr.
    New(key::KeyArguments),
}

#[derive(Debug, Subcommand)]
enum PolicyVerb {
    /// Print the Cedar schema.
    Schema,
}

#[derive(Debug, Args)]
struct Printed {
    /// How to print.
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,
}

/// Whom a credential stands for, and what it may.
#[derive(Debug, Args)]
struct Rights {
    /// Tenant.
    #[arg(long, value_name = "TENANT")]
    tenant: String,
    /// A role; may be given several times.
    #[arg(long = "role", value_name = "ROLE")]
    roles: Vec<String>,
    /// An AgentOS scope such as `agents:run`; may be given several times.
    #[arg(long = "scope", value_name = "SCOPE")]
    scopes: Vec<String>,
    /// Plan; by default the tenant's.
    #[arg(long, value_name = "PLAN")]
    plan: Option<String>,
}

impl Rights {
    /// The tenant, if it can be one.
    fn tenant(&self) -> Result<TenantId, String> {
        TenantId::new(&self.tenant).map_err(|error| error.to_string())
    }
}

/// Warns of a tenant that the configuration does not have.
fn warn_of_stranger(config: &Config, tenant: &TenantId) {
    if !config.tenants.contains_key(tenant) {
        let known: Vec<_> = config.tenants.keys().map(TenantId::as_str).collect();
        talk(&format!("warning: tenant `{tenant}` is not in the configuration, which has {}", known.join(", ")));
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// Columns for people.
    Table,
    /// One JSON document.
    Json,
}

/// How a command ended.
enum Ended {
    /// Done: exit code 0.
    Done,
    /// The checked thing is wrong: exit code 1.
    Wrong,
    /// Usage or internal failure: exit code 2.
    Failed,
}

/// Parses the arguments of the process and runs the command. A server's worker threads call `at_rest` whenever they find
/// nothing to do: it must be quick and must not panic.
pub fn main(at_rest: fn()) -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            // clap prints help and version to stdout, errors to stderr.
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { 2 } else { 0 });
        }
    };
    match run(arguments, at_rest) {
        Ended::Done => ExitCode::SUCCESS,
        Ended::Wrong => ExitCode::from(1),
        Ended::Failed => ExitCode::from(2),
    }
}

fn run(arguments: Arguments, at_rest: fn()) -> Ended {
    let path = &arguments.config;
    match arguments.verb {
        Verb::Run => serve::run(path, at_rest),
        Verb::Check => check::run(path),
        Verb::Explain(arguments) => explain::run(path, &arguments),
        Verb::Operations(printed) => {
            let format = match printed.format {
                Format::Table => operations::Format::Table,
                Format::Json => operations::Format::Json,
            };
            catalog(path).map_or(Ended::Wrong, |catalog| say(&operations::render(&catalog, format)))
        }
        Verb::Tools(arguments) => tools::run(path, &arguments),
        Verb::Mcp(arguments) => mcp::run(path, &arguments),
        Verb::Policy { verb: PolicyVerb::Schema } => catalog(path).map_or(Ended::Wrong, |catalog| {
            let rows: Vec<_> = catalog.rows().iter().collect();
            say(&Policies::schema(&rows))
        }),
        Verb::Test { path: cases } => test::run(path, cases.as_deref()),
        Verb::Token(arguments) => token::run(path, &arguments),
        Verb::Quota { verb } => quota::run(path, &verb),
        Verb::Key { verb: KeyVerb::New(arguments) } => key::run(path, &arguments),
    }
}

/// Prints data.
fn say(text: &str) -> Ended {
    match std::io::stdout().lock().write_all(text.as_bytes()) {
        Ok(()) => Ended::Done,
        // A closed pipe is the reader's choice.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ended::Done,
        Err(_) => Ended::Failed,
    }
}

/// Talks to the operator.
fn talk(text: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}

/// An error with its causes, on one line unless the error itself takes several.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(&format!(": {error}"));
        cause = error.source();
    }
    text
}

/// Reads the configuration; problems and warnings go to stderr.
fn configuration(path: &Path) -> Option<Config> {
    match config::load(path, &ProcessEnv) {
        Ok((config, warnings)) => {
            warnings.iter().for_each(|warning| talk(&format!("warning: {warning}")));
            Some(config)
        }
        Err(problems) => {
            talk(&problems.to_string());
            None
        }
    }
}

/// The catalogue: with the operator's rows when there is a configuration, else as shipped.
fn catalog(path: &Path) -> Option<Catalog> {
    if !path.exists() {
        return Some(Catalog::shipped());
    }
    let config = configuration(path)?;
    match Catalog::with_rows(config.operations) {
        Ok(catalog) => Some(catalog),
        Err(error) => {
            talk(&error.to_string());
            None
        }
    }
}
