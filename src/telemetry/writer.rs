//! Owns one log: a bounded queue, one thread, one file or standard output.
//! Does not know what lines say (`line`).
//! Invariants: `write` never waits; lines arrive whole and in order; every lost line is counted.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use prometheus::IntCounter;
use tokio::sync::oneshot;

use super::LogTarget;

/// Most lines that wait for the thread.
const QUEUE_LINES: usize = 8192;
/// Bytes that are gathered before they are written, while more lines wait.
const BATCH_BYTES: usize = 64 * 1024;
/// How long the thread lets lines gather. Woken for each of them it would cost the exchanges a third of their time.
const GATHER: Duration = Duration::from_millis(10);
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
    queue: Option<SyncSender<Message>>,
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

enum Message {
    Line(Vec<u8>),
    /// A line whose sender waits to hear whether it was written.
    Sure(Vec<u8>, oneshot::Sender<bool>),
    Reopen,
    Flush(SyncSender<()>),
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
    batch: Vec<u8>,
    lines: u64,
    waiting: Vec<oneshot::Sender<bool>>,
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
        let (queue, lines) = sync_channel(QUEUE_LINES);
        let (end, ended) = sync_channel(0);
        let mut drain =
            Drain { log, sink, batch: Vec::new(), lines: 0, waiting: Vec::new(), lost: lost.clone(), failing: false };
        let body = move || {
            drain.run(&lines);
            drop(end);
        };
        let thread = std::thread::Builder::new().name(format!("log-{log}")).spawn(body);
        let thread = thread.map_err(|source| OpenError { path, source })?;
        Ok(Some(Self { queue: Some(queue), lost, thread: Some(thread), ended: ended.into() }))
    }

    /// Hands a whole line to the thread, or drops and counts it when too many wait.
    pub(super) fn write(&self, line: Vec<u8>) {
        if !self.send(Message::Line(line)) {
            self.lost.waiting_too_long();
        }
    }

    /// Hands a whole line to the thread and waits, two seconds at most, until it is written; `false` when it is not.
    ///
    /// # Cancel safety
    /// Dropping the future does not take the line back.
    pub(super) async fn write_surely(&self, line: Vec<u8>) -> bool {
        let (done, wait) = oneshot::channel();
        if !self.send(Message::Sure(line, done)) {
            self.lost.waiting_too_long();
            return false;
        }
        matches!(tokio::time::timeout(DRAIN_DEADLINE, wait).await, Ok(Ok(true)))
    }

    pub(super) fn reopen(&self) {
        // A full queue means a stuck target: reopening would wait behind it.
        let _queued = self.send(Message::Reopen);
    }

    pub(super) fn flush(&self) {
        let (done, wait) = sync_channel(1);
        if self.send(Message::Flush(done)) {
            let _ = wait.recv_timeout(DRAIN_DEADLINE);
        }
    }

    fn send(&self, message: Message) -> bool {
        let Some(queue) = &self.queue else { return false };
        match queue.try_send(message) {
            Ok(()) => true,
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => false,
        }
    }
}

impl Drop for LogWriter {
    /// Lets the thread write what waits. A target that stays stuck loses it: the process must be able to end.
    fn drop(&mut self) {
        self.queue = None;
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
    fn run(&mut self, queue: &Receiver<Message>) {
        // Waits for the first line; then lets more of them gather, and writes when nothing waits any more.
        while let Ok(first) = queue.recv() {
            self.take(first);
            let until = Instant::now() + GATHER;
            // The channel parks and unparks this thread too: a token that it left behind must not end the wait.
            while let Some(left) = until.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
                std::thread::park_timeout(left);
            }
            while let Ok(next) = queue.try_recv() {
                self.take(next);
            }
            self.write_batch();
        }
    }

    fn take(&mut self, message: Message) {
        match message {
            Message::Line(line) => self.gather(&line),
            Message::Sure(line, done) => {
                // Before the line: a full batch is written, and answered, inside.
                self.waiting.push(done);
                self.gather(&line);
            }
            Message::Reopen => {
                self.write_batch();
                self.reopen();
            }
            Message::Flush(done) => {
                self.write_batch();
                let _ = done.try_send(());
            }
        }
    }

    fn gather(&mut self, line: &[u8]) {
        self.batch.extend_from_slice(line);
        self.lines += 1;
        if self.batch.len() >= BATCH_BYTES {
            self.write_batch();
        }
    }

    fn write_batch(&mut self) {
        if self.batch.is_empty() {
            return;
        }
        let written = match &mut self.sink {
            Sink::Stdout => {
                let mut out = io::stdout().lock();
                out.write_all(&self.batch).and_then(|()| out.flush())
            }
            Sink::File { file, .. } => file.write_all(&self.batch),
        };
        // Who waits no more has given up; the line stands all the same.
        self.waiting.drain(..).for_each(|done| {
            let _ = done.send(written.is_ok());
        });
        match written {
            Ok(()) => self.failing = false,
            Err(error) => {
                self.lost.not_written(self.lines);
                if !self.failing {
                    tracing::error!(log = self.log, %error, "log lines lost");
                }
                self.failing = true;
            }
        }
        self.batch.clear();
        self.lines = 0;
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
