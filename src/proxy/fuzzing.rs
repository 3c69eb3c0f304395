//! Owns what must hold for any head, for the fuzz targets. Compiled with the feature `fuzzing` only.
//! Does not generate inputs. Invariant: a broken promise is a panic.

use super::head;

/// Checks a head; what passes is counted again by other means.
///
/// # Panics
/// When an accepted head can be read two ways.
pub fn head(data: &[u8]) {
    // As it is read from a socket: up to the first blank line.
    let Some(end) = memchr::memmem::find(data, b"\r\n\r\n") else { return };
    let data = data.get(..end + 4).unwrap_or_default();
    if head::check(data, 100).is_err() {
        return;
    }
    let text = String::from_utf8_lossy(data);
    let lines: Vec<&str> = text.split("\r\n").collect();
    assert!(lines.iter().all(|line| !line.contains(['\r', '\n', '\0'])), "{text:?}");
    let count = |name: &str| {
        let names = lines.iter().skip(1).filter_map(|line| line.split_once(':'));
        names.filter(|(given, _)| given.eq_ignore_ascii_case(name)).count()
    };
    let (lengths, encodings) = (count("content-length"), count("transfer-encoding"));
    assert!(lengths + encodings <= 1, "two framings: {text:?}");
    assert!(count("host") <= 1, "two hosts: {text:?}");
    let target = lines.first().and_then(|line| line.split(' ').nth(1)).unwrap_or("/");
    assert!(target.starts_with('/') && !target.contains('#'), "{text:?}");
}
