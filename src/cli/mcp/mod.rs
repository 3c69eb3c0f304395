//! Owns `tollbridge mcp`: the bridge between a desktop client's standard streams and the gateway's MCP endpoint, and the
//! snippets that make clients use one or the other.
//! Does not speak the protocol: messages pass as they are, of whichever revision.
//! Invariant: stdout carries messages of the protocol and nothing else.

mod exchange;
mod lines;
mod link;
mod message;
mod relay;
mod snippets;
mod token;
mod trouble;

#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use tokio::signal::unix::{SignalKind, signal};

use super::{Ended, talk};
use link::Link;
use token::Token;

/// What to connect with.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub(super) struct McpArguments {
    /// The MCP endpoint, such as `https://gateway.example.com/mcp`.
    #[arg(long, value_name = "URL", required = true)]
    url: Option<String>,
    /// File with the bare token; read again when it changes. Without it TOLLBRIDGE_TOKEN is taken.
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    #[command(subcommand)]
    verb: Option<McpVerb>,
}

#[derive(Debug, Subcommand)]
enum McpVerb {
    /// Print what to write into the configuration of a client.
    Config(snippets::SnippetArguments),
}

/// Relays until the client is gone, or prints a snippet.
pub(super) fn run(path: &Path, arguments: &McpArguments) -> Ended {
    match (&arguments.verb, &arguments.url) {
        (Some(McpVerb::Config(arguments)), _) => snippets::run(path, arguments),
        (None, Some(url)) => match relay(url, arguments.token_file.as_deref()) {
            Ok(()) => Ended::Done,
            Err(error) => {
                talk(&format!("tollbridge mcp: {error}"));
                Ended::Failed
            }
        },
        (None, None) => Ended::Failed,
    }
}

fn relay(url: &str, token_file: Option<&Path>) -> Result<(), String> {
    let link = Link::new(url, Token::from(token_file)?)?;
    if let Some(warning) = link.token.warning() {
        talk(&format!("tollbridge mcp: warning: {warning}"));
    }
    if link.is_exposed() {
        talk("tollbridge mcp: warning: the token crosses the network in the clear\nhelp: use an https URL");
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| format!("cannot start the runtime: {error}"))?;
    let ended = runtime.block_on(async {
        let stop = told_to_stop()?;
        relay::run(&link, tokio::io::stdin(), tokio::io::stdout(), stop).await
    });
    // A thread of the runtime may wait for input that never comes.
    runtime.shutdown_background();
    ended.map_err(|error| format!("the standard streams failed: {error}"))
}

/// Ready when the process is told to stop.
fn told_to_stop() -> std::io::Result<impl Future<Output = ()>> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}
