//! Owns one log: a bounded queue, one thread, one file or standard output.
//! Does not know what lines say (`line`).
//! Invariants: `write` never waits; lines arrive whole and in order; every lost line is counted.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use prometheus::IntCounter;
use tokio::sync::oneshot;

use super::LogTarget;
use super::queue::{Batch, Queue};

/// A buffer beyond this size is given back when its lines are written: nobody knows when so many come again.
const SPARE_BYTES_MAX: usize = 64 << 10;
/// Longest wait for the thread at a flush and at the end.
const DRAIN_DEADLINE: Duration = Duration::from_secs(2);
/// Readable for the group: log collectors.
const FILE_MODE: u32 = 0o640;

/// A log file could not be opened.
#[derive(Debug, thiserror::Error)]
#[error("cannot open log file `{}`", path.display())]
pub struct OpenError {
    /// The file.
    pub path: PathBuf,
    /// Why.
    #[source]
    pub source: io::Error,
}

/// One log with its thread.
pub(super) struct LogWriter {
    queue: Arc<Queue>,
    lost: Lost,
    thread: Option<JoinHandle<()>>,
    /// Disconnected when the thread has ended.
    ended: parking_lot::Mutex<Receiver<()>>,
}

/// Counts lost lines.
#[derive(Clone)]
pub(super) struct Lost {
    /// Every line.
    pub(super) dropped: IntCounter,
    /// Where a lost line must alarm somebody: too many waiting, and target failed.
    pub(super) alarms: Option<[IntCounter; 2]>,
}

/// Where the thread writes.
enum Sink {
    Stdout,
    File { path: PathBuf, file: File },
}

/// The thread's side.
struct Drain {
    log: &'static str,
    sink: Sink,
    lost: Lost,
    failing: bool,
}

// === impl LogWriter ===

impl LogWriter {
    /// Opens the target and starts the thread; `None` for a log that is off.
    pub(super) fn open(log: &'static str, target: &LogTarget, lost: Lost) -> Result<Option<Self>, OpenError> {
        let (sink, path) = match target {
            LogTarget::Off => return Ok(None),
            LogTarget::Stdout => (Sink::Stdout, PathBuf::from("-")),
            LogTarget::File(path) => (Sink::File { path: path.clone(), file: open_file(path)? }, path.clone()),
        };
        let (queue, (end, ended)) = (Arc::new(Queue::default()), sync_channel(0));
        let mut drain = Drain { log, sink, lost: lost.clone(), failing: false };
        let taken = Arc::clone(&queue);
        let body = move || {
            drain.run(&taken);
            drop(end);
        };
        let thread = std::thread::Builder::new().name(format!("log-{log}")).spawn(body);
        let thread = thread.map_err(|source| OpenError { path, source })?;
        Ok(Some(Self { queue, lost, thread: Some(thread), ended: ended.into() }))
    }

    /// Hands a whole line to the thread, or drops and counts it when too many wait.
    pub(super) fn write(&self, line: &[u8]) {
        if !self.queue.push(line, None) {
            self.lost.waiting_too_long();
        }
    }

    /// Hands a whole line to the thread and waits, two seconds at most, until it is written; `false` when it is not.
    ///
    /// # Cancel safety
    /// Dropping the future does not take the line back.
    pub(super) async fn write_surely(&self, line: &[u8]) -> bool {
        let (done, wait) = oneshot::channel();
        if !self.queue.push(line, Some(done)) {
            self.lost.waiting_too_long();
            return false;
        }
        matches!(tokio::time::timeout(DRAIN_DEADLINE, wait).await, Ok(Ok(true)))
    }

    pub(super) fn reopen(&self) {
        self.queue.reopen();
    }

    pub(super) fn flush(&self) {
        let (done, wait) = sync_channel(1);
        self.queue.flush(done);
        let _ = wait.recv_timeout(DRAIN_DEADLINE);
    }
}

impl Drop for LogWriter {
    /// Lets the thread write what waits. A target that stays stuck loses it: the process must be able to end.
    fn drop(&mut self) {
        self.queue.close();
        let ended = self.ended.get_mut().recv_timeout(DRAIN_DEADLINE);
        if let (Err(RecvTimeoutError::Disconnected), Some(thread)) = (ended, self.thread.take()) {
            let _ = thread.join();
        }
    }
}

// === impl Lost ===

impl Lost {
    fn waiting_too_long(&self) {
        self.dropped.inc();
        self.alarms.iter().for_each(|[queue, _]| queue.inc());
    }

    fn not_written(&self, lines: u64) {
        self.dropped.inc_by(lines);
        self.alarms.iter().for_each(|[_, target]| target.inc_by(lines));
    }
}

// === impl Drain ===

impl Drain {
    fn run(&mut self, queue: &Queue) {
        let mut spare = Vec::new();
        while let Some(batch) = queue.take(std::mem::take(&mut spare)) {
            let Batch { mut bytes, reopen_at, sure, flushes, .. } = batch;
            let (before, behind) = bytes.split_at(reopen_at.unwrap_or(bytes.len()));
            let mut written = self.write(before);
            if reopen_at.is_some() {
                self.reopen();
                written &= self.write(behind);
            }
            // Who waits no more has given up; the line stands all the same.
            for done in sure {
                let _ = done.send(written);
            }
            for done in flushes {
                let _ = done.try_send(());
            }
            bytes.clear();
            bytes.shrink_to(SPARE_BYTES_MAX);
            spare = bytes;
        }
    }

    /// Writes whole lines; says whether they are written.
    fn write(&mut self, lines: &[u8]) -> bool {
        let written = match &mut self.sink {
            _ if lines.is_empty() => return true,
            Sink::Stdout => {
                let mut out = io::stdout().lock();
                out.write_all(lines).and_then(|()| out.flush())
            }
            Sink::File { file, .. } => file.write_all(lines),
        };
        if let Err(error) = &written {
            self.lost.not_written(memchr::memchr_iter(b'\n', lines).count() as u64);
            if !self.failing {
                tracing::error!(log = self.log, %error, "log lines lost");
            }
        }
        self.failing = written.is_err();
        written.is_ok()
    }

    fn reopen(&mut self) {
        let Sink::File { path, file } = &mut self.sink else { return };
        match open_file(path) {
            Ok(new) => *file = new,
            Err(error) => {
                tracing::error!(log = self.log, %error, cause = %error.source, "log file not reopened, the old one is kept");
            }
        }
    }
}

/// Says whether [`LogWriter::open`] could open the target, without creating it.
///
/// # Errors
/// [`OpenError`] as opening would give it.
pub(super) fn check(target: &LogTarget) -> Result<(), OpenError> {
    let LogTarget::File(path) = target else { return Ok(()) };
    let opened = match OpenOptions::new().append(true).open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => can_create_in(path.parent().unwrap_or(Path::new(""))),
        other => other.map(drop),
    };
    opened.map_err(|source| OpenError { path: path.to_owned(), source })
}

/// Opens a file without a name in the folder: it is gone when it is closed.
fn can_create_in(folder: &Path) -> io::Result<()> {
    let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    let opened = OpenOptions::new().write(true).mode(FILE_MODE).custom_flags(libc::O_TMPFILE).open(folder);
    match opened {
        // The file system has no nameless files, which says nothing about named ones.
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(()),
        other => other.map(drop),
    }
}

fn open_file(path: &Path) -> Result<File, OpenError> {
    let opened = OpenOptions::new().append(true).create(true).mode(FILE_MODE).open(path);
    opened.map_err(|source| OpenError { path: path.to_owned(), source })
}
