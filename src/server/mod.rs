//! Owns the process: builds every module from the configuration, accepts connections, runs tasks, drains.
//! Does not serve requests itself (the doors do).
//! Invariant: every task is owned by `Tasks` and has ended before the process does.

mod accept;
mod background;
mod compose;
mod handover;
mod reload;
mod revoked;
mod run;
mod serve;
pub mod settings;
mod sockets;
mod supervisor;
mod tasks;
mod watch;

pub use compose::{ComposeError, Composed, compose, stages};
pub use reload::{ReloadError, Reread};
pub use revoked::RevokedError;
pub use run::{Running, StartError, start};
pub use serve::serve;
pub use settings::{Settings, Threads};
pub use tasks::Tasks;
