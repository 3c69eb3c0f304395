//! Owns waking the task that moves a connection.
//! Does not poll anything.
//! Invariant: a ring is lost only on the thread that mutes it, and whoever mutes it drives the connection before it next
//! waits.
//!
//! Both ends of hyper's channels are polled by one task, one after the other. Each would wake that task for what it is
//! just about to look at, and a task that is woken while it runs is run once more from its top: of four runs for each
//! exchange two were for nothing.

use std::cell::Cell;
use std::sync::Arc;
use std::task::{Context, Wake, Waker};

use futures_util::task::AtomicWaker;

thread_local! {
    static MUTED: Cell<bool> = const { Cell::new(false) };
}

/// What a connection rings when it can be moved on.
pub(super) struct Bell {
    listener: Arc<Listener>,
    waker: Waker,
}

#[derive(Default)]
struct Listener(AtomicWaker);

/// Mutes until it is dropped; holds what was before.
struct Muted(bool);

// === impl Bell ===

impl Bell {
    pub(super) fn new() -> Self {
        let listener = Arc::new(Listener::default());
        Self { waker: Waker::from(Arc::clone(&listener)), listener }
    }

    /// Wakes the task of `cx` from now on; returns the context to poll the connection in.
    pub(super) fn listen(&self, cx: &Context<'_>) -> Context<'_> {
        self.listener.0.register(cx.waker());
        Context::from_waker(&self.waker)
    }
}

/// Does something that rings the bell of a connection which the caller drives before it next waits. It must run no code
/// that is not hyper's: every bell is muted on this thread. What rings on other threads is heard.
pub(super) fn muted<T>(work: impl FnOnce() -> T) -> T {
    let _muted = Muted(MUTED.replace(true));
    work()
}

impl Drop for Muted {
    fn drop(&mut self) {
        MUTED.set(self.0);
    }
}

// === impl Listener ===

impl Wake for Listener {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !MUTED.get() {
            self.0.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[derive(Default)]
    struct Woken(AtomicUsize);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn a_ring_is_muted_on_its_own_thread_only() {
        let woken = Arc::new(Woken::default());
        let task = Waker::from(Arc::clone(&woken));
        let bell = Bell::new();
        let rings = || woken.0.load(Ordering::Relaxed);
        let ring = bell.listen(&Context::from_waker(&task)).waker().clone();
        muted(|| ring.wake_by_ref());
        assert_eq!(rings(), 0);
        muted(|| std::thread::scope(|scope| drop(scope.spawn(|| ring.wake_by_ref()).join())));
        assert_eq!(rings(), 1);
        // A waker is used up; who polls again listens again.
        bell.listen(&Context::from_waker(&task));
        ring.wake();
        assert_eq!(rings(), 2);
    }
}
