//! Owns `tollbridge check`: everything that can be checked without binding a port.
//! Does not connect.

use std::path::Path;

use super::{Ended, chain, configuration, talk};
use crate::outbound::{self, Client};
use crate::server;

/// Reads the configuration and builds every module from it.
pub(super) fn run(path: &Path) -> Ended {
    let Some(config) = configuration(path) else { return Ended::Wrong };
    let client = Client::new(outbound::Settings::default());
    match server::compose(&config, &client) {
        Ok((snapshot, _)) => {
            let rows = snapshot.catalog.rows().len();
            let clusters = snapshot.clusters.iter().count();
            talk(&format!("ok: {rows} operations, {clusters} clusters, {} tenants", config.tenants.len()));
            Ended::Done
        }
        Err(errors) => {
            errors.iter().for_each(|error| talk(&chain(error)));
            Ended::Wrong
        }
    }
}
