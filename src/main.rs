//! Parses arguments, calls `cli`, maps the result to an exit code.

use std::process::ExitCode;

// An idle stream costs three times the memory under other allocators (see benches/README.md).
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    tollbridge::cli::main()
}
