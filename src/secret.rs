//! Owns secret bytes: keys, tokens and passwords that must never be printed.
//! Does not decide where they come from (`config`) and offers no `Display`.

use std::fmt;
use std::sync::Arc;

/// Secret bytes whose `Debug` prints `[redacted]`. Cloning shares the bytes.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Arc<[u8]>);

impl Secret {
    /// Takes ownership of the bytes.
    pub fn new(bytes: impl Into<Vec<u8>>) -> Self {
        Self(bytes.into().into())
    }

    /// Returns the bytes. The name marks every place where a secret leaves its wrapper.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }

    /// Returns the bytes as text, or `None` when they are not UTF-8.
    pub fn expose_str(&self) -> Option<&str> {
        std::str::from_utf8(&self.0).ok()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

#[cfg(test)]
mod tests {
    use super::Secret;

    #[test]
    fn debug_never_prints_the_bytes() {
        assert_eq!(format!("{:?}", Secret::new("hunter2")), "[redacted]");
    }
}
