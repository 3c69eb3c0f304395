//! Owns stand-ins for the Settings of modules that are not in this tree yet.
//! Does not stay: each one is replaced by the module's own type.

#![allow(missing_docs, unreachable_pub, reason = "stand-ins")]

pub mod outbound {
    #[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
    pub struct Origin {
        pub tls: bool,
        pub host: String,
        pub port: u16,
    }
    #[derive(Debug, Clone)]
    pub struct BadOrigin {
        pub reason: &'static str,
    }
    impl std::str::FromStr for Origin {
        type Err = BadOrigin;
        fn from_str(text: &str) -> Result<Self, BadOrigin> {
            let url = url::Url::parse(text).map_err(|_| BadOrigin { reason: "it cannot be parsed" })?;
            let tls = match url.scheme() {
                "http" => false,
                "https" => true,
                _ => return Err(BadOrigin { reason: "the scheme must be http or https" }),
            };
            let host = url.host_str().ok_or(BadOrigin { reason: "the host is missing" })?.to_owned();
            Ok(Self { tls, host, port: url.port_or_known_default().unwrap_or(80) })
        }
    }
}

pub mod telemetry {
    use std::path::PathBuf;
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub struct Settings {
        pub access_log: LogTarget,
        pub audit_log: LogTarget,
    }
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub enum LogTarget {
        Off,
        Stdout,
        File(PathBuf),
    }
}

pub mod identity {
    use crate::principal::TenantId;
    use crate::secret::Secret;
    use std::time::Duration;
    #[derive(Debug, Clone)]
    pub struct Settings {
        pub unknown_tenant: UnknownTenant,
        pub stream_grace: Duration,
        pub leeway: Duration,
        pub issuers: Vec<Issuer>,
        pub claims: Claims,
        pub api_keys: Vec<ApiKey>,
        pub tenants: Vec<TenantId>,
    }
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub enum UnknownTenant {
        Deny,
        DefaultPlan,
    }
    #[derive(Debug, Clone)]
    pub struct Issuer {
        pub issuer: String,
        pub tenants: Option<Vec<TenantId>>,
        pub tenant: Option<TenantId>,
        pub subject_prefix: Option<String>,
        pub audiences: Vec<String>,
        pub algorithms: Vec<Algorithm>,
        pub keys: KeySource,
    }
    #[derive(Debug, Clone)]
    pub enum KeySource {
        Static(Secret),
        Jwks { url: String },
    }
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub enum Algorithm {
        HS256,
        HS384,
        HS512,
        RS256,
        RS384,
        RS512,
        PS256,
        PS384,
        PS512,
        ES256,
        ES384,
        EdDSA,
    }
    impl Algorithm {
        pub fn as_str(self) -> &'static str {
            match self {
                Self::HS256 => "HS256",
                Self::HS384 => "HS384",
                Self::HS512 => "HS512",
                Self::RS256 => "RS256",
                Self::RS384 => "RS384",
                Self::RS512 => "RS512",
                Self::PS256 => "PS256",
                Self::PS384 => "PS384",
                Self::PS512 => "PS512",
                Self::ES256 => "ES256",
                Self::ES384 => "ES384",
                Self::EdDSA => "EdDSA",
            }
        }
    }
    #[derive(Debug, Clone)]
    pub struct Claims {
        pub tenant: String,
        pub roles: String,
        pub scopes: String,
        pub plan: String,
    }
    #[derive(Debug, Clone)]
    pub struct ApiKey {
        pub id: String,
        pub sha256: [u8; 32],
        pub tenant: TenantId,
        pub roles: Vec<String>,
        pub scopes: Vec<String>,
        pub plan: Option<String>,
        pub expires_at: Option<u64>,
    }
}

pub mod policy {
    use std::path::PathBuf;
    #[derive(Debug, Clone)]
    pub struct Settings {
        pub dir: PathBuf,
        pub scopes: ScopesMode,
    }
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub enum ScopesMode {
        Add,
        Ceiling,
    }
}

pub mod quota {
    use crate::principal::TenantId;
    use std::collections::BTreeMap;
    use std::time::Duration;
    #[derive(Debug, Clone)]
    pub struct Settings {
        pub plans: BTreeMap<String, Plan>,
        pub tenants: BTreeMap<TenantId, TenantQuota>,
        pub default_plan: Option<String>,
        pub flood: Option<Rate>,
    }
    #[derive(Debug, Clone)]
    pub struct TenantQuota {
        pub plan: String,
    }
    #[derive(Debug, Clone)]
    pub struct Plan {
        pub requests: Vec<Rate>,
        pub concurrent_runs: Option<u32>,
        pub tokens_per_day: Option<u64>,
        pub tokens_per_month: Option<u64>,
    }
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub struct Rate {
        pub limit: u64,
        pub window: Duration,
        pub burst: u64,
    }
}

pub mod cache {
    use std::time::Duration;
    #[derive(Debug, Clone)]
    pub struct Settings {
        pub max_bytes: u64,
        pub rules: Vec<Rule>,
    }
    #[derive(Debug, Clone)]
    pub struct Rule {
        pub operation: String,
        pub ttl: Duration,
        pub stale_while_revalidate: Duration,
        pub stale_if_error: Duration,
    }
}

pub mod cluster {
    use super::outbound::Origin;
    use crate::principal::TenantId;
    use crate::secret::Secret;
    use std::sync::Arc;
    use std::time::Duration;
    #[derive(Debug, Clone)]
    pub struct Settings {
        pub name: Arc<str>,
        pub hosts: Vec<String>,
        pub endpoints: Vec<Origin>,
        pub balance: Balance,
        pub user_id: UserIdTemplate,
        pub credential: CredentialSettings,
        pub knowledge: Knowledge,
        pub health: Health,
        pub timeouts: Timeouts,
        pub tenants: Vec<TenantId>,
    }
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub enum Balance {
        LeastRequests,
        RoundRobin,
        SessionHash,
    }
    #[derive(Debug, Clone)]
    pub struct UserIdTemplate(pub String);
    impl UserIdTemplate {
        pub fn parse(text: &str) -> Option<Self> {
            Some(Self(text.to_owned()))
        }
    }
    #[derive(Debug, Clone)]
    pub enum CredentialSettings {
        Mint { algorithm: MintAlgorithm, key: Secret, audience: String },
        Bearer(Secret),
        None,
        Forward,
    }
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub enum MintAlgorithm {
        HS256,
        HS384,
        HS512,
    }
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub enum Knowledge {
        Unset,
        Exclusive,
        Metadata(String),
    }
    #[derive(Debug, Clone)]
    pub struct Health {
        pub path: String,
        pub interval: Duration,
        pub timeout: Duration,
    }
    #[derive(Debug, Clone)]
    pub struct Timeouts {
        pub connect: Duration,
        pub response_header: Duration,
        pub stream_idle: Duration,
        pub stream_max: Duration,
    }
}
