//! Fuzzes the arguments of MCP tools.
//! Does not judge: `tollbridge::mcp::fuzzing::arguments` does, by panicking.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| tollbridge::mcp::fuzzing::arguments(data));
