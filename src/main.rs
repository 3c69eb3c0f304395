//! Calls `cli`, and owns the allocator: what it is told at the start, and when it gives memory back.
//! Does not parse arguments.

use std::cell::Cell;
use std::ffi::c_char;
use std::process::ExitCode;
use std::ptr::null_mut;
use std::sync::atomic::AtomicPtr;
use std::time::{Duration, Instant};

// An idle stream costs three times the memory under other allocators (see benches/README.md).
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// jemalloc's options, which `_RJEM_MALLOC_CONF` in the environment overrides. Sizes of which every connection has one or
/// two share their extents, of so many pages of 4 KiB: of every extent that there ever was, jemalloc keeps 128 bytes. What is
/// free goes back to the system within 5 s, the last 4 MiB of it within 10 s: it is looked for once in that time.
#[expect(unsafe_code, reason = "the symbol is jemalloc's, whose own definition is weak")]
#[unsafe(export_name = "_rjem_malloc_conf")]
static OPTIONS: AtomicPtr<c_char> = AtomicPtr::new(
    c"dirty_decay_ms:5000,\
      slab_sizes:256-256:4|512-512:4|2048-2048:4|4096-4096:8|5120-5120:10|8192-8192:16|10240-10240:20|14336-14336:28"
        .as_ptr()
        .cast_mut(),
);

/// Least time between two flushes of a thread's cache.
const FLUSH_INTERVAL: Duration = Duration::from_millis(100);

fn main() -> ExitCode {
    tollbridge::cli::main(give_back)
}

/// Gives back what the allocator keeps for this thread alone. Worker threads call it when they find nothing to do: after a
/// burst, a few hundred small pieces kept for the next one would hold whole pages of what is free around them. What is freed
/// within [`FLUSH_INTERVAL`] of a flush waits for the next.
fn give_back() {
    thread_local!(static LAST: Cell<Option<Instant>> = const { Cell::new(None) });
    let now = Instant::now();
    if LAST.get().is_some_and(|last| now.duration_since(last) < FLUSH_INTERVAL) {
        return;
    }
    LAST.set(Some(now));
    #[expect(unsafe_code, reason = "jemalloc has no other door")]
    // SAFETY: the name ends with a zero byte, and this control takes and gives no value.
    let flushed =
        unsafe { tikv_jemalloc_sys::mallctl(c"thread.tcache.flush".as_ptr(), null_mut(), null_mut(), null_mut(), 0) };
    // A thread without a cache has nothing to give.
    let _ = flushed;
}
