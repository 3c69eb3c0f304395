//! Owns the one integration test binary; each module is one subject.
//! Does not hold tests itself.

mod agno;
mod approvals;
mod approvals_agno;
mod config;
mod fake;
mod http_framing;
mod http_refusals;
mod stack;
mod tidy;
