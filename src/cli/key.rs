//! Owns `tollbridge key new`: an API key for a machine, shown once, and the record of it that the configuration keeps.
//! Does not write the configuration file and keeps no key.

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use clap::Args;
use serde_json::json;

use super::{Ended, Format, Rights, configuration, say, talk, warn_of_stranger};
use crate::config::{api_key_block, duration, is_key_id};
use crate::identity::{ApiKey, NewKey};

/// What the key stands for.
#[derive(Debug, Args)]
pub(super) struct KeyArguments {
    /// Name of the key; its caller is `key:<ID>`.
    #[arg(long, value_name = "ID")]
    id: String,
    #[command(flatten)]
    rights: Rights,
    /// How long it is valid, such as `90d`; by default for ever.
    #[arg(long, value_name = "TIME")]
    expires: Option<String>,
    /// How to print: the key and its block, or one JSON document.
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,
}

/// Makes one key and prints it.
pub(super) fn run(path: &Path, arguments: &KeyArguments) -> Ended {
    let made = NewKey::generate().map_err(|error| error.to_string());
    let made = made.and_then(|new| Ok((record(arguments, new.sha256)?, new)));
    let (record, new) = match made {
        Ok(made) => made,
        Err(error) => {
            talk(&error);
            return Ended::Failed;
        }
    };
    if path.exists() && !fits(path, &record) {
        return Ended::Wrong;
    }
    let block = api_key_block(&record);
    match arguments.format {
        Format::Table => {
            talk(&format!("# Put this into the configuration. The key itself is shown this once.\n{block}"));
            say(&format!("{}\n", new.expose()))
        }
        Format::Json => {
            let document = json!({
                "key": new.expose(),
                "id": record.id,
                "sha256": hex(&record.sha256),
                "tenant": record.tenant.as_str(),
                "roles": record.roles,
                "scopes": record.scopes,
                "plan": record.plan,
                "expires_at": record.expires_at,
                "toml": block,
            });
            say(&format!("{document:#}\n"))
        }
    }
}

fn record(arguments: &KeyArguments, sha256: [u8; 32]) -> Result<ApiKey, String> {
    if !is_key_id(&arguments.id) {
        return Err(format!(
            "--id: `{}` must be 1 to 64 characters of `A-Z a-z 0-9 . _ -`",
            arguments.id.escape_debug()
        ));
    }
    let tenant = arguments.rights.tenant()?;
    let expires_at = arguments.expires.as_deref().map(|text| {
        let left = duration(text).map_err(|error| format!("--expires: {error}"))?;
        let end = SystemTime::now().checked_add(left).and_then(|end| end.duration_since(UNIX_EPOCH).ok());
        end.map(|end| end.as_secs()).ok_or_else(|| "--expires: too far away".to_owned())
    });
    Ok(ApiKey {
        id: arguments.id.clone(),
        sha256,
        tenant,
        roles: arguments.rights.roles.clone(),
        scopes: arguments.rights.scopes.clone(),
        plan: arguments.rights.plan.clone(),
        expires_at: expires_at.transpose()?,
    })
}

/// Says whether the key fits into the configuration that is there; one that cannot be read cannot object.
fn fits(path: &Path, record: &ApiKey) -> bool {
    let Some(config) = configuration(path) else { return true };
    warn_of_stranger(&config, &record.tenant);
    let taken = config.identity.api_keys.iter().any(|key| key.id == record.id);
    if taken {
        talk(&format!(
            "the API key id `{}` is already used\nhelp: choose another `--id`, or remove the old key",
            record.id
        ));
    }
    !taken
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
