//! Owns the process log: changes of state, on standard error, as JSON.
//! Does not carry exchanges (access log) or decisions (audit log).

use tracing_log::{AsLog as _, LogTracer};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

/// Libraries that tell per-connection troubles: only what a person should see. `rmcp::service` reports an error whenever
/// a listening client leaves.
const LIBRARIES: &str = "pingora=warn,pingora_core=warn,pingora_proxy=warn,pingora_pool=warn,hyper=warn,rmcp=warn,\
    rmcp::service=off";

/// The process log could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum TracingError {
    /// The filter is not one.
    #[error("log filter `{filter}` is not valid: {reason}\nhelp: a level such as `info`, or `target=level,…`")]
    BadFilter {
        /// The filter as given.
        filter: String,
        /// Why.
        reason: String,
    },
    /// The process has a log already.
    #[error("the process log is set up already")]
    AlreadySet,
}

/// Sends `tracing` events and `log` records (pingora's) to standard error, filtered by `filter` (`info`,
/// `info,tollbridge::cluster=debug`). Libraries stay at `warn` unless the filter names them.
///
/// # Errors
/// [`TracingError`]; a second call in one process is refused.
pub fn init_tracing(filter: &str) -> Result<(), TracingError> {
    let bad = |reason: String| TracingError::BadFilter { filter: filter.to_owned(), reason };
    // Alone first, so that the message is about what the operator wrote.
    EnvFilter::try_new(filter).map_err(|e| bad(e.to_string()))?;
    let whole = EnvFilter::try_new(format!("{LIBRARIES},{filter}")).map_err(|e| bad(e.to_string()))?;
    // What nobody wants is turned away in `log` itself: pingora says much at `debug` on every request.
    let level = whole.max_level_hint().unwrap_or(LevelFilter::TRACE).as_log();
    let subscriber = tracing_subscriber::fmt()
        .json()
        .flatten_event(true)
        .with_current_span(false)
        .with_span_list(false)
        .with_writer(std::io::stderr)
        .with_env_filter(whole)
        .finish();
    tracing::subscriber::set_global_default(subscriber).map_err(|_| TracingError::AlreadySet)?;
    LogTracer::builder().with_max_level(level).init().map_err(|_| TracingError::AlreadySet)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bad_filter_is_named() {
        let error = init_tracing("tollbridge=loud").unwrap_err();
        assert!(error.to_string().starts_with("log filter `tollbridge=loud` is not valid: "), "{error}");
    }
}
