//! Parses arguments, calls `cli`, maps the result to an exit code.

fn main() {}
