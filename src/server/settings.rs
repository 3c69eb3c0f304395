//! Owns the name `server::Settings`; the type stands in `config`, which may not look up to this floor.

pub use crate::config::{ServerSettings as Settings, Threads};
