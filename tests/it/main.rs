//! Owns the one integration test binary; each module is one subject.
//! Does not hold tests itself.

mod agno;
mod audit;
mod authority;
mod cli;
mod config;
mod fake;
mod stack;
mod tidy;
