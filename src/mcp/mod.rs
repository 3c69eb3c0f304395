//! Placeholder head, replaced by the module's own.

pub mod settings;

pub use settings::Settings;
