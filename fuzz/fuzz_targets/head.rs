//! Fuzzes raw HTTP/1 heads.
//! Does not judge: `tollbridge::proxy::fuzzing::head` does, by panicking.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| tollbridge::proxy::fuzzing::head(data));
