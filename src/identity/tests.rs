//! Owns the proof that only genuine credentials become principals: forged tokens, key confusion, claims, rotation.

mod fixture;
mod forged;
mod principals;
mod rotation;
mod settings;
mod vectors;
