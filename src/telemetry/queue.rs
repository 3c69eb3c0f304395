//! Owns the lines of one log between the exchanges that make them and the thread that writes them.
//! Does not write (`writer`) and does not know what lines say (`line`).
//! Invariants: handing a line over never waits for the target; what waits is bounded in lines and bytes.
//!
//! One buffer, not a channel of lines: a line that is freed by another thread than made it costs more than its copy.

use std::sync::mpsc::SyncSender;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use tokio::sync::oneshot;

/// Most lines that wait for the thread.
const LINES_MAX: u64 = 8192;
/// Most bytes that wait for the thread.
const BYTES_MAX: usize = 16 << 20;
/// How long the thread lets lines gather. Woken for each of them it would cost the exchanges a third of their time.
const GATHER: Duration = Duration::from_millis(10);

/// What waits for the thread of one log.
#[derive(Default)]
pub(super) struct Queue {
    waiting: Mutex<Batch>,
    woken: Condvar,
}

/// What the thread takes at once.
#[derive(Default)]
pub(super) struct Batch {
    /// Whole lines.
    pub(super) bytes: Vec<u8>,
    /// Where in the bytes the target is opened anew.
    pub(super) reopen_at: Option<usize>,
    /// Who waits to hear whether these lines were written.
    pub(super) sure: Vec<oneshot::Sender<bool>>,
    /// Who waits until these lines were written, or lost.
    pub(super) flushes: Vec<SyncSender<()>>,
    lines: u64,
    closed: bool,
}

// === impl Queue ===

impl Queue {
    /// Hands a whole line over; `false` when too many wait. `sure` hears what became of it.
    pub(super) fn push(&self, line: &[u8], sure: Option<oneshot::Sender<bool>>) -> bool {
        let mut waiting = self.waiting.lock();
        if waiting.closed || waiting.lines >= LINES_MAX || waiting.bytes.len() + line.len() > BYTES_MAX {
            return false;
        }
        let wakes = waiting.is_empty() || sure.is_some();
        waiting.bytes.extend_from_slice(line);
        waiting.lines += 1;
        waiting.sure.extend(sure);
        drop(waiting);
        if wakes {
            self.woken.notify_one();
        }
        true
    }

    /// Asks for the target to be opened anew, behind the lines so far.
    pub(super) fn reopen(&self) {
        let mut waiting = self.waiting.lock();
        waiting.reopen_at = Some(waiting.bytes.len());
        drop(waiting);
        self.woken.notify_one();
    }

    /// Asks to hear when the lines so far are through.
    pub(super) fn flush(&self, done: SyncSender<()>) {
        self.waiting.lock().flushes.push(done);
        self.woken.notify_one();
    }

    /// Takes no more lines; the thread ends when it has what waits.
    pub(super) fn close(&self) {
        self.waiting.lock().closed = true;
        self.woken.notify_one();
    }

    /// Waits for something to do, lets more of it gather, and takes it; `None` when the queue is closed and empty.
    /// `spare` is an empty buffer for the lines that come meanwhile.
    pub(super) fn take(&self, spare: Vec<u8>) -> Option<Batch> {
        let mut waiting = self.waiting.lock();
        while waiting.is_empty() && !waiting.closed {
            self.woken.wait(&mut waiting);
        }
        if waiting.is_empty() {
            return None;
        }
        let until = Instant::now() + GATHER;
        while !waiting.is_urgent() && !self.woken.wait_until(&mut waiting, until).timed_out() {}
        let next = Batch { bytes: spare, closed: waiting.closed, ..Batch::default() };
        Some(std::mem::replace(&mut *waiting, next))
    }
}

// === impl Batch ===

impl Batch {
    fn is_empty(&self) -> bool {
        self.lines == 0 && self.reopen_at.is_none() && self.flushes.is_empty()
    }

    /// Says whether somebody waits for what is in here.
    fn is_urgent(&self) -> bool {
        self.closed || self.reopen_at.is_some() || !self.sure.is_empty() || !self.flushes.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_wait_in_order_and_not_without_end() {
        let queue = Queue::default();
        assert!(queue.push(b"a\n", None) && queue.push(b"b\n", None));
        queue.reopen();
        assert!(queue.push(b"c\n", None));
        let batch = queue.take(Vec::new()).unwrap();
        assert_eq!((batch.bytes.as_slice(), batch.reopen_at), (b"a\nb\nc\n".as_slice(), Some(4)));

        for _ in 0..LINES_MAX {
            assert!(queue.push(b"x\n", None));
        }
        assert!(!queue.push(b"one too many\n", None));
        assert!(queue.take(Vec::new()).is_some() && queue.push(b"again\n", None));
        assert!(!queue.push(&vec![b'x'; BYTES_MAX], None));
    }

    #[test]
    fn a_closed_queue_gives_what_it_has_and_takes_nothing() {
        let queue = Queue::default();
        assert!(queue.push(b"a\n", None));
        queue.close();
        assert!(!queue.push(b"b\n", None));
        assert_eq!(queue.take(Vec::new()).unwrap().bytes, b"a\n");
        assert!(queue.take(Vec::new()).is_none());
    }
}
