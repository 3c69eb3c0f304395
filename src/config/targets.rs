//! Owns a stand-in for the Settings of `cache`, which is not in this tree yet.
//! Does not stay: it is replaced by the module's own type.

#![allow(missing_docs, unreachable_pub, reason = "a stand-in")]

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
