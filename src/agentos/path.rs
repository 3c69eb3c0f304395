//! Owns the canonical path: what is matched, authorized and forwarded is one string, read as Starlette reads it.
//! Does not match (`matching`) and does not read the query (`query`).
//! Invariants: parsing a canonical path gives it back; its segments are what AgentOS will see.

use std::fmt;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

/// A path whose meaning is the same for the gateway, for policy and for AgentOS.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct CanonicalPath {
    text: String,
    segments: Vec<String>,
}

/// Why a path has no canonical form (`path_not_canonical`).
///
/// Refused rather than repaired: between two readers of a doubtful path stands an authorization decision.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadPath {
    /// Absolute form, authority form, `*`, or empty.
    #[error("path does not start with `/`")]
    NotOriginForm,
    /// A raw `?` or `#`.
    #[error("path contains a raw `?` or `#`")]
    QueryOrFragment,
    /// `//`.
    #[error("path has an empty segment")]
    EmptySegment,
    /// `.` or `..`, also encoded, also with matrix parameters (`..;x`).
    #[error("path has a dot segment")]
    DotSegment,
    /// A slash or backslash inside a segment, encoded or, for the backslash, raw.
    #[error("path has a slash or backslash inside a segment")]
    Separator,
    /// A control character, also encoded.
    #[error("path has a control character")]
    Control,
    /// A raw space, or a segment that begins or ends with white space.
    #[error("path has white space at the edge of a segment or unencoded")]
    WhiteSpace,
    /// `%` without two hexadecimal digits.
    #[error("path has an incomplete percent encoding")]
    PercentEncoding,
    /// Bytes that are not UTF-8, overlong forms included, or raw characters outside ASCII.
    #[error("path is not percent-encoded UTF-8")]
    NotUtf8,
}

/// Percent-encodes an id as one path segment or as a value of a query, where more than RFC 3986's unreserved characters
/// would mean something.
pub fn encode_segment(id: &str) -> String {
    const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');
    utf8_percent_encode(id, SEGMENT).to_string()
}

/// The id that [`encode_segment`] wrote; `None` for what is not percent-encoded UTF-8.
pub fn decode_segment(text: &str) -> Option<String> {
    decode(text).ok()
}

// === impl CanonicalPath ===

impl CanonicalPath {
    /// Reads the raw path of a request line: decodes each segment once, strips trailing slashes as AgentOS does.
    ///
    /// # Errors
    /// [`BadPath`] for everything that two servers could read differently.
    ///
    /// RFC 3986 §6.2.2.2 (unreserved characters decode) and §3.3 (what may stand unencoded in a segment).
    pub fn parse(raw_path: &str) -> Result<Self, BadPath> {
        let rest = raw_path.strip_prefix('/').ok_or(BadPath::NotOriginForm)?;
        let body = rest.trim_end_matches('/');
        if body.is_empty() {
            // AgentOS strips trailing slashes only when something is left: `//` is no route there.
            let root = Self { text: "/".to_owned(), segments: Vec::new() };
            return if rest.is_empty() { Ok(root) } else { Err(BadPath::EmptySegment) };
        }
        let mut path = Self { text: String::with_capacity(raw_path.len()), segments: Vec::new() };
        for raw in body.split('/') {
            let segment = decode(raw)?;
            check(&segment)?;
            path.text.push('/');
            encode(&segment, &mut path.text);
            path.segments.push(segment);
        }
        Ok(path)
    }

    /// The path to forward, percent-encoded.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The path with another text as one of its segments.
    ///
    /// # Errors
    /// [`BadPath`] when the text cannot be one segment, or there is no such segment.
    pub fn with_segment(&self, at: usize, text: &str) -> Result<Self, BadPath> {
        check(text)?;
        let mut segments = self.segments.clone();
        text.clone_into(segments.get_mut(at).ok_or(BadPath::EmptySegment)?);
        let mut path = Self { text: String::with_capacity(self.text.len() + text.len()), segments };
        for segment in &path.segments {
            path.text.push('/');
            encode(segment, &mut path.text);
        }
        Ok(path)
    }

    /// The decoded segments; the root has none.
    pub fn segments(&self) -> &[String] {
        &self.segments
    }
}

impl fmt::Display for CanonicalPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Decodes one raw segment, once: `%252F` is the text `%2F`, here and in AgentOS.
fn decode(raw: &str) -> Result<String, BadPath> {
    let mut bytes = raw.bytes();
    let mut decoded = Vec::with_capacity(raw.len());
    while let Some(byte) = bytes.next() {
        decoded.push(match byte {
            b'%' => percent_byte(bytes.next(), bytes.next())?,
            b'?' | b'#' => return Err(BadPath::QueryOrFragment),
            b' ' => return Err(BadPath::WhiteSpace),
            0x80.. => return Err(BadPath::NotUtf8),
            raw => raw,
        });
    }
    String::from_utf8(decoded).map_err(|_| BadPath::NotUtf8)
}

fn percent_byte(high: Option<u8>, low: Option<u8>) -> Result<u8, BadPath> {
    let digit = |byte: Option<u8>| byte.and_then(|byte| char::from(byte).to_digit(16));
    let (Some(high), Some(low)) = (digit(high), digit(low)) else {
        return Err(BadPath::PercentEncoding);
    };
    u8::try_from(high * 16 + low).map_err(|_| BadPath::PercentEncoding)
}

fn check(segment: &str) -> Result<(), BadPath> {
    // Servlet containers cut matrix parameters off before they look for dots.
    let before_parameters = segment.split(';').next().unwrap_or(segment);
    if segment.is_empty() {
        return Err(BadPath::EmptySegment);
    }
    if before_parameters == "." || before_parameters == ".." {
        return Err(BadPath::DotSegment);
    }
    if segment.contains(['/', '\\']) {
        return Err(BadPath::Separator);
    }
    if segment.chars().any(char::is_control) {
        return Err(BadPath::Control);
    }
    if segment.starts_with(char::is_whitespace) || segment.ends_with(char::is_whitespace) {
        return Err(BadPath::WhiteSpace);
    }
    Ok(())
}

/// Encodes everything but the characters that RFC 3986 lets stand in a segment.
fn encode(segment: &str, out: &mut String) {
    const HEX: [char; 16] = ['0', '1', '2', '3', '4', '5', '6', '7', '8', '9', 'A', 'B', 'C', 'D', 'E', 'F'];
    for byte in segment.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=:@".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push('%');
            out.extend([byte >> 4, byte & 15].iter().filter_map(|digit| HEX.get(usize::from(*digit))));
        }
    }
}

#[cfg(test)]
mod tests;
