//! Owns the proof that only genuine credentials become principals: forged tokens, key confusion, claims, rotation.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may panic")]

mod fixture;
mod forged;
mod principals;
mod rotation;
mod settings;
mod vectors;
