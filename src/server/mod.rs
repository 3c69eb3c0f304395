//! Owns the process: builds every module from the configuration, accepts connections, runs tasks, drains.
//! Does not serve requests itself (the doors do).
//! Invariant: every task is owned by `Tasks` and has ended before the process does.

mod accept;
mod compose;
mod reload;
mod run;
pub mod settings;
mod tasks;

pub use compose::{ComposeError, Composed, compose, stages};
pub use reload::RevokedError;
pub use run::{Running, StartError, serve, start};
pub use settings::{Settings, Threads};
pub use tasks::Tasks;
