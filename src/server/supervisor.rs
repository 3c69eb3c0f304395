//! Owns what whoever supervises this process is told: a file with the process id, and systemd's notifications.
//! Does not decide when (`serve` does).
//! Invariant: the file of another process is never removed.

use std::env;
use std::fs;
use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::{Path, PathBuf};
use std::process;

/// The file with the id of the process that serves; removed when it ends.
pub(super) struct PidFile(PathBuf);

/// Tells systemd (`Type=notify`) about a change of state; without it nobody is told. `NotifyAccess=all` lets a new
/// process of an upgrade be heard.
pub(super) fn notify(state: &str) {
    let Some(path) = env::var_os("NOTIFY_SOCKET") else { return };
    let address = match path.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name),
        None => SocketAddr::from_pathname(&path),
    };
    let said = address.and_then(|address| UnixDatagram::unbound()?.send_to_addr(state.as_bytes(), &address));
    if let Err(error) = said {
        tracing::warn!(%error, "systemd was not told");
    }
}

/// The process serves, and is the main one from now on.
pub(super) fn notify_ready() {
    notify(&format!("READY=1\nMAINPID={}", process::id()));
}

// === impl PidFile ===

impl PidFile {
    /// Writes the file, whole or not at all.
    pub(super) fn write(path: &Path) -> io::Result<Self> {
        let mut fresh = path.as_os_str().to_owned();
        fresh.push(format!(".{}", process::id()));
        fs::write(&fresh, format!("{}\n", process::id()))?;
        fs::rename(&fresh, path)?;
        Ok(Self(path.to_owned()))
    }
}

impl Drop for PidFile {
    fn drop(&mut self) {
        // After an upgrade it names the new process.
        if fs::read_to_string(&self.0).is_ok_and(|id| id.trim() == process::id().to_string()) {
            let _ = fs::remove_file(&self.0);
        }
    }
}
