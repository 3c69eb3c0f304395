//! Owns the store in Redis or Valkey: one server, a Sentinel's master, or a cluster, by the scheme of the URL.
//! Does not retry: a call that failed says so, and the next one connects anew.
//! Invariants: every change is one script, so it happens as a whole; time is the server's; no error holds the URL.

use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::try_join_all;
use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::cluster::ClusterClient;
use redis::cluster_async::ClusterConnection;
use redis::sentinel::{SentinelClient, SentinelClientBuilder, SentinelServerType};
use redis::{AsyncConnectionConfig, Client, ConnectionAddr, FromRedisValue, IntoConnectionInfo, RedisError, Script};
use tokio::sync::Mutex;

use super::memory::BY_HAND;
use super::usage::summed;
use super::{
    ANSWER_TIMEOUT, Beat, Cells, Correction, DAYS_KEPT, Held, OpenError, Outcome, Part, Share, Store, StoreError,
    Taken, UsageRow,
};
use crate::secret::Secret;

/// Separates the names in a field of usage; no name holds it.
const SEPARATOR: char = '\u{1f}';
/// Longest range of days that is read at once.
const DAYS_READ_MAX: u32 = DAYS_KEPT;

/// State in a Redis.
pub struct RedisStore {
    target: Mutex<Target>,
    /// Held while connecting, so that callers who wait for a connection share the next one.
    connection: Mutex<Option<Connection>>,
    scripts: Scripts,
}

/// Where to connect.
enum Target {
    Server(Box<Client>),
    Sentinel(Box<SentinelClient>),
    Cluster(Box<ClusterClient>),
}

#[derive(Clone)]
enum Connection {
    One(MultiplexedConnection),
    Cluster(ClusterConnection),
}

struct Scripts {
    cells: Script,
    hold: Script,
    correct: Script,
    claim: Script,
    release: Script,
    beat: Script,
}

// === impl Target ===

impl Target {
    /// Reads `redis://`, `rediss://`, `unix://`, and with `+cluster` or `+sentinel` behind the scheme several
    /// addresses separated by commas.
    fn parse(url: &str) -> Result<Self, String> {
        let (scheme, rest) = url.split_once("://").ok_or("it has no scheme such as `redis://`")?;
        let said = |error: RedisError| error.category().to_owned();
        match scheme.split_once('+') {
            None => Client::open(url).map(|client| Self::Server(Box::new(client))).map_err(said),
            Some((plain @ ("redis" | "rediss"), "cluster")) => {
                let nodes = several(plain, rest)?;
                let client = ClusterClient::builder(nodes)
                    .connection_timeout(ANSWER_TIMEOUT)
                    .response_timeout(ANSWER_TIMEOUT)
                    .retries(1);
                client.build().map(|client| Self::Cluster(Box::new(client))).map_err(said)
            }
            Some((plain @ ("redis" | "rediss"), "sentinel")) => sentinel(plain, rest),
            Some((_, _)) => Err("its scheme is none of redis, rediss, unix, redis+cluster, redis+sentinel".to_owned()),
        }
    }

    async fn connect(&mut self) -> Result<Connection, RedisError> {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(ANSWER_TIMEOUT))
            .set_response_timeout(Some(ANSWER_TIMEOUT));
        match self {
            Self::Server(client) => {
                client.get_multiplexed_async_connection_with_config(&config).await.map(Connection::One)
            }
            Self::Sentinel(sentinel) => {
                let master = sentinel.async_get_client().await?;
                master.get_multiplexed_async_connection_with_config(&config).await.map(Connection::One)
            }
            Self::Cluster(client) => client.get_async_connection().await.map(Connection::Cluster),
        }
    }
}

/// `user:password@a:1,b:2` as one URL per address.
fn several(scheme: &str, rest: &str) -> Result<Vec<String>, String> {
    let hosts = rest.split(['/', '?']).next().unwrap_or(rest);
    let (login, hosts) = hosts.rsplit_once('@').map_or(("", hosts), |(login, hosts)| (login, hosts));
    let at = if login.is_empty() { "" } else { "@" };
    let urls: Vec<String> = hosts.split(',').map(|host| format!("{scheme}://{login}{at}{host}")).collect();
    match urls.iter().all(|url| url.as_str().into_connection_info().is_ok()) {
        true => Ok(urls),
        false => Err("one of its addresses is not `host:port`".to_owned()),
    }
}

/// `user:password@a:26379,b:26379/service?db=0`: the login is the master's.
fn sentinel(scheme: &str, rest: &str) -> Result<Target, String> {
    let said = |error: RedisError| error.category().to_owned();
    let (hosts, path) = rest.split_once('/').ok_or("it lacks the name of the service: `…/mymaster`")?;
    let (service, query) = path.split_once('?').unwrap_or((path, ""));
    let (login, hosts) = hosts.rsplit_once('@').map_or(("", hosts), |(login, hosts)| (login, hosts));
    let address = |host: &str| {
        let (name, port) = host.rsplit_once(':')?;
        Some(ConnectionAddr::Tcp(name.to_owned(), port.parse().ok()?))
    };
    let addresses: Option<Vec<ConnectionAddr>> = hosts.split(',').map(address).collect();
    let addresses = addresses.ok_or("one of its addresses is not `host:port`")?;
    if service.is_empty() {
        return Err("it lacks the name of the service: `…/mymaster`".to_owned());
    }
    let mut builder = SentinelClientBuilder::new(addresses, service, SentinelServerType::Master).map_err(said)?;
    // The login is decoded where any URL's is.
    let master = format!("{scheme}://{login}{}localhost", if login.is_empty() { "" } else { "@" });
    let master = master.as_str().into_connection_info().map_err(said)?;
    if let Some(user) = master.redis_settings().username() {
        builder = builder.set_client_to_redis_username(user);
    }
    if let Some(password) = master.redis_settings().password() {
        builder = builder.set_client_to_redis_password(password);
    }
    if let Some(database) = query.strip_prefix("db=") {
        builder = builder.set_client_to_redis_db(database.parse().map_err(|_| "its `db` is no number")?);
    }
    if scheme == "rediss" {
        builder = builder.set_client_to_redis_tls_mode(redis::TlsMode::Secure);
    }
    builder.build().map(|client| Target::Sentinel(Box::new(client))).map_err(said)
}

// === impl RedisStore ===

impl std::fmt::Debug for RedisStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("RedisStore")
    }
}

impl RedisStore {
    /// A store behind this URL. Connects when it is first asked something.
    ///
    /// # Errors
    /// [`OpenError::Url`].
    pub fn new(url: &Secret) -> Result<Self, OpenError> {
        let text = url.expose_str().ok_or_else(|| OpenError::Url("it is not text".to_owned()))?;
        let target = Target::parse(text.trim()).map_err(OpenError::Url)?;
        let scripts = Scripts {
            cells: Script::new(include_str!("lua/cells.lua")),
            hold: Script::new(include_str!("lua/hold.lua")),
            correct: Script::new(include_str!("lua/correct.lua")),
            claim: Script::new(include_str!("lua/claim.lua")),
            release: Script::new(include_str!("lua/release.lua")),
            beat: Script::new(include_str!("lua/beat.lua")),
        };
        Ok(Self { target: Mutex::new(target), connection: Mutex::new(None), scripts })
    }

    /// Does one thing with a connection, within the deadline. A connection that failed is not used again.
    async fn ask<T, W, F>(&self, work: W) -> Result<T, StoreError>
    where
        W: FnOnce(Connection) -> F,
        F: Future<Output = Result<T, RedisError>>,
    {
        let asked = async {
            let connection = {
                let mut kept = self.connection.lock().await;
                match &*kept {
                    Some(connection) => connection.clone(),
                    None => {
                        let made = self.target.lock().await.connect().await?;
                        kept.insert(made).clone()
                    }
                }
            };
            work(connection).await
        };
        let failed = match tokio::time::timeout(ANSWER_TIMEOUT, asked).await {
            Ok(Ok(answer)) => return Ok(answer),
            // The category names no address and no key.
            Ok(Err(error)) => StoreError(format!("Redis: {}", error.category())),
            Err(_) => StoreError("Redis does not answer in time".to_owned()),
        };
        *self.connection.lock().await = None;
        Err(failed)
    }
}

impl Connection {
    async fn run<T: FromRedisValue>(
        mut self,
        script: &Script,
        keys: &[&str],
        arguments: &[String],
    ) -> Result<T, RedisError> {
        let mut call = script.prepare_invoke();
        for key in keys {
            call.key(*key);
        }
        for argument in arguments {
            call.arg(argument);
        }
        match &mut self {
            Self::One(one) => call.invoke_async(one).await,
            Self::Cluster(cluster) => call.invoke_async(cluster).await,
        }
    }

    async fn command<T: FromRedisValue>(mut self, words: &[&str]) -> Result<T, RedisError> {
        async fn send<T: FromRedisValue>(on: &mut impl ConnectionLike, words: &[&str]) -> Result<T, RedisError> {
            let mut command = redis::Cmd::new();
            for word in words {
                command.arg(*word);
            }
            command.query_async(on).await
        }
        match &mut self {
            Self::One(one) => send(one, words).await,
            Self::Cluster(cluster) => send(cluster, words).await,
        }
    }
}

fn usage_key(tenant: &str, day: u32) -> String {
    format!("tb:{{{tenant}}}:usage:{day}")
}

fn tenants_key(day: u32) -> String {
    format!("tb:{{usage}}:{day}")
}

/// A share as the script tells it: two numbers.
fn shares(numbers: &[i64]) -> Vec<Share> {
    let pairs = numbers.chunks_exact(2);
    let share = |pair: &[i64]| match pair {
        [granted, others] => Share { granted: u64::try_from(*granted).unwrap_or(0), others: *others },
        _ => Share { granted: 0, others: 0 },
    };
    pairs.map(share).collect()
}

/// A field of usage: agent, model and instance; then the counts.
fn usage_row(day: u32, tenant: &str, field: &str, counts: &str) -> Option<UsageRow> {
    let mut names = field.split(SEPARATOR);
    let (agent, model) = (names.next()?.to_owned(), names.next()?.to_owned());
    let counts: Vec<u64> = counts.split(',').map_while(|count| count.parse().ok()).collect();
    let row = UsageRow { day, tenant: tenant.to_owned(), agent, model, ..UsageRow::default() };
    Some(row.with_counts(counts.try_into().ok()?))
}

impl Store for RedisStore {
    fn cells(&self, takes: Vec<Cells>) -> Outcome<'_, Vec<Taken>> {
        self.ask(move |connection| async move {
            let calls = takes.iter().map(|take| {
                let arguments = [take.interval_us.to_string(), take.depth_us.to_string(), take.want.to_string()];
                let connection = connection.clone();
                async move { connection.run::<(u64, u64)>(&self.scripts.cells, &[&take.key], &arguments).await }
            });
            let taken = try_join_all(calls).await?;
            Ok(taken.into_iter().map(|(granted, debt_us)| Taken { granted, debt_us }).collect())
        })
        .boxed()
    }

    fn hold(&self, groups: Vec<Vec<Part>>) -> Outcome<'_, Vec<Held>> {
        self.ask(move |connection| async move {
            let calls = groups.iter().filter(|parts| !parts.is_empty()).map(|parts| {
                let keys: Vec<&str> = parts.iter().map(|part| part.key.as_str()).collect();
                let words = |part: &Part| {
                    let cap = part.cap.map_or_else(|| "-".to_owned(), |cap| cap.to_string());
                    [part.part.clone(), part.base.to_string(), part.want.to_string(), cap, part.expires.to_string()]
                };
                let arguments: Vec<String> = parts.iter().flat_map(words).collect();
                let connection = connection.clone();
                async move { connection.run::<Vec<i64>>(&self.scripts.hold, &keys, &arguments).await }
            });
            let answers = try_join_all(calls).await?;
            let mut answers = answers.iter().map(|answer| match answer.split_first() {
                Some((granted, numbers)) => Held { granted: *granted == 1, shares: shares(numbers) },
                None => Held { granted: false, shares: Vec::new() },
            });
            let nothing = || Held { granted: true, shares: Vec::new() };
            let held = groups.iter().map(|parts| if parts.is_empty() { Some(nothing()) } else { answers.next() });
            Ok(held.map(|held| held.unwrap_or_else(nothing)).collect())
        })
        .boxed()
    }

    fn correct(&self, key: String, correction: Correction, expires: u64) -> Outcome<'_, i64> {
        let (how, amount) = match correction {
            Correction::By(amount) => ("by", amount),
            Correction::To(amount) => ("to", amount),
        };
        let arguments = [BY_HAND.to_owned(), how.to_owned(), amount.to_string(), expires.to_string()];
        self.ask(
            move |connection| async move { connection.run(&self.scripts.correct, &[key.as_str()], &arguments).await },
        )
        .boxed()
    }

    fn record<'a>(&'a self, instance: &'a str, rows: Vec<UsageRow>) -> Outcome<'a, ()> {
        self.ask(move |connection| async move {
            let calls = rows.iter().map(|row| {
                let field = format!("{}{SEPARATOR}{}{SEPARATOR}{instance}", row.agent, row.model);
                let [runs, input, output, micros] = row.counts();
                let counts = format!("{runs},{input},{output},{micros}");
                let (key, tenants) = (usage_key(&row.tenant, row.day), tenants_key(row.day));
                let ends = (u64::from(row.day) + u64::from(DAYS_KEPT)).saturating_mul(86_400).to_string();
                let connection = connection.clone();
                async move {
                    let () = connection.clone().command(&["HSET", &key, &field, &counts]).await?;
                    let () = connection.clone().command(&["EXPIREAT", &key, &ends]).await?;
                    let () = connection.clone().command(&["SADD", &tenants, &row.tenant]).await?;
                    connection.command::<()>(&["EXPIREAT", &tenants, &ends]).await
                }
            });
            try_join_all(calls).await.map(drop)
        })
        .boxed()
    }

    fn usage<'a>(&'a self, tenant: Option<&'a str>, from: u32, to: u32) -> Outcome<'a, Vec<UsageRow>> {
        async move {
            let mut rows = Vec::new();
            let last = to.min(from.saturating_add(DAYS_READ_MAX));
            for day in from..=last {
                let tenants = match tenant {
                    Some(tenant) => vec![tenant.to_owned()],
                    None => {
                        let key = tenants_key(day);
                        self.ask(|connection| async move { connection.command(&["SMEMBERS", &key]).await }).await?
                    }
                };
                for tenant in tenants {
                    let key = usage_key(&tenant, day);
                    let fields: Vec<(String, String)> =
                        self.ask(|connection| async move { connection.command(&["HGETALL", &key]).await }).await?;
                    rows.extend(fields.iter().filter_map(|(field, counts)| usage_row(day, &tenant, field, counts)));
                }
            }
            Ok(summed(rows))
        }
        .boxed()
    }

    fn claim<'a>(&'a self, name: &'a str, owner: &'a str, lasts: Duration) -> Outcome<'a, bool> {
        let (key, arguments) = (format!("tb:{name}"), [owner.to_owned(), lasts.as_millis().to_string()]);
        self.ask(move |connection| async move {
            connection.run::<u8>(&self.scripts.claim, &[&key], &arguments).await.map(|claimed| claimed == 1)
        })
        .boxed()
    }

    fn holder<'a>(&'a self, name: &'a str) -> Outcome<'a, Option<String>> {
        let key = format!("tb:{name}");
        self.ask(move |connection| {
            let key = key.clone();
            async move { connection.command(&["GET", &key]).await }
        })
        .boxed()
    }

    fn release<'a>(&'a self, name: &'a str, owner: &'a str) -> Outcome<'a, ()> {
        let (key, arguments) = (format!("tb:{name}"), [owner.to_owned()]);
        self.ask(move |connection| async move {
            connection.run::<u8>(&self.scripts.release, &[&key], &arguments).await.map(drop)
        })
        .boxed()
    }

    fn beat<'a>(&'a self, instance: &'a str, lasts: Duration) -> Outcome<'a, Beat> {
        let arguments = [instance.to_owned(), lasts.as_secs().to_string(), uuid::Uuid::new_v4().to_string()];
        self.ask(move |connection| async move {
            let keys = ["tb:{beat}:instances", "tb:{beat}:epoch"];
            let (instances, epoch, now) = connection.run(&self.scripts.beat, &keys, &arguments).await?;
            Ok(Beat { instances, epoch, now })
        })
        .boxed()
    }
}
