//! Owns `tollbridge token`: development tokens, signed with a symmetric key that the configuration names.
//! Does not mint for production issuers: their private keys are not here.

use std::path::Path;
use std::time::{Duration, SystemTime};

use clap::Args;

use super::{Ended, Rights, configuration, say, talk, warn_of_stranger};
use crate::config::{Config, duration};
use crate::identity::{Algorithm, Issuer, KeySource, Mint, mint};

/// What the token says.
#[derive(Debug, Args)]
pub(super) struct TokenArguments {
    #[command(flatten)]
    rights: Rights,
    /// Subject: who calls.
    #[arg(long, value_name = "SUBJECT")]
    subject: String,
    /// How long it lives.
    #[arg(long, default_value = "1h", value_name = "TIME")]
    ttl: String,
    /// Issuer; by default the only one with a symmetric key.
    #[arg(long, value_name = "ISSUER")]
    issuer: Option<String>,
}

/// Prints one token.
pub(super) fn run(path: &Path, arguments: &TokenArguments) -> Ended {
    let Some(config) = configuration(path) else { return Ended::Wrong };
    match token(&config, arguments) {
        Ok(token) => say(&format!("{token}\n")),
        Err(error) => {
            talk(&error);
            Ended::Failed
        }
    }
}

fn token(config: &Config, arguments: &TokenArguments) -> Result<String, String> {
    let tenant = arguments.rights.tenant()?;
    warn_of_stranger(config, &tenant);
    let (issuer, algorithm) = issuer(&config.identity.issuers, arguments.issuer.as_deref())?;
    let KeySource::Static(key) = &issuer.keys else { return Err("the issuer's key is not here".to_owned()) };
    let audience = issuer.audiences.first().ok_or("the issuer has no audience")?;
    let ttl: Duration = duration(&arguments.ttl).map_err(|error| format!("--ttl: {error}"))?;
    let what = Mint {
        issuer: &issuer.issuer,
        audience,
        subject: &arguments.subject,
        tenant: Some(&tenant),
        roles: &arguments.rights.roles,
        scopes: &arguments.rights.scopes,
        plan: arguments.rights.plan.as_deref(),
        ttl,
        algorithm,
        key,
        claims: &config.identity.claims,
    };
    mint(&what, SystemTime::now()).map_err(|error| error.to_string())
}

/// The issuer that was named, or the only one that can be minted for.
fn issuer<'a>(issuers: &'a [Issuer], name: Option<&str>) -> Result<(&'a Issuer, Algorithm), String> {
    let symmetric = |issuer: &Issuer| {
        let algorithm = issuer.algorithms.iter().copied().find(|algorithm| algorithm.is_symmetric())?;
        matches!(issuer.keys, KeySource::Static(_)).then_some(algorithm)
    };
    let mut usable = issuers.iter().filter(|issuer| name.is_none_or(|name| issuer.issuer == name));
    let usable: Vec<_> =
        usable.by_ref().filter_map(|issuer| symmetric(issuer).map(|algorithm| (issuer, algorithm))).collect();
    match (usable.as_slice(), name) {
        ([one], _) => Ok(*one),
        ([], Some(name)) => Err(format!("issuer `{name}` is unknown or has no symmetric key")),
        ([], None) => Err("no issuer has a symmetric key".to_owned()),
        (_, _) => Err("several issuers have a symmetric key: name one with `--issuer`".to_owned()),
    }
}
