//! Owns the accept loops: sockets become connections of a door, under a cap.
//! Does not read from them.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use super::tasks::Tasks;

/// Pause after an accept error: running out of file descriptors must not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Accepts until the drain begins. At `connections_max` open connections the rest waits in the listen queue.
pub(super) async fn accept<F, W>(
    name: &'static str,
    listener: TcpListener,
    connections_max: usize,
    tasks: Tasks,
    serve: F,
) where
    F: Fn(TcpStream, SocketAddr) -> W,
    W: Future<Output = ()> + Send + 'static,
{
    let room = Arc::new(Semaphore::new(connections_max.min(Semaphore::MAX_PERMITS)));
    loop {
        let accepted = tokio::select! {
            biased;
            () = tasks.stopped() => return,
            accepted = next(&listener, &room) => accepted,
        };
        match accepted {
            Ok((stream, peer, place)) => {
                let work = serve(stream, peer);
                tasks.spawn(name, async move {
                    work.await;
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!(listener = name, %error, "accept failed");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn next(
    listener: &TcpListener,
    room: &Arc<Semaphore>,
) -> std::io::Result<(TcpStream, SocketAddr, tokio::sync::OwnedSemaphorePermit)> {
    let place = Arc::clone(room).acquire_owned().await.map_err(std::io::Error::other)?;
    let (stream, peer) = listener.accept().await?;
    Ok((stream, peer, place))
}
