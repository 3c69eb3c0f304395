//! Owns the store in one file: the tables of `memory`, every change of which is on disk before the answer is given.
//! Does not share: a second process cannot open the file.
//! Invariants: what was answered survives a kill at any moment; a kill in the middle of a change leaves the change
//! before it. Many changes share one write to the disk.

use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

use futures_util::FutureExt as _;
use redb::{Database, ReadableDatabase as _, ReadableTable as _, TableDefinition};
use tokio::sync::oneshot;

use super::memory::{Change, Field, MemoryStore, Tables, Time};
use super::{Beat, Cells, Correction, Held, OpenError, Outcome, Part, Store, StoreError, Taken, UsageRow};

const CELLS: TableDefinition<'_, &str, u64> = TableDefinition::new("cells");
const PARTS: TableDefinition<'_, (&str, &str), (i64, u64)> = TableDefinition::new("parts");
const CLAIMS: TableDefinition<'_, &str, (&str, u64)> = TableDefinition::new("claims");
const META: TableDefinition<'_, &str, &str> = TableDefinition::new("meta");
/// Day, tenant, agent, model, instance; then runs, input, output, price.
const USAGE: TableDefinition<'_, UsageKey<'_>, (u64, u64, u64, u64)> = TableDefinition::new("usage");

type UsageKey<'a> = (u32, &'a str, &'a str, &'a str, &'a str);

/// Calls that may wait for the disk.
const QUEUE_MAX: usize = 16_384;
/// Most changes that share one write.
const CHANGES_MAX: usize = 8_192;

/// State in a file.
#[derive(Debug)]
pub struct FileStore {
    memory: MemoryStore,
    /// `None` only while the store is dropped.
    queue: Option<mpsc::SyncSender<Write>>,
    writer: Option<JoinHandle<()>>,
}

/// Changes of one call, and who waits for them.
struct Write {
    changes: Vec<Change>,
    done: oneshot::Sender<Result<(), StoreError>>,
}

// === impl FileStore ===

impl FileStore {
    /// Opens the file or makes it, and reads everything in it.
    ///
    /// # Errors
    /// [`OpenError::File`] when it is another process's, damaged, or not writable.
    pub fn open(path: &Path) -> Result<Self, OpenError> {
        let failed = |cause: redb::Error| OpenError::File { path: PathBuf::from(path), cause: cause.to_string() };
        let database = Database::create(path).map_err(|error| failed(error.into()))?;
        let memory = MemoryStore::new();
        load(&database, &memory).map_err(failed)?;
        let (queue, writes) = mpsc::sync_channel(QUEUE_MAX);
        let writer = std::thread::Builder::new().name("store".to_owned()).spawn(move || write_all(&database, &writes));
        let writer = writer.map_err(|error| OpenError::File { path: PathBuf::from(path), cause: error.to_string() })?;
        Ok(Self { memory, queue: Some(queue), writer: Some(writer) })
    }

    /// Changes the tables; the answer is given when the change is on disk.
    fn durable<'a, T: Send + 'a>(
        &'a self,
        work: impl FnOnce(&mut Tables, &dyn Time, &mut Vec<Change>) -> T,
    ) -> Outcome<'a, T> {
        let (done, written) = oneshot::channel();
        // Queued under the lock of the tables: changes reach the disk in the order in which they were made.
        let (mut changed, mut queued) = (true, true);
        let (answer, _) = self.memory.with(|tables, time, changes| {
            let answer = work(tables, time, changes);
            changed = !changes.is_empty();
            if changed {
                let write = Write { changes: std::mem::take(changes), done };
                queued = self.queue.as_ref().is_some_and(|queue| queue.try_send(write).is_ok());
            }
            answer
        });
        async move {
            if !queued {
                return Err(StoreError("too many calls wait for the disk".to_owned()));
            }
            if !changed {
                return Ok(answer);
            }
            written.await.map_err(|_| StoreError("the store's writer has ended".to_owned()))??;
            Ok(answer)
        }
        .boxed()
    }
}

impl Drop for FileStore {
    fn drop(&mut self) {
        self.queue = None;
        if let Some(writer) = self.writer.take() {
            // It ends when it has written what was queued. A panic of it was answered as an error already.
            let _ = writer.join();
        }
    }
}

fn load(database: &Database, memory: &MemoryStore) -> Result<(), redb::Error> {
    let begin = database.begin_write()?;
    {
        begin.open_table(CELLS)?;
        begin.open_table(PARTS)?;
        begin.open_table(CLAIMS)?;
        begin.open_table(USAGE)?;
        let mut meta = begin.open_table(META)?;
        let epoch = meta.get("epoch")?.map(|epoch| epoch.value().to_owned());
        let epoch = epoch.unwrap_or_else(|| uuid::Uuid::new_v4().to_string());
        meta.insert("epoch", epoch.as_str())?;
        memory.set_epoch(epoch);
    }
    begin.commit()?;
    let read = database.begin_read()?;
    for row in read.open_table(CELLS)?.iter()? {
        let (key, full_at) = row?;
        memory.restore(Change::Cell(key.value().to_owned(), full_at.value()));
    }
    for row in read.open_table(PARTS)?.iter()? {
        let (key, field) = row?;
        let ((key, part), (value, expires)) = (key.value(), field.value());
        memory.restore(Change::Part(key.to_owned(), part.to_owned(), Some(Field { value, expires })));
    }
    for row in read.open_table(CLAIMS)?.iter()? {
        let (name, claim) = row?;
        let (owner, ends) = claim.value();
        memory.restore(Change::Claim(name.value().to_owned(), Some((owner.to_owned(), ends))));
    }
    for row in read.open_table(USAGE)?.iter()? {
        let (key, counts) = row?;
        let ((day, tenant, agent, model, instance), (runs, input, output, micros)) = (key.value(), counts.value());
        let (tenant, agent, model) = (tenant.to_owned(), agent.to_owned(), model.to_owned());
        let row = UsageRow { day, tenant, agent, model, runs, input, output, micros };
        memory.restore(Change::Usage(instance.to_owned(), row));
    }
    Ok(())
}

/// The writer: everything that is queued goes to the disk together.
fn write_all(database: &Database, writes: &mpsc::Receiver<Write>) {
    while let Ok(first) = writes.recv() {
        let mut batch = vec![first];
        let mut changes = batch.iter().map(|write| write.changes.len()).sum::<usize>();
        while changes < CHANGES_MAX
            && let Ok(next) = writes.try_recv()
        {
            changes += next.changes.len();
            batch.push(next);
        }
        let written = write(database, batch.iter().flat_map(|write| &write.changes));
        let written = written.map_err(|error| StoreError(error.to_string()));
        for write in batch {
            // Whoever went away does not wait for the disk.
            let _ = write.done.send(written.clone());
        }
    }
}

fn write<'a>(database: &Database, changes: impl Iterator<Item = &'a Change>) -> Result<(), redb::Error> {
    let transaction = database.begin_write()?;
    {
        let mut cells = transaction.open_table(CELLS)?;
        let mut parts = transaction.open_table(PARTS)?;
        let mut claims = transaction.open_table(CLAIMS)?;
        let mut usage = transaction.open_table(USAGE)?;
        for change in changes {
            match change {
                Change::Cell(key, 0) => drop(cells.remove(key.as_str())?),
                Change::Cell(key, full_at) => drop(cells.insert(key.as_str(), full_at)?),
                Change::Part(key, part, Some(field)) => {
                    parts.insert((key.as_str(), part.as_str()), (field.value, field.expires))?;
                }
                Change::Part(key, part, None) => drop(parts.remove((key.as_str(), part.as_str()))?),
                Change::Claim(name, Some((owner, ends))) => {
                    claims.insert(name.as_str(), (owner.as_str(), *ends))?;
                }
                Change::Claim(name, None) => drop(claims.remove(name.as_str())?),
                Change::Usage(instance, row) => {
                    let key = (row.day, row.tenant.as_str(), row.agent.as_str(), row.model.as_str(), instance.as_str());
                    match row.counts() {
                        [0, 0, 0, 0] => drop(usage.remove(key)?),
                        [runs, input, output, micros] => drop(usage.insert(key, (runs, input, output, micros))?),
                    }
                }
            }
        }
    }
    transaction.commit()?;
    Ok(())
}

impl Store for FileStore {
    fn cells(&self, takes: Vec<Cells>) -> Outcome<'_, Vec<Taken>> {
        self.durable(move |tables, time, changes| {
            let now = time.steady_us();
            takes.iter().map(|take| tables.take(take, now, changes)).collect()
        })
    }

    fn hold(&self, groups: Vec<Vec<Part>>) -> Outcome<'_, Vec<Held>> {
        self.durable(move |tables, time, changes| {
            let now = time.wall_secs();
            groups.iter().map(|parts| tables.hold(parts, now, changes)).collect()
        })
    }

    fn correct(&self, key: String, correction: Correction, expires: u64) -> Outcome<'_, i64> {
        self.durable(move |tables, time, changes| tables.correct(&key, correction, expires, time.wall_secs(), changes))
    }

    fn record<'a>(&'a self, instance: &'a str, rows: Vec<UsageRow>) -> Outcome<'a, ()> {
        self.durable(move |tables, _, changes| tables.record(instance, &rows, changes))
    }

    fn usage<'a>(&'a self, tenant: Option<&'a str>, from: u32, to: u32) -> Outcome<'a, Vec<UsageRow>> {
        self.memory.usage(tenant, from, to)
    }

    fn claim<'a>(&'a self, name: &'a str, owner: &'a str, lasts: Duration) -> Outcome<'a, bool> {
        self.durable(move |tables, time, changes| {
            let now = time.wall_secs();
            tables.claim(name, owner, now.saturating_add(lasts.as_secs()), now, changes)
        })
    }

    fn holder<'a>(&'a self, name: &'a str) -> Outcome<'a, Option<String>> {
        self.memory.holder(name)
    }

    fn release<'a>(&'a self, name: &'a str, owner: &'a str) -> Outcome<'a, ()> {
        self.durable(move |tables, _, changes| tables.release(name, owner, changes))
    }

    fn beat<'a>(&'a self, instance: &'a str, lasts: Duration) -> Outcome<'a, Beat> {
        self.durable(move |tables, time, _| {
            let now = time.wall_secs();
            tables.beat(instance, now.saturating_add(lasts.as_secs()), now)
        })
    }
}
