//! One test binary: everything that is tested from outside the library.

mod config;
mod tidy;
