//! Tollbridge: a programmable reverse proxy and MCP bridge for Agno AgentOS clusters.
//! This file is the table of contents; modules stand in reading order, lower floors first.
//! Invariant: a lower floor never imports a higher one (`tests/it/tidy.rs` proves it).

// Floor 0: values only; no tokio, no IO, no clock.
pub mod agentos;
pub mod principal;
pub mod secret;

// Floor 1: the edges to the world.
pub mod outbound;
pub mod store;
pub mod telemetry;

// Floor 2: the stages. Siblings are strangers.
pub mod cache;
pub mod cluster;
pub mod identity;
pub mod policy;
pub mod quota;
pub mod usage;

// Floor 3: the path.
pub mod gateway;

// Floor 4: the doors.
pub mod admin;
pub mod mcp;
pub mod proxy;

// Floors 5 to 7: settings, composition, command line.
pub mod cli;
pub mod config;
pub mod server;
