//! Fuzzes request targets: the canonical path, the router and the query.
//! Does not judge: `tollbridge::agentos::fuzzing::target` does, by panicking.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| tollbridge::agentos::fuzzing::target(data));
