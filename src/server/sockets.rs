//! Owns the listening sockets: bound anew, or taken over from the process before this one.
//! Does not accept (`accept`).
//! Invariant: a socket that fits is taken over, never closed and bound anew, so that no connection that waits in its
//! queue is lost.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd as _, OwnedFd};

use tokio::net::TcpListener;

use super::handover::Inherited;
use super::run::StartError;
use crate::config::Config;

/// A bound socket, where it is bound, and the socket once more.
pub(super) struct Bound {
    pub(super) listener: TcpListener,
    pub(super) address: SocketAddr,
    pub(super) again: OwnedFd,
}

/// The listening sockets: those of the process before this one where the addresses are the same, else new ones.
pub(super) fn listeners(config: &Config, mut inherited: Option<&mut Inherited>) -> Result<(Bound, Bound), StartError> {
    let mut listener = |nth: usize, address: SocketAddr| {
        let failed = |source| StartError::Bind { address, source };
        let handed = inherited.as_mut().and_then(|inherited| inherited.take(nth, address));
        let listener = match handed {
            Some(listener) => listener,
            None => bind(address).map_err(failed)?,
        };
        let again = listener.as_fd().try_clone_to_owned().map_err(failed)?;
        let listener = TcpListener::from_std(listener).map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        Ok::<_, StartError>(Bound { listener, address, again })
    };
    Ok((listener(0, config.server.listen)?, listener(1, config.admin.listen)?))
}

fn bind(address: SocketAddr) -> io::Result<std::net::TcpListener> {
    let socket = socket2::Socket::new(socket2::Domain::for_address(address), socket2::Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(1024)?;
    Ok(socket.into())
}
