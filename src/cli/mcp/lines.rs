//! Owns the standard streams as messages: bounded lines in, whole lines out.
//! Does not read what they say.
//! Invariants: a line longer than the limit is skipped whole, never split; a line is written whole or not at all, whatever
//! happens to whoever sent it.

use std::io;

use bytes::Bytes;
use tokio::io::{AsyncBufReadExt as _, AsyncRead, AsyncWrite, AsyncWriteExt as _, BufReader};
use tokio::sync::mpsc::Receiver;

/// Longest message in either direction.
pub(super) const LINE_BYTES_MAX: usize = 16 * 1024 * 1024;
/// What is asked of the system at once.
const READ_BYTES: usize = 64 * 1024;

/// The lines of a stream.
pub(super) struct Lines<R> {
    reader: BufReader<R>,
    line: Vec<u8>,
    bytes_max: usize,
    too_long: bool,
}

/// What came.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Line {
    /// A line without its end.
    Whole(Bytes),
    /// A line beyond the limit, skipped.
    TooLong,
    /// The end of the stream.
    End,
}

// === impl Lines ===

impl<R: AsyncRead + Unpin> Lines<R> {
    pub(super) fn new(stream: R, bytes_max: usize) -> Self {
        Self { reader: BufReader::with_capacity(READ_BYTES, stream), line: Vec::new(), bytes_max, too_long: false }
    }

    /// The next line that is not blank.
    ///
    /// # Errors
    /// What the stream says.
    ///
    /// # Cancel safety
    /// Safe: the beginning of a line is kept.
    pub(super) async fn next(&mut self) -> io::Result<Line> {
        loop {
            let buffer = self.reader.fill_buf().await?;
            let ended = buffer.is_empty();
            let end = memchr::memchr(b'\n', buffer);
            let text = buffer.get(..end.unwrap_or(buffer.len())).unwrap_or(buffer);
            self.too_long |= self.line.len() + text.len() > self.bytes_max;
            if self.too_long {
                self.line = Vec::new();
            } else {
                self.line.extend_from_slice(text);
            }
            let taken = text.len() + usize::from(end.is_some());
            self.reader.consume(taken);
            if end.is_none() && !ended {
                continue;
            }
            let line = std::mem::take(&mut self.line);
            if std::mem::take(&mut self.too_long) {
                return Ok(Line::TooLong);
            }
            if !line.trim_ascii().is_empty() {
                return Ok(Line::Whole(line.into()));
            }
            if ended {
                return Ok(Line::End);
            }
        }
    }
}

/// Writes the messages of a channel, one a line, until all its senders are gone.
///
/// # Errors
/// What the stream says: its reader is gone.
pub(super) async fn write(mut messages: Receiver<Bytes>, mut stream: impl AsyncWrite + Unpin) -> io::Result<()> {
    while let Some(message) = messages.recv().await {
        stream.write_all(&one_line(&message)).await?;
        stream.flush().await?;
    }
    Ok(())
}

/// A message on one line: raw line ends are white space between JSON's tokens, never part of a text.
fn one_line(message: &[u8]) -> Vec<u8> {
    let mut line: Vec<u8> = message.iter().map(|b| if matches!(b, b'\n' | b'\r') { b' ' } else { *b }).collect();
    line.push(b'\n');
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn read(text: &str, bytes_max: usize) -> Vec<String> {
        let mut lines = Lines::new(text.as_bytes(), bytes_max);
        let mut seen = Vec::new();
        loop {
            match lines.next().await.unwrap() {
                Line::Whole(line) => seen.push(String::from_utf8(line.to_vec()).unwrap()),
                Line::TooLong => seen.push("TOO LONG".to_owned()),
                Line::End => return seen,
            }
        }
    }

    #[tokio::test]
    async fn lines_are_whole_and_bounded() {
        assert_eq!(read("a\n\n  \nb\r\nlast", 10).await, ["a", "b\r", "last"]);
        assert_eq!(read("0123456789\n01234567890\nnext\n", 10).await, ["0123456789", "TOO LONG", "next"]);
        assert_eq!(read("01234567890", 10).await, ["TOO LONG"]);
        let long = "x".repeat(3 * READ_BYTES);
        assert_eq!(read(&format!("{long}\ny\n"), 4 * READ_BYTES).await, [long.as_str(), "y"]);
        assert_eq!(read(&format!("{long}\ny\n"), READ_BYTES).await, ["TOO LONG", "y"]);
        assert_eq!(read("", 10).await, Vec::<String>::new());
    }

    #[tokio::test]
    async fn a_message_takes_one_line() {
        let (sender, messages) = tokio::sync::mpsc::channel(4);
        sender.send(Bytes::from_static(b"{\n  \"a\": \"x\\ny\"\r\n}")).await.unwrap();
        sender.send(Bytes::from_static(b"{}")).await.unwrap();
        drop(sender);
        let mut written = Vec::new();
        write(messages, &mut written).await.unwrap();
        assert_eq!(String::from_utf8(written).unwrap(), "{   \"a\": \"x\\ny\"  }\n{}\n");
    }
}
