//! Fuzzes multipart forms, read in pieces and written anew.
//! Does not judge: `tollbridge::gateway::fuzzing::multipart` does, by panicking.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| tollbridge::gateway::fuzzing::multipart(data));
