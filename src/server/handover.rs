//! Owns a change of the binary without loss: the new process gets the listening sockets, and says when it serves.
//! Does not drain (`serve` does, once the new process serves).
//! Invariants: a new process that does not come up changes nothing; no connection is refused in between, because the
//! sockets never close; sockets travel over a socket pair that only parent and child hold (SCM_RIGHTS).

use std::ffi::OsString;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
};
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::AsyncReadExt as _;

/// Tells the new process that its standard input is the socket pair.
const VARIABLE: &str = "TOLLBRIDGE_UPGRADE";
/// How long the new process may take until it serves.
const START_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a new process that did not take over may take to end.
const END_TIMEOUT: Duration = Duration::from_secs(5);
/// What the new process says then.
const READY: &[u8] = b"ready\n";
/// How many sockets travel: the main listener and the admin listener.
const SOCKETS: usize = 2;

/// Why no new process took over.
#[derive(Debug, thiserror::Error)]
pub(super) enum HandoverError {
    #[error("cannot start `{}`: {source}", program.display())]
    Start { program: PathBuf, source: io::Error },
    #[error("cannot hand the sockets over: {0}")]
    Send(#[source] io::Error),
    #[error("the new process ended with {0} before it served; it says why in its own log lines")]
    Ended(String),
    #[error("the new process did not serve within {}s and was ended", START_TIMEOUT.as_secs())]
    Slow,
    #[error("`[store] file` belongs to one process: restart instead, or keep quotas in Redis")]
    FileStore,
}

/// How this process was started, for starting another like it.
#[derive(Debug, Clone)]
pub(super) struct Origin {
    program: PathBuf,
    arguments: Vec<OsString>,
}

/// The new process, until it has taken over. Dropped before that it is told to end, not killed: it accepts connections
/// before it says that it serves, and drains them.
struct Successor(tokio::process::Child);

/// What an old process handed over.
pub(super) struct Inherited {
    listeners: Vec<TcpListener>,
    parent: UnixStream,
}

// === impl Origin ===

impl Origin {
    /// Must be asked early: what was started may be replaced on the disk later, under the same name.
    pub(super) fn of_this_process() -> io::Result<Self> {
        let mut words = std::env::args_os();
        let first = PathBuf::from(words.next().unwrap_or_default());
        // As named, so that a link that was moved to a new version leads there.
        let named = first.components().count() > 1;
        let program = if named { std::env::current_dir()?.join(first) } else { std::env::current_exe()? };
        Ok(Self { program, arguments: words.collect() })
    }

    /// Starts the binary that now stands where this one was started from, hands it the sockets, and waits until it
    /// serves.
    ///
    /// # Errors
    /// [`HandoverError`]; then no other process is left.
    ///
    /// # Cancel safety
    /// Dropped, it tells the new process to end.
    pub(super) async fn hand_over(&self, sockets: [BorrowedFd<'_>; SOCKETS]) -> Result<(), HandoverError> {
        let (ours, theirs) = UnixStream::pair().map_err(HandoverError::Send)?;
        // It waits in the pair until it is read: a process that ends at once must not break the sending.
        send(&ours, sockets).map_err(HandoverError::Send)?;
        let mut command = tokio::process::Command::new(&self.program);
        command.args(&self.arguments).env(VARIABLE, "stdin").stdin(Stdio::from(OwnedFd::from(theirs)));
        let start = |source| HandoverError::Start { program: self.program.clone(), source };
        let mut successor = Successor(command.spawn().map_err(start)?);
        // Its end of the pair is the child's alone from now on: an end of file means that the child is gone.
        drop(command);
        ours.set_nonblocking(true).map_err(HandoverError::Send)?;
        let mut ours = tokio::net::UnixStream::from_std(ours).map_err(HandoverError::Send)?;
        let mut said = [0; READY.len()];
        match tokio::time::timeout(START_TIMEOUT, ours.read_exact(&mut said)).await {
            Ok(Ok(_)) if said == READY => {
                // It lives on: nobody waits for it here, and this process ends first.
                tracing::info!(pid = successor.0.id(), "the new process serves");
                std::mem::forget(successor);
                Ok(())
            }
            Ok(_) => Err(HandoverError::Ended(successor.ended().await)),
            Err(_) => {
                successor.tell_to_end();
                successor.ended().await;
                Err(HandoverError::Slow)
            }
        }
    }
}

// === impl Successor ===

impl Successor {
    fn tell_to_end(&self) {
        let pid = self.0.id().and_then(|id| Pid::from_raw(id.try_into().ok()?));
        // It may have ended meanwhile.
        let _ = pid.map(|pid| kill_process(pid, Signal::TERM));
    }

    /// Waits for its end, and after a while kills it; says how it ended.
    async fn ended(&mut self) -> String {
        match tokio::time::timeout(END_TIMEOUT, self.0.wait()).await {
            Ok(Ok(status)) => status.to_string(),
            Ok(Err(_)) | Err(_) => {
                // It may have ended meanwhile.
                let _ = self.0.kill().await;
                "no status".to_owned()
            }
        }
    }
}

impl Drop for Successor {
    fn drop(&mut self) {
        self.tell_to_end();
    }
}

// === impl Inherited ===

impl Inherited {
    /// What an old process handed to this one; `None` when nobody did.
    pub(super) fn receive() -> io::Result<Option<Self>> {
        if std::env::var_os(VARIABLE).is_none_or(|value| value != "stdin") {
            return Ok(None);
        }
        let parent = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
        parent.set_read_timeout(Some(Duration::from_secs(5)))?;
        let listeners = receive(&parent)?;
        Ok(Some(Self { listeners, parent }))
    }

    /// The handed socket for an address, if one is bound to it; port 0 takes any of that address.
    pub(super) fn take(&mut self, nth: usize, wanted: SocketAddr) -> Option<TcpListener> {
        let bound = self.listeners.get(nth)?.local_addr().ok()?;
        let fits = bound.ip() == wanted.ip() && (wanted.port() == 0 || bound.port() == wanted.port());
        if fits { self.listeners.get(nth)?.try_clone().ok() } else { None }
    }

    /// Tells the old process that it may stop accepting.
    pub(super) fn ready(self) -> io::Result<()> {
        use std::io::Write as _;
        (&self.parent).write_all(READY)
    }
}

fn send(pair: &UnixStream, sockets: [BorrowedFd<'_>; SOCKETS]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(SOCKETS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !control.push(SendAncillaryMessage::ScmRights(&sockets)) {
        return Err(io::Error::other("no room for the sockets"));
    }
    rustix::net::sendmsg(pair, &[IoSlice::new(b"s")], &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

fn receive(pair: &UnixStream) -> io::Result<Vec<TcpListener>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(SOCKETS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    rustix::net::recvmsg(pair, &mut [IoSliceMut::new(&mut byte)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let mut listeners = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(sockets) = message {
            listeners.extend(sockets.map(TcpListener::from));
        }
    }
    Ok(listeners)
}
