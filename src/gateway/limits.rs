//! Owns the limits on what a caller may send, before anything looks at its meaning.
//! Does not enforce them (the doors and `admit` do).
//! Invariant: every limit is finite.

use std::time::Duration;

/// Limits on one request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Request line and header fields, in bytes.
    pub header_bytes: usize,
    /// A whole body, in bytes; uploads stream through.
    pub body_bytes: u64,
    /// One form field that is not a file, in bytes.
    pub form_field_bytes: usize,
    /// A JSON body, in bytes; it is collected before it is sent on.
    pub json_body_bytes: usize,
    /// How long a caller may take to send the head.
    pub header_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            header_bytes: 32 << 10,
            body_bytes: 256 << 20,
            form_field_bytes: 1 << 20,
            json_body_bytes: 1 << 20,
            header_timeout: Duration::from_secs(10),
        }
    }
}
