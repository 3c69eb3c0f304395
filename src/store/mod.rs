//! Owns state that outlives a process or is shared by several: counters that limits are held against, usage, claims.
//! Does not know plans or tenants (`quota` chooses keys and caps) and never decides what to do when it is lost.
//! Invariants: a part of a sum is stated as an absolute value, so saying it twice changes nothing; several parts are
//! held together or not at all; what expires is gone by the store's own clock.

mod file;
mod memory;
mod redis;
mod usage;

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;

pub use self::file::FileStore;
pub use self::memory::{MemoryStore, SystemTime, Time};
pub use self::redis::RedisStore;
pub use self::usage::{DAYS_KEPT, UsageRow};
use crate::secret::Secret;

/// Longest wait for one answer of a store that is reached over a network: a store that hangs costs a request this much
/// once, and is out of reach from then on. Long enough for a busy machine.
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

/// Where shared state is kept.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Settings {
    /// In this process, until it ends.
    #[default]
    Memory,
    /// In one file, for one process at a time.
    File(PathBuf),
    /// In a Redis or Valkey that instances share; the URL may hold a password.
    Redis(Secret),
}

// === impl Settings ===

impl Settings {
    /// The kind of store, as the configuration names it.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::File(_) => "file",
            Self::Redis(_) => "redis",
        }
    }
}

/// A store that cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The file is not usable.
    #[error("cannot open the store `{}`: {cause}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        cause: String,
    },
    /// The URL is not one of a Redis; it is not repeated, since it may hold a password.
    #[error("cannot use the URL of the store: {0}")]
    Url(String),
}

/// A store that does not answer, or answers nonsense. The text is for the log.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct StoreError(pub String);

/// What a call to a store comes to.
pub type Outcome<'a, T> = BoxFuture<'a, Result<T, StoreError>>;

/// Takes cells from a bucket that all instances share (GCRA in the store's own clock), or gives some back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cells {
    /// Name of the bucket.
    pub key: String,
    /// Time that one cell costs.
    pub interval_us: u64,
    /// How far ahead of now the bucket may run.
    pub depth_us: u64,
    /// Cells wanted; negative gives back.
    pub want: i64,
}

/// What a bucket gave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Taken {
    /// Cells granted, at most those wanted; 0 when some were given back.
    pub granted: u64,
    /// How long until the bucket is full.
    pub debt_us: u64,
}

/// One instance's part of a sum, and what it wants to add.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// Name of the sum. Parts that are held together share what stands in braces, so that they live on one node.
    pub key: String,
    /// Whose part.
    pub part: String,
    /// The part without what is wanted: it is set to this plus what is granted.
    pub base: i64,
    /// What is wanted besides; 0 states the part, whatever the cap.
    pub want: u64,
    /// Most that the sum may be. When at least 1 is free, that much is granted; when nothing is free, nobody gets any.
    pub cap: Option<i64>,
    /// When the part no longer counts, in seconds since the Unix epoch.
    pub expires: u64,
}

/// What became of parts that were to be held together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    /// All parts were set; otherwise none.
    pub granted: bool,
    /// In the order of the parts.
    pub shares: Vec<Share>,
}

/// What became of one part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share {
    /// What may be added, at most what was wanted. 0 for the parts that were full.
    pub granted: u64,
    /// The sum of all other parts.
    pub others: i64,
}

/// How a sum is corrected by hand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Correction {
    /// Adds to it; negative makes room.
    By(i64),
    /// Makes the whole sum this much.
    To(i64),
}

/// What the store says about itself and the instances that use it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Beat {
    /// Instances seen lately, the asking one included.
    pub instances: u64,
    /// Chosen at random when the store began empty: another one means that everything was lost.
    pub epoch: String,
    /// The store's wall clock, in seconds since the Unix epoch.
    pub now: u64,
}

/// Shared or durable state. Calls are atomic each; none waits longer than [`ANSWER_TIMEOUT`] for a network.
///
/// # Cancel safety
/// Every call: what was sent may have happened. Parts are stated again, cells are lost to nobody but the asker.
pub trait Store: Send + Sync + fmt::Debug {
    /// Takes cells from each bucket.
    fn cells(&self, takes: Vec<Cells>) -> Outcome<'_, Vec<Taken>>;

    /// Holds each group of parts, all of a group or none.
    fn hold(&self, groups: Vec<Vec<Part>>) -> Outcome<'_, Vec<Held>>;

    /// Corrects a sum by hand; returns it. The correction ends when `expires` is reached.
    fn correct(&self, key: String, correction: Correction, expires: u64) -> Outcome<'_, i64>;

    /// States what this instance has counted in all under each row's key.
    fn record<'a>(&'a self, instance: &'a str, rows: Vec<UsageRow>) -> Outcome<'a, ()>;

    /// Reads usage from one day to another, both included: one tenant's or everybody's, summed over instances.
    fn usage<'a>(&'a self, tenant: Option<&'a str>, from: u32, to: u32) -> Outcome<'a, Vec<UsageRow>>;

    /// Claims a name for an owner, for a time; `false` while another owner holds it. An owner may claim again.
    fn claim<'a>(&'a self, name: &'a str, owner: &'a str, lasts: Duration) -> Outcome<'a, bool>;

    /// Who holds a claim now.
    fn holder<'a>(&'a self, name: &'a str) -> Outcome<'a, Option<String>>;

    /// Gives a claim back. Nothing happens to another owner's.
    fn release<'a>(&'a self, name: &'a str, owner: &'a str) -> Outcome<'a, ()>;

    /// Says that an instance lives.
    fn beat<'a>(&'a self, instance: &'a str, lasts: Duration) -> Outcome<'a, Beat>;
}

/// Opens a store. A Redis that does not answer now may do so later: it is not asked.
///
/// # Errors
/// [`OpenError`] for a file that cannot be used and for a URL that is none.
pub fn open(settings: &Settings) -> Result<Arc<dyn Store>, OpenError> {
    Ok(match settings {
        Settings::Memory => Arc::new(MemoryStore::new()),
        Settings::File(path) => Arc::new(FileStore::open(path)?),
        Settings::Redis(url) => Arc::new(RedisStore::new(url)?),
    })
}

/// Checks a URL without connecting.
///
/// # Errors
/// [`OpenError::Url`].
pub fn check_url(url: &Secret) -> Result<(), OpenError> {
    RedisStore::new(url).map(drop)
}
