//! Fuzzes the meter of event streams and JSON replies.
//! Does not judge: `tollbridge::usage::fuzzing::meter` does, by panicking.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| tollbridge::usage::fuzzing::meter(data));
