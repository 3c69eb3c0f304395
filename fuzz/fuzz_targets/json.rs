//! Fuzzes JSON bodies, read and written anew.
//! Does not judge: `tollbridge::gateway::fuzzing::json` does, by panicking.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| tollbridge::gateway::fuzzing::json(data));
