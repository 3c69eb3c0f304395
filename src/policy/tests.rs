//! The behaviour of policies.
