//! Owns `tollbridge run`: logging, the runtime, and the server inside it.
//! Does not decide when to reload (`server`).

use std::path::Path;
use std::sync::Arc;

use super::{Ended, chain, configuration, talk};
use crate::config::{self, ProcessEnv};
use crate::server::{self, Reread, StartError, Threads};
use crate::telemetry;

/// What is logged to stderr: state changes of ours, warnings of everybody else.
/// rmcp logs bodies, session ids and callers' mistakes.
const LOG_FILTER: &str = "warn,rmcp=off,tollbridge=info";

/// Serves until a signal. Worker threads call `at_rest` before they wait.
pub(super) fn run(path: &Path, at_rest: fn()) -> Ended {
    let Some(config) = configuration(path) else { return Ended::Wrong };
    if let Err(error) = telemetry::init_tracing(LOG_FILTER) {
        talk(&format!("cannot log: {error}"));
        return Ended::Failed;
    }
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder.on_thread_park(at_rest);
    if let Threads::Count(threads) = config.server.threads {
        builder.worker_threads(threads);
    }
    let runtime = match builder.enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            talk(&format!("cannot start the runtime: {error}"));
            return Ended::Failed;
        }
    };
    let from = path.to_owned();
    let reread: Reread = Arc::new(move || config::load(&from, &ProcessEnv));
    match runtime.block_on(server::serve(config, reread)) {
        Ok(()) => Ended::Done,
        Err(StartError::Compose(errors)) => {
            errors.iter().for_each(|error| talk(&chain(error)));
            Ended::Wrong
        }
        Err(error) => {
            talk(&chain(&error));
            Ended::Wrong
        }
    }
}
