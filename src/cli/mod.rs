//! Owns the command line: one module per verb, data to stdout, talk to stderr.
//! Does not serve (`server`) and does not read configuration files (`config`).
//! Invariant: everything that is printed as a table can be printed as JSON.

pub mod operations;
