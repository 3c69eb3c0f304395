//! Serves the WebSocket codec of the HTTP door as an echo, for the conformance suite. Prints the address it listens on.
//! Does not authenticate and knows no AgentOS: `/workflows/ws` is the same codec with a protocol on top.

#![allow(clippy::print_stdout, reason = "the address is its output")]

use std::io::Write as _;

use tokio::net::TcpListener;
use tokio::task::JoinSet;

#[tokio::main(flavor = "current_thread")]
async fn main() -> std::io::Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    println!("{}", listener.local_addr()?);
    std::io::stdout().flush()?;
    let mut connections = JoinSet::new();
    loop {
        let (stream, peer) = listener.accept().await?;
        while connections.try_join_next().is_some() {}
        connections.spawn(tollbridge::proxy::fuzzing::echo(stream, peer));
    }
}
