//! Fuzzes urlencoded forms, read and written anew.
//! Does not judge: `tollbridge::gateway::fuzzing::urlencoded` does, by panicking.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| tollbridge::gateway::fuzzing::urlencoded(data));
