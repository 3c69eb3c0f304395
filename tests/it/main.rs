//! Owns the one integration test binary; each module is one subject.
//! Does not hold tests itself.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "what helps a test may panic like it")]

mod agno;
mod approvals;
mod approvals_agno;
mod attack_isolation;
mod audit;
mod authority;
mod cancels;
mod cli;
mod clusters_agno;
mod config;
mod corpora;
mod dns;
mod explained;
mod fake;
mod faults;
mod forward_credential;
mod http_bodies;
mod http_framing;
mod http_headers;
mod http_lists;
mod http_quotas;
mod http_refusals;
mod http_retries;
mod http_schedules;
mod http_streams;
mod http_two;
mod http_two_raw;
mod mcp_authorization;
mod mcp_client;
mod mcp_door;
mod mcp_pauses;
mod mcp_resources;
mod name_server;
mod policies;
mod quotas_kept;
mod quotas_shared;
mod real_agno;
mod real_holes;
mod real_mcp;
mod real_people;
mod real_quotas;
mod real_stack;
mod redis_kinds;
mod redis_server;
mod shadow;
mod stack;
mod starlette;
mod stores;
mod threats;
mod tidy;
mod twin;
mod unknown_tenants;
mod websocket;
