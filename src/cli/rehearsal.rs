//! Owns a gateway that serves nobody: built from the configuration, to be asked what it would do.
//! Does not listen, writes no logs, and starts no task.

use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use super::chain;
use crate::config::Config;
use crate::gateway::{Gateway, Snapshot};
use crate::outbound::{self, Client};
use crate::principal::Principal;
use crate::server;
use crate::telemetry::{self, AuditFailure, LogTarget, Telemetry};

/// Largest file of claims.
const CLAIMS_BYTES_MAX: u64 = 64 * 1024;

/// Builds every stage from the configuration.
///
/// # Errors
/// One line for each thing that cannot be built.
pub(super) fn stages(config: &Config) -> Result<(Snapshot, Client), String> {
    let client = Client::new(outbound::Settings::default());
    let (snapshot, _) = server::stages(config, &client)
        .map_err(|errors| errors.iter().map(|error| chain(error)).collect::<Vec<_>>().join("\n"))?;
    Ok((snapshot, client))
}

/// The gateway around the stages, without logs.
///
/// # Errors
/// A sentence.
pub(super) fn gateway(config: &Config, snapshot: Snapshot, client: Client) -> Result<Arc<Gateway>, String> {
    let silent = telemetry::Settings {
        access_log: LogTarget::Off,
        audit_log: LogTarget::Off,
        audit_failure: AuditFailure::Continue,
    };
    let telemetry = Telemetry::new(silent, config.tenants.keys().cloned()).map_err(|error| error.to_string())?;
    let seal = snapshot.clusters.seal().clone();
    Ok(Gateway::new(snapshot, client, telemetry, seal, Arc::new(|_, _| false)))
}

/// The caller that a file of claims stands for; nothing is verified.
///
/// # Errors
/// A sentence that names the file.
pub(super) fn supposed(snapshot: &Snapshot, file: &Path) -> Result<Principal, String> {
    let named = |error: &dyn std::fmt::Display| format!("--as: `{}`: {error}", file.display());
    let length = std::fs::metadata(file).map_err(|error| named(&error))?.len();
    if length > CLAIMS_BYTES_MAX {
        return Err(named(&"larger than 64KiB"));
    }
    let claims = std::fs::read(file).map_err(|error| named(&error))?;
    snapshot.identity.suppose(&claims, SystemTime::now()).map_err(|refused| named(&refused))
}
