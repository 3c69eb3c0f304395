//! Owns the sockets of the fake: reads raw HTTP/1.1, writes replies step by step, notices callers that leave.
//! Does not use an HTTP library: a library would refuse to send the lies that tests need.

use std::io;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use super::reply::{End, Reply, Step};
use super::{Recorded, Shared, socket};

/// Accepts connections for as long as the fake lives.
pub(super) async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    for number in 0.. {
        let Ok((stream, _)) = listener.accept().await else { return };
        connections.spawn(serve(stream, number, Arc::clone(&shared)));
    }
}

/// Serves one connection until either side ends it. A broken connection is not an error of the test.
async fn serve(stream: TcpStream, number: usize, shared: Arc<Shared>) {
    // A paced event must leave at once, or the pacing measures Nagle's algorithm.
    let _ = stream.set_nodelay(true);
    let mut connection = Connection { stream, buffer: BytesMut::new(), number };
    while let Ok(Some(request)) = connection.read_request().await {
        let index = shared.record(request.clone());
        if request.path() == "/workflows/ws" && request.header("sec-websocket-key").is_some() {
            return socket::serve(connection.stream, &request, &shared).await;
        }
        let reply = shared.reply(&request);
        let end = reply.end;
        match connection.send(reply).await {
            Ok(()) => shared.mark(index, |recorded| recorded.answered = true),
            Err(_) => return shared.mark(index, |recorded| recorded.aborted = true),
        }
        match end {
            End::Keep => {}
            End::Close | End::Hang => return,
            End::Reset => return connection.reset(),
        }
    }
}

/// A connection and what was read from it but not yet used.
struct Connection {
    stream: TcpStream,
    buffer: BytesMut,
    number: usize,
}

// === impl Connection ===

impl Connection {
    /// The next request, or `None` when the caller closed between requests.
    async fn read_request(&mut self) -> io::Result<Option<Recorded>> {
        let head_end = loop {
            if let Some(at) = find(&self.buffer, b"\r\n\r\n") {
                break at + 4;
            }
            if self.fill().await? == 0 {
                return Ok(None);
            }
        };
        let head = self.buffer.split_to(head_end);
        let head = String::from_utf8_lossy(&head).into_owned();
        let mut lines = head.trim_end().split("\r\n");
        let mut words = lines.next().unwrap_or_default().split(' ');
        let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let mut request = Recorded {
            method: method.to_owned(),
            target: target.to_owned(),
            headers: lines.filter_map(|line| line.split_once(':')).map(trimmed).collect(),
            body: Bytes::new(),
            connection: self.number,
            aborted: false,
            answered: false,
        };
        request.body = self.read_body(&request).await?;
        Ok(Some(request))
    }

    async fn read_body(&mut self, request: &Recorded) -> io::Result<Bytes> {
        if request.header("transfer-encoding").is_some() {
            return self.read_chunks().await;
        }
        let length = request.header("content-length").map_or(0, |length| length.parse().unwrap());
        self.take(length).await
    }

    async fn read_chunks(&mut self) -> io::Result<Bytes> {
        let mut body = BytesMut::new();
        loop {
            let line_end = loop {
                if let Some(at) = find(&self.buffer, b"\r\n") {
                    break at;
                }
                self.fill_or_fail().await?;
            };
            let line = self.take(line_end + 2).await?;
            let size = usize::from_str_radix(String::from_utf8_lossy(&line).trim(), 16).unwrap();
            let data = self.take(size + 2).await?;
            if size == 0 {
                return Ok(body.freeze());
            }
            body.extend_from_slice(&data[..size]);
        }
    }

    /// Exactly `length` bytes.
    async fn take(&mut self, length: usize) -> io::Result<Bytes> {
        while self.buffer.len() < length {
            self.fill_or_fail().await?;
        }
        Ok(self.buffer.split_to(length).freeze())
    }

    async fn fill_or_fail(&mut self) -> io::Result<()> {
        match self.fill().await? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(()),
        }
    }

    async fn fill(&mut self) -> io::Result<usize> {
        self.stream.read_buf(&mut self.buffer).await
    }

    /// Writes a reply.
    ///
    /// # Errors
    /// When the caller goes away before the end, also while the reply waits.
    async fn send(&mut self, reply: Reply) -> io::Result<()> {
        for step in reply.steps {
            match step {
                Step::Write(bytes) => {
                    self.stream.write_all(&bytes).await?;
                    self.stream.flush().await?;
                }
                Step::Wait(gate) => tokio::select! {
                    () = gate.pass() => {}
                    gone = self.caller_gone() => return Err(gone),
                },
            }
        }
        if reply.end == End::Hang {
            return Err(self.caller_gone().await);
        }
        Ok(())
    }

    /// Ends when the caller closes; bytes of a pipelined request are kept for later.
    async fn caller_gone(&mut self) -> io::Error {
        loop {
            match self.fill().await {
                Ok(0) => return io::ErrorKind::UnexpectedEof.into(),
                Ok(_) => {}
                Err(error) => return error,
            }
        }
    }

    /// Closes with a reset instead of an orderly end.
    fn reset(self) {
        let _ = socket2::SockRef::from(&self.stream).set_linger(Some(std::time::Duration::ZERO));
    }
}

fn trimmed((name, value): (&str, &str)) -> (String, String) {
    (name.to_owned(), value.trim().to_owned())
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    memchr::memmem::find(haystack, needle)
}
