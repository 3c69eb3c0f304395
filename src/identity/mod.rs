//! Placeholder head, replaced by the module's own.
