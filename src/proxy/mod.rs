//! Owns DOOR 1: HTTP/1.1, HTTP/2 and WebSocket from the first byte of a connection to the last of an answer.
//! The only module that names pingora. Does not decide: every request becomes a `Call` for the gateway.
//! Invariant: a head that is malformed or ambiguous never becomes a `Call`.

mod connection;
mod cors;
mod door;
mod frames;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod gzip;
mod head;
mod intake;
mod origin;
mod places;
mod pump;
pub mod settings;
mod sockets;
mod tls;
mod websocket;

pub use door::HttpDoor;
pub use settings::{ClientCertificates, Cors, KeyPair, Settings, Tls};
pub use tls::{TlsAcceptor, TlsError};
