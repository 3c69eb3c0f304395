//! Owns the limits on what a caller may send, before anything looks at its meaning.
//! Does not enforce them: the doors do for connections, heads and the pace of bodies, `body` for sizes.
//! Invariant: every limit is finite.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// Limits on one request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Request line and header fields, in bytes.
    pub header_bytes: usize,
    /// Header fields.
    pub header_fields: usize,
    /// A whole body, in bytes; uploads stream through.
    pub body_bytes: u64,
    /// A whole body of single operations, by id, in bytes.
    pub operations: Arc<BTreeMap<String, u64>>,
    /// One form field that is not a file, in bytes.
    pub form_field_bytes: usize,
    /// A JSON body, in bytes; it is collected before it is sent on.
    pub json_body_bytes: usize,
    /// How long a caller may take to send the head.
    pub header_timeout: Duration,
    /// How long a caller may be silent within a body.
    pub body_timeout: Duration,
    /// What a caller must send of a body on average, in bytes; 0 asks for nothing.
    pub body_bytes_per_second_min: u64,
    /// How long a caller may take to accept a piece of an answer.
    pub write_timeout: Duration,
    /// Connections of one client address.
    pub connections_per_address: usize,
    /// Requests at once on one HTTP/2 connection.
    pub streams_per_connection: u32,
}

impl Limits {
    /// The largest body of an operation.
    pub fn body_bytes_of(&self, operation: &str) -> u64 {
        self.operations.get(operation).copied().unwrap_or(self.body_bytes)
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            header_bytes: 32 << 10,
            header_fields: 100,
            body_bytes: 256 << 20,
            operations: Arc::default(),
            form_field_bytes: 1 << 20,
            json_body_bytes: 1 << 20,
            header_timeout: Duration::from_secs(10),
            body_timeout: Duration::from_secs(30),
            body_bytes_per_second_min: 1 << 10,
            write_timeout: Duration::from_secs(30),
            connections_per_address: 10_000,
            streams_per_connection: 100,
        }
    }
}
